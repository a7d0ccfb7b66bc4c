"""Small motions of an arm through its safety filter, each bounded in time and checked by measuring.

A motion is a loop of short commands at the control rate. It ends when the arm is measured to be
there and at rest, when it gets no nearer, or when its time is up, and says which.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from robot_rl.errors import InvalidInputError, MotionInterruptedError
from robot_rl.interfaces import Array, Rig
from robot_rl.kinematics import wrap_angle
from robot_rl.safety import SafetyFilter

HOME_M = (0.0, 0.0, 0.2)
"""Where :meth:`Motion.home` brings the tool: above the middle of the workspace, clear of it."""
CLEAR_M = 0.1
"""Height of the tool [m] above anything that stands on the table of a task, fingers and all."""

_STILL_M_S = 0.008
_STILL_RAD_S = 0.02
_SETTLE_S = 2.0
# Nearer than this, the arm is shifted by what it is measured to be off, once it was sent there.
_TRIM_WITHIN_M, _SENT_M = 0.02, 0.001
_LARGEST_TRIM_M = 0.01
_TRIM_GAIN = 0.3
# How far from straight up a lift that is stuck may go, twice.
_INWARDS_M = 0.05
# A set-point further than this from the tool presses; how it is taken back.
_PRESSING_M, _RELIEF_M_S, _RELIEF_STEPS = 0.004, 0.1, 6
# No nearer by so much within so long: something is in the way.
_STALLED_S = 1.0
_STALLED_M = 0.001
_STALLED_RAD = 0.003


@dataclass(frozen=True)
class Arrival:
    """How a motion ended; true where it arrived.

    ``error`` is the measured distance left: [m] of a tool motion, the largest angle [rad] of a
    joint motion, the share of the stroke of a grip. ``why`` says what kept it from arriving.
    """

    arrived: bool
    error: float
    time_s: float
    why: str = ""

    def __bool__(self) -> bool:
        return self.arrived


class Motion:
    """Moves the arm of a rig through its safety filter, ``control_hz`` commands a second.

    ``on_step`` is called after every control period, e.g. to draw or to log. Every motion raises
    what the filter raises: SafetyError where the arm is held, StaleDataError where its state is
    too old; and MotionInterruptedError once :attr:`interrupted`, if there is one, returns true.
    """

    def __init__(
        self,
        rig: Rig,
        safety: SafetyFilter,
        control_hz: float = 10.0,
        *,
        on_step: Callable[[], None] | None = None,
    ) -> None:
        self.rig = rig
        self.safety = safety
        self.period_s = 1.0 / float(control_hz)
        self.interrupted: Callable[[], bool] | None = None
        self._on_step = on_step
        self._tick_s: float | None = None

    # -- what a motion is made of -----------------------------------------------------------

    def begin(self) -> None:
        """Time runs from now: call before the first :meth:`step` after anything else moved."""
        self._tick_s = self.rig.clock.now_s()

    def step(self, delta_m: ArrayLike, yaw_rad: float = 0.0) -> Array:
        """Move by (3,) [m] and a turn [rad] in one control period; the measured tool (3,) [m]."""
        self.safety.move(delta_m, yaw_rad, self.period_s)
        self._wait()
        return self.safety.measure()[0]

    def towards(
        self, target_m: Array, speed_m_s: float, yaw_rad: float | None = None
    ) -> tuple[Array, bool]:
        """One control period on the way to ``target_m`` (3,) [m], no faster than ``speed_m_s``.

        Returns the measured tool (3,) [m] and whether the command was shortened by the filter.
        """
        safety = self.safety
        way = target_m - safety.setpoint_tool_m
        length = float(np.linalg.norm(way))
        reach = min(speed_m_s, safety.config.max_speed_m_s) * self.period_s
        if length > reach:
            way = way * (reach / length)
        turn = 0.0
        if yaw_rad is not None:
            most = 0.9 * safety.config.max_yaw_rate_rad_s * self.period_s
            turn = float(np.clip(wrap_angle(yaw_rad - safety.yaw_rad), -most, most))
        sent = safety.move(way, turn, self.period_s)
        self._wait()
        return safety.measure()[0], sent.limited

    def pause(self) -> None:
        """Come to rest and stay: no command has to follow in time."""
        self.safety.rest()

    def settle(self) -> Arrival:
        """Come to rest and wait until every joint is measured to be still, 2 s at most.

        ``error`` is the speed of the fastest joint [rad/s].
        """
        self.pause()
        self.begin()
        time_s = 0.0
        while True:
            state = self.rig.arm.state(self.safety.config.max_state_age_s)
            speed = float(np.abs(state.velocity_rad_s).max())
            if speed < _STILL_RAD_S:
                return Arrival(True, speed, time_s)
            if time_s >= _SETTLE_S:
                return Arrival(False, speed, time_s, f"a joint still moves at {speed:.3f} rad/s")
            self._wait()
            time_s += self.period_s

    def _end(self, arrival: Arrival) -> Arrival:
        self.pause()
        return arrival

    def _wait(self) -> None:
        if self._tick_s is None:
            self.begin()
            assert self._tick_s is not None
        self._tick_s += self.period_s
        self.rig.clock.sleep_until(self._tick_s)
        if self._on_step is not None:
            self._on_step()
        if self.interrupted is not None and self.interrupted():
            self.pause()
            raise MotionInterruptedError("the motion was broken off, as was asked")

    def tool(self) -> tuple[Array, Array]:
        """Measured tool position (3,) [m] and velocity (3,) [m/s] in the workspace frame."""
        return self.safety.measure()

    def yaw(self) -> float:
        """Measured turn of the tool about z from its default heading [rad]."""
        state = self.rig.arm.state(self.safety.config.max_state_age_s)
        pose = self.safety.kinematics.forward(state.position_rad)
        return float(np.arctan2(pose[1, 0], pose[0, 0]))

    # -- motions ----------------------------------------------------------------------------

    def move_tool_to(
        self,
        position_m: ArrayLike,
        yaw_rad: float | None = None,
        speed_m_s: float = 0.2,
        *,
        tolerance_m: float = 0.005,
        tolerance_rad: float = 0.03,
        timeout_s: float | None = None,
    ) -> Arrival:
        """Bring the tool to ``position_m`` (3,) [m] in the workspace frame in a straight line.

        ``yaw_rad`` None keeps the heading. It has arrived when it is measured to be within the
        tolerances and at rest. The time allowed is twice what the way takes, and 4 s more.

        Raises:
            InvalidInputError: the position is not finite or outside the box, or the speed is not
                positive.
        """
        target = self._inside(position_m)
        if not 0.0 < speed_m_s < np.inf:
            raise InvalidInputError(f"speed is {speed_m_s} m/s, should be positive and finite")
        self.begin()
        tool = self.tool()[0]
        yaw = self.safety.yaw_rad if yaw_rad is None else float(yaw_rad)
        turn = abs(wrap_angle(yaw - self.yaw()))
        allowed = timeout_s if timeout_s is not None else 4.0 + 2.0 * max(
            float(np.linalg.norm(target - tool)) / speed_m_s,
            turn / self.safety.config.max_yaw_rate_rad_s,
        )
        progress = _Progress(allowed)
        trim = np.zeros(3)
        while True:
            before = tool
            tool, _ = self.towards(target + trim, speed_m_s, yaw)
            progress.time_s += self.period_s
            off = target - tool
            error = float(np.linalg.norm(off))
            turn = abs(wrap_angle(yaw - self.yaw()))
            # Over a period: the elbow may still be on its way home, and the tool ripple with it.
            still = float(np.linalg.norm(tool - before)) < _STILL_M_S * self.period_s
            if error <= tolerance_m and turn <= tolerance_rad and still:
                return self._end(Arrival(True, error, progress.time_s))
            sent = float(np.linalg.norm(target + trim - self.safety.setpoint_tool_m)) < _SENT_M
            if still and sent and error < _TRIM_WITHIN_M:
                trim = np.clip(trim + _TRIM_GAIN * off, -_LARGEST_TRIM_M, _LARGEST_TRIM_M)
            why = progress.over(error / _STALLED_M + turn / _STALLED_RAD)
            if why:
                return self._end(Arrival(
                    False, error, progress.time_s,
                    f"the tool {why} {1000 * error:.1f} mm from {_mm(target)} mm"))

    def jog(
        self, delta_m: ArrayLike, yaw_rad: float = 0.0, speed_m_s: float = 0.05
    ) -> Arrival:
        """Move the tool by ``delta_m`` (3,) [m] and ``yaw_rad`` from where it is measured to be.

        What would leave the box ends just inside its face, as far as the filter lets the tool go.
        """
        delta = np.asarray(delta_m, dtype=np.float64)
        if delta.shape != (3,) or not np.isfinite(delta).all() or not np.isfinite(yaw_rad):
            raise InvalidInputError(
                f"jog by {delta_m!r} m and {yaw_rad} rad: should be 3 finite lengths and an angle"
            )
        target = self.safety.planner.inside(self.tool()[0] + delta)
        return self.move_tool_to(target, wrap_angle(self.yaw() + yaw_rad), speed_m_s,
                                 tolerance_m=0.002)

    def lift_off(self, height_m: float = CLEAR_M, speed_m_s: float = 0.15) -> Arrival:
        """Raise the tool straight up to ``height_m`` [m], or leave it where it is if higher.

        Where the arm cannot go straight up, at the edge of its reach, it goes up and inwards, and
        where the tool is stuck at that too, by its joints.
        """
        self._relieve()
        tool = self.tool()[0]
        height = max(float(tool[2]), height_m)
        up = self.move_tool_to(self.clip(np.array([tool[0], tool[1], height])), None, speed_m_s,
                               tolerance_m=0.01)
        for _ in range(2):
            if up:
                break
            tool = self.tool()[0]
            across = float(np.hypot(tool[0], tool[1]))
            inwards = tool[:2] * max(0.0, 1.0 - _INWARDS_M / max(across, 1e-9))
            up = self.move_tool_to(self.clip(np.array([*inwards, height])), None, speed_m_s,
                                   tolerance_m=0.01)
        return up if up else self._lift_by_joints(height, up)

    def _relieve(self) -> None:
        """Take the set-point back to the tool where that presses on something, lest it jump off."""
        self.begin()
        tool = self.tool()[0]
        for _ in range(_RELIEF_STEPS):
            if float(np.linalg.norm(self.safety.setpoint_tool_m - tool)) < _PRESSING_M:
                break
            tool, _ = self.towards(self.clip(tool), _RELIEF_M_S)

    def _lift_by_joints(self, height: float, stuck: Arrival) -> Arrival:
        """Out of a posture in which the tool is stuck, to the one that it should have up there."""
        tool = self.tool()[0]
        try:
            above = self.safety.posture(self.clip(np.array([tool[0], tool[1], height])))
        except InvalidInputError:
            return stuck
        lifted = self.move_joints_to(above)
        return replace(stuck, arrived=True, why="") if lifted else stuck

    def travel(
        self,
        position_m: ArrayLike,
        yaw_rad: float | None = None,
        speed_m_s: float = 0.25,
        *,
        height_m: float = CLEAR_M,
        tolerance_m: float = 0.005,
    ) -> Arrival:
        """Bring the tool to a point past whatever is between: up, across at ``height_m``, down."""
        target = self._inside(position_m)
        if not (lifted := self.lift_off(height_m)):
            return lifted
        above = np.array([target[0], target[1], max(float(target[2]), height_m)])
        across = self.move_tool_to(above, yaw_rad, speed_m_s, tolerance_m=0.008)
        if not across:
            return across
        return self.move_tool_to(target, yaw_rad, 0.6 * speed_m_s, tolerance_m=tolerance_m)

    def move_joints_to(
        self, target_rad: ArrayLike, speed: float = 0.2, *, tolerance_rad: float = 0.01
    ) -> Arrival:
        """Bring the joints to (n,) [rad] at a share ``speed`` of what they may do.

        Raises:
            InvalidInputError: the angles are not finite or of the wrong shape, or speed is not
                in (0, 1].
        """
        target = np.asarray(target_rad, dtype=np.float64)
        n = self.safety.kinematics.n_joints
        if target.shape != (n,) or not np.isfinite(target).all():
            raise InvalidInputError(f"joint target {target_rad!r} should be {n} finite angles")
        if not 0.0 < speed <= 1.0:
            raise InvalidInputError(f"joint speed is {speed}, should be in (0, 1]")
        self.begin()
        age = self.safety.config.max_state_age_s
        state = self.rig.arm.state(age)
        limits = self.safety.kinematics.spec.limits("velocity_rad_s")
        allowed = 5.0 + 3.0 * float((np.abs(target - state.position_rad) / limits).max()) / speed
        progress = _Progress(allowed)
        while True:
            self.safety.move_joints(target, self.period_s, speed)
            self._wait()
            progress.time_s += self.period_s
            self.safety.measure()
            state = self.rig.arm.state(age)
            error = float(np.abs(target - state.position_rad).max())
            still = float(np.abs(state.velocity_rad_s).max()) < _STILL_RAD_S
            if error <= tolerance_rad and still:
                return self._end(Arrival(True, error, progress.time_s))
            why = progress.over(error / _STALLED_RAD)
            if why:
                return self._end(Arrival(
                    False, error, progress.time_s,
                    f"a joint {why} {error:.3f} rad from where it should be"))

    def home(self, speed: float = 0.3) -> Arrival:
        """Lift off, then bring arm and elbow to the posture above the workspace's middle."""
        if not (lifted := self.lift_off()):
            return lifted
        return self.move_joints_to(self.safety.posture(self.clip(np.array(HOME_M))), speed)

    def grip(
        self, opening: float, *, tolerance: float = 0.03, timeout_s: float = 3.0
    ) -> Arrival:
        """Open or close the gripper and wait until its fingers have stopped.

        ``error`` is how far the opening then is from what was asked, a share of the stroke: where
        something is gripped it does not arrive.
        """
        self.begin()
        sent = self.safety.grip(opening)
        age = self.safety.config.max_state_age_s
        before = self.rig.gripper.opening(age)
        still_s = time_s = 0.0
        while time_s < timeout_s:
            self.step(np.zeros(3))
            time_s += self.period_s
            now = self.rig.gripper.opening(age)
            still_s = still_s + self.period_s if abs(now - before) < 0.01 else 0.0
            before = now
            error = abs(now - sent)
            if error <= tolerance and still_s > 0.0:
                return self._end(Arrival(True, error, time_s))
            if still_s >= 0.4:
                return self._end(Arrival(False, error, time_s,
                                         f"the fingers stopped at {now:.2f}"))
        return self._end(Arrival(False, abs(before - sent), time_s,
                                 "the fingers did not come to rest"))

    # -- inside -----------------------------------------------------------------------------

    def clip(self, position_m: Array) -> Array:
        """The point of the box nearest to (3,) [m]."""
        config = self.safety.config
        return np.clip(position_m, config.box_min_m, config.box_max_m)

    def _inside(self, position_m: ArrayLike) -> Array:
        point = np.asarray(position_m, dtype=np.float64)
        if point.shape != (3,) or not np.isfinite(point).all():
            raise InvalidInputError(f"tool position {position_m!r} should be 3 finite lengths")
        if np.abs(self.clip(point) - point).max() > 1e-9:
            config = self.safety.config
            raise InvalidInputError(
                f"tool position {point} m is outside the box {config.box_min_m} .. "
                f"{config.box_max_m}"
            )
        return point


class _Progress:
    """Says when a motion is over that does not arrive."""

    def __init__(self, allowed_s: float) -> None:
        self.time_s = 0.0
        self._allowed_s = allowed_s
        self._best = np.inf
        self._since_s = 0.0

    def over(self, left: float) -> str:
        """Why to give up with so much left, in units of what counts as progress; '' to go on."""
        if left < self._best - 1.0:
            self._best, self._since_s = left, self.time_s
        if self.time_s - self._since_s > _STALLED_S:
            return "is stuck"
        return "is late and still" if self.time_s > self._allowed_s else ""


def _mm(point_m: Array) -> str:
    return "(" + ", ".join(f"{1000 * value:.0f}" for value in point_m) + ")"
