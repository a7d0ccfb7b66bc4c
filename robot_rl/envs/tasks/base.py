"""What a task is: a scene, where episodes start, what the goal is, and when it is reached."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from robot_rl.interfaces import Array, BodyState, ObjectTracker, Placement
from robot_rl.specs.scene import CameraSpec, SceneSpec

DEFAULT_CAMERAS = (
    CameraSpec("front", position_m=(0.55, 0.0, 0.55), target_m=(0.0, 0.0, 0.03), fov_deg=36.0),
    CameraSpec("side", position_m=(0.0, -0.7, 0.45), target_m=(0.0, 0.0, 0.05), fov_deg=42.0),
)


@dataclass(slots=True)
class TaskView:
    """What a task may look at: the tool (position (3,) [m], velocity (3,) [m/s], workspace frame),
    the gripper's opening in [0, 1] and the tracked objects."""

    tool_m: Array
    tool_velocity_m_s: Array
    gripper_opening: float
    tracker: ObjectTracker
    max_age_s: float
    _bodies: dict[str, BodyState] = field(default_factory=dict)

    def body(self, name: str) -> BodyState:
        """A tracked body, read once a view."""
        state = self._bodies.get(name)
        if state is None:
            state = self._bodies[name] = self.tracker.body(name, self.max_age_s)
        return state

    def joint(self, name: str) -> tuple[float, float]:
        """Position [m] or [rad] and velocity of a joint of the scene."""
        return self.tracker.joint(name, self.max_age_s)


class Task(ABC):
    """A goal-conditioned task in the workspace frame.

    Rewards are -1 until the goal is reached and 0 while it is (seed 001, chapters 4 and 7); all
    functions of goals are vectorised over leading axes.
    """

    name: ClassVar[str]
    description: ClassVar[str]
    default_action: ClassVar[str] = "xyz"
    duration_s: ClassVar[float] = 5.0
    goal_dim: ClassVar[int]
    feature_dim: ClassVar[int]
    threshold: ClassVar[float]
    goal_unit: ClassVar[str] = "m"

    @abstractmethod
    def scene(self) -> SceneSpec:
        """The scene around the arm."""

    @abstractmethod
    def sample_goal(self, rng: np.random.Generator) -> Array:
        """A goal (goal_dim,)."""

    @abstractmethod
    def sample_start(self, rng: np.random.Generator, goal: Array) -> Placement:
        """Where an episode with this goal starts."""

    @abstractmethod
    def goal_placement(self, goal: Array) -> Placement:
        """The scene as it looks when the goal is reached; for goal images."""

    @abstractmethod
    def achieved(self, view: TaskView) -> Array:
        """The goal (goal_dim,) that the world is at now."""

    @abstractmethod
    def features(self, view: TaskView) -> Array:
        """What the state observation says of the objects, (feature_dim,)."""

    def astray(self, view: TaskView) -> str | None:
        """Why the things on the table are about to leave the arm's reach; None while all is well.

        Where nobody but the arm can bring them back, an episode ends there.
        """
        return None

    def markers(self, goal: Array) -> dict[str, Array]:
        """Positions (3,) [m] of the scene's markers for this goal."""
        return {}

    def distance(self, achieved: Array, desired: Array) -> NDArray[np.float64]:
        """How far from the goal, in ``goal_unit``; shapes (..., goal_dim) give (...)."""
        difference = np.asarray(achieved, dtype=np.float64) - np.asarray(desired, dtype=np.float64)
        return np.asarray(np.sqrt((difference * difference).sum(axis=-1)))

    def success(self, achieved: Array, desired: Array) -> NDArray[np.bool_]:
        """Whether the goal is reached: within ``threshold``."""
        return np.asarray(self.distance(achieved, desired) <= self.threshold)

    def reward(self, achieved: Array, desired: Array) -> NDArray[np.float64]:
        """0 where the goal is reached, -1 elsewhere."""
        return np.asarray(self.success(achieved, desired).astype(np.float64) - 1.0)
