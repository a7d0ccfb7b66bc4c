"""The cache of a log, whatever happens to it and whoever wrote it."""

from __future__ import annotations

import json
import os
import shutil
import time
import zlib
from pathlib import Path

import numpy as np
import pytest

from robot_rl.data import DatasetInfo, DatasetWriter, open_log
from robot_rl.data import rows as rows_module
from robot_rl.data import view as view_module
from robot_rl.errors import InvalidInputError
from tests.unit.view_logs import assert_same, expected, opened, recorded, state_file

pytestmark = pytest.mark.usefixtures("own_cache_folder")

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
