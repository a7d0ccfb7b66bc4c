"""A camera with a reader thread of its own, which keeps the newest frames."""

from __future__ import annotations

import itertools
import logging
import math
import statistics
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from robot_rl.errors import InvalidInputError, RobotRLError, StaleDataError
from robot_rl.interfaces import Clock, Frame
from robot_rl.safety.cameras import FROZEN_FRAMES, fingerprint
from robot_rl_drivers.cameras.options import CameraOptions
from robot_rl_drivers.cameras.processing import Processor
from robot_rl_drivers.cameras.settings import Settings
from robot_rl_drivers.cameras.stamps import ClockMap

# How long one look at the source may block, so that closing is quick.
GRAB_S = 0.1
# Between tries to open a camera that was lost.
RETRY_S = 1.0
# How much of the past is kept.
HISTORY_S = 0.5
# Where the source does not say its rate, it is learned from so many frames or for so long.
_LEARN_FRAMES, _LEARN_S = 10, 1.5
_USUAL_RATE_HZ = 30.0

_log = logging.getLogger(__name__)


class SourceLost(RobotRLError):
    """The source is gone or has ended; the message says how."""


@dataclass(slots=True)
class RawFrame:
    """A picture (H, W, 3) uint8 RGB as the source gave it.

    ``device_s`` is the device's own stamp [s] by a clock of its own, ``taken_s`` the time by the
    rig's clock where the source knows it; with neither, the time of receipt counts.
    """

    image: NDArray[np.uint8]
    device_s: float | None = None
    taken_s: float | None = None


class FrameSource(Protocol):
    """Where frames come from. After ``open`` all calls come from one thread.

    ``rate_hz`` is what it promises (0: it does not say), ``lasting`` whether it may come back
    after it was lost; a file does not.
    """

    rate_hz: float
    lasting: bool
    settings: Settings

    def open(self) -> None:
        """Raises:
            InvalidInputError: it cannot be opened; the message says why, and what could be.
            MissingDependencyError: its library is not installed.
        """

    def grab(self, timeout_s: float) -> RawFrame | None:
        """The next frame, or None if there is none within ``timeout_s``.

        Raises:
            SourceLost: there will be none.
        """

    def close(self) -> None: ...


class StreamCamera:
    """:class:`robot_rl.safety.cameras.StreamingCamera` over a source of frames.

    A frame that comes again, by its stamp or, unless ``still``, by its pixels for more than a few
    frames, does not count as new. A camera that was lost comes back only with new frames.
    """

    def __init__(
        self,
        name: str,
        text: str,
        source: FrameSource,
        process: Processor,
        clock: Clock,
        options: CameraOptions,
    ) -> None:
        self.name, self.source, self.clock = name, text, clock
        self.may_repeat, self.latency_s = options.still, options.latency
        self._frames_from, self._process, self._options = source, process, options
        self._map = ClockMap()
        self._lock = threading.Lock()
        self._new = threading.Condition(self._lock)
        self._stop = threading.Event()
        self._ring: deque[Frame] = deque(maxlen=4)
        self._learned_hz = 0.0
        self._count = self._different = self._equal = 0
        self._print: int | None = None
        self._shape: tuple[int, ...] | None = None
        self._fault: str | None = None
        self._ended = False
        self._lost_at_s: float | None = None
        self._waits_for_change = False
        self._notes: list[str] = []
        self._error: RobotRLError | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Open the source, begin to read, and return with the first frame.

        Raises:
            InvalidInputError: it cannot be opened, or its pictures do not fit the options.
            StaleDataError: it opened and gives no frame within ``options.start``.
        """
        try:
            self._frames_from.open()
        except InvalidInputError as error:
            raise InvalidInputError(f"camera {self.name!r}: {error}") from None
        for refused in self._frames_from.settings.refused:
            self._note(refused)
        self._thread = threading.Thread(
            target=self._run, name=f"camera {self.name}", daemon=True)
        self._thread.start()
        with self._new:
            self._new.wait_for(lambda: self._ring or self._fault, self._options.start)
            given_up, fault, there = self._error, self._fault, bool(self._ring)
        if given_up is not None or not there:
            self.close()
            missing = f"no frame within {self._options.start:g} s"
            if self.source.startswith("ros"):
                missing += "; `robot-rl camera list` says which image topics there are"
            raise given_up or StaleDataError(
                f"camera {self.name!r} ({self.source}): {fault or missing}"
            )
        if self._stated_hz() == 0.0:
            self._learn_rate()

    def _stated_hz(self) -> float:
        return self._options.fps or self._frames_from.rate_hz or self._learned_hz

    def _learn_rate(self) -> None:
        with self._new:
            self._new.wait_for(lambda: len(self._ring) >= _LEARN_FRAMES or self._fault, _LEARN_S)
            stamps_s = [frame.stamp_s for frame in self._ring]
        gaps_s = [b - a for a, b in itertools.pairwise(stamps_s)]
        if len(gaps_s) > 1:
            self._learned_hz = min(max(1.0 / statistics.median(gaps_s), 0.5), 1000.0)

    @property
    def rate_hz(self) -> float:
        """Frames a second that it should deliver: as asked, as promised, or as learned at first."""
        return self._stated_hz() or _USUAL_RATE_HZ

    @property
    def settings(self) -> dict[str, float]:
        """Exposure, gain, white balance and focus as the device says them."""
        return dict(self._frames_from.settings.values)

    @property
    def notes(self) -> tuple[str, ...]:
        """What the operator should know: settings refused, losses and returns."""
        with self._lock:
            return tuple(self._notes)

    def read(self, max_age_s: float) -> Frame:
        """The newest frame.

        Raises:
            StaleDataError: it is older than ``max_age_s``, or the camera is lost or frozen.
        """
        if math.isnan(max_age_s) or max_age_s <= 0.0:
            raise InvalidInputError(
                f"camera {self.name!r}: max_age_s is {max_age_s}, should be above 0"
            )
        with self._lock:
            frame, fault = (self._ring[-1] if self._ring else None), self._fault
        said = f"camera {self.name!r} ({self.source}): "
        age_s = self.clock.now_s() - frame.stamp_s if frame is not None else math.inf
        if fault is not None:
            raise StaleDataError(
                f"{said}{fault}; its last frame is {age_s:.3f} s old, the limit is {max_age_s:g} s"
            )
        if frame is None:
            raise StaleDataError(f"{said}no frame yet, the limit is {max_age_s:g} s")
        if age_s > max_age_s:
            raise StaleDataError(
                f"{said}the newest frame is {age_s:.3f} s old, the limit is {max_age_s:g} s"
            )
        return Frame(frame.image.copy(), frame.stamp_s)

    def history(self) -> Sequence[Frame]:
        """The frames of the last half second, oldest first; read-only."""
        with self._lock:
            return tuple(self._ring)

    def counts(self) -> tuple[int, int]:
        """Frames so far, and how many of them differed from the one before."""
        with self._lock:
            return self._count, self._different

    def fault(self) -> str | None:
        """Why there are no new frames; None while there are."""
        with self._lock:
            return self._fault

    @property
    def ended(self) -> bool:
        """Whether the source has come to its end and will not come back, as a file does."""
        with self._lock:
            return self._ended

    def close(self) -> None:
        """Stop the reader and release the source."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=10.0)
            if self._thread.is_alive():
                _log.warning("camera %r: its source does not let go", self.name)
        else:
            self._frames_from.close()

    # -- the reader's thread ---------------------------------------------------------------------

    def _run(self) -> None:
        is_open = True
        while not self._stop.is_set():
            try:
                if not is_open:
                    self._frames_from.open()
                    is_open = True
                    self._map.reset()
                raw = self._frames_from.grab(GRAB_S)
                if raw is not None:
                    self._take(raw)
            except InvalidInputError as error:
                if is_open:
                    self._give_up(error)
                    break
                self._lose(error)
            except Exception as error:  # compiled libraries raise what they like
                self._lose(error)
            else:
                continue
            self._frames_from.close()
            is_open = False
            if not self._frames_from.lasting:
                with self._lock:
                    self._ended = True
                break
            self._stop.wait(RETRY_S)
        self._frames_from.close()

    def _give_up(self, error: InvalidInputError) -> None:
        named = InvalidInputError(f"camera {self.name!r} ({self.source}): {error}")
        with self._new:
            self._error, self._fault = named, str(error)
            self._new.notify_all()

    def _lose(self, error: Exception) -> None:
        reason = " ".join(str(error).split()) or type(error).__name__
        with self._new:
            if self._lost_at_s is None:
                self._lost_at_s = self.clock.now_s()
                self._waits_for_change = True
                self._notes.append(f"lost: {reason}")
                # The end of a file is no surprise.
                level = logging.WARNING if self._frames_from.lasting else logging.INFO
                _log.log(level, "camera %r is lost: %s", self.name, reason)
            self._fault = f"lost: {reason}"
            self._new.notify_all()

    def _note(self, text: str) -> None:
        _log.warning("camera %r: %s", self.name, text)
        with self._lock:
            self._notes.append(text)

    def _take(self, raw: RawFrame) -> None:
        received_s = self.clock.now_s()
        if raw.device_s is not None and self._map.is_repeat(raw.device_s):
            return
        stamp_s = received_s
        if raw.device_s is not None:
            stamp_s = self._map.to_rig(raw.device_s, received_s)
        if raw.taken_s is not None:
            stamp_s = min(raw.taken_s, received_s)
        if not self._changed(raw.image, received_s) or not self._fits(raw.image, received_s):
            return
        image = self._process(raw.image)
        image.setflags(write=False)
        self._keep(Frame(image, stamp_s - self._options.latency))

    def _changed(self, image: NDArray[np.uint8], now_s: float) -> bool:
        """Whether a picture may count as new; notes a freeze and its end."""
        seen = fingerprint(image)
        same, self._print = seen == self._print, seen
        with self._lock:
            if self._waits_for_change and same and not self.may_repeat:
                return False
            self._equal = self._equal + 1 if same else 0
            frozen = self._equal >= FROZEN_FRAMES and not self.may_repeat
            if frozen:
                if self._lost_at_s is None:
                    self._lost_at_s = now_s
                    self._notes.append("frozen")
                self._fault = f"frozen: the same picture {self._equal + 1} times in a row"
        return not frozen

    def _fits(self, image: NDArray[np.uint8], now_s: float) -> bool:
        """Whether a picture has the shape of the first: scaled, another would go unnoticed."""
        if self._shape is None:
            self._shape = image.shape
        if image.shape == self._shape:
            return True
        with self._lock:
            if self._lost_at_s is None:
                self._lost_at_s = now_s
                self._notes.append("other pictures")
            self._fault = (f"its pictures are {image.shape} now, should be {self._shape} as at "
                           "the start")
        return False

    def _keep(self, frame: Frame) -> None:
        with self._new:
            if self._ring:
                # Estimates of a clock's offset improve; time still does not go back.
                frame.stamp_s = max(frame.stamp_s, self._ring[-1].stamp_s + 1e-6)
            if self._lost_at_s is not None:
                for_s = self.clock.now_s() - self._lost_at_s
                self._notes.append(f"back after {for_s:.1f} s")
                _log.warning("camera %r is back after %.1f s", self.name, for_s)
                self._ring.clear()
                self._lost_at_s, self._waits_for_change = None, False
            self._fault = None
            self._ring.append(frame)
            self._count += 1
            self._different += self._equal == 0
            size = math.ceil(HISTORY_S * (self._stated_hz() or _USUAL_RATE_HZ)) + 2
            if self._ring.maxlen != size:
                self._ring = deque(self._ring, maxlen=size)
            self._new.notify_all()
