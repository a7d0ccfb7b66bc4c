"""Driving an arm by hand without recording anything."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from robot_rl.envs.robot_env import RobotEnv
from robot_rl.errors import InvalidInputError, RobotRLError
from robot_rl.interfaces import Array
from robot_rl.teleops import STOPPED, Operator
from robot_rl.training.demonstrate import ARM_ERRORS, Pace, rest, watch_operator

_FACE_M = 0.006
# Of a full twist.
_TURN_RAD_S = 1.0
_FACES = ("far", "left", "top"), ("near", "right", "bottom")


class Drive:
    """The operator's moves, straight through the safety filter.

    Attributes:
        steps, touched: control periods so far, and those of them with a move of the operator's.
        holds: how often the arm was held.
    """

    def __init__(self, world: RobotEnv, operator: Operator) -> None:
        self.world, self.operator = world, operator
        self.steps = self.touched = self.holds = 0
        self._opening: float | None = None
        self._was_held = False
        self._quit = False
        watch_operator(world, operator)

    def run(
        self, seconds: float, stop: Callable[[], bool], on_step: Callable[[], None]
    ) -> None:
        """Drive for ``seconds`` (0: until the operator quits or ``stop()``).

        On hardware it begins where the arm is, in simulation with the scene as the task begins.
        """
        world, clock = self.world, self.world.rig.clock
        if world.rig.scene is not None:
            world.reset(seed=0)
        else:
            world.safety.check_released()
            world.safety.sync()
        self.operator.tell("begin")
        pace = Pace(world, self.operator.interactive)
        steps = round(seconds * world.control_hz)
        tick_s = clock.now_s()
        while not (stop() or self._quit or (seconds and self.steps >= steps)):
            self._listen()
            self._move()
            self.steps += 1
            tick_s = max(tick_s + world.period_s, clock.now_s())
            clock.sleep_until(tick_s)
            pace.wait()
            on_step()
        rest(world)

    def describe(self) -> str:
        """Where the tool is, which faces of the box it touches, gripper and hold, in one line."""
        safety = self.world.safety
        x, y, z = safety.setpoint_tool_m
        text = f"tool x {x:+.3f} y {y:+.3f} z {z:.3f} m"
        if "yaw" in self.world.parts:
            text += f" yaw {np.degrees(safety.yaw_rad):+.0f} deg"
        faces = self.faces()
        text += f" | box {', '.join(faces) if faces else 'free'}"
        if self._opening is not None:
            text += f" | gripper {self._opening:.2f}"
        return text + (f" | HELD: {safety.held}" if safety.held is not None else "")

    def faces(self) -> list[str]:
        """The faces of the safety box that the tool is at."""
        config = self.world.safety.config
        tool = self.world.safety.setpoint_tool_m
        at_high = np.asarray(config.box_max_m) - tool < _FACE_M
        at_low = tool - np.asarray(config.box_min_m) < _FACE_M
        return [name for hits, names in zip((at_high, at_low), _FACES, strict=True)
                for hit, name in zip(hits, names, strict=True) if hit]

    def values(self) -> dict[str, Any]:
        """How it stands, ready for JSON."""
        safety, config = self.world.safety, self.world.safety.config
        return {
            "steps": self.steps, "touched": self.touched, "holds": self.holds,
            "held": safety.held,
            "tool_m": [float(x) for x in safety.setpoint_tool_m],
            "yaw_rad": float(safety.yaw_rad),
            "gripper": self._opening,
            "box_min_m": [float(x) for x in config.box_min_m],
            "box_max_m": [float(x) for x in config.box_max_m],
            "faces": self.faces(),
            "limited": safety.counters.limited,
            "violations": safety.counters.violations,
        }

    def _move(self) -> None:
        world = self.world
        action = self.operator.read()
        if world.safety.held is not None:
            self.holds += not self._was_held
            self._was_held = True
            return
        self._was_held = False
        self.touched += action is not None
        try:
            self._send(np.zeros(3 + ("yaw" in world.parts)) if action is None else action,
                       action is not None)
        except ARM_ERRORS as error:
            if world.safety.held is None:
                self._hold(str(error))

    def _send(self, action: Array, touched: bool) -> None:
        world = self.world
        turn = float(action[3]) * _TURN_RAD_S * world.period_s if "yaw" in world.parts else 0.0
        world.safety.move(np.asarray(action[:3]) * world.step_m, turn, world.period_s)
        if touched and "gripper" in world.parts:
            self._opening = world.safety.grip(0.5 * (float(action[-1]) + 1.0))

    def _listen(self) -> None:
        for event in self.operator.events():
            if event == "stop":
                self._hold(self.operator.problem or STOPPED)
            elif event == "rearm" and self.world.safety.held is not None:
                try:
                    self.operator.release()
                    self.world.safety.rearm()
                except (InvalidInputError, *ARM_ERRORS) as error:
                    print(f"it stays held: {error}", file=sys.stderr)
            elif event == "quit":
                self._quit = True

    def _hold(self, why: str) -> None:
        try:
            self.world.safety.hold(why)
        except RobotRLError as error:
            print(f"held, but blindly: {error}", file=sys.stderr)
