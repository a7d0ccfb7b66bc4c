"""What both engines share: constants, collision groups and the parts of a rig.

The world frame of an engine is the arm's base frame; a scene's workspace frame is the same axes
at ``spec.workspace_origin_m``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from enum import IntFlag
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from robot_rl.errors import InvalidInputError, StaleDataError, unknown_name
from robot_rl.interfaces import (
    ArmStatus,
    Array,
    BodyState,
    Frame,
    JointSetpoints,
    JointState,
    Placement,
    Randomization,
    Rig,
    RigRequest,
)
from robot_rl.specs import BodySpec, HingeJoint, RobotSpec, SlideJoint
from robot_rl_sim.geometry import CameraPose, camera_pose, joint_range, jointed_state, unit_quat
from robot_rl_sim.sensors import Contact, SimForceSensor, scene_sensors
from robot_rl_sim.setpoints import SetpointStream

GRAVITY_M_S2 = 9.81
ARM_FREQUENCY_RAD_S = 70.0
"""Natural frequency of the joint controllers: how fast a tracking error dies out.

Set-points come as straight lines; stiffer controllers ask for torques at their corners that the
wrists do not have, and overshoot the joints' velocity limits.
"""
ARM_DAMPING = 1.0
"""Damping ratio of the joint controllers."""
ARM_ARMATURE_KG_M2 = 0.1
"""Rotor inertia seen through the gears, of the size identified on such arms."""
FINGER_ARMATURE_KG = 0.1
"""Inertia of the gripper's drive, as its fingers see it."""
FINGER_CHUNK_TICKS = 5
"""While the fingers travel, their target moves on every so many physics steps."""
TABLE_RGBA = (0.72, 0.6, 0.45, 1.0)
MARKER_RGBA = (0.1, 0.85, 0.2, 1.0)
MARKER_RADIUS_M = 0.02
LIGHT_DIRECTION = (-0.19, 0.19, -0.96)
"""Which way the light of the scene shines."""
HIDDEN_M = -100.0
"""Height [m] at which an engine without switchable bodies keeps its hidden markers."""

RENDER_QUALITIES = ("fast", "default")


class Group(IntFlag):
    """Collision groups. The arm does not touch itself; a joint's body only what moves freely."""

    ARM = 1
    STATIC = 2
    JOINTED = 4
    FREE = 8


COLLIDES_WITH: dict[Group, Group] = {
    Group.ARM: Group.STATIC | Group.JOINTED | Group.FREE,
    Group.STATIC: Group.ARM | Group.FREE,
    Group.JOINTED: Group.ARM | Group.FREE,
    Group.FREE: Group.ARM | Group.STATIC | Group.JOINTED | Group.FREE,
}


def body_group(body: BodySpec) -> Group:
    """The collision group of a body of the scene."""
    if body.motion == "fixed":
        return Group.STATIC
    return Group.FREE if body.motion == "free" else Group.JOINTED


def colliding_links(spec: RobotSpec) -> tuple[str, ...]:
    """The links that can touch the scene: the last two of the arm, the hand and the fingers."""
    last = tuple(link.name for link in spec.links[-2:])
    return (*last, spec.gripper.base_link, *spec.gripper.finger_links)


def finger_stiffness(spec: RobotSpec) -> float:
    """Stiffness [N/m] of a finger's position controller: the full force at a full stroke's error.

    Two fingers that both pressed with their full force would not centre what they hold.
    """
    return spec.gripper.force_n / spec.gripper.finger_stroke_m


def _refuse_hardware(request: RigRequest) -> None:
    """Raises InvalidInputError where a rig is described that is not there."""
    for key, value in request.options.items():
        raise InvalidInputError(
            f"rig option {key!r} (of value {value!r}) is unknown: a simulated rig takes none"
        )
    for name, source in request.cameras.items():
        rendered = ", ".join(camera.name for camera in request.scene.cameras) or "none"
        raise InvalidInputError(
            f"camera {name!r} is given as {source!r}; a simulated rig renders its own: {rendered}"
        )


class Simulation(ABC):
    """An arm, its gripper and a scene in one engine; it is its own clock, tracker and scene
    control (:class:`robot_rl.interfaces.SceneControl`).

    Time is counted in physics steps and never runs back, not even in :meth:`place`.
    """

    def __init__(self, request: RigRequest) -> None:
        if not request.physics_step_s > 0.0:
            raise InvalidInputError(
                f"physics_step_s is {request.physics_step_s}, should be greater than 0"
            )
        if request.render_quality not in RENDER_QUALITIES:
            raise unknown_name("render quality", request.render_quality, RENDER_QUALITIES)
        _refuse_hardware(request)
        self.request = request
        self.spec = request.robot
        self.scene = request.scene
        self.step_s = request.physics_step_s
        self.origin_m = np.array(self.spec.workspace_origin_m, dtype=np.float64)
        self.n_joints = len(self.spec.joints)
        self.randomization = Randomization()
        self.ticks = 0
        rows = max(1, round(request.setpoint_period_s / self.step_s))
        self.setpoint_period_s = rows * self.step_s
        self.stream = SetpointStream(self.n_joints, self.step_s, rows)
        self.finger_target_m = 0.0
        self.finger_goal_m = 0.0
        self.markers_m: dict[str, Array] = {}
        self._bodies = {body.name: body for body in self.scene.bodies}
        self._joints = {
            body.motion.name: body
            for body in self.scene.bodies
            if isinstance(body.motion, (SlideJoint, HingeJoint))
        }
        self._cameras = {camera.name: camera for camera in self.scene.cameras}
        self._camera_poses: dict[str, CameraPose] = {}
        # How far the fingers' target moves at once, and the physics steps until it moves again.
        self._finger_reach_m = (
            self.spec.gripper.finger_velocity_m_s * self.step_s * FINGER_CHUNK_TICKS
        )
        self._finger_wait = 0

    # What an engine adds.

    @abstractmethod
    def _advance(self, ticks: int) -> None:
        """Run ``ticks`` physics steps with the stream's present piece and finger target."""

    @abstractmethod
    def joint_state(self) -> tuple[Array, Array]:
        """Fresh arrays of joint angles (n,) [rad] and velocities (n,) [rad/s]."""

    @abstractmethod
    def finger_positions(self) -> tuple[float, float]:
        """Travel [m] of either finger."""

    @abstractmethod
    def _free_state(self, name: str) -> BodyState:
        """State of a free body in the workspace frame."""

    @abstractmethod
    def _scene_joint(self, name: str) -> tuple[float, float]:
        """Position and velocity of a joint of the scene."""

    @abstractmethod
    def tool_contacts(self) -> Iterable[Contact]:
        """Where something touches hand or fingers, and the force on them, in the last step."""

    @abstractmethod
    def _place(
        self,
        arm_rad: Array,
        finger_m: float,
        bodies: Mapping[str, tuple[Array, Array]],
        joints: Mapping[str, float],
    ) -> None:
        """Set every coordinate, at rest, and forget the past. Poses: workspace frame."""

    @abstractmethod
    def _save(self) -> dict[str, NDArray[Any]]:
        """The engine's own part of the state."""

    @abstractmethod
    def _restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Undo to what :meth:`_save` returned."""

    @abstractmethod
    def _apply_randomization(self) -> None:
        """Bring masses, frictions and colours in line with ``self.randomization``."""

    @abstractmethod
    def _render(
        self, pose: CameraPose, height: int, width: int, markers: Mapping[str, Array]
    ) -> NDArray[np.uint8]:
        """An image (height, width, 3); ``markers`` (workspace frame) are to be drawn."""

    @abstractmethod
    def close(self) -> None:
        """Release what the engine holds."""

    # Clock.

    def now_s(self) -> float:
        return self.ticks * self.step_s

    def sleep_until(self, time_s: float) -> None:
        """Advance the physics to ``time_s`` [s], rounded to a physics step."""
        if not math.isfinite(time_s):
            raise InvalidInputError(f"time_s is {time_s}, should be finite")
        left = round(time_s / self.step_s) - self.ticks
        stream = self.stream
        while left > 0:
            ticks = min(left, stream.remaining or left)
            gap = self.finger_goal_m - self.finger_target_m
            if self._finger_wait or gap != 0.0:
                if self._finger_wait == 0:
                    self.finger_target_m += min(
                        max(gap, -self._finger_reach_m), self._finger_reach_m
                    )
                    self._finger_wait = FINGER_CHUNK_TICKS
                ticks = min(ticks, self._finger_wait)
                self._finger_wait -= ticks
            self._advance(ticks)
            stream.consume(ticks)
            self.ticks += ticks
            left -= ticks

    # ObjectTracker, without the age.

    def body_state(self, name: str) -> BodyState:
        """State of a body in the workspace frame, free, fixed or on a joint."""
        body = self._bodies.get(name)
        if body is None:
            raise unknown_name("body", name, self._bodies)
        if body.motion == "free":
            return self._free_state(name)
        if body.motion == "fixed":
            return BodyState(
                np.array(body.position_m), unit_quat(body.quat_xyzw), np.zeros(3), np.zeros(3)
            )
        return jointed_state(body, *self._scene_joint(body.motion.name))

    def scene_joint(self, name: str) -> tuple[float, float]:
        """Position [m] or [rad] and velocity of a joint of the scene."""
        if name not in self._joints:
            raise unknown_name("joint", name, self._joints)
        return self._scene_joint(name)

    # SceneControl.

    def place(self, arm_rad: Array, placement: Placement) -> None:
        arm = np.array(arm_rad, dtype=np.float64)
        if arm.shape != (self.n_joints,) or not np.isfinite(arm).all():
            raise InvalidInputError(
                f"arm_rad is {arm_rad}, should be {self.n_joints} finite angles [rad]"
            )
        bodies = {
            name: (np.array(body.position_m, dtype=np.float64), unit_quat(body.quat_xyzw))
            for name, body in self._bodies.items()
            if body.motion == "free"
        }
        for name, (position, quat) in placement.bodies.items():
            if name not in bodies:
                raise unknown_name("free body", name, bodies)
            bodies[name] = (_finite(position, 3, f"position of {name!r}"), unit_quat(quat))
        joints = {}
        for name, body in self._joints.items():
            assert isinstance(body.motion, (SlideJoint, HingeJoint))
            lower, upper = joint_range(body.motion)
            joints[name] = min(max(0.0, lower), upper)
        for name, value in placement.joints.items():
            if name not in joints:
                raise unknown_name("joint", name, joints)
            if not math.isfinite(value):
                raise InvalidInputError(f"joint {name!r} is {value}, should be finite")
            joints[name] = float(value)
        finger = _fraction(placement.gripper_opening) * self.spec.gripper.finger_stroke_m
        self.stream.hold(arm)
        self.finger_target_m = self.finger_goal_m = finger
        self._finger_wait = 0
        self._place(arm, finger, bodies, joints)

    def save_state(self) -> Mapping[str, NDArray[Any]]:
        values = self.randomization
        return {
            "engine": np.array(type(self).__name__),
            "ticks": np.array(self.ticks, dtype=np.int64),
            "fingers_m": np.array([self.finger_target_m, self.finger_goal_m]),
            "finger_wait": np.array(self._finger_wait, dtype=np.int64),
            "randomization": np.concatenate(
                [
                    [values.mass_scale, values.friction_scale],
                    values.color_shift,
                    values.camera_shift_m,
                    values.camera_turn_rad,
                ]
            ),
            **self.stream.save(),
            **self._save(),
        }

    def restore_state(self, state: Mapping[str, NDArray[Any]]) -> None:
        engine = str(state.get("engine", "another program"))
        if engine != type(self).__name__:
            raise InvalidInputError(f"the state is of {engine}, not of {type(self).__name__}")
        self.ticks = int(state["ticks"])
        self._finger_wait = int(state["finger_wait"])
        self.finger_target_m, self.finger_goal_m = (float(v) for v in state["fingers_m"])
        values = np.asarray(state["randomization"], dtype=np.float64)
        self.randomize(
            Randomization(float(values[0]), float(values[1]), values[2:5], values[5:8], values[8:])
        )
        self.stream.restore(state)
        self._restore(state)

    def show_markers(self, positions_m: Mapping[str, Array]) -> None:
        for name in positions_m:
            if name not in self.scene.markers:
                raise unknown_name("marker", name, self.scene.markers)
        self.markers_m = {
            name: _finite(position, 3, f"marker {name!r}") for name, position in positions_m.items()
        }

    def randomize(self, values: Randomization) -> None:
        for name in ("mass_scale", "friction_scale"):
            scale = getattr(values, name)
            if not (0.0 < scale < math.inf):
                raise InvalidInputError(f"{name} is {scale}, should be positive and finite")
        drawn = Randomization(
            float(values.mass_scale),
            float(values.friction_scale),
            *(
                _finite(getattr(values, name), 3, name)
                for name in ("color_shift", "camera_shift_m", "camera_turn_rad")
            ),
        )
        if _same_draw(drawn, self.randomization):
            return
        self.randomization = drawn
        self._camera_poses.clear()
        self._apply_randomization()

    def render(
        self, camera: str, height: int, width: int, *, markers: bool = False
    ) -> NDArray[np.uint8]:
        if camera not in self._cameras:
            raise unknown_name("camera", camera, self._cameras)
        if height < 1 or width < 1:
            raise InvalidInputError(f"image size {height} x {width} should be positive")
        pose = self._camera_poses.get(camera)
        if pose is None:
            pose = camera_pose(self._cameras[camera], self.randomization)
            self._camera_poses[camera] = pose
        return self._render(pose, height, width, self.markers_m if markers else {})

    def rig(self) -> Rig:
        """The parts that an environment is put together from."""
        cameras = {name: SimCamera(self, name) for name in self._cameras}
        return Rig(
            arm=SimArm(self),
            gripper=SimGripper(self),
            clock=self,
            tracker=SimTracker(self),
            cameras=dict(cameras),
            scene=self,
            force=SimForceSensor(self),
            sensors=scene_sensors(self, self.scene),
        )


def _same_draw(first: Randomization, second: Randomization) -> bool:
    return (
        first.mass_scale == second.mass_scale
        and first.friction_scale == second.friction_scale
        and np.array_equal(first.color_shift, second.color_shift)
        and np.array_equal(first.camera_shift_m, second.camera_shift_m)
        and np.array_equal(first.camera_turn_rad, second.camera_turn_rad)
    )


def _finite(value: ArrayLike, size: int, what: str) -> Array:
    array = np.array(value, dtype=np.float64)
    if array.shape != (size,) or not np.isfinite(array).all():
        raise InvalidInputError(f"{what} is {value!r}, should be {size} finite numbers")
    return array


def _fraction(opening: float) -> float:
    if not math.isfinite(opening):
        raise InvalidInputError(f"gripper opening is {opening}, should be in [0, 1]")
    return min(max(float(opening), 0.0), 1.0)


def _check_age(max_age_s: float) -> None:
    """A simulated reading is made when it is asked for, so its age is 0."""
    if not max_age_s >= 0.0:
        raise StaleDataError(f"the reading is 0 s old, older than the {max_age_s} s allowed")


class SimArm:
    """:class:`robot_rl.interfaces.Arm` of a simulation."""

    lead_rows = 0

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation
        self.spec = simulation.spec
        self.period_s = simulation.setpoint_period_s

    def state(self, max_age_s: float) -> JointState:
        _check_age(max_age_s)
        position, velocity = self._simulation.joint_state()
        return JointState(position, velocity, self._simulation.now_s())

    def command(self, setpoints: JointSetpoints) -> JointSetpoints:
        rows = np.array(setpoints.position_rad, dtype=np.float64)
        n_joints = self._simulation.n_joints
        if rows.ndim != 2 or rows.shape[1] != n_joints or not len(rows):
            raise InvalidInputError(
                f"position_rad has shape {rows.shape}, should be (k, {n_joints}) with k >= 1"
            )
        # A sum is finite only if its terms are (up to overflow, which no angle comes near).
        if not math.isfinite(rows.sum()):
            raise InvalidInputError("position_rad has a value that is not finite")
        if not abs(setpoints.period_s - self.period_s) < 1e-9:
            raise InvalidInputError(
                f"period_s is {setpoints.period_s}, should be the arm's, {self.period_s}"
            )
        taken = JointSetpoints(rows, self.period_s, at=setpoints.at)
        self._simulation.stream.load(taken)
        return taken

    def sent(self) -> int:
        return self._simulation.stream.sent

    def status(self) -> ArmStatus:
        return ArmStatus(True)

    def recover(self) -> None:
        """A simulated arm has no errors of its own."""


class SimGripper:
    """:class:`robot_rl.interfaces.Gripper` of a simulation."""

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation
        self._stroke_m = simulation.spec.gripper.finger_stroke_m

    def opening(self, max_age_s: float) -> float:
        _check_age(max_age_s)
        first, second = self._simulation.finger_positions()
        return min(max(0.5 * (first + second) / self._stroke_m, 0.0), 1.0)

    def command(self, opening: float) -> float:
        sent = _fraction(opening)
        self._simulation.finger_goal_m = sent * self._stroke_m
        return sent


class SimCamera:
    """:class:`robot_rl.interfaces.Camera` of a simulation, at the size the request asks for."""

    def __init__(self, simulation: Simulation, name: str) -> None:
        self._simulation = simulation
        self.name = name

    def read(self, max_age_s: float) -> Frame:
        _check_age(max_age_s)
        request = self._simulation.request
        image = self._simulation.render(self.name, request.image_height, request.image_width)
        return Frame(image, self._simulation.now_s())


class SimTracker:
    """:class:`robot_rl.interfaces.ObjectTracker` of a simulation."""

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation

    def body(self, name: str, max_age_s: float) -> BodyState:
        _check_age(max_age_s)
        return self._simulation.body_state(name)

    def joint(self, name: str, max_age_s: float) -> tuple[float, float]:
        _check_age(max_age_s)
        return self._simulation.scene_joint(name)
