"""What detectors of success share, and how they are put together."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence

from robot_rl.errors import InvalidInputError
from robot_rl.interfaces import Array, SuccessDetector


class Detector(ABC):
    """A :class:`robot_rl.interfaces.SuccessDetector` with a memory of one episode.

    It is asked once a control step. What it reads it reads afresh, with an age that it accepts.
    """

    @abstractmethod
    def success(self) -> bool:
        """Whether the task is done now.

        Raises:
            StaleDataError: what it looks at is too old to say.
        """

    def begin(self, goal: Array) -> None:
        """An episode with this goal begins: forget the one before."""
        return None


def begin_episode(detector: SuccessDetector | None, goal: Array) -> None:
    """Tell a detector that an episode with ``goal`` (goal_dim,) begins, if it cares."""
    told = getattr(detector, "begin", None)
    if told is not None:
        told(goal)


def close_detector(detector: SuccessDetector | None) -> None:
    """Release what a detector holds, if anything."""
    close = getattr(detector, "close", None)
    if close is not None:
        close()


class _Composed(Detector):
    def __init__(self, parts: Sequence[SuccessDetector]) -> None:
        if not parts:
            raise InvalidInputError("a composed success detector needs at least one part")
        self.parts = tuple(parts)

    def begin(self, goal: Array) -> None:
        for part in self.parts:
            begin_episode(part, goal)

    def close(self) -> None:
        for part in self.parts:
            close_detector(part)

    def _asked(self) -> list[bool]:
        """Every part's answer: all are asked each time, or their memories would have gaps."""
        return [part.success() for part in self.parts]


class AllOf(_Composed):
    """Success when every part says so."""

    def success(self) -> bool:
        return all(self._asked())


class AnyOf(_Composed):
    """Success when any part says so."""

    def success(self) -> bool:
        return any(self._asked())


class Vote(Detector):
    """Success when at least ``votes`` of the last ``window`` answers of ``part`` were yes."""

    def __init__(self, part: SuccessDetector, votes: int, window: int) -> None:
        if not 1 <= votes <= window:
            raise InvalidInputError(
                f"vote of {votes} in {window}: should be 1 <= votes <= window"
            )
        self.part = part
        self.votes = votes
        self._answers: deque[bool] = deque(maxlen=window)

    def begin(self, goal: Array) -> None:
        self._answers.clear()
        begin_episode(self.part, goal)

    def close(self) -> None:
        close_detector(self.part)

    def success(self) -> bool:
        self._answers.append(bool(self.part.success()))
        return sum(self._answers) >= self.votes
