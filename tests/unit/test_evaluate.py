"""Evaluation: what it counts, and goals that no training sees."""

from __future__ import annotations

import numpy as np
import pytest

from robot_rl.data import load_dataset
from robot_rl.envs import make_env
from robot_rl.training.collect import CollectConfig, collect
from robot_rl.training.evaluate import HELD_OUT, RandomPolicy, evaluate, training_seed
from robot_rl.training.setup import EnvChoice

LARGEST_SEED = 2**31 - 1


def test_seeds_of_training_are_never_those_of_evaluation():
    last = HELD_OUT + 10_000 * LARGEST_SEED + 10_000
    for seed in (0, 1, 99, 100, 999_999, 1_000_000, LARGEST_SEED):
        for used in (training_seed(seed), training_seed(10_000 * seed)):
            assert used < HELD_OUT or used > last
    assert [training_seed(10_000 * seed) for seed in (0, 7, 99)] == [0, 70_000, 990_000]


def test_recorded_goals_are_not_the_held_out_ones(tmp_path):
    pytest.importorskip("mujoco")
    # Without a care for it, this seed records the first held-out episode of seed 0.
    collect(CollectConfig(policy="random", episodes=1, seed=HELD_OUT // 10_000,
                          out=str(tmp_path / "data")), EnvChoice(task="Reach"), quiet=True)
    _, recorded = load_dataset(tmp_path / "data")
    env = make_env("Reach", "sawyer")
    goals = []
    result = evaluate(env, RandomPolicy(3, 0), 3, 0,
                      on_episode=lambda i, episode: goals.append(episode.desired))
    env.close()
    assert result.episodes == 3 and result.steps == sum([30] * 3)
    assert not any(np.allclose(recorded[0].desired, goal) for goal in goals)
