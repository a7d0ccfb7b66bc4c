"""What Sawyer says of itself: joints, limits, enabling, e-stop, collisions, cuff.

Joints are taken by name, whatever else a message carries and in whatever order. Ages count from
when a message came here, by the monotonic clock; header stamps are only compared with each other,
to find a robot that goes on saying the same.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from robot_rl.errors import SafetyError, StaleDataError
from robot_rl.interfaces import Array, Clock, JointState
from robot_rl.ros.ros1 import Ros1Session
from robot_rl.specs import RobotSpec
from robot_rl_drivers.joint_messages import Stamps, joint_values
from robot_rl_drivers.sawyer.io_device import signals_of

LIMB = "/robot/limb/right"
STALE_S = 0.5
"""Older than this [s], what the robot says of itself counts as a fault."""
_FROZEN_S = 0.3
_SAME_VALUES_S = 0.5
_MOVED_RAD = 0.03
"""Set-points that went further than this while no joint's reading changed at all [rad]."""
_PRESSED, _RELEASED = 1, 3
_SOURCES = {1: "its button", 2: "an unknown source", 3: "a joint's fault", 4: "the robot's engine"}
_TOLERANCE = {"position": 2e-3, "velocity": 5e-3, "acceleration": 5e-3, "torque": 5e-2}


@dataclass(slots=True)
class Joints:
    """One reading of the joints and when it came [s]."""

    position_rad: Array
    velocity_rad_s: Array
    effort_nm: Array | None
    time_s: float


class SawyerState:
    """Listens to the robot. ``on_fault`` is called, on a thread of rospy's, with what makes the
    robot leave its commands: disabled, stopped, collided, guided by hand."""

    def __init__(
        self,
        session: Ros1Session,
        spec: RobotSpec,
        clock: Clock,
        on_fault: Callable[[str], None],
        on_joints: Callable[[Joints], None],
    ) -> None:
        self.spec = spec
        self.received = 0
        self.skew_s = float("nan")
        self._clock = clock
        self._on_fault, self._on_joints = on_fault, on_joints
        self._lock = threading.Lock()
        self._joints: Joints | None = None
        self._missing: str | None = None
        self._stamp: tuple[int, int] | None = None
        self._stamps = Stamps()
        self._advanced_s = 0.0
        self._changed_s = 0.0
        self._commanded: deque[tuple[float, Array]] = deque(maxlen=200)
        self._arrivals: deque[float] = deque(maxlen=200)
        self._assembly: Any = None
        self._assembly_s = -np.inf
        self._limits: dict[str, Array] | None = None
        self._limits_fault: str | None = None
        self._collision = self._cuff = False
        intera = "intera_core_msgs/"
        session.subscribe("/robot/joint_states", "sensor_msgs/JointState", self._take_joints)
        session.subscribe("/robot/state", intera + "RobotAssemblyState", self._take_assembly)
        session.subscribe("/robot/joint_limits", intera + "JointLimits", self._take_limits)
        session.subscribe(
            f"{LIMB}/collision_detection_state", intera + "CollisionDetectionState",
            self._take_collision,
        )
        session.subscribe("/io/robot/cuff/state", intera + "IODeviceStatus", self._take_cuff)

    # -- joints -------------------------------------------------------------------------------

    def joints(self, max_age_s: float) -> JointState:
        """The newest reading.

        Raises:
            StaleDataError: it came longer ago than ``max_age_s``, or the robot repeats itself.
        """
        with self._lock:
            joints, missing, advanced_s = self._joints, self._missing, self._advanced_s
        if joints is None:
            raise StaleDataError(missing or "nothing has come on /robot/joint_states yet")
        # A message whose stamp did not advance is an old reading that came again.
        age_s = self._clock.now_s() - min(joints.time_s, advanced_s)
        if not age_s <= max_age_s:
            raise StaleDataError(
                f"the joint states are {age_s:.3f} s old, older than the {max_age_s} s allowed"
            )
        return JointState(
            joints.position_rad.copy(), joints.velocity_rad_s.copy(),
            min(joints.time_s, advanced_s),
            None if joints.effort_nm is None else joints.effort_nm.copy(),
        )

    def sent(self, position_rad: Array) -> None:
        """A set-point went out; to find a robot whose readings do not follow at all."""
        self._commanded.append((self._clock.now_s(), position_rad))

    def _take_joints(self, message: Any) -> None:
        now_s = self._clock.now_s()
        try:
            values = joint_values(message, self.spec.joint_names)
        except ValueError as error:
            self._missing = f"/robot/joint_states {error}"
            return
        if values is None:
            return
        joints = Joints(*values, now_s)
        stamp = (message.header.stamp.secs, message.header.stamp.nsecs)
        with self._lock:
            before = self._joints
            if self._stamps.is_new(stamp):
                self._advanced_s = now_s
            elif before is None or stamp != self._stamp:
                return  # it came late, or is somebody else's
            else:
                joints = replace(before, time_s=now_s)
            if before is None or not np.array_equal(before.position_rad, joints.position_rad):
                self._changed_s = now_s
            self._stamp, self._joints, self._missing = stamp, joints, None
            self.received += 1
            self._arrivals.append(now_s)
        self._on_joints(joints)

    def rate_hz(self) -> float:
        """Joint states a second lately; 0 where there are none."""
        with self._lock:
            arrivals = list(self._arrivals)
        now_s = self._clock.now_s()
        recent = [time_s for time_s in arrivals if time_s > now_s - 2.0]
        if len(recent) < 2:
            return 0.0
        return (len(recent) - 1) / max(now_s - recent[0], 1e-3)

    def stamp_s(self) -> float:
        """The newest header stamp [s, the robot's clock]."""
        stamp = self._stamp
        return float("nan") if stamp is None else stamp[0] + 1e-9 * stamp[1]

    # -- the robot ----------------------------------------------------------------------------

    def _take_assembly(self, message: Any) -> None:
        was = self._assembly
        self._assembly, self._assembly_s = message, self._clock.now_s()
        if was is not None and was.enabled and not was.stopped:
            reason = self.assembly_fault()
            if reason is not None:
                self._on_fault(reason)

    def _take_collision(self, message: Any) -> None:
        was, self._collision = self._collision, bool(message.collision_state)
        if self._collision and not was:
            self._on_fault("the robot has detected a collision")

    def _take_cuff(self, message: Any) -> None:
        was, self._cuff = self._cuff, bool(signals_of(message).get("right_cuff", False))
        if self._cuff and not was:
            self._on_fault("the arm is guided by hand (its cuff was pressed)")

    def assembly(self) -> Any:
        """The newest RobotAssemblyState, None before the first."""
        return self._assembly

    def assembly_fault(self) -> str | None:
        """Why the robot itself takes no commands."""
        state = self._assembly
        if state is None:
            return "nothing has come on /robot/state yet"
        if state.stopped:
            by = _SOURCES.get(state.estop_source, "an unknown source")
            more = {_PRESSED: "; the button is down", _RELEASED: "; the button is up again"}
            return f"emergency stop by {by}{more.get(state.estop_button, '')}"
        if not state.enabled:
            return "the robot reports an error and is not enabled" if state.error else (
                "the robot is not enabled"
            )
        return None if state.ready else "the robot is enabled but not ready (is it homing?)"

    def fault(self) -> str | None:
        """What is wrong now, in words; it may pass, unlike what ``on_fault`` was told of."""
        now_s = self._clock.now_s()
        reason = self.assembly_fault()
        if reason is None and now_s - self._assembly_s > STALE_S:
            reason = f"the robot's state is {now_s - self._assembly_s:.2f} s old"
        if reason is None and self._collision:
            reason = "the robot has detected a collision"
        if reason is None and self._cuff:
            reason = "the arm is guided by hand (its cuff is pressed)"
        return reason or self._limits_fault or self.frozen() or self._joints_fault(now_s)

    def _joints_fault(self, now_s: float) -> str | None:
        with self._lock:
            joints, missing = self._joints, self._missing
        if missing is not None:
            return missing
        if joints is None:
            return "nothing has come on /robot/joint_states yet"
        if now_s - joints.time_s > STALE_S:
            return f"the joint states are {now_s - joints.time_s:.2f} s old"
        for what, values in (("angle", joints.position_rad), ("velocity", joints.velocity_rad_s)):
            bad = ~np.isfinite(values)
            if bad.any():
                i = int(np.argmax(bad))
                return f"the robot reports {values[i]} as the {what} of {self.spec.joint_names[i]}"
        return None

    def frozen(self) -> str | None:
        """Whether messages come that say nothing new."""
        now_s = self._clock.now_s()
        with self._lock:
            joints, advanced_s, changed_s = self._joints, self._advanced_s, self._changed_s
        if joints is None or now_s - joints.time_s > _FROZEN_S:
            return None
        if joints.time_s - advanced_s > _FROZEN_S:
            return (f"the joint states are frozen: their stamp has not changed for "
                    f"{joints.time_s - advanced_s:.2f} s")
        if joints.time_s - changed_s > _SAME_VALUES_S:
            since = [row for time_s, row in list(self._commanded) if time_s > changed_s]
            if since and float(np.ptp(np.array(since), axis=0).max()) > _MOVED_RAD:
                return (f"the joint states are frozen: no angle has changed for "
                        f"{joints.time_s - changed_s:.2f} s while set-points moved")
        return None

    # -- limits -------------------------------------------------------------------------------

    def _take_limits(self, message: Any) -> None:
        names = list(message.joint_names)
        missing = [name for name in self.spec.joint_names if name not in names]
        if missing:
            self._limits_fault = f"/robot/joint_limits has no joint {', '.join(missing)}"
            return
        order = [names.index(name) for name in self.spec.joint_names]
        limits = {}
        for key, values in (
            ("lower_rad", message.position_lower), ("upper_rad", message.position_upper),
            ("velocity_rad_s", message.velocity), ("acceleration_rad_s2", message.accel),
            ("torque_nm", message.effort),
        ):
            if len(values) == len(names):
                limits[key] = np.array(values, dtype=np.float64)[order]
        was, self._limits = self._limits_fault, limits
        self._limits_fault = compare_limits(self.spec, limits)
        if self._limits_fault is not None and was is None:
            self._on_fault(self._limits_fault)

    def limits(self) -> dict[str, Array] | None:
        """The robot's limits by the names of :class:`robot_rl.specs.JointSpec`."""
        return self._limits

    def check_limits(self) -> None:
        """Raise SafetyError where the robot's limits are narrower than those that the set-points
        are kept within."""
        if self._limits_fault is not None:
            raise SafetyError(self._limits_fault)


def compare_limits(spec: RobotSpec, limits: dict[str, Array]) -> str | None:
    """What is narrower on the robot than in ``spec``, by joint and value; None where nothing is.

    ``limits`` maps ``lower_rad``, ``upper_rad``, ``velocity_rad_s``, ``acceleration_rad_s2`` and
    ``torque_nm`` to arrays (n,). Wider is fine. Position limits are needed, others may be left
    out; an acceleration of 0 means that the robot tells none.
    """
    for key in ("lower_rad", "upper_rad"):
        if key not in limits:
            return "/robot/joint_limits has no position limits"
    for key, values in limits.items():
        ours = spec.limits(key)
        kind = "position" if key in ("lower_rad", "upper_rad") else key.rsplit("_rad")[0]
        slack = _TOLERANCE["torque" if key == "torque_nm" else kind]
        told = values != 0.0 if key == "acceleration_rad_s2" else np.ones_like(values, bool)
        narrow = values > ours + slack if key == "lower_rad" else values < ours - slack
        narrow = (narrow | ~np.isfinite(values)) & told
        if narrow.any():
            i = int(np.argmax(narrow))
            return (f"the robot's limit {key} of {spec.joint_names[i]} is {values[i]:g}, narrower "
                    f"than the {ours[i]:g} that this arm's description has")
    return None
