"""Image topics: a real ROS 1 master, and ROS 2's wire format, with the publisher in a process of
its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("cv2")

from robot_rl.errors import InvalidInputError, MissingDependencyError, StaleDataError
from robot_rl.safety.cameras import CameraWatch, read_together
from robot_rl_drivers.cameras import find_sources, make_camera
from robot_rl_drivers.cameras.ros_images import rgb_of
from tests.drivers.cameras import CLOCK, wait_until

ENCODINGS = ("rgb8", "bgr8", "rgba8", "bgra8", "8UC3", "bayer_rggb8", "bayer_bggr8",
             "bayer_gbrg8", "bayer_grbg8")

# What both publishers send: a red picture with a grey corner that changes, in every encoding.
PICTURES = r"""
import sys, time
import cv2, numpy as np

KIND = sys.argv[1]
TOPICS = {e.lower(): e for e in ("rgb8", "bgr8", "rgba8", "bgra8", "mono8", "8UC3", "bayer_rggb8",
                                 "bayer_bggr8", "bayer_gbrg8", "bayer_grbg8")}

def picture(number):
    image = np.zeros((48, 64, 3), np.uint8)
    image[..., 0] = 255
    image[:16, :16] = number * 7 % 256
    return image

def encoded(image, encoding):
    if encoding.startswith("bayer"):
        pattern = encoding[6:10]
        out = np.empty(image.shape[:2], np.uint8)
        for i, letter in enumerate(pattern):
            out[i // 2::2, i % 2::2] = image[i // 2::2, i % 2::2, "rgb".index(letter)]
        return out
    order = {"rgb8": (0, 1, 2), "bgr8": (2, 1, 0), "8UC3": (2, 1, 0), "mono8": (0,)}
    if encoding in order:
        return image[..., list(order[encoding])]
    alpha = np.full((*image.shape[:2], 1), 9, np.uint8)
    return np.concatenate([image if encoding == "rgba8" else image[..., ::-1], alpha], axis=2)

def filled(message, image, encoding):
    data = np.ascontiguousarray(encoded(image, encoding))
    message.height, message.width, message.encoding = 48, 64, encoding
    message.is_bigendian, message.step = 0, data.nbytes // 48
    message.data = data.tobytes() if KIND == "ros1" else data.reshape(-1)
    return message

def squeezed(message, image, name):
    data = cv2.imencode("." + name, np.ascontiguousarray(image[..., ::-1]))[1].reshape(-1)
    message.format, message.data = name, data.tobytes() if KIND == "ros1" else data
    return message

def publish_for_ever(publisher, image_class, compressed_class, stamp):
    raw = {e: publisher("/cam/in_" + t, "Image") for t, e in TOPICS.items()}
    small = {f: publisher("/cam/%s/compressed" % f, "CompressedImage") for f in ("jpg", "png")}
    print("ready", flush=True)
    number = 0
    while True:
        number += 1
        image = picture(number)
        for e, send in raw.items():
            message = filled(image_class(), image, e)
            message.header.stamp = stamp()
            send(message)
        for f, send in small.items():
            message = squeezed(compressed_class(), image, f)
            message.header.stamp = stamp()
            send(message)
        time.sleep(1 / 30)
"""

ROS1 = PICTURES + r"""
from robot_rl.ros.ros1 import Ros1Session
from robot_rl.ros.ros1_messages import message_class
session = Ros1Session(sys.argv[2], name="camera_node")
publish_for_ever(lambda t, k: session.publisher(t, "sensor_msgs/" + k).publish,
                 message_class("sensor_msgs/Image"), message_class("sensor_msgs/CompressedImage"),
                 session.stamp)
"""

ROS2 = PICTURES + r"""
from robot_rl.ros import runtime
node = runtime.make_node("camera_node", domain_id=int(sys.argv[2]))
kinds = {k: runtime.message("sensor_msgs/msg/" + k) for k in ("Image", "CompressedImage")}
quality = runtime.native(runtime.DEFAULT)
publish_for_ever(lambda t, k: node.create_publisher(kinds[k], t, quality).publish,
                 kinds["Image"], kinds["CompressedImage"], lambda: node.get_clock().now().to_msg())
"""


class Publisher:
    """A publishing process; :meth:`stop` pulls its plug."""

    def __init__(self, kind, where):
        self.kind, self.where, self.process = kind, where, None

    def start(self):
        self.process = subprocess.Popen(
            [sys.executable, "-c", ROS1 if self.kind == "ros1" else ROS2, self.kind, self.where],
            stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline().strip() == "ready"
        return self

    def stop(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.process.stdout.close()

    def source(self, topic, **options):
        key = "master_uri" if self.kind == "ros1" else "domain"
        options = {"fps": 30, **options}
        more = "".join(f"&{name}={value}" for name, value in options.items())
        return f"{self.kind}:{topic}?{key}={self.where}{more}"


@pytest.fixture(scope="module")
def master():
    pytest.importorskip("robot_rl.ros.ros1")
    from robot_rl.ros.ros1_import import import_rospy
    from robot_rl.ros.ros1_master import RosMaster

    try:
        import_rospy()
        running = RosMaster().start()
    except MissingDependencyError as error:
        pytest.skip(str(error))
    yield running
    running.stop()


@pytest.fixture(scope="module", params=["ros1", "ros2"])
def publisher(request):
    if request.param == "ros1":
        made = Publisher("ros1", request.getfixturevalue("master").uri)
    else:
        pytest.importorskip("cyclonedds")
        pytest.importorskip("rosbags")
        made = Publisher("ros2", str(100 + os.getpid() % 100))
    made.start()
    yield made
    made.stop()


def make(source, name="front", height=None, width=None):
    return make_camera(name, source, height=height, width=width, clock=CLOCK)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_red_is_red_in_every_encoding(publisher, encoding):
    camera = make(publisher.source(f"/cam/in_{encoding.lower()}"), height=24, width=32)
    image = camera.read(5.0).image
    assert image.shape == (24, 32, 3) and image.dtype == np.uint8
    assert image[18, 24].tolist() == [255, 0, 0]
    camera.close()


@pytest.mark.parametrize("topic, off", [("/cam/jpg/compressed", 4), ("/cam/png/compressed", 0)])
def test_red_is_red_when_compressed(publisher, topic, off):
    camera = make(publisher.source(topic))
    assert np.abs(camera.read(5.0).image[40, 50].astype(int) - [255, 0, 0]).max() <= off
    camera.close()


def test_lost_parts_may_be_sent_again(publisher):
    if publisher.kind == "ros1":
        pytest.skip("ROS 1 loses nothing")
    camera = make(publisher.source("/cam/in_rgb8", reliable=1))
    assert camera.read(5.0).image[40, 50].tolist() == [255, 0, 0]
    camera.close()


def test_grey_pictures_get_three_channels(publisher):
    camera = make(publisher.source("/cam/in_mono8"))
    assert camera.read(5.0).image[40, 50].tolist() == [255, 255, 255]
    camera.close()


def test_two_topics_are_in_step_at_their_rate(publisher):
    cameras = {name: make(publisher.source(f"/cam/in_{name}"), name) for name in ("rgb8", "bgr8")}
    watches = [CameraWatch(camera) for camera in cameras.values()]
    stamps = set()
    wait_until(lambda: stamps.update(f.stamp_s for f in cameras["rgb8"].history())
               or len(stamps) > 12)
    gaps = np.diff(sorted(stamps))
    assert (gaps > 0).all() and 0.03 < np.median(gaps) < 0.2
    frames = read_together(cameras, max_age_s=1.0)
    assert abs(frames["rgb8"].stamp_s - frames["bgr8"].stamp_s) <= 0.05
    assert all(0.0 <= CLOCK.now_s() - frame.stamp_s < 1.0 for frame in frames.values())
    assert all("lost" not in (watch.check() or "") for watch in watches)
    for camera in cameras.values():
        camera.close()


def test_a_publisher_that_dies_is_noticed_and_one_that_returns_is_taken(publisher):
    camera = make(publisher.source("/cam/in_rgb8"))
    watch = CameraWatch(camera)
    publisher.stop()
    died_s = CLOCK.now_s()
    wait_until(lambda: watch.check() is not None)
    assert CLOCK.now_s() - died_s < 2.0
    wait_until(lambda: CLOCK.now_s() - camera.history()[-1].stamp_s > 0.3)
    with pytest.raises(StaleDataError, match=r"'front'.*limit is 0\.15 s"):
        camera.read(0.15)
    back_s = CLOCK.now_s()
    publisher.start()
    wait_until(lambda: camera.history()[-1].stamp_s > back_s)
    assert camera.read(5.0).image[40, 50].tolist() == [255, 0, 0]
    camera.close()


def test_the_rate_is_learned_where_nobody_says_it(publisher):
    key = "master_uri" if publisher.kind == "ros1" else "domain"
    camera = make(f"{publisher.kind}:/cam/in_rgb8?{key}={publisher.where}")
    assert 4.0 < camera.rate_hz < 40.0
    camera.close()


def test_a_topic_that_nobody_publishes_is_no_camera(publisher):
    with pytest.raises(StaleDataError, match=r"no frame within 0\.3 s"):
        make(publisher.source("/cam/nothing", start=0.3))


def test_topics_are_listed(publisher, monkeypatch):
    monkeypatch.setenv("ROS_MASTER_URI", publisher.where if publisher.kind == "ros1"
                       else "http://127.0.0.1:9")
    monkeypatch.setenv("ROS_DOMAIN_ID", publisher.where if publisher.kind == "ros2" else "99")
    monkeypatch.setattr("robot_rl_drivers.cameras.discover._DISCOVERY_S", 0.5)
    found = find_sources()
    sources = {entry.get("source"): entry["about"] for entry in found[publisher.kind]}
    assert sources[f"{publisher.kind}:/cam/in_rgb8"].endswith("/Image")
    assert sources[f"{publisher.kind}:/cam/jpg/compressed"].endswith("/CompressedImage")
    assert found["test"] == [{"source": "test:pattern", "about": "a moving test pattern"}]


def test_without_a_master_there_is_no_camera():
    pytest.importorskip("robot_rl.ros.ros1")
    try:
        with pytest.raises(InvalidInputError, match="no ROS master answers"):
            make("ros1:/cam/rgb8?master_uri=http://127.0.0.1:9")
    except MissingDependencyError as error:
        pytest.skip(str(error))


def image_message(encoding="rgb8", height=2, width=3, step=9, size=18):
    return SimpleNamespace(height=height, width=width, step=step, encoding=encoding,
                           data=bytes(size))


@pytest.mark.parametrize("message, said", [
    (image_message("16UC1"), "valid: rgb8"), (image_message(size=17), "17 bytes"),
    (image_message(step=8), "rows of 8 bytes"), (image_message(height=0), "0 x 3 pixels"),
])
def test_a_message_that_holds_no_picture_is_refused(message, said):
    with pytest.raises(InvalidInputError, match=said):
        rgb_of(message, False, "ros1:/cam")


def test_rows_may_be_padded():
    rows = np.zeros((2, 12), np.uint8)
    rows[:, :9] = np.arange(18).reshape(2, 9)
    message = image_message(step=12, size=0)
    message.data = rows.tobytes()
    assert np.array_equal(rgb_of(message, False, "x"), np.arange(18).reshape(2, 3, 3))


@pytest.mark.parametrize("data", [b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", bytes(99)])
def test_damaged_compressed_pictures_are_refused(data):
    with pytest.raises(InvalidInputError, match="ros1:/cam"):
        rgb_of(SimpleNamespace(data=data), True, "ros1:/cam")
