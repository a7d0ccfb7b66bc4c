"""Replay: transitions in flat arrays, sampled with relabelled goals, all vectorised."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from robot_rl.data.episodes import Episode
from robot_rl.data.relabel import (
    GoalPrior,
    Relabelling,
    RewardFunction,
    TerminateFunction,
    draw_goals,
    evaluate_function,
    n_step_returns,
)
from robot_rl.data.rows import INTERVENTION, SUCCESS
from robot_rl.data.store import Recycler
from robot_rl.data.tables import EpisodeTables, Tables
from robot_rl.errors import InvalidInputError, unknown_name

__all__ = ["EXTRAS", "MixedReplay", "Relabelling", "Replay", "RewardFunction", "Sampler"]

#: What a batch can hold beside what agents take.
EXTRAS = ("offset", "goal_discount", "intervention", "success", "episode", "step", "achieved",
          "next_achieved")
_PAIR = np.arange(2)

#: Changes episodes before they are added, e.g. to the rewards of another task.
Prepare = Callable[[list[Episode]], list[Episode]]


class Sampler(Protocol):
    """What a training loop draws batches from."""

    def sample(self, size: int, rng: np.random.Generator) -> dict[str, Any]: ...


class Replay(EpisodeTables):
    """Transitions of whole episodes.

    Each episode of T steps takes T + 1 rows; next states are the following row, stored once, and
    so are frames. Episodes can be added while other threads sample: a batch is of the episodes
    that were whole when it was begun.

    Args:
        observation_dim, goal_dim, action_dim: sizes of a row.
        discount: gamma, in [0, 1], of the returned ``discount`` (0 where the step terminated).
        relabelling: shares of goals; only the original makes sense where ``goal_dim`` is 0,
            unless goals will be latents of images (:meth:`encode_goals`).
        reward: recomputes rewards from (achieved, desired), (B, g) each to (B,); needed for any
            relabelling.
        capacity: rows to make room for at first.
        terminate: whether an episode ends there, as ``reward`` to (B,) bool; needed to relabel
            episodes that terminate. Without it no relabelled transition does.
        prior: draws goals, (generator, size) to (size, g), for the share ``prior``.
        n_step: rewards are discounted sums of up to so many steps, next states those after them.
        include_resets: also sample the steps of automated resets, which otherwise neither are
            sampled nor give goals to others nor count into n-step rewards.
        cameras: frames' (H, W, C) by the cameras to keep images of.
        memory_limit: bytes that the arrays may take before they go to files; None for half of
            the memory there is.
        scratch: folder for these files, which have no name and go with the process; None for
            the system's temporary folder.

    Raises:
        InvalidInputError: an option is out of range, or lacks another one that it needs.
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
        terminate: TerminateFunction | None = None,
        prior: GoalPrior | None = None,
        n_step: int = 1,
        include_resets: bool = False,
        cameras: Mapping[str, tuple[int, int, int]] | None = None,
        memory_limit: int | None = None,
        scratch: str | Path | None = None,
    ) -> None:
        self.relabelling = relabelling or Relabelling()
        if self.relabelling.changes_goals:
            if reward is None:
                raise InvalidInputError("relabelling goals needs the task's reward function")
            if goal_dim == 0 and not cameras:
                raise InvalidInputError("goals cannot be relabelled: the task has none")
            if self.relabelling.prior > 0.0 and prior is None:
                raise InvalidInputError(
                    f"relabelling: prior is {self.relabelling.prior}, but no generative prior over "
                    "goals was given"
                )
        if not 0.0 <= discount <= 1.0:
            raise InvalidInputError(f"discount is {discount}, should be in [0, 1]")
        if n_step < 1:
            raise InvalidInputError(f"n_step is {n_step}, should be at least 1")
        super().__init__(
            (observation_dim, goal_dim, action_dim), relabelled=self.relabelling.changes_goals,
            reward=reward, terminate=terminate, prior=prior, include_resets=include_resets,
            cameras=cameras, capacity=capacity, memory_limit=memory_limit, scratch=scratch,
        )
        self.discount, self.n_step = discount, n_step
        self._left = self.layout.left_in_all if include_resets else self.layout.left
        self._recycled = Recycler()

    @classmethod
    def open(cls, paths: str | Path | Sequence[str | Path], **options: Any) -> Replay:
        """A replay buffer of the episodes of any number of logs, see :func:`view.open_replay`."""
        from robot_rl.data.view import open_replay

        return open_replay(paths, **options)[1]

    def follow(
        self, path: str | Path, *, prepare: Prepare | None = None
    ) -> Follower:
        """What adds the episodes that another process commits to the log ``path``.

        Begins after those that are here already. ``prepare`` changes each before it is added. An
        episode counts as new if its number, size or time is. What was set aside or removed from
        the log meanwhile stays in the buffer.
        """
        return Follower(self, path, prepare)

    # ----------------------------------------------------------------- sampling

    def sample(
        self,
        size: int,
        rng: np.random.Generator,
        *,
        extras: Sequence[str] = (),
        cameras: Sequence[str] = (),
        next_images: bool = True,
    ) -> dict[str, Any]:
        """A batch of ``size`` transitions, drawn uniformly, as C-contiguous float32 arrays.

        Keys: ``observation`` (B, o), ``goal`` (B, g), ``action`` (B, a), ``reward`` (B,),
        ``next_observation`` (B, o), ``discount`` (B,): gamma^n (1 - terminated). Nothing else
        writes to a batch as long as anything refers to one of its arrays.

        Args:
            extras: further keys, of ``EXTRAS``. ``offset`` (B,) int64: how many steps later the
                state comes that the goal was taken from, -1 where it is not from the transition's
                own future. ``goal_discount`` (B,): gamma^offset, the discounted relabelling
                weight of WGCSL (seed 002), and 1 where offset is -1, as WGCSL says nothing of
                goals that are not of the own future; mask those by ``offset`` if need be.
                ``intervention``, ``success`` (B,) bool: as recorded. ``episode``, ``step`` (B,)
                int64: where it comes from. ``achieved``, ``next_achieved`` (B, g): of its states.
            cameras: adds ``images`` and, with ``next_images``, also ``next_images``: dicts of
                (B, H, W, C) uint8 by camera.

        Raises:
            InvalidInputError: the buffer is empty, or has no such extra or camera; or the reward,
                the terminate function or the prior returns something else than it should.
        """
        tables = self.tables
        if tables.transitions == 0:
            raise InvalidInputError("cannot sample from an empty replay buffer")
        batch = self.allocate(size, tables, extras, cameras, next_images)
        self.fill(tables, batch, rng)
        return batch

    def allocate(
        self, size: int, tables: Tables, extras: Sequence[str], cameras: Sequence[str],
        next_images: bool,
    ) -> dict[str, Any]:
        """The arrays of a batch, not yet filled."""
        if size < 1:
            raise InvalidInputError(f"batch size is {size}, should be at least 1")
        new, f32 = self._recycled.empty, np.float32
        observation_dim, _, action_dim = self.sizes
        goal_dim = tables.goals.achieved.shape[1]
        batch: dict[str, Any] = {
            "observation": new((size, observation_dim), f32),
            "goal": new((size, goal_dim), f32),
            "action": new((size, action_dim), f32),
            "reward": new((size,), f32),
            "next_observation": new((size, observation_dim), f32),
            "discount": new((size,), f32),
        }
        kinds: dict[str, Any] = {"goal_discount": f32, "intervention": np.bool_,
                                 "success": np.bool_}
        for name in extras:
            if name not in EXTRAS:
                raise unknown_name("extra", name, EXTRAS)
            if name in ("achieved", "next_achieved"):
                batch[name] = new((size, goal_dim), f32)
            else:
                batch[name] = new((size,), kinds.get(name, np.int64))
        for name in cameras:
            if name not in self.cameras:
                raise unknown_name("camera", name, self.cameras)
            for key in ("images", "next_images") if next_images else ("images",):
                batch.setdefault(key, {})[name] = new((size, *self.cameras[name]), np.uint8)
        return batch

    def fill(self, tables: Tables, batch: dict[str, Any], rng: np.random.Generator) -> None:
        """Draw transitions into the arrays of ``batch``."""
        layout, dim, size = self.layout, self.layout.observation_dim, len(batch["reward"])
        at = tables.valid.take(rng.integers(0, tables.transitions, size))
        pairs = self._recycled.empty((size, 2, layout.width), np.float32)
        tables.rows.take(at[:, None] + _PAIR, axis=0, out=pairs, mode="clip")
        row = pairs[:, 0]
        ints = row.view(np.int32)
        batch["observation"][...] = row[:, :dim]
        batch["action"][...] = row[:, dim : layout.reward]
        offset, kept = np.full(size, -1, np.int64), size
        if batch["goal"].shape[1]:
            counts = self.relabelling.counts(size, rng.random())
            kept = counts[0]
            _, offset = draw_goals(self.relabelling, tables.goals, at, ints[:, self._left],
                                   ints[:, layout.episode], rng, out=batch["goal"], counts=counts)
        if self.n_step == 1:
            steps: Any = 1
            self._fill_rewards(tables, batch, at, row, kept)
            batch["next_observation"][...] = pairs[:, 1, :dim]
        else:
            steps = self._fill_returns(tables, batch, at, ints[:, self._left], kept)
            ends = tables.rows.take(at + steps, axis=0)
            batch["next_observation"][...] = ends[:, :dim]
        for name, frames in batch.get("images", {}).items():
            self._frames[name].take(tables.index[name].take(at), frames)
        for name, frames in batch.get("next_images", {}).items():
            self._frames[name].take(tables.index[name].take(at + steps), frames)
        if len(batch) > 6:
            self._fill_extras(tables, batch, at, at + steps, offset, ints)

    def _fill_rewards(
        self, tables: Tables, batch: dict[str, Any], at: NDArray[Any], row: NDArray[Any], kept: int
    ) -> None:
        """Rewards and discounts of one step; the first ``kept`` have their recorded goals."""
        reward, discount, size = batch["reward"], batch["discount"], len(at)
        reward[...] = row[:, self.layout.reward]
        np.multiply(row[:, self.layout.continues], np.float32(self.discount), out=discount)
        first = 0 if tables.encoded else kept
        if first == size or tables.reward is None:
            return
        achieved = tables.goals.achieved.take(at[first:] + 1, axis=0)
        goal = batch["goal"][first:]
        reward[first:] = evaluate_function(tables.reward, achieved, goal, "reward")
        if kept < size:
            discount[kept:] = self.discount
            if tables.terminate is not None:
                ends = evaluate_function(tables.terminate, achieved[kept - first :],
                                         goal[kept - first :], "terminate")
                discount[kept:][ends.astype(np.bool_)] = 0.0

    def _fill_returns(
        self, tables: Tables, batch: dict[str, Any], at: NDArray[Any], left: NDArray[Any],
        kept: int,
    ) -> NDArray[np.int64]:
        """The same for n steps; returns how many are taken, (B,)."""
        size = len(at)
        steps = at[:, None] + np.minimum(np.arange(self.n_step), left[:, None] - 1)
        rewards = tables.rows[:, self.layout.reward][steps].astype(np.float64)
        ends = tables.rows[:, self.layout.continues][steps] == 0.0
        first = 0 if tables.encoded else kept
        if first < size and tables.reward is not None:
            achieved = tables.goals.achieved.take(steps[first:] + 1, axis=0)
            goal = np.repeat(batch["goal"][first:, None], self.n_step, axis=1)
            rewards[first:] = evaluate_function(tables.reward, achieved, goal, "reward")
            ends[kept:] = False
            if tables.terminate is not None and kept < size:
                ends[kept:] = evaluate_function(tables.terminate, achieved[kept - first :],
                                                goal[kept - first :], "terminate")
        returns, taken, discount = n_step_returns(rewards, ends, left, self.discount)
        batch["reward"][...] = returns
        batch["discount"][...] = discount
        return taken

    def _fill_extras(
        self, tables: Tables, batch: dict[str, Any], at: NDArray[Any], then: NDArray[Any],
        offset: NDArray[np.int64], ints: NDArray[np.int32],
    ) -> None:
        episode, flags = ints[:, self.layout.episode], ints[:, self.layout.flags]
        values: dict[str, Callable[[], Any]] = {
            "offset": lambda: offset,
            "goal_discount": lambda: self.discount ** np.maximum(offset, 0),
            "intervention": lambda: flags & INTERVENTION != 0,
            "success": lambda: flags & SUCCESS != 0,
            "episode": lambda: episode,
            "step": lambda: at - tables.first.take(episode),
            "achieved": lambda: tables.goals.achieved.take(at, axis=0),
            "next_achieved": lambda: tables.goals.achieved.take(then, axis=0),
        }
        for name, value in values.items():
            if name in batch:
                batch[name][...] = value()


class Follower:
    """Adds to a replay buffer what another process commits to a log."""

    def __init__(
        self, replay: Replay, path: str | Path,
        prepare: Prepare | None = None,
    ) -> None:
        self.replay, self.path, self._prepare = replay, Path(path), prepare
        self._lock = threading.Lock()

    def refresh(self) -> int:
        """Add the episodes committed since the last time; returns how many.

        Raises:
            InvalidInputError: the log, or an episode of it, cannot be read or does not fit; those
                before it were added, and it is tried again the next time.
        """
        from robot_rl.data.log import open_log

        with self._lock:
            log, added = open_log(self.path), 0
            seen = self.replay.sources.setdefault(self.path.resolve(), set())
            for file in log.files:
                if (file.number, file.size, file.mtime_ns) in seen:
                    continue
                episode = log.read(file, images=bool(self.replay.cameras))
                self.replay.add_all(self._prepare([episode]) if self._prepare else [episode])
                seen.add((file.number, file.size, file.mtime_ns))
                added += 1
            return added


class MixedReplay:
    """Batches that are part recorded data, part practice.

    Practice has at most the share ``online_fraction`` of a batch (seed 001, ch. 10 uses .6), and
    never more than its share of all transitions: a large part of every batch from a few fresh
    episodes would overfit the critics to them, and what was pretrained would be lost again. With
    ``strict`` it always has the share ``online_fraction``, as the paper does. The share is met on
    average: each batch's number is rounded up or down at random.

    Raises:
        InvalidInputError: the share is out of range, or the buffers' discounts or n-step differ.
    """

    def __init__(
        self, offline: Replay, online: Replay, online_fraction: float, *, strict: bool = False
    ) -> None:
        if not 0.0 <= online_fraction <= 1.0:
            raise InvalidInputError(f"online_fraction is {online_fraction}, should be in [0, 1]")
        for name in ("discount", "n_step"):
            values = getattr(offline, name), getattr(online, name)
            if values[0] != values[1]:
                raise InvalidInputError(
                    f"the buffers to mix have {name} {values[0]} and {values[1]}, should be one"
                )
        self.offline, self.online, self.online_fraction = offline, online, online_fraction
        self.strict = strict

    def sample(
        self,
        size: int,
        rng: np.random.Generator,
        *,
        extras: Sequence[str] = (),
        cameras: Sequence[str] = (),
        next_images: bool = True,
    ) -> dict[str, Any]:
        """As :meth:`Replay.sample`; all from one buffer while the other is empty.

        Raises:
            InvalidInputError: as there, or the buffers' sizes differ.
        """
        recorded, fresh = self.offline.tables, self.online.tables
        options: dict[str, Any] = {"extras": extras, "cameras": cameras,
                                   "next_images": next_images}
        if fresh.transitions == 0:
            return self.offline.sample(size, rng, **options)
        if recorded.transitions == 0:
            return self.online.sample(size, rng, **options)
        sizes = [(*r.sizes, r.goal_dim, r.cameras) for r in (self.offline, self.online)]
        if sizes[0] != sizes[1]:
            raise InvalidInputError(f"the buffers to mix have sizes {sizes[0]} and {sizes[1]}")
        share = fresh.transitions / (fresh.transitions + recorded.transitions)
        share = self.online_fraction if self.strict else min(self.online_fraction, share)
        practice = min(int(size * share + rng.random()), size)
        if practice in (0, size):
            return (self.online if practice else self.offline).sample(size, rng, **options)
        batch = self.offline.allocate(size, recorded, extras, cameras, next_images)
        self.offline.fill(recorded, _part(batch, slice(0, size - practice)), rng)
        self.online.fill(fresh, _part(batch, slice(size - practice, size)), rng)
        return batch


def _part(batch: dict[str, Any], rows: slice) -> dict[str, Any]:
    return {key: _part(value, rows) if isinstance(value, dict) else value[rows]
            for key, value in batch.items()}
