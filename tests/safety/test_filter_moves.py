"""What the safety filter makes of moves and joint targets, to the number."""

from __future__ import annotations

import math

import numpy as np
import pytest

from robot_rl.errors import SafetyError
from robot_rl.safety import SafetyConfig, SafetyCounters, SafetyFilter
from robot_rl.safety.planner import Found
from tests.safety.filter_arm import PERIOD_S, At

# -- moves --------------------------------------------------------------------------------------


def test_a_small_step_is_done_as_asked():
    at = At(lead=3)
    done = at.step((0.01, -0.02, 0.005), 0.03)
    assert not done.limited and done.yaw_rad == 0.03
    assert at.safety.counters == SafetyCounters(commands=1)
    (sent,) = at.arm.keep_commands
    np.testing.assert_allclose(done.delta_m, (0.01, -0.02, 0.005), atol=1e-15)
    np.testing.assert_allclose(at.safety.setpoint_tool_m, (0.01, -0.02, 0.155), atol=1e-3)
    assert sent.at == 0 and sent.period_s == 0.01, "at rest there is nothing to be late for"
    at.step()
    assert at.arm.keep_commands[-1].at == 10 + 3
    assert not sent.velocity_rad_s[-1].any() and not sent.acceleration_rad_s2[-1].any()
    assert np.abs(sent.velocity_rad_s).max() > 0.05
    at.safety.rest()
    at.clock.pass_s(1.0)
    np.testing.assert_allclose(at.tool(), at.safety.setpoint_tool_m, atol=1e-3)


def test_the_callers_array_is_not_written_to():
    at = At()
    delta = np.array([9.0, -9.0, 9.0])
    delta.flags.writeable = False
    at.safety.move(delta, 0.0, PERIOD_S)
    assert delta.tolist() == [9.0, -9.0, 9.0]


def test_a_step_is_as_long_as_the_speed_lets_it():
    for size, limited in ((0.0199999, False), (0.0200001, True), (1e300, True)):
        at = At(max_speed_m_s=0.2)
        target = at.safety._target(size * np.array([0.6, 0.0, 0.8]), 0.1)
        way = target - at.safety.setpoint_tool_m
        np.testing.assert_allclose(way, min(size, 0.02) * np.array([0.6, 0.0, 0.8]), atol=1e-6)
        assert (abs(size - np.linalg.norm(way)) > 1e-9) == limited
    long = at.safety._target(np.array([9.0, 0.0, 0.0]), 0.2) - at.safety.setpoint_tool_m
    np.testing.assert_allclose(long, (0.04, 0, 0), atol=1e-9)


def test_a_turn_is_as_far_as_its_rate_lets_it():
    for sign in (-1.0, 1.0):
        at = At(max_yaw_rate_rad_s=0.5)
        done = at.step(turn=sign * 0.05)
        assert done.yaw_rad == sign * 0.05 and not done.limited
        done = at.step(turn=sign * 0.051)
        assert done.yaw_rad == pytest.approx(sign * 0.05) and done.limited
        assert at.safety.yaw_rad == pytest.approx(sign * 0.1, abs=1e-3)
        assert at.safety.counters == SafetyCounters(commands=2, limited=1)


def test_the_range_of_yaw():
    for sign in (-1.0, 1.0):
        at = At(max_yaw_rad=0.3)
        done = at.steps(6, turn=sign * 0.1)
        assert done.limited and done.yaw_rad == pytest.approx(0.0, abs=1e-6)
        assert at.safety.yaw_rad == pytest.approx(sign * 0.29, abs=1e-6)
        assert at.step(turn=-sign * 0.1).yaw_rad == pytest.approx(-sign * 0.1)
    # From outside it, only the way back.
    at = At(max_yaw_rad=0.3, yaw_rad=0.6)
    here = at.safety.yaw_rad
    assert at.step(turn=0.1).yaw_rad == 0.0
    assert at.step(turn=-0.1).yaw_rad == pytest.approx(-0.1)
    assert at.safety.yaw_rad == pytest.approx(here - 0.1)


def test_all_round_is_all_round():
    at = At(max_yaw_rad=math.pi)
    at.safety._yaw = math.pi - 0.005
    assert at.safety._turn(0.1, 0.1) == 0.1
    at = At(max_yaw_rad=math.pi - 0.1)
    at.safety._yaw = math.pi - 0.12
    assert at.safety._turn(0.1, 0.1) == pytest.approx(0.01)
    at.safety._yaw = 3.0 * math.pi - 0.12
    assert at.safety._turn(0.1, 0.1) == pytest.approx(0.01)


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_a_step_out_of_the_box_ends_inside_its_face(axis, sign):
    low, high = (-0.06, -0.07, 0.1), (0.05, 0.06, 0.2)
    at = At(box_min_m=low, box_max_m=high)
    face = (high if sign > 0 else low)[axis] - sign * 0.003
    way = np.zeros(3)
    way[axis] = sign * 0.03
    done = at.steps(8, way)
    assert done.limited and np.abs(done.delta_m).max() < 1e-9
    assert at.safety.setpoint_tool_m[axis] == pytest.approx(face, abs=1e-12)
    assert not at.step(-0.1 * way).limited


def test_from_outside_the_box_it_comes_back_no_faster_than_allowed():
    at = At(tool_m=(0.2, 0.0, 0.15))
    at.safety = SafetyFilter(at.arm, at.gripper, at.clock,
                             SafetyConfig(box_max_m=(0.1, 0.3, 0.35), max_speed_m_s=0.2))
    done = at.step()
    np.testing.assert_allclose(done.delta_m, (-0.02, 0.0, 0.0), atol=1e-9)
    assert done.limited
    at.steps(8)
    assert at.safety.setpoint_tool_m[0] == pytest.approx(0.097, abs=1e-9)


def test_a_blocked_arm_stores_up_no_more_than_its_leash():
    at = At(leash_m=0.05, max_speed_m_s=0.2)
    at.arm.stuck = True
    done = at.steps(30, (0.01, 0.0, 0.01))
    lead = at.safety.setpoint_tool_m - at.tool()
    assert np.linalg.norm(lead) == pytest.approx(0.05 + 0.02, abs=1e-9)
    assert done.limited and np.abs(done.delta_m).max() < 1e-9
    at.arm.stuck = False


def found_at(at: At, tool, yaw: float, part: float) -> Found:
    pose = at.safety.planner.pose(np.array(tool), yaw)
    return Found(at.safety._plan, at.arm.position_rad + 0.01, pose, part)


def test_what_was_found_becomes_the_set_point():
    for reached, part, limited in (
        ((0.02, 0.0, 0.15), 1.0, False),
        ((0.0299, 0.0, 0.15), 1.0, False),
        ((0.0301, 0.0, 0.15), 1.0, True),
        ((0.02, 0.0, 0.15), 0.5, True),
        ((0.04, 0.0, 0.15), 0.25, True),
    ):
        at = At()
        before, target = at.safety.setpoint_tool_m, np.array([0.02, 0.0, 0.15])
        found = found_at(at, reached, 0.02 * part, part)
        done = at.safety._arrange(found, target, 0.02)
        assert done.limited == limited, (reached, part)
        end = np.array(reached) if limited else target
        np.testing.assert_allclose(at.safety.setpoint_tool_m, end, atol=1e-12)
        np.testing.assert_allclose(done.delta_m, end - before, atol=1e-12)
        assert done.yaw_rad == pytest.approx(0.02 * part)
        assert at.safety.yaw_rad == pytest.approx(0.02 * part)
        assert at.safety.setpoint_rad.tolist() == found.q_rad.tolist()


def test_a_turn_that_the_joints_do_not_follow_is_not_stored_up():
    for asked, reached, limited in ((0.05, 0.0201, False), (0.05, 0.0199, True),
                                    (-0.05, -0.0199, True), (0.0, 0.05, False), (1.0, 0.2, True)):
        at = At()
        at.safety._yaw = 0.3
        at.safety._tool = np.array([0.0, 0.0, 0.15])
        found = found_at(at, (0.0, 0.0, 0.15), 0.3 + reached, 1.0)
        done = at.safety._arrange(found, np.array([0.0, 0.0, 0.15]), asked)
        assert done.limited == limited
        assert done.yaw_rad == pytest.approx(reached if limited else asked)
        assert at.safety.yaw_rad == pytest.approx(0.3 + done.yaw_rad)


def test_a_move_measures_where_nobody_did():
    at = At(max_state_age_s=0.15)
    at.safety.move((0.01, 0.0, 0.0), 0.0, PERIOD_S)
    at.clock.pass_s(0.1)
    at.safety.move((0.01, 0.0, 0.0), 0.0, PERIOD_S)
    assert at.safety.measured_at_s == 0.0, "young enough"
    at.clock.pass_s(0.1)
    at.safety.move((0.01, 0.0, 0.0), 0.0, PERIOD_S)
    assert at.safety.measured_at_s == pytest.approx(0.2)
    at.clock.time_s -= 0.1
    at.safety.move((0.01, 0.0, 0.0), 0.0, PERIOD_S)
    assert at.safety.measured_at_s == pytest.approx(0.1), "a clock that went back is not trusted"
    fresh = SafetyFilter(at.arm, at.gripper, at.clock)
    at.clock.pass_s(2.0)
    fresh.move((0.0, 0.0, 0.0), 0.0, PERIOD_S)
    np.testing.assert_allclose(fresh.setpoint_tool_m, at.tool(), atol=1e-6)


def test_a_command_that_is_late_once_goes_out_further_ahead():
    at = At(lead=1)
    at.step((0.01, 0.0, 0.0))
    sent = at.arm.sent()
    late = [2]
    command = at.arm.command

    def slow(setpoints):
        at.arm.rows_in_command = late.pop(0) if late else 0
        return command(setpoints)

    at.arm.command = slow
    done = at.safety.move((0.01, 0.0, 0.0), 0.0, PERIOD_S)
    np.testing.assert_allclose(done.delta_m, (0.01, 0.0, 0.0), atol=1e-9)
    assert at.arm.keep_commands[-1].at == sent + 2 + 1 + 2
    late[:] = [7, 7]
    at.clock.pass_s(0.05)
    tool, queued = at.safety.setpoint_tool_m, at.arm.queued
    done = at.safety.move((0.01, 0.0, 0.0), 0.0, PERIOD_S)
    assert done.limited and np.linalg.norm(done.delta_m) < 0.01
    assert np.array_equal(at.arm.queued, queued[len(queued) - len(at.arm.queued):])
    np.testing.assert_allclose(at.safety.setpoint_tool_m, tool + done.delta_m)
    assert at.safety.held is None


def test_an_arm_that_refuses_a_command_is_held():
    at = At()
    at.step((0.01, 0.0, 0.0))
    at.arm.fault = "its brakes are on"
    with pytest.raises(SafetyError, match=r"^the arm takes no commands: its brakes are on$"):
        at.safety.move((0.01, 0.0, 0.0), 0.0, PERIOD_S)
    assert at.safety.held == "the arm takes no commands: its brakes are on"


# -- joint targets ------------------------------------------------------------------------------


def test_a_joint_target_is_reached_and_the_set_point_with_it():
    at = At()
    target = at.safety.setpoint_rad + np.array([0.2, -0.1, 0.1, 0.05, 0.2, -0.2, 0.3])
    for _ in range(60):
        assert at.safety.move_joints(target, PERIOD_S, 0.3) is True
        at.clock.pass_s(PERIOD_S)
    np.testing.assert_allclose(at.arm.position_rad, target, atol=1e-6)
    np.testing.assert_allclose(at.safety.setpoint_rad, target, atol=1e-6)
    np.testing.assert_allclose(at.safety.setpoint_tool_m, at.tool(target), atol=1e-6)
    pose = at.safety.kinematics.forward(target)
    assert at.safety.yaw_rad == pytest.approx(math.atan2(pose[1, 0], pose[0, 0]), abs=1e-6)
    assert at.safety.counters == SafetyCounters(commands=60)


def test_joints_go_at_a_share_of_their_speed_and_stay_off_their_limits():
    speeds = {}
    for share in (0.1, 0.2, None):
        at = At()
        target = at.safety.setpoint_rad
        target[6] = 9.0
        for _ in range(12):
            at.safety.move_joints(target, PERIOD_S, *([share] if share else []))
            at.clock.pass_s(PERIOD_S)
        speeds[share] = at.arm.state(1.0).velocity_rad_s[6]
        if share == 0.1:
            assert speeds[share] == pytest.approx(0.1 * 0.9 * 2.61, rel=1e-4)
    assert speeds[0.2] == pytest.approx(2.0 * speeds[0.1], rel=1e-4) == speeds[None]
    for _ in range(400):
        at.safety.move_joints(target, PERIOD_S, 1.0)
        at.clock.pass_s(PERIOD_S)
    assert at.arm.position_rad[6] == pytest.approx(2.8973 - 0.02, abs=1e-6)


@pytest.mark.parametrize("robot", ["fr3", "panda", "sawyer"])
def test_however_slow_a_joint_target_is_gone_to_or_not(robot):
    at = At(robot=robot, velocity_fraction=0.5, max_speed_m_s=0.2)
    q = at.arm.position_rad
    for joint in range(7):
        for limit in ("lower_rad", "upper_rad"):
            at.arm.put(q)
            at.safety.sync(placed=True)
            target = q.copy()
            target[joint] = at.arm.spec.limits(limit)[joint]
            for speed in (1e-9, 1e-3, 0.01, 0.1):
                assert at.safety.move_joints(target, PERIOD_S, speed) in (True, False)
                at.clock.pass_s(PERIOD_S)


def test_a_target_behind_the_box_is_not_headed_for():
    at = At(box_min_m=(-0.1, -0.1, 0.1), box_max_m=(0.1, 0.1, 0.2))
    target = at.safety.setpoint_rad
    target[0] += 1.0
    assert at.safety.move_joints(target, PERIOD_S) is False
    at.clock.pass_s(1.0)
    assert np.abs(at.arm.position_rad - at.safety.setpoint_rad).max() < 1e-9
