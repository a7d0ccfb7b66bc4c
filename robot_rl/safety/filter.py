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
from robot_rl.safety.inputs import finite, halt, moving, pushed, said, seconds
from robot_rl.safety.latch import NO_REASON, Latch
from robot_rl.safety.planner import Aim, Found, Planner

# How far inside its range of yaw the tool's set-point stays.
_FACE_RAD = 0.01
# What is asked for is the same as what was done up to this.
_ROUNDING = 1e-9
# Set-points of the tool and of the joints that are further apart [m], [rad] are brought together:
# something holds the joints up.
_STRAY_M, _TURN_LAG_RAD = 0.01, 0.03
# Nearer than this to its set-point a joint is there.
_NEAR_RAD = 0.02
# How far past a limit a measurement must be to count: sensor noise.
_BOX_TOLERANCE_M, _JOINT_TOLERANCE_RAD = 0.01, 0.01
# So far [rad] a real arm may be pushed off where it was sent, and still start from there.
_PUSHED_RAD = 0.15
# As many times longer than planned a stop may take.
_LATE = 3.0
# So far [s] ahead of the clock a state may be stamped.
_AHEAD_S = 0.05
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
        if type(config) is not SafetyConfig:
            raise InvalidInputError(f"safety is a {type(config).__name__}, not a SafetyConfig")
        self.kinematics = kinematics if kinematics is not None else Kinematics(arm.spec)
        self.planner = Planner(self.kinematics, config, arm.period_s)
        self.counters = SafetyCounters()
        self._arm, self._gripper, self._clock = arm, gripper, clock
        self._force, self._latch = force, latch
        self.held: str | None = None if latch is None else latch.reason()
        self._watches: dict[str, Callable[[], str | None]] = {}
        if latch is not None:
            latch.check()
            self.add_watch("a hold of another program on this arm", latch.reason)
        self._lock = threading.RLock()
        forced = math.inf if latch is None else _FORCE_N
        self._max_force_n = forced if config.max_force_n is None else config.max_force_n
        self._low, self._high = np.array(config.box_min_m), np.array(config.box_max_m)
        self._plan: Plan | None = None
        self._due: int | None = None
        self._rests_at_s = 0.0
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
                self.hold(said(error))
                raise
            pose, jacobian = self.kinematics.forward_and_jacobian(state.position_rad)
            self._measured_tool, _ = self.planner.tool(pose)
            self._measured_velocity = jacobian[:3] @ state.velocity_rad_s
            self._measured_at_s = state.stamp_s
            self._count(state)
            return self._measured_tool.copy(), self._measured_velocity.copy()

    def _state(self) -> JointState:
        state = self._arm.state(self.config.max_state_age_s)
        q, velocity, n = state.position_rad, state.velocity_rad_s, self.kinematics.n_joints
        if not (q.shape == velocity.shape == (n,) and np.isfinite([q, velocity]).all()):
            raise SafetyError(f"the arm reports joint angles {q} rad and velocities {velocity} "
                              f"rad/s, should be {n} finite numbers each")
        return state

    def _count(self, state: JointState) -> None:
        tool, q, velocity = self._measured_tool, state.position_rad, state.velocity_rad_s
        if (np.maximum(self._low - tool, tool - self._high) > _BOX_TOLERANCE_M).any():
            self.counters.violate("tool outside the box")
        low, high = self.kinematics.lower_rad, self.kinematics.upper_rad
        if (np.maximum(low - q, q - high) > _JOINT_TOLERANCE_RAD).any():
            self.counters.violate("joint outside its position limits")
        if (np.abs(velocity) > self.planner.checker.envelope.limit(q, velocity)).any():
            self.counters.violate("joint above its velocity limit")

    def posture(self, tool_m: ArrayLike, yaw_rad: float = 0.0) -> Array:
        """Joint angles (n,) [rad] that put the tool at (3,) [m] in the workspace frame.

        Raises:
            InvalidInputError: the point or turn is not finite, or the point is outside the box or
                out of reach.
        """
        point = finite(tool_m, (3,), "tool position")
        turn = float(finite(yaw_rad, (), "turn"))
        if (point < self._low - _ROUNDING).any() or (point > self._high + _ROUNDING).any():
            raise InvalidInputError(f"tool position {point} m is outside the box "
                                    f"{self._low} .. {self._high}")
        return self.planner.posture(self.planner.pose(point, turn))

    def sync(self, *, placed: bool = False) -> None:
        """Let commands begin where the arm is; for the start of an episode.

        An arm that rests where it was sent keeps its set-point, so that what it receives makes no
        step. In simulation one that was moved by other means begins at its measured posture, and
        ``placed`` says that it was just put where it is, whatever it was about to do. On hardware
        the set-point stays (something may press against the arm); too far from it the arm is held.

        Raises:
            SafetyError: the arm is moving, too far from where it was sent, or reports what is not
                a number; or hardware is said to have been placed.
            StaleDataError: the arm's state is older than ``max_state_age_s``.
        """
        with self._lock:
            if placed and self._latch is not None:
                raise SafetyError("hardware is placed nowhere: only rearm() starts it where it is")
            state, plan = self._state(), self._plan
            off = math.inf if plan is None or placed else float(
                np.abs(state.position_rad - plan.rows[-1, 0]).max()
            )
            if not placed and (moving(state) or (self._stopping() and off > _NEAR_RAD)):
                raise SafetyError("the arm is moving: a start needs it at rest")
            most = _NEAR_RAD if self._latch is None else _PUSHED_RAD
            if self._latch is not None and most < off < math.inf:
                self.hold(f"the arm is {off:.2f} rad from where it was sent, should be at most "
                          f"{most} rad: it was moved, or something holds it")
                self.check_released()
            self._begin(state, keep=off <= most)

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
        """For the start of an episode: :meth:`sync`, and counters to zero. Raises as it does, and
        SafetyError where the arm is held."""
        self.check_released()
        self.sync(placed=placed)
        self.counters = SafetyCounters()

    def get_state(self) -> dict[str, Any]:
        """What :meth:`set_state` needs to go on exactly from here."""
        return {
            "plan": self._plan,
            "due": self._due,
            "q_rad": self._q.copy(),
            "reached": self._reached.copy(),
            "tool_m": self._tool.copy(),
            "yaw_rad": self._yaw,
            "measured_tool_m": self._measured_tool.copy(),
            "measured_at_s": self._measured_at_s,
            "counters": replace(self.counters, reasons=dict(self.counters.reasons)),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue from what :meth:`get_state` returned; a hold stays.

        For a simulation whose arm was put back to the same moment: the plan is not compared with
        the arm.
        """
        self._plan, self._due = state["plan"], state["due"]
        self._q, self._reached = state["q_rad"].copy(), state["reached"].copy()
        self._tool, self._yaw = state["tool_m"].copy(), state["yaw_rad"]
        self._measured_tool = state["measured_tool_m"].copy()
        self._measured_at_s = state["measured_at_s"]
        counters = state["counters"]
        self.counters = replace(counters, reasons=dict(counters.reasons))

    # -- commands ---------------------------------------------------------------------------

    def move(self, delta_m: ArrayLike, yaw_rad: float, duration_s: float) -> Executed:
        """Move the tool's set-point by ``delta_m`` (3,) [m] and ``yaw_rad`` [rad], and the arm
        towards it for ``duration_s`` [s].

        Returns by how much the set-point moved. Too long a step is shortened along its direction,
        a step out of the box ends at its face, joints at their limits stay there. What the arm has
        no time for it makes up for with the next command; where it can go no further, the set-point
        comes back to where it is going.

        Raises:
            SafetyError: the arm is held or reports what is not a number, or the command is not
                finite, of the wrong shape or too long; then nothing was sent.
            StaleDataError: the arm's state is older than ``max_state_age_s``; nothing was sent.
        """
        with self._lock:
            self._listen()
            try:
                delta = finite(delta_m, (3,), "tool displacement")
                asked = float(finite(yaw_rad, (), "turn"))
                duration = seconds(duration_s)
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
        # What the arm is still to be sent is no lead of the kind that a blocked arm stores up.
        plan = self._plan
        assert plan is not None
        to_come = math.dist(self._reached[:3, 3], plan.tool(self._row(plan, 0)))
        leash = self.config.leash_m + reach + min(to_come, self.config.leash_m)
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
                target = finite(target_rad, (self.kinematics.n_joints,), "joint target")
                duration = seconds(duration_s)
                share = float(finite(speed, (), "speed"))
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
                value = float(finite(opening, (), "gripper opening"))
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

    def settle(self, timeout_s: float = 1.0) -> bool:
        """The commander ends: brake, not latched, and wait until the arm has sent all of it.

        Returns whether the arm has nothing left to send; gives up after ``timeout_s`` [s].
        """
        with self._lock:
            self._due = None
            if self.held is None and self._stopping():
                # Whatever goes wrong: the plan that the arm has ends at rest too.
                with contextlib.suppress(Exception):
                    self._brake()
            if self._plan is not None:
                self._settle()
            self._keep()
        end_s = self._clock.now_s() + timeout_s
        while self._stopping() and self._clock.now_s() < end_s:
            self._clock.sleep_until(self._clock.now_s() + self._arm.period_s)
        return not self._stopping()

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
                self._hand(found.plan)
            except LateCommandError:
                continue
            except Exception as error:
                self.hold(said(error))
                raise
            self._due = found.plan.first + HISTORY + self.planner.due(duration)
            return found
        # The plan that the arm has ends at rest.
        return Found(plan, plan.rows[-1, 0], plan.poses[-1], 0.0)

    def _hand(self, plan: Plan, *, stop: bool = False) -> None:
        """Let the arm have a plan, which is then the present one."""
        setpoints = self.planner.setpoints(plan, stop=stop)
        try:
            self._arm.command(setpoints)
            self._plan = plan
        except KeyboardInterrupt:
            # Who knows whether the arm has it. Twice is the same as once.
            try:
                self._arm.command(setpoints)
                self._plan = plan
            except Exception:
                self._plan = None
                self.hold("a command was interrupted: it is not known whether the arm has it")
            raise

    def _settle(self) -> None:
        """The set-point becomes where the present plan ends."""
        assert self._plan is not None
        self._q, self._reached = self._plan.rows[-1, 0], self._plan.poses[-1]
        self._tool, self._yaw = self.planner.tool(self._reached)

    # -- holds ------------------------------------------------------------------------------

    def hold(self, reason: str) -> None:
        """Brake within the limits and refuse commands until :meth:`rearm`. Never raises. The first
        reason stays."""
        with self._lock:
            if self.held is not None:
                return self._keep()
            self.held = reason.strip() or NO_REASON
            self._due = None
            try:
                # Whatever goes wrong: the plan that the arm has ends at rest too.
                with contextlib.suppress(Exception):
                    self._brake()
                halt(self._gripper)
                # By then a stop is over, even one whose rows are late, or its rows were lost.
                rows = 0 if self._plan is None else self._plan.end - self._arm.sent()
                self._rests_at_s = self._clock.now_s() + _LATE * rows * self._arm.period_s
            finally:
                self._keep()

    def _keep(self) -> None:
        """Have a hold in its file; its reason says so where that cannot be written."""
        if self.held is not None and self._latch is not None:
            self.held = self._latch.keep(self.held, self._clock.now_s())

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
                self._hand(stop, stop=True)
            except LateCommandError:
                continue
            except SafetyError:
                # An arm that takes no commands has stopped, and forgotten what it was sent.
                self._plan = None
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
                late = self.held is not None and self._clock.now_s() > self._rests_at_s
                if self._arm.status().ready and not late:
                    raise SafetyError("the arm is still coming to rest: rearm it when it is")
                # What an arm was still to be sent is gone: it is or was in error.
                self._plan = None
            self._arm.recover()
            halt(self._gripper)
            state = self._state()
            if moving(state):
                raise SafetyError("the arm is moving: rearm it when it is at rest")
            self._begin(state)
            if self._latch is not None:
                self._latch.clear()
            self.held = None

    # -- watches ----------------------------------------------------------------------------

    def add_watch(self, name: str, check: Callable[[], str | None]) -> None:
        """Hold the arm as soon as ``check`` says what is wrong; None while all is well."""
        self._watches[name] = check

    def watch(self) -> None:
        """Hold the arm if anything is wrong: its status or state, the force on its tool, a watch
        that was added, or a commander that has fallen silent. Never raises.

        An operator's release of a hold that was kept in a file takes effect here, and a hold that
        is not in its file is written there again.
        """
        with self._lock:
            if self.held is None:
                wrong = self._wrong()
                if wrong is not None:
                    self.hold(wrong)
                return
            if self._latch is not None and self._latch.released():
                with contextlib.suppress(Exception):
                    self.rearm()
            self._keep()

    def _wrong(self) -> str | None:
        try:
            status = self._arm.status()
            if not status.ready:
                return f"the arm takes no commands: {status.fault}"
            age = self._clock.now_s() - self._state().stamp_s
            if not -_AHEAD_S <= age <= self.config.max_state_age_s:
                return f"the arm's state is {age:.2f} s old"
            for check in (self._silence, self._push, *self._watches.values()):
                wrong = check()
                if wrong is not None:
                    return wrong
        except Exception as error:
            return said(error)
        return None

    def _push(self) -> str | None:
        most, age = self._max_force_n, self.config.max_state_age_s
        return None if self._force is None or most == math.inf else pushed(self._force, most, age)
