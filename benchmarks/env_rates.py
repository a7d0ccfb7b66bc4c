"""How fast the environment steps, against FetchPush-v4 and against the engine's default rendering.

Everything runs in one process, one thread, interleaved rounds after a warm-up; the ratios are of
medians. Both state environments take 20 physics substeps a step.

    pip install -e '.[sim,external]'
    MUJOCO_GL=egl python benchmarks/env_rates.py --json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import gymnasium
import numpy as np

import robot_rl

SUBSTEPS = 20


def stepper(env: gymnasium.Env[Any, Any], seed: int) -> Callable[[int], float]:
    """A function that takes n random steps and returns steps per second, resets left out."""
    rng = np.random.default_rng(seed)
    actions = rng.uniform(-1.0, 1.0, (512, env.action_space.shape[0])).astype(np.float32)
    env.reset(seed=seed)
    count = 0

    def run(steps: int) -> float:
        nonlocal count
        spent = 0.0
        for _ in range(steps):
            start = time.perf_counter()
            done = env.step(actions[count % 512])
            spent += time.perf_counter() - start
            count += 1
            if done[2] or done[3]:
                env.reset()
        return steps / spent

    return run


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="interleaved rounds (default: 9)")
    parser.add_argument("--steps", type=int, default=1000, help="steps a round (default: 1000)")
    parser.add_argument("--image-steps", type=int, default=60,
                        help="image steps a round (default: 60)")
    parser.add_argument("--robot", default="sawyer", help="arm (default: sawyer)")
    parser.add_argument("--out", type=Path, help="write the result to this JSON file")
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    args = parser.parse_args()

    import gymnasium_robotics

    gymnasium.register_envs(gymnasium_robotics)
    make = {"robot": args.robot, "backend": "mujoco", "control_hz": 10.0,
            "physics_step_s": 0.1 / SUBSTEPS}
    fetch = gymnasium.make("FetchPush-v4")
    assert fetch.unwrapped.n_substeps == SUBSTEPS
    ours = gymnasium.make("robot_rl/Push-v0", **make)
    fast = gymnasium.make("robot_rl/Push-v0", obs="image", **make)
    default = gymnasium.make("robot_rl/Push-v0", obs="image", render_quality="default", **make)
    runs = {
        "state": (stepper(ours, 0), args.steps),
        "fetch_push": (stepper(fetch, 0), args.steps),
        "image_fast": (stepper(fast, 0), args.image_steps),
        "image_default": (stepper(default, 0), max(args.image_steps // 4, 5)),
    }
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(args.rounds + 1):
        for name, (run, steps) in runs.items():
            rate = run(steps)
            if number > 0:  # The first round warms up.
                rates[name].append(rate)
        print(f"round {number}/{args.rounds}", file=sys.stderr)
    median = {name: statistics.median(values) for name, values in rates.items()}
    result = {
        "benchmark": "env_rates",
        "substeps": SUBSTEPS,
        "steps_per_second": {name: round(value, 1) for name, value in median.items()},
        "state_over_fetch_push": round(median["state"] / median["fetch_push"], 3),
        "image_fast_over_default": round(median["image_fast"] / median["image_default"], 3),
        "rounds": args.rounds,
        "robot": args.robot,
        "versions": {
            "robot_rl": robot_rl.__version__,
            "gymnasium_robotics": gymnasium_robotics.__version__,
            "python": platform.python_version(),
            "cpus": os.cpu_count(),
        },
    }
    for name, value in median.items():
        spread = f"{min(rates[name]):.0f} to {max(rates[name]):.0f}"
        print(f"{name:<14} {value:8.0f} steps/s  ({spread})")
    print(f"state over FetchPush-v4           {result['state_over_fetch_push']:.2f} (at least 1.5)")
    print(f"48x48 image, fast over default    {result['image_fast_over_default']:.2f} "
          "(at least 5)")
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=2) + "\n")
    if args.json:
        print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
