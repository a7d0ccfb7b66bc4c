"""Sawyer's arm through Intera's joint commands."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from robot_rl.errors import InvalidInputError, RobotRLError, SafetyError, StaleDataError
from robot_rl.interfaces import ArmStatus, Array, Clock, JointSetpoints, JointState
from robot_rl.ros.ros1 import Ros1Session
from robot_rl.specs import RobotSpec
from robot_rl_drivers.following import Following
from robot_rl_drivers.sawyer.modes import check_mode, joint_command
from robot_rl_drivers.sawyer.state import LIMB, STALE_S, Joints, SawyerState
from robot_rl_drivers.streaming import Row, SetpointStreamer

PERIOD_S = 0.01
LEAD_ROWS = 3
DEFAULT_TIMEOUT_S = 0.17
"""What the robot is told: without a command for this long it leaves the mode and holds. With its
own 0.2 s it could take a little longer than that to notice a commander that died."""
LONGEST_TIMEOUT_S = 0.2
"""In trajectory mode the robot goes on with the last row until then: no box ends that."""
MAX_GAP_S = 0.05
MOVED_RAD = 0.15
"""An arm that is further than this from where it is told to stay was moved by somebody."""
_FIRST_S = 5.0
_RESET_S, _ENABLE_S, _CLAIM_S = 3.0, 10.0, 0.5
TOPIC = f"{LIMB}/joint_command"
_ASK_S = 0.05
# A topic that the robot does not listen to for so long is opened anew.
_ALONE_S = 1.0
_PRESSED = 1

Check = tuple[str, bool, str]


class SawyerArm:
    """:class:`robot_rl.interfaces.Arm` of a Sawyer, :class:`robot_rl.ros.ros1.Ros1Session` given.

    A row goes out every 10 ms. After the last one it is repeated, so that the arm stays exactly
    there: without commands the robot leaves the mode and holds wherever it then is. Repeating ends
    when somebody moves the arm, so that it does not jump back, and when the robot is not heard any
    more: another one, or the same somewhere else, may answer next.

    What makes the robot itself leave its commands (disabled, stopped, a collision, a hand on the
    cuff, a gap in the stream) drops what was left to send and stays in :meth:`status` until
    :meth:`recover`. The driver enables the robot in :meth:`recover` and nowhere else.

    Args:
        mode: ``trajectory``, ``position`` or ``velocity``, see :mod:`.modes`.
        command_timeout_s: after how long without a command the robot gives up [s], at most
            :data:`LONGEST_TIMEOUT_S`.
        max_gap_s: how late a row may be [s]; 0.05 s by default. In trajectory mode the robot goes
            on with the last row's velocity meanwhile, and jumps back when the next one comes.
        recover_hooks: called at the end of :meth:`recover`, e.g. the gripper's.
    """

    def __init__(
        self,
        session: Ros1Session,
        spec: RobotSpec,
        clock: Clock,
        *,
        mode: str = "trajectory",
        command_timeout_s: float = DEFAULT_TIMEOUT_S,
        max_gap_s: float | None = None,
        recover_hooks: tuple[Callable[[], None], ...] = (),
    ) -> None:
        if not 4.0 * PERIOD_S <= command_timeout_s <= LONGEST_TIMEOUT_S:
            raise InvalidInputError(
                f"command_timeout_s is {command_timeout_s}, should be in [{4.0 * PERIOD_S}, "
                f"{LONGEST_TIMEOUT_S}]"
            )
        gap_s = min(MAX_GAP_S, 0.5 * command_timeout_s) if max_gap_s is None else max_gap_s
        if not PERIOD_S <= gap_s < command_timeout_s:
            raise InvalidInputError(
                f"max_gap_s is {gap_s}, should be in [{PERIOD_S}, {command_timeout_s}), below the "
                "time after which the robot gives up"
            )
        self.spec = spec
        self.period_s = PERIOD_S
        self.lead_rows = LEAD_ROWS
        self.mode = check_mode(mode)
        self._session = session
        self._lock = threading.Lock()
        self._clock = clock
        self._hooks = recover_hooks
        self._following = Following()
        self._target: Array | None = None
        self._reading: Array | None = None
        self._timeout_s = command_timeout_s
        publish = session.publisher
        self._command: Any = None
        self._timeout: Any = None
        self._ratio: Any = None
        self._enable = publish("/robot/set_super_enable", "std_msgs/Bool")
        self._reset = publish("/robot/set_super_reset", "std_msgs/Empty")
        self._streamer = SetpointStreamer(
            len(spec.joints), PERIOD_S, self._send, max_gap_s=gap_s, repeat=True
        )
        self._state = SawyerState(session, spec, clock, self._streamer.stop, self._on_joints)

    def wait(self, timeout_s: float = _FIRST_S) -> None:
        """Return when the robot was heard, and listens.

        Raises:
            RobotRLError: a topic stays silent; the message names it.
            SafetyError: the robot's limits are narrower than those of this arm's description.
        """
        end_s = time.monotonic() + timeout_s
        while (silent := self._silent()) and time.monotonic() < end_s:
            time.sleep(0.01)
        if silent:
            raise RobotRLError(
                f"no Sawyer at {self._session.master_uri}: after {timeout_s:g} s {silent}"
            )
        self._state.check_limits()

    def _silent(self) -> str:
        state = self._state
        for seen, topic in (
            (state.received, "/robot/joint_states"), (state.assembly(), "/robot/state"),
            (state.limits(), "/robot/joint_limits"),
        ):
            if not seen:
                return f"nothing has come on {topic}"
        return "" if self._session.listeners(TOPIC) else f"nobody listens to {TOPIC}"

    # -- Arm ----------------------------------------------------------------------------------

    def state(self, max_age_s: float) -> JointState:
        """Joint angles, velocities and torques; values are as the robot tells them, also where
        they are not finite.

        Raises:
            StaleDataError: they came longer ago than ``max_age_s``, or the robot repeats itself.
        """
        return self._state.joints(max_age_s)

    def sent(self) -> int:
        return self._streamer.sent()

    def command(self, setpoints: JointSetpoints) -> JointSetpoints:
        """See :class:`robot_rl.interfaces.Arm`. From rest, the first row must lie within
        :data:`MOVED_RAD` of where the arm is. The first command takes the arm for this program:
        it is refused while another one has it."""
        # A stop that replaces rows which would go out anyway is never worse than they are.
        if not (setpoints.stop and self._streamer.pending()):
            fault = self._fault()
            if fault is not None:
                raise SafetyError(f"the arm takes no commands: {fault}")
            self._check_start(setpoints)
            self._claim()
        return self._streamer.command(setpoints)

    def status(self) -> ArmStatus:
        fault = self._fault()
        return ArmStatus(fault is None, fault)

    def recover(self) -> None:
        """Reset and enable the robot, and take commands again. Only for an operator's re-arm.

        Raises:
            SafetyError: the emergency stop is down, or the robot does not come round; its message
                says what is left.
        """
        fault = self._session.fault()
        if fault is not None:
            raise SafetyError(f"the arm cannot be enabled: {fault}")
        self._streamer.stop("the last re-arm did not succeed")
        state = self._state.assembly()
        if state is not None and state.stopped and state.estop_button == _PRESSED:
            raise SafetyError(
                "the emergency stop is down: turn its button until it comes up, then re-arm"
            )
        if state is None or state.stopped or (state.error and not state.enabled):
            self._ask(self._reset, self._reset.message(), self._is_reset, _RESET_S)
        if self._state.assembly_fault() is not None:
            self._ask(self._enable, self._enable.message(True), self._is_enabled, _ENABLE_S)
        for hook in self._hooks:
            hook()
        self._configure()
        fault = self._state.fault()
        if fault is not None:
            raise SafetyError(f"the arm stays in error: {fault}")
        self._following.clear()
        self._target = None
        self._streamer.clear()

    def close(self) -> None:
        """Send what is left, which ends at rest, and stop. The robot holds by itself when its
        time-out has passed."""
        self._streamer.close()
        self._session.close()

    # -- what operators ask --------------------------------------------------------------------

    def checks(self) -> list[Check]:
        """What an operator wants to know before a session: (name, whether it is well, in words)."""
        state = self._state
        fault = self._session.fault()
        rate = state.rate_hz()
        try:
            state.joints(STALE_S)
            age: str | None = None
        except RobotRLError as error:
            age = str(error)
        assembly = state.assembly()
        robot = state.assembly_fault()
        limits = state.limits()
        try:
            state.check_limits()
            narrow = "" if limits is not None else "nothing has come on /robot/joint_limits"
        except SafetyError as error:
            narrow = str(error)
        skew_s = time.time() - state.stamp_s()
        stopped = assembly is not None and assembly.stopped
        peers = self._session.listeners(TOPIC)
        general = state.fault()
        return [
            ("connection", fault is None, fault or f"ROS master at {self._session.master_uri}"),
            ("state rate", rate >= 50.0, f"{rate:.0f} joint states a second, 50 are needed"),
            ("state age", age is None, age or f"below {STALE_S} s"),
            ("emergency stop", not stopped, "released" if not stopped else str(robot)),
            ("enabled", robot is None, robot or "enabled and ready"),
            ("limits", not narrow, narrow or "the robot's are no narrower than the description's"),
            ("clock skew", abs(skew_s) < 5.0,
             f"{skew_s:+.3f} s against the robot's clock (ages do not depend on it)"),
            ("command topic", peers > 0, f"{peers} subscriber(s) on {TOPIC}"),
            ("anything else", general is None or general in (robot, narrow, age),
             general or "no other fault"),
        ]

    @property
    def streamer(self) -> SetpointStreamer:
        """The beat of the set-points, for its figures."""
        return self._streamer

    # -- inside -------------------------------------------------------------------------------

    def _fault(self) -> str | None:
        return self._streamer.fault or self._session.fault() or self._state.fault()

    def _claim(self) -> None:
        """Publish what commands the arm; until the first command, others may do so."""
        with self._lock:
            if self._command is not None:
                return
            others = self._session.others(TOPIC)
            if others is not None:
                raise SafetyError(f"the arm takes no commands: {others}")
            publish = self._session.publisher
            self._timeout = publish(f"{LIMB}/joint_command_timeout", "std_msgs/Float64", latch=True)
            self._ratio = publish(f"{LIMB}/set_speed_ratio", "std_msgs/Float64", latch=True)
            self._configure()
            # Sent by the streamer's own thread: one of rospy's gets less time on a busy machine,
            # and drops rows, so that the set-points would jump.
            command = publish(TOPIC, "intera_core_msgs/JointCommand", queue=None, alone=True)
            end_s = time.monotonic() + _CLAIM_S
            while not command.peers():
                if time.monotonic() > end_s:
                    command.close()
                    raise SafetyError(f"nobody listens to {TOPIC}")
                time.sleep(0.002)
            self._command = command

    def _configure(self) -> None:
        """Tell the robot of time-out and speed ratio, where this program commands it; both topics
        are latched."""
        if self._timeout is None:
            return
        self._timeout.publish(self._timeout.message(self._timeout_s))
        self._ratio.publish(self._ratio.message(1.0))

    def _send(self, row: Row) -> None:
        if row.repeated:
            self._state.joints(STALE_S)  # raises where it is not known where the arm stays
            if self._session.crowd is not None:
                raise SafetyError(self._session.crowd)
        measured: Array | None = None
        if self.mode == "velocity":
            try:
                measured = self._state.joints(STALE_S).position_rad
            except RobotRLError:
                measured = None
        message = joint_command(self.mode, self._command.message, self.spec, row, measured)
        message.header.stamp = self._session.stamp()
        row.check_in_time()
        self._command.publish(message)
        self._state.sent(row.position_rad)
        self._target = row.position_rad

    def _follows(self, joints: Joints) -> None:
        """Stop where the robot ignores its set-points. (Readings that repeat themselves exactly
        say nothing of that: see :meth:`.state.SawyerState.frozen`.)"""
        before, self._reading = self._reading, joints.position_rad
        if before is None or np.array_equal(before, joints.position_rad):
            return
        self._following.note(joints.time_s, self._target, joints.position_rad)
        reason = self._following.fault()
        if reason is not None:
            self._streamer.stop(reason)

    def _on_joints(self, joints: Joints) -> None:
        self._follows(joints)
        held = self._streamer.held_rad
        if held is None:
            return
        away = self._away(joints.position_rad, held)
        if away is not None:
            self._streamer.stop(f"the arm was moved while it was to stay: {away}")

    def _away(self, measured_rad: Array, told_rad: Array) -> str | None:
        gap = np.abs(measured_rad - told_rad)
        i = int(np.argmax(gap))
        if not gap[i] > MOVED_RAD:
            return None
        return (f"{self.spec.joint_names[i]} is at {measured_rad[i]:.3f} rad, not at "
                f"{told_rad[i]:.3f} rad")

    def _check_start(self, setpoints: JointSetpoints) -> None:
        streamer = self._streamer
        if streamer.pending() or streamer.held_rad is not None:
            return
        rows = np.asarray(setpoints.position_rad, dtype=np.float64)
        if rows.ndim != 2 or rows.shape[1] != len(self.spec.joints) or not len(rows):
            return  # the streamer says what is wrong with it
        try:
            away = self._away(self._state.joints(STALE_S).position_rad, rows[0])
        except StaleDataError as error:
            raise SafetyError(f"the arm takes no commands: {error}") from None
        if away is not None:
            raise SafetyError(f"the set-points begin too far from where the arm is: {away}")

    def _ask(self, topic: Any, message: Any, done: Callable[[], bool], timeout_s: float) -> None:
        """Say it again until the robot has done it, on a new connection where there is none."""
        heard_s = time.monotonic()
        end_s = heard_s + timeout_s
        while not done():
            if time.monotonic() > end_s:
                raise SafetyError(
                    f"the robot does not answer to {topic.topic} within {timeout_s:g} s: "
                    f"{self._state.assembly_fault()}"
                )
            if topic.peers():
                heard_s = time.monotonic()
            elif time.monotonic() - heard_s > _ALONE_S:
                topic.renew()
                heard_s = time.monotonic()
            topic.publish(message)
            time.sleep(_ASK_S)

    def _is_reset(self) -> bool:
        state = self._state.assembly()
        return state is not None and not state.stopped and not state.error

    def _is_enabled(self) -> bool:
        return self._state.assembly_fault() is None
