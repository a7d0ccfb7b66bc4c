"""Frames from sensor_msgs: raw in the usual encodings, and compressed as JPEG or PNG."""

from __future__ import annotations

import importlib
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robot_rl.errors import InvalidInputError, MissingDependencyError

Frame = NDArray[np.uint8]
# A frame has at most this many pixels, and no side is longer than MAX_SIDE.
MAX_PIXELS = 1 << 26
MAX_SIDE = 1 << 14
IMAGE = "sensor_msgs/msg/Image"
COMPRESSED = "sensor_msgs/msg/CompressedImage"
_MARKER = re.compile(rb"\xff+[^\xff]", re.DOTALL)
_MAX_SEGMENTS = 4096
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"

# Bytes per pixel of what is read without a library, and the channels in the order R, G, B.
_PLAIN: dict[str, tuple[int, tuple[int, ...]]] = {
    "rgb8": (3, (0, 1, 2)),
    "bgr8": (3, (2, 1, 0)),
    "8uc3": (3, (2, 1, 0)),
    "rgba8": (4, (0, 1, 2)),
    "bgra8": (4, (2, 1, 0)),
    "8uc4": (4, (2, 1, 0)),
    "mono8": (1, (0,)),
    "8uc1": (1, (0,)),
}
# Those that OpenCV converts: bytes per pixel and its name for the conversion. A Bayer pattern is
# named by its second row and column there.
_CONVERTED = {
    "bayer_rggb8": (1, "COLOR_BayerBG2RGB"),
    "bayer_bggr8": (1, "COLOR_BayerRG2RGB"),
    "bayer_gbrg8": (1, "COLOR_BayerGR2RGB"),
    "bayer_grbg8": (1, "COLOR_BayerGB2RGB"),
    "yuv422": (2, "COLOR_YUV2RGB_UYVY"),
    "uyvy": (2, "COLOR_YUV2RGB_UYVY"),
    "yuv422_yuy2": (2, "COLOR_YUV2RGB_YUY2"),
    "yuyv": (2, "COLOR_YUV2RGB_YUY2"),
}


def opencv(purpose: str) -> Any:
    """OpenCV, or an error that says how to get it."""
    try:
        return importlib.import_module("cv2")
    except ImportError as error:
        raise MissingDependencyError(
            f"{purpose} need opencv-python-headless ({error}); install robot_rl[data]"
        ) from None


def decode(message: Any, msgtype: str, where: str) -> Frame:
    """The frame (H, W, 3 or 1) of an Image or CompressedImage.

    Raises:
        InvalidInputError: an unknown encoding, or sizes that do not fit the data.
    """
    if msgtype == COMPRESSED:
        return _compressed(bytes(message.data), where)
    return _raw(message, where)


def _raw(message: Any, where: str) -> Frame:
    height, width, step = int(message.height), int(message.width), int(message.step)
    encoding = str(message.encoding).lower()
    plain, converted = _PLAIN.get(encoding), _CONVERTED.get(encoding)
    if plain is None and converted is None:
        known = ", ".join((*_PLAIN, *_CONVERTED))
        raise InvalidInputError(f"{where}: encoding {message.encoding[:40]!r}; valid: {known}")
    per_pixel = plain[0] if plain is not None else converted[0]  # type: ignore[index]
    data = np.asarray(message.data, np.uint8)
    _check_size(height, width, where)
    if step < width * per_pixel or step * height > data.size:
        raise InvalidInputError(
            f"{where}: {data.size} bytes for {height} rows of {step} bytes, {width} pixels of "
            f"{per_pixel} bytes each"
        )
    rows = data[: step * height].reshape(height, step)[:, : width * per_pixel]
    pixels = rows.reshape(height, width, per_pixel)
    if plain is not None:
        return np.ascontiguousarray(pixels[..., list(plain[1])])
    cv2 = opencv(f"images of encoding {encoding}")
    if width % 2 or height % 2:
        raise InvalidInputError(f"{where}: {encoding} of {height} x {width} pixels, odd numbers")
    out = cv2.cvtColor(np.ascontiguousarray(pixels), getattr(cv2, converted[1]))  # type: ignore[index]
    return np.asarray(out, np.uint8)


def _check_size(height: int, width: int, where: str) -> None:
    if not (0 < height <= MAX_SIDE and 0 < width <= MAX_SIDE and height * width <= MAX_PIXELS):
        raise InvalidInputError(
            f"{where}: {height} x {width} pixels, the limit is {MAX_SIDE} a side and {MAX_PIXELS} "
            "in all"
        )


def compressed_size(data: bytes, where: str) -> tuple[int, int]:
    """(height, width) that a PNG or JPEG says it has, read without unpacking it."""
    if data[:8] == _PNG_MAGIC and data[12:16] == b"IHDR" and len(data) >= 24:
        return int.from_bytes(data[20:24], "big"), int.from_bytes(data[16:20], "big")
    if data[:2] == b"\xff\xd8":
        pos = 2
        for _ in range(_MAX_SEGMENTS):
            # Before a marker there may be any number of filling bytes.
            match = _MARKER.match(data, pos)
            if match is None or match.end() + 7 > len(data):
                break
            kind, pos = data[match.end() - 1], match.end()
            if kind == 0x01 or 0xD0 <= kind <= 0xD7:  # no body
                continue
            if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):
                return (int.from_bytes(data[pos + 3 : pos + 5], "big"),
                        int.from_bytes(data[pos + 5 : pos + 7], "big"))
            pos += int.from_bytes(data[pos : pos + 2], "big")
    for magic, name in ((_PNG_MAGIC, "PNG"), (b"\xff\xd8", "JPEG")):
        if data[:2] == magic[:2]:
            raise InvalidInputError(f"{where}: a {name} that is damaged or cut off, of "
                                    f"{len(data)} bytes, which does not say its size")
    start = re.sub(r"[^ -~]", ".", data[:8].decode("latin-1"))
    raise InvalidInputError(f"{where}: neither PNG nor JPEG (it begins {start!r})")


def _compressed(data: bytes, where: str) -> Frame:
    _check_size(*compressed_size(data, where), where)
    cv2 = opencv("compressed images")
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise InvalidInputError(f"{where}: damaged ({str(error)[:200]})") from None
    if image is None:
        raise InvalidInputError(f"{where}: a damaged or cut-off PNG or JPEG")
    if image.dtype == np.uint16:
        image = (image >> 8).astype(np.uint8)
    if image.dtype != np.uint8:
        raise InvalidInputError(f"{where}: pixels of type {image.dtype}")
    if image.ndim == 2:
        return np.asarray(image[..., None])
    return np.ascontiguousarray(image[..., 2::-1])


def fit(frame: Frame, crop: tuple[int, ...], size: tuple[int, ...], where: str) -> Frame:
    """The frame cropped to (top, left, height, width), then scaled to (height, width).

    Raises:
        InvalidInputError: the crop lies outside the frame.
    """
    if crop:
        top, left, height, width = crop
        if not height or not width or top + height > frame.shape[0] or (
            left + width > frame.shape[1]
        ):
            raise InvalidInputError(
                f"{where}: crop {list(crop)} (top, left, height, width) lies outside frames of "
                f"{frame.shape[0]} x {frame.shape[1]} pixels"
            )
        frame = frame[top : top + height, left : left + width]
    if size and frame.shape[:2] != size:
        cv2 = opencv("scaled images")
        shrinks = size[0] < frame.shape[0]
        how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        scaled = cv2.resize(np.ascontiguousarray(frame), (size[1], size[0]), interpolation=how)
        frame = scaled.reshape(*size, frame.shape[2])
    return np.ascontiguousarray(frame)
