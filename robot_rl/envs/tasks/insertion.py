"""Insertion: push a connector's plug into its socket (seed 001, ch. 6)."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from robot_rl.envs.tasks.base import DEFAULT_CAMERAS, Task, TaskView
from robot_rl.errors import InvalidInputError, unknown_name
from robot_rl.interfaces import Array, Placement
from robot_rl.specs.scene import BodySpec, CameraSpec, Geom, HeldSpec, RegionSensor, SceneSpec

SOCKET_M = (0.05, 0.0)
"""Where the middle of the socket is on the table [m]."""
BLOCK_M = (0.05, 0.04, 0.04)
"""Size of the block that the socket is in [m]."""
PLUG_M = (0.012, 0.0045)
"""Width and thickness of the plug [m]: those of a USB connector of type A."""
PLAY_M = 0.0004
"""Room for the plug on each side of it in the socket [m]."""
REACH_M = 0.022
"""How far the plug sticks out beyond the tool centre point [m]: 12 mm beyond the fingertips."""
DEPTH_M = 0.01
"""How deep in the socket the goal is [m]; the fingers touch the block 2 mm later."""
CONTACT_DEPTH_M = 0.0075
"""How deep in the socket the connection is made [m]."""
INSERTED_M = np.array([*SOCKET_M, BLOCK_M[2] - DEPTH_M + REACH_M])
"""The tool's position (3,) [m] with the plug in the socket, as far as the goal is."""
FREE_HEIGHT_M = BLOCK_M[2] + REACH_M + 0.004
"""From this height [m] on the tool can move to and fro without touching the block."""
_HOLE_DEPTH_M = 0.014
_STEEL = (0.62, 0.64, 0.68, 1.0)
_CASE = (0.12, 0.2, 0.5, 1.0)
REWARDS = ("sparse", "dense")


class Insertion(Task):
    """The goal is a tool position (3,) [m]: where the socket is believed to be, 10 mm deep.

    The plug is one with the gripper, as in the chapter's rig, which holds the connector firmly:
    a loose one would slip in a way that no two engines agree on. Success needs both place and
    depth: on the rim beside the hole the tool is 10 mm too high.

    ``goal_noise_m`` is how far off the goal may be in x and y (the chapter's test: 1 mm), while
    the socket stays where it is. ``reward`` ``"dense"`` is the chapter's shaped reward of the
    distance, see :meth:`dense_reward`; the default is 0 where the plug is in and -1 elsewhere.
    """

    name: ClassVar[str] = "Insertion"
    description: ClassVar[str] = "push a connector's plug into its socket, with 0.4 mm to spare"
    duration_s: ClassVar[float] = 6.0
    goal_dim: ClassVar[int] = 3
    feature_dim: ClassVar[int] = 0
    threshold: ClassVar[float] = 0.003

    def __init__(self, goal_noise_m: float = 0.0, reward: str = "sparse") -> None:
        if not 0.0 <= goal_noise_m <= 0.01:
            raise InvalidInputError(f"goal_noise_m is {goal_noise_m}, should be in [0, 0.01]")
        if reward not in REWARDS:
            raise unknown_name("reward", reward, REWARDS)
        self.goal_noise_m = float(goal_noise_m)
        self.reward_kind = reward

    def scene(self) -> SceneSpec:
        width, depth, height = BLOCK_M
        hole_x, hole_y = PLUG_M[0] + 2 * PLAY_M, PLUG_M[1] + 2 * PLAY_M
        wall_x, wall_y = 0.5 * (width - hole_x), 0.5 * (depth - hole_y)
        floor = height - _HOLE_DEPTH_M
        socket = BodySpec(
            "socket",
            (
                *(Geom("box", (wall_x, depth, height),
                       (side * 0.5 * (hole_x + wall_x), 0.0, 0.5 * height), _CASE)
                  for side in (-1.0, 1.0)),
                *(Geom("box", (hole_x, wall_y, height),
                       (0.0, side * 0.5 * (hole_y + wall_y), 0.5 * height), _CASE)
                  for side in (-1.0, 1.0)),
                Geom("box", (hole_x, hole_y, floor), (0.0, 0.0, 0.5 * floor), _STEEL),
            ),
            position_m=(*SOCKET_M, 0.0),
            friction=0.3,
        )
        length = REACH_M + 0.01
        plug = HeldSpec(
            "plug", (Geom("box", (*PLUG_M, length), (0.0, 0.0, REACH_M - 0.5 * length), _STEEL),)
        )
        x, y = SOCKET_M
        made = float(INSERTED_M[2]) + DEPTH_M - CONTACT_DEPTH_M
        contact = RegionSensor(
            "contact", (x - 0.002, y - 0.002, made - 0.01), (x + 0.002, y + 0.002, made)
        )
        near = CameraSpec("socket", (x - 0.16, -0.16, 0.16), (x, y, 0.05), fov_deg=36.0)
        return SceneSpec(
            bodies=(socket,),
            cameras=(*DEFAULT_CAMERAS, near),
            markers=("goal",),
            sensors=(contact,),
            held=plug,
        )

    def sample_goal(self, rng: np.random.Generator) -> Array:
        # Drawn in any case: what follows from the generator does not depend on the noise.
        off = rng.uniform(-1.0, 1.0, 2) * self.goal_noise_m
        return INSERTED_M + np.array([*off, 0.0])

    def sample_start(self, rng: np.random.Generator, goal: Array) -> Placement:
        return Placement(INSERTED_M + rng.uniform([-0.03, -0.03, 0.03], [0.03, 0.03, 0.07]))

    def goal_placement(self, goal: Array) -> Placement:
        tool = np.array(goal, dtype=np.float64)
        # A goal that is off by noise would be in the walls: the plug is where it can be.
        if tool[2] < FREE_HEIGHT_M and np.abs(tool[:2] - SOCKET_M).max() < 0.01:
            tool[:2] = np.clip(tool[:2], np.array(SOCKET_M) - PLAY_M, np.array(SOCKET_M) + PLAY_M)
        return Placement(tool)

    def achieved(self, view: TaskView) -> Array:
        return view.tool_m

    def features(self, view: TaskView) -> Array:
        return np.empty(0)

    def markers(self, goal: Array) -> dict[str, Array]:
        return {"goal": np.asarray(goal, dtype=np.float64) + np.array([0.0, 0.0, 0.1])}

    def reward(self, achieved: Array, desired: Array) -> NDArray[np.float64]:
        if self.reward_kind == "dense":
            return self.dense_reward(achieved, desired)
        return super().reward(achieved, desired)

    def dense_reward(
        self, achieved: Array, desired: Array, force_n: float | NDArray[np.float64] = 0.0
    ) -> NDArray[np.float64]:
        """-100 |d|_1 + 0.002 / (|d|_2 + 0.001) - 0.1 f, and + 0.1 f once inserted.

        ``d`` is the distance to the goal [m] and ``f`` the force (...,) [N] with which the world
        pushes the tool up. As in seed 001, eq. 26, but for the sign of the second term, which as
        printed would punish arriving; its epsilon is ours. Rewards of relabelled goals know
        nothing of forces and leave their term out.
        """
        off = np.asarray(achieved, dtype=np.float64) - np.asarray(desired, dtype=np.float64)
        far = np.sqrt((off * off).sum(axis=-1))
        press = np.where(far <= self.threshold, 0.1, -0.1) * force_n
        return np.asarray(-100.0 * np.abs(off).sum(axis=-1) + 0.002 / (far + 0.001) + press)
