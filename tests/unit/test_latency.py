"""The delayed arm: rows come late by whole periods, none gets lost, stops are late as well."""

from __future__ import annotations

import numpy as np
import pytest

from robot_rl.envs import factory
from robot_rl.envs.factory import make_env
from robot_rl.envs.latency import DelayedArm
from robot_rl.errors import InvalidInputError, LateCommandError, SafetyError
from robot_rl.interfaces import JointSetpoints
from robot_rl.safety import SafetyFilter


def rows(start: float, count: int = 5) -> np.ndarray:
    return np.repeat((start + np.arange(count, dtype=np.float64))[:, None], 7, 1)


def delayed(bench, latency_s: float):
    at = bench("panda", period_s=0.02)
    arm = DelayedArm(at.arm)
    arm.set_latency(latency_s)
    return at, arm


def filtered(bench, latency_s: float):
    """A filter that commands an arm over a slow line."""
    at = bench("panda")
    arm = DelayedArm(at.arm)
    arm.set_latency(latency_s)
    safety = SafetyFilter(arm, at.gripper, at.clock)
    safety.sync()
    at.safety = safety
    return at, arm


@pytest.mark.parametrize(("latency_s", "late"), [(0.0, 0), (0.009, 0), (0.02, 1), (0.05, 2),
                                                 (0.1, 5), (0.17, 8)])
def test_set_points_come_late_by_whole_periods(bench, latency_s, late):
    at, arm = delayed(bench, latency_s)
    here = at.arm.position_rad.copy()
    assert (arm.period_s, arm.lead_rows, arm.spec) == (0.02, 0, at.arm.spec)
    for k in range(4):
        assert arm.sent() == 5 * k
        given = JointSetpoints(rows(10.0 * k), 0.02, at=5 * k)
        assert arm.command(given) is given
        at.wait(0.1)
    at.wait(0.5)
    put_in = np.concatenate([rows(10.0 * k) for k in range(4)])
    expected = np.concatenate([np.repeat(here[None], late, axis=0), put_in])
    assert np.array_equal(at.arm.rows, expected)
    assert arm.sent() == 20


def test_what_is_in_the_line_counts_as_sent(bench):
    at, arm = delayed(bench, 0.1)
    arm.command(JointSetpoints(rows(10.0), 0.02))
    assert arm.sent() == 0
    at.wait(0.04)
    assert arm.sent() == 2
    with pytest.raises(LateCommandError):
        arm.command(JointSetpoints(rows(20.0), 0.02, at=1))
    arm.command(JointSetpoints(rows(20.0), 0.02, at=2))
    at.wait(0.5)
    assert np.array_equal(at.arm.rows[5:], np.concatenate([rows(10.0)[:2], rows(20.0)]))
    assert arm.sent() == 7


@pytest.mark.parametrize("pause_rows", [0, 1, 3, 5, 20])
def test_after_a_pause_the_line_is_filled_with_rest(bench, pause_rows):
    at, arm = delayed(bench, 0.06)
    arm.command(JointSetpoints(rows(10.0), 0.02))
    at.wait(0.1)
    assert arm.sent() == 5
    at.wait(0.02 * pause_rows)
    assert arm.sent() == 5
    before = len(at.arm.rows)
    arm.command(JointSetpoints(rows(20.0), 0.02, at=5))
    at.wait(0.5)
    sent = np.array(at.arm.rows)
    assert np.array_equal(sent[-5:], rows(20.0))
    # Three rows after the command, its first comes through; the arm rests until then.
    rest = sent[before:-5]
    assert len(rest) == 3 and (rest[max(0, 3 - pause_rows):] == 14.0).all()


def test_a_new_latency_forgets_what_was_on_its_way(bench):
    at, arm = delayed(bench, 0.1)
    arm.command(JointSetpoints(rows(10.0), 0.02))
    at.wait(0.04)
    at.arm.put(at.arm.position_rad)
    arm.set_latency(0.04)
    assert arm.sent() == 2
    here = at.arm.position_rad.copy()
    arm.command(JointSetpoints(rows(20.0), 0.02, at=2))
    count = len(at.arm.rows)
    at.wait(0.5)
    assert np.array_equal(at.arm.rows[count:], np.concatenate([[here] * 2, rows(20.0)]))


@pytest.mark.parametrize("latency_s", [-0.01, np.nan])
def test_a_negative_latency_is_refused(bench, latency_s):
    _, arm = delayed(bench, 0.0)
    with pytest.raises(ValueError, match=f"latency is {latency_s} s, should be >= 0"):
        arm.set_latency(latency_s)


def test_the_line_is_part_of_the_state(bench):
    at, arm = delayed(bench, 0.06)
    arm.command(JointSetpoints(rows(10.0), 0.02))
    at.wait(0.06)
    state, queue, sent = arm.get_state(), list(at.arm.queue), list(at.arm.rows)
    runs = []
    for _ in range(2):
        arm.command(JointSetpoints(rows(20.0), 0.02, at=3))
        at.wait(0.5)
        runs.append(np.array(at.arm.rows))
        arm.set_latency(0.5)
        arm.set_state(state)
        at.arm.queue, at.arm.rows = list(queue), list(sent)
        assert arm.sent() == 3
    assert np.array_equal(*runs)


def test_status_and_recovery_are_the_arms_own(bench):
    at, arm = delayed(bench, 0.06)
    at.arm.fault = "a reflex"
    assert arm.status() == at.arm.status() and not arm.status().ready
    arm.recover()
    assert at.arm.recovered == 1 and arm.status().ready
    assert np.array_equal(arm.state(1.0).position_rad, at.arm.position_rad)


@pytest.mark.parametrize("period_s", [0.05, 0.1])
def test_a_stop_is_late_by_no_more_than_the_line_and_nothing_old_comes_after_it(bench, period_s):
    at, _ = filtered(bench, 0.1)
    safety = at.safety
    for _ in range(8):
        at.step([0.01, 0.0, 0.0], 0.0, period_s)
    assert np.abs(at.arm.velocity_rad_s).max() > 0.05
    safety.hold("stop")
    at.wait(0.1 + 0.2)
    rest = at.arm.position_rad.copy()
    assert not at.arm.queue and np.abs(at.arm.velocity_rad_s).max() < 1e-3
    safety.rearm()
    for _ in range(8):
        at.step(np.zeros(3), 0.0, period_s)
    assert np.abs(np.array(at.arm.rows[-16:]) - rest).max() < 0.02, "nothing from before the stop"


def test_an_arm_that_was_moved_by_hand_while_held_stays_there(bench):
    at, _ = filtered(bench, 0.1)
    safety = at.safety
    at.step([0.02, 0.0, 0.0])
    safety.hold("guided by hand")
    at.wait(0.5)
    at.arm.put(safety.posture((0.1, 0.1, 0.2)))
    safety.rearm()
    count = len(at.arm.rows)
    for _ in range(8):
        at.step(np.zeros(3))
    np.testing.assert_allclose(at.tool(), [0.1, 0.1, 0.2], atol=2e-3)
    # The line holds rest where the arm was before: the arm is not called back to it.
    for q in at.arm.rows[count:]:
        np.testing.assert_allclose(at.tool(q), [0.1, 0.1, 0.2], atol=2e-3)


def test_a_silent_commander_is_noticed_over_a_slow_line_too(bench):
    at, _ = filtered(bench, 0.1)
    at.step([0.02, 0.0, 0.0])
    at.wait(0.06)
    at.safety.watch()
    assert at.safety.held == "no command for 0.16 s"
    with pytest.raises(SafetyError, match="no command"):
        at.step(np.zeros(3))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_delay_that_is_drawn_anew_in_mid_motion_makes_no_step(seed):
    pytest.importorskip("mujoco")

    env = make_env("Reach", "panda", resets="arm", randomization={"latency_s": 0.2})
    inner, sent = env.rig.arm._arm, []
    command = inner.command

    def noted(setpoints):
        del sent[setpoints.at:]
        while len(sent) < setpoints.at:
            sent.append(sent[-1])
        sent.extend(setpoints.position_rad)
        return command(setpoints)

    inner.command = noted
    try:
        env.reset(seed=seed)
        for _ in range(3):
            for _ in range(4):
                env.step(np.ones(3))
            env.reset()
    finally:
        env.close()
    limits = inner.spec.limits("velocity_rad_s")
    step = np.abs(np.diff(np.array(sent), axis=0)) / inner.period_s
    assert (step <= 1.001 * limits).all()
    change = np.abs(np.diff(step, axis=0)) / inner.period_s
    assert (change <= 1.01 * inner.spec.limits("acceleration_rad_s2")).all()


def test_hardware_has_its_own_delay(monkeypatch):
    pytest.importorskip("mujoco")

    make_rig = factory.make_rig

    def hardware(backend, request):
        rig = make_rig(backend, request)
        rig.address = "nowhere"
        return rig

    monkeypatch.setattr(factory, "make_rig", hardware)
    with pytest.raises(InvalidInputError, match=r"latency_s is 0.1, should be 0 on hardware"):
        make_env("Reach", "panda", randomization={"latency_s": 0.1})
