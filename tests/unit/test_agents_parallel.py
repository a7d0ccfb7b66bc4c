"""Updates on two cores: the same bits, in two threads, and no trace left behind."""

from __future__ import annotations

import dataclasses
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from robot_rl.agents import AGENTS, Agent, Batch, config_class, make_agent
from robot_rl.agents.iql import IQL
from robot_rl.agents.parallel import at_once, in_turn
from robot_rl.errors import InvalidInputError

SIZES: dict[str, Any] = {"observation_dim": 7, "goal_dim": 2, "action_dim": 3}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make(name: str, workers: int, **config: Any) -> Agent:
    agent = make_agent(name, config={"hidden_dims": (64, 64), **config}, **SIZES)
    agent.set_workers(workers)
    return agent


def make_batch(seed: int = 0, size: int = 128) -> Batch:
    rng = np.random.default_rng(seed)
    arrays = {
        "observation": rng.normal(size=(size, 7)),
        "goal": rng.normal(size=(size, 2)),
        "action": rng.uniform(-1.0, 1.0, (size, 3)),
        "reward": rng.normal(size=size),
        "next_observation": rng.normal(size=(size, 7)),
        "discount": 0.98 * (rng.uniform(size=size) > 0.1),
        "weight": rng.uniform(0.5, 2.0, size),
    }
    return Batch.from_numpy(arrays)


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert torch.equal(value, second[key]), key


@pytest.mark.parametrize("name", sorted(AGENTS))
@pytest.mark.parametrize(
    "config",
    [
        {},
        {"layer_norm": True, "policy_std": "state", "grad_clip": 0.5},
        {"hidden_dims": (256, 256), "policy_std": "learned", "policy_weight_decay": 1e-3},
    ],
    ids=lambda config: "-".join(config) or "default",
)
def test_two_workers_give_the_same_bits(name: str, config: dict[str, Any]) -> None:
    if name == "awac":
        config = {**config, "value_samples": 2}
    one, two = make(name, 1, **config), make(name, 2, **config)
    for step in range(15):
        batch = make_batch(step)
        assert_same(one.update(batch), two.update(batch))
    assert_same(one.state_dict(), two.state_dict())


def test_one_worker_is_the_default_and_may_come_back() -> None:
    agent = make_agent("iql", config={"hidden_dims": (16,)}, **SIZES)
    seen = [agent.workers]
    for workers in (2, 1):
        agent.set_workers(workers)
        seen.append(agent.workers)
    assert seen == [1, 2, 1]
    for wrong in (0, 3):
        with pytest.raises(InvalidInputError, match=f"workers is {wrong}; it must be 1 or 2"):
            agent.set_workers(wrong)
    assert agent.workers == 1
    assert make("iql", 2, compile="on").workers == 1


class Witness(IQL):
    """Notes the state of the thread in which each of the two parts runs."""

    def __init__(self, **options: Any) -> None:
        super().__init__(config=config_class("iql")(hidden_dims=(16,)), **SIZES, **options)
        self.seen: dict[str, tuple[bool, int, int]] = {}

    def note(self, part: str) -> None:
        mode = torch.is_inference_mode_enabled()
        self.seen[part] = (mode, torch.get_num_threads(), threading.get_ident())

    def critic_target(self, batch: Batch, next_value: Tensor) -> Tensor:
        self.note("critic")
        return super().critic_target(batch, next_value)

    def value_loss(self, value: Tensor, target_q: Tensor, weight: Tensor | None) -> Any:
        self.note("value")
        return super().value_loss(value, target_q, weight)


def test_each_part_has_its_thread_with_one_torch_thread() -> None:
    agent, here = Witness(), threading.get_ident()
    torch.set_num_threads(2)
    agent.update(make_batch())
    assert agent.seen == {"critic": (True, 2, here), "value": (True, 2, here)}
    agent.set_workers(2)
    agent.update(make_batch())
    assert agent.seen["value"] == (True, 1, here)
    assert agent.seen["critic"][:2] == (True, 1)
    assert agent.seen["critic"][2] != here
    assert torch.get_num_threads() == 2


class Failing(Witness):
    """Raises in the parts named by ``failing``."""

    failing: tuple[str, ...] = ()

    def note(self, part: str) -> None:
        if part in self.failing:
            raise ArithmeticError(f"in the {part} part")


@pytest.mark.parametrize("failing", [("critic",), ("value",), ("critic", "value")])
def test_what_either_part_raises_reaches_the_caller(failing: tuple[str, ...]) -> None:
    agent, untouched = Failing(), Witness()
    agent.set_workers(2)
    agent.failing = failing
    torch.set_num_threads(2)
    with pytest.raises(ArithmeticError, match=f"in the {failing[-1]} part"):
        agent.update(make_batch())
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
    assert agent.updates == 0
    # Nothing has moved, and the next update is as if nothing had happened.
    agent.failing = ()
    for step in range(3):
        agent.update(make_batch(step))
        untouched.update(make_batch(step))
    assert_same(agent.state_dict(), untouched.state_dict())


def test_a_failure_waits_for_the_other_part() -> None:
    begun, release, done = threading.Event(), threading.Event(), threading.Event()

    def slow() -> None:
        begun.set()
        release.wait(10.0)
        done.set()

    def failing() -> None:
        assert begun.wait(10.0)
        threading.Timer(0.02, release.set).start()
        raise ArithmeticError("here")

    with pytest.raises(ArithmeticError, match="here"):
        at_once(slow, failing)
    assert done.is_set()


def test_agents_in_two_threads_share_the_worker() -> None:
    agents, alone = [make("iql", 2), make("iql", 2)], make("iql", 1)
    batches = [make_batch(step) for step in range(10)]

    def learn(agent: Agent) -> None:
        for batch in batches:
            agent.update(batch)

    threads = [threading.Thread(target=learn, args=(agent,)) for agent in agents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60.0)
    learn(alone)
    for agent in agents:
        assert_same(agent.state_dict(), alone.state_dict())


def test_it_is_neither_saved_nor_pickled() -> None:
    one, two = make("iql", 1), make("iql", 2)
    one.update(make_batch())
    two.update(make_batch())
    assert dataclasses.asdict(one.config) == dataclasses.asdict(two.config)
    assert one.state_dict().keys() == two.state_dict().keys()
    assert pickle.loads(pickle.dumps((in_turn, at_once))) == (in_turn, at_once)
    assert pickle.loads(pickle.dumps(two)).workers == 2


LIFE = """
import os, threading
import numpy as np, torch
from robot_rl.agents import Batch, make_agent

torch.set_num_threads(1)
agent = make_agent("iql", observation_dim=3, goal_dim=0, action_dim=2)
agent.set_workers(2)
assert threading.active_count() == 1, "the worker must be made only when it is needed"
arrays = {"observation": (8, 3), "action": (8, 2), "reward": 8, "next_observation": (8, 3),
          "discount": 8}
batch = Batch.from_numpy({name: np.full(shape, 0.5) for name, shape in arrays.items()})
agent.update(batch)
assert threading.active_count() == 2
child = os.fork()
# The child has no worker of its own yet; both go on, and both come to an end by themselves.
agent.update(batch)
assert threading.active_count() == 2
if child:
    assert os.waitpid(child, 0)[1] == 0
    print("done", agent.updates)
"""


def test_a_process_forks_and_ends_with_its_worker() -> None:
    command = [sys.executable, "-W", "ignore", "-c", LIFE]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120.0)
    assert (result.returncode, result.stdout) == (0, "done 2\n"), result.stderr
