"""Tasks from outside this package, given by their gymnasium id.

They get the same shape as our own: a dict observation (with an empty goal), actions in [-1, 1],
and ``info["is_success"]``. Where the literature uses a sparse version of a task, its rule stands
here, so that recorded rewards and practised ones are the same.
"""

from __future__ import annotations

import contextlib
import importlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from robot_rl.data.episodes import Episode
from robot_rl.errors import InvalidInputError, MissingDependencyError, SafetyError

_EMPTY = np.zeros(0, np.float32)


@dataclass(frozen=True)
class SparseRule:
    """Success from observations (..., n) to bool (...); the reward is 0 on success, -1 else."""

    description: str
    observation_dim: int
    success: Callable[[NDArray[Any]], NDArray[np.bool_]]


# Seed 001, chapters 7 and 8: the binary door task, success beyond 1.4 rad of the door's hinge,
# which is number 28 of the observation.
RULES: dict[str, SparseRule] = {
    "AdroitHandDoor": SparseRule(
        "door angle above 1.4 rad; reward 0 on success, -1 otherwise",
        39,
        lambda observation: np.asarray(observation[..., 28] > 1.4),
    ),
}


def is_external(task: str) -> bool:
    """Whether ``task`` is meant as a gymnasium id: it has a version, like ``Name-v1``."""
    name, _, version = task.rpartition("-v")
    return bool(name) and version.isdigit() and not task.startswith("robot_rl/")


def rule_for(task: str) -> SparseRule | None:
    """The sparse rule of a gymnasium id, or None."""
    name = task.rpartition("-v")[0].split("/")[-1]
    return RULES.get(name)


def make_external(task: str, *, render_mode: str | None = None) -> ExternalEnv:
    """The environment of that gymnasium id, adapted.

    Raises:
        InvalidInputError: no such id, or spaces that are not flat boxes.
        MissingDependencyError: the package that brings it is not installed.
    """
    try:
        # It prints news of tasks that were not asked for.
        with contextlib.redirect_stderr(io.StringIO()):
            gymnasium.register_envs(importlib.import_module("gymnasium_robotics"))
    except ImportError:
        if task not in gymnasium.registry:
            raise MissingDependencyError(
                f"the task {task} needs gymnasium_robotics; install robot_rl[external]"
            ) from None
    try:
        env = gymnasium.make(task, render_mode=render_mode)
    except (gymnasium.error.Error, ImportError) as error:
        raise InvalidInputError(f"unknown task {task!r}: {str(error).splitlines()[0]}") from None
    try:
        return ExternalEnv(env, task)
    except InvalidInputError:
        env.close()
        raise


class ExternalEnv(gymnasium.Wrapper[Any, Any, Any, Any]):
    """An environment from elsewhere in the shape of :class:`RobotEnv`, without a goal."""

    def __init__(self, env: gymnasium.Env[Any, Any], task: str) -> None:
        super().__init__(env)
        source, action = env.observation_space, env.action_space
        if not isinstance(source, spaces.Box) or len(source.shape) != 1:
            raise InvalidInputError(f"task {task}: observations are {source}, should be a flat Box")
        if not isinstance(action, spaces.Box) or len(action.shape) != 1 or not (
            np.isfinite(action.low).all() and np.isfinite(action.high).all()
        ):
            raise InvalidInputError(f"task {task}: actions are {action}, should be a bounded Box")
        self.rule = rule_for(task)
        self.state_dim, self.goal_dim = source.shape[0], 0
        self._center = 0.5 * (action.high + action.low)
        self._half = 0.5 * (action.high - action.low)
        self.action_space = spaces.Box(-1.0, 1.0, action.shape, np.float32)
        empty = spaces.Box(-np.inf, np.inf, (0,), np.float32)
        self.observation_space = spaces.Dict(
            observation=spaces.Box(-np.inf, np.inf, source.shape, np.float32),
            achieved_goal=empty,
            desired_goal=empty,
        )

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> (
        tuple[dict[str, NDArray[Any]], dict[str, Any]]
    ):
        observation, info = self.env.reset(seed=seed, options=options)
        return self._dict(observation), info

    def step(self, action: NDArray[Any]) -> (
        tuple[dict[str, NDArray[Any]], float, bool, bool, dict[str, Any]]
    ):
        wanted = np.asarray(action)
        if wanted.dtype.kind not in "fiu" or wanted.shape != self._half.shape:
            raise SafetyError(
                f"action {action!r} should be {len(self._half)} numbers; nothing was sent"
            )
        if not np.isfinite(wanted).all():
            raise SafetyError(f"action {wanted} is not finite; nothing was sent")
        wanted = np.clip(wanted.astype(np.float64), -1.0, 1.0)
        observation, reward, terminated, truncated, info = self.env.step(
            (self._center + self._half * wanted).astype(np.float32)
        )
        if self.rule is not None:
            success = bool(self.rule.success(np.asarray(observation)))
            reward = float(success) - 1.0
            terminated = False
        else:
            success = bool(info.get("is_success", info.get("success", False)))
        info = {**info, "is_success": success, "executed_action": wanted.astype(np.float32)}
        return self._dict(observation), float(reward), terminated, truncated, info

    def _dict(self, observation: NDArray[Any]) -> dict[str, NDArray[Any]]:
        return {
            "observation": np.asarray(observation, dtype=np.float32),
            "achieved_goal": _EMPTY,
            "desired_goal": _EMPTY,
        }


def apply_rule(task: str, episodes: list[Episode]) -> list[Episode]:
    """Give ``episodes`` the task's sparse rewards and successes in place, where it has a rule.

    Raises:
        InvalidInputError: their observations are not the task's.
    """
    rule = rule_for(task)
    if rule is None:
        return episodes
    for episode in episodes:
        if episode.observation.shape[1:] != (rule.observation_dim,):
            raise InvalidInputError(
                f"the data has observations of shape {episode.observation.shape[1:]}, the task "
                f"{task} has ({rule.observation_dim},)"
            )
        success = rule.success(episode.observation[1:])
        episode.success = success
        episode.reward = success.astype(np.float32) - 1.0
        episode.terminated = np.zeros(len(success), np.bool_)
    return episodes
