"""When a message of a bag was: by its header, or when it was received; and whether all headers were
written by one clock."""

from __future__ import annotations

from array import array
from collections.abc import Callable

import numpy as np

from robot_rl.data.importers.containers import Message
from robot_rl.data.importers.messages import Types
from robot_rl.errors import InvalidInputError

# Topics that lie further apart than this are of different clocks; further than that is told.
_FAR_NS = 10 * 10**9
_ASKEW_NS = 10**9
# Of fewer messages (a goal, latched long ago) nothing is concluded.
_ENOUGH = 3

Choose = Callable[..., tuple[int, bool]]


class Clocks:
    """Says when each message was, and remembers how far headers were from the receipt.

    ``default`` is ``header`` or ``received``.
    """

    def __init__(self, types: Types, default: str) -> None:
        self.types, self.default = types, default
        self.with_header = {name: types.has_header(name) for name in types.fields}
        self.unstamped: dict[str, int] = {}
        self.far: dict[str, int] = {}
        self.offsets_ns: dict[str, array[int]] = {}
        self.received: set[str] = set()

    def stamps(self, message: Message, msgtype: str) -> Choose:
        """A function from a clock's name to the stamp [ns], and whether the header gave it; a
        message that is not ``counted`` says nothing about clocks."""
        header_ns = 0
        if self.with_header[msgtype]:
            header_ns = self.types.header_stamp_ns(message.data)
        topic, received_ns = message.topic, message.received_ns

        def choose(clock: str, counted: bool = True) -> tuple[int, bool]:
            by_header = (clock or self.default) != "received" and self.with_header[msgtype]
            if by_header and header_ns == 0:
                self.unstamped[topic] = self.unstamped.get(topic, 0) + 1
            if not by_header or header_ns == 0:
                if counted:
                    self.received.add(topic)
                return _checked(received_ns, topic), False
            stamp_ns = _checked(header_ns, topic)
            offset_ns = stamp_ns - _checked(received_ns, topic)
            self.offsets_ns.setdefault(topic, array("q")).append(offset_ns)
            if abs(offset_ns) > _FAR_NS:
                self.far[topic] = self.far.get(topic, 0) + 1
            return stamp_ns, True

        return choose

    def _usual_ns(self) -> dict[str, int]:
        """The median offset from the receipt by topic; 0 for those placed by their receipt."""
        found = {topic: int(np.median(np.asarray(offsets)))
                 for topic, offsets in self.offsets_ns.items() if len(offsets) >= _ENOUGH}
        for topic in self.received:
            found.setdefault(topic, 0)
        return found

    def check(self) -> None:
        """Judge what was seen.

        Raises:
            InvalidInputError: the headers of one topic are of another clock than the rest.
        """
        usual = self._usual_ns()
        near = [topic for topic, offset in usual.items() if abs(offset) <= _FAR_NS]
        # Where all headers are far from the receipt they may still be of one clock.
        rest = near or sorted(usual, key=lambda topic: usual[topic])[len(usual) // 2 :][:1]
        for topic, offset in usual.items():
            if rest and abs(offset - usual[rest[0]]) > _FAR_NS and abs(offset) > _FAR_NS:
                raise InvalidInputError(
                    f"topic {topic}: its header stamps lie {_away(offset)} the times at which its "
                    f"messages were received, those of {rest[0]} {_away(usual[rest[0]])}, so they "
                    f"are not of one clock; give {topic} the key clock: received (or the whole map)"
                )

    def notes(self) -> list[str]:
        """What should be known about the stamps."""
        found = [f"{topic}: {count} messages without a header stamp, placed by when they were "
                 "received" for topic, count in self.unstamped.items()]
        found += [f"{topic}: {count} header stamps are more than {_FAR_NS // 10**9} s from when "
                  "the messages were received; are all on one clock? (clock: received ignores "
                  "them)" for topic, count in self.far.items()]
        usual = self._usual_ns()
        least = min((abs(offset) for offset in usual.values()), default=0)
        found += [f"{topic}: header stamps lie {_away(offset)} the times at which the messages "
                  "were received, more than for other topics; are all on one clock? (clock: "
                  "received ignores them)"
                  for topic, offset in usual.items()
                  if topic not in self.far and abs(offset) > least + _ASKEW_NS]
        return found


def _away(offset_ns: int) -> str:
    side = "before" if offset_ns < 0 else "after"
    return f"{abs(offset_ns) / 1e9:.3f} s {side}"


def _checked(stamp_ns: int, topic: str) -> int:
    if not -(2**62) < stamp_ns < 2**62:
        raise InvalidInputError(f"topic {topic}: a message of the time {stamp_ns} ns")
    return stamp_ns
