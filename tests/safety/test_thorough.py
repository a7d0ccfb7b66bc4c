"""How thorough the tests of the safety filter are: branches covered, mutants killed, a storm."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
# Fast tests without physics; what they leave out of the filter has no other excuse.
TESTS = ("tests/unit/test_safety*.py", "tests/safety/test_filter_*.py",
         "tests/unit/test_camera_watch.py", "tests/safety/test_camera_rest.py",
         "tests/unit/test_ending.py")


def python(*words: str, timeout_s: float) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *words], cwd=REPO, env=environment, text=True,
                          capture_output=True, timeout=timeout_s, check=False)


def last_json(done: subprocess.CompletedProcess[str]) -> dict:
    assert done.stdout, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_branch_of_the_filter_is_taken(tmp_path):
    pytest.importorskip("coverage")
    data, report = tmp_path / "data", tmp_path / "report.json"
    files = [str(path.relative_to(REPO)) for pattern in TESTS
             for path in sorted(REPO.glob(pattern))]
    # The tracer in C sees every thread; the newer one of Python 3.12 misses branches.
    done = python("-m", "coverage", "run", "--branch", f"--data-file={data}",
                  "--source=robot_rl/safety", "-m", "pytest", "-q", "-p", "no:cacheprovider",
                  *files, timeout_s=800)
    assert done.returncode == 0, done.stdout[-3000:]
    python("-m", "coverage", "json", f"--data-file={data}", "-o", str(report), timeout_s=100)
    covered = json.loads(report.read_text())["files"]
    assert any(name.endswith("filter.py") for name in covered)
    left = {
        name: {"lines": one["missing_lines"], "branches": one["missing_branches"]}
        for name, one in covered.items()
        if one["missing_lines"] or one["missing_branches"]
    }
    assert not left, json.dumps(left, indent=1)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_mutants_of_the_filter_are_killed():
    pytest.importorskip("mutmut")
    done = python("benchmarks/mutation.py", "--json", timeout_s=3500)
    found = last_json(done)
    assert found["mutants"] > 800 and found["not_judged"] == 0
    assert found["killed_share"] >= 0.95, "\n".join(found["survivors"])
    assert done.returncode == 0


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_storm_breaks_no_limit():
    pytest.importorskip("mujoco")
    pytest.importorskip("pybullet")
    done = python("benchmarks/filter_storm.py", "--steps", "40000", "--replay-rows", "4000",
                  "--quiet", "--json", timeout_s=1700)
    found = last_json(done)
    assert done.returncode == 0, done.stderr[-3000:]
    assert found["steps"] >= 120_000 and found["rows_sent"] > 400_000
    assert found["violations"] == found["faults"] == found["replay_violations"] == 0
