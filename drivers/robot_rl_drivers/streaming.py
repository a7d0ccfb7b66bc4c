"""Set-points at a steady beat: one row, then the next, never two at once, none left out.

Shared by the drivers of arms that take joint set-points; it knows no robot and no ROS.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from robot_rl.errors import InvalidInputError, LateCommandError, SafetyError
from robot_rl.interfaces import Array, JointSetpoints

_LEAST_SPACING = 0.5
"""Two rows are never closer together than this share of a period."""
LONGEST_GAP_S = 1.0
LONGEST_END_S = 3.0
"""How long :meth:`SetpointStreamer.close` waits for the rows that are left."""


@dataclass(slots=True)
class Row:
    """A set-point: joint angles (n,) [rad], velocities [rad/s], accelerations [rad/s^2].

    ``number`` counts rows over the life of the streamer. ``repeated`` is a row that was sent
    before, at rest: the arm is to stay there. After ``until_s`` [s, the monotonic clock] it is too
    late for it: whoever sends it calls :meth:`check_in_time` as the last thing before.
    """

    number: int
    position_rad: Array
    velocity_rad_s: Array
    acceleration_rad_s2: Array
    repeated: bool = False
    until_s: float = math.inf

    def check_in_time(self) -> None:
        """Raises LateCommandError where the program was kept from sending it for too long: an old
        row must not reach an arm that has stopped meanwhile."""
        late_s = time.monotonic() - self.until_s
        if late_s > 0.0:
            raise LateCommandError(f"the command stream stopped for {late_s:.3f} s more than it may"
                                   ", with a row on its way out")


@dataclass(slots=True)
class StreamStats:
    """How steady the beat was: rows and repeats sent, the worst lateness [s], and the sum of the
    squared lateness of all [s^2]."""

    rows: int = 0
    repeats: int = 0
    max_late_s: float = 0.0
    square_late_s2: float = 0.0

    @property
    def rms_late_s(self) -> float:
        """Root mean square of how late rows were [s]."""
        count = self.rows + self.repeats
        return math.sqrt(self.square_late_s2 / count) if count else 0.0


class SetpointStreamer:
    """Sends rows of set-points through ``send``, one every ``period_s`` on the monotonic clock.

    A thread of its own does the sending, with real-time priority where that is allowed. A row
    that comes late moves those behind it back. Later than ``max_gap_s`` (3 periods by default; the
    process was stopped, the machine hung) the robot may have given up by itself: then what was
    left to send is dropped and :attr:`fault` says so until :meth:`clear`.

    After the last row the arm is to stay: with ``repeat`` that row is sent again every period,
    for arms that otherwise take the sender for dead. Repeats do not count in :meth:`sent`, and
    end quietly at a gap, a :meth:`stop` or :meth:`release`.

    Args:
        n_joints: joints in a row.
        period_s: spacing of the rows [s].
        send: puts one row on the wire; called on the streamer's thread, should not block. What it
            raises stops the stream.
        max_gap_s: how late a row may be [s], from ``period_s`` to :data:`LONGEST_GAP_S`.
        repeat: whether the last row is sent again and again.
    """

    def __init__(
        self,
        n_joints: int,
        period_s: float,
        send: Callable[[Row], None],
        *,
        max_gap_s: float | None = None,
        repeat: bool = False,
    ) -> None:
        if not 0.0 < period_s < 1.0:
            raise InvalidInputError(f"period_s is {period_s}, should be in (0, 1)")
        if max_gap_s is not None and not period_s <= max_gap_s <= LONGEST_GAP_S:
            raise InvalidInputError(
                f"max_gap_s is {max_gap_s:g}, should be in [{period_s:g}, {LONGEST_GAP_S:g}]"
            )
        self.period_s = period_s
        self.max_gap_s = 3.0 * period_s if max_gap_s is None else max_gap_s
        self.stats = StreamStats()
        self._n = n_joints
        self._send = send
        self._repeat = repeat
        self._wake = threading.Condition()
        self._sent = 0
        # Rows still to be sent: position, velocity, acceleration (k, 3, n); the first is `_sent`.
        self._queue = np.zeros((0, 3, n_joints))
        self._last: Array | None = None  # (3, n), the row sent last
        self._fault: str | None = None
        self._ending = self._closed = False
        self._thread = threading.Thread(target=self._run, name="setpoints", daemon=True)
        self._thread.start()

    @property
    def fault(self) -> str | None:
        """Why the stream stopped, None while it runs."""
        return self._fault

    @property
    def held_rad(self) -> Array | None:
        """Where the arm is told to stay (n,) [rad]: None while rows are left, or none is told."""
        with self._wake:
            if len(self._queue) or self._last is None:
                return None
            return self._last[0].copy()

    def sent(self) -> int:
        """Rows sent so far, over all commands; repeats do not count."""
        return self._sent

    def pending(self) -> int:
        """Rows still to be sent."""
        return len(self._queue)

    def command(self, setpoints: JointSetpoints) -> JointSetpoints:
        """Take rows over from row ``setpoints.at`` on; see :class:`robot_rl.interfaces.Arm`.

        Where ``at`` lies beyond what is queued, the arm stays at the row before it until then.
        Velocities and accelerations that are not given are those of straight lines.

        Raises:
            LateCommandError: that row was sent already; nothing changed.
            SafetyError: the stream is stopped; nothing changed.
            InvalidInputError: shape, spacing or values cannot be used; nothing changed.
        """
        rows = self._checked(setpoints)
        with self._wake:
            if self._ending:
                raise SafetyError("the arm's connection was closed")
            if self._fault is not None:
                raise SafetyError(f"the arm takes no commands: {self._fault}")
            if setpoints.at < self._sent:
                raise LateCommandError(
                    f"the set-points begin at row {setpoints.at}, and row {self._sent - 1} was "
                    "sent already"
                )
            kept = self._queue[: setpoints.at - self._sent]
            before = self._last if not len(kept) else kept[-1]
            start = rows[0] if before is None else before
            missing = setpoints.at - self._sent - len(kept)
            wait = np.zeros((missing, 3, self._n))
            wait[:, 0] = start[0]
            self._fill(rows, setpoints, start[0])
            self._queue = np.concatenate([kept, wait, rows])
            self._wake.notify_all()
        return JointSetpoints(
            rows[:, 0].copy(), self.period_s, rows[:, 1].copy(), rows[:, 2].copy(), setpoints.at
        )

    def stop(self, reason: str) -> None:
        """Drop every row at once, repeats too, and take none until :meth:`clear`. The first
        reason stays."""
        with self._wake:
            self._drop(reason)

    def release(self) -> None:
        """Send no more repeats; the next command begins anew."""
        with self._wake:
            if not len(self._queue):
                self._last = None

    def clear(self) -> None:
        """Take commands again: an operator's act. Nothing is sent before the next command."""
        with self._wake:
            self._drop(None)
            self._fault = None

    def close(self) -> None:
        """Send what is left, then stop, and end the thread.

        Every command ends at rest, so that is a gentler end than breaking off. Rows that
        :data:`LONGEST_END_S` is too short for are dropped.
        """
        with self._wake:
            self._ending = True
            try:
                self._wake.wait_for(lambda: not len(self._queue), timeout=LONGEST_END_S)
            finally:
                self._closed = True
                self._wake.notify_all()
        self._thread.join(timeout=2.0)

    # -- the beat -----------------------------------------------------------------------------

    def _run(self) -> None:
        _before_others()
        due_s = time.monotonic()
        while True:
            with self._wake:
                idle = self._nothing_to_send()
                while self._nothing_to_send() and not self._closed:
                    self._wake.wait()
                if self._closed:
                    return
            if idle:
                due_s = time.monotonic()
            wait_s = due_s - time.monotonic()
            if wait_s > 0.0:
                time.sleep(wait_s)
            now_s = time.monotonic()
            late_s = now_s - due_s
            self._beat(late_s, due_s + self.max_gap_s)
            due_s = max(due_s + self.period_s, now_s + _LEAST_SPACING * self.period_s)

    def _nothing_to_send(self) -> bool:
        return not len(self._queue) and not (self._repeat and self._last is not None)

    def _beat(self, late_s: float, until_s: float) -> None:
        with self._wake:
            if self._nothing_to_send() or self._closed:
                return
            if late_s > self.max_gap_s:
                self._gap(late_s)
                return
            repeated = not len(self._queue)
            values = self._last if repeated else self._queue[0]
            assert values is not None
            number = self._sent - 1 if repeated else self._sent
            row = Row(number, values[0].copy(), values[1].copy(), values[2].copy(), repeated,
                      until_s)
            try:
                self._send(row)
            except Exception as error:  # whatever the transport raises, the stream has ended
                self._drop(f"a set-point could not be sent ({type(error).__name__}: {error})")
                return
            stats = self.stats
            stats.max_late_s = max(stats.max_late_s, late_s)
            stats.square_late_s2 += late_s * late_s
            if repeated:
                stats.repeats += 1
                return
            stats.rows += 1
            self._sent += 1
            self._queue = self._queue[1:]
            self._last = values.copy()
            if not len(self._queue):
                self._last[1:] = 0.0
                self._wake.notify_all()

    def _gap(self, late_s: float) -> None:
        if not len(self._queue):
            self._last = None  # it held by itself meanwhile; the next command begins anew
            return
        self._drop(f"the command stream stopped for {late_s + self.period_s:.3f} s, longer than "
                   f"{self.max_gap_s + self.period_s:.3f} s: this machine did not let the program "
                   "run; end what else runs on it, or allow more (--rig max_gap_s=S)")

    def _drop(self, reason: str | None) -> None:
        self._queue = self._queue[:0]
        self._last = None
        if reason is not None and self._fault is None:
            self._fault = reason
        self._wake.notify_all()

    # -- checking -----------------------------------------------------------------------------

    def _checked(self, setpoints: JointSetpoints) -> Array:
        """The rows as (k, 3, n): position, velocity, acceleration."""
        position = np.asarray(setpoints.position_rad, dtype=np.float64)
        if position.ndim != 2 or position.shape[1] != self._n or not len(position):
            raise InvalidInputError(
                f"position_rad has shape {position.shape}, should be (k, {self._n}) with k >= 1"
            )
        if not math.isclose(setpoints.period_s, self.period_s, rel_tol=1e-6):
            raise InvalidInputError(
                f"period_s is {setpoints.period_s}, this arm takes a row every {self.period_s} s"
            )
        if setpoints.at < 0:
            raise InvalidInputError(f"at is {setpoints.at}, should be 0 or more")
        rows = np.zeros((len(position), 3, self._n))
        rows[:, 0] = position
        for column, name in ((1, "velocity_rad_s"), (2, "acceleration_rad_s2")):
            given = getattr(setpoints, name)
            if given is not None:
                given = np.asarray(given, dtype=np.float64)
                if given.shape != position.shape:
                    raise InvalidInputError(
                        f"{name} has shape {given.shape}, should be {position.shape}"
                    )
                rows[:, column] = given
        if not np.isfinite(rows).all():
            raise InvalidInputError("the set-points have a value that is not finite")
        return rows

    def _fill(self, rows: Array, setpoints: JointSetpoints, start_rad: Array) -> None:
        """Velocities of straight lines from ``start_rad`` on where none were given."""
        if setpoints.velocity_rad_s is None:
            before = np.concatenate([start_rad[None], rows[:-1, 0]])
            rows[:, 1] = (rows[:, 0] - before) / self.period_s
            rows[-1, 1] = 0.0


def _before_others() -> None:
    """Let this thread run before those of other programs, where the system lets it (root, or a
    user with an rtprio limit)."""
    if hasattr(os, "sched_setscheduler"):
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
