"""Plain npz files of demonstrations, and the former folder format of this package.

A plain npz holds the rows of all episodes one after the other: ``observations`` (N, o),
``actions`` (N, a), ``rewards`` (N,), ``episode_lengths`` (episodes,), and optionally ``terminals``
and ``timeouts`` (N,) as D4RL has them. Nothing in it is ever unpickled.

The last row of an episode has an action but no next state: it is a step only if ``terminals`` says
that it ended the task (see :mod:`robot_rl.data.importers.arrays`).
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robot_rl.data.episodes import (
    ACHIEVED,
    ACTION,
    DESIRED,
    OBSERVATION,
    REQUESTED,
    REWARD,
    SUCCESS,
    TERMINATED,
    TRUNCATED,
    DatasetInfo,
    Episode,
    Images,
)
from robot_rl.data.importers.arrays import (
    ArraySource,
    Columns,
    Mapping,
    Notes,
    assemble,
    numeric_columns,
    rate_of,
    read_small_json,
)
from robot_rl.data.importers.base import MAX_BYTES, EpisodeSource, ImportOptions
from robot_rl.errors import InvalidInputError

# Where the single image of a former image observation goes.
CAMERA = "camera"
_PLAIN = ("observations", "actions", "rewards", "episode_lengths")
_OPTIONAL = ("terminals", "timeouts")
_DEFAULTS = {"observations": OBSERVATION, "actions": ACTION, "rewards": REWARD,
             "terminals": TERMINATED, "timeouts": TRUNCATED}


def load_npz(path: str | Path) -> tuple[DatasetInfo, list[Episode]]:
    """Read a plain npz of demonstrations.

    ``action`` is clipped to [-1, 1] as it was executed, ``requested`` is as stored.

    Raises:
        InvalidInputError: it is missing, damaged or too large, an array lacks or does not fit;
            the message names the file and the array.
    """
    file = Path(path)
    arrays = read_npz(file, (*_PLAIN, *_OPTIONAL))
    lengths = _check_plain(file, arrays)
    rows = {name: arrays[name] for name in (*_PLAIN[:3], *_OPTIONAL) if name in arrays}
    episodes, first = [], 0
    for number, length in enumerate(lengths):
        end = first + int(length)
        episodes.append(_plain_episode(
            {name: array[first:end] for name, array in rows.items()},
            f"dataset: {file}, episode {number}"))
        first = end
    info = DatasetInfo.of(episodes[0], config={"source": file.name})
    return info, episodes


def _check_plain(file: Path, arrays: Columns) -> NDArray[Any]:
    missing = [name for name in _PLAIN if name not in arrays]
    if missing:
        raise InvalidInputError(
            f"dataset: {file} lacks {', '.join(missing)}; a plain npz needs observations, "
            "actions, rewards and episode_lengths"
        )
    lengths = arrays["episode_lengths"]
    if (lengths.ndim != 1 or lengths.dtype.kind not in "iu" or len(lengths) == 0
            or (lengths < 2).any()):
        raise InvalidInputError(
            f"dataset: {file}: episode_lengths should be one or more whole numbers >= 2"
        )
    total = sum(lengths.tolist())
    for name, ndim, kinds in (("observations", 2, "fiu"), ("actions", 2, "fiu"),
                              ("rewards", 1, "fiu"), ("terminals", 1, "fiub"),
                              ("timeouts", 1, "fiub")):
        array = arrays.get(name)
        if array is not None and (
            array.dtype.kind not in kinds or array.ndim != ndim or len(array) != total
        ):
            raise InvalidInputError(
                f"dataset: {file}: {name} has shape {array.shape}, should have {ndim} axes and "
                f"{total} rows, the sum of episode_lengths"
            )
    return lengths


def _plain_episode(rows: Columns, where: str) -> Episode:
    terminals = rows.get("terminals", np.zeros(len(rows["rewards"]), np.bool_)) != 0
    observation = rows["observations"].astype(np.float32)
    if terminals[-1]:
        count = len(terminals)
        observation = np.concatenate([observation, observation[-1:]])
    else:
        # The last step has no next observation: it cannot be a transition.
        count = len(terminals) - 1
    truncated = (rows["timeouts"][:count] != 0 if "timeouts" in rows
                 else np.zeros(count, np.bool_))
    truncated = np.append(truncated[:-1], truncated[-1] or not terminals[-1])
    episode = Episode(
        observation=observation,
        achieved=np.zeros((count + 1, 0), np.float32),
        desired=np.zeros(0, np.float32),
        # Demonstrations may ask for more than an action's range; what was executed did not.
        action=np.clip(rows["actions"][:count], -1.0, 1.0).astype(np.float32),
        requested=rows["actions"][:count].astype(np.float32),
        reward=rows["rewards"][:count].astype(np.float32),
        terminated=terminals[:count],
        truncated=truncated,
        success=np.zeros(count, np.bool_),
    )
    episode.check(where)
    return episode


def open_source(source: Path, options: ImportOptions) -> EpisodeSource:
    """A plain npz as a source; with a mapping, any arrays of as many rows can become keys.

    Without a mapping the episodes are those of :func:`load_npz`.

    Raises:
        InvalidInputError: as :func:`load_npz` does.
    """
    where, notes = f"npz: {source}", Notes()
    values: dict[str, Any] = {
        "task": options.task, "rate_hz": rate_of(options.rate_hz, 0.0, where),
        "config": {"source": source.name},
    }
    if not options.mapping:
        _, episodes = load_npz(source)
        return ArraySource(where, lambda: iter(episodes), notes, count=len(episodes), **values)
    mapping = Mapping.parse(options.mapping)
    arrays = read_npz(source)
    lengths = arrays.pop("episode_lengths", np.zeros(0, np.int64))
    if lengths.ndim != 1 or lengths.dtype.kind not in "iu" or not len(lengths) or (
        lengths < 1
    ).any():
        raise InvalidInputError(
            f"{where}: episode_lengths should be one or more whole numbers >= 1")
    total = sum(lengths.tolist())
    for name in [n for n, array in arrays.items() if array.ndim == 0 or len(array) != total]:
        notes.add(f"left out: {name} of shape {arrays.pop(name).shape}, it has not {total} rows")
    columns = numeric_columns(arrays, notes)

    def read() -> Iterator[Episode | None]:
        first = 0
        for number, length in enumerate(lengths.tolist()):
            rows = {name: array[first:first + length] for name, array in columns.items()}
            found, extra = mapping.apply(rows, _DEFAULTS, where)
            first += length
            yield assemble(found, extra, f"{where}, episode {number}", notes, {})

    return ArraySource(where, read, notes, count=len(lengths), **values)


# -- the folder format before the log -----------------------------------------------------------


def load_folder_v1(path: str | Path) -> tuple[DatasetInfo, list[Episode]]:
    """Read a dataset folder of format 1: dataset.json and episodes/NNNNNN.npz.

    Observations that are images (T + 1, H, W, C) uint8 become what the camera ``camera`` saw.

    Raises:
        InvalidInputError: it is missing, damaged, of another format, or of mixed shapes; the
            message names the file and the array.
    """
    path = Path(path)
    info = _read_info(path / "dataset.json")
    if info.format != 1:
        raise InvalidInputError(
            f"dataset: {path} has format {info.format}, this version reads 1 here")
    episodes = []
    for file in sorted((path / "episodes").glob("*.npz")):
        episode, shape = _read_episode(file)
        found = (shape, episode.achieved.shape[1], episode.action.shape[1])
        expected = (info.observation_shape, info.goal_dim, info.action_dim)
        if found != expected:
            raise InvalidInputError(
                f"dataset: {file} has observation {found[0]}, goal {found[1]}, action {found[2]}; "
                f"dataset.json says {expected[0]}, {expected[1]}, {expected[2]}"
            )
        episodes.append(episode)
    if not episodes:
        raise InvalidInputError(f"dataset: {path} holds no episodes")
    sizes = DatasetInfo.of(episodes[0])
    info.observation_shape, info.cameras = sizes.observation_shape, sizes.cameras
    info.format = sizes.format
    return info, episodes


def _read_info(file: Path) -> DatasetInfo:
    raw = read_small_json(file, "dataset")
    try:
        names = {item.name for item in fields(DatasetInfo)}
        if not isinstance(raw, dict) or not set(raw) <= names:
            raise TypeError(f"it holds {', '.join(map(str, raw)) if raw else raw!r}"[:200])
        info = DatasetInfo(**{"format": 1, **raw})
        info.observation_shape = tuple(int(n) for n in info.observation_shape)
        kinds = {"task": str, "goal_dim": int, "action_dim": int, "env": dict, "config": dict,
                 "format": int}
        for name, kind in kinds.items():
            if not isinstance(getattr(info, name), kind):
                raise TypeError(f"{name} is {getattr(info, name)!r}")
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidInputError(
            f"dataset: {file} does not describe a dataset ({error})"
        ) from None
    return info


def _read_episode(file: Path) -> tuple[Episode, tuple[int, ...]]:
    required = (OBSERVATION, ACHIEVED, DESIRED, ACTION, REWARD, TERMINATED, TRUNCATED, SUCCESS)
    arrays = read_npz(file, (*required, REQUESTED))
    missing = [name for name in required if name not in arrays]
    if missing:
        raise InvalidInputError(f"dataset: {file} lacks {', '.join(missing)}")
    for name, array in arrays.items():
        if array.dtype.kind not in "fuib":
            raise InvalidInputError(f"dataset: {file}: {name} has type {array.dtype}")
    observation, images = arrays[OBSERVATION], {}
    if observation.dtype == np.uint8 and observation.ndim == 4:
        images[CAMERA] = Images.each(observation)
        observation = np.zeros((len(observation), 0), np.float32)
    requested = arrays.get(REQUESTED)
    episode = Episode(
        observation=observation.astype(np.float32),
        achieved=arrays[ACHIEVED].astype(np.float32),
        desired=arrays[DESIRED].astype(np.float32),
        action=arrays[ACTION].astype(np.float32),
        reward=arrays[REWARD].astype(np.float32),
        terminated=arrays[TERMINATED].astype(np.bool_),
        truncated=arrays[TRUNCATED].astype(np.bool_),
        success=arrays[SUCCESS].astype(np.bool_),
        requested=None if requested is None else requested.astype(np.float32),
        images=images,
    )
    episode.check(f"dataset: {file}")
    return episode, arrays[OBSERVATION].shape[1:]


# -- careful reading ----------------------------------------------------------------------------


def read_npz(file: Path, names: tuple[str, ...] | None = None) -> Columns:
    """The arrays of an npz (those of ``names`` that are there, or all), nothing unpickled.

    What an array's header says is held against what its archive entry holds before any memory is
    taken.

    Raises:
        InvalidInputError: it is missing, damaged, unpacks to more than MAX_BYTES, or holds
            something other than plain arrays under these names.
    """
    if file.exists() and not (file.is_file() or file.is_dir()):
        raise InvalidInputError(f"dataset: {file} cannot be read: it is a pipe or a device")
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            size = sum(entry.file_size for entry in entries)
            if size > MAX_BYTES:
                raise InvalidInputError(
                    f"dataset: {file} unpacks to {size} bytes, the limit is {MAX_BYTES}"
                )
            found = [entry.filename for entry in entries]
            if len(set(found)) != len(found):
                raise InvalidInputError(f"dataset: {file} is damaged: it holds a name twice")
            wanted = (n[:-4] for n in found if n.endswith(".npy")) if names is None else names
            return {name: _read_array(file, archive, f"{name}.npy")
                    for name in wanted if f"{name}.npy" in found}
    except InvalidInputError:
        raise
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, MemoryError,
            NotImplementedError, RuntimeError) as error:
        raise InvalidInputError(f"dataset: {file} cannot be read: {error}") from None
    except Exception as error:  # zlib and lzma have their own
        raise InvalidInputError(f"dataset: {file} is damaged: {error}") from None


def _read_array(file: Path, archive: zipfile.ZipFile, entry: str) -> NDArray[Any]:
    what = f"dataset: {file} cannot be read: {entry[:-4]}"
    stream: Any
    with archive.open(entry) as stream:
        version = np.lib.format.read_magic(stream)
        if version not in ((1, 0), (2, 0)):
            raise InvalidInputError(f"{what} has format version {version}")
        read = (np.lib.format.read_array_header_1_0 if version == (1, 0)
                else np.lib.format.read_array_header_2_0)
        shape, fortran, dtype = read(stream)
        if dtype.hasobject:
            raise InvalidInputError(f"{what} holds a pickle (objects); nothing is ever unpickled")
        if dtype.kind in "VMm":
            raise InvalidInputError(f"{what} has type {dtype}, should be numbers")
        if len(shape) > 16 or any(type(n) is not int or n < 0 for n in shape):
            raise InvalidInputError(f"{what} has shape {str(shape)[:200]}")
        size = math.prod(shape) * dtype.itemsize
        if size > archive.getinfo(entry).file_size:
            raise InvalidInputError(
                f"{what} should have {size} bytes for {shape} {dtype}, the archive has "
                f"{archive.getinfo(entry).file_size}"
            )
        content = bytearray(size)
        view, done = memoryview(content), 0
        while done < size and (count := stream.readinto(view[done:])):
            done += count
        if done != size or stream.read(1):
            raise InvalidInputError(f"{what} has not the {size} bytes that {shape} {dtype} need")
    if dtype.itemsize == 0:
        return np.zeros(shape, dtype)
    array = np.frombuffer(content, dtype)
    return array.reshape(shape[::-1]).T if fortran else array.reshape(shape)
