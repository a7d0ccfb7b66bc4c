"""Forward kinematics, Jacobian and inverse kinematics of a serial arm.

Frames: all poses are of the tool centre point (TCP) in the arm's base frame. Angles in rad,
lengths in m. Angular velocities are in base axes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from robot_rl.specs.robot import RobotSpec

Array = NDArray[np.float64]
_EYE6 = np.eye(6)


def rotation_from_rpy(rpy_rad: ArrayLike) -> Array:
    """Rotation matrix (3, 3) of fixed-axis roll, pitch, yaw: Rz(yaw) Ry(pitch) Rx(roll)."""
    roll, pitch, yaw = np.asarray(rpy_rad, dtype=np.float64)
    cr, sr, cp, sp, cy, sy = (
        np.cos(roll),
        np.sin(roll),
        np.cos(pitch),
        np.sin(pitch),
        np.cos(yaw),
        np.sin(yaw),
    )
    return np.array(
        [
            [cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr],
            [sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr],
            [-sp, cp * sr, cp * cr],
        ]
    )


def transform(xyz_m: ArrayLike, rpy_rad: ArrayLike = (0.0, 0.0, 0.0)) -> Array:
    """Homogeneous transform (4, 4) from a translation and fixed-axis roll, pitch, yaw."""
    out = np.eye(4)
    out[:3, :3] = rotation_from_rpy(rpy_rad)
    out[:3, 3] = xyz_m
    return out


def quat_from_rotation(rotation: Array) -> Array:
    """Unit quaternion xyzw (4,) with non-negative w from a rotation matrix (3, 3)."""
    m = rotation
    # Shepperd's choice of the largest component keeps the division well conditioned.
    candidates = (m[0, 0], m[1, 1], m[2, 2], m[0, 0] + m[1, 1] + m[2, 2])
    k = int(np.argmax(candidates))
    quat = np.empty(4)
    if k == 3:
        quat[:] = (m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1], 1.0 + candidates[3])
    else:
        i, j, l = k, (k + 1) % 3, (k + 2) % 3  # noqa: E741
        quat[i] = 1.0 + m[i, i] - m[j, j] - m[l, l]
        quat[j] = m[j, i] + m[i, j]
        quat[l] = m[l, i] + m[i, l]
        quat[3] = m[l, j] - m[j, l]
    quat /= np.sqrt(quat @ quat)
    return -quat if quat[3] < 0 else quat


def rotation_from_quat(quat_xyzw: ArrayLike) -> Array:
    """Rotation matrix (3, 3) of a quaternion xyzw (4,), normalised first."""
    quat = np.asarray(quat_xyzw, dtype=np.float64)
    x, y, z, w = quat / np.sqrt(quat @ quat)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def rotation_vector(rotation: Array) -> Array:
    """Axis times angle (3,) [rad] of a rotation matrix; right at 0 and at pi as well."""
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = rotation.tolist()
    vector = np.array([zy - yz, xz - zx, yx - xy])
    sin2 = float(np.sqrt(vector @ vector))
    cos2 = xx + yy + zz - 1.0
    if sin2 > 1e-6:
        return vector * (np.arctan2(sin2, cos2) / sin2)
    if cos2 > 0:
        return 0.5 * vector
    quat = quat_from_rotation(rotation)
    return np.pi * quat[:3] / np.linalg.norm(quat[:3])


@dataclass(frozen=True)
class IKResult:
    """Joint angles (n,) [rad] and what is left of the pose error [m], [rad]."""

    q_rad: Array
    position_error_m: float
    rotation_error_rad: float
    converged: bool


class Kinematics:
    """Kinematics of one arm up to its gripper's tool centre point.

    Angles outside the joint limits are computed like any others in :meth:`forward` and
    :meth:`jacobian`; :meth:`inverse` stays within the limits.
    """

    def __init__(self, spec: RobotSpec) -> None:
        self.spec = spec
        self.n_joints = len(spec.joints)
        self.lower_rad = spec.limits("lower_rad")
        self.upper_rad = spec.limits("upper_rad")
        self._home = np.asarray(spec.home_rad, dtype=np.float64)
        gripper = spec.gripper
        self._tool = (
            transform(spec.flange_xyz_m, spec.flange_rpy_rad)
            @ transform(gripper.mount_xyz_m, gripper.mount_rpy_rad)
            @ transform(gripper.tcp_xyz_m)
        )
        # Columns x and y of an origin turn with the joint: F Rz(q) = [x c + y s, y c - x s, z, p].
        origins = np.stack([transform(j.origin_xyz_m, j.origin_rpy_rad) for j in spec.joints])
        self._fixed, self._cos, self._sin = np.zeros((3, *origins.shape))
        self._fixed[:, :, 2:] = origins[:, :, 2:]
        self._cos[:, :, :2] = origins[:, :, :2]
        self._sin[:, :, 0], self._sin[:, :, 1] = origins[:, :, 1], -origins[:, :, 0]

    def joint_frames(self, q_rad: ArrayLike) -> Array:
        """Frames (n, 4, 4) of the links after each joint, in the base frame."""
        q = np.asarray(q_rad, dtype=np.float64)
        if q.shape != (self.n_joints,):
            raise ValueError(f"q_rad has shape {q.shape}, should be ({self.n_joints},)")
        local = self._cos * np.cos(q)[:, None, None]
        local += self._sin * np.sin(q)[:, None, None]
        local += self._fixed
        frame = local[0]
        for i in range(1, self.n_joints):
            frame = np.dot(frame, local[i], out=local[i])  # type: ignore[call-overload]
        return local

    def frames(self, q_rad: Array) -> tuple[Array, Array]:
        """Frames (n, k, 4, 4) of the links after each joint at k postures (k, n) [rad], and the
        poses (k, 4, 4) of the TCP, in the base frame."""
        q = q_rad.T[:, :, None, None]
        frames = self._cos[:, None] * np.cos(q)
        frames += self._sin[:, None] * np.sin(q)
        frames += self._fixed[:, None]
        for i in range(1, self.n_joints):
            frames[i] = frames[i - 1] @ frames[i]
        return frames, frames[-1] @ self._tool

    def forward(self, q_rad: ArrayLike) -> Array:
        """Pose (4, 4) of the TCP in the base frame for joint angles (n,) [rad]."""
        pose: Array = self.joint_frames(q_rad)[-1] @ self._tool
        return pose

    def forward_and_jacobian(self, q_rad: ArrayLike) -> tuple[Array, Array]:
        """Pose (4, 4) of the TCP and its geometric Jacobian (6, n): linear rows, then angular."""
        frames = self.joint_frames(q_rad)
        pose: Array = frames[-1] @ self._tool
        axis = frames[:, :3, 2].T
        arm = pose[:3, 3:4] - frames[:, :3, 3].T
        jacobian = np.empty((6, self.n_joints))
        jacobian[0] = axis[1] * arm[2] - axis[2] * arm[1]
        jacobian[1] = axis[2] * arm[0] - axis[0] * arm[2]
        jacobian[2] = axis[0] * arm[1] - axis[1] * arm[0]
        jacobian[3:] = axis
        return pose, jacobian

    def jacobian(self, q_rad: ArrayLike) -> Array:
        """Geometric Jacobian (6, n) of the TCP in base axes: [m/rad] rows 0-2, [rad/rad] 3-5."""
        return self.forward_and_jacobian(q_rad)[1]

    def step(
        self,
        q_rad: Array,
        target: Array,
        *,
        damping: float = 0.02,
        posture_gain: float = 0.05,
    ) -> tuple[Array, Array]:
        """One damped least-squares step towards the pose ``target`` (4, 4).

        What the arm's redundancy leaves free pulls towards the home posture. Returns the new
        angles (n,) within the joint limits and the pose error (6,) *before* the step.
        """
        pose, jacobian = self.forward_and_jacobian(q_rad)
        error = np.empty(6)
        error[:3] = target[:3, 3] - pose[:3, 3]
        error[3:] = rotation_vector(target[:3, :3] @ pose[:3, :3].T)
        pull = posture_gain * (self._home - q_rad)
        gram = jacobian @ jacobian.T
        gram.flat[::7] += damping * damping
        delta = pull + jacobian.T @ np.linalg.solve(gram, error - jacobian @ pull)
        return np.minimum(np.maximum(q_rad + delta, self.lower_rad), self.upper_rad), error

    def inverse(
        self,
        target: Array,
        seed_rad: ArrayLike | None = None,
        *,
        position_tolerance_m: float = 1e-5,
        rotation_tolerance_rad: float = 1e-4,
        max_iterations: int = 200,
        rng: np.random.Generator | None = None,
        restarts: int = 10,
    ) -> IKResult:
        """Joint angles within the limits whose TCP pose is ``target`` (4, 4).

        Starts at ``seed_rad`` (the home posture by default) and, where that fails, from up to
        ``restarts`` random postures. The best result is returned; ``converged`` says whether it
        meets the tolerances.
        """
        rng = rng if rng is not None else np.random.default_rng(0)
        q = self._home.copy() if seed_rad is None else np.array(seed_rad, dtype=np.float64)
        best: IKResult | None = None
        for _ in range(restarts + 1):
            result = self._descend(q, target, position_tolerance_m, rotation_tolerance_rad,
                                   max_iterations)
            if result.converged:
                return result
            if best is None or _badness(result) < _badness(best):
                best = result
            q = rng.uniform(self.lower_rad, self.upper_rad)
        assert best is not None
        return best

    def _descend(
        self, q: Array, target: Array, position_tol: float, rotation_tol: float, iterations: int
    ) -> IKResult:
        damping = 0.05
        for k in range(iterations):
            # The posture pull fades, or it would hold the solution off the target.
            stepped, error = self.step(
                q, target, damping=damping, posture_gain=0.1 * 0.9**k
            )
            position, rotation = np.linalg.norm(error[:3]), np.linalg.norm(error[3:])
            if position <= position_tol and rotation <= rotation_tol:
                return IKResult(q, float(position), float(rotation), True)
            change = stepped - q
            largest = np.abs(change).max()
            q = q + change * min(1.0, 0.3 / max(largest, 1e-12))
            damping = max(1e-4, damping * 0.8) if position < 0.05 else damping
        pose = self.forward(q)
        position = np.linalg.norm(target[:3, 3] - pose[:3, 3])
        rotation = np.linalg.norm(rotation_vector(target[:3, :3] @ pose[:3, :3].T))
        return IKResult(
            q,
            float(position),
            float(rotation),
            bool(position <= position_tol and rotation <= rotation_tol),
        )


def wrap_angle(angle_rad: float) -> float:
    """The same angle in [-pi, pi) [rad]."""
    return (angle_rad + math.pi) % (2.0 * math.pi) - math.pi


def _badness(result: IKResult) -> float:
    return result.position_error_m + 0.2 * result.rotation_error_rad
