"""The subcommands of ``robot-rl``: read flags, call the library, say what came out."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from robot_rl.agents import AGENTS, config_class
from robot_rl.backends import list_backends
from robot_rl.cli import doctor
from robot_rl.cli.flags import Parser, add_flags, read_flags
from robot_rl.data import Relabelling
from robot_rl.envs.tasks import TASKS, list_tasks
from robot_rl.errors import InvalidInputError, unknown_name
from robot_rl.specs import list_robots, load_robot
from robot_rl.training.checkpoint import read_info
from robot_rl.training.collect import CollectConfig, collect
from robot_rl.training.demo import DemoConfig, run_demo
from robot_rl.training.judge import EvalConfig, judge, recorded_env
from robot_rl.training.offline import PretrainConfig, pretrain, resume_pretrain
from robot_rl.training.online import TrainConfig, resume_train, train
from robot_rl.training.setup import EnvChoice


@dataclass
class Outcome:
    """What a command says: the JSON object, the text for people, the exit code."""

    values: dict[str, Any]
    text: str = ""
    code: int = 0


@dataclass(frozen=True)
class Command:
    """A subcommand; one with ``actions`` has its own subcommands and runs the one that is named."""

    name: str
    summary: str
    description: str
    add_arguments: Callable[[Parser], None]
    run: Callable[[argparse.Namespace], Outcome]
    epilog: str = field(default="")
    actions: tuple[Command, ...] = ()


def no_arguments(parser: Parser) -> None:
    """A command without flags of its own."""


def group(
    name: str, summary: str, description: str, *actions: Command, epilog: str = ""
) -> Command:
    """A command whose ``actions`` do the work; without one it shows its help."""

    def run(args: argparse.Namespace) -> Outcome:
        for action in actions:
            if action.name == args.action:
                return action.run(args)
        return Outcome({}, args.help_text(), 2)

    return Command(name, summary, description, no_arguments, run, epilog, actions)


def _add_overwrite(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--overwrite", action="store_true",
        help="if the folder of --out is in use, set it aside as <name>.old",
    )


def _env(args: argparse.Namespace, checkpoint: str = "", data: str = "") -> EnvChoice:
    """The environment that was asked for; what was not said, as where the checkpoint learned or
    the data was recorded."""
    known: dict[str, Any] = {}
    if checkpoint:
        learned = read_info(checkpoint).env
        inherited = ("robot", "backend", "control_hz")
        known = {name: learned[name] for name in inherited if name in learned}
    elif data:
        known = recorded_env(data)
    choice = EnvChoice(**{**known, **read_flags(args, EnvChoice)})
    if choice.robot not in list_robots():
        raise unknown_name("robot", choice.robot, list_robots())
    if choice.backend not in list_backends():
        raise unknown_name("backend", choice.backend, list_backends())
    return choice


# -- list ---------------------------------------------------------------------------------------


def _list_run(args: argparse.Namespace) -> Outcome:
    values = {
        "tasks": list_tasks(),
        "robots": list_robots(),
        "backends": list_backends(),
        "agents": list(AGENTS),
    }
    lines = ["tasks"]
    lines += [f"  {name:<10} {task.description}" for name, task in TASKS.items()]
    lines += ["robots"]
    for name in values["robots"]:
        spec = load_robot(name)
        lines.append(f"  {name:<10} {len(spec.joints)} joints, {spec.gripper.name}")
    lines += ["backends", *(f"  {name}" for name in values["backends"])]
    lines += ["agents"]
    lines += [f"  {name:<10} {_first_line(AGENTS[name])}" for name in AGENTS]
    return Outcome(values, "\n".join(lines))


def _first_line(entry: Any) -> str:
    agent = entry[0] if isinstance(entry, tuple) else entry
    return (agent.__doc__ or "").strip().splitlines()[0]


# -- doctor -------------------------------------------------------------------------------------


def _doctor_run(args: argparse.Namespace) -> Outcome:
    checks = doctor.run_checks()
    ok = doctor.all_required_ok(checks)
    values = {"ok": ok, "checks": [dataclasses.asdict(check) for check in checks]}
    return Outcome(values, doctor.format_checks(checks), 0 if ok else 1)


# -- collect ------------------------------------------------------------------------------------


def _collect_arguments(parser: Parser) -> None:
    add_flags(parser, CollectConfig, title="what to record")
    add_flags(parser, EnvChoice, title="environment")
    _add_overwrite(parser)


def _collect_run(args: argparse.Namespace) -> Outcome:
    config = CollectConfig(**read_flags(args, CollectConfig))
    values = collect(config, _env(args, config.checkpoint), overwrite=args.overwrite,
                     quiet=args.quiet)
    text = (f"recorded {values['episodes']} episodes ({values['steps']} steps), success "
            f"{values['success_rate']:.2f}, in {values['path']}")
    return Outcome(values, text, 130 if values.get("interrupted") else 0)


# -- pretrain -----------------------------------------------------------------------------------


def _pretrain_arguments(parser: Parser) -> None:
    add_flags(parser, PretrainConfig, title="pretraining")
    add_flags(parser, Relabelling, title="goal relabelling (shares, normalised to 1)",
              prefix="relabel-")
    parser.add_argument("--resume", metavar="RUN", default="",
                        help="go on exactly where this run stopped; only --steps may be given")
    _add_overwrite(parser)


def _relabelled(args: argparse.Namespace) -> dict[str, Any]:
    return read_flags(args, Relabelling, prefix="relabel-")


def _relabelling(args: argparse.Namespace) -> Relabelling | None:
    given = _relabelled(args)
    return Relabelling(**{"original": 0.0, **given}) if given else None


def _pretrain_run(args: argparse.Namespace) -> Outcome:
    given = read_flags(args, PretrainConfig)
    if args.resume:
        _only({**given, **_relabelled(args), **_agent_overrides(args)}, ("steps",))
        values = resume_pretrain(args.resume, steps=given.get("steps"), quiet=args.quiet)
    else:
        values = pretrain(
            PretrainConfig(**given),
            agent_overrides=_agent_overrides(args),
            relabelling=_relabelling(args),
            overwrite=args.overwrite,
            quiet=args.quiet,
        )
    return _trained(values, f"{values['steps']} updates, "
                    f"{values['updates_per_second']:.0f} per second")


def _trained(values: dict[str, Any], what: str) -> Outcome:
    from robot_rl.report.runs import report_run

    text = f"{what}; checkpoint {values['checkpoint']}"
    if values.get("success_rate") is not None:
        text += f"; success {values['success_rate']:.2f}"
    if values["interrupted"]:
        text += f"\nstopped; go on with --resume {values['run']}"
    else:
        try:
            values["report"] = str(report_run(Path(values["run"]), videos=0))
            text += f"\nreport {values['report']}"
        except ImportError as error:
            text += f"\nno report: {error}"
    return Outcome(values, text, 130 if values["interrupted"] else 0)


def _only(given: dict[str, Any], allowed: tuple[str, ...]) -> None:
    extra = sorted(set(given) - set(allowed))
    if extra:
        raise InvalidInputError(
            f"a resumed run keeps its options; {', '.join(extra)} cannot be given with --resume"
        )


# -- train --------------------------------------------------------------------------------------


def _train_arguments(parser: Parser) -> None:
    add_flags(parser, TrainConfig, title="practice")
    add_flags(parser, EnvChoice, title="environment")
    add_flags(parser, Relabelling, title="goal relabelling (shares, normalised to 1)",
              prefix="relabel-")
    parser.add_argument("--resume", metavar="RUN", default="",
                        help="go on exactly where this run stopped; only --env-steps may be given")
    _add_overwrite(parser)


def _train_run(args: argparse.Namespace) -> Outcome:
    given = read_flags(args, TrainConfig)
    if args.resume:
        others = {**read_flags(args, EnvChoice), **_relabelled(args), **_agent_overrides(args)}
        _only({**given, **others}, ("env_steps",))
        values = resume_train(args.resume, env_steps=given.get("env_steps"), quiet=args.quiet)
    else:
        values = train(
            TrainConfig(**given),
            _env(args, given.get("from_run", "")),
            agent_overrides=_agent_overrides(args),
            relabelling=_relabelling(args),
            overwrite=args.overwrite,
            quiet=args.quiet,
        )
    return _trained(values, f"{values['env_steps']} steps, {values['episodes']} episodes")


# -- eval ---------------------------------------------------------------------------------------


def _eval_arguments(parser: Parser) -> None:
    add_flags(parser, EvalConfig, title="evaluation")
    add_flags(parser, EnvChoice, title="environment")


def _eval_run(args: argparse.Namespace) -> Outcome:
    config = EvalConfig(**read_flags(args, EvalConfig))
    env = _env(args, config.checkpoint, config.data)
    values = judge(config, env)
    text = (f"success {values['success_rate']:.3f} over {values['episodes']} episodes, mean return "
            f"{values['mean_return']:.2f}, safety violations {values['safety_violations']}")
    if "recorded_success_rate" in values:
        text += (f"; the recording's success {values['recorded_success_rate']:.3f}, "
                 f"{values['restored']} episodes began as recorded")
    return Outcome(values, text)


# -- report -------------------------------------------------------------------------------------


def _report_arguments(parser: Parser) -> None:
    parser.add_argument("run", metavar="RUN", help="run folder")
    parser.add_argument("--compare", metavar="RUN", nargs="+", default=[],
                        help="further runs to draw in the same curves")
    parser.add_argument("--videos", metavar="N", type=int, default=2,
                        help="evaluation episodes to film (default: 2)")


def _report_run(args: argparse.Namespace) -> Outcome:
    from robot_rl.report.runs import report_run

    path = report_run(Path(args.run), videos=args.videos,
                      others=[Path(other) for other in args.compare])
    return Outcome({"report": str(path)}, f"report {path}")


# -- demo ---------------------------------------------------------------------------------------


def _demo_arguments(parser: Parser) -> None:
    add_flags(parser, DemoConfig, title="demonstration")
    _add_overwrite(parser)


def _demo_run(args: argparse.Namespace) -> Outcome:
    from robot_rl.report.demo import report_demo

    config = DemoConfig(**read_flags(args, DemoConfig))
    result = run_demo(config, overwrite=args.overwrite, quiet=args.quiet)
    values = {**result.values(), "report": str(report_demo(result))}
    lines = ["", f"success over {config.eval_episodes} held-out goals",
             f"  recorded data            {values['data_success']:.2f}"]
    lines += [f"  {s.agent:<5}{s.stage:<9} {s.backend:<9} {s.result.success_rate:.2f}"
              for s in result.stages]
    lines.append(f"report  {values['report']}")
    return Outcome(values, "\n".join(lines))


# -- agents' own options ------------------------------------------------------------------------


def add_agent_flags(parser: Parser, argv: list[str]) -> None:
    """Give ``pretrain`` and ``train`` the options of the agent that ``argv`` names."""
    name = PretrainConfig.agent
    for i, word in enumerate(argv):
        if word == "--agent" and i + 1 < len(argv):
            name = argv[i + 1]
        elif word.startswith("--agent="):
            name = word.partition("=")[2]
    if name not in AGENTS:
        return
    for action in parser._subparsers._group_actions if parser._subparsers else []:
        for command in ("pretrain", "train"):
            sub = action.choices[command]  # type: ignore[index]
            add_flags(sub, config_class(name), title=f"options of the agent {name}")


def _agent_overrides(args: argparse.Namespace) -> dict[str, Any]:
    agent = getattr(args, "agent", PretrainConfig.agent)
    return read_flags(args, config_class(agent)) if agent in AGENTS else {}


COMMANDS: tuple[Command, ...] = (
    Command("list", "tasks, arms, engines and agents",
            "List what there is to choose from.", no_arguments, _list_run),
    Command("doctor", "what works on this machine and how to get what is missing",
            "Check Python, engines, rendering, video, ROS and cameras.", no_arguments,
            _doctor_run),
    Command("collect", "record episodes with a scripted policy, at random, or with a checkpoint",
            "Record episodes into a folder, each kept as soon as it ends.",
            _collect_arguments, _collect_run,
            "example:\n  robot-rl collect --task Push --robot sawyer --policy scripted "
            "--quality 0.5 --episodes 200 --out data/push"),
    Command("pretrain", "learn from recorded episodes",
            "Learn from recorded episodes; leaves a run folder that train can go on from.",
            _pretrain_arguments, _pretrain_run,
            "examples:\n  robot-rl pretrain --agent iql --data data/push --out runs/push-iql\n"
            "  robot-rl pretrain --agent awac --data demos.npz --task AdroitHandDoor-v1 "
            "--out runs/door\n"
            "--agent NAME --help shows that agent's own options."),
    Command("train", "learn by practice, from scratch or on from a pretrained run",
            "Practise and learn in turn; leaves a run folder.",
            _train_arguments, _train_run,
            "examples:\n  robot-rl train --from runs/push-iql --env-steps 10000 "
            "--out runs/push-practice\n"
            "  robot-rl train --agent awac --task Reach --env-steps 5000 --out runs/reach"),
    Command("eval", "run a policy on held-out goals",
            "Run a policy for episodes and say how often it succeeds.",
            _eval_arguments, _eval_run,
            "example:\n  robot-rl eval --checkpoint runs/push-practice --backend pybullet "
            "--episodes 100"),
    Command("report", "write a run's report.html with plots and videos",
            "Draw a run's curves, film its policy, and write one self-contained page.",
            _report_arguments, _report_run),
    Command("demo", "the whole story: record, pretrain, practise, compare",
            "Teach a simulated arm to push a puck, from mediocre recorded data and then by "
            "practice, and report every stage over held-out goals.",
            _demo_arguments, _demo_run),
)
