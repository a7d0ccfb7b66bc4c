"""From recorded data on disk to a replay buffer: what pretraining and practice both read."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from robot_rl.agents.base import Agent
from robot_rl.data import (
    DatasetInfo,
    Episode,
    Log,
    Relabelling,
    Replay,
    load_dataset,
    open_log,
)
from robot_rl.data.log import read_format
from robot_rl.data.relabel import LatentReward, RewardFunction, TerminateFunction
from robot_rl.data.view import open_replay
from robot_rl.envs.external import apply_rule, is_external, rule_for
from robot_rl.envs.tasks import make_task
from robot_rl.errors import InvalidInputError

# What was imported from elsewhere lies under this name in a run's folder.
IMPORTED = "data"


def recorded_info(data: str | Path) -> DatasetInfo:
    """What recorded episodes are of.

    Raises:
        InvalidInputError: they cannot be read, or there are none, or none with a state.
    """
    path = Path(data)
    log = find_log(path)
    if log is not None:
        info = log.info
        if not log.files:
            raise InvalidInputError(f"dataset: {path} holds no episodes")
    else:
        from robot_rl.data.importers import detect

        kind = detect(path) if path.exists() and not (path / "dataset.json").is_file() else None
        if kind not in (None, "npz"):
            raise InvalidInputError(
                f"{path} looks like {kind} data; import it with `robot-rl data import {path} --out "
                "DIR`, or give it to `robot-rl pretrain`"
            )
        info = load_dataset(path)[0]
    if len(info.observation_shape) != 1 or info.observation_shape[0] == 0:
        raise InvalidInputError(
            f"agents learn from state observations; {data} has observations of shape "
            f"{info.observation_shape}"
        )
    return info


def goal_functions(
    task: str, info: DatasetInfo | None, *, ends: bool = False
) -> tuple[RewardFunction | None, TerminateFunction | None]:
    """How goals are rewarded and, with ``ends``, when they end an episode.

    That is the task's own way; for data without a task of ours, being within the distance
    ``goal_threshold`` of its ``config``. None where there is neither.
    """
    if task and not is_external(task):
        known = make_task(task)
        return known.reward, known.success if ends else None
    threshold = info.config.get("goal_threshold") if info is not None else None
    if isinstance(threshold, int | float) and 0.0 < threshold < np.inf:
        rule = LatentReward(float(threshold))
        return rule, rule.reached if ends else None
    return None, None


def goal_options(
    data: str | Path, task: str, relabelling: Relabelling
) -> dict[str, RewardFunction | TerminateFunction | None]:
    """Options ``reward`` and ``terminate`` of the buffers of a run, recorded and practised alike.

    Episodes end at relabelled goals if any recorded one ended by itself.
    """
    if not relabelling.changes_goals:
        return {"reward": None, "terminate": None}
    info = recorded_info(data) if data else None
    reward, terminate = goal_functions(task, info, ends=bool(data) and _terminates(data))
    return {"reward": reward, "terminate": terminate}


def load_replay(
    data: str | Path,
    task: str,
    relabelling: Relabelling,
    discount: float,
    *,
    episodes: int | None = None,
) -> Replay:
    """The replay buffer of recorded episodes, with the rewards of ``task``.

    ``episodes`` takes only the first so many, as there were when a run began.

    Raises:
        InvalidInputError: the data cannot be read, its goals cannot be relabelled, or it has
            fewer episodes.
    """
    options = {"discount": discount, "relabelling": relabelling,
               **goal_options(data, task, relabelling)}
    by_rule = is_external(task) and rule_for(task) is not None

    def prepare(given: list[Episode]) -> list[Episode]:
        return apply_rule(task, given)

    log = find_log(data)
    if episodes is not None and log is not None and len(log) != episodes:
        if len(log) < episodes:
            raise InvalidInputError(
                f"dataset: {data} holds {len(log)} episodes; {episodes} were there when the run "
                "began"
            )
        info = log.info
        replay = Replay(info.observation_shape[0], info.goal_dim, info.action_dim,
                        **options)  # type: ignore[arg-type]
        first = (log.read(file, images=False) for file in log.files[:episodes])
        return replay.add_all(apply_rule(task, [one])[0] if by_rule else one for one in first)
    _, replay = open_replay(data, prepare=prepare if by_rule else None,
                            **options)  # type: ignore[arg-type]
    return replay


def recorded_episodes(trainer: dict[str, Any]) -> int | None:
    """How many recorded episodes there were at a checkpoint, as far as it says."""
    count = trainer.get("data_episodes")
    return count if isinstance(count, int) and count > 0 else None


def find_log(data: str | Path) -> Log | None:
    """The log in folder ``data``, or None for data of another kind."""
    path = Path(data)
    if not (path / "dataset.json").is_file() or read_format(path) == 1:
        return None
    return open_log(path)


def _terminates(data: str | Path) -> bool:
    """Whether any recorded episode ended by itself rather than by running out of time."""
    log = find_log(data)
    if log is None:
        return any(bool(episode.terminated.any()) for episode in load_dataset(data)[1])
    return any(log.summary(file).get("ended") == "terminated" for file in log.files)


def fit_normalizer(agent: Agent, replay: Replay) -> None:
    """Set the agent's normalisation to every state's observation and achieved goal and every
    episode's desired one."""
    agent.fit_normalizer(replay.observations, replay.distinct_goals if agent.goal_dim else None)


@contextlib.contextmanager
def imported(
    data: str, out: str, *, mapping: str, rate_hz: float, task: str, quiet: bool
) -> Iterator[Path | None]:
    """Data from elsewhere, imported into a folder beside ``out`` that is gone afterwards unless it
    was moved; None where ``data`` can be read as it is."""
    from robot_rl.data.importers import detect, import_dataset

    if not Path(data).exists():
        raise InvalidInputError(f"dataset: {data} does not exist")
    kind = None if (Path(data) / "dataset.json").is_file() else detect(data)
    if kind is None or (kind == "npz" and not mapping):
        if mapping or rate_hz:
            raise InvalidInputError(
                f"--map and --rate are for data from elsewhere; {data} is read as it is"
            )
        yield None
        return
    beside = Path(out).with_name(f".{Path(out).name}.import")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        import_dataset(kind, data, beside, mapping=mapping or None, rate_hz=rate_hz, task=task,
                       quiet=quiet)
        yield beside
    finally:
        shutil.rmtree(beside, ignore_errors=True)
