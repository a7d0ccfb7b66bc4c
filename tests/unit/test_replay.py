"""Replay against a slow, plain reckoning of what it should return."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from robot_rl.data import Images, MixedReplay, Relabelling, Replay
from robot_rl.envs.tasks import make_task
from robot_rl.errors import InvalidInputError
from tests.unit.replay_samples import DISCOUNT, SHAPE, check_batch, filled, near, source


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
