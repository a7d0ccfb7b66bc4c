"""Whatever moves a simulated arm, the safety filter is on the stack when the arm is commanded."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("mujoco")

from robot_rl.cli.main import main
from robot_rl.data import load_dataset
from robot_rl.envs import make_env
from robot_rl.interfaces import JointSetpoints
from robot_rl.safety import SafetyFilter
from robot_rl_sim.common import SimArm, SimGripper


class Guard:
    """Counts commands, and those without a filter's frame below them."""

    def __init__(self) -> None:
        self.commands = self.others = 0
        self.by: set[str] = set()

    def wrap(self, command: Callable[..., Any]) -> Callable[..., Any]:
        def guarded(part: Any, *args: Any, **kwargs: Any) -> Any:
            self.commands += 1
            names = []
            frame = sys._getframe(1)
            while frame is not None:
                if isinstance(frame.f_locals.get("self"), SafetyFilter):
                    break
                names.append(frame.f_code.co_name)
                frame = frame.f_back
            else:
                self.others += 1
                self.by.add(" < ".join(names[:6]))
            return command(part, *args, **kwargs)

        return guarded

    def assert_filtered(self, least: int) -> None:
        assert self.others == 0, f"commanded past the filter by {sorted(self.by)}"
        assert self.commands >= least, f"only {self.commands} commands: the guard is blind"


@pytest.fixture
def guard(monkeypatch: pytest.MonkeyPatch) -> Guard:
    one = Guard()
    for part in (SimArm, SimGripper):
        monkeypatch.setattr(part, "command", one.wrap(part.command))
    return one


def robot_rl(*words: str) -> None:
    assert main([*words, "--quiet"]) == 0


def record(folder: Path, *words: str) -> str:
    robot_rl("collect", "--task", "Push", "--robot", "panda", "--episodes", "2", "--out",
             str(folder), *words)
    return str(folder)


def test_the_guard_sees_what_goes_past_the_filter(guard):
    env = make_env("Reach", "panda")
    env.reset(seed=0)
    arm, before = env.rig.arm, guard.others
    arm.command(JointSetpoints(np.array(arm.spec.home_rad)[None], arm.period_s, at=arm.sent()))
    assert guard.others == before + 1
    with pytest.raises(AssertionError, match="commanded past the filter"):
        guard.assert_filtered(0)
    env.close()


@pytest.mark.parametrize("backend", ["mujoco", "pybullet"])
@pytest.mark.parametrize("task", ["Reach", "Push", "PickPlace", "Drawer"])
def test_steps_and_resets(guard, backend, task):
    pytest.importorskip(backend)
    env = make_env(task, "panda", backend, max_episode_steps=5)
    for seed in range(2):
        env.reset(seed=seed)
        for _ in range(5):
            env.step(env.action_space.sample())
    env.close()
    guard.assert_filtered(10)


def test_a_world_with_latency(guard):
    env = make_env("Reach", "panda", randomization={"latency_s": 0.05})
    for seed in range(3):
        env.reset(seed=seed)
        for _ in range(5):
            env.step(env.action_space.sample())
    env.close()
    guard.assert_filtered(15)


def test_saved_and_restored_worlds(guard):
    env = make_env("Push", "panda")
    env.reset(seed=0)
    state = env.get_state()
    for _ in range(3):
        env.step(env.action_space.sample())
    env.set_state(state)
    env.step(env.action_space.sample())
    env.close()
    guard.assert_filtered(4)


@pytest.mark.parametrize("policy", ["scripted", "random"])
def test_collecting_and_playing_again(guard, tmp_path, policy):
    data = record(tmp_path / "d", "--policy", policy)
    steps = sum(len(episode) for episode in load_dataset(data)[1])
    guard.assert_filtered(steps)
    robot_rl("eval", "--policy", "replay", "--data", data)
    guard.assert_filtered(2 * steps)


def test_judging_a_scripted_policy(guard):
    robot_rl("eval", "--policy", "scripted", "--task", "Reach", "--robot", "panda",
             "--episodes", "2")
    guard.assert_filtered(10)


def test_a_demonstration(guard, tmp_path):
    robot_rl("record", "--task", "Reach", "--robot", "panda", "--teleop", "scripted",
             "--episodes", "1", "--out", str(tmp_path / "d"))
    guard.assert_filtered(5)


def test_driving_by_hand(guard):
    robot_rl("teleop", "--task", "Reach", "--robot", "panda", "--device", "scripted",
             "--seconds", "1")
    guard.assert_filtered(5)


@pytest.mark.parametrize("words", [("home",), ("jog", "--axis", "z", "--by", "0.03"),
                                   ("jog", "--axis", "j7", "--by", "0.1")])
def test_going_home_and_jogging(guard, words):
    robot_rl("robot", *words, "--robot", "panda")
    guard.assert_filtered(3)


@pytest.mark.parametrize("task", ["Push", "Drawer"])
def test_a_world_that_is_reset_by_the_arm(guard, task):
    """As on hardware: the arm itself brings the scene to a start."""
    env = make_env(task, "panda", resets="arm")
    env.reset(seed=0)
    env.step(env.action_space.sample())
    env.close()
    guard.assert_filtered(20)


def test_a_hold_and_a_rearm(guard):
    env = make_env("Reach", "panda")
    env.reset(seed=0)
    env.step(env.action_space.sample())
    env.safety.hold("a test")
    env.rig.clock.sleep_until(env.rig.clock.now_s() + 1.0)
    env.safety.rearm()
    env.step(env.action_space.sample())
    env.close()
    guard.assert_filtered(2)
