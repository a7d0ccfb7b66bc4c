"""What a filter let through, on simulated arms: do they stay within limits too?"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robot_rl.backends import make_rig
from robot_rl.interfaces import JointSetpoints, Placement, RigRequest
from robot_rl.safety import SafetyConfig
from robot_rl.specs import RobotSpec, SceneSpec, load_robot

from .checker import MAKERS, Limits, tool_points
from .run import Segment

Array = NDArray[np.float64]

PERIOD_S = 0.01
TOLERANCES = {
    "position_rad": 0.005,
    "velocity_share": 0.05,
    "velocity_rad_s": 0.05,
    "box_m": 0.005,
    "torque_nm": 0.0,
}
"""How far a measurement may be past a limit: the overshoot of a joint's controller. Velocities may
exceed theirs by the share and the constant together. Torques are not measured but those of an arm
that follows the rows exactly, and may not exceed the maker's at all."""


@dataclass
class Replayed:
    """What a simulated arm measured: rows, violations by kind, and the furthest past each limit
    (negative: that far within; torques as a share of the limit)."""

    rows: int = 0
    segments: int = 0
    violations: dict[str, int] = field(default_factory=dict)
    furthest: dict[str, float] = field(default_factory=dict)

    def note(self, kind: str, excess: Array, tolerance: float) -> None:
        """Excess (k, ...) over a limit, a violation where it is more than ``tolerance``."""
        worst = excess.reshape(len(excess), -1).max(axis=1)
        self.furthest[kind] = max(self.furthest.get(kind, -np.inf), float(worst.max()))
        bad = int(np.count_nonzero(~(worst <= tolerance)))
        if bad:
            self.violations[kind] = self.violations.get(kind, 0) + bad

    def as_dict(self) -> dict[str, Any]:
        return {"rows": self.rows, "segments": self.segments,
                "violations": sum(self.violations.values()), "violations_by_kind": self.violations,
                "furthest": {kind: round(value, 5) for kind, value in self.furthest.items()}}


def replay(robot: str, engine: str, segments: list[Segment],
           config: SafetyConfig | None = None) -> Replayed:
    """Play segments on the simulated arm alone, without a filter, and check what it measures."""
    config = config if config is not None else SafetyConfig()
    spec = load_robot(robot)
    limits = Limits(MAKERS[robot], config.box_min_m, config.box_max_m)
    # No table: what is out of the box by a hair is not to be held up by it.
    rig = make_rig(engine, RigRequest(robot=spec, scene=SceneSpec(), physics_step_s=0.005,
                                      setpoint_period_s=PERIOD_S))
    assert rig.scene is not None
    torques = _Torques(spec) if engine == "mujoco" else None
    seen = Replayed()
    try:
        for segment in segments:
            rig.scene.place(segment.start_rad, Placement(tool_m=np.zeros(3)))
            if not len(segment.rows_rad):
                continue
            measured = _play(rig.arm, rig.clock, segment.rows_rad)
            seen.segments += 1
            seen.rows += len(segment.rows_rad)
            _check(seen, spec, limits, segment, *measured)
            if torques is not None:
                torques.check(seen, segment)
    finally:
        rig.close()
    return seen


def _play(arm: Any, clock: Any, rows: Array) -> tuple[Array, Array]:
    """Measured angles and velocities (k, n) after each row."""
    positions, velocities = np.empty_like(rows), np.empty_like(rows)
    began = clock.now_s()
    arm.command(JointSetpoints(rows, PERIOD_S, at=arm.sent()))
    for number in range(len(rows)):
        clock.sleep_until(began + (number + 1) * PERIOD_S)
        state = arm.state(1.0)
        positions[number], velocities[number] = state.position_rad, state.velocity_rad_s
    return positions, velocities


def _check(seen: Replayed, spec: RobotSpec, limits: Limits, segment: Segment, positions: Array,
           velocities: Array) -> None:
    maker = limits.maker
    low, high = np.asarray(maker.lower), np.asarray(maker.upper)
    start = segment.start_rad[None]
    # A segment may begin out of a limit; then it is held to no more than that.
    slack = max(0.0, float(np.maximum(low - start, start - high).max()))
    seen.note("position", np.maximum(low - positions, positions - high) - slack,
              TOLERANCES["position_rad"])
    limit = limits.envelope(positions, velocities)
    share = 1.0 + TOLERANCES["velocity_share"]
    seen.note("velocity", np.abs(velocities) - share * limit, TOLERANCES["velocity_rad_s"])

    def out(rows: Array) -> Array:
        points, _ = tool_points(spec, rows)
        return np.asarray(np.maximum(np.asarray(limits.box_min_m) - points,
                                     points - np.asarray(limits.box_max_m)).max(axis=1))

    seen.note("box", out(positions) - max(0.0, float(out(start)[0])), TOLERANCES["box_m"])


class _Torques:
    """Torques of an arm that follows rows exactly, by MuJoCo's inverse dynamics."""

    def __init__(self, spec: RobotSpec) -> None:
        import mujoco

        from robot_rl_sim.urdf_writer import urdf_text

        self._mujoco, self._spec = mujoco, spec
        self._model = mujoco.MjModel.from_xml_string(urdf_text(spec))
        self._data = mujoco.MjData(self._model)
        model = self._model
        # What a maker does not publish is not counted against its limits.
        model.dof_armature[:] = model.dof_damping[:] = model.dof_frictionloss[:] = 0.0
        model.opt.disableflags |= (mujoco.mjtDisableBit.mjDSBL_CONTACT
                                   | mujoco.mjtDisableBit.mjDSBL_LIMIT)
        names = [joint.name for joint in spec.joints]
        ids = [mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_JOINT, name) for name in names]
        self._places = model.jnt_qposadr[ids]
        self._speeds = model.jnt_dofadr[ids]
        for finger in spec.gripper.finger_joints:
            number = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_JOINT, finger)
            if number >= 0:
                self._data.qpos[model.jnt_qposadr[number]] = 0.5 * spec.gripper.finger_stroke_m

    def check(self, seen: Replayed, segment: Segment) -> None:
        rest = np.repeat(segment.start_rad[None], 2, axis=0)
        rows = np.concatenate([rest, segment.rows_rad])
        velocities = (rows[2:] - rows[:-2]) / (2.0 * PERIOD_S)
        accelerations = (rows[2:] - 2.0 * rows[1:-1] + rows[:-2]) / PERIOD_S**2
        data, torques = self._data, np.empty_like(velocities)
        for number, (q, v, a) in enumerate(zip(rows[1:-1], velocities, accelerations,
                                               strict=True)):
            data.qpos[self._places] = q
            data.qvel[self._speeds], data.qacc[self._speeds] = v, a
            self._mujoco.mj_inverse(self._model, data)
            torques[number] = data.qfrc_inverse[self._speeds]
        share = np.abs(torques) / self._spec.limits("torque_nm")
        seen.note("torque", share - 1.0, TOLERANCES["torque_nm"])
