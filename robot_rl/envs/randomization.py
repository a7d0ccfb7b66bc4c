"""How far the world of an episode may differ from the nominal one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from robot_rl.errors import InvalidInputError
from robot_rl.interfaces import Randomization


@dataclass(frozen=True)
class RandomizationOptions:
    """How far each episode's world may differ from the nominal one; 0 leaves a thing alone.

    ``mass`` and ``friction`` are the largest relative change, ``color`` the largest shift of a
    colour channel, ``camera_m`` and ``camera_rad`` the largest displacement of a camera,
    ``latency_s`` the largest delay of commands, ``action_noise`` the standard deviation of noise
    on every action and ``action_bias`` the largest constant offset of an episode's actions (both
    in units of the action, [-1, 1]).
    """

    mass: float = 0.0
    friction: float = 0.0
    color: float = 0.0
    camera_m: float = 0.0
    camera_rad: float = 0.0
    latency_s: float = 0.0
    action_noise: float = 0.0
    action_bias: float = 0.0

    def __post_init__(self) -> None:
        for name, most in (
            ("mass", 0.95),
            ("friction", 0.95),
            ("color", 1.0),
            ("camera_m", 0.5),
            ("camera_rad", 0.5),
            ("latency_s", 0.5),
            ("action_noise", 1.0),
            ("action_bias", 1.0),
        ):
            value = getattr(self, name)
            if not isinstance(value, (int, float, np.number)) or not 0.0 <= value <= most:
                raise InvalidInputError(
                    f"randomisation: {name} is {value!r}, should be in [0, {most}]"
                )

    @property
    def touches_scene(self) -> bool:
        """Whether anything but commands changes."""
        return any((self.mass, self.friction, self.color, self.camera_m, self.camera_rad))

    def draw_scene(self, rng: np.random.Generator) -> Randomization:
        """How the scene of one episode differs."""
        return Randomization(
            mass_scale=1.0 + rng.uniform(-1.0, 1.0) * self.mass,
            friction_scale=1.0 + rng.uniform(-1.0, 1.0) * self.friction,
            color_shift=rng.uniform(-1.0, 1.0, 3) * self.color,
            camera_shift_m=rng.uniform(-1.0, 1.0, 3) * self.camera_m,
            camera_turn_rad=rng.uniform(-1.0, 1.0, 3) * self.camera_rad,
        )
