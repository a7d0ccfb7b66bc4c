"""What is left of the watch of cameras: without a clock of their own, alone, and lost."""

from __future__ import annotations

import time

import numpy as np

from robot_rl.errors import StaleDataError
from robot_rl.interfaces import Frame
from robot_rl.safety.cameras import MonotonicClock, StepWatch, StreamingCamera, read_together


class Plain:
    """A camera with nothing but what every camera has."""

    def __init__(self, name: str, stamp_s: float | None) -> None:
        self.name, self.stamp_s = name, stamp_s

    def read(self, max_age_s: float) -> Frame:
        if self.stamp_s is None:
            raise StaleDataError(f"camera {self.name!r}: no frame yet")
        return Frame(np.zeros((4, 4, 3), np.uint8), self.stamp_s)


def test_a_clock_that_nobody_sets():
    clock = MonotonicClock()
    began = clock.now_s()
    assert abs(began - time.monotonic()) < 1.0
    clock.sleep_until(began + 0.02)
    assert clock.now_s() >= began + 0.02
    clock.sleep_until(began - 5.0)


def test_a_camera_that_is_lost_is_named_by_the_watch_of_steps():
    cameras = {"front": Plain("front", 1.0), "side": Plain("side", None)}
    assert StepWatch(cameras).check() == "camera 'side': no frame yet"
    cameras["side"].stamp_s = 1.04
    assert StepWatch(cameras).check() is None


def test_one_camera_alone_is_in_step():
    seen = read_together({"front": Plain("front", 1.0)})
    assert list(seen) == ["front"] and seen["front"].stamp_s == 1.0


class Empty(Plain):
    """A camera with a history that has no frame yet."""

    clock, may_repeat, latency_s, rate_hz = MonotonicClock(), False, 0.0, 30.0

    def history(self) -> list[Frame]:
        return []

    def counts(self) -> tuple[int, int]:
        return 0, 0

    def fault(self) -> str | None:
        return None


def test_a_stream_without_frames_is_asked_like_any_other():
    cameras = {"front": Plain("front", 1.0), "side": Empty("side", 1.03)}
    assert isinstance(cameras["side"], StreamingCamera)
    assert StepWatch(cameras).check() is None
    cameras["side"].stamp_s = None
    assert StepWatch(cameras).check() == "camera 'side': no frame yet"
