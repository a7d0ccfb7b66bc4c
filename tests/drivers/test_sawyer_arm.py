"""The Sawyer driver against a simulated Sawyer: a process that speaks Intera on ROS 1."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from robot_rl.errors import (
    InvalidInputError,
    LateCommandError,
    MissingDependencyError,
    RobotRLError,
    SafetyError,
    StaleDataError,
)

pytest.importorskip("mujoco")
try:
    from robot_rl.ros.ros1_import import import_rospy

    import_rospy()
except MissingDependencyError as error:
    pytest.skip(str(error), allow_module_level=True)

from robot_rl.backends import make_rig
from robot_rl.interfaces import Arm, ForceSensor, Gripper, JointSetpoints, ObjectTracker, RigRequest
from robot_rl.kinematics import Kinematics
from robot_rl.ros.ros1 import master_answers
from robot_rl.specs import load_robot
from tests.drivers.intera import SimProcess, intera_request, intera_rig, smooth, wait_for

ROOT = Path(__file__).resolve().parents[2]
SPEC = load_robot("sawyer")
CHANGE = np.array([0.3, -0.15, -0.2, 0.1, 0.25, -0.2, 0.4])


@pytest.fixture
def sim(intera_sim):
    """The simulated robot, whole and at home."""
    intera_sim.control(restart=True)
    intera_sim.heal()
    return intera_sim


@pytest.fixture
def rig(sim):
    with intera_rig(sim) as made:
        yield made


def move(arm, rows: int, change: np.ndarray = CHANGE) -> np.ndarray:
    """Send a motion from where the arm is; its positions (rows, n)."""
    start = arm.state(0.5).position_rad
    position, velocity, acceleration = smooth(start, change, rows)
    arm.command(JointSetpoints(position, arm.period_s, velocity, acceleration, arm.sent()))
    return position


def rest(arm) -> None:
    wait_for(lambda: not arm.streamer.pending(), "the rows to be sent", lambda: arm.status())


def test_the_parts_are_what_the_interfaces_ask_for(rig):
    assert isinstance(rig.arm, Arm) and isinstance(rig.gripper, Gripper)
    assert isinstance(rig.tracker, ObjectTracker) and isinstance(rig.force, ForceSensor)
    assert rig.scene is None and rig.address.endswith("/right")
    assert all(ok for _, ok, _ in rig.arm.checks()), rig.arm.checks()
    assert {name for name, _, _ in rig.arm.checks()} >= {"connection", "limits", "emergency stop"}


@pytest.mark.parametrize(("mode", "close_rad"), [("trajectory", 0.03), ("position", 0.06),
                                                 ("velocity", 0.04)])
def test_the_arm_follows_every_row_in_each_mode(sim, mode, close_rad):
    with intera_rig(sim, mode=mode) as rig:
        arm = rig.arm
        before = len(sim.record().get("mode", ()))
        rows = move(arm, 120)
        worst = 0.0
        while arm.streamer.pending():
            at = max(arm.sent() - 1, 0)
            worst = max(worst, float(np.abs(arm.state(0.5).position_rad - rows[at]).max()))
            time.sleep(0.01)
        assert worst < close_rad
        wait_for(lambda: np.abs(arm.state(0.5).position_rad - rows[-1]).max() < 2e-3, "the end")
        assert arm.sent() == 120
        taken = {name: values[before:] for name, values in sim.record().items()}
    number = {"trajectory": 4, "position": 1, "velocity": 2}[mode]
    assert set(taken["mode"][:120]) == {number}
    if mode == "velocity":
        assert (np.abs(taken["velocity"]) <= SPEC.limits("velocity_rad_s") + 1e-9).all()
    else:
        assert np.array_equal(taken["position"][:120], rows)
    # Afterwards the last row is repeated, at rest.
    if mode == "trajectory":
        assert np.array_equal(taken["position"][-1], rows[-1])
        assert not taken["velocity"][-1].any()
    assert np.diff(taken["seq"]).max() == 1, "no message was lost"


def test_a_command_takes_over_in_flight_and_a_late_one_changes_nothing(sim, rig):
    arm = rig.arm
    before = len(sim.record().get("mode", ()))
    first = move(arm, 200)
    while arm.sent() < 40:
        time.sleep(0.002)
    at = arm.sent() + arm.lead_rows + 10
    turned = first[at - 1] + 0.0005 * np.arange(1, 31)[:, None]
    arm.command(JointSetpoints(turned, arm.period_s, at=at))
    with pytest.raises(LateCommandError):
        arm.command(JointSetpoints(first[:10], arm.period_s, at=3))
    rest(arm)
    wait_for(lambda: len(sim.record()["mode"]) >= before + at + 30, "the rows")
    got = sim.record()["position"][before:]
    assert np.array_equal(got[:at], first[:at])
    assert np.array_equal(got[at : at + 30], turned)


def test_joints_come_by_name_whatever_the_order(sim, rig):
    move(rig.arm, 60)
    rest(rig.arm)
    time.sleep(0.3)
    ordered = rig.arm.state(0.5).position_rad
    sim.fault("reorder")
    time.sleep(0.1)
    for _ in range(10):
        assert np.allclose(rig.arm.state(0.5).position_rad, ordered, atol=1e-4)
        time.sleep(0.015)
    assert rig.arm.status().ready


def test_an_emergency_stop_stays_a_fault_until_an_operator_recovers(sim, rig):
    arm = rig.arm
    move(arm, 400)
    time.sleep(0.3)
    sim.control(estop="press")
    wait_for(lambda: not arm.status().ready, "the fault")
    assert "emergency stop by its button" in arm.status().fault
    assert arm.streamer.pending() == 0
    with pytest.raises(SafetyError, match="emergency stop"):
        arm.command(JointSetpoints(arm.state(0.5).position_rad[None], arm.period_s, at=arm.sent()))
    with pytest.raises(SafetyError, match="turn its button"):
        arm.recover()
    # The button comes up and somebody enables the robot: still no commands from here.
    sim.control(estop="release")
    sim.control(reset=True)
    sim.control(enable=True)
    time.sleep(0.3)
    taken = sim.control(report=True)["taken"]
    assert not arm.status().ready and "emergency stop" in arm.status().fault
    time.sleep(0.2)
    assert sim.control(report=True)["taken"] == taken
    arm.recover()
    assert arm.status().ready
    rows = move(arm, 60)
    wait_for(lambda: np.abs(arm.state(0.5).position_rad - rows[-1]).max() < 2e-3, "the end")


def test_recovery_opens_a_topic_again_whose_connection_was_lost(sim, rig, monkeypatch):
    publisher = type(rig.arm._enable)
    renewed = []
    renew, publish, peers = publisher.renew, publisher.publish, publisher.peers
    monkeypatch.setattr(publisher, "renew", lambda self: (renewed.append(self.topic), renew(self)))
    # As where the robot believes that a connection from before is this one.
    lost = lambda self: "enable" in self.topic and not renewed  # noqa: E731
    monkeypatch.setattr(publisher, "publish", lambda self, m: lost(self) or publish(self, m))
    monkeypatch.setattr(publisher, "peers", lambda self: 0 if lost(self) else peers(self))
    sim.control(enable=False)
    wait_for(lambda: not rig.arm.status().ready, "the fault")
    rig.arm.recover()
    assert rig.arm.status().ready and renewed[0] == "/robot/set_super_enable"


def test_recover_resets_and_enables_and_nothing_else_does(sim):
    sim.control(error=True)
    rig = make_rig("ros1", intera_request(sim.ready["master_uri"]))
    try:
        wait_for(lambda: rig.arm.status().fault, "a fault")
        time.sleep(0.3)
        assert sim.control(report=True)["state"]["enabled"] is False
        assert "not enabled" in rig.arm.status().fault
        failed = {name for name, ok, _ in rig.arm.checks() if not ok}
        assert failed == {"enabled"}
        rig.arm.recover()
        state = sim.control(report=True)["state"]
        assert state["enabled"] and not state["error"] and rig.arm.status().ready
    finally:
        rig.close()


@pytest.mark.parametrize(("fault", "word"), [("collision", "collision"), ("cuff", "by hand")])
def test_a_collision_and_a_hand_on_the_cuff_drop_what_was_to_be_sent(sim, rig, fault, word):
    arm = rig.arm
    move(arm, 400)
    time.sleep(0.2)
    sim.fault(fault)
    wait_for(lambda: arm.status().fault, "the fault")
    assert word in arm.status().fault and arm.streamer.pending() == 0
    with pytest.raises(SafetyError, match=word):
        arm.recover()
    sim.fault(fault, None)
    time.sleep(0.3)
    assert word in arm.status().fault, "it does not clear itself"
    arm.recover()
    assert arm.status().ready


def test_an_arm_that_is_moved_while_it_holds_is_not_thrown_back(sim, rig):
    arm = rig.arm
    move(arm, 30)
    rest(arm)
    time.sleep(0.2)
    sim.fault("push", [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.3])
    wait_for(lambda: arm.status().fault, "the fault")
    assert "moved while it was to stay: right_j6" in arm.status().fault
    taken = sim.control(report=True)["taken"]
    time.sleep(0.2)
    assert sim.control(report=True)["taken"] <= taken + 1


def test_set_points_far_from_the_arm_are_refused(rig):
    start = rig.arm.state(0.5).position_rad
    with pytest.raises(SafetyError, match="too far from where the arm is: right_j3"):
        rig.arm.command(
            JointSetpoints((start + np.eye(7)[3] * 0.4)[None], rig.arm.period_s, at=0)
        )
    assert rig.arm.sent() == 0 and rig.arm.status().ready


def test_without_commands_the_robot_leaves_the_mode_and_holds(sim):
    with intera_rig(sim, command_timeout_s="0.12", max_gap_s="0.1") as rig:
        move(rig.arm, 300)
        wait_for(lambda: sim.control(report=True)["timeout_s"] == 0.12, "the time-out")
        assert sim.control(report=True)["speed_ratio"] == 1.0
        time.sleep(0.5)
        before = sim.control(report=True)
        assert before["mode"] == 4
        rig.arm.streamer.stop("as if the program died in mid-motion")
        wait_for(lambda: sim.control(report=True)["mode"] == 0, "the time-out to pass")
        assert sim.control(report=True)["timeouts"] == before["timeouts"] + 1
        wait_for(lambda: not np.abs(rig.arm.state(0.5).velocity_rad_s).max() > 1e-3, "rest")


def test_closing_in_mid_motion_sends_the_rest(sim):
    with intera_rig(sim) as rig:
        rows = move(rig.arm, 60)
        wait_for(lambda: rig.arm.sent() > 20, "some rows")
        assert rig.arm.streamer.pending()
    end = sim.record()
    assert end["position"][-1] == pytest.approx(rows[-1])
    assert not end["velocity"][-1].any()


def test_limits_that_are_narrower_are_an_error_with_joint_and_values(sim):
    sim.fault("narrow_limits", 0.9)
    with pytest.raises(SafetyError, match=r"lower_rad of right_j0 is -2\.745.* narrower.*-3\.05"):
        make_rig("ros1", intera_request(sim.ready["master_uri"]))
    sim.fault("narrow_limits", 1.2)
    with intera_rig(sim) as rig:
        assert rig.arm.status().ready
        sim.fault("narrow_limits", 0.9)
        wait_for(lambda: rig.arm.status().fault, "the fault")
        assert "right_j0" in rig.arm.status().fault
        sim.fault("narrow_limits", None)


@pytest.mark.parametrize(
    ("fault", "value", "word", "stale"),
    [
        ("silent", True, "joint states are", True),
        ("frozen", True, "stamp has not changed", True),
        ("nan", 3, "nan as the angle of right_j3", False),
        ("drop_joint", 2, "no joint right_j2", True),
    ],
)
def test_joint_states_that_cannot_be_trusted(sim, rig, fault, value, word, stale):
    arm = rig.arm
    sim.fault(fault, value)
    wait_for(lambda: arm.status().fault, "the fault")
    assert word in arm.status().fault
    if stale:
        with pytest.raises(StaleDataError):
            wait_for(lambda: not arm.state(0.1), "staleness", timeout_s=2.0)
    else:
        assert np.isnan(arm.state(0.5).position_rad[3])
    with pytest.raises(SafetyError, match="takes no commands"):
        arm.command(JointSetpoints(np.zeros((1, 7)), arm.period_s, at=arm.sent()))
    sim.fault(fault, None)
    wait_for(lambda: arm.status().ready, "the readings to come back", lambda: arm.status())


def test_a_robot_that_is_not_heard_is_not_told_to_stay_either(sim, rig):
    arm = rig.arm
    move(arm, 30)
    rest(arm)
    wait_for(lambda: arm.streamer.stats.repeats > 5, "the last row to be repeated")
    sim.fault("silent")
    fault = wait_for(lambda: arm.streamer.fault, "the end of the repeats")
    assert "joint states are" in fault
    taken = sim.control(report=True)["taken"]
    time.sleep(0.1)
    assert sim.control(report=True)["taken"] == taken
    sim.fault("silent", None)
    time.sleep(0.2)
    assert sim.control(report=True)["taken"] == taken and not arm.status().ready
    arm.recover()
    assert arm.status().ready


def test_values_that_never_change_while_set_points_move_are_found(sim, rig):
    arm = rig.arm
    sim.fault("frozen_values")
    time.sleep(0.2)
    move(arm, 300)
    fault = wait_for(lambda: arm.status().fault, "the fault")
    assert "no angle has changed" in fault


def test_a_stop_replaces_rows_that_go_out_though_the_state_is_at_fault(sim, rig):
    arm = rig.arm
    rows = move(arm, 300)
    wait_for(lambda: arm.sent() >= 50, "some rows")
    sim.fault("nan", True)
    wait_for(lambda: not arm.status().ready, "the fault", lambda: arm.status())
    at = arm.sent() + arm.lead_rows + 5
    still = JointSetpoints(rows[at: at + 2], arm.period_s, at=at)
    with pytest.raises(SafetyError, match="reports nan"):
        arm.command(still)
    arm.command(replace(still, stop=True))
    wait_for(lambda: not arm.streamer.pending(), "the stop")
    assert arm.sent() == at + 2 < 300
    with pytest.raises(SafetyError, match="reports nan"):
        arm.command(replace(still, at=arm.sent() + 3, stop=True))


def test_a_robot_that_ignores_set_points_is_found(sim, rig):
    arm = rig.arm
    move(arm, 150)
    rest(arm)
    assert arm.status().ready
    sim.fault("deaf", True)
    move(arm, 150, -CHANGE)
    wait_for(lambda: not arm.status().ready, "the fault", lambda: arm.status())
    fault = arm.status().fault
    assert "does not follow its targets" in fault or "no angle has changed" in fault, fault


def test_one_program_commands_and_others_may_look(sim, rig):
    arm = rig.arm
    code = f"""
        import sys, time
        import numpy as np
        from robot_rl.backends import make_rig
        from robot_rl.errors import SafetyError
        from robot_rl.interfaces import JointSetpoints
        from robot_rl.ros.ros1 import Ros1Session
        from tests.drivers.intera import intera_request, wait_for
        rig = make_rig("ros1", intera_request({sim.ready["master_uri"]!r}))
        wait_for(lambda: rig.arm.status().ready, "the arm")
        print("looks", flush=True)
        sys.stdin.readline()
        rows = np.tile(rig.arm.state(0.5).position_rad, (3, 1))
        try:
            rig.arm.command(JointSetpoints(rows, rig.arm.period_s))
        except SafetyError as error:
            print(error, flush=True)
        sys.stdin.readline()
        rig.close()
        session = Ros1Session({sim.ready["master_uri"]!r})
        session.publisher("/robot/limb/right/joint_command", "intera_core_msgs/JointCommand")
        time.sleep(30)
    """
    move(arm, 20)
    rest(arm)
    other = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE,
        stdin=subprocess.PIPE, text=True, cwd=Path(__file__).resolve().parents[2],
    )
    try:
        assert other.stdout is not None and other.stdin is not None
        assert other.stdout.readline() == "looks\n"
        move(arm, 20, -CHANGE)
        rest(arm)
        assert arm.status().ready
        other.stdin.write("\n")
        other.stdin.flush()
        assert "another program publishes /robot/limb/right/joint_command" in (
            other.stdout.readline())
        assert arm.status().ready
        other.stdin.write("\n")
        other.stdin.flush()
        wait_for(lambda: "another program" in str(arm.streamer.fault), "the end of the repeats",
                 lambda: arm.status())
    finally:
        other.kill()
        other.communicate()
    wait_for(lambda: arm._session.fault() is None, "the other one's end")
    assert not arm.status().ready
    arm.recover()
    assert arm.status().ready


def test_the_master_restarts_in_mid_session(sim, rig):
    arm, again = rig.arm, sim.control(report=True)["registered_again"]
    rows = move(arm, 150)
    sim.master.stop(hard=True)
    fault = wait_for(lambda: arm.status().fault, "the fault")
    assert "ROS master" in fault
    rest(arm)  # connections that stand go on: the motion ends as it was sent
    wait_for(lambda: np.abs(arm.state(0.5).position_rad - rows[-1]).max() < 2e-3, "the end")
    sim.master.start()
    wait_for(lambda: arm.status().ready, "the master", lambda: arm.status())
    wait_for(lambda: sim.control(report=True)["registered_again"] > again, "the robot as well")
    rows = move(arm, 60, -0.5 * CHANGE)
    wait_for(lambda: np.abs(arm.state(0.5).position_rad - rows[-1]).max() < 2e-3, "the end")


def test_the_gripper_opens_closes_and_reports(sim, rig):
    gripper = rig.gripper
    assert gripper.command(1.0) == 1.0
    wait_for(lambda: gripper.opening(1.0) > 0.95, "the gripper to open")
    assert gripper.command(-3.0) == 0.0
    wait_for(lambda: gripper.opening(1.0) < 0.05, "the gripper to close")
    with pytest.raises(InvalidInputError, match="nan"):
        gripper.command(float("nan"))
    with pytest.raises(StaleDataError):
        gripper.opening(0.0)
    watch = rig.watches["gripper"]
    assert watch() is None
    sim.fault("gripper_error")
    wait_for(watch, "the gripper's error")
    assert "error" in watch()
    rig.arm.recover()
    assert watch() is None


def test_what_stands_on_the_table_and_touches_the_tool(sim, rig):
    puck = rig.tracker.body("puck", 1.0)
    assert np.isfinite(puck.position_m).all() and 0.01 < puck.position_m[2] < 0.03
    wait_for(lambda: np.abs(rig.tracker.body("puck", 1.0).velocity_m_s).max() < 1e-4, "rest")
    with pytest.raises(InvalidInputError, match="puk"):
        rig.tracker.body("puk", 1.0)
    wrench = wait_for(lambda: rig.force.wrench(1.0), "a wrench")
    assert np.abs(wrench.force_n).max() < 1e-6
    # Lean on the table: the world pushes the tool up.
    kinematics, arm = Kinematics(SPEC), rig.arm
    q = arm.state(0.5).position_rad
    pose = kinematics.forward(q)
    pose[:3, 3] = [0.55, 0.2, -0.004]
    target = kinematics.inverse(pose, q).q_rad
    move(arm, 250, target - q)
    wait_for(lambda: rig.force.wrench(1.0).force_n[2] > 3.0, "the table's push",
             lambda: rig.force.wrench(1.0))


def test_no_gripper_no_tracker_no_force(sim):
    with intera_rig(sim, gripper="none", tracker="none", force="none") as rig:
        assert rig.gripper.command(0.7) == 0.0 and rig.gripper.opening(0.1) == 0.0
        assert rig.force is None
        with pytest.raises(StaleDataError, match="tracker=none"):
            rig.tracker.body("puck", 1.0)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"mode": "torque"}, "mode of sawyer"), ({"griper": "none"}, "did you mean 'gripper'"),
        ({"gripper": "vacuum"}, "electric, none"), ({"command_timeout_s": "x"}, "a number"),
        ({"command_timeout_s": "9"}, r"in \[0.04, 0.2\]"),
        ({"command_timeout_s": "0.21"}, "command_timeout_s is '0.21'"),
        ({"max_gap_s": "0.5"}, "max_gap_s"),
        ({"master_uri": "sawyer"}, "master_uri"), ({"wrench": "up"}, "sense of the wrench"),
    ],
)
def test_options_that_cannot_be_used_are_named(sim, options, match):
    with pytest.raises(InvalidInputError, match=match):
        make_rig("ros1", intera_request(options.pop("master_uri", sim.ready["master_uri"]),
                                        **options))


def test_only_a_sawyer_and_only_where_one_answers(sim):
    request = intera_request(sim.ready["master_uri"])
    with pytest.raises(InvalidInputError, match="valid: sawyer"):
        make_rig("ros1", RigRequest(load_robot("panda"), request.scene))
    from robot_rl.ros.ros1_master import RosMaster
    from robot_rl_drivers.sawyer import arm as module

    with RosMaster() as empty, pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_FIRST_S", 0.3)
        patch.setattr(module.SawyerArm.wait, "__defaults__", (0.3,))
        with pytest.raises(RobotRLError, match="nothing has come on /robot/joint_states"):
            make_rig("ros1", intera_request(empty.uri))


_STOPPED = """
    import json, sys, time
    import numpy as np
    from tests.drivers.intera import intera_request, smooth
    from robot_rl.backends import make_rig
    from robot_rl.interfaces import JointSetpoints

    rig = make_rig("ros1", intera_request(sys.argv[1]))
    arm = rig.arm
    while not arm.status().ready:
        time.sleep(0.01)
    start = arm.state(0.5).position_rad
    change = np.array([0.3, -0.15, -0.2, 0.1, 0.25, -0.2, 0.4])
    arm.command(JointSetpoints(smooth(start, change, 500)[0], 0.01, at=0))
    while arm.sent() < 60:
        time.sleep(0.01)
    print("moving", flush=True)
    sys.stdin.readline()
    time.sleep(0.1)
    print(json.dumps({"fault": arm.status().fault, "sent": arm.sent()}), flush=True)
    rig.close()
"""


def test_a_driver_that_was_stopped_leaves_the_arm_at_rest_and_does_not_catch_up(sim):
    before = len(sim.record().get("mode", ()))
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(_STOPPED), sim.ready["master_uri"]],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'drivers'}", "ROS_IP": "127.0.0.1"},
    )
    try:
        assert child.stdout is not None and child.stdout.readline() == "moving\n"
        child.send_signal(signal.SIGSTOP)
        wait_for(lambda: sim.control(report=True)["mode"] == 0, "the robot to give up")
        time.sleep(0.2)
        child.send_signal(signal.SIGCONT)
        out, _ = child.communicate("\n", timeout=30)
    finally:
        child.kill()
    seen = json.loads(out)
    assert "command stream stopped for" in seen["fault"]
    taken = sim.record()
    times = taken["time_s"][before:]
    assert len(times) <= seen["sent"] + 1
    gaps = np.flatnonzero(np.diff(times) > 0.1)
    after = len(times) - 1 - gaps[0] if len(gaps) else 0
    assert after <= 1, "no more than the row that was under way came after the gap"


def test_a_robot_that_dies_is_found(tmp_path):
    sim = SimProcess("intera", "--start-master", "true", "--duration-s", "60")
    try:
        with intera_rig(sim) as rig:
            move(rig.arm, 300)
            sim._file.write('{"die": true}\n')
            sim._file.flush()
            fault = wait_for(lambda: rig.arm.status().fault, "the fault")
            assert fault
            with pytest.raises(StaleDataError):
                wait_for(lambda: not rig.arm.state(0.2), "staleness", timeout_s=5.0)
            uri = sim.ready["master_uri"]
            wait_for(lambda: not master_answers(uri), "the master that it started to end as well")
    finally:
        sim.stop()
