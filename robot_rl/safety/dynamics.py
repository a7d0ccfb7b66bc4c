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
        # With 4 x 4 matrices that act on points (x, y, z, 1) of the base frame: joint i moves the
        # points after it with velocity `turn` x, link j has velocity V x and acceleration A x, and
        # J = integral of x x' dm. The power of the forces A x dm at a unit speed of joint i alone,
        # the integral of (turn x)' (A x) dm, is the sum of the elements of turn * (A J).
        turn = _turns(frames)
        turning = turn * velocity_rad_s.T[..., None, None]
        speed = _summed(self._before, turning)
        gain = turn * acceleration_rad_s2.T[..., None, None]
        gain += speed @ turning - turning @ speed
        pull = _summed(self._before, gain) + speed @ speed
        pull[..., 2, 3] += GRAVITY_M_S2
        force = pull @ (frames @ self._moments @ frames.swapaxes(2, 3))
        # A joint carries all that comes after it.
        return np.einsum("nkij,nkij->kn", turn, _summed(self._before.T, force))


def _summed(which: Array, matrices: Array) -> Array:
    """Sums (n, k, 4, 4) of those of n matrices that a row of ``which`` (n, n) names."""
    return (which @ matrices.reshape(len(which), -1)).reshape(matrices.shape)


def _turns(frames: Array) -> Array:
    """The motion (n, k, 4, 4) of points by a unit speed of each joint about its z axis."""
    turn = np.zeros_like(frames)
    axis = frames[..., :3, 2]
    # The elements [2, 1], [0, 2] and [1, 0], and those across the diagonal.
    turn[..., (2, 0, 1), (1, 2, 0)] = axis
    turn[..., (1, 2, 0), (2, 0, 1)] = -axis
    turn[..., 3:] = -(turn @ frames[..., 3:])
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
