"""RealSense cameras, and what was recorded of them, through librealsense."""

from __future__ import annotations

import contextlib
import os
import time
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from robot_rl.errors import InvalidInputError, MissingDependencyError
from robot_rl_drivers.cameras.options import CameraOptions
from robot_rl_drivers.cameras.settings import Settings, apply_settings, wants_settings
from robot_rl_drivers.cameras.stream import RawFrame, SourceLost

# How long the automatics may settle before they are switched off.
SETTLE_S = 1.0
# Without a frame for so long the camera is looked for, and after the second it is given up.
_LOOK_AFTER_S, _LOST_AFTER_S = 0.5, 2.0
_USUAL_SIZE, _USUAL_RATE_HZ = (640, 480), 30
_RECORDINGS = (".bag", ".db3")
_KNOBS = {
    "exposure": "exposure",
    "auto_exposure": "enable_auto_exposure",
    "gain": "gain",
    "white_balance": "white_balance",
    "auto_white_balance": "enable_auto_white_balance",
    "focus": None,
    "auto_focus": None,
}
# Formats that are taken, the best first, and how OpenCV makes RGB of them (None: it is RGB).
_FORMATS = {
    "rgb8": None,
    "bgr8": "COLOR_BGR2RGB",
    "rgba8": "COLOR_RGBA2RGB",
    "bgra8": "COLOR_BGRA2RGB",
    "yuyv": "COLOR_YUV2RGB_YUY2",
    "uyvy": "COLOR_YUV2RGB_UYVY",
}


def make_context() -> Any:
    """librealsense's list of devices.

    Raises:
        MissingDependencyError: it is not installed.
    """
    return _library().context()


def find_devices() -> list[dict[str, str]]:
    """The RealSense devices at this machine: name and serial number."""
    rs = _library()
    return [
        {"source": f"realsense:{_serial(rs, device)}",
         "about": device.get_info(rs.camera_info.name)}
        for device in make_context().query_devices()
    ]


def make_source(target: str, options: CameraOptions) -> RealSenseSource:
    """The device of that serial number (the first if empty), or a recorded file."""
    return RealSenseSource(target, options)


class SensorControl:
    """A colour sensor's knobs; see :class:`robot_rl_drivers.cameras.settings.Control`."""

    def __init__(self, rs: Any, sensor: Any) -> None:
        self._rs, self._sensor = rs, sensor

    def get(self, name: str) -> float | None:
        option = self._option(name)
        return None if option is None else float(self._sensor.get_option(option))

    def set(self, name: str, value: float) -> bool:
        option = self._option(name)
        if option is None:
            return False
        try:
            self._sensor.set_option(option, value)
        except RuntimeError:  # out of range, or read-only
            return False
        return True

    def _option(self, name: str) -> Any:
        knob = _KNOBS[name]
        option = getattr(self._rs.option, knob) if knob is not None else None
        return option if option is not None and self._sensor.supports(option) else None


class RealSenseSource:
    """The colour stream of one device or recording."""

    def __init__(self, target: str, options: CameraOptions) -> None:
        self.target, self.options = target, options
        self.rate_hz = 0.0
        self.settings = Settings()
        self._is_file = target.endswith(_RECORDINGS) or "/" in target
        self.lasting = not self._is_file
        self._rs: Any = None
        self._context: Any = None
        self._device: Any = None
        self._sensor: Any = None
        self._queue: Any = None
        self._format = "rgb8"
        self._heard_s = self._looked_s = 0.0

    def open(self) -> None:
        self._rs = _library()
        # A context remembers the files that it has played.
        self._context = make_context() if self._is_file or not self._context else self._context
        self._device = self._play() if self._is_file else self._find()
        self._sensor, profile = self._choose()
        self._format = _format(profile)
        self.rate_hz = float(profile.fps())
        self._queue = self._rs.frame_queue(2)
        try:
            self._sensor.open(profile)
            self._sensor.start(self._queue)
        except RuntimeError as error:
            self.close()
            raise InvalidInputError(f"realsense:{self.target}: cannot be started ({error})") from (
                None)
        self._set_knobs()
        self._heard_s = time.monotonic()

    def grab(self, timeout_s: float) -> RawFrame | None:
        got, frame = self._queue.try_wait_for_frame(max(1, round(timeout_s * 1e3)))
        now_s = time.monotonic()
        if not got:
            self._look(now_s)
            return None
        self._heard_s = now_s
        return RawFrame(self._rgb(frame), device_s=float(frame.get_timestamp()) * 1e-3)

    def close(self) -> None:
        sensor, self._sensor = self._sensor, None
        if sensor is not None:
            for release in (sensor.stop, sensor.close):
                # A device that is gone, or was never started, refuses.
                with contextlib.suppress(RuntimeError):
                    release()
        self._device = self._queue = None

    def _play(self) -> Any:
        if not os.path.isfile(self.target):
            raise InvalidInputError(f"realsense:{self.target}: there is no such file")
        try:
            device = self._context.load_device(self.target).as_playback()
            device.set_real_time(True)
        except RuntimeError as error:
            raise InvalidInputError(
                f"realsense:{self.target}: is no recording that librealsense reads ({error})"
            ) from None
        return device

    def _find(self) -> Any:
        found = {_serial(self._rs, device): device for device in self._context.query_devices()}
        if not self.target and found:
            return next(iter(found.values()))
        if self.target not in found:
            raise InvalidInputError(
                f"realsense:{self.target}: no such RealSense; serial numbers here: "
                + (", ".join(found) or "none")
            )
        return found[self.target]

    def _choose(self) -> tuple[Any, Any]:
        """The sensor with a colour stream, and the profile that was asked for."""
        profiles = [
            (sensor, profile.as_video_stream_profile())
            for sensor in self._device.query_sensors()
            for profile in sensor.get_stream_profiles()
            if profile.stream_type() == self._rs.stream.color and _format(profile) in _FORMATS
        ]
        fit = [(sensor, profile) for sensor, profile in profiles
               if self.options.size in (None, (profile.width(), profile.height()))
               and self.options.fps in (None, profile.fps())]
        if not fit:
            known = sorted({f"{p.width()}x{p.height()} at {p.fps()} Hz" for _, p in profiles})
            raise InvalidInputError(
                f"realsense:{self.target}: no colour stream of that size and rate; valid: "
                + (", ".join(known) or "none")
            )
        return min(fit, key=lambda pair: _preference(pair[1]))

    def _set_knobs(self) -> None:
        if self._is_file:
            self.settings = Settings()
            if wants_settings(self.options):
                self.settings.refused.append("a recording: exposure, gain, white_balance and focus "
                                             "cannot be set")
                if self.options.refused == "fail":
                    self.close()
                    raise InvalidInputError(
                        f"realsense:{self.target}: {self.settings.refused[0]}")
            return
        if self.options.fix:
            time.sleep(SETTLE_S)
        try:
            self.settings = apply_settings(
                SensorControl(self._rs, self._sensor), self.options, self.target)
        except InvalidInputError:
            self.close()
            raise

    def _look(self, now_s: float) -> None:
        """Where no frame came: is the device still there, has the recording ended?"""
        if self._is_file:
            if self._device.current_status() == self._rs.playback_status.stopped:
                if not self.options.loop:
                    raise SourceLost(f"the recording {self.target} has ended")
                self.close()
                self.open()
            return
        silent_s = now_s - self._heard_s
        if silent_s < _LOOK_AFTER_S or now_s - self._looked_s < _LOOK_AFTER_S:
            return
        self._looked_s = now_s
        serial = _serial(self._rs, self._device)
        if serial not in {_serial(self._rs, device) for device in self._context.query_devices()}:
            raise SourceLost(f"the RealSense {serial} was unplugged")
        if silent_s > _LOST_AFTER_S:
            raise SourceLost(f"the RealSense {serial} gave no frame for {silent_s:.1f} s")

    def _rgb(self, frame: Any) -> NDArray[np.uint8]:
        # The frame's memory goes back to the library, hence the copy.
        data = np.array(frame.get_data())
        convert = _FORMATS[self._format]
        if convert is None:
            return data
        if data.dtype == np.uint16:  # two bytes for each pixel, which the library gives as one
            data = data.view(np.uint8).reshape(*data.shape[:2], 2)
        return np.asarray(cv2.cvtColor(data, getattr(cv2, convert)), np.uint8)


def _preference(profile: Any) -> tuple[int, int, int]:
    size = (profile.width(), profile.height())
    return (list(_FORMATS).index(_format(profile)), int(size != _USUAL_SIZE),
            abs(profile.fps() - _USUAL_RATE_HZ))


def _format(profile: Any) -> str:
    return str(profile.format()).rpartition(".")[2]


def _serial(rs: Any, device: Any) -> str:
    return str(device.get_info(rs.camera_info.serial_number))


def _library() -> Any:
    try:
        import pyrealsense2
    except ImportError as error:
        raise MissingDependencyError(
            f"RealSense cameras need pyrealsense2 ({error}); install robot_rl[cameras]"
        ) from None
    return pyrealsense2
