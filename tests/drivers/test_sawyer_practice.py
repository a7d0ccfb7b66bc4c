"""Evaluation and practice on a simulated Sawyer over ROS 1, by the commands that a user types."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from robot_rl.errors import MissingDependencyError

pytest.importorskip("mujoco")
try:
    from robot_rl.ros.ros1_import import import_rospy

    import_rospy()
except MissingDependencyError as error:
    pytest.skip(str(error), allow_module_level=True)

from robot_rl.cli.main import main
from tests.drivers.intera import GAP_S

pytestmark = pytest.mark.slow


@pytest.fixture
def flags(intera_sim, tmp_path, monkeypatch):
    """The flags of a simulated Sawyer, whole and at home."""
    monkeypatch.setenv("ROBOT_RL_STATE_DIR", str(tmp_path / "state"))
    intera_sim.control(restart=True)
    intera_sim.heal()
    return ["--backend", "ros1", "--rig", f"master_uri={intera_sim.ready['master_uri']}",
            "--rig", f"max_gap_s={GAP_S}"]


def run(capsys, *words: str) -> dict:
    code = main([*words, "--json", "--quiet"])
    out = capsys.readouterr()
    assert code == 0, out.err
    return json.loads(out.out.strip().splitlines()[-1])


@pytest.mark.timeout(300)
def test_a_policy_is_evaluated_on_the_arm(flags, capsys):
    values = run(capsys, "eval", "--policy", "scripted", "--task", "Reach", "--episodes", "2",
                 *flags)
    assert values["episodes"] == 2 and values["steps"] == 60
    assert values["success_rate"] == 1.0 and values["safety_violations"] == 0


@pytest.mark.timeout(600)
def test_practice_goes_on_from_a_pretrained_run_and_can_be_resumed(flags, capsys, tmp_path):
    data, first, practice = (str(tmp_path / name) for name in ("data", "first", "practice"))
    run(capsys, "collect", "--task", "Reach", "--episodes", "5", "--out", data)
    run(capsys, "pretrain", "--agent", "bc", "--data", data, "--steps", "50", "--out", first)
    values = run(capsys, "train", "--from", first, "--env-steps", "40", "--warmup-steps", "20",
                 "--eval-episodes", "1", "--out", practice, *flags)
    assert values["env_steps"] == 40 and values["success_rate"] is not None
    assert values["safety_violations"] == 0
    # The run knows how its arm is reached.
    again = run(capsys, "train", "--resume", practice, "--env-steps", "50")
    assert again["env_steps"] == 50 and again["success_rate"] is not None


PROGRAM = """
import sys
import numpy as np
from robot_rl.envs import make_env

class Stay:
    def reset(self, placement):
        return True

env = make_env("Reach", "sawyer", "ros1", resetter=Stay(), success=None,
               rig_options={"master_uri": sys.argv[1], "max_gap_s": sys.argv[2]})
env.reset(seed=0)
for k in range(40):
    env.step(np.array([0.0, 0.0, 1.0 if k % 10 < 5 else -1.0]))
    print(k, flush=True)
"""


@pytest.mark.timeout(120)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_script_that_is_stopped_leaves_the_arm_at_rest(flags, intera_sim, number):
    before = len(intera_sim.record().get("mode", ()))
    program = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PROGRAM), intera_sim.ready["master_uri"], GAP_S],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )
    assert program.stdout is not None
    for line in program.stdout:
        if line.strip() == "3":
            break
    program.send_signal(number)
    _, errors = program.communicate(timeout=60.0)
    assert "KeyboardInterrupt" in errors, errors
    sent = {name: values[before:] for name, values in intera_sim.record().items()}
    assert np.abs(sent["velocity"]).max() > 0.05
    # The last row is at rest, and those before it lead there without a jump.
    assert not sent["velocity"][-1].any(), sent["velocity"][-5:]
    assert np.abs(np.diff(sent["velocity"], axis=0)).max() < 0.2
