"""Resampling: by brute force, and that nothing is ever seen before it happened."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robot_rl.data.importers import resample
from robot_rl.errors import InvalidInputError

STAMPS = st.lists(st.integers(0, 10**10), max_size=40).map(
    lambda xs: np.array(sorted(xs), np.int64)
)
SOME = st.lists(st.integers(0, 10**10), min_size=1, max_size=40).map(
    lambda xs: np.array(sorted(xs), np.int64)
)
RATES = st.sampled_from([0.5, 3.0, 7.0, 10.0, 15.0, 29.97, 30.0, 60.0, 100.0, 125.0])


@given(st.integers(0, 2 * 10**18), st.integers(0, 10**11), RATES)
def test_ticks_are_exact_however_many_there_are(start, length, rate):
    ticks = resample.make_ticks(start, start + length, rate)
    period = 10**9 / Fraction(rate).limit_denominator(1000)
    assert ticks[0] == start
    for k in {0, len(ticks) // 2, len(ticks) - 1}:
        assert abs(int(ticks[k]) - (start + k * period)) <= Fraction(1, 2)
    assert ticks[-1] <= start + length < start + len(ticks) * period + 1


def test_ticks_end_where_they_should():
    assert resample.make_ticks(5, 4, 10.0).tolist() == []
    assert resample.make_ticks(5, 5, 10.0).tolist() == [5]
    assert resample.make_ticks(0, 300_000_000, 10.0).tolist() == [
        0, 100_000_000, 200_000_000, 300_000_000]
    assert resample.make_ticks(0, 10**9, 30.0)[1] == 33_333_333


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf"), 1e9, 1e-9])
def test_rates_that_are_none_are_refused(rate):
    with pytest.raises(InvalidInputError, match="rate_hz"):
        resample.make_ticks(0, 10, rate)


def test_stamps_of_two_clocks_do_not_become_a_billion_ticks():
    with pytest.raises(InvalidInputError, match="one clock"):
        resample.make_ticks(0, 1_767_225_600 * 10**9, 10.0)


@given(STAMPS, STAMPS)
def test_the_newest_message_is_never_from_the_future(stamps, ticks):
    index = resample.newest(stamps, ticks)
    for tick, at in zip(ticks, index, strict=True):
        past = [i for i, stamp in enumerate(stamps) if stamp <= tick]
        assert at == (past[-1] if past else -1)


@given(STAMPS, SOME)
def test_commands_are_the_first_within_their_step_or_still_in_force(stamps, ticks):
    ticks = np.unique(ticks)
    starts, ends = ticks[:-1], ticks[1:]
    first = resample.first_within(stamps, starts, ends)
    last = resample.last_within(stamps, starts, ends)
    for start, end, a, b in zip(starts, ends, first, last, strict=True):
        inside = [i for i, s in enumerate(stamps) if start <= s < end]
        before = [i for i, s in enumerate(stamps) if s < start]
        assert a == (inside[0] if inside else before[-1] if before else -1)
        assert b == (inside[-1] if inside else before[-1] if before else -1)
        assert a < 0 or stamps[a] < end, "a command of the next step was used"


@given(STAMPS, SOME)
def test_ages(stamps, ticks):
    index = resample.newest(stamps, ticks)
    ages = resample.ages_s(stamps, index, ticks)
    for tick, at, age in zip(ticks, index, ages, strict=True):
        assert age == (np.inf if at < 0 else (tick - stamps[at]) / 1e9)
        assert age >= 0


@given(SOME, SOME, st.integers(0, 2**32))
def test_counts_and_sums_are_of_what_came_in_the_step(stamps, ticks, seed):
    ticks = np.unique(ticks)
    values = np.random.default_rng(seed).integers(-5, 5, len(stamps))
    starts, ends = ticks[:-1], ticks[1:]
    counts = resample.count_within(stamps, starts, ends)
    sums = resample.sum_within(stamps, values, starts, ends)
    for start, end, count, total in zip(starts, ends, counts, sums, strict=True):
        inside = (stamps > start) & (stamps <= end)
        assert (count, total) == (inside.sum(), values[inside].sum())


@given(SOME, SOME, st.integers(0, 2**32))
@settings(max_examples=50)
def test_linear_interpolation_agrees_with_numpy(stamps, ticks, seed):
    stamps = np.unique(stamps)
    values = np.random.default_rng(seed).normal(size=(len(stamps), 2))
    found = resample.linear(stamps, values, ticks)
    for column in range(2):
        expected = np.interp(ticks.astype(float), stamps.astype(float), values[:, column])
        np.testing.assert_allclose(found[:, column], expected, atol=1e-6)


def test_linear_interpolation_is_exact_on_messages():
    stamps = np.array([0, 10, 30], np.int64)
    values = np.array([[0.1], [0.7], [0.2]])
    np.testing.assert_array_equal(resample.linear(stamps, values, stamps), values)
    with pytest.raises(InvalidInputError):
        resample.linear(stamps[:0], values[:0], stamps)


@given(st.lists(st.integers(0, 1000), max_size=30))
def test_sorting_keeps_the_order_of_one_stamp(stamps):
    array = np.array(stamps, np.int64)
    order, late = resample.in_order(array)
    assert order.tolist() == sorted(range(len(stamps)), key=lambda i: stamps[i])
    assert late == sum(stamps[i] < max(stamps[: i + 1]) for i in range(len(stamps)))


def test_only_true_repeats_are_repeated():
    stamps = np.array([1, 1, 1, 2, 2], np.int64)
    values = np.array([[1.0], [1.0], [2.0], [2.0], [2.0]])
    assert resample.repeated(stamps, values).tolist() == [False, True, False, False, True]
    assert resample.repeated(stamps[:0], values[:0]).tolist() == []


@given(st.lists(st.booleans(), max_size=30))
def test_runs(flags):
    found = resample.runs(np.array(flags, np.bool_))
    covered = [i for a, b in found for i in range(a, b)]
    assert covered == [i for i, flag in enumerate(flags) if flag]
    assert all(b > a for a, b in found)
    assert all(found[i][1] < found[i + 1][0] for i in range(len(found) - 1))


def test_gaps_and_what_several_topics_have_in_common():
    stamps = np.array([0, 1, 2, 10, 11, 30], np.int64)
    spans = resample.spans_between_gaps(stamps, 5)
    assert spans == [(0, 2), (10, 11), (30, 30)]
    assert resample.common_spans(spans, [(1, 10), (11, 40)]) == [(1, 2), (10, 10), (11, 11),
                                                                 (30, 30)]
    assert resample.common_spans(spans, []) == []
    assert resample.spans_between_gaps(stamps[:0], 5) == []


def test_the_usual_period():
    assert resample.median_period_ns(np.array([0, 10, 20, 90], np.int64)) == 10
    assert resample.median_period_ns(np.array([0, 10], np.int64)) == 0
