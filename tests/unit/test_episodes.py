"""Episodes on disk: exact, whole or not there, and suspicious of everything they read."""

from __future__ import annotations

import errno
import io
import json
import os
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from robot_rl.data import (
    DatasetInfo,
    DatasetWriter,
    Episode,
    EpisodeRecorder,
    Images,
    load_dataset,
)
from robot_rl.data import files as data_files
from robot_rl.data.episodes import OBSERVATION, REWARD
from robot_rl.data.files import new_folder, read_json, write_atomically, write_json
from robot_rl.errors import InvalidInputError, StorageError

ARRAYS = ("observation", "achieved", "desired", "action", "reward", "terminated", "truncated",
          "success")


def assert_same(one: Episode, two: Episode) -> None:
    for name in ARRAYS:
        first, second = getattr(one, name), getattr(two, name)
        assert first.dtype == second.dtype, name
        assert first.tobytes() == second.tobytes(), name


def names_in(folder) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in Path(folder).rglob("*"))


@pytest.fixture
def recorded(tmp_path, episode, dataset_of) -> Path:
    """Three episodes in a folder."""
    return Path(dataset_of(tmp_path / "data", [episode(n + 2, n) for n in range(3)], "Push"))


# -- round trip ---------------------------------------------------------------------------------


def test_what_is_written_is_read_back_to_the_bit(tmp_path):
    rng = np.random.default_rng(0)
    written = []
    for steps in (1, 5):
        odd = rng.normal(size=(steps + 1, 4)).astype(np.float32)
        odd[0] = [np.float32(1e-45), -0.0, np.finfo(np.float32).max, 1 / 3]
        written.append(Episode(
            observation=odd, achieved=odd[:, :2].copy(), desired=odd[0, :2].copy(),
            action=rng.uniform(-1, 1, (steps, 3)).astype(np.float32),
            reward=rng.normal(size=steps).astype(np.float32),
            terminated=rng.random(steps) < 0.5, truncated=rng.random(steps) < 0.5,
            success=rng.random(steps) < 0.5,
            requested=rng.uniform(-1, 1, (steps, 3)).astype(np.float32)))
    info = DatasetInfo("Push", (4,), 2, 3, env={"robot": "panda"}, config={"seed": 1})
    writer = DatasetWriter(tmp_path / "d", info)
    for each in written:
        writer.append(each)
    writer.close()
    found, episodes = load_dataset(tmp_path / "d")
    assert found == info
    for one, two in zip(written, episodes, strict=True):
        assert_same(one, two)
        assert np.array_equal(one.requested, two.requested)


def test_images_stay_bytes_and_are_kept_once(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (3, 6, 5, 3)).astype(np.uint8)
    one = Episode(np.zeros((4, 0), np.float32), np.zeros((4, 0), np.float32),
                  np.zeros(0, np.float32), np.zeros((3, 2), np.float32), np.zeros(3, np.float32),
                  np.zeros(3, bool), np.zeros(3, bool), np.zeros(3, bool),
                  images={"front": Images(frames, np.array([0, 0, 1, 2]),
                                          np.array([0.1, 0.2, 1.7e9 + 1e-7]))})
    with DatasetWriter(tmp_path / "d", DatasetInfo.of(one)) as writer:
        writer.append(one)
    info, (two,) = load_dataset(tmp_path / "d")
    assert info.cameras == {"front": (6, 5, 3)}
    assert_same(one, two)
    assert np.array_equal(two.images["front"].frames, frames)
    assert two.images["front"].index.tolist() == [0, 0, 1, 2]
    assert two.images["front"].stamp_s.tolist() == [0.1, 0.2, 1.7e9 + 1e-7]


def test_a_recording_of_an_environment_holds_what_was_executed():
    from robot_rl.envs import make_env

    env = make_env("Push", "panda", randomization={"action_bias": 0.3})
    observation, info = env.reset(seed=0)
    recorder = EpisodeRecorder()
    recorder.start(observation, info)
    rows = [observation]
    executed = []
    for action in np.random.default_rng(0).uniform(-1, 1, (6, 3)):
        observation, reward, terminated, truncated, info = env.step(action)
        recorder.add(action, observation, reward, terminated, truncated, info)
        rows.append(observation)
        executed.append(info["executed_action"])
    one = recorder.finish()
    one.check("recording")
    assert np.array_equal(one.observation, np.stack([r["observation"] for r in rows]))
    assert np.array_equal(one.achieved, np.stack([r["achieved_goal"] for r in rows]))
    assert np.array_equal(one.action, np.stack(executed))
    assert not np.array_equal(one.action, one.requested)
    assert np.array_equal(one.reward, env.task.reward(one.achieved[1:], one.desired))
    env.close()


# -- whole or not there -------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["rename", "fsync", "write"])
def test_a_disk_that_fails_leaves_the_earlier_episodes_and_no_half_file(
    recorded, episode, monkeypatch, where
):
    writer, earlier = DatasetWriter.reopen(recorded, 3)
    before = {p: p.read_bytes() for p in recorded.rglob("*") if p.is_file()}

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(data_files.os, where, full)
    with pytest.raises(StorageError, match=r"cannot write .*000003.mcap.*: No space left.*make"):
        writer.append(episode(4, 9))
    monkeypatch.undo()
    assert writer.count == 3 and len(load_dataset(recorded)[1]) == 3
    after = {p: p.read_bytes() for p in recorded.rglob("*") if p.is_file()}
    assert all(after[path] == before[path] for path in before)
    writer.append(episode(4, 9))
    writer.close()
    _, episodes = load_dataset(recorded)
    assert len(episodes) == 4
    for one, two in zip(earlier, episodes[:3], strict=True):
        assert_same(one, two)


def test_a_bad_episode_is_not_written(recorded, episode):
    writer, _ = DatasetWriter.reopen(recorded, 3)
    bad = episode(3)
    bad.reward[1] = np.nan
    with pytest.raises(InvalidInputError, match=r"episode 3: next.reward holds values"):
        writer.append(bad)
    assert len(load_dataset(recorded)[1]) == 3


def test_reopening_sets_aside_what_came_after(recorded, episode):
    _, all_of_them = load_dataset(recorded)
    writer, kept = DatasetWriter.reopen(recorded, 2)
    assert len(kept) == 2 and writer.count == 2
    assert names_in(recorded / "episodes") == ["000000.mcap", "000001.mcap"]
    assert names_in(recorded / "set_aside") == ["000002.mcap"], "nothing recorded is deleted"
    writer.append(all_of_them[2])
    writer.close()
    for one, two in zip(all_of_them, load_dataset(recorded)[1], strict=True):
        assert_same(one, two)
    writer, none = DatasetWriter.reopen(recorded, 0)
    assert none == [] and writer.info.task == "Push" and names_in(recorded / "episodes") == []
    assert len(names_in(recorded / "set_aside")) == 4
    writer.close()
    with pytest.raises(InvalidInputError, match="holds 0 episodes, 5 are needed to go on"):
        DatasetWriter.reopen(recorded, 5)


def test_a_left_over_of_a_crash_is_ignored(recorded):
    (recorded / "episodes" / ".000003.mcap.part").write_bytes(b"half")
    assert len(load_dataset(recorded)[1]) == 3


def test_a_folder_in_use_is_refused_or_set_aside(tmp_path):
    used = tmp_path / "used"
    used.mkdir()
    (used / "mine.txt").write_text("precious")
    with pytest.raises(InvalidInputError, match=r"dataset: .*used is already there and not empty"):
        new_folder(used, "dataset")
    assert names_in(used) == ["mine.txt"]
    for round in range(2):
        assert new_folder(used, "dataset", overwrite=True) == used
        assert names_in(used) == []
        assert (tmp_path / "used.old").is_dir()
        (used / f"{round}.txt").write_text("")
    assert names_in(tmp_path / "used.old") == ["mine.txt"]
    assert names_in(tmp_path / "used.old2") == ["0.txt"], "nothing that was set aside is lost"
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(InvalidInputError, match="is already there"):
        new_folder(file, "dataset")
    with pytest.raises(InvalidInputError, match=r"cannot use .*file/inside: Not a directory"):
        new_folder(file / "inside", "dataset")
    with pytest.raises(InvalidInputError, match="dataset: cannot use /proc/nowhere/here"):
        new_folder(Path("/proc/nowhere/here"), "dataset")


def test_json_is_written_whole(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"a": float("nan")})
    monkeypatch.setattr(data_files.os, "replace", lambda *a: (_ for _ in ()).throw(
        OSError(errno.EIO, "Input/output error")))
    with pytest.raises(InvalidInputError, match=r"cannot write .*a.json: Input/output error"):
        write_atomically(path, b"{}")
    assert json.loads(path.read_text()) == {"a": 1} and names_in(tmp_path) == ["a.json"]


# -- hostile folders ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is not valid JSON"),
        (b"\xff\xfe\x00{}", "is not valid JSON"),
        (b"\x80abc", "is not valid JSON"),
        (b"[" * 100_000, "is not valid JSON"),
        (b"[1]", "does not describe a dataset"),
        (b"null", "does not describe a dataset"),
        (b'{"task": "Push"}', "does not describe a dataset .*observation_shape"),
        (b'{"task": "Push", "observation_shape": [4], "goal_dim": 2, "action_dim": 3, "x": 1}',
         "does not describe a dataset .*x"),
        (b'{"task": "Push", "observation_shape": ["a"], "goal_dim": 2, "action_dim": 3}',
         "does not describe a dataset"),
        (b'{"task": "Push", "observation_shape": 4, "goal_dim": 2, "action_dim": 3}',
         "does not describe a dataset"),
        (b'{"task": 5, "observation_shape": [4], "goal_dim": 2, "action_dim": 3}',
         "does not describe a dataset .task is 5"),
        (b'{"task": "Push", "observation_shape": [4], "goal_dim": 2, "action_dim": 3, "env": []}',
         "does not describe a dataset .env is"),
        (b'{"task": "Push", "observation_shape": [4], "goal_dim": 2, "action_dim": 3, '
         b'"format": 99}', "has format 99, this version reads 2 and 1"),
        (b'{"task": "Push", "observation_shape": [5], "goal_dim": 2, "action_dim": 3}',
         r"000000.mcap has observation \(4,\), goal 2, action 3; dataset.json says \(5,\), 2, 3"),
    ],
)
def test_a_damaged_description_is_named(recorded, content, message):
    (recorded / "dataset.json").write_bytes(content)
    with pytest.raises(InvalidInputError, match=message) as caught:
        load_dataset(recorded)
    assert str(recorded) in str(caught.value)


@pytest.fixture
def recorded_v1(tmp_path, episode) -> Path:
    """Three episodes in a folder of the former format, an npz each."""
    folder = tmp_path / "v1"
    (folder / "episodes").mkdir(parents=True)
    (folder / "dataset.json").write_text(json.dumps({
        "task": "Push", "observation_shape": [4], "goal_dim": 2, "action_dim": 3, "env": {},
        "config": {}, "format": 1}))
    for number in range(3):
        one = episode(number + 2, number)
        np.savez_compressed(folder / "episodes" / f"{number:06d}.npz", **{
            OBSERVATION: one.observation, "observation.achieved_goal": one.achieved,
            "observation.desired_goal": one.desired, "action": one.action, REWARD: one.reward,
            "next.terminated": one.terminated, "next.truncated": one.truncated,
            "next.success": one.success, "action.requested": one.requested})
    return folder


def test_a_folder_of_the_former_format_is_still_read(recorded_v1, episode):
    info, episodes = load_dataset(recorded_v1)
    assert (info.task, info.observation_shape) == ("Push", (4,))
    for number, one in enumerate(episodes):
        assert_same(one, episode(number + 2, number))


def good_arrays() -> dict[str, np.ndarray]:
    return {
        "observation.state": np.zeros((4, 4), np.float32),
        "observation.achieved_goal": np.zeros((4, 2), np.float32),
        "observation.desired_goal": np.zeros(2, np.float32),
        "action": np.zeros((3, 3), np.float32),
        "next.reward": np.zeros(3, np.float32),
        "next.terminated": np.zeros(3, bool),
        "next.truncated": np.zeros(3, bool),
        "next.success": np.zeros(3, bool),
    }


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("action", None, "lacks action"),
        ("next.success", None, "lacks next.success"),
        ("observation.state", np.array([[1], [2, 3]], dtype=object), "cannot be read: .*pickle"),
        ("action", np.array(0.0), r"action has shape \(\), should be \(steps, dimension\)"),
        ("action", np.zeros((0, 3)), r"action has shape \(0, 3\)"),
        ("action", np.zeros(3), r"action has shape \(3,\)"),
        ("action", np.full((3, 3), np.nan), "action holds values that are not finite"),
        ("action", np.full((3, 3), "a"), "action has type <U1"),
        ("action", np.zeros((3, 3), complex), "action has type complex128"),
        ("observation.state", np.zeros((3, 4)), r"has shape \(3, 4\), should have 4 rows"),
        ("observation.state", np.zeros(4), r"should be \(4, dimension\)"),
        ("observation.state", np.full((4, 4), -np.inf), "not finite"),
        ("observation.state", np.full((4, 4), 1e300), "not finite"),
        ("observation.achieved_goal", np.zeros((4, 3)), "desired_goal has shape"),
        ("observation.desired_goal", np.zeros((1, 2)), "desired_goal has shape"),
        ("observation.desired_goal", np.array([0, np.nan]), "desired_goal holds values"),
        ("next.reward", np.zeros((3, 2)), r"next.reward has shape \(3, 2\), should be \(3,\)"),
        ("next.reward", np.zeros(4), r"next.reward has shape \(4,\), should have 3 rows"),
        ("next.reward", np.array(1.0), "next.reward has shape"),
        ("next.terminated", np.zeros(2, bool), "next.terminated has shape"),
        ("action.requested", np.zeros((2, 3)), "action.requested has shape"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
def test_a_hostile_episode_is_named(recorded_v1, name, value, message):
    arrays = good_arrays()
    arrays.pop(name, None)
    if value is not None:
        arrays[name] = value
    file = recorded_v1 / "episodes" / "000001.npz"
    np.savez(file, **arrays)
    with pytest.raises(InvalidInputError, match=message) as caught:
        load_dataset(recorded_v1)
    assert str(file) in str(caught.value)


def npy_header(shape: str, descr: str = "<f4") -> bytes:
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}"
    text += " " * (-(10 + len(text) + 1) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


@pytest.mark.parametrize(
    "content",
    [
        b"no array at all",
        b"",
        npy_header("(1000000000000, 4)"),
        npy_header("(-5, 4)"),
        npy_header("(4, 4)"),
        npy_header("(4, 4)", "O") + b"\x80\x04cos\nsystem\n.",
        npy_header("__import__('os').getpid()"),
        npy_header("(4, " + "4, " * 100 + ")"),
        b"\x93NUMPY\x09\x00" + b"\x00" * 50,
    ],
    ids=["noise", "empty", "bomb", "negative", "short", "pickle", "code", "many axes", "version"],
)
def test_a_hostile_array_in_the_archive_is_named(recorded_v1, content):
    file = recorded_v1 / "episodes" / "000001.npz"
    with zipfile.ZipFile(file, "w") as archive:
        for name, value in good_arrays().items():
            buffer = io.BytesIO()
            np.save(buffer, value)
            archive.writestr(f"{name}.npy",
                             content if name == OBSERVATION else buffer.getvalue())
    with pytest.raises(InvalidInputError, match="dataset: ") as caught:
        load_dataset(recorded_v1)
    assert str(file) in str(caught.value)


def test_a_zip_bomb_is_not_unpacked(recorded_v1):
    file = recorded_v1 / "episodes" / "000001.npz"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{OBSERVATION}.npy", b"\0" * 1000)
    raw = bytearray(file.read_bytes())
    # The central directory's size of the unpacked content: three gigabytes.
    at = raw.rindex(b"PK\x01\x02")
    raw[at + 24 : at + 28] = struct.pack("<I", 3 << 30)
    file.write_bytes(bytes(raw))
    with pytest.raises(InvalidInputError, match=r"unpacks to 3221225472 bytes, the limit is"):
        load_dataset(recorded_v1)


def test_a_file_cut_anywhere_or_with_a_byte_changed_is_named_or_right(recorded_v1):
    file = recorded_v1 / "episodes" / "000001.npz"
    good = file.read_bytes()
    _, expected = load_dataset(recorded_v1)
    rng = np.random.default_rng(0)
    for cut in (0, 1, 30, len(good) // 2, len(good) - 1):
        file.write_bytes(good[:cut])
        with pytest.raises(InvalidInputError, match=r"000001.npz"):
            load_dataset(recorded_v1)
    refused = 0
    for _ in range(150):
        raw = bytearray(good)
        raw[rng.integers(len(raw))] ^= int(rng.integers(1, 256))
        file.write_bytes(bytes(raw))
        try:
            _, episodes = load_dataset(recorded_v1)
        except InvalidInputError as error:
            assert "000001.npz" in str(error)
            refused += 1
        else:
            # What is not content (a date, say) may change; content may not.
            assert_same(episodes[1], expected[1])
    assert refused > 75


def test_missing_and_misplaced_paths_are_named(tmp_path, recorded):
    for path, message in (
        (tmp_path / "nowhere", "dataset: .*nowhere does not exist"),
        (tmp_path, "dataset.json does not exist"),
        (recorded / "episodes", "dataset.json does not exist"),
        (recorded / "dataset.json", "cannot be read: File is not a zip file"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            load_dataset(path)
    for file in (recorded / "episodes").iterdir():
        file.unlink()
    with pytest.raises(InvalidInputError, match="holds no episodes"):
        load_dataset(recorded)
    (recorded / "episodes" / "000000.mcap").mkdir()
    with pytest.raises(InvalidInputError, match="holds no episodes"):
        load_dataset(recorded)
    (recorded / "dataset.json").unlink()
    (recorded / "dataset.json").mkdir()
    with pytest.raises(InvalidInputError, match=r"cannot read .*dataset.json: Is a directory"):
        load_dataset(recorded)


def test_reading_json_names_what_it_was_for(tmp_path):
    with pytest.raises(InvalidInputError, match=r"run: .*none.json does not exist"):
        read_json(tmp_path / "none.json", "run")


# -- plain npz ----------------------------------------------------------------------------------


def plain(lengths=(3, 4), o=5, a=2) -> dict[str, np.ndarray]:
    steps = sum(lengths)
    rng = np.random.default_rng(0)
    return {"observations": rng.normal(size=(steps, o)), "actions": rng.uniform(-1, 1, (steps, a)),
            "rewards": rng.normal(size=steps), "episode_lengths": np.array(lengths)}


def test_a_plain_npz_becomes_episodes(tmp_path):
    arrays = plain()
    np.savez(tmp_path / "demos.npz", **arrays, other=np.zeros(3))
    info, episodes = load_dataset(tmp_path / "demos.npz")
    assert (info.task, info.observation_shape, info.goal_dim, info.action_dim) == ("", (5,), 0, 2)
    assert [len(e) for e in episodes] == [2, 3], "a last observation has no successor"
    first = 0
    for one, length in zip(episodes, (3, 4), strict=True):
        rows = slice(first, first + length)
        assert np.array_equal(one.observation, arrays["observations"][rows].astype(np.float32))
        assert np.array_equal(one.action, arrays["actions"][rows][:-1].astype(np.float32))
        assert np.array_equal(one.reward, arrays["rewards"][rows][:-1].astype(np.float32))
        assert one.truncated.tolist() == [False] * (length - 2) + [True]
        assert not one.terminated.any() and one.achieved.shape == (length, 0)
        first += length


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"actions": None}, "lacks actions; a plain npz needs observations, actions, rewards and"),
        ({"episode_lengths": None}, "lacks episode_lengths"),
        ({"episode_lengths": np.array([3, 5])}, r"observations has shape \(7, 5\).*8 rows"),
        ({"episode_lengths": np.array([8, -1])}, "episode_lengths should be one or more whole"),
        ({"episode_lengths": np.array([6, 1])}, "episode_lengths should be"),
        ({"episode_lengths": np.array([3.0, 4.0])}, "episode_lengths should be"),
        ({"episode_lengths": np.array(7)}, "episode_lengths should be"),
        ({"episode_lengths": np.array([], int)}, "episode_lengths should be"),
        ({"episode_lengths": np.array([2**62, 2**62])}, "observations has shape"),
        ({"observations": np.zeros((7, 5, 1))}, "observations has shape .*should have 2 axes"),
        ({"observations": np.array(1.0)}, "observations has shape"),
        ({"observations": np.full((7, 5), np.nan)}, "episode 0: observation.state holds values"),
        ({"actions": np.zeros((6, 2))}, r"actions has shape \(6, 2\).*7 rows"),
        ({"actions": np.full((7, 2), "x")}, "actions has shape"),
        ({"rewards": np.zeros((7, 1))}, "rewards has shape"),
        ({"rewards": np.array([0, 0, 0, 0, np.inf, 0, 0])}, "episode 1: next.reward"),
        ({"rewards": np.array([None] * 7, dtype=object)}, "cannot be read: .*pickle"),
    ],
)
def test_a_plain_npz_that_is_off_is_named(tmp_path, change, message):
    arrays = {**plain(), **change}
    file = tmp_path / "demos.npz"
    np.savez(file, **{k: v for k, v in arrays.items() if v is not None})
    with pytest.raises(InvalidInputError, match=message) as caught:
        load_dataset(file)
    assert str(file) in str(caught.value)


def test_a_rule_needs_the_observations_of_its_task(tmp_path):
    from robot_rl.envs.external import apply_rule

    np.savez(tmp_path / "demos.npz", **plain(o=39))
    _, episodes = load_dataset(tmp_path / "demos.npz")
    episodes[0].observation[2, 28] = 1.5
    done = apply_rule("AdroitHandDoor-v1", episodes)
    assert done[0].reward.tolist() == [-1.0, 0.0] and done[0].success.tolist() == [False, True]
    np.savez(tmp_path / "other.npz", **plain(o=20))
    _, episodes = load_dataset(tmp_path / "other.npz")
    with pytest.raises(InvalidInputError,
                       match=r"observations of shape \(20,\), the task AdroitHandDoor-v1 has"):
        apply_rule("AdroitHandDoor-v1", episodes)
    assert REWARD == "next.reward"
