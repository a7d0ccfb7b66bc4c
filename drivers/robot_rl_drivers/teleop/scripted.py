"""An operator who is a script: it drives the arm as the task's scripted policy does, with slips,
and judges what came of it as a person would: it accepts what succeeded and rejects the rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from robot_rl.envs.robot_env import RobotEnv
from robot_rl.envs.scripted import ScriptedPolicy
from robot_rl.envs.tasks.base import TaskView
from robot_rl.errors import InvalidInputError
from robot_rl.interfaces import Array
from robot_rl_drivers.teleop.hand import ACCEPT, REJECT, read_options


@dataclass
class ScriptedOptions:
    """``quality`` 1 as well as it can to 0 mostly at random, ``seed`` of its slips, and for how
    many steps success must last before it accepts. ``after`` and ``steps`` make it take over from
    a policy, after so many steps for so many (0: all along)."""

    quality: float = 0.7
    seed: int = 0
    dwell_steps: int = 3
    after: int = 0
    steps: int = 0

    def __post_init__(self) -> None:
        if not 0.0 <= self.quality <= 1.0:
            raise InvalidInputError(f"device: quality is {self.quality}, should be in [0, 1]")
        for name, least in (("seed", 0), ("dwell_steps", 1), ("after", 0), ("steps", 0)):
            if getattr(self, name) < least:
                raise InvalidInputError(
                    f"device: {name} is {getattr(self, name)}, should be at least {least}"
                )


def make(env: RobotEnv, options: Mapping[str, Any]) -> ScriptedTeleop:
    """The scripted operator of the environment's task.

    Raises:
        InvalidInputError: there is no script for the task, or an option cannot be used.
    """
    return ScriptedTeleop(env, read_options(ScriptedOptions, options, "scripted operator"))


class ScriptedTeleop:
    """A :class:`robot_rl.interfaces.Teleop` that needs nobody.

    It is told of each episode by :meth:`begin`, of what came of each step by :meth:`see`, and of
    the end by :meth:`end`, where it judges if it has not before.
    """

    interactive = False
    problem: str | None = None

    def __init__(self, env: RobotEnv, options: ScriptedOptions) -> None:
        self._options = options
        self._script = ScriptedPolicy(cast(RobotEnv, _FreshView(env)), options.quality,
                                      options.seed)
        self._events: list[str] = []
        self._streak, self._step = 0, 0
        self._judged = False

    def begin(self) -> None:
        self._script.reset()
        self._events = []
        self._streak, self._step, self._judged = 0, 0, False

    def see(self, info: Mapping[str, Any]) -> None:
        """What a step led to."""
        self._streak = self._streak + 1 if info.get("is_success") else 0
        self._step += 1
        if self._streak >= self._options.dwell_steps:
            self._judge(ACCEPT)

    def end(self) -> None:
        """The episode is over."""
        self._judge(ACCEPT if self._streak else REJECT)

    def read(self) -> Array | None:
        options = self._options
        since = self._step - options.after
        if since < 0 or (options.steps and since >= options.steps):
            return None
        return np.asarray(self._script.act())

    def events(self) -> tuple[str, ...]:
        taken, self._events = tuple(self._events), []
        return taken

    def _judge(self, verdict: str) -> None:
        if not self._judged:
            self._judged = True
            self._events.append(verdict)


class _FreshView:
    """The environment as a person sees it: as it is now, also between steps of it."""

    def __init__(self, env: RobotEnv) -> None:
        self._env = env

    @property
    def last_view(self) -> TaskView:
        return self._env.view()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._env, name)
