"""The command line: one JSON object with the promised keys, and nothing after it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robot_rl.cli import commands
from robot_rl.cli.main import main
from robot_rl.data import load_dataset
from robot_rl.training.runs import Interrupted, read_config, read_metrics

pytest.importorskip("mujoco")

SMALL = ("--hidden-dims", "16", "16", "--batch-size", "32")


def run(capsys, *words: str) -> dict[str, Any]:
    """Run a command with --json; the object on its last line, which has to be the only line."""
    code = main([*words, "--json", "--quiet"])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    lines = captured.out.splitlines()
    assert len(lines) == 1, captured.out
    value = json.loads(lines[0], parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert isinstance(value, dict)
    return value


def process(*words: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "robot_rl.cli.main", *words], text=True, capture_output=True,
        cwd=cwd, timeout=180, env={**os.environ, **env}, check=False,
    )


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder with recorded episodes and a pretrained run."""
    folder = tmp_path_factory.mktemp("home")
    assert main(["collect", "--task", "Reach", "--robot", "panda", "--control-hz", "8",
                 "--quality", "0.5", "--episodes", "3", "--out", str(folder / "data"),
                 "--quiet", "--json"]) == 0
    assert main(["pretrain", "--data", str(folder / "data"), "--steps", "20", *SMALL,
                 "--out", str(folder / "run"), "--quiet", "--json"]) == 0
    return folder


# -- each command's keys ------------------------------------------------------------------------


def test_list(capsys):
    value = run(capsys, "list")
    assert value["tasks"] == ["Reach", "Push", "PickPlace", "Drawer", "Door", "Insertion"]
    assert value["robots"] == ["fr3", "panda", "sawyer"]
    assert {"mujoco", "pybullet"} <= set(value["backends"])
    assert value["agents"] == ["bc", "iql", "awac"]
    assert main(["list"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for names in value.values() for name in names)


def test_collect(capsys, tmp_path):
    out = tmp_path / "data"
    value = run(capsys, "collect", "--task", "reach", "--robot", "fr3", "--episodes", "2",
                "--seed", "3", "--out", str(out))
    info, episodes = load_dataset(out)
    assert value["episodes"] == len(episodes) == 2
    assert value["steps"] == sum(len(e) for e in episodes) == 60
    assert value["success_rate"] == np.mean([e.success[-1] for e in episodes]) == 1.0
    assert value["path"] == str(out) and value["interrupted"] is False
    assert (info.task, info.env["robot"]) == ("Reach", "fr3")
    again = tmp_path / "again"
    run(capsys, "collect", "--task", "Reach", "--robot", "fr3", "--episodes", "2", "--seed", "3",
        "--out", str(again))
    for one, two in zip(episodes, load_dataset(again)[1], strict=True):
        assert np.array_equal(one.observation, two.observation)
    run(capsys, "collect", "--task", "Reach", "--robot", "fr3", "--episodes", "1", "--seed", "4",
        "--out", str(again), "--overwrite", "--policy", "random", "--randomize", "mass=0.1")
    other = load_dataset(again)[1]
    assert len(other) == 1 and len(load_dataset(f"{again}.old")[1]) == 2
    assert not np.array_equal(other[0].observation, episodes[0].observation)


def test_collect_images(capsys, tmp_path):
    value = run(capsys, "collect", "--task", "Push", "--obs", "image", "--episodes", "1",
                "--backend", "pybullet", "--out", str(tmp_path / "d"))
    _, (episode,) = load_dataset(value["path"])
    assert episode.images["front"].frames.shape == (51, 48, 48, 3)
    assert episode.images["goal.front"].frames.shape == (1, 48, 48, 3)
    assert episode.observation.shape == (51, 16) and episode.achieved.shape == (51, 2)
    assert np.array_equal(np.diff(episode.images["front"].index), np.ones(50))
    assert np.allclose(np.diff(episode.stamp_s), 0.1) and np.allclose(episode.rate_hz, 10.0)


def test_pretrain(capsys, tmp_path, home):
    out = tmp_path / "run"
    value = run(capsys, "pretrain", "--agent", "bc", "--data", str(home / "data"), "--steps",
                "30", "--log-every", "10", "--eval-episodes", "1", "--eval-every", "20",
                "--checkpoint-every", "20", *SMALL, "--out", str(out))
    assert value["steps"] == 30 and value["updates_per_second"] > 0
    assert value["checkpoint"] == str(out / "checkpoints" / "step_0000000030")
    assert Path(value["checkpoint"], "agent.safetensors").is_file()
    assert 0.0 <= value["success_rate"] <= 1.0
    assert Path(value["report"]).read_text().lstrip().lower().startswith("<!doctype html")
    rows = read_metrics(out)
    assert [r["step"] for r in rows if "policy_loss" in r] == [10, 20, 30]
    assert [r["step"] for r in rows if "eval/success_rate" in r] == [20, 30]
    config = read_config(out)
    assert config["kind"] == "pretrain" and config["agent"]["hidden_dims"] == [16, 16]
    # Judged in the world that the data is from.
    assert config["env"]["robot"] == "panda" and config["env"]["control_hz"] == 8.0


def test_train_and_eval(capsys, tmp_path, home):
    out = tmp_path / "practice"
    value = run(capsys, "train", "--from", str(home / "run"), "--env-steps", "50",
                "--warmup-steps", "24", "--eval-episodes", "2", "--out", str(out))
    assert value["env_steps"] == 50 and value["episodes"] == 3
    assert 0.0 <= value["success_rate"] <= 1.0 and value["safety_violations"] == 0
    assert Path(value["checkpoint"], "agent.safetensors").is_file()
    # What was not said is as where the agent learned.
    assert read_config(out)["env"] == {"task": "Reach", "robot": "panda", "backend": "mujoco",
                                       "control_hz": 8.0, "randomize": {}, "rig": {},
                                       "camera": {}, "success": "", "goal_image": ""}
    assert [len(e) for e in load_dataset(out / "practice")[1]] == [24, 24, 2]
    for engine in ("mujoco", "pybullet"):
        scores = run(capsys, "eval", "--checkpoint", str(out), "--backend", engine,
                     "--episodes", "3")
        assert scores["episodes"] == 3 and scores["safety_violations"] == 0
        assert 0.0 <= scores["success_rate"] <= scores["success_any_rate"] <= 1.0
        assert -24.0 <= scores["mean_return"] <= 0.0
        assert scores["steps"] == 72


def test_train_from_nothing(capsys, tmp_path):
    value = run(capsys, "train", "--agent", "awac", "--task", "Reach", "--env-steps", "60",
                "--warmup-steps", "30", "--eval-episodes", "1", *SMALL, "--out",
                str(tmp_path / "run"))
    assert value["env_steps"] == 60
    metrics = read_metrics(tmp_path / "run")
    assert "critic_loss" not in metrics[0] or metrics[0]["step"] >= 30


def test_eval_of_scripts(capsys):
    good = run(capsys, "eval", "--policy", "scripted", "--task", "Reach", "--episodes", "5")
    bad = run(capsys, "eval", "--policy", "random", "--task", "Reach", "--episodes", "5")
    assert good["success_rate"] == 1.0 > bad["success_rate"]
    assert good["mean_return"] > bad["mean_return"]
    assert run(capsys, "eval", "--policy", "random", "--task", "Reach", "--episodes", "5") == bad


def test_eval_videos(capsys, tmp_path):
    pytest.importorskip("av")
    pytest.importorskip("cv2")
    value = run(capsys, "eval", "--policy", "scripted", "--task", "Reach", "--episodes", "1",
                "--videos", "1", "--out", str(tmp_path / "films"))
    (film,) = value["videos"]
    assert Path(film).parent == tmp_path / "films" and Path(film).stat().st_size > 1000


def test_report(capsys, home):
    value = run(capsys, "report", str(home / "run"), "--videos", "0")
    assert Path(value["report"]).is_file()


def test_version_and_nothing(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == "robot_rl 0.1.0\n"
    assert main([]) == 2
    assert "COMMAND" in capsys.readouterr().out


def test_without_json_people_get_text(capsys, home):
    assert main(["eval", "--checkpoint", str(home / "run"), "--episodes", "1", "--quiet"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("success ") and "over 1 episodes" in out


# -- options that belong together ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["pretrain", "--resume", "R", "--data", "x"], "data cannot be given with --resume"),
        (["pretrain", "--resume", "R", "--expectile", "0.9"], "expectile cannot be given with"),
        (["pretrain", "--resume", "R", "--relabel-future", "1"], "future cannot be given with"),
        (["train", "--resume", "R", "--robot", "fr3"], "robot cannot be given with --resume"),
        (["train", "--resume", "R", "--seed", "1"], "seed cannot be given with --resume"),
        (["train", "--from", "R", "--expectile", "0.9", "--out", "O"],
         "a pretrained agent keeps its options; expectile cannot be changed"),
        (["train", "--from", "R", "--agent", "iql", "--out", "O"],
         "give either --from (a pretrained run) or --agent, not both"),
        (["train", "--out", "O"], "training needs --from (a pretrained run) or --agent"),
    ],
)
def test_options_that_would_be_ignored_are_refused(capsys, home, tmp_path, words, message):
    names = {"R": str(home / "run"), "O": str(tmp_path / "out")}
    assert main([names.get(word, word) for word in words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


# -- whole processes ----------------------------------------------------------------------------


def test_doctor_in_a_process(tmp_path):
    done = process("doctor", "--json", cwd=tmp_path)
    value = json.loads(done.stdout.splitlines()[-1])
    assert done.stdout.endswith("}\n") and done.stdout.count("\n") == 1
    assert sorted(value) == ["checks", "ok"]
    assert done.returncode == (0 if value["ok"] else 1)
    assert {"name", "ok", "detail", "required"} <= set(value["checks"][0])


@pytest.mark.parametrize("engine", ["mujoco", "pybullet"])
def test_standard_output_holds_the_json_alone(tmp_path, engine):
    done = process("collect", "--task", "Push", "--backend", engine, "--obs", "image",
                   "--episodes", "1", "--out", "data", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1 and json.loads(done.stdout)["episodes"] == 1
    assert "pybullet build" not in done.stdout + done.stderr


def test_the_installed_command_is_the_same(tmp_path):
    script = Path(sys.executable).parent / "robot-rl"
    if not script.exists():
        pytest.skip("the command is not installed beside this Python")
    done = subprocess.run([script, "list", "--json"], capture_output=True, text=True,
                          cwd=tmp_path, timeout=120, check=True)
    assert set(json.loads(done.stdout)) == {"tasks", "robots", "backends", "agents"}


def test_a_closed_pipe_is_no_traceback(tmp_path):
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m robot_rl.cli.main list | head -c 1 > /dev/null"],
        capture_output=True, text=True, cwd=tmp_path, timeout=120, check=False)
    assert "Traceback" not in done.stderr


def test_demo_in_a_process(tmp_path):
    done = process("demo", "--scale", "0.02", "--episodes", "10", "--eval-episodes", "4",
                   "--videos", "0", "--json", "--out", "demo", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    value = json.loads(done.stdout)
    for key in ("data_success", "bc_success", "offline_success", "online_success"):
        assert 0.0 <= value[key] <= 1.0, key
    assert value["data_success"] * 10 == pytest.approx(round(value["data_success"] * 10))
    assert value["offline_success"] * 4 == round(value["offline_success"] * 4)
    page = (tmp_path / value["report"]).read_text()
    assert "Push" in page and "src=\"http" not in page
    assert json.loads((tmp_path / "demo" / "demo.json").read_text())["bc_success"] == (
        value["bc_success"])
    assert {p.name for p in (tmp_path / "demo").iterdir()} >= {
        "data", "bc-offline", "iql-offline", "iql-online", "awac-offline", "awac-online"}


def test_a_demo_that_the_user_stopped_is_no_bad_input(tmp_path, monkeypatch, capsys):
    def stopped(*args, **kwargs):
        raise Interrupted("the demonstration was stopped")

    monkeypatch.setattr(commands, "run_demo", stopped)
    assert main(["demo", "--out", str(tmp_path / "demo")]) == 130
    assert capsys.readouterr().err == "robot-rl: the demonstration was stopped\n"
