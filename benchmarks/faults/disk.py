"""A disk that loses power: what a program did to a folder, and what of it could be left.

Everything that :mod:`robot_rl.data.files` changes goes through its ``os``, which
:class:`SimulatedDisk` replaces by one that also takes notes. From them every state is built that
the folder could be in if the power were cut after any of these operations:

- what was written to a file and not synced is there, not there, torn at any byte, partly zeros, or
  there without what was written before it;
- a name that was made, changed or deleted in a folder and not synced is as before or as after,
  each independently of the others; a rename between folders is one change.
"""

from __future__ import annotations

import itertools
import os
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from robot_rl.data import files as data_files

ROOT = 1
_BLOCK = 512


@dataclass
class Change:
    """One change of names: in folder ``folder``, ``name`` becomes ``inode`` (0: is deleted)."""

    entries: list[tuple[int, str, int]]
    unsynced: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.unsynced = {folder for folder, _, _ in self.entries}


@dataclass
class Cut:
    """A state that a power cut leaves: ``after`` so many operations, with these ``notes``."""

    after: int
    variant: str
    notes: list[Any]
    tree: dict[str, bytes | None]

    def build(self, target: Path) -> Path:
        """Make the folder; returns it."""
        target.mkdir(parents=True)
        for name, content in sorted(self.tree.items()):
            path = target / name
            if content is None:
                path.mkdir()
            else:
                path.write_bytes(content)
        return target


class SimulatedDisk:
    """Takes notes of everything that is done to ``root``, which is there already."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.trace: list[tuple[Any, ...]] = []
        self._lock = threading.RLock()
        self._count = itertools.count(ROOT + 1)
        self._names: dict[int, dict[str, int]] = {ROOT: {}}
        self._handles: dict[int, int] = {}
        self._offsets: dict[int, int] = {}
        self._initial: dict[int, bytes | dict[str, int]] = {}
        self._adopt(ROOT, root)

    def _adopt(self, inode: int, path: Path) -> None:
        self._names[inode] = {}
        for entry in path.iterdir():
            child = next(self._count)
            self._names[inode][entry.name] = child
            if entry.is_dir():
                self._adopt(child, entry)
            else:
                self._initial[child] = entry.read_bytes()
        self._initial[inode] = dict(self._names[inode])

    @contextmanager
    def recording(self) -> Iterator[SimulatedDisk]:
        """Within it, :mod:`robot_rl.data.files` is watched."""
        with mock.patch.object(data_files, "os", _Os(self)):
            yield self

    def note(self, what: Any) -> None:
        """Remember that ``what`` was promised, or begun, at this point."""
        with self._lock:
            self.trace.append(("note", what))

    # -- what the operations are, by inode ---------------------------------------------------

    def _find(self, path: Any) -> tuple[int, str] | None:
        try:
            parts = Path(os.path.abspath(path)).relative_to(self.root).parts
        except ValueError:
            return None
        at = ROOT
        for part in parts[:-1]:
            at = self._names[at][part]
        return (at, parts[-1]) if parts else (0, "")

    def _inode(self, path: Any) -> int | None:
        found = self._find(path)
        if found is None:
            return None
        return ROOT if found == (0, "") else self._names[found[0]].get(found[1])

    def _rename_entries(self, source: Any, target: Any) -> list[tuple[int, str, int]]:
        (a, old), (b, new) = self._find(source) or (0, ""), self._find(target) or (0, "")
        inode = self._names[a].pop(old)
        self._names[b][new] = inode
        return [(a, old, 0), (b, new, inode)]


class _Os:
    """The module ``os``, with notes of what changes the disk."""

    def __init__(self, disk: SimulatedDisk) -> None:
        self._disk = disk

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def open(self, path: Any, flags: int, mode: int = 0o777) -> int:
        disk = self._disk
        with disk._lock:
            handle = os.open(path, flags, mode)
            found = disk._find(path)
            if found is not None:
                inode = disk._inode(path)
                if inode is None:
                    inode = next(disk._count)
                    disk._names[found[0]][found[1]] = inode
                    disk.trace.append(("create", inode, Change([(*found, inode)])))
                disk._handles[handle] = inode
                disk._offsets[handle] = 0
            return handle

    def close(self, handle: int) -> None:
        with self._disk._lock:
            self._disk._handles.pop(handle, None)
            os.close(handle)

    def write(self, handle: int, data: Any) -> int:
        disk = self._disk
        with disk._lock:
            count = os.write(handle, data)
            if handle in disk._handles:
                at = disk._offsets[handle]
                disk.trace.append(("write", disk._handles[handle], at, bytes(data[:count])))
                disk._offsets[handle] = at + count
            return count

    def pwrite(self, handle: int, data: bytes, at: int) -> int:
        disk = self._disk
        with disk._lock:
            count = os.pwrite(handle, data, at)
            if handle in disk._handles:
                disk.trace.append(("write", disk._handles[handle], at, data[:count]))
            return count

    def ftruncate(self, handle: int, size: int) -> None:
        assert size == 0, "only emptying a file is simulated"
        disk = self._disk
        with disk._lock:
            os.ftruncate(handle, size)
            if handle in disk._handles:
                disk.trace.append(("write", disk._handles[handle], -1, b""))

    def fsync(self, handle: int) -> None:
        disk = self._disk
        with disk._lock:
            if handle in disk._handles:
                disk.trace.append(("fsync", disk._handles[handle]))

    def mkdir(self, path: Any, mode: int = 0o777) -> None:
        disk = self._disk
        with disk._lock:
            os.mkdir(path, mode)
            found = disk._find(path)
            if found is not None:
                inode = next(disk._count)
                disk._names[found[0]][found[1]] = inode
                disk._names[inode] = {}
                disk.trace.append(("mkdir", inode, Change([(*found, inode)])))

    def rename(self, source: Any, target: Any) -> None:
        disk = self._disk
        with disk._lock:
            os.rename(source, target)
            disk.trace.append(("name", Change(disk._rename_entries(source, target))))

    def replace(self, source: Any, target: Any) -> None:
        self.rename(source, target)

    def link(self, source: Any, target: Any) -> None:
        disk = self._disk
        with disk._lock:
            os.link(source, target)
            inode, found = disk._inode(source), disk._find(target)
            assert inode is not None and found is not None
            disk._names[found[0]][found[1]] = inode
            disk.trace.append(("name", Change([(*found, inode)])))

    def unlink(self, path: Any) -> None:
        disk = self._disk
        with disk._lock:
            os.unlink(path)
            self._gone(path)

    def rmdir(self, path: Any) -> None:
        disk = self._disk
        with disk._lock:
            os.rmdir(path)
            self._gone(path)

    def _gone(self, path: Any) -> None:
        found = self._disk._find(path)
        if found is not None:
            del self._disk._names[found[0]][found[1]]
            self._disk.trace.append(("name", Change([(*found, 0)])))


# -- what could be left -------------------------------------------------------------------------

# How names, and how the content of files, that were not synced fare.
VARIANTS = (
    ("before", "lost"), ("after", "lost"), ("after", "kept"), ("before", "kept"),
    ("after", "torn"), ("after", "zeros"), ("mixed", "torn"), ("mixed", "hole"), ("mixed", "lost"),
)


def power_cuts(
    disk: SimulatedDisk, *, seed: int = 0, every: int = 1, torn: int = 1
) -> Iterator[Cut]:
    """States after the first, second, ... operation, as many as there are variants of each.

    Args:
        disk: what was recorded.
        seed: of what is torn and mixed.
        every: only at each so-many-th operation.
        torn: how many times the variants with chance in them are drawn.
    """
    rng = random.Random(seed)
    for after in range(len(disk.trace) + 1):
        last = disk.trace[after - 1] if after else ("note",)
        if last[0] == "note" and after not in (0, len(disk.trace)):
            continue  # the same disk as one operation before, and less was promised
        if after % every and after != len(disk.trace):
            continue
        state = _State(disk, after)
        for names, content in VARIANTS:
            again = torn if {names, content} & {"torn", "zeros", "mixed", "hole"} else 1
            for _ in range(again):
                yield Cut(after, f"names {names}, content {content}", state.notes,
                          state.tree(names, content, rng))


class _State:
    """The disk after some operations, and what of them is not synced."""

    def __init__(self, disk: SimulatedDisk, after: int) -> None:
        self._initial = disk._initial
        self.notes: list[Any] = []
        self._synced: dict[int, bytes] = {}
        self._written: dict[int, list[tuple[int, bytes]]] = {}
        self._changes: list[Change] = []
        self._folders: set[int] = set()
        for inode, content in disk._initial.items():
            if isinstance(content, bytes):
                self._synced[inode] = content
            else:
                self._folders.add(inode)
        for operation in disk.trace[:after]:
            self._apply(operation)
        # What is promised once the last operation is done counts with it.
        for operation in disk.trace[after:]:
            if operation[0] != "note":
                break
            self.notes.append(operation[1])

    def _apply(self, operation: tuple[Any, ...]) -> None:
        kind = operation[0]
        if kind == "note":
            self.notes.append(operation[1])
        elif kind == "write":
            self._written.setdefault(operation[1], []).append(operation[2:])
        elif kind == "fsync":
            inode = operation[1]
            if inode in self._folders:
                for change in self._changes:
                    change.unsynced.discard(inode)
            else:
                self._synced[inode] = _content(self._synced[inode], self._written.pop(inode, []))
        elif kind == "name":
            self._changes.append(Change(operation[1].entries))
        else:
            self._changes.append(Change(operation[2].entries))
            if kind == "mkdir":
                self._folders.add(operation[1])
            else:
                self._synced[operation[1]] = b""

    def tree(self, names: str, content: str, rng: random.Random) -> dict[str, bytes | None]:
        folders: dict[int, dict[str, int]] = {
            inode: dict(names) for inode, names in self._initial.items() if isinstance(names, dict)
        }
        for change in self._changes:
            keep = not change.unsynced or names == "after" or (
                names == "mixed" and rng.random() < 0.5)
            for folder, name, inode in change.entries if keep else ():
                if inode:
                    folders.setdefault(folder, {})[name] = inode
                else:
                    folders.setdefault(folder, {}).pop(name, None)
        found: dict[str, bytes | None] = {}
        self._walk(folders, ROOT, "", content, rng, found)
        return found

    def _walk(
        self, folders: dict[int, dict[str, int]], at: int, where: str, content: str,
        rng: random.Random, found: dict[str, bytes | None],
    ) -> None:
        for name, inode in folders.get(at, {}).items():
            if inode in self._folders:
                found[where + name] = None
                self._walk(folders, inode, f"{where}{name}/", content, rng, found)
            else:
                found[where + name] = _left(self._synced[inode], self._written.get(inode, []),
                                            content, rng)


def _content(synced: bytes, written: list[tuple[int, bytes]]) -> bytes:
    content = bytearray(synced)
    for at, data in written:
        if at < 0:
            content.clear()
            continue
        content.extend(bytes(max(at + len(data) - len(content), 0)))
        content[at : at + len(data)] = data
    return bytes(content)


def _left(
    synced: bytes, written: list[tuple[int, bytes]], how: str, rng: random.Random
) -> bytes:
    """What is left of a file of which some writes were not synced."""
    if not written or how == "lost":
        return synced
    if how == "kept":
        return _content(synced, written)
    if how == "torn":
        whole = rng.randrange(len(written))
        at, data = written[whole]
        return _content(synced, [*written[:whole], (at, data[: rng.randint(0, len(data))])])
    if how == "hole":
        return _content(synced, written[rng.randrange(len(written)) :])
    content = bytearray(_content(synced, written))
    for start in range(len(synced) // _BLOCK * _BLOCK, len(content), _BLOCK):
        if rng.random() < 0.5:
            end = min(start + _BLOCK, len(content))
            content[max(start, len(synced)) : end] = bytes(end - max(start, len(synced)))
    return bytes(content)
