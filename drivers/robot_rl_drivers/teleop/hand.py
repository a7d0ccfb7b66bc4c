"""What every device has in common: from pushes and buttons to actions and events.

A device (:class:`Device`) says how far it is pushed and which buttons changed. :class:`HandTeleop`
makes of that an action in [-1, 1]^n of an environment, or None while the hand is off, and the
events of :class:`robot_rl.interfaces.Teleop`. A device that falls silent while it is deflected
counts as let go; one that is gone asks for a stop.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Protocol, TypeVar

import numpy as np

from robot_rl.envs.robot_env import RobotEnv
from robot_rl.errors import InvalidInputError, MissingDependencyError, unknown_name
from robot_rl.interfaces import Array

T = TypeVar("T")

STOP, ACCEPT, REJECT, REARM, QUIT = "stop", "accept", "reject", "rearm", "quit"
# Not an event of its own: it turns the gripper round.
GRIP = "grip"
_REOPEN_S = 1.0
# Pushes from before a pause as long as this in looking are old: only their buttons count.
_PAUSE_S = 0.5


class DeviceLostError(Exception):
    """The device was unplugged, or its connection broke."""


@dataclass
class HandOptions:
    """How a device's pushes become actions.

    ``scale`` is the action of a full push, ``dead_zone`` the share of it that counts as nothing
    (what is beyond it starts from zero, so nothing jumps), ``silence_s`` how long a device may say
    nothing while it is deflected, and ``heading_deg`` where the operator stands: 0 behind the arm
    looking along its x axis, 90 turned to the left of that, 180 facing the arm.
    """

    scale: float = 1.0
    dead_zone: float = 0.1
    silence_s: float = 0.25
    heading_deg: float = 0.0

    def __post_init__(self) -> None:
        for name, least, most in (("scale", 0.01, 1.0), ("dead_zone", 0.0, 0.9),
                                  ("silence_s", 0.02, 10.0), ("heading_deg", -360.0, 360.0)):
            value = getattr(self, name)
            if not least <= value <= most:
                raise InvalidInputError(
                    f"device: {name} is {value}, should be in [{least:g}, {most:g}]"
                )


@dataclass
class Push:
    """What a device says when it is looked at.

    ``way`` (3,) is the push forward, to the left and up as the operator sees it, ``turn`` the one
    about the vertical, counter-clockwise from above, each in [-1, 1]. ``heard`` says whether the
    device said anything since the last look, ``events`` what its buttons ask for.
    """

    way: Array = field(default_factory=lambda: np.zeros(3))
    turn: float = 0.0
    heard: bool = False
    events: tuple[str, ...] = ()


class Device(Protocol):
    """A device without a memory of its own, looked at many times a second; ``help`` is what its
    axes and buttons do."""

    name: str
    help: str

    def open(self) -> None:
        """Find and open the device; called again after it was lost.

        Raises:
            InvalidInputError: it is not there, or may not be read.
            MissingDependencyError: its library is not installed.
        """

    def poll(self, now_s: float) -> Push:
        """Take in all that the device said so far; never waits.

        Raises:
            DeviceLostError: it is gone.
        """

    def forget(self) -> None:
        """Count keys that are held down as let go."""

    def close(self) -> None: ...


class HandTeleop:
    """A :class:`robot_rl.interfaces.Teleop` of a device.

    Args:
        device: opened here.
        env: whose actions are given.
        options: scaling and time-outs.
        clock: time [s] that only grows.

    ``problem`` says in words why the device asks for a stop, or is None.
    """

    interactive = True

    def __init__(
        self,
        device: Device,
        env: RobotEnv,
        options: HandOptions,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.device, self.options = device, options
        self.help = device.help
        self.problem: str | None = None
        self._clock = clock
        self._size = int((env.action_space.shape or (0,))[0])
        self._yaw, self._gripper = "yaw" in env.parts, "gripper" in env.parts
        self._env = env
        self._push = Push()
        self._heard_s = -math.inf
        self._looked_s = self._clock()
        self._tried_s = 0.0
        self._events: list[str] = []
        self._closed: bool | None = None
        self._gripped = False
        self._lost = False
        device.open()

    def gripper_is(self, opening: float) -> None:
        """What the gripper was told by whoever else acts, in [0, 1]: the button turns that."""
        self._closed = opening < 0.5

    def read(self) -> Array | None:
        """The action that the device asks for, None while nobody pushes it or its gripper button
        was not used since the last call."""
        self._look()
        gripped, self._gripped = self._gripped, False
        if self._clock() - self._heard_s > self.options.silence_s:
            self._push = Push()
        way = shape_push(self._push.way, self.options)
        turn = float(shape_push(np.array([self._push.turn]), self.options)[0])
        turn = turn if self._yaw else 0.0
        if not (way.any() or turn or gripped):
            return None
        action = np.zeros(self._size)
        action[:3] = to_workspace(way, self.options.heading_deg)
        if self._yaw:
            action[3] = turn
        if self._gripper:
            action[-1] = -1.0 if self._is_closed() else 1.0
        return action

    def events(self) -> tuple[str, ...]:
        self._look()
        taken, self._events = tuple(self._events), []
        return taken

    def close(self) -> None:
        if not self._lost:
            self.device.close()

    def _look(self) -> None:
        now_s = self._clock()
        late = now_s - self._looked_s > _PAUSE_S
        self._looked_s = now_s
        if self._lost and not self._found_again(now_s):
            return
        try:
            push = self.device.poll(now_s)
        except DeviceLostError as error:
            self._lose(str(error))
            return
        if late:
            self.device.forget()
        if push.heard:
            self._heard_s = -math.inf if late else now_s
        self._push = push
        for event in push.events:
            if event != GRIP:
                self._events.append(event)
            elif self._gripper:
                self._closed = not self._is_closed()
                self._gripped = True

    def _lose(self, why: str) -> None:
        self._lost = True
        self._push = Push()
        self._heard_s = -math.inf
        self._events.append(STOP)
        self.problem = f"the {self.device.name} is gone ({why})"
        self._tried_s = self._clock()

    def _found_again(self, now_s: float) -> bool:
        if now_s - self._tried_s < _REOPEN_S:
            return False
        self._tried_s = now_s
        try:
            self.device.open()
        except (InvalidInputError, MissingDependencyError):
            return False  # still away, as ``problem`` says
        self._lost, self.problem = False, None
        return True

    def _is_closed(self) -> bool:
        """What the gripper was last told; at first, what it is."""
        if self._closed is None:
            opening = self._env.rig.gripper.opening(self._env.safety.config.max_state_age_s)
            self._closed = opening < 0.5
        return self._closed


def shape_push(push: Array, options: HandOptions) -> Array:
    """A push (k,) in [-1, 1] without its dead zone, scaled; what is not a number is nothing."""
    finite = np.where(np.isfinite(push), push, 0.0)
    size = np.clip(np.abs(finite), 0.0, 1.0)
    beyond = np.maximum(size - options.dead_zone, 0.0) / (1.0 - options.dead_zone)
    return np.asarray(np.sign(finite) * beyond * options.scale)


def to_workspace(way: Array, heading_deg: float) -> Array:
    """A push (3,) forward, left and up of an operator who looks along ``heading_deg``, in the
    workspace frame: x away from the arm's base, y to its left, z up."""
    angle = math.radians(heading_deg)
    cos, sin = math.cos(angle), math.sin(angle)
    forward, left, up = way
    return np.array([cos * forward - sin * left, sin * forward + cos * left, up])


def read_options(cls: type[T], options: Mapping[str, Any], device: str) -> T:
    """The options of a device, given as numbers or as text.

    Raises:
        InvalidInputError: one is not known, or is no number where one is needed.
    """
    known = {f.name: f for f in fields(cls)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for name, given in options.items():
        if name not in known:
            raise unknown_name(f"option of the {device}", name, known)
        if str(known[name].type) not in ("float", "int"):
            values[name] = str(given)
            continue
        try:
            number = float(given)
            values[name] = int(given) if known[name].type == "int" else number
        except (TypeError, ValueError):
            raise InvalidInputError(
                f"option {name} of the {device} is {given!r}, should be a number"
            ) from None
        if not math.isfinite(number):
            raise InvalidInputError(f"option {name} of the {device} is {given}, should be finite")
    return cls(**values)
