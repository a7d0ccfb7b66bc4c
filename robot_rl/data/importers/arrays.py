"""What importers of arrays share: careful opening, a mapping of names, and rows made episodes.

A recorded sequence of N rows holds N observations and the N actions taken there. An episode of T
steps has T + 1 states, so the state after the last action decides:

- it is stored (N + 1 observations, or next observations): T = N;
- it is not, and the last row ended the task (terminated or success): T = N, the last state is
  repeated, since nothing is bootstrapped from it while its reward counts;
- it is not, and the task went on: T = N - 1, the last action led nowhere that was seen.
"""

from __future__ import annotations

import importlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robot_rl.data.episodes import (
    ACHIEVED,
    ACTION,
    CORE_KEYS,
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
    DatasetInfo,
    Episode,
    Images,
)
from robot_rl.data.importers.base import MAX_BYTES
from robot_rl.errors import InvalidInputError, MissingDependencyError, RobotRLError, unknown_name

MAX_JSON_BYTES = 32 << 20
MAX_EPISODES = 1_000_000
Columns = dict[str, NDArray[Any]]
_BOOLS = (TERMINATED, TRUNCATED, SUCCESS, INTERVENTION, RESET)
_VECTORS = (OBSERVATION, ACHIEVED, DESIRED, ACTION, REQUESTED)
_STATES = (OBSERVATION, ACHIEVED, DESIRED, TIMESTAMP)
DESIRED_EACH = "desired_goal_each"


def need(module: str, what: str) -> Any:
    """The optional package ``module``, which ``what`` needs.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingDependencyError(
            f"{what} needs {module.split('.')[0]} ({error}): install robot_rl[data]"
        ) from None


@contextmanager
def refusing(where: str) -> Iterator[None]:
    """Turn whatever a damaged file makes a library raise into InvalidInputError."""
    try:
        yield
    except RobotRLError:
        raise
    except Exception as error:
        text = str(error).strip().split("\n")[0][:300]
        raise InvalidInputError(
            f"{where} cannot be read: {text or type(error).__name__}"
        ) from None


def read_small_json(path: Path, where: str, max_bytes: int = MAX_JSON_BYTES) -> Any:
    """The JSON in ``path``, at most ``max_bytes`` of it.

    Raises:
        InvalidInputError: it is missing, not a file, larger, or not JSON.
    """
    return parse_json(read_small(path, where, max_bytes), f"{where}: {path}")


def read_small(path: Path, where: str, max_bytes: int = MAX_JSON_BYTES) -> bytes:
    """The content of a regular file of at most ``max_bytes``.

    Raises:
        InvalidInputError: it is missing, not a file, or larger.
    """
    if not path.is_file():
        raise InvalidInputError(f"{where}: {path} does not exist or is not a file")
    size = path.stat().st_size
    if size > max_bytes:
        raise InvalidInputError(f"{where}: {path} has {size} bytes, the limit is {max_bytes}")
    with refusing(f"{where}: {path}"):
        return path.read_bytes()


def parse_json(content: bytes | str, where: str) -> Any:
    """Raises InvalidInputError if ``content`` is not JSON."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"{where} is not valid JSON ({str(error)[:200]})") from None


def inside(root: Path, relative: str, where: str) -> Path:
    """The regular file ``relative`` in ``root``.

    Raises:
        InvalidInputError: it is not there, or lies outside ``root`` with links followed.
    """
    parts = PurePosixPath(relative)
    if parts.is_absolute() or ".." in parts.parts or "\0" in relative:
        raise InvalidInputError(f"{where}: {relative!r} leads out of {root}")
    path = root / relative
    with refusing(f"{where}: {path}"):
        if not path.resolve().is_relative_to(root.resolve()):
            raise InvalidInputError(f"{where}: {path} is a link that leads out of {root}")
        if not path.is_file():
            raise InvalidInputError(f"{where}: {path} does not exist or is not a file")
    return path


def check_bytes(size: int, where: str) -> None:
    """Raise InvalidInputError for what would take more than MAX_BYTES."""
    if not 0 <= size <= MAX_BYTES:
        raise InvalidInputError(f"{where} would take {size} bytes, the limit is {MAX_BYTES}")


class Notes:
    """Remarks on what was left out or made up; ``lines`` holds them, with counts."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._fixed: list[str] = []
        self._counts: Counter[str] = Counter()

    def add(self, text: str) -> None:
        """Say this once."""
        if text not in self._fixed:
            self._fixed.append(text)
        self._update()

    def count(self, text: str) -> None:
        """Say this with the number of episodes it holds for."""
        self._counts[text] += 1
        self._update()

    def restart(self) -> None:
        """Count anew."""
        self._counts.clear()
        self._update()

    def _update(self) -> None:
        counted = [f"{text} (episodes: {number})" for text, number in self._counts.items()]
        self.lines[:] = [*self._fixed, *counted]


class ArraySource:
    """Episodes from a function that reads them in order; None is one left out (``skipped``).

    Raises:
        InvalidInputError: on opening, if there is none; later, if one is of another shape than
            the first.
    """

    def __init__(
        self,
        where: str,
        read: Callable[[], Iterator[Episode | None]],
        notes: Notes,
        *,
        count: int | None = None,
        info: DatasetInfo | None = None,
        close: Callable[[], None] | None = None,
        **values: Any,
    ) -> None:
        self._where, self._read, self._notes, self._close = where, read, notes, close
        self.count = count
        self.notes = notes.lines
        self.skipped = 0
        if info is None:
            first = next((episode for episode in read() if episode is not None), None)
            if first is None:
                raise InvalidInputError(f"{where} holds no episode of at least one step")
            info = DatasetInfo.of(first, **values)
        self.info = info

    def __iter__(self) -> Iterator[Episode]:
        self._notes.restart()
        self.skipped = 0
        for number, episode in enumerate(self._read()):
            if episode is None:
                self.skipped += 1
                continue
            self._check(episode, number)
            yield episode

    def _check(self, episode: Episode, number: int) -> None:
        where = f"{self._where}, episode {number}"
        episode.check(where)
        other = DatasetInfo.of(episode)
        for name in ("observation_shape", "goal_dim", "action_dim", "cameras"):
            found, expected = getattr(other, name), getattr(self.info, name)
            if found != expected:
                raise InvalidInputError(
                    f"{where}: {name} is {found}, it is {expected} in the dataset"
                )

    def close(self) -> None:
        if self._close is not None:
            self._close()


# -- mapping ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """Where a key comes from: parts of the source side by side, some of their columns, a bound."""

    names: tuple[str, ...]
    columns: tuple[int, int] | None = None
    at_least: float | None = None


@dataclass(frozen=True)
class Mapping:
    """Which parts of a source become which keys.

    As YAML: ``observation.state: [obs/eef_pos, obs/gripper]`` puts parts side by side,
    ``observation.achieved_goal: {from: obs/object, columns: [0, 3]}`` takes columns 0 to 2,
    ``next.success: {from: rewards, at_least: 1}`` compares, ``observation.images.front:
    obs/agentview_image`` names a camera, ``drop: [states]`` leaves parts out.
    """

    parts: dict[str, Part] = field(default_factory=dict)
    drop: tuple[str, ...] = ()

    @classmethod
    def parse(cls, raw: dict[str, Any]) -> Mapping:
        """Raises InvalidInputError, naming the key, if ``raw`` is not such a mapping."""
        parts: dict[str, Part] = {}
        drop: tuple[str, ...] = ()
        for key, value in raw.items():
            if key == "drop":
                drop = _names(key, value)
            elif key in CORE_KEYS or (isinstance(key, str) and key[len(IMAGES):]
                                      and key.startswith(IMAGES)):
                parts[key] = _part(key, value)
            else:
                raise unknown_name(
                    "mapping key", key, [*CORE_KEYS, f"{IMAGES}<camera>", "drop"])
        return cls(parts, drop)

    def apply(
        self, columns: Columns, defaults: dict[str, str], where: str
    ) -> tuple[Columns, Columns]:
        """The arrays by key, and the columns that no key used by their own names.

        ``defaults`` says which column is which key where the mapping does not.
        """
        values: Columns = {}
        used = set(self.drop)
        for key, part in self.parts.items():
            values[key] = _take(columns, key, part, where)
            # A part that is cut stays whole beside it.
            used |= set(part.names) if part.columns is None and part.at_least is None else set()
        for name, key in defaults.items():
            if name in columns and key not in values and name not in used:
                values[key] = _take(columns, key, Part((name,)), where)
                used.add(name)
        return values, {name: array for name, array in columns.items() if name not in used}


def _names(key: str, value: Any) -> tuple[str, ...]:
    names = [value] if isinstance(value, str) else value
    if not (isinstance(names, list) and names and all(isinstance(n, str) for n in names)):
        raise InvalidInputError(
            f"mapping: {key} is {value!r}, should be a name or a list of names")
    return tuple(names)


def _part(key: str, value: Any) -> Part:
    if not isinstance(value, dict):
        return Part(_names(key, value))
    for name in value:
        if name not in ("from", "columns", "at_least"):
            raise unknown_name(f"mapping key of {key}", name, ["from", "columns", "at_least"])
    columns, bound = value.get("columns"), value.get("at_least")
    if columns is not None:
        if not (isinstance(columns, list) and len(columns) == 2
                and all(type(n) is int for n in columns) and 0 <= columns[0] < columns[1]):
            raise InvalidInputError(
                f"mapping: columns of {key} is {columns!r}, should be [first, end]")
        columns = (columns[0], columns[1])
    if bound is not None and (type(bound) not in (int, float) or not np.isfinite(bound)):
        raise InvalidInputError(f"mapping: at_least of {key} is {bound!r}, should be a number")
    return Part(_names(key, value.get("from")), columns, bound)


def _take(columns: Columns, key: str, part: Part, where: str) -> NDArray[Any]:
    for name in part.names:
        if name not in columns:
            raise unknown_name(f"part of {where}", name, sorted(columns))
    arrays = [columns[name] for name in part.names]
    if key.startswith(IMAGES):
        if len(arrays) != 1 or arrays[0].dtype != np.uint8 or arrays[0].ndim != 4:
            raise InvalidInputError(
                f"{where}: {', '.join(part.names)} cannot be {key}: that needs uint8 "
                f"(rows, height, width, 1 or 3), not {arrays[0].dtype} {arrays[0].shape}"
            )
        return arrays[0]
    rows = {len(array) if array.ndim else -1 for array in arrays}
    if len(rows) != 1 or -1 in rows:
        raise InvalidInputError(
            f"{where}: {key} needs parts with rows, and as many, not "
            + ", ".join(f"{n} {a.shape}" for n, a in zip(part.names, arrays, strict=True))
        )
    flat = [array.reshape(len(array), int(np.prod(array.shape[1:]))) for array in arrays]
    whole = flat[0] if len(flat) == 1 else np.concatenate(flat, axis=1)
    if part.columns is not None:
        if part.columns[1] > whole.shape[1]:
            raise InvalidInputError(
                f"{where}: {key} needs columns {part.columns[0]} to {part.columns[1] - 1} of "
                f"{', '.join(part.names)}, which has {whole.shape[1]}"
            )
        whole = whole[:, slice(*part.columns)]
    return _typed(key, whole if part.at_least is None else whole >= part.at_least, where)


def _typed(key: str, array: NDArray[Any], where: str) -> NDArray[Any]:
    if array.dtype.kind not in "fiub":
        raise InvalidInputError(f"{where}: {key} has type {array.dtype}, should be numbers")
    if key in _VECTORS:
        return array.astype(np.float32)
    if array.shape[1] != 1:
        raise InvalidInputError(
            f"{where}: {key} has {array.shape[1]} numbers in a row, should have one")
    flat = array[:, 0]
    if key in _BOOLS:
        return np.asarray(flat != 0)
    return flat.astype(np.float64 if key == TIMESTAMP else np.float32)


# -- rows to episodes ---------------------------------------------------------------------------


def assemble(
    values: Columns, extra: Columns, where: str, notes: Notes, metadata: dict[str, Any]
) -> Episode | None:
    """An episode of arrays with N rows each, or N + 1 for states; None if no step is left.

    ``values`` is by key (with ``next.reward`` etc. optional), ``extra`` by any name: of N rows
    and N + 1 states they are of steps, else of states unless their name says otherwise.

    Raises:
        InvalidInputError: rows are missing or do not fit each other.
    """
    if ACTION not in values:
        raise InvalidInputError(
            f"{where} has no {ACTION}; name it in a mapping, there are: {', '.join(extra)}")
    rows = len(values[ACTION])
    states = {key for key in values if key in _STATES or key.startswith(IMAGES)}
    lengths = {key: len(values[key]) for key in values}
    for key, length in lengths.items():
        if length != rows and not (key in states and length == rows + 1):
            raise InvalidInputError(f"{where}: {key} has {length} rows, {ACTION} has {rows}")
        if key.startswith(IMAGES) and 0 in values[key].shape[1:]:
            raise InvalidInputError(f"{where}: {key} has frames of shape {values[key].shape[1:]}")
    if TIMESTAMP in values and not np.isfinite(values[TIMESTAMP]).all():
        raise InvalidInputError(f"{where}: {TIMESTAMP} holds values that are not finite numbers")
    if rows == 0:
        notes.count("left out: no step with a next state")
        return None
    complete = all(lengths[key] == rows + 1 for key in states if key != TIMESTAMP) and bool(states)
    state_rows = {key: values[key] for key in states}
    step_rows = {key: values[key] for key in values if key not in states}
    for name, array in extra.items():
        is_state = len(array) == rows + 1 or (not complete and _of_state(name))
        (state_rows if is_state else step_rows)[_free(name)] = array
    if complete:
        if len(state_rows.get(TIMESTAMP, ())) == rows:
            del state_rows[TIMESTAMP]
    else:
        ended = bool(_last(step_rows, TERMINATED) or _last(step_rows, SUCCESS))
        state_rows, step_rows = _close(state_rows, step_rows, rows, ended, notes)
        if not len(step_rows[ACTION]):
            return None
    return _episode(state_rows, step_rows, where, notes, metadata)


def _last(rows: Columns, key: str) -> bool:
    return bool(rows[key][-1]) if key in rows else False


def _of_state(name: str) -> bool:
    return not name.startswith(("next.", "action", "is_", "infos/action"))


def _free(name: str) -> str:
    taken = name in CORE_KEYS or name.startswith((IMAGES, f"{TIMESTAMP}."))
    return f"source.{name}" if taken else name


def _close(
    state_rows: Columns, step_rows: Columns, rows: int, ended: bool, notes: Notes
) -> tuple[Columns, Columns]:
    if ended:
        notes.count("the state after a last step that ended the task is not stored: repeated")
        return {
            key: array if len(array) == rows + 1 else np.concatenate([array, array[-1:]])
            for key, array in state_rows.items()
        }, step_rows
    notes.count("last step left out: its next state is not stored" if rows > 1
                else "left out: no step with a next state")
    return ({key: array[:rows] for key, array in state_rows.items()},
            {key: array[:-1] for key, array in step_rows.items()})


def _episode(
    state_rows: Columns, step_rows: Columns, where: str, notes: Notes, metadata: dict[str, Any]
) -> Episode:
    steps = len(step_rows[ACTION])
    states = steps + 1
    extra = {key: array for key, array in (state_rows | step_rows).items()
             if key not in CORE_KEYS and not key.startswith(IMAGES)}
    stamps = state_rows.get(TIMESTAMP)
    desired = state_rows.get(DESIRED, np.zeros((1, 0), np.float32))
    if len(desired) > 1 and (desired != desired[0]).any():
        extra[DESIRED_EACH] = desired
        notes.count(f"the goal changes on the way: the first is {DESIRED}, all are {DESIRED_EACH}")
    achieved = state_rows.get(ACHIEVED)
    if achieved is None:
        if desired.shape[1]:
            extra["desired_goal"] = np.repeat(desired[:1], states, 0)
            desired = desired[:, :0]
            notes.add(f"there is no {ACHIEVED}: the goal is kept as the extra key desired_goal")
        achieved = np.zeros((states, 0), np.float32)
    elif not desired.shape[1]:
        desired = achieved[-1:]
        notes.add(f"there is no {DESIRED}: the last achieved goal stands in")
    success = step_rows.get(SUCCESS, np.zeros(steps, np.bool_))
    terminated = step_rows.get(TERMINATED, np.zeros(steps, np.bool_))
    truncated = step_rows.get(TRUNCATED)
    if truncated is None:
        truncated = np.zeros(steps, np.bool_)
        truncated[-1] = not terminated[-1]
    elif not truncated[-1] and not terminated[-1]:
        truncated = np.append(truncated[:-1], True)
    episode = Episode(
        observation=state_rows.get(OBSERVATION, np.zeros((states, 0), np.float32)),
        achieved=achieved, desired=desired[0].copy(), action=step_rows[ACTION],
        reward=_reward(step_rows, success, notes), terminated=terminated, truncated=truncated,
        success=success, requested=step_rows.get(REQUESTED), rate_hz=step_rows.get(RATE),
        intervention=step_rows.get(INTERVENTION), reset=step_rows.get(RESET), stamp_s=stamps,
        images={key[len(IMAGES):]: Images.each(array, stamps)
                for key, array in state_rows.items() if key.startswith(IMAGES)},
        extra=extra, metadata=metadata,
    )
    episode.check(where)
    return episode


def _reward(steps: Columns, success: NDArray[np.bool_], notes: Notes) -> NDArray[np.float32]:
    if REWARD in steps:
        return steps[REWARD]
    if SUCCESS in steps:
        notes.add("there are no rewards: 0 on success, -1 otherwise")
        return success.astype(np.float32) - np.float32(1.0)
    notes.add("there are neither rewards nor success: rewards are 0")
    return np.zeros(len(success), np.float32)


def numeric_columns(columns: Columns, notes: Notes) -> Columns:
    """Without what cannot be an extra array: text, complex numbers and the like."""
    kept = {}
    for name, array in columns.items():
        if array.dtype.kind in "fiub" and array.dtype.itemsize <= 8 and array.ndim >= 1:
            kept[name] = array
        else:
            notes.add(f"left out: {name} ({array.dtype} of shape {array.shape})")
    return kept


def rate_of(options_hz: float, recorded_hz: float, where: str) -> float:
    """The control rate [1/s]; formats with one row for each step are not resampled.

    Raises:
        InvalidInputError: another rate is asked for than was recorded.
    """
    if options_hz and recorded_hz and abs(options_hz - recorded_hz) > 1e-3 * recorded_hz:
        raise InvalidInputError(
            f"{where} was recorded at {recorded_hz:g} Hz, one row for each step; it cannot be "
            f"resampled to {options_hz:g} Hz (give --rate 0)"
        )
    return float(recorded_hz or options_hz)


# -- what the exporters wrote -------------------------------------------------------------------


def info_from(raw: Any, where: str) -> DatasetInfo:
    """The info that was written as JSON.

    Raises:
        InvalidInputError: it is not one.
    """
    if not isinstance(raw, dict):
        raise InvalidInputError(f"{where}: the description of the data is {str(raw)[:100]!r}")
    texts, objects = ("task", "robot", "software"), ("env", "config", "calibration", "cameras")
    with refusing(f"{where}: the description of the data"):
        info = DatasetInfo(**raw)
        for names, kind in ((texts, str), (objects, dict), (("goal_dim", "action_dim"), int)):
            for name in names:
                if not isinstance(getattr(info, name), kind):
                    raise InvalidInputError(
                        f"{where}: {name} is {str(getattr(info, name))[:100]!r}, should be "
                        f"{kind.__name__}")
        info.observation_shape = tuple(int(n) for n in info.observation_shape)
        info.cameras = {name: (int(h), int(w), int(c))
                        for name, (h, w, c) in info.cameras.items()}
        info.rate_hz = float(info.rate_hz)
    if not (np.isfinite(info.rate_hz) and info.rate_hz >= 0):
        raise InvalidInputError(f"{where}: rate_hz is {info.rate_hz}")
    return info
