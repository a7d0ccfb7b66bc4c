"""Who is in the graph: what is told of nodes and their ends, and what is heard of others."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("cyclonedds")
pytest.importorskip("rosbags")

from robot_rl.ros import runtime
from robot_rl.ros.runtime import dds, graph, types
from robot_rl.ros.runtime.qos import QoS
from tests.waiting import until

Make = Callable[..., Any]
ROOT = Path(__file__).resolve().parents[2]
INFO = "rmw_dds_common/msg/ParticipantEntitiesInfo"

CHILD = """
import sys
from robot_rl.ros import runtime
domain = int(sys.argv[1])
left = runtime.make_node("camera", namespace="left", domain_id=domain)
left.create_publisher(runtime.message("std_msgs/msg/Empty"), "seen", 10)
right = runtime.make_node("arm", domain_id=domain)
print("ready", flush=True)
sys.stdin.readline()
runtime.destroy(left)
print("less", flush=True)
sys.stdin.read()
if len(sys.argv) < 3:
    runtime.destroy(right)
"""


def child(domain: int, *words: str) -> subprocess.Popen[str]:
    environment = dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1")
    return subprocess.Popen([sys.executable, "-c", CHILD, str(domain), *words], text=True,
                            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_nodes_of_this_process_and_of_another_are_known(node: Make, domain: int) -> None:
    own = node("own")
    assert own.get_node_names_and_namespaces() == [("own", "/")]
    other = child(domain)
    try:
        assert line(other) == "ready"
        everyone = [("arm", "/"), ("camera", "/left"), ("own", "/")]
        assert until(lambda: own.get_node_names_and_namespaces() == everyone)
        assert other.stdin is not None
        other.stdin.write("go on\n")
        other.stdin.flush()
        assert line(other) == "less"
        assert until(lambda: own.get_node_names_and_namespaces() == [("arm", "/"), ("own", "/")])
        other.communicate("", timeout=20)
        assert until(lambda: own.get_node_names_and_namespaces() == [("own", "/")])
    finally:
        other.kill()
        other.wait()


def test_nodes_of_a_process_that_was_killed_go(node: Make, domain: int) -> None:
    own = node("own")
    other = child(domain)
    try:
        assert line(other) == "ready"
        assert until(lambda: len(own.get_node_names_and_namespaces()) == 3)
    finally:
        other.kill()
        other.wait()
    # As long as DDS waits for a participant that left without a word.
    assert until(lambda: own.get_node_names_and_namespaces() == [("own", "/")], 20.0)


def test_what_is_told_names_every_end(node: Make, domain: int) -> None:
    """The bytes, read as ROS 2 does: by topic and type name, and by the identities in them."""
    one = node("one", namespace="lab")
    listener = dds.Participant.of(domain)
    try:
        reader = listener.reader("ros_discovery_info", INFO, QoS(depth=64, transient_local=True))
        told: list[Any] = []

        def newest() -> Any:
            told.extend(types.deserialize(s.data, INFO) for s in dds.taken(reader))
            return told[-1] if told else None

        kind = runtime.message("std_msgs/msg/Empty")
        publisher = one.create_publisher(kind, "a", 10)
        subscription = one.create_subscription(kind, "b", print, 10)
        service = one.create_service(runtime.service("std_srvs/srv/Empty"), "c", lambda q, r: r)
        client = one.create_client(runtime.service("std_srvs/srv/Empty"), "d")

        def ends() -> tuple[set[bytes], set[bytes]]:
            found = newest()
            if found is None or not found.node_entities_info_seq:
                return set(), set()
            mine = found.node_entities_info_seq[0]
            return ({bytes(bytearray(g.data)) for g in mine.reader_gid_seq},
                    {bytes(bytearray(g.data)) for g in mine.writer_gid_seq})

        readers = {dds.guid(e.reader) for e in (subscription, service, client)}
        writers = {dds.guid(e._writer) for e in (publisher, service, client)}
        assert len(readers) == len(writers) == 3
        assert until(lambda: ends() == (readers, writers))
        assert bytes(bytearray(told[-1].gid.data)) == dds.guid(listener.entity)
        mine = told[-1].node_entities_info_seq[0]
        assert (mine.node_namespace, mine.node_name) == ("/lab", "one")
        one.destroy_publisher(publisher)
        one.destroy_client(client)
        assert until(lambda: ends() == (
            {dds.guid(e.reader) for e in (subscription, service)}, {dds.guid(service._writer)}))
        assert graph.TOPIC == "ros_discovery_info"
        assert dds.dds_type_name(INFO) == "rmw_dds_common::msg::dds_::ParticipantEntitiesInfo_"
    finally:
        listener.release()


def test_identities_are_as_long_as_the_release_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(graph._padded(bytes(16))) == 16
    script = ("from robot_rl.ros.runtime import graph; "
              "print(len(graph._padded(bytes(16))))")
    environment = dict(os.environ, ROS_DISTRO="humble", PYTHONPATH=str(ROOT))
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True,
                           env=environment, check=True)
    assert found.stdout.strip() == "24"


def test_the_participant_says_its_enclave(domain: int) -> None:
    from cyclonedds.qos import Policy

    participant = dds.Participant.of(domain)
    try:
        assert participant.entity.get_qos()[Policy.Userdata].data == b"enclave=/;"
    finally:
        participant.release()
