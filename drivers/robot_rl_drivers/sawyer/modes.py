"""How a row of set-points becomes a joint command, in each of Sawyer's modes that are offered.

- ``trajectory``: position, velocity and acceleration; the robot goes on with them until the next
  row comes. It tracks streamed set-points best and is the default. It bypasses the robot's own
  collision avoidance, as every raw mode does: the safety filter is what keeps the arm in its box.
- ``position``: position alone, which the robot approaches at its own pace: it follows streamed
  rows late. The speed ratio is set to 1, it would be 0.3 by default.
- ``velocity``: the row's velocity, and towards its position where the arm is off it.

Torque mode is not offered: the robot would do without the joint controllers' own limits, and the
safety filter limits positions. Intera's interaction control (impedance) takes its reference from
the robot's motion interface, not from joint commands, and is not offered either.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from robot_rl.errors import unknown_name
from robot_rl.interfaces import Array
from robot_rl.specs import RobotSpec
from robot_rl_drivers.streaming import Row

MODES = ("trajectory", "position", "velocity")
CLOSING_PER_S = 6.0
"""Velocity mode: share of the position's error that is made up in a second."""


def check_mode(mode: str) -> str:
    """``mode`` if it is one of :data:`MODES`."""
    if mode not in MODES:
        raise unknown_name("mode of sawyer", mode, MODES)
    return mode


def joint_command(
    mode: str, kind: Any, spec: RobotSpec, row: Row, measured_rad: Array | None
) -> Any:
    """A JointCommand (of the class ``kind``) for a row; ``measured_rad`` (n,) is for velocity
    mode, None where the arm's position is not known: then it stands still."""
    names = list(spec.joint_names)
    if mode == "trajectory":
        return kind(
            mode=kind.TRAJECTORY_MODE, names=names, position=row.position_rad.tolist(),
            velocity=row.velocity_rad_s.tolist(), acceleration=row.acceleration_rad_s2.tolist(),
        )
    if mode == "position":
        return kind(mode=kind.POSITION_MODE, names=names, position=row.position_rad.tolist())
    velocity = np.zeros(len(names))
    if measured_rad is not None and np.isfinite(measured_rad).all():
        most = spec.limits("velocity_rad_s")
        wanted = row.velocity_rad_s + CLOSING_PER_S * (row.position_rad - measured_rad)
        velocity = np.clip(wanted, -most, most)
    return kind(mode=kind.VELOCITY_MODE, names=names, velocity=velocity.tolist())
