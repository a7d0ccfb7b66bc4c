"""What ``--rig KEY=VALUE`` says, read and checked."""

from __future__ import annotations

import math
from collections.abc import Mapping

from robot_rl.errors import InvalidInputError


def number(
    options: Mapping[str, str], key: str, low: float, high: float, unit: str = ""
) -> float:
    """An option as a number in [``low``, ``high``].

    Raises:
        InvalidInputError: it is none, not finite, or out of range.
    """
    text = options[key]
    try:
        value = float(text)
    except (TypeError, ValueError):
        value = math.nan
    if not (math.isfinite(value) and low <= value <= high):
        raise InvalidInputError(
            f"rig option {key} is {text!r}, should be a number in [{low:g}, {high:g}]"
            + (f" {unit}" if unit else "")
        )
    return value


def numbers(
    options: Mapping[str, str], key: str, count: int, low: float, high: float, unit: str = ""
) -> list[float]:
    """An option as ``count`` numbers with commas, each in [``low``, ``high``].

    Raises:
        InvalidInputError: another count, or one that is not finite or out of range.
    """
    words = str(options[key]).split(",")
    try:
        if len(words) != count:
            raise InvalidInputError
        return [number({key: word}, key, low, high) for word in words]
    except InvalidInputError:
        raise InvalidInputError(
            f"rig option {key} is {options[key]!r}, should be {count} numbers with commas, each in "
            f"[{low:g}, {high:g}]" + (f" {unit}" if unit else "")
        ) from None
