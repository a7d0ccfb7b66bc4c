"""Export to a LeRobotDataset v3.0, with frames as PNG (every value kept) or as video.

Frame t of an episode is what was observed in state t and the action taken there; an episode of T
steps becomes T frames, so that a policy trained by ``lerobot`` sees real pairs only. Keys are ours
(which follow LeRobot), plus ``next.done`` and LeRobot's own indices, with these exceptions:
``action.requested`` is ``requested_action`` (what begins with ``action`` LeRobot would predict),
``timestamp`` is the frame's number over the rate, as LeRobot wants it, and what the clock read is
``stamp_s`` and ``stamp_s.<key>``. The goal is repeated in every frame.

What has no place there lies in ``meta/robot_rl``, which ``lerobot`` ignores, so that an import
restores every number: the last state of each episode, frames that no state was decided on,
metadata, and arrays that not all episodes have alike or that LeRobot cannot load (uint64, rows of
no or of more than five axes' numbers, names with a slash).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robot_rl.data.episodes import (
    DESIRED,
    IMAGES,
    REQUESTED,
    TIMESTAMP,
    Episode,
)
from robot_rl.data.exporters.staged import EpisodeLog, staged
from robot_rl.data.exporters.statistics import Statistics
from robot_rl.data.files import write_json
from robot_rl.data.importers.arrays import need
from robot_rl.data.importers.lerobot import (
    OWN_EPISODES,
    OWN_FORMAT,
    OWN_INFO,
    OWN_PER_FILE,
    REQUESTED_FEATURE,
)
from robot_rl.data.importers.lerobot_layout import (
    DATA_PATH,
    EPISODES_PATH,
    INDICES,
    VIDEO_PATH,
)
from robot_rl.data.importers.minari import quoted
from robot_rl.data.importers.video import VideoWriter, encode_png
from robot_rl.errors import InvalidInputError

CODEBASE_VERSION = "v3.0"
_CHUNKS, _DATA_MB, _VIDEO_MB = 1000, 100, 200
_EPISODES_AT_ONCE = 100
_UNKNOWN_RATE_HZ = 10
_LOADED = ("float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16",
           "uint32", "bool")
_TAKEN = frozenset((*INDICES, "timestamp", "next.done", "task", "subtask_index", "subtask",
                    REQUESTED_FEATURE))


@dataclass(frozen=True)
class Field:
    """One array that every episode has alike: its column, and what has a row of it."""

    key: str
    feature: str
    rows: str
    shape: tuple[int, ...]
    dtype: str


def export(
    log: EpisodeLog, dest: Path, *, overwrite: bool = False, quiet: bool = False,
    video: bool = False,
) -> dict[str, Any]:
    """Write every episode of ``log`` as the LeRobotDataset ``dest``, whole or not at all.

    Reads the log twice, first without frames, one episode at a time.
    ``LeRobotDataset(repo_id, root=dest)`` opens it.

    Args:
        video: store frames as H.264, much smaller but not exact, instead of PNG.

    Returns:
        ``path``, ``episodes``, ``steps``, ``fps``, ``features``, ``beside`` (keys kept apart).

    Raises:
        InvalidInputError: ``dest`` is in use, the log is empty, or its values cannot be exported.
        MissingDependencyError: ``pyarrow``, ``opencv`` or (for videos) ``av`` is not installed.
    """
    need("pyarrow.parquet", "export to lerobot")
    count = len(log)
    if count == 0:
        raise InvalidInputError("export to lerobot: there are no episodes")
    tqdm = need("tqdm", "progress").tqdm
    fields, apart = survey(log, count)
    with staged(dest, "export", overwrite=overwrite, source=getattr(log, "path", None)) as folder:
        writer = _Writer(folder, log, fields, video)
        try:
            for number in tqdm(range(count), disable=quiet, desc="lerobot"):
                writer.add(log.read(number))
            writer.finish()
        finally:
            writer.close()
    return {"path": os.path.abspath(dest), "episodes": writer.episodes, "steps": writer.frames,
            "fps": writer.fps, "features": sorted(writer.features), "beside": sorted(apart)}


def survey(log: EpisodeLog, count: int) -> tuple[list[Field], set[str]]:
    """The arrays that all episodes have alike and LeRobot can load, and the keys of the others."""
    fields: dict[str, Field] | None = None
    keys: set[str] = set()
    for number in range(count):
        episode = log.read(number, images=False)
        episode.check(f"episode {number}")
        found = {field.key: field for field in _fields(episode)}
        keys |= set(_arrays(episode))
        fields = found if fields is None else {
            key: field for key, field in fields.items() if found.get(key) == field}
    fields = fields or {}
    return list(fields.values()), keys - set(fields)


def _arrays(episode: Episode) -> dict[str, tuple[str, NDArray[Any]]]:
    """Every array but frames by key, with what has a row of it."""
    found = {key: ("state", array) for key, array in episode.state_arrays().items()
             if not key.startswith(IMAGES)}
    found |= {key: ("step", array) for key, array in episode.step_arrays().items()}
    return found | {DESIRED: ("episode", episode.desired)}


def _fields(episode: Episode) -> Iterator[Field]:
    names: set[str] = set()
    for key, (rows, array) in _arrays(episode).items():
        shape = array.shape if rows == "episode" else array.shape[1:]
        feature = _feature_name(key)
        if str(array.dtype) in _LOADED and 0 not in shape and len(shape) <= 5 and (
            feature and feature not in names
        ):
            names.add(feature)
            yield Field(key, feature, rows, shape, str(array.dtype))


def _feature_name(key: str) -> str:
    if key == REQUESTED:
        return REQUESTED_FEATURE
    if key == TIMESTAMP or key.startswith(f"{TIMESTAMP}."):
        key = f"stamp_s{key[len(TIMESTAMP):]}"
    return "" if "/" in key or key in _TAKEN else key


class _Writer:
    def __init__(self, folder: Path, log: EpisodeLog, fields: list[Field], video: bool) -> None:
        self._pa, self._pq = need("pyarrow", "lerobot"), need("pyarrow.parquet", "lerobot")
        self._folder, self._info, self._fields, self._video = folder, log.info, fields, video
        first = log.read(0)
        self.fps = _rate(log.info.rate_hz, first)
        self._cameras = {name: f"{IMAGES}{quoted(name)}" for name in first.images}
        self._stats = Statistics()
        self.episodes = self.frames = 0
        self._tasks: dict[str, int] = {}
        self._rows: list[dict[str, Any]] = []
        self._files: dict[str, Any] = {}
        self._numbers: dict[str, int] = {"data": 0} | dict.fromkeys(self._cameras.values(), 0)
        self._videos: dict[str, VideoWriter] = {}
        self.features = self._features(first)

    def _features(self, first: Episode) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {
            field.feature: {"dtype": field.dtype, "shape": list(field.shape) or [1], "names": None}
            for field in self._fields}
        for name, feature in self._cameras.items():
            height, width, channels = first.images[name].frames.shape[1:]
            found[feature] = {
                "dtype": "video" if self._video else "image",
                "shape": [height, width, 3 if self._video else channels],
                "names": ["height", "width", "channels"],
            }
            if self._video:
                even = height % 2 == 0 and width % 2 == 0
                found[feature]["info"] = {
                    "video.height": height, "video.width": width, "video.codec": "h264",
                    "video.pix_fmt": "yuv420p" if even else "yuv444p", "video.channels": 3,
                    "video.is_depth_map": False, "video.fps": self.fps, "has_audio": False,
                }
        found["next.done"] = {"dtype": "bool", "shape": [1], "names": None}
        found["timestamp"] = {"dtype": "float32", "shape": [1], "names": None}
        return found | {name: {"dtype": "int64", "shape": [1], "names": None} for name in INDICES}

    # -- one episode ------------------------------------------------------------------------

    def add(self, episode: Episode) -> None:
        """Write one more episode."""
        episode.check(f"episode {self.episodes}")
        if list(episode.images) != list(self._cameras) and (
            set(episode.images) != set(self._cameras)
        ):
            raise InvalidInputError(
                f"episode {self.episodes}: cameras {', '.join(episode.images)}; the first has "
                f"{', '.join(self._cameras)}")
        steps, task = len(episode), self._task(episode)
        rows = self._columns(episode, task)
        columns = {name: _column(self._pa, array) for name, array in rows.items()}
        row: dict[str, Any] = {
            "episode_index": self.episodes, "tasks": [list(self._tasks)[task]], "length": steps}
        begin = self._numbers["data"]
        row |= {"data/chunk_index": begin // _CHUNKS, "data/file_index": begin % _CHUNKS,
                "dataset_from_index": self.frames, "dataset_to_index": self.frames + steps}
        stats = {name: self._stats.vector(name, array) for name, array in rows.items()}
        for name, feature in self._cameras.items():
            seen = episode.images[name].at(slice(0, steps))
            stats[feature] = self._stats.images(feature, seen)
            if self._video:
                row |= self._film(feature, seen)
            else:
                columns[feature] = self._pictures(seen)
        self._write("data", DATA_PATH, self._pa.table(columns), _DATA_MB)
        self._beside(episode)
        row |= {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0}
        row |= {f"stats/{name}/{part}": value
                for name, parts in stats.items() for part, value in parts.items()}
        self._rows.append(row)
        self.episodes += 1
        self.frames += steps
        if len(self._rows) >= _EPISODES_AT_ONCE:
            self._flush()

    def _task(self, episode: Episode) -> int:
        text = episode.metadata.get("instruction")
        text = text if isinstance(text, str) and text else self._info.task or "unspecified"
        return self._tasks.setdefault(text, len(self._tasks))

    def _columns(self, episode: Episode, task: int) -> dict[str, NDArray[Any]]:
        steps, arrays = len(episode), _arrays(episode)
        columns = {}
        for field in self._fields:
            array = arrays[field.key][1]
            columns[field.feature] = (np.repeat(array[None], steps, 0) if field.rows == "episode"
                                      else array[:steps])
        number = np.arange(steps, dtype=np.int64)
        return columns | {
            "next.done": np.asarray(episode.terminated) | np.asarray(episode.truncated),
            "timestamp": (number / self.fps).astype(np.float32), "frame_index": number,
            "episode_index": np.full(steps, self.episodes, np.int64),
            "index": self.frames + number, "task_index": np.full(steps, task, np.int64),
        }

    def _pictures(self, seen: NDArray[np.uint8]) -> Any:
        pa = self._pa
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        return pa.array([{"bytes": encode_png(frame), "path": f"frame-{i:06d}.png"}
                         for i, frame in enumerate(seen)], kind)

    def _film(self, feature: str, seen: NDArray[np.uint8]) -> dict[str, Any]:
        number = self._numbers[feature]
        if feature not in self._videos:
            path = self._folder / VIDEO_PATH.format(
                video_key=feature, chunk_index=number // _CHUNKS, file_index=number % _CHUNKS)
            path.parent.mkdir(parents=True, exist_ok=True)
            rate = Fraction(self.fps).limit_denominator(1001)
            self._videos[feature] = VideoWriter(path, seen.shape[1:], rate)
        video = self._videos[feature]
        begin = video.count / self.fps
        for frame in seen:
            video.add(frame)
        end = video.count / self.fps
        if video.path.exists() and video.path.stat().st_size >= _VIDEO_MB << 20:
            self._videos.pop(feature).close()
            self._numbers[feature] += 1
        return {f"videos/{feature}/chunk_index": number // _CHUNKS,
                f"videos/{feature}/file_index": number % _CHUNKS,
                f"videos/{feature}/from_timestamp": begin, f"videos/{feature}/to_timestamp": end}

    def _write(self, kind: str, template: str, table: Any, limit_mb: int) -> None:
        number = self._numbers[kind]
        path = self._folder / template.format(
            chunk_index=number // _CHUNKS, file_index=number % _CHUNKS)
        if kind not in self._files:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._files[kind] = self._pq.ParquetWriter(path, table.schema, compression="snappy")
        self._files[kind].write_table(table, row_group_size=table.num_rows)
        if path.stat().st_size >= limit_mb << 20:
            self._files.pop(kind).close()
            self._numbers[kind] += 1

    # -- what lies beside -------------------------------------------------------------------

    def _beside(self, episode: Episode) -> None:
        pa = self._pa
        packed = pa.list_(pa.struct([("key", pa.string()), ("dtype", pa.string()),
                                     ("shape", pa.list_(pa.int64())), ("data", pa.binary())]))
        frames = pa.list_(pa.struct([
            ("camera", pa.string()), ("index", pa.list_(pa.int64())),
            ("stamp_s", pa.list_(pa.float64())), ("rest_at", pa.list_(pa.int64())),
            ("rest", pa.list_(pa.binary()))]))
        inside = {field.key: field for field in self._fields}
        arrays = _arrays(episode)
        row = {
            "episode_index": pa.array([self.episodes], pa.int64()),
            "metadata": pa.array([json.dumps(episode.metadata)], pa.string()),
            "last": pa.array([[_packed(key, array[-1:]) for key, (_, array) in arrays.items()
                               if key in inside and inside[key].rows == "state"]], packed),
            "arrays": pa.array([[_packed(key, array) for key, (_, array) in arrays.items()
                                 if key not in inside]], packed),
            "images": pa.array([[self._rest(name, episode) for name in episode.images]], frames),
        }
        table = pa.table(row)
        if self.episodes % OWN_PER_FILE == 0:
            if "beside" in self._files:
                self._files.pop("beside").close()
            path = self._folder / OWN_EPISODES.format(number=self.episodes // OWN_PER_FILE)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._files["beside"] = self._pq.ParquetWriter(path, table.schema)
        self._files["beside"].write_table(table)

    def _rest(self, name: str, episode: Episode) -> dict[str, Any]:
        images = episode.images[name]
        rest = np.setdiff1d(np.arange(len(images.frames)), images.index[:-1])
        return {"camera": name, "index": images.index.tolist(),
                "stamp_s": images.stamp_s.tolist(), "rest_at": rest.tolist(),
                "rest": [encode_png(images.frames[i]) for i in rest]}

    # -- the end ----------------------------------------------------------------------------

    def _flush(self) -> None:
        if not self._rows:
            return
        table = self._pa.Table.from_pylist(self._rows)
        if "episodes" not in self._files:
            path = self._folder / EPISODES_PATH.format(chunk_index=0, file_index=0)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._files["episodes"] = self._pq.ParquetWriter(path, table.schema)
        self._files["episodes"].write_table(table.cast(self._files["episodes"].schema))
        self._rows.clear()

    def finish(self) -> None:
        """Write what describes the whole."""
        self._flush()
        self.close()
        meta = self._folder / "meta"
        self._pq.write_table(_tasks(self._pa, self._tasks), meta / "tasks.parquet")
        write_json(meta / "stats.json", self._stats.all())
        write_json(meta / "info.json", {
            "codebase_version": CODEBASE_VERSION, "robot_type": self._info.robot or None,
            "total_episodes": self.episodes, "total_frames": self.frames,
            "total_tasks": len(self._tasks), "chunks_size": _CHUNKS,
            "data_files_size_in_mb": _DATA_MB, "video_files_size_in_mb": _VIDEO_MB,
            "fps": self.fps, "splits": {"train": f"0:{self.episodes}"}, "data_path": DATA_PATH,
            "video_path": VIDEO_PATH if self._video and self._cameras else None,
            "features": self.features,
        })
        write_json(self._folder / OWN_INFO, {
            "format": OWN_FORMAT, "episodes": self.episodes, "frames": self.frames,
            "video": self._video and bool(self._cameras), "info": asdict(self._info),
            "cameras": self._cameras,
            "fields": {field.key: {"feature": field.feature, "rows": field.rows,
                                   "shape": list(field.shape), "dtype": field.dtype}
                       for field in self._fields},
        })

    def close(self) -> None:
        """Close what is open."""
        while self._files:
            self._files.popitem()[1].close()
        while self._videos:
            self._videos.popitem()[1].close()


def _rate(rate_hz: float, episode: Episode) -> int | float:
    if rate_hz <= 0 and episode.stamp_s is not None:
        step_s = float(np.median(np.diff(episode.stamp_s)))
        rate_hz = round(1 / step_s, 3) if step_s > 1e-5 else 0.0
    rate_hz = rate_hz if rate_hz > 0 else _UNKNOWN_RATE_HZ
    return int(rate_hz) if float(rate_hz).is_integer() else float(rate_hz)


def _packed(key: str, array: NDArray[Any]) -> dict[str, Any]:
    return {"key": key, "dtype": str(array.dtype.newbyteorder("=")), "shape": list(array.shape),
            "data": np.ascontiguousarray(array).astype(array.dtype.newbyteorder("=")).tobytes()}


def _column(pa: Any, array: NDArray[Any]) -> Any:
    """A column of numbers, of lists, or of lists of lists."""
    shape = array.shape[1:]
    flat = pa.array(np.ascontiguousarray(array).reshape(-1))
    if shape in ((), (1,)):
        return flat
    if len(shape) == 1:
        return pa.FixedSizeListArray.from_arrays(flat, shape[0])
    for length in reversed(shape):
        offsets = np.arange(0, len(flat) + 1, length, dtype=np.int32)
        flat = pa.ListArray.from_arrays(pa.array(offsets), flat)
    return flat


def _tasks(pa: Any, tasks: dict[str, int]) -> Any:
    """The table of tasks, whose text is the index of the data frame that LeRobot reads."""
    name = "__index_level_0__"
    kinds = [("task_index", "int64", "int64"), (name, "unicode", "string")]
    pandas = {
        "index_columns": [name], "column_indexes": [], "pandas_version": "2.2.0",
        "columns": [{"name": None if key == name else key, "field_name": key, "pandas_type": kind,
                     "numpy_type": "int64" if kind == "int64" else "object", "metadata": None}
                    for key, kind, _ in kinds],
        "creator": {"library": "pyarrow", "version": pa.__version__},
    }
    schema = pa.schema([(key, getattr(pa, kind)()) for key, _, kind in kinds],
                       {"pandas": json.dumps(pandas)})
    return pa.table([list(tasks.values()), list(tasks)], schema=schema)
