"""A run's folder: configuration, metrics, checkpoints, and how a run is stopped and resumed."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from tqdm import tqdm

from robot_rl.data.files import new_folder, read_json, write_json
from robot_rl.errors import InvalidInputError, RobotRLError

CONFIG, METRICS = "config.json", "metrics.jsonl"


class RunFolder:
    """Where a run leaves what it did: ``config.json``, ``metrics.jsonl``, ``checkpoints/``,
    ``tensorboard/`` (with the extra ``report``), and later plots, videos and ``report.html``."""

    def __init__(
        self, path: Path, config: dict[str, Any], *, resumed_at: int | None = None
    ) -> None:
        self.path = path
        self.config = config
        self._metrics = open(path / METRICS, "ab")  # lives as long as the run
        self._board = _tensorboard(path / "tensorboard", resumed_at)

    @classmethod
    def create(cls, path: str | Path, config: dict[str, Any], *, overwrite: bool = False) -> (
        RunFolder
    ):
        """Make a new run folder.

        Raises:
            InvalidInputError: it is in use, or cannot be written.
        """
        folder = new_folder(Path(path), "run", overwrite=overwrite)
        write_json(folder / CONFIG, config)
        return cls(folder, config)

    @classmethod
    def reopen(cls, path: str | Path, metrics_bytes: int, step: int) -> RunFolder:
        """Open a run to go on; metrics written after the checkpoint are dropped."""
        folder = Path(path)
        config = read_json(folder / CONFIG, "run")
        metrics = folder / METRICS
        if metrics.exists() and metrics.stat().st_size > metrics_bytes:
            os.truncate(metrics, metrics_bytes)
        return cls(folder, config, resumed_at=step)

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def metrics_bytes(self) -> int:
        """Length of the metrics file so far, for :meth:`reopen`."""
        self._metrics.flush()
        return self._metrics.tell()

    def log(self, step: int, values: dict[str, Any]) -> None:
        """Append one line of metrics at ``step``."""
        row = {"step": step, **{k: v.item() if hasattr(v, "item") else v
                                for k, v in values.items()}}
        self._metrics.write((json.dumps(row) + "\n").encode())
        self._metrics.flush()
        if self._board is not None:
            for key, value in row.items():
                if key != "step" and isinstance(value, (int, float)):
                    self._board.add_scalar(key, value, step)

    def log_evaluation(self, step: int, scores: dict[str, Any]) -> None:
        """Append the scores of an evaluation at ``step`` as ``eval/<name>``, without the Nones."""
        self.log(step, {f"eval/{k}": v for k, v in scores.items() if v is not None})

    def close(self) -> None:
        self._metrics.close()
        if self._board is not None:
            self._board.close()


def read_config(path: str | Path) -> dict[str, Any]:
    """The configuration of a run folder."""
    value = read_json(Path(path) / CONFIG, "run")
    if not isinstance(value, dict):
        raise InvalidInputError(f"run: {Path(path) / CONFIG} is not an object")
    return value


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The metrics of a run, one dict a line; a line cut short by a crash is left out."""
    file = Path(path) / METRICS
    if not file.exists():
        return []
    rows = []
    for line in file.read_bytes().splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and "step" in row:
            rows.append(row)
    return rows


class Interrupted(RobotRLError):
    """The user stopped the run; a checkpoint was written."""


class StopFlag:
    """Turns SIGINT and SIGTERM into a request that the loop honours at its next safe point."""

    def __init__(self) -> None:
        self.stop = False

    def break_off_resets(self, env: Any) -> None:
        """Have resets by the arm broken off, with MotionInterruptedError, once it is up."""
        motion = getattr(getattr(env.unwrapped, "resetter", None), "motion", None)
        if motion is not None:
            motion.interrupted = lambda: self.stop

    @contextmanager
    def watching(self) -> Iterator[StopFlag]:
        """Watch the signals inside the block; a second signal acts at once."""
        before = {}

        def ask(number: int, frame: FrameType | None) -> None:
            if self.stop:
                raise KeyboardInterrupt
            self.stop = True
            print("stopping at the next safe point (again to stop at once)", file=sys.stderr)

        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                before[number] = signal.signal(number, ask)
        except ValueError:
            pass  # Not in the main thread: whoever owns the signals decides.
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def progress(total: int, what: str, unit: str, *, start: int = 0, quiet: bool = False) -> (
    tqdm[Any]
):
    """A bar on standard error with rate and time left."""
    interactive = sys.stderr.isatty()
    return tqdm(
        total=total,
        initial=start,
        desc=what,
        unit=unit,
        file=sys.stderr,
        disable=quiet,
        mininterval=0.2 if interactive else 10.0,
        dynamic_ncols=interactive,
        smoothing=0.1,
    )


def _tensorboard(folder: Path, resumed_at: int | None) -> Any | None:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    # Points after the checkpoint are purged, like the lines of metrics.
    purge = None if resumed_at is None else resumed_at + 1
    return SummaryWriter(str(folder), purge_step=purge)  # type: ignore[no-untyped-call]


class RateMeter:
    """Steps per second since it was made, leaving out paused time."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._paused = 0.0

    def rate(self, steps: int) -> float:
        return steps / max(time.perf_counter() - self._start - self._paused, 1e-9)

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Time inside the block does not count."""
        before = time.perf_counter()
        try:
            yield
        finally:
            self._paused += time.perf_counter() - before
