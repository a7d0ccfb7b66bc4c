"""How many resets in a row the arm does by itself, each after an episode that left things anywhere.

    pip install -e '.[sim]'
    python benchmarks/resets.py --episodes 500 --json

Nothing is ever placed by the simulator, except at the very beginning and after a call for help.
Every reset follows an episode of random actions or of a script that makes slips (qualities 0, 0.3,
0.7 and 1 in turn); an episode also ends where the environment sees things go astray. A start is
good if, by the simulator's own state, everything is within the tolerance of what was asked and in
the task's start region, at rest, and the tool at its start.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from tqdm import tqdm

from robot_rl.envs import make_env
from robot_rl.envs.resets import ArmResetter, ResetOptions
from robot_rl.envs.robot_env import RobotEnv
from robot_rl.envs.scripted import ScriptedPolicy
from robot_rl.errors import SafetyError
from robot_rl.interfaces import Placement
from robot_rl.kinematics import rotation_from_quat

OUT = Path(__file__).parent / "results" / "resets.json"
QUALITIES = (0.0, 0.3, 0.7, 1.0)
START_REGION = {"Push": ("puck", (0.1, 0.12)), "PickPlace": ("cube", (0.1, 0.12))}
STILL_M_S, STILL_RAD_S = 0.01, 0.05


def what_is_wrong(env: RobotEnv, start: Placement) -> str | None:
    """What of a start is not as asked, by the simulator's state; None for a good one."""
    options = ResetOptions()
    state = env.rig.arm.state(1.0)
    pose = env.safety.kinematics.forward(state.position_rad)
    tool = pose[:3, 3] - np.array(env.rig.arm.spec.workspace_origin_m)
    if np.linalg.norm(tool - start.tool_m) > options.tool_tolerance_m:
        return "tool off"
    if np.abs(state.velocity_rad_s).max() > STILL_RAD_S:
        return "arm not at rest"
    for name, (position, _) in start.bodies.items():
        body = env.rig.tracker.body(name, 1.0)
        if np.linalg.norm(body.position_m - position) > options.body_tolerance_m:
            return f"{name} off"
        if np.linalg.norm(body.velocity_m_s) > STILL_M_S:
            return f"{name} not at rest"
        if np.abs(rotation_from_quat(body.quat_xyzw)[2]).max() < 0.97:
            return f"{name} tilted"
        region = np.array(START_REGION[env.task.name][1]) + options.body_tolerance_m
        if (np.abs(body.position_m[:2]) > region).any():
            return f"{name} outside the start region"
    for name, wanted in start.joints.items():
        slides = name == "drawer_slide"
        most = options.drawer_tolerance_m if slides else options.door_tolerance_rad
        value, speed = env.rig.tracker.joint(name, 1.0)
        if abs(value - wanted) > most:
            return f"{name} off"
        if abs(speed) > (STILL_M_S if slides else STILL_RAD_S):
            return f"{name} not at rest"
    if "contact" in env.rig.sensors and env.rig.sensors["contact"].read(1.0).value > 0.5:
        return "plug in its socket"
    return None


_done: Any = None


def _share(counter: Any) -> None:
    """Let a process count its resets where the bar sees them."""
    global _done
    _done = counter


def begin(task: str, robot: str, backend: str, seed: int) -> tuple[RobotEnv, list[ScriptedPolicy]]:
    """An environment that the simulator put at a start, once, and what disturbs it."""
    env = make_env(task, robot, backend, resets="arm")
    resetter, env.resetter = env.resetter, None
    env.reset(seed=seed)
    env.resetter = resetter
    return env, [ScriptedPolicy(env, quality, seed=seed) for quality in QUALITIES]


def run_chunk(job: tuple[str, str, str, int, int]) -> dict[str, Any]:
    """``count`` resets in a row from ``first`` on; counts and sums."""
    task, robot, backend, first, count = job
    # A call for help is counted; the log would tear the bar to pieces.
    logging.getLogger("robot_rl.resets").setLevel(logging.CRITICAL)
    found: dict[str, Any] = {"resets": 0, "good": 0, "reset_violations": 0,
                             "episode_violations": 0, "attempts": 0, "sim_s": [], "astray": 0}
    wrong: Counter[str] = Counter()
    helps: list[str] = []
    env, scripts = begin(task, robot, backend, first)
    for i in range(first, first + count):
        begun_s = env.rig.clock.now_s()
        found["resets"] += 1
        with _done.get_lock():
            _done.value += 1
        try:
            env.reset(seed=i)
        except SafetyError as error:
            helps.append(str(error))
            env.close()
            env, scripts = begin(task, robot, backend, i)
            continue
        resetter = env.resetter
        assert isinstance(resetter, ArmResetter)
        found["sim_s"].append(env.rig.clock.now_s() - begun_s)
        found["attempts"] += resetter.attempts_made
        found["reset_violations"] += resetter.violations
        problem = what_is_wrong(env, Placement.from_dict(env.beginning()["start"]))
        found["good"] += problem is None
        if problem is not None:
            wrong[problem] += 1
        script = scripts[i % len(scripts)]
        script.reset()
        done = False
        while not done:
            _, _, terminated, truncated, info = env.step(script.act())
            done = terminated or truncated
        found["astray"] += "astray" in info
        found["episode_violations"] += int(info["safety_violations"])
    env.close()
    return {"task": task, "helps": helps, "wrong": dict(wrong), **found}


def summary(task: str, parts: list[dict[str, Any]]) -> dict[str, Any]:
    """One row of the result from the chunks of a task."""
    def total(key: str) -> int:
        return sum(int(part[key]) for part in parts)

    wrong: Counter[str] = Counter()
    for part in parts:
        wrong.update(part["wrong"])
    seconds = np.concatenate([part["sim_s"] for part in parts])
    resets = total("resets")
    return {
        "task": task,
        "resets": resets,
        "help": sum(len(part["helps"]) for part in parts),
        "help_messages": [text for part in parts for text in part["helps"]][:10],
        "good_starts": total("good") / resets,
        "not_good": dict(wrong),
        "reset_violations": total("reset_violations"),
        "episode_violations": total("episode_violations"),
        "attempts_mean": round(total("attempts") / max(len(seconds), 1), 3),
        "reset_mean_s": round(float(seconds.mean()), 2),
        "reset_longest_s": round(float(seconds.max()), 2),
        "episodes_ended_astray": total("astray"),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=500, help="resets of each task")
    parser.add_argument("--tasks", nargs="+", default=["Push", "Drawer", "Door", "Insertion"])
    parser.add_argument("--robot", default="sawyer")
    parser.add_argument("--backend", default="mujoco")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    args = parser.parse_args()
    # Every process goes on from where its last episode ended, for as long as its run is.
    each = -(-args.episodes // args.processes)
    jobs = [(task, args.robot, args.backend, first, min(each, args.episodes - first))
            for task in args.tasks for first in range(0, args.episodes, each)]
    begun = time.monotonic()
    parts: list[dict[str, Any]] = []
    context = multiprocessing.get_context("spawn")
    done = context.Value("i", 0)
    total = args.episodes * len(args.tasks)
    with (context.Pool(args.processes, _share, (done,)) as pool,
          tqdm(total=total, unit="reset", mininterval=1.0) as bar):
        runs = pool.imap_unordered(run_chunk, jobs)
        while len(parts) < len(jobs):
            try:
                part = runs.next(timeout=1.0)
            except multiprocessing.TimeoutError:
                pass
            else:
                parts.append(part)
                bar.set_postfix_str(f"{part['task']} {part['good']}/{part['resets']} good, "
                                    f"{len(part['helps'])} help")
            bar.update(done.value - bar.n)
    rows = [summary(task, [part for part in parts if part["task"] == task])
            for task in args.tasks]
    for row in rows:
        print(f"{row['task']:<10} {row['resets']} resets, {row['help']} help, "
              f"{row['good_starts']:.1%} good starts, {row['reset_violations']} violations, "
              f"{row['reset_mean_s']:.1f} s each", file=sys.stderr)
    result = {
        "benchmark": "resets",
        "robot": args.robot,
        "backend": args.backend,
        "episodes": args.episodes,
        "help": sum(row["help"] for row in rows),
        "least_good_starts": min(row["good_starts"] for row in rows),
        "reset_violations": sum(row["reset_violations"] for row in rows),
        "wall_s": round(time.monotonic() - begun, 1),
        "rows": rows,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=2) + "\n")
    print(f"{result['help']} calls for help, least good starts {result['least_good_starts']:.3f}")
    if args.json:
        print(json.dumps(result))
    good = result["help"] == 0 and result["least_good_starts"] >= 0.99
    return 0 if good and result["reset_violations"] == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
