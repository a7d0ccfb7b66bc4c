"""Files made to hurt whoever reads them; each maker returns what reads its file to the end.

Run as a module (``python -m tests.faults.hostile_samples FOLDER``) it reads them all, one after
the other, and prints a line of JSON for each: what came of it, seconds, bytes of memory.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from robot_rl.data.exporters.lerobot import export as to_lerobot
from robot_rl.data.exporters.minari import export as to_minari
from robot_rl.data.importers import hdf5, lerobot, minari, npz
from robot_rl.data.importers.base import ImportOptions
from robot_rl.errors import InvalidInputError
from tests.unit.format_samples import MemoryLog, full_episode, plain_episode

Read = Callable[[], Any]
MAKERS: dict[str, Callable[[Path], Read]] = {}
MARK = "executed"


def hostile(make: Callable[[Path], Read]) -> Callable[[Path], Read]:
    MAKERS[make.__name__] = make
    return make


def several(name: str, make: Callable[..., Read], *cases: Any) -> None:
    """One maker for each case, given to ``make`` after the folder."""
    for i, case in enumerate(cases):
        MAKERS[f"{name}_{i}"] = lambda folder, case=case: make(folder, case)


class Payload:
    """Leaves a mark in the working folder if it is ever unpickled."""

    def __reduce__(self) -> Any:
        return os.mkdir, (MARK,)


def reader(opener: Callable[[Path, ImportOptions], Any], path: Path, **mapping: Any) -> Read:
    def read() -> Any:
        source = opener(path, ImportOptions(mapping=mapping))
        try:
            return list(source)
        finally:
            source.close()

    return read


# -- npz ----------------------------------------------------------------------------------------


def plain() -> dict[str, np.ndarray]:
    return {"observations": np.zeros((7, 5)), "actions": np.zeros((7, 2)),
            "rewards": np.zeros(7), "episode_lengths": np.array([3, 4])}


def npz_of(folder: Path, **more: Any) -> Read:
    """A plain npz, some of whose entries are bytes of their own."""
    with zipfile.ZipFile(folder / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, value in (plain() | more).items():
            content = io.BytesIO()
            if isinstance(value, bytes):
                content.write(value)
            else:
                np.save(content, value, allow_pickle=True)
            archive.writestr(f"{name}.npy", content.getvalue())
    return lambda: npz.load_npz(folder / "a.npz")


def header(shape: str, descr: str = "'<f8'") -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


several("npz_entry", lambda folder, case: npz_of(folder, **case),
        {"actions": np.array([Payload()] * 7, dtype=object)},
        {"actions": pickle.dumps(Payload())},
        {"actions": header("(7, 2)", "'|O'") + pickle.dumps(Payload())},
        {"actions": header("(7, 2)", "[('a', '|O')]") + pickle.dumps(Payload())},
        {"actions": header("(1099511627776, 2)")},
        {"actions": header("(-7, 2)") + bytes(112)},
        {"actions": header("(7, " + "(" * 3000 + ")" * 3000 + ")")},
        {"actions": header("__import__('os').mkdir('executed')")},
        {"actions": header("(7, 2)", "__import__('os').mkdir('executed')")},
        {"observations": np.full((7, 5), np.nan)},
        {"rewards": np.full(7, np.inf)},
        {"episode_lengths": np.array([2**63 - 1, 2**63 - 1])},
        {"episode_lengths": np.array([10, -3])},
        {"episode_lengths": np.array([2**64 - 4, 11], np.uint64)},
        {"episode_lengths": np.array([[3, 4]])},
        {"observations": np.zeros((7, 5), "V2000000")})


@hostile
def npz_that_is_a_pickle(folder: Path) -> Read:
    (folder / "a.npz").write_bytes(pickle.dumps(Payload()))
    return lambda: npz.load_npz(folder / "a.npz")


@hostile
def npz_that_is_a_pickled_npy(folder: Path) -> Read:
    with open(folder / "a.npz", "wb") as file:
        np.save(file, np.array([Payload()], dtype=object), allow_pickle=True)
    return lambda: npz.load_npz(folder / "a.npz")


@hostile
def npz_that_is_a_pipe(folder: Path) -> Read:
    os.mkfifo(folder / "a.npz")
    return lambda: npz.load_npz(folder / "a.npz")


@hostile
def npz_bomb(folder: Path) -> Read:
    read = npz_of(folder)
    raw = bytearray((folder / "a.npz").read_bytes())
    at = raw.rindex(b"PK\x01\x02")
    raw[at + 24:at + 28] = struct.pack("<I", 0xFFFFFFF0)
    (folder / "a.npz").write_bytes(raw)
    return read


@hostile
def npz_that_unpacks_to_more_than_it_says(folder: Path) -> Read:
    read = npz_of(folder, actions=header("(7, 2)") + bytes(50_000_000))
    raw = bytearray((folder / "a.npz").read_bytes())
    size = struct.pack("<I", len(header("(7, 2)")) + 50_000_000)
    raw = raw.replace(size, struct.pack("<I", len(header("(7, 2)")) + 112))
    (folder / "a.npz").write_bytes(raw)
    return read


def former(folder: Path, content: bytes, *, sparse: int = 0) -> Read:
    (folder / "episodes").mkdir()
    (folder / "dataset.json").write_bytes(content)
    if sparse:
        os.truncate(folder / "dataset.json", sparse)
    return lambda: npz.load_folder_v1(folder)


several("folder", former, b"[" * 1_000_000, b'{"a":' * 300_000, b"\xff\xfe", b'{"format": 1e400}',
        pickle.dumps(Payload()), b'{"task": "P", "observation_shape": [1e400], "goal_dim": 2, '
                                 b'"action_dim": 2}')
MAKERS["folder_of_a_gigabyte"] = lambda folder: former(folder, b"{", sparse=1 << 30)


# -- HDF5 ---------------------------------------------------------------------------------------


def d4rl(folder: Path, change: Callable[[h5py.File], Any]) -> Read:
    with h5py.File(folder / "a.hdf5", "w") as file:
        for name, array in (("observations", np.zeros((5, 3))), ("actions", np.zeros((5, 2))),
                            ("rewards", np.zeros(5)), ("terminals", np.zeros(5, bool))):
            file[name] = array
        os.chdir(folder)
        change(file)
    return reader(hdf5.open_d4rl, folder / "a.hdf5")


def replace(file: h5py.File, name: str, value: Any = None, **settings: Any) -> None:
    del file[name]
    if settings:
        file.create_dataset(name, **settings)
    else:
        file[name] = value


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((5, 2), float)
    layout[:] = h5py.VirtualSource("/etc/passwd", "actions", (5, 2))
    del file["actions"]
    file.create_virtual_dataset("actions", layout)


def plugin(file: h5py.File) -> None:
    settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    settings.set_chunk((5, 2))
    settings.set_filter(32015, h5py.h5z.FLAG_OPTIONAL, (3,))
    del file["actions"]
    h5py.h5d.create(file.id, b"actions", h5py.h5t.IEEE_F64LE, h5py.h5s.create_simple((5, 2)),
                    settings)


def loop(file: h5py.File) -> None:
    group = file.create_group("infos")
    group["again"] = group


def deep(file: h5py.File) -> None:
    file["/".join(["infos"] * 200)] = np.zeros(5)


several(
    "hdf5", d4rl,
    lambda f: replace(f, "actions", h5py.ExternalLink("/etc/passwd", "/actions")),
    lambda f: replace(f, "actions", h5py.ExternalLink("other.hdf5", "/actions")),
    lambda f: replace(f, "actions", h5py.SoftLink("/observations")),
    lambda f: replace(f, "actions", h5py.SoftLink("/nowhere")),
    virtual, plugin, loop, deep,
    lambda f: replace(f, "actions", shape=(5, 2), dtype=float,
                      external=[("/etc/passwd", 0, h5py.h5f.UNLIMITED)]),
    lambda f: replace(f, "actions", shape=(5,), dtype=h5py.string_dtype()),
    lambda f: replace(f, "actions", shape=(5, 2), dtype=h5py.ref_dtype),
    lambda f: replace(f, "actions", shape=(1 << 40, 2), dtype=float, chunks=True,
                      compression="gzip"),
    lambda f: replace(f, "actions", shape=(5, 1 << 26), dtype=np.float32, chunks=True,
                      compression="gzip"),
    lambda f: replace(f, "actions", shape=(5, 1 << 23), dtype=np.uint8, chunks=(1, 1)),
    lambda f: replace(f, "actions", shape=(5, 1 << 62), dtype=np.uint8, chunks=(1, 1024)),
    lambda f: replace(f, "actions", np.array([pickle.dumps(Payload())] * 5)),
    lambda f: replace(f, "actions", np.void(pickle.dumps(Payload()))),
    lambda f: replace(f, "actions", np.full((5, 2), np.nan)),
    lambda f: replace(f, "actions", np.zeros((0, 2))),
    lambda f: replace(f, "actions", h5py.Empty("f")),
    lambda f: replace(f, "terminals", np.zeros((5, 5))),
    lambda f: replace(f, "actions", np.zeros((5, 2), complex)),
)


def robomimic(folder: Path, change: Callable[[h5py.Group], Any]) -> Read:
    with h5py.File(folder / "a.hdf5", "w") as file:
        demo = file.create_group("data/demo_0")
        for name, array in (("obs/x", np.zeros((5, 3))), ("actions", np.zeros((5, 2))),
                            ("rewards", np.zeros(5)), ("dones", np.zeros(5))):
            demo[name] = array
        change(demo)
    return reader(hdf5.open_robomimic, folder / "a.hdf5")


several(
    "robomimic", robomimic,
    lambda demo: demo.parent.attrs.__setitem__("env_args", "[" * 60_000),
    lambda demo: demo.parent.attrs.__setitem__("env_args", pickle.dumps(Payload(), 0)),
    lambda demo: demo.parent.__setitem__("demo_1", h5py.ExternalLink("/etc/passwd", "/")),
    lambda demo: demo.parent.__setitem__("demo_1", h5py.SoftLink("/data")),
    lambda demo: demo.parent.__setitem__("demo_1", np.zeros(3)),
    lambda demo: replace(demo, "obs/x", np.zeros((5, 0, 0, 3), np.uint8)),
    lambda demo: replace(demo, "obs/x", np.zeros((4, 3))),
    lambda demo: replace(demo, "actions", np.zeros(5)) or replace(demo, "actions", np.zeros(())),
)


def damaged(folder: Path, edit: Callable[[bytearray], Any]) -> Read:
    """A robomimic file with bytes changed that make HDF5 hang or crash."""
    read = robomimic(folder, lambda demo: demo.parent.attrs.__setitem__("env_args", "{}"))
    raw = bytearray((folder / "a.hdf5").read_bytes())
    edit(raw)
    (folder / "a.hdf5").write_bytes(raw)
    return read


def heap_object(index: int, size: int) -> Callable[[bytearray], Any]:
    def edit(raw: bytearray) -> None:
        at = raw.index(b"GCOL") + 16
        raw[at:at + 16] = struct.pack("<HHIQ", index, 1, 0, size)

    return edit


def text_type(raw: bytearray) -> None:
    """Variable length of a kind that does not exist."""
    at = raw.index(b"\x19", raw.index(b"env_args"))
    raw[at + 1] = 99


several("damaged", damaged, heap_object(0, 0), heap_object(1, 2**64 - 16),
        heap_object(0, 2**64 - 4096), heap_object(1, 2**40), heap_object(0, 8), text_type)


# -- Minari -------------------------------------------------------------------------------------


def minari_of(folder: Path, change: Any) -> Read:
    """An exported dataset whose description or first episode is changed."""
    to_minari(MemoryLog([full_episode(3), full_episode(2, 1)]), folder / "d", quiet=True)
    data = folder / "d/data"
    if callable(change):
        with h5py.File(data / "main_data.hdf5", "r+") as file:
            change(file)
    else:
        metadata = json.loads((data / "metadata.json").read_text())
        (data / "metadata.json").write_text(json.dumps(metadata | change))
    return reader(minari.open_source, folder / "d")


several(
    "minari", minari_of,
    {"total_episodes": 10**18}, {"total_episodes": 3}, {"total_episodes": True},
    {"data_format": "../../../etc"}, {"data_format": ["hdf5"]},
    {"robot_rl": None, "observation_space": "[" * 100_000},
    {"robot_rl": {"format": 1, "info": {"task": "", "observation_shape": ["a"], "goal_dim": 1,
                                        "action_dim": 1}}},
    lambda f: replace(f, "episode_0/actions", h5py.ExternalLink("/etc/passwd", "/actions")),
    lambda f: replace(f, "episode_1", h5py.SoftLink("/episode_0")),
    lambda f: replace(f, "episode_1/rewards", np.array([np.nan, 0], np.float32)),
    lambda f: replace(f, "episode_1/actions", np.zeros((9, 3), np.float32)),
    lambda f: replace(f, "episode_0/observations/observation.images.front",
                      np.zeros((4, 0, 0, 3), np.uint8)),
)


@hostile
def minari_whose_own_file_points_anywhere(folder: Path) -> Read:
    read = minari_of(folder, {})
    with h5py.File(folder / "d/data/robot_rl.hdf5", "r+") as file:
        replace(file, "episode_0/images/front/index", np.array([0, 1, 2, 2**60]))
    return read


@hostile
def minari_whose_own_file_claims_many_frames(folder: Path) -> Read:
    read = minari_of(folder, {})
    with h5py.File(folder / "d/data/robot_rl.hdf5", "r+") as file:
        replace(file, "episode_0/images/front/stamp_s", np.zeros(10_000_000))
    return read


@hostile
def minari_of_pickled_arrow(folder: Path) -> Read:
    (folder / "d/0").mkdir(parents=True)
    field = pa.field("actions", pa.float64(), metadata={
        b"ARROW:extension:name": b"arrow.py_extension_type",
        b"ARROW:extension:metadata": pickle.dumps(Payload())})
    schema = pa.schema([field, ("observations", pa.string())])
    with pa.OSFile(str(folder / "d/0/a.arrow"), "wb") as sink, pa.ipc.new_file(
            sink, schema) as writer:
        writer.write(pa.record_batch([pa.array([1.0, 2.0]), pa.array(["a", "b"])], schema=schema))
    (folder / "d/metadata.json").write_text(json.dumps(
        {"data_format": "arrow", "total_episodes": 1}))
    return reader(minari.open_source, folder / "d")


# -- LeRobot ------------------------------------------------------------------------------------


def lerobot_of(folder: Path, change: Callable[[Path], Any], **mapping: Any) -> Read:
    """An exported dataset without what is our own, changed."""
    log = MemoryLog([plain_episode(3, 0, cameras=True), plain_episode(2, 1, cameras=True)])
    to_lerobot(log, folder / "d", quiet=True)
    if not mapping:
        (folder / "d/meta/robot_rl/info.json").unlink()
    change(folder / "d")
    return reader(lerobot.open_source, folder / "d")


def info(**values: Any) -> Callable[[Path], Any]:
    def change(root: Path) -> None:
        content = json.loads((root / "meta/info.json").read_text())
        (root / "meta/info.json").write_text(json.dumps(content | values))

    return change


def feature(key: str, **values: Any) -> Callable[[Path], Any]:
    def change(root: Path) -> None:
        content = json.loads((root / "meta/info.json").read_text())
        content["features"].setdefault(key, {}).update(values)
        (root / "meta/info.json").write_text(json.dumps(content))

    return change


def listed(**values: Any) -> Callable[[Path], Any]:
    """Change the second episode's row."""

    def change(root: Path) -> None:
        file = root / "meta/episodes/chunk-000/file-000.parquet"
        rows = pq.read_table(file).to_pylist()
        rows[1] |= values
        pq.write_table(pa.Table.from_pylist(rows), file)

    return change


def column(name: str, values: Callable[[list[Any]], list[Any]]) -> Callable[[Path], Any]:
    def change(root: Path) -> None:
        file = root / "data/chunk-000/file-000.parquet"
        table = pq.read_table(file)
        at = table.column_names.index(name)
        kind = table.schema.field(name).type
        new = pa.array(values(table[name].to_pylist()), kind)
        pq.write_table(table.set_column(at, name, new), file)

    return change


def outside(name: str) -> Callable[[Path], Any]:
    """Make a file a link to a copy of it outside."""

    def change(root: Path) -> None:
        (root / name).rename(root.parent / "elsewhere")
        (root / name).symlink_to(root.parent / "elsewhere")

    return change


def pipe(name: str) -> Callable[[Path], Any]:
    """Make a file a pipe into which nobody writes."""

    def change(root: Path) -> None:
        (root / name).unlink()
        os.mkfifo(root / name)

    return change


def png(width: int, height: int) -> bytes:
    return b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0,
                                                        0) + bytes(100)


def huge_images(root: Path) -> None:
    feature("observation.images.front", shape=[20_000, 20_000, 3])(root)
    column("observation.images.front", lambda rows: [
        {"bytes": png(20_000, 20_000), "path": ""} for _ in rows])(root)


def playlist(root: Path) -> None:
    """A video that is a list of other files."""
    feature("observation.images.front", dtype="video")(root)
    listed_all = {"videos/observation.images.front/chunk_index": 0,
                  "videos/observation.images.front/file_index": 0,
                  "videos/observation.images.front/from_timestamp": 0.0}
    file = root / "meta/episodes/chunk-000/file-000.parquet"
    rows = [row | listed_all for row in pq.read_table(file).to_pylist()]
    pq.write_table(pa.Table.from_pylist(rows), file)
    info(video_path="videos/{video_key}/{chunk_index}.mp4")(root)
    (root / "videos/observation.images.front").mkdir(parents=True)
    (root / "videos/observation.images.front/0.mp4").write_text(
        "#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n")


def write(name: str, content: bytes, sparse: int = 0) -> Callable[[Path], Any]:
    def change(root: Path) -> None:
        (root / name).write_bytes(content)
        if sparse:
            os.truncate(root / name, sparse)

    return change


several(
    "lerobot", lerobot_of,
    info(data_path="../../../etc/passwd"), info(data_path="/etc/passwd"),
    info(data_path="{0.__class__.__mro__}"), info(data_path="{chunk_index.__class__}"),
    info(data_path="{chunk_index:99999999999d}"), info(data_path=["data"]),
    info(data_path="a\0b"), info(data_path="x" * 100_000), info(fps=1e999), info(fps=-10),
    info(total_episodes=10**30), info(features={str(i): {} for i in range(20_000)}),
    feature("action", dtype="|O"), feature("action", dtype="float32", shape=[1 << 62, 1 << 62]),
    feature("action", shape=[-1]), feature("action", shape=[[3]]),
    feature("observation.images.front", shape=[0, 0, 3]),
    feature("observation.images.front", shape=[10**6, 10**6, 3]),
    feature("../../etc/passwd", dtype="video", shape=[8, 8, 3]),
    huge_images, playlist, outside("data/chunk-000/file-000.parquet"),
    outside("meta/tasks.parquet"),
    outside("meta/episodes/chunk-000/file-000.parquet"), pipe("data/chunk-000/file-000.parquet"),
    pipe("meta/info.json"), pipe("meta/tasks.parquet"),
    column("observation.images.front", lambda rows: [
        {"bytes": None, "path": "../../../../../../etc/passwd"} for _ in rows]),
    column("observation.images.front", lambda rows: [{"bytes": png(36, 40), "path": ""}] * len(
        rows)),
    column("observation.images.front", lambda rows: [
        {"bytes": pickle.dumps(Payload()), "path": ""}] * len(rows)),
    column("observation.images.front", lambda rows: [None] * len(rows)),
    column("observation.state", lambda rows: [[float("nan")] * 4] * len(rows)),
    column("next.reward", lambda rows: [None] * len(rows)),
    column("episode_index", lambda rows: [-1] * len(rows)),
    column("timestamp", lambda rows: [float("inf")] * len(rows)),
    listed(episode_index=0), listed(episode_index=5), listed(episode_index=-1),
    listed(length=-2), listed(length=0), listed(length=1 << 45, dataset_to_index=3 + (1 << 45)),
    listed(dataset_from_index=1 << 40, dataset_to_index=(1 << 40) + 2),
    listed(**{"data/file_index": 10**15}), listed(**{"data/chunk_index": -1}),
    write("meta/info.json", b"[" * 1_000_000), write("meta/info.json", b"{", 1 << 30),
    write("meta/info.json", pickle.dumps(Payload())),
    write("data/chunk-000/file-000.parquet", pickle.dumps(Payload())),
    write("data/chunk-000/file-000.parquet", b"PAR1" + b"\xff" * 64 + b"PAR1"),
    write("meta/tasks.parquet", b"", 1 << 30),
)


def own_change(folder: Path, change: Callable[[Path], Any]) -> Read:
    return lerobot_of(folder, change, own=True)


def own(**values: Any) -> Callable[[Path], Any]:
    def change(root: Path) -> None:
        content = json.loads((root / "meta/robot_rl/info.json").read_text())
        (root / "meta/robot_rl/info.json").write_text(json.dumps(content | values))

    return change


def beside(change_row: Callable[[dict[str, Any]], Any]) -> Callable[[Path], Any]:
    def change(root: Path) -> None:
        file = root / "meta/robot_rl/episodes-000.parquet"
        table = pq.read_table(file)
        rows = table.to_pylist()
        change_row(rows[0])
        with pq.ParquetWriter(file, table.schema) as writer:
            for row in rows:
                writer.write_table(pa.Table.from_pylist([row], table.schema))

    return change


several(
    "lerobot_own", own_change,
    own(fields=[]), own(fields={"action": {"feature": "../x"}}), own(cameras={}),
    own(info={"task": "x"}), own(format="1"),
    own(fields={"action": {"feature": "action", "rows": "step", "shape": [1 << 62, 4],
                           "dtype": "float32"}}),
    beside(lambda row: row["arrays"][0].update(dtype="O", data=pickle.dumps(Payload()))),
    beside(lambda row: row["arrays"][0].update(dtype="__import__('os')")),
    beside(lambda row: row["last"][0].update(shape=[1 << 40, 1 << 40])),
    beside(lambda row: row["last"][0].update(shape=[-1, -1])),
    beside(lambda row: row["images"][0].update(index=[0, 1, 2, 1 << 60])),
    beside(lambda row: row["images"][0].update(stamp_s=[0.0] * 1_000_000)),
    beside(lambda row: row["images"][0].update(rest=[png(1 << 20, 1 << 20)] * 3)),
    beside(lambda row: row.update(metadata="[" * 100_000)),
    beside(lambda row: row.update(episode_index=7)),
    outside("meta/robot_rl/episodes-000.parquet"), outside("meta/robot_rl/info.json"),
)


# -- reading them all ---------------------------------------------------------------------------


def peak_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) << 10
    return 0


def main(folder: Path) -> None:
    """Make and read every file; a line for each."""
    for name, make in MAKERS.items():
        here = folder / name
        here.mkdir()
        read = make(here)
        os.chdir(here)
        Path("/proc/self/clear_refs").write_text("5")
        before, start = peak_bytes(), time.perf_counter()
        try:
            outcome = f"read {len(read())}"
        except InvalidInputError as error:
            outcome = f"refused: {error}"
        except Exception as error:
            outcome = f"{type(error).__name__}: {error}"
        print(json.dumps({
            "name": name, "outcome": outcome[:500], "seconds": time.perf_counter() - start,
            "bytes": peak_bytes() - before, "executed": (here / MARK).exists()}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
