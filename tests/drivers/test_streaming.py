"""The beat of the set-points: every row once, in order, never two at once."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robot_rl.errors import InvalidInputError, LateCommandError, SafetyError
from robot_rl.interfaces import Clock, JointSetpoints
from robot_rl_drivers.clock import MonotonicClock
from robot_rl_drivers.streaming import Row, SetpointStreamer

ROOT = Path(__file__).resolve().parents[2]
PERIOD_S = 0.005


class Wire:
    """Takes rows down, with their times."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.times_s: list[float] = []
        self.delay_s = 0.0
        self.error: Exception | None = None

    def __call__(self, row: Row) -> None:
        if self.error is not None:
            raise self.error
        self.times_s.append(time.monotonic())
        self.rows.append(row)
        if self.delay_s:
            time.sleep(self.delay_s)

    def first(self) -> list[float]:
        """The first joint of each row that is no repeat."""
        return [float(row.position_rad[0]) for row in self.rows if not row.repeated]


@pytest.fixture
def wire():
    return Wire()


@pytest.fixture
def stream(wire):
    """Makes streamers that are closed at the end."""
    made = []

    def make(**options):
        options.setdefault("max_gap_s", 0.3)
        streamer = SetpointStreamer(1, PERIOD_S, wire, **options)
        made.append(streamer)
        return streamer

    yield make
    for streamer in made:
        streamer.close()


def rows(*values: float, at: int = 0, **more) -> JointSetpoints:
    return JointSetpoints(np.array(values, dtype=float)[:, None], PERIOD_S, at=at, **more)


def drained(streamer: SetpointStreamer, timeout_s: float = 10.0) -> None:
    end_s = time.monotonic() + timeout_s
    while streamer.pending():
        assert time.monotonic() < end_s, streamer.fault
        time.sleep(0.001)


def test_every_row_goes_out_once_in_order_and_never_two_at_once(stream, wire):
    streamer = stream()
    begun_s = time.monotonic()
    streamer.command(rows(*range(100)))
    drained(streamer)
    assert wire.first() == list(range(100))
    assert [row.number for row in wire.rows] == list(range(100))
    assert streamer.sent() == 100
    gaps = np.diff(wire.times_s)
    assert gaps.min() >= 0.45 * PERIOD_S
    assert wire.times_s[-1] - begun_s >= 98 * PERIOD_S


def test_a_command_takes_over_at_its_row_and_forgets_those_behind(stream, wire):
    streamer = stream()
    streamer.command(rows(*range(60)))
    while streamer.sent() < 5:
        time.sleep(0.001)
    streamer.command(rows(100, 101, 102, at=30))
    drained(streamer)
    assert wire.first() == [*range(30), 100, 101, 102]
    assert streamer.sent() == 33


def test_a_late_command_changes_nothing(stream, wire):
    streamer = stream()
    streamer.command(rows(*range(20)))
    while streamer.sent() < 10:
        time.sleep(0.001)
    with pytest.raises(LateCommandError, match="row 3"):
        streamer.command(rows(100, 101, at=3))
    drained(streamer)
    assert wire.first() == list(range(20))
    with pytest.raises(LateCommandError):
        streamer.command(rows(1, at=19))
    streamer.command(rows(7, at=20))
    drained(streamer)
    assert wire.first()[-1] == 7


def test_rows_ahead_of_the_queue_wait_at_rest(stream, wire):
    streamer = stream()
    streamer.command(rows(5, 6))
    drained(streamer)
    streamer.command(rows(7, at=5))
    drained(streamer)
    assert wire.first() == [5, 6, 6, 6, 6, 7]
    assert streamer.sent() == 6


@settings(max_examples=12, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 8), st.integers(1, 12)), min_size=1, max_size=6))
def test_any_splices_give_the_rows_that_a_list_gives(commands):
    wire, model, value = Wire(), [], 0.0
    streamer = SetpointStreamer(1, 0.002, wire, max_gap_s=1.0)
    try:
        for ahead, count in commands:
            at = streamer.sent() + ahead
            values = [value + i for i in range(count)]
            try:
                streamer.command(
                    JointSetpoints(np.array(values)[:, None], 0.002, at=at)
                )
            except LateCommandError:
                continue
            kept = model[:at]
            kept += [kept[-1] if kept else values[0]] * (at - len(kept))
            model = kept + values
            value += 100.0
        drained(streamer)
        assert wire.first() == model
    finally:
        streamer.close()


def test_after_a_stall_of_the_wire_rows_do_not_come_in_a_burst(stream, wire):
    streamer = stream(max_gap_s=1.0)
    wire.delay_s = 0.05  # ten periods for each row
    streamer.command(rows(*range(4)))
    drained(streamer)
    wire.delay_s = 0.0
    streamer.command(rows(*range(40), at=4))
    drained(streamer)
    assert np.diff(wire.times_s[5:]).min() >= 0.45 * PERIOD_S


def test_a_row_that_was_held_up_on_its_way_out_is_not_sent(stream, wire):
    """As where the process is stopped between the look at the clock and the wire."""
    streamer, sent = stream(max_gap_s=0.05), []

    def send(row: Row) -> None:
        if row.number == 2:
            time.sleep(0.15)
        row.check_in_time()
        sent.append(row.number)

    streamer._send = send
    streamer.command(rows(*np.linspace(0.0, 0.1, 20)))
    assert sent == [] or sent[0] == 0
    end_s = time.monotonic() + 5.0
    while streamer.fault is None and time.monotonic() < end_s:
        time.sleep(0.005)
    assert "the command stream stopped for 0.1" in streamer.fault
    assert sent == [0, 1] and streamer.pending() == 0
    Row(0, np.zeros(1), np.zeros(1), np.zeros(1)).check_in_time()


def test_a_gap_drops_the_rest_and_stays_a_fault_until_cleared(stream, wire):
    streamer = stream(max_gap_s=0.05)
    wire.delay_s = 0.2
    streamer.command(rows(*range(50)))
    while streamer.fault is None:
        time.sleep(0.001)
    wire.delay_s = 0.0
    assert "stopped for 0.2" in streamer.fault
    assert streamer.pending() == 0
    sent = streamer.sent()
    assert 0 < sent < 50
    with pytest.raises(SafetyError, match="stopped for"):
        streamer.command(rows(1, at=sent))
    time.sleep(5 * PERIOD_S)
    assert streamer.sent() == sent and streamer.fault is not None
    streamer.clear()
    assert streamer.fault is None
    time.sleep(5 * PERIOD_S)
    assert streamer.sent() == sent, "nothing is sent before the next command"
    streamer.command(rows(9, at=sent))
    drained(streamer)
    assert wire.first()[-1] == 9


def test_the_last_row_is_repeated_at_rest_and_does_not_count(stream, wire):
    streamer = stream(repeat=True)
    streamer.command(rows(1, 2, 3, velocity_rad_s=np.full((3, 1), 0.5)))
    drained(streamer)
    assert streamer.held_rad == pytest.approx([3.0])
    time.sleep(10 * PERIOD_S)
    repeats = [row for row in wire.rows if row.repeated]
    assert len(repeats) >= 3 and streamer.sent() == 3
    assert all(row.position_rad[0] == 3 and row.velocity_rad_s[0] == 0 for row in repeats)
    assert np.diff(wire.times_s).min() >= 0.45 * PERIOD_S
    streamer.release()
    time.sleep(2 * PERIOD_S)
    count = len(wire.rows)
    time.sleep(6 * PERIOD_S)
    assert len(wire.rows) == count and streamer.held_rad is None
    streamer.command(rows(4, at=3))
    drained(streamer)
    assert wire.first() == [1, 2, 3, 4]


def test_without_repeats_the_wire_falls_silent(stream, wire):
    streamer = stream()
    streamer.command(rows(1))
    drained(streamer)
    time.sleep(6 * PERIOD_S)
    assert len(wire.rows) == 1


def test_stop_drops_everything_and_the_first_reason_stays(stream, wire):
    streamer = stream(repeat=True)
    streamer.command(rows(*range(500)))
    time.sleep(4 * PERIOD_S)
    streamer.stop("the robot was disabled")
    streamer.stop("and something else")
    count = len(wire.rows)
    time.sleep(5 * PERIOD_S)
    assert len(wire.rows) == count and streamer.pending() == 0
    assert streamer.fault == "the robot was disabled"


def test_a_wire_that_breaks_stops_the_stream(stream, wire):
    streamer = stream()
    wire.error = OSError("no route")
    streamer.command(rows(1, 2))
    while streamer.fault is None:
        time.sleep(0.001)
    assert "OSError: no route" in streamer.fault and streamer.sent() == 0


def test_velocities_that_are_not_given_are_those_of_straight_lines(stream, wire):
    streamer = stream()
    streamer.command(rows(1.0, 1.01, 1.03))
    drained(streamer)
    speeds = [row.velocity_rad_s[0] for row in wire.rows]
    assert speeds == pytest.approx([0.0, 0.01 / PERIOD_S, 0.0])
    streamer.command(rows(1.04, 1.04, at=3))
    drained(streamer)
    assert wire.rows[3].velocity_rad_s[0] == pytest.approx(0.01 / PERIOD_S)


@pytest.mark.parametrize(
    ("setpoints", "match"),
    [
        (JointSetpoints(np.zeros(3), PERIOD_S), "shape"),
        (JointSetpoints(np.zeros((0, 1)), PERIOD_S), "shape"),
        (JointSetpoints(np.zeros((2, 2)), PERIOD_S), "shape"),
        (JointSetpoints(np.zeros((2, 1)), 0.02), "period_s is 0.02"),
        (JointSetpoints(np.array([[np.nan]]), PERIOD_S), "not finite"),
        (JointSetpoints(np.zeros((2, 1)), PERIOD_S, np.zeros((1, 1))), "velocity_rad_s has shape"),
        (JointSetpoints(np.zeros((2, 1)), PERIOD_S, None, np.full((2, 1), np.inf)), "not finite"),
        (JointSetpoints(np.zeros((2, 1)), PERIOD_S, at=-1), "at is -1"),
    ],
)
def test_what_cannot_be_sent_is_refused_whole(stream, wire, setpoints, match):
    streamer = stream()
    with pytest.raises(InvalidInputError, match=match):
        streamer.command(setpoints)
    assert streamer.pending() == 0 and not wire.rows


def test_the_caller_may_change_its_arrays_afterwards(stream, wire):
    streamer = stream()
    given_rows = np.arange(5.0)[:, None]
    taken = streamer.command(JointSetpoints(given_rows, PERIOD_S))
    given_rows[:] = 99.0
    taken.position_rad[:] = 98.0
    drained(streamer)
    assert wire.first() == [0, 1, 2, 3, 4]


def test_commands_from_several_threads_leave_whole_rows(stream, wire):
    streamer = stream()
    done = threading.Event()

    def commander(value: float) -> None:
        while not done.is_set():
            try:
                streamer.command(rows(*[value] * 5, at=streamer.sent() + 2))
            except LateCommandError:
                pass

    threads = [threading.Thread(target=commander, args=(v,)) for v in (1.0, 2.0)]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    done.set()
    for thread in threads:
        thread.join()
    drained(streamer)
    assert set(wire.first()) <= {1.0, 2.0}
    assert [row.number for row in wire.rows] == list(range(len(wire.rows)))


_STOPPED = """
    import json, sys, time
    import numpy as np
    from robot_rl.interfaces import JointSetpoints
    from robot_rl_drivers.streaming import SetpointStreamer

    times = []
    streamer = SetpointStreamer(1, 0.01, lambda row: times.append(time.monotonic()),
                                max_gap_s=0.2, repeat=sys.argv[1] == "hold")
    rows = 10 if sys.argv[1] == "hold" else 3000
    streamer.command(JointSetpoints(np.zeros((rows, 1)), 0.01))
    time.sleep(0.3)
    print("up", flush=True)
    sys.stdin.readline()
    time.sleep(0.1)
    print(json.dumps({"fault": streamer.fault, "times": times, "sent": streamer.sent()}))
"""


@pytest.mark.parametrize("doing", ["moving", "hold"])
def test_a_process_that_was_stopped_does_not_catch_up(doing):
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(_STOPPED), doing], stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'drivers'}"},
    )
    try:
        assert child.stdout is not None and child.stdout.readline() == "up\n"
        child.send_signal(signal.SIGSTOP)
        time.sleep(0.6)
        child.send_signal(signal.SIGCONT)
        out, _ = child.communicate("\n", timeout=30)
    finally:
        child.kill()
    seen = json.loads(out)
    gaps = np.diff(seen["times"])
    assert gaps.min() >= 0.0045
    if doing == "moving":
        assert "command stream stopped for 0." in seen["fault"]
        assert seen["sent"] < 200
    else:
        # At rest nothing is lost: the arm holds by itself, and repeats have ended.
        assert seen["fault"] is None and seen["sent"] == 10


def test_closing_sends_the_braking_rest_and_takes_no_more(wire):
    stream = SetpointStreamer(1, PERIOD_S, wire, repeat=True)
    rows = np.linspace(0.0, 1.0, 60)[:, None]
    velocity = np.full_like(rows, 1.0)
    velocity[-1] = 0.0
    stream.command(JointSetpoints(rows, PERIOD_S, velocity))
    began_s = time.monotonic()
    closing = threading.Thread(target=stream.close)
    closing.start()
    while not stream._ending:
        time.sleep(0.001)
    with pytest.raises(SafetyError, match="closed"):
        stream.command(JointSetpoints(rows, PERIOD_S, at=stream.sent() + 5))
    closing.join()
    assert time.monotonic() - began_s > 50 * PERIOD_S
    assert wire.first() == pytest.approx(rows[:, 0])
    assert not wire.rows[-1].velocity_rad_s.any()


def test_closing_does_not_wait_for_ever(wire, monkeypatch):
    monkeypatch.setattr("robot_rl_drivers.streaming.LONGEST_END_S", 0.05)
    stream = SetpointStreamer(1, PERIOD_S, wire)
    stream.command(JointSetpoints(np.zeros((10_000, 1)), PERIOD_S))
    began_s = time.monotonic()
    stream.close()
    assert time.monotonic() - began_s < 3.0
    assert len(wire.rows) < 1000


def test_closing_after_a_fault_waits_for_nothing(wire):
    stream = SetpointStreamer(1, PERIOD_S, wire)
    stream.command(JointSetpoints(np.zeros((10_000, 1)), PERIOD_S))
    threading.Timer(0.05, stream.stop, ("stopped",)).start()
    began_s = time.monotonic()
    stream.close()
    assert time.monotonic() - began_s < 2.5
    stream.close()


@pytest.mark.parametrize("gap_s", [math.nan, math.inf, -1.0, 0.0, 1.1, PERIOD_S / 2])
def test_the_gap_has_bounds(wire, gap_s):
    with pytest.raises(InvalidInputError, match="max_gap_s"):
        SetpointStreamer(1, PERIOD_S, wire, max_gap_s=gap_s)


def test_the_clock_is_monotonic_and_sleeps_until():
    clock = MonotonicClock()
    assert isinstance(clock, Clock)
    begun_s = clock.now_s()
    clock.sleep_until(begun_s - 1.0)
    clock.sleep_until(begun_s + 0.02)
    assert begun_s + 0.02 <= clock.now_s() < begun_s + 1.0
    with pytest.raises(InvalidInputError, match="nan"):
        clock.sleep_until(float("nan"))
