"""Replay buffers of logs: what the cache gives is what the log holds; disks that fill; sessions."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

from robot_rl.data import DatasetInfo, DatasetWriter, Relabelling, Replay, load_dataset, open_log
from robot_rl.data.log import Log
from robot_rl.data.store import Folder
from robot_rl.data.view import open_replay, open_view
from robot_rl.errors import InvalidInputError
from tests.unit.view_logs import CAMERAS, SHAPE, assert_same, expected, opened, recorded

pytestmark = pytest.mark.usefixtures("own_cache_folder")

# -- what is cached --------------------------------------------------------------------------------


def test_a_log_that_was_opened_before_is_not_read_again(log_of, reads):
    path = log_of(range(6))
    first = opened(path)
    assert reads == list(range(6))
    assert_same(first, expected(path))
    reads.clear()
    second = opened(path)
    assert reads == []
    assert_same(second, expected(path))


def test_stored_rows_are_bit_for_bit_those_of_the_log(episode, tmp_path):
    rng = np.random.default_rng(0)
    one = episode(20)
    for name in ("observation", "achieved", "action", "reward", "desired"):
        values = getattr(one, name)
        setattr(one, name, rng.normal(size=values.shape).astype(np.float32))
    with DatasetWriter(tmp_path / "log", DatasetInfo.of(one)) as writer:
        writer.append(one)
    for _ in range(2):
        replay = opened(tmp_path / "log", cameras=())
        batch = replay.sample(500, np.random.default_rng(0), extras=("step", "achieved"))
        step = batch["step"]
        for key, values in (("observation", one.observation), ("achieved", one.achieved),
                            ("action", one.action), ("reward", one.reward)):
            assert batch[key].tobytes() == values[step].tobytes(), key
        assert batch["next_observation"].tobytes() == one.observation[step + 1].tobytes()


def test_only_new_episodes_are_read(log_of, reads):
    path = log_of(range(4))
    opened(path)
    log_of([4, 5])
    reads.clear()
    replay = opened(path)
    assert reads == [4, 5]
    assert_same(replay, expected(path))


def test_cameras_are_cached_when_they_are_asked_for(log_of, reads):
    path = log_of(range(3))
    opened(path, cameras=())
    assert not list((path / ".cache" / "replay").glob("camera.*"))
    log_of([3])
    reads.clear()
    replay = opened(path, cameras=("side/left",))
    assert reads == [0, 1, 2, 3]
    assert_same(replay, expected(path, ("side/left",)), ("side/left",))
    reads.clear()
    opened(path, cameras=("side/left",))
    assert reads == []


def test_several_logs_are_put_together(log_of, reads):
    paths = [log_of(range(3), "a"), log_of(range(3, 5), "b", steps=9), log_of([5], "c")]
    whole = expected(paths[0])
    for path in paths[1:]:
        whole.add_all(load_dataset(path)[1])
    reads.clear()
    for _ in range(2):
        infos, replay = open_replay(paths, discount=0.9, cameras=CAMERAS)
        assert_same(replay, whole)
        assert [info.task for info in infos] == ["Push"] * 3
        if not reads:
            break
        reads.clear()
    else:
        raise AssertionError("the second time nothing is read")


@pytest.mark.parametrize("memory_limit", [0, 2_000, None])
def test_what_is_mapped_or_read_can_be_added_to(log_of, episode, memory_limit, tmp_path):
    paths = [log_of(range(3), "a"), log_of(range(3, 6), "b")]
    whole = expected(paths[0])
    whole.add_all(load_dataset(paths[1])[1])
    for _ in range(2):
        replay = opened(paths, memory_limit=memory_limit, scratch=tmp_path)
        replay.add(recorded(episode, 9))
        replay.add(recorded(episode, 10, steps=2))
        if whole.episodes == 6:
            whole.add_all([recorded(episode, 9), recorded(episode, 10, steps=2)])
        assert_same(replay, whole)


def test_latents_and_relabelling_work_on_a_view(log_of):
    path = log_of(range(3))
    replay = opened(path, relabelling=Relabelling(original=0.0, future=1.0),
                    reward=lambda a, d: (a == d).all(axis=1) - 1.0)
    replay.encode_goals(lambda goals: goals * 2, reward=lambda a, d: (a == d).all(axis=1) - 1.0)
    batch = replay.sample(100, np.random.default_rng(0), extras=("offset", "step", "episode"))
    assert np.array_equal(
        batch["goal"][:, 0],
        2 * (1000 * batch["episode"] + batch["step"] + batch["offset"] + 0.25))
    assert np.array_equal(batch["reward"], (batch["offset"] == 1) - 1.0)


def test_episodes_that_terminate_are_refused_as_when_they_are_added(episode, tmp_path):
    one = episode(5, terminated=True)
    with DatasetWriter(tmp_path / "log", DatasetInfo.of(one)) as writer:
        writer.append(one)
    options = {"cameras": (), "reward": lambda a, d: a[:, 0],
               "relabelling": Relabelling(future=1.0)}
    for _ in range(2):
        with pytest.raises(InvalidInputError, match="terminates cannot have its goals relabelled"):
            opened(tmp_path / "log", **options)
    opened(tmp_path / "log", terminate=lambda a, d: a[:, 0] == d[:, 0], **options)


def test_other_files_are_taken_too(tmp_path, log_of):
    rows = np.arange(12, dtype=np.float32)
    np.savez(tmp_path / "plain.npz", observations=np.repeat(rows[:, None], 4, 1),
             actions=np.zeros((12, 2), np.float32), rewards=rows,
             episode_lengths=np.array([5, 7]))
    replay = Replay.open(tmp_path / "plain.npz", discount=0.9)
    assert replay.episodes == 2 and len(replay) == 10
    with pytest.raises(InvalidInputError, match="cannot be put together"):
        Replay.open([tmp_path / "plain.npz", log_of([0])], discount=0.9)
    with pytest.raises(InvalidInputError, match="does not exist"):
        Replay.open(tmp_path / "nothing", discount=0.9)
    with pytest.raises(InvalidInputError, match="at least one dataset"):
        Replay.open([], discount=0.9)
    with pytest.raises(InvalidInputError, match=r"unknown camera of .* 'front'"):
        Replay.open(tmp_path / "plain.npz", discount=0.9, cameras=("front",))


def test_episodes_can_be_changed_before_they_are_taken(log_of):
    def doubled(episodes):
        return [dataclasses.replace(one, reward=2 * one.reward) for one in episodes]

    path = log_of(range(2))
    replay = opened(path, prepare=doubled)
    rewards = replay.sample(50, np.random.default_rng(0), extras=("step", "episode"))
    assert np.array_equal(rewards["reward"],
                          2 * (1000 * rewards["episode"] + rewards["step"] + 0.75))
    assert not (path / ".cache").exists()
    opened(path, cache=False)
    assert not (path / ".cache").exists()


# -- a disk that is nearly full --------------------------------------------------------------------


def test_frames_do_not_fill_the_disk(log_of, reads, tmp_path, monkeypatch):
    path, total = log_of(range(3)), 1000 << 20
    needed = 3 * (6 + 3) * 72
    free = {"log": needed + total // 20 - 1, "user": needed + total // 20}

    def free_bytes(self):
        here = os.readlink(f"/proc/self/fd/{self._handle}")
        return free["log" if here.startswith(str(path)) else "user"], total

    monkeypatch.setattr(Folder, "free_bytes", free_bytes)
    assert_same(opened(path), expected(path))
    assert reads[:3] == [0, 1, 2], "it is known before anything is read"
    assert not list((path / ".cache").rglob("frames*/**/*"))
    assert sum(f.stat().st_size for f in (path / ".cache").rglob("*/frames")) == 0
    assert len(list((tmp_path / "user_cache" / "robot_rl" / "replay").iterdir())) == 1
    opened(path, cameras=())
    # Nowhere.
    free.update(log=total // 20, user=total // 20)
    log_of([3])
    with pytest.raises(InvalidInputError, match=r"of the disk free; with cache=False they stay"):
        opened(path)
    assert_same(opened(path, cache=False), expected(path))
    assert opened(path, cameras=()).episodes == 4, "rows are small"


def test_frames_stop_when_others_fill_the_disk(log_of, reads, monkeypatch):
    path = log_of(range(3))
    left = [10]  # times that there is room

    def free_bytes(self):
        here = os.readlink(f"/proc/self/fd/{self._handle}")
        left[0] -= here.startswith(str(path))
        return (1 << 40) if left[0] > 0 or not here.startswith(str(path)) else 0, 1 << 41

    monkeypatch.setattr(Folder, "free_bytes", free_bytes)
    left[0] = 4
    assert_same(opened(path), expected(path))
    assert reads[:5] == [0, 1, 0, 1, 2], "then in the user's folder"


def build(path: str, gate, results) -> None:
    read, reads = Log.read, []
    Log.read = lambda self, which, **options: reads.append(0) or read(self, which, **options)
    gate.wait()
    replay = Replay.open(path, discount=0.9, cameras=CAMERAS)
    batch = replay.sample(64, np.random.default_rng(0), cameras=CAMERAS)
    results.put((len(reads), replay.episodes, batch["observation"].tobytes(),
                 batch["next_images"]["front"].tobytes()))


def test_several_processes_can_build_at_once(log_of):
    path = log_of(range(12))
    context = multiprocessing.get_context("fork")
    gate, results = context.Barrier(4), context.Queue()
    builders = [context.Process(target=build, args=(str(path), gate, results)) for _ in range(4)]
    for builder in builders:
        builder.start()
    found = [results.get(timeout=60) for _ in builders]
    for builder in builders:
        builder.join(timeout=60)
        assert builder.exitcode == 0
    batch = expected(path).sample(64, np.random.default_rng(0), cameras=CAMERAS)
    assert sorted(reads for reads, *_ in found) == [0, 0, 0, 12], "one builds, the others wait"
    assert {tuple(rest) for _, *rest in found} == {
        (12, batch["observation"].tobytes(), batch["next_images"]["front"].tobytes())}


def test_a_builder_that_is_killed_leaves_nothing_that_is_believed(log_of, tmp_path):
    path = log_of(range(6))
    script = textwrap.dedent("""
        import os, sys
        from robot_rl.data import Replay, view
        commit = view._GroupWriter.commit
        left = [int(sys.argv[2])]
        def killed(self, states, frames):
            commit(self, states, frames)
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), 9)
        view._GroupWriter.commit = killed
        Replay.open(sys.argv[1], discount=0.9, cameras=("front", "side/left"))
    """)
    for _ in range(2):
        code = subprocess.run([sys.executable, "-c", script, str(path), "7"], timeout=60)
        assert code.returncode == -9
    assert_same(opened(path), expected(path))
    log_of([6, 7])
    code = subprocess.run([sys.executable, "-c", script, str(path), "2"], timeout=60)
    assert code.returncode == -9
    assert_same(opened(path), expected(path))


def test_an_empty_log_can_be_opened_and_followed(log_of, episode):
    path = log_of([0])
    open_log(path).files[0].path.unlink()
    replay = opened(path)
    assert len(replay) == replay.episodes == 0
    follower = replay.follow(path)
    assert follower.refresh() == 0
    log_of([1, 2])
    assert follower.refresh() == 2 and replay.episodes == 2
    assert_same(replay, expected(path))


# -- a running session -----------------------------------------------------------------------------


def test_following_begins_after_what_is_there(log_of, reads):
    path = log_of(range(3))
    replay = opened(path)
    reads.clear()
    follower = replay.follow(path)
    assert follower.refresh() == 0 and reads == []
    log_of([3])
    assert follower.refresh() == 1 and follower.refresh() == 0
    assert_same(replay, expected(path))
    # One that was made without the log takes all of it.
    info = open_log(path).info
    other = Replay(4, 2, 3, discount=0.9, cameras={n: info.cameras[n] for n in CAMERAS})
    assert other.follow(path).refresh() == 4
    assert_same(other, expected(path))


def test_a_number_that_is_used_again_is_followed(log_of, episode):
    path = log_of(range(3))
    replay = opened(path)
    follower = replay.follow(path)
    assert follower.refresh() == 0
    open_log(path).files[2].path.unlink()
    assert follower.refresh() == 0 and replay.episodes == 3, "what was removed stays"
    log_of([7], steps=8)
    last = open_log(path).files[2].path
    os.rename(last, last.with_name("000002.mcap"))
    assert follower.refresh() == 1 and follower.refresh() == 0
    assert replay.episodes == 4
    assert set(replay.observations[:, 0] // 1000) == {0, 1, 2, 7}


def test_following_an_episode_that_does_not_fit_tries_again(log_of, episode):
    path = log_of(range(2))
    other = Replay(4, 2, 3, discount=0.9, reward=lambda a, d: a[:, 0],
                   relabelling=Relabelling(original=0.0, final=1.0))
    follower = other.follow(path)
    assert follower.refresh() == 2
    file = open_log(path).files[1].path
    log_of([2])
    last = open_log(path).files[2].path
    whole = last.read_bytes()
    last.write_bytes(whole[:100])
    with pytest.raises(InvalidInputError, match=r"000002\.mcap"):
        follower.refresh()
    assert other.episodes == 2 and file.exists()
    last.write_bytes(whole)
    assert follower.refresh() == 1 and other.episodes == 3


SESSION = """
import sys, time
import numpy as np
from robot_rl.data import DatasetInfo, DatasetWriter, Episode

def make(steps, number):
    rows = 1000.0 * number + np.arange(steps + 1, dtype=np.float32)
    no = np.zeros(steps, bool)
    return Episode(
        observation=np.repeat(rows[:, None], 4, 1), achieved=np.repeat(rows[:, None], 2, 1),
        desired=np.full(2, -1.0 - number, np.float32), action=np.repeat(rows[:-1, None], 3, 1),
        reward=rows[:-1], terminated=no, truncated=np.arange(steps) == steps - 1, success=no)

writer = DatasetWriter(sys.argv[1], DatasetInfo.of(make(3, 0)))
for number in range(int(sys.argv[2])):
    writer.append(make(3 + number % 4, number))
    time.sleep(0.005)
writer.close()
"""


def test_a_session_of_another_process_is_followed_while_sampling(tmp_path):
    path, count = tmp_path / "session", 60
    process = subprocess.Popen([sys.executable, "-c", SESSION, str(path), str(count)])
    replay, rng = Replay(4, 2, 3, discount=0.9), np.random.default_rng(0)
    try:
        while not (path / "dataset.json").exists() and process.poll() is None:
            time.sleep(0.01)
        follower, arrived, limit = replay.follow(path), [], time.monotonic() + 60
        while replay.episodes < count and time.monotonic() < limit:
            arrived.append(follower.refresh())
            if len(replay):
                batch = replay.sample(64, rng, extras=("episode", "step"))
                number, step = batch["episode"], batch["step"]
                assert np.array_equal(batch["observation"][:, 0], 1000 * number + step)
                assert np.array_equal(batch["next_observation"][:, 0], 1000 * number + step + 1)
                assert (step < 3 + number % 4).all()
    finally:
        process.wait(timeout=60)
    assert replay.episodes == sum(arrived) == count
    assert len(replay) == sum(3 + number % 4 for number in range(count))
    assert sum(n > 0 for n in arrived) > 3, "it grew while it was being recorded"


def test_open_view_returns_flat_arrays(log_of):
    path = log_of(range(3), steps=4)
    packed = open_view(open_log(path), cameras={"front": SHAPE}, memory_limit=0)
    assert packed.mapped and not packed.rows.flags.writeable
    assert packed.first.tolist() == [0, 5, 10] and packed.rows.shape[0] == 15
    assert packed.frames["front"].shape == (15, *SHAPE)
    assert packed.index["front"].tolist() == list(range(15))
    assert not open_view(open_log(path)).mapped
