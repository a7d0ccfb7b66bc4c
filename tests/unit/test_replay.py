"""Replay against a slow, plain reckoning of what it should return."""

from __future__ import annotations

import dataclasses
import os
import sys
import threading
import time

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from robot_rl.data import Images, MixedReplay, Relabelling, Replay
from robot_rl.data.relabel import LatentReward
from robot_rl.envs.tasks import make_task
from robot_rl.errors import InvalidInputError

DISCOUNT = 0.9


def near(achieved, desired):
    """0 where the goals are within 3 of each other, -1 elsewhere."""
    return (np.abs(achieved - desired).max(axis=-1) <= 3.0).astype(np.float64) - 1.0


def filled(episode, lengths, relabelling=None, *, terminated=(), capacity=1024) -> Replay:
    replay = Replay(4, 2, 3, discount=DISCOUNT, relabelling=relabelling, reward=near,
                    capacity=capacity)
    return replay.add_all(
        episode(steps, number, terminated=number in terminated)
        for number, steps in enumerate(lengths)
    )


def source(row) -> tuple[int, int]:
    """Which episode and step the numbers of an observation say they are from."""
    value = float(row[0])
    return int(value // 1000), int(value % 1000)


def check_batch(batch, lengths, terminated=()) -> None:
    """Everything in a batch but the goals comes from one step of one episode."""
    for i in range(len(batch["reward"])):
        number, step = source(batch["observation"][i])
        assert 0 <= step < lengths[number], "a last row is no transition"
        assert source(batch["next_observation"][i]) == (number, step + 1)
        assert (batch["action"][i] == 1000 * number + step + 0.5).all()
        ends = number in terminated and step == lengths[number] - 1
        assert batch["discount"][i] == np.float32(0.0 if ends else DISCOUNT)


@settings(max_examples=30, deadline=None, derandomize=True,
          suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=8),
    ends=st.sets(st.integers(0, 7)),
    size=st.integers(1, 64),
    capacity=st.integers(1, 40),
    seed=st.integers(0, 1000),
)
def test_transitions_are_whole_across_episode_ends(episode, lengths, ends, size, capacity, seed):
    replay = filled(episode, lengths, terminated=ends, capacity=capacity)
    assert len(replay) == sum(lengths) and replay.episodes == len(lengths)
    batch = replay.sample(size, np.random.default_rng(seed))
    assert {k: v.dtype for k, v in batch.items()} == dict.fromkeys(batch, np.dtype(np.float32))
    assert batch["observation"].shape == (size, 4) and batch["goal"].shape == (size, 2)
    check_batch(batch, lengths, ends)
    for i in range(size):
        number, step = source(batch["observation"][i])
        assert (batch["goal"][i] == -1.0 - number).all()
        assert batch["reward"][i] == np.float32(1000 * number + step + 0.75), "as recorded"


@settings(max_examples=30, deadline=None, derandomize=True,
          suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    shares=st.tuples(*[st.integers(0, 4)] * 7).filter(lambda s: sum(s) > 0),
    capacity=st.integers(1, 40),
    memory_limit=st.sampled_from([None, 0, 4_000]),
    seed=st.integers(0, 1000),
)
def test_goals_come_from_the_right_rows(episode, lengths, shares, capacity, memory_limit, seed):
    relabelling = Relabelling(*[float(s) for s in shares])
    replay = Replay(4, 2, 3, discount=DISCOUNT, relabelling=relabelling, reward=near,
                    capacity=capacity, memory_limit=memory_limit)
    for number in np.random.default_rng(seed).permutation(len(lengths)):
        replay.add(episode(lengths[number], int(number)))
    size = 20 * sum(shares)
    batch = replay.sample(size, np.random.default_rng(seed))
    check_batch(batch, lengths)
    # The shares are exact here, and in the order of their names.
    kinds = [kind for kind, share in zip(Relabelling.NAMES, (*shares, 0), strict=True)
             for _ in range(20 * share)]
    for i, kind in enumerate(kinds):
        number, step = source(batch["observation"][i])
        goal, reward = batch["goal"][i], batch["reward"][i]
        if kind == "original":
            assert (goal == -1.0 - number).all()
            assert reward == np.float32(1000 * number + step + 0.75)
            continue
        achieved = np.full(2, 1000.0 * number + step + 1 + 0.25, np.float32)
        assert reward == near(achieved, goal)
        if kind == "swap":
            assert (goal == -1.0 - np.arange(len(lengths))[:, None]).all(axis=1).any()
            assert len(lengths) == 1 or (goal != -1.0 - number).all()
            continue
        assert (goal % 1000 % 1 == 0.25).all(), "a goal that was achieved"
        from_number, from_step = source(goal)
        if kind == "next":
            assert (from_number, from_step) == (number, step + 1)
        elif kind in ("future", "geometric"):
            assert from_number == number and step < from_step <= lengths[number]
        elif kind == "final":
            assert (from_number, from_step) == (number, lengths[number])
        else:
            assert 0 <= from_number < len(lengths) and from_step <= lengths[from_number]


def test_future_goals_are_uniform_over_what_is_left(episode):
    replay = filled(episode, [6], Relabelling(original=0.0, future=1.0))
    batch = replay.sample(60_000, np.random.default_rng(0))
    steps, goals = batch["observation"][:, 0], batch["goal"][:, 0] - 0.25
    for step in range(6):
        counts = np.bincount(goals[steps == step].astype(int), minlength=7)
        left = 6 - step
        assert counts[: step + 1].sum() == 0
        expected = counts.sum() / left
        assert (np.abs(counts[step + 1 :] - expected) < 5 * np.sqrt(expected)).all()


def test_random_goals_and_steps_are_uniform(episode):
    replay = filled(episode, [3, 5], Relabelling(original=0.0, random=1.0))
    batch = replay.sample(40_000, np.random.default_rng(0))
    for values, count in ((batch["observation"][:, 0], 8), (batch["goal"][:, 0], 10)):
        found, counts = np.unique(values, return_counts=True)
        assert len(found) == count
        expected = len(values) / count
        assert (np.abs(counts - expected) < 5 * np.sqrt(expected)).all()


@pytest.mark.parametrize("size", [1, 7, 10, 256])
def test_shares_are_met_on_average_and_each_batch_is_within_one(episode, size):
    relabelling = Relabelling(original=0.3, next=0.499, final=0.2, random=0.001)
    replay = filled(episode, [50], relabelling)
    rng, batches = np.random.default_rng(0), 2_000
    counts = np.zeros((batches, 3))
    for row in counts:
        batch = replay.sample(size, rng, extras=("offset", "step"))
        nexts, last = batch["offset"] == 1, batch["offset"] + batch["step"] == 50
        row[:] = (batch["goal"][:, 0] == -1.0).sum(), (nexts & ~last).sum(), (last).sum()
    assert (np.abs(counts[:, 0] - 0.3 * size) < 1.0).all()
    assert abs(counts[:, 0].mean() - 0.3 * size) < 5 * 0.5 / np.sqrt(batches)
    # A share that is far below one of a batch is met too.
    drawn = np.array([relabelling.counts(size, u)[4] for u in rng.random(200_000)])
    assert set(drawn) == {0, 1}
    assert drawn.mean() == pytest.approx(0.001 * size, abs=5 * np.sqrt(0.001 * size / 200_000))


@pytest.mark.parametrize("task", ["Push", "Reach", "Door"])
def test_recomputed_rewards_are_the_tasks_own(task):
    one = make_task(task)
    rng = np.random.default_rng(0)
    replay = Replay(4, one.goal_dim, 3, discount=DISCOUNT, reward=one.reward,
                    relabelling=Relabelling(original=0.0, future=0.6, random=0.4))
    from robot_rl.data import Episode

    kept = []
    for _ in range(5):
        achieved = rng.normal(0, one.threshold, (21, one.goal_dim)).astype(np.float32)
        kept.append(achieved)
        replay.add(Episode(
            observation=np.concatenate([achieved, np.zeros((21, 4), np.float32)], 1)[:, :4]
            if one.goal_dim < 4 else achieved,
            achieved=achieved, desired=np.zeros(one.goal_dim, np.float32),
            action=np.zeros((20, 3), np.float32), reward=np.full(20, 7.0, np.float32),
            terminated=np.zeros(20, bool), truncated=np.zeros(20, bool),
            success=np.zeros(20, bool)))
    batch = replay.sample(500, np.random.default_rng(1))
    assert set(np.unique(batch["reward"])) == {-1.0, 0.0}
    for i in range(500):
        achieved = batch["next_observation"][i, : one.goal_dim]
        assert batch["reward"][i] == one.reward(achieved, batch["goal"][i])


def test_growing_keeps_what_was_there(episode):
    small = filled(episode, [5] * 60, Relabelling(0.2, 0.2, 0.2, 0.2, 0.2), capacity=1)
    large = filled(episode, [5] * 60, Relabelling(0.2, 0.2, 0.2, 0.2, 0.2), capacity=5000)
    for seed in range(3):
        one = small.sample(100, np.random.default_rng(seed))
        two = large.sample(100, np.random.default_rng(seed))
        for key in one:
            assert np.array_equal(one[key], two[key]), key
    assert small.observations.shape == (360, 4)
    assert small.goals.shape == (720, 2) and small.distinct_goals.shape == (360 + 60, 2)
    assert np.array_equal(small.observations[:6, 0], np.arange(6.0))


def test_what_was_sampled_is_a_copy(episode):
    replay = filled(episode, [5])
    batch = replay.sample(8, np.random.default_rng(0))
    for value in batch.values():
        value[...] = -99.0
    check_batch(replay.sample(8, np.random.default_rng(0)), [5])


def test_the_same_generator_draws_the_same_batches(episode):
    replay = filled(episode, [5, 7], Relabelling(1, 1, 1, 1, 1))
    one, two = (replay.sample(32, np.random.default_rng(4)) for _ in range(2))
    assert all(np.array_equal(one[k], two[k]) for k in one)
    other = replay.sample(32, np.random.default_rng(5))
    assert not np.array_equal(one["observation"], other["observation"])


@pytest.mark.parametrize("fraction", [0.0, 0.25, 0.5, 1.0])
def test_batches_are_mixed_by_the_share(episode, fraction):
    recorded, practice = filled(episode, [5]), filled(episode, [5])
    mixed = MixedReplay(recorded, practice, fraction)
    practice.add(episode(9, 7))
    rng = np.random.default_rng(0)
    only = Replay(4, 2, 3, discount=DISCOUNT)
    only.add(episode(9, 7))
    batch = MixedReplay(recorded, only, fraction).sample(64, rng)
    check_batch(batch, {0: 5, 7: 9})
    # 9 of the 14 steps are practice: it never gets more of a batch than that.
    share = 64 * min(fraction, 9 / 14)
    counts = [(MixedReplay(recorded, only, fraction).sample(64, rng)["observation"][:, 0]
               >= 7000).sum() for _ in range(500)]
    assert all(abs(count - share) < 1.0 for count in counts)
    assert np.mean(counts) == pytest.approx(share, abs=5 * 0.5 / np.sqrt(500))
    assert len(mixed.sample(7, rng)["reward"]) == 7


@pytest.mark.parametrize("strict", [False, True])
def test_little_practice_gets_its_share_too(episode, strict):
    recorded, practice = filled(episode, [2000]), filled(episode, [])
    practice.add(episode(2, 7))
    mixed, rng = MixedReplay(recorded, practice, 0.25, strict=strict), np.random.default_rng(0)
    share = 0.25 if strict else 2 / 2002
    size = 1 if strict else 64
    counts = [(mixed.sample(size, rng)["observation"][:, 0] >= 7000).sum() for _ in range(4000)]
    assert np.mean(counts) == pytest.approx(size * share, abs=5 * np.sqrt(size * share / 4000))
    assert max(counts) == 1


@pytest.mark.parametrize(("options", "message"), [
    ({"discount": 0.5}, r"have discount 0\.9 and 0\.5, should be one"),
    ({"discount": DISCOUNT, "n_step": 3}, "have n_step 1 and 3, should be one"),
])
def test_buffers_of_other_returns_cannot_be_mixed(episode, options, message):
    with pytest.raises(InvalidInputError, match=message):
        MixedReplay(filled(episode, [4]), Replay(4, 2, 3, **options), 0.5)


def test_an_empty_side_gives_nothing(episode):
    full, empty = filled(episode, [5]), Replay(4, 2, 3, discount=DISCOUNT)
    rng = np.random.default_rng(0)
    assert len(MixedReplay(full, empty, 0.5).sample(10, rng)["reward"]) == 10
    assert len(MixedReplay(empty, full, 0.5).sample(10, rng)["reward"]) == 10
    with pytest.raises(InvalidInputError, match="cannot sample from an empty replay buffer"):
        MixedReplay(empty, empty, 0.5).sample(10, rng)


@pytest.mark.parametrize("fraction", [-0.1, 1.1, np.nan])
def test_a_share_out_of_range_is_refused(episode, fraction):
    with pytest.raises(InvalidInputError, match=rf"online_fraction is {fraction}, should be in"):
        MixedReplay(filled(episode, [1]), filled(episode, [1]), fraction)


@pytest.mark.parametrize("sizes", [{"observation_dim": 5}, {"goal_dim": 1}, {"action_dim": 4}])
def test_an_episode_of_other_sizes_is_refused_and_nothing_is_kept(episode, sizes):
    replay = filled(episode, [3])
    with pytest.raises(InvalidInputError,
                       match=r"sizes \(\d, \d, \d\), should be \(4, 2, 3\)"):
        replay.add(episode(3, 1, **sizes))
    assert len(replay) == 3 and replay.episodes == 1
    check_batch(replay.sample(16, np.random.default_rng(0)), [3])


BAD_ARRAYS = {
    "terminated too short": ("terminated", lambda a: a[-1:]),
    "terminated of other numbers": ("terminated", lambda a: a + 2),
    "terminated as text": ("terminated", lambda a: a.astype(str)),
    "success too short": ("success", lambda a: a[:1]),
    "reward too short": ("reward", lambda a: a[:1]),
    "reward in a column": ("reward", lambda a: a[:, None]),
    "reward not finite": ("reward", lambda a: a * np.inf),
    "observation too short": ("observation", lambda a: a[:-1]),
    "achieved a single row": ("achieved", lambda a: a[:1]),
    "achieved flat": ("achieved", lambda a: a[:, 0]),
    "no step": ("action", lambda a: a[:0]),
    "reset too short": ("reset", lambda a: np.array([True])),
}


@pytest.mark.parametrize("kind", BAD_ARRAYS)
def test_an_episode_whose_arrays_do_not_fit_is_refused(episode, kind):
    replay = filled(episode, [3], Relabelling(original=0.5, future=0.5))
    before, (name, change) = replay.tables, BAD_ARRAYS[kind]
    one = episode(4, 1)
    with pytest.raises(InvalidInputError, match="episode"):
        replay.add(dataclasses.replace(one, **{name: change(getattr(one, name))}))
    assert replay.tables is before
    replay.add(one)
    check_batch(replay.sample(64, np.random.default_rng(0)), [3, 4])


@pytest.mark.parametrize("kind", [np.int64, np.float32, np.uint8])
def test_flags_of_other_types_become_bool(episode, kind):
    replay = Replay(4, 2, 3, discount=DISCOUNT)
    one = episode(4, terminated=True)
    given = {name: getattr(one, name).astype(kind) for name in ("terminated", "success")}
    replay.add(dataclasses.replace(one, **given))
    check_batch(replay.sample(64, np.random.default_rng(0)), [4], terminated=[0])
    assert one.terminated.dtype == bool and given["terminated"].dtype == kind, "as it was given"


def test_frames_that_are_not_there_are_refused(episode):
    replay = Replay(4, 2, 3, discount=DISCOUNT, cameras={"front": SHAPE})
    frames = np.zeros((2, *SHAPE), np.uint8)
    for index in ([0, 1, -1, 1], [0, 1, 2, 1], [0, 1]):
        one = episode(3)
        one.images = {"front": Images(frames, np.array(index), np.zeros(2))}
        with pytest.raises(InvalidInputError, match=r"observation\.images\.front"):
            replay.add(one)
    for wrong in (Images(frames, np.array([0.0, 1.0, 0.5, 1.0]), np.zeros(2)),
                  Images(frames.astype(np.float32), np.array([0, 1, 1, 1]), np.zeros(2))):
        one = episode(3)
        one.images = {"front": wrong}
        with pytest.raises(InvalidInputError, match=r"should be (integers|uint8)"):
            replay.add(one)
    assert replay.episodes == 0 and replay.frame_bytes == 0


@pytest.mark.parametrize("discount", [-0.1, 1.1, np.nan, np.inf])
def test_a_discount_out_of_range_is_refused(discount):
    with pytest.raises(InvalidInputError, match=rf"discount is {discount}, should be in \[0, 1\]"):
        Replay(4, 2, 3, discount=discount)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_functions_that_return_no_numbers_are_named(episode, value):
    options = {"discount": DISCOUNT, "relabelling": Relabelling(original=0.5, prior=0.5)}

    def always(count, *shape):
        return np.full((count, *shape), value)

    rng = np.random.default_rng(0)
    replay = Replay(4, 2, 3, reward=lambda a, d: always(len(a)),
                    prior=lambda rng, size: np.zeros((size, 2)), **options)
    with pytest.raises(InvalidInputError, match="reward function returned values that are no f"):
        replay.add(episode(4)) or replay.sample(8, rng)
    replay = Replay(4, 2, 3, reward=near, prior=lambda rng, size: always(size, 2), **options)
    with pytest.raises(InvalidInputError, match="prior returned goals that hold values which"):
        replay.add(episode(4)) or replay.sample(8, rng)
    before = replay.tables
    with pytest.raises(InvalidInputError, match="encoded goals hold values that are no finite"):
        replay.encode_goals(lambda goals: always(len(goals), 3), reward=near)
    assert replay.tables is before


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ({"future": -0.1}, "relabelling: future is -0.1, should be >= 0"),
        ({"final": np.nan}, "relabelling: final is nan"),
        ({"random": np.inf}, "relabelling: random is inf"),
        ({"original": 0.0}, "all fractions are 0"),
    ],
)
def test_shares_out_of_range_are_named(shares, message):
    with pytest.raises(InvalidInputError, match=message):
        Relabelling(**shares)


def test_relabelling_needs_goals_and_their_reward():
    future = Relabelling(original=0.0, future=1.0)
    with pytest.raises(InvalidInputError, match="needs the task's reward function"):
        Replay(4, 2, 3, discount=0.9, relabelling=future)
    with pytest.raises(InvalidInputError, match="goals cannot be relabelled: the task has none"):
        Replay(4, 0, 3, discount=0.9, relabelling=future, reward=near)


def test_an_episode_that_terminates_keeps_its_goals(episode):
    replay = filled(episode, [6], Relabelling(original=0.5, future=0.5))
    with pytest.raises(InvalidInputError, match="terminates cannot have its goals relabelled"):
        replay.add(episode(6, 1, terminated=True))
    assert replay.episodes == 1 and len(replay) == 6


# -- n steps, terminations, latents ---------------------------------------------------------------


def reached(achieved, desired):
    """Where the goals are within 1 of each other."""
    return np.abs(achieved - desired).max(axis=-1) <= 1.0


@settings(max_examples=40, deadline=None, derandomize=True,
          suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    n_step=st.integers(1, 6),
    ends=st.sets(st.integers(0, 4)),
    with_terminate=st.booleans(),
    seed=st.integers(0, 999),
)
def test_n_step_batches_are_those_of_brute_force(episode, lengths, n_step, ends, with_terminate,
                                                 seed):
    if not with_terminate:
        ends = set()
    replay = Replay(
        4, 2, 3, discount=DISCOUNT, reward=near, n_step=n_step,
        relabelling=Relabelling(0.25, 0.1, 0.25, 0.1, 0.1, 0.1, 0.1),
        terminate=reached if with_terminate else None,
    ).add_all(episode(steps, number, terminated=number in ends)
              for number, steps in enumerate(lengths))
    size = 60
    batch = replay.sample(size, np.random.default_rng(seed))
    kept = replay.relabelling.counts(size, 0.5)[0]
    assert kept == 15, "exact for this size"
    for i in range(size):
        number, step = source(batch["observation"][i])
        total, taken, over = 0.0, 0, False
        while taken < n_step and step + taken < lengths[number] and not over:
            at = step + taken
            if i < kept:
                reward = 1000 * number + at + 0.75
                over = number in ends and at == lengths[number] - 1
            else:
                achieved = np.full(2, 1000.0 * number + at + 1.25, np.float32)
                reward = near(achieved, batch["goal"][i])
                over = with_terminate and bool(reached(achieved, batch["goal"][i]))
            total += DISCOUNT**taken * reward
            taken += 1
        assert batch["reward"][i] == pytest.approx(total, rel=1e-6)
        assert batch["discount"][i] == pytest.approx(0.0 if over else DISCOUNT**taken)
        assert source(batch["next_observation"][i]) == (number, step + taken)


def test_terminations_at_other_goals_are_recomputed(episode):
    replay = Replay(4, 2, 3, discount=DISCOUNT, reward=near, terminate=reached,
                    relabelling=Relabelling(original=0.0, next=0.5, final=0.5))
    replay.add(episode(9, 0, terminated=True))
    batch = replay.sample(200, np.random.default_rng(0))
    assert (batch["discount"][:100] == 0.0).all(), "each next state reaches its own goal"
    distance = 9 - (batch["observation"][100:, 0] + 1)
    assert np.array_equal(batch["discount"][100:] == 0.0, distance <= 1)


def test_options_out_of_range_are_named(episode):
    with pytest.raises(InvalidInputError, match="n_step is 0, should be at least 1"):
        Replay(4, 2, 3, discount=0.9, n_step=0)
    with pytest.raises(InvalidInputError, match=r"prior is 0\.5, but no generative prior"):
        Replay(4, 2, 3, discount=0.9, reward=near, relabelling=Relabelling(prior=0.5))
    with pytest.raises(InvalidInputError, match="memory_limit is -1"):
        Replay(4, 2, 3, discount=0.9, memory_limit=-1)
    with pytest.raises(InvalidInputError, match="scratch folder /nowhere does not exist"):
        Replay(4, 2, 3, discount=0.9, scratch="/nowhere")
    replay = filled(episode, [3])
    with pytest.raises(InvalidInputError, match="batch size is 0"):
        replay.sample(0, np.random.default_rng(0))
    with pytest.raises(InvalidInputError, match=r"unknown extra 'ofset' .did you mean 'offset'"):
        replay.sample(1, np.random.default_rng(0), extras=("ofset",))
    with pytest.raises(InvalidInputError, match="unknown camera 'front'; valid: none"):
        replay.sample(1, np.random.default_rng(0), cameras=("front",))


def test_goals_of_a_prior(episode):
    replay = Replay(4, 2, 3, discount=DISCOUNT, reward=near,
                    relabelling=Relabelling(original=0.5, prior=0.5),
                    prior=lambda rng, size: rng.uniform(5.0, 6.0, (size, 2)))
    batch = replay.add(episode(9)) or replay.sample(100, np.random.default_rng(0))
    assert (batch["goal"][:50] == -1.0).all()
    assert ((batch["goal"][50:] >= 5.0) & (batch["goal"][50:] <= 6.0)).all()
    after = batch["next_observation"][50:, :2] + 0.25
    assert np.array_equal(batch["reward"][50:], near(after, batch["goal"][50:]))


def test_latents_take_the_place_of_goals(episode):
    replay = filled(episode, [5, 7], Relabelling(original=0.5, future=0.5))
    sizes = []

    def encode(goals):
        sizes.append(len(goals))
        return np.stack([goals[:, 0], 2 * goals[:, 0], 0 * goals[:, 0]], axis=1)

    replay.encode_goals(encode, reward=LatentReward(), block=4)
    assert max(sizes) == 4 and replay.goal_dim == 3
    replay.add(episode(6, 2))
    batch = replay.sample(90, np.random.default_rng(0), extras=("offset", "next_achieved"))
    assert batch["goal"].shape == (90, 3) and set(np.unique(batch["observation"][:, 0] // 1000)) \
        == {0, 1, 2}
    assert np.array_equal(batch["goal"][:, 1], 2 * batch["goal"][:, 0])
    achieved = batch["next_observation"][:, 0] + 0.25
    assert np.array_equal(batch["next_achieved"][:, 0], achieved)
    assert batch["reward"] == pytest.approx(
        -np.sqrt(5) * np.abs(achieved - batch["goal"][:, 0]), rel=1e-5), "original goals too"
    ahead = batch["observation"][45:, 0] + batch["offset"][45:] + 0.25
    assert np.array_equal(batch["goal"][45:, 0], ahead)

    for wrong in (lambda goals: goals[:, 0], lambda goals: goals[:-1]):
        with pytest.raises(InvalidInputError, match="encoded goals have shape"):
            replay.encode_goals(wrong, reward=LatentReward())
    with pytest.raises(InvalidInputError, match="needs a reward of latents"):
        replay.encode_goals(encode)
    assert replay.goal_dim == 3
    replay.encode_goals(lambda goals: goals[:, :1], reward=LatentReward())
    assert replay.goal_dim == 1 and replay.goals.shape == (2 * (6 + 8 + 7), 1)


# -- extras, resets, interventions ----------------------------------------------------------------


def test_extras_say_where_a_transition_comes_from(episode):
    one = episode(8, 1)
    one.intervention = np.arange(8) % 2 == 0
    one.success = np.arange(8) >= 6
    replay = filled(episode, [5], Relabelling(original=0.4, future=0.4, random=0.2))
    replay.add(one)
    rng = np.random.default_rng(0)
    plain = replay.sample(200, np.random.default_rng(3))
    batch = replay.sample(200, np.random.default_rng(3), extras=(
        "offset", "goal_discount", "intervention", "success", "episode", "step", "achieved",
        "next_achieved"))
    assert set(plain) == {"observation", "goal", "action", "reward", "next_observation",
                          "discount"}
    assert all(np.array_equal(plain[key], batch[key]) for key in plain), "extras change nothing"
    number, step = batch["episode"], batch["step"]
    assert np.array_equal(1000 * number + step, batch["observation"][:, 0])
    second = number == 1
    assert np.array_equal(batch["intervention"], second & (step % 2 == 0))
    assert np.array_equal(batch["success"], second & (step >= 6))
    assert batch["intervention"].dtype == bool and batch["offset"].dtype == np.int64
    assert np.array_equal(batch["achieved"][:, 0], batch["observation"][:, 0] + 0.25)
    assert np.array_equal(batch["next_achieved"][:, 0], batch["observation"][:, 0] + 1.25)
    offset = batch["offset"]
    assert (offset[:80] == -1).all() and (offset[160:] == -1).all() and (offset[80:160] > 0).all()
    assert np.array_equal(batch["goal"][80:160, 0],
                          batch["observation"][80:160, 0] + offset[80:160] + 0.25)
    assert batch["goal_discount"] == pytest.approx(
        np.where(offset < 0, 1.0, DISCOUNT ** np.maximum(offset, 0).astype(float)))
    assert replay.sample(3, rng, extras=["step"]).keys() == {*plain, "step"}


def with_reset(episode, number=0):
    """Steps 0-3 of the task, 4-6 of a reset, 7-9 of the task."""
    one = episode(10, number)
    one.reset = np.zeros(10, bool)
    one.reset[4:7] = True
    return one


def test_steps_of_a_reset_are_kept_but_not_sampled(episode):
    relabelling = Relabelling(original=0.0, future=0.5, final=0.5)
    replay = Replay(4, 2, 3, discount=DISCOUNT, reward=near, relabelling=relabelling, n_step=3)
    replay.add(with_reset(episode))
    assert len(replay) == 7 and replay.observations.shape == (11, 4)
    batch = replay.sample(400, np.random.default_rng(0), extras=("step",))
    assert set(batch["step"]) == {0, 1, 2, 3, 7, 8, 9}
    end = np.where(batch["step"] < 4, 4, 10)
    goals = batch["goal"][:, 0] - 0.25
    assert ((goals > batch["step"]) & (goals <= end)).all() and (goals[200:] == end[200:]).all()
    taken = np.minimum(3, end - batch["step"])
    assert np.array_equal(batch["next_observation"][:, 0], batch["step"] + taken)
    assert batch["discount"] == pytest.approx(DISCOUNT**taken)


@pytest.mark.parametrize("include", [False, True])
def test_goals_of_others_do_not_come_from_resets(episode, include):
    replay = Replay(4, 2, 3, discount=DISCOUNT, reward=near, include_resets=include,
                    relabelling=Relabelling(original=0.0, random=0.5, swap=0.5))
    replay.add(episode(3, 0))
    assert replay.tables.goals.states is None, "costs nothing where there are no resets"
    replay.add(with_reset(episode, 1))
    all_reset = episode(6, 2)
    all_reset.reset = np.ones(6, bool)
    replay.add(all_reset)
    replay.add(episode(2, 3))
    for encoded in (False, True):
        if encoded:
            replay.encode_goals(lambda goals: goals, reward=near)
            replay.add(episode(1, 4))
        batch = replay.sample(4000, np.random.default_rng(0), extras=("episode",))
        states = set(batch["goal"][:2000, 0] - 0.25)
        clean = {0, 1, 2, 3, 1000, 1001, 1002, 1003, 1004, 1007, 1008, 1009, 1010, 3000, 3001,
                 3002} | ({4000, 4001} if encoded else set())
        resets = {1005, 1006, *range(2000, 2007)}
        assert states == (clean | resets if include else clean)
        swapped = -1 - batch["goal"][2000:, 0]
        assert (swapped != batch["episode"][2000:]).all()
        others = {0, 1, 3} | ({2} if include else set()) | ({4} if encoded else set())
        assert set(swapped) == others


@pytest.mark.parametrize("include", [False, True])
def test_nothing_crosses_a_termination_inside_an_episode(episode, include):
    replay = Replay(4, 2, 3, discount=DISCOUNT, reward=near, n_step=4, include_resets=include,
                    terminate=lambda a, d: np.zeros(len(a), bool),
                    relabelling=Relabelling(original=0.25, next=0.25, future=0.25, final=0.25))
    one = episode(9)
    one.terminated = np.isin(np.arange(9), (3, 4))
    one.reset = np.arange(9) == 6
    replay.add(one)
    batch = replay.sample(4000, np.random.default_rng(0), extras=("step",))
    step = batch["step"]
    ends = [4, 5, 9] if include else [4, 5, 6, 7, 9]
    end = np.array(ends)[np.searchsorted(ends, step, side="right")]
    goals = batch["goal"][1000:, 0] - 0.25
    assert ((goals > step[1000:]) & (goals <= end[1000:])).all()
    assert (goals[2000:] == end[3000:]).all()
    assert np.array_equal(batch["next_observation"][:, 0], step + np.minimum(4, end - step))
    assert set(step) == (set(range(9)) if include else set(range(9)) - {6})


def test_steps_of_a_reset_can_be_included(episode):
    replay = Replay(4, 2, 3, discount=DISCOUNT, reward=near, include_resets=True,
                    relabelling=Relabelling(original=0.0, final=1.0))
    replay.add(with_reset(episode))
    batch = replay.sample(400, np.random.default_rng(0), extras=("step",))
    assert len(replay) == 10 and set(batch["step"]) == set(range(10))
    assert (batch["goal"][:, 0] == 10.25).all()


def test_numbers_become_float32_and_must_fit(episode):
    one = episode(3)
    wide = dataclasses.replace(one, observation=one.observation.astype(np.float64) + 1e-12)
    replay = filled(episode, [2])
    replay.add(wide)
    assert replay.observations.dtype == np.float32
    for name in ("observation", "action", "achieved", "desired"):
        large = dataclasses.replace(one, **{name: getattr(one, name).astype(np.float64) + 1e39})
        with pytest.raises(InvalidInputError, match="no finite float32"):
            replay.add(large)
    assert len(replay) == 5 and replay.episodes == 2
    check_batch(replay.sample(64, np.random.default_rng(0)), {0: 3})


# -- images ---------------------------------------------------------------------------------------

SHAPE = (4, 6, 3)


def seen(episode, steps, number, per_state=1, spare=0):
    """An episode with frames whose pixels say 40 x episode + frame; every ``per_state`` states
    share one, and ``spare`` frames nobody saw lie in between."""
    one = episode(steps, number)
    index = (np.arange(steps + 1) // per_state) * (1 + spare)
    frames = np.empty((index[-1] + 1, *SHAPE), np.uint8)
    frames[:] = (40 * number + np.arange(len(frames)))[:, None, None, None]
    one.images = {"front": Images(frames, index, np.zeros(len(frames)))}
    return one


def check_images(batch, per_state=1, spare=0):
    for key, rows in (("images", "observation"), ("next_images", "next_observation")):
        images = batch[key]["front"]
        assert images.dtype == np.uint8 and images.shape == (len(batch["reward"]), *SHAPE)
        assert images.flags.c_contiguous
        number, step = batch[rows][:, 0] // 1000, batch[rows][:, 0] % 1000
        expected = (40 * number + step // per_state * (1 + spare)).astype(np.uint8)
        assert (images == expected[:, None, None, None]).all()


@pytest.mark.parametrize(("per_state", "spare"), [(1, 0), (3, 0), (1, 2), (2, 1)])
@pytest.mark.parametrize("memory_limit", [None, 0, 20_000])
def test_images_are_those_of_the_states(episode, per_state, spare, memory_limit, tmp_path):
    replay = Replay(4, 2, 3, discount=DISCOUNT, cameras={"front": SHAPE}, n_step=2,
                    memory_limit=memory_limit, scratch=tmp_path)
    lengths, rng = [5, 1, 9, 4], np.random.default_rng(0)
    for number, steps in enumerate(lengths):
        replay.add(seen(episode, steps, number, per_state, spare))
        batch = replay.sample(300, rng, cameras=["front"])
        check_images(batch, per_state, spare)
    frames = sum(steps // per_state + 1 for steps in lengths)
    assert replay.frame_bytes == frames * 72, "what nobody saw is not kept, nor anything twice"
    assert "next_images" not in replay.sample(3, rng, cameras=["front"], next_images=False)
    assert list(tmp_path.iterdir()) == [], "scratch files have no name"


def test_frames_take_little_more_memory_than_they_are(episode):
    shape, count = (48, 48, 3), 5_000
    replay = Replay(4, 2, 3, discount=DISCOUNT, cameras={"front": shape})
    one = episode(499)
    one.images = {"front": Images.each(np.full((500, *shape), 7, np.uint8))}

    def resident() -> int:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    before, least = resident(), count * 48 * 48 * 3
    for _ in range(count // 500):
        replay.add(one)
    assert replay.frame_bytes == least
    assert resident() - before <= 1.05 * least + 1.5e6, "1.5 MB for everything else"


def test_a_camera_that_is_missing_or_of_another_shape_is_named(episode):
    replay = Replay(4, 2, 3, discount=DISCOUNT, cameras={"front": SHAPE, "side": SHAPE})
    with pytest.raises(InvalidInputError, match="has no camera 'side'; it has front"):
        replay.add(seen(episode, 3, 0))
    other = seen(episode, 3, 0)
    other.images["side"] = Images.each(np.zeros((4, 4, 6, 1), np.uint8))
    with pytest.raises(InvalidInputError, match=r"of shape \(4, 6, 1\), should be \(4, 6, 3"):
        replay.add(other)
    assert replay.episodes == 0 and replay.frame_bytes == 0


def test_latents_of_images_take_the_place_of_goals(episode):
    replay = Replay(4, 0, 3, discount=DISCOUNT, reward=LatentReward(2.0),
                    relabelling=Relabelling(original=0.5, future=0.5), cameras={"front": SHAPE})
    bare = [dataclasses.replace(seen(episode, 6, number), achieved=np.zeros((7, 0), np.float32),
                                desired=np.zeros(0, np.float32)) for number in range(4)]
    replay.add_all(bare[:2])
    replay.encode_goals(lambda frames: frames.reshape(len(frames), -1)[:, :2].astype(float) / 2,
                        camera="front", reward=LatentReward(2.0), block=5)
    replay.add_all(bare[2:])
    batch = replay.sample(100, np.random.default_rng(0), extras=("episode", "step"))
    ends = (40 * batch["episode"] + 6) / 2
    assert np.array_equal(batch["goal"][:50, 0], ends[:50]), "the last state stands for the goal"
    later = (batch["goal"][50:, 0] * 2 - 40 * batch["episode"][50:])
    assert ((later > batch["step"][50:]) & (later <= 6)).all()
    distance = np.abs((40 * batch["episode"] + batch["step"] + 1) / 2 - batch["goal"][:, 0])
    assert np.array_equal(batch["reward"], (np.sqrt(2) * distance <= 2.0) - 1.0)
    with pytest.raises(InvalidInputError, match="unknown camera 'side'; valid: front"):
        replay.encode_goals(lambda frames: frames, camera="side", reward=near)
    with pytest.raises(InvalidInputError, match="the task has none; give a camera"):
        replay.encode_goals(lambda goals: goals, reward=near)


# -- memory ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory_limit", [0, 3_000, 10_000])
def test_what_is_beyond_the_memory_limit_reads_the_same(episode, memory_limit, tmp_path):
    lengths = [7] * 80
    small = Replay(4, 2, 3, discount=DISCOUNT, memory_limit=memory_limit, scratch=tmp_path,
                   capacity=4)
    small.add_all(episode(n, i) for i, n in enumerate(lengths))
    large = filled(episode, lengths)
    for seed in range(3):
        one, two = (r.sample(200, np.random.default_rng(seed)) for r in (small, large))
        assert all(np.array_equal(one[key], two[key]) for key in one)
    assert small._scratch.used <= memory_limit and list(tmp_path.iterdir()) == []


def test_all_cameras_together_keep_to_the_memory_limit(episode, tmp_path):
    replay = Replay(4, 2, 3, discount=DISCOUNT, memory_limit=60_000, scratch=tmp_path,
                    cameras={"front": SHAPE, "side": SHAPE}, capacity=400)
    for number in range(4):
        one = seen(episode, 99, number)
        one.images["side"] = one.images["front"]
        replay.add(one)
    in_memory = {name: frames.segments[-1][0] for name, frames in replay._frames.items()}
    assert all(0 <= count < 400 for count in in_memory.values()), "the rest is in files"
    assert sum(in_memory.values()) > 100
    assert sum(in_memory.values()) * 72 < replay._scratch.used <= 60_000
    check_images(replay.sample(300, np.random.default_rng(0), cameras=["front"]))


def test_a_full_disk_is_told_and_loses_nothing(episode, tmp_path, monkeypatch):
    replay = Replay(4, 2, 3, discount=DISCOUNT, memory_limit=5_000, scratch=tmp_path, capacity=4)
    added = 0

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(InvalidInputError, match=r"no room for .* in the scratch folder: No s"):
        for added in range(1000):
            replay.add(episode(7, added))
    assert 0 < replay.episodes == added and len(replay) == 7 * added
    check_batch(replay.sample(200, np.random.default_rng(0)), [7] * added)


@pytest.mark.parametrize("memory_limit", [None, 0, 30_000])
def test_an_addition_that_fails_late_leaves_no_frames(episode, tmp_path, memory_limit):
    replay = Replay(4, 2, 3, discount=DISCOUNT, cameras={"front": SHAPE}, scratch=tmp_path,
                    memory_limit=memory_limit, capacity=4000)
    add_valid, used = replay._add_valid, []

    def full(*_):
        raise InvalidInputError("no room")

    for number in range(5):
        replay._add_valid = full
        for steps in (250, 7):
            with pytest.raises(InvalidInputError, match="no room"):
                replay.add(seen(episode, steps, 99, per_state=2))
        replay._add_valid = add_valid
        replay.add(seen(episode, 40, number))
        used.append(replay._scratch.used)
        check_images(replay.sample(300, np.random.default_rng(0), cameras=["front"]))
    assert replay.frame_bytes == 5 * 41 * 72
    assert memory_limit is not None or used[-1] - used[0] == 4 * 41 * 72


def test_a_batch_that_is_kept_is_not_written_to(episode):
    replay = filled(episode, [50], Relabelling(original=0.5, future=0.5))
    rng = np.random.default_rng(0)
    kept, copies = [], []
    for i in range(40):
        batch = replay.sample(9_000, rng)
        if i % 3:
            # Any part of it counts: a view, a column, a buffer.
            part = (batch["observation"][5:9], batch["action"].T, memoryview(batch["goal"]))[i % 3]
            kept.append(part)
            copies.append(np.array(part))
    assert all(np.array_equal(np.asarray(a), b) for a, b in zip(kept, copies, strict=True))


def test_a_batch_that_torch_shares_is_not_written_to(episode):
    replay, rng = filled(episode, [50]), np.random.default_rng(0)
    batch = replay.sample(9_000, rng)
    tensor = torch.from_numpy(batch["observation"])
    assert tensor.data_ptr() == batch["observation"].ctypes.data
    before = tensor.clone()
    del batch
    for _ in range(20):
        replay.sample(9_000, rng)
    assert torch.equal(tensor, before)


def test_memory_of_dropped_batches_is_used_again(episode):
    replay, rng = filled(episode, [50]), np.random.default_rng(0)
    addresses = set()
    for _ in range(50):
        addresses.add(replay.sample(9_000, rng)["observation"].ctypes.data)
    assert len(addresses) <= 2


# -- threads --------------------------------------------------------------------------------------


def test_episodes_can_be_added_while_another_thread_samples(episode):
    replay = Replay(4, 2, 3, discount=DISCOUNT, reward=near, capacity=1,
                    relabelling=Relabelling(0.4, 0.1, 0.2, 0.1, 0.1, 0.1),
                    cameras={"front": SHAPE})
    replay.add(seen(episode, 4, 0))
    lengths = [4] + [1 + i % 5 for i in range(1, 400)]
    problems: list[BaseException] = []
    sampled, done = [0, 0], threading.Event()

    def read(seed: int) -> None:
        rng = np.random.default_rng(seed)
        try:
            while not done.is_set():
                batch = replay.sample(64, rng, cameras=["front"], extras=("episode", "step"))
                check_batch(batch, lengths)
                number, step = batch["episode"], batch["step"]
                assert np.array_equal(1000 * number + step, batch["observation"][:, 0])
                front = batch["images"]["front"][:, 0, 0, 0]
                assert np.array_equal(front, (40 * number + step).astype(np.uint8))
                goals = batch["goal"][:, 0]
                assert ((goals < 0) == (np.arange(64) < (goals < 0).sum())).all()
                assert (goals < 0).sum() in (25, 26)
                sampled[seed] += 1
        except BaseException as error:
            problems.append(error)

    readers = [threading.Thread(target=read, args=(seed,)) for seed in range(2)]
    # Threads take turns a thousand times as often as usual.
    interval = sys.getswitchinterval()
    sys.setswitchinterval(5e-6)
    try:
        for reader in readers:
            reader.start()
        for number, steps in enumerate(lengths[1:], start=1):
            replay.add(seen(episode, steps, number))
            if number % 10 == 0:
                before, limit = list(sampled), time.monotonic() + 20
                while (not problems and time.monotonic() < limit
                       and not all(a > b for a, b in zip(sampled, before, strict=True))):
                    time.sleep(1e-4)
    finally:
        done.set()
        for reader in readers:
            reader.join()
        sys.setswitchinterval(interval)
    if problems:
        raise problems[0]
    assert min(sampled) >= 39
    assert replay.episodes == 400 and len(replay) == sum(lengths)


def test_frames_are_whole_at_every_moment_of_growing(episode, tmp_path):
    replay = Replay(4, 2, 3, discount=DISCOUNT, cameras={"front": SHAPE}, memory_limit=0,
                    scratch=tmp_path)
    replay.add(seen(episode, 5, 0))
    store, moments = replay._frames["front"], []

    class Watched(type(store)):
        """Samples as another thread may, whenever segments were replaced."""

        def __setattr__(self, name, value):
            super().__setattr__(name, value)
            if name == "segments":
                check_images(replay.sample(200, np.random.default_rng(0), cameras=["front"]))
                moments.append(len(value))

    store.__class__ = Watched
    for _ in range(200):
        # More than the file's first megabytes.
        replay.add(seen(episode, 250, 0))
    assert len(moments) > 1


def test_a_frame_that_is_not_there_is_an_error(tmp_path):
    from robot_rl.data.store import Frames, Scratch

    frames, out = Frames((1, 1, 1), Scratch(10, tmp_path)), np.zeros((1, 1, 1, 1), np.uint8)
    count = frames.adopt(np.full((3, 1, 1, 1), 7, np.uint8), 0)
    for missing in (3, -1):
        with pytest.raises(IndexError):
            frames.take(np.array([missing]), out)
    frames.adopt(np.full((3, 1, 1, 1), 8, np.uint8), count)
    frames.take(np.array([3]), out)
    assert out[0, 0, 0, 0] == 8
    for missing in (6, -1):
        with pytest.raises(IndexError, match="1 of 1 frames are not there"):
            frames.take(np.array([missing]), out)


def test_several_threads_can_add(episode):
    replay = filled(episode, [], capacity=1)
    threads = [
        threading.Thread(target=lambda k=k: replay.add_all(
            episode(3, number) for number in range(k, 120, 4)))
        for k in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert replay.episodes == 120
    batch = replay.sample(4_000, np.random.default_rng(0))
    check_batch(batch, [3] * 120)
    assert set(batch["observation"][:, 0] // 1000) == set(range(120))


# -- mixing ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("fraction", [0.0, 0.25, 0.6, 1.0])
def test_a_strict_share_is_kept_whatever_the_sizes(episode, fraction):
    recorded, practice = filled(episode, [500]), filled(episode, [])
    practice.add(episode(2, 7))
    mixed = MixedReplay(recorded, practice, fraction, strict=True)
    fresh = mixed.sample(60, np.random.default_rng(0))["observation"][:, 0] >= 7000
    assert fresh.sum() == 60 * fraction, "a whole number here"


def test_mixed_batches_have_extras_and_images(episode):
    recorded, practice = (
        Replay(4, 2, 3, discount=DISCOUNT, reward=near, cameras={"front": SHAPE},
               relabelling=Relabelling(original=0.5, future=0.5)) for _ in range(2))
    recorded.add(seen(episode, 5, 0))
    practice.add(seen(episode, 5, 1))
    batch = MixedReplay(recorded, practice, 0.5).sample(
        40, np.random.default_rng(0), extras=("offset", "step"), cameras=["front"])
    check_images(batch)
    check_batch(batch, [5, 5])
    assert np.array_equal(batch["step"], batch["observation"][:, 0] % 1000)
    # Each half has its own exact shares.
    assert ((batch["offset"] > 0) == (np.arange(40) % 20 >= 10)).all()
    assert ((batch["observation"][:, 0] >= 1000) == (np.arange(40) >= 20)).all()


def test_buffers_of_other_sizes_cannot_be_mixed(episode):
    other = Replay(5, 2, 3, discount=DISCOUNT)
    other.add(episode(4, observation_dim=5))
    with pytest.raises(InvalidInputError, match=r"sizes \(4, 2, 3, 2, .* and \(5, 2, 3, 2, "):
        MixedReplay(filled(episode, [4]), other, 0.5).sample(8, np.random.default_rng(0))
