"""Errors that a user can act on. Each names the thing, its value, the limit, the valid choices."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RobotRLError(Exception):
    """Base of every error this package raises on purpose."""


class InvalidInputError(RobotRLError, ValueError):
    """What the user gave cannot be used: the command line prints it as one line and exits 2."""


class StorageError(InvalidInputError):
    """The disk would not take what was to be written: full, read-only, failing."""


class StaleDataError(RobotRLError):
    """A reading is older than the caller allows."""


class LateCommandError(RobotRLError):
    """Set-points came after the row that they were to begin at; they were not taken."""


class SafetyError(RobotRLError):
    """A command was refused, or the arm is held, by the safety filter."""


class MotionInterruptedError(RobotRLError):
    """A motion was broken off, as somebody asked; the arm comes to rest."""


class MissingDependencyError(RobotRLError, ImportError):
    """An optional dependency is missing; the message says which extra brings it."""


def unknown_name(kind: str, name: object, choices: Iterable[str]) -> InvalidInputError:
    """An error for a name that is not among ``choices``; it lists them and suggests the nearest."""
    known = list(choices)
    near = difflib.get_close_matches(str(name), known, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return InvalidInputError(f"unknown {kind} {name!r}{hint}; valid: {', '.join(known) or 'none'}")
