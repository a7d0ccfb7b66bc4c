"""Logs with two cameras, and replay buffers of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from robot_rl.data import Images, Replay, load_dataset

SHAPE = (4, 6, 3)
CAMERAS = ("front", "side/left")


def recorded(episode, number: int, steps: int = 5):
    """An episode with two cameras, one of which is slower, and flags."""
    one = episode(steps, number)
    frames = np.zeros((steps + 1, *SHAPE), np.uint8)
    frames[:] = (10 * number + np.arange(steps + 1))[:, None, None, None]
    slow = np.arange(steps + 1) // 2
    one.images = {"front": Images.each(frames),
                  "side/left": Images(frames[: slow[-1] + 1] + 100, slow, np.zeros(slow[-1] + 1))}
    one.intervention = np.arange(steps) == 1
    one.reset = np.arange(steps) == steps - 1
    return one


def opened(path, cameras=CAMERAS, **options) -> Replay:
    return Replay.open(path, discount=0.9, cameras=cameras, **options)


def assert_same(one: Replay, two: Replay, cameras=CAMERAS) -> None:
    """Both sample the same."""
    assert len(one) == len(two) > 0 and one.episodes == two.episodes
    assert np.array_equal(one.observations, two.observations)
    assert np.array_equal(one.goals, two.goals)
    a, b = (replay.sample(100, np.random.default_rng(0), cameras=cameras,
                          extras=("intervention", "step", "episode", "success"))
            for replay in (one, two))
    for key in a:
        if isinstance(a[key], dict):
            assert all(np.array_equal(a[key][name], b[key][name]) for name in cameras)
        else:
            assert np.array_equal(a[key], b[key]), key


def expected(path: Path, cameras=CAMERAS) -> Replay:
    """The same without any cache."""
    info, episodes = load_dataset(path)
    return Replay(info.observation_shape[0], info.goal_dim, info.action_dim, discount=0.9,
                  cameras={name: info.cameras[name] for name in cameras}).add_all(episodes)


def state_file(path: Path, name: str = "rows", group: str = "state") -> Path:
    (found,) = (path / ".cache" / "replay" / group).glob(f"g*/{name}")
    return found
