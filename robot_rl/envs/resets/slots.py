"""Brings a drawer or a door to where it should be, by the slot behind its handle."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import numpy as np

from robot_rl.envs.resets.base import Bench, HelpNeeded, ObjectReset
from robot_rl.envs.tasks.door import Door
from robot_rl.envs.tasks.drawer import Drawer
from robot_rl.interfaces import Array, Placement

_CONTACT_S = 20.0
_STALLED_S = 2.0
_MORE_PLAY_M = 0.012
_SETTLED_SHARE = 0.05


class SlotReset(ObjectReset):
    """Finger into the slot from above, lead the handle along its path, out again.

    ``slot`` gives where the finger goes (3,) [m] at a position of the joint, ``play_m`` is how far
    the finger can be off the slot's middle before it touches a side, ``lead`` [joint's unit] how
    far it goes ahead of the joint at most.
    """

    task: ClassVar[str] = ""

    def __init__(
        self,
        bench: Bench,
        slot: Callable[[float], Array],
        joint: str,
        what: str,
        unit: str,
        tolerance: float,
        lead: float,
        play_m: float,
    ) -> None:
        super().__init__(bench)
        self.slot = slot
        self.joint = joint
        self.what = what
        self.unit = unit
        self.tolerance = tolerance
        self.lead = lead
        self.play_m = play_m

    def problem(self, placement: Placement) -> str | None:
        wanted = placement.joints[self.joint]
        before = self.bench.joint(self.joint)
        self.bench.motion.begin()
        self.bench.motion.step(np.zeros(3))
        now = self.bench.joint(self.joint)
        self.bench.motion.pause()
        if abs(now - wanted) > self.tolerance:
            return (f"the {self.what} is at {now:.3f} {self.unit}, should be within "
                    f"{self.tolerance:g} of {wanted:.3f}")
        if abs(now - before) > _SETTLED_SHARE * self.tolerance:
            return f"the {self.what} still moves, at {now:.3f} {self.unit}"
        return None

    def restore(self, placement: Placement) -> None:
        motion, options = self.bench.motion, self.bench.options
        wanted = placement.joints[self.joint]
        at = self.slot(self.bench.joint(self.joint))
        if not self.bench.reaches(at):
            raise HelpNeeded(
                f"the handle of the {self.what}, at ({at[0]:.3f}, {at[1]:.3f}) m, is out of reach"
            )
        if not motion.travel(at, 0.0, options.travel_speed_m_s):
            motion.lift_off()
            return
        self._lead(wanted)
        # Off the sides of the slot, so that the way up takes nothing along.
        motion.move_tool_to(motion.clip(self.slot(self.bench.joint(self.joint))), None, 0.1)
        motion.lift_off()

    def _lead(self, wanted: float) -> None:
        motion = self.bench.motion
        motion.begin()
        play, nearest, waited_s = self.play_m, np.inf, 0.0
        for _ in range(int(_CONTACT_S / motion.period_s)):
            position = self.bench.joint(self.joint)
            left = wanted - position
            if abs(left) < 0.3 * self.tolerance or waited_s > _STALLED_S:
                return
            waited_s += motion.period_s
            if abs(left) < nearest - 0.02 * self.tolerance:
                nearest, waited_s = abs(left), 0.0
            elif waited_s > 0.3:
                # The finger is not where its side is thought to be: lean on it a little more.
                play = min(play + 0.001, self.play_m + _MORE_PLAY_M)
            here = self.slot(position)
            tangent = self.slot(position + 1e-3) - here
            metres = float(np.linalg.norm(tangent)) / 1e-3
            way = np.copysign(1.0, left) * tangent / max(float(np.linalg.norm(tangent)), 1e-12)
            ahead = self.slot(position + float(np.clip(left, -self.lead, self.lead)))
            speed = min(self.bench.options.contact_speed_m_s, 0.03 + 1.5 * abs(left) * metres)
            motion.towards(motion.clip(ahead + play * way), speed, 0.0)


class DrawerReset(SlotReset):
    """Opens or closes the drawer."""

    task: ClassVar[str] = "Drawer"

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench, Drawer().slot, "drawer_slide", "drawer", "m",
                         bench.options.drawer_tolerance_m, 0.03, 0.022)


class DoorReset(SlotReset):
    """Opens or closes the door."""

    task: ClassVar[str] = "Door"

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench, Door().slot, "door_hinge", "door", "rad",
                         bench.options.door_tolerance_rad, 0.15, 0.018)
