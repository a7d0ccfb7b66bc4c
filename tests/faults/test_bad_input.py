"""Bad input: one clear line on standard error, exit code 2, and nothing half-written."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from robot_rl.cli.main import main
from robot_rl.training.checkpoint import find_checkpoint

pytest.importorskip("mujoco")

SMALL = ("--hidden-dims", "16", "16", "--batch-size", "32")


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """Recorded episodes of two tasks, and a pretrained run."""
    folder = tmp_path_factory.mktemp("home")
    for task in ("Reach", "Push"):
        assert main(["collect", "--task", task, "--episodes", "2", "--quiet", "--json",
                     "--out", str(folder / task.lower())]) == 0
    assert main(["pretrain", "--data", str(folder / "reach"), "--steps", "10", *SMALL,
                 "--out", str(folder / "run"), "--quiet", "--json"]) == 0
    return folder


@pytest.fixture
def refused(capsys, tmp_path, monkeypatch, home):
    """Runs a command that has to fail; checks how, and returns its line on standard error.

    ``{home}`` and ``{out}`` in the words stand for the folders.
    """
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()

    def run(words: str, *more: str) -> str:
        out = tmp_path / "out"
        before = listing(home)
        argv = [w.format(home=home, out=out) for w in words.split()] + list(more)
        code = main(argv)
        captured = capsys.readouterr()
        assert code == 2, captured
        assert captured.out == ""
        lines = captured.err.splitlines()
        assert len(lines) == 1, captured.err
        assert lines[0].startswith("robot-rl: ") and "Traceback" not in lines[0]
        assert not out.exists(), listing(out)
        assert listing(home) == before
        return lines[0]

    return run


def listing(folder: Path) -> list[tuple[str, int]]:
    return sorted((str(p), p.stat().st_mtime_ns) for p in folder.rglob("*"))


COLLECT = "collect --episodes 1 --out {out} "
PRETRAIN = "pretrain --steps 5 --out {out} "
TRAIN = "train --env-steps 40 --out {out} "


@pytest.mark.parametrize(
    ("words", "message"),
    [
        # Names.
        (COLLECT + "--task Shove", "unknown task 'Shove'; valid: Reach, Push, PickPlace"),
        (COLLECT + "--task pushh", "did you mean 'Push'?"),
        (COLLECT + "--task Push --robot ur5", "unknown robot 'ur5'; valid: fr3, panda, sawyer"),
        (COLLECT + "--task Push --backend gazebo",
         "unknown backend 'gazebo'; valid: franky, mujoco, pybullet"),
        (COLLECT + "--task Push --policy human", "unknown policy 'human'; valid: scripted"),
        (COLLECT + "--task Push --obs depth", "unknown obs 'depth'; valid: state, image"),
        (COLLECT + "--task Nothing-v3", "unknown task 'Nothing-v3'"),
        (COLLECT + "--task Pendulum-v1 --policy scripted", "no scripted policy for a task from"),
        (PRETRAIN + "--data {home}/reach --agent sac", "unknown agent 'sac'; valid: bc, iql, awac"),
        (PRETRAIN + "--data {home}/reach --device tpu", "unknown device 'tpu'"),
        (TRAIN + "--agent sac --task Reach", "unknown agent 'sac'"),
        (TRAIN + "--agent iql --task Reach --exploration wild", "unknown exploration 'wild'"),
        ("eval --policy clever --task Reach", "unknown policy 'clever'"),
        ("demo --out {out} --agents iql dqn", "unknown agent 'dqn'"),
        ("demo --out {out} --task Shove", "unknown task 'Shove'"),
        ("dance", "argument COMMAND: invalid choice: 'dance'"),
        # Flags.
        (COLLECT + "--task Push --speed 3", "unrecognized arguments: --speed 3"),
        (COLLECT + "--task Push --episode 3", "unrecognized arguments: --episode 3"),
        (COLLECT + "--task", "argument --task: expected one argument"),
        (PRETRAIN + "--data {home}/reach --agent bc --expectile 0.9",
         "unrecognized arguments: --expectile"),
        # Numbers.
        (COLLECT + "--task Push --episodes 0", "episodes is 0, should be at least 1"),
        (COLLECT + "--task Push --episodes -3", "episodes is -3"),
        (COLLECT + "--task Push --episodes 1.5", "invalid int value: '1.5'"),
        (COLLECT + "--task Push --quality nan", "quality is nan, should be in [0, 1]"),
        (COLLECT + "--task Push --quality 2", "quality is 2.0"),
        (COLLECT + "--task Push --seed -1", "seed is -1, should be in [0, "),
        (COLLECT + "--task Push --seed 99999999999999999999", "seed is 99999999999999999999"),
        (COLLECT + "--task Push --control-hz nan", "control_hz is nan, should be in [5, 20]"),
        (COLLECT + "--task Push --control-hz 100", "control_hz is 100.0"),
        (COLLECT + "--task Push --randomize mass=nan", "randomisation: mass is nan"),
        (COLLECT + "--task Push --randomize weight=1", "unknown randomization option 'weight'"),
        (COLLECT + "--task Push --randomize mass", "'mass' should be name=number"),
        (PRETRAIN + "--data {home}/reach --steps 0", "steps is 0, should be at least 1"),
        (PRETRAIN + "--data {home}/reach --steps -5", "steps is -5"),
        (PRETRAIN + "--data {home}/reach --learning-rate nan", "learning_rate"),
        (PRETRAIN + "--data {home}/reach --discount 1.0", "discount"),
        (PRETRAIN + "--data {home}/reach --expectile 1", "expectile"),
        (PRETRAIN + "--data {home}/reach --batch-size -1", "batch_size"),
        (PRETRAIN + "--data {home}/reach --hidden-dims 0", "hidden_dims"),
        (PRETRAIN + "--data {home}/reach --relabel-future nan", "relabelling: future is nan"),
        (PRETRAIN + "--data {home}/reach --relabel-future -1", "relabelling: future is -1.0"),
        (PRETRAIN + "--data {home}/reach --relabel-future 0", "all fractions are 0"),
        (PRETRAIN + "--data {home}/reach --seed 4294967296", "seed is 4294967296"),
        (PRETRAIN + "--data {home}/reach --threads 0", "threads is 0"),
        (TRAIN + "--from {home}/run --env-steps 0", "env_steps is 0"),
        (TRAIN + "--from {home}/run --online-fraction nan", "online_fraction is nan"),
        (TRAIN + "--from {home}/run --updates-per-step nan", "updates_per_step is nan"),
        (TRAIN + "--from {home}/run --updates-per-step inf", "updates_per_step is inf"),
        (TRAIN + "--from {home}/run --warmup-steps -1", "warmup_steps is -1"),
        ("eval --checkpoint {home}/run --episodes 0", "episodes is 0"),
        ("demo --out {out} --scale nan", "scale is nan"),
        ("demo --out {out} --quality nan", "quality is nan"),
        ("demo --out {out} --episodes 0", "episodes is 0"),
        ("report {home}/run --videos -1", "videos is -1"),
        # What is missing.
        ("collect --episodes 1 --out {out}", "recording needs a task: give --task"),
        ("collect --task Push", "recording needs a folder: give --out"),
        (PRETRAIN, "pretraining needs recorded episodes: give --data"),
        ("pretrain --data {home}/reach", "pretraining needs a folder for the run: give --out"),
        (TRAIN + "--agent iql", "training from scratch needs a task: give --task"),
        ("train --from {home}/run", "training needs a folder for the run: give --out"),
        ("eval --episodes 1", "give either --checkpoint or --policy"),
        ("eval --policy random", "which task? give --task; valid: Reach"),
        ("eval --policy random --task Reach --videos 1", "--videos needs a folder: give --out"),
        (COLLECT + "--task Push --policy checkpoint", "--policy checkpoint and --checkpoint PATH"),
        # Paths.
        (PRETRAIN + "--data {home}/nothing", "nothing does not exist"),
        (PRETRAIN + "--data " + "x" * 5000, "too long"),
        (PRETRAIN + "--data {home}/run", "dataset.json does not exist"),
        (PRETRAIN + "--data {home}/run/config.json", "config.json cannot be read"),
        (TRAIN + "--from {home}/nothing", "nothing does not exist"),
        (TRAIN + "--from {home}/reach", "holds no agent.safetensors"),
        ("eval --checkpoint {home}/reach", "holds no agent.safetensors"),
        ("report {home}/reach", "config.json does not exist"),
        ("report {home}/nothing", "nothing"),
        ("pretrain --resume {home}/nothing", "config.json does not exist"),
        ("train --resume {home}/run", "is not a training run"),
        # What does not belong together.
        (PRETRAIN + "--data {home}/reach --task Push", "the data is of the task Reach, not Push"),
        (TRAIN + "--from {home}/run --task Push", "trained for the task Reach, not Push"),
        (TRAIN + "--from {home}/run --data {home}/push", "is of the task Push, not Reach"),
        ("eval --checkpoint {home}/run --task Push", "trained for the task Reach, not Push"),
        (COLLECT + "--task Push --policy checkpoint --checkpoint {home}/run",
         "takes observations (9,) and gives 3 actions; the environment has (16,)"),
        (COLLECT + "--task Reach --policy checkpoint --checkpoint {home}/run --obs image",
         "the environment has (48, 48, 3)"),
        (COLLECT + "--task Pendulum-v1 --policy random --randomize mass=0.1",
         "cannot be randomised from here"),
    ],
)
def test_what_cannot_be_used_is_named(refused, capsys, words, message):
    if "-v" in words:
        pytest.importorskip("gymnasium_robotics")
        capsys.readouterr()  # It prints news when it is first imported.
    assert message in refused(words)


@pytest.mark.parametrize("words", [
    "collect --task Reach --episodes 1 --out {out}",
    "pretrain --data {home}/reach --steps 5 --out {out}",
    "train --from {home}/run --env-steps 30 --out {out}",
    "demo --out {out}",
])
@pytest.mark.parametrize("place", ["used", "file", "under a file", "proc", "long"])
def test_an_out_folder_that_cannot_be_used(capsys, tmp_path, home, words, place):
    used = tmp_path / "used"
    used.mkdir()
    (used / "mine.txt").write_text("precious")
    out = {"used": used, "file": used / "mine.txt", "under a file": used / "mine.txt" / "deep",
           "proc": Path("/proc/1/nothing/here"), "long": used / ("x" * 300)}[place]
    before = listing(tmp_path)
    capsys.readouterr()
    assert main([w.format(home=home, out=out) for w in words.split()] + ["--quiet"]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and captured.out == ""
    expected = {"used": "already there and not empty", "file": "already there and not empty",
                "under a file": "Not a directory", "proc": "/proc/1/nothing",
                "long": "File name too long"}[place]
    assert expected in captured.err
    assert listing(tmp_path) == before and (used / "mine.txt").read_text() == "precious"


def test_no_permission_to_write(capsys, tmp_path, home, monkeypatch):
    from robot_rl.data import files

    real = os.mkdir

    def forbidden(path, *args, **kwargs):
        if Path(path).name == "out":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return real(path, *args, **kwargs)

    monkeypatch.setattr(files.os, "mkdir", forbidden)
    assert main(["pretrain", "--data", str(home / "reach"), "--out", str(tmp_path / "out")]) == 2
    assert "cannot use" in (line := capsys.readouterr().err) and "Permission denied" in line
    assert line.count("\n") == 1


def test_a_full_disk_while_recording_keeps_what_was_recorded(capsys, tmp_path, monkeypatch):
    from robot_rl.data import files

    real, calls = os.rename, []

    def full(source, target):
        calls.append(target)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(source, target)

    monkeypatch.setattr(files.os, "rename", full)
    out = tmp_path / "out"
    assert main(["collect", "--task", "Reach", "--episodes", "5", "--out", str(out),
                 "--quiet"]) == 2
    line = capsys.readouterr().err
    assert "cannot write" in line and "No space left on device" in line
    committed = sorted(p.name for p in (out / "episodes").iterdir() if p.name[0] != ".")
    assert committed == ["000000.mcap", "000001.mcap"]


def test_data_of_other_shapes(refused, tmp_path, episode, dataset_of):
    narrow = dataset_of(tmp_path / "narrow", [episode(5, goal_dim=1)], "Push")
    assert "goals of 1 numbers, the task Push has 2" in refused(PRETRAIN + f"--data {narrow}")
    wide = dataset_of(tmp_path / "wide", [episode(5, goal_dim=2, observation_dim=9)], "Push")
    assert ("the data has observations (9,) and actions (3,); the task Push has (16,) and (3,)"
            in refused(PRETRAIN + f"--data {wide} --eval-episodes 1"))
    images = tmp_path / "images"
    assert main(["collect", "--task", "Reach", "--obs", "image", "--episodes", "1", "--out",
                 str(images), "--quiet", "--json"]) == 0


def test_data_without_states_is_not_for_these_agents(refused, tmp_path, episode, dataset_of):
    images = dataset_of(tmp_path / "images", [episode(5, observation_dim=0)], "Push")
    assert ("agents learn from state observations" in refused(PRETRAIN + f"--data {images}"))


def test_a_plain_npz_of_a_wrong_shape(refused, tmp_path):
    pytest.importorskip("gymnasium_robotics")
    file = tmp_path / "demos.npz"
    np.savez(file, observations=np.zeros((6, 7)), actions=np.zeros((6, 2)), rewards=np.zeros(6),
             episode_lengths=np.array([6]))
    assert ("observations of shape (7,), the task AdroitHandDoor-v1 has (39,)"
            in refused(PRETRAIN + f"--data {file} --task AdroitHandDoor-v1"))
    assert ("evaluation needs the data's task: give --task"
            in refused(PRETRAIN + f"--data {file} --eval-episodes 1"))
    assert ("goals of 0 numbers, the task Push has 2"
            in refused(PRETRAIN + f"--data {file} --task Push"))


@pytest.fixture
def run_copy(tmp_path, home) -> Path:
    return Path(shutil.copytree(home / "run", tmp_path / "copy"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("agent.safetensors", b"", "agent.safetensors is damaged"),
        ("agent.safetensors", b"\xff" * 100, "agent.safetensors is damaged"),
        ("agent.json", b"{", "agent.json is not valid JSON"),
        ("agent.json", b"\xfe\xff", "agent.json is not valid JSON"),
        ("agent.json", b'{"agent": "iql"}', "does not describe an agent"),
    ],
)
@pytest.mark.parametrize("words", ["eval --checkpoint {copy} --episodes 1",
                                   "train --from {copy} --env-steps 30 --out {{out}}",
                                   "pretrain --resume {copy} --steps 20",
                                   "collect --task Reach --policy checkpoint --checkpoint {copy} "
                                   "--out {{out}}"])
def test_a_damaged_checkpoint(refused, run_copy, name, content, message, words):
    (find_checkpoint(run_copy) / name).write_bytes(content)
    assert message in refused(words.format(copy=run_copy))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", "{", "config.json is not valid JSON"),
        ("config.json", "[]", "config.json is not an object"),
        ("config.json", "{}", "is not a pretraining run"),
        ("config.json", '{"kind": "pretrain"}', "config.json is damaged"),
        ("config.json", '{"kind": "pretrain", "pretrain": {"step": 1}, "env": {}, '
         '"relabelling": {}}', "config.json is damaged"),
        ("trainer.json", "{}", "trainer.json has step None"),
    ],
)
def test_a_damaged_run(refused, run_copy, file, content, message):
    path = run_copy / file
    if file == "trainer.json":
        path = find_checkpoint(run_copy) / file
    path.write_text(content)
    before = listing(run_copy)
    assert message in refused(f"pretrain --resume {run_copy} --steps 20")
    assert listing(run_copy) == before


def test_a_run_whose_data_is_gone(refused, run_copy, tmp_path):
    config = json.loads((run_copy / "config.json").read_text())
    config["pretrain"]["data"] = str(tmp_path / "gone")
    (run_copy / "config.json").write_text(json.dumps(config))
    assert "gone does not exist" in refused(f"pretrain --resume {run_copy} --steps 20")
    line = refused(TRAIN + f"--from {run_copy}")
    assert "are gone" in line and "--data none" in line


def test_someone_elses_weights(refused, tmp_path):
    import torch
    from safetensors.torch import save_file

    other = tmp_path / "other"
    other.mkdir()
    save_file({"model.weight": torch.zeros(3)}, other / "agent.safetensors")
    assert "agent.json does not exist" in refused(f"eval --checkpoint {other}")


# -- no graphics --------------------------------------------------------------------------------


def process(*words: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "WAYLAND_DISPLAY")}
    return subprocess.run([sys.executable, "-m", "robot_rl.cli.main", *words], text=True,
                          capture_output=True, cwd=cwd, timeout=180, env={**clean, **env},
                          check=False)


@pytest.mark.parametrize("gl", ["glfw", "metal", "disable"])
@pytest.mark.parametrize("words", [
    ["collect", "--task", "Push", "--obs", "image", "--episodes", "1", "--out", "out"],
    ["eval", "--policy", "scripted", "--task", "Reach", "--episodes", "1", "--videos", "1",
     "--out", "out"],
], ids=["images", "videos"])
def test_images_without_graphics(tmp_path, gl, words):
    done = process(*words, "--quiet", "--json", cwd=tmp_path, MUJOCO_GL=gl)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("robot-rl: "), done.stderr
    assert "MUJOCO_GL" in lines[0] and "egl" in lines[0]
    assert list(tmp_path.iterdir()) == []


def test_states_need_no_graphics(tmp_path):
    done = process("collect", "--task", "Push", "--episodes", "1", "--out", "out", "--json",
                   "--quiet", cwd=tmp_path, MUJOCO_GL="metal")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["episodes"] == 1


def test_a_whole_process_says_one_line_and_exits_with_two(tmp_path):
    done = process("collect", "--task", "Shove", "--out", "out", "--json", cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == ("robot-rl: unknown task 'Shove'; valid: Reach, Push, PickPlace, "
                           "Drawer, Door, Insertion\n")
    assert list(tmp_path.iterdir()) == []
