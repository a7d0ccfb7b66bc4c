"""Practice: acting and learning in turn, from scratch or on from a pretrained agent.

Fine-tuning has no dip by construction: the agent goes on with its own weights, critics, optimiser
and normalisation; practice never has a larger share of a batch than of all the data; and the first
episodes only fill the practice buffer, without updates (seed 001, chapters 7, 8 and 10).
"""

from __future__ import annotations

import sys
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from robot_rl.agents import AGENTS
from robot_rl.agents.base import Agent
from robot_rl.data import (
    DatasetWriter,
    Episode,
    MixedReplay,
    Relabelling,
    Replay,
)
from robot_rl.errors import InvalidInputError, MotionInterruptedError, unknown_name
from robot_rl.training.checkpoint import (
    AgentInfo,
    describe,
    find_checkpoint,
    load_agent,
    read_trainer,
    restore_generator,
    save_checkpoint,
)
from robot_rl.training.compute import set_threads, use_threads
from robot_rl.training.evaluate import (
    AgentPolicy,
    EvalResult,
    Policy,
    RandomPolicy,
    evaluate,
    run_episode,
    training_seed,
    unwrap,
)
from robot_rl.training.offline import update_block
from robot_rl.training.recorded import (
    IMPORTED,
    fit_normalizer,
    goal_options,
    load_replay,
    recorded_episodes,
    recorded_info,
)
from robot_rl.training.runs import RateMeter, RunFolder, StopFlag, progress, read_config
from robot_rl.training.setup import (
    EnvChoice,
    canonical_task,
    check_least,
    check_seed,
    dataset_info,
    default_relabelling,
    learn_resets,
    new_agent,
    own_task,
    read_options,
)

RESETS = ("auto", "scene", "arm", "learned")


@dataclass(frozen=True)
class TrainConfig:
    """Options of practice."""

    agent: str = field(default="", metadata={"help": "agent to train from scratch (without "
                                             "--from), see `robot-rl list`"})
    from_run: str = field(default="", metadata={"help": "pretrained run or checkpoint to go on "
                                                "from", "flag": "--from"})
    data: str = field(default="", metadata={"help": "recorded episodes to mix in; by default "
                                            "those the pretrained run used"})
    env_steps: int = field(default=10_000, metadata={"help": "steps to practise in all"})
    seed: int = field(default=0, metadata={"help": "seed of everything random"})
    out: str = field(default="", metadata={"help": "folder of the run, new or empty"})
    online_fraction: float = field(default=0.5, metadata={"help": "largest share of practice "
                                                          "in a batch, the rest is recorded; "
                                                          "never more than practice's share of "
                                                          "all steps"})
    warmup_steps: int = field(default=1_000, metadata={"help": "steps of practice before the "
                                                       "first update"})
    updates_per_step: float = field(default=1.0, metadata={"help": "updates per step of "
                                                           "practice"})
    exploration: str = field(default="sample", metadata={"help": "sample: draw actions from the "
                                                         "policy; mean: take its mean"})
    resets: str = field(default="auto", metadata={"help": "who brings things back between "
                                                  "episodes: scene (the simulator), arm (the "
                                                  "robot), learned (the agent, and the robot's "
                                                  "script where it fails) or auto (the simulator "
                                                  "where there is one)"})
    eval_every: int = field(default=0, metadata={"help": "evaluate after this many steps; "
                                                 "0: only at the end"})
    eval_episodes: int = field(default=20, metadata={"help": "episodes of each evaluation"})
    checkpoint_every: int = field(default=2_500, metadata={"help": "steps between checkpoints"})
    threads: int = field(default=1, metadata={"help": "cores that updates use; two work on "
                                                "different networks at once"})
    device: str = field(default="cpu", metadata={"help": "torch device, cpu or cuda"})

    def __post_init__(self) -> None:
        check_least(self, env_steps=1, seed=0, warmup_steps=0, updates_per_step=0, eval_every=0,
                    eval_episodes=1, checkpoint_every=1, threads=1)
        check_seed(self.seed)
        if not self.updates_per_step <= 1_000.0:
            raise InvalidInputError(
                f"updates_per_step is {self.updates_per_step}, should be in [0, 1000]"
            )
        if not 0.0 <= self.online_fraction <= 1.0:
            raise InvalidInputError(
                f"online_fraction is {self.online_fraction}, should be in [0, 1]"
            )
        if self.exploration not in ("sample", "mean"):
            raise unknown_name("exploration", self.exploration, ("sample", "mean"))
        if self.agent and self.agent not in AGENTS:
            raise unknown_name("agent", self.agent, AGENTS)
        if self.resets not in RESETS:
            raise unknown_name("resets", self.resets, RESETS)


@dataclass
class _Practice:
    """Where practice stands."""

    config: TrainConfig
    run: RunFolder
    agent: Agent
    description: AgentInfo
    env: gymnasium.Env[Any, Any]
    online: Replay
    sampler: MixedReplay
    rng: np.random.Generator
    writer: DatasetWriter
    step: int = 0
    episodes: int = 0
    updates_owed: float = 0.0


def train(
    config: TrainConfig,
    env: EnvChoice,
    *,
    agent_overrides: dict[str, Any] | None = None,
    relabelling: Relabelling | None = None,
    overwrite: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Practise and leave a run folder.

    Returns:
        ``env_steps``, ``checkpoint``, ``success_rate`` (of the final evaluation on held-out
        goals), ``episodes``, ``run``, ``interrupted``.

    Raises:
        InvalidInputError: an option cannot be used; nothing was written.
    """
    set_threads(config.threads, config.device)
    agent, env, data = _starting_point(config, env, agent_overrides or {})
    world = env.make(resets="arm" if config.resets == "learned" else config.resets)
    try:
        sizes = _sizes(world)
        _check_recorded(data, env.task, sizes)
        fresh = agent is None
        if agent is None:
            agent = new_agent(config.agent, sizes=sizes, overrides=agent_overrides or {},
                              seed=config.seed, device=config.device)
        found = (agent.observation_dim, agent.goal_dim, agent.action_dim)
        if found != sizes:
            raise InvalidInputError(
                f"the agent has observation, goal and action sizes {found}; the task {env.task} "
                f"has {sizes}"
            )
        if config.resets == "learned":
            learn_resets(world, agent)
        relabelling = relabelling or default_relabelling(agent.name, agent.goal_dim)
        offline = _offline(agent, data, env.task, relabelling)
        if fresh and len(offline):
            fit_normalizer(agent, offline)
        run = RunFolder.create(
            config.out,
            {
                "kind": "train",
                "train": {**asdict(config), "data": str(Path(data).resolve()) if data else "",
                          "from_run": str(Path(config.from_run).resolve())
                          if config.from_run else ""},
                "agent_name": agent.name,
                "agent": asdict(agent.config),
                "relabelling": asdict(relabelling),
                "env": env.as_dict(),
            },
            overwrite=overwrite,
        )
        online = _online(agent, data, env.task, relabelling, [])
        practice = _Practice(
            config=config,
            run=run,
            agent=agent,
            description=describe(agent, task=env.task, env=env.as_dict(), seed=config.seed),
            env=world,
            online=online,
            sampler=MixedReplay(offline, online, config.online_fraction),
            rng=np.random.default_rng([config.seed, 2]),
            writer=DatasetWriter(
                run.path / "practice", dataset_info(env, world, asdict(config))
            ),
        )
        return _loop(practice, quiet)
    finally:
        world.close()


def _starting_point(
    config: TrainConfig, env: EnvChoice, overrides: dict[str, Any]
) -> tuple[Agent | None, EnvChoice, str]:
    """The pretrained agent if there is one, the environment, and the recorded data to mix in."""
    if bool(config.agent) == bool(config.from_run):
        raise InvalidInputError("give either --from (a pretrained run) or --agent, not both"
                                if config.agent else
                                "training needs --from (a pretrained run) or --agent")
    if not config.out:
        raise InvalidInputError("training needs a folder for the run: give --out")
    if config.from_run:
        if overrides:
            raise InvalidInputError(
                f"a pretrained agent keeps its options; {', '.join(sorted(overrides))} "
                "cannot be changed"
            )
        agent, source = load_agent(config.from_run, device=config.device)
        env, data = _inherit_env(env, source), config.data or _data_of(config.from_run)
    else:
        if not env.task:
            raise InvalidInputError("training from scratch needs a task: give --task")
        agent, data = None, config.data
        env = EnvChoice(**{**env.as_dict(), "task": canonical_task(env.task)})
    return agent, env, "" if data == "none" else data


def resume_train(
    run_path: str | Path, *, env_steps: int | None = None, quiet: bool = False
) -> dict[str, Any]:
    """Go on exactly where the newest checkpoint of a training run stood.

    Raises:
        InvalidInputError: it is not such a run, or what it needs is gone.
    """
    config, env, relabelling = read_options(run_path, "train", TrainConfig,
                                            {"env_steps": env_steps})
    set_threads(config.threads, config.device)
    checkpoint = find_checkpoint(run_path)
    agent, description = load_agent(checkpoint, device=config.device)
    trainer = read_trainer(checkpoint, {
        "step": int, "metrics_bytes": int, "episodes": int, "updates_owed": (int, float),
        "env_rng": dict,
    })
    if config.env_steps < trainer["step"]:
        raise InvalidInputError(
            f"env_steps is {config.env_steps}; {run_path} has practised {trainer['step']} already"
        )
    offline = _offline(agent, config.data, env.task, relabelling, recorded_episodes(trainer))
    writer, episodes = DatasetWriter.reopen(Path(run_path) / "practice", trainer["episodes"])
    online = _online(agent, config.data, env.task, relabelling, episodes)
    world = env.make(resets="arm" if config.resets == "learned" else config.resets)
    try:
        if config.resets == "learned":
            learn_resets(world, agent)
        # The environment's generator is made at the first reset; its state is then put back.
        world.reset(seed=config.seed)
        restore_generator(world.unwrapped.np_random, trainer["env_rng"], checkpoint)
        rng = np.random.default_rng()
        restore_generator(rng, trainer["rng"], checkpoint)
        practice = _Practice(
            config=config,
            run=RunFolder.reopen(run_path, trainer["metrics_bytes"], trainer["step"]),
            agent=agent,
            description=description,
            env=world,
            online=online,
            sampler=MixedReplay(offline, online, config.online_fraction),
            rng=rng,
            writer=writer,
            step=trainer["step"],
            episodes=trainer["episodes"],
            updates_owed=trainer["updates_owed"],
        )
        return _loop(practice, quiet)
    finally:
        world.close()


def _loop(practice: _Practice, quiet: bool) -> dict[str, Any]:
    config, run, agent = practice.config, practice.run, practice.agent
    use_threads(agent, config.threads)
    if config.env_steps <= config.warmup_steps:
        print(f"no update will be made: warmup_steps is {config.warmup_steps}, env_steps is "
              f"{config.env_steps}", file=sys.stderr)
    # There is one real arm: it is judged where it practises.
    inner = unwrap(practice.env)
    alone = inner is not None and inner.rig.scene is None
    judge = practice.env if alone else EnvChoice(**practice.description.env).make()
    scores: EvalResult | None = None
    meter = RateMeter()
    if practice.step == 0:
        # Seeded once; every later episode follows from the environment's generator.
        practice.env.reset(seed=training_seed(config.seed))
    try:
        with StopFlag().watching() as flag, progress(
            config.env_steps, f"train {agent.name}", "step", start=practice.step, quiet=quiet
        ) as bar:
            flag.break_off_resets(practice.env)
            with suppress(MotionInterruptedError):
                scores = _practise(practice, judge, meter, bar, flag)
            checkpoint = _save(practice)
    finally:
        judge.close()
        run.close()
        practice.writer.close()
    return {
        "env_steps": practice.step,
        "episodes": practice.episodes,
        "checkpoint": str(checkpoint),
        "success_rate": scores.success_rate if scores else None,
        "safety_violations": scores.safety_violations if scores else None,
        "run": str(run.path),
        "interrupted": flag.stop,
    }


def _practise(
    practice: _Practice, judge: Any, meter: RateMeter, bar: Any, flag: StopFlag
) -> EvalResult | None:
    """Practise until it is enough or the flag is up; the last evaluation.

    Raises:
        MotionInterruptedError: the flag went up during a reset by the arm.
    """
    config, first = practice.config, practice.step
    scores: EvalResult | None = None
    while practice.step < config.env_steps and not flag.stop:
        episode = _episode(practice)
        metrics = _learn(practice, len(episode))
        bar.update(len(episode))
        practice.run.log(practice.step, {
            **metrics,
            "practice/return": float(episode.reward.sum()),
            "practice/success": float(episode.success[-1]),
            "steps_per_second": meter.rate(practice.step - first),
        })
        done = practice.step >= config.env_steps
        if _crossed(practice.step, len(episode), config.eval_every) and not done:
            with meter.pause():
                scores = _judge(practice, judge, bar)
        if _crossed(practice.step, len(episode), config.checkpoint_every) and not done:
            with meter.pause():
                _save(practice)
    return _judge(practice, judge, bar) if practice.step >= config.env_steps else scores


def _episode(practice: _Practice) -> Episode:
    config, agent = practice.config, practice.agent
    policy: Policy = AgentPolicy(agent, sample=config.exploration == "sample")
    if not config.from_run and practice.step < config.warmup_steps:
        seed = int(practice.rng.integers(0, 2**31))
        policy = RandomPolicy(agent.action_dim, seed)
    generator = practice.env.unwrapped.np_random.bit_generator
    before = generator.state
    try:
        episode, _ = run_episode(
            practice.env, policy, max_steps=config.env_steps - practice.step, log=practice.writer
        )
    except MotionInterruptedError:
        generator.state = before  # the episode that did not begin is still to come
        raise
    practice.online.add(episode)
    practice.step += len(episode)
    practice.episodes += 1
    return episode


def _learn(practice: _Practice, steps: int) -> dict[str, float]:
    config, agent = practice.config, practice.agent
    if practice.step < config.warmup_steps:
        return {}
    if not agent.normalizer_fitted:
        agent.fit_normalizer(practice.online.observations,
                             practice.online.goals if agent.goal_dim else None)
    practice.updates_owed += steps * config.updates_per_step
    count = int(practice.updates_owed)
    practice.updates_owed -= count
    return update_block(agent, practice.sampler, practice.rng, count)


def _judge(practice: _Practice, env: gymnasium.Env[Any, Any], bar: Any) -> EvalResult:
    config = practice.config
    before = practice.env.unwrapped.np_random.bit_generator.state
    scores = evaluate(env, AgentPolicy(practice.agent), config.eval_episodes, config.seed)
    # Practice goes on as if nobody had looked, also where both are the same environment.
    practice.env.unwrapped.np_random.bit_generator.state = before
    practice.run.log_evaluation(practice.step, scores.as_dict())
    bar.set_postfix(success=f"{scores.success_rate:.2f}")
    return scores


def _save(practice: _Practice) -> Path:
    trainer = {
        "step": practice.step,
        "episodes": practice.episodes,
        "data_episodes": practice.sampler.offline.episodes,
        "updates_owed": practice.updates_owed,
        "rng": practice.rng.bit_generator.state,
        "env_rng": practice.env.unwrapped.np_random.bit_generator.state,
        "metrics_bytes": practice.run.metrics_bytes,
    }
    return save_checkpoint(practice.run.checkpoints, practice.step, practice.agent,
                           practice.description, trainer)


def _crossed(step: int, length: int, every: int) -> bool:
    return bool(every) and step // every > (step - length) // every


def _sizes(env: gymnasium.Env[Any, Any]) -> tuple[int, int, int]:
    space = env.observation_space
    return (
        int(space["observation"].shape[0]),  # type: ignore[index]
        int(space["desired_goal"].shape[0]),  # type: ignore[index]
        int(env.action_space.shape[0]),  # type: ignore[index]
    )


def _inherit_env(env: EnvChoice, source: AgentInfo) -> EnvChoice:
    task = canonical_task(env.task or source.task)
    if source.task and task != source.task:
        raise InvalidInputError(f"the agent was trained for the task {source.task}, not {task}")
    return EnvChoice(**{**env.as_dict(), "task": task})


def _data_of(run: str) -> str:
    checkpoint = find_checkpoint(run)
    for folder in (Path(run), checkpoint.parent.parent):
        if (folder / IMPORTED / "dataset.json").is_file():
            return str(folder / IMPORTED)
        if (folder / "config.json").is_file():
            raw = read_config(folder)
            data = raw.get(raw.get("kind", ""), {}).get("data", "")
            if data and not Path(data).exists():
                raise InvalidInputError(
                    f"the recorded episodes that {run} was trained on are gone ({data}); "
                    "give --data, or --online-fraction 1 with --data none"
                )
            return str(data)
    return ""


def _check_recorded(data: str, task: str, sizes: tuple[int, int, int]) -> None:
    if not data:
        return
    info = recorded_info(data)
    recorded = own_task(info.task)
    if recorded and task and recorded != task:
        raise InvalidInputError(f"the data {data} is of the task {recorded}, not {task}")
    found = (info.observation_shape[0], info.goal_dim, info.action_dim)
    if found != sizes:
        raise InvalidInputError(
            f"the data {data} has observation, goal and action sizes {found}; the task {task} has "
            f"{sizes}"
        )


def _offline(
    agent: Agent, data: str, task: str, relabelling: Relabelling, episodes: int | None = None
) -> Replay:
    if not data:
        return _online(agent, data, task, relabelling, [])
    return load_replay(data, task, relabelling, agent.config.discount, episodes=episodes)


def _online(
    agent: Agent, data: str, task: str, relabelling: Relabelling, episodes: list[Episode]
) -> Replay:
    # Goals end episodes in practice as they do in the recorded data.
    replay = Replay(agent.observation_dim, agent.goal_dim, agent.action_dim,
                    discount=agent.config.discount, relabelling=relabelling,
                    **goal_options(data, task, relabelling))  # type: ignore[arg-type]
    return replay.add_all(episodes)
