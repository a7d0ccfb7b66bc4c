"""Replay buffers of logs: flat arrays beside a log, made once and mapped when it is opened again.

The arrays are a cache in ``<log>/.cache/replay``, or in the user's cache folder where the log is
read-only, or what lies there is a link or no plain file, or frames would fill its disk. It can be
deleted at any time. One group of arrays holds rows and goals, and one more group each camera's
frames:

    lock                  held while a group is read or written
    state/view.json       what the group holds, and of which episode files
    state/g<16 hex>/      its arrays as they lie in memory: rows, achieved, desired, first, marks

Episodes that a log has got since are appended. A group is built anew if its description, an array's
size, time or (up to 1 GiB) checksum, or the name, inode, size or times of an episode's file is not
what it was, or if rows, goals or indices hold what no episode could have given. A dataset may come
from anywhere: nothing of its cache is believed unchecked, and nothing in it is reached by a link.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import mmap
import os
import re
import secrets
import sys
import tempfile
import urllib.parse
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robot_rl.data.episodes import FORMAT, DatasetInfo, Episode
from robot_rl.data.log import EpisodeFile, Log, load_dataset, open_log
from robot_rl.data.replay import Prepare, Replay
from robot_rl.data.rows import Layout, Packed, check_camera, check_sizes, pack_goals, used_frames
from robot_rl.data.store import Folder, UnsafeError, default_memory_limit
from robot_rl.errors import InvalidInputError, unknown_name

VIEW_FORMAT = 2
_LARGEST_CHECKED = 1 << 30
_LARGEST_DESCRIPTION = 1 << 20
_BLOCK = 1 << 16
# Frames leave so much of a disk free: a robot's has to record the next episodes.
_FREE_SHARE, _FREE_BYTES = 0.05, 2 << 30
_GENERATION = re.compile(r"g[0-9a-f]{16}")


@dataclass(frozen=True)
class _Array:
    """One array of a group: the shape of a row, its type, and what there is a row for."""

    shape: tuple[int, ...]
    dtype: type[np.generic]
    per: str  # state, episode or frame

    @property
    def row_bytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize


@dataclass
class _Group:
    """Arrays that are kept together; ``camera`` is empty for rows and goals, ``key`` says what
    they are of."""

    name: str
    camera: str
    key: list[str | int]
    arrays: dict[str, _Array]


@dataclass
class _Stored:
    """A group as it was found: how many states, episodes and frames, and its arrays."""

    generation: str
    counts: dict[str, int]
    crc: dict[str, int]
    arrays: dict[str, NDArray[Any]]


def open_replay(
    paths: str | Path | Sequence[str | Path],
    *,
    discount: float,
    cameras: Sequence[str] = (),
    memory_limit: int | None = None,
    prepare: Prepare | None = None,
    cache: bool = True,
    **options: Any,
) -> tuple[list[DatasetInfo], Replay]:
    """A replay buffer of all episodes of any number of datasets, in their order.

    Args:
        paths: dataset folders, or plain npz files; of the same sizes.
        discount: as all ``options`` those of :class:`Replay`.
        cameras: whose images to keep.
        memory_limit: bytes; rows and goals are read into memory up to it, and mapped beyond.
            Frames are mapped always.
        prepare: changes episodes before they are taken; they are then read one by one, not cached.
        cache: False neither reads nor writes a cache.

    Returns:
        What each dataset is of, and the buffer; :meth:`Replay.follow` goes on from there.

    Raises:
        InvalidInputError: a dataset cannot be read, has image observations, lacks a camera, or
            differs from the first one's sizes; or an option is out of range.
    """
    given = [paths] if isinstance(paths, str | Path) else list(paths)
    if not given:
        raise InvalidInputError("a replay buffer needs at least one dataset")
    sources = [_open_source(Path(path)) for path in given]
    infos = [info for info, _ in sources]
    sizes, shapes = _common_sizes(given, infos, cameras)
    replay = Replay(*sizes, discount=discount, cameras=shapes, memory_limit=memory_limit, **options)
    limit = default_memory_limit() if memory_limit is None else memory_limit
    for path, (_, source) in zip(given, sources, strict=True):
        if isinstance(source, Log) and prepare is None and cache:
            # What will be copied need not be read into memory before.
            replay.add_packed(open_view(source, cameras=shapes,
                                        memory_limit=0 if replay.episodes else limit))
        elif isinstance(source, Log):
            for file in source.files:
                episode = source.read(file, images=bool(shapes))
                replay.add_all(prepare([episode]) if prepare else [episode])
        else:
            replay.add_all(prepare(source) if prepare else source)
        if isinstance(source, Log) and source.files:
            replay.sources.setdefault(Path(path).resolve(), set()).update(
                (file.number, file.size, file.mtime_ns) for file in source.files)
    return infos, replay


def open_view(
    log: Log,
    *,
    cameras: Mapping[str, tuple[int, int, int]] | None = None,
    memory_limit: int | None = None,
) -> Packed:
    """All episodes of ``log`` as flat arrays, from its cache as far as that holds.

    Args:
        cameras: frames' (H, W, C) by the cameras whose frames are wanted.
        memory_limit: bytes up to which rows and goals are read into memory rather than mapped.

    Raises:
        InvalidInputError: an episode cannot be read, or there is room for the arrays nowhere.
    """
    info = log.info
    layout = Layout(info.observation_shape[0], info.action_dim)
    groups = [_state_group(layout, info.goal_dim)]
    groups += [_camera_group(name, shape) for name, shape in (cameras or {}).items()]
    limit = default_memory_limit() if memory_limit is None else memory_limit
    problem: OSError | None = None
    for base, below in _cache_folders(log.path):
        try:
            return _open_in(base, below, log, groups, limit)
        except OSError as error:
            problem = error
    try:
        # Mapped files stay until nobody maps them, though they have no name any more.
        with tempfile.TemporaryDirectory(prefix="robot_rl-view-") as temporary:
            return _open_in(Path(temporary), (), log, groups, limit)
    except OSError as error:
        raise InvalidInputError(
            f"dataset: {log.path}: no folder for the replay's arrays can be written to: "
            f"{(problem or error).strerror}; with cache=False they stay in memory and scratch files"
        ) from None


def _open_source(path: Path) -> tuple[DatasetInfo, Log | list[Episode]]:
    """A log, or the episodes of a dataset of another kind."""
    stored = FORMAT if path.is_dir() else None
    with contextlib.suppress(OSError, ValueError, RecursionError, AttributeError):
        stored = json.loads((path / "dataset.json").read_bytes()).get("format")
    if stored != FORMAT:
        return load_dataset(path)
    log = open_log(path)
    return log.info, log


def _common_sizes(
    paths: Sequence[str | Path], infos: list[DatasetInfo], cameras: Sequence[str]
) -> tuple[tuple[int, int, int], dict[str, tuple[int, int, int]]]:
    found: list[Any] = []
    for path, info in zip(paths, infos, strict=True):
        if len(info.observation_shape) != 1:
            raise InvalidInputError(
                f"replay takes state observations; {path} has observations of shape "
                f"{info.observation_shape}"
            )
        shapes = {}
        for name in cameras:
            if name not in info.cameras:
                raise unknown_name(f"camera of {path}", name, info.cameras)
            shapes[name] = tuple(info.cameras[name])
        found.append(((info.observation_shape[0], info.goal_dim, info.action_dim), shapes))
        if found[-1] != found[0]:
            raise InvalidInputError(
                f"datasets cannot be put together: {paths[0]} has observation, goal and action "
                f"sizes and cameras {found[0]}, {path} has {found[-1]}"
            )
    return found[0][0], found[0][1]


# ------------------------------------------------------------------------------------ the cache


def _state_group(layout: Layout, goal_dim: int) -> _Group:
    key: list[str | int] = ["state", layout.observation_dim, goal_dim, layout.action_dim]
    return _Group("state", "", key, {
        "rows": _Array((layout.width,), np.float32, "state"),
        "achieved": _Array((goal_dim,), np.float32, "state"),
        "desired": _Array((goal_dim,), np.float32, "episode"),
        "first": _Array((), np.int64, "episode"),
        "marks": _Array((), np.int64, "episode"),
    })


def _camera_group(camera: str, shape: tuple[int, int, int]) -> _Group:
    name = f"camera.{urllib.parse.quote(camera, safe='')}"
    return _Group(name, camera, ["camera", camera, *shape], {
        "frames": _Array(shape, np.uint8, "frame"),
        "index": _Array((), np.int64, "state"),
        "marks": _Array((), np.int64, "episode"),
    })


def _cache_folders(log: Path) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """Folders that are what the user says, and those below, in which no link is followed."""
    yield log, (".cache", "replay")
    user = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    name = hashlib.blake2b(os.fsencode(log.resolve()), digest_size=12).hexdigest()
    yield Path(user) / "robot_rl" / "replay", (name,)


def _marks(files: Sequence[EpisodeFile]) -> NDArray[np.int64]:
    """A number (E,) for each file that changes with its name, inode, size or times."""
    words = []
    for file in files:
        inode = ctime_ns = 0
        with contextlib.suppress(OSError):  # reading it will tell
            found = os.lstat(file.path)
            inode, ctime_ns = found.st_ino, found.st_ctime_ns
        text = f"{file.path.name}:{file.size}:{file.mtime_ns}:{inode}:{ctime_ns}"
        words.append(hashlib.blake2b(text.encode(), digest_size=8).digest())
    return np.frombuffer(b"".join(words), np.int64)


def _open_in(
    base: Path, below: tuple[str, ...], log: Log, groups: list[_Group], limit: int
) -> Packed:
    """Read the groups in the folder ``below`` ``base``, after bringing them up to date.

    Raises:
        OSError: the folder cannot be used.
        InvalidInputError: an episode cannot be read.
    """
    marks = _marks(log.files)
    with (contextlib.suppress(FileNotFoundError),
          Folder.opened(base, below, create=False) as folder, _locked(folder, fcntl.LOCK_SH)):
        stored = _load_all(folder, groups, marks, limit)
        if _complete(stored, marks):
            return _packed(groups, stored)
        del stored
    with Folder.opened(base, below, create=True) as folder, _locked(folder, fcntl.LOCK_EX):
        stored = _load_all(folder, groups, marks, limit)
        _update(folder, log, groups, stored, marks)
        stored = _load_all(folder, groups, marks, limit)
        if not _complete(stored, marks):
            raise OSError(None, "what was written cannot be read back")
        return _packed(groups, stored)


@contextlib.contextmanager
def _locked(folder: Folder, kind: int) -> Iterator[None]:
    flags = os.O_RDWR | os.O_CREAT if kind == fcntl.LOCK_EX else os.O_RDONLY
    handle = folder.file("lock", flags)
    try:
        fcntl.flock(handle, kind)
        yield
    finally:
        os.close(handle)


def _complete(stored: Mapping[str, _Stored | None], marks: NDArray[np.int64]) -> bool:
    return all(one and one.counts["episode"] == len(marks) for one in stored.values())


def _packed(groups: list[_Group], stored: Mapping[str, _Stored | None]) -> Packed:
    found = {name: one.arrays for name, one in stored.items() if one is not None}
    state = found["state"]
    packed = Packed(state["rows"], state["achieved"], state["desired"], state["first"],
                    mapped=not state["rows"].flags.owndata)
    for group in groups[1:]:
        packed.frames[group.camera] = found[group.name]["frames"]
        packed.index[group.camera] = found[group.name]["index"]
    return packed


# ---------------------------------------------------------------------------------- reading it


def _load_all(
    folder: Folder, groups: list[_Group], marks: NDArray[np.int64], limit: int
) -> dict[str, _Stored | None]:
    """Every group, the state's being the first, with None for those to be built anew."""
    stored = {group.name: _load(folder, group, marks, limit) for group in groups}
    state = stored["state"]
    for group in groups[1:]:
        if (one := stored[group.name]) is None:
            continue
        episodes = one.counts["episode"]
        if state is None or episodes > state.counts["episode"]:
            stored[group.name] = None
            continue
        states = np.append(state.arrays["first"], state.counts["state"])[episodes]
        if one.counts["state"] != states:
            stored[group.name] = None
    return stored


def _load(folder: Folder, group: _Group, marks: NDArray[np.int64], limit: int) -> _Stored | None:
    """A group, if it is whole and of the first of the log's files; otherwise None.

    Raises:
        UnsafeError: a part of it is a link, or no plain file or folder.
    """
    try:
        with folder.sub(group.name) as place:
            raw = json.loads(_description(place))
            if [raw["format"], raw["order"], raw["key"]] != [VIEW_FORMAT, sys.byteorder, group.key]:
                return None
            counts = {per: _whole(raw["counts"][per]) for per in ("state", "episode", "frame")}
            if (not _GENERATION.fullmatch(raw["generation"])
                    or set(raw["arrays"]) != set(group.arrays)):
                return None
            stored = _Stored(raw["generation"], counts, {}, {})
            with place.sub(stored.generation) as generation:
                _load_arrays(generation, group, stored, raw["arrays"], limit)
    except UnsafeError:
        raise
    except (OSError, ValueError, TypeError, KeyError, RecursionError, AttributeError,
            OverflowError):
        return None
    if not np.array_equal(stored.arrays["marks"], marks[: counts["episode"]]):
        return None
    return stored if _possible(group, stored) else None


def _description(folder: Folder) -> bytes:
    with open(folder.file("view.json"), "rb") as file:
        text = file.read(_LARGEST_DESCRIPTION + 1)
    if len(text) > _LARGEST_DESCRIPTION:
        raise ValueError("no description is so long")
    return text


def _load_arrays(
    folder: Folder, group: _Group, stored: _Stored, described: Mapping[str, Any], limit: int
) -> None:
    """Load each array of a group; ValueError if one is not what was described."""
    counts = stored.counts
    total = sum(counts[one.per] * one.row_bytes
                for one in group.arrays.values() if one.per != "frame")
    for name, array in group.arrays.items():
        loaded = _load_array(
            folder, name, array, counts[array.per], described[name],
            in_memory=array.per != "frame" and total <= limit,
        )
        if loaded is None:
            raise ValueError(f"{name} is not what was written")
        stored.arrays[name], stored.crc[name] = loaded, _whole(described[name]["crc"])


def _possible(group: _Group, stored: _Stored) -> bool:
    """Whether the arrays hold what episodes can have given: what anybody may have made has right
    checksums too."""
    arrays = stored.arrays
    if group.camera:
        return all(
            0 <= part.min() and part.max() < stored.counts["frame"]
            for part in _blocks(arrays["index"])
        )
    _, observation_dim, _, action_dim = group.key
    layout = Layout(int(observation_dim), int(action_dim))
    return layout.holds(arrays["rows"], arrays["first"]) and all(
        np.isfinite(part).all()
        for name in ("achieved", "desired") for part in _blocks(arrays[name])
    )


def _blocks(array: NDArray[Any]) -> Iterator[NDArray[Any]]:
    for at in range(0, len(array), _BLOCK):
        yield array[at : at + _BLOCK]


def _whole(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{value!r} is no count")
    return value


def _load_array(
    folder: Folder, name: str, array: _Array, count: int, description: Any, *, in_memory: bool
) -> NDArray[Any] | None:
    """The array in the file ``name``, or None if it is not the one that was described."""
    size = count * array.row_bytes
    with open(folder.file(name), "rb", buffering=0) as file:
        stat = os.fstat(file.fileno())
        if (stat.st_size, stat.st_mtime_ns) != (size, description["mtime_ns"]):
            return None
        if size == 0 or in_memory:
            found = np.empty((count, *array.shape), array.dtype)
            view = found.reshape(-1).view(np.uint8).data
            done = 0
            while done < size:
                read = file.readinto(view[done:])
                if not read:
                    return None
                done += read
        else:
            mapped = mmap.mmap(file.fileno(), size, prot=mmap.PROT_READ)
            found = np.frombuffer(mapped, array.dtype).reshape(count, *array.shape)
    if size <= _LARGEST_CHECKED and zlib.crc32(found.data) != description["crc"]:
        return None
    return found


# ---------------------------------------------------------------------------------- writing it


class _GroupWriter:
    """Appends to a group, or begins a new generation of it; nothing counts before :meth:`finish`.

    Arrays are written by whole episodes: each ends with :meth:`commit`.
    """

    def __init__(self, folder: Folder, group: _Group, stored: _Stored | None) -> None:
        self._group = group
        self._generation = stored.generation if stored else f"g{secrets.token_hex(8)}"
        self.counts = dict(stored.counts) if stored else {"state": 0, "episode": 0, "frame": 0}
        self._crc = dict(stored.crc) if stored else dict.fromkeys(group.arrays, 0)
        self._whole = (self.counts.copy(), self._crc.copy())
        with contextlib.ExitStack() as opened:
            self._place = opened.enter_context(folder.sub(group.name, create=True))
            place = opened.enter_context(self._place.sub(self._generation, create=stored is None))
            self._files = {
                name: opened.enter_context(open(
                    place.file(name, os.O_WRONLY | os.O_APPEND | os.O_CREAT), "ab", buffering=0))
                for name in group.arrays
            }
            self._opened = opened.pop_all()

    def close(self) -> None:
        self._opened.close()

    def write(self, name: str, values: NDArray[Any]) -> None:
        """Append rows to the array ``name``."""
        array = self._group.arrays[name]
        if array.per == "frame":
            _check_free(self._place, values.nbytes)
        data = np.ascontiguousarray(values, array.dtype).reshape(-1).view(np.uint8).data
        self._crc[name] = zlib.crc32(data, self._crc[name])
        while len(data):
            data = data[self._files[name].write(data) :]

    def commit(self, states: int, frames: int) -> None:
        """An episode was written."""
        self.counts["state"] += states
        self.counts["episode"] += 1
        self.counts["frame"] += frames
        self._whole = (self.counts.copy(), self._crc.copy())

    def finish(self) -> None:
        """Describe the whole episodes there are, and remove older generations."""
        self.counts, self._crc = self._whole
        arrays = {}
        for name, file in self._files.items():
            array = self._group.arrays[name]
            file.truncate(self.counts[array.per] * array.row_bytes)
            os.fsync(file.fileno())
            arrays[name] = {"crc": self._crc[name], "mtime_ns": os.fstat(file.fileno()).st_mtime_ns}
            file.close()
        description = {"format": VIEW_FORMAT, "order": sys.byteorder, "key": self._group.key,
                       "counts": self.counts, "generation": self._generation, "arrays": arrays}
        beside = ".view.json.part"
        self._place.unlink(beside)  # of a builder that was killed
        with open(self._place.file(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as out:
            out.write(json.dumps(description).encode())
        self._place.rename(beside, "view.json")
        for old in self._place.names():
            if _GENERATION.fullmatch(old) and old != self._generation:
                with contextlib.suppress(OSError):
                    self._place.remove_folder(old)


def _update(
    folder: Folder, log: Log, groups: list[_Group], stored: dict[str, _Stored | None],
    marks: NDArray[np.int64],
) -> None:
    """Write the episodes that a group has not got, each read once for all groups."""
    writers: dict[str, _GroupWriter] = {}
    with contextlib.ExitStack() as opened:
        for group in groups:
            if (one := stored.pop(group.name)) is None or one.counts["episode"] < len(marks):
                writer = _GroupWriter(folder, group, one)
                opened.callback(writer.close)
                writers[group.name] = writer
        try:
            _check_free(folder, _frame_bytes(log, groups, writers))
            behind = min((writer.counts["episode"] for writer in writers.values()),
                         default=len(marks))
            images = any(group.camera for group in groups if group.name in writers)
            for number in range(behind, len(marks)):
                episode = log.read(log.files[number], images=images)
                _write_episode(log, groups, writers, number, episode, marks[number])
        except BaseException:
            # What was read so far will not have to be read again.
            with contextlib.suppress(OSError):
                for writer in writers.values():
                    writer.finish()
            raise
        for writer in writers.values():
            writer.finish()


def _frame_bytes(log: Log, groups: list[_Group], writers: Mapping[str, _GroupWriter]) -> int:
    """Bytes of the frames that the files of missing episodes say to hold."""
    missing = {group.camera: writers[group.name].counts["episode"]
               for group in groups if group.camera and group.name in writers}
    sizes = {group.camera: group.arrays["frames"].row_bytes
             for group in groups if group.camera}
    total = 0
    for number in range(min(missing.values(), default=len(log.files)), len(log.files)):
        said: Any = None
        with contextlib.suppress(InvalidInputError):  # reading it will tell
            said = log.summary(log.files[number]).get("frames")
        for camera, first in missing.items():
            count = said.get(camera) if isinstance(said, dict) and number >= first else None
            total += sizes[camera] * count if isinstance(count, int) and count > 0 else 0
    return total


def _check_free(folder: Folder, needed: int) -> None:
    """Raise OSError if ``needed`` bytes of frames would fill the disk."""
    free, total = folder.free_bytes()
    reserve = min(int(total * _FREE_SHARE), _FREE_BYTES)
    if needed and free - needed < reserve:
        raise OSError(errno.ENOSPC, f"{needed} more bytes of frames would leave less than "
                                    f"{reserve} bytes of the disk free")


def _write_episode(
    log: Log, groups: list[_Group], writers: Mapping[str, _GroupWriter], number: int,
    episode: Episode, mark: np.int64,
) -> None:
    info, states = log.info, len(episode) + 1
    sizes = (info.observation_shape[0], info.goal_dim, info.action_dim)
    check_sizes(episode, sizes)
    for group in groups:
        writer, added = writers.get(group.name), 0
        if writer is None or number < writer.counts["episode"]:
            continue
        if group.camera:
            images = check_camera(episode, group.camera, group.arrays["frames"].shape)
            frames, index = used_frames(images)
            added = len(frames)
            writer.write("frames", frames)
            writer.write("index", index + writer.counts["frame"])
        else:
            layout = Layout(sizes[0], sizes[2])
            rows = np.empty((states, layout.width), np.float32)
            achieved = np.empty((states, sizes[1]), np.float32)
            desired = np.empty(sizes[1], np.float32)
            layout.pack(episode, number, rows)
            pack_goals(episode, achieved, desired)
            for name, values in (("rows", rows), ("achieved", achieved), ("desired", desired),
                                 ("first", np.array(writer.counts["state"]))):
                writer.write(name, values)
        writer.write("marks", np.asarray(mark))
        writer.commit(states, added)
