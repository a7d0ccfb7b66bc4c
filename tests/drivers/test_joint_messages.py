"""Joint states over ROS: what is malformed, repeated or old is never taken for a state."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from robot_rl.errors import StaleDataError
from robot_rl.specs import load_robot
from robot_rl_drivers.franka import topics
from robot_rl_drivers.joint_messages import RESTARTED, Stamps, joint_values
from robot_rl_drivers.sawyer.state import SawyerState

NAMES = {"franka": [f"j{i}" for i in range(7)], "sawyer": list(load_robot("sawyer").joint_names)}


class Clock:
    def __init__(self) -> None:
        self.time_s = 100.0

    def now_s(self) -> float:
        return self.time_s

    def sleep_until(self, time_s: float) -> None:
        self.time_s = time_s


class Heard:
    """Either driver's joint states, with messages put in by hand."""

    def __init__(self, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.names, self.clock = NAMES[kind], Clock()
        if kind == "franka":
            monkeypatch.setattr(topics, "message", lambda name: None)
            monkeypatch.setattr(topics, "native", lambda qos: None)
            node = SimpleNamespace(resolve_topic_name=lambda name: name,
                                   create_subscription=lambda *_: None)
            states = topics.JointStates(node, "joint_states", self.names, self.clock)
            self.take, self.get, self.fault = states._receive, states.get, lambda: states.fault
        else:
            session: Any = SimpleNamespace(subscribe=lambda *_: None)
            state = SawyerState(session, load_robot("sawyer"), self.clock, print, lambda _: None)
            self.take, self.get = state._take_joints, state.joints
            self.fault = lambda: state._joints_fault(self.clock.now_s())

    def message(self, value: float, stamp_s: int, **changes: Any) -> Any:
        stamp = SimpleNamespace(sec=stamp_s, nanosec=0, secs=stamp_s, nsecs=0)
        n = len(self.names)
        fields = {"name": list(self.names), "position": [value] * n, "velocity": [0.5] * n,
                  "effort": [], **changes}
        return SimpleNamespace(header=SimpleNamespace(stamp=stamp), **fields)

    def first(self) -> float:
        return float(self.get(0.5).position_rad[0])


@pytest.fixture(params=["franka", "sawyer"])
def heard(request, monkeypatch):
    return Heard(request.param, monkeypatch)


def without_velocity(names):
    return {"velocity": []}


def too_few_velocities(names):
    return {"velocity": [0.0] * (len(names) - 1)}


def too_many_positions(names):
    return {"position": [0.2] * (len(names) + 2)}


def no_positions(names):
    return {"position": []}


def named_twice(names):
    return {"name": names + names, "position": [0.2] * 14, "velocity": [0.0] * 14}


def one_named_twice(names):
    return {"name": [*names, names[3]], "position": [0.2] * 8, "velocity": [0.0] * 8}


def one_missing(names):
    return {"name": [*names[:-1], "other"]}


def efforts_of_another_length(names):
    return {"effort": [1.0] * 3}


@pytest.mark.parametrize(("change", "words"), [
    (without_velocity, "0 of velocity for 7 names"), (too_few_velocities, "6 of velocity"),
    (too_many_positions, "9 of position for 7 names"), (no_positions, "0 of position"),
    (named_twice, "more than once"), (one_named_twice, "more than once"),
    (one_missing, "has no joint"), (efforts_of_another_length, "3 of effort"),
])
def test_malformed_messages_are_a_fault_and_no_state(heard, change, words):
    heard.take(heard.message(0.1, 1))
    assert heard.fault() is None and heard.get(0.5).velocity_rad_s == pytest.approx(0.5)
    heard.clock.time_s += 0.2
    heard.take(heard.message(0.3, 2, **change(heard.names)))
    assert heard.get(0.5).position_rad == pytest.approx(0.1)
    assert heard.get(0.5).velocity_rad_s == pytest.approx(0.5)
    with pytest.raises(StaleDataError, match=r"0\.2"):
        heard.get(0.1)
    assert words in (heard.fault() or "")
    heard.take(heard.message(0.4, 3))
    assert heard.fault() is None and heard.first() == pytest.approx(0.4)


@pytest.mark.parametrize("field", ["position", "velocity"])
def test_values_that_are_no_numbers_are_a_fault(heard, field):
    heard.take(heard.message(0.1, 1))
    values = [0.1] * 7
    values[2] = float("nan")
    heard.take(heard.message(0.1, 2, **{field: values}))
    assert heard.fault() is not None


def test_other_joints_on_the_same_topic_are_left_alone(heard):
    heard.take(heard.message(0.1, 1))
    heard.take(heard.message(0.0, 2, name=["finger"], position=[0.9], velocity=[]))
    assert heard.fault() is None and heard.first() == pytest.approx(0.1)
    wide = {"name": ["head", *reversed(heard.names)], "position": [9.0] + [0.2] * 7,
            "velocity": [9.0] + [0.3] * 7}
    heard.take(heard.message(0.0, 3, **wide))
    assert heard.first() == pytest.approx(0.2)
    assert heard.get(0.5).velocity_rad_s == pytest.approx(0.3)


def test_repeated_and_late_messages_are_not_fresh(heard):
    heard.take(heard.message(0.1, 10))
    heard.clock.time_s += 0.2
    heard.take(heard.message(0.2, 10))
    heard.take(heard.message(0.3, 9))
    with pytest.raises(StaleDataError):
        heard.get(0.1)
    heard.take(heard.message(0.4, 11))
    assert heard.first() == pytest.approx(0.4)


def test_a_clock_that_was_set_back_is_followed(heard):
    heard.take(heard.message(0.1, 5000))
    for i in range(10):
        heard.clock.time_s += 0.01
        heard.take(heard.message(0.2, 1000 + i))
    assert heard.first() == pytest.approx(0.2)
    assert heard.get(0.03)


def test_two_that_take_turns_do_not_pass_for_a_restart():
    stamps = Stamps()
    assert stamps.is_new((100, 0))
    for i in range(1, 10):
        assert not stamps.is_new((5 + i, 0))
        assert stamps.is_new((100 + i, 0))


def test_a_frozen_stamp_stays_old_and_a_restart_takes_a_few():
    stamps = Stamps()
    assert stamps.is_new((0, 0))
    assert not any(stamps.is_new((0, 0)) for _ in range(20))
    assert stamps.is_new((50, 0))
    found = [stamps.is_new((10 + i, 0)) for i in range(RESTARTED)]
    assert found == [False] * (RESTARTED - 1) + [True]


def test_values_come_in_the_wanted_order():
    message = SimpleNamespace(name=["b", "x", "a"], position=[2.0, 9.0, 1.0],
                              velocity=[4.0, 9.0, 3.0], effort=[6.0, 9.0, 5.0])
    found = joint_values(message, ["a", "b"])
    assert found is not None
    assert np.array_equal(np.array(found), [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    assert joint_values(message, ["c"]) is None
