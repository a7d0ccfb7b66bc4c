"""What an arm is: joints, limits, inertias, gripper and where its workspace lies.

The numbers stand in one YAML file per arm beside this module; everything else (kinematics, URDFs,
safety limits, simulated actuators) is derived from them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from robot_rl.errors import InvalidInputError, unknown_name

_FOLDER = Path(__file__).parent
Vector = tuple[float, ...]


class _Loader(yaml.SafeLoader):
    """YAML 1.1 takes ``5e-05`` for text, for want of a dot; here it is a number."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+[eE][-+]?[0-9]+$"), list("-+0123456789")
)


@dataclass(frozen=True)
class Inertia:
    """Rotational inertia [kg m^2] at the centre of mass, in axes parallel to the link frame."""

    xx: float
    xy: float
    xz: float
    yy: float
    yz: float
    zz: float


@dataclass(frozen=True)
class LinkSpec:
    """A rigid link: mass [kg], centre of mass [m] in the link frame, inertia [kg m^2]."""

    name: str
    mass_kg: float
    com_xyz_m: Vector
    inertia_kg_m2: Inertia


@dataclass(frozen=True)
class JointSpec:
    """A revolute joint about its own z axis.

    ``origin_*`` is the joint frame in the parent link at zero angle (fixed-axis roll, pitch, yaw).
    The velocity envelope is the FR3's position-dependent limit:
    ``max(0, -offset + sqrt(2 deceleration (limit - q)))``.
    """

    name: str
    origin_xyz_m: Vector
    origin_rpy_rad: Vector
    lower_rad: float
    upper_rad: float
    velocity_rad_s: float
    acceleration_rad_s2: float
    torque_nm: float
    jerk_rad_s3: float
    velocity_envelope_offset: float | None = None
    velocity_envelope_deceleration: float | None = None


@dataclass(frozen=True)
class CartesianLimits:
    """The maker's limits on the motion of the tool."""

    velocity_m_s: float
    acceleration_m_s2: float
    jerk_m_s3: float
    angular_velocity_rad_s: float
    angular_acceleration_rad_s2: float
    angular_jerk_rad_s3: float


@dataclass(frozen=True)
class GripperSpec:
    """A parallel gripper whose two fingers slide along the y axis of its base frame.

    ``mount_*`` is the gripper's base in the flange frame, ``tcp_xyz_m`` the tool centre point in
    the base frame, ``finger_stroke_m`` the travel of one finger (the opening is twice that),
    ``force_n`` the largest force of one finger.
    """

    name: str
    mount_xyz_m: Vector
    mount_rpy_rad: Vector
    tcp_xyz_m: Vector
    base_link: str
    tcp_link: str
    finger_joints: tuple[str, str]
    finger_links: tuple[str, str]
    finger_origin_xyz_m: Vector
    finger_stroke_m: float
    finger_velocity_m_s: float
    force_n: float
    base_mass_kg: float
    base_com_xyz_m: Vector
    base_inertia_kg_m2: Inertia
    finger_mass_kg: float
    finger_com_xyz_m: Vector
    finger_inertia_kg_m2: Inertia
    base_size_m: Vector
    finger_size_m: Vector


@dataclass(frozen=True)
class RobotSpec:
    """An arm with its gripper.

    ``links`` starts with the base link; link ``i + 1`` hangs on joint ``i``. ``home_rad`` is a
    comfortable posture with the tool pointing down; ``workspace_origin_m`` is the origin of the
    workspace frame (on the table, axes parallel to the base frame) in the base frame.
    """

    name: str
    joints: tuple[JointSpec, ...]
    links: tuple[LinkSpec, ...]
    flange_xyz_m: Vector
    flange_rpy_rad: Vector
    gripper: GripperSpec
    home_rad: Vector
    workspace_origin_m: Vector
    cartesian: CartesianLimits | None = None

    @property
    def joint_names(self) -> tuple[str, ...]:
        return tuple(joint.name for joint in self.joints)

    def limits(self, field: str) -> np.ndarray:
        """One limit of every joint as an array of shape (n_joints,), e.g. ``"velocity_rad_s"``."""
        return np.array([getattr(joint, field) for joint in self.joints], dtype=np.float64)


def list_robots() -> list[str]:
    """Names of the arms that :func:`load_robot` knows."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


@cache
def load_robot(name: str) -> RobotSpec:
    """The description of the arm ``name``.

    Raises:
        InvalidInputError: no such arm; the message lists those there are.
    """
    if name not in list_robots():
        raise unknown_name("robot", name, list_robots())
    return _parse(yaml.load((_FOLDER / f"{name}.yaml").read_text(), Loader=_Loader))


def _parse(raw: dict[str, Any]) -> RobotSpec:
    gripper = dict(raw["gripper"])
    for key in ("base_inertia_kg_m2", "finger_inertia_kg_m2"):
        gripper[key] = Inertia(**gripper[key])
    joints = tuple(JointSpec(**_tuples(joint)) for joint in raw["joints"])
    links = tuple(
        LinkSpec(**_tuples({**link, "inertia_kg_m2": Inertia(**link["inertia_kg_m2"])}))
        for link in raw["links"]
    )
    if len(links) != len(joints) + 1:
        raise InvalidInputError(
            f"robot {raw['name']!r}: {len(links)} links for {len(joints)} joints; "
            f"{len(joints) + 1} are needed (the base link first)"
        )
    cartesian = raw.get("cartesian")
    return RobotSpec(
        name=raw["name"],
        joints=joints,
        links=links,
        flange_xyz_m=tuple(raw["flange_xyz_m"]),
        flange_rpy_rad=tuple(raw["flange_rpy_rad"]),
        gripper=GripperSpec(**_tuples(gripper)),
        home_rad=tuple(raw["home_rad"]),
        workspace_origin_m=tuple(raw["workspace_origin_m"]),
        cartesian=CartesianLimits(**cartesian) if cartesian else None,
    )


def _tuples(raw: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in raw.items()}
