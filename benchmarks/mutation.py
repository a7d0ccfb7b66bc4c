"""Would the tests notice a change of the safety filter? Mutation testing with mutmut.

    python benchmarks/mutation.py --json                  # all of it, some 30 minutes on two cores
    python benchmarks/mutation.py --only filter           # one module

mutmut changes one thing at a time in the functions of robot_rl/safety (an operator, a number, an
argument, a name, a text), forks a process that has imported everything already, and runs the tests
that call the changed function, the quickest first, until one fails. A mutant that no test notices
survives. What cannot be noticed, because the program does the same, stands with its reason in
benchmarks/mutation_equivalent.yaml and does not count. The share that was killed has to be at least
95 %, or the exit status is 1. mutmut works in a copy of the tree: it leaves a folder of mutants
where it runs, and wants its settings in pyproject.toml.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

REPO = Path(__file__).resolve().parents[1]
RESULTS = REPO / "benchmarks" / "results" / "mutation.json"
EQUIVALENT = REPO / "benchmarks" / "mutation_equivalent.yaml"
LEAST_SHARE = 0.95
# Of robot_rl/safety: cameras.py looks at images, ending.py at signals in processes of their own.
LEFT_OUT = ("__init__", "cameras", "ending")
# Quick, without physics, and the same on every run.
TESTS = ("tests/unit/test_safety*.py", "tests/safety/test_filter_*.py")
COPIED = ("robot_rl", "tests", "benchmarks", "sim", "drivers", "calibration")
IGNORED = shutil.ignore_patterns("__pycache__", "*.json", ".hypothesis", "*.egg-info")

SETTINGS = """
[tool.mutmut]
source_paths = ["robot_rl"]
only_mutate = {modules}
also_copy = ["sim", "drivers", "calibration", "benchmarks"]
pytest_add_cli_args = ["-p", "no:cacheprovider"]
pytest_add_cli_args_test_selection = {tests}
timeout_multiplier = {patience}
timeout_constant = 10.0
"""
# Times the time that the tests take unchanged. A busy machine must not pass for a kill: what runs
# out of time is run again with more of it.
PATIENCE = (3.0, 8.0)
# Exit codes of a mutant's test run, as mutmut keeps them; any other is "suspicious".
KILLED, SURVIVED, UNTESTED = (1, 3), (0,), (5, 33)
TIMED_OUT, CRASHED = (36, 24, -24, 152, 255), (-11, -9)


@dataclass(frozen=True)
class Survivor:
    """A mutant that no test noticed: where it is, and the lines as they were and are."""

    name: str
    module: str
    function: str
    was: str
    now: str

    def __str__(self) -> str:
        return f"{self.module} {self.function}\n    - {self.was}\n    + {self.now}"


def modules_of(only: list[str] | None) -> list[str]:
    """Paths of the modules to mutate."""
    names = sorted(path.stem for path in (REPO / "robot_rl" / "safety").glob("*.py"))
    chosen = only or [name for name in names if name not in LEFT_OUT]
    for name in chosen:
        if name not in names:
            raise SystemExit(f"no module {name!r} in robot_rl/safety; valid: {', '.join(names)}")
    return [f"robot_rl/safety/{name}.py" for name in chosen]


def prepare(work: Path, modules: list[str], patterns: Sequence[str]) -> None:
    """A copy of the tree in which mutmut may work."""
    for name in COPIED:
        shutil.copytree(REPO / name, work / name, ignore=IGNORED)
    tests = [path.relative_to(REPO).as_posix() for pattern in patterns
             for path in sorted(REPO.glob(pattern))]
    for number, patience in enumerate(PATIENCE):
        shutil.copy(REPO / "pyproject.toml", work / f"pyproject.{number}")
        with (work / f"pyproject.{number}").open("a") as file:
            file.write(SETTINGS.format(modules=json.dumps(modules), tests=json.dumps(tests),
                                       patience=patience))


def verdicts(work: Path) -> dict[str, int | None]:
    """Exit codes by mutant; None while it waits."""
    codes: dict[str, int | None] = {}
    for meta in (work / "mutants").rglob("*.meta"):
        try:
            codes.update(json.loads(meta.read_text())["exit_code_by_key"])
        except ValueError:
            continue  # being written
    return codes


def watch(work: Path, done: threading.Event) -> None:
    """Say now and then how far it is."""
    while not done.wait(15.0):
        codes = verdicts(work)
        checked = [code for code in codes.values() if code is not None]
        alive = sum(code in SURVIVED + UNTESTED for code in checked)
        print(f"  {len(checked)} of {len(codes)} mutants, {alive} survive", file=sys.stderr)


def run_mutmut(work: Path, children: int) -> None:
    """Raises SystemExit where the tests fail without any mutation."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    log = work / "mutmut.log"
    done = threading.Event()
    watcher = threading.Thread(target=watch, args=(work, done), daemon=True)
    watcher.start()
    try:
        with log.open("wb") as file:
            code = subprocess.run(
                [sys.executable, "-m", "mutmut", "run", "--max-children", str(children)],
                cwd=work, env=environment, stdout=file, stderr=subprocess.STDOUT, check=False,
            ).returncode
    finally:
        done.set()
        watcher.join()
    if not any(code is not None for code in verdicts(work).values()):
        text = log.read_text("utf-8", "replace")[-3000:]
        raise SystemExit(f"mutmut ended with {code} before the first mutant:\n{text}")


def describe(work: Path, name: str) -> Survivor:
    """What a mutant changed."""
    shown = subprocess.run([sys.executable, "-m", "mutmut", "show", name], cwd=work,
                           capture_output=True, text=True, check=False)
    lines = shown.stdout.splitlines()
    if not lines:
        raise SystemExit(f"mutmut cannot show {name}: {shown.stderr[-500:]}")

    def changed(sign: str) -> str:
        return " ".join(line[1:].strip() for line in lines
                        if line.startswith(sign) and not line.startswith(sign * 3))

    module, _, mangled = name.rpartition(".")
    function = re.sub(r"__mutmut_\d+$", "", mangled)
    function = function.removeprefix("x_").removeprefix("xǁ").replace("ǁ", ".")
    return Survivor(name, module.rpartition(".")[2], function, changed("-"), changed("+"))


def equivalent() -> list[dict[str, str]]:
    """Mutants that do the same as the original: module, function, was, now, reason."""
    return list(yaml.safe_load(EQUIVALENT.read_text()) or []) if EQUIVALENT.exists() else []


def judge(survivors: list[Survivor], known: list[dict[str, str]]) -> tuple[
    list[Survivor], list[dict[str, str]]
]:
    """The survivors that are not known to be equivalent, and the known ones that were seen."""
    keys = {(one["module"], one["function"], one["was"], one["now"]): one for one in known}
    open_ones, seen = [], []
    for survivor in survivors:
        one = keys.get((survivor.module, survivor.function, survivor.was, survivor.now))
        if one is None:
            open_ones.append(survivor)
        else:
            seen.append(one)
    return open_ones, seen


def run(work: Path, args: argparse.Namespace) -> dict[str, Any]:
    began = time.perf_counter()
    prepare(work, modules_of(args.only), args.tests or TESTS)
    for number in range(len(PATIENCE)):
        # mutmut keeps its verdicts, but for those of a time-out that has changed.
        shutil.copy(work / f"pyproject.{number}", work / "pyproject.toml")
        run_mutmut(work, args.children)
        if not any(code in TIMED_OUT for code in verdicts(work).values()):
            break
    codes = verdicts(work)
    survivors = [describe(work, name) for name, code in codes.items()
                 if code in SURVIVED + UNTESTED]
    open_ones, seen = judge(survivors, equivalent())
    killed = sum(code in KILLED + TIMED_OUT + CRASHED for code in codes.values())
    counted = len(codes) - len(seen)
    by_module: dict[str, dict[str, int]] = {}
    for name, code in codes.items():
        one = by_module.setdefault(name.split(".")[2], {"mutants": 0, "killed": 0})
        one["mutants"] += 1
        one["killed"] += code in KILLED + TIMED_OUT + CRASHED
    return {
        "mutmut": version("mutmut"),
        "mutants": len(codes),
        "killed": killed,
        "timed_out": sum(code in TIMED_OUT for code in codes.values()),
        "equivalent": len(seen),
        "survived": len(open_ones),
        "not_judged": len(codes) - killed - len(survivors),
        "killed_share": round(killed / counted, 4) if counted else 0.0,
        "modules": by_module,
        "survivors": [str(one) for one in open_ones],
        "seconds": round(time.perf_counter() - began, 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", metavar="MODULE",
                        help="of robot_rl/safety, e.g. filter; repeatable (default: all)")
    parser.add_argument("--tests", action="append", metavar="PATTERN",
                        help=f"repeatable (default: {' '.join(TESTS)})")
    parser.add_argument("--children", type=int, default=2, help="processes (default: 2)")
    parser.add_argument("--folder", type=Path, help="work here, and leave it (default: temporary)")
    parser.add_argument("--out", type=Path, help=f"write the result there, e.g. {RESULTS.name}")
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    args = parser.parse_args()
    if args.folder is not None:
        args.folder.mkdir(parents=True, exist_ok=True)
        if any(args.folder.iterdir()):
            raise SystemExit(f"{args.folder} is not empty")
        found = run(args.folder, args)
    else:
        with tempfile.TemporaryDirectory() as work:
            found = run(Path(work), args)
    result = {"python": platform.python_version(), "cores": os.cpu_count(), **found}
    for text in result["survivors"]:
        print(text)
    print(f"{result['killed']} of {result['mutants']} mutants killed, {result['equivalent']} do "
          f"the same as the original, {result['survived']} survive: "
          f"{100 * result['killed_share']:.1f} % in {result['seconds']:.0f} s")
    if args.out is not None:
        args.out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    if args.json:
        print(json.dumps(result, ensure_ascii=False))
    return 0 if result["killed_share"] >= LEAST_SHARE else 1


if __name__ == "__main__":
    raise SystemExit(main())
