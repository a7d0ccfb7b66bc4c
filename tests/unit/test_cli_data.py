"""``robot-rl data``: the promised keys, exit codes, and bad input that changes nothing."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robot_rl.cli import data as data_cli
from robot_rl.cli.main import main
from robot_rl.data import DatasetInfo, DatasetWriter, load_dataset, open_log
from robot_rl.data.edit import content_digest
from robot_rl.data.log import LOCK, Log

ROOT = Path(__file__).resolve().parents[2]
ACTIONS = {
    "info": [], "verify": [], "repair": [],
    "import": ["--from", "--map", "--rate", "--task", "--out", "--overwrite"],
    "export": ["--to", "--out", "--video", "--episodes", "--successes-only", "--overwrite"],
    "merge": ["--out", "--duplicates", "--overwrite"],
    "split": ["--out", "--fractions", "--by", "--seed", "--episodes", "--successes-only",
              "--overwrite"],
    "plot": ["--episode", "--out", "--overwrite"],
    "play": ["--episode", "--out", "--cameras", "--fps", "--frames", "--overwrite"],
}


def run(capsys: Any, *words: object, code: int = 0) -> dict[str, Any]:
    """Run ``robot-rl data`` with --json; the object on its only line."""
    found = main(["data", *map(str, words), "--json", "--quiet"])
    captured = capsys.readouterr()
    assert found == code, captured.err
    lines = captured.out.splitlines()
    assert len(lines) == 1, captured.out
    value = json.loads(lines[0], parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert isinstance(value, dict)
    return value


def content(folder: Path) -> dict[str, str]:
    """Digests of all files but the mark of who writes."""
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("*")) if path.is_file() and path.name != LOCK}


@pytest.fixture
def push(episode, tmp_path) -> Path:
    """Six episodes of 3 to 8 steps; the odd ones end in success, one passed through it."""
    path = tmp_path / "push"
    info = DatasetInfo("Push", (4,), 2, 3, robot="panda", rate_hz=10.0, software="robot_rl test")
    with DatasetWriter(path, info) as writer:
        for number in range(6):
            each = episode(3 + number, number, terminated=number == 5)
            each.success[-1] = number % 2 == 1
            each.success[0] = each.success[0] or number == 4
            each.intervention = np.arange(len(each)) < number
            writer.append(each)
    return path


@pytest.fixture
def refused(capsys, tmp_path, monkeypatch, push) -> Callable[..., str]:
    """Runs an action that has to fail; returns its line. ``{d}`` stands for the folder."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")

    def attempt(words: str) -> str:
        before = content(tmp_path)
        assert main(["data", *(word.format(d=tmp_path) for word in words.split())]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        (line,) = captured.err.splitlines()
        assert line.startswith("robot-rl: ")
        assert content(tmp_path) == before
        assert not list((tmp_path / "cwd").iterdir()) and not (tmp_path / "out").exists()
        assert not list(tmp_path.glob(".*"))
        return line

    return attempt


# -- the group ----------------------------------------------------------------------------------


def test_every_action_is_covered():
    assert {action.name for action in data_cli.COMMAND.actions} == set(ACTIONS)


@pytest.mark.parametrize("action", list(ACTIONS))
def test_help_names_every_flag_and_shows_an_example(action, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["data", action, "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for flag in (*ACTIONS[action], "--json", "--quiet"):
        assert f" {flag} " in " ".join(text.split()), flag
    assert f"robot-rl data {action} " in text.partition("example")[2]


def test_without_an_action_it_says_which_there_are(capsys):
    assert main(["data"]) == 2
    out = capsys.readouterr().out
    assert all(f"    {action} " in out for action in ACTIONS)
    with pytest.raises(SystemExit) as caught:
        main(["data", "--help"])
    assert caught.value.code == 0 and "data split data/week" in capsys.readouterr().out
    assert main(["data", "shuffle"]) == 2
    assert "invalid choice: 'shuffle'" in capsys.readouterr().err


# -- info ---------------------------------------------------------------------------------------


def test_info(capsys, push):
    value = run(capsys, "info", push)
    assert (value["episodes"], value["steps"], value["complete"]) == (6, 33, True)
    assert value["success_rate"] == 0.5 and value["success_any_rate"] == pytest.approx(4 / 6)
    assert sorted(value["keys"]) == sorted([
        "observation.state", "observation.achieved_goal", "observation.desired_goal", "action",
        "action.requested", "next.reward", "next.terminated", "next.truncated", "next.success",
        "is_intervention"])
    assert value["shapes"]["action"] == [3] and value["shapes"]["next.reward"] == []
    assert value["dtypes"]["next.success"] == "bool"
    assert (value["task"], value["robot"], value["rate_hz"]) == ("Push", "panda", 10.0)
    assert value["length"] == {"min": 3.0, "mean": 5.5, "max": 8.0}
    loaded = load_dataset(push)[1]
    assert value["return"]["mean"] == pytest.approx(
        np.mean([each.reward.sum(dtype=np.float64) for each in loaded]))
    assert value["intervention_share"] == pytest.approx(
        sum(int(each.intervention.sum()) for each in loaded) / 33)  # type: ignore[union-attr]
    assert value["ended"] == {"truncated": 5, "terminated": 1}
    assert value["bytes"] == sum(p.stat().st_size for p in push.rglob("*") if p.is_file())
    assert value["recorded_from"] <= value["recorded_to"] and value["recorded_to"].endswith("00:00")
    assert (value["recording"], value["interrupted"], value["unreadable"]) == (False, [], [])
    assert main(["data", "info", str(push)]) == 0
    text = capsys.readouterr().out
    for words in ("6 (33 steps, 3 s at 10 Hz)", "50.0% at the end", "next.success", "panda",
                  "5.5 steps on average, 3 to 8", "complete       yes"):
        assert words in text


def test_info_of_nothing_yet(capsys, tmp_path):
    DatasetWriter(tmp_path / "new", DatasetInfo("Reach", (4,), 0, 3)).close()
    value = run(capsys, "info", tmp_path / "new")
    assert (value["episodes"], value["steps"], value["keys"]) == (0, 0, [])
    assert value["success_rate"] is None and value["complete"] is True
    assert value["length"] is None and value["recorded_from"] is None
    assert main(["data", "info", str(tmp_path / "new")]) == 0
    assert "episodes  0 (0 steps)" in capsys.readouterr().out


def test_info_lists_no_array_without_numbers(capsys, episode, dataset_of, tmp_path):
    dataset_of(tmp_path / "d", [episode(3, goal_dim=0)])
    keys = run(capsys, "info", tmp_path / "d")["keys"]
    assert "observation.state" in keys and not any("goal" in key for key in keys)


def test_info_of_a_plain_npz(capsys, tmp_path):
    np.savez(tmp_path / "demo.npz", observations=np.ones((8, 4)), actions=np.zeros((8, 2)),
             rewards=np.ones(8), episode_lengths=np.array([5, 3]))
    value = run(capsys, "info", tmp_path / "demo.npz")
    assert (value["episodes"], value["steps"], value["complete"]) == (2, 6, True)
    assert value["return"] == {"min": 2.0, "mean": 3.0, "max": 4.0}
    assert "action" in value["keys"] and value["shapes"]["observation.state"] == [4]


def test_info_of_a_recording_that_runs(capsys, push, episode):
    with DatasetWriter.extend(push) as writer:
        live = writer.begin()
        each = episode(3)
        states = {**each.state_arrays(),
                  "observation.desired_goal": np.tile(each.desired, (4, 1))}
        live.start({key: array[0] for key, array in states.items()})
        for i in range(3):
            live.step({key: array[i + 1] for key, array in states.items()},
                      {key: array[i] for key, array in each.step_arrays().items()})
        deadline = time.monotonic() + 5.0
        while open_log(push).recording is None and time.monotonic() < deadline:
            time.sleep(0.02)
        value = run(capsys, "info", push)
        assert (value["episodes"], value["recording"], value["complete"]) == (6, True, False)
        assert main(["data", "info", str(push)]) == 0
        assert "no: an episode is being recorded\n" in capsys.readouterr().out
        live.discard()
    assert run(capsys, "info", push)["complete"] is True


def test_info_of_what_is_left_and_damaged(capsys, push):
    (push / "episodes" / ".000006.mcap.part").write_bytes(b"\x89MCAP0\r\n")
    file = push / "episodes" / "000002.mcap"
    file.write_bytes(file.read_bytes()[:-20])
    (push / "episodes" / "000003.mcap").write_bytes(b"")
    value = run(capsys, "info", push)
    assert (value["episodes"], value["complete"]) == (4, False)
    assert [row["episode"] for row in value["unreadable"]] == [2, 3]
    assert "000002.mcap" in value["unreadable"][0]["error"] and len(value["interrupted"]) == 1
    (push / "episodes" / "000001.mcap").unlink()
    assert run(capsys, "info", push)["missing"] == [[1, 1]]
    assert main(["data", "info", str(push)]) == 0
    assert "no: 1 interrupted recordings, 2 unreadable, 1 missing" in capsys.readouterr().out


def test_text_from_a_file_does_not_reach_the_terminal_raw(capsys, tmp_path):
    info = DatasetInfo("evil\x1b[2J\ud800", (4,), 0, 3, robot="a\nb")
    DatasetWriter(tmp_path / "d", info).close()
    assert main(["data", "info", str(tmp_path / "d")]) == 0
    text = capsys.readouterr().out
    assert "evil\\x1b[2J\\ud800" in text and "a\\nb" in text and "\x1b" not in text
    assert run(capsys, "info", tmp_path / "d")["task"] == "evil\x1b[2J\ud800"


def test_info_says_how_to_import_what_is_no_dataset(refused, tmp_path):
    (tmp_path / "bag").mkdir()
    (tmp_path / "bag" / "metadata.yaml").write_text("rosbag2_bagfile_information: {}\n")
    line = refused("info {d}/bag")
    assert "looks like rosbag2" in line and "robot-rl data import" in line


def test_info_reads_only_the_index(capsys, episode, dataset_of, tmp_path, monkeypatch):
    dataset_of(tmp_path / "d", [episode(5, n) for n in range(9)])
    monkeypatch.setattr(Log, "read", lambda *_, **__: pytest.fail("an episode was read"))
    assert run(capsys, "info", tmp_path / "d")["episodes"] == 9


# -- verify and repair --------------------------------------------------------------------------


def test_verify(capsys, push):
    value = run(capsys, "verify", push)
    assert value["ok"] is True and value["errors"] == []
    assert main(["data", "verify", str(push)]) == 0
    assert f"{push}: ok" in capsys.readouterr().out
    file = push / "episodes" / "000002.mcap"
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 0x10
    file.write_bytes(raw)
    value = run(capsys, "verify", push, code=1)
    assert value["ok"] is False and "000002.mcap" in json.dumps(value["errors"])
    assert main(["data", "verify", str(push)]) == 1
    text = capsys.readouterr().out
    assert "error: " in text and f"robot-rl data repair {push}" in text
    run(capsys, "repair", push)
    value = run(capsys, "verify", push)
    assert value["ok"] is True
    assert run(capsys, "info", push)["episodes"] >= 5


def test_repair_in_words(capsys, push):
    assert main(["data", "repair", str(push)]) == 0
    assert capsys.readouterr().out.startswith(str(push))
    assert run(capsys, "info", push)["episodes"] == 6


# -- import and export --------------------------------------------------------------------------


@pytest.fixture
def demo(tmp_path) -> Path:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "demo.npz", observations=rng.normal(size=(20, 4)).astype(np.float32),
             actions=rng.uniform(-1, 1, (20, 2)).astype(np.float32),
             rewards=rng.normal(size=20).astype(np.float32), episode_lengths=np.array([12, 8]))
    return tmp_path / "demo.npz"


@pytest.mark.parametrize("words", [[], ["--from", "npz"]])
def test_import(capsys, tmp_path, demo, words):
    value = run(capsys, "import", *words, demo, "--task", "Pile", "--out", tmp_path / "out")
    assert (value["episodes"], value["steps"], value["format"]) == (2, 18, "npz")
    info = run(capsys, "info", tmp_path / "out")
    assert (info["episodes"], info["steps"], info["task"]) == (2, 18, "Pile")
    for one, two in zip(load_dataset(demo)[1], load_dataset(tmp_path / "out")[1], strict=True):
        assert np.array_equal(one.observation, two.observation)


@pytest.mark.parametrize(("kind", "module"), [("lerobot", "pyarrow"), ("minari", "minari"),
                                              ("mcap", "rosbags")])
def test_export_and_import_back(capsys, tmp_path, push, kind, module):
    pytest.importorskip(module)
    value = run(capsys, "export", push, "--to", kind, "--out", tmp_path / "there",
                "--episodes", "1-", "--successes-only")
    assert (value["episodes"], value["steps"], value["format"]) == (3, 18, kind)
    words = ["--map", value["map"]] if kind == "mcap" else []
    back = run(capsys, "import", tmp_path / "there", *words, "--out", tmp_path / "back")
    assert (back["episodes"], back["steps"]) == (3, 18)
    originals = [e for e in load_dataset(push)[1] if e.success[-1]]
    for one, two in zip(originals, load_dataset(tmp_path / "back")[1], strict=True):
        for name in ("observation", "achieved", "desired", "action", "requested", "reward",
                     "terminated", "truncated", "success", "intervention"):
            assert np.array_equal(getattr(one, name), getattr(two, name)), name


# -- merge, split, plot, play -------------------------------------------------------------------


def test_split_and_merge(capsys, tmp_path, push):
    a, b, m = (tmp_path / name for name in "abm")
    value = run(capsys, "split", push, "--out", a, b, "--fractions", "0.67", "0.33", "--seed", "2")
    assert [part["episodes"] for part in value["parts"]] == [4, 2] and value["left_out"] == 0
    value = run(capsys, "merge", a, b, "--out", m)
    assert (value["episodes"], value["steps"], value["skipped"]) == (6, 33, 0)
    assert sorted(map(content_digest, open_log(m))) == sorted(map(content_digest, open_log(push)))
    value = run(capsys, "merge", m, push, "--out", tmp_path / "n", "--duplicates", "skip")
    assert (value["episodes"], value["skipped"]) == (6, 6)
    assert main(["data", "split", str(push), "--out", str(tmp_path / "x"), "--episodes", "0-2",
                 "--quiet"]) == 0
    out = capsys.readouterr().out
    assert "3 episodes (12 steps), success 0.33, in" in out and "3 episodes were left out" in out


def test_bars_go_to_standard_error(capsys, tmp_path, push, monkeypatch):
    monkeypatch.setattr(data_cli, "_BAR_AFTER_S", 0.0)
    assert main(["data", "merge", str(push), "--out", str(tmp_path / "o"), "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["episodes"] == 6 and "merge" in captured.err


def test_plot_and_play_write_beside_the_user(capsys, tmp_path, push, monkeypatch):
    for module in ("matplotlib", "cv2", "av"):
        pytest.importorskip(module)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert run(capsys, "plot", push)["path"] == "push.png"
    assert run(capsys, "plot", push, "--episode", "2")["path"] == "push-episode-2.png"
    value = run(capsys, "play", push, "--episode", "2")
    assert Path(value["path"]).stem == "push-episode-2" and value["cameras"] == []
    assert {Path(p).name for p in os.listdir()} == {
        "push.png", "push-episode-2.png", Path(value["path"]).name}
    assert main(["data", "plot", str(push), "--out", "page.html"]) == 0
    assert capsys.readouterr().out == "plot page.html\n"


# -- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["nothing", "empty", "text", "no json", "wrong json", "future"])
@pytest.mark.parametrize("action", ["info", "verify", "repair"])
def test_what_is_no_dataset(refused, capsys, tmp_path, action, kind):
    path = tmp_path / "thing"
    if kind == "text":
        path.write_text("hello")
    elif kind != "nothing":
        path.mkdir()
    contents = {"no json": "{", "wrong json": "[1, 2]",
                "future": json.dumps({"task": "", "observation_shape": [1], "goal_dim": 0,
                                      "action_dim": 1, "format": 99})}
    if kind in contents:
        (path / "dataset.json").write_text(contents[kind])
    if action == "verify" and kind not in ("nothing", "empty"):
        # It may have been one.
        value = run(capsys, "verify", path, code=1)
        assert value["ok"] is False and str(path) in value["errors"][0]
        return
    assert str(path) in refused(f"{action} {{d}}/thing")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("info", "required: DIR"),
        ("merge --out {d}/out", "required: DIR"),
        ("merge {d}/push", "required: --out"),
        ("merge {d}/push {d}/none --out {d}/out", "none does not exist"),
        ("merge {d}/push {d}/push --out {d}/out", "episode 0 of"),
        ("merge {d}/push --out {d}/push", "would be written over"),
        ("merge {d}/push --out {d}/push/sub --overwrite", "choose a place outside"),
        ("merge {d}/push --out {d}/out --duplicates drop", "valid: error, skip, keep"),
        ("split {d}/push --out {d}/out {d}/out", "would be written over"),
        ("split {d}/push --out {d}/out --fractions 0.5", "sum to 0.5, should sum to 1"),
        ("split {d}/push --out {d}/out {d}/o2 --fractions 1e-9 1", "leave nothing"),
        ("split {d}/push --out {d}/out --by colour", "valid: random, order, success"),
        ("split {d}/push --out {d}/out --episodes 4-9", "9 is not in"),
        ("split {d}/push --out {d}/out --seed x", "invalid int value"),
        ("export {d}/push --to lerobt --out {d}/out", "did you mean 'lerobot'"),
        ("export {d}/push --to minari --video --out {d}/out", "--video goes with --to lerobot"),
        ("export {d}/push --to mcap --out {d}/out --episodes 7", "it holds 6 episodes, 0 to 5"),
        ("export {d}/none --to mcap --out {d}/out", "none does not exist"),
        ("export {d}/push --to mcap --out {d}/push", "is the same as the source"),
        ("import {d}/none --out {d}/out", "none does not exist"),
        ("import {d}/push --from rosbag --out {d}/out", "did you mean 'rosbag2'"),
        ("import {d}/push/dataset.json --out {d}/out", "say which with --from"),
        ("import {d}/push/dataset.json --from npz --out {d}/out", "dataset.json"),
        ("import {d}/push/dataset.json --from npz --rate -1 --out {d}/out", "rate is -1.0"),
        ("plot {d}/push --out {d}/plot.pdf", "valid: .png, .html"),
        ("plot {d}/push --out {d}/push", "nothing cannot be written"),
        ("plot {d}/push --episode 6", "episode 6 is not in"),
        ("play {d}/push --episode -1", "episode -1 is not in"),
        ("play {d}/push --out {d}/film.avi", "valid: .mp4, .gif, .png"),
        ("play {d}/push --out film.mp4 --fps -3", "fps is -3.0"),
        ("play {d}/push --out film.mp4 --fps nan", "fps is nan"),
        ("play {d}/push --out film.png --frames 0", "frames is 0"),
        ("play {d}/push --out film.mp4 --cameras front", "unknown camera 'front'; valid: none"),
    ],
)
def test_bad_options(refused, words, message):
    pytest.importorskip("cv2")
    assert message in refused(words)


def test_a_file_that_is_there_stays(refused, tmp_path, capsys, push):
    pytest.importorskip("matplotlib")
    (tmp_path / "mine.png").write_text("precious")
    for words in ("plot {d}/push --out {d}/mine.png", "play {d}/push --out {d}/mine.png"):
        assert "is already there; choose another, or give --overwrite" in refused(words)
    run(capsys, "plot", push, "--out", tmp_path / "mine.png", "--overwrite")
    assert (tmp_path / "mine.png").read_bytes().startswith(b"\x89PNG")


def test_a_layout_that_makes_no_sense_is_an_unreadable_episode(capsys, push, monkeypatch):
    for nonsense in ({"steps": 3, "keys": None}, {"keys": ["a"]}, {"steps": "x", "keys": []},
                     {"steps": 3, "keys": [], "frames": {"front": []}}):
        monkeypatch.setattr(Log, "summary", lambda self, file, raw=nonsense: dict(raw))
        value = run(capsys, "info", push)
        assert value["episodes"] == 0 and len(value["unreadable"]) == 6
    odd = {"steps": 3, "keys": ["action"], "return": float("nan"), "success": 7,
           "recorded_at": 1e300, "ended": None, "frames": None}
    monkeypatch.setattr(Log, "summary", lambda self, file: dict(odd))
    value = run(capsys, "info", push)
    assert (value["episodes"], value["return"], value["success_rate"]) == (6, None, 0.0)


# -- stopped ------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_by_a_signal_it_leaves_nothing(episode, dataset_of, tmp_path, number):
    dataset_of(tmp_path / "many", [episode(5, n) for n in range(30)])
    slowly = """
import sys, time
from robot_rl.cli.main import main
from robot_rl.data import edit
copy = edit._copy
edit._copy = lambda *paths: (time.sleep(0.1), copy(*paths))
sys.exit(main(["data", "merge", "many", "--out", "out", "--quiet"]))
"""
    process = subprocess.Popen([sys.executable, "-c", slowly], cwd=tmp_path, text=True,
                               stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)},
                               # A shell without job control starts what it puts in the background
                               # with this signal ignored.
                               preexec_fn=lambda: signal.signal(number, signal.SIG_DFL))
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".out*/episodes/000003.mcap")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (130, "robot-rl: stopped\n")
    assert os.listdir(tmp_path) == ["many"]
