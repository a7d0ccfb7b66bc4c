"""The delayed arm: set-points come late by whole periods, and none gets lost."""

from __future__ import annotations

import numpy as np
import pytest

from robot_rl.envs.latency import DelayedArm
from robot_rl.interfaces import JointSetpoints
from robot_rl.safety import SafetyFilter


def rows(start: float, count: int = 5) -> np.ndarray:
    return np.repeat((start + np.arange(count, dtype=np.float64))[:, None], 7, 1)


def delayed(bench, latency_s: float):
    at = bench()
    at.arm.stuck = True
    arm = DelayedArm(at.arm)
    arm.set_latency(latency_s)
    return at.arm, arm


@pytest.mark.parametrize(("latency_s", "late"), [(0.0, 0), (0.009, 0), (0.02, 1), (0.05, 2),
                                                 (0.1, 5), (0.17, 8)])
def test_set_points_come_late_by_whole_periods(bench, latency_s, late):
    real, arm = delayed(bench, latency_s)
    for k in range(4):
        arm.command(JointSetpoints(rows(10.0 * k), 0.02))
    out = np.concatenate([sent.position_rad for sent in real.sent])
    put_in = np.concatenate([rows(10.0 * k) for k in range(4)])
    still = np.repeat(real.position_rad[None], late, axis=0)
    assert np.array_equal(out, np.concatenate([still, put_in])[: len(put_in)])
    assert all(sent.period_s == 0.02 for sent in real.sent)


def test_a_new_latency_forgets_what_was_on_its_way(bench):
    real, arm = delayed(bench, 0.1)
    arm.command(JointSetpoints(rows(10.0), 0.02))
    arm.set_latency(0.1)
    arm.command(JointSetpoints(rows(20.0), 0.02))
    assert np.array_equal(real.sent[-1].position_rad, np.repeat(real.position_rad[None], 5, 0))


@pytest.mark.parametrize("latency_s", [-0.01, np.nan])
def test_a_negative_latency_is_refused(bench, latency_s):
    _, arm = delayed(bench, 0.0)
    with pytest.raises(ValueError, match=f"latency is {latency_s} s, should be >= 0"):
        arm.set_latency(latency_s)


def test_the_line_is_part_of_the_state(bench):
    _, arm = delayed(bench, 0.06)
    arm.command(JointSetpoints(rows(10.0), 0.02))
    state = arm.get_state()
    first = arm.command(JointSetpoints(rows(20.0), 0.02)).position_rad
    arm.command(JointSetpoints(rows(30.0), 0.02))
    arm.set_state(state)
    assert np.array_equal(arm.command(JointSetpoints(rows(20.0), 0.02)).position_rad, first)


@pytest.mark.parametrize("period_s", [0.05, 0.1])
def test_a_stop_does_not_wait_and_nothing_old_comes_after_it(bench, period_s):
    at = bench("panda")
    arm = DelayedArm(at.arm)
    arm.set_latency(0.1)
    safety = SafetyFilter(arm, at.gripper, at.clock)
    safety.sync()
    for _ in range(3):
        safety.move([0.02, 0.0, 0.0], 0.0, period_s)
    here = at.arm.position_rad.copy()
    safety.hold("stop")
    assert np.array_equal(at.arm.position_rad, here)
    at.arm.sent.clear()
    safety.rearm()
    for _ in range(8):
        safety.move(np.zeros(3), 0.0, period_s)
    moved = np.abs(np.concatenate([s.position_rad for s in at.arm.sent]) - here).max()
    assert moved < 0.02, "set-points from before the stop reached the arm"


def test_an_arm_that_was_moved_by_hand_while_held_stays_there(bench):
    at = bench("panda")
    arm = DelayedArm(at.arm)
    arm.set_latency(0.1)
    safety = SafetyFilter(arm, at.gripper, at.clock)
    safety.sync()
    safety.move([0.02, 0.0, 0.0], 0.0, 0.1)
    safety.hold("guided by hand")
    at.arm.position_rad = safety.posture((0.1, 0.1, 0.2))
    at.arm.sent.clear()
    safety.rearm()
    for _ in range(8):
        safety.measure()
        safety.move(np.zeros(3), 0.0, 0.1)
    np.testing.assert_allclose(at.tool(), [0.1, 0.1, 0.2], atol=2e-3)
    for sent in at.arm.sent:
        for q in sent.position_rad:
            np.testing.assert_allclose(at.tool(q), [0.1, 0.1, 0.2], atol=2e-3)
