"""The safety filter's settings, and its joint targets."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from robot_rl.errors import InvalidInputError, SafetyError
from robot_rl.safety import SafetyConfig

ROBOTS = ("fr3", "panda", "sawyer")
PERIOD_S = 0.1

# -- configuration ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"box_min_m": (0.3, 0, 0)}, r"max .* should be 0.01 m or more above min \[0.3"),
        ({"box_max_m": (0.25, 0.3, 0.0219)}, "0.01 m or more above"),
        ({"box_max_m": (0.1, 0.1)}, "3 finite numbers each"),
        ({"box_max_m": (np.nan, 0.1, 0.1)}, "3 finite numbers each"),
        ({"box_min_m": (-np.inf, 0, 0)}, "3 finite numbers each"),
        ({"max_speed_m_s": 0.0}, r"max_speed_m_s is 0.0, should be in \(0.0, 1.7\]"),
        ({"max_speed_m_s": np.nan}, "max_speed_m_s is nan"),
        ({"max_yaw_rate_rad_s": 9.0}, r"max_yaw_rate_rad_s is 9.0, should be in \(0.0, 2.5\]"),
        ({"velocity_fraction": 1.01}, "velocity_fraction is 1.01"),
        ({"leash_m": -0.1}, "leash_m is -0.1"),
        ({"max_state_age_s": np.inf}, "max_state_age_s is inf"),
        ({"joint_margin_rad": -1e-9}, "joint_margin_rad is -1e-09"),
        ({"joint_margin_rad": np.nan}, "joint_margin_rad is nan"),
        ({"joint_margin_rad": 0.51}, r"joint_margin_rad is 0.51, should be in \[0, 0.5\]"),
        ({"acceleration_fraction": 0.0}, r"acceleration_fraction is 0.0, should be in \(0.0, 1"),
        ({"jerk_fraction": 1.1}, "jerk_fraction is 1.1"),
        ({"torque_fraction": 1.1}, "torque_fraction is 1.1"),
        ({"ramp_s": 0.51}, r"ramp_s is 0.51, should be in \(0.0, 0.5\]"),
        ({"max_tilt_rad": 1.1}, r"max_tilt_rad is 1.1, should be in \(0.0, 1.0\]"),
        ({"max_yaw_rad": 3.2}, "max_yaw_rad is 3.2"),
        ({"silence_s": 0.09}, r"silence_s is 0.09, should be in \(0.0, 0.08\]"),
        ({"max_state_age_s": 1.1}, "max_state_age_s is 1.1"),
        ({"leash_m": 0.21}, "leash_m is 0.21"),
        ({"max_force_n": 0.0}, r"max_force_n is 0.0, should be in \(0.0, 200.0\] or None"),
        ({"max_force_n": 201.0}, "max_force_n is 201"),
        ({"max_force_n": np.nan}, "max_force_n is nan"),
    ],
)
def test_limits_out_of_range_are_named(change, message):
    with pytest.raises(InvalidInputError, match=message):
        SafetyConfig(**change)


@pytest.mark.parametrize("change", [
    {"box_max_m": (0.25, 0.3, 0.0221)}, {"max_speed_m_s": 1.7}, {"max_yaw_rate_rad_s": 2.5},
    {"max_tilt_rad": 1.0}, {"max_yaw_rad": np.pi}, {"velocity_fraction": 1.0},
    {"acceleration_fraction": 1.0}, {"jerk_fraction": 1.0}, {"torque_fraction": 1.0},
    {"ramp_s": 0.5}, {"leash_m": 0.2}, {"max_state_age_s": 1.0}, {"silence_s": 0.08},
    {"joint_margin_rad": 0.0}, {"joint_margin_rad": 0.5}, {"max_force_n": 200.0},
    {"max_force_n": None},
])
def test_the_ends_of_each_range_can_be_asked_for(change):
    config = SafetyConfig(**change)
    assert {name: getattr(config, name) for name in change} == change


def test_the_state_of_the_filter_goes_on_exactly_in_mid_motion(bench):
    at, rng = bench(), np.random.default_rng(3)
    for _ in range(5):
        at.step(rng.uniform(-0.03, 0.03, 3), rng.uniform(-0.1, 0.1))
    saved = at.safety.get_state()
    arm = (at.arm.position_rad.copy(), at.arm.velocity_rad_s.copy(), list(at.arm.rows),
           list(at.arm.queue), at.clock.time_s)
    assert np.abs(arm[1]).max() > 0.01
    moves = [(rng.uniform(-0.03, 0.03, 3), rng.uniform(-0.1, 0.1)) for _ in range(5)]
    runs = []
    for _ in range(2):
        done = [at.step(*move) for move in moves]
        runs.append((done, np.array(at.arm.rows), dataclasses.replace(at.safety.counters)))
        at.safety.counters.violate("afterwards")
        at.safety.set_state(saved)
        at.arm.position_rad, at.arm.velocity_rad_s = arm[0].copy(), arm[1].copy()
        at.arm.rows, at.arm.queue = list(arm[2]), list(arm[3])
        at.clock.time_s = at.arm.now_s = arm[4]
    (first, rows, counters), (again, same_rows, same_counters) = runs
    for one, two in zip(first, again, strict=True):
        assert np.array_equal(one.delta_m, two.delta_m) and one.yaw_rad == two.yaw_rad
    assert np.array_equal(rows, same_rows) and counters == same_counters
    assert at.safety.counters == saved["counters"]


# -- joint targets ------------------------------------------------------------------------------


@pytest.mark.parametrize("robot", ROBOTS)
def test_joint_targets_are_reached_within_the_limits(bench, robot):
    at = bench(robot, tool_m=(-0.1, -0.15, 0.15))
    start = at.arm.position_rad.copy()
    target = at.safety.posture((0.1, 0.15, 0.25))
    fastest = 0.2 * 0.9 * at.arm.spec.limits("velocity_rad_s")
    for _ in range(300):
        assert at.safety.move_joints(target, PERIOD_S)
        at.wait(PERIOD_S)
        at.safety.measure()
        assert (np.abs(at.arm.velocity_rad_s) <= fastest).all()
        if np.abs(at.arm.position_rad - target).max() < 1e-6:
            break
    else:
        raise AssertionError("it never arrived")
    np.testing.assert_allclose(at.tool(), [0.1, 0.15, 0.25], atol=1e-3)
    np.testing.assert_allclose(at.safety.setpoint_tool_m, at.tool(), atol=1e-5)
    at.safety.rest()
    at.wait(0.3)
    np.testing.assert_allclose(at.arm.position_rad, target, atol=1e-9)
    rows = np.array([start, *at.arm.rows])
    tools = np.array([at.tool(q) for q in rows])
    config = at.safety.config
    assert (tools >= config.box_min_m).all() and (tools <= config.box_max_m).all()


def test_a_faster_joint_motion_is_faster_and_a_shorter_command_brakes(bench):
    times = []
    for speed in (0.1, 0.4):
        at = bench("panda", tool_m=(-0.1, -0.15, 0.15))
        target = at.safety.posture((0.1, 0.15, 0.25))
        steps = 0
        while np.abs(at.arm.position_rad - target).max() > 1e-3:
            at.safety.move_joints(target, PERIOD_S, speed)
            at.wait(PERIOD_S)
            steps += 1
        times.append(steps)
    assert 2.5 < times[0] / times[1] < 4.5
    at = bench("panda", tool_m=(-0.1, -0.15, 0.15))
    at.safety.move_joints(target, PERIOD_S, 0.1)
    at.safety.rest()
    at.wait(2.0)
    assert not at.arm.queue and np.abs(at.arm.position_rad - target).max() > 0.2
    np.testing.assert_array_equal(at.safety.setpoint_rad, at.arm.position_rad)


def test_a_joint_target_beyond_the_limits_ends_at_the_margin(bench):
    at = bench("panda", config=SafetyConfig(joint_margin_rad=0.1))
    target = at.arm.position_rad.copy()
    target[6] = 3.5
    for _ in range(200):
        at.safety.move_joints(target, PERIOD_S, 0.5)
        at.wait(PERIOD_S)
    assert at.arm.position_rad[6] == pytest.approx(at.arm.spec.joints[6].upper_rad - 0.1, abs=1e-9)


def test_a_joint_target_out_of_the_box_is_not_gone_to(bench):
    outside = bench("panda", tool_m=(0.2, 0.0, 0.15)).arm.position_rad
    at = bench("panda", tool_m=(-0.05, 0.0, 0.15), config=SafetyConfig(
        box_min_m=(-0.1, -0.1, 0.05), box_max_m=(0.0, 0.1, 0.25)))
    here = at.arm.position_rad.copy()
    assert at.safety.move_joints(outside, PERIOD_S) is False
    at.wait(PERIOD_S)
    np.testing.assert_array_equal(at.arm.position_rad, here)
    at.put(outside)
    inside = at.safety.posture((-0.05, 0.0, 0.15))
    for _ in range(100):
        assert at.safety.move_joints(inside, PERIOD_S), "the way back is open"
        at.wait(PERIOD_S)
    np.testing.assert_allclose(at.arm.position_rad, inside, atol=1e-6)


def test_joint_motions_may_lean_the_tool_and_tool_motions_set_it_upright(bench):
    at = bench("panda")
    target = at.arm.position_rad.copy()
    target[5] += 0.4
    for _ in range(60):
        assert at.safety.move_joints(target, PERIOD_S)
        at.wait(PERIOD_S)
    np.testing.assert_allclose(at.arm.position_rad, target, atol=1e-6)
    for _ in range(40):
        at.step(np.zeros(3))
    assert at.safety.kinematics.forward(at.arm.position_rad)[2, 2] < -0.999


@pytest.mark.parametrize(
    ("target", "duration", "speed", "message"),
    [
        ([0.0] * 6, 0.1, 0.2, r"joint target has shape \(6,\), should be \(7,\)"),
        ([np.nan] * 7, 0.1, 0.2, "joint target is .*nan.*, should be finite"),
        (None, 0.1, 0.2, "joint target is None"),
        ([0.0] * 7, 0.0, 0.2, "duration is 0.0 s, should be positive"),
        ([0.0] * 7, 0.51, 0.2, "duration is 0.51 s"),
        ([0.0] * 7, 0.1, 0.0, r"speed is 0.0, should be in \(0, 1\]"),
        ([0.0] * 7, 0.1, 1.01, "speed is 1.01"),
        ([0.0] * 7, 0.1, np.nan, "speed is nan, should be finite"),
    ],
)
def test_what_is_no_joint_command_is_refused(bench, target, duration, speed, message):
    at = bench()
    with pytest.raises(SafetyError, match="command refused: " + message):
        at.safety.move_joints(target, duration, speed)
    assert at.arm.commands == [] and at.safety.counters.refused == 1
    assert at.safety.counters.commands == 0
