"""What cameras have in common: how they are named, stamped, processed and set."""

from __future__ import annotations

import numpy as np
import pytest

cv2 = pytest.importorskip("cv2")

from robot_rl.errors import InvalidInputError  # noqa: E402
from robot_rl_drivers.cameras.options import CameraOptions, parse_source  # noqa: E402
from robot_rl_drivers.cameras.processing import Processor, read_calibration  # noqa: E402
from robot_rl_drivers.cameras.settings import Settings, apply_settings  # noqa: E402
from robot_rl_drivers.cameras.stamps import ClockMap  # noqa: E402
from tests.drivers.cameras import make  # noqa: E402

pytestmark = pytest.mark.usefixtures("no_camera_thread_stays")

# -- the text that names a source ---------------------------------------------------------------


def test_a_source_is_taken_apart():
    found = parse_source("opencv:/dev/video2?crop=1,2,30,40&exposure=120&focus=auto&size=640x480"
                         "&fourcc=yuyv&fix=0&refused=fail&fps=15&latency=0.05")
    assert (found.scheme, found.target) == ("opencv", "/dev/video2")
    assert found.options == CameraOptions(
        crop=(1, 2, 30, 40), exposure=120.0, focus="auto", size=(640, 480), fourcc="YUYV",
        fix=False, refused="fail", fps=15.0, latency=0.05)


def test_options_from_elsewhere_are_overruled_by_the_text():
    found = parse_source("test:pattern?fps=10", {"fps": 20, "size": (32, 24), "crop": None})
    assert found.options.fps == 10.0 and found.options.size == (32, 24)


def test_a_streams_own_query_stays_with_its_address():
    found = parse_source("opencv:rtsp://host/live?channel=1&crop=0,0,8,8&subtype=0")
    assert found.target == "rtsp://host/live?channel=1&subtype=0"
    assert found.options.crop == (0, 0, 8, 8)


@pytest.mark.parametrize("source, said", [
    ("webcam:0", "opencv:"), ("0", "realsense:"), ("opencv", "should begin with"),
    ("opencv:0?expsure=3", "did you mean 'exposure'"), ("opencv:0?exposure=bright", "or auto"),
    ("opencv:0?crop=1,2,3", "x,y,width,height"), ("opencv:0?crop=0,0,0,9", "x,y,width,height"),
    ("opencv:0?fps=0", r"\[0.5, 1000\]"), ("opencv:0?fps=nan", r"\[0.5, 1000\]"),
    ("opencv:0?fps", "option=value"), ("opencv:0?fps=3&fps=4", "twice"),
    ("opencv:0?size=big", "WIDTHxHEIGHT"), ("opencv:0?fix=yes", "0 or 1"),
    ("opencv:0?refused=ignore", "warn or fail"), ("opencv:0?fourcc=MJPEG", "four letters"),
    ("ros1:/a?exposure=3", "compressed"), ("ros2:/a?domain=300", "232"),
    ("test:pattern?loop=1", "crop, rectify"), ("none?fps=3", "none"),
    ("sim:mujoco/Push/front", "backends"), ("none", "no camera of this machine"),
    ("test:chart", "pattern"), ("ros1:image", "from the root"), (None, "opencv:0"),
])
def test_a_wrong_source_is_refused_with_the_valid_ones(source, said):
    with pytest.raises(InvalidInputError, match=said):
        make(source)


@pytest.mark.parametrize("source, said", [
    ("opencv:973", "no /dev/video973"), ("opencv:/dev/video973", "video devices here"),
    ("opencv:/no/such.mp4", "no such file"), ("opencv:rtsp://127.0.0.1:9/x", "cannot be opened"),
])
def test_a_camera_that_is_not_there_is_refused(source, said):
    with pytest.raises(InvalidInputError, match=said):
        make(source)


# -- stamps -------------------------------------------------------------------------------------


def test_device_stamps_come_out_at_the_time_of_measurement():
    rng = np.random.default_rng(0)
    mapped, offset_s, least_s = ClockMap(), -4321.0, 0.012
    errors = []
    for n in range(600):
        taken_s = 50.0 + n / 30.0
        received_s = taken_s + least_s + rng.exponential(0.02)
        stamp_s = mapped.to_rig(taken_s + offset_s, received_s)
        assert stamp_s <= received_s + 1e-9
        errors.append(stamp_s - taken_s)
    # After the first moments the least delay is known; that part nobody can tell from the offset.
    assert max(abs(np.array(errors[100:]) - least_s)) < 0.003


def test_a_drifting_device_clock_is_followed():
    mapped = ClockMap(window_s=10.0)
    for n in range(9000):
        taken_s = n / 30.0
        stamp_s = mapped.to_rig(taken_s * (1.0 + 1e-4), taken_s + 0.01)
    # Without forgetting, the difference would have grown to 30 ms.
    assert stamp_s - taken_s == pytest.approx(0.01, abs=0.002)


@pytest.mark.parametrize("step_s", [3600.0, -3600.0, 0.5, -0.5])
def test_a_device_clock_that_is_set_is_no_reason_to_stop(step_s):
    mapped = ClockMap()
    for n in range(60):
        device_s = n / 30.0 + (step_s if n >= 30 else 0.0)
        received_s = n / 30.0 + 0.01
        assert not mapped.is_repeat(device_s)
        assert 0.0 <= received_s - mapped.to_rig(device_s, received_s) < 0.03


def test_a_stamp_that_stands_still_is_an_old_frame():
    mapped = ClockMap()
    mapped.to_rig(5.0, 10.0)
    assert mapped.is_repeat(5.0) and mapped.is_repeat(4.97)
    assert not mapped.is_repeat(5.03)


def test_the_smallest_difference_in_the_window_is_the_brute_force_one():
    rng = np.random.default_rng(3)
    mapped, seen = ClockMap(window_s=1.0), []
    for n in range(500):
        received_s = n / 50.0
        device_s = received_s - rng.uniform(0.0, 0.09)
        seen.append((received_s, received_s - device_s))
        least_s = min(d for r, d in seen if r >= received_s - 1.0)
        assert mapped.to_rig(device_s, received_s) == pytest.approx(device_s + least_s)


# -- processing ---------------------------------------------------------------------------------


CAMERA_INFO = """\
image_width: 160
image_height: 120
camera_name: front
camera_matrix: {{rows: 3, cols: 3, data: [130, 0, 82, 0, 128, 57, 0, 0, 1]}}
distortion_model: {model}
distortion_coefficients: {{rows: 1, cols: {n}, data: {data}}}
rectification_matrix: {{rows: 3, cols: 3, data: [1, 0, 0, 0, 1, 0, 0, 0, 1]}}
projection_matrix: {{rows: 3, cols: 4, data: [120, 0, 80, 0, 0, 120, 60, 0, 0, 0, 1, 0]}}
"""


def calibration_file(tmp_path, model, data):
    path = tmp_path / "camera.yaml"
    path.write_text(CAMERA_INFO.format(model=model, n=len(data), data=list(data)))
    return path


def distorted(model, data, x, y):
    """Where a ray (x, y, 1) meets the raw picture, by the models' own formulas."""
    r2 = x * x + y * y
    if model == "equidistant":
        theta = np.arctan(np.sqrt(r2))
        poly = 1 + sum(k * theta ** (2 * i + 2) for i, k in enumerate(data))
        scale = np.where(r2 > 0, theta * poly / np.sqrt(np.maximum(r2, 1e-12)), 1.0)
        return 130 * x * scale + 82, 128 * y * scale + 57
    k1, k2, p1, p2, *more = [*data, 0, 0, 0, 0][:8]
    k3, k4, k5, k6 = more
    radial = (1 + k1 * r2 + k2 * r2**2 + k3 * r2**3) / (1 + k4 * r2 + k5 * r2**2 + k6 * r2**3)
    xd = x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x)
    yd = y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y
    return 130 * xd + 82, 128 * yd + 57


@pytest.mark.parametrize("model, data", [
    ("plumb_bob", (-0.25, 0.06, 0.001, -0.002, 0.01)),
    ("rational_polynomial", (0.3, -0.1, 0.001, 0.001, 0.02, 0.5, -0.05, 0.01)),
    ("equidistant", (-0.02, 0.01, -0.004, 0.001)),
])
def test_rectifying_agrees_with_the_models_formula(tmp_path, model, data):
    rows, columns = np.mgrid[0:120, 0:160].astype(np.float64)
    image = np.stack([columns, 2 * rows, 255 - columns], axis=2).astype(np.uint8)
    found = Processor(calibration=read_calibration(calibration_file(tmp_path, model, data)))(image)
    u, v = distorted(model, data, (columns - 80) / 120, (rows - 60) / 120)
    inside = (u > 1) & (u < 158) & (v > 1) & (v < 118)
    assert inside.mean() > 0.6
    wanted = np.stack([u, 2 * v, 255 - u], axis=2)
    assert np.abs(found.astype(float) - wanted)[inside].max() <= 1.2


def test_rectifying_agrees_with_undistort(tmp_path):
    rng = np.random.default_rng(0)
    image = cv2.GaussianBlur(rng.integers(0, 255, (120, 160, 3), np.uint8), (9, 9), 0)
    data = (-0.25, 0.06, 0.001, -0.002, 0.01)
    found = Processor(calibration=read_calibration(
        calibration_file(tmp_path, "plumb_bob", data)))(image)
    matrix = np.array([[130, 0, 82], [0, 128, 57], [0, 0, 1.0]])
    wanted = cv2.undistort(image, matrix, np.array(data), None,
                           np.array([[120, 0, 80], [0, 120, 60], [0, 0, 1.0]]))
    assert np.abs(found.astype(int) - wanted).max() <= 2


def test_scaling_down_takes_the_mean_of_areas():
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (96, 144, 3), np.uint8)
    found = Processor(24, 48)(image)
    wanted = image.reshape(24, 4, 48, 3, 3).mean(axis=(1, 3))
    assert found.flags["C_CONTIGUOUS"] and found.dtype == np.uint8
    assert np.abs(found - wanted).max() <= 0.5 + 1e-6


def test_a_crop_is_cut_out_and_copied():
    image = np.arange(10 * 12 * 3, dtype=np.uint8).reshape(10, 12, 3)
    found = Processor(crop=(2, 3, 5, 4))(image)
    assert np.array_equal(found, image[3:7, 2:7]) and not np.shares_memory(found, image)
    same = Processor()(image)
    assert np.array_equal(same, image) and not np.shares_memory(same, image)


@pytest.mark.parametrize("text, said", [
    ("a: 1", "distortion_model"), ("[1, 2]", "camera_info"), ("{", "cannot be read"),
    (CAMERA_INFO.format(model="division", n=1, data=[1]), "plumb_bob"),
    (CAMERA_INFO.format(model="plumb_bob", n=3, data=[1, 2, 3]), "4 or 5"),
    (CAMERA_INFO.format(model="plumb_bob", n=4, data=["x", 1, 1, 1]), "finite"),
    (CAMERA_INFO.format(model="plumb_bob", n=4, data=[".nan", 1, 1, 1]), "finite"),
    (CAMERA_INFO.format(model="plumb_bob", n=4, data=[0] * 4).replace("160", "-1"), "image_width"),
])
def test_a_calibration_that_is_none_is_refused(tmp_path, text, said):
    path = tmp_path / "bad.yaml"
    path.write_text(text.replace("'", ""))
    with pytest.raises(InvalidInputError, match=said):
        read_calibration(path)


@pytest.mark.parametrize("query, said", [
    ("crop=600,0,100,100", "outside pictures of 640 x 480"), ("rectify={}", "160 x 120"),
])
def test_options_that_do_not_fit_the_pictures_are_refused(tmp_path, query, said):
    path = calibration_file(tmp_path, "plumb_bob", (0.1, 0, 0, 0))
    with pytest.raises(InvalidInputError, match=said):
        make("test:pattern?" + query.format(path))


# -- settings -----------------------------------------------------------------------------------


class Knobs:
    """A device with automatics; ``deaf`` knobs keep what they have."""

    def __init__(self, deaf=(), lacking=()):
        self.values = {"exposure": 333.0, "auto_exposure": 1.0, "gain": 10.0,
                       "white_balance": 5000.0, "auto_white_balance": 1.0, "focus": 30.0,
                       "auto_focus": 1.0}
        for name in lacking:
            del self.values[name]
        self.deaf = deaf

    def get(self, name):
        return self.values.get(name)

    def set(self, name, value):
        if name in self.deaf or name not in self.values:
            return False
        self.values[name] = value
        return True


def test_settings_are_fixed_and_the_automatics_off():
    knobs = Knobs()
    done = apply_settings(knobs, CameraOptions(exposure=120.0, white_balance=4600.0), "front")
    assert done.refused == []
    assert done.values == {"exposure": 120.0, "gain": 10.0, "white_balance": 4600.0, "focus": 30.0}
    assert [knobs.values[f"auto_{n}"] for n in ("exposure", "white_balance", "focus")] == [0, 0, 0]


def test_without_fix_only_what_is_asked_for_changes():
    knobs = Knobs()
    apply_settings(knobs, CameraOptions(exposure=120.0, fix=False), "front")
    assert knobs.values["auto_exposure"] == 0.0 and knobs.values["auto_white_balance"] == 1.0
    apply_settings(knobs, CameraOptions(exposure="auto", fix=False), "front")
    assert knobs.values["auto_exposure"] == 1.0


@pytest.mark.parametrize("knobs, options, said", [
    (Knobs(deaf=("exposure",)), {"exposure": 120.0}, "exposure=120: the device says 333"),
    (Knobs(deaf=("auto_exposure",)), {"exposure": 120.0}, "did not switch automatic exposure off"),
    (Knobs(lacking=("focus", "auto_focus")), {"focus": 5.0}, "the device has no focus"),
    (Knobs(lacking=("auto_focus",)), {"focus": "auto"}, "no automatic focus"),
])
def test_what_a_device_refuses_is_said_or_an_error(knobs, options, said):
    done = apply_settings(knobs, CameraOptions(**options), "front")
    assert len(done.refused) == 1 and said in done.refused[0]
    with pytest.raises(InvalidInputError, match="'front'"):
        apply_settings(knobs, CameraOptions(**options, refused="fail"), "front")


def test_a_device_without_knobs_is_left_alone():
    done = apply_settings(Knobs(lacking=list(Knobs().values)), CameraOptions(), "front")
    assert done == Settings()


# -- webcams ------------------------------------------------------------------------------------
