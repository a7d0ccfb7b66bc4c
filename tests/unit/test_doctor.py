"""The doctor: crashes, hangs and missing parts become lines of its report."""

from __future__ import annotations

import dataclasses
import sys
import time
from pathlib import Path

import pytest

from robot_rl.cli import doctor
from robot_rl.cli.doctor import Check, Probe, all_required_ok, format_checks, run_probe


def test_a_probe_answers_with_its_last_line():
    source = "import json, sys; print('noise'); print(json.dumps({'got': sys.argv[1]}))"
    probe = run_probe(source, ("x",))
    assert probe == Probe(True, {"got": "x"})


def test_a_crash_is_named_by_its_signal():
    probe = run_probe("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    assert not probe.ok
    assert "SIGSEGV" in probe.fault


def test_a_hang_ends_at_the_time_limit():
    begun = time.monotonic()
    probe = run_probe("import time; time.sleep(60)", timeout_s=0.5)
    assert not probe.ok
    assert probe.fault == "no answer within 0.5 s"
    assert time.monotonic() - begun < 20


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("raise ValueError('seven is too many')", "ValueError: seven is too many"),
        ("import no_such_one", "ModuleNotFoundError: No module named 'no_such_one'"),
        ("import sys; sys.exit(3)", "exit status 3"),
        ("print('not json')", "gave no answer"),
        ("print('[1]')", "gave no answer"),
        ("", "gave no answer"),
    ],
)
def test_a_failing_probe_says_why(source, fault):
    probe = run_probe(source)
    assert (probe.ok, probe.fault) == (False, fault)


def test_a_probe_can_set_and_remove_variables(monkeypatch):
    monkeypatch.setenv("DOCTOR_A", "1")
    source = """
import json, os
print(json.dumps({name: os.environ.get(name) for name in ("DOCTOR_A", "DOCTOR_B")}))
"""
    assert run_probe(source, env={"DOCTOR_A": None, "DOCTOR_B": "2"}).data == {
        "DOCTOR_A": None,
        "DOCTOR_B": "2",
    }


def test_every_check_is_reported_on_this_machine():
    checks = doctor.run_checks()
    by_name = {check.name: check for check in checks}
    assert len(by_name) == len(checks), "two checks share a name"
    assert {"Python", "core packages", "torch", "MuJoCo", "MuJoCo rendering", "PyBullet", "video",
            "ROS 2", "ROS 1", "cameras", "disk", "write permission", "processors"} <= set(by_name)
    for check in checks:
        assert check.detail, f"{check.name} says nothing"
        assert check.ok or check.hint, f"{check.name} fails without saying what helps"
        assert not (check.ok and check.hint), f"{check.name} works and still gives advice"
    # The tests themselves run on these.
    for name in ("Python", "core packages", "torch"):
        assert by_name[name].ok and by_name[name].required, by_name[name]


def test_an_engine_that_is_installed_steps():
    pytest.importorskip("pybullet")
    check = doctor.check_bullet()
    assert check.ok, check.detail


def test_a_missing_engine_names_the_extra(monkeypatch):
    absent = Probe(False, {}, "ModuleNotFoundError: No module named 'mujoco'")
    monkeypatch.setattr(doctor, "run_probe", lambda *args, **kwargs: absent)
    for check in (doctor.check_mujoco(), doctor.check_mujoco_rendering()):
        assert not check.ok
        assert "not installed" in check.detail
        assert ".[sim]" in check.hint


def test_a_broken_engine_is_not_called_missing(monkeypatch):
    broken = Probe(False, {}, "crashed (SIGILL)")
    monkeypatch.setattr(doctor, "run_probe", lambda *args, **kwargs: broken)
    check = doctor.check_mujoco()
    assert (check.ok, check.detail) == (False, "crashed (SIGILL)")
    assert "reinstall" in check.hint


def rendering(monkeypatch, working: set[str], chosen: str | None) -> Check:
    def answer(choice: str) -> Probe:
        if choice in working:
            return Probe(True, {"renderer": "llvmpipe"})
        return Probe(False, {}, "crashed (SIGABRT)")

    monkeypatch.setattr(doctor, "_render_with", answer)
    if chosen is None:
        monkeypatch.delenv("MUJOCO_GL", raising=False)
    else:
        monkeypatch.setenv("MUJOCO_GL", chosen)
    return doctor.check_mujoco_rendering()


def test_rendering_names_the_setting_that_works(monkeypatch):
    check = rendering(monkeypatch, {"osmesa", "glfw"}, None)
    assert check.ok
    assert "MUJOCO_GL=osmesa or glfw" in check.detail


def test_rendering_faults_a_setting_that_fails(monkeypatch):
    check = rendering(monkeypatch, {"osmesa"}, "egl")
    assert not check.ok
    assert "MUJOCO_GL=egl is set and fails" in check.detail
    assert check.hint == "set MUJOCO_GL=osmesa"


def test_no_rendering_at_all_names_the_system_packages(monkeypatch):
    check = rendering(monkeypatch, set(), None)
    assert not check.ok
    assert "egl: crashed (SIGABRT)" in check.detail
    assert "apt install libegl1" in check.hint


@pytest.mark.parametrize("version", [(3, 9, 20), (3, 13, 0), (4, 0, 0)])
def test_other_pythons_are_refused(monkeypatch, version):
    monkeypatch.setattr(sys, "version_info", version)
    check = doctor.check_python()
    assert not check.ok and check.required
    assert "3.10" in check.hint and "3.13" in check.hint


def test_a_missing_core_package_is_named(monkeypatch):
    def answer(source, arguments, **kwargs):
        if arguments[0] == "yaml":
            return Probe(False, {}, "ModuleNotFoundError: No module named 'yaml'")
        return Probe(True, {"version": "1.0"})

    monkeypatch.setattr(doctor, "run_probe", answer)
    check = doctor.check_core_packages()
    assert not check.ok and check.required
    assert check.hint == "pip install pyyaml"


def test_a_folder_that_refuses_files_is_reported(tmp_path):
    check = doctor.check_writable(tmp_path / "absent")
    assert not check.ok and check.required
    assert "absent" in check.detail
    assert doctor.check_writable(tmp_path).ok
    assert list(tmp_path.iterdir()) == [], "the trial file stays behind"


def test_a_full_disk_is_reported(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "NEEDED_DISK_GIB", 1e9)
    check = doctor.check_disk(tmp_path)
    assert not check.ok and check.required
    assert not doctor.check_disk(Path("/no/such/folder")).ok


def test_a_check_that_raises_becomes_a_line(monkeypatch):
    def broken() -> Check:
        raise KeyError("colour")

    check = doctor._guarded("paint", broken)
    assert (check.name, check.ok) == ("paint", False)
    assert "KeyError: 'colour'" in check.detail


def test_the_verdict_follows_the_required_checks():
    good = Check("torch", True, "2.5", required=True)
    optional = Check("ROS 2", False, "rclpy is not installed", "install ROS 2")
    broken = dataclasses.replace(good, ok=False, hint="pip install torch")

    assert all_required_ok([good, optional])
    assert not all_required_ok([broken, optional])

    report = format_checks([good, optional])
    assert report.splitlines()[0] == "ok       torch  2.5"
    assert "without  ROS 2  rclpy is not installed" in report
    assert "-> install ROS 2" in report
    assert report.endswith("Everything required works (1 optional part missing).")
    assert format_checks([broken]).endswith("Not ready: torch.")
    assert "MISSING  torch" in format_checks([broken])
    assert format_checks([good]).endswith("Everything required works.")


@pytest.mark.parametrize(("check", "module", "extra"), [
    (doctor.check_cyclonedds, "cyclonedds", "ros"), (doctor.check_franky, "franky", "franka"),
    (doctor.check_pyserial, "serial", "sensors"), (doctor.check_spacemouse, "pyspacemouse",
                                                   "teleop"),
    (doctor.check_gamepad, "pygame", "teleop"),
])
def test_what_hardware_needs_names_the_extra_that_brings_it(monkeypatch, check, module, extra):
    absent = Probe(False, {}, f"ModuleNotFoundError: No module named '{module}'")
    monkeypatch.setattr(doctor, "run_probe", lambda *args, **kwargs: absent)
    found = check()
    assert (found.ok, found.detail, found.required) == (False, "not installed", False)
    assert f".[{extra}]" in found.hint


def test_rospy_is_looked_for_where_the_driver_looks(monkeypatch):
    fault = "robot_rl.errors.MissingDependencyError: rospy is not installed: apt-get install x"
    monkeypatch.setattr(doctor, "run_probe", lambda *args, **kwargs: Probe(False, {}, fault))
    found = doctor.check_ros1()
    assert (found.ok, found.required) == (False, False)
    assert found.detail == "rospy is not installed: apt-get install x"
    assert "system_packages.sh" in found.hint
