"""Who is in the graph: which nodes this process has and which ends are theirs, and the others'.

DDS knows participants and ends, but no nodes. ROS 2 tells them on a topic of its own, on which
every participant writes one sample that stays for those who come later; ``ros2 node list`` and
``ros2 node info`` read it.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from robot_rl.ros.runtime import dds
from robot_rl.ros.runtime.qos import QoS
from robot_rl.ros.runtime.types import deserialize, message, serialize, store, type_hash

TOPIC = "ros_discovery_info"
"""The DDS topic's name; it has no prefix, as topics of nodes have."""

_TYPE = "rmw_dds_common/msg/ParticipantEntitiesInfo"
_WRITTEN = QoS(depth=1, transient_local=True)
_READ = QoS(depth=512, transient_local=True)


@dataclass
class _Ends:
    readers: list[bytes] = field(default_factory=list)
    writers: list[bytes] = field(default_factory=list)


class Graph:
    """The nodes of a participant, told to the others. Any thread may call any method."""

    @classmethod
    def of(cls, participant: dds.Participant) -> Graph:
        """The participant's graph, made at the first call; it ends with the participant."""
        return participant.companion(cls)

    def __init__(self, participant: dds.Participant) -> None:
        self._participant = participant
        self._lock = threading.RLock()
        self._own: dict[tuple[str, str], _Ends] = {}
        self._others: dict[bytes, list[tuple[str, str]]] = {}
        self._gid = dds.guid(participant.entity)
        data = f"typehash={type_hash(_TYPE)};"
        self._writer = participant.writer(TOPIC, _TYPE, _WRITTEN, data)
        self._reader = participant.reader(TOPIC, _TYPE, _READ, data)

    def join(self, namespace: str, name: str) -> None:
        """A node begins."""
        with self._lock:
            self._own[namespace, name] = _Ends()
            self._tell()

    def leave(self, namespace: str, name: str) -> None:
        """A node ends, with everything that is its own."""
        with self._lock:
            if self._own.pop((namespace, name), None) is not None:
                self._tell()

    def add(self, namespace: str, name: str, end: Any) -> None:
        """A node has a publisher, subscription, service or client more."""
        with self._lock:
            ends = self._own.get((namespace, name))
            if ends is not None:
                readers, writers = _gids(end)
                ends.readers += readers
                ends.writers += writers
                self._tell()

    def remove(self, namespace: str, name: str, end: Any) -> None:
        """A node has one less; call it while that is still open."""
        with self._lock:
            ends = self._own.get((namespace, name))
            if ends is not None:
                readers, writers = _gids(end)
                ends.readers = [gid for gid in ends.readers if gid not in readers]
                ends.writers = [gid for gid in ends.writers if gid not in writers]
                self._tell()

    def nodes(self) -> list[tuple[str, str]]:
        """Name and namespace of every node that was discovered, this process's among them."""
        with self._lock:
            for sample in dds.taken(self._reader, most=512):
                told = deserialize(sample.data, _TYPE)
                self._others[bytes(bytearray(told.gid.data))] = [
                    (each.node_name, each.node_namespace) for each in told.node_entities_info_seq
                ]
            alive = {_padded(gid) for gid in self._participant.participants()}
            self._others = {gid: found for gid, found in self._others.items() if gid in alive}
            others = [node for gid, found in self._others.items() if gid != _padded(self._gid)
                      for node in found]
            return sorted([*others, *((name, space) for space, name in self._own)])

    def _tell(self) -> None:
        gid = message("rmw_dds_common/msg/Gid")
        entities = message("rmw_dds_common/msg/NodeEntitiesInfo")

        def told(raw: bytes) -> Any:
            return gid(data=np.frombuffer(_padded(raw), np.uint8))

        value = message(_TYPE)(gid=told(self._gid), node_entities_info_seq=[
            entities(node_namespace=space, node_name=name,
                     reader_gid_seq=[told(raw) for raw in ends.readers],
                     writer_gid_seq=[told(raw) for raw in ends.writers])
            for (space, name), ends in self._own.items()
        ])
        dds.write(self._writer, serialize(value, _TYPE))


def _gids(end: Any) -> tuple[list[bytes], list[bytes]]:
    """The identities of the readers and writers of a publisher, subscription, service or client."""
    reader, writer = getattr(end, "reader", None), getattr(end, "_writer", None)
    return ([] if reader is None else [dds.guid(reader)],
            [] if writer is None else [dds.guid(writer)])


def _padded(raw: bytes) -> bytes:
    """An identity with the zeros that it travels with: older releases have room for more."""
    return raw.ljust(_width(), b"\0")


def _width() -> int:
    (_, what), = (description for field, description
                  in store().get_msgdef("rmw_dds_common/msg/Gid").fields if field == "data")
    return int(what[1])
