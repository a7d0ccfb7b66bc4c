"""Ends what drives an arm however the program ends."""

from __future__ import annotations

import atexit
import signal
import threading
from collections.abc import Callable
from types import FrameType


class Ending:
    """Calls ``end`` once: by :meth:`close`, or else when the program ends, for whatever reason.

    Until then SIGTERM ends the program as Ctrl-C does (KeyboardInterrupt), where it would have
    killed it on the spot; a handler that the program has set itself stays. SIGKILL and a power
    cut are the robot's own watchdog's business.
    """

    def __init__(self, end: Callable[[], None]) -> None:
        self._end = end
        self._lock = threading.Lock()
        self._ended = False
        atexit.register(self.close)
        _open.add(self)
        if _in_main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, _interrupt)

    def close(self) -> None:
        """End it now; nothing the second time."""
        with self._lock:
            if self._ended:
                return
            self._ended = True
        try:
            self._end()
        finally:
            atexit.unregister(self.close)
            _open.discard(self)
            ours = _in_main_thread() and signal.getsignal(signal.SIGTERM) is _interrupt
            if ours and not _open:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)


_open: set[Ending] = set()


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
