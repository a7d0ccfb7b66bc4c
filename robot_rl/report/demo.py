"""The page that tells what the demonstration did."""

from __future__ import annotations

from pathlib import Path

from robot_rl.envs.tasks import make_task
from robot_rl.report.html import (
    Commands,
    Config,
    Facts,
    Headline,
    Number,
    Plot,
    Result,
    Section,
    Text,
    Video,
    Videos,
    machine_facts,
    results_table,
    write_report,
)
from robot_rl.report.plots import Boundary, plot_curves, plot_success_bars
from robot_rl.report.reproduce import collect_command, evaluation_command, run_command
from robot_rl.report.video import film_episodes
from robot_rl.training.checkpoint import load_agent
from robot_rl.training.demo import DemoResult
from robot_rl.training.evaluate import AgentPolicy
from robot_rl.training.runs import read_config, read_metrics
from robot_rl.training.setup import EnvChoice

_STAGES = {
    "offline": "after pretraining",
    "online": "after practice",
    "transfer": "after practice, on the other engine",
}


def report_demo(result: DemoResult) -> Path:
    """Write ``report.html`` into the demonstration's folder; returns its path."""
    config, values = result.config, result.values()
    task = make_task(config.task)
    episodes = result.data["episodes"]
    rows = [Result("recorded operator", round(result.data["success_rate"] * episodes), episodes,
                   note=f"quality {config.quality}")]
    rows += [
        Result.from_scores(f"{s.agent}, {_STAGES[s.stage]} ({s.backend})", s.result.as_dict(),
                           distance_unit=task.goal_unit)
        for s in result.stages
    ]
    first = config.agents[0]
    minutes = values["seconds"] / 60
    sections: list[Section] = [
        Headline([
            Number("recorded data", f"{values['data_success']:.0%}"),
            Number("behaviour cloning", f"{values['bc_success']:.0%}"),
            Number(f"{first} pretrained", f"{values['offline_success']:.0%}"),
            Number(f"{first} after practice", f"{values['online_success']:.0%}"),
        ]),
        Text(
            f"A simulated {config.robot} learned to {task.description} on {config.backend}: first "
            f"from {episodes} recorded episodes of a mediocre operator, then by practising. Every "
            f"stage below was judged on the same {config.eval_episodes} goals, none of which was "
            f"seen in training. An episode counts as a success if its last state is within "
            f"{task.threshold} {task.goal_unit} of the goal. It took {minutes:.1f} minutes."
        ),
        results_table(rows, title="Results"),
        Plot(
            plot_success_bars({row.label: (row.successes, row.episodes) for row in rows}),
            caption="Success on held-out goals, with 95% intervals.",
            title="Success at each stage",
        ),
    ]
    pretrained = _longest(result, "offline")
    curves = _curves(result, pretrained)
    if curves:
        sections.append(Plot(
            plot_curves(curves, ylabel="success", percent=True, boundary=Boundary(pretrained)),
            caption="Success on held-out goals; every agent's practice follows its pretraining.",
            title="Learning",
        ))
    sections.append(_videos(result))
    sections += [
        Facts({f"{k} (s)": round(v, 1) for k, v in result.seconds.items()},
              title="Where the time went"),
        Commands(_commands(result), title="The same by hand",
                 note="Give --out another folder, or --overwrite to set the old one aside."),
        Config(config.__dict__, title="Configuration"),
        Facts(machine_facts(), title="Machine and software"),
    ]
    return write_report(result.folder / "report.html",
                        title=f"{config.robot} learns: {task.name}", sections=sections)


def _longest(result: DemoResult, stage: str) -> float:
    steps = [_steps(result, name.split()[0], stage) for name in result.runs
             if name.endswith(stage)]
    return float(max(steps, default=0))


def _curves(
    result: DemoResult, pretrained: float
) -> dict[str, tuple[list[float], list[float]]]:
    """Success of each agent; practice is drawn from ``pretrained`` on."""
    curves: dict[str, tuple[list[float], list[float]]] = {}
    for agent in ("bc", *result.config.agents):
        steps: list[float] = []
        scores: list[float] = []
        for stage, offset in (("offline", 0.0), ("online", pretrained)):
            run = result.runs.get(f"{agent} {stage}")
            for row in read_metrics(run) if run is not None else []:
                if "eval/success_rate" in row:
                    steps.append(offset + float(row["step"]))
                    scores.append(float(row["eval/success_rate"]))
        if steps:
            curves[agent] = (steps, scores)
    return curves


def _videos(result: DemoResult) -> Videos:
    config = result.config
    wanted = [("bc", "offline", "behaviour cloning"),
              (config.agents[0], "online", f"{config.agents[0]} after practice")]
    films: list[Video] = []
    choice = EnvChoice(task=config.task, robot=config.robot, backend=config.backend)
    if config.videos == 0:
        return Videos([], title="Films", note="None were asked for.")
    try:
        env = choice.make(render_mode="rgb_array")
        try:
            for agent_name, stage, caption in wanted:
                agent, _ = load_agent(result.runs[f"{agent_name} {stage}"])
                filmed = film_episodes(env, AgentPolicy(agent), result.folder / "videos",
                                       config.videos, config.seed, name=f"{agent_name}-{stage}")
                films += [Video(film.path, f"{caption}: {film.outcome}") for film in filmed]
        finally:
            env.close()
    except Exception as error:  # engines and graphics drivers raise what they like
        return Videos(films, title="Films", note=f"No films: {error}")
    return Videos(films, title="Films")


def _commands(result: DemoResult) -> list[str]:
    config = result.config
    lines = [collect_command(result.data["path"])]
    for name, run in result.runs.items():
        lines.append(run_command(read_config(run)))
        if name.endswith("online"):
            env = EnvChoice(task=config.task, robot=config.robot, backend=config.backend)
            lines.append(evaluation_command(run, env, config.eval_episodes, config.seed))
    return lines


def _steps(result: DemoResult, agent: str, stage: str) -> int:
    rows = read_metrics(result.runs[f"{agent} {stage}"])
    return int(max(row["step"] for row in rows)) if rows else 0
