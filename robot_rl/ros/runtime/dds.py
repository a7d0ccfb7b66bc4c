"""ROS 2's wire format on the `cyclonedds` wheel: names, types, qualities of service, discovery.

Samples travel as ready CDR bytes: the types built here only tell DDS their names and shapes.
"""

from __future__ import annotations

import importlib
import os
import re
import threading
from collections.abc import Iterator
from functools import cache
from typing import Any, TypeVar

from robot_rl.errors import InvalidInputError, MissingDependencyError
from robot_rl.ros.runtime.qos import QoS
from robot_rl.ros.runtime.types import store

T = TypeVar("T")

LOOPBACK = "loopback"
"""The network that keeps the graph on this machine."""

_LOOPBACK_CONFIG = (
    "<CycloneDDS><Domain Id='any'>"
    "<General><Interfaces><NetworkInterface address='127.0.0.1' multicast='false'/></Interfaces>"
    "<AllowMulticast>false</AllowMulticast><MaxMessageSize>65500B</MaxMessageSize></General>"
    "<Discovery><ParticipantIndex>auto</ParticipantIndex>"
    "<MaxAutoParticipantIndex>60</MaxAutoParticipantIndex>"
    "<Peers><Peer address='127.0.0.1'/></Peers></Discovery>"
    "</Domain></CycloneDDS>"
)

HEADER_BYTES = 16
"""A service's payload begins with its client's id and the call's number, 8 bytes each."""

_MOST_DOMAIN = 232
_BLOCKING_NS = 50_000_000


def _cyclonedds() -> Any:
    try:
        import cyclonedds.core
        import cyclonedds.domain
        import cyclonedds.pub
        import cyclonedds.qos
        import cyclonedds.sub
        import cyclonedds.topic
    except ImportError as error:
        raise MissingDependencyError(
            f"neither rclpy nor cyclonedds can be imported ({error}); source ROS 2 or "
            "pip install 'robot_rl[ros]'"
        ) from error
    return cyclonedds


def domain_from(given: int | None) -> int:
    """The domain asked for, or the one that ``ROS_DOMAIN_ID`` names, or 0."""
    text = os.environ.get("ROS_DOMAIN_ID", "") or "0" if given is None else str(given)
    if not text.isdigit() or int(text) > _MOST_DOMAIN:
        raise InvalidInputError(
            f"the ROS domain is {text!r}, should be a whole number in [0, {_MOST_DOMAIN}]"
        )
    return int(text)


def network_config(network: str) -> str:
    """The configuration of a domain on ``network``: ``loopback``, ``any`` (what DDS finds), or
    the name or address of one interface."""
    if network == LOOPBACK:
        return _LOOPBACK_CONFIG
    if network == "any":
        return "<CycloneDDS><Domain Id='any'/></CycloneDDS>"
    if not re.fullmatch(r"[A-Za-z0-9_.:-]+", network):
        raise InvalidInputError(
            f"the network is {network!r}, should be loopback, any, or an interface's name or "
            "address"
        )
    key = "address" if network[0].isdigit() else "name"
    return (f"<CycloneDDS><Domain Id='any'><General><Interfaces><NetworkInterface {key}="
            f"'{network}'/></Interfaces></General></Domain></CycloneDDS>")


def topic_name(name: str) -> str:
    """The DDS name of a ROS topic given with its namespace."""
    return "rt" + name


def dds_type_name(name: str) -> str:
    """``sensor_msgs/msg/Image`` as DDS knows it: ``sensor_msgs::msg::dds_::Image_``."""
    package, kind, short = name.split("/")
    return f"{package}::{kind}::dds_::{short}_"


class Sample:
    """What a reader hands out: CDR bytes with their header."""

    __slots__ = ("data", "sample_info")

    def __init__(self, data: bytes) -> None:
        self.data = data


@cache
def _idl_struct(name: str, with_header: bool = False) -> Any:
    """The IDL structure of a message; ``with_header`` adds the request header of a service."""
    _cyclonedds()
    from cyclonedds.idl import make_idl_struct
    from cyclonedds.idl.types import uint8

    fields = {field: _idl_type(kind) for field, kind in store().get_msgdef(name).fields}
    if with_header:
        from cyclonedds.idl.types import int64, uint64

        fields = {"client_id": uint64, "sequence": int64, **fields}
    if not fields:
        fields = {"structure_needs_at_least_one_member": uint8}
    typename = dds_type_name(name).replace("::", ".")
    return make_idl_struct(typename.replace(".", "_"), typename, fields, dataclassify=False)


def _idl_type(description: Any) -> Any:
    from rosbags.interfaces import Nodetype

    idl: Any = importlib.import_module("cyclonedds.idl.types")
    kind, what = description
    if kind == Nodetype.NAME:
        return _idl_struct(what)
    if kind == Nodetype.BASE:
        base, limit = what
        if base == "string":
            return idl.bounded_str[limit] if limit else str
        plain = {"bool": bool, "octet": idl.byte, "byte": idl.byte, "char": idl.uint8}
        return plain.get(base) or getattr(idl, base)
    inner, length = _idl_type(what[0]), what[1]
    if kind == Nodetype.ARRAY:
        return idl.array[inner, length]
    return idl.sequence[inner, length] if length else idl.sequence[inner]


@cache
def wire_type(name: str, with_header: bool = False) -> Any:
    """The type of a topic, whose samples are bytes on the way in and out."""
    struct = _idl_struct(name, with_header)

    def hold(self: Any, data: bytes) -> None:
        self.data = data

    def give(self: Any, *_: Any, **__: Any) -> bytes:
        data: bytes = self.data
        return data

    struct.__init__ = hold
    struct.serialize = give
    struct.deserialize = staticmethod(lambda data, *_, **__: Sample(data))
    struct.deserialize_key = staticmethod(lambda data, *_, **__: Sample(b""))
    return struct


def _qos(profile: QoS, user_data: str = "") -> Any:
    from cyclonedds.qos import Policy, Qos

    policies = [
        Policy.History.KeepLast(profile.depth),
        (Policy.Reliability.Reliable(_BLOCKING_NS) if profile.reliable
         else Policy.Reliability.BestEffort),
        (Policy.Durability.TransientLocal if profile.transient_local
         else Policy.Durability.Volatile),
        Policy.DataRepresentation(use_cdrv0_representation=True),
        Policy.WriterDataLifecycle(autodispose=False),
    ]
    if profile.transient_local:
        policies.append(Policy.DurabilityService(
            0, Policy.History.KeepLast(profile.depth), -1, -1, -1
        ))
    if user_data:
        policies.append(Policy.Userdata(user_data.encode()))
    return Qos(*policies)


class Participant:
    """This process in one domain, shared by its nodes.

    The domain lies on ``network``, see :func:`network_config`, unless ``CYCLONEDDS_URI`` in the
    environment says otherwise.
    """

    _open: dict[int, Participant] = {}
    _lock = threading.RLock()

    @classmethod
    def of(cls, domain_id: int, network: str = LOOPBACK) -> Participant:
        """The process's participant in that domain, made at the first call."""
        with cls._lock:
            found = cls._open.get(domain_id)
            if found is None:
                found = cls._open[domain_id] = cls(domain_id, network)
            if found.network != network:
                raise InvalidInputError(
                    f"domain {domain_id} is on the network {found.network!r} in this program, and "
                    f"cannot be on {network!r} as well"
                )
            found.users += 1
            return found

    def __init__(self, domain_id: int, network: str) -> None:
        dds = _cyclonedds()
        self.domain_id = domain_id
        self.network = network
        self.users = 0
        self._domain: Any = None
        try:
            if not os.environ.get("CYCLONEDDS_URI"):
                self._domain = dds.domain.Domain(domain_id, network_config(network))
            # The security enclave that ROS 2 expects to be told, the one of whoever has none.
            qos = dds.qos.Qos(dds.qos.Policy.Userdata(b"enclave=/;"))
            self.entity = dds.domain.DomainParticipant(domain_id, qos=qos)
        except dds.core.DDSException as error:
            raise InvalidInputError(
                f"no DDS participant in domain {domain_id} on the network {network!r} ({error}); "
                "is there such an interface, and is CYCLONEDDS_URI right where it is set?"
            ) from None
        self._topics: dict[tuple[str, str, bool], Any] = {}
        self._graph: dict[str, _Discovered] = {}
        self._companions: dict[type, Any] = {}

    def companion(self, kind: type[T]) -> T:
        """The one ``kind(participant)`` of this participant, made at the first call."""
        with self._lock:
            if kind not in self._companions:
                self._companions[kind] = kind(self)  # type: ignore[call-arg]
            found: T = self._companions[kind]
            return found

    def release(self) -> None:
        """One user less; the last one takes the participant along."""
        with self._lock:
            self.users -= 1
            if self.users <= 0 and self._open.get(self.domain_id) is self:
                del self._open[self.domain_id]
                self._topics.clear()
                self._graph.clear()
                self._companions.clear()
                close(self.entity)
                if self._domain is not None:
                    close(self._domain)

    def _topic(self, name: str, type_name: str, with_header: bool) -> Any:
        key = (name, type_name, with_header)
        if key not in self._topics:
            from cyclonedds.topic import Topic

            self._topics[key] = Topic(self.entity, name, wire_type(type_name, with_header))
        return self._topics[key]

    def writer(self, name: str, type_name: str, qos: QoS, user_data: str = "", *,
               with_header: bool = False) -> Any:
        """A data writer of the DDS topic ``name``."""
        from cyclonedds.pub import DataWriter

        topic = self._topic(name, type_name, with_header)
        return DataWriter(self.entity, topic, _qos(qos, user_data))

    def reader(self, name: str, type_name: str, qos: QoS, user_data: str = "", *,
               with_header: bool = False) -> Any:
        """A data reader of the DDS topic ``name``."""
        from cyclonedds.sub import DataReader

        topic = self._topic(name, type_name, with_header)
        return DataReader(self.entity, topic, _qos(qos, user_data))

    def endpoints(self, name: str, kind: str) -> list[Any]:
        """Writers (``kind`` "writers") or readers of the DDS topic ``name``, discovered so far."""
        with self._lock:
            if kind not in self._graph:
                self._graph[kind] = _Discovered(self.entity, kind)
            return [each for each in self._graph[kind].alive() if each.topic_name == name]

    def participants(self) -> list[bytes]:
        """The identities of the participants of this domain, discovered so far, this one's too."""
        with self._lock:
            if "participants" not in self._graph:
                self._graph["participants"] = _Discovered(self.entity, "participants")
            return [each.key.bytes for each in self._graph["participants"].alive()]


class _Discovered:
    """The writers, readers or participants of a domain, kept up to date with what discovery says
    is new."""

    def __init__(self, participant: Any, kind: str) -> None:
        from cyclonedds.builtin import (
            BuiltinDataReader,
            BuiltinTopicDcpsParticipant,
            BuiltinTopicDcpsPublication,
            BuiltinTopicDcpsSubscription,
        )

        topics = {"writers": BuiltinTopicDcpsPublication, "readers": BuiltinTopicDcpsSubscription,
                  "participants": BuiltinTopicDcpsParticipant}
        self._reader = BuiltinDataReader(participant, topics[kind])
        self._known: dict[Any, Any] = {}

    def alive(self) -> list[Any]:
        from cyclonedds.core import InstanceState

        for each in self._reader.take(N=1024):
            named = getattr(each, "topic_name", True)
            if each.sample_info.instance_state & InstanceState.Alive and named:
                self._known[each.key] = each
            else:
                self._known.pop(each.key, None)
        return list(self._known.values())


def taken(reader: Any, most: int = 64) -> Iterator[Sample]:
    """The samples that came in since the last call; a writer's leaving is no sample."""
    for sample in reader.take(N=most):
        if isinstance(sample, Sample) and sample.data:
            yield sample


def write(writer: Any, data: bytes) -> None:
    """Send CDR bytes (with their header)."""
    writer.write(writer.data_type(data))


def guid(entity: Any) -> bytes:
    """The 16 bytes by which discovery knows an entity."""
    identity: bytes = entity.get_guid().bytes
    return identity


def close(entity: Any) -> None:
    """Take an entity out of the domain now rather than when Python forgets it."""
    entity.__del__()
