"""Keyboards: a real pseudo-terminal, and Linux's input events."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from robot_rl_drivers.teleop import keyboard
from robot_rl_drivers.teleop.hand import HandTeleop
from tests.drivers.teleop_devices import keys_of
from tests.drivers.teleop_stand_ins import Ticks, close_to, env_shape

# -- keyboard -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (b"w", [1, 0, 0, 0]), (b"s", [-1, 0, 0, 0]), (b"a", [0, 1, 0, 0]), (b"d", [0, -1, 0, 0]),
        (b"q", [0, 0, 1, 0]), (b"e", [0, 0, -1, 0]), (b"z", [0, 0, 0, 1]), (b"c", [0, 0, 0, -1]),
        (b"\x1b[A", [1, 0, 0, 0]), (b"\x1bOD", [0, 1, 0, 0]), (b"wa", [1, 1, 0, 0]),
        (b"W", [0.25, 0, 0, 0]), (b"Q", [0, 0, 0.25, 0]), (b"ws", None), (b"\x1b[15~", None),
        (b"\x1b[1;2A", [1, 0, 0, 0]), ("ü".encode(), None),
    ],
)
def test_keys_move_the_tool(terminal, keys, expected):
    device = keys_of(terminal, Ticks(), "yaw")
    terminal.type(keys)
    action = device.read()
    assert action is None if expected is None else close_to(action, expected)
    device.close()


def test_a_key_counts_as_held_until_its_repeats_stop(terminal):
    ticks = Ticks()
    device = keys_of(terminal, ticks, release_s=0.15)
    for _ in range(10):
        terminal.type(b"w")
        assert close_to(device.read(), [1, 0, 0])
        ticks.now_s += 0.1
    assert close_to(device.read(), [1, 0, 0])
    ticks.now_s += 0.1
    assert device.read() is None
    device.close()


def test_an_arrow_that_comes_in_pieces_is_one_arrow(terminal):
    device = keys_of(terminal, Ticks())
    terminal.type(b"\x1b")
    assert device.read() is None
    terminal.type(b"[A")
    assert close_to(device.read(), [1, 0, 0])
    assert device.events() == ()
    device.close()


def test_keys_for_events(terminal):
    device = keys_of(terminal, Ticks(), "gripper")
    terminal.type(b"\r\x7f R\x04r")
    assert device.events() == ("accept", "reject", "stop", "quit")
    terminal.type(b"g")
    assert close_to(device.read(), [0, 0, 0, -1])
    device.close()


def test_a_re_arm_takes_two_keys_and_nothing_else(terminal):
    ticks = Ticks()
    device = keys_of(terminal, ticks)

    def heard(keys: bytes, later_s: float = 0.3) -> tuple[str, ...]:
        ticks.now_s += later_s
        terminal.type(keys)
        return device.events()

    assert heard(b"R") == () and heard(b"R") == ("rearm",)
    assert heard(b"R") == () and heard(b"R", 1.1) == ()
    assert heard(b"w") == () and heard(b"R") == ()
    assert heard(b"RR", 2.0) == ("rearm",)
    assert heard(b"Rx", 2.0) == () and heard(b"R") == ()
    device.close()


@pytest.mark.parametrize("text", [b"see the ROBOT log", b"RobotRR\rrm -r x\x7f\x04ggggw"])
def test_of_text_that_is_pasted_only_a_stop_counts(terminal, text):
    device = keys_of(terminal, Ticks(), "gripper")
    terminal.type(text)
    assert device.read() is None
    assert set(device.events()) == {"stop"}
    terminal.type(b"w" * 20)
    assert close_to(device.read()[:3], [1, 0, 0])
    device.close()


def test_the_terminal_is_put_back_and_shows_nothing_meanwhile(terminal):
    device = keys_of(terminal, Ticks())
    flags = termios.tcgetattr(terminal.program)[3]
    assert not flags & (termios.ICANON | termios.ECHO)
    assert flags & termios.ISIG  # Ctrl-C still interrupts
    device.close()
    assert termios.tcgetattr(terminal.program)[3] == terminal.before[3]


def test_keys_typed_while_nobody_looked_move_nothing(terminal):
    ticks = Ticks()
    device = keys_of(terminal, ticks)
    terminal.type(b"w ")
    ticks.now_s += 2.0
    assert device.read() is None
    ticks.now_s += 0.05
    assert device.read() is None
    assert device.events() == ("stop",)
    device.close()


def test_a_terminal_that_hangs_up_stops_the_arm(terminal):
    device = keys_of(terminal, Ticks())
    terminal.type(b"w")
    assert device.read() is not None
    terminal.hang_up()
    assert device.read() is None
    assert device.events() == ("stop",)
    assert "keyboard is gone" in str(device.problem)


def test_without_a_terminal_the_keyboard_says_so():
    program = ("from tests.drivers.teleop_stand_ins import env_shape\n"
               "from robot_rl.teleops import make_teleop\nmake_teleop('keyboard', env_shape())")
    done = subprocess.run(
        [sys.executable, "-c", program], stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=120, cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert "the keyboard needs a terminal, and standard input is none" in done.stderr


# -- Linux's input events -----------------------------------------------------------------------


class Events:
    """A pipe that carries ``struct input_event`` as the kernel writes it."""

    W, A, SHIFT, CTRL, D, SPACE, R = 17, 30, 42, 29, 32, 57, 19

    def __init__(self, folder: Path) -> None:
        self.path = folder / "event3"
        os.mkfifo(self.path)
        self._file = os.open(self.path, os.O_RDWR)

    def send(self, code: int, value: int, kind: int = 1) -> None:
        for each in ((kind, code, value), (0, 0, 0)):
            os.write(self._file, struct.pack("llHHi", 12, 345, *each))

    def unplug(self) -> None:
        os.close(self._file)


@pytest.fixture
def events(tmp_path) -> Events:
    return Events(tmp_path)


def event_keys(events: Events, ticks: Ticks, *parts: str) -> HandTeleop:
    chosen = keyboard.KeyboardOptions(scale=1.0, events=str(events.path))
    return HandTeleop(keyboard.EventKeys(chosen), env_shape(*parts), chosen, ticks)


def test_a_key_is_held_until_it_is_let_go(events):
    ticks = Ticks()
    device = event_keys(events, ticks)
    events.send(Events.W, 1)
    for _ in range(40):
        assert close_to(device.read(), [1, 0, 0])
        ticks.now_s += 0.1
    events.send(Events.A, 1)
    assert close_to(device.read(), [1, 1, 0])
    events.send(Events.W, 0)
    assert close_to(device.read(), [0, 1, 0])
    events.send(Events.A, 0)
    assert device.read() is None
    device.close()


def test_shift_and_control_change_what_keys_mean(events):
    device = event_keys(events, Ticks())
    events.send(Events.SHIFT, 1)
    events.send(Events.W, 1)
    assert close_to(device.read(), [0.25, 0, 0])
    events.send(Events.W, 0)
    events.send(Events.R, 1)
    events.send(Events.SHIFT, 0)
    events.send(Events.R, 1)
    events.send(Events.CTRL, 1)
    events.send(Events.D, 1)
    events.send(Events.W, 1)
    events.send(Events.CTRL, 0)
    events.send(Events.SPACE, 1)
    assert device.read() is None
    assert device.events() == ("quit", "stop")  # it hears what is typed into other windows too
    device.close()


def test_events_that_were_dropped_let_everything_go(events):
    device = event_keys(events, Ticks())
    events.send(Events.W, 1)
    assert device.read() is not None
    events.send(3, 0, kind=0)  # SYN_DROPPED
    assert device.read() is None
    device.close()


def test_a_keyboard_unplugged_mid_motion_stops_the_arm(events):
    device = event_keys(events, Ticks())
    events.send(Events.W, 1)
    assert device.read() is not None
    events.unplug()
    assert device.read() is None
    assert device.events() == ("stop",)
