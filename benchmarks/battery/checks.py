"""What a robot wrote down, judged: limits, rest, silence, where a motion began, when it braked."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from robot_rl.specs import RobotSpec

Array = NDArray[np.float64]

PERIOD_S = 0.01
# Rows are compared with the maker's limits; float64 and differences cost this much.
_SLACK = 1.001
# What a measured joint may do beyond a limit on a row, for its controller overshoots.
_MEASURED_SLACK = 1.1
REST_RAD_S = 0.02
BEGIN_RAD = 0.02
MOVED_RAD = 0.002


@dataclass
class Findings:
    """What was wrong, in words, and figures."""

    wrong: list[str] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)

    def expect(self, good: bool, text: str) -> None:
        if not good:
            self.wrong.append(text)


class Story:
    """One log of a robot of ``spec``: rows (t, q, v, a, count or stamp) and measurements (t, q, v,
    reference, mode); see :mod:`.robot`."""

    def __init__(self, log: dict[str, Array], spec: RobotSpec) -> None:
        n = self.n = len(spec.joints)
        self.spec = spec
        self.rows = log.get("command", np.zeros((0, 2 + 3 * n)))
        self.measured = log.get("measured", np.zeros((0, 2 + 3 * n)))
        self.others: dict[str, Array] = {
            name: log[name][:, 0] for name in ("reset", "enable", "stop") if name in log}

    def rows_in(self, start_s: float, end_s: float = np.inf) -> Array:
        times = self.rows[:, 0]
        return self.rows[(times >= start_s) & (times < end_s)]

    def lost_in(self, start_s: float, end_s: float) -> int:
        """Rows that were sent and did not come: the sender's count has a gap or, where rows carry
        its stamps, two that are further apart in time lie too far apart in angle."""
        rows, n = self.rows_in(start_s, end_s), self.n
        if len(rows) < 2:
            return 0
        gap = np.diff(rows[:, -1])
        if rows[0, -1] < 1e8:
            return int((gap[gap > 1.0] - 1.0).sum())
        change = np.abs(np.diff(rows[:, 1 : 1 + n], axis=0)).max(axis=1)
        speed = np.abs(rows[:, 1 + n : 1 + 2 * n]).max(axis=1)
        fast = np.maximum(speed[:-1], speed[1:]) * PERIOD_S
        return int(((gap > 1.5 * PERIOD_S) & (change > 1.5 * fast + 1e-4)).sum())

    def late_s(self, start_s: float, end_s: float) -> float:
        """How much later than most the latest row came, by the sender's stamps; 0 without."""
        rows = self.rows_in(start_s, end_s)
        if not len(rows) or rows[0, -1] < 1e8:
            return 0.0
        took = rows[:, 0] - rows[:, -1]
        return float(took.max() - np.median(took))

    def moving_in(self, start_s: float, end_s: float = np.inf) -> Array:
        """Rows that are not the one before again."""
        rows = self.rows_in(start_s, end_s)
        before = self.rows[self.rows[:, 0] < start_s][-1:]
        known = np.concatenate([before, rows])
        if not len(rows):
            return rows
        changed = (np.diff(known[:, 1 : 1 + self.n], axis=0) != 0.0).any(axis=1)
        return rows[changed] if len(before) else rows[np.concatenate([[True], changed])]

    def check_limits(
        self, found: Findings, start_s: float = -np.inf, end_s: float = np.inf
    ) -> None:
        """The rows of one stretch without a release in it, by their differences."""
        spec, n = self.spec, self.n
        rows = self.rows_in(start_s, end_s)
        position = rows[:, 1 : 1 + n]
        if not len(position):
            return
        found.expect(bool(np.isfinite(position).all()), "a row is not finite")
        low, high = spec.limits("lower_rad"), spec.limits("upper_rad")
        found.expect(bool(((position >= low) & (position <= high)).all()),
                     "a row is outside the position limits")
        for order, name in ((1, "velocity_rad_s"), (2, "acceleration_rad_s2"), (3, "jerk_rad_s3")):
            limit = spec.limits(name)
            if len(position) <= order or not np.isfinite(limit).any():
                continue
            change = np.abs(np.diff(position, order, axis=0)) / PERIOD_S**order
            ratio = change / limit
            worst = float(np.nanmax(ratio))
            key = f"most_{name.split('_')[0]}"
            found.figures[key] = max(found.figures.get(key, 0.0), round(worst, 4))
            if worst > _SLACK:
                row, joint = np.unravel_index(int(np.nanargmax(ratio)), ratio.shape)
                found.wrong.append(
                    f"{name} of {spec.joint_names[joint]} is {change[row, joint]:.3f} by the rows, "
                    f"{worst:.2f} times its limit, at {rows[row, 0]:.3f}")
        self._check_measured(found, start_s, end_s)

    def _check_measured(self, found: Findings, start_s: float, end_s: float) -> None:
        part = self.measured[(self.measured[:, 0] >= start_s) & (self.measured[:, 0] < end_s)]
        speed = np.abs(part[:, 1 + self.n : 1 + 2 * self.n])
        if len(speed):
            ratio = float((speed / self.spec.limits("velocity_rad_s")).max())
            found.figures["most_measured_velocity"] = round(max(
                ratio, found.figures.get("most_measured_velocity", 0.0)), 4)
            found.expect(ratio <= _MEASURED_SLACK,
                         f"a joint was measured at {ratio:.2f} times its velocity limit")

    def speed_at(self, time_s: float) -> float:
        """The fastest joint's measured speed [rad/s] last before a time."""
        part = self.measured[self.measured[:, 0] <= time_s]
        return float(np.abs(part[-1, 1 + self.n : 1 + 2 * self.n]).max()) if len(part) else np.nan

    def rest_s(self, start_s: float) -> float:
        """When the arm was at rest for good after ``start_s``; nan where it is not at the end."""
        part = self.measured[self.measured[:, 0] >= start_s]
        fast = np.abs(part[:, 1 + self.n : 1 + 2 * self.n]).max(axis=1) > REST_RAD_S
        if not len(part) or fast[-1]:
            return np.nan
        last = np.flatnonzero(fast)
        return float(part[last[-1] + 1, 0]) if len(last) else start_s

    def received_s(self, position_rad: list[float] | None, start_s: float) -> float | None:
        """When a row of just these angles came first after ``start_s``."""
        if position_rad is None:
            return None
        rows = self.rows_in(start_s)
        same = (rows[:, 1 : 1 + self.n] == np.array(position_rad)).all(axis=1)
        return float(rows[np.argmax(same), 0]) if same.any() else None

    def left_mode_s(self, start_s: float) -> float | None:
        """When the robot itself left the mode of its commands first after ``start_s``."""
        part = self.measured[self.measured[:, 0] >= start_s]
        gone = part[:, -1] == 0.0
        return float(part[np.argmax(gone), 0]) if gone.any() else None

    def slowed_s(self, start_s: float) -> float | None:
        """When the arm was measured at half its speed of ``start_s``, or less, first after that."""
        part = self.measured[self.measured[:, 0] >= start_s]
        slow = max(0.5 * self.speed_at(start_s), REST_RAD_S)
        slowed = np.abs(part[:, 1 + self.n : 1 + 2 * self.n]).max(axis=1) <= slow
        return float(part[np.argmax(slowed), 0]) if slowed.any() else None

    def longest_gap_s(self, start_s: float, end_s: float) -> float:
        """The longest time between two of the robot's own measurements, 10 ms if it keeps up."""
        times = self.measured[:, 0]
        part = times[(times >= start_s) & (times <= end_s)]
        return float(np.diff(part).max()) if len(part) > 1 else 0.0

    def until(self, end_s: float) -> Story:
        """The story up to a time."""
        log = {"command": self.rows[self.rows[:, 0] < end_s],
               "measured": self.measured[self.measured[:, 0] < end_s]}
        return Story(log, self.spec)

    def check_begin(self, found: Findings, start_s: float) -> None:
        """The first row after a release is where the arm was, and the arm moves again."""
        rows = self.rows_in(start_s)
        if not len(rows):
            found.wrong.append("nothing was sent after the release")
            return
        before = self.measured[self.measured[:, 0] <= rows[0, 0]]
        if not len(before):
            found.wrong.append("nothing was measured before the first row after the release")
            return
        gap = float(np.abs(rows[0, 1 : 1 + self.n] - before[-1, 1 : 1 + self.n]).max())
        found.figures["begin_gap_rad"] = round(gap, 5)
        found.expect(gap <= BEGIN_RAD,
                     f"the first row after the release is {gap:.3f} rad from where the arm was")
        part = self.measured[self.measured[:, 0] >= rows[0, 0]][:, 1 : 1 + self.n]
        moved = float(np.ptp(part, axis=0).max()) if len(part) else 0.0
        found.expect(moved > MOVED_RAD, f"the arm moved by {moved:.4f} rad after the release")
