"""The parts of the filter's planner, by arithmetic of their own."""

from __future__ import annotations

import math

import numpy as np
import pytest

from robot_rl.errors import InvalidInputError
from robot_rl.kinematics import Kinematics, rotation_vector
from robot_rl.safety import SafetyConfig
from robot_rl.safety.checks import HISTORY, Plan
from robot_rl.safety.planner import Aim, Planner
from robot_rl.specs import load_robot

ROBOTS = ("fr3", "panda", "sawyer")


def planner_of(robot: str = "panda", period_s: float = 0.01, **config: object) -> Planner:
    kinematics = Kinematics(load_robot(robot))
    return Planner(kinematics, SafetyConfig(**config), period_s)  # type: ignore[arg-type]


def middle_of(planner: Planner) -> np.ndarray:
    """A posture well inside the box."""
    return planner.posture(planner.pose(np.array([0.0, 0.0, 0.15]), 0.0))


def home_of(planner: Planner) -> np.ndarray:
    return np.array(planner.kinematics.spec.home_rad)


@pytest.mark.parametrize(("duration", "silence", "period", "rows"), [
    (0.1, 0.05, 0.01, 15), (0.1, 0.05, 0.02, 7), (0.001, 0.05, 0.01, 6), (1e-9, 0.001, 0.01, 2),
    (0.5, 0.08, 0.01, 58), (0.1, 0.05, 0.001, 150), (0.024, 0.05, 0.01, 7)])
def test_when_a_commander_is_late(duration, silence, period, rows):
    assert planner_of(period_s=period, silence_s=silence).due(duration) == rows


@pytest.mark.parametrize("robot", ROBOTS)
def test_poses_of_the_tool_and_back(robot):
    planner = planner_of(robot)
    for yaw in (-3.0, -0.4, 0.0, 1.2):
        pose = planner.pose(np.array([0.1, -0.2, 0.3]), yaw)
        tool, turn = planner.tool(pose)
        np.testing.assert_allclose(tool, (0.1, -0.2, 0.3), atol=1e-15)
        assert turn == pytest.approx(yaw)
        np.testing.assert_allclose(pose[:3, 0], (math.cos(yaw), math.sin(yaw), 0.0))
        np.testing.assert_allclose(pose[:3, 2], (0.0, 0.0, -1.0))
        np.testing.assert_allclose(pose[:3, :3] @ pose[:3, :3].T, np.eye(3), atol=1e-15)
        assert np.linalg.det(pose) == pytest.approx(1.0)
        assert pose[3].tolist() == [0.0, 0.0, 0.0, 1.0]
        np.testing.assert_allclose(pose[:3, 3] - tool, load_robot(robot).workspace_origin_m)


def test_angles_are_clipped_to_what_the_joints_may_have():
    planner = planner_of(joint_margin_rad=0.1)
    low, high = (planner.kinematics.spec.limits(name) for name in ("lower_rad", "upper_rad"))
    np.testing.assert_allclose(planner.clipped(np.full(7, -9.0)), low + 0.1)
    np.testing.assert_allclose(planner.clipped(np.full(7, 9.0)), high - 0.1)
    home = home_of(planner)
    assert planner.clipped(home).tolist() == home.tolist()


@pytest.mark.parametrize("robot", ROBOTS)
def test_a_posture_is_where_small_steps_come_to_rest(robot):
    planner = planner_of(robot)
    for point, yaw in (((0.0, 0.0, 0.15), 0.0), ((0.2, -0.2, 0.05), 0.5), ((-0.2, 0.1, 0.3), -0.3)):
        pose = planner.pose(np.array(point), yaw)
        q = planner.posture(pose)
        got = planner.kinematics.forward(q)
        np.testing.assert_allclose(got[:3, 3], pose[:3, 3], atol=1.1e-4)
        assert np.linalg.norm(rotation_vector(got[:3, :3] @ pose[:3, :3].T)) < 2e-4
        stepped, _ = planner.kinematics.step(q, pose, damping=0.01)
        assert np.abs(stepped - q).max() < 1e-3, "a command to stay would move the arm"


def test_a_posture_out_of_reach_is_named():
    planner = planner_of("sawyer", box_max_m=(2.5, 0.3, 0.35))
    with pytest.raises(InvalidInputError, match=(
        r"^tool position \[2\.4 0\.  0\.2\] m is out of reach of sawyer: the nearest posture is "
        r"\d\.\d{4} m away$"
    )):
        planner.posture(planner.pose(np.array([2.4, 0.0, 0.2]), 0.0))


def test_a_posture_that_steps_from_home_do_not_reach_is_searched_for():
    planner = planner_of("panda")
    pose = planner.pose(np.array([-0.2, 0.28, 0.03]), 2.6)
    q = planner.posture(pose)
    np.testing.assert_allclose(planner.kinematics.forward(q), pose, atol=2e-4)


# -- plans --------------------------------------------------------------------------------------


def moving_plan(planner: Planner) -> Plan:
    """A plan of 20 rows that are all different, from row 40 on."""
    rows = np.zeros((20, 3, 7))
    rows[:, 0] = home_of(planner) + np.linspace(0.0, 0.01, 20)[:, None] ** 2
    rows[:, 1] = np.linspace(0.0, 0.001, 20)[:, None]
    rows[:, 2] = 1e-3
    rows[-1, 1:] = 0.0
    return Plan(40, rows, planner.kinematics.frames(rows[:, 0])[1])


def test_a_rest_is_a_plan_of_rows_that_were_sent():
    planner = planner_of()
    plan = planner.at_rest(home_of(planner), 17)
    assert plan.first == 14 and plan.end == 17 and plan.rows.shape == (3, 3, 7)
    assert not plan.rows[:, 1:].any()
    for row, pose in zip(plan.rows, plan.poses, strict=True):
        assert row[0].tolist() == home_of(planner).tolist()
        np.testing.assert_allclose(pose, planner.kinematics.forward(row[0]), atol=1e-12)


def test_what_an_arm_is_sent_of_a_plan():
    planner = planner_of(period_s=0.02)
    plan = moving_plan(planner)
    sent = planner.setpoints(plan)
    assert sent.at == 43 and sent.period_s == 0.02
    for column, part in enumerate((sent.position_rad, sent.velocity_rad_s,
                                   sent.acceleration_rad_s2)):
        assert np.array_equal(part, plan.rows[3:, column])


def test_a_plan_may_go_on_as_it_is():
    planner = planner_of()
    plan = moving_plan(planner)
    for row, duration, count in ((50, 0.02, 11 + HISTORY - 1), (50, 0.1, 16 + HISTORY)):
        found = planner.kept(plan, row, duration)
        kept = found.plan
        assert kept.first == row - HISTORY and found.part == 0.0
        assert len(kept.rows) == len(kept.poses) == count
        same = min(count, 20 - (row - 43))
        assert np.array_equal(kept.rows[:same], plan.rows[row - 43 : row - 43 + same])
        assert np.array_equal(kept.poses[:same], plan.poses[row - 43 : row - 43 + same])
        for more in range(same, count):
            assert np.array_equal(kept.rows[more], plan.rows[-1])
            assert np.array_equal(kept.poses[more], plan.poses[-1])
        assert np.array_equal(found.q_rad, plan.rows[-1, 0])
        assert np.array_equal(found.pose, plan.poses[-1])


@pytest.mark.parametrize("more", range(-1, 4))
def test_a_plan_that_goes_on_lasts_as_long_as_its_commander_is_waited_for(more):
    planner = planner_of()
    plan = moving_plan(planner)
    wanted = planner.due(0.1) + 1
    row = plan.end - wanted + more
    kept = planner.kept(plan, row, 0.1).plan
    assert kept.end == max(row + wanted, plan.end)
    assert len(kept.rows) == len(kept.poses) == kept.end - kept.first


def test_what_the_parts_of_a_plan_are_asked_for(monkeypatch):
    planner = planner_of()
    home = middle_of(planner)
    plan = planner.at_rest(home, 0)
    plan = planner.to_joints(plan, 0, home + 0.02 * np.eye(7)[0], 0.5, 0.1).plan
    row, target = 6, home + np.array([0.01, 0.02, 0.0, 0.0, 0.0, 0.0, 0.1])
    tool, start = plan.tool(row), plan.state(row)[0]
    ways: list[tuple[float, float]] = []
    leaning: list[bool] = []
    velocity, planned = planner._velocity, planner._planned

    def note_velocity(plan, row, q, speed, way):
        ways.append((speed, way))
        return velocity(plan, row, q, speed, way)

    def note_planned(*words):
        leaning.append(words[-1])
        return planned(*words)

    monkeypatch.setattr(planner, "_velocity", note_velocity)
    monkeypatch.setattr(planner, "_planned", note_planned)
    planner.to_joints(plan, row, target, 0.3, 0.1)
    jacobian = planner.kinematics.jacobian(start)
    expected = float(np.linalg.norm(jacobian[:3] @ (target - start)))
    assert ways[0] == (0.3, pytest.approx(expected)) and leaning[0] is True

    ways.clear(), leaning.clear()
    reached = planner.kinematics.forward(home)
    pose = reached.copy()
    pose[:3, 3] += (0.01, -0.02, 0.005)
    planner.to_tool(plan, row, home, reached, Aim(pose, 0.1, 0.1))
    assert ways[0] == (1.0, pytest.approx(float(np.linalg.norm(pose[:3, 3] - tool))))
    assert leaning[0] is False

    ways.clear(), leaning.clear()
    # Half a centimetre outside its face, and led back inside.
    outside = planner.kinematics.forward(home)
    outside[2, 3] = 0.35 + 0.005
    found = planner._from_the_face(plan, row, home, outside, 0.1)
    inner = planner.inside(outside[:3, 3] - planner._origin) + planner._origin
    assert ways == [(1.0, pytest.approx(float(np.linalg.norm(inner - tool))))]
    assert leaning == [False] and found.part == 0.0


def test_a_stop_begins_at_the_row_that_can_still_be_changed():
    planner = planner_of()
    begun = planner.to_joints(planner.at_rest(home_of(planner), 5), 5,
                              home_of(planner) + 0.3, 0.5, 0.1)
    plan = begun.plan
    stop = planner.brake(plan, 5 + 8)
    assert stop is not None and stop.first == 5 + 8 - HISTORY
    assert np.array_equal(stop.rows[:3], plan.rows[8 : 8 + 3])
    assert np.array_equal(stop.poses[:3], plan.poses[8 : 8 + 3])
    assert stop.end < plan.end and not stop.rows[-1, 1:].any()
    assert len(stop.rows) == len(stop.poses)
    assert (np.abs(stop.rows[3:, 1]).max(axis=1)[5:] <= np.abs(stop.rows[2, 1]).max()).all()


def test_a_stop_at_rest_is_a_row():
    planner = planner_of()
    plan = planner.at_rest(middle_of(planner), 8)
    stop = planner.brake(plan, 8)
    assert stop is not None and stop.first == 5 and len(stop.rows) == HISTORY + 1
    assert np.array_equal(stop.rows[-1], plan.rows[-1])


def test_an_arm_that_leans_can_be_stopped():
    planner = planner_of(max_tilt_rad=0.02)
    target = middle_of(planner)
    target[5] += 0.3
    plan = planner.at_rest(middle_of(planner), 0)
    for row in range(0, 30, 10):
        plan = planner.to_joints(plan, row, target, 0.3, 0.1).plan
    row = plan.first + HISTORY + 8
    assert -plan.poses[HISTORY + 8][2, 2] < np.cos(0.03)
    assert np.abs(plan.rows[HISTORY + 8, 1]).max() > 0.1
    stop = planner.brake(plan, row)
    assert stop is not None and not stop.rows[-1, 1:].any()


def test_where_no_motion_is_found_the_plan_goes_on(monkeypatch):
    planner = planner_of()
    home = middle_of(planner)
    plan = planner.at_rest(home, 0)
    for name in ("brake", "towards"):
        monkeypatch.setattr(planner._generator, name, lambda *_: None)
    assert planner.brake(plan, 0) is None
    found = planner.to_joints(plan, 0, home + 0.1, 0.2, 0.1)
    assert found.part == 0.0 and np.array_equal(found.q_rad, home)


def test_a_stop_that_would_break_a_limit_is_none():
    planner = planner_of()
    begun = planner.to_joints(planner.at_rest(home_of(planner), 0), 0, home_of(planner) + 0.3,
                              0.5, 0.1)
    planner.checker.torque = np.zeros(7)
    assert planner.brake(begun.plan, 5) is None


# -- how much of it, how fast ---------------------------------------------------------------------


@pytest.mark.parametrize("robot", ROBOTS)
def test_the_share_of_a_change_that_velocities_let_through(robot):
    planner = planner_of(robot, velocity_fraction=0.5)
    home, spec = home_of(planner), planner.kinematics.spec
    limit = planner.checker.envelope.limit(home, np.ones(7))
    for joint in range(7):
        change = np.zeros(7)
        change[joint] = 0.99 * 0.5 * limit[joint] * 0.01
        assert planner._share(home, change, 0.01) == pytest.approx(1.0, abs=0.02)
        change[joint] = 10.0 * 0.5 * limit[joint] * 0.01
        assert planner._share(home, change, 0.01) == pytest.approx(0.1, rel=0.02)
        assert planner._share(home, -change, 0.01) <= 0.2
        assert planner._share(home, 2.0 * change, 0.02) == pytest.approx(0.1, rel=0.05)
    assert planner._share(home, np.zeros(7), 0.1) == 1.0
    assert len(spec.joints) == 7


def test_the_share_of_a_change_towards_a_limit_that_falls():
    planner = planner_of("fr3", velocity_fraction=1.0)
    q = home_of(planner)
    q[0] = 2.7437 - 0.3
    change = np.zeros(7)
    change[0] = 0.5
    share = planner._share(q, change, 0.1)
    at = planner.checker.envelope.limit(q, change)[0]
    end = planner.checker.envelope.limit(q + min(1.0, at * 0.1 / 0.5) * change, change)[0]
    assert share == pytest.approx(end * 0.1 / 0.5) and end < at


def test_how_fast_the_joints_go():
    planner = planner_of(velocity_fraction=0.5, max_speed_m_s=0.2)
    home = home_of(planner)
    plan = planner.at_rest(home, 0)
    change = np.array([0.2, -0.1, 0.0, 0.3, 0.05, 0.0, -0.2])
    limit = 0.5 * planner.kinematics.spec.limits("velocity_rad_s")
    for speed, way in ((1.0, 0.5), (0.3, 0.5), (0.3, 1e-12), (1.0, 0.0)):
        got = planner._velocity(plan, 0, home + change, speed, way)
        tool = np.abs(change) * 0.95 * 0.2 / max(way, 1e-9) + 0.02 * limit
        expected = np.maximum((1.0 - 1e-6) * np.minimum(speed * limit, tool), 1e-3)
        np.testing.assert_allclose(got, expected, rtol=1e-12)


def test_a_joint_next_to_its_limit_may_still_come_back():
    planner = planner_of("fr3")
    q = home_of(planner)
    q[0] = 2.7437
    plan = planner.at_rest(q, 0)
    assert planner._velocity(plan, 0, q + np.eye(7)[0] * 0.1, 1.0, 0.1)[0] == 1e-3
    assert planner._velocity(plan, 0, q - np.eye(7)[0] * 0.1, 1.0, 0.1)[0] > 0.3


@pytest.mark.parametrize("robot", ROBOTS)
def test_a_joint_target_is_gone_to_at_the_part_of_the_speed_that_is_allowed(robot):
    planner = planner_of(robot)
    home = middle_of(planner)
    target = home + np.array([0.02, 0.0, 0.0, 0.0, 0.0, 0.0, 0.1])
    found = planner.to_joints(planner.at_rest(home, 9), 9, target, 0.2, 0.1)
    assert found.part == 1.0 and found.plan.first == 9 - HISTORY
    assert np.array_equal(found.q_rad, target)
    np.testing.assert_allclose(found.pose, planner.kinematics.forward(target), atol=1e-12)
    assert len(found.plan.rows) == len(found.plan.poses) >= HISTORY + planner.due(0.1) + 1
    for row, pose in zip(found.plan.rows, found.plan.poses, strict=True):
        np.testing.assert_allclose(pose, planner.kinematics.forward(row[0]), atol=1e-12)


def test_a_smaller_part_of_the_speed_is_tried_before_nothing_is_done(monkeypatch):
    planner = planner_of()
    home = middle_of(planner)
    plan, target = planner.at_rest(home, 0), home + 0.1 * np.eye(7)[6]
    asked: list[np.ndarray] = []
    allowed = 1
    planned = planner._planned

    def choosy(plan, row, q, velocity, *more):
        asked.append(velocity)
        return planned(plan, row, q, velocity, *more) if len(asked) == allowed else None

    monkeypatch.setattr(planner, "_planned", choosy)
    for number, part in ((1, 1.0), (2, 0.5), (3, 0.25), (9, 0.0)):
        asked.clear()
        allowed = number
        found = planner.to_joints(plan, 0, target, 0.3, 0.1)
        assert found.part == part
        for velocity, share in zip(asked, (1.0, 0.5, 0.25), strict=False):
            np.testing.assert_allclose(velocity, share * asked[0])
    assert np.array_equal(found.q_rad, home)
