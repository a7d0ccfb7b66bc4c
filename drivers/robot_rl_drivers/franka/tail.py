"""How a stream of set-points ends when its driver is closed."""

from __future__ import annotations

import time

from robot_rl_drivers.streaming import SetpointStreamer

LONGEST_S = 3.0


def send_the_rest(streamer: SetpointStreamer) -> None:
    """Wait until the rows that are left have gone out: every command ends at rest, so that is a
    gentler end than breaking off. Gives up after :data:`LONGEST_S`."""
    deadline = time.monotonic() + LONGEST_S
    while streamer.pending() and streamer.fault is None and time.monotonic() < deadline:
        time.sleep(streamer.period_s)
