"""What a Franka says of itself, in words for the operator; the same for either way to reach it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from robot_rl.errors import InvalidInputError
from robot_rl.specs import RobotSpec

ARMS = ("fr3", "panda")

OTHER, IDLE, MOVE, GUIDING, REFLEX, USER_STOPPED, RECOVERING = range(7)
"""The robot's modes, as franka_msgs numbers them."""

_MODES: Mapping[int, str | None] = {
    OTHER: "the robot is in no mode that takes commands (brakes locked, or another operating mode)",
    IDLE: None,
    MOVE: None,
    GUIDING: "the robot is being guided by hand",
    REFLEX: "the robot stopped itself (reflex)",
    USER_STOPPED: "the user stop or emergency stop is pressed",
    RECOVERING: "the robot is recovering from an error",
}


def check_arm(spec: RobotSpec) -> None:
    """Refuse an arm that is no Franka.

    Raises:
        InvalidInputError: it is another arm.
    """
    if spec.name not in ARMS:
        raise InvalidInputError(
            f"robot {spec.name!r} is no Franka; the backends ros2 and franky drive "
            f"{' and '.join(ARMS)}, ros1 drives sawyer"
        )


def errors_of(flags: Any) -> list[str]:
    """The names of the errors that are set, in a franka_msgs/Errors or a franky.Errors."""
    return [name for name in error_names(type(flags)) if getattr(flags, name)]


def error_names(kind: type) -> list[str]:
    """The errors that ``kind`` knows."""
    fields = getattr(kind, "__dataclass_fields__", None)
    if fields is None and hasattr(kind, "get_fields_and_field_types"):
        fields = kind.get_fields_and_field_types()
    if fields is None:
        fields = [name for name in dir(kind) if isinstance(getattr(kind, name), property)]
    return [name for name in fields if not name.startswith("_")]


def fault_of(mode: int, errors: list[str]) -> str | None:
    """Why the robot takes no commands, None where it would."""
    words = _MODES.get(mode, f"the robot is in the unknown mode {mode}")
    if errors:
        named = ", ".join(name.replace("_", " ") for name in errors)
        return f"{words or 'the robot reports an error'}: {named}"
    return words
