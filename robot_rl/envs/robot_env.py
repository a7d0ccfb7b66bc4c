"""The environment: a rig, a task, a resetter and a safety filter, for hardware and simulation."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import ArrayLike, NDArray

from robot_rl.envs.actions import checked_action, parse_action_parts
from robot_rl.envs.goal_images import check_goal_image
from robot_rl.envs.latency import DelayedArm
from robot_rl.envs.randomization import RandomizationOptions as RandomizationOptions
from robot_rl.envs.spaces import action_space, observation_space
from robot_rl.envs.success.base import begin_episode, close_detector
from robot_rl.envs.tasks.base import Task, TaskView
from robot_rl.errors import InvalidInputError, SafetyError, StaleDataError, unknown_name
from robot_rl.interfaces import Array, Placement, Resetter, Rig, SuccessDetector
from robot_rl.safety import SafetyFilter, Watchdog
from robot_rl.safety.ending import Ending


class RobotEnv(gymnasium.Env[Any, Any]):
    """A goal-conditioned task on an arm.

    Actions are in [-1, 1]: tool displacement x, y, z (1 is ``action_speed_m_s / control_hz``),
    then optionally yaw (1 is ``action_turn_rad_s / control_hz``), then optionally the gripper (-1
    closed, 1 open). Observations are a dict:

    - ``obs="state"``: ``observation`` (n,) float32: tool position [m] and velocity [m/s], how far
      its set-point is ahead of it (3,) [m], cos and sin of yaw and the gripper's opening where they
      are actions, then the task's features; ``achieved_goal`` and ``desired_goal`` (goal_dim,)
      float32.
    - ``obs="image"``: the same keys as images uint8 (H, W, 3 x cameras), the cameras stacked along
      the channels; ``desired_goal`` shows the scene at its goal. The state is in ``info``.

    Episodes end by truncation after the task's duration. ``info`` has ``is_success``, ``distance``,
    ``executed_action`` (what the safety filter let through), ``safety_violations`` and
    ``safety_limited`` (counts of this episode).

    ``resetter`` brings the world to its start where there is no simulated scene to place anew, or
    where the arm shall do it all the same; then an episode is truncated too when things are about
    to get out of the arm's reach, and ``info["astray"]`` says what. ``watchdog`` looks after the
    arm between the steps and ends with the environment; without one there is a look in every step.

    ``success`` says when the task is done in place of the distance to the goal: rewards are then 0
    while it says so and -1 otherwise. Rewards of other goals (:meth:`compute_reward`) are the
    task's.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(
        self,
        task: Task,
        rig: Rig,
        safety: SafetyFilter,
        *,
        control_hz: float = 10.0,
        obs: str = "state",
        action: str | None = None,
        action_speed_m_s: float = 0.25,
        action_turn_rad_s: float = 1.0,
        cameras: tuple[str, ...] = ("front",),
        image_size: tuple[int, int] = (48, 48),
        randomization: RandomizationOptions | None = None,
        max_episode_steps: int | None = None,
        terminate_on_success: bool = False,
        render_mode: str | None = None,
        render_size: tuple[int, int] = (240, 320),
        resetter: Resetter | None = None,
        watchdog: Watchdog | None = None,
        success: SuccessDetector | None = None,
        goal_images: Sequence[NDArray[np.uint8]] = (),
    ) -> None:
        self.success_detector = success
        self._resetter = resetter
        self._watchdog = watchdog
        self.task = task
        self.rig = rig
        self.safety = safety
        self.control_hz = float(control_hz)
        self.period_s = 1.0 / self.control_hz
        self.parts = parse_action_parts(action if action is not None else task.default_action)
        self.obs_mode = obs
        self.camera_names = tuple(cameras)
        self.randomization = randomization or RandomizationOptions()
        self.terminate_on_success = terminate_on_success
        self.render_mode = render_mode
        self.metadata = {**self.metadata, "render_fps": int(round(self.control_hz))}
        self.max_episode_steps = self._checked_episode_steps(max_episode_steps)
        self._check_options(obs, render_mode, action_speed_m_s, action_turn_rad_s)
        self._render_size = render_size

        self._has_yaw = "yaw" in self.parts
        self._has_gripper = "gripper" in self.parts
        self.state_dim = 9 + 2 * self._has_yaw + self._has_gripper + task.feature_dim
        self.goal_dim = task.goal_dim
        self.action_space = action_space(self.parts)
        self.observation_space = observation_space(
            obs, self.state_dim, self.goal_dim, (*image_size, 3 * len(self.camera_names))
        )

        self._step_m = action_speed_m_s * self.period_s
        self._step_rad = action_turn_rad_s * self.period_s
        self._goal: Array = np.zeros(self.goal_dim)
        self._goal32 = np.zeros(self.goal_dim, np.float32)
        self._goal_image: NDArray[np.uint8] | None = None
        self._goal_images, self._goal_shown = tuple(goal_images), ""
        self._frame_stamps_s: dict[str, float] = {}
        self._bias = np.zeros(self.action_space.shape)
        self._steps = 0
        self._tick_s = 0.0
        self._ready = False
        self._view: TaskView | None = None
        self._start: Placement | None = None
        self._generator: dict[str, Any] = {}
        # However the program ends, a real arm comes to rest before its stream of set-points ends.
        self._ending = None if rig.address is None else Ending(self._close)

    # -- gymnasium --------------------------------------------------------------------------

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Start an episode.

        Raises:
            SafetyError: the arm is held, or is now because the world could not be brought to its
                start.

        ``options`` may give ``goal`` (goal_dim,), ``start`` (Placement) and ``generator``, the
        state of the random generator to begin with, see :meth:`beginning`; with image
        observations also ``goal_image``, the picture of the goal.
        """
        super().reset(seed=seed)
        self.safety.check_released()
        self._pause()
        self._ready = False
        options = options or {}
        known = ("goal", "start", "generator", "goal_image")
        unknown = set(options) - set(known)
        if unknown:
            raise unknown_name("reset option", sorted(unknown)[0], known)
        rng = self.np_random
        if options.get("generator") is not None:
            _set_generator(rng, options["generator"])
        self._generator = dict(rng.bit_generator.state)
        goal = self.task.sample_goal(rng)
        if options.get("goal") is not None:
            goal = self._check_goal(options["goal"])
        # Drawn in any case: what follows from the generator does not depend on the options.
        drawn = self.task.sample_start(rng, goal)
        start = drawn if options.get("start") is None else options["start"]
        self._start = start
        self._goal = np.asarray(goal, dtype=np.float64)
        self._goal32 = self._goal.astype(np.float32)
        self._draw_randomization(rng)
        self._show_goal(options.get("goal_image"))
        self._reset_world(start)
        self._steps = 0
        self._ready = True
        observation, achieved = self._observe()
        return observation, self._info(achieved, np.zeros(self.action_space.shape or ()), False)

    def step(
        self, action: ArrayLike
    ) -> tuple[dict[str, NDArray[Any]], float, bool, bool, dict[str, Any]]:
        """Send one action and wait for the end of its control period.

        Raises:
            SafetyError: the action is not finite or of the wrong shape, or the arm is held; the
                arm then received nothing.
            StaleDataError: a reading is too old; the arm is held.
        """
        if not self._ready:
            raise InvalidInputError("step() was called before reset()")
        wanted, clipped = checked_action(action, self.action_space.shape)
        if self.randomization.action_noise or self.randomization.action_bias:
            noise = self.np_random.normal(0.0, 1.0, wanted.shape)
            wanted = wanted + self._bias + self.randomization.action_noise * noise
            wanted = np.minimum(np.maximum(wanted, -1.0), 1.0)

        turn = wanted[3] * self._step_rad if self._has_yaw else 0.0
        sent = self.safety.move(wanted[:3] * self._step_m, turn, self.period_s)
        executed = wanted.copy()
        if clipped and not sent.limited:
            self.safety.counters.limited += 1
        if sent.limited:
            executed[:3] = sent.delta_m / self._step_m
            if self._has_yaw:
                executed[3] = sent.yaw_rad / self._step_rad
            executed = np.minimum(np.maximum(executed, -1.0), 1.0)
        if self._has_gripper:
            executed[-1] = 2.0 * self.safety.grip(0.5 * (wanted[-1] + 1.0)) - 1.0

        now_s = self.rig.clock.now_s()
        if now_s - self._tick_s > 0.5 * self.period_s:
            # The caller took its time: periods that are over are not made up for.
            self._tick_s = now_s
        self._tick_s += self.period_s
        self.rig.clock.sleep_until(self._tick_s)
        if self._watchdog is None:
            self.safety.watch()
        self._steps += 1
        observation, achieved = self._observe()
        info = self._info(achieved, executed, sent.limited or clipped)
        reward = float(self.task.reward(achieved, self._goal))
        if self.success_detector is not None:
            reward = float(info["is_success"]) - 1.0
        terminated = bool(self.terminate_on_success and info["is_success"])
        # Where the arm itself has to bring things back, they had better not get out of its reach.
        astray = None if self._resetter is None else self.task.astray(self.last_view)
        if astray is not None:
            info["astray"] = astray
        truncated = self._steps >= self.max_episode_steps or astray is not None
        if terminated or truncated:
            self._ready = False
            self.safety.rest()
        return observation, reward, terminated, truncated, info

    def compute_reward(
        self, achieved_goal: NDArray[Any], desired_goal: NDArray[Any], info: Any
    ) -> NDArray[np.float64] | float:
        """The reward of any goal, vectorised over leading axes.

        With image observations the goals are compared by the states that travel in ``info``
        (``achieved_state``, ``desired_state``): one dict, or a sequence of them.
        """
        if self.obs_mode == "image":
            infos = [info] if isinstance(info, dict) else list(info)
            achieved = np.stack([i["achieved_state"] for i in infos])
            desired = np.stack([i["desired_state"] for i in infos])
            rewards = self.task.reward(achieved, desired)
            return float(rewards[0]) if isinstance(info, dict) else rewards
        rewards = self.task.reward(achieved_goal, desired_goal)
        return float(rewards) if rewards.ndim == 0 else rewards

    def render(self) -> NDArray[np.uint8] | None:  # type: ignore[override]
        """The scene from the first camera, with the goal's markers; (H, W, 3) uint8."""
        if self.render_mode is None:
            return None
        height, width = self._render_size
        if self.rig.scene is None:
            return self.rig.cameras[self.camera_names[0]].read(1.0).image
        return self.rig.scene.render(self.camera_names[0], height, width, markers=True)

    def close(self) -> None:
        """Bring a real arm to rest, whatever it was about to do, and let go of it."""
        if self._ending is not None:
            self._ending.close()
            return
        self._close()

    def _close(self) -> None:
        with ExitStack() as stack:
            stack.callback(self.rig.close)
            if self._watchdog is not None:
                stack.callback(self._watchdog.close)
            stack.callback(close_detector, self.success_detector)
            if self.rig.address is None:
                self.safety.rest()
            else:
                self.safety.settle()

    # -- more than gymnasium asks -----------------------------------------------------------

    @property
    def last_view(self) -> TaskView:
        """What the task saw at the last observation."""
        if self._view is None:
            raise InvalidInputError("there is nothing to see before reset()")
        return self._view

    @property
    def resetter(self) -> Resetter | None:
        """What brings the world to its start; None where the simulator places everything."""
        return self._resetter

    @resetter.setter
    def resetter(self, resetter: Resetter | None) -> None:
        self._resetter = resetter

    def beginning(self) -> dict[str, Any]:
        """Where the episode began, as JSON: the options with which ``reset`` begins it again.

        ``goal``, ``start`` and, where the domain is randomised, the ``generator`` that what was
        drawn follows from. ``goal_image`` only tells a picture that was ``given`` from ``none``.
        """
        start = None if self._start is None else self._start.as_dict()
        begun: dict[str, Any] = {"goal": [float(x) for x in self._goal], "start": start}
        if self.randomization != RandomizationOptions():
            begun["generator"] = self._generator
        if self._goal_shown:
            begun["goal_image"] = self._goal_shown
        return begun

    def stamps(self) -> dict[str, Any]:
        """When the last observation was made, for a recorder.

        ``stamp_s`` [s, the rig's clock] and, by key of the observation's parts, ``stamps_s``. They
        are not in ``info``, which repeats exactly for the same seed; a clock does not.
        """
        parts = {"observation.state": self.safety.measured_at_s}
        if self.obs_mode == "image":
            parts |= {f"observation.images.{k}": v for k, v in self._frame_stamps_s.items()}
        return {"stamp_s": self.rig.clock.now_s(), "stamps_s": parts}

    @property
    def step_m(self) -> float:
        """Tool displacement [m] of an action of 1."""
        return self._step_m

    @property
    def step_rad(self) -> float:
        """Turn of the tool [rad] of an action of 1."""
        return self._step_rad

    @property
    def goal(self) -> Array:
        """The desired goal (goal_dim,) in the task's own terms, also with image observations."""
        return self._goal.copy()

    def view(self) -> TaskView:
        """What the task may look at, freshly measured."""
        tool, velocity = self.safety.measure()
        age = self.safety.config.max_state_age_s
        opening = self.rig.gripper.opening(age) if self._has_gripper else 0.0
        return TaskView(tool, velocity, opening, self.rig.tracker, age)

    def state(self) -> NDArray[np.float32]:
        """The state observation (n,), freshly measured, within an episode or between two."""
        return self._state(self.view())

    def goal_image(self, goal: ArrayLike) -> NDArray[np.uint8]:
        """The scene set to ``goal`` as the cameras would see it, (H, W, 3 x cameras) uint8.

        Simulation only; the world is put back afterwards, to the bit.
        """
        scene = self.rig.scene
        if scene is None:
            raise InvalidInputError("goal images are made by setting a simulated scene; "
                                    "on hardware give images of the goal")
        placement = self.task.goal_placement(self._check_goal(goal))
        saved = scene.save_state()
        scene.place(self._posture(placement), placement)
        image = self._render_cameras()
        scene.restore_state(saved)
        return image

    def get_state(self) -> dict[str, Any]:
        """Everything needed to continue this episode exactly, as arrays and plain numbers."""
        if self.rig.scene is None:
            raise InvalidInputError("a state can only be saved in simulation")
        return {
            "scene": dict(self.rig.scene.save_state()),
            "safety": self.safety.get_state(),
            "goal": self._goal.copy(),
            "bias": self._bias.copy(),
            "steps": self._steps,
            "tick_s": self._tick_s,
            "ready": self._ready,
            "rng": self.np_random.bit_generator.state,
            "delay": self.rig.arm.get_state() if isinstance(self.rig.arm, DelayedArm) else None,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue from what :meth:`get_state` returned, bit for bit."""
        if self.rig.scene is None:
            raise InvalidInputError("a state can only be restored in simulation")
        self.rig.scene.restore_state(state["scene"])
        self._view = self.view()
        self.safety.set_state(state["safety"])
        self._goal = state["goal"].copy()
        self._goal32 = self._goal.astype(np.float32)
        self._bias = state["bias"].copy()
        self._steps = state["steps"]
        self._tick_s = state["tick_s"]
        self._ready = state["ready"]
        self.np_random.bit_generator.state = state["rng"]
        if isinstance(self.rig.arm, DelayedArm) and state["delay"] is not None:
            self.rig.arm.set_state(state["delay"])
        self.rig.scene.show_markers(self.task.markers(self._goal))
        self._goal_image = self.goal_image(self._goal) if self.obs_mode == "image" else None

    # -- inside -----------------------------------------------------------------------------

    def _checked_episode_steps(self, given: int | None) -> int:
        if given is None:
            steps = int(round(self.task.duration_s * self.control_hz))
        else:
            steps = int(given)
        if steps < 1:
            raise InvalidInputError(f"max_episode_steps is {given}, should be at least 1")
        return steps

    def _check_options(
        self, obs: str, render_mode: str | None, speed_m_s: float, turn_rad_s: float
    ) -> None:
        if obs not in ("state", "image"):
            raise unknown_name("obs", obs, ("state", "image"))
        if render_mode not in (None, "rgb_array"):
            raise unknown_name("render_mode", render_mode, ("rgb_array",))
        if not (0.0 < speed_m_s < np.inf and 0.0 < turn_rad_s < np.inf):
            raise InvalidInputError(
                f"action_speed_m_s is {speed_m_s} and action_turn_rad_s "
                f"{turn_rad_s}, both should be positive and finite"
            )
        cameras = self.rig.cameras
        if not self.camera_names and (obs == "image" or render_mode is not None):
            raise InvalidInputError(f"images need a camera; valid: {', '.join(cameras)}")
        for camera in self.camera_names:
            if camera not in cameras:
                raise unknown_name("camera", camera, cameras)

    def _check_goal(self, goal: ArrayLike) -> Array:
        array = np.asarray(goal, dtype=np.float64)
        if array.shape != (self.goal_dim,) or not np.isfinite(array).all():
            raise InvalidInputError(
                f"goal of {self.task.name} is {array}, should be {self.goal_dim} finite numbers"
            )
        return array

    def _draw_randomization(self, rng: np.random.Generator) -> None:
        options = self.randomization
        if options.action_bias:
            self._bias = rng.uniform(-1.0, 1.0, self._bias.shape) * options.action_bias
        if options.latency_s:
            latency_s = rng.uniform(0.0, options.latency_s)
            if isinstance(self.rig.arm, DelayedArm):
                self.rig.arm.set_latency(latency_s)
        if options.touches_scene and self.rig.scene is not None:
            self.rig.scene.randomize(options.draw_scene(rng))

    def _pause(self) -> None:
        """The commander pauses; a delay changes only when nothing is on its way to the arm."""
        self.safety.rest()
        if self._resetter is not None and self.randomization.latency_s > 0.0:
            self.safety.settle()
            clock = self.rig.clock
            clock.sleep_until(clock.now_s() + self.randomization.latency_s)

    def _posture(self, placement: Placement) -> Array:
        return self.safety.posture(placement.tool_m, placement.yaw_rad)

    def _reset_world(self, start: Placement) -> None:
        scene = self.rig.scene
        renders = self.obs_mode == "image" and not self._goal_shown
        if self._resetter is not None:
            if renders:
                self._goal_image = self.goal_image(self._goal)
            self._reset_by_arm(start)
        elif scene is None:
            raise InvalidInputError("a rig without a simulated scene needs a resetter")
        else:
            if renders:
                placement = self.task.goal_placement(self._goal)
                scene.place(self._posture(placement), placement)
                self._goal_image = self._render_cameras()
            scene.place(self._posture(start), start)
            self.safety.reset(placed=True)
        if scene is not None:
            scene.show_markers(self.task.markers(self._goal))
        if self.rig.force is not None:
            self.rig.force.zero()
        begin_episode(self.success_detector, self._goal)
        self._tick_s = self.rig.clock.now_s()

    def _show_goal(self, given: Any) -> None:
        """Have a picture of the goal where it is not the simulator's: the one that was given, else
        one of ``goal_images``, else none: black, and the recording says so."""
        self._goal_shown = ""
        if self.obs_mode != "image":
            if given is not None:
                raise InvalidInputError("option goal_image goes with obs='image'")
            return
        shape = self.observation_space["observation"].shape  # type: ignore[index]
        pictures = self._goal_images
        if given is not None:
            self._goal_image, self._goal_shown = check_goal_image(given, shape), "given"
        elif pictures:
            pick = self.np_random.integers(len(pictures)) if len(pictures) > 1 else 0
            self._goal_image, self._goal_shown = pictures[pick], "given"
        elif self.rig.scene is None:
            self._goal_image, self._goal_shown = np.zeros(shape, np.uint8), "none"

    def _reset_by_arm(self, start: Placement) -> None:
        assert self._resetter is not None
        if not self._resetter.reset(start):
            self.safety.hold("the world could not be brought to its start")
        self.safety.rest()
        self.safety.reset()

    def _render_cameras(self) -> NDArray[np.uint8]:
        frames = {name: self.rig.cameras[name].read(self.period_s) for name in self.camera_names}
        self._frame_stamps_s = {name: frame.stamp_s for name, frame in frames.items()}
        images = [frame.image for frame in frames.values()]
        return images[0] if len(images) == 1 else np.concatenate(images, axis=2)

    def _observe(self) -> tuple[dict[str, NDArray[Any]], Array]:
        try:
            return self._look()
        except StaleDataError as error:
            self.safety.hold(str(error))
            raise

    def _look(self) -> tuple[dict[str, NDArray[Any]], Array]:
        view = self._view = self.view()
        achieved = self.task.achieved(view)
        if self.obs_mode == "image":
            image = self._render_cameras()
            assert self._goal_image is not None
            return {
                "observation": image,
                "achieved_goal": image.copy(),
                "desired_goal": self._goal_image.copy(),
            }, achieved
        return {
            "observation": self._state(view),
            "achieved_goal": achieved.astype(np.float32),
            "desired_goal": self._goal32.copy(),
        }, achieved

    def _state(self, view: TaskView) -> NDArray[np.float32]:
        state = np.empty(self.state_dim, np.float32)
        state[:3] = view.tool_m
        state[3:6] = view.tool_velocity_m_s
        # The arm lags behind what it was asked for: what is still to come is part of the state.
        state[6:9] = self.safety.setpoint_tool_m - view.tool_m
        k = 9
        if self._has_yaw:
            state[9] = np.cos(self.safety.yaw_rad)
            state[10] = np.sin(self.safety.yaw_rad)
            k = 11
        if self._has_gripper:
            state[k] = view.gripper_opening
            k += 1
        state[k:] = self.task.features(view)
        return state

    def _is_success(self, distance: float) -> bool:
        """Whether the goal is reached: as the detector says, else by the distance to it."""
        if self.success_detector is None:
            return distance <= self.task.threshold
        try:
            return bool(self.success_detector.success())
        except (SafetyError, StaleDataError) as error:
            self.safety.hold(str(error))
            raise

    def _info(self, achieved: Array, executed: Array, limited: bool) -> dict[str, Any]:
        distance = float(self.task.distance(achieved, self._goal))
        counters = self.safety.counters
        info: dict[str, Any] = {
            "is_success": self._is_success(distance),
            "distance": distance,
            "executed_action": executed.astype(np.float32),
            "action_limited": limited,
            "safety_violations": counters.violations,
            "safety_limited": counters.limited,
        }
        if self.obs_mode == "image":
            info["state"] = self._state(self.last_view)
            info["achieved_state"] = np.array(achieved, dtype=np.float64)
            info["desired_state"] = self._goal.copy()
        return info


def _set_generator(rng: np.random.Generator, state: Any) -> None:
    try:
        rng.bit_generator.state = state
    except (TypeError, ValueError, KeyError, OverflowError) as error:
        raise InvalidInputError(
            f"reset option generator is no state of a random generator ({error})"
        ) from None
