"""Kept holds: released only by an operator's sign, whatever else happens to their file."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
from pathlib import Path

import numpy as np
import pytest

from robot_rl.errors import InvalidInputError, SafetyError
from robot_rl.safety import Latch, SafetyFilter
from robot_rl.safety.latch import resolved, state_folder

PERIOD_S = 0.1


def make(folder: Path) -> Latch:
    return Latch("panda", "x", folder)


def held_arm(bench, folder: Path):
    at = bench(latch=make(folder))
    at.safety.hold("stop")
    at.wait(0.5)
    return at


# -- what releases, and what does not -----------------------------------------------------------


@pytest.mark.parametrize("what", ["removed", "folder gone", "folder a file", "loop", "dangling",
                                  "directory", "rubbish", "another's release", "null", "no name"])
def test_only_an_operators_sign_releases(bench, tmp_path, what):
    folder = tmp_path / "state"
    at = held_arm(bench, folder)
    path = make(folder).path
    if what in ("folder gone", "folder a file"):
        shutil.rmtree(folder)
    else:
        path.unlink()
    if what == "folder a file":
        folder.write_text("")
    elif what == "loop":
        path.symlink_to(path.name)
    elif what == "dangling":
        path.symlink_to(tmp_path / "nowhere")
    elif what == "directory":
        path.mkdir()
    elif what == "rubbish":
        path.write_text("[" * 200_000)
    elif what == "another's release":
        path.write_text('{"holds": {}, "released": ["somebody"]}')
    elif what == "null":
        path.write_text('{"holds": {}, "released": null}')
    elif what == "no name":
        path.write_text('{"holds": {}, "released": []}')
    for _ in range(3):
        at.safety.watch()
        at.wait(2.0)
    assert at.safety.held.startswith("stop") and at.arm.recovered == 0
    kept = what not in ("folder a file", "directory")
    note = f" (and this hold could not be kept in {path})"
    assert at.safety.held == "stop" + note * (not kept)
    if kept:
        assert make(folder).reason() == "stop", "it is written anew"
    else:
        assert make(folder).is_set() and "cannot be read" in make(folder).reason()
        shutil.rmtree(path) if path.is_dir() else folder.unlink()
        at.safety.watch()
        assert at.safety.held == make(folder).reason() == "stop"


@pytest.mark.parametrize("content", ["{}", "3", '{"holds": {}, "released": 3}',
                                     '{"holds": 3, "released": []}', '{"reason": "x"}'])
def test_what_is_neither_a_hold_nor_a_release_holds(tmp_path, content):
    latch = make(tmp_path)
    latch.path.write_text(content)
    assert latch.is_set() and not latch.released() and "cannot be read" in latch.reason()


def test_a_dangling_link_holds_the_next_program(tmp_path):
    latch = make(tmp_path)
    latch.path.symlink_to(tmp_path / "nowhere")
    assert latch.is_set() and "cannot be read" in str(latch.reason())


def test_a_hold_without_a_reason_is_one(bench, tmp_path):
    latch = make(tmp_path)
    latch.path.write_text('{"holds": {"a": " "}, "released": []}')
    assert latch.reason() == "no reason was given" and latch.is_set()
    for reason in ("", "  \n"):
        at = bench()
        at.safety.hold(reason)
        assert at.safety.held == "no reason was given"

    def broken() -> str | None:
        raise TimeoutError

    at = bench()
    at.safety.add_watch("x", broken)
    at.safety.watch()
    assert at.safety.held == "TimeoutError"


def test_a_release_is_the_sign_for_every_program_that_the_hold_holds(bench, tmp_path):
    first, second = held_arm(bench, tmp_path), bench(latch=make(tmp_path))
    (name,) = json.loads(make(tmp_path).path.read_text())["holds"]
    operator = make(tmp_path)
    assert operator.reason() == "stop"
    operator.clear()
    record = json.loads(operator.path.read_text())
    assert record["holds"] == {} and record["released"] == [name]
    assert not operator.is_set() and operator.reason() is None
    assert bench(latch=make(tmp_path)).safety.held is None, "and none for the next"
    old = operator.path.read_text()
    for at in (first, second):
        at.safety.watch()
        assert at.safety.held is None and at.arm.recovered == 1
    first.safety.hold("again")
    for _ in range(2):
        first.safety.watch()
        assert first.safety.held == "again", "one sign releases one hold"
        operator.path.write_text(old)


def test_a_hold_holds_every_program_on_the_arm(bench, tmp_path):
    at, other = bench(latch=make(tmp_path)), bench(latch=make(tmp_path))
    other.safety.watch()
    assert other.safety.held is None
    at.safety.hold("somebody was hit")
    other.safety.watch()
    assert other.safety.held == "somebody was hit"
    assert make(tmp_path).reason() == "somebody was hit"
    other.wait(1.0)
    other.safety.rearm()
    at.wait(1.0)
    at.safety.watch()
    assert at.safety.held is None and other.safety.held is None


def test_each_hold_is_released_by_itself(bench, tmp_path):
    at, other = bench(latch=make(tmp_path)), bench(latch=make(tmp_path))
    other.safety.hold("a stop")
    at.safety.hold("60 N")
    for one in (at, other):
        one.wait(1.0)
    assert make(tmp_path).reason() == "a stop; 60 N"
    message = re.escape("the arm is held for another reason as well (60 N)")
    with pytest.raises(SafetyError, match=message):
        other.safety.rearm()
    at.safety.watch()
    assert at.safety.held == "60 N" and other.safety.held == "a stop"
    # Who has been told of it may release it.
    other.safety.rearm()
    assert other.safety.held is None and not make(tmp_path).is_set()
    at.safety.watch()
    assert at.safety.held is None


def test_a_release_does_not_cover_a_hold_that_came_meanwhile(bench, tmp_path, monkeypatch):
    at = held_arm(bench, tmp_path)
    operator = make(tmp_path)
    assert operator.reason() == "stop"
    operator.clear()
    monkeypatch.setattr(at.arm, "recover", lambda: make(tmp_path).write("a person came near"))
    at.safety.watch()
    assert at.safety.held == "stop" and make(tmp_path).reason() == "a person came near"
    with pytest.raises(SafetyError, match=re.escape("as well (a person came near)")):
        operator.clear()
    assert make(tmp_path).is_set()
    operator.clear()
    assert not make(tmp_path).is_set()


def test_a_program_that_is_not_held_releases_nothing(bench, tmp_path):
    at = bench(latch=make(tmp_path))
    make(tmp_path).write("another's")
    with pytest.raises(SafetyError, match=re.escape("as well (another's)")):
        at.safety.rearm()
    assert make(tmp_path).reason() == "another's"


def test_the_names_of_released_holds_do_not_pile_up(tmp_path):
    latch = make(tmp_path)
    for k in range(60):
        assert latch.write(f"{k}")
        latch.clear()
        assert latch.released()
    assert len(json.loads(latch.path.read_text())["released"]) == 50
    latch.clear()
    assert len(set(json.loads(latch.path.read_text())["released"])) == 50


def test_a_release_that_fails_is_tried_once(bench, tmp_path, monkeypatch):
    at = held_arm(bench, tmp_path)
    tries = []

    def pressed() -> None:
        tries.append(1)
        raise SafetyError("the emergency stop is still pressed")

    monkeypatch.setattr(at.arm, "recover", pressed)
    make(tmp_path).clear()
    with monkeypatch.context() as full:
        full.setattr(os, "fsync", no_space)
        for _ in range(3):
            at.safety.watch()
    assert len(tries) == 1 and at.safety.held.startswith("stop (and this hold could not be kept")
    at.wait(1.0)
    at.safety.watch()
    assert len(tries) == 1 and at.safety.held == "stop" and make(tmp_path).is_set()


@pytest.mark.parametrize("how", ["directory", "full"])
def test_a_hold_that_cannot_be_removed_stays(bench, tmp_path, monkeypatch, how):
    at = held_arm(bench, tmp_path)
    path = make(tmp_path).path
    if how == "full":
        monkeypatch.setattr(os, "fsync", no_space)
    else:
        path.unlink()
        path.mkdir()
    with pytest.raises(SafetyError, match=f"^the hold in {path} cannot be released \\("):
        at.safety.rearm()
    assert at.safety.held is not None and make(tmp_path).is_set()


def test_a_hold_in_a_file_that_cannot_be_read_can_be_released(bench, tmp_path):
    make(tmp_path).path.write_text("rubbish")
    at = bench(latch=make(tmp_path))
    at.safety.rearm()
    assert at.safety.held is None and not make(tmp_path).is_set()


def test_there_is_nothing_to_release_without_a_hold(tmp_path):
    latch = make(tmp_path)
    assert not latch.released()
    latch.clear()
    assert latch.reason() is None and not latch.released()


# -- writing ------------------------------------------------------------------------------------


def no_space(*_: object) -> None:
    raise OSError("no space left")


def test_a_hold_that_cannot_be_written_says_so_and_is_tried_again(bench, tmp_path, monkeypatch):
    at, latch = bench(latch=make(tmp_path)), make(tmp_path)
    tries = []

    def full(*_: object) -> None:
        tries.append(1)
        no_space()

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        at.safety.hold("stop")
        note = f"stop (and this hold could not be kept in {latch.path})"
        assert at.safety.held == note and not latch.is_set()
        for _ in range(5):
            at.safety.watch()
        assert len(tries) == 1
        at.wait(1.0)
        at.safety.watch()
        assert len(tries) == 2 and at.safety.held == note
    at.safety.watch()
    assert not latch.is_set(), "not before a second has passed"
    at.wait(1.0)
    at.safety.watch()
    assert at.safety.held == latch.reason() == "stop"


def test_the_next_hold_is_written_at_once(bench, tmp_path, monkeypatch):
    at = bench(latch=make(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", no_space)
        at.safety.hold("stop")
        assert at.safety.held != "stop"
    at.wait(0.5)
    at.safety.rearm()
    at.safety.hold("again")
    assert make(tmp_path).reason() == "again"


def test_a_hold_that_cannot_be_written_is_not_released_with_the_one_before(
    bench, tmp_path, monkeypatch
):
    at = held_arm(bench, tmp_path)
    at.safety.rearm()
    monkeypatch.setattr(os, "fsync", no_space)
    at.safety.hold("again")
    at.wait(0.5)
    at.safety.watch()
    assert at.safety.held.startswith("again") and at.arm.recovered == 1


@pytest.mark.parametrize("where", ["write", "brake"])
def test_an_interrupted_hold_is_written_all_the_same(bench, tmp_path, monkeypatch, where):
    at = bench(latch=make(tmp_path))
    at.safety.move([0.02, 0.0, 0.0], 0.0, PERIOD_S)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if where == "write":
            patch.setattr(os, "fsync", interrupt)
        else:
            patch.setattr(at.safety.planner, "brake", interrupt)
        with pytest.raises(KeyboardInterrupt):
            at.safety.hold("stop")
    assert make(tmp_path).is_set() == (where == "brake")
    at.safety.hold("again")
    assert at.safety.held == make(tmp_path).reason() == "stop"


def test_the_end_of_a_program_writes_what_was_not_written(bench, tmp_path, monkeypatch):
    at = bench(latch=make(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", no_space)
        at.safety.hold("stop")
    at.wait(1.0)
    assert at.safety.settle() is True
    assert at.safety.held == make(tmp_path).reason() == "stop"


def test_an_arm_whose_holds_cannot_be_kept_is_not_driven(bench, tmp_path):
    (tmp_path / "file").write_text("")
    latch = make(tmp_path / "file")
    with pytest.raises(InvalidInputError, match=f"^holds cannot be kept in {tmp_path / 'file'} \\("
                                                ".*ROBOT_RL_STATE_DIR"):
        bench(latch=latch)
    fine = make(tmp_path / "new" / "folder")
    bench(latch=fine)
    assert list(fine.path.parent.iterdir()) == []


# -- where --------------------------------------------------------------------------------------


def test_a_state_folder_is_the_same_wherever_a_program_starts(monkeypatch, tmp_path):
    monkeypatch.setenv("ROBOT_RL_STATE_DIR", "here")
    with pytest.raises(InvalidInputError, match=r"^ROBOT_RL_STATE_DIR is 'here', should be an abs"):
        state_folder()
    monkeypatch.delenv("ROBOT_RL_STATE_DIR")
    monkeypatch.setenv("XDG_STATE_HOME", "there")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert state_folder() == tmp_path / ".local" / "state" / "robot_rl"
    def nobody() -> Path:
        raise RuntimeError("no home")

    monkeypatch.setattr(Path, "home", nobody)
    with pytest.raises(InvalidInputError, match=r"^there is no home folder to keep holds in: "):
        state_folder()
    monkeypatch.setattr(Path, "home", lambda: Path("."))
    with pytest.raises(InvalidInputError, match=r"set ROBOT_RL_STATE_DIR to an absolute path$"):
        state_folder()


def test_one_arm_has_one_address(monkeypatch):
    def look_up(host: str) -> str:
        known = {"localhost": "127.0.0.1", "me": "127.0.1.1", "sawyer.lab": "10.0.0.5",
                 "10.0.0.5": "10.0.0.5"}
        if host == "b\u00fccher":
            raise UnicodeError("a label is empty")
        if host not in known:
            raise OSError("not known")
        return known[host]

    monkeypatch.setattr(socket, "gethostbyname", look_up)
    for given, one in (
        ("http://LOCALHOST:11311/", "http://127.0.0.1:11311"),
        ("http://me:11311", "http://127.0.0.1:11311"),
        ("HTTP://Sawyer.Lab:11311/right", "http://10.0.0.5:11311/right"),
        (" sawyer.lab ", "10.0.0.5"), ("10.0.0.5", "10.0.0.5"),
        ("sawyer.lab:8080", "10.0.0.5:8080"),
        ("Unknown:1", "unknown:1"), ("b\u00fccher", "b\u00fccher"), ("", ""),
    ):
        assert resolved(given) == one


# -- starts on hardware -------------------------------------------------------------------------


def test_an_arm_that_is_pushed_off_keeps_its_set_point(bench, tmp_path):
    at = bench(latch=make(tmp_path))
    at.step([0.02, 0.0, 0.0])
    at.safety.rest()
    at.wait(0.5)
    rest = at.safety.setpoint_rad
    for off in (0.0, 0.05, 0.1499):
        at.arm.position_rad = rest.copy()
        at.arm.position_rad[3] -= off
        at.safety.reset()
        assert np.array_equal(at.safety.setpoint_rad, rest)
    at.arm.position_rad[3] = rest[3] - 0.1501
    message = ("the arm is 0.15 rad from where it was sent, should be at most 0.15 rad: it was "
               "moved, or something holds it")
    with pytest.raises(SafetyError, match=re.escape(f"the arm is held ({message})")):
        at.safety.sync()
    assert at.safety.held == message and make(tmp_path).is_set()
    here = at.arm.position_rad.copy()
    at.arm.stuck = True
    at.wait(1.0)
    at.safety.rearm()
    assert np.array_equal(at.safety.setpoint_rad, here)


def test_nobody_places_real_hardware(bench, tmp_path):
    at = bench(latch=make(tmp_path))
    at.step([0.02, 0.0, 0.0])
    for ask in (at.safety.sync, at.safety.reset):
        with pytest.raises(SafetyError, match=r"^hardware is placed nowhere: "):
            ask(placed=True)


def test_the_first_start_of_real_hardware_is_where_it_is(bench, tmp_path):
    at = bench(latch=make(tmp_path))
    fresh = SafetyFilter(at.arm, at.gripper, at.clock, latch=make(tmp_path))
    fresh.sync()
    assert np.array_equal(fresh.setpoint_rad, at.arm.position_rad)
