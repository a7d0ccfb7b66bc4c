"""Cameras of the drivers, for their tests."""

from __future__ import annotations

import time

from robot_rl.safety.cameras import MonotonicClock
from robot_rl_drivers.cameras import make_camera

CLOCK = MonotonicClock()


def make(source, name="front", height=None, width=None, **options):
    return make_camera(name, source, height=height, width=width, clock=CLOCK, **options)


def wait_until(met, timeout_s=20.0):
    end_s = time.monotonic() + timeout_s
    while not met():
        assert time.monotonic() < end_s, "it did not happen in time"
        time.sleep(0.005)
