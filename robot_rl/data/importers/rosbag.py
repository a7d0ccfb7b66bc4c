"""ROS bags as a source of episodes: rosbag2 (MCAP, SQLite) and rosbag1, through a mapping.

One pass reads the numbers of the mapped topics; frames are then fetched by their place, those of
one episode at a time and only those that a tick uses.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from robot_rl.data.episodes import DatasetInfo, Episode
from robot_rl.data.importers import resample
from robot_rl.data.importers.assemble import Builder
from robot_rl.data.importers.bagfiles import Bag
from robot_rl.data.importers.base import ImportOptions
from robot_rl.data.importers.mapping import Mapping, parse_mapping
from robot_rl.data.importers.messages import Types
from robot_rl.data.importers.progress import beat
from robot_rl.data.importers.resample import Span, Stamps
from robot_rl.data.importers.signals import Recorded, Series, collect, find_topics
from robot_rl.data.importers.spans import find_spans
from robot_rl.errors import InvalidInputError

_MOST_TICKS_PER_MESSAGE = 20


def open_source(source: Path, options: ImportOptions) -> BagSource:
    """Open a bag: a rosbag2 folder, an .mcap, a .db3 or a .bag.

    Raises:
        InvalidInputError: it is missing, damaged or hostile, or the mapping does not fit it.
        MissingDependencyError: rosbags is not installed.
    """
    return BagSource(Path(source), options)


class BagSource:
    """Episodes of one bag; see :class:`robot_rl.data.importers.base.EpisodeSource`.

    Attributes:
        skipped: episodes that were left out so far.
    """

    def __init__(self, path: Path, options: ImportOptions) -> None:
        if not options.mapping:
            raise InvalidInputError(
                f"{path}: a bag needs a mapping of topics to keys: give --map MAP.yaml (see "
                "docs/data_mapping.md)"
            )
        self.path = path
        self.mapping: Mapping = parse_mapping(options.mapping)
        # Asking for the rate that it has anyway is no wish to resample.
        self.by_ticks = self.mapping.ticks is not None and options.rate_hz in (
            0.0, self.mapping.rate_hz
        )
        self.rate_hz = options.rate_hz or self.mapping.rate_hz
        if not self.by_ticks and not self.rate_hz:
            raise InvalidInputError("a bag needs a control rate: give --rate, or rate_hz or ticks "
                                    "in the mapping")
        self.bag = Bag(path)
        try:
            self.types = Types(find_topics(self.bag, self.mapping), self.bag.ros1)
            self.recorded: Recorded = collect(self.bag, self.mapping, self.types)
            self._check_messages()
            self.spans: list[Span] = find_spans(self.mapping, self.recorded)
            self._start_over()
            first = next(self._episodes(), None)
            if first is None:
                raise InvalidInputError(
                    f"{path}: no episode of at least {self.mapping.episodes.min_steps} steps was "
                    f"found in {len(self.spans)} spans; " + "; ".join(self._summary())
                )
            self.info = self._info(options, first)
        except BaseException:
            self.close()
            raise
        self.count: int | None = None
        self.notes: list[str] = list(self.recorded.notes)

    def __iter__(self) -> Iterator[Episode]:
        self._start_over()
        yield from self._episodes()
        self.notes = [*self.bag.notes, *self.recorded.notes, *self._summary()]

    def close(self) -> None:
        """Close the bag."""
        self.bag.close()

    # -- the parts --------------------------------------------------------------------------

    def _start_over(self) -> None:
        self.skipped = 0
        self._counts: dict[str, dict[str, int]] = {}
        self._first_shapes: dict[str, tuple[int, ...]] = {}

    def _info(self, options: ImportOptions, first: Episode) -> DatasetInfo:
        mapping = self.mapping
        given = dict(mapping.dataset)
        config = {**given.pop("config", {}), "source": str(self.path), "mapping": options.mapping}
        if mapping.goal is not None and mapping.goal.threshold:
            config["goal_threshold"] = mapping.goal.threshold
        return DatasetInfo.of(
            first, task=options.task or mapping.task, config=config, rate_hz=self.rate_hz, **given
        )

    def _check_messages(self) -> None:
        needed = [*self.mapping.state, *self.mapping.action.parts]
        if self.by_ticks and self.mapping.ticks is not None:
            needed.append(self.mapping.ticks)
        for signal in needed:
            if not len(self.recorded.series[signal].stamps):
                raise InvalidInputError(
                    f"{signal.where}: {signal.topic} has no messages in {self.path}"
                )
            if self.recorded.series[signal].is_text:
                raise InvalidInputError(f"{signal.where}: {signal.topic} holds texts, not numbers")
        for camera in self.mapping.cameras:
            if not len(self.recorded.tracks[camera.name].stamps):
                raise InvalidInputError(
                    f"{camera.where}: {camera.topic} has no messages in {self.path}"
                )

    def _ticks(self, span: Span) -> Stamps:
        if self.by_ticks:
            assert self.mapping.ticks is not None
            stamps = self.recorded.series[self.mapping.ticks].stamps
            first, last = np.searchsorted(stamps, np.array([span[0], span[1] + 1]))
            return np.unique(stamps[first:last])
        # Nothing can be decided before everything was seen once.
        firsts = [int(s.stamps[0]) for s in self._state_series()]
        lasts = [int(s.stamps[-1]) for s in self._state_series() if len(s.stamps) > 2]
        tracks = [t.stamps for t in self.recorded.tracks.values()]
        firsts += [int(stamps[0]) for stamps in tracks]
        lasts = lasts or [int(stamps[-1]) for stamps in tracks]
        start, end = max([span[0], *firsts]), min([span[1], *lasts])
        if self.mapping.align is not None:
            pace = self.recorded.series[self.mapping.align].stamps
            after = pace[np.searchsorted(pace, start) :]
            start = int(after[0]) if len(after) else start
        self._check_length(start, end, [*tracks, *(s.stamps for s in self._state_series())])
        return resample.make_ticks(start, end, self.rate_hz)

    def _check_length(self, start: int, end: int, seen: list[Stamps]) -> None:
        """One false stamp must not become hours of an episode in which nothing happens."""
        ends = np.array([start, end])
        count = sum(int(np.diff(np.searchsorted(stamps, ends))[0]) for stamps in seen)
        ticks = (end - start) / 1e9 * self.rate_hz
        if ticks > 1000 + _MOST_TICKS_PER_MESSAGE * count:
            raise InvalidInputError(
                f"{self.path}: an episode from {start / 1e9:.3f} s to {end / 1e9:.3f} s would have "
                f"{ticks:.0f} ticks, but has {count} messages; are all stamps of one clock? "
                "(episodes: gap_s splits at silences, clock: received ignores headers)"
            )

    def _state_series(self) -> list[Series]:
        mapping = self.mapping
        parts = list(mapping.state)
        if mapping.goal is not None:
            parts += mapping.goal.achieved
        parts += [s for rows, signals in mapping.extra.values() if rows == "states"
                  for s in signals]
        return [self.recorded.series[s] for s in parts if len(self.recorded.series[s].stamps)]

    def _episodes(self) -> Iterator[Episode]:
        for span in self.spans:
            beat()
            ticks = self._ticks(span)
            if len(ticks) < 2:
                self.skipped += 1
                self.tally("episodes", "too short")
                continue
            builder = Builder(self, ticks, span)
            for first, last in builder.pieces():
                if last - first < self.mapping.episodes.min_steps:
                    self.skipped += 1
                    self.tally("episodes", "too short")
                    continue
                with np.errstate(over="ignore", invalid="ignore"):  # judged below
                    episode = builder.build(first, last)
                self._check_shapes(episode)
                yield episode

    def _check_shapes(self, episode: Episode) -> None:
        for name, images in episode.images.items():
            shape = self._first_shapes.setdefault(name, images.frames.shape[1:])
            if images.frames.shape[1:] != shape:
                raise InvalidInputError(f"images.{name}: frames are {shape} at first and "
                                        f"{images.frames.shape[1:]} later; give a size:")
        episode.check(f"{self.path}")

    def tally(self, what: str, kind: str, by: int = 1) -> None:
        """Count something that the notes will tell."""
        if by:
            counts = self._counts.setdefault(what, {})
            counts[kind] = counts.get(kind, 0) + by

    def _summary(self) -> list[str]:
        return [f"{what}: " + ", ".join(f"{by} {kind}" for kind, by in counts.items())
                for what, counts in self._counts.items()]
