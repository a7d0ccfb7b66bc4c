"""Damaged and hostile inputs lead to an error of ours or to a correct read, in bounded time and
memory. `benchmarks/durability.py` tries a hundred thousand."""

from __future__ import annotations

import json
import random
import struct
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.faults import mcap_surgery as surgery
from benchmarks.faults.inputs import build_log, import_formats, log_formats, read_anyhow
from benchmarks.faults.mutations import Format, Outcome, mutate_bytes, run_mutations
from robot_rl.data.importers.base import ImportOptions
from robot_rl.data.log import open_log
from robot_rl.errors import InvalidInputError

FORMATS = {one.name: one for one in [*log_formats(), *import_formats()]}


@pytest.fixture
def memory() -> Iterator[Path]:
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as folder:
        yield Path(folder)


def cases(one: Format, count: int, memory: Path) -> Outcome:
    return run_mutations([one], count, memory, seed=random.randrange(10**6))[one.name]


@pytest.mark.parametrize("name", [one.name for one in log_formats()])
def test_mutated_logs(memory, name):
    outcome = cases(FORMATS[name], 600, memory)
    assert outcome.cases == 600 and not outcome.faults, "\n".join(outcome.faults)
    assert outcome.errors > 200 and outcome.errors + outcome.reads == 600


@pytest.mark.parametrize("name", [one.name for one in import_formats()])
def test_mutated_imports(memory, name):
    pytest.importorskip({"lerobot": "pyarrow", "minari": "minari", "robomimic": "h5py",
                         "d4rl": "h5py"}.get(name, "rosbags"))
    outcome = cases(FORMATS[name], 100, memory)
    assert outcome.cases == 100 and not outcome.faults, "\n".join(outcome.faults)
    assert outcome.errors > 20


# -- the harness finds what it is for -----------------------------------------------------------


def faulty(what: str) -> Format:
    """A reader with a fault in every other case or so."""

    def read(path: Path) -> None:
        content = path.read_bytes()
        if content == b"good":
            return
        if content[0] % 2:
            raise InvalidInputError("damaged")
        began = time.process_time()
        if what == "error":
            raise KeyError("a")
        if what == "memory":
            try:
                bytearray(2 << 30)
            except MemoryError:
                raise InvalidInputError("damaged") from None
        if what == "crash":
            import ctypes

            ctypes.string_at(0)
        if what == "slow":
            while time.process_time() - began < 1.1:
                pass

    return Format(what, lambda path: path.write_bytes(b"good") and None, read,
                  lambda name, content, rng: bytes([rng.randrange(256), 0]))


@pytest.mark.parametrize(
    ("what", "said"), [("error", "KeyError"), ("memory", "more than 512 MiB"),
                       ("crash", "killed by signal"), ("slow", "took ")])
def test_a_fault_is_found_and_said(memory, what, said):
    outcome = run_mutations([faulty(what)], 5, memory, seed=4)[what]
    assert outcome.cases == 5 and outcome.faults
    assert all(said in fault for fault in outcome.faults)


def test_surgery_keeps_checksums_right(tmp_path):
    build_log(tmp_path / "log")
    for file in open_log(tmp_path / "log").files:
        content = file.path.read_bytes()
        assert surgery.join(surgery.split(content)) == content


# -- single hostile files -----------------------------------------------------------------------


def changed(path: Path, change: object) -> Path:
    """A log whose first file was changed, its checksums made right."""
    build_log(path)
    file = path / "episodes" / "000000.mcap"
    records = surgery.split(file.read_bytes())
    change(records)  # type: ignore[operator]
    file.write_bytes(surgery.join(records))
    return path


def change_record(name: str, edit: object) -> object:
    def change(records: surgery.Records) -> None:
        for at, (opcode, content) in enumerate(records):
            if opcode == 0x0C and surgery.metadata_of(content)[0] == name:
                value = json.loads(surgery.metadata_of(content)[1]["json"])
                text = edit(value)  # type: ignore[operator]
                if not isinstance(text, str):
                    text = json.dumps(value)
                records[at] = (opcode, surgery.signed_metadata(name, text))

    return change


def change_chunk(edit: object, **how: int) -> object:
    def change(records: surgery.Records) -> None:
        at = next(i for i, (opcode, _) in enumerate(records) if opcode == 0x06)
        data = surgery.unpack_chunk(records[at][1])
        records[at] = (0x06, surgery.chunk(edit(data), records[at][1], **how))  # type: ignore[operator]

    return change


def twice(records: surgery.Records) -> None:
    at = next(i for i, (opcode, _) in enumerate(records) if opcode == 0x06)
    records.insert(at, records[at])


LAYOUT, COMMIT = "robot_rl.layout", "robot_rl.commit"
HOSTILE = {
    "rows of many GiB": (change_record(LAYOUT, lambda v: v["fields"][0].update(shape=[2**24, 9])),
                         "too large for a row"),
    "a negative shape": (change_record(LAYOUT, lambda v: v["fields"][0].update(shape=[-4])),
                         "does not describe an array"),
    "an object array": (change_record(LAYOUT, lambda v: v["fields"][0].update(dtype="object")),
                        "does not describe an array"),
    "many arrays": (change_record(LAYOUT, lambda v: v.update(fields=[
        {**v["fields"][0], "key": f"k{i}"} for i in range(9000)])), "over 4096 arrays"),
    "the same array twice": (change_record(LAYOUT, lambda v: v["fields"].append(v["fields"][0])),
                             "should differ"),
    "a frame of many GiB": (change_record(LAYOUT, lambda v: v["cameras"]["front"].update(
        shape=[2**20, 2**20, 3])), "cannot be kept"),
    "another frame": (change_record(LAYOUT, lambda v: v["cameras"]["front"].update(
        shape=[6, 4, 1])), "should be of"),
    "a codec nobody knows": (change_record(LAYOUT, lambda v: v["cameras"]["front"].update(
        codec="pickle")), "unknown image format"),
    "nested without end": (change_record(COMMIT, lambda v: "[" * 500_000), "is not JSON"),
    "more steps than there are": (change_record(COMMIT, lambda v: v.update(steps=10**9)),
                                  "5 steps are there, 1000000000 were committed"),
    "more frames than there are": (change_record(COMMIT, lambda v: v.update(frames={})),
                                   "were committed"),
    "rows twice": (twice, "is missing|not numbered|is not of"),
    "a chunk that unpacks to more": (change_chunk(lambda data: data, size=2**40), "the limit is"),
    "a chunk of nothing": (change_chunk(lambda data: bytes(60 << 20)), "does not belong there"),
    "a chunk of tiny records": (change_chunk(lambda data: (b"\x07" + bytes(8)) * 10**6),
                                "does not belong there"),
    "a record longer than its chunk": (change_chunk(
        lambda data: b"\x05" + struct.pack("<Q", 2**62)), "is said to take"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_file_is_refused(tmp_path, what):
    change, message = HOSTILE[what]
    path = changed(tmp_path / "log", change)
    with pytest.raises(InvalidInputError, match=message):
        open_log(path).read(0)
    with pytest.raises(InvalidInputError):
        read_anyhow(path)


def test_a_pickle_in_disguise_is_not_unpickled(tmp_path):
    import pickle

    build_log(tmp_path / "log")
    file = tmp_path / "log" / "episodes" / "000000.mcap"
    for content in (pickle.dumps(ImportOptions()), surgery.MAGIC + pickle.dumps(ImportOptions())):
        file.write_bytes(content)
        with pytest.raises(InvalidInputError, match=r"000000.mcap: damaged: "):
            open_log(tmp_path / "log").read(0)


def test_mutating_is_repeatable_and_changes_something():
    content = bytes(range(256))
    made = [mutate_bytes(content, random.Random(seed)) for seed in range(200)]
    assert made == [mutate_bytes(content, random.Random(seed)) for seed in range(200)]
    assert sum(one != content for one in made) > 190
