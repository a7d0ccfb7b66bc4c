"""The faults of the battery: how each is injected, what must happen, and within what time."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """One fault, written down before it is tried.

    ``within_s`` counts from the injection to what ``measured`` names: the first ``braking`` row
    that the robot received (or, where the driver drops what was left, the last row that moves);
    the ``robot``'s own hold, for a commander that cannot send any more (a Sawyer leaves the mode of
    its commands; a Franka, which goes on to its last target, has lost half its speed); or the
    ``hold`` in the commander, where the robot is dead or the arm was to rest anyway. None: there
    must be no hold. ``words`` (a regular expression) have to be in the operator's message.
    """

    name: str
    how: str
    must: str
    within_s: float | None
    measured: str
    words: str
    rigs: tuple[str, ...] = ("sawyer", "franka")


FAULTS: tuple[Fault, ...] = (
    Fault("camera_unplugged", "one camera's process sends no more pictures",
          "hold, latched", 0.2, "braking", r"camera '(front|side)'.* old"),
    Fault("camera_frozen", "a camera sends one picture again and again, with new stamps",
          "hold, latched", 0.3, "braking", r"camera '(front|side)'.* frozen"),
    Fault("camera_slow", "a camera sends every third of its 30 pictures a second",
          "hold, latched", 1.6, "braking", r"camera '(front|side)'.* (frames a second|old)"),
    Fault("camera_black", "a camera sends black pictures, with a little noise",
          "hold, latched", 0.3, "braking", r"camera '(front|side)'.* black"),
    Fault("camera_shape", "a camera sends pictures of half the width",
          "hold, latched", 0.2, "braking", r"camera '(front|side)'.*(should be|shape|picture)"),
    Fault("cameras_apart", "one camera's pictures come 68 to 78 ms late",
          "hold, latched", 0.4, "braking", r"out of step|camera '(front|side)'.* old"),
    Fault("state_stale", "the robot sends no more joint states",
          "hold, latched", 0.35, "braking", r"state.* old"),
    Fault("state_stuck", "the robot repeats a joint state: stamps and values, or values alone",
          "hold, latched", 1.2, "braking", r"state.* (old|frozen)"),
    Fault("state_nan", "the robot reports a joint angle that is not a number",
          "hold, latched; what was planned ends at rest", 0.45, "braking", r"nan|not finite"),
    Fault("action_nan", "the policy gives nan or an infinity, once, or from then on",
          "refused by name, nothing sent; once: the episode goes on; from then on: hold",
          0.25, "braking", r"not finite"),
    Fault("action_shape", "the policy gives an action of another shape, or text",
          "refused by name, nothing sent; the episode goes on", None, "", r"shape|not an array"),
    Fault("action_tenfold", "the policy gives ten times the largest action, or a motion as long",
          "shortened, told so, within limits; the episode goes on", None, "", r""),
    Fault("policy_hangs", "the policy does not return for 1 s",
          "hold, latched", 0.2, "braking", r"no command for"),
    Fault("commander_killed", "kill -9 of the commander",
          "the robot holds by itself; a new program begins where the arm is", 0.2, "robot", r""),
    Fault("commander_stopped", "SIGSTOP of the commander, SIGCONT after 5 s",
          "the robot holds by itself; nothing old is sent afterwards; hold, latched", 0.2, "robot",
          r"stream stopped|no command for|old"),
    Fault("emergency_stop", "the emergency stop is pressed, or a Franka stops itself by a reflex",
          "hold, latched; nothing clears it, not even its release, but a re-arm", 0.2, "braking",
          r"emergency stop|reflex"),
    Fault("robot_dies", "the robot's process ends at once; another starts in its place",
          "hold, latched; nothing is sent to the new one before a re-arm", 0.35, "hold",
          r"state.* old|not reported|last (state|report)"),
    Fault("reset_fails", "what a reset is to bring back is never there",
          "three tries, then hold, latched, and a call for help", None, "hold", r"3 tries"),
    Fault("clock_steps", "the wall clocks of commander, robot and cameras step by an hour",
          "nothing: the arm goes on", None, "", r""),
    Fault("master_restarts", "the ROS master is killed, and another started",
          "hold, latched, or unnoticed; after a re-arm all works, new programs too", 2.5, "braking",
          r"ROS master", rigs=("sawyer",)),
)
BY_NAME = {fault.name: fault for fault in FAULTS}
