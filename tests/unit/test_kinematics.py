"""Kinematics against both engines, finite differences and itself."""

from __future__ import annotations

import numpy as np
import pytest

from robot_rl.kinematics import (
    Kinematics,
    quat_from_rotation,
    rotation_from_quat,
    rotation_from_rpy,
    rotation_vector,
)
from robot_rl.specs import load_robot
from robot_rl_sim.urdf_writer import FOLDER

mujoco = pytest.importorskip("mujoco")
pybullet = pytest.importorskip("pybullet")

ROBOTS = ("fr3", "panda", "sawyer")
N_POSTURES = 1000


def postures(kinematics: Kinematics, count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.uniform(kinematics.lower_rad, kinematics.upper_rad, (count, kinematics.n_joints))


def angle_between(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.linalg.norm(rotation_vector(first @ second.T)))


@pytest.mark.parametrize("name", ROBOTS)
def test_forward_and_jacobian_agree_with_mujoco(name: str):
    spec = load_robot(name)
    kinematics = Kinematics(spec)
    model = mujoco.MjModel.from_xml_path(str(FOLDER / f"{name}.urdf"))
    data = mujoco.MjData(model)
    tool = model.body(spec.gripper.tcp_link).id
    n = kinematics.n_joints
    linear, angular = np.zeros((3, model.nv)), np.zeros((3, model.nv))
    for q in postures(kinematics, N_POSTURES):
        data.qpos[:n] = q
        mujoco.mj_kinematics(model, data)
        pose = kinematics.forward(q)
        assert np.abs(data.xpos[tool] - pose[:3, 3]).max() < 1e-6
        assert angle_between(data.xmat[tool].reshape(3, 3), pose[:3, :3]) < 1e-6
        mujoco.mj_comPos(model, data)
        mujoco.mj_jacBody(model, data, linear, angular, tool)
        jacobian = kinematics.jacobian(q)
        np.testing.assert_allclose(jacobian[:3], linear[:, :n], atol=1e-9)
        np.testing.assert_allclose(jacobian[3:], angular[:, :n], atol=1e-9)


@pytest.mark.parametrize("name", ROBOTS)
def test_forward_agrees_with_pybullet(name: str):
    spec = load_robot(name)
    kinematics = Kinematics(spec)
    client = pybullet.connect(pybullet.DIRECT)
    try:
        arm = pybullet.loadURDF(
            str(FOLDER / f"{name}.urdf"), useFixedBase=True, physicsClientId=client
        )
        joints, links = {}, {}
        for i in range(pybullet.getNumJoints(arm, physicsClientId=client)):
            info = pybullet.getJointInfo(arm, i, physicsClientId=client)
            joints[info[1].decode()], links[info[12].decode()] = i, i
        tool = links[spec.gripper.tcp_link]
        for q in postures(kinematics, N_POSTURES, seed=1):
            for joint, angle in zip(spec.joint_names, q, strict=True):
                pybullet.resetJointState(arm, joints[joint], angle, physicsClientId=client)
            state = pybullet.getLinkState(
                arm, tool, computeForwardKinematics=True, physicsClientId=client
            )
            pose = kinematics.forward(q)
            assert np.abs(np.array(state[4]) - pose[:3, 3]).max() < 1e-6
            assert angle_between(rotation_from_quat(state[5]), pose[:3, :3]) < 1e-6
    finally:
        pybullet.disconnect(physicsClientId=client)


@pytest.mark.parametrize("name", ROBOTS)
def test_jacobian_agrees_with_finite_differences(name: str):
    kinematics = Kinematics(load_robot(name))
    step = 1e-6
    for q in postures(kinematics, 50, seed=2):
        jacobian = kinematics.jacobian(q)
        for i in range(kinematics.n_joints):
            shift = np.zeros(kinematics.n_joints)
            shift[i] = step
            after, before = kinematics.forward(q + shift), kinematics.forward(q - shift)
            linear = (after[:3, 3] - before[:3, 3]) / (2 * step)
            angular = rotation_vector(after[:3, :3] @ before[:3, :3].T) / (2 * step)
            np.testing.assert_allclose(jacobian[:3, i], linear, atol=1e-7)
            np.testing.assert_allclose(jacobian[3:, i], angular, atol=1e-7)


@pytest.mark.parametrize("name", ROBOTS)
def test_inverse_finds_reachable_poses_within_the_limits(name: str):
    kinematics = Kinematics(load_robot(name))
    solved = 0
    for q in postures(kinematics, 20, seed=3):
        target = kinematics.forward(q)
        result = kinematics.inverse(target)
        assert (result.q_rad >= kinematics.lower_rad).all()
        assert (result.q_rad <= kinematics.upper_rad).all()
        if result.converged:
            solved += 1
            pose = kinematics.forward(result.q_rad)
            assert np.linalg.norm(pose[:3, 3] - target[:3, 3]) <= 1e-5
            assert angle_between(pose[:3, :3], target[:3, :3]) <= 1e-4
    # Random postures reach into every corner, and a few restarts do not find all of them.
    assert solved >= 17


@pytest.mark.parametrize("name", ROBOTS)
def test_inverse_covers_the_workspace_with_the_tool_down(name: str):
    spec = load_robot(name)
    kinematics = Kinematics(spec)
    target = np.eye(4)
    target[:3, :3] = rotation_from_rpy((np.pi, 0.0, 0.0))
    for x in (-0.15, 0.0, 0.15):
        for y in (-0.25, 0.0, 0.25):
            for z in (0.02, 0.25):
                target[:3, 3] = np.array(spec.workspace_origin_m) + (x, y, z)
                assert kinematics.inverse(target).converged, (x, y, z)


def test_an_unreachable_pose_is_said_to_be_one():
    kinematics = Kinematics(load_robot("panda"))
    target = np.eye(4)
    target[:3, 3] = (3.0, 0.0, 0.5)
    result = kinematics.inverse(target, restarts=1, max_iterations=50)
    assert not result.converged
    assert result.position_error_m > 1.0


def test_wrong_shapes_are_refused():
    kinematics = Kinematics(load_robot("fr3"))
    with pytest.raises(ValueError, match="shape"):
        kinematics.forward(np.zeros(6))


def test_rotations_round_trip():
    rng = np.random.default_rng(4)
    for _ in range(200):
        quat = rng.normal(size=4)
        quat /= np.linalg.norm(quat)
        rotation = rotation_from_quat(quat)
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
        back = quat_from_rotation(rotation)
        np.testing.assert_allclose(back, quat * np.sign(quat[3]), atol=1e-12)
        vector = rotation_vector(rotation)
        angle = np.linalg.norm(vector)
        half = np.concatenate([np.sin(angle / 2) * vector / angle, [np.cos(angle / 2)]])
        np.testing.assert_allclose(rotation_from_quat(half), rotation, atol=1e-12)
    for axis in np.eye(3):
        turned = rotation_from_quat((*axis, 0.0))
        np.testing.assert_allclose(np.abs(rotation_vector(turned)), np.pi * axis, atol=1e-9)
    np.testing.assert_array_equal(rotation_vector(np.eye(3)), np.zeros(3))


@pytest.mark.parametrize("robot", ["fr3", "panda", "sawyer"])
def test_many_postures_at_once_are_as_one_by_one(robot):
    kinematics = Kinematics(load_robot(robot))
    q = np.random.default_rng(0).uniform(kinematics.lower_rad, kinematics.upper_rad, (9, 7))
    frames, poses = kinematics.frames(q)
    assert frames.shape == (7, 9, 4, 4) and poses.shape == (9, 4, 4)
    for k, each in enumerate(q):
        np.testing.assert_allclose(frames[:, k], kinematics.joint_frames(each), atol=1e-14)
        np.testing.assert_allclose(poses[k], kinematics.forward(each), atol=1e-14)
