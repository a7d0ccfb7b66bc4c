"""Pretraining from recorded episodes."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from robot_rl.agents import AGENTS
from robot_rl.agents.base import Agent, Batch
from robot_rl.data import Relabelling, Replay
from robot_rl.data.replay import Sampler
from robot_rl.envs.external import is_external
from robot_rl.envs.tasks import make_task
from robot_rl.errors import InvalidInputError, unknown_name
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
from robot_rl.training.evaluate import AgentPolicy, evaluate
from robot_rl.training.recorded import (
    IMPORTED,
    fit_normalizer,
    goal_functions,
    imported,
    load_replay,
    recorded_episodes,
    recorded_info,
)
from robot_rl.training.runs import (
    RateMeter,
    RunFolder,
    StopFlag,
    progress,
)
from robot_rl.training.setup import (
    EnvChoice,
    canonical_task,
    check_least,
    check_seed,
    default_relabelling,
    new_agent,
    own_task,
    read_options,
)


@dataclass(frozen=True)
class PretrainConfig:
    """Options of pretraining."""

    agent: str = field(default="iql", metadata={"help": "agent, see `robot-rl list`"})
    data: str = field(default="", metadata={"help": "recorded episodes: a folder that collect, "
                                            "record or import made, a plain npz, or a ROS bag, "
                                            "LeRobot or Minari data, which is imported first"})
    map: str = field(default="", metadata={"help": "YAML that says which topics of a bag (or parts "
                                           "of other data) become which keys"})
    rate: float = field(default=0.0, metadata={"help": "control rate [Hz] to resample a bag to; 0: "
                                               "as recorded, or as the mapping says"})
    steps: int = field(default=20_000, metadata={"help": "updates to make in all"})
    seed: int = field(default=0, metadata={"help": "seed of everything random"})
    out: str = field(default="", metadata={"help": "folder of the run, new or empty"})
    task: str = field(default="", metadata={"help": "task that the data is of, where the data "
                                            "does not say (a plain npz), e.g. AdroitHandDoor-v1"})
    eval_every: int = field(default=0, metadata={"help": "evaluate after this many updates; "
                                                 "0: only at the end"})
    eval_episodes: int = field(default=0, metadata={"help": "episodes of each evaluation; "
                                                    "0: do not evaluate"})
    checkpoint_every: int = field(default=5_000, metadata={"help": "updates between checkpoints"})
    log_every: int = field(default=500, metadata={"help": "updates between lines of metrics"})
    threads: int = field(default=1, metadata={"help": "cores that updates use; two work on "
                                                "different networks at once"})
    device: str = field(default="cpu", metadata={"help": "torch device, cpu or cuda"})

    def __post_init__(self) -> None:
        check_least(self, steps=1, seed=0, eval_every=0, eval_episodes=0, checkpoint_every=1,
                    log_every=1, threads=1, rate=0)
        if self.agent not in AGENTS:
            raise unknown_name("agent", self.agent, AGENTS)
        check_seed(self.seed)


def update_block(
    agent: Agent, sampler: Sampler, rng: np.random.Generator, count: int
) -> dict[str, float]:
    """``count`` updates; the last one's metrics."""
    metrics: dict[str, Any] = {}
    size = agent.config.batch_size
    for _ in range(count):
        metrics = agent.update(Batch.from_numpy(sampler.sample(size, rng), agent.device))
    return {key: float(value) for key, value in metrics.items()}


def pretrain(
    config: PretrainConfig,
    *,
    env: EnvChoice | None = None,
    agent_overrides: dict[str, Any] | None = None,
    relabelling: Relabelling | None = None,
    overwrite: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Train an agent on recorded episodes and leave a run folder.

    Returns:
        ``steps``, ``checkpoint``, ``updates_per_second``, ``run``, ``interrupted`` and, when
        evaluated, ``success_rate``.

    Raises:
        InvalidInputError: the data or an option cannot be used; nothing was written.
    """
    set_threads(config.threads, config.device)
    if not config.data:
        raise InvalidInputError("pretraining needs recorded episodes: give --data")
    if not config.out:
        raise InvalidInputError("pretraining needs a folder for the run: give --out")
    with imported(config.data, config.out, mapping=config.map, rate_hz=config.rate,
                  task=config.task, quiet=quiet) as folder:
        return _pretrain(config, folder, env, agent_overrides or {}, relabelling, overwrite, quiet)


def _pretrain(
    config: PretrainConfig,
    folder: Path | None,
    env: EnvChoice | None,
    overrides: dict[str, Any],
    relabelling: Relabelling | None,
    overwrite: bool,
    quiet: bool,
) -> dict[str, Any]:
    data = folder or Path(config.data)
    info = recorded_info(data)
    # What data from elsewhere calls its task may be free text.
    recorded = own_task(info.task)
    task = canonical_task(config.task) if config.task else recorded
    if recorded and task != recorded:
        raise InvalidInputError(f"the data is of the task {recorded}, not {task}")
    env = env or EnvChoice(task=task, **_known_env(info.env))
    agent = new_agent(
        config.agent,
        sizes=(info.observation_shape[0], info.goal_dim, info.action_dim),
        overrides=overrides,
        seed=config.seed,
        device=config.device,
    )
    rewarded = goal_functions(task, info)[0] is not None
    relabelling = relabelling or default_relabelling(config.agent, info.goal_dim if rewarded else 0)
    if config.eval_episodes and not task:
        said = f"; the data says {info.task!r}, which is none of ours" if info.task else ""
        raise InvalidInputError(f"evaluation needs the data's task: give --task{said}")
    if task and not is_external(task) and info.goal_dim != make_task(task).goal_dim:
        raise InvalidInputError(
            f"the data has goals of {info.goal_dim} numbers, the task {task} has "
            f"{make_task(task).goal_dim}"
        )
    if config.eval_episodes:
        _check_sizes(env, agent)
    replay = load_replay(data, task, relabelling, agent.config.discount)
    fit_normalizer(agent, replay)
    run = RunFolder.create(
        config.out,
        {
            "kind": "pretrain",
            "pretrain": {**asdict(config), "data": str(Path(config.data).resolve()),
                         "map": str(Path(config.map).resolve()) if config.map else "",
                         "task": task},
            "agent": asdict(agent.config),
            "relabelling": asdict(relabelling),
            "env": env.as_dict(),
        },
        overwrite=overwrite,
    )
    if folder is not None:
        folder.rename(run.path / IMPORTED)
    description = describe(agent, task=task, env=env.as_dict(), seed=config.seed)
    rng = np.random.default_rng([config.seed, 1])
    return _loop(config, run, agent, description, replay, rng, env, 0, quiet)


def resume_pretrain(
    run_path: str | Path, *, steps: int | None = None, quiet: bool = False
) -> dict[str, Any]:
    """Go on exactly where the newest checkpoint of a pretraining run stood.

    ``steps`` replaces the run's total.

    Raises:
        InvalidInputError: it is not such a run, or its data is gone.
    """
    config, env, relabelling = read_options(run_path, "pretrain", PretrainConfig,
                                            {"steps": steps})
    set_threads(config.threads, config.device)
    checkpoint = find_checkpoint(run_path)
    agent, description = load_agent(checkpoint, device=config.device)
    trainer = read_trainer(checkpoint, {"step": int, "metrics_bytes": int})
    if config.steps < trainer["step"]:
        raise InvalidInputError(
            f"steps is {config.steps}; {run_path} has made {trainer['step']} updates already"
        )
    data = Path(run_path) / IMPORTED
    replay = load_replay(data if data.is_dir() else config.data, config.task, relabelling,
                         agent.config.discount, episodes=recorded_episodes(trainer))
    rng = np.random.default_rng()
    restore_generator(rng, trainer["rng"], checkpoint)
    run = RunFolder.reopen(run_path, trainer["metrics_bytes"], trainer["step"])
    return _loop(config, run, agent, description, replay, rng, env, trainer["step"], quiet)


def _loop(
    config: PretrainConfig,
    run: RunFolder,
    agent: Agent,
    description: AgentInfo,
    replay: Replay,
    rng: np.random.Generator,
    env_choice: EnvChoice,
    step: int,
    quiet: bool,
) -> dict[str, Any]:
    use_threads(agent, config.threads)
    env: gymnasium.Env[Any, Any] | None = None
    result: dict[str, Any] = {}
    checkpoint = None
    first = step

    def save() -> Path:
        trainer = {"step": step, "rng": rng.bit_generator.state,
                   "metrics_bytes": run.metrics_bytes, "data_episodes": replay.episodes}
        return save_checkpoint(run.checkpoints, step, agent, description, trainer)

    try:
        if config.eval_episodes:
            env = env_choice.make()
        meter = RateMeter()
        with StopFlag().watching() as flag, progress(
            config.steps, f"pretrain {config.agent}", "update", start=step, quiet=quiet
        ) as bar:
            while step < config.steps and not flag.stop:
                ends = [_next(step, every) for every in
                        (config.log_every, config.checkpoint_every, config.eval_every) if every]
                count = min(min(ends), config.steps, step + 200) - step
                metrics = update_block(agent, replay, rng, count)
                step += count
                bar.update(count)
                if step % config.log_every == 0 or step == config.steps:
                    run.log(step, {**metrics, "updates_per_second": meter.rate(step - first)})
                due = config.eval_every and step % config.eval_every == 0
                if env is not None and (due or step == config.steps):
                    with meter.pause():
                        scores = evaluate(env, AgentPolicy(agent), config.eval_episodes,
                                          config.seed)
                    result["success_rate"] = scores.success_rate
                    run.log_evaluation(step, scores.as_dict())
                    bar.set_postfix(success=f"{scores.success_rate:.2f}")
                if step % config.checkpoint_every == 0 and step < config.steps:
                    with meter.pause():
                        checkpoint = save()
            checkpoint = save()
    finally:
        if env is not None:
            env.close()
        run.close()
    return {
        "steps": step,
        "checkpoint": str(checkpoint),
        "updates_per_second": meter.rate(step - first),
        "run": str(run.path),
        "interrupted": flag.stop,
        **result,
    }


def _check_sizes(env: EnvChoice, agent: Agent) -> None:
    world = env.make()
    try:
        found = world.observation_space["observation"].shape  # type: ignore[index]
        actions = world.action_space.shape
    finally:
        world.close()
    if found != (agent.observation_dim,) or actions != (agent.action_dim,):
        raise InvalidInputError(
            f"the data has observations ({agent.observation_dim},) and actions "
            f"({agent.action_dim},); the task {env.task} has {found} and {actions}"
        )


def _next(step: int, every: int) -> int:
    return (step // every + 1) * every


def _known_env(env: dict[str, Any]) -> dict[str, Any]:
    known = {"robot", "backend", "control_hz", "randomize"}
    return {key: value for key, value in env.items() if key in known}
