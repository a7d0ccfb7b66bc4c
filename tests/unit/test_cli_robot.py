"""`robot-rl robot`: checks that move nothing, home and jog through the filter, and re-arming."""

from __future__ import annotations

import io
import json
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from robot_rl.cli import robot, robot_checks
from robot_rl.cli.flags import Parser, add_rig_flags, camera_sources, rig_options
from robot_rl.cli.main import main
from robot_rl.errors import InvalidInputError, RobotRLError, SafetyError, StaleDataError
from robot_rl.interfaces import (
    ArmStatus,
    Frame,
    JointSetpoints,
    JointState,
    Reading,
    Rig,
    Wrench,
)
from robot_rl.kinematics import Kinematics, rotation_from_rpy
from robot_rl.safety.latch import Latch
from robot_rl.specs import load_robot

SPEC = load_robot("sawyer")


def run(capsys: Any, *words: str) -> tuple[int, dict[str, Any], str]:
    code = main(["robot", *words, "--json"])
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    return code, json.loads(lines[-1]) if lines else {}, captured.err


# -- simulated arms -----------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["mujoco", "pybullet"])
@pytest.mark.parametrize("name", ["sawyer", "panda", "fr3"])
def test_a_simulated_arm_is_fit_and_comes_home(capsys, backend, name):
    pytest.importorskip(backend)
    words = ("--robot", name, "--backend", backend, "--task", "Drawer")
    code, said, _ = run(capsys, "check", *words, "--seconds", "0.1")
    assert code == 0 and said["ok"] is True
    names = [check["name"] for check in said["checks"]]
    assert names == ["connect", "clock", "state", "joint limits", "tool", "status", "hold",
                     "gripper", "camera front", "camera side", "force", "sensor drawer"]
    assert all(set(check) == {"name", "ok", "detail"} and check["ok"] is True and check["detail"]
               for check in said["checks"])
    code, said, _ = run(capsys, "home", *words, "--speed", "0.4")
    assert code == 0 and said["arrived"] is True
    np.testing.assert_allclose(said["tool_m"], [0.0, 0.0, 0.2], atol=0.006)


@pytest.mark.parametrize(("axis", "by", "unit"), [
    ("x", 0.04, "m"), ("y", -0.04, "m"), ("z", 0.05, "m"), ("yaw", 0.2, "rad"),
    ("j1", -0.08, "rad"), ("j7", 0.1, "rad"),
])
def test_a_jog_says_what_was_asked_executed_and_measured(capsys, axis, by, unit):
    pytest.importorskip("mujoco")
    code, said, _ = run(capsys, "jog", "--robot", "panda", "--axis", axis, "--by", str(by))
    assert code == 0, said
    assert set(said) == {"arrived", "why", "time_s", "axis", "unit", "asked", "executed",
                         "measured", "reached"}
    assert (said["asked"], said["unit"], said["axis"]) == (by, unit, axis)
    assert said["executed"] == pytest.approx(by, abs=0.004)
    assert said["measured"] == pytest.approx(by, abs=0.012)


def test_a_jog_out_of_the_box_ends_at_its_face(capsys, monkeypatch):
    pytest.importorskip("mujoco")
    monkeypatch.setattr(robot, "_SIMULATED_START_M", (0.2, 0.0, 0.15))
    code, said, _ = run(capsys, "jog", "--robot", "panda", "--axis", "x", "--by", "0.1")
    assert code == 1 and said["reached"] is False
    assert 0.03 < said["measured"] < 0.055


@pytest.mark.parametrize("words", [
    ("jog", "--axis", "w", "--by", "0.01"), ("jog", "--axis", "j8", "--by", "0.01"),
    ("jog", "--axis", "x", "--by", "0"), ("jog", "--axis", "x", "--by", "2"),
    ("jog", "--axis", "x", "--by", "nan"), ("jog", "--axis", "yaw", "--by", "0.6"),
    ("jog", "--axis", "x", "--by", "0.01", "--speed", "0"), ("jog", "--axis", "x"),
    ("home", "--speed", "2"), ("home", "--speed", "nan"), ("home", "--robot", "puma"),
    ("check", "--backend", "none"), ("check", "--seconds", "0"), ("check", "--task", "Fly"),
    ("check", "--rig", "robot_ip"), ("check", "--camera", "front"), ("fly",),
])
def test_unusable_input_is_one_line_and_exit_code_2(capsys, words):
    pytest.importorskip("mujoco")
    code, said, err = run(capsys, *words)
    assert code == 2 and not said and len(err.splitlines()) == 1, err


def test_the_group_alone_shows_its_help(capsys):
    assert main(["robot"]) == 2
    assert "emergency stop" in capsys.readouterr().out


def test_hardware_flags_become_options_and_sources():
    parser = Parser()
    add_rig_flags(parser)
    args = parser.parse_args(["--rig", "robot_ip=172.16.0.2", "--rig", "url=a=b", "--camera",
                              "front=opencv:0?exposure=1", "--camera", "w=none"])
    assert rig_options(args) == {"robot_ip": "172.16.0.2", "url": "a=b"}
    assert camera_sources(args) == {"front": "opencv:0?exposure=1", "w": "none"}
    assert rig_options(parser.parse_args([])) == {}
    for word in ("a", "=1", "a=", "a b=1", "1a=2", "a.b=1"):
        with pytest.raises(InvalidInputError, match=r"--rig .* should be KEY=VALUE"):
            rig_options(parser.parse_args(["--rig", word]))
    with pytest.raises(InvalidInputError, match="'a' is given twice"):
        camera_sources(parser.parse_args(["--camera", "a=1", "--camera", "a=2"]))


# -- an arm of hardware, as far as the commands see it ------------------------------------------


class Clock:
    def now_s(self) -> float:
        return time.monotonic()

    def sleep_until(self, time_s: float) -> None:
        time.sleep(max(0.0, time_s - time.monotonic()))


class HardArm:
    """An arm at rest that counts what is asked of it; ``broken`` breaks it."""

    def __init__(self) -> None:
        self.spec = SPEC
        self.period_s, self.lead_rows = 0.01, 3
        target = np.eye(4)
        target[:3, :3] = rotation_from_rpy((np.pi, 0.0, 0.0))
        target[:3, 3] = np.array(SPEC.workspace_origin_m) + [0.0, 0.0, 0.15]
        self.position = Kinematics(SPEC).inverse(target).q_rad
        self.velocity = np.zeros(7)
        self.commands = self.recoveries = 0
        self.fault: str | None = None
        self.estop = self.frozen = False
        self.begun = time.monotonic()
        self.own: list[tuple[str, bool, str]] = [("firmware", True, "5.3")]

    def state(self, max_age_s: float) -> JointState:
        if self.frozen:
            raise StaleDataError("the last state is 3 s old")
        return JointState(self.position.copy(), self.velocity.copy(), time.monotonic())

    def sent(self) -> int:
        return 0

    def command(self, setpoints: JointSetpoints) -> JointSetpoints:
        self.commands += 1
        return setpoints

    def status(self) -> ArmStatus:
        fault = "the emergency stop is pressed" if self.estop else self.fault
        return ArmStatus(fault is None, fault)

    def recover(self) -> None:
        self.recoveries += 1
        if self.estop:
            raise SafetyError("the emergency stop is pressed; release it first")
        self.fault = None

    def checks(self) -> list[tuple[str, bool, str]]:
        return self.own


class Hardware:
    """What a backend makes, with parts that can be broken."""

    def __init__(self) -> None:
        self.arm = HardArm()
        self.image = np.arange(48 * 48 * 3, dtype=np.uint8).reshape(48, 48, 3)
        self.force_n = np.array([1.0, 2.0, 3.0])
        self.opening = 0.5
        self.watched: str | None = None
        self.closed = 0
        self.fails: Exception | None = None
        self.reading = 0.02

    def make_rig(self, backend: str, request: Any) -> Rig:
        assert backend == "ros1" and request.options == {"master_uri": "http://x:1"}
        if self.fails is not None:
            raise self.fails
        now = time.monotonic
        return Rig(
            arm=self.arm,
            gripper=SimpleNamespace(opening=lambda age: self.opening, command=lambda x: x),
            clock=Clock(),
            tracker=SimpleNamespace(close=self._close),  # type: ignore[arg-type]
            cameras={"front": SimpleNamespace(name="front",
                                              read=lambda age: Frame(self.image, now()))},
            force=SimpleNamespace(wrench=lambda age: Wrench(self.force_n, np.zeros(3), now()),
                                  zero=lambda: None),
            sensors={"drawer": SimpleNamespace(name="drawer", unit="m",
                                               read=lambda age: Reading(self.reading, now()))},
            watches={"gripper": lambda: self.watched},
            address="http://x:1/right",
        )

    def _close(self) -> None:
        self.closed += 1


WORDS = ("--robot", "sawyer", "--backend", "ros1", "--rig", "master_uri=http://x:1")


@pytest.fixture
def hardware(monkeypatch, tmp_path) -> Hardware:
    made = Hardware()
    monkeypatch.setattr(robot, "make_rig", made.make_rig)
    monkeypatch.setattr(robot, "list_backends", lambda: ["ros1"])
    monkeypatch.setenv("ROBOT_RL_STATE_DIR", str(tmp_path / "state"))
    for name, value in (("_FIRST_DATA_S", 0.1), ("_LEAST_CAMERA_HZ", 20.0),
                        ("_FORCE_PERIOD_S", 0.001)):
        monkeypatch.setattr(robot_checks, name, value)
    return made


@pytest.fixture
def latch(hardware) -> Latch:
    return Latch("sawyer", "http://x:1/right")


def failed(said: dict[str, Any]) -> dict[str, str]:
    return {check["name"]: check["detail"] for check in said["checks"] if not check["ok"]}


def test_a_check_of_hardware_looks_at_everything_and_moves_nothing(capsys, hardware):
    code, said, _ = run(capsys, "check", *WORDS, "--seconds", "0.1")
    assert code == 0 and said["ok"] and failed(said) == {}
    names = {check["name"] for check in said["checks"]}
    assert names == {"connect", "clock", "state", "joint limits", "tool", "status", "hold",
                     "gripper", "camera front", "force", "sensor drawer", "watch gripper",
                     "robot: firmware"}
    assert hardware.arm.commands == 0 and hardware.arm.recoveries == 0 and hardware.closed == 1


def _tilt(h: Hardware) -> None:
    h.arm.position[5] += 0.3


def _limit(h: Hardware) -> None:
    h.arm.position[6] = SPEC.joints[6].upper_rad - 0.001


def _away(h: Hardware) -> None:
    h.arm.position[0] += 0.8


BREAKS = {
    "stale": ("state", lambda h: setattr(h.arm, "frozen", True), "3 s old"),
    "moving": ("state", lambda h: h.arm.velocity.fill(0.4), "nobody commands"),
    "nan": ("state", lambda h: h.arm.position.fill(np.nan), "not all finite"),
    "limit": ("joint limits", _limit, "from its limit"),
    "tilt": ("tool", _tilt, "leans"),
    "away": ("tool", _away, "outside the box"),
    "estop": ("status", lambda h: setattr(h.arm, "estop", True), "emergency stop"),
    "fault": ("status", lambda h: setattr(h.arm, "fault", "collision"), "collision"),
    "gripper": ("gripper", lambda h: setattr(h, "opening", 3.0), "should be in"),
    "lens": ("camera front", lambda h: h.image.fill(7), "lens"),
    "lean": ("force", lambda h: h.force_n.fill(60.0), "touch"),
    "sensor": ("sensor drawer", lambda h: setattr(h, "reading", np.nan), "nan"),
    "watch": ("watch gripper", lambda h: setattr(h, "watched", "it is hot"), "it is hot"),
    "own": ("robot: firmware", lambda h: h.arm.own.append(("firmware", False, "4.0")), "4.0"),
}


@pytest.mark.parametrize("broken", BREAKS)
def test_each_check_finds_what_it_looks_for(capsys, hardware, broken):
    name, break_it, says = BREAKS[broken]
    break_it(hardware)
    code, said, _ = run(capsys, "check", *WORDS, "--seconds", "0.06")
    assert code == 1 and said["ok"] is False
    assert says in failed(said)[name], said
    assert hardware.arm.commands == 0 and hardware.arm.recoveries == 0


def test_a_kept_hold_is_found(capsys, hardware, latch):
    assert latch.write("the puck fell off the table")
    code, said, _ = run(capsys, "check", *WORDS, "--seconds", "0.05")
    assert code == 1 and failed(said) == {"hold": "the puck fell off the table"}


def test_a_robot_that_does_not_answer_is_a_failed_check(capsys, hardware):
    hardware.fails = RobotRLError("no ROS master answers at http://x:1")
    code, said, _ = run(capsys, "check", *WORDS)
    assert code == 1 and failed(said) == {"connect": "no ROS master answers at http://x:1"}
    hardware.fails = InvalidInputError("unknown option")
    code, said, err = run(capsys, "check", *WORDS)
    assert code == 2 and not said and "unknown option" in err


def test_a_held_arm_does_not_move(capsys, hardware, latch):
    latch.write("somebody stood in the way")
    for words in (("home",), ("jog", "--axis", "z", "--by", "0.01")):
        code, said, _ = run(capsys, *words, *WORDS)
        assert code == 1 and "somebody stood in the way" in said["why"]
    assert hardware.arm.commands == 0 and hardware.arm.recoveries == 0 and latch.is_set()


# -- re-arming ----------------------------------------------------------------------------------


def test_there_is_nothing_to_rearm_on_an_arm_that_is_ready(capsys, hardware):
    code, said, _ = run(capsys, "rearm", *WORDS, "--yes")
    assert code == 0 and said == {"rearmed": False, "held": None}
    assert hardware.arm.recoveries == 0


def test_a_script_has_to_say_yes(capsys, hardware, latch, monkeypatch):
    latch.write("the cable was pulled")
    monkeypatch.setattr("sys.stdin", io.StringIO("rearm\n"))
    code, _, err = run(capsys, "rearm", *WORDS)
    assert code == 2 and "the cable was pulled" in err and "--yes" in err
    assert latch.is_set() and hardware.arm.recoveries == 0
    code, said, err = run(capsys, "rearm", *WORDS, "--yes")
    assert code == 0 and said == {"rearmed": True, "held": None}
    assert "the cable was pulled" in err
    assert not latch.is_set() and hardware.arm.recoveries == 1 and hardware.arm.commands == 0
    assert hardware.closed == 2


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("typed", "code"), [("rearm\n", 0), ("REARM \n", 0), ("yes\n", 2),
                                             ("\n", 2), ("", 2)])
def test_a_person_types_the_word(capsys, hardware, latch, monkeypatch, typed, code):
    hardware.arm.fault = "a collision"
    latch.write("a collision")
    monkeypatch.setattr("sys.stdin", Terminal(typed))
    got, said, err = run(capsys, "rearm", *WORDS)
    assert got == code and "emergency stop" in err
    assert latch.is_set() is (code != 0)
    assert hardware.arm.recoveries == (code == 0)
    assert err.count("held: a collision") == 1, "one reason, said once"
    assert not code or not said


def test_a_pressed_emergency_stop_keeps_the_hold(capsys, hardware, latch):
    hardware.arm.estop = True
    latch.write("the emergency stop is pressed")
    code, said, _ = run(capsys, "rearm", *WORDS, "--yes")
    assert code == 1 and said["rearmed"] is False and "release it first" in said["held"]
    assert latch.is_set()
    hardware.arm.estop = False
    code, said, _ = run(capsys, "rearm", *WORDS, "--yes")
    assert code == 0 and not latch.is_set()


def test_an_arm_that_moves_is_not_rearmed(capsys, hardware, latch):
    latch.write("too fast")
    hardware.arm.velocity[2] = 0.5
    code, said, _ = run(capsys, "rearm", *WORDS, "--yes")
    assert code == 1 and "moving" in said["held"] and latch.is_set()
