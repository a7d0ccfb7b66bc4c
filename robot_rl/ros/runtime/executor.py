"""Waits for what comes in and calls back: one thread, one callback at a time."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from robot_rl.ros.runtime import dds

log = logging.getLogger(__name__)

_LONGEST_WAIT_S = 0.5


class Waitable(Protocol):
    """Something with a DDS reader that is served when data is there."""

    reader: Any

    def serve(self) -> None: ...


class Executor:
    """Serves the nodes of one domain. :meth:`spin_once` and :meth:`spin` are to be called by one
    thread; everything else by any."""

    def __init__(self, participant: dds.Participant) -> None:
        from cyclonedds.core import GuardCondition, WaitSet

        self._participant = participant
        self._waitset = WaitSet(participant.entity)
        self._guard = GuardCondition(participant.entity)
        self._waitset.attach(self._guard)
        self._lock = threading.RLock()
        self._waitables: dict[int, tuple[Waitable, Any]] = {}
        self._timers: list[Any] = []
        self._calls: list[Callable[[], None]] = []
        self._stopped = False

    def add(self, waitable: Waitable) -> None:
        """Serve ``waitable`` from now on."""
        from cyclonedds.core import InstanceState, ReadCondition, SampleState, ViewState

        mask = ViewState.Any | InstanceState.Any | SampleState.NotRead
        condition = ReadCondition(waitable.reader, mask)
        with self._lock:
            self._waitables[id(waitable)] = (waitable, condition)
            self._waitset.attach(condition)
        self.wake()

    def remove(self, waitable: Waitable) -> None:
        """Serve it no more. Its reader may be closed after this."""
        with self._lock:
            found = self._waitables.pop(id(waitable), None)
            if found is not None:
                self._waitset.detach(found[1])
                dds.close(found[1])
        self.wake()

    def add_timer(self, timer: Any) -> None:
        with self._lock:
            self._timers.append(timer)
        self.wake()

    def remove_timer(self, timer: Any) -> None:
        with self._lock:
            if timer in self._timers:
                self._timers.remove(timer)

    def call_soon(self, function: Callable[[], None]) -> None:
        """Have the spinning thread call ``function``."""
        with self._lock:
            self._calls.append(function)
        self.wake()

    def wake(self) -> None:
        """End the present wait."""
        with self._lock:
            if not self._stopped:
                self._guard.set(True)

    def spin_once(self, timeout_sec: float | None = None) -> None:
        """Wait for work at most ``timeout_sec`` [s] and do what there is."""
        wait_s = _LONGEST_WAIT_S if timeout_sec is None else max(timeout_sec, 0.0)
        now = time.monotonic()
        with self._lock:
            if self._stopped:
                return
            due = [timer.due_s for timer in self._timers]
        if due:
            wait_s = min(wait_s, max(min(due) - now, 0.0))
        self._waitset.wait(int(wait_s * 1e9))
        self._guard.take()
        with self._lock:
            calls, self._calls = self._calls, []
            ready = [waitable for waitable, condition in self._waitables.values()
                     if condition.triggered]
            timers = list(self._timers)
        for call in calls:
            call()
        now = time.monotonic()
        for timer in timers:
            if timer.due_s <= now:
                timer.fire(now)
        for waitable in ready:
            with self._lock:
                if id(waitable) not in self._waitables:
                    continue
            waitable.serve()

    def spin(self, stopped: threading.Event | None = None) -> None:
        """Serve until ``stopped`` is set or the executor is shut down. A callback that raises is
        logged, and the others go on."""
        while not self._stopped and not (stopped is not None and stopped.is_set()):
            try:
                self.spin_once()
            except Exception:
                log.exception("a callback failed")

    def shutdown(self) -> None:
        """No more callbacks; idempotent."""
        with self._lock:
            if self._stopped:
                return
            self._guard.set(True)
            self._stopped = True

    def close(self) -> None:
        """Release what DDS holds for it; after :meth:`shutdown`, when nothing spins."""
        self.shutdown()
        with self._lock:
            for waitable, _ in list(self._waitables.values()):
                self.remove(waitable)
            self._waitset.detach(self._guard)
            dds.close(self._waitset)
            dds.close(self._guard)
