"""Finds a backend by its name, so that this package imports none of them."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points

from robot_rl.errors import InvalidInputError, unknown_name
from robot_rl.interfaces import Rig, RigRequest

GROUP = "robot_rl.backends"


def list_backends() -> list[str]:
    """Names of the installed backends."""
    return sorted({entry.name for entry in entry_points(group=GROUP)})


def make_rig(backend: str, request: RigRequest) -> Rig:
    """Build arm, gripper, cameras and scene on the backend of that name.

    Raises:
        InvalidInputError: no such backend; the message lists those installed.
        MissingDependencyError: the backend's engine is not installed.
    """
    factory = _load(backend)
    return factory(request)


def _load(backend: str) -> Callable[[RigRequest], Rig]:
    found: dict[str, EntryPoint] = {entry.name: entry for entry in entry_points(group=GROUP)}
    if not found:
        raise InvalidInputError(
            f"no backend is installed (entry point group {GROUP!r} is empty); "
            "install the package, e.g. pip install -e '.[sim]'"
        )
    if backend not in found:
        raise unknown_name("backend", backend, sorted(found))
    factory: Callable[[RigRequest], Rig] = found[backend].load()
    return factory
