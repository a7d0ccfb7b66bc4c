"""Sensors on a serial line (a real pseudo-terminal) and on topics, and how they become a rig's."""

from __future__ import annotations

import itertools
import os
import threading
import time
import tty
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from robot_rl.envs.tasks import make_task
from robot_rl.errors import InvalidInputError, StaleDataError
from robot_rl.interfaces import ForceSensor, JointState, Sensor
from robot_rl.specs import load_robot
from robot_rl_drivers.clock import MonotonicClock
from robot_rl_drivers.sensors.factory import make_force, make_sensors, sensor_options
from robot_rl_drivers.sensors.latest import Latest
from robot_rl_drivers.sensors.serial_line import SerialSensor
from robot_rl_drivers.sensors.topics import (
    VALUE_TYPE,
    WRENCH_TYPE,
    TopicSensor,
    TopicWrench,
)

pytest.importorskip("serial")


class Device:
    """The other end of a serial line: what a microcontroller does, on a pseudo-terminal."""

    def __init__(self) -> None:
        self.hand, line = os.openpty()
        tty.setraw(line)
        self.port = os.ttyname(line)
        self._line = line
        self._stop: threading.Event | None = None

    def send(self, data: bytes) -> None:
        os.write(self.hand, data)

    def repeat(self, text: Callable[[], bytes], period_s: float = 0.01) -> None:
        """Send lines until :meth:`quiet`."""
        self._stop = stop = threading.Event()

        def run() -> None:
            while not stop.wait(period_s):
                self.send(text())

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()

    def quiet(self) -> None:
        if self._stop is not None:
            self._stop.set()
            self._thread.join()
            self._stop = None

    def unplug(self) -> None:
        """The device is gone: a read of the line fails."""
        self.quiet()
        if self.hand >= 0:
            os.close(self.hand)
            os.close(self._line)
            self.hand = -1


class StillClock:
    def __init__(self) -> None:
        self.time_s = 10.0

    def now_s(self) -> float:
        return self.time_s

    def sleep_until(self, time_s: float) -> None:
        self.time_s = max(self.time_s, time_s)


def eventually(what: Callable[[], bool], within_s: float = 10.0) -> bool:
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        if what():
            return True
        time.sleep(0.005)
    return False


@pytest.fixture
def device() -> Iterator[Device]:
    made = Device()
    yield made
    made.unplug()


@pytest.fixture
def sensor(device: Device) -> Iterator[SerialSensor]:
    made = SerialSensor("drawer", "m", device.port, MonotonicClock(), scale=0.001, low=-0.1,
                        high=0.2)
    yield made
    made.close()


def value_of(sensor: Sensor, max_age_s: float = 5.0) -> float | None:
    try:
        return sensor.read(max_age_s).value
    except StaleDataError:
        return None


# -- serial line ----------------------------------------------------------------------------------


def test_a_serial_line_gives_the_newest_number_scaled(device, sensor):
    assert isinstance(sensor, Sensor) and (sensor.name, sensor.unit) == ("drawer", "m")
    with pytest.raises(StaleDataError, match="nothing yet"):
        sensor.read(1.0)
    # The first line may have lost its beginning, so 999 must never be seen.
    device.send(b"99\n120.5\r\n")
    assert eventually(lambda: value_of(sensor) is not None)
    assert sensor.read(5.0).value == pytest.approx(0.1205)
    device.send(b"# a comment\n\n  -3e1  \n")
    assert eventually(lambda: value_of(sensor) == pytest.approx(-0.03))
    assert sensor.bad_lines == 0


def test_a_number_in_two_parts_is_one_number(device, sensor):
    device.send(b"0\n15")
    time.sleep(0.15)
    assert value_of(sensor) is None
    device.send(b"0\n")
    assert eventually(lambda: value_of(sensor) is not None)
    assert sensor.read(5.0).value == pytest.approx(0.15)


@pytest.mark.parametrize(
    "line", [b"nan", b"inf", b"-inf", b"1e999", b"1_0", b"0x10", b"12 13", b"\xff\xfe", b"1.2.3",
             b"201", b"-101", b"one", b"1" * 64 + b".0", b"\x00"],
)
def test_a_bad_line_is_counted_and_left_out(device, sensor, line):
    device.send(b"\n50\n")
    assert eventually(lambda: value_of(sensor) == pytest.approx(0.05))
    device.send(line + b"\n")
    assert eventually(lambda: sensor.bad_lines == 1)
    assert sensor.read(5.0).value == pytest.approx(0.05)
    device.send(b"60\n")
    assert eventually(lambda: value_of(sensor) == pytest.approx(0.06))


def test_a_line_without_end_is_thrown_away(device, sensor):
    device.send(b"\n" + b"7" * 300)
    assert eventually(lambda: sensor.bad_lines >= 1)
    device.send(b"70\n80\n")
    assert eventually(lambda: value_of(sensor) == pytest.approx(0.08))


def test_a_quiet_line_is_stale(device, sensor):
    device.repeat(lambda: b"100\n")
    assert eventually(lambda: value_of(sensor, 0.5) == pytest.approx(0.1))
    stamp = sensor.read(0.5).stamp_s
    assert eventually(lambda: sensor.read(0.5).stamp_s > stamp)
    device.quiet()
    assert eventually(lambda: value_of(sensor, 0.1) is None)
    with pytest.raises(StaleDataError, match=r"'drawer' on .* is \d+\.\d+ s old.*at most 0\.1 s"):
        sensor.read(0.1)


def test_only_bad_lines_say_so(device, sensor):
    device.send(b"\nnan\n")
    assert eventually(lambda: sensor.bad_lines == 1)
    with pytest.raises(StaleDataError, match="1 lines were bad, the last b'nan'"):
        sensor.read(1.0)


def test_a_pulled_cable_is_stale_and_found_again(device, tmp_path):
    link = tmp_path / "tty"
    link.symlink_to(device.port)
    sensor = SerialSensor("contact", "", str(link), MonotonicClock())
    try:
        device.repeat(lambda: b"1\n")
        assert eventually(lambda: value_of(sensor, 0.3) == 1.0)
        device.unplug()
        link.unlink()
        assert eventually(lambda: value_of(sensor, 0.1) is None)
        assert eventually(lambda: "line was lost" in str(_error(sensor))
                          or "cannot open" in str(_error(sensor)))
        again = Device()
        link.symlink_to(again.port)
        again.repeat(lambda: b"0\n")
        try:
            assert eventually(lambda: value_of(sensor, 0.3) == 0.0)
        finally:
            sensor.close()
            again.unplug()
    finally:
        sensor.close()


def _error(sensor: Sensor) -> StaleDataError | None:
    try:
        sensor.read(0.05)
    except StaleDataError as error:
        return error
    return None


def test_what_waited_while_the_process_was_stopped_is_not_news(device, monkeypatch):
    from robot_rl_drivers.sensors import serial_line

    # The reader's own clock leaps, as after SIGSTOP and SIGCONT, with old lines in the buffer.
    leap = [0.0]
    real = time.monotonic
    monkeypatch.setattr(serial_line, "_now_s", lambda: real() + leap[0])
    sensor = SerialSensor("drawer", "m", device.port, MonotonicClock())
    try:
        device.send(b"\n1\n")
        assert eventually(lambda: value_of(sensor) == 1.0)
        leap[0] = 10.0
        device.send(b"2\n")
        time.sleep(0.2)
        assert value_of(sensor) == 1.0
        device.send(b"3\n4\n")
        assert eventually(lambda: value_of(sensor) == 4.0)
    finally:
        sensor.close()


def test_a_serial_sensor_refuses_what_it_cannot_use(device, tmp_path):
    clock = MonotonicClock()
    with pytest.raises(InvalidInputError, match="cannot open the serial port"):
        SerialSensor("a", "m", str(tmp_path / "none"), clock)
    with pytest.raises(InvalidInputError, match="scale"):
        SerialSensor("a", "m", device.port, clock, scale=0.0)
    with pytest.raises(InvalidInputError, match="low"):
        SerialSensor("a", "m", device.port, clock, low=1.0, high=1.0)


def test_closing_twice_is_closing_once(device):
    sensor = SerialSensor("a", "m", device.port, MonotonicClock())
    sensor.close()
    sensor.close()
    assert not [t for t in threading.enumerate() if t.name == "sensor a"]


# -- topics -----------------------------------------------------------------------------------


class Wire:
    """Topics without a network: a callback for each."""

    def __init__(self) -> None:
        self.callbacks: dict[str, tuple[str, Callable[[Any], None]]] = {}
        self.ended: list[str] = []

    def subscribe(self, topic: str, kind: str, callback: Callable[[Any], None]) -> Any:
        self.callbacks[topic] = (kind, callback)
        return SimpleNamespace(close=lambda: self.ended.append(topic))

    def send(self, topic: str, message: Any) -> None:
        self.callbacks[topic][1](message)


def test_a_value_on_a_topic_is_a_reading():
    wire, clock = Wire(), StillClock()
    sensor = TopicSensor("contact", "", clock, wire.subscribe)
    assert wire.callbacks["/robot_rl/sensors/contact"][0] == "std_msgs/msg/Float64"
    with pytest.raises(StaleDataError, match="nothing yet"):
        sensor.read(1.0)
    wire.send("/robot_rl/sensors/contact", SimpleNamespace(data=1.0))
    clock.time_s = 10.5
    reading = sensor.read(0.5)
    assert (reading.value, reading.stamp_s) == (1.0, 10.0)
    clock.time_s = 10.51
    with pytest.raises(StaleDataError, match=r"0\.510 s old"):
        sensor.read(0.5)
    wire.send("/robot_rl/sensors/contact", SimpleNamespace(data=float("nan")))
    assert sensor.bad_messages == 1
    with pytest.raises(StaleDataError, match="it sends nan"):
        sensor.read(0.5)
    sensor.close()
    sensor.close()
    assert wire.ended == ["/robot_rl/sensors/contact"]


def wrench_message(values: Any, sec: int, nanosec: int, ros: int) -> Any:
    names = ("sec", "nanosec") if ros == 2 else ("secs", "nsecs")
    axes = ("x", "y", "z")
    return SimpleNamespace(
        header=SimpleNamespace(stamp=SimpleNamespace(**dict(zip(names, (sec, nanosec),
                                                                strict=True)))),
        wrench=SimpleNamespace(
            force=SimpleNamespace(**dict(zip(axes, values[:3], strict=True))),
            torque=SimpleNamespace(**dict(zip(axes, values[3:], strict=True))),
        ),
    )


@pytest.mark.parametrize("ros", [1, 2])
def test_a_wrench_on_a_topic_goes_stale_when_its_stamps_stand_still(ros):
    wire, clock = Wire(), StillClock()
    source = TopicWrench(clock, wire.subscribe, "/ft")
    wire.send("/ft", wrench_message([1, 2, 3, 4, 5, 6], 7, 8, ros))
    wrench = source.wrench(0.1)
    np.testing.assert_array_equal(wrench.force_n, [1, 2, 3])
    np.testing.assert_array_equal(wrench.torque_nm, [4, 5, 6])
    assert wrench.stamp_s == 10.0
    wrench.force_n[:] = 0.0
    assert source.wrench(0.1).force_n[0] == 1.0
    clock.time_s = 10.2
    wire.send("/ft", wrench_message([1, 2, 3, 4, 5, 6], 7, 8, ros))
    assert source.repeated == 1
    with pytest.raises(StaleDataError, match="stamps stand still"):
        source.wrench(0.1)
    # Wall clocks may be set back: only a stamp that stands still is old.
    wire.send("/ft", wrench_message([2, 2, 3, 4, 5, 6], 3, 0, ros))
    assert source.wrench(0.1).force_n[0] == 2.0
    wire.send("/ft", wrench_message([np.inf, 2, 3, 4, 5, 6], 9, 0, ros))
    assert source.bad_messages == 1 and source.wrench(0.1).force_n[0] == 2.0
    # Without stamps there is nothing to compare.
    for _ in range(2):
        clock.time_s += 1.0
        wire.send("/ft", wrench_message([3, 2, 3, 4, 5, 6], 0, 0, ros))
        assert source.wrench(0.1).force_n[0] == 3.0


# -- put together -----------------------------------------------------------------------------


def test_a_scene_gets_the_sensors_it_declares(device):
    scene = make_task("Drawer").scene()
    assert sensor_options(scene) == ("sensor_drawer",)
    wire, clock = Wire(), MonotonicClock()
    assert make_sensors(scene, {}, clock) == {}
    over_ros = make_sensors(scene, {}, clock, wire.subscribe)
    assert list(over_ros) == ["drawer"] and over_ros["drawer"].unit == "m"
    assert list(wire.callbacks) == ["/robot_rl/sensors/drawer"]
    make_sensors(scene, {"sensor_drawer": "topic:/lab/drawer"}, clock, wire.subscribe)
    assert "/lab/drawer" in wire.callbacks
    source = f"serial:{device.port},baud=9600,scale=2,offset=1"
    serial = make_sensors(scene, {"sensor_drawer": source}, clock)["drawer"]
    device.send(b"\n0.05\n")
    assert eventually(lambda: value_of(serial) == pytest.approx(1.1))
    serial.close()
    assert make_sensors(scene, {"sensor_drawer": "none"}, clock, wire.subscribe) == {}
    assert make_sensors(make_task("Door").scene(), {}, clock, wire.subscribe)["door"].unit == "rad"


@pytest.mark.parametrize(
    ("source", "says"),
    [("usb", "valid: topic"), ("serial:", "valid: topic"), ("topic:drawer", "begin with /"),
     ("serial:/dev/none", "cannot open"), ("serial:/dev/none,bauds=1", "valid: baud"),
     ("serial:/dev/none,scale=x", "should be a number"),
     ("serial:/dev/none,scale=nan", "scale"), ("serial:/dev/none,low=nan", "low"),
     *((f"serial:/dev/none,baud={baud}", "baud") for baud in ("nan", "inf", "0", "-1", "9.5")),
     ("serial:/dev/none,scale=1,scale=2", "scale is given twice"),
     ("serial:/dev/no\0ne", "cannot open")],
)
def test_a_source_that_cannot_be_used_is_named(source, says):
    scene = make_task("Drawer").scene()
    with pytest.raises(InvalidInputError, match=says):
        make_sensors(scene, {"sensor_drawer": source}, MonotonicClock(), Wire().subscribe)


def test_without_ros_a_topic_is_refused():
    with pytest.raises(InvalidInputError, match="no ROS"):
        make_sensors(make_task("Drawer").scene(), {"sensor_drawer": "topic"}, MonotonicClock())


def test_the_newest_value_is_whole_under_threads():
    latest: Latest[tuple[int, int]] = Latest("pair", MonotonicClock())
    stop = threading.Event()

    def fill() -> None:
        k = 0
        while not stop.is_set():
            k += 1
            latest.put((k, k))

    thread = threading.Thread(target=fill)
    thread.start()
    try:
        assert eventually(lambda: _has(latest))
        seen = [latest.get(10.0) for _ in range(2000)]
    finally:
        stop.set()
        thread.join()
    assert all(a == b for (a, b), _ in seen)
    assert all(x[1] <= y[1] for x, y in itertools.pairwise(seen))


def _has(latest: Latest[Any]) -> bool:
    try:
        latest.get(10.0)
    except StaleDataError:
        return False
    return True


class Still:
    """An arm at home."""

    def __init__(self) -> None:
        self.spec = load_robot("panda")

    def state(self, max_age_s: float) -> JointState:
        return JointState(np.array(self.spec.home_rad), np.zeros(7), 0.0)


def test_a_wrist_sensor_on_a_topic_is_mounted_and_zeroed():
    wire = Wire()
    clock = StillClock()
    force = make_force("topic:/ft,axes=base,sign=-1", Still(), clock, wire.subscribe)
    assert isinstance(force, ForceSensor)
    stamp = [0]

    def publish(time_s: float) -> None:
        # A reading every millisecond of the clock that zero() waits on.
        clock.time_s = max(clock.time_s, time_s)
        stamp[0] += 1
        wire.send("/ft", wrench_message(signal[0], 1, stamp[0], 2))

    clock.sleep_until = publish  # type: ignore[method-assign]
    signal = [[1.0, 2.0, 3.0, 0.1, 0.2, 0.3]]
    publish(10.0)
    np.testing.assert_array_equal(force.wrench(1.0).force_n, [-1.0, -2.0, -3.0])
    force.zero()
    signal[0] = [1.0, 2.0, 13.0, 0.1, 0.2, 0.3]
    publish(clock.time_s)
    np.testing.assert_allclose(force.wrench(1.0).force_n, [0.0, 0.0, -10.0], atol=1e-12)
    force.close()
    assert wire.ended == ["/ft"]
    # Where the sensor is matters for the torque: above the tool, which points down.
    wire = Wire()
    mounted = make_force("topic:/ft,axes=base,z=-0.1", Still(), StillClock(), wire.subscribe)
    wire.send("/ft", wrench_message([10.0, 0.0, 0.0, 0.0, 0.0, 0.0], 1, 1, 1))
    np.testing.assert_allclose(mounted.wrench(1.0).torque_nm, [0.0, 1.0, 0.0], atol=0.02)


@pytest.mark.parametrize(("source", "says"), [
    ("robot7", "valid: topic:/NAME"), ("topic:ft", "valid: topic"), ("topic:/ft,w=1", "valid: x"),
    ("topic:/ft,z=up", "should be a number"), ("topic:/ft,axes=world", "valid: base, tool"),
    ("topic:/ft,sign=2", "sign"),
])
def test_a_wrist_sensor_that_makes_no_sense_is_refused(source, says):
    with pytest.raises(InvalidInputError, match=says):
        make_force(source, Still(), StillClock(), Wire().subscribe)
    with pytest.raises(InvalidInputError):
        make_force("topic:/ft", Still(), StillClock(), None)


def test_readings_come_over_real_ros_2_topics(monkeypatch):
    pytest.importorskip("cyclonedds")
    pytest.importorskip("rosbags")
    monkeypatch.setenv("ROBOT_RL_ROS_RUNTIME", "embedded")
    from benchmarks.battery.domains import free_domain
    from robot_rl.ros.runtime import SENSOR_DATA, Spinner, destroy, make_node, message, native
    from robot_rl_drivers.franka.transport import subscriber

    node = make_node("sensor_test", domain_id=free_domain())
    spinner = Spinner(node)
    clock = MonotonicClock()
    try:
        sensor = TopicSensor("contact", "", clock, subscriber(node))
        source = TopicWrench(clock, subscriber(node), "/ft")
        value, wrench = (message(kind) for kind in (VALUE_TYPE, WRENCH_TYPE))
        values = node.create_publisher(value, "/robot_rl/sensors/contact", native(SENSOR_DATA))
        wrenches = node.create_publisher(wrench, "/ft", native(SENSOR_DATA))
        sent, felt = value(), wrench()
        sent.data = 1.0
        felt.wrench.force.z = -4.5

        def heard() -> bool:
            felt.header.stamp.nanosec = (felt.header.stamp.nanosec + 1) % 10**9
            values.publish(sent)
            wrenches.publish(felt)
            try:
                return sensor.read(1.0).value == 1.0 and source.wrench(1.0).force_n[2] == -4.5
            except StaleDataError:
                return False

        assert eventually(heard)
        sensor.close()
        source.close()
    finally:
        spinner.close()
        destroy(node)
