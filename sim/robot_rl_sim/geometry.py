"""Geometry of a scene for either engine: inertias, joints, quaternions, camera poses, colours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from robot_rl.errors import InvalidInputError
from robot_rl.interfaces import Array, BodyState, Randomization
from robot_rl.kinematics import rotation_from_quat
from robot_rl.specs import BodySpec, CameraSpec, Geom, HingeJoint, SlideJoint


@dataclass(frozen=True)
class BodyInertia:
    """Mass [kg], centre of mass (3,) [m] in the body frame, principal moments (3,) [kg m^2] and
    their axes as a rotation (3, 3) in the body frame."""

    mass_kg: float
    com_m: Array
    moments_kg_m2: Array
    axes: Array


def body_inertia(body: BodySpec) -> BodyInertia:
    """Inertia of a body whose mass is shared out over its geoms by volume."""
    volumes = np.array([_volume(geom) for geom in body.geoms])
    masses = body.mass_kg * volumes / volumes.sum()
    positions = np.array([geom.position_m for geom in body.geoms])
    com = masses @ positions / body.mass_kg
    tensor = np.zeros((3, 3))
    for mass, geom, position in zip(masses, body.geoms, positions, strict=True):
        arm = position - com
        tensor += np.diag(mass * _unit_inertia(geom))
        tensor += mass * ((arm @ arm) * np.eye(3) - np.outer(arm, arm))
    if np.abs(tensor - np.diag(np.diag(tensor))).max() <= 1e-12 * np.trace(tensor):
        return BodyInertia(body.mass_kg, com, np.diag(tensor).copy(), np.eye(3))
    moments, axes = np.linalg.eigh(tensor)
    if np.linalg.det(axes) < 0.0:
        axes[:, 2] *= -1.0
    return BodyInertia(body.mass_kg, com, moments, axes)


def _volume(geom: Geom) -> float:
    size = geom.size_m
    if geom.shape == "box":
        return size[0] * size[1] * size[2]
    if geom.shape == "cylinder":
        return 0.25 * math.pi * size[0] ** 2 * size[1]
    return math.pi * size[0] ** 3 / 6.0


def _unit_inertia(geom: Geom) -> Array:
    """Principal moments (3,) of a geom of mass 1 about its own axes."""
    size = geom.size_m
    if geom.shape == "box":
        x, y, z = np.square(size)
        return np.array([y + z, x + z, x + y]) / 12.0
    if geom.shape == "cylinder":
        radius, height = 0.5 * size[0], size[1]
        side = radius**2 / 4.0 + height**2 / 12.0
        return np.array([side, side, 0.5 * radius**2])
    return np.full(3, 0.4 * (0.5 * size[0]) ** 2)


def unit_quat(quat_xyzw: ArrayLike) -> Array:
    """A quaternion (4,) scaled to unit length."""
    quat = np.array(quat_xyzw, dtype=np.float64)
    norm = math.sqrt(quat @ quat) if quat.shape == (4,) else 0.0
    if not (0.0 < norm < math.inf):
        raise InvalidInputError(
            f"quaternion {quat_xyzw!r} should be four finite numbers, not all 0"
        )
    return quat / norm


def joint_axis(joint: SlideJoint | HingeJoint) -> Array:
    """The unit axis (3,) of a joint, in its body's frame."""
    axis = np.array(joint.axis, dtype=np.float64)
    return axis / np.linalg.norm(axis)


def joint_range(joint: SlideJoint | HingeJoint) -> tuple[float, float]:
    """Lower and upper end of a joint [m] or [rad]."""
    if isinstance(joint, SlideJoint):
        return joint.lower_m, joint.upper_m
    return joint.lower_rad, joint.upper_rad


def jointed_state(body: BodySpec, position: float, velocity: float) -> BodyState:
    """State in the workspace frame of a body on a joint at ``position`` [m] or [rad]."""
    joint = body.motion
    assert isinstance(joint, (SlideJoint, HingeJoint))
    rest = rotation_from_quat(body.quat_xyzw)
    axis = rest @ joint_axis(joint)
    origin = np.array(body.position_m, dtype=np.float64)
    if isinstance(joint, SlideJoint):
        return BodyState(
            origin + axis * position, unit_quat(body.quat_xyzw), axis * velocity, np.zeros(3)
        )
    half = 0.5 * position
    x, y, z = axis * math.sin(half)
    turned = quat_multiply((x, y, z, math.cos(half)), unit_quat(body.quat_xyzw))
    return BodyState(origin, turned, np.zeros(3), axis * velocity)


def quat_multiply(first: ArrayLike, second: ArrayLike) -> Array:
    """Product of two quaternions xyzw (4,): the turn ``second``, then the turn ``first``."""
    ax, ay, az, aw = np.asarray(first, dtype=np.float64)
    bx, by, bz, bw = np.asarray(second, dtype=np.float64)
    return np.array(
        [
            aw * bx + ax * bw + ay * bz - az * by,
            aw * by - ax * bz + ay * bw + az * bx,
            aw * bz + ax * by - ay * bx + az * bw,
            aw * bw - ax * bx - ay * by - az * bz,
        ]
    )


@dataclass(frozen=True)
class CameraPose:
    """Where a camera is, in the workspace frame: position (3,) [m] and rotation (3, 3) whose
    columns are the image's right, the image's up and the direction away from the scene."""

    position_m: Array
    rotation: Array
    fov_deg: float


def camera_pose(camera: CameraSpec, values: Randomization) -> CameraPose:
    """Pose of a camera as described, displaced by one draw of domain randomisation."""
    position = np.array(camera.position_m, dtype=np.float64)
    back = position - np.array(camera.target_m, dtype=np.float64)
    distance = np.linalg.norm(back)
    if not distance > 0.0:
        raise InvalidInputError(f"camera {camera.name!r}: position and target are the same point")
    back = back / distance
    # A camera that looks straight down has the far side of the table at the top of its image.
    up = np.array([1.0, 0.0, 0.0] if abs(back[2]) > 0.999 else [0.0, 0.0, 1.0])
    right = np.cross(up, back)
    right /= np.linalg.norm(right)
    rotation = np.stack([right, np.cross(back, right), back], axis=1)
    shift = np.asarray(values.camera_shift_m, dtype=np.float64)
    return CameraPose(
        position + shift, rotation_of_vector(values.camera_turn_rad) @ rotation, camera.fov_deg
    )


def rotation_of_vector(vector: ArrayLike) -> Array:
    """Rotation matrix (3, 3) of an axis times an angle (3,) [rad]."""
    axis = np.asarray(vector, dtype=np.float64)
    angle = float(np.linalg.norm(axis))
    if angle == 0.0:
        return np.eye(3)
    x, y, z = axis * (math.sin(0.5 * angle) / angle)
    return rotation_from_quat((x, y, z, math.cos(0.5 * angle)))


def shifted_rgba(rgba: Sequence[float], shift: ArrayLike) -> tuple[float, float, float, float]:
    """A colour moved by ``shift`` (3,) and kept within [0, 1]."""
    red, green, blue = np.clip(np.asarray(rgba[:3]) + np.asarray(shift), 0.0, 1.0)
    return float(red), float(green), float(blue), float(rgba[3])
