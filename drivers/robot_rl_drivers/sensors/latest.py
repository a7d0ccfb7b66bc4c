"""The newest value of a stream that another thread fills, and how old it is."""

from __future__ import annotations

import threading
from typing import Generic, TypeVar

from robot_rl.errors import StaleDataError
from robot_rl.interfaces import Clock

T = TypeVar("T")


class Latest(Generic[T]):
    """Holds the newest value. Its age is counted from when it arrived here, by the rig's clock:
    the clock of whoever sent it may be anything."""

    def __init__(self, what: str, clock: Clock) -> None:
        self._what = what
        self._clock = clock
        self._lock = threading.Lock()
        self._held: tuple[T, float] | None = None
        self._fault = ""

    def put(self, value: T) -> None:
        """A value has just arrived."""
        stamp_s = self._clock.now_s()
        with self._lock:
            self._held = (value, stamp_s)
            self._fault = ""

    def blame(self, fault: str) -> None:
        """Why nothing arrives, for the error of a read that finds nothing fresh."""
        with self._lock:
            self._fault = fault

    def get(self, max_age_s: float) -> tuple[T, float]:
        """The newest value and when it arrived [s].

        Raises:
            StaleDataError: it is older than ``max_age_s``, or nothing arrived yet.
        """
        with self._lock:
            held, fault = self._held, self._fault
        reason = f": {fault}" if fault else ""
        if held is None:
            raise StaleDataError(f"{self._what} has sent nothing yet{reason}")
        age_s = self._clock.now_s() - held[1]
        if not age_s <= max_age_s:
            raise StaleDataError(
                f"the last value of {self._what} is {age_s:.3f} s old, should be at most "
                f"{max_age_s:g} s{reason}"
            )
        return held
