"""Changes inside an episode's file with every checksum made right again behind them."""

from __future__ import annotations

import json
import random
import struct
import zlib
from collections.abc import Callable
from typing import Any

import lz4.frame

MAGIC = b"\x89MCAP0\r\n"
_METADATA, _CHUNK, _DATA_END, _FOOTER = 0x0C, 0x06, 0x0F, 0x02
_HUGE = (0, 1, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**63, 2**64 - 1)

Records = list[tuple[int, bytes]]
Mutate = Callable[[bytes, random.Random], bytes]


def split(content: bytes) -> Records:
    """The records of a file by opcode; of its magic numbers none."""
    records, at = [], len(MAGIC)
    while at + 9 <= len(content) - len(MAGIC):
        opcode, length = struct.unpack_from("<BQ", content, at)
        records.append((opcode, content[at + 9 : at + 9 + length]))
        at += 9 + length
    return records


def join(records: Records) -> bytes:
    """A file of these records; the checksums of its data and its index are right."""
    out, summary_at = bytearray(MAGIC), 0
    for opcode, content in records:
        if opcode == _DATA_END and not summary_at:
            content = struct.pack("<I", zlib.crc32(out))
            summary_at = len(out) + 9 + 4
        elif opcode == _FOOTER and len(content) == 20:
            content = struct.pack("<Q", summary_at) + content[8:16]
            head = struct.pack("<BQ", _FOOTER, 20) + content
            crc = zlib.crc32(head, zlib.crc32(out[summary_at:]))
            content += struct.pack("<I", crc)
        out += struct.pack("<BQ", opcode, len(content)) + content
    return bytes(out + MAGIC)


def metadata_of(content: bytes) -> tuple[str, dict[str, str]]:
    """Name and texts of a metadata record."""
    name, at = _text(content, 0)
    (length,) = struct.unpack_from("<I", content, at)
    at, end, pairs = at + 4, at + 4 + length, {}
    while at < end:
        key, at = _text(content, at)
        pairs[key], at = _text(content, at)
    return name, pairs


def metadata(name: str, pairs: dict[str, str]) -> bytes:
    """A metadata record of these texts."""
    packed = b"".join(_packed(key) + _packed(value) for key, value in pairs.items())
    return _packed(name) + struct.pack("<I", len(packed)) + packed


def signed_metadata(name: str, text: str) -> bytes:
    """A metadata record of this package, its checksum right."""
    crc = zlib.crc32(text.encode(), zlib.crc32(name.encode()))
    return metadata(name, {"json": text, "crc32": f"{crc:08x}"})


def unpack_chunk(content: bytes) -> bytes:
    """What a chunk holds."""
    compression, at = _text(content, 28)
    data = content[at + 8 :]
    return bytes(lz4.frame.decompress(data)) if compression == "lz4" else data


def chunk(data: bytes, content: bytes, *, packed: bytes | None = None, size: int = -1) -> bytes:
    """A chunk like ``content`` that holds ``data``."""
    packed = lz4.frame.compress(data) if packed is None else packed
    head = content[:16] + struct.pack("<QI", len(data) if size < 0 else size, zlib.crc32(data))
    return head + _packed("lz4") + struct.pack("<Q", len(packed)) + packed


def change_json(value: Any, rng: random.Random) -> Any:
    """``value`` with something in it replaced, removed, doubled or made absurd."""
    absurd: list[Any] = [None, True, -1, 0, 2**31, 2**63, 10**30, 1e308, "", "x" * 300, [], {},
                         [[]], "../../etc/passwd", "\x00", [0] * 9, {"json": 1}]
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(sorted(value))
        changed = dict(value)
        if rng.random() < 0.15:
            del changed[key]
        elif rng.random() < 0.1:
            changed[rng.choice(["x", "index", "", "action", key + "2"])] = changed.pop(key)
        else:
            changed[key] = change_json(value[key], rng)
        return changed
    if isinstance(value, list) and value and rng.random() < 0.85:
        at = rng.randrange(len(value))
        return rng.choice([value[:at] + value[at + 1 :], [*value, value[at]], value[::-1],
                           [*value[:at], change_json(value[at], rng), *value[at + 1 :]]])
    if isinstance(value, int) and rng.random() < 0.5:
        return rng.choice([value + 1, value - 1, -value, value * 1000])
    if isinstance(value, str) and value and rng.random() < 0.5:
        return rng.choice([value[:-1], value + "1", value.upper(), "float16", "bool", "uint64",
                           "state", "step"])
    return rng.choice(absurd)


def mutate_signed(content: bytes, rng: random.Random, plain: Mutate) -> bytes:
    """A change behind the checksums: in a chunk, a description, the order of things, the index."""
    records = split(content)
    how = rng.random()
    if how < 0.45:
        _change_chunk(records, rng, plain)
    elif how < 0.75:
        _change_metadata(records, rng)
    elif how < 0.85:
        at = rng.randrange(len(records))
        opcode, body = records[at]
        records[at] = (opcode, plain(body, rng))
    else:
        _change_order(records, rng)
    return join(records)


def _change_chunk(records: Records, rng: random.Random, plain: Mutate) -> None:
    at = rng.choice([i for i, (opcode, _) in enumerate(records) if opcode == _CHUNK])
    body = records[at][1]
    data, how = unpack_chunk(body), rng.random()
    if how < 0.5:
        changed = chunk(plain(data, rng), body)
    elif how < 0.8:
        changed = chunk(_change_inner(data, rng), body)
    elif how < 0.9:  # it says that it holds more, or less, than it does
        changed = chunk(data, body, size=rng.choice(_HUGE))
    else:  # a bomb
        many = bytes(rng.choice([1 << 20, 63 << 20]))
        changed = chunk(many, body)
    records[at] = (_CHUNK, changed)


def _change_inner(data: bytes, rng: random.Random) -> bytes:
    """Remove, double, swap or lengthen records of a chunk."""
    inner, at = [], 0
    while at + 9 <= len(data):
        (length,) = struct.unpack_from("<Q", data, at + 1)
        inner.append(data[at : at + 9 + length])
        at += 9 + length
    one, two = rng.randrange(len(inner)), rng.randrange(len(inner))
    how = rng.randrange(5)
    if how == 0:
        del inner[one]
    elif how == 1:
        inner.insert(two, inner[one])
    elif how == 2:
        inner[one], inner[two] = inner[two], inner[one]
    elif how == 3:
        inner[one] = inner[one][:1] + struct.pack("<Q", rng.choice(_HUGE)) + inner[one][9:]
    else:
        inner *= rng.choice([2, 50])
    return b"".join(inner)


def _change_metadata(records: Records, rng: random.Random) -> None:
    at = rng.choice([i for i, (opcode, _) in enumerate(records) if opcode == _METADATA])
    name, pairs = metadata_of(records[at][1])
    value = json.loads(pairs["json"])
    for _ in range(rng.choice([1, 1, 2, 5])):
        value = change_json(value, rng)
    text = json.dumps(value)
    if rng.random() < 0.05:
        text = rng.choice(["[" * 100_000, "NaN", "1e999", "9" * 5000, "", '"\\ud800"'])
    records[at] = (_METADATA, signed_metadata(name, text))


def _change_order(records: Records, rng: random.Random) -> None:
    one, two = rng.randrange(len(records)), rng.randrange(len(records))
    how = rng.randrange(4)
    if how == 0:
        del records[one]
    elif how == 1:
        records.insert(two, records[one])
    elif how == 2:
        records[one], records[two] = records[two], records[one]
    else:
        records[one] = (rng.randrange(256), records[one][1])


def _text(content: bytes, at: int) -> tuple[str, int]:
    (length,) = struct.unpack_from("<I", content, at)
    return content[at + 4 : at + 4 + length].decode(), at + 4 + length


def _packed(text: str) -> bytes:
    return struct.pack("<I", len(text.encode())) + text.encode()
