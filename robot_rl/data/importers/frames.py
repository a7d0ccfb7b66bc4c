"""The frames of a bag's cameras, fetched by their place; those that cannot be read are told."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from robot_rl.data.importers.bagfiles import Bag
from robot_rl.data.importers.base import MAX_BYTES
from robot_rl.data.importers.images import Frame, decode, fit
from robot_rl.data.importers.mapping import Camera
from robot_rl.data.importers.messages import Types
from robot_rl.data.importers.progress import beat
from robot_rl.data.importers.signals import Track
from robot_rl.errors import InvalidInputError

_PROBED = 8


class UnreadableError(Exception):
    """Frames ``numbers`` of a camera cannot be read; within the importer only."""

    def __init__(self, camera: Camera, numbers: list[int], reason: str) -> None:
        super().__init__(reason)
        self.camera, self.numbers, self.reason = camera, numbers, reason


class FrameReader:
    """Reads frames of an open bag."""

    def __init__(self, bag: Bag, types: Types) -> None:
        self.bag, self.types = bag, types

    def read(
        self, camera: Camera, track: Track, numbers: NDArray[np.int64], policy: str
    ) -> NDArray[np.uint8]:
        """The frames (F, H, W, C) of these numbers, cropped and scaled.

        Raises:
            InvalidInputError: they are too many or of several sizes, the crop lies outside, or
                one cannot be read and ``policy`` is ``error``, or none of the camera can.
            UnreadableError: some cannot be read.
        """
        frames: list[Frame] = []
        for frame in self._sound(camera, track, numbers, policy):
            frame = fit(frame, camera.crop, camera.size, camera.where)
            if frame.nbytes * len(numbers) > MAX_BYTES:
                raise InvalidInputError(
                    f"{camera.where}: {len(numbers)} frames of {frame.shape} in one episode are "
                    f"over {MAX_BYTES} bytes; give a smaller size:, or split the episodes"
                )
            frames.append(frame)
        shapes = {frame.shape for frame in frames}
        if len(shapes) > 1:
            raise InvalidInputError(f"{camera.where}: frames of several sizes "
                                    f"({sorted(shapes)[:4]}); give a size:")
        return np.stack(frames)

    def check(self, camera: Camera, track: Track, numbers: NDArray[np.int64], policy: str) -> None:
        """Raise what :meth:`read` would of frames that cannot be read, and keep none."""
        for _ in self._sound(camera, track, numbers, policy):
            pass

    def _sound(
        self, camera: Camera, track: Track, numbers: NDArray[np.int64], policy: str
    ) -> Iterator[Frame]:
        wrong: list[int] = []
        reason = ""
        for number in (int(n) for n in numbers):
            try:
                frame = self._one(camera, track, number)
            except InvalidInputError as error:
                if policy == "error":
                    raise
                wrong.append(number)
                reason = reason or str(error)
                continue
            if not wrong:
                yield frame
        if wrong:
            self._check_any(camera, track, reason)
            raise UnreadableError(camera, self._with_those_before(camera, track, wrong), reason)

    def _one(self, camera: Camera, track: Track, number: int) -> Frame:
        beat()
        at = int(track.stamps[number]) / 1e9
        where = f"{camera.where}: the frame of {camera.topic} at {at:.3f} s"
        file, chunk, offset, length = (int(n) for n in track.places[number])
        data = self.bag.fetch((file, chunk, offset, length))
        return decode(self.types.read(data, track.msgtype, where), track.msgtype, where)

    def _readable(self, camera: Camera, track: Track, number: int) -> bool:
        try:
            self._one(camera, track, number)
        except InvalidInputError:
            return False
        return True

    def _check_any(self, camera: Camera, track: Track, reason: str) -> None:
        """Where no frame can be read it is not the recording but the format."""
        some = np.unique(np.linspace(0, len(track.stamps) - 1, _PROBED).round().astype(int))
        if not any(self._readable(camera, track, int(number)) for number in some):
            raise InvalidInputError(reason)

    def _with_those_before(self, camera: Camera, track: Track, wrong: list[int]) -> list[int]:
        """Also the unreadable ones right before, so that the next try finds one to hold."""
        found = set(wrong)
        for number in wrong:
            before = number - 1
            while before >= 0 and before not in found and not self._readable(camera, track, before):
                found.add(before)
                before -= 1
        return sorted(found)
