"""Sensors whose readings come over ROS topics, of either ROS.

The classes take messages in; who subscribes is a function, so that they need neither ROS:
``subscribe(topic, type, callback)`` with the type as ``package/msg/Name``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from robot_rl.interfaces import Array, Clock, Reading, Wrench
from robot_rl_drivers.sensors.latest import Latest

Subscribe = Callable[[str, str, Callable[[Any], None]], Any]
"""Subscribes, and returns what :func:`unsubscribe` takes."""

VALUE_TYPE = "std_msgs/msg/Float64"
WRENCH_TYPE = "geometry_msgs/msg/WrenchStamped"
SENSOR_TOPIC = "/robot_rl/sensors/"
"""Where the sensor of a name is published, followed by that name."""


class TopicSensor:
    """:class:`robot_rl.interfaces.Sensor` whose readings are std_msgs/Float64 on a topic."""

    def __init__(
        self, name: str, unit: str, clock: Clock, subscribe: Subscribe, topic: str = ""
    ) -> None:
        self.name, self.unit = name, unit
        self.topic = topic or SENSOR_TOPIC + name
        self.bad_messages = 0
        self._latest: Latest[float] = Latest(f"the sensor {name!r} on {self.topic}", clock)
        self._subscription = subscribe(self.topic, VALUE_TYPE, self._receive)

    def read(self, max_age_s: float) -> Reading:
        """The newest reading.

        Raises:
            StaleDataError: it is older than ``max_age_s``, or there is none yet.
        """
        value, stamp_s = self._latest.get(max_age_s)
        return Reading(value, stamp_s)

    def close(self) -> None:
        """Stop listening; may be called again."""
        unsubscribe(self._subscription)
        self._subscription = None

    def _receive(self, message: Any) -> None:
        value = float(message.data)
        if math.isfinite(value):
            self._latest.put(value)
        else:
            self.bad_messages += 1
            self._latest.blame(f"it sends {value}")


class TopicWrench:
    """Raw readings of a force sensor: geometry_msgs/WrenchStamped on a topic.

    A message whose header does not advance is a repetition of an old measurement and is left out;
    a header without a stamp is not compared. For a rig, put
    :class:`~robot_rl.sensors.MountedWrench` and :class:`~robot_rl.sensors.BiasedForceSensor`
    round it.
    """

    def __init__(self, clock: Clock, subscribe: Subscribe, topic: str) -> None:
        self.topic = topic
        self.bad_messages = 0
        self.repeated = 0
        self._stamp: tuple[int, int] | None = None
        self._latest: Latest[Array] = Latest(f"the force sensor on {topic}", clock)
        self._subscription = subscribe(topic, WRENCH_TYPE, self._receive)

    def wrench(self, max_age_s: float) -> Wrench:
        """The newest reading, in the sensor's own axes.

        Raises:
            StaleDataError: it is older than ``max_age_s``, or there is none yet.
        """
        values, stamp_s = self._latest.get(max_age_s)
        return Wrench(values[:3].copy(), values[3:].copy(), stamp_s)

    def close(self) -> None:
        """Stop listening; may be called again."""
        unsubscribe(self._subscription)
        self._subscription = None

    def _receive(self, message: Any) -> None:
        stamp = _stamp(message.header)
        if stamp != (0, 0):
            if stamp == self._stamp:
                self.repeated += 1
                self._latest.blame("its stamps stand still")
                return
            self._stamp = stamp
        force, torque = message.wrench.force, message.wrench.torque
        values = np.array([force.x, force.y, force.z, torque.x, torque.y, torque.z], np.float64)
        if np.isfinite(values).all():
            self._latest.put(values)
        else:
            self.bad_messages += 1
            self._latest.blame(f"it sends {values}")


def unsubscribe(subscription: Any) -> None:
    """End what a :data:`Subscribe` began, however that ROS calls it."""
    for name in ("unregister", "destroy", "close"):
        end = getattr(subscription, name, None)
        if end is not None:
            end()
            return


def _stamp(header: Any) -> tuple[int, int]:
    """Seconds and nanoseconds of a header of either ROS."""
    stamp = header.stamp
    seconds = getattr(stamp, "sec", None)
    if seconds is not None:
        return int(seconds), int(stamp.nanosec)
    return int(stamp.secs), int(stamp.nsecs)
