"""Finds a device to drive an arm with by its name, so that this package imports none of them.

A device is a :class:`robot_rl.interfaces.Teleop`. It may have more, which is used where it is
there: ``interactive`` (False: nobody sits there to be asked), ``problem`` (why it asks for a stop,
or None), ``begin()`` (a new episode), ``see(info)`` (what a step led to), ``end()`` (the episode is
over: judge it), ``gripper_is(opening)`` (what the gripper was last told), ``help`` (its keys, in
words) and ``close()``.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from robot_rl.envs.robot_env import RobotEnv
from robot_rl.errors import InvalidInputError, unknown_name
from robot_rl.interfaces import Array, Teleop

GROUP = "robot_rl.teleops"

# What makes a device: the environment whose actions it gives, and its options by name.
TeleopFactory = Callable[[RobotEnv, Mapping[str, Any]], Teleop]


def list_teleops() -> list[str]:
    """Names of the installed devices."""
    return sorted({entry.name for entry in entry_points(group=GROUP)})


def make_teleop(name: str, env: RobotEnv, **options: Any) -> Teleop:
    """The device of that name, giving actions of ``env``.

    Args:
        name: ``spacemouse``, ``gamepad``, ``keyboard``, ``scripted``, or any installed under the
            entry point group ``robot_rl.teleops``.
        env: the environment that is driven.
        options: the device's own, as numbers or as text; see docs/teleoperation.md.

    Raises:
        InvalidInputError: no such device or option, or the device is not there.
        MissingDependencyError: the device's library is not installed.
    """
    return _load(name)(env, options)


STOPPED = "the operator stopped the arm"
EVENTS = ("accept", "reject", "stop", "rearm", "quit")


class Operator:
    """A device and, beside it, the keys of the terminal for events; safe to ask from two threads.

    Hardware's watchdog asks :meth:`watch`, so that a stop is heard while the arm moves by itself;
    the control loop asks for actions and events.
    """

    def __init__(self, teleop: Teleop, keys: Teleop | None = None) -> None:
        self.teleop, self._keys = teleop, keys
        self.interactive = bool(getattr(teleop, "interactive", True))
        devices = [one for one in (teleop, keys) if one is not None]
        self.help = "\n".join(filter(None, (getattr(one, "help", "") for one in devices)))
        self._lock = threading.Lock()
        self._events: list[str] = []
        self._stop: str | None = None

    @classmethod
    def of(cls, name: str, env: RobotEnv, **options: Any) -> Operator:
        """The operator at the device of that name, as :func:`make_teleop` makes it."""
        teleop = make_teleop(name, env, **options)
        beside = (getattr(teleop, "interactive", True) and name != "keyboard"
                  and "keyboard" in list_teleops() and sys.stdin is not None
                  and sys.stdin.isatty())
        try:
            return cls(teleop, make_teleop("keyboard", env) if beside else None)
        except BaseException:
            _close(teleop)
            raise

    def read(self) -> Array | None:
        """The action asked for, or None while the arm is left alone."""
        with self._lock:
            self._collect()
            action = self.teleop.read()
            return None if self._stop else action

    def events(self) -> tuple[str, ...]:
        """What was asked for since the last call, in order."""
        with self._lock:
            self._collect()
            taken, self._events = tuple(self._events), []
            return taken

    def watch(self) -> str | None:
        """Why the operator wants the arm held, or None; a watch of the safety filter.

        Each stop is said once: what releases the arm may not be this device. A device that is gone
        is said again and again.
        """
        # The filter asks with its own lock held, which a device may be waiting for: never wait.
        if not self._lock.acquire(blocking=False):
            return None
        try:
            self._collect()
            stop, self._stop = self._stop, None
            return self.problem or stop
        finally:
            self._lock.release()

    @property
    def problem(self) -> str | None:
        """What is wrong with the device, or None."""
        found: str | None = getattr(self.teleop, "problem", None)
        return found

    def forget_rearm(self) -> None:
        """The arm was held: what was asked for before does not release it."""
        with self._lock:
            self._drop_rearm()

    def _drop_rearm(self) -> None:
        self._events = [event for event in self._events if event != "rearm"]

    def release(self) -> None:
        """A stop was dealt with: the operator re-arms.

        Raises:
            InvalidInputError: the device is still gone.
        """
        with self._lock:
            if self.problem is not None:
                raise InvalidInputError(f"{self.problem}; bring it back first")
            self._stop = None

    def tell(self, what: str, *values: Any) -> None:
        """Call what the device may have, see above."""
        with self._lock:
            hook = getattr(self.teleop, what, None)
            if hook is not None:
                hook(*values)

    def close(self) -> None:
        """Release the device and the terminal."""
        with self._lock:
            for one in (self.teleop, self._keys):
                if one is not None:
                    _close(one)

    def _collect(self) -> None:
        new = list(self.teleop.events())
        if self._keys is not None:
            new += self._keys.events()
        for event in new:
            if event not in EVENTS:
                raise unknown_name("event of the device", event, EVENTS)
            if event == "stop":
                # Who asked to re-arm before did not know of this stop.
                self._drop_rearm()
            if event == "stop":
                # What was pressed before it must not release it.
                self._events = [one for one in self._events if one != "rearm"]
                self._stop = self.problem or STOPPED
            self._events.append(event)


def _close(teleop: Teleop) -> None:
    close = getattr(teleop, "close", None)
    if close is not None:
        close()


def _load(name: str) -> TeleopFactory:
    found: dict[str, EntryPoint] = {entry.name: entry for entry in entry_points(group=GROUP)}
    if not found:
        raise InvalidInputError(
            f"no device is installed (entry point group {GROUP!r} is empty); "
            "install the package, e.g. pip install -e '.[teleop]'"
        )
    if name not in found:
        raise unknown_name("device", name, sorted(found))
    factory: TeleopFactory = found[name].load()
    return factory
