"""A simulated Franka behind franka_ros2 and CRISP: a process with their topics, services and
actions, its arm moved by a physics engine in real time."""

from __future__ import annotations

import array
import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from robot_rl.errors import InvalidInputError, unknown_name
from robot_rl.interfaces import Array
from robot_rl.kinematics import quat_from_rotation, rotation_from_quat
from robot_rl.ros import runtime
from robot_rl.ros.runtime import DEFAULT, LATCHED, SENSOR_DATA, message, native, service
from robot_rl_sim.crisp_control import CONTROLLERS, FrankaController
from robot_rl_sim.crisp_gripper import STATE_HZ, CrispGripper
from robot_rl_sim.robot_process import Beat, ControlPort, Physics, Record, stop_on_signals
from robot_rl_sim.urdf_writer import urdf_text

ARMS = ("fr3", "panda")
FAULTS = ("estop", "stuck", "nan", "silent", "deaf", "reflex", "push", "die", "clear")
_MODES = {"idle": 1, "move": 2, "reflex": 4, "user_stopped": 5}
START_M = (0.0, 0.0, 0.15)
"""Where the tool is at the beginning, in the workspace frame [m]."""
START_S = 1.0
_REPORT_HZ = 50.0
_TRACKER_HZ = 50.0
_LOOK_HZ = 10.0


def run(options: Any, ready: Callable[[Mapping[str, Any]], None]) -> dict[str, Any]:
    """Simulate until a signal comes or ``options.duration_s`` is over; returns what happened.

    Raises:
        InvalidInputError: an option cannot be used.
    """
    if options.robot not in ARMS:
        raise unknown_name("Franka", options.robot, ARMS)
    domain_id = options.domain_id if options.domain_id >= 0 else None
    physics = Physics(options.robot, options)
    node = runtime.make_node(
        "simulated_franka", namespace=options.namespace, domain_id=domain_id,
        network=options.network,
    )
    try:
        robot = SimulatedFranka(physics, node, options)
        with runtime.Spinner(node), stop_on_signals() as stop:
            port = ControlPort(options.control_port, robot.control) if (
                options.control_port >= 0) else None
            try:
                ready({
                    "robot": options.robot, "namespace": node.get_namespace(),
                    "domain_id": runtime.domain_from(domain_id),
                    **({} if port is None else {"control_port": port.port}),
                })
                values = robot.run(stop, options.duration_s)
            finally:
                if port is not None:
                    port.close()
        if options.record:
            robot.record.save(options.record)
        return values
    finally:
        runtime.destroy(node)
        physics.close()


class SimulatedFranka:
    """The robot's ROS side round a :class:`Physics`."""

    def __init__(self, physics: Physics, node: Any, options: Any) -> None:
        if not 10.0 <= options.rate_hz <= 1.0 / physics.step_s + 1e-9:
            raise InvalidInputError(
                f"rate_hz is {options.rate_hz}, should be in [10, {1.0 / physics.step_s:g}]"
            )
        self.physics, self.node, self.options = physics, node, options
        self.spec = physics.spec
        self.record = Record()
        self.controller = FrankaController(self.spec, options.force_threshold_n)
        self.controller.reference = self._lower()
        self.controller.switch([], [self.controller.active])
        if not options.inactive:
            self.controller.switch(["joint_impedance_controller"], [])
        prefix = f"{options.arm_prefix.rstrip('_')}_" if options.arm_prefix else ""
        self._names = [prefix + name for name in self.spec.joint_names]
        fingers = [f"{prefix}{self.spec.name}_finger_joint{i}" for i in (1, 2)]
        self._fault = ""
        self._push_n = 0.0
        self._crowded = False
        self._frozen: Any = None
        self._measured = physics.joints()
        self._wrench = np.zeros(6)
        self.gripper = CrispGripper(
            node, f"{prefix}{self.spec.name}_gripper", self.spec.gripper, fingers
        )
        self._listen()
        self._publish_with()

    def _lower(self) -> Array:
        """Bring the tool from where the home posture has it down over the table, before time
        begins; the posture (n,) [rad] it ends in."""
        home = self.physics.joints()[0]
        pose = self.controller.kinematics.forward(home)
        pose[:3, 3] = np.array(self.spec.workspace_origin_m) + START_M
        found = self.controller.kinematics.inverse(pose, home)
        steps = round(START_S / self.physics.step_s)
        for i in range(1, steps + 1):
            share = i / steps
            self.physics.step(home + share * share * (3.0 - 2.0 * share) * (found.q_rad - home))
        return found.q_rad

    # What it offers.

    def _listen(self) -> None:
        node = self.node
        node.create_subscription(
            message("sensor_msgs/msg/JointState"), "target_joint", self._on_joint,
            native(runtime.QoS(depth=1000)),  # each counts, for the record
        )
        node.create_subscription(
            message("geometry_msgs/msg/PoseStamped"), "target_pose", self._on_pose, native(DEFAULT)
        )
        node.create_service(
            service("controller_manager_msgs/srv/ListControllers"),
            "controller_manager/list_controllers", self._on_list,
        )
        node.create_service(
            service("controller_manager_msgs/srv/SwitchController"),
            "controller_manager/switch_controller", self._on_switch,
        )
        self._recovery = runtime.action("franka_msgs/action/ErrorRecovery")
        self._server = runtime.action_server(
            node, self._recovery, "action_server/error_recovery", self._on_recovery
        )

    def _publish_with(self) -> None:
        node, sensor = self.node, native(SENSOR_DATA)

        def publisher(kind: str, topic: str, qos: Any = sensor) -> tuple[Any, Any]:
            made = message(kind)
            return made, node.create_publisher(made, topic, qos)

        self._joint_states = publisher("sensor_msgs/msg/JointState", "joint_states")
        self._pose = publisher("geometry_msgs/msg/PoseStamped", "current_pose")
        self._twist = publisher("geometry_msgs/msg/TwistStamped", "current_twist")
        self._report = publisher(
            "franka_msgs/msg/FrankaRobotState", "franka_robot_state_broadcaster/robot_state",
            native(DEFAULT),
        )
        text, description = publisher("std_msgs/msg/String", "robot_description", native(LATCHED))
        urdf = urdf_text(self.spec)
        for name, ours in zip(self.spec.joint_names, self._names, strict=True):
            urdf = urdf.replace(f'joint name="{name}"', f'joint name="{ours}"')
        description.publish(text(data=urdf))
        pose, number = "geometry_msgs/msg/PoseStamped", "std_msgs/msg/Float64"
        self._bodies = {
            name: publisher(pose, f"/robot_rl/bodies/{name}") for name, _ in self.physics.bodies()
        }
        self._scene_joints = publisher("sensor_msgs/msg/JointState", "/robot_rl/joints")
        self._sensors = {
            name: publisher(number, f"/robot_rl/sensors/{name}")
            for name in self.physics.rig.sensors
        }
        self._cameras = {
            name: publisher("sensor_msgs/msg/Image", f"/robot_rl/cameras/{name}/image_raw")
            for name in self.options.cameras
        }

    # What it is told, by ROS's thread.

    def _on_joint(self, target: Any) -> None:
        now_s = time.monotonic()
        position = np.array(target.position, dtype=np.float64)
        velocity = np.array(target.velocity, dtype=np.float64)
        if len(velocity) != len(position):
            velocity = np.zeros_like(position)
        places = {name: i for i, name in enumerate(target.name)}
        if not set(self._names) <= set(places) or len(position) != len(places):
            self.controller.counts["ignored"] += 1
            return
        order = [places[name] for name in self._names]
        self.record.add(time_s=now_s, position_rad=position[order], velocity_rad_s=velocity[order])
        if not self._ignores():
            self.controller.target_joint(position[order], velocity[order], now_s)

    def _on_pose(self, target: Any) -> None:
        point, turn = target.pose.position, target.pose.orientation
        pose = np.eye(4)
        quat = np.array([turn.x, turn.y, turn.z, turn.w])
        if np.isfinite(quat).all() and np.linalg.norm(quat) > 0.5:
            pose[:3, :3] = rotation_from_quat(quat)
            pose[:3, 3] = point.x, point.y, point.z
            if not self._ignores():
                self.controller.target_pose(pose, time.monotonic())

    def _ignores(self) -> bool:
        if self._crowded or self._fault == "deaf":
            self.controller.counts["ignored"] += 1
            return True
        return False

    def _on_list(self, request: Any, response: Any) -> Any:
        kind = message("controller_manager_msgs/msg/ControllerState")
        running = {self.controller.active, *CONTROLLERS[4:]}
        response.controller = [
            kind(name=name, type=f"simulated/{name}",
                 state="active" if name in running else "inactive")
            for name in CONTROLLERS
        ]
        return response

    def _on_switch(self, request: Any, response: Any) -> Any:
        response.ok = self.controller.switch(
            list(request.activate_controllers), list(request.deactivate_controllers)
        )
        return response

    def _on_recovery(self, goal: Any) -> Any:
        if self.controller.recover():
            goal.succeed()
        else:
            goal.abort()
        return self._recovery.Result()

    def control(self, request: dict[str, Any]) -> dict[str, Any]:
        """Do what a test asks for: ``{"fault": NAME}``, then say how things stand."""
        fault = request.get("fault", "")
        if fault:
            if fault not in FAULTS:
                raise unknown_name("fault", fault, FAULTS)
            if fault == "die":
                os._exit(9)
            if fault in ("estop", "clear") and (fault == "estop") != (
                    self.controller.mode == "user_stopped"):
                if fault == "estop" or self.controller.mode == "user_stopped":
                    self.controller.user_stop(fault == "estop")
            if fault == "reflex":
                self.controller.reflex("cartesian_reflex")
            self._push_n = float(request.get("force_n", 100.0)) if fault == "push" else 0.0
            self._frozen = None
            self._fault = "" if fault == "clear" else fault
        position, velocity, _ = self._measured
        return {
            "fault": self._fault, "mode": self.controller.mode, "active": self.controller.active,
            "errors": sorted(self.controller.errors), **self.controller.counts,
            "position_rad": position.tolist(), "velocity_rad_s": velocity.tolist(),
            "reference_rad": self.controller.reference.tolist(),
            "width_m": self.gripper.width_m,
        }

    # The physics' thread.

    def run(self, stop: threading.Event, duration_s: float) -> dict[str, Any]:
        """Go on until ``stop`` is set."""
        step_s = self.physics.step_s
        beat = Beat(step_s)
        every = {
            self._publish_states: self.options.rate_hz,
            self._publish_report: _REPORT_HZ,
            self.gripper.publish: STATE_HZ,
            self._publish_scene: _TRACKER_HZ,
            self._publish_images: self.options.camera_hz if self._cameras else 0.0,
            self._look_round: _LOOK_HZ,
        }
        steps = {job: max(1, round(1.0 / (rate * step_s))) for job, rate in every.items() if rate}
        most = round(duration_s / step_s) if duration_s > 0.0 else None
        tick = 0
        while not stop.is_set() and (most is None or tick < most):
            self._step(step_s)
            for job, ticks in steps.items():
                if tick % ticks == 0:
                    job()
            tick += 1
            beat.wait()
        return {**beat.report(), **self.controller.counts, "recorded": len(self.record)}

    def _step(self, step_s: float) -> None:
        position, velocity, _ = self._measured
        force = self._push_n + float(np.linalg.norm(self._wrench[:3]))
        self.controller.watch(position, velocity, force)
        self.physics.step(self.controller.step(time.monotonic(), step_s))
        self._measured = self.physics.joints()
        rig = self.physics.rig
        if rig.force is not None:
            wrench = rig.force.wrench(0.0)
            self._wrench = np.concatenate([wrench.force_n, wrench.torque_nm])
        wanted = self.gripper.step(rig.gripper.opening(0.0))
        if wanted is not None:
            rig.gripper.command(wanted)

    def _look_round(self) -> None:
        self._crowded = any(
            self.node.count_publishers(target) > 1 for target in ("target_joint", "target_pose")
        )

    def _stamp(self) -> Any:
        return self.node.get_clock().now().to_msg()

    def _publish_states(self) -> None:
        if self._fault == "silent":
            return
        if self._fault == "stuck" and self._frozen is not None:
            self._joint_states[1].publish(self._frozen)
            return
        position, velocity, effort = self._measured
        if self._fault == "nan":
            position = np.full_like(position, np.nan)
        kind, publisher = self._joint_states
        state = kind(name=self._names, position=position.tolist(), velocity=velocity.tolist(),
                     effort=effort.tolist())
        state.header.stamp = self._stamp()
        self._frozen = state
        publisher.publish(state)
        self._publish_tool(state.header.stamp)

    def _publish_tool(self, stamp: Any) -> None:
        position, velocity, _ = self._measured
        tool, jacobian = self.controller.kinematics.forward_and_jacobian(position)
        kind, publisher = self._pose
        publisher.publish(_pose(kind(), tool[:3, 3], quat_from_rotation(tool[:3, :3]), stamp,
                                "base"))
        kind, publisher = self._twist
        twist, values = kind(), jacobian @ velocity
        twist.header.stamp, twist.header.frame_id = stamp, "base"
        for part, three in ((twist.twist.linear, values[:3]), (twist.twist.angular, values[3:])):
            part.x, part.y, part.z = (float(v) for v in three)
        publisher.publish(twist)

    def _publish_report(self) -> None:
        kind, publisher = self._report
        report = kind()
        report.header.stamp = self._stamp()
        report.robot_mode = _MODES[self.controller.mode]
        report.measured_joint_state.name = self._names
        report.measured_joint_state.position = self._measured[0].tolist()
        report.measured_joint_state.velocity = self._measured[1].tolist()
        report.control_command_success_rate = 1.0
        for flags, names in ((report.current_errors, self.controller.errors),
                             (report.last_motion_errors, self.controller.last_errors)):
            for name in names:
                setattr(flags, name, True)
        # The robot reports what the tool does to the world.
        force, torque = report.o_f_ext_hat_k.wrench.force, report.o_f_ext_hat_k.wrench.torque
        force.x, force.y, force.z, torque.x, torque.y, torque.z = (-self._wrench).tolist()
        publisher.publish(report)

    def _publish_scene(self) -> None:
        stamp = self._stamp()
        for name, body in self.physics.bodies():
            kind, publisher = self._bodies[name]
            publisher.publish(_pose(kind(), body.position_m, body.quat_xyzw, stamp, "workspace"))
        names, positions, velocities = self.physics.scene_joints()
        if names:
            kind, publisher = self._scene_joints
            state = kind(name=names, position=positions, velocity=velocities)
            state.header.stamp = stamp
            publisher.publish(state)
        for name, sensor in self.physics.rig.sensors.items():
            kind, publisher = self._sensors[name]
            publisher.publish(kind(data=float(sensor.read(0.0).value)))

    def _publish_images(self) -> None:
        for name, (kind, publisher) in self._cameras.items():
            image = self.physics.rig.cameras[name].read(0.0).image
            height, width = image.shape[:2]
            frame = kind(height=height, width=width, encoding="rgb8", step=3 * width,
                         data=array.array("B", image.tobytes()))
            frame.header.stamp, frame.header.frame_id = self._stamp(), name
            publisher.publish(frame)


def _pose(pose: Any, position_m: Array, quat_xyzw: Array, stamp: Any, frame: str) -> Any:
    """Fill a PoseStamped."""
    pose.header.stamp, pose.header.frame_id = stamp, frame
    point, turn = pose.pose.position, pose.pose.orientation
    point.x, point.y, point.z = (float(v) for v in position_m)
    turn.x, turn.y, turn.z, turn.w = (float(v) for v in quat_xyzw)
    return pose
