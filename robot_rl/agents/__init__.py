"""Agents by name: ``bc``, ``iql``, ``awac``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch

from robot_rl.agents.awac import AWAC, AWACConfig
from robot_rl.agents.base import Agent, Batch
from robot_rl.agents.bc import BC, BCConfig
from robot_rl.agents.config import AgentConfig
from robot_rl.agents.iql import IQL, IQLConfig
from robot_rl.errors import InvalidInputError, unknown_name

AGENTS: dict[str, tuple[type[Agent], type[AgentConfig]]] = {
    "bc": (BC, BCConfig),
    "iql": (IQL, IQLConfig),
    "awac": (AWAC, AWACConfig),
}


def config_class(name: str) -> type[AgentConfig]:
    """The config dataclass of the agent ``name``.

    Raises:
        InvalidInputError: no agent is called so; the message lists those there are.
    """
    if name not in AGENTS:
        raise unknown_name("agent", name, AGENTS)
    return AGENTS[name][1]


def make_agent(
    name: str,
    *,
    observation_dim: int,
    goal_dim: int,
    action_dim: int,
    config: AgentConfig | Mapping[str, Any] | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Agent:
    """The agent ``name``, with fresh networks drawn from ``seed``.

    Args:
        name: a key of `AGENTS`.
        observation_dim, goal_dim, action_dim: sizes; goal_dim 0 is not goal-conditioned.
        config: its config, or what to change of the defaults, or None.
        seed: of initial weights and of sampling.
        device: where to learn; acting is always on the CPU.

    Raises:
        InvalidInputError: an unknown name or option, or a value out of range.
    """
    kind = config_class(name)
    if config is None:
        config = kind()
    elif not isinstance(config, AgentConfig):
        known = [field.name for field in dataclasses.fields(kind)]
        for key in config:
            if key not in known:
                raise unknown_name(f"{name} option", key, known)
        config = kind(**config)
    elif not isinstance(config, kind):
        raise InvalidInputError(
            f"config for {name!r} is a {type(config).__name__}; it must be a {kind.__name__}"
        )
    return AGENTS[name][0](
        observation_dim=observation_dim,
        goal_dim=goal_dim,
        action_dim=action_dim,
        config=config,
        seed=seed,
        device=device,
    )


__all__ = [
    "AGENTS",
    "Agent",
    "AgentConfig",
    "Batch",
    "config_class",
    "make_agent",
]
