"""How replay lays episodes out: one row of numbers for each state, next states being the next row.

All that a transition needs but its goals lies in one row, and its next state in the row after, so
that reading one is reading one place of memory.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from robot_rl.data.episodes import Episode, Images
from robot_rl.errors import InvalidInputError

INTERVENTION, RESET, SUCCESS, TRUNCATED = 1, 2, 4, 8


@dataclass(frozen=True)
class Layout:
    """The columns of a row: observation (o), action (a), and then one number each.

    Reward and ``continues`` (0 where the step terminated, else 1) are float32; the others are
    int32 in the same four bytes: ``left``, the steps from this state to the last one that the same
    controller led to (an automated reset has another one), ``left_in_all``, those to the episode's
    last state, ``episode``, its number, and ``flags``. Last states have neither action nor step.
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
        ints[:, self.left_in_all] = np.arange(steps, -1, -1)
        ints[:, self.left] = steps_left(episode.reset, steps)
        ints[:, self.episode] = number
        flags = np.zeros(steps, np.int32)
        for bit, values in ((INTERVENTION, episode.intervention), (RESET, episode.reset),
                            (SUCCESS, episode.success), (TRUNCATED, episode.truncated)):
            if values is not None:
                flags |= bit * values.astype(np.int32)
        ints[:-1, self.flags] = flags
        ints[-1, self.flags] = 0
        check_finite(rows[:, : self.continues], "observation, action or reward")


def check_finite(values: NDArray[np.float32], what: str) -> None:
    """Raise InvalidInputError, naming ``what``, if a float32 is not a finite number."""
    if not np.isfinite(values).all():
        raise InvalidInputError(f"episode: {what} holds values that are no finite float32")


def steps_left(reset: NDArray[np.bool_] | None, steps: int) -> NDArray[np.int64]:
    """Steps (T + 1,) from each state to where the reset flag changes, or the episode ends."""
    if reset is None or not reset.any():
        return np.arange(steps, -1, -1)
    ends = np.append(np.flatnonzero(reset[1:] != reset[:-1]) + 1, steps)
    step = np.arange(steps)
    return np.append(ends[np.searchsorted(ends, step, side="right")] - step, 0)


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
