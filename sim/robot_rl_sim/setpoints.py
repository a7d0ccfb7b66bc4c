"""Set-points of an arm on the grid of physics steps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robot_rl.interfaces import Array, JointSetpoints


class SetpointStream:
    """Set-points as straight pieces on the grid of physics steps.

    A piece runs from ``start`` (n,) [rad] with ``velocity`` (n,) [rad/s] for ``ticks_per_row``
    physics steps. After the last piece the arm holds.
    """

    def __init__(self, n_joints: int, step_s: float) -> None:
        self._n_joints = n_joints
        self._step_s = step_s
        self._still = np.zeros(n_joints)
        self.hold(np.zeros(n_joints))

    def hold(self, position_rad: Array) -> None:
        """Stay at ``position_rad`` (n,) [rad]."""
        self._final = np.array(position_rad, dtype=np.float64)
        self._starts = np.empty((0, self._n_joints))
        self._velocities = np.empty((0, self._n_joints))
        self._row = 0
        self._ticks_per_row = 1
        self.elapsed = 0

    def load(self, setpoints: JointSetpoints) -> None:
        """Replace what is left of the stream, from the present reference on."""
        rows = setpoints.position_rad
        ticks = setpoints.period_s / self._step_s
        ticks_per_row = round(ticks)
        if ticks_per_row < 1 or abs(ticks - ticks_per_row) > 1e-6:
            rows, ticks_per_row = self._resampled(rows, ticks), 1
        starts = np.empty_like(rows)
        starts[0] = self.reference()
        starts[1:] = rows[:-1]
        self._velocities = (rows - starts) / (ticks_per_row * self._step_s)
        self._starts = starts
        self._final = rows[-1].copy()
        self._row = 0
        self._ticks_per_row = ticks_per_row
        self.elapsed = 0

    def _resampled(self, rows: Array, ticks_per_row: float) -> Array:
        """The straight lines through ``rows`` at every physics step."""
        knots = np.concatenate([self.reference()[None], rows])
        last = math.ceil(len(rows) * ticks_per_row - 1e-9)
        places = np.minimum(np.arange(1, last + 1) / ticks_per_row, float(len(rows)))
        index = np.minimum(places.astype(np.int64), len(rows) - 1)
        part = (places - index)[:, None]
        return knots[index] * (1.0 - part) + knots[index + 1] * part

    @property
    def remaining(self) -> int:
        """Physics steps left in the present piece; 0 while holding."""
        return self._ticks_per_row - self.elapsed if self._row < len(self._starts) else 0

    @property
    def start(self) -> Array:
        """Where the present piece began (n,) [rad]."""
        return self._starts[self._row] if self._row < len(self._starts) else self._final

    @property
    def velocity(self) -> Array:
        """Velocity (n,) [rad/s] of the present piece."""
        return self._velocities[self._row] if self._row < len(self._starts) else self._still

    def reference(self) -> Array:
        """Where the arm should be now (n,) [rad]."""
        if self.elapsed == 0:
            return self.start
        return self.start + self.velocity * (self.elapsed * self._step_s)

    def consume(self, ticks: int) -> None:
        """Go on by ``ticks``, at most :attr:`remaining` unless holding."""
        if self._row >= len(self._starts):
            return
        self.elapsed += ticks
        if self.elapsed >= self._ticks_per_row:
            self._row += 1
            self.elapsed = 0

    def save(self) -> dict[str, NDArray[Any]]:
        """The stream as arrays."""
        return {
            "stream_starts_rad": self._starts[self._row :].copy(),
            "stream_velocities_rad_s": self._velocities[self._row :].copy(),
            "stream_final_rad": self._final.copy(),
            "stream_ticks": np.array([self._ticks_per_row, self.elapsed], dtype=np.int64),
        }

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Undo to what :meth:`save` returned."""
        self._starts = np.array(state["stream_starts_rad"], dtype=np.float64)
        self._velocities = np.array(state["stream_velocities_rad_s"], dtype=np.float64)
        self._final = np.array(state["stream_final_rad"], dtype=np.float64)
        self._row = 0
        self._ticks_per_row, self.elapsed = (int(value) for value in state["stream_ticks"])
