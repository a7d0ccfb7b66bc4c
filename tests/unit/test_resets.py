"""Resets by the arm: whatever state things were left in, they end where they were asked for."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import numpy as np
import pytest

from robot_rl.envs import make_env
from robot_rl.envs.resets import (
    RESETS,
    ArmResetter,
    LearnedResetter,
    ResetOptions,
    goal_at,
    make_resetter,
)
from robot_rl.envs.tasks import TASKS, make_task
from robot_rl.envs.tasks.insertion import INSERTED_M
from robot_rl.envs.tasks.reach import Reach
from robot_rl.errors import InvalidInputError, SafetyError, StaleDataError
from robot_rl.interfaces import BodyState, Placement, Reading
from robot_rl.kinematics import rotation_from_quat

pytest.importorskip("mujoco")
pytest.importorskip("pybullet")

UPRIGHT = np.array([0.0, 0.0, 0.0, 1.0])
ON_RIM = np.array([0.0, np.sin(np.pi / 4), 0.0, np.cos(np.pi / 4)])
TURNED = np.array([0.0, 0.0, np.sin(np.pi / 8), np.cos(np.pi / 8)])


class Reader:
    """An arm, gripper or tracker that can be read but not commanded."""

    def __init__(self, inner) -> None:
        self._inner = inner

    def __getattr__(self, name: str):
        if name in ("command", "recover"):
            raise AssertionError(f"{name}() was called past the safety filter")
        return getattr(self._inner, name)


@contextlib.contextmanager
def world(task: str, robot: str = "sawyer", engine: str = "mujoco", left: Placement | None = None,
          **options):
    """An environment whose things were ``left`` so, and a resetter that can only use the filter."""
    env = make_env(task, robot, engine)
    try:
        env.reset(seed=1, options=None if left is None else {"start": left})
        helps: list[str] = []
        # What a rig of hardware has, and no way to the arm but the filter.
        rig = replace(env.rig, scene=None, arm=Reader(env.rig.arm), gripper=Reader(env.rig.gripper))
        resetter = make_resetter(env.task, rig, env.safety, options=options or None,
                                 on_help=helps.append)
        yield env, resetter, helps
    finally:
        env.close()


def start_of(env, seed: int) -> Placement:
    rng = np.random.default_rng(seed)
    return env.task.sample_start(rng, env.task.sample_goal(rng))


def check_start(env, start: Placement) -> None:
    """By the simulator's own state, not by what the resetter measured."""
    state = env.rig.arm.state(1.0)
    tool = env.safety.kinematics.forward(state.position_rad)[:3, 3]
    tool = tool - np.array(env.rig.arm.spec.workspace_origin_m)
    assert np.linalg.norm(tool - start.tool_m) <= 0.01
    assert np.abs(state.velocity_rad_s).max() < 0.05
    for name, (position, _) in start.bodies.items():
        body = env.rig.tracker.body(name, 1.0)
        assert np.linalg.norm(body.position_m - position) <= 0.02
        assert np.linalg.norm(body.velocity_m_s) < 0.01
        assert np.abs(rotation_from_quat(body.quat_xyzw)[2]).max() > 0.97
    for name, wanted in start.joints.items():
        value, _ = env.rig.tracker.joint(name, 1.0)
        assert abs(value - wanted) <= (0.05 if name == "door_hinge" else 0.01)
    if start.gripper_opening > 0.5:
        assert env.rig.gripper.opening(1.0) > 0.9


def disturb(env, seed: int) -> None:
    """Random actions, not by way of the environment's episodes."""
    rng = np.random.default_rng(seed)
    for _ in range(25):
        action = rng.uniform(-1.0, 1.0, 3)
        action[2] -= 0.3
        if env.task.astray(env.view()):
            return
        env.safety.move(action * env.step_m, 0.0, env.period_s)
        env.rig.clock.sleep_until(env.rig.clock.now_s() + env.period_s)
        env.safety.measure()


@pytest.mark.parametrize("engine", ["mujoco", "pybullet"])
@pytest.mark.parametrize("task", list(TASKS))
def test_resets_in_a_row(task, engine):
    with world(task, "sawyer", engine) as (env, resetter, helps):
        for seed in range(3):
            disturb(env, seed)
            start = start_of(env, seed)
            assert resetter.reset(start), helps
            check_start(env, start)
            assert resetter.violations == 0
        assert helps == []


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["mujoco", "pybullet"])
@pytest.mark.parametrize("robot", ["panda", "fr3"])
@pytest.mark.parametrize("task", list(TASKS))
def test_resets_in_a_row_with_every_arm(task, robot, engine):
    with world(task, robot, engine) as (env, resetter, helps):
        for seed in range(15):
            disturb(env, seed)
            start = start_of(env, seed)
            assert resetter.reset(start), helps
            check_start(env, start)
            assert resetter.violations == 0
        assert helps == []


@pytest.mark.parametrize(("task", "left"), [
    # Where the tool cannot get straight behind it.
    ("Push", Placement(np.array([0.0, 0.0, 0.1]),
                       bodies={"puck": (np.array([0.215, 0.05, 0.02]), UPRIGHT)})),
    ("Push", Placement(np.array([0.0, 0.0, 0.1]),
                       bodies={"puck": (np.array([-0.1, -0.26, 0.02]), UPRIGHT)})),
    # On its rim, and the tool low beside it.
    ("Push", Placement(np.array([-0.08, 0.0, 0.025]),
                       bodies={"puck": (np.array([0.05, 0.0, 0.035]), ON_RIM)})),
    # Turned, and half out of the tool's box.
    ("PickPlace", Placement(np.array([0.0, 0.0, 0.1]),
                            bodies={"cube": (np.array([0.256, 0.1, 0.015]), TURNED)})),
    # In the closed hand, in the air.
    ("PickPlace", Placement(np.array([0.1, 0.0, 0.15]), gripper_opening=0.68,
                            bodies={"cube": (np.array([0.1, 0.0, 0.15]), UPRIGHT)})),
    # The finger still behind the handle.
    ("Drawer", Placement(np.array([0.006, 0.0, 0.036]), joints={"drawer_slide": 0.1})),
    ("Door", Placement(np.array([0.1, -0.04, 0.036]), joints={"door_hinge": 0.0})),
    ("Insertion", Placement(INSERTED_M)),
], ids=["at the far edge", "at the side", "on its rim", "cube at the edge", "cube in the hand",
        "finger in the drawer", "finger in the door", "plug in its socket"])
def test_awkward_states(task, left):
    with world(task, left=left) as (env, resetter, helps):
        if task == "PickPlace" and left.gripper_opening < 1.0:
            resetter.bench.motion.grip(0.0)
        start = start_of(env, 5)
        assert resetter.reset(start), helps
        check_start(env, start)
        assert resetter.violations == 0


def test_what_is_in_place_is_left_alone():
    with world("Push") as (env, resetter, _):
        puck = env.rig.tracker.body("puck", 1.0).position_m
        # The tool on the other side: the straight way leads through the puck.
        away = puck[:2] + 0.1 * (-puck[:2] / max(np.linalg.norm(puck[:2]), 1e-9))
        start = Placement(np.array([*away, 0.025]), bodies={"puck": (puck, UPRIGHT)})
        opposite = 2 * puck[:2] - away
        assert resetter.bench.motion.travel([*opposite, 0.025])
        assert resetter.reset(start)
        check_start(env, start)
        assert np.linalg.norm(env.rig.tracker.body("puck", 1.0).position_m - puck) < 0.001


def test_the_tool_stays_in_its_box_and_is_lifted_before_it_travels():
    left = Placement(np.array([0.0, 0.0, 0.1]),
                     bodies={"puck": (np.array([0.15, 0.2, 0.02]), UPRIGHT)})
    with world("Push", left=left) as (env, resetter, _):
        low, high = env.safety.config.box_min_m, env.safety.config.box_max_m
        tracker, tools, pucks = env.rig.tracker, [], []
        resetter.bench.motion._on_step = lambda: (
            tools.append(env.safety.measure()[0].copy()),
            pucks.append(tracker.body("puck", 1.0).position_m.copy()))
        assert resetter.reset(start_of(env, 3))
        way, moved = np.array(tools), np.linalg.norm(np.diff(pucks, axis=0), axis=1) > 1e-3
        assert (way >= np.array(low) - 0.002).all() and (way <= np.array(high) + 0.002).all()
        # The puck is only ever moved at the height of a push, and slowly.
        assert moved.any()
        steps = np.linalg.norm(np.diff(way, axis=0), axis=1) / env.period_s
        assert (way[1:][moved][:, 2] < 0.03).all() and steps[moved].max() < 0.16


# -- help -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("task", "left", "message"), [
    ("Push", {"puck": (np.array([0.33, 0.1, 0.02]), UPRIGHT)},
     r"the puck at \(0.330, 0.100\) m is out of reach"),
    ("PickPlace", {"cube": (np.array([0.0, 0.4, 0.015]), UPRIGHT)},
     r"the cube at \(0.000, 0.400, 0.015\) m is out of reach"),
    ("Push", {"puck": (np.array([0.0, 0.45, 0.035]), ON_RIM)},
     r"the puck stands on its rim at \(.*\) m, out of reach"),
])
def test_out_of_reach_is_a_call_for_help_at_once(task, left, message):
    with world(task, left=Placement(np.array([0.0, 0.0, 0.15]), bodies=left)) as (
        env, resetter, helps
    ):
        assert resetter.reset(start_of(env, 0)) is False
        assert resetter.attempts_made == 1 and len(helps) == 1
        with pytest.raises(SafetyError, match=message):
            env.safety.check_released()
        assert helps[0].startswith(f"{task}: the reset needs help: ")
        with pytest.raises(SafetyError, match="held"):
            resetter.reset(start_of(env, 0))


def test_tries_are_bounded_and_the_last_failure_is_told():
    with world("Drawer", attempts=2) as (env, resetter, helps):
        # An encoder that is stuck: the drawer seems never to move.
        class Stuck:
            name, unit = "drawer", "m"

            def read(self, max_age_s):
                return Reading(0.03, env.rig.clock.now_s())

        resetter.bench._encoders["drawer_slide"] = Stuck()
        start = Placement(np.array([0.0, 0.0, 0.15]), joints={"drawer_slide": 0.12})
        assert resetter.reset(start) is False
        assert resetter.attempts_made == 2
        assert helps == ["Drawer: the reset needs help: after 2 tries the drawer is at 0.030 m, "
                         "should be within 0.01 of 0.120"]
        assert env.safety.held == helps[0]
        assert env.safety.counters.violations == 0


def test_a_plug_that_stayed_behind_is_noticed():
    with world("Insertion", left=Placement(INSERTED_M)) as (env, resetter, helps):
        class Closed:
            name, unit = "contact", ""

            def read(self, max_age_s):
                return Reading(1.0, env.rig.clock.now_s())

        resetter.bench.rig.sensors["contact"] = Closed()
        assert resetter.reset(start_of(env, 0)) is False
        assert "the plug is still in its socket" in helps[0] and resetter.attempts_made == 1


def test_a_tracker_that_fell_silent_is_a_call_for_help():
    with world("Push") as (env, resetter, helps):
        class Silent:
            def body(self, name, max_age_s):
                raise StaleDataError("the puck was last seen 3.0 s ago, older than 0.2 s")

        resetter.bench.rig.tracker = Silent()
        assert resetter.reset(start_of(env, 0)) is False
        assert "last seen 3.0 s ago" in helps[0] and env.safety.held is not None


def test_help_is_logged_where_nobody_listens(caplog):
    env = make_env("Push")
    left = Placement(np.array([0.0, 0.0, 0.15]),
                     bodies={"puck": (np.array([0.4, 0.0, 0.02]), UPRIGHT)})
    env.reset(seed=0, options={"start": left})
    resetter = make_resetter(env.task, env.rig, env.safety)
    assert resetter.reset(start_of(env, 0)) is False
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "out of reach" in caplog.text
    env.close()


def test_every_task_has_a_reset_and_no_other():
    assert set(RESETS) == set(TASKS)

    class Juggle(Reach):
        name = "Juggle"

    env = make_env("Reach")
    with pytest.raises(InvalidInputError, match=r"'Juggle'; valid: .*Push"):
        make_resetter(Juggle(), env.rig, env.safety)
    with pytest.raises(InvalidInputError, match=r"unknown reset option 'pushs'"):
        make_resetter(env.task, env.rig, env.safety, options={"pushs": 3})
    env.close()


@pytest.mark.parametrize(("name", "bad"), [
    ("attempts", 0), ("attempts", 1.5), ("pushes", 101), ("tool_tolerance_m", 0.0),
    ("contact_speed_m_s", np.nan), ("door_tolerance_rad", "wide"), ("travel_speed_m_s", 2.0),
])
def test_options_are_checked(name, bad):
    with pytest.raises(InvalidInputError, match=f"reset: {name} is .*should be in"):
        ResetOptions(**{name: bad})


def test_an_environment_resets_itself_and_ends_where_things_go_astray():
    env = make_env("Push", resets="arm")
    assert isinstance(env.resetter, ArmResetter)
    env.reset(seed=0)
    check_start(env, Placement.from_dict(env.beginning()["start"]))
    puck = env.rig.tracker.body("puck", 1.0).position_m
    motion = env.resetter.bench.motion
    # Round to the near side of the puck, then drive it away from the arm.
    assert motion.travel([puck[0] - 0.09, puck[1], 0.022])
    env.safety.rest()
    info: dict = {}
    for _ in range(env.max_episode_steps):
        *_, truncated, info = env.step(np.array([0.7, 0.0, 0.0]))
        if truncated:
            break
    assert "soon out of the arm's reach" in info["astray"]
    # Not so far that it could not be brought back.
    env.reset(seed=1)
    check_start(env, Placement.from_dict(env.beginning()["start"]))
    env.close()


# -- learned --------------------------------------------------------------------------------------


class Pusher:
    """Pushes as the script does, by what an agent is given: an observation and a goal."""

    def __init__(self, env) -> None:
        from robot_rl.envs.scripted import _SCRIPTS, _Memory

        self.env, self.script, self.memory = env, _SCRIPTS["Push"], _Memory()
        self.goals: list[np.ndarray] = []

    def act(self, observation, goal, *, deterministic=False):
        self.goals.append(np.array(goal))
        wish = self.script(self.env.view(), np.asarray(goal, dtype=np.float64), self.memory)
        way = (wish.tool_m - self.env.safety.setpoint_tool_m) / self.env.step_m
        assert observation.shape == (self.env.state_dim,) and observation.dtype == np.float32
        return way * min(1.0, 1.0 / np.abs(way).max())


class Idler:
    def act(self, observation, goal, *, deterministic=False):
        return np.zeros(3)


class Broken:
    def act(self, observation, goal, *, deterministic=False):
        return np.full(3, np.nan)


def test_the_goal_of_a_placement_is_what_it_looks_like():
    rng = np.random.default_rng(0)
    for name in TASKS:
        task = make_task(name)
        goal = task.sample_goal(rng)
        np.testing.assert_allclose(goal_at(task, task.goal_placement(goal)), goal, atol=1e-9)


def test_a_policy_that_gets_there_resets():
    with world("Push") as (env, scripted, helps):
        learned = LearnedResetter(env, Pusher(env), scripted)
        for seed in range(3):
            start = start_of(env, seed)
            assert learned.reset(start), helps
            puck = env.rig.tracker.body("puck", 1.0).position_m
            wanted = start.bodies["puck"][0]
            assert np.linalg.norm(puck[:2] - wanted[:2]) <= env.task.threshold
            # The tool is as far from the puck as was asked, wherever that came to lie.
            tool = env.safety.measure()[0]
            np.testing.assert_allclose(tool - puck, start.tool_m - wanted, atol=0.012)
        assert (learned.learned, learned.fallbacks) == (3, 0) and helps == []


def test_a_policy_that_does_not_is_stood_in_for():
    with world("Push") as (env, scripted, helps):
        policy = Idler()
        learned = LearnedResetter(env, policy, scripted, tries=1)
        start = start_of(env, 4)
        assert learned.reset(start), helps
        check_start(env, start)
        assert (learned.learned, learned.fallbacks) == (0, 1)


def test_a_policy_that_breaks_is_a_call_for_help():
    with world("Push") as (env, scripted, helps):
        assert LearnedResetter(env, Broken(), scripted).reset(start_of(env, 0)) is False
        assert "the resetting policy's action is [nan nan nan]" in helps[0]
        assert env.safety.held is not None
    image = make_env("Push", obs="image", resets="arm")
    with pytest.raises(InvalidInputError, match="needs state observations"):
        LearnedResetter(image, Idler(), image.resetter)
    image.close()
    with pytest.raises(InvalidInputError, match="tries is 0"), world("Push") as (env, scripted, _):
        LearnedResetter(env, Idler(), scripted, tries=0)


@pytest.mark.slow
def test_an_agent_that_was_pretrained_to_push_resets_the_puck(tmp_path):
    from robot_rl.envs.scripted import ScriptedPolicy
    from robot_rl.training.checkpoint import find_checkpoint, load_agent
    from robot_rl.training.collect import CollectConfig, collect
    from robot_rl.training.offline import PretrainConfig, pretrain
    from robot_rl.training.setup import EnvChoice

    data, run = str(tmp_path / "data"), str(tmp_path / "run")
    collect(CollectConfig(episodes=150, quality=0.9, out=data), EnvChoice(task="Push"), quiet=True)
    pretrain(PretrainConfig(agent="bc", data=data, out=run, steps=2000), quiet=True)
    agent, _ = load_agent(find_checkpoint(run))
    env = make_env("Push", "sawyer", resets="arm")
    scripted, env.resetter = env.resetter, None
    env.reset(seed=0)
    assert isinstance(scripted, ArmResetter)
    learned = env.resetter = LearnedResetter(env, agent, scripted)
    practice = ScriptedPolicy(env, 0.5, seed=1)
    for seed in range(20):
        env.reset(seed=seed)
        practice.reset()
        done = False
        while not done:
            *_, terminated, truncated, _ = env.step(practice.act())
            done = terminated or truncated
    env.close()
    # The very agent that is asked for goals is asked for starts: most resets are its own.
    assert learned.learned + learned.fallbacks == 20 and learned.learned >= 8


@pytest.mark.parametrize("resets", ["arm", "learned"])
def test_practice_resets_by_itself(tmp_path, resets, monkeypatch):
    from robot_rl.training.online import TrainConfig, train
    from robot_rl.training.setup import EnvChoice

    seen = []
    real = ArmResetter.reset
    monkeypatch.setattr(ArmResetter, "reset", lambda self, placement: (
        seen.append(type(self)), real(self, placement))[1])
    config = TrainConfig(agent="bc", env_steps=90, warmup_steps=1000, eval_episodes=1,
                         out=str(tmp_path / "run"), resets=resets)
    train(config, EnvChoice(task="Reach", robot="panda"), quiet=True)
    # Three episodes of 30 steps; the simulator places nothing but the evaluation.
    assert len(seen) >= 3
    with pytest.raises(InvalidInputError, match=r"unknown resets 'person'.*valid: auto, scene"):
        TrainConfig(agent="bc", resets="person")


def test_a_body_state_of_a_placement_is_at_rest():
    from robot_rl.envs.resets.base import at_rest

    still = BodyState(np.zeros(3), UPRIGHT, np.zeros(3), np.zeros(3))
    assert at_rest(still)
    assert not at_rest(replace(still, velocity_m_s=np.array([0.02, 0.0, 0.0])))
    assert not at_rest(replace(still, angular_velocity_rad_s=np.array([0.0, 0.0, 0.5])))
