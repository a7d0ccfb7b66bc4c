"""The durable log: a folder of episodes, each a complete MCAP file, committed one by one.

    DIR/dataset.json                 what the dataset is of
    DIR/episodes/000000.mcap         a committed episode; it never changes
    DIR/episodes/.000001.mcap.part   the one being recorded, which a reader may follow
    DIR/interrupted/                 what a killed recording left; `robot-rl data repair` saves it
    DIR/set_aside/                   episodes taken out of the dataset, never deleted
    DIR/.cache/                      views that are rebuilt when they are missing

An episode is committed when its file was synced, renamed to its number and the folder synced:
it then survives kill -9 and a power cut, and nothing that was not committed is ever read as if it
were. One process writes into a folder at a time; any number read.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robot_rl.data.episode_file import (
    COMMIT_RECORD,
    FRAME_STAMPS_RECORD,
    LAYOUT_RECORD,
    FileContents,
    read_episode_file,
    read_records,
)
from robot_rl.data.episodes import (
    ACHIEVED,
    ACTION,
    CORE_KEYS,
    DESIRED,
    FORMAT,
    IMAGES,
    INTERVENTION,
    OBSERVATION,
    RATE,
    REQUESTED,
    RESET,
    REWARD,
    SUCCESS,
    TERMINATED,
    TIMESTAMP,
    TRUNCATED,
    DatasetInfo,
    Episode,
    Images,
)
from robot_rl.data.files import Lock, read_json
from robot_rl.errors import InvalidInputError

EPISODES = "episodes"
INTERRUPTED = "interrupted"
SET_ASIDE = "set_aside"
LOCK = ".writer.lock"
COMMITTED = ".committed.json"
_NAME = re.compile(r"(\d{6,12})\.mcap")
_PART = re.compile(r"\.(\d{6,12})\.mcap\.part")
EPISODE_RECORD = "robot_rl.episode"


@dataclass(frozen=True)
class EpisodeFile:
    """A committed episode on disk."""

    path: Path
    number: int
    size: int
    mtime_ns: int


class Log:
    """A dataset folder, for reading; made by :func:`open_log`.

    Attributes:
        path, info: where and what it is.
        files: the committed episodes, by number, as of the last :meth:`refresh`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.info = read_info(path)
        self.files: list[EpisodeFile] = []
        self.refresh()

    def __len__(self) -> int:
        return len(self.files)

    def __iter__(self) -> Iterator[Episode]:
        for file in self.files:
            yield self.read(file)

    def refresh(self) -> list[EpisodeFile]:
        """Look again; returns the episodes that were committed since."""
        known = {file.number for file in self.files}
        self.files = list_episodes(self.path)
        return [file for file in self.files if file.number not in known]

    def read(self, which: int | EpisodeFile, *, images: bool = True) -> Episode:
        """Episode ``which`` of :attr:`files`; without ``images`` its frames are left out.

        Raises:
            InvalidInputError: the file is damaged, or not of this dataset.
        """
        file = self.files[which] if isinstance(which, int) else which
        episode = episode_of(read_file(file.path, images=images), str(file.path))
        check_sizes(self.info, episode, str(file.path))
        return episode

    def summary(self, which: int | EpisodeFile) -> dict[str, Any]:
        """What was committed, without reading the episode: ``steps``, ``success``,
        ``success_any``, ``return``, ``ended``, ``frames``, ``recorded_at`` and ``keys``."""
        file = self.files[which] if isinstance(which, int) else which
        try:
            with open(file.path, "rb") as stream:
                size = os.fstat(stream.fileno()).st_size
                found = read_records(stream, size, (COMMIT_RECORD, LAYOUT_RECORD))
        except OSError as error:
            raise InvalidInputError(f"dataset: cannot read {file.path}: {error.strerror}") from None
        except InvalidInputError as error:
            raise _damaged(file.path, error) from None
        return {**_checked_commit(found[COMMIT_RECORD], file.path),
                "keys": _checked_keys(found[LAYOUT_RECORD], file.path)}

    @property
    def recording(self) -> Path | None:
        """The episode that another process is recording now, or None."""
        parts = list_parts(self.path)
        return parts[-1] if parts and Lock.is_held(self.path / LOCK) else None

    @property
    def leftovers(self) -> list[Path]:
        """What killed recordings left and nobody has repaired yet."""
        folder = self.path / INTERRUPTED
        found = sorted(folder.glob("*.mcap*")) if folder.is_dir() else []
        if not Lock.is_held(self.path / LOCK):
            found += list_parts(self.path)
        return found

    def running(self, *, images: bool = False) -> Episode | None:
        """The episode in progress as far as it is on the disk, or None."""
        part = self.recording
        if part is None:
            return None
        try:
            contents = read_file(part, images=images, partial=True)
        except InvalidInputError:
            return None  # committed meanwhile, or not begun
        try:
            return episode_of(contents, str(part), partial=True)
        except InvalidInputError:
            return None  # no whole step yet

    def follow(self, *, poll_s: float = 0.2, timeout_s: float = float("inf")) -> Iterator[Episode]:
        """Every committed episode, then each further one when it is; ends after ``timeout_s``
        without a new one."""
        seen: set[int] = set()
        since = time.monotonic()
        while True:
            waiting = [file for file in self.files if file.number not in seen]
            for file in waiting:
                seen.add(file.number)
                yield self.read(file)
                since = time.monotonic()
            self.refresh()
            if not waiting and len(self.files) <= len(seen):
                if time.monotonic() - since >= timeout_s:
                    return
                time.sleep(poll_s)


def open_log(path: str | Path) -> Log:
    """The dataset in folder ``path``.

    Raises:
        InvalidInputError: there is none, or of another format.
    """
    path = Path(path)
    if not path.exists():
        raise InvalidInputError(f"dataset: {path} does not exist")
    if not path.is_dir():
        raise InvalidInputError(f"dataset: {path} is not a folder")
    return Log(path)


def load_dataset(path: str | Path) -> tuple[DatasetInfo, list[Episode]]:
    """All episodes of a dataset folder, or of a plain npz of demonstrations.

    Raises:
        InvalidInputError: it is missing, damaged, empty, of another format, or of mixed shapes;
            the message names the file and the array.
    """
    path = Path(path)
    if path.is_file():
        from robot_rl.data.importers.npz import load_npz

        return load_npz(path)
    if path.is_dir() and read_format(path) == 1:
        from robot_rl.data.importers.npz import load_folder_v1

        return load_folder_v1(path)
    log = open_log(path)
    if not log.files:
        raise InvalidInputError(f"dataset: {path} holds no episodes")
    return log.info, list(log)


def read_info(path: Path) -> DatasetInfo:
    """What ``dataset.json`` in ``path`` says.

    Raises:
        InvalidInputError: it is missing, or does not describe a dataset of this format.
    """
    file = path / "dataset.json"
    raw = read_json(file, "dataset")
    info = parse_info(raw, str(file))
    if info.format != FORMAT:
        raise InvalidInputError(
            f"dataset: {path} has format {info.format}, this version reads {FORMAT} and 1"
        )
    return info


def parse_info(raw: Any, where: str) -> DatasetInfo:
    """A :class:`DatasetInfo` from JSON.

    Raises:
        InvalidInputError: it does not describe a dataset.
    """
    try:
        info = DatasetInfo(**raw)
        info.observation_shape = tuple(int(n) for n in info.observation_shape)
        info.cameras = {str(k): (int(a), int(b), int(c)) for k, (a, b, c) in info.cameras.items()}
        info.rate_hz = float(info.rate_hz)
        kinds = {"task": str, "goal_dim": int, "action_dim": int, "env": dict, "config": dict,
                 "robot": str, "calibration": dict, "software": str, "format": int}
        for name, kind in kinds.items():
            if not isinstance(getattr(info, name), kind):
                raise TypeError(f"{name} is {getattr(info, name)!r}")
        for name in ("goal_dim", "action_dim"):
            if not 0 <= getattr(info, name) <= 1 << 20:
                raise TypeError(f"{name} is {getattr(info, name)}")
        if not 0.0 <= info.rate_hz < float("inf"):
            raise TypeError(f"rate_hz is {info.rate_hz}")
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise InvalidInputError(
            f"dataset: {where} does not describe a dataset ({error})"
        ) from None
    return info


def read_format(path: Path) -> object:
    """The format that ``dataset.json`` in ``path`` names, or None."""
    file = path / "dataset.json"
    raw = read_json(file, "dataset") if file.is_file() else None
    return raw.get("format") if isinstance(raw, dict) else None


def list_episodes(path: Path) -> list[EpisodeFile]:
    """The committed episodes of a folder, by number."""
    found = []
    try:
        with os.scandir(path / EPISODES) as entries:
            for entry in entries:
                match = _NAME.fullmatch(entry.name)
                if match and entry.is_file(follow_symlinks=False):
                    stat = entry.stat(follow_symlinks=False)
                    found.append(EpisodeFile(Path(entry.path), int(match[1]), stat.st_size,
                                             stat.st_mtime_ns))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InvalidInputError(f"dataset: cannot read {path}: {error.strerror}") from None
    return sorted(found, key=lambda file: file.number)


def highest_committed(path: Path) -> int:
    """The highest number that a writer of the dataset is known to have committed, or -1."""
    file = path / COMMITTED
    try:
        raw = read_json(file, "dataset") if file.is_file() else None
    except InvalidInputError:
        return -1
    number = raw.get("through") if isinstance(raw, dict) else None
    return number if isinstance(number, int) and 0 <= number < 10**12 else -1


def list_parts(path: Path) -> list[Path]:
    """Files of episodes that were begun and not committed, by number."""
    try:
        return sorted(p for p in (path / EPISODES).iterdir() if _PART.fullmatch(p.name))
    except OSError:
        return []


def read_file(path: Path, *, images: bool = True, partial: bool = False) -> FileContents:
    """The contents of one episode's file.

    Raises:
        InvalidInputError: it cannot be read; ``partial`` takes what comes before the damage.
    """
    try:
        with open(path, "rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            return read_episode_file(stream, size, images=images, partial=partial)
    except OSError as error:
        raise InvalidInputError(f"dataset: cannot read {path}: {error.strerror}") from None
    except InvalidInputError as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: InvalidInputError) -> InvalidInputError:
    folder = path.parent.parent
    return InvalidInputError(f"dataset: {path}: {error}; see `robot-rl data verify {folder}` and "
                             f"`robot-rl data repair {folder}`")


def _checked_commit(raw: Any, path: Path) -> dict[str, Any]:
    if not isinstance(raw, dict) or not isinstance(raw.get("steps"), int) or raw["steps"] < 1:
        raise _damaged(path, InvalidInputError("what was committed is not said"))
    return raw


def _checked_keys(raw: Any, path: Path) -> list[str]:
    fields = raw.get("fields") if isinstance(raw, dict) else None
    if not isinstance(fields, list) or not all(
        isinstance(field, dict) and isinstance(field.get("key"), str) for field in fields
    ):
        raise _damaged(path, InvalidInputError("what its arrays are is not said"))
    return [field["key"] for field in fields]


def episode_of(contents: FileContents, where: str, *, partial: bool = False) -> Episode:
    """The episode that a file holds.

    With ``partial``, an unfinished one counts as truncated at its last whole state.

    Raises:
        InvalidInputError: arrays are missing or do not fit each other.
    """
    layout, rows = contents.layout, contents.rows
    if layout is None or rows is None or len(rows) < 2:
        raise InvalidInputError(f"dataset: {where} holds no step")
    if not partial:
        commit = contents.commit
        if commit is None or commit.get("steps") != len(rows) - 1:
            raise InvalidInputError(f"dataset: {where}: {len(rows) - 1} steps are there, "
                                    f"{(commit or {}).get('steps')} were committed")
        for name, frames in contents.frames.items():
            said = commit.get("frames")
            committed = said.get(name) if isinstance(said, dict) else None
            if committed != len(frames):
                raise InvalidInputError(f"dataset: {where}: {len(frames)} frames of camera "
                                        f"{name} are there, {committed} were committed")
    if partial and contents.frames:
        rows = rows[: _rows_with_frames(contents, rows)]
        if len(rows) < 2:
            raise InvalidInputError(f"dataset: {where} holds no whole step")
    try:
        episode = _assemble(layout.decode(rows), contents)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise InvalidInputError(
            f"dataset: {where} lacks or misshapes {error.args[0] if error.args else error}"
        ) from None
    episode.check(f"dataset: {where}")
    if partial and not (episode.terminated[-1] or episode.truncated[-1]):
        episode.truncated[-1] = True
    return episode


def _rows_with_frames(contents: FileContents, rows: NDArray[Any]) -> int:
    """How many rows come before the first that points at a frame which is not there."""
    count = len(rows)
    for name, frames in contents.frames.items():
        key = f"{IMAGES}{name}"
        if key not in (rows.dtype.names or ()) or rows[key].ndim != 1:
            continue
        missing = np.flatnonzero(rows[key] >= len(frames))
        if len(missing):
            count = min(count, int(missing[0]))
    return count


def _assemble(arrays: dict[str, NDArray[Any]], contents: FileContents) -> Episode:
    images, stamps, extra = {}, {}, {}
    for key, array in arrays.items():
        if key.startswith(IMAGES):
            name = key.removeprefix(IMAGES)
            if array.dtype.kind not in "iu":
                raise TypeError(f"{key}, which is {array.dtype}")
            if name in contents.frames:
                images[name] = Images(contents.frames[name], array, contents.frame_stamps_s[name])
        elif key.startswith(f"{TIMESTAMP}."):
            stamps[key.removeprefix(f"{TIMESTAMP}.")] = array
        elif key not in CORE_KEYS:
            extra[key] = array
    # A file that was never finished has only the messages' own stamps, in whole nanoseconds; the
    # states tell exactly when the frames were taken that they saw.
    for name, seen in images.items():
        exact = stamps.get(f"{IMAGES}{name}")
        unfinished = FRAME_STAMPS_RECORD not in contents.records
        if unfinished and exact is not None and len(seen.stamp_s):
            seen.stamp_s[seen.index] = exact
    record = contents.records.get(EPISODE_RECORD)
    return Episode(
        observation=arrays[OBSERVATION], achieved=arrays[ACHIEVED], desired=arrays[DESIRED][0],
        action=arrays[ACTION], reward=arrays[REWARD], terminated=_flags(arrays, TERMINATED),
        truncated=_flags(arrays, TRUNCATED), success=_flags(arrays, SUCCESS),
        requested=arrays.get(REQUESTED), images=images,
        intervention=_flags(arrays, INTERVENTION) if INTERVENTION in arrays else None,
        reset=_flags(arrays, RESET) if RESET in arrays else None,
        rate_hz=arrays.get(RATE), stamp_s=arrays.get(TIMESTAMP), stamps_s=stamps, extra=extra,
        metadata=record if isinstance(record, dict) else {},
    )


def _flags(arrays: dict[str, NDArray[Any]], key: str) -> NDArray[np.bool_]:
    return arrays[key].astype(np.bool_, copy=False)


def check_sizes(info: DatasetInfo, episode: Episode, where: str) -> None:
    """Raise InvalidInputError unless ``episode`` has the sizes that ``info`` says."""
    found = (episode.observation.shape[1:], episode.achieved.shape[1], episode.action.shape[1])
    expected = (info.observation_shape, info.goal_dim, info.action_dim)
    if found != expected:
        raise InvalidInputError(
            f"dataset: {where} has observation {found[0]}, goal {found[1]}, action {found[2]}; "
            f"dataset.json says {expected[0]}, {expected[1]}, {expected[2]}"
        )
