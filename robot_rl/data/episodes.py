"""Episodes as arrays in memory, and the names that their parts have on disk."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robot_rl.errors import InvalidInputError

FORMAT = 2
OBSERVATION = "observation.state"
ACHIEVED = "observation.achieved_goal"
DESIRED = "observation.desired_goal"
IMAGES = "observation.images."
ACTION = "action"
REQUESTED = "action.requested"
REWARD = "next.reward"
TERMINATED = "next.terminated"
TRUNCATED = "next.truncated"
SUCCESS = "next.success"
INTERVENTION = "is_intervention"
RESET = "is_reset"
RATE = "control_rate_hz"
TIMESTAMP = "timestamp"
CORE_KEYS = (OBSERVATION, ACHIEVED, DESIRED, ACTION, REQUESTED, REWARD, TERMINATED, TRUNCATED,
             SUCCESS, INTERVENTION, RESET, RATE, TIMESTAMP)


@dataclass
class Images:
    """What one camera saw during an episode of T steps, each frame stored once.

    ``frames`` (F, H, W, C) uint8 in the order they were taken, ``index`` (T + 1,) the frame that
    each state was decided on, ``stamp_s`` (F,) when each frame was taken [s].
    """

    frames: NDArray[np.uint8]
    index: NDArray[np.int64]
    stamp_s: NDArray[np.float64]

    @classmethod
    def each(
        cls, frames: NDArray[np.uint8], stamp_s: NDArray[np.float64] | None = None
    ) -> Images:
        """One frame (T + 1, H, W, C) for every state."""
        count = len(frames)
        stamps = np.zeros(count) if stamp_s is None else stamp_s
        return cls(frames, np.arange(count), stamps)

    def at(self, states: NDArray[Any] | slice) -> NDArray[np.uint8]:
        """The frames (..., H, W, C) that these states saw."""
        return np.asarray(self.frames[self.index[states]])


@dataclass
class Episode:
    """One episode of T steps, which has T + 1 states.

    ``observation`` (T+1, o) float32, ``achieved`` (T+1, g), ``desired`` (g,), ``action`` (T, a) as
    executed, ``requested`` (T, a) as asked for, ``reward`` (T,), ``terminated``, ``truncated``,
    ``success`` (T,) bool. g is 0 for a task without goals, o is 0 where only images were seen.

    ``images`` maps camera names to what they saw. ``intervention`` (T,) marks steps in which a
    person acted, ``reset`` (T,) steps of an automated reset, ``rate_hz`` (T,) is the rate that the
    controller kept. ``stamp_s`` (T+1,) is when each state was measured [s, the rig's clock],
    ``stamps_s`` (T+1,) the same for single parts of it by key, e.g. ``observation.images.front``.
    ``extra`` holds any further numeric arrays by key, with T+1 rows (states) or T rows (steps).
    ``metadata`` is JSON, such as an instruction or where the episode comes from.
    """

    observation: NDArray[np.float32]
    achieved: NDArray[np.float32]
    desired: NDArray[np.float32]
    action: NDArray[np.float32]
    reward: NDArray[np.float32]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    success: NDArray[np.bool_]
    requested: NDArray[np.float32] | None = None
    images: dict[str, Images] = field(default_factory=dict)
    intervention: NDArray[np.bool_] | None = None
    reset: NDArray[np.bool_] | None = None
    rate_hz: NDArray[np.float32] | None = None
    stamp_s: NDArray[np.float64] | None = None
    stamps_s: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    extra: dict[str, NDArray[Any]] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.action)

    def state_arrays(self) -> dict[str, NDArray[Any]]:
        """Everything with a row for each state, by its key on disk; images by frame index."""
        steps = len(self)
        arrays: dict[str, NDArray[Any]] = {OBSERVATION: self.observation, ACHIEVED: self.achieved}
        if self.stamp_s is not None:
            arrays[TIMESTAMP] = self.stamp_s
        arrays |= {f"{TIMESTAMP}.{key}": value for key, value in self.stamps_s.items()}
        arrays |= {f"{IMAGES}{name}": images.index for name, images in self.images.items()}
        arrays |= {key: value for key, value in self.extra.items() if len(value) == steps + 1}
        return arrays

    def step_arrays(self) -> dict[str, NDArray[Any]]:
        """Everything with a row for each step, by its key on disk."""
        steps = len(self)
        arrays: dict[str, NDArray[Any]] = {
            ACTION: self.action, REWARD: self.reward, TERMINATED: self.terminated,
            TRUNCATED: self.truncated, SUCCESS: self.success,
        }
        for key, value in ((REQUESTED, self.requested), (INTERVENTION, self.intervention),
                           (RESET, self.reset), (RATE, self.rate_hz)):
            if value is not None:
                arrays[key] = value
        arrays |= {key: value for key, value in self.extra.items() if len(value) == steps}
        return arrays

    def check(self, where: str) -> None:
        """Raise InvalidInputError, naming ``where`` and the array, if shapes or values are off."""
        steps = len(self.action) if self.action.ndim else 0
        if steps < 1 or self.action.ndim != 2:
            raise InvalidInputError(
                f"{where}: {ACTION} has shape {self.action.shape}, should be (steps, dimension)"
            )
        self._check_rows(where, steps)
        if self.achieved.shape[1:] != self.desired.shape or self.desired.ndim != 1:
            raise InvalidInputError(
                f"{where}: {DESIRED} has shape {self.desired.shape}, should be "
                f"{self.achieved.shape[1:]} as {ACHIEVED} has"
            )
        for name, array in ((OBSERVATION, self.observation), (ACTION, self.action),
                            (REWARD, self.reward), (ACHIEVED, self.achieved),
                            (DESIRED, self.desired)):
            if array.dtype.kind != "f" or not np.isfinite(array).all():
                raise InvalidInputError(f"{where}: {name} holds values that are not finite numbers")
        for name, images in self.images.items():
            _check_images(f"{where}: {IMAGES}{name}", images, steps + 1)
        for key, array in self.extra.items():
            if key in CORE_KEYS or key.startswith((IMAGES, f"{TIMESTAMP}.")):
                raise InvalidInputError(f"{where}: {key} cannot be an extra key, it has a meaning")
            if array.dtype.kind not in "fiub" or array.ndim < 1 or len(array) not in (
                steps, steps + 1
            ):
                raise InvalidInputError(
                    f"{where}: {key} is {array.dtype} of shape {array.shape}, should be numbers "
                    f"with {steps} rows (steps) or {steps + 1} (states)"
                )

    def _check_rows(self, where: str, steps: int) -> None:
        rows: dict[str, tuple[NDArray[Any] | None, int, int]] = {
            OBSERVATION: (self.observation, steps + 1, 2),
            ACHIEVED: (self.achieved, steps + 1, 2),
            REWARD: (self.reward, steps, 1),
            TERMINATED: (self.terminated, steps, 1),
            TRUNCATED: (self.truncated, steps, 1),
            SUCCESS: (self.success, steps, 1),
            INTERVENTION: (self.intervention, steps, 1),
            RESET: (self.reset, steps, 1),
            RATE: (self.rate_hz, steps, 1),
            TIMESTAMP: (self.stamp_s, steps + 1, 1),
        }
        rows |= {f"{TIMESTAMP}.{k}": (v, steps + 1, 1) for k, v in self.stamps_s.items()}
        for name, (array, expected, ndim) in rows.items():
            if array is None:
                continue
            if array.ndim < 1 or len(array) != expected:
                raise InvalidInputError(
                    f"{where}: {name} has shape {array.shape}, should have {expected} rows "
                    f"for {steps} steps"
                )
            if array.ndim != ndim:
                shape = f"({expected},)" if ndim == 1 else f"({expected}, dimension)"
                raise InvalidInputError(
                    f"{where}: {name} has shape {array.shape}, should be {shape}"
                )
        if self.requested is not None and self.requested.shape != self.action.shape:
            raise InvalidInputError(
                f"{where}: {REQUESTED} has shape {self.requested.shape}, should be "
                f"{self.action.shape} as {ACTION} has"
            )


def _check_images(where: str, images: Images, states: int) -> None:
    frames, index = images.frames, images.index
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] not in (1, 3):
        raise InvalidInputError(
            f"{where}: frames are {frames.dtype} of shape {frames.shape}, should be uint8 "
            "(frames, height, width, 1 or 3)"
        )
    if index.shape != (states,) or images.stamp_s.shape != (len(frames),):
        raise InvalidInputError(
            f"{where}: {index.shape} indices and {images.stamp_s.shape} stamps for {states} states "
            f"and {len(frames)} frames"
        )
    if len(index) and not (0 <= index.min() and index.max() < len(frames)):
        raise InvalidInputError(
            f"{where}: frame {index.max()} is pointed at, there are {len(frames)}"
        )


@dataclass
class DatasetInfo:
    """What a dataset is of.

    ``env`` is the environment's options, ``config`` whatever made it, ``calibration`` the rig's,
    ``software`` the version that recorded, ``rate_hz`` the control rate asked for (0: unknown),
    ``cameras`` the frames' (H, W, C) by camera.
    """

    task: str
    observation_shape: tuple[int, ...]
    goal_dim: int
    action_dim: int
    env: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    robot: str = ""
    rate_hz: float = 0.0
    cameras: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    calibration: dict[str, Any] = field(default_factory=dict)
    software: str = ""
    format: int = FORMAT

    @classmethod
    def of(cls, episode: Episode, **values: Any) -> DatasetInfo:
        """An info with the sizes of ``episode``."""
        sizes = {
            "task": "",
            "observation_shape": tuple(episode.observation.shape[1:]),
            "goal_dim": len(episode.desired),
            "action_dim": episode.action.shape[1],
            "cameras": {name: images.frames.shape[1:] for name, images in episode.images.items()},
        }
        return cls(**{**sizes, **values})
