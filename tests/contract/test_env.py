"""The environment: gymnasium's contract, refusal, limits, episodes, options."""

from __future__ import annotations

import warnings
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env as gymnasium_check

import robot_rl  # noqa: F401 - registers the tasks
from robot_rl.envs import make_env
from robot_rl.envs.tasks import TASKS
from robot_rl.errors import InvalidInputError, SafetyError, StaleDataError
from robot_rl.interfaces import JointSetpoints, Placement
from robot_rl.specs import CameraSpec
from tests.contract.env_rollouts import ENGINES, random_actions

pytest.importorskip("mujoco")
pytest.importorskip("pybullet")

ROBOTS = ("fr3", "panda", "sawyer")

# -- gymnasium and stable-baselines3 ------------------------------------------------------------


def check_contract(env) -> None:
    from stable_baselines3.common.env_checker import check_env as sb3_check

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        # As make() gives it: wrappers that hide compute_reward would fail the second.
        gymnasium_check(env, skip_render_check=env.render_mode is None)
        sb3_check(env, warn=True)
    serious = [str(w.message) for w in caught if not any(k in str(w.message)
                                                         for k in _ACCEPTED)]
    assert serious == []


_ACCEPTED = (
    "Box observation space minimum value is -infinity",  # positions have no bounds of their own
    "Box observation space maximum value is infinity",
    "A Box observation space has an unconventional shape",
)


@pytest.mark.parametrize("task", list(TASKS))
def test_every_task_passes_the_checkers(task):
    pytest.importorskip("stable_baselines3")
    env = gymnasium.make(f"robot_rl/{task}-v0", robot="panda", backend="mujoco", obs="state")
    check_contract(env)
    env.close()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("obs", ["state", "image"])
def test_both_engines_pass_the_checkers(engine, obs):
    pytest.importorskip("stable_baselines3")
    env = gymnasium.make("robot_rl/Push-v0", robot="sawyer", backend=engine, obs=obs,
                         render_mode="rgb_array")
    check_contract(env)
    env.close()


def test_gymnasium_makes_every_task_with_its_options():
    env = gymnasium.make("robot_rl/Push-v0", robot="sawyer", backend="mujoco", obs="state")
    assert env.unwrapped.safety.kinematics.spec.name == "sawyer"
    observation, info = env.reset(seed=3)
    assert env.observation_space.contains(observation)
    assert sorted(observation) == ["achieved_goal", "desired_goal", "observation"]
    assert {"is_success", "distance", "executed_action", "safety_violations",
            "safety_limited"} <= set(info)
    env.close()
    longer = gymnasium.make("robot_rl/Reach-v0", robot="fr3", duration_s=8.0)
    assert longer.unwrapped.max_episode_steps == 80
    longer.close()
    short = gymnasium.make("robot_rl/Reach-v0", robot="fr3", max_episode_steps=3, control_hz=20)
    short.reset(seed=0)
    flags = [short.step(np.zeros(3, np.float32))[2:4] for _ in range(3)]
    assert flags == [(False, False), (False, False), (False, True)]
    short.close()


def test_the_reward_of_any_goal_can_be_computed():
    for obs in ("state", "image"):
        env = make_env("Push", "panda", obs=obs)
        env.reset(seed=0)
        steps = [env.step(action) for action in random_actions(env, 4)]
        infos = [info for *_, info in steps]
        achieved = np.stack([o["achieved_goal"] for o, *_ in steps])
        desired = np.stack([o["desired_goal"] for o, *_ in steps])
        rewards = env.compute_reward(achieved, desired, infos)
        assert rewards.shape == (4,) and rewards.tolist() == [reward for _, reward, *_ in steps]
        one = env.compute_reward(achieved[0], desired[0], infos[0])
        assert isinstance(one, float) and one == steps[0][1]
        if obs == "state":
            assert env.compute_reward(achieved, achieved, infos).tolist() == [0.0] * 4
        env.close()


# -- what a step refuses and executes -----------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("action", "message"),
    [
        ([np.nan, 0, 0], "is not finite; nothing was sent"),
        ([0, -np.inf, 0], "is not finite; nothing was sent"),
        ([0, 0], r"action has shape \(2,\), should be \(3,\); nothing was sent"),
        ([[0, 0, 0]], r"action has shape \(1, 3\), should be \(3,\)"),
        (0.0, r"action has shape \(\), should be \(3,\)"),
        (None, "action None is not an array of numbers; nothing was sent"),
        ("north", "action 'north' is not an array of numbers"),
        (["0", "0", "0"], "is not an array of numbers"),
        ([None, 0, 0], "is not an array of numbers"),
        ([0, [0], 0], "is not an array of numbers"),
        (np.zeros(3, complex), "is not an array of numbers"),
    ],
)
def test_what_is_no_action_is_refused_and_the_arm_receives_nothing(engine, action, message):
    env = make_env("Reach", "panda", engine)
    env.reset(seed=0)
    sent: list[JointSetpoints] = []
    command = env.rig.arm.command
    env.rig.arm.command = lambda setpoints: sent.append(setpoints) or command(setpoints)
    clock, q = env.rig.clock.now_s(), env.rig.arm.state(0.0).position_rad
    with pytest.raises(SafetyError, match=message):
        env.step(action)
    assert sent == [] and env.rig.clock.now_s() == clock
    assert np.array_equal(env.rig.arm.state(0.0).position_rad, q)
    env.step(np.zeros(3))
    assert len(sent) == 1, "a good action goes through afterwards"
    env.close()


def test_the_callers_action_is_not_changed():
    env = make_env("PickPlace", "panda", randomization={"action_noise": 0.2, "action_bias": 0.2})
    env.reset(seed=0)
    for dtype in (np.float32, np.float64):
        action = np.array([3.0, -3.0, 0.5, 9.0], dtype)
        action.flags.writeable = False
        env.step(action)
        assert action.tolist() == [3.0, -3.0, 0.5, 9.0]
    env.close()


@pytest.mark.parametrize("robot", ROBOTS)
def test_inside_the_box_what_is_asked_for_is_executed_and_at_its_face_less(robot):
    env = make_env("Reach", robot)
    env.reset(seed=0, options={"goal": [0, 0, 0.2], "start": Placement(np.array([0, 0, 0.15]))})
    for action in np.random.default_rng(0).uniform(-0.5, 0.5, (10, 3)):
        *_, info = env.step(action)
        assert not info["action_limited"]
        np.testing.assert_array_equal(info["executed_action"], action.astype(np.float32))
    for _ in range(30):
        observation, _, _, truncated, info = env.step([0.0, 0.0, -1.0])
        if truncated:
            break
    assert info["action_limited"] and info["safety_limited"] > 0
    assert abs(info["executed_action"][2]) < 0.05
    assert observation["observation"][2] > env.safety.config.box_min_m[2] - 0.005
    env.close()


def test_actions_beyond_one_count_as_one():
    ends = []
    for size in (1.0, 50.0):
        env = make_env("Reach", "panda")
        env.reset(seed=1)
        observation, *_, info = env.step([size, 0, 0])
        ends.append((observation["observation"].tolist(), info["executed_action"].tolist()))
        env.close()
    assert ends[0] == ends[1] and ends[0][1][0] == 1.0


@pytest.mark.parametrize("robot", ROBOTS)
@pytest.mark.parametrize("engine", ENGINES)
def test_no_action_sequence_takes_the_arm_past_its_limits(engine, robot):
    env = make_env("Push", robot, engine, action="xyz+yaw+gripper", max_episode_steps=10_000)
    rng = np.random.default_rng(11)
    low, high = np.array(env.safety.config.box_min_m), np.array(env.safety.config.box_max_m)
    kinematics = env.safety.kinematics
    env.reset(seed=0)
    action = np.zeros(5)
    for i in range(250):
        if i % 10 == 0:
            action = rng.choice([-1.0, 1.0], 5) if i % 20 else rng.uniform(-1, 1, 5)
        observation, _, _, _, info = env.step(action)
        tool = observation["observation"][:3]
        q = env.rig.arm.state(1.0).position_rad
        assert (tool > low - 0.01).all() and (tool < high + 0.01).all(), (i, tool)
        assert (q > kinematics.lower_rad).all() and (q < kinematics.upper_rad).all(), (i, q)
        assert np.isfinite(observation["observation"]).all()
    assert info["safety_violations"] == 0, env.safety.counters.reasons
    env.close()


@pytest.mark.parametrize("latency_s", [0.0, 0.1])
def test_a_held_arm_stays_held_until_rearmed(latency_s):
    env = make_env("Reach", "panda", randomization={"latency_s": latency_s})
    env.reset(seed=0)
    env.step([0.5, 0, 0])
    env.safety.hold("operator")
    before = env.rig.arm.state(1.0).position_rad
    for _ in range(2):
        with pytest.raises(SafetyError, match=r"the arm is held \(operator\); rearm\(\) releases"):
            env.step([1, 0, 0])
        with pytest.raises(SafetyError, match="the arm is held"):
            env.reset(seed=0)
        with pytest.raises(SafetyError, match="the arm is held"):
            env.safety.grip(0.0)
        assert np.array_equal(env.rig.arm.state(1.0).position_rad, before)
    env.rig.clock.sleep_until(env.rig.clock.now_s() + 0.5)
    rest = env.rig.arm.state(1.0).position_rad
    assert np.abs(rest - before).max() < 0.05
    env.safety.rearm()
    env.reset(seed=0)
    assert np.isfinite(env.step([1, 0, 0])[0]["observation"]).all()
    env.close()


def test_stale_readings_are_not_used(monkeypatch):
    env = make_env("Reach", "panda")
    env.reset(seed=0)

    def stale(max_age_s: float) -> Any:
        raise StaleDataError(f"joint states are 3 s old, older than {max_age_s} s")

    monkeypatch.setattr(env.rig.arm, "state", stale)
    with pytest.raises(StaleDataError, match=r"older than 0.2 s"):
        env.step(np.zeros(3))
    env.close()


# -- episodes and options -----------------------------------------------------------------------


def test_the_end_of_time_is_not_success_and_success_is_not_the_end():
    start = Placement(np.array([0.0, 0.0, 0.15]))
    for stop in (False, True):
        env = make_env("Reach", "panda", terminate_on_success=stop, max_episode_steps=6)
        env.reset(seed=0, options={"goal": [0.08, 0.0, 0.15], "start": start})
        steps = []
        for _ in range(6):
            steps.append(env.step([1.0 if len(steps) < 3 else 0.0, 0, 0]))
            if steps[-1][2] or steps[-1][3]:
                break
        reached = [step[4]["is_success"] for step in steps]
        assert reached[-1] and not reached[0]
        if stop:
            first = reached.index(True)
            assert len(steps) == first + 1
            assert steps[-1][2:4] == (True, False) and steps[-1][1] == 0.0
        else:
            assert [step[2] for step in steps] == [False] * 6
            assert [step[3] for step in steps] == [False] * 5 + [True]
        for step in steps:
            assert step[1] == (0.0 if step[4]["is_success"] else -1.0)
        with pytest.raises(InvalidInputError, match=r"step\(\) was called before reset\(\)"):
            env.step(np.zeros(3))
        env.close()


@pytest.mark.parametrize(
    ("action", "size"), [("xyz", 3), ("xyz+yaw", 4), ("xyz+gripper", 4), ("xyz+yaw+gripper", 5)]
)
def test_actions_have_the_parts_that_were_asked_for(action, size):
    env = make_env("Push", "panda", action=action)
    observation, _ = env.reset(seed=0)
    assert env.action_space.shape == (size,)
    extra = 2 * ("yaw" in action) + ("gripper" in action)
    assert observation["observation"].shape == (16 + extra,) == (env.state_dim,)
    for _ in range(8):
        wish = np.zeros(size)
        if "yaw" in action:
            wish[3] = 0.5
        if "gripper" in action:
            wish[-1] = 1.0
        observation, *_ = env.step(wish)
    state = observation["observation"]
    if "yaw" in action:
        np.testing.assert_allclose(state[9:11], [np.cos(0.4), np.sin(0.4)], atol=1e-4)
        pose = env.safety.kinematics.forward(env.rig.arm.state(1.0).position_rad)
        assert np.arctan2(pose[1, 0], pose[0, 0]) == pytest.approx(0.4, abs=0.05)
    if "gripper" in action:
        assert state[9 + 2 * ("yaw" in action)] > 0.5
    env.close()


@pytest.mark.parametrize("action", ["yaw", "xyz+gripper+yaw", "xyz+xyz", "", "xyz+", "XYZ"])
def test_other_action_parts_are_refused(action):
    with pytest.raises(InvalidInputError, match=r"unknown action .*valid: xyz, xyz\+yaw"):
        make_env("Push", action=action)


@pytest.mark.parametrize("engine", ENGINES)
def test_several_cameras_are_stacked(engine):
    top = CameraSpec("top", (0.0, 0.0, 0.9), (0.0, 0.0, 0.0))
    env = make_env("Push", "panda", engine, "image", cameras=["side", "top", "front"],
                   extra_cameras=(top,), image_size=(24, 40))
    observation, info = env.reset(seed=0)
    assert observation["observation"].shape == (24, 40, 9)
    assert env.observation_space.contains(observation)
    views = {}
    for name in ("side", "top", "front"):
        alone = make_env("Push", "panda", engine, "image", cameras=name, extra_cameras=(top,),
                         image_size=(24, 40))
        views[name] = alone.reset(seed=0)[0]["observation"]
        alone.close()
    stacked = np.concatenate([views[name] for name in ("side", "top", "front")], axis=2)
    assert np.array_equal(observation["observation"], stacked)
    assert not np.array_equal(views["side"], views["front"])
    assert info["achieved_state"].shape == (2,)
    env.close()


def test_what_is_rendered_shows_the_goal_and_observations_do_not():
    env = make_env("Push", "panda", obs="image", render_mode="rgb_array", image_size=(48, 64),
                   render_size=(48, 64))
    observation, _ = env.reset(seed=0)
    shown = env.render()
    assert shown.shape == (48, 64, 3) and shown.dtype == np.uint8
    differs = np.abs(shown.astype(int) - observation["observation"]).max(axis=2) > 60
    assert 0 < differs.sum() < 200, "only the marker of the goal"
    env.close()
    blind = make_env("Push", "panda")
    blind.reset(seed=0)
    assert blind.render() is None
    blind.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"control_hz": 4.9}, r"control_hz is 4.9, should be in \[5, 20\]"),
        ({"control_hz": 20.1}, "control_hz is 20.1"),
        ({"control_hz": np.nan}, "control_hz is nan"),
        ({"control_hz": "fast"}, "control_hz is 'fast'"),
        ({"randomization": {"mass": "much"}}, "mass is 'much'"),
        ({"action": 3}, "unknown action 3"),
        ({"physics_step_s": 0.02}, "physics_step_s is 0.02"),
        ({"max_episode_steps": 0}, "max_episode_steps is 0, should be at least 1"),
        ({"duration_s": 0.01}, r"duration_s is 0.01, should be in \[0.1, 3600\]"),
        ({"duration_s": 9.0, "max_episode_steps": 9}, "give either duration_s or max_episode"),
        ({"action_speed_m_s": 0.0}, "action_speed_m_s is 0.0"),
        ({"action_speed_m_s": np.inf}, "should be positive and finite"),
        ({"action_speed_m_s": np.nan}, "action_speed_m_s is nan"),
        ({"image_size": 7}, "image_size is 7, should be one or two whole numbers in"),
        ({"image_size": (32,)}, r"image_size is \(32,\)"),
        ({"image_size": 32.0}, "image_size is 32.0"),
        ({"obs": "image", "cameras": ()}, "images need a camera; valid: front, side"),
        ({"safety": {"leash_m": 1.0}}, "leash_m is 1.0"),
    ],
)
def test_numbers_out_of_range_are_named(options, message):
    with pytest.raises(InvalidInputError, match=message):
        make_env("Push", "panda", **options)


@pytest.mark.parametrize("control_hz", [5.0, 10.0, 13.0, 20.0])
def test_a_step_takes_one_control_period(control_hz):
    env = make_env("Reach", "panda", control_hz=control_hz)
    env.reset(seed=0)
    begun = env.rig.clock.now_s()
    for k in range(1, 6):
        observation, *_ = env.step([0.5, 0.0, 0.0])
        assert env.rig.clock.now_s() - begun == pytest.approx(k / control_hz, abs=1e-9)
    assert env.metadata["render_fps"] == round(control_hz)
    # Half speed for five periods is the same speed at every rate.
    assert observation["observation"][3] == pytest.approx(0.125, abs=0.03)
    env.close()


def test_nothing_is_seen_before_the_first_reset():
    env = make_env("Reach", "panda")
    with pytest.raises(InvalidInputError, match=r"step\(\) was called before reset\(\)"):
        env.step(np.zeros(3))
    with pytest.raises(InvalidInputError, match=r"nothing to see before reset\(\)"):
        _ = env.last_view
    env.close()


# -- tasks from elsewhere -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def door():
    pytest.importorskip("gymnasium_robotics")
    from robot_rl.envs.external import make_external

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        env = make_external("AdroitHandDoor-v1")
    yield env
    env.close()


def test_a_task_from_elsewhere_has_our_shape(door):
    observation, _ = door.reset(seed=0)
    assert {k: v.shape for k, v in observation.items()} == {
        "observation": (39,), "achieved_goal": (0,), "desired_goal": (0,)}
    assert door.observation_space.contains(observation)
    assert door.action_space == gymnasium.spaces.Box(-1.0, 1.0, (28,), np.float32)
    observation, reward, terminated, _, info = door.step(np.full(28, 2.0))
    assert (reward, terminated, info["is_success"]) == (-1.0, False, False)
    assert info["executed_action"].tolist() == [1.0] * 28


@pytest.mark.parametrize("action", [np.full(28, np.nan), np.full(28, np.inf), np.zeros(1),
                                    np.zeros(27), "push", None])
def test_a_task_from_elsewhere_refuses_what_is_no_action(door, action):
    door.reset(seed=0)
    with pytest.raises(SafetyError, match="nothing was sent"):
        door.step(action)


def test_the_door_is_open_beyond_one_point_four_rad(door):
    from robot_rl.envs.external import rule_for

    rule = rule_for("AdroitHandDoor-v1")
    observations = np.zeros((3, 39))
    observations[:, 28] = [1.39, 1.4, 1.41]
    assert rule.success(observations).tolist() == [False, False, True]
    door.reset(seed=0)
    inner = door.unwrapped
    joint = inner.model.joint("door_hinge")
    inner.data.qpos[joint.qposadr[0]] = 1.5
    observation, reward, terminated, _, info = door.step(np.zeros(28))
    assert observation["observation"][28] > 1.4
    assert (reward, terminated, info["is_success"]) == (0.0, False, True)
    assert rule_for("Pendulum-v1") is None
