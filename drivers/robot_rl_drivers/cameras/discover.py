"""Which cameras this machine has: devices, and image topics where ROS answers."""

from __future__ import annotations

import time
import xmlrpc.client
from collections.abc import Callable
from pathlib import Path
from typing import Any

from robot_rl.errors import MissingDependencyError

_IMAGES = ("Image", "CompressedImage")
# How long publishers may take to be discovered.
_DISCOVERY_S = 1.5


def find_sources() -> dict[str, list[dict[str, str]]]:
    """Sources by kind, each with its text (``source``) and what it is (``about``); what could not
    be looked for is an entry without ``source``."""
    looks: dict[str, Callable[[], list[dict[str, str]]]] = {
        "opencv": _video, "realsense": _realsense, "ros1": _ros1, "ros2": _ros2,
        "test": lambda: [{"source": "test:pattern", "about": "a moving test pattern"}],
    }
    return {kind: _guarded(look) for kind, look in looks.items()}


def _guarded(look: Callable[[], list[dict[str, str]]]) -> list[dict[str, str]]:
    try:
        return look()
    except MissingDependencyError as error:
        return [{"about": str(error)}]
    except Exception as error:  # drivers and middleware raise what they like
        return [{"about": f"could not be searched: {type(error).__name__}: {error}"}]


def _video() -> list[dict[str, str]]:
    paths = sorted(Path("/dev").glob("video*"), key=lambda path: (len(path.name), path.name))
    return [{"source": f"opencv:{path}", "about": _video_name(path)} for path in paths]


def _video_name(path: Path) -> str:
    try:
        named = Path("/sys/class/video4linux") / path.name / "name"
        return named.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return "a video device"


def _realsense() -> list[dict[str, str]]:
    from robot_rl_drivers.cameras.realsense import find_devices

    return find_devices()


def _ros1() -> list[dict[str, str]]:
    from robot_rl.ros.ros1 import default_master_uri, master_answers

    uri = default_master_uri()
    if not master_answers(uri):
        return []
    master: Any = xmlrpc.client.ServerProxy(uri)
    _, _, topics = master.getPublishedTopics("/robot_rl", "")
    known = {f"sensor_msgs/{kind}" for kind in _IMAGES}
    return [{"source": f"ros1:{topic}", "about": kind}
            for topic, kind in sorted(topics) if kind in known]


def _ros2() -> list[dict[str, str]]:
    from robot_rl.ros import runtime

    node = runtime.make_node("robot_rl_camera_list")
    try:
        topics = _embedded_topics(node) if runtime.is_embedded(node) else _native_topics(node)
    finally:
        runtime.destroy(node)
    return [{"source": f"ros2:{topic}", "about": kind} for topic, kind in sorted(topics)]


def _embedded_topics(node: Any) -> set[tuple[str, str]]:
    from cyclonedds.builtin import BuiltinDataReader, BuiltinTopicDcpsPublication

    wire = {f"sensor_msgs::msg::dds_::{kind}_": f"sensor_msgs/msg/{kind}" for kind in _IMAGES}
    reader = BuiltinDataReader(node.participant.entity, BuiltinTopicDcpsPublication)
    time.sleep(_DISCOVERY_S)
    return {(each.topic_name[2:], wire[each.type_name]) for each in reader.read(N=4096)
            if each.type_name in wire and each.topic_name.startswith("rt/")}


def _native_topics(node: Any) -> set[tuple[str, str]]:
    time.sleep(_DISCOVERY_S)
    known = {f"sensor_msgs/msg/{kind}" for kind in _IMAGES}
    return {(topic, kind) for topic, kinds in node.get_topic_names_and_types()
            for kind in kinds if kind in known}
