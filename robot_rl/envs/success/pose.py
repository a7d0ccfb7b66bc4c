"""Success by pose: a tracked body or the tool is where it should be, turned as it should be."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from robot_rl.envs.success.base import Detector
from robot_rl.errors import InvalidInputError, SafetyError
from robot_rl.interfaces import Arm, Array, ObjectTracker
from robot_rl.kinematics import Kinematics, rotation_from_quat, rotation_vector


def turn_between(first: Array, second: Array) -> float:
    """The smallest turn [rad] from one rotation (3, 3) to another, in [0, pi]."""
    vector = rotation_vector(first.T @ second)
    return math.sqrt(vector @ vector)


class _PoseSuccess(Detector):
    """Within a distance of a position, and within an angle of an orientation if one is given.

    ``axes`` are the components of the position that count. ``symmetry`` is the number of turns
    about the body's z axis after which it looks the same (a cube: 4).
    """

    def __init__(
        self,
        position_m: ArrayLike,
        tolerance_m: float,
        quat_xyzw: ArrayLike | None = None,
        tolerance_rad: float = math.pi,
        *,
        axes: str = "xyz",
        symmetry: int = 1,
        max_age_s: float = 0.2,
    ) -> None:
        self._position = _finite(position_m, 3, "position_m")
        self._rotation = None
        if quat_xyzw is not None:
            quat = _finite(quat_xyzw, 4, "quat_xyzw")
            if not float(quat @ quat) > 0.0:
                raise InvalidInputError("quat_xyzw is all 0, should be an orientation")
            self._rotation = rotation_from_quat(quat)
        for name, value, most in (("tolerance_m", tolerance_m, math.inf),
                                  ("tolerance_rad", tolerance_rad, math.pi)):
            if not 0.0 < value <= most:
                raise InvalidInputError(f"{name} is {value}, should be in (0, {most:g}]")
        if not axes or set(axes) - set("xyz"):
            raise InvalidInputError(f"axes is {axes!r}, should be letters of 'xyz'")
        if symmetry < 1:
            raise InvalidInputError(f"symmetry is {symmetry}, should be at least 1")
        self._axes = [("xyz").index(axis) for axis in sorted(set(axes))]
        self._tolerance_m, self._tolerance_rad = tolerance_m, tolerance_rad
        self._turns = [_about_z(2.0 * math.pi * k / symmetry) for k in range(symmetry)]
        self._max_age_s = max_age_s

    @abstractmethod
    def _pose(self) -> tuple[Array, Array]:
        """Position (3,) [m] and rotation (3, 3) now."""

    def success(self) -> bool:
        position, rotation = self._pose()
        if not (np.isfinite(position).all() and np.isfinite(rotation).all()):
            raise SafetyError(f"the pose at {position} m that success is judged by is not finite")
        off = (position - self._position)[self._axes]
        if math.sqrt(off @ off) > self._tolerance_m:
            return False
        if self._rotation is None:
            return True
        turns = (turn_between(self._rotation @ turn, rotation) for turn in self._turns)
        return min(turns) <= self._tolerance_rad


class BodyPoseSuccess(_PoseSuccess):
    """Success while a tracked body is at a pose in the workspace frame."""

    def __init__(self, tracker: ObjectTracker, body: str, *args: ArrayLike, **kwargs: object) -> (
        None
    ):
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self._tracker, self._body = tracker, body

    def _pose(self) -> tuple[Array, Array]:
        state = self._tracker.body(self._body, self._max_age_s)
        return state.position_m, rotation_from_quat(state.quat_xyzw)


class ToolPoseSuccess(_PoseSuccess):
    """Success while the arm's tool is at a pose in the workspace frame, by its measured joints."""

    def __init__(self, arm: Arm, *args: ArrayLike, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self._arm = arm
        self._kinematics = Kinematics(arm.spec)
        self._origin = np.array(arm.spec.workspace_origin_m, dtype=np.float64)

    def _pose(self) -> tuple[Array, Array]:
        pose = self._kinematics.forward(self._arm.state(self._max_age_s).position_rad)
        return pose[:3, 3] - self._origin, pose[:3, :3]


class ValueSuccess(Detector):
    """Success while a value is within ``tolerance`` of ``target``.

    ``period`` makes it an angle that comes back to itself, e.g. 2 pi [rad].
    """

    def __init__(
        self,
        value: Callable[[], float],
        target: float,
        tolerance: float,
        *,
        period: float | None = None,
    ) -> None:
        if not (math.isfinite(target) and 0.0 < tolerance < math.inf):
            raise InvalidInputError(
                f"target is {target} and tolerance {tolerance}, should be finite, the latter "
                "positive"
            )
        if period is not None and not 0.0 < period < math.inf:
            raise InvalidInputError(f"period is {period}, should be positive and finite")
        self._value, self._target = value, target
        self._tolerance, self._period = tolerance, period

    def success(self) -> bool:
        off = self._value() - self._target
        if not math.isfinite(off):
            raise SafetyError("the value that success is judged by is not finite")
        if self._period is not None:
            off = math.remainder(off, self._period)
        return abs(off) <= self._tolerance


def _about_z(angle_rad: float) -> Array:
    cos, sin = math.cos(angle_rad), math.sin(angle_rad)
    return np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])


def _finite(value: ArrayLike | Sequence[float], size: int, what: str) -> Array:
    try:
        array = np.array(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise InvalidInputError(f"{what} is {value!r}, should be {size} numbers") from None
    if array.shape != (size,) or not np.isfinite(array).all():
        raise InvalidInputError(f"{what} is {value!r}, should be {size} finite numbers")
    return array
