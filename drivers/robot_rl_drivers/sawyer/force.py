"""The force at Sawyer's tool, as the robot estimates it from its joints' torques."""

from __future__ import annotations

from typing import Any

import numpy as np

from robot_rl.errors import StaleDataError, unknown_name
from robot_rl.interfaces import Arm, Array, Clock, Wrench
from robot_rl.kinematics import Kinematics
from robot_rl.ros.ros1 import Ros1Session
from robot_rl_drivers.sawyer.state import LIMB

SENSES = ("exerted", "felt")


class SawyerWrench:
    """Force and torque of the world on the tool, from ``endpoint_state``.

    The message gives them at the robot's endpoint in axes of the arm's base. The maker does not
    say in which sense; ``exerted`` takes them for what the joints' torques do to the world, and
    turns the sign, ``felt`` takes them as they come. Push the hand upwards and look: the force
    along z should be positive. It is an estimate, with a bias that depends on the posture; see
    :class:`robot_rl.sensors.BiasedForceSensor`.
    """

    def __init__(
        self, session: Ros1Session, arm: Arm, clock: Clock, sense: str = "exerted"
    ) -> None:
        if sense not in SENSES:
            raise unknown_name("sense of the wrench", sense, SENSES)
        self._sign = -1.0 if sense == "exerted" else 1.0
        self._arm = arm
        self._kinematics = Kinematics(arm.spec)
        self._clock = clock
        self._newest: tuple[Array, Array, Array, float] | None = None
        self._stamp: tuple[int, int] | None = None
        session.subscribe(
            f"{LIMB}/endpoint_state", "intera_core_msgs/EndpointState", self._take
        )

    def wrench(self, max_age_s: float) -> Wrench:
        """Force (3,) [N], and torque (3,) [N m] about the tool centre point, in base axes.

        Raises:
            StaleDataError: the estimate came longer ago than ``max_age_s``, or never.
        """
        newest = self._newest
        if newest is None:
            raise StaleDataError(f"no valid wrench has come on {LIMB}/endpoint_state yet")
        force, torque, endpoint_m, time_s = newest
        age_s = self._clock.now_s() - time_s
        if not age_s <= max_age_s:
            raise StaleDataError(
                f"the wrench is {age_s:.3f} s old, older than the {max_age_s} s allowed"
            )
        position_rad = self._arm.state(max_age_s).position_rad
        tool_m = self._kinematics.forward(position_rad)[:3, 3]
        return Wrench(force.copy(), torque + np.cross(endpoint_m - tool_m, force), time_s)

    def _take(self, message: Any) -> None:
        stamp = (message.header.stamp.secs, message.header.stamp.nsecs)
        if not message.valid or stamp == self._stamp:
            return
        self._stamp = stamp
        wrench, place = message.wrench, message.pose.position
        self._newest = (
            self._sign * _vector(wrench.force),
            self._sign * _vector(wrench.torque),
            _vector(place),
            self._clock.now_s(),
        )


def _vector(value: Any) -> Array:
    return np.array([value.x, value.y, value.z], dtype=np.float64)
