"""The power is cut at every write, sync and rename: nothing that was promised is lost or doubled.

`benchmarks/durability.py` cuts at every point of the same recordings.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

from benchmarks.faults.disk import SimulatedDisk, power_cuts
from benchmarks.faults.power import DATA, Scenario, cuts_of, scenarios, whole_episodes
from robot_rl.data import files as data_files
from robot_rl.data import recording

NAMES = ["whole episodes", "live episodes", "live, every row by itself",
         "interrupted and extended", "extended after a kill", "reopened, episodes set aside",
         "repair: interrupted", "repair: damaged", "repair: damaged and nameless"]


@pytest.fixture(scope="module")
def memory() -> Iterator[Path]:
    """A folder in memory, where there is one: what is built here is built thousands of times."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def known(memory) -> dict[str, Scenario]:
    return {scenario.name: scenario for scenario in scenarios(memory / "expected")}


def run(scenario: Scenario, work: Path, deep_every: int = 1, **how: int) -> int:
    count = 0
    for cut, folder in cuts_of(scenario, work, **how):
        count += 1
        try:
            scenario.check(folder, cut.notes, count % deep_every == 0)
        except Exception as error:
            raise AssertionError(
                f"{scenario.name}, after operation {cut.after}, {cut.variant}: {error!r}"
            ) from error
    return count


@pytest.mark.parametrize("name", NAMES)
def test_what_was_promised_survives_a_power_cut(known, memory, name):
    assert run(known[name], memory / name.replace(" ", "-"), deep_every=5, every=9, seed=1) >= 8


@pytest.mark.slow
def test_every_point_of_every_recording(known, memory):
    assert list(known) == NAMES
    assert sum(run(known[name], memory / f"all-{i}", torn=2) for i, name in enumerate(NAMES)) > 1000


# -- the disk forgets as it should, and a missing sync is found ---------------------------------


def test_the_disk_forgets_what_was_not_synced(tmp_path):
    (tmp_path / "old").write_bytes(b"old")
    disk = SimulatedDisk(tmp_path)
    with disk.recording():
        file = data_files.AppendedFile(tmp_path / "a.part")
        file.write(b"abc")
        file.sync()
        file.write(b"def")
        file.close()
        data_files.publish(tmp_path / "a.part", tmp_path / "a")
        data_files.remove(tmp_path / "old")
    trees = [(cut.after, cut.tree) for cut in power_cuts(disk, torn=20)]
    assert [kind for kind, *_ in disk.trace] == ["create", "write", "fsync", "write", "name",
                                                 "fsync", "name"]
    assert {"old": b"old"} in [tree for _, tree in trees], "nothing happened"
    assert {"old": b"old", "a.part": b""} in [tree for at, tree in trees if at == 2], (
        "a name can outlive the content")
    synced = [tree for at, tree in trees if at == 6]
    assert all(tree["a"][:3] == b"abc" for tree in synced), "what was synced stays"
    assert {tree["a"] for tree in synced} >= {b"abc", b"abcd", b"abcdef"}, "the rest may be torn"
    assert not any("a.part" in tree for tree in synced)
    last = [tree for at, tree in trees if at == 7]
    assert any("old" in tree for tree in last) and any("old" not in tree for tree in last)


@pytest.mark.parametrize("forgotten", ["sync", "folder", "before"])
def test_a_forgotten_sync_is_found(memory, forgotten):
    """The same check fails for a log that syncs less: it can fail at all."""
    work = memory / f"forgot-{forgotten}"
    patches = {
        "sync": mock.patch.object(data_files.AppendedFile, "sync", lambda file: None),
        "folder": mock.patch.object(data_files, "sync_folder", lambda folder: None),
        # It says that it is done before it is.
        "before": mock.patch.object(recording.LiveEpisode, "commit", lambda live: live.abandon()),
    }
    names = {"before": "live episodes"}
    scenario = next(s for s in scenarios(work / "expected")
                    if s.name == names.get(forgotten, "whole episodes"))
    with patches[forgotten], pytest.raises(AssertionError):
        run(scenario, work / "cuts", every=3)


def test_folders_above_a_dataset_survive_too(memory):
    disk_folder = memory / "parents"
    disk_folder.mkdir()
    disk = SimulatedDisk(disk_folder)
    with disk.recording():
        whole_episodes(disk, disk_folder / DATA)
    *_, last = [cut for cut in power_cuts(disk) if cut.variant == "names before, content lost"]
    assert [name for name in last.tree if name.endswith(".mcap")] == [
        f"{DATA}/episodes/00000{n}.mcap" for n in range(3)]
