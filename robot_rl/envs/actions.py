"""What an action is made of, and which arrays are one."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from robot_rl.errors import InvalidInputError, SafetyError
from robot_rl.interfaces import Array

ACTION_PARTS = ("xyz", "yaw", "gripper")


def parse_action_parts(action: str) -> tuple[str, ...]:
    """``"xyz+yaw+gripper"`` to its parts, checked."""
    parts = tuple(str(action).split("+"))
    known = ACTION_PARTS
    if parts[0] != "xyz" or [p for p in known if p in parts] != list(parts):
        raise InvalidInputError(
            f"unknown action {action!r}; valid: xyz, xyz+yaw, xyz+gripper, xyz+yaw+gripper"
        )
    return parts


def checked_action(action: ArrayLike, shape: tuple[int, ...] | None) -> tuple[Array, bool]:
    """The action within [-1, 1], and whether it asked for more.

    Raises:
        SafetyError: it is not finite, or of another shape.
    """
    try:
        given = np.asarray(action)
        if given.dtype.kind not in "fiu":
            raise TypeError
    except (TypeError, ValueError):
        raise SafetyError(
            f"action {action!r} is not an array of numbers; nothing was sent"
        ) from None
    array = given.astype(np.float64)
    if array.shape != shape:
        raise SafetyError(f"action has shape {array.shape}, should be {shape}; nothing was sent")
    if not np.isfinite(array).all():
        raise SafetyError(f"action {array} is not finite; nothing was sent")
    within = np.minimum(np.maximum(array, -1.0), 1.0)
    return within, bool((within != array).any())
