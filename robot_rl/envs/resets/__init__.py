"""Resets that the arm does itself: no person between episodes, no simulator's hand either."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any, ClassVar

import numpy as np

from robot_rl.envs.motion import Motion
from robot_rl.envs.resets.base import (
    ArmResetter,
    Bench,
    HelpNeeded,
    ObjectReset,
    ResetOptions,
)
from robot_rl.envs.resets.cube import CubeReset
from robot_rl.envs.resets.learned import GoalPolicy, LearnedResetter, goal_at
from robot_rl.envs.resets.plug import PlugReset
from robot_rl.envs.resets.push import PushReset
from robot_rl.envs.resets.slots import DoorReset, DrawerReset
from robot_rl.envs.tasks.base import Task
from robot_rl.errors import unknown_name
from robot_rl.interfaces import Placement, Rig
from robot_rl.safety import SafetyFilter


class NothingToReset(ObjectReset):
    """For a task without things on the table."""

    task: ClassVar[str] = "Reach"

    def restore(self, placement: Placement) -> None:
        return None

    def problem(self, placement: Placement) -> str | None:
        return None


RESETS: dict[str, type[ObjectReset]] = {
    reset.task: reset
    for reset in (NothingToReset, PushReset, CubeReset, DrawerReset, DoorReset, PlugReset)
}


def make_resetter(
    task: Task,
    rig: Rig,
    safety: SafetyFilter,
    *,
    control_hz: float = 10.0,
    rng: np.random.Generator | None = None,
    options: ResetOptions | dict[str, Any] | None = None,
    on_help: Callable[[str], None] | None = None,
    on_step: Callable[[], None] | None = None,
) -> ArmResetter:
    """A resetter that brings the world of ``task`` to a placement with the arm itself.

    It works on hardware and in simulation alike: ``rig.scene`` is never asked. ``on_help`` is
    called with what is wrong when it gives up (by default the message is logged as an error);
    the arm is held by then. ``on_step`` is called every control period. ``rng`` is for scripts
    that draw; none of those here does.

    Raises:
        InvalidInputError: there is no reset for the task, or an option cannot be used.
    """
    if task.name not in RESETS:
        raise unknown_name("task with a reset by the arm", task.name, RESETS)
    if isinstance(options, dict):
        known = [each.name for each in fields(ResetOptions)]
        for key in options:
            if key not in known:
                raise unknown_name("reset option", key, known)
        options = ResetOptions(**options)
    motion = Motion(rig, safety, control_hz, on_step=on_step)
    bench = Bench(task, rig, motion, options if options is not None else ResetOptions())
    return ArmResetter(RESETS[task.name](bench), on_help=on_help)


__all__ = [
    "RESETS",
    "ArmResetter",
    "Bench",
    "GoalPolicy",
    "HelpNeeded",
    "LearnedResetter",
    "ObjectReset",
    "ResetOptions",
    "goal_at",
    "make_resetter",
]
