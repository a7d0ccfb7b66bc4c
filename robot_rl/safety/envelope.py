"""Joint velocity limits, which on some arms shrink towards the position limits."""

from __future__ import annotations

import numpy as np

from robot_rl.interfaces import Array
from robot_rl.specs.robot import RobotSpec

# How far [rad] from where the limit falls to zero a joint may go at most: it could not leave again
# at any speed, and would hold the others up.
_CREEP_RAD = 0.01


class VelocityEnvelope:
    """The largest velocity of each joint at a posture and in a direction.

    Where the maker gives an envelope (the FR3), the limit towards a position limit that is d away
    is ``min(velocity, max(0, -offset + sqrt(2 deceleration d)))``; elsewhere it is constant.
    """

    def __init__(self, spec: RobotSpec) -> None:
        self._velocity = spec.limits("velocity_rad_s")
        self._lower, self._upper = spec.limits("lower_rad"), spec.limits("upper_rad")
        joints = spec.joints
        self.varies = all(joint.velocity_envelope_offset is not None for joint in joints)
        self.standstill_rad: Array = np.zeros(len(joints))
        """Distance (n,) [rad] to keep from the position limits so that the limit stays above 0."""
        if self.varies:
            self._offset = spec.limits("velocity_envelope_offset")
            self._deceleration = spec.limits("velocity_envelope_deceleration")
            self.standstill_rad = self._offset**2 / (2.0 * self._deceleration) + _CREEP_RAD

    def limit(self, q_rad: Array, direction: Array) -> Array:
        """Velocity limits (..., n) [rad/s] at angles (..., n) [rad] for motion with the signs of
        ``direction`` (..., n)."""
        if not self.varies:
            return self._velocity
        left = np.where(direction >= 0.0, self._upper - q_rad, q_rad - self._lower)
        braking = np.sqrt(2.0 * self._deceleration * np.maximum(left, 0.0)) - self._offset
        return np.minimum(self._velocity, np.maximum(braking, 0.0))
