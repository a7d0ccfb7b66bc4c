"""Objects on the table from ROS topics, of either ROS, whoever tracks them.

``/robot_rl/bodies/<name>`` is a geometry_msgs/PoseStamped in the workspace frame,
``/robot_rl/joints`` a sensor_msgs/JointState of the scene's joints (a drawer's encoder). As in
:mod:`robot_rl_drivers.sensors.topics`, who subscribes is a function.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from robot_rl.errors import StaleDataError, unknown_name
from robot_rl.interfaces import Array, BodyState, Clock
from robot_rl.specs import BodySpec, HingeJoint, SceneSpec, SlideJoint
from robot_rl_drivers.sensors.topics import Subscribe, unsubscribe

BODY_TOPIC = "/robot_rl/bodies/"
JOINT_TOPIC = "/robot_rl/joints"
FRAME = "workspace"
POSE_TYPE = "geometry_msgs/msg/PoseStamped"
JOINT_TYPE = "sensor_msgs/msg/JointState"
_WINDOW_S = 0.05
"""Velocities are taken over about this long [s]: poses of trackers jitter."""
_APART_S = 0.5
"""Two poses that are further apart than this make no velocity [s]."""


@dataclass(slots=True)
class _Sample:
    """Numbers, when they came [s, the rig's clock] and when they were measured [s, any clock]."""

    values: Array
    time_s: float
    stamp_s: float


class _Track:
    """The last moments of something that is measured again and again."""

    def __init__(self, what: str, clock: Clock) -> None:
        self.fault = ""
        self._what = what
        self._clock = clock
        self._lock = threading.Lock()
        self._samples: deque[_Sample] = deque(maxlen=256)

    def put(self, values: Array, stamp_s: float | None) -> None:
        """A measurement came; one with the stamp of the last is the same again, and left out."""
        now_s = self._clock.now_s()
        if not np.isfinite(values).all():
            self.fault = f"its newest value is {values}"
            return
        with self._lock:
            last = self._samples[-1] if self._samples else None
            if stamp_s is not None and last is not None:
                if stamp_s == last.stamp_s:
                    self.fault = "its stamps stand still"
                    return
                if stamp_s < last.stamp_s:
                    self._samples.clear()  # whoever stamps it has set its clock
            self.fault = ""
            self._samples.append(_Sample(values, now_s, now_s if stamp_s is None else stamp_s))

    @property
    def seen(self) -> bool:
        return bool(self._samples)

    def pair(self, max_age_s: float) -> tuple[_Sample, _Sample]:
        """The newest sample, and one about the window before it (or the same).

        Raises:
            StaleDataError: there is none that is young enough.
        """
        with self._lock:
            samples = list(self._samples)
        more = f": {self.fault}" if self.fault else ""
        if not samples:
            raise StaleDataError(f"nothing has come of {self._what} yet{more}")
        newest = samples[-1]
        age_s = self._clock.now_s() - newest.time_s
        if not age_s <= max_age_s:
            raise StaleDataError(
                f"{self._what} is {age_s:.3f} s old, older than the {max_age_s} s allowed{more}"
            )
        before = newest
        for sample in reversed(samples):
            if newest.stamp_s - sample.stamp_s > _APART_S:
                break
            before = sample
            if newest.stamp_s - sample.stamp_s >= _WINDOW_S:
                break
        return newest, before


class RosTracker:
    """:class:`robot_rl.interfaces.ObjectTracker` of a scene's bodies and joints.

    A body on a joint that nobody sends the pose of is where its joint says. Fixed bodies are
    where the scene has them.
    """

    def __init__(self, scene: SceneSpec, clock: Clock, subscribe: Subscribe) -> None:
        self._bodies = {body.name: body for body in scene.bodies}
        self._poses: dict[str, _Track] = {}
        self._joints: dict[str, _Track] = {}
        self._subscriptions: list[Any] = []
        for body in scene.bodies:
            if body.motion == "fixed":
                continue
            if isinstance(body.motion, (SlideJoint, HingeJoint)):
                name = body.motion.name
                self._joints[name] = _Track(f"the joint {name!r} on {JOINT_TOPIC}", clock)
            topic = BODY_TOPIC + body.name
            self._poses[body.name] = _Track(f"the body {body.name!r} on {topic}", clock)
            self._subscriptions.append(
                subscribe(topic, POSE_TYPE, partial(self._take_pose, body.name))
            )
        if self._joints:
            self._subscriptions.append(subscribe(JOINT_TOPIC, JOINT_TYPE, self._take_joints))

    def body(self, name: str, max_age_s: float) -> BodyState:
        """A body in the workspace frame.

        Raises:
            InvalidInputError: the scene has none of that name.
            StaleDataError: its pose is older than ``max_age_s``, or none came.
        """
        body = self._bodies.get(name)
        if body is None:
            raise unknown_name("body", name, self._bodies)
        if body.motion == "fixed":
            return BodyState(
                np.array(body.position_m), np.array(body.quat_xyzw), np.zeros(3), np.zeros(3)
            )
        track = self._poses[name]
        if not isinstance(body.motion, str) and not track.seen:
            joint = self._joints[body.motion.name]
            if joint.seen:
                return body_on_joint(body, *self.joint(body.motion.name, max_age_s))
        newest, before = track.pair(max_age_s)
        span_s = newest.stamp_s - before.stamp_s
        velocity, spin = np.zeros(3), np.zeros(3)
        if span_s > 0.0:
            velocity = (newest.values[:3] - before.values[:3]) / span_s
            spin = turn_between(before.values[3:], newest.values[3:]) / span_s
        return BodyState(newest.values[:3].copy(), newest.values[3:].copy(), velocity, spin)

    def joint(self, name: str, max_age_s: float) -> tuple[float, float]:
        """Position [m] or [rad] and velocity of a joint of the scene.

        Raises:
            InvalidInputError: the scene has none of that name.
            StaleDataError: what came is older than ``max_age_s``, or nothing came.
        """
        track = self._joints.get(name)
        if track is None:
            raise unknown_name("joint", name, self._joints)
        newest, before = track.pair(max_age_s)
        if len(newest.values) == 2:
            return float(newest.values[0]), float(newest.values[1])
        span_s = newest.stamp_s - before.stamp_s
        change = float(newest.values[0] - before.values[0])
        return float(newest.values[0]), change / span_s if span_s > 0.0 else 0.0

    def close(self) -> None:
        """Stop listening; may be called again."""
        for subscription in self._subscriptions:
            unsubscribe(subscription)
        self._subscriptions = []

    def _take_pose(self, name: str, message: Any) -> None:
        track, frame = self._poses[name], message.header.frame_id.lstrip("/")
        if frame != FRAME:
            track.fault = f"its frame is {frame!r}, should be {FRAME!r}"
            return
        place, turn = message.pose.position, message.pose.orientation
        quat = np.array([turn.x, turn.y, turn.z, turn.w], dtype=np.float64)
        length = float(np.linalg.norm(quat))
        if not 0.9 < length < 1.1:
            track.fault = f"its quaternion {quat} is no rotation"
            return
        values = np.concatenate([[place.x, place.y, place.z], quat / length])
        track.put(values, _stamp_s(message))

    def _take_joints(self, message: Any) -> None:
        names, stamp_s = list(message.name), _stamp_s(message)
        with_speed = len(message.velocity) == len(names)
        for name, track in self._joints.items():
            if name in names and len(message.position) == len(names):
                i = names.index(name)
                values = [message.position[i], *([message.velocity[i]] if with_speed else [])]
                track.put(np.array(values, dtype=np.float64), stamp_s)


def body_on_joint(body: BodySpec, position: float, velocity: float) -> BodyState:
    """Where a joint at ``position`` [m] or [rad] puts its body (workspace frame)."""
    joint = body.motion
    assert isinstance(joint, (SlideJoint, HingeJoint))
    quat = np.array(body.quat_xyzw, dtype=np.float64)
    own = np.array(joint.axis, dtype=np.float64)
    own /= np.linalg.norm(own)
    axis = rotate(quat, own)
    place = np.array(body.position_m, dtype=np.float64)
    if isinstance(joint, SlideJoint):
        return BodyState(place + axis * position, quat, axis * velocity, np.zeros(3))
    half = 0.5 * position
    turned = multiply(quat, np.append(math.sin(half) * own, math.cos(half)))
    return BodyState(place, turned, np.zeros(3), axis * velocity)


def multiply(first: Array, second: Array) -> Array:
    """The product of two quaternions xyzw (4,): ``second`` first, then ``first``."""
    a, b = first[:3], second[:3]
    vector = first[3] * b + second[3] * a + np.cross(a, b)
    return np.append(vector, first[3] * second[3] - a @ b)


def rotate(quat_xyzw: Array, vector: Array) -> Array:
    """A vector (3,) turned by a unit quaternion xyzw (4,)."""
    inverse = quat_xyzw * np.array([-1.0, -1.0, -1.0, 1.0])
    return multiply(multiply(quat_xyzw, np.append(vector, 0.0)), inverse)[:3]


def turn_between(before: Array, after: Array) -> Array:
    """The rotation vector (3,) [rad], fixed axes, from one quaternion xyzw (4,) to another."""
    change = multiply(after, before * np.array([-1.0, -1.0, -1.0, 1.0]))
    if change[3] < 0.0:
        change = -change
    sine = float(np.linalg.norm(change[:3]))
    if sine < 1e-12:
        return np.zeros(3)
    return change[:3] * (2.0 * math.atan2(sine, change[3]) / sine)


def _stamp_s(message: Any) -> float | None:
    """A header's stamp [s] in either ROS, None where it has none."""
    stamp = message.header.stamp
    if hasattr(stamp, "secs"):
        time_s = stamp.secs + 1e-9 * stamp.nsecs
    else:
        time_s = stamp.sec + 1e-9 * stamp.nanosec
    return time_s if time_s > 0.0 else None
