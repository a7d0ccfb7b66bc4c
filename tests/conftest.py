"""What the tests share: one thread, off-screen graphics, arms without physics, small datasets."""

from __future__ import annotations

import os
from collections.abc import Iterator

os.environ.setdefault("MUJOCO_GL", "egl")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch

from robot_rl.data import DatasetInfo, DatasetWriter, Episode
from robot_rl.interfaces import Array, JointSetpoints, JointState
from robot_rl.safety import SafetyConfig, SafetyFilter
from robot_rl.specs import load_robot


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    torch.set_num_threads(1)
    yield


class JumpArm:
    """An arm without dynamics: it is at the last set-point as soon as it is told of it.

    ``stuck`` keeps it where it is; ``sent`` is every command that it received.
    """

    def __init__(self, robot: str = "panda") -> None:
        self.spec = load_robot(robot)
        self.position_rad = np.array(self.spec.home_rad)
        self.velocity_rad_s = np.zeros(len(self.spec.joints))
        self.sent: list[JointSetpoints] = []
        self.stuck = False

    def state(self, max_age_s: float) -> JointState:
        return JointState(self.position_rad.copy(), self.velocity_rad_s.copy(), 0.0)

    def command(self, setpoints: JointSetpoints) -> JointSetpoints:
        self.sent.append(
            JointSetpoints(np.array(setpoints.position_rad), setpoints.period_s)
        )
        if not self.stuck:
            self.position_rad = np.array(setpoints.position_rad[-1])
        return setpoints


class JumpGripper:
    """A gripper that is where it was told to be."""

    def __init__(self) -> None:
        self.sent: list[float] = []

    def opening(self, max_age_s: float) -> float:
        return self.sent[-1] if self.sent else 0.0

    def command(self, opening: float) -> float:
        self.sent.append(opening)
        return opening


class StillClock:
    """A clock that jumps."""

    def __init__(self) -> None:
        self.time_s = 0.0

    def now_s(self) -> float:
        return self.time_s

    def sleep_until(self, time_s: float) -> None:
        self.time_s = time_s


class Bench:
    """A safety filter on an arm without dynamics, its tool at ``tool_m``."""

    def __init__(
        self,
        robot: str = "panda",
        tool_m: tuple[float, float, float] = (0.0, 0.0, 0.15),
        config: SafetyConfig | None = None,
    ) -> None:
        self.arm, self.gripper, self.clock = JumpArm(robot), JumpGripper(), StillClock()
        self.safety = SafetyFilter(self.arm, self.gripper, self.clock, config)
        self.put(tool_m)

    def put(self, tool_m: tuple[float, float, float]) -> None:
        self.arm.position_rad = self.safety.posture(tool_m)
        self.safety.sync()

    def tool(self, q_rad: Array | None = None) -> Array:
        """The tool (3,) [m] in the workspace frame at these joint angles, or as the arm is."""
        q = self.arm.position_rad if q_rad is None else q_rad
        pose = self.safety.kinematics.forward(q)
        return np.asarray(pose[:3, 3] - np.array(self.arm.spec.workspace_origin_m))


@pytest.fixture
def bench() -> type[Bench]:
    """Makes a safety filter on an arm without dynamics."""
    return Bench


def make_episode(
    steps: int,
    number: int = 0,
    *,
    observation_dim: int = 4,
    goal_dim: int = 2,
    action_dim: int = 3,
    terminated: bool = False,
) -> Episode:
    """An episode whose numbers say where they come from: 1000 x number + row."""
    rows = 1000.0 * number + np.arange(steps + 1, dtype=np.float32)
    end = np.zeros(steps, np.bool_)
    end[-1] = True
    return Episode(
        observation=np.repeat(rows[:, None], observation_dim, 1).astype(np.float32),
        achieved=np.repeat(rows[:, None], goal_dim, 1).astype(np.float32) + np.float32(0.25),
        desired=np.full(goal_dim, -1.0 - number, np.float32),
        action=np.repeat(rows[:-1, None] + np.float32(0.5), action_dim, 1).astype(np.float32),
        reward=rows[:-1] + np.float32(0.75),
        terminated=end if terminated else np.zeros(steps, np.bool_),
        truncated=np.zeros(steps, np.bool_) if terminated else end,
        success=np.zeros(steps, np.bool_),
        requested=np.repeat(rows[:-1, None], action_dim, 1).astype(np.float32),
    )


@pytest.fixture
def episode() -> object:
    """Makes an episode whose numbers say where they come from."""
    return make_episode


@pytest.fixture
def dataset_of() -> object:
    """Writes episodes into a folder; returns its path as text."""

    def write(path: object, episodes: list[Episode], task: str = "") -> str:
        first = episodes[0]
        with DatasetWriter(str(path), DatasetInfo.of(first, task=task)) as writer:
            for each in episodes:
                writer.append(each)
        return str(path)

    return write
