"""Any order of calls on the safety filter, of things that happen to its arm, and of time."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from benchmarks.storm.arm import ManualClock, RecordingArm, RecordingGripper
from benchmarks.storm.checker import MAKERS, Limits, StreamChecker
from benchmarks.storm.commands import bad_joints, bad_move, bad_opening
from robot_rl.errors import RobotRLError, SafetyError, StaleDataError
from robot_rl.interfaces import JointState, Wrench
from robot_rl.safety import Latch, SafetyConfig, SafetyFilter
from robot_rl.specs import load_robot

PERIOD_S = 0.1
MOST_FORCE_N = 30.0
CONFIGS = (
    SafetyConfig(max_force_n=MOST_FORCE_N),
    SafetyConfig(max_force_n=MOST_FORCE_N, box_min_m=(-0.1, -0.12, 0.05),
                 box_max_m=(0.12, 0.1, 0.3), max_speed_m_s=0.2, max_yaw_rad=1.0,
                 velocity_fraction=0.5, leash_m=0.02, silence_s=0.08),
)


class Pushed:
    """A force sensor; ``force_n`` along x."""

    def __init__(self) -> None:
        self.force_n = 0.0

    def wrench(self, max_age_s: float) -> Wrench:
        return Wrench(np.array([self.force_n, 0.0, 0.0]), np.zeros(3), 0.0)

    def zero(self) -> None: ...


class FilterMachine(RuleBasedStateMachine):
    """Calls of the filter in any order; ``taken`` is how many commands the arm took in all."""

    taken = 0

    @initialize(
        robot=st.sampled_from(sorted(MAKERS)),
        config=st.sampled_from(CONFIGS),
        follow=st.sampled_from([0.0, 0.5, 0.9]),
        lead=st.integers(1, 4),
        kept=st.booleans(),
    )
    def begin(self, robot: str, config: SafetyConfig, follow: float, lead: int, kept: bool) -> None:
        spec = load_robot(robot)
        self.folder = tempfile.TemporaryDirectory()
        self.latch = Latch(robot, "here", folder=Path(self.folder.name)) if kept else None
        self.clock, self.gripper, self.push = ManualClock(), RecordingGripper(), Pushed()
        self.checker = StreamChecker(spec, 0.01, Limits(
            MAKERS[robot], config.box_min_m, config.box_max_m, config.max_speed_m_s,
            config.velocity_fraction))
        self.arm = RecordingArm(spec, self.clock, lead_rows=lead, follow=follow,
                                on_rows=self.checker.feed)
        self.safety = SafetyFilter(self.arm, self.gripper, self.clock, config, force=self.push,
                                   latch=self.latch)
        self.watched: str | None = None
        self.safety.add_watch("a door", lambda: self.watched)
        low, high = np.array(config.box_min_m), np.array(config.box_max_m)
        self.arm.put(self.safety.posture(0.5 * (low + high)))
        self.safety.sync()
        self.checker.restart(self.arm.position_rad)
        self.reason: str | None = None
        self.sent_when_held = 0

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            FilterMachine.taken += len(self.arm.commands)
            self.folder.cleanup()

    # -- calls -------------------------------------------------------------------------------

    def call(self, act: Any) -> Any:
        """The result of a call, or the error of ours that it raised."""
        try:
            return act()
        except RobotRLError as error:
            return error

    def state_of(self) -> tuple[Any, ...]:
        return (self.safety.setpoint_rad.tolist(), self.safety.setpoint_tool_m.tolist(),
                self.safety.yaw_rad, self.arm.queued.tolist(), len(self.arm.commands),
                list(self.gripper.sent))

    def command(self, act: Any) -> Any:
        """A call that may move: while held it is refused, and what is refused changes nothing."""
        before, held = self.state_of(), self.safety.held
        result = self.call(act)
        if held is not None:
            assert isinstance(result, SafetyError) and held in str(result)
        if isinstance(result, RobotRLError):
            assert isinstance(result, (SafetyError, StaleDataError)), result
            if self.safety.held is None or held is not None:
                assert self.state_of() == before, "refused, and something changed"
        return result

    @rule(
        delta=st.tuples(*[st.floats(-0.06, 0.06)] * 3),
        size=st.sampled_from([1.0, 1.0, 0.1, 10.0, 1e300]),
        turn=st.sampled_from([0.0, 0.0, 0.1, -0.1, 5.0]),
        duration=st.sampled_from([0.1, 0.1, 0.1, 0.05, 0.5, 0.013, 1e-6]),
        wait=st.sampled_from([1.0, 1.0, 0.5, 0.0]),
        times=st.integers(1, 8),
    )
    def move(self, delta, size, turn, duration, wait, times) -> None:
        for _ in range(times):
            tool, yaw = self.safety.setpoint_tool_m, self.safety.yaw_rad
            done = self.command(
                lambda: self.safety.move(np.array(delta) * size, turn, duration))
            if isinstance(done, RobotRLError):
                return
            np.testing.assert_allclose(self.safety.setpoint_tool_m, tool + done.delta_m,
                                       atol=1e-12)
            assert self.safety.yaw_rad == pytest.approx(yaw + done.yaw_rad, abs=1e-12)
            if not done.limited:
                np.testing.assert_allclose(done.delta_m, np.array(delta) * size, atol=1e-8)
                assert done.yaw_rad == pytest.approx(turn, abs=1e-8)
            # A command's own reach, and what one may make up for.
            most = self.safety.config.max_speed_m_s * duration
            assert np.linalg.norm(done.delta_m) <= most + 0.0201
            self.clock.pass_s(wait * duration)

    @rule(share=st.floats(0.0, 1.0), which=st.integers(0, 7), speed=st.floats(0.01, 1.0),
          beyond=st.booleans(), times=st.integers(1, 8))
    def move_joints(self, share, which, speed, beyond, times) -> None:
        spec = self.arm.spec
        low, high = spec.limits("lower_rad"), spec.limits("upper_rad")
        target = self.safety.setpoint_rad
        if which < len(target):
            target[which] = low[which] + share * (high - low)[which] + 10.0 * beyond
        else:
            target = np.array(spec.home_rad)
        for _ in range(times):
            going = self.command(lambda: self.safety.move_joints(target, PERIOD_S, speed))
            if isinstance(going, RobotRLError):
                return
            assert going in (True, False)
            self.clock.pass_s(PERIOD_S)

    @rule(seed=st.integers(0, 10_000))
    def bad_commands(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        joints = bad_joints(rng, len(self.arm.spec.joints))
        for act in (lambda: self.safety.move(*bad_move(rng)),
                    lambda: self.safety.move_joints(*joints),
                    lambda: self.safety.grip(bad_opening(rng))):
            assert isinstance(self.command(act), SafetyError)

    @rule(opening=st.floats(-0.5, 1.5))
    def grip(self, opening: float) -> None:
        result = self.command(lambda: self.safety.grip(opening))
        if not isinstance(result, RobotRLError):
            assert result == min(max(opening, 0.0), 1.0) == self.gripper.sent[-1]

    @rule(pause_s=st.floats(0.0, 3.0))
    def rest(self, pause_s: float) -> None:
        held = self.safety.held
        before = len(self.arm.commands)
        self.safety.rest()
        assert len(self.arm.commands) == before, "the plan that it has comes to rest by itself"
        self.quiet()
        self.clock.pass_s(pause_s)
        self.safety.watch()
        assert self.safety.held == held, "nobody needs to speak while the arm rests"

    @rule(reason=st.sampled_from(["a person", "an e-stop"]))
    def hold(self, reason: str) -> None:
        held = self.safety.held
        self.safety.hold(reason)
        assert self.safety.held == (held or reason), "the first reason stays"

    @rule(wait=st.booleans())
    def rearm(self, wait: bool) -> None:
        if wait:
            self.clock.pass_s(3.0)
        moving = self.arm.queued
        at_fault = self.arm.fault
        result = self.call(self.safety.rearm)
        if isinstance(result, RobotRLError):
            assert not wait or at_fault is not None or self.blind, result
            return
        assert self.safety.held is None and not self.blind
        if at_fault is None:
            assert not len(moving), "re-armed while it was moving"
        self.after_release()

    def after_release(self) -> None:
        self.reason = None
        assert np.array_equal(self.safety.setpoint_rad, self.arm.position_rad)
        assert self.arm.status().ready and not len(self.arm.queued)
        assert self.latch is None or not self.latch.is_set()
        self.checker.restart(self.safety.setpoint_rad)

    @precondition(lambda self: self.latch is not None)
    @rule(wait=st.booleans())
    def an_operator_elsewhere(self, wait: bool) -> None:
        """The hold's file is removed by another program, after which a look releases the arm."""
        assert self.latch is not None
        if wait:
            self.clock.pass_s(3.0)
        held = self.safety.held
        kept = self.latch.is_set()
        assert kept == (held is not None)
        self.latch.clear()
        self.safety.watch()
        if held is None:
            return
        if self.safety.held is None:
            self.after_release()
        else:
            assert self.safety.held == held and self.latch.is_set(), "a hold that stays is kept"
            assert not wait or self.blind or self.arm.fault is not None

    @rule()
    def save_and_restore(self) -> None:
        """Put back to a moment, the same commands do the same; a hold stays."""
        arm, filter_state = self.arm.snapshot(), self.safety.get_state()
        rows = self.checker.snapshot()
        plans = []
        for _ in range(2):
            before = self.safety.held
            done = self.call(lambda: self.safety.move([0.01, 0.02, -0.01], 0.05, PERIOD_S))
            plans.append((self.arm.queued.tolist(), str(done)))
            if self.safety.held is not None:
                assert before is None or self.safety.held == before
                return
            self.clock.pass_s(0.03)
            self.arm.restore(arm)
            self.checker.back(rows)
            self.safety.set_state(filter_state)
        assert plans[0] == plans[1]

    # -- what happens -------------------------------------------------------------------------

    @property
    def blind(self) -> bool:
        return self.arm.age_s > self.safety.config.max_state_age_s or self.arm.lie is not None

    def quiet(self) -> None:
        """Nothing is wrong with the arm any more."""
        self.arm.age_s, self.arm.lie, self.arm.stuck = 0.0, None, False
        self.push.force_n, self.watched = 0.0, None

    @rule(pause_s=st.sampled_from([0.001, 0.01, 0.05, 0.1]))
    def time_passes(self, pause_s: float) -> None:
        self.clock.pass_s(pause_s)

    @rule(pause_s=st.floats(0.0, 1.0))
    def look(self, pause_s: float) -> None:
        self.clock.pass_s(pause_s)
        self.safety.watch()

    @rule()
    def fall_silent(self) -> None:
        """After a command, nobody speaks; a look notices it."""
        done = self.command(lambda: self.safety.move(np.zeros(3), 0.0, PERIOD_S))
        self.clock.pass_s(1.0)
        self.safety.watch()
        assert self.safety.held is not None
        if not isinstance(done, RobotRLError):
            assert self.blind or self.arm.fault or "no command for" in self.safety.held

    @rule(wrong=st.sampled_from([np.nan, np.inf, -np.inf]), joint=st.integers(0, 6),
          speed=st.booleans())
    def report_no_number(self, wrong: float, joint: int, speed: bool) -> None:
        here, velocity = self.arm.position_rad, np.zeros(7)
        (velocity if speed else here)[joint] = wrong
        self.arm.lie = JointState(here, velocity, self.clock.now_s())
        self.safety.watch()
        assert self.safety.held is not None
        assert isinstance(self.call(self.safety.measure), (SafetyError, StaleDataError))

    @rule(age_s=st.sampled_from([0.1, 0.201, 5.0]), look=st.booleans())
    def age(self, age_s: float, look: bool) -> None:
        self.arm.age_s = age_s
        if look:
            self.safety.watch()
            assert self.safety.held is not None or not self.blind

    @rule(fault=st.sampled_from(["it dropped out", "stays: the stop is pressed"]))
    def fault(self, fault: str) -> None:
        self.arm.fail(fault)
        self.safety.watch()
        assert self.safety.held is not None

    @rule()
    def the_fault_goes_by_itself(self) -> None:
        """Somebody else cleared it; what was queued is gone all the same."""
        self.arm.fault = None

    @rule(force_n=st.sampled_from([1.0, MOST_FORCE_N, MOST_FORCE_N + 0.01, -500.0]))
    def push_the_tool(self, force_n: float) -> None:
        self.push.force_n = force_n
        held = self.safety.held
        self.safety.watch()
        if abs(force_n) > MOST_FORCE_N:
            assert self.safety.held is not None
            if held is None and self.arm.fault is None and not self.blind:
                assert "force on the tool" in self.safety.held or "no command" in self.safety.held
        self.push.force_n = 0.0

    @rule()
    def a_watch_cries(self) -> None:
        self.watched = "the door is open"
        self.safety.watch()
        assert self.safety.held is not None
        self.watched = None

    @rule(rows=st.integers(0, 6))
    def commands_take_time(self, rows: int) -> None:
        self.arm.rows_in_command = rows
        self.command(lambda: self.safety.move([0.02, 0.0, 0.0], 0.0, PERIOD_S))
        self.arm.rows_in_command = 0

    @rule(share=st.sampled_from([0.0, 0.1, 0.5]))
    def stall(self, share: float) -> None:
        self.arm.stall_share = share

    @rule()
    def block(self) -> None:
        self.arm.stuck = not self.arm.stuck

    @rule()
    def all_is_well(self) -> None:
        self.quiet()
        if self.arm.fault is not None:
            self.arm.fault = "it dropped out"

    # -- what always holds --------------------------------------------------------------------

    @invariant()
    def a_hold_stays_and_nothing_is_sent_meanwhile(self) -> None:
        if not hasattr(self, "safety"):
            return
        held = self.safety.held
        if self.reason is not None:
            assert held == self.reason, "the hold is gone, and nobody re-armed"
            assert len(self.arm.commands) == self.sent_when_held, "commanded while held"
        elif held is not None:
            self.reason, self.sent_when_held = held, len(self.arm.commands)
            assert self.latch is None or self.latch.reason() == held

    @invariant()
    def what_is_sent_is_within_limits(self) -> None:
        if hasattr(self, "checker"):
            found = self.checker.flush()
            assert found.total == 0, found.examples

    @invariant()
    def what_is_queued_ends_at_rest_within_limits(self) -> None:
        """Were everything to stop now, the arm would still come to rest as it should."""
        if not hasattr(self, "arm") or not len(self.arm.queued):
            return
        saved = self.checker.snapshot()
        rows = self.arm.queued
        self.checker.feed(np.concatenate([rows, np.repeat(rows[-1:], 3, axis=0)]))
        found = self.checker.flush()
        assert found.total == 0, found.examples
        self.checker.back(saved)

    @invariant()
    def the_set_point_is_a_number(self) -> None:
        if hasattr(self, "safety"):
            assert np.isfinite(self.safety.setpoint_rad).all()
            assert np.isfinite(self.safety.setpoint_tool_m).all()
            assert np.isfinite(self.safety.yaw_rad)


COMMON = {"deadline": None, "derandomize": True, "print_blob": True,
          "suppress_health_check": list(HealthCheck)}


def check_orders(orders: int, calls: int) -> None:
    """Fails with the shortest order of calls that breaks a rule or what always holds."""
    FilterMachine.taken = 0
    run_state_machine_as_test(
        FilterMachine, settings=settings(max_examples=orders, stateful_step_count=calls, **COMMON))
    assert FilterMachine.taken > orders, "the arm was hardly moved"


def test_any_order_of_calls():
    check_orders(40, 30)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_thousand_orders_of_fifty_calls():
    check_orders(1000, 50)
