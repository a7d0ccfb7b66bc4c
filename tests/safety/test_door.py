"""No code reaches an arm's commands but through the safety filter.

A scan of the source tree lists every place that could: calls of ``command``, of ``recover`` and
``rearm``, set-points made, topics and libraries that move hardware. Each has to stand in the list
below with the reason why it may, and nothing may stand there that the tree no longer has.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
FOLDERS = ("robot_rl", "drivers", "sim", "calibration", "launch", "examples")

# What moves an arm, or lets one move again.
METHODS = ("command", "recover", "rearm")
# Calls by which a driver puts something on the wire; elsewhere these names mean other things.
WIRES = ("publish", "_publish", "_ask", "set_reference", "move", "move_async", "send_goal_async",
         "call_async", "recover_from_errors")
# Topics and actions on which the makers' software takes motion or clears an error.
TOPICS = re.compile(
    r"joint_command|set_super_(enable|reset)|target_(pose|joint|wrench)|error_recovery"
    r"|joint_trajectory\b|/gripper_action"
)
# Libraries that reach hardware directly.
LIBRARIES = ("franky", "rospy", "intera_interface", "panda_py", "frankx", "pylibfranka")
# Names that say an object is an arm or a gripper.
ARMS = re.compile(r"(^|[._(])(arm|gripper|hand|robot)s?\)?$|^(inner|rig)$", re.IGNORECASE)
READERS = ("getattr", "setattr", "hasattr", "delattr", "attrgetter", "methodcaller",
           "getattr_static", "__getattribute__")


@dataclass(frozen=True)
class Find:
    """A place in the source: file, function, what is there; the line is only for people."""

    path: str
    where: str
    what: str
    line: int = 0

    def __str__(self) -> str:
        return f"{self.path}:{self.line} in {self.where}: {self.what}"


class Scan(ast.NodeVisitor):
    """Collects what could move an arm in one file."""

    def __init__(self, path: str, tree: ast.AST) -> None:
        self.path, self.found = path, list[Find]()
        self._scope: list[str] = []
        self._docstrings = {id(node) for node in _docstrings(tree)}
        self.visit(tree)

    def _note(self, node: ast.AST, what: str) -> None:
        where = ".".join(self._scope) or "module"
        self.found.append(Find(self.path, where, what, getattr(node, "lineno", 0)))

    def _inside(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> None:
        self._scope.append(node.name)
        self.generic_visit(node)
        self._scope.pop()

    visit_FunctionDef = visit_AsyncFunctionDef = visit_ClassDef = _inside  # type: ignore[assignment]

    def visit_Attribute(self, node: ast.Attribute) -> None:
        receiver = ast.unparse(node.value)
        if node.attr in METHODS:
            self._note(node, f"{_short(receiver)}.{node.attr}")
        elif node.attr in ("__dict__", "__getattribute__") and ARMS.search(receiver):
            self._note(node, f"{_short(receiver)}.{node.attr}")
        elif node.attr == "load" and receiver.endswith("stream"):
            self._note(node, f"{_short(receiver)}.load")
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        name = node.func.attr if isinstance(node.func, ast.Attribute) else (
            node.func.id if isinstance(node.func, ast.Name) else "")
        if name == "JointSetpoints":
            self._note(node, "JointSetpoints(...)")
        if name in ("eval", "exec") and isinstance(node.func, ast.Name):
            self._note(node, f"{name}(...)")
        if name == "vars" and node.args and ARMS.search(ast.unparse(node.args[0])):
            self._note(node, f"vars({_short(ast.unparse(node.args[0]))})")
        if name in READERS:
            self._reads(node, name)
        if name in WIRES and isinstance(node.func, ast.Attribute) and self.path.startswith(
            "drivers/"
        ):
            self._note(node, f"wire {_short(ast.unparse(node.func))}")
        self.generic_visit(node)

    def _reads(self, node: ast.Call, reader: str) -> None:
        by_name = reader in ("attrgetter", "methodcaller")
        names = node.args if by_name or reader == "__getattribute__" else node.args[1:2]
        for name in names:
            value = name.value if isinstance(name, ast.Constant) else None
            if isinstance(value, str):
                if set(value.split(".")) & set(METHODS):
                    self._note(node, f"{reader}(..., {value!r})")
            elif by_name or (node.args and ARMS.search(ast.unparse(node.args[0]))):
                self._note(node, f"{reader} by a name made at run time")

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, str) and id(node) not in self._docstrings:
            for topic in TOPICS.finditer(node.value):
                self._note(node, f"topic {topic.group()}")

    def visit_Import(self, node: ast.Import) -> None:
        for name in node.names:
            self._imports(node, name.name)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        self._imports(node, node.module or "")

    def _imports(self, node: ast.AST, module: str) -> None:
        if module.split(".")[0] in LIBRARIES:
            self._note(node, f"import {module.split('.')[0]}")


def _short(receiver: str) -> str:
    return receiver if len(receiver) <= 40 else receiver[:37] + "..."


def _docstrings(tree: ast.AST) -> Iterator[ast.Constant]:
    for node in ast.walk(tree):
        for text in getattr(node, "body", None) if isinstance(getattr(node, "body", None), list) \
                else ():
            if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                yield text.value


def scan_text(path: str, text: str) -> list[Find]:
    return Scan(path, ast.parse(text)).found


@cache
def scan_tree() -> list[Find]:
    files = [file for folder in FOLDERS for file in sorted((REPO / folder).rglob("*.py"))]
    assert len(files) > 50, "the scan looks in the wrong place"
    return [find for file in files
            for find in scan_text(file.relative_to(REPO).as_posix(), file.read_text("utf-8"))]


# (files, function, what): why it may. Patterns as of the shell.
ALLOWED: dict[tuple[str, str, str], str] = {
    # The filter, and what prepares its plans.
    ("robot_rl/safety/filter.py", "SafetyFilter.*", "self._arm.command"):
        "the only command of an arm: a plan whose every row was checked",
    ("robot_rl/safety/filter.py", "SafetyFilter.grip", "self._gripper.command"):
        "the only command of a gripper",
    ("robot_rl/safety/filter.py", "SafetyFilter.rearm", "self._arm.recover"):
        "an operator's release",
    ("robot_rl/safety/filter.py", "SafetyFilter.watch", "self.rearm"):
        "an operator removed the file of the hold with `robot-rl robot rearm`",
    ("robot_rl/safety/planner.py", "Planner.setpoints", "JointSetpoints(...)"):
        "makes the set-points of a checked plan",
    # A person's release.
    ("robot_rl/cli/robot.py", "_rearm_run", "safety.rearm"):
        "the command `robot-rl robot rearm`, after the operator confirmed",
    ("robot_rl/training/demonstrate.py", "Session._await_rearm", "safety.rearm"):
        "the operator's button, while a demonstration is held",
    ("robot_rl/training/driving.py", "Drive._listen", "self.world.safety.rearm"):
        "the operator's button in `robot-rl teleop`",
    # Arms and grippers themselves.
    ("robot_rl/envs/latency.py", "DelayedArm.*", "*"):
        "is an arm itself and hands on what the filter gave it, later",
    ("drivers/robot_rl_drivers/streaming.py", "SetpointStreamer.command", "JointSetpoints(...)"):
        "says what was taken of the filter's set-points",
    ("drivers/robot_rl_drivers/sawyer/arm.py", "SawyerArm.command", "self._streamer.command"):
        "the arm hands the filter's rows to its streamer",
    ("drivers/robot_rl_drivers/franka/crisp.py", "FrankaArm.command", "self._stream().command"):
        "the arm hands the filter's rows to its streamer",
    ("drivers/robot_rl_drivers/franka/direct.py", "FrankyArm.command", "self._streamer.command"):
        "the arm hands the filter's rows to its streamer",
    # What drivers put on the wire.
    ("drivers/robot_rl_drivers/sawyer/arm.py", "SawyerArm.__init__", "topic *"):
        "the topics of the arm",
    ("drivers/robot_rl_drivers/sawyer/arm.py", "module", "topic joint_command"):
        "the name of the arm's topic",
    ("drivers/robot_rl_drivers/sawyer/arm.py", "SawyerArm._claim", "topic joint_command"):
        "makes the publisher of that topic, for the filter's first command",
    ("drivers/robot_rl_drivers/sawyer/arm.py", "SawyerArm._send", "wire self._command.publish"):
        "the streamer's rows",
    ("drivers/robot_rl_drivers/sawyer/arm.py", "SawyerArm._configure", "wire *"):
        "time-out and speed ratio: no motion",
    ("drivers/robot_rl_drivers/sawyer/arm.py", "SawyerArm.recover", "wire self._ask"):
        "reset and enable, in a re-arm",
    ("drivers/robot_rl_drivers/sawyer/arm.py", "SawyerArm._ask", "wire topic.publish"):
        "reset and enable, in a re-arm",
    ("drivers/robot_rl_drivers/sawyer/io_device.py", "*", "wire self._command.publish"):
        "the gripper's own device, commanded by the filter's grip",
    ("drivers/robot_rl_drivers/sawyer/rig.py", "make_rig", "gripper.recover"):
        "handed to the arm, whose recover calls it in a re-arm",
    ("drivers/robot_rl_drivers/franka/crisp.py", "module", "topic target_*"):
        "the topics of the arm",
    ("drivers/robot_rl_drivers/franka/crisp.py", "FrankaArm.*", "topic *"):
        "the topics of the arm",
    ("drivers/robot_rl_drivers/franka/crisp.py", "FrankaArm._publish", "wire self._publishers*"):
        "the streamer's rows",
    ("drivers/robot_rl_drivers/franka/crisp.py", "FrankaArm._hold_here", "wire self._publish"):
        "the measured posture, at rest, before a controller wakes in a re-arm",
    ("drivers/robot_rl_drivers/franka/crisp.py", "FrankaArm._recover_errors", "wire *"):
        "error recovery, in a re-arm",
    ("drivers/robot_rl_drivers/franka/controllers.py", "Controllers.*", "wire *.call_async"):
        "lists controllers, and switches them in a re-arm; moves nothing by itself",
    ("drivers/robot_rl_drivers/franka/gripper.py", "FrankaGripper.*", "wire *"):
        "the gripper itself, commanded by the filter's grip",
    ("drivers/robot_rl_drivers/franka/direct.py", "load_franky", "import franky"):
        "the driver of that library",
    ("drivers/robot_rl_drivers/franka/direct.py", "FrankyArm._take_control", "wire *"):
        "control of the arm where it is, at the filter's first command",
    ("drivers/robot_rl_drivers/franka/direct.py", "FrankyArm._send", "wire motion.set_reference"):
        "the streamer's rows",
    ("drivers/robot_rl_drivers/franka/direct.py", "FrankyArm._stand_still", "wire self._motion*"):
        "stays at the row that was sent last",
    ("drivers/robot_rl_drivers/franka/direct.py", "FrankyArm.recover", "wire *"):
        "error recovery, in a re-arm",
    ("drivers/robot_rl_drivers/franka/direct.py", "FrankyArm._end_control", "wire robot.move"):
        "a stop",
    ("drivers/robot_rl_drivers/franka/direct.py", "FrankyGripper.*", "wire hand.move_async"):
        "the gripper itself, commanded by the filter's grip",
    ("robot_rl/ros/ros1.py", "*", "import rospy"):
        "ROS 1 sessions: topics are made by the drivers",
    # Simulated arms, and simulated robots behind the makers' own topics.
    ("sim/robot_rl_sim/common.py", "SimArm.command", "*"):
        "the simulated arm itself",
    ("sim/robot_rl_sim/robot_process.py", "Physics.step", "*"):
        "a simulated robot's controller moves its own physics",
    ("sim/robot_rl_sim/crisp.py", "SimulatedFranka.*", "*"):
        "a simulated robot listens on these topics",
    ("sim/robot_rl_sim/crisp_gripper.py", "CrispGripper.*", "*"):
        "a simulated gripper listens on these topics",
    ("sim/robot_rl_sim/intera.py", "SimulatedSawyer.*", "*"):
        "a simulated robot listens on these topics",
    # The same words for other things.
    ("robot_rl/cli/main.py", "main", "args.command"):
        "the subcommand that was typed",
    ("examples/record_bag.py", "record", "recorder.command"):
        "writes a message into a bag",
    ("drivers/robot_rl_drivers/franka/gripper.py", "FrankaGripper._goal_for", "goal.command"):
        "a field of an action's goal",
}


def permitted(find: Find) -> tuple[str, str, str] | None:
    for key in ALLOWED:
        path, where, what = key
        if fnmatch(find.path, path) and fnmatch(find.where, where) and fnmatch(find.what, what):
            return key
    return None


def test_nothing_but_the_filter_commands_an_arm():
    new = [str(find) for find in scan_tree() if permitted(find) is None]
    assert not new, (
        "this may move an arm past the safety filter; if it cannot, say why in ALLOWED:\n"
        + "\n".join(new))


def test_the_list_has_nothing_that_the_tree_has_not():
    used = {permitted(find) for find in scan_tree()}
    stale = [" ".join(key) for key in set(ALLOWED) - used]
    assert not stale, "strike these from ALLOWED:\n" + "\n".join(sorted(stale))


def test_the_filter_is_found_commanding_the_arm():
    found = [find for find in scan_tree() if find.path == "robot_rl/safety/filter.py"]
    assert any(find.what == "self._arm.command" for find in found), "the scan is blind"


PLANTED: dict[str, str | tuple[str, str]] = {
    "a plain call": "def f(arm, rows):\n    arm.command(rows)",
    "through attributes": "class A:\n    def f(self):\n        self.rig.arm.command(self.rows)",
    "a method kept for later": "send = env.rig.arm.command",
    "by the class": "SimArm.command(arm, rows)",
    "getattr": "getattr(arm, 'command')(rows)",
    "getattr with a default": "getattr(thing, 'command', None)",
    "getattr by a name put together": "getattr(arm, 'com' + 'mand')(rows)",
    "getattr by a variable": "getattr(self._arm, name)(rows)",
    "hasattr": "hasattr(other, 'rearm')",
    "attrgetter": "operator.attrgetter('arm.command')(rig)(rows)",
    "methodcaller": "methodcaller('command', rows)(arm)",
    "methodcaller by a variable": "methodcaller(name, rows)(arm)",
    "the class's dictionary": "type(arm).__dict__['command'](arm, rows)",
    "vars": "vars(rig.arm)['x'](rows)",
    "__getattribute__": "arm.__getattribute__('command')(rows)",
    "object.__getattribute__": "object.__getattribute__(thing, 'command')(rows)",
    "exec": "exec('arm.com' + 'mand(rows)')",
    "set-points of its own": "x = JointSetpoints(rows, 0.01)",
    "set-points by their module": "x = interfaces.JointSetpoints(rows, 0.01)",
    "a re-arm": "def f(env):\n    env.unwrapped.safety.rearm()",
    "a recovery": "arm.recover()",
    "the simulator's stream": "simulation.stream.load(rows)",
    "Sawyer's topic": "rospy.Publisher('/robot/limb/right/joint_command', JointCommand)",
    "Sawyer's topic in an f-string": "topic = f'{prefix}/joint_command'",
    "Sawyer's reset": "TOPIC = 'robot/set_super_reset'",
    "Franka's target": "node.create_publisher(JointState, 'target_joint', 10)",
    "Franka's recovery": "ActionClient(node, T, '~/error_recovery')",
    "a maker's library": "def f():\n    import franky",
    "a part of a maker's library": "from rospy.core import x",
    "a driver that moves by itself": ("def home(self):\n    self._robot.move(motion)", "drivers/"),
    "a driver that publishes by itself": ("self._publisher.publish(rows)", "drivers/"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_what_is_planted_is_found(name):
    text, folder = PLANTED[name] if isinstance(PLANTED[name], tuple) else (
        PLANTED[name], "robot_rl/envs/")
    found = scan_text(f"{folder}planted.py", text)
    assert found and all(permitted(find) is None for find in found), name


@pytest.mark.parametrize("text", [
    '"""Sends joint_command, see target_joint."""',
    "def f():\n    '''arm.command(rows) on joint_command.'''",
    "command = 3\nprint(command)",
    "stack.load(rows)",
    "getattr(config, name)",
])
def test_what_moves_nothing_is_left_alone(text):
    assert scan_text("robot_rl/envs/planted.py", text) == []
