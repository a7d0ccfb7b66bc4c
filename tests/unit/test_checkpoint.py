"""Checkpoints: exact, whole or not there, and refused where they are not what they say."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from robot_rl.agents import AGENTS, make_agent
from robot_rl.agents.base import Batch
from robot_rl.errors import InvalidInputError, RobotRLError
from robot_rl.training import checkpoint as module
from robot_rl.training.checkpoint import (
    describe,
    find_checkpoint,
    list_checkpoints,
    load_agent,
    read_info,
    read_trainer,
    restore_generator,
    save_checkpoint,
)

SIZES = {"observation_dim": 5, "goal_dim": 2, "action_dim": 3}


def trained(name: str = "iql", updates: int = 3, seed: int = 0):
    agent = make_agent(name, **SIZES, config={"hidden_dims": (16, 16)}, seed=seed)
    rng = np.random.default_rng(0)
    agent.fit_normalizer(rng.normal(1, 2, (50, 5)), rng.normal(0, 3, (50, 2)))
    learn(agent, updates)
    return agent


def learn(agent, updates: int, seed: int = 1) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(updates):
        agent.update(Batch.from_numpy({
            "observation": rng.normal(size=(32, 5)), "goal": rng.normal(size=(32, 2)),
            "action": rng.uniform(-1, 1, (32, 3)), "reward": rng.normal(size=32),
            "next_observation": rng.normal(size=(32, 5)), "discount": np.full(32, 0.9)}))


def info_of(agent, **changes):
    return describe(agent, **{"task": "Push", "env": {"robot": "panda"}, "seed": 0, **changes})


def same_state(one, two) -> bool:
    first, second = one.state_dict(), two.state_dict()
    return first.keys() == second.keys() and all(
        torch.equal(first[k], second[k]) for k in first)


@pytest.fixture
def saved(tmp_path) -> Path:
    agent = trained()
    return save_checkpoint(tmp_path / "run" / "checkpoints", 100, agent, info_of(agent),
                           {"step": 100, "rng": {}})


# -- exact --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(AGENTS))
def test_an_agent_goes_on_from_its_checkpoint_bit_for_bit(tmp_path, name):
    agent = trained(name)
    noisy = np.random.default_rng(3).normal(size=(4, 5)), np.zeros((4, 2))
    agent.act(*noisy)
    folder = save_checkpoint(tmp_path, 3, agent, info_of(agent))
    again, info = load_agent(folder)
    assert (info.agent, info.task, info.env) == (name, "Push", {"robot": "panda"})
    assert same_state(agent, again) and again.updates == 3
    for _ in range(2):
        assert np.array_equal(agent.act(*noisy), again.act(*noisy)), "the same noise, too"
    learn(agent, 4, seed=9)
    learn(again, 4, seed=9)
    assert same_state(agent, again)


def test_the_two_newest_are_kept(tmp_path):
    agent = trained()
    for step in (5, 90, 1000, 12_000_000_000):
        save_checkpoint(tmp_path, step, agent, info_of(agent))
    names = [p.name for p in list_checkpoints(tmp_path)]
    assert names == ["step_0000001000", "step_12000000000"]
    assert find_checkpoint(tmp_path).name == "step_12000000000"
    for step in (12_000_000_001, 12_000_000_002):
        save_checkpoint(tmp_path, step, agent, info_of(agent), keep=3)
    assert len(list_checkpoints(tmp_path)) == 3


def test_a_step_can_be_written_again(tmp_path):
    agent = trained()
    for _ in range(2):
        learn(agent, 1)
        save_checkpoint(tmp_path, 7, agent, info_of(agent))
        assert same_state(load_agent(tmp_path)[0], agent)
    assert [p.name for p in tmp_path.iterdir()] == ["step_0000000007"]


@pytest.mark.parametrize("place", ["save", "config", "fsync", "replace"])
@pytest.mark.parametrize("step", [100, 200])
def test_a_disk_that_fails_leaves_what_was_there(saved, monkeypatch, place, step):
    folder = saved.parent
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    agent = trained(seed=5)

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if place == "save":
        monkeypatch.setattr(module, "save_file", full)
    elif place == "config":
        monkeypatch.setattr(Path, "write_text", full)
    elif place == "fsync":
        monkeypatch.setattr(module.os, "fsync", full)
    else:
        real = os.replace

        def only_moving_in_fails(source, target):
            if "step_" in Path(target).name and ".old" not in Path(target).name:
                if ".old" not in Path(source).name:
                    full()
            real(source, target)

        monkeypatch.setattr(module.os, "replace", only_moving_in_fails)
    with pytest.raises(RobotRLError, match=rf"cannot write the checkpoint .*step_0000000{step}"
                                           ".*No space left on device"):
        save_checkpoint(folder, step, agent, info_of(agent))
    monkeypatch.undo()
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before
    assert [p.name for p in folder.iterdir()] == ["step_0000000100"]
    load_agent(folder)


def test_what_a_crash_left_over_is_ignored_and_cleared(saved):
    part = saved.parent / ".step_0000000200.4711.part"
    shutil.copytree(saved, part)
    (saved.parent / "step_notes").mkdir()
    assert find_checkpoint(saved.parent) == saved
    agent = trained()
    save_checkpoint(saved.parent, 300, agent, info_of(agent))
    assert not part.exists() and (saved.parent / "step_notes").exists()


# -- paths --------------------------------------------------------------------------------------


def test_a_run_a_checkpoint_and_a_file_all_mean_the_checkpoint(saved):
    run = saved.parent.parent
    for path in (run, run / "checkpoints", saved, saved / "agent.safetensors", str(run) + "/"):
        assert find_checkpoint(path) == saved
    relative = Path(os.path.relpath(run))
    assert find_checkpoint(relative).resolve() == saved


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nowhere", "nowhere does not exist; give a run folder, a checkpoint folder or its"),
        ("run/checkpoints/step_0000000100/agent.json", "agent.json holds no agent.safetensors"),
        ("empty", "empty holds no agent.safetensors"),
    ],
)
def test_a_path_without_a_checkpoint_is_named(tmp_path, saved, path, message):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidInputError, match=message):
        find_checkpoint(tmp_path / path)


# -- damage -------------------------------------------------------------------------------------


def test_weights_cut_anywhere_are_refused(saved):
    file = saved / "agent.safetensors"
    good = file.read_bytes()
    for cut in (0, 1, 7, 8, 9, 100, len(good) // 2, len(good) - 1):
        file.write_bytes(good[:cut])
        with pytest.raises(InvalidInputError, match=r"agent.safetensors is damaged"):
            load_agent(saved)
    file.write_bytes(good + b"\0")
    with pytest.raises(InvalidInputError, match=r"agent.safetensors is damaged"):
        load_agent(saved)
    file.write_bytes(good)
    load_agent(saved)


def test_a_byte_changed_anywhere_is_noticed(saved):
    file = saved / "agent.safetensors"
    good = file.read_bytes()
    rng = np.random.default_rng(0)
    header = int.from_bytes(good[:8], "little")
    places = [*range(8), *rng.integers(8, 8 + header, 40), *rng.integers(8, len(good), 60)]
    for place in places:
        raw = bytearray(good)
        raw[place] ^= int(rng.integers(1, 256))
        file.write_bytes(bytes(raw))
        with pytest.raises(InvalidInputError, match=r"checkpoint: .*agent.safetensors"):
            load_agent(saved)


def edit(saved: Path, **changes) -> None:
    raw = json.loads((saved / "agent.json").read_text())
    (saved / "agent.json").write_text(json.dumps({**raw, **changes}))


def replace_weights(saved: Path, change) -> None:
    """Other weights, and no checksum that would give them away."""
    state = load_file(saved / "agent.safetensors")
    save_file(change(state), saved / "agent.safetensors")
    edit(saved, sha256="")


def test_a_checkpoint_without_a_checksum_is_read(saved):
    expected = load_agent(saved)[0]
    edit(saved, sha256="")
    assert same_state(load_agent(saved)[0], expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {"model.weight": torch.zeros(3)}, "does not fit: .*lacks .*model.weight"),
        (lambda s: {k: v for k, v in s.items() if k != "updates"}, "does not fit: .*lacks updates"),
        (lambda s: {**s, "extra": torch.zeros(1)}, "does not fit: .*unknown keys extra"),
        (lambda s: {**s, "updates": torch.zeros(2, dtype=torch.int64)}, "does not fit: .*updates"),
        (lambda s: {**s, "updates": torch.zeros(())}, "does not fit: .*updates.*float32"),
        (lambda s: {k: v * torch.nan if v.is_floating_point() else v for k, v in s.items()},
         "holds values that are not finite"),
        (lambda s: {**s, "generator.act": torch.zeros_like(s["generator.act"])}, "does not fit"),
    ],
)
def test_foreign_weights_are_refused(saved, change, message):
    replace_weights(saved, change)
    with pytest.raises(InvalidInputError, match=message) as caught:
        load_agent(saved)
    assert str(saved) in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"agent": "iqn"}, "unknown agent 'iqn' .did you mean 'iql'.*valid: bc, iql, awac"),
        ({"agent": ["iql"]}, "does not describe an agent .agent is"),
        ({"agent": "awac"}, "does not fit"),
        ({"observation_dim": 6}, "does not fit"),
        ({"observation_dim": 0}, "does not fit: observation_dim is 0"),
        ({"observation_dim": "five"}, "does not fit: observation_dim is 'five'"),
        ({"goal_dim": 0}, "does not fit"),
        ({"action_dim": -1}, "does not fit"),
        ({"config": {"hidden_dims": [8, 8]}}, "does not fit"),
        ({"config": {"hidden_dims": "wide"}}, "does not fit: hidden_dims"),
        ({"config": {"width": 8}}, "does not fit: unknown iql option 'width'"),
        ({"config": [1]}, "does not describe an agent .config is"),
        ({"task": 5}, "does not describe an agent .task is 5"),
        ({"env": None}, "does not describe an agent .env is None"),
        ({"seed": "x"}, "does not describe an agent .seed is 'x'"),
        ({"format": 2}, "has format 2, this version reads 1"),
        ({"more": 1}, "does not describe an agent"),
        ({"sha256": "0" * 64}, "does not match the checksum in agent.json"),
    ],
)
def test_a_description_of_something_else_is_refused(saved, changes, message):
    edit(saved, **changes)
    with pytest.raises(InvalidInputError, match=message):
        load_agent(saved)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe{}", b"[" * 100_000, b"[]", b"3"])
def test_a_damaged_description_is_named(saved, content):
    (saved / "agent.json").write_bytes(content)
    with pytest.raises(InvalidInputError, match=r"checkpoint: .*agent.json"):
        read_info(saved)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "trainer.json is not valid JSON"),
        ("[]", "trainer.json is not an object"),
        ('{"step": 1}', "trainer.json has rng None"),
        ('{"step": "1", "rng": {}}', "trainer.json has step '1'"),
    ],
)
def test_where_training_stood_is_checked(saved, content, message):
    assert read_trainer(saved, {"step": int})["step"] == 100
    (saved / "trainer.json").write_text(content)
    with pytest.raises(InvalidInputError, match=message):
        read_trainer(saved, {"step": int})
    (saved / "trainer.json").unlink()
    with pytest.raises(InvalidInputError, match=r"trainer.json does not exist"):
        read_trainer(saved, {})


@pytest.mark.parametrize("change", [{"bit_generator": "MT19937"}, {"state": {"state": "x"}}, {}])
def test_a_generators_state_is_checked(change):
    rng = np.random.default_rng(0)
    good = rng.bit_generator.state
    restore_generator(np.random.default_rng(9), json.loads(json.dumps(good)), "here")
    with pytest.raises(InvalidInputError, match=r"here: trainer.json holds no generator's state"):
        restore_generator(rng, {**good, **change} if change else {}, "here")
