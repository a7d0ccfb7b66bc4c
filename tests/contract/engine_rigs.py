"""Scenes, rigs and a hand that moves them, for the tests of the engines."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import numpy as np

from robot_rl.interfaces import JointSetpoints, Placement, Rig, RigRequest
from robot_rl.kinematics import Kinematics, rotation_from_rpy
from robot_rl.specs import BodySpec, CameraSpec, Geom, HingeJoint, SceneSpec, SlideJoint, load_robot

ENGINES = ("mujoco", "bullet")
ROBOTS = ("fr3", "panda", "sawyer")
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
