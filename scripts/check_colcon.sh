#!/bin/bash
# Builds the package with colcon, plainly and with --symlink-install, and looks at the result:
# do the packages import from there, do launch files, models and the executable lie where ROS 2
# looks for them? Needs no ROS installation. Everything is written to a temporary folder.
#   usage: check_colcon.sh [PYTHON]    PYTHON has the project's dependencies (default: .venv's)
set -euo pipefail

repo="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
python="${1:-$repo/.venv/bin/python}"
[ -x "$(command -v "$python")" ] || { echo "no Python at $python; run 'make setup' first" >&2; exit 1; }

work="$(mktemp -d "${TMPDIR:-/tmp}/robot_rl_colcon.XXXXXX")"
trap 'rm -rf "$work"' EXIT

# Without this mark colcon looks for packages in the virtual environment.
if [ -d "$repo/.venv" ]; then touch "$repo/.venv/COLCON_IGNORE"; fi

echo "colcon: installing it into a throw-away environment"
"$python" -m venv "$work/venv"
# From version 80 on setuptools' develop command lacks what --symlink-install needs; colcon then
# quietly copies instead. ROS 2 distributions carry versions below 70.
"$work/venv/bin/python" -m pip --disable-pip-version-check --quiet install \
    "setuptools>=59,<70" wheel colcon-common-extensions catkin_pkg

export PYTHONDONTWRITEBYTECODE=1
before="$(ls -A "$repo")"

for mode in install symlink-install; do
    echo "colcon: build, mode $mode"
    options=()
    if [ "$mode" = symlink-install ]; then options=(--symlink-install); fi
    # colcon's own environment comes first, so that `python3` and `setup.py` use it.
    (
        cd "$work"
        export PATH="$work/venv/bin:$PATH"
        unset PYTHONPATH
        found="$(colcon --log-base "$work/$mode/log" list --names-only --base-paths "$repo")"
        [ "$found" = robot_rl ] || { echo "colcon found these packages: '$found'" >&2; exit 1; }
        colcon --log-base "$work/$mode/log" build \
            --base-paths "$repo" --packages-select robot_rl \
            --build-base "$work/$mode/build" --install-base "$work/$mode/install" \
            --event-handlers console_cohesion+ "${options[@]}"
    ) > "$work/$mode.log" 2>&1 || { cat "$work/$mode.log"; exit 1; }
    if grep -qE "doesn't explicitly install|falling back to full" -r "$work/$mode.log" "$work/$mode/log"; then
        grep -hE "doesn't explicitly install|falling back to full" -r "$work/$mode.log" "$work/$mode/log"
        exit 1
    fi
    (
        cd "$work"
        set +u
        # shellcheck disable=SC1091
        source "$work/$mode/install/local_setup.bash"
        set -u
        "$python" - "$repo" "$work/$mode" "$mode" <<'PY'
import importlib
import os
import sys
from importlib.metadata import entry_points
from pathlib import Path

repo, root, mode = Path(sys.argv[1]), Path(sys.argv[2]).resolve(), sys.argv[3]
prefix = root / "install" / "robot_rl"
faults = []


def check(good: bool, text: str) -> None:
    print(f"  {'ok' if good else 'FAILED'}: {text}")
    if not good:
        faults.append(text)


# Imported through the path that sourcing the install folder set, not from the source tree.
for name in ("robot_rl", "robot_rl_sim", "robot_rl_drivers", "robot_rl_calibration"):
    where = Path(importlib.import_module(name).__file__)
    check(root in where.parents, f"{name} imports from {where.relative_to(root) if root in where.parents else where}")
    check(where.is_symlink() or where.parent.is_symlink() or mode == "install",
          f"{name} follows the source tree" if mode != "install" else f"{name} is a copy")

backends = {point.name for point in entry_points(group="robot_rl.backends")}
check({"mujoco", "pybullet"} <= backends, f"backends are announced: {sorted(backends)}")

share = prefix / "share" / "robot_rl"
expected = [share / "package.xml",
            prefix / "share" / "ament_index" / "resource_index" / "packages" / "robot_rl"]
expected += [share / "launch" / path.name for path in sorted(repo.glob("launch/*.launch.py"))]
expected += [share / "urdf" / path.name for path in sorted(repo.glob("sim/robot_rl_sim/urdf/*.urdf"))]
for path in expected:
    check(path.is_file(), str(path.relative_to(prefix)))
check((share / "launch").is_dir(), "share/robot_rl/launch")

program = prefix / "lib" / "robot_rl" / "robot-rl"
check(os.access(program, os.X_OK), str(program.relative_to(prefix)))
check(str(prefix) in os.environ.get("AMENT_PREFIX_PATH", ""), "AMENT_PREFIX_PATH names the prefix")

package_data = [path.relative_to(repo) for path in sorted(repo.glob("robot_rl/specs/*.yaml"))]
home = Path(importlib.import_module("robot_rl").__file__).parent
for path in [Path("robot_rl/py.typed"), *package_data]:
    check((home.parent / path).is_file(), f"{path} is installed beside the code")
sim_home = Path(importlib.import_module("robot_rl_sim").__file__).parent
for path in sorted(repo.glob("sim/robot_rl_sim/urdf/*.urdf")):
    check((sim_home / "urdf" / path.name).is_file(), f"robot_rl_sim/urdf/{path.name} is installed beside the code")

sys.exit(1 if faults else 0)
PY
    )
done

[ "$before" = "$(ls -A "$repo")" ] || { echo "colcon left something in the source tree" >&2; exit 1; }
echo "colcon: both modes build and install"
