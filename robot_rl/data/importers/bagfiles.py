"""Bags: what rosbag2 and rosbag1 leave on the disk, one file or a folder of them."""

from __future__ import annotations

import os
import sqlite3
import stat
import tempfile
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from robot_rl.data.importers.base import MAX_BYTES
from robot_rl.data.importers.containers import (
    BAG_MAGIC,
    MAX_CHUNK,
    MAX_TEXT,
    MAX_TOPICS,
    MCAP_MAGIC,
    Container,
    McapFile,
    Message,
    Place,
    RosbagFile,
    Topic,
    add_topic,
    decompressor,
    plain_message,
)
from robot_rl.data.importers.mapping import read_yaml
from robot_rl.data.importers.progress import beat
from robot_rl.errors import InvalidInputError, unknown_name

MAX_METADATA = 4 << 20
# A packed file may grow by this ratio, and in any case to this many bytes.
MAX_RATIO = 200
MIN_UNPACKED = 256 << 20
_SQLITE_MAGIC = b"SQLite format 3\x00"
_QUERY_LIMIT_S = 60.0
# The module cannot always decode what a damaged file makes SQLite say.
_SQLITE_ERRORS = (sqlite3.Error, UnicodeError, OverflowError)


class SqliteFile:
    """A .db3 file of rosbag2, opened for reading only; views, triggers and computed columns in
    the place of its tables are refused."""

    ros1 = False
    cut_off = False

    def __init__(self, path: Path, number: int = 0, packed: bool = False) -> None:
        self.path, self.number, self._packed = path, number, packed
        self.topics: dict[str, Topic] = {}
        self.notes: list[str] = []
        with open(path, "rb") as file:
            if file.read(16) != _SQLITE_MAGIC:
                raise InvalidInputError(f"{path} is not an SQLite file")
        if Path(f"{path}-wal").exists() and Path(f"{path}-wal").stat().st_size:
            self.notes.append(f"{path.name} has an unfinished log beside it, which was not read")
        address = f"file:{urllib.parse.quote(str(path.resolve()))}?mode=ro&immutable=1"
        self._names: dict[int, str] = {}
        self._since = time.monotonic()
        try:
            self.database = sqlite3.connect(address, uri=True)
        except _SQLITE_ERRORS as error:
            raise InvalidInputError(f"{path} cannot be opened: {error}") from None
        try:
            self._protect()
            self._learn_topics()
        except _SQLITE_ERRORS as error:
            self.close()
            raise InvalidInputError(f"{path} is damaged: {error}") from None
        except BaseException:
            self.close()
            raise

    def _protect(self) -> None:
        self.database.text_factory = lambda raw: raw.decode("utf-8", "replace")
        self.database.set_progress_handler(
            lambda: int(time.monotonic() - self._since > _QUERY_LIMIT_S), 100_000
        )
        for pragma in ("trusted_schema=OFF", "cell_size_check=ON", "mmap_size=0"):
            self.database.execute(f"PRAGMA {pragma}")
        if hasattr(self.database, "setlimit"):
            self.database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_CHUNK)

    def _columns(self, table: str, needed: tuple[str, ...]) -> set[str]:
        row = self.database.execute(
            "SELECT type, sql FROM sqlite_master WHERE name = ?", (table,)
        ).fetchall()
        plain = len(row) == 1 and row[0][0] == "table" and isinstance(row[0][1], str)
        if not plain or not row[0][1].lstrip().upper().startswith("CREATE TABLE"):
            raise InvalidInputError(f"{self.path} has no plain table {table!r}: not a bag")
        info = self.database.execute(f"PRAGMA table_xinfo({table})").fetchall()
        columns = {str(line[1]) for line in info if line[6] == 0}
        missing = [name for name in needed if name not in columns]
        if missing:
            raise InvalidInputError(f"{self.path}: table {table} lacks {', '.join(missing)}")
        return columns

    def _learn_topics(self) -> None:
        self._columns("topics", ("id", "name", "type", "serialization_format"))
        self._columns("messages", ("id", "topic_id", "timestamp", "data"))
        definitions: dict[str, tuple[str, str]] = {}
        known = self.database.execute(
            "SELECT count(*) FROM sqlite_master WHERE name = 'message_definitions'"
        ).fetchone()[0]
        if known:
            self._columns("message_definitions",
                          ("topic_type", "encoding", "encoded_message_definition"))
            for kind, how, text in self.database.execute(
                "SELECT topic_type, encoding, encoded_message_definition FROM message_definitions"
                f" LIMIT {MAX_TOPICS}"
            ):
                if isinstance(text, str) and len(text) <= MAX_TEXT:
                    definitions[str(kind)] = (text, "ros2idl" if how == "ros2idl" else "ros2msg")
        for key, name, kind, how in self.database.execute(
            f"SELECT id, name, type, serialization_format FROM topics LIMIT {MAX_TOPICS + 1}"
        ):
            if not isinstance(key, int) or not all(isinstance(x, str) for x in (name, kind, how)):
                raise InvalidInputError(f"{self.path}: table topics holds {(key, name, kind)!r}")
            text, encoding = definitions.get(kind, ("", ""))
            if how != "cdr":
                kind, text = how or "?", ""
            add_topic(self.topics, Topic(name, kind, text, encoding), str(self.path))
            self._names[key] = name

    def scan(self, wanted: set[str]) -> Iterator[Message]:
        """The messages of these topics in the order they were written."""
        keys = [key for key, name in self._names.items() if name in wanted]
        marks = ",".join("?" * len(keys))
        self._since = time.monotonic()
        try:
            for row, key, stamp, data in self.database.execute(
                "SELECT id, topic_id, timestamp, data FROM messages "
                f"WHERE topic_id IN ({marks}) ORDER BY id", keys
            ):
                self._since = time.monotonic()
                beat()
                if not (isinstance(row, int) and isinstance(stamp, int)
                        and isinstance(data, bytes) and key in self._names):
                    raise InvalidInputError(
                        f"{self.path}: message {row} has the time {stamp!r} and data of type "
                        f"{type(data).__name__}"
                    )
                place = (self.number, row, 0, 0)
                body = plain_message(data, self._packed, str(self.path))
                yield Message(self._names[key], stamp, body, place)
        except _SQLITE_ERRORS as error:
            raise InvalidInputError(f"{self.path} is damaged: {error}") from None

    def fetch(self, place: Place) -> bytes:
        """The message at a place that ``scan`` gave."""
        self._since = time.monotonic()
        try:
            row = self.database.execute(
                "SELECT data FROM messages WHERE id = ?", (place[1],)
            ).fetchone()
        except _SQLITE_ERRORS as error:
            raise InvalidInputError(f"{self.path} is damaged: {error}") from None
        if row is None or not isinstance(row[0], bytes):
            raise InvalidInputError(f"{self.path}: message {place[1]} is gone")
        return plain_message(row[0], self._packed, str(self.path))

    def close(self) -> None:
        self.database.close()


class Bag:
    """A bag of one or several files: a rosbag2 folder, an .mcap, a .db3, a .bag.

    Attributes:
        topics: by name.
        notes: what was cut off or passed over.
        ros1: whether messages are ROS 1's.

    Raises:
        InvalidInputError: it is missing, damaged or hostile.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.notes: list[str] = []
        self.files: list[Container] = []
        self.topics: dict[str, Topic] = {}
        self._unpacked: list[Any] = []
        try:
            for file, packed in self._find():
                self.files.append(self._open(file, packed))
            for each in self.files:
                for topic in each.topics.values():
                    add_topic(self.topics, topic, str(path))
        except BaseException:
            self.close()
            raise
        self.ros1 = bool(self.files) and self.files[0].ros1

    def _find(self) -> list[tuple[Path, bool]]:
        if not self.path.exists():
            raise InvalidInputError(f"bag: {self.path} does not exist")
        if not self.path.is_dir():
            return [(_regular(self.path), False)]
        metadata = self.path / "metadata.yaml"
        if metadata.is_file():
            return self._from_metadata(metadata)
        found = sorted(f for f in self.path.iterdir() if f.suffix in (".mcap", ".db3", ".bag"))
        if not found:
            raise InvalidInputError(
                f"bag: {self.path} has neither a metadata.yaml nor any .mcap, .db3 or .bag"
            )
        self.notes.append(f"{self.path.name} has no metadata.yaml; its files were read by name")
        return [(_regular(file), False) for file in found]

    def _from_metadata(self, metadata: Path) -> list[tuple[Path, bool]]:
        raw = read_yaml(_regular(metadata), "bag", MAX_METADATA)
        info = raw.get("rosbag2_bagfile_information") if isinstance(raw, dict) else None
        names = info.get("relative_file_paths") if isinstance(info, dict) else None
        if not isinstance(info, dict) or not isinstance(names, list) or not names:
            raise InvalidInputError(f"bag: {metadata} names no files (relative_file_paths)")
        mode = str(info.get("compression_mode") or "").lower()
        if mode not in ("", "none", "file", "message", "storage"):
            raise unknown_name("compression_mode", mode[:40], ("file", "message"))
        found = []
        for name in names[:MAX_TOPICS]:
            inside = PurePosixPath(str(name))
            if not isinstance(name, str) or inside.is_absolute() or ".." in inside.parts or (
                len(inside.parts) not in (1, 2) or "\x00" in name
            ):
                raise InvalidInputError(
                    f"bag: {metadata} names the file {str(name)[:80]!r}, which is not in the bag"
                )
            # The first versions of rosbag2 wrote the folder's name before the file's.
            file = _regular(self.path / inside.name)
            if mode == "file":
                file = self._unpack_file(file)
            found.append((file, mode == "message"))
        return found

    def _unpack_file(self, file: Path) -> Path:
        folder = tempfile.TemporaryDirectory(prefix="robot_rl_bag_")
        self._unpacked.append(folder)
        out = Path(folder.name) / file.stem
        packer, total = decompressor("zstd", str(file)), 0
        most = min(MAX_BYTES, max(MIN_UNPACKED, MAX_RATIO * file.stat().st_size))
        try:
            with open(file, "rb") as source, open(out, "wb") as target:
                while not packer.eof:
                    block = source.read(1 << 20) if packer.needs_input else b""
                    if packer.needs_input and not block:
                        raise InvalidInputError(f"{file} ends in the middle of its zstd data")
                    data = packer.decompress(block, max_length=1 << 24)
                    total += len(data)
                    if total > most:
                        raise InvalidInputError(
                            f"{file} unpacks to more than {most} bytes; if that is right, unpack "
                            "it with `zstd -d` first"
                        )
                    target.write(data)
                    beat()
        except InvalidInputError:
            raise
        except Exception as error:  # zstd's own
            raise InvalidInputError(f"{file}: damaged zstd data ({error})") from None
        return out

    def _open(self, file: Path, packed: bool) -> Container:
        with open(file, "rb") as stream:
            start = stream.read(16)
        number = len(self.files)
        if start.startswith(MCAP_MAGIC):
            return McapFile(file, number, packed)
        if start == _SQLITE_MAGIC:
            return SqliteFile(file, number, packed)
        if start.startswith(BAG_MAGIC):
            return RosbagFile(file, number)
        raise InvalidInputError(
            f"bag: {file} is neither MCAP nor SQLite nor a bag of ROS 1 (version 2.0): it begins "
            f"with {start[:8]!r}"
        )

    @property
    def cut_off(self) -> bool:
        """Whether a file was found to end too early."""
        return any(file.cut_off for file in self.files)

    def scan(self, wanted: set[str]) -> Iterator[Message]:
        """The messages of these topics, file by file, in the order they were written."""
        for file in self.files:
            yield from file.scan(wanted)
            self.notes.extend(note for note in file.notes if note not in self.notes)

    def fetch(self, place: Place) -> bytes:
        """The message at a place that :meth:`scan` gave."""
        return self.files[place[0]].fetch(place)

    def close(self) -> None:
        """Close the files and drop what was unpacked."""
        for file in self.files:
            file.close()
        for folder in self._unpacked:
            folder.cleanup()


def _regular(path: Path) -> Path:
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InvalidInputError(f"bag: cannot read {path}: {reason}") from None
    if not stat.S_ISREG(mode):
        raise InvalidInputError(f"bag: {path} is not a plain file")
    if not os.access(path, os.R_OK):
        raise InvalidInputError(f"bag: no permission to read {path}")
    return path
