"""Bags byte by byte, and how a reader of them is judged."""

from __future__ import annotations

import re
import struct
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rosbags.typesys import Stores, get_typestore

from robot_rl.data.importers.base import ImportOptions
from robot_rl.data.importers.rosbag import open_source
from robot_rl.errors import InvalidInputError, RobotRLError

MAGIC = b"\x89MCAP0\r\n"
MAP: dict[str, Any] = {"observation.state": {"topic": "/s", "field": "data"},
                       "action": {"topic": "/s", "field": "data"}}
IMAGES: dict[str, Any] = {"images": {"c": "/c"}, "action": {"topic": "/s", "field": "data"}}
SECONDS, BYTES = 1.0, 400 << 20
FLOATS = "std_msgs/msg/Float64MultiArray"
STORE = get_typestore(Stores.ROS2_HUMBLE)


def text(value: str | bytes) -> bytes:
    raw = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<I", len(raw)) + raw


def record(op: int, body: bytes, length: int | None = None) -> bytes:
    return struct.pack("<BQ", op, len(body) if length is None else length) + body


def schema(name: str, definition: str, encoding: str = "ros2msg") -> bytes:
    return record(3, struct.pack("<H", 1) + text(name) + text(encoding) + text(definition))


def channel(topic: str = "/s", number: int = 1) -> bytes:
    return record(4, struct.pack("<HH", number, 1) + text(topic) + text("cdr") + text(b""))


def message(data: bytes, at: int = 10**9, number: int = 1) -> bytes:
    return record(5, struct.pack("<HIQQ", number, 0, at, at) + data)


def mcap(*records: bytes, end: bool = True) -> bytes:
    """A file without a summary."""
    out = MAGIC + record(1, text("ros2") + text("x")) + b"".join(records)
    return out + record(15, b"\x00" * 4) + record(2, b"\x00" * 20) + MAGIC if end else out


def chunk(how: str, packed: bytes, size: int, crc: int = 0, length: int | None = None) -> bytes:
    count = len(packed) if length is None else length
    return record(6, struct.pack("<QQQI", 0, 9, size, crc) + text(how)
                  + struct.pack("<Q", count) + packed)


def floats(values: Any = (1.0, 2.0)) -> bytes:
    kinds = STORE.types
    layout = kinds["std_msgs/msg/MultiArrayLayout"](dim=[], data_offset=0)
    return bytes(STORE.serialize_cdr(
        kinds[FLOATS](layout=layout, data=np.asarray(values, float)), FLOATS))


def definition(kind: str = FLOATS) -> str:
    return str(STORE.generate_msgdef(kind, ros_version=2)[0])


def sound() -> bytes:
    rows = [message(floats(), at=10**9 + k * 10**8) for k in range(12)]
    return mcap(schema(FLOATS, definition()), channel(), *rows)


def custom(
    definition_text: str, name: str = "my_msgs/msg/A",
    data: bytes = b"\x00\x01" + b"\x00" * 62,
) -> bytes:
    return mcap(schema(name, definition_text), channel(), *(
        message(data, at=10**9 + k * 10**8) for k in range(12)))


def zstd(data: bytes) -> bytes:
    from backports import zstd as library

    return bytes(library.compress(data))


def zstd_bomb(size: int) -> bytes:
    """``size`` zeros, without saying so in advance."""
    from backports import zstd as library

    packer = library.ZstdCompressor()
    block = bytes(1 << 22)
    return b"".join([*(packer.compress(block) for _ in range(size >> 22)), packer.flush()])


def lz4(data: bytes) -> bytes:
    import lz4.frame

    return bytes(lz4.frame.compress(data))


ZEROS = bytes(64 << 20)


def judged(read: Callable[[], Any]) -> RobotRLError | None:
    """What reading raised; fails if it took long, or much memory."""
    tracemalloc.start()
    begun, begun_wall = time.process_time(), time.monotonic()
    try:
        read()
        found = None
    except RobotRLError as error:
        found = error
    finally:
        took, waited = time.process_time() - begun, time.monotonic() - begun_wall
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < BYTES, f"{peak >> 20} MiB"
    # Of the processor's time: the machine may be busy with other things.
    assert took < SECONDS and waited < 30 * SECONDS, f"{took:.2f} s, {waited:.2f} s"
    return found


def read_all(path: Path, mapping: dict[str, Any]) -> int:
    """How many steps were read."""
    source = open_source(path, ImportOptions(rate_hz=10.0, mapping=mapping))
    try:
        return sum(len(episode) for episode in source)
    finally:
        source.close()


# A refusal says where it lies: in the file, a topic, a key of the mapping, or the types.
WHERE = re.compile(r"/a\.(mcap|db3|bag)\b|topic /s: |observation\.state: |message definitions")


def refused(path: Path, mapping: dict[str, Any] = MAP) -> str:
    error = judged(lambda: read_all(path, mapping))
    assert isinstance(error, InvalidInputError), "it was read"
    said = str(error)
    assert "\n" not in said and len(said) < 2000
    return said
