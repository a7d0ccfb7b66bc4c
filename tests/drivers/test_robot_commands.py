"""`robot-rl robot` on drivers: a simulated Sawyer over ROS 1 and a simulated Franka over ROS 2."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from robot_rl.cli.main import main
from robot_rl.errors import MissingDependencyError

pytest.importorskip("mujoco")


def run(capsys: Any, *words: str) -> tuple[int, dict[str, Any]]:
    code = main(["robot", *words, "--json"])
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    return code, json.loads(lines[-1]) if lines else {"error": captured.err}


def failed(said: dict[str, Any]) -> list[str]:
    return [check["name"] for check in said["checks"] if not check["ok"]]


@pytest.fixture
def sawyer(intera_sim, monkeypatch, tmp_path):
    """A simulated Sawyer, whole and at home, and the flags that reach it."""
    try:
        from robot_rl.ros.ros1_import import import_rospy

        import_rospy()
    except MissingDependencyError as error:
        pytest.skip(str(error))
    monkeypatch.setenv("ROBOT_RL_STATE_DIR", str(tmp_path))
    intera_sim.control(restart=True)
    intera_sim.heal()
    uri = intera_sim.ready["master_uri"]
    words = ("--robot", "sawyer", "--backend", "ros1", "--rig", f"master_uri={uri}",
             "--rig", "max_gap_s=0.15")
    return intera_sim, words


def test_a_sawyer_from_check_to_rearm(capsys, sawyer):
    sim, words = sawyer
    before = sim.control(report=True)["taken"]
    code, said = run(capsys, "check", *words, "--seconds", "0.4")
    assert code == 0, failed(said)
    assert {"state", "robot: emergency stop", "robot: limits"} <= {
        check["name"] for check in said["checks"]}
    assert sim.control(report=True)["taken"] == before, "a check sends nothing"
    code, said = run(capsys, "home", *words, "--speed", "0.5")
    assert code == 0, said
    np.testing.assert_allclose(said["tool_m"], [0.0, 0.0, 0.2], atol=0.006)
    code, said = run(capsys, "jog", *words, "--axis", "z", "--by", "-0.03")
    assert code == 0 and said["measured"] == pytest.approx(-0.03, abs=0.004)

    sim.control(estop="press")
    code, said = run(capsys, "check", *words, "--seconds", "0.2")
    assert code == 1 and {"status", "robot: emergency stop"} <= set(failed(said))
    code, said = run(capsys, "home", *words)
    assert code == 1 and "emergency stop" in said["why"]
    code, said = run(capsys, "rearm", *words, "--yes")
    assert code == 1 and said["rearmed"] is False and "emergency stop is down" in said["held"]
    sim.control(estop="release")
    # The hold outlived the programs; only the operator's act ends it.
    taken = sim.control(report=True)["taken"]
    code, said = run(capsys, "jog", *words, "--axis", "z", "--by", "0.02")
    assert code == 1 and "held" in said["why"]
    assert sim.control(report=True)["taken"] == taken
    code, said = run(capsys, "rearm", *words, "--yes")
    assert code == 0 and said["rearmed"] is True
    code, said = run(capsys, "jog", *words, "--axis", "z", "--by", "0.02")
    assert code == 0, said


def test_a_robot_that_is_off_is_a_failed_check(capsys, sawyer):
    code, said = run(capsys, "check", "--robot", "sawyer", "--backend", "ros1", "--rig",
                     "master_uri=http://127.0.0.1:9")
    assert code == 1 and failed(said) == ["connect"]
    assert "no ROS master answers" in said["checks"][0]["detail"]
    code, said = run(capsys, "check", *sawyer[1], "--rig", "mastr=1")
    assert code == 2 and "mastr" in said["error"]


@pytest.mark.slow
def test_a_franka_over_ros_2(capsys, monkeypatch, tmp_path, simulated_franka: Callable[..., Any]):
    pytest.importorskip("cyclonedds")
    pytest.importorskip("rosbags")
    monkeypatch.setenv("ROBOT_RL_ROS_RUNTIME", "embedded")
    monkeypatch.setenv("ROBOT_RL_STATE_DIR", str(tmp_path))
    sim = simulated_franka("--robot", "fr3")
    words = ("--robot", "fr3", "--backend", "ros2", "--rig", f"domain_id={sim.domain_id}",
             "--rig", "max_gap_s=1")
    code, said = run(capsys, "check", *words, "--seconds", "0.4")
    assert code == 0, failed(said)
    code, said = run(capsys, "home", *words, "--speed", "0.5")
    assert code == 0, said
    code, said = run(capsys, "jog", *words, "--axis", "j7", "--by", "0.1")
    assert code == 0 and said["measured"] == pytest.approx(0.1, abs=0.012)
    sim.ask(fault="estop")
    code, said = run(capsys, "rearm", *words, "--yes")
    assert code == 1 and "release it first" in said["held"]
    code, said = run(capsys, "check", *words, "--seconds", "0.2")
    assert code == 1 and "status" in failed(said)
