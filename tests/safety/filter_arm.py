"""A safety filter on a recording arm, for the tests that look at each call."""

from __future__ import annotations

import numpy as np

from benchmarks.storm.arm import ManualClock, RecordingArm, RecordingGripper
from robot_rl.interfaces import Wrench
from robot_rl.safety import SafetyConfig, SafetyFilter
from robot_rl.specs import load_robot

PERIOD_S = 0.1


class At:
    """A filter on a recording arm at rest."""

    def __init__(self, tool_m=(0.0, 0.0, 0.15), yaw_rad=0.0, robot="panda", lead=1, follow=0.0,
                 period_s=0.01, force=None, latch=None, **config) -> None:
        self.clock, self.gripper = ManualClock(), RecordingGripper()
        self.arm = RecordingArm(load_robot(robot), self.clock, lead_rows=lead, follow=follow,
                                period_s=period_s)
        self.arm.keep_commands = []
        self.config = SafetyConfig(**config)
        self.safety = SafetyFilter(self.arm, self.gripper, self.clock, self.config, force=force,
                                   latch=latch)
        self.arm.put(self.safety.posture(tool_m, yaw_rad))
        if self.safety.held is None:
            self.safety.sync()

    def step(self, delta=(0.0, 0.0, 0.0), turn=0.0, duration=PERIOD_S, wait=None):
        self.safety.measure()
        done = self.safety.move(delta, turn, duration)
        self.clock.pass_s(duration if wait is None else wait)
        return done

    def steps(self, count, delta=(0.0, 0.0, 0.0), turn=0.0):
        for _ in range(count):
            done = self.step(delta, turn)
        return done

    def tool(self, q=None) -> np.ndarray:
        pose = self.safety.kinematics.forward(self.arm.position_rad if q is None else q)
        return pose[:3, 3] - np.array(self.arm.spec.workspace_origin_m)

    def state(self):
        return (self.safety.setpoint_rad.tolist(), self.safety.setpoint_tool_m.tolist(),
                self.safety.yaw_rad, self.arm.queued.tolist(), len(self.arm.commands),
                list(self.gripper.sent))


class Force:
    def __init__(self, *force_n: float) -> None:
        self.force_n, self.asked = np.array(force_n), []

    def wrench(self, max_age_s: float) -> Wrench:
        self.asked.append(max_age_s)
        return Wrench(self.force_n, np.full(3, 1e3), 0.0)

    def zero(self) -> None: ...
