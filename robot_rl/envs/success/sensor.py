"""Success by a sensor: an electrical contact that closes, a drawer's encoder."""

from __future__ import annotations

import math

from robot_rl.envs.success.base import Detector
from robot_rl.errors import InvalidInputError, SafetyError
from robot_rl.interfaces import Array, Sensor


class SensorSuccess(Detector):
    """Success while a sensor is beyond a threshold and has been for a while.

    Args:
        sensor: what is read.
        threshold: in the sensor's unit.
        above: success is at or above the threshold, else at or below it.
        hysteresis: once beyond, the reading counts as beyond until it is back by more than this,
            in the sensor's unit: one that trembles at the threshold does not start anew.
        hold_s: how long [s] every reading must have been beyond the threshold, by their stamps.
        max_age_s: oldest reading [s] that says anything.
    """

    def __init__(
        self,
        sensor: Sensor,
        threshold: float,
        *,
        above: bool = True,
        hysteresis: float = 0.0,
        hold_s: float = 0.0,
        max_age_s: float = 0.5,
    ) -> None:
        if not math.isfinite(threshold):
            raise InvalidInputError(f"threshold is {threshold}, should be finite")
        for name, value in (("hysteresis", hysteresis), ("hold_s", hold_s)):
            if not 0.0 <= value < math.inf:
                raise InvalidInputError(f"{name} is {value}, should be >= 0 and finite")
        if not max_age_s > 0.0:
            raise InvalidInputError(f"max_age_s is {max_age_s}, should be positive")
        self.sensor = sensor
        self._threshold = threshold
        self._sign = 1.0 if above else -1.0
        self._hysteresis = hysteresis
        self._hold_s = hold_s
        self._max_age_s = max_age_s
        self._since_s: float | None = None

    def begin(self, goal: Array) -> None:
        self._since_s = None

    def success(self) -> bool:
        """Whether the reading is, and was for ``hold_s``, beyond the threshold.

        Raises:
            StaleDataError: the reading is too old.
            SafetyError: it is not a number.
        """
        reading = self.sensor.read(self._max_age_s)
        if not math.isfinite(reading.value):
            raise SafetyError(
                f"the sensor {self.sensor.name!r} reports {reading.value}, should be finite"
            )
        beyond = self._sign * (reading.value - self._threshold)
        slack = self._hysteresis if self._since_s is not None else 0.0
        if beyond < -slack:
            self._since_s = None
            return False
        if self._since_s is None:
            self._since_s = reading.stamp_s
        # Sums of control periods are not exact.
        return reading.stamp_s - self._since_s >= self._hold_s - 1e-9
