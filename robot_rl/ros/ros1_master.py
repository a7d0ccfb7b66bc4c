"""A ROS 1 master of our own, for simulated robots: the real ones run theirs themselves."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

from robot_rl.errors import MissingDependencyError, RobotRLError
from robot_rl.ros.ros1 import master_answers
from robot_rl.ros.ros1_import import APT_PACKAGES

_START_S = 20.0
_PR_SET_PDEATHSIG = 1
# Loaded here: between fork and exec as little as possible may happen.
_LIBC = ctypes.CDLL(None)


def free_port() -> int:
    """A TCP port on the loopback that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _end_with_parent() -> None:
    """Ask Linux to end this process when the thread that made it ends, even if that is killed."""
    if sys.platform == "linux":
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


class RosMaster:
    """``rosmaster`` as a process of its own, on the loopback; a context manager. It ends with the
    thread that started it.

    Raises:
        MissingDependencyError: it is not installed.
        RobotRLError: it did not come up.
    """

    def __init__(self, port: int | None = None) -> None:
        self.port = port or free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None
        self._logs = tempfile.TemporaryDirectory(prefix="rosmaster_")

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    def start(self) -> RosMaster:
        program = shutil.which("rosmaster")
        if program is None:
            raise MissingDependencyError(
                f"rosmaster is not installed: apt-get install {' '.join(APT_PACKAGES)}"
            )
        self._process = subprocess.Popen(
            [program, "--core", "-p", str(self.port)],
            env={**os.environ, "ROS_IP": "127.0.0.1", "ROS_MASTER_URI": self.uri,
                 "ROS_LOG_DIR": self._logs.name, "ROS_HOME": self._logs.name},
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True, preexec_fn=_end_with_parent,
        )
        end_s = time.monotonic() + _START_S
        while not master_answers(self.uri):
            if self._process.poll() is not None or time.monotonic() > end_s:
                self.stop()
                raise RobotRLError(f"rosmaster did not come up on port {self.port}")
            time.sleep(0.05)
        return self

    def stop(self, *, hard: bool = False) -> None:
        """End it, with SIGKILL if ``hard``; :meth:`start` starts a new one on the same port."""
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signal.SIGKILL if hard else signal.SIGTERM)
        try:
            process.wait(timeout=5.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def __enter__(self) -> RosMaster:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._logs.cleanup()
