"""How replay lays episodes out: one row of numbers for each state, next states being the next row.

All that a transition needs but its goals lies in one row, and its next state in the row after, so
that reading one is reading one place of memory.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from robot_rl.data.episodes import Episode, Images
from robot_rl.errors import InvalidInputError

INTERVENTION, RESET, SUCCESS, TRUNCATED = 1, 2, 4, 8
_FLAGS = ("terminated", "truncated", "success", "intervention", "reset")
_BLOCK = 1 << 16


@dataclass(frozen=True)
class Layout:
    """The columns of a row: observation (o), action (a), and then one number each.

    Reward and ``continues`` (0 where the step terminated, else 1) are float32; the others are
    int32 in the same four bytes: ``left``, the steps from this state to the last one that the same
    controller led to (an automated reset has another one), ``left_in_all``, those to the episode's
    last state, ``episode``, its number, and ``flags``. Neither goes beyond a step that terminated.
    Last states have neither action nor step.
    """

    observation_dim: int
    action_dim: int

    @property
    def reward(self) -> int:
        return self.observation_dim + self.action_dim

    @property
    def continues(self) -> int:
        return self.reward + 1

    @property
    def left(self) -> int:
        return self.reward + 2

    @property
    def left_in_all(self) -> int:
        return self.reward + 3

    @property
    def episode(self) -> int:
        return self.reward + 4

    @property
    def flags(self) -> int:
        return self.reward + 5

    @property
    def width(self) -> int:
        return self.reward + 6

    def pack(self, episode: Episode, number: int, rows: NDArray[np.float32]) -> None:
        """Write the states of ``episode``, the ``number``-th, to ``rows`` (T + 1, width).

        Raises:
            InvalidInputError: a number is not finite, or beyond float32.
        """
        steps = len(episode)
        ints = rows.view(np.int32)
        rows[-1, self.observation_dim :] = 0.0
        with np.errstate(over="ignore"):
            rows[:, : self.observation_dim] = episode.observation
            rows[:-1, self.observation_dim : self.reward] = episode.action
            rows[:-1, self.reward] = episode.reward
        rows[:-1, self.continues] = ~episode.terminated
        rows[-1, self.continues] = 1.0
        ended = episode.terminated[:-1]
        ints[:, self.left_in_all] = steps_left(ended, steps)
        if episode.reset is not None:
            ended = ended | (episode.reset[1:] != episode.reset[:-1])
        ints[:, self.left] = steps_left(ended, steps)
        ints[:, self.episode] = number
        flags = np.zeros(steps, np.int32)
        for bit, values in ((INTERVENTION, episode.intervention), (RESET, episode.reset),
                            (SUCCESS, episode.success), (TRUNCATED, episode.truncated)):
            if values is not None:
                flags |= bit * values.astype(np.int32)
        ints[:-1, self.flags] = flags
        ints[-1, self.flags] = 0
        check_finite(rows[:, : self.continues], "observation, action or reward")

    def holds(self, rows: NDArray[np.float32], first: NDArray[np.int64]) -> bool:
        """Whether ``rows`` (R, width) could be what :meth:`pack` writes for episodes that begin at
        the rows ``first`` (E,), so that nothing drawn from them lies elsewhere."""
        count = len(rows)
        if len(first) == 0 or count == 0:
            return len(first) == count
        if first[0] != 0 or first.min() < 0 or first.max() >= count:
            return False
        states = np.diff(first, append=count)
        if states.min() < 2:
            return False
        number = np.repeat(np.arange(len(first), dtype=np.int32), states)
        last = np.zeros(count, np.bool_)
        last[first[1:] - 1] = last[-1] = True
        return all(
            self._holds_block(rows[at : at + _BLOCK + 1], number[at : at + _BLOCK],
                              last[at : at + _BLOCK])
            for at in range(0, count, _BLOCK)
        )

    def _holds_block(
        self, rows: NDArray[np.float32], number: NDArray[np.int32], last: NDArray[np.bool_]
    ) -> bool:
        """The same for some rows, and the row after them, if there is one."""
        size, ints = len(last), rows.view(np.int32)
        if not np.isfinite(rows[:size, : self.left]).all():
            return False
        continues = rows[:size, self.continues]
        flags = ints[:, self.flags]
        if (not np.isin(continues, (0.0, 1.0)).all() or (last & (continues == 0.0)).any()
                or (flags & ~(INTERVENTION | RESET | SUCCESS | TRUNCATED)).any()
                or (ints[:size, self.episode] != number).any()):
            return False
        reset = np.append(flags & RESET, 0)
        ended = continues == 0.0
        changes = ended | (reset[:size] != reset[1 : size + 1])
        for column, ends in ((self.left_in_all, ended), (self.left, changes)):
            left = np.append(ints[:, column], 0)
            after = np.where(ends, 1, left[1 : size + 1] + 1)
            if (left[:size] != np.where(last, 0, after)).any():
                return False
        return True


def check_finite(values: NDArray[np.float32], what: str) -> None:
    """Raise InvalidInputError, naming ``what``, if a float32 is not a finite number."""
    if not np.isfinite(values).all():
        raise InvalidInputError(f"episode: {what} holds values that are no finite float32")


def steps_left(ended: NDArray[np.bool_], steps: int) -> NDArray[np.int64]:
    """Steps (T + 1,) from each state to the end of the first step that ``ended`` (T - 1,) marks, or
    that of the episode."""
    if not ended.any():
        return np.arange(steps, -1, -1)
    ends = np.append(np.flatnonzero(ended) + 1, steps)
    step = np.arange(steps)
    return np.append(ends[np.searchsorted(ends, step, side="right")] - step, 0)


def checked(episode: Episode) -> Episode:
    """``episode`` with flags that are bool.

    Raises:
        InvalidInputError: its arrays do not fit each other, or hold values that cannot be.
    """
    flags = {}
    for name in _FLAGS:
        values = getattr(episode, name)
        if values is None or values.dtype == np.bool_:
            continue
        if values.dtype.kind not in "iuf" or not np.isin(values, (0, 1)).all():
            raise InvalidInputError(
                f"episode: {name} is {values.dtype} with other values than 0 and 1, should be bool"
            )
        flags[name] = values.astype(np.bool_)
    for name, images in episode.images.items():
        if images.index.dtype.kind not in "iu":
            raise InvalidInputError(
                f"episode: camera {name!r} has indices of type {images.index.dtype}, should be "
                "integers"
            )
    found = dataclasses.replace(episode, **flags) if flags else episode
    found.check("episode")
    return found


@dataclass
class Packed:
    """Episodes as flat arrays.

    ``rows`` (R, width) as :class:`Layout` says, ``achieved`` (R, g), ``desired`` (E, g), ``first``
    (E,) first row of each episode; by camera ``frames`` (F, H, W, C) and ``index`` (R,), the frame
    of each state. ``mapped``: rows and goals are memory maps.
    """

    rows: NDArray[np.float32]
    achieved: NDArray[np.float32]
    desired: NDArray[np.float32]
    first: NDArray[np.int64]
    frames: dict[str, NDArray[np.uint8]] = field(default_factory=dict)
    index: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    mapped: bool = False


def pack_goals(
    episode: Episode, achieved: NDArray[np.float32], desired: NDArray[np.float32]
) -> None:
    """Write an episode's goals to ``achieved`` (T + 1, g) and ``desired`` (g,).

    Raises:
        InvalidInputError: a number is not finite, or beyond float32.
    """
    with np.errstate(over="ignore"):
        achieved[:], desired[:] = episode.achieved, episode.desired
    check_finite(achieved, "achieved goal")
    check_finite(desired, "desired goal")


def used_frames(images: Images) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The frames that a state saw, and the index (T + 1,) of each state's among them."""
    used, index = np.unique(images.index, return_inverse=True)
    if len(used) == len(images.frames):
        return images.frames, images.index
    return images.frames[used], index


def check_sizes(episode: Episode, sizes: tuple[int, int, int]) -> None:
    """Raise InvalidInputError unless ``episode`` has these observation, goal, action sizes."""
    observation = episode.observation
    found = (observation.shape[-1], episode.achieved.shape[1], episode.action.shape[1])
    if observation.ndim != 2 or found != sizes:
        raise InvalidInputError(
            f"episode has observation, goal and action sizes {found}, should be {sizes}"
        )


def check_camera(episode: Episode, camera: str, shape: tuple[int, ...]) -> Images:
    """The images of ``camera``.

    Raises:
        InvalidInputError: there are none, or of another shape.
    """
    images = episode.images.get(camera)
    if images is None:
        raise InvalidInputError(
            f"episode has no camera {camera!r}; it has {', '.join(episode.images) or 'none'}"
        )
    if images.frames.shape[1:] != shape:
        raise InvalidInputError(
            f"episode: camera {camera!r} has frames of shape {images.frames.shape[1:]}, should be "
            f"{shape}"
        )
    return images
