"""Goal relabelling: which goal a transition is learned from, its reward there, n-step returns.

A transition (s_t, a_t, s_{t+1}) of an episode with the states s_0 .. s_T, which achieved the goals
a_0 .. a_T, may be learned from with another goal g than the recorded one. Everything here works on
whole batches and knows nothing of how transitions are stored.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from robot_rl.errors import InvalidInputError

#: (achieved (B, g), desired (B, g)) to rewards (B,).
RewardFunction = Callable[[NDArray[Any], NDArray[Any]], NDArray[Any]]
#: (achieved (B, g), desired (B, g)) to whether an episode ends there, (B,) bool.
TerminateFunction = Callable[[NDArray[Any], NDArray[Any]], NDArray[Any]]
#: (generator, size) to goals (size, g), e.g. decoded from a generative model's prior.
GoalPrior = Callable[[np.random.Generator, int], NDArray[Any]]

_LARGEST = float(np.finfo(np.float32).max)


def _share(text: str, default: float = 0.0) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Relabelling:
    """Which goals the sampled transitions get, as shares that are normalised to 1.

    For a transition at step t of an episode of T steps:

    - ``original``: the recorded goal.
    - ``next``: a_{t+1}.
    - ``future``: a_i, i uniform over t+1 .. T (hindsight relabelling).
    - ``final``: a_T.
    - ``random``: what a state achieved that is drawn uniformly from all states of the buffer that
      sampled transitions start or end at.
    - ``geometric``: a_{t+k}, P(k) = (1 - d) d^(k-1) / (1 - d^(T-t)) for k in 1 .. T-t, with
      d = ``geometric_discount``: the discounted future, cut at the episode's end.
    - ``swap``: the recorded goal of another episode, drawn uniformly; never the transition's own
      where there are two or more (goal swapping, seed 003, Algorithm 1).
    - ``prior``: drawn from a generative prior over goals (as RIG does, seed 001, ch. 2).

    T is the end of the part of the episode that t lies in: nothing is taken from beyond a step that
    terminated, or from another controller's steps. All but the first have their rewards recomputed.
    A batch holds these shares in the order of ``NAMES``, each rounded up or down at random, so that
    it is met on average by batches of any size (systematic sampling).

    Raises:
        InvalidInputError: a share or the discount is out of range.
    """

    original: float = _share("share of goals kept as recorded", 1.0)
    next: float = _share("share replaced by the next state's")
    future: float = _share("share replaced by a later state's, all equally likely")
    final: float = _share("share replaced by the last state's")
    random: float = _share("share replaced by any state's")
    geometric: float = _share("share replaced by a later state's, sooner ones likelier")
    swap: float = _share("share replaced by another episode's recorded goal")
    prior: float = _share("share drawn from a generative prior over goals, which must be given")
    geometric_discount: float = field(
        default=0.99,
        metadata={"help": "how much less likely each further step is for geometric, in (0, 1)"},
    )

    NAMES: ClassVar[tuple[str, ...]] = (
        "original", "next", "future", "final", "random", "geometric", "swap", "prior",
    )

    def __post_init__(self) -> None:
        for name, share in zip(self.NAMES, self.shares, strict=True):
            if not 0.0 <= share < np.inf:
                raise InvalidInputError(f"relabelling: {name} is {share}, should be >= 0")
        if sum(self.shares) <= 0.0:
            raise InvalidInputError("relabelling: all fractions are 0")
        if not 0.0 < self.geometric_discount < 1.0:
            raise InvalidInputError(
                f"relabelling: geometric_discount is {self.geometric_discount}, should be in (0, 1)"
            )

    @property
    def shares(self) -> tuple[float, ...]:
        """The shares in the order of ``NAMES``, not normalised."""
        return tuple(getattr(self, name) for name in self.NAMES)

    @property
    def changes_goals(self) -> bool:
        """Whether any goal is not the recorded one."""
        return sum(self.shares[1:]) > 0.0

    def counts(self, size: int, uniform: float) -> list[int]:
        """How many of ``size`` transitions get which kind of goal, in the order of ``NAMES``.

        Args:
            uniform: drawn from [0, 1); each count is then within 1 of its share of ``size``, and
                its expectation is just that.
        """
        found, before = [], 0
        for edge in _edges(self.shares):
            after = min(int(edge * size + uniform), size)
            found.append(after - before)
            before = after
        return found


@functools.lru_cache(maxsize=64)
def _edges(shares: tuple[float, ...]) -> tuple[float, ...]:
    """Where each share ends, the last that is not 0 at exactly 1."""
    sums = np.cumsum(shares)
    return tuple(float(edge) for edge in sums / sums[-1])


@dataclass(frozen=True)
class GoalTable:
    """What goals are taken from.

    ``achieved`` (R, g) of every state, ``desired`` (E, g) of every episode; ``prior`` where goals
    are drawn from one. ``states`` and ``episodes``, ascending, are the rows of the two that goals
    of others may be drawn from; None for all.
    """

    achieved: NDArray[np.float32]
    desired: NDArray[np.float32]
    prior: GoalPrior | None = None
    states: NDArray[np.int64] | None = None
    episodes: NDArray[np.int64] | None = None


def draw_goals(
    relabelling: Relabelling,
    table: GoalTable,
    at: NDArray[Any],
    left: NDArray[Any],
    episode: NDArray[Any],
    rng: np.random.Generator,
    out: NDArray[np.float32] | None = None,
    counts: list[int] | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Goals for the transitions that start at the states ``at``.

    Args:
        at: (B,) row of ``table.achieved`` of s_t; s_{t+k} has the row ``at`` + k.
        left: (B,) steps T - t, at least 1, from there to the last state of its episode.
        episode: (B,) number of its episode, a row of ``table.desired``; one of those that goals
            may be drawn from.
        out: (B, g) array for the goals; a new one if None.
        counts: how many get which kind of goal, see :meth:`Relabelling.counts`; drawn if None.

    Returns:
        The goals (B, g), and the offsets (B,): how many steps after t the state comes that the
        goal was taken from, -1 where it is not from the transition's own future.

    Raises:
        InvalidInputError: goals of a prior are wanted and it is missing, or they have another
            shape than the table's or are not finite.
    """
    size = len(at)
    goal = np.empty((size, table.achieved.shape[1]), np.float32) if out is None else out
    offset = np.full(size, -1, np.int64)
    start = 0
    if counts is None:
        counts = relabelling.counts(size, rng.random())
    for kind, count in zip(Relabelling.NAMES, counts, strict=True):
        if count == 0:
            continue
        part = slice(start, start + count)
        start += count
        if kind == "original":
            table.desired.take(episode[part], axis=0, out=goal[part], mode="clip")
        elif kind == "swap":
            other = _other_episodes(episode[part], table, rng)
            table.desired.take(other, axis=0, out=goal[part], mode="clip")
        elif kind == "prior":
            goal[part] = _from_prior(table, count, rng)
        elif kind == "random":
            choices = table.achieved if table.states is None else table.states
            source = rng.integers(0, len(choices), count)
            if table.states is not None:
                source = table.states.take(source)
            table.achieved.take(source, axis=0, out=goal[part], mode="clip")
        else:
            steps = _steps_ahead(kind, left[part], relabelling.geometric_discount, rng)
            table.achieved.take(at[part] + steps, axis=0, out=goal[part], mode="clip")
            offset[part] = steps
    return goal, offset


def _steps_ahead(
    kind: str, left: NDArray[Any], discount: float, rng: np.random.Generator
) -> NDArray[np.int64]:
    if kind == "next":
        return np.ones(len(left), np.int64)
    if kind == "final":
        return left.astype(np.int64)
    uniform = rng.random(len(left))
    if kind == "future":
        return 1 + (uniform * left).astype(np.int64)
    # The inverse of P(K <= k) = (1 - d^k) / (1 - d^T).
    rate = np.log(discount)
    steps = np.log1p(uniform * np.expm1(left * rate)) / rate
    return np.minimum(1 + steps.astype(np.int64), left)


def _other_episodes(
    own: NDArray[Any], table: GoalTable, rng: np.random.Generator
) -> NDArray[np.int64]:
    episodes = len(table.desired) if table.episodes is None else len(table.episodes)
    if episodes < 2:
        return own.astype(np.int64)
    other = rng.integers(0, episodes - 1, len(own))
    if table.episodes is None:
        other += other >= own
        return other
    other += other >= np.searchsorted(table.episodes, own)
    return table.episodes.take(other)


def _from_prior(table: GoalTable, count: int, rng: np.random.Generator) -> NDArray[Any]:
    if table.prior is None:
        raise InvalidInputError(
            "relabelling: prior has a share, but no generative prior over goals was given"
        )
    goals = np.asarray(table.prior(rng, count))
    expected = (count, table.achieved.shape[1])
    if goals.shape != expected:
        raise InvalidInputError(
            f"relabelling: the prior returned goals of shape {goals.shape}, should be {expected}"
        )
    if not fits_float32(goals):
        raise InvalidInputError(
            "relabelling: the prior returned goals that hold values which are no finite float32"
        )
    return goals


def fits_float32(values: NDArray[Any]) -> bool:
    """Whether all are numbers that are finite as float32."""
    if values.dtype in (np.float32, np.float16):
        return bool(np.isfinite(values).all())
    return values.dtype.kind in "fiub" and bool((np.abs(values) <= _LARGEST).all())


def evaluate_function(
    function: RewardFunction | TerminateFunction,
    achieved: NDArray[Any],
    desired: NDArray[Any],
    what: str,
) -> NDArray[Any]:
    """A task's ``function`` on (..., g) achieved and desired goals, as (...,).

    Raises:
        InvalidInputError: what it returns, which ``what`` names, has another shape, or is no finite
            float32.
    """
    goal_dim = achieved.shape[-1]
    values = np.asarray(function(achieved.reshape(-1, goal_dim), desired.reshape(-1, goal_dim)))
    count = achieved.size // max(goal_dim, 1)
    if values.shape != (count,):
        raise InvalidInputError(
            f"the {what} function returned shape {values.shape} for {count} goals, should be "
            f"({count},)"
        )
    if not fits_float32(values):
        raise InvalidInputError(
            f"the {what} function returned values that are no finite float32 for {count} goals"
        )
    return values.reshape(achieved.shape[:-1])


def n_step_returns(
    rewards: NDArray[Any], ends: NDArray[Any], left: NDArray[Any], discount: float
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]:
    """Discounted sums of up to n rewards, cut where the episode terminates or is over.

    With m the number of steps that are taken, at most n and T - t, and none after one that
    terminates: R = sum_{j<m} discount^j r_{t+j}, to be followed by discount^m V(s_{t+m}) unless
    step t+m-1 terminates.

    Args:
        rewards: (B, n) of the steps t .. t+n-1; what lies beyond the episode's end is not read.
        ends: (B, n) bool, whether these steps terminate.
        left: (B,) steps T - t, at least 1, to the episode's last state.

    Returns:
        R (B,), m (B,), and the discount (B,) of what follows: discount^m, or 0.
    """
    count = rewards.shape[1]
    runs = np.arange(count) < left[:, None]
    runs[:, 1:] &= ~np.logical_or.accumulate(ends[:, :-1], axis=1)
    powers = discount ** np.arange(count + 1, dtype=np.float64)
    returns = np.where(runs, rewards, 0.0) @ powers[:-1]
    taken = runs.sum(axis=1)
    over = np.take_along_axis(ends, taken[:, None] - 1, axis=1)[:, 0]
    return returns, taken, np.where(over, 0.0, powers[taken])


@dataclass(frozen=True)
class LatentReward:
    """Reward between latents z (B, k) by their Euclidean distance d to the goal's.

    -d where ``threshold`` is 0 (RIG, seed 001, ch. 2); else 0 where d <= ``threshold`` and -1
    elsewhere (PTP, seed 001, ch. 10, has a threshold of 2).

    Raises:
        InvalidInputError: a threshold below 0, or not finite.
    """

    threshold: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.threshold < np.inf:
            raise InvalidInputError(f"latent reward: threshold is {self.threshold}, should be >= 0")

    def distance(self, achieved: NDArray[Any], desired: NDArray[Any]) -> NDArray[Any]:
        """Distances (B,)."""
        difference = achieved - desired
        return np.asarray(np.sqrt(np.einsum("...i,...i->...", difference, difference)))

    def __call__(self, achieved: NDArray[Any], desired: NDArray[Any]) -> NDArray[Any]:
        """Rewards (B,)."""
        distance = self.distance(achieved, desired)
        if self.threshold == 0.0:
            return -distance
        return (distance <= self.threshold).astype(np.float32) - np.float32(1.0)

    def reached(self, achieved: NDArray[Any], desired: NDArray[Any]) -> NDArray[np.bool_]:
        """Whether each goal is reached, (B,): a ``terminate`` function.

        Raises:
            InvalidInputError: there is no threshold.
        """
        if self.threshold == 0.0:
            raise InvalidInputError("latent reward: without a threshold no goal counts as reached")
        return np.asarray(self.distance(achieved, desired) <= self.threshold)
