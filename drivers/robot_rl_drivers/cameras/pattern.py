"""A moving test pattern, to try things out without a camera."""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray

from robot_rl.errors import unknown_name
from robot_rl.interfaces import Clock
from robot_rl_drivers.cameras.options import CameraOptions
from robot_rl_drivers.cameras.settings import Settings
from robot_rl_drivers.cameras.stream import RawFrame

_BARS = ((255, 255, 255), (255, 255, 0), (0, 255, 255), (0, 255, 0), (255, 0, 255), (255, 0, 0),
         (0, 0, 255), (32, 32, 32))


class PatternSource:
    """Colour bars, and a white square that goes from left to right above them once in 4 s."""

    lasting = True

    def __init__(self, target: str, options: CameraOptions, clock: Clock) -> None:
        if target != "pattern":
            raise unknown_name("test camera", target, ("pattern",))
        self.rate_hz = options.fps or 30.0
        self.settings = Settings()
        width, height = options.size or (640, 480)
        self._bars = draw_bars(height, width)
        self._clock, self._next, self._start_s = clock, 0, 0.0

    def open(self) -> None:
        self._start_s, self._next = self._clock.now_s(), 0

    def grab(self, timeout_s: float) -> RawFrame | None:
        due_s = self._start_s + self._next / self.rate_hz
        wait_s = due_s - self._clock.now_s()
        if wait_s > 0.0:
            time.sleep(min(wait_s, timeout_s))
        if wait_s > timeout_s:
            return None
        number = self._next
        # Who was held up goes on with the picture of now.
        behind = int((self._clock.now_s() - due_s) * self.rate_hz)
        self._next += 1 + max(behind, 0)
        return RawFrame(self._draw(number), taken_s=due_s)

    def close(self) -> None:
        return None

    def _draw(self, number: int) -> NDArray[np.uint8]:
        image = self._bars.copy()
        height, width = image.shape[:2]
        side = max(1, min(height, width) // 6)
        left = int((number / self.rate_hz / 4.0) % 1.0 * max(width - side, 1))
        image[height // 4 : height // 4 + side, left : left + side] = 255
        # The number in binary, so that no two pictures near each other are equal.
        bit = max(1, width // 16)
        for i in range(min(16, width)):
            image[: max(1, height // 16), i * bit : (i + 1) * bit] = 255 * (number >> i & 1)
        return image


def draw_bars(height: int, width: int) -> NDArray[np.uint8]:
    """Eight upright bars (height, width, 3): white, yellow, cyan, green, magenta, red, blue and
    dark grey."""
    which = np.arange(width) * len(_BARS) // width
    return np.repeat(np.array(_BARS, np.uint8)[which][None], height, axis=0)
