"""A 3Dconnexion SpaceMouse, read by pyspacemouse.

Its cap pushed forward, left and up moves the tool so; twisted, it turns it. The first button turns
the gripper round, the second accepts the episode or, held for long, rejects it; both together stop
the arm. Nothing on it re-arms: two buttons pressed in a fright must not.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from robot_rl.envs.robot_env import RobotEnv
from robot_rl.errors import InvalidInputError, MissingDependencyError, unknown_name
from robot_rl_drivers.teleop.hand import (
    ACCEPT,
    GRIP,
    REJECT,
    STOP,
    DeviceLostError,
    HandOptions,
    HandTeleop,
    Push,
    read_options,
)

_LONG_S = 0.8
# The kernel keeps 64 reports; so many at most are taken at one look.
_REPORTS = 256
_GRIP_NAMES, _VERDICT_NAMES = ("LEFT", "BTN_1", "MENU"), ("RIGHT", "BTN_2", "FIT")
_NEEDS_HIDAPI = (
    "the SpaceMouse needs the hidapi library, e.g. apt install libhidapi-hidraw0 "
    "(and pip install 'robot_rl[teleop]')"
)


@dataclass
class SpaceMouseOptions(HandOptions):
    """Besides those of every device: ``model`` (as pyspacemouse names it; any by default),
    ``index`` where several of it are plugged in, and names of the two buttons that are used."""

    model: str = ""
    index: int = 0
    grip_button: str = ""
    verdict_button: str = ""


def make(env: RobotEnv, options: Mapping[str, Any]) -> HandTeleop:
    """The SpaceMouse that is plugged in.

    Raises:
        InvalidInputError: there is none, or it may not be read.
        MissingDependencyError: pyspacemouse or the hidapi library is not installed.
    """
    chosen = read_options(SpaceMouseOptions, options, "spacemouse")
    return HandTeleop(SpaceMouse(chosen), env, chosen)


class SpaceMouse:
    """The device behind pyspacemouse's parser of its reports."""

    name = "SpaceMouse"
    help = ("SpaceMouse: push and twist the cap; first button gripper; second accepts, "
            "held long rejects; both stop")

    def __init__(self, options: SpaceMouseOptions) -> None:
        self._options = options
        self._mouse: Any = None
        self._stamp = 0.0
        self._grip, self._verdict = 0, 1
        self._down_s: dict[int, float] = {}
        self._both = False

    def open(self) -> None:
        module = _library()
        options = self._options
        try:
            # It greets the device on standard output, which belongs to the command.
            with contextlib.redirect_stdout(sys.stderr):
                self._mouse = module.open(
                    device=options.model or None, device_index=options.index,
                    axis_convention=module.AxisConvention.ROS,
                )
        except ValueError as error:
            raise InvalidInputError(f"spacemouse: {error}") from None
        except RuntimeError as error:
            if "HID API" in str(error):
                raise MissingDependencyError(_NEEDS_HIDAPI) from None
            raise InvalidInputError(f"no SpaceMouse can be opened ({error}); plug it in, and let "
                                    "your user read /dev/hidraw* by a udev rule") from None
        except (AttributeError, OSError):
            raise MissingDependencyError(_NEEDS_HIDAPI) from None
        self._stamp = -1.0
        self._down_s, self._both = {}, False
        buttons = self._mouse.info.button_names
        self._grip = _button(buttons, options.grip_button, _GRIP_NAMES, 0)
        self._verdict = _button(buttons, options.verdict_button, _VERDICT_NAMES, 1)

    def poll(self, now_s: float) -> Push:
        events: list[str] = []
        heard = False
        state = self._read()
        for _ in range(_REPORTS):
            if state.t == self._stamp:
                break
            self._stamp, heard = state.t, True
            events += self._pressed(list(state.buttons), now_s)
            state = self._read()
        return Push(np.array([state.x, state.y, state.z]), float(state.yaw), heard, tuple(events))

    def forget(self) -> None:
        return None

    def close(self) -> None:
        if self._mouse is not None:
            with contextlib.suppress(Exception):  # it may be gone already
                self._mouse.close()
            self._mouse = None

    def _read(self) -> Any:
        try:
            return self._mouse.read()
        except Exception as error:  # easyhid's own, or the system's
            self.close()
            raise DeviceLostError(str(error) or "it cannot be read") from None

    def _pressed(self, buttons: list[int], now_s: float) -> list[str]:
        """What a report's buttons ask for. Each acts when it is let go, so that both can be
        pressed without either's own meaning."""
        events = []
        for button in (self._grip, self._verdict):
            down = button < len(buttons) and bool(buttons[button])
            if down:
                self._down_s.setdefault(button, now_s)
            elif button in self._down_s:
                held_s = now_s - self._down_s.pop(button)
                if self._both:
                    continue
                if button == self._grip:
                    events.append(GRIP)
                else:
                    events.append(REJECT if held_s >= _LONG_S else ACCEPT)
        if len(self._down_s) == 2 and not self._both:
            self._both = True
            events.append(STOP)
        if not self._down_s:
            self._both = False
        return events


def _button(names: Sequence[str], asked: str, usual: Sequence[str], otherwise: int) -> int:
    if asked:
        if asked not in names:
            raise unknown_name("button of the SpaceMouse", asked, names)
        return list(names).index(asked)
    return next((list(names).index(name) for name in usual if name in names), otherwise)


def _library() -> Any:
    try:
        import pyspacemouse
    except ImportError as error:
        raise MissingDependencyError(
            f"the SpaceMouse needs pyspacemouse: pip install 'robot_rl[teleop]' ({error})"
        ) from None
    except (AttributeError, OSError):
        raise MissingDependencyError(_NEEDS_HIDAPI) from None
    if not hasattr(pyspacemouse, "AxisConvention"):
        raise MissingDependencyError("the SpaceMouse needs pyspacemouse 2.1 or newer: "
                                     "pip install -U 'pyspacemouse>=2.1'")
    return pyspacemouse
