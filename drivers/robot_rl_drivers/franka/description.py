"""The robot's own description (URDF), to compare its limits with ours."""

from __future__ import annotations

import time
from typing import Any
from xml.etree import ElementTree as xml

from robot_rl.errors import StaleDataError
from robot_rl.ros.runtime import LATCHED, message, native
from robot_rl.specs import RobotSpec

TOPIC = "robot_description"
_SLACK = 1e-6


class Description:
    """Listens for the description that robot_state_publisher latches."""

    def __init__(self, node: Any) -> None:
        self.topic = node.resolve_topic_name(TOPIC)
        self._text: str | None = None
        node.create_subscription(
            message("std_msgs/msg/String"), TOPIC, self._receive, native(LATCHED)
        )

    def _receive(self, text: Any) -> None:
        self._text = text.data

    def compare(self, spec: RobotSpec, names: list[str], timeout_s: float = 1.0) -> str | None:
        """What of our limits the robot's description does not admit, None where all is well.

        Raises:
            StaleDataError: there is no description.
        """
        deadline = time.monotonic() + timeout_s
        while self._text is None:
            if time.monotonic() > deadline:
                raise StaleDataError(f"no description came on {self.topic}")
            time.sleep(0.01)
        return compare(self._text, spec, names)


def compare(urdf: str, spec: RobotSpec, names: list[str]) -> str | None:
    """What of ``spec``'s limits the URDF does not admit, None where all is well.

    ``names`` are the URDF's names of the spec's joints.
    """
    try:
        joints = {joint.get("name"): joint for joint in xml.fromstring(urdf).iter("joint")}
    except xml.ParseError as error:
        return f"the description is no XML ({error})"
    wrong: list[str] = []
    for name, ours in zip(names, spec.joints, strict=True):
        limit = joints[name].find("limit") if name in joints else None
        if limit is None:
            wrong.append(f"{name} has no limits in the description")
            continue
        for key, value, sign in (
            ("lower", ours.lower_rad, -1.0), ("upper", ours.upper_rad, 1.0),
            ("velocity", ours.velocity_rad_s, 1.0), ("effort", ours.torque_nm, 1.0),
        ):
            theirs = float(limit.get(key, "nan"))
            if not sign * value <= sign * theirs + _SLACK:
                wrong.append(f"{name}: {key} {theirs:g}, ours is {value:g}")
    return "; ".join(wrong) or None
