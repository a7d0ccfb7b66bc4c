"""From recorded data on disk to a replay buffer: what pretraining and practice both read."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from robot_rl.agents.base import Agent
from robot_rl.data import DatasetInfo, Episode, Relabelling, Replay, load_dataset, open_log
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
    if (path / "dataset.json").is_file() and not list(path.glob("episodes/*.npz")):
        log = open_log(path)
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


def load_replay(
    data: str | Path, task: str, relabelling: Relabelling, discount: float
) -> Replay:
    """The replay buffer of recorded episodes, with the rewards of ``task``.

    Raises:
        InvalidInputError: the data cannot be read, or its goals cannot be relabelled.
    """
    info = recorded_info(data)
    relabelled = relabelling.changes_goals
    reward, terminate = goal_functions(task, info, ends=relabelled and _terminates(data))
    if not relabelled:
        reward = None

    def prepare(episodes: list[Episode]) -> list[Episode]:
        return apply_rule(task, episodes)

    _, replay = open_replay(
        data, discount=discount, relabelling=relabelling, reward=reward, terminate=terminate,
        prepare=prepare if is_external(task) and rule_for(task) is not None else None,
    )
    return replay


def _terminates(data: str | Path) -> bool:
    """Whether any recorded episode ended by itself rather than by running out of time."""
    if not Path(data).is_dir():
        return False
    log = open_log(data)
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
