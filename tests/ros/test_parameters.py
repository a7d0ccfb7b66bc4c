"""Parameters of the embedded runtime: types, ranges, and the services that other nodes call."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("cyclonedds")
pytest.importorskip("rosbags")

from robot_rl.errors import InvalidInputError
from robot_rl.ros import runtime
from robot_rl.ros.runtime import parameters
from robot_rl.ros.runtime.node import Parameter
from tests.waiting import until

Make = Callable[..., Any]


def described(**fields: Any) -> Any:
    return runtime.message("rcl_interfaces/msg/ParameterDescriptor")(**fields)


def real_range(low: float, high: float, step: float = 0.0) -> Any:
    kind = runtime.message("rcl_interfaces/msg/FloatingPointRange")
    return [kind(from_value=low, to_value=high, step=step)]


def whole_range(low: int, high: int, step: int = 0) -> Any:
    kind = runtime.message("rcl_interfaces/msg/IntegerRange")
    return [kind(from_value=low, to_value=high, step=step)]


def call(node: Any, short: str, service: str, **fields: Any) -> Any:
    """What another node's parameter service answers."""
    kind = runtime.service(f"rcl_interfaces/srv/{short}")
    client = node.create_client(kind, service)
    assert client.wait_for_service(5.0)
    answer = runtime.wait_for(client.call_async(kind.Request(**fields)), 5.0, service)
    node.destroy_client(client)
    return answer


def given(name: str, value: Any) -> Any:
    return runtime.message("rcl_interfaces/msg/Parameter")(
        name=name, value=parameters.to_message(value)
    )


@pytest.mark.parametrize(("value", "number"), [
    (None, 0), (True, 1), (np.True_, 1), (3, 2), (np.int32(3), 2), (0.5, 3), (np.float32(0.5), 3),
    ("a", 4), (b"ab", 5), ([True, False], 6), ([1, 2], 7), ((1, 2), 7), (np.array([1, 2]), 7),
    ([0.5], 8), (np.array([0.5, 1.5]), 8), (["a", "b"], 9), ([], 9),
])
def test_values_travel_and_come_back(value: Any, number: int) -> None:
    told = parameters.to_message(value)
    assert told.type == number == parameters.type_of(value)
    name = "rcl_interfaces/msg/ParameterValue"
    from robot_rl.ros.runtime.types import deserialize, serialize

    back = parameters.from_message(deserialize(serialize(told, name), name))
    assert back == parameters.plain(value)
    assert type(back) in (type(None), bool, int, float, str, bytes, list)


@pytest.mark.parametrize("value", [object(), [1, "a"], [[1]], {"a": 1}, [None], 1j])
def test_what_no_parameter_can_hold_is_refused(value: Any) -> None:
    with pytest.raises(InvalidInputError, match="is no parameter's value"):
        parameters.type_of(value)


def test_a_type_that_does_not_exist_is_refused() -> None:
    value = runtime.message("rcl_interfaces/msg/ParameterValue")(type=12)
    with pytest.raises(InvalidInputError, match=r"type is 12, should be in \[0, 9\]"):
        parameters.from_message(value)


def test_what_the_node_was_started_with_counts(node: Make) -> None:
    one = node("one", parameters={"speed": 0.5, "count": 4})
    assert one.declare_parameter("speed", 1.0).value == 0.5
    assert one.declare_parameter("mode", "joint").value == "joint"
    assert one.declare_parameter("count", 1, ignore_override=True).value == 1
    assert one.declare_parameter("later", float).value is None
    assert one.has_parameter("later") and not one.has_parameter("never")
    assert one.get_parameter("speed").value == 0.5
    with pytest.raises(InvalidInputError, match="did you mean 'speed'"):
        one.get_parameter("sped")
    with pytest.raises(InvalidInputError, match="'mode' is declared already"):
        one.declare_parameter("mode", "joint")
    for name in ("", "a..b", ".a"):
        with pytest.raises(InvalidInputError, match="should be words"):
            one.declare_parameter(name, 1)


def test_what_does_not_fit_is_refused_at_the_start_too(node: Make) -> None:
    one = node("one", parameters={"speed": 3.0, "mode": 7})
    with pytest.raises(InvalidInputError, match=r"'speed' is 3.0, should be .* in \[0, 1\]"):
        one.declare_parameter("speed", 1.0, described(floating_point_range=real_range(0.0, 1.0)))
    with pytest.raises(InvalidInputError, match="'mode' is 7, which is an integer, should be a"):
        one.declare_parameter("mode", "joint")
    assert not one.has_parameter("speed") and not one.has_parameter("mode")


@pytest.mark.parametrize(("value", "reason"), [
    (0.25, ""), (1.0, ""), (0.0, ""),
    (1.1, "should be a number in [0, 1] in steps of 0.25 from 0"), (-0.1, "should be a number"),
    (0.3, "in steps of 0.25"), (math.nan, "should be a number in"), (math.inf, "should be"),
    (1, "which is an integer, should be a double"), ("fast", "which is a string"),
    (None, "which is a not set"), ([0.5], "which is a double array"),
])
def test_ranges_steps_and_types_hold(node: Make, value: Any, reason: str) -> None:
    one = node("one")
    one.declare_parameter(
        "speed", 0.5, described(floating_point_range=real_range(0.0, 1.0, 0.25))
    )
    result, = one.set_parameters([Parameter("speed", value)])
    assert result.successful == (reason == "")
    assert reason in result.reason
    assert one.get_parameter("speed").value == (value if result.successful else 0.5)


def test_whole_numbers_lists_and_ends_of_ranges(node: Make) -> None:
    one = node("one")
    one.declare_parameter("count", 3, described(integer_range=whole_range(1, 10, 2)))
    one.declare_parameter("gains", [1.0, 2.0], described(floating_point_range=real_range(0, 5)))
    good = [Parameter("count", 9), Parameter("count", 10), Parameter("gains", []),
            Parameter("gains", [5.0])]
    assert [r.successful for r in one.set_parameters(good)] == [True] * 4
    bad = [Parameter("count", 4), Parameter("count", 11), Parameter("count", True),
           Parameter("gains", [1.0, 5.1]), Parameter("gains", [1])]
    assert [r.successful for r in one.set_parameters(bad)] == [False] * 5
    assert one.get_parameter("gains").value == [5.0] and one.get_parameter("count").value == 10


def test_a_value_that_is_given_away_is_a_copy(node: Make) -> None:
    one = node("one")
    mine = [1.0, 2.0]
    one.declare_parameter("gains", mine)
    mine.append(3.0)
    one.get_parameter("gains").value = []
    assert one.get_parameter("gains").value == [1.0, 2.0]


def test_read_only_and_dynamic_parameters(node: Make) -> None:
    one = node("one", parameters={"robot": "panda"})
    one.declare_parameter("robot", "sawyer", described(read_only=True))
    one.declare_parameter("any", 1, described(dynamic_typing=True))
    refused, taken = one.set_parameters([Parameter("robot", "fr3"), Parameter("any", "text")])
    assert not refused.successful and "cannot be set while the node runs" in refused.reason
    assert taken.successful and one.get_parameter("any").value == "text"
    assert one.get_parameter("robot").value == "panda"


class Answer:
    def __init__(self, successful: bool, reason: str = "") -> None:
        self.successful, self.reason = successful, reason


def test_callbacks_may_object_the_last_one_first(node: Make) -> None:
    one = node("one")
    one.declare_parameter("a", 1)
    one.declare_parameter("b", 1)
    asked: list[Any] = []

    def first(changes: list[Parameter]) -> Answer:
        asked.append(("first", [(c.name, c.value) for c in changes]))
        return Answer(changes[0].value < 5, "too large")

    def second(changes: list[Parameter]) -> Answer:
        asked.append("second")
        return Answer(True)

    one.add_on_set_parameters_callback(first)
    one.add_on_set_parameters_callback(second)
    together = [Parameter("a", 2), Parameter("b", 3)]
    assert one.set_parameters_atomically(together).successful
    assert asked == ["second", ("first", [("a", 2), ("b", 3)])]
    refused = one.set_parameters_atomically([Parameter("a", 9), Parameter("b", 4)])
    assert not refused.successful and refused.reason == "too large"
    assert [one.get_parameter(name).value for name in "ab"] == [2, 3]
    unknown = one.set_parameters_atomically([Parameter("a", 4), Parameter("c", 4)])
    assert not unknown.successful and one.get_parameter("a").value == 2
    one.remove_on_set_parameters_callback(first)
    assert one.set_parameters([Parameter("a", 9)])[0].successful


def test_other_nodes_see_and_set_them(node: Make) -> None:
    one, other = node("one", namespace="lab"), node("other")
    one.declare_parameter("speed", 0.5, described(
        description="tool speed [m/s]", floating_point_range=real_range(0.0, 1.0)))
    for name in ("limits.force", "limits.deep.torque", "robot"):
        one.declare_parameter(name, "x")
    listed = call(other, "ListParameters", "/lab/one/list_parameters").result
    assert listed.names == ["limits.deep.torque", "limits.force", "robot", "speed"]
    assert listed.prefixes == ["limits", "limits.deep"]
    some = call(other, "ListParameters", "/lab/one/list_parameters", prefixes=["limits"], depth=1)
    assert some.result.names == ["limits.force"] and some.result.prefixes == ["limits"]
    top = call(other, "ListParameters", "/lab/one/list_parameters", depth=1).result
    assert top.names == ["robot", "speed"] and top.prefixes == []
    values = call(other, "GetParameters", "/lab/one/get_parameters", names=["speed", "robot"])
    assert [parameters.from_message(v) for v in values.values] == [0.5, "x"]
    kinds = call(other, "GetParameterTypes", "/lab/one/get_parameter_types", names=["robot"])
    assert list(kinds.types) == [4]
    told, = call(other, "DescribeParameters", "/lab/one/describe_parameters",
                 names=["speed"]).descriptors
    assert (told.name, told.type, told.description) == ("speed", 3, "tool speed [m/s]")
    assert told.floating_point_range[0].to_value == 1.0
    for short, service in (("GetParameters", "get_parameters"),
                           ("GetParameterTypes", "get_parameter_types"),
                           ("DescribeParameters", "describe_parameters")):
        nothing = call(other, short, f"/lab/one/{service}", names=["speed", "nothing"])
        assert len(next(iter(vars(nothing).values()))) == 0

    answer = call(other, "SetParameters", "/lab/one/set_parameters",
                  parameters=[given("speed", 0.75), given("speed", 9.0), given("sped", 1.0)])
    assert [r.successful for r in answer.results] == [True, False, False]
    assert "should be a number in [0, 1]" in answer.results[1].reason
    assert "did you mean 'speed'" in answer.results[2].reason
    both = call(other, "SetParametersAtomically", "/lab/one/set_parameters_atomically",
                parameters=[given("speed", 0.25), given("robot", 3)]).result
    assert not both.successful and one.get_parameter("speed").value == 0.75


def test_changes_are_told(node: Make) -> None:
    one, other = node("one"), node("other")
    events: list[Any] = []
    other.create_subscription(
        runtime.message("rcl_interfaces/msg/ParameterEvent"), "/parameter_events", events.append,
        10,
    )
    one.declare_parameter("a", 1)
    assert until(lambda: one.count_subscribers("/parameter_events") == 1)
    one.declare_parameter("b", "x")
    one.set_parameters([Parameter("a", 2), Parameter("b", 3)])
    assert until(lambda: len(events) >= 2)
    new, changed = events[-2:]
    assert (new.node, [p.name for p in new.new_parameters]) == ("/one", ["b"])
    assert [(p.name, p.value.integer_value) for p in changed.changed_parameters] == [("a", 2)]
    assert changed.stamp.sec > 1_600_000_000


def test_an_error_in_a_callback_is_told_to_whoever_sets(node: Make) -> None:
    one, other = node("one"), node("other")
    one.declare_parameter("a", 1)

    def fail(changes: list[Parameter]) -> Answer:
        raise RuntimeError("on purpose")

    one.add_on_set_parameters_callback(fail)
    answer = call(other, "SetParameters", "/one/set_parameters", parameters=[given("a", 2)])
    assert not answer.results[0].successful
    assert answer.results[0].reason == "RuntimeError: on purpose"
    assert one.get_parameter("a").value == 1


def test_a_node_without_parameters_offers_no_services(node: Make) -> None:
    one, other = node("one"), node("other")
    kind = runtime.service("rcl_interfaces/srv/ListParameters")
    client = other.create_client(kind, "/one/list_parameters")
    assert not client.wait_for_service(0.3)
    one.declare_parameter("a", 1)
    assert client.wait_for_service(5.0)
