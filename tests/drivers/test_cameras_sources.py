"""Cameras from files, streams, patterns and webcams: the real decoders, in real time."""

from __future__ import annotations

import http.server
import itertools
import math
import socketserver
import threading
import time

import numpy as np
import pytest

cv2 = pytest.importorskip("cv2")

from robot_rl.errors import InvalidInputError, StaleDataError  # noqa: E402
from robot_rl.safety.cameras import CameraWatch, camera_watches  # noqa: E402
from robot_rl_drivers.cameras import make_cameras  # noqa: E402
from robot_rl_drivers.cameras.options import CameraOptions  # noqa: E402
from robot_rl_drivers.cameras.processing import Processor  # noqa: E402
from robot_rl_drivers.cameras.settings import Settings  # noqa: E402
from robot_rl_drivers.cameras.stream import RawFrame, SourceLost, StreamCamera  # noqa: E402
from tests.drivers.cameras import CLOCK, make, wait_until  # noqa: E402

pytestmark = pytest.mark.usefixtures("no_camera_thread_stays")

# -- files --------------------------------------------------------------------------------------


def write_file(path, frames, fps=30):
    """A video without loss, so that colours are exact."""
    height, width = frames[0].shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"FFV1"), fps, (width, height))
    assert writer.isOpened()
    for frame in frames:
        writer.write(np.ascontiguousarray(frame[..., ::-1]))
    writer.release()
    return str(path)


def numbered(count, height=48, width=64):
    """Red left, green in the middle, blue right; above, the number in 8 squares."""
    frames = np.zeros((count, height, width, 3), np.uint8)
    for channel, part in enumerate(np.array_split(np.arange(width), 3)):
        frames[:, :, part, channel] = 255
    for n in range(count):
        for bit in range(8):
            frames[n, :8, bit * 8 : bit * 8 + 8] = 255 * (n >> bit & 1)
    return frames


def number_of(image):
    return sum(int(image[4, bit * 8 + 4, 1] > 127) << bit for bit in range(8))


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write_file(tmp_path_factory.mktemp("video") / "numbered.avi", numbered(24))


def test_a_file_plays_in_real_time_with_exact_colours_and_then_ends(video):
    camera = make(f"opencv:{video}")
    seen = {}
    wait_until(lambda: seen.update({f.stamp_s: f.image for f in camera.history()}) or camera.ended)
    stamps = sorted(seen)
    numbers = [number_of(seen[stamp]) for stamp in stamps]
    assert numbers == sorted(set(numbers)) and numbers[-1] >= 18 and len(numbers) >= 8
    # Each picture is stamped with when it is due, wherever the reader was late.
    assert np.allclose(np.diff(stamps), np.diff(numbers) / 30.0, atol=2e-3)
    image = seen[stamps[0]]
    assert [image[30, x].tolist() for x in (5, 32, 60)] == [[255, 0, 0], [0, 255, 0], [0, 0, 255]]
    with pytest.raises(StaleDataError, match=r"'front'.*has ended.*old, the limit is 0.5 s"):
        camera.read(0.5)
    assert "ended" in CameraWatch(camera).check()
    camera.close()


def test_a_file_may_begin_again(tmp_path):
    path = write_file(tmp_path / "short.avi", numbered(6))
    camera = make(f"opencv:{path}?loop=1")
    seen = {}
    wait_until(lambda: seen.update({f.stamp_s: f.image for f in camera.history()})
               or len(seen) > 15)
    stamps = sorted(seen)
    assert (np.diff(stamps) > 0).all() and camera.fault() is None
    numbers = [number_of(seen[stamp]) for stamp in stamps]
    steps = {(b - a) % 6 for a, b in itertools.pairwise(numbers)}
    assert 1 in steps and 0 not in steps
    camera.close()


def test_h264_files_are_read(tmp_path):
    pytest.importorskip("av")
    from robot_rl.report.video import write_video

    red = np.zeros((20, 64, 96, 3), np.uint8)
    red[..., 0] = 255
    red[:, 8:16, 8:16] = np.linspace(0, 255, 20).astype(np.uint8)[:, None, None, None]
    path = write_video(tmp_path / "red.mp4", list(red), 30.0)
    camera = make(f"opencv:{path}?still=1")
    assert np.abs(camera.read(5.0).image[50, 50].astype(int) - [255, 0, 0]).max() < 16
    camera.close()


def test_a_file_that_is_no_video_is_refused(tmp_path):
    path = tmp_path / "notes.mp4"
    path.write_text("no video")
    with pytest.raises(InvalidInputError, match="no video that OpenCV reads"):
        make(f"opencv:{path}")


def test_a_recording_has_no_exposure(video):
    camera = make(f"opencv:{video}?exposure=120")
    assert "cannot be set" in camera.notes[0]
    camera.close()
    with pytest.raises(InvalidInputError, match="cannot be set"):
        make(f"opencv:{video}?exposure=120&refused=fail")


def test_a_frozen_file_is_no_source_of_new_frames(tmp_path):
    frames = numbered(60)
    frames[10:] = frames[10]
    camera = make(f"opencv:{write_file(tmp_path / 'frozen.avi', frames)}")
    watch = CameraWatch(camera)
    wait_until(lambda: "frozen" in (watch.check() or ""))
    with pytest.raises(StaleDataError, match="frozen"):
        camera.read(10.0)
    newest_s = camera.history()[-1].stamp_s
    time.sleep(0.2)
    assert camera.history()[-1].stamp_s == newest_s
    camera.close()


def test_a_black_file_is_noticed(tmp_path):
    frames = np.zeros((40, 48, 64, 3), np.uint8)
    frames[:, 0, 0, 0] = np.arange(40)
    camera = make(f"opencv:{write_file(tmp_path / 'black.avi', frames)}?loop=1")
    watch = CameraWatch(camera)
    complaints = []
    wait_until(lambda: complaints.append(watch.check() or "") or "black" in complaints[-1])
    assert "the picture is black: its mean is" in complaints[-1]
    assert camera.read(5.0).image.shape == (48, 64, 3), "it is reported, and still seen"
    camera.close()


def test_a_file_slower_than_expected_is_noticed(tmp_path):
    camera = make(f"opencv:{write_file(tmp_path / 'slow.avi', numbered(40), fps=10)}")
    camera._options = CameraOptions(fps=30.0)  # what the rig expects of it
    watch = CameraWatch(camera)
    complaints = []
    wait_until(lambda: complaints.append(watch.check()) or complaints[-1] is not None)
    assert "frames a second" in complaints[-1] or "old" in complaints[-1]
    camera.close()


# -- the pattern --------------------------------------------------------------------------------


def test_the_pattern_has_its_colours_and_moves():
    camera = make("test:pattern?size=160x120&fps=60", height=60, width=80)
    first = camera.read(5.0)
    assert first.image.shape == (60, 80, 3)
    assert [first.image[50, x].tolist() for x in (5, 55, 65)] == [
        [255, 255, 255], [255, 0, 0], [0, 0, 255]]
    wait_until(lambda: camera.read(5.0).stamp_s > first.stamp_s + 0.1)
    assert not np.array_equal(camera.read(5.0).image, first.image)
    assert camera.rate_hz == 60.0
    camera.close()


def test_reading_twice_gives_copies_and_stamps_never_go_back():
    camera = make("test:pattern?size=64x48&fps=100")
    last_s = -math.inf
    for _ in range(200):
        frame = camera.read(5.0)
        assert last_s <= frame.stamp_s <= CLOCK.now_s()
        last_s = frame.stamp_s
        frame.image[:] = 7
    assert not (camera.read(5.0).image == 7).all()
    assert not camera.history()[-1].image.flags.writeable
    camera.close()


def test_a_latency_that_is_known_is_taken_off():
    plain, late = make("test:pattern?size=32x24"), make("test:pattern?size=32x24&latency=0.5")
    ages = [CLOCK.now_s() - camera.history()[-1].stamp_s for camera in (plain, late)]
    assert ages[1] - ages[0] > 0.4
    plain.close()
    late.close()


@pytest.mark.parametrize("max_age_s", [0.0, -1.0, math.nan])
def test_an_age_that_is_none_is_refused(max_age_s):
    camera = make("test:pattern?size=32x24")
    with pytest.raises(InvalidInputError, match="max_age_s"):
        camera.read(max_age_s)
    camera.close()


def test_several_cameras_open_together_or_not_at_all():
    cameras = make_cameras({"front": "test:pattern", "wrist": "none"}, height=24, width=32,
                           clock=CLOCK)
    assert list(cameras) == ["front"] and list(camera_watches(cameras)) == ["camera front"]
    cameras["front"].close()
    with pytest.raises(InvalidInputError, match="no such file"):
        make_cameras({"front": "test:pattern", "wrist": "opencv:/no/such.avi"}, height=24,
                     width=32, clock=CLOCK)


# -- sources that misbehave ---------------------------------------------------------------------


class ScriptedSource:
    """Gives what the test says; ``gone`` is why it does not."""

    lasting, rate_hz = True, 100.0

    def __init__(self):
        self.settings = Settings()
        self.gone: Exception | None = None
        self.may_open = True
        self.number = self.opened = self.closed = 0
        self.repeat_image = self.repeat_stamp = False
        self.shape = (24, 32, 3)
        self.image = np.full(self.shape, 90, np.uint8)

    def open(self):
        self.opened += 1
        if not self.may_open:
            raise InvalidInputError("there is no such camera")

    def grab(self, timeout_s):
        time.sleep(0.01)
        if self.gone is not None:
            raise self.gone
        if not self.repeat_image:
            self.number += 1
            self.image = np.full(self.shape, self.number % 200, np.uint8)
        if not self.repeat_stamp:
            self.stamp_s = time.monotonic() + 777.0
        return RawFrame(self.image, device_s=self.stamp_s)

    def close(self):
        self.closed += 1


@pytest.fixture
def scripted(monkeypatch):
    monkeypatch.setattr("robot_rl_drivers.cameras.stream.RETRY_S", 0.05)
    source = ScriptedSource()
    camera = StreamCamera("wrist", "fake:0", source, Processor(), CLOCK, CameraOptions())
    camera.start()
    yield source, camera
    camera.close()
    assert source.closed >= 1


@pytest.mark.parametrize("error", [SourceLost("it was unplugged"), RuntimeError("usb error 19")])
def test_an_unplugged_camera_is_reported_and_comes_back_with_new_frames_only(scripted, error):
    source, camera = scripted
    watch = CameraWatch(camera)
    assert watch.check() is None
    source.may_open, source.gone = False, error
    wait_until(lambda: camera.fault() is not None)
    with pytest.raises(StaleDataError, match=f"'wrist'.*{error}"):
        camera.read(10.0)
    assert str(error) in watch.check()
    wait_until(lambda: source.opened >= 3)
    assert "no such camera" in camera.fault()
    # It comes back, at first with the very picture that it had.
    source.repeat_image, source.may_open, source.gone = True, True, None
    opened = source.opened
    wait_until(lambda: source.opened > opened)
    time.sleep(0.1)
    with pytest.raises(StaleDataError):
        camera.read(10.0)
    back_s = CLOCK.now_s()
    source.repeat_image = False
    wait_until(lambda: camera.fault() is None)
    assert all(frame.stamp_s > back_s for frame in camera.history())
    assert any(note.startswith("lost") for note in camera.notes)
    assert any(note.startswith("back after") for note in camera.notes)


def test_a_frame_with_an_old_stamp_is_not_new(scripted):
    source, camera = scripted
    source.repeat_stamp = True
    time.sleep(0.05)
    newest_s = camera.history()[-1].stamp_s
    wait_until(lambda: CLOCK.now_s() - newest_s > 0.2)
    assert camera.history()[-1].stamp_s == newest_s
    with pytest.raises(StaleDataError, match=r"0\.2.. s old"):
        camera.read(0.15)
    assert "old" in CameraWatch(camera).check()


def test_a_driver_that_repeats_its_last_picture_is_frozen(scripted):
    source, camera = scripted
    began_s = CLOCK.now_s()
    source.repeat_image = True
    wait_until(lambda: camera.fault() is not None)
    assert "frozen" in camera.fault() and CLOCK.now_s() - began_s < 1.0
    assert CLOCK.now_s() - camera.history()[-1].stamp_s < 1.0
    source.repeat_image = False
    wait_until(lambda: camera.fault() is None)
    assert camera.read(1.0)


def test_pictures_of_another_size_are_no_frames_even_where_they_are_scaled(scripted):
    source, camera = scripted
    camera._process = Processor(height=12, width=16)
    source.shape = (24, 30, 3)
    wait_until(lambda: camera.fault() is not None)
    with pytest.raises(StaleDataError, match=r"\(24, 30, 3\) now, should be \(24, 32, 3\)"):
        camera.read(10.0)
    source.shape = (24, 32, 3)
    wait_until(lambda: camera.fault() is None)
    assert camera.read(1.0).image.shape == (12, 16, 3)


def test_no_frame_is_torn(scripted):
    _, camera = scripted
    torn, ends = [], time.monotonic() + 0.6

    def look():
        while time.monotonic() < ends:
            image = camera.read(5.0).image
            if image.min() != image.max():
                torn.append(image)
            image[: len(image) // 2] = 255  # whatever a reader does to its own

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not torn


def test_a_camera_that_gives_nothing_is_no_camera():
    class Silent(ScriptedSource):
        def grab(self, timeout_s):
            time.sleep(0.01)

    source = Silent()
    camera = StreamCamera("wrist", "fake:0", source, Processor(), CLOCK, CameraOptions(start=0.2))
    with pytest.raises(StaleDataError, match=r"'wrist'.*no frame within 0.2 s"):
        camera.start()
    assert source.closed >= 1


class MjpegHandler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        try:
            while not self.server.stopped.is_set():
                self.server.number += 1
                image = np.zeros((48, 64, 3), np.uint8)
                image[..., 2] = 255
                image[:16, :16] = self.server.number * 7 % 256
                data = cv2.imencode(".jpg", image)[1].tobytes()
                self.wfile.write(b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: "
                                 + str(len(data)).encode() + b"\r\n\r\n" + data + b"\r\n")
                time.sleep(1 / 30)
        except OSError:
            pass

    def log_message(self, *args):
        pass


class MjpegServer(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads, allow_reuse_address = True, True

    def __init__(self, port=0):
        super().__init__(("127.0.0.1", port), MjpegHandler)
        self.stopped, self.number = threading.Event(), 0
        self.thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02})
        self.thread.start()

    def end(self):
        self.stopped.set()
        self.shutdown()
        self.server_close()
        self.thread.join()


def test_a_stream_is_lost_with_its_server_and_comes_back_with_it(monkeypatch):
    monkeypatch.setattr("robot_rl_drivers.cameras.stream.RETRY_S", 0.1)
    server = MjpegServer()
    port = server.server_address[1]
    camera = make(f"opencv:http://127.0.0.1:{port}/live?still=1", name="net")
    assert np.abs(camera.read(5.0).image[40, 40].astype(int) - [255, 0, 0]).max() < 8
    server.end()
    wait_until(lambda: camera.fault() is not None)
    assert "stream" in camera.fault()
    with pytest.raises(StaleDataError, match="'net'"):
        camera.read(10.0)
    server = MjpegServer(port)
    wait_until(lambda: camera.fault() is None)
    assert camera.read(5.0).image[40, 40, 0] > 240
    camera.close()
    server.end()


class Webcam:
    """Stands in for OpenCV's capture of a Video4Linux camera: what it says, takes and refuses."""

    made: list[Webcam] = []
    image = np.zeros((48, 64, 3), np.uint8)

    def __init__(self, path, backend, params=()):
        assert (path, backend) == ("/dev/null", cv2.CAP_V4L2)
        Webcam.made.append(self)
        self.values = {cv2.CAP_PROP_EXPOSURE: 333.0, cv2.CAP_PROP_AUTO_EXPOSURE: 3.0,
                       cv2.CAP_PROP_GAIN: 10.0, cv2.CAP_PROP_WB_TEMPERATURE: 5000.0,
                       cv2.CAP_PROP_AUTO_WB: 1.0, cv2.CAP_PROP_FPS: 30.0,
                       cv2.CAP_PROP_FRAME_WIDTH: 64.0, cv2.CAP_PROP_FRAME_HEIGHT: 48.0}
        self.fixed = (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT)
        self.number, self.plugged, self.age_s = 0, True, 0.02
        self.taken_s = 0.0

    def isOpened(self):
        return True

    def get(self, key):
        if key == cv2.CAP_PROP_POS_MSEC:
            return 1e3 * self.taken_s
        return self.values.get(key, -1.0)

    def set(self, key, value):
        if key not in self.values or key in self.fixed:
            return False
        self.values[key] = value
        return True

    def grab(self):
        time.sleep(0.01)
        return self.plugged

    def read(self):
        time.sleep(0.01)
        self.number += 1
        self.taken_s = time.monotonic() - self.age_s
        image = np.zeros((48, 64, 3), np.uint8)
        image[..., 2] = 255
        image[:8, :8] = self.number % 256
        return self.plugged, image

    def release(self):
        self.plugged = False


@pytest.fixture
def webcam(monkeypatch):
    from robot_rl_drivers.cameras import opencv

    monkeypatch.setattr(opencv.cv2, "VideoCapture", Webcam)
    monkeypatch.setattr(opencv, "_SETTLE_S", 0.03)
    monkeypatch.setattr("robot_rl_drivers.cameras.stream.RETRY_S", 0.05)
    monkeypatch.setattr(Webcam, "made", [])
    return Webcam.made


def test_a_webcam_is_set_and_read_back(webcam):
    camera = make("opencv:/dev/null?exposure=120&white_balance=4600&fps=30")
    values = webcam[0].values
    assert values[cv2.CAP_PROP_EXPOSURE] == 120.0 and values[cv2.CAP_PROP_AUTO_EXPOSURE] == 1.0
    assert values[cv2.CAP_PROP_WB_TEMPERATURE] == 4600.0 and values[cv2.CAP_PROP_AUTO_WB] == 0.0
    assert camera.settings == {"exposure": 120.0, "gain": 10.0, "white_balance": 4600.0}
    assert camera.notes == () and camera.rate_hz == 30.0
    assert camera.read(5.0).image[40, 40].tolist() == [255, 0, 0]
    camera.close()


def test_the_kernels_stamp_says_when_a_webcam_took_its_picture(webcam):
    camera = make("opencv:/dev/null")
    webcam[0].age_s = 0.3
    wait_until(lambda: webcam[0].number > 40)
    lead_s = [webcam[0].taken_s - camera.history()[-1].stamp_s for _ in range(20)]
    # The stamps are those of the kernel, not the receipt's, which is 0.3 s later.
    assert min(map(abs, lead_s)) < 0.02
    camera.close()


@pytest.mark.parametrize("query, said", [
    ("size=1280x720", "size=1280x720: the device says 64x48"), ("focus=3", "no focus"),
])
def test_what_a_webcam_refuses_is_said_or_an_error(webcam, query, said):
    camera = make(f"opencv:/dev/null?{query}")
    assert len(camera.notes) == 1 and said in camera.notes[0]
    camera.close()
    with pytest.raises(InvalidInputError, match=said):
        make(f"opencv:/dev/null?{query}&refused=fail")


def test_an_unplugged_webcam_is_lost_until_it_is_plugged_in_again(webcam):
    camera = make("opencv:/dev/null?exposure=120")
    webcam[0].plugged = False
    wait_until(lambda: camera.fault() is not None or len(webcam) > 1)
    wait_until(lambda: len(webcam) > 1 and camera.fault() is None)
    # It is set anew.
    assert webcam[-1].values[cv2.CAP_PROP_EXPOSURE] == 120.0
    assert [note.split(":")[0].split(" after")[0] for note in camera.notes] == ["lost", "back"]
    camera.close()
