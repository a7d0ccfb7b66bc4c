"""The RealSense driver on the real library, with its software device in place of a camera."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

rs = pytest.importorskip("pyrealsense2")
pytest.importorskip("cv2")

from robot_rl.errors import InvalidInputError, StaleDataError  # noqa: E402
from robot_rl.safety.cameras import CameraWatch, CameraWatchConfig  # noqa: E402
from robot_rl_drivers.cameras import make_camera, realsense  # noqa: E402
from tests.drivers.cameras import CLOCK, wait_until  # noqa: E402

WIDTH, HEIGHT = 160, 120
# Byte order of each format for a pixel of (red, green, blue).
BYTES = {"rgb8": (0, 1, 2), "bgr8": (2, 1, 0), "rgba8": (0, 1, 2, None), "bgra8": (2, 1, 0, None)}


def pixels(color, fmt, number):
    """A picture of one colour with a moving corner, in that format's bytes."""
    image = np.empty((HEIGHT, WIDTH, 3), np.uint8)
    image[:] = color
    image[:20, :20] = number % 256
    if fmt == "yuyv":
        import cv2

        yuv = cv2.cvtColor(image, cv2.COLOR_RGB2YUV)
        out = np.empty((HEIGHT, WIDTH, 2), np.uint8)
        out[..., 0], out[:, 0::2, 1], out[:, 1::2, 1] = yuv[..., 0], yuv[:, ::2, 1], yuv[:, ::2, 2]
        return out
    parts = [np.full((HEIGHT, WIDTH), 255, np.uint8) if c is None else image[..., c]
             for c in BYTES[fmt]]
    return np.stack(parts, axis=2)


class Device:
    """A software device that is fed from a thread, as a camera feeds librealsense."""

    def __init__(self, serial="1234", fmt="rgb8", color=(255, 0, 0), rate_hz=30):
        self.format, self.color, self.rate_hz = fmt, color, rate_hz
        self.device = rs.software_device()
        self.device.register_info(rs.camera_info.serial_number, serial)
        self.device.register_info(rs.camera_info.name, "Software Camera")
        self.sensor = self.device.add_sensor("RGB Camera")
        self.profile = self.sensor.add_video_stream(self._stream(), True)
        self._knob("exposure", 1, 10000, 156)
        self._knob("enable_auto_exposure", 0, 1, 1)
        self._knob("white_balance", 2800, 6500, 4600)
        self._knob("enable_auto_white_balance", 0, 1, 1)
        self.sensor.add_read_only_option(rs.option.gain, 64.0)
        self.context, self.events = rs.context(), []
        # The context only knows it for as long as somebody keeps what it says of it.
        self.context.set_devices_changed_callback(self.events.append)
        self.device.add_to(self.context)
        wait_until(lambda: len(self.context.query_devices()) == 1)
        self.paused, self.number, self.device_s = False, 0, 7000.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _stream(self):
        made = rs.video_stream()
        made.type, made.index, made.uid = rs.stream.color, 0, 1
        made.width, made.height, made.fps = WIDTH, HEIGHT, self.rate_hz
        made.fmt = getattr(rs.format, self.format)
        made.bpp = 2 if self.format == "yuyv" else len(BYTES[self.format])
        lens = rs.intrinsics()
        lens.width, lens.height, lens.fx, lens.fy = WIDTH, HEIGHT, 130.0, 130.0
        lens.ppx, lens.ppy, lens.model, lens.coeffs = 80.0, 60.0, rs.distortion.none, [0.0] * 5
        made.intrinsics = lens
        self.bpp = made.bpp
        return made

    def _knob(self, name, low, high, default):
        span = rs.option_range()
        span.min, span.max, span.default, span.step = low, high, default, 1
        self.sensor.add_option(getattr(rs.option, name), span, True)

    def _run(self):
        while not self._stop.wait(1.0 / self.rate_hz):
            if not self.paused:
                self.feed(time.monotonic() + self.device_s)

    def feed(self, stamp_s):
        self.number += 1
        frame = rs.software_video_frame()
        frame.pixels = np.ascontiguousarray(pixels(self.color, self.format, self.number * 5))
        frame.stride, frame.bpp = WIDTH * self.bpp, self.bpp
        frame.timestamp, frame.domain = stamp_s * 1e3, rs.timestamp_domain.hardware_clock
        frame.frame_number, frame.profile = self.number, self.profile.as_video_stream_profile()
        self.sensor.on_video_frame(frame)

    def close(self):
        self._stop.set()
        self._thread.join()


@pytest.fixture
def device(request, monkeypatch):
    made = Device(**getattr(request, "param", {}))
    monkeypatch.setattr(realsense, "make_context", lambda: made.context)
    monkeypatch.setattr(realsense, "SETTLE_S", 0.05)
    monkeypatch.setattr("robot_rl_drivers.cameras.stream.RETRY_S", 0.1)
    yield made
    made.close()


def make(source, height=None, width=None):
    return make_camera("wrist", source, height=height, width=width, clock=CLOCK)


@pytest.mark.parametrize("device", [{"fmt": fmt} for fmt in (*BYTES, "yuyv")], indirect=True)
def test_red_is_red_in_every_format(device):
    camera = make("realsense:1234", 24, 32)
    image = camera.read(5.0).image
    assert image.shape == (24, 32, 3) and image.dtype == np.uint8
    assert np.abs(image[20, 28].astype(int) - [255, 0, 0]).max() <= 3
    if device.format != "yuyv":
        assert image[20, 28].tolist() == [255, 0, 0]
    camera.close()


def test_frames_come_at_their_rate_with_stamps_by_our_clock(device):
    camera = make("realsense:")
    # The limits are wide: this machine may be busy.
    limits = CameraWatchConfig(max_age_s=2.0, min_rate_share=0.1)
    watch, complaints, stamps = CameraWatch(camera, limits), [], set()
    wait_until(lambda: complaints.append(watch.check())
               or stamps.update(f.stamp_s for f in camera.history()) or len(stamps) > 22)
    assert set(complaints) == {None}
    assert camera.rate_hz == 30.0
    gaps = np.diff(sorted(stamps))
    assert (gaps > 0).all() and np.median(gaps) == pytest.approx(1 / 30, rel=0.5)
    assert 0.0 <= CLOCK.now_s() - camera.read(1.0).stamp_s < 0.5
    camera.close()


def test_exposure_and_white_balance_are_fixed_and_refusals_told(device):
    camera = make("realsense:1234?exposure=300&gain=3")
    sensor = device.sensor
    assert sensor.get_option(rs.option.enable_auto_exposure) == 0.0
    assert sensor.get_option(rs.option.enable_auto_white_balance) == 0.0
    assert sensor.get_option(rs.option.exposure) == 300.0
    assert camera.settings == {"exposure": 300.0, "gain": 64.0, "white_balance": 4600.0}
    assert camera.notes == ("gain=3: the device says 64",)
    camera.close()
    with pytest.raises(InvalidInputError, match="exposure=99999: the device says 300"):
        make("realsense:1234?exposure=99999&refused=fail")
    with pytest.raises(InvalidInputError, match="no focus"):
        make("realsense:1234?focus=1&refused=fail")


@pytest.mark.parametrize("source, said", [
    ("realsense:77", "serial numbers here: 1234"),
    ("realsense:1234?size=640x480", "valid: 160x120 at 30 Hz"),
    ("realsense:1234?fps=60", "valid: 160x120 at 30 Hz"),
    ("realsense:/no/such.bag", "no such file"),
])
def test_what_is_not_there_is_refused_with_what_is(device, source, said):
    with pytest.raises(InvalidInputError, match=said):
        make(source)


def test_the_device_is_listed(device):
    assert realsense.find_devices() == [{"source": "realsense:1234", "about": "Software Camera"}]


def test_a_silent_camera_is_lost_and_comes_back_with_new_frames(device, monkeypatch):
    monkeypatch.setattr(realsense, "_LOST_AFTER_S", 0.55)
    camera = make("realsense:1234")
    watch = CameraWatch(camera)
    device.paused = True
    last_s = camera.history()[-1].stamp_s
    wait_until(lambda: watch.check() is not None)
    # A frame may have been on its way; from then on it takes the largest age and a look.
    assert CLOCK.now_s() - last_s < 1.5
    wait_until(lambda: camera.fault() is not None)
    assert "1234 gave no frame" in camera.fault()
    with pytest.raises(StaleDataError, match="'wrist'"):
        camera.read(10.0)
    device.paused, back_s = False, CLOCK.now_s()
    wait_until(lambda: camera.fault() is None)
    assert all(frame.stamp_s >= back_s for frame in camera.history())
    camera.close()


def test_an_unplugged_camera_is_named(device):
    camera = make("realsense:1234")
    device.paused = True
    device.context = rs.context()  # one without the device
    camera._frames_from._context = device.context
    wait_until(lambda: camera.fault() is not None)
    assert "unplugged" in camera.fault() or "no such RealSense" in camera.fault()
    camera.close()


def record(device, path, count, rate_hz=30.0):
    """What librealsense's own recorder makes of frames of this device."""
    device.paused = True
    recorder = rs.recorder(path, device.device)
    (sensor,) = recorder.query_sensors()
    queue = rs.frame_queue(count)
    sensor.open(sensor.get_stream_profiles()[0])
    sensor.start(queue)
    begin_s = time.monotonic()
    for number in range(count):
        time.sleep(max(0.0, begin_s + number / rate_hz - time.monotonic()))
        device.feed(100.0 + number / rate_hz)
        queue.wait_for_frame(2000)
    sensor.stop()
    sensor.close()


@pytest.fixture
def recording(device, tmp_path):
    # The ending that the recorder accepts depends on the library's version.
    for ending in (".db3", ".bag"):
        path = str(tmp_path / f"recorded{ending}")
        try:
            record(device, path, 15)
        except RuntimeError as error:
            if "extension" not in str(error):
                raise
        else:
            return path
    pytest.fail("this librealsense records neither format")


def test_a_recording_plays_in_real_time_and_ends(recording, monkeypatch):
    monkeypatch.setattr(realsense, "make_context", rs.context)
    camera = make(f"realsense:{recording}", 24, 32)
    began_s, seen = CLOCK.now_s(), {}
    wait_until(lambda: seen.update({f.stamp_s: f.image for f in camera.history()}) or camera.ended)
    stamps = sorted(seen)
    assert 8 <= len(stamps) <= 15
    assert 0.2 < stamps[-1] - stamps[0] < 0.8 and CLOCK.now_s() - began_s > 0.2
    assert seen[stamps[0]][20, 28].tolist() == [255, 0, 0]
    with pytest.raises(StaleDataError, match="has ended"):
        camera.read(10.0)
    camera.close()


@pytest.mark.slow
def test_a_recording_may_begin_again(recording, monkeypatch):
    monkeypatch.setattr(realsense, "make_context", rs.context)
    camera = make(f"realsense:{recording}?loop=1")
    first_s = camera.history()[0].stamp_s
    wait_until(lambda: camera.history()[-1].stamp_s > first_s + 1.2)
    assert camera.fault() is None
    camera.close()
