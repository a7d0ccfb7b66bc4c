"""How Sawyer's motor controller takes joint commands, as far as a driver can tell.

It follows the commands of one mode at a time; without a command for the time-out it leaves the
mode, brakes, and holds where it came to rest. Position mode moves at a share of the joints'
velocities; trajectory mode goes on from the last command with its velocity and acceleration.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np

from robot_rl.interfaces import Array
from robot_rl.specs import RobotSpec

POSITION, VELOCITY, TORQUE, TRAJECTORY = 1, 2, 3, 4
DEFAULT_TIMEOUT_S = 0.2
DEFAULT_SPEED_RATIO = 0.3
_FIELDS = {
    POSITION: ("position",), VELOCITY: ("velocity",),
    TRAJECTORY: ("position", "velocity", "acceleration"),
}


@dataclass(slots=True)
class Command:
    """A joint command: the arrays that its mode needs (n,), and when it came [s]."""

    mode: int
    position: Array
    velocity: Array
    acceleration: Array
    time_s: float


class InteraController:
    """Turns joint commands into a reference (n,) [rad] for every physics step."""

    def __init__(self, spec: RobotSpec) -> None:
        self.names = spec.joint_names
        self.timeout_s = DEFAULT_TIMEOUT_S
        self.speed_ratio = DEFAULT_SPEED_RATIO
        self.enabled = True
        self.counts = {"taken": 0, "refused": 0, "timeouts": 0}
        self.refusals: dict[str, int] = {}
        self._low, self._high = spec.limits("lower_rad"), spec.limits("upper_rad")
        self._speed = spec.limits("velocity_rad_s")
        self._braking = spec.limits("acceleration_rad_s2")
        self._lock = threading.Lock()
        self._q = np.array(spec.home_rad)
        self._v = np.zeros(len(self.names))
        self._command: Command | None = None

    @property
    def mode(self) -> int:
        """The mode that is followed, 0 while it holds."""
        command = self._command
        return 0 if command is None else command.mode

    def take(
        self, mode: int, names: list[str], values: dict[str, list[float]], now_s: float
    ) -> str | None:
        """A command arrived; returns why it was refused, None where it was taken."""
        reason = self._refusal(mode, names, values)
        with self._lock:
            if reason is not None:
                self.counts["refused"] += 1
                self.refusals[reason] = self.refusals.get(reason, 0) + 1
                return reason
            order = [names.index(name) for name in self.names]
            position, velocity, acceleration = (
                np.array(values[field], dtype=np.float64)[order] if field in _FIELDS[mode]
                else np.zeros(len(self.names))
                for field in ("position", "velocity", "acceleration")
            )
            self._command = Command(mode, position, velocity, acceleration, now_s)
            self.counts["taken"] += 1
        return None

    def _refusal(self, mode: int, names: list[str], values: dict[str, list[float]]) -> str | None:
        if not self.enabled:
            return "the robot is not enabled"
        if mode == TORQUE:
            return "torque mode is not simulated"
        if mode not in _FIELDS:
            return f"mode {mode} is unknown"
        if not set(self.names) <= set(names):
            return "a joint is missing"
        for field in _FIELDS[mode]:
            if len(values[field]) != len(names):
                return f"{field} has another length than names"
            if not np.isfinite(values[field]).all():
                return f"{field} is not finite"
        return None

    def halt(self, position_rad: Array) -> None:
        """Stop there at once, as the brakes do, and forget the command."""
        with self._lock:
            self._command = None
            self._q = np.array(position_rad)
            self._v = np.zeros_like(self._q)

    def reference(self, now_s: float, step_s: float) -> Array:
        """The reference (n,) [rad] one physics step on."""
        with self._lock:
            command = self._command
            if command is not None and now_s - command.time_s > self.timeout_s:
                self._command = command = None
                self.counts["timeouts"] += 1
            wanted = self._brake(step_s) if command is None else self._follow(
                command, now_s, step_s
            )
            self._v = np.clip(wanted, -self._speed, self._speed)
            before = self._q
            self._q = np.clip(before + self._v * step_s, self._low, self._high)
            return self._q.copy()

    def _brake(self, step_s: float) -> Array:
        most = self._braking * step_s
        return self._v - np.clip(self._v, -most, most)

    def _follow(self, command: Command, now_s: float, step_s: float) -> Array:
        """The velocity (n,) [rad/s] of the next step."""
        if command.mode == TRAJECTORY:
            ahead_s = now_s + step_s - command.time_s
            there = (command.position + command.velocity * ahead_s
                     + 0.5 * command.acceleration * ahead_s**2)
            return np.asarray((there - self._q) / step_s)
        most = self._braking * step_s
        if command.mode == VELOCITY:
            return np.asarray(self._v + np.clip(command.velocity - self._v, -most, most))
        gap = command.position - self._q
        speed = np.minimum(
            self.speed_ratio * self._speed, np.sqrt(2.0 * self._braking * np.abs(gap))
        )
        wanted = np.sign(gap) * np.minimum(speed, np.abs(gap) / step_s)
        return np.asarray(self._v + np.clip(wanted - self._v, -most, most))
