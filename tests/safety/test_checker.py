"""The checker of sent rows finds what is over a limit by a little, and nothing else; and the
recording arm keeps the contract of arms."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks.storm.arm import ManualClock, RecordingArm
from benchmarks.storm.checker import (
    MAKERS,
    Findings,
    Limits,
    StreamChecker,
    check_rows,
    tool_points,
)
from robot_rl.errors import LateCommandError, SafetyError, StaleDataError
from robot_rl.interfaces import Arm, JointSetpoints
from robot_rl.kinematics import Kinematics
from robot_rl.specs import load_robot

ROBOTS = ("fr3", "panda", "sawyer")
WIDE = {"box_min_m": (-9.0,) * 3, "box_max_m": (9.0,) * 3}
PERIOD_S = 0.001


def found(robot: str, rows, period_s: float = PERIOD_S, **limits) -> dict[str, int]:
    """What a checker says of rows in the middle of a motion."""
    checker = StreamChecker(load_robot(robot), period_s,
                            Limits(MAKERS[robot], **{**WIDE, **limits}))
    checker.feed(np.asarray(rows, np.float64))
    return checker.flush().violations


def joints_of(robot: str) -> list[tuple[str, int]]:
    return [(robot, joint) for joint in range(len(MAKERS[robot].lower))]


EVERY_JOINT = [case for robot in ROBOTS for case in joints_of(robot)]


def middle(robot: str) -> np.ndarray:
    return 0.5 * (np.array(MAKERS[robot].lower) + np.array(MAKERS[robot].upper))


def moved(robot: str, joint: int, angles) -> np.ndarray:
    """Rows whose ``joint`` runs through ``angles`` about the middle of its range."""
    rows = np.repeat(middle(robot)[None], len(angles), axis=0)
    rows[:, joint] += angles
    return rows


@pytest.mark.parametrize("robot", ROBOTS)
def test_the_tables_are_those_of_the_arms(robot):
    spec, maker = load_robot(robot), MAKERS[robot]
    for name, column in (("lower_rad", maker.lower), ("upper_rad", maker.upper),
                         ("velocity_rad_s", maker.velocity),
                         ("acceleration_rad_s2", maker.acceleration)):
        assert spec.limits(name).tolist() == list(column), name
    for name, given in (("jerk_rad_s3", maker.jerk),
                        ("velocity_envelope_offset", maker.envelope_offset),
                        ("velocity_envelope_deceleration", maker.envelope_deceleration)):
        of_spec = [getattr(joint, name) for joint in spec.joints]
        assert of_spec == (list(given) if given else [None] * len(of_spec)), name


@pytest.mark.parametrize("robot", ROBOTS)
def test_the_chain_of_quaternions_agrees_with_the_matrices(robot):
    spec, rng = load_robot(robot), np.random.default_rng(0)
    rows = rng.uniform(-3.0, 3.0, (50, len(spec.joints)))
    points, axes = tool_points(spec, rows)
    kinematics = Kinematics(spec)
    for row, point, axis in zip(rows, points, axes, strict=True):
        pose = kinematics.forward(row)
        np.testing.assert_allclose(point, pose[:3, 3] - spec.workspace_origin_m, atol=1e-9)
        np.testing.assert_allclose(axis, pose[:3, 2], atol=1e-9)


@pytest.mark.parametrize(("robot", "joint"), EVERY_JOINT)
def test_each_position_limit(robot, joint):
    row = middle(robot)
    for limit, outwards in ((MAKERS[robot].lower[joint], -1), (MAKERS[robot].upper[joint], 1)):
        row[joint] = limit
        assert found(robot, [row]) == {}
        row[joint] = limit + outwards * 1e-5
        assert found(robot, [row, row]) == {"position": 2}


@pytest.mark.parametrize(("robot", "joint"), EVERY_JOINT)
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_each_velocity_limit(robot, joint, sign):
    limit = sign * MAKERS[robot].velocity[joint]
    steps = np.arange(-3, 1) * PERIOD_S
    assert found(robot, moved(robot, joint, 0.9999 * limit * steps)) == {}
    assert found(robot, moved(robot, joint, 1.001 * limit * steps)) == {"velocity": 3}
    assert found(robot, moved(robot, joint, 0.501 * limit * steps), share=0.5) == {"velocity": 3}


@pytest.mark.parametrize("joint", range(7))
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_the_envelope_of_the_fr3_shrinks_towards_the_limit(joint, sign):
    maker = MAKERS["fr3"]
    left = 1.5 * (maker.envelope_offset[joint] + 0.4) ** 2 / 2 / maker.envelope_deceleration[joint]
    limit = math.sqrt(2 * maker.envelope_deceleration[joint] * left) - maker.envelope_offset[joint]
    assert limit < maker.velocity[joint]
    row = middle("fr3")
    row[joint] = maker.upper[joint] - left if sign > 0 else maker.lower[joint] + left

    def rows(velocity):
        # The last of them is at `left`, where the envelope is lowest.
        angles = np.repeat(row[None], 3, axis=0)
        angles[:, joint] += np.arange(-2, 1) * PERIOD_S * velocity
        return angles

    assert found("fr3", rows(sign * 0.999 * limit)) == {}
    assert "velocity" in found("fr3", rows(sign * 1.01 * limit))
    assert found("fr3", rows(-sign * 1.2 * limit)) == {}, "away from the limit it is free"


@pytest.mark.parametrize(("robot", "joint"), EVERY_JOINT)
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_each_acceleration_limit(robot, joint, sign):
    limit = sign * MAKERS[robot].acceleration[joint]
    half_squares = 0.5 * (np.arange(4) * PERIOD_S) ** 2
    assert found(robot, moved(robot, joint, 0.9999 * limit * half_squares)) == {}
    assert found(robot, moved(robot, joint, 1.001 * limit * half_squares)) == {"acceleration": 2}


@pytest.mark.parametrize(("robot", "joint"), EVERY_JOINT)
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_each_jerk_limit(robot, joint, sign):
    # Over four rows the acceleration goes from minus to plus half a period's worth: within limits.
    limit = sign * MAKERS[robot].jerk[joint]
    cubes = (np.arange(4) * PERIOD_S - 1.5 * PERIOD_S) ** 3 / 6.0
    assert found(robot, moved(robot, joint, 0.9999 * limit * cubes)) == {}
    assert found(robot, moved(robot, joint, 1.001 * limit * cubes)) == {"jerk": 1}


@pytest.mark.parametrize("robot", ROBOTS)
@pytest.mark.parametrize("axis", range(3))
def test_each_face_of_the_box(robot, axis):
    row = np.array(load_robot(robot).home_rad)
    (point,), _ = tool_points(load_robot(robot), row[None])
    for name, face, outwards in (("box_min_m", point[axis], 1.0), ("box_max_m", point[axis], -1.0)):
        box = list(WIDE[name])
        box[axis] = face
        assert found(robot, [row], **{name: tuple(box)}) == {}
        box[axis] = face + outwards * 1e-4
        assert found(robot, [row], **{name: tuple(box)}) == {"box": 1}


def test_a_tool_that_was_pushed_out_of_the_box_may_come_back_but_not_leave_again():
    spec = load_robot("panda")
    line = np.linspace(0.0, 0.3, 400)
    rows = np.repeat(np.array(spec.home_rad)[None], 400, axis=0)
    rows[:, 0] += line
    points, _ = tool_points(spec, rows)
    y = points[:, 1]
    assert (np.diff(y) > 0).all()
    limits = Limits(MAKERS["panda"], (-9.0, y[150], -9.0), (9.0,) * 3)
    inwards = check_rows(spec, 0.1, limits, rows)
    assert "box" not in inwards.violations
    checker = StreamChecker(spec, 0.1, limits)
    checker.restart(rows[0])
    for part in (rows[1:], rows[::-1]):
        checker.feed(part)
        seen = dict(checker.flush().violations)
    assert seen["box"] == 150 and "box" not in inwards.violations
    outwards = StreamChecker(spec, 0.1, limits)
    outwards.restart(rows[100])
    outwards.feed(rows[100::-1])
    assert outwards.flush().violations["box"] == 100


def test_the_tools_speed():
    spec = load_robot("sawyer")
    angles = np.arange(4) * PERIOD_S * 0.5
    rows = np.repeat(np.array(spec.home_rad)[None], 4, axis=0)
    rows[:, 0] += angles
    points, _ = tool_points(spec, rows)
    speed = float(np.linalg.norm(points[1] - points[0])) / PERIOD_S
    assert found("sawyer", rows, tool_speed_m_s=1.0001 * speed) == {}
    assert found("sawyer", rows, tool_speed_m_s=0.999 * speed) == {"tool speed": 3}


def test_what_is_not_finite_is_found():
    row = middle("panda")
    row[2] = np.nan
    assert found("panda", [row]) == {"not finite": 1}


def test_a_segment_begins_and_ends_at_rest():
    spec, limits = load_robot("panda"), Limits(MAKERS["panda"], **WIDE)
    steps = np.arange(200) * PERIOD_S
    speed = moved("panda", 0, 0.1 * steps)
    assert found("panda", speed) == {}
    assert check_rows(spec, PERIOD_S, limits, speed).violations == {
        "acceleration": 2, "jerk": 4}, "off and to a stop at once"
    share = steps / steps[-1]
    smooth = moved("panda", 0, 0.02 * share**4 * (35 - 84 * share + 70 * share**2 - 20 * share**3))
    assert check_rows(spec, PERIOD_S, limits, smooth).violations == {}


@pytest.mark.parametrize("robot", ROBOTS)
def test_how_the_rows_arrive_makes_no_difference(robot):
    spec, rng = load_robot(robot), np.random.default_rng(5)
    rows = middle(robot) + np.cumsum(rng.normal(0.0, 3e-5, (9000, 7)), axis=0)
    limits = Limits(MAKERS[robot], (-0.3,) * 3, (0.3,) * 3, 0.05)

    def fed(sizes) -> Findings:
        checker = StreamChecker(spec, PERIOD_S, limits)
        checker.restart(rows[0])
        at = 1
        while at < len(rows):
            size = int(rng.choice(sizes))
            checker.feed(rows[at : at + size])
            at += size
        return checker.flush()

    first, second = fed([9000]), fed([1, 7, 300])
    assert first.violations == second.violations and first.total > 100
    assert first.rows == second.rows == 8999
    assert first.nearest.keys() == second.nearest.keys()


# -- the recording arm --------------------------------------------------------------------------


def make_arm(**options):
    clock, log = ManualClock(), []
    arm = RecordingArm(load_robot("panda"), clock, on_rows=lambda rows: log.append(rows.copy()),
                       **options)
    return clock, arm, log


def line(arm, start: float, rows: int, at: int) -> JointSetpoints:
    """Rows whose first joint counts on from ``start``."""
    position = np.repeat(np.array(arm.spec.home_rad)[None], rows, axis=0)
    position[:, 0] = start + np.arange(rows)
    return JointSetpoints(position, arm.period_s, at=at)


def sent_of(log) -> list[float]:
    return [float(row[0]) for rows in log for row in rows]


def test_the_recording_arm_is_an_arm_that_sends_one_row_a_period():
    clock, arm, log = make_arm()
    assert isinstance(arm, Arm)
    arm.command(line(arm, 1.0, 5, at=0))
    assert arm.sent() == 0
    for count in range(1, 6):
        clock.pass_s(0.01)
        assert arm.sent() == count
    clock.pass_s(1.0)
    assert arm.sent() == 5, "it does not grow while there is nothing to send"
    assert sent_of(log) == [1, 2, 3, 4, 5, 5, 5, 5, 5], "a rest counts four times at most"


def test_a_command_takes_over_at_its_row_and_a_late_one_changes_nothing():
    clock, arm, log = make_arm()
    arm.command(line(arm, 0.0, 10, at=0))
    clock.pass_s(0.03)
    with pytest.raises(LateCommandError, match="row 2 is gone, 3 were sent"):
        arm.command(line(arm, 100.0, 3, at=2))
    arm.command(line(arm, 50.0, 2, at=5))
    clock.pass_s(0.06)
    assert sent_of(log)[:8] == [0, 1, 2, 3, 4, 50, 51, 51]
    arm.rows_in_command = 2
    arm.command(line(arm, 0.0, 9, at=7))
    with pytest.raises(LateCommandError):
        arm.command(line(arm, 0.0, 9, at=arm.sent() + 1))


def test_a_stalled_arm_skips_no_row_and_sends_none_twice():
    clock, arm, log = make_arm(seed=3)
    arm.stall_share = 0.3
    arm.command(line(arm, 0.0, 200, at=0))
    for _ in range(120):
        clock.pass_s(0.013)
    rows = sent_of(log)
    assert rows == list(range(len(rows))) and 20 < len(rows) < 145


def test_measurements_lag_err_and_age_as_they_are_told_to():
    clock, arm, _ = make_arm(follow=0.5)
    start = arm.position_rad[0]
    arm.command(line(arm, start + 0.1, 1, at=0))
    clock.pass_s(0.01)
    assert arm.position_rad[0] == pytest.approx(start + 0.05)
    assert arm.state(1.0).velocity_rad_s[0] == pytest.approx(5.0)
    clock.pass_s(1.0)
    assert arm.position_rad[0] == pytest.approx(start + 0.1)
    arm.noise_rad = 1e-3
    assert 0.0 < abs(arm.state(1.0).position_rad[0] - start - 0.1) < 0.01
    arm.age_s = 0.5
    assert arm.state(0.6).stamp_s == pytest.approx(clock.now_s() - 0.5)
    with pytest.raises(StaleDataError):
        arm.state(0.4)


def test_an_arm_at_fault_takes_nothing_until_it_recovers():
    clock, arm, log = make_arm()
    arm.command(line(arm, 0.0, 9, at=0))
    clock.pass_s(0.02)
    arm.fail("the stream stopped")
    assert not arm.status().ready and arm.status().fault == "the stream stopped"
    clock.pass_s(1.0)
    assert sent_of(log) == [0, 1], "what was queued is gone"
    with pytest.raises(SafetyError, match="the stream stopped"):
        arm.command(line(arm, 0.0, 9, at=2))
    arm.recover()
    assert arm.status().ready and arm.recovered == 1
    arm.fail("stays: the emergency stop is pressed")
    with pytest.raises(SafetyError, match="stays in error"):
        arm.recover()
