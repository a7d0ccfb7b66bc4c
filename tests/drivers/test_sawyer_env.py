"""The whole environment on a simulated Sawyer over ROS 1: nothing in it knows that."""

from __future__ import annotations

import time

import numpy as np
import pytest

from robot_rl.errors import MissingDependencyError, SafetyError

pytest.importorskip("mujoco")
try:
    from robot_rl.ros.ros1_import import import_rospy

    import_rospy()
except MissingDependencyError as error:
    pytest.skip(str(error), allow_module_level=True)

from robot_rl.envs.factory import make_env
from robot_rl.envs.scripted import ScriptedPolicy
from robot_rl.interfaces import Placement
from robot_rl.specs import load_robot
from tests.drivers.intera import GAP_S, SimProcess, wait_for

SPEC = load_robot("sawyer")


class Stay:
    """A resetter that leaves everything where it is."""

    def reset(self, placement: Placement) -> bool:
        return True


@pytest.fixture(autouse=True)
def own_state(tmp_path, monkeypatch):
    monkeypatch.setenv("ROBOT_RL_STATE_DIR", str(tmp_path))


@pytest.fixture
def sim(intera_sim):
    intera_sim.control(restart=True)
    intera_sim.heal()
    return intera_sim


def environment(sim: SimProcess, **options):
    options.setdefault("resetter", Stay())
    return make_env(
        "Push", "sawyer", "ros1", cameras=(),
        rig_options={"master_uri": sim.ready["master_uri"], "max_gap_s": GAP_S}, **options,
    )


def test_an_episode_runs_in_real_time_and_the_arm_follows(sim):
    before = len(sim.record().get("mode", ()))
    env = environment(sim)
    try:
        observation, _ = env.reset(seed=1)
        assert env.observation_space.contains(observation)
        begun_s, errors = time.monotonic(), []
        for k in range(20):
            action = np.array([0.5 * np.cos(k / 4), 0.5 * np.sin(k / 4), 0.5 if k < 10 else 0.0])
            _, _, _, _, info = env.step(action)
            tool, _ = env.safety.measure()
            errors.append(np.linalg.norm(tool - env.safety.setpoint_tool_m))
        took_s = time.monotonic() - begun_s
        assert 1.9 < took_s < 2.6, "20 steps at 10 Hz"
        assert max(errors) < 0.03 and info["safety_violations"] == 0
        wait_for(
            lambda: np.linalg.norm(env.safety.measure()[0] - env.safety.setpoint_tool_m) < 2e-3,
            "the tool to arrive",
        )
        assert env.safety.held is None
    finally:
        env.close()
    taken = {name: values[before:] for name, values in sim.record().items()}
    # What the robot was sent keeps within the limits by itself, row by row.
    speed = np.diff(taken["position"], axis=0) / 0.01
    assert (np.abs(speed) <= SPEC.limits("velocity_rad_s")).all()
    change = np.diff(speed, axis=0) / 0.01
    assert (np.abs(change) <= 1.05 * SPEC.limits("acceleration_rad_s2")).all()
    assert np.diff(taken["seq"]).max() == 1


def test_an_emergency_stop_ends_the_episode_and_only_a_rearm_goes_on(sim):
    env = environment(sim)
    try:
        env.reset(seed=1)
        env.step(np.array([0.5, 0.0, 0.5]))
        sim.control(estop="press")
        held = wait_for(lambda: env.safety.held, "the hold")
        assert "emergency stop" in held
        with pytest.raises(SafetyError, match="held"):
            for _ in range(3):
                env.step(np.zeros(3))
        with pytest.raises(SafetyError):
            env.safety.rearm()
        sim.control(estop="release")
        time.sleep(0.1)
        assert env.safety.held is not None
        env.safety.rearm()
        assert env.safety.held is None
        env.reset(seed=2)
        env.step(np.array([0.2, 0.0, 0.2]))
    finally:
        env.close()


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["mujoco", "pybullet"])
def test_a_script_pushes_the_puck_and_the_arm_resets_the_table(tmp_path, backend):
    if backend == "pybullet":
        pytest.importorskip("pybullet")
    from robot_rl.ros.ros1_master import RosMaster

    with RosMaster() as master:
        sim = SimProcess("intera", "--master-uri", master.uri, "--backend", backend)
        env = None
        try:
            env = environment(sim, resetter=None)
            policy = ScriptedPolicy(env)
            successes = 0
            for episode in range(3):
                env.reset(seed=episode)
                policy.reset()
                ended = success = False
                while not ended:
                    _, _, terminated, truncated, info = env.step(policy.act())
                    success = success or bool(info["is_success"])
                    ended = terminated or truncated
                successes += success
            assert successes >= 2
            assert env.safety.held is None
        finally:
            if env is not None:
                env.close()
            sim.stop()
