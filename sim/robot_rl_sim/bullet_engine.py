"""The rig on PyBullet."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as xml

import numpy as np
from numpy.typing import NDArray

from robot_rl.errors import InvalidInputError, MissingDependencyError
from robot_rl.interfaces import Array, BodyState, Placement, Rig, RigRequest
from robot_rl.kinematics import quat_from_rotation, rotation_from_quat
from robot_rl.specs import BodySpec, Geom, HingeJoint, SlideJoint
from robot_rl_sim.common import (
    ARM_DAMPING,
    ARM_FREQUENCY_RAD_S,
    COLLIDES_WITH,
    GRAVITY_M_S2,
    HIDDEN_M,
    LIGHT_DIRECTION,
    MARKER_RADIUS_M,
    MARKER_RGBA,
    TABLE_RGBA,
    Group,
    Simulation,
    body_group,
    colliding_links,
    finger_stiffness,
)
from robot_rl_sim.geometry import (
    BodyInertia,
    CameraPose,
    body_inertia,
    joint_axis,
    joint_range,
    quat_multiply,
    shifted_rgba,
    unit_quat,
)
from robot_rl_sim.sensors import Contact, bullet_contacts, tool_links
from robot_rl_sim.urdf_writer import urdf_text

_HIDDEN = (0.0, 0.0, HIDDEN_M)
_UPRIGHT = (0.0, 0.0, 0.0, 1.0)
_SOLVER_ITERATIONS = 100


def make_rig(request: RigRequest) -> Rig:
    """An arm, its gripper and a scene in PyBullet.

    Raises:
        MissingDependencyError: PyBullet is not installed.
    """
    return BulletSimulation(request).rig()


@contextlib.contextmanager
def _silent(*descriptors: int) -> Iterator[None]:
    """Nothing comes out of ``descriptors``: the engine's C code writes to them directly."""
    libc = ctypes.CDLL(None)
    sys.stdout.flush()
    sys.stderr.flush()
    libc.fflush(None)
    kept = [os.dup(descriptor) for descriptor in descriptors]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        for descriptor in descriptors:
            os.dup2(nowhere, descriptor)
        yield
    finally:
        # What C still holds in its buffer would come out after the descriptors are back.
        libc.fflush(None)
        for descriptor, copy in zip(descriptors, kept, strict=True):
            os.dup2(copy, descriptor)
            os.close(copy)
        os.close(nowhere)


def _import_pybullet() -> Any:
    try:
        with _silent(1, 2):
            import pybullet
    except ImportError as error:
        raise MissingDependencyError(
            "PyBullet is not installed: pip install 'robot_rl[sim]'"
        ) from error
    return pybullet


class BulletSimulation(Simulation):
    """The rig's physics in a client of its own, loaded from the arm's URDF and the scene."""

    def __init__(self, request: RigRequest) -> None:
        super().__init__(request)
        self._bullet = _import_pybullet()
        with _silent(1):
            self._client = self._bullet.connect(self._bullet.DIRECT)
            self._build()
        # Every later state is reached from this one, in which nothing touches anything.
        self._scatter()
        self._pristine = self._bullet.saveState(physicsClientId=self._client)
        self.place(np.array(self.spec.home_rad, dtype=np.float64), Placement(np.zeros(3)))

    # Building.

    def _build(self) -> None:
        bullet, client = self._bullet, self._client
        bullet.setPhysicsEngineParameter(
            fixedTimeStep=self.step_s,
            numSolverIterations=_SOLVER_ITERATIONS,
            numSubSteps=0,
            deterministicOverlappingPairs=1,
            physicsClientId=client,
        )
        bullet.setRealTimeSimulation(0, physicsClientId=client)
        # The arm's controller compensates its weight, so gravity is put on the scene by hand.
        bullet.setGravity(0.0, 0.0, 0.0, physicsClientId=client)
        self._add_arm()
        self._add_table()
        self._body_ids = {body.name: self._add_body(body) for body in self.scene.bodies}
        self._inertias = {body.name: body_inertia(body) for body in self.scene.bodies}
        self._free = {
            name: (self._body_ids[name], self._inertias[name])
            for name, body in self._bodies.items()
            if body.motion == "free"
        }
        self._hinges = {name: self._body_ids[body.name] for name, body in self._joints.items()}
        self._markers = {name: self._add_marker() for name in self.scene.markers}
        self._apply_randomization()

    def _load(self, urdf: str, **options: Any) -> int:
        bullet = self._bullet
        with tempfile.TemporaryDirectory(prefix="robot_rl_urdf_") as folder:
            path = Path(folder) / "body.urdf"
            path.write_text(urdf)
            body: int = bullet.loadURDF(
                str(path),
                flags=bullet.URDF_USE_INERTIA_FROM_FILE | bullet.URDF_USE_IMPLICIT_CYLINDER,
                physicsClientId=self._client,
                **options,
            )
            return body

    def _add_arm(self) -> None:
        bullet, client = self._bullet, self._client
        self._arm = arm = self._load(urdf_text(self.spec, self.scene.held), useFixedBase=True)
        joints, links = {}, {self.spec.links[0].name: -1}
        for i in range(bullet.getNumJoints(arm, physicsClientId=client)):
            info = bullet.getJointInfo(arm, i, physicsClientId=client)
            joints[info[1].decode()] = i
            links[info[12].decode()] = i
        self._arm_joints = [joints[name] for name in self.spec.joint_names]
        self._finger_joints = [joints[name] for name in self.spec.gripper.finger_joints]
        self._driven = self._arm_joints + self._finger_joints
        self._tool_links = frozenset(links[name] for name in tool_links(self.spec))
        touching = colliding_links(self.spec)
        for name, link in links.items():
            self._collide(arm, link, Group.ARM if name in touching else None)
            bullet.changeDynamics(
                arm, link, lateralFriction=1.0, spinningFriction=0.0, rollingFriction=0.0,
                restitution=0.0, linearDamping=0.0, angularDamping=0.0, jointDamping=0.0,
                # Without an anchor a gripped body creeps out of the fingers.
                frictionAnchor=int(name in self.spec.gripper.finger_links), physicsClientId=client,
            )  # fmt: skip
        # A motor is a constraint on velocity: v' = v + kd (v_ref - v) + kp (q_ref - q) / h.
        # These two make it the implicit spring and damper that the other engine integrates.
        damping = 2.0 * ARM_DAMPING * ARM_FREQUENCY_RAD_S * self.step_s
        kd = damping / (1.0 + damping)
        kp = (ARM_FREQUENCY_RAD_S * self.step_s) ** 2 / (1.0 + damping)
        self._position_gains = [kp] * self.n_joints + [0.5, 0.5]
        self._velocity_gains = [kd] * self.n_joints + [1.0, 1.0]
        self._torques = [joint.torque_nm for joint in self.spec.joints]
        self._finger_stiffness = finger_stiffness(self.spec)

    def _collide(self, body: int, link: int, group: Group | None) -> None:
        mask = COLLIDES_WITH[group] if group is not None else 0
        self._bullet.setCollisionFilterGroupMask(
            body, link, int(group or 0), int(mask), physicsClientId=self._client
        )

    def _add_table(self) -> None:
        bullet, client = self._bullet, self._client
        size = self.scene.table_size_m
        visual = bullet.createVisualShape(
            bullet.GEOM_BOX,
            halfExtents=[0.5 * value for value in size],
            rgbaColor=TABLE_RGBA,
            specularColor=[0.0, 0.0, 0.0],
            physicsClientId=client,
        )
        # A shape without a picture would be given one; this one lies within the table.
        speck = bullet.createVisualShape(bullet.GEOM_SPHERE, radius=1e-4, physicsClientId=client)
        middle = self.origin_m - [0.0, 0.0, 0.5 * size[2]]
        bullet.createMultiBody(
            0.0, -1, visual, basePosition=middle.tolist(), physicsClientId=client
        )
        # Bullet multiplies the frictions of two surfaces: what lies on the table meets a surface
        # of 1, so that its own friction counts, and the arm meets one with the table's.
        for group, friction in ((Group.FREE, 1.0), (Group.ARM, self.scene.table_friction)):
            plane = bullet.createCollisionShape(
                bullet.GEOM_PLANE, planeNormal=[0.0, 0.0, 1.0], physicsClientId=client
            )
            top = bullet.createMultiBody(
                0.0, plane, speck, basePosition=self.origin_m.tolist(), physicsClientId=client
            )
            bullet.setCollisionFilterGroupMask(
                top, -1, int(Group.STATIC), int(group), physicsClientId=client
            )
            bullet.changeDynamics(
                top, -1, lateralFriction=friction, restitution=0.0, physicsClientId=client
            )

    def _add_body(self, body: BodySpec) -> int:
        bullet, client = self._bullet, self._client
        body_id = self._load(
            _body_urdf(body),
            basePosition=(self.origin_m + body.position_m).tolist(),
            baseOrientation=unit_quat(body.quat_xyzw).tolist(),
            useFixedBase=body.motion != "free",
        )
        group = body_group(body)
        link = 0 if group is Group.JOINTED else -1
        self._collide(body_id, link, group)
        for index in range(-1, bullet.getNumJoints(body_id, physicsClientId=client)):
            bullet.changeDynamics(
                body_id, index, restitution=0.0, linearDamping=0.0, angularDamping=0.0,
                spinningFriction=0.0, rollingFriction=0.0, physicsClientId=client,
            )  # fmt: skip
            if index != link:
                self._collide(body_id, index, None)
        joint = body.motion
        if isinstance(joint, (SlideJoint, HingeJoint)):
            lower, upper = joint_range(joint)
            bullet.changeDynamics(
                body_id, 0, jointDamping=joint.damping, jointLowerLimit=lower,
                jointUpperLimit=upper, physicsClientId=client,
            )  # fmt: skip
            # Coulomb friction is a motor that asks for rest with a limited force.
            friction = joint.friction_n if isinstance(joint, SlideJoint) else joint.friction_nm
            bullet.setJointMotorControl2(
                body_id, 0, bullet.VELOCITY_CONTROL, targetVelocity=0.0, force=friction,
                physicsClientId=client,
            )  # fmt: skip
        return body_id

    def _add_marker(self) -> int:
        bullet, client = self._bullet, self._client
        visual = bullet.createVisualShape(
            bullet.GEOM_SPHERE,
            radius=MARKER_RADIUS_M,
            rgbaColor=MARKER_RGBA,
            specularColor=[0.0, 0.0, 0.0],
            physicsClientId=client,
        )
        marker: int = bullet.createMultiBody(
            0.0, -1, visual, basePosition=_HIDDEN, physicsClientId=client
        )
        return marker

    # Physics.

    def _advance(self, ticks: int) -> None:
        bullet, client, stream = self._bullet, self._client, self.stream
        start = stream.start
        velocity = stream.velocity
        speeds = [*velocity.tolist(), 0.0, 0.0]
        for tick in range(stream.elapsed, stream.elapsed + ticks):
            targets = (start + velocity * (tick * self.step_s)).tolist()
            # A spring as soft as the other engine's: what it may press grows with the distance.
            forces = [
                min(
                    abs(self.finger_target_m - position) * self._finger_stiffness + 1.0,
                    self.spec.gripper.force_n,
                )
                for position in self.finger_positions()
            ]
            bullet.setJointMotorControlArray(
                self._arm,
                self._driven,
                bullet.POSITION_CONTROL,
                targetPositions=[*targets, self.finger_target_m, self.finger_target_m],
                targetVelocities=speeds,
                forces=self._torques + forces,
                positionGains=self._position_gains,
                velocityGains=self._velocity_gains,
                physicsClientId=client,
            )
            self._pull_down()
            bullet.stepSimulation(physicsClientId=client)

    def _pull_down(self) -> None:
        """Gravity for this step on everything in the scene that moves."""
        bullet, client = self._bullet, self._client
        for body_id, link, weight in self._weights:
            place = (
                bullet.getBasePositionAndOrientation(body_id, physicsClientId=client)[0]
                if link < 0
                else bullet.getLinkState(body_id, link, physicsClientId=client)[0]
            )
            bullet.applyExternalForce(
                body_id, link, (0.0, 0.0, -weight), place, bullet.WORLD_FRAME,
                physicsClientId=client,
            )  # fmt: skip

    def _scatter(self) -> None:
        """Take everything that moves apart, which empties the engine's caches of contacts."""
        bullet, client = self._bullet, self._client
        for joint, value in zip(self._arm_joints, self.spec.home_rad, strict=True):
            bullet.resetJointState(self._arm, joint, value, 0.0, physicsClientId=client)
        for i, (body_id, _) in enumerate(self._free.values()):
            place = (0.0, 0.0, -HIDDEN_M + 10.0 * i)
            bullet.resetBasePositionAndOrientation(body_id, place, _UPRIGHT, physicsClientId=client)
        bullet.performCollisionDetection(physicsClientId=client)

    def _forget(self) -> None:
        """Back to where nothing is remembered of what has been."""
        self._scatter()
        self._bullet.restoreState(stateId=self._pristine, physicsClientId=self._client)

    def joint_state(self) -> tuple[Array, Array]:
        states = self._bullet.getJointStates(
            self._arm, self._arm_joints, physicsClientId=self._client
        )
        return (
            np.array([state[0] for state in states]),
            np.array([state[1] for state in states]),
        )

    def finger_positions(self) -> tuple[float, float]:
        first, second = self._bullet.getJointStates(
            self._arm, self._finger_joints, physicsClientId=self._client
        )
        return first[0], second[0]

    def _free_state(self, name: str) -> BodyState:
        body_id, inertia = self._free[name]
        bullet, client = self._bullet, self._client
        position, quat = bullet.getBasePositionAndOrientation(body_id, physicsClientId=client)
        velocity, spin = bullet.getBaseVelocity(body_id, physicsClientId=client)
        # Bullet tells of the principal axes at the centre of mass.
        axes = quat_from_rotation(inertia.axes)
        turned = quat_multiply(quat, axes * [-1.0, -1.0, -1.0, 1.0])
        offset = rotation_from_quat(turned) @ inertia.com_m
        spin = np.array(spin)
        return BodyState(
            np.array(position) - offset - self.origin_m,
            turned,
            np.array(velocity) - np.cross(spin, offset),
            spin,
        )

    def _scene_joint(self, name: str) -> tuple[float, float]:
        state = self._bullet.getJointState(self._hinges[name], 0, physicsClientId=self._client)
        return state[0], state[1]

    def tool_contacts(self) -> Iterator[Contact]:
        return bullet_contacts(self._bullet, self._client, self._arm, self._tool_links)

    def _place(
        self,
        arm_rad: Array,
        finger_m: float,
        bodies: Mapping[str, tuple[Array, Array]],
        joints: Mapping[str, float],
    ) -> None:
        bullet, client = self._bullet, self._client
        self._forget()
        positions = [*arm_rad.tolist(), finger_m, finger_m]
        for joint, value in zip(self._driven, positions, strict=True):
            bullet.resetJointState(self._arm, joint, value, 0.0, physicsClientId=client)
        for name, (position, quat) in bodies.items():
            body_id, inertia = self._free[name]
            place, turn = _inertial_pose(position + self.origin_m, quat, inertia)
            bullet.resetBasePositionAndOrientation(
                body_id, place.tolist(), turn.tolist(), physicsClientId=client
            )
            bullet.resetBaseVelocity(
                body_id, (0.0, 0.0, 0.0), (0.0, 0.0, 0.0), physicsClientId=client
            )
        for name, value in joints.items():
            bullet.resetJointState(self._hinges[name], 0, value, 0.0, physicsClientId=client)

    def _save(self) -> dict[str, NDArray[Any]]:
        with tempfile.TemporaryDirectory(prefix="robot_rl_state_") as folder:
            path = Path(folder) / "state.bullet"
            self._bullet.saveBullet(str(path), physicsClientId=self._client)
            return {"bullet_state": np.frombuffer(path.read_bytes(), dtype=np.uint8).copy()}

    def _restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        bullet, client = self._bullet, self._client
        with tempfile.TemporaryDirectory(prefix="robot_rl_state_") as folder:
            path = Path(folder) / "state.bullet"
            path.write_bytes(np.asarray(state["bullet_state"], dtype=np.uint8).tobytes())
            self._forget()
            try:
                bullet.restoreState(fileName=str(path), physicsClientId=client)
            except bullet.error as error:
                raise InvalidInputError(
                    f"PyBullet refuses the state ({error}): it was saved from another robot or "
                    "scene"
                ) from error

    def _apply_randomization(self) -> None:
        bullet, client, values = self._bullet, self._client, self.randomization
        self._weights: list[tuple[int, int, float]] = []
        for name, body in self._bodies.items():
            body_id, inertia = self._body_ids[name], self._inertias[name]
            link = 0 if body_group(body) is Group.JOINTED else -1
            for shape, geom in enumerate(body.geoms):
                bullet.changeVisualShape(
                    body_id, link, shapeIndex=shape,
                    rgbaColor=shifted_rgba(geom.rgba, values.color_shift),
                    specularColor=(0.0, 0.0, 0.0), physicsClientId=client,
                )  # fmt: skip
            if body.motion == "fixed":
                bullet.changeDynamics(
                    body_id, link, lateralFriction=body.friction, physicsClientId=client
                )
                continue
            mass = body.mass_kg * values.mass_scale
            bullet.changeDynamics(
                body_id, link, mass=mass,
                localInertiaDiagonal=(inertia.moments_kg_m2 * values.mass_scale).tolist(),
                lateralFriction=body.friction * values.friction_scale, physicsClientId=client,
            )  # fmt: skip
            self._weights.append((body_id, link, mass * GRAVITY_M_S2))

    # Rendering.

    def _render(
        self, pose: CameraPose, height: int, width: int, markers: Mapping[str, Array]
    ) -> NDArray[np.uint8]:
        bullet, client = self._bullet, self._client
        for name, position in markers.items():
            bullet.resetBasePositionAndOrientation(
                self._markers[name], (self.origin_m + position).tolist(), _UPRIGHT,
                physicsClientId=client,
            )  # fmt: skip
        view = np.eye(4)
        view[:3, :3] = pose.rotation.T
        view[:3, 3] = -pose.rotation.T @ (pose.position_m + self.origin_m)
        projection = bullet.computeProjectionMatrixFOV(pose.fov_deg, width / height, 0.01, 10.0)
        image = bullet.getCameraImage(
            width,
            height,
            view.T.ravel().tolist(),
            projection,
            shadow=int(self.request.render_quality != "fast"),
            lightDirection=[-value for value in LIGHT_DIRECTION],
            lightColor=[1.0, 1.0, 1.0],
            lightAmbientCoeff=0.6,
            lightDiffuseCoeff=0.5,
            lightSpecularCoeff=0.0,
            renderer=bullet.ER_TINY_RENDERER,
            flags=bullet.ER_NO_SEGMENTATION_MASK,
            physicsClientId=client,
        )[2]
        for name in markers:
            bullet.resetBasePositionAndOrientation(
                self._markers[name], _HIDDEN, _UPRIGHT, physicsClientId=client
            )
        return np.array(np.reshape(image, (height, width, 4))[:, :, :3], dtype=np.uint8)

    def close(self) -> None:
        if self._client >= 0:
            self._bullet.disconnect(physicsClientId=self._client)
            self._client = -1


def _inertial_pose(
    position_m: Array, quat_xyzw: Array, inertia: BodyInertia
) -> tuple[Array, Array]:
    """Pose of the principal axes at the centre of mass of a body at a pose."""
    place = position_m + rotation_from_quat(quat_xyzw) @ inertia.com_m
    return place, quat_multiply(quat_xyzw, quat_from_rotation(inertia.axes))


def _body_urdf(body: BodySpec) -> str:
    """A body of the scene as a URDF: one link, or a base and a link on a joint."""
    robot = xml.Element("robot", name=body.name)
    link_name = f"{body.name}_link"
    if body_group(body) is Group.JOINTED:
        base = xml.SubElement(robot, "link", name=f"{body.name}_base")
        inertial = xml.SubElement(base, "inertial")
        xml.SubElement(inertial, "mass", value="0")
        xml.SubElement(inertial, "inertia", ixx="0", iyy="0", izz="0", ixy="0", ixz="0", iyz="0")
    link = xml.SubElement(robot, "link", name=link_name)
    inertia = body_inertia(body)
    inertial = xml.SubElement(link, "inertial")
    roll, pitch, yaw = _rpy(inertia.axes)
    xml.SubElement(inertial, "origin", xyz=_text(inertia.com_m), rpy=f"{roll!r} {pitch!r} {yaw!r}")
    xml.SubElement(inertial, "mass", value=repr(inertia.mass_kg))
    xx, yy, zz = (repr(float(value)) for value in inertia.moments_kg_m2)
    xml.SubElement(inertial, "inertia", ixx=xx, iyy=yy, izz=zz, ixy="0", ixz="0", iyz="0")
    for index, geom in enumerate(body.geoms):
        material = f"{body.name}_{index}"
        for role in ("visual", "collision") if geom.collides else ("visual",):
            element = xml.SubElement(link, role)
            xml.SubElement(element, "origin", xyz=_text(geom.position_m), rpy="0 0 0")
            _geometry(element, geom)
            if role == "visual":
                color = xml.SubElement(element, "material", name=material)
                xml.SubElement(color, "color", rgba=_text(geom.rgba))
    joint = body.motion
    if isinstance(joint, (SlideJoint, HingeJoint)):
        kind = "prismatic" if isinstance(joint, SlideJoint) else "revolute"
        element = xml.SubElement(robot, "joint", name=joint.name, type=kind)
        xml.SubElement(element, "parent", link=f"{body.name}_base")
        xml.SubElement(element, "child", link=link_name)
        xml.SubElement(element, "axis", xyz=_text(joint_axis(joint)))
        lower, upper = joint_range(joint)
        xml.SubElement(
            element, "limit", lower=repr(lower), upper=repr(upper), effort="1000", velocity="100"
        )
    return xml.tostring(robot, encoding="unicode")


def _geometry(parent: xml.Element, geom: Geom) -> None:
    geometry = xml.SubElement(parent, "geometry")
    if geom.shape == "box":
        xml.SubElement(geometry, "box", size=_text(geom.size_m))
    elif geom.shape == "cylinder":
        diameter, length = geom.size_m
        xml.SubElement(geometry, "cylinder", radius=repr(0.5 * diameter), length=repr(length))
    else:
        xml.SubElement(geometry, "sphere", radius=repr(0.5 * geom.size_m[0]))


def _text(values: Any) -> str:
    return " ".join(repr(float(value)) for value in values)


def _rpy(rotation: Array) -> tuple[float, float, float]:
    """Fixed-axis roll, pitch, yaw of a rotation (3, 3)."""
    pitch = math.atan2(-rotation[2, 0], math.hypot(rotation[0, 0], rotation[1, 0]))
    if abs(rotation[2, 0]) > 1.0 - 1e-12:
        return 0.0, pitch, math.atan2(-rotation[0, 1], rotation[1, 1])
    return (
        math.atan2(rotation[2, 1], rotation[2, 2]),
        pitch,
        math.atan2(rotation[1, 0], rotation[0, 0]),
    )
