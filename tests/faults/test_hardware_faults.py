"""What goes wrong on hardware: cameras, states, actions, programs, stops, clocks, masters.

The faults and what must follow stand in ``benchmarks/battery/table.py``.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.battery.bench import BENCHES
from benchmarks.battery.checks import BEGIN_RAD, PERIOD_S, Findings, Story
from benchmarks.battery.commander import BROKEN
from benchmarks.battery.run import faults_of, run_all, summary, table
from benchmarks.battery.table import BY_NAME, FAULTS
from benchmarks.battery.trial import Result, Trial
from robot_rl.errors import MissingDependencyError
from robot_rl.specs import load_robot

OPTIONS = {rig: {"max_gap_s": "0.1"} for rig in BENCHES}
# Each fault once in the default suite, shared by the rigs, which run side by side.
QUICK = {
    "sawyer": ["camera_unplugged", "cameras_apart", "state_stuck", "action_nan", "policy_hangs",
               "commander_killed", "emergency_stop", "robot_dies", "clock_steps",
               "master_restarts"],
    "franka": ["camera_frozen", "camera_slow", "camera_black", "camera_shape", "state_stale",
               "state_nan", "action_shape", "action_tenfold", "commander_stopped", "reset_fails",
               "emergency_stop"],
}


def missing(rig: str) -> str | None:
    """What this machine lacks for a rig."""
    needed = {"sawyer": (), "franka": ("cyclonedds", "rosbags")}[rig]
    for name in ("mujoco", *needed):
        try:
            __import__(name)
        except ImportError as error:
            return str(error)
    if rig == "sawyer":
        from robot_rl.ros.ros1_import import import_rospy

        try:
            import_rospy()
        except MissingDependencyError as error:
            return str(error)
        if shutil.which("rosmaster") is None:
            return "rosmaster is not installed"
    return None


def told(result: Result) -> None:
    print(f"{result.rig} {result.fault} {result.seed} {result.outcome} {result.wrong}",
          file=sys.stderr)


@pytest.fixture(scope="module")
def quick_results(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], list[Result]]:
    rigs = {rig: faults_of(rig, names) for rig, names in QUICK.items() if missing(rig) is None}
    results = run_all(rigs, [0], tmp_path_factory.mktemp("battery"), told, brief=True,
                      options=OPTIONS)
    found: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        found.setdefault((result.rig, result.fault), []).append(result)
    return found


@pytest.mark.timeout(300)
@pytest.mark.parametrize("rig, fault", [(rig, name) for rig in QUICK for name in QUICK[rig]])
def test_a_fault_ends_as_it_must(quick_results, rig, fault):
    lacks = missing(rig)
    if lacks is not None:
        pytest.skip(lacks)
    last = quick_results[rig, fault][-1]
    assert last.outcome == "expected", last.wrong


def test_every_fault_is_tried_once_by_default():
    assert {name for names in QUICK.values() for name in names} == set(BY_NAME)
    for rig, names in QUICK.items():
        assert [fault.name for fault in faults_of(rig, names)] == names
    for fault in FAULTS:
        method = f"_{fault.name}"
        assert hasattr(Trial, method) or fault.name.startswith(("camera", "state")), method


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("rig", list(BENCHES))
def test_every_fault_at_twenty_seeds(tmp_path, rig):
    lacks = missing(rig)
    if lacks is not None:
        pytest.skip(lacks)
    results = run_all({rig: faults_of(rig)}, range(20), tmp_path, told, options=OPTIONS)
    found = summary(results)
    assert found["unexpected"] == 0, table(found) + "\n" + str(found["unexpected_examples"])
    assert all(of_fault["expected"] == 20 for of_fault in found["rigs"][rig].values())


# -- it finds what is wrong -----------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("broken, fault, words", [
    ("clears", "emergency_stop", "'reset' before the re-arm"),
    ("bursts", "commander_stopped", "times its limit"),
    ("blind", "camera_unplugged", "no hold within"),
    ("careless", "policy_hangs", "held for another reason|times its limit"),
])
def test_a_broken_stack_is_found(tmp_path, broken, fault, words):
    lacks = missing("sawyer")
    if lacks is not None:
        pytest.skip(lacks)
    assert broken in BROKEN
    (*_, last) = run_all({"sawyer": faults_of("sawyer", [fault])}, [0], tmp_path, told,
                         broken=broken, options=OPTIONS)
    assert last.outcome == "unexpected"
    assert re.search(words, "; ".join(last.wrong)), last.wrong


SPEC = load_robot("sawyer")
HOME = np.array(SPEC.home_rad)


def log_of(position: np.ndarray, measured: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """What a robot wrote down that received ``position`` (k, n) and followed at once."""
    k, n = position.shape
    times = PERIOD_S * np.arange(k)[:, None]
    velocity = np.gradient(position, PERIOD_S, axis=0)
    where = position if measured is None else measured
    return {
        "command": np.concatenate(
            [times, position, velocity, np.zeros((k, n)), np.arange(k)[:, None]], axis=1),
        "measured": np.concatenate(
            [times, where, np.gradient(where, PERIOD_S, axis=0), where, np.ones((k, 1))], axis=1),
    }


def swing(rows: int = 200, by_rad: float = 0.2) -> np.ndarray:
    """There and to rest (rows, n), smoothly, then half as long at rest."""
    s = np.minimum(np.arange(rows) / (rows * 2 // 3), 1.0)
    way = 10 * s**3 - 15 * s**4 + 6 * s**5
    return HOME + by_rad * way[:, None] * np.array([1.0, 0.5, -0.5, 0.3, 0.2, 0.1, 0.4])


def test_a_good_story_is_found_good():
    found, story = Findings(), Story(log_of(swing()), SPEC)
    story.check_limits(found)
    story.check_begin(found, 0.0)
    assert found.wrong == []
    assert 1.2 < story.rest_s(0.1) < 1.45
    assert len(story.moving_in(1.5)) == 0


@pytest.mark.parametrize("rows, jump_rad, words", [
    (slice(60, None), 0.02, "acceleration"), (slice(60, None), 0.5, "velocity"),
    (slice(60, 61), 10.0, "position limits"),
])
def test_a_jump_is_found(rows, jump_rad, words):
    position = swing()
    position[rows, 1] += jump_rad
    found = Findings()
    Story(log_of(position, swing()), SPEC).check_limits(found)
    assert any(words in text for text in found.wrong), found.wrong


def test_a_burst_is_found_as_motion_too_fast():
    position = swing()
    found = Findings()
    Story(log_of(np.delete(position, slice(50, 60), axis=0)), SPEC).check_limits(found)
    assert found.wrong


def test_an_arm_that_does_not_rest_and_rows_while_held_are_found():
    story = Story(log_of(swing(400)[:200]), SPEC)
    assert np.isnan(story.rest_s(0.1))
    assert len(story.moving_in(1.5)) > 40


def test_rows_that_were_lost_are_counted():
    log, stamped = log_of(swing()), log_of(swing())
    assert Story(log, SPEC).lost_in(0.0, 9.0) == 0
    log["command"] = np.delete(log["command"], [50, 51, 90], axis=0)
    assert Story(log, SPEC).lost_in(0.0, 9.0) == 3 and Story(log, SPEC).lost_in(1.0, 9.0) == 0
    stamped["command"][:, -1] = 1e9 + stamped["command"][:, 0]
    assert Story(stamped, SPEC).lost_in(0.0, 9.0) == 0
    stamped["command"] = np.delete(stamped["command"], [50, 90], axis=0)
    assert Story(stamped, SPEC).lost_in(0.0, 9.0) == 2


def test_a_start_elsewhere_and_an_arm_that_stays_are_found():
    found, position = Findings(), swing()
    away = position + np.array([1.5 * BEGIN_RAD, 0, 0, 0, 0, 0, 0])
    Story(log_of(position, away), SPEC).check_begin(found, 0.0)
    assert "from where the arm was" in found.wrong[0]
    found = Findings()
    Story(log_of(position, np.repeat(HOME[None], 200, axis=0)), SPEC).check_begin(found, 0.0)
    assert "the arm moved by 0.0000 rad" in found.wrong[0]
    found = Findings()
    Story({}, SPEC).check_begin(found, 0.0)
    assert found.wrong == ["nothing was sent after the release"]


def test_the_braking_row_is_found_by_its_angles():
    position = swing()
    story = Story(log_of(position), SPEC)
    assert story.received_s(position[50].tolist(), 0.0) == pytest.approx(0.5)
    assert story.received_s(position[50].tolist(), 0.6) is None
    assert story.received_s((position[50] + 1e-12).tolist(), 0.0) is None


def test_sums_and_the_table_name_what_was_unexpected():
    results = [Result("camera_frozen", "sawyer", 0, figures={"latency_s": 0.1}),
               Result("camera_frozen", "sawyer", 1, "unexpected", ["no hold"],
                      figures={"latency_s": 0.4, "over_limit": 1.0}),
               Result("camera_frozen", "sawyer", 2, "disturbed", figures={"latency_s": 9.0})]
    found = summary(results)
    assert (found["trials"], found["expected"], found["unexpected"], found["disturbed"]) == (
        3, 1, 1, 1)
    (row,) = found["rigs"]["sawyer"].values()
    assert row["worst_latency_s"] == 0.4 and row["over_limit"] == 1 and row["within_s"] == 0.3
    assert found["unexpected_examples"][0]["wrong"] == ["no hold"]
    assert "camera_frozen" in table(found) and "0.400" in table(found)


def test_the_benchmark_names_its_faults(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "benchmarks"))
    from benchmarks import hardware_faults

    monkeypatch.setattr(sys, "argv", ["hardware_faults.py", "--list"])
    assert hardware_faults.main() == 0
    out = capsys.readouterr().out
    assert all(name in out for name in BY_NAME)


def test_results_of_two_runs_are_joined_by_rig(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "benchmarks"))
    from benchmarks.hardware_faults import joined

    def run_of(rig: str, outcome: str) -> dict:
        return {"robot_rl": "1", "seeds": 2, "brief": False, "options": {rig: {}}, "seconds": 1.5,
                **summary([Result("clock_steps", rig, seed, outcome) for seed in range(2)])}

    both = joined(joined(run_of("franka", "expected"), run_of("sawyer", "unexpected")),
                  run_of("sawyer", "expected"))
    assert (both["trials"], both["expected"], both["unexpected"]) == (4, 4, 0)
    assert set(both["rigs"]) == set(both["options"]) == {"sawyer", "franka"}
    assert both["unexpected_examples"] == [] and both["seconds"] == 4.5
    with pytest.raises(SystemExit, match="the results differ in seeds: 2 and 3"):
        joined(run_of("franka", "expected"), {**run_of("sawyer", "expected"), "seeds": 3})
