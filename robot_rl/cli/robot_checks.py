"""The checks of `robot-rl robot check`: is this arm fit to be driven. Nothing here moves it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from robot_rl.errors import RobotRLError
from robot_rl.interfaces import Array, Rig
from robot_rl.kinematics import Kinematics
from robot_rl.safety import SafetyConfig
from robot_rl.sensors import BiasOptions

_POLL_S = 0.002
_LEAST_STATE_HZ = 20.0
_LEAST_CAMERA_HZ = 2.0
_AT_REST_RAD_S = 0.05
_LEAN_RAD = 0.1
_TOLERANCE_M = 0.01
_CAMERA_AGE_S = 1.0
_FORCE_PERIOD_S = 0.02
_FIRST_DATA_S = 3.0
"""How long a rig that has just been connected may take until its first readings [s]."""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    ok: bool
    detail: str


Answer = tuple[bool, str]


def check_rig(
    rig: Rig, safety: SafetyConfig, *, seconds: float = 1.0, hold: str | None = None
) -> list[Check]:
    """Look at everything that a rig has, for ``seconds`` each where a rate is measured.

    ``hold`` is why the arm was left held, None if it was not.
    """
    found: list[Check] = []
    for name, look in _looks(rig, safety, seconds, hold):
        try:
            ok, detail = look()
        except (RobotRLError, OSError, ValueError, TypeError) as error:
            ok, detail = False, " ".join(str(error).split())
        found.append(Check(name, ok, detail))
    found += _own_checks(rig)
    return found


def _looks(
    rig: Rig, safety: SafetyConfig, seconds: float, hold: str | None
) -> Iterator[tuple[str, Callable[[], Answer]]]:
    yield "clock", lambda: _clock(rig)
    yield "state", lambda: _state(rig, safety, seconds)
    yield "joint limits", lambda: _limits(rig, safety)
    yield "tool", lambda: _tool(rig, safety)
    yield "status", lambda: _status(rig)
    yield "hold", lambda: (hold is None, hold or "the arm is not held")
    yield "gripper", lambda: _gripper(rig, safety)
    for name in rig.cameras:
        yield f"camera {name}", lambda name=name: _camera(rig, name, seconds)  # type: ignore[misc]
    if rig.force is not None:
        yield "force", lambda: _force(rig)
    for name in rig.sensors:
        yield f"sensor {name}", lambda name=name: _sensor(rig, name)  # type: ignore[misc]
    for name, watch in rig.watches.items():
        yield f"watch {name}", lambda watch=watch: _watch(watch)  # type: ignore[misc]


def _own_checks(rig: Rig) -> list[Check]:
    """What the driver of the arm looks at itself."""
    checks = getattr(rig.arm, "checks", None)
    if checks is None:
        return []
    try:
        return [Check(f"robot: {name}", bool(ok), str(detail)) for name, ok, detail in checks()]
    except (RobotRLError, OSError) as error:
        return [Check("robot", False, " ".join(str(error).split()))]


def _wait(rig: Rig, time_s: float) -> None:
    """Let time pass; at least a little even where a simulation's steps are longer."""
    begun = rig.clock.now_s()
    rig.clock.sleep_until(begun + time_s)
    while rig.clock.now_s() <= begun:
        time_s *= 2.0
        rig.clock.sleep_until(begun + time_s)


def _eventually(rig: Rig, read: Callable[[], object]) -> None:
    """Wait for the first readings of a rig that was connected just now."""
    end = rig.clock.now_s() + _FIRST_DATA_S
    while True:
        try:
            read()
            return
        except RobotRLError:
            if rig.clock.now_s() >= end:
                raise
            _wait(rig, 0.05)


def _clock(rig: Rig) -> Answer:
    before, real = rig.clock.now_s(), time.monotonic()
    _wait(rig, 0.1)
    passed, real = rig.clock.now_s() - before, time.monotonic() - real
    if rig.scene is not None:
        return passed > 0.0, f"simulated, {passed:.3f} s passed in {real:.3f} s"
    ok = 0.1 - 1e-3 <= passed and abs(passed - real) < 0.02
    return ok, f"{passed:.3f} s passed in {real:.3f} s of this machine"


def _state(rig: Rig, safety: SafetyConfig, seconds: float) -> Answer:
    age = safety.max_state_age_s
    _eventually(rig, lambda: rig.arm.state(age))
    begun = rig.clock.now_s()
    stamps: list[float] = []
    oldest = fastest = 0.0
    while (now := rig.clock.now_s()) - begun < seconds:
        state = rig.arm.state(age)
        if not (np.isfinite(state.position_rad).all() and np.isfinite(state.velocity_rad_s).all()):
            return False, f"joint angles {state.position_rad} rad are not all finite"
        oldest = max(oldest, now - state.stamp_s)
        fastest = max(fastest, float(np.abs(state.velocity_rad_s).max()))
        if not stamps or state.stamp_s > stamps[-1]:
            stamps.append(state.stamp_s)
        _wait(rig, _POLL_S)
    rate_hz = (len(stamps) - 1) / max(stamps[-1] - stamps[0], 1e-9)
    at_least = "at least " if rate_hz > 0.8 / _POLL_S else ""
    text = f"{at_least}{rate_hz:.0f} Hz, at most {1000 * oldest:.0f} ms old"
    if rate_hz < _LEAST_STATE_HZ:
        return False, f"{text}; should be at least {_LEAST_STATE_HZ:g} Hz"
    if fastest > _AT_REST_RAD_S:
        return False, (f"{text}; the arm moves at {fastest:.2f} rad/s though nobody commands it, "
                       f"should be below {_AT_REST_RAD_S}")
    return True, f"{text}, at rest"


def _position(rig: Rig, safety: SafetyConfig) -> Array:
    return np.asarray(rig.arm.state(safety.max_state_age_s).position_rad)


def _limits(rig: Rig, safety: SafetyConfig) -> Answer:
    spec = rig.arm.spec
    q = _position(rig, safety)
    if q.shape != (len(spec.joints),):
        return False, f"{len(q)} joints, {spec.name} has {len(spec.joints)}"
    room = np.minimum(q - spec.limits("lower_rad"), spec.limits("upper_rad") - q)
    k = int(np.argmin(room))
    name, joint = spec.joint_names[k], spec.joints[k]
    text = (f"{name} at {q[k]:.3f} rad of [{joint.lower_rad:g}, {joint.upper_rad:g}]")
    if room[k] < safety.joint_margin_rad:
        return False, (f"{text} is {room[k]:.3f} rad from its limit, should be at least "
                       f"{safety.joint_margin_rad:g}; move the arm by hand")
    return True, f"the nearest to its limit is {text}"


def _tool(rig: Rig, safety: SafetyConfig) -> Answer:
    pose = Kinematics(rig.arm.spec).forward(_position(rig, safety))
    tool = pose[:3, 3] - np.array(rig.arm.spec.workspace_origin_m)
    lean = float(np.arccos(np.clip(-pose[2, 2], -1.0, 1.0)))
    shown = "(" + ", ".join(f"{x:+.3f}" for x in tool) + ") m"
    low, high = np.array(safety.box_min_m), np.array(safety.box_max_m)
    out = float(np.maximum(low - tool, tool - high).max())
    if out > _TOLERANCE_M:
        return False, (f"{shown} is {out:.3f} m outside the box {safety.box_min_m} .. "
                       f"{safety.box_max_m}; move the arm by hand")
    if lean > _LEAN_RAD:
        return False, (f"{shown} leans by {lean:.2f} rad, should point down within {_LEAN_RAD}; "
                       "move the arm by hand")
    return True, f"{shown} is in the box, pointing down"


def _status(rig: Rig) -> Answer:
    status = rig.arm.status()
    if status.ready:
        return True, "takes commands"
    return False, status.fault or "takes no commands, and does not say why"


def _gripper(rig: Rig, safety: SafetyConfig) -> Answer:
    _eventually(rig, lambda: rig.gripper.opening(safety.max_state_age_s))
    opening = rig.gripper.opening(safety.max_state_age_s)
    if not -0.05 <= opening <= 1.05:
        return False, f"opening is {opening}, should be in [0, 1]"
    return True, f"open by {opening:.2f}"


def _camera(rig: Rig, name: str, seconds: float) -> Answer:
    camera = rig.cameras[name]
    _eventually(rig, lambda: camera.read(_CAMERA_AGE_S))
    begun = rig.clock.now_s()
    stamps: list[float] = []
    while rig.clock.now_s() - begun < max(seconds, 1.0 / _LEAST_CAMERA_HZ):
        frame = camera.read(_CAMERA_AGE_S)
        if not stamps or frame.stamp_s > stamps[-1]:
            stamps.append(frame.stamp_s)
        # A simulated image takes longer to draw than a real one to fetch.
        _wait(rig, 0.2 if rig.scene is not None else 0.005)
    height, width = frame.image.shape[:2]
    rate_hz = (len(stamps) - 1) / max(stamps[-1] - stamps[0], 1e-9)
    text = f"{width} x {height} pixels, {rate_hz:.0f} Hz"
    if rate_hz < _LEAST_CAMERA_HZ:
        return False, f"{text}, should be at least {_LEAST_CAMERA_HZ:g} Hz"
    if int(np.ptp(frame.image)) < 8:
        return False, f"{text}, but the image is all one colour: is the lens covered?"
    return True, text


def _force(rig: Rig) -> Answer:
    assert rig.force is not None
    force, options = rig.force, BiasOptions()
    _eventually(rig, lambda: force.wrench(0.5))
    found = []
    for _ in range(options.samples):
        wrench = force.wrench(0.5)
        found.append(np.concatenate([wrench.force_n, wrench.torque_nm]))
        _wait(rig, _FORCE_PERIOD_S)
    values = np.array(found)
    mean, spread = values.mean(axis=0), np.ptp(values, axis=0)
    bias_n, spread_n = float(np.linalg.norm(mean[:3])), float(spread[:3].max())
    text = f"bias {bias_n:.2f} N, readings within {spread_n:.2f} N"
    if not np.isfinite(values).all():
        return False, "readings are not all finite"
    if spread_n > options.max_spread_n or bias_n > options.max_bias_n:
        return False, (f"{text}; should be at most {options.max_bias_n:g} N and "
                       f"{options.max_spread_n:g} N: does the tool touch something?")
    return True, text


def _sensor(rig: Rig, name: str) -> Answer:
    sensor = rig.sensors[name]
    _eventually(rig, lambda: sensor.read(0.5))
    reading = sensor.read(0.5)
    return bool(np.isfinite(reading.value)), f"reads {reading.value:.4g} {sensor.unit}".rstrip()


def _watch(watch: Callable[[], str | None]) -> Answer:
    wrong = watch()
    return wrong is None, wrong or "all is well"
