"""Drawer: open or close a drawer to a given opening by its handle (seed 001, ch. 7)."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from robot_rl.envs.tasks.base import DEFAULT_CAMERAS, Task, TaskView
from robot_rl.interfaces import Array, Placement
from robot_rl.specs.scene import BodySpec, Geom, JointSensor, SceneSpec, SlideJoint

TRAVEL_M = 0.15
# The slot behind the handle plate, in the drawer's frame (origin: middle of the closed front).
_SLOT = np.array([-0.034, 0.0])
SLOT_HEIGHT_M = 0.036
_FRONT_X = 0.14
_WOOD = (0.72, 0.52, 0.3, 1.0)
_METAL = (0.85, 0.2, 0.15, 1.0)


class Drawer(Task):
    """The goal is an opening (1,) [m], 0 closed to 0.15 open towards the arm."""

    name: ClassVar[str] = "Drawer"
    description: ClassVar[str] = "open or close a drawer to a given opening by its handle"
    duration_s: ClassVar[float] = 5.0
    goal_dim: ClassVar[int] = 1
    feature_dim: ClassVar[int] = 8
    threshold: ClassVar[float] = 0.02

    def scene(self) -> SceneSpec:
        cabinet = BodySpec(
            "cabinet",
            (
                Geom("box", (0.16, 0.012, 0.055), (0.09, 0.115, 0.0275), _WOOD),
                Geom("box", (0.16, 0.012, 0.055), (0.09, -0.115, 0.0275), _WOOD),
                Geom("box", (0.012, 0.242, 0.055), (0.176, 0.0, 0.0275), _WOOD),
            ),
            position_m=(_FRONT_X, 0.0, 0.0),
        )
        drawer = BodySpec(
            "drawer",
            (
                Geom("box", (0.012, 0.2, 0.045), (0.006, 0.0, 0.0275), _METAL),
                Geom("box", (0.15, 0.18, 0.008), (0.087, 0.0, 0.012), (0.8, 0.7, 0.55, 1.0)),
                Geom("box", (0.074, 0.03, 0.01), (-0.037, 0.0, 0.012), _METAL),
                Geom("box", (0.01, 0.08, 0.035), (-0.069, 0.0, 0.0345), _METAL),
            ),
            motion=SlideJoint("drawer_slide", (-1.0, 0.0, 0.0), 0.0, TRAVEL_M, 1.5, 4.0),
            position_m=(_FRONT_X, 0.0, 0.0),
            mass_kg=0.6,
            friction=0.3,
        )
        return SceneSpec(
            bodies=(cabinet, drawer),
            cameras=DEFAULT_CAMERAS,
            markers=("goal",),
            sensors=(JointSensor("drawer", "drawer_slide"),),
        )

    def slot(self, opening_m: float) -> Array:
        """Where the finger goes behind the handle (3,) [m] at this opening."""
        return np.array([_FRONT_X - opening_m + _SLOT[0], _SLOT[1], SLOT_HEIGHT_M])

    def sample_goal(self, rng: np.random.Generator) -> Array:
        return rng.uniform([0.0], [TRAVEL_M])

    def sample_start(self, rng: np.random.Generator, goal: Array) -> Placement:
        while True:
            opening = rng.uniform(0.0, TRAVEL_M)
            if abs(opening - goal[0]) > 2 * self.threshold:
                break
        tool = rng.uniform([-0.12, -0.12, 0.12], [0.08, 0.12, 0.2])
        return Placement(tool, joints={"drawer_slide": float(opening)})

    def goal_placement(self, goal: Array) -> Placement:
        return Placement(self.slot(float(goal[0])), joints={"drawer_slide": float(goal[0])})

    def achieved(self, view: TaskView) -> Array:
        return np.array([view.joint("drawer_slide")[0]])

    def features(self, view: TaskView) -> Array:
        opening, velocity = view.joint("drawer_slide")
        slot = self.slot(opening)
        return np.concatenate([[opening, velocity], slot, slot - view.tool_m])

    def markers(self, goal: Array) -> dict[str, Array]:
        return {"goal": self.slot(float(goal[0])) + np.array([0.0, 0.0, 0.06])}
