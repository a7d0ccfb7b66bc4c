"""Watches cameras: a picture that is old, frozen, too rare, dark or out of step stops the arm.

Knows no hardware: it sees frames and their stamps. A camera that keeps a short history of its
frames (:class:`StreamingCamera`) is watched frame by frame, any other as often as one looks.
"""

from __future__ import annotations

import itertools
import math
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from robot_rl.errors import InvalidInputError, RobotRLError, StaleDataError
from robot_rl.interfaces import Camera, Clock, Frame

# As many times in a row may a picture come with the very same pixels: real sensors are noisy.
FROZEN_FRAMES = 4
# What is looked at of a large picture: about so many rows and columns.
_LOOK = 128
# After so long without a look [s] nobody was watching, as while the arm is held.
_LOOK_AGAIN_S = 1.0


@runtime_checkable
class StreamingCamera(Camera, Protocol):
    """A camera with a reader of its own, which keeps the newest frames.

    ``rate_hz`` is how many frames a second it should deliver. ``may_repeat`` says that pictures of
    a still scene may be equal to the last bit (simulated or strongly compressed ones).
    ``latency_s`` is how old a frame is by its stamp when it arrives, where that is known.
    """

    clock: Clock
    may_repeat: bool
    latency_s: float

    @property
    def rate_hz(self) -> float: ...

    def history(self) -> Sequence[Frame]:
        """The newest frames, oldest first; not to be written to."""

    def counts(self) -> tuple[int, int]:
        """How many frames came so far, and how many of them differed from the one before."""

    def fault(self) -> str | None:
        """Why there are no new frames, in words; None while there are."""


@dataclass(frozen=True)
class CameraWatchConfig:
    """When a camera counts as lost.

    ``rate_hz`` is the rate it should have; the largest age follows from it unless given: 0.12 s,
    or two and a half periods of a camera slower than 21 Hz. ``shape`` is what its frames should
    have, that of the first one if None. ``frozen_frames`` equal pictures in a row are accepted
    (None: any number), and none for longer than ``frozen_s`` [s]. Brightness is the mean of the
    pixels in [0, 255], and counts where ``bad_frames`` in a row are beyond it. ``max_skew_s`` is
    how far apart the newest frames of two cameras may be for longer than ``skew_for_s``.
    """

    rate_hz: float = 30.0
    max_age_s: float | None = None
    frozen_frames: int | None = FROZEN_FRAMES
    frozen_s: float = 0.5
    min_rate_share: float = 2.0 / 3.0
    rate_window_s: float = 1.0
    min_brightness: float = 4.0
    max_brightness: float = 251.0
    bad_frames: int = 3
    shape: tuple[int, int, int] | None = None
    max_skew_s: float = 0.05
    skew_for_s: float = 0.1

    def __post_init__(self) -> None:
        for name, low, high in (
            ("rate_hz", 0.5, 1000.0),
            ("max_age_s", 0.001, 10.0),
            ("frozen_frames", 1, 1000),
            ("frozen_s", 0.01, 10.0),
            ("min_rate_share", 0.0, 1.0),
            ("rate_window_s", 0.1, 60.0),
            ("min_brightness", 0.0, 255.0),
            ("max_brightness", 0.0, 255.0),
            ("bad_frames", 1, 1000),
            ("max_skew_s", 0.001, 10.0),
            ("skew_for_s", 0.0, 10.0),
        ):
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise InvalidInputError(
                    f"camera watch: {name} is {value}, should be in [{low:g}, {high:g}]"
                )
        if self.min_brightness >= self.max_brightness:
            raise InvalidInputError(
                f"camera watch: min_brightness {self.min_brightness} is not below max_brightness "
                f"{self.max_brightness}"
            )

    @property
    def age_limit_s(self) -> float:
        """The largest age of the newest frame [s]."""
        return self.max_age_s if self.max_age_s is not None else max_age_for(self.rate_hz)


def max_age_for(rate_hz: float) -> float:
    """The largest age [s] of the newest frame of a camera of this rate: with 0.12 s a lost camera
    makes the arm brake within 0.2 s, a watchdog's period and the rows that cannot be changed any
    more included; one slower than 21 Hz needs two and a half of its periods."""
    return max(0.12, 2.5 / rate_hz)


def fingerprint(image: NDArray[np.uint8]) -> int:
    """A number that changes with the picture (H, W, ...): of a large one a grid of pixels."""
    return zlib.crc32(np.ascontiguousarray(_grid(image)).data)


def brightness(image: NDArray[np.uint8]) -> float:
    """Mean of the pixels, 0 to 255, of a large picture over a grid of them."""
    return float(_grid(image).mean())


def _grid(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    rows, columns = max(1, image.shape[0] // _LOOK), max(1, image.shape[1] // _LOOK)
    return image[::rows, ::columns]


class MonotonicClock:
    """Seconds of a clock that nobody sets."""

    def now_s(self) -> float:
        return time.monotonic()

    def sleep_until(self, time_s: float) -> None:
        time.sleep(max(0.0, time_s - time.monotonic()))


class CameraWatch:
    """Says what is wrong with one camera; :meth:`check` may be called from several threads."""

    def __init__(
        self, camera: Camera, config: CameraWatchConfig | None = None, clock: Clock | None = None
    ) -> None:
        self.camera = camera
        self._stream = camera if isinstance(camera, StreamingCamera) else None
        self.config = config if config is not None else config_for(camera)
        self._clock: Clock = clock or getattr(camera, "clock", None) or MonotonicClock()
        self._lock = threading.Lock()
        self._shape = self.config.shape
        self._stamp_s = -math.inf
        self._print: int | None = None
        self._equal = 0
        self._changed_s = math.nan
        self._bad = 0
        self._bad_brightness = 0.0
        self._complaint: str | None = None
        self._polled = (0, 0)
        # When one looked, how many frames had come by then, and how often one had looked.
        self._samples: deque[tuple[float, int, int]] = deque()
        self._looks = 0

    def check(self) -> str | None:
        """What is wrong with the camera, in words for the operator; None while all is well."""
        with self._lock:
            found = self._check()
        return None if found is None else f"camera {self.camera.name!r}: {found}"

    def _check(self) -> str | None:
        fault = self._stream.fault() if self._stream else None
        if fault is not None:
            return fault
        try:
            frames = self._frames()
        except RobotRLError as error:
            return str(error)
        if not frames:
            return "no frame yet"
        for frame in frames:
            if frame.stamp_s > self._stamp_s:
                self._take(frame)
        if self._complaint is not None:
            return self._complaint
        now_s = self._clock.now_s()
        return self._age(now_s) or self._frozen(now_s) or self._light() or self._rate(now_s)

    def _frames(self) -> Sequence[Frame]:
        return self._stream.history() if self._stream else [self.camera.read(math.inf)]

    def _take(self, frame: Frame) -> None:
        image = frame.image
        if self._shape is None and image.ndim == 3 and image.shape[2] == 3:
            self._shape = image.shape
        if image.shape != self._shape or image.dtype != np.uint8:
            self._complaint = (f"a frame is {image.shape} {image.dtype}, should be "
                               f"{self._shape or '(height, width, 3)'} uint8")
            return
        self._complaint = None
        seen = fingerprint(image)
        if seen == self._print:
            self._equal += 1
        else:
            self._equal, self._changed_s, self._print = 0, frame.stamp_s, seen
        self._stamp_s = frame.stamp_s
        self._polled = (self._polled[0] + 1, self._polled[1] + (self._equal == 0))
        light = brightness(image)
        good = self.config.min_brightness <= light <= self.config.max_brightness
        self._bad, self._bad_brightness = (0 if good else self._bad + 1), light

    def _age(self, now_s: float) -> str | None:
        age_s, limit_s = now_s - self._stamp_s, self.config.age_limit_s
        if age_s > limit_s:
            return f"the newest frame is {age_s:.3f} s old, the limit is {limit_s:.3f} s"
        if age_s < -limit_s:
            return f"the newest frame is stamped {-age_s:.3f} s in the future"
        return None

    def _frozen(self, now_s: float) -> str | None:
        limit = self.config.frozen_frames
        if limit is None:
            return None
        still_s = now_s - self._changed_s
        if self._equal >= limit or (self._equal > 0 and still_s > self.config.frozen_s):
            return (f"the picture is frozen: {self._equal + 1} frames in a row are equal to the "
                    f"last bit, for {still_s:.2f} s")
        return None

    def _light(self) -> str | None:
        if self._bad < self.config.bad_frames:
            return None
        dark = self._bad_brightness < self.config.min_brightness
        return (f"the picture is {'black' if dark else 'white'}: its mean is "
                f"{self._bad_brightness:.0f}, should be in [{self.config.min_brightness:g}, "
                f"{self.config.max_brightness:g}]")

    def _rate(self, now_s: float) -> str | None:
        """Too few frames over the last window; those that repeat the one before do not count."""
        config = self.config
        frames, different = self._stream.counts() if self._stream else self._polled
        count = frames if config.frozen_frames is None else different
        window_s = max(config.rate_window_s, 6.0 / config.rate_hz)
        if self._samples and now_s - self._samples[-1][0] > window_s:
            self._samples.clear()  # nobody looked, as while the arm is held: count anew
        self._looks += 1
        self._samples.append((now_s, count, self._looks))
        while len(self._samples) > 1 and now_s - self._samples[1][0] >= window_s:
            self._samples.popleft()
        since_s, before, looks = self._samples[0]
        span_s = now_s - since_s
        if span_s < window_s:
            return None
        if self._stream is None and (self._looks - looks) / span_s < 1.5 * config.rate_hz:
            return None  # whoever looks more rarely than frames come cannot count them
        rate_hz = (count - before) / span_s
        if rate_hz >= config.min_rate_share * config.rate_hz:
            return None
        return (f"{rate_hz:.1f} frames a second over the last {span_s:.1f} s, should be at least "
                f"{config.min_rate_share * config.rate_hz:.1f} of {config.rate_hz:g}")


class StepWatch:
    """Says which cameras are out of step: their newest frames were taken too far apart."""

    def __init__(
        self, cameras: Mapping[str, Camera], config: CameraWatchConfig | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.cameras = dict(cameras)
        self.config = config if config is not None else CameraWatchConfig()
        first = next(iter(self.cameras.values()))
        self._clock: Clock = clock or getattr(first, "clock", None) or MonotonicClock()
        self._lock = threading.Lock()
        self._since_s: float | None = None
        self._looked_s = -math.inf

    def check(self) -> str | None:
        """Which two cameras are out of step, and by how much; None while all are in step."""
        try:
            stamps = {name: _newest(camera) for name, camera in self.cameras.items()}
        except RobotRLError as error:
            return str(error)
        early, late = min(stamps, key=stamps.__getitem__), max(stamps, key=stamps.__getitem__)
        skew_s, now_s = stamps[late] - stamps[early], self._clock.now_s()
        with self._lock:
            looked_s, self._looked_s = self._looked_s, now_s
            if skew_s <= self.config.max_skew_s:
                self._since_s = None
                return None
            if self._since_s is None or now_s - looked_s > _LOOK_AGAIN_S:
                self._since_s = now_s
            # A single frame that is left out is no reason to stop.
            if now_s - self._since_s < self.config.skew_for_s:
                return None
        return (f"cameras {early!r} and {late!r} are out of step: their newest frames are "
                f"{skew_s:.3f} s apart, the limit is {self.config.max_skew_s:.3f} s")


def _newest(camera: Camera) -> float:
    if isinstance(camera, StreamingCamera):
        frames = camera.history()
        if frames:
            return frames[-1].stamp_s
    return camera.read(math.inf).stamp_s


def config_for(camera: Camera) -> CameraWatchConfig:
    """The limits for a camera, from the rate that it states and whether its pictures may repeat."""
    if not isinstance(camera, StreamingCamera):
        return CameraWatchConfig()
    rate_hz = camera.rate_hz
    return CameraWatchConfig(
        rate_hz=rate_hz,
        max_age_s=max_age_for(rate_hz) + camera.latency_s,
        frozen_frames=None if camera.may_repeat else FROZEN_FRAMES,
    )


def camera_watches(
    cameras: Mapping[str, Camera], clock: Clock | None = None
) -> dict[str, Callable[[], str | None]]:
    """What belongs into ``Rig.watches`` for these cameras: one watch for each, and where there are
    several, one that says whether they are in step."""
    watches: dict[str, Callable[[], str | None]] = {
        f"camera {name}": CameraWatch(camera, clock=clock).check
        for name, camera in cameras.items()
    }
    if len(cameras) > 1:
        watches["cameras in step"] = StepWatch(cameras, clock=clock).check
    return watches


def read_together(
    cameras: Mapping[str, Camera], max_skew_s: float = 0.05, max_age_s: float = 0.15
) -> dict[str, Frame]:
    """One frame of each camera, taken as nearly at the same time as there are.

    To the newest frame of the camera that is furthest behind come those of the others that are
    nearest to it in time.

    Raises:
        StaleDataError: a camera has no frame so young, or two are further apart than
            ``max_skew_s``; the message names both and the skew.
    """
    # Reading judges age and loss.
    newest = {name: camera.read(max_age_s) for name, camera in cameras.items()}
    if len(newest) < 2:
        return newest
    behind_s = min(frame.stamp_s for frame in newest.values())
    chosen = {}
    for name, camera in cameras.items():
        frames = [newest[name]]
        if isinstance(camera, StreamingCamera):
            frames += camera.history()
        nearest = min(frames, key=lambda frame: abs(frame.stamp_s - behind_s))
        chosen[name] = Frame(nearest.image.copy(), nearest.stamp_s)
    early, late = max(
        itertools.permutations(chosen, 2), key=lambda two: chosen[two[1]].stamp_s
        - chosen[two[0]].stamp_s
    )
    skew_s = chosen[late].stamp_s - chosen[early].stamp_s
    if skew_s > max_skew_s:
        raise StaleDataError(
            f"cameras {early!r} and {late!r} are out of step: their nearest frames are "
            f"{skew_s:.3f} s apart, the limit is {max_skew_s:.3f} s"
        )
    return chosen
