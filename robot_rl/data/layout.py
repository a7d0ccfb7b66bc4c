"""How one state and the step that led to it are laid out in bytes: a ROS 2 message of fixed size.

A row is a message of plain CDR (little endian, XCDR1) whose definition is made from the arrays of
an episode. Tools that read ROS 2 bags decode it from the definition in the file; here it is a
numpy structured type, so that an episode is decoded as a whole.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from robot_rl.errors import InvalidInputError

ROW_SCHEMA = "robot_rl/msg/Step"
INDEX = "index"
_CDR_HEADER = b"\x00\x01\x00\x00"
_ROS_TYPES = {
    "bool": "bool", "int8": "int8", "uint8": "uint8", "int16": "int16", "uint16": "uint16",
    "int32": "int32", "uint32": "uint32", "int64": "int64", "uint64": "uint64",
    "float32": "float32", "float64": "float64",
    # ROS has no half precision; its bits travel as they are.
    "float16": "uint16",
}
_MAX_ROW_BYTES = 16 << 20
MAX_FIELDS = 4096
_MAX_KEY = 200

Rows = Literal["state", "step"]


@dataclass(frozen=True)
class Field:
    """One array of an episode: its key, type and shape of a row, and what has a row of it."""

    key: str
    dtype: str
    shape: tuple[int, ...]
    rows: Rows

    def as_dict(self) -> dict[str, Any]:
        return {"key": self.key, "dtype": self.dtype, "shape": list(self.shape), "rows": self.rows}

    @classmethod
    def from_dict(cls, raw: Any) -> Field:
        """The field that :meth:`as_dict` described.

        Raises:
            InvalidInputError: it does not describe one.
        """
        try:
            key, dtype, shape, rows = raw["key"], raw["dtype"], raw["shape"], raw["rows"]
            if not (isinstance(key, str) and is_name(key) and dtype in _ROS_TYPES
                    and rows in ("state", "step") and isinstance(shape, list)
                    and len(shape) <= 8
                    and all(isinstance(n, int) and 0 <= n <= _MAX_ROW_BYTES for n in shape)):
                raise TypeError(raw)
        except (TypeError, KeyError, ValueError):
            raise InvalidInputError(f"{str(raw)[:200]} does not describe an array") from None
        return cls(key, dtype, tuple(shape), rows)

    @property
    def size(self) -> int:
        """Numbers in a row."""
        size = 1
        for n in self.shape:
            size *= n
        return size


class RowLayout:
    """The bytes of a row.

    Attributes:
        fields: the arrays, in order.
        dtype: the message with its CDR header as a structured type; names are the keys.
        definition: the message's definition for ROS tools.
    """

    def __init__(self, fields: list[Field]) -> None:
        keys = [f.key for f in fields]
        if len(set(keys)) != len(keys) or INDEX in keys:
            raise InvalidInputError(f"keys of an episode should differ, and none be {INDEX!r}: "
                                    f"{', '.join(keys)}")
        self.fields = fields
        # The message starts behind a header of 4 bytes; numbers are aligned to their own size.
        if len(fields) > MAX_FIELDS:
            raise InvalidInputError(f"an episode has {len(fields)} arrays, the limit is "
                                    f"{MAX_FIELDS}")
        offset = 4 + 8
        names, offsets = [INDEX], [4]
        formats: list[np.dtype[Any]] = [np.dtype("<i8")]
        lines = [f"int64 {INDEX}"]
        for field, name in zip(fields, _ros_names(keys), strict=True):
            if field.size == 0:
                continue
            single = np.dtype(field.dtype).newbyteorder("<")
            if offset + single.itemsize * field.size > _MAX_ROW_BYTES:
                raise InvalidInputError(
                    f"{field.key} of shape {field.shape} is too large for a row; the limit is "
                    f"{_MAX_ROW_BYTES} bytes, of which {offset} are taken"
                )
            offset += -(offset - 4) % single.itemsize
            names.append(field.key)
            formats.append(np.dtype((single, field.shape)))
            offsets.append(offset)
            offset += single.itemsize * field.size
            array = "" if field.shape == () else f"[{field.size}]"
            lines.append(f"{_ROS_TYPES[field.dtype]}{array} {name}")
        self.dtype = np.dtype(
            {"names": names, "formats": formats, "offsets": offsets, "itemsize": offset}
        )
        self.definition = "\n".join(lines) + "\n"

    @classmethod
    def of(
        cls, states: Mapping[str, NDArray[Any]], steps: Mapping[str, NDArray[Any]]
    ) -> RowLayout:
        """The layout for single rows of these arrays, by key."""
        fields = []
        for rows, arrays in (("state", states), ("step", steps)):
            for key, array in arrays.items():
                row = np.asarray(array)
                if row.dtype.name not in _ROS_TYPES:
                    raise InvalidInputError(
                        f"{key} has type {row.dtype}, should be one of {', '.join(_ROS_TYPES)}"
                    )
                described = {"key": key, "dtype": row.dtype.name, "shape": list(row.shape),
                             "rows": rows}
                fields.append(Field.from_dict(described))  # what cannot be read is not written
        return cls(fields)

    def empty(self, count: int) -> NDArray[Any]:
        """``count`` rows of zeros, numbered."""
        rows = np.zeros(count, self.dtype)
        raw = rows.view(np.uint8).reshape(count, -1)
        raw[:, :4] = np.frombuffer(_CDR_HEADER, np.uint8)
        rows[INDEX] = np.arange(count)
        return rows

    def decode(self, rows: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Arrays by key from the structured rows of a whole episode."""
        count, arrays = len(rows), {}
        for field in self.fields:
            if field.size:
                values = np.ascontiguousarray(rows[field.key])
                values = values.astype(np.dtype(field.dtype), copy=False)
            else:
                values = np.zeros((count, *field.shape), field.dtype)
            arrays[field.key] = values if field.rows == "state" else values[1:].copy()
        return arrays


def is_name(key: str) -> bool:
    """Whether ``key`` can name an array or a camera: short text without lone surrogates."""
    return 0 < len(key) <= _MAX_KEY and not any("\ud800" <= c <= "\udfff" for c in key)


def _ros_names(keys: list[str]) -> list[str]:
    """A legal ROS field name for each key, all different."""
    names: dict[str, None] = {}
    for key in keys:
        stem = re.sub("[^a-z0-9]+", "_", key.lower()).strip("_")
        if not stem or not stem[0].isalpha():
            stem = f"f_{stem}".rstrip("_")
        name, count = stem, 1
        while name in names or name == INDEX:
            count += 1
            name = f"{stem}_{count}"
        names[name] = None
    return list(names)
