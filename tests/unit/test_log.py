"""The durable log: exact round trips, one writer at a time, other people's tools."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.faults.samples import INFO, digest, is_beginning, make_episode, play, rows_of
from robot_rl.data import (
    DatasetInfo,
    DatasetWriter,
    Episode,
    Images,
    RecordingOptions,
    load_dataset,
    open_log,
)
from robot_rl.data import episode_file as episode_files
from robot_rl.data.episodes import IMAGES, TIMESTAMP
from robot_rl.data.frames import seconds_of, stamp_ns
from robot_rl.data.log import list_episodes
from robot_rl.data.verify import verify
from robot_rl.errors import InvalidInputError
from tests.unit.format_samples import assert_equal

FORK = multiprocessing.get_context("fork")


def plain(steps: int = 3, **values: Any) -> Episode:
    flags = np.zeros(steps, np.bool_)
    arrays: dict[str, Any] = {
        "observation": np.zeros((steps + 1, 2), np.float32),
        "achieved": np.zeros((steps + 1, 0), np.float32), "desired": np.zeros(0, np.float32),
        "action": np.zeros((steps, 1), np.float32), "reward": np.zeros(steps, np.float32),
        "terminated": flags, "truncated": flags, "success": flags}
    return Episode(**{**arrays, **values})


def round_trip(path: Path, one: Episode, **how: Any) -> Episode:
    with DatasetWriter(path, DatasetInfo.of(one, rate_hz=10.0), **how) as writer:
        writer.append(one)
    assert verify(path)["ok"]
    (found,) = open_log(path)
    return found


# -- round trips --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint8", "int16", "uint16", "int32", "uint32",
                                   "int64", "uint64", "float16", "float32", "float64"])
def test_every_type_and_shape(tmp_path, dtype):
    rng = np.random.default_rng(0)
    one = plain()
    for rows in (3, 4):
        for shape in ((), (1,), (5,), (2, 3), (0,), (2, 0, 3), (1, 2, 1, 2)):
            raw = rng.integers(0, 256, (rows, *shape, np.dtype(dtype).itemsize)).astype(np.uint8)
            values = raw.view(dtype).reshape(rows, *shape) if dtype != "bool" else raw[..., 0] > 99
            one.extra[f"{rows} {shape}"] = values
    assert_equal(round_trip(tmp_path / "d", one), one)


def test_the_ends_of_types_and_odd_numbers(tmp_path):
    one = plain(extra={
        "nan": np.array([np.nan, np.inf, -np.inf, -0.0]), "tiny": np.full(3, 5e-324),
        "large": np.array([2**63 - 1, -(2**63), 0]), "u": np.full(4, 2**64 - 1, np.uint64),
        "half": np.array([65504, 6e-8, -0.0], np.float16), "big": np.arange(4.0).astype(">f8")})
    found = round_trip(tmp_path / "d", one)
    one.extra["big"] = one.extra["big"].astype("<f8")
    assert_equal(found, one)


@pytest.mark.parametrize("key", ["a b", "Ärm/μ", "手", "9lives", "observation.effort", "x" * 200,
                                 "timestamps", "a\nb", "rm -rf /", "../../x", "data", "opcode"])
def test_keys_and_cameras_of_any_name(tmp_path, key):
    frames = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 3)).astype(np.uint8)
    seen = Images(frames, np.array([0, 0, 1, 1]), np.array([1.0, 2.0]))
    images = {key[:150]: seen, f"{key[:150]}_": seen}
    one = plain(extra={key: np.arange(4.0), f"{key[:150]} ": np.arange(3)}, images=images,
                stamps_s={key[:150]: np.arange(4.0)})
    assert_equal(round_trip(tmp_path / "d", one), one)


@pytest.mark.parametrize(
    ("extra", "said"),
    [({"index": np.arange(3)}, "none be 'index'"), ({"": np.arange(3)}, "describe an array"),
     ({"x" * 201: np.arange(3)}, "describe an array"),
     ({"\ud800": np.arange(3)}, "describe an array"),
     ({"d": np.zeros(3, "M8[s]")}, "should be numbers"), ({"c": np.zeros(3, complex)}, "numbers"),
     ({"l": np.zeros(3, np.longdouble)}, "has type|should be one of"),
     ({"w": np.zeros((3, 2**22, 2))}, "too large for a row"),
     ({f"k{i}": np.arange(3) for i in range(5000)}, "the limit is 4096")])
def test_what_could_not_be_read_again_is_not_written(tmp_path, extra, said):
    with DatasetWriter(tmp_path / "d", DatasetInfo.of(plain())) as writer:
        with pytest.raises(InvalidInputError, match=said):
            writer.append(plain(extra=extra))
        writer.append(plain())
    assert len(open_log(tmp_path / "d")) == 1 and verify(tmp_path / "d")["complete"]


@pytest.mark.parametrize(
    ("metadata", "said"),
    [({"a": np.nan}, "kept as JSON"), ({"a": object()}, "kept as JSON"),
     ({"a": "x" * (17 << 20)}, "the limit is 16777216"), ({(1, 2): 3}, "kept as JSON")])
def test_metadata_that_cannot_be_kept(tmp_path, metadata, said):
    with DatasetWriter(tmp_path / "d", INFO) as writer:
        with pytest.raises(InvalidInputError, match=said):
            writer.append(dataclasses.replace(make_episode(1), metadata=metadata))
        if said == "kept as JSON":
            with pytest.raises(InvalidInputError, match=said):
                writer.begin(metadata)
        writer.append(make_episode(1))
    assert len(open_log(tmp_path / "d")) == 1


def test_metadata_and_the_description_come_back(tmp_path):
    metadata = {"instruction": "Öffne 手", "n": [1, 2.5, None, True], "x": {"y": {}}}
    info = dataclasses.replace(INFO, calibration={"a": [0.1] * 9}, env={"robot": "panda"})
    with DatasetWriter(tmp_path / "d", info) as writer:
        writer.append(dataclasses.replace(make_episode(1), metadata=metadata))
    log = open_log(tmp_path / "d")
    assert log.info == info and log.read(0).metadata == metadata


@pytest.mark.parametrize("change", [{"goal_dim": np.int64(2)}, {"config": {"a": np.nan}},
                                    {"rate_hz": float("inf")}, {"env": []}, {"task": None},
                                    {"config": {"a": Path("x")}}, {"observation_shape": "ab"}])
def test_a_description_that_could_not_be_read_changes_nothing(tmp_path, change):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "mine").write_text("precious")
    with pytest.raises(InvalidInputError):
        DatasetWriter(tmp_path / "d", dataclasses.replace(INFO, **change), overwrite=True)
    assert (tmp_path / "d" / "mine").read_text() == "precious"


def test_fields_that_this_version_does_not_know_are_named(tmp_path):
    DatasetWriter(tmp_path / "d", INFO).close()
    raw = json.loads((tmp_path / "d" / "dataset.json").read_text())
    (tmp_path / "d" / "dataset.json").write_text(json.dumps({**raw, "arms": 2}))
    with pytest.raises(InvalidInputError, match=r"does not describe a dataset .*arms"):
        open_log(tmp_path / "d")


@pytest.mark.parametrize("at_s", [0.0, 0.1, 1 / 3, 1e-12, -5.25, 1.7e9 + 1e-7, 2**31 - 1e-6])
def test_stamps_of_frames_are_exact(tmp_path, at_s):
    frames = np.zeros((3, 2, 2, 1), np.uint8)
    stamps = np.array([at_s, np.nextafter(at_s, 9e9), at_s])
    one = plain(images={"a": Images(frames, np.array([0, 0, 2, 2]), stamps)},
                stamp_s=np.linspace(at_s - 1, at_s, 4),
                stamps_s={f"{IMAGES}a": np.full(4, 7.7)})
    assert_equal(round_trip(tmp_path / "d", one), one)


@pytest.mark.parametrize("at_s", [np.nan, np.inf, 1.7e18, -1e10])
def test_stamps_that_are_none(tmp_path, at_s):
    frames = np.zeros((1, 2, 2, 1), np.uint8)
    one = plain(images={"a": Images(frames, np.zeros(4, np.int64), np.array([at_s]))})
    with DatasetWriter(tmp_path / "d", DatasetInfo.of(one)) as writer:
        with pytest.raises(InvalidInputError, match=r"time stamp is .* number of seconds"):
            writer.append(one)
        with pytest.raises(InvalidInputError, match="time stamp"):
            writer.begin().frame("a", frames[0], at_s)


def test_nanoseconds_tell_todays_stamps_exactly():
    rng = np.random.default_rng(0)
    for at_s in 1.6e9 + rng.random(20_000) * 5e8:
        assert seconds_of(stamp_ns(float(at_s))) == at_s


@pytest.mark.parametrize("codec", ["raw", "png"])
@pytest.mark.parametrize("channels", [1, 3])
def test_frames_are_exact(tmp_path, codec, channels):
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (9, 13, 17, channels)).astype(np.uint8)
    one = plain(images={"fast": Images(frames, np.array([0, 2, 5, 8]), np.arange(9.0)),
                        "slow": Images(frames[:1], np.zeros(4, np.int64), np.array([0.5]))})
    assert_equal(round_trip(tmp_path / "d", one, options=RecordingOptions(codec)), one)
    (file,) = list_episodes(tmp_path / "d")
    without = open_log(tmp_path / "d").read(file, images=False)
    assert without.images == {} and np.array_equal(without.action, one.action)


def test_jpeg_is_near(tmp_path):
    ramp = np.linspace(0, 255, 40).astype(np.uint8)
    frames = np.broadcast_to(ramp[:, None], (2, 40, 40, 3)).copy()
    one = plain(images={"a": Images(frames, np.array([0, 0, 1, 1]), np.arange(2.0))})
    found = round_trip(tmp_path / "d", one, options=RecordingOptions("jpeg", 95)).images["a"]
    assert found.index.tolist() == [0, 0, 1, 1] and found.stamp_s.tolist() == [0.0, 1.0]
    assert np.abs(found.frames.astype(int) - frames).max() < 12


def test_an_unknown_image_format(tmp_path):
    with DatasetWriter(tmp_path / "d", INFO, options=RecordingOptions("gif")) as writer:
        with pytest.raises(InvalidInputError, match=r"unknown image format 'gif'.*raw, png, jpeg"):
            writer.append(make_episode(1))
    assert verify(tmp_path / "d")["ok"]


# -- others that look on ------------------------------------------------------------------------


def record_three(path: str) -> None:
    with DatasetWriter(path, INFO) as writer:
        for seed in range(3):
            time.sleep(0.05)
            writer.append(make_episode(seed))
        live = writer.begin()
        play(live, make_episode(3, 50), steps=30)
        time.sleep(2.0)
        play_rest = make_episode(3, 50)
        for number in range(31, 51):
            for name, images in play_rest.images.items():
                while live._frames[name] <= images.index[number]:
                    at = live._frames[name]
                    live.frame(name, images.frames[at], float(images.stamp_s[at]))
            live.step(*rows_of(play_rest, number))
        live.commit()


def test_another_process_can_follow_a_session(tmp_path):
    path = tmp_path / "d"
    process = FORK.Process(target=record_three, args=(str(path),))
    process.start()
    while not (path / "dataset.json").exists():
        time.sleep(0.005)
    log = open_log(path)
    seen, partial = [], []
    for episode in log.follow(poll_s=0.01, timeout_s=10.0):
        seen.append(episode)
        if len(seen) == 4:
            break
        while len(seen) == 3 and len(log.refresh()) == 0 and (
            not partial or len(partial[-1]) < 30
        ):
            running = log.running(images=True)
            partial += [] if running is None else [running]
    process.join()
    assert process.exitcode == 0 and log.recording is None and log.running() is None
    for seed, episode in enumerate(seen[:3]):
        assert digest(episode) == digest(make_episode(seed))
    whole = make_episode(3, 50)
    assert max(len(part) for part in partial) >= 30 and partial[-1].truncated[-1]
    assert all(is_beginning(part, whole) for part in partial)
    assert np.array_equal(seen[3].action, whole.action)
    assert [e.metadata for e in log.follow(timeout_s=0.0)] == [e.metadata for e in seen]


def test_one_writer_at_a_time(tmp_path):
    with DatasetWriter(tmp_path / "d", INFO) as writer:
        for call in (lambda: DatasetWriter.extend(tmp_path / "d"),
                     lambda: DatasetWriter.reopen(tmp_path / "d", 0),
                     lambda: DatasetWriter(tmp_path / "d", INFO, overwrite=True)):
            with pytest.raises(InvalidInputError, match="recorded into by another process"):
                call()
        writer.append(make_episode(1))
    DatasetWriter.extend(tmp_path / "d").close()


def test_who_looks_does_not_keep_a_writer_out(tmp_path):
    """Looking takes the lock for a moment; a writer that comes just then waits for it."""
    DatasetWriter(tmp_path / "d", INFO).close()
    stop = threading.Event()

    def look() -> int:
        looks = 0
        while not stop.is_set():
            _ = open_log(tmp_path / "d").leftovers
            looks += 1
        return looks

    with ThreadPoolExecutor(3) as pool:
        lookers = [pool.submit(look) for _ in range(3)]
        try:
            for _ in range(150):
                DatasetWriter.extend(tmp_path / "d").close()
        finally:
            stop.set()
    assert all(looker.result() > 0 for looker in lookers)


def make_one(path: str, results: Any) -> None:
    try:
        writer = DatasetWriter(path, INFO)
        writer.append(make_episode(1))
        time.sleep(0.05)
        results.put("made")
        writer.close()
    except InvalidInputError as error:
        results.put(str(error))


def test_of_many_that_make_the_same_dataset_one_does(tmp_path):
    for attempt in range(5):
        path = tmp_path / f"d{attempt}"
        path.mkdir()
        (path / ".writer.lock").write_text("1\n")  # of one that was killed
        results = FORK.SimpleQueue()
        processes = [FORK.Process(target=make_one, args=(str(path), results)) for _ in range(4)]
        for process in processes:
            process.start()
        said = [results.get() for _ in processes]
        for process in processes:
            process.join()
        assert said.count("made") == 1, said
        assert all("another process" in s or "not empty" in s for s in said if s != "made"), said
        assert len(load_dataset(path)[1]) == 1


def test_a_forked_process_does_not_hold_the_lock(tmp_path):
    reading, writing = os.pipe()
    writer = DatasetWriter(tmp_path / "d", INFO)
    results = FORK.SimpleQueue()
    child = FORK.Process(target=append_and_wait, args=(writer, results, reading))
    child.start()
    assert "forked from" in results.get()
    with pytest.raises(InvalidInputError, match="another process"):
        DatasetWriter.extend(tmp_path / "d")
    writer.append(make_episode(1))
    writer.close()
    with pytest.raises(InvalidInputError, match="was closed"):
        writer.append(make_episode(1))
    DatasetWriter.extend(tmp_path / "d").close()  # although the forked process lives
    os.write(writing, b"x")
    child.join()
    assert len(open_log(tmp_path / "d")) == 1


def append_and_wait(writer: DatasetWriter, results: Any, reading: int) -> None:
    try:
        writer.append(make_episode(2))
    except InvalidInputError as error:
        results.put(str(error))
    os.read(reading, 1)


# -- going on -----------------------------------------------------------------------------------


def test_extending_goes_on_behind_the_last(tmp_path):
    path = tmp_path / "d"
    DatasetWriter(path, INFO).close()
    for seed in range(3):
        with DatasetWriter.extend(path) as writer:
            assert writer.count == seed and writer.info == INFO
            assert writer.append(make_episode(seed)).name == f"{seed:06d}.mcap"
    os.unlink(path / "episodes" / "000001.mcap")
    with DatasetWriter.extend(path) as writer:
        assert writer.append(make_episode(9)).name == "000003.mcap"
    with pytest.raises(InvalidInputError, match=r"dataset.json does not exist"):
        DatasetWriter.extend(tmp_path)


def test_a_file_that_somebody_put_there_is_not_overwritten(tmp_path):
    path = tmp_path / "d"
    with DatasetWriter(path, INFO) as writer:
        writer.append(make_episode(1))
        theirs = path / "episodes" / "000001.mcap"
        theirs.write_bytes((path / "episodes" / "000000.mcap").read_bytes())
        assert writer.append(make_episode(2)).name == "000002.mcap"
    assert [digest(e) for e in open_log(path)] == [digest(make_episode(n)) for n in (1, 1, 2)]


def test_summaries_do_not_read_the_episode(tmp_path, monkeypatch):
    episode = make_episode(1)
    with DatasetWriter(tmp_path / "d", INFO) as writer:
        writer.append(episode)
    log = open_log(tmp_path / "d")
    monkeypatch.setattr(episode_files, "_decompress", None)
    summary = log.summary(0)
    assert summary["steps"] == 6 and summary["ended"] == "terminated"
    assert summary["return"] == pytest.approx(float(episode.reward.sum()))
    assert summary["success_any"] == bool(episode.success.any())
    assert time.time() - 60 < summary["recorded_at"] <= time.time()
    assert {"action", "torque", f"{IMAGES}front", TIMESTAMP} <= set(summary["keys"])


# -- other people's tools -----------------------------------------------------------------------


def test_mcap_s_own_reader_finds_everything(tmp_path):
    reader = pytest.importorskip("mcap.reader")
    decoder = pytest.importorskip("mcap_ros2.decoder")
    episode = make_episode(1, 20)
    with DatasetWriter(tmp_path / "d", INFO) as writer:
        file = writer.append(episode)
    with open(file, "rb") as stream:
        opened = reader.make_reader(stream, decoder_factories=[decoder.DecoderFactory()],
                                    validate_crcs=True)
        rows, frames = [], {"front": [], "wrist": []}
        for _, channel, message, decoded in opened.iter_decoded_messages():
            if channel.topic == "/episode":
                assert message.sequence == decoded.index
                rows.append(decoded)
            else:
                frames[channel.metadata["camera"]].append(decoded)
        records = {record.name for record in opened.iter_metadata()}
    assert {"robot_rl.dataset", "robot_rl.layout", "robot_rl.commit"} <= records
    check_rows(rows, frames, episode)


def test_rosbags_finds_everything(tmp_path):
    highlevel = pytest.importorskip("rosbags.highlevel")
    from rosbags.typesys import Stores, get_typestore

    episode = make_episode(2, 20)
    with DatasetWriter(tmp_path / "d", INFO) as writer:
        file = writer.append(episode)
    rows, frames = [], {"front": [], "wrist": []}
    store = get_typestore(Stores.EMPTY)
    with highlevel.AnyReader([file], default_typestore=store) as opened:
        for connection, _, raw in opened.messages():
            decoded = opened.deserialize(raw, connection.msgtype)
            if connection.topic == "/episode":
                rows.append(decoded)
            else:
                frames[connection.topic.rsplit("/", 1)[1]].append(decoded)
    check_rows(rows, frames, episode)


def check_rows(rows: list[Any], frames: dict[str, list[Any]], episode: Episode) -> None:
    assert [row.index for row in rows] == list(range(len(episode) + 1))
    for number, row in enumerate(rows):
        assert np.array_equal(row.observation_state, episode.observation[number])
        assert np.array_equal(row.torque, episode.extra["torque"][number])
        assert row.timestamp == episode.stamp_s[number]
        assert row.observation_images_front == episode.images["front"].index[number]
        if number:
            assert np.array_equal(row.action, episode.action[number - 1])
            assert row.next_reward == episode.reward[number - 1]
            assert bool(row.next_success) == episode.success[number - 1]
            assert row.mode == episode.extra["mode"][number - 1]
    for name, found in frames.items():
        images = episode.images[name]
        for frame, expected, at_s in zip(found, images.frames, images.stamp_s, strict=True):
            assert (frame.height, frame.width) == expected.shape[:2]
            assert frame.encoding == ("rgb8" if expected.shape[2] == 3 else "mono8")
            assert bytes(frame.data) == expected.tobytes()
            assert frame.header.stamp.sec + frame.header.stamp.nanosec * 1e-9 == at_s
