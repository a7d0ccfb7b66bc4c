"""PickPlace: grasp a cube and bring it to a point on the table or above it (seed 001, ch. 4)."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from robot_rl.envs.tasks.base import DEFAULT_CAMERAS, Task, TaskView
from robot_rl.interfaces import Array, Placement
from robot_rl.specs.scene import BodySpec, Geom, SceneSpec

CUBE_M = 0.03
# Further out [m] than any goal needs it.
_REACH_M = (0.18, 0.22)
_UPRIGHT = np.array([0.0, 0.0, 0.0, 1.0])


class PickPlace(Task):
    """The goal is a cube position (3,) [m]; half the goals are in the air."""

    name: ClassVar[str] = "PickPlace"
    description: ClassVar[str] = "grasp a cube and bring it to a point, half the time in the air"
    default_action: ClassVar[str] = "xyz+gripper"
    duration_s: ClassVar[float] = 6.0
    goal_dim: ClassVar[int] = 3
    feature_dim: ClassVar[int] = 9
    threshold: ClassVar[float] = 0.03

    def scene(self) -> SceneSpec:
        cube = BodySpec(
            "cube",
            (Geom("box", (CUBE_M, CUBE_M, CUBE_M), rgba=(0.85, 0.15, 0.1, 1.0)),),
            motion="free",
            position_m=(0.0, 0.0, CUBE_M / 2),
            mass_kg=0.05,
            friction=1.0,
        )
        return SceneSpec(bodies=(cube,), cameras=DEFAULT_CAMERAS, markers=("goal",))

    def sample_goal(self, rng: np.random.Generator) -> Array:
        goal = rng.uniform([-0.12, -0.15, CUBE_M / 2], [0.12, 0.15, CUBE_M / 2])
        if rng.random() < 0.5:
            goal[2] = rng.uniform(0.05, 0.2)
        return goal

    def sample_start(self, rng: np.random.Generator, goal: Array) -> Placement:
        while True:
            cube = rng.uniform([-0.1, -0.12], [0.1, 0.12])
            if np.linalg.norm(goal[:2] - cube) > 2 * self.threshold:
                break
        tool = rng.uniform([-0.1, -0.15, 0.1], [0.1, 0.15, 0.2])
        position = np.array([cube[0], cube[1], CUBE_M / 2])
        return Placement(tool, gripper_opening=1.0, bodies={"cube": (position, _UPRIGHT)})

    def goal_placement(self, goal: Array) -> Placement:
        cube = np.asarray(goal, dtype=np.float64)
        tool = cube + np.array([0.0, 0.0, 0.005])
        return Placement(tool, gripper_opening=1.0, bodies={"cube": (cube, _UPRIGHT)})

    def achieved(self, view: TaskView) -> Array:
        return view.body("cube").position_m

    def features(self, view: TaskView) -> Array:
        cube = view.body("cube")
        return np.concatenate(
            [cube.position_m, cube.velocity_m_s, cube.position_m - view.tool_m]
        )

    def astray(self, view: TaskView) -> str | None:
        x, y, _ = view.body("cube").position_m
        if abs(x) > _REACH_M[0] or abs(y) > _REACH_M[1]:
            return f"the cube is at ({x:.3f}, {y:.3f}) m, soon out of the arm's reach"
        return None

    def markers(self, goal: Array) -> dict[str, Array]:
        return {"goal": np.asarray(goal, dtype=np.float64)}
