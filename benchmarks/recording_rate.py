"""Does recording keep up? A control loop at 100 Hz with two 640x480 cameras at 30 Hz.

    python benchmarks/recording_rate.py                       # 30 s of each, about 3 minutes
    python benchmarks/recording_rate.py --seconds 10 --image-format jpeg

Each round runs the bare loop (it only waits for its ticks) and then the same loop recording every
step, with a thread for each camera. A step's lateness is the time from its tick to its end. Frames
are noise over a gradient, so that no compression flatters. Two rounds a variant; the first second
is warm-up. What is printed is the 50th, 99th and 100th percentile of lateness in milliseconds, and
what came back from the disk is counted against what was recorded.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import shutil
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from robot_rl.data import DatasetInfo, DatasetWriter, LiveEpisode, RecordingOptions, open_log

RATE_HZ, CAMERA_HZ, SHAPE = 100.0, 30.0, (480, 640, 3)
CAMERAS = ("front", "wrist")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30.0, help="length of each recording")
    parser.add_argument("--rounds", type=int, default=2, help="rounds of each variant")
    parser.add_argument("--image-format", nargs="+", default=["raw", "jpeg"],
                        choices=["raw", "png", "jpeg"], help="how frames are kept")
    parser.add_argument("--folder", type=Path, default=None,
                        help="where to record (default: a temporary folder)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results"
                        / "recording_rate.json", help="results file")
    args = parser.parse_args()
    results: dict[str, list[dict[str, Any]]] = {}
    for _ in range(args.rounds):
        for image_format in args.image_format:
            row = {"bare": bare_loop(args.seconds),
                   **recorded_loop(args.seconds, image_format, args.folder)}
            results.setdefault(image_format, []).append(row)
            print(f"{image_format:>5}  bare {say(row['bare'])}   recording "
                  f"{say(row['recording'])}   {row['mib_per_s']:.0f} MiB/s")
    summary = {
        image_format: {
            "late_p99_ms": max(row["recording"]["p99_ms"] for row in rows),
            "bare_late_p99_ms": max(row["bare"]["p99_ms"] for row in rows),
            "rounds": rows,
        }
        for image_format, rows in results.items()
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps({
        "command": f"python benchmarks/recording_rate.py --seconds {args.seconds:g} "
                   f"--rounds {args.rounds} --image-format {' '.join(args.image_format)}",
        "machine": {"cores": os.cpu_count(), "python": platform.python_version()},
        "rate_hz": RATE_HZ, "camera_hz": CAMERA_HZ, "cameras": len(CAMERAS), "shape": SHAPE,
        "results": summary,
    }, indent=2) + "\n")


def say(lateness: dict[str, float]) -> str:
    return (f"late {lateness['p50_ms']:.2f} / {lateness['p99_ms']:.2f} / "
            f"{lateness['max_ms']:.2f} ms")


def bare_loop(seconds: float) -> dict[str, float]:
    return loop(seconds, lambda tick: None)


def loop(seconds: float, work: Any) -> dict[str, float]:
    """Run ``work(tick)`` at the rate; percentiles of how long after its tick each step ended."""
    count, warm_up = int(seconds * RATE_HZ), int(RATE_HZ)
    late = np.empty(count)
    start = time.perf_counter() + 0.05
    for tick in range(count):
        due = start + tick / RATE_HZ
        wait = due - time.perf_counter()
        if wait > 0.0:
            time.sleep(wait)
        work(tick)
        late[tick] = time.perf_counter() - due
    late_ms = 1e3 * late[warm_up:]
    return {"p50_ms": float(np.percentile(late_ms, 50)),
            "p99_ms": float(np.percentile(late_ms, 99)), "max_ms": float(late_ms.max())}


class Camera(threading.Thread):
    """Gives frames at its own rate, as a driver's thread does."""

    def __init__(self, name: str, live: LiveEpisode, seed: int) -> None:
        super().__init__(name=f"camera-{name}", daemon=True)
        self.camera, self.live = name, live
        rng = np.random.default_rng(seed)
        ramp = np.linspace(0, 200, SHAPE[1]).astype(np.uint8)[None, :, None]
        self.images = [ramp + rng.integers(0, 40, SHAPE).astype(np.uint8) for _ in range(8)]
        self.latest, self.taken, self.stop = 0, 0, threading.Event()
        self.give()

    def give(self) -> None:
        image = self.images[self.taken % len(self.images)]
        self.latest = self.live.frame(self.camera, image, time.time())
        self.taken += 1

    def run(self) -> None:
        start = time.perf_counter()
        while not self.stop.wait(max(start + self.taken / CAMERA_HZ - time.perf_counter(), 0.0)):
            self.give()


def recorded_loop(seconds: float, image_format: str, folder: Path | None) -> dict[str, Any]:
    where = Path(tempfile.mkdtemp(dir=folder))
    try:
        info = DatasetInfo("", (17,), 3, 7, rate_hz=RATE_HZ)
        with DatasetWriter(where / "log", info,
                           options=RecordingOptions(image_format)) as writer:
            lateness, begun, cameras = record(writer, seconds)
            took_s = time.perf_counter() - begun
        log = open_log(where / "log")
        summary = log.summary(0)
        size = log.files[0].size
        expected = {camera.camera: camera.taken for camera in cameras}
        if summary["steps"] != int(seconds * RATE_HZ) or summary["frames"] != expected:
            raise SystemExit(f"lost: {summary} was committed, {expected} frames were taken")
        return {"recording": lateness, "mib_per_s": size / took_s / 2**20, "steps":
                summary["steps"], "frames": summary["frames"]}
    finally:
        shutil.rmtree(where)


def record(
    writer: DatasetWriter, seconds: float
) -> tuple[dict[str, float], float, list[Camera]]:
    live = writer.begin()
    cameras = [Camera(name, live, seed) for seed, name in enumerate(CAMERAS)]
    rng = np.random.default_rng(0)
    state = rng.normal(size=17).astype(np.float32)
    goal = np.zeros(3, np.float32)
    action = np.zeros(7, np.float32)

    def states() -> dict[str, Any]:
        return {"observation.state": state, "observation.achieved_goal": goal,
                "observation.desired_goal": goal, "timestamp": np.float64(time.time()),
                **{f"observation.images.{c.camera}": np.int64(c.latest) for c in cameras}}

    def work(tick: int) -> None:
        live.step(states(), {"action": action, "next.reward": np.float32(-1.0),
                             "next.terminated": np.bool_(False), "next.truncated": np.bool_(False),
                             "next.success": np.bool_(False)})

    live.start(states())
    gc.collect()
    begun = time.perf_counter()
    for camera in cameras:
        camera.start()
    try:
        lateness = loop(seconds, work)
    finally:
        for camera in cameras:
            camera.stop.set()
        for camera in cameras:
            camera.join()
    live.commit()
    return lateness, begun, cameras


if __name__ == "__main__":
    main()
