"""Replay buffers of logs: what the cache gives is what the log holds, whatever happens to it."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from robot_rl.data import (
    DatasetInfo,
    DatasetWriter,
    Images,
    Relabelling,
    Replay,
    load_dataset,
    open_log,
)
from robot_rl.data import view as view_module
from robot_rl.data.log import Log
from robot_rl.data.view import open_replay, open_view
from robot_rl.errors import InvalidInputError

SHAPE = (4, 6, 3)
CAMERAS = ("front", "side/left")


def recorded(episode, number: int, steps: int = 5):
    """An episode with two cameras, one of which is slower, and flags."""
    one = episode(steps, number)
    frames = np.zeros((steps + 1, *SHAPE), np.uint8)
    frames[:] = (10 * number + np.arange(steps + 1))[:, None, None, None]
    slow = np.arange(steps + 1) // 2
    one.images = {"front": Images.each(frames),
                  "side/left": Images(frames[: slow[-1] + 1] + 100, slow, np.zeros(slow[-1] + 1))}
    one.intervention = np.arange(steps) == 1
    one.reset = np.arange(steps) == steps - 1
    return one


@pytest.fixture
def log_of(episode, tmp_path):
    """Writes episodes ``numbers`` into a log, after those that are there."""

    def write(numbers, name="log", **options) -> Path:
        path = tmp_path / name
        for number in numbers:
            one = recorded(episode, number, **options)
            if not path.exists():
                DatasetWriter(path, DatasetInfo.of(one, task="Push")).close()
            with DatasetWriter.extend(path) as writer:
                writer.append(one)
        return path

    return write


@pytest.fixture(autouse=True)
def own_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user_cache"))


@pytest.fixture
def reads(monkeypatch):
    """The numbers of the episodes that were read from a log."""
    found: list[int] = []
    read = Log.read

    def counted(self, which, **options):
        found.append(which.number)
        return read(self, which, **options)

    monkeypatch.setattr(Log, "read", counted)
    return found


def opened(path, cameras=CAMERAS, **options) -> Replay:
    return Replay.open(path, discount=0.9, cameras=cameras, **options)


def same(one: Replay, two: Replay, cameras=CAMERAS) -> None:
    """Both sample the same."""
    assert len(one) == len(two) > 0 and one.episodes == two.episodes
    assert np.array_equal(one.observations, two.observations)
    assert np.array_equal(one.goals, two.goals)
    a, b = (replay.sample(100, np.random.default_rng(0), cameras=cameras,
                          extras=("intervention", "step", "episode", "success"))
            for replay in (one, two))
    for key in a:
        if isinstance(a[key], dict):
            assert all(np.array_equal(a[key][name], b[key][name]) for name in cameras)
        else:
            assert np.array_equal(a[key], b[key]), key


def expected(path: Path, cameras=CAMERAS) -> Replay:
    """The same without any cache."""
    info, episodes = load_dataset(path)
    return Replay(info.observation_shape[0], info.goal_dim, info.action_dim, discount=0.9,
                  cameras={name: info.cameras[name] for name in cameras}).add_all(episodes)


def state_file(path: Path, name: str = "rows", group: str = "state") -> Path:
    (found,) = (path / ".cache" / "replay" / group).glob(f"g*/{name}")
    return found


# -- what is cached --------------------------------------------------------------------------------


def test_a_log_that_was_opened_before_is_not_read_again(log_of, reads):
    path = log_of(range(6))
    first = opened(path)
    assert reads == list(range(6))
    same(first, expected(path))
    reads.clear()
    second = opened(path)
    assert reads == []
    same(second, expected(path))


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
    same(replay, expected(path))


def test_cameras_are_cached_when_they_are_asked_for(log_of, reads):
    path = log_of(range(3))
    opened(path, cameras=())
    assert not list((path / ".cache" / "replay").glob("camera.*"))
    log_of([3])
    reads.clear()
    replay = opened(path, cameras=("side/left",))
    assert reads == [0, 1, 2, 3]
    same(replay, expected(path, ("side/left",)), ("side/left",))
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
        same(replay, whole)
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
        same(replay, whole)


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


# -- what happens to the cache ---------------------------------------------------------------------


def damage(kind: str, path: Path) -> None:
    folder = path / ".cache" / "replay"
    rows, described = state_file(path), folder / "state" / "view.json"
    frames = state_file(path, "frames", "camera.front")
    stamp = rows.stat().st_mtime_ns
    if kind == "a byte of the rows":
        data = bytearray(rows.read_bytes())
        data[len(data) // 2] ^= 1
        rows.write_bytes(data)
        os.utime(rows, ns=(stamp, stamp))
    elif kind == "a byte of the frames":
        data = bytearray(frames.read_bytes())
        stamp = frames.stat().st_mtime_ns
        data[-1] ^= 1
        frames.write_bytes(data)
        os.utime(frames, ns=(stamp, stamp))
    elif kind == "rows cut":
        os.truncate(rows, rows.stat().st_size - 4)
    elif kind == "rows cut, same time":
        os.truncate(rows, rows.stat().st_size - 4)
        os.utime(rows, ns=(stamp, stamp))
    elif kind == "rows touched":
        os.utime(rows)
    elif kind == "rows too long":
        with open(rows, "ab") as file:
            file.write(bytes(64))
    elif kind == "no rows":
        rows.unlink()
    elif kind == "no frames":
        shutil.rmtree(frames.parent)
    elif kind == "no description":
        described.unlink()
    elif kind == "everything gone":
        shutil.rmtree(path / ".cache")
    elif kind.startswith("description "):
        text = described.read_text()
        raw = json.loads(text)
        what = kind.removeprefix("description ")
        if what == "cut":
            described.write_text(text[: len(text) // 2])
        elif what == "empty":
            described.write_text("")
        elif what == "a list":
            described.write_text("[1, 2]")
        elif what == "nested":
            described.write_text("[" * 100_000)
        else:
            changed = {
                "of another format": {"format": 0},
                "of another order": {"order": "middle"},
                "of other sizes": {"key": ["state", 3, 2, 4]},
                "leading elsewhere": {"generation": "../../../x"},
                "with negative counts": {"counts": {**raw["counts"], "state": -1}},
                "with absurd counts": {"counts": {**raw["counts"], "state": 10**30}},
                "with text": {"counts": {**raw["counts"], "episode": "6"}},
                "without arrays": {"arrays": {}},
            }[what]
            described.write_text(json.dumps({**raw, **changed}))
    else:
        raise AssertionError(kind)


KINDS = ["a byte of the rows", "a byte of the frames", "rows cut", "rows cut, same time",
         "rows touched", "rows too long", "no rows", "no frames", "no description",
         "everything gone",
         *(f"description {what}" for what in (
             "cut", "empty", "a list", "nested", "of another format", "of another order",
             "of other sizes", "leading elsewhere", "with negative counts", "with absurd counts",
             "with text", "without arrays"))]


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_cache_is_made_anew(log_of, reads, kind):
    path = log_of(range(3))
    opened(path)
    reads.clear()
    damage(kind, path)
    replay = opened(path)
    assert reads == [0, 1, 2]
    same(replay, expected(path))
    reads.clear()
    opened(path)
    assert reads == []
    groups = list((path / ".cache" / "replay").glob("*/view.json"))
    assert len(groups) == 3
    assert all(len(list(group.parent.glob("g*"))) == 1 for group in groups), "old ones are removed"


def test_an_episode_that_changed_makes_the_cache_stale(log_of, episode, reads, tmp_path):
    path = log_of(range(4))
    opened(path)
    # Another episode of the same size and name.
    other = log_of([0, 1, 7, 3], "other")
    file = open_log(path).files[2]
    shutil.copyfile(open_log(other).files[2].path, file.path)
    reads.clear()
    replay = opened(path)
    assert reads == [0, 1, 2, 3]
    same(replay, expected(path))
    assert set(replay.observations[:, 0] // 1000) == {0, 1, 7, 3}


def test_an_episode_that_was_removed_makes_the_cache_stale(log_of, reads):
    path = log_of(range(4))
    opened(path)
    open_log(path).files[-1].path.unlink()
    replay = opened(path)
    assert replay.episodes == 3
    same(replay, expected(path))


def test_a_log_whose_folder_cannot_be_written_uses_the_users_cache(log_of, reads, tmp_path):
    path = log_of(range(3))
    (path / ".cache").write_text("in the way, as a read-only folder is")
    for wanted in ([0, 1, 2], []):
        reads.clear()
        replay = opened(path)
        assert reads == wanted
        same(replay, expected(path))
    assert len(list((tmp_path / "user_cache" / "robot_rl" / "replay").iterdir())) == 1


def test_without_any_folder_for_a_cache_it_still_opens(log_of, tmp_path, monkeypatch):
    path = log_of(range(3))
    (path / ".cache").write_text("in the way")
    (tmp_path / "user_cache").write_text("in the way")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(view_module.tempfile, "tempdir", str(temporary))
    replay = opened(path, memory_limit=0)
    assert list(temporary.iterdir()) == []
    same(replay, expected(path))


def test_a_full_disk_leaves_the_log_usable(log_of, reads):
    path = log_of(range(3))
    write = view_module._GroupWriter.write

    def full(self, name, values):
        write(self, name, values)
        if str(path) in str(self._folder) and self.counts["episode"] == 2 and name == "achieved":
            raise OSError(28, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(view_module._GroupWriter, "write", full)
        replay = opened(path)
    assert reads == [0, 1, 2, 0, 1, 2], "then in the user's folder"
    same(replay, expected(path))
    reads.clear()
    replay = opened(path)
    assert reads == [2], "the episodes that were written whole are kept"
    same(replay, expected(path))


def test_what_was_read_before_a_damaged_episode_is_not_read_again(log_of, reads):
    path = log_of(range(4))
    file = open_log(path).files[2].path
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    for _ in range(2):
        with pytest.raises(InvalidInputError, match=r"000002\.mcap"):
            opened(path)
    assert reads == [0, 1, 2, 2]
    file.write_bytes(whole)
    reads.clear()
    replay = opened(path)
    assert reads == [2, 3]
    same(replay, expected(path))


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
    same(opened(path), expected(path))
    log_of([6, 7])
    code = subprocess.run([sys.executable, "-c", script, str(path), "2"], timeout=60)
    assert code.returncode == -9
    same(opened(path), expected(path))


def test_an_empty_log_can_be_opened_and_followed(log_of, episode):
    path = log_of([0])
    open_log(path).files[0].path.unlink()
    replay = opened(path)
    assert len(replay) == replay.episodes == 0
    follower = replay.follow(path)
    assert follower.refresh() == 0
    log_of([1, 2])
    assert follower.refresh() == 2 and replay.episodes == 2
    same(replay, expected(path))


# -- a running session -----------------------------------------------------------------------------


def test_following_begins_after_what_is_there(log_of, reads):
    path = log_of(range(3))
    replay = opened(path)
    reads.clear()
    follower = replay.follow(path)
    assert follower.refresh() == 0 and reads == []
    log_of([3])
    assert follower.refresh() == 1 and follower.refresh() == 0
    same(replay, expected(path))
    # One that was made without the log takes all of it.
    info = open_log(path).info
    other = Replay(4, 2, 3, discount=0.9, cameras={n: info.cameras[n] for n in CAMERAS})
    assert other.follow(path).refresh() == 4
    same(other, expected(path))


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
