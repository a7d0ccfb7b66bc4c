"""How far the two engines are apart, and what they cost: one JSON object per arm.

Kinematics: the tool's pose in MuJoCo, in PyBullet and in robot_rl.kinematics at random postures.
Dynamics: both engines are sent the same joint set-points, from seeded random motions of the tool
in free space (0.25 m/s at most, drawn anew every 0.1 s), and the distance between their tools is
recorded after every period; then the closed gripper pushes a puck along a line in both.
Cost: microseconds of processor time for one control period of 20 physics steps in the Push scene,
reading the arm and the puck included.

  python benchmarks/engine_parity.py --json
  python benchmarks/engine_parity.py --robots panda --seeds 20 --out
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mujoco
import numpy as np

from robot_rl.interfaces import JointSetpoints, Placement, Rig, RigRequest
from robot_rl.kinematics import Kinematics, rotation_from_quat, rotation_from_rpy, rotation_vector
from robot_rl.specs import BodySpec, Geom, RobotSpec, SceneSpec, list_robots, load_robot
from robot_rl_sim import bullet_engine, mujoco_engine
from robot_rl_sim.urdf_writer import FOLDER

RESULTS = Path(__file__).parent / "results" / "engine_parity.json"
ENGINES = {"mujoco": mujoco_engine, "pybullet": bullet_engine}
PERIOD_S, ROWS, SPEED_M_S = 0.1, 4, 0.25
PUCK = BodySpec("puck", (Geom("cylinder", (0.07, 0.04)),), "free", (0.1, 0.0, 0.02), friction=0.4)


def kinematic_differences(spec: RobotSpec, postures: int) -> dict[str, float]:
    """Largest differences of the tool's pose from robot_rl.kinematics, [m] and [rad]."""
    import pybullet

    kinematics = Kinematics(spec)
    path = str(FOLDER / f"{spec.name}.urdf")
    model = mujoco.MjModel.from_xml_path(path)
    data = mujoco.MjData(model)
    tool = model.body(spec.gripper.tcp_link).id
    client = pybullet.connect(pybullet.DIRECT)
    arm = pybullet.loadURDF(path, useFixedBase=True, physicsClientId=client)
    joints, links = {}, {}
    for i in range(pybullet.getNumJoints(arm, physicsClientId=client)):
        info = pybullet.getJointInfo(arm, i, physicsClientId=client)
        joints[info[1].decode()], links[info[12].decode()] = i, i
    worst = dict.fromkeys(("mujoco_m", "mujoco_rad", "pybullet_m", "pybullet_rad"), 0.0)
    rng = np.random.default_rng(0)
    for _ in range(postures):
        q = rng.uniform(kinematics.lower_rad, kinematics.upper_rad)
        pose = kinematics.forward(q)
        data.qpos[: len(q)] = q
        mujoco.mj_kinematics(model, data)
        for name, angle in zip(spec.joint_names, q, strict=True):
            pybullet.resetJointState(arm, joints[name], angle, physicsClientId=client)
        state = pybullet.getLinkState(
            arm, links[spec.gripper.tcp_link], computeForwardKinematics=True, physicsClientId=client
        )
        poses = {
            "mujoco": (data.xpos[tool], data.xmat[tool].reshape(3, 3)),
            "pybullet": (np.array(state[4]), rotation_from_quat(state[5])),
        }
        for engine, (position, rotation) in poses.items():
            turn = rotation_vector(rotation @ pose[:3, :3].T)
            for key, value in (("m", position - pose[:3, 3]), ("rad", turn)):
                norm = float(np.linalg.norm(value))
                worst[f"{engine}_{key}"] = max(worst[f"{engine}_{key}"], norm)
    pybullet.disconnect(physicsClientId=client)
    return worst


class Session:
    """One arm in both engines, sent the same set-points."""

    def __init__(self, spec: RobotSpec) -> None:
        scene = SceneSpec((PUCK,))
        self.rigs: dict[str, Rig] = {
            name: engine.make_rig(RigRequest(spec, scene, setpoint_period_s=PERIOD_S / ROWS))
            for name, engine in ENGINES.items()
        }
        self.kinematics = Kinematics(spec)
        self.origin_m = np.array(spec.workspace_origin_m)

    def place(self, tool_m: tuple[float, float, float]) -> None:
        self.target = np.eye(4)
        self.target[:3, :3] = rotation_from_rpy((np.pi, 0.0, 0.0))
        self.target[:3, 3] = self.origin_m + tool_m
        self.q = self.kinematics.inverse(self.target).q_rad
        # The arm's redundancy comes to rest first, or the first period would be a leap.
        for _ in range(200):
            self.q, _ = self.kinematics.step(self.q, self.target)
        for rig in self.rigs.values():
            assert rig.scene is not None
            rig.scene.place(self.q, Placement(np.array(tool_m)))

    def advance(self, velocity_m_s: np.ndarray) -> dict[str, np.ndarray]:
        """One control period; the tools' positions (3,) [m] in the base frame."""
        rows = []
        for _ in range(ROWS):
            self.target[:3, 3] += velocity_m_s * (PERIOD_S / ROWS)
            for _ in range(2):
                self.q, _ = self.kinematics.step(self.q, self.target)
            rows.append(self.q)
        tools = {}
        for name, rig in self.rigs.items():
            rig.arm.command(JointSetpoints(np.array(rows), rig.arm.period_s, at=rig.arm.sent()))
            rig.clock.sleep_until(rig.clock.now_s() + PERIOD_S)
            tools[name] = self.kinematics.forward(rig.arm.state(PERIOD_S).position_rad)[:3, 3]
        return tools

    def free_motion(self, seed: int, duration_s: float) -> tuple[list[float], dict[str, float]]:
        """Distances between the tools after every period, and each one's largest tracking error."""
        self.place((0.0, 0.0, 0.2))
        rng = np.random.default_rng(seed)
        distances, errors = [], dict.fromkeys(self.rigs, 0.0)
        for _ in range(round(duration_s / PERIOD_S)):
            velocity = rng.uniform(-SPEED_M_S, SPEED_M_S, 3)
            away = self.target[:3, 3] - self.origin_m - (0.0, 0.0, 0.2)
            velocity = np.where(np.abs(away) > 0.12, -np.sign(away) * np.abs(velocity), velocity)
            tools = self.advance(velocity)
            distances.append(float(np.linalg.norm(tools["mujoco"] - tools["pybullet"])))
            for name, tool in tools.items():
                error = float(np.linalg.norm(tool - self.target[:3, 3]))
                errors[name] = max(errors[name], error)
        return distances, errors

    def push(self, heading_rad: float) -> dict[str, Any]:
        """Where the puck ends up after a push of 0.15 m, and how far the engines differ [m]."""
        direction = np.array([np.cos(heading_rad), np.sin(heading_rad), 0.0])
        puck = np.array(PUCK.position_m)
        start = puck - 0.1 * direction
        self.place((float(start[0]), float(start[1]), 0.02))
        for share in (0.5, *[1.0] * 6, 0.5, 0.0):
            self.advance(SPEED_M_S * share * direction)
        ends = {}
        for name, rig in self.rigs.items():
            rig.clock.sleep_until(rig.clock.now_s() + 1.0)
            ends[name] = rig.tracker.body("puck", PERIOD_S).position_m
        moved = {name: float(np.linalg.norm(end - puck)) for name, end in ends.items()}
        return {
            "moved_m": moved,
            "difference_m": float(np.linalg.norm(ends["mujoco"] - ends["pybullet"])),
        }

    def cost_us(self, rounds: int = 15, periods: int = 20) -> dict[str, float]:
        """Processor time of one period in each engine: the best of several rounds."""
        self.place((0.0, 0.0, 0.1))
        rows = np.tile(self.q, (ROWS, 1))
        costs = {}
        for name, rig in self.rigs.items():
            best = np.inf
            for _ in range(rounds):
                start = time.process_time()
                for _ in range(periods):
                    rig.arm.command(JointSetpoints(rows, rig.arm.period_s, at=rig.arm.sent()))
                    rig.clock.sleep_until(rig.clock.now_s() + PERIOD_S)
                    rig.arm.state(PERIOD_S)
                    rig.tracker.body("puck", PERIOD_S)
                best = min(best, (time.process_time() - start) / periods)
            costs[name] = round(best * 1e6, 1)
        return costs

    def close(self) -> None:
        for rig in self.rigs.values():
            rig.close()


def measure(name: str, postures: int, seeds: int, duration_s: float) -> dict[str, Any]:
    """All figures of one arm."""
    spec = load_robot(name)
    session = Session(spec)
    runs = [session.free_motion(seed, duration_s) for seed in range(seeds)]
    distances = np.array([run[0] for run in runs])
    headings = np.linspace(-0.5, 0.5, 5)
    pushes = [session.push(float(heading)) for heading in headings]
    result = {
        "kinematics_largest_difference": kinematic_differences(spec, postures),
        "free_motion": {
            "seeds": seeds,
            "duration_s": duration_s,
            "tool_difference_end_m": {
                "mean": float(distances[:, -1].mean()),
                "largest": float(distances[:, -1].max()),
            },
            "tool_difference_any_time_m": {
                "mean": float(distances.mean()),
                "largest": float(distances.max()),
            },
            "largest_tracking_error_m": {
                engine: max(run[1][engine] for run in runs) for engine in ENGINES
            },
        },
        "pushed_puck": {
            "moved_mean_m": {
                engine: float(np.mean([push["moved_m"][engine] for push in pushes]))
                for engine in ENGINES
            },
            "difference_mean_m": float(np.mean([push["difference_m"] for push in pushes])),
            "difference_largest_m": float(np.max([push["difference_m"] for push in pushes])),
        },
        "cost_per_20_steps_us": session.cost_us(),
    }
    session.close()
    return result


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--robots", nargs="+", choices=list_robots(), default=list_robots())
    parser.add_argument("--postures", type=int, default=1000, help="postures for the kinematics")
    parser.add_argument("--seeds", type=int, default=10, help="random motions in free space")
    parser.add_argument("--duration-s", type=float, default=5.0, help="length of each of them")
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    parser.add_argument(
        "--out",
        nargs="?",
        type=Path,
        const=RESULTS,
        help="write the results into this file (without a value: benchmarks/results/"
        "engine_parity.json)",
    )
    options = parser.parse_args(argv)
    if min(options.postures, options.seeds) < 1 or options.duration_s < PERIOD_S:
        parser.error(f"--postures and --seeds should be at least 1, --duration-s {PERIOD_S}")
    document: dict[str, Any] = {
        "machine": platform.machine(),
        "python": platform.python_version(),
        "mujoco": version("mujoco"),
        "pybullet": version("pybullet"),
        "robots": {},
    }
    for name in options.robots:
        result = measure(name, options.postures, options.seeds, options.duration_s)
        document["robots"][name] = result
        if not options.json:
            motion, push = result["free_motion"], result["pushed_puck"]
            print(
                f"{name}: tools {1e3 * motion['tool_difference_end_m']['mean']:.3f} mm apart "
                f"after {options.duration_s:g} s "
                f"(largest ever {1e3 * motion['tool_difference_any_time_m']['largest']:.3f} mm), "
                f"pushed pucks {1e3 * push['difference_mean_m']:.1f} mm, "
                f"cost {result['cost_per_20_steps_us']} us"
            )
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(document, indent=2) + "\n")
    if options.json:
        print(json.dumps(document))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
