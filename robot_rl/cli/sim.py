"""``robot-rl sim``: simulated robots that speak a real robot's own protocol, each a process.

This package imports no simulator: a simulated robot is found by its name under the entry point
group ``robot_rl.simulated_robots``, a function ``run(options, ready)``. ``options`` is the
command's own dataclass below; ``ready`` is to be called once, with what a user has to know, when
the robot can be driven. It returns what happened when SIGINT or SIGTERM comes, or after
``duration_s``.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from robot_rl.cli.commands import Command, Outcome, group
from robot_rl.cli.flags import Parser, add_flags, read_flags
from robot_rl.errors import InvalidInputError

GROUP = "robot_rl.simulated_robots"

Ready = Callable[[Mapping[str, Any]], None]


def _help(text: str, default: Any) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class SimRobotOptions:
    """What every simulated robot takes."""

    backend: str = _help("physics: mujoco or pybullet", "mujoco")
    task: str = _help("whose scene lies on the table", "Push")
    seed: int = _help("of where the task's things lie", 0)
    rate_hz: float = _help("joint states a second", 100.0)
    physics_step_s: float = _help("length of a physics step [s]", 0.005)
    cameras: tuple[str, ...] = _help("cameras of the scene to publish, e.g. front side", ())
    camera_hz: float = _help("images a second, of each camera", 10.0)
    image_size: int = _help("height and width of the images [pixels]", 64)
    control_port: int = _help(
        "TCP port on the loopback that takes faults as lines of JSON; 0 takes a free one, -1 none",
        -1,
    )
    record: str = _help("write what the robot was sent, with times, to this .npz file", "")
    duration_s: float = _help("stop after this long [s]; 0 goes on until stopped", 0.0)

    def __post_init__(self) -> None:
        for name, low, high in (
            ("seed", 0, 2**32 - 1), ("rate_hz", 1.0, 1000.0), ("camera_hz", 0.1, 200.0),
            ("image_size", 8, 2048), ("control_port", -1, 65535), ("duration_s", 0.0, 1e7),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise InvalidInputError(f"{name} is {value}, should be in [{low:g}, {high:g}]")
        folder = Path(self.record).absolute().parent
        if self.record and not os.access(folder, os.W_OK):
            raise InvalidInputError(f"record is {self.record}, and {folder} cannot be written")


@dataclass(frozen=True)
class InteraOptions(SimRobotOptions):
    """A simulated Sawyer."""

    master_uri: str = _help("the ROS 1 master (default: ROS_MASTER_URI, or this machine's)", "")
    start_master: bool = _help("start a ROS 1 master too, at master_uri or on a free port", False)
    disabled: bool = _help("start disabled, as the real robot does", False)


@dataclass(frozen=True)
class FrankaOptions(SimRobotOptions):
    """A simulated Franka."""

    robot: str = _help("fr3 or panda", "fr3")
    namespace: str = _help("namespace of its topics", "")
    arm_prefix: str = _help("what its joints' names begin with", "")
    domain_id: int = _help("DDS domain; -1 is that of ROS_DOMAIN_ID", -1)
    network: str = _help("loopback, any, or an interface's name or address", "loopback")
    force_threshold_n: float = _help("force on the tool at which it stops itself [N]", 60.0)
    inactive: bool = _help("start with no controller active", False)


def run_robot(name: str, options: SimRobotOptions, *, as_json: bool) -> Outcome:
    """Run the simulated robot ``name`` until it is stopped.

    Raises:
        InvalidInputError: no such robot is installed.
    """
    found = {entry.name: entry for entry in entry_points(group=GROUP)}
    if name not in found:
        raise InvalidInputError(
            f"the simulated robot {name!r} is not installed (entry point group {GROUP!r} has "
            f"{', '.join(sorted(found)) or 'none'}); pip install -e .[sim]"
        )
    run = found[name].load()

    def ready(values: Mapping[str, Any]) -> None:
        shown = " ".join(f"{key}={value}" for key, value in values.items())
        print(json.dumps({"ready": True, **values}) if as_json else f"ready {shown}", flush=True)

    values = run(options, ready)
    return Outcome(values, f"stopped after {values['time_s']:.1f} s")


def _arguments(options: type[SimRobotOptions], title: str) -> Callable[[Parser], None]:
    return lambda parser: add_flags(parser, options, title=title)


def _runner(name: str, options: type[SimRobotOptions]) -> Callable[[argparse.Namespace], Outcome]:
    return lambda args: run_robot(name, options(**read_flags(args, options)), as_json=args.json)


_EPILOG = """\
examples:
  robot-rl sim intera --start-master true                    a Sawyer, with a ROS 1 master
  robot-rl robot check --robot sawyer --backend ros1         in another terminal

A simulated robot prints one line that begins with "ready" (with --json a JSON object) when it can
be driven, and stops at Ctrl-C or SIGTERM.
With --control-port 7001 things can be made to go wrong, by lines of JSON:
  echo '{"fault": "estop"}' | nc -q1 127.0.0.1 7001
Both robots know estop and clear (everything whole again, the button up), silent, nan, deaf and
push; a Sawyer also frozen, collision, cuff, hang and others, a Franka reflex, stuck and die. An
unknown fault is answered with the list.
"""

COMMAND = group(
    "sim", "a simulated robot that speaks a real robot's own protocol",
    "A process that a driver cannot tell from the robot: the same topics and messages, in real "
    "time.",
    Command(
        "franka", "a Panda or FR3 with the topics of franka_ros2 and CRISP on ROS 2",
        "A simulated Franka: targets, states, controllers, reflexes, recovery and gripper "
        "actions as franka_ros2 and CRISP have them on ROS 2, in real time; without ROS 2 over "
        "the built-in runtime. What a tracker, a sensor or a camera would say comes on "
        "/robot_rl/bodies, /robot_rl/joints, /robot_rl/sensors and /robot_rl/cameras.",
        _arguments(FrankaOptions, "simulated Franka"), _runner("franka", FrankaOptions),
        "examples:\n  robot-rl sim franka --robot fr3 --task Push --domain-id 7\n"
        "  robot-rl robot check --robot fr3 --backend ros2 --rig domain_id=7",
    ),
    Command(
        "intera", "a Sawyer with its Intera topics on ROS 1",
        "A simulated Sawyer: joint commands, states, enabling and stopping, limits, collision "
        "detection and gripper as Intera has them on ROS 1, in real time. What a tracker, a "
        "sensor or a camera would say comes on /robot_rl/bodies, /robot_rl/joints, "
        "/robot_rl/sensors and /robot_rl/cameras.",
        _arguments(InteraOptions, "simulated Sawyer"), _runner("intera", InteraOptions),
        "examples:\n  robot-rl sim intera --start-master true --task Push\n"
        "  robot-rl sim intera --master-uri http://localhost:11311 --backend pybullet "
        "--cameras front\n"
        "  robot-rl eval --backend ros1 --rig master_uri=http://localhost:11311 "
        "--camera front=ros1:/robot_rl/cameras/front/image_raw ...",
    ),
    epilog=_EPILOG,
)
