"""Runs a policy for episodes and says how well it did."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import gymnasium
import numpy as np
from numpy.typing import NDArray

from robot_rl.agents.base import Agent
from robot_rl.data.episodes import Episode, EpisodeRecorder
from robot_rl.envs.robot_env import RobotEnv
from robot_rl.envs.scripted import ScriptedPolicy

# Evaluation episodes are seeded apart from those of collection and practice: held-out goals.
HELD_OUT = 1_000_000
_BEYOND = 10**14


class Policy(Protocol):
    """What acts: told of every new episode, asked for every action."""

    def reset(self) -> None: ...

    def act(self, observation: dict[str, NDArray[Any]]) -> NDArray[Any]: ...


class AgentPolicy:
    """An agent that acts, by its mean unless ``sample``."""

    def __init__(self, agent: Agent, *, sample: bool = False) -> None:
        self.agent, self.sample = agent, sample

    def reset(self) -> None:
        return None

    def act(self, observation: dict[str, NDArray[Any]]) -> NDArray[Any]:
        return self.agent.act(
            observation["observation"], observation["desired_goal"],
            deterministic=not self.sample,
        )


class ScriptPolicy:
    """A scripted policy as a :class:`Policy`."""

    def __init__(self, script: ScriptedPolicy) -> None:
        self.script = script

    def reset(self) -> None:
        self.script.reset()

    def act(self, observation: dict[str, NDArray[Any]]) -> NDArray[Any]:
        return self.script.act()


class RandomPolicy:
    """Uniform actions."""

    def __init__(self, action_dim: int, seed: int) -> None:
        self.action_dim = action_dim
        self.rng = np.random.default_rng(seed)

    def reset(self) -> None:
        return None

    def act(self, observation: dict[str, NDArray[Any]]) -> NDArray[Any]:
        return self.rng.uniform(-1.0, 1.0, self.action_dim)


@dataclass
class EvalResult:
    """Means over episodes. An episode succeeds if its last state does."""

    episodes: int
    success_rate: float
    success_any_rate: float
    mean_return: float
    mean_final_distance: float | None
    safety_violations: int
    steps: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def run_episode(
    env: gymnasium.Env[Any, Any],
    policy: Policy,
    *,
    seed: int | None = None,
    on_step: Callable[[], None] | None = None,
    max_steps: int | None = None,
) -> tuple[Episode, dict[str, Any]]:
    """One episode; returns it and the last ``info``."""
    observation, info = env.reset(seed=seed)
    policy.reset()
    recorder = EpisodeRecorder()
    recorder.start(observation, info)
    if on_step is not None:
        on_step()
    steps = 0
    while True:
        action = policy.act(observation)
        observation, reward, terminated, truncated, info = env.step(action)
        steps += 1
        if max_steps is not None and steps >= max_steps and not terminated:
            truncated = True
        recorder.add(action, observation, float(reward), terminated, truncated, info)
        if on_step is not None:
            on_step()
        if terminated or truncated:
            return recorder.finish(), info


def training_seed(seed: int) -> int:
    """``seed`` for collection or practice, moved beyond those of evaluation where it is one."""
    return seed if seed < HELD_OUT else seed + _BEYOND


def evaluate(
    env: gymnasium.Env[Any, Any],
    policy: Policy,
    episodes: int,
    seed: int,
    *,
    on_episode: Callable[[int, Episode], None] | None = None,
) -> EvalResult:
    """Run ``episodes`` episodes on goals that follow from ``seed`` alone."""
    successes, any_successes, violations, steps = 0, 0, 0, 0
    returns, distances = [], []
    for i in range(episodes):
        episode, info = run_episode(env, policy, seed=HELD_OUT + 10_000 * seed + i)
        successes += bool(episode.success[-1])
        any_successes += bool(episode.success.any())
        violations += int(info.get("safety_violations", 0))
        steps += len(episode)
        returns.append(float(episode.reward.sum()))
        if "distance" in info:
            distances.append(float(info["distance"]))
        if on_episode is not None:
            on_episode(i, episode)
    return EvalResult(
        episodes=episodes,
        success_rate=successes / episodes,
        success_any_rate=any_successes / episodes,
        mean_return=float(np.mean(returns)),
        mean_final_distance=float(np.mean(distances)) if distances else None,
        safety_violations=violations,
        steps=steps,
    )


def unwrap(env: gymnasium.Env[Any, Any]) -> RobotEnv | None:
    """The robot environment inside, or None for a task from elsewhere."""
    inner = env.unwrapped
    return inner if isinstance(inner, RobotEnv) else None
