"""Where the episodes of a bag begin and end, and what a bag does not say or says wrongly."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from robot_rl.data.importers import import_dataset
from robot_rl.data.importers.base import ImportOptions
from robot_rl.data.importers.rosbag import open_source
from robot_rl.errors import InvalidInputError

pytest.importorskip("rosbags")
from rosbags import rosbag1, rosbag2
from rosbags.typesys import Stores, get_typestore

STORE = get_typestore(Stores.ROS2_HUMBLE)
START = 10**18
IMAGE = "sensor_msgs/msg/Image"
COMPRESSED = "sensor_msgs/msg/CompressedImage"
Said = tuple[float, str, str, dict[str, Any]]


def number(at: float, topic: str, value: float) -> Said:
    return at, topic, "std_msgs/msg/Float64", {"data": float(value)}


def flag(at: float, topic: str, value: bool) -> Said:
    return at, topic, "std_msgs/msg/Bool", {"data": value}


def text(at: float, topic: str, value: str) -> Said:
    return at, topic, "std_msgs/msg/String", {"data": value}


def header(at: float) -> Any:
    stamp = START + round(at * 1e9)
    time = STORE.types["builtin_interfaces/msg/Time"](sec=stamp // 10**9, nanosec=stamp % 10**9)
    return STORE.types["std_msgs/msg/Header"](stamp=time, frame_id="")


def image(at: float, value: int, measured: float | None = None, cut: int = 0) -> Said:
    data = np.full(48 - cut, value, np.uint8)
    return at, "/c", IMAGE, {
        "header": header(at if measured is None else measured), "height": 4, "width": 4,
        "encoding": "rgb8", "is_bigendian": 0, "step": 12, "data": data}


def write(path: Path, said: list[Said], compress: str = "") -> Path:
    writer = rosbag2.Writer(path, version=9, storage_plugin=rosbag2.StoragePlugin.MCAP)
    if compress:
        writer.set_compression(rosbag2.CompressionMode[compress],
                               rosbag2.CompressionFormat.ZSTD)
    with writer:
        known: dict[str, Any] = {}
        for at, topic, kind, values in sorted(said, key=lambda each: each[0]):
            if topic not in known:
                known[topic] = writer.add_connection(topic, kind, typestore=STORE)
            message = STORE.types[kind](**values)
            writer.write(known[topic], START + round(at * 1e9), STORE.serialize_cdr(message, kind))
    return path


def read(path: Path, mapping: dict[str, Any], rate: float = 10.0) -> SimpleNamespace:
    source = open_source(path, ImportOptions(rate_hz=rate, mapping=mapping))
    try:
        episodes = list(source)
        return SimpleNamespace(episodes=episodes, notes=source.notes, skipped=source.skipped)
    finally:
        source.close()


def plain(seconds: float = 2.0, commands: bool = True) -> list[Said]:
    """State 100 x seconds at 100 Hz, commands at 10 Hz that count the tenths."""
    said = [number(k * 0.01, "/x", k) for k in range(round(seconds * 100) + 1)]
    return said + [number(k * 0.1 + 1e-3, "/u", k) for k in range(round(seconds * 10))
                   if commands]


MAP: dict[str, Any] = {"observation.state": "/x", "action": "/u"}
SEEN: dict[str, Any] = {**MAP, "images": {"c": "/c"}}


# -- where episodes begin ---------------------------------------------------------------------


def two_episodes(marked: bool) -> list[Said]:
    """Two, a minute apart: camera from 5 ms, commands from 150 ms, a goal from 20 ms on."""
    said: list[Said] = []
    for e in range(2):
        begin = 60.0 * e + 1.0
        said += [number(begin + k * 0.01, "/x", 1000 * e + k) for k in range(101)]
        said += [image(begin + 0.005 + k / 30, 10 + 100 * e) for k in range(30)]
        said += [number(begin + 0.15 + k * 0.1, "/u", e + 0.5) for k in range(9)]
        said += [number(begin + 0.02, "/goal", 7 + e), text(begin + 0.02, "/word", f"go {e}")]
        if marked:
            said += [flag(begin - 0.2, "/rec", True), flag(begin + 1.0, "/rec", False)]
    return said


@pytest.mark.parametrize("policy", ["hold", "drop_step", "skip_episode", "error"])
@pytest.mark.parametrize("marked", [True, False])
def test_nothing_at_the_beginning_is_of_the_episode_before(tmp_path, marked, policy):
    where = {"start": "/rec", "stop": "/rec"} if marked else {"gap_s": 5.0}
    got = read(write(tmp_path / "bag", two_episodes(marked)), {
        **SEEN, "on_missing": policy, "episodes": where, "metadata": {"word": "/word"},
        "goal": {"achieved": {"entries": [0]}, "desired": "/goal"}})
    assert len(got.episodes) == 2 and got.skipped == 0
    for e, episode in enumerate(got.episodes):
        images = episode.images["c"]
        assert set(np.unique(images.frames)) == {10 + 100 * e}
        assert set(episode.action[:, 0]) == {e + 0.5}
        assert (episode.observation[:, 0] // 1000 == e).all()
        assert episode.desired == 7 + e and episode.metadata["word"] == f"go {e}"
        # The first tick after the camera's first frame whose step has a command.
        assert episode.stamp_s[0] == pytest.approx(1e9 + 60 * e + 1.105, abs=1e-6)
        age = episode.stamp_s - episode.stamps_s["observation.images.c"]
        assert age[0] < 0.1
    notes = " ".join(got.notes)
    assert "/c: 2 episodes began late" in notes and "/u: 2 first ticks left out" in notes


def test_what_was_said_shortly_before_a_marker_counts(tmp_path):
    said = [*plain(), flag(0.505, "/rec", True), flag(1.5, "/rec", False)]
    said = [each for each in said if each[1] != "/u" or not 0.5 < each[0] < 0.59]
    got = read(write(tmp_path / "bag", said), {**MAP, "episodes": {"start": "/rec",
                                                                 "stop": "/rec"}})
    (episode,) = got.episodes
    assert episode.stamp_s[0] == pytest.approx(1e9 + 0.505, abs=1e-6)
    assert episode.observation[0, 0] == 50 and episode.action[0, 0] == 6
    assert not any("late" in note for note in got.notes)


def test_beginnings_agree_with_brute_force(tmp_path):
    rng = np.random.default_rng(5)
    said: list[Said] = []
    spans, times = [], {"/x": [], "/y": [], "/u": []}
    for e in range(12):
        begin = 3.0 * e + 1.0
        spans.append((begin, begin + 2.0))
        said += [flag(begin, "/rec", True), flag(begin + 2.0, "/rec", False)]
        for topic, period in (("/x", 0.01), ("/y", 0.05), ("/u", 0.1)):
            at = begin + rng.uniform(-0.6, 0.6)
            while at < begin + 2.0 + rng.uniform(-0.1, 0.9):
                times[topic].append(round(at, 6))
                at += period * rng.uniform(0.5, 1.5)
    for topic, stamps in times.items():
        said += [number(at, topic, at) for at in stamps]
    got = read(write(tmp_path / "bag", said), {
        "observation.state": [{"topic": "/x", "max_age_s": 0.03},
                              {"topic": "/y", "max_age_s": 0.12}],
        "action": {"topic": "/u", "max_age_s": 0.15},
        "episodes": {"start": "/rec", "stop": "/rec"}})
    assert len(got.episodes) == len(spans)

    def age(topic: str, tick: float) -> float:
        return min((tick - at for at in times[topic] if at <= tick + 1e-9), default=np.inf)

    for (begin, end), episode in zip(spans, got.episodes, strict=True):
        moments = sorted({begin, *(at for t in ("/x", "/y") for at in times[t]
                                   if begin <= at <= end)})
        first = next(at for at in moments if age("/x", at) <= 0.03 and age("/y", at) <= 0.12)
        while not any(first <= at < first + 0.1 for at in times["/u"]) and not (
            age("/u", first) <= max(0.15, first - begin)
        ):
            first += 0.1
        assert episode.stamp_s[0] - 1e9 == pytest.approx(first, abs=2e-6)


@pytest.mark.parametrize("policy", ["hold", "error"])
def test_an_episode_in_which_a_topic_is_dead(tmp_path, policy):
    said = [each for each in two_episodes(False) if each[0] < 60 or each[1] != "/c"]
    mapping = {**SEEN, "on_missing": policy, "episodes": {"gap_s": 5.0}}
    path = write(tmp_path / "bag", said)
    if policy == "error":
        with pytest.raises(InvalidInputError, match="/c has no message that is recent"):
            read(path, mapping)
        return
    got = read(path, mapping)
    assert len(got.episodes) == 1 and got.skipped == 1
    assert any("1 left out, without recent messages of /c" in note for note in got.notes)


# -- where they end ---------------------------------------------------------------------------


@pytest.mark.parametrize("reduce", ["any", "last"])
def test_nothing_after_a_termination_is_kept(tmp_path, reduce):
    path = write(tmp_path / "bag", [*plain(), flag(0.75, "/done", True)])
    got = read(path, {**MAP, "terminated": {"topic": "/done", "reduce": reduce}})
    (episode,) = got.episodes
    assert len(episode) == 8 and np.flatnonzero(episode.terminated).tolist() == [7]
    assert not episode.truncated.any()
    assert any("12 steps left out that came after an end" in note for note in got.notes)


def test_no_piece_of_an_episode_after_its_end_is_kept(tmp_path):
    said = [each for each in plain() if each[1] != "/x" or not 0.5 < each[0] < 1.0]
    for key, value in (("terminated", "/done"), ("success", {"topic": "/done", "reduce": "any"})):
        path = write(tmp_path / key, [*said, flag(0.72, "/done", True)])
        mapping = {**MAP, key: value, "on_missing": "drop_step"}
        if key == "success":
            mapping["terminated"] = "success"
        got = read(path, mapping)
        # The step of the end itself was dropped: what came after it is none of this episode's.
        assert [len(e) for e in got.episodes] == [7]


# -- what a bag does not say, or says wrongly -------------------------------------------------


def test_actions_that_no_agent_can_take_are_told(tmp_path):
    path = write(tmp_path / "bag", plain())
    notes = read(path, MAP).notes
    (note,) = [n for n in notes if n.startswith("action:")]
    assert "18 of 20 steps" in note and "[0] to [19]" in note
    assert "low:" in note and "high:" in note
    for limits in ({"low": 0, "high": 19}, {"low": -40, "high": 40}):
        notes = read(path, {**MAP, "action": {"topic": "/u", **limits}}).notes
        assert not any("outside" in n for n in notes)
    notes = read(path, {**MAP, "action": {"topic": "/u", "low": 0, "high": 9, "clip": False}}).notes
    assert any("clip is false" in n for n in notes)


def test_parts_of_one_topic_count_once(tmp_path):
    said = [each for each in plain() if each[1] != "/x"]
    said += [(k * 0.01, "/p", "geometry_msgs/msg/Point", {"x": float(k), "y": 0.0, "z": 1.0})
             for k in range(201) if not 30 < k < 75]
    mapping = {"action": "/u", "observation.state": [{"topic": "/p", "field": f} for f in "xyz"]}
    got = read(write(tmp_path / "bag", said), mapping)
    assert any("/p: 4 ticks held, 2 ticks late (hold)" in note for note in got.notes)
    assert got.episodes[0].metadata["late_ticks"] == {"/p": 2}


@pytest.mark.parametrize("alone", [True, False])
def test_messages_compressed_one_by_one(tmp_path, alone):
    said = [*plain(), *(image(k / 30, k) for k in range(60))]
    whole = read(write(tmp_path / "whole", said), SEEN).episodes[0]
    path = write(tmp_path / "packed", said, compress="MESSAGE")
    packed = read(path / "packed.mcap" if alone else path, SEEN).episodes[0]
    np.testing.assert_array_equal(packed.observation, whole.observation)
    np.testing.assert_array_equal(packed.images["c"].frames, whole.images["c"].frames)


def test_a_bag_cut_off_before_anything_was_whole(tmp_path):
    path = write(tmp_path / "bag", plain(), compress="STORAGE")
    file = path / "bag.mcap"
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(InvalidInputError, match=r"cut off.*nothing whole"):
        read(path, MAP)
    bag = tmp_path / "old.bag"
    store = get_typestore(Stores.ROS1_NOETIC)
    kind = "std_msgs/msg/Float64"
    with rosbag1.Writer(bag) as writer:
        connection = writer.add_connection("/x", kind, typestore=store)
        writer.write(connection, START, store.serialize_ros1(store.types[kind](data=1.0), kind))
    bag.write_bytes(bag.read_bytes()[:4200])
    with pytest.raises(InvalidInputError, match=r"cut off.*nothing whole"):
        read(bag, MAP)


@pytest.mark.parametrize(("policy", "lengths"), [
    ("hold", [20]), ("drop_step", [9, 9]), ("skip_episode", None), ("error", None)])
def test_a_frame_that_cannot_be_read_is_a_missing_one(tmp_path, policy, lengths):
    frames = [image(k * 0.05, k, cut=7 if k in (19, 20) else 0) for k in range(41)]
    path = write(tmp_path / "bag", [*plain(), *frames])
    mapping = {**SEEN, "on_missing": policy}
    if lengths is None:
        with pytest.raises(InvalidInputError, match="41 bytes for 4 rows"):
            read(path, mapping)
        return
    got = read(path, mapping)
    assert [len(e) for e in got.episodes] == lengths
    assert any("/c: 2 unreadable frames" in n and policy in n for n in got.notes)
    shown = [int(e.images["c"].frames[i, 0, 0, 0]) for e in got.episodes
             for i in e.images["c"].index]
    held = [18] if policy == "hold" else []
    assert shown == [*range(0, 20, 2), *held, *range(22, 41, 2)]


def test_a_compressed_frame_that_was_cut_off_says_so(tmp_path):
    cv2 = pytest.importorskip("cv2")
    data = cv2.imencode(".png", np.zeros((8, 8, 3), np.uint8))[1].reshape(-1)
    for cut in (20, len(data) - 9):
        said: list[Said] = plain()
        for k in range(20):
            part = data[:cut] if k == 10 else data
            said.append((k * 0.1, "/c", COMPRESSED,
                         {"header": header(k * 0.1), "format": "png", "data": part}))
        path = write(tmp_path / str(cut), said)
        notes = " ".join(read(path, SEEN).notes)
        assert "1 unreadable frames" in notes and "cut" in notes and "neither" not in notes


# -- clocks -----------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [-1e9 + 5, -60.0, 60.0])
def test_a_camera_on_a_clock_of_its_own(tmp_path, offset):
    frames = [image(k / 30, k, measured=k / 30 + offset) for k in range(60)]
    path = write(tmp_path / "bag", [*plain(), *frames])
    with pytest.raises(InvalidInputError, match=r"topic /c: .* s (before|after).*clock: received"):
        read(path, SEEN)
    got = read(path, {**SEEN, "images": {"c": {"topic": "/c", "clock": "received"}}})
    assert len(np.unique(got.episodes[0].images["c"].index)) > 15


def test_clocks_that_are_a_little_askew_are_told(tmp_path):
    frames = [image(k / 30, k, measured=k / 30 + 4.0) for k in range(60)]
    said = [*plain(8.0), *frames]
    notes = " ".join(read(write(tmp_path / "bag", said), SEEN).notes)
    assert "/c: header stamps lie 4.000 s after" in notes


def test_headers_that_are_all_of_one_other_clock_are_fine(tmp_path):
    shift = -5e8
    said: list[Said] = [image(k / 30, k, measured=k / 30 + shift) for k in range(60)]
    said += [(k * 0.05, "/p", "geometry_msgs/msg/PointStamped", {
        "header": header(k * 0.05 + shift),
        "point": STORE.types["geometry_msgs/msg/Point"](x=float(k), y=0.0, z=0.0)})
        for k in range(40)]
    point = {"topic": "/p", "field": "point"}
    got = read(write(tmp_path / "bag", said), {
        "observation.state": point, "action": point, "images": {"c": "/c"}})
    assert len(got.episodes[0]) > 15


# -- optional topics, and the other ROS -------------------------------------------------------


def test_topics_that_may_never_be_published(tmp_path):
    path = write(tmp_path / "bag", plain())
    for key in ("success", "terminated", "intervention", "reset"):
        with pytest.raises(InvalidInputError, match=f"{key}: .*no topic '/gone'.*optional: true"):
            read(path, {**MAP, key: "/gone"})
    gone = {"topic": "/gone", "optional": True}
    got = read(path, {**MAP, "success": {**gone, "reduce": "any", "equals": "yes"},
                      "terminated": gone, "intervention": gone, "reset": gone,
                      "metadata": {"word": gone}, "episodes": {"start": gone, "stop": gone}})
    (episode,) = got.episodes
    assert len(episode) == 20 and not episode.success.any() and not episode.terminated.any()
    assert episode.intervention is not None and not episode.intervention.any()
    assert "word" not in episode.metadata
    assert any("/gone (success): not in the bag" in note for note in got.notes)
    with pytest.raises(InvalidInputError, match="key of action 'optional'"):
        read(path, {**MAP, "action": {"topic": "/u", "optional": True}})


def test_a_bag_of_the_other_ros_is_told(tmp_path):
    two = write(tmp_path / "two", plain())
    one = tmp_path / "folder" / "one.bag"
    one.parent.mkdir()
    with rosbag1.Writer(one) as writer:
        writer.add_connection("/x", "std_msgs/msg/Float64",
                              typestore=get_typestore(Stores.ROS1_NOETIC))
    for named, path in (("rosbag1", two), ("rosbag1", two / "two.mcap"), ("rosbag2", one),
                        ("rosbag2", one.parent)):
        other = {"rosbag1": "rosbag2", "rosbag2": "rosbag1"}[named]
        with pytest.raises(InvalidInputError, match=f"give --from {other}"):
            import_dataset(named, path, tmp_path / "out", mapping=MAP, rate_hz=10)


def test_an_import_does_not_go_into_its_source(tmp_path):
    path = write(tmp_path / "bag", plain())
    for out in (path / "in", path, tmp_path):
        with pytest.raises(InvalidInputError, match=r"import: the destination .* the source"):
            import_dataset("rosbag2", path, out, mapping=MAP, rate_hz=10, overwrite=True)
    assert read(path, MAP).episodes


def test_unknown_values_are_told_by_their_key(tmp_path):
    path = write(tmp_path / "bag", plain())
    for mapping, message in (
        ({**MAP, "on_missing": "errro"}, "mapping: unknown on_missing 'errro' .*did you mean 'er"),
        ({**MAP, "action": {"topic": "/u", "clock": "x"}}, "unknown action.clock 'x'; valid: head"),
        ({**MAP, "taks": "x"}, "unknown key at the top level 'taks'.*'task'"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            read(path, mapping)
