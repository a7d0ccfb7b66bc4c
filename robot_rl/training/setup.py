"""From names to environments, replay buffers and agents: what both kinds of training share."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import gymnasium
import numpy as np

from robot_rl.agents import make_agent
from robot_rl.agents.base import Agent
from robot_rl.data import Episode, Relabelling, Replay
from robot_rl.data.replay import RewardFunction
from robot_rl.envs.external import apply_rule, is_external, make_external
from robot_rl.envs.factory import make_env
from robot_rl.envs.tasks import make_task
from robot_rl.errors import InvalidInputError
from robot_rl.training.runs import read_config

C = TypeVar("C")
_KIND_NAMES = {"pretrain": "pretraining", "train": "training"}


@dataclass(frozen=True)
class EnvChoice:
    """Which environment."""

    task: str = field(
        default="", metadata={"help": "task: Reach, Push, PickPlace, Drawer, Door, or the "
                              "gymnasium id of a task from elsewhere"}
    )
    robot: str = field(default="sawyer", metadata={"help": "arm: sawyer, panda or fr3"})
    backend: str = field(default="mujoco", metadata={"help": "engine: mujoco or pybullet"})
    control_hz: float = field(default=10.0, metadata={"help": "actions per second, 5 to 20"})
    randomize: dict[str, float] = field(
        default_factory=dict,
        metadata={"help": "domain randomisation as name=amount, e.g. mass=0.3 friction=0.3 "
                  "color=0.1 camera_m=0.02 camera_rad=0.02 latency_s=0.05 action_noise=0.05 "
                  "action_bias=0.05"},
    )

    def make(self, *, render_mode: str | None = None, obs: str = "state") -> (
        gymnasium.Env[Any, Any]
    ):
        """The environment."""
        if is_external(self.task):
            if self.randomize:
                raise InvalidInputError(f"the task {self.task} cannot be randomised from here")
            return make_external(self.task, render_mode=render_mode)
        return make_env(
            self.task,
            self.robot,
            self.backend,
            obs,
            control_hz=self.control_hz,
            randomization=self.randomize or None,
            render_mode=render_mode,
        )

    def as_dict(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self)}


def check_seed(seed: int) -> None:
    """Raise InvalidInputError unless every generator here takes ``seed``."""
    if not 0 <= seed < 2**31:
        raise InvalidInputError(f"seed is {seed}, should be in [0, {2**31})")


def canonical_task(task: str) -> str:
    """The task's name as it is written, e.g. ``push`` to ``Push``; external ids unchanged."""
    return task if is_external(task) else make_task(task).name


def reward_function(task: str) -> RewardFunction | None:
    """The task's own reward of (achieved, desired), or None for a task without goals."""
    return None if is_external(task) or not task else make_task(task).reward


def default_relabelling(agent: str, goal_dim: int) -> Relabelling:
    """Goals as recorded for cloning; for the others a mixture that teaches reaching anything."""
    if agent == "bc" or goal_dim == 0:
        return Relabelling()
    return Relabelling(original=0.3, future=0.5, random=0.2)


def prepare_episodes(task: str, episodes: list[Episode]) -> list[Episode]:
    """Recorded episodes with the rewards of ``task``."""
    return apply_rule(task, episodes) if is_external(task) else episodes


def read_options(
    run_path: str | Path, kind: str, config_class: type[C], changes: dict[str, Any]
) -> tuple[C, EnvChoice, Relabelling]:
    """The options in the ``config.json`` of a run of ``kind``, to go on with.

    ``changes`` replace some; those that are None or 0 do not.

    Raises:
        InvalidInputError: it is a run of another kind, or damaged.
    """
    raw = read_config(run_path)
    if raw.get("kind") != kind:
        raise InvalidInputError(f"{run_path} is not a {_KIND_NAMES[kind]} run")
    try:
        given = {name: value for name, value in changes.items() if value}
        return (config_class(**{**raw[kind], **given}), EnvChoice(**raw["env"]),
                Relabelling(**raw["relabelling"]))
    except (KeyError, TypeError) as error:
        raise InvalidInputError(f"{run_path}: config.json is damaged ({error})") from None


def make_replay(
    agent: Agent, task: str, relabelling: Relabelling, episodes: list[Episode]
) -> Replay:
    """A replay buffer of these episodes, with the agent's sizes and discount."""
    reward = reward_function(task) if agent.goal_dim else None
    replay = Replay(
        agent.observation_dim,
        agent.goal_dim,
        agent.action_dim,
        discount=agent.config.discount,
        relabelling=relabelling,
        reward=reward,
    )
    return replay.add_all(episodes)


def new_agent(
    name: str,
    *,
    sizes: tuple[int, int, int],
    overrides: dict[str, Any],
    seed: int,
    device: str,
    fit: list[Episode],
) -> Agent:
    """An agent of (observation, goal, action) ``sizes``, normalised on the episodes ``fit``."""
    observation_dim, goal_dim, action_dim = sizes
    agent = make_agent(
        name,
        observation_dim=observation_dim,
        goal_dim=goal_dim,
        action_dim=action_dim,
        config=overrides,
        seed=seed,
        device=device,
    )
    if fit:
        observations = np.concatenate([e.observation for e in fit])
        goals = np.concatenate([np.concatenate([e.achieved, e.desired[None]]) for e in fit])
        agent.fit_normalizer(observations, goals if goal_dim else None)
    return agent
