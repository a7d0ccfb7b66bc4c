"""The parts of check_lerobot.sh: two run with this project's packages, two with lerobot's."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

FPS = 10
LENGTHS = (7, 1, 12)
# lerobot 0.4.4 cannot itself record an episode of one frame to video.
RECORDED = (7, 5, 12)
CAMERAS = {"front": (64, 48, 3), "wrist": (40, 56, 1)}
# Steps between the levels of the smooth frames that go through a video, of 255.
VIDEO_ERROR = 6.0


def arrays(number: int, steps: int) -> dict[str, np.ndarray]:
    """What an episode holds, by the feature that LeRobot should have; the same in both worlds."""
    rng = np.random.default_rng(number)
    states = steps + 1
    found = {
        "observation.state": rng.normal(size=(states, 5)).astype(np.float32),
        "observation.achieved_goal": rng.normal(size=(states, 3)).astype(np.float32),
        "observation.effort": rng.normal(size=(states, 7)),
        "action": rng.uniform(-1, 1, (steps, 4)).astype(np.float32),
        "requested_action": rng.uniform(-1, 1, (steps, 4)).astype(np.float32),
        "next.reward": rng.normal(size=steps).astype(np.float32),
        "next.terminated": np.arange(steps) == steps - 1,
        "next.truncated": np.zeros(steps, bool),
        "next.success": rng.random(steps) < 0.5,
        "is_intervention": rng.random(steps) < 0.5,
        "stamp_s": 1.7e9 + np.arange(states) / FPS + rng.uniform(0, 0.01, states),
        "force.torque": rng.normal(size=(states, 2, 3)).astype(np.float32),
        "count": rng.integers(-9, 9, steps),
        "small": rng.integers(0, 255, (steps, 3)).astype(np.uint8),
    }
    for name, shape in CAMERAS.items():
        found[name] = rng.integers(0, 256, (states, *shape)).astype(np.uint8)
    return found


def smooth(number: int, steps: int) -> np.ndarray:
    """Frames (steps, 64, 96, 3) that a video keeps nearly as they are."""
    y, x = np.mgrid[0:64, 0:96]
    return np.stack([np.stack([2 * x + t, 3 * y, 40 * number + 8 * t + 0 * x], -1)
                     for t in range(steps)]).clip(0, 255).astype(np.uint8)


# -- with this project's packages ---------------------------------------------------------------


@dataclass
class Log:
    """Episodes in memory as a log."""

    info: Any
    episodes: list[Any]

    def __len__(self) -> int:
        return len(self.episodes)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.episodes)

    def read(self, which: int, *, images: bool = True) -> Any:
        return self.episodes[which]


def make_log() -> Log:
    """The sample, as this project has it."""
    from robot_rl.data.episodes import DatasetInfo, Episode, Images

    episodes = []
    for number, steps in enumerate(LENGTHS):
        a = arrays(number, steps)
        episodes.append(Episode(
            a["observation.state"], a["observation.achieved_goal"],
            np.full(3, number, np.float32), a["action"], a["next.reward"], a["next.terminated"],
            a["next.truncated"], a["next.success"], requested=a["requested_action"],
            intervention=a["is_intervention"], stamp_s=a["stamp_s"],
            images={name: Images.each(a[name]) for name in CAMERAS},
            extra={name: a[name] for name in ("observation.effort", "force.torque", "count",
                                              "small")},
            metadata={"instruction": f"task {number % 2}"}))
    return Log(DatasetInfo.of(episodes[0], task="sample", rate_hz=FPS, robot="panda"), episodes)


def export_all(folder: Path) -> None:
    """Write the sample twice, with frames as PNG and as video."""
    from robot_rl.data.exporters.lerobot import export

    log = make_log()
    for name, video in (("png", False), ("video", True)):
        done = export(log, folder / name, quiet=True, video=video)
        print(f"exported {done['episodes']} episodes of {done['steps']} steps, {name}")


def import_all(folder: Path) -> None:
    """Import what lerobot recorded, and what was exported."""
    from robot_rl.data.importers.base import ImportOptions
    from robot_rl.data.importers.lerobot import open_source

    for original, copy in zip(make_log(), open_source(folder / "png", ImportOptions()),
                              strict=True):
        for name in ("observation", "action", "reward", "stamp_s", "requested"):
            same(getattr(original, name), getattr(copy, name), name)
        for name in CAMERAS:
            same(original.images[name].frames, copy.images[name].frames, name)
    for kind in ("image", "video"):
        source = open_source(folder / f"recorded_{kind}", ImportOptions())
        episodes = list(source)
        assert len(episodes) == len(RECORDED), len(episodes)
        for number, (steps, episode) in enumerate(zip(RECORDED, episodes, strict=True)):
            a = arrays(number, steps)
            # Done without success was a time limit, after which the last state is not known.
            kept = steps if a["next.success"][-1] else steps - 1
            assert len(episode) == kept and episode.terminated[-1] == (kept == steps)
            same(episode.action, a["action"][:kept], "action")
            same(episode.observation[:steps], a["observation.state"][:steps], "state")
            same(episode.success, a["next.success"][:kept], "success")
            force = a["force.torque"][:steps].reshape(steps, 6)
            same(episode.extra["force"][:steps], force, "force")
            assert episode.metadata["instruction"] == f"task {number % 2}", episode.metadata
            frames = episode.images["front"].frames[:steps].astype(float)
            error = np.abs(frames - smooth(number, steps)).mean()
            assert error <= (0 if kind == "image" else VIDEO_ERROR), error
        print(f"imported what lerobot recorded, {kind}: equal; {'; '.join(source.notes)}")


# -- with lerobot's packages --------------------------------------------------------------------


def load_all(folder: Path) -> None:
    """Load both exports with LeRobotDataset and compare every value."""
    import lerobot
    import torch
    from lerobot.datasets.lerobot_dataset import LeRobotDataset
    from torch.utils.data import DataLoader

    print(f"lerobot {lerobot.__version__}, torch {torch.__version__}")
    for name in ("png", "video"):
        data = LeRobotDataset("local/sample", root=folder / name, video_backend="pyav")
        assert (len(data), data.num_episodes, data.fps) == (sum(LENGTHS), len(LENGTHS), FPS)
        row = compared = 0
        for number, steps in enumerate(LENGTHS):
            expected = arrays(number, steps)
            for t in range(steps):
                compared += compare(data[row], expected, number, t, exact=name == "png")
                row += 1
        # Frames come as float32; the table behind them has every digit.
        table = data.hf_dataset.with_format("arrow")[:]
        for key in ("stamp_s", "observation.effort"):
            column = table[key].combine_chunks()
            column = column.flatten() if hasattr(column, "flatten") else column
            same(column.to_numpy(zero_copy_only=False), np.concatenate(
                [arrays(i, n)[key][:n].ravel() for i, n in enumerate(LENGTHS)]), key)
        batch = next(iter(DataLoader(data, batch_size=8)))
        assert batch["action"].shape == (8, 4)
        chunk = LeRobotDataset("local/sample", root=folder / name, video_backend="pyav",
                               delta_timestamps={"action": [0.0, 1 / FPS, 2 / FPS]})[0]["action"]
        same(chunk.numpy(), arrays(0, LENGTHS[0])["action"][:3], "chunk of actions")
        states = np.concatenate([arrays(i, n)["observation.state"][:n]
                                 for i, n in enumerate(LENGTHS)]).astype(np.float64)
        found = data.meta.stats["observation.state"]
        for part, value in (("min", states.min(0)), ("max", states.max(0)),
                            ("mean", states.mean(0)), ("std", states.std(0))):
            assert np.allclose(found[part], value, rtol=1e-9, atol=1e-12), part
        print(f"lerobot loads the {name} export: {row} frames, {compared} values compared")


def compare(item: dict[str, Any], expected: dict[str, Any], number: int, t: int,
            *, exact: bool) -> int:
    """Compare a frame with what was exported; the number of values."""
    compared = 0
    for key, value in expected.items():
        if key in CAMERAS:
            found = item[f"observation.images.{key}"].numpy().transpose(1, 2, 0)
            # Noise does not survive a video; its shape does.
            if exact:
                same(np.rint(found * 255).astype(np.uint8), value[t], key)
            assert found.shape[:2] == value[t].shape[:2], found.shape
        else:
            found = item[key].numpy()
            # lerobot makes a number of Python's of a lone value, and float32 of that.
            if value[t].ndim == 0 or key == "observation.effort":
                same(found, value[t].astype(found.dtype), key)
            else:
                same(found.astype(value.dtype), value[t], key)
        compared += value[t].size
    assert item["task"] == f"task {number % 2}", item["task"]
    assert item["episode_index"].item() == number and item["frame_index"].item() == t
    assert bool(item["next.done"]) == bool(expected["next.terminated"][t])
    same(item["observation.desired_goal"].numpy(), np.full(3, number, np.float32), "goal")
    return compared


def record_all(folder: Path) -> None:
    """Record datasets with lerobot itself, with images and with videos."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    for kind in ("image", "video"):
        features: dict[str, Any] = {
            "observation.state": {"dtype": "float32", "shape": (5,), "names": None},
            "action": {"dtype": "float32", "shape": (4,), "names": None},
            "next.success": {"dtype": "bool", "shape": (1,), "names": None},
            "next.done": {"dtype": "bool", "shape": (1,), "names": None},
            "force": {"dtype": "float32", "shape": (6,), "names": None},
            "observation.images.front": {"dtype": kind, "shape": (64, 96, 3),
                                         "names": ["height", "width", "channels"]}}
        data = LeRobotDataset.create("local/recorded", FPS, features, folder / f"recorded_{kind}",
                                     use_videos=kind == "video", vcodec="h264")
        for number, steps in enumerate(RECORDED):
            a, frames = arrays(number, steps), smooth(number, steps)
            for t in range(steps):
                data.add_frame({
                    "observation.state": a["observation.state"][t], "action": a["action"][t],
                    "next.success": a["next.success"][t:t + 1],
                    "next.done": np.array([t == steps - 1]), "force": a["force.torque"][t].ravel(),
                    "observation.images.front": frames[t], "task": f"task {number % 2}"})
            data.save_episode()
        data.finalize()
        print(f"lerobot recorded {data.num_episodes} episodes, {kind}")


def same(one: np.ndarray, two: np.ndarray, name: str) -> None:
    """Fail unless two arrays are of one type and equal."""
    assert one.dtype == two.dtype and np.array_equal(one, two), (name, one.dtype, two.dtype)


if __name__ == "__main__":
    steps = {"export": export_all, "load": load_all, "record": record_all, "import": import_all}
    steps[sys.argv[1]](Path(sys.argv[2]))
