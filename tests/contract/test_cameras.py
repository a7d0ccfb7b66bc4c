"""One suite for every camera: what :class:`robot_rl.interfaces.Camera` promises."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from robot_rl.errors import InvalidInputError, StaleDataError
from robot_rl.interfaces import Camera, Clock

RIGS = ("mujoco-sawyer", "pybullet-panda", "ros1-sawyer")
SOURCES = ("pattern", "file")


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A short film of noise, as a file."""
    cv2 = pytest.importorskip("cv2")
    path = str(tmp_path_factory.mktemp("film") / "noise.avi")
    writer = cv2.VideoWriter(path, cv2.VideoWriter.fourcc(*"FFV1"), 30.0, (64, 48))
    rng = np.random.default_rng(0)
    for _ in range(60):
        writer.write(rng.integers(0, 256, (48, 64, 3)).astype(np.uint8))
    writer.release()
    return path


@pytest.fixture(params=[*RIGS, *SOURCES])
def seen(
    request: pytest.FixtureRequest, benches: Callable[[str], Any]
) -> Iterator[tuple[Camera, Clock, Any]]:
    """A camera, the clock of its stamps, and how time passes."""
    if request.param in RIGS:
        bench = benches(request.param)
        yield bench.rig.cameras["front"], bench.rig.clock, bench.wait
        return
    pytest.importorskip("cv2")
    from robot_rl_drivers.cameras import make_camera
    from robot_rl_drivers.clock import MonotonicClock

    clock = MonotonicClock()
    source = "test:pattern"
    if request.param == "file":
        source = f"opencv:{request.getfixturevalue('film')}?loop=1"
    camera = make_camera("front", source, height=48, width=64, clock=clock)
    yield camera, clock, lambda time_s: clock.sleep_until(clock.now_s() + time_s)
    camera.close()
    camera.close()


def test_a_camera_gives_colour_images_with_stamps(seen):
    camera, clock, wait = seen
    assert isinstance(camera, Camera) and camera.name == "front"
    frame = camera.read(2.0)
    height, width, channels = frame.image.shape
    assert frame.image.dtype == np.uint8 and channels == 3 and min(height, width) >= 16
    assert int(np.ptp(frame.image)) > 20, "an image of something"
    assert 0.0 <= clock.now_s() - frame.stamp_s <= 2.0
    for _ in range(200):
        wait(0.02)
        newer = camera.read(2.0)
        assert newer.stamp_s >= frame.stamp_s and newer.image.shape == frame.image.shape
        if newer.stamp_s > frame.stamp_s:
            return
    pytest.fail("no newer image came")


def test_an_image_is_the_callers_own(seen):
    camera, _, _ = seen
    frame = camera.read(2.0)
    stamp_s, kept = frame.stamp_s, frame.image.copy()
    if frame.image.flags.writeable:
        frame.image[:] = 0
        again = camera.read(2.0)
        if again.stamp_s == stamp_s:
            np.testing.assert_array_equal(again.image, kept)
        assert int(np.ptp(camera.read(2.0).image)) > 20


def test_an_image_that_is_too_old_is_refused(seen):
    camera, clock, _ = seen
    for age in (-1.0, float("nan")):
        with pytest.raises((StaleDataError, InvalidInputError)):
            camera.read(age)
    if clock.now_s() > camera.read(2.0).stamp_s:
        # Not a simulated one, whose images are made when they are asked for.
        with pytest.raises(StaleDataError):
            camera.read(1e-6)
