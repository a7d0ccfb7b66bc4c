"""The durable log while it is recorded: step by step, and under pressure."""

from __future__ import annotations

import os
import threading
import time
from typing import Any

import numpy as np
import pytest

from benchmarks.faults.samples import INFO, make_episode, play, rows_of
from robot_rl.data import (
    DatasetInfo,
    DatasetWriter,
    RecordingOptions,
    load_dataset,
    open_log,
    recording,
)
from robot_rl.data import files as data_files
from robot_rl.data.episodes import IMAGES, TIMESTAMP
from robot_rl.data.verify import verify
from robot_rl.errors import InvalidInputError, StorageError
from tests.unit.format_samples import assert_equal

# -- live ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [False, True])
@pytest.mark.parametrize("codec", ["raw", "png"])
def test_a_live_episode_is_the_same_as_an_appended_one(tmp_path, threads, codec):
    episode = make_episode(3, 40)
    with DatasetWriter(tmp_path / "d", INFO, options=RecordingOptions(codec)) as writer:
        writer.append(episode)
        live = writer.begin(episode.metadata)
        play(live, episode, threads=threads)
        assert live.steps == 40 and live.commit() == tmp_path / "d" / "episodes" / "000001.mcap"
        assert writer.count == 2
    log = open_log(tmp_path / "d")
    assert_equal(log.read(0), episode)
    assert_equal(log.read(1), episode)
    first, second = log.summary(0), log.summary(1)
    for summary in (first, second):
        summary.pop("recorded_at")
        summary["keys"] = sorted(summary["keys"])
        summary["return"] = pytest.approx(summary["return"])
    assert first == second and first["frames"] == {"front": 40, "wrist": 40}


def test_numbers_may_be_given_as_python_has_them(tmp_path):
    with DatasetWriter(tmp_path / "d", DatasetInfo("", (2,), 0, 1)) as writer:
        live = writer.begin()
        states = {"observation.state": [0, 1], "observation.achieved_goal": [],
                  "observation.desired_goal": [], TIMESTAMP: 3}
        live.start(states)
        for reward in (0, -1, 2.5):
            live.step({**states, "observation.state": [0.5, 1]}, {
                "action": [1], "next.reward": reward, "next.terminated": 0,
                "next.truncated": False, "next.success": 1})
        live.commit()
    (found,) = open_log(tmp_path / "d")
    assert found.reward.tolist() == [0.0, -1.0, 2.5] and found.reward.dtype == np.float32
    assert found.success.dtype == np.bool_ and found.observation.dtype == np.float32
    assert found.observation[1].tolist() == [0.5, 1.0] and verify(tmp_path / "d")["ok"]


def bad(states: Any = None, step: Any = None) -> Any:
    """A change of what is given, by key; None takes the key away."""

    def change(given: tuple[dict[str, Any], dict[str, Any]]) -> Any:
        changed = ({**given[0], **(states or {})}, {**given[1], **(step or {})})
        return tuple({k: v for k, v in part.items() if v is not None} for part in changed)

    return change


BAD_STEPS = {
    "not finite": (bad({"observation.state": np.full(3, np.nan)}), "not finite"),
    "beyond float32": (bad({"observation.state": np.full(3, 1e300)}), "not finite"),
    "a reward of none": (bad(step={"next.reward": np.float32("inf")}), "not finite"),
    "a shape": (bad({"observation.state": np.zeros(4, np.float32)}), r"has shape \(4,\)"),
    "a text": (bad(step={"action": "left"}), "array of numbers"),
    "an object": (bad(step={"action": [None, 1]}), "array of numbers"),
    "a missing action": (bad(step={"action": None}), "action is missing"),
    "a missing goal": (bad({"observation.desired_goal": None}), "desired_goal is missing"),
    "a frame that was not given": (bad({f"{IMAGES}front": 99}), "frame 99 .* was not given"),
    "a frame before the first": (bad({f"{IMAGES}front": -1}), "frame -1 .* was not given"),
    "half a frame": (bad({f"{IMAGES}front": 0.5}), "array of numbers"),
    "a stamp of none": (bad({TIMESTAMP: np.nan}), "time stamp"),
    "numbers that do not fit": (bad(step={"mode": 1.5}), "does not fit int64"),
}


@pytest.mark.parametrize("what", BAD_STEPS)
@pytest.mark.parametrize("first", [True, False])
def test_a_bad_step_is_refused_and_costs_nothing(tmp_path, what, first):
    change, said = BAD_STEPS[what]
    if first and what in ("numbers that do not fit", "a shape"):
        said = "mode|has shape"
    episode = make_episode(3)
    with DatasetWriter(tmp_path / "d", INFO) as writer:
        live = writer.begin(episode.metadata)
        for name, images in episode.images.items():
            for frame, at_s in zip(images.frames, images.stamp_s, strict=True):
                live.frame(name, frame, float(at_s))
        live.start(rows_of(episode, 0)[0])
        for number in range(1, len(episode) + 1):
            given = rows_of(episode, number)
            if number == (1 if first else 4) and not (first and what == "numbers that do not fit"):
                with pytest.raises(InvalidInputError, match=said):
                    live.step(*change(given))
                assert live.steps == number - 1
            live.step(*given)
        live.commit()
    (found,) = open_log(tmp_path / "d")
    assert_equal(found, episode)


def test_a_key_that_is_new_or_given_with_the_wrong_part(tmp_path):
    episode = make_episode(3, cameras=False)
    states, step = rows_of(episode, 1)
    with DatasetWriter(tmp_path / "d", INFO) as writer:
        live = writer.begin()
        with pytest.raises(InvalidInputError, match="needs its first state"):
            live.step(states, step)
        live.start(states)
        with pytest.raises(InvalidInputError, match="has a first state already"):
            live.start(states)
        with pytest.raises(InvalidInputError, match="without steps cannot be committed"):
            live.commit()
        with pytest.raises(InvalidInputError, match=r"timestamp is given with the wrong part"):
            live.step(states, {**step, TIMESTAMP: 1.0})
        with pytest.raises(InvalidInputError, match="x was not in the first step"):
            live.step({**states, "x": 1.0}, step)
        live.step(states, step)
        with pytest.raises(InvalidInputError, match="x was not in the first step"):
            live.step(states, {**step, "x": 1.0})
        with pytest.raises(InvalidInputError, match="commit or discard it first"):
            writer.begin()
        with pytest.raises(InvalidInputError, match="commit or discard it first"):
            writer.append(episode)
        live.commit()
        for call in (live.commit, lambda: live.step(states, step), lambda: live.start(states)):
            with pytest.raises(InvalidInputError, match="the episode is over"):
                call()
        live.discard()
        assert len(open_log(tmp_path / "d")) == 1


def test_cameras_are_known_from_the_first_step(tmp_path):
    episode = make_episode(3)
    image = np.zeros((4, 6, 3), np.uint8)
    with DatasetWriter(tmp_path / "d", INFO) as writer:
        live = writer.begin()
        live.frame("front", image)
        with pytest.raises(InvalidInputError, match=r"uint8 \(4, 6, 3\)"):
            live.frame("front", image[:2])
        with pytest.raises(InvalidInputError, match="frame is float64"):
            live.frame("front", image.astype(float))
        with pytest.raises(InvalidInputError, match=r"shape \(2, 2, 4\) cannot be kept"):
            live.frame("four", np.zeros((2, 2, 4), np.uint8))
        states, step = rows_of(episode, 1)
        without = {k: v for k, v in states.items() if IMAGES not in k}
        live.start({**without, f"{IMAGES}front": 0, f"{IMAGES}wrist": 0})
        with pytest.raises(InvalidInputError, match="'wrist' has given no frame yet"):
            live.step(states, step)
        live.discard()
        live = writer.begin()
        live.frame("front", image)
        live.start(without)
        with pytest.raises(InvalidInputError, match="says which of them a state saw"):
            live.step(without, step)
        live.discard()
        live = writer.begin()
        live.start(without)
        live.step(without, step)
        with pytest.raises(InvalidInputError, match="begins after the first step"):
            live.frame("front", image)


def test_cameras_may_give_frames_while_the_loop_runs(tmp_path):
    """Numbers, content and order of frames agree although nobody waits for anybody."""
    with DatasetWriter(tmp_path / "d", DatasetInfo("", (1,), 0, 1)) as writer:
        live = writer.begin()
        stop, taken = threading.Event(), {"a": 0, "b": 0}

        def camera(name: str) -> None:
            while not stop.is_set():
                image = np.full((2, 3, 1), taken[name] % 256, np.uint8)
                assert live.frame(name, image, taken[name] / 8) == taken[name]
                taken[name] += 1

        threads = [threading.Thread(target=camera, args=(name,)) for name in taken]
        for thread in threads:
            thread.start()
        while min(taken.values()) < 3:
            time.sleep(0.001)

        def states() -> dict[str, Any]:
            return {"observation.state": [0.0], "observation.achieved_goal": [],
                    "observation.desired_goal": [],
                    **{f"{IMAGES}{name}": taken[name] - 1 for name in taken}}

        live.start(states())
        for _ in range(150):
            live.step(states(), {"action": [0.0], "next.reward": 0.0, "next.terminated": False,
                                 "next.truncated": False, "next.success": False})
            time.sleep(0.0002)
        stop.set()
        for thread in threads:
            thread.join()
        live.commit()
    (found,) = open_log(tmp_path / "d")
    assert verify(tmp_path / "d")["ok"] and len(found) == 150
    for name, count in taken.items():
        frames = found.images[name].frames
        assert len(frames) == count
        assert np.array_equal(frames[:, 0, 0, 0], np.arange(count) % 256)
        assert np.array_equal(found.images[name].stamp_s, np.arange(count) / 8)


def test_a_commit_while_cameras_still_run_is_whole(tmp_path):
    with DatasetWriter(tmp_path / "d", INFO) as writer:
        for _ in range(5):
            episode = make_episode(3, 3)
            live = writer.begin()
            play(live, episode)
            over = threading.Event()

            def camera(live: Any = live, over: Any = over) -> None:
                while True:
                    try:
                        live.frame("front", np.zeros((4, 6, 3), np.uint8), 1.0)
                    except InvalidInputError:
                        over.set()
                        return

            thread = threading.Thread(target=camera)
            thread.start()
            time.sleep(0.01)
            live.commit()
            thread.join()
            assert over.is_set()
    report = verify(tmp_path / "d")
    assert report["ok"] and report["episodes"] == 5, report["errors"]


def test_a_discarded_episode_leaves_nothing(tmp_path):
    with DatasetWriter(tmp_path / "d", INFO) as writer:
        live = writer.begin()
        play(live, make_episode(1))
        live.discard()
        live.discard()
        assert os.listdir(tmp_path / "d" / "episodes") == []
        writer.begin().discard()
        writer.append(make_episode(2))
    assert [f.number for f in open_log(tmp_path / "d").files] == [0]
    assert verify(tmp_path / "d")["complete"]


def test_closing_keeps_what_was_not_finished(tmp_path):
    with pytest.raises(RuntimeError), DatasetWriter(tmp_path / "d", INFO) as writer:
        play(writer.begin(), make_episode(1), steps=3)
        raise RuntimeError("the robot is on fire")
    log = open_log(tmp_path / "d")
    assert len(log) == 0 and log.recording is None and len(log.leftovers) == 1
    DatasetWriter.extend(tmp_path / "d").close()


# -- backpressure -------------------------------------------------------------------------------


def test_a_disk_that_is_too_slow_is_an_error_and_no_deadlock(tmp_path, monkeypatch):
    real, gate = os.write, threading.Event()

    def slow(handle: int, data: Any) -> int:
        if threading.current_thread().name == "recorder":
            gate.wait(20)
        return real(handle, data)

    monkeypatch.setattr(recording, "_QUEUE_BYTES", 4000)
    monkeypatch.setattr(recording, "_QUEUE_WAIT_S", 0.1)
    monkeypatch.setattr(recording, "_FLUSH_BYTES", 1)
    monkeypatch.setattr(data_files.os, "write", slow)
    episode = make_episode(1, 400, cameras=False)
    with DatasetWriter(tmp_path / "d", INFO) as writer:
        writer.append(episode)
        live = writer.begin()
        with pytest.raises(StorageError, match=r"disk is too slow: .*--image-format jpeg"):
            play(live, episode)
        with pytest.raises(StorageError, match="disk is too slow"):
            live.commit()
        began = time.monotonic()
        threading.Timer(0.3, gate.set).start()
        live.abandon()
        assert time.monotonic() - began < 5
        monkeypatch.undo()
        writer.append(episode)
    assert len(load_dataset(tmp_path / "d")[1]) == 2


def test_frames_long_before_the_robot_moves_are_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(recording, "_QUEUE_BYTES", 1000)
    with DatasetWriter(tmp_path / "d", INFO) as writer:
        live = writer.begin()
        with pytest.raises(InvalidInputError, match="frames came before the first step"):
            for _ in range(100):
                live.frame("front", np.zeros((4, 6, 3), np.uint8))


def test_an_episode_too_large_to_be_read_is_stopped_before(tmp_path, monkeypatch):
    monkeypatch.setattr(recording, "_LARGEST_EPISODE", 20_000)
    episode = make_episode(1, 60, cameras=False)
    with DatasetWriter(tmp_path / "d", INFO) as writer:
        live = writer.begin()
        with pytest.raises(InvalidInputError, match="commit this one and begin another"):
            play(live, episode)
        assert live.steps > 5
        live.commit()
    (found,) = open_log(tmp_path / "d")
    assert len(found) == live.steps
