"""Fifty demonstrations over ROS 1: a scripted operator drives a simulated Sawyer in real time.

    python benchmarks/record_sawyer.py                 # 50 accepted, some minutes
    python benchmarks/record_sawyer.py --episodes 5

Starts a ROS 1 master and the simulated Sawyer as processes of their own, records with
`robot-rl record --backend ros1`, and writes what came of it: attempts, accepted, rejected and
aborted episodes, wall time, and steps that were late (longer than 1.5 control periods). Robot,
physics and recording share this machine's cores, so the robot is told to wait as long for a
set-point as may be (`--rig command_timeout_s=0.2 --rig max_gap_s=0.19`); a longer gap still holds
the arm and ends the recording.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RIG = ["command_timeout_s=0.2", "max_gap_s=0.19"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="Push", help="task")
    parser.add_argument("--episodes", type=int, default=50, help="demonstrations to accept")
    parser.add_argument("--quality", type=float, default=0.7, help="quality of the operator")
    parser.add_argument("--seed", type=int, default=0, help="seed of goals, starts and slips")
    parser.add_argument("--rig", action="append", default=[], metavar="KEY=VALUE",
                        help=f"options of the rig (default: {' '.join(RIG)})")
    parser.add_argument("--folder", default="", help="where to record (default: temporary)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results"
                        / "record_sawyer.json", help="results file")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.folder or f"{scratch}/demos"
        code, values = record_over_ros1(args.task, args.episodes, args.quality, args.seed, folder,
                                        Path(scratch), args.rig or RIG)
        info = run_json("data", "info", folder)[1]
    attempts = max(values["attempts"], 1)
    result = {
        "command": f"python benchmarks/record_sawyer.py --task {args.task} --episodes "
                   f"{args.episodes} --quality {args.quality} --seed {args.seed}",
        **{name: value for name, value in values.items() if not name.endswith("path")},
        "seconds_per_attempt": values["seconds"] / attempts,
        "late_share": values["late_steps"] / max(values["steps"], 1),
        "recorded": {name: info[name] for name in ("episodes", "steps", "success_rate", "apart",
                                                   "complete")},
        "exit_code": code,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python "
                   f"{platform.python_version()}",
    }
    args.out.parent.mkdir(exist_ok=True)
    args.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))
    return code


def record_over_ros1(
    task: str, episodes: int, quality: float, seed: int, folder: str, scratch: Path,
    rig: Sequence[str],
) -> tuple[int, dict[str, Any]]:
    """Exit code and JSON of `robot-rl record` on a simulated Sawyer that is started for it."""
    uri = f"http://localhost:{free_port()}"
    log = open(scratch / "sawyer.log", "wb")
    robot = subprocess.Popen(
        [sys.executable, "-m", "robot_rl.cli.main", "sim", "intera", "--start-master", "true",
         "--master-uri", uri, "--task", task, "--json"],
        stdout=subprocess.PIPE, stderr=log, env=environment(scratch), start_new_session=True,
    )
    try:
        assert robot.stdout is not None
        line = robot.stdout.readline()
        if b'"ready": true' not in line:
            raise SystemExit(f"the simulated Sawyer did not start: {line!r}, see "
                             f"{(scratch / 'sawyer.log').read_text()[-2000:]}")
        return run_json(
            "record", "--robot", "sawyer", "--backend", "ros1", "--rig", f"master_uri={uri}",
            *(word for each in rig for word in ("--rig", each)),
            "--task", task, "--teleop", "scripted", "--quality", str(quality), "--episodes",
            str(episodes), "--seed", str(seed), "--out", folder, state=scratch,
        )
    finally:
        robot.send_signal(signal.SIGTERM)
        try:
            robot.wait(timeout=20)
        except subprocess.TimeoutExpired:
            robot.kill()
            robot.wait()
        log.close()


def run_json(*words: str, state: Path | None = None) -> tuple[int, dict[str, Any]]:
    """Exit code and JSON of a `robot-rl` command; its progress goes to standard error."""
    began_s = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "robot_rl.cli.main", *words, "--json"], stdout=subprocess.PIPE,
        text=True, env=environment(state),
    )
    lines = done.stdout.strip().splitlines()
    if not lines:
        raise SystemExit(f"robot-rl {words[0]} ended with {done.returncode} after "
                         f"{time.monotonic() - began_s:.0f} s")
    return done.returncode, json.loads(lines[-1])


def environment(state: Path | None) -> dict[str, str]:
    """This process's, with threads, state folder and path set for the commands."""
    path = os.pathsep.join(p for p in (str(ROOT), *sys.path) if p)
    more = {"ROBOT_RL_STATE_DIR": str(state / "state")} if state is not None else {}
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, **more}


def free_port() -> int:
    """A TCP port on the loopback that nobody listens at now."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())
