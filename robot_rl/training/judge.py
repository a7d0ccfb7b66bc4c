"""Evaluation of a checkpoint, of a policy by name, or of recorded actions played again."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium

from robot_rl.data import load_dataset
from robot_rl.envs.external import apply_rule, is_external
from robot_rl.envs.tasks import list_tasks
from robot_rl.errors import InvalidInputError, unknown_name
from robot_rl.training.checkpoint import read_info
from robot_rl.training.collect import make_policy
from robot_rl.training.evaluate import Policy, evaluate
from robot_rl.training.playback import play_back
from robot_rl.training.recorded import find_log, recorded_info
from robot_rl.training.setup import (
    RESETS,
    RESETS_HELP,
    EnvChoice,
    canonical_task,
    check_least,
    check_seed,
    own_task,
)

REPLAY = "replay"


@dataclass(frozen=True)
class EvalConfig:
    """Options of evaluation."""

    checkpoint: str = field(default="", metadata={"help": "run folder or checkpoint to evaluate"})
    policy: str = field(default="", metadata={"help": "or a policy: scripted, random, or replay "
                                              "(plays the recorded actions of --data)"})
    data: str = field(default="", metadata={"help": "recorded episodes, for --policy replay"})
    quality: float = field(default=1.0, metadata={"help": "quality of the scripted policy, 0 to 1"})
    episodes: int = field(default=20, metadata={"help": "episodes, each with a held-out goal; of "
                                                "a recording, at most so many"})
    seed: int = field(default=0, metadata={"help": "seed of goals and starts"})
    sample: bool = field(default=False, metadata={"help": "draw actions instead of taking the "
                                                  "policy's mean"})
    resets: str = field(default="auto", metadata={"help": RESETS_HELP})
    videos: int = field(default=0, metadata={"help": "episodes to film into --out"})
    out: str = field(default="", metadata={"help": "folder for videos"})

    def __post_init__(self) -> None:
        check_least(self, episodes=1, seed=0, videos=0)
        check_seed(self.seed)
        if self.resets not in RESETS:
            raise unknown_name("resets", self.resets, RESETS)
        if bool(self.checkpoint) == bool(self.policy):
            raise InvalidInputError("give either --checkpoint or --policy")
        if self.policy == "checkpoint":
            raise InvalidInputError(
                "give the checkpoint itself: --checkpoint PATH, without --policy"
            )
        if (self.policy == REPLAY) != bool(self.data):
            raise InvalidInputError("--policy replay and --data DIR go together")
        if self.videos and not self.out:
            raise InvalidInputError("--videos needs a folder: give --out")
        if self.videos and self.policy == REPLAY:
            raise InvalidInputError("a replay is not filmed; `robot-rl data play` shows what was "
                                    "recorded")


def judge(config: EvalConfig, env: EnvChoice) -> dict[str, Any]:
    """Evaluate.

    Returns:
        What :class:`robot_rl.training.evaluate.EvalResult` holds; of a replay also what
        :func:`robot_rl.training.playback.play_back` adds; ``videos``, where asked for.

    Raises:
        InvalidInputError: the task is not known or does not fit.
    """
    if config.policy == REPLAY:
        return _replay(config, env)
    choice = _of_checkpoint(config.checkpoint, env) if config.checkpoint else env
    choice = _with_task(choice)
    if config.videos:
        _check_rendering(choice, config.resets)
    world = choice.make(resets=config.resets)
    try:
        result = evaluate(world, _policy(config, world), config.episodes, config.seed)
    finally:
        world.close()
    values = result.as_dict()
    if config.videos:
        values["videos"] = _film(config, choice)
    return values


def recorded_env(data: str) -> dict[str, Any]:
    """Options of the environment that a recording was made in, as far as it says."""
    info = recorded_info(data)
    # Where it was recorded, but not how that arm was reached.
    names = {f.name for f in dataclasses.fields(EnvChoice)}
    names -= {"rig", "camera", "success", "goal_image"}
    return {**{k: v for k, v in info.env.items() if k in names}, "task": own_task(info.task)}


def _replay(config: EvalConfig, env: EnvChoice) -> dict[str, Any]:
    choice = _with_task(env)
    log = find_log(config.data)
    if log is None:
        episodes = load_dataset(config.data)[1][: config.episodes]
    else:
        episodes = [log.read(file, images=False) for file in log.files[: config.episodes]]
    if not episodes:
        raise InvalidInputError(f"dataset: {config.data} holds no episodes")
    if is_external(choice.task):
        episodes = apply_rule(choice.task, episodes)
    world = choice.make(resets=config.resets)
    try:
        result, more = play_back(world, episodes, config.seed)
    finally:
        world.close()
    return {**result.as_dict(), **more}


def _of_checkpoint(checkpoint: str, env: EnvChoice) -> EnvChoice:
    info = read_info(checkpoint)
    task = env.task or info.task
    if not task:
        raise InvalidInputError("the checkpoint does not say its task: give --task")
    if info.task and canonical_task(task) != info.task:
        raise InvalidInputError(
            f"the agent was trained for the task {info.task}, not {canonical_task(task)}"
        )
    return dataclasses.replace(env, task=task)


def _with_task(env: EnvChoice) -> EnvChoice:
    if not env.task:
        raise InvalidInputError(f"which task? give --task; valid: {', '.join(list_tasks())}")
    return dataclasses.replace(env, task=canonical_task(env.task))


def _policy(config: EvalConfig, world: gymnasium.Env[Any, Any]) -> Policy:
    return make_policy(config.policy or "checkpoint", world, quality=config.quality,
                       seed=config.seed, checkpoint=config.checkpoint, sample=config.sample)


def _film(config: EvalConfig, choice: EnvChoice) -> list[str]:
    from robot_rl.report.video import record_videos

    film = choice.make(render_mode="rgb_array", resets=config.resets)
    try:
        paths = record_videos(film, _policy(config, film), Path(config.out), config.videos,
                              config.seed, name="eval")
    finally:
        film.close()
    return [str(path) for path in paths]


def _check_rendering(choice: EnvChoice, resets: str) -> None:
    """That videos can be made is found out first, not after the episodes."""
    env = choice.make(render_mode="rgb_array", resets=resets)
    try:
        env.reset(seed=0)
        env.render()
    finally:
        env.close()
