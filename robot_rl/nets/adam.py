"""Adam over one flat buffer: one fused pass instead of one per parameter."""

from __future__ import annotations

import torch
from torch import Tensor

_BETA1, _BETA2, _EPSILON = 0.9, 0.999, 1e-8


class FlatAdam:
    """Adam (Kingma and Ba, 2015, Algorithm 1) with the usual betas, in place, on a flat buffer."""

    def __init__(self, parameters: Tensor, learning_rate: float) -> None:
        """``parameters`` (n,) is updated in place by `step`."""
        self.learning_rate = learning_rate
        self.exp_avg = torch.zeros_like(parameters)
        self.exp_avg_sq = torch.zeros_like(parameters)
        # Float32, as torch's fused kernel wants it; exact up to 2**24 steps, when the bias
        # correction has long been 1.
        self.step_count = torch.zeros((), device=parameters.device)
        self._parameters = parameters

    def step(self, gradient: Tensor) -> None:
        """One descent step along ``gradient`` (n,)."""
        self.step_count.add_(1.0)
        torch._fused_adam_(
            [self._parameters],
            [gradient],
            [self.exp_avg],
            [self.exp_avg_sq],
            [],
            [self.step_count],
            lr=self.learning_rate,
            beta1=_BETA1,
            beta2=_BETA2,
            weight_decay=0.0,
            eps=_EPSILON,
            amsgrad=False,
            maximize=False,
        )
