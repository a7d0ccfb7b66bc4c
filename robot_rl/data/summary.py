"""What a dataset holds, read from the index of every episode and not from the episodes."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from robot_rl.data.apart import kept_apart
from robot_rl.data.episode_file import LAYOUT_RECORD, read_records
from robot_rl.data.episodes import (
    ACHIEVED,
    DESIRED,
    IMAGES,
    INTERVENTION,
    OBSERVATION,
    DatasetInfo,
    Episode,
)
from robot_rl.data.files import read_json
from robot_rl.data.log import EpisodeFile, Log, load_dataset, open_log
from robot_rl.data.verify import missing_numbers
from robot_rl.errors import InvalidInputError

# Shares that the index does not tell are read from at most this many episodes and bytes.
_SAMPLE_EPISODES = 50
_SAMPLE_BYTES = 64 << 20


@dataclass
class Entry:
    """One episode as its index describes it; ``problem`` says why it does not, if so.

    ``total_reward`` is nan where it is not known, ``recorded_at`` [s since 1970] is 0 then;
    ``interventions`` (steps) is None then.
    """

    number: int
    steps: int = 0
    success: bool = False
    success_any: bool = False
    total_reward: float = math.nan
    ended: str = ""
    frames: dict[str, int] = field(default_factory=dict)
    recorded_at: float = 0.0
    keys: tuple[str, ...] = ()
    interventions: int | None = None
    size: int = 0
    problem: str = ""
    file: EpisodeFile | None = None
    episode: Episode | None = None


class Source:
    """Episodes by number, of a log or of anything else that :func:`load_dataset` reads.

    Attributes:
        path, info: where and what it is.
        log: the log, or None if the episodes are in memory.
        entries: the episodes, by number.
    """

    def __init__(self, path: Path, info: DatasetInfo, log: Log | None, entries: list[Entry]) -> (
        None
    ):
        self.path, self.info, self.log, self.entries = path, info, log, entries

    def read(self, entry: Entry, *, images: bool = True) -> Episode:
        """One episode.

        Raises:
            InvalidInputError: it is damaged.
        """
        if entry.episode is not None:
            return entry.episode
        assert self.log is not None and entry.file is not None
        return self.log.read(entry.file, images=images)

    def find(self, number: int) -> Entry:
        """The episode of that number.

        Raises:
            InvalidInputError: there is none.
        """
        for entry in self.entries:
            if entry.number == number:
                return entry
        raise InvalidInputError(
            f"episode {number} is not in {self.path}; {describe_numbers(self.entries)}"
        )

    def cameras(self) -> dict[str, tuple[int, ...]]:
        """Frame shapes (H, W, C) by camera, of the info or else of the first episode."""
        if self.info.cameras or not self.entries:
            return {name: tuple(shape) for name, shape in self.info.cameras.items()}
        shapes = self.shapes()
        return {key.removeprefix(IMAGES): shape for key, (_, shape) in shapes.items()
                if key.startswith(IMAGES)}

    def shapes(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Type and shape of a row by key; of a frame for cameras. Empty arrays are left out."""
        found: dict[str, tuple[str, tuple[int, ...]]] = {}
        seen: set[tuple[str, ...]] = set()
        for entry in self.entries:
            if entry.problem or entry.keys in seen:
                continue
            seen.add(entry.keys)
            described = _described(entry.episode) if entry.episode else _layout_of(entry)
            for key, value in described.items():
                found.setdefault(key, value)
        return {key: value for key, value in found.items() if 0 not in value[1]}


class Selection:
    """Some episodes of a source, by their place among them, as exporters read a log.

    ``on_read`` is called with the place of each episode read, from 1, and how many there are.
    """

    def __init__(self, source: Source, entries: Sequence[Entry]) -> None:
        self.source, self.entries = source, list(entries)
        self.info, self.path = source.info, source.path
        self.on_read: Callable[[int, int], None] | None = None

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[Episode]:
        for number in range(len(self)):
            yield self.read(number)

    def read(self, number: int, /, *, images: bool = True) -> Episode:
        """The episode at place ``number`` among those selected."""
        episode = self.source.read(self.entries[number], images=images)
        if self.on_read is not None:
            self.on_read(number + 1, len(self))
        return episode


def open_source(path: str | Path) -> Source:
    """The dataset at ``path``: a folder of this package, of its former format, or a plain npz.

    Raises:
        InvalidInputError: it is none of these.
    """
    path = Path(path)
    if path.is_file() or (path.is_dir() and _is_former(path)):
        info, episodes = load_dataset(path)
        return Source(path, info, None, [_loaded(i, e) for i, e in enumerate(episodes)])
    log = open_log(path)
    return Source(path, log.info, log, [_indexed(log, file) for file in log.files])


def select(
    source: Source, episodes: str = "", *, successes_only: bool = False
) -> list[Entry]:
    """The episodes that ``episodes``, e.g. ``0-9,15,20-``, names; all for an empty text.

    Raises:
        InvalidInputError: it cannot be read, names an episode that is not there, or nothing is
            left, or one of them is damaged.
    """
    chosen = source.entries
    if episodes:
        wanted = set(_numbers(episodes, source))
        chosen = [entry for entry in chosen if entry.number in wanted]
    for entry in chosen:
        if entry.problem:
            raise InvalidInputError(entry.problem)
    if successes_only:
        chosen = [entry for entry in chosen if entry.success]
    if not chosen:
        which = "successful episodes" if successes_only else "episodes"
        raise InvalidInputError(f"{source.path} holds no {which}"
                                f"{f' among {episodes}' if episodes else ''}")
    return chosen


def summarize(path: str | Path) -> dict[str, Any]:
    """What ``robot-rl data info`` says of the dataset at ``path``, ready for JSON.

    ``episodes``, ``steps``, ``keys``, ``success_rate`` (of last steps; None without episodes) and
    ``complete`` (nothing is interrupted, being recorded, unreadable or missing) among others; an
    unreadable episode is listed and counts nowhere else.

    Raises:
        InvalidInputError: there is no dataset.
    """
    source = open_source(path)
    info, log = source.info, source.log
    good = [entry for entry in source.entries if not entry.problem]
    bad = [entry for entry in source.entries if entry.problem]
    shapes = source.shapes()
    hollow = _hollow(info)
    named = (key for keys in dict.fromkeys(entry.keys for entry in good) for key in keys)
    recording = log.recording is not None if log else False
    leftovers = [str(part) for part in log.leftovers] if log else []
    missing = missing_numbers(log.path, log.files) if log else []
    times = [entry.recorded_at for entry in good if entry.recorded_at]
    return {
        "path": str(source.path),
        "episodes": len(good),
        "steps": sum(entry.steps for entry in good),
        "keys": [key for key in dict.fromkeys(named) if key not in hollow],
        "success_rate": _mean([entry.success for entry in good]),
        "complete": not (recording or leftovers or bad or missing),
        "task": info.task,
        "robot": info.robot,
        "rate_hz": _finite(info.rate_hz) or 0.0,
        "cameras": {name: list(shape) for name, shape in source.cameras().items()},
        "shapes": {key: list(shape) for key, (_, shape) in shapes.items()},
        "dtypes": {key: dtype for key, (dtype, _) in shapes.items()},
        "success_any_rate": _mean([entry.success_any for entry in good]),
        "length": _spread([float(entry.steps) for entry in good]),
        "return": _spread([entry.total_reward for entry in good]),
        "apart": kept_apart(source.path),
        "ended": dict(Counter(entry.ended for entry in good if entry.ended)),
        "frames": _frames(good),
        "intervention_share": _intervention_share(source, good),
        "recorded_from": _iso(min(times)) if times else None,
        "recorded_to": _iso(max(times)) if times else None,
        "recording": recording,
        "interrupted": leftovers,
        "missing": [[first, last] for first, last in missing],
        "unreadable": [{"episode": entry.number, "error": entry.problem} for entry in bad],
        "bytes": _bytes(source.path),
        "software": info.software,
        "format": info.format,
    }


def describe_numbers(entries: Sequence[Entry]) -> str:
    """Which episodes there are, for a message."""
    if not entries:
        return "it holds no episodes"
    if len(entries) == 1:
        return f"it holds episode {entries[0].number}"
    return f"it holds {len(entries)} episodes, {entries[0].number} to {entries[-1].number}"


# -- inside -------------------------------------------------------------------------------------


def _is_former(path: Path) -> bool:
    file = path / "dataset.json"
    raw = read_json(file, "dataset") if file.is_file() else None
    return isinstance(raw, dict) and raw.get("format") == 1


def _loaded(number: int, episode: Episode) -> Entry:
    ended = ("terminated" if episode.terminated[-1] else
             "truncated" if episode.truncated[-1] else "cut off")
    marks = episode.intervention
    return Entry(
        number=number, steps=len(episode), success=bool(episode.success[-1]),
        success_any=bool(episode.success.any()),
        total_reward=float(episode.reward.sum(dtype=np.float64)), ended=ended,
        frames={name: len(images.frames) for name, images in episode.images.items()},
        keys=tuple(_described(episode)), episode=episode,
        interventions=None if marks is None else int(marks.sum()),
    )


def _described(episode: Episode) -> dict[str, tuple[str, tuple[int, ...]]]:
    arrays = {**episode.state_arrays(), **episode.step_arrays()}
    found = {key: (str(array.dtype), tuple(array.shape[1:])) for key, array in arrays.items()}
    found[DESIRED] = (str(episode.desired.dtype), episode.desired.shape)
    for name, images in episode.images.items():
        found[f"{IMAGES}{name}"] = ("uint8", tuple(images.frames.shape[1:]))
    return found


def _indexed(log: Log, file: EpisodeFile) -> Entry:
    try:
        raw = log.summary(file)
        entry = Entry(file.number, file=file, size=file.size)
        entry.steps = int(raw["steps"])
        entry.success, entry.success_any = raw.get("success") is True, (
            raw.get("success_any") is True)
        entry.total_reward = _number(raw.get("return"), math.nan)
        entry.ended = str(raw.get("ended", ""))
        frames = raw.get("frames")
        entry.frames = ({str(k): int(v) for k, v in frames.items()} if isinstance(frames, dict)
                        else {})
        entry.recorded_at = _number(raw.get("recorded_at"), 0.0)
        marks = raw.get("interventions")
        entry.interventions = marks if isinstance(marks, int) else None
        entry.keys = tuple(str(key) for key in raw["keys"])
        return entry
    except InvalidInputError as error:
        return Entry(file.number, file=file, size=file.size, problem=str(error))
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
        return Entry(file.number, file=file, size=file.size,
                     problem=f"dataset: {file.path}: its index makes no sense ({error!r})")


def _layout_of(entry: Entry) -> dict[str, tuple[str, tuple[int, ...]]]:
    assert entry.file is not None
    found: dict[str, tuple[str, tuple[int, ...]]] = {}
    try:
        with open(entry.file.path, "rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            layout = read_records(stream, size, (LAYOUT_RECORD,))[LAYOUT_RECORD]
        for row in layout["fields"]:
            shape = tuple(int(n) for n in row["shape"])
            found[str(row["key"])] = (str(row["dtype"]), shape)
        for name, camera in layout["cameras"].items():
            found[f"{IMAGES}{name}"] = ("uint8", tuple(int(n) for n in camera["shape"]))
    except (InvalidInputError, OSError, TypeError, ValueError, KeyError, AttributeError):
        return {}
    return found


def _numbers(text: str, source: Source) -> Iterator[int]:
    """The numbers of ``0-9,15,20-`` that there are."""
    known = [entry.number for entry in source.entries]
    there = set(known)
    last = known[-1] if known else -1
    for word in (part.strip() for part in text.split(",")):
        low, dash, high = word.partition("-")
        if not low.isdecimal() or (dash and high and not high.isdecimal()) or len(word) > 40:
            raise InvalidInputError(
                f"episodes: {word[:40]!r} is neither a number nor a range such as 0-9 or 20-"
            )
        first, end = int(low), (int(high) if high else last) if dash else int(low)
        if first > end and first <= last:
            raise InvalidInputError(f"episodes: the range {word} runs backwards")
        if end > last or first > last or (not dash and first not in there):
            missing = first if not dash or first > last else end
            raise InvalidInputError(f"episodes: {missing} is not in {source.path}; "
                                    f"{describe_numbers(source.entries)}")
        yield from (number for number in known if first <= number <= end)


def _hollow(info: DatasetInfo) -> set[str]:
    """Keys whose arrays hold no numbers: of tasks without goals, of data that is only seen."""
    hollow = {ACHIEVED, DESIRED} if info.goal_dim == 0 else set()
    if 0 in info.observation_shape:
        hollow.add(OBSERVATION)
    return hollow


def _intervention_share(source: Source, entries: list[Entry]) -> float | None:
    """The share of steps in which a person acted; None where nothing tells.

    Where the index does not count them, evenly spaced episodes are read.
    """
    having = [entry for entry in entries if INTERVENTION in entry.keys]
    if not having:
        return None
    if all(entry.interventions is not None for entry in having):
        marked = sum(entry.interventions or 0 for entry in having)
        return marked / max(sum(entry.steps for entry in entries), 1)
    marked = total = read = 0
    for at in np.unique(np.linspace(0, len(entries) - 1, _SAMPLE_EPISODES).round()).astype(int):
        entry = entries[at]
        if read and read + entry.size > _SAMPLE_BYTES:
            continue
        read += entry.size
        try:
            episode = source.read(entry, images=False)
        except InvalidInputError:
            continue
        total += len(episode)
        marked += 0 if episode.intervention is None else int(episode.intervention.sum())
    return marked / total if total else None


def _frames(entries: list[Entry]) -> dict[str, int]:
    count: Counter[str] = Counter()
    for entry in entries:
        count.update(entry.frames)
    return dict(count)


def _bytes(path: Path) -> int:
    """Bytes of the dataset's files; what is gone meanwhile counts as nothing."""
    if path.is_file():
        return path.stat().st_size
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            try:
                total += os.lstat(os.path.join(folder, name)).st_size
            except OSError:
                continue
    return total


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if len(values) else None


def _spread(values: Sequence[float]) -> dict[str, float] | None:
    finite = np.array([value for value in values if math.isfinite(value)])
    if not len(finite):
        return None
    return {"min": float(finite.min()), "mean": float(finite.mean()), "max": float(finite.max())}


def _number(value: Any, otherwise: float) -> float:
    good = isinstance(value, (int, float)) and not isinstance(value, bool)
    try:
        return float(value) if good and math.isfinite(value) else otherwise
    except OverflowError:
        return otherwise


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _iso(time_s: float) -> str | None:
    """A time as ISO 8601 in UTC, whole seconds."""
    try:
        return datetime.fromtimestamp(int(time_s), timezone.utc).isoformat()
    except (OverflowError, ValueError, OSError):
        return None
