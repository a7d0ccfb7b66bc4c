"""The keyboard: of the terminal, which also works over ssh, or of Linux's own input devices.

A terminal says that a key was pressed, never that it was let go, and repeats a held key after a
pause: a key counts as held for ``release_s`` after it was last heard, so a tap is a nudge. Linux's
input devices (option ``events``) say when a key is let go.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import struct
import sys
import termios
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from robot_rl.envs.robot_env import RobotEnv
from robot_rl.errors import InvalidInputError
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

# Forward, left, up, and turn counter-clockwise.
MOVES: dict[str, tuple[int, float]] = {
    "w": (0, 1.0), "s": (0, -1.0), "a": (1, 1.0), "d": (1, -1.0),
    "q": (2, 1.0), "e": (2, -1.0), "z": (3, 1.0), "c": (3, -1.0),
    "up": (0, 1.0), "down": (0, -1.0), "left": (1, 1.0), "right": (1, -1.0),
}
EVENTS = {" ": STOP, "g": GRIP, "\n": ACCEPT, "\r": ACCEPT, "\x7f": REJECT, "\x08": REJECT,
          "\x04": QUIT}
HELP = (
    "keyboard: w/s/a/d or arrows move, q/e up and down, z/c turn, with shift slowly; g gripper, "
    "Enter accept, Backspace reject, space stop, {rearm}Ctrl-D quit"
)
# One capital letter is easily typed by mistake.
_REARM_KEY, _REARM_S = "R", 1.0
# More than so many different keys at once were not typed but pasted.
_AT_ONCE = 8
# With shift a key moves at a quarter of the speed.
SLOW = 0.25
_ARROWS = {"A": "up", "B": "down", "C": "right", "D": "left"}

# Of linux/input.h and linux/input-event-codes.h.
_INPUT_EVENT = struct.Struct("llHHi")
_EV_SYN, _EV_KEY, _SYN_DROPPED = 0, 1, 3
_CODES = {17: "w", 31: "s", 30: "a", 32: "d", 16: "q", 18: "e", 44: "z", 46: "c", 103: "up",
          108: "down", 105: "left", 106: "right", 57: " ", 34: "g", 28: "\n", 14: "\x7f"}
_SHIFTS, _CTRLS, _CODE_D = (42, 54), (29, 97), 32


@dataclass
class KeyboardOptions(HandOptions):
    """Besides those of every device: ``release_s``, how long a key of a terminal counts as held
    after it was heard, and ``events``, a file of Linux's input devices to read instead, e.g.
    ``/dev/input/by-path/...-event-kbd``."""

    scale: float = 0.6
    dead_zone: float = 0.0
    release_s: float = 0.15
    events: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.02 <= self.release_s <= 1.0:
            raise InvalidInputError(
                f"device: release_s is {self.release_s}, should be in [0.02, 1]"
            )


def make(env: RobotEnv, options: Mapping[str, Any]) -> HandTeleop:
    """The keyboard of this terminal, or the one that the option ``events`` names.

    Raises:
        InvalidInputError: standard input is no terminal, or the file cannot be read.
    """
    chosen = read_options(KeyboardOptions, options, "keyboard")
    device = EventKeys(chosen) if chosen.events else TerminalKeys(chosen)
    # Both tell for themselves how long a key is held.
    return HandTeleop(device, env, chosen)


@dataclass
class _Held:
    """The keys that count as held, and until when."""

    until_s: dict[str, float] = field(default_factory=dict)

    def push(self, now_s: float, events: list[str]) -> Push:
        """What the keys ask for, those that are held and those of ``events``."""
        ways = np.zeros(4)
        for key, until_s in self.until_s.items():
            if until_s > now_s:
                axis, sign = MOVES[key.lower()]
                ways[axis] += sign * (SLOW if key.isupper() else 1.0)
        ways = np.clip(ways, -1.0, 1.0)
        held = any(until_s > now_s for until_s in self.until_s.values())
        return Push(ways[:3], float(ways[3]), held, tuple(events))


class TerminalKeys:
    """The keys of a terminal, given one by one and not shown."""

    name = "keyboard"
    help = HELP.format(rearm="R twice re-arm, ")

    def __init__(self, options: KeyboardOptions, file: int | None = None) -> None:
        self._rearm_s = -np.inf
        self._options = options
        self._given = file
        self._file = -1
        self._before: list[Any] | None = None
        self._held = _Held()
        self._rest = ""

    def open(self) -> None:
        try:
            file = sys.stdin.fileno() if self._given is None else self._given
            before = termios.tcgetattr(file)
        except (OSError, ValueError, termios.error):
            raise InvalidInputError(
                "the keyboard needs a terminal, and standard input is none; run it in a terminal, "
                "or choose another device"
            ) from None
        now = termios.tcgetattr(file)
        # Key by key and unseen; Ctrl-C still interrupts, Ctrl-D is ours.
        now[3] &= ~(termios.ICANON | termios.ECHO)
        now[6][termios.VMIN], now[6][termios.VTIME] = 0, 0
        termios.tcsetattr(file, termios.TCSANOW, now)
        self._file, self._held, self._rest = file, _Held(), ""
        self._before = self._before or before

    def poll(self, now_s: float) -> Push:
        events = []
        keys = self._keys()
        if len(keys) > _AT_ONCE and len(set(keys)) > 1:
            keys = [key for key in keys if EVENTS.get(key) == STOP]
        if keys and set(keys) != {_REARM_KEY}:
            self._rearm_s = -np.inf
        for key in keys:
            if key == _REARM_KEY:
                events += self._second(now_s, len(set(keys)) == 1)
            elif key.lower() in MOVES and key not in EVENTS:
                self._held.until_s[key] = now_s + self._options.release_s
            elif key in EVENTS:
                events.append(EVENTS[key])
        return self._held.push(now_s, events)

    def _second(self, now_s: float, alone: bool) -> list[str]:
        """A re-arm, where this key came a second time and by itself."""
        if not alone:
            return []
        again = now_s - self._rearm_s <= _REARM_S
        self._rearm_s = -np.inf if again else now_s
        return [REARM] if again else []

    def forget(self) -> None:
        self._held = _Held()

    def close(self) -> None:
        if self._before is not None:
            with contextlib.suppress(termios.error, OSError):  # it may be closed already
                termios.tcsetattr(self._file, termios.TCSADRAIN, self._before)
            self._before = None

    def _keys(self) -> list[str]:
        text = self._rest + self._read()
        keys: list[str] = []
        self._rest = ""
        at = 0
        while at < len(text):
            if text[at] != "\x1b":
                keys.append(text[at])
                at += 1
                continue
            # Of the sequences that keys send only the arrows' mean anything.
            end = at + 2
            while end < len(text) and not "@" <= text[end] <= "~":
                end += 1
            if at + 1 < len(text) and text[at + 1] not in "[O":
                at += 1
            elif end >= len(text):
                self._rest = text[at:] if len(text) - at < 16 else ""
                break
            else:
                keys += [_ARROWS[text[end]]] if text[end] in _ARROWS else []
                at = end + 1
        return keys

    def _read(self) -> str:
        data = b""
        try:
            while select.select([self._file], [], [], 0.0)[0]:
                more = os.read(self._file, 1024)
                if not more:
                    raise DeviceLostError("the terminal was closed")
                data += more
        except (OSError, ValueError) as error:
            raise DeviceLostError(f"the terminal cannot be read: {error}") from None
        return data.decode("ascii", "ignore")


class EventKeys:
    """The keys of a keyboard as Linux's input device says them, pressed and let go.

    It hears them whichever window is in front, so that none of them re-arms.
    """

    name = "keyboard"
    help = HELP.format(rearm="")

    def __init__(self, options: KeyboardOptions) -> None:
        self._path = options.events
        self._file = -1
        self._held = _Held()
        self._shift: set[int] = set()
        self._ctrl: set[int] = set()
        self._rest = b""

    def open(self) -> None:
        try:
            self._file = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK)
        except OSError as error:
            raise InvalidInputError(
                f"the keyboard {self._path} cannot be opened: {error.strerror}; it needs a file "
                "/dev/input/... and the group input"
            ) from None
        self._let_go()
        self._rest = b""

    def poll(self, now_s: float) -> Push:
        events: list[str] = []
        size = _INPUT_EVENT.size
        data = self._rest + self._read()
        whole = len(data) - len(data) % size
        self._rest = data[whole:]
        for _, _, kind, code, value in _INPUT_EVENT.iter_unpack(data[:whole]):
            if kind == _EV_SYN and code == _SYN_DROPPED:
                self._let_go()  # what was lost may have been a release
            elif kind == _EV_KEY:
                events += self._key(code, value)
        return self._held.push(now_s, events)

    def forget(self) -> None:
        self._held = _Held()

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
            # The terminal, where there is one, heard the same keys and would type them into the
            # shell.
            with contextlib.suppress(OSError, ValueError, termios.error):
                termios.tcflush(sys.stdin.fileno(), termios.TCIFLUSH)

    def _key(self, code: int, value: int) -> list[str]:
        """Take in a key: ``value`` 1 pressed, 0 let go, 2 repeated."""
        for codes, down in ((_SHIFTS, self._shift), (_CTRLS, self._ctrl)):
            if code in codes:
                (down.add if value else down.discard)(code)
        key = _CODES.get(code, "")
        if key in MOVES:
            for one in (key, key.upper()):
                self._held.until_s.pop(one, None)
        if value == 0 or not key:
            return []
        if self._ctrl:
            return [QUIT] if code == _CODE_D and value == 1 else []
        if key in MOVES:
            slow = self._shift and len(key) == 1
            self._held.until_s[key.upper() if slow else key] = float("inf")
            return []
        key = key.upper() if self._shift else key
        return [EVENTS[key]] if value == 1 and key in EVENTS else []

    def _let_go(self) -> None:
        self._held, self._shift, self._ctrl = _Held(), set(), set()

    def _read(self) -> bytes:
        data = b""
        while True:
            try:
                more = os.read(self._file, 64 * _INPUT_EVENT.size)
            except BlockingIOError:
                return data
            except OSError as error:
                self.close()
                raise DeviceLostError(os.strerror(error.errno or errno.EIO)) from None
            if not more:
                self.close()
                raise DeviceLostError("it was unplugged")
            data += more
