"""Grippers on Sawyer: the electric parallel gripper, or none."""

from __future__ import annotations

import math
import time
from typing import Any

from robot_rl.errors import InvalidInputError, SafetyError, StaleDataError
from robot_rl.interfaces import Clock
from robot_rl.ros.ros1 import Ros1Session
from robot_rl.specs import RobotSpec
from robot_rl_drivers.sawyer.io_device import IODevice

_ANSWER_S = 2.0
_CALIBRATE_S = 10.0
_SAME_M = 1e-5


class SawyerGripper:
    """The electric parallel gripper, an IO device ``right_gripper`` of ``end_effector``.

    Its opening is ``position_response_m`` over the stroke of both fingers. It has to be
    calibrated once after power-up, which moves the fingers: :meth:`recover` does that, on an
    operator's re-arm.
    """

    def __init__(self, session: Ros1Session, spec: RobotSpec, clock: Clock) -> None:
        self._clock = clock
        self._stroke_m = 2.0 * spec.gripper.finger_stroke_m
        self._device = IODevice(session, "end_effector", "right_gripper", clock)
        self._asked_m: float | None = None

    def opening(self, max_age_s: float) -> float:
        """How far it is open, 0 to 1.

        Raises:
            StaleDataError: the gripper told it longer ago than ``max_age_s``, or never, or what it
                told is no number.
        """
        signals, received_s = self._device.signals()
        if received_s is None or "position_response_m" not in signals:
            raise StaleDataError(f"the gripper has told no position on {self._device.topic}")
        age_s = self._clock.now_s() - received_s
        if not age_s <= max_age_s:
            raise StaleDataError(
                f"the gripper's state is {age_s:.3f} s old, older than the {max_age_s} s allowed"
            )
        position_m = signals["position_response_m"]
        wrong = _no_position(position_m)
        if wrong is not None:
            raise StaleDataError(wrong)
        return min(max(float(position_m) / self._stroke_m, 0.0), 1.0)

    def command(self, opening: float) -> float:
        """Open to this share of the stroke, clipped to [0, 1]; returns at once what was sent."""
        if not math.isfinite(opening):
            raise InvalidInputError(f"gripper opening is {opening}, should be in [0, 1]")
        share = min(max(float(opening), 0.0), 1.0)
        target_m = share * self._stroke_m
        if self._asked_m is None or abs(target_m - self._asked_m) > _SAME_M:
            self._asked_m = target_m
            self._device.set("position_m", "float", target_m)
        return share

    def watch(self) -> str | None:
        """What is wrong with it, None while all is well."""
        signals, received_s = self._device.signals()
        if received_s is None:
            return "nothing has come from the gripper; without one, say gripper=none"
        if self._clock.now_s() - received_s > _ANSWER_S:
            return f"the gripper's state is {self._clock.now_s() - received_s:.1f} s old"
        if signals.get("has_error"):
            return "the gripper reports an error"
        if not signals.get("is_calibrated", True):
            return "the gripper is not calibrated"
        wrong = _no_position(signals.get("position_response_m", 0.0))
        if wrong is not None:
            return wrong
        waiting_s = self._device.unanswered_s()
        if waiting_s > _ANSWER_S:
            return f"the gripper has not acknowledged a command for {waiting_s:.1f} s"
        return None

    def halt(self) -> None:
        """Forget what it was told and has not acknowledged; the fingers stay as they are."""
        self._device.forget()
        self._asked_m = None

    def recover(self) -> None:
        """Clear an error and calibrate where needed: the fingers move. Only for an operator.

        Raises:
            SafetyError: it does not come round.
        """
        self.halt()
        signals, _ = self._device.signals()
        if signals.get("has_error"):
            self._device.set("reboot", "bool", True)
            self._wait("has_error", False)
        if not self._device.signals()[0].get("is_calibrated", True):
            self._device.set("calibrate", "bool", True)
            self._wait("is_calibrated", True)

    def _wait(self, signal: str, value: bool) -> None:
        end_s = time.monotonic() + _CALIBRATE_S
        while bool(self._device.signals()[0].get(signal)) is not value:
            if time.monotonic() > end_s:
                raise SafetyError(f"the gripper's {signal} stays {not value}")
            time.sleep(0.02)


def _no_position(value: Any) -> str | None:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return None
    return f"the gripper reports {str(value)[:40]!r} as its position"


class NoGripper:
    """In place of a gripper where there is none: closed, whatever it is told."""

    def opening(self, max_age_s: float) -> float:
        return 0.0

    def command(self, opening: float) -> float:
        return 0.0

    def watch(self) -> str | None:
        return None

    def recover(self) -> None:
        return None
