"""What the resets of all tasks share: the bench they work at, and the one who calls for help."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import ClassVar

import numpy as np

from robot_rl.envs.motion import CLEAR_M, Arrival, Motion
from robot_rl.envs.tasks.base import Task
from robot_rl.errors import InvalidInputError, MotionInterruptedError, RobotRLError
from robot_rl.interfaces import Array, BodyState, Placement, Rig
from robot_rl.kinematics import rotation_from_quat
from robot_rl.safety import SafetyFilter
from robot_rl.specs.scene import JointSensor

_LOG = logging.getLogger("robot_rl.resets")
_SETTLE_S = 2.0
_REST_M_S = 0.01
_REST_RAD_S = 0.2
_REACH_STEPS = 60
_REACH_ERROR = 0.001


@dataclass(frozen=True)
class ResetOptions:
    """How well a reset has to do, and how long it tries.

    ``attempts`` whole tries before it calls for help; ``pushes`` pushes within one of them. The
    tolerances are how far from what was asked the tool, a thing on the table, the drawer's opening
    and the door's angle may be. Speeds are the tool's.
    """

    attempts: int = 3
    pushes: int = 10
    tool_tolerance_m: float = 0.01
    body_tolerance_m: float = 0.02
    drawer_tolerance_m: float = 0.01
    door_tolerance_rad: float = 0.05
    travel_speed_m_s: float = 0.25
    contact_speed_m_s: float = 0.12

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if each.type == "int":
                good = isinstance(value, int) and 1 <= value <= 100
            else:
                good = isinstance(value, (int, float)) and 0.0 < value <= 1.0
            if not good:
                span = "[1, 100]" if each.type == "int" else "(0, 1]"
                raise InvalidInputError(f"reset: {each.name} is {value!r}, should be in {span}")


class HelpNeeded(RobotRLError):
    """What no further try would mend; says what is wrong and where."""


class Bench:
    """The arm, what is on the table, and how well things have to be put."""

    def __init__(self, task: Task, rig: Rig, motion: Motion, options: ResetOptions) -> None:
        self.task = task
        self.rig = rig
        self.motion = motion
        self.options = options
        self._encoders = {
            sensor.joint: rig.sensors[sensor.name]
            for sensor in task.scene().sensors
            if isinstance(sensor, JointSensor) and sensor.name in rig.sensors
        }

    @property
    def safety(self) -> SafetyFilter:
        return self.motion.safety

    @property
    def max_age_s(self) -> float:
        return self.safety.config.max_state_age_s

    def body(self, name: str) -> BodyState:
        """A tracked body in the workspace frame."""
        return self.rig.tracker.body(name, self.max_age_s)

    def joint(self, name: str) -> float:
        """Position [m] or [rad] of a joint of the scene, by its encoder or else by the tracker."""
        encoder = self._encoders.get(name)
        if encoder is not None:
            return encoder.read(self.max_age_s).value
        return self.rig.tracker.joint(name, self.max_age_s)[0]

    def settled(self, name: str) -> BodyState:
        """The body once it is at rest, or as it is after 2 s."""
        motion = self.motion
        motion.begin()
        for _ in range(int(_SETTLE_S / motion.period_s)):
            state = self.body(name)
            if at_rest(state):
                break
            motion.step(np.zeros(3))
        motion.pause()
        return self.body(name)

    def reaches(self, tool_m: Array) -> bool:
        """Whether the tool can be brought to (3,) [m] in the workspace frame, from above."""
        high = np.array([tool_m[0], tool_m[1], max(float(tool_m[2]), CLEAR_M)])
        return all(self._reaches(point) for point in (tool_m, high))

    def _reaches(self, tool_m: Array) -> bool:
        if np.abs(self.motion.clip(tool_m) - tool_m).max() > 1e-9:
            return False
        # By steps, as the tool gets there: another posture that reaches it would be no use.
        kinematics = self.safety.kinematics
        pose = np.diag([1.0, -1.0, -1.0, 1.0])
        pose[:3, 3] = tool_m + np.array(self.rig.arm.spec.workspace_origin_m)
        for q in (self.safety.setpoint_rad, np.array(self.rig.arm.spec.home_rad)):
            for _ in range(_REACH_STEPS):
                q, error = kinematics.step(q, pose, damping=0.01)
                if float(error @ error) < _REACH_ERROR**2:
                    return True
        return False


def at_rest(state: BodyState) -> bool:
    """Whether a body does not move, as far as can be measured."""
    return (float(np.linalg.norm(state.velocity_m_s)) < _REST_M_S
            and float(np.linalg.norm(state.angular_velocity_rad_s)) < _REST_RAD_S)


def axes_of(state: BodyState) -> Array:
    """A body's rotation (3, 3); its columns are the body's axes in the workspace frame."""
    return rotation_from_quat(state.quat_xyzw)


class ObjectReset(ABC):
    """Brings what stands on the table of one task to where an episode starts.

    Called with the tool lifted off and above the middle of the workspace. A new task's reset is a
    subclass that is entered in :data:`robot_rl.envs.resets.RESETS`.
    """

    task: ClassVar[str]

    def __init__(self, bench: Bench) -> None:
        self.bench = bench

    def let_go(self, placement: Placement) -> None:
        """What has to be done before the tool may be lifted; nothing by default."""
        return None

    @abstractmethod
    def restore(self, placement: Placement) -> None:
        """One try. What it did not manage, :meth:`problem` says.

        Raises:
            HelpNeeded: no try can mend it, e.g. a thing is out of reach.
        """

    @abstractmethod
    def problem(self, placement: Placement) -> str | None:
        """What is measured not to be as asked, or None."""


class ArmResetter:
    """Resets a task with the arm itself (:class:`robot_rl.interfaces.Resetter`).

    Every try is: rest, let go, lift off, home, put the things where they were asked for, go to the
    start of the tool, measure. After ``options.attempts`` tries, or at once where no try can help,
    the arm is held and ``on_help(message)`` is called.
    """

    def __init__(
        self,
        script: ObjectReset,
        *,
        on_help: Callable[[str], None] | None = None,
    ) -> None:
        self.script = script
        self.bench = script.bench
        self.on_help = on_help if on_help is not None else _log_help
        self.attempts_made = 0
        """Tries that the last reset took."""
        self.violations = 0
        """Safety violations that the filter counted during the last reset."""

    def reset(self, placement: Placement) -> bool:
        """Whether the world was brought to ``placement``; otherwise the arm is held.

        Raises:
            SafetyError: the arm was held before; only an operator may release it.
            MotionInterruptedError: :attr:`motion` was broken off; the arm comes to rest.
        """
        safety = self.bench.safety
        safety.check_released()
        before = safety.counters.violations
        try:
            why = self._try(placement)
        except MotionInterruptedError:
            raise
        except RobotRLError as error:
            # Out of reach, held by the filter or a watch, no fresh state: no further try will do.
            why = str(error)
        self.violations = safety.counters.violations - before
        if why is not None:
            self.give_up(why)
        return why is None

    @property
    def motion(self) -> Motion:
        """What it moves the arm with."""
        return self.bench.motion

    def give_up(self, why: str) -> None:
        """Hold the arm and call for help."""
        message = f"{self.bench.task.name}: the reset needs help: {why}"
        if self.bench.safety.held is None:
            self.bench.safety.hold(message)
        self.on_help(message)

    def _try(self, placement: Placement) -> str | None:
        why: str | None = None
        for attempt in range(self.bench.options.attempts):
            self.attempts_made = attempt + 1
            why = self._attempt(placement)
            if why is None:
                return None
            _LOG.info("reset of %s, try %d: %s", self.bench.task.name, attempt + 1, why)
        return f"after {self.attempts_made} tries {why}"

    def _attempt(self, placement: Placement) -> str | None:
        script, motion = self.script, self.bench.motion
        if not (still := motion.settle()):
            return still.why
        script.let_go(placement)
        if not (home := motion.home()):
            return home.why
        if script.problem(placement) is not None:
            script.restore(placement)
            if not (home := motion.home()):
                return home.why
        why = script.problem(placement)
        if why is not None:
            return why
        if not (there := self._go_to_start(placement)):
            return there.why
        # The last motion may have touched something.
        if (why := script.problem(placement)) is not None:
            return why
        still = motion.settle()
        return None if still else still.why

    def _go_to_start(self, placement: Placement) -> Arrival:
        options = self.bench.options
        self.bench.motion.grip(placement.gripper_opening)
        return self.bench.motion.travel(
            placement.tool_m, placement.yaw_rad, options.travel_speed_m_s,
            tolerance_m=0.5 * options.tool_tolerance_m,
        )


def _log_help(message: str) -> None:
    _LOG.error(message)
