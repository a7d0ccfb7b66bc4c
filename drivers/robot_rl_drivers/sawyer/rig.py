"""Backend ``ros1``: a Sawyer, its gripper, and what is around it, over ROS 1."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from robot_rl.errors import InvalidInputError, StaleDataError, unknown_name
from robot_rl.interfaces import BodyState, ForceSensor, Gripper, ObjectTracker, Rig, RigRequest
from robot_rl.ros.ros1 import Ros1Session, default_master_uri
from robot_rl.safety.cameras import camera_watches
from robot_rl.safety.latch import resolved
from robot_rl.sensors import BiasedForceSensor
from robot_rl_drivers.clock import MonotonicClock
from robot_rl_drivers.options import number
from robot_rl_drivers.ros_tracker import RosTracker
from robot_rl_drivers.sawyer.arm import DEFAULT_TIMEOUT_S, LONGEST_TIMEOUT_S, PERIOD_S, SawyerArm
from robot_rl_drivers.sawyer.force import SawyerWrench
from robot_rl_drivers.sawyer.gripper import NoGripper, SawyerGripper
from robot_rl_drivers.sensors.factory import make_force, make_sensors, sensor_options

OPTIONS = {
    "master_uri": "the ROS 1 master, on the robot (default: ROS_MASTER_URI)",
    "mode": "trajectory, position or velocity (default: trajectory)",
    "command_timeout_s": "after how long without commands the robot gives up (default: 0.17)",
    "max_gap_s": "how late a set-point may be before the stream is stopped (default: 0.05)",
    "gripper": "electric or none (default: electric)",
    "tracker": "ros or none (default: ros, topics /robot_rl/bodies and /robot_rl/joints)",
    "force": "endpoint (the robot's own estimate, the default), topic:/NAME or none",
    "wrench": "exerted or felt, the sense of the robot's estimate (default: exerted)",
}
"""What ``RigRequest.options`` may say, besides ``sensor_<name>`` for the scene's sensors."""
_FIRST_S = 1.0
_CHOICES = {"gripper": ("electric", "none"), "tracker": ("ros", "none")}


class NoTracker:
    """In place of a tracker where nothing is tracked."""

    def body(self, name: str, max_age_s: float) -> BodyState:
        raise StaleDataError(f"the body {name!r} is not tracked (tracker=none)")

    def joint(self, name: str, max_age_s: float) -> tuple[float, float]:
        raise StaleDataError(f"the joint {name!r} is not tracked (tracker=none)")


def make_rig(request: RigRequest) -> Rig:
    """Connect to a Sawyer. It is neither enabled nor moved by that.

    ``request.options`` are those of :data:`OPTIONS`; cameras are those of ``request.cameras``.
    ``address`` of the rig is the master's with ``/right``, the same however it was spelt.

    Raises:
        InvalidInputError: another robot than sawyer, or an option that cannot be used.
        MissingDependencyError: rospy is not installed.
        RobotRLError: no master or no robot answers.
        SafetyError: the robot's limits are narrower than those of its description.
    """
    options = _checked(request)
    timeout_s, gap_s = _timing(options)
    clock = MonotonicClock()
    session = Ros1Session(options.get("master_uri"), name="robot_rl")
    opened: list[Any] = [session]
    try:
        gripper: SawyerGripper | NoGripper = NoGripper()
        if options.get("gripper", "electric") == "electric":
            gripper = SawyerGripper(session, request.robot, clock)
        arm = SawyerArm(
            session, request.robot, clock,
            mode=options.get("mode", "trajectory"),
            command_timeout_s=timeout_s,
            max_gap_s=gap_s,
            recover_hooks=(gripper.recover,),
        )
        opened.insert(0, arm)
        arm.wait()
        tracker: ObjectTracker = NoTracker()
        if options.get("tracker", "ros") == "ros":
            tracker = RosTracker(request.scene, clock, session.subscribe)
        force: ForceSensor | None = None
        if options.get("force", "endpoint") not in ("endpoint", "none"):
            force = make_force(options["force"], arm, clock, session.subscribe)
        elif options.get("force") != "none":
            sense = options.get("wrench", "exerted")
            force = BiasedForceSensor(SawyerWrench(session, arm, clock, sense), clock)
        sensors = make_sensors(request.scene, options, clock, session.subscribe)
        _hear(gripper, tracker, force, request)
        opened += sensors.values()
        cameras = _cameras(request, clock)
    except BaseException:
        for part in opened:
            part.close()
        raise
    watches = {"gripper": gripper.watch, **camera_watches(cameras, clock)}
    return Rig(
        arm=arm, gripper=gripper, clock=clock, tracker=tracker, cameras=cameras, force=force,
        sensors=sensors, watches=watches, address=f"{resolved(session.master_uri)}/right",
    )


def _hear(
    gripper: Gripper, tracker: ObjectTracker, force: ForceSensor | None, request: RigRequest
) -> None:
    """Let everything say its first word. What stays silent is told of when it is read."""
    moving = [body.name for body in request.scene.bodies if body.motion != "fixed"]
    reads: list[Callable[[], Any]] = [lambda: gripper.opening(_FIRST_S)]
    if not isinstance(tracker, NoTracker):
        reads += [partial(tracker.body, name, _FIRST_S) for name in moving]
    if force is not None:
        reads.append(partial(force.wrench, _FIRST_S))
    end_s = time.monotonic() + _FIRST_S
    while reads and time.monotonic() < end_s:
        try:
            reads[0]()
            reads.pop(0)
        except StaleDataError:
            time.sleep(0.005)


def _checked(request: RigRequest) -> Mapping[str, str]:
    if request.robot.name != "sawyer":
        raise InvalidInputError(
            f"backend 'ros1' drives a Sawyer, not robot {request.robot.name!r}; valid: sawyer"
        )
    known = (*OPTIONS, *sensor_options(request.scene))
    for key, value in request.options.items():
        if key not in known:
            raise unknown_name("option of the ros1 rig", key, known)
        if key in _CHOICES and value not in _CHOICES[key]:
            raise unknown_name(key, value, _CHOICES[key])
    return {"master_uri": default_master_uri(), **request.options}


def _timing(options: Mapping[str, str]) -> tuple[float, float | None]:
    """``command_timeout_s``, and ``max_gap_s`` or None where it is left to the driver."""
    timeout_s, gap_s = DEFAULT_TIMEOUT_S, None
    if "command_timeout_s" in options:
        timeout_s = number(options, "command_timeout_s", 4.0 * PERIOD_S, LONGEST_TIMEOUT_S, "s")
    if "max_gap_s" in options:
        gap_s = number(options, "max_gap_s", PERIOD_S, timeout_s, "s")
    return timeout_s, gap_s


def _cameras(request: RigRequest, clock: MonotonicClock) -> dict[str, Any]:
    if not request.cameras:
        return {}
    from robot_rl_drivers.cameras import make_cameras

    return make_cameras(
        request.cameras, height=request.image_height, width=request.image_width, clock=clock
    )
