"""Makes nodes and spins them, on rclpy or on the embedded runtime."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from robot_rl.errors import StaleDataError
from robot_rl.ros.runtime.actions import ActionClient, ActionServer
from robot_rl.ros.runtime.dds import LOOPBACK, domain_from
from robot_rl.ros.runtime.node import Node
from robot_rl.ros.runtime.types import have_rclpy

_state = {"ok": False}
_spinners: weakref.WeakSet[Spinner] = weakref.WeakSet()


def is_embedded(node: Any) -> bool:
    """Whether ``node`` is of the embedded runtime."""
    return isinstance(node, Node)


def init() -> None:
    """Begin; further calls do nothing. :func:`make_node` begins where nobody has."""
    _state["ok"] = True


def ok() -> bool:
    """Whether :func:`init` was called, and :func:`shutdown` not since."""
    return _state["ok"]


def shutdown() -> None:
    """Stop everything that spins; idempotent."""
    _state["ok"] = False
    for spinner in list(_spinners):
        spinner.close()


def make_node(
    name: str,
    *,
    namespace: str = "",
    domain_id: int | None = None,
    network: str = LOOPBACK,
    parameters: Mapping[str, Any] | None = None,
) -> Any:
    """A node, rclpy's own where rclpy can be imported.

    Args:
        name: name of the node.
        namespace: where its relative names stand.
        domain_id: the DDS domain; ``ROS_DOMAIN_ID`` by default.
        network: where the embedded runtime's domain lies: ``loopback``, ``any``, or an interface's
            name or address; ``CYCLONEDDS_URI`` overrules it, and rclpy has its own settings.
        parameters: values of parameters that override the declared ones.

    Raises:
        InvalidInputError: a name that ROS does not allow, or no such domain.
        MissingDependencyError: neither rclpy nor the embedded runtime's packages are there.
    """
    init()
    if not have_rclpy():
        return Node(
            name, namespace=namespace, domain_id=domain_id, network=network, parameters=parameters
        )
    import rclpy
    from rclpy.parameter import Parameter

    # A context of its own: each node may be in another domain, and nobody else's is touched.
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=domain_from(domain_id))
    overrides = [Parameter(key, value=value) for key, value in (parameters or {}).items()]
    return rclpy.create_node(
        name, namespace=namespace, context=context, parameter_overrides=overrides
    )


def destroy(node: Any) -> None:
    """Take a node off the graph, when nothing spins it any more."""
    node.destroy_node()
    if not is_embedded(node):
        with contextlib.suppress(Exception):
            node.context.try_shutdown()


def action_client(node: Any, kind: Any, name: str) -> Any:
    """A client of the action ``name``."""
    if is_embedded(node):
        return ActionClient(node, kind, name)
    from rclpy.action import ActionClient as Native

    return Native(node, kind, name)


def action_server(node: Any, kind: Any, name: str, execute: Callable[[Any], Any]) -> Any:
    """A server of the action ``name`` that calls ``execute(goal_handle) -> result`` in a thread
    of its own for each goal."""
    if is_embedded(node):
        return ActionServer(node, kind, name, execute)
    from rclpy.action import ActionServer as Native
    from rclpy.action import CancelResponse
    from rclpy.callback_groups import ReentrantCallbackGroup

    return Native(
        node, kind, name, execute,
        callback_group=ReentrantCallbackGroup(),
        cancel_callback=lambda _: CancelResponse.ACCEPT,
    )


def wait_for(future: Any, timeout_s: float, what: str) -> Any:
    """The result of a future that another thread's spinning brings about.

    Raises:
        StaleDataError: it did not come in time; the message names ``what``.
    """
    ended = threading.Event()
    future.add_done_callback(lambda _: ended.set())
    if not ended.wait(timeout_s):
        future.cancel()
        raise StaleDataError(f"{what} did not answer within {timeout_s:g} s")
    return future.result()


class Spinner:
    """Spins a node in a thread, from the start to :meth:`close`; also a context manager."""

    def __init__(self, node: Any) -> None:
        self.node = node
        self._stop = threading.Event()
        self._native: Any = None
        if is_embedded(node):
            target: Callable[[], None] = self._spin_embedded
        else:
            from rclpy.executors import MultiThreadedExecutor

            self._native = MultiThreadedExecutor(num_threads=3, context=node.context)
            self._native.add_node(node)
            target = self._native.spin
        self._thread = threading.Thread(target=target, name="ros-spin", daemon=True)
        self._thread.start()
        _spinners.add(self)

    def _spin_embedded(self) -> None:
        self.node.executor.spin(self._stop)

    def close(self) -> None:
        """Stop spinning; returns when no callback runs any more. Idempotent."""
        self._stop.set()
        if self._native is not None:
            self._native.shutdown()
        else:
            self.node.executor.wake()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout=5.0)

    def __enter__(self) -> Spinner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
