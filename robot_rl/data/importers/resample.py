"""Putting messages that came when they came onto the even ticks of a controller.

Everything here is a pure function of sorted stamps [ns, int64]. Holding looks only backwards: what
a tick sees was there at the tick. Linear interpolation looks one message ahead, and says so.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robot_rl.errors import InvalidInputError

Stamps = NDArray[np.int64]
Span = tuple[int, int]
# An episode of more ticks is a mistake in the stamps: at 10 Hz this is four and a half days.
MAX_TICKS = 4_000_000


def make_ticks(start_ns: int, end_ns: int, rate_hz: float) -> Stamps:
    """The ticks start + k / rate in [start, end], each rounded to the nearest ns by itself, so
    that errors do not add up.

    Raises:
        InvalidInputError: there are more than ``MAX_TICKS``, or the rate is not positive.
    """
    if not 0.0 < rate_hz < 1e6:
        raise InvalidInputError(f"rate_hz is {rate_hz}, should be positive and below 1e6")
    rate = Fraction(rate_hz).limit_denominator(1000)
    if rate <= 0:
        raise InvalidInputError(f"rate_hz is {rate_hz}, should be at least 0.001")
    count = int((end_ns - start_ns) * rate / 10**9) + 1 if end_ns >= start_ns else 0
    if count > MAX_TICKS:
        raise InvalidInputError(
            f"an episode from {start_ns / 1e9:.3f} s to {end_ns / 1e9:.3f} s has {count} ticks at "
            f"{rate_hz} Hz, the limit is {MAX_TICKS}; are all stamps of one clock?"
        )
    step, per = 10**9 * rate.denominator, rate.numerator
    ticks = start_ns + (2 * np.arange(count, dtype=np.int64) * step + per) // (2 * per)
    return np.asarray(ticks[ticks <= end_ns], np.int64)


def newest(stamps: Stamps, ticks: Stamps) -> Stamps:
    """For each tick the last message at or before it; -1 where there is none."""
    return np.asarray(np.searchsorted(stamps, ticks, side="right") - 1, np.int64)


def first_within(stamps: Stamps, ticks: Stamps, ends: Stamps) -> Stamps:
    """For each step [tick, end) the first message in it, else the last before it; -1 if none.

    This is how commands are read: the first one in a step is the answer to the state at its tick,
    and a command that was not replaced is still in force. One at ``end`` or later may answer to
    the next state, so it is never used.
    """
    first = np.searchsorted(stamps, ticks, side="left")
    inside = np.searchsorted(stamps, ends, side="left") > first
    return np.asarray(np.where(inside, first, first - 1), np.int64)


def last_within(stamps: Stamps, ticks: Stamps, ends: Stamps) -> Stamps:
    """For each step [tick, end) the last message before its end; -1 if there is none."""
    return np.asarray(np.searchsorted(stamps, ends, side="left") - 1, np.int64)


def count_within(stamps: Stamps, ticks: Stamps, ends: Stamps) -> NDArray[np.int64]:
    """How many messages came in each step (tick, end]."""
    return np.asarray(newest(stamps, ends) - newest(stamps, ticks), np.int64)


def sum_within(stamps: Stamps, values: NDArray[Any], ticks: Stamps, ends: Stamps) -> (
    NDArray[np.float64]
):
    """The sum of the values (N,) whose messages came in each step (tick, end]."""
    before = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    return np.asarray(before[newest(stamps, ends) + 1] - before[newest(stamps, ticks) + 1])


def ages_s(stamps: Stamps, index: Stamps, ticks: Stamps) -> NDArray[np.float64]:
    """How old [s] the message that each tick uses is; inf where it uses none. A command that came
    within its step is younger than 0."""
    if not len(stamps):
        return np.full(len(ticks), np.inf)
    age = (ticks - stamps[np.maximum(index, 0)]) / 1e9
    return np.where(index < 0, np.inf, age)


def fresh(stamps: Stamps, ticks: Stamps, limit_ns: float) -> NDArray[np.bool_]:
    """At which ticks the newest message is at most ``limit_ns`` old; nowhere without messages."""
    if not len(stamps):
        return np.zeros(len(ticks), np.bool_)
    index = newest(stamps, ticks)
    ages = ticks - stamps[np.maximum(index, 0)]
    return np.asarray((index >= 0) & (ages <= limit_ns * (1 + 1e-9)))


def linear(stamps: Stamps, values: NDArray[Any], ticks: Stamps) -> NDArray[np.float64]:
    """Values (N, w) between the message before and the one after each tick, (ticks, w); outside
    the messages the nearest one. It uses a message that came after the tick."""
    if not len(stamps):
        raise InvalidInputError("there is nothing to interpolate between")
    before = np.clip(newest(stamps, ticks), 0, len(stamps) - 1)
    after = np.minimum(before + 1, len(stamps) - 1)
    gap = np.maximum(stamps[after] - stamps[before], 1)
    part = np.clip((ticks - stamps[before]) / gap, 0.0, 1.0)[:, None]
    old, new = values[before].astype(np.float64), values[after].astype(np.float64)
    return np.asarray(np.where(part == 0.0, old, old + part * (new - old)))


def in_order(stamps: Stamps) -> tuple[Stamps, int]:
    """The order that sorts messages by stamp, those of one stamp as they came, and how many came
    after a later one."""
    late = int((stamps < np.maximum.accumulate(stamps)).sum()) if len(stamps) else 0
    return np.argsort(stamps, kind="stable"), late


def repeated(stamps: Stamps, values: NDArray[Any]) -> NDArray[np.bool_]:
    """Which of the sorted messages repeat the one before them, in stamp and in every value."""
    again = np.zeros(len(stamps), np.bool_)
    if len(stamps) > 1:
        same = values[1:].reshape(len(stamps) - 1, -1) == values[:-1].reshape(len(stamps) - 1, -1)
        again[1:] = (stamps[1:] == stamps[:-1]) & same.all(axis=1)
    return again


def median_period_ns(stamps: Stamps) -> int:
    """The usual time between messages; 0 for fewer than three."""
    return int(np.median(np.diff(stamps))) if len(stamps) > 2 else 0


def runs(good: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """The stretches [first, last) of True."""
    padded = np.concatenate([[False], good, [False]]).astype(np.int8)
    turns = np.flatnonzero(np.diff(padded))
    return [(int(a), int(b)) for a, b in zip(turns[::2], turns[1::2], strict=True)]


def spans_between_gaps(stamps: Stamps, gap_ns: int) -> list[Span]:
    """The spans [first, last] of messages that are nowhere more than ``gap_ns`` apart."""
    if not len(stamps):
        return []
    cuts = np.flatnonzero(np.diff(stamps) > gap_ns)
    first = np.concatenate([[0], cuts + 1])
    last = np.concatenate([cuts, [len(stamps) - 1]])
    return [(int(stamps[a]), int(stamps[b])) for a, b in zip(first, last, strict=True)]


def common_spans(a: list[Span], b: list[Span]) -> list[Span]:
    """Where sorted spans of both lists overlap."""
    found: list[Span] = []
    i = j = 0
    while i < len(a) and j < len(b):
        start, end = max(a[i][0], b[j][0]), min(a[i][1], b[j][1])
        if start <= end:
            found.append((start, end))
        if a[i][1] < b[j][1]:
            i += 1
        else:
            j += 1
    return found
