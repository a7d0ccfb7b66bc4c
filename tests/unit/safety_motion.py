"""An arm on the move, for the tests of holds."""

from __future__ import annotations

PERIOD_S = 0.1


def cruise(at, steps: int = 4) -> None:
    """The arm moves, in the middle of a control period."""
    for _ in range(steps):
        at.step([0.02, 0.0, 0.0])
    at.safety.move([0.02, 0.0, 0.0], 0.0, PERIOD_S)
    at.wait(0.03)
