"""A storm of commands on one arm, and whether the filter weathered it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robot_rl.errors import (
    InvalidInputError,
    LateCommandError,
    RobotRLError,
    SafetyError,
    StaleDataError,
)
from robot_rl.interfaces import JointState
from robot_rl.safety import SafetyConfig, SafetyFilter
from robot_rl.specs import load_robot

from .arm import ManualClock, RecordingArm, RecordingGripper
from .checker import MAKERS, Findings, Limits, StreamChecker
from .commands import STREAMS, Move, bad_joints, bad_move, bad_opening

Array = NDArray[np.float64]


@dataclass
class Segment:
    """What was sent between two set-points taken from the measured arm: where it began (n,) and
    the rows (k, n) [rad]."""

    start_rad: Array
    rows_rad: Array


@dataclass
class Report:
    """Counts of what was offered and what came of it, by kind; faults in words."""

    steps: int = 0
    offered: Counter[str] = field(default_factory=Counter)
    outcomes: dict[str, Counter[str]] = field(default_factory=dict)
    holds: Counter[str] = field(default_factory=Counter)
    rearms: int = 0
    faults: list[str] = field(default_factory=list)
    fault_count: int = 0
    findings: Findings = field(default_factory=Findings)

    def fault(self, text: str) -> None:
        self.fault_count += 1
        if len(self.faults) < 20:
            self.faults.append(text)


class Storm:
    """Offers commands to a filter on a :class:`RecordingArm` and watches what is sent.

    ``stretch`` is the most commands of one kind in a row. ``segments`` collects up to ``keep_rows``
    of what was sent, for replays.
    """

    def __init__(
        self,
        robot: str,
        seed: int,
        *,
        period_s: float = 0.01,
        stretch: int = 250,
        config: SafetyConfig | None = None,
        keep_rows: int = 0,
        tick: Callable[[int], None] | None = None,
    ) -> None:
        self.rng = np.random.default_rng(seed)
        self.robot, self.report = robot, Report()
        self.segments: list[Segment] = []
        self._keep_rows, self._kept, self._rows = keep_rows, 0, list[Array]()
        self._keeping, self._began = False, np.array(load_robot(robot).home_rad)
        self._tick, self._stretch = tick, stretch
        spec = load_robot(robot)
        self.config = config if config is not None else SafetyConfig()
        self.clock, self.gripper = ManualClock(), RecordingGripper()
        self.arm = RecordingArm(spec, self.clock, period_s=period_s, on_rows=self._on_rows,
                                seed=seed + 1)
        limits = Limits(MAKERS[robot], self.config.box_min_m, self.config.box_max_m,
                        self.config.max_speed_m_s)
        self.checker = StreamChecker(spec, period_s, limits)
        self.safety = SafetyFilter(self.arm, self.gripper, self.clock, self.config)
        self._put(self.safety.posture((0.0, 0.0, 0.15)))

    # -- bookkeeping -------------------------------------------------------------------------

    def _on_rows(self, rows: Array) -> None:
        self.checker.feed(rows.copy())
        if self._keeping and self._kept < self._keep_rows:
            self._rows.append(rows.copy())
            self._kept += len(rows)

    def _cut(self) -> None:
        """Keep what was sent so far, and nothing more until the stream begins anew."""
        if self._rows:
            self.segments.append(Segment(self._began, np.concatenate(self._rows)))
        self._rows, self._keeping = [], False

    def _restart(self) -> None:
        """The set-point was taken from the measured arm: the stream begins anew."""
        self._cut()
        self._began, self._keeping = self.safety.setpoint_rad, True
        self.checker.restart(self._began)

    def _put(self, posture_rad: Array) -> None:
        self.arm.put(posture_rad)
        self.safety.sync(placed=True)
        self._restart()

    def _offer(self, kind: str, call: Callable[[], object], *, bad: bool = False,
               good: bool = False) -> str:
        """One step: make the call, and see that what it did agrees with how it ended.

        ``bad`` commands have to be refused; ``good`` ones may not be, unless the arm was held.
        """
        report = self.report
        report.steps += 1
        report.offered[kind] += 1
        if self._tick is not None and report.steps % 256 == 0:
            self._tick(256)
        held = self.safety.held
        commands, gripped = len(self.arm.commands), len(self.gripper.sent)
        try:
            call()
            outcome = "executed"
        except SafetyError:
            outcome = "refused"
        except StaleDataError:
            outcome = "stale"
        except LateCommandError:
            outcome = "late"
        except RobotRLError as error:
            outcome = type(error).__name__
        except Exception as error:
            outcome = "crashed"
            report.fault(f"{kind}: {type(error).__name__}: {error}")
        sent = len(self.arm.commands) > commands or len(self.gripper.sent) > gripped
        now_held = self.safety.held
        if now_held is not None and held is None:
            report.holds[now_held.split(":")[0][:40]] += 1
            sent = False  # a hold brakes
        if sent and outcome != "executed":
            report.fault(f"{kind}: {outcome}, and something was sent")
        if held is not None and (sent or outcome == "executed"):
            report.fault(f"{kind}: held ({held}), and it was {outcome}, sent: {sent}")
        if bad and outcome != "refused":
            report.fault(f"{kind}: a bad command was {outcome}")
        if good and held is None and outcome != "executed":
            report.fault(f"{kind}: a good command was {outcome} (held: {now_held})")
        report.outcomes.setdefault(kind, Counter())[outcome] += 1
        return outcome

    def _move(self, kind: str, move: Move, *, good: bool = True) -> str:
        outcome = self._offer(kind, lambda: self.safety.move(*move), good=good)
        if outcome == "executed":
            self._look(kind)
        return outcome

    def _look(self, kind: str) -> None:
        if not np.isfinite(self.safety.setpoint_rad).all():
            self.report.fault(f"{kind}: the set-point is not finite")

    def _release(self) -> None:
        """An operator's re-arm once the arm stands still, checked to start from where it is."""
        self.clock.pass_s(2.0)
        try:
            self.safety.rearm()
        except RobotRLError as error:
            self.report.fault(f"no re-arm: {error}")
            self.safety = SafetyFilter(self.arm, self.gripper, self.clock, self.config)
            self._put(self.safety.posture((0.0, 0.0, 0.15)))
            return
        self.report.rearms += 1
        if self.safety.held is not None:
            self.report.fault("held after a re-arm")
        gap = float(np.abs(self.safety.setpoint_rad - self.arm.position_rad).max())
        if gap > 6.0 * self.arm.noise_rad + 1e-9:
            self.report.fault(f"after a re-arm the set-point is {gap} rad off the arm")
        self._restart()

    # -- the storm ---------------------------------------------------------------------------

    def run(self, steps: int) -> Report:
        kinds: list[tuple[str, Callable[[], None], float]] = [
            *((name, lambda name=name: self._stream(name), 2.0) for name in STREAMS),
            ("mixed", self._mixed, 4.0),
            ("bad", self._bad, 5.0),
            ("joints", self._joints, 3.0),
            ("silence", self._silence, 1.0),
            ("late", self._late, 2.0),
            ("stalled", self._stalled, 1.0),
            ("holds", self._holds, 2.0),
            ("blind", self._blind, 1.0),
            ("faults", self._faults, 1.0),
            ("stuck", self._stuck, 1.0),
            ("rests", self._rests, 1.0),
            ("states", self._states, 0.5),
        ]
        weights = np.array([weight for _, _, weight in kinds])
        while self.report.steps < steps:
            self.arm.follow = float(self.rng.choice([0.0, 0.0, 0.5, 0.9]))
            self.arm.noise_rad = float(self.rng.choice([0.0, 0.0, 1e-5, 1e-4]))
            self.arm.noise_rad_s = float(self.rng.choice([0.0, 1e-4, 5e-3]))
            self.arm.lead_rows = int(self.rng.choice([1, 1, 2, 5]))
            kinds[int(self.rng.choice(len(kinds), p=weights / weights.sum()))][1]()
            self.arm.stall_share, self.arm.rows_in_command = 0.0, 0
            self.arm.age_s, self.arm.lie, self.arm.stuck = 0.0, None, False
            if self.safety.held is not None:
                self._release()
            elif self.rng.random() < 0.05:
                # As between episodes: elsewhere, at rest.
                self.clock.pass_s(2.0)
                self._put(self._somewhere())
        self.clock.pass_s(2.0)
        self._restart()
        self.report.findings = self.checker.flush()
        return self.report

    def _somewhere(self) -> Array:
        """A posture anywhere in the box that the arm can reach."""
        low, high = np.array(self.config.box_min_m), np.array(self.config.box_max_m)
        while True:
            try:
                return self.safety.posture(low + self.rng.random(3) * (high - low))
            except InvalidInputError:
                continue

    def _moves(self, name: str) -> Iterator[Move]:
        return STREAMS[name](self.rng)

    def _count(self) -> int:
        return int(self.rng.integers(self._stretch // 8, self._stretch))

    def _stream(self, name: str) -> None:
        moves = self._moves(name)
        for _ in range(self._count()):
            move = next(moves)
            if self._move(name, move) != "executed":
                return
            self.clock.pass_s(float(move[2]) * float(self.rng.choice([1.0, 1.0, 1.0, 0.5, 0.1])))

    def _mixed(self) -> None:
        names = list(STREAMS)
        streams = {name: self._moves(name) for name in names}
        for _ in range(self._count()):
            name = names[int(self.rng.integers(len(names)))]
            move = next(streams[name])
            if self._move("mixed", move) != "executed":
                return
            self.clock.pass_s(float(move[2]) * self.rng.random())

    def _bad(self) -> None:
        moves = self._moves("random")
        for _ in range(self._count()):
            kind, rng = int(self.rng.integers(4)), self.rng
            before = self.safety.setpoint_rad, self.arm.queued
            if kind == 0:
                bad = bad_joints(rng, len(self.arm.spec.joints))
                self._offer("bad joints", lambda b=bad: self.safety.move_joints(*b),  # type: ignore[misc]
                            bad=True)
            elif kind == 1:
                opening = bad_opening(rng)
                self._offer("bad grip", lambda o=opening: self.safety.grip(o), bad=True)  # type: ignore[misc]
            else:
                move = bad_move(rng)
                self._offer("bad move", lambda m=move: self.safety.move(*m), bad=True)  # type: ignore[misc]
            if self.safety.held is None and not (
                np.array_equal(before[0], self.safety.setpoint_rad)
                and np.array_equal(before[1], self.arm.queued)
            ):
                self.report.fault("a refused command changed something")
            # Bad commands do not count as a sign of life.
            if rng.random() < 0.3:
                if self._move("between bad ones", next(moves)) != "executed":
                    return
                self.clock.pass_s(0.1)

    def _joints(self) -> None:
        spec, rng = self.arm.spec, self.rng
        low, high = spec.limits("lower_rad"), spec.limits("upper_rad")
        for _ in range(int(rng.integers(1, 6))):
            kind = int(rng.integers(4))
            target = rng.uniform(low, high)
            if kind == 0:
                target = np.where(rng.random(len(low)) < 0.5, low, high)
            elif kind == 1:
                target = self.safety.setpoint_rad
                joint = int(rng.integers(len(low)))
                target[joint] = rng.choice([low[joint], high[joint]])
            elif kind == 2:
                target = self.safety.posture((0.0, 0.0, 0.2))
            speed = float(rng.choice([1e-6, 0.003, 0.01, 0.05, 0.2, 0.2, 1.0, 1.0]))
            for _ in range(int(rng.integers(1, 40))):
                outcome = self._offer("joints", lambda t=target, s=speed:  # type: ignore[misc]
                                      self.safety.move_joints(t, 0.1, s))
                if self.safety.held is not None:
                    return
                self.clock.pass_s(0.1 if outcome == "executed" else 0.01)
                if rng.random() < 0.05:
                    break

    def _silence(self) -> None:
        moves = self._moves("random")
        for _ in range(int(self.rng.integers(3, 30))):
            if self._move("before a silence", next(moves), good=False) != "executed":
                return
            gap = float(self.rng.choice([0.09, 0.11, 0.14, 0.16, 0.3, 2.0]))
            for _ in range(int(gap / 0.02)):
                self.clock.pass_s(0.02)
                self.safety.watch()
            if gap > 0.2 and self.safety.held is None:
                self.report.fault(f"nobody spoke for {gap} s, and it was not noticed")

    def _late(self) -> None:
        moves = self._moves("random")
        for _ in range(self._count()):
            self.arm.rows_in_command = int(self.rng.integers(0, self.arm.lead_rows + 3))
            self._move("late", next(moves), good=False)
            self.arm.rows_in_command = 0
            if self.safety.held is not None:
                return
            self.clock.pass_s(0.1)

    def _stalled(self) -> None:
        self.arm.stall_share = float(self.rng.choice([0.05, 0.5]))
        moves = self._moves("random")
        for _ in range(self._count()):
            if self._move("stalled", next(moves), good=False) != "executed":
                return
            for _ in range(5):
                self.clock.pass_s(0.02)

    def _holds(self) -> None:
        moves = self._moves("bang-bang")
        for _ in range(int(self.rng.integers(1, 8))):
            for _ in range(int(self.rng.integers(1, 12))):
                if self._move("before a hold", next(moves)) != "executed":
                    return
                self.clock.pass_s(0.1)
            self.clock.pass_s(0.1 * self.rng.random())
            self._offer("hold", lambda: self.safety.hold("a test"))
            for _ in range(int(self.rng.integers(1, 6))):
                self._move("while held", next(moves), good=False)
                self._offer("while held", lambda: self.safety.grip(1.0))
                self._offer("while held", lambda: self.safety.move_joints(
                    np.array(self.arm.spec.home_rad), 0.1, 0.5))
                self.clock.pass_s(0.1 * self.rng.random())
            if self.safety.held is None:
                self.report.fault("a hold was gone without a re-arm")
                return
            self._release()

    def _blind(self) -> None:
        """The state is too old, or is no number."""
        moves = self._moves("random")
        for _ in range(int(self.rng.integers(3, 20))):
            if self._move("before blindness", next(moves)) != "executed":
                return
            self.clock.pass_s(0.1)
        n = len(self.arm.spec.joints)
        kind = int(self.rng.integers(3))
        if kind == 0:
            self.arm.age_s = float(self.rng.choice([0.21, 0.5, 10.0]))
        else:
            wrong = np.nan if kind == 1 else np.inf
            here = self.arm.position_rad
            here[int(self.rng.integers(n))] = wrong
            self.arm.lie = JointState(here, np.zeros(n), self.clock.now_s())
        for _ in range(int(self.rng.integers(1, 5))):
            self.clock.pass_s(0.21)
            if self._move("blind", next(moves), good=False) == "executed":
                self.report.fault("moved blind")
        self.clock.pass_s(2.0)
        self.arm.age_s, self.arm.lie = 0.0, None

    def _faults(self) -> None:
        moves = self._moves("random")
        for _ in range(int(self.rng.integers(3, 20))):
            if self._move("before a fault", next(moves)) != "executed":
                return
            self.clock.pass_s(0.1)
        self.arm.fail("it dropped out of its mode")
        for _ in range(int(self.rng.integers(1, 4))):
            if self._move("at fault", next(moves), good=False) == "executed":
                self.report.fault("moved an arm at fault")
            self.clock.pass_s(0.1)
        self.safety.watch()
        if self.safety.held is None:
            self.report.fault("an arm's fault was not noticed")
            self._offer("hold", lambda: self.safety.hold("after a fault"))

    def _stuck(self) -> None:
        self.arm.stuck = True
        moves = self._moves(str(self.rng.choice(["corners", "random", "bang-bang"])))
        for _ in range(int(self.rng.integers(10, 80))):
            if self._move("stuck", next(moves), good=False) != "executed":
                break
            self.clock.pass_s(0.1)
        self.arm.stuck = False

    def _rests(self) -> None:
        moves = self._moves("bang-bang")
        for _ in range(int(self.rng.integers(3, 20))):
            for _ in range(int(self.rng.integers(1, 6))):
                if self._move("before a rest", next(moves)) != "executed":
                    return
                self.clock.pass_s(0.1 * self.rng.random())
            self._offer("rest", self.safety.rest, good=True)
            for _ in range(int(self.rng.integers(1, 60))):
                self.clock.pass_s(0.05)
                self.safety.watch()
            if self.safety.held is not None:
                self.report.fault(f"held ({self.safety.held}) while it rested")
                return

    def _states(self) -> None:
        """Saved and restored in the middle of things: a hold stays."""
        moves = self._moves("random")
        for _ in range(int(self.rng.integers(3, 20))):
            saved = self.safety.get_state()
            self.safety.set_state(saved)
            if self._move("restored", next(moves)) != "executed":
                return
            self.clock.pass_s(0.1)
        saved, arm, rows = (self.safety.get_state(), self.arm.snapshot(),
                            self.checker.snapshot())
        self._offer("hold", lambda: self.safety.hold("before a restore"))
        self.clock.pass_s(0.05)
        self._cut()
        self.safety.set_state(saved)
        self.arm.restore(arm)
        self.checker.back(rows)
        if self.safety.held is None:
            self.report.fault("a restored state took a hold away")


def result_of(report: Report) -> dict[str, Any]:
    """A report as plain numbers, for JSON."""
    found = report.findings
    return {
        "steps": report.steps,
        "rows_sent": found.rows,
        "violations": found.total,
        "violations_by_kind": found.violations,
        "violation_examples": found.examples,
        "nearest_to_limit": {kind: round(ratio, 6) for kind, ratio in found.nearest.items()},
        "faults": report.fault_count,
        "fault_examples": report.faults,
        "offered": dict(sorted(report.offered.items())),
        "outcomes": {kind: dict(counts) for kind, counts in sorted(report.outcomes.items())},
        "holds": dict(report.holds),
        "rearms": report.rearms,
    }
