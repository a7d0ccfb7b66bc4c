"""``robot-rl data``: look at recorded episodes, check, convert, combine and watch them."""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from tqdm import tqdm

from robot_rl.cli.commands import Command, Outcome, group
from robot_rl.cli.flags import Parser
from robot_rl.data.edit import DUPLICATES, SPLIT_BY, SplitOptions, merge, split
from robot_rl.data.exporters import EXPORTERS
from robot_rl.data.importers import IMPORTERS, detect, import_dataset
from robot_rl.data.summary import Selection, Source, open_source, select, summarize
from robot_rl.errors import InvalidInputError, unknown_name

_BAR_AFTER_S = 1.0
_SIZES = ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))


def _dataset(parser: argparse.ArgumentParser, metavar: str = "DIR") -> None:
    parser.add_argument("dataset", metavar=metavar,
                        help="dataset folder, or a plain npz of demonstrations")


def _out(
    parser: argparse.ArgumentParser, help_text: str, *, metavar: str = "DIR", needed: bool = True
) -> None:
    parser.add_argument("--out", metavar=metavar, required=needed, default="", help=help_text)


def _overwrite(parser: argparse.ArgumentParser, what: str = "folder") -> None:
    helps = {"folder": "set what is there aside as <name>.old",
             "file": "replace the file that is there"}
    parser.add_argument("--overwrite", action="store_true", help=helps[what])


def _selection(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--episodes", metavar="LIST", default="",
                        help=f"only these episodes are {what}, e.g. 0-9,15,20- (default: all)")
    parser.add_argument("--successes-only", action="store_true",
                        help="and of them only those that ended in success")


@contextmanager
def _stoppable() -> Iterator[None]:
    """SIGTERM ends what is inside as Ctrl-C does, so that nothing is left half-written."""
    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not in the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _bar(what: str, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error, told how many episodes are done of how many; none for what is done
    in a second."""
    bars: list[tqdm[Any]] = []

    def report(done: int, total: int) -> None:
        if not bars:
            bars.append(tqdm(total=total, desc=what, unit="episode", file=sys.stderr,
                             disable=quiet, delay=_BAR_AFTER_S,
                             mininterval=0.2 if sys.stderr.isatty() else 10.0))
        bars[0].update(done - bars[0].n)

    try:
        yield report
    finally:
        for bar in bars:
            bar.close()


# -- info ---------------------------------------------------------------------------------------


def _info_run(args: argparse.Namespace) -> Outcome:
    try:
        values = summarize(args.dataset)
    except InvalidInputError as error:
        raise _foreign(args.dataset, error) from None
    return Outcome(values, _info_text(values))


def _foreign(path: str, error: InvalidInputError) -> InvalidInputError:
    """For data of another kind: how to import it."""
    if not os.path.exists(os.path.join(path, "dataset.json")) and (
        kind := _detected(path)
    ) not in (None, "npz"):
        return InvalidInputError(
            f"{path} is no dataset of this package but looks like {kind}; import it with "
            f"`robot-rl data import {path} --out DIR`"
        )
    return error


def _detected(path: str) -> str | None:
    try:
        return detect(path)
    except OSError:
        return None


def _info_text(values: dict[str, Any]) -> str:
    rate = values["rate_hz"]
    steps = f"{values['steps']:,} steps"
    if rate and values["steps"]:
        steps += f", {_duration(values['steps'] / rate)} at {rate:g} Hz"
    rows = [("episodes", f"{values['episodes']:,} ({steps})")]
    if values["success_rate"] is not None:
        rows.append(("success", f"{values['success_rate']:.1%} at the end, "
                                f"{values['success_any_rate']:.1%} at some time"))
    for key, unit in (("length", " steps"), ("return", "")):
        if values[key]:
            low, mean, high = (values[key][name] for name in ("min", "mean", "max"))
            rows.append((key, f"{mean:.4g}{unit} on average, {low:.4g} to {high:.4g}"))
    if values["ended"]:
        rows.append(("ended", ", ".join(f"{n:,} {how}" for how, n in values["ended"].items())))
    if values["apart"]:
        rows.append(("kept apart", ", ".join(f"{n:,} {how}" for how, n in values["apart"].items())
                     + f", in {values['path']}/rejected"))
    if values["intervention_share"] is not None:
        rows.append(("interventions", f"{values['intervention_share']:.1%} of steps"))
    for key in ("task", "robot"):
        if values[key]:
            rows.append((key, values[key]))
    for name, shape in values["cameras"].items():
        rows.append((f"camera {name}", f"{' x '.join(map(str, shape))}, "
                                       f"{values['frames'].get(name, 0):,} frames"))
    if values["recorded_from"]:
        rows.append(("recorded", f"{values['recorded_from']} to {values['recorded_to']}"))
    if values["software"]:
        rows.append(("software", values["software"]))
    rows.append(("on disk", f"{_size(values['bytes'])}, format {values['format']}"))
    rows.append(("complete", _completeness(values)))
    width = max(len(name) for name, _ in rows)
    lines = [_shown(values["path"]), *(f"  {_shown(a):<{width}}  {_shown(b)}" for a, b in rows)]
    if values["keys"]:
        lines.append("arrays")
        width = max(len(key) for key in values["keys"])
        lines += [f"  {_shown(key):<{width}}  {values['dtypes'].get(key, ''):<8} "
                  f"{' x '.join(map(str, values['shapes'].get(key, []))) or '1'}"
                  for key in values["keys"]]
    return "\n".join(lines)


def _completeness(values: dict[str, Any]) -> str:
    if values["complete"]:
        return "yes"
    parts = []
    if values["recording"]:
        parts.append("an episode is being recorded")
    for key, what in (("interrupted", "interrupted recordings"), ("unreadable", "unreadable")):
        if values[key]:
            parts.append(f"{len(values[key])} {what}")
    if values["missing"]:
        spans = (f"{a} to {b}" if a != b else str(a) for a, b in values["missing"])
        parts.append(f"{', '.join(spans)} missing")
    advice = "" if parts == ["an episode is being recorded"] else (
        f" (see robot-rl data verify {values['path']})")
    return f"no: {', '.join(parts)}{advice}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [(hours, "h"), (minutes, "min"), (rest, "s")]
    return " ".join(f"{n} {unit}" for n, unit in parts if n) or "0 s"


def _size(count: int) -> str:
    for size, unit in _SIZES:
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"


def _shown(text: Any) -> str:
    """Text from a file for a terminal: nothing in it moves the cursor or cannot be printed."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text))


# -- verify and repair --------------------------------------------------------------------------


def _verify_run(args: argparse.Namespace) -> Outcome:
    from robot_rl.data.verify import verify

    with _bar("verify", args.quiet) as report:
        values = verify(args.dataset, progress=report)
    errors, warnings = list(values["errors"]), list(values.get("warnings", []))
    lines = [f"error: {_shown(_said(e))}" for e in errors]
    lines += [f"warning: {_shown(_said(w))}" for w in warnings]
    lines.append(f"{args.dataset}: " + (
        "ok" if values["ok"] else f"{len(errors)} errors; `robot-rl data repair {args.dataset}` "
        "saves what can be saved"))
    return Outcome(values, "\n".join(lines), 0 if values["ok"] else 1)


def _repair_run(args: argparse.Namespace) -> Outcome:
    from robot_rl.data.repair import repair

    with _stoppable(), _bar("repair", args.quiet) as report:
        values = repair(args.dataset, progress=report)
    lines = [args.dataset]
    for key, value in values.items():
        if key in ("path", "ok"):
            continue
        if isinstance(value, list):
            lines += [f"  {key}: {_shown(_said(item))}" for item in value]
        else:
            lines.append(f"  {key}: {_shown(value)}")
    return Outcome(values, "\n".join(lines))


def _said(item: Any) -> str:
    if isinstance(item, list):
        return " to ".join(map(str, item))
    if isinstance(item, dict):
        return ", ".join(f"{key} {value}" for key, value in item.items())
    return str(item)


# -- import and export --------------------------------------------------------------------------


def _import_arguments(parser: Parser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="bag, folder or file to read")
    parser.add_argument("--from", dest="kind", metavar="|".join(IMPORTERS), default="",
                        help="its format (default: found out)")
    parser.add_argument("--map", dest="mapping", metavar="MAP.yaml", default="",
                        help="which topics or columns become which keys; bags need one")
    parser.add_argument("--rate", type=float, metavar="HZ", default=0.0,
                        help="control rate to resample to (default: as recorded or mapped)")
    parser.add_argument("--task", default="", help="what the data is of (default: as it says)")
    _out(parser, "folder of the dataset, new or empty")
    _overwrite(parser)


def _import_run(args: argparse.Namespace) -> Outcome:
    if args.kind and args.kind not in IMPORTERS:
        raise unknown_name("format to import", args.kind, IMPORTERS)
    with _stoppable():
        values = import_dataset(args.kind, args.source, args.out, mapping=args.mapping or None,
                                rate_hz=args.rate, task=args.task, overwrite=args.overwrite,
                                quiet=args.quiet)
    lines = [f"imported {values['episodes']} episodes ({values['steps']} steps) to {args.out}"]
    lines += [f"note: {_shown(note)}" for note in values.get("notes", [])]
    return Outcome(values, "\n".join(lines))


def _export_arguments(parser: Parser) -> None:
    _dataset(parser)
    parser.add_argument("--to", dest="kind", required=True, metavar="|".join(EXPORTERS),
                        help="format to write")
    _out(parser, "folder to write, new or empty", metavar="DEST")
    parser.add_argument("--video", action="store_true",
                        help="lerobot: frames as mp4 (smaller, lossy) instead of exact pictures")
    _selection(parser, "exported")
    _overwrite(parser)


def _export_run(args: argparse.Namespace) -> Outcome:
    if args.kind not in EXPORTERS:
        raise unknown_name("format to export", args.kind, EXPORTERS)
    if args.video and args.kind != "lerobot":
        raise InvalidInputError(f"--video goes with --to lerobot, not with {args.kind}")
    source = open_source(args.dataset)
    chosen = Selection(source, select(source, args.episodes, successes_only=args.successes_only))
    options: dict[str, Any] = {"video": True} if args.video else {}
    exporter = importlib.import_module(EXPORTERS[args.kind])
    with _stoppable(), _bar(f"export {args.kind}", args.quiet) as report:
        chosen.on_read = report
        values = exporter.export(chosen, Path(args.out), overwrite=args.overwrite, quiet=True,
                                 **options)
    values = {**values, "format": args.kind}
    return Outcome(values, f"exported {values['episodes']} episodes ({values['steps']} steps) to "
                   f"{values['path']}")


# -- merge and split ----------------------------------------------------------------------------


def _merge_arguments(parser: Parser) -> None:
    parser.add_argument("datasets", metavar="DIR", nargs="+", help="datasets, in this order")
    _out(parser, "folder of the result, new or empty")
    parser.add_argument("--duplicates", metavar="|".join(DUPLICATES), default="error",
                        help="an episode that is there twice: stop, leave it out the second time, "
                        "or keep both (default: error)")
    _overwrite(parser)


def _merge_run(args: argparse.Namespace) -> Outcome:
    with _stoppable(), _bar("merge", args.quiet) as report:
        values = merge(args.datasets, args.out, duplicates=args.duplicates,
                       overwrite=args.overwrite, progress=report)
    text = f"merged {values['episodes']} episodes ({values['steps']} steps) to {values['path']}"
    if values["skipped"]:
        text += f"; {values['skipped']} duplicates left out"
    return Outcome(values, text)


def _split_arguments(parser: Parser) -> None:
    _dataset(parser)
    parser.add_argument("--out", metavar="DIR", nargs="+", required=True,
                        help="folders of the parts, new or empty")
    parser.add_argument("--fractions", metavar="X", type=float, nargs="+", default=[],
                        help="share of each part, sum 1 (default: equal)")
    parser.add_argument("--by", metavar="|".join(SPLIT_BY), default="random",
                        help="deal out at random, in the order of recording, or successes to the "
                        "first part and the others to the second (default: random)")
    parser.add_argument("--seed", metavar="N", type=int, default=0,
                        help="of the random choice (default: 0)")
    _selection(parser, "dealt out")
    _overwrite(parser)


def _split_run(args: argparse.Namespace) -> Outcome:
    options = SplitOptions(by=args.by, fractions=tuple(args.fractions), seed=args.seed,
                           episodes=args.episodes, successes_only=args.successes_only)
    with _stoppable(), _bar("split", args.quiet) as report:
        values = split(args.dataset, args.out, options, overwrite=args.overwrite,
                       progress=report)
    lines = [f"{part['episodes']} episodes ({part['steps']} steps), success "
             f"{part['success_rate']:.2f}, in {part['path']}" for part in values["parts"]]
    if values["left_out"]:
        lines.append(f"{values['left_out']} episodes were left out")
    return Outcome(values, "\n".join(lines))


# -- plot and play ------------------------------------------------------------------------------


def _plot_arguments(parser: Parser) -> None:
    _dataset(parser)
    parser.add_argument("--episode", metavar="N", type=int, default=None,
                        help="draw all arrays of this episode over time")
    _out(parser, "picture (.png) or page (.html) to write (default: beside you, named after the "
         "dataset)", metavar="FILE", needed=False)
    _overwrite(parser, "file")


def _plot_run(args: argparse.Namespace) -> Outcome:
    from robot_rl.report.episodes import plot_dataset, plot_episode

    source = open_source(args.dataset)
    if args.episode is None:
        out = args.out or f"{_stem(source)}.png"
        values = plot_dataset(source, out, overwrite=args.overwrite)
    else:
        out = args.out or f"{_stem(source)}-episode-{args.episode}.png"
        values = plot_episode(source, source.find(args.episode), out, overwrite=args.overwrite)
    return Outcome(values, f"plot {values['path']}")


def _play_arguments(parser: Parser) -> None:
    _dataset(parser)
    parser.add_argument("--episode", metavar="N", type=int, default=0,
                        help="which episode (default: 0)")
    _out(parser, "video (.mp4, .gif) or strip of frames (.png) to write (default: an mp4 beside "
         "you, named after the dataset)", metavar="FILE", needed=False)
    parser.add_argument("--cameras", metavar="NAME", nargs="+", default=[],
                        help="cameras to show (default: all)")
    parser.add_argument("--fps", metavar="X", type=float, default=0.0,
                        help="frames per second (default: real time)")
    parser.add_argument("--frames", metavar="N", type=int, default=8,
                        help="pictures of a strip (default: 8)")
    _overwrite(parser, "file")


def _play_run(args: argparse.Namespace) -> Outcome:
    from robot_rl.report.playback import play_episode

    source = open_source(args.dataset)
    entry = source.find(args.episode)
    out = args.out or f"{_stem(source)}-episode-{args.episode}.mp4"
    with _stoppable():
        values = play_episode(source, entry, out, cameras=args.cameras, fps=args.fps,
                              frames=args.frames, overwrite=args.overwrite)
    kind = "picture" if values["fps"] is None else "video"
    return Outcome(values, f"{kind} {values['path']}")


def _stem(source: Source) -> str:
    return Path(os.path.abspath(source.path)).stem or "dataset"


# -- the group ----------------------------------------------------------------------------------


_EPILOG = """\
examples:
  robot-rl data info data/push                          what it holds
  robot-rl data verify data/push                        is every byte of it whole
  robot-rl data import demos.bag --map map.yaml --rate 10 --out data/demos
  robot-rl data merge data/monday data/tuesday --out data/week
  robot-rl data split data/week --out data/learn data/judge --fractions 0.9 0.1
  robot-rl data plot data/week --out week.html
  robot-rl data play data/week --episode 3 --out episode.mp4

Recorded datasets never change; every action that writes makes a new folder or file, whole or not
at all. ACTION --help says more.
"""

COMMAND = group(
    "data", "look at recorded episodes; check, repair, convert, merge, split, plot and play them",
    "Everything that is done with recorded episodes but learning from them.",
    Command("info", "what a dataset holds", "Say what a dataset holds, also while it is being "
            "recorded: episodes, steps, success, arrays, cameras.", _dataset, _info_run,
            "examples:\n  robot-rl data info data/push\n"
            "  robot-rl data info demos.npz --json"),
    Command("verify", "is every byte of it whole",
            "Read everything and compare every checksum. Exit code 0 if all is well, 1 if "
            "something is damaged.", _dataset, _verify_run,
            "example:\n  robot-rl data verify data/push && echo fine"),
    Command("repair", "save what an interrupted or damaged recording holds",
            "Save what can be saved. Nothing is deleted: damaged files are set aside.",
            _dataset, _repair_run, "example:\n  robot-rl data repair data/push"),
    Command("import", "from ROS bags, LeRobot, Minari, robomimic, D4RL or npz",
            "Read episodes from elsewhere into a new dataset.", _import_arguments,
            _import_run,
            "examples:\n  robot-rl data import session.mcap --map map.yaml --rate 10 "
            "--task Push --out data/push\n"
            "  robot-rl data import --from lerobot ~/lerobot/pusht --out data/pusht\n"
            "  robot-rl data import low_dim.hdf5 --out data/lift"),
    Command("export", "to LeRobot, Minari or a ROS 2 bag",
            "Write episodes for other tools. Every number survives.", _export_arguments,
            _export_run,
            "examples:\n  robot-rl data export data/push --to lerobot --out exports/push\n"
            "  robot-rl data export data/push --to mcap --episodes 0-9 --out exports/bag"),
    Command("merge", "several datasets to one",
            "Copy the episodes of several datasets, one after the other, into a new one. They "
            "have to be of the same task, robot, rate and sizes.", _merge_arguments,
            _merge_run,
            "example:\n  robot-rl data merge data/monday data/tuesday --out data/week "
            "--duplicates skip"),
    Command("split", "one dataset to several, or to a selection",
            "Copy the episodes of a dataset into new ones, each episode into one of them.",
            _split_arguments, _split_run,
            "examples:\n  robot-rl data split data/push --out data/learn data/judge "
            "--fractions 0.9 0.1 --seed 1\n"
            "  robot-rl data split data/push --out data/good data/bad --by success\n"
            "  robot-rl data split data/push --out data/best --episodes 0-9,15 "
            "--successes-only"),
    Command("plot", "draw a dataset, or all arrays of one episode",
            "Draw returns, success, actions, states and timing of a dataset, or one episode "
            "over time.", _plot_arguments, _plot_run,
            "examples:\n  robot-rl data plot data/push --out push.html\n"
            "  robot-rl data plot data/push --episode 3 --out episode.png"),
    Command("play", "an episode as a video or a strip of frames",
            "Show what the cameras saw, with time, reward, success and interventions; without "
            "cameras, positions seen from above.", _play_arguments, _play_run,
            "examples:\n  robot-rl data play data/push --episode 3 --out episode.mp4\n"
            "  robot-rl data play data/push --episode 3 --frames 10 --out strip.png"),
    epilog=_EPILOG,
)
