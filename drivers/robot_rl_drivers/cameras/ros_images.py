"""Image topics of ROS 1 and ROS 2."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import deque
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robot_rl.data.importers import images
from robot_rl.errors import InvalidInputError, RobotRLError
from robot_rl_drivers.cameras.options import CameraOptions
from robot_rl_drivers.cameras.settings import Settings
from robot_rl_drivers.cameras.stream import RawFrame, SourceLost

# So many damaged pictures one after the other are more than a bad moment of the network.
_MOST_DAMAGED = 10


def make_source(scheme: str, target: str, options: CameraOptions) -> TopicSource:
    """A topic of ``ros1`` or ``ros2``.

    Raises:
        InvalidInputError: the target is no topic's name.
    """
    if not target.startswith("/") or target.endswith("/"):
        raise InvalidInputError(
            f"{scheme}:{target}: should name a topic from the root, e.g. {scheme}:/camera/image_raw"
        )
    return Ros1Source(target, options) if scheme == "ros1" else Ros2Source(target, options)


def rgb_of(message: Any, compressed: bool, where: str) -> NDArray[np.uint8]:
    """The picture (H, W, 3) uint8 RGB of an Image or a CompressedImage of either ROS.

    Raises:
        InvalidInputError: an unknown encoding, sizes that do not fit, damaged data.
    """
    data = message.data
    data = (np.frombuffer(data, np.uint8) if isinstance(data, (bytes, bytearray, memoryview))
            else np.asarray(data, np.uint8))
    if compressed:
        image = images.decode(SimpleNamespace(data=data), images.COMPRESSED, where)
    else:
        fields = {name: getattr(message, name) for name in ("height", "width", "step", "encoding")}
        image = images.decode(SimpleNamespace(data=data, **fields), images.IMAGE, where)
    return np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image


def stamp_of(message: Any) -> float | None:
    """The header's stamp [s] by the clock of whoever published; None if it was left empty."""
    stamp = message.header.stamp
    if hasattr(stamp, "nanosec"):
        seconds, nanoseconds = int(stamp.sec), int(stamp.nanosec)
    else:
        seconds, nanoseconds = int(stamp.secs), int(stamp.nsecs)
    return seconds + nanoseconds * 1e-9 if seconds or nanoseconds else None


class TopicSource(ABC):
    """The newest message of a topic; decoding is left to the camera's own thread."""

    lasting = True

    def __init__(self, scheme: str, topic: str, options: CameraOptions) -> None:
        self.topic, self.options = topic, options
        self.where = f"{scheme}:{topic}"
        self.compressed = options.compressed or topic.endswith("/compressed")
        self.rate_hz = 0.0
        self.settings = Settings()
        self._messages: deque[Any] = deque(maxlen=2)
        self._came = threading.Condition()
        self._good = self._damaged = 0

    @abstractmethod
    def open(self) -> None:
        """Subscribe."""

    @abstractmethod
    def close(self) -> None: ...

    def grab(self, timeout_s: float) -> RawFrame | None:
        with self._came:
            if not self._came.wait_for(lambda: self._messages, timeout_s):
                return None
            message = self._messages.popleft()
        try:
            image = rgb_of(message, self.compressed, self.where)
        except InvalidInputError as error:
            self._damaged += 1
            if not self._good:
                raise
            if self._damaged >= _MOST_DAMAGED:
                raise SourceLost(f"{self._damaged} damaged pictures in a row: {error}") from None
            return None
        self._good, self._damaged = self._good + 1, 0
        return RawFrame(image, device_s=stamp_of(message))

    def _on_message(self, message: Any) -> None:
        with self._came:
            self._messages.append(message)
            self._came.notify()

    def _forget(self) -> None:
        with self._came:
            self._messages.clear()
        self._damaged = 0

    @property
    def _kind(self) -> str:
        return "CompressedImage" if self.compressed else "Image"


class Ros1Source(TopicSource):
    """A topic on a ROS 1 master; that of ``ROS_MASTER_URI`` unless ``master_uri`` is given."""

    def __init__(self, topic: str, options: CameraOptions) -> None:
        super().__init__("ros1", topic, options)
        self._session: Any = None

    def open(self) -> None:
        from robot_rl.ros.ros1 import Ros1Session

        try:
            self._session = Ros1Session(self.options.master_uri)
        except InvalidInputError:
            raise
        except RobotRLError as error:
            raise InvalidInputError(f"{self.where}: {error}") from None
        self._session.subscribe(self.topic, f"sensor_msgs/{self._kind}", self._on_message)

    def close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.close()
        self._forget()


class Ros2Source(TopicSource):
    """A topic of ROS 2 in the domain of ``ROS_DOMAIN_ID``, or ``domain``."""

    def __init__(self, topic: str, options: CameraOptions) -> None:
        super().__init__("ros2", topic, options)
        self._node: Any = None
        self._spinner: Any = None

    def open(self) -> None:
        from robot_rl.ros import runtime

        self._node = runtime.make_node("robot_rl_camera", domain_id=self.options.domain)
        # Best effort receives from reliable publishers as well.
        quality = runtime.QoS(depth=2) if self.options.reliable else runtime.SENSOR_DATA
        self._node.create_subscription(
            runtime.message(f"sensor_msgs/msg/{self._kind}"), self.topic, self._on_message,
            runtime.native(quality),
        )
        self._spinner = runtime.Spinner(self._node)

    def close(self) -> None:
        node, self._node = self._node, None
        if node is not None:
            from robot_rl.ros import runtime

            self._spinner.close()
            runtime.destroy(node)
        self._forget()
