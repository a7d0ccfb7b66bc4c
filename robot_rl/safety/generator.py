"""Set-points between two states of the joints: limited velocity, acceleration and jerk.

Rows are (k, 3, n): angles [rad], velocities [rad/s] and accelerations [rad/s^2] of n joints, one
row each period, the first a period after the state they start from. The last row is at rest.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

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

_Row = tuple[list[float], list[float], list[float]]

# What is raised where there is none, the latter where it would take hours.
_NO_MOTION = (RuckigError, ValueError)
# A joint that has next to nowhere to go may still be moved at this speed [rad/s].
_LEAST_RAD_S = 0.02
# Shorter ways [rad] are none, and so are smaller parts of the longest one.
_LEAST_RAD, _LEAST_WAY = 1e-9, 1e-3
# Joints that go in step keep this part of what they can do, to brake what else they do; a change of
# velocity takes so long [s] or longer.
_LEAST_PART, _LEAST_S = 0.1, 1e-4
# A target that is reached within so long [s] after the rows that are asked for is gone to.
_TAIL_S = 0.5


class Generator:
    """Makes rows that keep to limits (n,) of acceleration [rad/s^2] and jerk [rad/s^3]."""

    def __init__(self, period_s: float, acceleration: Array, jerk: Array) -> None:
        n_joints = len(acceleration)
        self._period_s = period_s
        self._limits = acceleration, jerk
        self._ramp_s = acceleration / jerk
        self._tail = round(_TAIL_S / period_s)
        self._none = [0.0] * n_joints
        self._otg = Ruckig(n_joints)
        self._trajectory = Trajectory(n_joints)
        self._motion, self._stop = InputParameter(n_joints), InputParameter(n_joints)
        self._motion.synchronization = self._stop.synchronization = Synchronization.Phase
        self._stop.control_interface = ControlInterface.Velocity
        self._stop.max_acceleration, self._stop.max_jerk = acceleration, jerk

    def towards(
        self, state: Array, target_rad: Array, velocity_rad_s: Array, rows: int, keep_s: float
    ) -> Array | None:
        """Rows from ``state`` (3, n) towards ``target_rad`` (n,) within velocities (n,) [rad/s].

        The arm takes a pace that it can keep for ``keep_s`` [s]. On the way to a target that is
        far away it brakes after ``rows`` rows.
        At least ``rows + 1`` rows come back, or None where no motion was found.
        """
        request = self._motion
        request.target_position = target_rad.tolist()
        way = target_rad - state[0]
        far = np.abs(way)
        # At the pace p a joint goes p keep_s and then, while it brakes, p (p / acceleration +
        # ramp_s) / 2. Were braking to begin any earlier, a run of commands would be stop and go.
        keep = keep_s + 0.5 * self._ramp_s
        time_s = 0.5 * (keep + np.sqrt(keep * keep + 2.0 * far / self._limits[0])).max()
        pace = np.minimum(velocity_rad_s, far / time_s + _LEAST_RAD_S)
        if state[1:].any():
            self._keep_in_step(np.where(way < 0.0, -pace, pace) - state[1], pace, way < 0.0)
        else:
            # From rest all joints can go in proportion.
            part = np.maximum(far / max(float(far.max()), _LEAST_RAD), _LEAST_WAY)
            pace, acceleration, request.max_jerk = (
                part * (limit / part).min() for limit in (pace, *self._limits)
            )
            request.max_acceleration, request.min_acceleration = acceleration, -acceleration
        request.max_velocity = pace.tolist()
        try:
            count = self._solve(request, state.tolist())
            if count <= rows + self._tail:
                path = self._sampled(count)
            else:
                path = self._sampled(rows)
                path += self._sampled(self._solve(self._stop, path[-1]))
        except _NO_MOTION:
            return None
        return self._ending(path, max(1, rows + 2 - len(path)))

    def _keep_in_step(self, change: Array, pace: Array, backwards: Array) -> None:
        """Let the joints change their velocities (n,) by ``change`` in the same time, and brake
        from ``pace`` (n,) in the same time: the way of the tool is nearly straight."""
        gain, loss = self._together(change), self._together(pace)
        slower = (change < 0.0) != backwards
        loss = np.where(slower, np.maximum(gain, loss), loss)
        acceleration, jerk = self._limits
        request = self._motion
        request.max_acceleration = np.where(backwards, loss, gain).tolist()
        request.min_acceleration = (-np.where(backwards, gain, loss)).tolist()
        request.max_jerk = (jerk * np.maximum(gain, loss) / acceleration).tolist()

    def _together(self, change: Array) -> Array:
        """Accelerations (n,) [rad/s^2] with which all velocities change in the same time."""
        size = np.abs(change)
        time_s = max(float((size / self._limits[0]).max()), _LEAST_S)
        return np.maximum(size / time_s, _LEAST_PART * self._limits[0])

    def brake(self, state: Array) -> Array | None:
        """Rows from ``state`` (3, n) to rest, as soon as can be, or None where none were found."""
        try:
            return self._ending(self._sampled(self._solve(self._stop, state.tolist())), 1)
        except _NO_MOTION:
            return None

    def _solve(self, request: InputParameter, state: Iterable[Iterable[float]]) -> int:
        """After how many rows what is asked for is reached."""
        request.current_position, request.current_velocity, request.current_acceleration = state
        self._otg.calculate(request, self._trajectory)
        return max(math.ceil(self._trajectory.duration / self._period_s), 1)

    def _sampled(self, count: int) -> list[_Row]:
        at_time, period = self._trajectory.at_time, self._period_s
        return [at_time(period * k) for k in range(1, count + 1)]

    def _ending(self, path: list[_Row], resting: int) -> Array:
        """Rows (k, 3, n) of a path, so many ``resting`` where it ends in place of its last."""
        last = (path[-1][0], self._none, self._none)
        return np.array(path[:-1] + [last] * resting)
