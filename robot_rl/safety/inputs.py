"""What the safety filter is told, checked: commands, measured states, errors."""

from __future__ import annotations

import contextlib
import math

import numpy as np
from numpy.typing import ArrayLike

from robot_rl.errors import InvalidInputError
from robot_rl.interfaces import Array, ForceSensor, Gripper, JointState

# Longer commands would leave the arm alone for too long.
LONGEST_S = 0.5
# Slower than this a measured joint rests.
STILL_RAD_S = 0.05


def said(error: Exception) -> str:
    """What an error says: its kind where it has no words."""
    return str(error) or type(error).__name__


def moving(state: JointState) -> bool:
    """Whether a joint is measured to move."""
    return bool(np.abs(state.velocity_rad_s).max() > STILL_RAD_S)


def pushed(sensor: ForceSensor, most_n: float, max_age_s: float) -> str | None:
    """That the world pushes the tool harder than ``most_n`` [N], in words."""
    size = math.hypot(*sensor.wrench(max_age_s).force_n)
    if size <= most_n:
        return None
    return f"the force on the tool is {size:.1f} N, should be at most {most_n:g} N"


def halt(gripper: Gripper) -> None:
    """Have a gripper that can forget what waits to be sent do so; its fingers stay."""
    with contextlib.suppress(Exception):
        forget = getattr(gripper, "halt", None)
        if forget is not None:
            forget()


def seconds(value: ArrayLike) -> float:
    """For how long [s] a command counts; raises InvalidInputError."""
    value_s = float(finite(value, (), "duration"))
    if not 0.0 < value_s <= LONGEST_S:
        raise InvalidInputError(
            f"duration is {value_s} s, should be positive and at most {LONGEST_S} s"
        )
    return value_s


def finite(value: ArrayLike, shape: tuple[int, ...], what: str) -> Array:
    """Numbers of a shape; raises InvalidInputError, which calls them ``what``."""
    try:
        given = np.asarray(value)
        # What is masked is missing.
        if given.dtype.kind not in "fiu" or isinstance(value, np.ma.MaskedArray):
            raise TypeError
        array = given.astype(np.float64)
    except Exception:  # of whatever kind, by whatever it is that is no array
        raise InvalidInputError(
            f"{what} is {value!r}, should be numbers of shape {shape}"
        ) from None
    if array.shape != shape:
        raise InvalidInputError(f"{what} has shape {array.shape}, should be {shape}")
    if not np.isfinite(array).all():
        raise InvalidInputError(f"{what} is {array}, should be finite")
    return array
