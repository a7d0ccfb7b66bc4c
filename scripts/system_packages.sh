#!/bin/bash
# Installs the Debian or Ubuntu packages this project needs, only those that are missing, and
# writes the Python to use to standard output. Messages go to standard error.
#   usage: system_packages.sh [PYTHON]
# PYTHON: an interpreter to use instead of the first of 3.11, 3.10, 3.12 that is found.
# SKIP_SYSTEM=1: install nothing.
set -euo pipefail

wanted="${1:-}"
updated=no

say() { echo "robot_rl: $*" >&2; }
die() { say "$@"; exit 1; }

# Is it a released Python 3.10 to 3.12? (Version managers leave stubs on the path that do not run,
# and Ubuntu 22.04 offers a release candidate of 3.11.)
usable() {
    "$1" -c 'import sys; v = sys.version_info
sys.exit(v.releaselevel != "final" or not (3, 10) <= v[:2] < (3, 13))' 2>/dev/null
}

find_python() {
    local candidate
    # 3.11 and 3.10 first: PyBullet has no wheel for 3.12 and has to be compiled there.
    for candidate in python3.11 python3.10 python3 python3.12; do
        if command -v "$candidate" >/dev/null && usable "$candidate"; then
            "$candidate" -c 'import sys; print(sys.executable)'
            return
        fi
    done
    return 1
}

installed() { [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif command -v sudo >/dev/null && { sudo -n true 2>/dev/null || [ -t 0 ]; }; then
        sudo "$@"
    else
        return 1
    fi
}

install_packages() {
    if [ "${SKIP_SYSTEM:-0}" = 1 ]; then
        say "SKIP_SYSTEM=1: not installing $*"
        return
    fi
    say "installing system packages: $*"
    if [ "$updated" = no ]; then
        as_root apt-get update -qq >&2 || die "neither root nor sudo: please run" \
            "'apt-get install $*' as an administrator, or set SKIP_SYSTEM=1 to go on without."
        updated=yes
    fi
    as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends "$@" >&2 ||
        die "apt-get could not install: $*"
}

# Packages that one part of the project can do without: what cannot be had is only told of.
install_optional() {
    local what="$1" found=() package
    shift
    [ "${SKIP_SYSTEM:-0}" != 1 ] || return 0
    if [ "$updated" = no ]; then
        as_root apt-get update -qq >&2 && updated=yes || true
    fi
    for package in "$@"; do
        if apt-cache policy "$package" 2>/dev/null | grep -q 'Candidate: [0-9]'; then
            found+=("$package")
        fi
    done
    if [ "${#found[@]}" -eq "$#" ]; then
        say "installing system packages: ${found[*]}"
        as_root env DEBIAN_FRONTEND=noninteractive \
            apt-get install -y -qq --no-install-recommends "${found[@]}" >&2 && return 0
    fi
    say "left out: $what. To have it: apt-get install $*"
}

have_apt() { command -v apt-get >/dev/null && command -v dpkg-query >/dev/null; }

# 1. A Python.
if [ -n "$wanted" ]; then
    command -v "$wanted" >/dev/null || die "PYTHON=$wanted: no such program"
    usable "$wanted" || die "PYTHON=$wanted is not a released Python 3.10 to 3.12"
    python="$("$wanted" -c 'import sys; print(sys.executable)')"
elif ! python="$(find_python)"; then
    if have_apt; then
        as_root apt-get update -qq >&2 && updated=yes || true
        offered="$(apt-cache policy python3 | sed -n 's/^ *Candidate: \(3\.[0-9]*\)\..*/\1/p')"
        case "$offered" in
            3.10 | 3.11 | 3.12) install_packages python3 python3-venv ;;
        esac
    fi
    python="$(find_python)" || die "found no Python 3.10, 3.11 or 3.12, and this system has no" \
        "package of one (Debian 13 has only 3.13). Install one, for instance with" \
        "'uv python install 3.11', and name it: make PYTHON=/path/to/python3.11"
fi
version="$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')"

# 2. What is missing.
missing=()
if have_apt; then
    # Only the distribution's own Python has its venv module in a package apart.
    if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        missing+=("python$version-venv")
    fi
    # Rendering without a screen: EGL, and Mesa's software driver where there is no GPU.
    for package in libegl1 libgl1 libgles2 libegl-mesa0 libgl1-mesa-dri; do
        installed "$package" || missing+=("$package")
    done
    # Python 3.12 compiles PyBullet.
    if [ "$version" = 3.12 ]; then
        command -v g++ >/dev/null && command -v make >/dev/null || missing+=(build-essential)
        header="$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h"
        [ -e "$header" ] || missing+=("python$version-dev")
    fi
    if [ "${#missing[@]}" -gt 0 ]; then
        install_packages "${missing[@]}"
    fi
    # ROS 1's client, for a Sawyer. It is there for the distribution's own version of Python only.
    if [ -d "/usr/lib/python$version" ]; then
        missing=()
        for package in python3-rospy python3-rosmaster python3-genpy python3-std-msgs \
            python3-sensor-msgs python3-geometry-msgs; do
            installed "$package" || missing+=("$package")
        done
        if [ "${#missing[@]}" -gt 0 ]; then
            install_optional "ROS 1 (backend ros1, for a Sawyer)" "${missing[@]}"
        fi
    fi
else
    say "no apt-get here: EGL and OpenGL libraries (libEGL.so.1, libGL.so.1) are up to you"
fi
"$python" -c 'import ensurepip, venv' 2>/dev/null ||
    die "$python cannot make virtual environments; on Debian or Ubuntu: apt-get install python$version-venv"

say "Python $version: $python"
echo "$python"
