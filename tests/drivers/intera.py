"""A simulated Sawyer as a process, for tests: start it, break it, look at what it was sent."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from robot_rl.backends import make_rig
from robot_rl.envs.tasks import make_task
from robot_rl.interfaces import Rig, RigRequest
from robot_rl.specs import load_robot

ROOT = Path(__file__).resolve().parents[2]
START_S, STOP_S = 60.0, 10.0
GAP_S = "0.15"
"""How late a row may be here: the machine that runs the tests is busy."""


class SimProcess:
    """``robot-rl sim <name>`` with a control port. ``ready`` is what it said when it was up."""

    def __init__(self, name: str, *arguments: str, record: Path | None = None) -> None:
        self.record_path = record
        command = [sys.executable, "-m", "robot_rl.cli.main", "sim", name, "--json",
                   "--control-port", "0", *arguments]
        if record is not None:
            command += ["--record", str(record)]
        env = {**os.environ, "MUJOCO_GL": "egl", "OMP_NUM_THREADS": "1", "ROS_IP": "127.0.0.1"}
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env, cwd=ROOT
        )
        self.ready: dict[str, Any] = {}
        self._errors: list[str] = []
        threading.Thread(target=self._drain, daemon=True).start()
        killer = threading.Timer(START_S, self.process.kill)
        killer.start()
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        killer.cancel()
        if not line:
            self.process.wait()
            time.sleep(0.1)
            raise AssertionError(f"the simulated robot did not start: {''.join(self._errors)}")
        self.ready = json.loads(line)
        self._socket = socket.create_connection(("127.0.0.1", self.ready["control_port"]), 10.0)
        self._file = self._socket.makefile("rw")

    def _drain(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._errors.append(line)

    def control(self, **order: Any) -> dict[str, Any]:
        """One line to the control port; its answer."""
        self._file.write(json.dumps(order) + "\n")
        self._file.flush()
        answer: dict[str, Any] = json.loads(self._file.readline())
        assert "error" not in answer or "time_s" in answer, answer
        return answer

    def fault(self, name: str, value: Any = True) -> None:
        self.control(fault=name, value=value)

    def heal(self) -> None:
        """End every fault, release the emergency stop, and have the robot enabled."""
        from robot_rl_sim.intera import FAULTS

        for name in FAULTS:
            if name != "hang":
                self.control(fault=name, value=None)
        self.control(estop="release")
        self.control(reset=True)
        self.control(enable=True)

    def record(self) -> dict[str, np.ndarray]:
        """What it was sent so far."""
        assert self.record_path is not None
        self.control(save=True)
        with np.load(self.record_path) as arrays:
            return {name: arrays[name] for name in arrays.files}

    def stop(self) -> tuple[int, dict[str, Any], float]:
        """SIGTERM; its exit code, its last line, how long that took [s]."""
        begun_s = time.monotonic()
        with contextlib.suppress(OSError):
            self._socket.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            out, _ = self.process.communicate(timeout=STOP_S)
        except (subprocess.TimeoutExpired, ValueError):
            self.process.kill()
            out = ""
            self.process.wait()
        took_s = time.monotonic() - begun_s
        lines = [line for line in out.splitlines() if line.startswith("{")]
        return self.process.returncode, json.loads(lines[-1]) if lines else {}, took_s


def intera_request(master_uri: str, task: str = "Push", **options: str) -> RigRequest:
    """What the ``ros1`` backend is asked for."""
    cameras = {}
    if "camera" in options:
        cameras = {"front": options.pop("camera")}
    return RigRequest(
        load_robot("sawyer"), make_task(task).scene(),
        options={"master_uri": master_uri, "max_gap_s": GAP_S, **options}, cameras=cameras,
    )


@contextlib.contextmanager
def intera_rig(sim: SimProcess, task: str = "Push", **options: str) -> Iterator[Rig]:
    """The driver's rig on a simulated Sawyer, ready to move."""
    rig = make_rig("ros1", intera_request(sim.ready["master_uri"], task, **options))
    try:
        wait_for(lambda: rig.arm.status().ready, "the arm to be ready", lambda: rig.arm.status())
        yield rig
    finally:
        rig.close()


def wait_for(
    done: Callable[[], Any], what: str, detail: Callable[[], Any] = str, timeout_s: float = 10.0
) -> Any:
    """What ``done`` returned as soon as that is true; fails after ``timeout_s``."""
    end_s = time.monotonic() + timeout_s
    while not (found := done()):
        if time.monotonic() > end_s:
            raise AssertionError(f"waited {timeout_s:g} s for {what}: {detail()}")
        time.sleep(0.005)
    return found


def smooth(start: np.ndarray, change: np.ndarray, rows: int, period_s: float = 0.01) -> Any:
    """Set-points (rows, n) of a motion from rest to rest: position, velocity, acceleration."""
    s = (np.arange(1, rows + 1) / rows)[:, None]
    span_s = rows * period_s
    return (
        start + change * (10 * s**3 - 15 * s**4 + 6 * s**5),
        change * (30 * s**2 - 60 * s**3 + 30 * s**4) / span_s,
        change * (60 * s - 180 * s**2 + 120 * s**3) / span_s**2,
    )


@contextlib.contextmanager
def shared_sim(record: Path) -> Iterator[SimProcess]:
    """A simulated Sawyer with a master in a process of its own, ``sim.master``."""
    from robot_rl.ros.ros1_master import RosMaster

    with RosMaster() as master:
        sim = SimProcess("intera", "--master-uri", master.uri, record=record)
        sim.master = master  # type: ignore[attr-defined]
        try:
            yield sim
        finally:
            sim.stop()
