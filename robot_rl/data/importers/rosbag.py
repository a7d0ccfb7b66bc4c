"""ROS bags as a source of episodes: rosbag2 (MCAP, SQLite) and rosbag1, through a mapping.

One pass reads the numbers of the mapped topics; frames are then fetched by their place, those of
one episode at a time and only those that a tick uses.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from robot_rl.data.episodes import DatasetInfo, Episode
from robot_rl.data.importers import resample
from robot_rl.data.importers.actions import ActionRange
from robot_rl.data.importers.assemble import STEPS_CUT, Builder
from robot_rl.data.importers.bagfiles import Bag
from robot_rl.data.importers.base import ImportOptions
from robot_rl.data.importers.frames import UnreadableError
from robot_rl.data.importers.lateness import first_complete, moments
from robot_rl.data.importers.lateness import states as states_of
from robot_rl.data.importers.mapping import Mapping, Signal, parse_mapping
from robot_rl.data.importers.messages import Types
from robot_rl.data.importers.progress import beat
from robot_rl.data.importers.resample import Span, Stamps
from robot_rl.data.importers.signals import Recorded, collect, find_topics
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
        self.action_range = ActionRange()

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
            ticks = np.unique(stamps[first:last])
            if len(ticks) < 2:
                return ticks
            start = self._start(span, ticks, int(np.median(np.diff(ticks))))
            return ticks[:0] if start is None else ticks[ticks >= start]
        start = self._start(span, moments(self.mapping, self.recorded, span),
                            round(1e9 / self.rate_hz))
        if start is None:
            return np.zeros(0, np.int64)
        states = [self.recorded.series[s].stamps for _, s in states_of(self.mapping)
                  if isinstance(s, Signal)]
        lasts = [int(stamps[-1]) for stamps in states if len(stamps) > 2]
        tracks = [t.stamps for t in self.recorded.tracks.values()]
        lasts = lasts or [int(stamps[-1]) for stamps in tracks]
        end = min([span[1], *lasts])
        self._check_length(start, end, [*tracks, *states])
        return resample.make_ticks(start, end, self.rate_hz)

    def _start(self, span: Span, candidates: Stamps, period_ns: int) -> int | None:
        """When the episode begins; None where it cannot.

        Raises:
            InvalidInputError: it cannot, for want of a topic that may not be missing.
        """
        start = first_complete(self.mapping, self.recorded, candidates, period_ns)
        names = list(dict.fromkeys(what.topic for what in start.topics))
        if start.at_ns is not None:
            for name in names:
                self.tally(name, "episodes began late, waiting for it")
            return start.at_ns
        for what in start.topics:
            if (what.on_missing or self.mapping.on_missing) == "error":
                raise InvalidInputError(
                    f"{self.path}: {what.topic} has no message that is recent enough in the "
                    f"episode from {span[0] / 1e9:.3f} s to {span[1] / 1e9:.3f} s"
                )
        self.tally("episodes", f"left out, without recent messages of {', '.join(names)}")
        self.skipped += 1
        return None

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

    def _episodes(self) -> Iterator[Episode]:
        for before, span in zip([None, *self.spans], self.spans, strict=False):
            beat()
            yield from self._of_span(span, None if before is None else before[1])

    def _of_span(self, span: Span, before_ns: int | None) -> Iterator[Episode]:
        """The episodes of a span, tried again as long as frames turn out to be unreadable."""
        opened = None
        while opened is None:
            counts, skipped = copy.deepcopy(self._counts), self.skipped
            try:
                opened = self._opened(span, before_ns)
                if opened is None:
                    return
            except UnreadableError as error:
                track = self.recorded.tracks[error.camera.name]
                track.give_up(error.numbers, error.reason)
                self._counts, self.skipped = counts, skipped
        first, builder, pieces = opened
        for number, piece in enumerate(pieces):
            episode = first if number == 0 else _built(builder, piece)
            if len(episode) < self.mapping.episodes.min_steps:
                self._too_short()
            else:
                self._check_shapes(episode)
                self.action_range.add(episode.action)
                yield episode
            if self.mapping.terminate_on_success and episode.terminated[-1]:
                left = sum(end - begin for begin, end in pieces[number + 1 :])
                self.tally("episodes", STEPS_CUT, left)
                return

    def _opened(self, span: Span, before_ns: int | None) -> (
        tuple[Episode, Builder, list[Span]] | None
    ):
        """The episode of the first piece of a span, the builder of the others, and the pieces;
        None without any. After this no frame turns out to be unreadable."""
        skipped = self.skipped
        ticks = self._ticks(span)
        if len(ticks) < 2:
            if self.skipped == skipped:
                self._too_short()
            return None
        builder = Builder(self, ticks, span, before_ns)
        pieces = []
        for piece in builder.pieces():
            if piece[1] - piece[0] < self.mapping.episodes.min_steps:
                self._too_short()
            else:
                pieces.append(piece)
        if not pieces:
            return None
        if len(pieces) > 1:
            builder.check_frames(pieces)
        return _built(builder, pieces[0]), builder, pieces

    def _too_short(self) -> None:
        self.skipped += 1
        self.tally("episodes", "too short")

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
        found = [f"{what}: " + ", ".join(f"{by} {kind}" for kind, by in counts.items())
                 for what, counts in self._counts.items()]
        for track in self.recorded.tracks.values():
            if len(track.unreadable):
                policy = track.camera.on_missing or self.mapping.on_missing
                found.append(f"{track.camera.topic}: {len(track.unreadable)} unreadable frames, "
                             f"taken as missing ({policy}); the first: {track.reason}")
        return found + self.action_range.notes(self.mapping)


def _built(builder: Builder, piece: Span) -> Episode:
    with np.errstate(over="ignore", invalid="ignore"):  # judged by the episode's own check
        return builder.build(*piece)
