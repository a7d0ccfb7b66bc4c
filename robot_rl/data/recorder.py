"""Records an environment's episodes, step by step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robot_rl.data.episodes import (
    ACHIEVED,
    ACTION,
    DESIRED,
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
    Episode,
    Images,
)
from robot_rl.data.recording import LiveEpisode

GOAL_CAMERA = "goal."


class EpisodeRecorder:
    """Gathers one episode from an environment.

    What ``reset`` and ``step`` return is kept in memory and, where ``live`` is given, handed to
    the log at once. The environment's ``info`` may say more than the observation:
    ``executed_action`` (needed), ``is_success`` (needed), ``state`` (o,) and ``achieved_state``,
    ``desired_state`` (g,) beside images, ``stamp_s`` and ``stamps_s`` by key, ``is_intervention``,
    ``is_reset``.

    Args:
        live: the episode in the log that is written as it happens.
        cameras: names of the cameras whose images an image observation stacks along its channels.
    """

    def __init__(self, live: LiveEpisode | None = None, cameras: Sequence[str] = ()) -> None:
        self._live, self._cameras = live, tuple(cameras)
        self._states: dict[str, list[Any]] = {}
        self._steps: dict[str, list[Any]] = {}
        self._frames: dict[str, list[NDArray[np.uint8]]] = {}
        self._frame_stamps: dict[str, list[float]] = {}
        self._desired: NDArray[np.float32] = np.zeros(0, np.float32)
        self._last_stamp_s = 0.0

    def start(self, observation: dict[str, NDArray[Any]], info: dict[str, Any]) -> None:
        """Begin with what ``reset`` returned."""
        self._states, self._steps, self._frames, self._frame_stamps = {}, {}, {}, {}
        self._desired = np.asarray(
            info.get("desired_state", observation["desired_goal"]), dtype=np.float32
        )
        if observation["desired_goal"].ndim == 3:
            for name, image in self._split(observation["desired_goal"]):
                self._see(f"{GOAL_CAMERA}{name}", image, 0.0)
        self._last_stamp_s = float(info.get("stamp_s", 0.0))
        states = self._state(observation, info)
        self._keep(self._states, states)
        if self._live is not None:
            self._live.start(states)

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
        states = self._state(observation, info)
        step = {
            ACTION: np.asarray(info["executed_action"], dtype=np.float32),
            REQUESTED: np.asarray(action, dtype=np.float32),
            REWARD: np.float32(reward),
            TERMINATED: np.bool_(terminated),
            TRUNCATED: np.bool_(truncated),
            SUCCESS: np.bool_(info["is_success"]),
            INTERVENTION: np.bool_(info.get("is_intervention", False)),
            RESET: np.bool_(info.get("is_reset", False)),
        }
        if "stamp_s" in info:
            took_s = info["stamp_s"] - self._last_stamp_s
            step[RATE] = np.float32(1.0 / took_s if took_s > 0.0 else 0.0)
            self._last_stamp_s = info["stamp_s"]
        self._keep(self._states, states)
        self._keep(self._steps, step)
        if self._live is not None:
            self._live.step(states, step)

    def finish(self) -> Episode:
        """The episode so far."""
        states = {key: np.stack(rows) for key, rows in self._states.items()}
        steps = {key: np.stack(rows) for key, rows in self._steps.items()}
        prefix = f"{TIMESTAMP}."
        return Episode(
            observation=states[OBSERVATION],
            achieved=states[ACHIEVED],
            desired=self._desired.copy(),
            action=steps[ACTION],
            requested=steps[REQUESTED],
            reward=steps[REWARD],
            terminated=steps[TERMINATED],
            truncated=steps[TRUNCATED],
            success=steps[SUCCESS],
            intervention=steps[INTERVENTION],
            reset=steps[RESET],
            rate_hz=steps.get(RATE),
            stamp_s=states.get(TIMESTAMP),
            stamps_s={k.removeprefix(prefix): v for k, v in states.items() if k.startswith(prefix)},
            images={
                name: Images(np.stack(frames), states[f"{IMAGES}{name}"],
                             np.array(self._frame_stamps[name]))
                for name, frames in self._frames.items()
            },
        )

    def _state(
        self, observation: dict[str, NDArray[Any]], info: dict[str, Any]
    ) -> dict[str, Any]:
        seen = observation["observation"]
        stamps: dict[str, float] = dict(info.get("stamps_s", {}))
        row: dict[str, Any] = {}
        if seen.ndim == 3:
            for name, image in self._split(seen):
                at_s = stamps.get(f"{IMAGES}{name}", float(info.get("stamp_s", 0.0)))
                row[f"{IMAGES}{name}"] = np.int64(self._see(name, image, at_s))
            for name in self._frames:
                row.setdefault(f"{IMAGES}{name}", np.int64(0))
            seen = info.get("state", np.zeros(0, np.float32))
        # With image observations the goals' states travel in info; images are stored once.
        achieved = info.get("achieved_state", observation["achieved_goal"])
        row[OBSERVATION] = np.array(seen, dtype=np.float32)
        row[ACHIEVED] = np.array(achieved, dtype=np.float32)
        row[DESIRED] = self._desired
        if "stamp_s" in info:
            row[TIMESTAMP] = np.float64(info["stamp_s"])
            row |= {f"{TIMESTAMP}.{key}": np.float64(at_s) for key, at_s in stamps.items()}
        return row

    def _split(self, stacked: NDArray[np.uint8]) -> list[tuple[str, NDArray[np.uint8]]]:
        count = stacked.shape[2] // 3
        names = self._cameras or tuple(f"camera{i}" for i in range(count))
        return [(name, stacked[..., 3 * i : 3 * i + 3]) for i, name in enumerate(names)]

    def _see(self, camera: str, image: NDArray[np.uint8], stamp_s: float) -> int:
        frames = self._frames.setdefault(camera, [])
        stamps = self._frame_stamps.setdefault(camera, [])
        # A camera slower than the control loop shows the same frame again.
        if frames and stamp_s and stamps[-1] == stamp_s:
            return len(frames) - 1
        frames.append(np.ascontiguousarray(image))
        stamps.append(stamp_s)
        if self._live is not None:
            self._live.frame(camera, frames[-1], stamp_s)
        return len(frames) - 1

    @staticmethod
    def _keep(rows: dict[str, list[Any]], row: dict[str, Any]) -> None:
        for key, value in row.items():
            rows.setdefault(key, []).append(value)
