"""The one pass over a bag that reads its numbers, and where its frames lie."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robot_rl.data.importers.bagfiles import Bag
from robot_rl.data.importers.clocks import Clocks
from robot_rl.data.importers.containers import Message, Topic
from robot_rl.data.importers.images import COMPRESSED, IMAGE
from robot_rl.data.importers.mapping import Camera, Mapping, Signal
from robot_rl.data.importers.messages import Types
from robot_rl.data.importers.resample import Stamps, in_order, median_period_ns, repeated
from robot_rl.errors import InvalidInputError

STRING = "std_msgs/msg/String"
MAX_RECORD = 64 << 20
# What may say so that its topic is optional, besides metadata.
OPTIONAL = ("success", "terminated", "truncated", "intervention", "reset", "episodes.start",
            "episodes.stop")


@dataclass
class Series:
    """What one signal said: sorted ``stamps`` (N,) [ns], and ``values`` (N, w), or ``texts``.

    ``event`` is whether its messages say nothing but that they happened (std_msgs/Empty).
    """

    signal: Signal
    stamps: Stamps
    values: NDArray[Any]
    texts: list[str] = field(default_factory=list)
    event: bool = False

    @cached_property
    def period_ns(self) -> int:
        return median_period_ns(self.stamps)

    @property
    def is_text(self) -> bool:
        return bool(self.texts)

    @cached_property
    def flags(self) -> NDArray[np.bool_]:
        """Which messages are true: those that equal ``equals``, or, without it, are not 0."""
        wanted = self.signal.equals
        if self.event or not len(self.stamps):
            return np.ones(len(self.stamps), np.bool_)
        if self.is_text:
            if wanted is None:
                raise InvalidInputError(f"{self.signal.where}: {self.signal.topic} holds texts; "
                                        "say with equals: which one counts")
            return np.array([text == str(wanted) for text in self.texts], np.bool_)
        if wanted is None:
            return np.asarray((self.values != 0).any(axis=1))
        if isinstance(wanted, str):
            raise InvalidInputError(f"{self.signal.where}: {self.signal.topic} holds numbers, "
                                    f"equals is {wanted!r}")
        return np.asarray((self.values == wanted).all(axis=1))

    def changes(self) -> NDArray[np.bool_]:
        """Which messages differ from the one before; the first does."""
        new = np.ones(len(self.stamps), np.bool_)
        if self.is_text:
            new[1:] = [a != b for a, b in zip(self.texts, self.texts[1:], strict=False)]
        else:
            new[1:] = (self.values[1:] != self.values[:-1]).any(axis=1)
        return new


@dataclass
class Track:
    """Where a camera's frames lie: sorted ``stamps`` (N,) [ns], ``places`` (N, 4).

    ``period_ns`` is the usual time between frames. Frames that turned out to be unreadable lie in
    ``unreadable`` (stamps) instead; ``reason`` says what was wrong with the first.
    """

    camera: Camera
    msgtype: str
    stamps: Stamps
    places: NDArray[np.int64]
    period_ns: int = 0
    unreadable: Stamps = field(default_factory=lambda: np.zeros(0, np.int64))
    reason: str = ""

    def give_up(self, numbers: list[int], reason: str) -> None:
        """Count these frames as unreadable from now on."""
        keep = np.ones(len(self.stamps), np.bool_)
        keep[numbers] = False
        self.unreadable = np.sort(np.concatenate([self.unreadable, self.stamps[~keep]]))
        self.stamps, self.places = self.stamps[keep], self.places[keep]
        self.reason = self.reason or reason


@dataclass
class Recorded:
    """Everything that the mapping asks for, of the whole bag."""

    series: dict[Signal, Series] = field(default_factory=dict)
    tracks: dict[str, Track] = field(default_factory=dict)
    records: list[tuple[int, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def all_signals(mapping: Mapping) -> list[tuple[Signal, bool]]:
    """The signals of a mapping, and whether each may hold values that are not finite."""
    found: list[tuple[Signal, bool]] = []

    def add(signals: Iterable[Signal | None], loose: bool = False) -> None:
        found.extend((signal, loose) for signal in signals if signal is not None)

    add(mapping.state)
    add(mapping.action.parts)
    add(mapping.requested.parts if mapping.requested is not None else ())
    add((mapping.ticks, mapping.align, mapping.episodes.start, mapping.episodes.stop), loose=True)
    add((mapping.reward, mapping.success, mapping.terminated, mapping.truncated,
         mapping.intervention, mapping.reset, mapping.kept_rate))
    if mapping.goal is not None:
        add(mapping.goal.achieved)
        add(mapping.goal.desired)
    for _, parts in mapping.extra.values():
        add(parts, loose=True)
    add(mapping.metadata.values(), loose=True)
    return found


def find_topics(bag: Bag, mapping: Mapping) -> list[Topic]:
    """The topics that the mapping names and the bag has.

    Raises:
        InvalidInputError: the bag lacks one that is not optional; the message lists what it has.
    """
    if not bag.topics and bag.cut_off:
        raise InvalidInputError(f"the bag {bag.path} was cut off, or is damaged, so early that "
                                "nothing whole is in it: no topic and no message")
    signals = [signal for signal, _ in all_signals(mapping)]
    wanted = [(signal.topic, signal.where, signal.optional) for signal in signals]
    wanted += [(camera.topic, camera.where, False) for camera in mapping.cameras]
    if mapping.episodes.record:
        wanted.append((mapping.episodes.record, "episodes.record", False))
    found: dict[str, Topic] = {}
    for name, where, optional in wanted:
        topic = bag.topics.get(name)
        if topic is not None:
            found[name] = topic
        elif not optional:
            raise _no_topic(bag, name, where)
    for camera in mapping.cameras:
        kind = found[camera.topic].msgtype
        if kind not in (IMAGE, COMPRESSED):
            raise InvalidInputError(f"{camera.where}: {camera.topic} is a {kind}, should be a "
                                    "sensor_msgs Image or CompressedImage")
    if mapping.episodes.record and found[mapping.episodes.record].msgtype != STRING:
        raise InvalidInputError(f"episodes.record: {mapping.episodes.record} should be a {STRING}")
    return list(found.values())


def _no_topic(bag: Bag, name: str, where: str) -> InvalidInputError:
    near = difflib.get_close_matches(name, bag.topics, n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    if bag.cut_off:
        hint += " (it was cut off: what came later is not in it)"
    if where.startswith("metadata.") or where in OPTIONAL:
        hint += "; optional: true where it may never be published"
    known = "; ".join(f"{t.name} ({t.msgtype})" for t in list(bag.topics.values())[:60])
    return InvalidInputError(
        f"{where}: the bag {bag.path} has no topic {name!r}{hint}; it has: {known or 'none'}"
    )


class _Gatherer:
    """Collects one signal's messages."""

    def __init__(
        self, signal: Signal, loose: bool, topic: Topic, types: Types, times_only: bool
    ) -> None:
        self.signal, self.loose, self.times_only = signal, loose, times_only
        self.text = self.extract = None
        if not times_only:
            self.text = types.text_getter(signal, topic.msgtype)
        if not times_only and self.text is None:
            self.extract = types.extractor(signal, topic.msgtype)
        names = [n for n, _ in types.fields[topic.msgtype]]
        self.event = names in ([], ["structure_needs_at_least_one_member"])
        self.stamps: list[int] = []
        self.values: list[NDArray[Any]] = []
        self.texts: list[str] = []
        self.other_names: list[str] = []
        self.not_finite = 0

    def add(self, message: Any, stamp_ns: int) -> None:
        if self.times_only:
            self.stamps.append(stamp_ns)
            return
        if self.text is not None:
            self.texts.append(str(self.text(message)))
            self.stamps.append(stamp_ns)
            return
        assert self.extract is not None
        value = self.extract(message)
        if value is None:
            self.other_names = list(getattr(message, "name", []))
            return
        if not self.loose and value.dtype.kind == "f" and not np.isfinite(value).all():
            self.not_finite += 1
            return
        if self.values and value.shape != self.values[0].shape:
            raise InvalidInputError(
                f"{self.signal.where}: {self.signal.topic} {self.signal.field} has "
                f"{len(self.values[0])} values at first and {len(value)} later; pick some with "
                "names: or entries:"
            )
        self.values.append(value)
        self.stamps.append(stamp_ns)

    def finish(self, notes: list[str]) -> Series:
        signal = self.signal
        if not self.stamps and self.other_names:
            raise InvalidInputError(
                f"{signal.where}: no message of {signal.topic} has {', '.join(signal.names)}; the "
                f"last has {', '.join(self.other_names)[:400]}"
            )
        stamps = np.array(self.stamps, np.int64)
        order, late = in_order(stamps)
        stamps = stamps[order]
        label = f"{signal.topic} ({signal.where})"
        if late:
            notes.append(f"{label}: {late} messages came out of order and were sorted")
        if self.not_finite:
            notes.append(f"{label}: {self.not_finite} messages with values that are not finite "
                         "numbers were passed over")
        if self.text is not None or self.times_only:
            texts = [self.texts[i] for i in order] if self.texts else []
            return Series(signal, stamps, np.zeros((len(stamps), 0)), texts)
        values = np.stack(self.values)[order] if self.values else np.zeros((0, 0))
        self.values.clear()
        again = repeated(stamps, values) & (not self.event) & (values.shape[1] > 0)
        if again.any():
            notes.append(f"{label}: {int(again.sum())} messages came twice and were dropped")
        return Series(signal, stamps[~again], values[~again], event=self.event)


class _TrackGatherer:
    """Collects where one camera's frames lie."""

    def __init__(self, camera: Camera, topic: Topic) -> None:
        self.camera, self.msgtype = camera, topic.msgtype
        self.stamps: list[int] = []
        self.places: list[tuple[int, int, int, int]] = []
        self.from_header: list[bool] = []

    def add(self, message: Message, stamp_ns: int, from_header: bool) -> None:
        self.stamps.append(stamp_ns)
        self.places.append(message.place)
        self.from_header.append(from_header)

    def finish(self, notes: list[str]) -> Track:
        stamps = np.array(self.stamps, np.int64)
        order, late = in_order(stamps)
        stamps = stamps[order]
        places = np.array(self.places, np.int64).reshape(-1, 4)[order]
        label = f"{self.camera.topic} ({self.camera.where})"
        if late:
            notes.append(f"{label}: {late} frames came out of order and were sorted")
        again = np.zeros(len(stamps), np.bool_)
        # Frames received at one time may differ; those measured at one time are one.
        again[1:] = (stamps[1:] == stamps[:-1]) & np.array(self.from_header, np.bool_)[order][1:]
        if again.any():
            notes.append(f"{label}: {int(again.sum())} frames came twice and were dropped")
        stamps = stamps[~again]
        return Track(self.camera, self.msgtype, stamps, places[~again], median_period_ns(stamps))


def collect(bag: Bag, mapping: Mapping, types: Types) -> Recorded:
    """Read every number that the mapping asks for; frames only by their place.

    Raises:
        InvalidInputError: a message is damaged, does not hold what the mapping says, or is
            stamped by another clock than the rest.
    """
    recorded = Recorded()
    gatherers: dict[str, list[_Gatherer]] = {}
    cameras: dict[str, list[_TrackGatherer]] = {}
    for signal, loose in all_signals(mapping):
        if signal.topic not in bag.topics:
            recorded.series[signal] = Series(signal, np.zeros(0, np.int64), np.zeros((0, 0)))
            note = f"{signal.topic} ({signal.where}): not in the bag, optional"
            recorded.notes += [note] if note not in recorded.notes else []
            continue
        known = gatherers.setdefault(signal.topic, [])
        if all(each.signal != signal for each in known):
            times_only = signal in (mapping.ticks, mapping.align)
            known.append(_Gatherer(signal, loose, bag.topics[signal.topic], types, times_only))
    for camera in mapping.cameras:
        track = _TrackGatherer(camera, bag.topics[camera.topic])
        cameras.setdefault(camera.topic, []).append(track)
    record = mapping.episodes.record
    wanted = {*gatherers, *cameras} | ({record} if record else set())
    clocks = Clocks(types, mapping.clock)
    for message in bag.scan(wanted):
        kind = bag.topics[message.topic].msgtype
        stamps = clocks.stamps(message, kind)
        for track in cameras.get(message.topic, ()):
            track.add(message, *stamps(track.camera.clock))
        if message.topic in gatherers or message.topic == record:
            body = types.read(message.data, kind, f"topic {message.topic}")
            for each in gatherers.get(message.topic, ()):
                counted = not each.signal.where.startswith("metadata.")
                each.add(body, stamps(each.signal.clock, counted)[0])
            if message.topic == record:
                recorded.records.append((message.received_ns, _record(body.data)))
    clocks.check()
    recorded.records.sort(key=lambda entry: entry[0])
    for group in gatherers.values():
        for each in group:
            recorded.series[each.signal] = each.finish(recorded.notes)
    for tracks in cameras.values():
        for track in tracks:
            recorded.tracks[track.camera.name] = track.finish(recorded.notes)
    recorded.notes.extend(clocks.notes())
    return recorded


def _record(text: Any) -> Any:
    if not isinstance(text, str) or len(text) > MAX_RECORD:
        raise InvalidInputError("episodes.record: a record that is too long")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"episodes.record: not JSON ({error})") from None
    if not isinstance(value, dict):
        raise InvalidInputError("episodes.record: a record is not a JSON object")
    return value
