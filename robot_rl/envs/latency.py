"""A delay between commands and the arm, for sim-to-real randomisation."""

from __future__ import annotations

from typing import Any

import numpy as np

from robot_rl.errors import LateCommandError
from robot_rl.interfaces import Arm, ArmStatus, Array, JointSetpoints, JointState


class DelayedArm:
    """An arm whose set-points arrive late by a whole number of their periods, stops as well.

    What has been put into the line counts as sent. The delay belongs to an episode:
    :meth:`set_latency` empties the line.
    """

    def __init__(self, arm: Arm) -> None:
        self.spec, self.period_s, self.lead_rows = arm.spec, arm.period_s, arm.lead_rows
        self._arm = arm
        self._late = 0
        # Row r of the commander is row r + shift of the arm, up to row `end` of the commander.
        self._shift = self._end = 0
        self._rest: Array | None = None

    def set_latency(self, latency_s: float) -> None:
        """Delay [s] of the commands from now on, rounded to the period of the set-points; forgets
        what was on its way. The arm is at rest."""
        if not latency_s >= 0.0:
            raise ValueError(f"latency is {latency_s} s, should be >= 0")
        self._empty()
        self._late = round(latency_s / self.period_s)

    def _empty(self) -> None:
        self._end, self._rest = self.sent(), None

    def state(self, max_age_s: float) -> JointState:
        return self._arm.state(max_age_s)

    def sent(self) -> int:
        if self._rest is None:
            return self._end
        return min(self._arm.sent() - self._shift + self._late, self._end)

    def command(self, setpoints: JointSetpoints) -> JointSetpoints:
        at, now = setpoints.at, self._arm.sent()
        if at < self.sent():
            raise LateCommandError(f"row {at} is too late, {self.sent()} were sent")
        if self._rest is None:
            # Nothing is on its way: the arm stays where it is until the first row comes through.
            self._shift = now - at
            self._rest = self._arm.state(np.inf).position_rad
        begin, pause = at + self._shift, 0
        if at == self._end:
            # After a pause the line is filled with rest.
            pause = max(0, now + self._late - begin)
            self._shift += pause
        rows = np.concatenate([np.repeat(self._rest[None], pause, axis=0), setpoints.position_rad])
        self._arm.command(JointSetpoints(rows, setpoints.period_s, at=begin,
                                         stop=setpoints.stop))
        self._rest = setpoints.position_rad[-1]
        self._end = at + len(setpoints.position_rad)
        return setpoints

    def status(self) -> ArmStatus:
        return self._arm.status()

    def recover(self) -> None:
        self._arm.recover()
        self._empty()

    def get_state(self) -> dict[str, Any]:
        """The delay and what is known of the rows still on their way."""
        return {"late": self._late, "shift": self._shift, "end": self._end, "rest": self._rest}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue from what :meth:`get_state` returned."""
        self._late, self._shift = state["late"], state["shift"]
        self._end, self._rest = state["end"], state["rest"]
