"""Camera frames as ROS 2 image messages: raw, or compressed without or with loss."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from robot_rl.errors import InvalidInputError, MissingDependencyError, unknown_name

CODECS = ("raw", "png", "jpeg")
MAX_FRAME_BYTES = 48 << 20
# What the seconds of a ROS time hold.
_MAX_STAMP_S = 2.0**31
_CDR_HEADER = b"\x00\x01\x00\x00"
_STAMP = """builtin_interfaces/Time stamp
string frame_id
================================================================================
MSG: builtin_interfaces/Time
int32 sec
uint32 nanosec
"""
_SEPARATOR = "=" * 80
_IMAGE = f"""std_msgs/Header header
uint32 height
uint32 width
string encoding
uint8 is_bigendian
uint32 step
uint8[] data
{_SEPARATOR}
MSG: std_msgs/Header
{_STAMP}"""
_COMPRESSED = f"""std_msgs/Header header
string format
uint8[] data
{_SEPARATOR}
MSG: std_msgs/Header
{_STAMP}"""


class _Codec(Protocol):
    IMREAD_UNCHANGED: int
    IMWRITE_JPEG_QUALITY: int
    IMWRITE_PNG_COMPRESSION: int
    error: type[Exception]

    def imencode(self, ext: str, img: Any, params: Any) -> tuple[bool, NDArray[np.uint8]]: ...

    def imdecode(self, buf: Any, flags: int) -> NDArray[Any] | None: ...


@dataclass(frozen=True)
class CameraFormat:
    """Frames of ``shape`` (H, W, 1 or 3), RGB, kept as ``codec``: raw, png (exact) or jpeg."""

    shape: tuple[int, int, int]
    codec: str = "raw"

    def __post_init__(self) -> None:
        if self.codec not in CODECS:
            raise unknown_name("image format", self.codec, CODECS)
        height, width, channels = self.shape
        if channels not in (1, 3) or height < 1 or width < 1 or (
            self.frame_bytes > MAX_FRAME_BYTES
        ):
            raise InvalidInputError(
                f"frames of shape {self.shape} cannot be kept; they should be (height, width, "
                f"1 or 3) and take at most {MAX_FRAME_BYTES >> 20} MiB"
            )

    @property
    def frame_bytes(self) -> int:
        """Bytes of one frame unpacked."""
        height, width, channels = self.shape
        return height * width * channels

    def as_dict(self) -> dict[str, Any]:
        return {"shape": list(self.shape), "codec": self.codec}

    @classmethod
    def from_dict(cls, raw: Any) -> CameraFormat:
        """The format that :meth:`as_dict` described.

        Raises:
            InvalidInputError: it does not describe one.
        """
        shape = raw.get("shape") if isinstance(raw, dict) else None
        codec = raw.get("codec") if isinstance(raw, dict) else None
        if not isinstance(shape, list) or len(shape) != 3 or not isinstance(codec, str) or (
            not all(isinstance(n, int) for n in shape)
        ):
            raise InvalidInputError(f"{str(raw)[:200]} does not describe a camera's frames")
        return cls((shape[0], shape[1], shape[2]), codec)


def stamp_ns(at_s: float) -> int:
    """A time stamp in whole nanoseconds, from which the nearest float64 of today is found again.

    Raises:
        InvalidInputError: it is no number, or beyond what a ROS message holds.
    """
    if not -_MAX_STAMP_S < at_s < _MAX_STAMP_S:
        raise InvalidInputError(
            f"a time stamp is {at_s} s; it should be a number of seconds below 2^31"
        )
    whole = int(at_s // 1.0)
    return max(whole * 10**9 + round((at_s - whole) * 1e9), 0)


def seconds_of(stamp_ns: int) -> float:
    """The seconds that a message stamped so many nanoseconds is read back with."""
    sec, nanosec = divmod(stamp_ns, 10**9)
    return sec + nanosec * 1e-9


def frame_schema(camera: CameraFormat) -> tuple[str, str]:
    """Name and definition of the message that carries this camera's frames."""
    if camera.codec == "raw":
        return "sensor_msgs/msg/Image", _IMAGE
    return "sensor_msgs/msg/CompressedImage", _COMPRESSED


def encode(camera: CameraFormat, image: NDArray[np.uint8], *, quality: int = 95) -> bytes:
    """The bytes of one frame (H, W, C) uint8 RGB.

    Raises:
        InvalidInputError: the frame is not of the camera's shape.
    """
    if image.shape != camera.shape or image.dtype != np.uint8:
        raise InvalidInputError(
            f"a frame is {image.dtype} of shape {image.shape}, should be uint8 {camera.shape}"
        )
    if camera.codec == "raw":
        return image.tobytes()
    cv2 = _cv2()
    bgr = image[..., ::-1] if camera.shape[2] == 3 else image
    options = ([cv2.IMWRITE_JPEG_QUALITY, quality] if camera.codec == "jpeg"
               else [cv2.IMWRITE_PNG_COMPRESSION, 1])
    done, data = cv2.imencode(f".{camera.codec}", np.ascontiguousarray(bgr), options)
    if not done:
        raise InvalidInputError(f"a frame of shape {image.shape} cannot be kept as {camera.codec}")
    return data.tobytes()


def frame_message(camera: CameraFormat, name: str, encoded: bytes, stamp_ns: int) -> bytes:
    """The CDR message of a frame taken at ``stamp_ns``; ``name`` becomes its ``frame_id``."""
    sec, nanosec = divmod(stamp_ns, 10**9)
    out = bytearray(struct.pack("<iI", sec, nanosec))
    _string(out, name)
    if camera.codec == "raw":
        height, width, channels = camera.shape
        _align(out)
        out += struct.pack("<II", height, width)
        _string(out, "rgb8" if channels == 3 else "mono8")
        out += b"\x00"
        _align(out)
        out += struct.pack("<I", width * channels)
    else:
        _string(out, camera.codec)
    _align(out)
    return _CDR_HEADER + out + struct.pack("<I", len(encoded)) + encoded


def _align(out: bytearray) -> None:
    out += bytes(-len(out) % 4)


def _string(out: bytearray, text: str) -> None:
    _align(out)
    data = text.encode() + b"\x00"
    out += struct.pack("<I", len(data)) + data


class FrameDecoder:
    """Unpacks the messages of one camera; ``encoded`` gathers them as they are instead.

    Attributes:
        count: frames so far.
    """

    def __init__(self, camera: CameraFormat, encoded: list[bytes] | None = None) -> None:
        self.camera = camera
        self.count = 0
        self._encoded = encoded
        self._frames: list[NDArray[np.uint8]] = []
        self._stamps: list[float] = []

    def take(self, message: memoryview) -> None:
        """Add a CDR message.

        Raises:
            InvalidInputError: it does not hold a frame of the camera's shape.
        """
        at_s, data = _payload(message, self.camera.codec != "raw")
        frame = self._decode(data)
        if self._encoded is None:
            self._frames.append(frame)
        else:
            self._encoded.append(bytes(data))
        self._stamps.append(at_s)
        self.count += 1

    def finish(self) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
        """The frames (F, H, W, C) and when they were taken (F,) [s]."""
        frames = (np.stack(self._frames) if self._frames
                  else np.zeros((0, *self.camera.shape), np.uint8))
        self._frames = []
        return frames, np.array(self._stamps, np.float64)

    def _decode(self, data: memoryview) -> NDArray[np.uint8]:
        shape = self.camera.shape
        if self.camera.codec == "raw":
            if len(data) != self.camera.frame_bytes:
                raise InvalidInputError(f"a frame of {len(data)} bytes should be of {shape}")
            return np.frombuffer(data, np.uint8).reshape(shape)
        cv2 = _cv2()
        if _declared_size(data, self.camera.codec) != shape[:2]:
            raise InvalidInputError(f"a {self.camera.codec} frame is not of shape {shape}")
        try:
            found = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        except cv2.error:
            found = None
        if found is None or found.dtype != np.uint8:
            raise InvalidInputError(f"a {self.camera.codec} frame is damaged")
        image = found[..., None] if found.ndim == 2 else found[..., ::-1]
        if image.shape != shape:
            raise InvalidInputError(f"a frame has shape {image.shape}, should have {shape}")
        return np.ascontiguousarray(image)


def _payload(message: memoryview, compressed: bool) -> tuple[float, memoryview]:
    sec, nanosec = struct.unpack_from("<iI", message, 4)
    at = _skip_string(message, 12)
    if compressed:
        at = _skip_string(message, at)
    else:
        # Height and width, the encoding, a byte for the byte order, the step.
        at = _aligned(_skip_string(message, _aligned(at) + 8) + 1) + 4
    at = _aligned(at)
    (length,) = struct.unpack_from("<I", message, at)
    if length > len(message) - at - 4:
        raise InvalidInputError(f"a frame is said to take {length} bytes")
    return seconds_of(sec * 10**9 + nanosec), message[at + 4 : at + 4 + length]


def _aligned(at: int) -> int:
    """The next multiple of 4 behind the header of 4 bytes."""
    return at + -at % 4


def _skip_string(message: memoryview, at: int) -> int:
    at = _aligned(at)
    (length,) = struct.unpack_from("<I", message, at)
    end: int = at + 4 + length
    if end > len(message):
        raise InvalidInputError("a frame's message is cut off")
    return end


def _declared_size(data: memoryview, codec: str) -> tuple[int, int]:
    """Height and width that a png or jpeg says it has, before anything is unpacked."""
    if codec == "png":
        if len(data) < 24 or bytes(data[:8]) != b"\x89PNG\r\n\x1a\n":
            raise InvalidInputError("a png frame is damaged")
        width, height = struct.unpack_from(">II", data, 16)
        return height, width
    at = 2
    if len(data) < 2 or bytes(data[:2]) != b"\xff\xd8":
        raise InvalidInputError("a jpeg frame is damaged")
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], struct.unpack_from(">H", data, at + 2)[0]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", data, at + 5)
            return height, width
        at += 2 + length
    raise InvalidInputError("a jpeg frame is damaged")


def _cv2() -> _Codec:
    try:
        import cv2
    except ImportError:
        raise MissingDependencyError(
            "compressed images need OpenCV; install robot_rl[data]"
        ) from None
    return cv2  # type: ignore[return-value]
