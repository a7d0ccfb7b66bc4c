"""Door: turn a low door on its hinge to a given angle by its handle."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from robot_rl.envs.tasks.base import DEFAULT_CAMERAS, Task, TaskView
from robot_rl.interfaces import Array, Placement
from robot_rl.specs.scene import BodySpec, Geom, HingeJoint, JointSensor, SceneSpec

MAX_ANGLE_RAD = 1.0
SLOT_HEIGHT_M = 0.036
_HINGE = np.array([0.14, 0.16])
# The slot behind the handle plate in the door's frame: the panel runs along -y from the hinge.
_SLOT = np.array([-0.04, -0.2])
_WOOD = (0.72, 0.52, 0.3, 1.0)
_METAL = (0.15, 0.55, 0.3, 1.0)


class Door(Task):
    """The goal is an angle (1,) [rad], 0 closed to 1 open towards the arm."""

    name: ClassVar[str] = "Door"
    description: ClassVar[str] = "turn a door on its hinge to a given angle by its handle"
    duration_s: ClassVar[float] = 6.0
    goal_dim: ClassVar[int] = 1
    feature_dim: ClassVar[int] = 8
    threshold: ClassVar[float] = 0.1
    goal_unit: ClassVar[str] = "rad"

    def scene(self) -> SceneSpec:
        frame = BodySpec(
            "frame",
            (Geom("box", (0.03, 0.03, 0.055), (0.0, 0.03, 0.0275), _WOOD),),
            position_m=(float(_HINGE[0]), float(_HINGE[1]), 0.0),
        )
        door = BodySpec(
            "door",
            (
                Geom("box", (0.012, 0.24, 0.045), (0.0, -0.125, 0.0275), _METAL),
                Geom("box", (0.074, 0.02, 0.01), (-0.043, -0.2, 0.012), _METAL),
                Geom("box", (0.01, 0.06, 0.035), (-0.075, -0.2, 0.0345), _METAL),
            ),
            motion=HingeJoint("door_hinge", (0.0, 0.0, -1.0), 0.0, MAX_ANGLE_RAD, 0.1, 0.2),
            position_m=(float(_HINGE[0]), float(_HINGE[1]), 0.0),
            mass_kg=0.5,
            friction=0.3,
        )
        return SceneSpec(
            bodies=(frame, door),
            cameras=DEFAULT_CAMERAS,
            markers=("goal",),
            sensors=(JointSensor("door", "door_hinge"),),
        )

    def slot(self, angle_rad: float) -> Array:
        """Where the finger goes behind the handle (3,) [m] at this angle."""
        cos, sin = np.cos(angle_rad), np.sin(angle_rad)
        x, y = _SLOT
        # The hinge turns about -z, so that a positive angle opens towards the arm.
        return np.array([_HINGE[0] + cos * x + sin * y, _HINGE[1] - sin * x + cos * y,
                         SLOT_HEIGHT_M])

    def sample_goal(self, rng: np.random.Generator) -> Array:
        return rng.uniform([0.0], [MAX_ANGLE_RAD])

    def sample_start(self, rng: np.random.Generator, goal: Array) -> Placement:
        while True:
            angle = rng.uniform(0.0, MAX_ANGLE_RAD)
            if abs(angle - goal[0]) > 2 * self.threshold:
                break
        tool = rng.uniform([-0.12, -0.12, 0.12], [0.08, 0.12, 0.2])
        return Placement(tool, joints={"door_hinge": float(angle)})

    def goal_placement(self, goal: Array) -> Placement:
        return Placement(self.slot(float(goal[0])), joints={"door_hinge": float(goal[0])})

    def achieved(self, view: TaskView) -> Array:
        return np.array([view.joint("door_hinge")[0]])

    def features(self, view: TaskView) -> Array:
        angle, velocity = view.joint("door_hinge")
        slot = self.slot(angle)
        return np.concatenate([[angle, velocity], slot, slot - view.tool_m])

    def markers(self, goal: Array) -> dict[str, Array]:
        return {"goal": self.slot(float(goal[0])) + np.array([0.0, 0.0, 0.06])}
