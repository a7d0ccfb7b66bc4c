"""Whether an arm follows: targets that move, joints that do or do not."""

from __future__ import annotations

import numpy as np
import pytest

from robot_rl_drivers.following import JOINTS_RAD, TARGETS_RAD, WITHIN_S, Following

BEAT_S = 0.01


def run(target, joints, seconds=1.0, following=None):
    """The first fault and when it came [s]."""
    following = following or Following()
    for k in range(round(seconds / BEAT_S) + 1):
        t = k * BEAT_S
        following.note(t, np.array([0.0, target(t)]), np.array([joints(t), 0.0]))
        if following.fault():
            return t, following.fault()
    return None, None


def test_joints_that_do_not_stir_are_found_half_a_second_later():
    at_s, fault = run(lambda t: 0.3 * t, lambda t: 0.0)
    assert at_s == pytest.approx(WITHIN_S, abs=2 * BEAT_S)
    assert "moved by 0.07" in fault and "does not follow" in fault


@pytest.mark.parametrize(("target", "joints"), [
    (lambda t: 0.3 * t, lambda t: 0.3 * max(t - 0.15, 0.0)),  # late, but it follows
    (lambda t: 0.0, lambda t: 0.0),
    (lambda t: 0.3 * TARGETS_RAD * np.sin(20.0 * t), lambda t: 0.0),
    # A motion that has just begun.
    (lambda t: 2.0 * max(t - 0.6, 0.0), lambda t: max(t - 0.7, 0.0)),
    (lambda t: 0.3 * t, lambda t: 2.0 * JOINTS_RAD * np.sin(30.0 * t)),
])
def test_arms_that_follow_or_were_asked_nothing_are_well(target, joints):
    assert run(target, joints) == (None, None)


def test_a_short_motion_is_judged_after_its_last_row_and_forgotten_when_told():
    following = Following()
    for k in range(20):
        following.note(0.01 * k, np.array([0.01 * k]), np.zeros(1))
    assert following.fault() is None
    following.note(0.45, None, np.zeros(1))
    assert following.fault() is None
    following.note(0.55, None, np.zeros(1))
    assert following.fault() is not None
    following.clear()
    assert following.fault() is None
    following.note(0.6, None, np.zeros(1))
    assert following.fault() is None
