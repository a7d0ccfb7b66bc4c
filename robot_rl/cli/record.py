"""``robot-rl record``: demonstrations by an operator, accepted and rejected ones told apart."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import Any

from robot_rl.backends import list_backends
from robot_rl.cli.commands import Command, Outcome
from robot_rl.cli.flags import Parser, add_flags, camera_sources, read_flags
from robot_rl.cli.flags import rig_options as read_rig_options
from robot_rl.errors import InvalidInputError, unknown_name
from robot_rl.specs import list_robots
from robot_rl.training.demonstrate import Hardware, RecordConfig, record
from robot_rl.training.setup import EnvChoice


def add_device_flag(parser: argparse.ArgumentParser) -> None:
    """``--device-option KEY=VALUE``, see :func:`device_options`."""
    parser.add_argument(
        "--device-option", metavar="KEY=VALUE", action="append", default=[],
        help="an option of the device, repeatable, e.g. scale=0.5, dead_zone=0.2, "
        "heading_deg=180 (the operator faces the arm); see docs/teleoperation.md",
    )


def device_options(args: argparse.Namespace) -> dict[str, str]:
    """What ``--device-option`` gave, by key.

    Raises:
        InvalidInputError: a word is not KEY=VALUE, or a key came twice.
    """
    return _pairs(args.device_option, "--device-option")


def read_env(args: argparse.Namespace) -> EnvChoice:
    """The environment that was asked for, its names checked."""
    choice = EnvChoice(**read_flags(args, EnvChoice))
    if choice.robot not in list_robots():
        raise unknown_name("robot", choice.robot, list_robots())
    if choice.backend not in list_backends():
        raise unknown_name("backend", choice.backend, list_backends())
    return choice


def read_hardware(args: argparse.Namespace) -> Hardware:
    """How the rig is reached."""
    return Hardware(read_rig_options(args), camera_sources(args))


def _arguments(parser: Parser) -> None:
    add_flags(parser, RecordConfig, title="what to record")
    add_device_flag(parser)
    add_flags(parser, EnvChoice, title="environment")
    parser.add_argument("--append", action="store_true",
                        help="go on with the recording in --out, behind its last episode")
    parser.add_argument("--overwrite", action="store_true",
                        help="if the folder of --out is in use, set it aside as <name>.old")


def _run(args: argparse.Namespace) -> Outcome:
    values = record(
        RecordConfig(**read_flags(args, RecordConfig)), read_env(args),
        hardware=read_hardware(args), device=device_options(args), append=args.append,
        overwrite=args.overwrite, quiet=args.quiet,
    )
    return Outcome(values, _text(values), _code(values))


def _text(values: dict[str, Any]) -> str:
    some = "" if values["accepted"] == 1 else "s"
    text = (f"{values['accepted']} demonstration{some} accepted ({values['episodes']} in "
            f"{values['path']})")
    apart = values["rejected"] + values["aborted"]
    if apart:
        text += (f", {values['rejected']} rejected and {values['aborted']} aborted, in "
                 f"{values['rejected_path']}")
    if values["interventions"]:
        text += f"; the operator took over {values['interventions']} times"
    if values["stopped"]:
        text += f"\nstopped: {values['stopped']}"
    elif values["interrupted"]:
        text += "\nstopped by you"
    return text


def _code(values: dict[str, Any]) -> int:
    if values["interrupted"]:
        return 130
    return 1 if values["stopped"] else 0


def _pairs(words: Iterable[str], flag: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not (equals and key):
            raise InvalidInputError(f"{flag} {word!r} should be KEY=VALUE")
        if key in found:
            raise InvalidInputError(f"{flag}: {key!r} is given twice")
        found[key] = value
    return found


COMMAND = Command(
    "record", "record demonstrations with a SpaceMouse, a gamepad, the keyboard or a script",
    "Drive the arm and keep what went well. Accepted demonstrations make the dataset --out, which\n"
    "pretrain reads as it is; rejected and aborted ones are kept apart in --out/rejected. Each is\n"
    "on the disk as soon as it is judged. With --policy the policy acts and the operator takes\n"
    "over by touching the device; those steps are marked is_intervention.",
    _arguments, _run,
    "examples:\n"
    "  robot-rl record --task Push --teleop scripted --episodes 50 --out demos/push\n"
    "  robot-rl record --backend ros1 --rig master_uri=http://sawyer.local:11311 --task Push \\\n"
    "      --teleop spacemouse --episodes 50 --label 'push the puck' --out demos/push\n"
    "  robot-rl record --task Push --teleop gamepad --policy runs/push-iql --out demos/corrected\n"
    "  robot-rl pretrain --agent bc --data demos/push --out runs/push-bc\n"
    "exit code: 0 with all of --episodes accepted, 1 if it ended before (JSON: stopped), 130 when\n"
    "stopped by the user; what was accepted stays in any case",
)
