"""The text that names a camera: ``scheme:target?option=value&option=value``."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from robot_rl.errors import InvalidInputError, unknown_name

SCHEMES = {
    "opencv": "a webcam (opencv:0, opencv:/dev/video0), a video file or a stream (opencv:rtsp://...)",
    "realsense": "a RealSense by serial number (realsense:, the first), or its recorded file",
    "ros1": "an image topic of ROS 1, e.g. ros1:/camera/image_raw",
    "ros2": "an image topic of ROS 2, e.g. ros2:/camera/image_raw/compressed",
    "test": "a moving test pattern, test:pattern",
    "sim": "a simulated camera; its frames come from the simulation",
    "none": "no camera",
}
REFUSED = ("warn", "fail")
AUTO = "auto"

_EVERY = ("crop", "rectify", "fps", "still", "latency", "start")
_DEVICE = ("size", "exposure", "gain", "white_balance", "focus", "fix", "refused")
# Which options each kind of source has.
VALID: dict[str, tuple[str, ...]] = {
    "opencv": (*_EVERY, *_DEVICE, "fourcc", "loop"),
    "realsense": (*_EVERY, *_DEVICE, "loop"),
    "ros1": (*_EVERY, "compressed", "master_uri"),
    "ros2": (*_EVERY, "compressed", "domain", "reliable"),
    "test": (*_EVERY, "size"),
    "sim": ("robot", "fps", "size"),
    "none": (),
}


@dataclass(frozen=True)
class CameraOptions:
    """What may be said of a camera.

    ``crop`` is (x, y, width, height) [pixels] of the rectified picture; ``rectify`` a calibration
    file; ``fps`` the expected rate [Hz], which a device is set to. ``still`` says that equal
    pictures are no sign of a frozen camera; ``latency`` [s] is how long before its stamp a picture
    was taken; ``start`` [s] how long to wait for the first. ``size`` is (width, height) to ask of
    the device. ``exposure``, ``gain``, ``white_balance`` and ``focus`` are in the device's own
    units, ``auto``, or None: kept as they are. ``fix`` switches the automatic ones off;
    ``refused`` says whether a setting that the device does not take is a warning or an error.
    ``reliable`` has lost parts of a topic's pictures sent again, where its publisher does so.
    """

    crop: tuple[int, int, int, int] | None = None
    rectify: str | None = None
    fps: float | None = None
    still: bool = False
    latency: float = 0.0
    start: float = 10.0
    size: tuple[int, int] | None = None
    exposure: float | str | None = None
    gain: float | str | None = None
    white_balance: float | str | None = None
    focus: float | str | None = None
    fix: bool = True
    refused: str = "warn"
    fourcc: str | None = None
    loop: bool = False
    compressed: bool = False
    master_uri: str | None = None
    domain: int | None = None
    reliable: bool = False
    robot: str = "sawyer"


@dataclass(frozen=True)
class SourceText:
    """A source taken apart."""

    scheme: str
    target: str
    options: CameraOptions


def parse_source(source: str, extra: Mapping[str, Any] | None = None) -> SourceText:
    """Take a source apart; ``extra`` are options from elsewhere, which the text's own overrule.

    Raises:
        InvalidInputError: an unknown kind, option or value; the message lists the valid ones.
    """
    if not isinstance(source, str):
        raise InvalidInputError(f"a camera's source is {source!r}, should be text like opencv:0")
    scheme, colon, rest = source.partition(":")
    if scheme not in SCHEMES or (not colon and scheme != "none"):
        raise InvalidInputError(
            f"camera source {source!r}: it should begin with one of "
            + ", ".join(f"{name}:" for name in SCHEMES if name != "none") + " or be none"
        )
    target, query = _split(scheme, rest)
    given: dict[str, Any] = {name: _text(value) for name, value in (extra or {}).items()
                             if value is not None}
    given.update(_pairs(query, source))
    values = {}
    for name, value in given.items():
        if name not in VALID[scheme]:
            raise unknown_name(f"option of camera source {source!r}:", name, VALID[scheme])
        values[name] = _read(name, value, source)
    return SourceText(scheme, target, CameraOptions(**values))


def _split(scheme: str, rest: str) -> tuple[str, str]:
    target, mark, query = rest.rpartition("?")
    if not mark:
        return rest, ""
    if scheme != "opencv" or "://" not in target:
        return target, query
    # What a stream's address asks of its server stays with it.
    parts = query.split("&")
    ours = [part for part in parts if part.partition("=")[0] in VALID["opencv"]]
    theirs = [part for part in parts if part not in ours]
    return (f"{target}?{'&'.join(theirs)}" if theirs else target), "&".join(ours)


def _pairs(query: str, source: str) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for part in filter(None, query.split("&")):
        name, equals, value = part.partition("=")
        if not equals or not value:
            raise InvalidInputError(f"camera source {source!r}: {part!r} should be option=value")
        if name in pairs:
            raise InvalidInputError(f"camera source {source!r}: {name} is given twice")
        pairs[name] = value
    return pairs


def _text(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return ",".join(str(part) for part in value)
    return str(int(value)) if isinstance(value, bool) else str(value)


def _read(name: str, text: str, source: str) -> Any:
    try:
        return _READERS[name](text)
    except ValueError as error:
        raise InvalidInputError(
            f"camera source {source!r}: {name} is {text!r}, should be {error}"
        ) from None


def _flag(text: str) -> bool:
    if text not in ("0", "1"):
        raise ValueError("0 or 1")
    return text == "1"


def _number(low: float, high: float) -> Callable[[str], float]:
    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise ValueError(f"a number in [{low:g}, {high:g}]")
        return value

    return read


def _setting(text: str) -> float | str:
    if text == AUTO:
        return AUTO
    try:
        return _number(-1e6, 1e6)(text)
    except ValueError:
        raise ValueError("a number in the device's own unit, or auto") from None


def _crop(text: str) -> tuple[int, int, int, int]:
    if not re.fullmatch(r"\d{1,5}(,\d{1,5}){3}", text):
        raise ValueError("x,y,width,height in pixels")
    x, y, width, height = (int(part) for part in text.split(","))
    if not width or not height:
        raise ValueError("x,y,width,height in pixels, with a width and a height")
    return x, y, width, height


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,5})[x,](\d{1,5})", text)
    if match is None or not int(match[1]) or not int(match[2]):
        raise ValueError("WIDTHxHEIGHT, e.g. 640x480")
    return int(match[1]), int(match[2])


def _fourcc(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9]{4}", text):
        raise ValueError("four letters, e.g. MJPG or YUYV")
    return text.upper()


def _refused(text: str) -> str:
    if text not in REFUSED:
        raise ValueError(" or ".join(REFUSED))
    return text


def _domain(text: str) -> int:
    if not text.isdigit() or int(text) > 232:
        raise ValueError("a whole number in [0, 232]")
    return int(text)


_READERS: dict[str, Callable[[str], Any]] = {
    "crop": _crop,
    "rectify": str,
    "fps": _number(0.5, 1000.0),
    "still": _flag,
    "latency": _number(0.0, 2.0),
    "start": _number(0.1, 120.0),
    "size": _size,
    "exposure": _setting,
    "gain": _setting,
    "white_balance": _setting,
    "focus": _setting,
    "fix": _flag,
    "refused": _refused,
    "fourcc": _fourcc,
    "loop": _flag,
    "compressed": _flag,
    "master_uri": str,
    "domain": _domain,
    "reliable": _flag,
    "robot": str,
}
