"""Limits of an arm checked with arithmetic of its own.

Nothing here comes from the safety filter: limits are the makers' tables typed out, kinematics are
quaternions along the chain of the arm's description, velocities and so on are differences of the
rows that were really sent. A difference of order d over d periods is a mean of the d-th derivative
of whatever smooth motion the rows are samples of, so rows of a motion within limits pass.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from robot_rl.specs import RobotSpec

Array = NDArray[np.float64]
# Rounding of differences: relative to a limit.
_ROUNDING = 1e-6
_CHUNK_ROWS = 4096
# An envelope falls to zero; what creeps there is no violation.
_LEAST_RAD_S = 1e-3


@dataclass(frozen=True)
class Maker:
    """A maker's limits, one number per joint: [rad], [rad/s], [rad/s^2], [rad/s^3], and the tool's
    speed [m/s] where the maker limits it."""

    lower: Sequence[float]
    upper: Sequence[float]
    velocity: Sequence[float]
    acceleration: Sequence[float]
    jerk: Sequence[float] | None = None
    envelope_offset: Sequence[float] | None = None
    envelope_deceleration: Sequence[float] | None = None
    tool_speed: float = math.inf


MAKERS = {
    "panda": Maker(
        lower=(-2.8973, -1.7628, -2.8973, -3.0718, -2.8973, -0.0175, -2.8973),
        upper=(2.8973, 1.7628, 2.8973, -0.0698, 2.8973, 3.7525, 2.8973),
        velocity=(2.175, 2.175, 2.175, 2.175, 2.61, 2.61, 2.61),
        acceleration=(15.0, 7.5, 10.0, 12.5, 15.0, 20.0, 20.0),
        jerk=(7500.0, 3750.0, 5000.0, 6250.0, 7500.0, 10000.0, 10000.0),
        tool_speed=1.7,
    ),
    "fr3": Maker(
        lower=(-2.7437, -1.7837, -2.9007, -3.0421, -2.8065, 0.5445, -3.0159),
        upper=(2.7437, 1.7837, 2.9007, -0.1518, 2.8065, 4.5169, 3.0159),
        velocity=(2.62, 2.62, 2.62, 2.62, 5.26, 4.18, 5.26),
        acceleration=(10.0,) * 7,
        jerk=(5000.0,) * 7,
        envelope_offset=(0.6599, 0.2517, 0.2, 0.3533, 0.5757, 0.4878, 0.4628),
        envelope_deceleration=(6.0, 2.585, 3.5, 4.0, 17.0, 5.5, 17.0),
        tool_speed=3.0,
    ),
    "sawyer": Maker(
        lower=(-3.0503, -3.8095, -3.0426, -3.0439, -2.9761, -2.9761, -4.7124),
        upper=(3.0503, 2.2736, 3.0426, 3.0439, 2.9761, 2.9761, 4.7124),
        velocity=(1.74, 1.328, 1.957, 1.957, 3.485, 3.485, 4.545),
        acceleration=(3.5, 2.5, 5.0, 5.0, 5.0, 5.0, 5.0),
        # The maker publishes none; ours lets an acceleration build up in 25 ms.
        jerk=(140.0, 100.0, 200.0, 200.0, 200.0, 200.0, 200.0),
    ),
}


def _times(first: Array, second: Array) -> Array:
    """Product of quaternions wxyz (..., 4)."""
    a, b, c, d = np.moveaxis(first, -1, 0)
    e, f, g, h = np.moveaxis(second, -1, 0)
    return np.stack([a * e - b * f - c * g - d * h, a * f + b * e + c * h - d * g,
                     a * g - b * h + c * e + d * f, a * h + b * g - c * f + d * e], -1)


def _turned(quat: Array, vector: Array) -> Array:
    """Vectors (..., 3) turned by quaternions wxyz (..., 4)."""
    axis, real = quat[..., 1:], quat[..., :1]
    twice = 2.0 * np.cross(axis, vector)
    return np.asarray(vector + real * twice + np.cross(axis, twice))


def _about(axis: int, angle: Array | float) -> Array:
    """Quaternions wxyz (..., 4) of turns about axis 0, 1 or 2 by angles (...)."""
    half = 0.5 * np.asarray(angle, np.float64)
    quat = np.zeros((*half.shape, 4))
    quat[..., 0], quat[..., 1 + axis] = np.cos(half), np.sin(half)
    return quat


def _fixed_axes(rpy: Sequence[float]) -> Array:
    return _times(_about(2, rpy[2]), _times(_about(1, rpy[1]), _about(0, rpy[0])))


def tool_points(spec: RobotSpec, rows_rad: Array) -> tuple[Array, Array]:
    """Where the tool centre point is (k, 3) [m] in the workspace frame at joint angles (k, n), and
    the tool's z axis (k, 3)."""
    place = np.zeros((len(rows_rad), 3)) - np.asarray(spec.workspace_origin_m)
    turn = np.zeros((len(rows_rad), 4))
    turn[:, 0] = 1.0
    for joint, angles in zip(spec.joints, rows_rad.T, strict=True):
        place = place + _turned(turn, np.asarray(joint.origin_xyz_m))
        turn = _times(_times(turn, _fixed_axes(joint.origin_rpy_rad)), _about(2, angles))
    gripper = spec.gripper
    for xyz, rpy in ((spec.flange_xyz_m, spec.flange_rpy_rad),
                     (gripper.mount_xyz_m, gripper.mount_rpy_rad),
                     (gripper.tcp_xyz_m, (0.0, 0.0, 0.0))):
        place = place + _turned(turn, np.asarray(xyz))
        turn = _times(turn, _fixed_axes(rpy))
    return place, _turned(turn, np.array([0.0, 0.0, 1.0]))


@dataclass
class Limits:
    """What rows are held to: a maker's limits, a box [m] and a speed [m/s] of the tool.

    ``share`` tightens the joint velocities; ``box_slack_m`` is how far out of the box a tool may
    be that never was further in.
    """

    maker: Maker
    box_min_m: Sequence[float]
    box_max_m: Sequence[float]
    tool_speed_m_s: float = math.inf
    share: float = 1.0
    box_slack_m: float = 1e-6

    def envelope(self, rows_rad: Array, direction: Array) -> Array:
        """Velocity limits (k, n) [rad/s] at angles (k, n) for motion with these signs."""
        maker = self.maker
        most = np.broadcast_to(np.asarray(maker.velocity), rows_rad.shape)
        if maker.envelope_offset is None:
            return self.share * most
        assert maker.envelope_deceleration is not None
        left = np.where(direction > 0.0, np.asarray(maker.upper) - rows_rad,
                        rows_rad - np.asarray(maker.lower))
        root = np.sqrt(np.maximum(2.0 * np.asarray(maker.envelope_deceleration) * left, 0.0))
        return self.share * np.minimum(most, np.maximum(root - maker.envelope_offset, 0.0))


@dataclass
class Findings:
    """What was checked: rows, violations by kind, the first few in words, and how near to each
    limit the rows came (1.0 is at the limit)."""

    rows: int = 0
    violations: dict[str, int] = field(default_factory=dict)
    examples: list[str] = field(default_factory=list)
    nearest: dict[str, float] = field(default_factory=dict)

    @property
    def total(self) -> int:
        return sum(self.violations.values())

    def note(self, kind: str, ratios: Array, first_row: int) -> None:
        """Ratios to a limit (k, ...); above 1 is a violation."""
        if not ratios.size:
            return
        flat = ratios.reshape(len(ratios), -1)
        worst = np.where(np.isfinite(flat), flat, np.inf).max(axis=1)
        self.nearest[kind] = max(self.nearest.get(kind, 0.0), float(worst.max()))
        bad = np.flatnonzero(worst > 1.0 + _ROUNDING)
        if len(bad):
            self.violations[kind] = self.violations.get(kind, 0) + len(bad)
            if len(self.examples) < 20:
                where = int(bad[0])
                column = int(np.argmax(flat[where]))
                self.examples.append(f"{kind}: row {first_row + where}, joint or axis {column}, "
                                     f"{flat[where, column]:.6f} of the limit")

    def add(self, other: Findings) -> None:
        self.rows += other.rows
        for kind, count in other.violations.items():
            self.violations[kind] = self.violations.get(kind, 0) + count
        for kind, ratio in other.nearest.items():
            self.nearest[kind] = max(self.nearest.get(kind, 0.0), ratio)
        self.examples = (self.examples + other.examples)[:20]


class StreamChecker:
    """Checks a stream of rows as they come; :meth:`restart` where it begins anew at rest."""

    def __init__(self, spec: RobotSpec, period_s: float, limits: Limits) -> None:
        self.found = Findings()
        self._spec, self._period_s, self._limits = spec, period_s, limits
        self._waiting: list[Array] = []
        self._count = 0
        self._last = np.zeros((0, len(spec.joints)))
        self._box_slack, self._joint_slack = limits.box_slack_m, 0.0

    def restart(self, posture_rad: Array) -> None:
        """The arm rests at (n,) from here on; what came before is over."""
        self.flush()
        here = np.array(posture_rad, np.float64)[None]
        # What a hand pushed out of a limit may be out as far again, on its way back in.
        self._box_slack = max(self._limits.box_slack_m, float(self._out_of_box(here)[0].max())
                              + self._limits.box_slack_m)
        self._joint_slack = max(0.0, float(self._out_of_range(here).max()))
        self._last = np.repeat(here, 3, axis=0)

    def feed(self, rows_rad: Array) -> None:
        """Rows (k, n) in the order of sending; a row that is kept up counts again."""
        self._waiting.append(rows_rad)
        self._count += len(rows_rad)
        if self._count >= _CHUNK_ROWS:
            self.flush()

    def snapshot(self) -> tuple[Array, float, float]:
        """What :meth:`back` needs where an arm is put back to this moment."""
        self.flush()
        return self._last.copy(), self._box_slack, self._joint_slack

    def back(self, state: tuple[Array, float, float]) -> None:
        """Go on from :meth:`snapshot`; what was found since stays found."""
        self.flush()
        self._last, self._box_slack, self._joint_slack = state[0].copy(), *state[1:]

    def flush(self) -> Findings:
        """Check what was fed so far."""
        if self._count:
            fresh = np.concatenate(self._waiting)
            self._check(fresh)
            self._waiting, self._count = [], 0
        return self.found

    def _out_of_box(self, rows: Array) -> tuple[Array, Array]:
        points, _ = tool_points(self._spec, rows)
        return np.maximum(np.asarray(self._limits.box_min_m) - points,
                          points - np.asarray(self._limits.box_max_m)).max(axis=1), points

    def _out_of_range(self, rows: Array) -> Array:
        maker = self._limits.maker
        return np.asarray(np.maximum(np.asarray(maker.lower) - rows,
                                     rows - np.asarray(maker.upper)))

    def _check(self, fresh: Array) -> None:
        found, maker, period = self.found, self._limits.maker, self._period_s
        first = found.rows
        found.rows += len(fresh)
        if not np.isfinite(fresh).all():
            found.note("not finite", np.where(np.isfinite(fresh), 0.0, np.inf), first)
            return
        rows = np.concatenate([self._last, fresh])
        old = len(self._last)
        out = self._out_of_range(fresh)
        found.note("position", 1.0 + np.maximum(out - self._joint_slack, -1.0), first)
        if (out <= 0.0).all():
            self._joint_slack = 0.0
        # Differences in which a fresh row takes part; the rows before are known already.
        start = max(old - 1, 0)
        velocity = np.diff(rows, axis=0)[start:] / period
        limit = np.minimum(self._limits.envelope(rows[start:-1], velocity),
                           self._limits.envelope(rows[start + 1 :], velocity))
        found.note("velocity", np.abs(velocity) / np.maximum(limit, _LEAST_RAD_S), first)
        second = np.diff(rows, 2, axis=0)[max(old - 2, 0) :] / period**2
        found.note("acceleration", np.abs(second) / np.asarray(maker.acceleration), first)
        if maker.jerk is not None:
            third = np.diff(rows, 3, axis=0)[max(old - 3, 0) :] / period**3
            found.note("jerk", np.abs(third) / np.asarray(maker.jerk), first)
        excess, points = self._out_of_box(rows[start:])
        speed = np.sqrt((np.diff(points, axis=0) ** 2).sum(axis=1)) / period
        most = min(self._limits.tool_speed_m_s, maker.tool_speed)
        found.note("tool speed", speed[:, None] / most, first)
        excess = excess[1:] if old else excess
        # In units of the slack: at 1 the tool is as far out as it may be.
        found.note("box", np.maximum(excess / self._box_slack, 0.0)[:, None], first)
        if excess[-1] <= 0.0:
            self._box_slack = self._limits.box_slack_m
        self._last = rows[-3:]


def check_rows(spec: RobotSpec, period_s: float, limits: Limits, rows_rad: Array) -> Findings:
    """Check one segment: rows (k, n) after a rest at the first of them and before one at the last.
    """
    checker = StreamChecker(spec, period_s, limits)
    checker.restart(rows_rad[0])
    checker.feed(np.concatenate([rows_rad[1:], np.repeat(rows_rad[-1:], 3, axis=0)]))
    return checker.flush()
