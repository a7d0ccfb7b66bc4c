"""One suite for both engines and every arm: what a rig in simulation has to do."""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robot_rl.errors import (
    InvalidInputError,
    LateCommandError,
    MissingDependencyError,
    StaleDataError,
)
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
    RigRequest,
    SceneControl,
)
from robot_rl.kinematics import Kinematics, rotation_from_quat, rotation_from_rpy
from robot_rl.specs import (
    BodySpec,
    CameraSpec,
    Geom,
    HingeJoint,
    SceneSpec,
    SlideJoint,
    load_robot,
)

# Not imported here: some tests are about what importing them does.
for _engine in ("mujoco", "pybullet"):
    if importlib.util.find_spec(_engine) is None:
        pytest.skip(f"{_engine} is not installed", allow_module_level=True)

ENGINES = ("mujoco", "bullet")
ROBOTS = ("fr3", "panda", "sawyer")
ROOT = Path(__file__).parents[2]

IDENTITY = np.array([0.0, 0.0, 0.0, 1.0])
PUCK = BodySpec(
    "puck",
    (Geom("cylinder", (0.07, 0.04), rgba=(0.1, 0.2, 0.9, 1.0)),),
    "free",
    (0.1, 0.0, 0.02),
    mass_kg=0.1,
    friction=0.4,
)
CUBE = BodySpec(
    "cube",
    (Geom("box", (0.03, 0.03, 0.03), rgba=(0.9, 0.8, 0.1, 1.0)),),
    "free",
    (-0.05, 0.2, 0.015),
    mass_kg=0.05,
)
CABINET = BodySpec("cabinet", (Geom("box", (0.1, 0.14, 0.02)),), "fixed", (0.34, 0.2, 0.12))
DRAWER = BodySpec(
    "drawer",
    (
        Geom("box", (0.14, 0.1, 0.1), rgba=(0.2, 0.6, 0.3, 1.0)),
        Geom("box", (0.04, 0.1, 0.02), (-0.09, 0.0, -0.03), rgba=(0.9, 0.1, 0.1, 1.0)),
    ),
    SlideJoint("drawer_slide", (1.0, 0.0, 0.0), -0.1, 0.15),
    (0.22, 0.2, 0.06),
    mass_kg=0.5,
)
DOOR = BodySpec(
    "door",
    (Geom("box", (0.02, 0.16, 0.05), (0.0, -0.09, 0.0), rgba=(0.5, 0.3, 0.1, 1.0)),),
    HingeJoint("door_hinge", (0.0, 0.0, 1.0), -1.5, 1.5),
    (0.15, -0.1, 0.03),
    mass_kg=0.4,
)
CAMERAS = (
    CameraSpec("front", (0.7, 0.3, 0.5), (0.0, 0.0, 0.0)),
    CameraSpec("top", (0.05, 0.0, 0.9), (0.05, 0.0, 0.0), fov_deg=50.0),
)
PUSH = SceneSpec((PUCK,), CAMERAS, ("goal", "subgoal"))
ROOM = SceneSpec((PUCK, CUBE, CABINET, DRAWER, DOOR), CAMERAS, ("goal",))


def make_rig(engine: str, robot: str, scene: SceneSpec = PUSH, **options: Any) -> Rig:
    """A rig whose set-points come every 25 ms unless another ``setpoint_period_s`` is given."""
    module = importlib.import_module(f"robot_rl_sim.{engine}_engine")
    options.setdefault("setpoint_period_s", 0.025)
    rig: Rig = module.make_rig(RigRequest(load_robot(robot), scene, **options))
    return rig


def send(rig: Rig, rows: Any) -> JointSetpoints:
    """Rows (k, n) from the next one on."""
    return rig.arm.command(
        JointSetpoints(np.asarray(rows), rig.arm.period_s, at=rig.arm.sent())
    )


class Hand:
    """Moves a rig's tool along straight lines, pointing down, as a session would."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.kinematics = Kinematics(rig.arm.spec)
        self.origin = np.array(rig.arm.spec.workspace_origin_m)
        self.target = np.eye(4)
        self.q = np.zeros(self.kinematics.n_joints)

    def place(self, tool_m: Any, opening: float = 0.0, **placement: Any) -> np.ndarray:
        self.target[:3, :3] = rotation_from_rpy((np.pi, 0.0, 0.0))
        self.target[:3, 3] = self.origin + tool_m
        result = self.kinematics.inverse(self.target)
        assert result.converged
        self.q = result.q_rad
        # To where its redundancy comes to rest, or the first step would be a leap of the elbow.
        for _ in range(200):
            self.q, _ = self.kinematics.step(self.q, self.target)
        assert self.rig.scene is not None
        self.rig.scene.place(
            self.q, Placement(np.array(tool_m), gripper_opening=opening, **placement)
        )
        return self.q

    def step(self, velocity_m_s: Any, rows: int = 4) -> np.ndarray:
        """One control period of 0.1 s; the joint state (n,) after it."""
        setpoints = []
        for _ in range(rows):
            self.target[:3, 3] += np.asarray(velocity_m_s) * (0.1 / rows)
            for _ in range(2):
                self.q, _ = self.kinematics.step(self.q, self.target)
            setpoints.append(self.q)
        send(self.rig, setpoints)
        self.rig.clock.sleep_until(self.rig.clock.now_s() + 0.1)
        return self.rig.arm.state(0.0).position_rad

    def move(self, tool_m: Any, speed_m_s: float = 0.25) -> None:
        """A straight line that starts and stops gently, as the safety filter has it."""
        start, goal = self.target[:3, 3].copy(), self.origin + np.asarray(tool_m)
        periods = max(2, int(np.ceil(np.linalg.norm(goal - start) / (speed_m_s * 0.1)))) + 2
        part = np.arange(periods * 4 + 1) / (periods * 4)
        eased = np.clip((part - 0.5) * 1.25 + 0.5, 0.0, 1.0)
        eased = eased * eased * (3.0 - 2.0 * eased)
        for k in range(periods):
            setpoints = []
            for value in eased[4 * k + 1 : 4 * k + 5]:
                self.target[:3, 3] = start + value * (goal - start)
                for _ in range(3):
                    self.q, _ = self.kinematics.step(self.q, self.target)
                setpoints.append(self.q)
            send(self.rig, setpoints)
            self.rig.clock.sleep_until(self.rig.clock.now_s() + 0.1)

    def wait(self, time_s: float) -> None:
        self.rig.clock.sleep_until(self.rig.clock.now_s() + time_s)

    def tool(self) -> np.ndarray:
        """Position (3,) of the tool in the workspace frame."""
        pose = self.kinematics.forward(self.rig.arm.state(0.0).position_rad)
        return pose[:3, 3] - self.origin


def everything(rig: Rig) -> np.ndarray:
    """All that can be read of a rig, as one array."""
    arm = rig.arm.state(0.0)
    parts = [arm.position_rad, arm.velocity_rad_s, [rig.gripper.opening(0.0)]]
    assert rig.scene is not None
    for body in rig.scene.scene.bodies:  # type: ignore[attr-defined]
        state = rig.tracker.body(body.name, 0.0)
        parts += [
            state.position_m,
            state.quat_xyzw,
            state.velocity_m_s,
            state.angular_velocity_rad_s,
        ]
    return np.concatenate(parts)


def act_at_random(hand: Hand, seed: int, periods: int) -> np.ndarray:
    """States (periods, m) under random actions close to the table, gripper included."""
    rng = np.random.default_rng(seed)
    states = []
    for _ in range(periods):
        velocity = rng.uniform(-0.25, 0.25, 3)
        velocity[0] += 0.1
        velocity[2] = 0.0
        hand.rig.gripper.command(rng.uniform())
        hand.step(velocity)
        states.append(everything(hand.rig))
    return np.array(states)


@pytest.fixture(scope="module", params=[(e, r) for e in ENGINES for r in ROBOTS], ids="-".join)
def push_rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    rig = make_rig(*request.param)
    yield rig
    rig.close()


@pytest.fixture(scope="module", params=ENGINES)
def room(request: pytest.FixtureRequest) -> Iterator[Rig]:
    rig = make_rig(request.param, "panda", ROOM)
    yield rig
    rig.close()


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


# --- repeatability -------------------------------------------------------------------------------


@pytest.mark.parametrize("robot", ROBOTS)
@pytest.mark.parametrize("engine", ENGINES)
def test_the_same_commands_give_the_same_bits(engine: str, robot: str):
    runs = []
    for _ in range(2):
        rig = make_rig(engine, robot, ROOM)
        hand = Hand(rig)
        hand.place((0.0, 0.0, 0.02))
        runs.append(act_at_random(hand, 0, 12))
        rig.close()
    np.testing.assert_array_equal(runs[0], runs[1])
    assert np.isfinite(runs[0]).all()
    # The fingers have met the puck, or the test would say little.
    puck = 2 * len(load_robot(robot).joints) + 1
    assert np.abs(runs[0][-1, puck : puck + 3] - PUCK.position_m).max() > 0.01


def test_place_forgets_the_past(room: Rig):
    hand = Hand(room)
    hand.place((0.0, 0.0, 0.02))
    first = act_at_random(hand, 1, 12)
    act_at_random(hand, 2, 5)
    hand.place((0.0, 0.0, 0.02))
    second = act_at_random(hand, 1, 12)
    np.testing.assert_array_equal(first, second)


def test_a_restored_state_continues_bit_for_bit(room: Rig):
    scene = room.scene
    assert scene is not None
    hand = Hand(room)
    hand.place((0.0, 0.0, 0.02))
    act_at_random(hand, 3, 8)
    # In the middle of a stream of set-points, with the fingers on their way.
    room.gripper.command(0.7)
    send(room, hand.q + np.linspace(0, 0.03, 6)[1:, None])
    hand.wait(0.06)
    sent = room.arm.sent()
    q, target, now = hand.q.copy(), hand.target.copy(), room.clock.now_s()
    saved = {name: np.array(array) for name, array in scene.save_state().items()}
    at_save = everything(room)
    hand.wait(0.05)
    first = act_at_random(hand, 4, 10)

    def again(disturb: bool) -> None:
        if disturb:
            hand.place((0.1, 0.1, 0.02))
            act_at_random(hand, 5, 3)
        scene.restore_state(saved)
        np.testing.assert_array_equal(everything(room), at_save)
        assert room.arm.sent() == sent
        assert room.clock.now_s() == now
        hand.q, hand.target = q.copy(), target.copy()
        hand.wait(0.05)
        np.testing.assert_array_equal(act_at_random(hand, 4, 10), first)

    again(disturb=False)
    again(disturb=True)


def test_saving_disturbs_nothing(room: Rig):
    assert room.scene is not None
    hand = Hand(room)
    runs = []
    for save in (False, True):
        hand.place((0.0, 0.0, 0.02))
        states = [act_at_random(hand, 6, 8)]
        if save:
            room.scene.save_state()
        states.append(act_at_random(hand, 7, 8))
        runs.append(np.concatenate(states))
    np.testing.assert_array_equal(runs[0], runs[1])


_CONTINUE = """
import sys
import numpy as np
sys.path.insert(0, sys.argv[1])
from test_engines import Hand, ROOM, act_at_random, make_rig
rig = make_rig(sys.argv[2], "panda", ROOM)
with np.load(sys.argv[3]) as archive:
    state = {name: archive[name] for name in archive.files}
hand = Hand(rig)
hand.q, hand.target = state.pop("q"), state.pop("target")
rig.scene.restore_state(state)
np.save(sys.argv[4], act_at_random(hand, 9, 8))
rig.close()
"""


@pytest.mark.parametrize("engine", ENGINES)
def test_a_state_survives_its_process(engine: str, tmp_path: Path):
    rig = make_rig(engine, "panda", ROOM)
    assert rig.scene is not None
    hand = Hand(rig)
    rig.scene.randomize(Randomization(mass_scale=1.3, friction_scale=0.8))
    hand.place((0.0, 0.0, 0.02))
    act_at_random(hand, 8, 8)
    state = rig.scene.save_state()
    np.savez(tmp_path / "state.npz", q=hand.q, target=hand.target, **state)
    here = act_at_random(hand, 9, 8)
    rig.close()
    path = os.pathsep.join(str(ROOT / part) for part in (".", "sim"))
    subprocess.run(
        [
            sys.executable, "-c", _CONTINUE, str(Path(__file__).parent), engine,
            str(tmp_path / "state.npz"), str(tmp_path / "there.npy"),
        ],
        check=True,
        env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    np.testing.assert_array_equal(np.load(tmp_path / "there.npy"), here)


def test_a_foreign_state_is_refused():
    states = {}
    for engine in ENGINES:
        rig = make_rig(engine, "panda", ROOM)
        assert rig.scene is not None
        states[engine] = rig.scene.save_state()
        rig.close()
    for engine, other in (("mujoco", "bullet"), ("bullet", "mujoco")):
        rig = make_rig(engine, "panda", PUSH)
        assert rig.scene is not None
        with pytest.raises(InvalidInputError):
            rig.scene.restore_state(states[other])
        with pytest.raises(InvalidInputError, match="scene"):
            rig.scene.restore_state(states[engine])
        rig.close()


# --- the engines against each other --------------------------------------------------------------


@pytest.mark.parametrize("robot", ROBOTS)
def test_the_engines_agree_after_five_seconds_of_random_actions(robot: str):
    hands = [Hand(make_rig(engine, robot)) for engine in ENGINES]
    for hand in hands:
        hand.place((0.0, 0.0, 0.2))
    rng = np.random.default_rng(0)
    worst = 0.0
    for _ in range(50):
        velocity = rng.uniform(-0.25, 0.25, 3)
        # Back towards the middle at the edge of the workspace.
        away = hands[0].target[:3, 3] - hands[0].origin - (0.0, 0.0, 0.2)
        velocity = np.where(np.abs(away) > 0.12, -np.sign(away) * np.abs(velocity), velocity)
        for hand in hands:
            hand.step(velocity)
        worst = max(worst, float(np.linalg.norm(hands[0].tool() - hands[1].tool())))
    assert worst < 5e-3
    assert np.linalg.norm(hands[0].tool() - hands[1].tool()) < 1e-3
    for hand in hands:
        hand.rig.close()


@pytest.mark.parametrize("robot", ROBOTS)
def test_the_engines_push_a_puck_alike(robot: str):
    ends = []
    for engine in ENGINES:
        rig = make_rig(engine, robot)
        hand = Hand(rig)
        hand.place((-0.05, 0.0, 0.02))
        hand.move((0.12, 0.0, 0.02))
        hand.wait(1.0)
        ends.append(rig.tracker.body("puck", 0.0).position_m)
        rig.close()
    assert np.linalg.norm(ends[0] - ends[1]) < 0.01


# --- images --------------------------------------------------------------------------------------


def blue(image: np.ndarray) -> np.ndarray:
    """Where the puck is in an image: a mask (H, W)."""
    red, green, far = (image[..., i].astype(int) for i in range(3))
    return (far > 60) & (far > red + 40) & (far > green + 40)


def green(image: np.ndarray) -> np.ndarray:
    """Where a marker is in an image: a mask (H, W)."""
    red, near, far = (image[..., i].astype(int) for i in range(3))
    return (near > 100) & (near > red + 60) & (near > far + 60)


def centroid(mask: np.ndarray) -> np.ndarray:
    assert mask.any()
    return np.argwhere(mask).mean(0)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("quality", ["fast", "default"])
def test_images_have_the_size_asked_for(engine: str, quality: str):
    rig = make_rig(engine, "sawyer", image_height=32, image_width=40, render_quality=quality)
    frame = rig.cameras["front"].read(0.1)
    assert frame.image.shape == (32, 40, 3)
    assert frame.image.dtype == np.uint8
    assert frame.image.flags["C_CONTIGUOUS"]
    assert frame.stamp_s == rig.clock.now_s()
    assert frame.image.std() > 10.0
    assert rig.scene is not None
    if quality == "fast":
        for size in ((1, 1), (700, 900), (24, 64)):
            assert rig.scene.render("top", *size).shape == (*size, 3)
    rig.close()


@pytest.mark.parametrize("engine", ENGINES)
def test_markers_are_drawn_only_when_asked_for(engine: str):
    rig = make_rig(engine, "sawyer")
    scene = rig.scene
    assert scene is not None
    Hand(rig).place((-0.2, 0.0, 0.2))
    plain = scene.render("top", 96, 96)
    assert not green(scene.render("top", 96, 96, markers=True)).any()
    scene.show_markers({"goal": np.array([0.15, 0.2, 0.02])})
    marked = scene.render("top", 96, 96, markers=True)
    row, column = centroid(green(marked))
    # The far side of the table is at the top of this image, the arm's left at its left.
    assert row < 48 and column < 48
    np.testing.assert_array_equal(scene.render("top", 96, 96), plain)
    np.testing.assert_array_equal(rig.cameras["top"].read(0.1).image, scene.render("top", 48, 48))
    scene.show_markers({"goal": np.array([-0.1, 0.2, 0.02]), "subgoal": np.array([0.15, 0.2, 0.0])})
    assert green(scene.render("top", 96, 96, markers=True)).sum() > 1.5 * green(marked).sum()
    scene.show_markers({})
    np.testing.assert_array_equal(scene.render("top", 96, 96, markers=True), plain)
    rig.close()


def test_the_engines_see_the_same_scene():
    images = {}
    for engine in ENGINES:
        rig = make_rig(engine, "panda")
        scene = rig.scene
        assert scene is not None
        Hand(rig).place(
            (-0.15, 0.0, 0.25), bodies={"puck": (np.array([0.1, 0.12, 0.02]), IDENTITY)}
        )
        scene.randomize(
            Randomization(
                camera_shift_m=np.array([0.02, -0.03, 0.01]),
                camera_turn_rad=np.array([0.03, 0.0, -0.05]),
            )
        )
        images[engine] = [scene.render(camera, 120, 160) for camera in ("front", "top")]
        rig.close()
    for first, second in zip(images["mujoco"], images["bullet"], strict=True):
        assert np.linalg.norm(centroid(blue(first)) - centroid(blue(second))) < 2.0
        sizes = blue(first).sum(), blue(second).sum()
        assert 0.7 < sizes[0] / sizes[1] < 1.4
        difference = np.abs(first.astype(float) - second.astype(float)).mean(axis=-1)
        assert np.median(difference) < 25.0


@pytest.mark.parametrize("engine", ENGINES)
def test_rendering_does_not_disturb_the_physics(engine: str):
    runs = []
    rig = make_rig(engine, "panda", ROOM)
    assert rig.scene is not None
    hand = Hand(rig)
    for draw in (False, True):
        hand.place((0.0, 0.0, 0.02))
        rng = np.random.default_rng(0)
        for i in range(8):
            hand.step((*rng.uniform(-0.1, 0.3, 2), 0.0))
            if draw:
                rig.scene.show_markers({"goal": np.array([0.01 * i, 0.0, 0.02])})
                rig.scene.render("front", 16, 16, markers=True)
        runs.append(everything(rig))
    np.testing.assert_array_equal(runs[0], runs[1])
    rig.close()


# --- domain randomisation ------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
def test_randomisation_changes_the_world_and_can_be_undone(engine: str):
    rig = make_rig(engine, "panda", ROOM)
    scene = rig.scene
    assert scene is not None
    hand = Hand(rig)

    def push() -> tuple[np.ndarray, np.ndarray]:
        hand.place((-0.05, 0.0, 0.02))
        for _ in range(6):
            hand.step((0.25, 0.02, 0.0))
        image = scene.render("top", 48, 48)
        hand.wait(0.6)
        return everything(rig), image

    nominal, plain = push()
    for values in (
        Randomization(mass_scale=3.0),
        Randomization(friction_scale=0.3),
    ):
        scene.randomize(values)
        changed, image = push()
        assert (changed != nominal).any()
    scene.randomize(Randomization(color_shift=np.array([0.3, 0.2, -0.3])))
    same, image = push()
    np.testing.assert_array_equal(same, nominal)
    assert (image != plain).any()
    scene.randomize(Randomization(camera_shift_m=np.array([0.05, 0.0, 0.0])))
    assert (scene.render("top", 48, 48) != plain).any()
    scene.randomize(Randomization())
    again, image = push()
    np.testing.assert_array_equal(again, nominal)
    np.testing.assert_array_equal(image, plain)
    rig.close()


@pytest.mark.parametrize("engine", ENGINES)
def test_less_friction_lets_a_puck_slide_farther(engine: str):
    rig = make_rig(engine, "panda")
    assert rig.scene is not None
    hand = Hand(rig)
    distances = []
    for scale in (1.0, 0.25):
        rig.scene.randomize(Randomization(friction_scale=scale))
        hand.place((0.0, 0.0, 0.02))
        for speed in (0.125, *[0.25] * 7):
            hand.step((speed, 0.0, 0.0))
        before = rig.tracker.body("puck", 0.0).position_m[0]
        hand.step((-0.25, 0.0, 0.0))
        hand.wait(1.5)
        distances.append(rig.tracker.body("puck", 0.0).position_m[0] - before)
    # v^2 / (2 mu g) at 0.25 m/s: 8 mm at 0.4, 32 mm at 0.1.
    assert distances[0] == pytest.approx(0.008, abs=0.006)
    assert distances[1] == pytest.approx(0.032, abs=0.006)
    rig.close()


# --- surroundings --------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
def test_standard_output_stays_clean(engine: str):
    source = (
        f"from test_engines import make_rig\nrig = make_rig({engine!r}, 'panda')\n"
        "rig.scene.render('top', 8, 8)\nprint('{}')\nrig.close()\n"
    )
    path = os.pathsep.join(str(part) for part in (ROOT, ROOT / "sim", Path(__file__).parent))
    done = subprocess.run(
        [sys.executable, "-c", source],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.stdout == "{}\n"
    assert done.stderr == ""


def test_without_graphics_states_work_and_drawing_says_why():
    source = (
        "from test_engines import make_rig\nfrom robot_rl.errors import RobotRLError\n"
        "rig = make_rig('mujoco', 'panda')\nrig.clock.sleep_until(0.1)\n"
        "rig.tracker.body('puck', 1.0)\n"
        "try:\n    rig.scene.render('top', 8, 8)\n"
        "except RobotRLError as error:\n    print(error)\n"
    )
    path = os.pathsep.join(str(part) for part in (ROOT, ROOT / "sim", Path(__file__).parent))
    broken = (
        {"MUJOCO_GL": "disable"},
        {"MUJOCO_GL": "glfw", "DISPLAY": ""},
        {"MUJOCO_GL": "egl", "MUJOCO_EGL_DEVICE_ID": "99"},
        {"MUJOCO_GL": "nonsense"},
    )
    for environment in broken:
        done = subprocess.run(
            [sys.executable, "-c", source],
            check=True,
            capture_output=True,
            text=True,
            env={**os.environ, **environment, "PYTHONPATH": path},
        )
        lines = done.stdout.splitlines()
        assert len(lines) == 1, (environment, done)
        assert "MUJOCO_GL=egl" in lines[0]


@pytest.mark.parametrize(("engine", "module"), [("mujoco", "mujoco"), ("bullet", "pybullet")])
def test_a_missing_engine_names_the_extra(
    engine: str, module: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependencyError, match=r"robot_rl\[sim\]"):
        make_rig(engine, "panda")
