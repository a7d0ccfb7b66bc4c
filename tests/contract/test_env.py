"""The environment: gymnasium's contract, exact repetition, refusal, limits, options."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import warnings
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env as gymnasium_check

import robot_rl  # noqa: F401 - registers the tasks
from robot_rl.envs import make_env
from robot_rl.envs.robot_env import RandomizationOptions
from robot_rl.envs.tasks import TASKS
from robot_rl.errors import InvalidInputError, SafetyError, StaleDataError
from robot_rl.interfaces import JointSetpoints, Placement
from robot_rl.specs import CameraSpec

pytest.importorskip("mujoco")
pytest.importorskip("pybullet")

ENGINES = ("mujoco", "pybullet")
ROBOTS = ("fr3", "panda", "sawyer")
EVERYTHING = {"mass": 0.3, "friction": 0.3, "color": 0.2, "camera_m": 0.03, "camera_rad": 0.03,
              "latency_s": 0.08, "action_noise": 0.1, "action_bias": 0.1}


def digest(*arrays: Any) -> str:
    found = hashlib.sha256()
    for array in arrays:
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def rollout(env, actions, *, seed: int | None = None) -> list[str]:
    """A digest of everything that comes back at each step; ``seed`` begins a new episode."""
    out = []
    if seed is not None:
        observation, info = env.reset(seed=seed)
        out.append(digest(*observation.values(), env.goal))
    for action in actions:
        observation, reward, terminated, truncated, info = env.step(action)
        out.append(digest(*observation.values(), reward, terminated, truncated,
                          info["executed_action"], info["distance"], env.safety.setpoint_rad))
    return out


def random_actions(env, count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (count, *env.action_space.shape))


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


# -- exact repetition ---------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("obs", ["state", "image"])
@pytest.mark.parametrize("random", [{}, EVERYTHING], ids=["nominal", "randomised"])
def test_a_seed_repeats_bit_for_bit_whatever_was_before(engine, obs, random):
    options = {"obs": obs, "randomization": random or None, "image_size": 32}
    count = 25 if obs == "state" else 8
    first = make_env("Push", "panda", engine, **options)
    actions = random_actions(first, count)
    expected = rollout(first, actions, seed=5)
    second = make_env("Push", "panda", engine, **options)
    # Another history: other seeds, other lengths, an abandoned episode.
    rollout(second, random_actions(second, 13, 1), seed=9)
    rollout(second, random_actions(second, 4, 2), seed=10)
    assert rollout(second, actions, seed=5) == expected
    assert rollout(second, actions, seed=6)[-1] != expected[-1]
    first.close()
    second.close()


@pytest.mark.parametrize("control_hz", [5.0, 7.0, 12.8, 16.0, 20.0])
def test_repetition_does_not_depend_on_the_rate(control_hz):
    env = make_env("Push", "panda", control_hz=control_hz)
    assert env.max_episode_steps == round(5.0 * control_hz)
    actions = random_actions(env, 15)
    expected = rollout(env, actions, seed=1)
    for other in (3, 4):
        rollout(env, random_actions(env, other, other), seed=other)
        assert rollout(env, actions, seed=1) == expected
    env.close()


_OTHER_PROCESS = """
import sys
import numpy as np
from robot_rl.envs import make_env
engine, obs = sys.argv[1:]
env = make_env("PickPlace", "sawyer", engine, obs, image_size=32)
rng = np.random.default_rng(0)
observation, _ = env.reset(seed=4)
import hashlib
found = hashlib.sha256()
for _ in range(10):
    for value in observation.values():
        found.update(np.ascontiguousarray(value).tobytes())
    observation, *_ = env.step(rng.uniform(-1, 1, env.action_space.shape))
print(found.hexdigest())
env.close()
"""


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("obs", ["state", "image"])
def test_two_processes_see_the_same(engine, obs):
    found = {
        subprocess.run([sys.executable, "-c", _OTHER_PROCESS, engine, obs], text=True,
                       capture_output=True, check=True, timeout=120).stdout.strip()
        for _ in range(2)
    }
    assert len(found) == 1 and len(found.pop()) == 64


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("obs", ["state", "image"])
@pytest.mark.parametrize("task", ["Push", "PickPlace", "Drawer"])
def test_a_saved_state_goes_on_bit_for_bit(engine, obs, task):
    env = make_env(task, "panda", engine, obs, randomization=EVERYTHING, image_size=32)
    count = 15 if obs == "state" else 6
    actions = random_actions(env, count)
    env.reset(seed=2)
    for action in random_actions(env, 7, 3):
        env.step(action)
    state = env.get_state()
    expected = rollout(env, actions)
    counters = env.safety.counters
    # On from there after more of the same episode, after another episode, and in another world.
    rollout(env, random_actions(env, 5, 4), seed=8)
    env.set_state(state)
    assert rollout(env, actions) == expected
    assert env.safety.counters == counters
    other = make_env(task, "panda", engine, obs, randomization=EVERYTHING, image_size=32)
    other.reset(seed=77)
    other.set_state(state)
    assert rollout(other, actions) == expected
    env.close()
    other.close()


@pytest.mark.parametrize("engine", ENGINES)
def test_a_script_goes_on_from_a_saved_state(engine):
    from robot_rl.envs.scripted import ScriptedPolicy

    env = make_env("Push", "panda", engine)
    env.reset(seed=0)
    policy = ScriptedPolicy(env)
    policy.reset()
    for _ in range(10):
        env.step(policy.act())
    state, action = env.get_state(), policy.act()
    for _ in range(10):
        env.step(policy.act())
    env.set_state(state)
    assert np.array_equal(policy.act(), action)
    env.close()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("obs", ["state", "image"])
def test_a_goal_image_leaves_the_world_as_it_was(engine, obs):
    envs = [make_env("Drawer", "panda", engine, obs, image_size=32, randomization=EVERYTHING)
            for _ in range(2)]
    rng = np.random.default_rng(0)
    for env in envs:
        env.reset(seed=1)
    for action in rng.uniform(-1, 1, (12, 3)):
        image = envs[1].goal_image(rng.uniform([0.0], [0.15]))
        assert image.shape == (32, 32, 3) and image.dtype == np.uint8
        assert rollout(envs[0], [action]) == rollout(envs[1], [action])
    same = envs[0].goal_image(envs[0].goal)
    if obs == "image":
        assert np.array_equal(same, envs[0].step(np.zeros(3))[0]["desired_goal"])
    assert not np.array_equal(envs[0].goal_image([0.0]), envs[0].goal_image([0.15]))
    for env in envs:
        env.close()


def test_a_goal_and_a_start_can_be_asked_for():
    env = make_env("Push", "panda")
    start = Placement(np.array([0.1, 0.1, 0.2]),
                      bodies={"puck": (np.array([-0.05, 0.02, 0.02]), np.array([0, 0, 0, 1.0]))})
    observation, _ = env.reset(seed=0, options={"goal": [0.1, -0.1], "start": start})
    assert observation["desired_goal"].tolist() == np.float32([0.1, -0.1]).tolist()
    np.testing.assert_allclose(observation["observation"][:3], [0.1, 0.1, 0.2], atol=1e-4)
    np.testing.assert_allclose(observation["achieved_goal"], [-0.05, 0.02], atol=1e-3)
    for options, message in (
        ({"goal": [0.1]}, "goal of Push is .*, should be 2 finite numbers"),
        ({"goal": [np.nan, 0]}, "should be 2 finite numbers"),
        ({"goals": [0, 0]}, "unknown reset option 'goals'.*valid: goal, start"),
        ({"start": Placement(np.array([0.0, 0.0, 2.0]))}, "is outside the box"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            env.reset(options=options)
        with pytest.raises(InvalidInputError, match=r"step\(\) was called before reset"):
            env.step(np.zeros(3))
    env.close()


# -- randomisation ------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "bad"), [
    ("mass", 0.96), ("friction", -0.1), ("color", 1.1), ("camera_m", 0.6), ("camera_rad", np.nan),
    ("latency_s", 0.51), ("action_noise", np.inf), ("action_bias", -1.0),
])
def test_ranges_are_checked(name, bad):
    with pytest.raises(InvalidInputError, match=rf"randomisation: {name} is .*should be in \[0, "):
        make_env("Push", randomization={name: bad})
    assert RandomizationOptions(**{name: 0.01}).touches_scene == (
        name in ("mass", "friction", "color", "camera_m", "camera_rad"))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("name", "amount"), [("mass", 0.5), ("friction", 0.5), ("color", 0.3), ("camera_m", 0.05),
                         ("camera_rad", 0.05), ("latency_s", 0.1), ("action_noise", 0.2),
                         ("action_bias", 0.3)],
)
def test_each_randomisation_changes_what_it_says(engine, name, amount):
    env = make_env("Push", "panda", engine, "image", image_size=32,
                   randomization={name: amount})
    plain = make_env("Push", "panda", engine, "image", image_size=32)
    draws = []
    for seed in range(6):
        observation, _ = env.reset(seed=seed)
        reference, _ = plain.reset(seed=seed, options={"goal": env.goal})
        draw = env.rig.scene.randomization
        draws.append((draw.mass_scale, draw.friction_scale, *draw.color_shift,
                      *draw.camera_shift_m, *draw.camera_turn_rad))
        looks_different = not np.array_equal(observation["desired_goal"],
                                             reference["desired_goal"])
        assert looks_different == (name in ("color", "camera_m", "camera_rad"))
        # The first pushes: only what changes commands can be felt in the air.
        results = [world.step(np.array([0.5, 0.0, 1.0]))[4]["executed_action"]
                   for world in (env, plain)]
        assert (not np.array_equal(*results)) == (name in ("action_noise", "action_bias"))
    spread = np.ptp(np.array(draws), axis=0) > 0
    columns = {"mass": slice(0, 1), "friction": slice(1, 2), "color": slice(2, 5),
               "camera_m": slice(5, 8), "camera_rad": slice(8, 11)}
    expected = np.zeros(11, bool)
    if name in columns:
        expected[columns[name]] = True
        nominal = 1.0 if name in ("mass", "friction") else 0.0
        values = np.array(draws)[:, columns[name]]
        assert (np.abs(values - nominal) <= amount).all()
        assert np.abs(values - nominal).max() > 0.3 * amount
    assert spread.tolist() == expected.tolist()
    env.close()
    plain.close()


@pytest.mark.parametrize("engine", ENGINES)
def test_latency_is_felt(engine):
    env = make_env("Reach", "panda", engine, randomization={"latency_s": 0.4})
    plain = make_env("Reach", "panda", engine)
    lags = []
    for seed in range(4):
        tools = []
        for world in (env, plain):
            world.reset(seed=seed, options={
                "goal": [0, 0, 0.2], "start": Placement(np.array([0.0, 0.0, 0.15]))})
            for _ in range(5):
                observation, *_ = world.step([0.8, 0.0, 0.0])
            tools.append(observation["observation"][0])
        lags.append(tools[1] - tools[0])
    assert all(-1e-4 < lag < 0.09 for lag in lags) and max(lags) > 0.02
    env.close()
    plain.close()


def test_mass_and_friction_are_felt_by_the_puck():
    ends = []
    for random in ({}, {"friction": 0.9}):
        env = make_env("Push", "panda", randomization=random or None)
        for seed in (1, 2):
            env.reset(seed=seed, options={"goal": [0.1, 0.1], "start": Placement(
                np.array([-0.1, 0.0, 0.025]),
                bodies={"puck": (np.array([-0.02, 0.004, 0.02]), np.array([0, 0, 0, 1.0]))})})
            for _ in range(14):
                observation, *_ = env.step([0.9, 0.0, 0.0])
            ends.append(observation["achieved_goal"].copy())
        env.close()
    assert np.array_equal(ends[0], ends[1]), "without randomisation the seed changes nothing here"
    assert not np.array_equal(ends[2], ends[3])


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
