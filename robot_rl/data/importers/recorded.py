"""The JSON record that an exported bag carries for each episode: what messages cannot say exactly.

Stamps in messages are whole nanoseconds and frames lie where they were first seen; the record has
the episode's own stamps as they were, which frame each state saw, and the metadata.
"""

from __future__ import annotations

import bisect
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robot_rl.data.episodes import Episode
from robot_rl.data.importers.resample import Span
from robot_rl.data.importers.signals import Recorded
from robot_rl.errors import InvalidInputError


def make_record(episode: Episode, number: int) -> dict[str, Any]:
    """The record of an episode; every float64 comes back from its JSON to the bit."""
    return {
        "episode": number,
        "steps": len(episode),
        "metadata": episode.metadata,
        "stamp_s": None if episode.stamp_s is None else episode.stamp_s.tolist(),
        "stamps_s": {key: value.tolist() for key, value in episode.stamps_s.items()},
        "images": {
            name: {"index": images.index.tolist(), "stamp_s": images.stamp_s.tolist()}
            for name, images in episode.images.items()
        },
    }


def take_record(recorded: Recorded, span: Span) -> dict[str, Any]:
    """The record of the episode in ``span``.

    Raises:
        InvalidInputError: there is none.
    """
    at = bisect.bisect_left(recorded.records, span[0], key=lambda entry: entry[0])
    if at < len(recorded.records) and recorded.records[at][0] <= span[1]:
        return dict(recorded.records[at][1])
    raise InvalidInputError(f"episodes.record: none for the episode at {span[0] / 1e9:.3f} s")


def read_metadata(record: dict[str, Any]) -> dict[str, Any]:
    """The metadata of a record."""
    return _object(record, "metadata")


def apply_record(episode: Episode, record: dict[str, Any]) -> None:
    """Give an episode the stamps, frame indices and metadata of its record.

    Raises:
        InvalidInputError: the record is not one of this episode.
    """
    steps = len(episode)
    if record.get("steps") != steps:
        raise InvalidInputError(f"episodes.record: says {record.get('steps')!r} steps, there are "
                                f"{steps}")
    episode.metadata = read_metadata(record)
    stamps = record.get("stamp_s")
    episode.stamp_s = None if stamps is None else _floats(stamps, steps + 1, "stamp_s")
    parts = _object(record, "stamps_s")
    episode.stamps_s = {str(k): _floats(v, steps + 1, f"stamps_s {k}") for k, v in parts.items()}
    cameras = _object(record, "images")
    for name, images in episode.images.items():
        said = cameras.get(name)
        if not isinstance(said, dict):
            raise InvalidInputError(f"episodes.record: nothing about images.{name}")
        images.stamp_s = _floats(said.get("stamp_s"), len(images.frames), f"images {name}")
        index = said.get("index")
        if not isinstance(index, list) or len(index) != steps + 1 or not all(
            type(i) is int and 0 <= i < len(images.frames) for i in index
        ):
            raise InvalidInputError(f"episodes.record: images {name}: index should be "
                                    f"{steps + 1} numbers below {len(images.frames)}")
        images.index = np.array(index, np.int64)


def _object(record: dict[str, Any], key: str) -> dict[Any, Any]:
    value = record.get(key, {})
    if not isinstance(value, dict):
        raise InvalidInputError(f"episodes.record: {key} is not a JSON object")
    return value


def _floats(value: Any, count: int, where: str) -> NDArray[np.float64]:
    if not isinstance(value, list) or len(value) != count or not all(
        type(x) in (int, float) for x in value
    ):
        raise InvalidInputError(f"episodes.record: {where} should be {count} numbers")
    return np.array(value, np.float64)
