"""Camera frames in files: PNG and JPEG images and mp4 videos, there and back.

Sizes are read from a header, and held against limits, before anything is decoded. PNG keeps every
value; a video does not.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robot_rl.data.importers.arrays import check_bytes, need, refusing
from robot_rl.errors import InvalidInputError

Frame = NDArray[np.uint8]
MAX_PIXELS = 64 << 20
_PNG = b"\x89PNG\r\n\x1a\n"
# Start-of-frame markers of JPEG; C4, C8 and CC are other things.
_SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def encode_png(frame: Frame) -> bytes:
    """A frame (H, W, 1 or 3) uint8 as PNG, which keeps every value.

    Raises:
        InvalidInputError: it cannot be encoded.
    """
    cv2 = need("cv2", "images")
    pixels = frame[:, :, 0] if frame.shape[2] == 1 else frame[:, :, ::-1]
    with refusing(f"image of shape {frame.shape}"):
        done, content = cv2.imencode(
            ".png", np.ascontiguousarray(pixels), [cv2.IMWRITE_PNG_COMPRESSION, 1])
    if not done:
        raise InvalidInputError(f"an image of shape {frame.shape} cannot be encoded as PNG")
    return bytes(content)


def decode_image(content: bytes, where: str, size: tuple[int, int] | None = None) -> Frame:
    """The frame (H, W, 1 or 3) uint8 in a PNG or JPEG file.

    Args:
        size: the (height, width) it must have, if known.

    Raises:
        InvalidInputError: it is neither, is damaged, or is not of 8 bits and of that size.
    """
    cv2 = need("cv2", "images")
    height, width, channels = _image_shape(content, where)
    if size is not None and (height, width) != size:
        raise InvalidInputError(f"{where} is {height} x {width}, should be {size[0]} x {size[1]}")
    if not 0 < height * width <= MAX_PIXELS:
        raise InvalidInputError(
            f"{where} is {height} x {width}, the limit is {MAX_PIXELS} pixels, at least 1")
    flag = cv2.IMREAD_GRAYSCALE if channels == 1 else cv2.IMREAD_COLOR
    with refusing(where):
        pixels = cv2.imdecode(
            np.frombuffer(content, np.uint8), flag | cv2.IMREAD_IGNORE_ORIENTATION)
    if pixels is None or pixels.dtype != np.uint8 or pixels.shape[:2] != (height, width):
        raise InvalidInputError(f"{where} is a damaged image")
    if channels == 1:
        return np.asarray(pixels.reshape(height, width, 1))
    return np.ascontiguousarray(pixels[:, :, ::-1])


def _image_shape(content: bytes, where: str) -> tuple[int, int, int]:
    if content.startswith(_PNG) and content[12:16] == b"IHDR" and len(content) >= 29:
        width, height, depth, kind = struct.unpack(">IIBB", content[16:26])
        if depth > 8:
            raise InvalidInputError(f"{where} has {depth} bits for a value, 8 are read")
        return height, width, 1 if kind in (0, 4) else 3
    if content.startswith(b"\xff\xd8"):
        at = 2
        while at + 9 < len(content) and content[at] == 0xFF:
            marker, length = content[at + 1], struct.unpack(">H", content[at + 2:at + 4])[0]
            if marker in _SOF:
                height, width, channels = struct.unpack(">HHB", content[at + 5:at + 10])
                return height, width, 1 if channels == 1 else 3
            at += 2 + length
    raise InvalidInputError(f"{where} is no PNG or JPEG image")


class VideoReader:
    """The frames of one mp4 by time, read forwards as far as possible.

    The file is handed over as a stream, so that it cannot make the decoder open another.

    Args:
        size: the (height, width) that the frames must have.

    Raises:
        InvalidInputError: it is no mp4, or of another size.
    """

    def __init__(self, path: Path, where: str, size: tuple[int, int]) -> None:
        self._av = need("av", "videos")
        self.where, self._size = where, size
        if not 0 < size[0] * size[1] <= MAX_PIXELS:
            raise InvalidInputError(
                f"{where}: frames of {size[0]} x {size[1]}, the limit is {MAX_PIXELS} pixels")
        self._file = open(path, "rb")
        try:
            with refusing(where):
                self._container = self._av.open(self._file, format="mp4")
                if not self._container.streams.video:
                    raise InvalidInputError(f"{where} holds no video")
                self._stream = self._container.streams.video[0]
                context = self._stream.codec_context
                context.options = {"max_pixels": str(2 * size[0] * size[1] + 65536)}
                context.thread_count = 1
                self._check(context.height, context.width)
        except BaseException:
            self._file.close()
            raise
        self._frames: Iterator[Any] | None = None
        self._now: tuple[float, Frame] | None = None
        self._next: tuple[float, Frame] | None = None

    def at(self, times_s: NDArray[np.float64], tolerance_s: float) -> Frame:
        """The frames (N, H, W, 3) nearest to ascending times (N,) [s].

        Raises:
            InvalidInputError: none is within ``tolerance_s``, or the video is damaged.
        """
        check_bytes(len(times_s) * self._size[0] * self._size[1] * 3, self.where)
        found = np.empty((len(times_s), *self._size, 3), np.uint8)
        with refusing(self.where):
            for i, time_s in enumerate(times_s.tolist()):
                stamp_s, found[i] = self._nearest(time_s)
                if not abs(stamp_s - time_s) <= tolerance_s:
                    raise InvalidInputError(
                        f"{self.where} has no frame at {time_s:.4f} s, the nearest is at "
                        f"{stamp_s:.4f} s")
        return found

    def _nearest(self, time_s: float) -> tuple[float, Frame]:
        if self._now is None or time_s < self._now[0] - 1e-6 or time_s > self._now[0] + 5.0:
            self._seek(time_s)
        assert self._now is not None
        while self._next is not None and (
            abs(self._next[0] - time_s) <= abs(self._now[0] - time_s)
        ):
            self._now, self._next = self._next, self._decode()
        return self._now

    def _seek(self, time_s: float) -> None:
        base = self._stream.time_base or Fraction(1, self._av.time_base)
        self._container.seek(max(int(time_s / base), 0), stream=self._stream, backward=True)
        self._frames = self._container.decode(self._stream)
        self._now = self._decode()
        if self._now is None:
            raise InvalidInputError(f"{self.where} has no frame at {time_s:.4f} s")
        self._next = self._decode()

    def _decode(self) -> tuple[float, Frame] | None:
        assert self._frames is not None
        frame = next(self._frames, None)
        if frame is None:
            return None
        self._check(frame.height, frame.width)
        if frame.time is None:
            raise InvalidInputError(f"{self.where} has a frame without a time")
        return float(frame.time), frame.to_ndarray(format="rgb24")

    def _check(self, height: int, width: int) -> None:
        if (height, width) != self._size:
            raise InvalidInputError(
                f"{self.where} is {height} x {width}, should be {self._size[0]} x {self._size[1]}")

    def close(self) -> None:
        with refusing(self.where):
            self._container.close()
        self._file.close()


class VideoWriter:
    """Appends frames to an H.264 mp4 of constant rate; near frames, not exact ones.

    A key frame in every two, as LeRobot's videos have, keeps random access fast.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], rate: Fraction) -> None:
        self._av = need("av", "videos")
        self.count = 0
        self.path, self._rate = path, rate
        height, width = shape[:2]
        with refusing(f"video {path}"):
            self._container = self._av.open(str(path), "w", format="mp4")
            self._stream = self._container.add_stream(
                "libx264", rate=rate, options={"crf": "18", "g": "2", "preset": "veryfast"})
        self._stream.width, self._stream.height = width, height
        even = height % 2 == 0 and width % 2 == 0
        self._stream.pix_fmt = "yuv420p" if even else "yuv444p"
        self._stream.codec_context.thread_count = 1

    def add(self, frame: Frame) -> None:
        """One more frame (H, W, 1 or 3)."""
        rgb = np.repeat(frame, 3, 2) if frame.shape[2] == 1 else frame
        with refusing(f"video {self.path}"):
            picture = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")
            picture.pts, picture.time_base = self.count, 1 / self._rate
            for packet in self._stream.encode(picture):
                self._container.mux(packet)
        self.count += 1

    def close(self) -> None:
        """Write what is pending and finish the file."""
        with refusing(f"video {self.path}"):
            for packet in self._stream.encode():
                self._container.mux(packet)
            self._container.close()
