"""Cameras that fail in every way that the watch should notice, on a clock that we turn."""

from __future__ import annotations

import math
import threading

import numpy as np
import pytest

from robot_rl.errors import InvalidInputError, StaleDataError
from robot_rl.interfaces import Frame
from robot_rl.safety.cameras import (
    CameraWatch,
    CameraWatchConfig,
    StepWatch,
    StreamingCamera,
    brightness,
    camera_watches,
    fingerprint,
    max_age_for,
    read_together,
)

LOOK_S = 0.02


class Clock:
    def __init__(self) -> None:
        self.time_s = 100.0

    def now_s(self) -> float:
        return self.time_s

    def sleep_until(self, time_s: float) -> None:
        self.time_s = time_s


class FakeCamera:
    """A camera that only has what every camera has."""

    def __init__(self, name: str, clock: Clock, seed: int = 0) -> None:
        self.name, self.clock = name, clock
        self.frames: list[Frame] = []
        self.rng = np.random.default_rng(seed)

    def noise(self) -> np.ndarray:
        return self.rng.integers(60, 200, (24, 32, 3), np.uint8)

    def give(self, image: np.ndarray | None = None, late_s: float = 0.0) -> None:
        shown = self.noise() if image is None else image
        self.frames.append(Frame(shown, self.clock.time_s - late_s))

    def read(self, max_age_s: float) -> Frame:
        if not self.frames:
            raise StaleDataError(f"camera {self.name!r}: no frame yet")
        return self.frames[-1]


class FakeStream(FakeCamera):
    """One that keeps a history, as the drivers' do."""

    def __init__(self, name: str, clock: Clock, rate_hz: float = 30.0, seed: int = 0) -> None:
        super().__init__(name, clock, seed)
        self.rate_hz, self.may_repeat, self.reason = rate_hz, False, None
        self.latency_s = 0.0

    def history(self) -> list[Frame]:
        return self.frames[-16:]

    def counts(self) -> tuple[int, int]:
        prints = [fingerprint(frame.image) for frame in self.frames]
        different = sum(a != b for a, b in zip([None, *prints], prints, strict=False))
        return len(prints), different

    def fault(self) -> str | None:
        return self.reason


def test_a_stream_is_told_from_a_plain_camera():
    clock = Clock()
    assert isinstance(FakeStream("a", clock), StreamingCamera)
    assert not isinstance(FakeCamera("a", clock), StreamingCamera)


def run(watch, camera, seconds, rate_hz=30.0, show=None, look_s=LOOK_S):
    """Let the camera give frames at a rate while the watch looks; its first complaint and when."""
    clock = camera.clock
    begin_s = clock.time_s
    next_s, number = begin_s, 0
    looks = round(seconds / look_s)
    for look in range(1, looks + 1):
        until_s = begin_s + look * look_s
        while next_s <= until_s + 1e-9:
            clock.time_s = next_s
            image = show(number) if show else None
            camera.give(image)
            number += 1
            next_s += 1.0 / rate_hz
        clock.time_s = until_s
        complaint = watch.check()
        if complaint is not None:
            return complaint, clock.time_s - begin_s
    return None, seconds


@pytest.fixture(params=[FakeCamera, FakeStream])
def camera(request):
    return request.param("front", Clock())


def test_a_healthy_camera_is_left_alone(camera):
    assert run(CameraWatch(camera), camera, 4.0)[0] is None


def test_before_the_first_frame_it_complains(camera):
    assert "'front'" in CameraWatch(camera).check()


def test_a_lost_camera_is_noticed_within_200_ms(camera):
    watch = CameraWatch(camera)
    run(watch, camera, 1.0)
    complaint, after_s = run(watch, camera, 1.0, rate_hz=1e-3, show=lambda _: camera.noise())
    # The very first frame of the second run still came; from then on there is nothing.
    assert "is 0.1" in complaint and "limit is 0.120 s" in complaint and "'front'" in complaint
    assert after_s <= 0.2


@pytest.mark.parametrize("rate_hz, limit_s", [(60.0, 0.12), (30.0, 0.12), (21.0, 0.12), (5.0, 0.5)])
def test_the_age_limit_follows_from_the_rate(rate_hz, limit_s):
    assert max_age_for(rate_hz) == pytest.approx(limit_s)
    assert CameraWatchConfig(rate_hz=rate_hz).age_limit_s == pytest.approx(limit_s)
    assert CameraWatchConfig(rate_hz=rate_hz, max_age_s=0.3).age_limit_s == 0.3


def test_a_latency_that_is_known_is_granted():
    camera = FakeStream("front", Clock())
    camera.latency_s = 0.3
    watch = CameraWatch(camera)
    camera.give(late_s=0.4)
    assert watch.check() is None
    camera.clock.time_s += 0.03
    assert "limit is 0.420 s" in watch.check()


def test_equal_pictures_under_new_stamps_are_a_freeze(camera):
    watch = CameraWatch(camera)
    run(watch, camera, 1.0)
    still = camera.noise()
    complaint, after_s = run(watch, camera, 1.0, show=lambda _: still)
    assert "frozen" in complaint and after_s <= 0.2


def test_a_few_equal_pictures_are_none(camera):
    shown = {}

    def twice(number):
        return shown.setdefault(number // 2, camera.noise())

    # Doubled frames of a 60 Hz driver: 30 different pictures a second are what it should have.
    watch = CameraWatch(camera, CameraWatchConfig(rate_hz=30.0))
    assert run(watch, camera, 3.0, rate_hz=60.0, show=twice, look_s=0.01)[0] is None


def test_a_slow_camera_freezes_by_time():
    clock = Clock()
    camera = FakeStream("slow", clock, rate_hz=5.0)
    watch = CameraWatch(camera, CameraWatchConfig(rate_hz=5.0, min_rate_share=0.0))
    run(watch, camera, 2.0, rate_hz=5.0)
    still = camera.noise()
    complaint, after_s = run(watch, camera, 3.0, rate_hz=5.0, show=lambda _: still)
    assert "frozen" in complaint and 0.5 < after_s < 0.8


def test_stamps_that_stand_still_are_old_frames(camera):
    watch = CameraWatch(camera)
    run(watch, camera, 1.0)
    stamp_s = camera.clock.time_s
    for _ in range(10):
        camera.clock.time_s += LOOK_S
        camera.frames.append(Frame(camera.noise(), stamp_s))
        complaint = watch.check()
        if complaint:
            break
    assert "old" in complaint and camera.clock.time_s - stamp_s <= 0.2


def test_pictures_may_repeat_where_that_is_said(camera):
    still = camera.noise()
    watch = CameraWatch(camera, CameraWatchConfig(frozen_frames=None))
    assert run(watch, camera, 3.0, show=lambda _: still)[0] is None


def test_a_camera_at_a_third_of_its_rate_is_noticed(camera):
    watch = CameraWatch(camera)
    run(watch, camera, 2.0)
    complaint, after_s = run(watch, camera, 3.0, rate_hz=10.0)
    assert "frames a second" in complaint and "20.0 of 30" in complaint and after_s <= 1.0


def test_a_camera_that_was_slow_from_the_start_is_noticed(camera):
    complaint, after_s = run(CameraWatch(camera), camera, 3.0, rate_hz=10.0)
    assert "frames a second" in complaint and after_s <= 1.2


def test_every_picture_three_times_is_a_third_of_the_rate(camera):
    shown = {}
    complaint, _ = run(CameraWatch(camera), camera, 3.0,
                       show=lambda n: shown.setdefault(n // 3, camera.noise()))
    assert "frames a second" in complaint


def test_a_stream_is_counted_even_by_who_looks_rarely():
    camera = FakeStream("front", Clock())
    assert run(CameraWatch(camera), camera, 5.0, look_s=0.1)[0] is None
    camera = FakeStream("front", Clock())
    assert "frames a second" in run(CameraWatch(camera), camera, 5.0, 10.0, look_s=0.1)[0]


def test_a_plain_camera_is_not_counted_by_who_looks_rarely():
    camera = FakeCamera("front", Clock())
    assert run(CameraWatch(camera), camera, 5.0, look_s=0.1)[0] is None


@pytest.mark.parametrize("level, word", [(0, "black"), (255, "white")])
def test_a_covered_or_dazzled_camera_is_noticed(camera, level, word):
    watch = CameraWatch(camera)
    run(watch, camera, 1.0)

    def show(number):
        image = np.full((24, 32, 3), level, np.uint8)
        image[0, 0, 0] = number % 251  # noise: it is not frozen
        return image

    complaint, after_s = run(watch, camera, 1.0, show=show)
    assert word in complaint and after_s <= 0.2


def test_a_single_dark_frame_is_no_reason_to_stop(camera):
    dark = np.zeros((24, 32, 3), np.uint8)
    watch = CameraWatch(camera)
    assert run(watch, camera, 2.0, show=lambda n: dark if n % 20 == 19 else camera.noise())[0] is (
        None)


@pytest.mark.parametrize("image", [
    np.full((24, 31, 3), 99, np.uint8), np.full((24, 32), 99, np.uint8),
    np.full((24, 32, 4), 99, np.uint8), np.full((24, 32, 3), 99.0, np.float32),
])
def test_another_shape_or_type_is_noticed(camera, image):
    watch = CameraWatch(camera)
    run(watch, camera, 1.0)
    camera.clock.time_s += 0.03
    camera.give(image)
    complaint = watch.check()
    assert "(24, 32, 3) uint8" in complaint and str(image.dtype) in complaint


def test_a_shape_can_be_demanded(camera):
    watch = CameraWatch(camera, CameraWatchConfig(shape=(48, 48, 3)))
    camera.give()
    assert "(48, 48, 3)" in watch.check()


def test_a_camera_that_says_it_is_lost_is_believed_at_once():
    camera = FakeStream("wrist", Clock())
    watch = CameraWatch(camera)
    run(watch, camera, 0.5)
    camera.reason = "lost: it was unplugged"
    assert watch.check() == "camera 'wrist': lost: it was unplugged"


def test_a_stamp_in_the_future_is_noticed(camera):
    camera.give(late_s=-3.0)
    assert "future" in CameraWatch(camera).check()


def test_looking_costs_little():
    import time

    camera = FakeStream("front", Clock())
    camera.noise = lambda: camera.rng.integers(60, 200, (480, 640, 3), np.uint8)  # type: ignore
    frames = [camera.noise() for _ in range(5)]
    began_s = time.perf_counter()
    for frame in frames * 4:
        fingerprint(frame)
        brightness(frame)
    assert (time.perf_counter() - began_s) / 20 < 0.01


def two(late_s: float = 0.0):
    clock = Clock()
    return clock, FakeStream("front", clock, seed=1), FakeStream("wrist", clock, seed=2)


def test_cameras_out_of_step_are_named_with_their_skew():
    clock, front, wrist = two()
    watch = StepWatch({"front": front, "wrist": wrist})
    complaints = []
    for _ in range(30):
        clock.time_s += 1.0 / 30.0
        front.give()
        wrist.give(late_s=0.08)
        complaints.append(watch.check())
    assert complaints[0] is None  # a moment's difference is none
    assert "'wrist' and 'front'" in complaints[-1] and "0.080 s apart" in complaints[-1]
    assert sum(complaint is None for complaint in complaints) <= 5


def test_a_frame_left_out_is_no_reason_to_stop():
    clock, front, wrist = two()
    watch = StepWatch({"front": front, "wrist": wrist})
    next_s = {"front": clock.time_s, "wrist": clock.time_s + 0.03}
    numbers = {"front": 0, "wrist": 0}
    for _ in range(600):
        clock.time_s += 0.005
        for camera in (front, wrist):
            if clock.time_s >= next_s[camera.name]:
                numbers[camera.name] += 1
                next_s[camera.name] += 1.0 / 30.0
                if camera is front or numbers["wrist"] % 15:
                    camera.give()
        if wrist.frames:
            assert watch.check() is None


def test_every_camera_gets_a_watch_and_several_one_more():
    clock, front, wrist = two()
    assert list(camera_watches({"front": front})) == ["camera front"]
    watches = camera_watches({"front": front, "wrist": wrist})
    assert list(watches) == ["camera front", "camera wrist", "cameras in step"]
    front.give()
    wrist.give()
    assert [check() for check in watches.values()] == [None, None, None]
    clock.time_s += 0.2
    wrist.give()
    assert "'front'" in watches["camera front"]() and watches["camera wrist"]() is None
    assert camera_watches({}) == {}


def test_frames_are_read_together():
    clock, front, wrist = two()
    for _ in range(6):
        clock.time_s += 1.0 / 30.0
        front.give()
        wrist.give(late_s=0.07)
    found = read_together({"front": front, "wrist": wrist}, max_age_s=math.inf)
    # The newest are 70 ms apart; the front camera's from then is nearer.
    assert found["wrist"].stamp_s == wrist.frames[-1].stamp_s
    assert abs(found["front"].stamp_s - found["wrist"].stamp_s) == pytest.approx(
        min(abs(f.stamp_s - wrist.frames[-1].stamp_s) for f in front.frames))
    assert abs(found["front"].stamp_s - found["wrist"].stamp_s) < 0.02
    found["front"].image[:] = 0
    assert all(frame.image.any() for frame in front.frames), "what is handed out is a copy"


def test_frames_that_are_not_together_are_refused():
    clock, front, wrist = two()
    wrist.give()
    clock.time_s += 0.3
    front.give()
    with pytest.raises(StaleDataError, match=r"'wrist' and 'front'.*0\.300 s apart.*0\.050 s"):
        read_together({"front": front, "wrist": wrist}, max_age_s=1.0)


def test_three_cameras_are_compared_all_with_all():
    clock, front, wrist = two()
    side = FakeCamera("side", clock)
    for camera, late_s in ((front, 0.0), (wrist, 0.04), (side, -0.04)):
        camera.give(late_s=late_s)
    with pytest.raises(StaleDataError, match="'wrist' and 'side'"):
        read_together({"front": front, "wrist": wrist, "side": side}, max_age_s=1.0)


@pytest.mark.parametrize("name, value", [
    ("rate_hz", 0.0), ("max_age_s", -1.0), ("frozen_frames", 0), ("min_brightness", 300.0),
    ("max_skew_s", math.nan), ("min_brightness", 254.0),
])
def test_limits_that_make_no_sense_are_refused(name, value):
    with pytest.raises(InvalidInputError, match=name):
        CameraWatchConfig(**{name: value})


def test_what_happened_while_nobody_looked_does_not_count():
    clock, front, wrist = two()
    watch, step = CameraWatch(front), StepWatch({"front": front, "wrist": wrist})
    run(watch, front, 2.0)
    wrist.give(late_s=0.08)
    assert step.check() is None
    clock.time_s += 30.0  # lost, held, and back
    front.give()
    wrist.give(late_s=0.08)
    assert watch.check() is None and step.check() is None
    assert run(watch, front, 2.0)[0] is None


@pytest.mark.parametrize("fails, word", [("lost", "old"), ("frozen", "frozen")])
def test_a_camera_that_fails_holds_the_arm_within_200_ms(bench, fails, word):
    arm = bench()
    front, wrist = FakeStream("front", arm.clock, seed=1), FakeStream("wrist", arm.clock, seed=2)
    for name, check in camera_watches({"front": front, "wrist": wrist}).items():
        arm.safety.add_watch(name, check)
    still = wrist.noise()
    for tick in range(600):
        arm.wait(0.01)
        failed = tick >= 400
        if tick % 3 == 0:
            front.give()
            if not failed:
                wrist.give()
            elif fails == "frozen":
                wrist.give(still)
        if tick % 2 == 0:
            arm.safety.watch()
        if arm.safety.held is not None:
            break
    assert arm.safety.held is not None and 400 < tick <= 420
    assert "'wrist'" in arm.safety.held and word in arm.safety.held
    # Back, and released by the operator, it goes on.
    for tick in range(300):
        arm.wait(0.01)
        if tick % 3 == 0:
            front.give()
            wrist.give()
        if tick == 50:
            arm.safety.rearm()
        if tick % 2 == 0:
            arm.safety.watch()
    assert arm.safety.held is None


def test_several_threads_may_look():
    camera = FakeStream("front", Clock())
    watch, found, failed = CameraWatch(camera), [], []

    def look():
        try:
            for _ in range(300):
                found.append(watch.check())
        except Exception as error:
            failed.append(error)

    camera.give()
    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(100):
        camera.clock.time_s += 0.001
        camera.give()
    for thread in threads:
        thread.join()
    assert not failed and set(found) == {None}
