"""Reports: self-contained pages of episodes and runs."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from robot_rl.agents import make_agent
from robot_rl.errors import InvalidInputError
from robot_rl.training.checkpoint import describe, save_checkpoint
from robot_rl.training.evaluate import EvalResult
from robot_rl.training.offline import PretrainConfig
from robot_rl.training.online import TrainConfig
from robot_rl.training.setup import EnvChoice

av = pytest.importorskip("av")
pytest.importorskip("cv2")
pytest.importorskip("matplotlib")

from robot_rl.report import html, plots, runs, video  # noqa: E402
from robot_rl.report.reproduce import run_command  # noqa: E402
from tests.unit.report_pages import HOSTILE, Stub, content, decode, lines, moving_square, read_page  # noqa: E402

# -- the page -----------------------------------------------------------------------------------


def test_a_page_holds_everything(tmp_path):
    film = video.write_video(tmp_path / "a.mp4", moving_square(5), 10)
    figure = plots.plot_curves({"iql": ([0, 1], [0.25, 0.75])}, title="Success")
    path = html.write_report(tmp_path / "out" / "report.html", title="A run", sections=[
        html.Headline([html.Number("success", "75%", "15 of 20")]),
        html.Text(["one", "two"], title="What"),
        html.results_table([html.Result("bc", 5, 10)], title="Results"),
        html.Plot(figure, "the caption"),
        html.Videos([html.Video(film, "an episode"), film], title="Videos"),
        html.Config({"a": {"b": [1, 2]}, "c": "text"}, title="Configuration"),
        html.Commands(["robot-rl list", "cd x && ls"], title="Commands"),
        html.Facts(html.machine_facts(), title="Machine"),
    ])
    page = read_page(path)
    film.unlink()
    clips = page.all("video")
    assert len(clips) == 2
    for attrs in clips:
        assert "controls" in attrs and "autoplay" not in attrs
        (tmp_path / "again.mp4").write_bytes(content(str(attrs["src"])))
        frames = decode(tmp_path / "again.mp4")
        assert len(frames) == 5 and frames[0].shape == (48, 64, 3)
        assert content(str(attrs["poster"])).startswith(b"\xff\xd8")
    light, dark = content(str(page.all("img")[0]["src"])), page.all("source")[0]
    assert b"<svg" in light and plots.INK.encode() in light
    assert plots.INK.encode() not in content(str(dark["srcset"]))
    assert "from 0.25 to 0.75" in str(page.all("img")[0]["alt"])
    for expected in ("75%", "15 of 20", "the caption", "a.b", "[1, 2]", "cd x && ls", "50%",
                     "24% to 76%", "torch threads", "CPUs", "Python", "mujoco"):
        assert expected in page.words
    assert page.all("details") and page.all("meta")[2]["name"] == "viewport"


def test_hostile_text_stays_text(tmp_path):
    figure = plots.plot_curves({HOSTILE: ([0, 1], [0, 1])}, title=HOSTILE, ylabel=HOSTILE)
    film = video.write_video(tmp_path / "a.mp4", moving_square(2), 10)
    path = html.write_report(tmp_path / "r.html", title=HOSTILE, sections=[
        html.Headline([html.Number(HOSTILE, HOSTILE, HOSTILE)], title=HOSTILE),
        html.Text(HOSTILE + "\ud800", title=HOSTILE),
        html.Table([HOSTILE], [[HOSTILE], [None], [1.5]], caption=HOSTILE, folded=True),
        html.Plot(figure, HOSTILE),
        html.Plot(figure, HOSTILE, alt=HOSTILE),
        html.Videos([html.Video(film, HOSTILE)], HOSTILE),
        html.Config({HOSTILE: {HOSTILE: HOSTILE, "x": [HOSTILE]}}, summary=HOSTILE),
        html.Commands([HOSTILE], HOSTILE),
        html.Facts({HOSTILE: HOSTILE}),
    ])
    page = read_page(path)
    assert len(page.all("img")) == 2 and HOSTILE in page.words
    assert page.all("video")[0]["aria-label"] == HOSTILE
    assert b"<script" not in content(str(page.all("img")[0]["src"]))


def test_foreign_and_large_figures(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    foreign = Figure()
    foreign.add_subplot().plot([1, 2])
    page = read_page(html.write_report(tmp_path / "a.html", title="t",
                                       sections=[html.Plot(foreign, "c")]))
    assert page.all("img")[0]["class"] == "paper" and page.all("source") == []
    monkeypatch.setattr(html, "_LARGEST_SVG", 10)
    page = read_page(html.write_report(tmp_path / "a.html", title="t",
                                       sections=[html.Plot(foreign, "c")]))
    assert content(str(page.all("img")[0]["src"])).startswith(b"\x89PNG")


def test_results_table():
    scores = EvalResult(20, 0.85, 0.9, -12.5, 0.031, 2, 1000)
    table = html.results_table([
        html.Result("data", 5, 10), html.Result.from_scores("iql", scores.as_dict())])
    assert table.columns == ["policy", "success", "95% interval", "episodes", "mean return",
                             "mean final distance", "safety violations"]
    assert list(table.rows[0]) == ["data", "50%", "24% to 76%", "5 of 10", "", "", ""]
    assert list(table.rows[1]) == ["iql", "85%", "64% to 95%", "17 of 20", "-12.5", "3.1 cm", 2]


def test_long_commands_are_broken_but_the_same():
    long = "robot-rl pretrain " + " ".join(f"--option-{i} 'two words'" for i in range(12))
    shown = html._wrapped(long)
    assert max(len(line) for line in shown.splitlines()) <= 92 and "\n" in shown
    assert shlex.split(shown.replace("\\\n", "")) == shlex.split(long)
    odd = "cd here && " + long
    assert html._wrapped(odd) == odd and html._wrapped("it's " + long[:80]) == "it's " + long[:80]


def test_pages_that_cannot_be_written(tmp_path):
    with pytest.raises(InvalidInputError, match=r"gone\.mp4"):
        html.write_report(tmp_path / "r.html", title="t",
                          sections=[html.Videos([tmp_path / "gone.mp4"])])
    with pytest.raises(InvalidInputError, match="avi"):
        html.write_report(tmp_path / "r.html", title="t", sections=[html.Videos(["a.avi"])])
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInputError, match="cannot write"):
        html.write_report(tmp_path / "file" / "r.html", title="t", sections=[])
    assert not (tmp_path / "r.html").exists()
    read_page(html.write_report(tmp_path / "r.html", title="empty", sections=[]))


# -- runs ---------------------------------------------------------------------------------------


def scores(rate: float, episodes: int = 20) -> dict[str, Any]:
    values = EvalResult(episodes, rate, rate, -40.0, 0.05, 0, 1000).as_dict()
    return {f"eval/{key}": value for key, value in values.items()}


def write_run(folder: Path, config: dict[str, Any], rows: list[dict[str, Any]] | None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if rows is not None:
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def write_pretrained(folder: Path, *, agent: str = "iql", seed: int = 0, task: str = "Push",
                     rates: tuple[float, ...] = (0.1, 0.3), **changes: Any) -> Path:
    env = EnvChoice(task=task, robot="panda", backend="pybullet")
    options = PretrainConfig(agent=agent, data="/data/push", steps=1000, seed=seed,
                             out=folder.name, task=task)
    built = make_agent(agent, observation_dim=3, goal_dim=2, action_dim=3, seed=seed)
    rows: list[dict[str, Any]] = []
    for i, rate in enumerate(rates):
        step = 500 * (i + 1)
        rows.append({"step": step, "policy_loss": 1.0 / (i + 1), "value_loss": float("nan"),
                     "updates_per_second": 150.0})
        rows.append({"step": step, **scores(rate)})
    save_checkpoint(folder / "checkpoints", 500 * len(rates), built,
                    describe(built, task=task, env=env.as_dict(), seed=seed))
    return write_run(folder, {
        "kind": "pretrain", "pretrain": {**asdict(options), **changes},
        "agent": asdict(built.config), "relabelling": {"original": 0.3, "future": 0.5,
                                                       "random": 0.2},
        "env": env.as_dict()}, rows)


def write_practised(folder: Path, source: str, *, episodes: int = 30) -> Path:
    env = EnvChoice(task="Push", robot="panda", backend="pybullet")
    options = TrainConfig(from_run=source, env_steps=1500, out=folder.name)
    rows: list[dict[str, Any]] = []
    for i in range(1, episodes + 1):
        rows.append({"step": 50 * i, "policy_loss": 0.5, "practice/return": -30.0,
                     "practice/success": float(i > 15), "steps_per_second": 60.0})
        if i % 10 == 0:
            rows.append({"step": 50 * i, **scores(0.3 + 0.02 * i)})
    return write_run(folder, {
        "kind": "train", "train": asdict(options), "agent_name": "iql",
        "agent": {}, "relabelling": {}, "env": env.as_dict()}, rows)


def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Catches the figures a report draws, by the name of their file."""
    figures: dict[str, Any] = {}

    def save(figure: Any, path: Path) -> Path:
        figures[Path(path).stem] = figure
        return plots.save_png(figure, path)

    monkeypatch.setattr(runs, "save_png", save)
    return figures


def test_a_practised_run(tmp_path, monkeypatch):
    figures = drawn(monkeypatch)
    before = write_pretrained(tmp_path / "pre run")
    folder = write_practised(tmp_path / "practice", str(before))
    path = runs.report_run(folder, videos=0)
    assert path == folder / "report.html"
    page = read_page(path)
    line = lines(figures["success"])["iql, seed 0"]
    assert line.get_xdata().tolist() == [500, 1000, 1500, 2000, 2500]
    assert line.get_ydata() == pytest.approx([0.1, 0.3, 0.5, 0.7, 0.9])
    assert any(list(other.get_xdata()) == [1000, 1000]
               for other in figures["success"].axes[0].get_lines())
    practice = lines(figures["practice"])["iql, seed 0"]
    successes = [float(i > 15) for i in range(1, 31)]
    assert practice.get_ydata() == pytest.approx(plots.moving_average(successes, 5))
    distance = lines(figures["distance"])["iql, seed 0"]
    assert distance.get_ydata() == pytest.approx([5.0] * 5), "in centimetres"
    assert [axes.get_title(loc="left") for axes in figures["losses"].axes] == ["policy loss"]
    assert len(figures["losses"].axes[0].get_lines()[0].get_xdata()) == 2 + 30
    assert {p.name for p in (folder / "plots").iterdir()} == {
        "success.png", "practice.png", "distance.png", "losses.png", "results.png"}
    for expected in ("Push", "push a puck", "Franka Panda", "PyBullet", "90%", "18 of 20",
                     "before this practice", "30%", "1 500", "30 episodes", "--from",
                     "implicit Q-learning", "No episodes were filmed", "60 steps per second",
                     "robot-rl train", "robot-rl eval"):
        assert expected in page.words, expected
    assert "\u2014" not in page.words
    names = [p.name for p in folder.iterdir()]
    assert not any(name.endswith(".part") for name in names)


def test_comparison_of_agents_and_of_seeds(tmp_path, monkeypatch):
    figures = drawn(monkeypatch)
    first = write_pretrained(tmp_path / "a")
    others = [write_pretrained(tmp_path / f"s{seed}", seed=seed, rates=(0.2, 0.1 * seed))
              for seed in (1, 2)]
    bc = write_pretrained(tmp_path / "bc", agent="bc", rates=(0.5, 0.6))
    runs.report_run(first, videos=0, others=[others[0], bc])
    assert list(lines(figures["success"])) == ["iql, seed 0", "iql, seed 1", "bc, seed 0"]
    page = read_page(runs.report_run(first, videos=0, others=[*others, bc]))
    found = lines(figures["success"])
    assert list(found) == ["iql, 3 seeds", "bc, seed 0"]
    assert found["iql, 3 seeds"].get_ydata() == pytest.approx([np.mean([0.1, 0.2, 0.2]),
                                                              np.mean([0.3, 0.1, 0.2])])
    assert "one standard deviation" in page.words and "iql, seed 2, pretrained" in page.words
    again = write_pretrained(tmp_path / "again")
    runs.report_run(first, videos=0, others=[again])
    assert list(lines(figures["success"])) == ["iql, seed 0 (a)", "iql, seed 0 (again)"]


def test_practice_beside_pretraining_starts_at_the_same_line(tmp_path, monkeypatch):
    figures = drawn(monkeypatch)
    long = write_pretrained(tmp_path / "long", rates=(0.1, 0.2, 0.3, 0.4))
    short = write_pretrained(tmp_path / "short", agent="awac")
    other = write_practised(tmp_path / "other", str(short / "checkpoints" / "step_0000001000"))
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "agent_name": "awac"}))
    runs.report_run(write_practised(tmp_path / "main", str(long)), videos=0, others=[other])
    found = lines(figures["success"])
    assert found["iql, seed 0"].get_xdata().tolist() == [500, 1000, 1500, 2000, 2500, 3000, 3500]
    assert found["awac, seed 0"].get_xdata().tolist() == [500, 1000, 2500, 3000, 3500]


def test_a_checkpoint_in_the_middle_cuts_the_pretraining(tmp_path):
    before = write_pretrained(tmp_path / "pre", rates=(0.1, 0.2, 0.3, 0.4))
    (before / "checkpoints" / "step_0000002000").rename(before / "checkpoints" / "step_0000001000")
    run = runs.read_run(write_practised(tmp_path / "p", str(before)))
    assert [phase.length for phase in run.phases] == [1000, 1500]
    assert run.curve("eval/success_rate", 1000.0)[0] == [500, 1000, 1500, 2000, 2500]


def test_practice_that_went_on_from_practice(tmp_path):
    before = write_pretrained(tmp_path / "pre")
    first = write_practised(tmp_path / "first", str(before))
    agent = make_agent("iql", observation_dim=3, goal_dim=2, action_dim=3)
    save_checkpoint(first / "checkpoints", 1500, agent,
                    describe(agent, task="Push", env={}, seed=0))
    second = write_practised(tmp_path / "second", str(first))
    run = runs.read_run(second)
    assert [(phase.kind, phase.length) for phase in run.phases] == [
        ("pretrain", 1000), ("train", 1500), ("train", 1500)]
    assert run.curve("eval/success_rate", 1000.0)[0] == [500, 1000, 1500, 2000, 2500, 3000, 3500,
                                                         4000]
    page = read_page(runs.report_run(second, videos=0))
    assert "after practice, part 1" in page.words and "after practice, part 2" in page.words


def test_what_a_run_went_on_from_is_gone(tmp_path):
    folder = write_practised(tmp_path / "p", str(tmp_path / "nowhere"))
    page = read_page(runs.report_run(folder, videos=0))
    assert "cannot be drawn" in page.words and "nowhere" in page.words


def test_a_run_that_goes_on_from_itself(tmp_path):
    folder = write_pretrained(tmp_path / "p")
    write_practised(folder, str(folder))
    assert "from itself" in read_page(runs.report_run(folder, videos=0)).words


def test_a_run_stopped_before_its_first_metrics(tmp_path):
    folder = write_pretrained(tmp_path / "p")
    for rows in (None, []):
        (folder / "metrics.jsonl").unlink()
        config = json.loads((folder / "config.json").read_text())
        write_run(folder, config, rows)
        page = read_page(runs.report_run(folder, videos=0))
        assert "stopped before the first line" in page.words and "no curves" in page.words
        assert "not measured" in page.words
        (folder / "metrics.jsonl").touch()


def test_a_run_without_evaluation_of_a_task_from_elsewhere(tmp_path):
    folder = write_pretrained(tmp_path / "p", task="AdroitHandDoor-v1")
    (folder / "metrics.jsonl").write_text(
        '{"step": 10, "policy_loss": 0.5}\n{"step": 20, "policy_loss": "high", "x": null}\n'
        '{"step": "many", "policy_loss": 1}\n[1]\nnot json\n{"step": 30, "policy_loss": 0.2}\n'
        '{"step": 40, "policy_loss": NaN}\n{"step": 50, "eval/success_rate": 7}\n{"step": 60, "po')
    page = read_page(runs.report_run(folder, videos=0))
    assert "without evaluations" in page.words and "door angle above 1.4 rad" in page.words
    assert "50 of 1 000 updates" in page.words


@pytest.mark.parametrize("task", ["", "Nonsense"])
def test_a_run_of_an_unknown_task(tmp_path, task):
    folder = write_pretrained(tmp_path / "p", task=task)
    assert "There is no video" in read_page(runs.report_run(folder, videos=1)).words


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "\xff", "{}", '{"kind": "dance"}', '{"kind": "pretrain"}',
     '{"kind": "pretrain", "pretrain": 3, "env": {}}', '{"kind": "pretrain", "pretrain": {}}',
     '{"kind": "train", "train": {}, "env": {"planet": "mars"}}',
     '{"kind": ["train"], "train": {}, "env": {}}', '{"kind": "train", "train": {}, "env": []}'],
)
def test_a_damaged_configuration_names_the_file(tmp_path, text):
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(InvalidInputError, match=r"config\.json"):
        runs.report_run(tmp_path)
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    "text",
    ['{"kind": "pretrain", "pretrain": {}, "env": {}}',
     '{"kind": "train", "train": {"from_run": 7, "seed": "x", "threads": null}, "env": {}}',
     '{"kind": "train", "train": {"data": ["a"]}, "env": {"task": 5, "robot": [], "backend": 1}}',
     '{"kind": "train", "train": {}, "env": {"task": "Push", "control_hz": "x", "randomize": 3}}',
     '{"kind": "pretrain", "pretrain": {"agent": 3, "seed": -4}, "env": {"randomize": null}}'],
)
def test_an_odd_configuration_is_reported_or_refused(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    try:
        read_page(runs.report_run(tmp_path, videos=1))
    except InvalidInputError as error:
        assert "config.json" in str(error)


def test_no_run_there(tmp_path):
    with pytest.raises(InvalidInputError, match=r"config\.json does not exist"):
        runs.report_run(tmp_path / "nothing")
    with pytest.raises(InvalidInputError, match="videos"):
        runs.report_run(write_pretrained(tmp_path / "p"), videos=-1)


def test_hostile_names_in_a_run(tmp_path):
    folder = write_pretrained(tmp_path / "p", data=HOSTILE, out=HOSTILE)
    page = read_page(runs.report_run(folder, videos=0))
    assert "<script>" in page.words


def test_videos_of_a_run(tmp_path, monkeypatch):
    made: list[Stub] = []

    def make(choice: EnvChoice, *, render_mode: str | None = None, obs: str = "state") -> Stub:
        assert render_mode == "rgb_array" and choice.backend == "pybullet"
        made.append(Stub())
        return made[-1]

    monkeypatch.setattr(EnvChoice, "make", make)
    folder = write_pretrained(tmp_path / "p", seed=3)
    page = read_page(runs.report_run(folder, videos=2))
    assert made[0].closed and made[0].seeds == [1_030_000, 1_030_001]
    assert sorted(p.name for p in (folder / "videos").iterdir()) == [
        "step0001000-01.mp4", "step0001000-02.mp4"]
    assert len(page.all("video")) == 2
    assert "Episode 2: success, first at step 3 of 5" in page.words
    embedded = tmp_path / "embedded.mp4"
    embedded.write_bytes(content(str(page.all("video")[1]["src"])))
    frames = decode(embedded)
    assert len(frames) == 16 and frames[0].shape == (240, 320, 3)


@pytest.mark.parametrize(
    ("fault", "said"),
    [("render", "no display"), ("make", "no engine"), ("checkpoint", "checkpoint"),
     ("sizes", "the agent was made for")],
)
def test_a_report_without_videos_says_why(tmp_path, monkeypatch, fault, said):
    folder = write_pretrained(tmp_path / "p")

    def make(choice: EnvChoice, **_: Any) -> Stub:
        if fault == "make":
            raise OSError("no engine")
        stub = Stub(RuntimeError("no display") if fault == "render" else "square")
        if fault == "sizes":
            stub.action_space = spaces.Box(-1.0, 1.0, (4,), np.float32)
        return stub

    monkeypatch.setattr(EnvChoice, "make", make)
    if fault == "checkpoint":
        for file in (folder / "checkpoints").rglob("*.safetensors"):
            file.unlink()
    page = read_page(runs.report_run(folder, videos=1))
    assert page.all("video") == []
    assert "There is no video" in page.words and said in page.words


def test_commands_read_back_to_the_configuration(tmp_path):
    from robot_rl.cli import commands
    from robot_rl.cli.flags import read_flags
    from robot_rl.cli.main import build_parser

    def parse(line: str) -> Any:
        words = shlex.split(line)[1:]
        parser = build_parser()
        commands.add_agent_flags(parser, words)
        return parser.parse_args(words)

    options = PretrainConfig(agent="iql", data="/a b/d", steps=7, seed=2, out="it's", log_every=5)
    agent = asdict(make_agent("iql", observation_dim=2, goal_dim=1, action_dim=1,
                              config={"expectile": 0.9, "value_clip": (-50.0, 0.0)}).config)
    config = json.loads(json.dumps({
        "kind": "pretrain", "pretrain": asdict(options), "agent": agent,
        "relabelling": {"original": 0.5, "future": 0.5, "random": 0.0},
        "env": EnvChoice(task="Push").as_dict()}))
    args = parse(run_command(config))
    assert PretrainConfig(**read_flags(args, PretrainConfig)) == options
    assert args.expectile == 0.9 and list(args.value_clip) == [-50.0, 0.0]
    assert (args.relabel_original, args.relabel_future) == (0.5, 0.5)
    practice = TrainConfig(agent="awac", env_steps=9, out="o", exploration="mean")
    env = EnvChoice(task="Door", robot="fr3", control_hz=5.0, randomize={"mass": 0.3})
    config = {"kind": "train", "train": asdict(practice), "agent_name": "awac", "agent": {},
              "relabelling": {}, "env": env.as_dict()}
    args = parse(run_command(config))
    assert TrainConfig(**read_flags(args, TrainConfig)) == practice
    assert EnvChoice(**read_flags(args, EnvChoice)) == env
    follow = replace(practice, agent="", from_run="/runs/x")
    args = parse(run_command({**config, "train": asdict(follow)}))
    assert TrainConfig(**read_flags(args, TrainConfig)) == follow
    assert EnvChoice(**read_flags(args, EnvChoice)) == replace(env, task="")
