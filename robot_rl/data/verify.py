"""Whether a dataset is whole: reads every byte of every episode, and changes nothing."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from robot_rl.data.apart import REJECTED
from robot_rl.data.episode_file import (
    COMMIT_RECORD,
    LAYOUT_RECORD,
    FileContents,
    check_index,
    read_episode_file,
    read_records,
)
from robot_rl.data.episodes import (
    DatasetInfo,
    Episode,
)
from robot_rl.data.files import (
    Lock,
    read_json,
)
from robot_rl.data.log import (
    COMMITTED,
    EPISODES,
    INTERRUPTED,
    LOCK,
    SET_ASIDE,
    EpisodeFile,
    check_sizes,
    episode_of,
    highest_committed,
    list_episodes,
    list_parts,
    load_dataset,
    read_info,
)
from robot_rl.data.recording import commit_record_of
from robot_rl.errors import InvalidInputError

# Called with the files done and how many there are.
Progress = Callable[[int, int], None]

_KNOWN = {REJECTED, "dataset.json", EPISODES, INTERRUPTED, SET_ASIDE, LOCK, COMMITTED, ".cache"}
_ASIDE = re.compile(r"(?:\d+-)?(\d{6,12})\.mcap(?:\.part)?")
_COMMITTED = re.compile(r"\d{6,12}\.mcap")
_GAP = re.compile(r"(\d{6,12})-(\d{6,12})\.missing")


# -- verify -------------------------------------------------------------------------------------


def verify(path: str | Path, *, progress: Progress | None = None) -> dict[str, Any]:
    """Read a whole dataset and say what is wrong with it. Changes nothing.

    Args:
        path: a dataset folder, of this format or the former one, or an npz of demonstrations.
        progress: called with the episodes read and how many there are.

    Returns:
        ``ok`` (no errors), ``errors`` and ``warnings`` (texts that name the file, what is the
        matter and what to do), ``episodes`` and ``steps`` that can be read, ``complete`` (no
        errors, and nothing interrupted waits for repair), ``recording`` (the file that another
        process records into, or None), ``interrupted`` (files that :func:`repair` would save).

    Raises:
        InvalidInputError: there is nothing at ``path``, or no dataset.
    """
    path = Path(path)
    if not path.exists():
        raise InvalidInputError(f"dataset: {path} does not exist")
    raw, problem = describe(path)
    if path.is_file() or (isinstance(raw, dict) and raw.get("format") == 1):
        return _verify_former(path)
    if not (path / EPISODES).is_dir() and not (path / "dataset.json").exists():
        raise InvalidInputError(f"dataset: {path} holds none")
    errors, warnings = [], []
    info = None
    try:
        info = read_info(path)
    except InvalidInputError as error:
        errors.append(f"{problem or error}; {_hint(path, 'rebuilds it from the episodes')}")
    recording, interrupted = _unfinished(path)
    files = list_episodes(path)
    if not (path / EPISODES).is_dir():
        errors.append(f"{path / EPISODES} is missing; put it back, or "
                      + _hint(path, "takes note of it"))
    episodes = steps = 0
    alike = _Alike()
    for done, file in enumerate(files):
        count, found = check_file(file, info, alike)
        if found and not file.path.exists():
            warnings.append(f"{file.path} was taken away while the dataset was read")
            continue
        errors += [f"{file.path}: {text}; " + _hint(path, "keeps what can be read of it")
                   for text in found]
        episodes, steps = episodes + (count > 0), steps + count
        if progress is not None:
            progress(done + 1, len(files))
    errors += _check_numbers(path, files)
    warnings += alike.warnings
    warnings += [f"{part}: an episode that was never finished; "
                 + _hint(path, "makes an episode of it") for part in interrupted]
    warnings += [f"{stray} does not belong to a dataset; move it elsewhere"
                 for stray in _strays(path)]
    return {"path": str(path), "ok": not errors, "errors": errors, "warnings": warnings,
            "episodes": episodes, "steps": steps, "complete": not errors and not interrupted,
            "recording": None if recording is None else str(recording),
            "interrupted": [str(part) for part in interrupted]}


def _hint(path: Path, what: str) -> str:
    return f"`robot-rl data repair {path}` {what}"


def describe(path: Path) -> tuple[Any, str]:
    """What dataset.json holds, or why it cannot be read."""
    if not (path / "dataset.json").exists():
        return None, f"dataset: {path / 'dataset.json'} is missing"
    try:
        return read_json(path / "dataset.json", "dataset"), ""
    except InvalidInputError as error:
        return None, str(error)


def _verify_former(path: Path) -> dict[str, Any]:
    errors: list[str] = []
    episodes: list[Episode] = []
    try:
        _, episodes = load_dataset(path)
    except InvalidInputError as error:
        errors.append(f"{error}; this format has no repair, take the file out or import the rest")
    return {"path": str(path), "ok": not errors, "errors": errors, "warnings": [],
            "episodes": len(episodes), "steps": sum(len(e) for e in episodes),
            "complete": not errors, "recording": None, "interrupted": []}


def _unfinished(path: Path) -> tuple[Path | None, list[Path]]:
    """The file that is being recorded into, and those that nobody finishes any more."""
    parts, recording = list_parts(path), None
    if parts and Lock.is_held(path / LOCK):
        recording = parts.pop()
    return recording, parts + leftovers_in(path)


def leftovers_in(path: Path) -> list[Path]:
    """Files in ``interrupted/`` that a repair would save."""
    try:
        return sorted(p for p in (path / INTERRUPTED).iterdir()
                      if ".mcap" in p.name and p.is_file() and not p.is_symlink())
    except OSError:
        return []


class _Alike:
    """Looks for what is right in each episode and odd among several."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self._commits: dict[str, Path] = {}
        self._keys: tuple[Path, frozenset[str]] | None = None

    def take(self, path: Path, contents: FileContents) -> None:
        commit = json.dumps(contents.commit, sort_keys=True)
        twin = self._commits.setdefault(commit, path)
        if twin != path:
            self.warnings.append(f"{path} holds the same episode as {twin}; take one of them out")
        keys = frozenset(f.key for f in contents.layout.fields) if contents.layout else frozenset()
        if self._keys is None:
            self._keys = path, keys
        elif keys != self._keys[1]:
            other = ", ".join(sorted(keys ^ self._keys[1]))
            self.warnings.append(f"{path} differs from {self._keys[0]} in what it holds: {other}")


def check_file(
    file: EpisodeFile, info: DatasetInfo | None, alike: _Alike | None = None
) -> tuple[int, list[str]]:
    """Steps that can be read, and what is wrong with the file."""
    try:
        with open(file.path, "rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            contents = read_episode_file(stream, size)
            episode = episode_of(contents, "it")
            if info is not None:
                check_sizes(info, episode, "it")
            found = _check_commit(contents, episode)
            if alike is not None:
                alike.take(file.path, contents)
            try:
                check_index(stream, size)
                indexed = read_records(stream, size, (COMMIT_RECORD, LAYOUT_RECORD))
                if indexed[COMMIT_RECORD] != contents.commit:
                    found.append("its index leads to another commit than its data holds")
            except InvalidInputError as error:
                found.append(str(error))
        return len(episode), found
    except OSError as error:
        return 0, [f"cannot be read: {error.strerror}"]
    except InvalidInputError as error:
        return 0, [str(error).removeprefix("dataset: ")]


def _check_commit(contents: FileContents, episode: Episode) -> list[str]:
    """What of the commit record is not so."""
    said, frames = contents.commit or {}, contents.frames
    counts = {name: len(found) for name, found in frames.items()}
    is_so = commit_record_of(episode.step_arrays(), counts)
    found = []
    for key in ("steps", "success", "success_any", "ended", "frames", "interventions"):
        if said.get(key) != is_so[key]:
            found.append(f"{key} is {is_so[key]}, {said.get(key)} was committed")
    total, expected = said.get("return"), is_so["return"]
    if isinstance(expected, float) and not (
        isinstance(total, (int, float))
        and math.isclose(total, expected, rel_tol=1e-6, abs_tol=1e-6 + 1e-6 * float(
            np.abs(episode.reward).sum(dtype=np.float64)))
    ):
        found.append(f"its return is {expected}, {total} was committed")
    return found


def _check_numbers(path: Path, files: list[EpisodeFile]) -> list[str]:
    errors = [f"{file.path}: its number is there twice; {_hint(path, 'gives it another')}"
              for file in doubled(files)]
    gaps = missing_numbers(path, files)
    if gaps:
        shown = ", ".join(str(a) if a == b else f"{a} to {b}" for a, b in gaps[:10])
        errors.append(f"{path / EPISODES}: episodes {shown}{', ...' if len(gaps) > 10 else ''} are "
                      "missing; put them back, or " + _hint(path, "takes note of it"))
    return errors


def doubled(files: list[EpisodeFile]) -> list[EpisodeFile]:
    """Files whose number another one has, in the usual spelling."""
    usual = {file.number for file in files if file.path.name == f"{file.number:06d}.mcap"}
    found = []
    for file in files:
        if file.path.name != f"{file.number:06d}.mcap" and file.number in usual:
            found.append(file)
        usual.add(file.number)
    return found


def missing_numbers(path: Path, files: list[EpisodeFile]) -> list[tuple[int, int]]:
    """First and last of the numbers, up to the last that was committed, that neither an episode nor
    one that was set aside nor an earlier repair accounts for."""
    known = [(file.number, file.number) for file in files]
    last = max(known[-1][0] if known else -1, highest_committed(path))
    try:
        for name in os.listdir(path / SET_ASIDE):
            if match := _ASIDE.fullmatch(name):
                known.append((int(match[1]), int(match[1])))
            elif match := _GAP.fullmatch(name):
                known.append((int(match[1]), int(match[2])))
    except OSError:
        pass
    gaps, expected = [], 0
    for first, end in sorted(known):
        if first > expected and expected < last:
            gaps.append((expected, min(first - 1, last)))
        expected = max(expected, end + 1)
    if expected <= last:
        gaps.append((expected, last))
    return gaps


def _strays(path: Path) -> list[Path]:
    """What nothing made by this package is called."""
    found = [p for p in path.iterdir() if p.name not in _KNOWN]
    folder = path / EPISODES
    if folder.is_dir():
        parts = set(list_parts(path))
        found += [p for p in folder.iterdir() if p not in parts and (
            not _COMMITTED.fullmatch(p.name) or not p.is_file() or p.is_symlink())]
    return sorted(found)
