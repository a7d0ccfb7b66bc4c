"""Recorded actions played again, and data that trains without a task of ours."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from robot_rl.data import DatasetInfo, DatasetWriter, Episode, Relabelling, load_dataset, open_log
from robot_rl.envs import make_env
from robot_rl.errors import InvalidInputError
from robot_rl.interfaces import Placement
from robot_rl.training.checkpoint import load_agent
from robot_rl.training.collect import CollectConfig, collect
from robot_rl.training.evaluate import RandomPolicy, run_episode
from robot_rl.training.judge import EvalConfig, judge, recorded_env
from robot_rl.training.offline import PretrainConfig, pretrain, resume_pretrain
from robot_rl.training.playback import beginning_of
from robot_rl.training.recorded import goal_functions, load_replay, recorded_info
from robot_rl.training.setup import EnvChoice

pytest.importorskip("mujoco")
SMALL = {"hidden_dims": (16, 16), "batch_size": 32}


def record(path: Path, task: str, backend: str, episodes: int = 3, **options: object) -> Path:
    env = EnvChoice(task=task, backend=backend, robot="panda")
    collect(CollectConfig(out=str(path), quality=0.5, episodes=episodes, **options), env,
            quiet=True)
    return path


@pytest.mark.parametrize(("task", "backend"), [("Push", "mujoco"), ("PickPlace", "pybullet"),
                                               ("Drawer", "mujoco"), ("Reach", "pybullet")])
def test_a_recording_plays_again_exactly(tmp_path, task, backend):
    data = record(tmp_path / "d", task, backend)
    values = judge(EvalConfig(policy="replay", data=str(data)),
                   EnvChoice(**recorded_env(str(data))))
    assert values["restored"] == values["episodes"] == 3
    assert values["final_difference"] == 0.0
    assert values["success_rate"] == values["recorded_success_rate"]
    assert values["steps"] == sum(len(e) for e in load_dataset(data)[1])


def test_in_another_world_it_ends_elsewhere(tmp_path):
    data = record(tmp_path / "d", "Push", "mujoco")
    env = EnvChoice(**{**recorded_env(str(data)), "backend": "pybullet"})
    values = judge(EvalConfig(policy="replay", data=str(data), episodes=2), env)
    assert values["episodes"] == 2 and 0.0 < values["final_difference"] < 0.5


@pytest.mark.parametrize("backend", ["mujoco", "pybullet"])
def test_a_randomised_world_plays_again_exactly(tmp_path, backend):
    env = EnvChoice(task="Push", backend=backend, randomize={
        "mass": 0.3, "friction": 0.3, "latency_s": 0.05, "action_noise": 0.05,
        "action_bias": 0.05})
    collect(CollectConfig(out=str(tmp_path / "d"), episodes=3), env, quiet=True)
    values = judge(EvalConfig(policy="replay", data=str(tmp_path / "d")),
                   EnvChoice(**recorded_env(str(tmp_path / "d"))))
    assert values["restored"] == 3 and values["final_difference"] == 0.0


def test_a_generator_that_is_none_is_refused():
    env = make_env("Reach", "panda")
    for state in ({}, {"bit_generator": "PCG64"}, "x", {"bit_generator": "MT19937", "state": 3}):
        with pytest.raises(InvalidInputError, match="is no state of a random generator"):
            env.reset(options={"generator": state})
    env.close()


def test_a_replay_that_does_not_fit_is_refused(tmp_path, episode, dataset_of):
    data = dataset_of(tmp_path / "d", [episode(4, action_dim=5)], "Push")
    with pytest.raises(InvalidInputError, match=r"actions of 5 numbers, the environment takes"):
        judge(EvalConfig(policy="replay", data=data), EnvChoice(task="Push"))
    for options in ({"policy": "replay"}, {"policy": "scripted", "data": "x"}):
        with pytest.raises(InvalidInputError, match="go together"):
            EvalConfig(**options)


def test_without_a_recorded_start_an_episode_begins_at_its_goal_alone(episode):
    env = make_env("Push", "panda")
    one = episode(3)
    one.desired = np.array([0.05, 0.1], np.float32)
    assert list(beginning_of(one, env)) == ["goal"]
    one.metadata = {"goal": [0.1, -0.1], "start": {"tool_m": [0, 0]}}
    with pytest.raises(InvalidInputError, match="is no placement"):
        beginning_of(one, env)
    env.close()


def test_a_placement_survives_json():
    rng = np.random.default_rng(0)
    one = Placement(rng.normal(size=3), 0.3, 0.7, {"puck": (rng.normal(size=3), np.eye(4)[3])},
                    {"slide": 0.1 + 0.2})
    two = Placement.from_dict(json.loads(json.dumps(one.as_dict())))
    assert np.array_equal(one.tool_m, two.tool_m) and two.joints == one.joints
    assert np.array_equal(one.bodies["puck"][0], two.bodies["puck"][0])
    assert (two.yaw_rad, two.gripper_opening) == (0.3, 0.7)
    for bad in (None, {}, [], {"tool_m": "x"}, {**one.as_dict(), "joints": {"a": float("nan")}},
                {**one.as_dict(), "bodies": {"puck": [[0, 0, 0], [0, 0]]}}):
        with pytest.raises(InvalidInputError, match="is no placement"):
            Placement.from_dict(bad)


def test_a_policy_that_fails_leaves_what_it_did_to_be_repaired(tmp_path):
    class Fails(RandomPolicy):
        def act(self, observation):
            if self.rng.random() < 0.2:
                raise RuntimeError("the network fell over")
            return super().act(observation)

    env = make_env("Reach", "panda")
    with DatasetWriter(tmp_path / "d", DatasetInfo("Reach", (9,), 3, 3)) as writer:
        run_episode(env, RandomPolicy(3, 0), seed=0, log=writer)
        with pytest.raises(RuntimeError, match="fell over"):
            run_episode(env, Fails(3, 0), seed=1, log=writer)
    env.close()
    log = open_log(tmp_path / "d")
    assert len(log) == 1 and len(log.leftovers) == 1


# -- data without a task of ours ----------------------------------------------------------------


def reaching(rng: np.random.Generator, *, ends: bool) -> Episode:
    """A point that walks in a plane; it succeeds within 0.1 of its goal."""
    steps = 12
    position = np.cumsum(rng.normal(0.0, 0.1, (steps + 1, 2)), axis=0).astype(np.float32)
    desired = position[-1] if ends else np.array([3.0, 3.0], np.float32)
    near = np.linalg.norm(position[1:] - desired, axis=1) <= 0.1
    terminated = near & ends
    if terminated.any():
        steps = int(np.argmax(terminated)) + 1
    return Episode(
        observation=position[: steps + 1], achieved=position[: steps + 1], desired=desired,
        action=np.clip(np.diff(position, axis=0) * 3, -1, 1)[:steps],
        reward=near[:steps].astype(np.float32) - 1, terminated=terminated[:steps],
        truncated=~terminated[:steps] & (np.arange(steps) == steps - 1), success=near[:steps],
    )


@pytest.fixture
def walks(tmp_path):
    def make(ends: bool, threshold: object = 0.1) -> Path:
        rng = np.random.default_rng(0)
        episodes = [reaching(rng, ends=ends) for _ in range(6)]
        info = DatasetInfo.of(episodes[0], config={"goal_threshold": threshold})
        with DatasetWriter(tmp_path / f"walks{ends}{threshold}", info) as writer:
            for one in episodes:
                writer.append(one)
        return writer.path

    return make


@pytest.mark.parametrize("ends", [True, False])
def test_goals_of_data_without_a_task_are_relabelled_by_their_threshold(walks, ends, tmp_path):
    data = walks(ends)
    replay = load_replay(data, "", Relabelling(original=0.0, future=1.0), 0.9)
    batch = replay.sample(500, np.random.default_rng(0), extras=("next_achieved",))
    near = np.linalg.norm(batch["next_achieved"] - batch["goal"], axis=1) <= 0.1
    assert np.array_equal(batch["reward"], near.astype(np.float32) - 1) and near.any()
    over = near if ends else np.zeros_like(near)
    assert np.array_equal(batch["discount"], np.where(over, 0.0, 0.9).astype(np.float32))
    values = pretrain(PretrainConfig(data=str(data), steps=4, out=str(tmp_path / "run")),
                      agent_overrides=SMALL, quiet=True)
    assert values["steps"] == 4
    relabelled = json.loads((tmp_path / "run" / "config.json").read_text())["relabelling"]
    assert relabelled["future"] > 0


@pytest.mark.parametrize("threshold", [None, 0.0, -1.0, "near"])
def test_without_a_threshold_goals_stay_as_recorded(walks, threshold, tmp_path):
    data = walks(False, threshold)
    assert goal_functions("", recorded_info(data)) == (None, None)
    pretrain(PretrainConfig(data=str(data), steps=2, out=str(tmp_path / "run")),
             agent_overrides=SMALL, quiet=True)
    with pytest.raises(InvalidInputError, match="relabelling goals needs"):
        pretrain(PretrainConfig(data=str(data), steps=2, out=str(tmp_path / "run2")),
                 relabelling=Relabelling(future=1.0), agent_overrides=SMALL, quiet=True)
    assert not (tmp_path / "run2").exists()


def test_a_task_of_ours_ends_relabelled_episodes_where_recorded_ones_ended(tmp_path):
    env = make_env("Reach", "panda", terminate_on_success=True)
    episodes = [run_episode(env, RandomPolicy(3, n), seed=n)[0] for n in range(4)]
    goal = episodes[0].achieved[5].astype(np.float64)

    class Towards(RandomPolicy):
        def act(self, observation):
            gap = observation["desired_goal"] - observation["achieved_goal"]
            return np.clip(gap / env.step_m, -1, 1)

    episodes.append(run_episode(env, Towards(3, 0), seed=0, options={"goal": goal})[0])
    assert episodes[-1].terminated[-1]
    with DatasetWriter(tmp_path / "d", DatasetInfo.of(episodes[0], task="Reach")) as writer:
        for one in episodes:
            writer.append(one)
    replay = load_replay(tmp_path / "d", "Reach", Relabelling(original=0.0, next=1.0), 0.9)
    batch = replay.sample(64, np.random.default_rng(0))
    assert (batch["discount"] == 0).all() and (batch["reward"] == 0).all(), "the next state's goal"
    env.close()


def test_a_resumed_run_takes_the_episodes_that_were_there(tmp_path):
    data = record(tmp_path / "d", "Reach", "mujoco")
    for name in ("whole", "cut"):
        pretrain(PretrainConfig(data=str(data), steps=6 if name == "whole" else 3,
                                checkpoint_every=3, out=str(tmp_path / name)),
                 agent_overrides=SMALL, quiet=True)
    with DatasetWriter.extend(data) as writer:
        writer.append(load_dataset(data)[1][0])
    resume_pretrain(tmp_path / "cut", steps=6, quiet=True)
    one, two = (load_agent(tmp_path / name)[0].state_dict() for name in ("whole", "cut"))
    assert one.keys() == two.keys() and all(bool((one[k] == two[k]).all()) for k in one)
    (data / "episodes" / "000000.mcap").rename(data / "gone")
    (data / "episodes" / "000001.mcap").rename(data / "gone too")
    with pytest.raises(InvalidInputError, match="holds 2 episodes; 3 were there when"):
        resume_pretrain(tmp_path / "cut", steps=8, quiet=True)


def test_the_former_format_is_trained_on_and_played(tmp_path):
    data = record(tmp_path / "d", "Reach", "mujoco")
    info, episodes = load_dataset(data)
    old = tmp_path / "old"
    (old / "episodes").mkdir(parents=True)
    (old / "dataset.json").write_text(json.dumps({
        "task": "Reach", "observation_shape": list(info.observation_shape), "goal_dim": 3,
        "action_dim": 3, "env": info.env, "config": {}, "format": 1}))
    for number, one in enumerate(episodes):
        np.savez(old / "episodes" / f"{number:06d}.npz", **{
            "observation.state": one.observation, "observation.achieved_goal": one.achieved,
            "observation.desired_goal": one.desired, "action": one.action,
            "next.reward": one.reward, "next.terminated": one.terminated,
            "next.truncated": one.truncated, "next.success": one.success})
    assert pretrain(PretrainConfig(data=str(old), steps=2, out=str(tmp_path / "run")),
                    agent_overrides=SMALL, quiet=True)["steps"] == 2
    values = judge(EvalConfig(policy="replay", data=str(old)), EnvChoice(**recorded_env(str(old))))
    assert values["episodes"] == 3 and values["restored"] == 0


def test_a_task_from_elsewhere_is_judged_by_its_rule(tmp_path):
    pytest.importorskip("gymnasium_robotics")
    rng = np.random.default_rng(0)
    observations = rng.normal(size=(9, 39))
    observations[:, 28] = [0, 0, 0, 0, 0, 0, 0, 1.5, 1.5]
    np.savez(tmp_path / "demos.npz", observations=observations, rewards=np.zeros(9),
             actions=rng.uniform(-1, 1, (9, 28)), episode_lengths=[4, 5])
    values = judge(EvalConfig(policy="replay", data=str(tmp_path / "demos.npz")),
                   EnvChoice(task="AdroitHandDoor-v1"))
    assert values["recorded_success_rate"] == 0.5 and values["restored"] == 0


@pytest.mark.parametrize("name", ["pick up the cup", "pick", "Nope", "reach"])
def test_what_data_calls_its_task_may_be_free_text(walks, tmp_path, name):
    data = walks(False)
    description = json.loads((data / "dataset.json").read_text())
    (data / "dataset.json").write_text(json.dumps({**description, "task": name}))
    if name == "reach":  # ours, however it is written
        with pytest.raises(InvalidInputError, match="goals of 2 numbers, the task Reach has 3"):
            pretrain(PretrainConfig(data=str(data), steps=2, out=str(tmp_path / "run")),
                     agent_overrides=SMALL, quiet=True)
        return
    values = pretrain(PretrainConfig(data=str(data), steps=2, out=str(tmp_path / "run")),
                      agent_overrides=SMALL, quiet=True)
    assert values["steps"] == 2
    assert resume_pretrain(tmp_path / "run", steps=3, quiet=True)["steps"] == 3
    with pytest.raises(InvalidInputError, match=r"give --task; the data says .* none of ours"):
        pretrain(PretrainConfig(data=str(data), steps=2, eval_episodes=1,
                                out=str(tmp_path / "other")), agent_overrides=SMALL, quiet=True)
