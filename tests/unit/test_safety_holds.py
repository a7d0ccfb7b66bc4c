"""Holds: what brings them about, how the arm brakes, what releases them and what does not."""

from __future__ import annotations

import re

import numpy as np
import pytest

from robot_rl.errors import SafetyError, StaleDataError
from robot_rl.interfaces import ArmStatus, JointState, Wrench
from robot_rl.safety import Latch, SafetyConfig
from tests.unit.safety_motion import PERIOD_S, cruise


class Scale:
    """A force sensor that says what it is told to."""

    def __init__(self) -> None:
        self.force_n = np.zeros(3)
        self.asked_age_s = 0.0
        self.stale = False

    def wrench(self, max_age_s: float) -> Wrench:
        self.asked_age_s = max_age_s
        if self.stale:
            raise StaleDataError("the wrench is 9 s old")
        return Wrench(self.force_n, np.zeros(3), 0.0)

    def zero(self) -> None:
        self.force_n = np.zeros(3)


# -- braking ------------------------------------------------------------------------------------


@pytest.mark.parametrize("robot", ["fr3", "panda", "sawyer"])
@pytest.mark.parametrize("lead_rows", [0, 3])
def test_a_hold_brakes_at_once_within_the_limits(bench, robot, lead_rows):
    at = bench(robot, lead_rows=lead_rows)
    cruise(at)
    sent, spec = at.arm.sent(), at.arm.spec
    queued = len(at.arm.queue)
    at.safety.hold("stop")
    assert at.arm.commands[-1].at == sent + lead_rows, "from the first row that can be changed"
    assert len(at.arm.queue) < queued
    before = np.array(at.arm.rows)
    at.wait(1.0)
    rows = np.array(at.arm.rows)
    fastest = np.abs(np.diff(before[-2:], axis=0)).max()
    moving = np.abs(np.diff(rows[sent - 1 :], axis=0)).max(axis=1)
    assert moving.max() <= 1.1 * fastest and moving[-1] < 1e-4
    # As fast as the joints' accelerations let it: not longer than the slowest joint needs.
    velocity = np.abs(np.diff(before[-2:], axis=0))[0] / 0.01
    acceleration = 0.9 * spec.limits("acceleration_rad_s2")
    needed_s = (velocity / acceleration).max() + 0.06
    assert (len(rows) - sent - lead_rows) * 0.01 <= needed_s
    second = np.diff(rows, 2, axis=0) / 1e-4
    third = np.diff(rows, 3, axis=0) / 1e-6
    assert (np.abs(second) <= acceleration).all()
    assert (np.abs(third) <= acceleration / 0.02).all()


def test_a_hold_of_a_resting_arm_keeps_it_where_it_is(bench):
    at = bench()
    here = at.arm.position_rad.copy()
    at.safety.hold("stop")
    at.wait(0.2)
    np.testing.assert_array_equal(at.arm.position_rad, here)


def test_a_hold_before_the_first_move_starts_nothing(bench):
    at = bench()
    at.safety.move([0.02, 0.0, 0.0], 0.0, PERIOD_S)
    here = at.arm.position_rad.copy()
    at.safety.hold("stop")
    at.wait(0.5)
    np.testing.assert_array_equal(at.arm.position_rad, here)


def test_a_hold_before_anything_is_known_of_the_arm_sends_nothing(bench):
    from robot_rl.safety import SafetyFilter

    at = bench()
    fresh = SafetyFilter(at.arm, at.gripper, at.clock)
    fresh.rest()
    fresh.watch()
    fresh.hold("stop")
    assert fresh.held == "stop" and at.arm.commands == []


@pytest.mark.parametrize("trouble", ["blind", "nan", "no commands", "late once", "always late"])
def test_a_hold_stops_whatever_is_wrong(bench, trouble):
    at = bench()
    cruise(at)
    if trouble == "blind":
        at.arm.age_s = 9.0
    elif trouble == "nan":
        at.arm.position_rad[2] = np.nan
    elif trouble == "no commands":
        at.arm.fault = "the stop is pressed"
    else:
        at.arm.late = 1 if trouble == "late once" else 99
    sent = at.arm.sent()
    at.safety.hold("something")
    assert at.safety.held == "something"
    braked = trouble not in ("no commands", "always late")
    assert (at.arm.commands[-1].at >= sent) == braked
    at.arm.stuck = trouble == "nan"
    at.wait(2.0)
    # With or without a command of its own, what the arm has ends at rest.
    assert not at.arm.queue
    np.testing.assert_allclose(at.arm.rows[-1], at.arm.rows[-2], atol=1e-4)
    with pytest.raises(SafetyError, match=r"the arm is held \(something\)"):
        at.safety.move(np.zeros(3), 0.0, PERIOD_S)


def test_a_brake_that_would_break_a_limit_is_not_sent(bench, monkeypatch):
    at = bench()
    cruise(at)
    count, queue = len(at.arm.commands), [row.copy() for row in at.arm.queue]
    monkeypatch.setattr(at.safety.planner, "brake", lambda plan, row: None)
    at.safety.hold("stop")
    assert len(at.arm.commands) == count and np.array_equal(at.arm.queue, queue)
    assert at.safety.held == "stop"


def test_the_first_reason_stays_and_the_arm_is_stopped_once(bench):
    at = bench()
    cruise(at)
    at.safety.hold("first")
    count = len(at.arm.commands)
    at.safety.hold("second")
    assert at.safety.held == "first" and len(at.arm.commands) == count


def test_a_held_arm_takes_nothing_and_nothing_clears_it(bench):
    at = bench()
    cruise(at)
    at.safety.hold("a person came near")
    count = len(at.arm.commands)
    message = re.escape("the arm is held (a person came near); rearm() releases it")
    for _ in range(2):
        for ask in (
            lambda: at.safety.move(np.zeros(3), 0.0, PERIOD_S),
            lambda: at.safety.move_joints(at.arm.position_rad, PERIOD_S),
            lambda: at.safety.grip(1.0),
            at.safety.reset,
            at.safety.check_released,
        ):
            with pytest.raises(SafetyError, match=message):
                ask()
        at.wait(0.5)
        at.safety.rest()
        at.safety.watch()
        at.safety.measure()
        at.safety.sync()
        at.safety.set_state(at.safety.get_state())
        assert at.safety.held == "a person came near"
    assert len(at.arm.commands) == count and at.gripper.sent == [] and at.arm.recovered == 0


# -- release ------------------------------------------------------------------------------------


def test_rearming_starts_from_where_the_arm_is(bench):
    at = bench()
    cruise(at)
    at.safety.hold("guided by hand")
    at.wait(0.5)
    moved = at.safety.posture((0.1, 0.1, 0.2))
    at.arm.put(moved)
    at.arm.fault = "a reflex"
    at.safety.rearm()
    assert at.safety.held is None and at.arm.recovered == 1 and at.arm.fault is None
    assert np.array_equal(at.safety.setpoint_rad, moved)
    np.testing.assert_allclose(at.safety.setpoint_tool_m, [0.1, 0.1, 0.2], atol=1e-4)
    before = len(at.arm.rows)
    for _ in range(5):
        at.step(np.zeros(3))
    assert np.abs(np.array(at.arm.rows[before:]) - moved).max() < 2e-3


def test_an_arm_that_is_still_braking_is_not_rearmed(bench):
    at = bench()
    cruise(at)
    at.safety.hold("stop")
    with pytest.raises(SafetyError, match="still coming to rest"):
        at.safety.rearm()
    assert at.arm.recovered == 0
    # One in error sends nothing any more: it is at rest when it is measured to be.
    at.arm.fault = "a reflex"
    with pytest.raises(SafetyError, match="the arm is moving: rearm it when it is at rest"):
        at.safety.rearm()
    assert at.safety.held == "stop"
    at.arm.velocity_rad_s[:] = 0.05
    at.safety.rearm()
    assert at.safety.held is None


@pytest.mark.parametrize(("velocity", "moving"), [(0.05, False), (-0.0501, True)])
def test_an_arm_that_is_measured_to_move_is_not_rearmed(bench, velocity, moving):
    at = bench()
    at.safety.hold("stop")
    at.wait(0.5)
    at.arm.velocity_rad_s[3] = velocity
    if moving:
        with pytest.raises(SafetyError, match="the arm is moving"):
            at.safety.rearm()
    else:
        at.safety.rearm()
    assert (at.safety.held == "stop") == moving


def test_an_arm_that_stays_in_error_or_blind_stays_held(bench, monkeypatch):
    at = bench()
    at.safety.hold("stop")
    at.wait(0.5)
    at.arm.age_s = 9.0
    with pytest.raises(StaleDataError):
        at.safety.rearm()

    def pressed() -> None:
        raise SafetyError("the emergency stop is still pressed")

    at.arm.age_s = 0.0
    monkeypatch.setattr(at.arm, "recover", pressed)
    with pytest.raises(SafetyError, match="still pressed"):
        at.safety.rearm()
    assert at.safety.held == "stop"


# -- what a hold comes from ---------------------------------------------------------------------


@pytest.mark.parametrize("control_hz", [10.0, 20.0])
def test_a_commander_that_falls_silent_is_noticed(bench, control_hz):
    at = bench()
    period = 1.0 / control_hz
    for _ in range(3):
        at.step([0.02, 0.0, 0.0], 0.0, period)
    at.safety.move([0.02, 0.0, 0.0], 0.0, period)
    at.wait(period + 0.05)
    at.safety.watch()
    assert at.safety.held is None, "so much it may be late"
    at.wait(0.01)
    at.safety.watch()
    assert at.safety.held == f"no command for {period + 0.06:.2f} s"


def test_a_command_that_comes_too_late_finds_the_arm_held(bench):
    at = bench()
    cruise(at)
    at.wait(0.5)
    assert at.safety.held is None
    with pytest.raises(SafetyError, match=r"the arm is held \(no command for 0\.\d\d s\)"):
        at.safety.move(np.zeros(3), 0.0, PERIOD_S)


def test_a_refused_command_is_no_sign_of_life(bench):
    at = bench()
    at.step([0.02, 0.0, 0.0])
    for _ in range(8):
        with pytest.raises(SafetyError):
            at.safety.move([np.nan, 0.0, 0.0], 0.0, PERIOD_S)
        at.wait(0.01)
    assert "no command" in at.safety.held


def test_even_a_motion_that_goes_nowhere_is_waited_for(bench):
    at = bench()
    at.step(np.zeros(3))
    at.wait(0.06)
    at.safety.watch()
    assert at.safety.held == "no command for 0.16 s"


def test_a_pause_on_purpose_is_no_silence(bench):
    at = bench()
    cruise(at)
    at.safety.rest()
    at.wait(0.5)
    at.safety.watch()
    assert at.safety.held is None and not at.arm.queue
    # It rests where it was going, and the set-point with it.
    np.testing.assert_array_equal(at.safety.setpoint_rad, at.arm.position_rad)
    np.testing.assert_allclose(at.safety.setpoint_tool_m, at.tool(), atol=1e-12)
    at.step([0.02, 0.0, 0.0])
    at.wait(0.1)
    at.safety.watch()
    assert at.safety.held is not None, "from the next command on it is watched again"


def test_joint_commands_are_waited_for_as_well(bench):
    at = bench()
    target = at.safety.posture((0.1, 0.1, 0.2))
    at.safety.move_joints(target, PERIOD_S)
    at.wait(0.16)
    at.safety.watch()
    assert "no command" in at.safety.held


@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        ("fault", "the arm takes no commands: a reflex"),
        ("stale", r"the state is 9.0 s old, older than 0.2 s"),
        ("frozen", r"the arm's state is 0.21 s old"),
        ("nan stamp", "the arm's state is nan s old"),
        ("nan", "the arm reports joint angles"),
        ("nan velocity", "the arm reports joint angles"),
        ("watch", "the light curtain is broken"),
        ("second watch", "the door is open"),
        ("broken watch", "no such device"),
    ],
)
def test_what_is_wrong_is_noticed_and_holds(bench, monkeypatch, trouble, message):
    at = bench()
    said: dict[str, str | None] = {"curtain": None, "door": None}
    at.safety.add_watch("curtain", lambda: said["curtain"])
    at.safety.add_watch("door", lambda: said["door"])
    at.safety.watch()
    assert at.safety.held is None
    if trouble == "fault":
        at.arm.fault = "a reflex"
    elif trouble == "stale":
        at.arm.age_s = 9.0
    elif trouble in ("frozen", "nan stamp"):
        state = at.arm.state(1.0)
        stamp = np.nan if trouble == "nan stamp" else 0.0
        monkeypatch.setattr(at.arm, "state", lambda age: JointState(
            state.position_rad, state.velocity_rad_s, stamp))
        at.clock.time_s = 0.2
        if trouble == "frozen":
            at.safety.watch()
            assert at.safety.held is None
        at.clock.time_s = 0.21
    elif trouble == "nan":
        at.arm.position_rad[0] = np.nan
    elif trouble == "nan velocity":
        at.arm.velocity_rad_s[0] = np.inf
    elif trouble == "watch":
        said["curtain"] = "the light curtain is broken"
    elif trouble == "second watch":
        said["door"] = "the door is open"
    else:
        def broken() -> str | None:
            raise OSError("no such device")

        at.safety.add_watch("door", broken)
    at.safety.watch()
    assert re.search(message, at.safety.held)


def test_an_arm_that_is_not_ready_is_held_even_without_a_fault(bench, monkeypatch):
    at = bench()
    monkeypatch.setattr(at.arm, "status", lambda: ArmStatus(False))
    at.safety.watch()
    assert at.safety.held == "the arm takes no commands: None"


def test_an_arm_that_refuses_a_command_is_held(bench):
    at = bench()
    at.arm.fault = "a reflex"
    with pytest.raises(SafetyError, match="no commands: a reflex"):
        at.safety.move([0.01, 0.0, 0.0], 0.0, PERIOD_S)
    assert at.safety.held == "no commands: a reflex"


@pytest.mark.parametrize("ask", ["measure", "move"])
@pytest.mark.parametrize("trouble", ["stale", "nan"])
def test_a_state_that_cannot_be_used_holds_the_arm(bench, ask, trouble):
    at = bench()
    at.step([0.02, 0.0, 0.0])
    at.safety.rest()
    at.wait(0.5)
    if trouble == "stale":
        at.arm.age_s = 0.3
    else:
        at.arm.position_rad[1] = np.nan
    count = at.safety.counters.commands
    with pytest.raises(StaleDataError if trouble == "stale" else SafetyError):
        if ask == "measure":
            at.safety.measure()
        else:
            at.safety.move([0.01, 0.0, 0.0], 0.0, PERIOD_S)
    assert at.safety.held is not None and at.safety.counters.commands == count


@pytest.mark.parametrize(
    ("force", "limit", "held"),
    [
        ([30.0, 0.0, 0.0], 30.0, False), ([30.0, 0.1, 0.0], 30.0, True),
        ([0.0, -18.1, 24.0], 30.0, True), ([0.0, -18.0, 24.0], 30.0, False),
        ([np.nan, 0.0, 0.0], 30.0, True), ([500.0, 0.0, 0.0], None, False),
    ],
)
def test_too_hard_a_push_holds(bench, force, limit, held):
    scale = Scale()
    at = bench(force=scale, config=SafetyConfig(max_force_n=limit))
    scale.force_n = np.array(force)
    at.safety.watch()
    assert (at.safety.held is not None) == held
    if held:
        assert re.match(r"the force on the tool is [\d.na]+ N, should be at most 30 N",
                        at.safety.held)


def test_a_force_that_is_not_known_holds(bench):
    scale = Scale()
    at = bench(force=scale, config=SafetyConfig(max_force_n=30.0))
    at.safety.watch()
    assert scale.asked_age_s == at.safety.config.max_state_age_s
    scale.stale = True
    at.safety.watch()
    assert at.safety.held == "the wrench is 9 s old"


def test_on_hardware_there_is_a_limit_of_force_by_default(bench, tmp_path):
    scale = Scale()
    at = bench(force=scale, latch=Latch("panda", "10.0.0.2", tmp_path))
    scale.force_n[:] = [40.0, 0.0, 0.0]
    at.safety.watch()
    assert at.safety.held is None
    scale.force_n[:] = [40.1, 0.0, 0.0]
    at.safety.watch()
    assert "40.1 N, should be at most 40 N" in at.safety.held
    assert bench(latch=Latch("fr3", "x", tmp_path)).safety.watch() is None, "without a sensor"


# -- starts -------------------------------------------------------------------------------------


def test_a_resting_arm_keeps_its_set_point_and_a_moved_one_starts_anew(bench):
    at = bench()
    at.step([0.02, 0.0, 0.0])
    at.safety.rest()
    at.wait(0.5)
    rest = at.safety.setpoint_rad
    for off, kept in ((0.0199, True), (0.0201, False)):
        at.arm.position_rad = rest.copy()
        at.arm.position_rad[3] += off
        at.safety.reset()
        assert np.array_equal(at.safety.setpoint_rad, rest) == kept
        assert np.array_equal(at.safety.setpoint_rad, at.arm.position_rad) == (not kept)


def test_an_arm_that_moves_is_no_place_to_start_from(bench):
    at = bench()
    cruise(at)
    for ask in (at.safety.sync, at.safety.reset):
        with pytest.raises(SafetyError, match="the arm is moving: a start needs it at rest"):
            ask()
    at.arm.velocity_rad_s[:] = 0.0
    with pytest.raises(SafetyError, match="the arm is moving"):
        at.safety.sync()
    at.safety.sync(placed=True)
    assert np.array_equal(at.safety.setpoint_rad, at.arm.position_rad)


def test_the_first_start_needs_rest_too(bench):
    from robot_rl.safety import SafetyFilter

    at = bench()
    at.arm.velocity_rad_s[0] = 0.2
    fresh = SafetyFilter(at.arm, at.gripper, at.clock)
    with pytest.raises(SafetyError, match="the arm is moving"):
        fresh.move(np.zeros(3), 0.0, PERIOD_S)
    at.arm.velocity_rad_s[0] = 0.0
    fresh.move(np.zeros(3), 0.0, PERIOD_S)


def test_a_start_ends_the_wait_for_a_command_and_clears_the_counters(bench):
    at = bench()
    at.step([0.5, 0.0, 0.0])
    at.wait(1.0)
    assert at.safety.counters.limited == 1
    at.safety.reset()
    at.safety.watch()
    assert at.safety.held is None
    assert at.safety.counters.limited == at.safety.counters.commands == 0


# -- late commands ------------------------------------------------------------------------------


def test_a_late_command_is_tried_once_more_from_a_later_row(bench):
    at = bench(lead_rows=2)
    at.step([0.02, 0.0, 0.0])
    sent = at.arm.sent()
    at.arm.late = 1
    done = at.safety.move([0.02, 0.0, 0.0], 0.0, PERIOD_S)
    assert at.arm.commands[-1].at == sent + 2 + 3 and not done.limited
    at.wait(PERIOD_S)
    at.step([0.02, 0.0, 0.0])
    assert at.safety.held is None


def test_a_command_that_is_late_twice_leaves_the_plan_as_it_is(bench):
    at = bench(lead_rows=2)
    at.step([0.02, 0.0, 0.0])
    queue = [row.copy() for row in at.arm.queue]
    at.arm.late = 2
    done = at.safety.move([0.02, 0.0, 0.0], 0.0, PERIOD_S)
    assert done.limited and np.array_equal(at.arm.queue, queue)
    np.testing.assert_array_equal(at.safety.setpoint_rad, queue[-1])
    at.wait(0.06)
    at.safety.watch()
    assert "no command" in at.safety.held, "it has not moved on what was asked"


def test_commands_in_quick_succession_are_taken(bench):
    at = bench(lead_rows=2)
    for _ in range(5):
        at.safety.move([0.005, 0.0, 0.0], 0.0, PERIOD_S)
    at.arm.late = 1
    at.safety.move([0.005, 0.0, 0.0], 0.0, PERIOD_S)
    at.safety.move([0.005, 0.0, 0.0], 0.0, PERIOD_S)
    at.wait(PERIOD_S)
    at.step(np.zeros(3))
    assert at.safety.held is None
    acceleration = 0.9 * at.arm.spec.limits("acceleration_rad_s2")
    rows = np.array(at.arm.rows)
    assert (np.abs(np.diff(rows, 2, axis=0)) / 1e-4 <= acceleration).all()
