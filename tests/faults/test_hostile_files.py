"""Datasets of other formats made to hurt: refused, nothing executed, little time and memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.faults.hostile_samples import MAKERS
from tests.faults.mutations import FORMATS

ROOT = Path(__file__).resolve().parents[2]
MAX_SECONDS, MAX_BYTES = 1.0, 256 << 20
# Address space of the process that reads mutants; what its libraries map alone is some of it.
MAX_ADDRESSES = 8 << 30


def python(*arguments: str) -> list[str]:
    return [sys.executable, "-m", *arguments]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory) -> dict[str, dict[str, Any]]:
    """What became of every hostile file, all read by one process of their own."""
    folder = tmp_path_factory.mktemp("hostile")
    done = subprocess.run(python("tests.faults.hostile_samples", str(folder)), env=environment(),
                          cwd=folder, capture_output=True, text=True, timeout=120)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, (found[-1:], done.stderr[-2000:])
    return {outcome["name"]: outcome for outcome in found}


def test_there_are_enough_of_them(outcomes):
    assert len(MAKERS) >= 130 and set(outcomes) == set(MAKERS)


@pytest.mark.parametrize("name", MAKERS)
def test_a_hostile_file_is_refused_and_does_nothing(outcomes, name):
    found = outcomes[name]
    assert not found["executed"]
    assert found["outcome"].startswith("refused: "), found
    assert found["seconds"] < MAX_SECONDS, found
    assert found["bytes"] < MAX_BYTES, found


def read_mutants(name: str, folder: Path, count: int) -> tuple[Counter[str], float, list[str]]:
    """How the mutants fared, the longest time [s], and the files whose mutants killed a reader."""
    outcomes: Counter[str] = Counter()
    longest, fatal, first = 0.0, [], 0
    while first < count:
        with subprocess.Popen(
            ["prlimit", f"--as={MAX_ADDRESSES}", *python(
                "tests.faults.mutations", name, str(folder), str(first), str(count))],
            env=environment(), cwd=folder, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as process:
            assert process.stdout is not None
            lines = [json.loads(line) for line in process.stdout if line.endswith("\n")]
            process.wait(timeout=60)
        assert lines and lines[0] == {"ready": 2}
        for line in lines:
            if "end" in line:
                outcomes[line["outcome"]] += 1
                longest = max(longest, line["seconds"])
        if "end" in lines[-1]:
            break
        outcomes["killed"] += 1
        fatal.append(f"{lines[-1]['file']}: {process.returncode}")
        first = lines[-1]["begin"] + 1
        # The reader died with a mutant in the folder.
        for path in sorted(folder.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
    return outcomes, longest, fatal


@pytest.mark.parametrize("name", FORMATS)
def test_a_changed_file_is_refused_or_read(tmp_path, name):
    check_mutants(tmp_path, name, 120)


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_thousands_of_changed_files_are_refused_or_read(tmp_path, name):
    check_mutants(tmp_path, name, 4000)


def check_mutants(folder: Path, name: str, count: int) -> None:
    outcomes, longest, fatal = read_mutants(name, folder, count)
    print(f"{name}: {dict(outcomes)}, longest {longest:.2f} s, killed by {fatal}")
    assert set(outcomes) <= {"read", "refused", "killed"}, outcomes
    assert sum(outcomes.values()) == count
    assert outcomes["refused"] >= count // 10
    # A library in C may crash on its own format's file; imports run in a process of their own.
    assert outcomes["killed"] <= count // 100, fatal
    assert longest < 5.0
