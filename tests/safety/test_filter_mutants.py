"""Changes of the filter that no other test would notice."""

from __future__ import annotations

import math
import threading

import numpy as np
import pytest

from benchmarks.storm.arm import ManualClock, RecordingArm, RecordingGripper
from robot_rl.errors import SafetyError
from robot_rl.kinematics import Kinematics, rotation_from_rpy, rotation_vector
from robot_rl.safety import SafetyConfig, SafetyFilter, Watchdog
from robot_rl.safety.inputs import said
from robot_rl.safety.planner import Aim, Planner, _turned_towards
from robot_rl.specs import load_robot


class HaltingGripper(RecordingGripper):
    """Counts how often it was told to forget what waits."""

    def __init__(self, broken: bool = False) -> None:
        super().__init__()
        self.halts, self.broken = 0, broken

    def halt(self) -> None:
        self.halts += 1
        if self.broken:
            raise OSError("the cable is out")


def filter_on(gripper=None, **options) -> tuple[SafetyFilter, RecordingArm, ManualClock]:
    clock = ManualClock()
    arm = RecordingArm(load_robot("panda"), clock, **options)
    safety = SafetyFilter(arm, gripper or RecordingGripper(), clock, SafetyConfig())
    arm.put(safety.posture((0.0, 0.0, 0.15)))
    safety.sync()
    return safety, arm, clock


@pytest.mark.parametrize("broken", [False, True])
def test_a_hold_and_a_rearm_halt_the_gripper(broken):
    gripper = HaltingGripper(broken)
    safety, _, clock = filter_on(gripper)
    assert gripper.halts == 0
    safety.hold("x")
    assert gripper.halts == 1
    clock.pass_s(1.0)
    safety.rearm()
    assert gripper.halts == 2 and safety.held is None


def test_set_points_are_no_stop_unless_it_is_said():
    planner, q = planner_at()
    assert planner.setpoints(planner.at_rest(q, 3)).stop is False
    assert planner.setpoints(planner.at_rest(q, 3), stop=True).stop is True


def test_a_posture_is_not_turned_unless_it_is_said():
    safety, _, _ = filter_on()
    pose = safety.kinematics.forward(safety.posture((0.0, 0.0, 0.2)))
    assert math.atan2(pose[1, 0], pose[0, 0]) == pytest.approx(0.0, abs=1e-3)


def test_what_an_error_says():
    assert said(SafetyError("so")) == "so"
    assert said(SafetyError("")) == "SafetyError"


def test_when_a_stop_is_over_even_if_its_rows_are_late():
    safety, arm, clock = filter_on()
    for _ in range(3):
        safety.move((0.04, 0.0, 0.0), 0.0, 0.1)
        clock.pass_s(0.1)
    safety.hold("x")
    rows = len(arm.queued)
    assert rows > 5
    arm.run = lambda: None  # rows are lost without a word
    clock.pass_s(0.03 * rows - 0.001)
    with pytest.raises(SafetyError, match="still coming to rest"):
        safety.rearm()
    arm._velocity[:] = 0.0
    clock.pass_s(0.002)
    safety.rearm()
    fresh = SafetyFilter(arm, RecordingGripper(), clock)
    fresh.hold("x")
    assert fresh._rests_at_s == clock.now_s()


def test_a_rearm_that_failed_can_be_tried_again():
    safety, arm, clock = filter_on()
    safety.move((0.04, 0.0, 0.0), 0.0, 0.1)
    clock.pass_s(0.02)
    arm.fail("stays: the stop is pressed")
    safety.watch()
    for _ in range(3):
        with pytest.raises(SafetyError, match="stays in error"):
            safety.rearm()
    arm.fault = "it dropped out"
    safety.rearm()
    assert safety.held is None


def test_a_restored_state_knows_when_it_was_measured():
    safety, arm, clock = filter_on()
    clock.pass_s(0.3)
    safety.measure()
    saved = safety.get_state()
    clock.pass_s(0.1)
    safety.measure()
    safety.set_state(saved)
    assert safety.measured_at_s == pytest.approx(0.3)
    asked = []
    state = arm.state
    arm.state = lambda age_s: (asked.append(age_s), state(age_s))[1]
    safety.move((0.0, 0.0, 0.0), 0.0, 0.1)
    assert asked == [], "measured young enough"


def test_a_look_that_goes_wrong_is_not_the_last():
    enough = threading.Event()

    class Watched:
        looks = 0

        def watch(self) -> None:
            self.looks += 1
            if self.looks >= 3:
                enough.set()
            raise OSError("the cable is out")

    with Watchdog(Watched(), period_s=0.005):
        assert enough.wait(3.0)


# -- orientations -------------------------------------------------------------------------------


def test_a_turn_is_taken_as_far_as_it_may_go_about_the_same_axis():
    rng = np.random.default_rng(4)
    for _ in range(20):
        reached, pose = np.eye(4), np.eye(4)
        reached[:3, :3] = rotation_from_rpy(rng.uniform(-1.0, 1.0, 3))
        pose[:3, :3] = rotation_from_rpy(rng.uniform(-1.0, 1.0, 3))
        pose[:3, 3] = rng.normal(0.0, 1.0, 3)
        whole = rotation_vector(pose[:3, :3] @ reached[:3, :3].T)
        angle = float(np.linalg.norm(whole))
        nearer = _turned_towards(reached, pose, 0.4 * angle)
        assert nearer[:3, 3].tolist() == pose[:3, 3].tolist()
        turned = rotation_vector(nearer[:3, :3] @ reached[:3, :3].T)
        np.testing.assert_allclose(turned, 0.4 * whole, atol=1e-9)
        np.testing.assert_allclose(nearer[:3, :3] @ nearer[:3, :3].T, np.eye(3), atol=1e-12)
        assert nearer[3].tolist() == [0.0, 0.0, 0.0, 1.0]
        assert _turned_towards(reached, pose, 1.001 * angle) is pose


# -- what of a step is taken ----------------------------------------------------------------------


def planner_at() -> tuple[Planner, np.ndarray]:
    planner = Planner(Kinematics(load_robot("panda")), SafetyConfig(velocity_fraction=0.1), 0.01)
    return planner, planner.posture(planner.pose(np.array([0.0, 0.0, 0.15]), 0.0))


def test_a_step_is_damped_and_shared_out():
    planner, q = planner_at()
    pose = planner.kinematics.forward(q)
    pose[:3, 3] += (0.05, 0.02, 0.0)
    for damping in (0.01, 0.1):
        change, share = planner._step(q, pose, damping, 0.1)
        expected = planner.clipped(planner.kinematics.step(q, pose, damping=damping)[0]) - q
        np.testing.assert_allclose(change, expected, atol=1e-15)
        assert share == planner._share(q, expected, 0.1) < 0.5


def test_what_joints_are_too_slow_for_is_done_in_part():
    planner, q = planner_at()
    reached = planner.kinematics.forward(q)
    pose = reached.copy()
    pose[:3, 3] += (0.04, 0.0, 0.0)
    plan = planner.at_rest(q, 0)
    change, share = planner._step(q, pose, 0.01, 0.1)
    found = planner.to_tool(plan, 0, q, reached, Aim(pose, 0.1, 0.1))
    part = found.part / share
    assert 0.0 < share < 0.5 and part in (1.0, 0.5, 0.25)
    np.testing.assert_allclose(found.q_rad, q + part * share * change, atol=1e-12)


def test_at_a_face_the_tool_is_led_inside(monkeypatch):
    planner, q = planner_at()
    reached = planner.kinematics.forward(q)
    reached[2, 3] = 0.36
    change, share = planner._step(
        q, np.block([[reached[:3, :3], planner.inside(reached[:3, 3] - planner._origin)[:, None]
                      + planner._origin[:, None]], [np.array([[0.0, 0.0, 0.0, 1.0]])]]), 0.01, 0.1)
    asked: list[np.ndarray] = []
    planned = planner._planned
    monkeypatch.setattr(planner, "_planned",
                        lambda plan, row, to, *more: (asked.append(to),
                                                      planned(plan, row, to, *more))[1])
    planner._from_the_face(planner.at_rest(q, 0), 0, q, reached, 0.1)
    np.testing.assert_allclose(asked[0], q + share * change, atol=1e-12)
    assert 0.0 < share < 1.0 and math.isfinite(share)
