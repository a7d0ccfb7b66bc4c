"""Push: slide a puck over the table to a point, with the gripper closed (seed 001, ch. 2)."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from robot_rl.envs.tasks.base import DEFAULT_CAMERAS, Task, TaskView
from robot_rl.interfaces import Array, Placement
from robot_rl.specs.scene import BodySpec, Geom, SceneSpec

PUCK_DIAMETER_M = 0.07
PUCK_HEIGHT_M = 0.04
_UPRIGHT = np.array([0.0, 0.0, 0.0, 1.0])


class Push(Task):
    """The goal is a puck position (2,) [m]."""

    name: ClassVar[str] = "Push"
    description: ClassVar[str] = "push a puck over the table to a point"
    goal_dim: ClassVar[int] = 2
    feature_dim: ClassVar[int] = 7
    threshold: ClassVar[float] = 0.04

    def scene(self) -> SceneSpec:
        puck = BodySpec(
            "puck",
            (Geom("cylinder", (PUCK_DIAMETER_M, PUCK_HEIGHT_M), rgba=(0.1, 0.25, 0.9, 1.0)),),
            motion="free",
            position_m=(0.0, 0.0, PUCK_HEIGHT_M / 2),
            mass_kg=0.15,
            friction=0.5,
        )
        return SceneSpec(bodies=(puck,), cameras=DEFAULT_CAMERAS, markers=("goal",))

    def sample_goal(self, rng: np.random.Generator) -> Array:
        return rng.uniform([-0.12, -0.15], [0.12, 0.15])

    def sample_start(self, rng: np.random.Generator, goal: Array) -> Placement:
        while True:
            puck = rng.uniform([-0.1, -0.12], [0.1, 0.12])
            tool = rng.uniform([-0.16, -0.18], [0.16, 0.18])
            apart = np.linalg.norm(tool - puck) > 0.075
            if apart and np.linalg.norm(goal - puck) > 2 * self.threshold:
                break
        return Placement(
            np.array([tool[0], tool[1], 0.025]),
            bodies={"puck": (np.array([puck[0], puck[1], PUCK_HEIGHT_M / 2]), _UPRIGHT)},
        )

    def goal_placement(self, goal: Array) -> Placement:
        tool = np.array([goal[0] - 0.08, goal[1], 0.025])
        puck = np.array([goal[0], goal[1], PUCK_HEIGHT_M / 2])
        return Placement(tool, bodies={"puck": (puck, _UPRIGHT)})

    def achieved(self, view: TaskView) -> Array:
        return view.body("puck").position_m[:2]

    def features(self, view: TaskView) -> Array:
        puck = view.body("puck")
        out = np.empty(7)
        out[:3] = puck.position_m
        out[3:5] = puck.velocity_m_s[:2]
        out[5:] = puck.position_m[:2] - view.tool_m[:2]
        return out

    def markers(self, goal: Array) -> dict[str, Array]:
        return {"goal": np.array([goal[0], goal[1], 0.005])}
