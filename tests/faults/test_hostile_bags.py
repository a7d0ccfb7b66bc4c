"""Bags that are damaged, or made to do harm: each gives a typed error, soon, in little memory."""

from __future__ import annotations

import os
import pickle
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from robot_rl.data.importers import import_dataset
from robot_rl.errors import InvalidInputError

pytest.importorskip("rosbags")
from tests.faults.bag_bytes import (
    BYTES,
    FLOATS,
    MAGIC,
    MAP,
    STORE,
    WHERE,
    ZEROS,
    channel,
    chunk,
    custom,
    definition,
    floats,
    lz4,
    mcap,
    message,
    read_all,
    record,
    refused,
    schema,
    sound,
    text,
    zstd,
    zstd_bomb,
)


class Touched:
    """Unpickling it is seen: it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


MCAPS: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "magic only": lambda: MAGIC,
    "a pickle": lambda: pickle.dumps({"a": 1}),
    "a pickle behind the magic": lambda: MAGIC + pickle.dumps({"a": 1}),
    "record of 2^63 bytes": lambda: mcap(record(1, b"", 1 << 63)),
    "record of 2^64 - 1 bytes": lambda: mcap(record(5, b"abc", (1 << 64) - 1)),
    "message shorter than its head": lambda: mcap(record(5, b"abc")),
    "message of an unknown channel": lambda: mcap(message(floats(), number=7)),
    "chunk that says 2^60 bytes": lambda: mcap(chunk("zstd", zstd(b"x"), 1 << 60)),
    "chunk longer than its record": lambda: mcap(chunk("", b"x", 1, length=1 << 40)),
    "zstd bomb, honest": lambda: mcap(chunk("zstd", zstd_bomb(512 << 20), 512 << 20)),
    "zstd bomb, lying": lambda: mcap(chunk("zstd", zstd_bomb(512 << 20), 1000)),
    "lz4 bomb, lying": lambda: mcap(chunk("lz4", lz4(ZEROS), 1000)),
    "chunk of endless nothing": lambda: mcap(chunk("zstd", zstd_bomb(128 << 20), 128 << 20)),
    "chunk of endless small records": lambda: mcap(
        chunk("zstd", zstd(record(0x80, b"") * 5_000_000), 45_000_000)),
    "chunk in a chunk": lambda: mcap(chunk("", chunk("", b"", 0), 57)),
    "unknown compression": lambda: mcap(chunk("rar", b"x", 1)),
    "packed message, a bomb": lambda: mcap(
        schema(FLOATS, definition()), channel(), message(zstd_bomb(512 << 20))),
    "packed message, cut off": lambda: mcap(
        schema(FLOATS, definition()), channel(), message(zstd(floats())[:-3])),
    "packed message in a packed message": lambda: mcap(
        schema(FLOATS, definition()), channel(), message(zstd(zstd(floats())))),
    "damaged zstd": lambda: mcap(chunk("zstd", b"\x28\xb5\x2f\xfd" + b"\xff" * 90, 100)),
    "false checksum": lambda: mcap(chunk("", b"\x00" * 9, 9, crc=zlib.crc32(b"no"))),
    "text of 2^32 - 1 bytes": lambda: mcap(record(3, b"\x01\x00" + b"\xff" * 4)),
    "one topic of two types": lambda: mcap(
        schema(FLOATS, definition()), channel(),
        record(3, struct.pack("<H", 2) + text("a_msgs/msg/B") + text("ros2msg") + text("int8 a")),
        record(4, struct.pack("<HH", 2, 2) + text("/s") + text("cdr") + text(b""))),
    "70000 schemas": lambda: mcap(*(
        record(3, struct.pack("<H", k) + text("a/msg/B") * 3) for k in range(65536))),
    "20000 topics": lambda: mcap(schema(FLOATS, definition()), *(
        channel(f"/t{k}", k) for k in range(20000))),
    "summary that points at itself": lambda: sound()[:-37] + record(
        2, struct.pack("<QQI", 9, 9, 0)) + MAGIC,
    "not ROS": lambda: mcap(
        record(3, struct.pack("<H", 1) + text("x") + text("json") + text("{}")),
        record(4, struct.pack("<HH", 1, 1) + text("/s") + text("json") + text(b"")),
        message(b"{}")),
    "message of random bytes": lambda: mcap(
        schema(FLOATS, definition()), channel(), message(os.urandom(200))),
    "sequence of 2^32 - 1": lambda: mcap(
        schema(FLOATS, definition()), channel(),
        message(b"\x00\x01\x00\x00" + b"\x00" * 8 + b"\xff" * 4)),
    "text without an end": lambda: custom(
        "string a\nfloat64[] data\n", data=b"\x00\x01\x00\x00" + b"\xf0\xff\xff\xff" + b"x" * 50),
    "type that contains itself": lambda: custom("my_msgs/A[] data\n"),
    "types in a circle": lambda: custom(
        "my_msgs/B data\n" + "=" * 80 + "\nMSG: my_msgs/B\nmy_msgs/A a\n"),
    "array of a billion": lambda: custom("float64[1000000000] data\n"),
    "a billion texts": lambda: custom("string[1000000000] data\n"),
    "a billion of nothing": lambda: custom(
        "my_msgs/B[] data\n" + "=" * 80 + "\nMSG: my_msgs/B\n",
        data=b"\x00\x01\x00\x00" + b"\xff\xff\xff\x7f" + b"\x00" * 60),
    "a billion laughs of types": lambda: custom(
        "my_msgs/T0[64] data\n" + "".join(
            "=" * 80 + f"\nMSG: my_msgs/T{k}\nmy_msgs/T{k + 1}[64] data\n" for k in range(10))
        + "=" * 80 + "\nMSG: my_msgs/T10\nfloat64 data\n"),
    "type of 100000 fields": lambda: custom("".join(f"int8 a{k}\n" for k in range(25000))),
    "code for a type's name": lambda: custom("float64 data\n", name="a/msg/B:\n  import os#"),
    "code for a field's name": lambda: custom("float64 data);import os\n"),
    "code for a constant": lambda: custom("string X=\"\"\"+__import__('os')+\"\"\"\nint8 q\n"),
    "definition that is none": lambda: custom("\x00\x01\x02"),
    "definition of a megabyte": lambda: custom("# " + "x" * (1 << 20) + "\nfloat64 data\n"),
    "IDL that is none": lambda: mcap(schema(
        "my_msgs/msg/A", "module a { " * 3000, "ros2idl"), channel(), message(b"\x00\x01")),
    "type that is nowhere": lambda: custom("my_msgs/Gone data\n"),
    "keyword twice": lambda: custom("float64 class\nfloat64 class_\n"),
}


def test_the_sound_one_is_read(tmp_path):
    (tmp_path / "a.mcap").write_bytes(sound())
    assert read_all(tmp_path / "a.mcap", MAP) == 11


@pytest.mark.parametrize("how", ["", "zstd", "lz4"])
def test_sound_chunks_are_read(tmp_path, how):
    body = b"".join(message(floats(), at=10**9 + k * 10**8) for k in range(12))
    body = schema(FLOATS, definition()) + channel() + body
    packed = {"": bytes, "zstd": zstd, "lz4": lz4}[how](body)
    (tmp_path / "a.mcap").write_bytes(
        mcap(chunk(how, packed, len(body), crc=zlib.crc32(body)), end=False))
    assert read_all(tmp_path / "a.mcap", MAP) == 11


@pytest.mark.parametrize("name", list(MCAPS))
def test_hostile_mcap(tmp_path, name):
    (tmp_path / "a.mcap").write_bytes(MCAPS[name]())
    assert WHERE.search(refused(tmp_path / "a.mcap"))


@pytest.mark.parametrize("suffix", ["mcap", "db3", "bag"])
def test_pickles_in_disguise_are_never_unpickled(tmp_path, suffix):
    seen = tmp_path / "seen"
    file = tmp_path / f"a.{suffix}"
    file.write_bytes(pickle.dumps(Touched(seen)))
    assert "neither MCAP nor SQLite" in refused(file)
    with pytest.raises(InvalidInputError):
        import_dataset("rosbag2", file, tmp_path / "out", mapping=MAP, rate_hz=10)
    assert not seen.exists() and not (tmp_path / "out").exists()


# -- folders ----------------------------------------------------------------------------------


def folder_of(path: Path, files: str, more: str = "") -> Path:
    path.mkdir(exist_ok=True)
    (path / "metadata.yaml").write_text(
        f"rosbag2_bagfile_information:\n  version: 8\n  storage_identifier: mcap\n{more}"
        f"  relative_file_paths: {files}\n")
    return path


@pytest.mark.parametrize("name", [
    "../../etc/passwd", "/etc/passwd", "..", "a/../../x.mcap", "a/b/c.mcap", '"a\\0.mcap"', "7",
    "''", "/dev/zero",
])
def test_files_outside_the_bag_are_not_opened(tmp_path, name):
    outside = tmp_path / "x.mcap"
    outside.write_bytes(sound())
    assert "which is not in the bag" in refused(folder_of(tmp_path / "bag", f"[{name}]"))


LAUGHS = "a: &a [x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + k)}: &{chr(98 + k)} [{', '.join([f'*{chr(97 + k)}'] * 9)}]\n" for k in range(9))


@pytest.mark.parametrize("content", [
    LAUGHS,
    "a: &a {x: 1}\n" + "".join(
        f"{chr(98 + k)}: &{chr(98 + k)}\n  <<: [{', '.join([f'*{chr(97 + k)}'] * 9)}]\n"
        for k in range(9)),
    "[" * 100_000,
    "{a: " * 50_000,
    "!!python/object/apply:os.system ['true']",
    "a: !!python/name:os.system",
    "- " * 100_000,
    "x" * (5 << 20),
    "rosbag2_bagfile_information: 3",
    "rosbag2_bagfile_information: {relative_file_paths: []}",
    "rosbag2_bagfile_information: {relative_file_paths: {a: b}}",
    "rosbag2_bagfile_information: {relative_file_paths: [a.mcap], compression_mode: hm}",
    "\x00\xff",
    "1: " + "9" * 100_000,
])
def test_metadata_that_is_a_trap(tmp_path, content):
    (tmp_path / "metadata.yaml").write_text(content)
    (tmp_path / "a.mcap").write_bytes(sound())
    said = refused(tmp_path)
    assert "metadata.yaml" in said or "compression_mode" in said


def test_what_is_no_plain_file(tmp_path):
    os.mkfifo(tmp_path / "a.mcap")
    assert "is not a plain file" in refused(tmp_path / "a.mcap")
    assert "is not a plain file" in refused(tmp_path)
    assert "No such file" in refused(folder_of(tmp_path / "bag", "[gone.mcap]"))
    (tmp_path / "bag" / "d.mcap").mkdir()
    assert "is not a plain file" in refused(folder_of(tmp_path / "bag", "[d.mcap]"))
    (tmp_path / "empty").mkdir()
    assert "neither a metadata.yaml nor" in refused(tmp_path / "empty")


def test_a_packed_file_that_never_ends(tmp_path):
    bag = folder_of(tmp_path / "bag", "[a.mcap.zstd]", "  compression_mode: FILE\n")
    (bag / "a.mcap.zstd").write_bytes(zstd_bomb(512 << 20) * 2)
    before = set(Path("/tmp").glob("robot_rl_bag_*"))
    tracemalloc.start()
    with pytest.raises(InvalidInputError):
        read_all(bag, MAP)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < BYTES and set(Path("/tmp").glob("robot_rl_bag_*")) <= before
    (bag / "a.mcap.zstd").write_bytes(zstd(sound())[:-5])
    refused(bag)


# -- records of an export -----------------------------------------------------------------------


@pytest.mark.parametrize("said", [
    "[]", "{", "{}", '{"steps": 3}', '{"steps": 10, "stamp_s": [1, 2]}',
    '{"steps": 10, "metadata": 3}', '{"steps": 10, "stamps_s": {"a": "b"}}', "[" * 100_000,
    '{"steps": 10, "stamp_s": ' + "[1e999]" + "}",
])
def test_records_that_lie(tmp_path, said):
    kind = "std_msgs/msg/String"
    record_ = bytes(STORE.serialize_cdr(STORE.types[kind](data=said), kind))
    two = (record(3, struct.pack("<H", 2) + text(kind) + text("ros2msg") + text("string data\n"))
           + record(4, struct.pack("<HH", 2, 2) + text("/r") + text("cdr") + text(b"")))
    rows = [message(floats(), at=10**9 + k * 10**8) for k in range(11)]
    (tmp_path / "a.mcap").write_bytes(mcap(
        schema(FLOATS, definition()), channel(), two, message(record_, number=2), *rows))
    found = refused(tmp_path / "a.mcap", {**MAP, "ticks": "/s", "rate_hz": 10.0,
                                          "episodes": {"record": "/r"}})
    assert found.startswith("episodes.record: ")
