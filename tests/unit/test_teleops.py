"""When an operator's re-arm counts, and how a hold is shown."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from robot_rl.errors import SafetyError
from robot_rl.teleops import STOPPED, Operator
from robot_rl.training.demonstrate import Session, Tally
from robot_rl.training.driving import Drive


class Keys:
    """A device that was asked for what is in ``asked``."""

    interactive = True

    def __init__(self, *asked: str) -> None:
        self.asked = list(asked)

    def events(self) -> tuple[str, ...]:
        taken, self.asked = tuple(self.asked), []
        return taken

    def read(self) -> None:
        return None


@pytest.mark.parametrize(("asked", "heard"), [
    (("rearm", "stop"), ("stop",)), (("stop", "rearm"), ("stop", "rearm")),
    (("rearm", "accept", "stop", "rearm", "stop", "quit"), ("accept", "stop", "stop", "quit")),
    (("rearm", "reject"), ("rearm", "reject"))])
def test_a_stop_outdoes_the_re_arms_before_it(asked, heard):
    assert Operator(Keys(*asked)).events() == heard


def test_a_stop_outdoes_a_re_arm_that_a_watch_has_heard():
    operator = Operator(Keys("rearm"))
    assert operator.watch() is None
    operator.teleop.asked = ["stop"]
    assert operator.watch() == STOPPED and operator.events() == ("stop",)


def driven(bench, drive_class, keys):
    at = bench()
    drive = drive_class.__new__(drive_class)
    drive.world = SimpleNamespace(safety=at.safety, rig=SimpleNamespace(scene=None), parts=())
    drive.operator = Operator(keys)
    return at, drive


@pytest.mark.parametrize("quits", [False, True])
def test_a_re_arm_from_before_a_hold_is_none(bench, quits):
    keys = Keys("rearm", *(["quit"] if quits else []))
    at, session = driven(bench, Session, keys)
    said, looks = [], []
    session.tally, session.flag, session.say = Tally(), SimpleNamespace(stop=False), said.append

    def idle() -> None:
        looks.append(at.safety.held)
        assert len(looks) < 9
        at.wait(0.5)
        if len(looks) == 2:
            keys.asked = ["rearm"]

    session._idle = idle
    session.operator.watch()
    at.safety.hold("60 N")
    session._await_rearm("60 N")
    if quits:
        assert at.safety.held == "60 N" and session.tally.stopped == "the arm is held (60 N)"
    else:
        assert looks == ["60 N", "60 N", None] and said[-1] == "released"


def test_driving_re_arms_only_what_is_held_and_shows_it(bench):
    keys = Keys("rearm")
    at, drive = driven(bench, Drive, keys)
    drive._opening = None
    drive._listen()
    assert at.arm.recovered == 0 and "HELD" not in drive.describe()
    at.safety.hold("60 N")
    at.wait(1.0)
    assert drive.describe().endswith(" | HELD: 60 N")
    keys.asked = ["rearm", "stop"]
    drive._listen()
    at.wait(1.0)
    assert at.safety.held == "60 N"
    keys.asked = ["rearm"]
    drive._listen()
    assert at.safety.held is None and at.arm.recovered == 1
    with pytest.raises(SafetyError):
        at.safety.move([np.nan, 0.0, 0.0], 0.0, 0.1)
