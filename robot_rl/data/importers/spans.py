"""Where the episodes of a bag begin and end."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from robot_rl.data.importers.mapping import Mapping
from robot_rl.data.importers.resample import Span, common_spans, spans_between_gaps
from robot_rl.data.importers.signals import Recorded, Series
from robot_rl.errors import InvalidInputError

MAX_EPISODES = 1_000_000
_ANY = "any"


def find_spans(mapping: Mapping, recorded: Recorded) -> list[Span]:
    """The spans [first, last] ns of the episodes, in order.

    Raises:
        InvalidInputError: the markers never come, or cannot be told from other messages.
    """
    ends = [s.stamps[[0, -1]] for s in recorded.series.values() if len(s.stamps)]
    ends += [t.stamps[[0, -1]] for t in recorded.tracks.values() if len(t.stamps)]
    whole = (min(int(e[0]) for e in ends), max(int(e[1]) for e in ends))
    boundaries = mapping.episodes
    if boundaries.start is not None:
        spans = _marked(mapping, recorded, whole)
    elif boundaries.gap_s:
        spans = [whole]
        seen = [recorded.series[s].stamps for s in mapping.state]
        seen = seen or [track.stamps for track in recorded.tracks.values()]
        for stamps in seen:
            spans = common_spans(spans, spans_between_gaps(stamps, round(boundaries.gap_s * 1e9)))
    else:
        spans = [whole]
    if len(spans) > MAX_EPISODES:
        raise InvalidInputError(f"episodes: {len(spans)} of them, the limit is {MAX_EPISODES}")
    return spans


def _marked(mapping: Mapping, recorded: Recorded, whole: Span) -> list[Span]:
    boundaries = mapping.episodes
    assert boundaries.start is not None
    begin = recorded.series[boundaries.start]
    starts = begin.stamps[_starts(begin)]
    if not len(starts) and boundaries.start.optional:
        starts = np.array(whole[:1], np.int64)
    if not len(starts):
        raise InvalidInputError(
            f"episodes.start: {boundaries.start.topic} never says that one begins "
            f"({len(begin.stamps)} messages)"
        )
    # One that is not stopped lasts until the next begins.
    lasts = np.append(starts[1:] - 1, whole[1])
    if boundaries.stop is not None:
        end = recorded.series[boundaries.stop]
        stops = end.stamps[_stops(end)]
        at = np.searchsorted(stops, starts, side="right")
        found = np.append(stops, np.iinfo(np.int64).max)[at]
        lasts = np.minimum(lasts, found)
    return [(int(a), int(b)) for a, b in zip(starts, lasts, strict=True) if b > a]


def _starts(series: Series) -> NDArray[np.bool_]:
    wanted = series.signal.equals
    if wanted == _ANY or series.event:
        return np.ones(len(series.stamps), np.bool_)
    if wanted is None and not _is_flag(series):
        # A number or name of the episode: each new one begins one.
        return series.changes()
    return _risen(series.flags)


def _stops(series: Series) -> NDArray[np.bool_]:
    wanted = series.signal.equals
    if wanted == _ANY or series.event or not len(series.stamps):
        return np.ones(len(series.stamps), np.bool_)
    if wanted is None:
        if not _is_flag(series):
            raise InvalidInputError(f"episodes.stop: say with equals: which value of "
                                    f"{series.signal.topic} ends an episode")
        return _risen(~series.flags)
    return _risen(series.flags)


def _is_flag(series: Series) -> bool:
    return not series.is_text and series.values.dtype.kind == "b"


def _risen(flags: NDArray[np.bool_]) -> NDArray[np.bool_]:
    before = np.concatenate([[False], flags[:-1]])
    return np.asarray(flags & ~before)
