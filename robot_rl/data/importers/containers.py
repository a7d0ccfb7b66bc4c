"""MCAP and rosbag1 files of ROS messages, read front to back.

They are read without their index, so a recording that was cut off gives what is whole in it, and
with every length checked against the file and every unpacked size against a cap before anything is
allocated. What the messages say is the business of ``messages``.
"""

from __future__ import annotations

import abc
import bz2
import importlib
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from robot_rl.data.importers.progress import beat
from robot_rl.errors import InvalidInputError, MissingDependencyError

# No chunk unpacks to more, and no message is longer, than this many bytes.
MAX_CHUNK = 256 << 20
# No message that was compressed by itself unpacks to more.
MAX_MESSAGE = 128 << 20
# A chunk holds at most this many records, and more by this many for each of its packed bytes: a
# small file must not unpack to an endless number of tiny records.
MAX_RECORDS, RECORDS_PER_BYTE = 10_000, 20
MAX_TOPICS = 4096
MAX_TEXT = 1 << 20
MCAP_MAGIC = b"\x89MCAP0\r\n"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
BAG_MAGIC = b"#ROSBAG V2.0\n"

# Where a message lies: file, chunk (or -1), offset, length. For SQLite: file, row, 0, 0.
Place = tuple[int, int, int, int]


@dataclass
class Topic:
    """A topic of a bag: its type in ROS 2 style, its definition as embedded (or ``""``), how that
    is written (``ros2msg``, ``ros2idl``, ``ros1``)."""

    name: str
    msgtype: str
    definition: str = ""
    encoding: str = ""


@dataclass(frozen=True)
class Message:
    """A message as it lies in the bag, received at ``received_ns``."""

    topic: str
    received_ns: int
    data: bytes
    place: Place


class Container(Protocol):
    """One file of messages."""

    topics: dict[str, Topic]
    notes: list[str]
    ros1: bool
    cut_off: bool

    def scan(self, wanted: set[str]) -> Iterator[Message]:
        """The messages of these topics in the order they were written."""
        ...

    def fetch(self, place: Place) -> bytes:
        """The message at a place that :meth:`scan` gave."""
        ...

    def close(self) -> None: ...


def unpack(data: bytes, how: str, size: int, where: str) -> bytes:
    """``data`` uncompressed, which must give exactly ``size`` bytes.

    Raises:
        InvalidInputError: it does not, or ``size`` is over the cap.
    """
    if size > MAX_CHUNK:
        raise InvalidInputError(f"{where}: unpacks to {size} bytes, the limit is {MAX_CHUNK}")
    if how in ("", "none"):
        out = data
    else:
        try:
            out = decompressor(how, where).decompress(data, max_length=size + 1)
        except InvalidInputError:
            raise
        except Exception as error:  # each library has its own
            raise InvalidInputError(f"{where}: damaged {how} data ({error})") from None
    if len(out) != size:
        raise InvalidInputError(f"{where}: {how or 'plain'} data does not unpack to {size} bytes")
    return bytes(out)


def plain_message(data: bytes, packed: bool, where: str) -> bytes:
    """A message of ROS 2, unpacked where messages were compressed one by one; it is seen by its
    first bytes, since that of a plain one is 0.

    Raises:
        InvalidInputError: it is damaged, or unpacks to more than the cap.
    """
    if not packed and data[:4] != _ZSTD_MAGIC:
        return data
    where = f"{where}: a message"
    try:
        packer = decompressor("zstd", where)
        out = packer.decompress(data, max_length=MAX_MESSAGE + 1)
    except InvalidInputError:
        raise
    except Exception as error:  # zstd's own
        raise InvalidInputError(f"{where}: damaged zstd data ({error})") from None
    if len(out) > MAX_MESSAGE:
        raise InvalidInputError(f"{where} unpacks to more than {MAX_MESSAGE} bytes")
    if not packer.eof:
        raise InvalidInputError(f"{where} ends in the middle of its zstd data")
    return bytes(out)


def decompressor(how: str, where: str) -> Any:
    if how == "bz2":
        return bz2.BZ2Decompressor()
    if how == "lz4":
        return _library("lz4.frame").LZ4FrameDecompressor()
    if how == "zstd":
        return _library("backports.zstd").ZstdDecompressor()
    raise InvalidInputError(f"{where}: unknown compression {how[:40]!r}; valid: bz2, lz4, zstd")


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingDependencyError(
            f"this bag's compression needs {name} ({error}); install robot_rl[data]"
        ) from None


def add_topic(topics: dict[str, Topic], topic: Topic, where: str) -> None:
    known = topics.get(topic.name)
    if known is not None and known.msgtype != topic.msgtype:
        raise InvalidInputError(
            f"{where}: topic {topic.name} has messages of two types, {known.msgtype} and "
            f"{topic.msgtype}"
        )
    if known is None and len(topics) >= MAX_TOPICS:
        raise InvalidInputError(f"{where}: more than {MAX_TOPICS} topics")
    topics[topic.name] = topic


class _Fields:
    """Reads the little-endian fields of a record, never past its end."""

    def __init__(self, data: bytes, where: str) -> None:
        self.data, self.pos, self.where = data, 0, where

    def take(self, count: int) -> bytes:
        if count > len(self.data) - self.pos:
            raise InvalidInputError(
                f"{self.where}: a field of {count} bytes in a record that has "
                f"{len(self.data) - self.pos} left"
            )
        self.pos += count
        return self.data[self.pos - count : self.pos]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def text(self) -> str:
        raw = self.take(self.number(4))
        if len(raw) > MAX_TEXT:
            raise InvalidInputError(f"{self.where}: a text of {len(raw)} bytes")
        return raw.decode("utf-8", "replace")


class _Chunked(abc.ABC):
    """What MCAP and rosbag1 share: a file with records, some within compressed chunks."""

    ros1 = False

    def __init__(self, path: Path, number: int) -> None:
        self.path, self.number = path, number
        self.topics: dict[str, Topic] = {}
        self.notes: list[str] = []
        self.file: BinaryIO = open(path, "rb")  # closed by close()
        self.size = os.fstat(self.file.fileno()).st_size
        self._chunk: tuple[int, bytes] = (-1, b"")
        self.cut_off = False
        self._most_records = MAX_RECORDS

    def close(self) -> None:
        self.file.close()

    def _read(self, offset: int, count: int) -> bytes:
        if count > self.size - offset:
            raise InvalidInputError(
                f"{self.path}: {count} bytes wanted at byte {offset} of {self.size}"
            )
        self.file.seek(offset)
        data = self.file.read(count)
        if len(data) != count:
            raise InvalidInputError(f"{self.path} became shorter while it was read")
        return data

    def _note_cut(self, offset: int) -> None:
        if not self.cut_off:
            self.cut_off = True
            self.notes.append(
                f"{self.path.name} was cut off: what is whole before byte {offset} was read"
            )

    @abc.abstractmethod
    def _unpacked(self, offset: int) -> bytes:
        """The chunk at ``offset``, unpacked."""

    def _check_count(self, count: int, chunk: int) -> None:
        if count > self._most_records:
            raise InvalidInputError(f"{self.path}: the chunk at byte {chunk} holds over "
                                    f"{count - 1} records, more than its size allows for")

    def fetch(self, place: Place) -> bytes:
        """The message at a place that ``scan`` gave."""
        _, chunk, offset, length = place
        if chunk < 0:
            return self._plain(self._read(offset, length))
        if self._chunk[0] != chunk:
            self._chunk = (chunk, self._unpacked(chunk))
        return self._plain(self._chunk[1][offset : offset + length])

    def _plain(self, data: bytes) -> bytes:
        return data


class McapFile(_Chunked):
    """An MCAP file of the profile ros2 (https://mcap.dev/spec)."""

    def __init__(self, path: Path, number: int = 0, packed: bool = False) -> None:
        super().__init__(path, number)
        self._packed = packed
        try:
            if self._read(0, min(8, self.size)) != MCAP_MAGIC:
                raise InvalidInputError(f"{path} is not an MCAP file: it does not begin like one")
            self._complete = (
                self.size >= 16 and self._read(self.size - 8, 8) == MCAP_MAGIC
            )
            self._schemas: dict[int, tuple[str, str, str]] = {}
            self._channels: dict[int, str] = {}
            if not self._read_summary():
                for _ in self.scan(set()):
                    pass
        except BaseException:
            self.close()
            raise

    def _read_summary(self) -> bool:
        """Learn the topics from the summary at the end, if there is a sound one."""
        if not self._complete or self.size < 45:
            return False
        footer = self._read(self.size - 37, 37)
        start = int.from_bytes(footer[9:17], "little")
        if footer[:9] != b"\x02" + struct.pack("<Q", 20) or not 8 < start < self.size - 37:
            return False
        seen_channel = False
        for op, offset, length in self._records(start):
            if op == 0x02:
                break
            if op in (0x03, 0x04):
                self._describe(op, self._read(offset, length))
                seen_channel |= op == 0x04
        return seen_channel

    def _records(self, offset: int) -> Iterator[tuple[int, int, int]]:
        """Operation, offset and length of each top-level record."""
        end = self.size - 8 if self._complete else self.size
        while offset < end:
            if offset + 9 > end:
                self._overrun(offset)
                return
            op, length = struct.unpack("<BQ", self._read(offset, 9))
            if length > end - offset - 9:
                self._overrun(offset)
                return
            yield op, offset + 9, length
            offset += 9 + length

    def _overrun(self, offset: int) -> None:
        if self._complete:
            raise InvalidInputError(f"{self.path}: the record at byte {offset} has a false length")
        self._note_cut(offset)

    def _describe(self, op: int, data: bytes) -> None:
        fields = _Fields(data, str(self.path))
        if op == 0x03:
            key = fields.number(2)
            if len(self._schemas) >= MAX_TOPICS:
                raise InvalidInputError(f"{self.path}: more than {MAX_TOPICS} schemas")
            self._schemas[key] = (fields.text(), fields.text(), fields.text())
            return
        channel, schema = fields.number(2), fields.number(2)
        name, encoding = fields.text(), fields.text()
        msgtype, how, definition = self._schemas.get(schema, ("", "", ""))
        if encoding != "cdr":
            # Not a ROS 2 message; it can be listed but not mapped.
            msgtype, definition = msgtype or encoding or "?", ""
        how = {"ros2idl": "ros2idl", "omgidl": "ros2idl"}.get(how, "ros2msg")
        add_topic(self.topics, Topic(name, msgtype, definition, how), str(self.path))
        self._channels[channel] = name

    def _unpacked(self, offset: int) -> bytes:
        op, length = struct.unpack("<BQ", self._read(offset, 9))
        where = f"{self.path}: the chunk at byte {offset}"
        if op != 0x06 or length < 40:
            raise InvalidInputError(f"{where} is none")
        head = _Fields(self._read(offset + 9, min(length, 200)), where)
        head.take(16)
        size, crc = head.number(8), head.number(4)
        how = head.text()
        packed = head.number(8)
        if head.pos + packed > length or packed > MAX_CHUNK:
            raise InvalidInputError(f"{where} holds {packed} bytes, over its record or the limit")
        self._most_records = MAX_RECORDS + RECORDS_PER_BYTE * packed
        data = unpack(self._read(offset + 9 + head.pos, packed), how, size, where)
        if crc and zlib.crc32(data) != crc:
            raise InvalidInputError(f"{where} is damaged: its checksum differs")
        return data

    def scan(self, wanted: set[str]) -> Iterator[Message]:
        """The messages of these topics in the order they were written."""
        for op, offset, length in self._records(8):
            beat()
            if op in (0x02, 0x0F):
                return
            if op in (0x03, 0x04):
                self._describe(op, self._read(offset, length))
            elif op == 0x05:
                yield from self._message(wanted, offset, length, -1, None)
            elif op == 0x06:
                yield from self._chunk_messages(wanted, offset - 9)

    def _chunk_messages(self, wanted: set[str], chunk: int) -> Iterator[Message]:
        data = self._unpacked(chunk)
        pos = count = 0
        while pos < len(data):
            count += 1
            self._check_count(count, chunk)
            if pos + 9 > len(data):
                raise InvalidInputError(f"{self.path}: the chunk at byte {chunk} ends in a record")
            op, length = struct.unpack_from("<BQ", data, pos)
            pos += 9
            if length > len(data) - pos:
                raise InvalidInputError(
                    f"{self.path}: a record of {length} bytes in a chunk that has "
                    f"{len(data) - pos} left"
                )
            if op in (0x03, 0x04):
                self._describe(op, data[pos : pos + length])
            elif op == 0x05:
                yield from self._message(wanted, pos, length, chunk, data)
            pos += length

    def _message(
        self, wanted: set[str], offset: int, length: int, chunk: int, data: bytes | None
    ) -> Iterator[Message]:
        if not 22 <= length <= MAX_CHUNK:
            raise InvalidInputError(f"{self.path}: a message record of {length} bytes")
        head = self._read(offset, 22) if data is None else data[offset : offset + 22]
        channel, _, received_ns, _ = struct.unpack("<HIQQ", head)
        name = self._channels.get(channel)
        if name is None:
            raise InvalidInputError(f"{self.path}: a message of the unknown channel {channel}")
        if name not in wanted:
            return
        place = (self.number, chunk, offset + 22, length - 22)
        body = (self._read(offset + 22, length - 22) if data is None
                else data[offset + 22 : offset + length])
        yield Message(name, received_ns, self._plain(body), place)

    def _plain(self, data: bytes) -> bytes:
        return plain_message(data, self._packed, str(self.path))


class RosbagFile(_Chunked):
    """A rosbag1 file, version 2.0 (http://wiki.ros.org/Bags/Format/2.0)."""

    ros1 = True

    def __init__(self, path: Path, number: int = 0) -> None:
        super().__init__(path, number)
        try:
            if self._read(0, min(13, self.size)) != BAG_MAGIC:
                raise InvalidInputError(f"{path} is not a bag of ROS 1: it does not begin like one")
            self._connections: dict[int, str] = {}
            self._learn_topics()
        except BaseException:
            self.close()
            raise

    def _learn_topics(self) -> None:
        head, _, _ = next(self._records(), ({}, 0, 0))
        index = int.from_bytes(head.get("index_pos", b""), "little")
        if 13 < index < self.size:
            for fields, offset, length in self._records(index):
                if fields.get("op") == b"\x07":
                    self._connect(fields, self._read(offset, length))
        if not self._connections:
            for _ in self.scan(set()):
                pass

    def _records(self, offset: int = len(BAG_MAGIC)) -> (
        Iterator[tuple[dict[str, bytes], int, int]]
    ):
        """Header fields, and offset and length of the data, of each top-level record."""
        while offset < self.size:
            if offset + 4 > self.size:
                self._note_cut(offset)
                return
            length = int.from_bytes(self._read(offset, 4), "little")
            if length > MAX_TEXT:
                raise InvalidInputError(f"{self.path}: a record header of {length} bytes")
            if offset + 8 + length > self.size:
                self._note_cut(offset)
                return
            fields = _header(self._read(offset + 4, length), str(self.path))
            body = int.from_bytes(self._read(offset + 4 + length, 4), "little")
            if body > self.size - offset - 8 - length:
                self._note_cut(offset)
                return
            yield fields, offset + 8 + length, body
            offset += 8 + length + body

    def _connect(self, fields: dict[str, bytes], data: bytes) -> None:
        number = int.from_bytes(fields.get("conn", b""), "little")
        name = fields.get("topic", b"").decode("utf-8", "replace")
        inner = _header(data, str(self.path))
        msgtype = inner.get("type", b"").decode("utf-8", "replace")
        definition = inner.get("message_definition", b"")
        if not name or len(definition) > MAX_TEXT:
            raise InvalidInputError(f"{self.path}: a connection without topic, or with a message "
                                    f"definition of {len(definition)} bytes")
        package, _, short = msgtype.partition("/")
        text = definition.decode("utf-8", "replace")
        topic = Topic(name, f"{package}/msg/{short}", text, "ros1")
        add_topic(self.topics, topic, str(self.path))
        self._connections[number] = name

    def _unpacked(self, offset: int) -> bytes:
        head = int.from_bytes(self._read(offset, 4), "little")
        fields = _header(self._read(offset + 4, head), str(self.path))
        packed = int.from_bytes(self._read(offset + 4 + head, 4), "little")
        where = f"{self.path}: the chunk at byte {offset}"
        if packed > MAX_CHUNK:
            raise InvalidInputError(f"{where} holds {packed} bytes, the limit is {MAX_CHUNK}")
        how = fields.get("compression", b"").decode("utf-8", "replace")
        size = int.from_bytes(fields.get("size", b""), "little")
        self._most_records = MAX_RECORDS + RECORDS_PER_BYTE * packed
        return unpack(self._read(offset + 8 + head, packed), how, size, where)

    def scan(self, wanted: set[str]) -> Iterator[Message]:
        """The messages of these topics in the order they were written."""
        for fields, offset, length in self._records():
            beat()
            op = fields.get("op", b"")
            if op == b"\x07":
                self._connect(fields, self._read(offset, length))
            elif op == b"\x02":
                yield from self._message(wanted, fields, offset, length, -1, None)
            elif op == b"\x05":
                yield from self._chunk_messages(wanted, self._start_of(fields, offset))

    def _start_of(self, fields: dict[str, bytes], offset: int) -> int:
        header = sum(4 + len(name.encode()) + 1 + len(value) for name, value in fields.items())
        return offset - 8 - header

    def _chunk_messages(self, wanted: set[str], chunk: int) -> Iterator[Message]:
        data = self._unpacked(chunk)
        reader, count = _Fields(data, f"{self.path}: the chunk at byte {chunk}"), 0
        while reader.pos < len(data):
            count += 1
            self._check_count(count, chunk)
            fields = _header(reader.take(reader.number(4)), str(self.path))
            length = reader.number(4)
            offset = reader.pos
            body = reader.take(length)
            op = fields.get("op", b"")
            if op == b"\x07":
                self._connect(fields, body)
            elif op == b"\x02":
                yield from self._message(wanted, fields, offset, length, chunk, body)

    def _message(
        self, wanted: set[str], fields: dict[str, bytes], offset: int, length: int, chunk: int,
        body: bytes | None,
    ) -> Iterator[Message]:
        name = self._connections.get(int.from_bytes(fields.get("conn", b""), "little"))
        stamp = fields.get("time", b"")
        if name is None or len(stamp) != 8:
            raise InvalidInputError(f"{self.path}: a message without a known connection or time")
        if name not in wanted:
            return
        seconds, rest = struct.unpack("<LL", stamp)
        if body is None:
            body = self._read(offset, length)
        place = (self.number, chunk, offset, length)
        yield Message(name, seconds * 10**9 + rest, body, place)


def _header(data: bytes, where: str) -> dict[str, bytes]:
    fields: dict[str, bytes] = {}
    reader = _Fields(data, where)
    while reader.pos < len(data):
        name, equals, value = reader.take(reader.number(4)).partition(b"=")
        if not equals or name.decode("ascii", "replace") in fields:
            raise InvalidInputError(f"{where}: a header field that is none, or comes twice")
        fields[name.decode("ascii", "replace")] = value
    return fields
