"""Scripted policies of chosen quality: one way to solve each task, and a way to be worse at it.

They see the task's view of the world, so they run with any arm, engine and observation mode.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from robot_rl.envs.robot_env import RobotEnv
from robot_rl.envs.tasks import door, drawer, insertion, pick_place
from robot_rl.envs.tasks.base import TaskView
from robot_rl.errors import InvalidInputError, unknown_name
from robot_rl.interfaces import Array
from robot_rl.kinematics import wrap_angle

_PUSH_HEIGHT_M = 0.022
_CONTACT_M = 0.047
_AROUND_M = 0.085
# Where to try beside a socket that is not where it should be.
_ASIDE = np.array([(0, 0), (1, 0), (0, 1), (-1, 0), (0, -1), (1, 1), (-1, 1), (-1, -1), (1, -1)])


@dataclass
class Wish:
    """Where a script wants the tool (3,) [m] next, how far the gripper open, and at which share of
    full speed at most."""

    tool_m: Array
    opening: float = 0.0
    speed: float = 1.0


@dataclass
class _Memory:
    """What a script remembers within an episode."""

    phase: str = "start"
    steps: int = 0
    opening: float = 1.0
    tries: int = 0
    offset_m: Array = field(default_factory=lambda: np.zeros(2))


def _reach(view: TaskView, goal: Array, memory: _Memory) -> Wish:
    return Wish(goal)


def _push(view: TaskView, goal: Array, memory: _Memory) -> Wish:
    puck = view.body("puck").position_m[:2]
    to_goal = goal - puck
    distance = float(np.linalg.norm(to_goal))
    tool = view.tool_m
    if distance < 0.008:
        return Wish(np.array([tool[0], tool[1], _PUSH_HEIGHT_M]))
    direction = to_goal / distance
    away = tool[:2] - puck
    radius = float(np.linalg.norm(away))
    angle = np.arctan2(away[1], away[0])
    behind = np.arctan2(-direction[1], -direction[0])
    turn = wrap_angle(behind - angle)
    if abs(turn) > 0.3 and not (abs(turn) < 0.8 and radius > 0.12):
        # Round the puck on a circle, so that it is not touched on the way.
        nearer = angle + np.clip(turn, -0.5, 0.5)
        radius_wanted = max(_AROUND_M, radius - 0.02)
        spot = puck + radius_wanted * np.array([np.cos(nearer), np.sin(nearer)])
        return Wish(np.array([spot[0], spot[1], _PUSH_HEIGHT_M]))
    lead = min(0.03, distance)
    spot = puck - direction * (_CONTACT_M - lead)
    # Keep on the line through puck and goal: a push off it turns the puck away.
    lateral = away - direction * float(away @ direction)
    spot = spot - lateral
    return Wish(np.array([spot[0], spot[1], _PUSH_HEIGHT_M]), speed=0.35 + min(0.65, 6 * distance))


def _pick_place(view: TaskView, goal: Array, memory: _Memory) -> Wish:
    cube = view.body("cube").position_m
    tool = view.tool_m
    offset = float(np.linalg.norm(tool[:2] - cube[:2]))
    half = pick_place.CUBE_M / 2
    if memory.phase in ("start", "above"):
        memory.phase = "above"
        if offset > 0.012:
            height = max(0.06, min(tool[2], 0.1)) if offset > 0.03 else 0.06
            return Wish(np.array([cube[0], cube[1], height]), 1.0)
        if tool[2] > cube[2] + 0.008:
            return Wish(np.array([cube[0], cube[1], cube[2] + 0.003]), 1.0, 0.6)
        memory.phase, memory.steps, memory.opening = "grip", 0, 1.0
    if memory.phase == "grip":
        # Lift only once the fingers have stopped: grippers differ in how fast they close.
        memory.steps += 1
        still = abs(view.gripper_opening - memory.opening) < 0.02
        memory.opening = view.gripper_opening
        if memory.steps >= 3 and still:
            memory.phase = "carry"
        return Wish(np.array([cube[0], cube[1], max(cube[2], half) + 0.003]), 0.0)
    if offset > 0.04 or cube[2] < tool[2] - 0.04:
        memory.phase = "above"
        return Wish(np.array([tool[0], tool[1], tool[2] + 0.05]), 1.0)
    held = tool - cube
    target = goal + held
    if np.linalg.norm(goal[:2] - cube[:2]) > 0.03:
        target[2] = max(target[2], 0.05 + held[2])
    return Wish(target, 0.0, 0.8)


def _slot_script(
    slot: Callable[[float], Array], joint: str, height: float, reach: float
) -> Callable[[TaskView, Array, _Memory], Wish]:
    """For a handle with a slot behind it: go above, down into it, then lead it along its path."""

    def script(view: TaskView, goal: Array, memory: _Memory) -> Wish:
        position, _ = view.joint(joint)
        at = slot(position)
        tool = view.tool_m
        off = float(np.linalg.norm(tool[:2] - at[:2]))
        inserted = tool[2] < height + 0.02 and off < 0.04
        if not inserted:
            if off > 0.008:
                return Wish(np.array([at[0], at[1], 0.1]))
            return Wish(at)
        left = float(goal[0]) - position
        if abs(left) < 0.04 * reach:
            return Wish(np.array([tool[0], tool[1], height]))
        lead = np.clip(left, -reach, reach)
        ahead = slot(position + lead)
        slack = np.sign(left) * 0.015 * _unit(slot(position + 1e-3) - at)
        return Wish(ahead + slack, speed=0.7)

    return script


def _insert(view: TaskView, goal: Array, memory: _Memory) -> Wish:
    """Align above the socket and go down; where the rim is met, lift and try a little beside."""
    tool = view.tool_m
    rim = insertion.BLOCK_M[2] + insertion.REACH_M
    spot = goal[:2] + memory.offset_m
    off = float(np.linalg.norm(tool[:2] - spot))
    inside = tool[2] < rim - 0.002
    if memory.phase in ("start", "above") or (tool[2] > rim + 0.015 and off > 0.005):
        memory.phase = "above"
        if off > 0.0006 and not inside:
            return Wish(np.array([*spot, max(rim + 0.006, float(goal[2]))]))
        memory.phase, memory.steps = "down", 0
    if memory.phase == "aside":
        memory.steps += 1
        if memory.steps < 5 and (off > 0.0002 or tool[2] < rim + 0.0003):
            return Wish(np.array([*spot, rim + 0.0008]))
        memory.phase, memory.steps = "down", 0
    if tool[2] < rim + 0.0015 and not inside:
        memory.steps += 1
        if memory.steps >= 3:
            memory.phase, memory.steps = "aside", 0
            memory.tries += 1
            memory.offset_m = 1.8 * insertion.PLAY_M * _ASIDE[memory.tries % len(_ASIDE)]
    # No further ahead than this, so that little is pressed on whatever is in the way.
    ahead = 0.004 if inside else float(np.clip(0.3 * (tool[2] - rim), 0.003, 0.02))
    return Wish(np.array([*spot, max(float(goal[2]), float(tool[2]) - ahead)]))


def _unit(vector: Array) -> Array:
    return vector / max(float(np.linalg.norm(vector)), 1e-12)


_SCRIPTS: dict[str, Callable[[TaskView, Array, _Memory], Wish]] = {
    "Reach": _reach,
    "Push": _push,
    "PickPlace": _pick_place,
    "Drawer": _slot_script(drawer.Drawer().slot, "drawer_slide", drawer.SLOT_HEIGHT_M, 0.03),
    "Insertion": _insert,
    "Door": _slot_script(door.Door().slot, "door_hinge", door.SLOT_HEIGHT_M, 0.15),
}


class ScriptedPolicy:
    """Acts on an environment by a script, ``quality`` 1 as well as it can, 0 mostly at random.

    What is lacking to 1 is made up of slips, as of a careless operator: episodes that aim beside
    the goal, spells of drifting, and noise on every action.
    """

    def __init__(self, env: RobotEnv, quality: float = 1.0, seed: int = 0) -> None:
        if not 0.0 <= quality <= 1.0:
            raise InvalidInputError(f"quality is {quality}, should be in [0, 1]")
        if env.task.name not in _SCRIPTS:
            raise unknown_name("scripted task", env.task.name, _SCRIPTS)
        self.env = env
        self.quality = quality
        self.rng = np.random.default_rng(seed)
        self._script = _SCRIPTS[env.task.name]
        self._memory = _Memory()
        self._goal = np.zeros(env.goal_dim)
        self._drift = np.zeros(env.action_space.shape or ())
        self._drift_left = 0

    def reset(self) -> None:
        """Call after every ``env.reset``."""
        self._memory = _Memory()
        self._drift_left = 0
        self._goal = self.env.goal
        lack = 1.0 - self.quality
        if self.rng.random() < 0.75 * lack:
            side = self.rng.normal(size=self._goal.shape)
            side *= self.rng.uniform(1.5, 4.0) / max(float(np.linalg.norm(side)), 1e-9)
            self._goal = self._goal + side * self.env.task.threshold

    def act(self) -> Array:
        """The next action, in [-1, 1]^n."""
        env = self.env
        view = env.last_view
        wish = self._script(view, self._goal, self._memory)
        # Aim from the set-point: the arm lags behind it, and would be driven past the target.
        way = wish.tool_m - env.safety.setpoint_tool_m
        action = np.zeros(env.action_space.shape or ())
        scaled = way / env.step_m
        length = float(np.abs(scaled).max())
        action[:3] = scaled * min(1.0, wish.speed / max(length, 1e-9))
        if "gripper" in env.parts:
            action[-1] = 2.0 * wish.opening - 1.0
        return self._spoil(action)

    def _spoil(self, action: Array) -> Array:
        lack = 1.0 - self.quality
        if lack == 0.0:
            return action
        if self._drift_left == 0 and self.rng.random() < 0.045 * lack:
            self._drift_left = int(self.rng.integers(4, 13))
            self._drift = self.rng.uniform(-1.0, 1.0, action.shape)
        if self._drift_left > 0:
            self._drift_left -= 1
            action = self._drift.copy()
        action = action + self.rng.normal(0.0, 0.45 * lack, action.shape)
        if self.quality < 0.1 and self.rng.random() < 1.0 - 10.0 * self.quality:
            action = self.rng.uniform(-1.0, 1.0, action.shape)
        return np.clip(action, -1.0, 1.0)
