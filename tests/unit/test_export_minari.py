"""Export to Minari, loaded by minari itself; import of that and of what others wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium
import minari
import numpy as np
import pytest
from minari.data_collector.episode_buffer import EpisodeBuffer
from minari.dataset.minari_storage import MinariStorage

from robot_rl.data.episodes import IMAGES
from robot_rl.data.exporters.minari import dataset_id, export
from robot_rl.data.importers.base import ImportOptions
from robot_rl.data.importers.minari import open_source, quoted
from robot_rl.errors import InvalidInputError
from tests.unit.format_samples import MemoryLog, assert_equal, full_episode, plain_episode

spaces = gymnasium.spaces


def load(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(folder.parent))
    return minari.load_dataset(folder.name)


def test_minari_loads_every_number(tmp_path, monkeypatch):
    log = MemoryLog([full_episode(5, 0), full_episode(1, 1), full_episode(7, 2)])
    done = export(log, tmp_path / "push-v3", quiet=True)
    assert (done["episodes"], done["steps"], done["dataset_id"]) == (3, 13, "push-v3")
    data = load(tmp_path / "push-v3", monkeypatch)
    assert (data.total_episodes, data.total_steps, data.spec.dataset_id) == (3, 13, "push-v3")
    for one, two in zip(log, data, strict=True):
        expected = {
            "observation": one.observation, "achieved_goal": one.achieved,
            "desired_goal": np.repeat(one.desired[None], len(one) + 1, 0),
            **{f"{IMAGES}{name}": images.at(slice(None)) for name, images in one.images.items()}}
        assert set(two.observations) == set(expected)
        pairs = [(two.observations[key], value) for key, value in expected.items()]
        pairs += [(two.actions, one.action), (two.rewards, one.reward),
                  (two.terminations, one.terminated), (two.truncations, one.truncated),
                  (two.infos["success"], one.success), (two.infos["timestamp"], one.stamp_s),
                  (two.infos["action.requested"], one.requested)]
        pairs += [(two.infos[quoted(key)], value) for key, value in one.extra.items()
                  if key != "success" and value.size]
        for found, value in pairs:
            assert found.dtype == value.dtype
            assert np.array_equal(found, value, equal_nan=value.dtype.kind == "f")
    assert data.action_space == spaces.Box(-1, 1, (3,), np.float32)
    assert data.observation_space["observation"].shape == (4,)


def test_every_number_comes_back(tmp_path):
    log = MemoryLog([full_episode(5, 0), full_episode(1, 1), full_episode(7, 2)])
    export(log, tmp_path / "out", quiet=True)
    for folder in (tmp_path / "out", tmp_path / "out" / "data"):
        source = open_source(folder, ImportOptions())
        assert source.info == log.info and source.count == 3 and source.notes == []
        for one, two in zip(log, source, strict=True):
            assert_equal(one, two)
        source.close()


@pytest.mark.parametrize(("o", "g", "cameras"), [(4, 0, False), (0, 0, True), (1, 1, False)])
def test_what_is_not_there_stays_away(tmp_path, monkeypatch, o, g, cameras):
    log = MemoryLog([plain_episode(n + 1, n, o=o, g=g, cameras=cameras) for n in range(3)])
    log.episodes[1].action[:] *= 3
    export(log, tmp_path / "out-v0", quiet=True)
    for one, two in zip(log, open_source(tmp_path / "out-v0", ImportOptions()), strict=True):
        assert_equal(one, two)
    data = load(tmp_path / "out-v0", monkeypatch)
    assert data.action_space == spaces.Box(-np.inf, np.inf, (3,), np.float32)
    kind = spaces.Box if (o, g, cameras) == (4, 0, False) else spaces.Dict
    assert isinstance(data.observation_space, kind)


def test_names_become_minaris(tmp_path, monkeypatch):
    assert [dataset_id(name) for name in ("push-v2", "my data", "", "-v1", "..")] == [
        "push-v2", "my_data-v0", "dataset-v0", "-v1-v0", "__-v0"]
    export(MemoryLog([plain_episode(2)]), tmp_path / "no version", quiet=True)
    assert load(tmp_path / "no version", monkeypatch).spec.dataset_id == "no_version-v0"


def test_what_cannot_be_exported_is_named_and_leaves_nothing(tmp_path):
    with pytest.raises(InvalidInputError, match="there are no episodes"):
        export(MemoryLog([], MemoryLog([plain_episode(1)]).info), tmp_path / "out", quiet=True)
    with pytest.raises(InvalidInputError, match="hold no observations"):
        export(MemoryLog([plain_episode(2, o=0)]), tmp_path / "out", quiet=True)
    bad = MemoryLog([plain_episode(3), plain_episode(3)])
    bad.episodes[1].action[0] = np.inf
    with pytest.raises(InvalidInputError, match="episode 1: action holds values"):
        export(bad, tmp_path / "out", quiet=True)
    assert list(tmp_path.iterdir()) == []


# -- what others wrote --------------------------------------------------------------------------


def foreign(folder: Path, space: Any, action: Any, episodes: list[dict], **options: Any) -> Path:
    (folder / "data").mkdir(parents=True)
    storage = MinariStorage.new(folder / "data", space, action, **options)
    storage.update_episodes([EpisodeBuffer(**episode) for episode in episodes])
    storage.update_metadata({"dataset_id": "other/set-v1", "minari_version": "0.5.4"})
    return folder


def steps_of(rng: np.random.Generator, steps: int, **parts: Any) -> dict[str, Any]:
    end = np.arange(steps) == steps - 1
    return {"rewards": rng.normal(size=steps).astype(np.float32), "terminations": end,
            "truncations": np.zeros(steps, bool), **parts}


@pytest.mark.parametrize("flavour", ["hdf5", "arrow", "parquet"])
def test_nested_observations_are_flattened_in_the_stated_order(tmp_path, flavour):
    rng = np.random.default_rng(0)
    box = spaces.Box(-np.inf, np.inf, (2, 2), np.float32)
    nested = spaces.Dict({
        "z": spaces.Tuple((box, spaces.Discrete(5))), "a": spaces.Box(-9, 9, (3,), np.float64),
        "m": spaces.MultiBinary(3)})
    a, z, d = rng.normal(size=(5, 3)), rng.normal(size=(5, 2, 2)).astype(np.float32), np.arange(5)
    m = rng.integers(0, 2, (5, 3)).astype(np.int8)
    action = rng.normal(size=(4, 2)).astype(np.float32)
    episode = steps_of(rng, 4, observations={"z": (z, d), "a": a, "m": m}, actions=action,
                       infos={"success": np.array([0, 0, 0, 0, 1], bool), "x": np.arange(5.0)})
    folder = foreign(tmp_path / "d", nested, spaces.Box(-1, 1, (2,), np.float32), [episode] * 2,
                     data_format=flavour)
    source = open_source(folder, ImportOptions(task="mine", rate_hz=20.0))
    assert (source.info.task, source.info.rate_hz, source.count) == ("mine", 20.0, 2)
    for one in source:
        expected = np.concatenate([a, m, z.reshape(5, 4), d[:, None]], 1).astype(np.float32)
        assert np.array_equal(one.observation, expected)
        assert np.array_equal(one.action, action)
        assert np.array_equal(one.reward, episode["rewards"])
        assert one.terminated.tolist() == [False] * 3 + [True] and not one.truncated.any()
        assert one.success.tolist() == [False] * 3 + [True], "reset's info is not of a step"
        assert np.array_equal(one.extra["infos/x"], np.arange(5.0))
        assert one.metadata["dataset_id"] == "other/set-v1"
    source.close()


@pytest.mark.parametrize("encoded", [False, True])
@pytest.mark.parametrize("flavour", ["hdf5", "arrow"])
def test_goals_and_images_of_others(tmp_path, monkeypatch, flavour, encoded):
    rng = np.random.default_rng(0)
    goal = spaces.Box(-np.inf, np.inf, (2,), np.float64)
    space = spaces.Dict({"achieved_goal": goal, "desired_goal": goal, "observation": goal,
                         "view": spaces.Box(0, 255, (32, 40, 3), np.uint8)})
    observations = {key: rng.normal(size=(4, 2)) for key in ("achieved_goal", "observation")}
    observations["desired_goal"] = np.repeat(rng.normal(size=(1, 2)), 4, 0)
    observations["view"] = rng.integers(0, 256, (4, 32, 40, 3)).astype(np.uint8)
    episode = steps_of(rng, 3, observations=observations, actions=rng.normal(size=(3, 1)))
    folder = foreign(tmp_path / "d", space, spaces.Box(-9, 9, (1,), np.float64), [episode],
                     data_format=flavour, jpeg_encoding=encoded)
    (one,) = open_source(folder, ImportOptions())
    assert np.array_equal(one.achieved, observations["achieved_goal"].astype(np.float32))
    assert np.array_equal(one.desired, observations["desired_goal"][0].astype(np.float32))
    assert one.observation.shape == (4, 2)
    assert not one.truncated.any() and not one.success.any()
    if encoded:
        monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
        theirs = next(iter(minari.load_dataset("d"))).observations["view"]
        assert np.abs(one.images["view"].frames.astype(int) - theirs).max() <= 2
    elif flavour == "hdf5":
        assert np.array_equal(one.images["view"].frames, observations["view"])
    (mapped,) = open_source(folder, ImportOptions(mapping={
        "observation.state": ["observations/observation", "observations/achieved_goal"],
        "drop": ["observations/view"]}))
    assert mapped.observation.shape == (4, 4) and mapped.images == {}


def test_a_goal_that_changes_is_kept_whole(tmp_path):
    rng = np.random.default_rng(0)
    goal = spaces.Box(-np.inf, np.inf, (2,), np.float64)
    space = spaces.Dict(dict.fromkeys(("achieved_goal", "desired_goal", "observation"), goal))
    observations = {key: rng.normal(size=(4, 2)) for key in space}
    episode = steps_of(rng, 3, observations=observations, actions=rng.normal(size=(3, 1)))
    folder = foreign(tmp_path / "d", space, spaces.Box(-9, 9, (1,), np.float64), [episode])
    source = open_source(folder, ImportOptions())
    (one,) = source
    assert np.array_equal(one.extra["desired_goal_each"],
                          observations["desired_goal"].astype(np.float32))
    assert np.array_equal(one.desired, one.extra["desired_goal_each"][0])
    assert any("goal changes" in note for note in source.notes)


def test_a_damaged_description_is_named(tmp_path):
    log = MemoryLog([plain_episode(2)])
    export(log, tmp_path / "d", quiet=True)
    file = tmp_path / "d/data/metadata.json"
    good = json.loads(file.read_text())
    for change, message in (
        ({"data_format": "pickle"}, "unknown Minari data format 'pickle'.*hdf5, arrow, parquet"),
        ({"total_episodes": -1}, "total_episodes is -1"),
        ({"total_episodes": 5}, "has no episode_1"),
        ({"robot_rl": {"format": 9}}, "format 9, this version reads 1"),
        ({"robot_rl": {"format": 1, "info": 5}}, "description of the data"),
        ({"robot_rl": {"format": 1, "info": {"task": 5}}}, "description of the data"),
    ):
        file.write_text(json.dumps({**good, **change}))
        with pytest.raises(InvalidInputError, match=message):
            list(open_source(tmp_path / "d", ImportOptions()))
    file.write_text(json.dumps(good))
    with pytest.raises(InvalidInputError, match=r"recorded at 10 Hz.*resampled to 25 Hz"):
        open_source(tmp_path / "d", ImportOptions(rate_hz=25.0))
    with pytest.raises(InvalidInputError, match=r"unknown mapping key 'observation.stat'"):
        open_source(tmp_path / "d", ImportOptions(mapping={"observation.stat": "observations"}))
