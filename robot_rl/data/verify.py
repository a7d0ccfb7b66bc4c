"""Whether a dataset is whole, and making it so again without losing anything.

:func:`verify` reads every byte of every episode. :func:`repair` turns what a killed recording left
into episodes and replaces damaged files by what can be read of them. It never deletes: what it
replaces or empties lies in ``set_aside/`` afterwards. It can be interrupted at any point, also by a
power cut, and run again.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robot_rl.data.episode_file import (
    COMMIT_RECORD,
    DATASET_RECORD,
    FRAME_STAMPS_RECORD,
    LAYOUT_RECORD,
    EpisodeFileWriter,
    FileContents,
    check_index,
    read_episode_file,
    read_records,
)
from robot_rl.data.episodes import (
    FORMAT,
    IMAGES,
    REWARD,
    SUCCESS,
    TERMINATED,
    TIMESTAMP,
    TRUNCATED,
    DatasetInfo,
    Episode,
)
from robot_rl.data.files import (
    AppendedFile,
    Lock,
    keep_also,
    make_folder,
    move,
    publish,
    read_json,
    remove,
    sync_file,
    write_atomically,
    write_json,
)
from robot_rl.data.frames import stamp_ns
from robot_rl.data.log import (
    EPISODE_RECORD,
    EPISODES,
    INTERRUPTED,
    LOCK,
    SET_ASIDE,
    EpisodeFile,
    check_sizes,
    episode_of,
    list_episodes,
    list_parts,
    load_dataset,
    parse_info,
    read_info,
)
from robot_rl.data.recording import commit_record
from robot_rl.errors import InvalidInputError, StorageError

# Called with the files done and how many there are.
Progress = Callable[[int, int], None]

SALVAGED_FROM = "salvaged_from"
_DIGEST = "salvaged_sha256"
_KNOWN = {"dataset.json", EPISODES, INTERRUPTED, SET_ASIDE, LOCK, ".cache"}
_ASIDE = re.compile(r"(?:\d+-)?(\d{6,12})\.mcap(?:\.part)?")
_COMMITTED = re.compile(r"\d{6,12}\.mcap")
_GAP = re.compile(r"(\d{6,12})-(\d{6,12})\.missing")
_TEMPORARY = ".repair.part"
# What a file that is nonsense, though its checksums are right, can lead to.
_UNUSABLE = (InvalidInputError, KeyError, IndexError, TypeError, ValueError, OverflowError)


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
    raw, problem = _description(path)
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
    episodes = steps = 0
    for done, file in enumerate(files):
        count, found = _check_file(file, info)
        if found and not file.path.exists():
            warnings.append(f"{file.path} was taken away while the dataset was read")
            continue
        errors += [f"{file.path}: {text}; " + _hint(path, "keeps what can be read of it")
                   for text in found]
        episodes, steps = episodes + (count > 0), steps + count
        if progress is not None:
            progress(done + 1, len(files))
    errors += _check_numbers(path, files)
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


def _description(path: Path) -> tuple[Any, str]:
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
    return recording, parts + _in_interrupted(path)


def _in_interrupted(path: Path) -> list[Path]:
    try:
        return sorted(p for p in (path / INTERRUPTED).iterdir()
                      if ".mcap" in p.name and p.is_file() and not p.is_symlink())
    except OSError:
        return []


def _check_file(file: EpisodeFile, info: DatasetInfo | None) -> tuple[int, list[str]]:
    """Steps that can be read, and what is wrong with the file."""
    try:
        with open(file.path, "rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            contents = read_episode_file(stream, size)
            episode = episode_of(contents, "it")
            if info is not None:
                check_sizes(info, episode, "it")
            found = _check_commit(contents, episode)
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
    is_so = _summary_of(episode, {name: len(found) for name, found in frames.items()})
    found = []
    for key in ("steps", "success", "success_any", "ended", "frames"):
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


def _summary_of(episode: Episode, frames: dict[str, int]) -> dict[str, Any]:
    ended = ("terminated" if episode.terminated[-1] else
             "truncated" if episode.truncated[-1] else "cut off")
    return commit_record(len(episode), float(episode.reward.sum(dtype=np.float64)),
                         bool(episode.success[-1]), bool(episode.success.any()), ended, frames)


def _check_numbers(path: Path, files: list[EpisodeFile]) -> list[str]:
    errors = [f"{file.path}: its number is there twice; {_hint(path, 'gives it another')}"
              for file in _doubles(files)]
    gaps = missing_numbers(path, files)
    if gaps:
        shown = ", ".join(str(a) if a == b else f"{a} to {b}" for a, b in gaps[:10])
        errors.append(f"{path / EPISODES}: episodes {shown}{', ...' if len(gaps) > 10 else ''} are "
                      "missing; put them back, or " + _hint(path, "takes note of it"))
    return errors


def _doubles(files: list[EpisodeFile]) -> list[EpisodeFile]:
    """Files whose number another one has, in the usual spelling."""
    usual = {file.number for file in files if file.path.name == f"{file.number:06d}.mcap"}
    found = []
    for file in files:
        if file.path.name != f"{file.number:06d}.mcap" and file.number in usual:
            found.append(file)
        usual.add(file.number)
    return found


def missing_numbers(path: Path, files: list[EpisodeFile]) -> list[tuple[int, int]]:
    """First and last of the numbers, below the last, that neither an episode nor one that was set
    aside nor an earlier repair accounts for."""
    known = [(file.number, file.number) for file in files]
    last = known[-1][0] if known else -1
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
            gaps.append((expected, min(first, last) - 1))
        expected = max(expected, end + 1)
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


# -- repair -------------------------------------------------------------------------------------


def repair(path: str | Path, *, progress: Progress | None = None) -> dict[str, Any]:
    """Make a dataset whole: save what was interrupted, replace what is damaged.

    Interrupted recordings become truncated episodes behind the others, with ``salvaged_from`` in
    their metadata. Of a damaged episode, what comes before the damage takes its place. A missing or
    damaged ``dataset.json`` is made again from what the episodes say of the dataset. All originals
    are kept in ``set_aside/``. Running it again changes nothing more.

    Args:
        path: a dataset folder of this format.
        progress: called with the files looked at and how many there are.

    Returns:
        What :func:`verify` finds afterwards, and ``salvaged`` (a list of ``from``, ``episode``,
        ``steps``), ``set_aside`` (files without a whole step, of another dataset, or saved
        already), ``renumbered``, ``missing`` (first and last of numbers without an episode) and
        ``rebuilt`` (whether ``dataset.json`` was).

    Raises:
        InvalidInputError: there is no dataset, another process records into it, or it is of
            another format.
        StorageError: the disk refuses; the dataset is as whole as it was.
    """
    path = Path(path)
    if not path.is_dir():
        raise InvalidInputError(f"dataset: {path} is not a folder")
    raw, _ = _description(path)
    found = raw.get("format", FORMAT) if isinstance(raw, dict) else FORMAT
    if isinstance(found, int) and found != FORMAT:
        raise InvalidInputError(f"dataset: {path} has format {found}; only {FORMAT} can be "
                                "repaired")
    if not (path / EPISODES).is_dir() and not (path / INTERRUPTED).is_dir() and (
        not (path / "dataset.json").exists()
    ):
        raise InvalidInputError(f"dataset: {path} holds none")
    lock = Lock(path / LOCK)
    try:
        job = _Repair(path, progress)
        job.run()
    finally:
        lock.release()
    return {**verify(path), "salvaged": job.salvaged, "set_aside": job.aside,
            "renumbered": job.renumbered, "missing": job.missing, "rebuilt": job.rebuilt}


class _Repair:
    """One run of :func:`repair`, under the lock."""

    def __init__(self, path: Path, progress: Progress | None) -> None:
        self._path, self._progress = path, progress
        self._temporary = path / _TEMPORARY
        self.salvaged: list[dict[str, Any]] = []
        self.aside: list[str] = []
        self.renumbered: list[dict[str, Any]] = []
        self.missing: list[list[int]] = []
        self.rebuilt = False

    def run(self) -> None:
        remove(self._temporary)
        self._renumber()
        parts = list_parts(self._path) + _in_interrupted(self._path)
        files = list_episodes(self._path)
        self._info = self._description([file.path for file in files] + parts)
        for done, file in enumerate(files):
            _, problems = _check_file(file, self._info)
            if problems:
                self._replace(file)
            self._tell(done + 1, len(files) + len(parts))
        known = self._salvaged_before() if parts else {}
        for done, part in enumerate(parts):
            self._take(part, known)
            self._tell(len(files) + done + 1, len(files) + len(parts))
        self._note_missing()

    def _tell(self, done: int, total: int) -> None:
        if self._progress is not None:
            self._progress(done, total)

    def _next(self) -> int:
        files = list_episodes(self._path)
        return files[-1].number + 1 if files else 0

    def _renumber(self) -> None:
        for file in _doubles(list_episodes(self._path)):
            number = self._next()
            publish(file.path, self._path / EPISODES / f"{number:06d}.mcap")
            self.renumbered.append({"from": file.path.name, "episode": number})

    def _description(self, files: list[Path]) -> DatasetInfo:
        """The dataset's info; made again from the episodes if it is damaged or not theirs."""
        file = self._path / "dataset.json"
        info = problem = None
        try:
            info = read_info(self._path)
        except InvalidInputError as error:
            problem = error
        first = None
        for described in _described(files):
            if info is not None and _fits(info, described):
                return info
            first = first or described
        if info is not None and first is None:
            return info
        if first is None:
            raise InvalidInputError(f"{problem}; no episode says what it was, so write it anew or "
                                    "take it from a copy")
        if file.exists():
            keep_also(file, self._path / SET_ASIDE)
        write_json(file, asdict(first))
        self.rebuilt = True
        return first

    def _replace(self, file: EpisodeFile) -> None:
        """Put what can be read of a damaged episode in its place."""
        steps = self._salvage(file.path, f"{SET_ASIDE}/{file.path.name}")
        if steps:
            keep_also(file.path, self._path / SET_ASIDE)
            publish(self._temporary, file.path)
            self.salvaged.append({"from": file.path.name, "episode": file.number, "steps": steps})
        else:
            move(file.path, self._path / SET_ASIDE, file.path.name)
            self.aside.append(file.path.name)

    def _take(self, part: Path, known: dict[str, int]) -> None:
        """Make an episode of what a recording left."""
        name = part.name.removeprefix(".")
        # A killed process may have left it in memory only. What is salvaged below would survive a
        # power cut without it, and be salvaged once more from what is left of it.
        sync_file(part)
        digest = _sha256(part)
        steps = 0
        if digest not in known:
            steps = self._salvage(part, name, digest)
        if steps:
            number = self._next()
            publish(self._temporary, self._path / EPISODES / f"{number:06d}.mcap")
            known[digest] = number
            self.salvaged.append({"from": name, "episode": number, "steps": steps})
        else:
            self.aside.append(name)
        move(part, self._path / SET_ASIDE, name)

    def _salvaged_before(self) -> dict[str, int]:
        """Episodes by the checksum of what they were salvaged from."""
        known = {}
        for file in list_episodes(self._path):
            try:
                with open(file.path, "rb") as stream:
                    size = os.fstat(stream.fileno()).st_size
                    record = read_records(stream, size, (EPISODE_RECORD,))[EPISODE_RECORD]
            except (OSError, InvalidInputError):
                continue
            if isinstance(record, dict) and _DIGEST in record:
                known[str(record[_DIGEST])] = file.number
        return known

    def _salvage(self, source: Path, name: str, digest: str = "") -> int:
        """Write what can be read of ``source`` into the temporary file; returns its steps."""
        remove(self._temporary)
        try:
            with open(source, "rb") as stream:
                size = os.fstat(stream.fileno()).st_size
                contents = read_episode_file(stream, size, partial=True, encoded=True)
        except OSError as error:
            raise InvalidInputError(f"cannot read {source}: {error.strerror}") from None
        except InvalidInputError:
            return 0
        rows = _whole_rows(contents)
        if rows is None:
            return 0
        origin = {SALVAGED_FROM: name, **({_DIGEST: digest} if digest else {})}
        file = AppendedFile(self._temporary)
        try:
            _write_again(file, contents, rows, origin, self._info)
            file.sync()
        except StorageError:
            raise
        except _UNUSABLE:
            return 0
        finally:
            file.close()
        return self._readable_steps()

    def _readable_steps(self) -> int:
        """Steps of the temporary file, 0 unless it is an episode of this dataset."""
        stat = self._temporary.stat()
        file = EpisodeFile(self._temporary, 0, stat.st_size, stat.st_mtime_ns)
        steps, problems = _check_file(file, self._info)
        return 0 if problems else steps

    def _note_missing(self) -> None:
        gaps = missing_numbers(self._path, list_episodes(self._path))
        if gaps:
            make_folder(self._path / SET_ASIDE)
        for first, last in gaps:
            write_atomically(self._path / SET_ASIDE / f"{first:06d}-{last:06d}.missing",
                             b"These episodes were not there when the dataset was repaired.\n")
            self.missing.append([first, last])


def _described(files: list[Path]) -> Iterator[DatasetInfo]:
    """What each file says the dataset is."""
    for file in files:
        try:
            with open(file, "rb") as stream:
                size = os.fstat(stream.fileno()).st_size
                try:
                    raw = read_records(stream, size, (DATASET_RECORD,))[DATASET_RECORD]
                except InvalidInputError:
                    stream.seek(0)
                    contents = read_episode_file(stream, size, images=False, partial=True)
                    raw = contents.records.get(DATASET_RECORD)
            info = parse_info(raw, str(file))
        except (OSError, InvalidInputError):
            continue
        if info.format == FORMAT:
            yield info


def _fits(one: DatasetInfo, two: DatasetInfo) -> bool:
    return (one.observation_shape, one.goal_dim, one.action_dim) == (
        two.observation_shape, two.goal_dim, two.action_dim)


def _whole_rows(contents: FileContents) -> NDArray[Any] | None:
    """The rows up to the last that is complete with its frames; None for less than a step."""
    rows = contents.rows
    if rows is None or contents.layout is None:
        return None
    for name in contents.cameras:
        key = f"{IMAGES}{name}"
        if key in (rows.dtype.names or ()) and rows[key].ndim == 1:
            missing = np.flatnonzero(rows[key] >= len(contents.encoded.get(name, [])))
            rows = rows[: int(missing[0])] if len(missing) else rows
    return rows if len(rows) >= 2 else None


def _write_again(
    file: AppendedFile,
    contents: FileContents,
    rows: NDArray[Any],
    origin: dict[str, str],
    info: DatasetInfo,
) -> None:
    """Write an episode with these rows and the frames as they were encoded."""
    layout = contents.layout
    assert layout is not None
    whole = not contents.problem and (contents.commit or {}).get("steps") == len(rows) - 1
    fresh = layout.empty(len(rows))
    for key in layout.dtype.names or ():
        fresh[key] = rows[key]
    if not whole and not (fresh[TERMINATED][-1] or fresh[TRUNCATED][-1]):
        fresh[TRUNCATED][-1] = True
    arrays = layout.decode(fresh)
    records, metadata = contents.records, contents.records.get(EPISODE_RECORD)
    writer = EpisodeFileWriter(file, layout, contents.cameras, {
        DATASET_RECORD: records.get(DATASET_RECORD) or asdict(info),
        EPISODE_RECORD: {**(metadata if isinstance(metadata, dict) else {}), **origin},
    })
    for name in contents.cameras:
        stamps = _frame_stamps(contents, arrays, name)
        for encoded, at_s in zip(contents.encoded.get(name, []), stamps, strict=True):
            writer.frame(name, encoded, float(at_s))
    writer.flush()
    period_s = 1.0 / info.rate_hz if info.rate_hz > 0.0 else 0.1
    stamps = arrays.get(TIMESTAMP, np.arange(len(rows)) * period_s)
    for number in range(len(rows)):
        writer.row(number, fresh[number : number + 1].tobytes(), stamp_ns(float(stamps[number])))
    ended = ("terminated" if arrays[TERMINATED][-1] else
             "truncated" if arrays[TRUNCATED][-1] else "cut off")
    writer.finish(commit_record(
        len(rows) - 1, float(arrays[REWARD].sum(dtype=np.float64)), bool(arrays[SUCCESS][-1]),
        bool(arrays[SUCCESS].any()), ended, writer.frames,
    ))


def _frame_stamps(
    contents: FileContents, arrays: dict[str, NDArray[Any]], camera: str
) -> NDArray[np.float64]:
    """When the frames of a camera were taken, exact where a state saw them."""
    stamps = contents.frame_stamps_s.get(camera, np.zeros(0))
    exact = arrays.get(f"{TIMESTAMP}.{IMAGES}{camera}")
    seen = arrays.get(f"{IMAGES}{camera}")
    if exact is not None and seen is not None and FRAME_STAMPS_RECORD not in contents.records:
        stamps = stamps.copy()
        stamps[seen] = exact
    return stamps


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(8 << 20):
            digest.update(block)
    return digest.hexdigest()
