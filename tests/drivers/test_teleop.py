"""Devices and operators: real reports of a SpaceMouse, a virtual gamepad of SDL; what they do when
they are unplugged, fall silent or were not looked at."""

from __future__ import annotations

import ctypes
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robot_rl.errors import InvalidInputError, MissingDependencyError
from robot_rl.teleops import Operator, list_teleops, make_teleop
from robot_rl_drivers.teleop import gamepad
from robot_rl_drivers.teleop.hand import HandOptions, HandTeleop, shape_push, to_workspace
from tests.drivers.teleop_devices import FULL, keys_of, mouse
from tests.drivers.teleop_stand_ins import Ticks, close_to, env_shape

# -- what all have in common --------------------------------------------------------------------


def test_pushes_have_no_jump_at_the_dead_zone_and_no_more_than_the_scale():
    options = HandOptions(scale=0.5, dead_zone=0.2)
    push = np.array([0.0, 0.19, 0.2001, 0.6, 1.0, -1.0, 3.0, np.nan])
    shaped = shape_push(push, options)
    assert shaped == pytest.approx([0, 0, 0.0000625, 0.25, 0.5, -0.5, 0.5, 0], abs=1e-9)


@pytest.mark.parametrize(
    ("heading", "forward", "left"),
    [(0, [1, 0], [0, 1]), (90, [0, 1], [-1, 0]), (180, [-1, 0], [0, -1]),
     (-90, [0, -1], [1, 0])],
)
def test_forward_is_where_the_operator_looks(heading, forward, left):
    for push, expected in (([1.0, 0.0, 0.5], forward), ([0.0, 1.0, 0.5], left)):
        moved = to_workspace(np.array(push), heading)
        assert moved == pytest.approx([*expected, 0.5], abs=1e-12)


def test_devices_are_found_by_name():
    assert {"gamepad", "keyboard", "scripted", "spacemouse"} <= set(list_teleops())
    with pytest.raises(InvalidInputError, match=r"unknown device 'spacemous'.*did you mean"):
        make_teleop("spacemous", env_shape())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("keyboard", {"speed": "1"}, "unknown option of the keyboard 'speed'.*release_s"),
        ("keyboard", {"scale": "fast"}, "scale of the keyboard is 'fast', should be a number"),
        ("gamepad", {"dead_zone": "nan"}, "should be finite"),
        ("gamepad", {"scale": "1.5"}, r"scale is 1.5, should be in \[0.01, 1\]"),
        ("spacemouse", {"silence_s": "0"}, r"silence_s is 0.0, should be in \[0.02, 10\]"),
        ("keyboard", {"release_s": "3"}, r"release_s is 3.0, should be in \[0.02, 1\]"),
        ("keyboard", {"events": "/nowhere"}, "/nowhere cannot be opened: No such file"),
        ("scripted", {"quality": "2"}, r"quality is 2.0, should be in \[0, 1\]"),
    ],
)
def test_bad_options_are_named(name, options, message):
    with pytest.raises(InvalidInputError, match=message):
        make_teleop(name, env_shape(), **options)


# -- SpaceMouse ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("push", "expected"),
    [
        ({"y": -FULL}, [1, 0, 0]),  # away from the user
        ({"x": FULL}, [0, -1, 0]),  # to the right
        ({"z": -FULL}, [0, 0, 1]),  # up
        ({"x": -FULL // 2, "y": -FULL // 2}, [0.5, 0.5, 0]),
    ],
)
def test_the_cap_moves_the_tool_the_way_it_is_pushed(hid, push, expected):
    device = mouse(Ticks(), dead_zone=0.0)
    assert device.read() is None
    hid.push(**push)
    assert close_to(device.read(), expected)


def test_the_cap_turns_the_tool_the_way_it_is_twisted(hid):
    device = mouse(Ticks(), "yaw", dead_zone=0.0)
    hid.push()
    hid.twist(rz=-FULL)
    assert close_to(device.read(), [0, 0, 0, 1])
    without_yaw = mouse(Ticks(), dead_zone=0.0)
    hid.twist(rz=-FULL)
    assert without_yaw.read() is None


def test_the_last_of_many_reports_counts(hid):
    device = mouse(Ticks(), dead_zone=0.0)
    for x in range(60):
        hid.push(x=x)
    hid.push(y=-FULL)
    assert close_to(device.read(), [1, 0, 0])


def test_a_mouse_that_falls_silent_while_deflected_counts_as_let_go(hid):
    ticks = Ticks()
    device = mouse(ticks, silence_s=0.25)
    hid.push(y=-FULL)
    assert close_to(device.read(), [1, 0, 0])
    ticks.now_s += 0.2
    assert close_to(device.read(), [1, 0, 0])
    ticks.now_s += 0.1
    assert device.read() is None
    hid.push(y=-FULL)
    assert close_to(device.read(), [1, 0, 0])


def test_a_mouse_unplugged_mid_motion_stops_the_arm_and_is_found_again(hid):
    ticks = Ticks()
    device = mouse(ticks)
    hid.push(y=-FULL)
    assert device.read() is not None
    hid.plugged = False
    assert device.read() is None
    assert device.events() == ("stop",)
    assert "SpaceMouse is gone" in str(device.problem)
    ticks.now_s += 5.0
    assert device.read() is None and device.events() == ()
    hid.plugged = True
    ticks.now_s += 5.0
    assert device.read() is None and device.problem is None
    hid.push(x=FULL)
    assert close_to(device.read(), [0, -1, 0])
    assert hid.opened == 2


def test_what_was_pushed_while_nobody_looked_is_no_motion(hid):
    ticks = Ticks()
    device = mouse(ticks)
    device.read()
    hid.push(y=-FULL)
    hid.buttons(left=True, right=True)
    ticks.now_s += 3.0  # the arm was being reset
    assert device.read() is None
    assert device.events() == ("stop",)


def test_buttons_of_the_mouse(hid):
    ticks = Ticks()
    device = mouse(ticks, "gripper", dead_zone=0.1)

    def click(held_s: float, **which: bool) -> tuple[str, ...]:
        hid.buttons(**which)
        assert device.events() in ((), ("stop",))
        ticks.now_s += held_s
        hid.buttons()
        return device.events()

    assert click(0.1, right=True) == ("accept",)
    assert click(0.3, right=True) == ("accept",)
    device.events()
    hid.buttons(right=True)
    for _ in range(5):
        assert device.events() == ()
        ticks.now_s += 0.2
    hid.buttons()
    assert device.events() == ("reject",)
    assert device.read() is None
    assert click(0.1, left=True) == ()
    assert close_to(device.read(), [0, 0, 0, -1])  # it was open
    assert device.read() is None
    assert click(0.1, left=True) == ()
    assert close_to(device.read(), [0, 0, 0, 1])


def test_both_buttons_stop_and_neither_does_what_it_does_alone(hid):
    device = mouse(Ticks(), "gripper")
    hid.buttons(left=True)
    hid.buttons(left=True, right=True)
    hid.buttons(right=True)
    hid.buttons()
    assert device.events() == ("stop",)
    assert device.read() is None
    hid.buttons(right=True)
    hid.buttons()
    assert device.events() == ("accept",)


def test_a_mouse_that_is_not_there_or_not_known(hid, monkeypatch, capsys):
    hid.plugged = False
    with pytest.raises(InvalidInputError, match=r"no SpaceMouse can be opened.*udev"):
        make_teleop("spacemouse", env_shape())
    hid.plugged = True
    with pytest.raises(InvalidInputError, match="Unknown device: 'Mole'"):
        make_teleop("spacemouse", env_shape(), model="Mole")
    with pytest.raises(InvalidInputError, match=r"unknown button of the SpaceMouse 'TOP'.*LEFT"):
        make_teleop("spacemouse", env_shape(), grip_button="TOP")
    make_teleop("spacemouse", env_shape())
    assert capsys.readouterr().out == ""  # the library greets the device there
    monkeypatch.setitem(sys.modules, "pyspacemouse", None)
    with pytest.raises(MissingDependencyError, match=r"robot_rl\[teleop\]"):
        make_teleop("spacemouse", env_shape())


# -- gamepad ------------------------------------------------------------------------------------


class Pad:
    """A virtual gamepad inside SDL: axes left x, y, right x, y, triggers left, right."""

    def __init__(self) -> None:
        controller, _ = gamepad._library()
        controller.init()
        path = next(line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines()
                    if "libSDL2-2" in line)
        self._sdl = ctypes.CDLL(path)
        self._sdl.SDL_JoystickOpen.restype = ctypes.c_void_p
        self._sdl.SDL_JoystickSetVirtualAxis.argtypes = [
            ctypes.c_void_p, ctypes.c_int, ctypes.c_int16]
        self._sdl.SDL_JoystickSetVirtualButton.argtypes = [
            ctypes.c_void_p, ctypes.c_int, ctypes.c_uint8]
        self._index = self._sdl.SDL_JoystickAttachVirtual(1, 6, 15, 0)
        self._pad = self._sdl.SDL_JoystickOpen(self._index)
        for trigger in (4, 5):
            self.axis(trigger, -32768)
        controller.update()

    def axis(self, number: int, value: int) -> None:
        assert self._sdl.SDL_JoystickSetVirtualAxis(self._pad, number, value) == 0

    def button(self, number: int, down: bool) -> None:
        assert self._sdl.SDL_JoystickSetVirtualButton(self._pad, number, down) == 0

    def unplug(self) -> None:
        if self._index >= 0:
            self._sdl.SDL_JoystickDetachVirtual(self._index)
            self._index = -1


@pytest.fixture
def pad() -> Iterator[Pad]:
    pytest.importorskip("pygame")
    found = Pad()
    yield found
    found.unplug()


def hand(ticks: Ticks, *parts: str, **options: Any) -> HandTeleop:
    chosen = gamepad.GamepadOptions(**options)
    return HandTeleop(gamepad.Gamepad(chosen), env_shape(*parts), chosen, ticks)


@pytest.mark.parametrize(
    ("axis", "value", "expected"),
    [
        (1, -32767, [1, 0, 0, 0]), (1, 32767, [-1, 0, 0, 0]),
        (0, -32767, [0, 1, 0, 0]), (0, 32767, [0, -1, 0, 0]),
        (5, 32767, [0, 0, 1, 0]), (4, 32767, [0, 0, -1, 0]),
        (2, -32767, [0, 0, 0, 1]),
    ],
)
def test_sticks_and_triggers_move_the_tool(pad, axis, value, expected):
    device = hand(Ticks(), "yaw")
    assert device.read() is None
    pad.axis(axis, value)
    assert close_to(device.read(), expected)
    device.close()


def test_buttons_of_the_pad(pad):
    ticks = Ticks()
    device = hand(ticks, "gripper")

    def click(number: int) -> tuple[str, ...]:
        pad.button(number, True)
        events = device.events()
        pad.button(number, False)
        return events + device.events()

    assert [click(n) for n in (3, 2, 1, 5)] == [("accept",), ("reject",), ("stop",), ("quit",)]
    assert click(0) == ()
    assert close_to(device.read(), [0, 0, 0, -1])
    device.gripper_is(0.0)  # a policy closed it meanwhile
    assert click(0) == ()
    assert close_to(device.read(), [0, 0, 0, 1])
    device.close()


def test_only_both_shoulder_buttons_held_for_long_re_arm(pad):
    ticks = Ticks()
    device = hand(ticks)
    pad.button(9, True)
    events = []
    for _ in range(30):
        ticks.now_s += 0.1
        events += device.events()
    assert events == []
    pad.button(10, True)
    for _ in range(8):
        ticks.now_s += 0.1
        events += device.events()
    assert events == []
    for _ in range(30):
        ticks.now_s += 0.1
        events += device.events()
    assert events == ["rearm"]
    device.close()


def test_a_pad_unplugged_mid_motion_stops_the_arm(pad):
    device = hand(Ticks())
    pad.axis(1, -32767)
    assert device.read() is not None
    pad.unplug()
    assert device.read() is None
    assert device.events() == ("stop",)
    assert "gamepad is gone" in str(device.problem)
    device.close()


def test_a_stick_that_never_moves_again_counts_as_let_go(pad):
    ticks = Ticks()
    device = hand(ticks)
    pad.axis(1, -32767)
    seen = []
    for _ in range(30):
        seen.append(device.read() is not None)
        ticks.now_s += 0.1
    assert seen == [True] * 21 + [False] * 9
    pad.axis(1, -32000)
    assert device.read() is not None
    device.close()


def test_a_pad_that_is_not_there():
    pytest.importorskip("pygame")
    with pytest.raises(InvalidInputError, match="there is no gamepad 0: 0 are plugged in"):
        hand(Ticks())


# -- an operator at a device --------------------------------------------------------------------


def test_an_operator_who_stops_is_heard_at_once_and_once(terminal):
    operator = Operator(keys_of(terminal, Ticks()))
    terminal.type(b"w")
    assert operator.read() is not None and operator.watch() is None
    terminal.type(b" ")
    assert operator.read() is None
    assert operator.watch() == "the operator stopped the arm"
    assert operator.watch() is None  # it was said
    assert operator.events() == ("stop",)
    operator.release()
    assert operator.watch() is None and operator.read() is not None
    operator.close()


def test_an_operator_whose_device_is_gone_cannot_re_arm(hid):
    operator = Operator(mouse(Ticks()))
    hid.plugged = False
    assert "SpaceMouse is gone" in str(operator.watch())
    assert "SpaceMouse is gone" in str(operator.watch())
    with pytest.raises(InvalidInputError, match="bring it back first"):
        operator.release()


def test_a_watchdog_that_asks_while_the_device_is_read_never_waits():
    inside, go = threading.Event(), threading.Event()

    class Slow:
        def read(self) -> Any:
            inside.set()
            assert go.wait(30.0)

        def events(self) -> tuple[str, ...]:
            return ()

    operator = Operator(Slow())
    reader = threading.Thread(target=operator.read)
    reader.start()
    assert inside.wait(30.0)
    asked_s = time.monotonic()
    assert operator.watch() is None
    assert time.monotonic() - asked_s < 5.0, "it waited for the other thread"
    go.set()
    reader.join(30.0)


def test_keys_of_the_terminal_stand_beside_another_device(hid, terminal):
    operator = Operator(mouse(Ticks()), keys_of(terminal, Ticks()))
    terminal.type(b"w\r")
    assert operator.read() is None
    terminal.type(b"RR")
    assert operator.events() == ("accept", "rearm")
    hid.push(y=-FULL)
    assert close_to(operator.read(), [1, 0, 0])
    operator.close()


class Said:
    """A device that says what it is told to."""

    interactive = True

    def __init__(self) -> None:
        self.waiting: list[str] = []

    def say(self, *events: str) -> None:
        self.waiting += events

    def read(self) -> None:
        return None

    def events(self) -> tuple[str, ...]:
        said, self.waiting = tuple(self.waiting), []
        return said


def test_a_re_arm_from_before_a_stop_does_not_release_it():
    device = Said()
    operator = Operator(device)  # type: ignore[arg-type]
    device.say("rearm")
    assert operator.watch() is None
    device.say("accept", "stop")
    assert operator.watch() is not None
    assert operator.events() == ("accept", "stop")
    device.say("rearm", "stop", "quit")
    assert operator.events() == ("stop", "quit")
    device.say("stop", "rearm")
    assert operator.events() == ("stop", "rearm")


def test_a_re_arm_from_before_any_hold_can_be_forgotten():
    device = Said()
    operator = Operator(device)  # type: ignore[arg-type]
    device.say("rearm", "quit")
    operator.watch()
    operator.forget_rearm()
    assert operator.events() == ("quit",)
    device.say("rearm")
    assert operator.events() == ("rearm",)
