"""Files that are either whole or not there, and the order in which they reach the disk.

Everything that the data rooms change on the disk goes through here, so that one test can cut the
power at every write, sync and rename.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import time
import weakref
from pathlib import Path
from typing import Any

from robot_rl.errors import InvalidInputError, StorageError

_LARGEST_JSON = 64 << 20


class AppendedFile:
    """A new file that grows at its end; what :meth:`write` took survives the process.

    Args:
        path: must not be there yet.
        named: what errors call it instead.

    Raises:
        StorageError: from every method, when the disk refuses; it names the file.
    """

    def __init__(self, path: Path, named: Path | None = None) -> None:
        self.path = named or path
        self._size = 0
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            self._handle = os.open(path, flags, 0o644)
        except OSError as error:
            raise storage_error(self.path, error) from None

    def write(self, data: Any) -> int:
        """Append all of ``data``."""
        view = memoryview(data).cast("B")
        try:
            while view:
                view = view[os.write(self._handle, view) :]
        except OSError as error:
            raise storage_error(self.path, error) from None
        count = memoryview(data).nbytes
        self._size += count
        return count

    def tell(self) -> int:
        """Bytes so far."""
        return self._size

    def flush(self) -> None:
        """Nothing is held back."""

    def sync(self) -> None:
        """Return when everything is on the disk."""
        try:
            os.fsync(self._handle)
        except OSError as error:
            raise storage_error(self.path, error) from None

    def close(self) -> None:
        """Close it, without syncing."""
        if self._handle >= 0:
            handle, self._handle = self._handle, -1
            with contextlib.suppress(OSError):  # what counts was synced
                os.close(handle)


class Lock:
    """Held by the one process that writes into a folder; gone with the process.

    A process that is forked from it does not hold it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        while not self._open():
            pass
        _LOCKS.add(self)
        with contextlib.suppress(OSError):  # only a help for whoever is refused
            os.ftruncate(self._handle, 0)
            os.pwrite(self._handle, f"{os.getpid()}\n".encode(), 0)

    def _open(self) -> bool:
        """Whether the lock was taken; not if its file was deleted meanwhile."""
        try:
            self._handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise storage_error(self.path, error) from None
        try:
            self._take()
            if os.fstat(self._handle).st_ino == os.stat(self.path).st_ino:
                return True
        except FileNotFoundError:
            pass
        except BaseException:
            self.release()
            raise
        self.release()
        return False

    def _take(self) -> None:
        # A reader that looks whether somebody writes holds the lock, shared, for a moment.
        for _ in range(1000):
            try:
                if _try_lock(self._handle, fcntl.LOCK_EX):
                    return
                if not _try_lock(self._handle, fcntl.LOCK_SH):
                    break
                fcntl.flock(self._handle, fcntl.LOCK_UN)
            except OSError as error:
                raise storage_error(self.path, error) from None
            time.sleep(0.0005)
        owner = os.read(self._handle, 32).decode(errors="replace").strip()
        raise InvalidInputError(
            f"{self.path.parent} is being recorded into by another process"
            f"{f' (number {owner})' if owner.isdigit() else ''}"
        )

    @staticmethod
    def is_held(path: Path) -> bool:
        """Whether a process holds the lock at ``path``."""
        try:
            handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            return not _try_lock(handle, fcntl.LOCK_SH)
        except OSError:
            return False  # such a folder cannot be locked
        finally:
            os.close(handle)

    @property
    def held(self) -> bool:
        """Whether it was neither released nor left behind by a fork."""
        return self._handle >= 0

    def release(self) -> None:
        """Let others write."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def __del__(self) -> None:
        if getattr(self, "_handle", -1) >= 0:
            self.release()


# A forked process would keep the lock when its parent is killed.
_LOCKS: weakref.WeakSet[Lock] = weakref.WeakSet()


def _leave_locks() -> None:
    for lock in list(_LOCKS):
        lock.release()


os.register_at_fork(after_in_child=_leave_locks)


def _try_lock(handle: int, how: int) -> bool:
    try:
        fcntl.flock(handle, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def storage_error(path: Path, error: OSError) -> StorageError:
    """What the disk said, with what to do where that is known."""
    hints = {errno.ENOSPC: "make room", errno.EROFS: "choose another folder",
             errno.EACCES: "choose another folder", errno.EDQUOT: "make room"}
    hint = hints.get(error.errno or 0)
    return StorageError(
        f"cannot write {path}: {error.strerror or error}{f'; {hint}' if hint else ''}"
    )


def write_atomically(path: Path, content: bytes) -> None:
    """Write beside ``path``, sync and rename: a reader sees the old file or the new one."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        remove(beside)  # what an earlier process of this number left
        file = AppendedFile(beside, path)
        try:
            file.write(content)
            file.sync()
        finally:
            file.close()
        try:
            os.replace(beside, path)
            sync_folder(path.parent)
        except OSError as error:
            raise storage_error(path, error) from None
    except StorageError:
        with contextlib.suppress(StorageError):
            remove(beside)
        raise


def publish(part: Path, path: Path) -> None:
    """Give a synced file its final name; when this returns, the name is on the disk too.

    Raises:
        StorageError: the disk refused; the file has its former name, if it can be helped.
    """
    try:
        os.rename(part, path)
        try:
            sync_folder(path.parent)
        except OSError:
            with contextlib.suppress(OSError):
                os.rename(path, part)
            raise
    except OSError as error:
        raise storage_error(path, error) from None


def remove(path: Path, *, sync: bool = False) -> None:
    """Delete a file, if it is there; with ``sync`` it stays deleted after a power cut."""
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
            if sync:
                sync_folder(path.parent)
    except OSError as error:
        raise storage_error(path, error) from None


def keep_also(path: Path, folder: Path) -> Path:
    """Let ``folder`` hold the file too, under its name or one like it that is free.

    Where the disk has no hard links it is copied; a call that was interrupted can be repeated.
    """
    make_folder(folder)
    target = _free(folder, path.name, path)
    if target.exists():
        return target
    try:
        try:
            os.link(path, target)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS):
                raise
            _copy(path, target)
        sync_folder(folder)
    except OSError as error:
        raise storage_error(target, error) from None
    return target


def _copy(path: Path, target: Path) -> None:
    beside = target.with_name(f".{target.name}.copy.part")
    remove(beside)
    with open(path, "rb") as source:
        file = AppendedFile(beside, target)
        try:
            while block := source.read(8 << 20):
                file.write(block)
            file.sync()
        finally:
            file.close()
    os.rename(beside, target)


def _free(folder: Path, name: str, same: Path) -> Path:
    """A path in ``folder`` that is free, or already the file ``same``."""
    target, count = folder / name, 1
    while target.exists() and not _is_same(target, same):
        target, count = folder / f"{count}-{name}", count + 1
    return target


def _is_same(one: Path, two: Path) -> bool:
    first, second = one.stat(), two.stat()
    if (first.st_dev, first.st_ino) == (second.st_dev, second.st_ino):
        return True
    if first.st_size != second.st_size:
        return False
    with open(one, "rb") as a, open(two, "rb") as b:
        while block := a.read(8 << 20):
            if block != b.read(8 << 20):
                return False
    return True


def sync_file(path: Path) -> None:
    """Make what a process wrote into a file, which may be dead, survive a power cut."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
        sync_folder(path.parent)
    except OSError as error:
        raise storage_error(path, error) from None


def move(path: Path, folder: Path, name: str) -> Path:
    """Move a file into ``folder`` under ``name``, or one like it that is free."""
    try:
        make_folder(folder)
        target, count = folder / name, 1
        while target.exists():
            target, count = folder / f"{count}-{name}", count + 1
        os.rename(path, target)
        sync_folder(folder)
        sync_folder(path.parent)
    except OSError as error:
        raise storage_error(path, error) from None
    return target


def make_folder(path: Path) -> None:
    """Make a folder that survives a power cut; its parent is there."""
    try:
        if not path.is_dir():
            os.mkdir(path)
        sync_folder(path.parent)
    except OSError as error:
        raise storage_error(path, error) from None


def sync_folder(folder: Path) -> None:
    """Make a rename in ``folder`` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network disks cannot sync a folder
            raise
    finally:
        os.close(handle)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, whole or not at all."""
    try:
        text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInputError(f"{path} cannot be written as JSON: {error}") from None
    if len(text) > _LARGEST_JSON:
        raise InvalidInputError(f"{path} would take {len(text)} bytes, the limit is "
                                f"{_LARGEST_JSON}")
    write_atomically(path, text.encode())


def read_json(path: Path, what: str) -> Any:
    """Read a JSON file; ``what`` names it in errors.

    Raises:
        InvalidInputError: it is missing, unreadable, larger than 64 MiB or not JSON.
    """
    try:
        size = path.stat().st_size
        if size > _LARGEST_JSON:
            raise InvalidInputError(
                f"{what}: {path} takes {size} bytes, the limit is {_LARGEST_JSON}"
            )
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise InvalidInputError(f"{what}: {path} does not exist") from None
    except OSError as error:
        raise InvalidInputError(f"{what}: cannot read {path}: {error.strerror}") from None
    except InvalidInputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"{what}: {path} is not valid JSON ({error})") from None


def new_folder(path: Path, what: str, *, overwrite: bool = False) -> Path:
    """Make the folder ``path``; refuse one that holds anything.

    ``overwrite`` sets what was there aside as ``<name>.old`` (or ``.old2`` and so on, where that
    is taken) rather than deleting it. What a crash left of making the folder counts as nothing.

    Raises:
        InvalidInputError: it is in use or cannot be made.
    """
    if path.is_dir() and any(Lock.is_held(lock) for lock in path.glob(".*.lock")):
        raise InvalidInputError(f"{what}: {path} is being recorded into by another process")
    try:
        if path.exists() and (not path.is_dir() or not _unused(path)):
            if not overwrite:
                raise InvalidInputError(
                    f"{what}: {path} is already there and not empty; choose another, or give "
                    "--overwrite to set it aside"
                )
            _set_aside(path)
        _make_folders(path)
        if not os.access(path, os.W_OK | os.X_OK):
            raise InvalidInputError(f"{what}: no permission to write in {path}")
    except OSError as error:
        raise InvalidInputError(f"{what}: cannot use {path}: {error.strerror}") from None
    return path


def _unused(path: Path) -> bool:
    entries = list(path.iterdir())
    for entry in entries:
        if _is_folder(entry):
            if any(entry.iterdir()):
                return False
        elif not (entry.name.startswith(".") and entry.name.endswith((".part", ".lock"))):
            return False
    for entry in entries:
        if _is_folder(entry):
            os.rmdir(entry)
        elif entry.name.endswith(".lock"):
            lock = Lock(entry)
            os.unlink(entry)
            lock.release()
        else:
            os.unlink(entry)
    return True


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _make_folders(path: Path) -> None:
    """Make a folder and those above it, each of which survives a power cut."""
    missing, above = [path], path.parent
    while not above.exists() and above != above.parent:
        missing.append(above)
        above = above.parent
    for folder in reversed(missing):
        there = folder.is_dir()
        if not there:
            os.mkdir(folder)
        try:
            sync_folder(folder.parent)
        except PermissionError:
            if not there:  # somebody else made it
                raise


def _set_aside(path: Path) -> None:
    old, count = path.with_name(f"{path.name}.old"), 1
    while old.exists() or old.is_symlink():
        count += 1
        old = path.with_name(f"{path.name}.old{count}")
    os.rename(path, old)
    sync_folder(path.parent)
