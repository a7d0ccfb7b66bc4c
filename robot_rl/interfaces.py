"""What the rest of the stack asks of hardware and of a simulator alike.

Units stand in the names. Poses of the arm are in its base frame, poses of the scene in the
workspace frame. Stamps come from the rig's own clock. Every read takes the largest age it accepts
and raises :class:`robot_rl.errors.StaleDataError` beyond it; every command returns what was sent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from robot_rl.errors import InvalidInputError
from robot_rl.specs.robot import RobotSpec
from robot_rl.specs.scene import SceneSpec

Array = NDArray[np.float64]


@dataclass(slots=True)
class JointState:
    """Measured joint angles (n,) [rad], velocities (n,) [rad/s] and their time stamp [s].

    ``effort_nm`` (n,) [N m] are measured joint torques, None where the arm reports none.
    """

    position_rad: Array
    velocity_rad_s: Array
    stamp_s: float
    effort_nm: Array | None = None


@dataclass(slots=True)
class JointSetpoints:
    """Joint angles (k, n) [rad], one row every ``period_s``; after the last the arm stays there.

    The last row is at rest, so whoever sends the rows needs nobody to stop the arm. ``at`` is the
    row, counted as :meth:`Arm.sent` counts, that the first of these is: rows before it that are
    still to be sent go out first, those after it are forgotten. ``velocity_rad_s`` and
    ``acceleration_rad_s2`` (k, n) are those of the motion at the rows. ``stop`` says that they
    only bring the arm to rest, in place of rows that it would send anyway.
    """

    position_rad: Array
    period_s: float
    velocity_rad_s: Array | None = None
    acceleration_rad_s2: Array | None = None
    at: int = 0
    stop: bool = False


@dataclass(slots=True)
class ArmStatus:
    """Whether an arm takes commands; ``fault`` says why not, in words for the operator."""

    ready: bool
    fault: str | None = None


@dataclass(slots=True)
class Wrench:
    """Force (3,) [N] and torque (3,) [N m] of the world on the tool, at the tool centre point, in
    axes of the arm's base, and when they were measured [s]."""

    force_n: Array
    torque_nm: Array
    stamp_s: float


@dataclass(slots=True)
class Reading:
    """One value of a sensor, in the sensor's unit, and when it was measured [s]."""

    value: float
    stamp_s: float


@dataclass(slots=True)
class BodyState:
    """A rigid body in the workspace frame: position (3,) [m], quaternion xyzw (4,),
    linear velocity (3,) [m/s] and angular velocity (3,) [rad/s] in workspace axes."""

    position_m: Array
    quat_xyzw: Array
    velocity_m_s: Array
    angular_velocity_rad_s: Array


@dataclass(slots=True)
class Frame:
    """An RGB image (H, W, 3) uint8 and the time it was taken [s]."""

    image: NDArray[np.uint8]
    stamp_s: float


@runtime_checkable
class Clock(Protocol):
    """The time the rig lives in: wall time on hardware, simulated time in a simulator."""

    def now_s(self) -> float: ...

    def sleep_until(self, time_s: float) -> None:
        """Return at ``time_s``; a simulator advances its physics to that time."""


@runtime_checkable
class Arm(Protocol):
    """An arm under joint position control. Only the safety filter may call ``command``.

    The arm sends one row of set-points every ``period_s``, in order, none twice and none left out:
    where its own loop is late the motion takes longer, and is never made up for. A new command
    must name a row at least ``lead_rows`` ahead of :meth:`sent`, or it may come too late.
    """

    spec: RobotSpec
    period_s: float
    lead_rows: int

    def state(self, max_age_s: float) -> JointState: ...

    def sent(self) -> int:
        """How many rows were sent so far, over all commands. It does not grow while the arm has
        nothing more to send."""

    def command(self, setpoints: JointSetpoints) -> JointSetpoints:
        """Take rows over from row ``setpoints.at`` on.

        Raises:
            LateCommandError: that row, and maybe more, were sent already; nothing changed.
            SafetyError: the arm takes no commands (see :meth:`status`); nothing changed. While it
                goes on sending rows all the same (it is the measured state that cannot be relied
                on, say), it takes those that ``stop``.
        """

    def status(self) -> ArmStatus:
        """Whether the arm would take a command. Never clears an error."""

    def recover(self) -> None:
        """Clear the arm's own errors and enable it. Only for an operator's re-arm.

        Raises:
            SafetyError: it stays in error, e.g. the emergency stop is still pressed.
        """


@runtime_checkable
class ForceSensor(Protocol):
    """What the world does to the tool."""

    def wrench(self, max_age_s: float) -> Wrench: ...

    def zero(self) -> None:
        """Take what is measured now, free of contact, as nothing; before each rollout."""


@runtime_checkable
class Sensor(Protocol):
    """A sensor of the task: a drawer's encoder, an electrical contact."""

    name: str
    unit: str

    def read(self, max_age_s: float) -> Reading: ...


@runtime_checkable
class Gripper(Protocol):
    """A parallel gripper; openings are fractions of its stroke, 0 closed to 1 open."""

    def opening(self, max_age_s: float) -> float: ...

    def command(self, opening: float) -> float: ...


@runtime_checkable
class Camera(Protocol):
    """A colour camera."""

    name: str

    def read(self, max_age_s: float) -> Frame: ...


@runtime_checkable
class ObjectTracker(Protocol):
    """Where the things on the table are, however it is known (simulator, encoder, vision)."""

    def body(self, name: str, max_age_s: float) -> BodyState: ...

    def joint(self, name: str, max_age_s: float) -> tuple[float, float]:
        """Position [m] or [rad] and velocity of a joint of the scene (a drawer, a door)."""


@dataclass
class Placement:
    """A state of the scene to start an episode from, or to photograph as a goal.

    ``tool_m`` is the tool's position (3,) in the workspace frame, ``yaw_rad`` its turn about z
    from the tool's default heading, ``gripper_opening`` in [0, 1]; ``bodies`` maps names to
    (position (3,) [m], quaternion xyzw (4,)), ``joints`` maps names to positions [m] or [rad].
    """

    tool_m: Array
    yaw_rad: float = 0.0
    gripper_opening: float = 0.0
    bodies: dict[str, tuple[Array, Array]] = field(default_factory=dict)
    joints: dict[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """As plain numbers and lists, for JSON."""
        return {
            "tool_m": [float(x) for x in self.tool_m],
            "yaw_rad": float(self.yaw_rad),
            "gripper_opening": float(self.gripper_opening),
            "bodies": {name: [[float(x) for x in position], [float(x) for x in quat]]
                       for name, (position, quat) in self.bodies.items()},
            "joints": {name: float(value) for name, value in self.joints.items()},
        }

    @classmethod
    def from_dict(cls, raw: Any) -> Placement:
        """The placement that :meth:`as_dict` described.

        Raises:
            InvalidInputError: it does not describe one.
        """
        try:
            placement = cls(
                tool_m=np.array(raw["tool_m"], dtype=np.float64),
                yaw_rad=float(raw["yaw_rad"]),
                gripper_opening=float(raw["gripper_opening"]),
                bodies={str(name): (np.array(position, np.float64), np.array(quat, np.float64))
                        for name, (position, quat) in raw["bodies"].items()},
                joints={str(name): float(value) for name, value in raw["joints"].items()},
            )
            parts = [placement.tool_m, np.array([placement.yaw_rad, placement.gripper_opening])]
            parts += [np.array(list(placement.joints.values()))]
            shapes = [placement.tool_m.shape == (3,)]
            for position, quat in placement.bodies.values():
                parts += [position, quat]
                shapes += [position.shape == (3,), quat.shape == (4,)]
            if not all(shapes) or not all(np.isfinite(part).all() for part in parts):
                raise ValueError("shapes or values are off")
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise InvalidInputError(f"a start {str(raw)[:200]} is no placement ({error})") from None
        return placement


@runtime_checkable
class SceneControl(Protocol):
    """What only a simulator can do: put the world where one wants it."""

    def place(self, arm_rad: Array, placement: Placement) -> None:
        """Set arm, gripper and objects at once, at rest, with no memory of what was before."""

    def save_state(self) -> Mapping[str, NDArray[Any]]:
        """Everything needed to continue bit for bit from here, as arrays."""

    def restore_state(self, state: Mapping[str, NDArray[Any]]) -> None: ...

    def show_markers(self, positions_m: Mapping[str, Array]) -> None:
        """Move the scene's visual markers; one that is not named is hidden."""

    def randomize(self, values: Randomization) -> None:
        """Apply one draw of domain randomisation (relative to the scene as described)."""

    def render(self, camera: str, height: int, width: int, *, markers: bool = False) -> NDArray[
        np.uint8
    ]:
        """An image (height, width, 3) uint8 of the scene as it is now."""


@dataclass
class Randomization:
    """One draw of what differs from the nominal scene.

    ``mass_scale`` and ``friction_scale`` multiply every movable body's; ``color_shift`` (3,) is
    added to every body's RGB in [0, 1]; ``camera_shift_m`` (3,) and ``camera_turn_rad`` (3,)
    displace every camera.
    """

    mass_scale: float = 1.0
    friction_scale: float = 1.0
    color_shift: Array = field(default_factory=lambda: np.zeros(3))
    camera_shift_m: Array = field(default_factory=lambda: np.zeros(3))
    camera_turn_rad: Array = field(default_factory=lambda: np.zeros(3))


@dataclass
class Rig:
    """What an environment is put together from. ``scene`` is None on hardware.

    ``watches`` are further reasons to stop, by name: each returns None while all is well, and
    otherwise what is wrong. ``address`` tells one physical arm from another (None in simulation):
    a latched hold outlives the program under that name.
    """

    arm: Arm
    gripper: Gripper
    clock: Clock
    tracker: ObjectTracker
    cameras: dict[str, Camera]
    scene: SceneControl | None = None
    force: ForceSensor | None = None
    sensors: dict[str, Sensor] = field(default_factory=dict)
    watches: dict[str, Callable[[], str | None]] = field(default_factory=dict)
    address: str | None = None

    def close(self) -> None:
        """Release what the rig holds (windows, sockets, engine connections)."""
        parts = (self.arm, self.gripper, self.clock, self.scene, self.tracker, self.force,
                 *self.sensors.values(), *self.cameras.values())
        for part in parts:
            close = getattr(part, "close", None)
            if close is not None:
                close()


@dataclass(frozen=True)
class RigRequest:
    """What a backend is asked to build.

    ``options`` say how hardware is reached (``master_uri``, ``namespace``, ``robot_ip``, ...); a
    backend refuses the names it does not know. ``cameras`` maps names to sources, e.g.
    ``opencv:0`` or ``ros1:/camera/image_raw``; simulated cameras come from the scene.
    ``setpoint_period_s`` is the spacing of set-points in simulation.
    """

    robot: RobotSpec
    scene: SceneSpec
    control_period_s: float = 0.1
    physics_step_s: float = 0.005
    setpoint_period_s: float = 0.01
    options: Mapping[str, str] = field(default_factory=dict)
    cameras: Mapping[str, str] = field(default_factory=dict)
    image_height: int = 48
    image_width: int = 48
    render_quality: str = "fast"


@runtime_checkable
class Resetter(Protocol):
    """Brings the world to a start state; returns whether it got there."""

    def reset(self, placement: Placement) -> bool: ...


@runtime_checkable
class SuccessDetector(Protocol):
    """Says whether the task is done, from whatever it can see."""

    def success(self) -> bool: ...


@runtime_checkable
class Teleop(Protocol):
    """A person's hand on the arm: an action in [-1, 1]^n, or None while they leave it alone.

    ``events`` are what they asked for since the last call, in order: ``accept`` and ``reject`` end
    an episode with that label, ``stop`` holds the arm, ``rearm`` releases it, ``quit`` ends.
    """

    def read(self) -> Array | None: ...

    def events(self) -> tuple[str, ...]: ...
