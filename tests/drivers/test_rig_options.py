"""Numbers in a rig's options: each is checked before anything is connected."""

from __future__ import annotations

import pytest

from robot_rl.errors import InvalidInputError
from robot_rl.interfaces import RigRequest
from robot_rl.specs import SceneSpec, load_robot
from robot_rl_drivers.franka import direct_rig, rig
from robot_rl_drivers.options import number, numbers
from robot_rl_drivers.sawyer import rig as sawyer_rig

NUMBERS = {
    "ros1": ("command_timeout_s", "max_gap_s"),
    "ros2": ("rate_hz", "max_gap_s", "timeout_s", "domain_id"),
    "franky": ("rate_hz", "max_gap_s", "torque_threshold_nm", "force_threshold_n", "stiffness",
               "domain_id"),
}
MAKERS = {"ros1": (sawyer_rig, "sawyer"), "ros2": (rig, "panda"), "franky": (direct_rig, "fr3")}
BAD = ("nan", "inf", "-inf", "-1", "1e9", "", "x", "1,1", "true")


@pytest.mark.parametrize(
    ("backend", "key", "value"),
    [(backend, key, value) for backend, keys in NUMBERS.items() for key in keys for value in BAD
     if not (value == "" and backend != "ros1" and key in ("max_gap_s", "domain_id"))],
)
def test_numbers_that_cannot_be_used_are_refused_before_connecting(
    monkeypatch: pytest.MonkeyPatch, backend: str, key: str, value: str
) -> None:
    module, robot = MAKERS[backend]

    def connected(*_: object, **__: object) -> None:
        raise AssertionError("it went on to connect")

    for name in ("Ros1Session", "make_node", "load_franky", "connect"):
        if hasattr(module, name):
            monkeypatch.setattr(module, name, connected)
    options = {"robot_ip": "127.0.0.1"} if backend == "franky" else {}
    request = RigRequest(load_robot(robot), SceneSpec(), options={**options, key: value})
    with pytest.raises(InvalidInputError, match=key):
        module.make_rig(request)


def test_every_numeric_option_is_tried_here() -> None:
    for backend, keys in NUMBERS.items():
        assert set(keys) <= set(MAKERS[backend][0].OPTIONS)
    for backend, (module, _) in MAKERS.items():
        if backend != "ros1":
            numeric = {key for key, value in module.OPTIONS.items()
                       if value.replace(",", "").isdigit() or key.endswith(("_s", "_id"))}
            assert numeric == set(NUMBERS[backend])


def test_numbers() -> None:
    assert number({"a": "0.5"}, "a", 0.0, 1.0) == 0.5
    assert numbers({"a": "1,2, 3"}, "a", 3, 0.0, 9.0) == [1.0, 2.0, 3.0]
    with pytest.raises(InvalidInputError, match=r"a is '1,nan', should be 2 numbers .* \[0, 9\] N"):
        numbers({"a": "1,nan"}, "a", 2, 0.0, 9.0, "N")
