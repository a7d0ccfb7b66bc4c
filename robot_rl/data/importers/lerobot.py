"""LeRobotDataset v3.0, v2.1 and v2.0, read one episode at a time with pyarrow and PyAV.

What :func:`robot_rl.data.exporters.lerobot.export` wrote is read back as it was. Of others:

- features of the same name become our keys, ``observation.state`` (failing that, all
  one-dimensional ``observation.*`` side by side in alphabetical order) the observation;
- images and videos become cameras, the task's text ``metadata["instruction"]``;
- ``next.done`` counts as ``terminated``, where there is ``next.success`` only with it;
- every other numeric feature is kept as an extra array under its own name;
- the last frame has an action but no next state: it is a step only if it ended the task (see
  :mod:`robot_rl.data.importers.arrays`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robot_rl.data.episodes import (
    CORE_KEYS,
    IMAGES,
    OBSERVATION,
    REQUESTED,
    SUCCESS,
    TERMINATED,
    TRUNCATED,
    Episode,
    Images,
)
from robot_rl.data.importers.arrays import (
    ArraySource,
    Columns,
    Mapping,
    Notes,
    assemble,
    check_bytes,
    info_from,
    inside,
    need,
    parse_json,
    rate_of,
    read_small_json,
    refusing,
)
from robot_rl.data.importers.base import EpisodeSource, ImportOptions
from robot_rl.data.importers.lerobot_layout import (
    INDICES,
    Entry,
    Feature,
    Layout,
    read_layout,
)
from robot_rl.data.importers.minari import check_parquet, own_episode, rebuilt
from robot_rl.data.importers.video import VideoReader, decode_image
from robot_rl.errors import InvalidInputError

# What the exporter writes beside LeRobot's own, and reads back to the bit.
OWN_INFO = "meta/robot_rl/info.json"
OWN_EPISODES = "meta/robot_rl/episodes-{number:03d}.parquet"
OWN_FORMAT, OWN_PER_FILE = 1, 1000
REQUESTED_FEATURE = "requested_action"
_DONE = "next.done"


def open_source(source: Path, options: ImportOptions) -> EpisodeSource:
    """A LeRobotDataset folder as a source; the mapping names features.

    Raises:
        InvalidInputError: it is no such folder, is damaged, or reaches out of itself.
    """
    layout = read_layout(source)
    notes = Notes()
    for key in layout.skipped:
        notes.add(f"left out: {key}, which holds no numbers")
    rate = rate_of(options.rate_hz, layout.fps, layout.where)
    if (source / OWN_INFO).is_file() and not options.mapping:
        own = read_small_json(inside(source, OWN_INFO, layout.where), layout.where)
        if isinstance(own, dict) and own.get("episodes") == len(layout.episodes) and (
            own.get("frames") == sum(entry.length for entry in layout.episodes)
        ):
            return _open_own(layout, own, options, notes)
        notes.add("changed since robot_rl exported it: read as any other LeRobotDataset")
    mapping = Mapping.parse(options.mapping)
    reader = _Reader(layout, set(mapping.drop) | {"index", "frame_index", "episode_index"})

    def read() -> Iterator[Episode | None]:
        for entry in layout.episodes:
            yield _episode(reader.read(entry), entry, layout, mapping, notes)

    return ArraySource(
        layout.where, read, notes, count=len(layout.episodes), close=reader.close,
        task=options.task, rate_hz=rate, robot=layout.robot, config={"source": source.name})


def _episode(
    columns: Columns, entry: Entry, layout: Layout, mapping: Mapping, notes: Notes
) -> Episode | None:
    where = f"{layout.where}, episode {entry.number}"
    metadata: dict[str, Any] = {"source": layout.root.name, "episode_index": entry.number}
    tasks = columns.pop("task_index", np.zeros(0, np.int64))
    texts = [layout.tasks[i] for i in dict.fromkeys(tasks.ravel().tolist()) if i in layout.tasks]
    texts = texts or list(entry.tasks)
    if texts:
        metadata["instruction"] = texts[0]
    if len(texts) > 1:
        metadata["instructions"] = texts
        notes.count("the task changes on the way: the first is the instruction")
    done = columns.pop(_DONE, None)
    if done is not None and TERMINATED not in columns:
        done = done != 0
        success = columns[SUCCESS] != 0 if SUCCESS in columns else np.ones_like(done)
        columns[TERMINATED] = done & success
        columns.setdefault(TRUNCATED, done & ~success)
    defaults = {key: key for key in CORE_KEYS} | {REQUESTED_FEATURE: REQUESTED}
    for key in columns:
        if key in layout.features and layout.features[key].visual:
            defaults[key] = key if key.startswith(IMAGES) else f"{IMAGES}{_camera(key)}"
    if OBSERVATION not in columns and OBSERVATION not in mapping.parts:
        names = sorted(key for key, array in columns.items() if key.startswith("observation.")
                       and key not in defaults and array.ndim <= 2)
        if names:
            mapping = Mapping(mapping.parts | Mapping.parse({OBSERVATION: names}).parts,
                              mapping.drop)
    values, extra = mapping.apply(columns, defaults, where)
    return assemble(values, extra, where, notes, metadata)


def _camera(key: str) -> str:
    return key.removeprefix("observation.").removeprefix("image.") or "camera"


class _Reader:
    """Reads the columns of episodes, forwards through each file as far as possible."""

    def __init__(self, layout: Layout, drop: set[str]) -> None:
        self._layout = layout
        self._features = {key: f for key, f in layout.features.items() if key not in drop}
        self._rows = _Rows(layout)
        self._videos: dict[str, tuple[Path, VideoReader]] = {}

    def read(self, entry: Entry) -> Columns:
        """The columns of one episode by feature, frames (N, H, W, C) uint8."""
        where = f"{self._layout.where}, episode {entry.number}"
        size = sum(f.row_bytes for f in self._features.values())
        check_bytes(size * entry.length, where)
        stored = {k: f for k, f in self._layout.features.items()
                  if f.dtype != "video" and (k in self._features or k in INDICES)}
        columns = self._rows.read(entry, stored, where)
        self._check(columns, entry, where)
        for key, feature in self._features.items():
            if feature.dtype == "video":
                columns[key] = self._frames(key, feature, entry, columns, where)
        return {key: array for key, array in columns.items() if key in self._features}

    def _check(self, columns: Columns, entry: Entry, where: str) -> None:
        for key, expected in (("episode_index", np.full(entry.length, entry.number)),
                              ("frame_index", np.arange(entry.length))):
            if key in columns and not np.array_equal(columns[key].ravel(), expected):
                raise InvalidInputError(
                    f"{where}: {key} is not that of {entry.length} rows from "
                    f"{entry.first_row} of {entry.data} on")

    def _frames(
        self, key: str, feature: Feature, entry: Entry, columns: Columns, where: str
    ) -> NDArray[np.uint8]:
        path, begin_s = entry.videos[key]
        size = (feature.shape[0], feature.shape[1])
        if key not in self._videos or self._videos[key][0] != path:
            if key in self._videos:
                self._videos.pop(key)[1].close()
            self._videos[key] = (path, VideoReader(path, f"{where}: {path}", size))
        stamps = columns.get("timestamp")
        times = (np.arange(entry.length) / self._layout.fps if stamps is None
                 else stamps.ravel().astype(np.float64))
        frames = self._videos[key][1].at(begin_s + times, 0.5 / self._layout.fps + 1e-3)
        return frames[..., :1] if feature.shape[2] == 1 else frames

    def close(self) -> None:
        self._rows.close()
        while self._videos:
            self._videos.popitem()[1][1].close()


class _Rows:
    """Takes the rows of episodes from parquet files in batches."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._pq = need("pyarrow.parquet", "lerobot")
        self._file: Any = None
        self._path: Path | None = None
        self._position = 0
        self._batches: Iterator[Any] = iter(())
        self._left: Any = None

    def read(self, entry: Entry, features: dict[str, Feature], where: str) -> Columns:
        """The ``features`` of an episode as arrays.

        Raises:
            InvalidInputError: a column lacks, rows lack, or a row is not as declared.
        """
        with refusing(f"{where}: {entry.data}"):
            if entry.data != self._path or entry.first_row < self._position:
                self._open(entry.data, features, where)
            self._skip(entry.first_row - self._position)
            parts: dict[str, list[NDArray[Any]]] = {key: [] for key in features}
            wanted = entry.length
            while wanted:
                batch = self._take(wanted)
                for key, feature in features.items():
                    parts[key].append(self._array(batch.column(key), feature, where))
                wanted -= batch.num_rows
            return {key: np.concatenate(pieces) for key, pieces in parts.items()}

    def _open(self, path: Path, features: dict[str, Feature], where: str) -> None:
        self.close()
        self._file = self._pq.ParquetFile(path)
        self._path, self._position, self._left = path, 0, None
        check_parquet(self._file, f"{where}: {path}")
        missing = [key for key in features if key not in self._file.schema_arrow.names]
        if missing:
            raise InvalidInputError(f"{where}: {path} has no column {', '.join(missing)}")
        size = 16 if any(f.visual for f in features.values()) else 1024
        self._batches = self._file.iter_batches(batch_size=size, columns=list(features))

    def _skip(self, count: int) -> None:
        while count:
            count -= self._take(count).num_rows

    def _take(self, count: int) -> Any:
        batch = self._left
        if batch is None:
            batch = next(self._batches, None)
            if batch is None:
                raise InvalidInputError(
                    f"{self._layout.where}: {self._path} ends after {self._position} rows")
            batch.validate(full=True)
        self._left = batch.slice(count) if batch.num_rows > count else None
        taken = batch.slice(0, count)
        self._position += taken.num_rows
        return taken

    def _array(self, column: Any, feature: Feature, where: str) -> NDArray[Any]:
        what = f"{where}: {feature.key}"
        if feature.visual:
            return self._images(column, feature, what)
        array, rows = column, len(column)
        pa = need("pyarrow", "lerobot")
        while pa.types.is_list(array.type) or pa.types.is_large_list(array.type) or (
            pa.types.is_fixed_size_list(array.type)
        ):
            if array.null_count:
                raise InvalidInputError(f"{what} lacks values")
            array = array.flatten()
        if array.null_count:
            raise InvalidInputError(f"{what} lacks values")
        values = array.to_numpy(zero_copy_only=False)
        shape = () if feature.shape == (1,) else feature.shape
        if values.dtype.kind not in "fiub" or values.size != rows * int(np.prod(shape)):
            raise InvalidInputError(
                f"{what} has {values.size} values of {values.dtype} in {rows} rows, should have "
                f"{feature.dtype} of shape {shape}")
        return np.asarray(values.reshape(rows, *shape))

    def _images(self, column: Any, feature: Feature, what: str) -> NDArray[np.uint8]:
        height, width, channels = feature.shape
        frames = np.empty((len(column), height, width, 1 if channels == 1 else 3), np.uint8)
        for i, item in enumerate(column.to_pylist()):
            content = item.get("bytes") if isinstance(item, dict) else item
            if content is None and isinstance(item, dict) and isinstance(item.get("path"), str):
                file = inside(self._layout.root, item["path"], what)
                check_bytes(file.stat().st_size, what)
                content = file.read_bytes()
            if not isinstance(content, bytes):
                raise InvalidInputError(f"{what} has a row without an image")
            frame = decode_image(content, f"{what}, image {i}", (height, width))
            if frame.shape[2] != frames.shape[3]:
                raise InvalidInputError(
                    f"{what}, image {i} has {frame.shape[2]} channels, should have {channels}")
            frames[i] = frame
        return frames

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file = self._path = None


# -- what the exporter wrote --------------------------------------------------------------------


def _open_own(
    layout: Layout, own: dict[str, Any], options: ImportOptions, notes: Notes
) -> EpisodeSource:
    where = f"{layout.where}: {OWN_INFO}"
    if own.get("format") != OWN_FORMAT:
        raise InvalidInputError(
            f"{where}: format {own.get('format')!r}, this version reads {OWN_FORMAT}")
    info = info_from(own.get("info"), where)
    info.task = options.task or info.task
    info.rate_hz = rate_of(options.rate_hz, info.rate_hz, where)
    fields, cameras = own.get("fields"), own.get("cameras")
    if not isinstance(fields, dict) or not isinstance(cameras, dict):
        raise InvalidInputError(f"{where} lacks fields or cameras")
    if own.get("video"):
        notes.add("the frames went through a video: near what was recorded, not the same")
    reader, side = _Reader(layout, {_DONE, "timestamp", *INDICES}), _Side(layout)

    def read() -> Iterator[Episode]:
        for entry in layout.episodes:
            name = f"{layout.where}, episode {entry.number}"
            columns, beside = reader.read(entry), side.read(entry.number)
            with refusing(name):
                episode = _own_episode(columns, beside, own, name)
            yield episode

    def close() -> None:
        reader.close()
        side.close()

    return ArraySource(layout.where, read, notes, count=len(layout.episodes), info=info,
                       close=close)


class _Side:
    """Reads what lies beside: one row group for each episode."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._number = -1
        self._file: Any = None

    def read(self, number: int) -> dict[str, Any]:
        """The row of one episode."""
        where = f"{self._layout.where}, episode {number}"
        pq = need("pyarrow.parquet", "lerobot")
        if self._number != number // OWN_PER_FILE:
            self.close()
            self._number = number // OWN_PER_FILE
            path = inside(self._layout.root, OWN_EPISODES.format(number=self._number), where)
            with refusing(f"{where}: {path}"):
                self._file = pq.ParquetFile(path)
                check_parquet(self._file, f"{where}: {path}")
        with refusing(f"{where}: {OWN_EPISODES.format(number=self._number)}"):
            table = self._file.read_row_group(number % OWN_PER_FILE)
            table.validate(full=True)
            rows = table.to_pylist()
        if len(rows) != 1 or rows[0].get("episode_index") != number:
            raise InvalidInputError(f"{where}: what lies beside is of another episode")
        return dict(rows[0])

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file, self._number = None, -1


def _own_episode(
    columns: Columns, side: dict[str, Any], own: dict[str, Any], where: str
) -> Episode:
    values = _packed(side["arrays"], where)
    last = _packed(side["last"], where)
    for key, raw in own["fields"].items():
        array = columns[raw["feature"]]
        array = array.reshape(len(array), *raw["shape"])
        if str(array.dtype) != raw["dtype"]:
            raise InvalidInputError(f"{where}: {key} is {array.dtype}, should be {raw['dtype']}")
        if raw["rows"] == "state":
            array = np.concatenate([array, last[key]])
        values[key] = array[0] if raw["rows"] == "episode" else array
    images = {}
    for item in side["images"]:
        seen = columns[own["cameras"][item["camera"]]]
        index, stamps = (np.array(item[name]) for name in ("index", "stamp_s"))
        index = index.astype(np.int64)
        shape = seen.shape[1:3]
        what = f"{where}: camera {item['camera']}"
        check_bytes(len(item["rest"]) * int(np.prod(seen.shape[1:])), what)
        rest = [decode_image(png, what, (shape[0], shape[1])) for png in item["rest"]]
        if rest and rest[0].shape[2] == 1:
            seen = seen[..., :1]
        found = rebuilt(seen, index[:-1], stamps.astype(np.float64),
                        np.array(rest, np.uint8).reshape(len(rest), *seen.shape[1:]),
                        np.array(item["rest_at"], np.int64))
        images[item["camera"]] = Images(found.frames, index, found.stamp_s)
    return own_episode(values, images, parse_json(side["metadata"], where), where)


def _packed(items: Any, where: str) -> Columns:
    """Arrays that were stored as bytes."""
    found: Columns = {}
    for item in items:
        dtype = np.dtype(item["dtype"])
        if dtype.kind not in "fiub" or dtype.itemsize > 8:
            raise InvalidInputError(f"{where}: {item['key']} is of {dtype}")
        found[item["key"]] = np.frombuffer(bytearray(item["data"]), dtype).reshape(item["shape"])
    return found
