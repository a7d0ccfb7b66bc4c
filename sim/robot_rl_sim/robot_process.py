"""What simulated robots share that run as processes of their own: physics in real time, a port on
which a test breaks them, and a record of what they were sent."""

from __future__ import annotations

import contextlib
import json
import signal
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from robot_rl.backends import make_rig
from robot_rl.envs.tasks import make_task
from robot_rl.errors import InvalidInputError
from robot_rl.interfaces import Array, BodyState, JointSetpoints, Placement, RigRequest
from robot_rl.specs import HingeJoint, SlideJoint, load_robot

LONGEST_LAG_S = 0.25
"""A robot whose physics lags behind the wall clock by more than this lets the rest go."""


class Physics:
    """An arm at home on a table with a task's scene, moved one physics step at a time."""

    def __init__(self, robot: str, options: Any) -> None:
        if not 0.0 < options.physics_step_s <= 0.01:
            raise InvalidInputError(
                f"physics_step_s is {options.physics_step_s}, should be in (0, 0.01]"
            )
        self.spec = load_robot(robot)
        self.step_s = options.physics_step_s
        task = make_task(options.task)
        self.scene = task.scene()
        rng = np.random.default_rng(options.seed)
        drawn = task.sample_start(rng, task.sample_goal(rng))
        self.rig = make_rig(
            options.backend,
            RigRequest(
                robot=self.spec, scene=self.scene, control_period_s=self.step_s,
                physics_step_s=self.step_s, setpoint_period_s=self.step_s,
                image_height=options.image_size, image_width=options.image_size,
            ),
        )
        if self.rig.scene is None:
            raise InvalidInputError(f"backend {options.backend!r} is no simulator")
        self._start = Placement(
            drawn.tool_m, 0.0, drawn.gripper_opening, drawn.bodies, drawn.joints
        )
        self.restart()
        known = [camera.name for camera in self.scene.cameras]
        for name in options.cameras:
            if name not in known:
                raise InvalidInputError(
                    f"camera {name!r} is not in the scene of {options.task}; valid: "
                    f"{', '.join(known)}"
                )

    def restart(self) -> None:
        """The arm at home, the task's things where they began."""
        assert self.rig.scene is not None
        self.rig.scene.place(np.array(self.spec.home_rad), self._start)

    def step(self, target_rad: Array) -> None:
        """One physics step, at whose end the joints' set-points are ``target_rad`` (n,)."""
        arm, clock = self.rig.arm, self.rig.clock
        arm.command(JointSetpoints(target_rad[None], self.step_s, at=arm.sent()))
        clock.sleep_until(clock.now_s() + self.step_s)

    def joints(self) -> tuple[Array, Array, Array]:
        """Angles [rad], velocities [rad/s] and torques [N m] (n,); torques are 0 where the engine
        tells none."""
        state = self.rig.arm.state(0.0)
        effort = np.zeros_like(state.position_rad) if state.effort_nm is None else state.effort_nm
        return state.position_rad, state.velocity_rad_s, effort

    def bodies(self) -> Iterator[tuple[str, BodyState]]:
        """The scene's bodies that move."""
        for body in self.scene.bodies:
            if body.motion != "fixed":
                yield body.name, self.rig.tracker.body(body.name, 0.0)

    def scene_joints(self) -> tuple[list[str], list[float], list[float]]:
        """Names, positions and velocities of the scene's joints."""
        names = [body.motion.name for body in self.scene.bodies
                 if isinstance(body.motion, (SlideJoint, HingeJoint))]
        values = [self.rig.tracker.joint(name, 0.0) for name in names]
        return names, [value[0] for value in values], [value[1] for value in values]

    def close(self) -> None:
        self.rig.close()


class Beat:
    """Ticks of ``period_s`` on the wall clock, and how much of it the robot kept up with."""

    def __init__(self, period_s: float) -> None:
        self.period_s = period_s
        self.ticks = 0
        self.lost_s = 0.0
        self.max_late_s = 0.0
        self._begun_s = self._due_s = time.monotonic()

    @property
    def due_s(self) -> float:
        """When the present tick was due [s, the monotonic clock]: the robot's own time."""
        return self._due_s

    def wait(self) -> None:
        """Return when the next tick is due."""
        self.ticks += 1
        self._due_s += self.period_s
        late_s = time.monotonic() - self._due_s
        self.max_late_s = max(self.max_late_s, late_s)
        if late_s > LONGEST_LAG_S:
            self.lost_s += late_s
            self._due_s += late_s
        elif late_s < 0.0:
            time.sleep(-late_s)

    def report(self) -> dict[str, float]:
        """Time [s], real-time factor, the worst lag [s]."""
        time_s = time.monotonic() - self._begun_s
        factor = self.ticks * self.period_s / time_s if time_s > 0.0 else 0.0
        return {
            "time_s": round(time_s, 3),
            "real_time_factor": round(factor, 4),
            "max_late_s": round(self.max_late_s, 4),
            "lost_s": round(self.lost_s, 3),
        }


class ControlPort:
    """Takes lines of JSON objects on a TCP port of the loopback and answers each with one.

    ``handle`` gets the object and returns the answer; what it raises is answered as
    ``{"error": ...}``. Only for tests: whoever reaches the port can break the robot.
    """

    def __init__(self, port: int, handle: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                with contextlib.suppress(ConnectionError):  # whoever asked is gone
                    self._answer_lines()

            def _answer_lines(self) -> None:
                for line in self.rfile:
                    try:
                        order = json.loads(line)
                        if not isinstance(order, dict):
                            raise InvalidInputError(f"{order!r} is no JSON object")
                        answer = handle(order)
                    except Exception as error:  # nothing that comes here ends the robot
                        answer = {"error": f"{type(error).__name__}: {error}"}
                    self.wfile.write(json.dumps(answer).encode() + b"\n")

        class Server(socketserver.ThreadingTCPServer):
            allow_reuse_address = True
            daemon_threads = True

        self._server = Server(("127.0.0.1", port), Handler)
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class Record:
    """What the robot was sent, row by row, for :meth:`save`."""

    def __init__(self) -> None:
        self._rows: dict[str, list[Any]] = {}
        self._lock = threading.Lock()

    def add(self, **values: Any) -> None:
        """One row; every row has the same names."""
        with self._lock:
            for name, value in values.items():
                self._rows.setdefault(name, []).append(value)

    def __len__(self) -> int:
        with self._lock:
            return len(next(iter(self._rows.values()), []))

    def save(self, path: str) -> None:
        """Write the rows as arrays of an npz file, whole or not at all."""
        with self._lock:
            arrays: dict[str, Any] = {n: np.array(values) for n, values in self._rows.items()}
        part = Path(f"{path}.part.npz")
        np.savez(part, **arrays)
        part.replace(path)


@contextlib.contextmanager
def stop_on_signals() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set."""
    stop = threading.Event()
    before = {
        number: signal.signal(number, lambda *_: stop.set())
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
