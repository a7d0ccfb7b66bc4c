"""Insertion: the plug goes where the socket is and nowhere else, in both engines alike."""

from __future__ import annotations

import numpy as np
import pytest

from robot_rl.envs import make_env
from robot_rl.envs.motion import Motion
from robot_rl.envs.scripted import ScriptedPolicy
from robot_rl.envs.tasks import make_task
from robot_rl.envs.tasks.insertion import (
    BLOCK_M,
    DEPTH_M,
    FREE_HEIGHT_M,
    INSERTED_M,
    PLAY_M,
    REACH_M,
    Insertion,
)
from robot_rl.errors import InvalidInputError
from robot_rl.interfaces import Placement
from robot_rl.specs import Geom, HeldSpec, JointSensor, RegionSensor

pytest.importorskip("mujoco")
pytest.importorskip("pybullet")
ENGINES = ("mujoco", "pybullet")
RIM_M = BLOCK_M[2] + REACH_M


@pytest.fixture
def make():
    made = []

    def world(robot="sawyer", engine="mujoco", start=None, noise=0.0):
        env = make_env("Insertion", robot, engine)
        made.append(env)
        env.task.goal_noise_m = noise
        above = Placement(INSERTED_M + [0.0, 0.0, 0.03])
        env.reset(seed=0, options={"start": above if start is None else start})
        return env

    yield world
    for env in made:
        env.close()


def contact(env) -> float:
    return env.rig.sensors["contact"].read(1.0).value


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("robot", ["sawyer", "fr3"])
def test_straight_down_it_goes_in_and_makes_contact(make, robot, engine):
    env = make(robot, engine)
    motion = Motion(env.rig, env.safety)
    assert contact(env) == 0.0
    assert motion.move_tool_to(INSERTED_M, None, 0.05, tolerance_m=0.0015)
    assert contact(env) == 1.0
    assert env.task.success(env.task.achieved(env.view()), INSERTED_M)
    # It is held on all sides: 3 mm aside is not to be had.
    motion.move_tool_to(INSERTED_M + [0.003, 0.003, 0.0], None, 0.05, tolerance_m=0.0005)
    off = np.abs(env.view().tool_m[:2] - INSERTED_M[:2])
    assert (off < PLAY_M + 0.0008).all()
    assert motion.move_tool_to(INSERTED_M + [0.0, 0.0, 0.03], None, 0.1)
    assert contact(env) == 0.0


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("aside", [(0.0025, 0.0), (0.0, -0.0025), (0.018, 0.0), (0.0, 0.015)])
def test_beside_the_socket_it_stays_out(make, engine, aside):
    env = make(engine=engine)
    motion = Motion(env.rig, env.safety)
    spot = INSERTED_M + [*aside, 0.0]
    assert motion.move_tool_to([*spot[:2], RIM_M + 0.004], None, 0.05, tolerance_m=0.0008)
    arrival = motion.move_tool_to([*spot[:2], RIM_M - 0.002], None, 0.03, tolerance_m=0.0005)
    height = env.view().tool_m[2]
    assert not arrival and abs(height - RIM_M) < 0.0015
    assert contact(env) == 0.0
    assert not env.task.success(env.view().tool_m, spot)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_script_feels_its_way_where_the_goal_is_off(make, engine):
    env = make(engine=engine, noise=0.001)
    script = ScriptedPolicy(env)
    found = []
    for seed in range(4):
        env.reset(seed=seed)
        assert 0.0 < np.abs(env.goal - INSERTED_M).max() <= 0.001
        script.reset()
        info = {}
        for _ in range(env.max_episode_steps):
            *_, info = env.step(script.act())
        found.append((info["is_success"], contact(env)))
    assert found == [(True, 1.0)] * 4


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("robot", ["sawyer", "panda", "fr3"])
def test_the_script_feels_its_way_with_every_arm(make, robot, engine):
    env = make(robot, engine, noise=0.001)
    script = ScriptedPolicy(env)
    inserted = 0
    for seed in range(40):
        env.reset(seed=seed)
        script.reset()
        for _ in range(env.max_episode_steps):
            env.step(script.act())
        inserted += contact(env) == 1.0
    assert inserted >= 38


def test_success_needs_place_and_depth():
    task = Insertion()
    goal = INSERTED_M
    assert task.success(goal + [0.001, -0.001, 0.0015], goal)
    assert not task.success([*goal[:2], RIM_M], goal)
    assert not task.success(goal + [0.0, 0.0, 0.0031], goal)
    assert not task.success(goal + [0.0035, 0.0, 0.0], goal)
    # Full depth with the goal off by the worst noise and the plug at the socket's other side.
    worst = np.array([0.001 + PLAY_M, 0.001 + PLAY_M, 0.0])
    assert task.success(goal, goal + worst)
    rewards = task.reward(np.stack([goal, goal + 0.01]), np.stack([goal, goal]))
    assert rewards.tolist() == [0.0, -1.0]


def test_the_shaped_reward_is_the_chapters():
    task = Insertion(reward="dense")
    rng = np.random.default_rng(0)
    achieved = INSERTED_M + rng.normal(0.0, 0.01, (5, 4, 3))
    desired = np.broadcast_to(INSERTED_M, achieved.shape)
    rewards = task.reward(achieved, desired)
    assert rewards.shape == (5, 4)
    for i in range(5):
        for j in range(4):
            d = achieved[i, j] - INSERTED_M
            one = -100.0 * sum(abs(x) for x in d) + 0.002 / (sum(x * x for x in d) ** 0.5 + 0.001)
            assert rewards[i, j] == pytest.approx(one)
    # Pressing costs before it is in, and pays once it is.
    far, inside = INSERTED_M + [0.0, 0.0, 0.02], INSERTED_M
    assert task.dense_reward(far, INSERTED_M, 10.0) - task.dense_reward(far, INSERTED_M) == (
        pytest.approx(-1.0))
    assert task.dense_reward(inside, INSERTED_M, 10.0) - task.dense_reward(inside, INSERTED_M) == (
        pytest.approx(1.0))
    # Nearer is better all the way down.
    way = INSERTED_M + np.linspace(0.05, 0.0, 50)[:, None] * np.array([0.3, 0.2, 1.0])
    assert (np.diff(task.dense_reward(way, INSERTED_M)) > 0).all()


@pytest.mark.parametrize(("options", "message"), [
    ({"goal_noise_m": -0.001}, "goal_noise_m is -0.001"),
    ({"goal_noise_m": np.nan}, "goal_noise_m is nan"),
    ({"reward": "shaped"}, "unknown reward 'shaped'.*valid: sparse, dense"),
])
def test_options_are_checked(options, message):
    with pytest.raises(InvalidInputError, match=message):
        Insertion(**options)


def test_noise_moves_the_goal_and_not_the_socket():
    exact, noisy = Insertion(), Insertion(goal_noise_m=0.001)
    goals = np.stack([noisy.sample_goal(np.random.default_rng(i)) for i in range(200)])
    assert np.array_equal(exact.sample_goal(np.random.default_rng(0)), INSERTED_M)
    off = goals - INSERTED_M
    assert 0.0009 < np.abs(off[:, :2]).max() <= 0.001 and (off[:, 2] == 0.0).all()
    assert exact.scene() == noisy.scene()
    # The same seed starts from the same place with and without noise.
    first, second = (task.sample_start(rng, task.sample_goal(rng)).tool_m
                     for task, rng in ((exact, np.random.default_rng(3)),
                                       (noisy, np.random.default_rng(3))))
    assert np.array_equal(first, second)
    # A goal's picture shows a plug that is in its socket, not in its wall.
    tool = noisy.goal_placement(INSERTED_M + [0.001, -0.001, 0.0]).tool_m
    np.testing.assert_allclose(tool - INSERTED_M, [PLAY_M, -PLAY_M, 0.0])


def test_starts_are_clear_of_the_block():
    task = make_task("insertion")
    for seed in range(200):
        rng = np.random.default_rng(seed)
        assert task.sample_start(rng, task.sample_goal(rng)).tool_m[2] > FREE_HEIGHT_M


@pytest.mark.parametrize("engine", ENGINES)
def test_the_goal_is_a_state_that_lasts(make, engine):
    env = make(engine=engine, start=Insertion().goal_placement(INSERTED_M))
    for _ in range(5):
        *_, info = env.step(np.zeros(3))
    assert info["is_success"] and info["distance"] < 0.0005 and contact(env) == 1.0


def test_the_plug_is_kept_off_the_table_and_a_task_can_be_given(make):
    env = make()
    assert env.safety.config.box_min_m[2] == pytest.approx(REACH_M + 0.002)
    noisy = make_env(Insertion(goal_noise_m=0.001, reward="dense"))
    noisy.reset(seed=0)
    _, reward, *_ = noisy.step(np.zeros(3))
    assert noisy.task.goal_noise_m == 0.001 and reward < -1.0
    noisy.close()
    low = make_env("Insertion", safety={"box_min_m": (-0.2, -0.2, 0.05)})
    assert low.safety.config.box_min_m == (-0.2, -0.2, 0.05)
    low.close()


def test_what_a_scene_declares_is_checked():
    plug = Insertion().scene().held
    assert plug is not None and plug.reach_m == pytest.approx(REACH_M)
    ball = HeldSpec("ball", (Geom("sphere", (0.02,), (0.0, 0.0, 0.01)),))
    pin = HeldSpec("pin", (Geom("cylinder", (0.004, 0.03), (0.0, 0.0, 0.0)),))
    assert (ball.reach_m, pin.reach_m) == (pytest.approx(0.02), pytest.approx(0.015))
    with pytest.raises(ValueError, match="'contact'"):
        RegionSensor("contact", (0.0, 0.0, 0.1), (0.1, 0.1, 0.1))
    declared = {task: make_task(task).scene().sensors for task in ("Drawer", "Door", "Push")}
    assert declared == {"Drawer": (JointSensor("drawer", "drawer_slide"),),
                        "Door": (JointSensor("door", "door_hinge"),), "Push": ()}
    sensor = Insertion().scene().sensors[0]
    assert isinstance(sensor, RegionSensor)
    assert sensor.high_m[2] == pytest.approx(RIM_M - 0.0075) and DEPTH_M > 0.0075
