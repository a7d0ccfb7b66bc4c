"""Episodes with everything that an episode can hold, for tests of dataset formats."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from robot_rl.data.episodes import DatasetInfo, Episode, Images

PARTS = ("observation", "achieved", "desired", "action", "reward", "terminated", "truncated",
         "success", "requested", "intervention", "reset", "rate_hz", "stamp_s")
CAMERAS = {"front": (40, 36, 3), "wrist": (17, 21, 1)}


class MemoryLog:
    """Episodes in memory, read as a log is."""

    def __init__(self, episodes: list[Episode], info: DatasetInfo | None = None) -> None:
        self.episodes = episodes
        self.info = info or DatasetInfo.of(
            episodes[0], task="Push", robot="panda", rate_hz=10.0, env={"robot": "panda"},
            config={"seeds": [1, 2]}, calibration={"camera_m": [0.1, 0.2]}, software="0.1.0")

    def __len__(self) -> int:
        return len(self.episodes)

    def __iter__(self) -> Iterator[Episode]:
        return iter(self.episodes)

    def read(self, which: int, /, *, images: bool = True) -> Episode:
        return self.episodes[which]


def plain_episode(
    steps: int, seed: int = 0, *, o: int = 4, g: int = 0, cameras: bool = False
) -> Episode:
    """Random numbers: no goal unless ``g``, no images unless ``cameras``."""
    rng = np.random.default_rng(seed)
    states = steps + 1
    one = Episode(
        rng.normal(size=(states, o)).astype(np.float32),
        rng.normal(size=(states, g)).astype(np.float32), rng.normal(size=g).astype(np.float32),
        rng.uniform(-1, 1, (steps, 3)).astype(np.float32),
        rng.normal(size=steps).astype(np.float32), rng.random(steps) < 0.5,
        rng.random(steps) < 0.5, rng.random(steps) < 0.5)
    for name, shape in CAMERAS.items() if cameras else ():
        count = states + 3  # Some frames are those of no state, some those of several.
        index = np.sort(rng.integers(0, count, states)).astype(np.int64)
        frames = rng.integers(0, 256, (count, *shape)).astype(np.uint8)
        one.images[name] = Images(frames, index, np.sort(rng.random(count)))
    return one


def full_episode(steps: int, seed: int = 0) -> Episode:
    """Every optional part, and extra arrays of many types, shapes and awkward names."""
    one = plain_episode(steps, seed, g=2, cameras=True)
    rng = np.random.default_rng(seed + 1000)
    states = steps + 1

    def floats(*shape: int) -> Any:
        return rng.normal(size=shape).astype(np.float32)

    one.observation[0, :4] = [np.float32(1e-45), -0.0, np.finfo(np.float32).max, 1 / 3]
    one.requested, one.rate_hz = floats(steps, 3), floats(steps) + 10
    one.intervention, one.reset = rng.random(steps) < 0.5, rng.random(steps) < 0.1
    one.stamp_s = np.sort(rng.random(states)) + 1.7e9
    one.stamps_s = {"observation.images.front": rng.random(states), "a.b": rng.random(states)}
    one.extra = {
        "effort": rng.normal(size=(states, 7)), "force.torque": floats(states, 2, 3),
        "count": rng.integers(-9, 9, steps), "half": floats(states, 2).astype(np.float16),
        "flag": rng.random(states) < 0.5, "one": floats(states, 1), "none": floats(states, 0),
        "small": rng.integers(0, 255, (steps, 3)).astype(np.uint8), "a/b": floats(steps, 2),
        "success": rng.random(steps) < 0.5, "index": rng.integers(0, 9, steps),
        "i8": rng.integers(-9, 9, (states, 2, 2, 2)).astype(np.int8),
        "u64": rng.integers(2**63, 2**64 - 1, states, dtype=np.uint64),
        "odd": np.full((steps, 2), np.nan, np.float32),
    }
    if seed == 1:
        one.extra["only here"] = floats(states, 2)
    one.metadata = {"instruction": f"push {seed % 2}", "n": [1, 2.5, None, {"ä": True}]}
    return one


def assert_equal(one: Episode, two: Episode) -> None:
    """Fail unless every array is of the same type, shape and bytes."""
    pairs = {name: (getattr(one, name), getattr(two, name)) for name in PARTS}
    for part in ("stamps_s", "extra"):
        first, second = getattr(one, part), getattr(two, part)
        assert set(first) == set(second), part
        pairs |= {f"{part} {key}": (first[key], second[key]) for key in first}
    assert set(one.images) == set(two.images)
    for name in one.images:
        for part in ("frames", "index", "stamp_s"):
            pairs[f"{name} {part}"] = (getattr(one.images[name], part),
                                       getattr(two.images[name], part))
    for name, (first, second) in pairs.items():
        assert (first is None) == (second is None), name
        if first is not None:
            assert first.dtype == second.dtype, name
            assert first.shape == second.shape, name
            assert first.tobytes() == second.tobytes(), name
    assert one.metadata == two.metadata
