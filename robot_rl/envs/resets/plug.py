"""Pulls a plug out of its socket."""

from __future__ import annotations

from typing import ClassVar

from robot_rl.envs.resets.base import HelpNeeded, ObjectReset
from robot_rl.envs.tasks.insertion import FREE_HEIGHT_M
from robot_rl.interfaces import Placement


class PlugReset(ObjectReset):
    """Lifting off pulls the plug straight up; what is left is to see that it came along."""

    task: ClassVar[str] = "Insertion"

    def problem(self, placement: Placement) -> str | None:
        tool = self.bench.motion.tool()[0]
        if tool[2] < FREE_HEIGHT_M and tool[2] < placement.tool_m[2] - 0.01:
            return f"the tool is at {tool[2]:.3f} m, too low for the plug to be out of the socket"
        contact = self.bench.rig.sensors.get("contact")
        if contact is not None and contact.read(self.bench.max_age_s).value > 0.5:
            raise HelpNeeded(
                f"the contact is closed with the tool at {tool[2]:.3f} m: the plug is still in "
                "its socket, and no longer in the gripper"
            )
        return None

    def restore(self, placement: Placement) -> None:
        self.bench.motion.lift_off()
