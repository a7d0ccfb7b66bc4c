"""The whole story on one task: record, clone, pretrain, practise, and try the other engine."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from robot_rl.agents import AGENTS
from robot_rl.backends import list_backends
from robot_rl.data.files import new_folder, write_json
from robot_rl.errors import InvalidInputError, unknown_name
from robot_rl.training.checkpoint import load_agent
from robot_rl.training.collect import CollectConfig, collect
from robot_rl.training.compute import set_threads
from robot_rl.training.evaluate import AgentPolicy, EvalResult, evaluate
from robot_rl.training.offline import PretrainConfig, pretrain
from robot_rl.training.online import TrainConfig, train
from robot_rl.training.runs import Interrupted
from robot_rl.training.setup import EnvChoice, canonical_task, check_least, check_seed


@dataclass(frozen=True)
class Budget:
    """Updates of pretraining, steps of practice, and options of the agent that differ from its
    defaults."""

    pretrain_steps: int
    env_steps: int
    options: dict[str, Any] = field(default_factory=dict)


BUDGETS = {
    "iql": Budget(10_000, 10_000),
    # Half the authors' batch: enough here, and twice as quick.
    "awac": Budget(8_000, 8_000, {"batch_size": 512}),
}


@dataclass(frozen=True)
class DemoConfig:
    """Options of the demonstration."""

    task: str = field(default="Push", metadata={"help": "task, see `robot-rl list`"})
    robot: str = field(default="sawyer", metadata={"help": "arm: sawyer, panda or fr3"})
    backend: str = field(default="mujoco", metadata={"help": "engine to learn on: mujoco or "
                                                     "pybullet"})
    agents: tuple[str, ...] = field(default=("iql", "awac"), metadata={"help": "agents to teach"})
    episodes: int = field(default=300, metadata={"help": "episodes to record"})
    quality: float = field(default=0.5, metadata={"help": "quality of the recorded operator"})
    bc_steps: int = field(default=5_000, metadata={"help": "updates of behaviour cloning"})
    scale: float = field(default=1.0, metadata={"help": "multiplies updates and steps of "
                                                "practice; less is quicker and worse"})
    eval_episodes: int = field(default=100, metadata={"help": "held-out goals at each stage"})
    seed: int = field(default=0, metadata={"help": "seed of everything random"})
    threads: int = field(default=2, metadata={"help": "cores that updates use"})
    videos: int = field(default=2, metadata={"help": "episodes to film of each of the first and "
                                             "last stages"})
    out: str = field(default="", metadata={"help": "folder of the run (default: runs/demo, or "
                                           "the next free number)"})

    def __post_init__(self) -> None:
        check_least(self, episodes=1, bc_steps=1, eval_episodes=1, seed=0, threads=1, videos=0)
        check_seed(self.seed)
        if not 0.0 <= self.quality <= 1.0:
            raise InvalidInputError(f"quality is {self.quality}, should be in [0, 1]")
        if not 0.0 < self.scale <= 100.0:
            raise InvalidInputError(f"scale is {self.scale}, should be in (0, 100]")
        if not self.agents or len(set(self.agents)) < len(self.agents):
            raise InvalidInputError(
                f"agents is {self.agents}, should be one or more, each once; "
                f"valid: {', '.join(BUDGETS)}"
            )
        for agent in self.agents:
            if agent not in AGENTS:
                raise unknown_name("agent", agent, AGENTS)
            if agent not in BUDGETS:
                raise InvalidInputError(
                    f"the demonstration teaches {', '.join(BUDGETS)}, not {agent}"
                )


@dataclass
class DemoStage:
    """How well a policy did at one stage."""

    agent: str
    stage: str
    backend: str
    result: EvalResult
    checkpoint: str


@dataclass
class DemoResult:
    """Everything the demonstration measured."""

    config: DemoConfig
    folder: Path
    data: dict[str, Any]
    stages: list[DemoStage]
    runs: dict[str, Path]
    seconds: dict[str, float]

    def rate(self, agent: str, stage: str) -> float:
        """Success of one stage."""
        for found in self.stages:
            if (found.agent, found.stage) == (agent, stage):
                return found.result.success_rate
        raise KeyError(f"no stage {stage!r} of {agent!r}")

    def values(self) -> dict[str, Any]:
        """The numbers as one flat object; the first agent's stand without its name."""
        first = self.config.agents[0]
        values: dict[str, Any] = {
            "data_success": self.data["success_rate"],
            "bc_success": self.rate("bc", "offline"),
            "offline_success": self.rate(first, "offline"),
            "online_success": self.rate(first, "online"),
            "agent": first,
        }
        for stage in self.stages:
            values[f"{stage.agent}_{stage.stage}_success"] = stage.result.success_rate
        values["safety_violations"] = sum(s.result.safety_violations for s in self.stages)
        values["seconds"] = round(sum(self.seconds.values()), 1)
        return values


def run_demo(config: DemoConfig, *, overwrite: bool = False, quiet: bool = False) -> DemoResult:
    """Run every stage and leave one folder with a run for each.

    Raises:
        InvalidInputError: an option cannot be used.
        Interrupted: the user stopped it; the stages that ended stay on the disk.
    """
    config = replace(config, threads=min(config.threads, os.cpu_count() or 1))
    set_threads(config.threads, "cpu")
    env = EnvChoice(task=canonical_task(config.task), robot=config.robot, backend=config.backend)
    env.make().close()
    folder = new_folder(Path(config.out) if config.out else _free(Path("runs/demo")), "demo",
                        overwrite=overwrite)
    seconds: dict[str, float] = {}
    stages: list[DemoStage] = []
    runs: dict[str, Path] = {}

    say(quiet, f"recording {config.episodes} episodes of an operator of quality {config.quality}")
    start = time.perf_counter()
    data = _finished(collect(
        CollectConfig(quality=config.quality, episodes=config.episodes, seed=config.seed,
                      out=str(folder / "data")),
        env, quiet=quiet,
    ))
    seconds["recording"] = time.perf_counter() - start
    say(quiet, f"  success of the recorded episodes {data['success_rate']:.2f}")

    for agent in ("bc", *config.agents):
        start = time.perf_counter()
        steps = config.bc_steps if agent == "bc" else BUDGETS[agent].pretrain_steps
        runs[f"{agent} offline"] = folder / f"{agent}-offline"
        say(quiet, f"pretraining {agent} on the recorded episodes")
        _finished(pretrain(
            PretrainConfig(agent=agent, data=data["path"], steps=_scaled(steps, config.scale),
                           seed=config.seed, out=str(runs[f"{agent} offline"]),
                           threads=config.threads,
                           eval_every=max(_scaled(steps, config.scale) // 2, 1),
                           eval_episodes=config.eval_episodes),
            env=env, quiet=quiet,
            agent_overrides=None if agent == "bc" else BUDGETS[agent].options,
        ))
        stages.append(_measure(agent, "offline", runs[f"{agent} offline"], env, config, quiet))
        seconds[f"{agent} pretraining"] = time.perf_counter() - start
        if agent == "bc":
            continue
        start = time.perf_counter()
        runs[f"{agent} online"] = folder / f"{agent}-online"
        say(quiet, f"practising with {agent}")
        env_steps = _scaled(BUDGETS[agent].env_steps, config.scale)
        _finished(train(
            TrainConfig(from_run=str(runs[f"{agent} offline"]), env_steps=env_steps,
                        seed=config.seed, out=str(runs[f"{agent} online"]), threads=config.threads,
                        warmup_steps=min(1_000, env_steps // 4),
                        eval_every=max(env_steps // 5, 1), eval_episodes=config.eval_episodes),
            env, quiet=quiet,
        ))
        stages.append(_measure(agent, "online", runs[f"{agent} online"], env, config, quiet))
        seconds[f"{agent} practice"] = time.perf_counter() - start
        start = time.perf_counter()
        for other in list_backends():
            if other in ("mujoco", "pybullet") and other != config.backend:
                elsewhere = EnvChoice(task=env.task, robot=env.robot, backend=other)
                stages.append(_measure(agent, "transfer", runs[f"{agent} online"], elsewhere,
                                       config, quiet))
        seconds[f"{agent} on the other engine"] = time.perf_counter() - start

    result = DemoResult(config, folder, data, stages, runs, seconds)
    write_json(folder / "demo.json", {**result.values(), "config": asdict(config),
                                      "stage_seconds": seconds})
    return result


def _measure(agent_name: str, stage: str, run: Path, env: EnvChoice, config: DemoConfig,
             quiet: bool) -> DemoStage:
    agent, _ = load_agent(run)
    world = env.make()
    try:
        result = evaluate(world, AgentPolicy(agent), config.eval_episodes, config.seed)
    finally:
        world.close()
    say(quiet, f"  {agent_name} {stage} on {env.backend}: success {result.success_rate:.2f} over "
               f"{result.episodes} held-out goals")
    return DemoStage(agent_name, stage, env.backend, result, str(run))


def say(quiet: bool, text: str) -> None:
    """A line of progress on standard error."""
    if not quiet:
        print(text, file=sys.stderr, flush=True)


def _finished(values: dict[str, Any]) -> dict[str, Any]:
    if values.get("interrupted"):
        raise Interrupted("the demonstration was stopped; the stages that ended stay on the disk")
    return values


def _scaled(steps: int, scale: float) -> int:
    return max(int(round(steps * scale)), 1)


def _free(path: Path) -> Path:
    candidate, number = path, 1
    while candidate.exists() and any(candidate.iterdir()):
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate
