"""What every importer is: a source that is opened, says what it is of, and yields episodes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from robot_rl.data.episodes import DatasetInfo, Episode

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
