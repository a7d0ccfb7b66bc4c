"""What each call of the safety filter takes, refuses and keeps, to the number."""

from __future__ import annotations

import math
import re
import threading

import numpy as np
import pytest

from robot_rl.errors import InvalidInputError, SafetyError, StaleDataError
from robot_rl.interfaces import JointState
from robot_rl.kinematics import Kinematics
from robot_rl.safety import SafetyConfig, SafetyCounters, SafetyFilter
from tests.safety.filter_arm import PERIOD_S, At

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


def test_what_is_done_to_a_saved_state_does_not_reach_the_filter():
    at = At()
    at.steps(3, (0.02, 0.01, 0.0), 0.02)
    saved = at.safety.get_state()
    arrays = [key for key, value in saved.items() if isinstance(value, np.ndarray)]
    assert set(arrays) == {"q_rad", "reached", "tool_m", "measured_tool_m"}
    before = {key: saved[key].copy() for key in arrays}
    for key in arrays:
        saved[key][:] = np.nan
    again = at.safety.get_state()
    assert all((again[key] == before[key]).all() for key in arrays)
    at.safety.set_state(again)
    for key in arrays:
        again[key][:] = np.nan
    assert all((at.safety.get_state()[key] == before[key]).all() for key in arrays)


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
