"""Push: slide a puck over the table to a point, with the gripper closed (seed 001, ch. 2)."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from robot_rl.envs.tasks.base import DEFAULT_CAMERAS, Task, TaskView
from robot_rl.interfaces import Array, Placement
from robot_rl.specs.scene import BodySpec, Geom, SceneSpec

PUCK_DIAMETER_M = 0.07
PUCK_HEIGHT_M = 0.04
# Further out [m] than any goal needs it; the tool still gets behind it there.
_REACH_M = (0.165, 0.2)
_UPRIGHT_COS = 0.97
# The tool's middle over the puck, so low that the fingers reach its top, or will before the arm
# could stop: a puck that is pressed at its rim stands up and rolls away.
_OVER_M, _ON_TOP_M, _AHEAD_S = 0.05, 0.056, 0.25
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

    def astray(self, view: TaskView) -> str | None:
        puck = view.body("puck")
        x, y = puck.position_m[:2]
        if abs(x) > _REACH_M[0] or abs(y) > _REACH_M[1]:
            return f"the puck is at ({x:.3f}, {y:.3f}) m, soon out of the arm's reach"
        qx, qy = puck.quat_xyzw[:2]
        if abs(1.0 - 2.0 * float(qx * qx + qy * qy)) < _UPRIGHT_COS:
            return f"the puck tips over at ({x:.3f}, {y:.3f}) m"
        soon = view.tool_m + _AHEAD_S * view.tool_velocity_m_s
        off = min(float(np.linalg.norm(spot[:2] - puck.position_m[:2]))
                  for spot in (view.tool_m, soon))
        if off < _OVER_M and min(view.tool_m[2], soon[2]) < _ON_TOP_M < view.tool_m[2] + 0.016:
            return f"the tool is about to press on the puck at ({x:.3f}, {y:.3f}) m"
        return None

    def markers(self, goal: Array) -> dict[str, Array]:
        return {"goal": np.array([goal[0], goal[1], 0.005])}
