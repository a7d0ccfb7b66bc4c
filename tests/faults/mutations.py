"""Valid files of every format with random bytes changed, read one after the other.

``python -m tests.faults.mutations FORMAT FOLDER FIRST END`` reads the mutants FIRST to END and
prints the number of each before, and what came of it after, so that whoever started it knows which
one was fatal.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from gymnasium import spaces
from minari.data_collector.episode_buffer import EpisodeBuffer
from minari.dataset.minari_storage import MinariStorage

from robot_rl.data.exporters.lerobot import export as to_lerobot
from robot_rl.data.exporters.minari import export as to_minari
from robot_rl.data.importers import hdf5, lerobot, minari, npz
from robot_rl.data.importers.base import ImportOptions
from robot_rl.errors import InvalidInputError
from tests.unit.format_samples import MemoryLog, plain_episode


def log() -> MemoryLog:
    return MemoryLog([plain_episode(3, n, g=2, cameras=True) for n in range(2)])


def make_npz(folder: Path) -> None:
    np.savez_compressed(
        folder / "a.npz", observations=np.random.default_rng(0).normal(size=(9, 3)),
        actions=np.zeros((9, 2)), rewards=np.zeros(9), episode_lengths=np.array([4, 5]))


def make_d4rl(folder: Path) -> None:
    with h5py.File(folder / "a.hdf5", "w") as file:
        for name, array in (("observations", np.ones((9, 3))), ("actions", np.zeros((9, 2))),
                            ("rewards", np.zeros(9)), ("terminals", np.arange(9) == 4),
                            ("infos/goal", np.zeros((9, 2)))):
            file.create_dataset(name, data=array, chunks=True, compression="gzip")


def make_robomimic(folder: Path) -> None:
    with h5py.File(folder / "a.hdf5", "w") as file:
        file.create_group("data").attrs["env_args"] = json.dumps({"env_name": "Can"})
        for number in range(2):
            for name, array in (("obs/x", np.ones((5, 3))), ("next_obs/x", np.ones((5, 3))),
                                ("actions", np.zeros((5, 2))), ("rewards", np.zeros(5)),
                                ("dones", np.zeros(5)),
                                ("obs/a_image", np.zeros((5, 8, 8, 3), np.uint8))):
                file[f"data/demo_{number}/{name}"] = array


def make_minari(folder: Path, flavour: str) -> None:
    """As others store it, images as JPEG."""
    image = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3)).astype(np.uint8)
    space = spaces.Dict({"a": spaces.Box(-9, 9, (2, 2)), "b": spaces.Discrete(5),
                         "c": spaces.Box(0, 255, (32, 32, 3), np.uint8)})
    (folder / "d").mkdir()
    storage = MinariStorage.new(folder / "d", space, spaces.Box(-1, 1, (2,)), data_format=flavour)
    storage.update_episodes([EpisodeBuffer(
        observations={"a": np.zeros((4, 2, 2), np.float32), "b": np.arange(4), "c": image},
        actions=np.zeros((3, 2), np.float32), rewards=np.zeros(3), terminations=np.zeros(3, bool),
        truncations=np.arange(3) == 2, infos={"x": np.zeros((4, 2))})] * 2)


def opened(opener: Callable[[Path, ImportOptions], Any], path: Path) -> Any:
    source = opener(path, ImportOptions())
    try:
        return list(source)
    finally:
        source.close()


FORMATS: dict[str, tuple[Callable[[Path], Any], Callable[[Path], Any]]] = {
    "npz": (make_npz, lambda f: npz.load_npz(f / "a.npz")[1]),
    "d4rl": (make_d4rl, lambda f: opened(hdf5.open_d4rl, f / "a.hdf5")),
    "robomimic": (make_robomimic, lambda f: opened(hdf5.open_robomimic, f / "a.hdf5")),
    "minari": (lambda f: to_minari(log(), f / "d", quiet=True),
               lambda f: opened(minari.open_source, f / "d")),
    "minari_jpeg": (lambda f: make_minari(f, "hdf5"),
                    lambda f: opened(minari.open_source, f / "d")),
    "minari_arrow": (lambda f: make_minari(f, "arrow"),
                     lambda f: opened(minari.open_source, f / "d")),
    "minari_parquet": (lambda f: make_minari(f, "parquet"),
                       lambda f: opened(minari.open_source, f / "d")),
    "lerobot": (lambda f: to_lerobot(log(), f / "d", quiet=True),
                lambda f: opened(lerobot.open_source, f / "d")),
    "lerobot_video": (lambda f: to_lerobot(log(), f / "d", quiet=True, video=True),
                      lambda f: opened(lerobot.open_source, f / "d")),
}


def mutate(content: bytes, rng: np.random.Generator) -> bytes:
    raw = bytearray(content)
    at = int(rng.integers(len(raw)))
    kind = rng.integers(6)
    if kind <= 1:
        for place in rng.integers(0, len(raw), int(rng.integers(1, 9))):
            raw[place] = int(rng.integers(256))
    elif kind == 2:
        del raw[at:]
    elif kind == 3:
        raw[at:at] = rng.integers(0, 256, int(rng.integers(1, 64))).astype(np.uint8).tobytes()
    elif kind == 4:
        value = (0, 1, 255, 0x7F)[rng.integers(4)]
        raw[at:at + int(rng.integers(1, 17))] = bytes([value]) * int(rng.integers(1, 17))
    else:
        other = int(rng.integers(len(raw)))
        raw[at:at + 32] = raw[other:other + 32]
    return bytes(raw)


def main(name: str, folder: Path, first: int, end: int) -> None:
    """Make the files if they are not there yet and read the mutants."""
    make, read = FORMATS[name]
    if not any(folder.iterdir()):
        make(folder)
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.stat().st_size)
    contents = [p.read_bytes() for p in files]
    print(json.dumps({"ready": len(read(folder))}), flush=True)
    for number in range(first, end):
        rng = np.random.default_rng([number, len(name)])
        which = int(rng.integers(len(files)))
        print(json.dumps({"begin": number, "file": files[which].name}), flush=True)
        files[which].write_bytes(mutate(contents[which], rng))
        start = time.perf_counter()
        try:
            for episode in read(folder):
                episode.check("mutant")
            outcome = "read"
        except InvalidInputError:
            outcome = "refused"
        except BaseException as error:
            outcome = f"{type(error).__name__}: {error}"[:300]
        seconds = time.perf_counter() - start
        files[which].write_bytes(contents[which])
        print(json.dumps({"end": number, "outcome": outcome, "seconds": seconds}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
