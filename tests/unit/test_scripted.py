"""Scripted policies solve every task, and worse ones solve it less often."""

from __future__ import annotations

import numpy as np
import pytest

from robot_rl.envs import make_env
from robot_rl.envs.scripted import ScriptedPolicy
from robot_rl.envs.tasks import TASKS
from robot_rl.errors import InvalidInputError
from robot_rl.training.evaluate import ScriptPolicy, evaluate

ENGINES = ("mujoco", "pybullet")
ROBOTS = ("fr3", "panda", "sawyer")


def score(task: str, robot: str, engine: str, episodes: int, quality: float = 1.0):
    env = make_env(task, robot, engine)
    try:
        return evaluate(env, ScriptPolicy(ScriptedPolicy(env, quality, seed=0)), episodes, seed=1)
    finally:
        env.close()


@pytest.mark.parametrize("task", list(TASKS))
def test_a_perfect_script_solves_its_task(task):
    result = score(task, "panda", "mujoco", 3)
    assert (result.success_rate, result.safety_violations) == (1.0, 0)
    assert result.mean_final_distance is not None


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("robot", ROBOTS)
@pytest.mark.parametrize("task", list(TASKS))
def test_scripts_solve_every_task_with_every_arm_on_every_engine(task, robot, engine):
    result = score(task, robot, engine, 100)
    assert result.success_rate >= 0.95
    assert result.safety_violations == 0


def test_quality_orders_the_scripts():
    rates = [score("Reach", "panda", "mujoco", 20, quality).success_rate
             for quality in (0.0, 0.5, 1.0)]
    assert rates[0] <= 0.25 < rates[1] < rates[2] == 1.0


def test_a_seed_repeats_the_slips():
    runs = []
    for seed in (3, 3, 4):
        env = make_env("Reach", "panda")
        env.reset(seed=0)
        policy = ScriptedPolicy(env, 0.4, seed=seed)
        policy.reset()
        actions = []
        for _ in range(20):
            actions.append(policy.act())
            env.step(actions[-1])
        runs.append(np.array(actions))
        env.close()
    assert np.array_equal(runs[0], runs[1]) and not np.array_equal(runs[0], runs[2])
    assert np.abs(runs[0]).max() <= 1.0


@pytest.mark.parametrize("quality", [-0.1, 1.1, np.nan])
def test_a_quality_out_of_range_is_refused(quality):
    env = make_env("Reach", "panda")
    with pytest.raises(InvalidInputError, match=rf"quality is {quality}, should be in \[0, 1\]"):
        ScriptedPolicy(env, quality)
    env.close()
