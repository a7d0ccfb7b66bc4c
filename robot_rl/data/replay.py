"""Replay: transitions in flat arrays, sampled with relabelled goals, all vectorised."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from robot_rl.data.episodes import Episode
from robot_rl.errors import InvalidInputError

RewardFunction = Callable[[NDArray[Any], NDArray[Any]], NDArray[np.float64]]


@dataclass(frozen=True)
class Relabelling:
    """Which goals the sampled transitions get, as fractions that are normalised to 1.

    ``original`` keeps the episode's goal, ``next`` takes what the next state achieved, ``future``
    what a later state of the episode achieved (uniformly), ``final`` what its last state did,
    ``random`` what any state of the buffer did. Rewards are recomputed.
    """

    original: float = field(default=1.0, metadata={"help": "share of goals kept as recorded"})
    next: float = field(default=0.0, metadata={"help": "share replaced by the next state's"})
    future: float = field(default=0.0, metadata={"help": "share replaced by a later state's"})
    final: float = field(default=0.0, metadata={"help": "share replaced by the last state's"})
    random: float = field(default=0.0, metadata={"help": "share replaced by any state's"})

    def __post_init__(self) -> None:
        for name, share in zip(self.NAMES, self.shares, strict=True):
            if not 0.0 <= share < np.inf:
                raise InvalidInputError(f"relabelling: {name} is {share}, should be >= 0")
        if sum(self.shares) <= 0.0:
            raise InvalidInputError("relabelling: all fractions are 0")

    NAMES = ("original", "next", "future", "final", "random")

    @property
    def shares(self) -> tuple[float, ...]:
        return (self.original, self.next, self.future, self.final, self.random)


class Sampler(Protocol):
    """What a training loop draws batches from."""

    def sample(self, size: int, rng: np.random.Generator) -> dict[str, NDArray[np.float32]]: ...


class Replay:
    """Transitions of whole episodes.

    Each episode of T steps takes T + 1 rows; next states are the following row, stored once.

    Args:
        observation_dim, goal_dim, action_dim: sizes of a row.
        discount: of the returned ``discount`` (0 where the step terminated).
        relabelling: shares of goals; only the original makes sense where ``goal_dim`` is 0.
        reward: recomputes rewards from (achieved, desired), (B, g) each to (B,); needed for any
            relabelling.
    """

    def __init__(
        self,
        observation_dim: int,
        goal_dim: int,
        action_dim: int,
        *,
        discount: float,
        relabelling: Relabelling | None = None,
        reward: RewardFunction | None = None,
        capacity: int = 1024,
    ) -> None:
        self.relabelling = relabelling or Relabelling()
        if reward is None and sum(self.relabelling.shares[1:]) > 0.0:
            raise InvalidInputError("relabelling goals needs the task's reward function")
        if goal_dim == 0 and sum(self.relabelling.shares[1:]) > 0.0:
            raise InvalidInputError("goals cannot be relabelled: the task has none")
        self.discount = discount
        self._reward = reward
        self._dims = (observation_dim, goal_dim, action_dim)
        self._rows = 0
        self._transitions = 0
        self.episodes = 0
        self._observation = np.empty((capacity, observation_dim), np.float32)
        self._achieved = np.empty((capacity, goal_dim), np.float32)
        self._desired = np.empty((capacity, goal_dim), np.float32)
        self._action = np.empty((capacity, action_dim), np.float32)
        self._rewards = np.empty(capacity, np.float32)
        self._discounts = np.empty(capacity, np.float32)
        self._last = np.empty(capacity, np.int64)
        self._valid = np.empty(capacity, np.int64)

    def __len__(self) -> int:
        """Number of transitions."""
        return self._transitions

    @property
    def observations(self) -> NDArray[np.float32]:
        """Every stored observation (rows, o)."""
        return self._observation[: self._rows]

    @property
    def goals(self) -> NDArray[np.float32]:
        """Every stored achieved and desired goal (2 rows, g)."""
        return np.concatenate([self._achieved[: self._rows], self._desired[: self._rows]])

    def add(self, episode: Episode) -> None:
        """Add an episode.

        Raises:
            InvalidInputError: its sizes are not the buffer's.
        """
        found = (episode.observation.shape[1], episode.achieved.shape[1], episode.action.shape[1])
        if episode.observation.ndim != 2 or found != self._dims:
            raise InvalidInputError(
                f"episode has observation, goal and action sizes {found}, should be {self._dims}"
            )
        if episode.terminated.any() and sum(self.relabelling.shares[1:]) > 0.0:
            raise InvalidInputError(
                "an episode that terminates cannot have its goals relabelled: whether it would "
                "have ended at another goal is not known; keep the original goals (original 1)"
            )
        steps = len(episode)
        first, end = self._rows, self._rows + steps + 1
        self._grow(end)
        rows = slice(first, end - 1)
        self._observation[first:end] = episode.observation
        self._achieved[first:end] = episode.achieved
        self._desired[first:end] = episode.desired
        self._action[rows] = episode.action
        self._rewards[rows] = episode.reward
        self._discounts[rows] = self.discount * (1.0 - episode.terminated)
        self._last[first:end] = end - 1
        self._valid[self._transitions : self._transitions + steps] = np.arange(first, end - 1)
        self._rows = end
        self._transitions += steps
        self.episodes += 1

    def add_all(self, episodes: Iterable[Episode]) -> Replay:
        """Add several; returns itself."""
        for episode in episodes:
            self.add(episode)
        return self

    def sample(self, size: int, rng: np.random.Generator) -> dict[str, NDArray[np.float32]]:
        """A batch of ``size`` transitions, drawn uniformly, as float32 arrays.

        Keys: ``observation`` (B, o), ``goal`` (B, g), ``action`` (B, a), ``reward`` (B,),
        ``next_observation`` (B, o), ``discount`` (B,).
        """
        if self._transitions == 0:
            raise InvalidInputError("cannot sample from an empty replay buffer")
        index = self._valid[rng.integers(0, self._transitions, size)]
        goal = self._desired[index]
        reward = self._rewards[index]
        if self._reward is not None:
            counts = self._counts(size)
            self._relabel(goal, index, counts, rng)
            kept = counts[0]
            if kept < size:
                reward[kept:] = self._reward(self._achieved[index[kept:] + 1], goal[kept:])
        return {
            "observation": self._observation[index],
            "goal": goal,
            "action": self._action[index],
            "reward": reward,
            "next_observation": self._observation[index + 1],
            "discount": self._discounts[index],
        }

    def _counts(self, size: int) -> list[int]:
        shares = np.asarray(self.relabelling.shares)
        edges = np.rint(np.cumsum(shares / shares.sum()) * size).astype(int)
        return list(np.diff(edges, prepend=0))

    def _relabel(
        self,
        goal: NDArray[np.float32],
        index: NDArray[np.int64],
        counts: list[int],
        rng: np.random.Generator,
    ) -> None:
        start = counts[0]
        for kind, count in zip(Relabelling.NAMES[1:], counts[1:], strict=True):
            if count == 0:
                continue
            rows = slice(start, start + count)
            at, last = index[rows], self._last[index[rows]]
            if kind == "next":
                source = at + 1
            elif kind == "future":
                source = at + 1 + (rng.random(count) * (last - at)).astype(np.int64)
            elif kind == "final":
                source = last
            else:
                source = rng.integers(0, self._rows, count)
            goal[rows] = self._achieved[source]
            start += count

    def _grow(self, rows: int) -> None:
        if rows <= len(self._last):
            return
        size = max(rows, 2 * len(self._last))
        for name in ("_observation", "_achieved", "_desired", "_action", "_rewards", "_discounts",
                     "_last", "_valid"):
            old = getattr(self, name)
            new = np.empty((size, *old.shape[1:]), old.dtype)
            new[: len(old)] = old
            setattr(self, name, new)


class MixedReplay:
    """Batches that are part recorded data, part practice.

    Practice has at most the share ``online_fraction`` of a batch (seed 001, ch. 10 uses .6), and
    never more than its share of all transitions: a large part of every batch from a few fresh
    episodes would overfit the critics to them, and what was pretrained would be lost again.
    """

    def __init__(self, offline: Replay, online: Replay, online_fraction: float) -> None:
        if not 0.0 <= online_fraction <= 1.0:
            raise InvalidInputError(f"online_fraction is {online_fraction}, should be in [0, 1]")
        self.offline, self.online, self.online_fraction = offline, online, online_fraction

    def sample(self, size: int, rng: np.random.Generator) -> dict[str, NDArray[np.float32]]:
        """As :meth:`Replay.sample`; all from one buffer while the other is empty."""
        share = len(self.online) / max(len(self.online) + len(self.offline), 1)
        practice = int(round(size * min(self.online_fraction, share)))
        if len(self.online) == 0:
            practice = 0
        elif len(self.offline) == 0:
            practice = size
        if practice == 0:
            return self.offline.sample(size, rng)
        if practice == size:
            return self.online.sample(size, rng)
        recorded = self.offline.sample(size - practice, rng)
        fresh = self.online.sample(practice, rng)
        return {key: np.concatenate([recorded[key], fresh[key]]) for key in recorded}
