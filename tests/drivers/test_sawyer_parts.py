"""Parts of the Sawyer driver and of the simulated Sawyer, without ROS."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from robot_rl.errors import InvalidInputError, StaleDataError
from robot_rl.specs import BodySpec, Geom, HingeJoint, SceneSpec, SlideJoint, load_robot
from robot_rl_drivers.ros_tracker import RosTracker, body_on_joint, multiply, rotate, turn_between
from robot_rl_drivers.sawyer.modes import MODES, check_mode, joint_command
from robot_rl_drivers.sawyer.state import compare_limits
from robot_rl_drivers.streaming import Row
from robot_rl_sim.geometry import jointed_state
from robot_rl_sim.intera_control import POSITION, TORQUE, TRAJECTORY, VELOCITY, InteraController

SPEC = load_robot("sawyer")
NAMES = list(SPEC.joint_names)
HOME = np.array(SPEC.home_rad)
STEP_S = 0.005


# -- the robot's controller ---------------------------------------------------------------------


def run(controller: InteraController, begin_s: float, span_s: float) -> np.ndarray:
    """References over a span."""
    steps = round(span_s / STEP_S)
    return np.array([controller.reference(begin_s + i * STEP_S, STEP_S) for i in range(steps)])


def send(controller: InteraController, mode: int, now_s: float, **values: Any) -> str | None:
    filled = {name: list(values.get(name, [])) for name in ("position", "velocity", "acceleration")}
    return controller.take(mode, NAMES, filled, now_s)


def test_position_mode_moves_at_the_speed_ratio_and_arrives():
    controller = InteraController(SPEC)
    controller.timeout_s = 10.0
    goal = HOME + 0.3
    assert send(controller, POSITION, 0.0, position=goal) is None
    path = run(controller, 0.0, 3.0)
    speed = np.abs(np.diff(path, axis=0)).max(axis=0) / STEP_S
    assert (speed <= 0.3 * SPEC.limits("velocity_rad_s") + 1e-9).all()
    assert speed.max() > 0.2
    assert np.abs(path[-1] - goal).max() < 2e-3
    change = np.abs(np.diff(path, 2, axis=0)).max(axis=0) / STEP_S**2
    assert (change <= 1.01 * SPEC.limits("acceleration_rad_s2")).all()
    controller = InteraController(SPEC)
    controller.timeout_s, controller.speed_ratio = 10.0, 1.0
    send(controller, POSITION, 0.0, position=goal)
    assert np.abs(run(controller, 0.0, 1.2)[-1] - goal).max() < 2e-3, "at full speed it is quicker"


def test_trajectory_mode_goes_on_until_the_next_row_and_then_times_out():
    controller = InteraController(SPEC)
    velocity, acceleration = np.full(7, 0.2), np.full(7, 0.5)
    send(controller, TRAJECTORY, 0.0, position=HOME, velocity=velocity, acceleration=acceleration)
    path = run(controller, 0.0, 0.2)
    expected = HOME + velocity * 0.2 + 0.5 * acceleration * 0.2**2
    assert np.abs(path[-1] - expected).max() < 1e-9
    after = run(controller, 0.2 + STEP_S, 1.0)
    assert controller.mode == 0 and controller.counts["timeouts"] == 1
    assert np.abs(np.diff(after, axis=0))[-1].max() == 0.0, "it came to rest"
    slowing = np.diff(after, 2, axis=0) / STEP_S**2
    assert (slowing >= -1.01 * SPEC.limits("acceleration_rad_s2")).all()


def test_velocity_mode_runs_up_and_stays_within_the_joints():
    controller = InteraController(SPEC)
    controller.timeout_s = 100.0
    send(controller, VELOCITY, 0.0, velocity=np.full(7, 1.0))
    path = run(controller, 0.0, 8.0)
    assert (path <= SPEC.limits("upper_rad") + 1e-12).all()
    assert np.abs(np.diff(path, axis=0)).max() / STEP_S <= 1.0 + 1e-9
    assert path[-1] == pytest.approx(SPEC.limits("upper_rad"))


@pytest.mark.parametrize(
    ("mode", "values", "reason"),
    [
        (TORQUE, {}, "torque mode"), (7, {}, "mode 7"),
        (POSITION, {"position": [0.0] * 6}, "another length"),
        (POSITION, {"position": [math.nan] * 7}, "not finite"),
        (TRAJECTORY, {"position": [0.0] * 7, "velocity": [0.0] * 7}, "acceleration"),
    ],
)
def test_commands_that_the_robot_refuses(mode, values, reason):
    controller = InteraController(SPEC)
    assert reason in send(controller, mode, 0.0, **values)
    assert controller.counts["refused"] == 1 and controller.mode == 0
    assert np.array_equal(run(controller, 0.0, 0.1)[-1], HOME)


def test_joints_are_taken_by_name_and_a_disabled_robot_takes_none():
    controller = InteraController(SPEC)
    goal = HOME + np.linspace(0.01, 0.02, 7)
    names = ["head_pan", *reversed(NAMES)]
    values = {"position": [9.0, *goal[::-1]], "velocity": [0.0] * 8, "acceleration": [0.0] * 8}
    assert controller.take(TRAJECTORY, names, values, 0.0) is None
    assert run(controller, 0.0, 0.1)[-1] == pytest.approx(goal)
    assert "missing" in controller.take(TRAJECTORY, names[:-1], values, 0.0)
    controller.enabled = False
    assert "not enabled" in controller.take(TRAJECTORY, names, values, 0.0)
    controller.halt(HOME)
    assert run(controller, 0.2, 0.1)[-1] == pytest.approx(HOME)


# -- limits and modes ---------------------------------------------------------------------------


def limits() -> dict[str, np.ndarray]:
    return {name: SPEC.limits(name).copy() for name in
            ("lower_rad", "upper_rad", "velocity_rad_s", "acceleration_rad_s2", "torque_nm")}


@pytest.mark.parametrize(
    ("name", "factor"),
    [("lower_rad", 0.99), ("upper_rad", 0.99), ("velocity_rad_s", 0.9),
     ("acceleration_rad_s2", 0.5), ("torque_nm", 0.9)],
)
@pytest.mark.parametrize("joint", [0, 6])
def test_a_limit_that_is_narrower_is_named(name, factor, joint):
    told = limits()
    assert compare_limits(SPEC, told) is None
    told[name][joint] *= factor
    found = compare_limits(SPEC, told)
    assert found is not None and f"{name} of right_j{joint}" in found
    assert f"{told[name][joint]:g}" in found and f"{SPEC.limits(name)[joint]:g}" in found
    told[name][joint] /= factor**2
    assert compare_limits(SPEC, told) is None, "wider is fine"


def test_limits_that_are_missing_or_no_numbers():
    told = limits()
    del told["upper_rad"]
    assert "no position limits" in str(compare_limits(SPEC, told))
    told = limits()
    told["velocity_rad_s"][2] = math.nan
    assert "velocity_rad_s of right_j2" in str(compare_limits(SPEC, told))
    told = limits()
    told["acceleration_rad_s2"][:] = 0.0  # the robot tells none
    del told["torque_nm"]
    assert compare_limits(SPEC, told) is None


class Kind(SimpleNamespace):
    """In place of the message class."""

    POSITION_MODE, VELOCITY_MODE, TORQUE_MODE, TRAJECTORY_MODE = 1, 2, 3, 4


def test_a_row_in_each_mode():
    row = Row(0, HOME + 0.01, np.full(7, 0.1), np.full(7, 0.2))
    sent = joint_command("trajectory", Kind, SPEC, row, None)
    assert sent.mode == 4 and sent.names == NAMES
    assert sent.position == row.position_rad.tolist() and sent.velocity == [0.1] * 7
    assert sent.acceleration == [0.2] * 7
    sent = joint_command("position", Kind, SPEC, row, None)
    assert sent.mode == 1 and not hasattr(sent, "velocity")
    sent = joint_command("velocity", Kind, SPEC, row, HOME)
    assert sent.mode == 2 and sent.velocity == pytest.approx([0.1 + 6.0 * 0.01] * 7)
    assert joint_command("velocity", Kind, SPEC, row, None).velocity == [0.0] * 7
    far = joint_command("velocity", Kind, SPEC, row, HOME - 9.0)
    assert far.velocity == pytest.approx(SPEC.limits("velocity_rad_s"))
    with pytest.raises(InvalidInputError, match="torque"):
        check_mode("torque")
    assert "torque" not in MODES


# -- tracker ------------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.time_s = 100.0

    def now_s(self) -> float:
        return self.time_s

    def sleep_until(self, time_s: float) -> None:
        self.time_s = time_s


BOX = (Geom("box", (0.1, 0.1, 0.1)),)
SCENE = SceneSpec(bodies=(
    BodySpec("puck", BOX, "free"),
    BodySpec("wall", BOX, "fixed", (0.1, 0.2, 0.3)),
    BodySpec("drawer", BOX, SlideJoint("slide", (0.0, -1.0, 0.0), 0.0, 0.2), (0.3, 0.0, 0.1),
             (0.0, 0.0, math.sin(0.2), math.cos(0.2))),
    BodySpec("door", BOX, HingeJoint("hinge", (0.0, 0.0, 1.0), 0.0, 1.5), (0.2, 0.1, 0.1)),
))


class Topics:
    """In place of ROS."""

    def __init__(self) -> None:
        self.callbacks: dict[str, Any] = {}
        self.closed = 0

    def __call__(self, topic: str, kind: str, callback: Any) -> Any:
        self.callbacks[topic] = callback
        return SimpleNamespace(close=self._close)

    def _close(self) -> None:
        self.closed += 1


def stamp(time_s: float, ros: int = 1) -> Any:
    seconds = int(time_s)
    nanoseconds = round((time_s - seconds) * 1e9)
    if ros == 1:
        return SimpleNamespace(secs=seconds, nsecs=nanoseconds)
    return SimpleNamespace(sec=seconds, nanosec=nanoseconds)


def pose(time_s: float, position: Any, quat: Any = (0, 0, 0, 1), frame: str = "workspace",
         ros: int = 1) -> Any:
    return SimpleNamespace(
        header=SimpleNamespace(stamp=stamp(time_s, ros), frame_id=frame),
        pose=SimpleNamespace(
            position=SimpleNamespace(**dict(zip("xyz", position, strict=True))),
            orientation=SimpleNamespace(**dict(zip("xyzw", quat, strict=True))),
        ),
    )


@pytest.fixture
def tracked():
    topics, clock = Topics(), Clock()
    return RosTracker(SCENE, clock, topics), topics, clock


@pytest.mark.parametrize("ros", [1, 2])
def test_a_bodys_velocity_is_that_of_its_poses(tracked, ros):
    tracker, topics, clock = tracked
    take = topics.callbacks["/robot_rl/bodies/puck"]
    speed, spin = np.array([0.2, -0.1, 0.05]), 0.8
    for k in range(20):
        clock.time_s += 0.01
        angle = spin * k * 0.01
        take(pose(5000.0 + 0.01 * k, 0.01 * k * speed,
                  (0, 0, math.sin(angle / 2), math.cos(angle / 2)), ros=ros))
    state = tracker.body("puck", 0.1)
    assert state.position_m == pytest.approx(0.19 * speed)
    assert state.velocity_m_s == pytest.approx(speed)
    assert state.angular_velocity_rad_s == pytest.approx([0.0, 0.0, spin], abs=1e-9)


def test_old_repeated_and_bad_poses_are_not_taken(tracked):
    tracker, topics, clock = tracked
    take = topics.callbacks["/robot_rl/bodies/puck"]
    with pytest.raises(StaleDataError, match="nothing has come"):
        tracker.body("puck", 0.2)
    take(pose(1.0, (0.1, 0, 0), frame="base"))
    with pytest.raises(StaleDataError, match="frame is 'base'"):
        tracker.body("puck", 0.2)
    take(pose(1.0, (0.1, 0, 0), quat=(0, 0, 0, 0)))
    with pytest.raises(StaleDataError, match="no rotation"):
        tracker.body("puck", 0.2)
    take(pose(1.0, (math.nan, 0, 0)))
    with pytest.raises(StaleDataError, match="nan"):
        tracker.body("puck", 0.2)
    take(pose(1.0, (0.1, 0, 0)))
    assert tracker.body("puck", 0.2).position_m[0] == 0.1
    for _ in range(5):  # the same measurement again and again
        clock.time_s += 0.1
        take(pose(1.0, (0.1, 0, 0)))
    with pytest.raises(StaleDataError, match=r"0\.500 s old.*stand still"):
        tracker.body("puck", 0.2)
    take(pose(0.5, (0.2, 0, 0)))  # whoever stamps has set its clock back
    assert tracker.body("puck", 0.2).velocity_m_s == pytest.approx([0, 0, 0])


def test_a_body_on_a_joint_is_where_the_simulators_say(tracked):
    for body in SCENE.bodies[2:]:
        for position, velocity in ((0.0, 0.0), (0.13, -0.4), (0.9, 0.2)):
            ours, theirs = (f(body, position, velocity) for f in (body_on_joint, jointed_state))
            assert ours.position_m == pytest.approx(theirs.position_m)
            assert abs(float(ours.quat_xyzw @ theirs.quat_xyzw)) == pytest.approx(1.0)
            assert ours.velocity_m_s == pytest.approx(theirs.velocity_m_s)
            assert ours.angular_velocity_rad_s == pytest.approx(theirs.angular_velocity_rad_s)


def test_joints_with_and_without_velocity(tracked):
    tracker, topics, clock = tracked
    take = topics.callbacks["/robot_rl/joints"]
    for k in range(10):
        clock.time_s += 0.01
        take(SimpleNamespace(
            header=SimpleNamespace(stamp=stamp(10.0 + 0.01 * k)), name=["hinge", "slide"],
            position=[0.02 * k, 0.01 * k], velocity=[],
        ))
    assert tracker.joint("slide", 0.1) == pytest.approx((0.09, 1.0))
    assert tracker.joint("hinge", 0.1) == pytest.approx((0.18, 2.0))
    assert tracker.body("drawer", 0.1).velocity_m_s == pytest.approx(
        rotate(np.array(SCENE.body("drawer").quat_xyzw), np.array([0.0, -1.0, 0.0]))
    )
    clock.time_s += 0.01
    take(SimpleNamespace(header=SimpleNamespace(stamp=stamp(11.0)), name=["slide"],
                         position=[0.2], velocity=[0.7]))
    assert tracker.joint("slide", 0.1) == (0.2, 0.7)
    assert tracker.body("wall", 0.0).position_m == pytest.approx((0.1, 0.2, 0.3))
    with pytest.raises(InvalidInputError, match="slid"):
        tracker.joint("slid", 0.1)
    tracker.close()
    tracker.close()
    assert topics.closed == 4


def test_turns_between_quaternions():
    rng = np.random.default_rng(0)
    for _ in range(20):
        axis = rng.standard_normal(3)
        axis /= np.linalg.norm(axis)
        angle = rng.uniform(0.01, 3.0)
        before = rng.standard_normal(4)
        before /= np.linalg.norm(before)
        turn = np.append(math.sin(angle / 2) * axis, math.cos(angle / 2))
        assert turn_between(before, multiply(turn, before)) == pytest.approx(angle * axis)
        assert turn_between(before, -multiply(turn, before)) == pytest.approx(angle * axis)
        vector = rng.standard_normal(3)
        # Rodrigues' formula.
        expected = (vector * math.cos(angle) + np.cross(axis, vector) * math.sin(angle)
                    + axis * (axis @ vector) * (1 - math.cos(angle)))
        assert rotate(turn, vector) == pytest.approx(expected)
