"""A wrapper round an arm that no command gets past unchecked.

What the arm receives is a plan: rows of set-points at its own rate that end at rest. Every row of
every plan, its end included, is checked against all limits (see :mod:`robot_rl.safety.checks`)
before it is sent, so whatever happens afterwards the arm comes to rest within them. A finite
command that asks for too much is shortened and the caller is told; a command that is not a number,
or of the wrong shape, is refused. :meth:`SafetyFilter.hold` is latched until
:meth:`SafetyFilter.rearm`. None of this replaces the emergency stop.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from robot_rl.errors import InvalidInputError, LateCommandError, RobotRLError, SafetyError
from robot_rl.interfaces import Arm, Array, Clock, ForceSensor, Gripper, JointState
from robot_rl.kinematics import Kinematics, wrap_angle
from robot_rl.safety.checks import HISTORY, Plan
from robot_rl.safety.config import Executed, SafetyConfig, SafetyCounters
from robot_rl.safety.latch import Latch
from robot_rl.safety.planner import Aim, Found, Planner

# How far inside its range of yaw the tool's set-point stays.
_FACE_RAD = 0.01
# What is asked for is the same as what was done up to this.
_ROUNDING = 1e-9
# Set-points of the tool and of the joints that are further apart [m], [rad] are brought together:
# something holds the joints up.
_STRAY_M, _TURN_LAG_RAD = 0.01, 0.03
# Longer commands would leave the arm alone for too long.
_LONGEST_S = 0.5
# Slower than this a measured joint rests; nearer than that to its set-point it is there.
_STILL_RAD_S, _NEAR_RAD = 0.05, 0.02
# How far past a limit a measurement must be to count: sensor noise.
_BOX_TOLERANCE_M = 0.01
_JOINT_TOLERANCE_RAD = 0.01
# How hard [N] the world may push a real arm's tool where the configuration does not say.
_FORCE_N = 40.0


class SafetyFilter:
    """Moves an arm by tool displacements in the workspace frame, within limits.

    The tool keeps pointing down; ``yaw_rad`` turns it about z. Any thread may call any method.
    ``force`` is the sensor behind ``max_force_n``; ``latch`` keeps a hold for the next program.
    """

    def __init__(
        self,
        arm: Arm,
        gripper: Gripper,
        clock: Clock,
        config: SafetyConfig | None = None,
        kinematics: Kinematics | None = None,
        *,
        force: ForceSensor | None = None,
        latch: Latch | None = None,
    ) -> None:
        self.config = config = config if config is not None else SafetyConfig()
        self.kinematics = kinematics if kinematics is not None else Kinematics(arm.spec)
        self.planner = Planner(self.kinematics, config, arm.period_s)
        self.counters = SafetyCounters()
        self._arm, self._gripper, self._clock = arm, gripper, clock
        self._force, self._latch = force, latch
        self.held: str | None = None if latch is None else latch.reason()
        # A hold that could not be written down must not look like one that was released.
        self._kept = self.held is not None
        self._watches: dict[str, Callable[[], str | None]] = {}
        self._lock = threading.RLock()
        forced = math.inf if latch is None else _FORCE_N
        self._max_force_n = forced if config.max_force_n is None else config.max_force_n
        self._low, self._high = np.array(config.box_min_m), np.array(config.box_max_m)
        self._plan: Plan | None = None
        self._due: int | None = None
        self._q = np.asarray(arm.spec.home_rad, dtype=np.float64)
        self._reached = np.eye(4)
        self._tool = np.zeros(3)
        self._yaw = 0.0
        self._measured_tool = np.zeros(3)
        self._measured_velocity = np.zeros(3)
        self._measured_at_s: float | None = None

    # -- state ------------------------------------------------------------------------------

    @property
    def setpoint_rad(self) -> Array:
        """The joint set-point (n,) [rad]: where the last command leads."""
        return self._q.copy()

    @property
    def setpoint_tool_m(self) -> Array:
        """The tool set-point (3,) [m] in the workspace frame: where the last command leads."""
        return self._tool.copy()

    @property
    def yaw_rad(self) -> float:
        """The tool's commanded turn about z from its default heading [rad]."""
        return self._yaw

    @property
    def measured_at_s(self) -> float:
        """When the arm was in the state that was measured last [s, the rig's clock]."""
        return 0.0 if self._measured_at_s is None else self._measured_at_s

    def measure(self) -> tuple[Array, Array]:
        """Measured tool position (3,) [m] and velocity (3,) [m/s] in the workspace frame.

        Also counts a violation where the arm itself is seen outside its limits.

        Raises:
            StaleDataError: the arm's state is older than ``max_state_age_s``; it is held now.
            SafetyError: the arm reports what is not a number; it is held now.
        """
        with self._lock:
            try:
                state = self._state()
            except RobotRLError as error:
                self.hold(str(error))
                raise
            pose, jacobian = self.kinematics.forward_and_jacobian(state.position_rad)
            self._measured_tool, _ = self.planner.tool(pose)
            self._measured_velocity = jacobian[:3] @ state.velocity_rad_s
            self._measured_at_s = state.stamp_s
            self._count(state)
            return self._measured_tool, self._measured_velocity

    def _state(self) -> JointState:
        state = self._arm.state(self.config.max_state_age_s)
        if not (np.isfinite(state.position_rad).all() and np.isfinite(state.velocity_rad_s).all()):
            raise SafetyError(
                f"the arm reports joint angles {state.position_rad} rad and velocities "
                f"{state.velocity_rad_s} rad/s, should be finite"
            )
        return state

    def _count(self, state: JointState) -> None:
        tool, q, velocity = self._measured_tool, state.position_rad, state.velocity_rad_s
        if (tool < self._low - _BOX_TOLERANCE_M).any() or (
            tool > self._high + _BOX_TOLERANCE_M
        ).any():
            self.counters.violate("tool outside the box")
        if (q < self.kinematics.lower_rad - _JOINT_TOLERANCE_RAD).any() or (
            q > self.kinematics.upper_rad + _JOINT_TOLERANCE_RAD
        ).any():
            self.counters.violate("joint outside its position limits")
        if (np.abs(velocity) > self.planner.checker.envelope.limit(q, velocity)).any():
            self.counters.violate("joint above its velocity limit")

    def posture(self, tool_m: ArrayLike, yaw_rad: float = 0.0) -> Array:
        """Joint angles (n,) [rad] that put the tool at (3,) [m] in the workspace frame.

        Raises:
            InvalidInputError: the point or turn is not finite, or the point is outside the box or
                out of reach.
        """
        point = _finite(tool_m, (3,), "tool position")
        turn = float(_finite(yaw_rad, (), "turn"))
        if (point < self._low - _ROUNDING).any() or (point > self._high + _ROUNDING).any():
            raise InvalidInputError(
                f"tool position {point} m is outside the box {self._low} .. {self._high}"
            )
        return self.planner.posture(self.planner.pose(point, turn))

    def sync(self, *, placed: bool = False) -> None:
        """Let commands begin where the arm is; for the start of an episode.

        An arm that rests where it was sent keeps its set-point, so that what it receives makes no
        step; one that was moved by other means begins at its measured posture. ``placed`` says
        that a simulator has just put it where it is, whatever it was about to do.

        Raises:
            SafetyError: the arm is moving, or reports what is not a number.
            StaleDataError: the arm's state is older than ``max_state_age_s``.
        """
        with self._lock:
            state, plan = self._state(), self._plan
            near = plan is not None and not placed and bool(
                np.abs(state.position_rad - plan.rows[-1, 0]).max() <= _NEAR_RAD
            )
            if not placed and (_moving(state) or (self._stopping() and not near)):
                raise SafetyError("the arm is moving: a start needs it at rest")
            self._begin(state, keep=near)

    def _begin(self, state: JointState, *, keep: bool = False) -> None:
        """Rest, at the measured posture or, to ``keep`` it, where the plan so far ends."""
        if not keep:
            self._plan = self.planner.at_rest(state.position_rad, self._arm.sent())
        self.rest()
        pose = self.kinematics.forward(state.position_rad)
        self._measured_tool, _ = self.planner.tool(pose)
        self._measured_velocity = np.zeros(3)
        self._measured_at_s = state.stamp_s

    def reset(self, *, placed: bool = False) -> None:
        """For the start of an episode: :meth:`sync`, and counters to zero.

        Raises:
            SafetyError: the arm is held; only :meth:`rearm` releases it. Or it is moving.
        """
        self.check_released()
        self.sync(placed=placed)
        self.counters = SafetyCounters()

    def get_state(self) -> dict[str, Any]:
        """What :meth:`set_state` needs to go on exactly from here."""
        return {
            "plan": self._plan,
            "due": self._due,
            "q_rad": self._q,
            "reached": self._reached,
            "tool_m": self._tool,
            "yaw_rad": self._yaw,
            "measured_tool_m": self._measured_tool,
            "measured_at_s": self._measured_at_s,
            "counters": replace(self.counters, reasons=dict(self.counters.reasons)),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue from what :meth:`get_state` returned; a hold stays.

        For a simulation whose arm was put back to the same moment: the plan is not compared with
        the arm.
        """
        self._plan, self._due = state["plan"], state["due"]
        self._q, self._reached = state["q_rad"], state["reached"]
        self._tool, self._yaw = state["tool_m"], state["yaw_rad"]
        self._measured_tool = state["measured_tool_m"]
        self._measured_at_s = state["measured_at_s"]
        counters = state["counters"]
        self.counters = replace(counters, reasons=dict(counters.reasons))

    # -- commands ---------------------------------------------------------------------------

    def move(self, delta_m: ArrayLike, yaw_rad: float, duration_s: float) -> Executed:
        """Move the tool's set-point by ``delta_m`` (3,) [m] and ``yaw_rad`` [rad], and the arm
        towards it for ``duration_s`` [s].

        Returns by how much the set-point moved. Too long a step is shortened along its direction,
        a step out of the box ends at its face, joints at their limits stay there. What the arm has
        no time for it makes up for with the next command.

        Raises:
            SafetyError: the arm is held or reports what is not a number, or the command is not
                finite, of the wrong shape or too long; then nothing was sent.
            StaleDataError: the arm's state is older than ``max_state_age_s``; nothing was sent.
        """
        with self._lock:
            self._listen()
            try:
                delta = _finite(delta_m, (3,), "tool displacement")
                asked = float(_finite(yaw_rad, (), "turn"))
                duration = _duration(duration_s)
            except InvalidInputError as error:
                raise self._refusal(error) from None
            self._keep_up()
            target = self._target(delta, duration)
            turn = self._turn(asked, duration)
            off = math.hypot(*(target - self._tool - delta)) + abs(turn - asked)
            aim = Aim(self.planner.pose(target, self._yaw + turn),
                      self.config.max_yaw_rate_rad_s * duration, duration)
            found = self._send(
                lambda plan, row: self.planner.to_tool(plan, row, self._q, self._reached, aim),
                duration,
            )
            done = self._arrange(found, target, turn)
            done.limited |= off > _ROUNDING
            self.counters.commands += 1
            self.counters.limited += done.limited
            return done

    def _target(self, delta: Array, duration: float) -> Array:
        """Where a step by ``delta`` (3,) [m] leads that keeps to speed, box and leash."""
        reach = self.config.max_speed_m_s * duration
        length = math.hypot(*delta)
        if length > reach:
            delta = delta * (reach / length)
        target = self.planner.inside(self._tool + delta)
        # From outside the box (pushed there by hand, say) the way back is no faster than any other.
        way = target - self._tool
        far = math.hypot(*way)
        if far > reach:
            target = self._tool + way * (reach / far)
        lead = target - self._measured_tool
        distance = math.hypot(*lead)
        leash = self.config.leash_m + reach
        if distance > leash:
            target = self._measured_tool + lead * (leash / distance)
        return target

    def _turn(self, asked: float, duration: float) -> float:
        """What of a turn [rad] its rate and the range of yaw let through."""
        most = self.config.max_yaw_rate_rad_s * duration
        turn = min(max(asked, -most), most)
        if self.config.max_yaw_rad < math.pi:
            here = wrap_angle(self._yaw)
            face = self.config.max_yaw_rad - _FACE_RAD
            turn = min(max(here + turn, min(-face, here)), max(face, here)) - here
        return turn

    def _arrange(self, found: Found, target: Array, turn: float) -> Executed:
        """Let the set-point of the tool be what was found for it."""
        reached, yaw = self.planner.tool(found.pose)
        stray = reached - target
        limited = found.part != 1.0 or math.hypot(*stray) > _STRAY_M
        if limited:
            # What cannot be reached must not leave the set-point behind the real one for ever.
            target, turn = reached, found.part * turn
        if turn != 0.0 and abs(wrap_angle(self._yaw + turn - yaw)) > _TURN_LAG_RAD:
            turn = wrap_angle(yaw - self._yaw)
            limited = True
        done = Executed(target - self._tool, turn, limited)
        self._q, self._reached = found.q_rad, found.pose
        self._tool, self._yaw = target, self._yaw + turn
        return done

    def move_joints(self, target_rad: ArrayLike, duration_s: float, speed: float = 0.2) -> bool:
        """Head for joint angles (n,) [rad] for ``duration_s`` [s] at a share ``speed`` of the
        speed that the joints may have; call it again until they are there.

        The tool keeps to its box and its speed, but may lean and turn. Returns whether the arm is
        on its way, False where a limit is in between and it comes to rest.

        Raises:
            SafetyError, StaleDataError: as :meth:`move`.
        """
        with self._lock:
            self._listen()
            try:
                target = _finite(target_rad, (self.kinematics.n_joints,), "joint target")
                duration = _duration(duration_s)
                share = float(_finite(speed, (), "speed"))
                if not 0.0 < share <= 1.0:
                    raise InvalidInputError(f"speed is {share}, should be in (0, 1]")
            except InvalidInputError as error:
                raise self._refusal(error) from None
            self._keep_up()
            clipped = self.planner.clipped(target)
            found = self._send(
                lambda plan, row: self.planner.to_joints(plan, row, clipped, share, duration),
                duration,
            )
            self._settle()
            self.counters.commands += 1
            return found.part > 0.0

    def grip(self, opening: float) -> float:
        """Open the gripper to a fraction of its stroke; returns what was sent (clipped to [0, 1]).

        Raises:
            SafetyError: the arm is held, or the command is not a finite number.
        """
        with self._lock:
            self.check_released()
            try:
                value = float(_finite(opening, (), "gripper opening"))
            except InvalidInputError as error:
                raise self._refusal(error) from None
            return self._gripper.command(min(max(value, 0.0), 1.0))

    def rest(self) -> None:
        """The commander pauses on purpose: the arm comes to rest, and no command is missed until
        the next one."""
        with self._lock:
            self._due = None
            if self._plan is not None:
                self._settle()

    # -- inside of commands -----------------------------------------------------------------

    def _refusal(self, error: InvalidInputError) -> SafetyError:
        self.counters.refused += 1
        return SafetyError(f"command refused: {error}")

    def _listen(self) -> None:
        """Refuse a command that comes after a hold, or too late."""
        silence = self._silence()
        if silence is not None:
            self.hold(silence)
        self.check_released()

    def _silence(self) -> str | None:
        if self._due is None or self._plan is None or self._arm.sent() <= self._due:
            return None
        rows = self._arm.sent() - self._plan.first - HISTORY
        return f"no command for {rows * self._arm.period_s:.2f} s"

    def _keep_up(self) -> None:
        """Know where the arm is, whether or not the caller measured before this command."""
        if self._plan is None:
            self.sync()
        elif not 0.0 <= self._clock.now_s() - self.measured_at_s <= self.config.max_state_age_s:
            self.measure()

    def _row(self, plan: Plan, extra: int) -> int:
        """The first row that can still be changed, or a later one."""
        row = self._arm.sent() + self._arm.lead_rows + extra
        return min(max(row, plan.first + HISTORY), plan.end)

    def _send(self, find: Callable[[Plan, int], Found], duration: float) -> Found:
        """Find a plan, let the arm have it and wait for the next command from then on."""
        plan = self._plan
        assert plan is not None
        for extra in (0, self._arm.lead_rows + 1):
            found = find(plan, self._row(plan, extra))
            try:
                self._arm.command(self.planner.setpoints(found.plan))
            except LateCommandError:
                continue
            except Exception as error:
                self.hold(str(error))
                raise
            self._plan = found.plan
            self._due = found.plan.first + HISTORY + self.planner.due(duration)
            return found
        # The plan that the arm has ends at rest.
        return Found(plan, plan.rows[-1, 0], plan.poses[-1], 0.0)

    def _settle(self) -> None:
        """The set-point becomes where the present plan ends."""
        assert self._plan is not None
        self._q, self._reached = self._plan.rows[-1, 0], self._plan.poses[-1]
        self._tool, self._yaw = self.planner.tool(self._reached)

    # -- holds ------------------------------------------------------------------------------

    def hold(self, reason: str) -> None:
        """Brake within the limits and refuse commands until :meth:`rearm`. Never raises.

        The first reason stays.
        """
        with self._lock:
            if self.held is not None:
                return
            self.held = reason
            self._due = None
            # Whatever goes wrong: the plan that the arm has ends at rest too.
            with contextlib.suppress(Exception):
                self._brake()
            self._kept = self._latch is not None and self._latch.write(reason)

    def _stopping(self) -> bool:
        """Whether rows of the present plan are still to be sent."""
        return self._plan is not None and self._arm.sent() < self._plan.end

    def _brake(self) -> None:
        plan = self._plan
        if plan is None:
            return
        for extra in (0, self._arm.lead_rows + 1):
            stop = self.planner.brake(plan, self._row(plan, extra))
            if stop is None:
                return
            try:
                self._arm.command(self.planner.setpoints(stop))
            except LateCommandError:
                continue
            except SafetyError:
                # An arm that takes no commands has stopped, and forgotten what it was sent.
                self._plan = None
                return
            self._plan = stop
            return

    def check_released(self) -> None:
        """Raise SafetyError if the arm is held."""
        if self.held is not None:
            raise SafetyError(f"the arm is held ({self.held}); rearm() releases it")

    def rearm(self) -> None:
        """An operator's release of a hold: the arm recovers from its own errors, then the
        set-point becomes the measured posture, then commands are taken.

        Raises:
            SafetyError: the arm is still moving, or stays in error; it stays held.
            StaleDataError: the arm's state is older than ``max_state_age_s``; it stays held.
        """
        with self._lock:
            if self._stopping():
                if self._arm.status().ready:
                    raise SafetyError("the arm is still coming to rest: rearm it when it is")
                # What an arm in error was still to be sent is gone.
                self._plan = None
            self._arm.recover()
            state = self._state()
            if _moving(state):
                raise SafetyError("the arm is moving: rearm it when it is at rest")
            self._begin(state)
            if self._latch is not None:
                self._latch.clear()
            self.held = None

    # -- watches ----------------------------------------------------------------------------

    def add_watch(self, name: str, check: Callable[[], str | None]) -> None:
        """Hold the arm as soon as ``check`` says what is wrong (it returns None while all is well).
        """
        self._watches[name] = check

    def watch(self) -> None:
        """Hold the arm if anything is wrong: its status or state, the force on its tool, a watch
        that was added, or a commander that has fallen silent. Never raises.

        An operator's release of a hold that was kept in a file takes effect here.
        """
        with self._lock:
            if self.held is None:
                wrong = self._wrong()
                if wrong is not None:
                    self.hold(wrong)
            elif self._kept and self._latch is not None and not self._latch.is_set():
                try:
                    self.rearm()
                except Exception:
                    self._kept = self._latch.write(self.held)

    def _wrong(self) -> str | None:
        try:
            status = self._arm.status()
            if not status.ready:
                return f"the arm takes no commands: {status.fault}"
            age = self._clock.now_s() - self._state().stamp_s
            if not age <= self.config.max_state_age_s:
                return f"the arm's state is {age:.2f} s old"
            for check in (self._silence, self._push, *self._watches.values()):
                wrong = check()
                if wrong is not None:
                    return wrong
        except Exception as error:
            return str(error)
        return None

    def _push(self) -> str | None:
        if self._force is None or self._max_force_n == math.inf:
            return None
        force = self._force.wrench(self.config.max_state_age_s).force_n
        size = math.hypot(*force)
        if size <= self._max_force_n:
            return None
        return f"the force on the tool is {size:.1f} N, should be at most {self._max_force_n:g} N"


def _moving(state: JointState) -> bool:
    return bool(np.abs(state.velocity_rad_s).max() > _STILL_RAD_S)


def _duration(value: ArrayLike) -> float:
    duration = float(_finite(value, (), "duration"))
    if not 0.0 < duration <= _LONGEST_S:
        raise InvalidInputError(
            f"duration is {duration} s, should be positive and at most {_LONGEST_S} s"
        )
    return duration


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
