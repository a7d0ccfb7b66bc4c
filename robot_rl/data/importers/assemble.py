"""Puts the episodes of one span of a bag together: what each tick sees, and what each step did."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from robot_rl.data.episodes import IMAGES, OBSERVATION, Episode, Images
from robot_rl.data.importers import resample
from robot_rl.data.importers.bagfiles import Bag
from robot_rl.data.importers.base import MAX_BYTES
from robot_rl.data.importers.images import decode, fit
from robot_rl.data.importers.mapping import Action, Camera, Mapping, Signal
from robot_rl.data.importers.messages import Types
from robot_rl.data.importers.progress import beat
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


@dataclass
class _Look:
    """What one topic shows at each tick (or in each step): the message, its age, its policy."""

    label: str
    key: str
    index: Stamps
    late: NDArray[np.bool_]
    policy: str
    stamps: Stamps

    def held(self) -> int:
        return int((self.index[1:] == self.index[:-1]).sum())


class Builder:
    """The episodes of one span of a bag."""

    def __init__(self, source: Source, ticks: Stamps, span: Span) -> None:
        self.source, self.mapping, self.span = source, source.mapping, span
        self.recorded = source.recorded
        self.record = take_record(self.recorded, span) if self.mapping.episodes.record else None
        looks = self._state_looks(ticks)
        steps = self._step_looks(ticks)
        start = self._trim(ticks, looks, steps)
        self.ticks = ticks[start:]
        self.states = {k: _cut(look, start) for k, look in looks.items()}
        self.steps = {k: _cut(look, start) for k, look in steps.items()}

    def _period_ns(self, ticks: Stamps) -> int:
        if self.source.by_ticks:
            return int(np.median(np.diff(ticks)))
        return round(1e9 / self.source.rate_hz)

    def _state_looks(self, ticks: Stamps) -> dict[Signal | str, _Look]:
        mapping = self.mapping
        looks: dict[Signal | str, _Look] = {}
        period = self._period_ns(ticks)
        keyed = [(OBSERVATION, s) for s in mapping.state]
        keyed += [("", s) for s in (mapping.goal.achieved if mapping.goal is not None else ())]
        keyed += [(key, s) for key, (rows, parts) in mapping.extra.items() if rows == "states"
                  for s in parts]
        for key, signal in keyed:
            series = self.recorded.series[signal]
            index = resample.newest(series.stamps, ticks)
            most = signal.max_age_s or 2e-9 * max(period, series.period_ns)
            looks[signal] = self._look(signal, key, series, index, ticks, most)
        for camera in mapping.cameras:
            track = self.recorded.tracks[camera.name]
            index = resample.newest(track.stamps, ticks)
            most = camera.max_age_s or 3e-9 * resample.median_period_ns(track.stamps)
            key = f"{IMAGES}{camera.name}"
            looks[camera.name] = self._look(camera, key, track, index, ticks, most)
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
            index = _in_step(series, ticks)
            most = signal.max_age_s or 2e-9 * max(period, series.period_ns)
            looks[signal] = self._look(signal, "", series, index, ticks[:-1], most)
        return looks

    def _look(
        self, what: Signal | Camera, key: str, seen: Series | Track, index: Stamps, ticks: Stamps,
        most_s: float,
    ) -> _Look:
        many = len(seen.stamps) > 2 or bool(what.max_age_s)
        late = (resample.ages_s(seen.stamps, index, ticks) > most_s * (1 + 1e-9)) & (index >= 0)
        return _Look(what.topic, key, index, late & many, what.on_missing or
                     self.mapping.on_missing, seen.stamps)

    def _trim(
        self, ticks: Stamps, states: dict[Signal | str, _Look], steps: dict[Signal | str, _Look]
    ) -> int:
        """The first tick at which everything was there."""
        start = 0
        for look in (*states.values(), *steps.values()):
            missing = int((look.index < 0).sum())
            self.source.tally(look.label, "ticks without any message yet", missing)
            start = max(start, missing)
        return start

    def pieces(self) -> list[Span]:
        """The steps [first, last) of each episode, after every topic's policy."""
        count = len(self.ticks) - 1
        if count < 1:
            self.source.skipped += 1
            self.source.tally("episodes", "without any complete step")
            return []
        good = np.ones(count, np.bool_)
        for look in (*self.states.values(), *self.steps.values()):
            late = int(look.late.sum())
            self.source.tally(look.label, "ticks held", look.held())
            self.source.tally(look.label, f"ticks late ({look.policy})", late)
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
        if self.record is not None and self.source.by_ticks:
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
        """What an episode's one value is: the newest at its first tick, else the first after."""
        series = self.recorded.series[signal]
        at = int(resample.newest(series.stamps, ticks[:1])[0])
        if at < 0:
            at = 0
            if not len(series.stamps) or series.stamps[0] > self.span[1]:
                raise InvalidInputError(f"{signal.where}: {signal.topic} says nothing before the "
                                        f"end of the episode at {self.span[1] / 1e9:.3f} s")
        return np.asarray(series.values[at])

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
        index = self.states[camera.name].index[states]
        if camera.frames == "all":
            first = int(np.searchsorted(track.stamps, self.span[0], side="left"))
            last = int(np.searchsorted(track.stamps, self.span[1], side="right"))
            used = np.arange(min(first, int(index[0])), last)
        else:
            used = np.unique(index)
        frames = [self._frame(camera, track, int(i), len(used)) for i in used]
        shapes = {frame.shape for frame in frames}
        if len(shapes) > 1:
            raise InvalidInputError(f"{camera.where}: frames of several sizes "
                                    f"({sorted(shapes)[:4]}); give a size:")
        return Images(np.stack(frames), np.searchsorted(used, index).astype(np.int64),
                      track.stamps[used] / 1e9)

    def _frame(self, camera: Camera, track: Track, number: int, count: int) -> NDArray[np.uint8]:
        beat()
        where = f"{camera.where}: frame {number} of {camera.topic}"
        file, chunk, offset, length = (int(n) for n in track.places[number])
        data = self.source.bag.fetch((file, chunk, offset, length))
        message = self.source.types.read(data, track.msgtype, where)
        frame = fit(decode(message, track.msgtype, where), camera.crop, camera.size, camera.where)
        if frame.nbytes * count > MAX_BYTES:
            raise InvalidInputError(
                f"{camera.where}: {count} frames of {frame.shape} in one episode are over "
                f"{MAX_BYTES} bytes; give a smaller size:, or split the episodes"
            )
        return frame

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
        states = {look.label: look for look in self.states.values()}
        found: dict[str, Any] = {
            "source": self.source.path.name,
            "late_ticks": {k: n for k, look in states.items()
                           if (n := int(look.late[first : last + 1].sum()))},
            "held_ticks": {k: n for k, look in states.items() if (n := int(
                (look.index[first + 1 : last + 1] == look.index[first:last]).sum()))},
        }
        for key, signal in self.mapping.metadata.items():
            series = self.recorded.series[signal]
            at = int(resample.newest(series.stamps, ticks[:1])[0])
            at = max(at, 0) if len(series.stamps) else at
            if at >= 0:
                found[key] = series.texts[at] if series.is_text else series.values[at].tolist()
        return found


def _cut(look: _Look, start: int) -> _Look:
    return _Look(look.label, look.key, look.index[start:], look.late[start:], look.policy,
                 look.stamps)


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
