"""Puts the episodes of one span of a bag together: what each tick sees, and what each step did."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from robot_rl.data.episodes import OBSERVATION, Episode, Images
from robot_rl.data.importers import lateness, resample
from robot_rl.data.importers.bagfiles import Bag
from robot_rl.data.importers.frames import FrameReader
from robot_rl.data.importers.mapping import Action, Camera, Mapping, Signal
from robot_rl.data.importers.messages import Types
from robot_rl.data.importers.recorded import apply_record, read_metadata, take_record
from robot_rl.data.importers.resample import Span, Stamps
from robot_rl.data.importers.signals import Recorded, Series, Track
from robot_rl.errors import InvalidInputError


class Source(Protocol):
    """What assembling needs of an open bag; ``tally`` counts what the notes will tell."""

    path: Path
    mapping: Mapping
    recorded: Recorded
    types: Types
    bag: Bag
    by_ticks: bool
    rate_hz: float
    skipped: int

    def tally(self, what: str, kind: str, by: int = 1) -> None: ...


STEPS_CUT = "steps left out that came after an end (terminated)"


@dataclass
class _Look:
    """What one topic shows at each tick (or in each step): the message, whether it is late, its
    policy, and where it is no message to begin an episode with."""

    label: str
    key: str
    index: Stamps
    late: NDArray[np.bool_]
    policy: str
    stamps: Stamps
    blocked: NDArray[np.bool_]

    @property
    def held(self) -> NDArray[np.bool_]:
        same = np.zeros(len(self.index), np.bool_)
        same[1:] = self.index[1:] == self.index[:-1]
        return same


class Builder:
    """The episodes of one span of a bag; the span before it ended at ``before_ns``."""

    def __init__(self, source: Source, ticks: Stamps, span: Span, before_ns: int | None) -> None:
        self.source, self.mapping, self.span = source, source.mapping, span
        self.before_ns = before_ns
        self.recorded = source.recorded
        self.frames = FrameReader(source.bag, source.types)
        self.record = take_record(self.recorded, span) if self.mapping.episodes.record else None
        looks = self._state_looks(ticks)
        steps = self._step_looks(ticks)
        start = self._begin(ticks, [*looks.values(), *steps.values()])
        self.ticks = ticks[start:]
        self.states = {k: _cut(look, start) for k, look in looks.items()}
        self.steps = {k: _cut(look, start) for k, look in steps.items()}

    def _period_ns(self, ticks: Stamps) -> int:
        if self.source.by_ticks:
            return int(np.median(np.diff(ticks)))
        return round(1e9 / self.source.rate_hz)

    def _state_looks(self, ticks: Stamps) -> dict[Signal | str, _Look]:
        looks: dict[Signal | str, _Look] = {}
        period = self._period_ns(ticks)
        for key, what in lateness.states(self.mapping):
            seen = lateness.of(self.recorded, what)
            index = resample.newest(seen.stamps, ticks)
            look = self._look(what, key, seen, index, ticks, period)
            look.blocked |= look.late
            looks[what.name if isinstance(what, Camera) else what] = look
        return looks

    def _step_looks(self, ticks: Stamps) -> dict[Signal | str, _Look]:
        mapping = self.mapping
        parts = [*mapping.action.parts]
        parts += mapping.requested.parts if mapping.requested is not None else ()
        parts += [s for rows, signals in mapping.extra.values() if rows == "steps"
                  for s in signals]
        period = self._period_ns(ticks)
        looks: dict[Signal | str, _Look] = {}
        for signal in parts:
            series = self.recorded.series[signal]
            looks[signal] = self._look(signal, "", series, _in_step(series, ticks), ticks[:-1],
                                       period)
        return looks

    def _look(
        self, what: Signal | Camera, key: str, seen: Series | Track, index: Stamps, ticks: Stamps,
        period_ns: int,
    ) -> _Look:
        limits = lateness.limits(what, seen, period_ns, self.mapping.episodes.gap_s)
        policy = what.on_missing or self.mapping.on_missing
        ages = resample.ages_s(seen.stamps, index, ticks) * 1e9
        late = (ages > limits.late_ns * (1 + 1e-9)) & (index >= 0)
        used = seen.stamps[index] if len(seen.stamps) else np.zeros_like(index)
        if isinstance(seen, Track) and len(seen.unreadable):
            # A frame came, but it is none.
            came = resample.newest(seen.unreadable, ticks)
            late |= (came >= 0) & (index >= 0) & (seen.unreadable[came] > used)
        # What the episode before was told is nothing to begin this one with.
        old = (used < self.span[0]) & (ages > limits.first_ns * (1 + 1e-9))
        return _Look(what.topic, key, index, late, policy, seen.stamps, (index < 0) | old)

    def _begin(self, ticks: Stamps, looks: list[_Look]) -> int:
        """The first tick at which everything is there; the number of ticks where there is none."""
        count = max(len(ticks) - 1, 0)
        blocked = np.zeros(count, np.bool_)
        for look in looks:
            blocked |= look.blocked[:count]
        start = int(np.argmin(blocked)) if count and not blocked.all() else len(ticks)
        waits: dict[str, int] = {}
        for look in looks:
            waiting = int(look.blocked[:start].sum())
            waits[look.label] = max(waits.get(look.label, 0), waiting)
            if start == len(ticks) and look.policy == "error" and look.blocked[:count].all():
                raise InvalidInputError(
                    f"{self.source.path}: {look.label} has no message that is recent enough in the "
                    f"episode from {ticks[0] / 1e9:.3f} s to {ticks[-1] / 1e9:.3f} s"
                )
        for label, waiting in waits.items():
            self.source.tally(label, "first ticks left out, before its first message", waiting)
        return start

    def pieces(self) -> list[Span]:
        """The steps [first, last) of each episode, after every topic's policy and up to the first
        termination."""
        count = len(self.ticks) - 1
        if count < 1:
            self.source.skipped += 1
            self.source.tally("episodes", "without any complete step")
            return []
        count = self._end(count)
        good = np.ones(count, np.bool_)
        for look in (*self.states.values(), *self.steps.values()):
            shown = len(look.late) - (len(self.ticks) - 1) + count
            look.index, look.late = look.index[:shown], look.late[:shown]
        self._count()
        for look in (*self.states.values(), *self.steps.values()):
            late = int(look.late.sum())
            if not late:
                continue
            if look.policy == "error":
                at = self.ticks[int(np.flatnonzero(look.late)[0])] / 1e9
                raise InvalidInputError(f"{self.source.path}: {look.label} is late at {at:.3f} s, "
                                        f"and {late - 1} times more")
            if look.policy == "skip_episode":
                self.source.skipped += 1
                self.source.tally("episodes", f"skipped, {look.label} was late")
                return []
            if look.policy == "drop_step":
                bad = look.late if len(look.late) == count else look.late[:-1] | look.late[1:]
                good &= ~bad
        return resample.runs(good)

    def _end(self, count: int) -> int:
        """How many of the steps lie before the end of the first that terminated."""
        mapping = self.mapping
        signal = mapping.success if mapping.terminate_on_success else mapping.terminated
        if signal is None or self._as_recorded:
            return count
        ends = self.ticks[1:].copy()
        ends[-1] = max(ends[-1], self.span[1])
        flags = self._flags(signal, self.ticks, ends)
        last = int(np.argmax(flags)) + 1 if flags.any() else count
        self.source.tally("episodes", STEPS_CUT, count - last)
        return last

    @property
    def _as_recorded(self) -> bool:
        """Whether the episode is one of ours, which its record gives back as it was."""
        return self.record is not None and self.source.by_ticks

    def _count(self) -> None:
        """Tell, by topic, how many ticks were held and late; parts of one topic count once."""
        held: dict[str, NDArray[np.bool_]] = {}
        late: dict[tuple[str, str], NDArray[np.bool_]] = {}
        for look in (*self.states.values(), *self.steps.values()):
            empty = np.zeros(len(self.ticks), np.bool_)
            many = len(look.index)
            held.setdefault(look.label, empty.copy())[:many] |= look.held
            late.setdefault((look.label, look.policy), empty)[:many] |= look.late
        for label, ticks in held.items():
            self.source.tally(label, "ticks held", int(ticks.sum()))
        for (label, policy), ticks in late.items():
            self.source.tally(label, f"ticks late ({policy})", int(ticks.sum()))

    def check_frames(self, pieces: list[Span]) -> None:
        """Raise what :meth:`build` would of frames that cannot be read."""
        for camera in self.mapping.cameras:
            track = self.recorded.tracks[camera.name]
            look = self.states[camera.name]
            for first, last in pieces:
                used = self._used(camera, slice(first, last + 1))
                self.frames.check(camera, track, used, look.policy)

    def build(self, first: int, last: int) -> Episode:
        """The episode of the steps [first, last)."""
        states, steps = slice(first, last + 1), slice(first, last)
        ticks = self.ticks[states]
        state = self._joined(self.mapping.state, self.states, states, ticks)
        achieved, desired = self._goals(state, states, ticks)
        ends = ticks[1:].copy()
        if last == len(self.ticks) - 1:
            # What is said of an episode right after its last tick still belongs to it.
            ends[-1] = max(ends[-1], self.span[1])
        success = self._flags(self.mapping.success, ticks, ends)
        reward = self._rewards(ticks, ends, achieved, desired, success)
        if self.mapping.success is None and self.mapping.goal is not None and (
            self.mapping.goal.threshold
        ):
            success = reward == 0
        terminated = self._flags(self.mapping.terminated, ticks, ends)
        if self.mapping.terminate_on_success and success.any():
            # The episode ends with its first success.
            count = int(np.argmax(success)) + 1
            if count < len(success):
                self.source.tally("episodes", STEPS_CUT, len(success) - count)
                return self.build(first, first + count)
            terminated = success.copy()
        truncated = np.zeros(last - first, np.bool_)
        truncated[-1] = not terminated[-1]
        if self.mapping.truncated is not None:
            truncated = self._flags(self.mapping.truncated, ticks, ends)
        action, requested = self._actions(state, steps)
        episode = Episode(
            observation=state.astype(np.float32),
            achieved=achieved.astype(np.float32),
            desired=desired.astype(np.float32),
            action=action, requested=requested, reward=reward.astype(np.float32),
            terminated=terminated, truncated=truncated, success=success,
            images={c.name: self._images(c, states) for c in self.mapping.cameras},
            intervention=self._step_flags(self.mapping.intervention, ticks),
            reset=self._step_flags(self.mapping.reset, ticks),
            rate_hz=self._kept_rate(ticks),
            stamp_s=ticks / 1e9,
            stamps_s=self._stamps(states),
            extra=self._extra(states, steps, ticks),
            metadata=self._metadata(first, last, ticks),
        )
        if self.record is not None and self._as_recorded:
            apply_record(episode, self.record)
        elif self.record is not None:
            # Its stamps are those of other ticks.
            episode.metadata = {**read_metadata(self.record), **episode.metadata}
        return episode

    def _joined(
        self, parts: tuple[Signal, ...], looks: dict[Signal | str, _Look], rows: slice,
        ticks: Stamps,
    ) -> NDArray[Any]:
        """The values (rows, sum of widths) of several signals."""
        if not parts:
            return np.zeros((len(ticks), 0))
        columns = []
        for signal in parts:
            series = self.recorded.series[signal]
            if signal.interpolate:
                columns.append(resample.linear(series.stamps, series.values, ticks))
            else:
                columns.append(series.values[looks[signal].index[rows]])
        return columns[0] if len(columns) == 1 else np.concatenate(columns, axis=1)

    def _goals(self, state: NDArray[Any], states: slice, ticks: Stamps) -> (
        tuple[NDArray[Any], NDArray[Any]]
    ):
        goal = self.mapping.goal
        if goal is None:
            return np.zeros((len(ticks), 0)), np.zeros(0)
        if goal.entries:
            achieved = state[:, _within(goal.entries, state.shape[1], "goal.achieved")]
        else:
            achieved = self._joined(goal.achieved, self.states, states, ticks)
        if not goal.desired:
            return achieved, achieved[-1]
        desired = np.concatenate([self._once(s, ticks) for s in goal.desired])
        if desired.shape != achieved.shape[1:]:
            raise InvalidInputError(f"goal: desired has {len(desired)} numbers, achieved has "
                                    f"{achieved.shape[1]}")
        return achieved, desired

    def _once(self, signal: Signal, ticks: Stamps) -> NDArray[Any]:
        """What an episode's one value is."""
        series = self.recorded.series[signal]
        at = self._said(series, ticks)
        if not len(series.stamps) or series.stamps[at] > self.span[1]:
            raise InvalidInputError(f"{signal.where}: {signal.topic} says nothing before the "
                                    f"end of the episode at {self.span[1] / 1e9:.3f} s")
        return np.asarray(series.values[at])

    def _said(self, series: Series, ticks: Stamps) -> int:
        """The message that an episode's one value comes from: the newest at its first tick, else
        the first after. One from an episode before, with a pause between, only where this one says
        nothing."""
        at = int(resample.newest(series.stamps, ticks[:1])[0])
        following = at + 1 < len(series.stamps) and series.stamps[at + 1] <= self.span[1]
        paused = self.before_ns is not None and self.before_ns < self.span[0] - 1
        if at >= 0 and paused and following and series.stamps[at] <= (self.before_ns or 0):
            return at + 1
        return max(at, 0)

    def _rewards(
        self, ticks: Stamps, ends: Stamps, achieved: NDArray[Any], desired: NDArray[Any],
        success: NDArray[np.bool_],
    ) -> NDArray[np.float64]:
        mapping = self.mapping
        if mapping.goal is not None and mapping.goal.threshold:
            apart = achieved[1:].astype(np.float64) - desired
            near = np.sqrt((apart * apart).sum(axis=1)) <= mapping.goal.threshold
            return np.where(near, 0.0, -1.0)
        if mapping.reward is None:
            if mapping.success is not None:
                return success.astype(np.float64) - 1.0
            self.source.tally("reward", "steps without any: 0", len(ends))
            return np.zeros(len(ends))
        series = self.recorded.series[mapping.reward]
        if series.values.shape[1] != 1 and len(series.stamps):
            raise InvalidInputError(f"reward: {mapping.reward.topic} has {series.values.shape[1]} "
                                    "values, should have one")
        values = series.values.reshape(-1)
        if mapping.reward.reduce == "sum":
            part = _part(series, ticks, ends)
            return resample.sum_within(series.stamps[part], values[part], ticks[:-1], ends)
        index, new = _results(series, ticks, ends)
        self.source.tally("reward", "steps without any: 0", int((~new).sum()))
        return _chosen(values, index, new).astype(np.float64)

    def _flags(self, signal: Signal | None, ticks: Stamps, ends: Stamps) -> NDArray[np.bool_]:
        """Results of steps, as said after their tick: nothing said before the episode counts."""
        if signal is None:
            return np.zeros(len(ends), np.bool_)
        series = self.recorded.series[signal]
        if series.event or signal.reduce in ("any", "sum"):
            part = _part(series, ticks, ends)
            count = resample.sum_within(series.stamps[part], series.flags[part], ticks[:-1], ends)
            return count > 0
        return _chosen(series.flags, *_results(series, ticks, ends))

    def _step_flags(self, signal: Signal | None, ticks: Stamps) -> NDArray[np.bool_] | None:
        if signal is None:
            return None
        series = self.recorded.series[signal]
        if series.event:
            return resample.count_within(series.stamps, ticks[:-1], ticks[1:]) > 0
        index = _in_step(series, ticks)
        return _chosen(series.flags, index, index >= 0)

    def _kept_rate(self, ticks: Stamps) -> NDArray[np.float32] | None:
        signal = self.mapping.kept_rate
        if signal is None:
            return None
        series = self.recorded.series[signal]
        index = _in_step(series, ticks)
        values = series.values[:, :1].reshape(-1)
        return _chosen(values, index, index >= 0).astype(np.float32)

    def _actions(self, state: NDArray[Any], steps: slice) -> (
        tuple[NDArray[np.float32], NDArray[np.float32] | None]
    ):
        ticks = self.ticks[steps]

        def values(action: Action) -> NDArray[np.float32]:
            if action.of:
                entries = action.entries or tuple(range(state.shape[1]))
                part = state[:, _within(entries, state.shape[1], "action")]
                raw = part[1:] - part[:-1] if action.of == "difference" else part[1:]
            else:
                raw = self._joined(action.parts, self.steps, steps, ticks)
            return self._limited(action, raw)

        mapping = self.mapping
        asked = None if mapping.requested is None else values(mapping.requested)
        return values(mapping.action), asked

    def _limited(self, action: Action, raw: NDArray[Any]) -> NDArray[np.float32]:
        if not action.low:
            return raw.astype(np.float32)
        low, high = np.array(action.low), np.array(action.high)
        if len(low) not in (1, raw.shape[1]):
            raise InvalidInputError(f"action: low has {len(low)} numbers, the action has "
                                    f"{raw.shape[1]}")
        scaled = 2.0 * (raw - low) / (high - low) - 1.0
        if action.clip:
            over = int((np.abs(scaled) > 1.0 + 1e-6).any(axis=1).sum())
            self.source.tally("action", "steps clipped to low and high", over)
            scaled = np.clip(scaled, -1.0, 1.0)
        return scaled.astype(np.float32)

    def _images(self, camera: Camera, states: slice) -> Images:
        track = self.recorded.tracks[camera.name]
        look = self.states[camera.name]
        index, used = look.index[states], self._used(camera, states)
        frames = self.frames.read(camera, track, used, look.policy)
        return Images(frames, np.searchsorted(used, index).astype(np.int64),
                      track.stamps[used] / 1e9)

    def _used(self, camera: Camera, states: slice) -> NDArray[np.int64]:
        """The numbers of the frames that an episode of these states stores."""
        track = self.recorded.tracks[camera.name]
        index = self.states[camera.name].index[states]
        if camera.frames != "all":
            return np.asarray(np.unique(index))
        first = int(np.searchsorted(track.stamps, self.span[0], side="left"))
        last = int(np.searchsorted(track.stamps, self.span[1], side="right"))
        return np.arange(min(first, int(index[0])), last)

    def _stamps(self, states: slice) -> dict[str, NDArray[np.float64]]:
        """When what each state is made of was measured."""
        found: dict[str, NDArray[np.float64]] = {}
        for look in self.states.values():
            if not look.key:
                continue
            key = look.key
            if key == OBSERVATION and len({s.topic for s in self.mapping.state}) > 1:
                key += look.label.replace("/", ".") if look.label.startswith("/") else (
                    f".{look.label.replace('/', '.')}"
                )
            found.setdefault(key, look.stamps[look.index[states]] / 1e9)
        return found

    def _extra(self, states: slice, steps: slice, ticks: Stamps) -> dict[str, NDArray[Any]]:
        found = {}
        for key, (rows, parts) in self.mapping.extra.items():
            if rows == "states":
                array = self._joined(parts, self.states, states, ticks)
            else:
                array = self._joined(parts, self.steps, steps, ticks[:-1])
            first = parts[0]
            if first.dtype:
                array = array.astype(first.dtype)
            if first.shape is not None:
                if int(np.prod(first.shape)) != array.shape[1]:
                    raise InvalidInputError(f"{first.where}: shape {list(first.shape)} for "
                                            f"{array.shape[1]} values")
                array = array.reshape(len(array), *first.shape)
            found[key] = array
        return found

    def _metadata(self, first: int, last: int, ticks: Stamps) -> dict[str, Any]:
        late: dict[str, NDArray[np.bool_]] = {}
        held: dict[str, NDArray[np.bool_]] = {}
        for look in self.states.values():
            for counts, rows in ((late, look.late[first : last + 1]),
                                 (held, look.held[first + 1 : last + 1])):
                counts[look.label] = counts[look.label] | rows if look.label in counts else rows
        found: dict[str, Any] = {
            "source": self.source.path.name,
            "late_ticks": {k: n for k, rows in late.items() if (n := int(rows.sum()))},
            "held_ticks": {k: n for k, rows in held.items() if (n := int(rows.sum()))},
        }
        for key, signal in self.mapping.metadata.items():
            series = self.recorded.series[signal]
            at = self._said(series, ticks) if len(series.stamps) else -1
            if at >= 0:
                found[key] = series.texts[at] if series.is_text else series.values[at].tolist()
        return found


def _cut(look: _Look, start: int) -> _Look:
    return replace(look, index=look.index[start:], late=look.late[start:],
                   blocked=look.blocked[start:])


def _in_step(series: Series, ticks: Stamps) -> Stamps:
    """The command of each step, by the signal's ``choose``; -1 where there is none."""
    within = resample.last_within if series.signal.choose == "last" else resample.first_within
    return within(series.stamps, ticks[:-1], ticks[1:])


def _results(series: Series, ticks: Stamps, ends: Stamps) -> tuple[Stamps, NDArray[np.bool_]]:
    """The newest message at the end of each step, and whether it came within the episode."""
    index = resample.newest(series.stamps, ends)
    return index, index > int(resample.newest(series.stamps, ticks[:1])[0])


def _chosen(values: NDArray[Any], index: Stamps, there: NDArray[np.bool_]) -> NDArray[Any]:
    """``values[index]`` where ``there``, 0 elsewhere."""
    out = np.zeros(len(index), values.dtype)
    out[there] = values[index[there]]
    return out


def _part(series: Series, ticks: Stamps, ends: Stamps) -> slice:
    """The messages that can matter to these steps."""
    first, last = np.searchsorted(series.stamps, np.array([ticks[0], ends[-1] + 1]))
    return slice(int(first), int(last))


def _within(entries: tuple[int, ...], width: int, where: str) -> list[int]:
    if max(entries) >= width:
        raise InvalidInputError(f"{where}: entry {max(entries)} of a state that has {width}")
    return list(entries)
