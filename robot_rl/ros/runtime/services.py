"""Services over DDS: a request topic and a reply topic, every payload led by the caller's id and
the call's number."""

from __future__ import annotations

import os
import struct
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from robot_rl.errors import InvalidInputError
from robot_rl.ros.runtime import dds
from robot_rl.ros.runtime.qos import SERVICES
from robot_rl.ros.runtime.types import ServiceType, deserialize, serialize, type_name

if TYPE_CHECKING:
    from robot_rl.ros.runtime.node import Node

_HEADER = struct.Struct("<Qq")
_CDR_HEADER = 4
_REPLY_READER_S = 0.1


class Future:
    """What a call will return; as rclpy's."""

    def __init__(self) -> None:
        self._done = threading.Event()
        self._lock = threading.Lock()
        self._result: Any = None
        self._exception: BaseException | None = None
        self._cancelled = False
        self._callbacks: list[Callable[[Future], None]] = []

    def done(self) -> bool:
        return self._done.is_set()

    def cancelled(self) -> bool:
        return self._cancelled

    def result(self) -> Any:
        """The result, None while there is none; raises what the call failed with."""
        if self._exception is not None:
            raise self._exception
        return self._result

    def exception(self) -> BaseException | None:
        return self._exception

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for the end, at most ``timeout_s``; whether it came."""
        return self._done.wait(timeout_s)

    def set_result(self, result: Any) -> None:
        self._end(result, None, False)

    def set_exception(self, error: BaseException) -> None:
        self._end(None, error, False)

    def cancel(self) -> None:
        self._end(None, None, True)

    def _end(self, result: Any, error: BaseException | None, cancelled: bool) -> None:
        with self._lock:
            if self._done.is_set():
                return
            self._result, self._exception, self._cancelled = result, error, cancelled
            self._done.set()
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback(self)

    def add_done_callback(self, callback: Callable[[Future], None]) -> None:
        """Call ``callback(future)`` at the end, at once where it has come."""
        with self._lock:
            if not self._done.is_set():
                self._callbacks.append(callback)
                return
        callback(self)


def pack(client_id: int, sequence: int, value: Any, name: str) -> bytes:
    """The payload of a request or a reply."""
    body = serialize(value, name)
    return body[:_CDR_HEADER] + _HEADER.pack(client_id, sequence) + body[_CDR_HEADER:]


def caller(data: bytes) -> tuple[int, int]:
    """Client id and number of the call of a payload.

    Raises:
        InvalidInputError: it is too short to have them.
    """
    if len(data) < _CDR_HEADER + _HEADER.size:
        raise InvalidInputError(f"a payload has {len(data)} bytes, too few for its header")
    client_id, sequence = _HEADER.unpack_from(data, _CDR_HEADER)
    return client_id, sequence


def unpack(data: bytes, name: str) -> Any:
    """The message of a payload.

    Raises:
        InvalidInputError: the bytes are no such message.
    """
    return deserialize(data[:_CDR_HEADER] + data[_CDR_HEADER + _HEADER.size:], name)


class Client:
    """Calls a service of another node."""

    def __init__(self, node: Node, kind: ServiceType, name: str) -> None:
        self._node = node
        self.srv_type = kind
        self.srv_name = name
        self._id = int.from_bytes(os.urandom(8), "little")
        self._request, self._response = type_name(kind.Request), type_name(kind.Response)
        data = f"clientid={self._id:016x};typehash={kind.type_hash};"
        participant = node.participant
        self.reader = participant.reader(
            f"rr{name}Reply", self._response, SERVICES, data, with_header=True
        )
        self._writer = participant.writer(
            f"rq{name}Request", self._request, SERVICES, data, with_header=True
        )
        self._lock = threading.Lock()
        self._calls = 0
        self._pending: dict[int, Future] = {}

    def service_is_ready(self) -> bool:
        """Whether a server was discovered, for requests and replies alike."""
        return bool(self._writer.get_matched_subscriptions()) and bool(
            self.reader.get_matched_publications()
        )

    def wait_for_service(self, timeout_sec: float | None = None) -> bool:
        """Wait for a server, at most ``timeout_sec`` [s]; whether there is one."""
        deadline = None if timeout_sec is None else time.monotonic() + timeout_sec
        while not self.service_is_ready():
            if deadline is not None and time.monotonic() >= deadline:
                return False
            time.sleep(0.01)
        return True

    def call_async(self, request: Any) -> Future:
        """Send the request; the future ends with the response, in the spinning thread."""
        future = Future()
        with self._lock:
            self._calls += 1
            sequence = self._calls
            self._pending[sequence] = future
        dds.write(self._writer, pack(self._id, sequence, request, self._request))
        return future

    def remove_pending_request(self, future: Future) -> None:
        """Forget a call nobody waits for any more."""
        with self._lock:
            self._pending = {n: f for n, f in self._pending.items() if f is not future}

    def serve(self) -> None:
        for sample in dds.taken(self.reader):
            client_id, sequence = caller(sample.data)
            if client_id != self._id:
                continue
            with self._lock:
                future = self._pending.pop(sequence, None)
            if future is None:
                continue
            try:
                future.set_result(unpack(sample.data, self._response))
            except InvalidInputError as error:
                future.set_exception(error)

    def close(self) -> None:
        dds.close(self._writer)
        dds.close(self.reader)


class Service:
    """Answers calls with ``callback(request, response) -> response``.

    A callback that returns None answers later, with :meth:`send_response` and the header that
    :attr:`header` held during the callback.
    """

    def __init__(
        self, node: Node, kind: ServiceType, name: str, callback: Callable[[Any, Any], Any]
    ) -> None:
        self.srv_type = kind
        self.srv_name = name
        self.header: tuple[int, int] = (0, 0)
        self._callback = callback
        self._request, self._response = type_name(kind.Request), type_name(kind.Response)
        identity = int.from_bytes(os.urandom(8), "little")
        data = f"serviceid={identity:016x};typehash={kind.type_hash};"
        participant = node.participant
        self.reader = participant.reader(
            f"rq{name}Request", self._request, SERVICES, data, with_header=True
        )
        self._writer = participant.writer(
            f"rr{name}Reply", self._response, SERVICES, data, with_header=True
        )

    def serve(self) -> None:
        for sample in dds.taken(self.reader):
            header = self.header = caller(sample.data)
            request = unpack(sample.data, self._request)
            response = self._callback(request, self.srv_type.Response())
            if response is not None:
                self.send_response(response, header)

    def send_response(self, response: Any, header: tuple[int, int]) -> None:
        """Answer the call that ``header`` names."""
        # A caller's reader may be discovered after its writer: a reply before that is lost.
        deadline = time.monotonic() + _REPLY_READER_S
        while (len(self._writer.get_matched_subscriptions())
               < len(self.reader.get_matched_publications())
               and time.monotonic() < deadline):
            time.sleep(0.002)
        dds.write(self._writer, pack(*header, response, self._response))

    def close(self) -> None:
        dds.close(self.reader)
        dds.close(self._writer)
