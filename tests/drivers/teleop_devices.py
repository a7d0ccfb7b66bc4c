"""A terminal that a test types into, and devices on stand-ins."""

from __future__ import annotations

import os
import pty
import termios
import time
from typing import Any

from robot_rl_drivers.teleop import keyboard, spacemouse
from robot_rl_drivers.teleop.hand import HandTeleop
from tests.drivers.teleop_stand_ins import Ticks, env_shape

FULL = 350


def mouse(ticks: Ticks, *parts: str, **options: Any) -> HandTeleop:
    chosen = spacemouse.SpaceMouseOptions(**options)
    return HandTeleop(spacemouse.SpaceMouse(chosen), env_shape(*parts), chosen, ticks)


class Terminal:
    """A pseudo-terminal: what the test types at one end, the device reads at the other."""

    def __init__(self) -> None:
        self.person, self.program = pty.openpty()
        self.before = termios.tcgetattr(self.program)

    def type(self, keys: bytes) -> None:
        os.write(self.person, keys)
        for _ in range(200):  # until the line discipline has passed it on
            time.sleep(0.001)
            if b"" == keys or self._waiting() >= len(keys):
                return

    def _waiting(self) -> int:
        import array
        import fcntl

        count = array.array("i", [0])
        fcntl.ioctl(self.program, termios.FIONREAD, count)
        return count[0]

    def hang_up(self) -> None:
        os.close(self.person)
        self.person = -1

    def close(self) -> None:
        for file in (self.person, self.program):
            if file >= 0:
                os.close(file)


def keys_of(terminal: Terminal, ticks: Ticks, *parts: str, **options: Any) -> HandTeleop:
    chosen = keyboard.KeyboardOptions(**{"scale": 1.0, **options})
    device = keyboard.TerminalKeys(chosen, terminal.program)
    return HandTeleop(device, env_shape(*parts), chosen, ticks)
