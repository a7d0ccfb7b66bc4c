"""Merging and splitting datasets: nothing lost, nothing doubled, sources untouched."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from robot_rl.data import DatasetInfo, DatasetWriter, Episode, Images, load_dataset
from robot_rl.data import edit as edit_module
from robot_rl.data.edit import SplitOptions, content_digest, merge, spans, split
from robot_rl.data.log import open_log
from robot_rl.data.summary import open_source, select, summarize
from robot_rl.data.verify import verify
from robot_rl.errors import InvalidInputError, StorageError

QUICK = settings(max_examples=8, deadline=None,
                 suppress_health_check=[HealthCheck.function_scoped_fixture])


def number_of(episode: Episode) -> int:
    """The number that ``make_episode`` gave an episode."""
    return round(float(-1.0 - episode.desired[0]))


@pytest.fixture
def write(episode) -> Callable[..., Path]:
    """Writes a dataset of episodes with these numbers; odd ones end in success."""

    def make(path: Path, numbers: object, *, cameras: bool = False, **info: object) -> Path:
        episodes = []
        for number in numbers:  # type: ignore[attr-defined]
            each = episode(3 + number % 4, number)
            each.success[-1] = number % 2 == 1
            if cameras:
                frames = np.full((len(each) + 1, 4, 6, 3), number, np.uint8)
                each.images["front"] = Images.each(frames)
            episodes.append(each)
        sample = episodes[0] if episodes else episode(3)
        if not episodes and cameras:
            sample.images["front"] = Images.each(np.zeros((4, 4, 6, 3), np.uint8))
        with DatasetWriter(path, DatasetInfo.of(sample, **info)) as writer:
            for each in episodes:
                writer.append(each)
        return path

    return make


def content(folder: Path) -> dict[str, str]:
    """A digest of every file below a folder."""
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("*")) if path.is_file()}


def files(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted((folder / "episodes").iterdir())]


def numbers_in(folder: Path) -> list[int]:
    return [number_of(each) for each in open_log(folder)]


# -- merge --------------------------------------------------------------------------------------


def test_merge_copies_every_file_as_it_is(write, tmp_path):
    a, b = write(tmp_path / "a", range(3), cameras=True), write(tmp_path / "b", range(3, 5),
                                                                cameras=True)
    before = content(a), content(b)
    result = merge([b, a], tmp_path / "out")
    assert files(tmp_path / "out") == files(b) + files(a)
    assert (content(a), content(b)) == before
    assert [p.name for p in sorted((tmp_path / "out" / "episodes").iterdir())] == [
        f"{i:06d}.mcap" for i in range(5)]
    assert result == {
        "path": str(tmp_path / "out"), "episodes": 5,
        "steps": sum(len(e) for e in load_dataset(tmp_path / "out")[1]), "success_rate": 0.4,
        "skipped": 0, "sources": [{"path": str(b), "episodes": 2}, {"path": str(a), "episodes": 3}],
    }
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "out"]
    assert summarize(tmp_path / "out")["complete"] is True


def test_a_merged_dataset_goes_on(write, episode, tmp_path):
    merge([write(tmp_path / "a", range(2)), write(tmp_path / "b", [7])], tmp_path / "out")
    with DatasetWriter.extend(tmp_path / "out") as writer:
        writer.append(episode(4, 9))
    assert numbers_in(tmp_path / "out") == [0, 1, 7, 9]


def test_merge_says_where_episodes_come_from(write, tmp_path):
    a = write(tmp_path / "a", [0, 1], task="Push", robot="panda", rate_hz=10.0, software="one",
              config={"seed": 1, "policy": "x"}, env={"robot": "panda", "backend": "mujoco"},
              calibration={"hand_eye": [1.0]})
    b = write(tmp_path / "b", [2], software="two", config={"seed": 2, "policy": "x"},
              env={"robot": "panda", "backend": "pybullet"}, calibration={"hand_eye": [2.0]})
    merge([b, a], tmp_path / "out")
    assert verify(tmp_path / "out")["ok"] and not verify(tmp_path / "out")["warnings"]
    info = open_log(tmp_path / "out").info
    # What one of them does not say, the other one does.
    assert (info.task, info.robot, info.rate_hz) == ("Push", "panda", 10.0)
    assert info.software == "two, one"
    assert info.env == {"robot": "panda"} and info.calibration == {}
    assert info.config["policy"] == "x" and "seed" not in info.config
    first, second = info.config["merged_from"]
    assert (first["path"], first["episodes"], first["config"]) == (
        str(b), "0", {"seed": 2, "policy": "x"})
    assert (second["path"], second["episodes"], second["calibration"]) == (
        str(a), "0-1", {"hand_eye": [1.0]})
    # Provenance is kept over another merge.
    merge([tmp_path / "out", write(tmp_path / "c", [5])], tmp_path / "more")
    chain = open_log(tmp_path / "more").info.config["merged_from"]
    assert chain[0]["config"]["merged_from"][1]["path"] == str(a)


@pytest.mark.parametrize(
    ("field", "one", "two"),
    [("task", "Push", "Reach"), ("robot", "panda", "sawyer"), ("rate_hz", 10.0, 20.0)],
)
def test_what_differs_is_named_with_both_values(write, tmp_path, field, one, two):
    a = write(tmp_path / "a", [0], **{field: one})
    b = write(tmp_path / "b", [1], **{field: two})
    with pytest.raises(InvalidInputError) as caught:
        merge([a, b], tmp_path / "out")
    for word in (f"{field} is {one!r} in {a}", f"{two!r} in {b}"):
        assert word in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("sizes", [{"observation_dim": 5}, {"goal_dim": 3}, {"action_dim": 4}])
def test_sizes_that_differ_are_refused(episode, dataset_of, tmp_path, sizes):
    a = dataset_of(tmp_path / "a", [episode(3, 0)])
    b = dataset_of(tmp_path / "b", [episode(3, 1, **sizes)])
    name = {"observation_dim": "observation_shape"}.get(*sizes, *sizes)
    with pytest.raises(InvalidInputError, match=f"merge: {name} is "):
        merge([a, b], tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


def test_cameras_that_differ_are_refused(write, tmp_path):
    a, b = write(tmp_path / "a", [0], cameras=True), write(tmp_path / "b", [1])
    with pytest.raises(InvalidInputError, match=r"cameras is front \(4, 6, 3\) in .* and none in"):
        merge([a, b], tmp_path / "out")


def test_duplicates(write, tmp_path):
    a, b = write(tmp_path / "a", [0, 1, 2]), write(tmp_path / "b", [2, 3, 0])
    with pytest.raises(InvalidInputError, match=r"episode 0 of .*b has the same content as episode "
                       "2 of .*a; --duplicates skip"):
        merge([a, b], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    result = merge([a, b], tmp_path / "out", duplicates="skip")
    assert (result["episodes"], result["skipped"]) == (4, 2)
    assert numbers_in(tmp_path / "out") == [0, 1, 2, 3]
    origin = open_log(tmp_path / "out").info.config["merged_from"]
    assert [each["episodes"] for each in origin] == ["0-2", "1"]
    assert merge([a, b], tmp_path / "all", duplicates="keep")["episodes"] == 6
    with pytest.raises(InvalidInputError, match=r"unknown choice for duplicates 'drop'.*skip"):
        merge([a, b], tmp_path / "no", duplicates="drop")


def test_episodes_that_differ_in_one_frame_are_no_duplicates(write, episode, tmp_path):
    def record(name: str, value: int, when: float) -> Path:
        each = episode(3, 1)
        frames = np.zeros((4, 4, 6, 3), np.uint8)
        frames[2, 3, 5, 1] = value
        each.images["front"] = Images.each(frames, np.full(4, when))
        with DatasetWriter(tmp_path / name, DatasetInfo.of(each)) as writer:
            writer.append(each)
        return tmp_path / name

    a, b, c, d = (record("a", 1, 0.0), record("b", 2, 0.0), record("c", 1, 0.0),
                  record("d", 1, 1.0))
    assert merge([a, b, d], tmp_path / "out")["episodes"] == 3
    with pytest.raises(InvalidInputError, match="same content"):
        merge([a, c], tmp_path / "no")


def test_a_digest_knows_every_array(episode):
    base = episode(4, 1)
    found = {content_digest(base)}
    assert content_digest(replace(base, metadata={"instruction": "x"})) in found
    for change in (
        {"reward": base.reward + 1}, {"action": base.action * 2}, {"desired": base.desired - 1},
        {"success": ~base.success}, {"stamp_s": np.arange(5.0)},
        {"extra": {"force": np.zeros((5, 2), np.float32)}},
        {"extra": {"force": np.zeros((5, 2), np.float64)}},
        {"intervention": np.zeros(4, np.bool_)}, {"reset": np.zeros(4, np.bool_)},
    ):
        digest = content_digest(replace(base, **change))
        assert digest not in found, change
        found.add(digest)


def test_merge_takes_a_plain_npz_too(write, episode, tmp_path):
    rows = 6
    np.savez(tmp_path / "demo.npz", observations=np.ones((rows, 4), np.float32),
             actions=np.zeros((rows, 3), np.float32), rewards=np.zeros(rows, np.float32),
             episode_lengths=np.array([rows]))
    each = episode(3, 1, goal_dim=0)
    with DatasetWriter(tmp_path / "a", DatasetInfo.of(each)) as writer:
        writer.append(each)
    merge([tmp_path / "demo.npz", tmp_path / "a"], tmp_path / "out")
    loaded = load_dataset(tmp_path / "out")[1]
    assert len(loaded) == 2 and np.array_equal(loaded[0].observation, np.ones((rows, 4)))
    assert np.array_equal(loaded[1].action, each.action)


def test_a_damaged_episode_is_not_passed_on(write, tmp_path):
    a = write(tmp_path / "a", range(3))
    file = a / "episodes" / "000001.mcap"
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 3] ^= 1
    file.write_bytes(raw)
    for attempt in (lambda: merge([a], tmp_path / "out"),
                    lambda: merge([a], tmp_path / "out", duplicates="keep"),
                    lambda: split(a, [tmp_path / "out"])):
        with pytest.raises(InvalidInputError, match=r"000001\.mcap.*repair"):
            attempt()
        assert sorted(p.name for p in tmp_path.iterdir()) == ["a"]
    # The others can be had.
    split(a, [tmp_path / "out"], SplitOptions(episodes="0,2"))
    assert numbers_in(tmp_path / "out") == [0, 2]


# -- places -------------------------------------------------------------------------------------


def test_places_in_use_are_refused_and_can_be_set_aside(write, tmp_path):
    a, out = write(tmp_path / "a", [0, 1]), write(tmp_path / "out", [5])
    before = content(out)
    for attempt in (lambda: merge([a], out), lambda: split(a, [tmp_path / "x", out])):
        with pytest.raises(InvalidInputError, match="out is already there and not empty"):
            attempt()
    assert content(out) == before and not (tmp_path / "x").exists()
    merge([a], out, overwrite=True)
    assert numbers_in(out) == [0, 1] and content(tmp_path / "out.old") == before


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_source_is_never_written_over(write, tmp_path, overwrite):
    a, b = write(tmp_path / "a", [0]), write(tmp_path / "b.old", [1])
    before = content(tmp_path)
    (tmp_path / "link").symlink_to(a)
    places = [a, a / "x", a / "episodes", tmp_path, tmp_path / "link", tmp_path / "link" / "y"]
    for out in places:
        with pytest.raises(InvalidInputError, match=r"written over|choose a place outside"):
            merge([a, b], out, overwrite=overwrite)
        with pytest.raises(InvalidInputError, match=r"written over|choose a place outside"):
            split(b, [tmp_path / "c", tmp_path / "c"], overwrite=overwrite)
    (tmp_path / "link").unlink()
    assert content(tmp_path) == before


def test_what_was_set_aside_before_is_a_source_like_any_other(write, tmp_path):
    a, old = write(tmp_path / "a", [0]), write(tmp_path / "b.old", [1])
    write(tmp_path / "b", [2])
    before = content(old)
    merge([a, old], tmp_path / "b", overwrite=True)
    assert numbers_in(tmp_path / "b") == [0, 1] and content(old) == before
    assert numbers_in(tmp_path / "b.old2") == [2]


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError,
                                   OSError(28, "No space left on device")])
def test_stopped_in_the_middle_it_leaves_nothing(write, tmp_path, monkeypatch, error):
    a = write(tmp_path / "a", range(5))
    (tmp_path / "empty").mkdir()
    before = content(a)
    real, done = edit_module._copy, []

    def fail(path: Path, target: Path) -> None:
        if len(done) == 3:
            raise error
        done.append(path)
        real(path, target)

    monkeypatch.setattr(edit_module, "_copy", fail)
    for attempt in (
        lambda: merge([a], tmp_path / "out"),
        lambda: split(a, [tmp_path / "out", tmp_path / "two"]),
        lambda: split(a, [tmp_path / "out", tmp_path / "empty"], overwrite=True),
    ):
        done.clear()
        with pytest.raises((KeyboardInterrupt, MemoryError, InvalidInputError)):
            attempt()
        assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "empty"]
    assert content(a) == before


def test_a_full_disk_says_so(write, tmp_path, monkeypatch):
    a = write(tmp_path / "a", range(2))
    real = os.write

    def full(handle: int, data: object) -> int:
        if os.readlink(f"/proc/self/fd/{handle}").endswith("000001.mcap"):
            raise OSError(28, "No space left on device")
        return real(handle, data)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(StorageError, match="No space left on device; make room"):
        merge([a], tmp_path / "out")
    assert not (tmp_path / "out").exists()


# -- split --------------------------------------------------------------------------------------


def test_split_by_fractions(write, tmp_path):
    a = write(tmp_path / "a", range(10))
    before = content(a)
    names = [tmp_path / "x", tmp_path / "y"]
    result = split(a, names, SplitOptions(fractions=(0.7, 0.3), seed=3))
    x, y = (numbers_in(name) for name in names)
    assert (len(x), len(y)) == (7, 3) and sorted(x + y) == list(range(10))
    assert x == sorted(x) and y == sorted(y) and x != list(range(7))
    assert [part["episodes"] for part in result["parts"]] == [7, 3] and result["left_out"] == 0
    assert [part["success_rate"] for part in result["parts"]] == [
        np.mean([n % 2 for n in x]), np.mean([n % 2 for n in y])]
    origin = open_log(names[1]).info.config["split_from"][0]
    assert origin["episodes"] == spans(y) and origin["split"]["seed"] == 3
    again = [tmp_path / "p", tmp_path / "q"]
    split(a, again, SplitOptions(fractions=(0.7, 0.3), seed=3))
    assert numbers_in(again[0]) == x
    split(a, again, SplitOptions(fractions=(0.7, 0.3), seed=4), overwrite=True)
    assert numbers_in(again[0]) != x
    assert content(a) == before


def test_split_in_order_and_by_success(write, tmp_path):
    a = write(tmp_path / "a", range(7))
    split(a, [tmp_path / "x", tmp_path / "y", tmp_path / "z"], SplitOptions(by="order"))
    assert [numbers_in(tmp_path / n) for n in "xyz"] == [[0, 1, 2], [3, 4], [5, 6]]
    split(a, [tmp_path / "good", tmp_path / "bad"], SplitOptions(by="success"))
    assert numbers_in(tmp_path / "good") == [1, 3, 5]
    assert numbers_in(tmp_path / "bad") == [0, 2, 4, 6]
    result = split(a, [tmp_path / "best"], SplitOptions(episodes="0-3,5-", successes_only=True))
    assert numbers_in(tmp_path / "best") == [1, 3, 5] and result["left_out"] == 4


@pytest.mark.parametrize(
    ("options", "outs", "message"),
    [
        ({"fractions": (0.5,)}, 2, "1 fractions for 2 places"),
        ({"fractions": (0.5, 0.4)}, 2, "sum to 0.9, should sum to 1"),
        ({"fractions": (1.5, -0.5)}, 2, r"each should be in \(0, 1\]"),
        ({"fractions": (float("nan"), 0.5)}, 2, r"each should be in \(0, 1\]"),
        ({"fractions": (0.99, 0.01)}, 2, "leave nothing for .*1"),
        ({"by": "success"}, 3, "takes two places"),
        ({"by": "success", "fractions": (0.5, 0.5)}, 2, "no --fractions"),
        ({"by": "success", "episodes": "0,2"}, 2, "leave nothing for .*0"),
        ({"by": "camera"}, 2, "unknown way to split 'camera'.*random, order, success"),
        ({"seed": -1}, 2, "seed is -1"),
        ({"episodes": "9"}, 1, "episodes: 9 is not in .*it holds 4 episodes, 0 to 3"),
        ({"episodes": "1-99999999999999"}, 1, "99999999999999 is not in"),
        ({"episodes": "3-1"}, 1, "the range 3-1 runs backwards"),
        ({"episodes": "two"}, 1, "'two' is neither a number nor a range"),
        ({"episodes": "1,,2"}, 1, "'' is neither a number nor a range"),
        ({"episodes": "-1"}, 1, "'-1' is neither"),
        ({"episodes": "0,2", "successes_only": True}, 1, "no successful episodes among 0,2"),
        ({}, 0, "no place to write to"),
    ],
)
def test_splits_that_cannot_be(write, tmp_path, options, outs, message):
    a = write(tmp_path / "a", range(4))
    with pytest.raises(InvalidInputError, match=message):
        split(a, [tmp_path / str(i) for i in range(outs)], SplitOptions(**options))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a"]


def test_numbers_stay_when_episodes_are_missing(write, tmp_path):
    a = write(tmp_path / "a", range(6))
    (a / "episodes" / "000002.mcap").unlink()
    source = open_source(a)
    assert [entry.number for entry in select(source, "1-3")] == [1, 3]
    with pytest.raises(InvalidInputError, match="2 is not in"):
        select(source, "2")
    split(a, [tmp_path / "out"], SplitOptions(episodes="3-"))
    assert numbers_in(tmp_path / "out") == [3, 4, 5]


# -- properties ---------------------------------------------------------------------------------


@QUICK
@given(count=st.integers(2, 9), cut=st.floats(0.15, 0.85), seed=st.integers(0, 2**32),
       by=st.sampled_from(["random", "order", "success"]))
def test_split_then_merge_loses_and_doubles_nothing(write, tmp_path, count, cut, seed, by):
    base = tmp_path / "property"
    shutil.rmtree(base, ignore_errors=True)
    base.mkdir()
    a = write(base / "a", range(count))
    fractions = () if by == "success" else (cut, 1.0 - cut)
    if by != "success" and not 1 <= round(count * cut) < count:
        return
    outs = [base / "x", base / "y"]
    try:
        split(a, outs, SplitOptions(by=by, fractions=fractions, seed=seed))
    except InvalidInputError as error:
        assert "leave nothing" in str(error) and not outs[0].exists()
        return
    x, y = (numbers_in(out) for out in outs)
    assert sorted(x + y) == list(range(count)) and x == sorted(x) and y == sorted(y)
    merge(outs, base / "m")
    assert numbers_in(base / "m") == x + y
    original = files(a)
    assert files(base / "m") == [original[n] for n in x + y]
    # Every episode is there already, so that nothing is added.
    again = merge([base / "m", a], base / "twice", duplicates="skip")
    assert (again["episodes"], again["skipped"]) == (count, count)


@given(numbers=st.sets(st.integers(0, 60), min_size=1))
@settings(max_examples=50, deadline=None)
def test_spans_are_read_back(numbers):
    from robot_rl.data.summary import Entry, Source

    entries = [Entry(number, steps=1) for number in range(61)]
    source = Source(Path("x"), None, None, entries)  # type: ignore[arg-type]
    chosen = select(source, spans(sorted(numbers)))
    assert {entry.number for entry in chosen} == numbers


@given(count=st.integers(1, 1000), weights=st.lists(st.integers(1, 50), min_size=1, max_size=6))
@settings(max_examples=100, deadline=None)
def test_sizes_are_in_proportion(count, weights):
    shares = [w / sum(weights) for w in weights]
    sizes = edit_module._sizes(count, [Path(str(i)) for i in range(len(shares))], shares)
    assert sum(sizes) == count
    assert all(abs(size - count * share) < 1.0 for size, share in zip(sizes, shares, strict=True))
