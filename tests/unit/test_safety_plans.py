"""The filter's inverse dynamics, its generator of rows, and its plans."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest

from robot_rl.errors import InvalidInputError
from robot_rl.kinematics import Kinematics
from robot_rl.safety import SafetyConfig
from robot_rl.safety.checks import HISTORY, Plan
from robot_rl.safety.dynamics import InverseDynamics
from robot_rl.safety.generator import Generator
from robot_rl.safety.planner import Aim, Planner
from robot_rl.specs import load_robot

ROBOTS = ("fr3", "panda", "sawyer")
PERIOD_S = 0.01

# -- inverse dynamics ---------------------------------------------------------------------------


def motions(robot: str, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng, spec = np.random.default_rng(seed), load_robot(robot)
    q = rng.uniform(spec.limits("lower_rad"), spec.limits("upper_rad"), (12, 7))
    return q, rng.uniform(-2.0, 2.0, (12, 7)), rng.uniform(-8.0, 8.0, (12, 7))


def torques(robot: str, q, velocity, acceleration) -> np.ndarray:
    spec = load_robot(robot)
    frames, _ = Kinematics(spec).frames(q)
    return InverseDynamics(spec).torque(frames, velocity, acceleration)


@pytest.mark.parametrize("robot", ROBOTS)
def test_torques_agree_with_mujoco(robot):
    mujoco = pytest.importorskip("mujoco")
    writer = importlib.import_module("robot_rl_sim.urdf_writer")
    spec = load_robot(robot)
    model = mujoco.MjModel.from_xml_string(writer.urdf_text(spec))
    model.dof_damping[:] = model.dof_frictionloss[:] = model.dof_armature[:] = 0.0
    model.jnt_limited[:] = 0
    model.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_CONTACT
    data = mujoco.MjData(model)
    q, velocity, acceleration = motions(robot)
    ours = torques(robot, q, velocity, acceleration)
    for i in range(len(q)):
        data.qpos[:7], data.qpos[7:] = q[i], 0.5 * spec.gripper.finger_stroke_m
        data.qvel[:7], data.qacc[:7] = velocity[i], acceleration[i]
        mujoco.mj_inverse(model, data)
        # MuJoCo alters inertias of the Panda that no body could have.
        np.testing.assert_allclose(ours[i], data.qfrc_inverse[:7],
                                   atol=0.02 if robot == "panda" else 1e-6)


@pytest.mark.parametrize("robot", ROBOTS)
def test_torques_agree_with_pybullet(robot, tmp_path):
    bullet = pytest.importorskip("pybullet")
    writer = importlib.import_module("robot_rl_sim.urdf_writer")
    spec = load_robot(robot)
    path = Path(tmp_path) / "arm.urdf"
    path.write_text(writer.urdf_text(spec))
    client = bullet.connect(bullet.DIRECT)
    try:
        bullet.setGravity(0, 0, -9.81, physicsClientId=client)
        arm = bullet.loadURDF(str(path), useFixedBase=True, physicsClientId=client,
                              flags=bullet.URDF_USE_INERTIA_FROM_FILE)
        q, velocity, acceleration = motions(robot, 1)
        ours = torques(robot, q, velocity, acceleration)
        half = [0.5 * spec.gripper.finger_stroke_m] * 2
        for i in range(len(q)):
            found = bullet.calculateInverseDynamics(
                arm, [*q[i], *half], [*velocity[i], 0.0, 0.0], [*acceleration[i], 0.0, 0.0],
                physicsClientId=client)
            np.testing.assert_allclose(ours[i], found[:7], atol=0.05)
    finally:
        bullet.disconnect(client)


@pytest.mark.parametrize("robot", ROBOTS)
def test_torques_do_the_work_that_goes_into_the_motion(robot):
    """The power of the joints is the change of energy: by finite differences, at rest and moving.
    """
    q, velocity, _ = motions(robot, 2)
    still = np.zeros_like(q)
    step = 1e-6
    height = []
    for sign in (1.0, -1.0):
        frames, _ = Kinematics(load_robot(robot)).frames(q + sign * step * velocity)
        dynamics = InverseDynamics(load_robot(robot))
        moments = (frames @ dynamics._moments)[..., 2, 3]
        height.append(9.81 * moments.sum(axis=0))
    gained = (height[0] - height[1]) / (2.0 * step)
    np.testing.assert_allclose((torques(robot, q, still, still) * velocity).sum(axis=1), gained,
                               rtol=1e-6, atol=1e-5)


# -- the generator ------------------------------------------------------------------------------


def generator(robot: str = "panda") -> tuple[Generator, np.ndarray, np.ndarray]:
    acceleration = 0.5 * load_robot(robot).limits("acceleration_rad_s2")
    return Generator(PERIOD_S, acceleration, acceleration / 0.02), acceleration, acceleration / 0.02


def differences(state: np.ndarray, rows: np.ndarray) -> list[np.ndarray]:
    path = np.concatenate([state[None, 0], rows[:, 0]])
    return [np.diff(path, order, axis=0) / PERIOD_S**order for order in (1, 2, 3)]


def test_a_motion_ends_at_rest_at_its_target():
    make, acceleration, jerk = generator()
    state = np.zeros((3, 7))
    target = np.array([0.05, -0.02, 0.0, 0.01, 0.03, -0.04, 0.002])
    rows = make.towards(state, target, np.full(7, 2.0), 15, 0.1)
    assert rows.shape[1:] == (3, 7) and len(rows) >= 16
    np.testing.assert_allclose(rows[-1, 0], target, atol=1e-9)
    assert not rows[-1, 1:].any()
    velocity, second, third = differences(state, rows)
    assert (np.abs(velocity) <= 2.0).all() and (np.abs(second) <= acceleration + 1e-6).all()
    assert (np.abs(third) <= jerk + 1e-3).all()
    # From rest all joints go in proportion.
    shares = rows[:, 0] / np.where(target == 0.0, 1.0, target)
    moving = target != 0.0
    assert np.ptp(shares[:, moving], axis=1).max() < 1e-6 and not rows[:, 0, 2].any()
    # Rows are samples of one motion: their rates are those of their positions.
    np.testing.assert_allclose(rows[1:-1, 1], (rows[2:, 0] - rows[:-2, 0]) / (2 * PERIOD_S),
                               atol=0.02)


def test_a_motion_is_at_least_as_long_as_it_is_waited_for():
    make, _, _ = generator()
    state = np.zeros((3, 7))
    for target in (np.zeros(7), np.full(7, 1e-7), np.full(7, 0.01)):
        rows = make.towards(state, target, np.full(7, 2.0), 40, 0.1)
        assert len(rows) == 41
        np.testing.assert_allclose(rows[-1, 0], target, atol=1e-12)


def test_on_a_long_way_the_arm_brakes_after_the_rows_it_is_given():
    make, acceleration, jerk = generator()
    state = np.zeros((3, 7))
    rows = make.towards(state, np.full(7, 2.0), np.full(7, 0.5), 15, 0.1)
    assert 16 < len(rows) < 60 and (rows[-1, 0] < 0.3).all() and not rows[-1, 1:].any()
    assert rows[14, 1].max() > 0.2, "it is still moving when the next command is due"
    _, second, third = differences(state, rows)
    assert (np.abs(second) <= acceleration + 1e-6).all() and (np.abs(third) <= jerk + 1e-3).all()
    # What is reached within half a second more is gone to.
    for way, reached in ((0.244, True), (0.252, False)):
        near = make.towards(state, np.full(7, way), np.full(7, 0.5), 15, 0.1)
        assert np.allclose(near[-1, 0], way, atol=1e-9) == reached, len(near)


def test_a_moving_arm_goes_on_from_what_it_does():
    make, acceleration, jerk = generator()
    state = np.zeros((3, 7))
    first = make.towards(state, np.full(7, 0.1), np.full(7, 2.0), 15, 0.1)
    middle = first[7]
    rows = make.towards(middle, np.full(7, -0.05), np.full(7, 2.0), 15, 0.1)
    path = np.concatenate([first[:8], rows])
    _, second, third = differences(state, path)
    assert (np.abs(second) <= acceleration + 1e-6).all() and (np.abs(third) <= jerk + 1e-3).all()
    np.testing.assert_allclose(rows[-1, 0], -0.05, atol=1e-9)


def test_braking_takes_as_long_as_it_has_to():
    make, acceleration, jerk = generator()
    state = np.zeros((3, 7))
    state[1] = 0.5
    rows = make.brake(state)
    needed = 0.5 / acceleration.min() + 0.02
    assert len(rows) == int(np.ceil(needed / PERIOD_S)) and not rows[-1, 1:].any()
    before = state[0] - PERIOD_S * state[1]
    path = np.concatenate([before[None], state[None, 0], rows[:, 0]])
    assert (np.abs(np.diff(path, 2, axis=0)) <= (acceleration + 1e-6) * PERIOD_S**2).all()
    assert (np.abs(np.diff(path, 3, axis=0)) <= (jerk + 1e-3) * PERIOD_S**3).all()
    assert len(make.brake(np.zeros((3, 7)))) == 1


def test_what_has_no_solution_gives_no_rows(monkeypatch):
    make, _, _ = generator()
    state = np.zeros((3, 7))
    assert make.towards(state, np.ones(7), np.zeros(7), 15, 0.1) is None
    state[1, 3] = np.nan
    assert make.brake(state) is None
    assert make.towards(state, np.zeros(7), np.full(7, 2.0), 15, 0.1) is None


# -- plans --------------------------------------------------------------------------------------


def test_a_plan_knows_its_rows_by_number():
    rows = np.arange(8 * 21, dtype=np.float64).reshape(8, 3, 7)
    poses = np.arange(8 * 16, dtype=np.float64).reshape(8, 4, 4)
    plan = Plan(10, rows, poses)
    assert plan.end == 18
    assert np.array_equal(plan.rows[plan.before(14)], rows[1:4])
    assert np.array_equal(plan.state(14), rows[3]) and np.array_equal(plan.state(18), rows[7])
    assert np.array_equal(plan.tool(14), poses[3, :3, 3])


@pytest.mark.parametrize(("silence_s", "period_s", "duration_s", "due"), [
    (0.05, 0.01, 0.1, 15), (0.05, 0.02, 0.1, 7), (0.001, 0.01, 0.1, 11), (0.08, 0.001, 0.1, 180),
    (0.05, 0.01, 0.001, 6), (0.03, 0.01, 0.5, 53),
])
def test_after_how_many_rows_a_command_is_missed(silence_s, period_s, duration_s, due):
    planner = Planner(Kinematics(load_robot("panda")), SafetyConfig(silence_s=silence_s), period_s)
    assert planner.due(duration_s) == due


def test_a_pose_and_its_tool_are_each_others_inverse():
    planner = Planner(Kinematics(load_robot("sawyer")), SafetyConfig(), PERIOD_S)
    for yaw in (0.0, 0.7, -3.1):
        pose = planner.pose(np.array([0.1, -0.2, 0.3]), yaw)
        np.testing.assert_allclose(pose[:3, :3] @ pose[:3, :3].T, np.eye(3), atol=1e-12)
        assert np.linalg.det(pose[:3, :3]) == pytest.approx(1.0) and pose[2, 2] == -1.0
        tool, turn = planner.tool(pose)
        np.testing.assert_allclose(tool, [0.1, -0.2, 0.3], atol=1e-12)
        assert turn == pytest.approx(yaw, abs=1e-12)
    np.testing.assert_allclose(planner.pose(np.zeros(3), 0.0)[:3, 3],
                               load_robot("sawyer").workspace_origin_m)


def test_the_set_point_stays_off_the_faces():
    planner = Planner(Kinematics(load_robot("panda")), SafetyConfig(), PERIOD_S)
    np.testing.assert_allclose(planner.inside(np.array([1.0, -1.0, 0.0])), [0.247, -0.297, 0.015])
    np.testing.assert_array_equal(planner.inside(np.array([0.1, 0.1, 0.1])), [0.1, 0.1, 0.1])


def test_a_posture_out_of_reach_is_refused():
    planner = Planner(Kinematics(load_robot("panda")), SafetyConfig(), PERIOD_S)
    message = (r"tool position \[3. +0. +0.3\] m is out of reach of panda: the nearest posture is "
               r"[\d.]+ m away")
    with pytest.raises(InvalidInputError, match=message):
        planner.posture(planner.pose(np.array([3.0, 0.0, 0.3]), 0.0))


def test_without_a_brake_there_is_no_plan_to_stop(monkeypatch):
    planner = Planner(Kinematics(load_robot("panda")), SafetyConfig(), PERIOD_S)
    plan = planner.at_rest(np.array(load_robot("panda").home_rad), 5)
    assert plan.end == 5 and not plan.rows[:, 1:].any() and len(plan.rows) == HISTORY
    stop = planner.brake(plan, 5)
    assert stop.first == 2 and stop.end == 6
    monkeypatch.setattr(planner._generator, "brake", lambda state: None)
    assert planner.brake(plan, 5) is None


def test_at_a_face_the_set_point_comes_off_it_where_it_can_do_no_more(monkeypatch):
    planner = Planner(Kinematics(load_robot("panda")), SafetyConfig(), PERIOD_S)
    home = planner.posture(planner.pose(np.array([0.0, 0.0, 0.012]), 0.0))
    plan = planner.at_rest(home, 0)
    below = Aim(planner.pose(np.array([0.0, 0.0, -0.03]), 0.0), 0.1, 0.1)
    found = planner.to_tool(plan, 0, home, plan.poses[-1], below)
    assert found.part == 0.0
    assert planner.tool(found.pose)[0][2] == pytest.approx(0.015, abs=2e-4)
    # And where even that breaks a limit the plan before goes on.
    monkeypatch.setattr(planner.checker, "broken", lambda *_: ("tool box", plan.poses))
    kept = planner.to_tool(plan, 0, home, plan.poses[-1], below)
    assert kept.part == 0.0 and np.array_equal(kept.q_rad, home)
    assert len(kept.plan.rows) == HISTORY + planner.due(0.1) + 1
    assert np.array_equal(kept.plan.rows, np.repeat(plan.rows[:1], len(kept.plan.rows), axis=0))
