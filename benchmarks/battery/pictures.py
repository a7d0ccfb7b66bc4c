"""Two cameras as a process of their own: noisy pictures on topics of ROS 1 or ROS 2.

    python benchmarks/battery/pictures.py ros1 http://127.0.0.1:1234
    python benchmarks/battery/pictures.py ros2 7

Every line of JSON on stdin is an order, answered with the monotonic time at which it took effect:
``{"fault": NAME, "camera": 0 | 1, "late_s": s}`` or ``{"fault": null}``; ``{"shift_s": s}``
moves the wall clock of its stamps. Every answer also has how late pictures were in the last ten
seconds.
"""

from __future__ import annotations

import array
import json
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

NAMES = ("front", "side")
TOPICS = tuple(f"/battery/{name}/image_raw" for name in NAMES)
RATE_HZ, SIZE = 30.0, 32
FAULTS = ("unplugged", "frozen", "slow", "black", "shape", "apart")

Image = NDArray[np.uint8]
Send = Callable[[int, Image, float], None]


class Pictures:
    """Makes the pictures, and breaks them."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._rng = np.random.default_rng(0)
        self._lock = threading.Lock()
        self._fault: dict[str, Any] = {"fault": None}
        self._still: Image | None = None
        self._kept: deque[tuple[float, Image, float]] = deque()
        self._late: deque[float] = deque(maxlen=round(10.0 * RATE_HZ))
        self.shift_s = 0.0

    def order(self, order: dict[str, Any]) -> float:
        """Take an order; when it took effect [s]."""
        with self._lock:
            if "shift_s" in order:
                self.shift_s = float(order["shift_s"])
            if "fault" in order:
                if order["fault"] not in (None, *FAULTS):
                    raise ValueError(f"unknown fault {order['fault']!r}")
                self._fault, self._still = order, None
            return time.monotonic()

    def late_s(self) -> float:
        """How late the latest pair of pictures of the last ten seconds was made [s]."""
        return max(list(self._late), default=0.0)

    def run(self) -> None:
        """Send pictures for ever."""
        due_s, tick = time.monotonic(), 0
        while True:
            self._late.append(time.monotonic() - due_s)
            with self._lock:
                for camera in range(len(NAMES)):
                    self._one(camera, tick)
            tick += 1
            due_s = max(due_s + 1.0 / RATE_HZ, time.monotonic() - 1.0 / RATE_HZ)
            until = due_s
            while (left_s := until - time.monotonic()) > 0.0:
                with self._lock:
                    self._send_kept()
                time.sleep(min(left_s, 0.005))

    def _one(self, camera: int, tick: int) -> None:
        image = self._rng.integers(60, 200, (SIZE, SIZE, 3), dtype=np.uint8)
        stamp_s = time.time() + self.shift_s
        fault = self._fault["fault"] if self._fault.get("camera", 0) == camera else None
        if fault == "unplugged" or (fault == "slow" and tick % 3):
            return
        if fault == "frozen":
            self._still = image if self._still is None else self._still
            image = self._still
        elif fault == "black":
            image = (image % 2).astype(np.uint8)
        elif fault == "shape":
            image = image[:, : SIZE // 2]
        elif fault == "apart":
            late_s = float(self._fault["late_s"])
            self._kept.append((time.monotonic() + late_s, image, stamp_s))
            return
        self._send(camera, image, stamp_s)

    def _send_kept(self) -> None:
        while self._kept and self._kept[0][0] <= time.monotonic():
            _, image, stamp_s = self._kept.popleft()
            if self._fault["fault"] == "apart":
                self._send(int(self._fault["camera"]), image, stamp_s)


def ros1(master_uri: str) -> Send:
    from robot_rl.ros.ros1 import Ros1Session

    session = Ros1Session(master_uri, name="battery_pictures")
    publishers = [session.publisher(topic, "sensor_msgs/Image", queue=1) for topic in TOPICS]

    def send(camera: int, image: Image, stamp_s: float) -> None:
        height, width, _ = image.shape
        message = publishers[camera].message(
            height=height, width=width, encoding="rgb8", step=3 * width, data=image.tobytes())
        message.header.stamp.secs = int(stamp_s)
        message.header.stamp.nsecs = int(1e9 * (stamp_s % 1.0))
        publishers[camera].publish(message)

    return send


def ros2(domain: str) -> Send:
    from robot_rl.ros import runtime

    node = runtime.make_node("battery_pictures", domain_id=int(domain))
    kind = runtime.message("sensor_msgs/msg/Image")
    publishers = [node.create_publisher(kind, topic, runtime.native(runtime.SENSOR_DATA))
                  for topic in TOPICS]
    spinner = runtime.Spinner(node)

    def send(camera: int, image: Image, stamp_s: float) -> None:
        height, width, _ = image.shape
        message = kind(height=height, width=width, encoding="rgb8", step=3 * width,
                       data=array.array("B", image.tobytes()))
        message.header.stamp.sec = int(stamp_s)
        message.header.stamp.nanosec = int(1e9 * (stamp_s % 1.0))
        publishers[camera].publish(message)

    send.spinner = spinner  # type: ignore[attr-defined]  # kept alive
    return send


def main() -> int:
    way, address = sys.argv[1:]
    pictures = Pictures({"ros1": ros1, "ros2": ros2}[way](address))
    threading.Thread(target=pictures.run, daemon=True).start()
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        answer = {"t": pictures.order(json.loads(line)), "late_s": pictures.late_s()}
        print(json.dumps(answer), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
