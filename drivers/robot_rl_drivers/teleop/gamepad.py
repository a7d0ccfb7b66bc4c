"""A gamepad, read by SDL (pygame), which knows the layout of some hundreds of models.

Left stick: forward and sideways; right trigger up, left trigger down; right stick sideways: turn.
A turns the gripper round, Y accepts, X rejects, B stops the arm, both shoulder buttons held for a
second re-arm it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from robot_rl.envs.robot_env import RobotEnv
from robot_rl.errors import InvalidInputError, MissingDependencyError
from robot_rl_drivers.teleop.hand import (
    ACCEPT,
    GRIP,
    QUIT,
    REARM,
    REJECT,
    STOP,
    DeviceLostError,
    HandOptions,
    HandTeleop,
    Push,
    read_options,
)

_FULL = 32767.0
_REARM_S = 1.0


@dataclass
class GamepadOptions(HandOptions):
    """Besides those of every device: ``index`` where several are plugged in.

    A pad only speaks of changes: a stick that is held quite still is silent, too. So it is given
    longer than other devices; the smallest movement of any stick goes on.
    """

    dead_zone: float = 0.15
    silence_s: float = 2.0
    index: int = 0


def make(env: RobotEnv, options: Mapping[str, Any]) -> HandTeleop:
    """The gamepad that is plugged in.

    Raises:
        InvalidInputError: there is none.
        MissingDependencyError: pygame is not installed.
    """
    chosen = read_options(GamepadOptions, options, "gamepad")
    return HandTeleop(Gamepad(chosen), env, chosen)


class Gamepad:
    """The device behind SDL's names of sticks and buttons."""

    name = "gamepad"
    help = ("gamepad: left stick, triggers and right stick move; A gripper, Y accept, X reject, "
            "B stop, both shoulder buttons for a second re-arm")

    def __init__(self, options: GamepadOptions) -> None:
        self._options = options
        self._pad: Any = None
        self._axes: tuple[int, ...] = ()
        self._down: set[int] = set()
        self._shoulders_s: float | None = None

    def open(self) -> None:
        self._sdl, self._pygame = _library()
        self._sdl.init()
        self._sdl.update()
        pads = [i for i in range(self._sdl.get_count()) if self._sdl.is_controller(i)]
        index = self._options.index
        if not 0 <= index < len(pads):
            raise InvalidInputError(
                f"there is no gamepad {index}: {len(pads)} are plugged in that SDL knows"
            )
        self._pad = self._sdl.Controller(pads[index])
        self._down, self._shoulders_s = set(), None
        self._axes = self._read_axes()

    def poll(self, now_s: float) -> Push:
        self._sdl.update()
        if not self._pad.attached():
            raise DeviceLostError("it was unplugged")
        axes, before = self._read_axes(), self._axes
        self._axes = axes
        x, y, turn, left, right = (value / _FULL for value in axes)
        events, changed = self._pressed(now_s)
        way = np.array([-y, -x, max(right, 0.0) - max(left, 0.0)])
        return Push(way, -turn, axes != before or changed, tuple(events))

    def forget(self) -> None:
        return None

    def close(self) -> None:
        if self._pad is not None:
            self._pad.quit()
            self._pad = None

    def _read_axes(self) -> tuple[int, ...]:
        names = ("LEFTX", "LEFTY", "RIGHTX", "TRIGGERLEFT", "TRIGGERRIGHT")
        return tuple(
            int(self._pad.get_axis(getattr(self._pygame, f"CONTROLLER_AXIS_{name}")))
            for name in names
        )

    def _pressed(self, now_s: float) -> tuple[list[str], bool]:
        """What the buttons ask for, and whether any changed."""
        game = self._pygame
        meanings = {
            game.CONTROLLER_BUTTON_A: GRIP, game.CONTROLLER_BUTTON_Y: ACCEPT,
            game.CONTROLLER_BUTTON_X: REJECT, game.CONTROLLER_BUTTON_B: STOP,
            game.CONTROLLER_BUTTON_GUIDE: QUIT,
            game.CONTROLLER_BUTTON_LEFTSHOULDER: "",
            game.CONTROLLER_BUTTON_RIGHTSHOULDER: "",
        }
        down = {button for button in meanings if self._pad.get_button(button)}
        before, self._down = self._down, down
        events = [meanings[button] for button in sorted(down - before) if meanings[button]]
        shoulders = {game.CONTROLLER_BUTTON_LEFTSHOULDER, game.CONTROLLER_BUTTON_RIGHTSHOULDER}
        if not shoulders <= down or game.CONTROLLER_BUTTON_B in down:
            self._shoulders_s = None
        elif self._shoulders_s is None:
            self._shoulders_s = now_s
        elif now_s - self._shoulders_s >= _REARM_S:
            self._shoulders_s = float("inf")  # once for each time they are pressed
            events.append(REARM)
        return events, down != before


def _library() -> tuple[Any, Any]:
    # No window, no sound, sticks heard all the same, and signals left to Python.
    for name, value in (("SDL_VIDEODRIVER", "dummy"), ("SDL_AUDIODRIVER", "dummy"),
                        ("SDL_JOYSTICK_ALLOW_BACKGROUND_EVENTS", "1"),
                        ("SDL_NO_SIGNAL_HANDLERS", "1"), ("PYGAME_HIDE_SUPPORT_PROMPT", "1")):
        os.environ.setdefault(name, value)
    try:
        import pygame
        from pygame._sdl2 import controller
    except ImportError as error:
        raise MissingDependencyError(
            f"the gamepad needs pygame: pip install 'robot_rl[teleop]' ({error})"
        ) from None
    return controller, pygame
