"""Parameters of a node: typed values within ranges, seen and set by other nodes.

The services and the topic are those of rcl_interfaces, so that ``ros2 param`` works on a node of
the embedded runtime as on any other.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from robot_rl.errors import InvalidInputError, unknown_name
from robot_rl.ros.runtime.qos import QoS
from robot_rl.ros.runtime.types import message, service

if TYPE_CHECKING:
    from robot_rl.ros.runtime.node import Node

EVENTS = QoS(depth=1000)
"""Of the topic on which changes are told."""

NOT_SET = 0
# In the order of rcl_interfaces/msg/ParameterType.
_TYPES = ("not set", "bool", "integer", "double", "string", "byte array", "bool array",
          "integer array", "double array", "string array")
_FIELDS = ("", "bool_value", "integer_value", "double_value", "string_value", "byte_array_value",
           "bool_array_value", "integer_array_value", "double_array_value", "string_array_value")
_KINDS: tuple[tuple[type | tuple[type, ...], int], ...] = (
    (bool, 1), (np.bool_, 1), (int, 2), (np.integer, 2), (float, 3), (np.floating, 3), (str, 4),
)
_TO_ARRAY = 5
_BYTE_ARRAY, _STRING_ARRAY = 5, 9
_CAST: dict[int, Callable[[Any], Any]] = {1: bool, 2: int, 3: float, 4: str}


def type_of(value: Any) -> int:
    """The number by which ParameterType knows the type of ``value``.

    Raises:
        InvalidInputError: no parameter holds such a value.
    """
    if value is None:
        return NOT_SET
    for kind, number in _KINDS:
        if isinstance(value, kind):
            return number
    if isinstance(value, (bytes, bytearray)):
        return _BYTE_ARRAY
    if isinstance(value, (list, tuple, np.ndarray)):
        kinds = {type_of(each) for each in value}
        if not kinds:
            return _STRING_ARRAY
        if len(kinds) == 1 and (only := kinds.pop()) in _CAST:
            return only + _TO_ARRAY
    raise InvalidInputError(
        f"{value!r} is no parameter's value, should be a bool, int, float or str, a list of one of "
        "them, or bytes"
    )


def plain(value: Any) -> Any:
    """``value`` in Python's own types."""
    number = type_of(value)
    if number in _CAST:
        return _CAST[number](value)
    if number == _BYTE_ARRAY:
        return bytes(value)
    if number > _TO_ARRAY:
        cast = _CAST[number - _TO_ARRAY]
        return [cast(each) for each in value]
    return None


def to_message(value: Any) -> Any:
    """``value`` as rcl_interfaces/msg/ParameterValue."""
    number = type_of(value)
    made = message("rcl_interfaces/msg/ParameterValue")(type=number)
    if number != NOT_SET:
        held = plain(value)
        if number == _BYTE_ARRAY:
            held = np.frombuffer(held, np.uint8)
        setattr(made, _FIELDS[number], held)
    return made


def from_message(value: Any) -> Any:
    """What a rcl_interfaces/msg/ParameterValue holds.

    Raises:
        InvalidInputError: it says that it is of a type that does not exist.
    """
    number = int(value.type)
    if number == NOT_SET:
        return None
    if number >= len(_FIELDS):
        raise InvalidInputError(f"a parameter's type is {number}, should be in [0, "
                                f"{len(_FIELDS) - 1}]")
    held = getattr(value, _FIELDS[number])
    if number == _BYTE_ARRAY:
        return bytes(bytearray(held))
    return _CAST[number](held) if number in _CAST else [_CAST[number - _TO_ARRAY](v) for v in held]


@dataclass
class Parameter:
    """A named value: bool, int, float, str, a list of one of them, bytes, or None."""

    name: str
    value: Any = None


class Parameters:
    """The parameters of one node. Any thread may call any method.

    A parameter keeps the type that it was declared with unless its descriptor says
    ``dynamic_typing``, and the ranges that the descriptor gives. What ``given`` holds takes the
    place of the declared value. Other nodes see them from the first declaration on.
    """

    def __init__(self, node: Node, given: Mapping[str, Any]) -> None:
        self._node = node
        self._given = dict(given)
        self._values: dict[str, Any] = {}
        self._descriptors: dict[str, Any] = {}
        self._asked: list[Callable[[list[Parameter]], Any]] = []
        self._lock = threading.RLock()
        self._events: Any = None

    # -- this node ----------------------------------------------------------------------------

    def declare(self, name: str, value: Any, descriptor: Any, ignore_override: bool) -> Parameter:
        if not name or any(not part for part in name.split(".")):
            raise InvalidInputError(f"parameter name {name!r} should be words, parted by dots")
        with self._lock:
            if name in self._values:
                raise InvalidInputError(f"parameter {name!r} is declared already")
            described = descriptor or message("rcl_interfaces/msg/ParameterDescriptor")()
            described.name = name
            # A bare type stands for a value that has to be given from outside.
            wanted = _declared_type(value) if isinstance(value, type) else type_of(value)
            start = None if isinstance(value, type) else value
            if not ignore_override:
                start = self._given.get(name, start)
            described.type = wanted
            wrong = None if start is None else self._wrong(described, start, starts=True)
            if wrong is not None:
                raise InvalidInputError(wrong)
            self._values[name] = _of_type(start, described)
            self._descriptors[name] = described
            self._serve()
            self._tell([Parameter(name, self._values[name])], new=True)
            return Parameter(name, self._values[name])

    def has(self, name: str) -> bool:
        return name in self._values

    def names(self) -> list[str]:
        with self._lock:
            return sorted(self._values)

    def get(self, name: str) -> Parameter:
        with self._lock:
            if name not in self._values:
                raise unknown_name("parameter", name, self._values)
            return Parameter(name, self._values[name])

    def describe(self, name: str) -> Any:
        with self._lock:
            if name not in self._values:
                raise unknown_name("parameter", name, self._values)
            return self._descriptors[name]

    def ask(self, callback: Callable[[list[Parameter]], Any]) -> None:
        with self._lock:
            self._asked.insert(0, callback)

    def ask_no_more(self, callback: Callable[[list[Parameter]], Any]) -> None:
        with self._lock:
            self._asked.remove(callback)

    def set(self, parameters: Iterable[Parameter]) -> list[Any]:
        """Each by itself; the results in their order."""
        return [self.set_together([parameter]) for parameter in parameters]

    def set_together(self, parameters: list[Parameter]) -> Any:
        """All of them or none."""
        result = message("rcl_interfaces/msg/SetParametersResult")
        with self._lock:
            reason = self._objection(parameters)
            if reason is not None:
                return result(successful=False, reason=reason)
            for each in parameters:
                self._values[each.name] = _of_type(each.value, self._descriptors[each.name])
            self._tell([Parameter(each.name, self._values[each.name]) for each in parameters])
        return result(successful=True, reason="")

    def _objection(self, parameters: list[Parameter]) -> str | None:
        for each in parameters:
            if each.name not in self._values:
                return str(unknown_name("parameter", each.name, self._values))
            wrong = self._wrong(self._descriptors[each.name], each.value)
            if wrong is not None:
                return wrong
        for callback in list(self._asked):
            answer = callback(list(parameters))
            if not answer.successful:
                return str(answer.reason)
        return None

    def _wrong(self, descriptor: Any, value: Any, *, starts: bool = False) -> str | None:
        """What is wrong with a value for the parameter described, in words."""
        name = descriptor.name
        if descriptor.read_only and not starts:
            return f"parameter {name!r} cannot be set while the node runs"
        try:
            number = type_of(value)
        except InvalidInputError as error:
            return f"parameter {name!r}: {error}"
        empty = number > _TO_ARRAY - 1 and len(value) == 0 and descriptor.type >= _TO_ARRAY
        if not descriptor.dynamic_typing and descriptor.type != NOT_SET and (
            number != descriptor.type and not empty
        ):
            return (f"parameter {name!r} is {value!r}, which is {_article(number)}, should be "
                    f"{_article(descriptor.type)}")
        return _outside(descriptor, value)

    # -- other nodes --------------------------------------------------------------------------

    def _serve(self) -> None:
        if self._events is not None:
            return
        node = self._node
        self._events = node.create_publisher(
            message("rcl_interfaces/msg/ParameterEvent"), "/parameter_events", EVENTS
        )
        for short, callback in (
            ("GetParameters", self._on_get),
            ("GetParameterTypes", self._on_types),
            ("SetParameters", self._on_set),
            ("SetParametersAtomically", self._on_set_together),
            ("ListParameters", self._on_list),
            ("DescribeParameters", self._on_describe),
        ):
            kind = service(f"rcl_interfaces/srv/{short}")
            node.create_service(kind, f"~/{_snake(short)}", callback)

    def _tell(self, parameters: list[Parameter], *, new: bool = False) -> None:
        event = message("rcl_interfaces/msg/ParameterEvent")()
        event.stamp = self._node.get_clock().now().to_msg()
        event.node = self._node.get_fully_qualified_name()
        kind = message("rcl_interfaces/msg/Parameter")
        told = [kind(name=each.name, value=to_message(each.value)) for each in parameters]
        if new:
            event.new_parameters = told
        else:
            event.changed_parameters = told
        self._events.publish(event)

    # Of what is asked about an unknown parameter the answer is empty, as rclpy's is.

    def _on_get(self, request: Any, response: Any) -> Any:
        with self._lock:
            if all(name in self._values for name in request.names):
                response.values = [to_message(self._values[name]) for name in request.names]
        return response

    def _on_types(self, request: Any, response: Any) -> Any:
        with self._lock:
            if all(name in self._values for name in request.names):
                types = [type_of(self._values[name]) for name in request.names]
                response.types = np.array(types, np.uint8)
        return response

    def _on_describe(self, request: Any, response: Any) -> Any:
        with self._lock:
            if all(name in self._values for name in request.names):
                response.descriptors = [self._descriptors[name] for name in request.names]
        return response

    def _on_set(self, request: Any, response: Any) -> Any:
        response.results = [self._set_given([each]) for each in request.parameters]
        return response

    def _on_set_together(self, request: Any, response: Any) -> Any:
        response.result = self._set_given(list(request.parameters))
        return response

    def _set_given(self, given: list[Any]) -> Any:
        try:
            wanted = [Parameter(each.name, from_message(each.value)) for each in given]
            return self.set_together(wanted)
        except Exception as error:
            # A callback's own error is its caller's to hear, and no reason to leave it waiting.
            return message("rcl_interfaces/msg/SetParametersResult")(
                successful=False, reason=f"{type(error).__name__}: {error}"
            )

    def _on_list(self, request: Any, response: Any) -> Any:
        deep = int(request.depth) or math.inf
        names, prefixes = [], set()
        for name in self.names():
            for prefix in list(request.prefixes) or [""]:
                if prefix and name != prefix and not name.startswith(f"{prefix}."):
                    continue
                rest = name[len(prefix):].strip(".")
                if rest.count(".") < deep:
                    names.append(name)
                    if "." in name:
                        prefixes.add(name.rpartition(".")[0])
                    break
        response.result.names = names
        response.result.prefixes = sorted(prefixes)
        return response


def _declared_type(kind: type) -> int:
    for each, number in _KINDS:
        if kind is each:
            return number
    raise InvalidInputError(f"{kind!r} is no parameter's type; valid: bool, int, float, str")


def _of_type(value: Any, descriptor: Any) -> Any:
    """``value`` in Python's own types; an empty list is one of whatever was declared."""
    held = plain(value)
    return b"" if held == [] and descriptor.type == _BYTE_ARRAY else held


def _outside(descriptor: Any, value: Any) -> str | None:
    numbers = value if isinstance(value, (list, tuple, np.ndarray)) else [value]
    whole = bool(descriptor.integer_range)
    for bounds in (*descriptor.integer_range, *descriptor.floating_point_range):
        low, high, step = bounds.from_value, bounds.to_value, bounds.step
        for number in numbers:
            if isinstance(number, (bool, str)) or number is None:
                continue
            inside = low <= number <= high
            steps = (number - low) / step if step and inside else 0.0
            # The end of the range is valid wherever the last step falls.
            on_step = abs(steps - round(steps)) < 1e-6 or number == high
            if not (inside and on_step):
                said = f" in steps of {step:g} from {low:g}" if step else ""
                kind = "a whole number" if whole else "a number"
                return (f"parameter {descriptor.name!r} is {number!r}, should be {kind} in "
                        f"[{low:g}, {high:g}]{said}")
    return None


def _article(number: int) -> str:
    name = _TYPES[number] if number < len(_TYPES) else f"type {number}"
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _snake(name: str) -> str:
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in name).lstrip("_")
