"""Records a ROS 2 bag of a simulated arm that pushes a puck, as a robot would leave it.

No ROS is needed: the public ``rosbags`` package writes the bag. Joint states come at 100 Hz, a
camera at 30 Hz of which some frames are lost and some arrive late, commands at 10 Hz, and a marker
says when an episode begins and ends. ``examples/maps/push_bag.yaml`` is its mapping:

    python examples/record_bag.py --out push_bag --episodes 20
    robot-rl data import --from rosbag2 push_bag --map examples/maps/push_bag.yaml --rate 10 \\
        --out push_data
    robot-rl pretrain --agent iql --data push_data --out push_run --steps 2000
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from robot_rl.envs.factory import make_env
from robot_rl.envs.robot_env import RobotEnv
from robot_rl.envs.scripted import ScriptedPolicy
from robot_rl.errors import RobotRLError

# When the recording begins: 1 January 2026, [ns since 1970].
EPOCH_NS = 1_767_225_600 * 10**9
JOINT_PERIOD_S = 0.01
CAMERA_PERIOD_S = 1.0 / 30.0
PAUSE_S = 1.0


class SteppedClock:
    """A rig's clock that stops on its way wherever something is to be measured."""

    def __init__(self, clock: Any, measure: Callable[[float], None]) -> None:
        self.clock, self.measure = clock, measure
        self.next_joint_s = self.next_camera_s = 0.0

    def now_s(self) -> float:
        return float(self.clock.now_s())

    def sleep_until(self, time_s: float) -> None:
        while True:
            until = min(time_s, self.next_joint_s, self.next_camera_s)
            self.clock.sleep_until(until)
            self.measure(until)
            if until >= time_s - 1e-9:
                return


class Recorder:
    """Writes what the arm, its camera and its controller publish."""

    def __init__(self, writer: Writer, args: argparse.Namespace, env: RobotEnv) -> None:
        self.env, self.writer, self.args = env, writer, args
        self.store = get_typestore(Stores.ROS2_HUMBLE)
        self.rng = np.random.default_rng([args.seed, 7])
        self.connections: dict[str, Any] = {}
        self.pending: list[tuple[int, str, str, Any]] = []
        self.joints = [joint.name for joint in env.rig.arm.spec.joints]
        self.clock = SteppedClock(env.rig.clock, self.measure)
        self.offset_s = 0.0
        self.now_s = 0.0
        self.frames = self.lost = self.late = 0
        env.rig.clock = self.clock

    def begin(self) -> None:
        """Call after a reset: the time of the bag goes on, whatever the simulation's does."""
        start = self.clock.now_s()
        self.offset_s = self.now_s + PAUSE_S - start
        self.clock.next_joint_s = self.clock.next_camera_s = start
        # The camera never misses the first frame of an episode here.
        self.measure(start, certain=True)
        goal = self.env.goal
        self.publish("/goal", "geometry_msgs/msg/PointStamped", start, point=self.new(
            "geometry_msgs/msg/Point", x=float(goal[0]), y=float(goal[1]), z=0.0))
        self.publish("/episode", "std_msgs/msg/Bool", start, data=True)

    def command(self, delta_m: np.ndarray, time_s: float) -> None:
        self.publish("/command/delta", "geometry_msgs/msg/Vector3Stamped", time_s,
                     vector=self.vector(delta_m))

    def end(self, success: bool) -> None:
        """Call after the last step: says how it went, and writes the episode to the bag."""
        now = self.clock.now_s()
        self.publish("/success", "std_msgs/msg/Bool", now, data=success)
        self.publish("/episode", "std_msgs/msg/Bool", now, delay_s=0.001, data=False)
        self.now_s = now + self.offset_s
        for stamp, topic, kind, message in sorted(self.pending, key=lambda entry: entry[0]):
            if topic not in self.connections:
                self.connections[topic] = self.writer.add_connection(
                    topic, kind, typestore=self.store)
            self.writer.write(self.connections[topic], stamp,
                              self.store.serialize_cdr(message, kind))
        self.pending.clear()

    def measure(self, time_s: float, certain: bool = False) -> None:
        """Publish whatever is due at ``time_s`` of the simulation."""
        if time_s >= self.clock.next_joint_s - 1e-9:
            self.clock.next_joint_s += JOINT_PERIOD_S
            self._state(time_s)
        if time_s >= self.clock.next_camera_s - 1e-9:
            self.clock.next_camera_s += CAMERA_PERIOD_S
            self._frame(time_s, certain)

    def _state(self, time_s: float) -> None:
        rig, view = self.env.rig, self.env.view()
        arm, puck = rig.arm.state(1.0), view.body("puck")
        self.publish("/joint_states", "sensor_msgs/msg/JointState", time_s, name=self.joints,
                     position=arm.position_rad.astype(float),
                     velocity=arm.velocity_rad_s.astype(float), effort=np.zeros(0))
        self.publish("/tool/position", "geometry_msgs/msg/PointStamped", time_s, point=self.new(
            "geometry_msgs/msg/Point", **dict(zip("xyz", map(float, view.tool_m), strict=True))))
        self.publish("/tool/velocity", "geometry_msgs/msg/Vector3Stamped", time_s,
                     vector=self.vector(view.tool_velocity_m_s))
        ahead = self.env.safety.setpoint_tool_m - view.tool_m
        self.publish("/tool/to_setpoint", "geometry_msgs/msg/Vector3Stamped", time_s,
                     vector=self.vector(ahead))
        self.publish("/puck/position", "geometry_msgs/msg/PointStamped", time_s, point=self.new(
            "geometry_msgs/msg/Point", **dict(zip("xyz", map(float, puck.position_m),
                                                  strict=True))))
        self.publish("/puck/velocity", "geometry_msgs/msg/Vector3Stamped", time_s,
                     vector=self.vector(puck.velocity_m_s))
        self.publish("/puck/from_tool", "geometry_msgs/msg/Vector3Stamped", time_s,
                     vector=self.vector(puck.position_m - view.tool_m))

    def _frame(self, time_s: float, certain: bool) -> None:
        self.frames += 1
        if not certain and self.rng.random() < self.args.lost:
            self.lost += 1
            return
        delay = float(self.rng.uniform(0.01, 0.02))
        if self.rng.random() < self.args.late:
            self.late += 1
            delay += float(self.rng.uniform(0.05, 0.2))
        image = self.env.rig.cameras["front"].read(1.0).image
        topic = "/camera/image_raw"
        if self.args.compressed:
            import cv2

            data = cv2.imencode(".jpg", np.ascontiguousarray(image[..., ::-1]))[1].reshape(-1)
            self.publish(f"{topic}/compressed", "sensor_msgs/msg/CompressedImage", time_s,
                         delay_s=delay, format="rgb8; jpeg compressed bgr8", data=data)
            return
        height, width = image.shape[:2]
        self.publish(topic, "sensor_msgs/msg/Image", time_s, delay_s=delay, height=height,
                     width=width, encoding="rgb8", is_bigendian=0, step=3 * width,
                     data=np.ascontiguousarray(image).reshape(-1))

    def publish(self, topic: str, kind: str, time_s: float, delay_s: float = 0.0,
                **values: Any) -> None:
        """Measured at ``time_s`` of the simulation, received ``delay_s`` later."""
        stamp = EPOCH_NS + round((time_s + self.offset_s) * 1e9)
        if "std_msgs" not in kind:
            time = self.new("builtin_interfaces/msg/Time", sec=stamp // 10**9,
                            nanosec=stamp % 10**9)
            values["header"] = self.new("std_msgs/msg/Header", stamp=time, frame_id="workspace")
        message = self.new(kind, **values)
        self.pending.append((stamp + round(delay_s * 1e9), topic, kind, message))

    def vector(self, values: Any) -> Any:
        x, y, z = (float(value) for value in values)
        return self.new("geometry_msgs/msg/Vector3", x=x, y=y, z=z)

    def new(self, kind: str, **values: Any) -> Any:
        return self.store.types[kind](**values)


def record(args: argparse.Namespace) -> dict[str, int]:
    """Drive the arm by a script and record it; how many of what were written."""
    plugin = StoragePlugin.SQLITE3 if args.storage == "sqlite3" else StoragePlugin.MCAP
    env = make_env("Push", args.robot, args.backend, image_size=args.image_size)
    try:
        with Writer(args.out, version=8, storage_plugin=plugin) as writer:
            recorder = Recorder(writer, args, env)
            policy = ScriptedPolicy(env, args.quality, args.seed)
            successes = 0
            for number in range(args.episodes):
                env.reset(seed=args.seed if number == 0 else None)
                policy.reset()
                recorder.begin()
                done, info = False, {"is_success": False}
                while not done:
                    action, now = policy.act(), recorder.clock.now_s()
                    _, _, terminated, truncated, info = env.step(action)
                    # What the safety filter let through is what the arm was told.
                    recorder.command(info["executed_action"][:3] * env.step_m, now)
                    done = terminated or truncated
                recorder.end(bool(info["is_success"]))
                successes += bool(info["is_success"])
                if not args.quiet:
                    print(f"\rrecorded {number + 1} of {args.episodes} episodes", end="",
                          file=sys.stderr, flush=True)
    finally:
        env.close()
    if not args.quiet:
        print(file=sys.stderr)
    return {"episodes": args.episodes, "successes": successes, "frames": recorder.frames,
            "lost": recorder.lost, "late": recorder.late}


def share(text: str) -> float:
    value = float(text)
    if not 0.0 <= value <= 1.0:
        raise argparse.ArgumentTypeError(f"{text} should be in [0, 1]")
    return value


def count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} should be at least 1")
    return value


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the bag, new")
    parser.add_argument("--episodes", type=count, default=20, help="of 5 s each")
    parser.add_argument("--robot", default="sawyer", help="sawyer, panda or fr3")
    parser.add_argument("--backend", default="mujoco", help="mujoco or pybullet")
    parser.add_argument("--quality", type=share, default=0.8, help="of the scripted operator")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--image-size", type=int, default=64, help="pixels a side")
    parser.add_argument("--lost", type=share, default=0.05, help="share of frames never received")
    parser.add_argument("--late", type=share, default=0.05, help="share received 50-200 ms late")
    parser.add_argument("--compressed", action="store_true", help="frames as JPEG")
    parser.add_argument("--storage", choices=("mcap", "sqlite3"), default="mcap")
    parser.add_argument("--quiet", action="store_true")
    args = parser.parse_args(argv)
    if args.out.exists():
        parser.error(f"{args.out} is already there")
    try:
        said = record(args)
    except RobotRLError as error:
        parser.error(str(error))
    print(f"{args.out}: " + ", ".join(f"{value} {key}" for key, value in said.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
