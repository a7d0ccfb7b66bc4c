"""The arms' numbers and the scenes' descriptions."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import yaml

from robot_rl.envs.tasks import TASKS, make_task
from robot_rl.errors import InvalidInputError
from robot_rl.kinematics import Kinematics
from robot_rl.specs import Geom, SceneSpec, list_robots, load_robot
from robot_rl.specs.robot import _Loader

ROBOTS = ("fr3", "panda", "sawyer")


def test_all_arms_are_listed():
    assert list_robots() == list(ROBOTS)


def test_an_unknown_arm_lists_those_there_are():
    with pytest.raises(InvalidInputError, match=r"unknown robot 'pand'.*valid: fr3, panda, sawyer"):
        load_robot("pand")
    with pytest.raises(InvalidInputError, match="valid: fr3"):
        load_robot("../specs/panda")


@pytest.mark.parametrize("name", ROBOTS)
def test_an_arm_is_complete_and_plausible(name):
    spec = load_robot(name)
    assert spec.name == name and len(spec.joints) == 7 and len(spec.links) == 8
    assert len(set(spec.joint_names)) == 7
    for field in ("velocity_rad_s", "acceleration_rad_s2", "torque_nm"):
        assert (spec.limits(field) > 0).all(), field
    lower, upper = spec.limits("lower_rad"), spec.limits("upper_rad")
    home = np.array(spec.home_rad)
    assert (lower + 0.1 < home).all() and (home < upper - 0.1).all()
    for link in spec.links:
        i = link.inertia_kg_m2
        tensor = np.array([[i.xx, i.xy, i.xz], [i.xy, i.yy, i.yz], [i.xz, i.yz, i.zz]])
        moments = np.linalg.eigvalsh(tensor)
        assert link.mass_kg > 0 and moments[0] > 0, link.name
        # Of a real body, no moment exceeds the sum of the others (the numbers are rounded).
        assert moments[2] <= (moments[0] + moments[1]) * 1.1 + 1e-9, link.name
    assert spec.gripper.finger_stroke_m > 0.01 and spec.gripper.force_n > 0


@pytest.mark.parametrize("name", ROBOTS)
def test_the_home_posture_points_down_above_the_workspace(name):
    spec = load_robot(name)
    pose = Kinematics(spec).forward(spec.home_rad)
    np.testing.assert_allclose(pose[:3, 2], [0, 0, -1], atol=0.02)
    tool = pose[:3, 3] - spec.workspace_origin_m
    assert abs(tool[0]) < 0.3 and abs(tool[1]) < 0.2 and 0.03 < tool[2] < 0.6


@pytest.mark.parametrize("name", ROBOTS)
def test_specs_cannot_be_changed(name):
    spec = load_robot(name)
    assert load_robot(name) is spec
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.name = "other"  # type: ignore[misc]


def test_numbers_without_a_dot_are_numbers():
    assert yaml.load("a: 5e-05\nb: -1E3\nc: 12\nd: e5", Loader=_Loader) == {
        "a": 5e-05, "b": -1000.0, "c": 12, "d": "e5",
    }


@pytest.mark.parametrize(
    ("shape", "size"),
    [("box", (1.0, 1.0)), ("cylinder", (1.0,)), ("sphere", (0.0,)), ("box", (1.0, -1.0, 1.0))],
)
def test_a_geom_of_a_wrong_size_is_refused(shape, size):
    with pytest.raises(ValueError, match=rf"{shape}: size .* should be \d positive lengths"):
        Geom(shape, size)


def test_an_unknown_body_is_named():
    with pytest.raises(KeyError, match="no body 'cup'"):
        SceneSpec().body("cup")


@pytest.mark.parametrize("task", list(TASKS))
def test_tasks_sample_within_the_workspace_and_apart_from_the_goal(task):
    one = make_task(task.lower())
    assert one.name == task
    rng = np.random.default_rng(0)
    for _ in range(200):
        goal = one.sample_goal(rng)
        start = one.sample_start(rng, goal)
        assert goal.shape == (one.goal_dim,)
        for placement in (start, one.goal_placement(goal)):
            assert (np.abs(placement.tool_m) <= [0.25, 0.3, 0.35]).all()
            assert placement.tool_m[2] >= 0.012
        assert not one.success(goal + 1.01 * one.threshold, goal)
        assert one.success(goal, goal)
        for name, (position, _) in start.bodies.items():
            assert position[2] > 0, name
            assert not one.success(position[: one.goal_dim], goal)
        for value in start.joints.values():
            assert not one.success(np.array([value]), goal)


@pytest.mark.parametrize("task", list(TASKS))
def test_rewards_are_vectorised_and_agree_with_success(task):
    one = make_task(task)
    rng = np.random.default_rng(1)
    achieved = rng.normal(size=(6, 5, one.goal_dim)) * one.threshold
    desired = rng.normal(size=(6, 5, one.goal_dim)) * one.threshold
    reward = one.reward(achieved, desired)
    assert reward.shape == (6, 5) and set(np.unique(reward)) == {-1.0, 0.0}
    for i in range(6):
        for j in range(5):
            far = np.sqrt(sum((achieved[i, j, k] - desired[i, j, k]) ** 2
                              for k in range(one.goal_dim)))
            assert one.distance(achieved[i, j], desired[i, j]) == pytest.approx(far)
            assert reward[i, j] == (0.0 if far <= one.threshold else -1.0)
