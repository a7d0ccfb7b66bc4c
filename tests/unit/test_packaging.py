"""What gets installed agrees with the source tree."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import runpy
import subprocess
import sys
import types
import xml.etree.ElementTree as ElementTree
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

import robot_rl

ROOT = Path(__file__).resolve().parents[2]
HOMES = {
    "robot_rl": ROOT / "robot_rl",
    "robot_rl_drivers": ROOT / "drivers" / "robot_rl_drivers",
    "robot_rl_sim": ROOT / "sim" / "robot_rl_sim",
    "robot_rl_calibration": ROOT / "calibration" / "robot_rl_calibration",
}


@pytest.fixture(scope="module")
def setup() -> dict[str, Any]:
    """The arguments with which setup.py calls setuptools."""
    import setuptools

    given: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setuptools, "setup", lambda **arguments: given.update(arguments))
        patch.chdir(ROOT)
        runpy.run_path(str(ROOT / "setup.py"))
    return given


def has_source(folder: Path) -> bool:
    return any(folder.glob("*.py"))


def test_the_package_list_is_the_tree(setup):
    found = {
        ".".join((name, *folder.relative_to(home).parts))
        for name, home in HOMES.items()
        for folder in (home, *home.rglob("*"))
        if folder.is_dir() and folder.name != "__pycache__" and has_source(folder)
    }
    assert set(setup["packages"]) == found, "setup.py's PACKAGES differ from the folders with code"
    assert len(setup["packages"]) == len(set(setup["packages"]))


def test_every_package_has_an_init(setup):
    for package in setup["packages"]:
        top, *rest = package.split(".")
        assert (HOMES[top].joinpath(*rest) / "__init__.py").is_file(), package


def test_package_folders_are_where_setup_says(setup):
    for name, home in HOMES.items():
        assert ROOT / setup["package_dir"].get(name, name) == home


def test_data_beside_the_code_is_packaged(setup):
    covered = {
        path
        for package, patterns in setup["package_data"].items()
        for pattern in patterns
        for path in HOMES[package.split(".")[0]].joinpath(*package.split(".")[1:]).glob(pattern)
    }
    present = {
        path
        for home in HOMES.values()
        for path in home.rglob("*")
        if path.is_file()
        and path.suffix not in (".py", ".pyc", ".pyo", ".md")
        and "__pycache__" not in path.parts
    }
    assert present <= covered, f"not in PACKAGE_DATA: {sorted(map(str, present - covered))}"


def test_no_generic_name_is_installed(setup):
    assert {package.split(".")[0] for package in setup["packages"]} == set(HOMES)
    for folder in ("drivers", "sim", "calibration", "launch", "scripts"):
        assert not (ROOT / folder / "__init__.py").exists(), f"{folder}/ must stay a plain folder"
    assert "py_modules" not in setup


def test_the_version_is_the_same_everywhere(setup):
    manifest = ElementTree.parse(ROOT / "package.xml").getroot()
    assert manifest.findtext("version") == setup["version"] == robot_rl.__version__
    assert f"## [{setup['version']}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_manifest_is_an_ament_python_package(setup):
    manifest = ElementTree.parse(ROOT / "package.xml").getroot()
    assert manifest.get("format") == "3"
    assert manifest.findtext("name") == setup["name"] == "robot_rl"
    assert manifest.findtext("export/build_type") == "ament_python"
    assert manifest.findtext("license") == setup["license"] == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")


def test_ros_finds_marker_manifest_launch_files_and_models(setup):
    data_files = dict(setup["data_files"])
    assert data_files["share/ament_index/resource_index/packages"] == ["resource/robot_rl"]
    assert "package.xml" in data_files["share/robot_rl"]
    launch = {f"launch/{path.name}" for path in (ROOT / "launch").glob("*.py")}
    assert launch and set(data_files["share/robot_rl/launch"]) == launch
    models = {path.name for path in (HOMES["robot_rl_sim"] / "urdf").glob("*.urdf")}
    assert {Path(path).name for path in data_files["share/robot_rl/urdf"]} == models
    for paths in data_files.values():
        for path in paths:
            assert (ROOT / path).is_file() and not os.path.isabs(path), path


def test_extras_are_complete(setup):
    extras = setup["extras_require"]
    assert {"sim", "report", "external", "test", "lint", "bench", "all"} <= set(extras)
    assert set(extras["sim"]) | set(extras["test"]) <= set(extras["all"])
    made = re.findall(r"^\w+_EXTRAS := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert made
    for names in made:
        assert set(names.split(",")) <= set(extras), f"the Makefile names unknown extras: {names}"


# Import names that differ from the distribution's.
DISTRIBUTIONS = {
    "cv2": "opencv-python-headless",
    "gymnasium_robotics": "gymnasium-robotics",
    "pybullet_data": "pybullet",
    "pybullet_utils": "pybullet",
    "serial": "pyserial",
    "yaml": "pyyaml",
    "zmq": "pyzmq",
}
# Come with a declared requirement, or from outside any package index.
INDIRECT = {"OpenGL", "mpl_toolkits", "rclpy", "rospy", "roslib", "genpy", "franky"}


def outside_imports(path: Path, at_import: bool) -> set[str]:
    """Third-party names that a file imports: all of them, or those needed to import it at all.

    Imports in functions, in `try` and behind `if TYPE_CHECKING` are not needed to import it.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = set()
    for node in tree.body if at_import else ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add((node.module or "").split(".")[0])
    outside = names - set(sys.stdlib_module_names) - set(HOMES) - INDIRECT
    return {name for name in outside if not name.endswith("_msgs")}


def declared(requirements: list[str]) -> set[str]:
    return {re.split(r"[<>=!~ \[]", requirement)[0].lower() for requirement in requirements}


def undeclared(
    home: Path, requirements: list[str], at_import: bool, skip: tuple[str, ...] = ()
) -> set[str]:
    known = declared(requirements)
    return {
        f"{path.relative_to(ROOT)} imports {name}"
        for path in home.rglob("*.py")
        if not set(skip) & set(path.relative_to(home).parts)
        for name in outside_imports(path, at_import)
        if DISTRIBUTIONS.get(name, name).lower() not in known
    }


def test_what_the_code_imports_is_required(setup):
    core, extras = setup["install_requires"], setup["extras_require"]
    # Two rooms are entered only by who has installed their extra.
    assert not undeclared(HOMES["robot_rl"], core, at_import=True, skip=("report", "ros"))
    assert not undeclared(HOMES["robot_rl_sim"], core + extras["sim"], at_import=True)
    anything = core + [requirement for listed in extras.values() for requirement in listed]
    for home in HOMES.values():
        assert not undeclared(home, anything, at_import=False)


def test_an_undeclared_import_is_found(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    source = "import os, numpy\nfrom yaml import load\ndef f():\n    import cv2, scipy.linalg\n"
    (tmp_path / "module.py").write_text(source)
    assert undeclared(tmp_path, ["PyYAML>=6"], at_import=True) == {"module.py imports numpy"}
    assert undeclared(tmp_path, ["numpy", "pyyaml", "opencv-python-headless"], at_import=False) == {
        "module.py imports scipy"
    }


def test_the_doctor_looks_at_what_is_required(setup):
    from robot_rl.cli.doctor import CORE_PACKAGES

    assert set(CORE_PACKAGES) == declared(setup["install_requires"])


def target_exists(value: str) -> bool:
    """Whether `package.module:function` is defined, told from the source without importing it."""
    module, _, function = value.partition(":")
    top, *rest = module.split(".")
    folder = HOMES[top].joinpath(*rest)
    path = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
    if not path.is_file():
        return False
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    names |= {
        alias.asname or alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    return function in names


def test_entry_points_lead_somewhere(setup):
    assert setup["entry_points"].keys() == {
        "console_scripts", "robot_rl.backends", "robot_rl.cameras", "robot_rl.simulated_robots",
        "robot_rl.teleops",
    }
    for group, lines in setup["entry_points"].items():
        for line in lines:
            _, value = line.split(" = ")
            assert target_exists(value), f"{group}: nothing at {value}"


def test_installed_entry_points_load(setup):
    try:
        installed = metadata.distribution("robot_rl")
    except metadata.PackageNotFoundError:
        pytest.skip("robot_rl is not installed, only on the path")
    assert installed.version == setup["version"], "installed is an older version: install again"
    points = {(point.group, point.name): point for point in installed.entry_points}
    assert callable(points["console_scripts", "robot-rl"].load())
    for group, lines in setup["entry_points"].items():
        for line in lines:
            name, value = line.split(" = ")
            assert points[group, name].value == value, f"{group}, {name}: install again"
    for engine in ("mujoco", "pybullet"):
        point = points["robot_rl.backends", engine]
        if importlib.util.find_spec(engine):
            assert callable(point.load())


# -- the launch files ------------------------------------------------------------------------


class Recorded:
    """Stands in for a class of ROS 2's `launch` and keeps what it was given."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.args, self.kwargs = args, kwargs


def load_demo_launch(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The actions of demo.launch.py, with stand-ins for the classes of ROS 2's `launch`."""
    names = {
        "launch": ["LaunchDescription"],
        "launch.actions": ["DeclareLaunchArgument", "ExecuteProcess", "SetEnvironmentVariable"],
        "launch.substitutions": ["LaunchConfiguration"],
        "launch_ros": [],
        "launch_ros.substitutions": ["ExecutableInPackage"],
    }
    for module_name, classes in names.items():
        module = types.ModuleType(module_name)
        for name in classes:
            setattr(module, name, type(name, (Recorded,), {}))
        monkeypatch.setitem(sys.modules, module_name, module)
    launch_file = runpy.run_path(str(ROOT / "launch" / "demo.launch.py"))
    return launch_file["generate_launch_description"]().args[0]


def test_the_demo_launch_file_runs_the_command(monkeypatch):
    actions = load_demo_launch(monkeypatch)
    by_type: dict[str, list[Any]] = {}
    for action in actions:
        by_type.setdefault(type(action).__name__, []).append(action)
    declared = {action.args[0] for action in by_type["DeclareLaunchArgument"]}
    (process,) = by_type["ExecuteProcess"]
    command = process.kwargs["cmd"]
    used = {part.args[0] for part in command if type(part).__name__ == "LaunchConfiguration"}
    used |= {action.args[1].args[0] for action in by_type["SetEnvironmentVariable"]}
    assert used == declared, "arguments are declared and used alike"
    assert command[0].args == ("robot-rl", "robot_rl")
    assert command[1] == "demo"


def test_the_demo_command_knows_the_launch_files_options(monkeypatch):
    if not (ROOT / "robot_rl" / "cli" / "main.py").is_file():
        pytest.skip("there is no command line yet")
    (process,) = [a for a in load_demo_launch(monkeypatch) if type(a).__name__ == "ExecuteProcess"]
    options = [part for part in process.kwargs["cmd"] if isinstance(part, str) and part[:2] == "--"]
    done = subprocess.run(
        [sys.executable, "-c", "from robot_rl.cli.main import main; main(['demo', '--help'])"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *map(str, path_folders())])},
        capture_output=True,
        text=True,
        timeout=120,
    )
    for option in options:
        assert option in done.stdout, (
            f"robot-rl demo does not know {option}:\n{done.stdout}{done.stderr}"
        )


def path_folders() -> list[Path]:
    return [home.parent for name, home in HOMES.items() if name != "robot_rl"]


@pytest.mark.parametrize("path", sorted((ROOT / "launch").glob("*.py")), ids=lambda path: path.name)
def test_launch_files_are_named_and_shaped_as_ros_expects(path):
    assert path.name.endswith(".launch.py")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert "generate_launch_description" in functions
