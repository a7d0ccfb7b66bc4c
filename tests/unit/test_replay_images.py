"""Replay: images, memory, threads, and mixtures of several."""

from __future__ import annotations

import dataclasses
import os
import sys
import threading
import time

import numpy as np
import pytest
import torch

from robot_rl.data import Images, MixedReplay, Relabelling, Replay
from robot_rl.data.relabel import LatentReward
from robot_rl.errors import InvalidInputError
from tests.unit.replay_samples import DISCOUNT, SHAPE, check_batch, check_images, filled, near, seen

# -- images ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("per_state", "spare"), [(1, 0), (3, 0), (1, 2), (2, 1)])
@pytest.mark.parametrize("memory_limit", [None, 0, 20_000])
def test_images_are_those_of_the_states(episode, per_state, spare, memory_limit, tmp_path):
    replay = Replay(4, 2, 3, discount=DISCOUNT, cameras={"front": SHAPE}, n_step=2,
                    memory_limit=memory_limit, scratch=tmp_path)
    lengths, rng = [5, 1, 9, 4], np.random.default_rng(0)
    for number, steps in enumerate(lengths):
        replay.add(seen(episode, steps, number, per_state, spare))
        batch = replay.sample(300, rng, cameras=["front"])
        check_images(batch, per_state, spare)
    frames = sum(steps // per_state + 1 for steps in lengths)
    assert replay.frame_bytes == frames * 72, "what nobody saw is not kept, nor anything twice"
    assert "next_images" not in replay.sample(3, rng, cameras=["front"], next_images=False)
    assert list(tmp_path.iterdir()) == [], "scratch files have no name"


def test_frames_take_little_more_memory_than_they_are(episode):
    shape, count = (48, 48, 3), 5_000
    replay = Replay(4, 2, 3, discount=DISCOUNT, cameras={"front": shape})
    one = episode(499)
    one.images = {"front": Images.each(np.full((500, *shape), 7, np.uint8))}

    def resident() -> int:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    before, least = resident(), count * 48 * 48 * 3
    for _ in range(count // 500):
        replay.add(one)
    assert replay.frame_bytes == least
    assert resident() - before <= 1.05 * least + 1.5e6, "1.5 MB for everything else"


def test_a_camera_that_is_missing_or_of_another_shape_is_named(episode):
    replay = Replay(4, 2, 3, discount=DISCOUNT, cameras={"front": SHAPE, "side": SHAPE})
    with pytest.raises(InvalidInputError, match="has no camera 'side'; it has front"):
        replay.add(seen(episode, 3, 0))
    other = seen(episode, 3, 0)
    other.images["side"] = Images.each(np.zeros((4, 4, 6, 1), np.uint8))
    with pytest.raises(InvalidInputError, match=r"of shape \(4, 6, 1\), should be \(4, 6, 3"):
        replay.add(other)
    assert replay.episodes == 0 and replay.frame_bytes == 0


def test_latents_of_images_take_the_place_of_goals(episode):
    replay = Replay(4, 0, 3, discount=DISCOUNT, reward=LatentReward(2.0),
                    relabelling=Relabelling(original=0.5, future=0.5), cameras={"front": SHAPE})
    bare = [dataclasses.replace(seen(episode, 6, number), achieved=np.zeros((7, 0), np.float32),
                                desired=np.zeros(0, np.float32)) for number in range(4)]
    replay.add_all(bare[:2])
    replay.encode_goals(lambda frames: frames.reshape(len(frames), -1)[:, :2].astype(float) / 2,
                        camera="front", reward=LatentReward(2.0), block=5)
    replay.add_all(bare[2:])
    batch = replay.sample(100, np.random.default_rng(0), extras=("episode", "step"))
    ends = (40 * batch["episode"] + 6) / 2
    assert np.array_equal(batch["goal"][:50, 0], ends[:50]), "the last state stands for the goal"
    later = (batch["goal"][50:, 0] * 2 - 40 * batch["episode"][50:])
    assert ((later > batch["step"][50:]) & (later <= 6)).all()
    distance = np.abs((40 * batch["episode"] + batch["step"] + 1) / 2 - batch["goal"][:, 0])
    assert np.array_equal(batch["reward"], (np.sqrt(2) * distance <= 2.0) - 1.0)
    with pytest.raises(InvalidInputError, match="unknown camera 'side'; valid: front"):
        replay.encode_goals(lambda frames: frames, camera="side", reward=near)
    with pytest.raises(InvalidInputError, match="the task has none; give a camera"):
        replay.encode_goals(lambda goals: goals, reward=near)


# -- memory ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory_limit", [0, 3_000, 10_000])
def test_what_is_beyond_the_memory_limit_reads_the_same(episode, memory_limit, tmp_path):
    lengths = [7] * 80
    small = Replay(4, 2, 3, discount=DISCOUNT, memory_limit=memory_limit, scratch=tmp_path,
                   capacity=4)
    small.add_all(episode(n, i) for i, n in enumerate(lengths))
    large = filled(episode, lengths)
    for seed in range(3):
        one, two = (r.sample(200, np.random.default_rng(seed)) for r in (small, large))
        assert all(np.array_equal(one[key], two[key]) for key in one)
    assert small._scratch.used <= memory_limit and list(tmp_path.iterdir()) == []


def test_all_cameras_together_keep_to_the_memory_limit(episode, tmp_path):
    replay = Replay(4, 2, 3, discount=DISCOUNT, memory_limit=60_000, scratch=tmp_path,
                    cameras={"front": SHAPE, "side": SHAPE}, capacity=400)
    for number in range(4):
        one = seen(episode, 99, number)
        one.images["side"] = one.images["front"]
        replay.add(one)
    in_memory = {name: frames.segments[-1][0] for name, frames in replay._frames.items()}
    assert all(0 <= count < 400 for count in in_memory.values()), "the rest is in files"
    assert sum(in_memory.values()) > 100
    assert sum(in_memory.values()) * 72 < replay._scratch.used <= 60_000
    check_images(replay.sample(300, np.random.default_rng(0), cameras=["front"]))


def test_a_full_disk_is_told_and_loses_nothing(episode, tmp_path, monkeypatch):
    replay = Replay(4, 2, 3, discount=DISCOUNT, memory_limit=5_000, scratch=tmp_path, capacity=4)
    added = 0

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(InvalidInputError, match=r"no room for .* in the scratch folder: No s"):
        for added in range(1000):
            replay.add(episode(7, added))
    assert 0 < replay.episodes == added and len(replay) == 7 * added
    check_batch(replay.sample(200, np.random.default_rng(0)), [7] * added)


@pytest.mark.parametrize("memory_limit", [None, 0, 30_000])
def test_an_addition_that_fails_late_leaves_no_frames(episode, tmp_path, memory_limit):
    replay = Replay(4, 2, 3, discount=DISCOUNT, cameras={"front": SHAPE}, scratch=tmp_path,
                    memory_limit=memory_limit, capacity=4000)
    add_valid, used = replay._add_valid, []

    def full(*_):
        raise InvalidInputError("no room")

    for number in range(5):
        replay._add_valid = full
        for steps in (250, 7):
            with pytest.raises(InvalidInputError, match="no room"):
                replay.add(seen(episode, steps, 99, per_state=2))
        replay._add_valid = add_valid
        replay.add(seen(episode, 40, number))
        used.append(replay._scratch.used)
        check_images(replay.sample(300, np.random.default_rng(0), cameras=["front"]))
    assert replay.frame_bytes == 5 * 41 * 72
    assert memory_limit is not None or used[-1] - used[0] == 4 * 41 * 72


def test_a_batch_that_is_kept_is_not_written_to(episode):
    replay = filled(episode, [50], Relabelling(original=0.5, future=0.5))
    rng = np.random.default_rng(0)
    kept, copies = [], []
    for i in range(40):
        batch = replay.sample(9_000, rng)
        if i % 3:
            # Any part of it counts: a view, a column, a buffer.
            part = (batch["observation"][5:9], batch["action"].T, memoryview(batch["goal"]))[i % 3]
            kept.append(part)
            copies.append(np.array(part))
    assert all(np.array_equal(np.asarray(a), b) for a, b in zip(kept, copies, strict=True))


def test_a_batch_that_torch_shares_is_not_written_to(episode):
    replay, rng = filled(episode, [50]), np.random.default_rng(0)
    batch = replay.sample(9_000, rng)
    tensor = torch.from_numpy(batch["observation"])
    assert tensor.data_ptr() == batch["observation"].ctypes.data
    before = tensor.clone()
    del batch
    for _ in range(20):
        replay.sample(9_000, rng)
    assert torch.equal(tensor, before)


def test_memory_of_dropped_batches_is_used_again(episode):
    replay, rng = filled(episode, [50]), np.random.default_rng(0)
    addresses = set()
    for _ in range(50):
        addresses.add(replay.sample(9_000, rng)["observation"].ctypes.data)
    assert len(addresses) <= 2


# -- threads --------------------------------------------------------------------------------------


def test_episodes_can_be_added_while_another_thread_samples(episode):
    replay = Replay(4, 2, 3, discount=DISCOUNT, reward=near, capacity=1,
                    relabelling=Relabelling(0.4, 0.1, 0.2, 0.1, 0.1, 0.1),
                    cameras={"front": SHAPE})
    replay.add(seen(episode, 4, 0))
    lengths = [4] + [1 + i % 5 for i in range(1, 400)]
    problems: list[BaseException] = []
    sampled, done = [0, 0], threading.Event()

    def read(seed: int) -> None:
        rng = np.random.default_rng(seed)
        try:
            while not done.is_set():
                batch = replay.sample(64, rng, cameras=["front"], extras=("episode", "step"))
                check_batch(batch, lengths)
                number, step = batch["episode"], batch["step"]
                assert np.array_equal(1000 * number + step, batch["observation"][:, 0])
                front = batch["images"]["front"][:, 0, 0, 0]
                assert np.array_equal(front, (40 * number + step).astype(np.uint8))
                goals = batch["goal"][:, 0]
                assert ((goals < 0) == (np.arange(64) < (goals < 0).sum())).all()
                assert (goals < 0).sum() in (25, 26)
                sampled[seed] += 1
        except BaseException as error:
            problems.append(error)

    readers = [threading.Thread(target=read, args=(seed,)) for seed in range(2)]
    # Threads take turns a thousand times as often as usual.
    interval = sys.getswitchinterval()
    sys.setswitchinterval(5e-6)
    try:
        for reader in readers:
            reader.start()
        for number, steps in enumerate(lengths[1:], start=1):
            replay.add(seen(episode, steps, number))
            if number % 10 == 0:
                before, limit = list(sampled), time.monotonic() + 20
                while (not problems and time.monotonic() < limit
                       and not all(a > b for a, b in zip(sampled, before, strict=True))):
                    time.sleep(1e-4)
    finally:
        done.set()
        for reader in readers:
            reader.join()
        sys.setswitchinterval(interval)
    if problems:
        raise problems[0]
    assert min(sampled) >= 39
    assert replay.episodes == 400 and len(replay) == sum(lengths)


def test_frames_are_whole_at_every_moment_of_growing(episode, tmp_path):
    replay = Replay(4, 2, 3, discount=DISCOUNT, cameras={"front": SHAPE}, memory_limit=0,
                    scratch=tmp_path)
    replay.add(seen(episode, 5, 0))
    store, moments = replay._frames["front"], []

    class Watched(type(store)):
        """Samples as another thread may, whenever segments were replaced."""

        def __setattr__(self, name, value):
            super().__setattr__(name, value)
            if name == "segments":
                check_images(replay.sample(200, np.random.default_rng(0), cameras=["front"]))
                moments.append(len(value))

    store.__class__ = Watched
    for _ in range(200):
        # More than the file's first megabytes.
        replay.add(seen(episode, 250, 0))
    assert len(moments) > 1


def test_a_frame_that_is_not_there_is_an_error(tmp_path):
    from robot_rl.data.store import Frames, Scratch

    frames, out = Frames((1, 1, 1), Scratch(10, tmp_path)), np.zeros((1, 1, 1, 1), np.uint8)
    count = frames.adopt(np.full((3, 1, 1, 1), 7, np.uint8), 0)
    for missing in (3, -1):
        with pytest.raises(IndexError):
            frames.take(np.array([missing]), out)
    frames.adopt(np.full((3, 1, 1, 1), 8, np.uint8), count)
    frames.take(np.array([3]), out)
    assert out[0, 0, 0, 0] == 8
    for missing in (6, -1):
        with pytest.raises(IndexError, match="1 of 1 frames are not there"):
            frames.take(np.array([missing]), out)


def test_several_threads_can_add(episode):
    replay = filled(episode, [], capacity=1)
    threads = [
        threading.Thread(target=lambda k=k: replay.add_all(
            episode(3, number) for number in range(k, 120, 4)))
        for k in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert replay.episodes == 120
    batch = replay.sample(4_000, np.random.default_rng(0))
    check_batch(batch, [3] * 120)
    assert set(batch["observation"][:, 0] // 1000) == set(range(120))


# -- mixing ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("fraction", [0.0, 0.25, 0.6, 1.0])
def test_a_strict_share_is_kept_whatever_the_sizes(episode, fraction):
    recorded, practice = filled(episode, [500]), filled(episode, [])
    practice.add(episode(2, 7))
    mixed = MixedReplay(recorded, practice, fraction, strict=True)
    fresh = mixed.sample(60, np.random.default_rng(0))["observation"][:, 0] >= 7000
    assert fresh.sum() == 60 * fraction, "a whole number here"


def test_mixed_batches_have_extras_and_images(episode):
    recorded, practice = (
        Replay(4, 2, 3, discount=DISCOUNT, reward=near, cameras={"front": SHAPE},
               relabelling=Relabelling(original=0.5, future=0.5)) for _ in range(2))
    recorded.add(seen(episode, 5, 0))
    practice.add(seen(episode, 5, 1))
    batch = MixedReplay(recorded, practice, 0.5).sample(
        40, np.random.default_rng(0), extras=("offset", "step"), cameras=["front"])
    check_images(batch)
    check_batch(batch, [5, 5])
    assert np.array_equal(batch["step"], batch["observation"][:, 0] % 1000)
    # Each half has its own exact shares.
    assert ((batch["offset"] > 0) == (np.arange(40) % 20 >= 10)).all()
    assert ((batch["observation"][:, 0] >= 1000) == (np.arange(40) >= 20)).all()


def test_buffers_of_other_sizes_cannot_be_mixed(episode):
    other = Replay(5, 2, 3, discount=DISCOUNT)
    other.add(episode(4, observation_dim=5))
    with pytest.raises(InvalidInputError, match=r"sizes \(4, 2, 3, 2, .* and \(5, 2, 3, 2, "):
        MixedReplay(filled(episode, [4]), other, 0.5).sample(8, np.random.default_rng(0))
