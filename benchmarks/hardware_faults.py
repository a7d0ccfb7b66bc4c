"""What goes wrong on hardware, on purpose: does the arm come to rest and stay there?

    python benchmarks/hardware_faults.py --seeds 20 --out benchmarks/results/hardware_faults.json
    python benchmarks/hardware_faults.py --seeds 1 --rigs sawyer --faults camera_unplugged
    python benchmarks/hardware_faults.py --list

The drivers are the real ones, over the real protocols: a Sawyer over ROS 1, with a ROS master, and
an FR3 over ROS 2. Robot, cameras and commander are processes of their own; the robots are those of
`robot-rl sim`. Every fault, how it is injected, what has to follow and within what time stands in
benchmarks/battery/table.py; --list shows it. What followed is judged by what the robot wrote down
(rows received, joints measured, resets and enables asked for) and by what the commander said. A
seed chooses rate, speed, directions, the moment and the kind of a fault.

Times are those of the monotonic clock. Beside the worst of each fault stands how late a bare timer
was meanwhile ("timer"): a busy machine adds that. A trial whose arm was held before its fault, on a
machine that was seen to be busy, counts as disturbed and is made anew.

Exit status 1 if anything was unexpected.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MUJOCO_GL", "egl")

from battery.bench import BENCHES
from battery.commander import BROKEN
from battery.run import faults_of, run_all, summary, table
from battery.table import BY_NAME, FAULTS
from battery.trial import Result
from tqdm import tqdm

import robot_rl

RESULTS = Path(__file__).parent / "results" / "hardware_faults.json"


def run(args: argparse.Namespace) -> dict[str, Any]:
    rigs = {rig: faults_of(rig, args.faults) for rig in args.rigs}
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    total = len(seeds) * sum(map(len, rigs.values()))
    begun_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="hardware_faults_") as folder, tqdm(
        total=total, unit="trial", disable=args.quiet
    ) as bar:

        def tell(result: Result) -> None:
            bar.update(result.outcome != "disturbed")
            bar.set_postfix_str(f"{result.rig} {result.fault}")
            if result.wrong:
                bar.write(f"{result.rig} {result.fault} seed {result.seed} {result.outcome}: "
                          + "; ".join(result.wrong)[:1500], file=sys.stderr)

        options = {rig: dict(word.split("=", 1) for word in args.option
                             if word.split("=", 1)[0] in KNOWN[rig]) for rig in rigs}
        results = run_all(rigs, seeds, Path(folder), tell, brief=args.brief, broken=args.broken,
                          options=options, workers=args.workers)
    return {**summary(results), "seeds": args.seeds, "brief": args.brief, "options": options,
            "seconds": round(time.monotonic() - begun_s, 1)}


def joined(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """One result of both, of each rig the later one.

    Raises:
        SystemExit: they differ in more than their rigs.
    """
    for key in ("robot_rl", "seeds", "brief"):
        if before[key] != after[key]:
            raise SystemExit(f"the results differ in {key}: {before[key]} and {after[key]}")
    rigs = {**before["rigs"], **after["rigs"]}
    kept = [example for example in before["unexpected_examples"]
            if example["rig"] not in after["rigs"]]
    count = {key: sum(fault[key] for faults in rigs.values() for fault in faults.values())
             for key in ("trials", "expected", "unexpected", "disturbed")}
    return {**after, **count, "rigs": rigs, "options": {**before["options"], **after["options"]},
            "unexpected_examples": kept + after["unexpected_examples"],
            "seconds": round(before["seconds"] + after["seconds"], 1)}


KNOWN = {"sawyer": ("max_gap_s", "command_timeout_s", "mode"), "franka": ("max_gap_s", "mode")}


def listing() -> str:
    return "\n".join(
        f"{fault.name} ({', '.join(fault.rigs)})\n  {fault.how}\n  -> {fault.must}"
        + ("" if fault.within_s is None else f"; within {fault.within_s:g} s to {fault.measured}")
        for fault in FAULTS
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20, help="of each fault (default: 20)")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--rigs", nargs="+", choices=BENCHES, default=list(BENCHES))
    parser.add_argument("--faults", nargs="+", choices=BY_NAME, metavar="FAULT",
                        help="some of them (default: all; --list names them)")
    parser.add_argument("--workers", type=int, default=1, help="benches per rig (default: 1)")
    parser.add_argument("--brief", action="store_true",
                        help="shorter motions, and the new program at every fourth fault only")
    parser.add_argument("--option", action="append", default=["max_gap_s=0.1"],
                        metavar="KEY=VALUE",
                        help="option of the rigs that know it (default: max_gap_s=0.1, for the "
                        "drivers' own is short where other programs run)")
    parser.add_argument("--broken", choices=("", *BROKEN), default="",
                        help="spoil the stack on purpose: the battery has to find it")
    parser.add_argument("--list", action="store_true", help="name the faults, and stop")
    parser.add_argument("--out", type=Path, help=f"write the result there, e.g. {RESULTS.name}")
    parser.add_argument("--join", action="store_true", help="keep what --out holds of other rigs")
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    args = parser.parse_args()
    if args.list:
        print(listing())
        return 0
    if args.seeds < 1 or args.workers < 1:
        parser.error("--seeds and --workers should be 1 or more")
    if any("=" not in word for word in args.option):
        parser.error("--option should be KEY=VALUE")
    result: dict[str, Any] = {"robot_rl": robot_rl.__version__,
                              "python": platform.python_version(), "cores": os.cpu_count(),
                              **run(args)}
    if args.join and args.out is not None and args.out.exists():
        result = joined(json.loads(args.out.read_text()), result)
    print(table(result), file=sys.stderr)
    print(f"{result['trials']} trials, {result['unexpected']} unexpected, {result['disturbed']} "
          f"disturbed, {result['seconds']:.0f} s", file=sys.stderr)
    if args.out is not None:
        args.out.write_text(json.dumps(result, indent=1) + "\n")
    if args.json:
        print(json.dumps(result))
    return 1 if result["unexpected"] else 0


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except KeyboardInterrupt:
        raise SystemExit(130) from None
