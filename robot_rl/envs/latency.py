"""A delay between commands and the arm, for sim-to-real randomisation."""

from __future__ import annotations

from typing import Any

import numpy as np

from robot_rl.interfaces import Arm, Array, JointSetpoints, JointState


class DelayedArm:
    """An arm whose set-points arrive late by a whole number of set-point periods.

    The delay is rounded to the spacing of the set-points. It belongs to an episode:
    :meth:`set_latency` empties the line.
    """

    def __init__(self, arm: Arm) -> None:
        self.spec = arm.spec
        self._arm = arm
        self._latency_s = 0.0
        self._line: Array | None = None

    def set_latency(self, latency_s: float) -> None:
        """Delay [s] of the commands from now on; forgets what was on its way."""
        if not latency_s >= 0.0:
            raise ValueError(f"latency is {latency_s} s, should be >= 0")
        self._latency_s = latency_s
        self._line = None

    def forget(self) -> None:
        """Empty the line: the next command starts from the measured posture. For a stop."""
        self._line = None

    def state(self, max_age_s: float) -> JointState:
        return self._arm.state(max_age_s)

    def command(self, setpoints: JointSetpoints) -> JointSetpoints:
        rows = int(round(self._latency_s / setpoints.period_s))
        if rows == 0:
            return self._arm.command(setpoints)
        if self._line is None:
            here = self._arm.state(np.inf).position_rad
            self._line = np.repeat(here[None], rows, axis=0)
        queue = np.concatenate([self._line, setpoints.position_rad])
        count = len(setpoints.position_rad)
        self._line = queue[count:]
        return self._arm.command(JointSetpoints(queue[:count], setpoints.period_s))

    def get_state(self) -> dict[str, Any]:
        """The delay [s] and the set-points still on their way."""
        return {"latency_s": self._latency_s, "line": self._line}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue from what :meth:`get_state` returned."""
        self._latency_s, self._line = state["latency_s"], state["line"]
