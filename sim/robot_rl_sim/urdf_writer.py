"""Writes one URDF per arm from its specification, for either engine to load as it is.

``python -m robot_rl_sim.urdf_writer`` rewrites the committed files, ``--check`` only compares.
Bodies are approximated by primitives: a housing about each joint axis and a tube to the next
joint. Masses and full inertia tensors are those of the specification.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree as xml

import numpy as np

from robot_rl.specs import RobotSpec, list_robots, load_robot
from robot_rl.specs.robot import Inertia, Vector
from robot_rl.specs.scene import HeldSpec, Rgba

FOLDER = Path(__file__).parent / "urdf"

_ZERO: Vector = (0.0, 0.0, 0.0)
_NO_INERTIA = Inertia(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
_FINGER_RGBA: Rgba = (0.12, 0.12, 0.13, 1.0)


@dataclass(frozen=True)
class Look:
    """How an arm is drawn: a radius [m] for each link and two alternating colours."""

    radii_m: tuple[float, ...]
    rgba: Rgba
    accent_rgba: Rgba
    gripper_rgba: Rgba


_FRANKA = Look(
    radii_m=(0.075, 0.065, 0.06, 0.06, 0.055, 0.05, 0.045, 0.04),
    rgba=(0.92, 0.92, 0.93, 1.0),
    accent_rgba=(0.75, 0.77, 0.8, 1.0),
    gripper_rgba=(0.82, 0.82, 0.84, 1.0),
)
_LOOKS = {
    "sawyer": Look(
        radii_m=(0.09, 0.075, 0.065, 0.06, 0.055, 0.05, 0.045, 0.04),
        rgba=(0.55, 0.1, 0.1, 1.0),
        accent_rgba=(0.2, 0.2, 0.22, 1.0),
        gripper_rgba=(0.25, 0.25, 0.27, 1.0),
    ),
    "panda": _FRANKA,
    "fr3": _FRANKA,
}


def look(spec: RobotSpec) -> Look:
    """How to draw ``spec``; an arm that is not listed here is drawn like a Franka."""
    return _LOOKS.get(spec.name, _FRANKA)


def link_rgba(spec: RobotSpec) -> dict[str, Rgba]:
    """The colour of every link that has a shape."""
    style = look(spec)
    colors = {
        link.name: style.accent_rgba if i % 2 else style.rgba for i, link in enumerate(spec.links)
    }
    colors[spec.gripper.base_link] = style.gripper_rgba
    colors.update(dict.fromkeys(spec.gripper.finger_links, _FINGER_RGBA))
    return colors


def flange_link(spec: RobotSpec) -> str:
    """Name of the flange's link; each arm has its own, so that two can share a world."""
    return f"{spec.name}_flange"


def urdf_text(spec: RobotSpec, held: HeldSpec | None = None) -> str:
    """The URDF of ``spec`` as text, the same on every machine; with ``held`` on its hand."""
    robot = xml.Element("robot", name=spec.name)
    extension = xml.SubElement(robot, "mujoco")
    # Names of fixed links survive, and shapes are drawn once: visual and collision are the same.
    xml.SubElement(
        extension,
        "compiler",
        fusestatic="false",
        discardvisual="true",
        balanceinertia="false",
        strippath="false",
    )
    style = look(spec)
    for name, rgba in (
        ("body", style.rgba),
        ("accent", style.accent_rgba),
        ("gripper", style.gripper_rgba),
        ("finger", _FINGER_RGBA),
    ):
        material = xml.SubElement(robot, "material", name=name)
        xml.SubElement(material, "color", rgba=_numbers(rgba))
    _arm(robot, spec)
    _gripper(robot, spec, held)
    xml.indent(robot, space="  ")
    header = (
        "<?xml version='1.0'?>\n"
        "<!-- Written by robot_rl_sim.urdf_writer from robot_rl/specs; do not edit by hand. -->\n"
    )
    return header + xml.tostring(robot, encoding="unicode") + "\n"


def _arm(robot: xml.Element, spec: RobotSpec) -> None:
    style = look(spec)
    ends = [joint.origin_xyz_m for joint in spec.joints] + [spec.flange_xyz_m]
    for i, (link, end) in enumerate(zip(spec.links, ends, strict=True)):
        radius = style.radii_m[min(i, len(style.radii_m) - 1)]
        element = _link(robot, link.name, link.mass_kg, link.com_xyz_m, link.inertia_kg_m2)
        material = "accent" if i % 2 else "body"
        length = float(np.linalg.norm(end))
        if i > 0:
            # The housing of the joint that carries this link, about the joint's axis.
            _shape(element, material, "cylinder", (radius, 2.2 * radius), _ZERO, _ZERO)
        if length > radius:
            middle = tuple(0.5 * value for value in end)
            size = (0.85 * radius, length)
            _shape(element, material, "cylinder", size, middle, _rpy_of_axis(end))
    for i, joint in enumerate(spec.joints):
        element = _joint(
            robot, joint.name, "revolute", spec.links[i].name, spec.links[i + 1].name,
            joint.origin_xyz_m, joint.origin_rpy_rad,
        )  # fmt: skip
        xml.SubElement(element, "axis", xyz="0 0 1")
        _limit(element, joint.lower_rad, joint.upper_rad, joint.torque_nm, joint.velocity_rad_s)
    flange = flange_link(spec)
    _link(robot, flange, 0.0, _ZERO, _NO_INERTIA)
    _joint(
        robot, f"{flange}_joint", "fixed", spec.links[-1].name, flange,
        spec.flange_xyz_m, spec.flange_rpy_rad,
    )  # fmt: skip


def _gripper(robot: xml.Element, spec: RobotSpec, held: HeldSpec | None) -> None:
    gripper = spec.gripper
    base = _link(
        robot, gripper.base_link, gripper.base_mass_kg, gripper.base_com_xyz_m,
        gripper.base_inertia_kg_m2,
    )  # fmt: skip
    height = gripper.base_size_m[2]
    _shape(base, "gripper", "box", gripper.base_size_m, (0.0, 0.0, 0.5 * height), _ZERO)
    for geom in held.geoms if held is not None else ():
        place = tuple(a + b for a, b in zip(gripper.tcp_xyz_m, geom.position_m, strict=True))
        size = geom.size_m if geom.shape == "box" else (0.5 * geom.size_m[0], *geom.size_m[1:])
        _shape(base, "gripper", geom.shape, size, place, _ZERO)
    _joint(
        robot, f"{gripper.base_link}_joint", "fixed", flange_link(spec), gripper.base_link,
        gripper.mount_xyz_m, gripper.mount_rpy_rad,
    )  # fmt: skip
    _link(robot, gripper.tcp_link, 0.0, _ZERO, _NO_INERTIA)
    _joint(
        robot, f"{gripper.tcp_link}_joint", "fixed", gripper.base_link, gripper.tcp_link,
        gripper.tcp_xyz_m, _ZERO,
    )  # fmt: skip
    # The second finger is the first one turned by half a turn, so it opens along -y.
    for name, link, yaw in zip(
        gripper.finger_joints, gripper.finger_links, (0.0, float(np.pi)), strict=True
    ):
        finger = _link(
            robot, link, gripper.finger_mass_kg, gripper.finger_com_xyz_m,
            gripper.finger_inertia_kg_m2,
        )  # fmt: skip
        size = gripper.finger_size_m
        _shape(finger, "finger", "box", size, (0.0, 0.5 * size[1], 0.5 * size[2]), _ZERO)
        joint = _joint(
            robot, name, "prismatic", gripper.base_link, link,
            gripper.finger_origin_xyz_m, (0.0, 0.0, yaw),
        )  # fmt: skip
        xml.SubElement(joint, "axis", xyz="0 1 0")
        _limit(joint, 0.0, gripper.finger_stroke_m, gripper.force_n, gripper.finger_velocity_m_s)


def _link(
    robot: xml.Element, name: str, mass_kg: float, com_m: Vector, inertia: Inertia
) -> xml.Element:
    link = xml.SubElement(robot, "link", name=name)
    inertial = xml.SubElement(link, "inertial")
    xml.SubElement(inertial, "origin", xyz=_numbers(com_m), rpy="0 0 0")
    xml.SubElement(inertial, "mass", value=_number(mass_kg))
    inertia = physical_inertia(inertia)
    tensor = {f"i{key}": _number(getattr(inertia, key)) for key in ("xx", "xy", "xz", "yy", "yz")}
    xml.SubElement(inertial, "inertia", tensor, izz=_number(inertia.zz))
    return link


def physical_inertia(inertia: Inertia) -> Inertia:
    """``inertia``, or the nearest one that a rigid body can have where no body can have it.

    The largest principal moment may not exceed the sum of the others (the maker's tensor of the
    Panda's link 4 does, by 9 %, and MuJoCo refuses it): the second moments that come out negative
    are raised to almost zero, which leaves the axes and the largest moment as they are.
    """
    tensor = np.array(
        [
            [inertia.xx, inertia.xy, inertia.xz],
            [inertia.xy, inertia.yy, inertia.yz],
            [inertia.xz, inertia.yz, inertia.zz],
        ]
    )
    trace = float(np.trace(tensor))
    moments, axes = np.linalg.eigh(0.5 * trace * np.eye(3) - tensor)
    if moments[0] >= 0.0:
        return inertia
    moments = np.maximum(moments, 1e-6 * trace)
    tensor = (axes * (moments.sum() - moments)) @ axes.T
    xx, xy, xz, _, yy, yz, _, _, zz = (round(float(value), 14) for value in tensor.flat)
    return Inertia(xx, xy, xz, yy, yz, zz)


def _joint(
    robot: xml.Element, name: str, kind: str, parent: str, child: str, xyz: Vector, rpy: Vector
) -> xml.Element:
    joint = xml.SubElement(robot, "joint", name=name, type=kind)
    xml.SubElement(joint, "parent", link=parent)
    xml.SubElement(joint, "child", link=child)
    xml.SubElement(joint, "origin", xyz=_numbers(xyz), rpy=_numbers(rpy))
    return joint


def _limit(joint: xml.Element, lower: float, upper: float, effort: float, speed: float) -> None:
    xml.SubElement(
        joint,
        "limit",
        lower=_number(lower),
        upper=_number(upper),
        effort=_number(effort),
        velocity=_number(speed),
    )


def _shape(
    link: xml.Element, material: str, kind: str, size: Vector, xyz: Vector, rpy: Vector
) -> None:
    """Add a primitive as visual and as collision; ``size`` is (radius, length) of a cylinder."""
    for role in ("visual", "collision"):
        element = xml.SubElement(link, role)
        xml.SubElement(element, "origin", xyz=_numbers(xyz), rpy=_numbers(rpy))
        geometry = xml.SubElement(element, "geometry")
        if kind == "box":
            xml.SubElement(geometry, "box", size=_numbers(size))
        elif kind == "sphere":
            xml.SubElement(geometry, "sphere", radius=_number(size[0]))
        else:
            xml.SubElement(geometry, kind, radius=_number(size[0]), length=_number(size[1]))
        if role == "visual":
            xml.SubElement(element, "material", name=material)


def _rpy_of_axis(axis: Vector) -> Vector:
    """Roll, pitch, yaw that turn the z axis onto ``axis``, rounded: it only serves looks."""
    x, y, z = axis
    pitch = float(np.arctan2(np.hypot(x, y), z))
    return (0.0, round(pitch, 6), round(float(np.arctan2(y, x)), 6))


def _number(value: float) -> str:
    """The shortest text that reads back as the same double, without a sign on zero."""
    return repr(float(value) + 0.0)


def _numbers(values: Vector) -> str:
    return " ".join(_number(value) for value in values)


def main(argv: list[str] | None = None) -> int:
    """Write or check the committed URDFs; returns 1 where a checked file is out of date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare only; exit 1 on a difference")
    arguments = parser.parse_args(argv)
    stale = []
    for name in list_robots():
        path, text = FOLDER / f"{name}.urdf", urdf_text(load_robot(name))
        if path.is_file() and path.read_text() == text:
            continue
        stale.append(str(path))
        if not arguments.check:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
            print(f"wrote {path}")
    if arguments.check and stale:
        print(f"out of date, run python -m robot_rl_sim.urdf_writer: {', '.join(stale)}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
