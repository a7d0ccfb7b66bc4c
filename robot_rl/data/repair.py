"""Makes a dataset whole again without losing anything.

What a killed recording left becomes episodes, and damaged files are replaced by what can be read
of them. Nothing is deleted: what is replaced or emptied lies in ``set_aside/`` afterwards. A repair
can be interrupted at any point, also by a power cut, and run again.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robot_rl.data.episode_file import (
    DATASET_RECORD,
    FRAME_STAMPS_RECORD,
    EpisodeFileWriter,
    FileContents,
    read_episode_file,
    read_records,
)
from robot_rl.data.episodes import (
    FORMAT,
    IMAGES,
    TERMINATED,
    TIMESTAMP,
    TRUNCATED,
    DatasetInfo,
)
from robot_rl.data.files import (
    AppendedFile,
    Lock,
    keep_also,
    make_folder,
    move,
    publish,
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
    list_episodes,
    list_parts,
    parse_info,
    read_info,
)
from robot_rl.data.recording import commit_record_of
from robot_rl.data.verify import (
    Progress,
    check_file,
    describe,
    doubled,
    leftovers_in,
    missing_numbers,
    verify,
)
from robot_rl.errors import InvalidInputError, StorageError

SALVAGED_FROM = "salvaged_from"
_DIGEST = "salvaged_sha256"
_TEMPORARY = ".repair.part"
# What a file that is nonsense, though its checksums are right, can lead to.
_UNUSABLE = (InvalidInputError, KeyError, IndexError, TypeError, ValueError, OverflowError)


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
    raw, _ = describe(path)
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
        make_folder(self._path / EPISODES)
        self._renumber()
        parts = list_parts(self._path) + leftovers_in(self._path)
        files = list_episodes(self._path)
        self._info = self._description([file.path for file in files] + parts)
        for done, file in enumerate(files):
            _, problems = check_file(file, self._info)
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
        for file in doubled(list_episodes(self._path)):
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
        steps, problems = check_file(file, self._info)
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
    writer.finish(commit_record_of(arrays, writer.frames))


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
