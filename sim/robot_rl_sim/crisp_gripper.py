"""A simulated Franka hand with the actions and topics of franka_gripper."""

from __future__ import annotations

import threading
import time
from typing import Any

from robot_rl.ros.runtime import SENSOR_DATA, action, action_server, message, native, service
from robot_rl.specs import GripperSpec

STATE_HZ = 30.0
SAME_WIDTH_M = 1e-3
STANDS_S = 0.15
LONGEST_S = 5.0


class CrispGripper:
    """Takes goals in threads of their own; :meth:`step` is called by the thread of the physics.

    Widths are of the whole opening, twice the travel of a finger.
    """

    def __init__(self, node: Any, name: str, spec: GripperSpec, finger_names: list[str]) -> None:
        self._spec = spec
        self._names = finger_names
        self.max_width_m = 2.0 * spec.finger_stroke_m
        self.goal_m: float | None = None
        self.width_m = 0.0
        self._moved_s = time.monotonic()
        self._turn = threading.Lock()
        self._stop = threading.Event()
        self._node = node
        self._kind = message("sensor_msgs/msg/JointState")
        self._states = node.create_publisher(
            self._kind, f"{name}/joint_states", native(SENSOR_DATA)
        )
        self._types = {
            "homing": action("franka_msgs/action/Homing"),
            "move": action("franka_msgs/action/Move"),
            "grasp": action("franka_msgs/action/Grasp"),
            "gripper_action": action("control_msgs/action/GripperCommand"),
        }
        self._servers = [
            action_server(node, self._types["homing"], f"{name}/homing", self._homing),
            action_server(node, self._types["move"], f"{name}/move", self._move),
            action_server(node, self._types["grasp"], f"{name}/grasp", self._grasp),
            action_server(
                node, self._types["gripper_action"], f"{name}/gripper_action", self._command
            ),
        ]
        node.create_service(service("std_srvs/srv/Trigger"), f"{name}/stop", self._on_stop)

    # The thread of the physics.

    def step(self, opening: float) -> float | None:
        """``opening`` is the measured one in [0, 1]; returns the one that is wanted, None where
        none was asked for yet."""
        width = opening * self.max_width_m
        if abs(width - self.width_m) > 1e-5:
            self._moved_s = time.monotonic()
        self.width_m = width
        return None if self.goal_m is None else self.goal_m / self.max_width_m

    def publish(self) -> None:
        state = self._kind(name=self._names, position=[0.5 * self.width_m] * 2,
                           velocity=[0.0, 0.0], effort=[0.0, 0.0])
        state.header.stamp = self._node.get_clock().now().to_msg()
        self._states.publish(state)

    # The goals' threads.

    def _on_stop(self, request: Any, response: Any) -> Any:
        self._stop.set()
        self.goal_m = self.width_m
        response.success = True
        return response

    def _travel(self, goal: Any, width_m: float, tell: Any) -> str:
        """Go to ``width_m``; "reached", "stalled", "canceled" or "stopped"."""
        self._stop.set()
        with self._turn:
            self._stop.clear()
            self.goal_m = width_m
            begun = self._moved_s = time.monotonic()
            while time.monotonic() - begun < LONGEST_S:
                if abs(self.width_m - width_m) < SAME_WIDTH_M:
                    return "reached"
                if goal.is_cancel_requested or self._stop.is_set():
                    self.goal_m = self.width_m
                    return "canceled" if goal.is_cancel_requested else "stopped"
                if time.monotonic() - self._moved_s > STANDS_S:
                    return "stalled"
                tell()
                time.sleep(0.02)
        return "stalled"

    def _end(self, goal: Any, how: str, good: bool) -> bool:
        if how == "canceled":
            goal.canceled()
        elif good:
            goal.succeed()
        else:
            goal.abort()
        return good and how != "canceled"

    def _run(self, goal: Any, name: str, width_m: float, good_m: tuple[float, float]) -> Any:
        kind = self._types[name]
        result = kind.Result()
        if not 0.0 <= width_m <= self.max_width_m + 1e-6:
            result.error = f"width {width_m} is out of range [0, {self.max_width_m}]"
            goal.abort()
            return result
        how = self._travel(
            goal, width_m,
            lambda: goal.publish_feedback(kind.Feedback(current_width=self.width_m)),
        )
        within = width_m - good_m[0] - SAME_WIDTH_M < self.width_m < width_m + good_m[1] + 1e-3
        result.success = self._end(goal, how, within and how != "stopped")
        if not result.success:
            result.error = how
        return result

    def _homing(self, goal: Any) -> Any:
        tell = self._types["homing"].Feedback
        for width in (0.0, self.max_width_m):
            self._travel(goal, width, lambda: goal.publish_feedback(
                tell(current_width=self.width_m)))
        result = self._types["homing"].Result()
        result.success = self._end(goal, "canceled" if goal.is_cancel_requested else "", True)
        return result

    def _move(self, goal: Any) -> Any:
        return self._run(goal, "move", goal.request.width, (0.0, 0.0))

    def _grasp(self, goal: Any) -> Any:
        epsilon = goal.request.epsilon
        return self._run(goal, "grasp", goal.request.width, (epsilon.inner, epsilon.outer))

    def _command(self, goal: Any) -> Any:
        kind = self._types["gripper_action"]
        result, width = kind.Result(), 2.0 * goal.request.command.position
        if not 0.0 <= width <= self.max_width_m + 1e-6:
            goal.abort()
            return result
        how = self._travel(
            goal, width,
            lambda: goal.publish_feedback(kind.Feedback(position=0.5 * self.width_m)),
        )
        result.reached_goal = self._end(goal, how, how == "reached")
        result.position, result.stalled = 0.5 * self.width_m, how == "stalled"
        return result
