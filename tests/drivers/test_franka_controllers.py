"""What is believed of a controller manager that does not answer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from robot_rl_drivers.franka import controllers as module
from robot_rl_drivers.franka.controllers import JOINT, SILENT_S, Controllers


class Question:
    """The future of one call."""

    def __init__(self) -> None:
        self.answer: Any = None
        self._tell: Any = None

    def done(self) -> bool:
        return self.answer is not None

    def exception(self) -> None:
        return None

    def result(self) -> Any:
        return self.answer

    def add_done_callback(self, tell: Any) -> None:
        self._tell = tell

    def say(self, **states: str) -> None:
        each = [SimpleNamespace(name=name, state=state) for name, state in states.items()]
        self.answer = SimpleNamespace(controller=each)
        self._tell(self)


@pytest.fixture
def manager(monkeypatch):
    asked: list[Question] = []

    def call_async(request: object) -> Question:
        asked.append(Question())
        return asked[-1]

    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(module.time, "monotonic", lambda: clock.now)
    monkeypatch.setattr(module, "service", lambda name: SimpleNamespace(Request=object))
    node = SimpleNamespace(create_client=lambda *_: SimpleNamespace(call_async=call_async))
    return SimpleNamespace(asked=asked, clock=clock, controllers=Controllers(node, JOINT))


def test_one_lost_answer_is_asked_for_again(manager):
    manager.controllers.ask()
    manager.controllers.ask()
    assert len(manager.asked) == 1
    manager.clock.now += 1.5
    manager.controllers.ask()
    assert len(manager.asked) == 2
    manager.asked[1].say(**{JOINT: "active"})
    assert manager.controllers.fault() is None


def test_what_was_heard_is_not_believed_for_ever(manager):
    assert manager.controllers.fault() is None
    manager.controllers.ask()
    manager.asked[0].say(**{JOINT: "active"})
    assert manager.controllers.fault() is None
    manager.clock.now += SILENT_S + 0.1
    assert "has not answered for 3.1 s" in (manager.controllers.fault() or "")


def test_an_answer_without_controllers_is_a_fault(manager):
    manager.controllers.ask()
    manager.asked[0].say()
    assert "only none" in (manager.controllers.fault() or "")
