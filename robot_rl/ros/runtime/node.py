"""The few methods of ``rclpy.node.Node`` that this project needs, where rclpy is not."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from robot_rl.errors import InvalidInputError
from robot_rl.ros.runtime import dds
from robot_rl.ros.runtime.executor import Executor
from robot_rl.ros.runtime.graph import Graph
from robot_rl.ros.runtime.parameters import Parameter as Parameter
from robot_rl.ros.runtime.parameters import Parameters
from robot_rl.ros.runtime.qos import QoS, as_qos
from robot_rl.ros.runtime.services import Client, Service
from robot_rl.ros.runtime.types import (
    ServiceType,
    deserialize,
    message,
    serialize,
    type_hash,
    type_name,
)

log = logging.getLogger(__name__)

_TOKEN = re.compile(r"^[A-Za-z_][A-Za-z0-9_]*$")


def _check_name(name: str, what: str) -> str:
    for token in name.strip("/").split("/"):
        if not _TOKEN.match(token):
            raise InvalidInputError(
                f"{what} {name!r}: {token!r} should be letters, digits and underscores and not "
                "begin with a digit"
            )
    return name


def expand(name: str, namespace: str, node: str) -> str:
    """The full name of a topic or service: ``/x`` as it is, ``x`` in the namespace, ``~/x`` below
    the node's own name."""
    if name.startswith("~/"):
        name = f"{namespace.rstrip('/')}/{node}/{name[2:]}"
    elif not name.startswith("/"):
        name = f"{namespace.rstrip('/')}/{name}"
    return _check_name(name, "name")


class Time:
    """A moment in nanoseconds since 1970."""

    def __init__(self, nanoseconds: int) -> None:
        self.nanoseconds = nanoseconds

    def to_msg(self) -> Any:
        """As builtin_interfaces/msg/Time."""
        stamp = message("builtin_interfaces/msg/Time")
        return stamp(sec=self.nanoseconds // 10**9, nanosec=self.nanoseconds % 10**9)


class Clock:
    """The wall clock, which stamps messages; ages are measured by the monotonic clock."""

    def now(self) -> Time:
        return Time(time.time_ns())


class Timer:
    """Calls back every ``period_s``; late calls are left out, not made up for."""

    def __init__(self, executor: Executor, period_s: float, callback: Callable[[], Any]) -> None:
        if not period_s > 0.0:
            raise InvalidInputError(f"the timer's period is {period_s} s, should be positive")
        self._executor = executor
        self._period_s = period_s
        self._callback = callback
        self._cancelled = False
        self.due_s = time.monotonic() + period_s
        executor.add_timer(self)

    def fire(self, now_s: float) -> None:
        missed = max(0, int((now_s - self.due_s) / self._period_s))
        self.due_s += (missed + 1) * self._period_s
        self._callback()

    def reset(self) -> None:
        """Begin a new period now."""
        self.due_s = time.monotonic() + self._period_s
        if self._cancelled:
            self._cancelled = False
            self._executor.add_timer(self)
        self._executor.wake()

    def cancel(self) -> None:
        self._cancelled = True
        self._executor.remove_timer(self)

    def is_canceled(self) -> bool:
        return self._cancelled


class Publisher:
    """Sends messages of one type on one topic."""

    def __init__(self, node: Node, kind: Any, topic: str, qos: QoS) -> None:
        self.topic_name = topic
        self.msg_type = kind
        self._type = type_name(kind)
        self._writer = node.participant.writer(
            dds.topic_name(topic), self._type, qos, f"typehash={type_hash(self._type)};"
        )

    def publish(self, value: Any) -> None:
        """Send ``value``; raises InvalidInputError where it is of another type."""
        if not isinstance(value, self.msg_type):
            raise InvalidInputError(
                f"{self.topic_name} carries {self._type}, not {type(value).__name__}"
            )
        dds.write(self._writer, serialize(value, self._type))

    def get_subscription_count(self) -> int:
        """How many subscribers were discovered, of a fitting quality of service."""
        return len(self._writer.get_matched_subscriptions())

    def close(self) -> None:
        dds.close(self._writer)


class Subscription:
    """Hands every message of a topic to a callback, in the spinning thread."""

    def __init__(
        self, node: Node, kind: Any, topic: str, callback: Callable[[Any], Any], qos: QoS
    ) -> None:
        self.topic_name = topic
        self.error: InvalidInputError | None = None
        """Why the last sample could not be read; the sender's type differs from ours."""
        self._type = type_name(kind)
        self._callback = callback
        self.reader = node.participant.reader(
            dds.topic_name(topic), self._type, qos, f"typehash={type_hash(self._type)};"
        )

    def serve(self) -> None:
        for sample in dds.taken(self.reader):
            try:
                value = deserialize(sample.data, self._type)
            except InvalidInputError as error:
                if self.error is None:
                    log.warning("%s: %s", self.topic_name, error)
                self.error = error
                continue
            self.error = None
            self._callback(value)

    def close(self) -> None:
        dds.close(self.reader)


class Logger(logging.LoggerAdapter):  # type: ignore[type-arg]
    """Python's logger with rclpy's names."""

    def warn(self, msg: object, *args: Any, **keywords: Any) -> None:  # type: ignore[override]
        self.warning(msg, *args, **keywords)


class Node:
    """A node of the ROS 2 graph. Its callbacks run in the thread that spins its executor."""

    def __init__(
        self,
        name: str,
        *,
        namespace: str = "",
        domain_id: int | None = None,
        network: str = dds.LOOPBACK,
        parameters: Mapping[str, Any] | None = None,
    ) -> None:
        self._name = _check_name(name, "node name")
        self._namespace = "/" + namespace.strip("/")
        if namespace.strip("/"):
            _check_name(namespace, "namespace")
        self.participant = dds.Participant.of(dds.domain_from(domain_id), network)
        self.executor = Executor(self.participant)
        self._graph = Graph.of(self.participant)
        self._parameters = Parameters(self, parameters or {})
        self._ends: list[Any] = []
        self._timers: list[Timer] = []
        self._lock = threading.RLock()
        self._clock = Clock()
        self._logger = Logger(logging.getLogger(f"ros.{name}"), {})
        self._destroyed = False
        self._graph.join(self._namespace, self._name)

    def get_name(self) -> str:
        return self._name

    def get_namespace(self) -> str:
        return self._namespace

    def get_fully_qualified_name(self) -> str:
        return f"{self._namespace.rstrip('/')}/{self._name}"

    def get_logger(self) -> Logger:
        return self._logger

    def get_clock(self) -> Clock:
        return self._clock

    def resolve_topic_name(self, topic: str) -> str:
        """The full name of a topic of this node."""
        return expand(topic, self._namespace, self._name)

    def resolve_service_name(self, service: str) -> str:
        """The full name of a service of this node."""
        return expand(service, self._namespace, self._name)

    # What it talks with.

    def create_publisher(self, msg_type: Any, topic: str, qos_profile: QoS | int) -> Publisher:
        made = Publisher(self, msg_type, self.resolve_topic_name(topic), as_qos(qos_profile))
        return self._keep(made)

    def create_subscription(
        self, msg_type: Any, topic: str, callback: Callable[[Any], Any], qos_profile: QoS | int,
    ) -> Subscription:
        name = self.resolve_topic_name(topic)
        return self._serve(Subscription(self, msg_type, name, callback, as_qos(qos_profile)))

    def create_service(
        self, srv_type: ServiceType, srv_name: str, callback: Callable[[Any, Any], Any]
    ) -> Service:
        return self._serve(Service(self, srv_type, self.resolve_service_name(srv_name), callback))

    def create_client(self, srv_type: ServiceType, srv_name: str) -> Client:
        return self._serve(Client(self, srv_type, self.resolve_service_name(srv_name)))

    def create_timer(self, timer_period_sec: float, callback: Callable[[], Any]) -> Timer:
        timer = Timer(self.executor, timer_period_sec, callback)
        with self._lock:
            self._timers.append(timer)
        return timer

    def _keep(self, end: Any) -> Any:
        with self._lock:
            self._ends.append(end)
        self._graph.add(self._namespace, self._name, end)
        return end

    def _serve(self, end: Any) -> Any:
        self.executor.add(end)
        return self._keep(end)

    def _drop(self, end: Any) -> bool:
        with self._lock:
            if end not in self._ends:
                return False
            self._ends.remove(end)
        if hasattr(end, "serve"):
            self.executor.remove(end)
        self._graph.remove(self._namespace, self._name, end)
        end.close()
        return True

    def destroy_publisher(self, publisher: Publisher) -> bool:
        return self._drop(publisher)

    def destroy_subscription(self, subscription: Subscription) -> bool:
        return self._drop(subscription)

    def destroy_client(self, client: Client) -> bool:
        return self._drop(client)

    def destroy_service(self, service: Service) -> bool:
        return self._drop(service)

    def destroy_timer(self, timer: Timer) -> bool:
        timer.cancel()
        with self._lock:
            if timer not in self._timers:
                return False
            self._timers.remove(timer)
            return True

    def count_publishers(self, topic_name: str) -> int:
        """Publishers of the topic discovered so far, this node's own among them."""
        name = dds.topic_name(self.resolve_topic_name(topic_name))
        return len(self.participant.endpoints(name, "writers"))

    def count_subscribers(self, topic_name: str) -> int:
        """Subscribers of the topic discovered so far, this node's own among them."""
        name = dds.topic_name(self.resolve_topic_name(topic_name))
        return len(self.participant.endpoints(name, "readers"))

    def get_node_names_and_namespaces(self) -> list[tuple[str, str]]:
        """Name and namespace of every node discovered so far, this one among them."""
        return self._graph.nodes()

    # Parameters, which other nodes see from the first declaration on.

    def declare_parameter(
        self, name: str, value: Any = None, descriptor: Any = None, ignore_override: bool = False
    ) -> Parameter:
        """Have a parameter, with the value that the node was started with or ``value``; a type in
        place of a value stands for none yet. ``descriptor`` is a
        rcl_interfaces/msg/ParameterDescriptor: description, range, whether it may be set.

        Raises:
            InvalidInputError: it is declared already, or the value does not fit.
        """
        return self._parameters.declare(name, value, descriptor, ignore_override)

    def has_parameter(self, name: str) -> bool:
        return self._parameters.has(name)

    def get_parameter(self, name: str) -> Parameter:
        """A copy of the parameter as it is now; raises InvalidInputError where there is none."""
        return self._parameters.get(name)

    def describe_parameter(self, name: str) -> Any:
        """The descriptor of a parameter; raises InvalidInputError where there is none."""
        return self._parameters.describe(name)

    def set_parameters(self, parameter_list: list[Parameter]) -> list[Any]:
        """Set each that was declared, fits, and that no callback objects to; their
        rcl_interfaces/msg/SetParametersResult, in order."""
        return self._parameters.set(parameter_list)

    def set_parameters_atomically(self, parameter_list: list[Parameter]) -> Any:
        """As :meth:`set_parameters`, all of them or none; one result."""
        return self._parameters.set_together(parameter_list)

    def add_on_set_parameters_callback(
        self, callback: Callable[[list[Parameter]], Any]
    ) -> None:
        """Ask ``callback(parameters)`` before they are set; it returns something with
        ``successful`` and ``reason``. The callback added last is asked first."""
        self._parameters.ask(callback)

    def remove_on_set_parameters_callback(
        self, callback: Callable[[list[Parameter]], Any]
    ) -> None:
        """Ask it no more."""
        self._parameters.ask_no_more(callback)

    def destroy_node(self) -> None:
        """Leave the graph; idempotent. Nothing may spin it any more."""
        with self._lock:
            if self._destroyed:
                return
            self._destroyed = True
            ends, self._ends = self._ends, []
        for timer in list(self._timers):
            timer.cancel()
        self.executor.shutdown()
        self._graph.leave(self._namespace, self._name)
        for end in reversed(ends):
            if hasattr(end, "serve"):
                self.executor.remove(end)
            end.close()
        self.executor.close()
        self.participant.release()
