"""Merging and splitting datasets: episode files are copied byte for byte, sources never change.

A result is built beside its place and renamed into it, so that it is whole or not there.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from robot_rl.data.episodes import DESIRED, DatasetInfo, Episode
from robot_rl.data.exporters.staged import staged
from robot_rl.data.files import AppendedFile, storage_error, write_json
from robot_rl.data.log import EPISODES
from robot_rl.data.summary import Entry, Source, open_source, select
from robot_rl.data.writer import DatasetWriter
from robot_rl.errors import InvalidInputError, unknown_name

DUPLICATES = ("error", "skip", "keep")
SPLIT_BY = ("random", "order", "success")
_COPY_BYTES = 8 << 20
_SYNC_EVERY, _SYNCS_AT_ONCE = 512, 16

# Called with the episodes done and how many there are.
Progress = Callable[[int, int], None]


def merge(
    sources: Sequence[str | Path],
    out: str | Path,
    *,
    duplicates: str = "error",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write the episodes of all ``sources``, one after the other, as the dataset ``out``.

    Args:
        sources: datasets of the same task, robot, rate, shapes and cameras; what one of them does
            not say (no task, rate 0) fits anything.
        duplicates: what to do with an episode whose arrays are the same as an earlier one's:
            ``error``, ``skip`` or ``keep``.
        overwrite: set a folder at ``out`` aside as ``<name>.old``.

    Returns:
        ``path``, ``episodes``, ``steps``, ``success_rate``, ``skipped`` (duplicates left out) and
        ``sources`` (path, episodes).

    Raises:
        InvalidInputError: the datasets differ, an episode is damaged or there twice, ``out`` is in
            use or is one of the sources. Nothing is written then.
    """
    if duplicates not in DUPLICATES:
        raise unknown_name("choice for duplicates", duplicates, DUPLICATES)
    if not sources:
        raise InvalidInputError("merge: there are no datasets to merge")
    _keep_apart([Path(s) for s in sources], [Path(out)])
    opened = [open_source(path) for path in sources]
    info = _merged_info(opened)
    plan = [(i, entry) for i, source in enumerate(opened) for entry in source.entries]
    if not plan:
        raise InvalidInputError(
            f"merge: {', '.join(str(source.path) for source in opened)} hold no episodes"
        )
    found = _Known(duplicates)
    written: list[list[int]] = [[] for _ in opened]
    with staged(Path(out), "merge", overwrite=overwrite) as folder:
        with closing(_Copier(folder, info)) as writer:
            for done, (i, entry) in enumerate(plan):
                if found.is_new(opened[i], entry):
                    writer.take(opened[i], entry)
                    written[i].append(entry.number)
                if progress is not None:
                    progress(done + 1, len(plan))
            writer.describe(_provenance(info, opened, written))
            taken = writer.taken
    return {
        **_counts(Path(out), taken),
        "skipped": found.skipped,
        "sources": [{"path": str(source.path), "episodes": len(numbers)}
                    for source, numbers in zip(opened, written, strict=True)],
    }


@dataclass(frozen=True)
class SplitOptions:
    """How episodes are dealt out.

    ``by`` is ``random`` (by ``seed``), ``order`` (as they were recorded) or ``success`` (the
    successful ones to the first part, the others to the second). ``fractions`` (one for each
    part, sum 1; none for equal parts) go with the first two. ``episodes``, e.g. ``0-9,15``, and
    ``successes_only`` choose what is dealt out at all.
    """

    by: str = "random"
    fractions: tuple[float, ...] = ()
    seed: int = 0
    episodes: str = ""
    successes_only: bool = False


def split(
    source: str | Path,
    outs: Sequence[str | Path],
    options: SplitOptions | None = None,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write the episodes of ``source`` as the datasets ``outs``, each to one of them, in order.

    Returns:
        ``parts`` (each with ``path``, ``episodes``, ``steps``, ``success_rate``) and ``left_out``,
        the episodes that were not chosen.

    Raises:
        InvalidInputError: an option cannot be used, a part would be empty, an episode is damaged,
            or a place in ``outs`` is in use. Nothing is written then.
    """
    options = options or SplitOptions()
    folders = [Path(out) for out in outs]
    _keep_apart([Path(source)], folders)
    opened = open_source(source)
    chosen = select(opened, options.episodes, successes_only=options.successes_only)
    parts = _deal(chosen, folders, options)
    kept, done = [], 0
    with ExitStack() as stack:
        places = [stack.enter_context(staged(folder, "split", overwrite=overwrite))
                  for folder in folders]
        for place, part in zip(places, parts, strict=True):
            numbers = [entry.number for entry in part]
            info = _provenance(opened.info, [opened], [numbers], "split_from", _said(options))
            with closing(_Copier(place, opened.info)) as writer:
                for entry in part:
                    opened.read(entry, images=False)  # What is damaged is not passed on.
                    writer.take(opened, entry)
                    done += 1
                    if progress is not None:
                        progress(done, len(chosen))
                writer.describe(info)
                kept.append(writer.taken)
    return {
        "parts": [_counts(folder, taken) for folder, taken in zip(folders, kept, strict=True)],
        "left_out": len(opened.entries) - len(chosen),
    }


# -- copying ------------------------------------------------------------------------------------


class _Copier(DatasetWriter):
    """Writes a dataset from the episode files of others; on the disk once described."""

    def __init__(self, path: Path, info: DatasetInfo) -> None:
        super().__init__(path, info)
        self.taken: list[Entry] = []
        self._copies: list[Path] = []

    def take(self, source: Source, entry: Entry) -> None:
        """Copy an episode's file as the next one; write it where it has none."""
        if entry.file is None:
            self.append(source.read(entry))
        else:
            copy = self.path / EPISODES / f"{self._next:06d}.mcap"
            _copy(entry.file.path, copy)
            self._copies.append(copy)
            self._next += 1
            self.count += 1
            if len(self._copies) >= _SYNC_EVERY:
                self.settle()
        self.taken.append(entry)

    def settle(self) -> None:
        """Return when what was copied is on the disk, which is much faster for many at once."""
        with ThreadPoolExecutor(_SYNCS_AT_ONCE) as pool:
            for _ in pool.map(_sync, self._copies):
                pass
        self._copies = []

    def describe(self, info: DatasetInfo) -> None:
        """Say at the end what the dataset is."""
        self.settle()
        self.info = info
        write_json(self.path / "dataset.json", asdict(info))


def _copy(path: Path, target: Path) -> None:
    """Copy a file, without syncing."""
    try:
        source = open(path, "rb")
    except OSError as error:
        raise InvalidInputError(f"cannot read {path}: {error.strerror}") from None
    with source:
        file = AppendedFile(target)
        try:
            while data := source.read(_COPY_BYTES):
                file.write(data)
        except OSError as error:
            raise storage_error(path, error) from None
        finally:
            file.close()


def _sync(path: Path) -> None:
    try:
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    except OSError as error:
        raise storage_error(path, error) from None


# -- duplicates ---------------------------------------------------------------------------------


class _Known:
    """The episodes so far, by their content."""

    def __init__(self, policy: str) -> None:
        self._policy = policy
        self._seen: dict[bytes, list[tuple[Source, Entry]]] = {}
        self.skipped = 0

    def is_new(self, source: Source, entry: Entry) -> bool:
        """Whether the episode is to be written; reads it, so that damage is found as well."""
        episode = source.read(entry, images=False)
        if self._policy == "keep":
            return True
        same = self._seen.setdefault(content_digest(episode), [])
        for other_source, other in same:
            if not _same_frames(other_source, other, source, entry):
                continue
            if self._policy == "skip":
                self.skipped += 1
                return False
            raise InvalidInputError(
                f"merge: episode {entry.number} of {source.path} has the same content as episode "
                f"{other.number} of {other_source.path}; --duplicates skip leaves it out, keep "
                "takes it twice"
            )
        same.append((source, entry))
        return True


def content_digest(episode: Episode) -> bytes:
    """A digest of an episode's arrays by key, without frames, metadata and when it was written."""
    digest = hashlib.blake2b(digest_size=16)
    arrays = {**episode.state_arrays(), **episode.step_arrays(), DESIRED: episode.desired}
    frames = {f"observation.images.{name}" for name in episode.images}
    for key in sorted(set(arrays) - frames):
        array = np.ascontiguousarray(arrays[key])
        digest.update(f"{key} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.digest()


def _same_frames(one: Source, first: Entry, two: Source, second: Entry) -> bool:
    if first.frames != second.frames:
        return False
    if not first.frames:
        return True
    a, b = one.read(first).images, two.read(second).images
    return a.keys() == b.keys() and all(
        np.array_equal(a[name].index, b[name].index)
        and np.array_equal(a[name].stamp_s, b[name].stamp_s)
        and np.array_equal(a[name].frames, b[name].frames)
        for name in a
    )


# -- dealing out --------------------------------------------------------------------------------


def _deal(chosen: list[Entry], outs: list[Path], options: SplitOptions) -> list[list[Entry]]:
    if options.by not in SPLIT_BY:
        raise unknown_name("way to split", options.by, SPLIT_BY)
    if options.by == "success":
        if len(outs) != 2 or options.fractions:
            raise InvalidInputError(
                "split by success takes two places in --out, for successes and for the others, and "
                "no --fractions"
            )
        parts = [[entry for entry in chosen if entry.success],
                 [entry for entry in chosen if not entry.success]]
    else:
        sizes = _sizes(len(chosen), outs, options.fractions)
        if options.by == "random":
            if not 0 <= options.seed < 2**63:
                raise InvalidInputError(f"seed is {options.seed}, should be in [0, 2^63)")
            order = np.random.default_rng(options.seed).permutation(len(chosen))
        else:
            order = np.arange(len(chosen))
        ends = np.cumsum(sizes)
        parts = [[chosen[i] for i in np.sort(order[end - size : end])]
                 for size, end in zip(sizes, ends, strict=True)]
    for out, part in zip(outs, parts, strict=True):
        if not part:
            raise InvalidInputError(
                f"split: {len(chosen)} episodes leave nothing for {out}; give it a larger share"
            )
    return parts


def _sizes(count: int, outs: list[Path], fractions: Sequence[float]) -> list[int]:
    """Whole numbers of episodes in proportion, by the largest remainders."""
    shares = list(fractions) or [1.0 / len(outs)] * len(outs)
    if len(shares) != len(outs):
        raise InvalidInputError(
            f"split: {len(shares)} fractions for {len(outs)} places; give one for each of --out"
        )
    if any(not 0.0 < share <= 1.0 for share in shares):
        raise InvalidInputError(
            f"split: fractions are {' '.join(f'{s:g}' for s in shares)}, each should be in (0, 1]"
        )
    total = math.fsum(shares)
    if abs(total - 1.0) > 1e-6:
        raise InvalidInputError(f"split: fractions sum to {total:g}, should sum to 1")
    exact = [count * share / total for share in shares]
    # Rounded, so that 0.7 of 10 is 7 and not 6.999...
    sizes = [math.floor(round(part, 9)) for part in exact]
    rest = sorted(range(len(sizes)), key=lambda i: (round(sizes[i] - exact[i], 9), i))
    for i in rest[: count - sum(sizes)]:
        sizes[i] += 1
    return sizes


# -- what a dataset is of -----------------------------------------------------------------------


def _merged_info(sources: Sequence[Source]) -> DatasetInfo:
    """What all of them are of.

    Raises:
        InvalidInputError: two differ; the message names the field and both values.
    """
    info = sources[0].info
    for name, unknown in (("task", ""), ("robot", ""), ("rate_hz", 0.0),
                          ("observation_shape", None), ("goal_dim", None), ("action_dim", None),
                          ("cameras", {})):
        first: tuple[Any, Source] | None = None
        for source in sources:
            value = source.cameras() if name == "cameras" else getattr(source.info, name)
            if value == unknown and (name != "cameras" or not source.entries):
                continue
            if first is None:
                first = (value, source)
            elif value != first[0]:
                raise InvalidInputError(
                    f"merge: {name} is {_value(first[0])} in {first[1].path} and {_value(value)} "
                    f"in {source.path}; only datasets of the same {name} can be merged"
                )
        if first is not None:
            info = replace(info, **{name: first[0]})
    infos = [source.info for source in sources]
    return replace(
        info,
        env=_common([each.env for each in infos]),
        config=_common([each.config for each in infos]),
        calibration=_common([each.calibration for each in infos]),
        software=", ".join(dict.fromkeys(each.software for each in infos if each.software)),
    )


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {tuple(item)}" for key, item in value.items()) or "none"
    return repr(value)


def _common(dicts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What all of them say alike."""
    return {key: value for key, value in dicts[0].items()
            if all(key in other and other[key] == value for other in dicts[1:])}


def _provenance(
    info: DatasetInfo,
    sources: Sequence[Source],
    numbers: Sequence[list[int]],
    name: str = "merged_from",
    options: dict[str, Any] | None = None,
) -> DatasetInfo:
    """``info`` with where its episodes come from in ``config``, in their order."""
    origin = [
        {"path": str(source.path), "episodes": spans(taken), "env": source.info.env,
         "config": source.info.config, "calibration": source.info.calibration,
         "software": source.info.software, **(options or {})}
        for source, taken in zip(sources, numbers, strict=True)
    ]
    kept = {key: value for key, value in info.config.items()
            if key not in ("merged_from", "split_from")}
    return replace(info, config={**kept, name: origin})


def spans(numbers: Sequence[int]) -> str:
    """Ascending numbers as ``0-9,15``, which ``--episodes`` reads."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def _said(options: SplitOptions) -> dict[str, Any]:
    given: dict[str, Any] = {"by": options.by, "fractions": list(options.fractions)}
    if options.by == "random":
        given["seed"] = options.seed
    return {"split": given}


# -- places -------------------------------------------------------------------------------------


def _keep_apart(sources: Iterable[Path], outs: Sequence[Path]) -> None:
    """Refuse places that are a source, lie in one or hold one, and places in each other's way."""
    if not outs:
        raise InvalidInputError("there is no place to write to: give --out")
    taken = [(path, Path(os.path.realpath(path))) for path in sources]
    for out in outs:
        place = Path(os.path.realpath(out))
        for path, real in taken:
            if place in (real, *real.parents):
                raise InvalidInputError(f"{out} would be written over {path}")
            if real in place.parents:
                raise InvalidInputError(f"{out} lies in {path}; choose a place outside")
        taken.append((out, place))


def _counts(path: Path, entries: Sequence[Entry]) -> dict[str, Any]:
    return {
        "path": str(path),
        "episodes": len(entries),
        "steps": sum(entry.steps for entry in entries),
        "success_rate": sum(entry.success for entry in entries) / max(len(entries), 1),
    }
