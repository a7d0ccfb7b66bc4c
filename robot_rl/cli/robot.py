"""``robot-rl robot``: look at an arm, bring it home, jog it, and release it after a stop."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np

from robot_rl.backends import list_backends, make_rig
from robot_rl.cli.commands import Command, Outcome, group
from robot_rl.cli.flags import Parser, add_rig_flags, camera_sources, rig_options
from robot_rl.cli.robot_checks import Check, check_rig
from robot_rl.envs.factory import guarded
from robot_rl.envs.motion import Arrival, Motion
from robot_rl.envs.tasks import list_tasks, make_task
from robot_rl.errors import (
    InvalidInputError,
    MissingDependencyError,
    RobotRLError,
    SafetyError,
    StaleDataError,
    unknown_name,
)
from robot_rl.interfaces import Array, Placement, Rig, RigRequest
from robot_rl.kinematics import wrap_angle
from robot_rl.safety import SafetyConfig
from robot_rl.safety.ending import Ending
from robot_rl.safety.latch import Latch
from robot_rl.safety.watchdog import Watchdog
from robot_rl.specs import list_robots, load_robot

# A slip of the decimal point must not send the arm across the table.
_LONGEST_JOG_M = 0.1
_LONGEST_JOG_RAD = 0.5
_LONGEST_STOP_S = 3.0
# How near a jog ends, besides a quarter of its way: what the motions themselves call near.
_NEAR = {"m": 0.003, "rad": 0.03}
_SIMULATED_START_M = (0.0, 0.0, 0.12)
_WORD = "rearm"
_TURNS = ("yaw",)
_LENGTHS = ("x", "y", "z")


def _arguments(parser: Parser) -> None:
    group = parser.add_argument_group("robot")
    group.add_argument("--robot", metavar="NAME", default="sawyer",
                       help=f"arm: {', '.join(list_robots())} (default: sawyer)")
    group.add_argument("--backend", metavar="NAME", default="mujoco",
                       help="how it is reached: ros1 (Sawyer), ros2 or franky (Franka), or a "
                       "simulation: mujoco, pybullet (default: mujoco)")
    group.add_argument("--task", metavar="TASK", default="Reach",
                       help="whose scene stands before it, with its sensors (default: Reach)")
    add_rig_flags(parser)


def _open(args: argparse.Namespace) -> Rig:
    """The rig that the flags name."""
    if args.robot not in list_robots():
        raise unknown_name("robot", args.robot, list_robots())
    if args.backend not in list_backends():
        raise unknown_name("backend", args.backend, list_backends())
    if args.task.lower() not in [name.lower() for name in list_tasks()]:
        raise unknown_name("task", args.task, list_tasks())
    request = RigRequest(
        robot=load_robot(args.robot), scene=make_task(args.task).scene(),
        options=rig_options(args), cameras=camera_sources(args),
    )
    rig = make_rig(args.backend, request)
    if rig.scene is not None:
        start = Placement(np.array(_SIMULATED_START_M))
        posture = guarded(rig).posture(start.tool_m)
        rig.scene.place(posture, start)
    return rig


def _latch(rig: Rig) -> Latch | None:
    """Where a hold of this arm is kept; None in simulation, where none is."""
    return Latch(rig.arm.spec.name, rig.address) if rig.address is not None else None


@contextmanager
def _driven(args: argparse.Namespace) -> Iterator[Motion]:
    """An arm that may be moved, through its safety filter; at rest again at the end."""
    with ExitStack() as stack:
        rig = _open(args)
        stack.callback(Ending(rig.close).close)
        safety = guarded(rig)
        safety.check_released()
        safety.sync()
        if rig.address is not None:
            stack.enter_context(Watchdog(safety))
        try:
            yield Motion(rig, safety)
        finally:
            # However it ends, the arm comes to rest first.
            safety.settle(_LONGEST_STOP_S)


def _refusable(run: Callable[[argparse.Namespace], Outcome]) -> (
    Callable[[argparse.Namespace], Outcome]
):
    """An arm that is held, or whose state is too old, is a failure rather than bad input."""

    def guarded_run(args: argparse.Namespace) -> Outcome:
        try:
            return run(args)
        except (SafetyError, StaleDataError) as error:
            return Outcome({"arrived": False, "why": str(error)}, f"refused: {error}", 1)

    return guarded_run


def _numbers(values: Array) -> list[float]:
    return [round(float(value), 6) for value in values]


# -- check --------------------------------------------------------------------------------------


def _check_arguments(parser: Parser) -> None:
    _arguments(parser)
    parser.add_argument("--seconds", metavar="X", type=float, default=1.0,
                        help="how long rates are measured, each (default: 1)")


def _check_run(args: argparse.Namespace) -> Outcome:
    if not 0.05 <= args.seconds <= 60.0:
        raise InvalidInputError(f"--seconds is {args.seconds}, should be in [0.05, 60]")
    connected = f"{args.robot} over {args.backend}"
    try:
        rig = _open(args)
    except (InvalidInputError, MissingDependencyError):
        raise
    except RobotRLError as error:
        checks = [Check("connect", False, " ".join(str(error).split()))]
    else:
        try:
            latch = _latch(rig)
            checks = [Check("connect", True, connected)]
            checks += check_rig(rig, SafetyConfig(), seconds=args.seconds,
                                hold=latch.reason() if latch is not None else None)
        finally:
            rig.close()
    ok = all(check.ok for check in checks)
    values = {"ok": ok, "robot": args.robot, "backend": args.backend,
              "checks": [dataclasses.asdict(check) for check in checks]}
    width = max(len(check.name) for check in checks)
    lines = [f"{'ok  ' if check.ok else 'FAIL'}  {check.name:<{width}}  {check.detail}"
             for check in checks]
    lines.append("the arm is fit to be driven" if ok else "do not drive this arm yet")
    return Outcome(values, "\n".join(lines), 0 if ok else 1)


# -- home ---------------------------------------------------------------------------------------


def _home_arguments(parser: Parser) -> None:
    _arguments(parser)
    parser.add_argument("--speed", metavar="X", type=float, default=0.2,
                        help="share of the joints' speed, in (0, 1] (default: 0.2)")


def _home_run(args: argparse.Namespace) -> Outcome:
    if not 0.0 < args.speed <= 1.0:
        raise InvalidInputError(f"--speed is {args.speed}, should be in (0, 1]")
    with _driven(args) as motion:
        arrival = motion.home(args.speed)
        tool = motion.tool()[0]
    values = {**_arrival(arrival), "tool_m": _numbers(tool)}
    where = ", ".join(f"{x:+.3f}" for x in tool)
    text = (f"home: the tool is at ({where}) m after {arrival.time_s:.1f} s" if arrival
            else f"not home: {arrival.why}")
    return Outcome(values, text, 0 if arrival else 1)


def _arrival(arrival: Arrival) -> dict[str, Any]:
    return {"arrived": arrival.arrived, "why": arrival.why,
            "time_s": round(arrival.time_s, 3)}


# -- jog ----------------------------------------------------------------------------------------


def _jog_arguments(parser: Parser) -> None:
    _arguments(parser)
    parser.add_argument("--axis", metavar="AXIS", required=True,
                        help="x, y, z (of the workspace), yaw (of the tool), or a joint: j1 to j7")
    parser.add_argument("--by", metavar="X", type=float, required=True,
                        help=f"how far: up to {_LONGEST_JOG_M} m, or {_LONGEST_JOG_RAD} rad")
    parser.add_argument("--speed", metavar="X", type=float, default=0.2,
                        help="share of full speed, in (0, 1] (default: 0.2)")


def _jog_run(args: argparse.Namespace) -> Outcome:
    if not 0.0 < args.speed <= 1.0:
        raise InvalidInputError(f"--speed is {args.speed}, should be in (0, 1]")
    joints = [f"j{k + 1}" for k in range(len(load_robot(args.robot).joints))] if (
        args.robot in list_robots()) else []
    axes = (*_LENGTHS, *_TURNS, *joints)
    if joints and args.axis not in axes:
        raise unknown_name("axis", args.axis, axes)
    most, unit = (_LONGEST_JOG_M, "m") if args.axis in _LENGTHS else (_LONGEST_JOG_RAD, "rad")
    if not 0.0 < abs(args.by) <= most:
        raise InvalidInputError(f"--by is {args.by}, should be in [-{most}, {most}] {unit} "
                                "and other than 0")
    with _driven(args) as motion:
        config, before = motion.safety.config, _places(motion)
        arrival = _jog(motion, args)
        after = _places(motion)
    executed, measured = (
        _moved(args.axis, *pair) for pair in zip(before, after, strict=True)
    )
    values = {**_arrival(arrival), "axis": args.axis, "unit": unit, "asked": args.by,
              "executed": round(executed, 6), "measured": round(measured, 6)}
    text = (f"{args.axis}: asked {args.by:+.4f}, executed {executed:+.4f}, measured "
            f"{measured:+.4f} {unit}")
    if not arrival:
        text += f"\nit did not arrive: {arrival.why}"
    reached = bool(arrival) and abs(measured - args.by) <= 0.25 * abs(args.by) + _NEAR[unit]
    if arrival and not reached:
        text += f"\nthe safety filter shortened the way: {_limit(args, config, before)} is there"
    values["reached"] = reached
    return Outcome(values, text, 0 if reached else 1)


def _limit(args: argparse.Namespace, config: SafetyConfig, before: tuple[Place, Place]) -> str:
    """What is in the way of a jog that ended early."""
    if args.axis in _LENGTHS:
        k = _LENGTHS.index(args.axis)
        low, high = config.box_min_m[k], config.box_max_m[k]
        wanted = float(before[1][0][k]) + args.by
        if not low < wanted < high:
            return f"the box, whose {args.axis} goes from {low:+.3f} to {high:+.3f} m,"
    return "the box, or a joint's limit,"


def _jog(motion: Motion, args: argparse.Namespace) -> Arrival:
    config = motion.safety.config
    if args.axis in _LENGTHS:
        delta = np.zeros(3)
        delta[_LENGTHS.index(args.axis)] = args.by
        return motion.jog(delta, 0.0, args.speed * config.max_speed_m_s)
    if args.axis in _TURNS:
        return motion.jog(np.zeros(3), args.by, args.speed * config.max_speed_m_s)
    target = motion.rig.arm.state(config.max_state_age_s).position_rad
    target[int(args.axis[1:]) - 1] += args.by
    return motion.move_joints_to(target, args.speed)


Place = tuple[Array, float, Array]
"""Tool (3,) [m], its turn [rad] and the joints (n,) [rad]."""


def _places(motion: Motion) -> tuple[Place, Place]:
    """Where the arm is sent to and where it is measured to be."""
    safety = motion.safety
    tool = motion.tool()[0].copy()
    joints = motion.rig.arm.state(safety.config.max_state_age_s).position_rad
    return ((safety.setpoint_tool_m, safety.yaw_rad, safety.setpoint_rad),
            (tool, motion.yaw(), joints))


def _moved(axis: str, before: Place, after: Place) -> float:
    if axis in _LENGTHS:
        k = _LENGTHS.index(axis)
        return float(after[0][k] - before[0][k])
    if axis in _TURNS:
        return wrap_angle(after[1] - before[1])
    k = int(axis[1:]) - 1
    return float(after[2][k] - before[2][k])


# -- rearm --------------------------------------------------------------------------------------


def _rearm_arguments(parser: Parser) -> None:
    _arguments(parser)
    parser.add_argument("--yes", action="store_true",
                        help="do not ask; for scripts that a person starts")


def _rearm_run(args: argparse.Namespace) -> Outcome:
    rig = _open(args)
    try:
        safety = guarded(rig)
        status = rig.arm.status()
        fault = None if status.ready else status.fault or "the arm takes no commands"
        if fault is not None and fault in (safety.held or ""):
            fault = None
        why = [text for text in (safety.held, fault) if text is not None]
        if not why:
            return Outcome({"rearmed": False, "held": None},
                           "the arm is not held, there is nothing to re-arm")
        print(f"held: {'; '.join(why)}", file=sys.stderr)
        if not args.yes:
            _ask(args)
        safety.rearm()
        status = rig.arm.status()
        if not status.ready:
            raise SafetyError(status.fault or "the arm takes no commands")
    except SafetyError as error:
        text = f"not re-armed: {error}"
        return Outcome({"rearmed": False, "held": str(error)}, text, 1)
    finally:
        rig.close()
    return Outcome({"rearmed": True, "held": None},
                   "re-armed: the arm takes commands again, from where it is")


def _ask(args: argparse.Namespace) -> None:
    """Raise unless a person types the word."""
    if not sys.stdin.isatty():
        raise InvalidInputError(
            "re-arming asks a person to type a word, and this is no terminal: give --yes if a "
            "person has looked at the arm"
        )
    print("Is everybody clear of the arm, its way free, and your hand on the emergency stop?",
          file=sys.stderr)
    print(f"Type {_WORD} and Enter to release it: ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() != _WORD:
        raise InvalidInputError("not confirmed; the arm stays held")


# -- the group ----------------------------------------------------------------------------------


_EPILOG = """\
in this order, with a hand on the emergency stop:
  robot-rl robot check --robot sawyer --backend ros1 --rig master_uri=http://SAWYER:11311
  robot-rl robot home  --robot sawyer --backend ros1 --rig master_uri=http://SAWYER:11311
  robot-rl robot jog   --robot sawyer --backend ros1 --axis z --by -0.05
After a stop:
  robot-rl robot rearm --robot sawyer --backend ros1
With --backend mujoco or pybullet the same commands drive a simulated arm.
"""

COMMAND = group(
    "robot", "look at an arm, bring it home, jog it, release it after a stop",
    "First steps with an arm. Every motion passes the safety filter, which never replaces the\n"
    "emergency stop.",
    Command(
        "check", "is the arm fit to be driven (moves nothing)",
        "Connect and look: states and their rate and age, limits, posture, status, gripper, "
        "cameras,\nforce and other sensors, a kept hold, the clock. Nothing moves. Exit code "
        "0 if all is well,\n1 if not, 2 if the arm cannot be looked at with these flags.",
        _check_arguments, _check_run,
        "examples:\n  robot-rl robot check --robot panda --backend franky --rig "
        "robot_ip=172.16.0.2\n  robot-rl robot check --robot sawyer --backend ros1 "
        "--camera front=opencv:0 --task Push",
    ),
    Command(
        "home", "lift the tool and bring the arm above the middle of the table",
        "Lift the tool straight up, then bring the joints to the posture above the middle of "
        "the workspace.", _home_arguments, _refusable(_home_run),
        "example:\n  robot-rl robot home --robot panda --backend franky --rig "
        "robot_ip=172.16.0.2 --speed 0.1",
    ),
    Command(
        "jog", "move along one axis, or one joint, a little",
        "Move the tool along an axis of the workspace, turn it, or move one joint; says what "
        "was asked,\nwhat the safety filter let through and what was measured.",
        _jog_arguments, _refusable(_jog_run),
        "examples:\n  robot-rl robot jog --axis z --by -0.02\n"
        "  robot-rl robot jog --axis j7 --by 0.1 --speed 0.1",
    ),
    Command(
        "rearm", "release an arm after a stop: an operator's act",
        "Say why the arm is held, ask for a word on the terminal, clear the arm's own errors, "
        "enable it\nand forget the hold. Refused while the emergency stop is pressed. The arm "
        "does not move.", _rearm_arguments, _rearm_run,
        "example:\n  robot-rl robot rearm --robot sawyer --backend ros1",
    ),
    epilog=_EPILOG,
)
