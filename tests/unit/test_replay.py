"""Replay against a slow, plain reckoning of what it should return."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from robot_rl.data import MixedReplay, Relabelling, Replay
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


def check(batch, lengths, terminated=()) -> None:
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
    check(batch, lengths, ends)
    for i in range(size):
        number, step = source(batch["observation"][i])
        assert (batch["goal"][i] == -1.0 - number).all()
        assert batch["reward"][i] == np.float32(1000 * number + step + 0.75), "as recorded"


@settings(max_examples=30, deadline=None, derandomize=True,
          suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    shares=st.tuples(*[st.integers(0, 4)] * 5).filter(lambda s: sum(s) > 0),
    seed=st.integers(0, 1000),
)
def test_goals_come_from_the_right_rows(episode, lengths, shares, seed):
    relabelling = Relabelling(*[float(s) for s in shares])
    replay = filled(episode, lengths, relabelling)
    size = 20 * sum(shares)
    batch = replay.sample(size, np.random.default_rng(seed))
    check(batch, lengths)
    # The shares are exact here, and in the order of their names.
    kinds = [kind for kind, share in zip(Relabelling.NAMES, shares, strict=True)
             for _ in range(20 * share)]
    for i, kind in enumerate(kinds):
        number, step = source(batch["observation"][i])
        goal, reward = batch["goal"][i], batch["reward"][i]
        if kind == "original":
            assert (goal == -1.0 - number).all()
            assert reward == np.float32(1000 * number + step + 0.75)
            continue
        assert (goal % 1000 % 1 == 0.25).all(), "a goal that was achieved"
        from_number, from_step = source(goal)
        if kind == "next":
            assert (from_number, from_step) == (number, step + 1)
        elif kind == "future":
            assert from_number == number and step < from_step <= lengths[number]
        elif kind == "final":
            assert (from_number, from_step) == (number, lengths[number])
        else:
            assert 0 <= from_number < len(lengths) and from_step <= lengths[from_number]
        achieved = np.full(2, 1000.0 * number + step + 1 + 0.25, np.float32)
        assert reward == near(achieved, goal)


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


@pytest.mark.parametrize(("size", "expected"), [(10, (3, 5, 2)), (256, (77, 128, 51)),
                                                (7, (2, 4, 1)), (1, (0, 1, 0))])
def test_shares_are_rounded_so_that_they_add_up(episode, size, expected):
    replay = filled(episode, [50], Relabelling(original=0.3, future=0.5, final=0.2))
    batch = replay.sample(size, np.random.default_rng(0))
    recorded = int((batch["goal"][:, 0] == -1.0).sum())
    last = int((batch["goal"][:, 0] == 50.25).sum())
    assert recorded == expected[0] and last >= expected[2]
    assert replay._counts(size)[:4] == [expected[0], 0, expected[1], expected[2]]


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
    assert small.goals.shape == (720, 2)
    assert np.array_equal(small.observations[:6, 0], np.arange(6.0))


def test_what_was_sampled_is_a_copy(episode):
    replay = filled(episode, [5])
    batch = replay.sample(8, np.random.default_rng(0))
    for value in batch.values():
        value[...] = -99.0
    check(replay.sample(8, np.random.default_rng(0)), [5])


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
    fresh = batch["observation"][:, 0] >= 7000
    # 9 of the 14 steps are practice: it never gets more of a batch than that.
    assert fresh.sum() == round(64 * min(fraction, 9 / 14))
    check(batch, {0: 5, 7: 9})
    assert len(mixed.sample(7, rng)["reward"]) == 7


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
    check(replay.sample(16, np.random.default_rng(0)), [3])


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
