"""Where things lie in a LeRobotDataset v3.0, v2.1 or v2.0, read without trusting any of it.

v3.0 keeps many episodes in a file: ``meta/info.json``, ``meta/tasks.parquet``,
``meta/episodes/chunk-000/file-000.parquet`` (a row for each episode, saying in which file and rows
it is), ``data/chunk-000/file-000.parquet`` and ``videos/<key>/chunk-000/file-000.mp4``. v2 keeps
``meta/episodes.jsonl``, ``meta/tasks.jsonl`` and a parquet file and mp4 for each episode.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from robot_rl.data.importers.arrays import (
    MAX_EPISODES,
    inside,
    need,
    parse_json,
    read_small,
    read_small_json,
    refusing,
)
from robot_rl.data.importers.base import MAX_BYTES
from robot_rl.data.importers.minari import check_parquet
from robot_rl.errors import InvalidInputError

DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
EPISODES_PATH = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
# Columns that LeRobot adds to every dataset.
INDICES = ("frame_index", "episode_index", "index", "task_index")
VISUAL = ("image", "video")
_FIELD = re.compile(r"\{([a-z_]{1,40})(?::0?(\d{1,2})d)?\}")
_MAX_ROWS = MAX_BYTES // 16


@dataclass(frozen=True)
class Feature:
    """One column: its type and the shape of a row, (height, width, channels) for what is seen."""

    key: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def visual(self) -> bool:
        return self.dtype in VISUAL

    @property
    def row_bytes(self) -> int:
        size = 1 if self.visual else np.dtype(self.dtype).itemsize
        return math.prod(self.shape) * size


@dataclass(frozen=True)
class Entry:
    """One episode: its rows in a data file, and the videos with the second it begins at."""

    number: int
    length: int
    data: Path
    first_row: int
    tasks: tuple[str, ...] = ()
    videos: dict[str, tuple[Path, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Layout:
    """What a dataset holds and where."""

    root: Path
    where: str
    fps: float
    robot: str
    features: dict[str, Feature]
    episodes: list[Entry]
    tasks: dict[int, str]
    skipped: list[str]


def read_layout(root: Path) -> Layout:
    """Read what is under ``meta``.

    Raises:
        InvalidInputError: it is missing, damaged, of another version, contradicts itself or leads
            out of ``root``.
    """
    where = f"lerobot: {root}"
    info = read_small_json(root / "meta" / "info.json", "lerobot")
    if not isinstance(info, dict):
        raise InvalidInputError(f"{where}: meta/info.json is not an object")
    version = info.get("codebase_version")
    if version not in ("v3.0", "v2.1", "v2.0"):
        raise InvalidInputError(
            f"{where}: codebase_version is {str(version)[:50]!r}, can be v3.0, v2.1 or v2.0")
    fps = info.get("fps")
    if not isinstance(fps, (int, float)) or not 0 < fps < 1e6:
        raise InvalidInputError(f"{where}: fps is {str(fps)[:50]!r}, should be above 0")
    features, skipped = _features(info.get("features"), where)
    read = _episodes_v3 if version == "v3.0" else _episodes_v2
    episodes, tasks = read(root, info, features, where)
    total = info.get("total_episodes", len(episodes))
    if total != len(episodes):
        raise InvalidInputError(
            f"{where}: total_episodes is {str(total)[:50]}, {len(episodes)} are listed")
    for i, entry in enumerate(episodes):
        if entry.number != i:
            what = "listed twice" if entry.number < i else "not listed"
            raise InvalidInputError(f"{where}: episode {min(i, entry.number)} is {what}")
    robot = info.get("robot_type")
    return Layout(root, where, float(fps), robot if isinstance(robot, str) else "", features,
                  episodes, tasks, skipped)


def _features(raw: Any, where: str) -> tuple[dict[str, Feature], list[str]]:
    if not isinstance(raw, dict) or not 0 < len(raw) <= 10_000:
        raise InvalidInputError(f"{where}: features is missing or not an object")
    found, skipped = {}, []
    for key, value in raw.items():
        what = f"{where}: feature {key[:100]!r}"
        dtype = value.get("dtype") if isinstance(value, dict) else None
        if not isinstance(dtype, str) or not re.fullmatch(r"[a-z]{1,10}\d{0,2}", dtype):
            raise InvalidInputError(f"{what} has no dtype")
        shape = value.get("shape")
        if isinstance(shape, list) and all(type(n) is int and 0 <= n for n in shape):
            shape = tuple(shape)
        else:
            raise InvalidInputError(f"{what} has shape {str(shape)[:100]}")
        if dtype in VISUAL:
            shape = _seen_shape(shape, what)
        else:
            kind = "O" if dtype in ("string", "object") else _kind(dtype)
            if kind not in "fiub" or len(shape) > 8:
                skipped.append(key)
                continue
        feature = Feature(key, dtype, shape)
        if feature.row_bytes > MAX_BYTES:
            raise InvalidInputError(
                f"{what} of shape {shape} takes {feature.row_bytes} bytes a row, the limit is "
                f"{MAX_BYTES}")
        found[key] = feature
    return found, skipped


def _kind(dtype: str) -> str:
    try:
        found = np.dtype(dtype)
    except TypeError:
        return "O"
    return found.kind if found.itemsize <= 8 else "O"


def _seen_shape(shape: tuple[int, ...], what: str) -> tuple[int, ...]:
    """(H, W, C) of a shape that may have its channels first."""
    if len(shape) != 3 or 0 in shape:
        raise InvalidInputError(f"{what} has shape {shape}, should be (height, width, channels)")
    if shape[2] not in (1, 3, 4) and shape[0] in (1, 3, 4):
        return (shape[1], shape[2], shape[0])
    return shape


def expand(template: Any, values: dict[str, int | str], where: str) -> str:
    """``template`` with {name} and {name:03d} filled in, and nothing else of ``str.format``.

    Raises:
        InvalidInputError: it asks for anything else.
    """
    if not isinstance(template, str) or len(template) > 500:
        raise InvalidInputError(f"{where}: the path template {str(template)[:100]!r} is not text")
    rest = _FIELD.sub("", template)
    names = [match[1] for match in _FIELD.finditer(template)]
    if "{" in rest or "}" in rest or not set(names) <= set(values):
        raise InvalidInputError(
            f"{where}: the path template {template[:200]!r} may hold "
            + ", ".join(f"{{{name}}}" for name in values) + " and nothing else in braces")

    def fill(match: re.Match[str]) -> str:
        value = values[match[1]]
        if match[2] is None:
            return str(value)
        if not isinstance(value, int) or int(match[2]) > 20:
            raise InvalidInputError(f"{where}: the path template {template[:200]!r} is off")
        return f"{value:0{int(match[2])}d}"

    return _FIELD.sub(fill, template)


# -- version 3 ----------------------------------------------------------------------------------


def table_rows(path: Path, columns: list[str] | None, where: str) -> Iterator[dict[str, Any]]:
    """The rows of a small parquet file, of those ``columns`` that it has.

    Raises:
        InvalidInputError: it is damaged or too large.
    """
    pq = need("pyarrow.parquet", "lerobot")
    with refusing(f"{where}: {path}"), pq.ParquetFile(path) as file:
        check_parquet(file, f"{where}: {path}")
        if file.metadata.num_rows > MAX_EPISODES:
            raise InvalidInputError(f"{where}: {path} claims {file.metadata.num_rows} rows")
        known = [n for n in file.schema_arrow.names if columns is None or n in columns]
        batches = file.iter_batches(batch_size=1000, columns=known)
        while True:
            batch = next(batches, None)
            if batch is None:
                return
            batch.validate(full=True)
            yield from batch.to_pylist()


def _episodes_v3(
    root: Path, info: dict[str, Any], features: dict[str, Feature], where: str
) -> tuple[list[Entry], dict[int, str]]:
    videos = [key for key, feature in features.items() if feature.dtype == "video"]
    columns = ["episode_index", "length", "tasks", "data/chunk_index", "data/file_index",
               "dataset_from_index", "dataset_to_index"]
    for key in videos:
        columns += [f"videos/{key}/{part}"
                    for part in ("chunk_index", "file_index", "from_timestamp")]
    with refusing(f"{where}: meta/episodes"):
        files = sorted(p.relative_to(root).as_posix()
                       for p in (root / "meta" / "episodes").glob("*/*.parquet"))
    if not files:
        raise InvalidInputError(f"{where}: meta/episodes holds no parquet file")
    rows = [row for name in files for row in table_rows(inside(root, name, where), columns, where)]
    if len(rows) > MAX_EPISODES:
        raise InvalidInputError(f"{where} lists {len(rows)} episodes, limit {MAX_EPISODES}")
    rows.sort(key=lambda row: whole(row.get("episode_index"), "episode_index", where))
    first_of: dict[tuple[int, int], int] = {}
    for row in rows:
        file = tuple(whole(row.get(f"data/{part}_index"), f"data/{part}_index", where)
                     for part in ("chunk", "file"))
        first = whole(row.get("dataset_from_index"), "dataset_from_index", where)
        first_of[file[0], file[1]] = min(first, first_of.get((file[0], file[1]), first))
    paths: dict[tuple[Any, ...], Path] = {}
    entries = [_entry_v3(root, info, row, first_of, videos, paths, where) for row in rows]
    return entries, _tasks_v3(root, where)


def _entry_v3(
    root: Path, info: dict[str, Any], row: dict[str, Any], first_of: dict[tuple[int, int], int],
    videos: list[str], paths: dict[tuple[Any, ...], Path], where: str,
) -> Entry:
    number = whole(row["episode_index"], "episode_index", where)
    what = f"{where}, episode {number}"
    length = whole(row.get("length"), "length", what)
    first = whole(row["dataset_from_index"], "dataset_from_index", what)
    end = whole(row.get("dataset_to_index", first + length), "dataset_to_index", what)
    if not 0 < length <= _MAX_ROWS or end - first != length:
        raise InvalidInputError(f"{what} has length {length} and rows {first} to {end}")

    def path(template: Any, prefix: str, **values: str) -> Path:
        numbers: dict[str, int | str] = {
            part: whole(row.get(f"{prefix}/{part}"), f"{prefix}/{part}", what)
            for part in ("chunk_index", "file_index")}
        key = (prefix, *numbers.values())
        if key not in paths:
            paths[key] = inside(root, expand(template, {**numbers, **values}, where), where)
        return paths[key]

    seen = {}
    for key in videos:
        begin = row.get(f"videos/{key}/from_timestamp")
        if not isinstance(begin, float) or not 0 <= begin < 1e9:
            raise InvalidInputError(f"{what}: the video of {key} begins at {begin!r}")
        seen[key] = (path(info.get("video_path"), f"videos/{key}", video_key=key), begin)
    tasks = row.get("tasks")
    texts = tuple(t for t in tasks if isinstance(t, str)) if isinstance(tasks, list) else ()
    file = (row["data/chunk_index"], row["data/file_index"])
    return Entry(number, length, path(info.get("data_path"), "data"), first - first_of[file],
                 texts, seen)


def _tasks_v3(root: Path, where: str) -> dict[int, str]:
    if not (root / "meta" / "tasks.parquet").exists():
        return {}
    rows = table_rows(inside(root, "meta/tasks.parquet", where), None, where)
    tasks = {}
    for row in rows:
        text = next((value for key, value in row.items()
                     if key != "task_index" and isinstance(value, str)), None)
        if text is not None:
            tasks[whole(row.get("task_index"), "task_index", where)] = text
    return tasks


def whole(value: Any, name: str, where: str) -> int:
    """Raises InvalidInputError if ``value`` is not a whole number from 0 on."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 48:
        raise InvalidInputError(f"{where}: {name} is {str(value)[:50]!r}, should be 0 or more")
    return value


# -- version 2 ----------------------------------------------------------------------------------


def _episodes_v2(
    root: Path, info: dict[str, Any], features: dict[str, Feature], where: str
) -> tuple[list[Entry], dict[int, str]]:
    videos = [key for key, feature in features.items() if feature.dtype == "video"]
    tasks = {}
    for row in _lines(root, "meta/tasks.jsonl", where):
        if isinstance(row.get("task"), str):
            tasks[whole(row.get("task_index"), "task_index", where)] = row["task"]
    size = whole(info.get("chunks_size", 1000), "chunks_size", where)
    if size == 0:
        raise InvalidInputError(f"{where}: chunks_size is 0")
    entries = []
    for row in _lines(root, "meta/episodes.jsonl", where):
        number = whole(row.get("episode_index"), "episode_index", where)
        length = whole(row.get("length"), "length", where)
        if not 0 < length <= _MAX_ROWS:
            raise InvalidInputError(f"{where}, episode {number} has length {length}")
        place: dict[str, int | str] = {
            "episode_chunk": number // size, "episode_index": number}
        seen = {key: (inside(root, expand(info.get("video_path"), {**place, "video_key": key},
                                          where), where), 0.0)
                for key in videos}
        listed = row.get("tasks")
        texts = tuple(t for t in listed if isinstance(t, str)) if isinstance(listed, list) else ()
        data = inside(root, expand(info.get("data_path"), place, where), where)
        entries.append(Entry(number, length, data, 0, texts, seen))
    entries.sort(key=lambda entry: entry.number)
    return entries, tasks


def _lines(root: Path, name: str, where: str) -> Iterator[dict[str, Any]]:
    content = read_small(inside(root, name, where), where)
    for i, line in enumerate(content.splitlines()):
        if i >= MAX_EPISODES:
            raise InvalidInputError(f"{where}: {name} has over {MAX_EPISODES} lines")
        if line.strip():
            row = parse_json(line, f"{where}: {name}, line {i + 1}")
            if not isinstance(row, dict):
                raise InvalidInputError(f"{where}: {name}, line {i + 1} is not an object")
            yield row
