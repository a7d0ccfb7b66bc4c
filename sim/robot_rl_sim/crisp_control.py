"""How a Franka follows CRISP's targets, and when it stops itself, as far as a driver can tell.

The controller pulls the arm after its target like a spring; a target that jumps, a joint that is
too fast, or a force on the tool that is too large make the robot stop itself (a reflex), after
which only an error recovery makes it move again.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from robot_rl.interfaces import Array
from robot_rl.kinematics import Kinematics
from robot_rl.specs import RobotSpec

CARTESIAN = "cartesian_impedance_controller"
JOINT = "joint_impedance_controller"
CONTROLLERS = (CARTESIAN, JOINT, "gravity_compensation", "joint_trajectory_controller",
               "joint_state_broadcaster", "pose_broadcaster")
ARM_CONTROLLERS = CONTROLLERS[:4]
"""At most one of these is active."""

STIFFNESS_RAD_S = 30.0
"""How fast the arm closes the distance to its target."""
REFERENCE_SPEED = 0.9
REFERENCE_ACCELERATION = 1.5
BRAKING = 4.0
"""What the arm follows with, and stops itself with, in shares of the joints' limits: targets that
came while this process was kept waiting are no reason to rush."""
JUMP_RAD = 0.1
JUMP_M = 0.06
"""A target further than this from the one followed, and from where that one would be by now with
its velocity, is a jump: on the way here some may get lost."""
LOST_S = 0.3
"""Of a sender that was not heard for longer it is not known where it is."""
SPEED_MARGIN = 1.05
"""A joint faster than this share of its largest speed is a reflex."""
SAFE_STRETCH_RAD = 0.03
DEFAULT_FORCE_N = 60.0
TARGET_TIMEOUT_S = 0.5

Mode = Literal["idle", "move", "reflex", "user_stopped"]


@dataclass
class FrankaController:
    """Turns targets into a reference (n,) [rad] for every physics step.

    The methods may be called by any thread.
    """

    spec: RobotSpec
    force_threshold_n: float = DEFAULT_FORCE_N
    active: str = JOINT
    mode: Mode = "move"
    errors: set[str] = field(default_factory=set)
    last_errors: set[str] = field(default_factory=set)
    counts: dict[str, int] = field(default_factory=lambda: {
        "targets": 0, "ignored": 0, "reflexes": 0, "recoveries": 0, "timeouts": 0,
    })

    def __post_init__(self) -> None:
        self.kinematics = Kinematics(self.spec)
        self._speed = self.spec.limits("velocity_rad_s")
        self._acceleration = self.spec.limits("acceleration_rad_s2")
        self._low, self._high = self.spec.limits("lower_rad"), self.spec.limits("upper_rad")
        self._lock = threading.RLock()
        self.reference = np.array(self.spec.home_rad)
        self._speed_now = np.zeros_like(self.reference)
        self._forget_targets()

    def _forget_targets(self) -> None:
        self._joint = self.reference.copy()
        self._velocity = np.zeros_like(self.reference)
        self._pose = self.kinematics.forward(self.reference)
        self._heard_s = -np.inf

    # What it is told.

    def target_joint(self, position_rad: Array, velocity_rad_s: Array, now_s: float) -> None:
        """A target (n,) [rad], [rad/s] came; with the Cartesian controller only a posture."""
        with self._lock:
            if not self._listens(position_rad):
                return
            if self.active == JOINT and self._away(position_rad, now_s) > JUMP_RAD:
                self.reflex("joint_motion_generator_velocity_discontinuity")
                return
            self._joint = position_rad.copy()
            if self.active == JOINT:
                self._velocity, self._heard_s = velocity_rad_s.copy(), now_s

    def _away(self, position_rad: Array, now_s: float) -> float:
        """How far [rad] a target is off the way that the one before was on."""
        gone = self._velocity * min(max(now_s - self._heard_s, 0.0), LOST_S)
        low, high = self._joint + np.minimum(gone, 0.0), self._joint + np.maximum(gone, 0.0)
        return float(np.maximum(low - position_rad, position_rad - high).max())

    def target_pose(self, pose: Array, now_s: float) -> None:
        """A target (4, 4) of the tool in the base frame came."""
        with self._lock:
            if self.active != CARTESIAN or not self._listens(pose):
                return
            if np.linalg.norm(pose[:3, 3] - self._pose[:3, 3]) > JUMP_M:
                self.reflex("cartesian_motion_generator_velocity_discontinuity")
                return
            self._pose, self._heard_s = pose.copy(), now_s

    def _listens(self, values: Array) -> bool:
        self.counts["targets"] += 1
        if self.mode == "move" and self.active in (JOINT, CARTESIAN) and np.isfinite(values).all():
            return True
        self.counts["ignored"] += 1
        return False

    def switch(self, activate: list[str], deactivate: list[str]) -> bool:
        """Have other controllers active; whether that was possible."""
        with self._lock:
            if self.mode in ("reflex", "user_stopped"):
                return False
            if not set(activate) | set(deactivate) <= set(ARM_CONTROLLERS) or len(activate) > 1:
                return False
            left = "" if self.active in deactivate else self.active
            if activate and left and left != activate[0]:
                return False
            self.active = activate[0] if activate else left
            self.mode = "move" if self.active else "idle"
            # A controller begins where the arm is.
            self._forget_targets()
            return True

    # What happens to it.

    def reflex(self, error: str) -> None:
        """Stop; every controller loses the arm."""
        with self._lock:
            if self.mode == "user_stopped":
                return
            if self.mode != "reflex":
                self.counts["reflexes"] += 1
            self.mode, self.active = "reflex", ""
            self.errors.add(error)

    def user_stop(self, pressed: bool) -> None:
        """The stop is pressed or released; either way nothing is active afterwards."""
        with self._lock:
            self.active = ""
            self.mode = "user_stopped" if pressed else "idle"

    def recover(self) -> bool:
        """Clear the errors; whether that was possible."""
        with self._lock:
            if self.mode == "user_stopped":
                return False
            self.last_errors, self.errors = self.errors, set()
            self.mode = "move" if self.active else "idle"
            self.counts["recoveries"] += 1
            return True

    def watch(self, position_rad: Array, velocity_rad_s: Array, force_n: float) -> None:
        """Stop if what is measured calls for it."""
        if self.mode != "move":
            return
        if (np.abs(velocity_rad_s) > SPEED_MARGIN * self._speed).any():
            self.reflex("joint_velocity_violation")
        if ((position_rad < self._low - SAFE_STRETCH_RAD)
                | (position_rad > self._high + SAFE_STRETCH_RAD)).any():
            self.reflex("joint_position_limits_violation")
        if force_n > self.force_threshold_n:
            self.reflex("cartesian_reflex")

    def step(self, now_s: float, step_s: float) -> Array:
        """The reference (n,) [rad] one physics step on."""
        with self._lock:
            if self.mode != "move" or self.active not in (JOINT, CARTESIAN):
                self._brake(step_s)
                self._forget_targets()
                return self.reference.copy()
            if self._velocity.any() and now_s - self._heard_s > TARGET_TIMEOUT_S:
                self._velocity[:] = 0.0
                self.counts["timeouts"] += 1
            if self.active == CARTESIAN:
                self._towards(self._posture(), step_s)
            else:
                age_s = min(max(now_s - self._heard_s, 0.0), 2.0 * step_s)
                self._towards(self._joint + self._velocity * age_s, step_s)
            return self.reference.copy()

    def _brake(self, step_s: float) -> None:
        most = BRAKING * self._acceleration * step_s
        self._speed_now -= np.clip(self._speed_now, -most, most)
        self.reference = self.reference + self._speed_now * step_s

    def _towards(self, goal: Array, step_s: float) -> None:
        """Pull the reference after ``goal`` (n,) [rad] no harder than the arm could follow."""
        gap = goal - self.reference
        distance = np.abs(gap)
        closing = np.minimum(STIFFNESS_RAD_S * distance, np.sqrt(self._acceleration * distance))
        wanted = self._velocity + np.sign(gap) * closing
        wanted = np.clip(wanted, -REFERENCE_SPEED * self._speed, REFERENCE_SPEED * self._speed)
        most = REFERENCE_ACCELERATION * self._acceleration * step_s
        self._speed_now = self._speed_now + np.clip(wanted - self._speed_now, -most, most)
        self.reference = self.reference + self._speed_now * step_s

    def _posture(self) -> Array:
        """The joint angles whose tool pose is the target, the posture where that leaves it free."""
        goal = self.reference
        for _ in range(3):
            goal, _ = self.kinematics.step(goal, self._pose, damping=0.01, posture_gain=0.0)
        jacobian = self.kinematics.jacobian(self.reference)
        free = np.eye(len(goal)) - np.linalg.pinv(jacobian) @ jacobian
        return np.asarray(goal + free @ (self._joint - goal))
