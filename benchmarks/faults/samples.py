"""Small episodes that use everything an episode can hold, and how two are compared."""

from __future__ import annotations

import functools
import hashlib
import threading
from typing import Any

import numpy as np

from robot_rl.data import DatasetInfo, Episode, Images, LiveEpisode
from robot_rl.data.episodes import DESIRED, IMAGES

INFO = DatasetInfo("Push", (3,), 2, 2, rate_hz=20.0, robot="panda", config={"seed": 1},
                   cameras={"front": (4, 6, 3), "wrist": (3, 5, 1)}, software="0")
START_S = 1.7e9 + 0.123456


@functools.lru_cache(256)
def make_episode(seed: int, steps: int = 6, *, cameras: bool = True) -> Episode:
    """An episode of random numbers, which follow from ``seed`` alone; not to be
    changed."""
    rng = np.random.default_rng(seed)
    images, stamps = {}, {}
    times = START_S + np.arange(steps + 1) / 20.0
    if cameras:
        for name, shape in INFO.cameras.items():
            index = np.maximum.accumulate(rng.integers(0, steps, steps + 1))
            at = START_S + np.arange(steps) / 15.0
            frames = rng.integers(0, 256, (steps, *shape)).astype(np.uint8)
            images[name] = Images(frames, index, at)
            stamps[f"{IMAGES}{name}"] = at[index]
    end = np.zeros(steps, np.bool_)
    end[-1] = True
    return Episode(
        observation=rng.normal(size=(steps + 1, 3)).astype(np.float32),
        achieved=rng.normal(size=(steps + 1, 2)).astype(np.float32),
        desired=rng.normal(size=2).astype(np.float32),
        action=rng.normal(size=(steps, 2)).astype(np.float32),
        requested=rng.normal(size=(steps, 2)).astype(np.float32),
        reward=rng.normal(size=steps).astype(np.float32),
        terminated=end if seed % 2 else np.zeros(steps, np.bool_),
        truncated=np.zeros(steps, np.bool_) if seed % 2 else end,
        success=rng.random(steps) < 0.5,
        intervention=rng.random(steps) < 0.5,
        stamp_s=times, stamps_s=stamps, images=images,
        extra={"torque": rng.normal(size=(steps + 1, 2)), "mode": rng.integers(0, 9, steps)},
        metadata={"seed": seed},
    )


def arrays_of(episode: Episode) -> dict[str, np.ndarray[Any, Any]]:
    """Every array of an episode by name."""
    arrays = {**episode.state_arrays(), **episode.step_arrays(), DESIRED: episode.desired}
    for name, images in episode.images.items():
        arrays[f"{IMAGES}{name}.frames"] = images.frames
        arrays[f"{IMAGES}{name}.stamps"] = images.stamp_s
    return arrays


def digest(episode: Episode) -> str:
    """A checksum over names, types, shapes and bytes of all arrays, not over the metadata."""
    found = hashlib.sha256()
    for name, array in sorted(arrays_of(episode).items()):
        found.update(f"{name} {array.dtype} {array.shape} ".encode())
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def is_beginning(part: Episode, whole: Episode) -> bool:
    """Whether ``part`` is the first steps of ``whole``, but for its last step's end."""
    steps = len(part)
    if not 0 < steps <= len(whole):
        return False
    one, two = arrays_of(part), arrays_of(whole)
    if set(one) != set(two):
        return False
    for name, array in one.items():
        other = two[name][: len(array)] if name != DESIRED else two[name]
        if name in ("next.truncated", "next.terminated"):
            array, other = array[:-1], other[:-1]
        if array.dtype != other.dtype or not np.array_equal(array, other):
            return False
    return True


def rows_of(episode: Episode, number: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a control loop has of state ``number``, and of the step that led to it."""
    states = {key: value[number] for key, value in episode.state_arrays().items()}
    states[DESIRED] = episode.desired
    steps = {key: value[number - 1] for key, value in episode.step_arrays().items()}
    return states, steps if number else {}


def play(live: LiveEpisode, episode: Episode, *, steps: int | None = None, threads: bool = False
         ) -> None:
    """Record ``episode`` as it would have happened, frames first.

    Args:
        live: what records it.
        episode: what happens.
        steps: only so many.
        threads: give the frames that no early state saw from a thread for each camera.
    """
    steps = len(episode) if steps is None else steps
    given = dict.fromkeys(episode.images, 0)

    def give(name: str, upto: int) -> None:
        images = episode.images[name]
        while given[name] <= upto:
            number = given[name]
            assert live.frame(name, images.frames[number], float(images.stamp_s[number])) == number
            given[name] += 1

    workers = []
    for name, images in episode.images.items():
        give(name, int(images.index[0]))
        if threads:
            worker = threading.Thread(target=give, args=(name, len(images.frames) - 1))
            workers.append(worker)
            worker.start()
    for worker in workers:
        worker.join()
    live.start(rows_of(episode, 0)[0])
    for number in range(1, steps + 1):
        for name, images in episode.images.items():
            give(name, int(images.index[number]))
        live.step(*rows_of(episode, number))
    if steps == len(episode):
        for name, images in episode.images.items():
            give(name, len(images.frames) - 1)
