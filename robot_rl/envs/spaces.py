"""The spaces of an environment's actions and observations."""

from __future__ import annotations

import numpy as np
from gymnasium import spaces

__all__ = ["action_space", "observation_space"]


def action_space(parts: tuple[str, ...]) -> spaces.Box:
    """The box [-1, 1] of an action's parts, see
    :func:`robot_rl.envs.actions.parse_action_parts`."""
    size = 3 + ("yaw" in parts) + ("gripper" in parts)
    return spaces.Box(-1.0, 1.0, (size,), np.float32)


def observation_space(
    obs: str, state_dim: int, goal_dim: int, image_shape: tuple[int, ...]
) -> spaces.Dict:
    """The dict of an observation and its goals: ``state`` vectors, or images."""
    if obs == "state":
        return spaces.Dict(
            observation=_unbounded(state_dim),
            achieved_goal=_unbounded(goal_dim),
            desired_goal=_unbounded(goal_dim),
        )
    image = spaces.Box(0, 255, image_shape, np.uint8)
    return spaces.Dict(observation=image, achieved_goal=image, desired_goal=image)


def _unbounded(size: int) -> spaces.Box:
    return spaces.Box(-np.inf, np.inf, (size,), np.float32)
