"""A storm of commands finds what is wrong with a filter, and a replay what an arm could not do."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks.storm.replay import replay
from benchmarks.storm.run import Segment, Storm, result_of
from robot_rl.errors import SafetyError
from robot_rl.interfaces import JointSetpoints
from robot_rl.safety import SafetyFilter
from robot_rl.safety.checks import Checker
from robot_rl.specs import load_robot


@pytest.mark.parametrize("engine", ["mujoco", "pybullet"])
def test_what_was_sent_stays_within_limits_on_a_simulated_arm(engine):
    pytest.importorskip(engine)
    storm = Storm("fr3", seed=3, stretch=24, keep_rows=600)
    storm.run(150)
    seen = replay("fr3", engine, storm.segments)
    assert seen.rows >= 600 and seen.violations == {}, seen
    assert {"position", "velocity", "box"} <= set(seen.furthest)


# -- it finds what is wrong -----------------------------------------------------------------------


def storm_with(monkeypatch: pytest.MonkeyPatch, target: object, name: str, value: object,
               robot: str = "panda") -> dict:
    monkeypatch.setattr(target, name, value)
    return result_of(Storm(robot, seed=5, stretch=24).run(700))


def test_a_filter_that_does_not_look_is_found(monkeypatch):
    def blind(self, before, poses, rows, target_rad, leaning=False):
        places = np.concatenate([rows[:, 0], target_rad[None]])
        return None, self.kinematics.frames(places)[1]

    found = storm_with(monkeypatch, Checker, "broken", blind)
    assert found["violations"] > 0


@pytest.mark.parametrize("limit", ["acceleration", "jerk", "velocity_fraction", "speed"])
def test_a_filter_with_a_limit_too_high_is_found(monkeypatch, limit):
    made = Checker.__init__

    def generous(self, *args, **kwargs):
        made(self, *args, **kwargs)
        setattr(self, limit, 1.3 * getattr(self, limit))
        self.jerk = 1.3 * self.jerk if limit != "jerk" else self.jerk
        self._most_way = self._most_change = math.inf

    found = storm_with(monkeypatch, Checker, "__init__", generous, robot="sawyer")
    assert found["violations"] > 0, f"{limit} is 30 % too high, and nobody noticed"


def test_a_filter_that_clips_what_is_no_number_is_found(monkeypatch):
    move = SafetyFilter.move

    def obliging(self, delta_m, yaw_rad, duration_s):
        try:
            return move(self, delta_m, yaw_rad, duration_s)
        except SafetyError as error:
            if "refused" not in str(error):
                raise
            return move(self, [0.01, 0.0, 0.0], 0.0, 0.1)

    found = storm_with(monkeypatch, SafetyFilter, "move", obliging)
    assert found["faults"] > 0 and any("bad move" in text for text in found["fault_examples"])


def test_a_filter_that_forgets_a_hold_is_found(monkeypatch):
    found = storm_with(monkeypatch, SafetyFilter, "check_released", lambda self: None)
    assert found["faults"] > 0


def test_a_filter_that_is_deaf_to_silence_is_found(monkeypatch):
    found = storm_with(monkeypatch, SafetyFilter, "_silence", lambda self: None)
    assert any("nobody spoke" in text for text in found["fault_examples"])


def test_a_replay_finds_what_a_simulated_arm_could_not_do():
    pytest.importorskip("mujoco")
    spec = load_robot("panda")
    home = np.array(spec.home_rad)
    ramp = np.minimum(np.arange(1, 120) / 60.0, 1.0)[:, None]
    outside = Segment(home, home + ramp * np.array([1.2, 0, 0, 0, 0, 0, 0]))
    seen = replay("panda", "mujoco", [outside])
    assert seen.violations["box"] > 10 and "velocity" not in seen.violations
    fast = Segment(home, home + np.minimum(ramp * 15.0, 1.0) * np.array([1.2, 0, 0, 0, 0, 0, 0]))
    assert {"box", "velocity", "torque"} <= set(replay("panda", "mujoco", [fast]).violations)


def test_a_command_past_the_filter_is_found():
    storm = Storm("panda", seed=0)
    rows = np.repeat(storm.arm.position_rad[None], 3, axis=0)
    rows[:, 0] += 0.01
    storm.arm.command(JointSetpoints(rows, 0.01, at=storm.arm.sent()))
    storm.clock.pass_s(0.1)
    assert storm.checker.flush().violations.keys() >= {"acceleration", "jerk"}
