"""Input normalisation: fitted once on the data, then frozen."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from robot_rl.errors import InvalidInputError

# A dimension that hardly moved in the data (a locked joint) must not be blown up when it does.
STD_FLOOR = 1e-2
# In standard deviations: what lies further out was not in the data, and must not run away.
CLIP = 10.0


class Normalizer:
    """``clip((x - mean) / max(std, STD_FLOOR), ±CLIP)`` per dimension; at first mean 0, std 1."""

    def __init__(self, name: str, size: int, device: torch.device) -> None:
        self.name = name
        self.mean = torch.zeros(size, device=device)
        self.std = torch.ones(size, device=device)
        self._scale = torch.ones(size, device=device)
        self._shift = torch.zeros(size, device=device)

    def fit(self, values: ArrayLike) -> None:
        """Takes mean and standard deviation from ``values``, (N, size), N >= 1, all finite."""
        array = np.asarray(values, dtype=np.float64)
        size = self.mean.numel()
        if array.ndim != 2 or array.shape[1] != size or array.shape[0] < 1:
            raise InvalidInputError(
                f"{self.name} for the normaliser has shape {array.shape}; it must be (N, {size})"
                " with N at least 1"
            )
        if not np.isfinite(array).all():
            raise InvalidInputError(
                f"{self.name} for the normaliser holds values that are not finite"
            )
        self.mean.copy_(torch.from_numpy(array.mean(axis=0)))
        self.std.copy_(torch.from_numpy(np.maximum(array.std(axis=0), STD_FLOOR)))
        self.refresh()

    def refresh(self) -> None:
        """Derives the scale and shift that are applied, after mean and std were written."""
        self._scale.copy_(1.0 / self.std)
        self._shift.copy_(-self.mean / self.std)

    def copy_from(self, other: Normalizer) -> None:
        """Takes mean and std from ``other``, which may lie on another device."""
        self.mean.copy_(other.mean)
        self.std.copy_(other.std)
        self.refresh()

    def __call__(self, x: Tensor) -> Tensor:
        """(B, size) -> (B, size)."""
        return torch.addcmul(self._shift, x, self._scale).clamp_(-CLIP, CLIP)
