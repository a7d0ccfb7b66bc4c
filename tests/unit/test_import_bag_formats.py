"""ROS bags of every kind, of whatever images and types, and mistakes in their mappings."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from robot_rl.data.importers import import_dataset
from robot_rl.data.importers.mapping import parse_mapping
from robot_rl.errors import InvalidInputError

pytest.importorskip("rosbags")
from rosbags import rosbag1, rosbag2
from rosbags.typesys import Stores, get_typestore

from tests.unit.rosbag_samples import SMALL, BagMaker, read, small_bag

ROOT = Path(__file__).resolve().parents[2]
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
