"""What the filter's own check of rows lets through, limit by limit, up to the last digit."""

from __future__ import annotations

import math

import numpy as np
import pytest

from robot_rl.kinematics import Kinematics
from robot_rl.safety.checks import HISTORY, Checker, Plan
from robot_rl.safety.config import SafetyConfig
from robot_rl.specs import load_robot

PERIOD_S = 0.01
FREE = {"max_speed_m_s": 1.7, "velocity_fraction": 1.0, "acceleration_fraction": 1.0,
        "jerk_fraction": 1.0, "torque_fraction": 1.0, "ramp_s": 1e-4}
ROBOTS = ("fr3", "panda", "sawyer")
WIDE = {"box_min_m": (-9.0,) * 3, "box_max_m": (9.0,) * 3}


class Sent:
    """An arm's rows and what a checker says of more of them."""

    def __init__(self, robot: str = "panda", period_s: float = PERIOD_S, **config: object) -> None:
        self.spec = load_robot(robot)
        self.kinematics = Kinematics(self.spec)
        self.config = SafetyConfig(**{**WIDE, **config})  # type: ignore[arg-type]
        self.checker = Checker(self.kinematics, self.config, period_s)
        self.home = np.array(self.spec.home_rad)

    def broken(self, places, *, before=None, velocity=None, acceleration=None,
               target=None, leaning: bool = False) -> str | None:
        places = np.atleast_2d(np.asarray(places, np.float64))
        rows = np.zeros((len(places), 3, places.shape[1]))
        rows[:, 0] = places
        if velocity is not None:
            rows[:, 1] = velocity
        if acceleration is not None:
            rows[:, 2] = acceleration
        sent = np.repeat(places[:1], HISTORY, axis=0) if before is None else np.asarray(before)
        past = np.zeros((HISTORY, 3, places.shape[1]))
        past[:, 0] = sent
        poses = np.array([self.kinematics.forward(q) for q in sent])
        reason, new = self.checker.broken(past, poses, rows,
                                          places[-1] if target is None else target, leaning)
        assert new.shape == (len(places) + 1, 4, 4)
        expected = [*places, places[-1] if target is None else target]
        for pose, q in zip(new, expected, strict=True):
            np.testing.assert_allclose(pose, self.kinematics.forward(q), atol=1e-12)
        return reason

    def moved(self, joint: int, angle: float) -> np.ndarray:
        q = self.home.copy()
        q[joint] += angle
        return q


def test_a_plan_knows_where_its_rows_stand():
    plan = Plan(7, np.zeros((9, 3, 7)), np.zeros((9, 4, 4)))
    assert plan.end == 16
    assert plan.before(12) == slice(2, 5) and plan.before(10) == slice(0, 3)
    assert HISTORY == 3


def test_a_plan_knows_its_states():
    rows, poses = np.arange(9.0 * 21).reshape(9, 3, 7), np.arange(9.0 * 16).reshape(9, 4, 4)
    plan = Plan(7, rows, poses)
    assert np.array_equal(plan.state(12), rows[4]) and np.array_equal(plan.state(16), rows[8])
    assert np.array_equal(plan.tool(12), poses[4, :3, 3])


def test_it_is_the_last_row_sent_that_says_how_far_out_a_joint_may_be():
    at = Sent()
    inside, outside = at.home.copy(), at.home.copy()
    outside[6] = at.checker.q_high[6] + 1e-3
    for history in ([outside, outside, inside], [inside, outside, inside],
                    [outside, inside, inside]):
        assert at.broken(outside, before=history, leaning=True) == "joint position"
    assert at.broken(outside, before=[inside, inside, outside]) != "joint position"


def test_it_is_the_last_row_sent_that_says_how_far_a_tool_may_lean():
    at = Sent(max_tilt_rad=0.01)
    upright, tilted = at.home, at.moved(5, 0.05)
    rest = np.zeros((1, 3, 7))
    rest[0, 0] = tilted

    def asked(*history):
        before = np.repeat(rest, 3, axis=0)
        poses = np.array([at.kinematics.forward(q) for q in history])
        return at.checker.broken(before, poses, rest, tilted)[0]

    at.checker._most_way = at.checker._most_change = at.checker._most_turn = math.inf
    for history in ((tilted, tilted, upright), (upright, tilted, upright),
                    (tilted, upright, upright)):
        assert asked(*history) == "tool tilt"
    assert asked(upright, upright, tilted) is None


def test_every_row_counts_not_only_the_first():
    at = Sent(**FREE)
    before, rows = in_rows(at, 0, [0.0] * 9)
    assert at.broken(rows, before=before) is None
    for late in range(1, 6):
        jumped = rows.copy()
        jumped[late:, 0] += 0.1
        assert at.broken(jumped, before=before) == "joint velocity"
    acceleration = np.zeros((6, 7))
    acceleration[4, 1] = 1e3
    assert at.broken(rows, before=before, acceleration=acceleration) == "joint torque"
    frames: list[tuple[int, ...]] = []
    effort = at.checker._effort
    at.checker._effort = lambda f, r: (frames.append(f.shape), effort(f, r))[1]
    at.broken(rows, before=before)
    assert frames == [(7, 6, 4, 4)]


def test_what_is_exactly_at_a_limit_is_within_it(monkeypatch):
    at, rng = Sent("panda", **FREE), np.random.default_rng(0)
    path = at.home + np.cumsum(rng.normal(0.0, 1e-4, (9, 7)), axis=0)
    velocity = (path[1:] - path[:-1]) / PERIOD_S
    acceleration = (velocity[1:] - velocity[:-1]) / PERIOD_S
    jerk = (acceleration[1:] - acceleration[:-1]) / PERIOD_S
    checker = at.checker
    checker.velocity_fraction = 1.0
    checker.acceleration = np.abs(acceleration[1:]).max(axis=0)
    checker.jerk = np.abs(jerk).max(axis=0)
    most = np.abs(velocity[2:]).max(axis=0)
    monkeypatch.setattr(checker.envelope, "limit", lambda q, way: most)
    places = np.concatenate([path[3:], path[-1:]])
    assert checker._joints(path[:3], places) is None
    for name, reason in (("jerk", "jerk"), ("acceleration", "acceleration")):
        exact = getattr(checker, name)
        for joint in range(7):
            less = exact.copy()
            less[joint] = np.nextafter(exact[joint], 0.0)
            setattr(checker, name, less)
            assert checker._joints(path[:3], places) == f"joint {reason}"
        setattr(checker, name, exact)
    most = np.nextafter(most, 0.0)
    assert checker._joints(path[:3], places) == "joint velocity"


def test_a_tool_exactly_at_a_limit_is_within_it():
    at = Sent("fr3", **FREE)
    poses = np.repeat(np.eye(4)[None], 9, axis=0)
    # Powers of two, so that squares and sums are exact however they are taken.
    bit = 2.0**-7
    poses[:, 0, 3] = bit * np.array([0, 0, 0, 1, 3, 5, 6, 6, 6])
    poses[5:, 1, 2] = bit
    new = np.concatenate([poses[3:], poses[-1:]])
    checker = at.checker
    checker._most_way, checker._most_change, checker._most_turn = 4 * bit**2, bit**2, bit**2
    assert checker._tool(poses[:3], new) is None
    for name, reason in (("_most_way", "speed"), ("_most_change", "acceleration"),
                         ("_most_turn", "turn")):
        exact = getattr(checker, name)
        setattr(checker, name, np.nextafter(exact, 0.0))
        assert checker._tool(poses[:3], new) == f"tool {reason}"
        setattr(checker, name, exact)


def test_a_tool_at_a_face_is_inside_and_the_last_row_says_how_far_out_it_may_be():
    at = Sent(box_min_m=(-0.1, -0.1, 0.1), box_max_m=(0.1, 0.1, 0.3))
    checker = at.checker
    origin = np.array(at.spec.workspace_origin_m)

    def pose(*tool: float) -> np.ndarray:
        one = np.diag([1.0, -1.0, -1.0, 1.0])
        one[:3, 3] = origin + tool
        return one

    low, high = pose(-0.1, -0.1, 0.1), pose(0.1, 0.1, 0.3)
    for face in (low, high):
        assert checker._tool(np.array([face] * 3), np.array([face] * 2)) is None
    inside, outside = pose(0.0, 0.0, 0.2), pose(0.1001, 0.0, 0.2)
    for history in ([outside, outside, inside], [inside, outside, inside],
                    [outside, inside, inside]):
        assert checker._tool(np.array(history), np.array([outside] * 2)) == "tool box"
    assert checker._tool(np.array([inside, inside, outside]), np.array([outside] * 2)) != "tool box"


def test_an_orientation_exactly_at_a_limit_is_within_it():
    yaw, tilt = math.atan2(0.5, 0.75), 0.2
    at = Sent(max_yaw_rad=yaw, max_tilt_rad=tilt)
    down = np.diag([1.0, -1.0, -1.0, 1.0])
    turned, leaning = down.copy(), down.copy()
    turned[:2, 0] = 0.75, -0.5
    leaning[2, 2] = -math.cos(tilt)
    assert at.checker._orientation(down, np.array([turned, leaning])) is None
    leaning[2, 2] = np.nextafter(leaning[2, 2], 0.0)
    assert at.checker._orientation(down, np.array([down, leaning])) == "tool tilt"
    turned[1, 0] = np.nextafter(turned[1, 0], -1.0)
    assert at.checker._orientation(down, np.array([turned, down])) == "tool yaw"
    assert at.checker._orientation(turned, np.array([turned, down])) is None


def test_a_torque_exactly_at_its_limit_is_within_it():
    at, rng = Sent(), np.random.default_rng(2)
    q = at.home + rng.normal(0.0, 0.1, (4, 7))
    rows = np.stack([q, rng.normal(0.0, 0.5, (4, 7)), rng.normal(0.0, 3.0, (4, 7))], axis=1)
    frames, _ = at.kinematics.frames(q)
    torque = at.checker._dynamics.torque(frames, rows[:, 1], rows[:, 2])
    at.checker.torque = np.abs(torque).max(axis=0)
    assert at.checker._effort(frames, rows) is None
    at.checker.torque[4] = np.nextafter(at.checker.torque[4], 0.0)
    assert at.checker._effort(frames, rows) == "joint torque"


@pytest.mark.parametrize("column", range(3))
def test_rows_that_are_no_numbers_are_broken(column):
    at = Sent("panda")
    rows = np.zeros((4, 3, 7))
    rows[:, 0] = at.home
    rows[2, column, 3] = np.nan
    before = np.zeros((3, 3, 7))
    before[:, 0] = at.home
    poses = at.kinematics.frames(before[:, 0])[1]
    assert at.checker.broken(before, poses, rows, at.home)[0] is not None


@pytest.mark.parametrize("robot", ROBOTS)
def test_resting_breaks_nothing(robot):
    at = Sent(robot)
    assert at.broken([at.home] * 4) is None


@pytest.mark.parametrize("robot", ROBOTS)
@pytest.mark.parametrize("joint", range(7))
def test_position(robot, joint):
    at = Sent(robot)
    spec, checker = at.spec, at.checker
    margin = np.maximum(0.02, checker.envelope.standstill_rad)
    np.testing.assert_allclose(checker.q_low, spec.limits("lower_rad") + margin, rtol=1e-15)
    np.testing.assert_allclose(checker.q_high, spec.limits("upper_rad") - margin, rtol=1e-15)
    for limit, way in ((checker.q_low, -math.inf), (checker.q_high, math.inf)):
        q = at.home.copy()
        q[joint] = limit[joint]
        beyond = q.copy()
        beyond[joint] = np.nextafter(q[joint], way)
        assert at.broken(q, leaning=True) != "joint position"
        before = [q] * HISTORY
        assert at.broken(beyond, before=before, leaning=True) == "joint position"
        assert at.broken(q, before=before, target=beyond, leaning=True) == "joint position"
        # From beyond, it may stay and come back, but go no further.
        before = [beyond] * HISTORY
        assert at.broken(beyond, before=before, leaning=True) != "joint position"
        assert at.broken(q, before=before, leaning=True) != "joint position"
        further = beyond.copy()
        further[joint] = np.nextafter(beyond[joint], way)
        assert at.broken(further, before=before, leaning=True) == "joint position"


def in_rows(at: Sent, joint: int, angles) -> tuple[np.ndarray, np.ndarray]:
    """History and rows in which a joint goes through angles [rad] from home."""
    path = np.array([at.moved(joint, angle) for angle in angles])
    return path[:HISTORY], path[HISTORY:]


@pytest.mark.parametrize("robot", ROBOTS)
@pytest.mark.parametrize("joint", range(7))
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_velocity(robot, joint, sign):
    at = Sent(robot, velocity_fraction=0.5)
    before, rows = in_rows(at, joint, [0.0] * 4)
    limit = 0.5 * at.checker.envelope.limit(at.home, sign * np.ones(7))[joint]
    steps = np.arange(-4, 1) * PERIOD_S * sign

    def at_speed(velocity: float) -> str | None:
        before, rows = in_rows(at, joint, velocity * steps)
        return at.broken(rows, before=before, leaning=True)

    assert at_speed(0.999 * limit) != "joint velocity"
    assert at_speed(1.001 * limit) == "joint velocity"
    assert at.broken(rows, before=before) is None


@pytest.mark.parametrize("robot", ROBOTS)
def test_only_fresh_rows_count_against_a_velocity(robot):
    at = Sent(robot, velocity_fraction=0.1)
    fast = at.checker.envelope.limit(at.home, np.ones(7))[0] * 0.2 * PERIOD_S
    before, rows = in_rows(at, 0, [-2 * fast, -fast, 0.0, 0.0, 0.0])
    assert at.broken(rows, before=before) != "joint velocity"
    before, rows = in_rows(at, 0, [0.0, 0.0, 0.0, fast, fast])
    assert at.broken(rows, before=before) == "joint velocity"


def test_the_envelope_counts_where_a_row_ends():
    at = Sent("fr3", velocity_fraction=1.0)
    spec, joint = at.spec, 0
    q = at.home.copy()
    q[joint] = spec.limits("upper_rad")[joint] - 0.15
    limit = at.checker.envelope.limit(q, np.ones(7))[joint]
    for share, expected in ((0.999, False), (1.001, True)):
        path = np.repeat(q[None], 5, axis=0)
        path[:, joint] += np.arange(-4, 1) * PERIOD_S * share * limit
        got = at.broken(path[3:], before=path[:3], leaning=True)
        assert (got == "joint velocity") == expected


@pytest.mark.parametrize("robot", ROBOTS)
@pytest.mark.parametrize("joint", range(7))
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_acceleration(robot, joint, sign):
    at = Sent(robot, acceleration_fraction=0.5)
    limit = 0.5 * at.spec.limits("acceleration_rad_s2")[joint]
    assert at.checker.acceleration[joint] == limit
    squares = 0.5 * sign * (np.arange(5) * PERIOD_S) ** 2

    def at_rate(acceleration: float) -> str | None:
        before, rows = in_rows(at, joint, acceleration * squares)
        return at.broken(rows, before=before, leaning=True)

    assert at_rate(0.999 * limit) != "joint acceleration"
    assert at_rate(1.001 * limit) == "joint acceleration"


@pytest.mark.parametrize("robot", ROBOTS)
def test_only_fresh_rows_count_against_an_acceleration_and_a_jerk(robot):
    at = Sent(robot)
    jump = 3.0 * at.checker.acceleration[0] * PERIOD_S**2
    before, rows = in_rows(at, 0, [-jump, 0.0, 0.0, 0.0, 0.0, 0.0])
    # Two rows after a jump it is over for an acceleration, after three for a jerk.
    assert at.broken(rows, before=before) == "joint jerk"
    before, rows = in_rows(at, 0, [-jump, -jump, 0.0, 0.0, 0.0])
    assert at.broken(rows, before=before) == "joint acceleration"


@pytest.mark.parametrize("robot", ROBOTS)
@pytest.mark.parametrize("joint", range(7))
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_jerk(robot, joint, sign):
    period = 0.001
    at = Sent(robot, period, jerk_fraction=0.5, ramp_s=1e-3)
    limit = 0.5 * at.spec.limits("jerk_rad_s3")[joint]
    assert at.checker.jerk[joint] == pytest.approx(min(limit, 1e3 * at.checker.acceleration[joint]))
    limit = at.checker.jerk[joint]
    # Four rows hold one jerk; the acceleration passes through zero between them.
    cubes = sign * ((np.arange(4) - 1.5) * period) ** 3 / 6.0

    def at_rate(jerk: float) -> str | None:
        before, rows = in_rows(at, joint, jerk * cubes)
        return at.broken(rows, before=before, leaning=True)

    assert at_rate(0.999 * limit) is None
    assert at_rate(1.001 * limit) == "joint jerk"


def test_a_ramp_bounds_the_jerk_further():
    at = Sent("panda", ramp_s=0.5)
    np.testing.assert_allclose(at.checker.jerk, at.checker.acceleration / 0.5)
    assert at.checker.torque.tolist() == (0.9 * at.spec.limits("torque_nm")).tolist()


# -- the tool -----------------------------------------------------------------------------------


def tool_of(at: Sent, q) -> np.ndarray:
    return at.kinematics.forward(q)[:3, 3] - np.array(at.spec.workspace_origin_m)


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("side", ["box_min_m", "box_max_m"])
def test_box(axis, side):
    at = Sent()
    tool = tool_of(at, at.home)
    way = 1.0 if side == "box_min_m" else -1.0
    for shift, expected in ((-1e-6, None), (1e-6, "tool box")):
        face = list(WIDE[side])
        face[axis] = float(tool[axis] + way * shift)
        one = Sent(**{side: tuple(face)})
        before = [one.moved(0, 0.0)] * HISTORY
        # A row that is as far out as the ones before is not further out.
        assert one.broken(one.home, before=before) is None
        # Where the rows before were inside, this one has to be so, too.
        inside = next(q for joint in range(7) for angle in (0.02, -0.02)
                      if way * (tool_of(one, q := one.moved(joint, angle)) - tool)[axis] > 1e-3)
        poses = np.array([one.kinematics.forward(inside)] * HISTORY)
        rows = np.zeros((1, 3, 7))
        rows[0, 0] = one.home
        assert one.checker._tool(poses, np.array([one.kinematics.forward(one.home)] * 2)) == (
            expected or "tool speed")


@pytest.mark.parametrize("robot", ROBOTS)
def test_tool_speed_is_the_lower_of_the_makers_and_ours(robot):
    assert Sent(robot, max_speed_m_s=0.3).checker.speed == 0.3
    assert Sent(robot, max_speed_m_s=1.7).checker.speed == 1.7
    slow = Sent(robot, max_speed_m_s=0.1)
    tool = [tool_of(slow, slow.moved(0, angle)) for angle in (0.0, 1e-3)]
    reach = float(np.linalg.norm(tool[1] - tool[0])) / 1e-3
    speed = 0.1 / reach
    for share, expected in ((0.999, None), (1.001, "tool speed")):
        before, rows = in_rows(slow, 0, speed * share * np.arange(6) * PERIOD_S)
        assert slow.broken(rows, before=before) == expected
    # The row that leads on to the target takes no time.
    before, rows = in_rows(slow, 0, [0.0] * 5)
    assert slow.broken(rows, before=before, target=slow.moved(0, 0.1)) is None


def test_tool_acceleration():
    at = Sent("fr3", **FREE)
    maker = at.spec.cartesian
    assert maker is not None
    poses = np.repeat(np.eye(4)[None], 6, axis=0)
    for share, expected in ((0.999, None), (1.001, "tool acceleration")):
        way = 0.5 * share * maker.acceleration_m_s2 * (np.arange(6) * PERIOD_S) ** 2
        poses[:, 0, 3] = way
        assert at.checker._tool(poses[:3], np.concatenate([poses[3:], poses[-1:]])) == expected


@pytest.mark.parametrize(("robot", "limit"), [("fr3", 2.5), ("panda", 2.5), ("sawyer", 2.5)])
def test_tool_turn(robot, limit):
    at = Sent(robot, **FREE)
    for share, expected in ((0.99, None), (1.01, "tool turn")):
        angles = share * limit * PERIOD_S * np.arange(6)
        poses = np.repeat(np.eye(4)[None], 6, axis=0)
        poses[:, 0, 0] = poses[:, 1, 1] = np.cos(angles)
        poses[:, 1, 0] = np.sin(angles)
        poses[:, 0, 1] = -poses[:, 1, 0]
        assert at.checker._tool(poses[:3], np.concatenate([poses[3:], poses[-1:]])) == expected


def test_tilt_and_yaw():
    at = Sent("panda", max_tilt_rad=0.1, max_yaw_rad=0.5)
    down = np.diag([1.0, -1.0, -1.0, 1.0])

    def leaning(angle: float) -> np.ndarray:
        pose = down.copy()
        pose[1:3, 1:3] = [[-math.cos(angle), math.sin(angle)],
                          [-math.sin(angle), -math.cos(angle)]]
        return pose

    def turned(angle: float) -> np.ndarray:
        pose = down.copy()
        pose[:2, 0] = math.cos(angle), math.sin(angle)
        return pose

    check = at.checker._orientation
    for sign in (-1.0, 1.0):
        assert check(down, np.array([down, leaning(sign * 0.0999)])) is None
        assert check(down, np.array([down, leaning(sign * 0.1001)])) == "tool tilt"
        # It may stay as tilted as it is, and right itself.
        assert check(leaning(0.3), np.array([leaning(sign * 0.3), leaning(0.2)])) is None
        assert check(leaning(0.3), np.array([leaning(sign * 0.301)])) == "tool tilt"
        assert check(down, np.array([down, turned(sign * 0.4999)])) is None
        assert check(down, np.array([turned(sign * 0.5001), down])) == "tool yaw"
        assert check(turned(-0.7), np.array([turned(sign * 0.6999)])) is None
        assert check(turned(-0.7), np.array([turned(sign * 0.7001)])) == "tool yaw"


def test_leaning_lifts_the_limits_of_orientation_alone():
    at = Sent("panda", max_tilt_rad=0.01, max_yaw_rad=0.01, **FREE)
    tilted = at.moved(5, 0.0)
    before, rows = in_rows(at, 5, 0.02 * np.arange(8) * PERIOD_S)
    rows = np.array([*rows, tilted])
    q = at.moved(5, 0.05)
    assert at.broken(at.home, target=q) == "tool tilt"
    assert at.broken(at.home, target=q, leaning=True) is None
    assert at.broken(at.home, target=at.moved(6, 0.05)) == "tool yaw"
    assert at.broken(at.home, target=at.moved(6, 0.05), leaning=True) is None
    assert before.shape == (3, 7) and rows.shape[1] == 7


@pytest.mark.parametrize("robot", ROBOTS)
def test_torque(robot):
    at = Sent(robot, torque_fraction=0.9)
    still = at.checker._dynamics
    frames, _ = at.kinematics.frames(at.home[None])
    none = np.zeros((1, 7))
    weight = still.torque(frames, none, none)[0]
    most = 0.9 * at.spec.limits("torque_nm")
    for joint in range(7):
        way = np.eye(7)[joint]
        gain = still.torque(frames, none, way[None])[0] - weight
        for sign in (-1.0, 1.0):
            # The first of all joints to come to a limit, whatever its sign.
            needed = min((limit - w) / (sign * g) for limit, w, g in
                         zip([*most, *-most], [*weight] * 2, [*gain] * 2, strict=True)
                         if abs(g) > 1e-9 and (limit - w) / (sign * g) > 0.0)
            for share, expected in ((0.9999, None), (1.0001, "joint torque")):
                assert at.broken(at.home, acceleration=share * sign * needed * way) == expected
