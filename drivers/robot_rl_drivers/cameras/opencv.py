"""Webcams, video files and streams through OpenCV."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from robot_rl.errors import InvalidInputError
from robot_rl.interfaces import Clock
from robot_rl_drivers.cameras.options import CameraOptions
from robot_rl_drivers.cameras.settings import Settings, apply_settings, wants_settings
from robot_rl_drivers.cameras.stream import FrameSource, RawFrame, SourceLost

# How long the automatics may settle before they are switched off.
_SETTLE_S = 1.0
_OPEN_TIMEOUT_MS, _READ_TIMEOUT_MS = 5000, 1000
_PROPERTIES = {
    "exposure": "CAP_PROP_EXPOSURE",
    "auto_exposure": "CAP_PROP_AUTO_EXPOSURE",
    "gain": "CAP_PROP_GAIN",
    "white_balance": "CAP_PROP_WB_TEMPERATURE",
    "auto_white_balance": "CAP_PROP_AUTO_WB",
    "focus": "CAP_PROP_FOCUS",
    "auto_focus": "CAP_PROP_AUTOFOCUS",
}
# What Video4Linux calls manual exposure, by time under a fixed aperture (webcams), and automatic.
_MANUAL, _BY_TIME, _AUTOMATIC = 1.0, 3.0, 0.0
# How long [s] a device may keep a read waiting; otherwise ten seconds.
os.environ.setdefault("OPENCV_VIDEOIO_V4L_SELECT_TIMEOUT", "1")


def make_source(target: str, options: CameraOptions, clock: Clock) -> FrameSource:
    """A source by what the target looks like: a device, a stream's address, or a file."""
    if "://" in target:
        return NetworkSource(target, options)
    if target.isdigit() or target.startswith("/dev/"):
        return DeviceSource(target, options, clock)
    return FileSource(target, options, clock)


def video_devices() -> list[str]:
    """Video devices of this machine, e.g. /dev/video0."""
    return sorted((str(path) for path in Path("/dev").glob("video*")), key=lambda p: (len(p), p))


class CaptureControl:
    """A Video4Linux camera's knobs; see :class:`robot_rl_drivers.cameras.settings.Control`."""

    def __init__(self, capture: Any) -> None:
        self._capture = capture

    def get(self, name: str) -> float | None:
        value = float(self._capture.get(getattr(cv2, _PROPERTIES[name])))
        if value == -1.0:  # this is how OpenCV says that the device has no such thing
            return None
        if name == "auto_exposure":
            return 0.0 if value == _MANUAL else 1.0
        return value

    def set(self, name: str, value: float) -> bool:
        key = getattr(cv2, _PROPERTIES[name])
        if name != "auto_exposure":
            return bool(self._capture.set(key, value))
        modes = (_BY_TIME, _AUTOMATIC) if value else (_MANUAL,)
        return any(self._capture.set(key, mode) for mode in modes)


class _Capture:
    """What the three have in common."""

    lasting = True

    def __init__(self, target: str, options: CameraOptions) -> None:
        self.target, self.options = target, options
        self.rate_hz = 0.0
        self.settings = Settings()
        self._capture: Any = None

    def close(self) -> None:
        if self._capture is not None:
            self._capture.release()
            self._capture = None

    def _decode(self) -> Any:
        done, image = self._capture.read()
        return cv2.cvtColor(_three_channels(image), cv2.COLOR_BGR2RGB) if done else None

    def _refuse_settings(self, why: str) -> None:
        if not wants_settings(self.options):
            return
        self.settings = Settings(refused=[f"{why}: exposure, gain, white_balance and focus "
                                          "cannot be set"])
        if self.options.refused == "fail":
            raise InvalidInputError(f"opencv:{self.target}: {self.settings.refused[0]}")


class DeviceSource(_Capture):
    """A camera at the machine, through Video4Linux."""

    def __init__(self, target: str, options: CameraOptions, clock: Clock) -> None:
        super().__init__(target, options)
        self._clock = clock

    def open(self) -> None:
        path = f"/dev/video{self.target}" if self.target.isdigit() else self.target
        if not os.path.exists(path):
            known = ", ".join(video_devices()) or "none"
            raise InvalidInputError(f"opencv:{self.target}: there is no {path}; video devices "
                                    f"here: {known}")
        self._capture = cv2.VideoCapture(path, cv2.CAP_V4L2)
        if not self._capture.isOpened():
            self.close()
            raise InvalidInputError(
                f"opencv:{self.target}: {path} is there but gives no video (another program may "
                "have it, or it is a camera's second node); video devices here: "
                + ", ".join(video_devices())
            )
        self.settings = Settings()
        self._set_format()
        self._set_knobs()

    def _set_format(self) -> None:
        options, capture = self.options, self._capture
        # Compressed pictures come first: over USB 2 the others are few.
        capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*(options.fourcc or "MJPG")))
        if options.size is not None:
            capture.set(cv2.CAP_PROP_FRAME_WIDTH, options.size[0])
            capture.set(cv2.CAP_PROP_FRAME_HEIGHT, options.size[1])
            found = (int(capture.get(cv2.CAP_PROP_FRAME_WIDTH)),
                     int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT)))
            if found != options.size:
                self.settings.refused.append(
                    f"size={options.size[0]}x{options.size[1]}: the device says "
                    f"{found[0]}x{found[1]}")
        if options.fps is not None:
            capture.set(cv2.CAP_PROP_FPS, options.fps)
        self.rate_hz = _plausible(float(capture.get(cv2.CAP_PROP_FPS)))
        if options.fps is not None and abs(self.rate_hz - options.fps) > 0.5:
            self.settings.refused.append(f"fps={options.fps:g}: the device says {self.rate_hz:g}")

    def _set_knobs(self) -> None:
        if self.options.fix:
            until_s = time.monotonic() + _SETTLE_S
            while time.monotonic() < until_s and self._capture.grab():
                pass
        refused = self.settings.refused
        if refused and self.options.refused == "fail":
            raise InvalidInputError(f"opencv:{self.target}: " + "; ".join(refused))
        self.settings = apply_settings(CaptureControl(self._capture), self.options, self.target)
        self.settings.refused[:0] = refused

    def grab(self, timeout_s: float) -> RawFrame | None:
        image = self._decode()
        if image is None:
            raise SourceLost(f"the device opencv:{self.target} gives no more pictures")
        # The kernel stamps buffers by the clock of time.monotonic: what passed since then is known.
        device_s = float(self._capture.get(cv2.CAP_PROP_POS_MSEC)) * 1e-3
        age_s = time.monotonic() - device_s
        if not 0.0 <= age_s <= 1.0:
            return RawFrame(image)
        return RawFrame(image, device_s=device_s, taken_s=self._clock.now_s() - age_s)


class NetworkSource(_Capture):
    """A stream by its address: rtsp://, http://. Frames are stamped when they are received, since
    stamps in streams are often made up; ``latency`` says how old they are by then."""

    def open(self) -> None:
        self._refuse_settings("a stream")
        self._capture = cv2.VideoCapture(self.target, cv2.CAP_FFMPEG, [
            cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, _OPEN_TIMEOUT_MS,
            cv2.CAP_PROP_READ_TIMEOUT_MSEC, _READ_TIMEOUT_MS, cv2.CAP_PROP_N_THREADS, 1])
        if not self._capture.isOpened():
            self.close()
            raise InvalidInputError(f"opencv:{self.target}: the stream cannot be opened")

    def grab(self, timeout_s: float) -> RawFrame | None:
        image = self._decode()
        if image is None:
            raise SourceLost(f"the stream {self.target} has ended or does not answer")
        return RawFrame(image)


class FileSource(_Capture):
    """A video file, played in real time; at its end it is lost, or begins again with ``loop``."""

    lasting = False

    def __init__(self, target: str, options: CameraOptions, clock: Clock) -> None:
        super().__init__(target, options)
        self._clock = clock
        self._start_s = self._shown_s = 0.0
        self._number = 0
        self._waiting: tuple[float, Any] | None = None

    def open(self) -> None:
        if not os.path.isfile(self.target):
            raise InvalidInputError(
                f"opencv:{self.target}: there is no such file; a camera is a number (opencv:0), "
                "a device (opencv:/dev/video0), a video file or an address (rtsp://...)"
            )
        self._refuse_settings("a recording")
        self._start()
        self.rate_hz = (
            self.options.fps or _plausible(float(self._capture.get(cv2.CAP_PROP_FPS))) or 30.0)
        self._start_s = self._clock.now_s()

    def _start(self) -> None:
        self._capture = cv2.VideoCapture(self.target, cv2.CAP_FFMPEG,
                                         [cv2.CAP_PROP_N_THREADS, 1])
        self._number = 0
        if not self._capture.isOpened():
            self.close()
            raise InvalidInputError(f"opencv:{self.target}: is no video that OpenCV reads")

    def grab(self, timeout_s: float) -> RawFrame | None:
        if self._waiting is None:
            self._skip()
            self._waiting = self._next()
        due_s, image = self._waiting
        wait_s = due_s - self._clock.now_s()
        if wait_s > 0.0:
            time.sleep(min(wait_s, timeout_s))
        if wait_s > timeout_s:
            return None
        self._waiting = None
        return RawFrame(image, taken_s=due_s)

    def _next(self) -> tuple[float, Any]:
        image = self._decode()
        if image is None and self._number and self.options.loop:
            self._start_s += self._shown_s + 1.0 / self.rate_hz
            self.close()
            self._start()
            image = self._decode()
        if image is None:
            raise SourceLost(f"the file {self.target} has ended"
                             if self._number else f"the file {self.target} holds no picture")
        self._advance()
        return self._start_s + self._shown_s, image

    def _advance(self) -> None:
        """When the picture just taken from the file is due, from the file's start [s]."""
        at_s = float(self._capture.get(cv2.CAP_PROP_POS_MSEC)) * 1e-3
        counted_s = self._number / self.rate_hz
        trusted = self.options.fps is None and (at_s > self._shown_s or self._number == 0)
        self._shown_s = at_s if trusted else counted_s
        self._number += 1

    def _skip(self) -> None:
        """Pass over what should have been shown long ago."""
        while self._number and self._clock.now_s() - self._start_s - self._shown_s > (
            3.0 / self.rate_hz
        ):
            if not self._capture.grab():
                return
            self._advance()


def _plausible(rate_hz: float) -> float:
    """A rate as OpenCV says it, 0 where it cannot be."""
    return rate_hz if 0.5 <= rate_hz <= 1000.0 else 0.0


def _three_channels(image: Any) -> Any:
    if image.ndim == 2:
        return cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
    return image if image.shape[2] == 3 else np.ascontiguousarray(image[..., :3])
