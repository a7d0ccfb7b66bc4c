"""Puts an environment together from names."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from robot_rl.backends import make_rig
from robot_rl.envs.actions import parse_action_parts
from robot_rl.envs.goal_images import load_goal_images
from robot_rl.envs.latency import DelayedArm
from robot_rl.envs.robot_env import RandomizationOptions, RobotEnv
from robot_rl.envs.tasks import make_task
from robot_rl.envs.tasks.base import Task
from robot_rl.errors import InvalidInputError, unknown_name
from robot_rl.interfaces import Resetter, Rig, RigRequest, SuccessDetector
from robot_rl.safety import Latch, SafetyConfig, SafetyFilter, Watchdog
from robot_rl.specs import CameraSpec, SceneSpec, load_robot

T = TypeVar("T")
# The longest period [s] of the set-points in simulation.
_SETPOINT_S = 0.02
# How far a piece that the gripper holds is kept off the table [m].
_OFF_THE_TABLE_M = 0.002


def make_env(
    task: str | Task = "Push",
    robot: str = "sawyer",
    backend: str = "mujoco",
    obs: str = "state",
    *,
    control_hz: float = 10.0,
    action: str | None = None,
    action_speed_m_s: float = 0.25,
    cameras: tuple[str, ...] | list[str] | str = ("front",),
    extra_cameras: tuple[CameraSpec, ...] = (),
    image_size: int | tuple[int, int] = 48,
    randomization: RandomizationOptions | dict[str, float] | None = None,
    safety: SafetyConfig | dict[str, Any] | None = None,
    duration_s: float | None = None,
    max_episode_steps: int | None = None,
    terminate_on_success: bool = False,
    physics_step_s: float = 0.005,
    render_quality: str = "fast",
    render_mode: str | None = None,
    render_size: tuple[int, int] = (240, 320),
    resets: str = "auto",
    resetter: Resetter | None = None,
    rig_options: Mapping[str, str] | None = None,
    camera_sources: Mapping[str, str] | None = None,
    success: str | SuccessDetector | None = None,
    goal_image: str = "",
) -> RobotEnv:
    """An environment, also as ``gymnasium.make("robot_rl/<Task>-v0", robot=..., ...)``.

    Args:
        task: name of a task, any case, or a task of its own options, e.g.
            ``Insertion(goal_noise_m=0.001)``.
        robot: ``sawyer``, ``panda`` or ``fr3``.
        backend: ``mujoco``, ``pybullet``, or any installed under the entry point group
            ``robot_rl.backends``.
        obs: ``state`` or ``image``.
        control_hz: actions per second, 5 to 20.
        action: ``xyz``, ``xyz+yaw``, ``xyz+gripper`` or ``xyz+yaw+gripper``; the task's own by
            default.
        action_speed_m_s: tool speed [m/s] along an axis that an action of 1 asks for.
        cameras: names of the scene's cameras to observe (``front``, ``side``, and those of
            ``extra_cameras``); on hardware, of ``camera_sources``, where images are asked for.
        image_size: pixels, one number or (height, width).
        randomization: how far worlds may differ, see :class:`RandomizationOptions`.
        safety: limits, see :class:`SafetyConfig`.
        duration_s: length of an episode [s]; the task's own by default. Unlike
            ``max_episode_steps``, which ``gymnasium.make`` keeps for itself and can only shorten,
            it passes through.
        terminate_on_success: end the episode at the first success (``terminated``).
        physics_step_s: longest physics step [s]; the control period is divided evenly.
        render_quality: ``fast`` (no shadows, no multisampling) or ``default`` (the engine's).
        resets: who brings the world to the start of an episode: ``scene`` (the simulator places
            everything), ``arm`` (the robot does, as on hardware) or ``auto`` (the simulator where
            there is one).
        resetter: brings the world to its start, in place of the robot's own resets.
        rig_options: how hardware is reached, as the backend asks for it (``robot_ip``, ...).
        camera_sources: where each camera's images come from on hardware, by name.
        success: who says when the task is done, in place of the task itself: a detector, or one as
            text, e.g. ``sensor:contact>0.5`` (see :mod:`robot_rl.envs.success.parse`).
        goal_image: for images on hardware, which nobody can render: a file with a picture of the
            goal, or a folder of them, of which each episode draws one; without, goals are black.

    Raises:
        InvalidInputError: a name or number that cannot be used; the message says what can.
    """
    _check_options(control_hz, physics_step_s, render_quality, resets)
    height, width = _image_size(image_size)
    if isinstance(cameras, str):
        cameras = (cameras,)
    periods = _periods(control_hz, physics_step_s)
    chosen = task if isinstance(task, Task) else make_task(task)
    spec = load_robot(robot)
    random = _options(RandomizationOptions, randomization, "randomization")
    limits = _options(SafetyConfig, safety, "safety")
    max_episode_steps = _episode_steps(duration_s, max_episode_steps, control_hz)
    if action is not None:
        parse_action_parts(action)
    pictures = _goal_pictures(goal_image, obs, (height, width, 3 * len(cameras)))
    scene = chosen.scene()
    if limits is None:
        limits = _limits_with_held(scene)
    scene = scene.with_cameras((*scene.cameras, *extra_cameras))
    rig = make_rig(
        backend,
        RigRequest(
            robot=spec,
            scene=scene,
            control_period_s=periods.control_s,
            physics_step_s=periods.physics_step_s,
            setpoint_period_s=periods.setpoint_s,
            options=dict(rig_options or {}),
            cameras=dict(camera_sources or {}),
            image_height=height,
            image_width=width,
            render_quality=render_quality,
        ),
    )
    if rig.scene is None and obs == "state" and render_mode is None:
        # Nobody looks: a real rig needs no camera. Those it has are watched all the same.
        cameras = tuple(name for name in cameras if name in rig.cameras)
    with _closed_on_error(rig) as opened:
        if random is not None and random.latency_s > 0.0:
            if rig.address is not None:
                raise InvalidInputError(
                    f"latency_s is {random.latency_s}, should be 0 on hardware: it has its own"
                )
            rig.arm = DelayedArm(rig.arm)
        guard = guarded(rig, limits)
        if resetter is None:
            resetter = _resetter(chosen, rig, guard, resets, control_hz)
        return RobotEnv(
            chosen,
            rig,
            guard,
            control_hz=control_hz,
            obs=obs,
            action=action,
            action_speed_m_s=action_speed_m_s,
            cameras=tuple(cameras),
            image_size=(height, width),
            randomization=random,
            max_episode_steps=max_episode_steps,
            terminate_on_success=terminate_on_success,
            render_mode=render_mode,
            render_size=render_size,
            resetter=resetter,
            watchdog=_watchdog(rig, guard, opened),
            success=_detector(success, rig),
            goal_images=pictures,
        )


def guarded(rig: Rig, limits: SafetyConfig | None = None) -> SafetyFilter:
    """The safety filter of a rig, with the rig's force sensor and watches.

    On hardware (a rig with an address) a hold is kept for the next program, and one that was kept
    holds.
    """
    latch = None if rig.address is None else Latch(rig.arm.spec.name, rig.address)
    safety = SafetyFilter(rig.arm, rig.gripper, rig.clock, limits, force=rig.force, latch=latch)
    for name, check in rig.watches.items():
        safety.add_watch(name, check)
    return safety


class _Periods(NamedTuple):
    control_s: float
    setpoint_s: float
    physics_step_s: float


def _check_options(
    control_hz: float, physics_step_s: float, render_quality: str, resets: str
) -> None:
    for name, value, least, most in (
        ("control_hz", control_hz, 5, 20),
        ("physics_step_s", physics_step_s, 0.0005, 0.01),
    ):
        if not isinstance(value, (int, float, np.number)) or not least <= value <= most:
            raise InvalidInputError(f"{name} is {value!r}, should be in [{least}, {most}]")
    if render_quality not in ("fast", "default"):
        raise unknown_name("render_quality", render_quality, ("fast", "default"))
    if resets not in ("auto", "scene", "arm"):
        raise unknown_name("resets", resets, ("auto", "scene", "arm"))


def _periods(control_hz: float, longest_step_s: float) -> _Periods:
    """Whole numbers of set-points to a control period and of steps to a set-point: else their
    numbers would differ between episodes."""
    control_s = 1.0 / control_hz
    setpoints = math.ceil(control_s / _SETPOINT_S - 1e-9)
    steps = math.ceil(control_s / setpoints / longest_step_s - 1e-9)
    return _Periods(control_s, control_s / setpoints, control_s / (setpoints * steps))


def _episode_steps(
    duration_s: float | None, max_episode_steps: int | None, control_hz: float
) -> int | None:
    if duration_s is None:
        return max_episode_steps
    if max_episode_steps is not None:
        raise InvalidInputError("give either duration_s or max_episode_steps")
    if not 1.0 / control_hz <= duration_s <= 3600.0:
        raise InvalidInputError(
            f"duration_s is {duration_s}, should be in [{1.0 / control_hz:g}, 3600]"
        )
    return round(duration_s * control_hz)


def _goal_pictures(
    goal_image: str, obs: str, shape: tuple[int, int, int]
) -> list[NDArray[np.uint8]]:
    if goal_image and obs != "image":
        raise InvalidInputError("goal_image goes with obs='image' (--goal-image with --obs image)")
    return load_goal_images(goal_image, shape) if goal_image else []


def _limits_with_held(scene: SceneSpec) -> SafetyConfig | None:
    """Limits for a scene with a held piece: not the fingers but what they hold is what meets the
    table first."""
    if scene.held is None:
        return None
    low = SafetyConfig().box_min_m
    return SafetyConfig(box_min_m=(*low[:2], scene.held.reach_m + _OFF_THE_TABLE_M))


@contextmanager
def _closed_on_error(rig: Rig) -> Iterator[ExitStack]:
    """Where an error leaves the block, closes what was put onto the stack, then the rig."""
    stack = ExitStack()
    stack.callback(rig.close)
    try:
        yield stack
    except Exception:
        stack.close()
        raise


def _watchdog(rig: Rig, safety: SafetyFilter, opened: ExitStack) -> Watchdog | None:
    if rig.address is None:
        return None
    watchdog = Watchdog(safety).start()
    opened.callback(watchdog.close)
    return watchdog


def _detector(success: str | SuccessDetector | None, rig: Rig) -> SuccessDetector | None:
    if not isinstance(success, str):
        return success
    from robot_rl.envs.success.parse import make_success

    return make_success(success, rig)


def _resetter(
    task: Task, rig: Rig, safety: SafetyFilter, resets: str, control_hz: float
) -> Resetter | None:
    if resets == "scene" and rig.scene is None:
        raise InvalidInputError("resets is 'scene', but this rig has no simulated one; valid: arm")
    if resets == "scene" or (resets == "auto" and rig.scene is not None):
        return None
    from robot_rl.envs.resets import make_resetter

    rng = np.random.default_rng(0)
    return make_resetter(task, rig, safety, control_hz=control_hz, rng=rng)


def _image_size(value: Any) -> tuple[int, int]:
    size = value if isinstance(value, (tuple, list)) else (value, value)
    whole = all(isinstance(n, (int, np.integer)) and 8 <= n <= 1024 for n in size)
    if len(size) != 2 or not whole:
        raise InvalidInputError(
            f"image_size is {value!r}, should be one or two whole numbers in [8, 1024]"
        )
    return int(size[0]), int(size[1])


def _options(cls: type[T], values: T | dict[str, Any] | None, what: str) -> T | None:
    if not isinstance(values, dict):
        return values
    known = [f.name for f in fields(cls)]  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            raise unknown_name(f"{what} option", key, known)
    return cls(**{k: tuple(v) if isinstance(v, (list, np.ndarray)) else v
                  for k, v in values.items()})
