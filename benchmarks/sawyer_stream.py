"""How steadily the Sawyer driver streams set-points, over ROS 1 to a simulated Sawyer.

    python benchmarks/sawyer_stream.py                   # alone and beside 4 busy processes, 2 min
    python benchmarks/sawyer_stream.py --seconds 10 --load 0

The arm moves to and fro all the time, one row every 10 ms. Measured are: how late rows leave the
driver; how evenly they arrive at the robot (a process of its own); whether each arrived, once and
in order; how evenly joint states come back; and how long after a command's first row left the
driver it sees the arm move (through the robot's own physics, which needs a few of its steps).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from robot_rl.backends import make_rig
from robot_rl.envs.tasks import make_task
from robot_rl.interfaces import JointSetpoints, Rig, RigRequest
from robot_rl.specs import load_robot

CHANGE = np.array([0.3, -0.15, -0.2, 0.1, 0.25, -0.2, 0.4])
ROWS = 150
MOVED_RAD = 1e-4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="length of each measurement")
    parser.add_argument("--load", type=int, nargs="+", default=[0, 4],
                        help="busy processes beside it, one measurement each")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results"
                        / "sawyer_stream.json", help="results file")
    args = parser.parse_args()
    results = {}
    for load in args.load:
        results[f"load_{load}"] = row = measure(args.seconds, load)
        print(f"load {load}: " + ", ".join(f"{key} {value}" for key, value in row.items()))
    summary = {"machine": platform.platform(), "cpus": os.cpu_count(), "seconds": args.seconds,
               **results}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(summary, indent=1) + "\n")
    print(f"written to {args.out}")


def measure(seconds: float, load: int) -> dict[str, Any]:
    """One measurement beside ``load`` busy processes."""
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / "commands.npz"
        robot = subprocess.Popen(
            [sys.executable, "-m", "robot_rl.cli.main", "sim", "intera", "--start-master", "true",
             "--json", "--record", str(record)],
            stdout=subprocess.PIPE, text=True,
        )
        busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(load)]
        try:
            assert robot.stdout is not None
            ready = json.loads(robot.stdout.readline())
            found = drive(ready["master_uri"], seconds)
        finally:
            for process in busy:
                process.kill()
            robot.send_signal(signal.SIGTERM)
            robot.wait(timeout=30)
        with np.load(record) as taken:
            found |= arrivals(taken["time_s"], taken["position"], taken["seq"], found.pop("rows"))
    return found


def drive(master_uri: str, seconds: float) -> dict[str, Any]:
    """Move to and fro; how it went, as the driver sees it."""
    robot = load_robot("sawyer")
    rig = make_rig("ros1", RigRequest(
        robot, make_task("Push").scene(),
        options={"master_uri": master_uri, "max_gap_s": "0.16", "tracker": "none"},
    ))
    arm: Any = rig.arm
    while not arm.status().ready:
        time.sleep(0.01)
    try:
        sent, trips, stamps = [], [], []
        end_s, sign = time.monotonic() + seconds, 1.0
        while time.monotonic() < end_s:
            rows = motion(arm.state(0.5).position_rad, sign)
            begun = arm.sent()
            arm.command(JointSetpoints(rows, arm.period_s, at=begun))
            sent.append(rows)
            trips.append(trip(rig, begun))
            while arm.streamer.pending():
                stamps.append(arm.state(0.5).stamp_s)
                time.sleep(0.002)
            time.sleep(0.3)
            sign = -sign
        status, stats = arm.status(), arm.streamer.stats
    finally:
        rig.close()
    gaps = np.diff(np.unique(stamps))
    gaps = gaps[gaps < 0.29] * 1e3  # pauses were not watched
    return {
        "fault": status.fault,
        "row_late_rms_ms": round(1e3 * stats.rms_late_s, 3),
        "row_late_max_ms": round(1e3 * stats.max_late_s, 3),
        "state_gap_p50_ms": round(float(np.percentile(gaps, 50)), 2),
        "state_gap_p99_ms": round(float(np.percentile(gaps, 99)), 2),
        "state_gap_max_ms": round(float(gaps.max()), 2),
        "round_trip_p50_ms": round(1e3 * float(np.percentile(trips, 50)), 1),
        "round_trip_max_ms": round(1e3 * float(np.max(trips)), 1),
        "rows": np.concatenate(sent),
    }


def motion(start: np.ndarray, sign: float) -> np.ndarray:
    """Rows from rest to rest; the first goes a step that can be seen."""
    s = (np.arange(1, ROWS + 1) / ROWS)[:, None]
    return np.asarray(start + sign * CHANGE * (3.0 * s**2 - 2.0 * s**3))


def trip(rig: Rig, begun: int) -> float:
    """Seconds from the first row's leaving to the first sight of the arm's moving."""
    arm = rig.arm
    before = arm.state(0.5).position_rad
    while arm.sent() <= begun:
        time.sleep(0.0002)
    left_s = time.monotonic()
    while np.abs(arm.state(0.5).position_rad - before).max() < MOVED_RAD:
        time.sleep(0.0005)
    return time.monotonic() - left_s


def arrivals(times_s: Any, position: Any, seq: Any, rows: np.ndarray) -> dict[str, Any]:
    """How evenly rows came to the robot, and whether they all did."""
    gaps = np.diff(times_s) * 1e3
    # Rows without the repeats of each last one.
    new = np.concatenate([[True], np.any(np.diff(position, axis=0) != 0.0, axis=1)])
    return {
        "arrival_std_ms": round(float(gaps.std()), 3),
        "arrival_p99_ms": round(float(np.percentile(gaps, 99)), 2),
        "arrival_max_ms": round(float(gaps.max()), 2),
        "arrived": len(times_s),
        "lost": int((np.diff(seq) - 1).sum()),
        "every_row_once_in_order": bool(np.array_equal(position[new], rows)),
    }


if __name__ == "__main__":
    main()
