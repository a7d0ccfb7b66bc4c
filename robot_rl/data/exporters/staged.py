"""A folder that is either written whole or not there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from robot_rl.data.episodes import DatasetInfo, Episode
from robot_rl.data.files import new_folder, sync_folder
from robot_rl.data.importers.base import check_apart, clear_stale
from robot_rl.errors import InvalidInputError


class EpisodeLog(Protocol):
    """Episodes that can be read by number, as ``open_log`` gives them."""

    @property
    def info(self) -> DatasetInfo: ...

    def __len__(self) -> int: ...

    def read(self, which: int, /, *, images: bool = True) -> Episode: ...


@contextmanager
def staged(
    dest: Path, what: str, *, overwrite: bool, source: str | Path | None = None
) -> Iterator[Path]:
    """A folder to fill, which becomes ``dest`` when all went well and vanishes when not.

    With ``overwrite``, what was at ``dest`` is set aside as ``<name>.old`` only then. What a
    killed process left of filling ``dest`` is removed.

    Args:
        source: what is being read, which must lie apart from ``dest``.

    Raises:
        InvalidInputError: ``dest`` is in use, within ``source`` or around it, or the disk refuses.
    """
    dest = Path(os.path.abspath(dest))
    check_apart(source, dest, what)
    clear_stale(dest, "part")
    made = not dest.exists()
    if not overwrite or made:
        new_folder(dest, what)
    beside = dest.with_name(f".{dest.name}.{os.getpid()}.part")
    try:
        if beside.exists():
            shutil.rmtree(beside)
        beside.mkdir()
        yield beside
        _sync(beside)
        new_folder(dest, what, overwrite=overwrite)
        os.replace(beside, dest)
        sync_folder(dest.parent)
    except BaseException as error:
        shutil.rmtree(beside, ignore_errors=True)
        if made and dest.is_dir() and not any(dest.iterdir()):
            dest.rmdir()
        if isinstance(error, OSError):
            raise InvalidInputError(
                f"{what}: cannot write {dest}: {error.strerror or error}") from None
        raise


def _sync(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_dir():
            sync_folder(path)
        else:
            with open(path, "rb") as file:
                os.fsync(file.fileno())
    sync_folder(folder)
