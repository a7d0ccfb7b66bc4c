"""What the tests share: one thread, off-screen graphics, arms without physics, small datasets."""

from __future__ import annotations

import os
from collections.abc import Iterator

os.environ.setdefault("MUJOCO_GL", "egl")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch

from benchmarks.storm.arm import RecordingGripper
from robot_rl.data import DatasetInfo, DatasetWriter, Episode
from robot_rl.errors import LateCommandError, SafetyError, StaleDataError
from robot_rl.interfaces import ArmStatus, Array, JointSetpoints, JointState
from robot_rl.safety import Executed, Latch, SafetyConfig, SafetyFilter
from robot_rl.specs import load_robot


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    torch.set_num_threads(1)
    yield


class RowArm:
    """An arm without dynamics: it is at the row that it sent last.

    ``advance`` sends rows, as its clock does when time passes. ``rows`` is every row that was sent
    and ``commands`` every command that was taken. ``stuck`` keeps the arm where it is, ``late`` is
    how many commands come too late, ``age_s`` how old its state is, ``fault`` what it reports.
    """

    def __init__(self, robot: str = "panda", period_s: float = 0.01, lead_rows: int = 0) -> None:
        self.spec, self.period_s, self.lead_rows = load_robot(robot), period_s, lead_rows
        self.position_rad = np.array(self.spec.home_rad)
        self.velocity_rad_s = np.zeros(len(self.spec.joints))
        self.commands: list[JointSetpoints] = []
        self.rows: list[Array] = []
        self.queue: list[Array] = []
        self.stuck = False
        self.late = 0
        self.age_s = 0.0
        self.now_s = 0.0
        self.fault: str | None = None
        self.recovered = 0

    def put(self, position_rad: Array) -> None:
        """Be at rest elsewhere, with nothing to send."""
        self.position_rad = np.array(position_rad)
        self.velocity_rad_s = np.zeros(len(self.spec.joints))
        self.queue = []

    def advance(self, count: int) -> None:
        """So many periods pass."""
        for _ in range(count):
            before = self.rows[-1] if self.rows else self.position_rad
            if self.queue:
                self.rows.append(self.queue.pop(0))
                before, after = before, self.rows[-1]
            else:
                after = before
            if not self.stuck:
                self.velocity_rad_s = (after - before) / self.period_s
                self.position_rad = self.rows[-1].copy() if self.rows else self.position_rad

    def state(self, max_age_s: float) -> JointState:
        if self.age_s > max_age_s:
            raise StaleDataError(f"the state is {self.age_s} s old, older than {max_age_s} s")
        return JointState(self.position_rad.copy(), self.velocity_rad_s.copy(),
                          self.now_s - self.age_s)

    def sent(self) -> int:
        return len(self.rows)

    def command(self, setpoints: JointSetpoints) -> JointSetpoints:
        if self.fault is not None:
            raise SafetyError(f"no commands: {self.fault}")
        keep = setpoints.at - len(self.rows)
        if self.late or keep < 0:
            self.late -= 1
            raise LateCommandError(f"row {setpoints.at} is gone, {len(self.rows)} were sent")
        assert keep <= len(self.queue), "a gap between the rows"
        assert setpoints.period_s == self.period_s
        self.queue = [*self.queue[:keep], *np.array(setpoints.position_rad)]
        self.commands.append(setpoints)
        return setpoints

    def status(self) -> ArmStatus:
        return ArmStatus(self.fault is None, self.fault)

    def recover(self) -> None:
        self.recovered += 1
        self.queue = [] if self.fault is not None else self.queue
        self.fault = None


class RowClock:
    """Time that passes when it is told to, for an arm as well."""

    def __init__(self, arm: RowArm) -> None:
        self.time_s = 0.0
        self._arm = arm

    def now_s(self) -> float:
        return self.time_s

    def sleep_until(self, time_s: float) -> None:
        self._arm.advance(round((time_s - self.time_s) / self._arm.period_s))
        self.time_s = self._arm.now_s = time_s


class Bench:
    """A safety filter on an arm without dynamics, its tool at ``tool_m``."""

    def __init__(
        self,
        robot: str = "panda",
        tool_m: tuple[float, float, float] = (0.0, 0.0, 0.15),
        config: SafetyConfig | None = None,
        *,
        period_s: float = 0.01,
        lead_rows: int = 0,
        force: object = None,
        latch: Latch | None = None,
    ) -> None:
        self.arm, self.gripper = RowArm(robot, period_s, lead_rows), RecordingGripper()
        self.clock = RowClock(self.arm)
        self.safety = SafetyFilter(self.arm, self.gripper, self.clock, config,
                                   force=force, latch=latch)
        self._placed = latch is None
        self.put(self.safety.posture(tool_m))

    def put(self, posture_rad: Array) -> None:
        """The arm is at rest at these joint angles, and the filter knows."""
        self.arm.put(posture_rad)
        self.safety.sync(placed=self._placed)

    def wait(self, time_s: float) -> None:
        self.clock.sleep_until(self.clock.time_s + time_s)

    def step(self, delta_m: object, turn_rad: float = 0.0, period_s: float = 0.1) -> Executed:
        """One control period, as an environment does it."""
        self.safety.measure()
        done = self.safety.move(delta_m, turn_rad, period_s)
        self.wait(period_s)
        return done

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
