"""Each limit at its boundary: rows just inside pass, rows just outside are named."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from robot_rl.kinematics import Kinematics, rotation_from_rpy
from robot_rl.safety import SafetyConfig
from robot_rl.safety.checks import HISTORY, Checker
from robot_rl.safety.dynamics import InverseDynamics
from robot_rl.safety.envelope import VelocityEnvelope
from robot_rl.specs import load_robot

ROBOTS = ("fr3", "panda", "sawyer")
PERIOD_S = 0.01
LOOSE = {"max_speed_m_s": 1.7, "box_min_m": (-3.0, -3.0, -3.0), "box_max_m": (3.0, 3.0, 3.0),
         "velocity_fraction": 1.0, "acceleration_fraction": 1.0, "jerk_fraction": 1.0,
         "torque_fraction": 1.0, "ramp_s": 1e-6, "joint_margin_rad": 0.0}


class Judge:
    """Asks one arm's checker about rows after a rest, or after ``before`` (3, n)."""

    def __init__(self, robot: str = "panda", **limits: object) -> None:
        self.spec = load_robot(robot)
        self.kinematics = Kinematics(self.spec)
        self.checker = Checker(self.kinematics, SafetyConfig(**{**LOOSE, **limits}), PERIOD_S)
        self.home = np.array(self.spec.home_rad)

    def rows(self, places: np.ndarray) -> np.ndarray:
        rows = np.zeros((len(places), 3, 7))
        rows[:, 0] = places
        return rows

    def ask(self, places, before=None, target=None, rates=None, leaning=False) -> str | None:
        places = np.asarray(places, dtype=np.float64)
        rows = self.rows(places)
        if rates is not None:
            rows[:, 1:] = rates
        if before is None:
            before = np.repeat(places[:1], HISTORY, axis=0)
        _, poses = self.kinematics.frames(np.asarray(before))
        reason, new = self.checker.broken(
            self.rows(before), poses, rows, places[-1] if target is None else target, leaning
        )
        assert new.shape == (len(places) + 1, 4, 4)
        np.testing.assert_allclose(new[0], self.kinematics.forward(places[0]), atol=1e-12)
        return reason

    def moving(self, joint: int, steps: list[float]) -> np.ndarray:
        """Rows from home in which one joint goes on by ``steps`` [rad], the first from rest."""
        places = np.tile(self.home, (len(steps), 1))
        places[:, joint] += np.cumsum(steps)
        return places

    def after_home(self, places, **more) -> str | None:
        return self.ask(places, before=np.tile(self.home, (HISTORY, 1)), **more)


@pytest.mark.parametrize("robot", ROBOTS)
def test_rest_breaks_nothing(robot):
    judge = Judge(robot, box_min_m=(-0.3, -0.3, 0.0), box_max_m=(0.3, 0.3, 0.9))
    assert judge.ask(np.tile(judge.home, (4, 1))) is None


@pytest.mark.parametrize("joint", range(7))
@pytest.mark.parametrize("where", ["row", "target"])
def test_joint_positions(joint, where):
    judge = Judge(joint_margin_rad=0.1)
    for limit, sign in ((judge.checker.q_low, -1.0), (judge.checker.q_high, 1.0)):
        assert abs(limit[joint] - judge.spec.limits("upper_rad" if sign > 0 else "lower_rad")[joint]
                   ) == pytest.approx(0.1)
        for beyond, broken in ((-1e-9, None), (1e-9, "joint position")):
            place = judge.home.copy()
            place[joint] = limit[joint] + sign * beyond
            inside = place.copy()
            inside[joint] = limit[joint] - sign * 1e-9
            if where == "row":
                assert judge.ask(place[None], np.tile(inside, (3, 1)), target=inside) == broken
            else:
                assert judge.ask(inside[None], np.tile(inside, (3, 1)), target=place) == broken


def test_a_joint_beyond_its_limit_may_come_back_but_not_go_on():
    judge = Judge()
    out = judge.home.copy()
    out[0] = judge.checker.q_high[0] + 0.05
    back, on = out.copy(), out.copy()
    back[0] -= 1e-6
    on[0] += 1e-9
    assert judge.ask(np.stack([out, back]), np.tile(out, (3, 1))) is None
    assert judge.ask(on[None], np.tile(out, (3, 1))) == "joint position"


@pytest.mark.parametrize("robot", ["panda", "sawyer"])
@pytest.mark.parametrize("fraction", [1.0, 0.3])
@pytest.mark.parametrize("joint", range(7))
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_joint_velocities(robot, fraction, joint, sign):
    judge = Judge(robot, velocity_fraction=fraction)
    judge.checker._tool = lambda *_: None
    limit = fraction * judge.spec.joints[joint].velocity_rad_s * PERIOD_S
    for part, broken in ((1.0 - 1e-9, None), (1.0 + 1e-9, "joint velocity")):
        steps = [sign * part * limit] * 4
        path = np.concatenate([judge.home[None], judge.moving(joint, steps)])
        # The rows before count for what follows them, not for themselves.
        assert judge.ask(path[3:4], path[:3], leaning=True) == broken
    judge.checker.acceleration = judge.checker.jerk = np.full(7, np.inf)
    assert judge.ask(path[2:3], path[:3], leaning=True) is None


@pytest.mark.parametrize("joint", range(7))
def test_joint_accelerations(joint):
    judge = Judge(acceleration_fraction=0.5)
    assert judge.checker.acceleration[joint] == 0.5 * judge.spec.joints[joint].acceleration_rad_s2
    judge.checker.jerk = np.full(7, np.inf)
    step = judge.checker.acceleration[joint] * PERIOD_S**2
    for part, broken in ((1.0 - 1e-6, None), (1.0 + 1e-6, "joint acceleration")):
        for sign in (1.0, -1.0):
            assert judge.after_home(judge.moving(joint, [sign * part * step])) == broken
        # Across the junction with what was sent: it moved, and stands still at once.
        moved = judge.moving(joint, [part * step, 0.0])
        before = np.concatenate([judge.home[None], judge.home[None], moved[:1]])
        assert judge.ask(moved[1:], before) == broken


@pytest.mark.parametrize("joint", range(7))
def test_joint_jerks(joint):
    judge = Judge(jerk_fraction=0.5)
    assert judge.checker.jerk[joint] == 0.5 * judge.spec.joints[joint].jerk_rad_s3
    judge.checker.acceleration = np.full(7, np.inf)
    judge.checker._most_change = np.inf
    judge.checker.jerk[joint] = 100.0
    step = 100.0 * PERIOD_S**3
    for part, broken in ((1.0 - 1e-6, None), (1.0 + 1e-6, "joint jerk")):
        for sign in (1.0, -1.0):
            ramp = judge.moving(joint, [sign * part * step])
            assert judge.after_home(ramp) == broken
        # All three rows before count.
        path = judge.moving(joint, [part * step, 3.0 * part * step, 6.0 * part * step])
        assert judge.ask(path[2:], np.concatenate([judge.home[None], path[:2]])) == broken


def test_the_ramp_tightens_the_jerk_and_never_widens_it():
    spec = load_robot("panda")
    maker, acceleration = spec.limits("jerk_rad_s3"), 0.5 * spec.limits("acceleration_rad_s2")
    np.testing.assert_array_equal(
        Judge(acceleration_fraction=0.5, ramp_s=0.1).checker.jerk, acceleration / 0.1)
    np.testing.assert_array_equal(Judge(ramp_s=1e-5).checker.jerk, maker)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("sign", [-1.0, 1.0])
@pytest.mark.parametrize("where", ["row", "target"])
def test_the_tool_in_its_box(axis, sign, where):
    tool = Judge().kinematics.forward(load_robot("panda").home_rad)[:3, 3] - [0.5, 0.0, 0.0]
    for beyond, broken in ((-1e-9, None), (1e-9, "tool box")):
        low, high = tool - 0.1, tool + 0.1
        (high if sign > 0 else low)[axis] = tool[axis] - sign * beyond
        judge = Judge(box_min_m=tuple(low), box_max_m=tuple(high))
        judge.checker._most_way = judge.checker._most_change = np.inf
        judge.checker.acceleration = judge.checker.jerk = np.full(7, np.inf)
        jacobian = judge.kinematics.jacobian(judge.home)
        back = np.zeros(6)
        back[axis] = -sign * 1e-4
        inside = judge.home + np.linalg.pinv(jacobian) @ back
        rows, target = (judge.home, inside) if where == "row" else (inside, judge.home)
        assert judge.ask(rows[None], np.tile(inside, (3, 1)), target=target) == broken


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_a_tool_outside_its_box_may_come_back_but_not_go_on(axis, sign):
    tool = Judge().kinematics.forward(load_robot("panda").home_rad)[:3, 3] - [0.5, 0.0, 0.0]
    low, high = tool - 0.3, tool + 0.3
    if sign > 0:
        high[axis] = tool[axis] - 0.1
    else:
        low[axis] = tool[axis] + 0.1
    judge = Judge(box_min_m=tuple(low), box_max_m=tuple(high))
    jacobian = judge.kinematics.jacobian(judge.home)
    for way, broken in ((-1e-5, None), (1e-5, "tool box")):
        step = np.zeros(6)
        step[axis] = sign * way
        there = judge.home + np.linalg.pinv(jacobian) @ step
        assert judge.after_home(there[None]) == broken


@pytest.mark.parametrize("robot", ROBOTS)
def test_the_speed_of_the_tool(robot):
    judge = Judge(robot, max_speed_m_s=0.4)
    judge.checker.acceleration = judge.checker.jerk = np.full(7, np.inf)
    judge.checker._most_change = np.inf
    # Joint 1 turns the tool about the base: a chord of a circle.
    tool = judge.kinematics.forward(judge.home)[:3, 3]
    angle = 2.0 * np.arcsin(0.5 * 0.4 * PERIOD_S / np.hypot(*tool[:2]))
    for part, broken in ((1.0 - 1e-9, None), (1.0 + 1e-9, "tool speed")):
        path = np.concatenate([judge.home[None], judge.moving(0, [part * angle] * 4)])
        assert judge.ask(path[3:], path[:3]) == broken
        assert judge.after_home(path[1:2]) == broken


def test_the_makers_tool_limits_hold_where_there_are_any():
    for robot, speed, acceleration, turn in (
        ("panda", 1.7, 13.0, 2.5), ("fr3", 1.7, 9.0, 2.5), ("sawyer", 1.7, np.inf, 2.5),
    ):
        checker = Judge(robot).checker
        assert checker.speed == speed
        assert checker._most_way == pytest.approx((speed * PERIOD_S) ** 2, rel=1e-12)
        assert checker._most_change == pytest.approx((acceleration * PERIOD_S**2) ** 2, rel=1e-12)
        assert checker._most_turn == pytest.approx(8.0 * np.sin(0.5 * turn * PERIOD_S) ** 2)
    slow = dataclasses.replace(load_robot("panda").cartesian, velocity_m_s=0.3,
                               angular_velocity_rad_s=1.5)
    spec = dataclasses.replace(load_robot("panda"), cartesian=slow)
    checker = Checker(Kinematics(spec), SafetyConfig(), PERIOD_S)
    assert checker.speed == 0.3
    assert checker._most_turn == pytest.approx(8.0 * np.sin(0.5 * 1.5 * PERIOD_S) ** 2)


def test_the_acceleration_of_the_tool():
    judge = Judge("panda")
    judge.checker.acceleration = judge.checker.jerk = np.full(7, np.inf)
    tool = judge.kinematics.forward(judge.home)[:3, 3]
    angle = 2.0 * np.arcsin(0.5 * 13.0 * PERIOD_S**2 / np.hypot(*tool[:2]))
    for part, broken in ((1.0 - 1e-6, None), (1.0 + 1e-6, "tool acceleration")):
        moved = judge.moving(0, [part * angle, 0.0])
        assert judge.after_home(moved[:1]) == broken
        before = np.concatenate([judge.home[None], judge.home[None], moved[:1]])
        assert judge.ask(moved[1:], before) == broken


@pytest.mark.parametrize("joint", [3, 6])
def test_the_turn_of_the_tool(joint):
    judge = Judge("panda")
    judge.checker.acceleration = judge.checker.jerk = np.full(7, np.inf)
    judge.checker._most_way = judge.checker._most_change = np.inf
    judge.checker.velocity_fraction = 10.0
    for part, broken in ((1.0 - 1e-9, None), (1.0 + 1e-9, "tool turn")):
        assert judge.after_home(judge.moving(joint, [2.5 * PERIOD_S * part])) == broken


def tilted(judge: Judge, tilt: float, yaw: float = 0.0, about: int = 1) -> np.ndarray:
    """A posture whose tool leans by ``tilt`` and is turned by ``yaw``."""
    pose = judge.kinematics.forward(judge.home)
    lean = np.zeros(3)
    lean[about] = tilt
    pose[:3, :3] = (rotation_from_rpy(lean) @ rotation_from_rpy((0, 0, yaw))
                    @ np.diag([1.0, -1.0, -1.0]))
    found = judge.kinematics.inverse(pose, judge.home, rotation_tolerance_rad=1e-11,
                                     position_tolerance_m=1e-9)
    assert found.converged
    return found.q_rad


@pytest.mark.parametrize("about", [0, 1])
@pytest.mark.parametrize("sign", [-1.0, 1.0])
@pytest.mark.parametrize("most", [0.1, 0.3])
def test_the_tilt_of_the_tool(about, sign, most):
    judge = Judge(max_tilt_rad=most)
    start = np.tile(tilted(judge, 0.0), (3, 1))
    for beyond, broken in ((-1e-6, None), (1e-6, "tool tilt")):
        leaning = tilted(judge, sign * (most + beyond), 0.0, about)
        for checked in (start[:1], leaning[None]):
            judge.checker._joints = judge.checker._tool = lambda *_: None
            assert judge.ask(checked, start, target=leaning) == broken
            assert judge.ask(checked, start, target=leaning, leaning=True) is None
    # One that leans already may lean as far, but no further.
    far = tilted(judge, sign * (most + 0.1), 0.0, about)
    further = tilted(judge, sign * (most + 0.1 + 1e-6), 0.0, about)
    less = tilted(judge, sign * (most + 0.1 - 1e-6), 0.0, about)
    assert judge.ask(less[None], np.tile(far, (3, 1))) is None
    assert judge.ask(further[None], np.tile(far, (3, 1))) == "tool tilt"


@pytest.mark.parametrize("sign", [-1.0, 1.0])
@pytest.mark.parametrize("most", [0.4, 3.1])
def test_the_yaw_of_the_tool(sign, most):
    judge = Judge("sawyer", max_yaw_rad=most)
    judge.checker._joints = judge.checker._tool = lambda *_: None
    start = np.tile(tilted(judge, 0.0, sign * (most - 0.01)), (3, 1))
    for beyond, broken in ((-1e-6, None), (1e-6, "tool yaw")):
        assert judge.ask(tilted(judge, 0.0, sign * (most + beyond))[None], start) == broken
    out = np.tile(tilted(judge, 0.0, sign * (most + 0.02)), (3, 1))
    back = tilted(judge, 0.0, sign * (most + 0.02 - 1e-6))
    on = tilted(judge, 0.0, sign * (most + 0.02 + 1e-6))
    assert judge.ask(back[None], out) is None
    assert judge.ask(on[None], out) == "tool yaw"


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_all_round_there_is_no_limit_of_yaw(sign):
    judge = Judge("sawyer")
    judge.checker._joints = judge.checker._tool = lambda *_: None
    start = np.tile(tilted(judge, 0.0, sign * 3.1), (3, 1))
    for yaw in (3.14, 3.16, 3.3):
        assert judge.ask(tilted(judge, 0.0, sign * yaw)[None], start) is None


@pytest.mark.parametrize("fraction", [1.0, 0.4])
@pytest.mark.parametrize("joint", [0, 1, 3])
def test_the_torques_of_the_joints(fraction, joint):
    judge = Judge(torque_fraction=fraction)
    assert judge.checker.torque[joint] == fraction * judge.spec.joints[joint].torque_nm
    frames, _ = judge.kinematics.frames(judge.home[None])
    dynamics = InverseDynamics(judge.spec)
    unit = np.zeros((1, 7))
    unit[0, joint] = 1.0
    still = dynamics.torque(frames, np.zeros((1, 7)), np.zeros((1, 7)))[0, joint]
    inertia = dynamics.torque(frames, np.zeros((1, 7)), unit)[0, joint] - still
    judge.checker.torque = np.full(7, np.inf)
    judge.checker.torque[joint] = limit = fraction * judge.spec.joints[joint].torque_nm
    for sign in (1.0, -1.0):
        needed = (sign * limit - still) / inertia
        for part, broken in ((1.0 - 1e-6, None), (1.0 + 1e-6, "joint torque")):
            rates = np.stack([np.zeros(7), part * needed * unit[0]])
            assert judge.after_home(judge.home[None], rates=rates) == broken


# -- the FR3's envelope -------------------------------------------------------------------------


def test_the_envelope_is_the_makers():
    spec = load_robot("fr3")
    envelope = VelocityEnvelope(spec)
    q = np.array(spec.home_rad)
    q[0] = 2.5
    left = 2.7437 - 2.5
    assert envelope.limit(q, np.ones(7))[0] == pytest.approx(-0.6599 + np.sqrt(12.0 * left))
    assert envelope.limit(q, -np.ones(7))[0] == 2.62, "away from the limit it is free"
    assert envelope.limit(q, np.zeros(7))[0] == envelope.limit(q, np.ones(7))[0]
    q[0] = -2.5
    assert envelope.limit(q, -np.ones(7))[0] == pytest.approx(-0.6599 + np.sqrt(12.0 * left))
    for beyond in (2.74, 2.7437, 3.0):
        q[0] = beyond
        assert envelope.limit(q, np.ones(7))[0] == 0.0
    many = envelope.limit(np.tile(spec.home_rad, (5, 1)), np.ones((5, 7)))
    assert many.shape == (5, 7) and (many <= spec.limits("velocity_rad_s")).all()


@pytest.mark.parametrize("joint", range(7))
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_rows_keep_to_the_envelope_where_they_arrive(joint, sign):
    judge = Judge("fr3", velocity_fraction=0.8)
    judge.checker.acceleration = judge.checker.jerk = np.full(7, np.inf)
    judge.checker._tool = lambda *_: None
    envelope = judge.checker.envelope
    q = judge.home.copy()
    limit = judge.checker.q_high if sign > 0 else judge.checker.q_low
    q[joint] = limit[joint] - sign * 0.05
    allowed = 0.8 * envelope.limit(q, sign * np.ones(7))[joint]
    assert 0.0 < allowed < 0.5 * judge.spec.joints[joint].velocity_rad_s
    for part, broken in ((1.0 - 1e-9, None), (1.0 + 1e-9, "joint velocity")):
        before = q.copy()
        before[joint] -= sign * part * allowed * PERIOD_S
        assert judge.ask(q[None], np.tile(before, (3, 1)), leaning=True) == broken
        # The same step away from the limit is free.
        assert judge.ask(before[None], np.tile(q, (3, 1)), leaning=True) is None


@pytest.mark.parametrize("joint", range(7))
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_no_joint_goes_so_near_its_limit_that_it_could_not_leave(joint, sign):
    judge = Judge("fr3")
    checker = judge.checker
    q = checker.q_high if sign > 0 else checker.q_low
    assert checker.envelope.limit(q, sign * np.ones(7))[joint] > 0.02
    wide = Judge("fr3", joint_margin_rad=0.3).checker
    end = judge.spec.joints[joint].upper_rad if sign > 0 else judge.spec.joints[joint].lower_rad
    margin = max(0.3, checker.envelope.standstill_rad[joint])
    assert (wide.q_high if sign > 0 else wide.q_low)[joint] == pytest.approx(end - sign * margin)
    panda = Judge("panda").checker
    np.testing.assert_array_equal(panda.q_high, load_robot("panda").limits("upper_rad"))
    np.testing.assert_array_equal(panda.envelope.limit(panda.q_high, np.ones(7)),
                                  load_robot("panda").limits("velocity_rad_s"))
