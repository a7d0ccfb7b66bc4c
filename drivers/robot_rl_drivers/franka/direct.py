"""A Franka directly over its control interface, with franky (`franky-control`, libfranka)."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from robot_rl.errors import (
    InvalidInputError,
    MissingDependencyError,
    RobotRLError,
    SafetyError,
    StaleDataError,
)
from robot_rl.interfaces import (
    ArmStatus,
    Array,
    Clock,
    JointSetpoints,
    JointState,
    Wrench,
)
from robot_rl.specs import RobotSpec
from robot_rl_drivers.franka.description import compare
from robot_rl_drivers.franka.gripper import NewestOpening
from robot_rl_drivers.franka.robot_state import (
    GUIDING,
    IDLE,
    MOVE,
    OTHER,
    RECOVERING,
    REFLEX,
    USER_STOPPED,
    check_arm,
    errors_of,
    fault_of,
)
from robot_rl_drivers.streaming import Row, SetpointStreamer

STIFFNESS_NM_RAD = (600.0, 600.0, 600.0, 600.0, 250.0, 150.0, 50.0)
"""Default stiffness of the joints, of the size Franka's own examples use."""
MOST_STIFFNESS_NM_RAD = 2000.0
RATE_HZ = (50.0, 1000.0)

_MODES = {
    "Other": OTHER, "Idle": IDLE, "Move": MOVE, "Guiding": GUIDING, "Reflex": REFLEX,
    "UserStopped": USER_STOPPED, "AutomaticErrorRecovery": RECOVERING,
}
_POLL_S = 0.005
_STATE_AGE_S = 0.2
_START_RAD = 0.05
_AT_REST_RAD_S = 0.05
_STOP_S = 3.0


def load_franky() -> Any:
    """The library.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        import franky
    except ImportError as error:
        raise MissingDependencyError(
            f"franky is not installed ({error}): pip install 'robot_rl[franka]'"
        ) from error
    return franky


def connect(
    franky: Any, robot_ip: str, *, realtime: str = "enforce", torque_threshold_nm: float = 20.0,
    force_threshold_n: float = 30.0,
) -> Any:
    """A connection to the robot; nothing moves by it.

    Raises:
        StaleDataError: it cannot be reached.
        InvalidInputError: the kernel or the library's version does not serve.
    """
    config = franky.RealtimeConfig
    try:
        robot = franky.Robot(
            robot_ip,
            default_torque_threshold=torque_threshold_nm,
            default_force_threshold=force_threshold_n,
            realtime_config=config.Enforce if realtime == "enforce" else config.Ignore,
        )
        robot.set_collision_behavior(torque_threshold_nm, force_threshold_n)
    except franky.RealtimeException as error:
        raise InvalidInputError(
            f"the kernel gives no real-time priority ({_line(error)}); use a PREEMPT_RT kernel, or "
            "--rig realtime=ignore to try without"
        ) from None
    except franky.NetworkException as error:
        raise StaleDataError(f"no Franka answers at {robot_ip}: {_line(error)}") from None
    except (franky.Exception, RuntimeError) as error:
        raise InvalidInputError(f"the Franka at {robot_ip}: {_line(error)}") from None
    return robot


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


class FrankyArm:
    """:class:`robot_rl.interfaces.Arm` of a Panda or FR3 through franky.

    Control begins with the first command: a joint impedance controller on franky's own 1 kHz
    thread, whose reference each row replaces. Between rows and after the last it holds. When the
    stream breaks off, the reference's velocity is taken to zero at once. If this process stops
    altogether, the robot misses its 1 kHz answers and stops itself.

    Args:
        spec: the arm, ``panda`` or ``fr3``.
        robot: a ``franky.Robot``.
        franky: the library.
        clock: the rig's clock.
        rate_hz: rows a second.
        stiffness_nm_rad: stiffness of the joints (7,) [N m/rad]; they are critically damped.
        max_gap_s: how late a row may be before the rest is dropped [s]; 3 periods by default.

    Raises:
        StaleDataError: the robot gives no state.
    """

    lead_rows = 8

    def __init__(
        self,
        spec: RobotSpec,
        robot: Any,
        franky: Any,
        clock: Clock,
        *,
        rate_hz: float = 200.0,
        stiffness_nm_rad: Sequence[float] = STIFFNESS_NM_RAD,
        max_gap_s: float | None = None,
    ) -> None:
        check_arm(spec)
        if not RATE_HZ[0] <= rate_hz <= RATE_HZ[1]:
            raise InvalidInputError(f"rate_hz is {rate_hz:g}, should be in {list(RATE_HZ)}")
        self._stiffness = np.array(stiffness_nm_rad, dtype=np.float64)
        if self._stiffness.shape != (7,) or not (
            (0.0 < self._stiffness) & (self._stiffness <= MOST_STIFFNESS_NM_RAD)
        ).all():
            raise InvalidInputError(
                f"stiffness is {stiffness_nm_rad}, should be 7 positive numbers, at most "
                f"{MOST_STIFFNESS_NM_RAD:g} [N m/rad]"
            )
        self.spec = spec
        self.period_s = 1.0 / rate_hz
        self._robot = robot
        self._franky = franky
        self._clock = clock
        # Commands and recovery come one after the other; the other lock is for one row's moment.
        self._lock = threading.RLock()
        self._motion_lock = threading.RLock()
        self._motion: Any = None
        self._last = np.zeros(7)
        self._stopped: str | None = None
        self._still = True
        self._held: tuple[Any, float] | None = None
        self._time_ms: int | None = None
        self._blame = ""
        self._closing = threading.Event()
        self._streamer = SetpointStreamer(7, self.period_s, self._send, max_gap_s=max_gap_s)
        self._thread = threading.Thread(target=self._poll, name="franky", daemon=True)
        self._read()
        if self._held is None:
            self._streamer.close()
            raise StaleDataError(f"the robot gives no state: {self._blame}")
        self._thread.start()

    # Reading.

    def _poll(self) -> None:
        while not self._closing.wait(_POLL_S):
            self._read()
            if self._streamer.fault is not None or self._stopped is not None:
                self._stand_still()

    def _read(self) -> None:
        try:
            state = self._robot.state
        except self._franky.Exception as error:
            self._blame = _line(error)
            return
        # A state with the time of the last one is the same again.
        time_ms = int(state.time.to_msec())
        if time_ms == self._time_ms:
            self._blame = "the robot's clock stands still"
            return
        if not (np.isfinite(state.q).all() and np.isfinite(state.dq).all()):
            self._blame = "a joint's state is not finite"
            return
        self._time_ms, self._blame = time_ms, ""
        self._held = (state, self._clock.now_s())
        fault = self._state_fault(state) or self._control_fault()
        if fault is not None and (self._motion is not None or self._stopped is None):
            self._stop(fault)

    def _state_fault(self, state: Any) -> str | None:
        mode = _MODES.get(state.robot_mode.name, OTHER)
        return fault_of(mode, errors_of(state.current_errors))

    def _control_fault(self) -> str | None:
        """Why control has ended, None where it goes on or has not begun."""
        motion = self._motion
        if motion is None or self._robot.is_in_control:
            return None
        why = "control ended"
        try:
            self._robot.poll_motion()
        except self._franky.Exception as error:
            why = f"control ended: {_line(error)}"
        return why if self._motion is motion else None

    def _newest(self, max_age_s: float) -> tuple[Any, float]:
        held = self._held
        assert held is not None
        age_s = self._clock.now_s() - held[1]
        if not age_s <= max_age_s:
            why = f": {self._blame}" if self._blame else ""
            raise StaleDataError(
                f"the robot's last state is {age_s:.3f} s old, should be at most {max_age_s:g} s"
                f"{why}"
            )
        return held

    def state(self, max_age_s: float) -> JointState:
        """The newest state, with the measured joint torques.

        Raises:
            StaleDataError: it is older than ``max_age_s``.
        """
        state, stamp_s = self._newest(max_age_s)
        return JointState(
            np.array(state.q), np.array(state.dq), stamp_s, np.array(state.tau_J)
        )

    def wrench(self, max_age_s: float) -> Wrench:
        """The robot's estimate as it reports it: of the tool on the world, in base axes, at its
        stiffness frame.

        Raises:
            StaleDataError: it is older than ``max_age_s``.
        """
        state, stamp_s = self._newest(max_age_s)
        values = np.array(state.O_F_ext_hat_K, dtype=np.float64)
        return Wrench(values[:3], values[3:], stamp_s)

    def status(self) -> ArmStatus:
        """Whether the arm takes commands; looks only at what was read last."""
        fault = self._stopped or self._streamer.fault
        if fault is None:
            try:
                fault = self._state_fault(self._newest(_STATE_AGE_S)[0])
            except StaleDataError as error:
                fault = str(error)
        return ArmStatus(fault is None, fault)

    # Commanding.

    def sent(self) -> int:
        return self._streamer.sent()

    def command(self, setpoints: JointSetpoints) -> JointSetpoints:
        """See :meth:`robot_rl.interfaces.Arm.command`; the first command takes control."""
        # A stop that replaces rows which would go out anyway is never worse than they are.
        if setpoints.stop and self._streamer.pending():
            return self._streamer.command(setpoints)
        fault = self.status().fault
        if fault is not None:
            raise SafetyError(f"the arm takes no commands: {fault}")
        with self._lock:
            if self._motion is None:
                self._take_control(np.asarray(setpoints.position_rad, dtype=np.float64))
        return self._streamer.command(setpoints)

    def _take_control(self, rows: Array) -> None:
        here = self.state(_STATE_AGE_S).position_rad
        if rows.ndim == 2 and rows.shape[1:] == here.shape:
            gap = float(np.abs(rows[0] - here).max())
            if gap > _START_RAD:
                raise SafetyError(
                    f"the first set-point is {gap:.3f} rad from where the arm is, should be within "
                    f"{_START_RAD}"
                )
        franky = self._franky
        motion = franky.JointImpedanceTrackingMotion(
            stiffness=self._stiffness,
            lower_joint_limits=self.spec.limits("lower_rad"),
            upper_joint_limits=self.spec.limits("upper_rad"),
        )
        motion.set_reference(franky.JointReference(q=here))
        try:
            self._robot.move(motion, asynchronous=True)
        except franky.Exception as error:
            raise SafetyError(f"the robot gives no control: {_line(error)}") from None
        with self._motion_lock:
            self._last, self._still, self._motion = here, True, motion

    def _send(self, row: Row) -> None:
        with self._motion_lock:
            motion = self._motion
            if motion is None:
                raise SafetyError("control has not begun")
            self._still = not row.velocity_rad_s.any()
            self._last = row.position_rad
            motion.set_reference(
                self._franky.JointReference(q=row.position_rad, dq=row.velocity_rad_s)
            )

    def _stand_still(self) -> None:
        """Have a reference at rest where the stream broke off."""
        with self._motion_lock:
            if not self._still and self._motion is not None:
                self._motion.set_reference(self._franky.JointReference(q=self._last))
                self._still = True

    def _stop(self, reason: str) -> None:
        with self._motion_lock:
            if self._stopped is None:
                self._stopped = reason
            if not self._robot.is_in_control:
                self._motion = None
        self._streamer.stop(reason)

    def recover(self) -> None:
        """Clear the robot's errors and take commands; only for an operator's re-arm. The arm
        stays where it is.

        Raises:
            SafetyError: it stays in error, moves, or is being stopped or guided by a person.
        """
        try:
            state, _ = self._newest(_STATE_AGE_S)
        except StaleDataError as error:
            raise SafetyError(f"not recovered: {error}") from None
        mode = _MODES.get(state.robot_mode.name, OTHER)
        if mode in (USER_STOPPED, GUIDING, OTHER):
            raise SafetyError(f"{fault_of(mode, [])}; end that first")
        speed = float(np.abs(state.dq).max())
        if speed > _AT_REST_RAD_S:
            raise SafetyError(
                f"a joint moves at {speed:.3f} rad/s, should be at rest (below {_AT_REST_RAD_S})"
            )
        with self._lock:
            self._end_control()
            try:
                if self._robot.has_errors and not self._robot.recover_from_errors():
                    raise SafetyError("the robot's error recovery failed")
            except self._franky.Exception as error:
                raise SafetyError(f"the robot's error recovery failed: {_line(error)}") from None
            self._await_health()
            self._stopped = None
            self._streamer.clear()
        fault = self.status().fault
        if fault is not None:
            raise SafetyError(f"not recovered: {fault}")

    def _await_health(self) -> None:
        deadline = time.monotonic() + 2.0
        while True:
            self._read()
            assert self._held is not None
            fault = self._state_fault(self._held[0])
            if fault is None:
                return
            if time.monotonic() > deadline:
                raise SafetyError(f"not recovered: {fault}")
            time.sleep(0.01)

    def _end_control(self) -> None:
        """Come to rest and let go, whatever the state."""
        robot, franky = self._robot, self._franky
        with self._motion_lock:
            self._motion, self._still = None, True
        with contextlib.suppress(franky.Exception):
            if robot.is_in_control:
                robot.move(franky.TorqueStopMotion(), asynchronous=True)
            robot.join_motion(_STOP_S)

    def checks(self) -> list[tuple[str, bool, str]]:
        """Name, whether it is well, and what was found, for ``robot-rl robot check``."""
        found: list[tuple[str, bool, str]] = []

        def add(name: str, look: Callable[[], str | None], good: str) -> None:
            try:
                wrong = look()
            except (RobotRLError, self._franky.Exception) as error:
                wrong = _line(error)
            found.append((name, wrong is None, wrong or good))

        add("state", self._check_state, "fresh")
        add("robot", lambda: self._state_fault(self._newest(1.0)[0]), "no errors, takes commands")
        add("connection", self._check_connection, "few packets are lost")
        add("joint limits", self._check_limits, "the description's limits admit ours")
        add("arm", lambda: self.status().fault, "ready")
        return found

    def _check_state(self) -> str | None:
        self.state(_STATE_AGE_S)
        return self._blame or None

    def _check_connection(self) -> str | None:
        rate = float(self._newest(1.0)[0].control_command_success_rate)
        if self._robot.is_in_control and rate < 0.9:
            return f"{rate:.0%} of the packets of the last 100 ms arrived, should be 90 % or more"
        return None

    def _check_limits(self) -> str | None:
        urdf = self._robot.model_urdf
        names = [name for name in self.spec.joint_names if name in urdf]
        return compare(urdf, self.spec, names or list(self.spec.joint_names))

    def close(self) -> None:
        """Send what is left, which ends at rest, and let go of the robot. Idempotent."""
        if self._closing.is_set():
            return
        self._streamer.close()
        self._closing.set()
        self._thread.join(timeout=2.0)
        with self._lock:
            if self._motion is not None:
                self._end_control()


class FrankyGripper(NewestOpening):
    """:class:`robot_rl.interfaces.Gripper` of a Franka hand through franky.

    Args:
        spec: the arm; its gripper's stroke, speed and force.
        gripper: a ``franky.Gripper``.
        franky: the library.
        clock: the rig's clock.
    """

    def __init__(self, spec: RobotSpec, gripper: Any, franky: Any, clock: Clock) -> None:
        super().__init__()
        self._spec = spec.gripper
        self._gripper = gripper
        self._franky = franky
        self._clock = clock
        self._held: tuple[float, float] | None = None
        self._blame = "it has sent nothing yet"
        self._closing = threading.Event()
        self._read()
        self._reader = threading.Thread(target=self._poll, name="franky-hand", daemon=True)
        self._reader.start()
        self._start()

    def _poll(self) -> None:
        while not self._closing.wait(0.05):
            self._read()

    def _read(self) -> None:
        try:
            width = float(self._gripper.state.width)
        except self._franky.Exception as error:
            self._blame = _line(error)
            return
        opening = 0.5 * width / self._spec.finger_stroke_m
        if np.isfinite(opening):
            self._held = (min(max(opening, 0.0), 1.0), self._clock.now_s())

    def opening(self, max_age_s: float) -> float:
        """The measured opening in [0, 1].

        Raises:
            StaleDataError: it is older than ``max_age_s``.
        """
        held = self._held
        age_s = np.inf if held is None else self._clock.now_s() - held[1]
        if held is None or not age_s <= max_age_s:
            raise StaleDataError(
                f"the gripper's last state is {age_s:.3f} s old, should be at most {max_age_s:g} "
                f"s: {self._blame}"
            )
        return held[0]

    def _go(self, opening: float) -> None:
        spec, hand = self._spec, self._gripper
        width = 2.0 * opening * spec.finger_stroke_m
        wide = 2.0 * spec.finger_stroke_m
        held = self._held
        try:
            if held is None or opening >= held[0]:
                future = hand.move_async(width, spec.finger_velocity_m_s)
            else:
                # Whatever is between the fingers is wanted there.
                future = hand.grasp_async(
                    width, spec.finger_velocity_m_s, spec.force_n,
                    epsilon_inner=wide, epsilon_outer=wide,
                )
            while not future.wait(0.02):
                if self._newer():
                    hand.stop()
                    return
            future.get()
        except self._franky.Exception as error:
            if not self._newer():
                raise SafetyError(f"the gripper failed: {_line(error)}") from None

    def homing(self) -> None:
        """Find the fingers' ends: an operator's act, with nothing between the fingers.

        Raises:
            SafetyError: it failed.
        """
        self.halt()
        try:
            if not self._gripper.homing():
                raise SafetyError("the gripper's homing failed")
        except self._franky.Exception as error:
            raise SafetyError(f"the gripper's homing failed: {_line(error)}") from None

    def stop(self) -> None:
        """Stop the fingers where they are."""
        self.halt()
        with contextlib.suppress(self._franky.Exception):
            self._gripper.stop()

    def watch(self) -> str | None:
        """Why the gripper cannot be relied on, None where it can; for ``Rig.watches``."""
        try:
            self.opening(1.0)
        except StaleDataError as error:
            return str(error)
        return self.fault

    def close(self) -> None:
        """Send no more; the fingers stay. Idempotent."""
        self._closing.set()
        super().close()
        self._reader.join(timeout=2.0)
