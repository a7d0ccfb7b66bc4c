"""Export to a Minari dataset (HDF5), written by ``minari`` itself, images uncompressed.

``dest`` is one dataset: ``MINARI_DATASETS_PATH=<parent of dest>`` and
``minari.load_dataset("<name of dest>")`` open it. Observations are the state as a ``Box``, or a
``Dict`` of ``observation``, ``achieved_goal``, ``desired_goal`` (as gymnasium's GoalEnv has them)
and ``observation.images.<camera>``. ``infos`` hold ``success`` and every other array by its key,
with T rows (steps) or T + 1 (states). What Minari has no place for (metadata, frames that no state
was decided on) lies beside in ``data/robot_rl.hdf5``, so that an import restores every number.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robot_rl.data.episodes import (
    ACHIEVED,
    ACTION,
    DESIRED,
    IMAGES,
    OBSERVATION,
    REWARD,
    SUCCESS,
    TERMINATED,
    TRUNCATED,
    Episode,
)
from robot_rl.data.exporters.staged import EpisodeLog, staged
from robot_rl.data.importers.arrays import need
from robot_rl.data.importers.minari import OWN_FILE, OWN_FORMAT, OWN_KEY, quoted
from robot_rl.errors import InvalidInputError

_APART = (OBSERVATION, ACHIEVED, ACTION, REWARD, TERMINATED, TRUNCATED)


def export(
    log: EpisodeLog, dest: Path, *, overwrite: bool = False, quiet: bool = False
) -> dict[str, Any]:
    """Write every episode of ``log`` as the Minari dataset ``dest``, whole or not at all.

    Returns:
        ``path``, ``dataset_id``, ``episodes``, ``steps``, ``load`` (how to open it).

    Raises:
        InvalidInputError: ``dest`` is in use, the log is empty, or cannot be a Minari dataset.
        MissingDependencyError: ``minari`` or ``h5py`` is not installed.
    """
    storage_of = need("minari.dataset.minari_storage", "export to minari")
    h5py = need("h5py", "export to minari")
    dest = Path(os.path.abspath(dest))
    count = len(log)
    if count == 0:
        raise InvalidInputError("export to minari: there are no episodes")
    first = log.read(0)
    name = dataset_id(dest.name)
    with staged(dest, "export", overwrite=overwrite, source=getattr(log, "path", None)) as folder:
        data = folder / "data"
        data.mkdir()
        storage = storage_of.MinariStorage.new(
            data, _observation_space(first), _action_space(first, np.inf), data_format="hdf5",
            jpeg_encoding=False)
        writer = _Writer(log, count)
        with h5py.File(data / OWN_FILE, "w") as side:
            storage.update_episodes(writer.buffers(side, quiet))
        storage.update_metadata({
            "dataset_id": name, "minari_version": need("minari", "export").__version__,
            "algorithm_name": log.info.software,
            OWN_KEY: {"format": OWN_FORMAT, "info": asdict(log.info)},
        })
        _bound_actions(data / "metadata.json", first, writer.largest_action)
    return {
        "path": str(dest), "dataset_id": name, "episodes": writer.episodes, "steps": writer.steps,
        "load": f"MINARI_DATASETS_PATH={dest.parent} minari.load_dataset({dest.name!r})",
    }


def dataset_id(name: str) -> str:
    """The Minari name nearest to ``name``: letters, digits, - and _, ending in a version -vN."""
    plain = re.sub(r"[^-\w]", "_", name) or "dataset"
    return plain if re.search(r"\w.*-v\d+$", plain) else f"{plain}-v0"


def _observation_space(episode: Episode) -> Any:
    spaces = need("gymnasium.spaces", "export to minari")

    def box(array: NDArray[Any]) -> Any:
        return spaces.Box(-np.inf, np.inf, array.shape[1:], array.dtype)

    parts = {name: box(array) for name, array in _states(episode).items()}
    parts |= {f"{IMAGES}{quoted(name)}": spaces.Box(0, 255, images.frames.shape[1:], np.uint8)
              for name, images in episode.images.items()}
    if not parts:
        raise InvalidInputError("export to minari: the episodes hold no observations")
    return parts["observation"] if set(parts) == {"observation"} else spaces.Dict(parts)


def _states(episode: Episode) -> dict[str, NDArray[Any]]:
    states = len(episode) + 1
    parts = {"observation": episode.observation, "achieved_goal": episode.achieved,
             "desired_goal": np.repeat(episode.desired[None], states, 0)}
    return {name: array for name, array in parts.items() if array.size}


def _action_space(episode: Episode, bound: float) -> Any:
    spaces = need("gymnasium.spaces", "export to minari")
    return spaces.Box(-bound, bound, episode.action.shape[1:], episode.action.dtype)


def _bound_actions(metadata: Path, episode: Episode, largest: float) -> None:
    """Actions within [-1, 1], as normalised ones are, get that for their space."""
    if largest > 1.0:
        return
    serialize = need("minari.serialization", "export to minari").serialize_space
    content = json.loads(metadata.read_bytes())
    content["action_space"] = serialize(_action_space(episode, 1.0))
    metadata.write_text(json.dumps(content))


class _Writer:
    def __init__(self, log: EpisodeLog, count: int) -> None:
        self._log, self._count = log, count
        self.episodes = self.steps = 0
        self.largest_action = 0.0

    def buffers(self, side: Any, quiet: bool) -> Iterator[Any]:
        """Each episode for Minari's storage; what it has no place for goes into ``side``."""
        tqdm = need("tqdm", "progress").tqdm
        buffer = need("minari.data_collector.episode_buffer", "export to minari").EpisodeBuffer
        for number in tqdm(range(self._count), disable=quiet, desc="minari"):
            episode = self._log.read(number)
            episode.check(f"episode {self.episodes}")
            self._beside(side.create_group(f"episode_{self.episodes}"), episode)
            seen = {f"{IMAGES}{quoted(name)}": images.at(slice(None))
                    for name, images in episode.images.items()}
            observations: Any = _states(episode) | seen
            if set(observations) == {"observation"}:
                observations = observations["observation"]
            self.episodes += 1
            self.steps += len(episode)
            self.largest_action = max(
                self.largest_action, float(np.abs(episode.action).max(initial=0.0)))
            yield buffer(
                observations=observations, actions=episode.action, rewards=episode.reward,
                terminations=episode.terminated, truncations=episode.truncated,
                infos=_infos(episode))

    def _beside(self, group: Any, episode: Episode) -> None:
        text = json.dumps(episode.metadata).encode()
        group["metadata"] = np.frombuffer(text, np.uint8)
        empty = _others(episode) | {OBSERVATION: episode.observation, ACHIEVED: episode.achieved,
                                    DESIRED: episode.desired, ACTION: episode.action}
        for key, array in empty.items():
            if not array.size:
                group[f"empty/{quoted(key)}"] = array
        for name, images in episode.images.items():
            rest = np.setdiff1d(np.arange(len(images.frames)), images.index)
            for part, array in (("index", images.index), ("stamp_s", images.stamp_s),
                                ("rest_at", rest), ("rest", images.frames[rest])):
                group[f"images/{quoted(name)}/{part}"] = array


def _others(episode: Episode) -> dict[str, NDArray[Any]]:
    arrays = episode.state_arrays() | episode.step_arrays()
    return {key: array for key, array in arrays.items()
            if key not in _APART and not key.startswith(IMAGES)}


def _infos(episode: Episode) -> dict[str, Any]:
    # An extra array may be called success, too.
    names = {SUCCESS: "success", "success": "%73uccess"}
    return {names.get(key, quoted(key)): array
            for key, array in _others(episode).items() if array.size}
