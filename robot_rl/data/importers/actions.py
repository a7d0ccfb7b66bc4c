"""Which actions an import gave, and whether an agent can take them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from robot_rl.data.importers.mapping import Mapping

_SLACK = 1e-6
_SHOWN = 12


class ActionRange:
    """The range of all actions so far, and how many lie outside [-1, 1]."""

    def __init__(self) -> None:
        self.low: NDArray[Any] = np.zeros(0)
        self.high: NDArray[Any] = np.zeros(0)
        self.steps = self.outside = 0

    def add(self, action: NDArray[np.float32]) -> None:
        """Count the actions (T, A) of an episode, T >= 1."""
        low, high = action.min(axis=0), action.max(axis=0)
        same = self.low.shape == low.shape
        self.low = np.minimum(self.low, low) if same else low
        self.high = np.maximum(self.high, high) if same else high
        self.steps += len(action)
        self.outside += int((np.abs(action) > 1.0 + _SLACK).any(axis=1).sum())

    def notes(self, mapping: Mapping) -> list[str]:
        """What to do about actions that no agent can take."""
        if not self.outside:
            return []
        low, high = (", ".join(f"{x:.6g}" for x in side[:_SHOWN])
                     + (", ..." if len(side) > _SHOWN else "") for side in (self.low, self.high))
        found = (f"action: {self.outside} of {self.steps} steps lie outside [-1, 1], which is all "
                 f"that an agent can do; found from [{low}] to [{high}]")
        if mapping.action.low:
            return [f"{found}; they lie beyond low and high, and clip is false"]
        return [f"{found}; give action the keys low: and high: of the controller (such as these), "
                "which become -1 and 1"]
