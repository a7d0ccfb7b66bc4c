"""A storm of commands on the safety filter: does anything that is sent break a limit?

    python benchmarks/filter_storm.py --out benchmarks/results/filter_storm.json   # 3 x 1,000,000
    python benchmarks/filter_storm.py --steps 20000 --replay-rows 2000             # a look

A step is one command offered to the filter of an arm: random, to the faces and corners of the box,
to joint limits, all round in yaw, with flipping signs, ten times and absurdly too long, not numbers
at all, too late, after silences, at arms that lag, stall, are stuck, blind or at fault, with holds
and re-arms in between (benchmarks/storm/commands.py and run.py list them). Every row that the arm
sends is checked by arithmetic that shares nothing with the filter (benchmarks/storm/checker.py)
against the maker's limits of position, velocity (the FR3's envelope), acceleration and jerk, and
the filter's box and tool speed; every command that is no command has to be refused with nothing
sent. Then a share of what was sent is replayed on the simulated arms of MuJoCo and PyBullet, and
what they measure is checked, with the tolerances that stand in the result: controllers overshoot.

Exit status 1 if anything was found.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import sys
import time
from dataclasses import dataclass
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MUJOCO_GL", "egl")

import numpy as np
from storm.replay import TOLERANCES, Replayed, replay
from storm.run import Segment, Storm, result_of
from tqdm import tqdm

import robot_rl

ROBOTS = ("sawyer", "panda", "fr3")
ENGINES = ("mujoco", "pybullet")
RESULTS = Path(__file__).parent / "results" / "filter_storm.json"
# Rows every so many seconds: what the drivers of the arms send at, and slower and faster ones.
PERIODS_S = (0.01, 0.01, 0.01, 0.02, 0.01, 0.01, 0.005, 0.01, 0.01, 0.004)


@dataclass(frozen=True)
class Task:
    robot: str
    seed: int
    steps: int
    period_s: float
    keep_rows: int


_done: Synchronized[int]


def _begin(counter: Synchronized[int]) -> None:
    global _done
    _done = counter


def _count(steps: int) -> None:
    with _done.get_lock():
        _done.value += steps


def _storm(task: Task) -> tuple[Task, dict[str, Any], list[Segment]]:
    storm = Storm(task.robot, task.seed, period_s=task.period_s, keep_rows=task.keep_rows,
                  tick=_count)
    report = storm.run(task.steps)
    return task, result_of(report), storm.segments


def _replay(work: tuple[str, str, list[Segment]]) -> tuple[str, str, Replayed]:
    robot, engine, segments = work
    seen = replay(robot, engine, segments)
    _count(seen.rows)
    return robot, engine, seen


def tasks_of(robots: list[str], steps: int, seed: int, keep_rows: int) -> list[Task]:
    """The steps of every arm in parts, so that two processes are busy until the end."""
    parts = max(1, min(len(PERIODS_S), steps // 1000))
    tasks = []
    for number in range(parts):
        for robot in robots:
            share = steps // parts + (number < steps % parts)
            # A simulator takes rows every 10 ms.
            kept = keep_rows // parts if PERIODS_S[number] == 0.01 else 0
            tasks.append(Task(robot, 1000 * seed + number, share, PERIODS_S[number],
                              -(-kept * parts // max(1, PERIODS_S[:parts].count(0.01)))))
    return tasks


def merge(into: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Sums of two results; the nearest approach to a limit is the nearer of both."""
    for key, value in other.items():
        have = into.get(key)
        if isinstance(value, dict):
            into[key] = merge(have or {}, value)
        elif isinstance(value, list):
            into[key] = ((have or []) + value)[:20]
        else:
            into[key] = value if have is None else have + value
    return into


def gather(parts: list[dict[str, Any]]) -> dict[str, Any]:
    total: dict[str, Any] = {}
    nearest: dict[str, float] = {}
    for part in parts:
        for kind, ratio in part.pop("nearest_to_limit").items():
            nearest[kind] = max(nearest.get(kind, 0.0), ratio)
        merge(total, part)
    return {**total, "nearest_to_limit": nearest}


def run(args: argparse.Namespace) -> dict[str, Any]:
    robots = args.robot or list(ROBOTS)
    counter = multiprocessing.Value("q", 0)
    parts: dict[str, list[dict[str, Any]]] = {robot: [] for robot in robots}
    segments: dict[str, list[Segment]] = {robot: [] for robot in robots}
    began = time.perf_counter()
    with multiprocessing.Pool(args.workers, _begin, (counter,)) as pool:
        tasks = tasks_of(robots, args.steps, args.seed, args.replay_rows)
        answers = pool.imap_unordered(_storm, tasks)
        with tqdm(total=args.steps * len(robots), unit="step", desc="storm",
                  disable=args.quiet) as bar:
            for task, result, kept in _following(answers, len(tasks), counter, bar):
                parts[task.robot].append(result)
                segments[task.robot] += kept
        storm_s = time.perf_counter() - began
        counter.value = 0
        work = [(robot, engine, segments[robot]) for robot in robots for engine in ENGINES
                if args.replay_rows]
        replays: dict[str, dict[str, Any]] = {robot: {} for robot in robots}
        rows = sum(len(one.rows_rad) for _, _, kept in work for one in kept)
        with tqdm(total=rows, unit="row", desc="replay", disable=args.quiet) as bar:
            for robot, engine, seen in _following(pool.imap_unordered(_replay, work), len(work),
                                                  counter, bar):
                replays[robot][engine] = seen.as_dict()
    arms = {robot: {**gather(parts[robot]), "replays": dict(sorted(replays[robot].items()))}
            for robot in robots}
    return {
        "arms": arms,
        "steps": sum(arm["steps"] for arm in arms.values()),
        "rows_sent": sum(arm["rows_sent"] for arm in arms.values()),
        "violations": sum(arm["violations"] for arm in arms.values()),
        "faults": sum(arm["faults"] for arm in arms.values()),
        "replay_violations": sum(one["violations"] for arm in arms.values()
                                 for one in arm["replays"].values()),
        "replay_tolerances": TOLERANCES,
        "storm_seconds": round(storm_s, 1),
        "seconds": round(time.perf_counter() - began, 1),
    }


def _following(answers: Any, count: int, counter: Synchronized[int], bar: Any) -> Any:
    """The answers as they come, with the bar kept up to date meanwhile."""
    got = 0
    while got < count:
        try:
            answer = answers.next(timeout=0.5)
        except multiprocessing.TimeoutError:
            answer = None
        bar.update(counter.value - bar.n)
        if answer is not None:
            got += 1
            yield answer


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1_000_000, help="per arm (default: 1000000)")
    parser.add_argument("--robot", action="append", choices=ROBOTS,
                        help="repeatable (default: all)")
    parser.add_argument("--replay-rows", type=int, default=20_000,
                        help="set-points per arm replayed in each engine (default: 20000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2, help="processes (default: 2)")
    parser.add_argument("--out", type=Path, help=f"write the result there, e.g. {RESULTS.name}")
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    args = parser.parse_args()
    if args.steps < 1 or args.replay_rows < 0 or args.workers < 1:
        parser.error("--steps and --workers should be 1 or more, --replay-rows 0 or more")
    result: dict[str, Any] = {
        "robot_rl": robot_rl.__version__, "python": platform.python_version(),
        "numpy": np.__version__, "cores": os.cpu_count(), "seed": args.seed, **run(args)}
    bad = result["violations"] + result["faults"] + result["replay_violations"]
    for robot, arm in result["arms"].items():
        print(f"{robot}: {arm['steps']} steps, {arm['rows_sent']} rows sent, {arm['violations']} "
              f"violations, {arm['faults']} faults", file=sys.stderr)
        for text in (*arm["violation_examples"], *arm["fault_examples"]):
            print(f"  {text}", file=sys.stderr)
        for engine, seen in arm["replays"].items():
            print(f"  {engine}: {seen['rows']} rows, {seen['violations']} violations "
                  f"{seen['violations_by_kind'] or ''}", file=sys.stderr)
    if args.out is not None:
        args.out.write_text(json.dumps(result, indent=1) + "\n")
    if args.json:
        print(json.dumps(result))
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
