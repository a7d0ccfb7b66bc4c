"""Grippers of the drivers: what they say wrongly, and what they forget at a hold."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest

from robot_rl.errors import StaleDataError
from robot_rl.specs import load_robot
from robot_rl_drivers.franka.gripper import NewestOpening
from robot_rl_drivers.sawyer.gripper import SawyerGripper


class Robot:
    """The topics and the clock of one gripper."""

    def __init__(self) -> None:
        self.time_s, self.sent, self.stamps = 100.0, [], 0
        self.gripper = SawyerGripper(self, load_robot("sawyer"), self)  # type: ignore[arg-type]

    def now_s(self) -> float:
        return self.time_s

    def stamp(self) -> int:
        self.stamps += 1
        return self.stamps

    def publisher(self, *_: object) -> Any:
        return SimpleNamespace(message=lambda **fields: SimpleNamespace(**fields),
                               publish=self.sent.append)

    def subscribe(self, topic: str, kind: str, callback: Any) -> None:
        self.tell = callback

    def say(self, later_s: float = 0.0, commands: tuple[int, ...] = (), **signals: str) -> None:
        self.time_s += later_s
        given = {"position_response_m": "[0.02]", "is_calibrated": "[true]",
                 "has_error": "[false]", **signals}
        self.tell(SimpleNamespace(commands=commands, signals=[
            SimpleNamespace(name=name, data=data) for name, data in given.items()]))


@pytest.mark.parametrize("data", ["[NaN]", '["abc"]', "[null]", "[1e999]", "[true]", "[[1]]",
                                  '[{"a": 1}]', "[-Infinity]"])
def test_a_position_that_is_no_number_is_no_opening(data):
    robot = Robot()
    robot.say()
    assert 0.0 < robot.gripper.opening(1.0) < 1.0 and robot.gripper.watch() is None
    robot.say(position_response_m=data)
    with pytest.raises(StaleDataError, match="as its position"):
        robot.gripper.opening(1.0)
    assert "as its position" in (robot.gripper.watch() or "")


@pytest.mark.parametrize("data", ["[" * 5000, "nan", "", "{}", "[]"])
def test_signals_that_are_no_lists_are_left_out(data):
    robot = Robot()
    robot.say(extra=data)
    assert robot.gripper.watch() is None


def test_a_command_is_sent_again_for_a_while_and_not_after_a_halt():
    robot = Robot()
    robot.say()
    robot.gripper.command(0.0)
    robot.say(0.6)
    assert len(robot.sent) == 2
    for _ in range(20):
        robot.say(0.6)
    assert len(robot.sent) < 6
    assert "not acknowledged" in (robot.gripper.watch() or "")
    robot.gripper.command(1.0)
    count = len(robot.sent)
    robot.gripper.halt()
    robot.say(0.6)
    assert len(robot.sent) == count and robot.gripper.watch() is None
    robot.gripper.command(1.0)
    assert len(robot.sent) == count + 1


def test_a_recovered_gripper_does_not_go_on_with_what_it_was_told_before():
    robot = Robot()
    robot.say()
    robot.gripper.command(0.0)
    robot.gripper.recover()
    robot.say(0.6)
    assert len(robot.sent) == 1


class Slow(NewestOpening):
    """Goes to each opening when it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.went: list[float] = []
        self.began, self.go_on = threading.Event(), threading.Event()
        self._start()

    def _go(self, opening: float) -> None:
        self.went.append(opening)
        self.began.set()
        assert self.go_on.wait(10.0)


def test_what_waits_behind_a_goal_is_forgotten_at_a_halt():
    hand = Slow()
    hand.command(0.0)
    assert hand.began.wait(10.0)
    hand.command(1.0)
    hand.halt()
    hand.go_on.set()
    hand.close()
    assert hand.went == [0.0]


def test_after_a_halt_the_same_opening_is_sent_again():
    hand = Slow()
    hand.go_on.set()
    hand.command(0.5)
    assert hand.began.wait(10.0)
    hand.halt()
    hand.began.clear()
    hand.command(0.5)
    assert hand.began.wait(10.0)
    hand.close()
    assert hand.went == [0.5, 0.5]
