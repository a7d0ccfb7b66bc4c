"""Episodes as arrays, and a folder that holds them.

A dataset is a folder with ``dataset.json`` and one ``episodes/<number>.npz`` per episode, written
whole or not at all, so that an interrupted recording keeps every episode it finished. Keys are
LeRobot's where LeRobot has one. A plain npz of demonstrations (``observations``, ``actions``,
``rewards``, ``episode_lengths``) is read as well; its episodes count as cut off, not as ended.
Nothing is unpickled.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robot_rl.data.files import new_folder, read_json, write_atomically, write_json
from robot_rl.errors import InvalidInputError

FORMAT = 1
OBSERVATION = "observation.state"
ACHIEVED = "observation.achieved_goal"
DESIRED = "observation.desired_goal"
ACTION = "action"
REQUESTED = "action.requested"
REWARD = "next.reward"
TERMINATED = "next.terminated"
TRUNCATED = "next.truncated"
SUCCESS = "next.success"
_LARGEST_FILE = 2 << 30


@dataclass
class Episode:
    """One episode of T steps.

    ``observation`` (T+1, o) or images (T+1, H, W, C) uint8, ``achieved`` (T+1, g), ``desired``
    (g,), ``action`` (T, a) as executed, ``requested`` (T, a) as asked for, ``reward`` (T,),
    ``terminated``, ``truncated``, ``success`` (T,) bool. g is 0 for a task without goals.
    """

    observation: NDArray[Any]
    achieved: NDArray[np.float32]
    desired: NDArray[np.float32]
    action: NDArray[np.float32]
    reward: NDArray[np.float32]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    success: NDArray[np.bool_]
    requested: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.action)

    def check(self, where: str) -> None:
        """Raise InvalidInputError, naming ``where`` and the array, if shapes or values are off."""
        steps = len(self.action) if self.action.ndim else 0
        if steps < 1 or self.action.ndim != 2:
            raise InvalidInputError(
                f"{where}: {ACTION} has shape {self.action.shape}, should be (steps, dimension)"
            )
        rows = {
            OBSERVATION: (self.observation, steps + 1),
            ACHIEVED: (self.achieved, steps + 1),
            REWARD: (self.reward, steps),
            TERMINATED: (self.terminated, steps),
            TRUNCATED: (self.truncated, steps),
            SUCCESS: (self.success, steps),
        }
        for name, (array, expected) in rows.items():
            if array.ndim < 1 or len(array) != expected:
                raise InvalidInputError(
                    f"{where}: {name} has shape {array.shape}, should have {expected} rows "
                    f"for {steps} steps"
                )
        for name, array in ((REWARD, self.reward), (TERMINATED, self.terminated),
                            (TRUNCATED, self.truncated), (SUCCESS, self.success)):
            if array.ndim != 1:
                raise InvalidInputError(
                    f"{where}: {name} has shape {array.shape}, should be ({steps},)"
                )
        if self.requested is not None and self.requested.shape != self.action.shape:
            raise InvalidInputError(
                f"{where}: {REQUESTED} has shape {self.requested.shape}, should be "
                f"{self.action.shape} as {ACTION} has"
            )
        if self.observation.ndim < 2:
            raise InvalidInputError(
                f"{where}: {OBSERVATION} has shape {self.observation.shape}, "
                "should be (steps + 1, dimension)"
            )
        if self.achieved.shape[1:] != self.desired.shape or self.desired.ndim != 1:
            raise InvalidInputError(
                f"{where}: {DESIRED} has shape {self.desired.shape}, should be "
                f"{self.achieved.shape[1:]} as {ACHIEVED} has"
            )
        for name, array in ((OBSERVATION, self.observation), (ACTION, self.action),
                            (REWARD, self.reward), (ACHIEVED, self.achieved),
                            (DESIRED, self.desired)):
            if array.dtype.kind not in "fu" or not np.isfinite(array).all():
                raise InvalidInputError(f"{where}: {name} holds values that are not finite numbers")


@dataclass
class DatasetInfo:
    """What a dataset is of; ``config`` is whatever made it."""

    task: str
    observation_shape: tuple[int, ...]
    goal_dim: int
    action_dim: int
    env: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    format: int = FORMAT


class DatasetWriter:
    """Appends episodes to a new dataset folder, each whole or not at all."""

    def __init__(self, path: str | Path, info: DatasetInfo, *, overwrite: bool = False) -> None:
        self.path = new_folder(Path(path), "dataset", overwrite=overwrite)
        self.info = info
        self.count = 0
        (self.path / "episodes").mkdir(exist_ok=True)
        write_json(self.path / "dataset.json", asdict(info))

    @classmethod
    def reopen(cls, path: str | Path, count: int) -> tuple[DatasetWriter, list[Episode]]:
        """Go on with a dataset after its first ``count`` episodes; later ones are dropped.

        Raises:
            InvalidInputError: it is damaged, or holds fewer.
        """
        path = Path(path)
        files = sorted((path / "episodes").glob("*.npz"))
        if len(files) < count:
            raise InvalidInputError(
                f"dataset: {path} holds {len(files)} episodes, {count} are needed to go on"
            )
        for extra in files[count:]:
            extra.unlink()
        writer = cls.__new__(cls)
        writer.path, writer.count = path, count
        if count == 0:
            writer.info = _read_info(path / "dataset.json")
            return writer, []
        writer.info, episodes = load_dataset(path)
        return writer, episodes

    def append(self, episode: Episode) -> Path:
        """Commit one episode; when this returns, it is on the disk."""
        episode.check(f"episode {self.count}")
        arrays = {
            OBSERVATION: episode.observation,
            ACHIEVED: episode.achieved,
            DESIRED: episode.desired,
            ACTION: episode.action,
            REWARD: episode.reward,
            TERMINATED: episode.terminated,
            TRUNCATED: episode.truncated,
            SUCCESS: episode.success,
        }
        if episode.requested is not None:
            arrays[REQUESTED] = episode.requested
        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, **arrays)
        file = self.path / "episodes" / f"{self.count:06d}.npz"
        write_atomically(file, buffer.getvalue())
        self.count += 1
        return file


class EpisodeRecorder:
    """Gathers one episode from an environment, step by step."""

    def __init__(self) -> None:
        self._rows: dict[str, list[Any]] = {}

    def start(self, observation: dict[str, NDArray[Any]], info: dict[str, Any]) -> None:
        """Begin with what ``reset`` returned."""
        self._rows = {"observation": [observation["observation"]],
                      "achieved": [_achieved(observation, info)],
                      "action": [], "requested": [], "reward": [], "terminated": [],
                      "truncated": [], "success": []}
        self._desired = info.get("desired_state", observation["desired_goal"])

    def add(
        self,
        action: NDArray[Any],
        observation: dict[str, NDArray[Any]],
        reward: float,
        terminated: bool,
        truncated: bool,
        info: dict[str, Any],
    ) -> None:
        """Add the action asked for and what ``step`` returned."""
        rows = self._rows
        rows["observation"].append(observation["observation"])
        rows["achieved"].append(_achieved(observation, info))
        rows["action"].append(info["executed_action"])
        rows["requested"].append(action)
        rows["reward"].append(reward)
        rows["terminated"].append(terminated)
        rows["truncated"].append(truncated)
        rows["success"].append(bool(info["is_success"]))

    def finish(self) -> Episode:
        """The episode so far."""
        rows = self._rows
        return Episode(
            observation=np.stack(rows["observation"]),
            achieved=np.stack(rows["achieved"]).astype(np.float32, copy=False),
            desired=np.asarray(self._desired, dtype=np.float32),
            action=np.asarray(rows["action"], dtype=np.float32),
            requested=np.asarray(rows["requested"], dtype=np.float32),
            reward=np.asarray(rows["reward"], dtype=np.float32),
            terminated=np.asarray(rows["terminated"], dtype=np.bool_),
            truncated=np.asarray(rows["truncated"], dtype=np.bool_),
            success=np.asarray(rows["success"], dtype=np.bool_),
        )


def _achieved(observation: dict[str, NDArray[Any]], info: dict[str, Any]) -> NDArray[Any]:
    # With image observations the goals' states travel in info; images are stored once.
    achieved: NDArray[Any] = info.get("achieved_state", observation["achieved_goal"])
    return achieved


def load_dataset(path: str | Path) -> tuple[DatasetInfo, list[Episode]]:
    """Read a dataset folder, or a plain npz of demonstrations.

    Raises:
        InvalidInputError: it is missing, damaged, of another format, or of mixed shapes; the
            message names the file and the array.
    """
    path = Path(path)
    if not path.exists():
        raise InvalidInputError(f"dataset: {path} does not exist")
    if path.is_file():
        return _load_plain_npz(path)
    info = _read_info(path / "dataset.json")
    if info.format != FORMAT:
        raise InvalidInputError(
            f"dataset: {path} has format {info.format}, this version reads {FORMAT}"
        )
    episodes = []
    for file in sorted((path / "episodes").glob("*.npz")):
        episode = _read_episode(file)
        found = (episode.observation.shape[1:], episode.achieved.shape[1], episode.action.shape[1])
        expected = (info.observation_shape, info.goal_dim, info.action_dim)
        if found != expected:
            raise InvalidInputError(
                f"dataset: {file} has observation {found[0]}, goal {found[1]}, action {found[2]}; "
                f"dataset.json says {expected[0]}, {expected[1]}, {expected[2]}"
            )
        episodes.append(episode)
    if not episodes:
        raise InvalidInputError(f"dataset: {path} holds no episodes")
    return info, episodes


def _read_info(file: Path) -> DatasetInfo:
    raw = read_json(file, "dataset")
    try:
        info = DatasetInfo(**raw)
        info.observation_shape = tuple(int(n) for n in info.observation_shape)
        kinds = {"task": str, "goal_dim": int, "action_dim": int, "env": dict, "config": dict}
        for name, kind in kinds.items():
            if not isinstance(getattr(info, name), kind):
                raise TypeError(f"{name} is {getattr(info, name)!r}")
    except (TypeError, ValueError) as error:
        raise InvalidInputError(
            f"dataset: {file} does not describe a dataset ({error})"
        ) from None
    return info


def _read_npz(file: Path, names: tuple[str, ...]) -> Iterator[tuple[str, NDArray[Any]]]:
    try:
        with zipfile.ZipFile(file) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > _LARGEST_FILE:
            raise InvalidInputError(
                f"dataset: {file} unpacks to {size} bytes, the limit is {_LARGEST_FILE}"
            )
        with np.load(file, allow_pickle=False) as data:
            for name in names:
                if name in data.files:
                    array = data[name]
                    if not isinstance(array, np.ndarray):
                        raise InvalidInputError(f"dataset: {file}: {name} is not an array")
                    yield name, array
    except InvalidInputError:
        raise
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, MemoryError,
            NotImplementedError, RuntimeError) as error:
        raise InvalidInputError(f"dataset: {file} cannot be read: {error}") from None
    except Exception as error:  # zlib and the npy header parser have their own
        raise InvalidInputError(f"dataset: {file} is damaged: {error}") from None


def _read_episode(file: Path) -> Episode:
    required = (OBSERVATION, ACHIEVED, DESIRED, ACTION, REWARD, TERMINATED, TRUNCATED, SUCCESS)
    arrays = dict(_read_npz(file, (*required, REQUESTED)))
    missing = [name for name in required if name not in arrays]
    if missing:
        raise InvalidInputError(f"dataset: {file} lacks {', '.join(missing)}")
    for name, array in arrays.items():
        if array.dtype.kind not in "fuib":
            raise InvalidInputError(f"dataset: {file}: {name} has type {array.dtype}")
    episode = Episode(
        observation=arrays[OBSERVATION]
        if arrays[OBSERVATION].dtype == np.uint8
        else arrays[OBSERVATION].astype(np.float32),
        achieved=arrays[ACHIEVED].astype(np.float32),
        desired=arrays[DESIRED].astype(np.float32),
        action=arrays[ACTION].astype(np.float32),
        reward=arrays[REWARD].astype(np.float32),
        terminated=arrays[TERMINATED].astype(np.bool_),
        truncated=arrays[TRUNCATED].astype(np.bool_),
        success=arrays[SUCCESS].astype(np.bool_),
        requested=arrays.get(REQUESTED),
    )
    episode.check(f"dataset: {file}")
    return episode


def _load_plain_npz(file: Path) -> tuple[DatasetInfo, list[Episode]]:
    names = ("observations", "actions", "rewards", "episode_lengths")
    arrays = dict(_read_npz(file, names))
    missing = [name for name in names if name not in arrays]
    if missing:
        raise InvalidInputError(
            f"dataset: {file} lacks {', '.join(missing)}; a plain npz needs observations, "
            "actions, rewards and episode_lengths"
        )
    observations, actions, rewards = (
        arrays["observations"], arrays["actions"], arrays["rewards"])
    lengths = arrays["episode_lengths"]
    if (lengths.ndim != 1 or lengths.dtype.kind not in "iu" or len(lengths) == 0
            or (lengths < 2).any()):
        raise InvalidInputError(
            f"dataset: {file}: episode_lengths should be one or more whole numbers >= 2"
        )
    for name, array, ndim in (("observations", observations, 2), ("actions", actions, 2),
                              ("rewards", rewards, 1)):
        if array.dtype.kind not in "fiu" or array.ndim != ndim or len(array) != lengths.sum():
            raise InvalidInputError(
                f"dataset: {file}: {name} has shape {array.shape}, should have {ndim} axes and "
                f"{lengths.sum()} rows, the sum of episode_lengths"
            )
    episodes: list[Episode] = []
    first = 0
    for length in lengths:
        rows = slice(first, first + int(length))
        first += int(length)
        # The last step has no next observation: it cannot be a transition.
        count = int(length) - 1
        truncated = np.zeros(count, np.bool_)
        truncated[-1] = True
        episode = Episode(
            observation=observations[rows].astype(np.float32),
            achieved=np.zeros((count + 1, 0), np.float32),
            desired=np.zeros(0, np.float32),
            # Demonstrations may ask for more than an action's range; what was executed did not.
            action=np.clip(actions[rows][:-1], -1.0, 1.0).astype(np.float32),
            requested=actions[rows][:-1].astype(np.float32),
            reward=rewards[rows][:-1].astype(np.float32),
            terminated=np.zeros(count, np.bool_),
            truncated=truncated,
            success=np.zeros(count, np.bool_),
        )
        episode.check(f"dataset: {file}, episode {len(episodes)}")
        episodes.append(episode)
    info = DatasetInfo(
        task="", observation_shape=observations.shape[1:], goal_dim=0,
        action_dim=actions.shape[1], config={"source": file.name},
    )
    return info, episodes
