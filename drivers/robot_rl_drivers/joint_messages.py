"""Joint states as messages of either ROS bring them (sensor_msgs/JointState)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from robot_rl.interfaces import Array

RESTARTED = 3
"""So many messages in a row whose stamps advance from below the newest one are of a clock that was
set back or a robot that was started anew; fewer came late or are somebody else's."""

Stamp = tuple[int, int]


def joint_values(message: Any, wanted: Sequence[str]) -> tuple[Array, Array, Array | None] | None:
    """Positions, velocities and efforts (None where the message has none) of the ``wanted`` joints
    (n,), whatever else a message carries and in whatever order; None where it is of other joints.

    Raises:
        ValueError: what is wrong with the message. Nothing is filled in: a joint without a
            velocity is not taken for one at rest.
    """
    names = list(message.name)
    places = {name: i for i, name in enumerate(names)}
    missing = [name for name in wanted if name not in places]
    if len(missing) == len(wanted):
        return None
    if missing:
        raise ValueError(f"has no joint {', '.join(missing)}")
    if len(places) < len(names):
        twice = [name for name, count in Counter(names).items() if count > 1 and name in wanted]
        if twice:
            raise ValueError(f"names {', '.join(twice)} more than once")
    order = [places[name] for name in wanted]
    found = []
    for what in ("position", "velocity", "effort"):
        values = getattr(message, what)
        if len(values) != len(names) and (len(values) or what != "effort"):
            raise ValueError(f"has {len(values)} of {what} for {len(names)} names")
        found.append(np.array(values, dtype=np.float64)[order] if len(values) else None)
    position, velocity, effort = found
    assert position is not None and velocity is not None
    return position, velocity, effort


class Stamps:
    """Tells messages that are new from repeated and late ones, by their header's stamps alone."""

    def __init__(self) -> None:
        self._newest: Stamp | None = None
        self._seen: Stamp | None = None
        self._run = 0

    def is_new(self, stamp: Stamp) -> bool:
        """Whether a message with this stamp, which has just come, is newer than those before."""
        seen, self._seen = self._seen, stamp
        if self._newest is not None and stamp <= self._newest:
            advances = seen is not None and stamp > seen
            self._run = self._run + 1 if advances or self._run == 0 else 0
            if stamp == self._newest or self._run < RESTARTED:
                return False
        self._newest, self._run = stamp, 0
        return True
