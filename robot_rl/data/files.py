"""Files that are either whole or not there."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from robot_rl.errors import InvalidInputError


def write_atomically(path: Path, content: bytes) -> None:
    """Write beside ``path``, sync and rename: a reader sees the old file or the new one."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(beside, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
        sync_folder(path.parent)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise InvalidInputError(f"cannot write {path}: {error.strerror or error}") from None


def sync_folder(folder: Path) -> None:
    """Make a rename in ``folder`` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, whole or not at all."""
    write_atomically(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def read_json(path: Path, what: str) -> Any:
    """Read a JSON file; ``what`` names it in errors.

    Raises:
        InvalidInputError: it is missing, unreadable or not JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise InvalidInputError(f"{what}: {path} does not exist") from None
    except OSError as error:
        raise InvalidInputError(f"{what}: cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"{what}: {path} is not valid JSON ({error})") from None


def new_folder(path: Path, what: str, *, overwrite: bool = False) -> Path:
    """Make the folder ``path``; refuse one that holds anything.

    ``overwrite`` sets what was there aside as ``<name>.old`` (replacing an earlier one) rather
    than deleting it.

    Raises:
        InvalidInputError: it is in use or cannot be made.
    """
    try:
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            if not overwrite:
                raise InvalidInputError(
                    f"{what}: {path} is already there and not empty; choose another, or give "
                    "--overwrite to set it aside"
                )
            _set_aside(path)
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK | os.X_OK):
            raise InvalidInputError(f"{what}: no permission to write in {path}")
    except OSError as error:
        raise InvalidInputError(f"{what}: cannot use {path}: {error.strerror}") from None
    return path


def _set_aside(path: Path) -> None:
    old = path.with_name(path.name + ".old")
    if old.is_dir() and not old.is_symlink():
        shutil.rmtree(old)
    elif old.exists():
        old.unlink()
    path.rename(old)
