"""Imports a data set from elsewhere into a folder of our own, whole or not at all.

Files from elsewhere are read by libraries in C (HDF5, Parquet, FFmpeg, SQLite), which a hostile
file can crash, hang or make to allocate without end. They are therefore read in a process of their
own, with a cap on its memory and a watch on its progress; whatever happens to it becomes an error
that names the file.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from robot_rl import errors
from robot_rl.data.episodes import DESIRED, Episode
from robot_rl.data.importers import progress as life
from robot_rl.data.importers.base import (
    EpisodeSource,
    ImportOptions,
    check_apart,
    clear_stale,
)
from robot_rl.errors import InvalidInputError, RobotRLError, unknown_name

# Name of a format: the module that reads it.
IMPORTERS = {
    "rosbag2": "robot_rl.data.importers.rosbag",
    "rosbag1": "robot_rl.data.importers.rosbag",
    "lerobot": "robot_rl.data.importers.lerobot",
    "minari": "robot_rl.data.importers.minari",
    "robomimic": "robot_rl.data.importers.hdf5",
    "d4rl": "robot_rl.data.importers.hdf5",
    "npz": "robot_rl.data.importers.npz",
}
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Limits:
    """How much a reader may take: bytes of memory (its address space), and seconds without a sign
    of progress before it is stopped."""

    memory_bytes: int = 8 << 30
    stall_s: float = 120.0

    def __post_init__(self) -> None:
        if self.memory_bytes < 512 << 20:
            raise InvalidInputError(
                f"the memory limit is {self.memory_bytes} bytes, should be at least {512 << 20}"
            )
        if not self.stall_s > 0:
            raise InvalidInputError(f"the stall limit is {self.stall_s} s, should be positive")


def detect(source: str | Path) -> str | None:
    """Which format a path looks like, by names and first bytes; None where it looks like none."""
    path = Path(source)
    if path.is_dir():
        names = {entry.name for entry in path.iterdir()}
        if "metadata.yaml" in names or any(n.endswith((".mcap", ".db3")) for n in names):
            return "rosbag2"
        if (path / "meta" / "info.json").is_file():
            return "lerobot"
        for folder in (path / "data", path):
            if any((folder / name).is_file() for name in ("main_data.hdf5", "metadata.json")):
                return "minari"
        return None
    if not path.is_file():
        return None
    try:
        with open(path, "rb") as file:
            start = file.read(16)
    except OSError:
        return None
    for magic, kind in ((b"\x89MCAP0\r\n", "rosbag2"), (b"SQLite format 3\x00", "rosbag2"),
                        (b"#ROSBAG V", "rosbag1"), (b"PK\x03\x04", "npz")):
        if start.startswith(magic):
            return kind
    if start.startswith(b"\x89HDF\r\n\x1a\n"):
        return "minari" if path.name == "main_data.hdf5" else _detect_hdf5(path)
    return None


def _detect_hdf5(path: Path) -> str:
    # A robomimic file keeps everything below "data", and that name stands at its beginning. The
    # file is not opened here: that is done where it can do no harm.
    with open(path, "rb") as file:
        start = file.read(1 << 16)
    return "d4rl" if b"observations\x00" in start and b"demo_" not in start else "robomimic"


def import_dataset(
    kind: str,
    source: str | Path,
    out: str | Path,
    *,
    mapping: str | Path | dict[str, Any] | None = None,
    rate_hz: float = 0.0,
    task: str = "",
    overwrite: bool = False,
    quiet: bool = False,
    isolate: bool = True,
    limits: Limits | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Import episodes into the new folder ``out``; on any error, and when interrupted, nothing is
    left behind and what was there is untouched.

    Args:
        kind: a key of :data:`IMPORTERS`, or ``""`` to go by what the source looks like.
        mapping: a YAML file, or what it says.
        rate_hz: control rate to resample to; 0 as recorded, or as the mapping says.
        overwrite: set what ``out`` holds aside as ``<name>.old`` once the import is complete.
        quiet: show no line of progress.
        isolate: read in a process of its own, within ``limits``.
        progress: called with (episodes, steps) so far.

    Returns:
        ``episodes``, ``steps``, ``keys``, ``path``, ``notes`` (what was left out or made up),
        ``skipped`` (episodes), ``format``, all of them plain JSON.

    Raises:
        InvalidInputError: the source, the mapping or ``out`` cannot be used.
        MissingDependencyError: a package that reads this format is not installed.
    """
    source, out = Path(source), Path(out)
    if not source.exists():
        raise InvalidInputError(f"import: {source} does not exist")
    kind = kind or detect(source) or ""
    if not kind:
        raise InvalidInputError(f"import: {source} looks like none of {', '.join(IMPORTERS)}; say "
                                "which with --from")
    if kind not in IMPORTERS:
        raise unknown_name("format", kind, IMPORTERS)
    if not 0.0 <= rate_hz < 1e5:
        raise InvalidInputError(f"rate is {rate_hz} Hz, should be in [0, 100000)")
    options = ImportOptions(rate_hz=rate_hz, mapping=_read_mapping(mapping), task=task)
    check_apart(source, out, "import")
    _check_free(out, overwrite)
    _check_kind(kind, source)
    limits = limits or Limits()
    part = out.parent / f".{out.name}.{os.getpid()}.importing"
    clear_stale(out, "importing")
    report = _reporter(quiet, progress)
    try:
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InvalidInputError(f"import: cannot use {out}: {error.strerror}") from None
        if isolate:
            job = {"kind": kind, "source": str(source), "part": str(part),
                   "mapping": options.mapping, "rate_hz": rate_hz, "task": task}
            result = _Child(job, source, limits).run(report)
        else:
            result = _write(kind, source, part, options, report)
        _move_into_place(part, out, overwrite)
    finally:
        shutil.rmtree(part, ignore_errors=True)
        report(-1, 0)
    return {**result, "path": str(out), "format": kind}


def _read_mapping(mapping: str | Path | dict[str, Any] | None) -> dict[str, Any]:
    if mapping is None:
        return {}
    if isinstance(mapping, dict):
        return mapping
    from robot_rl.data.importers.mapping import read_yaml

    raw = read_yaml(Path(mapping), "mapping")
    if not isinstance(raw, dict) or not raw:
        raise InvalidInputError(f"mapping: {mapping} should be keys with values")
    return raw


def _check_free(out: Path, overwrite: bool) -> None:
    used = out.exists() and (not out.is_dir() or any(out.iterdir()))
    if used and not overwrite:
        raise InvalidInputError(f"import: {out} is already there and not empty; choose another, or "
                                "give --overwrite to set it aside")


def _check_kind(kind: str, source: Path) -> None:
    """Refuse a bag of the other ROS than was named."""
    bags = {"rosbag1": "ROS 1", "rosbag2": "ROS 2"}
    looks = detect(source) if kind in bags else None
    if kind == "rosbag2" and looks is None and source.is_dir() and any(source.glob("*.bag")):
        looks = "rosbag1"
    if looks in bags and looks != kind:
        raise InvalidInputError(f"import: {source} is no bag of {bags[kind]} ({kind}), it looks "
                                f"like one of {bags[looks]}: give --from {looks}")


def _move_into_place(part: Path, out: Path, overwrite: bool) -> None:
    from robot_rl.data.files import new_folder, sync_folder

    new_folder(out, "import", overwrite=overwrite)
    try:
        os.rename(part, out)  # onto an empty folder
        sync_folder(out.parent)
    except OSError as error:
        raise InvalidInputError(f"import: cannot write {out}: {error.strerror}") from None


def _reporter(quiet: bool, progress: Progress | None) -> Progress:
    shown = not quiet and sys.stderr.isatty()
    state = {"next_s": 0.0, "shown": 0.0}

    def report(episodes: int, steps: int) -> None:
        if episodes < 0:
            if state["shown"]:
                print(file=sys.stderr)
            return
        if progress is not None:
            progress(episodes, steps)
        if shown and time.monotonic() >= state["next_s"]:
            state["next_s"], state["shown"] = time.monotonic() + 0.2, 1.0
            print(f"\rimport: {episodes} episodes, {steps} steps", end="", file=sys.stderr,
                  flush=True)

    return report


def _open(kind: str, source: Path, options: ImportOptions) -> EpisodeSource:
    module = importlib.import_module(IMPORTERS[kind])
    # One module reads two formats; the one that was named is the one that is read.
    opener = {"robomimic": "open_robomimic", "d4rl": "open_d4rl"}.get(kind, "open_source")
    opened: EpisodeSource = getattr(module, opener)(source, options)
    return opened


def _write(
    kind: str, source: Path, part: Path, options: ImportOptions, report: Progress
) -> dict[str, Any]:
    """Read the source and write the folder ``part``."""
    from robot_rl.data.writer import DatasetWriter

    try:
        opened = _open(kind, source, options)
        try:
            steps = 0
            keys: list[str] = []
            with DatasetWriter(part, _plain_info(opened.info)) as writer:
                for episode in opened:
                    life.beat()
                    writer.append(episode)
                    steps += len(episode)
                    keys = keys or _keys(episode)
                    report(writer.count, steps)
                count = writer.count
            if not count:
                raise InvalidInputError(f"import: {source} holds no episodes")
            return {"episodes": count, "steps": steps, "keys": keys, "notes": list(opened.notes),
                    "skipped": int(getattr(opened, "skipped", 0))}
        finally:
            opened.close()
    except RobotRLError:
        raise
    except MemoryError:
        raise InvalidInputError(
            f"import: {source} needs more memory than the import may take"
        ) from None
    except OSError as error:
        raise InvalidInputError(f"import: {source}: {error.strerror or error}") from None
    except Exception as error:  # a reader's own, of a file it did not expect
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise InvalidInputError(f"import: {source} cannot be read as {kind} ({reason})") from None


def _keys(episode: Episode) -> list[str]:
    goal = [DESIRED] if len(episode.desired) else []
    return [*episode.state_arrays(), *goal, *episode.step_arrays()]


def _plain_info(info: Any) -> Any:
    """The info with nothing in ``config`` that is not JSON (a mapping's dates, say)."""
    text = json.dumps(info.config, default=str)
    return replace(info, config=json.loads(text))


# -- the reader's own process ---------------------------------------------------------------


_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from robot_rl.data.importers.run import serve; serve()"
)


class _Child:
    """One import in a process of its own."""

    def __init__(self, job: dict[str, Any], source: Path, limits: Limits) -> None:
        self.source, self.limits = source, limits
        self.job = {**job, "memory_bytes": limits.memory_bytes}
        # Text that is not JSON in a mapping (a date) travels as the text it was.
        self.text = json.dumps(self.job, default=str)

    def run(self, report: Progress) -> dict[str, Any]:
        """Its result.

        Raises:
            RobotRLError: as the reader raised it, or saying how the process ended.
        """
        with tempfile.TemporaryFile() as noise, tempfile.TemporaryDirectory(
            prefix="robot_rl_import_"
        ) as scratch:
            environment = {**os.environ, "TMPDIR": scratch, "OMP_NUM_THREADS": "1"}
            process = subprocess.Popen(
                [sys.executable, "-c", _START, json.dumps(sys.path)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=noise, env=environment,
                start_new_session=True,  # Ctrl-C comes here first, and is passed on as an end
            )
            try:
                answer = self._talk(process, report)
                process.wait(timeout=self.limits.stall_s)
            except subprocess.TimeoutExpired:
                raise self._stalled() from None
            finally:
                if process.poll() is None:
                    process.kill()
                process.wait()
                for pipe in (process.stdin, process.stdout):
                    with contextlib.suppress(OSError):
                        pipe.close()  # type: ignore[union-attr]
            if answer is None:
                noise.seek(0)
                raise self._died(process.returncode, noise.read(1 << 20))
        if "error" in answer:
            raise _rebuilt(answer["error"], answer["message"])
        return dict(answer["result"])

    def _talk(self, process: subprocess.Popen[bytes], report: Progress) -> dict[str, Any] | None:
        assert process.stdin is not None and process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(self.text.encode() + b"\n")
            process.stdin.flush()
        pending = b""
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while True:
                if not selector.select(self.limits.stall_s):
                    raise self._stalled()
                data = os.read(process.stdout.fileno(), 1 << 16)
                if not data:
                    return None
                *lines, pending = (pending + data).split(b"\n")
                for line in lines:
                    said = json.loads(line)
                    if "result" in said or "error" in said:
                        return dict(said)
                    if "episodes" in said:
                        report(int(said["episodes"]), int(said["steps"]))

    def _stalled(self) -> InvalidInputError:
        return InvalidInputError(f"import: reading {self.source} made no progress for "
                                 f"{self.limits.stall_s:g} s and was stopped")

    def _died(self, code: int, noise: bytes) -> InvalidInputError:
        lines = noise.decode("utf-8", "replace").strip().splitlines()
        last = f" ({lines[-1][:300]})" if lines else ""
        if b"MemoryError" in noise or b"bad_alloc" in noise or code == -signal.SIGKILL:
            return InvalidInputError(
                f"import: reading {self.source} took more than the "
                f"{self.limits.memory_bytes / 2**30:.1f} GiB it may{last}"
            )
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return InvalidInputError(f"import: {self.source} crashed its reader, {how}{last}")


def _rebuilt(name: str, message: str) -> RobotRLError:
    kind = getattr(errors, name, InvalidInputError)
    if not (isinstance(kind, type) and issubclass(kind, RobotRLError)):
        kind = InvalidInputError
    return kind(message)


def serve() -> None:
    """One import, as asked for on standard input; what the process of :class:`_Child` runs."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints must not come between the answers
    job = json.loads(sys.stdin.readline())
    _limit(int(job["memory_bytes"]))

    def say(**what: Any) -> None:
        out.write(json.dumps(what) + "\n")
        out.flush()

    life.listen(lambda: say(alive=True))
    options = ImportOptions(rate_hz=job["rate_hz"], mapping=job["mapping"], task=job["task"])
    try:
        result = _write(job["kind"], Path(job["source"]), Path(job["part"]), options,
                        lambda episodes, steps: say(episodes=episodes, steps=steps))
    except RobotRLError as error:
        say(error=type(error).__name__, message=str(error))
    else:
        say(result=result)


def _limit(memory_bytes: int) -> None:
    """Cap this process's memory, leave no core file, and let it end with its parent."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_AS)
        if most != resource.RLIM_INFINITY:
            memory_bytes = min(memory_bytes, most)
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, most))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
