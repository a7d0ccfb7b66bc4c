"""Plain npz files and the former folder format, read as before, and with flags and mappings.

What a plain npz becomes without them is in test_episodes.py.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from robot_rl.data.importers.base import ImportOptions
from robot_rl.data.importers.npz import load_folder_v1, load_npz, open_source
from robot_rl.errors import InvalidInputError


def plain(**more: np.ndarray) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {"observations": rng.normal(size=(7, 5)), "actions": rng.normal(size=(7, 2)) * 2,
            "rewards": rng.normal(size=7), "episode_lengths": np.array([3, 4]), **more}


def saved(folder: Path, arrays: dict[str, np.ndarray]) -> Path:
    np.savez_compressed(folder / "demos.npz", **arrays)
    return folder / "demos.npz"


def test_actions_are_clipped_and_kept_as_asked(tmp_path):
    arrays = plain()
    info, episodes = load_npz(saved(tmp_path, arrays))
    assert info.config == {"source": "demos.npz"} and info.action_dim == 2
    assert np.array_equal(episodes[1].requested, arrays["actions"][3:6].astype(np.float32))
    assert np.array_equal(episodes[1].action, np.clip(episodes[1].requested, -1, 1))
    source = open_source(tmp_path / "demos.npz", ImportOptions(task="Push", rate_hz=5.0))
    assert (source.info.task, source.info.rate_hz, source.count) == ("Push", 5.0, 2)
    for one, two in zip(source, episodes, strict=True):
        assert np.array_equal(one.observation, two.observation)


def test_terminals_and_timeouts_count(tmp_path):
    terminals, timeouts = np.zeros(7, bool), np.zeros(7)
    terminals[2] = True
    timeouts[4] = timeouts[6] = 1
    arrays = plain(terminals=terminals, timeouts=timeouts)
    _, (one, two) = load_npz(saved(tmp_path, arrays))
    # The first ended the task: its last step counts, after which its last state stands in.
    assert len(one) == 3 and one.terminated.tolist() == [False, False, True]
    assert not one.truncated.any()
    assert np.array_equal(one.observation[2], one.observation[3])
    assert np.array_equal(one.reward, arrays["rewards"][:3].astype(np.float32))
    # The second ran out of time: where its last step led was not stored.
    assert len(two) == 3 and two.truncated.tolist() == [False, True, True]
    assert not two.terminated.any()
    with pytest.raises(InvalidInputError, match=r"terminals has shape .*should have 1 axes and 7"):
        load_npz(saved(tmp_path, plain(terminals=np.zeros(6))))


def test_a_mapping_makes_goals_and_success(tmp_path):
    arrays = plain(terminals=np.arange(7) == 6, extra=np.arange(14).reshape(7, 2), odd=np.zeros(3))
    source = open_source(saved(tmp_path, arrays), ImportOptions(mapping={
        "observation.state": {"from": "observations", "columns": [0, 3]},
        "observation.achieved_goal": {"from": "observations", "columns": [3, 5]},
        "next.success": {"from": "rewards", "at_least": 0.0}, "drop": ["timeouts"]}))
    first, second = list(source)
    assert np.array_equal(first.observation, arrays["observations"][:3, :3].astype(np.float32))
    assert np.array_equal(first.achieved, arrays["observations"][:3, 3:].astype(np.float32))
    assert np.array_equal(first.desired, first.achieved[-1])
    assert np.array_equal(second.success, arrays["rewards"][3:] >= 0)
    assert len(second) == 4 and second.terminated[-1]
    assert np.array_equal(first.extra["extra"], arrays["extra"][:3])
    assert any("odd" in note for note in source.notes)
    for mapping, message in (
        ({"observation.state": "observation"}, "unknown part of npz.*did you mean 'observations'"),
        ({"action": {"from": "actions", "columns": [1, 3]}}, "needs columns 1 to 2 of actions"),
        ({"action": {"from": "actions", "column": [1, 3]}}, "unknown mapping key of action"),
        ({"action": {"from": "actions", "columns": [2, 1]}}, r"should be \[first, end\]"),
        ({"action": 5}, "action is 5, should be a name"),
        ({"next.reward": "actions"}, "next.reward has 2 numbers in a row"),
        ({"observation.images.a": "actions"}, "cannot be observation.images.a"),
        ({"next.success": {"from": "rewards", "at_least": "x"}}, "at_least of next.success"),
        ({5: "actions"}, "unknown mapping key 5"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            list(open_source(tmp_path / "demos.npz", ImportOptions(mapping=mapping)))


def folder_v1(path: Path, image: bool) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    observation = (rng.integers(0, 256, (4, 6, 5, 3)).astype(np.uint8) if image
                   else rng.normal(size=(4, 5)).astype(np.float32))
    arrays = {
        "observation.state": observation, "action": rng.normal(size=(3, 2)).astype(np.float32),
        "observation.achieved_goal": rng.normal(size=(4, 2)).astype(np.float32),
        "observation.desired_goal": np.ones(2, np.float32), "next.reward": np.ones(3, np.float32),
        "next.terminated": np.zeros(3, bool), "next.truncated": np.arange(3) == 2,
        "next.success": np.arange(3) == 1, "action.requested": np.ones((3, 2), np.float32)}
    (path / "episodes").mkdir(parents=True)
    np.savez_compressed(path / "episodes/000000.npz", **arrays)
    (path / "dataset.json").write_text(json.dumps({
        "task": "Push", "observation_shape": observation.shape[1:], "goal_dim": 2,
        "action_dim": 2, "env": {"robot": "panda"}, "config": {}, "format": 1}))
    return arrays


@pytest.mark.parametrize("image", [False, True])
def test_the_former_folder_is_read(tmp_path, image):
    arrays = folder_v1(tmp_path / "d", image)
    info, (one,) = load_folder_v1(tmp_path / "d")
    assert info.task == "Push" and info.env == {"robot": "panda"} and info.format == 2
    if image:
        assert info.cameras == {"camera": (6, 5, 3)} and info.observation_shape == (0,)
        assert np.array_equal(one.images["camera"].at(slice(None)), arrays["observation.state"])
    else:
        assert np.array_equal(one.observation, arrays["observation.state"])
    for key, found in (("action", one.action), ("next.success", one.success),
                       ("action.requested", one.requested), ("next.truncated", one.truncated),
                       ("observation.desired_goal", one.desired), ("next.reward", one.reward)):
        assert found.dtype == arrays[key].dtype and np.array_equal(found, arrays[key])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
        ("[1]", "does not describe a dataset"),
        ('{"task": "Push"}', "does not describe a dataset .*observation_shape"),
        ('{"task": "P", "observation_shape": [5], "goal_dim": 2, "action_dim": 2, "x": 1}',
         "does not describe a dataset .*x"),
        ('{"task": "P", "observation_shape": [5], "goal_dim": 2, "action_dim": 2, "format": 9}',
         "has format 9"),
        ('{"task": "P", "observation_shape": [4], "goal_dim": 2, "action_dim": 2}',
         r"has observation \(5,\), goal 2, action 2; dataset.json says \(4,\), 2, 2"),
    ],
)
def test_a_damaged_description_is_named(tmp_path, content, message):
    folder_v1(tmp_path / "d", False)
    (tmp_path / "d/dataset.json").write_text(content)
    with pytest.raises(InvalidInputError, match=message):
        load_folder_v1(tmp_path / "d")


def test_missing_and_damaged_files_are_named(tmp_path):
    with pytest.raises(InvalidInputError, match="cannot be read"):
        load_npz(tmp_path / "none.npz")
    with pytest.raises(InvalidInputError, match=r"dataset.json does not exist"):
        load_folder_v1(tmp_path)
    folder_v1(tmp_path / "d", False)
    (tmp_path / "d/episodes/000000.npz").unlink()
    with pytest.raises(InvalidInputError, match="holds no episodes"):
        load_folder_v1(tmp_path / "d")
    file = saved(tmp_path, plain())
    with zipfile.ZipFile(file, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("actions.npy", b"")
    with pytest.raises(InvalidInputError, match="holds a name twice"):
        load_npz(file)


def test_arrays_in_columns_and_without_rows_are_read(tmp_path):
    arrays = plain()
    arrays["observations"] = np.asfortranarray(arrays["observations"])
    _, episodes = load_npz(saved(tmp_path, arrays))
    assert np.array_equal(episodes[0].observation, arrays["observations"][:3].astype(np.float32))
    big = {key: value.astype(value.dtype.newbyteorder(">")) for key, value in plain().items()}
    _, swapped = load_npz(saved(tmp_path, big))
    assert np.array_equal(swapped[0].observation, episodes[0].observation)
