"""The direct driver of a Franka against the real library's interface.

There is no robot: a stand-in takes its place, every name and signature of which is checked
against the library, and which deals in the library's own values.
"""

from __future__ import annotations

import inspect
import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("franky")

import franky

from robot_rl.backends import make_rig
from robot_rl.envs.tasks import make_task
from robot_rl.errors import InvalidInputError, SafetyError, StaleDataError
from robot_rl.interfaces import Arm, Array, Gripper, JointSetpoints, RigRequest
from robot_rl.specs import load_robot
from robot_rl_drivers.clock import MonotonicClock
from robot_rl_drivers.franka.direct import FrankyArm, FrankyGripper, connect
from robot_rl_drivers.franka.direct_rig import make_rig as make_direct_rig

Until = Callable[..., bool]
SPEC = load_robot("fr3")


# The library's values, made without a robot.


def default_of(kind: str) -> Any:
    """A value of a type as the library's docstrings name it."""
    kind = kind.strip()
    if kind.endswith("| None"):
        return None
    shape = re.search(r'"\[(\d+), (\d+)\]"', kind)
    if shape:
        rows, columns = int(shape[1]), int(shape[2])
        return np.zeros(rows) if columns == 1 else np.zeros((rows, columns))
    if kind == "float":
        return 0.0
    name = kind.split(".")[-1]
    if name == "RobotMode":
        return franky.RobotMode.Idle
    if name == "Duration":
        return franky.Duration(0)
    if name == "ElbowState":
        return franky.ElbowState(0.0)
    return getattr(franky, name)()


def parts(text: str) -> list[str]:
    """The comma-separated parts of ``text`` outside all brackets."""
    found, depth, start = [], 0, 0
    for i, sign in enumerate(text):
        depth += sign in "[("
        depth -= sign in "])"
        if sign == "," and depth == 0:
            found.append(text[start:i])
            start = i + 1
    return [*found, text[start:]]


STATE_TYPES = parts(re.search(  # type: ignore[union-attr]
    r"-> tuple\[(.*)\]\s*$", franky.RobotState.__getstate__.__doc__.strip().splitlines()[0])[1])


def make_state(**values: Any) -> Any:
    """A real RobotState with these properties."""
    fields = [default_of(kind) for kind in STATE_TYPES]
    for name, value in values.items():
        fields[place_of(name)] = value
    state = franky.RobotState.__new__(franky.RobotState)
    state.__setstate__(tuple(fields))
    return state


_PLACES: dict[str, int] = {}


def place_of(name: str) -> int:
    """Where a property stands in the state's tuple: found by changing one field after another."""
    if name not in _PLACES:
        for i, kind in enumerate(STATE_TYPES):
            fields = [default_of(each) for each in STATE_TYPES]
            if fields[i] is None:
                continue
            fields[i] = marked(kind)
            state = franky.RobotState.__new__(franky.RobotState)
            state.__setstate__(tuple(fields))
            if same(getattr(state, name), marked(kind)):
                _PLACES[name] = i
                break
    return _PLACES[name]


def marked(kind: str) -> Any:
    plain = default_of(kind)
    if isinstance(plain, np.ndarray):
        return plain + 0.125
    if isinstance(plain, float):
        return 0.125
    if kind.endswith("RobotMode"):
        return franky.RobotMode.Guiding
    if kind.endswith("Duration"):
        return franky.Duration(125)
    if kind.endswith("Errors"):
        return errors("power_limit_violation")
    return plain


def same(value: Any, mark: Any) -> bool:
    if type(value) is not type(mark):
        return False
    if isinstance(mark, np.ndarray):
        return value.shape == mark.shape and bool((value == mark).all())
    if isinstance(mark, franky.Duration):
        return bool(value.to_msec() == mark.to_msec())
    if isinstance(mark, franky.Errors):
        return bool(value.power_limit_violation)
    return bool(value == mark) and mark in (0.125, franky.RobotMode.Guiding)


def errors(*names: str) -> Any:
    """Real Errors in which these are set."""
    for i in range(len(franky.Errors().__getstate__())):
        flags = [False] * len(franky.Errors().__getstate__())
        flags[i] = True
        found = franky.Errors.__new__(franky.Errors)
        found.__setstate__(tuple(flags))
        if names and getattr(found, names[0]):
            return found
    return franky.Errors()


# The stand-ins.


class FakeRobot:
    """What of ``franky.Robot`` the driver uses. The arm is where the reference is."""

    def __init__(
        self, fci_hostname: str, relative_dynamics_factor: float = 1.0,
        default_torque_threshold: float = 20.0, default_force_threshold: float = 30.0,
        controller_mode: Any = None, realtime_config: Any = None,
    ) -> None:
        self._q = np.array(SPEC.home_rad)
        self._motion: Any = None
        self._mode = franky.RobotMode.Idle
        self._errors = franky.Errors()
        self._error: Any = None
        self._lost: Any = None
        self._frozen = False
        self._begun = time.monotonic()
        self._now_ms = 0
        self._calls: list[str] = []
        self._lock = threading.Lock()
        self._heard: list[tuple[Array, Array]] = []

    @property
    def state(self) -> Any:
        if self._lost is not None:
            raise self._lost
        with self._lock:
            if not self._frozen:
                self._now_ms = int(1e3 * (time.monotonic() - self._begun)) + 1
            if self._motion is not None and self._motion.get_reference() is not None:
                self._q = np.array(self._motion.get_reference().q)
            return make_state(
                q=self._q, robot_mode=self._mode, current_errors=self._errors,
                time=franky.Duration(self._now_ms),
            )

    @property
    def has_errors(self) -> bool:
        return self._mode == franky.RobotMode.Reflex

    @property
    def is_in_control(self) -> bool:
        return self._motion is not None

    @property
    def model_urdf(self) -> str:
        rows = [f'<joint name="{j.name}"><limit lower="{j.lower_rad}" upper="{j.upper_rad}" '
                f'velocity="{j.velocity_rad_s}" effort="{j.torque_nm}"/></joint>'
                for j in SPEC.joints]
        return f"<robot>{''.join(rows)}</robot>"

    def move(self, motion: Any, asynchronous: bool = False) -> None:
        self._calls.append(type(motion).__name__)
        if isinstance(motion, franky.TorqueStopMotion):
            self._motion = None
            return
        self._motion = motion
        self._mode = franky.RobotMode.Move

    def join_motion(self, timeout: float | None = None) -> bool:
        error, self._error = self._error, None
        if error is not None:
            raise error
        return self._motion is None

    def poll_motion(self) -> bool:
        if self._error is not None:
            raise self._error
        return self._motion is not None

    def recover_from_errors(self) -> bool:
        self._calls.append("recover_from_errors")
        self._mode, self._errors = franky.RobotMode.Idle, franky.Errors()
        return True

    def set_collision_behavior(self, torque_thresholds: float, force_thresholds: float) -> None:
        self._calls.append("set_collision_behavior")

    # Not of the library: what happens to the robot.

    def _reflex(self) -> None:
        self._mode, self._errors = franky.RobotMode.Reflex, errors("cartesian_reflex")
        self._error = franky.ControlException("libfranka: Move command aborted: cartesian_reflex")
        self._motion = None


class FakeFuture:
    """``franky.BoolFuture``."""

    def __init__(self, hand: FakeGripper, width: float) -> None:
        self._hand, self._width = hand, width

    def wait(self, timeout: float) -> bool:
        time.sleep(0.002)
        gap = self._width - self._hand._width
        self._hand._width += max(min(gap, 0.01), -0.01)
        return abs(gap) < 1e-6 or self._hand._stopped

    def get(self) -> bool:
        return True


class FakeGripper:
    """What of ``franky.Gripper`` the driver uses."""

    def __init__(self, fci_hostname: str) -> None:
        self._width = 0.02
        self._stopped = False
        self._calls: list[tuple[Any, ...]] = []
        self._lost: Any = None

    @property
    def state(self) -> Any:
        if self._lost is not None:
            raise self._lost
        state = FakeGripperState()
        state.width = self._width
        return state

    def move_async(self, width: float, speed: float) -> FakeFuture:
        self._calls.append(("move", width, speed))
        self._stopped = False
        return FakeFuture(self, width)

    def grasp_async(
        self, width: float, speed: float, force: float, epsilon_inner: float = 0.005,
        epsilon_outer: float = 0.005,
    ) -> FakeFuture:
        self._calls.append(("grasp", width, speed, force))
        self._stopped = False
        return FakeFuture(self, width)

    def homing(self) -> bool:
        self._calls.append(("homing",))
        return True

    def stop(self) -> bool:
        self._calls.append(("stop",))
        self._stopped = True
        return True


class FakeGripperState:
    """``franky.GripperState``, which cannot be made without a gripper."""

    width: float = 0.0


class FakeLibrary:
    """franky with the stand-ins for what needs a robot."""

    Robot, Gripper = FakeRobot, FakeGripper

    def __getattr__(self, name: str) -> Any:
        return getattr(franky, name)


@pytest.mark.parametrize(("fake", "real"), [
    (FakeRobot, franky.Robot), (FakeGripper, franky.Gripper),
    (FakeGripperState, franky.GripperState), (FakeFuture, franky.BoolFuture),
])
def test_the_stand_ins_offer_only_what_the_library_offers(fake: type, real: type) -> None:
    for name, thing in vars(fake).items():
        if (name.startswith("_") and name != "__init__") or (name == "__init__" and fake in (
                FakeFuture, FakeGripperState)):
            continue
        there = inspect.getattr_static(real, name, None)
        assert there is not None, f"{real.__name__} has no {name}"
        if not callable(thing):
            assert isinstance(there, property), name
            continue
        ours = [p for p in inspect.signature(thing).parameters if p != "self"]
        offered = signatures(there)
        assert any(theirs[: len(ours)] == ours for theirs in offered), (
            f"{real.__name__}.{name}: ours {ours}, the library's {offered}"
        )


def signatures(function: Any) -> list[list[str]]:
    """The parameters of each overload, from the library's docstring."""
    found = []
    for line in (function.__doc__ or "").splitlines():
        match = re.match(r"\s*(?:\d+\. )?\w+\(self: [^,)]+(?:, )?(.*)\) -> ", line)
        if match:
            words = [part.split(":")[0].strip() for part in parts(match[1])]
            found.append([word for word in words if word])
    return found


def test_what_the_driver_builds_is_the_librarys_own() -> None:
    motion = franky.JointImpedanceTrackingMotion(
        stiffness=np.full(7, 600.0), lower_joint_limits=SPEC.limits("lower_rad"),
        upper_joint_limits=SPEC.limits("upper_rad"),
    )
    motion.set_reference(franky.JointReference(q=np.full(7, 0.5), dq=np.full(7, 0.1)))
    assert motion.get_reference().q.tolist() == [0.5] * 7
    state = make_state(q=np.full(7, 0.25), robot_mode=franky.RobotMode.Reflex)
    assert state.q.tolist() == [0.25] * 7 and state.dq.tolist() == [0.0] * 7
    assert state.robot_mode == franky.RobotMode.Reflex and state.tau_J.shape == (7,)
    assert errors("cartesian_reflex").cartesian_reflex
    assert not errors("cartesian_reflex").joint_reflex


@pytest.fixture
def robot() -> FakeRobot:
    return FakeRobot("127.0.0.1")


@pytest.fixture
def arm(robot: FakeRobot) -> Iterator[FrankyArm]:
    one = FrankyArm(SPEC, robot, FakeLibrary(), MonotonicClock(), max_gap_s=1.0)
    yield one
    one.close()


def swing(arm: FrankyArm, by_rad: float = 0.1, count: int = 60) -> JointSetpoints:
    t = np.arange(1, count + 1) / count
    way = by_rad * (10 * t**3 - 15 * t**4 + 6 * t**5)
    speed = by_rad * (30 * t**2 - 60 * t**3 + 30 * t**4) / (count * arm.period_s)
    start = arm.state(1.0).position_rad
    return JointSetpoints(start + np.repeat(way[:, None], 7, 1), arm.period_s,
                          np.repeat(speed[:, None], 7, 1), at=arm.sent() + arm.lead_rows)


def test_control_begins_with_the_first_command(
    robot: FakeRobot, arm: FrankyArm, until: Until
) -> None:
    assert isinstance(arm, Arm) and arm.status().ready
    assert not robot.is_in_control and robot._calls == []
    motion = swing(arm)
    arm.command(motion)
    assert robot._calls == ["JointImpedanceTrackingMotion"]
    end = motion.position_rad[-1]
    assert until(lambda: np.abs(arm.state(0.5).position_rad - end).max() < 1e-9)
    assert until(lambda: arm.sent() == 60 + arm.lead_rows)
    # It rests under control, on a reference that stands still.
    reference = robot._motion.get_reference()
    assert robot.is_in_control and not reference.dq.any()
    arm.close()
    assert robot._calls == ["JointImpedanceTrackingMotion", "TorqueStopMotion"]


def test_closing_sends_the_rest_of_a_motion(robot: FakeRobot, arm: FrankyArm) -> None:
    arm.command(swing(arm))
    arm.close()
    assert arm.sent() == 60 + arm.lead_rows and arm._streamer.fault is None


def test_a_start_elsewhere_is_refused(robot: FakeRobot, arm: FrankyArm) -> None:
    rows = arm.state(1.0).position_rad[None] + 0.2
    with pytest.raises(SafetyError, match=r"0\.200 rad from where the arm is"):
        arm.command(JointSetpoints(rows, arm.period_s, at=8))
    assert not robot.is_in_control


def test_a_reflex_is_never_cleared_by_itself(
    robot: FakeRobot, arm: FrankyArm, until: Until
) -> None:
    arm.command(swing(arm, 0.2, 400))
    assert until(lambda: arm.sent() > 20)
    robot._reflex()
    assert until(lambda: not arm.status().ready)
    assert "cartesian reflex" in (arm.status().fault or "")
    end = time.monotonic() + 0.3
    while time.monotonic() < end:
        with pytest.raises(SafetyError, match="reflex"):
            arm.command(swing(arm))
    assert "recover_from_errors" not in robot._calls
    arm.recover()
    assert robot._calls.count("recover_from_errors") == 1 and arm.status().ready
    assert not robot.is_in_control
    motion = swing(arm)
    arm.command(motion)
    assert until(lambda: arm._streamer.pending() == 0)
    assert robot._calls.count("JointImpedanceTrackingMotion") == 2


def test_only_recover_calls_the_recovery() -> None:
    source = inspect.getsource(inspect.getmodule(FrankyArm))  # type: ignore[arg-type]
    assert source.count("recover_from_errors") == 1
    assert "recover_from_errors" in inspect.getsource(FrankyArm.recover)


def test_control_that_ends_by_itself_is_a_fault(
    robot: FakeRobot, arm: FrankyArm, until: Until
) -> None:
    arm.command(swing(arm, 0.2, 400))
    assert until(lambda: arm.sent() > 5)
    robot._error = franky.ControlException("libfranka: communication_constraints_violation")
    robot._motion = None
    assert until(lambda: "communication_constraints_violation" in (arm.status().fault or ""))
    arm.recover()
    # There was no error in the robot, so none was cleared.
    assert arm.status().ready and "recover_from_errors" not in robot._calls


def test_a_person_at_the_robot_comes_first(
    robot: FakeRobot, arm: FrankyArm, until: Until
) -> None:
    robot._mode = franky.RobotMode.UserStopped
    assert until(lambda: "stop is pressed" in (arm.status().fault or ""))
    with pytest.raises(SafetyError, match="end that first"):
        arm.recover()
    robot._mode = franky.RobotMode.Idle
    time.sleep(0.05)
    assert not arm.status().ready
    arm.recover()
    assert arm.status().ready


def test_a_broken_stream_leaves_a_reference_at_rest(robot: FakeRobot, until: Until) -> None:
    arm = FrankyArm(SPEC, robot, FakeLibrary(), MonotonicClock(), max_gap_s=1.0)
    try:
        arm.command(swing(arm, 0.3, 800))
        assert until(lambda: robot._motion.get_reference().dq.any())
        arm._streamer.stop("a test broke it off")
        assert until(lambda: not robot._motion.get_reference().dq.any())
        assert robot.is_in_control
        assert (arm.status().fault or "") == "a test broke it off"
    finally:
        arm.close()


@pytest.mark.parametrize("how", ["frozen", "lost"])
def test_states_that_are_no_states(
    robot: FakeRobot, arm: FrankyArm, until: Until, how: str
) -> None:
    arm.state(0.5)
    if how == "frozen":
        robot._frozen = True
    else:
        robot._lost = franky.NetworkException("libfranka: connection lost")
    words = "stands still" if how == "frozen" else "connection lost"
    assert until(lambda: words in (arm.status().fault or ""))
    with pytest.raises(StaleDataError, match=words):
        arm.state(0.05)


def test_the_hand(until: Until) -> None:
    hand = FakeGripper("127.0.0.1")
    gripper = FrankyGripper(SPEC, hand, FakeLibrary(), MonotonicClock())
    try:
        assert isinstance(gripper, Gripper)
        assert gripper.opening(1.0) == pytest.approx(0.25)
        assert gripper.command(1.0) == 1.0
        assert until(lambda: gripper.opening(0.5) > 0.99)
        gripper.command(0.0)
        assert until(lambda: gripper.opening(0.5) < 0.01)
        assert [call[0] for call in hand._calls] == ["move", "grasp"]
        assert hand._calls[1][3] == SPEC.gripper.force_n
        gripper.homing()
        assert gripper.watch() is None
        hand._lost = franky.NetworkException("libfranka: gripper lost")
        assert until(lambda: "gripper lost" in (gripper.watch() or ""))
    finally:
        gripper.close()


def test_checks(robot: FakeRobot, arm: FrankyArm) -> None:
    found = arm.checks()
    assert [name for name, _, _ in found] == [
        "state", "robot", "connection", "joint limits", "arm"]
    assert all(ok for _, ok, _ in found), found


def test_the_connection_sets_thresholds() -> None:
    robot = connect(FakeLibrary(), "10.0.0.1", realtime="ignore", force_threshold_n=25.0)
    assert robot._calls == ["set_collision_behavior"]


def request(**options: str) -> RigRequest:
    return RigRequest(SPEC, make_task("Push").scene(), options=options)


def test_a_robot_that_is_not_there_is_one_line_and_quick() -> None:
    begin = time.monotonic()
    with pytest.raises(StaleDataError, match=r"no Franka answers at 127\.0\.0\.1: ") as caught:
        make_rig("franky", request(robot_ip="127.0.0.1", realtime="ignore"))
    assert time.monotonic() - begin < 10.0 and "\n" not in str(caught.value)


def test_options_that_cannot_be_used() -> None:
    with pytest.raises(InvalidInputError, match="robot_ip=172"):
        make_direct_rig(request())
    with pytest.raises(InvalidInputError, match="did you mean 'robot_ip'"):
        make_direct_rig(request(robot_up="1"))
    with pytest.raises(InvalidInputError, match="valid: enforce, ignore"):
        make_direct_rig(request(robot_ip="127.0.0.1", realtime="maybe"))
    with pytest.raises(InvalidInputError, match="7 positive numbers"):
        FrankyArm(SPEC, FakeRobot("x"), FakeLibrary(), MonotonicClock(), stiffness_nm_rad=[1.0])
