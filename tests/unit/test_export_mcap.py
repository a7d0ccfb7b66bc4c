"""Export to ROS 2 bags: every number comes back, and the tools of others read it."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from robot_rl.data import DatasetInfo, DatasetWriter, Episode, Images, load_dataset, open_log
from robot_rl.data.exporters import export_dataset
from robot_rl.data.exporters.mcap import MAP_NAME, export, topic_name
from robot_rl.data.importers import import_dataset
from robot_rl.data.importers.base import ImportOptions
from robot_rl.data.importers.rosbag import open_source
from robot_rl.errors import InvalidInputError

pytest.importorskip("rosbags")

EXTRA_TYPES = ["bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
               "float16", "float32", "float64"]


def numbers(rng: np.random.Generator, dtype: str, shape: tuple[int, ...]) -> Any:
    """Values of the whole range of the type."""
    kind = np.dtype(dtype)
    if kind.kind == "b":
        return rng.random(shape) < 0.5
    if kind.kind == "f":
        values = rng.normal(size=shape).astype(kind)
        values.reshape(-1)[:3] = [np.finfo(kind).max, np.finfo(kind).tiny, np.nan][: values.size]
        return values
    limits = np.iinfo(kind)
    return rng.integers(limits.min, limits.max, shape, dtype=kind, endpoint=True)


def rich(steps: int, seed: int, **changes: Any) -> Episode:
    """An episode with everything that one can have, all of it at random."""
    rng = np.random.default_rng(seed)

    def floats(*shape: int) -> Any:
        return rng.normal(size=shape).astype(np.float32)

    def flags() -> Any:
        return rng.random(steps) < 0.5

    frames = rng.integers(0, 256, (steps + 3, 5, 4, 3), dtype=np.uint8)
    grey = rng.integers(0, 256, (2, 3, 7, 1), dtype=np.uint8)
    extra: dict[str, Any] = {
        f"extra.{dtype}": numbers(rng, dtype, (steps + (i % 2), 3))
        for i, dtype in enumerate(EXTRA_TYPES)
    }
    extra |= {"scalar": rng.normal(size=steps), "grid/2d": rng.normal(size=(steps + 1, 2, 3)),
              "grid.2d": rng.normal(size=(steps, 1)), "0 odd-name!": np.arange(steps + 1)}
    values: dict[str, Any] = {
        "observation": floats(steps + 1, 5), "achieved": floats(steps + 1, 2),
        "desired": floats(2), "action": floats(steps, 3), "requested": floats(steps, 3),
        "reward": floats(steps), "terminated": flags(), "truncated": flags(), "success": flags(),
        "images": {
            "front": Images(frames, rng.integers(0, steps + 3, steps + 1),
                            rng.normal(size=steps + 3)),
            "wrist": Images(grey, np.minimum(np.arange(steps + 1), 1), np.array([math.pi, 1e18])),
        },
        "intervention": flags(), "reset": flags(), "rate_hz": floats(steps),
        "stamp_s": 1.7e9 + np.cumsum(rng.random(steps + 1)) / 7,
        "stamps_s": {"observation.images.front": rng.normal(size=steps + 1) * 1e-9,
                     "observation.state.x": np.full(steps + 1, 0.1 + 0.2)},
        "extra": extra,
        "metadata": {"instruction": "push – é", "n": [1, 0.1, None, True], "of": {"a": "b"}},
    }
    return Episode(**{**values, **changes})


class Log:
    """Episodes in memory, in the shape of what open_log gives."""

    def __init__(self, episodes: list[Episode], **info: Any) -> None:
        self.episodes = episodes
        self.info = DatasetInfo.of(episodes[0], **{"task": "Push", "rate_hz": 10.0, **info})

    def __len__(self) -> int:
        return len(self.episodes)

    def __iter__(self) -> Iterator[Episode]:
        return iter(self.episodes)


def back(folder: Path, rate: float = 0.0) -> tuple[DatasetInfo, list[Episode]]:
    mapping = yaml.safe_load((folder / MAP_NAME).read_text())
    source = open_source(folder, ImportOptions(mapping=mapping, rate_hz=rate))
    try:
        return source.info, list(source)
    finally:
        source.close()


def assert_same(a: Episode, b: Episode) -> None:
    """Equal to the bit, types included."""
    def same(x: Any, y: Any, where: str) -> None:
        if isinstance(x, np.ndarray):
            assert x.dtype == y.dtype and x.shape == y.shape, where
            assert x.tobytes() == y.tobytes(), where
        elif isinstance(x, Images):
            for name in ("frames", "index", "stamp_s"):
                same(getattr(x, name), getattr(y, name), f"{where}.{name}")
        elif isinstance(x, dict) and where != "metadata":
            assert x.keys() == y.keys(), where
            for key in x:
                same(x[key], y[key], f"{where}.{key}")
        else:
            assert x == y and type(x) is type(y), where

    for field in dataclasses.fields(Episode):
        same(getattr(a, field.name), getattr(b, field.name), field.name)


def test_every_number_comes_back(tmp_path):
    episodes = [rich(7, 0), rich(1, 1), rich(20, 2)]
    log = Log(episodes, robot="panda", env={"backend": "mujoco"}, calibration={"x": [1, 2]},
              config={"lr": 0.1}, software="1.2")
    result = export(log, tmp_path / "bag", quiet=True)
    assert json.loads(json.dumps(result)) == result
    assert (result["episodes"], result["steps"]) == (3, 28)
    info, found = back(tmp_path / "bag")
    for a, b in zip(episodes, found, strict=True):
        assert_same(a, b)
    for name in ("task", "robot", "env", "calibration", "software", "rate_hz", "cameras",
                 "observation_shape", "goal_dim", "action_dim"):
        assert getattr(info, name) == getattr(log.info, name), name
    assert info.config["lr"] == 0.1


@pytest.mark.parametrize("changes", [
    {"stamp_s": None, "stamps_s": {}, "images": {}, "extra": {}, "metadata": {}, "requested": None,
     "intervention": None, "reset": None, "rate_hz": None},
    {"achieved": np.zeros((6, 0), np.float32), "desired": np.zeros(0, np.float32)},
    {"observation": np.zeros((6, 0), np.float32)},
    {"stamp_s": np.arange(6) * 0.1},
    {"stamp_s": np.full(6, -3.5)},
    {"stamp_s": np.arange(6)[::-1] * 1e300},
    {"action": np.zeros((5, 0), np.float32), "requested": None},
    {"extra": {"empty": np.zeros((6, 0)), "deep": np.zeros((5, 2, 0, 3), np.int8)}},
    {"metadata": {"nan": float("inf")}},
])
def test_episodes_that_lack_things_or_have_odd_ones(tmp_path, changes):
    episodes = [rich(5, 0, **changes), rich(5, 3, **changes)]
    export(Log(episodes, rate_hz=0.0), tmp_path / "bag")
    for a, b in zip(episodes, back(tmp_path / "bag")[1], strict=True):
        assert_same(a, b)


def test_from_a_log_to_a_bag_and_back_to_a_log(tmp_path, dataset_of, episode):
    path = dataset_of(tmp_path / "data", [episode(4, 0), episode(6, 1, terminated=True)], "Push")
    result = export_dataset("mcap", path, tmp_path / "bag", quiet=True)
    assert result["episodes"] == 2
    again = import_dataset("rosbag2", tmp_path / "bag", tmp_path / "again", quiet=True,
                           mapping=tmp_path / "bag" / MAP_NAME)
    assert again["episodes"] == 2 and again["skipped"] == 0
    for a, b in zip(load_dataset(path)[1], load_dataset(tmp_path / "again")[1], strict=True):
        assert_same(a, b)
    info = load_dataset(tmp_path / "again")[0]
    export_dataset("mcap", tmp_path / "again", tmp_path / "twice")
    assert "mapping" not in yaml.safe_load((tmp_path / "twice" / MAP_NAME).read_text()).get(
        "dataset", {}).get("config", {})
    assert info.task == "Push"


def test_recorded_frames_and_their_stamps_survive_the_log(tmp_path):
    episodes = [rich(6, 0, extra={}), rich(4, 1, extra={})]
    for each in episodes:  # a log takes stamps that a ROS message can hold
        each.images["wrist"].stamp_s = np.array([1.7e9 + 1 / 3, 1.7e9 + 0.7])
    info = DatasetInfo.of(episodes[0], task="", rate_hz=10.0)
    with DatasetWriter(tmp_path / "data", info) as writer:
        for each in episodes:
            writer.append(each)
    export(open_log(tmp_path / "data"), tmp_path / "bag")
    for a, b in zip(load_dataset(tmp_path / "data")[1], back(tmp_path / "bag")[1], strict=True):
        assert_same(a, b)


def test_other_tools_read_it(tmp_path):
    episode = rich(5, 0)
    result = export(Log([episode]), tmp_path / "bag")
    from rosbags.highlevel import AnyReader

    with AnyReader([tmp_path / "bag"]) as reader:
        assert sorted({c.topic for c in reader.connections}) == result["topics"]
        assert reader.message_count == result["messages"]
        assert all(c.msgtype.split("/")[0] in ("std_msgs", "sensor_msgs")
                   for c in reader.connections)
        rows = [reader.deserialize(data, c.msgtype).data
                for c, _, data in reader.messages() if c.topic == "/observation/state"]
    np.testing.assert_array_equal(rows, episode.observation)
    mcap = pytest.importorskip("mcap.reader")
    decoder = pytest.importorskip("mcap_ros2.decoder")
    with open(tmp_path / "bag" / "bag.mcap", "rb") as file:
        reader = mcap.make_reader(file, decoder_factories=[decoder.DecoderFactory()])
        summary = reader.get_summary()
        assert summary.statistics.message_count == result["messages"]
        images = [m for _, _, _, m in reader.iter_decoded_messages(
            topics=["/observation/images/front"])]
        actions = [list(m.data) for _, _, _, m in reader.iter_decoded_messages(topics=["/action"])]
    np.testing.assert_array_equal(np.array(actions, np.float32), episode.action)
    frames = [np.frombuffer(bytes(m.data), np.uint8).reshape(m.height, m.width, 3) for m in images]
    np.testing.assert_array_equal(frames, episode.images["front"].frames)
    metadata = yaml.safe_load((tmp_path / "bag" / "metadata.yaml").read_text())
    assert metadata["rosbag2_bagfile_information"]["relative_file_paths"] == ["bag.mcap"]


def test_messages_come_in_the_order_of_time_and_at_recorded_stamps(tmp_path):
    from rosbags.highlevel import AnyReader

    episodes = [rich(5, k, stamp_s=100.0 * (k + 1) + np.arange(6) * 0.1) for k in range(3)]
    export(Log(episodes), tmp_path / "bag")
    with AnyReader([tmp_path / "bag"]) as reader:
        stamps = [stamp for _, stamp, _ in reader.messages()]
        ticks = [stamp for c, stamp, _ in reader.messages() if c.topic == "/robot_rl/tick"]
    assert stamps == sorted(stamps)
    assert ticks == [round(s * 1e9) for e in episodes for s in e.stamp_s]


def test_resampling_an_exported_bag(tmp_path):
    # What comes after a termination is only kept where the episode comes back as it was.
    episode = rich(20, 0, stamp_s=50.0 + np.arange(21) * 0.1, terminated=np.zeros(20, np.bool_))
    export(Log([episode]), tmp_path / "bag")
    assert_same(back(tmp_path / "bag", rate=10.0)[1][0], episode)
    mapping = yaml.safe_load((tmp_path / "bag" / MAP_NAME).read_text())
    source = open_source(tmp_path / "bag", ImportOptions(mapping=mapping, rate_hz=5.0))
    (slower,) = list(source)
    np.testing.assert_array_equal(slower.observation, episode.observation[::2])
    np.testing.assert_array_equal(slower.action, episode.action[::2])
    assert slower.metadata["instruction"] == episode.metadata["instruction"]


@pytest.mark.parametrize("rate", [10.0, 5.0, 3.0, 2.5])
def test_the_pauses_between_exported_episodes_are_no_steps(tmp_path, rate):
    calm = {"terminated": np.zeros(50, np.bool_), "extra": {}}
    episodes = [rich(50, k, stamp_s=100.0 * (k + 1) + np.arange(51) * 0.1, **calm)
                for k in range(3)]
    export(Log(episodes), tmp_path / "bag")
    found = back(tmp_path / "bag", rate=rate)[1]
    assert [len(e) for e in found] == [int(5 * rate)] * 3
    for a, b in zip(episodes, found, strict=True):
        at = np.floor(np.arange(len(b) + 1) * 10 / rate + 1e-6).astype(int)
        np.testing.assert_array_equal(b.observation, a.observation[at])


@pytest.mark.parametrize("kind", ["mcap", "lerobot", "minari"])
def test_an_export_does_not_go_into_its_source(tmp_path, kind, dataset_of, episode):
    pytest.importorskip({"mcap": "rosbags", "lerobot": "pyarrow", "minari": "minari"}[kind])
    source = Path(dataset_of(tmp_path / "a" / "data", [episode(4, 0)], "Push"))
    before = sorted(tmp_path.rglob("*"))
    (tmp_path / "link").symlink_to(source)
    for dest in (source / "out", source / "deep" / "out", tmp_path / "link" / "out", source,
                 source.parent):
        with pytest.raises(InvalidInputError, match=r"export: the destination .* the source"):
            export_dataset(kind, source, dest, overwrite=True, quiet=True)
    (tmp_path / "link").unlink()
    assert sorted(tmp_path.rglob("*")) == before
    beside = source.with_name("data2")
    assert export_dataset(kind, source, beside, quiet=True)["episodes"] == 1


@pytest.mark.parametrize(("kind", "suffix"), [("mcap", "exporting"), ("lerobot", "part"),
                                              ("minari", "part")])
def test_what_a_killed_export_left_is_cleared(tmp_path, kind, suffix, dataset_of, episode):
    pytest.importorskip({"mcap": "rosbags", "lerobot": "pyarrow", "minari": "minari"}[kind])
    source = dataset_of(tmp_path / "data", [episode(4, 0)], "Push")
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    stale = tmp_path / f".out.{dead.pid}.{suffix}"
    others = [tmp_path / f".out.{os.getppid()}.{suffix}", tmp_path / f".out.x.{suffix}",
              tmp_path / f".outer.{dead.pid}.{suffix}"]
    for folder in (stale, *others):
        (folder / "x").mkdir(parents=True)
    export_dataset(kind, source, tmp_path / "out", quiet=True)
    assert not stale.exists() and all(folder.exists() for folder in others)


def test_topics_have_names_that_ros_allows():
    assert topic_name("observation.state") == "/observation/state"
    assert topic_name("0 odd-name!") == "/_0_odd_name_"
    assert topic_name("a..b//c") == "/a/b/c" and topic_name("...") == "/_"


@pytest.mark.parametrize(
    ("episodes", "message"),
    [
        ([rich(3, 0, extra={"x": np.zeros(3, np.longdouble)})], "x is (float128|longdouble)"),
        ([rich(3, 0), rich(3, 1, requested=None)], "episode 1 has other keys"),
        ([rich(3, 0), rich(3, 1, extra={"x": np.zeros(3)})], "episode 1 has other keys"),
        ([rich(3, 0, metadata={"x": object()})], "not JSON"),
        ([rich(3, 0, reward=np.full(3, np.nan, np.float32))], "not finite"),
    ],
)
def test_what_cannot_be_exported_leaves_nothing(tmp_path, episodes, message):
    with pytest.raises(InvalidInputError, match=message):
        export(Log(episodes), tmp_path / "bag")
    assert list(tmp_path.iterdir()) == []


def test_a_destination_in_use_is_kept(tmp_path):
    log = Log([rich(3, 0)])
    export(log, tmp_path / "bag")
    before = (tmp_path / "bag" / "bag.mcap").read_bytes()
    with pytest.raises(InvalidInputError, match="--overwrite"):
        export(log, tmp_path / "bag")
    with pytest.raises(InvalidInputError, match="not JSON"):
        export(Log([rich(3, 0, metadata={"x": object()})]), tmp_path / "bag", overwrite=True)
    assert (tmp_path / "bag" / "bag.mcap").read_bytes() == before
    export(Log([rich(4, 5)]), tmp_path / "bag", overwrite=True)
    assert (tmp_path / "bag.old" / "bag.mcap").read_bytes() == before
    assert len(back(tmp_path / "bag")[1][0]) == 4
    (tmp_path / "empty").mkdir()
    export(log, tmp_path / "empty")
    with pytest.raises(InvalidInputError, match="did you mean 'mcap'"):
        export_dataset("mcup", tmp_path / "bag", tmp_path / "x")
