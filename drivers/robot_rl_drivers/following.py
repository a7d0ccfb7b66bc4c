"""Whether an arm goes where its set-points lead: a controller may ignore them without a word."""

from __future__ import annotations

import threading
from collections import deque

import numpy as np

from robot_rl.interfaces import Array

WITHIN_S = 0.5
"""How long joints may take to stir once their targets have moved [s]."""
TARGETS_RAD, JOINTS_RAD = 0.03, 0.003
"""Targets that went further than the first, while no joint went further than the second."""


class Following:
    """Compares targets with measured joints over the last :data:`WITHIN_S`.

    Only targets of the first half of that time count, so that a motion that has just begun is not
    taken for one that is ignored. Any thread may call any method.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: deque[tuple[float, Array, Array]] = deque()

    def note(self, now_s: float, target_rad: Array | None, measured_rad: Array) -> None:
        """A target (n,) [rad], or None where it is still the last one, and the joints (n,) [rad] as
        they were measured at the time [s]."""
        with self._lock:
            if target_rad is None:
                if not self._seen:
                    return
                target_rad = self._seen[-1][1]
            self._seen.append((now_s, np.array(target_rad), np.array(measured_rad)))
            while len(self._seen) > 1 and self._seen[1][0] <= now_s - WITHIN_S:
                self._seen.popleft()

    def clear(self) -> None:
        """Forget what was, as after a re-arm or where measurements are missing."""
        with self._lock:
            self._seen.clear()

    def fault(self) -> str | None:
        """That the arm does not follow, in words; None where it does, or nothing was asked."""
        with self._lock:
            seen = list(self._seen)
        if not seen or seen[-1][0] - seen[0][0] < WITHIN_S:
            return None
        half_s = seen[-1][0] - 0.5 * WITHIN_S
        asked = _spread([target for time_s, target, _ in seen if time_s <= half_s])
        went = _spread([measured for _, _, measured in seen])
        if asked <= TARGETS_RAD or went >= JOINTS_RAD:
            return None
        return (f"the arm does not follow its targets: they moved by {asked:.3f} rad, its joints "
                f"by {went:.4f} rad in {WITHIN_S} s; something blocks it, or its controller "
                "ignores us (after a program that crashed, wait 10 s and re-arm)")


def _spread(values: list[Array]) -> float:
    return float(np.ptp(np.array(values), axis=0).max())
