"""When a frame was taken, by the rig's clock, from the stamp that the device gave it."""

from __future__ import annotations

from collections import deque

# Over how long the smallest delay is sought: long against delays, short against drift.
WINDOW_S = 10.0
# A device's clock that goes back by more than this was set; by less, frames came out of order.
# One that is set forward only lowers the difference, which needs no care.
BACK_S = 0.1


class ClockMap:
    """Maps a device's stamps to the rig's clock.

    Receipt minus device stamp is the clocks' difference plus a delay, which is never negative: the
    smallest of late is the best estimate of the difference. The delay that every frame has at
    least stays unknown. Stamps that come out never lie after the receipt.
    """

    def __init__(self, window_s: float = WINDOW_S) -> None:
        self._window_s = window_s
        # (receipt, difference), differences rising: the first is the smallest in the window.
        self._least: deque[tuple[float, float]] = deque()
        self._last_s: float | None = None

    def is_repeat(self, device_s: float) -> bool:
        """Whether a stamp does not advance, so that the frame is an old one come again."""
        if self._last_s is None or device_s > self._last_s:
            return False
        return not self._was_set_back(device_s)

    def to_rig(self, device_s: float, receipt_s: float) -> float:
        """The time [s] by the rig's clock of what the device stamped ``device_s`` and we had at
        ``receipt_s``."""
        if self._was_set_back(device_s):
            self.reset()
        self._last_s = device_s
        difference_s = receipt_s - device_s
        while self._least and self._least[-1][1] >= difference_s:
            self._least.pop()
        self._least.append((receipt_s, difference_s))
        while self._least[0][0] < receipt_s - self._window_s:
            self._least.popleft()
        return min(device_s + self._least[0][1], receipt_s)

    def reset(self) -> None:
        """Forget the device's clock: it was opened anew."""
        self._least.clear()
        self._last_s = None

    def _was_set_back(self, device_s: float) -> bool:
        return self._last_s is not None and device_s < self._last_s - BACK_S
