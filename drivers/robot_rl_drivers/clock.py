"""The clock of a rig on hardware."""

from __future__ import annotations

import math
import time

from robot_rl.errors import InvalidInputError


class MonotonicClock:
    """Seconds since some moment, :class:`robot_rl.interfaces.Clock`; setting the machine's clock
    does not move it."""

    def now_s(self) -> float:
        return time.monotonic()

    def sleep_until(self, time_s: float) -> None:
        """Return at ``time_s`` [s, this clock]; at once if that has passed."""
        if not math.isfinite(time_s):
            raise InvalidInputError(f"time_s is {time_s}, should be finite")
        while (left_s := time_s - time.monotonic()) > 0.0:
            time.sleep(left_s)
