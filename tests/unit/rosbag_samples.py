"""Bags that the tests write, and how they are read."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from rosbags import rosbag1, rosbag2
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from robot_rl.data.importers.base import ImportOptions
from robot_rl.data.importers.rosbag import open_source

START = 1_767_225_600 * 10**9
JOINTS = ["j1", "j2", "j3"]


class BagMaker:
    """Writes a bag with the public writer; ``at`` is seconds after ``START``."""

    def __init__(self, path: Path, kind: str = "mcap", types: dict[str, str] | None = None) -> None:
        self.ros1 = kind == "ros1"
        self.store = get_typestore(Stores.ROS1_NOETIC if self.ros1 else Stores.ROS2_HUMBLE)
        for name, text in (types or {}).items():
            self.store.register(get_types_from_msg(text, name))
        if self.ros1:
            self.writer = rosbag1.Writer(path)
        else:
            plugin = rosbag2.StoragePlugin[{"mcap": "MCAP", "sqlite": "SQLITE3"}[kind]]
            self.writer = rosbag2.Writer(path, version=8, storage_plugin=plugin)
        self.connections: dict[str, Any] = {}
        self.pending: list[tuple[int, str, str, Any]] = []

    def new(self, kind: str, **values: Any) -> Any:
        return self.store.types[kind](**values)

    def header(self, at: float) -> Any:
        stamp = START + round(at * 1e9)
        time_ = self.new("builtin_interfaces/msg/Time", sec=stamp // 10**9, nanosec=stamp % 10**9)
        more = {"seq": 0} if self.ros1 else {}
        return self.new("std_msgs/msg/Header", stamp=time_, frame_id="f", **more)

    def add(self, at: float, topic: str, kind: str, *, measured: float | None = None,
            **values: Any) -> None:
        if measured is not None:
            values["header"] = self.header(measured)
        self.pending.append((START + round(at * 1e9), topic, kind, self.new(kind, **values)))

    def joints(self, at: float, position: Any, measured: float | None = None,
               names: list[str] | None = None, topic: str = "/joint_states") -> None:
        position = np.asarray(position, float)
        self.add(at, topic, "sensor_msgs/msg/JointState",
                 measured=at if measured is None else measured,
                 name=names or JOINTS[: len(position)], position=position,
                 velocity=np.zeros(0), effort=np.zeros(0))

    def image(self, at: float, frame: Any, measured: float | None = None, encoding: str = "rgb8",
              pad: int = 0, topic: str = "/camera/image_raw") -> None:
        height, width = frame.shape[:2]
        rows = frame.reshape(height, -1)
        padded = np.concatenate([rows, np.full((height, pad), 255, np.uint8)], axis=1)
        self.add(at, topic, "sensor_msgs/msg/Image", measured=at if measured is None else measured,
                 height=height, width=width, encoding=encoding, is_bigendian=0,
                 step=padded.shape[1], data=padded.reshape(-1))

    def command(self, at: float, values: Any, topic: str = "/command") -> None:
        layout = self.new("std_msgs/msg/MultiArrayLayout", dim=[], data_offset=0)
        self.add(at, topic, "std_msgs/msg/Float64MultiArray", layout=layout,
                 data=np.asarray(values, float))

    def flag(self, at: float, topic: str, value: bool) -> None:
        self.add(at, topic, "std_msgs/msg/Bool", data=value)

    def done(self, order: bool = True) -> Path:
        if order:
            self.pending.sort(key=lambda entry: entry[0])
        with self.writer as writer:
            for stamp, topic, kind, message in self.pending:
                if topic not in self.connections:
                    self.connections[topic] = writer.add_connection(
                        topic, kind, typestore=self.store)
                data = (self.store.serialize_ros1(message, kind) if self.ros1
                        else self.store.serialize_cdr(message, kind))
                writer.write(self.connections[topic], stamp, data)
        return Path(writer.path)


def arm_bag(path: Path, kind: str = "mcap", seconds: float = 3.0, seed: int = 0) -> (
    tuple[Path, SimpleNamespace]
):
    """Joint states at 100 Hz, a 30 Hz camera that loses frames and has late ones, commands."""
    rng = np.random.default_rng(seed)
    bag = BagMaker(path, kind)
    joints, frames, commands = [], [], []
    for k in range(round(seconds * 100) + 1):
        if rng.random() < 0.03:
            continue  # lost
        at, position = k * 0.01 + rng.uniform(-0.002, 0.002), rng.normal(size=3)
        bag.joints(at + 0.001, position, measured=at)
        joints.append((at, at + 0.001, position))
    for k in range(round(seconds * 30) + 1):
        if k and rng.random() < 0.15:
            continue  # lost
        at = k / 30.0
        received = at + 0.01 + (rng.uniform(0.05, 0.3) if rng.random() < 0.15 else 0.0)
        frame = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        bag.image(received, frame, measured=at)
        frames.append((at, received, frame))
    for k in range(round(seconds * 10) + 1):
        at = k * 0.1 + rng.uniform(0.0, 0.05)
        commands.append((at, at, rng.normal(size=2)))
        bag.command(at, commands[-1][2])
    return bag.done(), SimpleNamespace(joints=joints, frames=frames, commands=commands)


ARM_MAP: dict[str, Any] = {
    "observation.state": [{"topic": "/joint_states", "field": "position"}],
    "action": "/command",
    "images": {"front": "/camera/image_raw"},
}


def read(path: Path, mapping: dict[str, Any], rate: float = 10.0, task: str = "") -> Any:
    source = open_source(path, ImportOptions(rate_hz=rate, mapping=mapping, task=task))
    try:
        episodes = list(source)
        return SimpleNamespace(episodes=episodes, notes=source.notes, info=source.info,
                               skipped=source.skipped, first=episodes[0] if episodes else None)
    finally:
        source.close()


def ns(at: float) -> int:
    return START + round(at * 1e9)


def small_bag(path: Path, kind: str = "mcap") -> Path:
    bag = BagMaker(path, kind)
    for k in range(201):
        bag.joints(k * 0.01, [k, 10 * k, -k], names=["j2", "gripper", "j1"])
    for k in range(21):
        bag.command(k * 0.1 + 0.02, [k, -k])
        bag.command(k * 0.1 + 0.07, [k + 0.5, 9])
        bag.add(k * 0.1, "/reward", "std_msgs/msg/Float32", data=float(k))
        bag.add(k * 0.1 + 0.01, "/hit", "std_msgs/msg/Empty" if k < 0 else "std_msgs/msg/Bool",
                data=k == 7)
        bag.add(k * 0.1 + 0.03, "/hit", "std_msgs/msg/Bool", data=False)
    return bag.done()


SMALL: dict[str, Any] = {
    "observation.state": {"topic": "/joint_states", "field": "position", "names": ["j1", "j2"]},
    "action": "/command",
}
