"""The Franka hand behind franka_gripper, over ROS 2."""

from __future__ import annotations

import math
import threading
from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from robot_rl.errors import InvalidInputError, RobotRLError, SafetyError, StaleDataError
from robot_rl.interfaces import Clock
from robot_rl.ros.runtime import (
    SENSOR_DATA,
    action,
    action_client,
    message,
    native,
    service,
    wait_for,
)
from robot_rl.specs import RobotSpec
from robot_rl_drivers.franka.topics import JOINT_STATE_TYPE

KINDS = ("action", "franka", "none")
"""``action``: control_msgs/GripperCommand; ``franka``: franka_msgs Move and Grasp."""

LEAST_CHANGE = 0.02
"""An opening that differs less from the last one sent is not sent."""
_ANSWER_S = 2.0
_TRAVEL_S = 10.0


def check_opening(opening: float) -> float:
    """The opening within [0, 1].

    Raises:
        InvalidInputError: it is not finite.
    """
    if not math.isfinite(opening):
        raise InvalidInputError(f"gripper opening is {opening}, should be in [0, 1]")
    return min(max(float(opening), 0.0), 1.0)


class NoGripper:
    """:class:`robot_rl.interfaces.Gripper` of an arm that has none: always closed."""

    def opening(self, max_age_s: float) -> float:
        return 0.0

    def command(self, opening: float) -> float:
        return check_opening(opening)


class NewestOpening(ABC):
    """Takes openings and has a thread go to the newest one.

    A driver starts it with :meth:`_start` and says in :meth:`_go` how to go to an opening; that
    gives up when :meth:`_newer` says there is another.
    """

    def __init__(self) -> None:
        self._wake = threading.Condition()
        self._wanted: float | None = None
        self._last: float | None = None
        self._closed = False
        self.fault: str | None = None
        self._thread = threading.Thread(target=self._run, name="gripper", daemon=True)

    def _start(self) -> None:
        self._thread.start()

    @abstractmethod
    def _go(self, opening: float) -> None:
        """Go to ``opening`` and return once that ended or :meth:`_newer` says so; on the thread.

        Raises:
            RobotRLError: it failed; :attr:`fault` says so until an opening was reached.
        """

    def command(self, opening: float) -> float:
        """Go to ``opening``; returns it clipped to [0, 1], at once."""
        sent = check_opening(opening)
        with self._wake:
            if self._closed:
                raise SafetyError("the gripper's connection was closed")
            if self._last is None or abs(sent - self._last) >= LEAST_CHANGE or (
                    sent in (0.0, 1.0) and sent != self._last):
                self._wanted = self._last = sent
                self._wake.notify_all()
        return sent

    def halt(self) -> None:
        """Forget an opening that waits to be sent; the next command is sent whatever it is. The
        fingers stay as they are, or go on to where they were sent."""
        with self._wake:
            self._wanted = self._last = None

    def _newer(self) -> bool:
        return self._wanted is not None or self._closed

    def _run(self) -> None:
        while True:
            with self._wake:
                while self._wanted is None and not self._closed:
                    self._wake.wait()
                if self._closed:
                    return
                wanted, self._wanted = self._wanted, None
            assert wanted is not None
            try:
                self._go(wanted)
                self.fault = None
            except RobotRLError as error:
                self.fault = str(error)

    def close(self) -> None:
        """Send no more; the fingers stay. Idempotent."""
        with self._wake:
            self._closed = True
            self._wake.notify_all()
        if self._thread.is_alive():
            self._thread.join(timeout=2.0)


class FrankaGripper(NewestOpening):
    """:class:`robot_rl.interfaces.Gripper` by the actions of franka_gripper.

    A command returns at once; a thread sends the newest opening and cancels the one before.

    Args:
        spec: the arm; its gripper's stroke and force.
        node: a node that something spins.
        clock: the rig's clock.
        name: the gripper's node, e.g. ``fr3_gripper``.
        kind: ``action`` or ``franka``.
        timeout_s: how long to wait for the gripper [s].

    Raises:
        StaleDataError: it does not report or offers no such action.
    """

    def __init__(
        self,
        spec: RobotSpec,
        node: Any,
        clock: Clock,
        name: str,
        *,
        kind: str = "action",
        timeout_s: float = 5.0,
    ) -> None:
        super().__init__()
        self._spec = spec.gripper
        self._node = node
        self._clock = clock
        self._kind = kind
        self.topic = node.resolve_topic_name(f"{name}/joint_states")
        self._held: tuple[float, float] | None = None
        node.create_subscription(
            message(JOINT_STATE_TYPE), self.topic, self._receive, native(SENSOR_DATA)
        )
        self._types = {
            "homing": action("franka_msgs/action/Homing"),
            "move": action("franka_msgs/action/Move"),
            "grasp": action("franka_msgs/action/Grasp"),
            "gripper_action": action("control_msgs/action/GripperCommand"),
        }
        self._trigger = service("std_srvs/srv/Trigger")
        self._stopper = node.create_client(self._trigger, f"{name}/stop")
        self._clients = {
            key: action_client(node, each, f"{name}/{key}") for key, each in self._types.items()
        }
        needed = ("gripper_action",) if kind == "action" else ("move", "grasp")
        for key in needed:
            if not self._clients[key].wait_for_server(timeout_sec=timeout_s):
                raise StaleDataError(
                    f"the gripper offers no action {name}/{key} (waited {timeout_s:g} s); does "
                    "franka_gripper run? --rig gripper=none does without"
                )
        self._start()

    def _receive(self, state: Any) -> None:
        position = np.asarray(state.position, dtype=np.float64)
        if len(position) and np.isfinite(position).all():
            stroke = float(position.mean()) / self._spec.finger_stroke_m
            self._held = (min(max(stroke, 0.0), 1.0), self._clock.now_s())

    def opening(self, max_age_s: float) -> float:
        """The measured opening in [0, 1].

        Raises:
            StaleDataError: it is older than ``max_age_s``, or none came.
        """
        held = self._held
        if held is None:
            raise StaleDataError(f"the gripper has not reported on {self.topic}")
        age_s = self._clock.now_s() - held[1]
        if not age_s <= max_age_s:
            raise StaleDataError(
                f"the last state on {self.topic} is {age_s:.3f} s old, should be at most "
                f"{max_age_s:g} s"
            )
        return held[0]

    def homing(self, timeout_s: float = 20.0) -> None:
        """Find the fingers' ends: an operator's act, with nothing between the fingers.

        Raises:
            SafetyError: it failed.
        """
        client = self._clients["homing"]
        if not client.wait_for_server(timeout_sec=_ANSWER_S):
            raise SafetyError("the gripper offers no action homing")
        goal = wait_for(client.send_goal_async(self._types["homing"].Goal()), _ANSWER_S, "homing")
        answer = wait_for(goal.get_result_async(), timeout_s, "homing")
        if not answer.result.success:
            raise SafetyError(f"the gripper's homing failed: {answer.result.error}")

    def stop(self) -> None:
        """Stop the fingers where they are.

        Raises:
            SafetyError: they could not be stopped.
        """
        self.halt()
        answer = wait_for(self._stopper.call_async(self._trigger.Request()), _ANSWER_S,
                          "the gripper's service stop")
        if not answer.success:
            raise SafetyError(f"the gripper was not stopped: {answer.message}")

    # The thread.

    def _go(self, opening: float) -> None:
        """Send a goal and stay with it until it ends or a newer one is there."""
        name, goal = self._goal_for(opening)
        handle = wait_for(self._clients[name].send_goal_async(goal), _ANSWER_S,
                          f"the gripper's action {name}")
        if not handle.accepted:
            raise SafetyError(f"the gripper refused {name} to {opening:.2f}")
        ended = handle.get_result_async()
        ended.add_done_callback(lambda _: self._notify())
        with self._wake:
            self._wake.wait_for(lambda: ended.done() or self._newer(), timeout=_TRAVEL_S)
        if not ended.done():
            wait_for(handle.cancel_goal_async(), _ANSWER_S, "the gripper's cancel")

    def _notify(self) -> None:
        with self._wake:
            self._wake.notify_all()

    def _goal_for(self, opening: float) -> tuple[str, Any]:
        spec = self._spec
        if self._kind == "action":
            goal = self._types["gripper_action"].Goal()
            # As franka_gripper takes it: the travel of one finger.
            goal.command.position = opening * spec.finger_stroke_m
            goal.command.max_effort = spec.force_n
            return "gripper_action", goal
        width = 2.0 * opening * spec.finger_stroke_m
        held = self._held
        if held is None or opening >= held[0]:
            return "move", self._types["move"].Goal(width=width, speed=spec.finger_velocity_m_s)
        goal = self._types["grasp"].Goal(
            width=width, speed=spec.finger_velocity_m_s, force=spec.force_n
        )
        # Whatever is between the fingers is wanted there.
        goal.epsilon.inner = goal.epsilon.outer = 2.0 * spec.finger_stroke_m
        return "grasp", goal

    def watch(self) -> str | None:
        """Why the gripper cannot be relied on, None where it can; for ``Rig.watches``."""
        try:
            self.opening(1.0)
        except StaleDataError as error:
            return str(error)
        return self.fault
