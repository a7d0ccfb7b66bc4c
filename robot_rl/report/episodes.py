"""What a dataset looks like: curves over its episodes, distributions, timing; one episode's arrays.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from robot_rl.data.episodes import (
    ACHIEVED,
    ACTION,
    IMAGES,
    OBSERVATION,
    RATE,
    REQUESTED,
    TIMESTAMP,
    Episode,
)
from robot_rl.data.files import write_atomically
from robot_rl.data.summary import Entry, Source, summarize
from robot_rl.errors import InvalidInputError
from robot_rl.report.html import (
    Config,
    Facts,
    Headline,
    Number,
    Plot,
    Section,
    Table,
    Text,
    write_report,
)
from robot_rl.report.plots import (
    FAINT,
    INK,
    SERIES,
    dress,
    moving_average,
    new_figure,
    wilson_interval,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PLOT_SUFFIXES = (".png", ".html")
# Distributions are drawn from at most so many evenly spaced episodes and bytes of files.
_SAMPLE_EPISODES = 200
_SAMPLE_BYTES = 512 << 20
_MANY_DIMENSIONS = 24
_MOST_PANELS = 40
_MOST_LINES = 64
_ROW_HEIGHT = 1.75  # Inches, of the plot of one array.
_THUMBNAILS = 8

Draw = Callable[["Axes"], None]


@dataclass(frozen=True)
class Panel:
    """One small plot: its title, axes' names, what draws it, its height as a share of others'."""

    title: str
    draw: Draw
    xlabel: str = ""
    ylabel: str = ""
    percent: bool = False
    height: float = 1.0


def check_out(out: str | Path, suffixes: Sequence[str], *, overwrite: bool = False) -> Path:
    """The file to write, checked before any work is done.

    Raises:
        InvalidInputError: it ends otherwise than ``suffixes``, is a folder, or is there already and
            ``overwrite`` was not asked for.
    """
    path = Path(out)
    if path.suffix.lower() not in suffixes:
        raise InvalidInputError(
            f"{path}: a file ending in {path.suffix or 'nothing'} cannot be written; valid: "
            f"{', '.join(suffixes)}"
        )
    if path.is_dir():
        raise InvalidInputError(f"{path} is a folder, give a file")
    if path.exists() and not overwrite:
        raise InvalidInputError(
            f"{path} is already there; choose another, or give --overwrite to replace it"
        )
    return path


def write_file(path: Path, content: bytes) -> Path:
    """Write ``content`` whole or not at all, making the folder."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInputError(f"cannot write {path}: {error.strerror or error}") from None
    write_atomically(path, content)
    return path


def plot_dataset(source: Source, out: str | Path, *, overwrite: bool = False) -> dict[str, Any]:
    """Draw a dataset: returns, success and lengths over its episodes, distributions of actions and
    states, the rate kept, jitter, interventions. A page if ``out`` ends in .html, else a PNG.

    Returns:
        ``path``, ``episodes``, ``sampled`` (episodes that distributions are from), ``panels``.

    Raises:
        InvalidInputError: ``out`` cannot be written, or no episode can be read.
    """
    path = check_out(out, PLOT_SUFFIXES, overwrite=overwrite)
    good = [entry for entry in source.entries if not entry.problem]
    if not good:
        raise InvalidInputError(f"{source.path} holds no episodes that can be drawn")
    sample = _Sample.of(source, good)
    over = _episode_panels(good, sample)
    spread = _distribution_panels(source, sample)
    timing = _timing_panels(source, sample)
    if path.suffix.lower() == ".png":
        _write_png(path, draw_panels([*over, *spread, *timing]))
    else:
        _write_page(path, source, sample, (over, spread, timing))
    return {"path": str(path), "episodes": len(good), "sampled": len(sample.episodes),
            "panels": [panel.title for panel in (*over, *spread, *timing)]}


def plot_episode(
    source: Source, entry: Entry, out: str | Path, *, overwrite: bool = False
) -> dict[str, Any]:
    """Draw all arrays of one episode over time; a page if ``out`` ends in .html, else a PNG.

    Returns:
        ``path``, ``episode``, ``steps``, ``panels`` (their titles).

    Raises:
        InvalidInputError: ``out`` cannot be written, or the episode is damaged.
    """
    path = check_out(out, PLOT_SUFFIXES, overwrite=overwrite)
    episode = source.read(entry)
    panels = _array_panels(episode, source.info.rate_hz)
    left_out = panels[_MOST_PANELS:]
    figure = draw_panels(panels[:_MOST_PANELS], columns=1, width=9.0, height=_ROW_HEIGHT)
    if path.suffix.lower() == ".png":
        _write_png(path, figure)
    else:
        notes = [outcome(entry)]
        if left_out:
            notes.append("Not drawn: " + ", ".join(panel.title for panel in left_out))
        sections: list[Section] = [Text(notes), Plot(figure)]
        if episode.metadata:
            sections.append(Config(episode.metadata, "Metadata"))
        write_report(path, title=f"Episode {entry.number} of {source.path.name}",
                     sections=sections)
    return {"path": str(path), "episode": entry.number, "steps": len(episode),
            "panels": [panel.title for panel in panels[:_MOST_PANELS]]}


def outcome(entry: Entry) -> str:
    """How an episode went, in words."""
    text = f"{entry.steps} steps, {entry.ended or 'cut off'}, "
    text += "success" if entry.success else (
        "success on the way, but lost by the end" if entry.success_any else "no success")
    if math.isfinite(entry.total_reward):
        text += f", return {entry.total_reward:.4g}"
    return text


def state_times(episode: Episode, rate_hz: float) -> tuple[NDArray[np.float64], str]:
    """When each state was, from the first one on (T + 1,), and the unit: s, or steps."""
    stamps = episode.stamp_s
    if stamps is not None and np.isfinite(stamps).all() and (np.diff(stamps) > 0).all():
        return np.asarray(stamps - stamps[0], np.float64), "s"
    numbers = np.arange(len(episode) + 1, dtype=np.float64)
    if rate_hz > 0.0 and math.isfinite(rate_hz):
        return numbers / rate_hz, "s"
    return numbers, "steps"


# -- what is drawn from ---------------------------------------------------------------------------


@dataclass
class _Sample:
    """Evenly spaced episodes, without their frames."""

    numbers: list[int] = field(default_factory=list)
    episodes: list[Episode] = field(default_factory=list)

    @classmethod
    def of(cls, source: Source, entries: Sequence[Entry]) -> _Sample:
        """Episodes that can be read, within the limits.

        Raises:
            InvalidInputError: none can.
        """
        sample, read, problem = cls(), 0, None
        count = min(len(entries), _SAMPLE_EPISODES)
        for at in np.unique(np.linspace(0, len(entries) - 1, count).round().astype(int)):
            entry = entries[at]
            if sample.episodes and read + entry.size > _SAMPLE_BYTES:
                continue
            read += entry.size
            try:
                episode = source.read(entry, images=False)
            except InvalidInputError as error:
                problem = error
                continue
            sample.numbers.append(entry.number)
            sample.episodes.append(episode)
        if not sample.episodes:
            assert problem is not None
            raise problem
        return sample

    def rows(self, take: Callable[[Episode], NDArray[Any] | None]) -> NDArray[np.float64] | None:
        """Rows of an array of all episodes that have it, as (rows, dimensions)."""
        found = [array for array in map(take, self.episodes) if array is not None and array.size]
        if not found:
            return None
        width = int(np.prod(found[0].shape[1:], dtype=int))
        flat = [np.reshape(array, (len(array), -1)) for array in found]
        return np.concatenate([rows for rows in flat if rows.shape[1] == width]).astype(np.float64)


def _episode_panels(entries: Sequence[Entry], sample: _Sample) -> list[Panel]:
    numbers = np.array([entry.number for entry in entries], np.float64)
    returns = np.array([entry.total_reward for entry in entries])
    lengths = np.array([entry.steps for entry in entries], np.float64)
    success = np.array([entry.success for entry in entries], np.float64)
    window = max(5, len(entries) // 20) if len(entries) >= 10 else 1
    mean = f"mean of {window}" if window > 1 else ""
    panels = [
        Panel("Return", _scatter(numbers, returns, window), "episode", mean),
        Panel("Success at the end", _trend(numbers, success, window), "episode", mean,
              percent=True),
        Panel("Length", _scatter(numbers, lengths, window), "episode", "steps"),
    ]
    marks = [e.intervention for e in sample.episodes]
    if any(mark is not None for mark in marks):
        shares = np.array([0.0 if mark is None else mark.mean() for mark in marks])
        panels.append(Panel("Steps in which a person acted",
                            _scatter(np.array(sample.numbers, np.float64), shares, 1), "episode",
                            percent=True))
    return panels


def _distribution_panels(source: Source, sample: _Sample) -> list[Panel]:
    panels = []
    for title, key, take in (
        ("Actions executed", ACTION, lambda e: e.action),
        ("Actions asked for", REQUESTED, lambda e: e.requested),
        ("States", OBSERVATION, lambda e: e.observation),
        ("Goals achieved", ACHIEVED, lambda e: e.achieved),
    ):
        rows = sample.rows(take)
        if rows is not None:
            panels.append(Panel(title, _quantiles(rows), f"dimension of {key}"))
    if source.info.goal_dim >= 2:
        goals = np.stack([e.desired[:2] for e in sample.episodes])
        reached = np.array([bool(e.success[-1]) for e in sample.episodes])
        panels.append(Panel("Goals and whether they were reached", _goals(goals, reached),
                            "dimension 0", "dimension 1"))
    return panels


def _timing_panels(source: Source, sample: _Sample) -> list[Panel]:
    panels = []
    rates = sample.rows(lambda e: e.rate_hz)
    asked = source.info.rate_hz if source.info.rate_hz > 0.0 else None
    if rates is not None:
        panels.append(Panel("Control rate kept", _histogram({RATE: rates[:, 0]}, asked), "Hz",
                            "steps"))
    gaps = sample.rows(
        lambda e: None if e.stamp_s is None else np.round(np.diff(e.stamp_s) * 1e3, 6))
    if gaps is not None:
        panels.append(Panel("Time between states", _histogram(
            {TIMESTAMP: gaps[:, 0]}, 1e3 / asked if asked else None), "ms", "steps"))
    ages = {}
    for key in dict.fromkeys(key for e in sample.episodes for key in e.stamps_s):
        def age(e: Episode, key: str = key) -> NDArray[np.float64] | None:
            stamps = e.stamps_s.get(key)
            if stamps is None or e.stamp_s is None:
                return None
            return np.asarray((e.stamp_s - stamps) * 1e3)

        found = sample.rows(age)
        if found is not None:
            ages[key] = found[:, 0]
    if ages:
        panels.append(Panel("Age of what a state was decided on", _histogram(ages, None), "ms",
                            "states"))
    return panels


def _array_panels(episode: Episode, rate_hz: float) -> list[Panel]:
    times, unit = state_times(episode, rate_hz)
    panels = [
        Panel(f"{IMAGES}{name}", _thumbnails(images.frames, images.index, times),
              height=_thumbnail_height(images.frames))
        for name, images in episode.images.items()
    ]
    flags = {name: marks for name, marks in (
        ("success", episode.success), ("intervention", episode.intervention),
        ("reset", episode.reset), ("terminated", episode.terminated),
        ("truncated", episode.truncated)) if marks is not None}
    flags |= {key: array[-len(episode):] for key, array in episode.extra.items()
              if array.dtype.kind == "b" and array.ndim == 1}
    panels.append(Panel("Flags", _flags(flags, times)))
    arrays = {**episode.step_arrays(), **episode.state_arrays()}
    order = [ACTION, REQUESTED, *arrays]  # What was asked for beside what was done.
    for key in dict.fromkeys(key for key in order if key in arrays):
        array = arrays[key]
        is_image = key.startswith(IMAGES) or array.ndim > 3
        if is_image or not array.size or array.dtype.kind not in "fiu":
            continue
        at = times if len(array) == len(times) else times[1:]
        values = np.reshape(array, (len(array), -1)).astype(np.float64)
        title, goal = key, None
        if key == ACHIEVED:
            goal = episode.desired
            title = f"{key} (dotted: the goal)"
        elif key == TIMESTAMP or key.startswith(f"{TIMESTAMP}."):
            at, values = times[1:], np.round(np.diff(values, axis=0) * 1e3, 6)
            title = f"{key} (ms from one state to the next)"
        panels.append(Panel(title, _lines(at, values, goal, float(times[-1]))))
    last = panels[-1]
    panels[-1] = Panel(last.title, last.draw, unit, last.ylabel, last.percent, last.height)
    return panels


# -- how it is drawn ------------------------------------------------------------------------------


def draw_panels(
    panels: Sequence[Panel], *, columns: int = 2, width: float = 4.3, height: float = 2.4
) -> Figure:
    """Panels in a grid, ``width`` x ``height`` inches each."""
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    heights = [max(panel.height for panel in panels[at : at + columns])
               for at in range(0, len(panels), columns)]
    figure = new_figure((width * columns, height * sum(heights) + 0.2))
    grid = figure.add_gridspec(rows, columns, height_ratios=heights)
    for i, panel in enumerate(panels):
        axes = figure.add_subplot(grid[i // columns, i % columns])
        dress(axes, panel.title, panel.xlabel, panel.ylabel, panel.percent)
        panel.draw(axes)
    return figure


def _scatter(x: NDArray[np.float64], y: NDArray[np.float64], window: int) -> Draw:
    def draw(axes: Axes) -> None:
        good = np.isfinite(y)
        many = len(x) > 2000
        axes.plot(x[good], y[good], linestyle="none", marker="." if not many else ",",
                  color=SERIES[0], alpha=0.5 if window > 1 else 0.9, markersize=5,
                  label="_episodes", rasterized=many)
        if window > 1 and good.any():
            axes.plot(x[good], moving_average(y[good], window), color=SERIES[1], linewidth=1.7,
                      label="mean")

    return draw


def _trend(x: NDArray[np.float64], y: NDArray[np.float64], window: int) -> Draw:
    def draw(axes: Axes) -> None:
        axes.fill_between(x, moving_average(y, window), color=SERIES[0], alpha=0.15, linewidth=0)
        axes.plot(x, moving_average(y, window), color=SERIES[0], linewidth=1.7, label="success",
                  marker="." if len(x) <= 60 else None)

    return draw


def _quantiles(rows: NDArray[np.float64]) -> Draw:
    """Per dimension: a line from the 1st to the 99th percentile, a box of the middle half."""
    def draw(axes: Axes) -> None:
        finite = np.where(np.isfinite(rows), rows, np.nan)
        drawn = np.flatnonzero(np.isfinite(finite).any(axis=0))
        levels = np.nanquantile(finite[:, drawn], [0.01, 0.25, 0.5, 0.75, 0.99], axis=0)
        if len(drawn) > _MANY_DIMENSIONS:
            axes.fill_between(drawn, levels[0], levels[4], color=SERIES[0], alpha=0.15, linewidth=0)
            axes.fill_between(drawn, levels[1], levels[3], color=SERIES[0], alpha=0.35, linewidth=0)
            axes.plot(drawn, levels[2], color=SERIES[1], linewidth=1.2, label="median")
            return
        axes.vlines(drawn, levels[0], levels[4], color=FAINT, linewidth=1.2)
        axes.bar(drawn, levels[3] - levels[1], bottom=levels[1], width=0.5, color=SERIES[0],
                 alpha=0.6)
        axes.hlines(levels[2], drawn - 0.25, drawn + 0.25, color=SERIES[1], linewidth=1.8)
        axes.set_xticks(drawn, [str(d) for d in drawn])

    return draw


def _goals(goals: NDArray[Any], reached: NDArray[np.bool_]) -> Draw:
    def draw(axes: Axes) -> None:
        for mask, color, marker, label in ((reached, SERIES[2], "o", "reached"),
                                           (~reached, SERIES[1], "x", "not reached")):
            axes.plot(goals[mask, 0], goals[mask, 1], linestyle="none", marker=marker,
                      color=color, markersize=4, alpha=0.8, label=label)
        axes.set_aspect("equal", adjustable="datalim")
        axes.legend(frameon=False, fontsize=8, labelcolor=INK, loc="best")

    return draw


def _histogram(values: dict[str, NDArray[np.float64]], asked: float | None) -> Draw:
    def draw(axes: Axes) -> None:
        finite = {key: array[np.isfinite(array)] for key, array in values.items()}
        every = np.concatenate(list(finite.values()))
        if not len(every):
            return
        # The rare extremes are counted at the edges, and said in words.
        low, high = np.quantile(every, [0.001, 0.999])
        margin = max((high - low) * 0.05, abs(high) * 1e-3, 1e-9)
        edges = np.linspace(low - margin, high + margin, 61)
        for i, (key, array) in enumerate(finite.items()):
            axes.hist(np.clip(array, edges[0], edges[-1]), edges.tolist(),
                      color=SERIES[i % len(SERIES)], alpha=0.75 if len(finite) == 1 else 0.5,
                      label=key)
        words = f"median {np.median(every):.4g}, 99% {np.quantile(every, 0.99):.4g}, " \
                f"max {every.max():.4g}"
        if asked is not None:
            axes.axvline(asked, color=INK, linewidth=1.2, linestyle=(0, (4, 3)))
            words += f", asked {asked:.4g}"
        axes.set_xlabel(f"{axes.get_xlabel()}  ({words})")
        if len(finite) > 1:
            axes.legend(frameon=False, fontsize=7.5, labelcolor=INK, loc="center right")

    return draw


def _lines(
    at: NDArray[np.float64], values: NDArray[np.float64], goal: NDArray[Any] | None, end: float
) -> Draw:
    def draw(axes: Axes) -> None:
        dimensions = min(values.shape[1], _MOST_LINES)
        for i in range(dimensions):
            color = SERIES[i % len(SERIES)]
            few = dimensions <= 2 * len(SERIES)
            axes.plot(at, values[:, i], color=color, linewidth=1.3 if few else 0.8,
                      linestyle=(0, (5, 1.5)) if len(SERIES) <= i and few else "-",
                      alpha=1.0 if few else 0.6, label=str(i) if dimensions > 1 else "_one")
            if goal is not None and few:
                axes.axhline(float(goal[i]), color=color, linewidth=1.0, linestyle=(0, (1.5, 1.5)))
        axes.set_xlim(0.0, end)
        if 1 < dimensions <= 14:
            axes.legend(frameon=False, fontsize=7.5, labelcolor=INK, loc="center left",
                        bbox_to_anchor=(1.0, 0.5), ncols=1 + dimensions // 7)

    return draw


def _flags(flags: dict[str, NDArray[np.bool_]], times: NDArray[np.float64]) -> Draw:
    def draw(axes: Axes) -> None:
        for row, (_, marks) in enumerate(flags.items()):
            begin = np.flatnonzero(marks)
            spans = [(times[i], times[i + 1] - times[i]) for i in begin]
            axes.broken_barh(spans, (row - 0.35, 0.7), color=SERIES[row % len(SERIES)])
        axes.set_yticks(range(len(flags)), list(flags))
        axes.set_ylim(len(flags) - 0.4, -0.6)
        axes.set_xlim(times[0], times[-1])
        axes.grid(axis="y", visible=False)

    return draw


def _thumbnail_height(frames: NDArray[np.uint8]) -> float:
    shape = frames.shape[1] / max(frames.shape[2] * _THUMBNAILS, 1)
    return float(np.clip((shape * 8.2 + 0.55) / _ROW_HEIGHT, 0.6, 3.0))


def _thumbnails(
    frames: NDArray[np.uint8], index: NDArray[np.int64], times: NDArray[np.float64]
) -> Draw:
    def draw(axes: Axes) -> None:
        states = np.unique(np.linspace(0, len(index) - 1, _THUMBNAILS).round().astype(int))
        images = [np.broadcast_to(frames[index[s]], (*frames.shape[1:3], 3)) for s in states]
        gap = np.full((frames.shape[1], max(1, frames.shape[2] // 40), 3), 255, np.uint8)
        parts = [part for image in images for part in (image, gap)][:-1]
        axes.imshow(np.concatenate(parts, axis=1), aspect="equal", interpolation="nearest")
        step = frames.shape[2] + gap.shape[1]
        axes.set_xticks([i * step + frames.shape[2] / 2 for i in range(len(states))],
                        [f"{times[s]:.4g}" for s in states])
        axes.set_yticks([])
        axes.grid(visible=False)
        for spine in axes.spines.values():
            spine.set_visible(False)

    return draw


# -- files ----------------------------------------------------------------------------------------


def _write_png(path: Path, figure: Figure) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130, facecolor="white")
    write_file(path, buffer.getvalue())


def _write_page(
    path: Path, source: Source, sample: _Sample, groups: tuple[list[Panel], ...]
) -> None:
    facts = summarize(source.path)
    episodes = facts["episodes"]
    low, high = wilson_interval(round((facts["success_rate"] or 0.0) * episodes), episodes)
    numbers = [
        Number("episodes", f"{episodes:,}", f"{facts['steps']:,} steps"),
        Number("success", f"{facts['success_rate']:.0%}", f"95%: {low:.0%} to {high:.0%}"),
    ]
    if facts["return"]:
        numbers.append(Number("return", f"{facts['return']['mean']:.4g}",
                              f"{facts['return']['min']:.4g} to {facts['return']['max']:.4g}"))
    if facts["intervention_share"] is not None:
        numbers.append(Number("a person acted", f"{facts['intervention_share']:.1%}", "of steps"))
    sections: list[Section] = [Headline(numbers)]
    drawn = f"From {len(sample.episodes)} of {episodes} episodes, evenly spaced."
    for title, panels, caption in zip(
        ("Over the episodes", "Distributions", "Timing"), groups,
        ("", f"Lines: 1st to 99th percentile; boxes: the middle half. {drawn}", drawn),
        strict=True,
    ):
        if panels:
            sections.append(Plot(draw_panels(panels), caption, title))
    if facts["unreadable"]:
        sections.append(Table(("episode", "problem"), [
            (row["episode"], row["error"]) for row in facts["unreadable"]],
            title="Episodes that cannot be read"))
    sections.append(Table(("key", "type", "shape"), [
        (key, facts["dtypes"].get(key, ""), " x ".join(map(str, facts["shapes"].get(key, []))))
        for key in facts["keys"]], title="Arrays"))
    sections.append(Facts({
        name: facts[key] for name, key in (
            ("folder", "path"), ("task", "task"), ("robot", "robot"), ("rate [Hz]", "rate_hz"),
            ("recorded from", "recorded_from"), ("to", "recorded_to"), ("software", "software"),
            ("complete", "complete"), ("bytes", "bytes")) if facts[key] not in ("", None)
    }, title="Dataset"))
    info = source.info
    sections.append(Config({"env": info.env, "config": info.config,
                            "calibration": info.calibration}, "How it was made"))
    write_report(path, title=f"Dataset {os.path.basename(os.path.abspath(source.path))}",
                 sections=sections)
