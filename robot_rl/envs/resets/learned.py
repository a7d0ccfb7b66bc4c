"""Resets by a policy: it practises the way back, and a scripted reset stands behind it."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from robot_rl.envs.motion import Motion
from robot_rl.envs.resets.base import ArmResetter, at_rest
from robot_rl.envs.robot_env import RobotEnv
from robot_rl.envs.tasks.base import Task, TaskView
from robot_rl.errors import InvalidInputError, MotionInterruptedError, RobotRLError
from robot_rl.interfaces import Array, BodyState, Placement

_LOG = logging.getLogger("robot_rl.resets")


class GoalPolicy(Protocol):
    """What acts towards a goal; every goal-conditioned agent does."""

    def act(
        self, observation: NDArray[Any], goal: NDArray[Any], *, deterministic: bool = False
    ) -> NDArray[Any]: ...


class _Placed:
    """A tracker of a world that is as a placement describes it."""

    def __init__(self, placement: Placement) -> None:
        self._placement = placement

    def body(self, name: str, max_age_s: float) -> BodyState:
        position, quat = self._placement.bodies[name]
        return BodyState(np.asarray(position), np.asarray(quat), np.zeros(3), np.zeros(3))

    def joint(self, name: str, max_age_s: float) -> tuple[float, float]:
        return self._placement.joints[name], 0.0


def goal_at(task: Task, placement: Placement) -> Array:
    """The goal (goal_dim,) of ``task`` that a world placed so has reached."""
    view = TaskView(np.asarray(placement.tool_m, dtype=np.float64), np.zeros(3),
                    placement.gripper_opening, _Placed(placement), np.inf)
    return np.asarray(task.achieved(view), dtype=np.float64)


class LearnedResetter:
    """Asks a policy for the start as for any other goal (:class:`robot_rl.interfaces.Resetter`).

    The policy may be another one that was trained for the way back, or the very agent that
    practises: a goal-conditioned one goes wherever it is asked to. A try lasts as long as an
    episode and ends early at the goal. It has succeeded when the goal is measured to be reached,
    within the task's own threshold, with everything at rest; then ``scripted`` only has to bring
    the tool to its start, as far from the things as asked. After ``tries`` failures it does all.
    ``learned`` and ``fallbacks`` count which of the two it was.

    Raises:
        InvalidInputError: the environment observes images.
    """

    def __init__(
        self,
        env: RobotEnv,
        policy: GoalPolicy,
        scripted: ArmResetter,
        *,
        tries: int = 2,
        deterministic: bool = True,
    ) -> None:
        if env.obs_mode != "state":
            raise InvalidInputError("a learned reset needs state observations, obs='state'")
        if tries < 1:
            raise InvalidInputError(f"tries is {tries}, should be at least 1")
        self.env = env
        self.policy = policy
        self.scripted = scripted
        self.tries = int(tries)
        self.deterministic = deterministic
        self.learned = 0
        self.fallbacks = 0

    @property
    def motion(self) -> Motion:
        """What it moves the arm with."""
        return self.scripted.motion

    def reset(self, placement: Placement) -> bool:
        """Whether the world is at a start; otherwise the arm is held and help was called for."""
        self.env.safety.check_released()
        goal = goal_at(self.env.task, placement)
        try:
            reached = any(self._try(goal) for _ in range(self.tries))
        except MotionInterruptedError:
            raise
        except RobotRLError as error:
            self.scripted.give_up(str(error))
            return False
        if reached:
            self.learned += 1
            return self.scripted.reset(self._as_found(placement))
        self.fallbacks += 1
        _LOG.info("reset of %s: the policy did not get there in %d tries", self.env.task.name,
                  self.tries)
        return self.scripted.reset(placement)

    def _try(self, goal: Array) -> bool:
        env, motion = self.env, self.scripted.bench.motion
        wanted = goal.astype(np.float32)
        motion.begin()
        for _ in range(env.max_episode_steps):
            view = env.view()
            if env.task.success(env.task.achieved(view), goal) or env.task.astray(view):
                break
            action = np.asarray(self.policy.act(env.state(), wanted,
                                                deterministic=self.deterministic))
            self._apply(action)
        motion.settle()
        view = env.view()
        bodies = [self.scripted.bench.settled(body.name) for body in env.task.scene().bodies
                  if body.motion == "free"]
        return (bool(env.task.success(env.task.achieved(view), goal))
                and env.task.astray(view) is None and all(map(at_rest, bodies)))

    def _apply(self, action: NDArray[Any]) -> None:
        """What a step of the environment would send."""
        env = self.env
        if action.shape != env.action_space.shape or not np.isfinite(action).all():
            raise InvalidInputError(f"the resetting policy's action is {action}")
        action = np.clip(action.astype(np.float64), -1.0, 1.0)
        turn = float(action[3]) * env.step_rad if "yaw" in env.parts else 0.0
        if "gripper" in env.parts:
            env.safety.grip(0.5 * (float(action[-1]) + 1.0))
        self.scripted.bench.motion.step(action[:3] * env.step_m, turn)

    def _as_found(self, placement: Placement) -> Placement:
        """The placement with the things where they are, and the tool as far from them."""
        bench = self.scripted.bench
        bodies, shift = {}, np.zeros(3)
        for name, (position, _) in placement.bodies.items():
            state = bench.body(name)
            bodies[name] = (state.position_m, state.quat_xyzw)
            shift[:2] = state.position_m[:2] - np.asarray(position)[:2]
        joints = {name: bench.joint(name) for name in placement.joints}
        tool = bench.motion.clip(np.asarray(placement.tool_m) + shift)
        return replace(placement, tool_m=tool, bodies=bodies, joints=joints)
