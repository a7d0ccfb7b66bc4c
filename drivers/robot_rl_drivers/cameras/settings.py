"""Exposure, gain, white balance and focus, held still for training and read back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from robot_rl.errors import InvalidInputError
from robot_rl_drivers.cameras.options import AUTO, CameraOptions

# Each setting, and what rules it while the device does so itself; exposure comes first, since
# automatic exposure rules the gain as well.
AUTOMATIC = {
    "exposure": "auto_exposure",
    "gain": None,
    "white_balance": "auto_white_balance",
    "focus": "auto_focus",
}
# A device rounds to its own steps.
_TOLERANCE = 0.02


class Control(Protocol):
    """A device's knobs by name; automatics are 1 (on) or 0 (off)."""

    def get(self, name: str) -> float | None:
        """What the device says it is set to; None if it lacks the knob."""

    def set(self, name: str, value: float) -> bool:
        """Whether the device took the value."""


@dataclass
class Settings:
    """What the device says it is set to, and what it refused, in words."""

    values: dict[str, float] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)


def wants_settings(options: CameraOptions) -> bool:
    """Whether a value is asked for any setting."""
    return any(getattr(options, name) is not None for name in AUTOMATIC)


def apply_settings(control: Control, options: CameraOptions, name: str) -> Settings:
    """Set what is asked for, switch the automatics off, and read everything back.

    A setting that nothing was said of is kept at the value the automatic had reached.

    Raises:
        InvalidInputError: the device refused something, and ``options.refused`` is ``fail``.
    """
    done = Settings()
    for setting, automatic in AUTOMATIC.items():
        wanted = getattr(options, setting)
        if wanted is None and not options.fix:
            continue
        if wanted == AUTO:
            _automatic(control, setting, automatic, done)
        else:
            _fixed(control, setting, automatic, wanted, done)
        value = control.get(setting)
        if value is not None:
            done.values[setting] = value
    if done.refused and options.refused == "fail":
        raise InvalidInputError(f"camera {name!r}: " + "; ".join(done.refused))
    return done


def _automatic(control: Control, setting: str, automatic: str | None, done: Settings) -> None:
    if automatic is None or control.get(automatic) is None:
        done.refused.append(f"{setting}=auto: the device has no automatic {_words(setting)}")
    elif not control.set(automatic, 1.0) or control.get(automatic) != 1.0:
        done.refused.append(f"{setting}=auto: the device did not switch it on")


def _fixed(
    control: Control, setting: str, automatic: str | None, wanted: float | None, done: Settings
) -> None:
    reached = control.get(setting)
    if automatic is not None and control.get(automatic) is not None and (
        not control.set(automatic, 0.0) or control.get(automatic) != 0.0
    ):
        done.refused.append(f"the device did not switch automatic {_words(setting)} off")
    target = reached if wanted is None else wanted
    if target is None:
        return  # the device lacks it, and nobody asked for it
    if wanted is not None and reached is None:
        done.refused.append(f"{setting}={wanted:g}: the device has no {_words(setting)}")
        return
    taken = control.set(setting, target)
    found = control.get(setting)
    if found is None or abs(found - target) > max(1.0, _TOLERANCE * abs(target)):
        says = "nothing" if found is None else f"{found:g}"
        done.refused.append(f"{setting}={target:g}: the device says {says}")
    elif not taken and wanted is not None:
        done.refused.append(f"{setting}={target:g}: the device did not take it")


def _words(setting: str) -> str:
    return setting.replace("_", " ")
