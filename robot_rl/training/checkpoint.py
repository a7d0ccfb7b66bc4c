"""Agents on disk: weights as safetensors, configuration as JSON. Nothing is unpickled.

A checkpoint is a folder with ``agent.safetensors``, ``agent.json`` and, for a run that can go on,
``trainer.json``. It is written beside its place and renamed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from robot_rl.agents import AGENTS, make_agent
from robot_rl.agents.base import Agent
from robot_rl.data.files import read_json, sync_folder
from robot_rl.errors import InvalidInputError, RobotRLError, unknown_name

FORMAT = 1
WEIGHTS, CONFIG, TRAINER = "agent.safetensors", "agent.json", "trainer.json"
_PREFIX = "step_"


@dataclass
class AgentInfo:
    """What is needed to build the agent again, and what it was trained for.

    ``sha256`` is of the weights' file; where it is given, the file has to match.
    """

    agent: str
    observation_dim: int
    goal_dim: int
    action_dim: int
    config: dict[str, Any]
    task: str = ""
    env: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    sha256: str = ""
    format: int = FORMAT


def describe(agent: Agent, *, task: str, env: dict[str, Any], seed: int) -> AgentInfo:
    """The description that :func:`save_checkpoint` stores beside the weights."""
    return AgentInfo(
        agent=agent.name,
        observation_dim=agent.observation_dim,
        goal_dim=agent.goal_dim,
        action_dim=agent.action_dim,
        config=dataclasses.asdict(agent.config),
        task=task,
        env=env,
        seed=seed,
    )


def save_checkpoint(
    folder: Path, step: int, agent: Agent, info: AgentInfo, trainer: dict[str, Any] | None = None,
    *, keep: int = 2,
) -> Path:
    """Write ``folder/step_<step>`` whole or not at all; keep the ``keep`` newest.

    Raises:
        RobotRLError: the disk refuses; what was there is untouched.
    """
    target = folder / f"{_PREFIX}{step:010d}"
    beside = folder / f".{target.name}.{os.getpid()}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for stale in folder.glob(f".{_PREFIX}*.part"):
            shutil.rmtree(stale, ignore_errors=True)
        beside.mkdir()
        save_file(agent.state_dict(), beside / WEIGHTS)
        info = dataclasses.replace(info, sha256=_digest(beside / WEIGHTS))
        (beside / CONFIG).write_text(json.dumps(asdict(info), indent=2) + "\n")
        if trainer is not None:
            (beside / TRAINER).write_text(json.dumps(trainer) + "\n")
        for file in beside.iterdir():
            with open(file, "rb") as handle:
                os.fsync(handle.fileno())
        sync_folder(beside)
        _exchange(beside, target)
        sync_folder(folder)
        for old in list_checkpoints(folder)[:-keep]:
            shutil.rmtree(old)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(beside, ignore_errors=True)
        raise RobotRLError(f"cannot write the checkpoint {target}: {error}") from None
    return target


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints of a folder, oldest first."""
    found = (p for p in folder.glob(f"{_PREFIX}*") if p.name.removeprefix(_PREFIX).isdecimal())
    return sorted((p for p in found if p.is_dir()), key=lambda p: int(p.name[len(_PREFIX):]))


def _exchange(beside: Path, target: Path) -> None:
    """Put ``beside`` in the place of ``target``, which stays where that fails."""
    if not target.exists():
        os.replace(beside, target)
        return
    old = beside.with_name(f".{target.name}.old.part")
    os.replace(target, old)
    try:
        os.replace(beside, target)
    except OSError:
        os.replace(old, target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def find_checkpoint(path: str | Path) -> Path:
    """The checkpoint folder meant by a run folder, a checkpoint folder or its weights file.

    Raises:
        InvalidInputError: there is none.
    """
    path = Path(path)
    if path.is_file() and path.name == WEIGHTS:
        path = path.parent
    if (path / WEIGHTS).is_file():
        return path
    for folder in (path / "checkpoints", path):
        found = list_checkpoints(folder) if folder.is_dir() else []
        if found:
            return found[-1]
    if (path / "config.json").is_file():
        raise InvalidInputError(
            f"checkpoint: the run {path} was stopped before its first checkpoint; run it again "
            "with --overwrite, which sets this one aside"
        )
    what = "does not exist" if not path.exists() else f"holds no {WEIGHTS}"
    raise InvalidInputError(
        f"checkpoint: {path} {what}; give a run folder, a checkpoint folder or its {WEIGHTS}"
    )


def read_info(path: str | Path) -> AgentInfo:
    """The description of a checkpoint.

    Raises:
        InvalidInputError: it is missing, damaged, or of an agent this version does not know.
    """
    folder = find_checkpoint(path)
    raw = read_json(folder / CONFIG, "checkpoint")
    try:
        info = AgentInfo(**raw)
        kinds = {"agent": str, "config": dict, "task": str, "env": dict, "seed": int,
                 "sha256": str}
        for name, kind in kinds.items():
            if not isinstance(getattr(info, name), kind):
                raise TypeError(f"{name} is {getattr(info, name)!r}")
    except TypeError as error:
        raise InvalidInputError(
            f"checkpoint: {folder / CONFIG} does not describe an agent ({error})"
        ) from None
    if info.format != FORMAT:
        raise InvalidInputError(
            f"checkpoint: {folder} has format {info.format}, this version reads {FORMAT}"
        )
    if info.agent not in AGENTS:
        raise unknown_name("agent", info.agent, AGENTS)
    return info


def load_agent(path: str | Path, *, device: str = "cpu") -> tuple[Agent, AgentInfo]:
    """Build the agent of a checkpoint and restore it, bit for bit.

    Raises:
        InvalidInputError: the checkpoint is missing, damaged or of something else.
    """
    folder = find_checkpoint(path)
    info = read_info(folder)
    try:
        damaged = info.sha256 and _digest(folder / WEIGHTS) != info.sha256
        state = load_file(folder / WEIGHTS)
    except (SafetensorError, OSError, ValueError) as error:
        raise InvalidInputError(f"checkpoint: {folder / WEIGHTS} is damaged: {error}") from None
    if damaged:
        raise InvalidInputError(
            f"checkpoint: {folder / WEIGHTS} is damaged: its content does not match the checksum "
            f"in {CONFIG}"
        )
    try:
        agent = make_agent(
            info.agent,
            observation_dim=info.observation_dim,
            goal_dim=info.goal_dim,
            action_dim=info.action_dim,
            config=info.config,
            seed=info.seed,
            device=device,
        )
        agent.load_state_dict(state)
    except (InvalidInputError, TypeError, RuntimeError) as error:
        raise InvalidInputError(f"checkpoint: {folder} does not fit: {error}") from None
    for name, tensor in state.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise InvalidInputError(
                f"checkpoint: {folder}: {name} holds values that are not finite"
            )
    return agent, info


def read_trainer(path: str | Path, kinds: dict[str, type | tuple[type, ...]]) -> dict[str, Any]:
    """Where training stood at a checkpoint: values of these names and kinds, and ``rng``.

    Raises:
        InvalidInputError: the checkpoint was not left by a run that can go on.
    """
    value = read_json(find_checkpoint(path) / TRAINER, "checkpoint")
    if not isinstance(value, dict):
        raise InvalidInputError(f"checkpoint: {path}: {TRAINER} is not an object")
    for name, kind in {**kinds, "rng": dict}.items():
        if not isinstance(value.get(name), kind):
            raise InvalidInputError(
                f"checkpoint: {path}: {TRAINER} has {name} {value.get(name)!r}"
            )
    return value


def restore_generator(rng: np.random.Generator, state: dict[str, Any], where: object) -> None:
    """Put a generator back to a state that was read from a file.

    Raises:
        InvalidInputError: it is no state of such a generator.
    """
    try:
        rng.bit_generator.state = state
    except (TypeError, ValueError, KeyError, OverflowError) as error:
        raise InvalidInputError(
            f"checkpoint: {where}: {TRAINER} holds no generator's state ({error})"
        ) from None
