"""Simulated robots for the drivers' tests, each a process that speaks the real robot's protocol."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.battery.domains import free_domain
from tests import waiting
from tests.drivers.teleop_devices import Terminal
from tests.drivers.teleop_stand_ins import HidLibrary

ROOT = Path(__file__).resolve().parents[2]


# -- Franka -------------------------------------------------------------------------------------

class SimulatedFranka:
    """``robot-rl sim franka`` in a process of its own, with a line to its control port."""

    def __init__(self, *arguments: str, **environment: str) -> None:
        self.domain_id = free_domain()
        code = "import sys; from robot_rl.cli.main import main; sys.exit(main(sys.argv[1:]))"
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, "sim", "franka", "--domain-id", str(self.domain_id),
             "--control-port", "0", "--json", *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "ROBOT_RL_ROS_RUNTIME": "embedded",
                 **environment},
        )
        assert self.process.stdout is not None and self.process.stderr is not None
        line = self.process.stdout.readline()
        if not line:
            raise AssertionError(f"no ready line; {self.process.stderr.read()}")
        self.ready: dict[str, Any] = json.loads(line)
        self._socket = socket.create_connection(("127.0.0.1", self.ready["control_port"]))
        self._lines = self._socket.makefile("rw")

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send a request to the control port; its answer."""
        self._lines.write(json.dumps(request) + "\n")
        self._lines.flush()
        line = self._lines.readline()
        answer: dict[str, Any] = json.loads(line) if line else {}
        return answer

    def stop(self) -> dict[str, Any]:
        """Stop it as a user would; what it reports."""
        self._socket.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        out, err = self.process.communicate(timeout=30)
        assert self.process.returncode in (0, 9), err
        report: dict[str, Any] = json.loads(out.splitlines()[-1]) if out.strip() else {}
        return report


@pytest.fixture(scope="module")
def simulated_franka() -> Iterator[Callable[..., SimulatedFranka]]:
    """Starts simulated Frankas; ``--key value`` words as for ``robot-rl sim franka``."""
    started: list[SimulatedFranka] = []

    def start(*arguments: str) -> SimulatedFranka:
        started.append(SimulatedFranka(*arguments))
        return started[-1]

    yield start
    for robot in started:
        if robot.process.poll() is None:
            robot.process.kill()
            robot.process.communicate()


@pytest.fixture(scope="session")
def until() -> Callable[..., bool]:
    """Waits for a check to come true; whether it did."""
    return waiting.until


# -- cameras ------------------------------------------------------------------------------------


@pytest.fixture
def no_camera_thread_stays() -> Iterator[None]:
    """Fails where a camera that was closed still has its thread."""
    before = set(threading.enumerate())
    yield
    left = [t.name for t in set(threading.enumerate()) - before if t.name.startswith("camera ")]
    assert not left, f"closing left threads: {left}"


# -- devices of an operator -----------------------------------------------------------------------


@pytest.fixture
def hid(monkeypatch: pytest.MonkeyPatch) -> HidLibrary:
    """A SpaceMouse below the library that reads HID devices."""
    library = pytest.importorskip("easyhid.easyhid")
    pytest.importorskip("pyspacemouse")
    found = HidLibrary(library.ffi, 0x256F, 0xC635)
    monkeypatch.setattr(library, "hidapi", found)
    return found


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    """A terminal that the test types into."""
    found = Terminal()
    yield found
    found.close()


# -- Sawyer -------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def intera_sim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A simulated Sawyer on a ROS 1 master of its own; see ``tests/drivers/intera.py``."""
    from tests.drivers.intera import shared_sim

    with shared_sim(tmp_path_factory.mktemp("intera") / "commands.npz") as sim:
        yield sim
