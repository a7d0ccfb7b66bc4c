"""An episode while it is being recorded: the control loop hands over, a thread writes.

What the loop gives is checked, copied and queued; the thread encodes frames, packs chunks and hands
them to the operating system at least every half second, so that a killed process loses less than
that of the episode in progress and none of those before it.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from robot_rl.data.episode_file import MAX_EPISODE_BYTES, EpisodeFileWriter
from robot_rl.data.episodes import (
    ACTION,
    IMAGES,
    INTERVENTION,
    REWARD,
    SUCCESS,
    TERMINATED,
    TIMESTAMP,
    TRUNCATED,
)
from robot_rl.data.files import AppendedFile
from robot_rl.data.frames import CameraFormat, encode, stamp_ns
from robot_rl.data.given import check_first, convert, typed
from robot_rl.data.layout import RowLayout
from robot_rl.errors import InvalidInputError, RobotRLError, StorageError

_FLUSH_S = 0.5
_FLUSH_BYTES = 2 << 20
_SYNC_BYTES = 64 << 20
_QUEUE_BYTES = 512 << 20
_QUEUE_WAIT_S = 10.0
# Messages take a little more in the file than what they carry.
_LARGEST_EPISODE = MAX_EPISODE_BYTES - (MAX_EPISODE_BYTES >> 4)
_MESSAGE_BYTES = 512

# What becomes of the file: it is committed, deleted or kept aside as it is.
End = Literal["commit", "discard", "interrupted"]


@dataclass(frozen=True)
class RecordingOptions:
    """How episodes are written: ``image_format`` raw, png or jpeg, of ``jpeg_quality``."""

    image_format: str = "raw"
    jpeg_quality: int = 95


def commit_record(
    steps: int,
    reward: float,
    success: bool,
    any_success: bool,
    ended: str,
    frames: dict[str, int],
    interventions: int | None,
) -> dict[str, Any]:
    """What the last record of a committed episode says; ``interventions`` counts the steps in
    which a person acted, None where that was not recorded."""
    return {"steps": steps, "return": reward if np.isfinite(reward) else None, "success": success,
            "success_any": any_success, "ended": ended, "frames": frames,
            "interventions": interventions, "recorded_at": time.time()}


def commit_record_of(steps: Mapping[str, NDArray[Any]], frames: dict[str, int]) -> dict[str, Any]:
    """The same from an episode's step arrays by key, and the cameras' numbers of frames."""
    ended = ("terminated" if steps[TERMINATED][-1] else
             "truncated" if steps[TRUNCATED][-1] else "cut off")
    marks = steps.get(INTERVENTION)
    return commit_record(
        len(steps[ACTION]), float(steps[REWARD].sum(dtype=np.float64)), bool(steps[SUCCESS][-1]),
        bool(steps[SUCCESS].any()), ended, frames, None if marks is None else int(marks.sum()),
    )


class LiveEpisode:
    """The episode that is being recorded. One thread at a time may call each method.

    Made by :meth:`robot_rl.data.writer.DatasetWriter.begin`. Every method raises
    :class:`StorageError` once the disk has refused anything; what was committed before stays.
    """

    def __init__(
        self,
        part: Path,
        records: dict[str, Any],
        options: RecordingOptions,
        period_s: float,
        sizes: Mapping[str, tuple[int, ...]],
        on_end: Callable[[Path, End], Path | None],
    ) -> None:
        self._part, self._records, self._options = part, records, options
        self._period_s, self._sizes, self._on_end = period_s, sizes, on_end
        self._queue: queue.SimpleQueue[tuple[Any, int]] = queue.SimpleQueue()
        self._queued, self._room = 0, threading.Condition()
        # Held where frames are numbered and put in order, and where the episode begins or ends.
        self._order = threading.Lock()
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self._frames: dict[str, int] = {}
        self._cameras: dict[str, CameraFormat] = {}
        self._first: dict[str, Any] | None = None
        self._layout: RowLayout | None = None
        self._early: list[tuple[Any, int]] = []
        self._bytes = 0
        self.steps = 0
        self._return, self._success, self._any, self._ended = 0.0, False, False, "cut off"
        self._interventions: int | None = None
        self._over = False

    # -- from the control loop and the cameras ----------------------------------------------

    def frame(self, camera: str, image: NDArray[np.uint8], stamp_s: float = 0.0) -> int:
        """Add what ``camera`` saw, (H, W, 1 or 3) uint8 RGB; returns the frame's number.

        Every camera gives its first frame before the first step. May be called from a camera's
        own thread; the image is copied.

        Raises:
            InvalidInputError: the frame is not of the camera's shape, or the camera is new.
        """
        self._check_open()
        stamp_ns(stamp_s)
        image = np.array(image, order="C")
        self._make_room(image.nbytes, _QUEUE_BYTES)
        try:
            with self._order:
                self._check_open()
                self._check_frame(camera, image)
                entry = (("frame", camera, image, float(stamp_s)), image.nbytes)
                if self._layout is None:
                    self._early.append(entry)
                else:
                    self._queue.put(entry)
                number = self._frames.get(camera, 0)
                self._frames[camera] = number + 1
        except InvalidInputError:
            self._give_room(image.nbytes)
            raise
        return number

    def start(self, states: Mapping[str, Any]) -> None:
        """Give the first state: arrays by key; cameras by the number of the frame seen."""
        self._check_open()
        if self._first is not None:
            raise InvalidInputError("the episode has a first state already")
        self._first = {key: np.array(typed(key, value)) for key, value in states.items()}

    def step(self, states: Mapping[str, Any], step: Mapping[str, Any]) -> None:
        """Add a step and the state that it led to, with the keys and shapes of the first ones.

        Raises:
            InvalidInputError: there is no first state yet; a key is missing or new; a shape
                differs; a number is not finite or does not fit the type of the first one.
        """
        self._check_open()
        if self._first is None:
            raise InvalidInputError("the episode needs its first state before a step")
        layout = self._layout or self._first_layout(step)
        row = self._row(layout, self.steps + 1, states, step)
        if self._layout is None:
            first = self._row(layout, 0, self._first, {})
            self._begin(layout)
            self._send(first, self._first)
        self._send(row, states)
        self.steps += 1
        self._return += float(row[REWARD][0])
        self._success = bool(row[SUCCESS][0])
        self._any = self._any or self._success
        if INTERVENTION in step:
            self._interventions = (self._interventions or 0) + bool(row[INTERVENTION][0])
        if row[TERMINATED][0]:
            self._ended = "terminated"
        elif row[TRUNCATED][0]:
            self._ended = "truncated"
        else:
            self._ended = "cut off"

    def commit(self) -> Path:
        """End the episode; when this returns, it is on the disk under its final name.

        Raises:
            InvalidInputError: it has no step yet.
            StorageError: the disk refused it; what was written of it is kept in ``interrupted/``.
        """
        self._check_open()
        if self.steps == 0:
            raise InvalidInputError("an episode without steps cannot be committed")
        try:
            with self._order:
                self._over = True
                self._queue.put((commit_record(
                    self.steps, self._return, self._success, self._any, self._ended,
                    dict(self._frames), self._interventions
                ), 0))
            assert self._thread is not None
            self._thread.join()
            if self._error is not None:
                raise self._error
        except BaseException:
            self._on_end(self._part, "interrupted")
            raise
        path = self._on_end(self._part, "commit")
        assert path is not None
        return path

    def discard(self) -> None:
        """Forget the episode: the operator rejected it."""
        self._end("discard")

    def abandon(self) -> None:
        """Leave the episode as it is, as one that can be repaired."""
        self._end("interrupted")

    # -- inside -----------------------------------------------------------------------------

    def _end(self, how: End) -> None:
        if self._over:
            return
        with self._order:
            self._over = True
            self._queue.put((how, 0))
        if self._thread is not None:
            self._thread.join()
        self._on_end(self._part, how)

    def _check_open(self) -> None:
        if self._error is not None:
            raise self._error
        if self._over:
            raise InvalidInputError("the episode is over; begin another")

    def _check_frame(self, camera: str, image: NDArray[np.uint8]) -> None:
        known = self._cameras.get(camera)
        if known is None:
            if self._layout is not None:
                raise InvalidInputError(
                    f"camera {camera!r} begins after the first step; this episode has "
                    f"{', '.join(self._cameras) or 'no cameras'}"
                )
            shape = tuple(image.shape) if image.ndim == 3 else (0, 0, 0)
            known = CameraFormat(shape, self._options.image_format)  # type: ignore[arg-type]
        if image.shape != known.shape or image.dtype != np.uint8:
            raise InvalidInputError(
                f"camera {camera}: a frame is {image.dtype} of shape {image.shape}, should be "
                f"uint8 {known.shape}"
            )
        self._spend(image.nbytes)
        self._cameras[camera] = known

    def _spend(self, size: int) -> None:
        self._bytes += size + _MESSAGE_BYTES
        if self._bytes > _LARGEST_EPISODE:
            raise InvalidInputError(
                f"an episode takes at most {_LARGEST_EPISODE >> 20} MiB of frames and rows; "
                "commit this one and begin another"
            )

    def _first_layout(self, step: Mapping[str, Any]) -> RowLayout:
        assert self._first is not None
        steps = {key: typed(key, value) for key, value in step.items()}
        check_first(self._first, steps, self._sizes, set(self._cameras))
        return RowLayout.of(self._first, steps)

    def _row(
        self, layout: RowLayout, number: int, states: Mapping[str, Any], step: Mapping[str, Any]
    ) -> NDArray[Any]:
        """The row (1,) of these, checked."""
        row = layout.empty(1)
        row["index"] = number
        given = len(states) + (len(step) if number else 0)
        for field in layout.fields:
            if field.rows == "step" and number == 0:
                continue
            source = states if field.rows == "state" else step
            if field.key not in source:
                raise InvalidInputError(f"{field.key} is missing from a step")
            value = convert(field, source[field.key])
            if field.size:
                row[field.key] = value
            if field.key.startswith(IMAGES):
                self._check_seen(field.key.removeprefix(IMAGES), int(value))
            given -= 1
        if given:
            known = {field.key for field in layout.fields}
            new = sorted({*states, *step} - known)
            raise InvalidInputError(f"{', '.join(new)} was not in the first step")
        stamp_ns(self._stamp_s(number, states))
        return row

    def _stamp_s(self, number: int, states: Mapping[str, Any]) -> float:
        stamp = states.get(TIMESTAMP)
        return number * self._period_s if stamp is None else float(stamp)

    def _send(self, row: NDArray[Any], states: Mapping[str, Any]) -> None:
        message, number = row.tobytes(), int(row["index"][0])
        at_ns = stamp_ns(self._stamp_s(number, states))
        self._spend(len(message))
        self._make_room(len(message), 2 * _QUEUE_BYTES)
        self._queue.put((("row", number, message, at_ns), len(message)))

    def _check_seen(self, camera: str, number: int) -> None:
        if not 0 <= number < self._frames.get(camera, 0):
            raise InvalidInputError(f"frame {number} of camera {camera!r} was not given; there are "
                                    f"{self._frames.get(camera, 0)}")

    def _begin(self, layout: RowLayout) -> None:
        """Open the file, start the thread and hand it the frames that came before."""
        with self._order:
            known = {field.key for field in layout.fields}
            for camera in self._cameras:
                if f"{IMAGES}{camera}" not in known:
                    raise InvalidInputError(f"camera {camera!r} begins after the first step")
            try:
                file = AppendedFile(self._part)
                try:
                    writer = EpisodeFileWriter(file, layout, dict(self._cameras), self._records)
                except BaseException:
                    file.close()
                    raise
            except RobotRLError as error:
                self._fail(error)
                raise
            self._thread = threading.Thread(target=self._write, args=(writer, file),
                                            name="recorder", daemon=True)
            self._thread.start()
            self._layout = layout
            for entry in self._early:
                self._queue.put(entry)
            self._early = []

    def _make_room(self, size: int, limit: int) -> None:
        """Wait until ``size`` bytes more may be queued, and count them."""
        with self._room:
            if self._queued + size > limit and self._layout is None:
                raise InvalidInputError(
                    f"{self._queued >> 20} MiB of frames came before the first step; begin the "
                    "episode when the robot does"
                )
            fits = self._room.wait_for(
                lambda: self._queued + size <= limit or self._error is not None, _QUEUE_WAIT_S
            )
            if self._error is not None:
                raise self._error
            if not fits:
                self._error = StorageError(
                    f"{self._part}: the disk is too slow: {self._queued >> 20} MiB wait to be "
                    "written; use fewer or smaller cameras, or --image-format jpeg"
                )
                raise self._error
            self._queued += size

    def _give_room(self, size: int) -> None:
        with self._room:
            self._queued -= size
            self._room.notify_all()

    def _write(self, writer: EpisodeFileWriter, file: AppendedFile) -> None:
        try:
            self._drain(writer, file)
        except RobotRLError as error:
            self._fail(error)
        except Exception as error:  # whatever it is, the loop has to hear of it
            self._fail(StorageError(f"recording {self._part} failed: {error!r}"))
        finally:
            file.close()

    def _fail(self, error: Exception) -> None:
        with self._room:
            self._error = self._error or error
            self._room.notify_all()

    def _drain(self, writer: EpisodeFileWriter, file: AppendedFile) -> None:
        pending = _Pending(writer, file)
        while self._error is None:
            try:
                entry, size = self._queue.get(timeout=pending.patience_s())
            except queue.Empty:
                pending.flush()
                continue
            if isinstance(entry, dict):
                pending.flush()
                writer.finish(entry)
                file.sync()
                return
            if entry == "interrupted":
                pending.flush()
            if isinstance(entry, str):
                return
            if entry[0] == "frame":
                _, camera, image, at_s = entry
                data = encode(self._cameras[camera], image, quality=self._options.jpeg_quality)
                writer.frame(camera, data, at_s)
                pending.add(len(data))
            else:
                pending.rows.append(entry[1:])
                pending.add(len(entry[2]))
            self._give_room(size)
            if pending.is_due():
                pending.flush()


class _Pending:
    """What was taken from the queue and has not been handed to the operating system."""

    def __init__(self, writer: EpisodeFileWriter, file: AppendedFile) -> None:
        self._writer, self._file = writer, file
        self.rows: list[tuple[int, bytes, int]] = []
        self._bytes, self._since, self._synced = 0, time.monotonic(), 0

    def add(self, size: int) -> None:
        if not self._bytes:
            self._since = time.monotonic()
        self._bytes += size

    def patience_s(self) -> float | None:
        if not self._bytes:
            return None
        return max(self._since + _FLUSH_S - time.monotonic(), 0.0)

    def is_due(self) -> bool:
        return self._bytes >= _FLUSH_BYTES or time.monotonic() - self._since >= _FLUSH_S

    def flush(self) -> None:
        self._writer.flush()  # frames first: a reader who follows never sees a row without them
        for row in self.rows:
            self._writer.row(*row)
        self.rows.clear()
        self._writer.flush()
        self._bytes, self._since = 0, time.monotonic()
        if self._file.tell() - self._synced > _SYNC_BYTES:
            self._file.sync()
            self._synced = self._file.tell()
