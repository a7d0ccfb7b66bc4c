"""Qualities of service, under the names that rclpy gives them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from robot_rl.errors import InvalidInputError
from robot_rl.ros.runtime.types import have_rclpy


@dataclass(frozen=True)
class QoS:
    """History of the last ``depth`` samples, lost samples sent again or not, and whether a late
    subscriber gets what was published before it came."""

    depth: int = 10
    reliable: bool = True
    transient_local: bool = False

    def __post_init__(self) -> None:
        if self.depth < 1:
            raise InvalidInputError(f"the QoS depth is {self.depth}, should be at least 1")


DEFAULT = QoS()
SENSOR_DATA = QoS(depth=5, reliable=False)
"""For streams: a subscriber with it also receives from a reliable publisher; the other way round
nothing arrives."""
LATCHED = QoS(depth=1, transient_local=True)
SERVICES = QoS(depth=10)


def as_qos(profile: QoS | int) -> QoS:
    """A QoS; a number stands for the default with that depth, as in rclpy."""
    return QoS(depth=profile) if isinstance(profile, int) else profile


def native(profile: QoS | int) -> Any:
    """``profile`` as the running client library takes it."""
    wanted = as_qos(profile)
    if not have_rclpy():
        return wanted
    from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy

    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST,
        depth=wanted.depth,
        reliability=(
            ReliabilityPolicy.RELIABLE if wanted.reliable else ReliabilityPolicy.BEST_EFFORT
        ),
        durability=(
            DurabilityPolicy.TRANSIENT_LOCAL if wanted.transient_local
            else DurabilityPolicy.VOLATILE
        ),
    )
