"""Training: exact resumption after every kind of stop, fine-tuning without a dip, and learning."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from robot_rl.data import load_dataset
from robot_rl.envs import make_env
from robot_rl.training import online
from robot_rl.training.checkpoint import find_checkpoint, load_agent
from robot_rl.training.collect import CollectConfig, collect
from robot_rl.training.evaluate import AgentPolicy, evaluate
from robot_rl.training.offline import PretrainConfig, pretrain, resume_pretrain
from robot_rl.training.online import TrainConfig, resume_train, train
from robot_rl.training.runs import read_metrics
from robot_rl.training.setup import EnvChoice

pytest.importorskip("mujoco")

SMALL = {"hidden_dims": (16, 16), "batch_size": 32}
REACH = EnvChoice(task="Reach", robot="panda")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    """Recorded episodes of a mediocre operator reaching."""
    path = tmp_path_factory.mktemp("recorded") / "data"
    collect(CollectConfig(quality=0.3, episodes=40, out=str(path)), REACH, quiet=True)
    return str(path)


def weights(run: str | Path) -> dict[str, torch.Tensor]:
    return load_file(find_checkpoint(run) / "agent.safetensors")


def assert_same_weights(one: str | Path, two: str | Path) -> None:
    first, second = weights(one), weights(two)
    assert first.keys() == second.keys()
    differing = [k for k in first if not torch.equal(first[k], second[k])]
    assert differing == []


def rows(run: str | Path, *, evaluations: bool = True) -> list[dict[str, Any]]:
    """The metrics without what is measured by a clock."""
    found = []
    for row in read_metrics(run):
        if not evaluations and any(key.startswith("eval/") for key in row):
            continue
        found.append({k: v for k, v in row.items() if not k.endswith("_per_second")})
    return found


def assert_no_step_twice(run: str | Path) -> None:
    for kind in ("eval/success_rate", "policy_loss", "practice/return"):
        steps = [row["step"] for row in read_metrics(run) if kind in row]
        assert steps == sorted(set(steps)), kind


def assert_same_practice(one: str | Path, two: str | Path) -> None:
    first, second = (load_dataset(Path(run) / "practice")[1] for run in (one, two))
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        for name in ("observation", "achieved", "desired", "action", "requested", "reward",
                     "terminated", "truncated", "success"):
            assert np.array_equal(getattr(a, name), getattr(b, name)), name


def pretrain_config(data: str, out: Path, **changes: Any) -> PretrainConfig:
    return PretrainConfig(**{"agent": "iql", "data": data, "steps": 60, "log_every": 20,
                             "checkpoint_every": 20, "eval_every": 20, "eval_episodes": 1,
                             "out": str(out), **changes})


def train_config(out: Path, **changes: Any) -> TrainConfig:
    return TrainConfig(**{"env_steps": 180, "warmup_steps": 60, "eval_every": 60,
                          "eval_episodes": 1, "checkpoint_every": 60, "out": str(out), **changes})


@pytest.fixture(scope="module")
def whole_pretraining(tmp_path_factory, data) -> Path:
    """An uninterrupted pretraining run."""
    out = tmp_path_factory.mktemp("whole") / "run"
    pretrain(pretrain_config(data, out), agent_overrides=SMALL, quiet=True)
    return out


@pytest.fixture(scope="module")
def whole_practice(tmp_path_factory, whole_pretraining) -> Path:
    """An uninterrupted practice run that goes on from the pretrained one."""
    out = tmp_path_factory.mktemp("whole") / "practice"
    train(train_config(out, from_run=str(whole_pretraining)), REACH, quiet=True)
    return out


# -- resuming pretraining -----------------------------------------------------------------------


def test_pretraining_repeats_exactly(tmp_path, data, whole_pretraining):
    pretrain(pretrain_config(data, tmp_path / "again"), agent_overrides=SMALL, quiet=True)
    assert_same_weights(tmp_path / "again", whole_pretraining)
    assert rows(tmp_path / "again") == rows(whole_pretraining)
    pretrain(pretrain_config(data, tmp_path / "other", seed=1), agent_overrides=SMALL, quiet=True)
    assert rows(tmp_path / "other")[0]["policy_loss"] != rows(whole_pretraining)[0]["policy_loss"]


@pytest.mark.parametrize("first", [20, 40])
def test_pretraining_goes_on_exactly_with_more_steps(tmp_path, data, whole_pretraining, first):
    out = tmp_path / "run"
    pretrain(pretrain_config(data, out, steps=first), agent_overrides=SMALL, quiet=True)
    values = resume_pretrain(out, steps=60, quiet=True)
    assert values["steps"] == 60
    assert_same_weights(out, whole_pretraining)
    assert rows(out) == rows(whole_pretraining)


@pytest.mark.parametrize("after", [17, 33, 41])
def test_pretraining_that_crashed_anywhere_goes_on_exactly(
    tmp_path, data, whole_pretraining, monkeypatch, after
):
    from robot_rl.training import offline

    out = tmp_path / "run"
    real, left = offline.update_block, [after]

    def crashing(agent, sampler, rng, count):
        left[0] -= count
        if left[0] < 0:
            raise KeyboardInterrupt
        return real(agent, sampler, rng, count)

    monkeypatch.setattr(offline, "update_block", crashing)
    with pytest.raises(KeyboardInterrupt):
        pretrain(pretrain_config(data, out, checkpoint_every=10), agent_overrides=SMALL,
                 quiet=True)
    monkeypatch.undo()
    resume_pretrain(out, quiet=True)
    assert_same_weights(out, whole_pretraining)
    assert rows(out) == rows(whole_pretraining)


def test_a_finished_run_can_be_resumed_and_stays_what_it_is(tmp_path, whole_pretraining):
    copy = shutil.copytree(whole_pretraining, tmp_path / "copy")
    values = resume_pretrain(copy, quiet=True)
    assert values["steps"] == 60 and values["interrupted"] is False
    assert_same_weights(copy, whole_pretraining)
    assert rows(copy) == rows(whole_pretraining)


# -- resuming practice --------------------------------------------------------------------------


def test_practice_repeats_exactly(tmp_path, whole_pretraining, whole_practice):
    out = tmp_path / "again"
    train(train_config(out, from_run=str(whole_pretraining)), REACH, quiet=True)
    assert_same_weights(out, whole_practice)
    assert rows(out) == rows(whole_practice)
    assert_same_practice(out, whole_practice)
    assert_no_step_twice(out)


@pytest.mark.parametrize("first", [60, 120])
def test_practice_goes_on_exactly_with_more_steps(
    tmp_path, whole_pretraining, whole_practice, first
):
    out = tmp_path / "run"
    train(train_config(out, from_run=str(whole_pretraining), env_steps=first), REACH, quiet=True)
    values = resume_train(out, env_steps=180, quiet=True)
    assert values["env_steps"] == 180 and values["episodes"] == 6
    assert_same_weights(out, whole_practice)
    assert_same_practice(out, whole_practice)
    assert rows(out) == rows(whole_practice)


@pytest.mark.parametrize("after", [3, 5])
def test_practice_that_crashed_anywhere_goes_on_exactly(
    tmp_path, whole_pretraining, whole_practice, monkeypatch, after
):
    out = tmp_path / "run"
    real, left = online._learn, [after]

    def crashing(practice, steps):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return real(practice, steps)

    monkeypatch.setattr(online, "_learn", crashing)
    with pytest.raises(KeyboardInterrupt):
        train(train_config(out, from_run=str(whole_pretraining)), REACH, quiet=True)
    monkeypatch.undo()
    assert len(load_dataset(out / "practice")[1]) == after + 1, "committed before learning"
    resume_train(out, quiet=True)
    assert_same_weights(out, whole_practice)
    assert_same_practice(out, whole_practice)
    assert rows(out) == rows(whole_practice)


@pytest.mark.parametrize("agent", ["awac", "iql"])
def test_practice_from_nothing_with_randomisation_goes_on_exactly(tmp_path, agent):
    env = EnvChoice(task="Push", robot="panda", control_hz=5.0, randomize={
        "mass": 0.3, "action_noise": 0.1, "action_bias": 0.1, "latency_s": 0.1})
    options = {"agent": agent, "warmup_steps": 25, "checkpoint_every": 25, "seed": 3,
               "updates_per_step": 0.345}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(train_config(whole, env_steps=100, **options), env, agent_overrides=SMALL, quiet=True)
    train(train_config(parts, env_steps=50, **options), env, agent_overrides=SMALL, quiet=True)
    resume_train(parts, env_steps=100, quiet=True)
    assert_same_weights(whole, parts)
    assert_same_practice(whole, parts)
    assert rows(whole, evaluations=False) == rows(parts, evaluations=False)


def test_practice_without_recorded_data_can_be_resumed(tmp_path, whole_pretraining):
    out = tmp_path / "run"
    config = train_config(out, from_run=str(whole_pretraining), data="none", env_steps=60)
    train(config, REACH, quiet=True)
    assert resume_train(out, env_steps=90, quiet=True)["env_steps"] == 90
    train(train_config(tmp_path / "more", from_run=str(out), env_steps=30), REACH, quiet=True)


# -- stopped from outside -----------------------------------------------------------------------


def start(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "robot_rl.cli.main", *words, "--json", "--quiet"], text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"})


def wait_for(process: subprocess.Popen[str], ready) -> None:
    limit = time.monotonic() + 60
    while not ready() and process.poll() is None and time.monotonic() < limit:
        time.sleep(0.01)
    assert process.poll() is None, process.communicate()
    assert ready()


def finish(*words: str) -> dict[str, Any]:
    process = start(*words)
    out, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    value: dict[str, Any] = json.loads(out.splitlines()[-1])
    return value


FLAGS = ("--hidden-dims", "16", "16", "--batch-size", "32")


def test_a_stop_by_the_user_and_a_kill_lose_nothing(tmp_path, data):
    """SIGINT ends at a safe point with a checkpoint; after kill -9 the newest one serves."""
    words = ("pretrain", "--data", data, "--steps", "5000", "--log-every", "200",
             "--checkpoint-every", "500", *FLAGS)
    stopped, whole = str(tmp_path / "stopped"), str(tmp_path / "whole")
    process = start(*words, "--out", stopped)
    wait_for(process, lambda: len(read_metrics(stopped)) >= 2)
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    value = json.loads(out.splitlines()[-1])
    assert value["interrupted"] is True and 0 < value["steps"] < 5000
    assert find_checkpoint(stopped).name == f"step_{value['steps']:010d}"
    assert "stopping at the next safe point" in error

    process = start("pretrain", "--resume", stopped)
    reached = value["steps"]
    wait_for(process, lambda: read_metrics(stopped)[-1]["step"] >= reached + 700)
    process.kill()
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    resumed = finish("pretrain", "--resume", stopped)
    assert resumed["steps"] == 5000
    finish(*words, "--out", whole)
    assert_same_weights(stopped, whole)
    assert rows(stopped) == rows(whole)
    assert not list((Path(stopped) / "checkpoints").glob(".*"))


def test_practice_that_was_killed_goes_on_exactly(tmp_path, whole_pretraining):
    words = ("train", "--from", str(whole_pretraining), "--env-steps", "1500", "--warmup-steps",
             "60", "--checkpoint-every", "150", "--eval-episodes", "1", "--eval-every", "600")
    killed, whole = str(tmp_path / "killed"), str(tmp_path / "whole")
    process = start(*words, "--out", killed)
    wait_for(process, lambda: bool(list(Path(killed).glob("checkpoints/step_*"))))
    process.kill()
    process.communicate(timeout=60)
    process = start("train", "--resume", killed)
    steps = len(read_metrics(killed))
    wait_for(process, lambda: len(read_metrics(killed)) > steps + 3)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and json.loads(out.splitlines()[-1])["interrupted"] is True
    finish("train", "--resume", killed)
    finish(*words, "--out", whole)
    assert_no_step_twice(killed)
    assert_same_weights(killed, whole)
    assert_same_practice(killed, whole)
    assert rows(killed) == rows(whole)


# -- fine-tuning --------------------------------------------------------------------------------


def test_practice_starts_from_exactly_the_pretrained_policy(
    tmp_path, whole_pretraining, monkeypatch
):
    """There is no dip by construction: same weights, same optimiser, no update in the warm-up."""
    seen: list[dict[str, torch.Tensor]] = []
    real = online._episode

    def watching(practice):
        seen.append(practice.agent.state_dict())
        return real(practice)

    monkeypatch.setattr(online, "_episode", watching)
    train(train_config(tmp_path / "run", from_run=str(whole_pretraining), warmup_steps=90), REACH,
          quiet=True)
    pretrained = weights(whole_pretraining)
    assert all(torch.equal(seen[0][key], value) for key, value in pretrained.items())
    policy = [key for key in pretrained if "generator" not in key]
    for k in (1, 2):
        assert all(torch.equal(seen[k][key], pretrained[key]) for key in policy), k
    assert not all(torch.equal(seen[4][key], pretrained[key]) for key in policy)
    agent, _ = load_agent(whole_pretraining)
    env = make_env("Reach", "panda")
    observation, _ = env.reset(seed=0)
    again, _ = load_agent(find_checkpoint(whole_pretraining))
    assert np.array_equal(
        agent.act(observation["observation"], observation["desired_goal"], deterministic=True),
        again.act(observation["observation"], observation["desired_goal"], deterministic=True))
    env.close()


@pytest.mark.parametrize(("fraction", "data_given"), [(0.0, True), (0.25, True), (1.0, True),
                                                      (0.25, False)])
def test_batches_are_part_recorded_part_practised(
    tmp_path, whole_pretraining, monkeypatch, fraction, data_given
):
    batches: list[tuple[int, float]] = []
    real = online.update_block

    class Watching:
        def __init__(self, sampler):
            self.sampler = sampler

        def sample(self, size, rng):
            batch = self.sampler.sample(size, rng)
            practised = self.sampler.online.observations[:, :9]
            fresh = {row.tobytes() for row in practised}
            steps, recorded = len(self.sampler.online), len(self.sampler.offline)
            expected = size * min(fraction, steps / (steps + recorded))
            count = sum(row.tobytes() in fresh for row in batch["observation"])
            batches.append((count, expected if recorded else size))
            assert len(batch["reward"]) == size
            return batch

    def watching(agent, sampler, rng, count):
        return real(agent, Watching(sampler), rng, min(count, 3))

    monkeypatch.setattr(online, "update_block", watching)
    train(train_config(tmp_path / "run", from_run=str(whole_pretraining), env_steps=90,
                       online_fraction=fraction, data="" if data_given else "none"), REACH,
          quiet=True)
    # Rounded up or down, so that the mean over many batches is exact.
    assert batches and all(abs(count - expected) < 1.0 for count, expected in batches)


def test_updates_keep_up_with_the_steps_after_the_warm_up(tmp_path, whole_pretraining):
    before, _ = load_agent(whole_pretraining)
    train(train_config(tmp_path / "run", from_run=str(whole_pretraining), env_steps=150,
                       warmup_steps=60, updates_per_step=0.35), REACH, quiet=True)
    after, _ = load_agent(tmp_path / "run")
    # The episode that ends the warm-up counts as well.
    assert after.updates - before.updates == int(0.35 * 120)


# -- a task from elsewhere ----------------------------------------------------------------------


def door_demos(path: Path, episodes: int = 3, length: int = 30) -> str:
    rng = np.random.default_rng(0)
    count = episodes * length
    observations = rng.normal(0, 0.3, (count, 39))
    observations[length - 4 : length, 28] = 1.45
    np.savez(path, observations=observations, actions=rng.uniform(-1, 1, (count, 28)),
             rewards=rng.normal(size=count), episode_lengths=np.full(episodes, length))
    return str(path)


def check_both_stages(tmp_path: Path, demos: str) -> None:
    values = pretrain(
        PretrainConfig(agent="iql", data=demos, task="AdroitHandDoor-v1", steps=10,
                       out=str(tmp_path / "run")), agent_overrides=SMALL, quiet=True)
    assert values["steps"] == 10
    agent, info = load_agent(tmp_path / "run")
    assert (agent.observation_dim, agent.goal_dim, agent.action_dim) == (39, 0, 28)
    assert info.task == "AdroitHandDoor-v1"
    values = train(
        TrainConfig(from_run=str(tmp_path / "run"), env_steps=220, warmup_steps=200,
                    eval_episodes=1, updates_per_step=0.1, out=str(tmp_path / "practice")),
        EnvChoice(), quiet=True)
    assert values["env_steps"] == 220 and values["success_rate"] in (0.0, 1.0)
    _, practised = load_dataset(tmp_path / "practice" / "practice")
    assert [len(e) for e in practised] == [200, 20]
    assert set(np.unique(np.concatenate([e.reward for e in practised]))) <= {-1.0, 0.0}


@pytest.mark.filterwarnings("ignore")
def test_demonstrations_of_a_task_from_elsewhere(tmp_path):
    pytest.importorskip("gymnasium_robotics")
    check_both_stages(tmp_path, door_demos(tmp_path / "demos.npz"))


@pytest.mark.filterwarnings("ignore")
def test_the_human_demonstrations_of_the_door(tmp_path):
    pytest.importorskip("gymnasium_robotics")
    given = os.environ.get("ROBOT_RL_DOOR_DEMOS")
    if not given:
        pytest.skip("set ROBOT_RL_DOOR_DEMOS to the file of the human demonstrations")
    demos = Path(given)
    from robot_rl.envs.external import apply_rule

    _, episodes = load_dataset(demos)
    done = apply_rule("AdroitHandDoor-v1", episodes)
    assert len(done) == 25 and sum(len(e) for e in done) == 6729 - 25
    # Most people stopped between 1 rad and the rule's 1.4 rad.
    assert sum(bool(e.success.any()) for e in done) == 6
    assert all(e.observation[:, 28].max() > 1.0 for e in done)
    check_both_stages(tmp_path, str(demos))


# -- learning -----------------------------------------------------------------------------------


def success(run: str | Path, choice: EnvChoice, episodes: int) -> float:
    env = choice.make()
    try:
        agent, _ = load_agent(run)
        return evaluate(env, AgentPolicy(agent), episodes, seed=5).success_rate
    finally:
        env.close()


def test_offline_learning_beats_its_mediocre_data(tmp_path):
    recorded = collect(CollectConfig(quality=0.3, episodes=100, out=str(tmp_path / "data")), REACH,
                       quiet=True)["success_rate"]
    assert 0.1 < recorded < 0.5
    pretrain(PretrainConfig(agent="iql", data=str(tmp_path / "data"), steps=3500,
                            out=str(tmp_path / "run")),
             quiet=True)
    assert success(tmp_path / "run", REACH, 40) >= recorded + 0.3


@pytest.mark.slow
def test_data_then_offline_then_practice_learns_to_push(tmp_path):
    env = EnvChoice(task="Push", robot="sawyer")
    recorded = collect(CollectConfig(quality=0.5, episodes=300, out=str(tmp_path / "data")), env,
                       quiet=True)
    pretrain(PretrainConfig(agent="iql", data=recorded["path"], steps=10_000,
                            out=str(tmp_path / "offline")), quiet=True)
    offline = success(tmp_path / "offline", env, 100)
    assert offline > recorded["success_rate"]
    train(TrainConfig(from_run=str(tmp_path / "offline"), env_steps=10_000,
                      out=str(tmp_path / "online")), env, quiet=True)
    assert success(tmp_path / "online", env, 100) >= 0.9


@pytest.mark.slow
def test_practice_does_not_lose_what_was_pretrained(tmp_path):
    env = EnvChoice(task="PickPlace", robot="panda")
    recorded = collect(CollectConfig(quality=0.5, episodes=300, out=str(tmp_path / "data")), env,
                       quiet=True)
    pretrain(PretrainConfig(agent="iql", data=recorded["path"], steps=10_000,
                            out=str(tmp_path / "offline")), quiet=True)
    before = success(tmp_path / "offline", env, 100)
    assert before >= 0.85
    train(TrainConfig(from_run=str(tmp_path / "offline"), env_steps=4_000, eval_every=1_000,
                      eval_episodes=100, out=str(tmp_path / "online")), env, quiet=True)
    scores = [row["eval/success_rate"] for row in read_metrics(tmp_path / "online")
              if "eval/success_rate" in row]
    # With half of every batch from the first episodes of practice, 0.97 fell to 0.79 here.
    assert len(scores) == 4 and min(scores) >= before - 0.1, (before, scores)
