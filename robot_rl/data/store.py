"""Where replay keeps its arrays: tables that grow, frames stored once, buffers used again.

A table is only ever written beyond what its readers know of, and replaced by a larger one as a
whole, so that sampling needs no lock. What does not fit under the memory limit lies in scratch
files without a name, which are gone with the process, however it ends.
"""

from __future__ import annotations

import errno
import mmap
import os
import stat
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from robot_rl.errors import InvalidInputError

# Below this an ordinary allocation is as fast as a buffer that is used again.
_SMALLEST_RECYCLED = 1 << 16
_LARGEST_RESERVE = 1 << 38
_HUGE_PAGES_FROM = 1 << 26
_FILE_STEP, _LARGEST_STEP = 1 << 20, 1 << 30
_PROBE = [np.empty(0)]
# References to what only a list refers to: the list's, and the one that asking makes.
_UNUSED = sys.getrefcount(_PROBE[0])


def default_memory_limit() -> int:
    """Half of the memory [bytes] that this process may use."""
    limit = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        text = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        limit = min(limit, int(text))
    except (OSError, ValueError):
        pass
    return max(limit // 2, 1 << 20)


class UnsafeError(OSError):
    """Something in a folder is a link, or neither a plain file nor a folder."""


class Folder:
    """A folder that is held open, so that nothing below it is reached through a link.

    What lies in a dataset that came from elsewhere may be anything: links that lead out of it,
    pipes that never answer, other names of somebody's files.

    Raises:
        UnsafeError: from every method, what was asked for is such a thing.
        OSError: it cannot be read or written.
    """

    def __init__(self, handle: int) -> None:
        self._handle = handle

    @classmethod
    @contextmanager
    def opened(cls, base: Path, below: tuple[str, ...], *, create: bool) -> Iterator[Folder]:
        """The folder ``below`` the folder ``base``, which itself may be reached by links."""
        if create:
            base.mkdir(parents=True, exist_ok=True)
        folder = cls(os.open(base, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        try:
            for name in below:
                with folder:
                    folder = folder.sub(name, create=create)
            yield folder
        finally:
            folder.close()

    def close(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)
        self._handle = -1

    def __enter__(self) -> Folder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def sub(self, name: str, *, create: bool = False) -> Folder:
        """The folder ``name`` in this one, made if it is missing and ``create`` says so."""
        if create:
            try:
                os.mkdir(name, 0o755, dir_fd=self._handle)
            except FileExistsError:
                pass
        return Folder(self._open(name, os.O_RDONLY | os.O_DIRECTORY))

    def file(self, name: str, flags: int = os.O_RDONLY) -> int:
        """A descriptor of the plain file ``name``; one to write to has no other name."""
        handle = self._open(name, flags)
        found = os.fstat(handle)
        writes = flags & os.O_ACCMODE != os.O_RDONLY
        if not stat.S_ISREG(found.st_mode) or (writes and found.st_nlink != 1):
            os.close(handle)
            raise UnsafeError(errno.EINVAL, f"{name} is no plain file")
        return handle

    def names(self) -> list[str]:
        """Everything in it."""
        return os.listdir(self._handle)

    def rename(self, name: str, to: str) -> None:
        """Give the file ``name`` another one, in place of what has it."""
        os.replace(name, to, src_dir_fd=self._handle, dst_dir_fd=self._handle)

    def unlink(self, name: str) -> None:
        """Remove the file ``name`` if it is there."""
        try:
            os.unlink(name, dir_fd=self._handle)
        except FileNotFoundError:
            pass

    def remove_folder(self, name: str) -> None:
        """Remove the folder ``name`` and the files in it; one with folders in it stays."""
        with self.sub(name) as folder:
            for file in folder.names():
                folder.unlink(file)
        os.rmdir(name, dir_fd=self._handle)

    def free_bytes(self) -> tuple[int, int]:
        """Bytes of the disk that are free, and all."""
        found = os.fstatvfs(self._handle)
        return found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize

    def _open(self, name: str, flags: int) -> int:
        # A pipe would wait for somebody at its other end.
        flags |= os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            return os.open(name, flags, 0o644, dir_fd=self._handle)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.ENXIO):
                raise UnsafeError(error.errno, f"{name} is no plain file or folder") from None
            raise


class Scratch:
    """How much memory the tables of one replay buffer may take, and where the rest goes.

    Args:
        memory_limit: bytes; None for half of the machine's.
        folder: for what is beyond; None for the system's temporary folder.
    """

    def __init__(self, memory_limit: int | None = None, folder: str | Path | None = None) -> None:
        if memory_limit is not None and memory_limit < 0:
            raise InvalidInputError(f"memory_limit is {memory_limit}, should be >= 0")
        self.limit = default_memory_limit() if memory_limit is None else int(memory_limit)
        self.folder = None if folder is None else Path(folder)
        if self.folder is not None and not self.folder.is_dir():
            raise InvalidInputError(f"scratch folder {self.folder} does not exist")
        self.used = 0

    @property
    def left(self) -> int:
        """Bytes of memory that may still be taken."""
        return max(self.limit - self.used, 0)

    def file(self) -> int:
        """A descriptor of a new file without a name, for reading and writing."""
        try:
            with tempfile.TemporaryFile(dir=self.folder, prefix="robot_rl-replay-") as file:
                return os.dup(file.fileno())
        except OSError as error:
            where = self.folder or tempfile.gettempdir()
            raise InvalidInputError(
                f"replay: no scratch file in {where}: {error.strerror}"
            ) from None


class ScratchFile:
    """An array in a scratch file, which grows without being copied."""

    def __init__(self, scratch: Scratch) -> None:
        self._handle = scratch.file()
        self._size = 0
        self._map = np.zeros(0, np.uint8)

    def bytes(self, size: int) -> NDArray[np.uint8]:
        """The file's first ``size`` or more bytes, mapped.

        Raises:
            InvalidInputError: the disk has no room for them.
        """
        if size > self._size:
            size = max(size, self._size + min(self._size // 2, _LARGEST_STEP))
            size = -(-size // _FILE_STEP) * _FILE_STEP
            try:
                # Writing to a mapped file that has no room would kill the process.
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(self._handle, 0, size)
                else:
                    os.ftruncate(self._handle, size)
            except OSError as error:
                raise InvalidInputError(
                    f"replay: no room for {size} bytes in the scratch folder: {error.strerror}"
                ) from None
            self._map = np.frombuffer(mmap.mmap(self._handle, size), np.uint8)
            self._size = size
        return self._map

    def __del__(self) -> None:
        if hasattr(self, "_handle"):
            os.close(self._handle)


class Table:
    """Rows of one shape, which grow at their end."""

    def __init__(
        self, shape: tuple[int, ...], dtype: DTypeLike, capacity: int, scratch: Scratch
    ) -> None:
        self.shape, self.dtype = shape, np.dtype(dtype)
        self.row_bytes = int(np.prod(shape, dtype=np.int64)) * self.dtype.itemsize
        self._scratch = scratch
        self._file: ScratchFile | None = None
        self._in_memory = 0
        self.array: NDArray[Any] = np.empty((0, *shape), self.dtype)
        self.reserve(max(capacity, 1), 0)

    def adopt(self, array: NDArray[Any], *, in_memory: bool) -> None:
        """Take an array as the table; it is only read, and copied when rows are added."""
        self._scratch.used -= self._in_memory
        self._in_memory = array.nbytes if in_memory else 0
        self._scratch.used += self._in_memory
        self.array, self._file = array, None

    def reserve(self, rows: int, keep: int) -> NDArray[Any]:
        """The array, with room for ``rows``, of which the first ``keep`` are kept.

        A reader that holds the array that was there before goes on reading from it.
        """
        if rows <= len(self.array) and self.array.flags.writeable:
            return self.array
        size = max(rows, 2 * len(self.array)) if self._file is None else rows
        grown = size * self.row_bytes
        if self._file is None and grown - self._in_memory <= self._scratch.left:
            new = np.empty((size, *self.shape), self.dtype)
            new[:keep] = self.array[:keep]
            self._scratch.used += grown - self._in_memory
            self._in_memory = grown
            self.array = new
            return new
        moved = self._file is None
        file = self._file or ScratchFile(self._scratch)
        raw = file.bytes(rows * self.row_bytes)
        size = len(raw) // self.row_bytes if self.row_bytes else rows
        new = raw[: size * self.row_bytes].view(self.dtype).reshape(size, *self.shape)
        if moved:
            new[:keep] = self.array[:keep]
            self._file = file
            self._scratch.used -= self._in_memory
            self._in_memory = 0
        self.array = new
        return new

    def __del__(self) -> None:
        if hasattr(self, "_in_memory"):
            self._scratch.used -= self._in_memory


class Frames:
    """One camera's frames (F, H, W, C) uint8, each stored once.

    They lie in segments that are never copied: memory maps of views, pieces of memory, and a
    scratch file beyond the memory limit.
    """

    def __init__(self, shape: tuple[int, int, int], scratch: Scratch) -> None:
        self.shape = shape
        self.frame_bytes = int(np.prod(shape))
        self._scratch = scratch
        self._file: ScratchFile | None = None
        self._kind = "fixed"  # what the last segment is: fixed (full or mapped), memory or file
        self._recycled = Recycler()
        self._end = 0  # how many were written, also by an addition that failed later
        # First frame and frames (n, H x W x C) of each segment.
        self.segments: tuple[tuple[int, NDArray[np.uint8]], ...] = ()

    def adopt(self, frames: NDArray[np.uint8], count: int) -> int:
        """Add frames (n, H, W, C) after the first ``count``, without a copy; returns the sum."""
        self._rewind(count)
        self._close(count)
        self.segments = (*self.segments, (count, frames.reshape(-1, self.frame_bytes)))
        self._end = count + len(frames)
        return self._end

    def write(self, frames: NDArray[np.uint8], count: int) -> int:
        """Write frames (n, H, W, C) after the first ``count``; returns the sum.

        Raises:
            InvalidInputError: neither memory nor the scratch folder has room for them.
        """
        done = 0
        self._rewind(count)
        while done < len(frames):
            room = self._room(count, len(frames) - done)
            first, segment = self.segments[-1]
            part = frames[done : done + room]
            segment[count - first : count - first + len(part)] = part.reshape(-1, self.frame_bytes)
            if self._kind == "memory":
                self._scratch.used += part.nbytes
            done += len(part)
            count += len(part)
            self._end = count
        return count

    def take(self, index: NDArray[Any], out: NDArray[np.uint8]) -> None:
        """Copy the frames ``index`` (B,) to ``out`` (B, H, W, C).

        Raises:
            IndexError: a frame is not there.
        """
        flat = out.reshape(-1, self.frame_bytes)
        segments = self.segments
        if len(segments) == 1:
            if len(index) and not 0 <= index.min() <= index.max() < len(segments[0][1]):
                raise IndexError(f"frame {index.max()} of {len(segments[0][1])}")
            segments[0][1].take(index, axis=0, out=flat, mode="clip")
            return
        filled = 0
        spare = self._recycled.empty(flat.shape, np.uint8)
        for first, segment in segments:
            here = np.flatnonzero((index >= first) & (index < first + len(segment)))
            if len(here) == len(index):
                segment.take(index - first, axis=0, out=flat, mode="clip")
                return
            if len(here):
                part = spare[: len(here)]
                segment.take(index[here] - first, axis=0, out=part, mode="clip")
                flat[here] = part
                filled += len(here)
        if filled != len(index):
            raise IndexError(f"{len(index) - filled} of {len(index)} frames are not there")

    def _rewind(self, count: int) -> None:
        """Forget the frames from ``count`` on, which belong to an episode that was not added."""
        if self._end <= count:
            return
        if self._kind == "memory":
            first = self.segments[-1][0]
            self._scratch.used -= (self._end - max(first, count)) * self.frame_bytes
        kept = tuple(one for one in self.segments if one[0] < count)
        if len(kept) < len(self.segments):
            self._kind, self._file = "fixed", None
        if kept and self._kind == "fixed":
            first, segment = kept[-1]
            kept = (*kept[:-1], (first, segment[: count - first]))
        self.segments, self._end = kept, count

    def _close(self, count: int) -> None:
        """Write no more to the last segment."""
        if self._kind != "fixed" and self.segments:
            first, segment = self.segments[-1]
            self.segments = (*self.segments[:-1], (first, segment[: count - first]))
        self._kind, self._file = "fixed", None

    def _room(self, count: int, more: int) -> int:
        """How many frames, one at least and ``more`` at most, the last segment has room for."""
        left = self._scratch.left // self.frame_bytes
        if self._kind == "fixed" and left and (memory := _reserve(
            min(left, _LARGEST_RESERVE // self.frame_bytes) * self.frame_bytes,
            min(left, more) * self.frame_bytes,
        )) is not None:
            size = len(memory) // self.frame_bytes
            self._add_segment(count, memory, size)
            self._kind = "memory"
        if self._kind == "memory":
            first, segment = self.segments[-1]
            room = min(first + len(segment) - count, left, more)
            if room > 0:
                return room
            self._close(count)
        if self._file is None:
            self._file, self._kind = ScratchFile(self._scratch), "file"
            self._add_segment(count, self._file.bytes(0), 0)
        first, segment = self.segments[-1]
        if count + more > first + len(segment):
            raw = self._file.bytes((count + more - first) * self.frame_bytes)
            self._add_segment(first, raw, len(raw) // self.frame_bytes, in_place_of=1)
        return more

    def _add_segment(
        self, first: int, raw: NDArray[np.uint8], size: int, in_place_of: int = 0
    ) -> None:
        frames = raw[: size * self.frame_bytes].reshape(size, self.frame_bytes)
        # One assignment: a reader never sees fewer frames than there were.
        kept = self.segments[: len(self.segments) - in_place_of]
        self.segments = (*kept, (first, frames))


def _reserve(size: int, least: int) -> NDArray[np.uint8] | None:
    """Addresses for ``size`` bytes, of which only what is written takes memory.

    So an array can grow without being copied. Fewer bytes, but ``least``, where the system does
    not give away that many addresses; None if not even those.
    """
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    while size >= max(least, 1):
        try:
            memory = mmap.mmap(-1, size, flags=flags)
        except (OSError, ValueError):
            size //= 2
            continue
        if size > _HUGE_PAGES_FROM and hasattr(mmap, "MADV_HUGEPAGE"):
            # Fewer address translations; not at the start, where it would round up too much.
            memory.madvise(mmap.MADV_HUGEPAGE, _HUGE_PAGES_FROM, size - _HUGE_PAGES_FROM)
        return np.frombuffer(memory, np.uint8)
    return None


class Recycler:
    """New arrays in memory that was used before, which spares the system's clearing of pages.

    Memory is used again once nothing refers to any array in it, as the interpreter's reference
    counts tell: no other array, tensor or buffer that shares it. So whoever keeps a batch keeps it
    unchanged.
    """

    def __init__(self, most: int = 12) -> None:
        self._most = most
        self._buffers: list[NDArray[np.uint8]] = []
        self._lock = threading.Lock()

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """An array of this shape, C-contiguous; its values are arbitrary."""
        kind = np.dtype(dtype)
        size = kind.itemsize
        for length in shape:
            size *= length
        if size < _SMALLEST_RECYCLED:
            return np.empty(shape, kind)
        with self._lock:
            return self._find(size).view(kind).reshape(shape)

    def _find(self, size: int) -> NDArray[np.uint8]:
        unused = -1
        for i in range(len(self._buffers)):
            if sys.getrefcount(self._buffers[i]) == _UNUSED:
                if self._buffers[i].nbytes == size:
                    return self._buffers[i]
                unused = i
        buffer = np.empty(size, np.uint8)
        if len(self._buffers) < self._most:
            self._buffers.append(buffer)
        elif unused >= 0:
            self._buffers[unused] = buffer
        return buffer
