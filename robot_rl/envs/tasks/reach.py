"""Reach: bring the tool to a point in the air."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from robot_rl.envs.tasks.base import DEFAULT_CAMERAS, Task, TaskView
from robot_rl.interfaces import Array, Placement
from robot_rl.specs.scene import SceneSpec


class Reach(Task):
    """The goal is a tool position (3,) [m]."""

    name: ClassVar[str] = "Reach"
    description: ClassVar[str] = "bring the tool to a point in the air"
    duration_s: ClassVar[float] = 3.0
    goal_dim: ClassVar[int] = 3
    feature_dim: ClassVar[int] = 0
    threshold: ClassVar[float] = 0.02

    def scene(self) -> SceneSpec:
        return SceneSpec(cameras=DEFAULT_CAMERAS, markers=("goal",))

    def sample_goal(self, rng: np.random.Generator) -> Array:
        return rng.uniform([-0.15, -0.2, 0.03], [0.15, 0.2, 0.25])

    def sample_start(self, rng: np.random.Generator, goal: Array) -> Placement:
        return Placement(rng.uniform([-0.1, -0.15, 0.05], [0.1, 0.15, 0.2]))

    def goal_placement(self, goal: Array) -> Placement:
        return Placement(np.asarray(goal, dtype=np.float64))

    def achieved(self, view: TaskView) -> Array:
        return view.tool_m

    def features(self, view: TaskView) -> Array:
        return np.empty(0)

    def markers(self, goal: Array) -> dict[str, Array]:
        return {"goal": np.asarray(goal, dtype=np.float64)}
