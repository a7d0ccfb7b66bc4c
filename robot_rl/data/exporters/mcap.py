"""A dataset as a ROS 2 bag: MCAP, standard messages only, and the mapping that reads it back.

Every state and step is a message at its tick; results of a step (reward, success and so on) come
with the state that they led to. Frames are sensor_msgs/Image, each once. ``map.yaml`` beside the
bag turns it into the same episodes again, number by number.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from robot_rl.data.episodes import (
    ACHIEVED,
    ACTION,
    DESIRED,
    IMAGES,
    INTERVENTION,
    OBSERVATION,
    RATE,
    REQUESTED,
    RESET,
    REWARD,
    SUCCESS,
    TERMINATED,
    TRUNCATED,
    DatasetInfo,
    Episode,
)
from robot_rl.data.files import new_folder, sync_folder
from robot_rl.data.importers.base import check_apart, clear_stale
from robot_rl.data.importers.recorded import make_record
from robot_rl.errors import InvalidInputError, MissingDependencyError

EPISODE_TOPIC = "/robot_rl/episode"
END_TOPIC = "/robot_rl/episode_end"
TICK_TOPIC = "/robot_rl/tick"
MAP_NAME = "map.yaml"
# Array type: the message that carries it without loss, and the type of that message's numbers.
_CARRIERS = {
    "float16": ("Float32MultiArray", "float32"),
    "float32": ("Float32MultiArray", "float32"),
    "float64": ("Float64MultiArray", "float64"),
    "bool": ("UInt8MultiArray", "uint8"),
    **{f"{sign}int{bits}": (f"{sign.upper()}Int{bits}MultiArray", f"{sign}int{bits}")
       for sign in ("", "u") for bits in (8, 16, 32, 64)},
}


def export(
    log: Any, dest: Path, *, overwrite: bool = False, quiet: bool = True
) -> dict[str, Any]:
    """Write a log into the new bag folder ``dest``, whole or not at all.

    Args:
        log: what :func:`robot_rl.data.open_log` gives: ``info``, and episodes when iterated.

    Returns:
        ``path``, ``episodes``, ``steps``, ``messages``, ``topics``, ``map``.

    Raises:
        InvalidInputError: ``dest`` is in use, or an array that no standard message carries.
        MissingDependencyError: rosbags is not installed.
    """
    dest = Path(dest)
    check_apart(getattr(log, "path", None), dest, "export")
    clear_stale(dest, "exporting")
    used = dest.exists() and (not dest.is_dir() or any(dest.iterdir()))
    if used and not overwrite:
        raise InvalidInputError(f"export: {dest} is already there and not empty; choose another, "
                                "or give --overwrite to set it aside")
    # The bag's file is named after its folder, so that gets its final name at once.
    outer = dest.parent / f".{dest.name}.{os.getpid()}.exporting"
    shutil.rmtree(outer, ignore_errors=True)
    try:
        outer.mkdir(parents=True)
        result = _write(log.info, iter(log), outer / dest.name)
        new_folder(dest, "export", overwrite=overwrite)
        os.rename(outer / dest.name, dest)
        sync_folder(dest.parent)
    except OSError as error:
        raise InvalidInputError(f"export: cannot write {dest}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(outer, ignore_errors=True)
    return {"path": str(dest), "map": str(dest / MAP_NAME), **result}


def _write(info: DatasetInfo, episodes: Iterator[Episode], folder: Path) -> dict[str, Any]:
    bag = _BagWriter(folder, info)
    count = steps = 0
    mapping: dict[str, Any] = {}
    try:
        for episode in episodes:
            episode.check(f"export: episode {count}")
            layout = _Layout.of(episode)
            if count == 0:
                first, mapping = layout, _mapping(info, layout)
            elif layout != first:
                raise InvalidInputError(
                    f"export: episode {count} has other keys or types than episode 0: "
                    f"{layout.difference(first)}"
                )
            bag.episode(episode, layout, count)
            count, steps = count + 1, steps + len(episode)
        if not count:
            raise InvalidInputError("export: the dataset holds no episodes")
        bag.close()
    except BaseException:
        bag.abort()
        raise
    text = "# Reads this bag back: robot-rl data import --from rosbag2 BAG --map map.yaml\n"
    text += yaml.safe_dump(mapping, sort_keys=False, allow_unicode=True)
    (folder / MAP_NAME).write_text(text, encoding="utf-8")
    for file in folder.iterdir():
        with open(file, "rb") as handle:
            os.fsync(handle.fileno())
    sync_folder(folder)
    return {"episodes": count, "steps": steps, "messages": bag.messages,
            "topics": sorted(bag.connections)}


@dataclass(frozen=True)
class _Array:
    """An array of an episode: the topic that carries its rows, and what a row is."""

    key: str
    topic: str
    dtype: str
    shape: tuple[int, ...]
    rows: str


@dataclass
class _Layout:
    """Which topics an episode has."""

    arrays: dict[str, _Array] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    cameras: dict[str, tuple[int, ...]] = field(default_factory=dict)
    goal_dim: int = 0

    @classmethod
    def of(cls, episode: Episode) -> _Layout:
        layout = cls(goal_dim=len(episode.desired))
        steps = len(episode)
        if episode.observation.shape[1]:
            layout.add(OBSERVATION, episode.observation, "states")
        if layout.goal_dim:
            layout.add(ACHIEVED, episode.achieved, "states")
            layout.add(DESIRED, episode.desired[None], "once")
        layout.add(ACTION, episode.action, "steps")
        if episode.requested is not None:
            layout.add(REQUESTED, episode.requested, "steps")
        layout.add(REWARD, episode.reward, "results")
        if episode.rate_hz is not None:
            layout.add(RATE, episode.rate_hz, "steps")
        for key, array in episode.extra.items():
            layout.add(key, array, "states" if len(array) == steps + 1 else "steps")
        layout.flags = tuple(
            key for key, value in ((INTERVENTION, episode.intervention), (RESET, episode.reset))
            if value is not None
        )
        layout.cameras = {k: v.frames.shape[1:] for k, v in episode.images.items()}
        return layout

    def add(self, key: str, array: NDArray[Any], rows: str) -> None:
        name = str(array.dtype.newbyteorder("="))
        if name not in _CARRIERS:
            raise InvalidInputError(f"export: {key} is {name}; a bag carries "
                                    f"{', '.join(_CARRIERS)}")
        topic = topic_name(key)
        if any(each.topic == topic for each in self.arrays.values()):
            topic += f"_{len(self.arrays)}"
        self.arrays[key] = _Array(key, topic, name, array.shape[1:], rows)

    def difference(self, other: _Layout) -> str:
        mine, theirs = asdict(self), asdict(other)
        return ", ".join(f"{k}: {theirs[k]} then {mine[k]}" for k in mine if mine[k] != theirs[k])


def topic_name(key: str) -> str:
    """The topic of a key, e.g. ``/observation/state``; characters that ROS has not become _."""
    parts = [re.sub(r"\W", "_", part, flags=re.ASCII) for part in re.split(r"[./]", key) if part]
    return "/" + "/".join(f"_{p}" if p[0].isdigit() else p for p in parts or ["_"])


def _mapping(info: DatasetInfo, layout: _Layout) -> dict[str, Any]:
    """The mapping that reads the bag back."""
    def source(key: str) -> dict[str, Any]:
        array = layout.arrays[key]
        return {"topic": array.topic, "field": "data"}

    # Where it was imported from, and how, is not said again each time that it travels.
    config = {k: v for k, v in info.config.items() if k not in ("source", "mapping")}
    mapping: dict[str, Any] = {
        "task": info.task,
        "rate_hz": float(info.rate_hz),
        "clock": "received",
        "ticks": TICK_TOPIC,
        "dataset": {k: v for k, v in (
            ("robot", info.robot), ("software", info.software), ("env", _plain(info.env)),
            ("config", _plain(config)), ("calibration", _plain(info.calibration)),
        ) if v},
        "episodes": {"start": {"topic": EPISODE_TOPIC, "equals": "any"},
                     "stop": {"topic": END_TOPIC, "equals": "any"},
                     "record": EPISODE_TOPIC},
    }
    for key in (OBSERVATION, ACTION, REQUESTED):
        if key in layout.arrays:
            mapping[key] = source(key)
    mapping["reward"] = source(REWARD)
    for key, name in ((SUCCESS, "success"), (TERMINATED, "terminated"), (TRUNCATED, "truncated")):
        mapping[name] = topic_name(key)
    for key, name in ((INTERVENTION, "intervention"), (RESET, "reset")):
        if key in layout.flags:
            mapping[name] = topic_name(key)
    if RATE in layout.arrays:
        mapping["control_rate_hz"] = source(RATE)
    if layout.goal_dim:
        mapping["goal"] = {"achieved": source(ACHIEVED), "desired": source(DESIRED)}
    extra = {
        key: {**source(key), "rows": array.rows, "dtype": array.dtype, "shape": list(array.shape)}
        for key, array in layout.arrays.items()
        if key not in (OBSERVATION, ACTION, REQUESTED, REWARD, RATE, ACHIEVED, DESIRED)
    }
    if extra:
        mapping["extra"] = extra
    if layout.cameras:
        mapping["images"] = {
            name: {"topic": topic_name(f"{IMAGES}{name}"), "frames": "all"}
            for name in layout.cameras
        }
    return mapping


def _plain(value: dict[str, Any]) -> Any:
    return json.loads(json.dumps(value, default=str))


class _BagWriter:
    """Writes messages of standard types, in the order of time."""

    def __init__(self, folder: Path, info: DatasetInfo) -> None:
        try:
            rosbag2 = importlib.import_module("rosbags.rosbag2")
            typesys = importlib.import_module("rosbags.typesys")
        except ImportError as error:
            raise MissingDependencyError(
                f"ROS bags need rosbags ({error}); install robot_rl[data]"
            ) from None
        self.store = typesys.get_typestore(typesys.Stores.ROS2_HUMBLE)
        self.writer = rosbag2.Writer(folder, version=8, storage_plugin=rosbag2.StoragePlugin.MCAP)
        self.writer.set_compression(rosbag2.CompressionMode.STORAGE,
                                    rosbag2.CompressionFormat.ZSTD)
        self.writer.set_custom_data("robot_rl.dataset", json.dumps(asdict(info), default=str))
        self.writer.open()
        self.connections: dict[str, Any] = {}
        self.messages = 0
        self.now_ns = 0
        self.period_ns = round(1e9 / info.rate_hz) if info.rate_hz > 0.0 else 100_000_000

    def close(self) -> None:
        self.writer.close()

    def abort(self) -> None:
        self.writer.abort()

    def put(self, topic: str, kind: str, message: Any, stamp_ns: int) -> None:
        if topic not in self.connections:
            self.connections[topic] = self.writer.add_connection(topic, kind, typestore=self.store)
        self.writer.write(self.connections[topic], stamp_ns,
                          self.store.serialize_cdr(message, kind))
        self.messages += 1

    def scalar(self, topic: str, kind: str, value: Any, stamp_ns: int) -> None:
        name = f"std_msgs/msg/{kind}"
        self.put(topic, name, self.store.types[name](data=value), stamp_ns)

    def row(self, array: _Array, value: NDArray[Any], stamp_ns: int) -> None:
        kind, number = _CARRIERS[array.dtype]
        types, name = self.store.types, f"std_msgs/msg/{kind}"
        sizes = array.shape or (1,)
        dim = types["std_msgs/msg/MultiArrayDimension"]
        strides = [int(np.prod(sizes[i:])) for i in range(len(sizes))]
        layout = types["std_msgs/msg/MultiArrayLayout"](
            dim=[dim(label=f"{array.key}.{i}" if i else array.key, size=int(n), stride=s)
                 for i, (n, s) in enumerate(zip(sizes, strides, strict=True))],
            data_offset=0,
        )
        data = np.ascontiguousarray(value, number).reshape(-1)
        self.put(array.topic, name, types[name](layout=layout, data=data), stamp_ns)

    def frame(self, topic: str, camera: str, image: NDArray[np.uint8], measured_ns: int,
              stamp_ns: int) -> None:
        types, name = self.store.types, "sensor_msgs/msg/Image"
        height, width, channels = image.shape
        stamp = types["builtin_interfaces/msg/Time"](
            sec=measured_ns // 10**9, nanosec=measured_ns % 10**9
        )
        header = types["std_msgs/msg/Header"](stamp=stamp, frame_id=camera)
        self.put(topic, name, types[name](
            header=header, height=height, width=width,
            encoding="rgb8" if channels == 3 else "mono8", is_bigendian=0, step=width * channels,
            data=np.ascontiguousarray(image).reshape(-1),
        ), stamp_ns)

    def episode(self, episode: Episode, layout: _Layout, number: int) -> None:
        """Write one episode behind those before it."""
        ticks = self._ticks(episode)
        self.now_ns = int(ticks[-1])
        start = int(ticks[0])
        record = json.dumps(make_record(episode, number), default=_refuse)
        self.scalar(EPISODE_TOPIC, "String", record, start)
        frames = {name: _FrameTimes(images.index, len(images.frames))
                  for name, images in episode.images.items()}
        arrays = self._arrays(episode, layout)
        flags = {SUCCESS: episode.success, TERMINATED: episode.terminated,
                 TRUNCATED: episode.truncated}
        doing = {INTERVENTION: episode.intervention, RESET: episode.reset}
        for k, tick in enumerate(ticks):
            now = int(tick)
            self.scalar(TICK_TOPIC, "Int64", k, now)
            for name, times in frames.items():
                for f in times.due(k):
                    images = episode.images[name]
                    self.frame(topic_name(f"{IMAGES}{name}"), name, images.frames[f],
                               _measured_ns(float(images.stamp_s[f]), now), now)
            for array, values in arrays:
                at = k - 1 if array.rows == "results" else k
                if 0 <= at < len(values):
                    self.row(array, values[at], now)
            for key, value in flags.items():
                if k:
                    self.scalar(topic_name(key), "Bool", bool(value[k - 1]), now)
            for key in layout.flags:
                value_or_none = doing[key]
                if k < len(episode) and value_or_none is not None:
                    self.scalar(topic_name(key), "Bool", bool(value_or_none[k]), now)
        self.scalar(END_TOPIC, "Int64", number, self.now_ns)

    def _arrays(self, episode: Episode, layout: _Layout) -> list[tuple[_Array, NDArray[Any]]]:
        found = {**episode.state_arrays(), **episode.step_arrays(), **episode.extra,
                 DESIRED: episode.desired[None]}
        return [(array, found[key]) for key, array in layout.arrays.items()]

    def _ticks(self, episode: Episode) -> NDArray[np.int64]:
        """When each state was: as recorded, where that lies behind what was written already;
        evenly from there on otherwise. The record has the episode's own stamps in any case."""
        count = len(episode) + 1
        if episode.stamp_s is not None and (np.abs(episode.stamp_s) < 2e9).all():
            ticks = np.rint(episode.stamp_s * 1e9).astype(np.int64)
            if ticks[0] > self.now_ns and (np.diff(ticks) > 0).all():
                return ticks
        return self.now_ns + 10**9 + np.arange(count, dtype=np.int64) * self.period_ns


class _FrameTimes:
    """At which state each frame is written: the first that saw it or a later one."""

    def __init__(self, index: NDArray[np.int64], count: int) -> None:
        reached = np.maximum.accumulate(index)
        at = np.searchsorted(reached, np.arange(count), side="left")
        self.at = np.minimum(at, len(index) - 1)

    def due(self, state: int) -> range:
        return range(int(np.searchsorted(self.at, state, side="left")),
                     int(np.searchsorted(self.at, state, side="right")))


def _measured_ns(stamp_s: float, otherwise_ns: int) -> int:
    return round(stamp_s * 1e9) if 0.0 <= stamp_s < 2**31 - 1 else otherwise_ns


def _refuse(value: Any) -> Any:
    raise InvalidInputError(f"export: the metadata holds {value!r}, which is not JSON")
