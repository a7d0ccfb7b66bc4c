"""Small motions: they arrive where they were asked to, by measurement, or say why they did not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from robot_rl.envs import make_env
from robot_rl.envs.motion import CLEAR_M, HOME_M, Arrival, Motion
from robot_rl.errors import InvalidInputError, MotionInterruptedError, SafetyError
from robot_rl.interfaces import Placement

pytest.importorskip("mujoco")


@pytest.fixture
def worlds():
    """Makes an environment and its motions; closes what it made."""
    made = []

    def make(task: str = "Reach", robot: str = "panda", start: Placement | None = None):
        env = make_env(task, robot)
        made.append(env)
        env.reset(seed=0, options=None if start is None else {"start": start})
        return env, Motion(env.rig, env.safety)

    yield make
    for env in made:
        env.close()


def measured(env) -> tuple[np.ndarray, float]:
    """The tool by the simulator's joint angles and kinematics of our own."""
    state = env.rig.arm.state(1.0)
    pose = env.safety.kinematics.forward(state.position_rad)
    tool = pose[:3, 3] - np.array(env.rig.arm.spec.workspace_origin_m)
    return tool, float(np.arctan2(pose[1, 0], pose[0, 0]))


@pytest.mark.parametrize("robot", ["sawyer", "panda", "fr3"])
def test_the_tool_arrives_and_rests(worlds, robot):
    env, motion = worlds(robot=robot)
    for target, yaw in (([0.12, -0.15, 0.05], 0.4), ([-0.1, 0.2, 0.25], -0.5)):
        begun_s = env.rig.clock.now_s()
        arrival = motion.move_tool_to(target, yaw, 0.2)
        assert arrival and arrival.why == ""
        tool, turn = measured(env)
        assert np.linalg.norm(tool - target) <= 0.005 and abs(turn - yaw) <= 0.03
        assert arrival.error == pytest.approx(np.linalg.norm(tool - target), abs=1e-3)
        assert env.rig.clock.now_s() - begun_s == pytest.approx(arrival.time_s)
        assert motion.settle() and np.abs(env.rig.arm.state(1.0).velocity_rad_s).max() < 0.02
    assert env.safety.counters.violations == 0


def test_no_motion_is_faster_than_asked(worlds):
    start = Placement(np.array([-0.15, 0.0, 0.1]))
    env, _ = worlds(start=start)
    speeds: list[float] = []
    watched = Motion(env.rig, env.safety,
                     on_step=lambda: speeds.append(float(np.linalg.norm(env.safety.measure()[1]))))
    assert watched.move_tool_to([0.15, 0.0, 0.1], None, 0.1)
    assert 0.08 < max(speeds) < 0.13
    assert len(speeds) == pytest.approx(30, abs=12)


def test_a_blocked_motion_gives_up_in_time_and_says_where(worlds):
    start = Placement(np.array([0.05, 0.0, 0.12]))
    _, motion = worlds("Insertion", start=start)
    # Down onto the block beside the socket: the plug ends 22 mm below the tool, the block at 40.
    target = [0.07, 0.012, 0.05]
    assert motion.move_tool_to([0.07, 0.012, 0.08])
    arrival = motion.move_tool_to(target, None, 0.1)
    assert not arrival and "stuck" in arrival.why and "(70, 12, 50) mm" in arrival.why
    assert 0.008 < arrival.error < 0.016 and arrival.time_s < 4.0
    assert motion.lift_off()


def test_lift_off_goes_straight_up_and_never_down(worlds):
    env, motion = worlds(start=Placement(np.array([0.1, -0.1, 0.03])))
    assert motion.lift_off()
    tool, _ = measured(env)
    assert np.linalg.norm(tool[:2] - [0.1, -0.1]) < 0.01 and abs(tool[2] - CLEAR_M) < 0.01
    assert motion.move_tool_to([0.1, -0.1, 0.3]) and motion.lift_off()
    assert abs(measured(env)[0][2] - 0.3) < 0.01


def test_a_tool_that_is_stuck_is_lifted_by_the_joints(worlds, monkeypatch):
    env, motion = worlds(start=Placement(np.array([0.1, -0.1, 0.03])))
    stuck = Arrival(False, 0.07, 1.0, "the tool is stuck")
    monkeypatch.setattr(motion, "move_tool_to", lambda *given, **options: stuck)
    assert motion.lift_off() and abs(measured(env)[0][2] - CLEAR_M) < 0.02
    monkeypatch.setattr(motion, "move_joints_to", lambda *given, **options: stuck)
    assert motion.lift_off() is stuck


@pytest.mark.parametrize("robot", ["sawyer", "panda"])
def test_home_is_a_posture(worlds, robot):
    env, motion = worlds(robot=robot)
    ends = []
    for tool in ([0.2, -0.2, 0.05], [-0.15, 0.2, 0.1]):
        assert motion.move_tool_to(tool)
        assert motion.home()
        assert np.linalg.norm(measured(env)[0] - HOME_M) < 0.01
        ends.append(env.rig.arm.state(1.0).position_rad)
    assert np.abs(ends[0] - ends[1]).max() < 0.02
    assert env.safety.counters.violations == 0


def test_joints_arrive_or_say_that_they_do_not(worlds):
    env, motion = worlds()
    target = env.rig.arm.state(1.0).position_rad + 0.05
    assert motion.move_joints_to(target, 0.3)
    assert np.abs(env.rig.arm.state(1.0).position_rad - target).max() <= 0.01
    # Through the table: the box is in the way.
    low = env.safety.kinematics.spec.home_rad + np.array([0, 1.2, 0, 0, 0, 0, 0])
    arrival = motion.move_joints_to(low, 0.3)
    assert not arrival and "rad from where it should be" in arrival.why
    assert measured(env)[0][2] > 0.0 and env.safety.counters.violations == 0


def test_a_small_jog_of_an_arm_that_is_late_does_not_overshoot():
    env = make_env("Reach", "panda", randomization={"latency_s": 0.3})
    try:
        env.reset(seed=0)
        env.rig.arm.set_latency(0.3)
        motion = Motion(env.rig, env.safety)
        before = env.safety.setpoint_tool_m[2]
        assert motion.jog([0.0, 0.0, 0.02], speed_m_s=0.05)
        assert env.safety.setpoint_tool_m[2] - before == pytest.approx(0.02, abs=5e-4)
    finally:
        env.close()


def test_a_motion_can_be_broken_off(worlds):
    env, motion = worlds(start=Placement(np.array([-0.15, 0.0, 0.1])))
    left = iter(range(5))
    motion.interrupted = lambda: next(left, None) is None
    with pytest.raises(MotionInterruptedError, match="broken off"):
        motion.move_tool_to([0.15, 0.0, 0.1], speed_m_s=0.1)
    motion.interrupted = None
    assert motion.settle() and env.safety.held is None
    assert measured(env)[0][0] < -0.05, "on the way"
    assert motion.move_tool_to([0.15, 0.0, 0.1])


def test_a_jog_is_relative_and_ends_at_the_box(worlds):
    env, motion = worlds(start=Placement(np.array([0.0, 0.0, 0.1])))
    assert motion.jog([0.02, 0.0, -0.03], 0.2)
    tool, yaw = measured(env)
    assert np.abs(tool - [0.02, 0.0, 0.07]).max() < 0.003 and abs(yaw - 0.2) < 0.03
    motion.jog([0.0, 0.0, -0.5], speed_m_s=0.1)
    assert 0.011 <= measured(env)[0][2] <= 0.016


def test_a_grip_waits_for_the_fingers(worlds):
    env, motion = worlds("PickPlace")
    assert motion.grip(1.0) and env.rig.gripper.opening(1.0) > 0.95
    arrival = motion.grip(0.0)
    assert arrival and arrival.error < 0.03 and env.rig.gripper.opening(1.0) < 0.05


def test_a_grip_on_something_stops_short(worlds):
    start = Placement(np.array([0.0, 0.0, 0.02]), gripper_opening=1.0,
                      bodies={"cube": (np.array([0.0, 0.0, 0.015]), np.array([0, 0, 0, 1.0]))})
    env, motion = worlds("PickPlace", start=start)
    arrival = motion.grip(0.0)
    assert not arrival and "the fingers stopped at" in arrival.why
    assert 0.25 < env.rig.gripper.opening(1.0) < 0.5


def test_what_cannot_be_meant_is_refused(worlds):
    env, motion = worlds()
    for call, message in (
        (lambda: motion.move_tool_to([0.0, 0.0, 0.6]), "outside the box"),
        (lambda: motion.move_tool_to([0.0, np.nan, 0.1]), "3 finite lengths"),
        (lambda: motion.move_tool_to([0.0, 0.0]), "3 finite lengths"),
        (lambda: motion.move_tool_to([0.0, 0.0, 0.1], None, 0.0), "speed is 0.0 m/s"),
        (lambda: motion.move_joints_to(np.zeros(3)), "7 finite angles"),
        (lambda: motion.move_joints_to(np.zeros(7), 1.5), "joint speed is 1.5"),
        (lambda: motion.jog([np.inf, 0.0, 0.0]), "finite"),
    ):
        before = env.rig.clock.now_s()
        with pytest.raises(InvalidInputError, match=message):
            call()
        assert env.rig.clock.now_s() == before


def test_a_held_arm_does_not_move(worlds):
    env, motion = worlds()
    env.safety.hold("by hand")
    motion.begin()
    for call in (lambda: motion.move_tool_to([0.0, 0.0, 0.1]), motion.home, motion.lift_off,
                 lambda: motion.grip(1.0)):
        with pytest.raises(SafetyError, match="by hand"):
            call()


def test_the_motions_need_no_simulated_scene(worlds):
    env, _ = worlds()
    motion = Motion(replace(env.rig, scene=None), env.safety)
    assert motion.move_tool_to([0.1, 0.1, 0.1])
