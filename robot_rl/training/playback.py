"""Plays recorded actions again, in the world they were recorded in or in another.

Where a recording says how its episode began (ours do), the simulated world is put there first;
elsewhere an episode begins as the task draws it. On hardware the actions pass the safety filter
like any others.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from robot_rl.data import Episode
from robot_rl.envs.robot_env import RobotEnv
from robot_rl.errors import InvalidInputError
from robot_rl.interfaces import Placement
from robot_rl.training.evaluate import HELD_OUT, EvalResult, run_episode, summarise, unwrap


class RecordedPolicy:
    """Gives the actions (T, a) of one episode in turn."""

    def __init__(self, actions: NDArray[Any]) -> None:
        self._actions, self._step = actions, 0

    def reset(self) -> None:
        self._step = 0

    def act(self, observation: dict[str, NDArray[Any]]) -> NDArray[Any]:
        action = self._actions[self._step]
        self._step += 1
        return np.asarray(action)


def play_back(
    env: gymnasium.Env[Any, Any], episodes: Iterable[Episode], seed: int
) -> tuple[EvalResult, dict[str, Any]]:
    """Play the actions that were asked for in every episode.

    Returns:
        What came of it, and ``recorded_success_rate``, ``final_difference`` (mean distance between
        the goals that the recording and the replay ended at; None for tasks without goals) and
        ``restored``, the episodes that began as recorded.

    Raises:
        InvalidInputError: the recording's actions or goals are not the environment's.
    """
    inner = unwrap(env)
    played, infos, recorded, differences, restored = [], [], [], [], 0
    for number, episode in enumerate(episodes):
        if env.action_space.shape != episode.action.shape[1:]:
            raise InvalidInputError(
                f"the recording has actions of {episode.action.shape[1]} numbers, the environment "
                f"takes {env.action_space.shape}"
            )
        options = {} if inner is None else beginning_of(episode, inner)
        # What was asked for meets the same filter; what was executed would be limited once more.
        actions = episode.action if episode.requested is None else episode.requested
        again, info = run_episode(env, RecordedPolicy(actions), options=options,
                                  seed=HELD_OUT + 10_000 * seed + number, max_steps=len(episode))
        restored += "start" in options
        played.append(again)
        infos.append(info)
        recorded.append(bool(episode.success[-1]))
        if again.achieved.shape[1] and again.achieved.shape[1] == episode.achieved.shape[1]:
            gap = again.achieved[-1] - episode.achieved[-1]
            differences.append(float(np.linalg.norm(gap)))
    more = {
        "recorded_success_rate": float(np.mean(recorded)),
        "final_difference": float(np.mean(differences)) if differences else None,
        "restored": restored,
    }
    return summarise(played, infos), more


def beginning_of(episode: Episode, env: RobotEnv) -> dict[str, Any]:
    """Options of ``reset`` with which ``env`` begins as ``episode`` did, as far as it is known."""
    options: dict[str, Any] = {}
    goal = episode.metadata.get("goal")
    if goal is None and len(episode.desired) == env.goal_dim:
        goal = episode.desired
    if goal is not None and env.goal_dim:
        options["goal"] = np.asarray(goal, dtype=np.float64)
    if episode.metadata.get("start") is not None and env.rig.scene is not None:
        options["start"] = Placement.from_dict(episode.metadata["start"])
    if episode.metadata.get("generator") is not None:
        options["generator"] = episode.metadata["generator"]
    return options
