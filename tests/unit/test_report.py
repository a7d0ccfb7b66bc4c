"""Reports: self-contained pages, videos that decode, curves that show the data given."""

from __future__ import annotations

import base64
import importlib
import json
import re
import shlex
from dataclasses import asdict, replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from robot_rl.agents import make_agent
from robot_rl.errors import InvalidInputError, MissingDependencyError
from robot_rl.training.checkpoint import describe, save_checkpoint
from robot_rl.training.evaluate import EvalResult, RandomPolicy
from robot_rl.training.offline import PretrainConfig
from robot_rl.training.online import TrainConfig
from robot_rl.training.setup import EnvChoice

av = pytest.importorskip("av")
pytest.importorskip("cv2")
pytest.importorskip("matplotlib")

from robot_rl.report import html, optional, plots, runs, video  # noqa: E402
from robot_rl.report.reproduce import run_command  # noqa: E402

HOSTILE = '<script>alert("1")</script> & \'"><img src=x onerror=alert(2)>'


class Page(HTMLParser):
    """What a page refers to, its tags, headings and visible text."""

    VOID = {"meta", "img", "source", "br", "link", "input"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.urls: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == [], f"tags left open: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append((tag, found))
        for name in ("src", "srcset", "href", "poster", "data", "action", "background"):
            if name in found:
                self.urls.append(found[name] or "")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split()).replace("\u202f", " ")

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


def read_page(path: Path) -> Page:
    """Parse a page and check what holds for every page."""
    text = path.read_text()
    page = Page(text)
    assert all(url.startswith("data:") for url in page.urls), "something is fetched from outside"
    assert not {"script", "iframe", "link", "object", "embed", "form"} & {t for t, _ in page.tags}
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
    style = text[text.index("<style>"):text.index("</style>")]
    assert "url(" not in style and "@import" not in style
    assert "default-src 'none'" in text
    assert all(attrs.get("alt") for attrs in page.all("img"))
    assert all(attrs.get("aria-label") for attrs in page.all("video"))
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels.count(1) == 1 and levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert page.all("html")[0]["lang"] == "en"
    return page


def content(url: str) -> bytes:
    return base64.b64decode(url.partition("base64,")[2], validate=True)


def moving_square(count: int, height: int = 48, width: int = 64) -> list[np.ndarray]:
    frames = []
    for i in range(count):
        frame = np.full((height, width, 3), 200, np.uint8)
        frame[8:24, 2 * i:2 * i + 16] = (200, 30, 30)
        frames.append(frame)
    return frames


def decode(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


class Stub(gymnasium.Env[Any, Any]):
    """Five steps; succeeds from the third on; draws a square."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(self, image: Any = "square", fps: int = 10, steps: int = 5) -> None:
        self.image, self.steps = image, steps
        self.metadata = {**self.metadata, "render_fps": fps}
        self.observation_space = spaces.Dict(
            observation=spaces.Box(-1, 1, (3,), np.float32),
            achieved_goal=spaces.Box(-1, 1, (2,), np.float32),
            desired_goal=spaces.Box(-1, 1, (2,), np.float32),
        )
        self.action_space = spaces.Box(-1.0, 1.0, (3,), np.float32)
        self.seeds: list[int | None] = []
        self.closed = False

    def _out(self) -> tuple[dict[str, Any], dict[str, Any]]:
        observation = {"observation": np.zeros(3, np.float32),
                       "achieved_goal": np.zeros(2, np.float32),
                       "desired_goal": np.zeros(2, np.float32)}
        return observation, {"is_success": self.t >= 3, "distance": 0.5 - 0.1 * self.t,
                             "executed_action": np.zeros(3, np.float32)}

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.seeds.append(seed)
        self.t = 0
        return self._out()

    def step(self, action: Any) -> Any:
        self.t += 1
        observation, info = self._out()
        return observation, -1.0, False, self.t >= self.steps, info

    def render(self) -> Any:
        if isinstance(self.image, Exception):
            raise self.image
        return moving_square(1, 100, 100)[0] if isinstance(self.image, str) else self.image

    def close(self) -> None:
        self.closed = True


# -- videos -------------------------------------------------------------------------------------


def test_a_video_decodes_to_its_frames(tmp_path):
    frames = moving_square(12)
    path = video.write_video(tmp_path / "new" / "a.mp4", frames, 10)
    assert path == tmp_path / "new" / "a.mp4"
    assert [p.name for p in path.parent.iterdir()] == ["a.mp4"]
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate == 10
    decoded = decode(path)
    assert len(decoded) == 12 and decoded[0].shape == (48, 64, 3)
    for shown, given in zip(decoded, frames, strict=True):
        assert np.abs(shown.astype(int) - given).mean() < 6
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat"), "a browser waits for the index"


def test_odd_sizes_become_even(tmp_path):
    path = video.write_video(tmp_path / "a.mp4", moving_square(3, 33, 65), 12.5)
    assert [frame.shape for frame in decode(path)] == [(34, 66, 3)] * 3


@pytest.mark.parametrize(
    ("frames", "fps", "named"),
    [
        ([], 10, "no frames"),
        (moving_square(2), 0, "fps"),
        (moving_square(2), float("nan"), "fps"),
        ([np.zeros((8, 8, 3))], 10, "frame 0"),
        ([np.zeros((8, 8), np.uint8)], 10, "frame 0"),
        ([*moving_square(1), np.zeros((8, 8, 3), np.uint8)], 10, "frame 1"),
    ],
)
def test_frames_that_cannot_be_used(tmp_path, frames, fps, named):
    with pytest.raises(InvalidInputError, match=named):
        video.write_video(tmp_path / "a.mp4", frames, fps)
    assert list(tmp_path.iterdir()) == []


def test_a_video_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInputError, match="cannot write"):
        video.write_video(tmp_path / "file" / "a.mp4", moving_square(2), 10)


def _without(monkeypatch: pytest.MonkeyPatch, *missing: str) -> None:
    known = av.codec.Codec

    def codec(name: str, mode: str) -> Any:
        if name in missing:
            raise av.codec.codec.UnknownCodecError(name)
        return known(name, mode)

    monkeypatch.setattr(av.codec, "Codec", codec)


def test_without_h264_an_animated_image_is_written_and_said(tmp_path, monkeypatch, caplog):
    _without(monkeypatch, "libx264", "libopenh264", "libwebp_anim")
    path = video.write_video(tmp_path / "a.mp4", moving_square(4), 10)
    assert path == tmp_path / "a.png" and b"acTL" in path.read_bytes()
    assert len(decode(path)) == 4
    assert "no H.264" in caplog.text
    page = read_page(html.write_report(tmp_path / "r.html", title="t",
                                       sections=[html.Videos([path])]))
    assert page.all("video") == [] and len(page.all("img")) == 1


def test_without_any_encoder(tmp_path, monkeypatch):
    _without(monkeypatch, *(encoder.codec for encoder in video._ENCODERS))
    with pytest.raises(video.VideoError, match="libx264"):
        video.write_video(tmp_path / "a.mp4", moving_square(4), 10)


def test_recorded_episodes(tmp_path):
    env = Stub()
    films = video.film_episodes(env, RandomPolicy(3, 0), tmp_path, 2, 7, name="x")
    assert [film.path.name for film in films] == ["x-01.mp4", "x-02.mp4"]
    assert env.seeds == [1_070_000, 1_070_001], "the episodes that evaluate() runs"
    frames = decode(films[0].path)
    assert len(frames) == 6 + 10 and frames[0].shape == (240, 320, 3)
    assert films[0].success and films[0].first_success == 3 and films[0].steps == 5
    assert films[0].distance == pytest.approx(0.0)
    # The word for success comes up with it, on the second line of text.
    assert np.abs(frames[2][24:44, :80].astype(int) - frames[0][24:44, :80]).mean() < 3
    assert np.abs(frames[3][24:44, :80].astype(int) - frames[0][24:44, :80]).mean() > 10
    paths = video.record_videos(Stub(), RandomPolicy(3, 0), tmp_path, 1, 7, name="y")
    assert paths == [tmp_path / "y-01.mp4"]


def test_fast_environments_are_thinned(tmp_path):
    env = Stub(fps=100, steps=10)
    path = video.record_videos(env, RandomPolicy(3, 0), tmp_path, 1, 0, name="x")[0]
    # Steps 0, 4, 8 and the last, 10; then a second at 25 frames.
    assert len(decode(path)) == 4 + 25


@pytest.mark.parametrize(
    "image", [RuntimeError("no EGL"), None, np.zeros((4, 4)), np.zeros((4, 4, 3))]
)
def test_nothing_to_film(tmp_path, image):
    with pytest.raises(video.VideoError, match="renders"):
        video.record_videos(Stub(image), RandomPolicy(3, 0), tmp_path, 1, 0, name="x")
    assert list(tmp_path.iterdir()) == []


# -- plots --------------------------------------------------------------------------------------


def lines(figure: Any, axes: int = 0) -> dict[str, Any]:
    return {str(line.get_label()): line for line in figure.axes[axes].get_lines()}


def test_wilson_interval():
    # By the defining equation: the limits p solve (rate - p)^2 = z^2 p (1 - p) / n.
    for successes, episodes in ((0, 10), (3, 10), (10, 10), (171, 200), (1, 1)):
        rate = successes / episodes
        for limit in plots.wilson_interval(successes, episodes):
            assert 0.0 <= limit <= 1.0
            assert (rate - limit) ** 2 == pytest.approx(
                1.959964**2 * limit * (1 - limit) / episodes, abs=1e-6)
    assert plots.wilson_interval(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    for bad in ((1, 0), (-1, 5), (6, 5)):
        with pytest.raises(InvalidInputError):
            plots.wilson_interval(*bad)


def test_moving_average():
    values = np.random.default_rng(0).normal(size=30)
    brute = [values[max(0, i - 6):i + 1].mean() for i in range(30)]
    assert plots.moving_average(values, 7) == pytest.approx(brute)
    assert plots.moving_average([], 3).shape == (0,)


def test_curves_hold_the_data():
    figure = plots.plot_curves(
        {"a": ([0, 100, 200], [0.1, float("nan"), 0.3]), "b": ([50, 250], [0.5, 0.6])},
        boundary=plots.Boundary(200), percent=True, ylabel="success rate",
    )
    found = lines(figure)
    assert found["a"].get_xdata().tolist() == [0, 200]
    assert found["a"].get_ydata().tolist() == [0.1, 0.3]
    assert found["b"].get_xdata().tolist() == [50, 250]
    vertical = [line for line in figure.axes[0].get_lines() if list(line.get_xdata()) == [200, 200]]
    assert len(vertical) == 1
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts == ["pretraining (updates)", "practice (steps of the robot)"]
    names = [tick.get_text() for tick in figure.axes[0].get_xticklabels()]
    assert names.count("0") == 2, "steps count from 0 again where practice begins"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]


def test_several_runs_are_mean_and_spread():
    seeds = [([0, 10, 20], [0.0, 0.2, 0.4]), ([0, 20], [0.2, 0.6]), ([10, 30], [0.6, 0.6])]
    steps, mean, spread = plots.mean_and_spread(seeds)
    assert steps.tolist() == [10, 20]
    assert mean == pytest.approx([np.mean([0.2, 0.4, 0.6]), np.mean([0.4, 0.6, 0.6])])
    assert spread == pytest.approx([np.std([0.2, 0.4, 0.6]), np.std([0.4, 0.6, 0.6])])
    figure = plots.plot_curves({"iql": seeds})
    assert lines(figure)["iql"].get_ydata() == pytest.approx(mean)
    band = figure.axes[0].collections[0].get_paths()[0].vertices[:, 1]
    assert band.min() == pytest.approx((mean - spread).min())
    assert band.max() == pytest.approx((mean + spread).max())
    nothing = plots.mean_and_spread([([], []), ([1.0], [float("inf")])])
    assert [len(part) for part in nothing] == [0, 0, 0]


def test_lines_are_told_apart_without_colour():
    few = plots.plot_curves({name: ([0, 1], [0, 1]) for name in "abc"})
    assert len({line.get_marker() for line in few.axes[0].get_lines()}) == 3
    many = plots.plot_curves({name: (np.arange(100), np.arange(100)) for name in "abc"})
    assert len({str(line.get_linestyle()) + str(line._dash_pattern)
                for line in many.axes[0].get_lines()}) == 3


def test_panels_and_bars():
    figure = plots.plot_panels({
        "value loss": {"x": ([1, 2], [3, 4])}, "policy loss": {"x": ([1, 2], [5, 6]),
                                                               "y": ([1, 2], [7, 8])}})
    assert lines(figure, 0)["x"].get_ydata().tolist() == [3, 4]
    assert lines(figure, 1)["y"].get_ydata().tolist() == [7, 8]
    assert lines(figure, 1)["y"].get_color() != lines(figure, 0)["x"].get_color()
    bars = plots.plot_success_bars({"bc": (5, 10), "iql": (10, 10)})
    assert [bar.get_width() for bar in bars.axes[0].patches] == [0.5, 1.0]
    assert "bc: 50% (5/10)" in plots.describe_figure(bars)


def test_bad_curves_are_refused():
    with pytest.raises(InvalidInputError, match="same length"):
        plots.plot_curves({"a": ([1, 2], [1])})
    for draw in (plots.plot_panels, plots.plot_success_bars):
        with pytest.raises(InvalidInputError, match="nothing to draw"):
            draw({})


def test_pyplot_stays_out(monkeypatch, tmp_path):
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    plots.save_png(plots.plot_curves({"a": ([1, 2], [1, 2])}), tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_missing_is_named(monkeypatch):
    known = importlib.import_module

    def absent(name: str, *rest: Any) -> Any:
        if name.split(".")[0] in ("matplotlib", "av"):
            raise ModuleNotFoundError(f"No module named {name!r}")
        return known(name, *rest)

    monkeypatch.setattr(optional.importlib, "import_module", absent)
    with pytest.raises(MissingDependencyError, match=r"robot_rl\[report\]"):
        plots.plot_curves({"a": ([1], [1])})
    with pytest.raises(MissingDependencyError, match=r"robot_rl\[report\]"):
        video.write_video("never.mp4", moving_square(1), 10)


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
