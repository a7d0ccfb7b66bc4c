"""An arm, a gripper and a clock without physics that keep the contract to the letter and record.

Every row that is sent goes to ``on_rows`` (and so to a checker) at the moment of sending. The arm
can be late, lag behind, be noisy, blocked, blind, at fault, and wake up while it is commanded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robot_rl.errors import LateCommandError, SafetyError, StaleDataError
from robot_rl.interfaces import ArmStatus, JointSetpoints, JointState
from robot_rl.specs import RobotSpec

Array = NDArray[np.float64]
# At rest a row that is kept up for longer changes no difference any more.
_REST_ROWS = 4


class ManualClock:
    """Time that passes when it is told to; arms hear of it."""

    def __init__(self) -> None:
        self.time_s = 0.0
        self.arm: RecordingArm | None = None

    def now_s(self) -> float:
        return self.time_s

    def sleep_until(self, time_s: float) -> None:
        if time_s > self.time_s:
            self.time_s = time_s
            if self.arm is not None:
                self.arm.run()

    def pass_s(self, duration_s: float) -> None:
        self.sleep_until(self.time_s + duration_s)


class RecordingArm:
    """:class:`robot_rl.interfaces.Arm` that sends one row each period of a :class:`ManualClock`.

    ``on_rows`` gets (k, n) what was sent since, a row that was kept up again for each period (at
    most four times). ``follow`` is the share of a tracking error that is left after a period: 0
    for an arm that is where it was told to be.
    """

    def __init__(
        self,
        spec: RobotSpec,
        clock: ManualClock,
        *,
        period_s: float = 0.01,
        lead_rows: int = 1,
        follow: float = 0.0,
        on_rows: Callable[[Array], None] | None = None,
        seed: int = 0,
    ) -> None:
        self.spec, self.period_s, self.lead_rows = spec, period_s, lead_rows
        self.follow = follow
        self.noise_rad = self.noise_rad_s = 0.0
        self.stuck = False
        self.fault: str | None = None
        self.age_s = 0.0
        self.lie: JointState | None = None
        self.stall_share = 0.0
        self.rows_in_command = 0
        self.commands: list[int] = []
        self.keep_commands: list[JointSetpoints] | None = None
        self.recovered = 0
        self._on_rows = on_rows
        self._rng = np.random.default_rng(seed)
        self._clock = clock
        self._queue: Array = np.zeros((0, len(spec.joints)))
        self._next = 0
        self._sent = 0
        self._resting = _REST_ROWS
        self._due_s = clock.now_s() + period_s
        self._reference = np.array(spec.home_rad, np.float64)
        self._position, self._velocity = self._reference.copy(), np.zeros(len(spec.joints))
        clock.arm = self

    # -- what a test does to it --------------------------------------------------------------

    def put(self, posture_rad: Array) -> None:
        """Be at rest at (n,) [rad], with nothing to send."""
        self._queue, self._next, self._resting = self._queue[:0], 0, _REST_ROWS
        self._reference = np.array(posture_rad, np.float64)
        self._position = self._reference.copy()
        self._velocity = np.zeros_like(self._position)

    def fail(self, fault: str) -> None:
        """Drop out of the mode: what was queued is gone, the robot's own brakes stop it."""
        self.fault = fault
        self._queue, self._next, self._resting = self._queue[:0], 0, _REST_ROWS
        self._reference = self._position.copy()
        self._velocity = np.zeros_like(self._position)

    def snapshot(self) -> dict[str, Any]:
        """Everything that :meth:`restore` needs to be at this moment again."""
        return {"queue": self._queue[self._next :].copy(), "sent": self._sent,
                "resting": self._resting, "due": self._due_s, "time": self._clock.time_s,
                "reference": self._reference.copy(), "position": self._position.copy(),
                "velocity": self._velocity.copy()}

    def restore(self, state: dict[str, Any]) -> None:
        """Be at the moment of :meth:`snapshot` again, the clock too."""
        self._queue, self._next, self._sent = state["queue"].copy(), 0, state["sent"]
        self._resting, self._due_s = state["resting"], state["due"]
        self._clock.time_s = state["time"]
        self._reference = state["reference"].copy()
        self._position, self._velocity = state["position"].copy(), state["velocity"].copy()

    @property
    def reference_rad(self) -> Array:
        """The row sent last (n,) [rad]."""
        return self._reference.copy()

    @property
    def position_rad(self) -> Array:
        """Where the arm really is (n,) [rad]."""
        return self._position.copy()

    @property
    def queued(self) -> Array:
        """Rows (k, n) that are still to be sent."""
        return self._queue[self._next :].copy()

    def run(self) -> None:
        """Send what is due by the clock's time, one row each period."""
        now = self._clock.now_s()
        if self.stall_share and self._rng.random() < self.stall_share:
            self._due_s += self.period_s * self._rng.exponential(2.0)
        count = int((now - self._due_s + 1e-9) / self.period_s) + 1 if now + 1e-9 >= self._due_s \
            else 0
        if count > 0:
            self._due_s += count * self.period_s
            self._send(count)

    def _send(self, count: int) -> None:
        moving = min(count, len(self._queue) - self._next)
        rows = self._queue[self._next : self._next + moving]
        if moving:
            self._next += moving
            self._sent += moving
            self._resting = 0
            self._reference = rows[-1].copy()
        rest = count - moving
        seen = min(rest, _REST_ROWS - self._resting)
        if seen > 0:
            self._resting += seen
            rows = np.concatenate([rows, np.repeat(self._reference[None], seen, axis=0)])
        if len(rows):
            if self._on_rows is not None:
                self._on_rows(rows)
            self._track(rows)
        if rest > seen:
            self._settle(rest - max(seen, 0))

    def _track(self, rows: Array) -> None:
        if self.stuck:
            self._velocity = np.zeros_like(self._position)
            return
        if self.follow == 0.0:
            before = rows[-2] if len(rows) > 1 else self._position
            self._velocity = (rows[-1] - before) / self.period_s
            self._position = rows[-1].copy()
            return
        for row in rows:
            there = row + self.follow * (self._position - row)
            self._velocity = (there - self._position) / self.period_s
            self._position = there

    def _settle(self, periods: int) -> None:
        if self.stuck:
            return
        left = self.follow ** min(periods, 1000)
        self._position = self._reference + left * (self._position - self._reference)
        self._velocity = self._velocity * left

    # -- the contract ------------------------------------------------------------------------

    def state(self, max_age_s: float) -> JointState:
        if self.age_s > max_age_s:
            raise StaleDataError(f"the state is {self.age_s} s old, older than {max_age_s} s")
        if self.lie is not None:
            return self.lie
        position, velocity = self._position.copy(), self._velocity.copy()
        if self.noise_rad:
            position += self._rng.normal(0.0, self.noise_rad, position.shape)
        if self.noise_rad_s:
            velocity += self._rng.normal(0.0, self.noise_rad_s, velocity.shape)
        return JointState(position, velocity, self._clock.now_s() - self.age_s)

    def sent(self) -> int:
        return self._sent

    def command(self, setpoints: JointSetpoints) -> JointSetpoints:
        if self.rows_in_command:
            # The sender's thread goes on while a command is on its way to it.
            self._clock.time_s += self.rows_in_command * self.period_s
            self.run()
        if self.fault is not None:
            raise SafetyError(f"the arm takes no commands: {self.fault}")
        rows = np.array(setpoints.position_rad, np.float64)
        if rows.ndim != 2 or rows.shape[1] != len(self.spec.joints) or not len(rows):
            raise AssertionError(f"a command of shape {rows.shape}")
        if not np.isfinite(rows).all():
            raise AssertionError("a command that is not finite")
        if abs(setpoints.period_s - self.period_s) > 1e-12:
            raise AssertionError(f"rows every {setpoints.period_s} s for {self.period_s} s")
        if setpoints.at < self._sent:
            raise LateCommandError(f"row {setpoints.at} is gone, {self._sent} were sent")
        keep = setpoints.at - self._sent
        left = self._queue[self._next :]
        if keep > len(left):
            # Waiting for a row is staying where the last one was.
            last = left[-1] if len(left) else self._reference
            left = np.concatenate([left, np.repeat(last[None], keep - len(left), axis=0)])
        self._queue, self._next = np.concatenate([left[:keep], rows]), 0
        self.commands.append(len(rows))
        if self.keep_commands is not None:
            self.keep_commands.append(setpoints)
        return setpoints

    def status(self) -> ArmStatus:
        return ArmStatus(self.fault is None, self.fault)

    def recover(self) -> None:
        if self.fault is not None and self.fault.startswith("stays"):
            raise SafetyError(f"the arm stays in error: {self.fault}")
        self.fault = None
        self.recovered += 1


class RecordingGripper:
    """:class:`robot_rl.interfaces.Gripper` that is where it was told to be."""

    def __init__(self) -> None:
        self.sent: list[float] = []

    def opening(self, max_age_s: float) -> float:
        return self.sent[-1] if self.sent else 0.0

    def command(self, opening: float) -> float:
        self.sent.append(opening)
        return opening
