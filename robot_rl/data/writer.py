"""Writes the durable log that :mod:`robot_rl.data.log` reads."""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from robot_rl.data.episode_file import (
    DATASET_RECORD,
    MAX_EPISODE_BYTES,
    EpisodeFileWriter,
    as_json,
)
from robot_rl.data.episodes import (
    ACHIEVED,
    ACTION,
    DESIRED,
    IMAGES,
    OBSERVATION,
    REQUESTED,
    DatasetInfo,
    Episode,
)
from robot_rl.data.files import (
    AppendedFile,
    Lock,
    make_folder,
    move,
    new_folder,
    publish,
    remove,
    write_json,
)
from robot_rl.data.frames import CameraFormat, encode, stamp_ns
from robot_rl.data.layout import RowLayout
from robot_rl.data.log import (
    COMMITTED,
    EPISODE_RECORD,
    EPISODES,
    INTERRUPTED,
    LOCK,
    SET_ASIDE,
    check_sizes,
    highest_committed,
    list_episodes,
    list_parts,
    open_log,
    parse_info,
    read_info,
)
from robot_rl.data.recording import End, LiveEpisode, RecordingOptions, commit_record_of
from robot_rl.errors import InvalidInputError, RobotRLError, StorageError


class DatasetWriter:
    """Records episodes into a folder, each whole or not at all.

    Args:
        path: a new or empty folder.
        info: what the episodes are of.
        overwrite: set a folder that is in use aside as ``<name>.old``.
        options: how frames are kept.

    Raises:
        InvalidInputError: the folder is in use.
        StorageError: the disk refuses.
    """

    def __init__(
        self,
        path: str | Path,
        info: DatasetInfo,
        *,
        overwrite: bool = False,
        options: RecordingOptions | None = None,
    ) -> None:
        # What could not be read again is refused before anything changes.
        parse_info(json.loads(as_json("the description of the dataset", asdict(info))), str(path))
        self._setup(new_folder(Path(path), "dataset", overwrite=overwrite), info, options)
        try:
            # The description comes last: a folder that has one is a dataset.
            make_folder(self.path / EPISODES)
            self._describe()
        except BaseException:
            self._lock.release()
            raise

    def _describe(self) -> None:
        file = self.path / "dataset.json"
        if file.exists():
            raise InvalidInputError(f"dataset: {self.path} is already there and not empty")
        try:
            write_json(file, asdict(self.info))
        except StorageError:
            with contextlib.suppress(StorageError):  # so that it can be tried again
                remove(file)
            raise

    def _setup(self, path: Path, info: DatasetInfo, options: RecordingOptions | None) -> None:
        self.path, self.info = path, info
        self.options = options or RecordingOptions()
        self.count = 0
        self._next = 0
        self._live: LiveEpisode | None = None
        self._lock = Lock(path / LOCK)

    @classmethod
    def extend(
        cls, path: str | Path, *, options: RecordingOptions | None = None
    ) -> DatasetWriter:
        """Go on with a dataset, behind its last episode.

        What a killed recording left is moved to ``interrupted/``.

        Raises:
            InvalidInputError: there is no dataset, or another process records into it.
        """
        path = Path(path)
        info = read_info(path)
        writer = cls.__new__(cls)
        writer._setup(path, info, options)
        try:
            make_folder(path / EPISODES)
            for part in list_parts(path):
                move(part, path / INTERRUPTED, part.name.removeprefix("."))
            files = list_episodes(path)
        except BaseException:
            writer.close()
            raise
        writer.count = len(files)
        # A number that was committed once is not used again, even where its episode is gone.
        writer._next = max(files[-1].number if files else -1, highest_committed(path)) + 1
        return writer

    @classmethod
    def reopen(cls, path: str | Path, count: int) -> tuple[DatasetWriter, list[Episode]]:
        """Go on with a dataset behind its first ``count`` episodes, which are returned.

        Later ones are moved to ``set_aside/``.

        Raises:
            InvalidInputError: it is damaged, or holds fewer.
        """
        path = Path(path)
        if not path.is_dir():
            raise InvalidInputError(f"dataset: {path} does not exist")
        writer = cls.extend(path)
        try:
            return writer, writer._keep(count)
        except BaseException:
            writer.close()
            raise

    def _keep(self, count: int) -> list[Episode]:
        files = list_episodes(self.path)
        if len(files) < count:
            raise InvalidInputError(
                f"dataset: {self.path} holds {len(files)} episodes, {count} are needed to go on"
            )
        log = open_log(self.path)
        kept = [log.read(file) for file in files[:count]]
        # From the end: what a power cut leaves is without gaps.
        for extra in reversed(files[count:]):
            move(extra.path, self.path / SET_ASIDE, extra.path.name)
        self.count = count
        self._next = files[count - 1].number + 1 if count else 0
        return kept

    def begin(self, metadata: dict[str, Any] | None = None) -> LiveEpisode:
        """Begin an episode that is recorded step by step.

        Raises:
            InvalidInputError: the one before is neither committed nor discarded.
        """
        self._check_free()
        period_s = 1.0 / self.info.rate_hz if self.info.rate_hz > 0.0 else 0.1
        info = self.info
        sizes = {OBSERVATION: tuple(info.observation_shape), ACHIEVED: (info.goal_dim,),
                 DESIRED: (info.goal_dim,), ACTION: (info.action_dim,),
                 REQUESTED: (info.action_dim,)}
        records = self._records(metadata or {})
        for name, value in records.items():
            as_json(name, value)
        self._live = LiveEpisode(self._part(), records, self.options, period_s, sizes,
                                 self._ended)
        return self._live

    def append(self, episode: Episode) -> Path:
        """Commit one whole episode; when this returns, it is on the disk.

        Raises:
            InvalidInputError: it is not a valid episode of this dataset.
            StorageError: the disk refused it; nothing of it counts.
        """
        self._check_free()
        episode.check(f"episode {self.count}")
        check_sizes(self.info, episode, f"episode {self.count}")
        _check_readable(episode, f"episode {self.count}")
        part = self._part()
        try:
            file = AppendedFile(part)
            try:
                _write_episode(file, episode, self._records(episode.metadata), self.options,
                               self.info.rate_hz)
                file.sync()
            finally:
                file.close()
            return self._publish(part)
        except BaseException as error:
            with contextlib.suppress(StorageError):
                remove(part, sync=True)
            if isinstance(error, RobotRLError) or not isinstance(error, Exception):
                raise
            raise InvalidInputError(f"episode {self.count} cannot be kept: {error!r}") from error

    def close(self) -> None:
        """Let others write. An episode in progress is left as one that can be repaired."""
        try:
            if self._live is not None:
                self._live.abandon()
            if self._lock.held:
                self._note_committed()
        finally:
            self._lock.release()

    def _note_committed(self) -> None:
        """Say how far the numbers went, so that a loss of the last episodes is noticed."""
        if self._next - 1 > highest_committed(self.path):
            with contextlib.suppress(StorageError):  # nothing depends on it
                write_json(self.path / COMMITTED, {"through": self._next - 1})

    def __enter__(self) -> DatasetWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _check_free(self) -> None:
        if not self._lock.held:
            raise InvalidInputError(f"dataset: {self.path} was closed, or opened by the process "
                                    "that this one was forked from; extend it to go on")
        if self._live is not None:
            raise InvalidInputError("an episode is being recorded; commit or discard it first")

    def _part(self) -> Path:
        while (self.path / EPISODES / f"{self._next:06d}.mcap").exists():
            self._next += 1
        part = self.path / EPISODES / f".{self._next:06d}.mcap.part"
        if part.exists():  # an episode that failed before
            move(part, self.path / INTERRUPTED, part.name.removeprefix("."))
        return part

    def _publish(self, part: Path) -> Path:
        path = self.path / EPISODES / f"{self._next:06d}.mcap"
        if path.exists():
            raise InvalidInputError(f"dataset: {path} is already there")
        publish(part, path)
        self._next += 1
        self.count += 1
        return path

    def _ended(self, part: Path, how: End) -> Path | None:
        self._live = None
        try:
            if how == "commit":
                return self._publish(part)
            if how == "discard":
                remove(part, sync=True)
        except StorageError:
            self._set_apart(part)
            raise
        self._set_apart(part)
        return None

    def _set_apart(self, part: Path) -> None:
        """Move what was not committed out of the way; it can be repaired where it is, too."""
        with contextlib.suppress(StorageError):
            if part.exists():
                move(part, self.path / INTERRUPTED, part.name.removeprefix("."))

    def _records(self, metadata: dict[str, Any]) -> dict[str, Any]:
        return {DATASET_RECORD: asdict(self.info), EPISODE_RECORD: metadata}


def _check_readable(episode: Episode, where: str) -> None:
    """Raise InvalidInputError for what :meth:`Episode.check` lets pass and no file can hold."""
    size = sum(images.frames.nbytes for images in episode.images.values())
    if size > MAX_EPISODE_BYTES * 15 // 16:
        raise InvalidInputError(f"{where}: its frames take {size >> 20} MiB, the limit is "
                                f"{MAX_EPISODE_BYTES * 15 // 16 >> 20}; split it")
    for name, images in episode.images.items():
        if images.index.dtype.kind not in "iu":
            raise InvalidInputError(f"{where}: the indices of {IMAGES}{name} are "
                                    f"{images.index.dtype}, should be whole numbers")


def _write_episode(
    file: AppendedFile,
    episode: Episode,
    records: dict[str, Any],
    options: RecordingOptions,
    rate_hz: float,
) -> None:
    states = episode.state_arrays()
    steps = episode.step_arrays()
    layout = RowLayout.of(
        {**{key: value[0] for key, value in states.items()}, DESIRED: episode.desired},
        {key: value[0] for key, value in steps.items()},
    )
    count = len(episode) + 1
    rows = layout.empty(count)
    for field in layout.fields:
        if not field.size:
            continue
        if field.key == DESIRED:
            rows[DESIRED] = episode.desired
        elif field.rows == "state":
            rows[field.key] = states[field.key]
        else:
            rows[field.key][1:] = steps[field.key]
    cameras = {
        name: CameraFormat(images.frames.shape[1:], options.image_format)
        for name, images in episode.images.items()
    }
    writer = EpisodeFileWriter(file, layout, cameras, records)
    for name, images in episode.images.items():
        for frame, at_s in zip(images.frames, images.stamp_s, strict=True):
            data = encode(cameras[name], frame, quality=options.jpeg_quality)
            writer.frame(name, data, float(at_s))
        writer.flush()
    period_s = 1.0 / rate_hz if rate_hz > 0.0 else 0.1
    stamps = episode.stamp_s if episode.stamp_s is not None else np.arange(count) * period_s
    raw = rows.tobytes()
    width = layout.dtype.itemsize
    for number in range(count):
        writer.row(number, raw[number * width : (number + 1) * width],
                   stamp_ns(float(stamps[number])))
    writer.finish(commit_record_of(
        steps, {name: len(images.frames) for name, images in episode.images.items()}
    ))
