"""Whether rows of set-points keep to every limit, looked at as an arm receives them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from robot_rl.interfaces import Array
from robot_rl.kinematics import Kinematics
from robot_rl.safety.config import SafetyConfig
from robot_rl.safety.dynamics import InverseDynamics
from robot_rl.safety.envelope import VelocityEnvelope

HISTORY = 3
"""So many rows that were sent before decide whether the next keep to a limit of jerk."""
_TURN_RAD_S = 2.5
"""How fast the tool may turn where the maker does not say."""


@dataclass(slots=True)
class Plan:
    """Rows that the arm was given: (k, 3, n) angles, velocities and accelerations and the tool's
    poses (k, 4, 4) in the arm's base frame, from row number ``first`` on. The first
    :data:`HISTORY` were sent before the rest could be changed, the last is at rest."""

    first: int
    rows: Array
    poses: Array

    @property
    def end(self) -> int:
        """The number of the first row after the last."""
        return self.first + len(self.rows)

    def before(self, row: int) -> slice:
        """Where the :data:`HISTORY` rows before a row number stand."""
        index = row - self.first
        return slice(index - HISTORY, index)

    def state(self, row: int) -> Array:
        """Angles, velocities and accelerations (3, n) just before a row number."""
        return np.asarray(self.rows[row - self.first - 1])

    def tool(self, row: int) -> Array:
        """The tool (3,) [m] in the arm's base frame just before a row number."""
        return np.asarray(self.poses[row - self.first - 1, :3, 3])


class Checker:
    """The limits of one arm, as the maker and a configuration set them.

    ``velocity_fraction``, ``acceleration``, ``jerk`` and ``torque`` (n,) are in rad, s and N m,
    ``q_low`` and ``q_high`` (n,) [rad] how far the joints may go.
    """

    def __init__(self, kinematics: Kinematics, config: SafetyConfig, period_s: float) -> None:
        spec = kinematics.spec
        self.kinematics = kinematics
        self.envelope = VelocityEnvelope(spec)
        self.velocity_fraction = config.velocity_fraction
        self.acceleration = config.acceleration_fraction * spec.limits("acceleration_rad_s2")
        self.jerk = np.minimum(
            config.jerk_fraction * spec.limits("jerk_rad_s3"), self.acceleration / config.ramp_s
        )
        self.torque = config.torque_fraction * spec.limits("torque_nm")
        margin = np.maximum(config.joint_margin_rad, self.envelope.standstill_rad)
        self.q_low = kinematics.lower_rad + margin
        self.q_high = kinematics.upper_rad - margin
        origin = np.asarray(spec.workspace_origin_m)
        self._low, self._high = config.box_min_m + origin, config.box_max_m + origin
        self._upright = math.cos(config.max_tilt_rad)
        self._yaw = config.max_yaw_rad
        maker = spec.cartesian
        self.speed = config.max_speed_m_s
        acceleration, turn = math.inf, _TURN_RAD_S
        if maker is not None:
            self.speed = min(self.speed, maker.velocity_m_s)
            acceleration, turn = maker.acceleration_m_s2, maker.angular_velocity_rad_s
        self._period_s = period_s
        # What the squares of differences between rows may be.
        self._most_way = (self.speed * period_s) ** 2
        self._most_change = (acceleration * period_s**2) ** 2
        # An angle moves the ends of the three axes by chords: of twice its half's sine, two of
        # them as far as they lie across the axis of the turn.
        self._most_turn = 8.0 * math.sin(0.5 * turn * period_s) ** 2
        self._dynamics = InverseDynamics(spec)

    def broken(
        self, before: Array, poses: Array, rows: Array, target_rad: Array, leaning: bool = False
    ) -> tuple[str | None, Array]:
        """The limit that rows (k, 3, n) would break, if any, and the tool's poses (k + 1, 4, 4).

        ``before`` (3, 3, n) and ``poses`` (3, 4, 4) are the rows sent before them. ``target_rad``
        (n,) is where the rows lead: it counts as one more row, but for what depends on time, and
        its pose is the last. Out of its place, the arm may come back but go no further.
        ``leaning`` lifts the limits of the tool's orientation.
        """
        places = np.concatenate([rows[:, 0], target_rad[None]])
        frames, new = self.kinematics.frames(places)
        reason = (
            self._joints(before[:, 0], places)
            or self._tool(poses, new)
            or (None if leaning else self._orientation(poses[-1], new))
            or self._effort(frames[:, :-1], rows)
        )
        return reason, new

    def _joints(self, before: Array, places: Array) -> str | None:
        start = before[-1]
        low, high = np.minimum(self.q_low, start), np.maximum(self.q_high, start)
        if not _all((places >= low) & (places <= high)):
            return "joint position"
        path = np.concatenate([before, places[:-1]])
        velocity = (path[1:] - path[:-1]) / self._period_s
        acceleration = (velocity[1:] - velocity[:-1]) / self._period_s
        jerk = (acceleration[1:] - acceleration[:-1]) / self._period_s
        fresh = velocity[HISTORY - 1 :]
        limit = self.velocity_fraction * self.envelope.limit(places[:-1], fresh)
        if not _within(fresh, limit):
            return "joint velocity"
        if not _within(acceleration[HISTORY - 2 :], self.acceleration):
            return "joint acceleration"
        if not _within(jerk, self.jerk):
            return "joint jerk"
        return None

    def _tool(self, poses: Array, new: Array) -> str | None:
        tool, start = new[:, :3, 3], poses[-1, :3, 3]
        low, high = np.minimum(self._low, start), np.maximum(self._high, start)
        if not _all((tool >= low) & (tool <= high)):
            return "tool box"
        path = np.concatenate([poses[1:], new[:-1]])
        step = path[1:] - path[:-1]
        way = step[:, :3, 3]
        fresh = way[1:]
        if not (fresh * fresh).sum(axis=1).max() <= self._most_way:
            return "tool speed"
        change = way[1:] - way[:-1]
        if not (change * change).sum(axis=1).max() <= self._most_change:
            return "tool acceleration"
        turn = step[1:, :3, :3].reshape(-1, 9)
        if not (turn * turn).sum(axis=1).max() <= self._most_turn:
            return "tool turn"
        return None

    def _orientation(self, start: Array, new: Array) -> str | None:
        if not _all(-new[:, 2, 2] >= min(self._upright, -start[2, 2])):
            return "tool tilt"
        yaw = np.abs(np.arctan2(new[:, 1, 0], new[:, 0, 0]))
        if not _all(yaw <= max(self._yaw, abs(math.atan2(start[1, 0], start[0, 0])))):
            return "tool yaw"
        return None

    def _effort(self, frames: Array, rows: Array) -> str | None:
        torque = self._dynamics.torque(frames, rows[:, 1], rows[:, 2])
        return None if _within(torque, self.torque) else "joint torque"


def _within(values: Array, most: Array) -> bool:
    """Whether all values are numbers from ``-most`` to ``most``: a comparison with nan is false."""
    return _all(np.abs(values) <= most)


def _all(true: NDArray[np.bool_]) -> bool:
    # Several times as fast as all().
    return np.count_nonzero(true) == true.size
