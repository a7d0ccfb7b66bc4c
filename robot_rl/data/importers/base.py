"""What every importer is: a source that is opened, says what it is of, and yields episodes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from robot_rl.data.episodes import DatasetInfo, Episode
from robot_rl.errors import InvalidInputError

# No importer makes an array, or unpacks a file, larger than this many bytes.
MAX_BYTES = 2 << 30


@dataclass(frozen=True)
class ImportOptions:
    """How to read a source.

    ``rate_hz`` is the control rate to resample to (0: as recorded), ``mapping`` the parsed YAML
    that says which of the source's parts become which keys, ``task`` what the data is of.
    """

    rate_hz: float = 0.0
    mapping: dict[str, Any] = field(default_factory=dict)
    task: str = ""


class EpisodeSource(Protocol):
    """Episodes from elsewhere, one at a time, so that a large source needs little memory.

    ``count`` is how many there are, where that is known before they are read; ``notes`` says what
    was left out or made up (late messages, missing keys), complete once every episode was read.
    """

    info: DatasetInfo
    count: int | None
    notes: list[str]

    def __iter__(self) -> Iterator[Episode]: ...

    def close(self) -> None: ...


def check_apart(source: str | Path | None, dest: str | Path, what: str) -> None:
    """Refuse to write into what is being read, or around it.

    Raises:
        InvalidInputError: one of the two is the other, or lies in it.
    """
    if source is None:
        return
    inner, outer = Path(os.path.realpath(dest)), Path(os.path.realpath(source))
    for a, b, how in ((inner, outer, "inside"), (outer, inner, "around")):
        if a == b or b in a.parents:
            where = "the same as" if a == b else how
            raise InvalidInputError(f"{what}: the destination {dest} is {where} the source "
                                    f"{source}; choose a folder apart from it")


def clear_stale(dest: Path, kind: str) -> None:
    """Remove the folders ``.<name>.<process>.<kind>`` beside ``dest`` whose process is gone: what
    was killed without a chance to tidy up left them."""
    if not dest.parent.is_dir() or not Path("/proc/self").exists():
        return
    start, end = f".{dest.name}.", f".{kind}"
    for entry in dest.parent.iterdir():
        number = entry.name.removeprefix(start).removesuffix(end)
        ours = entry.name == f"{start}{number}{end}" and number.isdecimal()
        if ours and not Path(f"/proc/{number}").exists():
            shutil.rmtree(entry, ignore_errors=True)
