"""The tables of episodes that replay samples from: how they are filled, and what readers see."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from robot_rl.data.episodes import Episode
from robot_rl.data.relabel import (
    GoalPrior,
    GoalTable,
    RewardFunction,
    TerminateFunction,
    fits_float32,
)
from robot_rl.data.rows import (
    RESET,
    Layout,
    Packed,
    check_camera,
    check_sizes,
    checked,
    pack_goals,
    used_frames,
)
from robot_rl.data.store import Frames, Scratch, Table
from robot_rl.errors import InvalidInputError, unknown_name

_NO_TERMINATION = (
    "an episode that terminates cannot have its goals relabelled: whether it would have ended at "
    "another goal is not known; give the task's terminate function, or keep the original goals "
    "(original 1)"
)

Encode = Callable[[NDArray[Any]], NDArray[Any]]
T = TypeVar("T", bound="EpisodeTables")


@dataclass(frozen=True)
class Tables:
    """What one moment's readers see: it is replaced as a whole, after everything was written.

    ``rows`` (>= count, width), ``valid`` (>= transitions,) the rows that transitions start at,
    ``first`` (>= episodes,) the first row of each episode, by camera ``index`` (>= count,) the
    frame of each row and ``frames`` how many there are; ``recorded`` goals, and ``goals``, the
    same or their latents (``encoded``).
    """

    rows: NDArray[np.float32]
    valid: NDArray[np.int64]
    first: NDArray[np.int64]
    index: dict[str, NDArray[np.int32]]
    frames: dict[str, int]
    count: int
    transitions: int
    episodes: int
    recorded: GoalTable
    goals: GoalTable
    reward: RewardFunction | None
    terminate: TerminateFunction | None
    encoded: bool = False


@dataclass(frozen=True)
class _Encoder:
    """How goals become latents, and those made so far."""

    encode: Encode
    desired: Encode | None
    camera: str | None
    block: int
    latents: list[Table]


class EpisodeTables:
    """Whole episodes as flat arrays, which can grow while other threads read ``tables``.

    Args: see :class:`robot_rl.data.replay.Replay`; ``relabelled`` says whether goals will be.
    """

    def __init__(
        self,
        sizes: tuple[int, int, int],
        *,
        relabelled: bool,
        reward: RewardFunction | None,
        terminate: TerminateFunction | None,
        prior: GoalPrior | None,
        include_resets: bool,
        cameras: Mapping[str, tuple[int, int, int]] | None,
        capacity: int,
        memory_limit: int | None,
        scratch: str | Path | None,
    ) -> None:
        observation_dim, goal_dim, action_dim = sizes
        self.sizes = sizes
        self.layout = Layout(observation_dim, action_dim)
        self.include_resets = include_resets
        self.cameras: dict[str, tuple[int, int, int]] = {
            name: (int(h), int(w), int(c)) for name, (h, w, c) in (cameras or {}).items()
        }
        #: Number, size and time of the files of the episodes that came from each log.
        self.sources: dict[Path, set[tuple[int, int, int]]] = {}
        self._relabelled = relabelled
        self._scratch = Scratch(memory_limit, scratch)
        self._encoder: _Encoder | None = None
        self._lock = threading.RLock()

        def table(shape: tuple[int, ...], dtype: Any) -> Table:
            return Table(shape, dtype, capacity, self._scratch)

        self._rows = table((self.layout.width,), np.float32)
        self._valid = table((), np.int64)
        self._first = table((), np.int64)
        # Where goals of others come from, once that is not everywhere.
        self._goal_states = Table((), np.int64, 1, self._scratch)
        self._goal_episodes = Table((), np.int64, 1, self._scratch)
        self._achieved = table((goal_dim,), np.float32)
        self._desired = table((goal_dim,), np.float32)
        self._index = {name: table((), np.int32) for name in self.cameras}
        self._frames = {name: Frames(s, self._scratch) for name, s in self.cameras.items()}
        empty = GoalTable(self._achieved.array[:0], self._desired.array[:0], prior)
        self.tables = Tables(
            self._rows.array, self._valid.array, self._first.array,
            {name: t.array for name, t in self._index.items()}, dict.fromkeys(self.cameras, 0),
            0, 0, 0, empty, empty, reward, terminate,
        )

    def __len__(self) -> int:
        """Number of transitions that are sampled from."""
        return self.tables.transitions

    @property
    def episodes(self) -> int:
        """Number of episodes."""
        return self.tables.episodes

    @property
    def goal_dim(self) -> int:
        """Size of the goals in a batch: that of the latents after :meth:`encode_goals`."""
        return self.tables.goals.achieved.shape[1]

    @property
    def observations(self) -> NDArray[np.float32]:
        """Every stored observation (rows, o)."""
        tables = self.tables
        return tables.rows[: tables.count, : self.layout.observation_dim]

    @property
    def goals(self) -> NDArray[np.float32]:
        """Every state's achieved and desired goal (2 rows, g)."""
        tables = self.tables
        bounds = np.append(tables.first[: tables.episodes], tables.count)
        desired = np.repeat(tables.goals.desired, np.diff(bounds), axis=0)
        return np.concatenate([tables.goals.achieved, desired])

    @property
    def distinct_goals(self) -> NDArray[np.float32]:
        """Every state's achieved goal, and every episode's desired one (rows + episodes, g)."""
        goals = self.tables.goals
        return np.concatenate([goals.achieved, goals.desired])

    @property
    def frame_bytes(self) -> int:
        """Bytes of all stored frames."""
        return sum(count * self._frames[name].frame_bytes
                   for name, count in self.tables.frames.items())

    # ------------------------------------------------------------------- adding

    def add(self, episode: Episode) -> None:
        """Add an episode; safe while other threads sample or add.

        Raises:
            InvalidInputError: its arrays do not fit each other or hold values that cannot be, its
                sizes are not the buffer's, it lacks a camera, it terminates and cannot be
                relabelled, or there is no room; the buffer is as it was before.
        """
        episode = checked(episode)
        check_sizes(episode, self.sizes)
        images = {name: used_frames(check_camera(episode, name, shape))
                  for name, shape in self.cameras.items()}
        if episode.terminated.any():
            self._check_terminations()
        with self._lock:
            count, number = self.tables.count, self.tables.episodes
            end = count + len(episode) + 1
            rows = self._rows.reserve(end, count)[count:end]
            self.layout.pack(episode, number, rows)
            pack_goals(episode, self._achieved.reserve(end, count)[count:end],
                       self._desired.reserve(number + 1, number)[number])
            self._first.reserve(number + 1, number)[number] = count
            frames = dict(self.tables.frames)
            for name, (new, index) in images.items():
                self._index[name].reserve(end, count)[count:end] = index + frames[name]
                frames[name] = self._frames[name].write(new, frames[name])
            starts = self._starts(rows)
            goals = self._goal_sources(starts, np.zeros(1, np.int64), count, number)
            self._publish(end, number + 1, self._add_valid(starts, count), frames, goals)

    def add_all(self: T, episodes: Iterable[Episode]) -> T:
        """Add several; returns itself."""
        for episode in episodes:
            self.add(episode)
        return self

    def add_packed(self, packed: Packed) -> None:
        """Add episodes that are flat arrays already; frames are not copied.

        Rows and goals are not copied either where the buffer is empty.

        Raises:
            InvalidInputError: as :meth:`add`.
        """
        layout, goal_dim = self.layout, self.sizes[1]
        expected = (layout.width, goal_dim, goal_dim)
        found = (packed.rows.shape[1], packed.achieved.shape[1], packed.desired.shape[1])
        if found != expected:
            raise InvalidInputError(f"packed rows have sizes {found}, should be {expected}")
        for name, shape in self.cameras.items():
            if name not in packed.frames or packed.frames[name].shape[1:] != shape:
                raise InvalidInputError(f"packed rows have no camera {name!r} of shape {shape}")
        if not packed.rows[:, layout.continues].all():
            self._check_terminations()
        if len(packed.rows) == 0:
            return
        with self._lock:
            count, number = self.tables.count, self.tables.episodes
            end, episodes = count + len(packed.rows), number + len(packed.first)
            parts = ((self._rows, packed.rows, count), (self._achieved, packed.achieved, count),
                     (self._desired, packed.desired, number), (self._first, packed.first, number))
            for table, array, at in parts:
                if count == 0:
                    table.adopt(array, in_memory=not packed.mapped)
                else:
                    table.reserve(at + len(array), at)[at : at + len(array)] = array
            if count > 0:
                self._first.array[number:episodes] += count
                self._rows.array.view(np.int32)[count:end, layout.episode] += number
            frames = dict(self.tables.frames)
            for name in self.cameras:
                index = self._index[name].reserve(end, count)
                index[count:end] = packed.index[name]
                index[count:end] += frames[name]
                frames[name] = self._frames[name].adopt(packed.frames[name], frames[name])
            starts = self._starts(self._rows.array[count:end])
            goals = self._goal_sources(starts, packed.first, count, number)
            self._publish(end, episodes, self._add_valid(starts, count), frames, goals)

    def _check_terminations(self) -> None:
        if self._relabelled and self.tables.terminate is None:
            raise InvalidInputError(_NO_TERMINATION)

    def _starts(self, rows: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Whether transitions that are sampled start at these rows."""
        ints = rows.view(np.int32)
        starts = ints[:, self.layout.left_in_all] > 0
        if not self.include_resets:
            starts &= (ints[:, self.layout.flags] & RESET) == 0
        return starts

    def _add_valid(self, starts: NDArray[np.bool_], first: int) -> int:
        """Note the rows from ``first`` on at which transitions start; returns how many there are
        in all."""
        new = np.flatnonzero(starts) + first
        have = self.tables.transitions
        self._valid.reserve(have + len(new), have)[have : have + len(new)] = new
        return have + len(new)

    def _goal_sources(
        self, starts: NDArray[np.bool_], firsts: NDArray[np.int64], row: int, number: int
    ) -> tuple[NDArray[np.int64] | None, NDArray[np.int64] | None]:
        """The states and episodes whose goals others may get, after the new ones from ``row`` and
        ``number`` on: what sampled transitions start or end at, and what has any. None for all."""
        touched = starts.copy()
        touched[1:] |= starts[:-1]
        old = self.tables.recorded
        return (
            _extended(self._goal_states, old.states, touched, row),
            _extended(self._goal_episodes, old.episodes,
                      np.logical_or.reduceat(starts, firsts), number),
        )

    def _publish(
        self, count: int, episodes: int, transitions: int, frames: dict[str, int],
        sources: tuple[NDArray[np.int64] | None, NDArray[np.int64] | None],
    ) -> None:
        """Let readers see what was written."""
        old = self.tables
        recorded = GoalTable(
            self._achieved.array[:count], self._desired.array[:episodes], old.recorded.prior,
            *sources,
        )
        tables = replace(
            old, rows=self._rows.array, valid=self._valid.array, first=self._first.array,
            index={name: t.array for name, t in self._index.items()}, frames=frames, count=count,
            transitions=transitions, episodes=episodes, recorded=recorded, goals=recorded,
        )
        if self._encoder is not None:
            tables = self._encoded(self._encoder, tables, old.count, old.episodes)
        self.tables = tables

    # ------------------------------------------------------------------ latents

    def encode_goals(
        self,
        encode: Encode,
        *,
        camera: str | None = None,
        desired: Encode | None = None,
        reward: RewardFunction | None = None,
        terminate: TerminateFunction | None = None,
        block: int = 1024,
    ) -> None:
        """Replace goals by latents, here and in what is added later; call again to renew them.

        All rewards are then recomputed by ``reward``, those at original goals too.

        Args:
            encode: (n, g) achieved goals, or (n, H, W, C) frames of ``camera``, to (n, z).
            desired: (n, g) recorded desired goals to (n, z). None for ``encode``; with a camera,
                whose goal images are not recorded, for the latent of the episode's last state.
            reward, terminate: of latents (B, z), such as :class:`LatentReward`; in place of those
                of states.
            block: n at most.

        Raises:
            InvalidInputError: no such camera, no reward although goals are relabelled, or latents
                of another shape or not finite; goals are as they were before.
        """
        if camera is not None and camera not in self.cameras:
            raise unknown_name("camera", camera, self.cameras)
        if camera is None and self.sizes[1] == 0:
            raise InvalidInputError("goals cannot be encoded: the task has none; give a camera")
        if self._relabelled and reward is None:
            raise InvalidInputError("relabelling latent goals needs a reward of latents")
        if block < 1:
            raise InvalidInputError(f"block is {block}, should be at least 1")
        with self._lock:
            encoder = _Encoder(encode, desired, camera, block, [])
            tables = replace(self.tables, reward=reward, terminate=terminate, encoded=True)
            # Readers go on with the old latents, which stay if the new ones cannot be made.
            self.tables = self._encoded(encoder, tables, 0, 0)
            self._encoder = encoder

    def _encoded(self, encoder: _Encoder, tables: Tables, count: int, episodes: int) -> Tables:
        """``tables`` with latents as goals; the first ``count`` states' are there already."""
        for at in range(count, tables.count, encoder.block):
            end = min(at + encoder.block, tables.count)
            self._write_latents(encoder, 0, self._goal_inputs(encoder, tables, at, end), at)
        first = np.append(tables.first[: tables.episodes], tables.count)
        for at in range(episodes, tables.episodes, encoder.block):
            end = min(at + encoder.block, tables.episodes)
            if encoder.desired is None and encoder.camera is not None:
                latents = encoder.latents[0].array[first[at + 1 : end + 1] - 1]
                encoder.latents[1].reserve(end, at)[at:end] = latents
            else:
                self._write_latents(encoder, 1, tables.recorded.desired[at:end], at)
        if not encoder.latents:
            return tables
        achieved, desired = encoder.latents
        goals = replace(tables.recorded, achieved=achieved.array[: tables.count],
                        desired=desired.array[: tables.episodes])
        return replace(tables, goals=goals)

    def _goal_inputs(
        self, encoder: _Encoder, tables: Tables, first: int, end: int
    ) -> NDArray[Any]:
        if encoder.camera is None:
            return tables.recorded.achieved[first:end]
        frames = np.empty((end - first, *self.cameras[encoder.camera]), np.uint8)
        self._frames[encoder.camera].take(tables.index[encoder.camera][first:end], frames)
        return frames

    def _write_latents(
        self, encoder: _Encoder, which: int, inputs: NDArray[Any], at: int
    ) -> None:
        """Encode and keep achieved (``which`` 0) or desired (1) goals from row ``at`` on."""
        encode = (encoder.desired or encoder.encode) if which else encoder.encode
        latents = np.asarray(encode(inputs))
        if not encoder.latents and latents.ndim == 2:
            encoder.latents.extend(
                Table(latents.shape[1:], np.float32, 1024, self._scratch) for _ in range(2)
            )
        wanted = encoder.latents[which].shape if encoder.latents else ("z",)
        if not encoder.latents or latents.shape != (len(inputs), *wanted):
            raise InvalidInputError(
                f"encoded goals have shape {latents.shape}, should be ({len(inputs)}, {wanted[0]})"
            )
        if not fits_float32(latents):
            raise InvalidInputError("encoded goals hold values that are no finite float32")
        end = at + len(latents)
        encoder.latents[which].reserve(end, at)[at:end] = latents


def _extended(
    table: Table, old: NDArray[np.int64] | None, chosen: NDArray[np.bool_], first: int
) -> NDArray[np.int64] | None:
    """``old`` and those of the numbers from ``first`` on that are ``chosen``; None for all."""
    if old is None and chosen.all():
        return None
    have = first if old is None else len(old)
    new = np.flatnonzero(chosen) + first
    array: NDArray[np.int64] = table.reserve(have + len(new), have)
    if old is None:
        array[:have] = np.arange(first)
    array[have : have + len(new)] = new
    return array[: have + len(new)]
