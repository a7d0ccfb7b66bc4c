"""Force sensors and sensors of the task: one suite for both engines, and for what is put round."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from robot_rl.envs import make_env
from robot_rl.errors import InvalidInputError, SafetyError, StaleDataError
from robot_rl.interfaces import (
    ForceSensor,
    JointSetpoints,
    JointState,
    Placement,
    Rig,
    RigRequest,
    Sensor,
    Wrench,
)
from robot_rl.kinematics import Kinematics, rotation_from_rpy
from robot_rl.sensors import BiasedForceSensor, BiasOptions, MountedWrench
from robot_rl.specs import BodySpec, Geom, SceneSpec, SlideJoint, load_robot
from robot_rl.specs.scene import HingeJoint, JointSensor, RegionSensor
from robot_rl_sim.sensors import Disturbance

pytest.importorskip("mujoco")
pytest.importorskip("pybullet")

ENGINES = ("mujoco", "bullet")
UPRIGHT = np.array([0.0, 0.0, 0.0, 1.0])
BLOCK = BodySpec("block", (Geom("box", (0.2, 0.2, 0.05)),), "fixed", (0.0, 0.0, 0.025))
WEIGHT_KG = 0.3
CUBE = BodySpec("cube", (Geom("box", (0.03, 0.03, 0.03)),), "free", (0.0, 0.0, 0.015),
                mass_kg=WEIGHT_KG, friction=1.0)
BEAM = BodySpec("beam", (Geom("box", (0.02, 0.03, 0.03)), Geom("box", (0.06, 0.03, 0.03),
                                                               (0.04, 0.0, 0.0))),
                "free", (0.0, 0.0, 0.015), mass_kg=0.1, friction=1.0)
SLED_FRICTION_N, SLED_DAMPING = 6.0, 20.0
SLED = BodySpec("sled", (Geom("box", (0.04, 0.2, 0.06), (0.0, 0.0, 0.04)),),
                SlideJoint("sled_slide", (1.0, 0.0, 0.0), -0.2, 0.2, SLED_FRICTION_N, SLED_DAMPING),
                mass_kg=0.5)
FLAP = BodySpec("flap", (Geom("box", (0.02, 0.1, 0.04), (0.0, -0.06, 0.03)),),
                HingeJoint("flap_hinge", (0.0, 0.0, 1.0), -1.0, 1.0), (-0.15, 0.2, 0.0))


def make_rig(engine: str, robot: str = "sawyer", *bodies: BodySpec, **scene: Any) -> Rig:
    module = importlib.import_module(f"robot_rl_sim.{engine}_engine")
    rig: Rig = module.make_rig(RigRequest(load_robot(robot), SceneSpec(bodies, **scene)))
    return rig


def posture(rig: Rig, tool_m: Any) -> np.ndarray:
    target = np.eye(4)
    target[:3, :3] = rotation_from_rpy((np.pi, 0.0, 0.0))
    target[:3, 3] = np.array(rig.arm.spec.workspace_origin_m) + tool_m
    found = Kinematics(rig.arm.spec).inverse(target)
    assert found.converged
    return found.q_rad


def put(rig: Rig, tool_m: Any, opening: float = 0.0, **placement: Any) -> None:
    assert rig.scene is not None
    rig.scene.place(posture(rig, tool_m),
                    Placement(np.array(tool_m), gripper_opening=opening, **placement))


def wait(rig: Rig, time_s: float) -> None:
    rig.clock.sleep_until(rig.clock.now_s() + time_s)


def felt(rig: Rig) -> np.ndarray:
    assert rig.force is not None
    wrench = rig.force.wrench(0.1)
    return np.concatenate([wrench.force_n, wrench.torque_nm])


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def opened() -> Iterator[Any]:
    """Makes rigs, and closes them."""
    rigs: list[Rig] = []

    def make(*args: Any, **kwargs: Any) -> Rig:
        rigs.append(make_rig(*args, **kwargs))
        return rigs[-1]

    yield make
    for rig in rigs:
        rig.close()


# -- force --------------------------------------------------------------------------------------


def test_nothing_is_felt_in_the_air(engine, opened):
    rig = opened(engine)
    assert isinstance(rig.force, ForceSensor)
    put(rig, (0.0, 0.0, 0.15))
    wait(rig, 0.2)
    np.testing.assert_array_equal(felt(rig), np.zeros(6))
    wrench = rig.force.wrench(0.0)
    assert wrench.force_n.shape == wrench.torque_nm.shape == (3,)
    assert wrench.stamp_s == rig.clock.now_s()
    with pytest.raises(StaleDataError):
        rig.force.wrench(-1.0)
    with pytest.raises(StaleDataError):
        rig.force.wrench(np.nan)


def test_a_gripped_weight_hangs_on_the_sensor(engine, opened):
    rig = opened(engine, "sawyer", CUBE)
    put(rig, (0.0, 0.0, 0.15), 0.75, bodies={"cube": (np.array([0.0, 0.0, 0.15]), UPRIGHT)})
    rig.gripper.command(0.0)
    wait(rig, 0.8)
    expected = [0.0, 0.0, -WEIGHT_KG * 9.81, 0.0, 0.0, 0.0]
    np.testing.assert_allclose(felt(rig), expected, atol=0.06)
    rig.force.zero()
    np.testing.assert_allclose(felt(rig), np.zeros(6), atol=1e-9)
    # Put down, its weight is missing: an upward force against what was taken as nothing.
    rig.gripper.command(1.0)
    wait(rig, 0.5)
    np.testing.assert_allclose(felt(rig)[:3], [0.0, 0.0, WEIGHT_KG * 9.81], atol=0.06)


def test_a_weight_off_the_middle_turns_the_tool(engine, opened):
    rig = opened(engine, "sawyer", BEAM)
    put(rig, (0.0, 0.0, 0.15), 0.75, bodies={"beam": (np.array([0.0, 0.0, 0.15]), UPRIGHT)})
    rig.gripper.command(0.0)
    wait(rig, 0.8)
    tool = Kinematics(rig.arm.spec).forward(rig.arm.state(0.0).position_rad)[:3, 3]
    state = rig.tracker.body("beam", 0.0)
    turned = importlib.import_module("robot_rl.kinematics").rotation_from_quat(state.quat_xyzw)
    com = state.position_m + turned @ np.array([0.03, 0.0, 0.0])
    lever = com + np.array(rig.arm.spec.workspace_origin_m) - tool
    weight = np.array([0.0, 0.0, -0.1 * 9.81])
    assert lever[0] > 0.02
    np.testing.assert_allclose(felt(rig), np.r_[weight, np.cross(lever, weight)], atol=0.02)


def motor_torques(rig: Rig) -> np.ndarray:
    """What the arm's motors give (n,) [N m], from the engine itself."""
    simulation: Any = rig.scene
    if type(simulation).__name__ == "MujocoSimulation":
        return np.array(simulation._data.qfrc_actuator[:7])
    states = simulation._bullet.getJointStates(
        simulation._arm, simulation._arm_joints, physicsClientId=simulation._client
    )
    return np.array([state[3] for state in states])


@pytest.mark.parametrize("robot", ["panda", "sawyer", "fr3"])
def test_a_press_agrees_with_the_motors(engine, opened, robot):
    rig = opened(engine, robot, BLOCK)
    put(rig, (0.02, 0.01, 0.0497))
    wait(rig, 1.0)
    wrench = felt(rig)
    assert wrench[2] > 5.0
    jacobian = Kinematics(rig.arm.spec).jacobian(rig.arm.state(0.0).position_rad)
    # At rest and without weight, the motors hold what the world does to the tool.
    torques = motor_torques(rig)
    np.testing.assert_allclose(jacobian.T @ wrench, -torques, atol=0.02 * np.abs(torques).max())


def pushed(engine: str, opened: Any, speed_m_s: float) -> np.ndarray:
    """The wrench while the tool pushes the sled along x at a steady speed."""
    rig = opened(engine, "sawyer", SLED)
    put(rig, (-0.06, 0.0, 0.05))
    kinematics = Kinematics(rig.arm.spec)
    target, q = np.eye(4), posture(rig, (-0.06, 0.0, 0.05))
    target[:] = kinematics.forward(q)
    rows = []
    period = rig.arm.period_s
    for _ in range(round(1.5 / period)):
        target[0, 3] += speed_m_s * period
        for _ in range(2):
            q, _ = kinematics.step(q, target)
        rows.append(q)
    rig.arm.command(JointSetpoints(np.array(rows), period, at=rig.arm.sent() + rig.arm.lead_rows))
    wait(rig, 1.0)
    samples = []
    for _ in range(80):
        wait(rig, 0.005)
        samples.append(felt(rig))
    assert rig.tracker.joint("sled_slide", 0.0)[0] > 0.02
    return np.mean(samples, axis=0)


def test_a_steady_push_is_friction_and_damping(engine, opened):
    wrench = pushed(engine, opened, 0.1)
    expected = -(SLED_FRICTION_N + SLED_DAMPING * 0.1)
    assert wrench[0] == pytest.approx(expected, rel=0.06)


def test_the_engines_press_alike(opened):
    forces = []
    for engine in ENGINES:
        rig = opened(engine, "sawyer", BLOCK)
        put(rig, (0.02, 0.0, 0.0499))
        wait(rig, 1.0)
        forces.append(felt(rig))
    assert forces[0][2] > 2.0
    assert forces[0][2] == pytest.approx(forces[1][2], rel=0.15)


def test_asking_changes_nothing(engine, opened):
    quiet, asked = opened(engine, "sawyer", BLOCK), opened(engine, "sawyer", BLOCK)
    for rig in (quiet, asked):
        put(rig, (0.02, 0.0, 0.0499))
        for _ in range(10):
            wait(rig, 0.02)
            if rig is asked:
                felt(rig)
    for a, b in zip(quiet.scene.save_state().values(), asked.scene.save_state().values(),
                    strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_disturbed_sensor_has_noise_bias_and_drift(engine, opened):
    rig = opened(engine)
    put(rig, (0.0, 0.0, 0.15))
    bias = [1.0, -2.0, 3.0, 0.1, 0.2, 0.3]
    rig.force.disturb(Disturbance(noise=[0.5] * 3 + [0.05] * 3, bias=bias, seed=3))
    samples = np.array([felt(rig) for _ in range(400)])
    np.testing.assert_allclose(samples.mean(0), bias, atol=0.1)
    np.testing.assert_allclose(samples.std(0), [0.5] * 3 + [0.05] * 3, rtol=0.15)
    rig.force.disturb(Disturbance(noise=[0.5] * 3 + [0.05] * 3, bias=bias, seed=3))
    np.testing.assert_array_equal(samples[0], felt(rig))
    rig.force.zero()
    samples = np.array([felt(rig) for _ in range(400)])
    np.testing.assert_allclose(samples.mean(0), np.zeros(6), atol=0.2)
    rig.force.disturb(Disturbance(drift=2.0))
    rig.force.zero()
    wait(rig, 0.5)
    np.testing.assert_allclose(felt(rig), np.full(6, 1.0), atol=1e-9)


def test_an_episode_begins_with_the_force_at_zero():
    env = make_env("Reach", "sawyer")
    env.rig.force.disturb(Disturbance(bias=5.0))
    assert abs(felt(env.rig)[0]) == 5.0
    env.reset(seed=0)
    np.testing.assert_allclose(felt(env.rig), np.zeros(6), atol=1e-12)
    env.close()


# -- bias of a sensor that has one ----------------------------------------------------------------


class Ticking:
    """A clock that readings wait for, and a source that gives one every 10 ms."""

    def __init__(self, signal: Any) -> None:
        self.time_s = 100.0
        self.signal = signal
        self.closed = 0

    def now_s(self) -> float:
        return self.time_s

    def sleep_until(self, time_s: float) -> None:
        self.time_s = max(self.time_s, time_s)

    def wrench(self, max_age_s: float) -> Wrench:
        stamp = np.floor(self.time_s * 100.0 + 1e-6) / 100.0
        values = np.asarray(self.signal(stamp), dtype=np.float64)
        return Wrench(values[:3], values[3:], stamp)

    def close(self) -> None:
        self.closed += 1


def test_the_bias_is_the_mean_at_rest():
    rng = np.random.default_rng(0)
    bias = np.array([4.0, -3.0, 12.0, 0.5, -0.4, 0.1])
    ticking = Ticking(lambda t: bias + rng.normal(0.0, [0.2] * 3 + [0.02] * 3))
    sensor = BiasedForceSensor(ticking, ticking, BiasOptions(samples=50))
    assert isinstance(sensor, ForceSensor)
    np.testing.assert_allclose(np.r_[sensor.wrench(1.0).force_n], bias[:3], atol=1.0)
    sensor.zero()
    np.testing.assert_allclose(sensor.bias, bias, atol=0.12)
    assert 100.4 <= ticking.time_s <= 101.0
    ticking.signal = lambda t: bias + np.r_[0.0, 0.0, 7.0, 0.0, 0.0, 0.2]
    wrench = sensor.wrench(1.0)
    np.testing.assert_allclose(np.r_[wrench.force_n, wrench.torque_nm],
                               [0, 0, 7.0, 0, 0, 0.2], atol=0.12)
    sensor.close()
    assert ticking.closed == 1


def test_readings_that_vary_are_refused_and_the_bias_stays():
    ticking = Ticking(lambda t: np.ones(6))
    sensor = BiasedForceSensor(ticking, ticking)
    sensor.zero()
    ticking.signal = lambda t: np.r_[1.0, 1.0, 1.0 + 50.0 * (t - 100.0), 1.0, 1.0, 1.0]
    with pytest.raises(SafetyError, match=r"force z differs by .* at most 3 N; the arm moves"):
        sensor.zero()
    ticking.signal = lambda t: np.r_[1.0, 1.0, 1.0, 1.0, 1.0 + np.sin(30.0 * t), 1.0]
    with pytest.raises(SafetyError, match=r"torque y differs by"):
        sensor.zero()
    ticking.signal = lambda t: np.r_[0.0, -80.0, 0.0, 0.0, 0.0, 0.0]
    with pytest.raises(SafetyError, match=r"the mean of force y is 80\.00 N.*leans on something"):
        sensor.zero()
    np.testing.assert_array_equal(sensor.bias, np.ones(6))


def test_a_press_is_not_taken_for_bias():
    ticking = Ticking(lambda t: np.r_[2.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    sensor = BiasedForceSensor(ticking, ticking)
    sensor.zero()
    ticking.signal = lambda t: np.r_[2.0, 0.0, 12.0, 0.0, 0.0, 0.0]
    with pytest.raises(SafetyError, match=r"the change of force z is 12\.00 N, should be at most"):
        sensor.zero()
    assert sensor.wrench(1.0).force_n[2] == pytest.approx(12.0)
    ticking.signal = lambda t: np.r_[2.0, 0.0, 0.0, 0.0, 2.5, 0.0]
    with pytest.raises(SafetyError, match="the change of torque y"):
        sensor.zero()
    ticking.signal = lambda t: np.r_[5.0, -3.0, 4.0, 0.2, 0.0, 0.0]
    sensor.zero()
    assert sensor.bias[:3] == pytest.approx([5.0, -3.0, 4.0])
    pressed = Ticking(lambda t: np.r_[0.0, 0.0, 39.0, 0.0, 0.0, 0.0])
    with pytest.raises(SafetyError, match="the mean of force z is 39"):
        BiasedForceSensor(pressed, pressed).zero()


def test_an_arm_that_still_swings_is_waited_for():
    ticking = Ticking(lambda t: np.r_[6.0 * np.exp(-8.0 * (t - 100.0)), 0, 0, 0, 0, 0])
    sensor = BiasedForceSensor(ticking, ticking)
    sensor.zero()
    assert abs(sensor.bias[0]) < 1.0
    with pytest.raises(SafetyError):
        still = Ticking(ticking.signal)
        BiasedForceSensor(still, still, BiasOptions(attempts=1)).zero()


def test_a_bias_is_only_taken_from_new_readings():
    ticking = Ticking(lambda t: np.zeros(6))
    frozen = Wrench(np.zeros(3), np.zeros(3), 99.9)
    ticking.wrench = lambda max_age_s: frozen  # type: ignore[method-assign]
    with pytest.raises(StaleDataError, match=r"0 of 20 readings came within 2 s"):
        BiasedForceSensor(ticking, ticking).zero()
    ticking.wrench = lambda max_age_s: Wrench(np.full(3, np.nan), np.zeros(3), ticking.time_s)  # type: ignore[method-assign]
    with pytest.raises(SafetyError, match="finite"):
        BiasedForceSensor(ticking, ticking).zero()
    with pytest.raises(SafetyError, match="finite"):
        BiasedForceSensor(ticking, ticking).wrench(1.0)
    for options in ({"samples": 1}, {"attempts": 0}, {"max_spread_n": 0.0}, {"within_s": np.inf}):
        with pytest.raises(InvalidInputError):
            BiasOptions(**options)


def test_a_bias_is_measured_in_simulated_time_too(opened):
    rig = opened("mujoco")
    put(rig, (0.0, 0.0, 0.15))
    rig.force.disturb(Disturbance(bias=2.0, noise=0.1))
    sensor = BiasedForceSensor(rig.force, rig.clock)
    sensor.zero()
    np.testing.assert_allclose(sensor.bias, np.full(6, 2.0), atol=0.2)


def test_a_mounted_sensor_speaks_of_the_tool_in_base_axes():
    spec = load_robot("panda")
    q = np.array(spec.home_rad) + 0.2
    kinematics = Kinematics(spec)
    turn = kinematics.forward(q)[:3, :3]

    class Still:
        def __init__(self) -> None:
            self.spec = spec

        def state(self, max_age_s: float) -> JointState:
            return JointState(q, np.zeros(7), 0.0)

    rng = np.random.default_rng(0)
    force, torque, lever = rng.normal(size=(3, 3))
    # By hand: a force at the tool centre point, as a sensor up the hand would report it.
    own_force = turn.T @ force
    own_torque = turn.T @ torque - np.cross(lever, own_force)
    raw = Wrench(-own_force, -own_torque, 5.0)

    class Raw:
        def wrench(self, max_age_s: float) -> Wrench:
            return raw

    mounted = MountedWrench(Raw(), Still(), axes="tool", position_m=lever, sign=-1.0)
    out = mounted.wrench(0.1)
    np.testing.assert_allclose(out.force_n, force, atol=1e-12)
    np.testing.assert_allclose(out.torque_nm, torque, atol=1e-12)
    assert out.stamp_s == 5.0
    raw = Wrench(force, torque, 6.0)
    out = MountedWrench(Raw(), Still(), axes="base").wrench(0.1)
    np.testing.assert_array_equal(np.r_[out.force_n, out.torque_nm], np.r_[force, torque])
    for options in ({"axes": "world"}, {"sign": 2.0}, {"position_m": (0.0, 0.0)}):
        with pytest.raises(InvalidInputError):
            MountedWrench(Raw(), Still(), **options)


# -- sensors of the task --------------------------------------------------------------------------


SENSORS = (
    JointSensor("sled", "sled_slide"),
    JointSensor("flap", "flap_hinge"),
    RegionSensor("plug", (-0.01, -0.02, 0.1), (0.01, 0.02, 0.2)),
    RegionSensor("cube in place", (0.1, 0.1, 0.0), (0.2, 0.2, 0.1), body="cube"),
)


def test_declared_sensors_read_the_scene(engine, opened):
    rig = opened(engine, "panda", SLED, FLAP, CUBE, sensors=SENSORS)
    assert list(rig.sensors) == [declared.name for declared in SENSORS]
    for name, sensor in rig.sensors.items():
        assert isinstance(sensor, Sensor) and sensor.name == name
    assert [sensor.unit for sensor in rig.sensors.values()] == ["m", "rad", "", ""]
    there = {"cube": (np.array([0.15, 0.15, 0.015]), UPRIGHT)}
    put(rig, (0.0, 0.0, 0.15), joints={"sled_slide": 0.07, "flap_hinge": -0.4}, bodies=there)
    readings = {name: sensor.read(0.0) for name, sensor in rig.sensors.items()}
    values = [reading.value for reading in readings.values()]
    np.testing.assert_allclose(values, [0.07, -0.4, 1.0, 1.0], atol=1e-9)
    assert {reading.stamp_s for reading in readings.values()} == {rig.clock.now_s()}
    put(rig, (0.0, 0.03, 0.15), joints={"sled_slide": -0.01})
    assert rig.sensors["sled"].read(0.0).value == pytest.approx(-0.01)
    assert [rig.sensors[name].read(0.0).value for name in ("plug", "cube in place")] == [0.0, 0.0]
    with pytest.raises(StaleDataError):
        rig.sensors["sled"].read(-1.0)
    rig.sensors["sled"].disturb(Disturbance(bias=0.5))
    assert rig.sensors["sled"].read(0.0).value == pytest.approx(0.49)


def test_sensors_of_what_is_not_there_are_refused(engine):
    for sensors, says in (
        ((JointSensor("a", "none"),), "unknown joint 'none'"),
        ((RegionSensor("a", (0, 0, 0), (1, 1, 1), body="none"),), "unknown body 'none'"),
        ((JointSensor("a", "sled_slide"), JointSensor("a", "sled_slide")), "two sensors 'a'"),
    ):
        with pytest.raises(InvalidInputError, match=says):
            make_rig(engine, "panda", SLED, sensors=sensors)


def test_success_by_the_drawers_encoder_ends_the_episode(engine):
    backend = "pybullet" if engine == "bullet" else engine
    env = make_env("Drawer", "sawyer", backend, success="sensor:drawer>0.05;hold=0.2",
                   terminate_on_success=True)
    start = Placement(np.array([0.0, 0.0, 0.15]), joints={"drawer_slide": 0.08})
    env.reset(seed=0, options={"start": start})
    steps = []
    for _ in range(6):
        _, reward, terminated, _, info = env.step(np.zeros(3))
        steps.append((reward, terminated, info["is_success"]))
        if terminated:
            break
    # Open from the start, but success counts only after 0.2 s.
    assert steps == [(-1.0, False, False), (0.0, True, True)]
    start.joints["drawer_slide"] = 0.02
    env.reset(seed=0, options={"start": start})
    assert [env.step(np.zeros(3))[1] for _ in range(4)] == [-1.0] * 4
    env.close()


def test_a_sensor_that_falls_silent_holds_the_arm():
    env = make_env("Drawer", "sawyer", success="sensor:drawer>0.05")
    env.reset(seed=0)

    def silent(max_age_s: float) -> Any:
        raise StaleDataError("the drawer's encoder is silent")

    env.rig.sensors["drawer"].read = silent  # type: ignore[method-assign]
    with pytest.raises(StaleDataError):
        env.step(np.zeros(3))
    assert env.safety.held == "the drawer's encoder is silent"
    env.close()
