"""What each call of the safety filter does, to the number: on an arm that keeps its contract."""

from __future__ import annotations

import math
import re
import threading

import numpy as np
import pytest

from benchmarks.storm.arm import ManualClock, RecordingArm, RecordingGripper
from robot_rl.errors import InvalidInputError, SafetyError, StaleDataError
from robot_rl.interfaces import JointState, Wrench
from robot_rl.kinematics import Kinematics
from robot_rl.safety import Latch, SafetyConfig, SafetyCounters, SafetyFilter
from robot_rl.safety.planner import Found
from robot_rl.specs import load_robot

PERIOD_S = 0.1


class At:
    """A filter on a recording arm at rest."""

    def __init__(self, tool_m=(0.0, 0.0, 0.15), yaw_rad=0.0, robot="panda", lead=1, follow=0.0,
                 period_s=0.01, force=None, latch=None, **config) -> None:
        self.clock, self.gripper = ManualClock(), RecordingGripper()
        self.arm = RecordingArm(load_robot(robot), self.clock, lead_rows=lead, follow=follow,
                                period_s=period_s)
        self.arm.keep_commands = []
        self.config = SafetyConfig(**config)
        self.safety = SafetyFilter(self.arm, self.gripper, self.clock, self.config, force=force,
                                   latch=latch)
        self.arm.put(self.safety.posture(tool_m, yaw_rad))
        if self.safety.held is None:
            self.safety.sync()

    def step(self, delta=(0.0, 0.0, 0.0), turn=0.0, duration=PERIOD_S, wait=None):
        self.safety.measure()
        done = self.safety.move(delta, turn, duration)
        self.clock.pass_s(duration if wait is None else wait)
        return done

    def steps(self, count, delta=(0.0, 0.0, 0.0), turn=0.0):
        for _ in range(count):
            done = self.step(delta, turn)
        return done

    def tool(self, q=None) -> np.ndarray:
        pose = self.safety.kinematics.forward(self.arm.position_rad if q is None else q)
        return pose[:3, 3] - np.array(self.arm.spec.workspace_origin_m)

    def state(self):
        return (self.safety.setpoint_rad.tolist(), self.safety.setpoint_tool_m.tolist(),
                self.safety.yaw_rad, self.arm.queued.tolist(), len(self.arm.commands),
                list(self.gripper.sent))


class Force:
    def __init__(self, *force_n: float) -> None:
        self.force_n, self.asked = np.array(force_n), []

    def wrench(self, max_age_s: float) -> Wrench:
        self.asked.append(max_age_s)
        return Wrench(self.force_n, np.full(3, 1e3), 0.0)

    def zero(self) -> None: ...


# -- making one ---------------------------------------------------------------------------------


def test_what_a_new_filter_knows():
    at = At()
    fresh = SafetyFilter(at.arm, at.gripper, at.clock)
    assert fresh.config == SafetyConfig() and fresh.held is None and fresh.measured_at_s == 0.0
    assert fresh.counters == SafetyCounters() and fresh.yaw_rad == 0.0
    assert fresh.setpoint_rad.tolist() == list(at.arm.spec.home_rad)
    assert fresh.setpoint_tool_m.tolist() == [0.0] * 3
    assert at.safety.config is at.config
    kinematics = Kinematics(at.arm.spec)
    assert SafetyFilter(at.arm, at.gripper, at.clock, None, kinematics).kinematics is kinematics
    assert isinstance(fresh.kinematics, Kinematics)


def test_the_set_points_that_are_handed_out_are_copies():
    at = At()
    for name in ("setpoint_rad", "setpoint_tool_m"):
        getattr(at.safety, name)[:] = 9.0
        assert np.abs(getattr(at.safety, name)).max() < 3.0


# -- refusals -----------------------------------------------------------------------------------

BAD_MOVES = [
    (([np.nan, 0, 0], 0.0, 0.1), "tool displacement is [nan  0.  0.], should be finite"),
    (([0, 0], 0.0, 0.1), "tool displacement has shape (2,), should be (3,)"),
    ((None, 0.0, 0.1), "tool displacement is None, should be numbers of shape (3,)"),
    (("abc", 0.0, 0.1), "tool displacement is 'abc', should be numbers of shape (3,)"),
    (([0j] * 3, 0.0, 0.1), "tool displacement is [0j, 0j, 0j], should be numbers of shape (3,)"),
    (([True] * 3, 0.0, 0.1), "tool displacement is [True, True, True], should be numbers"),
    (([[0], [0, 0], 0], 0.0, 0.1), "tool displacement is [[0], [0, 0], 0], should be numbers"),
    (([0, 0, 0], np.inf, 0.1), "turn is inf, should be finite"),
    (([0, 0, 0], [0.0], 0.1), "turn has shape (1,), should be ()"),
    (([0, 0, 0], 0.0, np.nan), "duration is nan, should be finite"),
    (([0, 0, 0], 0.0, [0.1]), "duration has shape (1,), should be ()"),
    (([0, 0, 0], 0.0, 0.0), "duration is 0.0 s, should be positive and at most 0.5 s"),
    (([0, 0, 0], 0.0, 0.500001), "duration is 0.500001 s, should be positive and at most 0.5 s"),
]


@pytest.mark.parametrize(("move", "message"), BAD_MOVES)
def test_a_move_that_is_none_is_refused_and_changes_nothing(move, message):
    at = At()
    before = at.state()
    for count in (1, 2):
        with pytest.raises(SafetyError, match="^command refused: " + re.escape(message)):
            at.safety.move(*move)
        assert at.safety.counters == SafetyCounters(refused=count)
    assert at.state() == before and at.safety.held is None


@pytest.mark.parametrize(("change", "message"), [
    ({"target_rad": np.zeros(6)}, "joint target has shape (6,), should be (7,)"),
    ({"target_rad": [np.nan] * 7}, "joint target is [nan nan nan nan nan nan nan], should be"),
    ({"duration_s": "x"}, "duration is 'x', should be numbers of shape ()"),
    ({"duration_s": 0.6}, "duration is 0.6 s, should be positive and at most 0.5 s"),
    ({"speed": 0.0}, "speed is 0.0, should be in (0, 1]"),
    ({"speed": 1.0001}, "speed is 1.0001, should be in (0, 1]"),
    ({"speed": None}, "speed is None, should be numbers of shape ()"),
])
def test_a_joint_target_that_is_none_is_refused_and_changes_nothing(change, message):
    at = At()
    before = at.state()
    words = {"target_rad": at.safety.setpoint_rad, "duration_s": 0.1, "speed": 0.2, **change}
    for count in (1, 2):
        with pytest.raises(SafetyError, match="^command refused: " + re.escape(message)):
            at.safety.move_joints(**words)
        assert at.safety.counters == SafetyCounters(refused=count)
    assert at.state() == before


@pytest.mark.parametrize(("opening", "message"), [
    (np.nan, "gripper opening is nan, should be finite"), (None, "gripper opening is None"),
    ([0.5], "gripper opening has shape (1,), should be ()")])
def test_an_opening_that_is_none_is_refused(opening, message):
    at = At()
    for count in (1, 2):
        with pytest.raises(SafetyError, match="^command refused: " + re.escape(message)):
            at.safety.grip(opening)
        assert at.safety.counters.refused == count
    assert at.gripper.sent == []


def test_an_opening_is_clipped():
    at = At()
    assert [at.safety.grip(x) for x in (-3.0, 0.4, 1, 1e30)] == [0.0, 0.4, 1.0, 1.0]
    assert at.gripper.sent == [0.0, 0.4, 1.0, 1.0] and at.safety.counters.refused == 0


# -- measuring ----------------------------------------------------------------------------------


def test_what_is_measured():
    at = At(tool_m=(0.05, -0.1, 0.2))
    at.clock.pass_s(0.37)
    q, speed = at.arm.position_rad, np.linspace(-0.3, 0.4, 7)
    at.arm.lie = JointState(q, speed, 0.21)
    tool, velocity = at.safety.measure()
    np.testing.assert_allclose(tool, at.tool(q), atol=1e-12)
    moved = (at.tool(q + 1e-6 * speed) - at.tool(q - 1e-6 * speed)) / 2e-6
    np.testing.assert_allclose(velocity, moved, atol=1e-7)
    assert at.safety.measured_at_s == 0.21


@pytest.mark.parametrize("what", ["position", "velocity"])
def test_an_arm_that_reports_no_number_is_held(what):
    at = At()
    q, speed = at.arm.position_rad, np.zeros(7)
    (q if what == "position" else speed)[2] = np.nan
    at.arm.lie = JointState(q, speed, 0.0)
    message = (f"the arm reports joint angles {q} rad and velocities {speed} rad/s, should be "
               "7 finite numbers each")
    for ask in (at.safety.sync, at.safety.reset, at.safety.measure):
        with pytest.raises(SafetyError) as caught:
            ask()
        assert str(caught.value) == message
    assert at.safety.held == message


def test_a_state_that_is_too_old_holds_the_arm():
    at = At(max_state_age_s=0.3)
    at.arm.age_s = 0.3
    at.safety.measure()
    assert at.safety.measured_at_s == pytest.approx(-0.3)
    at.arm.age_s = 0.31
    with pytest.raises(StaleDataError):
        at.safety.measure()
    assert "0.31 s old" in str(at.safety.held)


def seen(at: At, q=None, velocity=None) -> dict[str, int]:
    at.arm.lie = JointState(at.arm.position_rad if q is None else q,
                            np.zeros(7) if velocity is None else velocity, at.clock.now_s())
    at.safety.counters = SafetyCounters()
    at.safety.measure()
    at.safety.measure()
    assert at.safety.counters.violations == sum(at.safety.counters.reasons.values())
    return at.safety.counters.reasons


def test_an_arm_outside_its_limits_is_counted_and_named():
    at = At(box_min_m=(-0.9, -0.9, 0.01), box_max_m=(0.9, 0.9, 1.5))
    spec = at.arm.spec
    for limit, way in (("lower_rad", -1.0), ("upper_rad", 1.0)):
        for past, count in ((0.0099, 0), (0.0101, 2)):
            q = at.arm.position_rad
            q[6] = spec.limits(limit)[6] + way * past
            expected = {"joint outside its position limits": count} if count else {}
            assert seen(at, q) == expected
    for share, count in ((1.0, 0), (1.001, 2)):
        for sign in (-1.0, 1.0):
            velocity = np.zeros(7)
            velocity[0] = sign * share * spec.limits("velocity_rad_s")[0]
            expected = {"joint above its velocity limit": count} if count else {}
            assert seen(at, velocity=velocity) == expected


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("side", ["box_min_m", "box_max_m"])
def test_a_tool_outside_its_box_is_counted(axis, side):
    way = -1.0 if side == "box_min_m" else 1.0
    wide = {"box_min_m": (-0.9, -0.9, -0.9), "box_max_m": (0.9, 0.9, 1.5)}
    for past, count in ((0.0099, 0), (0.0101, 2)):
        at = At(**wide)
        face = list(wide[side])
        face[axis] = float(at.tool()[axis] - way * past)
        at = At(**{**wide, side: tuple(face)}, tool_m=(0.0, 0.0, 0.15)) if False else at
        narrow = SafetyFilter(at.arm, at.gripper, at.clock,
                              SafetyConfig(**{**wide, side: tuple(face)}))
        narrow.measure()
        narrow.measure()
        assert narrow.counters.reasons == ({"tool outside the box": count} if count else {})


# -- postures -----------------------------------------------------------------------------------


def test_postures_are_inside_the_box():
    at = At()
    for point in ((0.1, -0.2, 0.2), (-0.25, -0.3, 0.012), (0.0, 0.0, 0.35)):
        q = at.safety.posture(point, 0.3)
        np.testing.assert_allclose(at.tool(q), point, atol=2e-4)
        pose = at.safety.kinematics.forward(q)
        assert math.atan2(pose[1, 0], pose[0, 0]) == pytest.approx(0.3, abs=1e-3)
        assert pose[2, 2] < -0.99999
    at.safety.posture((-0.25 - 0.9e-9, 0.0, 0.2))
    at.safety.posture((0.25 + 0.9e-9, 0.0, 0.2))
    for point in ((-0.25 - 2e-9, 0.0, 0.2), (0.0, 0.3 + 2e-9, 0.2), (0.0, 0.0, 0.0)):
        with pytest.raises(InvalidInputError, match=r"^tool position \[.*\] m is outside the box "
                                                    r"\[-0.25 .* \.\. \[0.25 "):
            at.safety.posture(point)
    for words, message in ((((0, 0), 0.0), "tool position has shape (2,), should be (3,)"),
                           (((0, 0, 0.2), None), "turn is None, should be numbers of shape ()")):
        with pytest.raises(InvalidInputError, match="^" + re.escape(message)):
            at.safety.posture(*words)


# -- starting -----------------------------------------------------------------------------------


def test_a_start_where_the_arm_is():
    at = At(tool_m=(0.1, 0.1, 0.1), yaw_rad=0.4)
    np.testing.assert_allclose(at.safety.setpoint_rad, at.arm.position_rad, atol=0)
    np.testing.assert_allclose(at.safety.setpoint_tool_m, at.tool(), atol=1e-12)
    assert at.safety.yaw_rad == pytest.approx(0.4, abs=1e-3)
    at.clock.pass_s(3.0)
    at.safety.sync()
    assert at.safety.measured_at_s == pytest.approx(3.0)
    done = at.step()
    assert not done.limited and np.abs(done.delta_m).max() < 1e-9


def test_an_arm_that_rests_near_its_set_point_keeps_it():
    at = At()
    at.steps(3, (0.02, 0.0, 0.0))
    at.safety.rest()
    at.clock.pass_s(1.0)
    q = at.arm.position_rad
    for off, kept in ((0.0199, True), (0.0201, False)):
        at.arm.lie = JointState(q + off * np.eye(7)[1], np.zeros(7), at.clock.now_s())
        at.safety.sync()
        assert np.array_equal(at.safety.setpoint_rad, q) == kept
        if not kept:
            np.testing.assert_array_equal(at.safety.setpoint_rad, at.arm.lie.position_rad)


def test_a_start_needs_an_arm_at_rest():
    at = At()
    q = at.arm.position_rad
    for speed, good in ((0.05, True), (0.0501, False)):
        at.arm.lie = JointState(q, -speed * np.eye(7)[2], 0.0)
        if good:
            at.safety.sync()
            continue
        with pytest.raises(SafetyError, match=r"^the arm is moving: a start needs it at rest$"):
            at.safety.sync()
    # A simulator may put it anywhere.
    at.safety.sync(placed=True)
    at.arm.lie = None
    at.step((0.045, 0.0, 0.0), wait=0.05)
    q = at.arm.position_rad
    at.arm.lie = JointState(q, np.zeros(7), at.clock.now_s())
    far = JointState(q + 0.1, np.zeros(7), at.clock.now_s())
    at.arm.lie = far
    with pytest.raises(SafetyError, match="the arm is moving"):
        at.safety.reset()
    at.safety.reset(placed=True)
    np.testing.assert_array_equal(at.safety.setpoint_rad, far.position_rad)


def test_a_reset_forgets_the_counts_and_nothing_releases_a_hold():
    at = At()
    at.steps(2, (9.0, 0.0, 0.0))
    assert at.safety.counters == SafetyCounters(commands=2, limited=2)
    at.safety.rest()
    at.clock.pass_s(1.0)
    at.safety.reset()
    assert at.safety.counters == SafetyCounters()
    at.safety.hold("x")
    for ask in (at.safety.reset, lambda: at.safety.reset(placed=True), at.safety.check_released,
                at.step, lambda: at.safety.grip(0.0),
                lambda: at.safety.move_joints(at.arm.position_rad, 0.1)):
        with pytest.raises(SafetyError, match=r"^the arm is held \(x\); rearm\(\) releases it$"):
            ask()


def test_a_reset_is_not_placed_unless_it_is_said():
    at = At()
    at.step((0.045, 0.0, 0.0), wait=0.03)
    with pytest.raises(SafetyError, match="the arm is moving"):
        at.safety.reset()


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


# -- states -------------------------------------------------------------------------------------


def test_a_state_goes_on_exactly():
    at, rng = At(), np.random.default_rng(3)
    at.steps(3, (0.02, 0.01, 0.0), 0.02)
    at.safety.counters.violate("x")
    saved, arm = at.safety.get_state(), at.arm.snapshot()
    moves = [(rng.uniform(-0.05, 0.05, 3), rng.uniform(-0.1, 0.1)) for _ in range(6)]
    ends = []
    for _ in range(2):
        done = [at.step(delta, turn) for delta, turn in moves]
        at.safety.counters.violate("x")
        ends.append((at.state()[:3], at.arm.queued.tolist(), at.safety.counters,
                     [(d.delta_m.tolist(), d.yaw_rad, d.limited) for d in done]))
        at.safety.set_state(saved)
        at.arm.restore(arm)
        assert at.safety.counters.reasons == {"x": 1} and at.safety.counters.commands == 3
    assert ends[0][0] == ends[1][0] and ends[0][1] == ends[1][1] and ends[0][3] == ends[1][3]
    assert ends[0][2] == ends[1][2] and ends[0][2].reasons == {"x": 2}
    at.clock.pass_s(1.0)
    at.safety.watch()
    assert at.safety.held is not None, "silence goes on being counted"
    at.safety.set_state(saved)
    assert at.safety.held is not None


def test_the_measured_tool_is_part_of_a_state():
    at = At(leash_m=0.01, max_speed_m_s=0.1)
    at.steps(5, (0.01, 0.0, 0.0))
    saved, arm = at.safety.get_state(), at.arm.snapshot()
    first = at.safety.move((0.01, 0.0, 0.0), 0.0, PERIOD_S)
    at.clock.pass_s(0.1)
    at.steps(5, (0.0, 0.01, 0.0))
    at.safety.set_state(saved)
    at.arm.restore(arm)
    again = at.safety.move((0.01, 0.0, 0.0), 0.0, PERIOD_S)
    assert first.delta_m.tolist() == again.delta_m.tolist()


# -- configuration ------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "least", "most"), [
    ("max_speed_m_s", 0.0, 1.7), ("max_yaw_rate_rad_s", 0.0, 2.5), ("max_tilt_rad", 0.0, 1.0),
    ("max_yaw_rad", 0.0, math.pi), ("velocity_fraction", 0.0, 1.0),
    ("acceleration_fraction", 0.0, 1.0), ("jerk_fraction", 0.0, 1.0), ("torque_fraction", 0.0, 1.0),
    ("ramp_s", 0.0, 0.5), ("leash_m", 0.0, 0.2), ("max_state_age_s", 0.0, 1.0),
    ("silence_s", 0.0, 0.08)])
def test_the_range_of_each_limit(name, least, most):
    assert getattr(SafetyConfig(**{name: most}), name) == most
    SafetyConfig(**{name: 1e-9})
    for value in (least, np.nextafter(most, 9.0), math.nan, -1.0, math.inf):
        message = f"^safety: {name} is {re.escape(str(value))}, should be in "
        with pytest.raises(InvalidInputError, match=message + rf"\(0\.0, {most}\]$"):
            SafetyConfig(**{name: value})


def test_the_ranges_of_margin_force_and_box():
    for good in ({"joint_margin_rad": 0.0}, {"joint_margin_rad": 0.5}, {"max_force_n": 200.0},
                 {"max_force_n": 1e-9}, {"max_force_n": None},
                 {"box_min_m": (0.0, 0.0, 0.0), "box_max_m": (0.01, 0.01, 0.01)}):
        SafetyConfig(**good)
    for bad, message in (
        ({"joint_margin_rad": -1e-9}, "safety: joint_margin_rad is -1e-09, should be in [0, 0.5]"),
        ({"joint_margin_rad": 0.51}, "safety: joint_margin_rad is 0.51, should be in [0, 0.5]"),
        ({"joint_margin_rad": math.nan}, "safety: joint_margin_rad is nan, should be in [0, 0.5]"),
        ({"max_force_n": 0.0}, "safety: max_force_n is 0.0, should be in (0.0, 200.0] or None"),
        ({"max_force_n": 201.0}, "safety: max_force_n is 201.0, should be in (0.0, 200.0] or None"),
        ({"max_force_n": math.nan}, "safety: max_force_n is nan, should be in (0.0, 200.0]"),
        ({"box_min_m": (0.0, 0.0)}, "safety box: box_min_m and box_max_m are 3 finite numbers"),
        ({"box_max_m": (0.1, 0.1)}, "safety box: box_min_m and box_max_m are 3 finite numbers"),
        ({"box_max_m": (math.nan, 1, 1)}, "safety box: box_min_m and box_max_m are 3 finite"),
        ({"box_min_m": (-math.inf, 0, 0)}, "safety box: box_min_m and box_max_m are 3 finite"),
        ({"box_min_m": (0.0, 0.0, 0.0), "box_max_m": (0.0099, 1.0, 1.0)},
         "safety box: max [0.0099 1.     1.    ] should be 0.01 m or more above min [0. 0. 0.]"),
    ):
        with pytest.raises(InvalidInputError, match="^" + re.escape(message)):
            SafetyConfig(**bad)


# -- threads ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["measure", "sync", "move", "move_joints", "grip", "rest",
                                  "hold", "rearm", "watch"])
def test_one_thread_at_a_time(name):
    at = At()
    words = {"move": ((0, 0, 0), 0.0, 0.1), "move_joints": (at.safety.setpoint_rad, 0.1),
             "hold": ("x",), "grip": (0.5,)}.get(name, ())
    if name == "rearm":
        at.safety.hold("x")
        at.clock.pass_s(1.0)
    thread = threading.Thread(target=lambda: getattr(at.safety, name)(*words), daemon=True)
    with at.safety._lock:
        thread.start()
        thread.join(0.05)
        assert thread.is_alive(), "it waits for its turn"
    thread.join(5.0)
    assert not thread.is_alive()
