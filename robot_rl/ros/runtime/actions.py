"""Actions: goals that take time, with feedback and a result, and that can be cancelled.

Three services and two topics below ``<name>/_action``, as ROS 2 lays them out. The classes here
have the methods of rclpy's that this project needs.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

import numpy as np

from robot_rl.ros.runtime.node import Node
from robot_rl.ros.runtime.qos import DEFAULT, LATCHED
from robot_rl.ros.runtime.services import Future
from robot_rl.ros.runtime.types import ActionType, message, service

log = logging.getLogger(__name__)

ACCEPTED, EXECUTING, CANCELING, SUCCEEDED, CANCELED, ABORTED = 1, 2, 3, 4, 5, 6
_ENDED = (SUCCEEDED, CANCELED, ABORTED)


def _uuid_message(goal_id: bytes) -> Any:
    return message("unique_identifier_msgs/msg/UUID")(uuid=np.frombuffer(goal_id, np.uint8).copy())


class ClientGoalHandle:
    """A goal that a server has answered; ``accepted`` says how."""

    def __init__(self, client: ActionClient, goal_id: bytes, accepted: bool) -> None:
        self._client = client
        self.goal_id = goal_id
        self.accepted = accepted

    def get_result_async(self) -> Future:
        """Ends with something that has ``status`` and ``result``, when the goal has ended."""
        request = self._client.kind.get_result.Request(goal_id=_uuid_message(self.goal_id))
        return self._client.result_client.call_async(request)

    def cancel_goal_async(self) -> Future:
        """Ask the server to stop; ends with its answer."""
        info = message("action_msgs/msg/GoalInfo")(goal_id=_uuid_message(self.goal_id))
        request = service("action_msgs/srv/CancelGoal").Request(goal_info=info)
        return self._client.cancel_client.call_async(request)


class ActionClient:
    """Sends goals to an action server."""

    def __init__(self, node: Node, kind: ActionType, name: str) -> None:
        self._node = node
        self.kind = kind
        base = node.resolve_service_name(name) + "/_action"
        self._goal_client = node.create_client(kind.send_goal, base + "/send_goal")
        self.result_client = node.create_client(kind.get_result, base + "/get_result")
        self.cancel_client = node.create_client(
            service("action_msgs/srv/CancelGoal"), base + "/cancel_goal"
        )
        self._feedback: dict[bytes, Callable[[Any], None]] = {}
        self._subscription = node.create_subscription(
            kind.FeedbackMessage, base + "/feedback", self._on_feedback, DEFAULT
        )

    def server_is_ready(self) -> bool:
        """Whether a server was discovered."""
        clients = (self._goal_client, self.result_client, self.cancel_client)
        return all(client.service_is_ready() for client in clients)

    def wait_for_server(self, timeout_sec: float | None = None) -> bool:
        """Wait for a server, at most ``timeout_sec`` [s]; whether there is one."""
        deadline = None if timeout_sec is None else time.monotonic() + timeout_sec
        while not self.server_is_ready():
            if deadline is not None and time.monotonic() >= deadline:
                return False
            time.sleep(0.01)
        return True

    def send_goal_async(
        self, goal: Any, feedback_callback: Callable[[Any], None] | None = None
    ) -> Future:
        """Send a goal; the future ends with a :class:`ClientGoalHandle`."""
        goal_id = uuid.uuid4().bytes
        if feedback_callback is not None:
            self._feedback[goal_id] = feedback_callback
        handle = Future()

        def answered(future: Future) -> None:
            error = future.exception()
            if error is not None:
                handle.set_exception(error)
            elif not future.cancelled():
                accepted = bool(future.result().accepted)
                handle.set_result(ClientGoalHandle(self, goal_id, accepted))

        request = self.kind.send_goal.Request(goal_id=_uuid_message(goal_id), goal=goal)
        self._goal_client.call_async(request).add_done_callback(answered)
        return handle

    def _on_feedback(self, feedback: Any) -> None:
        callback = self._feedback.get(bytes(feedback.goal_id.uuid))
        if callback is not None:
            callback(feedback)

    def destroy(self) -> None:
        for client in (self._goal_client, self.result_client, self.cancel_client):
            self._node.destroy_client(client)
        self._node.destroy_subscription(self._subscription)


class ServerGoalHandle:
    """A goal at the server. ``execute`` calls one of :meth:`succeed`, :meth:`abort` and
    :meth:`canceled`, and returns the result."""

    def __init__(self, server: ActionServer, goal_id: bytes, request: Any) -> None:
        self._server = server
        self.goal_id = goal_id
        self.request = request
        self.status = EXECUTING
        self.stamp = server.node.get_clock().now().to_msg()
        self.result: Any = None
        self.waiting: list[tuple[int, int]] = []

    @property
    def is_cancel_requested(self) -> bool:
        return self.status == CANCELING

    def publish_feedback(self, feedback: Any) -> None:
        self._server.publish_feedback(self.goal_id, feedback)

    def succeed(self) -> None:
        self._server.set_status(self, SUCCEEDED)

    def abort(self) -> None:
        self._server.set_status(self, ABORTED)

    def canceled(self) -> None:
        self._server.set_status(self, CANCELED)


class ActionServer:
    """Runs ``execute_callback(goal_handle) -> result`` for each goal, in a thread of its own."""

    def __init__(
        self,
        node: Node,
        kind: ActionType,
        name: str,
        execute_callback: Callable[[ServerGoalHandle], Any],
        *,
        goal_callback: Callable[[Any], bool] | None = None,
    ) -> None:
        self.node = node
        self.kind = kind
        self._execute = execute_callback
        self._accepts = goal_callback
        self._goals: dict[bytes, ServerGoalHandle] = {}
        self._lock = threading.RLock()
        base = node.resolve_service_name(name) + "/_action"
        self._send_goal = node.create_service(kind.send_goal, base + "/send_goal", self._on_goal)
        self._get_result = node.create_service(
            kind.get_result, base + "/get_result", self._on_get_result
        )
        self._cancel = node.create_service(
            service("action_msgs/srv/CancelGoal"), base + "/cancel_goal", self._on_cancel
        )
        self._feedback = node.create_publisher(kind.FeedbackMessage, base + "/feedback", DEFAULT)
        self._status = node.create_publisher(
            message("action_msgs/msg/GoalStatusArray"), base + "/status", LATCHED
        )

    def _on_goal(self, request: Any, response: Any) -> Any:
        goal_id = bytes(request.goal_id.uuid)
        refused = self._accepts is not None and not self._accepts(request.goal)
        with self._lock:
            if refused or goal_id in self._goals:
                return response
            handle = self._goals[goal_id] = ServerGoalHandle(self, goal_id, request.goal)
        response.accepted, response.stamp = True, handle.stamp
        self._publish_status()
        threading.Thread(target=self._run, args=(handle,), name="ros-action", daemon=True).start()
        return response

    def _run(self, handle: ServerGoalHandle) -> None:
        try:
            result = self._execute(handle)
        except Exception:
            log.exception("the action %s failed", self.kind.name)
            result = None
        with self._lock:
            if handle.status not in _ENDED:
                self.set_status(handle, ABORTED)
            handle.result = self.kind.Result() if result is None else result
            waiting, handle.waiting = handle.waiting, []
        for header in waiting:
            self._get_result.send_response(self._result_of(handle), header)

    def _result_of(self, handle: ServerGoalHandle) -> Any:
        return self.kind.get_result.Response(status=handle.status, result=handle.result)

    def _on_get_result(self, request: Any, response: Any) -> Any:
        with self._lock:
            handle = self._goals.get(bytes(request.goal_id.uuid))
            if handle is None:
                return response
            if handle.result is None:
                handle.waiting.append(self._get_result.header)
                return None
        return self._result_of(handle)

    def _on_cancel(self, request: Any, response: Any) -> Any:
        wanted = bytes(request.goal_info.goal_id.uuid)
        with self._lock:
            # An id of zeros asks for all goals to be cancelled.
            found = [handle for goal_id, handle in self._goals.items()
                     if handle.status not in _ENDED and wanted in (goal_id, bytes(16))]
            for handle in found:
                handle.status = CANCELING
                response.goals_canceling.append(self._info(handle))
        if not found:
            known = wanted in self._goals
            response.return_code = (response.ERROR_GOAL_TERMINATED if known
                                    else response.ERROR_UNKNOWN_GOAL_ID)
        self._publish_status()
        return response

    def set_status(self, handle: ServerGoalHandle, status: int) -> None:
        handle.status = status
        self._publish_status()

    def publish_feedback(self, goal_id: bytes, feedback: Any) -> None:
        self._feedback.publish(
            self.kind.FeedbackMessage(goal_id=_uuid_message(goal_id), feedback=feedback)
        )

    def _info(self, handle: ServerGoalHandle) -> Any:
        return message("action_msgs/msg/GoalInfo")(
            goal_id=_uuid_message(handle.goal_id), stamp=handle.stamp
        )

    def _publish_status(self) -> None:
        status = message("action_msgs/msg/GoalStatus")
        with self._lock:
            # The latest goals are enough; ended ones are kept for their results.
            while len(self._goals) > 64:
                self._goals.pop(next(iter(self._goals)))
            entries = [status(goal_info=self._info(handle), status=handle.status)
                       for handle in self._goals.values()]
        self._status.publish(message("action_msgs/msg/GoalStatusArray")(status_list=entries))
