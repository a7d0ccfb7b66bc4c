"""Message, service and action classes by their ROS 2 names.

With rclpy they are the installed packages' own; otherwise dataclasses of `rosbags` that take
their fields as keyword arguments, all of them with a default, as the generated classes do.
"""

from __future__ import annotations

import importlib
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from robot_rl.errors import InvalidInputError, MissingDependencyError
from robot_rl.ros.runtime.definitions import (
    ACTIONS,
    APPENDED,
    HUMBLE_MESSAGES,
    HUMBLE_SERVICES,
    MESSAGES,
    SERVICES,
)

_PLACEHOLDER = "structure_needs_at_least_one_member"
_NUMPY = {"bool": "bool", "byte": "uint8", "char": "uint8", "octet": "uint8"}
_LOCK = threading.RLock()


def have_rclpy() -> bool:
    """Whether ROS 2's own client library is to be used: it is importable and not turned off by
    ``ROBOT_RL_ROS_RUNTIME=embedded``."""
    return os.environ.get("ROBOT_RL_ROS_RUNTIME", "") != "embedded" and _rclpy_importable()


@cache
def _rclpy_importable() -> bool:
    try:
        importlib.import_module("rclpy")
    except ImportError:
        return False
    return True


@dataclass(frozen=True)
class ServiceType:
    """A service: ``Request`` and ``Response`` are message classes."""

    name: str
    Request: Any
    Response: Any
    type_hash: str


@dataclass(frozen=True)
class ActionType:
    """An action: ``Goal``, ``Result`` and ``Feedback`` are message classes; the rest is how it
    travels."""

    name: str
    Goal: Any
    Result: Any
    Feedback: Any
    send_goal: ServiceType
    get_result: ServiceType
    FeedbackMessage: Any


def message(name: str) -> Any:
    """The class of a message, e.g. ``message("sensor_msgs/msg/JointState")``.

    Raises:
        InvalidInputError: no such message is known here.
        MissingDependencyError: neither rclpy nor `rosbags` is installed.
    """
    if have_rclpy():
        return _installed(name, "msg")
    return _message(name)


def service(name: str) -> Any:
    """The class of a service, e.g. ``service("std_srvs/srv/Trigger")``, with its ``Request`` and
    ``Response``."""
    if have_rclpy():
        return _installed(name, "srv")
    return _service(name)


def action(name: str) -> Any:
    """The class of an action, e.g. ``action("control_msgs/action/GripperCommand")``, with its
    ``Goal``, ``Result`` and ``Feedback``."""
    if have_rclpy():
        return _installed(name, "action")
    return _action(name)


def _installed(name: str, kind: str) -> Any:
    package, found, short = _split(name)
    if found != kind:
        raise InvalidInputError(f"{name!r} is no {kind}; its name should be package/{kind}/Name")
    try:
        module = importlib.import_module(f"{package}.{kind}")
        return getattr(module, short)
    except (ImportError, AttributeError):
        raise InvalidInputError(
            f"{name} is not installed; add its package, e.g. ros-$ROS_DISTRO-"
            f"{package.replace('_', '-')}"
        ) from None


def _split(name: str) -> tuple[str, str, str]:
    parts = name.split("/")
    if len(parts) != 3 or not all(parts):
        raise InvalidInputError(f"{name!r} should be package/msg|srv|action/Name")
    return parts[0], parts[1], parts[2]


# The embedded types.


@cache
def store() -> Any:
    """The type store with everything this package defines itself."""
    try:
        from rosbags.typesys import Stores, get_typestore
    except ImportError as error:
        raise MissingDependencyError(
            "rosbags is not installed: pip install 'robot_rl[ros]'"
        ) from error
    distribution = os.environ.get("ROS_DISTRO", "jazzy").lower()
    known = {str(entry.value).partition("_")[2]: entry for entry in Stores}
    types = get_typestore(known.get(distribution, Stores.ROS2_JAZZY))
    # A char of a .msg file is a uint8 to ROS 2, and so it counts in the hash.
    for name, (constants, fields) in types.fielddefs.items():
        types.fielddefs[name] = (constants, [(f, _uint8_for_char(d)) for f, d in fields])
    humble = distribution == "humble"
    _register(types, {**MESSAGES, **(HUMBLE_MESSAGES if humble else {})})
    texts: dict[str, str] = {}
    services = {**SERVICES, **(HUMBLE_SERVICES if humble else {})}
    for name, (request, response) in services.items():
        texts.update(_service_texts(name, request, response))
    for name, (goal, result, feedback) in ACTIONS.items():
        texts.update(_action_texts(name, goal, result, feedback))
    if "service_msgs/msg/ServiceEventInfo" not in types.fielddefs:
        texts["service_msgs/msg/ServiceEventInfo"] = (
            "uint8 event_type\nbuiltin_interfaces/Time stamp\nuint8[16] client_gid\n"
            "int64 sequence_number"
        )
    _register(types, texts)
    return types


def _register(types: Any, texts: dict[str, str]) -> None:
    from rosbags.typesys import get_types_from_msg

    parsed: dict[str, Any] = {}
    for name, text in texts.items():
        # The parser takes msg/ for granted in names; the right ones are put back.
        found = get_types_from_msg(_filled(text) + "\n", name)
        parsed[name] = next(iter(found.values()))
    known = {old.replace("/srv/", "/msg/").replace("/action/", "/msg/"): old for old in parsed}
    for name, (constants, fields) in parsed.items():
        parsed[name] = (constants, [(f, _renamed(d, known)) for f, d in fields])
    types.register(parsed)


def _renamed(description: Any, known: dict[str, str]) -> Any:
    kind, what = description
    if isinstance(what, str):
        return (kind, known.get(what, what))
    if isinstance(what[0], tuple):
        return (kind, (_renamed(what[0], known), what[1]))
    return description


def _uint8_for_char(description: Any) -> Any:
    kind, what = description
    if isinstance(what, tuple):
        if isinstance(what[0], tuple):
            return (kind, (_uint8_for_char(what[0]), what[1]))
        return (kind, ("uint8", what[1])) if what[0] == "char" else description
    return description


def _filled(text: str) -> str:
    """A structure without a field gets the one that ROS 2 gives it."""
    fields = [line for line in text.splitlines() if line.strip() and "=" not in line]
    return text if fields else f"{text}\nuint8 {_PLACEHOLDER}".strip()


def _service_texts(name: str, request: str, response: str) -> dict[str, str]:
    return {
        f"{name}_Request": request,
        f"{name}_Response": response,
        f"{name}_Event": (
            f"service_msgs/ServiceEventInfo info\n{_reference(name)}_Request[<=1] request\n"
            f"{_reference(name)}_Response[<=1] response"
        ),
        # Only described, for its hash: no such message travels.
        name: (
            f"{_reference(name)}_Request request_message\n"
            f"{_reference(name)}_Response response_message\n"
            f"{_reference(name)}_Event event_message"
        ),
    }


def _reference(name: str) -> str:
    """How a definition's text names a type."""
    package, _, short = _split(name)
    return f"{package}/{short}"


def _action_texts(name: str, goal: str, result: str, feedback: str) -> dict[str, str]:
    own = _reference(name)
    uuid = "unique_identifier_msgs/UUID goal_id"
    texts = {f"{name}_Goal": goal, f"{name}_Result": result, f"{name}_Feedback": feedback}
    texts.update(_service_texts(
        f"{name}_SendGoal", f"{uuid}\n{own}_Goal goal",
        "bool accepted\nbuiltin_interfaces/Time stamp",
    ))
    texts.update(_service_texts(
        f"{name}_GetResult", uuid, f"int8 status\n{own}_Result result"
    ))
    texts[f"{name}_FeedbackMessage"] = f"{uuid}\n{own}_Feedback feedback"
    return texts


@cache
def _message(name: str) -> Any:
    _split(name)
    with _LOCK:
        types = store()
        if name not in types.fielddefs:
            short = name.split("/")[-1]
            near = [known for known in types.fielddefs if known.split("/")[-1] == short]
            hint = f"; did you mean {near[0]}?" if near else ""
            raise InvalidInputError(f"message {name!r} is unknown{hint}")
        base = types.types[name]
        if not getattr(base, "__robot_rl__", False):
            types.types[name] = base = _with_defaults(name, base)
        return base


def _with_defaults(name: str, base: Any) -> Any:
    """A class whose fields all have defaults; with every field given it is as fast as ``base``."""
    types = store()
    makers = {}
    for field, description in types.get_msgdef(name).fields:
        makers[field] = _default_maker(description)
    fields = list(makers)
    fast = base.__init__

    def __init__(self: Any, *args: Any, **given: Any) -> None:
        if len(args) == len(fields):
            fast(self, *args)
            return
        if args:
            raise TypeError(f"{name} takes its fields by name")
        for key in given:
            if key not in makers:
                raise AttributeError(f"{name} has no field {key!r}; valid: {', '.join(fields)}")
        for key, maker in makers.items():
            setattr(self, key, given[key] if key in given else maker())

    made = type(base.__name__, (base,), {"__init__": __init__, "__robot_rl__": True,
                                         "__module__": base.__module__})
    types.cache.pop(name, None)
    return made


def _default_maker(description: Any) -> Callable[[], Any]:
    from rosbags.interfaces import Nodetype

    kind, what = description
    if kind == Nodetype.BASE:
        value: Any = {"string": "", "wstring": "", "bool": False}.get(what[0], 0)
        value = 0.0 if what[0].startswith("float") else value
        return lambda: value
    if kind == Nodetype.NAME:
        made = _message(what)
        return lambda: made()
    (sub, detail), length = what
    count = length if kind == Nodetype.ARRAY else 0
    if sub == Nodetype.BASE and detail[0] not in ("string", "wstring"):
        dtype = _NUMPY.get(detail[0], detail[0])
        return lambda: np.zeros(count, dtype)
    maker = _default_maker((sub, detail))
    return lambda: [maker() for _ in range(count)]


@cache
def _service(name: str) -> ServiceType:
    if f"{name}_Request" not in store().fielddefs:
        raise InvalidInputError(
            f"service {name!r} is unknown; valid: {', '.join(sorted(SERVICES))}"
        )
    return ServiceType(
        name, _message(f"{name}_Request"), _message(f"{name}_Response"), type_hash(name)
    )


@cache
def _action(name: str) -> ActionType:
    if name not in ACTIONS:
        raise InvalidInputError(f"action {name!r} is unknown; valid: {', '.join(sorted(ACTIONS))}")
    return ActionType(
        name,
        _message(f"{name}_Goal"),
        _message(f"{name}_Result"),
        _message(f"{name}_Feedback"),
        _service(f"{name}_SendGoal"),
        _service(f"{name}_GetResult"),
        _message(f"{name}_FeedbackMessage"),
    )


@cache
def type_hash(name: str) -> str:
    """The hash by which ROS 2 tells one version of a type from another, ``RIHS01_...``."""
    return str(store().hash_rihs01(name))


def type_name(kind: Any) -> str:
    """The ROS 2 name of an embedded message class."""
    name = getattr(kind, "__msgtype__", None)
    if name is None:
        raise InvalidInputError(f"{kind!r} is no message class; see robot_rl.ros.runtime.message")
    return str(name)


def serialize(value: Any, name: str) -> bytes:
    """The CDR form of a message of the type ``name``, little endian, with its 4 byte header.

    Raises:
        InvalidInputError: a field has a value that its type cannot hold.
    """
    try:
        _fit(value, name)
        return bytes(store().serialize_cdr(value, name, little_endian=True))
    except InvalidInputError:
        raise
    except Exception as error:
        raise InvalidInputError(f"a message does not fit {name}: {error}") from error


def deserialize(data: bytes, name: str) -> Any:
    """The message that ``data`` (CDR with its header) holds.

    Raises:
        InvalidInputError: the bytes are no such message.
    """
    try:
        if name in APPENDED:
            known = store().get_msgdef(name)
            decode = known.deserialize_cdr_le if data[1] & 1 else known.deserialize_cdr_be
            return decode(data[4:], 0, known.cls, store())[0]
        return store().deserialize_cdr(data, name)
    except Exception as error:
        raise InvalidInputError(f"received bytes are no {name}: {error}") from error


@cache
def _arrays(name: str) -> tuple[tuple[tuple[str, str], ...], tuple[tuple[str, str, bool], ...]]:
    """Fields that are arrays of numbers, and those that hold messages (and whether many)."""
    from rosbags.interfaces import Nodetype

    numbers, nested = [], []
    for field, (kind, what) in store().get_msgdef(name).fields:
        if kind == Nodetype.NAME:
            nested.append((field, what, False))
        elif kind in (Nodetype.ARRAY, Nodetype.SEQUENCE):
            sub, detail = what[0]
            if sub == Nodetype.NAME:
                nested.append((field, detail, True))
            elif detail[0] not in ("string", "wstring"):
                numbers.append((field, _NUMPY.get(detail[0], detail[0])))
    return tuple(numbers), tuple(nested)


def _fit(value: Any, name: str) -> None:
    """Lists of numbers become arrays of the type on the wire."""
    numbers, nested = _arrays(name)
    for field, dtype in numbers:
        given = getattr(value, field)
        if not isinstance(given, np.ndarray) or given.dtype != dtype:
            raw = isinstance(given, (bytes, bytearray, memoryview))
            array = np.frombuffer(given, dtype) if raw else np.asarray(given, dtype=dtype)
            setattr(value, field, array)
    for field, inner, many in nested:
        held = getattr(value, field)
        for each in held if many else (held,):
            _fit(each, inner)
