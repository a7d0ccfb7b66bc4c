"""The rig on a Franka reached directly: arm, hand, cameras and, by ROS 2 topics or serial lines,
what tracks the objects."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from robot_rl.errors import InvalidInputError, StaleDataError, unknown_name
from robot_rl.interfaces import BodyState, Gripper, ObjectTracker, Rig, RigRequest
from robot_rl.ros.runtime import Spinner, destroy, make_node
from robot_rl.safety.cameras import camera_watches
from robot_rl.safety.latch import resolved
from robot_rl.sensors import BiasedForceSensor, MountedWrench
from robot_rl_drivers.cameras import make_cameras
from robot_rl_drivers.clock import MonotonicClock
from robot_rl_drivers.franka.direct import (
    MOST_STIFFNESS_NM_RAD,
    RATE_HZ,
    STIFFNESS_NM_RAD,
    FrankyArm,
    FrankyGripper,
    connect,
    load_franky,
)
from robot_rl_drivers.franka.gripper import NoGripper
from robot_rl_drivers.franka.rig import FrankaRig, read_domain, read_gap, read_options
from robot_rl_drivers.franka.robot_state import check_arm
from robot_rl_drivers.franka.transport import subscriber
from robot_rl_drivers.options import number, numbers
from robot_rl_drivers.ros_tracker import RosTracker
from robot_rl_drivers.sensors.factory import make_force, make_sensors, sensor_options

OPTIONS: Mapping[str, str] = {
    "robot_ip": "",
    "realtime": "enforce",
    "rate_hz": "200",
    "max_gap_s": "",
    "stiffness": ",".join(f"{value:g}" for value in STIFFNESS_NM_RAD),
    "torque_threshold_nm": "20",
    "force_threshold_n": "30",
    "gripper": "franka",
    "tracker": "none",
    "domain_id": "",
    "force": "robot",
    "network": "loopback",
}
"""What ``--rig KEY=VALUE`` may say, with the defaults; beside these, ``sensor_NAME``."""

_CHOICES = {"realtime": ("enforce", "ignore"), "gripper": ("franka", "none"),
            "tracker": ("none", "ros2")}
# Below, gravity and friction that the model has not got stop the arm; above, nothing does.
_THRESHOLD_NM, _THRESHOLD_N = (1.0, 100.0), (1.0, 100.0)


class NoTracker:
    """In place of a tracker where nothing is tracked."""

    def body(self, name: str, max_age_s: float) -> BodyState:
        raise StaleDataError(f"the body {name!r} is not tracked (tracker=none)")

    def joint(self, name: str, max_age_s: float) -> tuple[float, float]:
        raise StaleDataError(f"the joint {name!r} is not tracked (tracker=none)")


def make_rig(request: RigRequest) -> Rig:
    """A Panda or FR3 at ``options["robot_ip"]``. Connecting moves nothing.

    Raises:
        InvalidInputError: an option cannot be used.
        StaleDataError: the robot, its gripper or a camera does not answer.
        MissingDependencyError: franky is not installed.
    """
    check_arm(request.robot)
    options = read_options(request.options, OPTIONS, sensor_options(request.scene))
    for key, choices in _CHOICES.items():
        if options[key] not in choices:
            raise unknown_name(key, options[key], choices)
    if not options["robot_ip"]:
        raise InvalidInputError("the robot's address is missing: --rig robot_ip=172.16.0.2")
    settings = _settings(options)
    franky = load_franky()
    with contextlib.ExitStack() as undo:
        rig = _assemble(request, options, settings, franky, undo)
        rig.address = f"franka:{resolved(options['robot_ip'])}"
        rig.connection = undo.pop_all()
    return rig


@dataclass(frozen=True)
class _Settings:
    """The options that are numbers."""

    rate_hz: float
    max_gap_s: float | None
    torque_threshold_nm: float
    force_threshold_n: float
    stiffness_nm_rad: list[float]
    domain_id: int


def _settings(options: Mapping[str, str]) -> _Settings:
    rate_hz = number(options, "rate_hz", *RATE_HZ)
    return _Settings(
        rate_hz,
        read_gap(options, rate_hz),
        number(options, "torque_threshold_nm", *_THRESHOLD_NM, "N m"),
        number(options, "force_threshold_n", *_THRESHOLD_N, "N"),
        numbers(options, "stiffness", 7, 1.0, MOST_STIFFNESS_NM_RAD, "N m/rad"),
        read_domain(options["domain_id"]),
    )


def _assemble(
    request: RigRequest, options: Mapping[str, str], settings: _Settings, franky: Any,
    undo: contextlib.ExitStack,
) -> FrankaRig:
    clock = MonotonicClock()
    robot = connect(
        franky, options["robot_ip"], realtime=options["realtime"],
        torque_threshold_nm=settings.torque_threshold_nm,
        force_threshold_n=settings.force_threshold_n,
    )
    arm = FrankyArm(
        request.robot, robot, franky, clock,
        rate_hz=settings.rate_hz, stiffness_nm_rad=settings.stiffness_nm_rad,
        max_gap_s=settings.max_gap_s,
    )
    undo.callback(arm.close)
    gripper: Gripper = NoGripper()
    watches = {}
    if options["gripper"] == "franka":
        hand = FrankyGripper(request.robot, _hand(franky, options["robot_ip"]), franky, clock)
        undo.callback(hand.close)
        gripper, watches["gripper"] = hand, hand.watch
    tracker: ObjectTracker = NoTracker()
    subscribe = None
    if options["tracker"] == "ros2":
        node = make_node("robot_rl", domain_id=settings.domain_id,
                         network=options["network"])
        undo.callback(destroy, node)
        spinner = Spinner(node)
        undo.callback(spinner.close)
        subscribe = subscriber(node)
        tracker = RosTracker(request.scene, clock, subscribe)
    sensors = make_sensors(request.scene, options, clock, subscribe)
    cameras = make_cameras(
        request.cameras, height=request.image_height, width=request.image_width, clock=clock
    )
    for camera in cameras.values():
        undo.callback(camera.close)  # type: ignore[attr-defined]
    watches.update(camera_watches(cameras, clock))
    if options["force"] == "robot":
        force = BiasedForceSensor(MountedWrench(arm, arm, axes="base", sign=-1.0), clock)
    else:
        force = make_force(options["force"], arm, clock, subscribe)
    return FrankaRig(
        arm=arm, gripper=gripper, clock=clock, tracker=tracker, cameras=dict(cameras),
        force=force, sensors=dict(sensors), watches=watches,
    )


def _hand(franky: Any, robot_ip: str) -> Any:
    try:
        return franky.Gripper(robot_ip)
    except (franky.Exception, RuntimeError) as error:
        why = " ".join(str(error).split())
        raise StaleDataError(
            f"no Franka hand answers at {robot_ip}: {why}; --rig gripper=none does without"
        ) from None
