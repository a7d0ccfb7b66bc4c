"""The safety filter: what it refuses, what it shortens, what it never lets the arm do."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from robot_rl.errors import InvalidInputError, SafetyError
from robot_rl.kinematics import rotation_from_rpy, wrap_angle
from robot_rl.safety import SafetyConfig, SafetyFilter

ROBOTS = ("fr3", "panda", "sawyer")
PERIOD_S = 0.1


def envelope(spec, q_rad, velocity_rad_s) -> np.ndarray:
    """The maker's velocity limits (k, n) at angles (k, n), for motion with these signs."""
    limits = np.broadcast_to(spec.limits("velocity_rad_s"), q_rad.shape)
    if spec.joints[0].velocity_envelope_offset is None:
        return limits
    left = np.where(velocity_rad_s > 0, spec.limits("upper_rad") - q_rad,
                    q_rad - spec.limits("lower_rad"))
    braking = np.sqrt(2.0 * spec.limits("velocity_envelope_deceleration") * np.maximum(left, 0.0))
    return np.minimum(limits, np.maximum(0.0, braking - spec.limits("velocity_envelope_offset")))


def check_rows(bench, start_rad) -> None:
    """Every row that the arm sent, and those it would still send, against the maker's limits."""
    spec, config, period = bench.arm.spec, bench.safety.config, bench.arm.period_s
    rows = np.array([start_rad] * 3 + bench.arm.rows + bench.arm.queue)
    lower, upper = spec.limits("lower_rad"), spec.limits("upper_rad")
    assert (rows >= lower + config.joint_margin_rad).all()
    assert (rows <= upper - config.joint_margin_rad).all()
    velocity = np.diff(rows, axis=0) / period
    assert (np.abs(velocity) <= config.velocity_fraction * envelope(spec, rows[1:], velocity)).all()
    acceleration = np.diff(velocity, axis=0) / period
    allowed = config.acceleration_fraction * spec.limits("acceleration_rad_s2")
    assert (np.abs(acceleration) <= allowed).all()
    jerk = np.abs(np.diff(acceleration, axis=0) / period)
    assert (jerk <= config.jerk_fraction * spec.limits("jerk_rad_s3")).all()
    assert (jerk <= allowed / config.ramp_s).all()
    poses = np.array([bench.safety.kinematics.forward(q) for q in rows])
    tool = poses[:, :3, 3] - np.array(spec.workspace_origin_m)
    assert (tool >= config.box_min_m).all() and (tool <= config.box_max_m).all()
    speed = np.linalg.norm(np.diff(tool, axis=0), axis=1) / period
    assert speed.max() <= config.max_speed_m_s
    assert np.arccos(np.clip(-poses[:, 2, 2], -1, 1)).max() <= config.max_tilt_rad
    if spec.cartesian is not None:
        pull = np.linalg.norm(np.diff(tool, 2, axis=0), axis=1) / period**2
        assert pull.max() <= spec.cartesian.acceleration_m_s2
    turned = poses[:-1, :3, :3].swapaxes(1, 2) @ poses[1:, :3, :3]
    cosine = np.clip(0.5 * (np.trace(turned, axis1=1, axis2=2) - 1.0), -1.0, 1.0)
    most = 2.5 if spec.cartesian is None else spec.cartesian.angular_velocity_rad_s
    assert np.arccos(cosine).max() / period <= most + 1e-4


def check_moves(bench, moves) -> None:
    """Send the moves, one each control period, and check every row that reaches the arm."""
    start = bench.arm.position_rad.copy()
    for delta, turn in moves:
        bench.step(delta, turn)
        # The leash twice, the command's own length, and what the arm moves the other way meanwhile.
        config = bench.safety.config
        lead = 2.0 * config.leash_m + 2.0 * config.max_speed_m_s * PERIOD_S
        assert np.linalg.norm(bench.safety.setpoint_tool_m - bench.tool()) < lead
    assert bench.safety.held is None
    check_rows(bench, start)


# -- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("delta", "turn", "duration", "message"),
    [
        ([np.nan, 0, 0], 0.0, 0.1, r"command refused: tool displacement is \[nan .*finite"),
        ([0, np.inf, 0], 0.0, 0.1, r"tool displacement is .*inf.*, should be finite"),
        ([0, 0], 0.0, 0.1, r"tool displacement has shape \(2,\), should be \(3,\)"),
        ([[0, 0, 0]], 0.0, 0.1, r"has shape \(1, 3\), should be \(3,\)"),
        (None, 0.0, 0.1, "tool displacement is None, should be numbers"),
        ("abc", 0.0, 0.1, "tool displacement is 'abc', should be numbers"),
        (["0", "0", "0"], 0.0, 0.1, "should be numbers"),
        ([0j, 0j, 1j], 0.0, 0.1, "should be numbers"),
        ([0, 0, 0], np.nan, 0.1, "turn is nan, should be finite"),
        ([0, 0, 0], None, 0.1, "turn is None, should be numbers"),
        ([0, 0, 0], 0.0, 0.0, "duration is 0.0 s, should be positive"),
        ([0, 0, 0], 0.0, np.inf, "duration is inf, should be finite"),
        ([0, 0, 0], 0.0, -0.1, "duration is -0.1 s, should be positive"),
        ([0, 0, 0], 0.0, 0.6, "duration is 0.6 s, should be positive and at most 0.5 s"),
        ([0, 0, 0], 0.0, 1e300, "duration is 1e.300 s, should be positive and at most"),
    ],
)
def test_a_command_that_is_no_number_is_refused_and_nothing_is_sent(
    bench, delta, turn, duration, message
):
    at = bench()
    tool = at.safety.setpoint_tool_m
    with pytest.raises(SafetyError, match=message):
        at.safety.move(delta, turn, duration)
    assert at.arm.commands == []
    assert at.safety.counters.refused == 1 and at.safety.counters.commands == 0
    assert np.array_equal(at.safety.setpoint_tool_m, tool)


@pytest.mark.parametrize("opening", [np.nan, np.inf, None, "open", [0.5]])
def test_a_grip_that_is_no_number_is_refused(bench, opening):
    at = bench()
    with pytest.raises(SafetyError, match="command refused: gripper opening"):
        at.safety.grip(opening)
    assert at.gripper.sent == []


def test_a_grip_is_clipped_to_the_stroke(bench):
    at = bench()
    assert [at.safety.grip(x) for x in (-3.0, 0.4, 1e30)] == [0.0, 0.4, 1.0]
    assert at.gripper.sent == [0.0, 0.4, 1.0]


def test_the_callers_array_is_not_written_to(bench):
    at = bench()
    delta = np.array([9.0, -9.0, 9.0])
    delta.flags.writeable = False
    at.safety.move(delta, 0.0, PERIOD_S)
    assert delta.tolist() == [9.0, -9.0, 9.0]


def test_an_arm_that_reports_no_number_is_not_believed(bench):
    at = bench()
    at.arm.position_rad[3] = np.nan
    for ask in (at.safety.sync, at.safety.reset, at.safety.measure):
        with pytest.raises(SafetyError, match=r"(?s)the arm reports joint angles .*nan.*finite"):
            ask()
    assert np.isfinite(at.safety.setpoint_rad).all()


# -- limits -------------------------------------------------------------------------------------


@pytest.mark.parametrize("robot", ROBOTS)
def test_a_small_step_inside_the_box_is_done_as_asked(bench, robot):
    at = bench(robot)
    done = at.step([0.01, -0.02, 0.005])
    assert not done.limited
    np.testing.assert_allclose(done.delta_m, [0.01, -0.02, 0.005], atol=1e-12)
    (sent,) = at.arm.commands
    assert sent.period_s == at.arm.period_s and sent.at == 0
    at.wait(0.05)
    at.safety.rest()
    at.wait(0.5)
    np.testing.assert_allclose(at.tool(), [0.01, -0.02, 0.155], atol=1e-3)
    assert at.safety.counters.commands == 1 and at.safety.counters.limited == 0


@pytest.mark.parametrize("robot", ROBOTS)
@pytest.mark.parametrize("control_hz", [5.0, 10.0, 20.0])
def test_a_steady_command_becomes_a_steady_motion(bench, robot, control_hz):
    at = bench(robot, (-0.2, 0.0, 0.15))
    speeds = []
    for _ in range(round(1.2 * control_hz)):
        at.step([0.2 / control_hz, 0.0, 0.0], 0.0, 1.0 / control_hz)
        speeds.append(at.safety.measure()[1][0])
    assert min(speeds[-4:]) > 0.16 and max(speeds[-4:]) < 0.24, speeds
    assert abs(at.safety.setpoint_tool_m[0] - at.tool()[0]) < 0.045


def test_too_long_a_step_keeps_its_direction(bench):
    at = bench()
    wanted = np.array([0.2, 0.1, -0.1])
    done = at.safety.move(wanted, 0.0, PERIOD_S)
    assert done.limited and at.safety.counters.limited == 1
    assert np.linalg.norm(done.delta_m) <= at.safety.config.max_speed_m_s * PERIOD_S + 1e-9
    cosine = done.delta_m @ wanted / np.linalg.norm(done.delta_m) / np.linalg.norm(wanted)
    assert cosine > 0.99


@pytest.mark.parametrize("size", [1e3, 1e150, 1e300])
def test_an_absurd_but_finite_step_is_shortened_without_overflow(bench, size):
    at = bench()
    with np.errstate(all="raise"):
        done = at.safety.move([size, 0.0, 0.0], 0.0, PERIOD_S)
    assert done.limited
    assert 0.0 <= done.delta_m[0] <= 0.0451


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_a_step_out_of_the_box_ends_at_its_face(bench, axis, sign):
    at = bench("panda", config=SafetyConfig(box_min_m=(-0.1, -0.1, 0.05),
                                            box_max_m=(0.1, 0.1, 0.25)))
    face = (at.safety.config.box_max_m if sign > 0 else at.safety.config.box_min_m)[axis]
    delta = np.zeros(3)
    delta[axis] = sign * 0.03
    for _ in range(8):
        done = at.step(delta)
    assert done.limited
    assert np.abs(done.delta_m).max() < 1e-9
    assert at.safety.setpoint_tool_m[axis] == pytest.approx(face - sign * 0.003, abs=1e-12)
    assert at.tool()[axis] == pytest.approx(face - sign * 0.003, abs=1e-3)


@pytest.mark.parametrize("robot", ROBOTS)
@settings(max_examples=12, deadline=None, derandomize=True,
          suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    moves=st.lists(
        st.tuples(
            st.tuples(*[st.floats(-1.0, 1.0)] * 3).map(np.array),
            st.floats(-0.3, 0.3),
            st.integers(1, 12),
        ),
        min_size=1, max_size=8,
    )
)
def test_no_sequence_of_moves_gets_past_the_limits(bench, robot, moves):
    at = bench(robot)
    check_moves(at, [(delta, turn) for delta, turn, times in moves for _ in range(times)])


@pytest.mark.parametrize("robot", ROBOTS)
@pytest.mark.parametrize("kind", ["random", "corners", "turning", "corners and turning"])
def test_hundreds_of_adversarial_moves_stay_within_the_limits(bench, robot, kind):
    rng = np.random.default_rng(7)
    moves = []
    corner, turn = np.ones(3), 0.1
    for i in range(400):
        if i % 25 == 0:
            corner = rng.choice([-1.0, 1.0], 3)
        if i % 120 == 0:
            turn = -turn
        delta = rng.uniform(-0.1, 0.1, 3) if kind == "random" else 0.05 * corner
        if kind == "turning":
            delta = np.zeros(3)
        moves.append((delta, rng.uniform(-0.2, 0.2) if kind == "random" else
                      (turn if "turning" in kind else 0.0)))
    check_moves(bench(robot), moves)


@pytest.mark.parametrize("robot", ROBOTS)
@pytest.mark.parametrize("corner", [(x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)])
def test_the_arm_comes_back_from_every_corner(bench, robot, corner):
    at = bench(robot)
    check_moves(at, [(0.04 * np.array(corner), 0.0)] * 40)
    for _ in range(60):
        way = np.array([0.0, 0.0, 0.15]) - at.safety.setpoint_tool_m
        at.step(np.clip(way, -0.02, 0.02))
    np.testing.assert_allclose(at.tool(), [0.0, 0.0, 0.15], atol=2e-3)


def heading(bench) -> float:
    pose = bench.safety.kinematics.forward(bench.arm.position_rad)
    return float(np.arctan2(pose[1, 0], pose[0, 0]))


@pytest.mark.parametrize("robot", ROBOTS)
def test_a_turn_that_a_joint_cannot_follow_is_not_stored_up(bench, robot):
    at = bench(robot)
    for _ in range(120):
        done = at.step(np.zeros(3), 0.1)
    assert done.limited and abs(done.yaw_rad) < 0.05
    real = heading(at)
    assert abs(wrap_angle(at.safety.yaw_rad - real)) < 0.2
    back = [at.step(np.zeros(3), -0.1) for _ in range(12)]
    turned = wrap_angle(heading(at) - real)
    assert turned < -0.7, "the way back has to begin at once"
    assert sum(step.yaw_rad for step in back) == pytest.approx(turned, abs=0.3)


def test_a_blocked_arm_does_not_store_up_a_jump(bench):
    at = bench()
    at.arm.stuck = True
    here = at.tool()
    for _ in range(40):
        done = at.step([0.02, 0.0, 0.0])
    config = at.safety.config
    lead = np.linalg.norm(at.safety.setpoint_tool_m - here)
    leash = config.leash_m + config.max_speed_m_s * PERIOD_S
    assert 0.9 * leash < lead <= leash + 1e-9
    assert done.limited and np.abs(done.delta_m).max() < 1e-9


def test_a_new_filter_starts_from_where_the_arm_is_not_from_home(bench):
    at = bench(tool_m=(0.2, -0.2, 0.05))
    fresh = SafetyFilter(at.arm, at.gripper, at.clock)
    before = at.arm.position_rad.copy()
    fresh.move(np.zeros(3), 0.0, PERIOD_S)
    assert np.abs(at.arm.commands[-1].position_rad - before).max() < 1e-3


def test_a_move_measures_the_arm_itself_where_nobody_did(bench):
    at = bench()
    at.arm.stuck = True
    here = at.tool()
    for _ in range(40):
        at.safety.move([0.02, 0.0, 0.0], 0.0, PERIOD_S)
        at.wait(PERIOD_S)
    config = at.safety.config
    leash = config.leash_m + config.max_speed_m_s * PERIOD_S
    assert np.linalg.norm(at.safety.setpoint_tool_m - here) <= leash + 1e-9
    at.arm.position_rad[0] = np.nan
    at.safety.rest()
    at.wait(2.0 * config.max_state_age_s)
    count = len(at.arm.commands)
    with pytest.raises(SafetyError, match="the arm reports"):
        at.safety.move(np.zeros(3), 0.0, PERIOD_S)
    assert "the arm reports" in at.safety.held
    for command in at.arm.commands[count:]:
        assert np.ptp(command.position_rad, axis=0).max() < 1e-9, "nothing but a stop"


@pytest.mark.parametrize("robot", ROBOTS)
def test_a_tool_that_was_pushed_out_of_the_box_comes_back_no_faster_than_allowed(bench, robot):
    wide = bench(robot, tool_m=(0.2, 0.0, 0.15))
    at = bench(robot, tool_m=(-0.05, 0.0, 0.15), config=SafetyConfig(
        box_min_m=(-0.1, -0.1, 0.05), box_max_m=(0.0, 0.1, 0.25)))
    at.put(wide.arm.position_rad)
    tools = [at.tool()]
    for _ in range(25):
        done = at.step(np.zeros(3))
        tools.append(at.tool())
    steps = np.linalg.norm(np.diff(tools, axis=0), axis=1)
    assert steps.max() <= at.safety.config.max_speed_m_s * PERIOD_S
    rows = np.array([at.tool(q)[0] for q in at.arm.rows])
    assert rows.max() <= 0.2 and (np.diff(rows[rows > 0.0]) <= 0.0).all(), "never further out"
    assert tools[-1][0] == pytest.approx(-0.003, abs=2e-3)
    assert not done.limited and not done.delta_m.any()


def test_from_outside_the_box_no_command_leads_further_out(bench):
    wide = bench("panda", tool_m=(0.2, 0.0, 0.15))
    at = bench("panda", tool_m=(-0.05, 0.0, 0.15), config=SafetyConfig(
        box_min_m=(-0.1, -0.1, 0.05), box_max_m=(0.0, 0.1, 0.25)))
    at.put(wide.arm.position_rad)
    out = [at.tool()[0]]
    for _ in range(25):
        at.step([0.04, 0.0, 0.0])
        out.append(at.tool()[0])
    assert (np.diff([x for x in out if x > 0.0]) <= 0.0).all() and out[-1] < 0.0


@pytest.mark.parametrize("sign", [-1.0, 1.0])
@pytest.mark.parametrize("robot", ["panda", "sawyer"])
def test_a_heading_near_half_a_turn_is_as_good_as_any(bench, robot, sign):
    at = bench(robot)
    at.put(at.safety.planner.posture(at.safety.planner.pose(np.array([0.0, 0.0, 0.15]),
                                                            sign * 3.1)))
    total, start = 0.0, at.arm.position_rad.copy()
    for _ in range(4):
        total += at.step(np.zeros(3), sign * 0.05).yaw_rad
    at.safety.rest()
    at.wait(0.5)
    # Past half a turn the heading is told from the other side.
    assert total == pytest.approx(sign * 0.2, abs=1e-9)
    assert wrap_angle(heading(at) - sign * 3.3) == pytest.approx(0.0, abs=0.01)
    assert wrap_angle(at.safety.yaw_rad - heading(at)) == pytest.approx(0.0, abs=0.01)
    check_rows(at, start)


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_the_tool_turns_no_further_than_its_range(bench, sign):
    at = bench("panda", config=SafetyConfig(max_yaw_rad=0.5))
    for _ in range(12):
        done = at.step(np.zeros(3), sign * 0.09)
        assert abs(heading(at)) <= 0.5
    assert done.limited and done.yaw_rad == pytest.approx(0.0, abs=1e-12)
    assert at.safety.yaw_rad == pytest.approx(sign * 0.49, abs=1e-12)
    assert heading(at) == pytest.approx(sign * 0.49, abs=5e-3)
    assert not at.step(np.zeros(3), -sign * 0.09).limited


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_a_tool_that_was_turned_out_of_its_range_only_turns_back(bench, sign):
    at = bench("panda", config=SafetyConfig(max_yaw_rad=0.5))
    at.put(at.safety.planner.posture(at.safety.planner.pose(np.array([0.0, 0.0, 0.15]),
                                                            sign * 0.8)))
    before = at.safety.yaw_rad
    done = at.step(np.zeros(3), sign * 0.05)
    assert done.limited and done.yaw_rad == pytest.approx(0.0, abs=1e-12)
    done = at.step(np.zeros(3), -sign * 0.05)
    assert not done.limited and at.safety.yaw_rad == pytest.approx(before - sign * 0.05)


def test_a_leaning_tool_is_set_upright_and_leans_no_further(bench):
    at = bench("panda")
    pose = at.safety.planner.pose(np.array([0.0, 0.0, 0.15]), 0.0)
    pose[:3, :3] = rotation_from_rpy((0.0, 0.25, 0.0)) @ pose[:3, :3]
    at.put(at.safety.kinematics.inverse(pose, at.arm.position_rad).q_rad)
    leaning = [at.safety.kinematics.forward(at.arm.position_rad)[2, 2]]
    for _ in range(15):
        at.step(np.zeros(3))
        leaning += [at.safety.kinematics.forward(q)[2, 2] for q in at.arm.rows[-10:]]
    assert max(leaning) == leaning[0] and leaning[-1] < -0.9999


def test_a_turn_is_no_faster_than_its_rate(bench):
    at = bench(config=SafetyConfig(max_yaw_rate_rad_s=0.5))
    for sign in (1.0, -1.0):
        done = at.step(np.zeros(3), sign * 0.3)
        assert done.limited and done.yaw_rad == sign * 0.05
    assert not at.step(np.zeros(3), 0.05).limited


@pytest.mark.parametrize("what", ["tool", "joint", "velocity"])
def test_violations_of_the_arm_itself_are_counted_and_named(bench, what):
    at = bench("panda", config=SafetyConfig(box_min_m=(-0.1, -0.1, 0.05),
                                            box_max_m=(0.1, 0.1, 0.25)))
    spec = at.arm.spec
    if what == "tool":
        inside = bench("panda").safety
        states = [(inside.posture((0.1 + beyond, 0.0, 0.15)), 0.0) for beyond in (0.009, 0.011)]
        states += [(inside.posture((0.0, -0.1 - beyond, 0.15)), 0.0) for beyond in (0.009, 0.011)]
        reason = "tool outside the box"
    elif what == "joint":
        states = []
        for joint, limit in ((6, spec.joints[6].upper_rad), (6, spec.joints[6].lower_rad)):
            for beyond in (0.009, 0.011):
                q = at.arm.position_rad.copy()
                q[joint] = limit + np.copysign(beyond, limit)
                states.append((q, 0.0))
        reason = "joint outside its position limits"
    else:
        q, limit = at.arm.position_rad.copy(), spec.joints[0].velocity_rad_s
        states = [(q, limit), (q, 1.001 * limit), (q, -limit), (q, -1.001 * limit)]
        reason = "joint above its velocity limit"
    for number, (q, velocity) in enumerate(states):
        at.arm.position_rad, at.arm.velocity_rad_s[0] = q, velocity
        at.safety.measure()
        expected = {reason: number // 2 + number % 2} if number else {}
        assert at.safety.counters.reasons == expected
    assert at.safety.counters.violations == 2
    at.arm.velocity_rad_s[0] = 0.0
    at.put(bench("panda").arm.position_rad)
    at.safety.reset()
    assert at.safety.counters.violations == 0 and at.safety.counters.reasons == {}


def test_postures_are_found_inside_the_box_and_nowhere_else(bench):
    at = bench("sawyer")
    q = at.safety.posture((0.1, -0.2, 0.2))
    np.testing.assert_allclose(at.tool(q), (0.1, -0.2, 0.2), atol=1e-4)
    with pytest.raises(InvalidInputError, match=r"tool position \[.*\] m is outside the box"):
        at.safety.posture((0.4, 0.0, 0.2))
    with pytest.raises(InvalidInputError, match=r"tool position is .*nan.*, should be finite"):
        at.safety.posture((np.nan, 0.0, 0.2))
    with pytest.raises(InvalidInputError, match=r"turn is nan, should be finite"):
        at.safety.posture((0.1, -0.2, 0.2), np.nan)
    far = bench("sawyer", config=SafetyConfig(box_min_m=(-0.2, -0.2, 0.05),
                                              box_max_m=(2.5, 0.2, 0.3)))
    with pytest.raises(InvalidInputError, match=r"out of reach of sawyer: the nearest posture is"):
        far.safety.posture((2.4, 0.0, 0.2))
