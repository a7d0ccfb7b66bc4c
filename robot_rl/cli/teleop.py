"""``robot-rl teleop``: drive the arm and see where it is; nothing is recorded."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, field
from typing import Any

from robot_rl.cli.commands import Command, Outcome
from robot_rl.cli.flags import Parser, add_flags, read_flags
from robot_rl.cli.record import add_device_flag, device_options, read_env, read_hardware
from robot_rl.errors import InvalidInputError
from robot_rl.teleops import Operator
from robot_rl.training.demonstrate import make_world
from robot_rl.training.driving import Drive
from robot_rl.training.runs import StopFlag
from robot_rl.training.setup import EnvChoice, canonical_task


@dataclass(frozen=True)
class TeleopConfig:
    """Options of driving."""

    device: str = field(default="keyboard", metadata={"help": "spacemouse, gamepad, keyboard or "
                                                      "scripted"})
    seconds: float = field(default=0.0, metadata={"help": "how long (0: until you quit)"})

    def __post_init__(self) -> None:
        if not 0.0 <= self.seconds <= 86_400.0:
            raise InvalidInputError(f"seconds is {self.seconds}, should be in [0, 86400]")


def _arguments(parser: Parser) -> None:
    add_flags(parser, TeleopConfig, title="driving")
    add_device_flag(parser)
    add_flags(parser, EnvChoice, title="environment")


def _run(args: argparse.Namespace) -> Outcome:
    config = TeleopConfig(**read_flags(args, TeleopConfig))
    env = read_env(args)
    if not env.task:
        raise InvalidInputError("driving needs a task, for its scene and box: give --task")
    canonical_task(env.task)
    world = make_world(env, read_hardware(args))
    operator: Operator | None = None
    try:
        operator = Operator.of(config.device, world, **device_options(args))
        if not config.seconds and not operator.interactive:
            raise InvalidInputError(f"{config.device} never quits: give --seconds")
        drive = Drive(world, operator)
        with StopFlag().watching() as flag:
            line = _Line(drive, args.quiet)
            if operator.help and not args.quiet:
                print(operator.help, file=sys.stderr)
            drive.run(config.seconds, lambda: flag.stop, line.show)
            line.end()
        values = drive.values()
        return Outcome({**values, "interrupted": flag.stop}, _text(values),
                       130 if flag.stop else 0)
    finally:
        if operator is not None:
            operator.close()
        world.close()


def _text(values: dict[str, Any]) -> str:
    x, y, z = values["tool_m"]
    text = (f"{values['steps']} steps, {values['touched']} of them driven; the tool is at "
            f"({x:.3f}, {y:.3f}, {z:.3f}) m")
    return text + (f"; held: {values['held']}" if values["held"] else "")


class _Line:
    """One line of state on standard error, over and over where that is a terminal."""

    def __init__(self, drive: Drive, quiet: bool) -> None:
        self._drive, self._quiet = drive, quiet
        self._again = sys.stderr.isatty()
        self._count = 0

    def show(self) -> None:
        self._count += 1
        period = self._drive.world.period_s
        every = max(round((0.2 if self._again else 2.0) / period), 1)
        if self._quiet or self._count % every:
            return
        print(("\r\x1b[K" if self._again else "") + self._drive.describe(), file=sys.stderr,
              end="" if self._again else "\n", flush=True)

    def end(self) -> None:
        if self._again and not self._quiet:
            print(file=sys.stderr)


COMMAND = Command(
    "teleop", "drive the arm with a SpaceMouse, a gamepad, the keyboard or a script",
    "Drive the arm through its safety filter. Shows the tool, the faces of the box that it\n"
    "touches, the gripper, and why the arm is held if it is. Nothing moves but by your hand: on\n"
    "hardware it starts where the arm is.",
    _arguments, _run,
    "examples:\n"
    "  robot-rl teleop --task Push --device keyboard\n"
    "  robot-rl teleop --backend ros1 --rig master_uri=http://sawyer.local:11311 --task Push \\\n"
    "      --device spacemouse --device-option heading_deg=180\n"
    "axes and buttons: docs/teleoperation.md",
)
