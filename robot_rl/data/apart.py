"""Demonstrations that were not accepted: a dataset of their own in ``DIR/rejected``."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

from robot_rl.data.episode_file import read_records
from robot_rl.data.log import EPISODE_RECORD, list_episodes
from robot_rl.errors import InvalidInputError

REJECTED = "rejected"
VERDICT = "verdict"


def kept_apart(path: Path) -> dict[str, int]:
    """How many episodes beside the dataset ``path`` were ``rejected`` or ``aborted``; by what
    their metadata says, ``unknown`` where it says nothing."""
    folder = path / REJECTED
    if not (folder / "dataset.json").is_file():
        return {}
    return dict(Counter(_verdict(file.path) for file in list_episodes(folder)))


def _verdict(file: Path) -> str:
    try:
        with open(file, "rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            metadata: Any = read_records(stream, size, (EPISODE_RECORD,))[EPISODE_RECORD]
        return str(metadata[VERDICT])
    except (InvalidInputError, OSError, KeyError, TypeError):
        return "unknown"
