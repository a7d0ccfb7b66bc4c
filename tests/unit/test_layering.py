"""Dependencies point one way: launch -> drivers | sim | calibration -> robot_rl.

Read from the source texts, so that an import inside a function, behind TYPE_CHECKING or through
`importlib.import_module("...")` counts as well.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Package: the folder it lies in.
PACKAGES = {
    "robot_rl": "robot_rl",
    "robot_rl_drivers": "drivers/robot_rl_drivers",
    "robot_rl_sim": "sim/robot_rl_sim",
    "robot_rl_calibration": "calibration/robot_rl_calibration",
}
SIBLINGS = {"robot_rl_drivers", "robot_rl_sim", "robot_rl_calibration"}
ROS_CLIENTS = {"rclpy", "rospy", "launch", "launch_ros", "ament_index_python"}
SIMULATORS = {"mujoco", "pybullet", "pybullet_data", "pybullet_utils"}
# Folders of the source tree, which an installed package does not see.
FOLDERS = {"drivers", "sim", "calibration", "tests"}
ROS_ROOM = "robot_rl.ros"


def imported_names(tree: ast.AST, module: str, is_package: bool) -> Iterator[tuple[int, str]]:
    """Line and absolute name of everything that a module imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, absolute_name(node, module, is_package)
        elif isinstance(node, ast.Call) and node.args:
            called = node.func.attr if isinstance(node.func, ast.Attribute) else node.func
            name = called.id if isinstance(called, ast.Name) else called
            first = node.args[0]
            if name in ("import_module", "__import__") and isinstance(first, ast.Constant):
                yield node.lineno, str(first.value)


def absolute_name(node: ast.ImportFrom, module: str, is_package: bool) -> str:
    if not node.level:
        return node.module or ""
    parts = module.split(".")
    keep = len(parts) - node.level + (1 if is_package else 0)
    return ".".join([*parts[: max(keep, 0)], *([node.module] if node.module else [])])


def forbidden(module: str) -> set[str]:
    """The top-level names that a module may not import."""
    package = module.split(".")[0]
    names = FOLDERS | (SIBLINGS - {package})
    if not f"{module}.".startswith(f"{ROS_ROOM}."):
        names |= ROS_CLIENTS
    if package == "robot_rl":
        names |= SIMULATORS
    return names


def violations(source: str, module: str, is_package: bool = False) -> list[str]:
    """What a module's source text imports against the rules, one line of text each."""
    names = forbidden(module)
    return [
        f"{module}, line {line}: imports {name}"
        for line, name in imported_names(ast.parse(source), module, is_package)
        if name.split(".")[0] in names
    ]


def module_name(path: Path, package: str) -> str:
    parts = path.relative_to((ROOT / PACKAGES[package]).parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def source_files() -> list[tuple[str, Path]]:
    return [
        (package, path)
        for package, folder in PACKAGES.items()
        for path in sorted((ROOT / folder).rglob("*.py"))
    ]


def test_no_module_imports_against_the_rules():
    files = source_files()
    assert {package for package, _ in files} == set(PACKAGES), "a package has no source files"
    found = [
        text
        for package, path in files
        for text in violations(
            path.read_text(encoding="utf-8"), module_name(path, package), path.name == "__init__.py"
        )
    ]
    assert not found, "forbidden imports:\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("robot_rl.envs.env", "import robot_rl_sim"),
        ("robot_rl.envs.env", "from robot_rl_drivers.franka import Franka"),
        ("robot_rl.envs.env", "import numpy, mujoco.viewer as viewer"),
        ("robot_rl.envs.env", "def f():\n    import pybullet_data"),
        ("robot_rl.envs.env", "if TYPE_CHECKING:\n    from mujoco import MjModel"),
        ("robot_rl.envs.env", "import importlib\nimportlib.import_module('mujoco')"),
        ("robot_rl.envs.env", "from importlib import import_module\nimport_module('rclpy.node')"),
        ("robot_rl.envs.env", "__import__('pybullet')"),
        ("robot_rl.envs.env", "from rclpy.node import Node"),
        ("robot_rl.rosy", "import rclpy"),
        ("robot_rl.ros.node", "import robot_rl_sim"),
        ("robot_rl.ros.node", "import mujoco"),
        ("robot_rl_drivers.franka", "import rclpy"),
        ("robot_rl_drivers.sawyer", "import rospy"),
        ("robot_rl_drivers.franka", "from robot_rl_calibration import hand_eye"),
        ("robot_rl_sim.scene", "import robot_rl_drivers"),
        ("robot_rl_calibration.hand_eye", "import robot_rl_sim.scene"),
        ("robot_rl_sim.scene", "from sim.robot_rl_sim import scene"),
        ("robot_rl.envs.env", "from tests.helpers import rig"),
    ],
)
def test_the_checker_flags_a_bad_import(module, source):
    assert len(violations(source, module)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("robot_rl.ros.node", "import rclpy\nfrom rclpy.node import Node"),
        ("robot_rl_sim.mujoco_engine", "import mujoco\nimport robot_rl.specs"),
        ("robot_rl_sim.scene", "from .bullet_engine import make_rig\nfrom . import mujoco_engine"),
        ("robot_rl_drivers.franka", "from robot_rl.interfaces import Arm"),
        ("robot_rl.envs.env", "from .. import sim\nfrom ..launch import x\nfrom . import drivers"),
        ("robot_rl.cli.doctor", "text = 'import mujoco'\nload(name)"),
    ],
)
def test_the_checker_lets_good_imports_pass(module, source):
    assert violations(source, module) == []


def test_relative_imports_are_resolved():
    def names(source: str, module: str, is_package: bool) -> list[str]:
        return [name for _, name in imported_names(ast.parse(source), module, is_package)]

    assert names("from ..data import log", "robot_rl.envs.env", False) == ["robot_rl.data"]
    assert names("from .tasks import push", "robot_rl.envs", True) == ["robot_rl.envs.tasks"]
    assert names("from . import tasks", "robot_rl.envs", True) == ["robot_rl.envs"]


def test_the_core_imports_without_simulators_plots_and_ros():
    program = """
        import importlib.abc, sys

        BLOCKED = {"mujoco", "pybullet", "cv2", "matplotlib", "tensorboard", "av", "rclpy",
                   "gymnasium_robotics", "robot_rl_sim", "robot_rl_drivers", "robot_rl_calibration"}

        class Blocker(importlib.abc.MetaPathFinder):
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] in BLOCKED:
                    raise ModuleNotFoundError(f"No module named {name!r}", name=name)

        sys.meta_path.insert(0, Blocker())
        try:
            import cv2
        except ModuleNotFoundError:
            pass
        else:
            raise SystemExit("the blocker does not block")
        import robot_rl
        import robot_rl.cli.doctor
        assert not BLOCKED & {name.split(".")[0] for name in sys.modules}
        print(robot_rl.__version__)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
