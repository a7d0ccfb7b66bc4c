"""What the messages of a bag say: their types, checked before they are trusted, and their fields.

The types come from the bag itself where it embeds them, from the distribution's standard ones
otherwise; ``rosbags`` reads the bytes. It makes Python code of a definition, so what a definition
may say is limited here first.
"""

from __future__ import annotations

import importlib
import keyword
import re
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robot_rl.data.importers.containers import Topic
from robot_rl.data.importers.images import COMPRESSED, IMAGE
from robot_rl.data.importers.mapping import Signal
from robot_rl.errors import InvalidInputError, MissingDependencyError, unknown_name

MAX_DEFINITION = 256 << 10
MAX_TYPES = 1024
MAX_FIELDS = 4096
MAX_NESTING = 24
# Arrays of fixed length: of numbers, and of texts or messages (for each of which code is made).
MAX_ARRAY = 1 << 24
MAX_UNROLLED = 1024
MAX_WIDTH = 1 << 22

HEADER = "std_msgs/msg/Header"
# Types that are read by the names or the places of their fields.
_FIXED = (HEADER, IMAGE, COMPRESSED, "builtin_interfaces/msg/Time", "std_msgs/msg/String")
_TYPE_NAME = re.compile(r"[A-Za-z]\w{0,127}/(msg|action|srv)/[A-Za-z]\w{0,127}", re.ASCII)
_FIELD_NAME = re.compile(r"[A-Za-z]\w{0,127}", re.ASCII)
_STEP = re.compile(r"([A-Za-z]\w*)(?:\[(\d{1,6})\])?", re.ASCII)
_BASE, _NAME, _ARRAY, _SEQUENCE = 1, 2, 3, 4
_TEXTS = ("string", "wstring")

Extract = Callable[[Any], "NDArray[Any] | None"]


def need_rosbags() -> Any:
    """The module ``rosbags.typesys``.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        return importlib.import_module("rosbags.typesys")
    except ImportError as error:
        raise MissingDependencyError(
            f"ROS bags need rosbags ({error}); install robot_rl[data]"
        ) from None


class Types:
    """The message types of a bag.

    ``wanted`` topics only: what is not mapped need not make sense.

    Raises:
        InvalidInputError: a definition is damaged, endless, or refers to types that are nowhere.
    """

    def __init__(self, topics: list[Topic], ros1: bool) -> None:
        typesys = need_rosbags()
        self.ros1 = ros1
        stores = typesys.Stores
        standard = typesys.get_typestore(stores.ROS1_NOETIC if ros1 else stores.ROS2_HUMBLE)
        self._known: dict[str, Any] = {}
        for topic in topics:
            where = f"topic {topic.name}"
            if not _TYPE_NAME.fullmatch(topic.msgtype):
                raise InvalidInputError(f"{where}: {topic.msgtype[:80]!r} is not a message type")
            if topic.definition:
                self._known.update(self._parse(typesys, topic, where))
        for name, definition in standard.fielddefs.items():
            self._known.setdefault(name, definition)
        needed: dict[str, Any] = {}
        for topic in topics:
            self._collect(topic.msgtype, needed, (), f"topic {topic.name}")
        for name in _FIXED:
            if name in needed and list(needed[name][1]) != list(standard.fielddefs[name][1]):
                raise InvalidInputError(f"the bag defines {name} otherwise than ROS does")
        self.store = typesys.get_typestore(stores.EMPTY)
        self.store.max_sequence_length = MAX_ARRAY * 16
        self.fields: dict[str, list[tuple[str, Any]]] = {k: v[1] for k, v in needed.items()}
        try:
            if needed:
                self.store.register(needed)
        except Exception as error:  # generated code can fail in many ways
            raise InvalidInputError(f"the bag's message definitions cannot be used: {error}") from (
                None
            )

    def _parse(self, typesys: Any, topic: Topic, where: str) -> dict[str, Any]:
        text = topic.definition
        if len(text) > MAX_DEFINITION:
            raise InvalidInputError(f"{where}: a message definition of {len(text)} bytes")
        try:
            if topic.encoding != "ros2idl":
                return dict(typesys.get_types_from_msg(text, topic.msgtype))
            rule = "=" * 80 + "\n"
            parts = ([part.split("\n", 1)[1] for part in text.split(rule)[1:]]
                     if text.startswith(f"{rule}IDL: ") else [text])
            found: dict[str, Any] = {}
            for part in parts:
                found.update(typesys.get_types_from_idl(part))
            return found
        except Exception as error:  # the parser's own, and what bad text makes of it
            reason = " ".join(str(error).split())[:200]
            raise InvalidInputError(
                f"{where}: the definition of {topic.msgtype} cannot be read ({reason})"
            ) from None

    def _collect(
        self, name: str, needed: dict[str, Any], above: tuple[str, ...], where: str
    ) -> None:
        """Add ``name`` and all it refers to, checked."""
        if name in above or len(above) > MAX_NESTING:
            path = " > ".join((*above, name)[-4:])
            raise InvalidInputError(f"{where}: the type {name} contains itself, or is nested over "
                                    f"{MAX_NESTING} deep ({path})")
        if name in needed:
            return
        definition = self._known.get(name)
        if definition is None:
            raise InvalidInputError(
                f"{where}: the type {name} is neither defined in the bag nor a standard one; "
                "record it as MCAP, which embeds definitions"
            )
        fields = definition[1]
        if not _TYPE_NAME.fullmatch(name) or len(fields) > MAX_FIELDS or len(needed) > MAX_TYPES:
            raise InvalidInputError(f"{where}: the type {name[:80]!r} has {len(fields)} fields")
        for field, described in fields:
            if not _FIELD_NAME.fullmatch(field):
                raise InvalidInputError(f"{where}: {name} has a field {field[:40]!r}")
            inner = self._check_size(described, f"{where}: {name}.{field}")
            if inner is not None:
                self._collect(inner, needed, (*above, name), where)
        # Constants are not read, and a generated class needs none.
        needed[name] = ([], fields)

    def _check_size(self, described: Any, where: str) -> str | None:
        """The type that a field is made of, if it is a message."""
        kind, what = int(described[0]), described[1]
        many = kind in (_ARRAY, _SEQUENCE)
        count = 1
        if many:
            (inner, what), count = described[1]
            inner = int(inner)
            simple = inner == _BASE and what[0] not in _TEXTS
            if kind == _ARRAY and count > (MAX_ARRAY if simple else MAX_UNROLLED):
                raise InvalidInputError(f"{where} is an array of {count}")
            kind = inner
        if kind != _NAME:
            return None
        if many and what in self._known and not self._known[what][1]:
            # Any number of them fits into no bytes at all.
            raise InvalidInputError(f"{where} is a list of {what}, which has no fields")
        return str(what)

    def read(self, data: bytes, msgtype: str, where: str) -> Any:
        """The message.

        Raises:
            InvalidInputError: the bytes are not such a message.
        """
        try:
            if self.ros1:
                return self.store.deserialize_ros1(data, msgtype)
            return self.store.deserialize_cdr(data, msgtype)
        except Exception as error:  # generated code meets false bytes in many ways
            raise InvalidInputError(
                f"{where}: a message is not a {msgtype} ({' '.join(str(error).split())[:200]})"
            ) from None

    def has_header(self, msgtype: str) -> bool:
        """Whether the message begins with a header."""
        fields = self.fields[msgtype]
        return bool(fields) and fields[0] == ("header", (_NAME, HEADER))

    def header_stamp_ns(self, data: bytes) -> int:
        """The stamp of a message that begins with a header, without reading the rest."""
        if self.ros1:
            if len(data) < 12:
                raise InvalidInputError("a message is too short for its header")
            return (int.from_bytes(data[4:8], "little") * 10**9
                    + int.from_bytes(data[8:12], "little"))
        if len(data) < 12:
            raise InvalidInputError("a message is too short for its header")
        order: Any = "little" if data[1] & 1 else "big"
        return (int.from_bytes(data[4:8], order, signed=True) * 10**9
                + int.from_bytes(data[8:12], order))

    # -- fields ---------------------------------------------------------------------------

    def describe(self, msgtype: str) -> str:
        """The fields of a type in words, for errors."""
        return ", ".join(f"{name} ({_name_of(kind)})" for name, kind in self.fields[msgtype])

    def extractor(self, signal: Signal, msgtype: str) -> Extract:
        """A function from a message to the numbers (w,) that ``signal`` asks for, in the message's
        own type; it gives None for a message that is not about the joints asked for.

        Raises:
            InvalidInputError: there is no such field, or it holds no numbers.
        """
        path = signal.field or self._default_field(signal, msgtype)
        steps, kind = self._resolve(path, msgtype, signal.where) if path else ([], (2, msgtype))
        leaves = self._leaves(kind, f"{signal.where}: {path or msgtype}")
        get = _getter(steps, signal.where)
        flat = _flattener(leaves, signal.where)
        pick = _picker(signal, path, [f for f, _ in self.fields[msgtype]])

        def extract(message: Any) -> NDArray[Any] | None:
            return pick(message, flat(get(message)))

        return extract

    def text_getter(self, signal: Signal, msgtype: str) -> Callable[[Any], Any] | None:
        """A function from a message to the text that ``signal`` asks for; None if the field is no
        text."""
        path = signal.field or self._default_field(signal, msgtype)
        if not path:
            return None
        steps, kind = self._resolve(path, msgtype, signal.where)
        if int(kind[0]) != _BASE or kind[1][0] not in _TEXTS:
            return None
        return _getter(steps, signal.where)

    def _default_field(self, signal: Signal, msgtype: str) -> str:
        names = [name for name, _ in self.fields[msgtype]]
        if "data" in names:
            return "data"
        if [n for n in names if n != "structure_needs_at_least_one_member"] == []:
            return ""
        raise InvalidInputError(
            f"{signal.where}: say which field of {signal.topic} ({msgtype}): "
            f"{self.describe(msgtype)}"
        )

    def _resolve(self, path: str, msgtype: str, where: str) -> tuple[list[tuple[str, int]], Any]:
        steps: list[tuple[str, int]] = []
        kind: Any = (_NAME, msgtype)
        for part in path.split("."):
            match = _STEP.fullmatch(part)
            if match is None:
                raise InvalidInputError(f"{where}: {part!r} in the field {path!r} is no name; "
                                        "write a.b.c, or a[0].b for an entry of a list")
            if int(kind[0]) != _NAME:
                raise InvalidInputError(f"{where}: the field {path!r} goes on after "
                                        f"{steps[-1][0]}, which is {_name_of(kind)}")
            fields = dict(self.fields[kind[1]])
            if match[1] not in fields:
                raise unknown_name(f"{where}: field of {kind[1]}", match[1], [
                    n for n in fields if n != "structure_needs_at_least_one_member"])
            kind = fields[match[1]]
            steps.append((match[1], -1))
            if match[2] is not None:
                if int(kind[0]) not in (_ARRAY, _SEQUENCE):
                    raise InvalidInputError(f"{where}: {match[1]} is {_name_of(kind)}, not a list")
                steps[-1] = (match[1], int(match[2]))
                kind = kind[1][0]
        return steps, kind

    def _leaves(self, kind: Any, where: str) -> list[tuple[list[str], bool]] | None:
        """Paths to the numbers below a field and whether each is an array, headers left out; None
        where the field itself is a number or an array of them."""
        if int(kind[0]) != _NAME:
            inner = kind if int(kind[0]) == _BASE else kind[1][0]
            if int(inner[0]) != _BASE or inner[1][0] in _TEXTS:
                raise InvalidInputError(f"{where} is {_name_of(kind)}, should be numbers")
            return None
        found: list[tuple[list[str], bool]] = []
        for name, described in self.fields[kind[1]]:
            if described == (_NAME, HEADER) or name == "structure_needs_at_least_one_member":
                continue
            if int(described[0]) == _NAME:
                below = self._leaves(described, f"{where}.{name}") or []
                found += [([name, *path], many) for path, many in below]
            else:
                self._leaves(described, f"{where}.{name}")
                found.append(([name], int(described[0]) != _BASE))
        return found


def _name_of(kind: Any) -> str:
    if int(kind[0]) == _BASE:
        return str(kind[1][0])
    if int(kind[0]) == _NAME:
        return str(kind[1])
    return f"{_name_of(kind[1][0])}[{kind[1][1] or ''}]"


def _attribute(name: str) -> str:
    return f"{name}_" if keyword.iskeyword(name) else name


def _getter(steps: list[tuple[str, int]], where: str) -> Callable[[Any], Any]:
    path = [(_attribute(name), number) for name, number in steps]

    def get(message: Any) -> Any:
        for name, number in path:
            message = getattr(message, name)
            if number >= 0:
                if number >= len(message):
                    raise InvalidInputError(
                        f"{where}: {name}[{number}] of a list of {len(message)}"
                    )
                message = message[number]
        return message

    return get


def _flattener(leaves: list[tuple[list[str], bool]] | None, where: str) -> (
    Callable[[Any], NDArray[Any]]
):
    if leaves is None:
        def plain(value: Any) -> NDArray[Any]:
            array = np.asarray(value)
            if array.dtype.kind not in "fiub" or array.size > MAX_WIDTH:
                raise InvalidInputError(f"{where}: {array.size} values of type {array.dtype}")
            return array.reshape(-1)

        return plain
    paths = [[_attribute(name) for name in path] for path, _ in leaves]

    def flat(value: Any) -> NDArray[Any]:
        parts = []
        for path in paths:
            part = value
            for name in path:
                part = getattr(part, name)
            parts.append(np.asarray(part).reshape(-1))
        return np.concatenate(parts) if parts else np.ones(1, np.bool_)

    return flat


def _picker(signal: Signal, path: str, fields: list[str]) -> (
    Callable[[Any, NDArray[Any]], NDArray[Any] | None]
):
    """Picks what ``names`` or ``entries`` ask for, then scales."""
    entries = np.asarray(signal.entries, np.int64)
    if signal.names and "name" not in fields and "names" not in fields and (
        "joint_names" not in fields
    ):
        raise InvalidInputError(f"{signal.where}: names needs a message with a list of names, as "
                                f"JointState has; this one has {', '.join(fields)}")
    label = next((n for n in ("name", "names", "joint_names") if n in fields), "")
    known: dict[tuple[str, ...], NDArray[np.int64] | None] = {}

    def places(message: Any) -> NDArray[np.int64] | None:
        names = tuple(getattr(message, label))
        if names not in known:
            if len(known) > 256:
                known.clear()
            found = [name in names for name in signal.names]
            if any(found) and not all(found):
                missing = ", ".join(n for n, f in zip(signal.names, found, strict=True) if not f)
                raise InvalidInputError(f"{signal.where}: {signal.topic} has no {missing}; it has "
                                        f"{', '.join(names)[:400]}")
            known[names] = (np.asarray([names.index(n) for n in signal.names], np.int64)
                            if all(found) else None)
        return known[names]

    def pick(message: Any, values: NDArray[Any]) -> NDArray[Any] | None:
        if signal.names:
            where = places(message)
            if where is None:
                return None
            values = _take(values, where, signal, path)
        if len(entries):
            values = _take(values, entries, signal, path)
        return _scaled(values, signal)

    return pick


def _take(
    values: NDArray[Any], where: NDArray[np.int64], signal: Signal, path: str
) -> NDArray[Any]:
    if where.max() >= len(values):
        raise InvalidInputError(
            f"{signal.where}: entry {where.max()} of {signal.topic} {path}, which has {len(values)}"
        )
    return values[where]


def _scaled(values: NDArray[Any], signal: Signal) -> NDArray[Any]:
    for name, numbers in (("scale", signal.scale), ("offset", signal.offset)):
        if not numbers:
            continue
        if len(numbers) not in (1, len(values)):
            raise InvalidInputError(f"{signal.where}: {name} has {len(numbers)} numbers for "
                                    f"{len(values)} values")
        by = np.asarray(numbers)
        values = values * by if name == "scale" else values + by
    return values
