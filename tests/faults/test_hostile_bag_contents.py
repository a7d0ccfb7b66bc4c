"""Harmful images, SQLite files and bags of ROS 1, and bags changed at random."""

from __future__ import annotations

import bz2
import io
import os
import pickle
import random
import sqlite3
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robot_rl.errors import InvalidInputError

pytest.importorskip("rosbags")
from rosbags import rosbag1, rosbag2
from rosbags.typesys import Stores, get_typestore

from tests.faults.bag_bytes import (
    FLOATS,
    IMAGES,
    MAP,
    SECONDS,
    STORE,
    WHERE,
    ZEROS,
    floats,
    lz4,
    read_all,
    refused,
    sound,
    text,
)

# -- images -----------------------------------------------------------------------------------


def image_bag(path: Path, kind: str, **values: Any) -> Path:
    with rosbag2.Writer(path, version=8, storage_plugin=rosbag2.StoragePlugin.MCAP) as writer:
        c = writer.add_connection("/c", kind, typestore=STORE)
        s = writer.add_connection("/s", FLOATS, typestore=STORE)
        new = STORE.types
        header = new["std_msgs/msg/Header"](
            stamp=new["builtin_interfaces/msg/Time"](sec=0, nanosec=0), frame_id="")
        for k in range(5):
            at = 10**9 + k * 10**8
            frame = new[kind](header=header, **values)
            writer.write(c, at, STORE.serialize_cdr(frame, kind))
            writer.write(s, at, floats())
    return path


def png(height: int, width: int) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", head), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in parts)


RAW = {"height": 4, "width": 4, "encoding": "rgb8", "is_bigendian": 0, "step": 12,
       "data": np.zeros(48, np.uint8)}


@pytest.mark.parametrize("wrong", [
    {"height": 2**32 - 1, "width": 2**32 - 1},
    {"height": 2**32 - 1, "step": 0},
    {"step": 0},
    {"step": 2**32 - 1},
    {"width": 0},
    {"height": 0},
    {"encoding": "rgb48"},
    {"encoding": "x" * 10_000},
    {"data": np.zeros(47, np.uint8)},
    {"data": np.zeros(0, np.uint8)},
    {"encoding": "bayer_rggb8", "width": 3},
    {"height": 10_000, "width": 10_000, "step": 30_000},
])
def test_images_whose_sizes_do_not_fit(tmp_path, wrong):
    said = refused(image_bag(tmp_path / "b", "sensor_msgs/msg/Image", **{**RAW, **wrong}), IMAGES)
    assert "images.c" in said and len(said) < 600


@pytest.mark.parametrize("data", [
    b"", b"GIF89a" + b"\x00" * 50, png(60_000, 60_000), png(2**31 - 1, 1), png(100, 100)[:60],
    b"\xff\xd8" + b"\xff\xc0\x00\x11\x08\xff\xff\xff\xff\x03" + b"\x00" * 50,
    b"\xff\xd8" + b"\xff\xe0\x00\x00" * 100_000,
    b"\xff\xd8" + b"\xff" * 1_000_000,
    b"\xff\xd8\xff\xc0\x00\x11\x08\x00\x10\x00\x10\x03" + os.urandom(100),
    pickle.dumps([1, 2]),
])
def test_compressed_images_that_are_none(tmp_path, data):
    pytest.importorskip("cv2")
    path = image_bag(tmp_path / "b", "sensor_msgs/msg/CompressedImage", format="png",
                     data=np.frombuffer(data, np.uint8))
    assert "images.c" in refused(path, IMAGES)


# -- SQLite -----------------------------------------------------------------------------------

TOPICS = ("CREATE TABLE topics(id INTEGER PRIMARY KEY, name TEXT, type TEXT, "
          "serialization_format TEXT, offered_qos_profiles TEXT);"
          f"INSERT INTO topics VALUES(1, '/s', '{FLOATS}', 'cdr', '');")
MESSAGES = ("CREATE TABLE messages(id INTEGER PRIMARY KEY, topic_id INTEGER, "
            "timestamp INTEGER, data BLOB);")
ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT "
SCHEMAS = {
    "no tables": "CREATE TABLE a(b);",
    "view of endless messages": TOPICS + "CREATE VIEW messages AS " + ENDLESS
    + "i AS id, 1 AS topic_id, i AS timestamp, x'00' AS data FROM n;",
    "view of endless topics": MESSAGES + "CREATE VIEW topics AS " + ENDLESS
    + "i AS id, '/s' AS name, 'a' AS type, 'cdr' AS serialization_format FROM n;",
    "computed data": TOPICS + "CREATE TABLE messages(id INTEGER PRIMARY KEY, topic_id INTEGER, "
    "timestamp INTEGER, data BLOB GENERATED ALWAYS AS (zeroblob(1000000000)));"
    "INSERT INTO messages(id, topic_id, timestamp) VALUES(1, 1, 1);",
    "computed and stored": TOPICS + "CREATE TABLE messages(id INTEGER PRIMARY KEY, "
    "topic_id INTEGER, timestamp INTEGER, data BLOB AS (zeroblob(100)) STORED);",
    "full-text search": TOPICS + "CREATE VIRTUAL TABLE messages USING fts5(id, topic_id, "
    "timestamp, data);",
    "texts for data": TOPICS + MESSAGES + "INSERT INTO messages VALUES(1, 1, 1, 'text');",
    "texts for times": TOPICS + MESSAGES + "INSERT INTO messages VALUES(1, 1, 'now', x'00');",
    "a time of nothing": TOPICS + MESSAGES + "INSERT INTO messages VALUES(1, 1, NULL, x'00');",
    "numbers for names": TOPICS.replace("'/s'", "NULL") + MESSAGES,
    "missing column": TOPICS + "CREATE TABLE messages(id INTEGER PRIMARY KEY, data BLOB);",
    "definitions as a view": TOPICS + MESSAGES + "CREATE VIEW message_definitions AS SELECT 1;",
    "no messages": TOPICS + MESSAGES,
    "a time of 2^63 - 1": TOPICS + MESSAGES
    + f"INSERT INTO messages VALUES(1, 1, {2**63 - 1}, x'{floats().hex()}');",
    "times a century apart": TOPICS + MESSAGES + "".join(
        f"INSERT INTO messages VALUES({k}, 1, {k * 3 * 10**18}, x'{floats().hex()}');"
        for k in range(4)),
}


@pytest.mark.parametrize("name", list(SCHEMAS))
def test_hostile_sqlite(tmp_path, name):
    file = tmp_path / "a.db3"
    database = sqlite3.connect(file)
    try:
        database.executescript(SCHEMAS[name])
    except sqlite3.OperationalError as error:  # an SQLite built without the trick
        pytest.skip(str(error))
    database.commit()
    database.close()
    assert WHERE.search(refused(file))


def test_triggers_do_nothing(tmp_path):
    file = tmp_path / "a.db3"
    database = sqlite3.connect(file)
    rows = "".join(f"INSERT INTO messages VALUES({k}, 1, {10**9 + k * 10**8}, x'{floats().hex()}');"
                   for k in range(12))
    database.executescript(TOPICS + MESSAGES + rows + "CREATE TRIGGER t AFTER INSERT ON messages "
                           "BEGIN DELETE FROM topics; END;")
    database.close()
    before = file.read_bytes()
    assert read_all(file, MAP) == 11
    assert file.read_bytes() == before


# -- ROS 1 ------------------------------------------------------------------------------------


def bag1(*records: tuple[dict[str, bytes], bytes]) -> bytes:
    out = b"#ROSBAG V2.0\n"
    head = ({"op": b"\x03", "index_pos": bytes(8), "conn_count": bytes(4),
             "chunk_count": bytes(4)}, b" " * 4000)
    for fields, data in (head, *records):
        raw = b"".join(text(name.encode() + b"=" + value) for name, value in fields.items())
        out += text(raw) + text(data)
    return out


def chunk1(how: bytes, data: bytes, size: int) -> tuple[dict[str, bytes], bytes]:
    return {"op": b"\x05", "compression": how, "size": struct.pack("<I", size)}, data


def connection1(definition_text: str = "float64[] data\n") -> tuple[dict[str, bytes], bytes]:
    inner = {"topic": b"/s", "type": b"my_msgs/A", "md5sum": b"0" * 32,
             "message_definition": definition_text.encode()}
    return ({"op": b"\x07", "conn": bytes(4), "topic": b"/s"},
            b"".join(text(k.encode() + b"=" + v) for k, v in inner.items()))


def message1(data: bytes, at: int) -> tuple[dict[str, bytes], bytes]:
    return {"op": b"\x02", "conn": bytes(4), "time": struct.pack("<II", at, 0)}, data


BAGS: dict[str, Callable[[], bytes]] = {
    "magic only": lambda: b"#ROSBAG V2.0\n",
    "version 1.2": lambda: b"#ROSBAG V1.2\n" + bytes(100),
    "header of 4 GB": lambda: b"#ROSBAG V2.0\n" + b"\xff" * 100,
    "bz2 bomb, honest": lambda: bag1(chunk1(b"bz2", bz2.compress(ZEROS), 2**32 - 1)),
    "bz2 bomb, lying": lambda: bag1(chunk1(b"bz2", bz2.compress(ZEROS), 100)),
    "lz4 bomb, lying": lambda: bag1(chunk1(b"lz4", lz4(ZEROS), 100)),
    "chunk of endless nothing": lambda: bag1(chunk1(b"bz2", bz2.compress(ZEROS), len(ZEROS))),
    "chunk without sizes": lambda: bag1(({"op": b"\x05"}, b"abc")),
    "unknown compression": lambda: bag1(chunk1(b"arj", b"abc", 3)),
    "message before its connection": lambda: bag1(message1(b"abc", 1)),
    "message without a time": lambda: bag1(connection1(), ({"op": b"\x02", "conn": bytes(4)}, b"")),
    "fields that are none": lambda: b"#ROSBAG V2.0\n" + text(text("nothing")) + text(b""),
    "a billion of nothing": lambda: bag1(
        connection1("my_msgs/B[] data\n" + "=" * 80 + "\nMSG: my_msgs/B\n"),
        *(message1(b"\xff\xff\xff\x7f", k) for k in range(1, 9))),
    "sequence of 2^32 - 1": lambda: bag1(
        connection1(), *(message1(b"\xff" * 4, k) for k in range(1, 9))),
    "type that contains itself": lambda: bag1(
        connection1("my_msgs/A[] data\n"), message1(bytes(4), 1)),
    "a pickle in a chunk": lambda: bag1(chunk1(b"none", pickle.dumps([1]), 14)),
}


@pytest.mark.parametrize("name", list(BAGS))
def test_hostile_bags_of_ros1(tmp_path, name):
    (tmp_path / "a.bag").write_bytes(BAGS[name]())
    assert WHERE.search(refused(tmp_path / "a.bag"))


# -- mutations ----------------------------------------------------------------------------------


def originals(folder: Path) -> list[bytes]:
    """A sound file of each kind, with images."""
    found = [sound()]
    bag = image_bag(folder / "m", "sensor_msgs/msg/Image", **RAW)
    found.append((bag / "m.mcap").read_bytes())
    with rosbag2.Writer(folder / "s", version=8,
                        storage_plugin=rosbag2.StoragePlugin.SQLITE3) as writer:
        connection = writer.add_connection("/s", FLOATS, typestore=STORE)
        for k in range(12):
            writer.write(connection, 10**9 + k * 10**8, floats())
    found.append((folder / "s" / "s.db3").read_bytes())
    store = get_typestore(Stores.ROS1_NOETIC)
    layout = store.types["std_msgs/msg/MultiArrayLayout"](dim=[], data_offset=0)
    with rosbag1.Writer(folder / "b.bag") as writer1:
        connection = writer1.add_connection("/s", FLOATS, typestore=store)
        for k in range(12):
            body = store.types[FLOATS](layout=layout, data=np.ones(2))
            writer1.write(connection, 10**9 + k * 10**8, store.serialize_ros1(body, FLOATS))
    found.append((folder / "b.bag").read_bytes())
    return found


def mutated(data: bytes, rng: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 8])):
        at = rng.randrange(len(out)) if len(out) else 0
        kind = rng.randrange(6)
        if kind == 0 and out:
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and out:
            out[at] = rng.choice([0, 1, 0x7F, 0x80, 0xFF])
        elif kind == 2:
            del out[at : at + rng.choice([1, 4, 100])]
        elif kind == 3:
            out[at:at] = bytes(rng.randrange(256) for _ in range(rng.choice([1, 8])))
        elif kind == 4:
            del out[at:]
        else:
            large = rng.choice([0, 1 << 31, 1 << 32, 1 << 63, 2**64 - 1])
            out[at : at + 8] = struct.pack("<Q", large)
    return bytes(out)


def run_mutations(folder: Path, count: int, seed: int) -> dict[str, int]:
    """How many mutations were read and how many refused; fails on anything else."""
    rng = random.Random(seed)
    sources = originals(folder)
    tally = {"read": 0, "refused": 0}
    for number in range(count):
        original = sources[number % len(sources)]
        data = mutated(original, rng)
        file = folder / "x.bin"
        file.write_bytes(data)
        mapping = IMAGES if number % len(sources) == 1 else MAP
        begun = time.process_time()
        try:
            read_all(file, mapping)
            tally["read"] += 1
        except InvalidInputError:
            tally["refused"] += 1
        except Exception as error:  # it should be typed
            keep = io.BytesIO(data).getvalue().hex()
            raise AssertionError(f"mutation {number} of seed {seed}: {error!r}\n{keep}") from error
        took = time.process_time() - begun
        assert took < SECONDS, f"mutation {number} of seed {seed} took {took:.2f} s"
    return tally


def test_mutated_bags_are_read_or_refused(tmp_path):
    tally = run_mutations(tmp_path, 600, seed=1)
    assert min(tally.values()) > 50


@pytest.mark.slow
def test_very_many_mutated_bags(tmp_path):
    tally = run_mutations(tmp_path, 20_000, seed=2)
    assert min(tally.values()) > 1000
