"""How old a message may be, and from when on an episode has all that it needs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from robot_rl.data.episodes import IMAGES, OBSERVATION
from robot_rl.data.importers import resample
from robot_rl.data.importers.mapping import Camera, Mapping, Signal
from robot_rl.data.importers.resample import Span, Stamps
from robot_rl.data.importers.signals import Recorded, Series, Track


@dataclass(frozen=True)
class Limits:
    """The oldest [ns] a message may be, and what it may be where it is from before the episode."""

    late_ns: float
    first_ns: float


def limits(
    what: Signal | Camera, seen: Series | Track, control_period_ns: int, gap_s: float
) -> Limits:
    """``max_age_s`` where it is given; else twice the control period or the topic's own, for
    cameras three of their periods; none for a topic of fewer than three messages. What was said
    before a silence that parts episodes (``gap_s``) belongs to another one, unless
    ``max_age_s`` says so."""
    if what.max_age_s:
        return Limits(what.max_age_s * 1e9, what.max_age_s * 1e9)
    if len(seen.stamps) < 3:
        return Limits(np.inf, np.inf)
    if isinstance(what, Camera):
        late = 3.0 * seen.period_ns
    else:
        late = 2.0 * max(control_period_ns, seen.period_ns)
    return Limits(late, min(late, gap_s * 1e9) if gap_s else late)


def states(mapping: Mapping) -> Iterator[tuple[str, Signal | Camera]]:
    """Everything that a state is made of, with the key whose time stamps it gives (or "")."""
    for signal in mapping.state:
        yield OBSERVATION, signal
    for signal in mapping.goal.achieved if mapping.goal is not None else ():
        yield "", signal
    for key, (rows, parts) in mapping.extra.items():
        for signal in parts if rows == "states" else ():
            yield key, signal
    for camera in mapping.cameras:
        yield f"{IMAGES}{camera.name}", camera


def of(recorded: Recorded, what: Signal | Camera) -> Series | Track:
    """What was recorded of a part."""
    if isinstance(what, Camera):
        return recorded.tracks[what.name]
    return recorded.series[what]


@dataclass(frozen=True)
class Start:
    """When an episode can begin: at ``at_ns`` (None: never), having waited for ``topics``."""

    at_ns: int | None
    topics: tuple[Signal | Camera, ...]


def first_complete(
    mapping: Mapping, recorded: Recorded, candidates: Stamps, control_period_ns: int
) -> Start:
    """The first candidate at which every part of the state has a message that is recent enough.

    With its start marked, an episode may begin with what was said shortly before.
    """
    whole = np.ones(len(candidates), np.bool_)
    each: list[tuple[Signal | Camera, NDArray[np.bool_]]] = []
    for _, what in states(mapping):
        seen = of(recorded, what)
        there = resample.fresh(seen.stamps, candidates,
                               limits(what, seen, control_period_ns, mapping.episodes.gap_s
                                      ).first_ns)
        each.append((what, there))
        whole &= there
    if not whole.any():
        never = [what for what, there in each if not there.any()]
        return Start(None, tuple(never or [what for what, _ in each]))
    at = int(np.argmax(whole))
    waited = [what for what, there in each if at and not there[at - 1]]
    return Start(int(candidates[at]), tuple(waited))


def moments(mapping: Mapping, recorded: Recorded, span: Span) -> Stamps:
    """When an episode might become complete: at its beginning, or with a message of the state; or
    at the messages of ``align``."""
    if mapping.align is not None:
        within = _within(recorded.series[mapping.align].stamps, span)
        if len(within):
            return np.unique(within)
    parts = [_within(of(recorded, what).stamps, span) for _, what in states(mapping)]
    return np.unique(np.concatenate([np.array([span[0]], np.int64), *parts]))


def _within(stamps: Stamps, span: Span) -> Stamps:
    first, last = np.searchsorted(stamps, np.array([span[0], span[1] + 1]))
    return stamps[first:last]
