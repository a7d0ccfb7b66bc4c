"""Learning curves and success rates, drawn without pyplot's global state.

Colours are Okabe and Ito's, told apart by the colour-blind; markers and dashes tell lines apart in
black and white.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from robot_rl.errors import InvalidInputError
from robot_rl.report.optional import need

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# One run: (steps, values). Several runs of the same thing, e.g. over seeds: a list of those.
Curve: TypeAlias = tuple[ArrayLike, ArrayLike]
Curves: TypeAlias = Mapping[str, Curve | list[Curve]]

INK, FAINT, GRID = "#24292f", "#57606a", "#d8dee4"
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_MARKERS = ("o", "s", "^", "D", "v", "P")
_DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.2, 1.5)))
_FEW_POINTS = 40  # Up to this many, every point gets a marker.
_Z_95 = 1.959963984540054


@dataclass(frozen=True)
class Boundary:
    """Where on the x axis pretraining ends and practice begins; its steps count from 0 again."""

    at: float
    before: str = "pretraining (updates)"
    after: str = "practice (steps of the robot)"


def wilson_interval(successes: float, episodes: float) -> tuple[float, float]:
    """Wilson's 95% interval of a success rate.

    Raises:
        InvalidInputError: not 0 <= successes <= episodes, or no episodes.
    """
    if not (episodes > 0 and 0 <= successes <= episodes):
        raise InvalidInputError(
            f"{successes} successes of {episodes} episodes: should be 0 to all of at least 1"
        )
    rate, z2 = successes / episodes, _Z_95 * _Z_95
    middle = (rate + z2 / (2 * episodes)) / (1 + z2 / episodes)
    half = math.sqrt(rate * (1 - rate) / episodes + z2 / (4 * episodes**2)) * _Z_95
    half /= 1 + z2 / episodes
    low = 0.0 if successes == 0 else max(0.0, middle - half)
    high = 1.0 if successes == episodes else min(1.0, middle + half)
    return low, high


def moving_average(values: ArrayLike, window: int) -> NDArray[np.float64]:
    """The mean of each value and up to ``window - 1`` before it; the same length."""
    array = np.asarray(values, dtype=np.float64)
    if window < 1:
        raise InvalidInputError(f"window is {window}, should be at least 1")
    total = np.concatenate([[0.0], np.cumsum(array)])
    last = np.arange(1, len(array) + 1)
    first = np.maximum(last - window, 0)
    return np.asarray((total[last] - total[first]) / (last - first))


def mean_and_spread(curves: Sequence[Curve]) -> (
    tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]
):
    """Steps, mean and standard deviation of several runs, where all of them have values.

    Between their own steps runs are interpolated linearly.
    """
    runs = [_finite(curve) for curve in curves]
    runs = [run for run in runs if len(run[0])]
    if not runs:
        return np.zeros(0), np.zeros(0), np.zeros(0)
    first = max(float(steps[0]) for steps, _ in runs)
    last = min(float(steps[-1]) for steps, _ in runs)
    grid = np.unique(np.concatenate([steps for steps, _ in runs]))
    grid = grid[(grid >= first) & (grid <= last)]
    rows = np.stack([np.interp(grid, steps, values) for steps, values in runs])
    return grid, rows.mean(axis=0), rows.std(axis=0)


def plot_curves(
    curves: Curves,
    *,
    title: str = "",
    xlabel: str = "steps",
    ylabel: str = "",
    boundary: Boundary | None = None,
    bands: Mapping[str, tuple[ArrayLike, ArrayLike]] | None = None,
    percent: bool = False,
    size: tuple[float, float] = (6.6, 3.4),
) -> Figure:
    """Lines over steps.

    Args:
        curves: label to (steps, values), or to a list of those: several runs, drawn as their mean
            with a band of one standard deviation. Values that are not finite are left out.
        boundary: draws a vertical line where practice begins and counts steps anew from there.
        bands: label to (low, high) beside that label's values, drawn as a shade.
        percent: values are shares in [0, 1], shown as percentages.
    """
    figure = new_figure(size)
    axes = figure.add_subplot()
    _draw(axes, curves, bands or {})
    dress(axes, title, xlabel, ylabel, percent)
    if boundary is not None:
        _draw_boundary(axes, boundary, words=True)
    _legend(axes, figure)
    return figure


def plot_panels(
    panels: Mapping[str, Curves],
    *,
    xlabel: str = "steps",
    boundary: Boundary | None = None,
    columns: int = 2,
) -> Figure:
    """Small plots side by side, one for each of ``panels`` (title to curves), e.g. the losses."""
    if not panels:
        raise InvalidInputError("plot_panels: there is nothing to draw")
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    figure = new_figure((3.3 * columns if columns > 1 else 6.6, 2.2 * rows + 0.4))
    colors = _looks(label for curves in panels.values() for label in curves)
    for i, (title, curves) in enumerate(panels.items()):
        axes = figure.add_subplot(rows, columns, i + 1)
        _draw(axes, curves, {}, colors)
        dress(axes, title, xlabel if i + columns >= len(panels) else "", "", False)
        ticker = need("matplotlib.ticker", "plots")
        axes.xaxis.set_major_locator(ticker.MaxNLocator(4, steps=[1, 2, 5, 10]))
        if boundary is not None:
            _draw_boundary(axes, boundary, words=False)
    if len(colors) > 1:
        found = {line.get_label(): line for axes in figure.axes for line in axes.get_lines()}
        handles = {label: found[label] for label in colors if label in found}
        figure.legend(
            list(handles.values()), [str(label) for label in handles], loc="outside upper left",
            ncols=3, frameon=False, fontsize=8.5, labelcolor=INK,
        )
    return figure


def plot_success_bars(
    results: Mapping[str, tuple[int, int]], *, title: str = "", size_x: float = 6.6
) -> Figure:
    """Success rates as bars with Wilson's 95% intervals; label to (successes, episodes)."""
    if not results:
        raise InvalidInputError("plot_success_bars: there is nothing to draw")
    figure = new_figure((size_x, 0.75 + 0.42 * len(results)))
    axes = figure.add_subplot()
    places = np.arange(len(results))
    for y, (successes, episodes) in zip(places, results.values(), strict=True):
        rate = successes / episodes if episodes else 0.0
        low, high = wilson_interval(successes, episodes)
        axes.barh(y, rate, height=0.58, color=SERIES[0], alpha=0.85)
        axes.errorbar(
            rate, y, xerr=[[max(rate - low, 0.0)], [max(high - rate, 0.0)]], fmt="none",
            ecolor=INK, elinewidth=1.4, capsize=3.5,
        )
        axes.annotate(
            f"{rate:.0%}  ({successes}/{episodes})", (max(high, rate), y), xytext=(7, 0),
            textcoords="offset points", va="center", color=INK, fontsize=8.5,
        )
    dress(axes, title, "success rate with its 95% interval", "", False)
    axes.set_yticks(places, list(results), color=INK)
    axes.invert_yaxis()
    # Beyond 100% only the numbers beside the bars.
    axes.set_xlim(0.0, 1.22)
    axes.set_xticks(np.linspace(0.0, 1.0, 6), [f"{share:.0%}" for share in np.linspace(0, 1, 6)])
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    return figure


def save_png(figure: Figure, path: str | Path) -> Path:
    """Write a figure as a PNG file on white."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="png", dpi=160, facecolor="white")
    except OSError as error:
        raise InvalidInputError(f"cannot write {path}: {error.strerror or error}") from None
    return path


def describe_figure(figure: Figure) -> str:
    """What a figure shows, in words, for those who do not see it."""
    parts = []
    for axes in figure.axes:
        name = axes.get_title(loc="left") or axes.get_title() or axes.get_ylabel()
        lines = []
        for line in axes.get_lines():
            label = str(line.get_label())
            values = np.asarray(line.get_ydata(), dtype=np.float64)
            if label.startswith("_") or not len(values):
                continue
            lines.append(f"{label} goes from {values[0]:.3g} to {values[-1]:.3g}, "
                         f"between {values.min():.3g} and {values.max():.3g}")
        bars = [text.get_text() for text in axes.texts] if axes.patches else []
        names = [label.get_text() for label in axes.get_yticklabels()] if bars else []
        lines += [f"{name_}: {' '.join(bar.split())}"
                  for name_, bar in zip(names, bars, strict=False)]
        parts.append(": ".join(part for part in (str(name), "; ".join(lines)) if part))
    return ". ".join(part for part in parts if part)


# -- inside -------------------------------------------------------------------------------------


def new_figure(size: tuple[float, float]) -> Figure:
    """An empty figure of ``size`` [inches] that needs no screen."""
    figure_module = need("matplotlib.figure", "plots")
    agg = need("matplotlib.backends.backend_agg", "plots")
    figure: Figure = figure_module.Figure(figsize=size, layout="constrained")
    agg.FigureCanvasAgg(figure)
    return figure


def _finite(curve: Curve) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    steps, values = (np.asarray(part, dtype=np.float64) for part in curve)
    if steps.ndim != 1 or steps.shape != values.shape:
        raise InvalidInputError(
            f"a curve has steps of shape {steps.shape} and values of {values.shape}; both should "
            "be of the same length"
        )
    good = np.isfinite(steps) & np.isfinite(values)
    order = np.argsort(steps[good], kind="stable")
    return steps[good][order], values[good][order]


def _looks(labels: Any) -> dict[str, int]:
    """Label to its place in the order of first appearance, which fixes its look."""
    return {label: i for i, label in enumerate(dict.fromkeys(labels))}


def _draw(
    axes: Axes,
    curves: Curves,
    bands: Mapping[str, tuple[ArrayLike, ArrayLike]],
    looks: dict[str, int] | None = None,
) -> None:
    looks = looks or _looks(curves)
    for label, given in curves.items():
        i = looks[label]
        color = SERIES[i % len(SERIES)]
        if isinstance(given, list):
            steps, values, spread = mean_and_spread(given)
            axes.fill_between(steps, values - spread, values + spread, color=color, alpha=0.18,
                              linewidth=0)
        else:
            steps, values = _finite(given)
        if label in bands:
            low, high = (_finite((cast(Curve, given)[0], part))[1] for part in bands[label])
            axes.fill_between(steps, low, high, color=color, alpha=0.15, linewidth=0)
        few = len(steps) <= _FEW_POINTS
        axes.plot(
            steps, values, label=label, color=color, linewidth=1.7,
            linestyle=_DASHES[i // len(SERIES) % len(_DASHES)] if few
            else _DASHES[i % len(_DASHES)],
            marker=_MARKERS[i % len(_MARKERS)] if few else None, markersize=4.2,
            markeredgewidth=0, clip_on=not few, zorder=3,
        )


def dress(axes: Axes, title: str, xlabel: str, ylabel: str, percent: bool) -> None:
    """Give ``axes`` the style of every plot here; ``percent`` shows shares as such."""
    ticker = need("matplotlib.ticker", "plots")
    axes.set_title(title, loc="left", fontsize=10, color=INK, pad=8)
    axes.set_xlabel(xlabel, fontsize=9, color=FAINT)
    axes.set_ylabel(ylabel, fontsize=9, color=FAINT)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(FAINT)
    axes.tick_params(colors=FAINT, labelsize=8.5, labelcolor=INK)
    for axis in (axes.xaxis, axes.yaxis):
        axis.get_offset_text().set_color(FAINT)
        axis.get_offset_text().set_fontsize(8)
    axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda x, _: _count(x)))
    if percent:
        axes.set_ylim(-0.02, 1.02)
        axes.yaxis.set_major_formatter(ticker.PercentFormatter(1.0, decimals=0))


def _count(x: float) -> str:
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if abs(x) >= size:
            return f"{x / size:.4g}{letter}"
    return f"{x:.4g}"


def _draw_boundary(axes: Axes, boundary: Boundary, *, words: bool) -> None:
    ticker = need("matplotlib.ticker", "plots")
    at = boundary.at
    axes.axvline(at, color=FAINT, linewidth=1.1, linestyle=(0, (4, 3)), zorder=2)
    _, right = axes.get_xlim()
    # Empty axes still show both sides.
    right = max(right, at * 1.05)
    axes.set_xlim(min(0.0, axes.get_xlim()[0]), right)
    ticks: list[float] = []
    names: list[str] = []
    shares = (at / right, (right - at) / right)
    for start, length, share in ((0.0, at, shares[0]), (at, right - at, shares[1])):
        many = max(1, round((8 if words else 5) * share))
        for tick in ticker.MaxNLocator(many, steps=[1, 2, 2.5, 5, 10]).tick_values(0.0, length):
            if tick < 0.0 or tick > length + 1e-9:
                continue
            if start == 0.0 and tick > at - 0.06 * right:
                continue  # Room for the 0 of practice.
            if start > 0.0 and 0.0 < tick < 0.05 * right:
                continue
            ticks.append(start + float(tick))
            names.append(_count(float(tick)))
    axes.set_xticks(ticks, names)
    if words:
        axes.set_xlabel("")
        transform = axes.get_xaxis_transform()
        left, right = axes.get_xlim()
        for low, high, text in ((left, at, boundary.before), (at, right, boundary.after)):
            if high - low < 0.12 * (right - left):
                continue
            axes.text((low + high) / 2, -0.13, text, transform=transform, ha="center", va="top",
                      fontsize=9, color=FAINT)


def _legend(axes: Axes, figure: Figure) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if len(handles) < 2:
        return
    figure.legend(handles, labels, loc="outside lower left", ncols=3, frameon=False, fontsize=8.5,
                  labelcolor=INK)
