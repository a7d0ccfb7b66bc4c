"""Set-points of an arm on the grid of physics steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robot_rl.errors import InvalidInputError, LateCommandError
from robot_rl.interfaces import Array, JointSetpoints


class SetpointStream:
    """Rows of set-points as straight pieces, one for every ``ticks_per_row`` physics steps.

    A piece runs from the row before to its own: from ``start`` (n,) [rad] with ``velocity`` (n,)
    [rad/s]. A row counts as sent when its piece begins. After the last row the arm holds.
    """

    def __init__(self, n_joints: int, step_s: float, ticks_per_row: int) -> None:
        self._n_joints = n_joints
        self._ticks_per_row = ticks_per_row
        self._step_s = step_s
        self._still = np.zeros(n_joints)
        self._done = 0
        self.hold(np.zeros(n_joints))

    def hold(self, position_rad: Array) -> None:
        """Stay at ``position_rad`` (n,) [rad]; what was still to be sent is forgotten."""
        self._load(np.array(position_rad, dtype=np.float64)[None])

    def _load(self, knots: Array) -> None:
        """Go on from the first of ``knots`` (k + 1, n) [rad] along the others."""
        self._knots = knots
        self._velocities = (knots[1:] - knots[:-1]) / (self._ticks_per_row * self._step_s)
        self._row = 0
        self.elapsed = 0

    @property
    def sent(self) -> int:
        """How many rows were sent so far."""
        return self._done + (self.elapsed > 0)

    def load(self, setpoints: JointSetpoints) -> None:
        """Take rows over from row ``setpoints.at`` on.

        Raises:
            LateCommandError: that row was sent already.
            InvalidInputError: there would be a gap between the rows and those before them.
        """
        at, end = setpoints.at, self._done + len(self._velocities) - self._row
        if at < self.sent:
            raise LateCommandError(f"row {at} is too late, {self.sent} were sent")
        if at > end:
            raise InvalidInputError(f"row {at} leaves a gap after row {end}")
        before = self._knots[self._row : self._row + at - self._done + 1]
        elapsed = self.elapsed
        self._load(np.concatenate([before, setpoints.position_rad]))
        self.elapsed = elapsed

    @property
    def remaining(self) -> int:
        """Physics steps left in the present piece; 0 while holding."""
        return self._ticks_per_row - self.elapsed if self._row < len(self._velocities) else 0

    @property
    def start(self) -> Array:
        """Where the present piece began (n,) [rad]."""
        start: Array = self._knots[self._row]
        return start

    @property
    def velocity(self) -> Array:
        """Velocity (n,) [rad/s] of the present piece."""
        velocity: Array = self._still
        if self._row < len(self._velocities):
            velocity = self._velocities[self._row]
        return velocity

    def consume(self, ticks: int) -> None:
        """Go on by ``ticks``, at most :attr:`remaining` unless holding."""
        if self._row >= len(self._velocities):
            return
        self.elapsed += ticks
        if self.elapsed >= self._ticks_per_row:
            self._row += 1
            self._done += 1
            self.elapsed = 0

    def save(self) -> dict[str, NDArray[Any]]:
        """The stream as arrays."""
        return {
            "stream_knots_rad": self._knots[self._row :].copy(),
            "stream_velocities_rad_s": self._velocities[self._row :].copy(),
            "stream_ticks": np.array([self._done, self.elapsed], dtype=np.int64),
        }

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Undo to what :meth:`save` returned."""
        self._knots = np.array(state["stream_knots_rad"], dtype=np.float64)
        self._velocities = np.array(state["stream_velocities_rad_s"], dtype=np.float64)
        self._row = 0
        self._done, self.elapsed = (int(value) for value in state["stream_ticks"])
