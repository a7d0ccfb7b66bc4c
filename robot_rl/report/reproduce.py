"""The command lines that do again what a run's configuration says."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from robot_rl.agents import AGENTS, config_class
from robot_rl.data import Relabelling
from robot_rl.envs.external import is_external
from robot_rl.training.collect import CollectConfig
from robot_rl.training.offline import PretrainConfig
from robot_rl.training.online import TrainConfig
from robot_rl.training.setup import EnvChoice, default_relabelling


def collect_command(dataset: str) -> str:
    """How a recorded dataset was made, or nothing where it does not say."""
    try:
        info = json.loads((Path(dataset) / "dataset.json").read_bytes())
        config, env = info["config"], info["env"]
        if "policy" not in config:
            return ""
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    words = ["robot-rl", "collect", "--task", str(info.get("task", ""))]
    words += _flags(EnvChoice, env, skip=("task",))
    words += _flags(CollectConfig, config, always=("episodes", "seed"))
    return shlex.join(words)


def run_command(config: Mapping[str, Any]) -> str:
    """The ``pretrain`` or ``train`` command of a run's ``config.json``."""
    kind = config["kind"]
    own: Mapping[str, Any] = config[kind]
    words = ["robot-rl", kind]
    agent = str(own.get("agent") or config.get("agent_name") or "")
    if kind == "pretrain":
        words += _flags(PretrainConfig, own, always=("agent", "data", "steps", "seed", "out"))
    else:
        skip = ("agent",) if own.get("from_run") else ()
        words += _flags(TrainConfig, own, always=("env_steps", "seed", "out"), skip=skip)
        env = _mapping(config.get("env"))
        words += _flags(EnvChoice, env, always=("task",) if not own.get("from_run") else (),
                        skip=("task",) if own.get("from_run") else ())
    options = _mapping(config.get("agent"))
    if agent in AGENTS and not own.get("from_run"):
        words += _flags(config_class(agent), options)
    shares = _mapping(config.get("relabelling"))
    task = str(_mapping(config.get("env")).get("task", ""))
    usual = dataclasses.asdict(default_relabelling(agent, 0 if is_external(task) else 1))
    used = {name: shares[name] for name in Relabelling.NAMES if shares.get(name)}
    if used and used != {name: usual[name] for name in Relabelling.NAMES if usual[name]}:
        if shares.get("geometric"):
            used["geometric_discount"] = shares.get("geometric_discount", 0.99)
        words += _flags(Relabelling, used, prefix="relabel-", always=Relabelling.NAMES)
    return shlex.join(words)


def evaluation_command(folder: Path, env: EnvChoice, episodes: int, seed: int) -> str:
    """How to evaluate a run's newest checkpoint."""
    words = ["robot-rl", "eval", "--checkpoint", str(folder), "--episodes", str(episodes),
             "--seed", str(seed)]
    return shlex.join(words + _flags(EnvChoice, env.as_dict(), skip=("task",)))


def _flags(
    config: type[Any],
    values: Mapping[str, Any],
    *,
    always: Iterable[str] = (),
    skip: Iterable[str] = (),
    prefix: str = "",
) -> list[str]:
    """Those of ``values`` that are not the defaults of a configuration class, as flags."""
    words: list[str] = []
    for field in dataclasses.fields(config):
        if field.name not in values or field.name in skip:
            continue
        value = values[field.name]
        default = field.default
        if default is dataclasses.MISSING:
            default = (None if field.default_factory is dataclasses.MISSING
                       else field.default_factory())
        # JSON has no tuples.
        same = value == (list(default) if isinstance(default, tuple) else default)
        if (same and field.name not in always) or value in ("", [], {}):
            continue
        words.append(field.metadata.get("flag", "--" + prefix + field.name.replace("_", "-")))
        words += _words(value)
    return words


def _words(value: Any) -> list[str]:
    if isinstance(value, bool):
        return ["true" if value else "false"]
    if value is None:
        return ["none"]
    if isinstance(value, Mapping):
        return [f"{name}={number}" for name, number in value.items()]
    if isinstance(value, (list, tuple)):
        return [str(item) for item in value]
    return [str(value)]


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
