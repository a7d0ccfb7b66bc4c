"""Intera's IO devices: named signals in JSON, told by a state topic, set by a command topic."""

from __future__ import annotations

import json
import threading
from typing import Any

from robot_rl.interfaces import Clock
from robot_rl.ros.ros1 import Ros1Session

_REPEAT_S = 0.5
_REPEAT_FOR_S = 2.0
"""A command that was not acknowledged for this long is sent again [s], and for how long [s]."""


def signals_of(message: Any) -> dict[str, Any]:
    """The first value of every signal of an IODeviceStatus; what is no JSON is left out."""
    found = {}
    for signal in message.signals:
        try:
            values = json.loads(signal.data)
        except (ValueError, RecursionError):
            continue
        if isinstance(values, list) and values:
            found[signal.name] = values[0]
    return found


class IODevice:
    """One device: its newest signals, and commands until they are acknowledged.

    The time stamp of a command is its number: the device lists those it has seen, and takes one
    that comes twice only once.
    """

    def __init__(self, session: Ros1Session, node: str, device: str, clock: Clock) -> None:
        self._session = session
        self._clock = clock
        self._lock = threading.Lock()
        self._signals: dict[str, Any] = {}
        self._received_s: float | None = None
        self._waiting: Any = None
        self._asked_s = self._repeated_s = 0.0
        path = f"/io/{node}/{device}"
        self.topic = f"{path}/state"
        self._command = session.publisher(f"{path}/command", "intera_core_msgs/IOComponentCommand")
        session.subscribe(self.topic, "intera_core_msgs/IODeviceStatus", self._take)

    def signals(self) -> tuple[dict[str, Any], float | None]:
        """The newest signals and when they came [s], None before the first."""
        with self._lock:
            return dict(self._signals), self._received_s

    def set(self, signal: str, kind: str, value: Any) -> None:
        """Ask for a value of a signal; returns at once."""
        args = {"signals": {signal: {"format": {"type": kind}, "data": [value]}}}
        message = self._command.message(
            time=self._session.stamp(), op="set", args=json.dumps(args)
        )
        with self._lock:
            self._waiting = message
            self._asked_s = self._repeated_s = self._clock.now_s()
        self._command.publish(message)

    def unanswered_s(self) -> float:
        """For how long the last command has waited to be acknowledged [s], 0 where none does."""
        with self._lock:
            return 0.0 if self._waiting is None else self._clock.now_s() - self._asked_s

    def forget(self) -> None:
        """Send the last command no more, acknowledged or not."""
        with self._lock:
            self._waiting = None

    def _take(self, message: Any) -> None:
        now_s = self._clock.now_s()
        again = None
        with self._lock:
            self._signals.update(signals_of(message))
            self._received_s = now_s
            if self._waiting is not None:
                if self._waiting.time in message.commands:
                    self._waiting = None
                elif (now_s - self._repeated_s > _REPEAT_S
                      and now_s - self._asked_s < _REPEAT_FOR_S):
                    self._repeated_s, again = now_s, self._waiting
        if again is not None:
            self._command.publish(again)
