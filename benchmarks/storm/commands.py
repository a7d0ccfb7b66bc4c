"""What the storm offers to a filter, kind by kind; and what has to be refused."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

Move = tuple[Any, Any, Any]
PERIOD_S = 0.1
# How far [m], [rad] a command of one period may ask for by the filter's own defaults.
STEP_M, TURN_RAD = 0.045, 0.1

_WORDS: tuple[Callable[[], Any], ...] = (
    lambda: None, lambda: "0.01", lambda: b"0.01", lambda: object(), lambda: {"x": 0.01},
    lambda: [0.01, None, 0.0], lambda: ["0", "0", "0"], lambda: [[0.01], [0.0], [0.0]],
    lambda: [0.01, 0.0], lambda: [0.0] * 4, list, lambda: 0.01, lambda: [[0.01, 0.0, 0.0]],
    lambda: np.zeros((3, 3)), lambda: np.array([0j, 0j, 0.1j]), lambda: np.zeros(3, dtype=bool),
    lambda: np.array([0.0, None, 0.0], dtype=object), lambda: np.array("2020", "datetime64[s]"),
    lambda: [np.nan, 0.0, 0.0], lambda: [0.0, np.inf, 0.0], lambda: [0.0, 0.0, -np.inf],
    lambda: np.full(3, np.nan), lambda: [1e400, 0.0, 0.0], lambda: (x for x in (0.0, 0.0, 0.0)),
    lambda: [[0.0], [0.0, 0.0], 0.0], lambda: {0.0, 0.1, 0.2}, lambda: np.zeros((3, 0)),
)
"""Displacements that are none."""

_NO_SCALARS: tuple[Callable[[], Any], ...] = (
    lambda: None, lambda: "0", lambda: math.nan, lambda: math.inf, lambda: -math.inf,
    lambda: [0.1], lambda: np.zeros((1, 1)), lambda: 1j, lambda: True, lambda: object(),
    lambda: np.array([]), dict, lambda: b"0",
)
"""Turns, openings that are none."""

_NO_DURATIONS: tuple[Callable[[], Any], ...] = (
    *_NO_SCALARS, lambda: 0.0, lambda: -0.1, lambda: 0.501, lambda: 1e300, lambda: 60.0,
    lambda: -1e300,
)


def bad_move(rng: np.random.Generator) -> Move:
    """A move with one part, or several, that no filter may accept."""
    parts: list[Any] = [rng.uniform(-0.02, 0.02, 3), 0.0, PERIOD_S]
    wrong = rng.permutation(3)[: 1 + int(rng.integers(0, 2))]
    for part in wrong:
        choices = (_WORDS, _NO_SCALARS, _NO_DURATIONS)[part]
        parts[part] = choices[int(rng.integers(len(choices)))]()
    return parts[0], parts[1], parts[2]


def bad_joints(rng: np.random.Generator, n_joints: int) -> tuple[Any, Any, Any]:
    """A target (n,) [rad], duration and speed of which one is none."""
    target = np.zeros(n_joints)
    kind = int(rng.integers(3))
    if kind == 0:
        wrong: tuple[Any, ...] = (None, "home", np.zeros(n_joints - 1), np.zeros(n_joints + 1),
                                  np.full(n_joints, np.nan), np.full(n_joints, np.inf), 0.0,
                                  np.zeros((1, n_joints)), ["0"] * n_joints,
                                  np.zeros(n_joints, complex))
        return wrong[int(rng.integers(len(wrong)))], PERIOD_S, 0.2
    if kind == 1:
        return target, _NO_DURATIONS[int(rng.integers(len(_NO_DURATIONS)))](), 0.2
    speeds = (0.0, -0.2, math.nan, math.inf, None, "fast", [0.2], 1.01)
    return target, PERIOD_S, speeds[int(rng.integers(len(speeds)))]


def bad_opening(rng: np.random.Generator) -> Any:
    return _NO_SCALARS[int(rng.integers(len(_NO_SCALARS)))]()


# -- endless streams of moves that are in order ---------------------------------------------------


def random_moves(rng: np.random.Generator) -> Iterator[Move]:
    while True:
        yield rng.uniform(-STEP_M, STEP_M, 3), rng.uniform(-0.15, 0.15), PERIOD_S


def small_moves(rng: np.random.Generator) -> Iterator[Move]:
    way = np.zeros(3)
    while True:
        way = 0.9 * way + rng.normal(0.0, 0.004, 3)
        yield way, 0.01 * rng.normal(), PERIOD_S


def boundary_moves(rng: np.random.Generator) -> Iterator[Move]:
    """To a corner, an edge or a face, and along it."""
    while True:
        way = rng.choice([-1.0, 0.0, 1.0], 3)
        for _ in range(int(rng.integers(5, 40))):
            yield STEP_M * way + rng.normal(0.0, 0.002, 3), 0.0, PERIOD_S


def corner_moves(rng: np.random.Generator) -> Iterator[Move]:
    while True:
        way = rng.choice([-1.0, 1.0], 3)
        turn = rng.choice([-TURN_RAD, 0.0, TURN_RAD])
        for _ in range(int(rng.integers(10, 60))):
            yield 2.0 * STEP_M * way, turn, PERIOD_S


def turning_moves(rng: np.random.Generator) -> Iterator[Move]:
    """Round to half a turn either way, and beyond, and back."""
    while True:
        way = rng.choice([-1.0, 1.0])
        for _ in range(int(rng.integers(30, 90))):
            yield rng.normal(0.0, 0.003, 3), 1.2 * way * TURN_RAD, PERIOD_S


def chattering_moves(rng: np.random.Generator) -> Iterator[Move]:
    """The sign flips at every step."""
    while True:
        way, turn = rng.choice([-1.0, 1.0], 3) * STEP_M, rng.choice([-1.0, 0.0, 1.0]) * TURN_RAD
        for _ in range(int(rng.integers(20, 100))):
            way, turn = -way, -turn
            yield way, turn, PERIOD_S


def bang_bang_moves(rng: np.random.Generator) -> Iterator[Move]:
    while True:
        way = rng.choice([-1.0, 0.0, 1.0], 3) * STEP_M
        for sign in (1.0, -1.0):
            for _ in range(int(rng.integers(1, 12))):
                yield sign * way, sign * TURN_RAD, PERIOD_S


def jumping_moves(rng: np.random.Generator) -> Iterator[Move]:
    """Ten times what a step may be, and absurdly more."""
    while True:
        size = rng.choice([10.0, 10.0, 10.0, 1e3, 1e150, 1e300])
        way, turn = rng.uniform(-1.0, 1.0, 3) * STEP_M, rng.uniform(-1.0, 1.0) * TURN_RAD
        yield way * size, turn * size, PERIOD_S


def uneven_moves(rng: np.random.Generator) -> Iterator[Move]:
    """Of every duration that is allowed."""
    while True:
        duration = float(rng.choice([0.5, 0.3, 0.1, 0.05, 0.02, 0.01, 0.0031, 1e-3, 1e-9]))
        yield rng.uniform(-0.5, 0.5, 3) * duration, rng.uniform(-1.0, 1.0) * duration, duration


def resting_moves(rng: np.random.Generator) -> Iterator[Move]:
    while True:
        yield np.zeros(3), 0.0, PERIOD_S


STREAMS: dict[str, Callable[[np.random.Generator], Iterator[Move]]] = {
    "random": random_moves,
    "small": small_moves,
    "boundary": boundary_moves,
    "corners": corner_moves,
    "turning": turning_moves,
    "chattering": chattering_moves,
    "bang-bang": bang_bang_moves,
    "jumps": jumping_moves,
    "durations": uneven_moves,
    "zero": resting_moves,
}
