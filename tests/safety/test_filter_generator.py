"""The rows that the filter's generator makes: within limits, through the target, to rest."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.storm.checker import Limits, Maker, StreamChecker
from robot_rl.safety.generator import Generator
from robot_rl.specs import load_robot

PERIOD_S = 0.01
ACCELERATION, JERK = np.array([5.0, 4.0, 3.0, 6.0, 5.0, 4.0, 7.0]), np.full(7, 200.0)
VELOCITY = np.array([1.0, 0.9, 1.1, 1.0, 1.2, 1.0, 1.3])
SPEC = load_robot("panda")
REST = np.zeros((3, 7))


@pytest.fixture
def generator() -> Generator:
    return Generator(PERIOD_S, ACCELERATION, JERK)


def check(segments, velocity=VELOCITY) -> None:
    """Rows (k, 3, 7) after a rest keep to the limits; derivatives fit the angles."""
    rows = np.concatenate(segments)
    maker = Maker((-9.0,) * 7, (9.0,) * 7, tuple(velocity), tuple(ACCELERATION), tuple(JERK))
    checker = StreamChecker(SPEC, PERIOD_S, Limits(maker, (-9.0,) * 3, (9.0,) * 3))
    checker.restart(np.zeros(7))
    checker.feed(np.concatenate([rows[:, 0], np.repeat(rows[-1:, 0], 3, axis=0)]))
    found = checker.flush()
    assert found.total == 0, found.examples
    assert (np.abs(rows[:, 2]) <= ACCELERATION * (1.0 + 1e-9)).all()
    assert (np.abs(rows[:, 1]) <= velocity * (1.0 + 1e-9)).all()
    middle = (rows[2:, 0] - rows[:-2, 0]) / (2.0 * PERIOD_S)
    np.testing.assert_allclose(middle, rows[1:-1, 1], atol=1.1 * JERK.max() * PERIOD_S**2)
    assert not rows[-1, 1:].any(), "the last row is at rest"


def test_a_target_within_reach_is_reached_and_kept(generator):
    target = np.array([0.05, -0.02, 0.0, 0.03, 0.0, 0.01, -0.04])
    rows = generator.towards(REST, target, VELOCITY, 60, 0.0)
    check([rows])
    assert rows.shape == (61, 3, 7)
    np.testing.assert_allclose(rows[59:, 0], [target] * 2, atol=1e-12)
    assert np.abs(rows[:, 0, target == 0.0]).max() < 1e-12
    moving = target != 0.0
    ways = rows[:, 0, moving] / target[moving]
    assert np.ptp(ways, axis=1).max() < 0.02, "about in proportion from rest"


def test_a_target_out_of_reach_is_headed_for_and_then_it_brakes(generator):
    target = np.linspace(-1.0, 1.0, 7)
    rows = generator.towards(REST, target, VELOCITY, 10, 0.0)
    check([rows])
    assert len(rows) > 15
    assert (np.abs(rows[9, 1]) > 0.05)[[0, 1, 5, 6]].all(), "it is under way after ten rows"
    braking = generator.brake(rows[9])
    np.testing.assert_array_equal(rows[10:], braking)


def test_rows_go_on_from_any_state_that_the_limits_allow(generator):
    rng = np.random.default_rng(0)
    for _ in range(60):
        sent, state = [], REST
        for _ in range(int(rng.integers(1, 12))):
            target = state[0] + rng.uniform(-0.2, 0.2, 7) * rng.choice([0.01, 0.3, 1.0])
            rows = generator.towards(state, target, VELOCITY, int(rng.integers(1, 30)),
                                     float(rng.choice([0.0, 0.1, 0.5])))
            assert rows is not None and np.isfinite(rows).all()
            used = int(rng.integers(1, len(rows) + 1))
            sent.append(rows[:used])
            state = rows[used - 1]
        braking = generator.brake(state)
        check([*sent, braking])


def test_braking_takes_no_longer_than_it_must(generator):
    state = REST.copy()
    state[1] = 0.5 * VELOCITY
    rows = generator.brake(state)
    assert not rows[-1, 1:].any()
    # Ramps of the acceleration at both ends, and the most of it between.
    least = (state[1] / ACCELERATION + ACCELERATION / JERK).max() / PERIOD_S
    assert len(rows) == np.ceil(least)
    assert (rows[:, 1] >= -1e-12).all(), "it does not turn round"


def test_at_rest_a_brake_is_one_row_and_a_step_to_nowhere_stays(generator):
    state = REST.copy()
    state[0] = 0.3
    assert generator.brake(state).tolist() == [state.tolist()]
    rows = generator.towards(state, state[0], VELOCITY, 5, 0.0)
    assert rows.shape == (6, 3, 7)
    np.testing.assert_allclose(rows, [state] * 6, atol=1e-12)


def test_what_no_motion_can_start_from_is_none(generator):
    state = REST.copy()
    state[1, 0] = np.nan
    assert generator.towards(state, np.zeros(7), VELOCITY, 5, 0.0) is None
    assert generator.brake(state) is None
