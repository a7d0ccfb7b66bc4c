"""The processes of a trial: a simulated robot, two cameras, and the commander of the arm."""

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
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robot_rl.specs import RobotSpec, load_robot

from .domains import free_domain

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
START_S, ANSWER_S = 90.0, 20.0

Log = dict[str, NDArray[np.float64]]


class NoAnswer(Exception):
    """A process of the battery did not say what was waited for; the message has its last words."""


class Child:
    """A process that talks in lines of JSON; ``events`` are all that it said."""

    def __init__(self, script: str, *words: str, env: Mapping[str, str]) -> None:
        paths = [str(ROOT), str(ROOT / "drivers"), str(ROOT / "sim"),
                 *filter(None, [os.environ.get("PYTHONPATH")])]
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / script), *words], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "MUJOCO_GL": "egl",
                 "PYTHONPATH": os.pathsep.join(paths), **env},
        )
        self.name = script
        self.events: list[dict[str, Any]] = []
        self._errors: list[str] = []
        self._came = threading.Condition()
        self._ended = False
        threading.Thread(target=self._hear, daemon=True).start()
        threading.Thread(target=self._drain, daemon=True).start()

    def _hear(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                with self._came:
                    self.events.append(json.loads(line))
                    self._came.notify_all()
        with self._came:
            self._ended = True
            self._came.notify_all()

    def _drain(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._errors = [*self._errors[-40:], line]

    def tell(self, **order: Any) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(order) + "\n")
            self.process.stdin.flush()
        except OSError as error:
            raise NoAnswer(f"{self.name} is gone ({error}): {''.join(self._errors)}") from None

    def wait(self, *names: str, since: int = 0, timeout_s: float = ANSWER_S) -> dict[str, Any]:
        """The first event of one of these names after ``since`` events; any event if no name."""
        def found() -> dict[str, Any] | None:
            return next((e for e in self.events[since:]
                         if not names or e.get("event") in names), None)

        with self._came:
            self._came.wait_for(lambda: found() is not None or self._ended, timeout_s)
            event = found()
        if event is None:
            raise NoAnswer(f"{self.name} did not say {' or '.join(names)} within {timeout_s:g} s; "
                           f"it said {self.events[-3:]}; {''.join(self._errors)}")
        return event

    def ask(self, *names: str, timeout_s: float = ANSWER_S, **order: Any) -> dict[str, Any]:
        """Give an order; the event that answers it (``error`` and ``stopped`` do too)."""
        since = len(self.events)
        self.tell(**order)
        return self.wait(*names, "error", since=since, timeout_s=timeout_s)

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
        self.process.wait()
        assert self.process.stdin is not None
        # What is still to be written cannot be: nobody reads any more.
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()


class RobotProcess(Child):
    """The simulated robot and its control port."""

    def __init__(self, *words: str, env: Mapping[str, str]) -> None:
        super().__init__("robot.py", *words, env=env)
        ready = self.wait(timeout_s=START_S)
        self._socket = socket.create_connection(("127.0.0.1", ready["control_port"]), ANSWER_S)
        self._lines = self._socket.makefile("rw")

    def control(self, **order: Any) -> dict[str, Any]:
        """One line to the control port; its answer."""
        self._lines.write(json.dumps(order) + "\n")
        self._lines.flush()
        line = self._lines.readline()
        answer: dict[str, Any] = json.loads(line) if line else {}
        if set(answer) == {"error"}:
            raise NoAnswer(f"the robot says {answer}")
        return answer

    def kill(self) -> None:
        self._socket.close()
        super().kill()


class Bench(ABC):
    """A rig's processes; :meth:`close` ends them all. ``commander`` is the one in use, a spare one
    stands by so that a new program need not be waited for."""

    name: str
    robot_name: str
    forgets_s = 1.0
    """How long after a commander was killed its robot listens to another [s]."""

    def __init__(self, folder: Path, *, broken: str = "", options: Mapping[str, str] | None = None
                 ) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.broken = broken
        self.given = dict(options or {})
        self.env = {"ROBOT_RL_STATE_DIR": str(folder / "state"), "ROS_IP": "127.0.0.1",
                    "ROBOT_RL_ROS_RUNTIME": "embedded"}
        self.spec: RobotSpec = load_robot(self.robot_name)
        self.hz: float | None = None
        self._stack = contextlib.ExitStack()
        self._commander: Child | None = None
        self._spare: Child | None = None
        try:
            self._start()
            self.new_commander()
        except BaseException:
            self.close()
            raise

    # -- what differs between rigs ----------------------------------------------------------------

    @abstractmethod
    def _start(self) -> None:
        """Have a robot and the two cameras."""

    @abstractmethod
    def start_robot(self, *, disabled: bool = False) -> None:
        """A robot in place of the last one, at home; disabled, where it can be, as real ones are
        when they are switched on."""

    @abstractmethod
    def rig_options(self) -> dict[str, str]:
        """How a program reaches the robot."""

    @abstractmethod
    def source(self, camera: str) -> str:
        """Where the images of ``camera`` come from."""

    @abstractmethod
    def break_robot(self, what: str, value: Any = True) -> None:
        """Begin the fault ``what`` of the robot."""

    @abstractmethod
    def heal(self) -> None:
        """End every fault of the robot, but clear nothing that it remembers."""

    # -- processes --------------------------------------------------------------------------------

    @property
    def commander(self) -> Child:
        assert self._commander is not None
        return self._commander

    def _make_commander(self) -> Child:
        words = [self.robot_name, *(f"{k}={v}" for k, v in self.rig_options().items())]
        for camera in ("front", "side"):
            words += ["--camera", f"{camera}={self.source(camera)}"]
        return Child("commander.py", *words, "--broken", self.broken, env=self.env)

    def new_commander(self) -> None:
        """A new program in place of the last one, which must have ended or ends now."""
        if self._commander is not None:
            self._commander.kill()
        self._commander = self._spare if self._spare is not None else self._make_commander()
        self._spare = self._make_commander()
        self._commander.wait("ready", timeout_s=START_S)
        self.hz = None

    def close(self) -> None:
        for child in (self._commander, self._spare):
            if child is not None:
                child.kill()
        self._stack.close()

    # -- what a trial does with them --------------------------------------------------------------

    def open(self, hz: float, *, fresh: bool = False) -> dict[str, Any]:
        """Have an environment at ``hz``; a fresh one if asked. A robot that thinks its last
        commander alive is waited for."""
        if self.hz == hz and not fresh:
            return {"event": "open", "held": None}
        self.hz = None
        end_s = time.monotonic() + 30.0
        while True:
            answer = self.commander.ask("open", do="open", hz=hz, timeout_s=60.0)
            if answer["event"] == "open":
                self.hz = hz
                return answer
            if "other program" not in answer["error"] or time.monotonic() > end_s:
                raise NoAnswer(f"no environment: {answer['error']}")
            time.sleep(0.2)

    def mark(self) -> None:
        self.robot.control(mark=True)

    def log(self) -> Log:
        """What the robot wrote down since :meth:`mark`."""
        path = self.folder / "log.npz"
        self.robot.control(log=str(path))
        with np.load(path) as arrays:
            return {name: arrays[name] for name in arrays.files}

    robot: RobotProcess
    pictures: Child

    def camera(self, **order: Any) -> float:
        """Break or heal a camera; when that took effect."""
        since = len(self.pictures.events)
        self.pictures.tell(**order)
        return float(self.pictures.wait(since=since)["t"])


class SawyerBench(Bench):
    """A Sawyer on a ROS 1 master of its own."""

    name = "sawyer"
    robot_name = "sawyer"

    def _start(self) -> None:
        from robot_rl.ros.ros1_master import RosMaster

        self.master = self._stack.enter_context(RosMaster())
        self.env["ROS_MASTER_URI"] = self.master.uri
        self.pictures = Child("pictures.py", "ros1", self.master.uri, env=self.env)
        self._stack.callback(self.pictures.kill)
        self._stack.callback(lambda: self.robot.kill())
        self.start_robot()
        self.pictures.wait(timeout_s=START_S)

    def start_robot(self, *, disabled: bool = False) -> None:
        words = ["disabled=1"] if disabled else []
        self.robot = RobotProcess("intera", f"master_uri={self.master.uri}", "control_port=0",
                                  "task=Reach", *words, env=self.env)

    def rig_options(self) -> dict[str, str]:
        return {"master_uri": self.master.uri, **self.given}

    def source(self, camera: str) -> str:
        return f"ros1:/battery/{camera}/image_raw?fps=30&master_uri={self.master.uri}"

    def break_robot(self, what: str, value: Any = True) -> None:
        if what == "estop":
            self.robot.control(estop="press")
        else:
            self.robot.control(fault=what, value=value)

    def heal(self) -> None:
        for name in ("silent", "frozen", "frozen_values", "nan", "collision"):
            self.robot.control(fault=name, value=None)
        self.robot.control(estop="release")


class FrankaBench(Bench):
    """An FR3 behind franka_ros2 and CRISP, in a DDS domain of its own."""

    name = "franka"
    # Until then DDS keeps the dead one's publisher, and two of them the controller ignores.
    forgets_s = 12.0
    robot_name = "fr3"

    def _start(self) -> None:
        self.domain = free_domain()
        self.env["ROS_DOMAIN_ID"] = str(self.domain)
        self.pictures = Child("pictures.py", "ros2", str(self.domain), env=self.env)
        self._stack.callback(self.pictures.kill)
        self._stack.callback(lambda: self.robot.kill())
        self.start_robot()
        self.pictures.wait(timeout_s=START_S)

    def start_robot(self, *, disabled: bool = False) -> None:
        words = ["inactive=1"] if disabled else []
        self.robot = RobotProcess("franka", "robot=fr3", f"domain_id={self.domain}", *words,
                                  "control_port=0", "task=Reach", env=self.env)

    def rig_options(self) -> dict[str, str]:
        return {"domain_id": str(self.domain), **self.given}

    def source(self, camera: str) -> str:
        return f"ros2:/battery/{camera}/image_raw?fps=30&domain={self.domain}"

    def break_robot(self, what: str, value: Any = True) -> None:
        self.robot.control(fault=what)

    def heal(self) -> None:
        self.robot.control(fault="clear")


BENCHES: dict[str, type[Bench]] = {"sawyer": SawyerBench, "franka": FrankaBench}
