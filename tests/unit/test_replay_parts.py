"""Replay: n steps, terminations, latents, extras, resets and interventions."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from robot_rl.data import Relabelling, Replay
from robot_rl.data.relabel import LatentReward
from robot_rl.errors import InvalidInputError
from tests.unit.replay_samples import DISCOUNT, check_batch, filled, near, source

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
