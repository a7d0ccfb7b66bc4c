"""Set-points between two states of the joints: limited velocity, acceleration and jerk.

Rows are (k, 3, n): angles [rad], velocities [rad/s] and accelerations [rad/s^2] of n joints, one
row each period, the first a period after the state they start from. The last row is at rest.
"""

from __future__ import annotations

import math

import numpy as np
from ruckig import (
    ControlInterface,
    InputParameter,
    Ruckig,
    RuckigError,
    Synchronization,
    Trajectory,
)

from robot_rl.interfaces import Array

# By how much of a row a motion is shorter than the rows it is given, so that it ends on the last.
_SPARE_ROWS = 0.01
# A target that is reached within so long [s] after the rows that are asked for is gone to.
_TAIL_S = 0.5


class Generator:
    """Makes rows that keep to limits (n,) of acceleration [rad/s^2] and jerk [rad/s^3]."""

    def __init__(self, period_s: float, acceleration: Array, jerk: Array) -> None:
        n_joints = len(acceleration)
        self._period_s = period_s
        self._tail = round(_TAIL_S / period_s)
        self._otg = Ruckig(n_joints)
        self._trajectory = Trajectory(n_joints)
        self._motion, self._stop = InputParameter(n_joints), InputParameter(n_joints)
        for request in (self._motion, self._stop):
            request.max_acceleration = acceleration
            request.max_jerk = jerk
            # In proportion where that can be, so that the tool's path is nearly straight.
            request.synchronization = Synchronization.Phase
        self._stop.control_interface = ControlInterface.Velocity

    def towards(
        self, state: Array, target_rad: Array, velocity_rad_s: Array, rows: int
    ) -> Array | None:
        """Rows from ``state`` (3, n) towards ``target_rad`` (n,) within velocities (n,) [rad/s].

        The target is reached after ``rows`` rows where the limits let that be, or soon afterwards.
        To one that is further away the arm brakes after so many rows. At least ``rows + 1`` rows
        come back, or None where no motion was found.
        """
        request = self._motion
        request.target_position = target_rad
        request.max_velocity = velocity_rad_s
        request.minimum_duration = (rows - _SPARE_ROWS) * self._period_s
        try:
            count = self._solve(request, state)
            if count <= rows + self._tail:
                path = self._sampled(count)
            else:
                path = self._sampled(rows)
                count = self._solve(self._stop, path[-1])
                path = np.concatenate([path, self._sampled(count)])
        except RuckigError:
            return None
        spare = max(1, rows + 2 - len(path))
        return np.concatenate([path[:-1], resting(path[-1], spare)])

    def brake(self, state: Array) -> Array | None:
        """Rows from ``state`` (3, n) to rest, as soon as can be, or None where none were found."""
        try:
            path = self._sampled(self._solve(self._stop, state))
        except RuckigError:
            return None
        return np.concatenate([path[:-1], resting(path[-1])])

    def _solve(self, request: InputParameter, state: Array) -> int:
        """After how many rows what is asked for is reached."""
        request.current_position, request.current_velocity, request.current_acceleration = state
        self._otg.calculate(request, self._trajectory)
        return max(math.ceil(self._trajectory.duration / self._period_s), 1)

    def _sampled(self, count: int) -> Array:
        at_time, period = self._trajectory.at_time, self._period_s
        return np.array([at_time(period * k) for k in range(1, count + 1)])


def resting(row: Array, count: int = 1) -> Array:
    """Rows (count, 3, n) at rest at the angles of a row (3, n)."""
    rest = np.zeros((count, *row.shape))
    rest[:, 0] = row[0]
    return rest
