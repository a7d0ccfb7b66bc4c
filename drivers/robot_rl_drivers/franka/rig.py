"""The rig on a Franka over ROS 2: arm, gripper, cameras, sensors and what tracks the objects."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from robot_rl.errors import InvalidInputError, unknown_name
from robot_rl.interfaces import Gripper, Rig, RigRequest
from robot_rl.ros.runtime import Spinner, destroy, domain_from, make_node
from robot_rl.safety.cameras import camera_watches
from robot_rl.sensors import BiasedForceSensor, MountedWrench
from robot_rl_drivers.cameras import make_cameras
from robot_rl_drivers.clock import MonotonicClock
from robot_rl_drivers.franka.crisp import RATE_HZ, FrankaArm
from robot_rl_drivers.franka.gripper import KINDS, FrankaGripper, NoGripper
from robot_rl_drivers.franka.robot_state import check_arm
from robot_rl_drivers.franka.topics import RobotStates, joint_names
from robot_rl_drivers.franka.transport import subscriber
from robot_rl_drivers.options import number
from robot_rl_drivers.ros_tracker import RosTracker
from robot_rl_drivers.sensors.factory import make_force, make_sensors, sensor_options
from robot_rl_drivers.streaming import LONGEST_GAP_S

OPTIONS: Mapping[str, str] = {
    "namespace": "",
    "arm_prefix": "",
    "domain_id": "",
    "network": "loopback",
    "mode": "joint",
    "rate_hz": "100",
    "max_gap_s": "",
    "controllers": "auto",
    "gripper": "action",
    "gripper_name": "",
    "timeout_s": "5",
    "force": "robot",
}
"""What ``--rig KEY=VALUE`` may say, with the defaults; beside these, ``sensor_NAME``."""


def read_options(
    given: Mapping[str, str], known: Mapping[str, str], more: Iterable[str] = ()
) -> dict[str, str]:
    """The options with their defaults.

    Raises:
        InvalidInputError: one is unknown.
    """
    for key in given:
        if key not in known and key not in more:
            raise unknown_name("rig option", key, [*known, *more])
    return {**known, **given}


def read_gap(options: Mapping[str, str], rate_hz: float) -> float | None:
    """The option ``max_gap_s``, None where it is left to the driver."""
    if not options["max_gap_s"]:
        return None
    return number(options, "max_gap_s", 1.0 / rate_hz, LONGEST_GAP_S, "s")


def make_rig(request: RigRequest) -> Rig:
    """A Panda or FR3 behind franka_ros2 and CRISP.

    Raises:
        InvalidInputError: an option cannot be used, or another program commands the arm.
        StaleDataError: the robot, its gripper or a camera does not report.
        SafetyError: its controller cannot be activated.
        MissingDependencyError: neither rclpy nor the embedded runtime is installed.
    """
    check_arm(request.robot)
    options = read_options(request.options, OPTIONS, sensor_options(request.scene))
    if options["gripper"] not in KINDS:
        raise unknown_name("gripper", options["gripper"], KINDS)
    domain_id = read_domain(options["domain_id"])
    rate_hz = number(options, "rate_hz", *RATE_HZ)
    gap_s = read_gap(options, rate_hz)
    timeout_s = number(options, "timeout_s", 0.1, 120.0, "s")
    clock = MonotonicClock()
    node = make_node("robot_rl", namespace=options["namespace"], domain_id=domain_id,
                     network=options["network"])
    with contextlib.ExitStack() as undo:
        undo.callback(destroy, node)
        spinner = Spinner(node)
        undo.callback(spinner.close)
        rig = _assemble(request, options, node, clock, undo, rate_hz, gap_s, timeout_s)
        rig.address = f"ros2:{domain_id}{node.get_namespace()}:{request.robot.name}"
        rig.connection = undo.pop_all()
    return rig


@dataclass
class FrankaRig(Rig):
    """A rig whose parts share one connection."""

    connection: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def close(self) -> None:
        """Close the parts, then the connection. Idempotent."""
        super().close()
        self.connection.close()


def read_domain(text: str) -> int:
    """The DDS domain that the option ``domain_id`` names, by default that of the environment."""
    if text and not (text.isascii() and text.isdigit()):
        raise InvalidInputError(f"rig option domain_id is {text!r}, should be a whole number")
    return domain_from(int(text) if text else None)


def _assemble(
    request: RigRequest, options: Mapping[str, str], node: Any, clock: MonotonicClock,
    undo: contextlib.ExitStack, rate_hz: float, gap_s: float | None, timeout_s: float,
) -> FrankaRig:
    arm = FrankaArm(
        request.robot, node, clock,
        mode=options["mode"], arm_prefix=options["arm_prefix"],
        rate_hz=rate_hz, controllers=options["controllers"], max_gap_s=gap_s, timeout_s=timeout_s,
    )
    undo.callback(arm.close)
    gripper: Gripper = NoGripper()
    watches = {}
    if options["gripper"] != "none":
        name = options["gripper_name"] or joint_names(request.robot, options["arm_prefix"])[
            0].replace("_joint1", "_gripper")
        hand = FrankaGripper(
            request.robot, node, clock, name, kind=options["gripper"], timeout_s=timeout_s
        )
        undo.callback(hand.close)
        gripper, watches["gripper"] = hand, hand.watch
    subscribe = subscriber(node)
    sensors = make_sensors(request.scene, options, clock, subscribe)
    tracker = RosTracker(request.scene, clock, subscribe)
    cameras = make_cameras(
        request.cameras, height=request.image_height, width=request.image_width, clock=clock
    )
    for camera in cameras.values():
        undo.callback(camera.close)  # type: ignore[attr-defined]
    watches.update(camera_watches(cameras, clock))
    if options["force"] == "robot":
        force = BiasedForceSensor(
            MountedWrench(_Estimate(arm.reports), arm, axes="base", sign=-1.0), clock
        )
    else:
        force = make_force(options["force"], arm, clock, subscribe)
    return FrankaRig(
        arm=arm, gripper=gripper, clock=clock, tracker=tracker, cameras=dict(cameras),
        force=force, sensors=dict(sensors), watches=watches,
    )


class _Estimate:
    """The robot's own estimate of the external wrench, which it reports as what the tool does to
    the world, at its stiffness frame (by default the tool centre point)."""

    def __init__(self, reports: RobotStates) -> None:
        self.wrench = reports.wrench
