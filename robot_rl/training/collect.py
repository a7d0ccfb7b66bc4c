"""Recording episodes, and the policies that can be asked for by name."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

import gymnasium

from robot_rl.data import DatasetWriter, RecordingOptions
from robot_rl.data.frames import CODECS
from robot_rl.envs.scripted import ScriptedPolicy
from robot_rl.errors import InvalidInputError, MotionInterruptedError, unknown_name
from robot_rl.training.checkpoint import load_agent
from robot_rl.training.evaluate import (
    AgentPolicy,
    Policy,
    RandomPolicy,
    ScriptPolicy,
    run_episode,
    training_seed,
    unwrap,
)
from robot_rl.training.runs import StopFlag, progress
from robot_rl.training.setup import (
    RESETS,
    RESETS_HELP,
    EnvChoice,
    canonical_task,
    check_seed,
    dataset_info,
)

POLICIES = ("scripted", "random", "checkpoint")


@dataclass(frozen=True)
class CollectConfig:
    """Options of recording."""

    policy: str = field(default="scripted", metadata={"help": "who acts: scripted, random or "
                                                      "checkpoint"})
    quality: float = field(default=1.0, metadata={"help": "quality of the scripted policy: 1 as "
                                                  "well as it can, 0 at random"})
    checkpoint: str = field(default="", metadata={"help": "run or checkpoint that acts, for "
                                                  "--policy checkpoint"})
    sample: bool = field(default=True, metadata={"help": "the checkpoint draws its actions "
                                                 "instead of taking the mean"})
    episodes: int = field(default=50, metadata={"help": "episodes to record"})
    seed: int = field(default=0, metadata={"help": "seed of goals, starts and slips"})
    obs: str = field(default="state", metadata={"help": "observations: state or image"})
    resets: str = field(default="auto", metadata={"help": RESETS_HELP})
    image_format: str = field(default="raw", metadata={"help": "how images are kept: raw and png "
                                                       "are exact, jpeg is smallest"})
    out: str = field(default="", metadata={"help": "folder of the recording, new or empty"})

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise unknown_name("policy", self.policy, POLICIES)
        if self.image_format not in CODECS:
            raise unknown_name("image format", self.image_format, CODECS)
        if self.episodes < 1:
            raise InvalidInputError(f"episodes is {self.episodes}, should be at least 1")
        check_seed(self.seed)
        if self.resets not in RESETS:
            raise unknown_name("resets", self.resets, RESETS)
        if not 0.0 <= self.quality <= 1.0:
            raise InvalidInputError(f"quality is {self.quality}, should be in [0, 1]")
        if (self.policy == "checkpoint") != bool(self.checkpoint):
            raise InvalidInputError("--policy checkpoint and --checkpoint PATH go together")


def make_policy(
    name: str,
    env: gymnasium.Env[Any, Any],
    *,
    quality: float = 1.0,
    seed: int = 0,
    checkpoint: str = "",
    sample: bool = False,
) -> Policy:
    """The policy of that name for this environment.

    Raises:
        InvalidInputError: no such policy, or one that does not fit the environment.
    """
    size = int(env.action_space.shape[0])  # type: ignore[index]
    if name == "random":
        return RandomPolicy(size, seed)
    if name == "scripted":
        inner = unwrap(env)
        if inner is None:
            raise InvalidInputError("there is no scripted policy for a task from elsewhere")
        return ScriptPolicy(ScriptedPolicy(inner, quality, seed))
    if name == "checkpoint":
        agent, info = load_agent(checkpoint)
        shape = env.observation_space["observation"].shape  # type: ignore[index]
        if shape != (agent.observation_dim,) or size != agent.action_dim:
            raise InvalidInputError(
                f"the agent of {checkpoint} ({info.task}) takes observations "
                f"({agent.observation_dim},) and gives {agent.action_dim} actions; the "
                f"environment has {shape} and {size}"
            )
        return AgentPolicy(agent, sample=sample)
    raise unknown_name("policy", name, POLICIES)


def collect(
    config: CollectConfig, env: EnvChoice, *, overwrite: bool = False, quiet: bool = False
) -> dict[str, Any]:
    """Record episodes into a folder.

    Returns:
        ``episodes``, ``steps``, ``success_rate``, ``path``, ``interrupted``.

    Raises:
        InvalidInputError: an option cannot be used; nothing was written.
    """
    if not config.out:
        raise InvalidInputError("recording needs a folder: give --out")
    if not env.task:
        raise InvalidInputError("recording needs a task: give --task")
    env = EnvChoice(**{**env.as_dict(), "task": canonical_task(env.task)})
    world = env.make(obs=config.obs, resets=config.resets)
    try:
        policy = make_policy(config.policy, world, quality=config.quality, seed=config.seed,
                             checkpoint=config.checkpoint, sample=config.sample)
        # What cannot start, for want of graphics say, must not leave a folder behind.
        world.reset(seed=config.seed)
        info = dataset_info(env, world, asdict(config))
        options = RecordingOptions(config.image_format)
        steps = successes = 0
        with DatasetWriter(
            config.out, info, overwrite=overwrite, options=options
        ) as writer, StopFlag().watching() as flag, progress(
            config.episodes, f"collect {env.task}", "episode", quiet=quiet
        ) as bar, suppress(MotionInterruptedError):
            flag.break_off_resets(world)
            while writer.count < config.episodes and not flag.stop:
                seed = training_seed(10_000 * config.seed) if writer.count == 0 else None
                episode, _ = run_episode(world, policy, seed=seed, log=writer)
                steps += len(episode)
                successes += bool(episode.success[-1])
                bar.update()
        return {
            "episodes": writer.count,
            "steps": steps,
            "success_rate": successes / max(writer.count, 1),
            "path": str(writer.path),
            "interrupted": flag.stop,
        }
    finally:
        world.close()
