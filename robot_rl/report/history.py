"""What a run folder holds, and the runs that it went on from, for its report."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from robot_rl.errors import InvalidInputError
from robot_rl.report.plots import Curve
from robot_rl.training.checkpoint import find_checkpoint
from robot_rl.training.runs import CONFIG, read_config, read_metrics
from robot_rl.training.setup import EnvChoice

SUCCESS, DISTANCE = "eval/success_rate", "eval/mean_final_distance"
PRACTICE = "practice/success"
_KINDS = ("pretrain", "train")
_SHARES = (SUCCESS, PRACTICE)


@dataclass
class Phase:
    """One run folder's part in a history: its metrics, up to the step it was left at."""

    kind: str
    folder: Path
    rows: list[dict[str, Any]]
    length: int

    def series(self, key: str) -> tuple[list[float], list[float]]:
        """Steps and values of a metric, where it is a finite number, and a share where it should
        be one."""
        found = [(row["step"], row[key]) for row in self.rows
                 if _number(row.get(key)) and (key not in _SHARES or 0.0 <= row[key] <= 1.0)]
        return [float(step) for step, _ in found], [float(value) for _, value in found]

    def evaluations(self) -> list[dict[str, Any]]:
        """The evaluations as EvalResult.as_dict() has them, with their ``step``."""
        found = []
        for row in self.rows:
            scores = {key.removeprefix("eval/"): value for key, value in row.items()
                      if key.startswith("eval/") and _number(value)}
            rate, episodes = scores.get("success_rate"), scores.get("episodes")
            if rate is not None and episodes and 0.0 <= rate <= 1.0 and episodes >= 1:
                found.append({**scores, "step": row["step"]})
        return found


@dataclass
class Run:
    """A run folder as the report needs it. ``phases``: what it went on from first."""

    folder: Path
    config: dict[str, Any]
    kind: str
    agent: str
    env: EnvChoice
    phases: list[Phase]
    notes: list[str] = field(default_factory=list)

    @property
    def options(self) -> dict[str, Any]:
        value: dict[str, Any] = self.config[self.kind]
        return value

    @property
    def seed(self) -> int:
        return _whole(self.options.get("seed"), 0)

    @property
    def planned(self) -> int:
        return _whole(self.options.get("steps" if self.kind == "pretrain" else "env_steps"), 0)

    @property
    def own(self) -> Phase:
        return self.phases[-1]

    @property
    def pretraining(self) -> int:
        """Updates before practice began."""
        return sum(phase.length for phase in self.phases if phase.kind == "pretrain")

    def curve(self, key: str, boundary: float) -> Curve:
        """A metric over the report's x axis: updates, then from ``boundary`` on practice."""
        steps: list[float] = []
        values: list[float] = []
        practised = 0
        for phase in self.phases:
            offset = 0.0
            if phase.kind == "train":
                offset, practised = boundary + practised, practised + phase.length
            found_steps, found_values = phase.series(key)
            steps += [offset + step for step in found_steps]
            values += found_values
        return steps, values

    def keys(self) -> list[str]:
        """Every metric with a number somewhere, in order of appearance."""
        return list(dict.fromkeys(
            key for phase in self.phases for row in phase.rows for key, value in row.items()
            if key != "step" and _number(value)
        ))


def read_run(folder: str | Path) -> Run:
    """A run folder, and before it the runs it went on from.

    Raises:
        InvalidInputError: its configuration is missing or damaged.
    """
    folder = Path(folder).resolve()
    config = _checked_config(folder)
    kind = config["kind"]
    choice = _env_choice(config.get("env"), folder / CONFIG)
    agent = str(config[kind].get("agent") or config.get("agent_name") or "")
    notes: list[str] = []
    phases = [*_before(config, notes, {folder}), _phase(kind, folder, None)]
    return Run(folder, config, kind, agent, choice, phases, notes)


def _checked_config(folder: Path) -> dict[str, Any]:
    config = read_config(folder)
    kind = config.get("kind")
    if kind not in _KINDS:
        raise InvalidInputError(
            f"run: {folder / CONFIG} is of kind {kind!r}; valid: {', '.join(_KINDS)}"
        )
    if not isinstance(config.get(kind), dict):
        raise InvalidInputError(f"run: {folder / CONFIG} is damaged: it lacks {kind!r}")
    return config


def _env_choice(values: Any, file: Path) -> EnvChoice:
    try:
        choice = EnvChoice(**values)
        for name in ("task", "robot", "backend"):
            if not isinstance(getattr(choice, name), str):
                raise TypeError(f"{name} is {getattr(choice, name)!r}")
        if not _number(choice.control_hz):
            raise TypeError(f"control_hz is {choice.control_hz!r}")
        if not all(_number(amount) for amount in dict(choice.randomize).values()):
            raise TypeError(f"randomize is {choice.randomize!r}")
    except (TypeError, ValueError) as error:
        raise InvalidInputError(
            f"run: {file} is damaged: env does not say which environment ({error})"
        ) from None
    return choice


def _phase(kind: str, folder: Path, until: int | None) -> Phase:
    rows = [row for row in read_metrics(folder) if _number(row["step"])]
    if until is not None:
        rows = [row for row in rows if row["step"] <= until]
    last = max((int(row["step"]) for row in rows), default=0)
    return Phase(kind, folder, rows, last if until is None else until)


def _before(config: dict[str, Any], notes: list[str], seen: set[Path]) -> list[Phase]:
    """The phases before a run, oldest first; what is missing is noted."""
    source = config["kind"] == "train" and config["train"].get("from_run")
    if not source:
        return []
    try:
        checkpoint = find_checkpoint(str(source)).resolve()
        folder = next((place for place in (Path(str(source)).resolve(), checkpoint.parent.parent)
                       if (place / CONFIG).is_file()), None)
        if folder is None:
            raise InvalidInputError(f"run: {source} is a checkpoint without its run")
        if folder in seen:
            raise InvalidInputError(f"run: {folder} goes on from itself")
        seen.add(folder)
        earlier = _checked_config(folder)
    except InvalidInputError as error:
        notes.append(f"What this run went on from cannot be drawn ({error}); the curves begin with "
                     "practice.")
        return []
    number = checkpoint.name.rpartition("_")[2]
    until = int(number) if number.isdigit() else None
    return [*_before(earlier, notes, seen), _phase(earlier["kind"], folder, until)]


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _whole(value: Any, otherwise: int) -> int:
    return int(value) if _number(value) else otherwise
