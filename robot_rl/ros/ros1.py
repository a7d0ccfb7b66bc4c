"""ROS 1 for this process: topics that survive a restart of the master.

rospy knows one node and one master per process. :class:`Ros1Session` is what a part of the program
(an arm, a camera, a tracker) opens; all of them share that node. ``import_rospy`` says how rospy
itself is found.
"""

from __future__ import annotations

import http.client
import os
import socket
import threading
import time
import warnings
import xmlrpc.client
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit
from xml.parsers.expat import ExpatError

from robot_rl.errors import InvalidInputError, RobotRLError
from robot_rl.ros.ros1_import import import_rospy
from robot_rl.ros.ros1_messages import message_class

DEFAULT_MASTER_URI = "http://localhost:11311"
_POLL_S = 0.5
_ANSWER_S = 2.0
"""How long a master may take to answer a question [s]."""
_MISSING_S = 3.0
"""A master that refuses connections is gone at once, one that does not answer after this [s]."""

NO_ANSWER = (OSError, xmlrpc.client.Error, http.client.HTTPException, ExpatError, ValueError,
             TypeError)
"""What comes of asking something that is no master, or none any more."""

_lock = threading.RLock()
_open: dict[int, str] = {}
"""The master of every open session, by the session's id."""
_node_master: str | None = None


class _Transport(xmlrpc.client.Transport):
    """XML-RPC that does not wait for ever."""

    def make_connection(self, host: Any) -> Any:
        connection = super().make_connection(host)
        connection.timeout = _ANSWER_S
        return connection


def _proxy(uri: str) -> Any:
    return xmlrpc.client.ServerProxy(uri, transport=_Transport())


def master_answers(uri: str) -> bool:
    """Whether a ROS master answers there."""
    try:
        code, _, _ = _proxy(uri).getPid("/robot_rl")
    except NO_ANSWER:
        return False
    return int(code) == 1


def default_master_uri() -> str:
    """``ROS_MASTER_URI``, or the master's usual port on this machine."""
    return os.environ.get("ROS_MASTER_URI") or DEFAULT_MASTER_URI


class Publisher:
    """A topic that this process publishes."""

    def __init__(self, topic: str, kind: str, *, latch: bool, queue: int | None) -> None:
        self.message = message_class(kind)
        self.topic = topic
        self._latch, self._queue = latch, queue
        self._rospy_publisher = self._register()

    def _register(self) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # to send at once is meant
            return import_rospy().Publisher(
                self.topic, self.message, tcp_nodelay=True, latch=self._latch,
                queue_size=self._queue,
            )

    def renew(self) -> None:
        """Withdraw it and register anew, for subscribers whose connection was lost on the way: one
        that opens a topic just as this node last closed it may believe that it is connected."""
        self.close()
        self._rospy_publisher = self._register()

    def publish(self, message: Any) -> None:
        """Send a message, an instance of :attr:`message`, to whoever subscribes."""
        self._rospy_publisher.publish(message)

    def peers(self) -> int:
        """How many subscribers are connected."""
        return int(self._rospy_publisher.get_num_connections())

    def close(self) -> None:
        """Withdraw it; may be called again."""
        if self._rospy_publisher.impl is not None:
            self._rospy_publisher.unregister()


class Subscription:
    """A topic that this process listens to."""

    def __init__(
        self, topic: str, kind: str, callback: Callable[[Any], None], newest_only: bool
    ) -> None:
        self.topic = topic
        self._rospy_subscriber = import_rospy().Subscriber(
            topic, message_class(kind), callback, queue_size=1 if newest_only else None,
            buff_size=2**22, tcp_nodelay=True,
        )

    def close(self) -> None:
        """Stop listening; may be called again."""
        if self._rospy_subscriber.impl is not None:
            self._rospy_subscriber.unregister()


class Ros1Session:
    """Topics of one part of the program on one master.

    A thread asks the master now and then whether it still knows this node. A master that was
    restarted does not, and is told of every topic again; connections that outlived it go on.

    Raises:
        RobotRLError: no master answers there.
        MissingDependencyError: rospy is not installed.
        InvalidInputError: the address is none, or another master is in use by this process.
    """

    def __init__(self, master_uri: str | None = None, *, name: str = "robot_rl") -> None:
        self.master_uri = (master_uri or default_master_uri()).rstrip("/")
        self.registered_again = 0
        self._topics: dict[tuple[str, str], str] = {}
        self._handles: list[Publisher | Subscription] = []
        self._away_since_s: float | None = None
        self._refused = False
        self._alone: list[str] = []
        self._others: str | None = None
        self._stop = threading.Event()
        _join(id(self), self.master_uri, name)
        self._rospy = import_rospy()
        self._watcher = threading.Thread(target=self._watch, name="ros1-master", daemon=True)
        self._watcher.start()

    def publisher(
        self, topic: str, kind: str, *, latch: bool = False, queue: int | None = 10,
        alone: bool = False,
    ) -> Publisher:
        """Publish ``topic`` with messages of ``kind``, e.g. ``std_msgs/Float64``. Messages go out
        on a thread of their own; beyond ``queue`` waiting ones the oldest is dropped. None: they
        they go out on the caller's thread, and none is dropped. With ``alone`` another node that
        publishes this topic too is a :meth:`fault`."""
        publisher = Publisher(topic, kind, latch=latch, queue=queue)
        self._topics["publish", topic] = kind
        self._handles.append(publisher)
        if alone:
            self._alone.append(topic)
        return publisher

    def subscribe(
        self,
        topic: str,
        kind: str,
        callback: Callable[[Any], None],
        *,
        newest_only: bool = True,
    ) -> Subscription:
        """Call ``callback`` with each message of ``topic``, on a thread of rospy's. ``kind`` is as
        in :meth:`publisher`, or as ROS 2 writes it: ``std_msgs/msg/Float64``. Of messages that
        piled up the last is taken alone, so that nothing old passes for new; commands, where each
        one counts, say ``newest_only=False``."""
        kind = kind.replace("/msg/", "/")
        subscription = Subscription(topic, kind, callback, newest_only)
        self._topics["subscribe", topic] = kind
        self._handles.append(subscription)
        return subscription

    def stamp(self) -> Any:
        """The wall clock's time, for a message's header."""
        return self._rospy.Time.from_sec(time.time())

    def published(self, prefix: str) -> dict[str, str]:
        """Topics that somebody publishes and that begin with ``prefix``, and their types."""
        try:
            _, _, topics = _proxy(self.master_uri).getPublishedTopics(self._caller(), "")
        except NO_ANSWER as error:
            raise RobotRLError(f"{self._named()} does not answer ({error})") from None
        return {topic: kind for topic, kind in topics if topic.startswith(prefix)}

    def fault(self) -> str | None:
        """What is wrong with the master, or who publishes what should be ours alone; None while
        all is well."""
        since_s = self._away_since_s
        if since_s is None:
            return self._others
        away_s = time.monotonic() - since_s
        if not self._refused and away_s < _MISSING_S:
            return None
        return f"{self._named()} has not answered for {away_s:.1f} s"

    @property
    def crowd(self) -> str | None:
        """Who publishes what should be ours alone, as the master last told."""
        return self._others

    def others(self, topic: str) -> str | None:
        """Ask the master who else publishes a topic, in words; None where nobody does. Nodes that
        died without a word are still in its list, and do not count.

        Raises:
            RobotRLError: the master does not answer.
        """
        try:
            return self._other(_proxy(self.master_uri), [topic])
        except NO_ANSWER as error:
            raise RobotRLError(f"{self._named()} does not answer ({error})") from None

    def listeners(self, topic: str) -> int:
        """How many nodes subscribe to a topic, by the master's list; 0 where it does not answer."""
        try:
            _, _, (_, subscribers, _) = _proxy(self.master_uri).getSystemState(self._caller())
        except NO_ANSWER:
            return 0
        return sum(len(nodes) for name, nodes in subscribers if name == topic)

    def _other(self, master: Any, topics: list[str]) -> str | None:
        if not topics:
            return None
        _, _, (publishers, _, _) = master.getSystemState(self._caller())
        for topic, nodes in publishers:
            for node in nodes if topic in topics else ():
                if node != self._caller() and self._publishes(master, node, topic):
                    return f"another program publishes {topic}: {node}; end it first"
        return None

    def _publishes(self, master: Any, node: str, topic: str) -> bool:
        """Whether a node that the master lists is there and publishes a topic. One that died
        without a word is not: connections are refused where it was, or whoever has its port now
        publishes other things."""
        code, _, uri = master.lookupNode(self._caller(), node)
        if code != 1 or uri == self._rospy.get_node_uri():
            return False
        try:
            _, _, topics = _proxy(uri).getPublications(self._caller())
            return any(name == topic for name, _ in topics)
        except ConnectionRefusedError:
            return False
        except NO_ANSWER:
            return True

    def close(self) -> None:
        """Withdraw the topics. The process stays a node until it ends."""
        if self._stop.is_set():
            return
        self._stop.set()
        self._watcher.join(timeout=5.0)
        for handle in self._handles:
            handle.close()
        with _lock:
            _open.pop(id(self), None)

    def _named(self) -> str:
        return f"the ROS master at {self.master_uri}"

    def _caller(self) -> str:
        return str(self._rospy.get_name())

    def _watch(self) -> None:
        while not self._stop.wait(_POLL_S):
            try:
                self._check()
            except NO_ANSWER as error:
                self._refused = isinstance(error, ConnectionError)
                if self._away_since_s is None:
                    self._away_since_s = time.monotonic()

    def _check(self) -> None:
        """Raises where the master does not answer."""
        master, node = _proxy(self.master_uri), self._rospy.get_node_uri()
        code, _, uri = master.lookupNode(self._caller(), self._caller())
        if self._topics and (code != 1 or uri != node):
            self._register(master, node)
        self._others = self._other(master, self._alone)
        self._away_since_s = None

    def _register(self, master: Any, node: str) -> None:
        for (way, topic), kind in list(self._topics.items()):
            if way == "publish":
                master.registerPublisher(self._caller(), topic, kind, node)
            else:
                _, _, uris = master.registerSubscriber(self._caller(), topic, kind, node)
                _proxy(node).publisherUpdate("/master", topic, uris)
        self.registered_again += 1


def _join(session: int, uri: str, name: str) -> None:
    """Make this process a node of that master."""
    global _node_master
    try:
        parts = urlsplit(uri)
        usable = parts.scheme == "http" and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or not uri.isprintable():
        raise InvalidInputError(
            f"master_uri is {uri!r}, should look like {DEFAULT_MASTER_URI} "
            "(the robot's own name or address, port 11311)"
        )
    rospy = import_rospy()
    with _lock:
        others = set(_open.values()) - {uri}
        if others:
            raise InvalidInputError(
                f"this process is connected to the ROS master {others.pop()}: rospy knows one at a "
                f"time, close that rig before opening one at {uri}"
            )
        if not master_answers(uri):
            raise RobotRLError(
                f"no ROS master answers at {uri}: is the robot on and reachable? Its address is "
                "given by master_uri or by ROS_MASTER_URI"
            )
        os.environ["ROS_MASTER_URI"] = uri
        if _node_master is None:
            _start_node(rospy, name, str(parts.hostname), parts.port or 11311)
        elif _node_master != uri:
            _point_at(uri)
        _node_master = uri
        _open[session] = uri


def _start_node(rospy: Any, name: str, host: str, port: int) -> None:
    if not (os.environ.get("ROS_IP") or os.environ.get("ROS_HOSTNAME")):
        os.environ["ROS_IP"] = _own_address(host, port)
    # It would make log files in the user's home and replace this program's logging.
    configure, rospy.core.configure_logging = rospy.core.configure_logging, lambda *_, **__: None
    try:
        rospy.init_node(
            name, argv=[], anonymous=True, disable_signals=True, disable_rosout=True,
            disable_rostime=True,
        )
    finally:
        rospy.core.configure_logging = configure


def _own_address(host: str, port: int) -> str:
    """The address under which the master's machine can reach this one."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, port))
            return str(probe.getsockname()[0])
    except OSError:
        return "127.0.0.1"


def _point_at(uri: str) -> None:
    """Let the node, which has no topics now, speak to another master."""
    from rospy.impl.registration import RegManager, get_registration_listeners

    for listener in get_registration_listeners().listeners:
        if isinstance(listener, RegManager):
            listener.master_uri = uri
