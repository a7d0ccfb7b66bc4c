"""One self-contained page: text, tables, plots and videos in a single file.

Nothing is fetched from anywhere and no script runs: plots are inlined as SVG, videos as mp4, and
a content security policy in the page forbids the rest.
"""

from __future__ import annotations

import base64
import html
import io
import json
import os
import platform
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from robot_rl.data.files import write_atomically
from robot_rl.errors import InvalidInputError
from robot_rl.report.plots import FAINT, GRID, INK, SERIES, describe_figure, wilson_interval
from robot_rl.report.video import format_distance

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LARGEST_SVG = 1_000_000  # Above this a plot is inlined as PNG.
_LONGEST_COMMAND = 88  # Longer ones are broken into lines.
_MIME = {".mp4": "video/mp4", ".webp": "image/webp", ".png": "image/png"}
# Colours of a plot on a dark page.
_DARK = {INK: "#e6edf3", FAINT: "#9aa4af", GRID: "#30363d", SERIES[0]: "#4aa8e8"}


@dataclass(frozen=True)
class Text:
    """Paragraphs."""

    body: str | Sequence[str]
    title: str = ""


@dataclass(frozen=True)
class Number:
    """One headline number: what it is, its value, and a line that says more."""

    label: str
    value: str
    detail: str = ""


@dataclass(frozen=True)
class Headline:
    """The numbers to see first."""

    numbers: Sequence[Number]
    title: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of cells; numbers are aligned right. ``folded`` shows it on a click."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    caption: str = ""
    title: str = ""
    folded: bool = False


@dataclass(frozen=True)
class Plot:
    """A figure; ``alt`` says what it shows, by default read from its lines and bars."""

    figure: Figure
    caption: str = ""
    title: str = ""
    alt: str = ""


@dataclass(frozen=True)
class Video:
    """A video file as write_video left it."""

    path: str | Path
    caption: str = ""


@dataclass(frozen=True)
class Videos:
    """Videos side by side; ``note`` stands above them, or alone where there are none."""

    videos: Sequence[Video | str | Path]
    note: str = ""
    title: str = ""


@dataclass(frozen=True)
class Config:
    """A configuration, nested as it may be, shown on a click."""

    values: Mapping[str, Any]
    summary: str = "All options"
    title: str = ""


@dataclass(frozen=True)
class Commands:
    """Command lines, to be copied."""

    lines: Sequence[str]
    note: str = ""
    title: str = ""


@dataclass(frozen=True)
class Facts:
    """Names and values, e.g. versions of software."""

    values: Mapping[str, Any]
    title: str = ""


Section: TypeAlias = Text | Headline | Table | Plot | Videos | Config | Commands | Facts


@dataclass(frozen=True)
class Result:
    """How a policy did over episodes, a row of :func:`results_table`."""

    label: str
    successes: int
    episodes: int
    mean_return: float | None = None
    distance: float | None = None
    distance_unit: str = "m"
    safety_violations: int | None = None
    note: str = ""

    @classmethod
    def from_scores(
        cls, label: str, scores: Mapping[str, Any], *, distance_unit: str = "m",
        note: str = "",
    ) -> Result:
        """From ``EvalResult.as_dict()``."""
        episodes = int(scores["episodes"])
        violations = scores.get("safety_violations")
        return cls(
            label=label,
            successes=round(float(scores["success_rate"]) * episodes),
            episodes=episodes,
            mean_return=scores.get("mean_return"),
            distance=scores.get("mean_final_distance"),
            distance_unit=distance_unit,
            safety_violations=None if violations is None else int(violations),
            note=note,
        )


def results_table(rows: Sequence[Result], *, title: str = "", caption: str = "") -> Table:
    """Success rates with Wilson's 95% intervals; a column that no row fills is left out."""
    columns = ["policy", "success", "95% interval", "episodes"]
    cells: list[list[Any]] = []
    for row in rows:
        low, high = wilson_interval(row.successes, row.episodes)
        cells.append([row.label, f"{row.successes / row.episodes:.0%}", f"{low:.0%} to {high:.0%}",
                      f"{row.successes} of {row.episodes}"])
    more: dict[str, list[Any]] = {
        "mean return": [None if r.mean_return is None else f"{r.mean_return:.1f}" for r in rows],
        "mean final distance": [None if r.distance is None
                                else format_distance(r.distance, r.distance_unit) for r in rows],
        "safety violations": [r.safety_violations for r in rows],
        "note": [r.note or None for r in rows],
    }
    for name, values in more.items():
        if any(value is not None for value in values):
            columns.append(name)
            for line, value in zip(cells, values, strict=True):
                line.append("" if value is None else value)
    return Table(columns, cells, caption=caption, title=title)


def machine_facts() -> dict[str, Any]:
    """This machine and the software on it, for :class:`Facts`."""
    import torch

    facts: dict[str, Any] = {
        "written": time.strftime("%Y-%m-%d %H:%M:%S %Z"),
        "system": f"{platform.system()} {platform.release()} ({platform.machine()})",
        "processor": _processor(),
        "CPUs": f"{_usable_cpus()} usable of {os.cpu_count()}",
        "torch threads": torch.get_num_threads(),
        "GPU": torch.cuda.get_device_name() if torch.cuda.is_available() else "none used",
        "Python": platform.python_version(),
    }
    for package in ("robot_rl", "torch", "numpy", "gymnasium", "mujoco", "pybullet",
                    "gymnasium-robotics", "matplotlib", "av"):
        try:
            facts[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            facts[package] = "not installed"
    return facts


def write_report(path: str | Path, *, title: str, sections: Sequence[Section]) -> Path:
    """Write the page, whole or not at all. A section's title becomes a heading.

    Raises:
        InvalidInputError: a video is missing, or the file cannot be written.
    """
    path = Path(path)
    parts: list[str] = []
    for section in sections:
        if section.title or not parts:
            if parts:
                parts.append("</section>")
            parts.append("<section>")
        if section.title:
            parts.append(f"<h2>{_text(section.title)}</h2>")
        parts.append(_RENDERERS[type(section)](section))
    if parts:
        parts.append("</section>")
    page = _PAGE.format(
        title=_text(title), style=_STYLE, body="\n".join(parts),
        date=_text(time.strftime("%Y-%m-%d %H:%M %Z")), version=_text(_version()),
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInputError(f"cannot write {path}: {error.strerror or error}") from None
    write_atomically(path, page.encode("utf-8", "replace"))
    return path


# -- one function for each kind of section --------------------------------------------------------


def _text(value: Any) -> str:
    return html.escape(str(value), quote=True)


def _paragraphs(body: str | Sequence[str], kind: str = "") -> str:
    texts = [body] if isinstance(body, str) else list(body)
    opening = f'<p class="{kind}">' if kind else "<p>"
    return "\n".join(f"{opening}{_text(text)}</p>" for text in texts if text)


def _render_text(section: Text) -> str:
    return _paragraphs(section.body)


def _render_headline(section: Headline) -> str:
    boxes = [
        f"<div><dt>{_text(n.label)}</dt><dd><b>{_text(n.value)}</b>"
        + (f"<span>{_text(n.detail)}</span>" if n.detail else "") + "</dd></div>"
        for n in section.numbers
    ]
    return f'<dl class="headline">{"".join(boxes)}</dl>' if boxes else ""


def _render_table(section: Table) -> str:
    head = "".join(f'<th scope="col">{_text(name)}</th>' for name in section.columns)
    body = []
    for row in section.rows:
        cells = [_cell(value, first=i == 0) for i, value in enumerate(row)]
        body.append(f"<tr>{''.join(cells)}</tr>")
    name = section.caption or section.title or "table"
    caption = f"<caption>{_text(section.caption)}</caption>" if section.caption else ""
    # The box can be scrolled on a narrow screen, by keyboard too.
    table = (f'<div class="wide" role="region" tabindex="0" aria-label="{_text(name)}"><table>'
             f"{caption}<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>")
    return _folded(name, table) if section.folded else table


def _cell(value: Any, *, first: bool) -> str:
    if first:
        return f'<th scope="row">{_text(value)}</th>'
    shown = "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
    number = not shown or shown[0].isdigit() or shown[0] in "-+." or shown == "nan"
    return f'<td class="number">{_text(shown)}</td>' if number else f"<td>{_text(shown)}</td>"


def _render_plot(section: Plot) -> str:
    alt = _text(section.alt or describe_figure(section.figure) or section.caption or "plot")
    svg = _svg(section.figure)
    if len(svg) > _LARGEST_SVG:
        buffer = io.BytesIO()
        section.figure.savefig(buffer, format="png", dpi=160, facecolor="white")
        image = _paper(alt, "image/png", buffer.getvalue())
    elif INK in svg:
        dark = svg
        for light, other in _DARK.items():
            dark = dark.replace(light, other)
        image = (
            '<picture><source media="screen and (prefers-color-scheme: dark)" '
            f'srcset="{_data("image/svg+xml", dark.encode())}">'
            f'<img alt="{alt}" src="{_data("image/svg+xml", svg.encode())}"></picture>'
        )
    else:  # Not drawn with this package's colours.
        image = _paper(alt, "image/svg+xml", svg.encode())
    return _figure(image, section.caption)


def _paper(alt: str, mime: str, content: bytes) -> str:
    """An image that stays black on white."""
    return f'<div class="pan"><img class="paper" alt="{alt}" src="{_data(mime, content)}"></div>'


def _svg(figure: Figure) -> str:
    buffer = io.BytesIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    return buffer.getvalue().decode()


def _figure(content: str, caption: str) -> str:
    below = f"<figcaption>{_text(caption)}</figcaption>" if caption else ""
    return f"<figure>{content}{below}</figure>"


def _data(mime: str, content: bytes) -> str:
    return f"data:{mime};base64,{base64.b64encode(content).decode()}"


def _render_videos(section: Videos) -> str:
    items = [
        _video(item if isinstance(item, Video) else Video(item)) for item in section.videos
    ]
    note = _paragraphs(section.note, "note")
    return note + (f'<div class="videos">{"".join(items)}</div>' if items else "")


def _video(item: Video) -> str:
    path = Path(item.path)
    mime = _MIME.get(path.suffix.lower())
    if mime is None:
        raise InvalidInputError(
            f"report: {path} is no video that a page can hold; valid: {', '.join(_MIME)}"
        )
    try:
        source = _data(mime, path.read_bytes())
    except OSError as error:
        raise InvalidInputError(f"report: cannot read {path}: {error.strerror}") from None
    name = _text(item.caption or path.stem)
    if not mime.startswith("video"):
        return _figure(f'<img alt="{name}" src="{source}">', item.caption)
    poster = _poster(path)
    still = f' poster="{_data("image/jpeg", poster)}"' if poster else ""
    return _figure(
        f'<video controls loop muted playsinline preload="metadata" aria-label="{name}"{still} '
        f'src="{source}"></video>', item.caption,
    )


def _poster(path: Path) -> bytes:
    """The first frame as JPEG: some phones show nothing before a video is played."""
    try:
        import av
        import cv2

        with av.open(str(path)) as container:
            frame = next(container.decode(video=0)).to_ndarray(format="bgr24")
        return bytes(cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, 80])[1])
    except (ImportError, StopIteration, ValueError, OSError):
        return b""


def _render_config(section: Config) -> str:
    rows = "".join(
        f'<tr><th scope="row"><code>{_text(name)}</code></th>'
        f"<td><code>{_text(value)}</code></td></tr>"
        for name, value in _flatten(section.values)
    )
    table = (f'<div class="wide" role="region" tabindex="0" aria-label="{_text(section.summary)}">'
             f'<table class="facts"><tbody>{rows}</tbody></table></div>')
    return _folded(section.summary, table)


def _folded(summary: str, content: str) -> str:
    return f"<details><summary>{_text(summary)}</summary>{content}</details>"


def _flatten(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows = []
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            rows += _flatten(value, f"{prefix}{name}.")
        elif isinstance(value, str):
            rows.append((f"{prefix}{name}", value))
        else:
            rows.append((f"{prefix}{name}", json.dumps(value, default=str, ensure_ascii=False)))
    return rows


def _render_commands(section: Commands) -> str:
    lines = "\n".join(_text(_wrapped(line)) for line in section.lines)
    return _paragraphs(section.note) + (f"<pre><code>{lines}</code></pre>" if lines else "")


def _wrapped(line: str) -> str:
    """A long command broken before options, still the same command."""
    try:
        words = shlex.split(line)
    except ValueError:
        return line
    if len(line) <= _LONGEST_COMMAND or shlex.join(words) != line:
        return line
    options: list[list[str]] = [[]]
    for word in words:
        if word.startswith("--"):
            options.append([])
        options[-1].append(word)
    lines = [""]
    for option in options:
        text = shlex.join(option)
        if lines[-1] and len(lines[-1]) + len(text) > _LONGEST_COMMAND - 8:
            lines.append("")
        lines[-1] += f" {text}" if lines[-1] else text
    return " \\\n    ".join(lines)


def _render_facts(section: Facts) -> str:
    rows = "".join(f'<tr><th scope="row">{_text(name)}</th><td>{_text(value)}</td></tr>'
                   for name, value in section.values.items())
    return f'<table class="facts"><tbody>{rows}</tbody></table>'


_RENDERERS: dict[type, Any] = {
    Text: _render_text,
    Headline: _render_headline,
    Table: _render_table,
    Plot: _render_plot,
    Videos: _render_videos,
    Config: _render_config,
    Commands: _render_commands,
    Facts: _render_facts,
}


def _version() -> str:
    from robot_rl import __version__

    return __version__


def _usable_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"


_STYLE = """\
:root { color-scheme: light dark; --page: #ffffff; --ink: #24292f; --faint: #57606a;
  --line: #d8dee4; --shade: #f6f8fa; --mark: #0072b2; }
@media (prefers-color-scheme: dark) {
  :root { --page: #0d1117; --ink: #e6edf3; --faint: #9aa4af; --line: #30363d; --shade: #161b22;
    --mark: #4aa8e8; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
header, main, footer { max-width: 56rem; margin: 0 auto; padding: 0 1.25rem; }
header { padding-top: 2rem; }
h1 { font-size: 1.8rem; line-height: 1.25; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 0 0 .75rem; }
section { padding: 1.4rem 0; border-bottom: 1px solid var(--line); }
p { margin: 0 0 .8rem; max-width: 46rem; overflow-wrap: anywhere; }
.note { color: var(--faint); }
.headline { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr));
  gap: .75rem; margin: 0 0 1rem; }
.headline div { background: var(--shade); border: 1px solid var(--line); border-radius: .5rem;
  padding: .75rem .9rem; }
.headline dt { color: var(--faint); font-size: .85rem; }
.headline dd { margin: 0; }
.headline b { display: block; font-size: 1.6rem; line-height: 1.3; font-weight: 650;
  font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.headline span { color: var(--faint); font-size: .85rem; }
.wide { overflow-x: auto; margin: 0 0 1rem; }
:focus-visible { outline: 2px solid var(--mark); outline-offset: 2px; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--faint); padding-bottom: .4rem; }
th, td { text-align: left; padding: .4rem 1.1rem .4rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; }
thead th { color: var(--faint); font-weight: 600; }
tbody th { font-weight: 500; }
td.number { white-space: nowrap; }
.facts { width: 100%; max-width: 46rem; }
.facts th { color: var(--faint); font-weight: 400; width: 13rem; }
.facts td { overflow-wrap: anywhere; }
figure { margin: 0 0 1.2rem; }
figure img, figure video { display: block; max-width: 100%; height: auto; border-radius: .4rem; }
figure picture img, img.paper { width: 100%; max-width: 46rem; }
img.paper { background: #ffffff; }
figcaption { color: var(--faint); font-size: .9rem; margin-top: .4rem; max-width: 46rem; }
.videos { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr));
  gap: 1rem; }
.videos video, .videos img { width: 100%; background: #000000; }
pre { background: var(--shade); border: 1px solid var(--line); border-radius: .4rem;
  padding: .8rem 1rem; overflow-x: auto; margin: 0 0 1rem; }
code { font: .87rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
pre code { white-space: pre-wrap; overflow-wrap: anywhere; }
summary { cursor: pointer; color: var(--mark); padding: .2rem 0; }
@media (max-width: 38rem) {
  picture, .pan { display: block; overflow-x: auto; }
  figure picture img, .pan img.paper { width: 30rem; max-width: none; }
  .facts th { width: 9rem; } }
details .wide { margin-top: .5rem; }
footer { color: var(--faint); font-size: .85rem; padding-top: 1.2rem; padding-bottom: 2.5rem; }
@media print {
  :root { --page: #ffffff; --ink: #000000; --faint: #444444; --line: #bbbbbb; --shade: #ffffff; }
  header, main, footer { max-width: none; }
  figure, tr, .headline div { break-inside: avoid; }
  h2 { break-after: avoid; }
  details::details-content { content-visibility: visible; height: auto; }
}
"""

_PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; \
media-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<header><h1>{title}</h1></header>
<main>
{body}
</main>
<footer>Written by robot_rl {version} on {date}. This page needs no network and runs no scripts.
</footer>
</body>
</html>
"""
