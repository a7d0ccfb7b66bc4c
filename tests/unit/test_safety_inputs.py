"""What the filter is told in odd moments and odd ways: interrupts, settings, readings."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from robot_rl.errors import InvalidInputError, LateCommandError, SafetyError
from robot_rl.interfaces import JointState
from robot_rl.safety import Latch, SafetyConfig, SafetyFilter, Watchdog

PERIOD_S = 0.1

# -- commands that are interrupted --------------------------------------------------------------


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("what", ["move", "hold"])
def test_an_interrupted_command_makes_no_step(bench, monkeypatch, when, what):
    at = bench(lead_rows=2)
    for _ in range(4):
        at.step([0.02, 0.0, 0.0])
    command, calls = at.arm.command, []

    def interrupted(setpoints):
        calls.append(setpoints)
        if len(calls) > 1 or when == "after":
            command(setpoints)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return setpoints

    monkeypatch.setattr(at.arm, "command", interrupted)
    with pytest.raises(KeyboardInterrupt):
        if what == "move":
            at.safety.move([-0.03, 0.01, 0.0], 0.0, PERIOD_S)
        else:
            at.safety.hold("stop")
    assert len(calls) == 2 and calls[0] is calls[1]
    at.wait(0.03)
    at.safety.hold("stop")
    at.wait(1.0)
    rows = np.array(at.arm.rows)
    acceleration = 0.9 * at.arm.spec.limits("acceleration_rad_s2")
    assert (np.abs(np.diff(rows, 2, axis=0)) / 1e-4 <= acceleration).all()
    np.testing.assert_array_equal(at.safety._plan.rows[-1, 0], rows[-1])


def test_an_interrupted_command_that_is_late_by_then_stays_an_interrupt(bench, monkeypatch):
    at = bench()
    plan = at.safety._plan
    calls = []

    def interrupted(setpoints):
        calls.append(setpoints)
        raise KeyboardInterrupt if len(calls) == 1 else LateCommandError("gone")

    monkeypatch.setattr(at.arm, "command", interrupted)
    with pytest.raises(KeyboardInterrupt):
        at.safety.move([0.01, 0.0, 0.0], 0.0, PERIOD_S)
    assert at.safety._plan is None is not plan, "nobody knows which one the arm has"
    assert "a command was interrupted" in at.safety.held


# -- re-arming ----------------------------------------------------------------------------------


def test_rows_that_are_lost_are_not_waited_for_for_ever(bench):
    at = bench()
    at.step([0.03, 0.0, 0.0])
    at.safety.move([0.03, 0.0, 0.0], 0.0, PERIOD_S)
    at.wait(0.02)
    at.safety.hold("stop")
    left_s = len(at.arm.queue) * 0.01
    at.arm.put(at.arm.position_rad)
    at.wait(3.0 * left_s - 0.011)
    with pytest.raises(SafetyError, match="still coming to rest"):
        at.safety.rearm()
    at.wait(0.022)
    at.safety.rearm()
    assert at.safety.held is None and np.array_equal(at.safety.setpoint_rad, at.arm.position_rad)


def test_a_moving_arm_that_is_not_held_is_not_rearmed(bench):
    at = bench()
    at.wait(5.0)
    at.step([0.03, 0.0, 0.0])
    with pytest.raises(SafetyError, match="still coming to rest"):
        at.safety.rearm()


# -- the watchdog -------------------------------------------------------------------------------


def test_a_watchdog_outlives_what_it_looks_at():
    class Broken:
        looks = 0
        enough = threading.Event()

        def watch(self) -> None:
            self.looks += 1
            if self.looks == 3:
                self.enough.set()
            raise RuntimeError("broken")

    broken = Broken()
    with Watchdog(broken, 0.005):
        assert broken.enough.wait(10.0)


# -- configuration ------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.array(0.05), "0.5", None, True, np.True_, [0.5], 1j,
                                   10**400])
@pytest.mark.parametrize("name", ["velocity_fraction", "silence_s", "joint_margin_rad",
                                  "max_force_n"])
def test_a_limit_is_one_plain_number(name, value):
    if name == "max_force_n" and value is None:
        return
    with pytest.raises(InvalidInputError, match=rf"^safety: {name} is .*, should be a number$"):
        SafetyConfig(**{name: value})


def test_limits_are_kept_as_plain_floats():
    low = np.array([-0.1, -0.1, 0.02])
    config = SafetyConfig(velocity_fraction=np.float32(0.5), max_speed_m_s=1, box_min_m=low,
                          joint_margin_rad=0, max_force_n=np.int64(20))
    low[:] = -9.0
    assert config.box_min_m == (-0.1, -0.1, 0.02)
    for name in ("velocity_fraction", "max_speed_m_s", "joint_margin_rad", "max_force_n"):
        assert type(getattr(config, name)) is float
    assert [type(x) for x in config.box_min_m] == [float] * 3 and type(config.box_min_m) is tuple


@pytest.mark.parametrize("value", ["abc", None, 3.0, (0, 0, "x"), (0, 0, True), ((0, 0, 0),),
                                   {0.0, 0.1}])
def test_a_corner_of_the_box_is_three_plain_numbers(value):
    for name in ("box_min_m", "box_max_m"):
        with pytest.raises(InvalidInputError, match=r"^safety box: box_min_m and box_max_m are "):
            SafetyConfig(**{name: value})


def test_the_least_box_is_one_wherever_it_is():
    for low in np.linspace(-0.3, 0.3, 41):
        corner = np.array([low, low, low])
        config = SafetyConfig(box_min_m=corner, box_max_m=corner + 0.01)
        assert config.box_min_m == tuple(corner) and config.box_max_m == tuple(corner + 0.01)


def test_nothing_but_a_configuration_is_taken_for_one(bench):
    class Wide(SafetyConfig):
        def __post_init__(self) -> None: ...

    at = bench()
    for config in (Wide(velocity_fraction=3.0), {"velocity_fraction": 3.0}, JointState, "wide"):
        with pytest.raises(InvalidInputError, match=r"^safety is a \w+, not a SafetyConfig$"):
            SafetyFilter(at.arm, at.gripper, at.clock, config)


# -- what is measured and asked -----------------------------------------------------------------


@pytest.mark.parametrize(("ahead_s", "held"), [(0.0499, False), (0.0501, True), (np.inf, True)])
def test_a_state_from_the_future_is_not_fresh(bench, monkeypatch, ahead_s, held):
    at = bench()
    state = JointState(at.arm.position_rad, np.zeros(7), ahead_s)
    monkeypatch.setattr(at.arm, "state", lambda age: state)
    at.safety.watch()
    assert at.safety.held == (f"the arm's state is {-ahead_s:.2f} s old" if held else None)


@pytest.mark.parametrize("sizes", [(6, 7), (7, 6), (7, 0)])
def test_an_arm_that_reports_other_joints_is_held(bench, monkeypatch, sizes):
    at = bench()
    state = JointState(np.zeros(sizes[0]), np.zeros(sizes[1]), 0.0)
    monkeypatch.setattr(at.arm, "state", lambda age: state)
    with pytest.raises(SafetyError, match=r"^the arm reports .*, should be 7 finite numbers each$"):
        at.safety.measure()
    assert "7 finite numbers" in at.safety.held


def test_what_was_measured_is_handed_out_as_a_copy(bench):
    at = bench()
    for array in at.safety.measure():
        array += 5.0
    assert np.abs(at.safety._measured_tool).max() < 1.0
    assert np.abs(at.safety._measured_velocity).max() < 1.0


def test_what_is_missing_or_no_array_is_refused(bench):
    class Strange:
        def __array__(self, *_: object, **__: object) -> None:
            raise RuntimeError("it needs grad")

    at = bench()
    here = at.safety.setpoint_rad
    for opening in (np.ma.masked, np.ma.array(0.5, mask=True), Strange()):
        with pytest.raises(SafetyError, match=r"(?s)^command refused: gripper opening is .*numb"):
            at.safety.grip(opening)
    for target in (np.ma.masked_all(7), np.ma.array(here, mask=[True] + [False] * 6)):
        with pytest.raises(SafetyError, match=r"^command refused: joint target is"):
            at.safety.move_joints(target, PERIOD_S)
    assert at.gripper.sent == [] and not at.arm.commands


def test_one_arm_under_two_descriptions_has_one_hold(tmp_path):
    assert Latch("panda", "franka:10.0.0.2", tmp_path).write("x")
    assert Latch("fr3", "franka:10.0.0.2", tmp_path).reason() == "x"


# -- the gripper --------------------------------------------------------------------------------


@pytest.mark.parametrize("trouble", [None, OSError("the cable is out")])
def test_a_hold_and_a_rearm_let_the_gripper_forget_what_waits(bench, trouble):
    at, halts = bench(), []

    def halt() -> None:
        halts.append(len(at.arm.commands))
        if trouble is not None:
            raise trouble

    at.gripper.halt = halt
    at.step([0.02, 0.0, 0.0])
    at.safety.hold("stop")
    assert halts == [2], "once the arm brakes"
    at.safety.hold("again")
    at.wait(1.0)
    at.safety.rearm()
    assert halts == [2, 2] and at.safety.held is None and at.gripper.sent == []
