"""The mapping: a YAML file that says which topics of a bag become which keys of an episode.

``docs/data_mapping.md`` is its reference. It is parsed whole before a bag is opened, so that a slip
is told at once, by name, with what would be valid.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from robot_rl.data.episodes import CORE_KEYS, IMAGES, TIMESTAMP
from robot_rl.errors import InvalidInputError, unknown_name

MAX_MAPPING = 256 << 10
MAX_DEPTH = 32
ON_MISSING = ("hold", "drop_step", "skip_episode", "error")
CLOCKS = ("header", "received")
_TOP = "the top level"
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_yaml(path: Path, what: str, limit: int = MAX_MAPPING) -> Any:
    """Plain values from a YAML file; ``what`` names it in errors.

    Raises:
        InvalidInputError: it cannot be read, is over ``limit`` bytes, nested too deep, no YAML, or
            uses aliases (with which a small file can describe an endless one).
    """
    try:
        with open(path, "rb") as file:
            text = file.read(limit + 1)
    except FileNotFoundError:
        raise InvalidInputError(f"{what}: {path} does not exist") from None
    except OSError as error:
        raise InvalidInputError(f"{what}: cannot read {path}: {error.strerror}") from None
    if len(text) > limit:
        raise InvalidInputError(f"{what}: {path} is over {limit} bytes")
    depth = 0
    try:
        # Judged before anything is built from it.
        for event in yaml.parse(text, Loader=_LOADER):
            if isinstance(event, yaml.AliasEvent):
                raise InvalidInputError(f"{what}: {path} uses the alias *{event.anchor}; write "
                                        "it out instead")
            if isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent)):
                depth += 1
            elif isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
                depth -= 1
            if depth > MAX_DEPTH:
                raise InvalidInputError(f"{what}: {path} is nested over {MAX_DEPTH} levels deep")
        return yaml.load(text, Loader=_LOADER)  # a safe loader: plain values only
    except InvalidInputError:
        raise
    except (yaml.YAMLError, ValueError, RecursionError, TypeError, OverflowError) as error:
        line = " ".join(str(error).split())[:300]
        raise InvalidInputError(f"{what}: {path} is not plain YAML ({line})") from None


@dataclass(frozen=True)
class Signal:
    """Numbers of one topic.

    ``field`` is a path into the message (``pose.position``), ``names`` picks entries by the
    message's own ``name`` list (JointState), ``entries`` by number; then value x ``scale`` +
    ``offset``. An ``optional`` one may be of a topic that the bag does not have: it says nothing.
    """

    topic: str
    where: str
    field: str = ""
    names: tuple[str, ...] = ()
    entries: tuple[int, ...] = ()
    scale: tuple[float, ...] = ()
    offset: tuple[float, ...] = ()
    clock: str = ""
    max_age_s: float = 0.0
    on_missing: str = ""
    interpolate: bool = False
    choose: str = "first"
    reduce: str = "last"
    equals: Any = None
    dtype: str = ""
    shape: tuple[int, ...] | None = None
    optional: bool = False


@dataclass(frozen=True)
class Camera:
    """Frames of one topic: ``crop`` (top, left, height, width) first, then ``size`` (height,
    width). ``frames`` keeps those ``used`` or ``all``."""

    name: str
    topic: str
    where: str
    crop: tuple[int, ...] = ()
    size: tuple[int, ...] = ()
    clock: str = ""
    max_age_s: float = 0.0
    on_missing: str = ""
    frames: str = "used"


@dataclass(frozen=True)
class Action:
    """What became of the commands, or of the state where there are none (``of`` is ``next`` or
    ``difference``). ``low`` and ``high`` are mapped to -1 and 1."""

    parts: tuple[Signal, ...] = ()
    of: str = ""
    entries: tuple[int, ...] = ()
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    clip: bool = True


@dataclass(frozen=True)
class Goal:
    """``achieved`` from entries of the state or from topics; ``desired`` from a topic, or empty for
    the last achieved one."""

    entries: tuple[int, ...] = ()
    achieved: tuple[Signal, ...] = ()
    desired: tuple[Signal, ...] = ()
    threshold: float = 0.0


@dataclass(frozen=True)
class Boundaries:
    """Where episodes begin and end."""

    start: Signal | None = None
    stop: Signal | None = None
    gap_s: float = 0.0
    min_steps: int = 1
    record: str = ""


@dataclass(frozen=True)
class Mapping:
    """A parsed mapping."""

    task: str = ""
    rate_hz: float = 0.0
    clock: str = "header"
    on_missing: str = "hold"
    ticks: Signal | None = None
    align: Signal | None = None
    dataset: dict[str, Any] = field(default_factory=dict)
    episodes: Boundaries = field(default_factory=Boundaries)
    state: tuple[Signal, ...] = ()
    action: Action = field(default_factory=Action)
    requested: Action | None = None
    cameras: tuple[Camera, ...] = ()
    reward: Signal | None = None
    success: Signal | None = None
    terminated: Signal | None = None
    terminate_on_success: bool = False
    truncated: Signal | None = None
    goal: Goal | None = None
    intervention: Signal | None = None
    reset: Signal | None = None
    kept_rate: Signal | None = None
    extra: dict[str, tuple[str, tuple[Signal, ...]]] = field(default_factory=dict)
    metadata: dict[str, Signal] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class _Section:
    """A mapping of the YAML being read: every value is taken once, of one kind, and what is left
    over is a mistake."""

    def __init__(self, raw: Any, where: str, shorthand: str = "") -> None:
        if shorthand and isinstance(raw, str):
            raw = {shorthand: raw}
        if not isinstance(raw, dict):
            raise InvalidInputError(f"{where} is {_short(raw)}, should be keys with values")
        self.raw: dict[Any, Any] = dict(raw)
        self.where = where
        self.known: list[str] = []

    def __contains__(self, key: str) -> bool:
        return key in self.raw

    def take(self, key: str, default: Any = None) -> Any:
        self.known.append(key)
        value = self.raw.pop(key, None)
        return default if value is None else value

    def text(self, key: str, default: str = "", needed: bool = False) -> str:
        value = self.take(key, default)
        if not isinstance(value, str) or (needed and not value):
            missing = "is missing" if value == "" else f"is {_short(value)}"
            raise InvalidInputError(f"{self.where}: {key} {missing}, should be a text")
        return value

    def choice(self, key: str, choices: tuple[str, ...], default: str) -> str:
        value = self.take(key, default)
        if value not in (*choices, default):
            raise unknown_name(key if self.where == _TOP else f"{self.where}.{key}", value, choices)
        return str(value)

    def number(self, key: str, default: float = 0.0, least: float = 0.0) -> float:
        value = self.take(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not (
            least <= value < 1e12
        ):
            raise InvalidInputError(
                f"{self.where}: {key} is {_short(value)}, should be a number of at least {least:g}"
            )
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self.take(key, default)
        if not isinstance(value, bool):
            raise InvalidInputError(
                f"{self.where}: {key} is {_short(value)}, should be true or false"
            )
        return value

    def numbers(self, key: str) -> tuple[float, ...]:
        value = self.take(key, [])
        items = value if isinstance(value, list) else [value]
        if len(items) > 4096 or not all(
            isinstance(x, (int, float)) and not isinstance(x, bool) and np.isfinite(x)
            for x in items
        ):
            raise InvalidInputError(
                f"{self.where}: {key} is {_short(value)}, should be a number or a list of them"
            )
        return tuple(float(x) for x in items)

    def wholes(self, key: str, count: int = 0, least: int = 0) -> tuple[int, ...]:
        value = self.take(key, [])
        right = isinstance(value, list) and len(value) <= 65536 and all(
            isinstance(x, int) and not isinstance(x, bool) and least <= x < 1 << 24 for x in value
        )
        if not right or (count and value and len(value) != count):
            length = f"{count} " if count else ""
            raise InvalidInputError(f"{self.where}: {key} is {_short(value)}, should be a list of "
                                    f"{length}whole numbers >= {least}")
        return tuple(value)

    def texts(self, key: str) -> tuple[str, ...]:
        value = self.take(key, [])
        if not isinstance(value, list) or not all(isinstance(x, str) for x in value):
            raise InvalidInputError(
                f"{self.where}: {key} is {_short(value)}, should be a list of texts"
            )
        if len(set(value)) != len(value):
            raise InvalidInputError(f"{self.where}: {key} names one thing twice: {_short(value)}")
        return tuple(value)

    def done(self) -> None:
        for key in self.raw:
            place = "at" if self.where == _TOP else "of"
            raise unknown_name(f"key {place} {self.where}", key, self.known)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


_STATE = frozenset({"interpolate"})
_COMMAND = frozenset({"choose"})
_RESULT = frozenset({"reduce"})
_FLAG = frozenset({"equals"})
_EVENT = frozenset({"optional"})
_EXTRA = frozenset({"dtype", "shape"})


def _signal(raw: Any, where: str, also: frozenset[str] = frozenset()) -> Signal:
    section = _Section(raw, where, "topic")
    values: dict[str, Any] = {
        "topic": section.text("topic", needed=True),
        "field": section.text("field"),
        "names": section.texts("names"),
        "entries": _entries(section),
        "scale": section.numbers("scale"),
        "offset": section.numbers("offset"),
        "clock": section.choice("clock", CLOCKS, ""),
        "max_age_s": section.number("max_age_s"),
        "on_missing": section.choice("on_missing", ON_MISSING, ""),
    }
    if "interpolate" in also:
        values["interpolate"] = section.choice("interpolate", ("none", "linear"),
                                               "none") == "linear"
    if "choose" in also:
        values["choose"] = section.choice("choose", ("first", "last"), "first")
    if "reduce" in also:
        values["reduce"] = section.choice("reduce", ("last", "any", "sum"), "last")
    if "equals" in also:
        values["equals"] = section.take("equals")
        if not isinstance(values["equals"], (bool, int, float, str, type(None))):
            raise InvalidInputError(f"{where}: equals is {_short(values['equals'])}, should be "
                                    "one value")
    if "optional" in also:
        values["optional"] = section.flag("optional", False)
    if "dtype" in also:
        values["dtype"] = section.choice("dtype", _DTYPES, "")
        values["shape"] = section.wholes("shape") if "shape" in section else None
        section.known.append("shape")
    section.done()
    return Signal(where=where, **values)


_DTYPES = ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
           "float16", "float32", "float64")


def _entries(section: _Section) -> tuple[int, ...]:
    """Entries as a list, or as ``slice: [first, end]``."""
    entries = section.wholes("entries")
    ends = section.wholes("slice", count=2)
    if ends and entries:
        raise InvalidInputError(f"{section.where}: give either entries or slice")
    if ends and not ends[0] < ends[1] <= ends[0] + 65536:
        raise InvalidInputError(f"{section.where}: slice {list(ends)} should be [first, end]")
    return tuple(range(*ends)) if ends else entries


def _signals(raw: Any, where: str, also: frozenset[str]) -> tuple[Signal, ...]:
    parts = raw if isinstance(raw, list) else [raw]
    if not parts or len(parts) > 256:
        raise InvalidInputError(f"{where} is {_short(raw)}, should be one topic or a list of them")
    found = tuple(
        _signal(part, where if len(parts) == 1 else f"{where}[{i}]", also)
        for i, part in enumerate(parts)
    )
    keys = [(s.topic, s.field, s.names, s.entries) for s in found]
    for i, key in enumerate(keys):
        if key in keys[:i]:
            raise InvalidInputError(f"{found[i].where} takes the same as "
                                    f"{found[keys.index(key)].where}: {key[0]} {key[1]}".rstrip())
    return found


def _action(raw: Any, where: str) -> Action:
    if isinstance(raw, (list, str)):
        return Action(parts=_signals(raw, where, _COMMAND))
    section = _Section(raw, where)
    low, high = section.numbers("low"), section.numbers("high")
    clip = section.flag("clip", True)
    if bool(low) != bool(high) or len(low) != len(high) or any(
        a >= b for a, b in zip(low, high, strict=False)
    ):
        raise InvalidInputError(
            f"{where}: low is {list(low)} and high {list(high)}; give both, of one length, each "
            "low below its high"
        )
    limits = {"low": low, "high": high, "clip": clip}
    if "from" in section:
        of = section.choice("from", ("next", "difference"), "next")
        entries = _entries(section)
        section.done()
        return Action(of=of, entries=entries, **limits)  # type: ignore[arg-type]
    if "parts" in section:
        parts = _signals(section.take("parts"), where, _COMMAND)
        section.done()
    else:
        parts = (_signal(section.raw, where, _COMMAND),)
    return Action(parts=parts, **limits)  # type: ignore[arg-type]


def _camera(name: Any, raw: Any) -> Camera:
    where = f"images.{name}"
    if not isinstance(name, str) or not name.replace("_", "").replace("-", "").isalnum():
        raise InvalidInputError(f"images: a camera is called {_short(name)}, should be letters, "
                                "digits, - and _")
    section = _Section(raw, where, "topic")
    camera = Camera(
        name=name,
        topic=section.text("topic", needed=True),
        where=where,
        crop=section.wholes("crop", count=4),
        size=section.wholes("size", count=2, least=1),
        clock=section.choice("clock", CLOCKS, ""),
        max_age_s=section.number("max_age_s"),
        on_missing=section.choice("on_missing", ON_MISSING, ""),
        frames=section.choice("frames", ("used", "all"), "used"),
    )
    section.done()
    if camera.size and camera.size[0] * camera.size[1] > 1 << 24:
        raise InvalidInputError(f"{where}: size {list(camera.size)} is over {1 << 24} pixels")
    return camera


def _goal(raw: Any) -> Goal:
    section = _Section(raw, "goal")
    achieved, desired = section.take("achieved"), section.take("desired", "final")
    threshold = section.number("threshold_m")
    section.done()
    entries: tuple[int, ...] = ()
    parts: tuple[Signal, ...] = ()
    if isinstance(achieved, dict) and "topic" not in achieved:
        inner = _Section(achieved, "goal.achieved")
        entries = _entries(inner)
        inner.done()
        if not entries:
            raise InvalidInputError("goal.achieved: give entries of the state, a slice, or a topic")
    elif achieved is None:
        raise InvalidInputError("goal: achieved is missing: {entries: [...]} of the state, or a "
                                "topic")
    else:
        parts = _signals(achieved, "goal.achieved", _STATE)
    wanted = () if desired == "final" else _signals(desired, "goal.desired", frozenset())
    return Goal(entries, parts, wanted, threshold)


def _boundaries(raw: Any) -> Boundaries:
    section = _Section(raw, "episodes")
    start, stop = section.take("start"), section.take("stop")
    found = Boundaries(
        start=None if start is None else _signal(start, "episodes.start", _FLAG | _EVENT),
        stop=None if stop is None else _signal(stop, "episodes.stop", _FLAG | _EVENT),
        gap_s=section.number("gap_s"),
        min_steps=int(section.number("min_steps", 1, least=1)),
        record=section.text("record"),
    )
    section.done()
    if found.stop is not None and found.start is None:
        raise InvalidInputError("episodes: stop needs a start")
    if found.gap_s and found.start is not None:
        raise InvalidInputError("episodes: give either start (and stop) or gap_s")
    return found


def _extra(raw: Any) -> dict[str, tuple[str, tuple[Signal, ...]]]:
    found: dict[str, tuple[str, tuple[Signal, ...]]] = {}
    for key, value in _Section(raw, "extra").raw.items():
        where = f"extra.{key}"
        if not isinstance(key, str) or not key or key in CORE_KEYS or key.startswith(
            (IMAGES, f"{TIMESTAMP}.")
        ):
            raise InvalidInputError(f"extra: {_short(key)} cannot be an extra key: it has a "
                                    "meaning of its own")
        rows = "states"
        if isinstance(value, dict):
            value = dict(value)
            rows = value.pop("rows", "states")
        if rows not in ("states", "steps"):
            raise unknown_name(f"{where}: rows", rows, ("states", "steps"))
        also = _EXTRA | (_STATE if rows == "states" else _COMMAND)
        found[key] = (rows, _signals(value, where, also))
    return found


_DATASET = {"robot": str, "software": str, "env": dict, "config": dict, "calibration": dict}


def _dataset(raw: Any) -> dict[str, Any]:
    section = _Section(raw, "dataset")
    found: dict[str, Any] = {}
    for key, kind in _DATASET.items():
        value = section.take(key)
        if value is None:
            continue
        if not isinstance(value, kind):
            raise InvalidInputError(f"dataset: {key} is {_short(value)}, should be "
                                    f"{'a text' if kind is str else 'keys with values'}")
        found[key] = value
    section.done()
    return found


def parse_mapping(raw: Any, where: str = "mapping") -> Mapping:
    """What a mapping says, checked as far as that goes without a bag.

    Raises:
        InvalidInputError: a key is unknown (the nearest is suggested), missing, of the wrong kind
            or given twice.
    """
    try:
        return _parse(raw)
    except InvalidInputError as error:
        raise InvalidInputError(f"{where}: {error}") from None


def _parse(raw: Any) -> Mapping:
    top = _Section(raw, _TOP)
    values: dict[str, Any] = {
        "task": top.text("task"),
        "rate_hz": top.number("rate_hz"),
        "clock": top.choice("clock", CLOCKS, "header"),
        "on_missing": top.choice("on_missing", ON_MISSING, "hold"),
    }

    def single(name: str, key: str, also: frozenset[str]) -> None:
        given = top.take(key)
        if given is not None:
            values[name] = _signal(given, key, also)

    single("ticks", "ticks", frozenset())
    single("align", "align", frozenset())
    if (given := top.take("dataset")) is not None:
        values["dataset"] = _dataset(given)
    if (given := top.take("episodes")) is not None:
        values["episodes"] = _boundaries(given)
    if (given := top.take("observation.state")) is not None:
        values["state"] = _signals(given, "observation.state", _STATE)
    if (given := top.take("action")) is None:
        raise InvalidInputError("action is missing: a topic of commands, or {from: next} or "
                                "{from: difference} to take it from the state")
    values["action"] = _action(given, "action")
    if (given := top.take("action.requested")) is not None:
        values["requested"] = _action(given, "action.requested")
    if (given := top.take("images")) is not None:
        cameras = _Section(given, "images").raw
        values["cameras"] = tuple(_camera(name, each) for name, each in cameras.items())
    if top.raw.get("terminated") == "success":
        top.take("terminated")
        values["terminate_on_success"] = True
    single("reward", "reward", _RESULT)
    for key in ("success", "terminated", "truncated"):
        single(key, key, _RESULT | _FLAG | _EVENT)
    if (given := top.take("goal")) is not None:
        values["goal"] = _goal(given)
    for name, key in (("intervention", "intervention"), ("reset", "reset")):
        single(name, key, _COMMAND | _FLAG | _EVENT)
    single("kept_rate", "control_rate_hz", _COMMAND)
    if (given := top.take("extra")) is not None:
        values["extra"] = _extra(given)
    if (given := top.take("metadata")) is not None:
        values["metadata"] = {
            str(key): _signal(each, f"metadata.{key}", _EVENT) for key, each in
            _Section(given, "metadata").raw.items()
        }
    top.done()
    mapping = Mapping(**values)
    _check_sense(mapping)
    return mapping


def _check_sense(mapping: Mapping) -> None:
    """What is right by itself but not together."""
    if not mapping.state and not mapping.cameras:
        raise InvalidInputError("observation.state and images are both missing: nothing to see")
    for action in (mapping.action, mapping.requested):
        if action is not None and action.of and not mapping.state:
            raise InvalidInputError(f"action: from {action.of} needs an observation.state")
    goal = mapping.goal
    if goal is not None and goal.entries and not mapping.state:
        raise InvalidInputError("goal.achieved: entries need an observation.state")
    if goal is not None and goal.threshold and mapping.reward is not None:
        raise InvalidInputError("goal.threshold_m makes the rewards; give it or reward, not both")
    if mapping.terminate_on_success and mapping.success is None and not (
        goal is not None and goal.threshold
    ):
        raise InvalidInputError("terminated: success needs a success topic or a goal with "
                                "threshold_m")
