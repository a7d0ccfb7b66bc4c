"""robomimic's HDF5 and HDF5 in the manner of D4RL."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from robot_rl.data.importers.base import ImportOptions
from robot_rl.data.importers.hdf5 import open_d4rl, open_robomimic, open_source
from robot_rl.errors import InvalidInputError

ENV = {"env_name": "PickPlaceCan", "type": 1, "env_kwargs": {"control_freq": 20}}


def demo(data: h5py.Group, number: int, steps: int, *, after: bool, done: bool = True) -> dict:
    rng = np.random.default_rng(number)
    states = steps + 1
    arrays = {"object": rng.normal(size=(states, 3)), "eef_pos": rng.normal(size=(states, 2)),
              "front_image": rng.integers(0, 256, (states, 8, 9, 3)).astype(np.uint8)}
    group = data.create_group(f"demo_{number}")
    for name, array in arrays.items():
        group[f"obs/{name}"] = array[:steps]
        if after:
            group[f"next_obs/{name}"] = array[1:]
    end = (np.arange(steps) == steps - 1) & done
    arrays |= {"actions": rng.uniform(-1, 1, (steps, 4)), "rewards": end.astype(float),
               "dones": end.astype(int), "states": rng.normal(size=(steps, 11))}
    for name in ("actions", "rewards", "dones", "states"):
        group.create_dataset(name, data=arrays[name], compression="gzip")
    group.attrs["num_samples"] = steps
    return arrays


def robomimic(path: Path, *, after: bool = True) -> list[dict]:
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps(ENV)
        arrays = [demo(data, number, 3 + number % 4, after=after, done=number != 1)
                  for number in (0, 1, 2, 10)]
        file["mask/train"] = np.array([b"demo_0", b"demo_10"])
    return arrays


def test_robomimic_with_next_observations_keeps_every_step(tmp_path):
    expected = robomimic(tmp_path / "demo.hdf5")
    source = open_robomimic(tmp_path / "demo.hdf5", ImportOptions())
    assert (source.info.task, source.info.rate_hz, source.count) == ("PickPlaceCan", 20.0, 4)
    assert source.info.config["env_args"] == ENV
    episodes = list(source)
    assert [e.metadata["demo"] for e in episodes] == ["demo_0", "demo_1", "demo_2", "demo_10"]
    assert episodes[3].metadata["masks"] == ["train"] and "masks" not in episodes[1].metadata
    for one, arrays in zip(episodes, expected, strict=True):
        steps = len(arrays["actions"])
        state = np.concatenate([arrays["eef_pos"], arrays["object"]], 1).astype(np.float32)
        assert len(one) == steps and np.array_equal(one.observation, state)
        assert np.array_equal(one.images["front"].frames, arrays["front_image"])
        assert np.array_equal(one.action, arrays["actions"].astype(np.float32))
        assert np.array_equal(one.reward, arrays["rewards"].astype(np.float32))
        assert np.array_equal(one.terminated, arrays["dones"] != 0)
        assert np.array_equal(one.success, arrays["rewards"] > 0)
        assert one.truncated[-1] == (not one.terminated[-1])
        assert np.array_equal(one.extra["states"], arrays["states"])
    assert source.notes == []
    source.close()


def test_robomimic_without_them_follows_the_rule_of_the_last_step(tmp_path):
    expected = robomimic(tmp_path / "demo.hdf5", after=False)
    source = open_robomimic(tmp_path / "demo.hdf5", ImportOptions())
    lengths = []
    for one, arrays in zip(source, expected, strict=True):
        steps = len(arrays["actions"])
        ended = bool(arrays["dones"][-1])
        lengths.append(len(one) - steps)
        state = np.concatenate([arrays["eef_pos"], arrays["object"]], 1).astype(np.float32)
        assert np.array_equal(one.observation[:steps], state[:steps])
        assert np.array_equal(one.action, arrays["actions"][:len(one)].astype(np.float32))
        assert one.terminated[-1] == ended and one.truncated[-1] != ended
        if ended:
            assert np.array_equal(one.observation[-1], one.observation[-2])
    assert lengths == [0, -1, 0, 0]
    assert source.notes == [
        "the state after a last step that ended the task is not stored: repeated (episodes: 3)",
        "last step left out: its next state is not stored (episodes: 1)"]


def test_a_mapping_picks_parts_of_robomimic(tmp_path):
    expected = robomimic(tmp_path / "demo.hdf5")
    source = open_robomimic(tmp_path / "demo.hdf5", ImportOptions(task="Can", mapping={
        "observation.state": ["obs/object", "obs/eef_pos"],
        "observation.achieved_goal": {"from": "obs/object", "columns": [0, 2]},
        "observation.images.top": "obs/front_image", "drop": ["states"]}))
    one = next(iter(source))
    assert source.info.task == "Can" and list(one.images) == ["top"] and not one.extra
    assert np.array_equal(one.achieved, expected[0]["object"][:, :2].astype(np.float32))
    assert np.array_equal(one.desired, one.achieved[-1])
    assert np.array_equal(one.observation[:, :3], expected[0]["object"].astype(np.float32))
    with pytest.raises(InvalidInputError, match=r"unknown part of .*'obs/objct'.*did you mean"):
        open_robomimic(tmp_path / "demo.hdf5",
                       ImportOptions(mapping={"observation.state": "obs/objct"}))
    with pytest.raises(InvalidInputError, match="recorded at 20 Hz"):
        open_robomimic(tmp_path / "demo.hdf5", ImportOptions(rate_hz=10.0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.pop("data"), "has no group data"),
        (lambda f: [f["data"].pop(n) for n in list(f["data"])], "holds no demo_0"),
        (lambda f: f["data/demo_1"].pop("actions"), "demo 1 has no action"),
        (lambda f: f["data/demo_1"].__setitem__("x", np.zeros(3)) or (f["data/demo_1"].pop(
            "rewards") and f["data/demo_1"].__setitem__("rewards", np.zeros(9))),
         "next.reward has 9 rows, action has 4|should have"),
        (lambda f: f["data/demo_0/obs"].pop("object") and f["data/demo_0/obs"].__setitem__(
            "object", np.zeros((3, 2))), r"next_obs/object has shape \(3, 3\), should be \(3, 2\)"),
        (lambda f: f["data/demo_2/actions"].__setitem__((0, 0), np.nan), "demo 2: action holds"),
        (lambda f: f["data"].attrs.__setitem__("env_args", "{"), "env_args is not valid JSON"),
    ],
)
def test_robomimic_that_is_off_is_named(tmp_path, change, message):
    robomimic(tmp_path / "demo.hdf5")
    with h5py.File(tmp_path / "demo.hdf5", "r+") as file:
        change(file)
    with pytest.raises(InvalidInputError, match=message):
        list(open_robomimic(tmp_path / "demo.hdf5", ImportOptions()))


# -- D4RL ---------------------------------------------------------------------------------------


def d4rl(path: Path, *, after: bool = False, ends: bool = True) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    arrays = {
        "observations": rng.normal(size=(12, 6)).astype(np.float32),
        "actions": rng.uniform(-1, 1, (12, 2)).astype(np.float32),
        "rewards": rng.normal(size=12).astype(np.float32),
        "infos/goal": np.repeat([[1, 2], [3, 4], [5, 6]], [3, 5, 4], 0).astype(np.float32),
        "infos/qpos": rng.normal(size=(12, 4)),
    }
    if ends:
        arrays |= {"terminals": np.arange(12) == 2, "timeouts": np.isin(np.arange(12), (7, 11))}
    if after:
        arrays["next_observations"] = rng.normal(size=(12, 6)).astype(np.float32)
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name] = array
        file["metadata/algorithm"] = "SAC"
    return arrays


def test_d4rl_is_cut_where_an_episode_ends(tmp_path):
    arrays = d4rl(tmp_path / "a.hdf5")
    source = open_d4rl(tmp_path / "a.hdf5", ImportOptions(task="antmaze", mapping={
        "observation.achieved_goal": {"from": "observations", "columns": [0, 2]}}))
    assert source.count == 3
    one, two, three = source
    assert [len(e) for e in (one, two, three)] == [3, 4, 3]
    assert one.terminated.tolist() == [False, False, True] and not one.truncated.any()
    assert two.truncated.tolist() == [False] * 3 + [True] and not two.terminated.any()
    for e, first, rows in ((one, 0, 3), (two, 3, 5), (three, 8, 4)):
        assert np.array_equal(e.observation[:rows], arrays["observations"][first:first + rows])
        assert np.array_equal(e.action, arrays["actions"][first:first + len(e)])
        assert np.array_equal(e.reward, arrays["rewards"][first:first + len(e)])
        assert np.array_equal(e.achieved, e.observation[:, :2])
        assert np.array_equal(e.desired, arrays["infos/goal"][first])
        assert np.array_equal(e.extra["infos/qpos"][:rows],
                              arrays["infos/qpos"][first:first + rows])
    assert any("metadata/algorithm" in note for note in source.notes)
    source.close()


def test_d4rl_with_next_observations_keeps_every_step(tmp_path):
    arrays = d4rl(tmp_path / "a.hdf5", after=True)
    source = open_d4rl(tmp_path / "a.hdf5", ImportOptions())
    episodes = list(source)
    assert [len(e) for e in episodes] == [3, 5, 4]
    assert np.array_equal(episodes[1].observation[-1], arrays["next_observations"][7])
    assert np.array_equal(episodes[1].observation[:-1], arrays["observations"][3:8])
    assert episodes[1].truncated[-1] and not episodes[1].terminated.any()
    # Without achieved goals the goal stays an extra array.
    assert np.array_equal(episodes[1].extra["desired_goal"], np.repeat([[3, 4]], 6, 0))


def test_the_kind_is_told_by_the_content(tmp_path):
    d4rl(tmp_path / "a.hdf5")
    robomimic(tmp_path / "b.hdf5")
    assert len(list(open_source(tmp_path / "a.hdf5", ImportOptions()))) == 3
    assert len(list(open_source(tmp_path / "b.hdf5", ImportOptions()))) == 4


def test_many_small_pieces_are_read_a_few_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr("robot_rl.data.importers.hdf5._CHUNKS_AT_ONCE", 5)
    arrays = d4rl(tmp_path / "a.hdf5", ends=False)
    with h5py.File(tmp_path / "a.hdf5", "r+") as file:
        del file["observations"]
        file.create_dataset("observations", data=arrays["observations"], chunks=(1, 2))
    (one,) = open_d4rl(tmp_path / "a.hdf5", ImportOptions())
    assert np.array_equal(one.observation, arrays["observations"])


def test_d4rl_without_ends_is_one_episode(tmp_path):
    d4rl(tmp_path / "a.hdf5", ends=False)
    (one,) = open_d4rl(tmp_path / "a.hdf5", ImportOptions())
    assert len(one) == 11 and one.truncated[-1]


def test_d4rl_that_is_off_is_named(tmp_path):
    for change, message in (
        (lambda f: f.pop("actions"), "has no actions; it has: infos/goal"),
        (lambda f: f.pop("rewards") and f.__setitem__("rewards", np.zeros(5)),
         r"rewards has shape \(5,\), should have 12 rows"),
        (lambda f: f["observations"].__setitem__((4, 0), np.inf), "episode 1: observation.state"),
    ):
        d4rl(tmp_path / "a.hdf5")
        with h5py.File(tmp_path / "a.hdf5", "r+") as file:
            change(file)
        with pytest.raises(InvalidInputError, match=message):
            list(open_d4rl(tmp_path / "a.hdf5", ImportOptions()))
    (tmp_path / "b.hdf5").write_bytes(b"no HDF5")
    for name in ("b.hdf5", "none.hdf5", "."):
        with pytest.raises(InvalidInputError, match=r"cannot be read|does not exist"):
            open_d4rl(tmp_path / name, ImportOptions())
