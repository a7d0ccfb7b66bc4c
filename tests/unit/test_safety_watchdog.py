"""Holds between programs and between steps: what the latch keeps, when the watchdog looks."""

from __future__ import annotations

import json
import os
import re
import threading
import time

import numpy as np
import pytest

from robot_rl.errors import LateCommandError, SafetyError
from robot_rl.safety import Latch, Watchdog
from robot_rl.safety.latch import state_folder
from tests.unit.safety_motion import PERIOD_S, cruise

# -- the latch ----------------------------------------------------------------------------------


def test_a_hold_is_kept_for_the_next_program_until_an_operator_removes_it(bench, tmp_path):
    latch = Latch("panda", "172.16.0.2:8080/a b", tmp_path / "new" / "state")
    assert latch.reason() is None and not latch.is_set()
    at = bench(latch=latch)
    cruise(at)
    at.safety.hold("a person came near")
    record = json.loads(latch.path.read_text())
    assert list(record["holds"].values()) == ["a person came near"] and record["released"] == []
    assert record["robot"] == "panda"
    assert record["address"] == "172.16.0.2:8080/a b"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", record["time"])
    assert latch.path.name == "hold-172.16.0.2_8080_a_b.json"
    assert [path.name for path in latch.path.parent.iterdir()] == [latch.path.name]

    def start() -> object:
        return bench(latch=Latch("panda", "172.16.0.2:8080/a b", tmp_path / "new" / "state"))

    again = start()
    assert again.safety.held == "a person came near"
    with pytest.raises(SafetyError, match="a person came near"):
        again.safety.move(np.zeros(3), 0.0, PERIOD_S)
    again.safety.watch()
    assert again.safety.held is not None and again.arm.recovered == 0
    other = bench(latch=Latch("panda", "172.16.0.3", tmp_path / "new" / "state"))
    assert other.safety.held is None
    latch.clear()
    latch.clear()
    again.safety.watch()
    assert again.safety.held is None and again.arm.recovered == 1
    again.step([0.01, 0.0, 0.0])
    # The first program is released at its next look as well, where it is by then at rest.
    at.wait(1.0)
    at.safety.watch()
    assert at.safety.held is None and at.arm.recovered == 1


def test_rearming_removes_what_was_kept(bench, tmp_path):
    latch = Latch("panda", "x", tmp_path)
    at = bench(latch=latch)
    at.safety.hold("stop")
    at.wait(0.5)
    assert latch.is_set()
    at.safety.rearm()
    assert not latch.is_set() and at.safety.held is None


def test_a_release_that_the_arm_does_not_follow_holds_on(bench, tmp_path, monkeypatch):
    latch = Latch("panda", "x", tmp_path)
    at = bench(latch=latch)
    at.safety.hold("stop")
    at.wait(0.5)

    def pressed() -> None:
        raise SafetyError("the emergency stop is still pressed")

    monkeypatch.setattr(at.arm, "recover", pressed)
    latch.clear()
    at.safety.watch()
    assert at.safety.held == "stop" and latch.reason() == "stop"


def test_a_hold_that_could_not_be_written_is_no_release(bench, tmp_path):
    latch = Latch("panda", "x", tmp_path / "file")
    at = bench(latch=latch)
    cruise(at)
    (tmp_path / "file").rmdir()
    (tmp_path / "file").write_text("")
    count = len(at.arm.commands)
    at.safety.hold("stop")
    assert len(at.arm.commands) == count + 1, "the arm was stopped all the same"
    at.wait(1.0)
    at.safety.watch()
    assert at.safety.held == f"stop (and this hold could not be kept in {latch.path})"
    assert at.arm.recovered == 0 and latch.write("stop") is False


@pytest.mark.parametrize("content", ["", "{}", "[]", "{\"reason\"", "\xff"])
def test_a_latch_that_cannot_be_read_holds(bench, tmp_path, content):
    latch = Latch("panda", "x", tmp_path)
    latch.path.write_text(content, encoding="latin-1")
    assert re.match(rf"{re.escape(str(latch.path))} cannot be read \(", latch.reason())
    at = bench(latch=latch)
    assert at.safety.held == latch.reason()


def test_the_state_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("ROBOT_RL_STATE_DIR", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "xdg"))
    assert state_folder() == tmp_path / "own"
    assert Latch("a", "b").path == tmp_path / "own" / "hold-b.json"
    monkeypatch.delenv("ROBOT_RL_STATE_DIR")
    assert state_folder() == tmp_path / "xdg" / "robot_rl"
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert state_folder() == tmp_path / "home" / ".local" / "state" / "robot_rl"


def test_a_latch_is_written_in_one_piece(tmp_path, monkeypatch):
    latch = Latch("panda", "x", tmp_path)
    latch.write("first")

    def full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full)
    assert latch.write("second") is False
    assert latch.reason() == "first"


# -- the watchdog -------------------------------------------------------------------------------


class Counter:
    def __init__(self) -> None:
        self.looks: list[float] = []
        self.threads: set[str] = set()
        self.enough = threading.Event()

    def watch(self) -> None:
        self.looks.append(time.monotonic())
        self.threads.add(threading.current_thread().name)
        if len(self.looks) >= 5:
            self.enough.set()


def test_the_watchdog_looks_until_it_is_closed():
    counter = Counter()
    with Watchdog(counter, 0.01):
        assert counter.enough.wait(10.0)
    count = len(counter.looks)
    assert counter.threads == {"robot_rl-watchdog"}
    assert np.diff(counter.looks).min() >= 0.009
    time.sleep(0.05)
    assert len(counter.looks) == count
    assert not [t for t in threading.enumerate() if t.name == "robot_rl-watchdog"]


def test_the_watchdog_holds_an_arm_whose_commander_is_gone(bench):
    at = bench()
    at.step([0.02, 0.0, 0.0])
    at.wait(0.06)
    with Watchdog(at.safety):
        until = time.monotonic() + 10.0
        while at.safety.held is None and time.monotonic() < until:
            time.sleep(0.005)
    assert "no command" in at.safety.held


def test_commands_and_looks_from_two_threads_do_not_meet(bench):
    at = bench()
    inside, worst = [0], [0]
    command = at.arm.command

    def slow(setpoints):
        inside[0] += 1
        worst[0] = max(worst[0], inside[0])
        time.sleep(0.02)
        inside[0] -= 1
        return command(setpoints)

    at.arm.command = slow
    stop = threading.Thread(target=lambda: (time.sleep(0.01), at.safety.hold("beside")))
    stop.start()
    at.safety.move([0.01, 0.0, 0.0], 0.0, PERIOD_S)
    stop.join()
    assert worst[0] == 1 and at.safety.held == "beside" and len(at.arm.commands) == 2


def test_late_errors_are_errors_of_this_package():
    with pytest.raises(LateCommandError):
        raise LateCommandError("row 3 is gone")
