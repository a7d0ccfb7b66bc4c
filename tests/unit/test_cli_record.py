"""``robot-rl record`` and ``robot-rl teleop`` from the command line."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from robot_rl.cli.main import main
from robot_rl.data import open_log

pytest.importorskip("mujoco")
ROOT = Path(__file__).resolve().parents[2]


def say(capsys: Any, *words: str) -> tuple[int, dict[str, Any]]:
    code = main([*words, "--json", "--quiet"])
    lines = capsys.readouterr().out.strip().splitlines()
    return code, json.loads(lines[-1]) if lines else {}


def test_record_then_look_then_pretrain(tmp_path, capsys):
    out = str(tmp_path / "demos")
    code, values = say(capsys, "record", "--task", "push", "--robot", "sawyer", "--backend",
                       "mujoco", "--teleop", "scripted", "--quality", "0.2", "--episodes", "5",
                       "--seed", "1", "--out", out)
    assert code == 0
    assert values["accepted"] == 5 and values["rejected"] > 0 and values["path"] == out
    code, info = say(capsys, "data", "info", out)
    assert (info["episodes"], info["task"], info["success_rate"]) == (5, "Push", 1.0)
    assert info["apart"] == {"rejected": values["rejected"]}
    code, apart = say(capsys, "data", "info", values["rejected_path"])
    assert (apart["episodes"], apart["success_rate"]) == (values["rejected"], 0.0)
    code, verified = say(capsys, "data", "verify", out)
    assert code == 0 and verified["ok"] and not verified["warnings"]
    code, trained = say(capsys, "pretrain", "--agent", "bc", "--data", out, "--steps", "5",
                        "--out", str(tmp_path / "run"))
    assert code == 0 and trained["steps"] == 5
    trainer = json.loads(next(Path(trained["checkpoint"]).glob("trainer.json")).read_text())
    assert trainer["data_episodes"] == 5
    code, values = say(capsys, "record", "--task", "Push", "--teleop", "scripted", "--episodes",
                       "2", "--append", "--out", out)
    assert code == 0 and values["accepted"] == 2 and values["episodes"] == 7


def test_the_other_engine(tmp_path, capsys):
    pytest.importorskip("pybullet")
    code, values = say(capsys, "record", "--task", "Reach", "--backend", "pybullet", "--robot",
                       "panda", "--teleop", "scripted", "--episodes", "2", "--out",
                       str(tmp_path / "demos"))
    assert code == 0 and values["accepted"] == 2


def test_too_few_attempts_is_a_failure_that_keeps_what_there_is(tmp_path, capsys):
    code, values = say(capsys, "record", "--task", "Push", "--teleop", "scripted", "--quality",
                       "0", "--episodes", "3", "--attempts", "3", "--out", str(tmp_path / "demos"))
    assert code == 1
    assert values["attempts"] == 3 and values["accepted"] + values["rejected"] == 3
    assert "3 attempts gave" in values["stopped"]


def test_driving_by_the_script_says_where_the_tool_is(capsys):
    code, values = say(capsys, "teleop", "--task", "PickPlace", "--device", "scripted",
                       "--seconds", "2")
    assert code == 0
    assert (values["steps"], values["touched"], values["held"]) == (20, 20, None)
    low, high, tool = values["box_min_m"], values["box_max_m"], values["tool_m"]
    assert all(a - 1e-6 <= x <= b + 1e-6 for a, x, b in zip(low, tool, high, strict=True))
    assert 0.0 <= values["gripper"] <= 1.0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("record --out {out}", "needs a task: give --task"),
        ("record --task Push --teleop scripted", "needs a folder: give --out"),
        ("record --task Push --teleop joystick --out {out}", "unknown device 'joystick'"),
        ("record --task Push --teleop keyboard --out {out}", "the keyboard needs a terminal"),
        ("record --task Pull --teleop scripted --out {out}", "unknown task 'Pull'"),
        ("record --task AdroitHandDoor-v1 --teleop scripted --out {out}", "no arm to drive"),
        ("record --task Push --teleop scripted --robot ur5 --out {out}", "unknown robot 'ur5'"),
        ("record --task Push --teleop scripted --backend x --out {out}", "unknown backend 'x'"),
        ("record --task Push --teleop scripted --quality 2 --out {out}", "quality is 2.0"),
        ("record --task Push --teleop scripted --episodes 0 --out {out}", "episodes is 0"),
        ("record --task Push --teleop scripted --episodes 5 --attempts 4 --out {out}",
         "attempts is 4, should be at least episodes, 5"),
        ("record --task Push --teleop scripted --judge me --out {out}", "unknown judge 'me'"),
        ("record --task Push --teleop scripted --obs sound --out {out}", "unknown obs 'sound'"),
        ("record --task Push --teleop scripted --policy {out}/none --out {out}", "none"),
        ("record --task Push --teleop scripted --device-option speed=1 --out {out}",
         "unknown option of the scripted operator 'speed'"),
        ("record --task Push --teleop scripted --device-option speed --out {out}",
         "should be KEY=VALUE"),
        ("record --task Push --teleop scripted --append --overwrite --out {out}",
         "either --append or --overwrite"),
        ("record --task Push --teleop scripted --append --out {out}", "does not exist"),
        ("teleop --device scripted --seconds 1", "give --task"),
        ("teleop --task Push --device scripted", "give --seconds"),
        ("teleop --task Push --device scripted --seconds -1", "seconds is -1.0"),
        ("teleop --task Push --device keyboard", "the keyboard needs a terminal"),
    ],
)
def test_what_cannot_be_used_is_one_line_and_leaves_nothing(
    tmp_path, capsys, monkeypatch, words, message
):
    monkeypatch.setattr(sys, "stdin", open(os.devnull))
    out = tmp_path / "demos"
    assert main(words.format(out=out).split()) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and message in captured.err
    assert len(captured.err.strip().splitlines()) == 1
    assert not out.exists()


@pytest.mark.parametrize("command", ["record", "teleop"])
def test_help_teaches(capsys, command):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    text = capsys.readouterr().out
    assert "spacemouse" in text and "examples:" in text and "docs/teleoperation.md" in text


class Person:
    """Somebody at a terminal in which a command runs."""

    def __init__(self, *words: str) -> None:
        self._person, program = pty.openpty()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "robot_rl.cli.main", *words], cwd=ROOT, stdin=program,
            stdout=program, stderr=program, start_new_session=True, preexec_fn=_own_terminal,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        )
        os.close(program)
        self.seen = ""

    def wait_for(self, text: str, timeout_s: float = 60.0, keys: bytes = b"") -> None:
        """Press ``keys`` over and over until the command says ``text``."""
        until_s = time.monotonic() + timeout_s
        while text not in self.seen:
            assert time.monotonic() < until_s, f"no {text!r} in {self.seen!r}"
            assert self._read(), f"no {text!r} in {self.seen!r}"
            if keys:
                os.write(self._person, keys)

    def press(self, keys: bytes) -> None:
        os.write(self._person, keys)

    def hold(self, keys: bytes, seconds: float) -> None:
        """Keep ``keys`` down, as the terminal repeats them."""
        until_s = time.monotonic() + seconds
        while time.monotonic() < until_s:
            self.press(keys)
            time.sleep(0.03)

    def leave(self, timeout_s: float = 60.0) -> int:
        """What the command says to the end, and its exit code."""
        until_s = time.monotonic() + timeout_s
        while self._read() and time.monotonic() < until_s:
            pass
        code = self._process.wait(timeout=timeout_s)
        os.close(self._person)
        return code

    def end(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def _read(self) -> bool:
        try:
            if select.select([self._person], [], [], 0.05)[0]:
                self.seen += os.read(self._person, 65536).decode(errors="replace")
        except OSError:  # the command has gone
            return False
        return True


def _own_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def test_a_person_at_a_terminal_drives_accepts_and_interrupts(tmp_path):
    out = tmp_path / "demos"
    person = Person("record", "--task", "Reach", "--teleop", "keyboard", "--episodes", "5",
                    "--control-hz", "20", "--duration-s", "600", "--out", str(out))
    try:
        person.wait_for("the recording begins with your first move")
        assert "Enter accept" in person.seen
        person.hold(b"w", 0.5)
        person.press(b"\n")
        person.wait_for("accepted (operator)")
        person.hold(b"w", 0.5)
        person.press(b"\x03")
        person.wait_for("aborted (stopped by the user)")
        assert person.leave() == 130
    finally:
        person.end()
    assert "wwww" not in person.seen  # keys are not shown
    log = open_log(out)
    assert len(log) == 1 and len(open_log(out / "rejected")) == 1
    moved = log.read(0).requested
    assert moved is not None and moved[:, 0].max() == pytest.approx(0.6)


def test_a_person_drives_stops_re_arms_and_quits():
    person = Person("teleop", "--task", "Reach", "--device", "keyboard", "--control-hz", "20")
    try:
        person.wait_for("box free")
        person.wait_for("tool x +0.1", keys=b"w")
        person.press(b" ")
        person.wait_for("HELD: the operator stopped the arm")
        person.seen = ""
        person.wait_for("box free\r", keys=b"R")  # the line ends there: it is not held
        person.press(b"\x04")
        assert person.leave() == 0
    finally:
        person.end()
    assert "of them driven" in person.seen
