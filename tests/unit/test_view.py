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
import zlib
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
from robot_rl.data import rows as rows_module
from robot_rl.data import view as view_module
from robot_rl.data.log import Log
from robot_rl.data.store import Folder
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


def assert_same(one: Replay, two: Replay, cameras=CAMERAS) -> None:
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
    assert_same(replay, expected(path))
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
    assert_same(replay, expected(path))
    assert set(replay.observations[:, 0] // 1000) == {0, 1, 7, 3}


def test_an_episode_that_was_removed_makes_the_cache_stale(log_of, reads):
    path = log_of(range(4))
    opened(path)
    open_log(path).files[-1].path.unlink()
    replay = opened(path)
    assert replay.episodes == 3
    assert_same(replay, expected(path))


def test_a_log_whose_folder_cannot_be_written_uses_the_users_cache(log_of, reads, tmp_path):
    path = log_of(range(3))
    (path / ".cache").write_text("in the way, as a read-only folder is")
    for wanted in ([0, 1, 2], []):
        reads.clear()
        replay = opened(path)
        assert reads == wanted
        assert_same(replay, expected(path))
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
    assert_same(replay, expected(path))


def test_a_full_disk_leaves_the_log_usable(log_of, reads):
    path = log_of(range(3))
    write = view_module._GroupWriter.write

    def full(self, name, values):
        write(self, name, values)
        here = os.readlink(f"/proc/self/fd/{self._files[name].fileno()}")
        if here.startswith(str(path)) and self.counts["episode"] == 2 and name == "achieved":
            raise OSError(28, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(view_module._GroupWriter, "write", full)
        replay = opened(path)
    assert reads == [0, 1, 2, 0, 1, 2], "then in the user's folder"
    assert_same(replay, expected(path))
    reads.clear()
    replay = opened(path)
    assert reads == [2], "the episodes that were written whole are kept"
    assert_same(replay, expected(path))


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
    assert_same(replay, expected(path))


# -- a cache that came from elsewhere --------------------------------------------------------------


def in_the_way(kind: str, path: Path, victim: Path) -> None:
    """Make something of the cache of ``path`` lead to ``victim``, or never answer."""
    cache = path / ".cache"
    described, rows = cache / "replay" / "state" / "view.json", state_file(path)
    places = {"the cache": cache, "replay": cache / "replay", "lock": cache / "replay" / "lock",
              "group": cache / "replay" / "state", "description": described,
              "generation": rows.parent, "array": rows}
    what, name = kind.split(" at ")
    place = places[name]
    kept = place.with_name("kept")
    os.rename(place, kept)
    if what == "link":
        target = victim / "thesis.txt" if kept.is_file() else victim
        place.symlink_to(target)
    elif what == "link to the same":
        os.rename(kept, victim / "kept")
        place.symlink_to(victim / "kept")
    elif what == "hard link":
        os.link(victim / "thesis.txt", place)
    elif what == "pipe":
        os.mkfifo(place)
    else:
        place.mkdir() if kept.is_file() else place.write_text("x")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() if file.is_file() else b""
            for file in sorted(folder.rglob("*"))}


PLACES = ("the cache", "replay", "lock", "group", "description", "generation", "array")


@pytest.mark.parametrize("kind", [
    *(f"{what} at {name}" for what in ("link", "link to the same", "pipe", "other")
      for name in PLACES), "hard link at lock"])
def test_what_is_no_plain_part_of_a_cache_is_left_alone(log_of, reads, kind, tmp_path):
    path, victim = log_of(range(3)), tmp_path / "victim"
    (victim / "precious").mkdir(parents=True)
    (victim / "thesis.txt").write_text("x")
    (victim / "g0123456789abcdef").mkdir()
    (victim / "g0123456789abcdef" / "rows").write_text("x")
    opened(path, cameras=())
    in_the_way(kind, path, victim)
    log_of([3])  # so that there is something to write
    before, here = contents(victim), contents(path)
    read, write = os.pipe()
    if (process := os.fork()) == 0:
        # A pipe in the way would hang this test.
        try:
            os.write(write, str(opened(path, cameras=()).episodes).encode())
        finally:
            os._exit(0)
    limit = time.monotonic() + 20
    while os.waitpid(process, os.WNOHANG) == (0, 0):
        if time.monotonic() > limit:
            os.kill(process, 9)
        time.sleep(0.002)
    os.close(write)
    assert os.read(read, 9) == b"4"
    os.close(read)
    assert contents(victim) == before and contents(path) == here
    assert_same(opened(path, cameras=()), expected(path, ()), ())
    assert len(list((tmp_path / "user_cache" / "robot_rl" / "replay").iterdir())) == 1


def test_only_older_generations_are_removed(log_of, tmp_path):
    path, victim = log_of(range(3)), tmp_path / "victim"
    victim.mkdir()
    (victim / "thesis.txt").write_text("x")
    opened(path, cameras=())
    state = path / ".cache" / "replay" / "state"
    (state / "other").mkdir()
    (state / "g0000000000000000").symlink_to(victim)
    older = state / "g1111111111111111"
    older.mkdir()
    (older / "rows").symlink_to(victim / "thesis.txt")
    state_file(path, "marks").unlink()
    opened(path, cameras=())
    assert (victim / "thesis.txt").read_text() == "x"
    assert (state / "other").is_dir() and not older.exists()


def poison(group: str, path: Path, **changes) -> None:
    """Change arrays of a cache, with right checksums, by functions of them."""
    folder = path / ".cache" / "replay" / group
    raw = json.loads((folder / "view.json").read_text())
    for name, (dtype, change) in changes.items():
        file = folder / raw["generation"] / name
        values = np.frombuffer(file.read_bytes(), dtype).copy()
        changed = change(values)
        values = values if changed is None else changed
        file.write_bytes(values.tobytes())
        stamp = {"crc": zlib.crc32(values.tobytes()), "mtime_ns": file.stat().st_mtime_ns}
        raw["arrays"][name] = stamp
        if group != "state" and name == "index":
            raw["counts"]["state"] = len(values)
    (folder / "view.json").write_text(json.dumps(raw))


def put(at, value, column=None):
    """Sets one element of an array, or of the state's rows (13 columns) of a table."""

    def change(values):
        (values if column is None else values.reshape(-1, 13)[:, column])[at] = value

    return change


# Columns of a row: 4 of the observation, 3 of the action, reward, continues, left, left_in_all,
# episode, flags.
POISONS = {
    "observation": ("state", {"rows": (np.float32, put(2, np.nan, 1))}),
    "action": ("state", {"rows": (np.float32, put(2, np.inf, 5))}),
    "reward": ("state", {"rows": (np.float32, put(2, -np.inf, 7))}),
    "continues": ("state", {"rows": (np.float32, put(2, 5.0, 8))}),
    "a termination": ("state", {"rows": (np.float32, put(2, 0.0, 8))}),
    "left": ("state", {"rows": (np.int32, put(2, 10**9, 9))}),
    "left_in_all": ("state", {"rows": (np.int32, put(2, -4, 10))}),
    "left to the next episode": ("state", {"rows": (np.int32, put(2, 9, 10))}),
    "left of a last state": ("state", {"rows": (np.int32, put(5, 1, 10))}),
    "left of the very last state": ("state", {"rows": (np.int32, put(17, 1, 9))}),
    "episode": ("state", {"rows": (np.int32, put(2, 10**9, 11))}),
    "episode below 0": ("state", {"rows": (np.int32, put(2, -1, 11))}),
    "flags": ("state", {"rows": (np.int32, put(2, 1 << 20, 12))}),
    "a reset": ("state", {"rows": (np.int32, put(2, 2, 12))}),
    "first": ("state", {"first": (np.int64, put(1, 3))}),
    "first beyond": ("state", {"first": (np.int64, put(2, 1 << 62))}),
    "first below 0": ("state", {"first": (np.int64, put(2, -(1 << 63)))}),
    "first twice": ("state", {"first": (np.int64, put(1, 0))}),
    "first too late": ("state", {"first": (np.int64, put(0, 1))}),
    "achieved": ("state", {"achieved": (np.float32, put(2, np.nan))}),
    "desired": ("state", {"desired": (np.float32, put(2, np.inf))}),
    "index": ("camera.front", {"index": (np.int64, put(2, 18))}),
    "index below 0": ("camera.front", {"index": (np.int64, put(2, -1))}),
    "fewer states": ("camera.front", {"index": (np.int64, lambda values: values[:-1])}),
}


@pytest.mark.parametrize("kind", POISONS)
def test_a_cache_that_says_what_cannot_be_is_made_anew(log_of, reads, kind):
    path = log_of(range(3))
    opened(path)
    group, changes = POISONS[kind]
    poison(group, path, **{
        name: (dtype, lambda values: None) for name, (dtype, _) in changes.items()})
    reads.clear()
    opened(path)
    assert reads == [], "without a change it is believed"
    poison(group, path, **changes)
    replay = opened(path, memory_limit=[0, None][len(kind) % 2])
    assert reads == [0, 1, 2]
    assert_same(replay, expected(path))


@pytest.mark.parametrize("block", [1, 2, 5, 1 << 16])
def test_rows_of_all_kinds_of_episodes_are_believed(log_of, episode, tmp_path, monkeypatch,
                                                    reads, block):
    monkeypatch.setattr(rows_module, "_BLOCK", block)
    rng = np.random.default_rng(0)
    ones = []
    for number, steps in enumerate([1, 1, 2, 9, 1, 30, 4]):
        one = recorded(episode, number, steps=steps)
        one.reset, one.terminated = rng.random((2, steps)) < 0.3
        ones.append(one)
    with DatasetWriter(tmp_path / "log", DatasetInfo.of(ones[0])) as writer:
        for one in ones:
            writer.append(one)
    for wanted in (list(range(7)), []):
        reads.clear()
        replay = opened(tmp_path / "log")
        assert reads == wanted
        assert_same(replay, expected(tmp_path / "log"))


@pytest.mark.parametrize("how", ["in its place", "written over"])
def test_an_episode_that_changed_but_not_its_size_and_time_is_seen(log_of, reads, how, tmp_path):
    path = log_of(range(4))
    opened(path)
    file = open_log(path).files[2]
    whole = file.path.read_bytes()
    if how == "in its place":
        (tmp_path / "other").write_bytes(whole)
        os.utime(tmp_path / "other", ns=(file.mtime_ns, file.mtime_ns))
        os.replace(tmp_path / "other", file.path)
    else:
        file.path.write_bytes(whole)
        os.utime(file.path, ns=(file.mtime_ns, file.mtime_ns))
    assert open_log(path).files[2] == file
    reads.clear()
    opened(path)
    assert reads == [0, 1, 2, 3]


@pytest.mark.parametrize("memory_limit", [None, 0])
def test_an_empty_log_can_be_put_together_with_others(log_of, memory_limit):
    full, empty = log_of(range(3)), log_of([0], "empty")
    open_log(empty).files[0].path.unlink()
    for paths in ([full, empty], [empty, full], [empty, full, empty]):
        assert_same(opened(paths, memory_limit=memory_limit), expected(full))


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
