"""Joint torques of a motion: inverse dynamics of a whole batch of postures at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from robot_rl.interfaces import Array
from robot_rl.kinematics import transform
from robot_rl.specs.robot import Inertia, RobotSpec

GRAVITY_M_S2 = 9.81


class InverseDynamics:
    """Torques that an arm with its gripper, standing on a level base, needs for a motion.

    The last link carries the gripper with its fingers half open. Rotor inertia and friction are
    not in it: makers do not publish them.
    """

    def __init__(self, spec: RobotSpec) -> None:
        bodies = [_body(link.mass_kg, link.com_xyz_m, link.inertia_kg_m2) for link in spec.links]
        moving = [*bodies[1:-1], bodies[-1] + _gripper(spec)]
        self._moments = np.stack(moving)[:, None]
        self._before = np.tri(len(moving))

    def torque(self, frames: Array, velocity_rad_s: Array, acceleration_rad_s2: Array) -> Array:
        """Torques (k, n) [N m] at link frames (n, k, 4, 4) for velocities and accelerations (k, n).
        """
        # With matrices that act on points (x, y, z, 1) of the base frame: joint i moves the points
        # after it with velocity `turn` x, link j has velocity V x and acceleration A x, and
        # J = integral of x x' dm. The power of the forces A x dm at a unit speed of joint i alone,
        # the integral of (turn x)' (A x) dm, is the sum of the elements of turn * (A J). The
        # matrices' elements come first, (3, 4, n, k): one operation then works on all of them.
        place = frames.transpose(2, 3, 0, 1).copy()
        turn = _turns(place)
        turning = turn * velocity_rad_s.T
        speed = self._before @ turning
        # A is the sum of turn'' + [V, turning] over the joints before, and V V; as V is a sum too,
        # that is the sum of turn'' + (2 V - turning) turning.
        gain = turn * acceleration_rad_s2.T
        gain += _product((speed + speed - turning)[:, :3], turning)
        pull = self._before @ gain
        pull[2, 3] += GRAVITY_M_S2
        moved = np.einsum("ijnk,nkjl->ilnk", _product(pull, place), self._moments)
        force = np.einsum("ijnk,ljnk->ilnk", moved, place)
        # A joint carries all that comes after it.
        return np.einsum("ijnk,ijnk->kn", turn, self._before.T @ force)


def _product(first: Array, second: Array) -> Array:
    """Products (i, l, n, k) of matrices (i, j, n, k) and (j, l, n, k)."""
    return np.einsum("ijnk,jlnk->ilnk", first, second)


def _turns(place: Array) -> Array:
    """The motion (3, 4, n, k) of points by a unit speed of each joint about its z axis."""
    axis = place[:3, 2]
    turn = np.zeros((3, *place.shape[1:]))
    # The elements [2, 1], [0, 2] and [1, 0], and those across the diagonal.
    turn[2, 1], turn[0, 2], turn[1, 0] = axis
    turn[1, 2], turn[2, 0], turn[0, 1] = -axis
    turn[:, 3] = -np.einsum("ijnk,jnk->ink", turn[:, :3], place[:3, 3])
    return turn


def _body(mass_kg: float, com_m: Sequence[float], inertia: Inertia) -> Array:
    """Moments (4, 4) of a body's mass: the integral of x x' dm over its points (x, y, z, 1)."""
    i = inertia
    about = np.array([[i.xx, i.xy, i.xz], [i.xy, i.yy, i.yz], [i.xz, i.yz, i.zz]])
    moments = np.zeros((4, 4))
    moments[:3, :3] = 0.5 * np.trace(about) * np.eye(3) - about
    com = np.array([*com_m, 1.0])
    return np.asarray(moments + mass_kg * np.outer(com, com))


def _gripper(spec: RobotSpec) -> Array:
    """The moments (4, 4) of the gripper's base and fingers in the frame of the last link."""
    gripper = spec.gripper
    mount = transform(spec.flange_xyz_m, spec.flange_rpy_rad) @ transform(
        gripper.mount_xyz_m, gripper.mount_rpy_rad
    )
    parts = _body(gripper.base_mass_kg, gripper.base_com_xyz_m, gripper.base_inertia_kg_m2)
    finger = _body(gripper.finger_mass_kg, gripper.finger_com_xyz_m, gripper.finger_inertia_kg_m2)
    half_open = transform(np.array(gripper.finger_origin_xyz_m)
                          + [0.0, 0.5 * gripper.finger_stroke_m, 0.0])
    for side in (0.0, np.pi):
        # The second finger is the first, turned about z.
        place = transform((0.0, 0.0, 0.0), (0.0, 0.0, side)) @ half_open
        parts = parts + place @ finger @ place.T
    return np.asarray(mount @ parts @ mount.T)
