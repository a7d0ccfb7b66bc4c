"""Nodes of ROS 2 with or without ROS 2.

Where rclpy can be imported, nodes, messages and actions are its own. Elsewhere a runtime on the
`cyclonedds` wheel offers the same few methods and the same wire format, so that either end of a
topic may be a real ROS 2 node. Unless it is told another network, or ``CYCLONEDDS_URI`` is set, the
embedded runtime stays on the loopback interface; ``ROBOT_RL_ROS_RUNTIME=embedded`` chooses it
where rclpy is installed as well.

    node = make_node("robot", namespace="left")
    state = node.create_subscription(
        message("sensor_msgs/msg/JointState"), "joint_states", on_state, native(SENSOR_DATA)
    )
    with Spinner(node):
        ...
"""

from __future__ import annotations

from robot_rl.ros.runtime.context import (
    Spinner,
    action_client,
    action_server,
    destroy,
    init,
    is_embedded,
    make_node,
    ok,
    shutdown,
    wait_for,
)
from robot_rl.ros.runtime.dds import domain_from
from robot_rl.ros.runtime.qos import DEFAULT, LATCHED, SENSOR_DATA, QoS, native
from robot_rl.ros.runtime.types import action, have_rclpy, message, service

__all__ = [
    "DEFAULT",
    "LATCHED",
    "SENSOR_DATA",
    "QoS",
    "Spinner",
    "action",
    "action_client",
    "action_server",
    "destroy",
    "domain_from",
    "have_rclpy",
    "init",
    "is_embedded",
    "make_node",
    "message",
    "native",
    "ok",
    "service",
    "shutdown",
    "wait_for",
]
