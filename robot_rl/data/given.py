"""What a control loop gives for a state and a step, checked before it is written.

An episode that is appended as a whole is checked as a whole. One that is recorded as it happens is
checked row by row, so that whatever is committed can be read again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robot_rl.data.episodes import (
    ACHIEVED,
    ACTION,
    DESIRED,
    IMAGES,
    INTERVENTION,
    OBSERVATION,
    RATE,
    REQUESTED,
    RESET,
    REWARD,
    SUCCESS,
    TERMINATED,
    TIMESTAMP,
    TRUNCATED,
)
from robot_rl.data.layout import Field
from robot_rl.errors import InvalidInputError

_STATE_KEYS = (OBSERVATION, ACHIEVED, DESIRED)
_STEP_KEYS = (ACTION, REWARD, TERMINATED, TRUNCATED, SUCCESS)
_STEP_ONLY = frozenset({*_STEP_KEYS, REQUESTED, INTERVENTION, RESET, RATE})
_FLAGS = frozenset({TERMINATED, TRUNCATED, SUCCESS, INTERVENTION, RESET})
_FLOATS = frozenset({OBSERVATION, ACHIEVED, DESIRED, ACTION, REQUESTED, REWARD, RATE})
_FINITE = frozenset({OBSERVATION, ACHIEVED, DESIRED, ACTION, REQUESTED, REWARD})
_RANK = {"b": 0, "u": 1, "i": 1, "f": 2}


def typed(key: str, value: Any) -> NDArray[Any]:
    """``value`` in the type in which the key is kept: numbers of the log's own keys may be given
    as Python has them.

    Raises:
        InvalidInputError: it is not an array of numbers.
    """
    try:
        array = np.asarray(value)
        if array.dtype.kind not in _RANK:
            raise TypeError(f"it is {array.dtype}")
        if key in _FLAGS:
            return array.astype(np.bool_)
        if key.startswith(IMAGES):
            if array.dtype.kind == "f":
                raise TypeError(f"it is {array.dtype}")
            return array.astype(np.int64)
        if key == TIMESTAMP or key.startswith(f"{TIMESTAMP}."):
            return array.astype(np.float64)
        # A Python number has no size of its own.
        given = isinstance(value, (np.ndarray, np.generic)) and array.dtype.kind == "f"
        return array if key not in _FLOATS or given else array.astype(np.float32)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidInputError(f"{key} should be an array of numbers: {error}") from None


def check_first(
    states: Mapping[str, NDArray[Any]],
    steps: Mapping[str, NDArray[Any]],
    sizes: Mapping[str, tuple[int, ...]],
    cameras: set[str],
) -> None:
    """Raise InvalidInputError unless these can be the first state and step of an episode.

    Args:
        states, steps: what was given, by key.
        sizes: the shapes that the dataset has, by key.
        cameras: those that have given a frame.
    """
    for keys, given, what in ((_STATE_KEYS, states, "state"), (_STEP_KEYS, steps, "step")):
        missing = [key for key in keys if key not in given]
        if missing:
            raise InvalidInputError(f"{', '.join(missing)} is missing from the first {what}")
    both = sorted(set(states) & set(steps))
    misplaced = sorted(_STEP_ONLY & set(states)) + sorted(
        key for key in steps
        if key in _STATE_KEYS or key == TIMESTAMP or key.startswith((IMAGES, f"{TIMESTAMP}."))
    )
    if both or misplaced:
        raise InvalidInputError(f"{', '.join(both or misplaced)} is given with the wrong part: "
                                "states have observations and stamps, steps actions and results")
    for key, array in {**states, **steps}.items():
        expected = sizes.get(key)
        if expected is None and (key in _FLOATS | _FLAGS or key == TIMESTAMP
                                 or key.startswith((IMAGES, f"{TIMESTAMP}."))):
            expected = ()
        if expected is not None and array.shape != expected:
            raise InvalidInputError(f"{key} has shape {array.shape}, should have {expected} in "
                                    "this dataset")
    seen = {key.removeprefix(IMAGES) for key in states if key.startswith(IMAGES)}
    for camera in sorted(seen - cameras):
        raise InvalidInputError(f"camera {camera!r} has given no frame yet")
    for camera in sorted(cameras - seen):
        raise InvalidInputError(f"camera {camera!r} has given frames, but no {IMAGES}{camera} says "
                                "which of them a state saw")


def convert(field: Field, value: Any) -> NDArray[Any]:
    """``value`` for a row of ``field``.

    Raises:
        InvalidInputError: its shape differs, it does not fit the type, or is not finite where it
            has to be.
    """
    array = typed(field.key, value)
    if array.shape != field.shape:
        raise InvalidInputError(f"{field.key} has shape {array.shape}, should have {field.shape} "
                                "as in the first step")
    if array.dtype != field.dtype:
        kept = np.dtype(field.dtype)
        with np.errstate(all="ignore"):
            cast = array.astype(kept)
        if _RANK[array.dtype.kind] > _RANK[kept.kind] or (
            kept.kind in "ui" and not np.array_equal(cast, array)
        ):
            raise InvalidInputError(f"{field.key} is {array.dtype}, which does not fit "
                                    f"{field.dtype} as in the first step")
        array = cast
    if field.key in _FINITE and not np.isfinite(array).all():
        raise InvalidInputError(f"{field.key} holds values that are not finite numbers")
    return array
