"""Recentres a puck by pushing it from the side that is turned away from where it should be."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from robot_rl.envs.resets.base import HelpNeeded, ObjectReset, at_rest, axes_of
from robot_rl.envs.tasks.push import PUCK_DIAMETER_M, PUCK_HEIGHT_M
from robot_rl.interfaces import Array, BodyState, Placement

PUSH_HEIGHT_M = 0.022
# Tool to the middle of the puck: where they touch, and where the tool comes down beside it.
_CONTACT_M = 0.047
_BESIDE_M = (0.08, 0.066)
_AIM_M = 0.008
_ENDS_M = 0.003
_LEAD_M = 0.03
_SLIPPED_M = 0.025
_UPRIGHT = 0.97
# A puck on its rim is hit near its top, where the fingertips end 1 cm below the tool, and fast:
# lower or slower it would slide, or roll away.
_TOPPLE_HEIGHT_M, _TOPPLE_M_S = 0.072, 0.4
_FAILED_M = 0.02
_DIRECTIONS = 48


class PushReset(ObjectReset):
    """Several pushes, each along a straight line through the puck's middle."""

    task: ClassVar[str] = "Push"

    def problem(self, placement: Placement) -> str | None:
        wanted = placement.bodies["puck"][0]
        puck = self.bench.settled("puck")
        off = float(np.linalg.norm(puck.position_m[:2] - wanted[:2]))
        if not _lies_flat(puck):
            return f"the puck does not lie flat at {_at(puck.position_m)}"
        if off > self.bench.options.body_tolerance_m:
            return (f"the puck is at {_at(puck.position_m)}, {1000 * off:.0f} mm from where it "
                    f"should be, {_at(wanted)}")
        if not at_rest(puck):
            return f"the puck does not come to rest at {_at(puck.position_m)}"
        return None

    def restore(self, placement: Placement) -> None:
        wanted = np.asarray(placement.bodies["puck"][0][:2], dtype=np.float64)
        failed: list[Array] = []
        for _ in range(self.bench.options.pushes):
            puck = self.bench.settled("puck")
            if not _lies_flat(puck):
                self._topple(puck)
                continue
            here = puck.position_m[:2]
            if float(np.linalg.norm(wanted - here)) <= _AIM_M:
                return
            direction, length, beside = self._plan(here, wanted, failed)
            start = here - beside * direction
            if self.bench.motion.travel([*start, PUSH_HEIGHT_M], 0.0,
                                        self.bench.options.travel_speed_m_s):
                self._push(here, direction, length, beside)
            else:
                failed.append(start)
            self.bench.motion.lift_off()

    def _plan(
        self, puck: Array, wanted: Array, failed: list[Array]
    ) -> tuple[Array, float, float]:
        """Direction (2,), length [m] and the distance beside the puck to come down at.

        Straight towards the place if the tool gets behind the puck there; otherwise the direction
        that leaves least of the way, among those the tool can push in. Starts near one that
        ``failed`` are left out.
        """
        way = wanted - puck
        distance = float(np.linalg.norm(way))
        angles = np.arctan2(way[1], way[0]) + np.linspace(0, 2 * np.pi, _DIRECTIONS, False)
        choices = []
        for angle in angles:
            direction = np.array([np.cos(angle), np.sin(angle)])
            along = float(direction @ way)
            if along < min(_AIM_M, 0.5 * distance):
                continue
            left = float(np.linalg.norm(way - along * direction))
            choices.append((left, along, direction))
        for _, along, direction in sorted(choices, key=lambda choice: choice[0]):
            for beside in _BESIDE_M:
                spots = [puck - beside * direction, puck + (along - _CONTACT_M) * direction]
                missed = any(np.linalg.norm(spots[0] - spot) < _FAILED_M for spot in failed)
                if not missed and all(self._reaches(spot) for spot in spots):
                    return direction, along, beside
        raise HelpNeeded(
            f"the puck at {_at(puck)} is out of reach: there is nowhere for the tool to push it "
            f"from towards {_at(wanted)}"
        )

    def _reaches(self, spot: Array) -> bool:
        return self.bench.reaches(np.array([spot[0], spot[1], PUSH_HEIGHT_M]))

    def _push(self, puck: Array, direction: Array, length: float, beside: float) -> None:
        motion, options = self.bench.motion, self.bench.options
        begun = puck
        motion.begin()
        for _ in range(int((2.0 * (length + beside) / 0.03 + 2.0) / motion.period_s)):
            state = self.bench.body("puck")
            puck = state.position_m[:2]
            left = length - float((puck - begun) @ direction)
            away = motion.tool()[0][:2] - puck
            lateral = away - direction * float(away @ direction)
            slipped = float(np.linalg.norm(lateral)) > _SLIPPED_M
            if left < _ENDS_M or slipped or not _lies_flat(state):
                break
            # Keep on the line through the puck's middle: a push off it turns the puck away.
            spot = puck - direction * (_CONTACT_M - min(_LEAD_M, left)) - lateral
            target = motion.clip(np.array([spot[0], spot[1], PUSH_HEIGHT_M]))
            motion.towards(target, min(options.contact_speed_m_s, 0.03 + 1.5 * left), 0.0)
        back = motion.tool()[0] - 0.02 * np.array([*direction, 0.0])
        motion.move_tool_to(motion.clip(back), None, 0.1, tolerance_m=0.01)

    def _topple(self, puck: BodyState) -> None:
        """Lay a puck flat that stands on its rim: a push at its top, along its axis."""
        motion = self.bench.motion
        here = puck.position_m[:2]
        axis = axes_of(puck)[:2, 2]
        axis = axis / max(float(np.linalg.norm(axis)), 1e-9)
        # Inwards if the tool gets behind it, and no further than it takes.
        inwards = axis if float(axis @ here) < 0.0 else -axis
        for way, beyond in ((inwards, 0.04), (inwards, -0.005), (-inwards, -0.005)):
            start, end = here - 0.07 * way, here + beyond * way
            if self._reaches(start) and self._reaches(end):
                break
        else:
            raise HelpNeeded(f"the puck stands on its rim at {_at(here)}, out of reach")
        travel_m_s = self.bench.options.travel_speed_m_s
        if motion.travel([*start, _TOPPLE_HEIGHT_M], 0.0, travel_m_s):
            motion.move_tool_to([*end, _TOPPLE_HEIGHT_M], None, _TOPPLE_M_S, tolerance_m=0.02)
        motion.lift_off()


def _lies_flat(puck: BodyState) -> bool:
    upright = abs(float(axes_of(puck)[2, 2])) > _UPRIGHT
    return upright and abs(float(puck.position_m[2]) - 0.5 * PUCK_HEIGHT_M) < 0.01


def _at(position_m: Array) -> str:
    return f"({position_m[0]:.3f}, {position_m[1]:.3f}) m"


assert _BESIDE_M[-1] > 0.5 * PUCK_DIAMETER_M + 0.03
