"""What survives: kill -9, power cuts and damaged inputs, in numbers.

    python benchmarks/durability.py --json                 # everything, some 15 minutes
    python benchmarks/durability.py --only kills --kills 100

Kills: processes record, appended and live, with frames and camera threads, and are killed at
random moments; every acknowledged episode has to be there once and to the bit. Power cuts: the
folder is rebuilt as it could be after every write, sync and rename of nine recordings and repairs
(see benchmarks/faults/disk.py), and checked as benchmarks/faults/power.py says. Mutations: damaged
logs and inputs lead to an error of this package or to a correct read, within a second of CPU time
and a cap on memory (benchmarks/faults/mutations.py).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from faults.inputs import import_formats, log_formats
from faults.kills import kill_recordings
from faults.mutations import CAP_BYTES, LONGEST_S, run_mutations
from faults.power import cuts_of, scenarios

import robot_rl

RESULTS = Path(__file__).parent / "results" / "durability.json"


def kills(args: argparse.Namespace, work: Path) -> dict[str, Any]:
    seen = asdict(kill_recordings(args.kills, work, seed=args.seed))
    return {**seen, "lost": 0, "doubled": 0, "logs_not_opened": 0}  # anything else raised


def power(args: argparse.Namespace, work: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    faults: list[str] = []
    for number, scenario in enumerate(scenarios(work / "expected")):
        operations, states = set(), 0
        for cut, folder in cuts_of(scenario, work / str(number), seed=args.seed, torn=args.torn):
            operations.add(cut.after)
            states += 1
            try:
                scenario.check(folder, cut.notes, True)
            except Exception as error:
                faults.append(f"{scenario.name}, after {cut.after}, {cut.variant}: {error!r}")
        found[scenario.name] = {"cut_points": len(operations), "states": states}
        print(f"  {scenario.name}: {states} states", file=sys.stderr)
    return {"recordings": found, "faults": faults,
            "cut_points": sum(one["cut_points"] for one in found.values()),
            "states": sum(one["states"] for one in found.values())}


def mutations(args: argparse.Namespace, work: Path) -> dict[str, Any]:
    logs, inputs = log_formats(), import_formats()
    each = {one.name: -(-args.mutations // 2 // len(group))
            for group in (logs, inputs) for one in group}
    found = {}
    for one in [*logs, *inputs]:
        outcome = run_mutations([one], each[one.name], work, seed=args.seed,
                                workers=args.workers)[one.name]
        found[one.name] = asdict(outcome)
        print(f"  {one.name}: {outcome.cases} cases, {len(outcome.faults)} faults", file=sys.stderr)
    return {"cap_mib": CAP_BYTES >> 20, "longest_cpu_s": LONGEST_S, "formats": found,
            "cases": sum(one["cases"] for one in found.values()),
            "slowest_s": max(one["slowest_s"] for one in found.values()),
            "faults": [fault for one in found.values() for fault in one["faults"]]}


PARTS: dict[str, Callable[[argparse.Namespace, Path], dict[str, Any]]] = {
    "kills": kills, "power": power, "mutations": mutations}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=PARTS, help="one part (default: all)")
    parser.add_argument("--kills", type=int, default=1000, help="default: 1000")
    parser.add_argument("--mutations", type=int, default=100_000,
                        help="half of the log, half of what is imported (default: 100000)")
    parser.add_argument("--torn", type=int, default=2,
                        help="draws of every cut with chance in it (default: 2)")
    parser.add_argument("--workers", type=int, default=2, help="processes (default: 2)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where to work (default: in memory, if it can)")
    parser.add_argument("--json", action="store_true", help=f"write {RESULTS.name}")
    args = parser.parse_args()
    memory = Path("/dev/shm")
    where = args.folder or (memory if memory.is_dir() else None)
    result: dict[str, Any] = {
        "robot_rl": robot_rl.__version__, "python": platform.python_version(),
        "numpy": np.__version__, "cores": os.cpu_count(), "seed": args.seed}
    bad = 0
    for name, part in PARTS.items():
        if args.only in (None, name):
            with tempfile.TemporaryDirectory(dir=where) as work:
                began = time.perf_counter()
                result[name] = part(args, Path(work))
                result[name]["seconds"] = round(time.perf_counter() - began, 1)
            bad += len(result[name].get("faults", []))
            print(json.dumps({name: result[name]}, indent=1))
    if args.json:
        RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
