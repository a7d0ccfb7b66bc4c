"""Runs the battery: every fault, every seed, on each rig, and sums up."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .bench import BENCHES, Bench, NoAnswer
from .table import BY_NAME, FAULTS, Fault
from .trial import Result, Timer, Trial

# A trial that was disturbed before its fault is made anew, so often.
TRIES = 4

Told = Callable[[Result], None]


def faults_of(rig: str, names: Iterable[str] | None = None) -> list[Fault]:
    """The faults that make sense on a rig, of those named."""
    chosen = [BY_NAME[name] for name in names] if names is not None else list(FAULTS)
    return [fault for fault in chosen if rig in fault.rigs]


def run_rig(
    rig: str, faults: list[Fault], seeds: Iterable[int], folder: Path, timer: Timer, tell: Told,
    *, brief: bool = False, broken: str = "", options: Mapping[str, str] | None = None,
    stop: threading.Event | None = None,
) -> list[Result]:
    """All trials on one rig, one after the other, until ``stop``. A rig whose processes do not
    answer is ended, and a new one started."""
    results: list[Result] = []
    bench: Bench | None = None
    starts = 0
    try:
        for fault in faults:
            for seed in seeds:
                for attempt in range(TRIES):
                    if stop is not None and stop.is_set():
                        return results
                    if bench is None:
                        starts += 1
                        bench = BENCHES[rig](folder / f"{rig}{starts}", broken=broken,
                                             options=options)
                    try:
                        result = Trial(bench, fault, seed, timer, brief=brief).run()
                    except (NoAnswer, OSError, ValueError, KeyError, AssertionError) as error:
                        text = f"{type(error).__name__}: {error}"
                        result = Result(fault.name, rig, seed, "unexpected", [text[-2000:]])
                        bench.close()
                        bench = None
                    if result.outcome == "disturbed" and attempt == TRIES - 1:
                        result.outcome = "unexpected"
                    results.append(result)
                    tell(result)
                    if result.outcome != "disturbed":
                        break
    finally:
        if bench is not None:
            bench.close()
    return results


def run_all(
    rigs: Mapping[str, list[Fault]], seeds: Iterable[int], folder: Path, tell: Told, *,
    brief: bool = False, broken: str = "", options: Mapping[str, Mapping[str, str]] | None = None,
    workers: int = 1,
) -> list[Result]:
    """All rigs at once, each with ``workers`` benches that share its faults."""
    timer, lock, stop = Timer(), threading.Lock(), threading.Event()
    seeds = list(seeds)

    def told(result: Result) -> None:
        with lock:
            tell(result)

    work = []
    for rig, faults in rigs.items():
        for k in range(workers):
            if faults[k::workers]:
                work.append((rig, faults[k::workers], folder / f"worker{k}"))
    with ThreadPoolExecutor(max(1, len(work))) as pool:
        futures = [
            pool.submit(run_rig, rig, part, seeds, where, timer, told, brief=brief, broken=broken,
                        options=(options or {}).get(rig), stop=stop)
            for rig, part, where in work
        ]
        try:
            return [result for future in futures for result in future.result()]
        finally:
            stop.set()  # an error or Ctrl-C: no more trials


def summary(results: list[Result]) -> dict[str, Any]:
    """Counts and worst figures by rig and fault, and everything that was unexpected."""
    rigs: dict[str, dict[str, Any]] = {}
    for result in results:
        of_fault = rigs.setdefault(result.rig, {}).setdefault(result.fault, {
            "trials": 0, "expected": 0, "unexpected": 0, "disturbed": 0, "over_limit": 0,
            "messages": [],
        })
        of_fault["trials"] += 1
        of_fault[result.outcome] += 1
        of_fault["over_limit"] += int(result.figures.get("over_limit", 0.0))
        if result.outcome == "disturbed":
            continue
        for name, value in result.figures.items():
            if name != "over_limit" and math.isfinite(value):
                key = f"worst_{name}"
                of_fault[key] = max(of_fault.get(key, -math.inf), value)
        text = _plain(result.message)
        if text and text not in of_fault["messages"] and len(of_fault["messages"]) < 4:
            of_fault["messages"].append(text)
    for faults in rigs.values():
        for name, of_fault in faults.items():
            of_fault["within_s"] = BY_NAME[name].within_s
            of_fault["measured"] = BY_NAME[name].measured
    count = {kind: sum(1 for result in results if result.outcome == kind)
             for kind in ("expected", "unexpected", "disturbed")}
    return {
        "trials": len(results), **count, "rigs": rigs,
        "unexpected_examples": [asdict(result) for result in results
                                if result.outcome == "unexpected"][:40],
    }


def _plain(message: str) -> str:
    """A message with its numbers left out, to tell kinds of messages apart."""
    return " ".join("#" if any(c.isdigit() for c in word) and "'" not in word else word
                    for word in message.split())[:200]


def table(found: dict[str, Any]) -> str:
    """The summary as lines of text."""
    lines = [f"{'rig':8}{'fault':20}{'trials':>7}{'unexp.':>7}{'dist.':>6}{'within':>8}"
             f"{'worst':>8}{'over':>5}{'timer':>8}  measured"]
    for rig, faults in found["rigs"].items():
        for name, of_fault in faults.items():
            within = "-" if of_fault["within_s"] is None else f"{of_fault['within_s']:.2f}"
            worst, timer = (of_fault.get(f"worst_{key}") for key in ("latency_s", "timer_late_s"))
            lines.append(
                f"{rig:8}{name:20}{of_fault['trials']:7}{of_fault['unexpected']:7}"
                f"{of_fault['disturbed']:6}{within:>8}"
                f"{'-' if worst is None else f'{worst:.3f}':>8}{of_fault['over_limit']:5}"
                f"{'-' if timer is None else f'{timer:.3f}':>8}  {of_fault['measured']}")
    return "\n".join(lines)
