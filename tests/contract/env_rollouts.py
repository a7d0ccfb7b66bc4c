"""Episodes of an environment in digests, for the tests that compare them."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

ENGINES = ("mujoco", "pybullet")


def digest(*arrays: Any) -> str:
    found = hashlib.sha256()
    for array in arrays:
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def rollout(env, actions, *, seed: int | None = None) -> list[str]:
    """A digest of everything that comes back at each step; ``seed`` begins a new episode."""
    out = []
    if seed is not None:
        observation, info = env.reset(seed=seed)
        out.append(digest(*observation.values(), env.goal))
    for action in actions:
        observation, reward, terminated, truncated, info = env.step(action)
        out.append(digest(*observation.values(), reward, terminated, truncated,
                          info["executed_action"], info["distance"], env.safety.setpoint_rad))
    return out


def random_actions(env, count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (count, *env.action_space.shape))
