"""Batches per second of the replay buffer, beside d3rlpy's, and how fast a log is opened.

Both buffers hold the same transitions (17 numbers of state, 6 of action, episodes of 1,000 steps)
and give batches of 256 on one core, the same one, with one thread. They take turns in short rounds
after a warm-up, so that what else the machine does hits both; the figures are medians over the
rounds. d3rlpy runs in a process of its own, and may live in an environment of its own, because it
pins an old gymnasium:

  python -m venv rival
  rival/bin/python -m pip install torch
  rival/bin/python -m pip install --no-deps d3rlpy
  rival/bin/python -m pip install gym gymnasium h5py tqdm structlog click colorama dataclasses-json
  rival/bin/python -m pip install scikit-learn
  python -m pip install .

Then: python benchmarks/replay_rates.py --peer-python rival/bin/python --json

Measured of ours:
  plain         state, action, reward, next state; what d3rlpy's batch holds
  future        with goals of 3 numbers, each the one that a later state achieved, and the rewards
                recomputed by the task Push's own function
  mixture       the same with seven ways to draw goals, equally often
  n_step_5      future with rewards summed over five steps, each recomputed
  frames        plain, and a 48x48x3 frame for each state
  frames_next   the same, and the next states' frames
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
OBSERVATION_DIM, ACTION_DIM, BATCH_SIZE, EPISODE = 17, 6, 256, 1_000
FRAME = (48, 48, 3)
WARM_UP = 0.5
RESULTS = Path(__file__).parent / "results" / "replay_rates.json"
REQUIRED = {"plain": 20.0, "future": 10.0}
REQUIRED_FRAMES, REQUIRED_MEMORY, REQUIRED_OPEN_S = 2_000.0, 1.05, 3.0

Draw = Callable[[], Any]


def arrays(number: int, steps: int, goal_dim: int) -> dict[str, Any]:
    """One episode's numbers, the same in both processes."""
    rng = np.random.default_rng(number)

    def normal(*shape: int) -> Any:
        return rng.standard_normal(shape).astype(np.float32)

    return {
        "observation": normal(steps + 1, OBSERVATION_DIM),
        "action": np.tanh(normal(steps, ACTION_DIM)),
        "reward": normal(steps),
        "achieved": 0.1 * normal(steps + 1, goal_dim),
        "desired": 0.1 * normal(goal_dim),
    }


def rate(draw: Draw, seconds: float) -> float:
    """Batches per second over about ``seconds``."""
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        for _ in range(4):
            draw()
        count += 4
    return count / (time.perf_counter() - start)


# ------------------------------------------------------------------------------------------ ours


def make_episode(number: int, goal_dim: int, frames: Any = None) -> Any:
    from robot_rl.data import Episode, Images

    no = np.zeros(EPISODE, np.bool_)
    images = {} if frames is None else {"camera": Images.each(frames)}
    return Episode(**arrays(number, EPISODE, goal_dim), terminated=no, truncated=no, success=no,
                   images=images)


def make_draws(transitions: int) -> dict[str, Draw]:
    """Our buffers of low-dimensional transitions."""
    from robot_rl.data import Relabelling, Replay
    from robot_rl.envs.tasks import make_task

    task = make_task("Push")
    ways = {
        "plain": (Relabelling(), 1),
        "future": (Relabelling(original=0.0, future=1.0), 1),
        "mixture": (Relabelling(*[1.0] * 7), 1),
        "n_step_5": (Relabelling(original=0.0, future=1.0), 5),
    }
    rng = np.random.default_rng(0)
    draws: dict[str, Draw] = {}
    for name, (relabelling, n_step) in ways.items():
        goal_dim = 0 if name == "plain" else task.goal_dim
        replay = Replay(
            OBSERVATION_DIM, goal_dim, ACTION_DIM, discount=0.99, relabelling=relabelling,
            reward=task.reward if goal_dim else None, n_step=n_step,
        ).add_all(make_episode(number, goal_dim) for number in range(transitions // EPISODE))
        draws[name] = lambda replay=replay: replay.sample(BATCH_SIZE, rng)
    return draws


def resident_bytes() -> int:
    """Memory that this process takes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def make_frames(count: int) -> tuple[dict[str, Draw], dict[str, float]]:
    """Our buffer of frames, and what memory it takes beside the frames themselves."""
    from robot_rl.data import Replay

    replay = Replay(OBSERVATION_DIM, 0, ACTION_DIM, discount=0.99, cameras={"camera": FRAME})
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (EPISODE + 1, *FRAME), np.uint8)
    low = Replay(OBSERVATION_DIM, 0, ACTION_DIM, discount=0.99)
    episodes = range(count // EPISODE)
    before = resident_bytes()
    low.add_all(make_episode(number, 0) for number in episodes)
    between = resident_bytes()
    replay.add_all(make_episode(number, 0, frames) for number in episodes)
    raw = len(episodes) * frames.nbytes
    # Both hold the same rows: the difference is what the frames take.
    taken = resident_bytes() - between - (between - before)
    memory = {"raw_bytes": raw, "resident_bytes": taken, "ratio": taken / raw}
    draws: dict[str, Draw] = {
        "frames": lambda: replay.sample(BATCH_SIZE, rng, cameras=("camera",), next_images=False),
        "frames_next": lambda: replay.sample(BATCH_SIZE, rng, cameras=("camera",)),
    }
    return draws, memory


def open_log_once(path: str) -> dict[str, float]:
    """Seconds until the first batch of a log, in this process, after the imports."""
    from robot_rl.data import Replay

    start = time.perf_counter()
    replay = Replay.open(path, discount=0.99)
    replay.sample(BATCH_SIZE, np.random.default_rng(0))
    return {"seconds": time.perf_counter() - start, "transitions": len(replay),
            "episodes": replay.episodes}


def measure_opening(transitions: int, folder: str | None) -> dict[str, Any]:
    """How long opening takes the first time and later, each in a fresh process."""
    from robot_rl.data import DatasetInfo, DatasetWriter

    with tempfile.TemporaryDirectory(dir=folder, prefix="replay_rates-") as temporary:
        path = Path(temporary) / "log"
        info = DatasetInfo(task="Push", observation_shape=(OBSERVATION_DIM,), goal_dim=3,
                           action_dim=ACTION_DIM)
        with DatasetWriter(path, info) as writer:
            for number in range(transitions // EPISODE):
                writer.append(make_episode(number, 3))
        found = []
        for _ in range(4):
            out = subprocess.run([sys.executable, __file__, "--open-log", str(path)], check=True,
                                 capture_output=True, text=True)
            found.append(json.loads(out.stdout.splitlines()[-1]))
    return {"first_s": found[0]["seconds"], "later_s": [one["seconds"] for one in found[1:]],
            "transitions": found[0]["transitions"], "episodes": found[0]["episodes"]}


# -------------------------------------------------------------------------------------- d3rlpy's


def serve_peer(transitions: int) -> None:
    """Answer each line, a number of seconds, with d3rlpy's rate over that time."""
    logging.disable(logging.CRITICAL)
    # The old gym that d3rlpy imports announces its end, and d3rlpy's log goes to standard output.
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()), \
            contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        import d3rlpy
        import torch

        torch.set_num_threads(1)
        episodes = []
        for number in range(transitions // EPISODE):
            one = arrays(number, EPISODE, 0)
            episodes.append(d3rlpy.dataset.Episode(
                one["observation"][:-1], one["action"], one["reward"][:, None], False))
        buffer = d3rlpy.dataset.create_infinite_replay_buffer(episodes)
    versions = {"d3rlpy": d3rlpy.__version__, "numpy": np.__version__,
                "python": platform.python_version()}
    print(json.dumps(versions), flush=True)
    for line in sys.stdin:
        value = rate(lambda: buffer.sample_transition_batch(BATCH_SIZE), float(line))
        print(json.dumps(value), flush=True)


class Peer:
    """d3rlpy's buffer in a process of its own."""

    def __init__(self, python: str, transitions: int) -> None:
        self._process = subprocess.Popen(
            [python, __file__, "--serve-peer", "--transitions", str(transitions)], text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )
        self.versions: dict[str, str] = self._read()

    def rate(self, seconds: float) -> float:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{seconds}\n")
        self._process.stdin.flush()
        return float(self._read())

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("d3rlpy's process ended; --help says how to install it")
        return json.loads(line)


# ---------------------------------------------------------------------------------------- the run


def measure(
    draws: dict[str, Draw], peer: Peer | None, rounds: int, seconds: float
) -> dict[str, list[float]]:
    """Rates by case, one for each round, everyone taking turns."""
    cases: dict[str, Callable[[float], float]] = {
        name: lambda s, draw=draw: rate(draw, s) for name, draw in draws.items()
    }
    if peer is not None:
        cases["d3rlpy"] = peer.rate
    for case in cases.values():
        case(WARM_UP)
    rates: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, case in cases.items():
            rates[name].append(case(seconds))
    return rates


def summarise(rates: dict[str, list[float]], memory: dict[str, float], opening: Any) -> Any:
    """Medians, ratios, and whether each requirement holds."""
    medians = {name: statistics.median(values) for name, values in rates.items()}
    ratios = {}
    if "d3rlpy" in medians:
        ratios = {name: medians[name] / medians["d3rlpy"]
                  for name in medians if name not in ("d3rlpy", "frames", "frames_next")}
    holds = {f"{name} >= {least} x d3rlpy": ratios[name] >= least
             for name, least in REQUIRED.items() if name in ratios}
    holds[f"frames >= {REQUIRED_FRAMES:.0f} batches/s"] = medians["frames"] >= REQUIRED_FRAMES
    holds[f"memory of frames <= {REQUIRED_MEMORY} x raw"] = memory["ratio"] <= REQUIRED_MEMORY
    holds[f"opened again within {REQUIRED_OPEN_S} s"] = max(opening["later_s"]) <= REQUIRED_OPEN_S
    return {
        "batches_per_second": medians,
        "lowest_and_highest": {name: [min(v), max(v)] for name, v in rates.items()},
        "ratio_to_d3rlpy": ratios,
        "memory_of_frames": memory,
        "opening_a_log": opening,
        "holds": holds,
    }


def environment(load: float, core: int, peer: Peer | None) -> dict[str, Any]:
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "core_used": core,
        "threads": {variable: os.environ[variable] for variable in THREADS},
        "python": platform.python_version(),
        "numpy": np.__version__,
        "peer": peer.versions if peer else None,
        # More than one at the end means that others were at work.
        "load_before_and_after": [load, os.getloadavg()[0]],
    }


def describe(result: dict[str, Any]) -> str:
    lines = [f"batches of {BATCH_SIZE} per second on one core, medians:"]
    for name, value in result["batches_per_second"].items():
        low, high = result["lowest_and_highest"][name]
        ratio = result["ratio_to_d3rlpy"].get(name)
        versus = "" if ratio is None else f"   {ratio:.1f} x d3rlpy"
        lines.append(f"  {name:12s} {value:9.0f}   ({low:.0f} to {high:.0f}){versus}")
    memory, opening = result["memory_of_frames"], result["opening_a_log"]
    lines.append(f"frames: {memory['resident_bytes'] / 2**20:.0f} MiB of memory for "
                 f"{memory['raw_bytes'] / 2**20:.0f} MiB, {memory['ratio']:.3f} x")
    later = ", ".join(f"{value:.2f}" for value in opening["later_s"])
    lines.append(f"opening a log of {opening['transitions']} transitions: {opening['first_s']:.2f} "
                 f"s at first, then {later} s")
    lines += [f"  {'holds' if good else 'DOES NOT HOLD'}: {name}"
              for name, good in result["holds"].items()]
    return "\n".join(lines)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer-python", default=sys.executable,
                        help="interpreter that has d3rlpy (default: this one); none: leave it out")
    parser.add_argument("--transitions", type=int, default=1_000_000,
                        help="in each low-dimensional buffer (default 1000000)")
    parser.add_argument("--frames", type=int, default=100_000,
                        help="48x48x3 frames in memory (default 100000, 0.7 GB)")
    parser.add_argument("--rounds", type=int, default=9, help="rounds (default 9)")
    parser.add_argument("--seconds", type=float, default=0.5, help="of a round (default 0.5)")
    parser.add_argument("--folder", help="where to write the log that is opened")
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    parser.add_argument("--out", type=Path, nargs="?", const=RESULTS,
                        help="also write the results to this file (without a value: "
                        "benchmarks/results/replay_rates.json)")
    parser.add_argument("--serve-peer", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--open-log", help=argparse.SUPPRESS)
    options = parser.parse_args()
    for name, least in (("transitions", EPISODE), ("frames", EPISODE), ("rounds", 1)):
        if getattr(options, name) < least:
            parser.error(f"--{name} is {getattr(options, name)}; it must be at least {least}")
    return options


def main() -> int:
    options = parse()
    if options.serve_peer:
        serve_peer(options.transitions)
        return 0
    if options.open_log:
        print(json.dumps(open_log_once(options.open_log)))
        return 0
    load, core = os.getloadavg()[0], max(os.sched_getaffinity(0))
    # The processes started from here keep to it too, before any library starts its threads.
    os.sched_setaffinity(0, {core})
    os.environ.update(dict.fromkeys(THREADS, "1"))
    peer = None if options.peer_python == "none" else Peer(options.peer_python,
                                                           options.transitions)
    draws, memory = make_frames(options.frames)
    rates = measure({**make_draws(options.transitions), **draws}, peer, options.rounds,
                    options.seconds)
    opening = measure_opening(options.transitions, options.folder)
    result = {"benchmark": "replay_rates", "batch_size": BATCH_SIZE,
              "transitions": options.transitions, "frames": options.frames,
              "environment": environment(load, core, peer),
              **summarise(rates, memory, opening)}
    if peer is not None:
        peer.close()
    print(describe(result), flush=True)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=2) + "\n")
    if options.json:
        print(json.dumps(result))
    return 0 if all(result["holds"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
