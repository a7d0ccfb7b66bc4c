"""Plans: checked rows of set-points from where an arm is going to where it is asked to go."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from robot_rl.errors import InvalidInputError
from robot_rl.interfaces import Array, JointSetpoints
from robot_rl.kinematics import Kinematics, rotation_vector
from robot_rl.safety.checks import HISTORY, Checker, Plan
from robot_rl.safety.config import SafetyConfig
from robot_rl.safety.generator import Generator

# How much further away [m] from where it is asked to go a command may leave the tool's set-point.
_STRAY_M = 0.001
# Of the inverse kinematics; the second is tried where the first flings the tool.
_DAMPING, _STRONG_DAMPING = 0.01, 0.1
# How far inside its box the tool's set-point stays: the way there bends.
_FACE_M = 0.003
# What is tried of a command that cannot be carried out whole.
_PARTS = (1.0, 0.5, 0.25)
# The same for the tool: the part of the way, and the share of the speed that it is gone at.
_TRIES = ((1.0, 1.0), (1.0, 0.7), (0.5, 1.0), (0.25, 1.0))
# Rows are made for a little less than the limits that they are checked against.
_ROOM, _TOOL_ROOM = 1.0 - 1e-6, 0.95
# A turn that lags further behind than this is held up by a joint's limit.
_TURN_LAG_RAD = 0.03
# A joint that has next to nowhere to go may still stop, and come back, at these speeds.
_LEAST_SHARE, _LEAST_RAD_S = 0.02, 1e-3


@dataclass(slots=True)
class Found:
    """A plan, where it leads (joint angles (n,) [rad] and the tool's pose (4, 4) in the base
    frame) and which part of what was asked that is; part 0 goes on with the plan before."""

    plan: Plan
    q_rad: Array
    pose: Array
    part: float


@dataclass(slots=True)
class Aim:
    """Where the tool shall go: its pose (4, 4), by what angle [rad] one command may turn its
    set-point, and for how long [s] it counts."""

    pose: Array
    turn_rad: float
    duration_s: float


class Planner:
    """Makes plans of one arm. The row that a plan begins with must not have been sent yet."""

    def __init__(self, kinematics: Kinematics, config: SafetyConfig, period_s: float) -> None:
        self.kinematics = kinematics
        self.period_s = period_s
        self.checker = checker = Checker(kinematics, config, period_s)
        self._generator = Generator(period_s, _ROOM * checker.acceleration, _ROOM * checker.jerk)
        self._grace = max(1, round(config.silence_s / period_s))
        self._origin = np.asarray(kinematics.spec.workspace_origin_m, dtype=np.float64)
        self._low = np.array(config.box_min_m) + _FACE_M
        self._high = np.array(config.box_max_m) - _FACE_M

    def due(self, duration_s: float) -> int:
        """After how many rows a commander is late with its next command."""
        return max(1, round(duration_s / self.period_s)) + self._grace

    # -- tool and joints --------------------------------------------------------------------

    def pose(self, tool_m: Array, yaw_rad: float) -> Array:
        """The tool's pose (4, 4) in the base frame at (3,) [m] in the workspace frame, pointing
        down and turned about z."""
        cos, sin = math.cos(yaw_rad), math.sin(yaw_rad)
        pose = np.eye(4)
        pose[:3, :3] = [[cos, sin, 0.0], [sin, -cos, 0.0], [0.0, 0.0, -1.0]]
        pose[:3, 3] = tool_m + self._origin
        return pose

    def tool(self, pose: Array) -> tuple[Array, float]:
        """The inverse of :meth:`pose`, whatever way the tool leans."""
        return pose[:3, 3] - self._origin, math.atan2(pose[1, 0], pose[0, 0])

    def inside(self, tool_m: Array) -> Array:
        """The nearest place (3,) [m] in the workspace frame where the set-point may be."""
        return np.minimum(np.maximum(tool_m, self._low), self._high)

    def clipped(self, q_rad: Array) -> Array:
        """The nearest joint angles (n,) [rad] that the joints may have."""
        return np.minimum(np.maximum(q_rad, self.checker.q_low), self.checker.q_high)

    def posture(self, pose: Array) -> Array:
        """Joint angles (n,) [rad] at which the tool has a pose (4, 4).

        Raises:
            InvalidInputError: the pose is out of reach.
        """
        # Where the steps of a moving tool would come to rest, so that the first of them does not
        # throw the elbow about.
        q = np.asarray(self.kinematics.spec.home_rad, dtype=np.float64)
        for _ in range(100):
            stepped, error = self.kinematics.step(q, pose, damping=_DAMPING)
            still = float(np.abs(stepped - q).max()) < 1e-4
            q = self.clipped(stepped)
            if still and float(error @ error) < 1e-8:
                return q
        result = self.kinematics.inverse(pose)
        if not result.converged:
            raise InvalidInputError(
                f"tool position {self.tool(pose)[0]} m is out of reach of "
                f"{self.kinematics.spec.name}: the nearest posture is "
                f"{result.position_error_m:.4f} m away"
            )
        return result.q_rad

    # -- plans ------------------------------------------------------------------------------

    def at_rest(self, q_rad: Array, sent: int) -> Plan:
        """Rest at (n,) [rad], where ``sent`` rows were sent so far."""
        rows = np.zeros((HISTORY, 3, len(q_rad)))
        rows[:, 0] = q_rad
        return Plan(sent - HISTORY, rows, self.kinematics.frames(rows[:, 0])[1])

    def setpoints(self, plan: Plan, *, stop: bool = False) -> JointSetpoints:
        """What an arm is sent of a plan, or of a brake (``stop``)."""
        rows = plan.rows[HISTORY:]
        return JointSetpoints(rows[:, 0], self.period_s, rows[:, 1], rows[:, 2],
                              plan.first + HISTORY, stop)

    def brake(self, plan: Plan, row: int) -> Plan | None:
        """From the plan's state before ``row`` to rest, as soon as the joints can."""
        rows = self._generator.brake(plan.state(row))
        if rows is None:
            return None
        found = self._checked(plan, row, rows, rows[-1, 0], True)
        return None if found is None else found[0]

    def kept(self, plan: Plan, row: int, duration_s: float) -> Found:
        """The plan as it is from ``row`` on, as long as its commander is waited for."""
        start = row - plan.first - HISTORY
        kept, poses = plan.rows[start:], plan.poses[start:]
        short = self.due(duration_s) + 1 + HISTORY - len(kept)
        if short > 0:
            kept = np.concatenate([kept, np.repeat(kept[-1:], short, axis=0)])
            poses = np.concatenate([poses, np.repeat(poses[-1:], short, axis=0)])
        return Found(Plan(row - HISTORY, kept, poses), kept[-1, 0], poses[-1], 0.0)

    def to_tool(self, plan: Plan, row: int, q_rad: Array, reached: Array, aim: Aim) -> Found:
        """From the plan's state before ``row`` towards a pose of the tool.

        ``q_rad`` (n,) is the set-point before and ``reached`` (4, 4) the tool's pose there. At the
        edge of the arm's reach a step of the inverse kinematics can lead anywhere: what would
        fling the tool or break a limit is taken back, at worst entirely.
        """
        wanted = _turned_towards(reached, aim.pose, aim.turn_rad + _TURN_LAG_RAD)
        here, step = reached[:3, 3], wanted[:3, 3] - reached[:3, 3]
        for damping in (_DAMPING, _STRONG_DAMPING):
            change, share = self._step(q_rad, wanted, damping, aim.duration_s)
            for part, speed in _TRIES:
                q = q_rad + part * share * change
                way = math.hypot(*(here + part * step - plan.tool(row)))
                velocity = self._velocity(plan, row, q, speed, way)
                found = self._planned(plan, row, q, velocity, aim.duration_s, False)
                if found is not None and (
                    math.dist(found.pose[:3, 3], wanted[:3, 3]) <= math.hypot(*step) + _STRAY_M
                ):
                    found.part = part * share
                    return found
        return self._from_the_face(plan, row, q_rad, reached, aim.duration_s)

    def _from_the_face(
        self, plan: Plan, row: int, q_rad: Array, reached: Array, duration_s: float
    ) -> Found:
        """A little further into the box, where the tool is at its face and so can do no more."""
        inner = reached.copy()
        inner[:3, 3] = self.inside(reached[:3, 3] - self._origin) + self._origin
        change, share = self._step(q_rad, inner, _DAMPING, duration_s)
        q = q_rad + share * change
        velocity = self._velocity(plan, row, q, 1.0, math.hypot(*(inner[:3, 3] - plan.tool(row))))
        found = self._planned(plan, row, q, velocity, duration_s, False)
        if found is None:
            return self.kept(plan, row, duration_s)
        found.part = 0.0
        return found

    def _step(
        self, q_rad: Array, pose: Array, damping: float, duration_s: float
    ) -> tuple[Array, float]:
        """The change of joint angles (n,) [rad] towards a pose, and the share of it that the
        joints' velocities let through."""
        stepped, _ = self.kinematics.step(q_rad, pose, damping=damping)
        change = self.clipped(stepped) - q_rad
        return change, self._share(q_rad, change, duration_s)

    def to_joints(
        self, plan: Plan, row: int, target_rad: Array, speed: float, duration_s: float
    ) -> Found:
        """From the plan's state before ``row`` towards joint angles (n,) [rad], at a share of the
        speed that is allowed. ``part`` is the share of that speed."""
        start = plan.state(row)[0]
        jacobian = self.kinematics.forward_and_jacobian(start)[1]
        way = math.hypot(*(jacobian[:3] @ (target_rad - start)))
        for part in _PARTS:
            velocity = part * self._velocity(plan, row, target_rad, speed, way)
            found = self._planned(plan, row, target_rad, velocity, duration_s, True)
            if found is not None:
                found.part = part
                return found
        return self.kept(plan, row, duration_s)

    # -- inside -----------------------------------------------------------------------------

    def _planned(
        self, plan: Plan, row: int, q_rad: Array, velocity: Array, duration_s: float, leaning: bool
    ) -> Found | None:
        path = self._generator.towards(
            plan.state(row), q_rad, velocity, self.due(duration_s), duration_s
        )
        if path is None:
            return None
        checked = self._checked(plan, row, path, q_rad, leaning)
        return None if checked is None else Found(checked[0], q_rad, checked[1], 1.0)

    def _checked(
        self, plan: Plan, row: int, rows: Array, q_rad: Array, leaning: bool
    ) -> tuple[Plan, Array] | None:
        """The plan that goes on with rows (k, 3, n), and the tool's pose at ``q_rad`` (n,)."""
        before = plan.before(row)
        reason, poses = self.checker.broken(
            plan.rows[before], plan.poses[before], rows, q_rad, leaning
        )
        if reason is not None:
            return None
        return Plan(row - HISTORY, np.concatenate([plan.rows[before], rows]),
                    np.concatenate([plan.poses[before], poses[:-1]])), poses[-1]

    def _share(self, q_rad: Array, change_rad: Array, duration_s: float) -> float:
        """The share of a change of the joints (n,) that their velocity limits let through."""
        checker = self.checker
        size = np.abs(change_rad) / (checker.velocity_fraction * duration_s)
        share = 1.0 / max(1.0, float((size / checker.envelope.limit(q_rad, change_rad)).max()))
        # Nearer to a position limit the velocity limit may be lower: it must hold there too.
        end = checker.envelope.limit(q_rad + share * change_rad, change_rad)
        return min(share, 1.0 / max(1.0, float((size / end).max())))

    def _velocity(
        self, plan: Plan, row: int, q_rad: Array, speed: float, way_m: float
    ) -> Array:
        """Velocities (n,) [rad/s] for a way to ``q_rad`` (n,) on which the tool goes ``way_m``."""
        checker = self.checker
        start = plan.state(row)[0]
        change = q_rad - start
        limit = checker.velocity_fraction * np.minimum(
            checker.envelope.limit(start, change), checker.envelope.limit(q_rad, change)
        )
        for_tool = np.abs(change) * (_TOOL_ROOM * checker.speed / max(way_m, 1e-9))
        velocity = np.minimum(speed * limit, for_tool + _LEAST_SHARE * limit)
        return np.maximum(_ROOM * velocity, _LEAST_RAD_S)


def _turned_towards(reached: Array, pose: Array, most_rad: float) -> Array:
    """A pose (4, 4), its orientation no further than an angle from that of another (4, 4)."""
    vector = rotation_vector(pose[:3, :3] @ reached[:3, :3].T)
    angle = math.hypot(*vector)
    if angle <= most_rad:
        return pose
    # Rodrigues' formula, for the angle that is left.
    x, y, z = vector / angle
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    turn = np.eye(3) + math.sin(most_rad) * cross + (1.0 - math.cos(most_rad)) * cross @ cross
    nearer = pose.copy()
    nearer[:3, :3] = turn @ reached[:3, :3]
    return nearer
