"""Plots of datasets and episodes, and episodes as videos: what is drawn is what was recorded."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robot_rl.data import DatasetInfo, DatasetWriter, Episode, Images
from robot_rl.data.summary import Source, open_source
from robot_rl.errors import InvalidInputError, MissingDependencyError

av = pytest.importorskip("av")
cv2 = pytest.importorskip("cv2")
pytest.importorskip("matplotlib")

from robot_rl.report import episodes as plots  # noqa: E402
from robot_rl.report import playback  # noqa: E402
from robot_rl.report.episodes import plot_dataset, plot_episode, state_times  # noqa: E402
from robot_rl.report.playback import play_episode  # noqa: E402

HEIGHT = 240  # Of a small camera's picture in a video.


def shade(state: int) -> int:
    """What the frames of a state are filled with."""
    return 20 + 25 * state


def full_episode(number: int, steps: int = 8) -> Episode:
    """An episode with everything that one can have; its frames' shade says the state."""
    rng = np.random.default_rng(number)
    stamps = 100.0 + number * 10 + np.arange(steps + 1) * 0.1
    position = np.linspace(rng.uniform(-0.2, 0.2, 2), rng.uniform(-0.2, 0.2, 2), steps + 1)
    observation = np.concatenate([position, rng.normal(size=(steps + 1, 4))], axis=1)
    frames = np.stack([np.full((24, 32, 3), shade(s), np.uint8) for s in range(steps + 1)])
    gray = np.stack([np.full((30, 30, 1), shade(s), np.uint8) for s in range(steps + 1)])
    late = np.arange(steps + 1) >= steps - 2
    ends = np.arange(steps) == steps - 1
    return Episode(
        observation=observation.astype(np.float32), achieved=position.astype(np.float32) + 0.01,
        desired=position[-1].astype(np.float32),
        action=rng.uniform(-1, 1, (steps, 3)).astype(np.float32),
        requested=rng.uniform(-1, 1, (steps, 3)).astype(np.float32),
        reward=late[1:].astype(np.float32) - 1, terminated=np.zeros(steps, np.bool_),
        truncated=ends, success=late[1:], intervention=np.arange(steps) < 2,
        reset=np.zeros(steps, np.bool_), rate_hz=rng.normal(10, 0.1, steps).astype(np.float32),
        stamp_s=stamps, stamps_s={"observation.images.front": stamps - 0.03},
        images={"front": Images.each(frames, stamps - 0.03), "top": Images.each(gray, stamps)},
        extra={"observation.force": rng.normal(size=(steps + 1, 6)).astype(np.float32),
               "cost": np.where(ends, np.nan, 1.0), "phase": np.arange(steps),
               "contact": np.arange(steps + 1) > 3},
        metadata={"instruction": "<script>push</script>"},
    )


@pytest.fixture
def recorded(tmp_path) -> Callable[..., Source]:
    """Records episodes and opens them; without cameras if so asked for."""

    def record(count: int = 12, *, cameras: bool = True, **info: Any) -> Source:
        found = [full_episode(n) for n in range(count)]
        if not cameras:
            found = [replace(e, images={}, stamps_s={}) for e in found]
        with DatasetWriter(tmp_path / "data", DatasetInfo.of(found[0], **info)) as writer:
            for each in found:
                writer.append(each)
        return open_source(tmp_path / "data")

    return record


def decode(path: str | Path) -> tuple[list[Any], float]:
    with av.open(str(path)) as container:
        rate = float(container.streams.video[0].average_rate)
        return [f.to_ndarray(format="rgb24") for f in container.decode(video=0)], rate


def lines_of(panels: list[plots.Panel], title: str) -> list[np.ndarray]:
    """The values of the lines that the first panel of that title draws."""
    panel = next(p for p in panels if p.title.startswith(title))
    figure = plots.draw_panels([panel])
    return [np.asarray(line.get_ydata(), np.float64) for line in figure.axes[0].get_lines()]


# -- a dataset ----------------------------------------------------------------------------------


def test_plot_of_a_dataset(recorded, tmp_path):
    source = recorded(task="Push", rate_hz=10.0)
    result = plot_dataset(source, tmp_path / "deep" / "plot.png")
    assert (result["episodes"], result["sampled"]) == (12, 12)
    assert result["panels"] == [
        "Return", "Success at the end", "Length", "Steps in which a person acted",
        "Actions executed", "Actions asked for", "States", "Goals achieved",
        "Goals and whether they were reached", "Control rate kept", "Time between states",
        "Age of what a state was decided on"]
    image = cv2.imread(str(tmp_path / "deep" / "plot.png"))
    assert image.shape[0] > 1000 and image.std() > 5


def test_curves_hold_the_recorded_numbers(recorded):
    source = recorded()
    sample = plots._Sample.of(source, source.entries)
    panels = plots._episode_panels(source.entries, sample)
    returns = [each.reward.sum() for each in sample.episodes]
    dots, mean = lines_of(panels, "Return")
    assert np.allclose(dots, returns)
    assert np.allclose(mean[-1], np.mean(returns[-5:]))
    assert np.allclose(lines_of(panels, "Steps in which")[0], 2 / 8)


def test_distributions_hold_the_recorded_numbers(recorded):
    source = recorded(rate_hz=10.0)
    sample = plots._Sample.of(source, source.entries)
    (panel,) = (p for p in plots._distribution_panels(source, sample)
                if p.title == "Actions executed")
    bars = plots.draw_panels([panel]).axes[0].patches
    rows = np.concatenate([each.action for each in sample.episodes])
    low, high = np.quantile(rows, [0.25, 0.75], axis=0)
    assert np.allclose([bar.get_y() for bar in bars], low, atol=1e-6)
    assert np.allclose([bar.get_height() for bar in bars], high - low, atol=1e-6)
    timing = plots._timing_panels(source, sample)
    label = plots.draw_panels(timing[1:2]).axes[0].get_xlabel()
    assert label.startswith("ms  (median 100, ") and "asked 100" in label
    label = plots.draw_panels(timing[2:]).axes[0].get_xlabel()
    assert "median 30, " in label


def test_page_of_a_dataset(recorded, tmp_path):
    source = recorded(task="<script>x</script>", config={"seed": 3})
    (source.path / "episodes" / "000004.mcap").write_bytes(b"broken")
    source = open_source(source.path)
    result = plot_dataset(source, tmp_path / "page.html")
    assert result["episodes"] == 11
    page = (tmp_path / "page.html").read_text()
    assert "<script>" not in page and "Episodes that cannot be read" in page
    assert "Distributions" in page and "observation.force" in page and 'src="http' not in page


def test_a_large_dataset_is_sampled(recorded, monkeypatch, tmp_path):
    monkeypatch.setattr(plots, "_SAMPLE_EPISODES", 4)
    source = recorded()
    assert plots._Sample.of(source, source.entries).numbers == [0, 4, 7, 11]
    assert plot_dataset(source, tmp_path / "p.png")["sampled"] == 4
    monkeypatch.setattr(plots, "_SAMPLE_BYTES", 1)
    assert plots._Sample.of(source, source.entries).numbers == [0]


def test_a_dataset_with_the_least_is_drawn(episode, dataset_of, tmp_path):
    one = episode(1, goal_dim=0)
    source = open_source(dataset_of(tmp_path / "d", [replace(one, requested=None)]))
    result = plot_dataset(source, tmp_path / "p.png")
    assert result["panels"] == ["Return", "Success at the end", "Length", "Actions executed",
                                "States"]
    plot_dataset(source, tmp_path / "p.html")
    assert plot_episode(source, source.entries[0], tmp_path / "e.png")["panels"] == [
        "Flags", "action", "next.reward", "observation.state"]


def test_nothing_to_draw(tmp_path):
    DatasetWriter(tmp_path / "d", DatasetInfo("Reach", (4,), 0, 3)).close()
    with pytest.raises(InvalidInputError, match="holds no episodes that can be drawn"):
        plot_dataset(open_source(tmp_path / "d"), tmp_path / "p.png")


def test_when_nothing_can_be_read_it_says_why(recorded, tmp_path):
    source = recorded(2)
    for file in (source.path / "episodes").iterdir():
        raw = bytearray(file.read_bytes())
        raw[len(raw) // 2] ^= 1  # The index behind the data is whole.
        file.write_bytes(raw)
    with pytest.raises(InvalidInputError, match=r"00000\d\.mcap"):
        plot_dataset(open_source(source.path), tmp_path / "p.png")
    assert not (tmp_path / "p.png").exists()


# -- one episode --------------------------------------------------------------------------------


def test_plot_of_an_episode_shows_every_array(recorded, tmp_path):
    source = recorded(3)
    entry = source.find(2)
    result = plot_episode(source, entry, tmp_path / "e.png")
    titles = " ".join(result["panels"])
    for key in (*full_episode(2).step_arrays(), *full_episode(2).state_arrays()):
        words = {"next.success": "Flags", "next.terminated": "Flags", "next.truncated": "Flags",
                 "is_intervention": "Flags", "is_reset": "Flags",
                     "contact": "Flags"}.get(key, key)
        assert words in titles, key
    panels = plots._array_panels(source.read(entry), 0.0)
    drawn = lines_of(panels, "action")
    assert np.allclose(np.stack(drawn, axis=1), source.read(entry).action)
    assert np.allclose(lines_of(panels, "timestamp")[0], 100.0)
    flags = next(p for p in panels if p.title == "Flags")
    names = [label.get_text() for label in plots.draw_panels([flags]).axes[0].get_yticklabels()]
    assert names == ["success", "intervention", "reset", "terminated", "truncated", "contact"]
    plot_episode(source, entry, tmp_path / "e.html")
    page = (tmp_path / "e.html").read_text()
    assert "Episode 2 of data" in page and "&lt;script&gt;push" in page and "<script>" not in page


def test_times_of_states():
    one = full_episode(0)
    times, unit = state_times(one, 50.0)
    assert unit == "s" and np.allclose(times, np.arange(9) * 0.1)
    for stamps in (None, np.zeros(9), np.full(9, np.nan)):  # not of any use
        times, unit = state_times(replace(one, stamp_s=stamps), 50.0)
        assert unit == "s" and np.allclose(times, np.arange(9) * 0.02)
        times, unit = state_times(replace(one, stamp_s=stamps), 0.0)
        assert unit == "steps" and times[-1] == 8


# -- videos -------------------------------------------------------------------------------------


def test_video_of_an_episode(recorded, tmp_path):
    source = recorded(2, rate_hz=10.0)
    result = play_episode(source, source.find(1), tmp_path / "film.mp4")
    assert result["cameras"] == ["front", "top"] and result["frames"] == 9
    assert result["fps"] == pytest.approx(10.0) and result["success"] is True
    frames, rate = decode(result["path"])
    assert rate == pytest.approx(10.0, rel=1e-3) and len(frames) == 9 + 10
    assert frames[0].shape == (HEIGHT + playback._BAR, 320 + 240, 3)
    for state in range(9):
        for x in (160, 320 + 120):  # the middle of each camera
            assert abs(int(frames[state][120, x].mean()) - shade(state)) < 6, (state, x)
    bar = frames[8][HEIGHT:].astype(int)
    assert ((bar[..., 1] > bar[..., 0] + 60).sum() > 50), "success is marked"
    assert ((bar[..., 0] > bar[..., 2] + 80).sum() > 20), "so is the intervention"
    one = play_episode(source, source.find(1), tmp_path / "one.mp4", cameras=["top"], fps=5.0)
    frames, rate = decode(one["path"])
    assert frames[0].shape == (HEIGHT + playback._BAR, 240, 3) and rate == 5.0


def test_fast_recordings_are_thinned_to_the_last_state(recorded, tmp_path):
    source = recorded(1)
    result = play_episode(source, source.find(0), tmp_path / "film.mp4", fps=100.0)
    assert result["frames"] == 3 and result["fps"] == 25.0
    frames, rate = decode(result["path"])
    assert rate == 25.0
    for frame, state in zip(frames, (0, 4, 8), strict=False):
        assert abs(int(frame[120, 160].mean()) - shade(state)) < 6


def test_animated_gif(recorded, tmp_path):
    image = pytest.importorskip("PIL.Image")
    source = recorded(1)
    result = play_episode(source, source.find(0), tmp_path / "film.gif", fps=10.0)
    with image.open(result["path"]) as film:
        assert film.n_frames == 9 == result["frames"] and film.info["duration"] == 100
        film.seek(8)
        assert abs(np.asarray(film.convert("RGB"))[120, 160].mean() - shade(8)) < 8


def test_strip_of_frames(recorded, tmp_path):
    source = recorded(1)
    result = play_episode(source, source.find(0), tmp_path / "strip.png", frames=3)
    assert (result["frames"], result["fps"]) == (3, None)
    strip = cv2.imread(result["path"])
    assert strip.shape == (2 * (HEIGHT + 2) + playback._BAR, 3 * 322, 3)
    for column, state in enumerate((0, 4, 8)):
        for row in range(2):
            assert strip[row * 242 + 120, column * 322 + 160].tolist() == [shade(state)] * 3
    many = play_episode(source, source.find(0), tmp_path / "all.png", frames=50)
    assert many["frames"] == 9


@pytest.mark.parametrize("suffix", [".mp4", ".gif", ".png"])
def test_without_cameras_it_is_seen_from_above(recorded, tmp_path, suffix):
    source = recorded(2, cameras=False, task="Push", rate_hz=10.0)
    result = play_episode(source, source.find(0), tmp_path / f"above{suffix}")
    assert result["cameras"] == [] and result["frames"] == (1 if suffix == ".png" else 9)
    if suffix == ".mp4":
        frames, _ = decode(result["path"])
        blue = [int(((f[:480, :, 2].astype(int) - f[:480, :, 0]) > 100).sum()) for f in frames[:9]]
        assert blue[8] > blue[4] > blue[0] > 0, "the path grows"


def test_paths_are_of_what_is_known(recorded):
    source = recorded(1, cameras=False, task="Push")
    one = source.read(source.find(0))
    found = playback._paths(source, one)
    assert list(found) == ["tool", "achieved goal"]
    assert np.array_equal(found["tool"], one.observation[:, :2])
    source.info.task = "somebody else's"
    assert list(playback._paths(source, one)) == ["achieved goal"]
    source.info.task = "Reach"
    same = replace(one, achieved=one.observation[:, :3], desired=one.observation[0, :3])
    assert list(playback._paths(source, same)) == ["tool"]


def test_nothing_to_be_seen(episode, dataset_of, tmp_path):
    source = open_source(dataset_of(tmp_path / "d", [episode(3, goal_dim=1)]))
    with pytest.raises(InvalidInputError, match=r"without cameras.*data plot .*--episode 0"):
        play_episode(source, source.find(0), tmp_path / "film.mp4")
    assert os.listdir(tmp_path) == ["d"]


def test_an_unknown_camera_is_named(recorded, tmp_path):
    source = recorded(1)
    with pytest.raises(InvalidInputError, match=r"'frnt' \(did you mean 'front'\?\); valid: front"):
        play_episode(source, source.find(0), tmp_path / "film.mp4", cameras=["frnt"])


def test_a_missing_package_is_named(recorded, tmp_path, monkeypatch):
    source = recorded(1)

    def lacks(module: str, purpose: str) -> Any:
        raise MissingDependencyError(f"{purpose} need {module}; install robot_rl[report]")

    monkeypatch.setattr(playback, "need", lacks)
    with pytest.raises(MissingDependencyError, match="cv2"):
        play_episode(source, source.find(0), tmp_path / "film.mp4")
    assert not (tmp_path / "film.mp4").exists()


def test_files_are_replaced_only_when_asked(recorded, tmp_path):
    source = recorded(1)
    for name, write in (("f.mp4", play_episode), ("f.png", play_episode), ("g.png", plot_episode)):
        (tmp_path / name).write_text("mine")
        with pytest.raises(InvalidInputError, match="already there"):
            write(source, source.find(0), tmp_path / name)
        assert (tmp_path / name).read_text() == "mine"
        write(source, source.find(0), tmp_path / name, overwrite=True)
        assert (tmp_path / name).stat().st_size > 1000
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInputError, match="cannot write"):
        plot_episode(source, source.find(0), tmp_path / "file" / "p.png")
