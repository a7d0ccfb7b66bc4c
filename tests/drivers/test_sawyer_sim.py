"""``robot-rl sim intera`` as a command: what it says, publishes and refuses."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

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
from robot_rl.ros.ros1 import Ros1Session
from robot_rl.ros.ros1_master import free_port
from tests.drivers.intera import SimProcess, wait_for

HOSTILE = (
    b"[1]", b"5", b"", b"\xff\xfe", b"null", b"[" * 5000, b'{"fault": "push", "value": [1, 2]}',
    b'{"fault": "push", "value": "x"}', b'{"fault": "push", "value": [NaN]}',
    b'{"fault": "hang", "value": "x"}', b'{"fault": "hang", "value": 1e9}',
    b'{"fault": "nan", "value": 99}', b'{"fault": "drop_joint", "value": [1]}',
    b'{"fault": "narrow_limits", "value": {}}', b'{"fault": ["push"]}', b'{"save": true}',
)
ROOT = Path(__file__).resolve().parents[2]


def test_it_says_when_it_is_ready_and_stops_at_ctrl_c():
    process = subprocess.Popen(
        [sys.executable, "-m", "robot_rl.cli.main", "sim", "intera", "--start-master", "true",
         "--backend", "pybullet"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("ready master_uri=http://127.0.0.1:"), line
        time.sleep(0.3)
        begun_s = time.monotonic()
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 0, errors
    assert time.monotonic() - begun_s < 5.0
    assert out.startswith("stopped after")
    assert "Traceback" not in errors


def test_everything_that_a_lab_would_tell_is_published_and_it_starts_disabled():
    sim = SimProcess(
        "intera", "--start-master", "true", "--task", "Drawer", "--disabled", "true",
        "--cameras", "front", "side", "--image-size", "32", "--camera-hz", "20",
    )
    try:
        session = Ros1Session(sim.ready["master_uri"])
        got: dict[str, list] = {}
        try:
            topics = session.published("/")
            for topic in ("/robot_rl/joints", "/robot_rl/sensors/drawer", "/robot/state",
                          "/robot_rl/cameras/front/image_raw", "/robot/joint_states"):
                session.subscribe(topic, topics[topic], got.setdefault(topic, []).append)
            wait_for(lambda: len(got) == 5 and all(got.values()), "a message on each", got.keys)
            wait_for(lambda: len(got["/robot/joint_states"]) > 50, "joint states")
        finally:
            session.close()
        assert {"/robot_rl/cameras/side/image_raw", "/io/end_effector/right_gripper/state",
                "/robot_rl/bodies/drawer"} <= set(topics)
        image = got["/robot_rl/cameras/front/image_raw"][-1]
        pixels = np.frombuffer(image.data, np.uint8)
        assert (image.height, image.width, image.encoding, pixels.size) == (32, 32, "rgb8", 3072)
        assert pixels.std() > 10.0
        state = got["/robot/joint_states"][-1]
        assert state.name[0] == "head_pan" and state.name[-1] == "torso_t0" and len(state.name) == 9
        stamps = [m.header.stamp.to_sec() for m in got["/robot/joint_states"]]
        assert 80.0 < (len(stamps) - 1) / (stamps[-1] - stamps[0]) < 120.0
        assert got["/robot_rl/sensors/drawer"][-1].data == pytest.approx(
            got["/robot_rl/joints"][-1].position[0], abs=1e-6
        )
        assert not got["/robot/state"][-1].enabled
        with socket.create_connection(("127.0.0.1", sim.ready["control_port"]), 10.0) as wire:
            file = wire.makefile("rwb")
            for line in HOSTILE:
                file.write(line + b"\n")
                file.flush()
                assert b"error" in file.readline(), line
        ticks = sim.control(report=True)["time_s"]
        wait_for(lambda: sim.control(report=True)["time_s"] > ticks + 0.1, "time to go on")
    finally:
        code, values, _ = sim.stop()
    assert code == 0 and values["real_time_factor"] > 0.8, values
    assert values["taken"] == 0 and values["state"]["enabled"] is False


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "Pusch"], "Push"), (["--rate-hz", "1"], "rate_hz is 1.0"),
        (["--physics-step-s", "0.5"], "physics_step_s is 0.5"),
        (["--backend", "bulet"], "pybullet"),
        (["--cameras", "top"], "valid: front, side"), ([], "no ROS master answers"),
        (["--control-port", "99999"], "control_port is 99999"),
        (["--control-port", "-2"], "control_port is -2"),
        (["--duration-s", "nan"], "duration_s is nan"), (["--duration-s", "-1"], "duration_s is"),
        (["--camera-hz", "0"], "camera_hz is 0"), (["--camera-hz", "nan"], "camera_hz is nan"),
        (["--image-size", "0"], "image_size is 0"), (["--seed", "-1"], "seed is -1"),
        (["--rate-hz", "nan"], "rate_hz is nan"),
        (["--record", "/proc/none/x.npz"], "/proc/none/x.npz"),
    ],
)
def test_what_cannot_be_run_is_one_line_and_exit_code_2(arguments, message, capsys):
    uri = f"http://127.0.0.1:{free_port()}"
    assert main(["sim", "intera", "--master-uri", uri, *arguments]) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 1 and message in errors[0]


def test_the_help_teaches(capsys):
    with pytest.raises(SystemExit):
        main(["sim", "intera", "--help"])
    text = capsys.readouterr().out
    assert "--start-master" in text and "ros1:/robot_rl/cameras/front/image_raw" in text
    assert main(["sim"]) == 2
    assert "intera" in capsys.readouterr().out
