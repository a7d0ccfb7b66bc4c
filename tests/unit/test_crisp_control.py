"""When a simulated Franka takes a target for a jump."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("mujoco")

from robot_rl.specs import load_robot
from robot_rl_sim.crisp_control import JUMP_RAD, FrankaController

SPEC = load_robot("fr3")
HOME = np.array(SPEC.home_rad)


def told(velocity_rad_s: float) -> FrankaController:
    """A controller that was told of a target at home, moving, at time 1."""
    controller = FrankaController(SPEC)
    controller.target_joint(HOME, np.full(7, velocity_rad_s), 1.0)
    return controller


@pytest.mark.parametrize("step_rad, velocity_rad_s, later_s, mode", [
    (0.9 * JUMP_RAD, 0.0, 0.01, "move"),
    (1.1 * JUMP_RAD, 0.0, 0.01, "reflex"),
    (1.1 * JUMP_RAD, 0.0, 10.0, "reflex"),
    # Targets of 0.2 s got lost, between which it moved on, or came to rest.
    (0.16, 0.8, 0.2, "move"),
    (0.0, 0.8, 0.2, "move"),
    (0.16 + 1.1 * JUMP_RAD, 0.8, 0.2, "reflex"),
    (-1.1 * JUMP_RAD, 0.8, 0.2, "reflex"),
    # After so long it is not known where the sender is.
    (0.8, 0.8, 1.0, "reflex"),
])
def test_a_jump_is_what_is_off_the_way_of_the_target_before(
    step_rad, velocity_rad_s, later_s, mode
):
    controller = told(velocity_rad_s)
    controller.target_joint(HOME + step_rad, np.zeros(7), 1.0 + later_s)
    assert controller.mode == mode
