"""The end of a program that drives an arm: it comes to rest first, however the program ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest

from robot_rl.envs.latency import DelayedArm
from robot_rl.safety.ending import Ending


def moving(bench, **options):
    at = bench(config=None, **options)
    for _ in range(4):
        at.step((0.02, 0.0, 0.0))
    return at


def test_settle_brakes_at_once_and_waits_for_the_last_row(bench):
    at = moving(bench, lead_rows=3)
    at.safety.move((0.02, 0.0, 0.0), 0.0, 0.1)
    at.wait(0.05)
    left = len(at.arm.queue)
    begun_s = at.clock.now_s()
    assert at.safety.settle()
    assert at.arm.queue == [] and at.safety.held is None
    # The brake is shorter than the rest of the command, and the end is at rest.
    took = round((at.clock.now_s() - begun_s) / at.arm.period_s)
    assert 3 <= took < left
    assert np.abs(at.arm.rows[-1] - at.arm.rows[-2]).max() < 1e-3
    assert at.arm.commands[-1].stop and not at.arm.commands[-2].stop
    assert np.array_equal(at.safety.setpoint_rad, at.arm.rows[-1])
    # Not latched.
    at.step((-0.01, 0.0, 0.0))


def test_settle_of_an_arm_at_rest_sends_nothing(bench):
    at = moving(bench)
    at.wait(2.0)
    sent, commands, now_s = at.arm.sent(), len(at.arm.commands), at.clock.now_s()
    assert at.safety.settle()
    assert (at.arm.sent(), len(at.arm.commands), at.clock.now_s()) == (sent, commands, now_s)


def test_settle_waits_for_the_brake_of_a_hold_and_no_longer_than_it_may(bench):
    at = moving(bench)
    at.safety.hold("enough")
    commands = len(at.arm.commands)
    assert at.safety.settle()
    assert len(at.arm.commands) == commands and at.arm.queue == []
    assert at.safety.held == "enough"

    stalled = moving(bench)
    stalled.arm.advance = lambda count: None
    assert not stalled.safety.settle(0.2)
    assert stalled.clock.now_s() == pytest.approx(0.6, abs=0.02)


def test_settle_of_an_arm_that_takes_no_commands_does_not_wait(bench):
    at = moving(bench)
    at.safety.move((0.02, 0.0, 0.0), 0.0, 0.1)
    at.arm.fault = "e-stop"
    now_s = at.clock.now_s()
    assert at.safety.settle()
    assert at.clock.now_s() == now_s


def test_the_brake_of_a_hold_is_a_stop_through_a_delay_as_well(bench):
    at = moving(bench)
    delayed = DelayedArm(at.arm)
    delayed.command(at.safety.planner.setpoints(at.safety._plan, stop=True))
    assert at.arm.commands[-1].stop


def test_an_ending_ends_once_and_gives_sigterm_back():
    ended = []
    before = signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        first, second = Ending(lambda: ended.append(1)), Ending(lambda: ended.append(2))
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5.0)
        first.close()
        first.close()
        assert ended == [1]
        assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
        second.close()
        assert ended == [1, 2]
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)


def test_an_ending_leaves_a_handler_of_the_programs_own_and_other_threads_alone():
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        ending = Ending(lambda: None)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
        ending.close()
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        made = []
        thread = threading.Thread(target=lambda: made.append(Ending(lambda: None)))
        thread.start()
        thread.join()
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        made[0].close()
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("how", ["raise", "exit", "term", "int", "fall"])
def test_a_program_ends_what_it_drives_however_it_ends(how, tmp_path):
    program = textwrap.dedent("""
        import os, signal, sys, time
        from robot_rl.safety.ending import Ending
        ending = Ending(lambda: print("at rest", flush=True))
        # Whoever starts this in the background may have set it to be ignored.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        how = sys.argv[1]
        if how == "raise":
            raise ValueError("a fault of the script")
        if how == "exit":
            sys.exit(3)
        if how in ("term", "int"):
            os.kill(os.getpid(), signal.SIGTERM if how == "term" else signal.SIGINT)
            time.sleep(30.0)
    """)
    done = subprocess.run([sys.executable, "-c", program, how], capture_output=True, text=True,
                          timeout=60.0)
    assert done.stdout == "at rest\n", done.stderr
    assert (done.returncode == 0) == (how == "fall")
