"""Damaged and hostile inputs: each leads to an error of this package or to a correct read.

A plug-in (:class:`Format`) makes a small valid sample, changes one of its files and reads the
result. Cases run in forked processes with a cap on their memory, so that a crash, a hang and an
allocation are seen and said with the case that led to them.
"""

from __future__ import annotations

import contextlib
import faulthandler
import mmap
import os
import random
import resource
import shutil
import signal
import struct
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from robot_rl.errors import RobotRLError

# What a process that reads a damaged input may take beyond what it had before.
CAP_BYTES = 512 << 20
LONGEST_S = 1.0
HANG_S = 20.0
_NUMBERS = (b"\xff" * 8, b"\xff" * 4, b"\xff\xff\xff\x7f", b"\xff" * 7 + b"\x7f",
            struct.pack("<Q", 1 << 40), struct.pack("<I", 1 << 30), bytes(8))


@dataclass
class Format:
    """A kind of input.

    Attributes:
        name: of the format.
        build: makes a valid sample at the path, a file or a folder.
        read: reads it fully; raises AssertionError where what it read cannot be.
        mutate: changes the content of one file; :func:`mutate_bytes` or one that knows the format.
        contained: reads a case as the product does, in a process of its own, where ``read`` calls
            libraries that such a case can crash; None where there are none.
    """

    name: str
    build: Callable[[Path], None]
    read: Callable[[Path], None]
    mutate: Callable[[str, bytes, random.Random], bytes]
    contained: Callable[[Path], None] | None = None


@dataclass
class Outcome:
    """What became of the cases of one format."""

    cases: int = 0
    errors: int = 0
    reads: int = 0
    contained: int = 0
    slowest_s: float = 0.0
    faults: list[str] = field(default_factory=list)

    def add(self, other: Outcome) -> None:
        self.cases += other.cases
        self.errors += other.errors
        self.reads += other.reads
        self.contained += other.contained
        self.slowest_s = max(self.slowest_s, other.slowest_s)
        self.faults += other.faults


def mutate_bytes(content: bytes, rng: random.Random) -> bytes:
    """Bits flipped, bytes changed, cut, doubled, removed, swapped, zeroed, numbers made huge."""
    data = bytearray(content)
    if not data:
        return bytes(rng.randrange(256) for _ in range(rng.randrange(64)))
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        size = len(data)
        at = rng.randrange(size)
        end = min(at + rng.choice([1, 4, 8, 64, 512]), size)
        how = rng.randrange(9)
        if how == 0:
            for _ in range(rng.choice([1, 1, 8])):
                data[rng.randrange(size)] ^= 1 << rng.randrange(8)
        elif how == 1:
            data[at:end] = bytes(rng.randrange(256) for _ in range(end - at))
        elif how == 2:
            del data[at:]
        elif how == 3:
            data[at:at] = data[at:end]
        elif how == 4:
            del data[at:end]
        elif how == 5:
            other = rng.randrange(size)
            data[at:end], data[other : other + end - at] = (
                data[other : other + end - at], data[at:end])
        elif how == 6:
            data[at:end] = bytes(end - at)
        elif how == 7:
            number = rng.choice(_NUMBERS)
            data[at : at + len(number)] = number
        else:
            data += bytes(rng.randrange(256) for _ in range(rng.choice([1, 30])))
        if not data:
            break
    return bytes(data)


def run_mutations(
    formats: Iterable[Format], count: int, work: Path, *, seed: int = 0, workers: int = 2
) -> dict[str, Outcome]:
    """``count`` cases of each format, in ``workers`` processes; what became of them by format."""
    found = {}
    for one in formats:
        sample = work / one.name / "sample"
        sample.parent.mkdir(parents=True)
        one.build(sample)
        one.read(sample)
        outcome = Outcome()
        shares = [range(seed + i, seed + count, workers) for i in range(workers)]
        running = [_Share(one, sample, share, work / one.name / f"w{i}")
                   for i, share in enumerate(shares) if len(share)]
        while any(share.poll() for share in running):
            time.sleep(0.01)
        for share in running:
            outcome.add(share.outcome)
        found[one.name] = outcome
        shutil.rmtree(work / one.name)
    return found


class _Share:
    """The cases of one worker, which is started anew where a case kills it."""

    def __init__(self, one: Format, sample: Path, seeds: range, folder: Path) -> None:
        self.format, self.sample, self.seeds, self.folder = one, sample, seeds, folder
        self.outcome = Outcome()
        # The case at work and when it began; then what became of those before it.
        self._shared = mmap.mmap(-1, 4096)
        self._faults = folder.parent / f"{folder.name}.faults"
        self._at = 0
        self._child = 0
        self._start()

    def poll(self) -> bool:
        """Whether there is more to come."""
        if not self._child:
            return False
        done, status = os.waitpid(self._child, os.WNOHANG)
        at, _, _, _, began = struct.unpack_from("<QQQdd", self._shared)
        if not done:
            if began and time.monotonic() - began > HANG_S:
                os.kill(self._child, signal.SIGKILL)
                os.waitpid(self._child, 0)
                self._lost(at, f"hung for over {HANG_S:.0f} s")
            return True
        if status == 0:
            self._gather()
            self._child = 0
            return False
        what = (f"killed by signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status)
                else f"ended with {os.WEXITSTATUS(status)}")
        self._lost(at, what)
        return bool(self._child)

    def _lost(self, at: int, what: str) -> None:
        """A case took the worker with it; go on behind it."""
        self._gather()
        seed = self.seeds[at]
        self.outcome.cases += 1
        if self.format.contained is not None and _is_contained(self, seed):
            self.outcome.contained += 1
        else:
            self.outcome.faults.append(f"{self.format.name} {seed}: {what}")
        self._at = at + 1
        self._child = 0
        if self._at < len(self.seeds):
            self._start()

    def _gather(self) -> None:
        at, errors, reads, slowest, _ = struct.unpack_from("<QQQdd", self._shared)
        self.outcome.add(Outcome(at - self._at, errors, reads, 0, slowest))
        if self._faults.exists():
            self.outcome.faults += self._faults.read_text().splitlines()
            self._faults.unlink()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _start(self) -> None:
        struct.pack_into("<QQQdd", self._shared, 0, self._at, 0, 0, 0.0, 0.0)
        self._child = os.fork()
        if self._child == 0:
            code = 1
            try:
                faulthandler.disable()  # a crash is said by whoever waits for it
                os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libraries complain there
                limit_memory(CAP_BYTES)
                self._work()
                code = 0
            finally:
                os._exit(code)

    def _work(self) -> None:
        errors = reads = 0
        slowest = 0.0
        for at in range(self._at, len(self.seeds)):
            seed = self.seeds[at]
            struct.pack_into("<QQQdd", self._shared, 0, at, errors, reads, slowest,
                             time.monotonic())
            path = make_case(self.format, self.sample, seed, self.folder / str(seed))
            began = time.process_time()
            fault = ""
            try:
                self.format.read(path)
                reads += 1
            except RobotRLError as error:
                errors += 1
                if ran_out_of_memory(error):
                    fault = f"more than {CAP_BYTES >> 20} MiB: {error}"
            except BaseException as error:
                fault = f"{type(error).__name__}: {error}"
            took = time.process_time() - began
            slowest = max(slowest, took)
            if took > LONGEST_S:
                fault = fault or f"took {took:.2f} s"
            if fault:
                with open(self._faults, "a") as file:
                    line = " ".join(fault.split())[:300]
                    file.write(f"{self.format.name} {seed}: {line}\n")
            shutil.rmtree(self.folder / str(seed))
        struct.pack_into("<QQQdd", self._shared, 0, len(self.seeds), errors, reads, slowest, 0.0)


def _is_contained(share: _Share, seed: int) -> bool:
    """Whether the product answers this case, which kills its reader, with an error."""
    path = make_case(share.format, share.sample, seed, share.folder / "again")
    try:
        assert share.format.contained is not None
        with contextlib.suppress(RobotRLError):
            share.format.contained(path)
        return True
    except Exception:
        return False
    finally:
        shutil.rmtree(share.folder / "again", ignore_errors=True)


def make_case(one: Format, sample: Path, seed: int, folder: Path) -> Path:
    """The sample with one file changed as ``seed`` says, below ``folder``; returns its path."""
    rng = random.Random(f"{one.name} {seed}")
    folder.mkdir(parents=True)
    path = folder / sample.name
    if sample.is_dir():
        shutil.copytree(sample, path)
        files = sorted(p for p in path.rglob("*") if p.is_file() and p.stat().st_size)
        target = rng.choice(files)
    else:
        shutil.copy(sample, path)
        target = path
    content = target.read_bytes()
    changed = one.mutate(target.name, content, rng)
    target.write_bytes(changed)
    return path


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether there is a MemoryError behind an error."""
    at: BaseException | None = error
    while at is not None:
        if isinstance(at, MemoryError) or "memory than there is" in str(at):
            return True
        at = at.__cause__ or at.__context__
    return False


def limit_memory(beyond: int) -> None:
    """Let this process take so many bytes of address space beyond what it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * mmap.PAGESIZE + beyond
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
