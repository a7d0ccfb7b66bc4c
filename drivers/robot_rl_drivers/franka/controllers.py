"""Which controller of ros2_control drives the arm."""

from __future__ import annotations

import threading
import time
from typing import Any

from robot_rl.errors import InvalidInputError, RobotRLError, SafetyError
from robot_rl.ros.runtime import service, wait_for

CARTESIAN = "cartesian_impedance_controller"
JOINT = "joint_impedance_controller"
MOVING = (CARTESIAN, JOINT, "gravity_compensation", "joint_trajectory_controller")
"""Those of which at most one may be active, for they command the same joints."""

SILENT_S = 3.0
"""An answer that is older than this says nothing of which controller is active now."""
_ANSWER_S = 1.0
_STRICT = 2
_MANAGER = "controller_manager"


class Controllers:
    """Asks the controller manager, and switches to the controller that is ``wanted``.

    Without ROS 2 installed here, the answers of another release of ros2_control than that of
    ``ROS_DISTRO`` (Jazzy by default) cannot be read.
    """

    def __init__(self, node: Any, wanted: str) -> None:
        self.wanted = wanted
        self._list_type = service("controller_manager_msgs/srv/ListControllers")
        self._switch_type = service("controller_manager_msgs/srv/SwitchController")
        self._lister = node.create_client(self._list_type, f"{_MANAGER}/list_controllers")
        self._switcher = node.create_client(self._switch_type, f"{_MANAGER}/switch_controller")
        self._lock = threading.Lock()
        self._asked: Any = None
        self._asked_s = 0.0
        self._heard_s: float | None = None
        self.states: dict[str, str] = {}
        """State of each controller by name, as last heard."""

    @property
    def manual(self) -> str:
        """The command that switches by hand."""
        return f"ros2 control switch_controllers --activate {self.wanted}"

    def wait(self, timeout_s: float) -> bool:
        """Wait for the controller manager; whether it is there."""
        return bool(self._lister.wait_for_service(timeout_sec=timeout_s))

    def refresh(self, timeout_s: float = 2.0) -> dict[str, str]:
        """Ask for the states and wait for the answer.

        Raises:
            StaleDataError: none came in time.
            SafetyError: it cannot be read.
        """
        future = self._lister.call_async(self._list_type.Request())
        try:
            answer = wait_for(future, timeout_s, "the controller manager")
        except InvalidInputError as error:
            raise SafetyError(
                f"the controller manager's answer cannot be read ({error}); is ROS_DISTRO that of "
                "the robot?"
            ) from None
        self._take(answer)
        return self.states

    def ask(self) -> None:
        """Ask for the states without waiting; for a timer."""
        with self._lock:
            now_s = time.monotonic()
            # An answer may be lost, as when the manager is restarted.
            waits = self._asked is not None and not self._asked.done()
            if waits and now_s - self._asked_s < _ANSWER_S:
                return
            self._asked_s = now_s
            self._asked = self._lister.call_async(self._list_type.Request())
        self._asked.add_done_callback(self._answered)

    def _answered(self, future: Any) -> None:
        if future.exception() is None:
            self._take(future.result())

    def _take(self, answer: Any) -> None:
        if answer is not None:
            self._heard_s = time.monotonic()
            self.states = {each.name: each.state for each in answer.controller}

    def fault(self) -> str | None:
        """Why the wanted controller does not drive the arm; None where it does, or nothing has
        been heard."""
        if self._heard_s is None:
            return None
        silent_s = time.monotonic() - self._heard_s
        if silent_s > SILENT_S:
            return f"the controller manager has not answered for {silent_s:.1f} s"
        if self.states.get(self.wanted) == "active":
            return None
        state = self.states.get(self.wanted)
        others = [name for name in MOVING if self.states.get(name) == "active"]
        instead = f"; {', '.join(others)} is active" if others else ""
        return (f"the controller {self.wanted} is {state}{instead}" if state is not None
                else f"the robot has no controller {self.wanted}, only "
                f"{', '.join(sorted(self.states)) or 'none'}")

    def activate(self) -> None:
        """Have the wanted controller drive the arm, and no other.

        Raises:
            SafetyError: it cannot be activated; the message says how to do so by hand.
        """
        try:
            if self.refresh().get(self.wanted) == "active":
                return
            if self.wanted not in self.states:
                raise SafetyError(str(self.fault()))
            others = [name for name in MOVING
                      if name != self.wanted and self.states.get(name) == "active"]
            request = self._switch_type.Request(
                activate_controllers=[self.wanted], deactivate_controllers=others,
                strictness=_STRICT, activate_asap=True,
            )
            request.timeout.sec = 2
            answer = wait_for(self._switcher.call_async(request), 5.0, "the controller manager")
            if not answer.ok or self.refresh().get(self.wanted) != "active":
                raise SafetyError(f"{self.wanted} was not activated; by hand: {self.manual}")
        except SafetyError:
            raise
        except RobotRLError as error:
            raise SafetyError(f"{error}; switch by hand: {self.manual}") from None
