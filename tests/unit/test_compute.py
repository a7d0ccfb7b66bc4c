"""Threads: what training computes does not depend on how many cores it uses."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from robot_rl.agents import make_agent
from robot_rl.data import Episode, Replay
from robot_rl.errors import InvalidInputError
from robot_rl.training.compute import set_threads, use_threads
from robot_rl.training.offline import update_block


def _replay() -> Replay:
    rng = np.random.default_rng(0)
    steps = 60
    return Replay(5, 0, 2, discount=0.9).add_all(
        Episode(
            observation=rng.normal(size=(steps + 1, 5)).astype(np.float32),
            achieved=np.zeros((steps + 1, 0), np.float32),
            desired=np.zeros(0, np.float32),
            action=rng.uniform(-1, 1, (steps, 2)).astype(np.float32),
            reward=rng.normal(size=steps).astype(np.float32),
            terminated=np.zeros(steps, np.bool_),
            truncated=np.zeros(steps, np.bool_),
            success=np.zeros(steps, np.bool_),
        )
        for _ in range(3)
    )


@pytest.mark.parametrize("name", ["bc", "iql", "awac"])
def test_two_cores_compute_what_one_does(name: str):
    before = torch.get_num_threads()
    try:
        states = []
        for threads in (1, 2):
            set_threads(threads, "cpu")
            assert torch.get_num_threads() == 1
            agent = make_agent(name, observation_dim=5, goal_dim=0, action_dim=2, seed=3,
                               config={"batch_size": 32, "hidden_dims": (16, 16)})
            use_threads(agent, threads)
            update_block(agent, _replay(), np.random.default_rng(1), 20)
            states.append(agent.state_dict())
    finally:
        torch.set_num_threads(before)
    assert states[0].keys() == states[1].keys()
    for key, tensor in states[0].items():
        assert torch.equal(tensor, states[1][key]), key


def test_a_device_that_is_not_here_is_refused():
    with pytest.raises(InvalidInputError, match=r"tpu.*valid: cpu, cuda"):
        set_threads(1, "tpu")
    if not torch.cuda.is_available():
        with pytest.raises(InvalidInputError, match="cuda is not available"):
            set_threads(1, "cuda")
