"""A Franka behind franka_ros2 and the impedance controllers of CRISP, over ROS 2."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from robot_rl.errors import (
    InvalidInputError,
    RobotRLError,
    SafetyError,
    StaleDataError,
    unknown_name,
)
from robot_rl.interfaces import ArmStatus, Array, Clock, JointSetpoints, JointState
from robot_rl.kinematics import Kinematics, quat_from_rotation
from robot_rl.ros.runtime import DEFAULT, action, action_client, message, native, wait_for
from robot_rl.specs import RobotSpec
from robot_rl_drivers.following import Following
from robot_rl_drivers.franka.controllers import CARTESIAN, JOINT, Controllers
from robot_rl_drivers.franka.description import Description
from robot_rl_drivers.franka.robot_state import USER_STOPPED, check_arm, fault_of
from robot_rl_drivers.franka.topics import (
    JOINT_STATE_TYPE,
    JointStates,
    RobotStates,
    ToolPose,
    joint_names,
)
from robot_rl_drivers.streaming import Row, SetpointStreamer

MODES = {"joint": JOINT, "cartesian": CARTESIAN}
"""Which controller follows the set-points in which mode."""

BASE_FRAME = "base"
RATE_HZ = (20.0, 500.0)
_TARGETS = {"joint": ("target_joint",), "cartesian": ("target_pose", "target_joint")}
_STATE_AGE_S = 0.5
_REPORT_AGE_S = 1.0
_FRESH_S = 0.1
_WATCH_S = 0.25
_SUCCEEDED = 4
_AT_REST_RAD_S = 0.05


class FrankaArm:
    """:class:`robot_rl.interfaces.Arm` of a Panda or FR3 over ROS 2.

    In mode ``joint`` each row goes out as ``target_joint``; in mode ``cartesian`` its tool pose
    goes out as ``target_pose``, with the row as ``target_joint`` for the posture. Between rows and
    after the last one the controller holds its target by itself. A reflex, a stop, a second
    publisher of a target or another controller ends the stream at once: what was left of it is
    dropped, and only :meth:`recover` takes commands again.

    Args:
        spec: the arm, ``panda`` or ``fr3``.
        node: a node in the robot's namespace that something spins.
        clock: the rig's clock.
        mode: ``joint`` or ``cartesian``.
        arm_prefix: the launch argument of that name.
        rate_hz: rows a second.
        controllers: ``auto`` to switch the controller where needed, ``manual`` to refuse instead.
        max_gap_s: how late a row may be before the rest is dropped [s]; 3 periods by default.
        timeout_s: how long to wait for the robot [s].

    Raises:
        InvalidInputError: an argument cannot be used, or another program commands this arm.
        StaleDataError: the robot does not report.
        SafetyError: its controller cannot be activated.
    """

    lead_rows = 4

    def __init__(
        self,
        spec: RobotSpec,
        node: Any,
        clock: Clock,
        *,
        mode: str = "joint",
        arm_prefix: str = "",
        rate_hz: float = 100.0,
        controllers: str = "auto",
        max_gap_s: float | None = None,
        timeout_s: float = 5.0,
    ) -> None:
        check_arm(spec)
        if mode not in MODES:
            raise unknown_name("mode", mode, MODES)
        if controllers not in ("auto", "manual"):
            raise unknown_name("controllers", controllers, ("auto", "manual"))
        if not RATE_HZ[0] <= rate_hz <= RATE_HZ[1]:
            raise InvalidInputError(f"rate_hz is {rate_hz:g}, should be in {list(RATE_HZ)}")
        self.spec = spec
        self.period_s = 1.0 / rate_hz
        self.mode = mode
        self._node = node
        self._clock = clock
        self._auto = controllers == "auto"
        self._kinematics = Kinematics(spec)
        self._names = joint_names(spec, arm_prefix)
        self._lock = threading.RLock()
        self._stopped: str | None = None
        self._streamer: SetpointStreamer | None = None
        self._following = Following()
        self.states = JointStates(node, "joint_states", self._names, clock)
        self.reports = RobotStates(node, clock, self._stop)
        self.tool = ToolPose(node, clock)
        self.controllers = Controllers(node, MODES[mode])
        self.description = Description(node)
        self._recovery_type = action("franka_msgs/action/ErrorRecovery")
        self._recovery = action_client(node, self._recovery_type, "action_server/error_recovery")
        self._await(lambda: self.states.get(_STATE_AGE_S), timeout_s)
        self._await(lambda: self.reports.get(_REPORT_AGE_S), timeout_s)
        if mode == "cartesian":
            self._await(lambda: self.tool.get(_STATE_AGE_S), timeout_s)
            wrong = self._check_tool()
            if wrong is not None:
                raise InvalidInputError(wrong)
        self._claim_targets(timeout_s)
        self._publishers = self._make_publishers()
        self._streamer = SetpointStreamer(
            len(self._names), self.period_s, self._publish, max_gap_s=max_gap_s
        )
        try:
            self._begin(timeout_s)
        except Exception:
            self.close()
            raise
        self._timer = node.create_timer(_WATCH_S, self._look_round)

    # Start.

    def _await(self, read: Callable[[], Any], timeout_s: float) -> None:
        """Wait until ``read`` finds something."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                read()
                return
            except StaleDataError as error:
                if time.monotonic() > deadline:
                    raise StaleDataError(
                        f"{error}; waited {timeout_s:g} s: does franka_ros2 run, with the same "
                        "ROS_DOMAIN_ID and namespace, on a network that we are on (--rig "
                        "network=any)?"
                    ) from None
            time.sleep(0.01)

    def _claim_targets(self, timeout_s: float) -> None:
        """Refuse where another program commands the arm already."""
        # The controller's own subscription shows that discovery has got as far as its peers.
        target = _TARGETS[self.mode][0]
        deadline = time.monotonic() + timeout_s
        while self._node.count_subscribers(target) == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        for target in _TARGETS[self.mode]:
            others = self._node.count_publishers(target)
            if others:
                raise InvalidInputError(
                    f"{others} other program(s) publish {self._full(target)}; one owns a target, "
                    "and the controller ignores it with two: stop the other one first"
                )

    def _full(self, topic: str) -> str:
        return str(self._node.resolve_topic_name(topic))

    def _make_publishers(self) -> dict[str, Any]:
        kinds = {"target_joint": JOINT_STATE_TYPE, "target_pose": "geometry_msgs/msg/PoseStamped"}
        self._joint_state = message(JOINT_STATE_TYPE)
        self._pose_stamped = message(kinds["target_pose"])
        return {
            target: self._node.create_publisher(message(kinds[target]), target, native(DEFAULT))
            for target in _TARGETS[self.mode]
        }

    def _begin(self, timeout_s: float) -> None:
        """Have the right controller, unless the robot is in error: then recover() sees to it."""
        if not self.controllers.wait(timeout_s):
            if self._auto:
                raise SafetyError(
                    f"no controller manager answers; switch by hand ({self.controllers.manual}) "
                    "and say --rig controllers=manual"
                )
            return
        self.controllers.refresh()
        if self._robot_fault() is None and self.controllers.fault() is not None:
            if not self._auto:
                raise SafetyError(
                    f"{self.controllers.fault()}; by hand: {self.controllers.manual}"
                )
            self._hold_here()
            self.controllers.activate()

    # Arm.

    def state(self, max_age_s: float) -> JointState:
        """The newest joint_states.

        Raises:
            StaleDataError: they are older than ``max_age_s``.
        """
        return self.states.get(max_age_s)

    def sent(self) -> int:
        return self._stream().sent()

    def command(self, setpoints: JointSetpoints) -> JointSetpoints:
        """See :meth:`robot_rl.interfaces.Arm.command`."""
        # A stop that replaces rows which would go out anyway is never worse than they are.
        if not (setpoints.stop and self._stream().pending()):
            fault = self.status().fault
            if fault is not None:
                raise SafetyError(f"the arm takes no commands: {fault}")
        return self._stream().command(setpoints)

    def status(self) -> ArmStatus:
        """Whether the arm takes commands; looks only at what has arrived."""
        fault = self._fault()
        return ArmStatus(fault is None, fault)

    def _fault(self) -> str | None:
        if self._stopped is not None:
            return self._stopped
        if self.states.fault is not None:
            return self.states.fault
        try:
            report = self.reports.get(_REPORT_AGE_S)
            self.states.get(_STATE_AGE_S)
        except StaleDataError as error:
            return str(error)
        return (fault_of(report.mode, report.errors) or self._stream().fault
                or self._crowd() or self.controllers.fault())

    def recover(self) -> None:
        """Clear the robot's errors, have its controller active again and take commands.

        Only for an operator's re-arm. The target becomes the measured posture first, so that
        nothing moves when the controller wakes.

        Raises:
            SafetyError: it stays in error, moves, or another program commands it.
        """
        try:
            report = self.reports.get(_REPORT_AGE_S)
            if report.mode == USER_STOPPED:
                raise SafetyError(f"{fault_of(report.mode, [])}; release it first")
            crowd = self._crowd()
            if crowd is not None:
                raise SafetyError(crowd)
            self._hold_here()
            if fault_of(report.mode, report.errors) is not None:
                self._recover_errors()
            self._hold_here()
            if self.controllers.wait(1.0):
                self.controllers.refresh()
                if self.controllers.fault() is not None:
                    self._activate_again()
        except SafetyError:
            raise
        except RobotRLError as error:
            raise SafetyError(f"not recovered: {error}") from None
        with self._lock:
            self._stopped = None
            self._following.clear()
            self._stream().clear()
        fault = self._fault()
        if fault is not None:
            raise SafetyError(f"not recovered: {fault}")

    def _activate_again(self) -> None:
        if not self._auto:
            raise SafetyError(f"{self.controllers.fault()}; by hand: {self.controllers.manual}")
        self.controllers.activate()
        self._hold_here()

    def _recover_errors(self) -> None:
        name = "the action error_recovery"
        if not self._recovery.wait_for_server(timeout_sec=2.0):
            raise SafetyError(f"{name} is not offered; does franka_ros2 run?")
        goal = self._recovery_type.Goal()
        handle = wait_for(self._recovery.send_goal_async(goal), 5.0, name)
        if not handle.accepted:
            raise SafetyError(f"{name} was refused")
        answer = wait_for(handle.get_result_async(), 10.0, name)
        begun_s = self._clock.now_s()
        deadline = time.monotonic() + 2.0
        while time.monotonic() < deadline:
            report = self.reports.get(10.0)
            fault = fault_of(report.mode, report.errors)
            if fault is None and report.stamp_s >= begun_s and answer.status == _SUCCEEDED:
                return
            time.sleep(0.01)
        why = self._robot_fault() or "it gave no reason"
        raise SafetyError(f"the robot did not recover: {why}")

    def _hold_here(self) -> None:
        """Make the measured posture the target."""
        state = self.states.get(_STATE_AGE_S)
        speed = float(np.abs(state.velocity_rad_s).max())
        if speed > _AT_REST_RAD_S:
            raise SafetyError(
                f"a joint moves at {speed:.3f} rad/s, should be at rest (below {_AT_REST_RAD_S})"
            )
        still = np.zeros_like(state.position_rad)
        self._publish(Row(0, state.position_rad, still, still))

    def checks(self) -> list[tuple[str, bool, str]]:
        """Name, whether it is well, and what was found, for ``robot-rl robot check``."""
        found: list[tuple[str, bool, str]] = []

        def add(name: str, look: Callable[[], str | None], good: str) -> None:
            try:
                wrong = look()
            except RobotRLError as error:
                wrong = str(error)
            found.append((name, wrong is None, wrong or good))

        add("joint states", self._check_states, f"{self.states.topic}, names as expected")
        add("robot", self._robot_fault, "no errors, takes commands")
        add("controller", self._check_controller, f"{self.controllers.wanted} is active")
        add("tool", self._check_tool, f"{self.tool.topic} agrees with our kinematics")
        add("targets", self._crowd, f"only we publish {', '.join(_TARGETS[self.mode])}")
        add("listener", self._check_listener, "the controller listens")
        add("joint limits", lambda: self.description.compare(self.spec, self._names),
            "the description's limits admit ours")
        add("arm", lambda: self.status().fault, "ready")
        return found

    def _check_states(self) -> str | None:
        self.state(_STATE_AGE_S)
        return self.states.fault

    def _check_tool(self) -> str | None:
        here = self.states.get(_STATE_AGE_S).position_rad
        return self.tool.compare(self._kinematics.forward(here))

    def _check_controller(self) -> str | None:
        self.controllers.refresh()
        return self.controllers.fault()

    def _check_listener(self) -> str | None:
        deaf = [name for name, each in self._publishers.items()
                if each.get_subscription_count() == 0]
        return f"nobody subscribes to {', '.join(map(self._full, deaf))}" if deaf else None

    def _robot_fault(self) -> str | None:
        report = self.reports.get(_REPORT_AGE_S)
        return fault_of(report.mode, report.errors)

    # While it runs.

    def _stream(self) -> SetpointStreamer:
        if self._streamer is None:
            raise SafetyError("the arm's connection was closed")
        return self._streamer

    def _stop(self, reason: str) -> None:
        """Drop what was to be sent; the first reason stays until :meth:`recover`."""
        with self._lock:
            if self._stopped is None:
                self._stopped = reason
            if self._streamer is not None:
                self._streamer.stop(reason)

    def _look_round(self) -> None:
        self._compare(None)
        wrong = self._crowd() or self.controllers.fault() or self._following.fault()
        if wrong is not None:
            self._stop(wrong)
        self.controllers.ask()

    def _crowd(self) -> str | None:
        for target in _TARGETS[self.mode]:
            count = self._node.count_publishers(target)
            if count > 1:
                return (f"{count} programs publish {self._full(target)}, should be one: the "
                        "controller ignores it")
        return None

    def _compare(self, target_rad: Array | None) -> None:
        """Note where the arm is sent to (None: as before), and where it is."""
        try:
            measured = self.states.get(_FRESH_S).position_rad
        except StaleDataError:
            self._following.clear()
        else:
            self._following.note(self._clock.now_s(), target_rad, measured)

    def _publish(self, row: Row) -> None:
        stamp = self._node.get_clock().now().to_msg()
        joint = self._joint_state()
        joint.header.stamp = stamp
        joint.header.frame_id = BASE_FRAME
        joint.name = self._names
        joint.position = row.position_rad.tolist()
        joint.velocity = row.velocity_rad_s.tolist()
        if "target_pose" in self._publishers:
            pose = self._pose(row.position_rad, stamp)
            row.check_in_time()
            self._publishers["target_pose"].publish(pose)
        row.check_in_time()
        self._publishers["target_joint"].publish(joint)
        self._compare(row.position_rad)

    def _pose(self, position_rad: Array, stamp: Any) -> Any:
        tool = self._kinematics.forward(position_rad)
        quat = quat_from_rotation(tool[:3, :3])
        pose = self._pose_stamped()
        pose.header.stamp = stamp
        pose.header.frame_id = BASE_FRAME
        point, turn = pose.pose.position, pose.pose.orientation
        point.x, point.y, point.z = (float(v) for v in tool[:3, 3])
        turn.x, turn.y, turn.z, turn.w = (float(v) for v in quat)
        return pose

    def close(self) -> None:
        """Send what is left, which ends at rest, and stop; the controller holds the last target.
        Idempotent."""
        timer = getattr(self, "_timer", None)
        if timer is not None:
            timer.cancel()
        streamer = self._streamer
        if streamer is not None:
            streamer.close()
            self._streamer = None
