"""What works on this machine, what is missing and how to get it: the checks of `robot-rl doctor`.

Everything that can crash or hang (graphics drivers, compiled libraries, device discovery) runs in
a process of its own with a time limit. Those programs are texts (doctor_programs.py): this
package itself imports no simulator and no ROS.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robot_rl.cli.doctor_programs import (
    BULLET_RENDER,
    BULLET_STEP,
    IMPORT,
    MUJOCO_RENDER,
    MUJOCO_STEP,
    PLOT,
    REALSENSE,
    ROS1,
    TORCH,
    VIDEO,
)

OLDEST_PYTHON, FIRST_UNTRIED_PYTHON = (3, 10), (3, 13)
NEEDED_DISK_GIB = 2.0
PROBE_TIMEOUT_S = 90.0

# Distribution: the name under which it is imported.
CORE_PACKAGES = {
    "numpy": "numpy",
    "torch": "torch",
    "gymnasium": "gymnasium",
    "mcap": "mcap",
    "lz4": "lz4",
    "safetensors": "safetensors",
    "ruckig": "ruckig",
    "pyyaml": "yaml",
    "tqdm": "tqdm",
}
MUJOCO_GL_CHOICES = ("egl", "osmesa", "glfw")


@dataclass(frozen=True)
class Check:
    """One line of the report. `hint` says how to get what is missing and is empty otherwise."""

    name: str
    ok: bool
    detail: str
    hint: str = ""
    required: bool = False


@dataclass(frozen=True)
class Probe:
    """What a probing process said: `data` is the JSON object of its last line, if it succeeded."""

    ok: bool
    data: Mapping[str, Any]
    fault: str = ""


def run_probe(
    source: str,
    arguments: tuple[str, ...] = (),
    env: Mapping[str, str | None] | None = None,
    timeout_s: float = PROBE_TIMEOUT_S,
) -> Probe:
    """Run `source` in a Python process; a crash or a hang there becomes a `fault` in words.

    `env` overrides variables; None removes one.
    """
    environment = dict(os.environ)
    for name, value in (env or {}).items():
        if value is None:
            environment.pop(name, None)
        else:
            environment[name] = value
    try:
        done = subprocess.run(
            [sys.executable, "-c", source, *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
        )
    except subprocess.TimeoutExpired:
        return Probe(False, {}, f"no answer within {timeout_s:g} s")
    except OSError as error:
        return Probe(False, {}, f"could not start {sys.executable}: {error}")
    if done.returncode < 0:
        return Probe(False, {}, f"crashed ({_signal_name(-done.returncode)})")
    if done.returncode > 0:
        return Probe(False, {}, _fault_line(done.stderr) or f"exit status {done.returncode}")
    try:
        data = json.loads(done.stdout.strip().splitlines()[-1])
    except (IndexError, json.JSONDecodeError):
        data = None
    if not isinstance(data, dict):
        return Probe(False, {}, "gave no answer")
    return Probe(True, data)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _fault_line(stderr: str) -> str:
    """The line that names the exception, which a traceback has at its end."""
    lines = [line for line in stderr.splitlines() if line.strip()]
    named = [line for line in lines if line[0].isalpha() and ": " in line and "Error" in line]
    line = (named or lines or [""])[-1].strip()
    return line if len(line) <= 160 else line[:157] + "..."


def _extra(name: str) -> str:
    return f"pip install -e '.[{name}]' (in the source tree)"


def _is_absent(fault: str, module: str) -> bool:
    return fault.startswith("ModuleNotFoundError") and f"'{module}'" in fault


def check_python() -> Check:
    """The interpreter's version lies between the oldest supported and the first untried one."""
    version = sys.version_info[:2]
    return Check(
        "Python",
        OLDEST_PYTHON <= version < FIRST_UNTRIED_PYTHON,
        f"{platform.python_version()} at {sys.executable}",
        f"use Python {_dotted(OLDEST_PYTHON)} or newer, older than "
        f"{_dotted(FIRST_UNTRIED_PYTHON)}; with make: make PYTHON=/path/to/python3.11",
        required=True,
    )


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"


def check_core_packages() -> Check:
    """What setup.py requires imports, and in which versions."""
    versions, faults = [], []
    for distribution, module in CORE_PACKAGES.items():
        probe = run_probe(IMPORT, (module, distribution))
        if probe.ok:
            versions.append(f"{distribution} {probe.data['version']}")
        else:
            faults.append(f"{distribution}: {probe.fault}")
    return Check(
        "core packages",
        not faults,
        "; ".join(faults) if faults else ", ".join(versions),
        "pip install " + " ".join(f.split(":")[0] for f in faults),
        required=True,
    )


def check_torch() -> Check:
    """PyTorch multiplies matrices on the processor and on every GPU it sees."""
    probe = run_probe(TORCH)
    if not probe.ok:
        return Check("torch", False, probe.fault, "pip install 'torch>=2.4'", required=True)
    data = probe.data
    gpus = ", ".join(data["gpus"])
    if not gpus:
        build = f"built for CUDA {data['cuda']}" if data["cuda"] else "built without CUDA"
        gpus = f"no GPU ({build})"
    return Check(
        "torch",
        bool(data["finite"]),
        f"{data['version']}, {data['threads']} threads, {gpus}",
        "matrix products are not finite: reinstall with pip install --force-reinstall torch",
        required=True,
    )


def check_mujoco() -> Check:
    """MuJoCo lets a box fall."""
    return _engine_check("MuJoCo", "mujoco", MUJOCO_STEP)


def check_bullet() -> Check:
    """PyBullet lets a box fall."""
    return _engine_check("PyBullet", "pybullet", BULLET_STEP)


def _engine_check(title: str, module: str, source: str) -> Check:
    probe = run_probe(source, env={"MUJOCO_GL": "disabled"})
    if probe.ok:
        return Check(title, True, f"{probe.data['version']}, steps")
    absent = _is_absent(probe.fault, module)
    hint = _extra("sim") if absent else f"pip install --force-reinstall {module}"
    return Check(title, False, "not installed" if absent else probe.fault, hint)


def check_mujoco_rendering() -> Check:
    """Which values of MUJOCO_GL give a picture here, and whether the one set is among them."""
    with ThreadPoolExecutor(max_workers=len(MUJOCO_GL_CHOICES)) as pool:
        answers = pool.map(_render_with, MUJOCO_GL_CHOICES)
        probes = dict(zip(MUJOCO_GL_CHOICES, answers, strict=True))
    name = "MuJoCo rendering"
    if any(_is_absent(probe.fault, "mujoco") for probe in probes.values()):
        return Check(name, False, "MuJoCo is not installed", _extra("sim"))
    works = [choice for choice in MUJOCO_GL_CHOICES if probes[choice].ok]
    if not works:
        detail = "; ".join(f"{choice}: {probe.fault}" for choice, probe in probes.items())
        packages = "libegl1 libgl1 libgles2 libegl-mesa0 libgl1-mesa-dri"
        return Check(name, False, detail, f"apt install {packages}, then set MUJOCO_GL=egl")
    drawn_by = {probes[choice].data["renderer"] or choice for choice in works}
    detail = f"MUJOCO_GL={' or '.join(works)} works ({', '.join(sorted(drawn_by))})"
    chosen = os.environ.get("MUJOCO_GL", "")
    if chosen.lower() in MUJOCO_GL_CHOICES and chosen.lower() not in works:
        fault = f"MUJOCO_GL={chosen} is set and fails; {detail}"
        return Check(name, False, fault, f"set MUJOCO_GL={works[0]}")
    return Check(name, True, detail)


def _render_with(choice: str) -> Probe:
    # PyOpenGL has a variable of its own, which MuJoCo refuses where the two differ.
    return run_probe(MUJOCO_RENDER, env={"MUJOCO_GL": choice, "PYOPENGL_PLATFORM": None})


def check_bullet_rendering() -> Check:
    """PyBullet's software renderer draws a box, and hands pictures over as numpy arrays."""
    probe = run_probe(BULLET_RENDER)
    name = "PyBullet rendering"
    if not probe.ok:
        absent = _is_absent(probe.fault, "pybullet")
        detail = "PyBullet is not installed" if absent else probe.fault
        return Check(name, False, detail, _extra("sim"))
    return Check(
        name,
        bool(probe.data["numpy"]),
        "software renderer works" + ("" if probe.data["numpy"] else ", but without numpy: slow"),
        "pip install numpy setuptools wheel, then pip install --force-reinstall --no-deps "
        "--no-build-isolation --no-binary pybullet pybullet",
    )


def check_video() -> Check:
    """PyAV writes H.264 and reads it back."""
    probe = run_probe(VIDEO)
    if probe.ok:
        return Check("video", True, f"av {probe.data['version']}, H.264 by {probe.data['codec']}")
    absent = _is_absent(probe.fault, "av")
    hint = _extra("report") if absent else "pip install --force-reinstall av"
    return Check("video", False, "av is not installed" if absent else probe.fault, hint)


def check_matplotlib() -> Check:
    """Matplotlib draws a plot without a screen."""
    return _import_check("matplotlib", "matplotlib", "matplotlib", "report", PLOT)


def check_tensorboard() -> Check:
    """TensorBoard imports."""
    return _import_check("tensorboard", "tensorboard", "tensorboard", "report")


def check_opencv() -> Check:
    """OpenCV imports."""
    return _import_check("OpenCV", "cv2", "opencv-python-headless", "report")


def check_rosbags() -> Check:
    """What reads ROS bags."""
    return _import_check("rosbags", "rosbags.highlevel", "rosbags", "data")


def check_hdf5() -> Check:
    """What reads Minari, robomimic and D4RL data."""
    return _import_check("h5py", "h5py", "h5py", "data")


def check_parquet() -> Check:
    """What reads LeRobot data."""
    return _import_check("pyarrow", "pyarrow.parquet", "pyarrow", "data")


def check_cyclonedds() -> Check:
    """The wheel that speaks ROS 2's wire format where ROS 2 is not installed."""
    return _import_check("cyclonedds", "cyclonedds", "cyclonedds", "ros")


def check_franky() -> Check:
    """The library that drives a Franka without ROS."""
    return _import_check("franky", "franky", "franky-control", "franka")


def check_pyserial() -> Check:
    """What reads a sensor on a serial line."""
    return _import_check("pyserial", "serial", "pyserial", "sensors")


def check_spacemouse() -> Check:
    """What reads a SpaceMouse."""
    return _import_check("pyspacemouse", "pyspacemouse", "pyspacemouse", "teleop")


def check_gamepad() -> Check:
    """What reads a gamepad."""
    return _import_check("pygame", "pygame", "pygame", "teleop")


def check_zmq() -> Check:
    """The link between actor and learner."""
    return _import_check("pyzmq", "zmq", "pyzmq", "link")


def _import_check(
    title: str, module: str, distribution: str, extra: str, source: str = IMPORT
) -> Check:
    probe = run_probe(source, (module, distribution))
    if probe.ok:
        return Check(title, True, str(probe.data["version"]))
    absent = _is_absent(probe.fault, module)
    return Check(
        title,
        False,
        "not installed" if absent else probe.fault,
        _extra(extra),
    )


def check_ros2() -> Check:
    """ROS 2's Python client imports in this interpreter."""
    probe = run_probe(IMPORT, ("rclpy", "rclpy"))
    distribution = os.environ.get("ROS_DISTRO", "")
    if probe.ok:
        return Check("ROS 2", True, f"rclpy {probe.data['version']} ({distribution or 'unnamed'})")
    if distribution:
        hint = f"apt install ros-{distribution}-rclpy; use the Python that ROS was built for"
    else:
        hint = (
            "install ROS 2 (Humble to Jazzy), then source /opt/ros/<name>/setup.bash; "
            f"the same nodes run without it after: {_extra('ros')}"
        )
    return Check("ROS 2", False, _short_absence(probe.fault, "rclpy"), hint)


def check_ros1() -> Check:
    """ROS 1's Python client can be reached from this interpreter, which Sawyer needs."""
    probe = run_probe(ROS1)
    if probe.ok:
        return Check("ROS 1", True, f"rospy {probe.data['version']}")
    fault = probe.fault.partition("MissingDependencyError: ")[2] or probe.fault
    return Check("ROS 1", False, fault, "only for Sawyer: scripts/system_packages.sh installs it")


def _short_absence(fault: str, module: str) -> str:
    return f"{module} is not installed" if _is_absent(fault, module) else fault


def check_cameras() -> Check:
    """RealSense cameras that answer, and video devices of any make."""
    devices = ", ".join(str(path) for path in sorted(Path("/dev").glob("video*")))
    others = f"video devices: {devices or 'none'}"
    probe = run_probe(REALSENSE)
    if not probe.ok:
        fault = _short_absence(probe.fault, "pyrealsense2")
        return Check("cameras", False, f"{fault}; {others}", _extra("cameras"))
    found = probe.data["devices"]
    return Check(
        "cameras",
        bool(found) or bool(devices),
        f"RealSense: {', '.join(found) or 'none'}; {others}",
        "connect a camera by USB 3; a RealSense also needs the udev rules of librealsense",
    )


def check_disk(folder: Path) -> Check:
    """Room for a run's checkpoints and videos."""
    try:
        free = shutil.disk_usage(folder).free / 2**30
    except OSError as error:
        return Check("disk", False, str(error), f"check that {folder} exists", required=True)
    return Check(
        "disk",
        free >= NEEDED_DISK_GIB,
        f"{free:.1f} GiB free in {folder}",
        f"free at least {NEEDED_DISK_GIB:g} GiB or run in another folder",
        required=True,
    )


def check_writable(folder: Path) -> Check:
    """Runs are written below the current folder, so a file is really created there."""
    name = "write permission"
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".robot_rl_doctor_") as file:
            file.write(b"x")
            file.flush()
    except OSError as error:
        return Check(name, False, f"{folder}: {error.strerror}", "run in your own folder", True)
    return Check(name, True, f"can write to {folder}", required=True)


def check_processors() -> Check:
    """How many processors this process may use."""
    try:
        usable = len(os.sched_getaffinity(0))
    except AttributeError:  # not on this operating system
        usable = os.cpu_count() or 1
    detail = f"{usable} of {os.cpu_count() or usable} usable"
    if hasattr(os, "getloadavg"):
        detail += f", load {os.getloadavg()[0]:.1f}"
    return Check("processors", True, detail)


def run_checks() -> list[Check]:
    """Every check, in the order of the report. Takes seconds; never raises."""
    folder = Path.cwd()
    checks: list[tuple[str, Callable[[], Check]]] = [
        ("Python", check_python),
        ("core packages", check_core_packages),
        ("torch", check_torch),
        ("disk", lambda: check_disk(folder)),
        ("write permission", lambda: check_writable(folder)),
        ("processors", check_processors),
        ("MuJoCo", check_mujoco),
        ("MuJoCo rendering", check_mujoco_rendering),
        ("PyBullet", check_bullet),
        ("PyBullet rendering", check_bullet_rendering),
        ("video", check_video),
        ("matplotlib", check_matplotlib),
        ("tensorboard", check_tensorboard),
        ("OpenCV", check_opencv),
        ("rosbags", check_rosbags),
        ("h5py", check_hdf5),
        ("pyarrow", check_parquet),
        ("ROS 2", check_ros2),
        ("ROS 1", check_ros1),
        ("cyclonedds", check_cyclonedds),
        ("franky", check_franky),
        ("pyserial", check_pyserial),
        ("pyspacemouse", check_spacemouse),
        ("pygame", check_gamepad),
        ("pyzmq", check_zmq),
        ("cameras", check_cameras),
    ]
    with ThreadPoolExecutor(max_workers=max(2, os.cpu_count() or 2)) as pool:
        return list(pool.map(lambda item: _guarded(*item), checks))


def _guarded(name: str, check: Callable[[], Check]) -> Check:
    """A fault in a check is a line of the report, never the report's end."""
    try:
        found = check()
    except Exception as error:
        detail = f"the check failed: {type(error).__name__}: {error}"
        return Check(name, False, detail, "report this as a fault of robot_rl", required=True)
    return found if not found.ok else Check(found.name, True, found.detail, "", found.required)


def all_required_ok(checks: list[Check]) -> bool:
    """Whether everything that the package cannot do without works."""
    return all(check.ok for check in checks if check.required)


def format_checks(checks: list[Check]) -> str:
    """The report: one line for each check, the way to get what is missing below it, a verdict."""
    width = max((len(check.name) for check in checks), default=0)
    lines = []
    for check in checks:
        mark = "ok     " if check.ok else ("MISSING" if check.required else "without")
        lines.append(f"{mark}  {check.name:<{width}}  {check.detail}")
        if not check.ok and check.hint:
            lines.append(f"{'':>{width + 11}}-> {check.hint}")
    broken = [check.name for check in checks if check.required and not check.ok]
    optional = sum(not check.ok for check in checks if not check.required)
    lines.append("")
    if broken:
        lines.append(f"Not ready: {', '.join(broken)}.")
    else:
        parts = "part" if optional == 1 else "parts"
        rest = f" ({optional} optional {parts} missing)" if optional else ""
        lines.append(f"Everything required works{rest}.")
    return "\n".join(lines)
