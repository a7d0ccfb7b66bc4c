"""Reports: videos that decode, curves that show the data given."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest

from robot_rl.errors import InvalidInputError, MissingDependencyError
from robot_rl.training.evaluate import RandomPolicy

av = pytest.importorskip("av")
pytest.importorskip("cv2")
pytest.importorskip("matplotlib")

from robot_rl.report import html, optional, plots, video  # noqa: E402
from tests.unit.report_pages import Stub, decode, lines, moving_square, read_page  # noqa: E402

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
