"""ROS bags as episodes: checked against brute force and against what was recorded."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml

from robot_rl.data.importers import import_dataset
from robot_rl.data.importers.base import ImportOptions
from robot_rl.data.importers.mapping import parse_mapping
from robot_rl.data.importers.rosbag import open_source
from robot_rl.errors import InvalidInputError

pytest.importorskip("rosbags")
from rosbags import rosbag1, rosbag2
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

ROOT = Path(__file__).resolve().parents[2]
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


def newest(messages: list[Any], tick: int, clock: int) -> Any:
    """By brute force: the message of the latest stamp at or before the tick."""
    past = [m for m in messages if ns(m[clock]) <= tick]
    return max(past, key=lambda m: ns(m[clock])) if past else None


@pytest.mark.parametrize("clock", ["header", "received"])
@pytest.mark.parametrize("kind", ["mcap", "sqlite", "ros1"])
def test_what_each_tick_sees_agrees_with_brute_force(tmp_path, kind, clock):
    name = "arm.bag" if kind == "ros1" else "arm"
    path, said = arm_bag(tmp_path / name, kind)
    got = read(path, {**ARM_MAP, "clock": clock})
    episode, which = got.first, 0 if clock == "header" else 1
    first = max(ns(m[0][which]) for m in (said.joints, said.frames))
    assert ns(said.commands[0][1]) < first + 10**8, "the test should not need trimming"
    ticks = [first + k * 10**8 for k in range(len(episode) + 1)]
    np.testing.assert_array_equal(episode.stamp_s, np.array(ticks) / 1e9)
    assert len(episode) >= 28
    images = episode.images["front"]
    for k, tick in enumerate(ticks):
        joint, frame = newest(said.joints, tick, which), newest(said.frames, tick, which)
        np.testing.assert_array_equal(episode.observation[k], joint[2].astype(np.float32))
        np.testing.assert_array_equal(images.at(np.array(k)), frame[2])
        assert episode.stamps_s["observation.state"][k] == ns(joint[which]) / 1e9
        assert episode.stamps_s["observation.images.front"][k] == ns(frame[which]) / 1e9
        assert images.stamp_s[images.index[k]] == ns(frame[which]) / 1e9
        if k < len(episode):
            inside = [m for m in said.commands if tick <= ns(m[1]) < tick + 10**8]
            command = inside[0] if inside else newest(said.commands, tick, 1)
            np.testing.assert_array_equal(episode.action[k], command[2].astype(np.float32))
    assert len(images.frames) == len(np.unique(images.index)), "a frame is stored that no tick saw"
    assert episode.truncated[-1] and not episode.terminated.any()
    assert got.info.rate_hz == 10.0 and got.info.cameras == {"front": (6, 8, 3)}
    if kind != "ros1" and clock == "header":
        assert any("out of order" in note for note in got.notes)


def test_late_and_held_ticks_are_counted_by_brute_force(tmp_path):
    path, _ = arm_bag(tmp_path / "arm", seed=3)
    mapping = {**ARM_MAP, "images": {"front": {"topic": "/camera/image_raw", "max_age_s": 0.02}}}
    episode = read(path, mapping).first
    ages = episode.stamp_s - episode.stamps_s["observation.images.front"]
    late = int((np.round(ages, 6) > 0.02).sum())
    assert 0 < late < len(ages)
    assert episode.metadata["late_ticks"] == {"/camera/image_raw": late}


def gap_bag(path: Path) -> Path:
    """The camera falls silent between 1 s and 2 s of 3 s."""
    bag = BagMaker(path)
    for k in range(301):
        bag.joints(k * 0.01, [k, 0.0, 0.0])
    for k in range(31):
        bag.command(k * 0.1, [k, k])
        if not 10 < k < 20:
            bag.image(k * 0.1, np.full((4, 4, 3), k, np.uint8))
    return bag.done()


@pytest.mark.parametrize(
    ("policy", "lengths"),
    [("hold", [30]), ("drop_step", [12, 10]), ("skip_episode", []), ("error", None)],
)
def test_policies_for_what_is_missing(tmp_path, policy, lengths):
    path = gap_bag(tmp_path / "bag")
    camera = {"topic": "/camera/image_raw", "max_age_s": 0.25, "on_missing": policy}
    mapping = {**ARM_MAP, "images": {"front": camera}}
    if lengths in (None, []):
        with pytest.raises(InvalidInputError, match=r"late at|no episode"):
            read(path, mapping)
        return
    got = read(path, mapping)
    # A frame counts until it is 0.25 s old: ticks 13 to 19 have none.
    assert [len(e) for e in got.episodes] == lengths
    assert any(f"7 ticks late ({policy})" in note for note in got.notes)
    last = got.episodes[-1]
    assert last.observation[-1, 0] == 300 and last.truncated[-1]
    if policy == "drop_step":
        assert got.episodes[0].truncated[-1] and last.observation[0, 0] == 200


def test_a_lost_tick_in_the_middle_does_not_join_two_states(tmp_path):
    got = read(gap_bag(tmp_path / "bag"), {
        **ARM_MAP, "on_missing": "drop_step",
        "images": {"front": {"topic": "/camera/image_raw", "max_age_s": 0.25}}})
    for episode in got.episodes:
        assert (np.diff(episode.observation[:, 0]) == 10).all()


def marked_bag(path: Path, kind: str) -> Path:
    bag = BagMaker(path)
    for k in range(601):
        bag.joints(k * 0.01, [k])
    for k in range(61):
        bag.command(k * 0.1, [k])
    for number, (a, b) in enumerate([(0.5, 1.5), (3.0, 4.2)]):
        if kind == "bool":
            bag.flag(a, "/episode", True)
            bag.flag(a + 0.3, "/episode", True)  # said again: not another episode
            bag.flag(b, "/episode", False)
        elif kind == "number":
            bag.add(a, "/episode", "std_msgs/msg/Int32", data=number + 5)
            bag.add(a + 0.2, "/episode", "std_msgs/msg/Int32", data=number + 5)
        elif kind == "text":
            bag.add(a, "/episode", "std_msgs/msg/String", data="go")
            bag.add(b, "/episode", "std_msgs/msg/String", data="stop")
        else:
            bag.add(a, "/episode", "std_msgs/msg/Empty", structure_needs_at_least_one_member=0)
            bag.add(b, "/stop", "std_msgs/msg/Empty", structure_needs_at_least_one_member=0)
    return bag.done()


@pytest.mark.parametrize(
    ("kind", "episodes", "bounds"),
    [
        ("bool", {"start": "/episode", "stop": "/episode"}, [(50, 150), (300, 420)]),
        ("number", {"start": "/episode"}, [(50, 290), (300, 600)]),
        ("text", {"start": {"topic": "/episode", "equals": "go"},
                  "stop": {"topic": "/episode", "equals": "stop"}}, [(50, 150), (300, 420)]),
        ("empty", {"start": "/episode", "stop": "/stop"}, [(50, 150), (300, 420)]),
    ],
)
def test_markers_of_episodes(tmp_path, kind, episodes, bounds):
    path = marked_bag(tmp_path / "bag", kind)
    got = read(path, {"observation.state": {"topic": "/joint_states", "field": "position"},
                      "action": "/command", "episodes": episodes})
    assert [(e.observation[0, 0], e.observation[-1, 0]) for e in got.episodes] == bounds


def test_episodes_between_gaps(tmp_path):
    bag = BagMaker(tmp_path / "bag")
    for k in [*range(100), *range(300, 500)]:
        bag.joints(k * 0.01, [k])
    for k in range(50):
        bag.command(k * 0.1, [k])
    got = read(bag.done(), {"observation.state": {"topic": "/joint_states", "field": "position"},
                            "action": "/command", "episodes": {"gap_s": 1.0}})
    assert [(e.observation[0, 0], e.observation[-1, 0]) for e in got.episodes] == [
        (0, 90), (300, 490)]


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


def test_joints_are_picked_and_ordered_by_name(tmp_path):
    episode = read(small_bag(tmp_path / "bag"), SMALL).first
    np.testing.assert_array_equal(episode.observation[:3], [[0, 0], [-10, 10], [-20, 20]])


def test_entries_slices_scale_and_offset(tmp_path):
    state = [
        {"topic": "/joint_states", "field": "position", "entries": [2, 0], "scale": 0.5},
        {"topic": "/joint_states", "field": "position", "slice": [1, 2], "offset": 3,
         "scale": [0.1]},
        {"topic": "/joint_states", "field": "position[1]"},
        {"topic": "/joint_states", "field": "header.stamp.nanosec"},
    ]
    episode = read(small_bag(tmp_path / "bag"), {**SMALL, "observation.state": state}).first
    np.testing.assert_allclose(episode.observation[2], [-10, 10, 23, 200, 2e8])


def test_commands_first_or_last_and_limits(tmp_path):
    path = small_bag(tmp_path / "bag")
    first = read(path, SMALL).first
    np.testing.assert_array_equal(first.action[:3], [[0, 0], [1, -1], [2, -2]])
    last = read(path, {**SMALL, "action": {"topic": "/command", "choose": "last"}}).first
    np.testing.assert_array_equal(last.action[:3], [[0.5, 9], [1.5, 9], [2.5, 9]])
    got = read(path, {**SMALL, "action": {"topic": "/command", "low": [0, -10], "high": [10, 0]}})
    np.testing.assert_allclose(got.first.action[:3], [[-1, 1], [-0.8, 0.8], [-0.6, 0.6]],
                               atol=1e-6)
    assert got.first.action.max() == 1.0
    assert any("9 steps clipped" in note for note in got.notes)


def test_actions_from_the_state(tmp_path):
    path = small_bag(tmp_path / "bag")
    following = read(path, {**SMALL, "action": {"from": "next", "entries": [1]}}).first
    np.testing.assert_array_equal(following.action, following.observation[1:, 1:])
    moved = read(path, {**SMALL, "action": {"from": "difference"}}).first
    np.testing.assert_array_equal(moved.action, np.diff(moved.observation, axis=0))
    scaled = read(path, {**SMALL, "action": {"from": "difference", "low": -20, "high": 20}}).first
    np.testing.assert_allclose(scaled.action, np.diff(moved.observation, axis=0) / 20)


def test_rewards_and_flags_come_with_the_state_they_led_to(tmp_path):
    path = small_bag(tmp_path / "bag")
    base = {**SMALL, "reward": "/reward", "success": {"topic": "/hit", "reduce": "any"}}
    episode = read(path, base).first
    np.testing.assert_array_equal(episode.reward, np.arange(1.0, 21.0))
    # /hit was true at 0.71 s, in the step from 0.7 s to 0.8 s, and false again at 0.73 s.
    assert np.flatnonzero(episode.success).tolist() == [7]
    assert not read(path, {**base, "success": "/hit"}).first.success.any()
    summed = read(path, {**base, "reward": {"topic": "/reward", "reduce": "sum"}}).first
    np.testing.assert_array_equal(summed.reward, np.arange(1.0, 21.0))
    ended = read(path, {**base, "terminated": "success"}).first
    assert len(ended) == 8 and ended.terminated[-1] and not ended.truncated.any()
    bare = read(path, {**SMALL, "success": {"topic": "/hit", "reduce": "any"}}).first
    np.testing.assert_array_equal(bare.reward, bare.success - 1.0)
    none = read(path, SMALL)
    assert not none.first.reward.any()
    assert any("reward: 20 steps without any" in note for note in none.notes)


def test_goals(tmp_path):
    bag = BagMaker(tmp_path / "bag")
    for k in range(101):
        bag.joints(k * 0.01, [k / 100, 0.5, 7.0])
    for k in range(11):
        bag.command(k * 0.1, [k])
    bag.add(0.35, "/goal", "geometry_msgs/msg/Point", x=0.8, y=0.5, z=0.0)
    path = bag.done()
    mapping = {
        "observation.state": {"topic": "/joint_states", "field": "position"},
        "action": "/command",
        "goal": {"achieved": {"entries": [0, 1]},
                 "desired": {"topic": "/goal", "field": "x"}, "threshold_m": 0.15},
    }
    with pytest.raises(InvalidInputError, match="desired has 1 numbers, achieved has 2"):
        read(path, mapping)
    mapping["goal"]["desired"] = [{"topic": "/goal", "field": "x"}, {"topic": "/goal",
                                                                    "field": "y"}]
    got = read(path, mapping)
    np.testing.assert_allclose(got.first.desired, [0.8, 0.5], atol=1e-7)
    np.testing.assert_array_equal(got.first.reward, [-1.0] * 6 + [0.0] * 3 + [-1.0])
    np.testing.assert_array_equal(got.first.success, got.first.reward == 0)
    assert got.info.config["goal_threshold"] == 0.15 and got.info.goal_dim == 2
    final = read(path, {**mapping, "goal": {**mapping["goal"], "desired": "final"}}).first
    np.testing.assert_array_equal(final.desired, final.achieved[-1])


def test_interpolation_and_ticks_at_commands(tmp_path):
    path = small_bag(tmp_path / "bag")
    state = {"topic": "/joint_states", "field": "position", "entries": [0],
             "interpolate": "linear"}
    other = read(path, {**SMALL, "observation.state": state}, rate=30.0).first
    np.testing.assert_allclose(other.observation[:, 0], np.arange(len(other) + 1) * 100 / 30,
                               atol=1e-4)
    by_command = read(path, {**SMALL, "ticks": "/command"}, rate=0.0).first
    np.testing.assert_allclose(by_command.stamp_s[:4] - START / 1e9, [0.02, 0.07, 0.12, 0.17],
                               atol=1e-6)
    aligned = read(path, {**SMALL, "align": "/command"}).first
    np.testing.assert_allclose(aligned.stamp_s[:2] - START / 1e9, [0.02, 0.12], atol=1e-6)
    np.testing.assert_array_equal(aligned.action[:, 0], np.arange(len(aligned)))


def test_repeats_are_dropped_and_messages_sorted(tmp_path):
    bag = BagMaker(tmp_path / "bag")
    for k in range(101):
        bag.joints(k * 0.01, [k])
        if k % 10 == 0:
            bag.joints(k * 0.01, [k])
    bag.joints(0.9, [-1.0], measured=0.355)
    bag.joints(0.95, [np.nan])
    for k in range(11):
        bag.command(k * 0.1, [k])
    got = read(bag.done(), {"observation.state": {"topic": "/joint_states", "field": "position"},
                            "action": "/command"}, rate=100.0)
    assert got.first.observation[35:38, 0].tolist() == [35, 36, 37]
    notes = " ".join(got.notes)
    for text in ("11 messages came twice", "1 messages came out of order",
                 "1 messages with values that are not finite"):
        assert text in notes


ENCODINGS = {
    "rgb8": lambda f: f,
    "bgr8": lambda f: f[..., ::-1],
    "rgba8": lambda f: np.concatenate([f, f[..., :1]], axis=2),
    "bgra8": lambda f: np.concatenate([f[..., ::-1], f[..., :1]], axis=2),
    "mono8": lambda f: f[..., :1],
}


@pytest.mark.parametrize("kind", ["mcap", "ros1"])
@pytest.mark.parametrize("encoding", list(ENCODINGS))
def test_raw_encodings_and_padded_rows(tmp_path, encoding, kind):
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (11, 6, 5, 3), dtype=np.uint8)
    bag = BagMaker(tmp_path / ("b.bag" if kind == "ros1" else "b"), kind)
    for k, frame in enumerate(frames):
        bag.image(k * 0.1, ENCODINGS[encoding](frame), encoding=encoding, pad=3)
        bag.command(k * 0.1, [k])
    mapping = {"action": "/command",
               "images": {"c": {"topic": "/camera/image_raw", "crop": [1, 2, 4, 3]}}}
    episode = read(bag.done(), mapping).first
    channels = slice(0, 1) if encoding == "mono8" else slice(None)
    np.testing.assert_array_equal(episode.images["c"].frames, frames[:, 1:5, 2:5, channels])
    assert episode.observation.shape == (11, 0)


@pytest.mark.parametrize("codec", [".png", ".jpg"])
def test_compressed_frames(tmp_path, codec):
    cv2 = pytest.importorskip("cv2")
    rng = np.random.default_rng(0)
    frames = np.repeat(rng.integers(0, 256, (11, 2, 2, 3), dtype=np.uint8), 16, axis=1)
    frames = np.repeat(frames, 16, axis=2)
    bag, expected = BagMaker(tmp_path / "bag"), []
    for k, frame in enumerate(frames):
        data = cv2.imencode(codec, np.ascontiguousarray(frame[..., ::-1]))[1].reshape(-1)
        expected.append(cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1])
        bag.add(k * 0.1, "/c/compressed", "sensor_msgs/msg/CompressedImage", measured=k * 0.1,
                format=codec[1:], data=data)
        bag.command(k * 0.1, [k])
    path = bag.done()
    mapping = {"action": "/command", "images": {"c": "/c/compressed"}}
    got = read(path, mapping).first.images["c"].frames
    np.testing.assert_array_equal(got, expected)
    # Inside the blocks JPEG changes little.
    inside = np.abs(got[:, 8::16, 8::16].astype(int) - frames[:, 8::16, 8::16])
    assert inside.max() <= (0 if codec == ".png" else 8)
    mapping = {"action": "/command", "images": {"c": {"topic": "/c/compressed", "size": [8, 4]}}}
    assert read(path, mapping).first.images["c"].frames.shape == (11, 8, 4, 3)


def test_bayer_frames(tmp_path):
    pytest.importorskip("cv2")
    colour = np.zeros((8, 8, 3), np.uint8)
    colour[...] = (200, 100, 50)
    mosaic = np.zeros((8, 8), np.uint8)
    mosaic[0::2, 0::2], mosaic[1::2, 1::2] = 200, 50
    mosaic[0::2, 1::2] = mosaic[1::2, 0::2] = 100
    bag = BagMaker(tmp_path / "bag")
    for k in range(3):
        bag.image(k * 0.1, mosaic[..., None], encoding="bayer_rggb8")
        bag.command(k * 0.1, [k])
    frames = read(bag.done(), {"action": "/command",
                               "images": {"c": "/camera/image_raw"}}).first.images["c"].frames
    np.testing.assert_array_equal(frames, np.broadcast_to(colour, (3, 8, 8, 3)))


@pytest.mark.parametrize("kind", ["mcap", "sqlite", "ros1"])
def test_types_that_only_the_bag_knows(tmp_path, kind):
    types = {"my_msgs/msg/Inner": "float32[3] force\nbool class\n",
             "my_msgs/msg/Outer": "std_msgs/Header header\nmy_msgs/Inner[] parts\nint16 n\n"}
    bag = BagMaker(tmp_path / ("b.bag" if kind == "ros1" else "b"), kind, types)
    for k in range(21):
        inner = [bag.new("my_msgs/msg/Inner", force=np.full(3, k + i, np.float32), class_=True)
                 for i in range(2)]
        bag.add(k * 0.05, "/custom", "my_msgs/msg/Outer", measured=k * 0.05, parts=inner, n=-k)
    episode = read(bag.done(), {
        "observation.state": [{"topic": "/custom", "field": "parts[1].force"},
                              {"topic": "/custom", "field": "n"},
                              {"topic": "/custom", "field": "parts[0].class"}],
        "action": {"topic": "/custom", "field": "parts[0]"}}).first
    np.testing.assert_array_equal(episode.observation[3], [7, 7, 7, -6, 1])
    np.testing.assert_array_equal(episode.action[3], [6, 6, 6, 1])


def test_a_whole_message_gives_all_its_numbers_but_the_header(tmp_path):
    bag = BagMaker(tmp_path / "bag")
    for k in range(11):
        point = bag.new("geometry_msgs/msg/Point", x=1.0 * k, y=2.0, z=3.0)
        turn = bag.new("geometry_msgs/msg/Quaternion", x=0.0, y=0.0, z=0.0, w=1.0)
        pose = bag.new("geometry_msgs/msg/Pose", position=point, orientation=turn)
        bag.add(k * 0.1, "/pose", "geometry_msgs/msg/PoseStamped", measured=k * 0.1, pose=pose)
        bag.command(k * 0.1, [k])
    episode = read(bag.done(), {"observation.state": {"topic": "/pose", "field": "pose"},
                                "action": "/command"}).first
    np.testing.assert_array_equal(episode.observation[4], [4, 2, 3, 0, 0, 0, 1])


def test_single_files_and_folders_without_metadata(tmp_path):
    for kind, suffix in (("mcap", "mcap"), ("sqlite", "db3")):
        folder = small_bag(tmp_path / kind, kind)
        whole = read(folder, SMALL).first
        alone = read(folder / f"{kind}.{suffix}", SMALL).first
        (folder / "metadata.yaml").unlink()
        bare = read(folder, SMALL)
        for other in (alone, bare.first):
            np.testing.assert_array_equal(other.observation, whole.observation)
        assert any("no metadata.yaml" in note for note in bare.notes)


def test_what_a_cut_off_recording_holds_is_read(tmp_path):
    bag = BagMaker(tmp_path / "bag")
    rng = np.random.default_rng(0)
    for k in range(3001):
        bag.joints(k * 0.01, rng.normal(size=200), names=[f"j{i}" for i in range(200)])
    for k in range(301):
        bag.command(k * 0.1, [k])
    folder = bag.done()
    mapping = {"observation.state": {"topic": "/joint_states", "field": "position"},
               "action": "/command"}
    whole = read(folder, mapping).first
    file = folder / "bag.mcap"
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * 0.6)])
    cut = read(folder, mapping)
    assert 100 < len(cut.first) < 200
    np.testing.assert_array_equal(cut.first.observation, whole.observation[: len(cut.first) + 1])
    assert any("was cut off" in note for note in cut.notes)


def test_a_bag_in_several_files_and_compressed(tmp_path):
    folder = small_bag(tmp_path / "one")
    whole = read(folder, SMALL).first
    packed = tmp_path / "packed"
    store = get_typestore(Stores.ROS2_HUMBLE)
    for mode in ("MESSAGE", "FILE", "STORAGE"):
        plugin = rosbag2.StoragePlugin["MCAP" if mode == "STORAGE" else "SQLITE3"]
        writer = rosbag2.Writer(packed, version=8, storage_plugin=plugin)
        writer.set_compression(rosbag2.CompressionMode[mode], rosbag2.CompressionFormat.ZSTD)
        with writer, rosbag2.Reader(folder) as reader:
            added = {c.id: writer.add_connection(c.topic, c.msgtype, typestore=store)
                     for c in reader.connections}
            for connection, stamp, data in reader.messages():
                writer.write(added[connection.id], stamp, data)
        np.testing.assert_array_equal(read(packed, SMALL).first.observation, whole.observation)
        shutil.rmtree(packed)
    two = BagMaker(tmp_path / "two")
    for k in range(201, 401):
        two.joints(k * 0.01, [k, 10 * k, -k], names=["j2", "gripper", "j1"])
    shutil.copy(two.done() / "two.mcap", folder / "two.mcap")
    metadata = yaml.safe_load((folder / "metadata.yaml").read_text())
    metadata["rosbag2_bagfile_information"]["relative_file_paths"].append("two.mcap")
    (folder / "metadata.yaml").write_text(yaml.safe_dump(metadata))
    assert read(folder, SMALL).first.observation[-1].tolist() == [-400, 400]


@pytest.mark.parametrize("how", ["BZ2", "LZ4"])
def test_compressed_bags_of_ros1(tmp_path, how):
    whole = small_bag(tmp_path / "a.bag", "ros1")
    store = get_typestore(Stores.ROS1_NOETIC)
    writer = rosbag1.Writer(tmp_path / "b.bag")
    writer.set_compression(rosbag1.Writer.CompressionFormat[how])
    with writer, rosbag1.Reader(whole) as reader:
        added = {c.id: writer.add_connection(c.topic, c.msgtype, typestore=store)
                 for c in reader.connections}
        for connection, stamp, data in reader.messages():
            writer.write(added[connection.id], stamp, data)
    np.testing.assert_array_equal(read(tmp_path / "b.bag", SMALL).first.observation,
                                  read(whole, SMALL).first.observation)


def test_a_bag_of_ros1_without_its_index(tmp_path):
    path = small_bag(tmp_path / "a.bag", "ros1")
    whole = read(path, SMALL).first
    data = bytearray(path.read_bytes())
    with rosbag1.Reader(path) as reader:
        end = reader.chunk_infos[0].pos
        at = data.index(b"index_pos=") + len(b"index_pos=")
    index = int.from_bytes(data[at : at + 8], "little")
    data[at : at + 8] = bytes(8)
    assert 0 < end < index
    path.write_bytes(data[:index])
    with pytest.raises(rosbag1.ReaderError):
        rosbag1.Reader(path).open()
    np.testing.assert_array_equal(read(path, SMALL).first.observation, whole.observation)


BAD_MAPS: list[tuple[Any, str]] = [
    ({"observation.state": "/joint_states", "action": "/command"}, "say which field"),
    ({**SMALL, "observation.stat": "/x"}, "did you mean 'observation.state'"),
    ({**SMALL, "action": "/comand"}, r"did you mean /command\?.*Float64MultiArray"),
    ({**SMALL, "action": {"topic": "/command", "feild": "data"}}, "did you mean 'field'"),
    ({**SMALL, "action": {"topic": "/command", "field": "dat"}}, "did you mean 'data'"),
    ({**SMALL, "action": {"topic": "/command", "field": "layout"}}, "layout"),
    ({**SMALL, "action": {"topic": "/joint_states", "field": "name"}}, r"string\[\].*numbers"),
    ({**SMALL, "action": {"topic": "/joint_states", "field": "position.x"}}, "goes on after"),
    ({**SMALL, "action": {"topic": "/joint_states", "field": "header[2]"}}, "not a list"),
    ({**SMALL, "action": {"topic": "/joint_states", "field": "position[7]"}}, r"\[7\]"),
    ({**SMALL, "action": {"topic": "/command", "entries": [5]}}, "entry 5"),
    ({**SMALL, "action": {"topic": "/command", "low": [1], "high": [0]}}, "low"),
    ({**SMALL, "action": {"topic": "/command", "low": [0, 0, 0], "high": [1, 1, 1]}}, "has 2"),
    ({**SMALL, "observation.state": {"topic": "/joint_states", "field": "position",
                                     "names": ["j1", "elbow"]}}, "no elbow; it has j2"),
    ({**SMALL, "observation.state": {"topic": "/joint_states", "field": "position",
                                     "names": ["wrist"]}}, "no message .* has wrist"),
    ({**SMALL, "observation.state": {"topic": "/command", "names": ["a"]}}, "list of names"),
    ({**SMALL, "observation.state": [{"topic": "/command"}, "/command"]}, "takes the same"),
    ({**SMALL, "images": {"front": "/command"}}, "should be a sensor_msgs Image"),
    ({**SMALL, "images": {"../x": "/command"}}, "camera is called"),
    ({**SMALL, "clock": "wall"}, "valid: header, received"),
    ({**SMALL, "on_missing": "pray"}, "valid: hold, drop_step"),
    ({**SMALL, "rate_hz": "fast"}, "rate_hz is 'fast'"),
    ({**SMALL, "reward": "/reward", "goal": {"achieved": {"entries": [0]}, "threshold_m": 1}},
     "not both"),
    ({**SMALL, "goal": {"achieved": {"entries": [9]}}}, "entry 9 of a state that has 2"),
    ({**SMALL, "goal": {"desired": "final"}}, "achieved is missing"),
    ({**SMALL, "extra": {"action": "/command"}}, "meaning of its own"),
    ({**SMALL, "episodes": {"stop": "/hit"}}, "stop needs a start"),
    ({**SMALL, "episodes": {"start": "/hit", "gap_s": 1}}, "either start"),
    ({**SMALL, "episodes": {"start": {"topic": "/hit", "equals": "x"}}}, "holds numbers"),
    ({"action": "/command"}, "both missing"),
    ({"observation.state": "/x"}, "action is missing"),
    ({**SMALL, "action": []}, "one topic or a list"),
    ({**SMALL, "action": 3}, "should be keys"),
    ([1, 2], "should be keys with values"),
]


@pytest.mark.parametrize(("mapping", "message"), BAD_MAPS)
def test_mistakes_in_a_mapping_teach(tmp_path_factory, mapping, message):
    folder = tmp_path_factory.getbasetemp() / "taught"
    if not folder.exists():
        small_bag(folder)
    with pytest.raises(InvalidInputError, match=message):
        read(folder, mapping)


def test_a_bag_wants_a_mapping_and_a_rate(tmp_path):
    path = small_bag(tmp_path / "bag")
    with pytest.raises(InvalidInputError, match="--map"):
        read(path, {})
    with pytest.raises(InvalidInputError, match="--rate"):
        read(path, SMALL, rate=0.0)


# -- the example ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bag that the README records, two episodes of it."""
    pytest.importorskip("mujoco")
    folder = tmp_path_factory.mktemp("example") / "push_bag"
    spec = importlib.util.spec_from_file_location("record_bag", ROOT / "examples/record_bag.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.main(["--out", str(folder), "--episodes", "2", "--quiet", "--lost", "0.2"]) == 0
    return folder


def test_the_example_reads_as_what_the_environment_saw(example):
    from robot_rl.envs.factory import make_env
    from robot_rl.envs.scripted import ScriptedPolicy

    mapping = yaml.safe_load((ROOT / "examples/maps/push_bag.yaml").read_text())
    got = read(example, mapping)
    assert len(got.episodes) == 2 and got.info.task == "Push" and got.info.robot == "sawyer"
    env = make_env("Push", "sawyer", "mujoco", image_size=64)
    policy = ScriptedPolicy(env, 0.8, 0)
    observation, _ = env.reset(seed=0)
    policy.reset()
    episode = got.first
    assert len(episode) == env.max_episode_steps
    for k in range(len(episode)):
        np.testing.assert_allclose(episode.observation[k], observation["observation"], atol=1e-6)
        np.testing.assert_allclose(episode.achieved[k], observation["achieved_goal"], atol=1e-6)
        observation, reward, _, _, info = env.step(policy.act())
        np.testing.assert_allclose(episode.action[k], info["executed_action"], atol=1e-5)
        assert episode.reward[k] == reward and episode.success[k] == info["is_success"]
    np.testing.assert_allclose(episode.desired, observation["desired_goal"], atol=1e-6)
    env.close()
    assert episode.images["front"].frames.shape[1:] == (48, 48, 3)
    assert episode.extra["observation.joint_position"].shape == (51, 7)


def test_iql_pretrains_on_it(example, tmp_path):
    from robot_rl.training.offline import PretrainConfig, pretrain

    result = import_dataset("rosbag2", example, tmp_path / "data", rate_hz=10,
                            mapping=ROOT / "examples/maps/push_bag.yaml")
    assert result["episodes"] == 2 and result["steps"] == 100
    trained = pretrain(
        PretrainConfig(agent="iql", data=str(tmp_path / "data"), steps=20,
                       out=str(tmp_path / "run")),
        agent_overrides={"batch_size": 32, "hidden_dims": (16,)}, quiet=True)
    assert trained["steps"] == 20 and Path(trained["checkpoint"]).exists()


def test_every_map_in_examples_is_a_mapping():
    maps = sorted((ROOT / "examples/maps").glob("*.yaml"))
    assert maps
    for file in maps:
        parse_mapping(yaml.safe_load(file.read_text()), str(file))
