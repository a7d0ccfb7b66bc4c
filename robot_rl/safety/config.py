"""What a safety filter is told, what it answers and what it counts."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass, field, fields
from numbers import Real

import numpy as np

from robot_rl.errors import InvalidInputError
from robot_rl.interfaces import Array


@dataclass(frozen=True)
class SafetyConfig:
    """Limits on top of the maker's: they can be tightened here, never widened.

    The box is in the workspace frame [m]. ``max_speed_m_s`` bounds the tool's speed and what a
    command may ask for, ``max_yaw_rate_rad_s`` the turn that it may ask for. ``max_tilt_rad`` is
    how far the tool may lean from pointing down, ``max_yaw_rad`` how far it may turn from its
    default heading (pi: all round). The fractions are shares of the maker's limits of each joint;
    ``ramp_s`` is the least time in which an acceleration builds up, which bounds the jerk further.
    ``leash_m`` plus the length of one command bounds how far the set-point may run ahead of the
    measured tool, so that an arm that is blocked does not store up a jump; what the arm is still to
    be sent does not count, up to ``leash_m`` again.

    The arm is held when its state is older than ``max_state_age_s``, when no command came for
    ``silence_s`` after the last one was done, or when the world pushes the tool by more than
    ``max_force_n`` [N] (None: 40 N on hardware, no limit in simulation).
    """

    box_min_m: tuple[float, float, float] = (-0.25, -0.3, 0.012)
    box_max_m: tuple[float, float, float] = (0.25, 0.3, 0.35)
    max_speed_m_s: float = 0.45
    max_yaw_rate_rad_s: float = 1.0
    max_tilt_rad: float = 0.1
    max_yaw_rad: float = math.pi
    velocity_fraction: float = 0.9
    acceleration_fraction: float = 0.9
    jerk_fraction: float = 0.9
    torque_fraction: float = 0.9
    ramp_s: float = 0.02
    joint_margin_rad: float = 0.02
    leash_m: float = 0.04
    max_force_n: float | None = None
    max_state_age_s: float = 0.2
    silence_s: float = 0.05

    def __post_init__(self) -> None:
        # Plain numbers of our own: what was passed in must not change them later.
        for name in ("box_min_m", "box_max_m"):
            object.__setattr__(self, name, _corner(getattr(self, name)))
        for item in fields(self)[2:]:
            value = getattr(self, item.name)
            if item.name != "max_force_n" or value is not None:
                object.__setattr__(self, item.name, _plain(item.name, value))
        low, high = np.array(self.box_min_m), np.array(self.box_max_m)
        if np.any(high - low < LEAST_BOX_M - 1e-9):
            raise InvalidInputError(
                f"safety box: max {high} should be {LEAST_BOX_M} m or more above min {low}"
            )
        for name, most in (
            ("max_speed_m_s", 1.7),
            ("max_yaw_rate_rad_s", 2.5),
            ("max_tilt_rad", 1.0),
            ("max_yaw_rad", math.pi),
            ("velocity_fraction", 1.0),
            ("acceleration_fraction", 1.0),
            ("jerk_fraction", 1.0),
            ("torque_fraction", 1.0),
            ("ramp_s", 0.5),
            ("leash_m", 0.2),
            ("max_state_age_s", 1.0),
            ("silence_s", 0.08),
        ):
            value = getattr(self, name)
            if not 0.0 < value <= most:
                raise InvalidInputError(f"safety: {name} is {value}, should be in (0.0, {most}]")
        if not 0.0 <= self.joint_margin_rad <= 0.5:
            raise InvalidInputError(
                f"safety: joint_margin_rad is {self.joint_margin_rad}, should be in [0, 0.5]"
            )
        if self.max_force_n is not None and not 0.0 < self.max_force_n <= 200.0:
            raise InvalidInputError(
                f"safety: max_force_n is {self.max_force_n}, should be in (0.0, 200.0] or None"
            )


def _plain(name: str, value: object) -> float:
    with contextlib.suppress(OverflowError):
        if isinstance(value, Real) and not isinstance(value, bool):
            return float(value)
    raise InvalidInputError(f"safety: {name} is {value!r}, should be a number")


def _corner(value: object) -> tuple[float, ...]:
    if isinstance(value, (tuple, list, np.ndarray)):
        with contextlib.suppress(InvalidInputError, TypeError):
            corner = tuple(_plain("box", x) for x in value)
            if len(corner) == 3 and all(map(math.isfinite, corner)):
                return corner
    raise InvalidInputError("safety box: box_min_m and box_max_m are 3 finite numbers each")


LEAST_BOX_M = 0.01
"""A box is at least so wide [m]."""


@dataclass(slots=True)
class Executed:
    """What was really sent: by how much the tool's set-point moved (3,) [m] and turned [rad];
    whether that is less than what was asked for."""

    delta_m: Array
    yaw_rad: float
    limited: bool


@dataclass
class SafetyCounters:
    """What happened since the last reset."""

    commands: int = 0
    limited: int = 0
    refused: int = 0
    violations: int = 0
    reasons: dict[str, int] = field(default_factory=dict)

    def violate(self, reason: str) -> None:
        self.violations += 1
        self.reasons[reason] = self.reasons.get(reason, 0) + 1
