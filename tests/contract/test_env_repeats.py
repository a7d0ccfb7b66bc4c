"""Environments repeat exactly, in any process; their worlds differ as far as they are told to."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

import robot_rl  # noqa: F401 - registers the tasks
from robot_rl.envs import make_env
from robot_rl.envs.robot_env import RandomizationOptions
from robot_rl.errors import InvalidInputError
from robot_rl.interfaces import Placement
from tests.contract.env_rollouts import ENGINES, random_actions, rollout

pytest.importorskip("mujoco")
pytest.importorskip("pybullet")

EVERYTHING = {"mass": 0.3, "friction": 0.3, "color": 0.2, "camera_m": 0.03, "camera_rad": 0.03,
              "latency_s": 0.08, "action_noise": 0.1, "action_bias": 0.1}

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
