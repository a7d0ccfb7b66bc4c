"""When the safety filter holds, to the moment, and what releases it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from robot_rl.errors import SafetyError, StaleDataError
from robot_rl.interfaces import JointState
from robot_rl.safety import Latch, SafetyFilter
from tests.safety.filter_arm import PERIOD_S, At, Force

# -- silence ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["move", "move_joints"])
def test_a_commander_that_falls_silent_is_noticed(kind):
    at = At(silence_s=0.03, lead=1)

    def speak() -> None:
        if kind == "move":
            at.safety.move((0.001, 0.0, 0.0), 0.0, PERIOD_S)
        else:
            at.safety.move_joints(at.safety.setpoint_rad + 1e-3, PERIOD_S)

    speak()
    # Ten rows for the command and three of silence.
    at.clock.pass_s(0.13)
    at.safety.watch()
    assert at.safety.held is None
    at.clock.pass_s(0.01)
    at.safety.watch()
    assert at.safety.held == "no command for 0.14 s"
    at.clock.pass_s(1.0)
    at.safety.rearm()
    speak()
    at.clock.pass_s(0.13)
    speak()
    # With a row of lead, as the arm was under way.
    at.clock.pass_s(0.15)
    with pytest.raises(SafetyError, match=r"the arm is held \(no command for 0.14 s\)"):
        speak()
    assert at.safety.held == "no command for 0.14 s"


def test_nobody_needs_to_speak_before_the_first_command_nor_while_the_arm_rests():
    at = At()
    at.clock.pass_s(5.0)
    at.safety.watch()
    at.step((0.03, 0.0, 0.0), wait=0.05)
    at.safety.rest()
    end = at.safety.setpoint_rad
    at.clock.pass_s(5.0)
    at.safety.watch()
    assert at.safety.held is None
    np.testing.assert_allclose(at.arm.position_rad, end, atol=1e-12)
    np.testing.assert_allclose(at.safety.setpoint_tool_m, at.tool(), atol=1e-12)
    at.step((0.01, 0.0, 0.0))
    fresh = SafetyFilter(at.arm, at.gripper, at.clock)
    fresh.rest()
    fresh.watch()
    assert fresh.held is None


def test_a_commander_that_ends_leaves_an_arm_at_rest_that_is_not_held():
    at = At()
    at.steps(3, (0.04, 0.0, 0.0))
    at.safety.move((0.04, 0.0, 0.0), 0.0, 0.5)
    at.clock.pass_s(0.05)
    planned, began = len(at.arm.queued), at.clock.now_s()
    assert at.safety.settle() is True
    assert not len(at.arm.queued) and at.safety.held is None
    assert np.abs(at.arm.state(1.0).velocity_rad_s).max() < 1e-4
    assert at.clock.now_s() - began < 0.01 * planned - 0.1, "it braked, and waited for no more"
    np.testing.assert_allclose(at.safety.setpoint_rad, at.arm.position_rad, atol=1e-12)
    np.testing.assert_allclose(at.safety.setpoint_tool_m, at.tool(), atol=1e-9)
    at.clock.pass_s(5.0)
    at.safety.watch()
    assert at.safety.held is None, "nobody is waited for"
    commands, now = len(at.arm.commands), at.clock.now_s()
    assert at.safety.settle() is True
    assert len(at.arm.commands) == commands and at.clock.now_s() == now


def test_an_end_waits_no_longer_than_it_is_told_to():
    at = At()
    at.steps(3, (0.04, 0.0, 0.0))
    at.safety.move((0.04, 0.0, 0.0), 0.0, 0.5)
    at.arm.run = lambda: None
    began = at.clock.now_s()
    assert at.safety.settle(0.1) is False
    assert at.clock.now_s() - began == pytest.approx(0.1, abs=0.011)
    began = at.clock.now_s()
    assert at.safety.settle() is False
    assert at.clock.now_s() - began == pytest.approx(1.0, abs=0.011)


def test_an_end_while_held_only_waits():
    at = At()
    at.steps(3, (0.04, 0.0, 0.0))
    at.safety.hold("x")
    commands = len(at.arm.commands)
    assert at.safety.settle() is True
    assert at.safety.held == "x" and len(at.arm.commands) == commands
    fresh = SafetyFilter(at.arm, at.gripper, at.clock)
    assert fresh.settle() is True


def test_an_end_whatever_the_arm_says():
    at = At()
    at.step((0.03, 0.0, 0.0), wait=0.02)

    def broken(*_: object) -> None:
        raise OSError("the cable is out")

    at.arm.command = broken
    assert at.safety.settle() is True, "the plan that it has ends at rest"


# -- holds --------------------------------------------------------------------------------------


def test_a_hold_brakes_at_once_and_the_first_reason_stays():
    at = At(lead=2)
    at.steps(4, (0.04, 0.0, 0.0))
    at.safety.move((0.04, 0.0, 0.0), 0.0, PERIOD_S)
    planned = len(at.arm.queued)
    at.clock.pass_s(0.02)
    at.safety.hold("a person came near")
    assert at.arm.keep_commands[-1].at == at.arm.sent() + 2
    assert len(at.arm.queued) < planned - 5
    assert [one.stop for one in at.arm.keep_commands] == [False] * 5 + [True]
    commands = len(at.arm.commands)
    at.safety.hold("something else")
    assert at.safety.held == "a person came near" and len(at.arm.commands) == commands
    at.clock.pass_s(1.0)
    assert not at.arm.state(1.0).velocity_rad_s.any()


def test_a_hold_counts_whatever_the_arm_says():
    at = At()
    at.step((0.03, 0.0, 0.0), wait=0.02)

    def broken(*_: object) -> None:
        raise OSError("the cable is out")

    at.arm.command = broken
    at.safety.hold("lost")
    assert at.safety.held == "lost"
    fresh = SafetyFilter(at.arm, at.gripper, at.clock)
    fresh.hold("before it ever moved")
    assert fresh.held == "before it ever moved"


def test_a_hold_that_comes_too_late_tries_again():
    at = At(lead=1)
    at.steps(3, (0.04, 0.0, 0.0))
    at.safety.move((0.04, 0.0, 0.0), 0.0, 0.5)
    at.clock.pass_s(0.02)
    sent, late, command = at.arm.sent(), [2], at.arm.command

    def slow(setpoints):
        at.arm.rows_in_command = late.pop(0) if late else 0
        return command(setpoints)

    at.arm.command = slow
    at.safety.hold("x")
    assert at.arm.keep_commands[-1].at == sent + 2 + 1 + 2
    at.clock.pass_s(1.0)
    assert not len(at.arm.queued)


def test_a_hold_that_is_late_twice_leaves_a_plan_that_ends_at_rest():
    at = At()
    at.steps(3, (0.04, 0.0, 0.0))
    at.safety.move((0.04, 0.0, 0.0), 0.0, 0.5)
    at.arm.rows_in_command = 9
    commands = len(at.arm.commands)
    at.safety.hold("x")
    at.arm.rows_in_command = 0
    assert at.safety.held == "x" and len(at.arm.commands) == commands
    at.clock.pass_s(3.0)
    assert not at.arm.state(1.0).velocity_rad_s.any()
    at.safety.rearm()


# -- re-arming ----------------------------------------------------------------------------------


def test_a_rearm_starts_from_where_the_arm_is():
    at = At(follow=0.5)
    at.steps(3, (0.03, 0.0, 0.0))
    at.safety.hold("x")
    with pytest.raises(SafetyError, match=r"^the arm is still coming to rest: rearm it when"):
        at.safety.rearm()
    assert at.safety.held == "x" and at.arm.recovered == 0
    at.clock.pass_s(1.0)
    q = at.arm.position_rad + 0.1
    at.arm.lie = JointState(q, np.zeros(7), at.clock.now_s())
    at.safety.rearm()
    assert at.safety.held is None and at.arm.recovered == 1
    assert np.array_equal(at.safety.setpoint_rad, q)
    np.testing.assert_allclose(at.safety.setpoint_tool_m, at.tool(q), atol=1e-12)
    np.testing.assert_allclose(at.safety._measured_tool, at.tool(q), atol=1e-12)
    assert at.safety.measured_at_s == at.clock.now_s()


@pytest.mark.parametrize(("speed", "good"), [(0.05, True), (0.0501, False)])
def test_an_arm_that_moves_is_not_rearmed(speed, good):
    at = At()
    at.safety.hold("x")
    at.clock.pass_s(0.1)
    at.arm.lie = JointState(at.arm.position_rad, -speed * np.eye(7)[4], 0.0)
    if good:
        at.safety.rearm()
        assert at.safety.held is None
    else:
        with pytest.raises(SafetyError, match=r"^the arm is moving: rearm it when it is at rest$"):
            at.safety.rearm()
        assert at.safety.held == "x"


def test_an_arm_that_stays_in_error_stays_held():
    at = At()
    at.step((0.03, 0.0, 0.0), wait=0.02)
    at.arm.fail("stays: the stop is pressed")
    at.safety.watch()
    assert at.safety.held == "the arm takes no commands: stays: the stop is pressed"
    with pytest.raises(SafetyError, match="stays in error"):
        at.safety.rearm()
    assert at.safety.held is not None
    at.arm.fault = "it dropped out"
    at.arm.age_s = 1.0
    with pytest.raises(StaleDataError):
        at.safety.rearm()
    assert at.safety.held is not None
    at.arm.age_s = 0.0
    at.arm.fault = "it dropped out"
    at.safety.rearm()
    assert at.safety.held is None and at.arm.fault is None
    at.step((0.01, 0.0, 0.0))


def test_an_arm_whose_fault_went_by_itself_can_be_rearmed():
    at = At()
    at.step((0.03, 0.0, 0.0), wait=0.02)
    at.arm.fail("it dropped out")
    at.safety.watch()
    at.arm.fault = None
    at.clock.pass_s(5.0)
    at.safety.rearm()
    assert at.safety.held is None


def test_an_arm_whose_rows_were_lost_after_a_hold_can_be_rearmed():
    at = At()
    at.step((0.03, 0.0, 0.0), wait=0.02)
    at.safety.hold("x")
    at.arm.fail("it dropped out")
    at.arm.fault = None
    at.clock.pass_s(5.0)
    at.safety.rearm()
    assert at.safety.held is None


# -- watches ------------------------------------------------------------------------------------


def test_a_look_at_an_arm_that_is_well_changes_nothing():
    at = At(force=Force(30.0, 0.0, 40.0), max_force_n=50.0)
    at.safety.add_watch("fine", lambda: None)
    at.arm.age_s = 0.2
    at.safety.watch()
    assert at.safety.held is None and at.safety._force.asked == [0.2]


def test_what_is_wrong_is_named():
    at = At()
    at.arm.fault = "E7"
    at.safety.watch()
    assert at.safety.held == "the arm takes no commands: E7"

    at = At()
    at.arm.lie = JointState(at.arm.position_rad, np.zeros(7), -0.21)
    at.safety.watch()
    assert at.safety.held == "the arm's state is 0.21 s old"
    at = At()
    at.arm.lie = JointState(at.arm.position_rad, np.zeros(7), math.nan)
    at.safety.watch()
    assert at.safety.held == "the arm's state is nan s old"

    at = At(force=Force(30.0, 0.0, 40.1), max_force_n=50.0)
    at.safety.watch()
    assert at.safety.held == "the force on the tool is 50.1 N, should be at most 50 N"
    at = At(force=Force(math.nan, 0.0, 0.0), max_force_n=50.0)
    at.safety.watch()
    assert at.safety.held == "the force on the tool is nan N, should be at most 50 N"

    at = At()
    said: list[str | None] = [None, "the door is open", "no more"]
    at.safety.add_watch("first", lambda: None)
    at.safety.add_watch("door", lambda: said.pop(0))
    at.safety.watch()
    assert at.safety.held is None
    at.safety.watch()
    at.safety.watch()
    assert at.safety.held == "the door is open" and said == ["no more"]

    at = At()

    def broken() -> str | None:
        raise OSError("the camera is gone")

    at.safety.add_watch("camera", broken)
    at.safety.watch()
    assert at.safety.held == "the camera is gone"


def test_how_hard_the_world_may_push_where_nobody_says(tmp_path):
    simulated = At(force=Force(1e6, 0.0, 0.0))
    simulated.safety.watch()
    assert simulated.safety.held is None and simulated.safety._force.asked == []
    for push, held in ((40.0, False), (40.1, True)):
        latch = Latch("panda", "here", folder=tmp_path)
        at = At(force=Force(0.0, -push, 0.0), latch=latch)
        at.safety.watch()
        assert (at.safety.held is not None) == held
    assert at.safety.held == "the force on the tool is 40.1 N, should be at most 40 N"
    mine = At(force=Force(0.0, -30.0, 0.0), latch=Latch("panda", "there", folder=tmp_path),
              max_force_n=20.0)
    mine.safety.watch()
    assert mine.safety.held == "the force on the tool is 30.0 N, should be at most 20 N"
    deaf = At(latch=Latch("panda", "elsewhere", folder=tmp_path))
    deaf.safety.watch()
    assert deaf.safety.held is None
