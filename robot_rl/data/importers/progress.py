"""Signs of life from a reader, for whoever watches it."""

from __future__ import annotations

import time
from collections.abc import Callable

_INTERVAL_S = 0.25
_sink: Callable[[], None] | None = None
_next_s = 0.0


def beat() -> None:
    """Say that reading goes on; cheap enough to call for every message."""
    global _next_s
    if _sink is not None and (now := time.monotonic()) >= _next_s:
        _next_s = now + _INTERVAL_S
        _sink()


def listen(sink: Callable[[], None] | None) -> None:
    """Have ``sink`` called at most a few times a second while something is being read."""
    global _sink
    _sink = sink
