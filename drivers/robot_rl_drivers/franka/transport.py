"""ROS 2 as the drivers that need neither ROS ask for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from robot_rl.ros.runtime import QoS, message, native

_NEWEST = QoS(depth=5, reliable=False)


class Subscription:
    """A subscription that ends with :meth:`close`."""

    def __init__(self, node: Any, subscription: Any) -> None:
        self._node = node
        self._subscription = subscription

    def close(self) -> None:
        """Listen no more. Idempotent."""
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            self._node.destroy_subscription(subscription)


def subscriber(node: Any) -> Callable[[str, str, Callable[[Any], None]], Subscription]:
    """``subscribe(topic, "package/msg/Name", callback)`` on ``node``; best effort, which hears
    reliable publishers too."""

    def subscribe(topic: str, kind: str, callback: Callable[[Any], None]) -> Subscription:
        made = node.create_subscription(message(kind), topic, callback, native(_NEWEST))
        return Subscription(node, made)

    return subscribe
