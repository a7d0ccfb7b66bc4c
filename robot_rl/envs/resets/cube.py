"""Puts a cube back where it should be: grasp, carry, set down."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from robot_rl.envs.resets.base import HelpNeeded, ObjectReset, at_rest, axes_of
from robot_rl.envs.tasks.pick_place import CUBE_M
from robot_rl.interfaces import Array, BodyState, Placement

_GRASP_ABOVE_M = 0.003
# Openings (shares of the stroke) between which the fingers have stopped at something.
_EMPTY = 0.08
_NEAR_M = 0.03
_SHAKES = 3
# How far beyond the box a cube may be for the fingers to hold it by its nearer half.
_BEYOND_M = 0.01


class CubeReset(ObjectReset):
    """Grasps the cube across two of its faces, however it is turned."""

    task: ClassVar[str] = "PickPlace"

    def let_go(self, placement: Placement) -> None:
        """Set down what is held, so that it does not fall, and see that it stays there."""
        motion = self.bench.motion
        for _ in range(_SHAKES):
            tool = motion.tool()[0]
            cube = self.bench.body("cube").position_m
            if float(np.linalg.norm(tool - cube)) > _NEAR_M or cube[2] < CUBE_M:
                break
            low = np.array([tool[0], tool[1], tool[2] - (cube[2] - 0.5 * CUBE_M)])
            motion.move_tool_to(motion.clip(low), None, 0.15, tolerance_m=0.01)
            # Wedged corner to corner between the open fingers, it comes free by being gripped.
            motion.grip(0.0)
            motion.grip(1.0)
            motion.lift_off()
        motion.grip(1.0)

    def problem(self, placement: Placement) -> str | None:
        wanted = placement.bodies["cube"][0]
        cube = self.bench.settled("cube")
        off = float(np.linalg.norm(cube.position_m - wanted))
        if off > self.bench.options.body_tolerance_m:
            return (f"the cube is at {_at(cube.position_m)}, {1000 * off:.0f} mm from where it "
                    f"should be, {_at(wanted)}")
        if not at_rest(cube):
            return f"the cube does not come to rest at {_at(cube.position_m)}"
        return None

    def restore(self, placement: Placement) -> None:
        motion, options = self.bench.motion, self.bench.options
        cube = self.bench.settled("cube")
        wanted = np.asarray(placement.bodies["cube"][0], dtype=np.float64)
        grasp = motion.clip(cube.position_m + [0.0, 0.0, _GRASP_ABOVE_M])
        beyond = float(np.abs(grasp[:2] - cube.position_m[:2]).max())
        if beyond > _BEYOND_M or not self.bench.reaches(grasp):
            raise HelpNeeded(f"the cube at {_at(cube.position_m)} is out of reach")
        motion.grip(1.0)
        if not motion.travel(grasp, _face_yaw(cube), options.travel_speed_m_s):
            motion.lift_off()
            return
        motion.grip(0.0)
        empty = self.bench.rig.gripper.opening(self.bench.max_age_s) < _EMPTY
        motion.lift_off()
        held = self.bench.body("cube").position_m
        if not empty and held[2] > 2.0 * CUBE_M:
            over = wanted + [0.0, 0.0, _GRASP_ABOVE_M + 0.002]
            # By how far the cube hangs beside the middle of the fingers.
            over[:2] += motion.tool()[0][:2] - held[:2]
            motion.travel(motion.clip(over), 0.0, options.travel_speed_m_s)
        motion.grip(1.0)
        motion.lift_off()


def _face_yaw(cube: BodyState) -> float:
    """The turn in [-pi/4, pi/4] rad that sets the fingers square to two upright faces."""
    axes = axes_of(cube)
    side = axes[:, int(np.argmin(np.abs(axes[2])))]
    heading = float(np.arctan2(side[1], side[0]))
    return (heading + np.pi / 4) % (np.pi / 2) - np.pi / 4


def _at(position_m: Array) -> str:
    return "(" + ", ".join(f"{value:.3f}" for value in position_m) + ") m"
