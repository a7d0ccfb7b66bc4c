"""A wrapper round an arm that no command gets past unchecked.

It keeps the tool inside a box, the joints inside the maker's position and velocity limits (the
FR3's velocity envelope too, but not limits of acceleration and jerk), and the set-point near the
measured arm. A finite command that asks for too much is shortened and the caller is told what was
sent; a command that is not a number, or of the wrong shape, is refused. :meth:`SafetyFilter.hold`
is latched until :meth:`SafetyFilter.rearm`. None of this replaces the emergency stop.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from robot_rl.errors import InvalidInputError, RobotRLError, SafetyError
from robot_rl.interfaces import Arm, Array, Clock, Gripper, JointSetpoints, JointState
from robot_rl.kinematics import Kinematics, wrap_angle
from robot_rl.safety.envelope import VelocityEnvelope


@dataclass(frozen=True)
class SafetyConfig:
    """Limits on top of the maker's: they can be tightened here, never widened.

    The box is in the workspace frame [m]. ``max_speed_m_s`` bounds what a command may ask for; the
    tool may go 1 cm further in a command that makes up for the one before. ``velocity_fraction`` is
    the share of each joint's maximum velocity that may be used. ``leash_m`` plus the length of one
    command bounds how far the set-point may run ahead of the measured tool, so that an arm that is
    blocked does not store up a jump.
    """

    box_min_m: tuple[float, float, float] = (-0.25, -0.3, 0.012)
    box_max_m: tuple[float, float, float] = (0.25, 0.3, 0.35)
    max_speed_m_s: float = 0.45
    max_yaw_rate_rad_s: float = 1.0
    velocity_fraction: float = 0.9
    joint_margin_rad: float = 0.02
    leash_m: float = 0.04
    max_state_age_s: float = 0.2
    setpoints_per_command: int = 5

    def __post_init__(self) -> None:
        low, high = np.asarray(self.box_min_m), np.asarray(self.box_max_m)
        if low.shape != (3,) or high.shape != (3,) or not np.all(np.isfinite([low, high])):
            raise InvalidInputError("safety box: box_min_m and box_max_m are 3 finite numbers each")
        if np.any(low >= high):
            raise InvalidInputError(f"safety box: min {low} is not below max {high}")
        for name, low_limit, high_limit in (
            ("max_speed_m_s", 0.0, 1.7),
            ("max_yaw_rate_rad_s", 0.0, 2.5),
            ("velocity_fraction", 0.0, 1.0),
            ("leash_m", 0.0, 0.2),
            ("max_state_age_s", 0.0, 1.0),
        ):
            value = getattr(self, name)
            if not (low_limit < value <= high_limit):
                raise InvalidInputError(
                    f"safety: {name} is {value}, should be in ({low_limit}, {high_limit}]"
                )
        if not 0.0 <= self.joint_margin_rad <= 0.5:
            raise InvalidInputError(
                f"safety: joint_margin_rad is {self.joint_margin_rad}, should be in [0, 0.5]"
            )
        rows = self.setpoints_per_command
        if not isinstance(rows, int) or rows < 1:
            raise InvalidInputError(
                f"safety: setpoints_per_command is {rows}, should be a whole number >= 1"
            )


@dataclass(slots=True)
class Executed:
    """What was really sent: tool displacement (3,) [m] and turn [rad]; whether it was shortened."""

    delta_m: Array
    yaw_rad: float
    limited: bool


@dataclass
class SafetyCounters:
    """What happened since the last reset."""

    commands: int = 0
    limited: int = 0
    refused: int = 0
    violations: int = 0
    reasons: dict[str, int] = field(default_factory=dict)

    def violate(self, reason: str) -> None:
        self.violations += 1
        self.reasons[reason] = self.reasons.get(reason, 0) + 1


_TOOL_DOWN = np.diag([1.0, -1.0, -1.0])
# A turn that lags further behind than this [rad] is held up by a joint's limit.
_TURN_LAG_RAD = 0.03
# Cosine of the angle [rad] by which the tool may lean, and how far [m] it may leave the box between
# what was asked for and what one step of the inverse kinematics makes of it.
_UPRIGHT = math.cos(0.1)
_BOX_EXCESS_M = 0.001
# By how much one command may move the tool further than asked, to make up for what the one before
# left undone.
_CATCH_UP_M = 0.01
# Of the inverse kinematics; the second is tried where the first flings the tool.
_DAMPING, _STRONG_DAMPING = 0.01, 0.1
# A straight line in joint angles bends in space; over longer commands by more than the box allows.
_LONGEST_S = 0.5
# How far past a limit a measurement must be to count: sensor noise and tracking overshoot.
_BOX_TOLERANCE_M = 0.01
_JOINT_TOLERANCE_RAD = 0.01
_VELOCITY_TOLERANCE = 1.05
# Near a position limit an envelope falls to nothing, and so does a share of it.
_ENVELOPE_SLACK_RAD_S = 0.1


class SafetyFilter:
    """Moves an arm by tool displacements in the workspace frame, within limits.

    The tool keeps pointing down; ``yaw_rad`` turns it about z.
    """

    def __init__(
        self,
        arm: Arm,
        gripper: Gripper,
        clock: Clock,
        config: SafetyConfig | None = None,
        kinematics: Kinematics | None = None,
    ) -> None:
        self.config = config if config is not None else SafetyConfig()
        self.kinematics = kinematics if kinematics is not None else Kinematics(arm.spec)
        self.counters = SafetyCounters()
        self.held: str | None = None
        self._arm = arm
        self._gripper = gripper
        self._clock = clock
        self._origin = np.asarray(arm.spec.workspace_origin_m, dtype=np.float64)
        self._low = np.asarray(self.config.box_min_m, dtype=np.float64)
        self._high = np.asarray(self.config.box_max_m, dtype=np.float64)
        self._envelope = VelocityEnvelope(arm.spec)
        self._envelope_slack = _ENVELOPE_SLACK_RAD_S if self._envelope.varies else 0.0
        margin = np.maximum(self.config.joint_margin_rad, self._envelope.standstill_rad)
        self._q_low = self.kinematics.lower_rad + margin
        self._q_high = self.kinematics.upper_rad - margin
        rows = self.config.setpoints_per_command
        self._ramp = (np.arange(1, rows + 1) / rows)[:, None]
        self._target = np.eye(4)
        self._q = np.asarray(arm.spec.home_rad, dtype=np.float64)
        self._tool = np.zeros(3)
        self._yaw = 0.0
        self._upright = 1.0
        self._measured_tool = np.zeros(3)
        self._measured_velocity = np.zeros(3)
        self._measured_at_s: float | None = None

    # -- state ------------------------------------------------------------------------------

    @property
    def setpoint_rad(self) -> Array:
        """The joint set-point (n,) [rad] last sent."""
        return self._q.copy()

    @property
    def setpoint_tool_m(self) -> Array:
        """The tool set-point (3,) [m] in the workspace frame last sent."""
        return self._tool.copy()

    @property
    def yaw_rad(self) -> float:
        """The tool's commanded turn about z from its default heading [rad]."""
        return self._yaw

    def measure(self) -> tuple[Array, Array]:
        """Measured tool position (3,) [m] and velocity (3,) [m/s] in the workspace frame.

        Also counts a violation where the arm itself is seen outside its limits.

        Raises:
            StaleDataError: the arm's state is older than ``max_state_age_s``.
            SafetyError: the arm reports what is not a number.
        """
        state = self._state()
        pose, jacobian = self.kinematics.forward_and_jacobian(state.position_rad)
        self._measured_tool = pose[:3, 3] - self._origin
        self._measured_velocity = jacobian[:3] @ state.velocity_rad_s
        self._measured_at_s = state.stamp_s
        self._watch(state.position_rad, state.velocity_rad_s)
        return self._measured_tool, self._measured_velocity

    @property
    def measured_at_s(self) -> float:
        """When the arm was in the state that was measured last [s, the rig's clock]."""
        return 0.0 if self._measured_at_s is None else self._measured_at_s

    def _state(self) -> JointState:
        state = self._arm.state(self.config.max_state_age_s)
        if not (np.isfinite(state.position_rad).all() and np.isfinite(state.velocity_rad_s).all()):
            raise SafetyError(
                f"the arm reports joint angles {state.position_rad} rad and velocities "
                f"{state.velocity_rad_s} rad/s, should be finite"
            )
        return state

    def _watch(self, q_rad: Array, velocity_rad_s: Array) -> None:
        tool = self._measured_tool
        if (tool < self._low - _BOX_TOLERANCE_M).any() or (
            tool > self._high + _BOX_TOLERANCE_M
        ).any():
            self.counters.violate("tool outside the box")
        if (q_rad < self.kinematics.lower_rad - _JOINT_TOLERANCE_RAD).any() or (
            q_rad > self.kinematics.upper_rad + _JOINT_TOLERANCE_RAD
        ).any():
            self.counters.violate("joint outside its position limits")
        limit = _VELOCITY_TOLERANCE * self._envelope.limit(q_rad, velocity_rad_s)
        if (np.abs(velocity_rad_s) > limit + self._envelope_slack).any():
            self.counters.violate("joint above its velocity limit")

    def posture(self, tool_m: ArrayLike, yaw_rad: float = 0.0) -> Array:
        """Joint angles (n,) [rad] that put the tool at (3,) [m] in the workspace frame.

        Raises:
            InvalidInputError: the point or turn is not finite, or the point is outside the box or
                out of reach.
        """
        point = _finite(tool_m, (3,), "tool position")
        turn = float(_finite(yaw_rad, (), "turn"))
        if (point < self._low - 1e-9).any() or (point > self._high + 1e-9).any():
            raise InvalidInputError(
                f"tool position {point} m is outside the box {self._low} .. {self._high}"
            )
        target = self._pose(point, turn)
        # Where the steps of move() would come to rest, so that the first of them does not throw
        # the elbow about.
        q = np.asarray(self._arm.spec.home_rad, dtype=np.float64)
        for _ in range(100):
            stepped, error = self.kinematics.step(q, target, damping=_DAMPING)
            still = float(np.abs(stepped - q).max()) < 1e-4
            q = np.minimum(np.maximum(stepped, self._q_low), self._q_high)
            if still and float(error @ error) < 1e-8:
                return q
        result = self.kinematics.inverse(target)
        if not result.converged:
            raise InvalidInputError(
                f"tool position {point} m is out of reach of {self._arm.spec.name}: the nearest "
                f"posture is {result.position_error_m:.4f} m away"
            )
        return result.q_rad

    def sync(self) -> None:
        """Take the measured posture as the set-point; for the start of an episode."""
        state = self._state()
        self._q = state.position_rad.copy()
        pose = self.kinematics.forward(self._q)
        self._tool = pose[:3, 3] - self._origin
        # The tool's x axis in the base frame is (cos yaw, sin yaw, 0).
        self._yaw = float(np.arctan2(pose[1, 0], pose[0, 0]))
        self._upright = -float(pose[2, 2])
        self._measured_tool = self._tool.copy()
        self._measured_velocity = np.zeros(3)
        self._measured_at_s = state.stamp_s

    def reset(self) -> None:
        """For the start of an episode: set-point from the measured posture, counters to zero.

        Raises:
            SafetyError: the arm is held; only :meth:`rearm` releases it.
        """
        self.check_released()
        self.sync()
        self.counters = SafetyCounters()

    def get_state(self) -> dict[str, Any]:
        """What :meth:`set_state` needs to go on exactly from here."""
        return {
            "q_rad": self._q.copy(),
            "tool_m": self._tool.copy(),
            "yaw_rad": self._yaw,
            "upright": self._upright,
            "measured_tool_m": self._measured_tool.copy(),
            "counters": replace(self.counters, reasons=dict(self.counters.reasons)),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue from what :meth:`get_state` returned; a hold stays.

        For a simulation whose arm was put back to the same moment: the set-point is not compared
        with the measured arm.
        """
        self._q = state["q_rad"].copy()
        self._tool = state["tool_m"].copy()
        self._yaw = state["yaw_rad"]
        self._upright = state["upright"]
        self._measured_tool = state["measured_tool_m"].copy()
        counters = state["counters"]
        self.counters = replace(counters, reasons=dict(counters.reasons))

    # -- commands ---------------------------------------------------------------------------

    def move(self, delta_m: ArrayLike, yaw_rad: float, duration_s: float) -> Executed:
        """Move the tool by ``delta_m`` (3,) [m] and ``yaw_rad`` [rad] within ``duration_s`` [s].

        Returns what was sent. Too long a step is shortened along its direction, a step out of the
        box ends at its face, joints at their limits stay there.

        Raises:
            SafetyError: the arm is held or reports what is not a number, or the command is not
                finite, of the wrong shape or too long; then nothing was sent.
            StaleDataError: the arm's state is older than ``max_state_age_s``; nothing was sent.
        """
        self.check_released()
        config = self.config
        try:
            delta = _finite(delta_m, (3,), "tool displacement")
            turn = float(_finite(yaw_rad, (), "turn"))
            duration = float(_finite(duration_s, (), "duration"))
            if not 0.0 < duration <= _LONGEST_S:
                raise InvalidInputError(
                    f"duration is {duration} s, should be positive and at most {_LONGEST_S} s"
                )
        except InvalidInputError as error:
            self.counters.refused += 1
            raise SafetyError(f"command refused: {error}") from None
        self._keep_up()

        limited = False
        reach = config.max_speed_m_s * duration
        length = math.hypot(*delta)
        if length > reach * (1.0 + 1e-9):
            delta = delta * (reach / length)
            limited = True
        most_turn = config.max_yaw_rate_rad_s * duration
        if abs(turn) > most_turn:
            turn = float(np.copysign(most_turn, turn))
            limited = True

        wanted = self._tool + delta
        target = np.minimum(np.maximum(wanted, self._low), self._high)
        # From outside the box (pushed there by hand, say) the way back is no faster than any other.
        way = target - self._tool
        far = math.hypot(*way)
        if far > reach * (1.0 + 1e-9):
            target = self._tool + way * (reach / far)
        lead = target - self._measured_tool
        distance = float(np.sqrt(lead @ lead))
        leash = config.leash_m + reach
        if distance > leash:
            target = self._measured_tool + lead * (leash / distance)
            if far <= reach * (1.0 + 1e-9):
                target = np.minimum(np.maximum(target, self._low), self._high)
        executed = target - self._tool
        limited = limited or bool(np.abs(target - wanted).max() > 1e-9)

        before = self._q
        q, pose, ratio = self._solve(target, turn, duration, reach)
        change = q - before
        # What cannot be reached must not leave the set-point behind the real one for ever.
        reached = pose[:3, 3] - self._origin
        stray = reached - target
        if ratio != 1.0 or float(stray @ stray) > 1e-4:
            executed, target = reached - self._tool, reached
            turn *= ratio
            limited = True
        if turn != 0.0:
            yaw = math.atan2(pose[1, 0], pose[0, 0])
            if abs(wrap_angle(self._yaw + turn - yaw)) > _TURN_LAG_RAD:
                turn = wrap_angle(yaw - self._yaw)
                limited = True

        self._arm.command(
            JointSetpoints(before + self._ramp * change, duration / len(self._ramp))
        )
        self._q, self._tool, self._yaw = q, target, self._yaw + turn
        self._upright = -float(pose[2, 2])
        self.counters.commands += 1
        self.counters.limited += limited
        return Executed(executed, turn, limited)

    def _keep_up(self) -> None:
        """Know where the arm is, whether or not the caller measured before this command."""
        if self._measured_at_s is None:
            self.sync()
        elif not 0.0 <= self._clock.now_s() - self._measured_at_s <= self.config.max_state_age_s:
            self.measure()

    def _solve(
        self, target_m: Array, turn_rad: float, duration_s: float, reach_m: float
    ) -> tuple[Array, Array, float]:
        """Joint angles (n,) towards a tool position, their tool pose (4, 4), and the share of the
        way that they go.

        At the edge of the arm's reach a step of the inverse kinematics can lead anywhere. What
        would take the tool out of the box, tip it over or fling it is taken back, at worst
        entirely: then the arm stays where it is.
        """
        wanted = self._pose(target_m, self._yaw + turn_rad)
        upright = min(_UPRIGHT, self._upright)
        for damping in (_DAMPING, _STRONG_DAMPING):
            q, error = self.kinematics.step(self._q, wanted, damping=damping)
            change = np.minimum(np.maximum(q, self._q_low), self._q_high) - self._q
            here = target_m - error[:3]
            out = max(float(np.maximum(self._low - here, here - self._high).max()), _BOX_EXCESS_M)
            share = self._share(change, duration_s)
            for part in (1.0, 0.5, 0.25):
                q = self._q + part * share * change
                pose = self.kinematics.forward(q)
                tool = pose[:3, 3] - self._origin
                way = tool - here
                if (
                    -pose[2, 2] >= upright
                    and float(np.maximum(self._low - tool, tool - self._high).max()) <= out
                    and float(way @ way) <= (reach_m + _CATCH_UP_M) ** 2
                ):
                    return q, pose, part * share
        return self._q, self.kinematics.forward(self._q), 0.0

    def _share(self, change_rad: Array, duration_s: float) -> float:
        """The share of a change of the joints (n,) that their velocity limits let through."""
        size = np.abs(change_rad) / (self.config.velocity_fraction * duration_s)
        ratio = float((size / self._envelope.limit(self._q, change_rad)).max())
        share = 1.0 if ratio <= 1.0 else 1.0 / ratio
        if self._envelope.varies:
            # Nearer to a position limit the velocity limit is lower: it must hold at the end too.
            end = self._envelope.limit(self._q + share * change_rad, change_rad)
            share = min(share, 1.0 / max(float((size / end).max()), 1.0))
        return share

    def grip(self, opening: float) -> float:
        """Open the gripper to a fraction of its stroke; returns what was sent (clipped to [0, 1]).

        Raises:
            SafetyError: the arm is held, or the command is not a finite number.
        """
        self.check_released()
        try:
            value = float(_finite(opening, (), "gripper opening"))
        except InvalidInputError as error:
            self.counters.refused += 1
            raise SafetyError(f"command refused: {error}") from None
        return self._gripper.command(min(max(value, 0.0), 1.0))

    def hold(self, reason: str) -> None:
        """Stop where the arm is and refuse commands until :meth:`rearm`."""
        self.held = reason
        self._forget()
        try:
            here = self._state().position_rad
        except RobotRLError:
            # Blind, the best known place to stop at is where the arm was last sent.
            self._arm.command(JointSetpoints(self._q[None].copy(), 0.01))
            raise
        self._arm.command(JointSetpoints(here[None].copy(), 0.01))

    def check_released(self) -> None:
        """Raise SafetyError if the arm is held."""
        if self.held is not None:
            raise SafetyError(f"the arm is held ({self.held}); rearm() releases it")

    def rearm(self) -> None:
        """An operator's release of a hold; the set-point becomes the measured posture first."""
        self._forget()
        self.sync()
        self.held = None

    def _forget(self) -> None:
        """Set-points that a slow line still holds must not reach the arm after a stop."""
        forget = getattr(self._arm, "forget", None)
        if forget is not None:
            forget()

    def _pose(self, tool_m: Array, yaw_rad: float) -> Array:
        if yaw_rad == 0.0:
            self._target[:3, :3] = _TOOL_DOWN
        else:
            cos, sin = np.cos(yaw_rad), np.sin(yaw_rad)
            self._target[:3, :3] = [[cos, sin, 0.0], [sin, -cos, 0.0], [0.0, 0.0, -1.0]]
        self._target[:3, 3] = tool_m + self._origin
        return self._target


def _finite(value: ArrayLike, shape: tuple[int, ...], what: str) -> Array:
    try:
        given = np.asarray(value)
        if given.dtype.kind not in "fiu":
            raise TypeError
        array = given.astype(np.float64)
    except (TypeError, ValueError):
        raise InvalidInputError(
            f"{what} is {value!r}, should be numbers of shape {shape}"
        ) from None
    if array.shape != shape:
        raise InvalidInputError(f"{what} has shape {array.shape}, should be {shape}")
    if not np.isfinite(array).all():
        raise InvalidInputError(f"{what} is {array}, should be finite")
    return array
