"""What the demonstration reaches, over several seeds, on one engine and carried to the other.

Runs `robot-rl demo` once for each seed and engine (about five minutes each on one core) and writes
the mean and spread of every stage. Behaviour cloning is the baseline of the same run.

    pip install -e '.[sim]'
    python benchmarks/push_learning.py --seeds 0 1 2 --backends mujoco pybullet --json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

import robot_rl
from robot_rl.training.demo import BUDGETS, DemoConfig, run_demo

OUT = Path(__file__).parent / "results" / "push_learning.json"


def summary(rows: list[dict[str, Any]], key: str) -> dict[str, float | list[float]]:
    """Mean, standard deviation and the values of one number over the seeds."""
    values = [row[key] for row in rows]
    return {
        "mean": round(float(np.mean(values)), 4),
        "std": round(float(np.std(values)), 4),
        "values": values,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--backends", nargs="+", default=["mujoco", "pybullet"],
                        help="engines to learn on; each result is also tried on the other one")
    parser.add_argument("--agents", nargs="+", default=list(BUDGETS))
    parser.add_argument("--robot", default="sawyer")
    parser.add_argument("--task", default="Push")
    parser.add_argument("--threads", type=int, default=2, help="cores that updates use")
    parser.add_argument("--join", action="store_true", help="keep what the result file holds of "
                        "other engines, for one process an engine")
    parser.add_argument("--work", type=Path, help="keep the runs in this folder")
    parser.add_argument("--out", type=Path, default=OUT, help=f"default: {OUT.name} beside others")
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    args = parser.parse_args()

    result: dict[str, Any] = {
        "benchmark": "push_learning",
        "task": args.task,
        "robot": args.robot,
        "seeds": args.seeds,
        "held_out_goals": DemoConfig().eval_episodes,
        "command": "python benchmarks/push_learning.py --seeds "
        f"{' '.join(map(str, args.seeds))} --backends {' '.join(args.backends)}"
        f"{' --join' if args.join else ''}",
        "versions": {"robot_rl": robot_rl.__version__, "python": platform.python_version()},
        "backends": {},
    }
    if args.join and args.out.exists():
        before = json.loads(args.out.read_text())
        same = ("task", "robot", "seeds", "held_out_goals", "versions")
        if any(before[key] != result[key] for key in same):
            parser.error(f"{args.out} is of another run: {', '.join(same)} have to be the same")
        result["backends"] = {k: v for k, v in before["backends"].items() if k not in args.backends}
        result["command"] += f", after {before['command'].removeprefix('python ')}"
    with tempfile.TemporaryDirectory() as scratch:
        work = args.work or Path(scratch)
        for backend in args.backends:
            rows = []
            for seed in args.seeds:
                config = DemoConfig(
                    task=args.task, robot=args.robot, backend=backend, agents=tuple(args.agents),
                    seed=seed, videos=0, threads=args.threads, out=str(work / f"{backend}-{seed}"),
                )
                values = run_demo(config, quiet=True, overwrite=True).values()
                rows.append(values)
                print(f"{backend} seed {seed}: " + ", ".join(
                    f"{k} {v:.2f}" for k, v in values.items() if k.endswith("_success")),
                    file=sys.stderr, flush=True)
            keys = [k for k in rows[0] if k.endswith("_success") or k == "safety_violations"]
            result["backends"][backend] = {key: summary(rows, key) for key in keys}
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(json.dumps(result, indent=2) + "\n")
    for backend, stages in result["backends"].items():
        for key, value in stages.items():
            print(f"{backend:<9} {key:<24} {value['mean']:.3f} +- {value['std']:.3f}")
    if args.json:
        print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
