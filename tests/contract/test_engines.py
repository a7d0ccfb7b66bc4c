"""One suite for both engines and every arm: a rig's parts, motion and scene in simulation."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import numpy as np
import pytest

from robot_rl.errors import InvalidInputError, LateCommandError, StaleDataError
from robot_rl.interfaces import (
    Arm,
    BodyState,
    Camera,
    Clock,
    Gripper,
    JointSetpoints,
    ObjectTracker,
    Placement,
    Randomization,
    Rig,
    SceneControl,
)
from robot_rl.kinematics import rotation_from_quat
from robot_rl.specs import BodySpec, Geom, SceneSpec
from tests.contract.engine_rigs import (
    CABINET,
    CUBE,
    DOOR,
    ENGINES,
    IDENTITY,
    ROOM,
    Hand,
    everything,
    make_rig,
    send,
)

# Not imported here: some tests are about what importing them does.
for _engine in ("mujoco", "pybullet"):
    if importlib.util.find_spec(_engine) is None:
        pytest.skip(f"{_engine} is not installed", allow_module_level=True)

# --- the parts -----------------------------------------------------------------------------------


def test_the_parts_keep_their_protocols(push_rig: Rig):
    assert isinstance(push_rig.arm, Arm)
    assert isinstance(push_rig.gripper, Gripper)
    assert isinstance(push_rig.clock, Clock)
    assert isinstance(push_rig.tracker, ObjectTracker)
    assert isinstance(push_rig.scene, SceneControl)
    assert set(push_rig.cameras) == {"front", "top"}
    for camera in push_rig.cameras.values():
        assert isinstance(camera, Camera)


def test_time_passes_only_in_sleep(push_rig: Rig):
    hand = Hand(push_rig)
    hand.place((0.0, 0.0, 0.1))
    now = push_rig.clock.now_s()
    send(push_rig, np.tile(hand.q + 0.01, (4, 1)))
    push_rig.gripper.command(1.0)
    before = everything(push_rig)
    assert push_rig.clock.now_s() == now
    np.testing.assert_array_equal(everything(push_rig), before)
    push_rig.clock.sleep_until(now + 0.1)
    assert push_rig.clock.now_s() == pytest.approx(now + 0.1, abs=1e-9)
    assert push_rig.arm.state(0.0).stamp_s == push_rig.clock.now_s()
    assert (everything(push_rig) != before).any()
    after = everything(push_rig)
    push_rig.clock.sleep_until(now)
    np.testing.assert_array_equal(everything(push_rig), after)
    # A rig lives in one time: placing the world anew does not turn it back.
    hand.place((0.0, 0.0, 0.1))
    assert push_rig.clock.now_s() >= now + 0.1 - 1e-9


def test_commands_say_what_was_sent(push_rig: Rig):
    hand = Hand(push_rig)
    q = hand.place((0.0, 0.0, 0.1))
    rows = np.tile(q, (3, 1))
    sent = send(push_rig, rows)
    np.testing.assert_array_equal(sent.position_rad, rows)
    assert sent.period_s == push_rig.arm.period_s == 0.025
    assert sent.at == push_rig.arm.sent()
    rows += 1.0
    assert (sent.position_rad == q).all()
    assert push_rig.gripper.command(0.3) == 0.3
    assert push_rig.gripper.command(1.7) == 1.0
    assert push_rig.gripper.command(-0.2) == 0.0


def test_bad_input_is_refused_and_changes_nothing(push_rig: Rig):
    hand = Hand(push_rig)
    q = hand.place((0.0, 0.0, 0.1))
    n = len(q)
    before = everything(push_rig)
    not_finite = np.tile(q, (2, 1))
    not_finite[1, 2] = np.nan
    infinite = np.tile(q, (2, 1))
    infinite[0, 0] = np.inf
    for rows in (q, np.zeros((0, n)), np.zeros((2, n - 1)), not_finite, infinite):
        with pytest.raises(InvalidInputError, match="position_rad"):
            send(push_rig, rows)
    for period in (0.0, -0.1, np.nan, np.inf, 0.02, 0.0250001):
        with pytest.raises(InvalidInputError, match=r"period_s is .*, should be the arm's, 0.025"):
            push_rig.arm.command(JointSetpoints(np.tile(q, (2, 1)), period, at=push_rig.arm.sent()))
    with pytest.raises(InvalidInputError, match="opening"):
        push_rig.gripper.command(np.nan)
    with pytest.raises(InvalidInputError, match="time_s"):
        push_rig.clock.sleep_until(np.inf)
    scene = push_rig.scene
    assert scene is not None
    for arm in (q[:-1], q * np.nan):
        with pytest.raises(InvalidInputError, match="arm_rad"):
            scene.place(arm, Placement(np.zeros(3)))
    bad: list[dict[str, Any]] = [
        {"bodies": {"puk": (np.zeros(3), IDENTITY)}},
        {"bodies": {"puck": (np.zeros(2), IDENTITY)}},
        {"bodies": {"puck": (np.zeros(3), np.zeros(4))}},
        {"joints": {"drawer": 0.1}},
        {"gripper_opening": np.nan},
    ]
    for options in bad:
        with pytest.raises(InvalidInputError):
            scene.place(q, Placement(np.zeros(3), **options))
    with pytest.raises(InvalidInputError, match="mass_scale"):
        scene.randomize(Randomization(mass_scale=0.0))
    with pytest.raises(InvalidInputError, match="color_shift"):
        scene.randomize(Randomization(color_shift=np.full(3, np.nan)))
    with pytest.raises(InvalidInputError, match="camera"):
        scene.render("side", 8, 8)
    with pytest.raises(InvalidInputError, match="marker"):
        scene.show_markers({"gaol": np.zeros(3)})
    with pytest.raises(InvalidInputError, match="puck"):
        push_rig.tracker.body("pukc", 1.0)
    with pytest.raises(InvalidInputError, match="joint"):
        push_rig.tracker.joint("drawer", 1.0)
    np.testing.assert_array_equal(everything(push_rig), before)
    hand.wait(0.1)
    np.testing.assert_allclose(push_rig.arm.state(0.0).position_rad, q, atol=1e-4)


def test_a_request_that_makes_no_sense_is_refused():
    for engine in ENGINES:
        with pytest.raises(InvalidInputError, match="physics_step_s"):
            make_rig(engine, "panda", physics_step_s=0.0)
        with pytest.raises(InvalidInputError, match="quality"):
            make_rig(engine, "panda", render_quality="fats")


def test_reads_honour_the_largest_age(push_rig: Rig):
    for read in (
        push_rig.arm.state,
        push_rig.gripper.opening,
        lambda age: push_rig.tracker.body("puck", age),
        push_rig.cameras["top"].read,
    ):
        read(0.0)
        for age in (-0.01, np.nan):
            with pytest.raises(StaleDataError):
                read(age)


def test_readings_do_not_change_afterwards(push_rig: Rig):
    hand = Hand(push_rig)
    hand.place((0.0, 0.0, 0.1))
    arm, puck = push_rig.arm.state(0.0), push_rig.tracker.body("puck", 0.0)
    kept = arm.position_rad.copy(), arm.velocity_rad_s.copy(), puck.position_m.copy()
    hand.step((0.2, 0.0, 0.0))
    np.testing.assert_array_equal(arm.position_rad, kept[0])
    np.testing.assert_array_equal(arm.velocity_rad_s, kept[1])
    np.testing.assert_array_equal(puck.position_m, kept[2])


# --- motion --------------------------------------------------------------------------------------


def test_the_arm_holds_against_gravity(push_rig: Rig):
    hand = Hand(push_rig)
    q = hand.place((0.05, 0.1, 0.15))
    hand.wait(1.0)
    state = push_rig.arm.state(0.0)
    np.testing.assert_allclose(state.position_rad, q, atol=1e-5)
    np.testing.assert_allclose(state.velocity_rad_s, 0.0, atol=1e-4)


def test_the_arm_follows_a_steady_motion_without_lag(push_rig: Rig):
    hand = Hand(push_rig)
    hand.place((-0.1, 0.0, 0.15))
    for _ in range(6):
        q = hand.step((0.2, 0.1, 0.0))
    # In motion still: where it should be at this very moment, not some way behind.
    np.testing.assert_allclose(q, hand.q, atol=1e-3)
    assert np.linalg.norm(hand.tool() + hand.origin - hand.target[:3, 3]) < 1e-3


@pytest.mark.parametrize(("asked_s", "period_s"), [(0.005, 0.005), (0.02, 0.02), (0.001, 0.005),
                                                   (0.012, 0.01), (0.0333, 0.035)])
@pytest.mark.parametrize("engine", ENGINES)
def test_setpoints_come_at_their_period(engine: str, asked_s: float, period_s: float):
    rig = make_rig(engine, "panda", setpoint_period_s=asked_s)
    assert rig.arm.period_s == pytest.approx(period_s, abs=1e-12), "whole physics steps"
    hand = Hand(rig)
    q = hand.place((0.0, 0.0, 0.15))
    rows = q + np.linspace(0.0, 0.02, 9)[1:, None]
    before = rig.arm.sent()
    send(rig, rows)
    for k in range(8):
        assert rig.arm.sent() == before + k
        hand.wait(period_s)
    late = rig.arm.state(0.0).position_rad
    hand.wait(0.2)
    # After the last one the arm stays there.
    assert rig.arm.sent() == before + 8
    np.testing.assert_allclose(rig.arm.state(0.0).position_rad, rows[-1], atol=1e-4)
    if period_s >= 0.01:
        np.testing.assert_allclose(late, rows[-1], atol=5e-3)
    rig.close()


def test_a_new_command_takes_over_at_its_row(push_rig: Rig):
    hand = Hand(push_rig)
    q = hand.place((0.0, 0.0, 0.15))
    begun = push_rig.arm.sent()
    send(push_rig, q + np.linspace(0, 0.1, 21)[1:, None])
    hand.wait(0.12)
    # Four rows are over and the fifth has begun.
    assert push_rig.arm.sent() == begun + 5
    with pytest.raises(LateCommandError, match=rf"row {begun + 4} is too late, {begun + 5} were"):
        push_rig.arm.command(JointSetpoints(q[None], 0.025, at=begun + 4))
    with pytest.raises(InvalidInputError, match=rf"row {begun + 21} leaves a gap after row"):
        push_rig.arm.command(JointSetpoints(q[None], 0.025, at=begun + 21))
    push_rig.arm.command(JointSetpoints(q[None] + 0.02, 0.025, at=begun + 6))
    hand.wait(0.005)
    assert push_rig.arm.sent() == begun + 5
    hand.wait(0.5)
    assert push_rig.arm.sent() == begun + 7
    np.testing.assert_allclose(push_rig.arm.state(0.0).position_rad, q + 0.02, atol=1e-4)
    assert push_rig.arm.status().ready and push_rig.arm.lead_rows == 0
    push_rig.arm.recover()


def test_placing_the_arm_forgets_its_rows_but_not_their_count(push_rig: Rig):
    hand = Hand(push_rig)
    q = hand.place((0.0, 0.0, 0.15))
    begun = push_rig.arm.sent()
    send(push_rig, q + np.linspace(0, 0.1, 21)[1:, None])
    hand.wait(0.1)
    q = hand.place((0.0, 0.0, 0.15))
    hand.wait(0.5)
    assert push_rig.arm.sent() == begun + 4
    np.testing.assert_allclose(push_rig.arm.state(0.0).position_rad, q, atol=1e-5)


def test_the_time_may_be_cut_anywhere(push_rig: Rig):
    hand = Hand(push_rig)
    q = hand.place((0.0, 0.0, 0.15))
    rows = q + np.linspace(0.0, 0.05, 5)[1:, None]
    send(push_rig, rows)
    push_rig.gripper.command(0.06)
    hand.wait(0.1)
    whole = everything(push_rig)
    hand.place((0.0, 0.0, 0.15))
    begun = push_rig.arm.sent()
    send(push_rig, rows)
    push_rig.gripper.command(0.06)
    for part in (0.005, 0.03, 0.015, 0.05):
        hand.wait(part)
        # What is commanded anew to the bit changes nothing, in the middle of a row either.
        arm = push_rig.arm
        done = arm.sent() - begun
        if done < len(rows):
            send(push_rig, rows[done:])
    np.testing.assert_array_equal(everything(push_rig), whole)


def test_the_gripper_goes_to_its_target_at_its_speed(push_rig: Rig):
    hand = Hand(push_rig)
    hand.place((0.0, 0.0, 0.15))
    gripper = push_rig.arm.spec.gripper
    full_s = gripper.finger_stroke_m / gripper.finger_velocity_m_s
    push_rig.gripper.command(1.0)
    hand.wait(0.5 * full_s)
    assert 0.3 < push_rig.gripper.opening(0.0) < 0.6
    hand.wait(0.5 * full_s + 0.3)
    assert push_rig.gripper.opening(0.0) == pytest.approx(1.0, abs=1e-3)
    push_rig.gripper.command(0.25)
    hand.wait(full_s + 0.3)
    assert push_rig.gripper.opening(0.0) == pytest.approx(0.25, abs=1e-3)


# --- the scene -----------------------------------------------------------------------------------


def test_a_puck_lies_still_and_slides_when_pushed(push_rig: Rig):
    hand = Hand(push_rig)
    hand.place((-0.05, 0.0, 0.02))
    hand.wait(1.0)
    puck = push_rig.tracker.body("puck", 0.0)
    assert isinstance(puck, BodyState)
    np.testing.assert_allclose(puck.position_m, (0.1, 0.0, 0.02), atol=3e-4)
    np.testing.assert_allclose(puck.velocity_m_s, 0.0, atol=1e-6)
    hand.move((0.15, 0.0, 0.02))
    hand.wait(1.0)
    puck = push_rig.tracker.body("puck", 0.0)
    # The finger's half width and the puck's radius in front of the tool.
    assert puck.position_m[0] == pytest.approx(0.15 + 0.01 + 0.035, abs=0.01)
    assert abs(puck.position_m[1]) < 0.01
    assert puck.position_m[2] == pytest.approx(0.02, abs=5e-4)
    np.testing.assert_allclose(puck.velocity_m_s, 0.0, atol=2e-3)
    np.testing.assert_allclose(puck.angular_velocity_rad_s, 0.0, atol=0.1)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_puck_falls_with_gravity_and_lands(engine: str):
    rig = make_rig(engine, "panda")
    hand = Hand(rig)
    hand.place((-0.2, 0.2, 0.3), bodies={"puck": (np.array([0.1, 0.0, 0.05]), IDENTITY)})
    hand.wait(0.05)
    speed = rig.tracker.body("puck", 0.0).velocity_m_s[2]
    assert speed == pytest.approx(-9.81 * 0.05, abs=1e-3)
    hand.wait(1.0)
    np.testing.assert_allclose(
        rig.tracker.body("puck", 0.0).position_m, (0.1, 0.0, 0.02), atol=1e-3
    )
    rig.close()


@pytest.mark.parametrize("robot", ["panda", "sawyer"])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_gripped_cube_stays_in_the_hand(engine: str, robot: str):
    rig = make_rig(engine, robot, ROOM)
    hand = Hand(rig)
    hand.place((-0.05, 0.2, 0.015), opening=1.0)
    rig.gripper.command(0.0)
    hand.wait(1.2)
    width = 2.0 * rig.gripper.opening(0.0) * rig.arm.spec.gripper.finger_stroke_m
    assert width == pytest.approx(0.03, abs=0.002)

    def offset() -> np.ndarray:
        return rig.tracker.body("cube", 0.0).position_m - hand.tool()

    gripped = offset()
    for corner in ((-0.05, 0.2, 0.2), (0.1, 0.0, 0.25), (-0.1, -0.15, 0.15), (0.0, 0.1, 0.3)):
        hand.move(corner)
    hand.wait(1.0)
    np.testing.assert_allclose(offset(), gripped, atol=5e-3)
    assert rig.tracker.body("cube", 0.0).position_m[2] > 0.25
    rig.gripper.command(1.0)
    hand.wait(1.5)
    assert rig.tracker.body("cube", 0.0).position_m[2] < 0.03
    rig.close()


def test_a_drawer_and_a_door_move_when_pushed_and_stay(room: Rig):
    hand = Hand(room)
    hand.place((0.05, 0.2, 0.03), bodies={"cube": (np.array([-0.2, -0.3, 0.015]), IDENTITY)})
    assert room.tracker.joint("drawer_slide", 0.0) == (0.0, 0.0)
    hand.move((0.17, 0.2, 0.03))
    hand.wait(0.5)
    position, velocity = room.tracker.joint("drawer_slide", 0.0)
    # The handle's face is at 0.11, the finger's half width is 0.01.
    assert position == pytest.approx(0.07, abs=0.003)
    assert abs(velocity) < 1e-3
    drawer = room.tracker.body("drawer", 0.0)
    np.testing.assert_allclose(drawer.position_m, (0.22 + position, 0.2, 0.06), atol=1e-9)

    hand.place((0.05, -0.22, 0.04))
    hand.move((0.2, -0.22, 0.04))
    hand.wait(0.5)
    angle, spin = room.tracker.joint("door_hinge", 0.0)
    assert 0.5 < angle < 0.75
    assert abs(spin) < 1e-3
    door = room.tracker.body("door", 0.0)
    np.testing.assert_allclose(door.position_m, DOOR.position_m, atol=1e-12)
    np.testing.assert_allclose(
        door.quat_xyzw, (0.0, 0.0, np.sin(angle / 2), np.cos(angle / 2)), atol=1e-9
    )
    assert room.tracker.body("cabinet", 0.0).position_m == pytest.approx(CABINET.position_m)


def test_place_is_exact(room: Rig):
    hand = Hand(room)
    quat = np.array([0.1, -0.2, 0.3, 0.9])
    quat /= np.linalg.norm(quat)
    position = np.array([0.02, -0.03, 0.31])
    hand.place(
        (0.0, 0.0, 0.15),
        opening=0.4,
        bodies={"puck": (position, 2.0 * quat)},
        joints={"drawer_slide": 0.07, "door_hinge": -0.4},
    )
    np.testing.assert_array_equal(room.arm.state(0.0).position_rad, hand.q)
    np.testing.assert_array_equal(room.arm.state(0.0).velocity_rad_s, 0.0)
    assert room.gripper.opening(0.0) == pytest.approx(0.4, abs=1e-12)
    puck = room.tracker.body("puck", 0.0)
    np.testing.assert_allclose(puck.position_m, position, atol=1e-12)
    np.testing.assert_allclose(puck.quat_xyzw, quat, atol=1e-12)
    np.testing.assert_array_equal(puck.velocity_m_s, 0.0)
    assert room.tracker.joint("drawer_slide", 0.0) == (0.07, 0.0)
    assert room.tracker.joint("door_hinge", 0.0) == (-0.4, 0.0)
    # What is not named goes to where the scene's description has it.
    np.testing.assert_allclose(room.tracker.body("cube", 0.0).position_m, CUBE.position_m)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_free_body_spins_and_flies_in_workspace_axes(engine: str):
    # Its mass is off its origin, its axes are skew: whatever frame an engine thinks in shows.
    lump = BodySpec(
        "lump",
        (Geom("box", (0.04, 0.06, 0.02)), Geom("sphere", (0.03,), (0.05, 0.04, 0.02))),
        "free",
        mass_kg=0.3,
    )
    rig = make_rig(engine, "panda", SceneSpec((lump,)))
    hand = Hand(rig)
    quat = np.array([0.3, -0.1, 0.2, 0.9])
    quat /= np.linalg.norm(quat)
    hand.place((-0.2, 0.2, 0.3), bodies={"lump": (np.array([0.1, 0.0, 0.06]), quat)})
    rotation = rotation_from_quat(rig.tracker.body("lump", 0.0).quat_xyzw)
    np.testing.assert_allclose(rotation, rotation_from_quat(quat), atol=1e-9)
    hand.wait(0.1)
    for _ in range(40):
        before = rig.tracker.body("lump", 0.0)
        hand.wait(0.005)
        after = rig.tracker.body("lump", 0.0)
        moved = (after.position_m - before.position_m) / 0.005
        turn = rotation_from_quat(after.quat_xyzw) @ rotation_from_quat(before.quat_xyzw).T
        spin = np.array([turn[2, 1] - turn[1, 2], turn[0, 2] - turn[2, 0], turn[1, 0] - turn[0, 1]])
        # Both engines move by the velocity after the step.
        np.testing.assert_allclose(moved, after.velocity_m_s, atol=0.03)
        np.testing.assert_allclose(spin / 0.01, after.angular_velocity_rad_s, atol=0.1)
    rig.close()
