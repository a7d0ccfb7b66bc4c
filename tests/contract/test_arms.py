"""One suite for every arm: what :class:`robot_rl.interfaces.Arm` promises."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from robot_rl.errors import InvalidInputError, LateCommandError, SafetyError, StaleDataError
from robot_rl.interfaces import Arm, Array, JointSetpoints

ENGINES = tuple(f"{engine}-{robot}" for engine in ("mujoco", "pybullet")
                for robot in ("sawyer", "panda", "fr3"))
DRIVERS = ("ros1-sawyer", "ros2-fr3", "franky-fr3")
EVERY = pytest.mark.parametrize("bench", (*ENGINES, *DRIVERS), indirect=True)
FALLIBLE = pytest.mark.parametrize("bench", DRIVERS, indirect=True)

SECONDS = 0.4


def motion(bench: Any, by_rad: float = 0.04, seconds: float = SECONDS) -> JointSetpoints:
    """A minimum-jerk motion of every joint, at the arm's next row: away from home, or back."""
    arm = bench.rig.arm
    here, home = arm.state(1.0).position_rad, np.array(arm.spec.home_rad)
    turn = home + by_rad * np.array([1.0, -0.7, -1.0, 0.7, 1.0, -0.7, -1.0]) - here
    if np.abs(turn).max() < 0.5 * by_rad:
        turn = home - here
    count = round(seconds / arm.period_s)
    s = (np.arange(1, count + 1) / count)[:, None]
    return JointSetpoints(
        here + turn * (10 * s**3 - 15 * s**4 + 6 * s**5),
        arm.period_s,
        turn * (30 * s**2 - 60 * s**3 + 30 * s**4) / seconds,
        turn * (60 * s - 180 * s**2 + 120 * s**3) / seconds**2,
        at=arm.sent(),
    )


def braking(start: JointSetpoints, row: int, count: int, at: int) -> JointSetpoints:
    """From row ``row`` of a motion on: to rest in ``count`` rows."""
    assert start.velocity_rad_s is not None
    t = np.arange(1, count + 1)[:, None] * start.period_s
    span = count * start.period_s
    place, speed = start.position_rad[row], start.velocity_rad_s[row]
    return JointSetpoints(place + speed * (t - t * t / (2.0 * span)), start.period_s,
                          speed * (1.0 - t / span), at=at)


def there(bench: Any, target_rad: Array) -> bool:
    """Whether the arm is measured to be where the last row is."""
    return bool(np.abs(bench.rig.arm.state(1.0).position_rad - target_rad).max() < 0.01)


def done(bench: Any, sent: int) -> None:
    bench.until(lambda: bench.rig.arm.sent() >= sent, f"row {sent}")


@EVERY
def test_a_state_has_shapes_units_and_a_stamp(bench):
    arm = bench.rig.arm
    assert isinstance(arm, Arm)
    n = len(arm.spec.joints)
    assert 0.0 < arm.period_s <= 0.05 and arm.lead_rows >= 0
    state = arm.state(0.5)
    for values in (state.position_rad, state.velocity_rad_s):
        assert values.shape == (n,) and values.dtype == np.float64 and np.isfinite(values).all()
    assert (state.position_rad > arm.spec.limits("lower_rad") - 0.1).all()
    assert (state.position_rad < arm.spec.limits("upper_rad") + 0.1).all()
    assert state.effort_nm is None or state.effort_nm.shape == (n,)
    # Nobody moves it; the stamps are of the rig's clock, and go on.
    assert np.abs(state.velocity_rad_s).max() < 0.05
    assert 0.0 <= bench.rig.clock.now_s() - state.stamp_s <= 0.5
    bench.until(lambda: arm.state(0.5).stamp_s > state.stamp_s, "a newer state")


@EVERY
def test_a_state_that_is_too_old_is_refused(bench):
    for age in (-1.0, -1e-9, float("nan")):
        with pytest.raises(StaleDataError):
            bench.rig.arm.state(age)
    assert bench.rig.arm.state(float("inf")).position_rad.size


@EVERY
def test_what_is_returned_is_the_callers_own(bench):
    arm = bench.rig.arm
    before = arm.state(1.0)
    kept = before.position_rad.copy()
    before.position_rad += 1.0
    before.velocity_rad_s += 1.0
    np.testing.assert_allclose(arm.state(1.0).position_rad, kept, atol=0.01)
    wanted = motion(bench)
    given = JointSetpoints(wanted.position_rad.copy(), wanted.period_s,
                           wanted.velocity_rad_s.copy(), wanted.acceleration_rad_s2.copy(),
                           wanted.at)
    taken = arm.command(given)
    np.testing.assert_array_equal(taken.position_rad, wanted.position_rad)
    assert (taken.period_s, taken.at) == (wanted.period_s, wanted.at)
    given.position_rad[:] = 9.0
    taken.position_rad[:] = -9.0
    done(bench, wanted.at + len(wanted.position_rad))
    bench.until(lambda: there(bench, wanted.position_rad[-1]), "the end")
    np.testing.assert_array_equal(bench.rows, wanted.position_rad)


@EVERY
def test_rows_are_sent_once_each_in_order_and_counted(bench):
    arm = bench.rig.arm
    first = arm.sent()
    bench.wait(5 * arm.period_s)
    assert arm.sent() == first, "nothing was to be sent"
    wanted = motion(bench)
    arm.command(wanted)
    counts = []
    while (sent := arm.sent()) < first + len(wanted.position_rad):
        counts.append(sent)
        bench.wait(arm.period_s)
    assert counts == sorted(counts) and counts[0] <= first + 1
    bench.wait(10 * arm.period_s)
    assert arm.sent() == first + len(wanted.position_rad)
    np.testing.assert_array_equal(bench.rows, wanted.position_rad)


@EVERY
def test_after_the_last_row_the_arm_stays_there(bench):
    arm = bench.rig.arm
    wanted = motion(bench)
    arm.command(wanted)
    done(bench, wanted.at + len(wanted.position_rad))
    bench.until(lambda: there(bench, wanted.position_rad[-1]), "the end")
    for _ in range(5):
        bench.wait(0.06)
        assert there(bench, wanted.position_rad[-1])
    assert np.abs(arm.state(1.0).velocity_rad_s).max() < 0.05
    assert arm.sent() == wanted.at + len(wanted.position_rad) and arm.status().ready


@EVERY
def test_a_command_takes_over_at_its_row(bench):
    arm = bench.rig.arm
    wanted = motion(bench, seconds=0.8)
    arm.command(wanted)
    done(bench, wanted.at + 5)
    # Far ahead, so that the rows between show that they still go out.
    row = arm.sent() - wanted.at + arm.lead_rows + round(0.1 / arm.period_s)
    stop = braking(wanted, row - 1, round(0.3 / arm.period_s), wanted.at + row)
    arm.command(stop)
    done(bench, stop.at + len(stop.position_rad))
    bench.wait(5 * arm.period_s)
    assert arm.sent() == stop.at + len(stop.position_rad)
    np.testing.assert_array_equal(
        bench.rows, np.concatenate([wanted.position_rad[:row], stop.position_rad])
    )


@EVERY
def test_a_command_for_a_row_that_was_sent_changes_nothing(bench):
    arm = bench.rig.arm
    wanted = motion(bench)
    arm.command(wanted)
    done(bench, wanted.at + 5)
    for at in (wanted.at, wanted.at + 2):
        late = braking(wanted, at - wanted.at, 20, at)
        with pytest.raises(LateCommandError):
            arm.command(late)
    done(bench, wanted.at + len(wanted.position_rad))
    bench.wait(5 * arm.period_s)
    np.testing.assert_array_equal(bench.rows, wanted.position_rad)
    assert arm.status().ready


@EVERY
def test_what_makes_no_sense_is_refused_and_changes_nothing(bench):
    arm = bench.rig.arm
    n = len(arm.spec.joints)
    sent = arm.sent()
    here = arm.state(1.0).position_rad
    rows = np.repeat(here[None], 3, 0)
    for place, value in (((1, 2), np.nan), ((2, 0), np.inf), ((0, n - 1), -np.inf)):
        bad = rows.copy()
        bad[place] = value
        with pytest.raises((InvalidInputError, SafetyError)):
            arm.command(JointSetpoints(bad, arm.period_s, at=sent))
    for shape in (rows[0], rows[:, :-1], rows[:0], np.zeros((1, n + 1)), rows[None]):
        with pytest.raises((InvalidInputError, SafetyError)):
            arm.command(JointSetpoints(shape, arm.period_s, at=sent))
    for period in (0.0, -arm.period_s, 2.0 * arm.period_s, np.nan, np.inf):
        with pytest.raises((InvalidInputError, SafetyError)):
            arm.command(JointSetpoints(rows, period, at=sent))
    bench.wait(5 * arm.period_s)
    assert arm.sent() == sent and not bench.rows and arm.status().ready


@EVERY
def test_a_ready_arm_says_so_and_recovering_it_does_not_move_it(bench):
    arm = bench.rig.arm
    status = arm.status()
    assert status.ready and status.fault is None
    before, sent = arm.state(1.0).position_rad, arm.sent()
    arm.recover()
    assert arm.status().ready and arm.sent() == sent
    bench.wait(0.1)
    np.testing.assert_allclose(arm.state(1.0).position_rad, before, atol=0.01)
    wanted = motion(bench)
    arm.command(wanted)
    done(bench, wanted.at + len(wanted.position_rad))
    bench.until(lambda: there(bench, wanted.position_rad[-1]), "the end")


@FALLIBLE
def test_a_fault_stays_until_somebody_recovers_the_arm(bench):
    arm = bench.rig.arm
    wanted = motion(bench, by_rad=0.08, seconds=1.5)
    arm.command(wanted)
    done(bench, wanted.at + 10)
    bench.fail()
    bench.until(lambda: not arm.status().ready, "the fault")
    why = arm.status().fault
    assert why and "\n" not in why
    bench.wait(0.1)
    stopped = arm.sent()
    assert stopped < wanted.at + len(wanted.position_rad), "the rest is dropped"
    bench.mend()
    # Neither time nor looking nor commanding clears it.
    for _ in range(20):
        bench.wait(0.02)
        assert not arm.status().ready
        with pytest.raises(SafetyError):
            arm.command(JointSetpoints(arm.state(1.0).position_rad[None], arm.period_s,
                                       at=arm.sent()))
    assert arm.sent() == stopped
    arm.recover()
    assert arm.status().ready and arm.status().fault is None
    # Rows are counted over the arm's whole life.
    assert arm.sent() == stopped
    bench.until(lambda: np.abs(arm.state(1.0).velocity_rad_s).max() < 0.02, "rest")
    bench.rows.clear()
    again = motion(bench)
    arm.command(again)
    done(bench, again.at + len(again.position_rad))
    bench.until(lambda: there(bench, again.position_rad[-1]), "the end")
    np.testing.assert_array_equal(bench.rows, again.position_rad)


@FALLIBLE
def test_an_arm_that_is_still_stopped_cannot_be_recovered(bench):
    if bench.name.startswith("franky"):
        pytest.skip("its stand-in has no stop button")
    arm = bench.rig.arm
    bench.fail()
    bench.until(lambda: not arm.status().ready, "the fault")
    with pytest.raises(SafetyError):
        arm.recover()
    assert not arm.status().ready
