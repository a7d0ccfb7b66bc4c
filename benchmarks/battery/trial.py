"""One fault at one seed: the arm moves, the fault comes, and everything that must follow."""

from __future__ import annotations

import itertools
import re
import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .bench import Bench, NoAnswer
from .checks import Findings, Story
from .table import BY_NAME, FAULTS, Fault

# A timer of ours that is later than this tells of a machine that is busy elsewhere.
BUSY_S = 0.03
# The only reasons for a hold that a busy machine can bring about.
_BY_LOAD = (r"the command stream stopped for 0\.|(is|are) 0\.\d+ s old|no command for 0\.|"
            r"frames a second|out of step|has not answered|lost on the way|it took|discontinuity")
# A camera watch looks at so much of the past [s].
_WINDOW_S = 1.2
_SETTLE_S, _AGAIN_S = 0.5, 0.35
_QUIET_RAD = 0.005
# A robot that has just connected is told to stay where it is by so many rows at most.
_STAY_ROWS = {"sawyer": 0, "franka": 6}


class Timer:
    """How late a bare timer of 2 ms is on this machine, all the time."""

    def __init__(self) -> None:
        self._late: deque[tuple[float, float]] = deque(maxlen=60_000)
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            before_s = time.monotonic()
            time.sleep(0.002)
            now_s = time.monotonic()
            self._late.append((now_s, now_s - before_s - 0.002))

    def worst_s(self, start_s: float, end_s: float) -> float:
        """The latest that it was between two times [s]."""
        return max((late for now_s, late in list(self._late) if start_s <= now_s <= end_s + 0.01),
                   default=0.0)


@dataclass
class Result:
    """What came of a trial. ``outcome`` is ``expected``, ``unexpected``, or ``disturbed``: held
    before the fault was injected, on a machine that was seen to be busy."""

    fault: str
    rig: str
    seed: int
    outcome: str = "expected"
    wrong: list[str] = field(default_factory=list)
    message: str = ""
    figures: dict[str, float] = field(default_factory=dict)


class Disturbed(Exception):
    """The arm was held before the fault was injected, or by what a busy machine alone explains."""


class Trial:
    """``seed`` varies rate, speed, directions, the moment of the fault and its kind. A ``brief``
    trial leaves the new program to every fourth fault."""

    def __init__(self, bench: Bench, fault: Fault, seed: int, timer: Timer, *, brief: bool = False
                 ) -> None:
        self.bench, self.fault, self.seed, self.timer = bench, fault, seed, timer
        number = FAULTS.index(fault)
        self.rng = np.random.default_rng([seed, number])
        self.hz = (10.0, 20.0)[(seed // 10 + number) % 2]
        self.speed = float(self.rng.uniform(0.3, 1.0))
        self.phase_s = float(self.rng.uniform(0.3, 0.6 if brief else 1.0))
        self.camera = int(self.rng.integers(2))
        self.fresh = not brief or number % 4 == 0
        self.new_process = seed % 5 == 0 and not brief
        self.found = Findings()
        self.result = Result(fault.name, bench.name, seed)
        self.injected_s = self.probed_s = self.opened_s = self.rearmed_s = np.nan
        self.held: dict[str, Any] | None = None
        self._since = 0

    def run(self) -> Result:
        """The whole trial.

        Raises:
            NoAnswer: a process did not answer; the bench should be started anew.
        """
        begun_s = time.monotonic()
        try:
            getattr(self, f"_{self.fault.name}", self._hold)()
        except Disturbed as error:
            self._disturbed(str(error))
        self.found.figures["trial_s"] = round(time.monotonic() - begun_s, 2)
        self.result.wrong = self.found.wrong
        self.result.figures.update(self.found.figures)
        if self.found.wrong and self.result.outcome == "expected":
            self.result.outcome = "unexpected"
        return self.result

    def _disturbed(self, reason: str) -> None:
        """Held for another reason than the fault: was the machine seen to be busy?"""
        late = self._late(Story(self.bench.log(), self.bench.spec))
        busy = max(late.values()) > BUSY_S and re.search(_BY_LOAD, reason) is not None
        self.result.message, self.result.outcome = reason, "disturbed" if busy else "unexpected"
        self.found.wrong.append("held for another reason than the fault: " + reason + "; late by "
                                + ", ".join(f"{k} {v:.3f} s" for k, v in late.items()))
        time.sleep(_WINDOW_S)
        self._release()

    def _late(self, story: Story) -> dict[str, float]:
        """How late timers, pictures and rows were lately [s]."""
        answer = self.bench.commander.ask("resting", do="rest")
        pictures = self.bench.pictures
        since = len(pictures.events)
        pictures.tell()
        now_s = time.monotonic()
        return {"timer": self.timer.worst_s(now_s - 10.0, now_s),
                "timer in commander": float(answer["timer_late_s"]),
                "pictures": float(pictures.wait(since=since)["late_s"]),
                "rows": story.late_s(now_s - 10.0, now_s),
                "robot": story.longest_gap_s(now_s - 10.0, now_s) - 0.01}

    # -- the course of a trial ----------------------------------------------------------------

    def begin(self) -> None:
        """The arm moves, and the moment of the fault has come."""
        bench = self.bench
        if bench.open(self.hz)["held"] is not None:
            self._release()
        bench.mark()
        self._go(self.phase_s)

    def _go(self, seconds: float) -> None:
        self._since = len(self.bench.commander.events)
        answer = self.bench.commander.ask(
            "going", "stopped", do="go", seed=int(self.rng.integers(2**31)), speed=self.speed)
        if answer["event"] != "going":
            raise Disturbed(f"(at the start) {answer.get('error')}")
        time.sleep(seconds)

    def inject(self, act: Callable[[], float | None]) -> None:
        """Break something, unless the arm is held already."""
        early = self._event("held")
        self.injected_s = time.monotonic()
        if early is not None:
            raise Disturbed(early["reason"])
        at_s = act()
        if at_s is not None:
            self.injected_s = at_s

    def _event(self, name: str) -> dict[str, Any] | None:
        events = self.bench.commander.events[self._since :]
        return next((event for event in events if event.get("event") == name), None)

    def await_hold(self, timeout_s: float = 4.0) -> None:
        """Wait for the hold; its message has to have the fault's words."""
        try:
            self.held = self.bench.commander.wait("held", since=self._since, timeout_s=timeout_s)
        except NoAnswer:
            self.found.wrong.append(f"no hold within {timeout_s:g} s")
            return
        self.result.message = reason = self.held["reason"]
        if self.held["t"] < self.injected_s:
            raise Disturbed(reason)
        self.found.figures["held_s"] = round(self.held["t"] - self.injected_s, 4)
        named = re.search(self.fault.words, reason) is not None
        if not named and re.search(_BY_LOAD, reason):
            raise Disturbed(reason)
        self.found.expect(named, f"the message {reason!r} has not the words {self.fault.words!r}")

    def probe(self) -> None:
        """Nothing that could move the arm is taken."""
        self.probed_s = min(self.probed_s, time.monotonic()) if (
            self.probed_s == self.probed_s) else time.monotonic()
        said = self.bench.commander.ask("probed", do="probe")["said"]
        taken = [name for name, error in said.items() if error is None]
        self.found.expect(not taken, f"while held, the arm took: {', '.join(taken)}")

    def latched(self) -> None:
        """It stays held: commands, the end of the fault, a new program."""
        time.sleep(_SETTLE_S)
        self.probe()
        self.bench.heal()
        self.bench.camera(fault=None)
        time.sleep(0.2)
        self.still_held()
        if self.fresh:
            self.new_program()
        elif self.fault.name.startswith("camera"):
            time.sleep(_WINDOW_S)

    def still_held(self) -> None:
        held = self.bench.commander.ask("resting", do="rest")["held"]
        self.found.expect(held is not None, "the hold went away by itself")

    def new_program(self) -> None:
        """Another program finds the arm held, with the reason."""
        if self.new_process:
            self.bench.commander.ask("closed", do="close", timeout_s=30.0)
            self.bench.new_commander()
        self.opened_s = time.monotonic()
        answer = self.bench.open(self.hz, fresh=True)
        reason = None if self.held is None else self.held["reason"]
        self.found.expect(answer["held"] is not None and answer["held"] == reason,
                          f"a new program found the arm held by {answer['held']!r}, not {reason!r}")
        self.probe()

    def again(self) -> None:
        """The operator re-arms; the arm moves from where it is."""
        self.rearmed_s = time.monotonic()
        self._release()
        self._go(_AGAIN_S)
        self._end()

    def _release(self) -> None:
        """Everything whole again, and re-armed if it is held."""
        self.bench.heal()
        self.bench.camera(fault=None)
        end_s = time.monotonic() + 5.0
        while True:
            answer = self.bench.commander.ask("rearmed", do="rearm")
            if answer["event"] == "rearmed":
                return
            if time.monotonic() > end_s:
                raise NoAnswer(f"the arm could not be re-armed: {answer['error']}")
            time.sleep(0.1)

    def _end(self) -> None:
        answer = self.bench.commander.ask("resting", do="rest")
        self.found.figures["timer_in_commander_late_s"] = answer["timer_late_s"]
        if answer["held"] is not None:
            raise Disturbed(f"(after the release) {answer['held']}")
        time.sleep(_SETTLE_S)

    # -- what the robot wrote down ------------------------------------------------------------

    def judge(self) -> Story:
        """Limits, rest, silence while held, the beginning after the release."""
        story = Story(self.bench.log(), self.bench.spec)
        if np.isnan(story.rest_s(self.injected_s)):
            time.sleep(1.0)  # a machine that is busy takes longer to send the rows that are left
            story = Story(self.bench.log(), self.bench.spec)
        before = self.rearmed_s if self.rearmed_s == self.rearmed_s else np.inf
        # Where the arm was released, or another program came, its motion begins anew.
        edges = [-np.inf, *(t for t in (self.opened_s, self.rearmed_s) if t == t), np.inf]
        lost = sum(story.lost_in(*span) for span in itertools.pairwise(edges))
        if lost:
            raise Disturbed(f"{lost} rows were lost on the way to the robot")
        for start_s, end_s in itertools.pairwise(edges):
            story.check_limits(self.found, start_s, end_s)
        if before < np.inf:
            story.check_begin(self.found, before)
        if self.probed_s == self.probed_s:
            self._silent(story, before)
        self.found.expect(story.rest_s(self.injected_s) == story.rest_s(self.injected_s),
                          "the arm does not rest at the end")
        return story

    def _silent(self, story: Story, before_s: float) -> None:
        # A new program may tell the robot to stay where it is, the old one nothing at all.
        opened_s = before_s if np.isnan(self.opened_s) else self.opened_s
        old = len(story.moving_in(self.probed_s, opened_s))
        new = len(story.moving_in(opened_s, before_s)) if opened_s < before_s else 0
        self.found.expect(old == 0 and new <= _STAY_ROWS[self.bench.name],
                          f"{old + new} new rows were sent while the arm was held")
        times = story.measured[:, 0]
        part = story.measured[(times >= self.probed_s) & (times < before_s), 1 : 1 + story.n]
        moved = float(np.ptp(part, axis=0).max()) if len(part) else 0.0
        self.found.expect(moved < _QUIET_RAD, f"the arm moved by {moved:.4f} rad while held")

    def latency(self, story: Story) -> None:
        """Whether it braked in time."""
        limit_s = self.fault.within_s
        assert limit_s is not None
        end_s = self._when(story)
        if end_s is None:
            self.found.wrong.append("it cannot be seen when the arm was held")
            return
        took_s = end_s - self.injected_s
        late_s = self.timer.worst_s(self.injected_s, end_s)
        if took_s > limit_s + late_s:
            # Out of time: by the stack, or because the machine did not let it run?
            if max(self._late(story).values()) > BUSY_S:
                raise Disturbed(f"it took {took_s:.3f} s")
        self.found.figures["latency_s"] = round(took_s, 4)
        self.found.figures["timer_late_s"] = round(late_s, 4)
        self.found.figures["speed_rad_s"] = round(story.speed_at(self.injected_s), 4)
        self.found.figures["over_limit"] = float(took_s > limit_s)
        self.found.expect(took_s <= limit_s + late_s,
                          f"it took {took_s:.3f} s, allowed are {limit_s} s (timer late "
                          f"{late_s:.3f} s)")
        rest_s = story.rest_s(self.injected_s) if self.rearmed_s != self.rearmed_s else (
            story.until(self.rearmed_s).rest_s(self.injected_s))
        self.found.figures["rest_s"] = round(rest_s - self.injected_s, 4)
        self.found.expect(rest_s - self.injected_s <= limit_s + late_s + 1.0,
                          f"the arm came to rest {rest_s - self.injected_s:.3f} s after the fault")

    def _when(self, story: Story) -> float | None:
        if self.fault.measured == "robot":
            if self.bench.name == "sawyer":
                return story.left_mode_s(self.injected_s)
            return story.slowed_s(self.injected_s)
        if self.held is None:
            return None
        if self.fault.measured == "hold":
            return float(self.held["t"])
        row_s = story.received_s(self.held["brake"], self.injected_s)
        if row_s is not None:
            return row_s
        until = self.probed_s if self.probed_s == self.probed_s else np.inf
        moving = story.moving_in(self.injected_s, until)
        return float(moving[-1, 0]) if len(moving) else self.injected_s

    # -- the faults ---------------------------------------------------------------------------

    def _hold(self) -> None:
        """A fault of a camera or of the robot's state, that ends in a hold."""
        self.begin()
        self.inject(self._break)
        self._held_until_released()

    def _held_until_released(self) -> Story:
        self.await_hold()
        self.latched()
        self.again()
        story = self.judge()
        if self.held is not None:
            self.latency(story)
        return story

    def _break(self) -> float | None:
        name, bench = self.fault.name, self.bench
        if name.startswith("camera"):
            return bench.camera(fault=name.split("_")[1], camera=self.camera,
                                late_s=float(self.rng.uniform(0.068, 0.078)))
        sawyer = bench.name == "sawyer"
        if name == "state_stale":
            bench.break_robot("silent")
        elif name == "state_stuck":
            values = bool(self.rng.integers(2))
            bench.break_robot(("frozen_values" if values else "frozen") if sawyer else "stuck")
        elif name == "state_nan":
            bench.break_robot("nan", int(self.rng.integers(bench.spec.limits("lower_rad").size)))
        return None

    def _action(self, kind: str) -> dict[str, Any] | None:
        """The next action is spoilt; what the commander says of it."""
        since = len(self.bench.commander.events)
        self.inject(lambda: self.bench.commander.tell(do="action", kind=kind))
        answer = self.bench.commander.wait("refused", "stepped", "moved", "stopped", since=since)
        self.result.message = answer.get("error", "")
        held = self._event("held")
        if held is not None and not kind.endswith("_forever"):
            raise Disturbed(held["reason"])
        return answer

    def _goes_on(self) -> None:
        """Nothing is held, and the arm moves on."""
        time.sleep(0.4)
        held = self._event("held")
        if held is not None:
            raise Disturbed(held["reason"])
        self._end()
        story = self.judge()
        part = story.measured[story.measured[:, 0] >= self.injected_s, 1 : 1 + story.n]
        moved = float(np.ptp(part, axis=0).max()) if len(part) else 0.0
        self.found.expect(moved > 0.002, f"the arm moved by {moved:.4f} rad afterwards")

    def _refused(self, kind: str) -> None:
        self.begin()
        answer = self._action(kind)
        assert answer is not None
        self.found.expect(answer["event"] == "refused" and answer["kind"] == "SafetyError",
                          f"the action was not refused: {answer}")
        text = answer.get("error", "")
        self.found.expect(re.search(self.fault.words, text) is not None,
                          f"the message {text!r} has not the words {self.fault.words!r}")
        self.found.expect("nothing was sent" in text, f"{text!r} does not say so")

    def _action_nan(self) -> None:
        for_ever = self.seed % 4 == 3
        self._refused("nan_forever" if for_ever else "nan")
        if not for_ever:
            self._goes_on()
            return
        message = self.result.message
        self.held = self.bench.commander.wait("held", since=self._since, timeout_s=4.0)
        self.found.expect("no command for" in self.held["reason"], self.held["reason"])
        self.latched()
        self.again()
        self.latency(self.judge())
        self.result.message = f"{message}; {self.held['reason']}"

    def _action_shape(self) -> None:
        self._refused("shape")
        self._goes_on()

    def _action_tenfold(self) -> None:
        self.begin()
        answer = self._action("tenfold" if self.seed % 2 else "tenfold_move")
        assert answer is not None
        asked, sent = np.array(answer.get("asked", [0.0])), np.array(answer.get("sent", [0.0]))
        self.found.expect(answer["event"] in ("stepped", "moved"), f"it was not taken: {answer}")
        told = answer.get("limited") or float(np.abs(sent - asked).max()) > 1e-6
        self.found.expect(bool(told), f"it was not told that the motion was shortened: {answer}")
        most = 1.0 if answer["event"] == "stepped" else 0.45 / self.hz + 0.01
        largest = float(np.abs(sent).max())
        self.found.expect(largest <= most + 1e-6, f"it was not shortened: {answer}")
        self._goes_on()

    def _policy_hangs(self) -> None:
        self.begin()
        since = len(self.bench.commander.events)

        def hang() -> float:
            self.bench.commander.tell(do="hang", seconds=1.0)
            return float(self.bench.commander.wait("hanging", since=since)["t"])

        self.inject(hang)
        self.await_hold()
        time.sleep(1.0)  # until it is over
        self._held_from_here()

    def _held_from_here(self) -> None:
        self.latched()
        self.again()
        story = self.judge()
        if self.held is not None:
            self.latency(story)

    def _commander_killed(self) -> None:
        self.begin()
        process = self.bench.commander.process
        self.inject(lambda: process.send_signal(signal.SIGKILL))
        process.wait()
        self.probed_s = self.injected_s + 1.0
        self.bench.new_commander()
        time.sleep(max(0.0, self.injected_s + self.bench.forgets_s - time.monotonic()))
        self.opened_s = time.monotonic()
        answer = self.bench.open(self.hz, fresh=True)
        self.found.expect(answer["held"] is None,
                          f"a new program found the arm held by {answer['held']!r}")
        self.rearmed_s = time.monotonic()
        self._go(_AGAIN_S)
        self._end()
        self.latency(self.judge())

    def _commander_stopped(self) -> None:
        self.begin()
        process = self.bench.commander.process
        self.inject(lambda: process.send_signal(signal.SIGSTOP))
        time.sleep(5.0)
        resumed_s = time.monotonic()
        self.probed_s = self.injected_s + 1.0
        process.send_signal(signal.SIGCONT)
        self.await_hold()
        self.latched()
        self.again()
        story = self.judge()
        if self.held is not None:
            self.latency(story)
        old = story.moving_in(resumed_s, self.rearmed_s)
        self.found.figures["rows_after_resume"] = float(len(old))

    def _emergency_stop(self) -> None:
        franka = self.bench.name == "franka"
        kind = "reflex" if franka and self.seed % 2 == 0 else "estop"
        self.begin()
        self.inject(lambda: self.bench.break_robot(kind))
        self.await_hold()
        time.sleep(_SETTLE_S)
        self.probe()
        if kind == "estop":
            answer = self.bench.commander.ask("rearmed", do="rearm")
            self.found.expect(answer["event"] == "error" and "stop" in answer.get("error", ""),
                              f"a re-arm with the button down: {answer}")
        self.bench.heal()
        time.sleep(0.3)
        self.still_held()
        self.probe()
        if self.fresh:
            self.new_program()
        self.again()
        story = self.judge()
        watched: tuple[str, ...] = ("reset",) if franka else ("reset", "enable", "stop")
        for name in watched:
            times = story.others.get(name, np.zeros(0))
            early = int((times < self.rearmed_s).sum())
            self.found.expect(early == 0, f"{early} messages of {name!r} before the re-arm")
        if not franka or kind == "reflex":
            self.found.expect(len(story.others.get("reset", ())) > 0,
                              "the re-arm did not reset the robot: the watch on it sees nothing")
        if self.held is not None:
            self.latency(story)

    def _robot_dies(self) -> None:
        bench = self.bench
        self.begin()

        def die() -> None:
            bench.robot.process.send_signal(signal.SIGKILL)

        self.inject(die)
        self.await_hold()
        bench.robot.kill()
        if self.held is not None:
            took_s = self.held["t"] - self.injected_s
            late_s = self.timer.worst_s(self.injected_s, self.held["t"])
            limit_s = self.fault.within_s or 0.0
            self.found.figures["latency_s"] = round(took_s, 4)
            self.found.figures["timer_late_s"] = round(late_s, 4)
            self.found.expect(took_s <= limit_s + late_s, f"the hold took {took_s:.3f} s")
        self.probe()
        bench.start_robot(disabled=bool(self.seed % 2))
        time.sleep(1.0)
        self.latched()
        self.again()
        self.judge()

    def _reset_fails(self) -> None:
        bench = self.bench
        if bench.open(self.hz)["held"] is not None:
            self._release()
        bench.mark()
        self._go(0.2)
        bench.commander.ask("resting", do="rest")
        time.sleep(0.4)
        self._since = len(bench.commander.events)
        self.inject(lambda: None)
        answer = bench.commander.ask("reset", do="fail_reset", timeout_s=90.0)
        self.found.expect(answer.get("attempts") == 3, f"not three tries: {answer}")
        self.found.expect("SafetyError" in str(answer.get("error")), f"no error: {answer}")
        self.found.expect(any("not in its slot" in text for text in answer.get("helped", ())),
                          f"no call for help that says what is wrong: {answer}")
        self.await_hold()
        self.found.figures["reset_s"] = self.found.figures.pop("held_s", np.nan)
        self.latched()
        self.again()
        self.judge()

    def _clock_steps(self) -> None:
        bench = self.bench
        shift_s = float(self.rng.choice([-3600.0, 3600.0]))
        order = self.rng.permutation(3)
        steps: list[Callable[[float], Any]] = [
            lambda s: bench.commander.ask("clock", do="clock", shift_s=s),
            lambda s: bench.robot.control(shift_s=s),
            lambda s: bench.camera(shift_s=s),
        ]
        self.begin()
        try:
            self.inject(lambda: None)
            for k in order:
                steps[k](shift_s)
                time.sleep(float(self.rng.uniform(0.05, 0.2)))
            time.sleep(0.5)
        finally:
            for step in steps:
                step(0.0)
        self._goes_on()

    def _master_restarts(self) -> None:
        master = getattr(self.bench, "master")  # noqa: B009
        pause_s = float(self.rng.uniform(0.0, 1.5))
        self.begin()

        def restart() -> None:
            master.stop(hard=True)

        try:
            self.inject(restart)
            time.sleep(pause_s)
        finally:
            if master.pid is None:
                master.start()
        time.sleep(1.5)
        if self._event("held") is None:
            self.result.message = "unnoticed"
            self._goes_on()
            return
        self.await_hold()
        self._held_from_here()


__all__ = ["BY_NAME", "Result", "Timer", "Trial"]
