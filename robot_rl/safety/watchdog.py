"""Looks after an arm beside whoever commands it."""

from __future__ import annotations

import contextlib
import threading
from typing import Protocol


class Watched(Protocol):
    """What can be watched: a :class:`robot_rl.safety.SafetyFilter`."""

    def watch(self) -> None: ...


class Watchdog:
    """A thread that calls ``watch`` every ``period_s``, from the start of its ``with`` or of
    :meth:`start` until :meth:`close`."""

    def __init__(self, watched: Watched, period_s: float = 0.02) -> None:
        self._watched = watched
        self._period_s = period_s
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="robot_rl-watchdog", daemon=True)

    def start(self) -> Watchdog:
        self._thread.start()
        return self

    def close(self) -> None:
        """Stop watching; returns when the last look is over."""
        self._done.set()
        self._thread.join()

    def __enter__(self) -> Watchdog:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self) -> None:
        while not self._done.wait(self._period_s):
            # Whatever goes wrong with one look, the next one is due.
            with contextlib.suppress(Exception):
                self._watched.watch()
