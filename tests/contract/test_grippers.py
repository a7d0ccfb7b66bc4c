"""One suite for every gripper, clock and tracker: what the protocols promise."""

from __future__ import annotations

import numpy as np
import pytest

from robot_rl.envs.tasks import make_task
from robot_rl.errors import InvalidInputError, SafetyError, StaleDataError
from robot_rl.interfaces import (
    Clock,
    ForceSensor,
    Gripper,
    ObjectTracker,
    Sensor,
)

ENGINES = ("mujoco-sawyer", "mujoco-panda", "pybullet-sawyer", "pybullet-fr3")
DRIVERS = ("ros1-sawyer", "ros2-fr3", "franky-fr3")
EVERY = pytest.mark.parametrize("bench", (*ENGINES, *DRIVERS), indirect=True)
TRACKED = pytest.mark.parametrize("bench", (*ENGINES, "ros1-sawyer", "ros2-fr3"), indirect=True)


# -- grippers -----------------------------------------------------------------------------------


@EVERY
def test_a_gripper_goes_to_the_opening_it_is_told(bench):
    gripper = bench.rig.gripper
    assert isinstance(gripper, Gripper)
    for wanted in (1.0, 0.0, 0.6):
        assert gripper.command(wanted) == wanted
        bench.until(lambda wanted=wanted: abs(gripper.opening(1.0) - wanted) < 0.06,
                    f"opening {wanted}")
    assert isinstance(gripper.opening(1.0), float)


@EVERY
def test_the_newest_opening_counts(bench):
    gripper = bench.rig.gripper
    for wanted in (1.0, 0.0, 0.3, 0.9):
        gripper.command(wanted)
        bench.wait(0.03)
    bench.until(lambda: abs(gripper.opening(1.0) - 0.9) < 0.06, "the newest opening")
    bench.wait(0.3)
    assert abs(gripper.opening(1.0) - 0.9) < 0.06, "an older opening came after it"


@EVERY
def test_openings_are_kept_within_the_stroke(bench):
    gripper = bench.rig.gripper
    assert gripper.command(7.0) == 1.0
    assert gripper.command(-7.0) == 0.0
    for value in (np.nan, np.inf, -np.inf):
        with pytest.raises((InvalidInputError, SafetyError)):
            gripper.command(value)
    bench.until(lambda: gripper.opening(1.0) < 0.06, "the last opening that made sense")


@EVERY
def test_an_opening_that_is_too_old_is_refused(bench):
    gripper = bench.rig.gripper
    for age in (-1.0, np.nan):
        with pytest.raises(StaleDataError):
            gripper.opening(age)
    assert 0.0 <= gripper.opening(2.0) <= 1.0


# -- clocks -------------------------------------------------------------------------------------


@EVERY
def test_a_clock_only_goes_forward(bench):
    clock = bench.rig.clock
    assert isinstance(clock, Clock)
    begun = clock.now_s()
    clock.sleep_until(begun + 0.05)
    assert clock.now_s() >= begun + 0.05 - 1e-6
    assert clock.now_s() < begun + 5.0
    now = clock.now_s()
    clock.sleep_until(begun)
    assert now <= clock.now_s() < now + 1.0
    for value in (np.nan, np.inf):
        with pytest.raises(InvalidInputError):
            clock.sleep_until(value)


# -- trackers and sensors -------------------------------------------------------------------------


@TRACKED
def test_a_tracker_tells_where_things_are(bench):
    tracker = bench.rig.tracker
    assert isinstance(tracker, ObjectTracker)
    drawer = tracker.body("drawer", 2.0)
    assert drawer.position_m.shape == drawer.velocity_m_s.shape == (3,)
    assert drawer.angular_velocity_rad_s.shape == (3,)
    assert np.linalg.norm(drawer.quat_xyzw) == pytest.approx(1.0, abs=1e-6)
    position, velocity = tracker.joint("drawer_slide", 2.0)
    assert -0.001 <= position <= 0.151 and abs(velocity) < 0.05
    # The drawer opens along -x from its place.
    place = make_task("Drawer").scene().body("drawer").position_m
    np.testing.assert_allclose(drawer.position_m, np.array(place) - [position, 0.0, 0.0],
                               atol=1e-3)
    drawer.position_m[:] = 9.0
    assert abs(tracker.body("drawer", 2.0).position_m).max() < 1.0
    with pytest.raises(InvalidInputError):
        tracker.body("nothing", 2.0)
    with pytest.raises(InvalidInputError):
        tracker.joint("nothing", 2.0)
    with pytest.raises(StaleDataError):
        tracker.body("drawer", -1.0)
    with pytest.raises(StaleDataError):
        tracker.joint("drawer_slide", -1.0)


@TRACKED
def test_the_scenes_sensors_read_what_the_tracker_sees(bench):
    sensors = bench.rig.sensors
    assert list(sensors) == ["drawer"]
    sensor = sensors["drawer"]
    assert isinstance(sensor, Sensor) and (sensor.name, sensor.unit) == ("drawer", "m")
    bench.until(lambda: _reads(sensor), "a first reading")
    reading = sensor.read(2.0)
    assert isinstance(reading.value, float) and 0.0 <= bench.rig.clock.now_s() - reading.stamp_s < 2
    assert reading.value == pytest.approx(bench.rig.tracker.joint("drawer_slide", 2.0)[0], abs=1e-3)
    bench.until(lambda: sensor.read(2.0).stamp_s > reading.stamp_s, "a newer reading")
    with pytest.raises(StaleDataError):
        sensor.read(-1.0)


def _reads(sensor: Sensor) -> bool:
    try:
        sensor.read(2.0)
    except StaleDataError:
        return False
    return True


@TRACKED
def test_a_force_sensor_is_zero_once_it_was_zeroed(bench):
    force = bench.rig.force
    assert isinstance(force, ForceSensor)
    bench.wait(0.2)
    force.zero()
    wrench = force.wrench(1.0)
    assert wrench.force_n.shape == wrench.torque_nm.shape == (3,)
    assert np.abs(wrench.force_n).max() < 1.0 and np.abs(wrench.torque_nm).max() < 0.3
    wrench.force_n[:] = 99.0
    assert np.abs(force.wrench(1.0).force_n).max() < 1.0
    bench.until(lambda: force.wrench(1.0).stamp_s > wrench.stamp_s, "a newer reading")
    with pytest.raises(StaleDataError):
        force.wrench(-1.0)
