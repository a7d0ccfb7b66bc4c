"""Runs a policy for episodes and says how well it did."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import gymnasium
import numpy as np
from numpy.typing import NDArray

from robot_rl.agents.base import Agent
from robot_rl.data import DatasetWriter, Episode, EpisodeRecorder
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
    options: dict[str, Any] | None = None,
    on_step: Callable[[], None] | None = None,
    max_steps: int | None = None,
    log: DatasetWriter | None = None,
) -> tuple[Episode, dict[str, Any]]:
    """One episode; returns it and the last ``info``.

    With ``log`` it is recorded step by step and committed when it returns; an episode that an
    error cuts off stays behind as one that can be repaired.
    """
    observation, info = env.reset(seed=seed, options=options)
    policy.reset()
    inner = unwrap(env)
    metadata = {} if inner is None else inner.beginning()
    live = None if log is None else log.begin(metadata)
    recorder = EpisodeRecorder(live, inner.camera_names if inner is not None else ())
    recorder.start(observation, _stamped(inner, info))
    if on_step is not None:
        on_step()
    steps = 0
    while True:
        # What is sent is what is recorded, to the bit.
        action = np.asarray(policy.act(observation), dtype=np.float32)
        observation, reward, terminated, truncated, info = env.step(action)
        steps += 1
        if max_steps is not None and steps >= max_steps and not terminated:
            truncated = True
        recorder.add(action, observation, float(reward), terminated, truncated,
                     _stamped(inner, info))
        if on_step is not None:
            on_step()
        if terminated or truncated:
            episode = recorder.finish()
            episode.metadata = metadata
            if live is not None:
                live.commit()
            return episode, info


def _stamped(env: RobotEnv | None, info: dict[str, Any]) -> dict[str, Any]:
    return info if env is None else {**info, **env.stamps()}


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
    done, infos = [], []
    for i in range(episodes):
        episode, info = run_episode(env, policy, seed=HELD_OUT + 10_000 * seed + i)
        done.append(episode)
        infos.append(info)
        if on_episode is not None:
            on_episode(i, episode)
    return summarise(done, infos)


def summarise(episodes: list[Episode], infos: list[dict[str, Any]]) -> EvalResult:
    """Means over episodes, each with its last ``info``."""
    count = len(episodes)
    distances = [float(info["distance"]) for info in infos if "distance" in info]
    return EvalResult(
        episodes=count,
        success_rate=sum(bool(e.success[-1]) for e in episodes) / count,
        success_any_rate=sum(bool(e.success.any()) for e in episodes) / count,
        mean_return=float(np.mean([float(e.reward.sum()) for e in episodes])),
        mean_final_distance=float(np.mean(distances)) if distances else None,
        safety_violations=sum(int(info.get("safety_violations", 0)) for info in infos),
        steps=sum(len(e) for e in episodes),
    )


def unwrap(env: gymnasium.Env[Any, Any]) -> RobotEnv | None:
    """The robot environment inside, or None for a task from elsewhere."""
    inner = env.unwrapped
    return inner if isinstance(inner, RobotEnv) else None
