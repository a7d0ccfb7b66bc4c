"""Human demonstrations of the Adroit door, a task from elsewhere: pretrain, then practise.

The binary task of seed 001, chapters 7 and 8: success beyond 1.4 rad, reward 0 or -1, on
AdroitHandDoor-v1 of gymnasium-robotics, from the 25 human demonstrations that AWAC and IQL were
tested on. The budget here is a small part of the paper's (which practises for up to a million
steps); raise --steps and --env-steps for more.

    pip install -e '.[sim,report,external]'
    python benchmarks/adroit_door.py --data door_human_demos.npz --json

Leaves a report in --work that draws every agent's curve.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from robot_rl.report.runs import report_run
from robot_rl.training.offline import PretrainConfig, pretrain
from robot_rl.training.online import TrainConfig, train
from robot_rl.training.runs import read_metrics
from robot_rl.training.setup import EnvChoice

TASK = "AdroitHandDoor-v1"
OUT = Path(__file__).parent / "results" / "adroit_door.json"
# A discount that sees over the task's 200 steps; targets within what rewards of -1 and 0 can sum
# to; on a hand the authors sharpen AWAC's weights (temperature .5). Speeds are the authors'.
SLOW: dict[str, Any] = {"learning_rate": 3e-4, "tau": 0.005}
OPTIONS: dict[str, dict[str, Any]] = {
    "bc": {},
    "iql": {"discount": 0.99, "value_clip": (-100.0, 0.0), **SLOW},
    "awac": {"discount": 0.99, "value_clip": (-100.0, 0.0), "temperature": 0.5,
             "batch_size": 512, **SLOW},
}


def curve(run: str) -> list[list[float]]:
    """(step, success) of every evaluation of a run."""
    return [[row["step"], row["eval/success_rate"]] for row in read_metrics(run)
            if "eval/success_rate" in row]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="the demonstrations, an npz")
    parser.add_argument("--agents", nargs="+", default=list(OPTIONS), choices=list(OPTIONS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=20_000, help="updates of pretraining")
    parser.add_argument("--env-steps", type=int, default=50_000, help="steps of practice; 0: none")
    parser.add_argument("--eval-episodes", type=int, default=50)
    parser.add_argument("--work", type=Path, default=Path("runs/door"), help="folder of the runs")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    args = parser.parse_args()

    rows: list[dict[str, Any]] = []
    runs: list[Path] = []
    for agent in args.agents:
        for seed in args.seeds:
            offline, online = (args.work / f"{agent}-{seed}-{kind}" for kind in ("offline",
                                                                               "online"))
            before = pretrain(
                PretrainConfig(agent=agent, data=args.data, task=TASK, steps=args.steps, seed=seed,
                               out=str(offline), eval_every=max(args.steps // 4, 1),
                               eval_episodes=args.eval_episodes),
                agent_overrides=OPTIONS[agent], overwrite=True,
            )
            row = {"agent": agent, "seed": seed, "offline_success": before["success_rate"],
                   "offline_curve": curve(before["run"])}
            runs.append(offline)
            if args.env_steps and agent != "bc":
                after = train(
                    TrainConfig(from_run=str(offline), env_steps=args.env_steps, seed=seed,
                                out=str(online), warmup_steps=min(2_000, args.env_steps // 4),
                                eval_every=max(args.env_steps // 5, 1),
                                eval_episodes=args.eval_episodes),
                    EnvChoice(task=TASK), overwrite=True,
                )
                row |= {"online_success": after["success_rate"],
                        "online_curve": curve(after["run"])}
                runs[-1] = online
            rows.append(row)
            print({k: v for k, v in row.items() if "curve" not in k}, file=sys.stderr, flush=True)
    report = report_run(runs[-1], videos=1, others=runs[:-1])
    result: dict[str, Any] = {"benchmark": "adroit_door", "task": TASK, "steps": args.steps,
                              "env_steps": args.env_steps, "eval_episodes": args.eval_episodes,
                              "summary": {}, "rows": rows}
    for agent in args.agents:
        for stage in ("offline_success", "online_success"):
            values = [r[stage] for r in rows if r["agent"] == agent and stage in r]
            if values:
                result["summary"][f"{agent}_{stage}"] = {
                    "mean": round(float(np.mean(values)), 4),
                    "std": round(float(np.std(values)), 4), "values": values,
                }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=2) + "\n")
    print(f"report {report}")
    if args.json:
        print(json.dumps({**result, "report": str(report)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
