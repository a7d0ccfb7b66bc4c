"""``robot-rl``: everything a user does, one subcommand each."""

from __future__ import annotations

import argparse
import errno
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from robot_rl.cli import camera, classifier, commands, data, record, robot, sim, teleop
from robot_rl.cli.commands import Command
from robot_rl.cli.flags import Parser
from robot_rl.errors import InvalidInputError, RobotRLError
from robot_rl.training.runs import Interrupted

_EPILOG = """\
a first session:
  robot-rl doctor                                  what works on this machine
  robot-rl demo                                    the whole story in ten minutes, with a report
  robot-rl collect --task Push --quality 0.5 --episodes 200 --out data/push
  robot-rl data info data/push
  robot-rl pretrain --agent iql --data data/push --steps 20000 --out runs/push-iql
  robot-rl train --from runs/push-iql --env-steps 10000 --out runs/push-practice
  robot-rl eval --checkpoint runs/push-practice --backend pybullet --episodes 100
  robot-rl report runs/push-practice

Every command takes --help and --json. Errors are one line on standard error; the exit code is 0,
2 for bad input or what is missing here, 1 for another failure, 130 when stopped by the user.
"""

COMMANDS = (*commands.COMMANDS, data.COMMAND, robot.COMMAND, teleop.COMMAND, record.COMMAND,
            camera.COMMAND, classifier.COMMAND, sim.COMMAND)

_UNUSABLE_PATH = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP,
                  errno.EROFS)


def build_parser() -> Parser:
    """The whole command line."""
    parser = Parser(
        prog="robot-rl",
        description="Teach a robot arm a skill: from recorded episodes, then by practice.",
        epilog=_EPILOG,
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    for command in COMMANDS:
        _add_command(subparsers, command)
    return parser


def _add_command(subparsers: Any, command: Command) -> None:
    sub = subparsers.add_parser(
        command.name, help=command.summary, description=command.description,
        epilog=command.epilog,
    )
    if command.actions:
        actions = sub.add_subparsers(dest="action", metavar="ACTION", parser_class=Parser)
        for action in command.actions:
            _add_command(actions, action)
        sub.set_defaults(json=False, quiet=False, help_text=sub.format_help)
        return
    sub.add_argument(
        "--json", action="store_true",
        help="print one JSON object as the last line of standard output",
    )
    sub.add_argument("--quiet", action="store_true", help="no progress bars")
    command.add_arguments(sub)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    # Where there is no display, this binding warns of it before we say so ourselves.
    warnings.filterwarnings("ignore", module="glfw")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        parser = build_parser()
        commands.add_agent_flags(parser, argv)
        args = parser.parse_args(argv)
        if args.version:
            from robot_rl import __version__

            print(f"robot_rl {__version__}")
            return 0
        if args.command is None:
            parser.print_help()
            return 2
        run = _find(args.command)
        outcome = run(args)
        if args.json:
            print(json.dumps(outcome.values, allow_nan=False), flush=True)
        elif outcome.text:
            print(outcome.text, flush=True)
        return outcome.code
    except Interrupted as error:
        print(f"robot-rl: {_one_line(error)}", file=sys.stderr)
        return 130
    except RobotRLError as error:
        print(f"robot-rl: {_one_line(error)}", file=sys.stderr)
        return 2
    except PermissionError as error:
        print(f"robot-rl: no permission: {error.filename or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("robot-rl: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        print(f"robot-rl: {_one_line(error)}", file=sys.stderr)
        return 2 if error.errno in _UNUSABLE_PATH else 1


def _find(name: str) -> Callable[[argparse.Namespace], Any]:
    for command in COMMANDS:
        if command.name == name:
            return command.run
    raise InvalidInputError(f"unknown command {name!r}")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


if __name__ == "__main__":
    sys.exit(main())
