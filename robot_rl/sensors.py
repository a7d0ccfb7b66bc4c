"""Force sensors as they are asked for, whatever they come from: at the tool, without bias."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from robot_rl.errors import InvalidInputError, SafetyError, StaleDataError, unknown_name
from robot_rl.interfaces import Arm, Array, Clock, Wrench
from robot_rl.kinematics import Kinematics

Axes = Literal["base", "tool"]
_POLL_S = 0.002
_NAMES = ("x", "y", "z")


class WrenchSource(Protocol):
    """Readings of a force sensor as they come: a :class:`~robot_rl.interfaces.ForceSensor`
    without :meth:`zero`."""

    def wrench(self, max_age_s: float) -> Wrench: ...


@dataclass(frozen=True)
class BiasOptions:
    """How the bias is measured.

    ``samples`` readings that differ by more than ``max_spread_n`` [N] or ``max_spread_nm`` [N m]
    (largest less smallest, on any axis) are of an arm that moves or touches something; a mean
    above ``max_bias_n`` or ``max_bias_nm`` is of one that leans on something, or of a broken
    sensor; so is one that differs from the bias before by more than ``max_change_n`` or
    ``max_change_nm``, since the world may push by what is taken for bias on top of the limit. All
    readings must come within ``within_s``. Where they will not do, it is tried again, ``attempts``
    times in all: arms swing for a moment after they stop.
    """

    samples: int = 20
    max_spread_n: float = 3.0
    max_spread_nm: float = 0.6
    max_bias_n: float = 20.0
    max_bias_nm: float = 4.0
    max_change_n: float = 8.0
    max_change_nm: float = 1.6
    within_s: float = 2.0
    attempts: int = 3

    def __post_init__(self) -> None:
        if self.samples < 2:
            raise InvalidInputError(f"bias: samples is {self.samples}, should be at least 2")
        if self.attempts < 1:
            raise InvalidInputError(f"bias: attempts is {self.attempts}, should be at least 1")
        for name in ("max_spread_n", "max_spread_nm", "max_bias_n", "max_bias_nm", "max_change_n",
                     "max_change_nm", "within_s"):
            value = getattr(self, name)
            if not 0.0 < value < np.inf:
                raise InvalidInputError(f"bias: {name} is {value}, should be positive and finite")


class BiasedForceSensor:
    """:class:`~robot_rl.interfaces.ForceSensor` whose bias is taken off.

    The bias changes with temperature and with the arm's posture, so :meth:`zero` is called with
    the arm at rest and free before each rollout (seed 001, chapter 6). Until it was called once,
    readings are as the source gives them.
    """

    def __init__(
        self, source: WrenchSource, clock: Clock, options: BiasOptions | None = None
    ) -> None:
        self.options = options if options is not None else BiasOptions()
        self.bias: Array = np.zeros(6)
        self._zeroed = False
        self._source = source
        self._clock = clock

    def wrench(self, max_age_s: float) -> Wrench:
        """The reading less the bias.

        Raises:
            StaleDataError: it is older than ``max_age_s``.
            SafetyError: it is not finite.
        """
        values, stamp_s = self._read(max_age_s)
        values = values - self.bias
        return Wrench(values[:3], values[3:], stamp_s)

    def zero(self) -> None:
        """Measure the bias; where that fails the one before stays.

        Raises:
            StaleDataError: too few readings came in time.
            SafetyError: the readings show that the arm moves or touches something.
        """
        for left in reversed(range(self.options.attempts)):
            try:
                self.bias = self._measured()
                self._zeroed = True
                return
            except SafetyError:
                if not left:
                    raise

    def _measured(self) -> Array:
        """The mean (6,) of readings that may be the bias."""
        options = self.options
        found = np.array(self._samples())
        limits = np.repeat([options.max_spread_n, options.max_spread_nm], 3)
        spread = found.max(axis=0) - found.min(axis=0)
        if (spread > limits).any():
            raise SafetyError(
                f"force sensor not zeroed: over {options.samples} readings {_worst(spread, limits)}"
                "; the arm moves or touches something"
            )
        mean = found.mean(axis=0)
        checks = [("the mean", mean, options.max_bias_n, options.max_bias_nm)]
        if self._zeroed:
            checks.append(("the change", mean - self.bias, options.max_change_n,
                           options.max_change_nm))
        for what, values, most_n, most_nm in checks:
            limits = np.repeat([most_n, most_nm], 3)
            if (np.abs(values) > limits).any():
                raise SafetyError(
                    f"force sensor not zeroed: {_worst(np.abs(values), limits, what)}; the arm "
                    "leans on something, or the sensor is broken"
                )
        return np.asarray(mean)

    def close(self) -> None:
        """Release what the source holds."""
        close = getattr(self._source, "close", None)
        if close is not None:
            close()

    def _read(self, max_age_s: float) -> tuple[Array, float]:
        wrench = self._source.wrench(max_age_s)
        values = np.concatenate([wrench.force_n, wrench.torque_nm]).astype(np.float64)
        if values.shape != (6,) or not np.isfinite(values).all():
            raise SafetyError(f"the force sensor reports {values}, should be 6 finite numbers")
        return values, wrench.stamp_s

    def _samples(self) -> list[Array]:
        options = self.options
        begun = self._clock.now_s()
        found: list[Array] = []
        last = -np.inf
        poll_s = _POLL_S
        while len(found) < options.samples:
            now = self._clock.now_s()
            if now - begun > options.within_s:
                raise StaleDataError(
                    f"force sensor not zeroed: {len(found)} of {options.samples} readings came "
                    f"within {options.within_s:g} s"
                )
            values, stamp_s = self._read(options.within_s)
            # Only what was measured since zero() was called tells whether the arm is free now.
            if stamp_s > last and stamp_s >= begun:
                found.append(values)
                last = stamp_s
            else:
                self._clock.sleep_until(now + poll_s)
                # Simulated time goes on in steps, and one may be longer than this.
                poll_s = _POLL_S if self._clock.now_s() > now else 2.0 * poll_s
        return found


def _worst(values: Array, limits: Array, what: str = "") -> str:
    k = int(np.argmax(values / limits))
    kind, unit = ("force", "N") if k < 3 else ("torque", "N m")
    name = f"{kind} {_NAMES[k % 3]}"
    verb = f"{what} of {name} is" if what else f"{name} differs by"
    return f"{verb} {values[k]:.2f} {unit}, should be at most {limits[k]:g} {unit}"


class MountedWrench:
    """Readings of a sensor turned into what :class:`~robot_rl.interfaces.Wrench` promises.

    Args:
        source: the sensor's own readings.
        arm: for the tool's axes at the moment of the reading.
        axes: ``base`` if the sensor reports in axes of the arm's base, ``tool`` if in the tool's.
        position_m: where the sensor measures its torque (3,) [m], from the tool centre point, in
            axes of the tool.
        sign: 1 if it reports the force of the world on the tool, -1 if of the tool on the world.
    """

    def __init__(
        self,
        source: WrenchSource,
        arm: Arm,
        *,
        axes: str = "tool",
        position_m: Sequence[float] = (0.0, 0.0, 0.0),
        sign: float = 1.0,
    ) -> None:
        if axes not in ("base", "tool"):
            raise unknown_name("axes of the force sensor", axes, ("base", "tool"))
        if sign not in (-1.0, 1.0):
            raise InvalidInputError(f"sign of the force sensor is {sign}, should be 1 or -1")
        self._source = source
        self._arm = arm
        self._kinematics = Kinematics(arm.spec)
        self._turned = axes == "tool"
        self._position = np.array(position_m, dtype=np.float64)
        self._sign = sign
        if self._position.shape != (3,) or not np.isfinite(self._position).all():
            raise InvalidInputError(f"position_m is {position_m}, should be 3 finite numbers [m]")

    def wrench(self, max_age_s: float) -> Wrench:
        """The force on the tool in base axes, its torque about the tool centre point."""
        raw = self._source.wrench(max_age_s)
        turn = self._kinematics.forward(self._arm.state(max_age_s).position_rad)[:3, :3]
        own = turn if self._turned else np.eye(3)
        force = self._sign * (own @ raw.force_n)
        torque = self._sign * (own @ raw.torque_nm) + np.cross(turn @ self._position, force)
        return Wrench(force, torque, raw.stamp_s)

    def close(self) -> None:
        """Release what the source holds."""
        close = getattr(self._source, "close", None)
        if close is not None:
            close()
