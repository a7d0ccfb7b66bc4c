"""How often the scripted policy solves each task, on every arm and engine.

    pip install -e '.[sim]'
    python benchmarks/scripted_success.py --episodes 100 --json
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from robot_rl.envs import make_env
from robot_rl.envs.scripted import ScriptedPolicy
from robot_rl.envs.tasks import list_tasks
from robot_rl.specs import list_robots
from robot_rl.training.evaluate import ScriptPolicy, evaluate

OUT = Path(__file__).parent / "results" / "scripted_success.json"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tasks", nargs="+", default=list_tasks())
    parser.add_argument("--robots", nargs="+", default=list_robots())
    parser.add_argument("--backends", nargs="+", default=["mujoco", "pybullet"])
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for task in args.tasks:
        for robot in args.robots:
            for backend in args.backends:
                env = make_env(task, robot, backend)
                policy = ScriptPolicy(ScriptedPolicy(env, 1.0, args.seed))
                scores = evaluate(env, policy, args.episodes, args.seed)
                env.close()
                rows.append({"task": task, "robot": robot, "backend": backend,
                             "success_rate": scores.success_rate,
                             "safety_violations": scores.safety_violations})
                print(f"{task:<10} {robot:<7} {backend:<9} {scores.success_rate:.2f} "
                      f"violations {scores.safety_violations}", file=sys.stderr, flush=True)
    result = {
        "benchmark": "scripted_success",
        "episodes": args.episodes,
        "seed": args.seed,
        "least": min(row["success_rate"] for row in rows),
        "rows": rows,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=2) + "\n")
    print(f"least success {result['least']:.2f} over {len(rows)} combinations")
    if args.json:
        print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
