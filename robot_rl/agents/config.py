"""The options that every agent has, and the checks that all configs share."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

from robot_rl.errors import InvalidInputError, unknown_name

CompileMode = Literal["auto", "on", "off"]
StdMode = Literal["fixed", "learned", "state"]


def option(default: Any, help: str) -> Any:
    """A config field; ``help`` is the text of its command line flag."""
    return dataclasses.field(default=default, metadata={"help": help})


def check_number(
    config: object,
    name: str,
    low: float,
    high: float = math.inf,
    *,
    low_open: bool = False,
    high_open: bool = False,
    integer: bool = False,
) -> None:
    """Raises InvalidInputError unless ``config.name`` is a number from ``low`` to ``high``.

    ``low_open`` and ``high_open`` exclude the limit itself.
    """
    value = getattr(config, name)
    limits = f"{'(' if low_open else '['}{low:g}, {high:g}{')' if high_open else ']'}"
    kind = "an integer" if integer else "a number"
    wanted = (int,) if integer else (int, float)
    good = isinstance(value, wanted) and not isinstance(value, bool) and math.isfinite(value)
    if good:
        above = value > low if low_open else value >= low
        below = value < high if high_open else value <= high
        good = above and below
    if not good:
        raise InvalidInputError(f"{name} is {value!r}; it must be {kind} in {limits}")


def check_choice(config: object, name: str, choices: tuple[str, ...]) -> None:
    """Raises InvalidInputError unless ``config.name`` is one of ``choices``."""
    value = getattr(config, name)
    if value not in choices:
        raise unknown_name(name, value, choices)


def check_flag(config: object, name: str) -> None:
    """Raises InvalidInputError unless ``config.name`` is True or False."""
    value = getattr(config, name)
    if not isinstance(value, bool):
        raise InvalidInputError(f"{name} is {value!r}; it must be True or False")


def as_range(config: object, name: str) -> None:
    """Turns ``config.name``, None or a pair of numbers low < high, into None or a tuple."""
    value = getattr(config, name)
    if value is None:
        return
    try:
        low, high = (float(part) for part in value)
    except (TypeError, ValueError):
        low, high = math.nan, math.nan
    if not low < high or math.isinf(low) or math.isinf(high):
        raise InvalidInputError(
            f"{name} is {value!r}; it must be None or two finite numbers, low < high"
        )
    object.__setattr__(config, name, (low, high))


@dataclasses.dataclass(frozen=True)
class AgentConfig:
    """What all agents share.

    Raises:
        InvalidInputError: a value out of range; the message names field, value and limits.
    """

    hidden_dims: tuple[int, ...] = option((256, 256), "widths of the hidden layers of each network")
    learning_rate: float = option(3e-4, "Adam's step size, for all networks")
    batch_size: int = option(256, "transitions per update, for whoever samples them")
    discount: float = option(
        0.98, "discount per step, for whoever fills in Batch.discount; in [0, 1)"
    )
    policy_std: StdMode = option(
        "learned",
        "standard deviation of the policy: fixed, learned (one per action dimension),"
        " or state (predicted from the input)",
    )
    std: float = option(
        0.15, "the standard deviation if fixed, else where it starts; actions span [-1, 1]"
    )
    log_std_min: float = option(-5.0, "lower bound of the log standard deviation if not fixed")
    log_std_max: float = option(0.5, "upper bound of the log standard deviation if not fixed")
    layer_norm: bool = option(False, "layer normalisation before each ReLU")
    policy_weight_decay: float = option(0.0, "L2 penalty on the policy's parameters, as in Adam")
    grad_clip: float | None = option(
        None, "largest gradient norm of each network; None for no limit"
    )
    normalize_observations: bool = option(
        True, "standardise observations and goals with statistics fitted once on the data"
    )
    compile: CompileMode = option(
        "auto", "torch.compile the update: on, off, or auto (on for cuda, off for cpu)"
    )

    def __post_init__(self) -> None:
        try:
            dims = tuple(self.hidden_dims)
        except TypeError:
            dims = ()
        if not dims or not all(isinstance(d, int) and d >= 1 for d in dims):
            raise InvalidInputError(
                f"hidden_dims is {self.hidden_dims!r};"
                " it must be one or more integers, each 1 or more"
            )
        object.__setattr__(self, "hidden_dims", dims)
        check_number(self, "learning_rate", 0.0, 1.0, low_open=True)
        check_number(self, "batch_size", 1, integer=True)
        check_number(self, "discount", 0.0, 1.0, high_open=True)
        check_choice(self, "policy_std", ("fixed", "learned", "state"))
        check_number(self, "std", 0.0, 10.0, low_open=True)
        check_number(self, "log_std_min", -20.0, 3.0)
        check_number(self, "log_std_max", self.log_std_min, 3.0, low_open=True)
        if self.policy_std != "fixed":
            low, high = math.exp(self.log_std_min), math.exp(self.log_std_max)
            check_number(self, "std", low, high, low_open=True, high_open=True)
        check_flag(self, "layer_norm")
        check_number(self, "policy_weight_decay", 0.0, 1.0)
        if self.grad_clip is not None:
            check_number(self, "grad_clip", 0.0, low_open=True)
        check_flag(self, "normalize_observations")
        check_choice(self, "compile", ("auto", "on", "off"))
