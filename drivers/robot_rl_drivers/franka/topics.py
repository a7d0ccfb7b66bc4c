"""The state of a Franka as franka_ros2 publishes it, newest values only."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from robot_rl.errors import SafetyError, StaleDataError
from robot_rl.interfaces import Array, Clock, JointState, Wrench
from robot_rl.kinematics import rotation_from_quat, rotation_vector
from robot_rl.ros.runtime import QoS, message, native
from robot_rl.specs import RobotSpec
from robot_rl_drivers.franka.robot_state import errors_of, fault_of
from robot_rl_drivers.joint_messages import Stamps, joint_values

STREAM = QoS(depth=1, reliable=False)
"""For states at up to 1 kHz: best effort, and only the newest sample is read."""
ROBOT_STATE = QoS(depth=1)
ROBOT_STATE_TOPIC = "franka_robot_state_broadcaster/robot_state"

POSE_AGE_S = 0.5
POSE_M = 0.01
POSE_RAD = 0.05
"""How far the controller's tool pose may be from ours, for the arm at rest."""

JOINT_STATE_TYPE = "sensor_msgs/msg/JointState"
ROBOT_STATE_TYPE = "franka_msgs/msg/FrankaRobotState"


def stamp_of(header: Any) -> tuple[int, int]:
    """Seconds and nanoseconds of a header's stamp."""
    return int(header.stamp.sec), int(header.stamp.nanosec)


def joint_names(spec: RobotSpec, arm_prefix: str) -> list[str]:
    """The joints' names with the launch argument ``arm_prefix``."""
    return [_prefixed(name, arm_prefix) for name in spec.joint_names]


def _prefixed(name: str, arm_prefix: str) -> str:
    return f"{arm_prefix.rstrip('_')}_{name}" if arm_prefix else name


class JointStates:
    """The newest joint_states of the wanted joints.

    Ages count from the arrival here. A message whose stamp does not advance repeats an old
    measurement and does not count as new; one that is malformed is a fault.
    """

    def __init__(self, node: Any, topic: str, names: list[str], clock: Clock) -> None:
        self.topic = node.resolve_topic_name(topic)
        self._names = names
        self._clock = clock
        self._lock = threading.Lock()
        self._held: JointState | None = None
        self._stamps = Stamps()
        self._blame = "nothing has arrived"
        self.fault: str | None = None
        self.subscription = node.create_subscription(
            message(JOINT_STATE_TYPE), topic, self._receive, native(STREAM)
        )

    def _receive(self, state: Any) -> None:
        now_s = self._clock.now_s()
        try:
            values = joint_values(state, self._names)
        except ValueError as error:
            self.fault = self._blame = f"{self.topic} {error}"
            return
        if values is None:
            # Other joints' states may come on the same topic.
            if self._held is None:
                self._blame = f"its joints are {', '.join(state.name)}"
            return
        position, velocity, effort = values
        if not (np.isfinite(position).all() and np.isfinite(velocity).all()):
            self.fault = self._blame = f"{self.topic} has a value that is not finite"
            return
        with self._lock:
            if not self._stamps.is_new(stamp_of(state.header)):
                self._blame = "its stamps stand still or go back"
                return
            self.fault = None
            self._held = JointState(position, velocity, now_s, effort)

    def get(self, max_age_s: float) -> JointState:
        """The newest state.

        Raises:
            StaleDataError: it is older than ``max_age_s``, or there is none.
        """
        with self._lock:
            held = self._held
        if held is None:
            raise StaleDataError(
                f"no state of {', '.join(self._names[:2])}, ... came on {self.topic}: "
                f"{self._blame}"
            )
        age_s = self._clock.now_s() - held.stamp_s
        if not age_s <= max_age_s:
            why = "" if self._blame == "nothing has arrived" else f" ({self._blame})"
            raise StaleDataError(
                f"the last state on {self.topic} is {age_s:.3f} s old, should be at most "
                f"{max_age_s:g} s{why}"
            )
        effort = None if held.effort_nm is None else held.effort_nm.copy()
        return JointState(
            held.position_rad.copy(), held.velocity_rad_s.copy(), held.stamp_s, effort
        )


class ToolPose:
    """The newest current_pose: where the controller thinks the tool is, in the base frame."""

    def __init__(self, node: Any, clock: Clock) -> None:
        self.topic = node.resolve_topic_name("current_pose")
        self._clock = clock
        self._held: tuple[Array, float] | None = None
        node.create_subscription(
            message("geometry_msgs/msg/PoseStamped"), "current_pose", self._receive, native(STREAM)
        )

    def _receive(self, stamped: Any) -> None:
        point, turn = stamped.pose.position, stamped.pose.orientation
        quat = np.array([turn.x, turn.y, turn.z, turn.w])
        place = np.array([point.x, point.y, point.z])
        if np.isfinite(place).all() and 0.9 < np.linalg.norm(quat) < 1.1:
            pose = np.eye(4)
            pose[:3, :3], pose[:3, 3] = rotation_from_quat(quat), place
            self._held = (pose, self._clock.now_s())

    def get(self, max_age_s: float) -> Array:
        """The pose (4, 4).

        Raises:
            StaleDataError: it is older than ``max_age_s``, or there is none.
        """
        held = self._held
        if held is None:
            raise StaleDataError(f"no pose came on {self.topic}")
        age_s = self._clock.now_s() - held[1]
        if not age_s <= max_age_s:
            raise StaleDataError(
                f"the last pose on {self.topic} is {age_s:.3f} s old, should be at most "
                f"{max_age_s:g} s"
            )
        return held[0]

    def compare(self, ours: Array) -> str | None:
        """How far our kinematics are from the controller's, None where they agree.

        Raises:
            StaleDataError: there is no fresh pose.
        """
        theirs = self.get(POSE_AGE_S)
        apart_m = float(np.linalg.norm(theirs[:3, 3] - ours[:3, 3]))
        turned = float(np.linalg.norm(rotation_vector(theirs[:3, :3] @ ours[:3, :3].T)))
        if apart_m <= POSE_M and turned <= POSE_RAD:
            return None
        return (f"{self.topic} is {1e3 * apart_m:.1f} mm and {turned:.3f} rad from our tool centre "
                f"point, should be within {1e3 * POSE_M:g} mm and {POSE_RAD:g} rad: its "
                "end-effector frame should be that of the hand's tool centre point")


@dataclass(slots=True)
class Report:
    """The robot's own report: mode, errors that are set, external wrench (6,) [N], [N m] of the
    tool on the world in base axes, and when it came [s]."""

    mode: int
    errors: list[str]
    wrench: Array
    stamp_s: float


class RobotStates:
    """The newest report of the robot; tells ``on_fault`` at once when it begins to refuse."""

    def __init__(self, node: Any, clock: Clock, on_fault: Callable[[str], None]) -> None:
        self.topic = node.resolve_topic_name(ROBOT_STATE_TOPIC)
        self._clock = clock
        self._on_fault = on_fault
        self._held: Report | None = None
        self.subscription = node.create_subscription(
            message(ROBOT_STATE_TYPE), ROBOT_STATE_TOPIC, self._receive, native(ROBOT_STATE)
        )

    def _receive(self, state: Any) -> None:
        wrench = state.o_f_ext_hat_k.wrench
        force, torque = wrench.force, wrench.torque
        report = Report(
            int(state.robot_mode),
            errors_of(state.current_errors),
            np.array([force.x, force.y, force.z, torque.x, torque.y, torque.z]),
            self._clock.now_s(),
        )
        self._held = report
        fault = fault_of(report.mode, report.errors)
        if fault is not None:
            self._on_fault(fault)

    def get(self, max_age_s: float) -> Report:
        """The newest report.

        Raises:
            StaleDataError: it is older than ``max_age_s``, or there is none.
        """
        held = self._held
        if held is None:
            raise StaleDataError(self._missing())
        age_s = self._clock.now_s() - held.stamp_s
        if not age_s <= max_age_s:
            raise StaleDataError(
                f"the last report on {self.topic} is {age_s:.3f} s old, should be at most "
                f"{max_age_s:g} s"
            )
        return held

    def _missing(self) -> str:
        error = getattr(self.subscription, "error", None)
        if error is not None:
            return (f"the robot's reports on {self.topic} cannot be read ({error}); its franka_msgs"
                    " differ from those known here: source ROS 2 with the robot's franka_msgs")
        return f"the robot has not reported on {self.topic}"

    def wrench(self, max_age_s: float) -> Wrench:
        """The robot's estimate as it reports it: of the tool on the world, in base axes.

        Raises:
            StaleDataError: it is too old.
            SafetyError: it is not finite.
        """
        held = self.get(max_age_s)
        if not np.isfinite(held.wrench).all():
            raise SafetyError(f"{self.topic} reports the wrench {held.wrench}")
        return Wrench(held.wrench[:3].copy(), held.wrench[3:].copy(), held.stamp_s)
