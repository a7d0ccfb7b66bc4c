"""The report of a run folder."""

from __future__ import annotations

import inspect
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from robot_rl.agents import AGENTS
from robot_rl.envs.external import is_external, rule_for
from robot_rl.envs.tasks import TASKS
from robot_rl.errors import InvalidInputError, RobotRLError
from robot_rl.report.history import DISTANCE, PRACTICE, SUCCESS, Run, read_run
from robot_rl.report.html import (
    Commands,
    Config,
    Facts,
    Headline,
    Number,
    Plot,
    Result,
    Section,
    Table,
    Text,
    Video,
    Videos,
    machine_facts,
    results_table,
    write_report,
)
from robot_rl.report.optional import need
from robot_rl.report.plots import (
    Boundary,
    Curve,
    Curves,
    moving_average,
    plot_curves,
    plot_panels,
    plot_success_bars,
    save_png,
    wilson_interval,
)
from robot_rl.report.reproduce import collect_command, evaluation_command, run_command
from robot_rl.report.video import VideoError, film_episodes, format_distance
from robot_rl.training.checkpoint import find_checkpoint, load_agent
from robot_rl.training.evaluate import AgentPolicy
from robot_rl.training.runs import CONFIG, METRICS, read_config

_ENGINES = {
    "mujoco": "simulated by MuJoCo", "pybullet": "simulated by PyBullet", "ros": "through ROS 2",
}
_ROBOTS = {"sawyer": "Rethink Sawyer", "panda": "Franka Panda", "fr3": "Franka FR3"}
_AGENTS = {
    "bc": "behaviour cloning, which copies the recorded actions",
    "iql": "implicit Q-learning, which learns what recorded actions were worth and copies the "
    "better ones",
    "awac": "advantage-weighted actor-critic, which copies actions the more, the better its "
    "critic rates them",
}
_ENOUGH_SEEDS = 3  # From so many runs that differ in their seed only, mean and spread are drawn.


def report_run(
    run_folder: str | Path, *, videos: int = 2, others: Sequence[str | Path] = ()
) -> Path:
    """Write ``report.html``, ``plots/`` and ``videos/`` into a run folder.

    Args:
        run_folder: what ``pretrain`` or ``train`` left, finished or not.
        videos: held-out episodes to film with the newest checkpoint; where that cannot be done
            the page says why.
        others: further runs to draw in the same curves and list in the same table.

    Raises:
        InvalidInputError: a configuration is missing or damaged; the message names the file.
        MissingDependencyError: matplotlib is not installed.
    """
    if videos < 0:
        raise InvalidInputError(f"videos is {videos}, should be at least 0")
    need("matplotlib.figure", "reports")
    run = read_run(run_folder)
    runs = [run, *(read_run(other) for other in others)]
    labels = _labels(runs)
    results = _results(runs, labels)
    sections: list[Section] = [
        Headline(_headline(run)),
        Text([*_story(run), *run.notes], title="What was done"),
    ]
    if results:
        sections.append(results_table(
            results, title="Results",
            caption=f"Success on {_held_out(run)}; an episode succeeds if its last state does",
        ))
        if len(results) > 1:
            figure = plot_success_bars(_bars(results))
            save_png(figure, run.folder / "plots" / "results.png")
            sections.append(Plot(figure, "Bars: share of episodes that succeeded. Lines: its 95% "
                                 "interval (Wilson), wide where episodes were few."))
    sections += _curve_sections(run, runs, labels, has_results=bool(results))
    sections.append(_videos(run, videos))
    evaluations = _evaluations(run)
    if evaluations is not None:
        sections.append(evaluations)
    sections += [
        Config(run.config, summary=f"Every option of this run ({CONFIG})", title="Configuration"),
        _commands(run, runs),
        Facts(_times(run), title="The run in time"),
        Facts(machine_facts(), title="Machine and software that wrote this page"),
    ]
    title = f"{_task_name(run)}: {run.agent or 'an agent'}, "
    title += "pretrained" if run.kind == "pretrain" else "after practice"
    return write_report(run.folder / "report.html", title=title, sections=sections)


# -- words and numbers --------------------------------------------------------------------------


def _labels(runs: Sequence[Run]) -> list[str]:
    """A name for each run, told apart by task, kind and in the end the folder."""
    def distinct(names: Sequence[str]) -> bool:
        return len(set(names)) == len(names)

    labels = [f"{run.agent}, seed {run.seed}" for run in runs]
    ways: list[Callable[[Run], str]] = []
    if len({run.env.task for run in runs}) > 1:
        ways.append(_task_name)
    if not distinct(labels):
        ways.append(lambda run: run.folder.name)
    for way in ways:
        labels = [f"{label} ({way(run)})" for label, run in zip(labels, runs, strict=True)]
    if not distinct(labels):
        labels = [f"{label} #{i + 1}" for i, label in enumerate(labels)]
    return labels


def _task_name(run: Run) -> str:
    return run.env.task or "Unnamed task"


def _held_out(run: Run) -> str:
    return "held-out goals" if run.env.task in TASKS else "held-out episodes"


def _unit(run: Run) -> str:
    task = TASKS.get(run.env.task)
    return task.goal_unit if task is not None else ""


def _count(number: float) -> str:
    return f"{int(number):,}".replace(",", "\u202f")


def _rate(scores: Mapping[str, Any]) -> tuple[int, int]:
    episodes = int(scores["episodes"])
    return round(float(scores["success_rate"]) * episodes), episodes


def _headline(run: Run) -> list[Number]:
    numbers = []
    own = run.own.evaluations()
    unit = _unit(run)
    before = [s for phase in run.phases[:-1] for s in phase.evaluations()]
    if own:
        successes, episodes = _rate(own[-1])
        low, high = wilson_interval(successes, episodes)
        numbers.append(Number(
            f"success on {_held_out(run)}", f"{successes / episodes:.0%}",
            f"{successes} of {episodes} episodes; 95% interval {low:.0%} to {high:.0%}",
        ))
        if before:
            was, of = _rate(before[-1])
            numbers.append(Number("before this practice", f"{was / of:.0%}",
                                  f"{was} of {of} episodes"))
        if "mean_final_distance" in own[-1]:
            numbers.append(Number("mean distance at the end",
                                  format_distance(own[-1]["mean_final_distance"], unit),
                                  "from the goal, over the same episodes"))
    else:
        numbers.append(Number(f"success on {_held_out(run)}", "not measured",
                              "this run has no evaluation"))
    what = "updates" if run.kind == "pretrain" else "steps of practice"
    detail = f"of {_count(run.planned)} planned" if run.planned else ""
    if run.kind == "train":
        episodes_done = len(run.own.series("practice/return")[0])
        detail += f"; {_count(episodes_done)} episodes" if episodes_done else ""
    numbers.append(Number(what, _count(run.own.length), detail.lstrip("; ")))
    return numbers


def _story(run: Run) -> list[str]:
    texts = [_about_task(run)]
    agent = _about_agent(run.agent)
    if run.kind == "pretrain":
        texts.append(
            f"The agent {agent} learned from recorded episodes alone "
            f"({run.options.get('data') or 'data not stated'}): {_count(run.own.length)} updates, "
            "without moving the robot."
        )
    else:
        start = "from scratch"
        if run.options.get("from_run"):
            start = f"after pretraining with {_count(run.pretraining)} updates on recorded episodes"
            if not run.pretraining:
                start = f"on from {run.options['from_run']}"
        texts.append(
            f"The agent {agent} practised {start}: {_count(run.own.length)} steps of the robot, "
            "learning as it went."
        )
    if not run.own.rows:
        texts.append(
            f"This run has no metrics: it was stopped before the first line of {METRICS}, so "
            "there is nothing to draw yet."
        )
    elif run.own.length < run.planned:
        texts.append(
            f"It stands at {_count(run.own.length)} of {_count(run.planned)} "
            f"{'updates' if run.kind == 'pretrain' else 'steps'}: it was stopped, or still runs."
        )
    return texts


def _about_task(run: Run) -> str:
    name, env = run.env.task, run.env
    if not name:
        return "The data does not say which task it is of."
    if is_external(name):
        rule = rule_for(name)
        return (f"Task: {name}, a task from elsewhere, by its gymnasium id"
                + (f" ({rule.description})." if rule else "."))
    task = TASKS.get(name)
    if task is None:
        return f"Task: {name}."
    where = _ENGINES.get(env.backend, f"through the backend {env.backend}")
    text = (f"Task: {name} ({task.description}), with a {_ROBOTS.get(env.robot, env.robot)} "
            f"{where}, at {env.control_hz:g} actions per second. An episode lasts "
            f"{task.duration_s:g} s; the goal counts as reached within "
            f"{format_distance(task.threshold, task.goal_unit)}.")
    if env.randomize:
        varied = ", ".join(f"{name} {value}" for name, value in env.randomize.items())
        text += f" Every episode's world differs at random ({varied})."
    return text


def _about_agent(name: str) -> str:
    if name in _AGENTS:
        return f"{name} ({_AGENTS[name]})"
    if name not in AGENTS:
        return name or "(not named)"
    first = (inspect.getdoc(AGENTS[name][0]) or "").split("\n")[0].split(". ")[0].rstrip(".")
    return f"{name} ({first[:1].lower()}{first[1:]})" if first else name


def _stage(run: Run) -> list[tuple[str, dict[str, Any]]]:
    """The last evaluation of each phase, with a name for it."""
    found = []
    many = sum(phase.kind == "train" for phase in run.phases) > 1
    for i, phase in enumerate(run.phases):
        scores = phase.evaluations()
        if scores:
            stage = "pretrained" if phase.kind == "pretrain" else "after practice"
            if many and phase.kind == "train":
                stage += f", part {i + 1 - (run.phases[0].kind == 'pretrain')}"
            found.append((stage, scores[-1]))
    return found


def _results(runs: Sequence[Run], labels: Sequence[str]) -> list[Result]:
    results = []
    for run, label in zip(runs, labels, strict=True):
        for stage, scores in _stage(run):
            unit = "updates" if stage == "pretrained" else "steps"
            results.append(Result.from_scores(
                f"{label}, {stage}", scores, distance_unit=_unit(run),
                note=f"{_count(scores['step'])} {unit}",
            ))
    return results


def _bars(results: Sequence[Result]) -> dict[str, tuple[int, int]]:
    bars: dict[str, tuple[int, int]] = {}
    for row in results:
        bars.setdefault(row.label, (row.successes, row.episodes))
    return bars


def _evaluations(run: Run) -> Table | None:
    rows: list[list[Any]] = []
    unit = _unit(run)
    for phase in run.phases:
        for scores in phase.evaluations():
            successes, episodes = _rate(scores)
            low, high = wilson_interval(successes, episodes)
            distance = scores.get("mean_final_distance")
            rows.append([
                "pretraining" if phase.kind == "pretrain" else "practice", _count(scores["step"]),
                f"{successes} of {episodes}", f"{low:.0%} to {high:.0%}",
                "" if "mean_return" not in scores else f"{scores['mean_return']:.1f}",
                "" if distance is None else format_distance(distance, unit),
                "" if "safety_violations" not in scores else int(scores["safety_violations"]),
            ])
    columns = ["phase", "step", "successes", "95% interval", "mean return",
               "mean final distance", "safety violations"]
    return Table(columns, rows, caption="Every evaluation of this run", folded=True,
                 title="All evaluations") if rows else None


# -- curves -------------------------------------------------------------------------------------


def _curve_sections(
    run: Run, runs: Sequence[Run], labels: Sequence[str], *, has_results: bool
) -> list[Section]:
    practised = any(phase.kind == "train" for r in runs for phase in r.phases)
    pretrained = max(r.pretraining for r in runs)
    boundary = Boundary(pretrained) if practised and pretrained else None
    at = float(pretrained) if practised else 0.0
    xlabel = "practice (steps of the robot)" if practised else "pretraining (updates)"
    sections: list[Section] = []

    def add(name: str, figure: Any, caption: str) -> None:
        save_png(figure, run.folder / "plots" / f"{name}.png")
        sections.append(Plot(figure, caption, title="" if sections else "Learning curves"))

    def drawn(key: str) -> Curves:
        return _grouped(runs, labels, lambda r: r.curve(key, at))

    success = drawn(SUCCESS)
    if success:
        bands = {}
        caption = "Share of evaluation episodes that ended in success; none of them was practised."
        if len(runs) == 1:
            scores = [s for phase in run.phases for s in phase.evaluations()]
            limits = [wilson_interval(*_rate(s)) for s in scores]
            # Only where every point is an evaluation with its number of episodes.
            if len(limits) == len(run.curve(SUCCESS, at)[0]):  # type: ignore[arg-type]
                bands[labels[0]] = ([low for low, _ in limits], [high for _, high in limits])
                caption += " Shaded: 95% intervals (Wilson)."
        caption += _about_groups(success)
        if boundary is not None:
            caption += " At the dashed line practice begins."
        add("success", plot_curves(
            success, title=f"Success on {_held_out(run)}", xlabel=xlabel, ylabel="success rate",
            boundary=boundary, bands=bands, percent=True,
        ), caption)
    window = _window(runs)
    practice = _grouped(runs, labels, lambda r: _smoothed(r, window))
    if practice:
        add("practice", plot_curves(
            practice, title="Success during practice", xlabel="steps of practice",
            ylabel="success rate", percent=True,
        ), f"Episodes of practice, as the agent explores: the mean of the last {window} episodes."
           + _about_groups(practice))
    distance = drawn(DISTANCE)
    if distance and max(len(r.curve(DISTANCE, at)[0]) for r in runs) > 1:  # type: ignore[arg-type]
        unit = _unit(run)
        if unit == "m":
            distance, unit = _scaled(distance, 100.0), "cm"
        add("distance", plot_curves(
            distance, title="Distance from the goal at the end of held-out episodes",
            xlabel=xlabel, ylabel=f"mean distance [{unit}]" if unit else "mean distance",
            boundary=boundary,
        ), "Mean over the episodes of an evaluation; lower is better." + _about_groups(distance))
    panels = {}
    for key in dict.fromkeys(key for r in runs for key in r.keys()):
        if "/" not in key and not key.endswith("_per_second"):
            curves = drawn(key)
            if curves:
                panels[key.replace("_", " ")] = curves
    if panels:
        add("losses", plot_panels(
            panels, xlabel="updates, then steps" if boundary else xlabel, boundary=boundary,
        ), "What the updates reported: losses, and the values that the critics estimate.")
    if not sections:
        why = ("no metrics were written" if not run.own.rows
               else "the metrics hold no numbers over steps")
        sections.append(Text(f"There are no curves: {why}.", title="Learning curves"))
    elif not success and not has_results:
        sections.append(Text("Success was not measured while learning: the run was made without "
                             "evaluations (--eval-episodes)."))
    return sections


def _scaled(curves: Curves, factor: float) -> Curves:
    def scale(curve: Curve) -> Curve:
        return curve[0], factor * np.asarray(curve[1], dtype=np.float64)

    return {label: [scale(run) for run in curve] if isinstance(curve, list) else scale(curve)
            for label, curve in curves.items()}


def _about_groups(curves: Curves) -> str:
    grouped = any(isinstance(curve, list) for curve in curves.values())
    return " Over several seeds: the mean, and one standard deviation to each side." if grouped \
        else ""


def _grouped(
    runs: Sequence[Run], labels: Sequence[str], curve_of: Callable[[Run], Curve]
) -> dict[str, Curve | list[Curve]]:
    """Curves by label; enough runs that differ in their seed only become one."""
    groups: dict[str, list[int]] = {}
    for i, run in enumerate(runs):
        same = (run.agent, run.kind, run.env.as_dict(), run.config.get("agent"), run.pretraining)
        groups.setdefault(repr(same), []).append(i)
    curves: dict[str, Curve | list[Curve]] = {}
    for members in groups.values():
        found = {i: curve_of(runs[i]) for i in members}
        found = {i: curve for i, curve in found.items() if len(curve[0])}  # type: ignore[arg-type]
        seeds = sorted(runs[i].seed for i in found)
        if len(set(seeds)) == len(seeds) >= _ENOUGH_SEEDS:
            name = f"{runs[members[0]].agent}, {len(seeds)} seeds"
            while name in curves:
                name += " "
            curves[name] = list(found.values())
        else:
            curves.update({labels[i]: curve for i, curve in found.items()})
    return curves


def _practice(run: Run) -> Curve:
    steps: list[float] = []
    values: list[float] = []
    done = 0
    for phase in run.phases:
        if phase.kind == "train":
            found = phase.series(PRACTICE)
            steps += [done + step for step in found[0]]
            values += found[1]
            done += phase.length
    return steps, values


def _window(runs: Sequence[Run]) -> int:
    episodes = max(len(_practice(run)[0]) for run in runs)  # type: ignore[arg-type]
    return int(np.clip(episodes // 8, 5, 100))


def _smoothed(run: Run, window: int) -> Curve:
    steps, values = _practice(run)
    return steps, moving_average(values, window)


# -- videos, commands, times --------------------------------------------------------------------


def _videos(run: Run, episodes: int) -> Videos:
    title = "Videos"
    again = f"robot-rl report {shlex.quote(str(run.folder))} --videos 2"
    if episodes == 0:
        return Videos([], f"No episodes were filmed for this page; `{again}` films some.", title)
    if not run.env.task:
        return Videos([], "There is no video: the run does not say its task, so there is no "
                      "environment to film.", title)
    try:
        films, step = _film(run, episodes)
    except RobotRLError as error:
        return Videos([], f"There is no video: {error}.", title)
    note = (f"The agent as it was at step {_count(step)}, acting by its mean in the first held-out "
            "episodes of its evaluation. The last frame stands for a second.")
    if run.env.task in TASKS:
        note += " The green ball marks the goal." if _has_marker(run.env.task) else ""
    return Videos([Video(f.path, f"Episode {f.number}: {f.outcome}") for f in films], note, title)


def _has_marker(task: str) -> bool:
    return "goal" in TASKS[task]().scene().markers


def _film(run: Run, episodes: int) -> tuple[list[Any], int]:
    import torch

    checkpoint = find_checkpoint(run.folder)
    agent, _ = load_agent(checkpoint)
    number = checkpoint.name.rpartition("_")[2]
    step = int(number) if number.isdigit() else run.own.length
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        try:
            env = run.env.make(render_mode="rgb_array")
        except RobotRLError:
            raise
        except Exception as error:  # engines and graphics drivers raise what they like
            raise VideoError(
                f"the environment cannot be made here ({type(error).__name__}: {error})"
            ) from None
        try:
            sizes = tuple(env.observation_space[key].shape  # type: ignore[index]
                          for key in ("observation", "desired_goal")) + (env.action_space.shape,)
            expected = ((agent.observation_dim,), (agent.goal_dim,), (agent.action_dim,))
            if sizes != expected:
                raise VideoError(
                    f"the agent was made for observation, goal and action of {expected}, the "
                    f"environment has {sizes}"
                )
            films = film_episodes(env, AgentPolicy(agent), run.folder / "videos", episodes,
                                  run.seed, name=f"step{step:07d}")
        finally:
            env.close()
    finally:
        torch.set_num_threads(threads)
    return films, step


def _commands(run: Run, runs: Sequence[Run]) -> Commands:
    lines = []
    for phase in run.phases:
        config = run.config if phase is run.own else read_config(phase.folder)
        data = str(config[config["kind"]].get("data") or "")
        recorded = collect_command(data) if data else ""
        if recorded and recorded not in lines:
            lines.append(recorded)
        lines.append(run_command(config))
    scores = run.own.evaluations()
    if run.env.task:
        lines.append(evaluation_command(run.folder, run.env,
                                        int(scores[-1]["episodes"]) if scores else 20, run.seed))
    compared = [str(other.folder) for other in runs[1:]]
    lines.append(shlex.join(["robot-rl", "report", str(run.folder),
                             *(["--compare", *compared] if compared else [])]))
    return Commands(
        lines, "The seeds are given: on the CPU, the same software on the same machine should give "
        "the same numbers. Give --out another folder, or --overwrite to set the old one aside.",
        title="Commands to repeat it",
    )


def _times(run: Run) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    begun, ended = _modified(run.folder / CONFIG), _modified(run.folder / METRICS)
    if begun:
        facts["run begun"] = _clock(begun)
    if ended and run.own.rows:
        facts["last line of metrics"] = _clock(ended)
        if begun and ended > begun:
            facts["between them"] = _duration(ended - begun)
    key, unit = (("updates_per_second", "updates") if run.kind == "pretrain"
                 else ("steps_per_second", "steps"))
    _, rates = run.own.series(key)
    if rates and rates[-1] > 0.0:
        facts["speed"] = f"{rates[-1]:.0f} {unit} per second, evaluations not counted"
    facts["trained on"] = (f"{run.options.get('device', 'cpu')}, "
                           f"{run.options.get('threads', 'an unknown number of')} torch thread(s)")
    facts["run folder"] = str(run.folder)
    return facts


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _clock(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(seconds))


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
