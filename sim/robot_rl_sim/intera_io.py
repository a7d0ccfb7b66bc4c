"""Sawyer's own state and its IO devices, as Intera's topics tell of them."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from typing import Any

from robot_rl.ros.ros1_messages import message_class

_PRESSED, _RELEASED = 1, 3
_BY_USER, _BY_UNKNOWN = 1, 2
_SPEED_M_S = 0.15
_KEPT = 100


class Assembly:
    """Enabled, stopped, in error: the robot's top-level state and what changes it."""

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled
        self.stopped = False
        self.error = False
        self.button = 0
        self.source = 0

    def enable(self, on: bool) -> None:
        """Refused while the robot is stopped or in error."""
        self.enabled = on and not self.stopped and not self.error

    def stop(self) -> None:
        """A stop that software asked for."""
        self.enabled, self.stopped, self.source = False, True, _BY_UNKNOWN

    def press(self) -> None:
        """The red button goes down."""
        self.enabled, self.stopped = False, True
        self.button, self.source = _PRESSED, _BY_USER

    def release(self) -> None:
        """The red button comes up; the robot stays stopped."""
        if self.button == _PRESSED:
            self.button = _RELEASED

    def fail(self) -> None:
        """A part of the robot reports an error."""
        self.enabled, self.error = False, True

    def reset(self) -> None:
        """Clears everything but a button that is down; leaves the robot disabled."""
        self.enabled = False
        self.error = False
        if self.button != _PRESSED:
            self.stopped, self.button, self.source = False, 0, 0

    def as_dict(self) -> dict[str, Any]:
        return {"enabled": self.enabled, "stopped": self.stopped, "error": self.error,
                "estop_button": self.button, "estop_source": self.source}

    def message(self, kind: Any) -> Any:
        """As a RobotAssemblyState."""
        return kind(homed=True, ready=self.enabled, lowVoltage=False, **self.as_dict())


class GripperDevice:
    """The electric parallel gripper as an IO device.

    Args:
        stroke_m: how far the fingers are apart when open [m].
        move: takes an opening in [0, 1].
    """

    def __init__(self, stroke_m: float, move: Callable[[float], Any]) -> None:
        self.error = False
        self.calibrated = True
        self._stroke_m = stroke_m
        self._move = move
        self._target_m = 0.0
        self._lock = threading.Lock()
        self._commands: list[Any] = []
        self._responses: list[str] = []

    def take(self, message: Any) -> None:
        """An IOComponentCommand arrived; one that was seen before only counts once."""
        with self._lock:
            if message.time in self._commands:
                return
            self._commands = [*self._commands, message.time][-_KEPT:]
            self._responses = [*self._responses, self._obey(message)][-_KEPT:]

    def _obey(self, message: Any) -> str:
        try:
            signals = json.loads(message.args)["signals"]
        except (ValueError, KeyError, TypeError):
            return "bad arguments"
        if message.op != "set":
            return f"unknown operation {message.op}"
        for name, signal in signals.items():
            value = signal["data"][0]
            if name == "position_m" and not self.error:
                self._target_m = min(max(float(value), 0.0), self._stroke_m)
                self._move(self._target_m / self._stroke_m)
            elif name == "calibrate" and value:
                self.calibrated = True
            elif name == "reboot" and value:
                self.error, self.calibrated = False, False
        return "ok"

    def status(self, kind: Any, opening: float, stamp: Any) -> Any:
        """As an IODeviceStatus, the fingers being ``opening`` apart, a share of the stroke."""
        here_m = opening * self._stroke_m
        moving = abs(here_m - self._target_m) > 0.002
        signals = {
            "position_m": ("float", self._target_m),
            "position_response_m": ("float", here_m),
            "speed_mps": ("float", _SPEED_M_S),
            "force_response_n": ("float", 0.0),
            "is_moving": ("bool", moving),
            "is_gripping": ("bool", moving),
            "is_calibrated": ("bool", self.calibrated),
            "has_error": ("bool", self.error),
            "calibrate": ("bool", False),
            "reboot": ("bool", False),
        }
        with self._lock:
            commands, responses = list(self._commands), list(self._responses)
        return device_status(kind, "right_gripper", signals, stamp, commands, responses)


def device_status(
    kind: Any, name: str, signals: Mapping[str, tuple[str, Any]], stamp: Any,
    commands: list[Any] | None = None, responses: list[str] | None = None,
) -> Any:
    """An IODeviceStatus; ``signals`` maps names to (type, value)."""
    message = kind(time=stamp, commands=commands or [], responses=responses or [])
    message.device.name = name
    message.device.status.tag = "ready"
    for signal, (form, value) in signals.items():
        data = message_class("intera_core_msgs/IODataStatus")()
        data.name, data.data = signal, json.dumps([value])
        data.format = json.dumps({"type": form, "role": "output"})
        data.status.tag = "ready"
        message.signals.append(data)
    return message

