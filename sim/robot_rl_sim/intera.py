"""A simulated Sawyer that speaks Intera over ROS 1, as a process of its own.

The robot's own half of the protocol and nothing of the driver's. What a tracker, sensors and
cameras would say of the scene goes out on ``/robot_rl/...``. Run by ``robot-rl sim intera``.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from robot_rl.errors import InvalidInputError, unknown_name
from robot_rl.interfaces import Array
from robot_rl.kinematics import Kinematics, quat_from_rotation
from robot_rl.ros.ros1 import Ros1Session, default_master_uri
from robot_rl.ros.ros1_master import RosMaster
from robot_rl_sim.intera_control import InteraController
from robot_rl_sim.intera_io import Assembly, GripperDevice, device_status
from robot_rl_sim.robot_process import Beat, ControlPort, Physics, Record, stop_on_signals

_LIMB = "/robot/limb/right"
_STATE_HZ, _SLOW_HZ = 50.0, 10.0
_BEFORE, _AFTER = ("head_pan",), ("torso_t0",)
"""Joints that the robot reports besides the arm's, at zero."""

FAULTS = ("silent", "frozen", "frozen_values", "nan", "reorder", "collision", "cuff", "deaf",
          "hang", "push", "narrow_limits", "drop_joint", "gripper_error")
"""What the control port can do to the robot; see :meth:`SimulatedSawyer.control`."""
_VALUES = {"nan": (0, 6), "drop_joint": (0, 6), "hang": (0.0, 10.0), "narrow_limits": (0.0, 10.0)}


def run(options: Any, ready: Callable[[Mapping[str, Any]], None]) -> dict[str, Any]:
    """Run a simulated Sawyer until SIGINT, SIGTERM or ``options.duration_s``; what happened.

    Raises:
        InvalidInputError: an option cannot be used.
        RobotRLError: no ROS master answers.
        MissingDependencyError: rospy, rosmaster or the engine is not installed.
    """
    if not 20.0 <= options.rate_hz <= 500.0:
        raise InvalidInputError(f"rate_hz is {options.rate_hz}, should be in [20, 500]")
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(stop_on_signals())
        uri = options.master_uri or default_master_uri()
        if options.start_master:
            port = _port_of(options.master_uri) if options.master_uri else None
            uri = stack.enter_context(RosMaster(port)).uri
        robot = SimulatedSawyer(options, uri)
        stack.callback(robot.close)
        ready({"master_uri": uri, "control_port": robot.control_port, "pid": os.getpid()})
        end_s = time.monotonic() + options.duration_s if options.duration_s > 0.0 else np.inf
        while not (stop.is_set() or robot.ended) and time.monotonic() < end_s:
            robot.tick()
        return robot.report()


class SimulatedSawyer:
    """Physics, controller and topics of the robot; :meth:`tick` is its loop."""

    def __init__(self, options: Any, master_uri: str) -> None:
        self.options = options
        self.ended = False
        self.physics = Physics("sawyer", options)
        spec = self.spec = self.physics.spec
        self.kinematics = Kinematics(spec)
        self.controller = InteraController(spec)
        self.assembly = Assembly(enabled=not options.disabled)
        self.controller.enabled = self.assembly.enabled
        self.gripper = GripperDevice(
            2.0 * spec.gripper.finger_stroke_m,
            lambda opening: self.physics.rig.gripper.command(opening),
        )
        self.faults: dict[str, Any] = {}
        self.record = Record()
        self.session = Ros1Session(master_uri, name="simulated_sawyer")
        self.steps = max(1, round(1.0 / (options.rate_hz * self.physics.step_s)))
        self._pushed = np.zeros(len(spec.joints))
        self._frozen: Any = None
        self._restart = threading.Event()
        self._noise = np.random.default_rng(options.seed)
        self._publish_topics()
        self._listen()
        self._send_limits()
        if options.cameras:
            self._send_images(self.session.stamp())  # the first picture takes its time
        self._port = (
            ControlPort(options.control_port, self.control) if options.control_port >= 0 else None
        )
        self.beat = Beat(self.steps * self.physics.step_s)

    @property
    def control_port(self) -> int:
        """The port that takes faults, -1 where there is none."""
        return -1 if self._port is None else self._port.port

    # -- topics -------------------------------------------------------------------------------

    def _publish_topics(self) -> None:
        publish = self.session.publisher
        intera = "intera_core_msgs/"
        self._joints = publish("/robot/joint_states", "sensor_msgs/JointState")
        self._endpoint = publish(f"{_LIMB}/endpoint_state", intera + "EndpointState")
        self._assembly = publish("/robot/state", intera + "RobotAssemblyState")
        self._limits = publish("/robot/joint_limits", intera + "JointLimits", latch=True)
        self._collision = publish(
            f"{_LIMB}/collision_detection_state", intera + "CollisionDetectionState"
        )
        self._gripper = publish(
            "/io/end_effector/right_gripper/state", intera + "IODeviceStatus"
        )
        self._cuff = publish("/io/robot/cuff/state", intera + "IODeviceStatus")
        self._bodies = {
            name: publish(f"/robot_rl/bodies/{name}", "geometry_msgs/PoseStamped")
            for name, _ in self.physics.bodies()
        }
        self._scene_joints = publish("/robot_rl/joints", "sensor_msgs/JointState")
        self._sensors = {
            name: publish(f"/robot_rl/sensors/{name}", "std_msgs/Float64")
            for name in self.physics.rig.sensors
        }
        self._cameras = {
            name: publish(f"/robot_rl/cameras/{name}/image_raw", "sensor_msgs/Image", queue=1)
            for name in self.options.cameras
        }

    def _listen(self) -> None:
        listen = partial(self.session.subscribe, newest_only=False)
        listen(f"{_LIMB}/joint_command", "intera_core_msgs/JointCommand", self._on_command)
        listen(f"{_LIMB}/joint_command_timeout", "std_msgs/Float64", self._on_timeout)
        listen(f"{_LIMB}/set_speed_ratio", "std_msgs/Float64", self._on_ratio)
        listen("/robot/set_super_enable", "std_msgs/Bool", lambda m: self.assembly.enable(m.data))
        listen("/robot/set_super_reset", "std_msgs/Empty", lambda _: self.assembly.reset())
        listen("/robot/set_super_stop", "std_msgs/Empty", lambda _: self.assembly.stop())
        listen("/io/end_effector/right_gripper/command", "intera_core_msgs/IOComponentCommand",
               self.gripper.take)

    def _on_command(self, message: Any) -> None:
        now_s = time.monotonic()
        if "deaf" in self.faults:
            return
        values = {name: list(getattr(message, name))
                  for name in ("position", "velocity", "acceleration")}
        refused = self.controller.take(message.mode, list(message.names), values, now_s)
        if self.options.record and refused is None:
            order = [list(message.names).index(name) for name in self.spec.joint_names]
            rows = {name: np.array(values[name])[order] if values[name]
                    else np.full(len(order), np.nan) for name in values}
            self.record.add(time_s=now_s, mode=message.mode, seq=message.header.seq, **rows)

    def _on_timeout(self, message: Any) -> None:
        if 0.0 < message.data < 10.0:
            self.controller.timeout_s = message.data

    def _on_ratio(self, message: Any) -> None:
        self.controller.speed_ratio = min(max(message.data, 0.0), 1.0)

    # -- the loop -----------------------------------------------------------------------------

    def tick(self) -> None:
        """Move on by one period of the joint states, tell of it, and wait for the next."""
        hang_s = self.faults.pop("hang", 0.0)
        if hang_s:
            time.sleep(hang_s)
        if self._restart.is_set():
            self.physics.restart()
            self.controller.halt(np.array(self.spec.home_rad))
            self._restart.clear()
        self._obey_assembly()
        for step in range(self.steps):
            now_s = self.beat.due_s + step * self.physics.step_s
            target = self.controller.reference(now_s, self.physics.step_s)
            self.physics.step(target + self._pushed)
        tick = self.beat.ticks
        stamp = self.session.stamp()
        position, velocity, effort = self.physics.joints()
        if "silent" not in self.faults:
            self._send_joints(stamp, position, velocity, effort)
        self._send_endpoint(stamp, position, velocity)
        self._send_scene(stamp)
        if self._due(tick, _STATE_HZ):
            self._assembly.publish(self.assembly.message(self._assembly.message))
            collision = self._collision.message(collision_state=bool(self.faults.get("collision")))
            collision.header.stamp = stamp
            self._collision.publish(collision)
        if self._due(tick, 2.0 * _SLOW_HZ):
            self._send_gripper(stamp)
        if self._due(tick, _SLOW_HZ):
            cuff = {"right_cuff": ("bool", bool(self.faults.get("cuff")))}
            self._cuff.publish(device_status(self._cuff.message, "cuff", cuff, stamp))
        if self._cameras and self._due(tick, self.options.camera_hz):
            self._send_images(stamp)
        self.beat.wait()

    def _due(self, tick: int, rate_hz: float) -> bool:
        return tick % max(1, round(1.0 / (rate_hz * self.beat.period_s))) == 0

    def _obey_assembly(self) -> None:
        enabled = self.assembly.enabled
        if self.controller.enabled and not enabled:
            self.controller.enabled = False
            self.controller.halt(self.physics.joints()[0] - self._pushed)
        self.controller.enabled = enabled

    # -- what it tells ------------------------------------------------------------------------

    def _send_joints(self, stamp: Any, position: Array, velocity: Array, effort: Array) -> None:
        if "frozen" in self.faults and self._frozen is not None:
            self._joints.publish(self._frozen)
            return
        names = [*_BEFORE, *self.spec.joint_names, *_AFTER]
        rows = [np.concatenate([np.zeros(len(_BEFORE)), part, np.zeros(len(_AFTER))])
                for part in (position, velocity, effort)]
        if "frozen_values" in self.faults and self._frozen is not None:
            rows = [np.array(part) for part in
                    (self._frozen.position, self._frozen.velocity, self._frozen.effort)]
        if "nan" in self.faults:
            rows[0][len(_BEFORE) + int(self.faults["nan"])] = np.nan
        order = list(range(len(names)))
        if "reorder" in self.faults:
            order = list(np.random.default_rng(self.beat.ticks).permutation(len(names)))
        if "drop_joint" in self.faults:
            order.remove(len(_BEFORE) + int(self.faults["drop_joint"]))
        message = self._joints.message(
            name=[names[i] for i in order], position=[float(rows[0][i]) for i in order],
            velocity=[float(rows[1][i]) for i in order],
            effort=[float(rows[2][i]) for i in order],
        )
        message.header.stamp = stamp
        if not {"frozen", "frozen_values"} & set(self.faults):
            self._frozen = message
        self._joints.publish(message)

    def _send_endpoint(self, stamp: Any, position: Array, velocity: Array) -> None:
        pose, jacobian = self.kinematics.forward_and_jacobian(position)
        message = self._endpoint.message(valid=True)
        message.header.stamp, message.header.frame_id = stamp, "base"
        _fill(message.pose.position, pose[:3, 3])
        _fill(message.pose.orientation, quat_from_rotation(pose[:3, :3]))
        twist = jacobian @ velocity
        _fill(message.twist.linear, twist[:3])
        _fill(message.twist.angular, twist[3:])
        force = self.physics.rig.force
        if force is not None:
            # The robot reports what its joints push the world with.
            wrench = force.wrench(0.0)
            _fill(message.wrench.force, -wrench.force_n)
            _fill(message.wrench.torque, -wrench.torque_nm)
        self._endpoint.publish(message)

    def _send_limits(self) -> None:
        scale = float(self.faults.get("narrow_limits", 1.0))
        spec = self.spec
        self._limits.publish(self._limits.message(
            joint_names=list(spec.joint_names),
            position_lower=list(scale * spec.limits("lower_rad")),
            position_upper=list(scale * spec.limits("upper_rad")),
            velocity=list(scale * spec.limits("velocity_rad_s")),
            accel=list(spec.limits("acceleration_rad_s2")),
            effort=list(spec.limits("torque_nm")),
        ))

    def _send_gripper(self, stamp: Any) -> None:
        opening = self.physics.rig.gripper.opening(0.0)
        self._gripper.publish(self.gripper.status(self._gripper.message, opening, stamp))

    def _send_scene(self, stamp: Any) -> None:
        for name, body in self.physics.bodies():
            message = self._bodies[name].message()
            message.header.stamp, message.header.frame_id = stamp, "workspace"
            _fill(message.pose.position, body.position_m)
            _fill(message.pose.orientation, body.quat_xyzw)
            self._bodies[name].publish(message)
        names, positions, velocities = self.physics.scene_joints()
        if names:
            joints = self._scene_joints.message(
                name=names, position=positions, velocity=velocities
            )
            joints.header.stamp = stamp
            self._scene_joints.publish(joints)
        for name, sensor in self.physics.rig.sensors.items():
            value = sensor.read(0.0).value
            self._sensors[name].publish(self._sensors[name].message(value))

    def _send_images(self, stamp: Any) -> None:
        size = self.options.image_size
        for name, publisher in self._cameras.items():
            image = self.physics.rig.cameras[name].read(0.0).image
            # No two pictures of a real camera are the same.
            noise = self._noise.integers(-1, 2, image.shape, dtype=np.int16)
            image = np.clip(image + noise, 0, 255).astype(np.uint8)
            message = publisher.message(
                height=size, width=size, encoding="rgb8", step=3 * size, data=image.tobytes()
            )
            message.header.stamp, message.header.frame_id = stamp, name
            publisher.publish(message)

    # -- for tests ----------------------------------------------------------------------------

    def control(self, order: dict[str, Any]) -> dict[str, Any]:
        """Do what one line on the control port asks for, and report.

        ``{"fault": NAME, "value": v}`` sets one of :data:`FAULTS`, value null ends it;
        ``{"fault": "estop"}`` presses the emergency stop, and ``{"fault": "clear"}`` ends them all
        and lets the stop come up again. Of the
        robot's own state are ``{"estop": "press" | "release"}``, ``{"enable": true | false}``,
        ``{"error": true}`` and ``{"reset": true}``; ``{"restart": true}`` puts arm and things back
        where they began. Of the process are ``{"save": true}`` (the record), ``{"stop": true}``
        and ``{"die": true}`` (at once, without a word).
        """
        if "fault" in order:
            self._set_fault(str(order["fault"]), order.get("value", True))
        if "estop" in order:
            self.assembly.press() if order["estop"] == "press" else self.assembly.release()
        if order.get("error"):
            self.assembly.fail()
        if order.get("reset"):
            self.assembly.reset()
        if "enable" in order:
            self.assembly.enable(bool(order["enable"]))
        if order.get("restart"):
            self._restart.set()
        if order.get("save"):
            self.record.save(self.options.record)
        if order.get("stop"):
            self.ended = True
        if order.get("die"):
            os._exit(1)
        return self.report()

    def _set_fault(self, name: str, value: Any) -> None:
        if name == "estop":
            self.assembly.press()
            return
        if name == "clear":
            self.assembly.release()
            for each in [*self.faults, "push", "gripper_error"]:
                self._set_fault(each, None)
            return
        if name not in FAULTS:
            raise unknown_name("fault", name, (*FAULTS, "estop", "clear"))
        if value is not None and name in _VALUES:
            value = _number_of(name, value)
        if name == "push":
            pushed = np.array([0.0] if value is None else value, float)
            if pushed.shape not in ((1,), self._pushed.shape) or not np.isfinite(pushed).all():
                raise InvalidInputError(
                    f"push is {value!r}, should be {len(self._pushed)} numbers [rad]"
                )
            self._pushed = np.zeros_like(self._pushed) + pushed
        elif value is None:
            self.faults.pop(name, None)
        else:
            self.faults[name] = value
        if name == "narrow_limits":
            self._send_limits()
        if name == "gripper_error":
            self.gripper.error = value is not None

    def report(self) -> dict[str, Any]:
        """What happened so far, for JSON."""
        return {
            **self.beat.report(), "mode": self.controller.mode, **self.controller.counts,
            "refusals": dict(self.controller.refusals), "timeout_s": self.controller.timeout_s,
            "speed_ratio": self.controller.speed_ratio, "state": self.assembly.as_dict(),
            "registered_again": self.session.registered_again,
            "position_rad": [float(q) for q in self.physics.joints()[0]],
        }

    def close(self) -> None:
        """Leave the ROS graph and let go of the physics."""
        if self._port is not None:
            self._port.close()
        self.session.close()
        if self.options.record:
            self.record.save(self.options.record)
        self.physics.close()


def _port_of(uri: str) -> int | None:
    try:
        return urlsplit(uri).port
    except ValueError:
        raise InvalidInputError(
            f"master_uri is {uri!r}, should look like http://127.0.0.1:11311"
        ) from None


def _number_of(fault: str, value: Any) -> float:
    low, high = _VALUES[fault]
    if not isinstance(value, (int, float)) or not low <= value <= high:
        raise InvalidInputError(f"{fault} is {value!r}, should be a number in [{low:g}, {high:g}]")
    return value


def _fill(target: Any, values: Any) -> None:
    """Put numbers into the fields x, y, z (and w) of a message."""
    for name, value in zip("xyzw", values, strict=False):
        setattr(target, name, float(value))
