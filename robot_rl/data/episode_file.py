"""One episode as one MCAP file: written as it happens, complete once it is closed.

Rows (see :mod:`robot_rl.data.layout`) lie on the topic ``/episode``, each camera's frames on a
topic of their own as ``sensor_msgs/msg/Image`` or ``CompressedImage``. Metadata records hold what
the dataset is (``robot_rl.dataset``), the arrays' names and types (``robot_rl.layout``) and, as the
last thing before the end of the data, what was committed (``robot_rl.commit``). A checksum covers
every byte before the index, and one each every metadata record and every chunk, so that a file
which was never finished can be trusted as far as it goes. Reading walks the records of one file
with every length checked against what is left of it, so that a damaged file gives an error and
never a large allocation.
"""

from __future__ import annotations

import json
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any, BinaryIO, Protocol

import numpy as np
from mcap.data_stream import ReadDataStream
from mcap.exceptions import McapError
from mcap.opcode import Opcode
from mcap.records import Chunk, DataEnd, MetadataIndex
from mcap.writer import CompressionType, Writer
from numpy.typing import NDArray

from robot_rl.data.frames import (
    CameraFormat,
    FrameDecoder,
    frame_message,
    frame_schema,
    seconds_of,
    stamp_ns,
)
from robot_rl.data.layout import MAX_FIELDS, ROW_SCHEMA, Field, RowLayout, is_name
from robot_rl.errors import InvalidInputError

EPISODE_TOPIC = "/episode"
DATASET_RECORD = "robot_rl.dataset"
LAYOUT_RECORD = "robot_rl.layout"
FRAME_STAMPS_RECORD = "robot_rl.frame_stamps"
COMMIT_RECORD = "robot_rl.commit"
MAGIC = b"\x89MCAP0\r\n"
MAX_CHUNK_BYTES = 64 << 20
MAX_EPISODE_BYTES = 8 << 30
_MAX_RECORD_BYTES = MAX_CHUNK_BYTES + (1 << 20)
_MAX_METADATA_BYTES = 16 << 20
_MAX_INDEX_BYTES = 64 << 20
_MAX_INDEX_RECORDS = 1 << 20
_MAX_PAIRS = 16
_MAX_DECLARED = 1024
_OWN = "robot_rl."
_MESSAGE_HEADER = 9 + 22
_READ_ERRORS = (McapError, struct.error, ValueError, KeyError, EOFError, RuntimeError,
                OverflowError, MemoryError)


class Sink(Protocol):
    """Where the bytes of a file go."""

    def write(self, data: Any) -> int: ...

    def tell(self) -> int: ...

    def flush(self) -> None: ...


class EpisodeFileWriter:
    """Writes the records of one episode.

    Args:
        sink: takes the bytes; ``flush`` need not sync.
        layout: of the rows.
        cameras: format of each camera's frames.
        records: JSON by the name of its metadata record, written first.
    """

    def __init__(
        self,
        sink: Sink,
        layout: RowLayout,
        cameras: dict[str, CameraFormat],
        records: dict[str, Any],
    ) -> None:
        self._writer = Writer(
            sink,  # type: ignore[arg-type]
            chunk_size=4 << 20,
            # Fast enough for two cameras beside the control loop; every reader knows it.
            compression=CompressionType.LZ4,
            enable_data_crcs=True,
        )
        self._writer.start(profile="ros2", library="robot_rl")
        described = {
            "fields": [f.as_dict() for f in layout.fields],
            "cameras": {name: camera.as_dict() for name, camera in cameras.items()},
        }
        for name, value in {**records, LAYOUT_RECORD: described}.items():
            self._metadata(name, value)
        schema = self._writer.register_schema(ROW_SCHEMA, "ros2msg", layout.definition.encode())
        self._rows = self._writer.register_channel(EPISODE_TOPIC, "cdr", schema)
        self._cameras = cameras
        self._stamps: dict[str, list[float]] = {name: [] for name in cameras}
        self._inexact: set[str] = set()
        self._channels: dict[str, int] = {}
        schemas: dict[str, int] = {}
        topics = _topics(list(cameras))
        for name, camera in cameras.items():
            if not is_name(name):
                raise InvalidInputError(f"{name[:80]!r} cannot be a camera's name; it should be "
                                        "text of 1 to 200 characters")
            kind, definition = frame_schema(camera)
            if kind not in schemas:
                schemas[kind] = self._writer.register_schema(kind, "ros2msg", definition.encode())
            self._channels[name] = self._writer.register_channel(
                f"/observation/images/{topics[name]}", "cdr", schemas[kind], {"camera": name}
            )

    def frame(self, camera: str, encoded: bytes, at_s: float) -> None:
        """Add a frame taken at ``at_s``; ``encoded`` is what
        :func:`robot_rl.data.frames.encode` gave."""
        at_ns = stamp_ns(at_s)
        data = frame_message(self._cameras[camera], camera, encoded, at_ns)
        stamps = self._stamps[camera]
        self._writer.add_message(self._channels[camera], at_ns, data, at_ns, len(stamps))
        stamps.append(float(at_s))
        if seconds_of(at_ns) != at_s:
            self._inexact.add(camera)

    @property
    def frames(self) -> dict[str, int]:
        """How many frames each camera has given."""
        return {name: len(stamps) for name, stamps in self._stamps.items()}

    def row(self, number: int, message: bytes, stamp_ns: int) -> None:
        """Add row ``number`` of the episode."""
        self._writer.add_message(self._rows, stamp_ns, message, stamp_ns, number)

    def flush(self) -> None:
        """Hand everything so far to the sink, in records that a reader can follow."""
        self._writer.flush()

    def finish(self, commit: dict[str, Any]) -> None:
        """End the file with what was committed."""
        self._writer.flush()
        # Messages are stamped in whole nanoseconds; only what that cannot tell is said again.
        exact = {name: self._stamps[name] for name in sorted(self._inexact)}
        if sum(len(stamps) for stamps in exact.values()) > _MAX_METADATA_BYTES // 32:
            exact = {}
        self._metadata(FRAME_STAMPS_RECORD, exact)
        self._metadata(COMMIT_RECORD, commit)
        self._writer.finish()

    def _metadata(self, name: str, value: Any) -> None:
        text = as_json(name, value)
        if len(text) > _MAX_METADATA_BYTES:
            raise InvalidInputError(
                f"{name} takes {len(text)} bytes as JSON, the limit is {_MAX_METADATA_BYTES}"
            )
        self._writer.add_metadata(name, {"json": text, "crc32": _checksum(name, text)})


def as_json(name: str, value: Any) -> str:
    """``value`` as JSON in ASCII.

    Raises:
        InvalidInputError: it cannot be said in JSON; ``name`` says what it is.
    """
    try:
        return json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInputError(f"{name} cannot be kept as JSON: {error}") from None


def _checksum(name: str, text: str) -> str:
    return f"{zlib.crc32(text.encode(), zlib.crc32(name.encode())):08x}"


def _topics(cameras: list[str]) -> dict[str, str]:
    """A legal ROS name for each camera, all different."""
    topics: dict[str, str] = {}
    for camera in cameras:
        stem = re.sub("[^A-Za-z0-9]+", "_", camera).strip("_")
        if not stem or stem[0].isdigit():
            stem = f"camera_{stem}".rstrip("_")
        name, count = stem, 1
        while name in topics.values():
            count += 1
            name = f"{stem}_{count}"
        topics[camera] = name
    return topics


@dataclass
class FileContents:
    """What a file holds, as far as it could be read.

    ``frames`` are (F, H, W, C) by camera, ``frame_stamps_s`` (F,); empty when not asked for.
    ``encoded`` holds them as they lie in the file instead, where that was asked for. ``problem``
    says why reading stopped, where it did; ``commit`` is None in an unfinished file.
    """

    records: dict[str, Any] = field(default_factory=dict)
    layout: RowLayout | None = None
    cameras: dict[str, CameraFormat] = field(default_factory=dict)
    rows: NDArray[Any] | None = None
    frames: dict[str, NDArray[np.uint8]] = field(default_factory=dict)
    frame_stamps_s: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    encoded: dict[str, list[bytes]] = field(default_factory=dict)
    problem: str = ""

    @property
    def commit(self) -> dict[str, Any] | None:
        found = self.records.get(COMMIT_RECORD)
        return found if isinstance(found, dict) else None


def read_episode_file(
    file: BinaryIO, size: int, *, images: bool = True, partial: bool = False, encoded: bool = False
) -> FileContents:
    """Read a file of ``size`` bytes.

    Args:
        images: decode the frames too.
        encoded: with ``images``, keep the frames as they lie in the file.
        partial: take what comes before the first damage or the end, instead of raising.

    Raises:
        InvalidInputError: it is damaged or not finished, and ``partial`` was not asked for.
    """
    reader = _Reader(images, encoded)
    try:
        for opcode, content, checksum in _records(file, size):
            reader.take(opcode, content, checksum)
            if opcode == Opcode.DATA_END:
                break
        else:
            raise InvalidInputError("it ends before its data does")
    except (*_READ_ERRORS, InvalidInputError) as error:
        if not partial:
            raise InvalidInputError(f"damaged: {_what(error)}") from None
        reader.contents.problem = _what(error)
    try:
        return reader.finish(partial)
    except (*_READ_ERRORS, InvalidInputError) as error:
        raise InvalidInputError(f"damaged: {_what(error)}") from None


def _what(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return "it takes more memory than there is"
    return str(error) or type(error).__name__


def read_records(file: BinaryIO, size: int, names: tuple[str, ...]) -> dict[str, Any]:
    """Only these metadata records, found through the file's index.

    Raises:
        InvalidInputError: the index or a record is damaged, or one is not there.
    """
    try:
        return _indexed(file, size, names)
    except (*_READ_ERRORS, InvalidInputError) as error:
        raise InvalidInputError(f"damaged: {_what(error)}") from None


def check_index(file: BinaryIO, size: int) -> None:
    """Raise InvalidInputError unless the index behind the data is whole."""
    try:
        _summary(file, size)
    except (*_READ_ERRORS, InvalidInputError) as error:
        raise InvalidInputError(
            f"its index is damaged: {_what(error)}"
        ) from None


def _summary(file: BinaryIO, size: int) -> bytes:
    tail = 9 + 20 + len(MAGIC)
    if size < tail + len(MAGIC):
        raise InvalidInputError(f"{size} bytes are too few for a file")
    file.seek(size - tail)
    end = file.read(tail)
    opcode, length, start, _, crc = struct.unpack_from("<BQQQI", end)
    if end[-len(MAGIC):] != MAGIC or opcode != Opcode.FOOTER or length != 20:
        raise InvalidInputError("it does not end as an MCAP file does")
    if not 0 < start <= size - tail or size - tail - start > _MAX_INDEX_BYTES:
        raise InvalidInputError(f"its index is said to start at byte {start} of {size}")
    file.seek(start)
    summary = file.read(size - tail - start)
    if zlib.crc32(end[: 9 + 16], zlib.crc32(summary)) != crc:
        raise InvalidInputError("the checksum of its index does not match")
    return summary


def _indexed(file: BinaryIO, size: int, names: tuple[str, ...]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for opcode, content in _split(_summary(file, size)):
        if opcode != Opcode.METADATA_INDEX:
            continue
        entry = MetadataIndex.read(_stream(content))
        if entry.name in names:
            if not 9 < entry.length <= _MAX_RECORD_BYTES or entry.offset + entry.length > size:
                raise InvalidInputError(f"{entry.name} is said to take {entry.length} bytes")
            file.seek(entry.offset)
            name, value = _metadata(file.read(entry.length)[9:])
            if name != entry.name:
                raise InvalidInputError(f"its index names {entry.name}, where {name[:80]!r} lies")
            found[name] = value
    missing = [name for name in names if name not in found]
    if missing:
        raise InvalidInputError(f"it lacks {', '.join(missing)}")
    return found


def _split(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = count = 0
    while at < len(data):
        count += 1
        if at + 9 > len(data) or count > _MAX_INDEX_RECORDS:
            raise InvalidInputError("a record is cut off")
        opcode, length = struct.unpack_from("<BQ", data, at)
        at += 9
        if length > len(data) - at:
            raise InvalidInputError(f"a record is said to take {length} bytes, {len(data) - at} "
                                    "are left")
        yield opcode, data[at : at + length]
        at += length


def _records(file: BinaryIO, size: int) -> Iterator[tuple[int, bytes, int]]:
    """Opcode, content and the checksum of everything before the record."""
    if file.read(len(MAGIC)) != MAGIC:
        raise InvalidInputError("it does not begin as an MCAP file does")
    checksum, left = zlib.crc32(MAGIC), size - len(MAGIC)
    while left >= 9:
        header = file.read(9)
        if len(header) < 9:
            return
        opcode, length = struct.unpack("<BQ", header)
        left -= 9
        if opcode == 0:
            raise InvalidInputError("there are zeros where a record should be")
        if length > left or length > _MAX_RECORD_BYTES:
            raise InvalidInputError(f"a record is said to take {length} bytes, {left} are left")
        content = file.read(length)
        if len(content) < length:
            return
        yield opcode, content, checksum
        checksum = zlib.crc32(content, zlib.crc32(header, checksum))
        left -= length


def _stream(content: bytes) -> ReadDataStream:
    return ReadDataStream(BytesIO(content))


def _metadata(content: bytes) -> tuple[str, Any]:
    """Name and value of a metadata record; the value of one of somebody else's is None."""
    name, at = _text(content, 0)
    pairs = _pairs(content, at)
    if not name.startswith(_OWN):
        return name, None
    text = pairs.get("json", "")
    if pairs.get("crc32") != _checksum(name, text):
        raise InvalidInputError(f"the checksum of {name[:80]} does not match")
    if len(text) > _MAX_METADATA_BYTES:
        raise InvalidInputError(f"{name[:80]} takes {len(text)} bytes")
    try:
        return name, json.loads(text)
    except (ValueError, RecursionError):
        raise InvalidInputError(f"{name[:80]!r} is not JSON") from None


def _text(data: bytes, at: int) -> tuple[str, int]:
    """The text at ``at`` behind its length, and where it ends."""
    (length,) = struct.unpack_from("<I", data, at)
    if length > len(data) - at - 4:
        raise InvalidInputError(f"a text is said to take {length} bytes")
    return str(data[at + 4 : at + 4 + length], "utf-8"), at + 4 + length


def _pairs(data: bytes, at: int) -> dict[str, str]:
    """Texts by name, behind the bytes that all of them take."""
    (length,) = struct.unpack_from("<I", data, at)
    at, end, pairs = at + 4, at + 4 + length, {}
    while at < end:
        name, at = _text(data, at)
        pairs[name], at = _text(data, at)
        if len(pairs) > _MAX_PAIRS:
            raise InvalidInputError("a record holds too many texts")
    return pairs


class _Reader:
    """Gathers the contents, record by record."""

    def __init__(self, images: bool, encoded: bool) -> None:
        self.contents = FileContents()
        self._images, self._encoded = images, encoded
        self._record: np.dtype[Any] | None = None
        self._declared = 0
        self._charged = False
        self._rows: list[NDArray[Any]] = []
        self._row_channel = -1
        self._decoders: dict[int, FrameDecoder] = {}
        self._names: dict[int, str] = {}
        self._budget = MAX_EPISODE_BYTES

    def take(self, opcode: int, content: bytes, checksum: int) -> None:
        if opcode == Opcode.METADATA:
            name, value = _metadata(content)
            if name in self.contents.records and name.startswith(_OWN):
                raise InvalidInputError(f"{name[:80]} is there twice")
            self.contents.records[name] = value
            if name == LAYOUT_RECORD:
                self._describe(value)
        elif opcode == Opcode.CHUNK:
            self._chunk(Chunk.read(_stream(content)))
        elif opcode == Opcode.DATA_END:
            if DataEnd.read(_stream(content)).data_section_crc != checksum:
                raise InvalidInputError("the checksum of its data does not match")

    def finish(self, partial: bool) -> FileContents:
        contents = self.contents
        if contents.layout is None:
            raise InvalidInputError("it lacks the description of its arrays")
        contents.rows = (np.concatenate(self._rows) if self._rows
                         else np.zeros(0, contents.layout.dtype))
        if not np.array_equal(contents.rows["index"], np.arange(len(contents.rows))):
            if not partial:
                raise InvalidInputError("damaged: its rows are not numbered one after the other")
            good = np.flatnonzero(contents.rows["index"] != np.arange(len(contents.rows)))[0]
            contents.rows = contents.rows[:good]
            contents.problem = contents.problem or "its rows are not numbered one after the other"
        for channel, decoder in self._decoders.items():
            name = self._names[channel]
            frames, stamps_s = decoder.finish()
            exact = contents.records.get(FRAME_STAMPS_RECORD)
            if isinstance(exact, dict) and name in exact:
                if not _are_stamps(exact[name], decoder.count):
                    raise InvalidInputError(f"the stamps of camera {name[:80]!r} make no sense")
                stamps_s = np.array(exact[name], np.float64)
            contents.frame_stamps_s[name] = stamps_s
            if not self._encoded:
                contents.frames[name] = frames
        return contents

    def _describe(self, value: Any) -> None:
        if not isinstance(value, dict) or not isinstance(value.get("fields"), list) or (
            not isinstance(value.get("cameras"), dict)
        ):
            raise InvalidInputError("the description of its arrays is not one")
        if max(len(value["fields"]), len(value["cameras"])) > MAX_FIELDS:
            raise InvalidInputError(f"it describes over {MAX_FIELDS} arrays")
        layout = RowLayout([Field.from_dict(f) for f in value["fields"]])
        self._record = np.dtype({
            "names": ["opcode", "length", "channel", "row"],
            "formats": ["u1", "<u8", "<u2", layout.dtype],
            "offsets": [0, 1, 9, _MESSAGE_HEADER],
            "itemsize": _MESSAGE_HEADER + layout.dtype.itemsize,
        })
        self.contents.layout = layout
        self.contents.cameras = {
            name: CameraFormat.from_dict(raw) for name, raw in value["cameras"].items()
        }

    def _chunk(self, chunk: Chunk) -> None:
        data = _decompress(chunk)
        if zlib.crc32(data) != chunk.uncompressed_crc:
            raise InvalidInputError("the checksum of a chunk does not match")
        self._charged = False
        at = 0
        while at < len(data):
            if at + 9 > len(data):
                raise InvalidInputError("a record of a chunk is cut off")
            opcode, length = struct.unpack_from("<BQ", data, at)
            if length > len(data) - at - 9:
                raise InvalidInputError(f"a record of a chunk is said to take {length} bytes")
            if opcode == Opcode.MESSAGE and length >= 22:
                at += self._messages(data, at, length)
                continue
            self._declared += 1
            if opcode not in (Opcode.CHANNEL, Opcode.SCHEMA) or self._declared > _MAX_DECLARED:
                raise InvalidInputError("a chunk holds what does not belong there")
            if opcode == Opcode.CHANNEL:
                self._channel(data[at + 9 : at + 9 + length])
            at += 9 + length

    def _channel(self, content: bytes) -> None:
        (channel,) = struct.unpack_from("<H", content)
        topic, at = _text(content, 4)
        _, at = _text(content, at)
        name = _pairs(content, at).get("camera")
        if topic == EPISODE_TOPIC:
            if self._row_channel not in (-1, channel):
                raise InvalidInputError(f"there are two topics {EPISODE_TOPIC}")
            self._row_channel = channel
        elif name is not None and self._images and self._names.get(channel) != name:
            camera = self.contents.cameras.get(name)
            if camera is None or channel in self._names or name in self._names.values():
                raise InvalidInputError(f"camera {name[:80]!r} is not described, or twice")
            self._names[channel] = name
            encoded = self.contents.encoded.setdefault(name, []) if self._encoded else None
            self._decoders[channel] = FrameDecoder(camera, encoded)

    def _messages(self, data: bytes, at: int, length: int) -> int:
        """Take the messages of rows, or the frame, that begin at ``at``; returns their bytes."""
        channel, number = struct.unpack_from("<HI", data, at + 9)
        if channel == self._row_channel:
            return self._take_rows(data, at, length, channel)
        decoder = self._decoders.get(channel)
        if decoder is not None:
            if number != decoder.count:
                raise InvalidInputError(f"frame {decoder.count} of camera "
                                        f"{self._names[channel][:80]!r} is missing")
            if decoder.camera.codec != "raw":
                self._spend(decoder.camera.frame_bytes)
            elif not self._charged:  # raw frames keep the whole chunk in memory
                self._spend(len(data))
                self._charged = True
            decoder.take(memoryview(data)[at + _MESSAGE_HEADER : at + 9 + length])
        return 9 + length

    def _take_rows(self, data: bytes, at: int, length: int, channel: int) -> int:
        layout, record = self.contents.layout, self._record
        if layout is None or record is None or length != 22 + layout.dtype.itemsize:
            raise InvalidInputError("a row is not of the size that is described")
        most, taken, window = (len(data) - at) // record.itemsize, 0, 256
        while taken < most:
            count = min(window, most - taken)
            messages = np.frombuffer(data, record, count, at + taken * record.itemsize)
            same = ((messages["opcode"] == Opcode.MESSAGE) & (messages["length"] == length)
                    & (messages["channel"] == channel))
            good = count if same.all() else int(np.argmin(same))
            self._spend(good * layout.dtype.itemsize)
            self._rows.append(messages["row"][:good].copy())
            taken += good
            if good < count:
                break
            window *= 4
        return taken * record.itemsize

    def _spend(self, amount: int) -> None:
        self._budget -= amount
        if self._budget < 0:
            raise InvalidInputError(
                f"its arrays take more than {MAX_EPISODE_BYTES >> 30} GiB; read it without images"
            )


def _decompress(chunk: Chunk) -> bytes:
    size = chunk.uncompressed_size
    if size > MAX_CHUNK_BYTES:
        raise InvalidInputError(f"a chunk unpacks to {size} bytes, the limit is {MAX_CHUNK_BYTES}")
    if chunk.compression == "":
        data = chunk.data
    elif chunk.compression == "lz4":
        import lz4.frame

        decompressor = lz4.frame.LZ4FrameDecompressor()
        data = decompressor.decompress(chunk.data, max_length=size)
    else:
        raise InvalidInputError(f"a chunk is compressed as {chunk.compression[:20]!r}; "
                                "valid: lz4, none")
    if len(data) != size:
        raise InvalidInputError(f"a chunk unpacks to {len(data)} bytes instead of {size}")
    return data


def _are_stamps(value: Any, count: int) -> bool:
    return isinstance(value, list) and len(value) == count and all(
        isinstance(stamp, (int, float)) and abs(stamp) < 1e12 for stamp in value
    )
