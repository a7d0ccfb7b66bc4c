"""Where demonstrations go: accepted ones into a dataset, the others into one beside them."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from robot_rl.data import DatasetInfo, DatasetWriter, EpisodeRecorder, RecordingOptions
from robot_rl.data.apart import REJECTED, VERDICT
from robot_rl.data.log import EPISODES, LOCK, read_info
from robot_rl.data.recording import LiveEpisode
from robot_rl.envs.robot_env import RobotEnv
from robot_rl.errors import InvalidInputError, StorageError

# A step that took so much longer than its period was late.
_LATE = 1.5


class Take:
    """One episode while it is recorded: live among the accepted ones, moved if it is not.

    Attributes:
        steps, interventions: so far, and those of them in which the operator acted.
        late_steps, latest_s: those that took too long, and by how much the worst did [s].
        success: of the last step.
    """

    def __init__(self, writer: DatasetWriter, world: RobotEnv, more: dict[str, Any]) -> None:
        self._writer, self._world = writer, world
        self._metadata: dict[str, Any] = {**world.beginning(), "demonstration": more}
        self._live: LiveEpisode | None = None
        self._recorder: EpisodeRecorder | None = None
        self.steps = self.interventions = self.late_steps = 0
        self.latest_s, self.success = 0.0, False
        self._stamp_s: float | None = None

    @property
    def begun(self) -> bool:
        return self._recorder is not None

    def start(self, observation: dict[str, NDArray[Any]], info: dict[str, Any]) -> None:
        self._live = self._writer.begin(self._metadata)
        self._recorder = EpisodeRecorder(self._live, self._world.camera_names)
        stamps = self._world.stamps()
        self._stamp_s = stamps["stamp_s"]
        self._recorder.start(observation, {**info, **stamps})

    def add(
        self,
        action: NDArray[Any],
        observation: dict[str, NDArray[Any]],
        reward: float,
        terminated: bool,
        truncated: bool,
        info: dict[str, Any],
    ) -> None:
        assert self._recorder is not None
        stamps = self._world.stamps()
        self._recorder.add(action, observation, reward, terminated, truncated, {**info, **stamps})
        took_s = stamps["stamp_s"] - (self._stamp_s or 0.0)
        self._stamp_s = stamps["stamp_s"]
        self.late_steps += took_s > _LATE * self._world.period_s
        self.latest_s = max(self.latest_s, took_s - self._world.period_s)
        self.steps += 1
        self.interventions += bool(info["is_intervention"])
        self.success = bool(info["is_success"])

    def commit(self) -> None:
        assert self._live is not None
        self._live.commit()

    def set_apart(self, writer: DatasetWriter, verdict: str, why: str) -> None:
        """Keep it with the rejected ones; only then is it gone from the others."""
        assert self._recorder is not None and self._live is not None
        episode = self._recorder.finish()
        episode.metadata = {**self._metadata, VERDICT: verdict, "reason": why}
        writer.append(episode)
        self._live.discard()

    def discard(self) -> None:
        if self._live is not None:
            self._live.discard()

    def abandon(self) -> None:
        if self._live is not None:
            self._live.abandon()


class Folders:
    """The dataset of accepted episodes, and that of the others as soon as there is one."""

    def __init__(
        self, path: Path, info: DatasetInfo, options: RecordingOptions, append: bool,
        overwrite: bool,
    ) -> None:
        self._options, self._info = options, info
        self._made, self._there = not append, path.exists()
        if append:
            _check_same(path, info)
            self.accepted = DatasetWriter.extend(path, options=options)
        else:
            self.accepted = DatasetWriter(path, info, overwrite=overwrite, options=options)
        self._path = self.accepted.path / REJECTED
        self._rejected: DatasetWriter | None = None
        try:
            if (self._path / "dataset.json").is_file():
                self.rejected()
        except BaseException:
            self.accepted.close()
            raise
        # Goals of a recording that is gone on with differ from those before.
        self.known = self.accepted.count + (self._rejected.count if self._rejected else 0)

    def rejected(self) -> DatasetWriter:
        """Where rejected and aborted episodes go."""
        if self._rejected is None:
            if (self._path / "dataset.json").is_file():
                self._rejected = DatasetWriter.extend(self._path, options=self._options)
            else:
                self._rejected = DatasetWriter(self._path, self._info, options=self._options)
        return self._rejected

    @property
    def rejected_path(self) -> str | None:
        return str(self._path) if self._rejected is not None else None

    def __enter__(self) -> Folders:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: object
    ) -> None:
        try:
            if self._rejected is not None:
                self._rejected.close()
        finally:
            self.accepted.close()
            unusable = isinstance(error, InvalidInputError) and not isinstance(error, StorageError)
            if error is None or unusable:
                self._unmake()

    def _unmake(self) -> None:
        """What could not even begin leaves no folder behind."""
        path = self.accepted.path
        if not self._made or self.accepted.count or self._rejected is not None:
            return
        if {entry.name for entry in path.iterdir()} - {EPISODES, "dataset.json", LOCK}:
            return
        with contextlib.suppress(OSError):
            (path / EPISODES).rmdir()
            for name in ("dataset.json", LOCK):
                (path / name).unlink(missing_ok=True)
            if not self._there:
                path.rmdir()


def _check_same(path: Path, info: DatasetInfo) -> None:
    """Raise InvalidInputError unless episodes of ``info`` fit the dataset in ``path``."""
    known = read_info(path)
    for name in ("task", "robot", "observation_shape", "goal_dim", "action_dim", "rate_hz",
                 "cameras"):
        there, now = getattr(known, name), getattr(info, name)
        if there != now:
            raise InvalidInputError(
                f"dataset: {path} has {name} {there!r}, this recording {now!r}; record into "
                "another folder"
            )
