"""From a ROS bag to a pretrained agent in one command, and on from there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from robot_rl.cli.main import main
from robot_rl.data import load_dataset

pytest.importorskip("mujoco")
pytest.importorskip("rosbags")

ROOT = Path(__file__).resolve().parents[2]
MAP = ROOT / "examples" / "maps" / "push_bag.yaml"
SMALL = ("--hidden-dims", "16", "16", "--batch-size", "32", "--quiet")


@pytest.fixture(scope="module")
def bag(tmp_path_factory) -> Path:
    """A bag of four episodes, as the README's first line makes it."""
    path = tmp_path_factory.mktemp("bags") / "push"
    subprocess.run([sys.executable, str(ROOT / "examples" / "record_bag.py"), "--out", str(path),
                    "--episodes", "4"], check=True, capture_output=True, timeout=120)
    return path


def run(capsys, *words: str) -> dict:
    code = main([*words, "--json"])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return json.loads(captured.out.splitlines()[-1])


def test_one_command_from_a_bag_to_an_agent(bag, capsys, tmp_path):
    out = tmp_path / "run"
    value = run(capsys, "pretrain", "--agent", "iql", "--data", str(bag), "--map", str(MAP),
                "--rate", "10", "--steps", "6", "--checkpoint-every", "3", "--eval-episodes", "1",
                "--out", str(out), *SMALL)
    assert value["steps"] == 6 and value["success_rate"] in (0.0, 1.0)
    info, episodes = load_dataset(out / "data")
    assert (info.task, info.rate_hz, info.observation_shape) == ("Push", 10.0, (16,))
    assert len(episodes) == 4
    for one in episodes:
        assert np.allclose(np.diff(one.stamp_s), 0.1, atol=2e-9)
        assert np.abs(one.action).max() <= 1.0 and one.images["front"].frames.dtype == np.uint8
    assert not list(tmp_path.glob(".*")), "what was imported lies in the run"
    assert run(capsys, "pretrain", "--resume", str(out), "--steps", "8", "--quiet")["steps"] == 8
    more = run(capsys, "train", "--from", str(out), "--env-steps", "60", "--eval-episodes", "1",
               "--out", str(tmp_path / "practice"), "--quiet")
    assert more["env_steps"] == 60
    config = json.loads((tmp_path / "practice" / "config.json").read_text())
    assert config["train"]["data"] == str(out / "data")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--map", "nowhere.yaml"), "nowhere.yaml"),
        ((), "map"),
        (("--map", str(MAP), "--task", "Reach"), "Reach"),
    ],
)
def test_a_bag_that_cannot_be_read_leaves_nothing(bag, capsys, tmp_path, words, message):
    out = tmp_path / "run"
    code = main(["pretrain", "--data", str(bag), "--steps", "5", "--out", str(out), *words,
                 *SMALL])
    error = capsys.readouterr().err
    assert code == 2 and message in error.splitlines()[-1] and not list(tmp_path.iterdir())


def test_what_needs_no_map_takes_none(capsys, tmp_path, episode, dataset_of):
    data = dataset_of(tmp_path / "d", [episode(5)], "Push")
    code = main(["pretrain", "--data", data, "--rate", "10", "--steps", "5", "--out",
                 str(tmp_path / "run"), *SMALL])
    assert code == 2 and "--map and --rate are for data from elsewhere" in capsys.readouterr().err


def test_practice_says_how_to_take_a_bag(bag, capsys, tmp_path):
    code = main(["train", "--agent", "iql", "--task", "Push", "--data", str(bag), "--env-steps",
                 "50", "--out", str(tmp_path / "run"), *SMALL])
    assert code == 2 and "robot-rl data import" in capsys.readouterr().err
