"""Errors say what is wrong and what would be right."""

from __future__ import annotations

import pytest

from robot_rl.backends import list_backends, make_rig
from robot_rl.envs import make_env
from robot_rl.envs.external import make_external
from robot_rl.envs.tasks import make_task
from robot_rl.errors import (
    InvalidInputError,
    MissingDependencyError,
    RobotRLError,
    SafetyError,
    StaleDataError,
    unknown_name,
)
from robot_rl.interfaces import RigRequest
from robot_rl.specs import load_robot


def test_a_near_miss_is_suggested():
    error = unknown_name("arm", "sawyr", ["panda", "sawyer"])
    assert str(error) == "unknown arm 'sawyr' (did you mean 'sawyer'?); valid: panda, sawyer"


def test_a_far_miss_only_lists_the_choices():
    assert str(unknown_name("arm", "x", ["panda"])) == "unknown arm 'x'; valid: panda"
    assert str(unknown_name("arm", 3, [])) == "unknown arm 3; valid: none"


def test_every_error_is_one_that_can_be_caught():
    for kind in (InvalidInputError, MissingDependencyError, SafetyError, StaleDataError):
        assert issubclass(kind, RobotRLError)
    assert issubclass(InvalidInputError, ValueError)
    assert issubclass(MissingDependencyError, ImportError)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda: make_task("Pusch"),
         "unknown task 'Pusch' (did you mean 'Push'?); valid: Reach, Push, PickPlace, Drawer, "
         "Door, Insertion"),
        (lambda: make_env("Push", robot="ur5"),
         "unknown robot 'ur5'; valid: fr3, panda, sawyer"),
        (lambda: make_env("Push", backend="mujco"), "did you mean 'mujoco'?"),
        (lambda: make_env("Push", obs="pixels"), "unknown obs 'pixels'; valid: state, image"),
        (lambda: make_env("Push", action="xyz+grip"),
         "unknown action 'xyz+grip'; valid: xyz, xyz+yaw, xyz+gripper, xyz+yaw+gripper"),
        (lambda: make_env("Push", cameras=("top",)),
         "unknown camera 'top'; valid: front, side"),
        (lambda: make_env("Push", render_mode="human"),
         "unknown render_mode 'human'; valid: rgb_array"),
        (lambda: make_env("Push", render_quality="best"), "valid: fast, default"),
        (lambda: make_env("Push", randomization={"masses": 1.0}),
         "unknown randomization option 'masses' (did you mean 'mass'?); valid: mass, friction"),
        (lambda: make_env("Push", safety={"box": 1.0}),
         "unknown safety option 'box'"),
        (lambda: make_rig("ros9", RigRequest(load_robot("panda"), make_task("Reach").scene())),
         f"valid: {', '.join(list_backends())}"),
    ],
)
def test_an_unknown_name_lists_the_choices(ask, message):
    with pytest.raises(InvalidInputError) as caught:
        ask()
    assert message in str(caught.value)


@pytest.mark.parametrize("task", ["NoSuchThing-v1", "no_module_here:Thing-v0"])
def test_an_unknown_task_from_elsewhere_is_named(task):
    pytest.importorskip("gymnasium_robotics")
    with pytest.raises(InvalidInputError, match=f"unknown task '{task}'"):
        make_external(task)


def test_a_task_from_elsewhere_with_other_spaces_is_refused():
    pytest.importorskip("gymnasium_robotics")
    with pytest.raises(InvalidInputError, match=r"actions are Discrete.*should be a bounded Box"):
        make_external("CartPole-v1")
