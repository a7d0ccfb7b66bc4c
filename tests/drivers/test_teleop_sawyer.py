"""A person and a script at a simulated Sawyer over ROS 1, in real time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robot_rl.errors import MissingDependencyError

pytest.importorskip("mujoco")
try:
    from robot_rl.ros.ros1_import import import_rospy

    import_rospy()
except MissingDependencyError as error:
    pytest.skip(str(error), allow_module_level=True)

from robot_rl.data import open_log
from robot_rl.envs.factory import make_env
from robot_rl.interfaces import Placement
from robot_rl.teleops import Operator
from robot_rl.training import demonstrate
from robot_rl.training.demonstrate import RecordConfig, record
from robot_rl.training.setup import EnvChoice
from robot_rl_drivers.teleop.hand import HandTeleop
from robot_rl_drivers.teleop.keyboard import KeyboardOptions, TerminalKeys
from tests.drivers.intera import GAP_S
from tests.drivers.teleop_devices import Terminal

ROOT = Path(__file__).resolve().parents[2]
SAWYER = EnvChoice(task="Push", backend="ros1")


class Slow:
    """A resetter that moves to and fro for some seconds, as one that has much to do."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.env = seconds, None
        self.moving = threading.Event()

    def reset(self, placement: Placement) -> bool:
        env: Any = self.env
        begun_s, k = env.rig.clock.now_s(), 0
        while env.rig.clock.now_s() - begun_s < self.seconds:
            env.safety.move(np.array([0.0, 0.01 * np.sin(k / 5), 0.003]), 0.0, 0.1)
            k += 1
            env.rig.clock.sleep_until(begun_s + 0.1 * k)
            if k == 5:
                self.moving.set()
        return True


@pytest.fixture(autouse=True)
def own_state(tmp_path, monkeypatch):
    monkeypatch.setenv("ROBOT_RL_STATE_DIR", str(tmp_path / "state"))


@pytest.fixture
def sim(intera_sim):
    intera_sim.control(restart=True)
    intera_sim.heal()
    return intera_sim


@pytest.fixture
def worlds(sim, monkeypatch):
    """The environments that recordings make, reset by ``worlds.resetter``."""

    class Worlds(list[Any]):
        resetter = Slow(0.0)

    made = Worlds()

    def make(env: EnvChoice, hardware: Any, obs: str, duration_s: float) -> Any:
        world = make_env("Push", "sawyer", "ros1", cameras=(), resetter=made.resetter,
                         duration_s=duration_s,
                         rig_options={"master_uri": sim.ready["master_uri"], "max_gap_s": GAP_S})
        made.resetter.env = world
        made.append(world)
        return world

    monkeypatch.setattr(demonstrate, "make_world", make)
    return made


def at_a_terminal(terminal: Terminal) -> Any:
    options = KeyboardOptions(release_s=0.3)
    return lambda world: Operator(
        HandTeleop(TerminalKeys(options, terminal.program), world, options))


def run(path: Path, terminal: Terminal, results: list[Any]) -> threading.Thread:
    """Records in a thread of its own; the test is the person."""
    config = RecordConfig(teleop="keyboard", episodes=1, out=str(path))

    def work() -> None:
        results.append(record(config, SAWYER, operator=at_a_terminal(terminal), quiet=True))

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def until(what: Any, terminal: Terminal, keys: bytes = b"", timeout_s: float = 30.0) -> None:
    end_s = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < end_s, "it did not come to that"
        os.write(terminal.person, keys)
        time.sleep(0.03)


def test_an_emergency_stop_aborts_and_the_person_re_arms_when_it_is_released(
    tmp_path, sim, worlds
):
    terminal, results = Terminal(), []
    thread = run(tmp_path / "demos", terminal, results)
    try:
        until(lambda: worlds, terminal)
        world = worlds[0]
        until(lambda: world._steps >= 6, terminal, b"q")
        sim.control(estop="press")
        until(lambda: world.safety.held is not None, terminal, b"q")
        assert "emergency stop" in world.safety.held
        for _ in range(5):
            terminal.type(b"R")
            time.sleep(0.05)
        assert world.safety.held is not None, "the emergency stop is still pressed"
        sim.control(estop="release")
        until(lambda: world.safety.held is None, terminal, b"R")
        until(lambda: world._steps < 3, terminal)
        until(lambda: world._steps >= 6, terminal, b"q")
        os.write(terminal.person, b"\n")
        thread.join(30.0)
        assert not thread.is_alive()
    finally:
        os.write(terminal.person, b"\x04")
        thread.join(30.0)
        terminal.close()
    (values,) = results
    assert (values["accepted"], values["aborted"]) == (1, 1)
    (aborted,) = open_log(values["rejected_path"])
    assert "emergency stop" in aborted.metadata["reason"]
    assert len(open_log(tmp_path / "demos").read(0)) >= 5


def test_a_stop_is_heard_while_the_arm_moves_by_itself(tmp_path, sim, worlds):
    terminal, results = Terminal(), []
    worlds.resetter = Slow(30.0)
    thread = run(tmp_path / "demos", terminal, results)
    try:
        assert worlds.resetter.moving.wait(30.0)
        os.write(terminal.person, b" ")
        pressed_s = time.monotonic()
        world = worlds[0]
        until(lambda: world.safety.held is not None, terminal)
        assert time.monotonic() - pressed_s < 0.5
        until(lambda: np.abs(world.rig.arm.state(1.0).velocity_rad_s).max() < 0.01, terminal)
        assert time.monotonic() - pressed_s < 2.0
    finally:
        os.write(terminal.person, b"\x04")
        thread.join(30.0)
        terminal.close()
    (values,) = results
    assert "the operator stopped the arm" in values["stopped"]
    assert values["attempts"] == 0


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_fifty_demonstrations(tmp_path):
    out = tmp_path / "result.json"
    done = subprocess.run(
        [sys.executable, "benchmarks/record_sawyer.py", "--episodes", "50", "--folder",
         str(tmp_path / "demos"), "--out", str(out)],
        cwd=ROOT, capture_output=True, text=True, timeout=3500,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(out.read_text())
    assert result["accepted"] == 50 and result["rejected"] > 0 and result["stopped"] is None
    assert result["attempts"] == 50 + result["rejected"] + result["aborted"]
    assert result["late_share"] < 0.05
    assert len(open_log(tmp_path / "demos")) == 50
