"""A scene as plain data, which every engine builds for itself.

All poses are in the workspace frame: origin on the table's surface, z up, x away from the arm.
Shapes are primitives, sizes are full extents (not halves), quaternions are xyzw.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Vec3 = tuple[float, float, float]
Quat = tuple[float, float, float, float]
Rgba = tuple[float, float, float, float]
Shape = Literal["box", "cylinder", "sphere"]


@dataclass(frozen=True)
class Geom:
    """A primitive. ``size_m``: box (x, y, z); cylinder (diameter, height); sphere (diameter,)."""

    shape: Shape
    size_m: tuple[float, ...]
    position_m: Vec3 = (0.0, 0.0, 0.0)
    rgba: Rgba = (0.6, 0.6, 0.6, 1.0)
    collides: bool = True

    def __post_init__(self) -> None:
        expected = {"box": 3, "cylinder": 2, "sphere": 1}[self.shape]
        if len(self.size_m) != expected or min(self.size_m) <= 0.0:
            raise ValueError(
                f"{self.shape}: size {self.size_m} should be {expected} positive lengths [m]"
            )


@dataclass(frozen=True)
class SlideJoint:
    """A prismatic joint along ``axis`` (unit, body frame); range [m], friction [N],
    damping [N s/m]."""

    name: str
    axis: Vec3
    lower_m: float
    upper_m: float
    friction_n: float = 1.0
    damping: float = 2.0


@dataclass(frozen=True)
class HingeJoint:
    """A revolute joint about ``axis`` through the body's origin; range [rad], friction [N m]."""

    name: str
    axis: Vec3
    lower_rad: float
    upper_rad: float
    friction_nm: float = 0.05
    damping: float = 0.1


@dataclass(frozen=True)
class BodySpec:
    """A body of the scene.

    ``motion`` is ``"fixed"``, ``"free"``, or a joint that ties the body to the table at
    ``position_m``. ``mass_kg`` is shared out over the geoms by volume. ``friction`` is the sliding
    coefficient against any other surface.
    """

    name: str
    geoms: tuple[Geom, ...]
    motion: Literal["fixed", "free"] | SlideJoint | HingeJoint = "fixed"
    position_m: Vec3 = (0.0, 0.0, 0.0)
    quat_xyzw: Quat = (0.0, 0.0, 0.0, 1.0)
    mass_kg: float = 0.1
    friction: float = 0.5


@dataclass(frozen=True)
class CameraSpec:
    """A pinhole camera at ``position_m`` looking at ``target_m``; vertical field of view [deg]."""

    name: str
    position_m: Vec3
    target_m: Vec3
    fov_deg: float = 45.0


@dataclass(frozen=True)
class JointSensor:
    """An encoder on a joint of the scene: reads its position [m] or [rad]."""

    name: str
    joint: str


@dataclass(frozen=True)
class RegionSensor:
    """A switch or an electrical contact: reads 1 while a point is in a box, and 0 elsewhere.

    The point is the origin of ``body``, or the tool's centre point where that is ``"tool"``. The
    box's corners ``low_m`` and ``high_m`` are in the workspace frame.
    """

    name: str
    low_m: Vec3
    high_m: Vec3
    body: str = "tool"

    def __post_init__(self) -> None:
        if not all(low < high for low, high in zip(self.low_m, self.high_m, strict=True)):
            raise ValueError(f"sensor {self.name!r}: {self.low_m} is not below {self.high_m}")


@dataclass(frozen=True)
class HeldSpec:
    """A piece that the gripper holds for good, as one with the hand, whose weight includes it.

    The geoms are in the frame of the tool centre point, whose z axis points out of the hand: down,
    on an arm at work. They are drawn in the hand's colour. The gripper stays closed on it.
    """

    name: str
    geoms: tuple[Geom, ...]

    @property
    def reach_m(self) -> float:
        """How far it sticks out beyond the tool centre point [m]."""
        heights = {"box": -1, "cylinder": 1, "sphere": 0}
        return max(geom.position_m[2] + 0.5 * geom.size_m[heights[geom.shape]]
                   for geom in self.geoms)


@dataclass(frozen=True)
class SceneSpec:
    """Everything around the arm: the table, bodies, markers (no collision), cameras, sensors.

    ``markers`` are visual spheres that show a goal; engines hide them from training images unless
    asked. ``held`` is a piece in the gripper, None where it is empty.
    """

    bodies: tuple[BodySpec, ...] = ()
    cameras: tuple[CameraSpec, ...] = ()
    markers: tuple[str, ...] = ()
    sensors: tuple[JointSensor | RegionSensor, ...] = ()
    held: HeldSpec | None = None
    table_size_m: Vec3 = (0.8, 1.2, 0.05)
    table_friction: float = 0.5

    def body(self, name: str) -> BodySpec:
        for body in self.bodies:
            if body.name == name:
                return body
        raise KeyError(f"no body {name!r}; the scene has {[b.name for b in self.bodies]}")

    def with_cameras(self, cameras: tuple[CameraSpec, ...]) -> SceneSpec:
        return replace(self, cameras=cameras)
