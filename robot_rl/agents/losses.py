"""Losses, each with its gradient, and the weights and targets that go into them.

Every loss is a mean over the batch of ``weight * per-sample loss``; ``weight`` (B,) may be None,
which means one. The gradients are exact (checked against autograd and finite differences).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

_HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)


class Loss(NamedTuple):
    """A loss and its gradient with respect to the prediction."""

    value: Tensor
    gradient: Tensor


class GaussianLoss(NamedTuple):
    """A Gaussian loss and its gradients with respect to mean and log std, both (B, a)."""

    value: Tensor
    mean_gradient: Tensor
    log_std_gradient: Tensor


def squared_loss(prediction: Tensor, target: Tensor, weight: Tensor | None = None) -> Loss:
    """Mean of ``(target - prediction)^2``; prediction, target (B,) (seed 001, ch. 8, eq. 48)."""
    difference = prediction - target
    slope = difference if weight is None else difference * weight
    count = prediction.shape[0]
    return Loss(torch.dot(slope, difference) / count, slope * (2.0 / count))


def expectile_loss(
    prediction: Tensor, target: Tensor, expectile: float, weight: Tensor | None = None
) -> Loss:
    """Mean of ``|expectile - 1(u < 0)| u^2``, ``u = target - prediction`` (seed 001, ch. 8.3.1).

    Its minimiser is the expectile of the targets: .5 the mean, towards 1 the maximum.

    Args:
        prediction, target: (B,).
        expectile: in (0, 1).
    """
    difference = prediction - target
    # |expectile - 1(u < 0)| times the difference, in one pass: a leaky ReLU.
    above = 1.0 - expectile
    slope = torch.nn.functional.leaky_relu(difference, expectile / above).mul_(above)
    if weight is not None:
        slope = slope * weight
    count = prediction.shape[0]
    return Loss(torch.dot(slope, difference) / count, slope * (2.0 / count))


def gaussian_log_prob(mean: Tensor, log_std: Tensor, action: Tensor) -> Tensor:
    """Log density (B,) of ``action`` (B, a) under independent Gaussians.

    Shapes: mean (B, a), log_std (B, a) or (a,).
    """
    scaled = (action - mean) * torch.exp(-log_std)
    return (-0.5 * scaled.square() - log_std - _HALF_LOG_2PI).sum(1)


def gaussian_nll(
    mean: Tensor, log_std: Tensor, action: Tensor, weight: Tensor | None = None
) -> GaussianLoss:
    """Mean of ``-weight * log N(action; mean, exp(log_std))`` (seed 001, eq. 42 and 49).

    Shapes: mean, action (B, a), log_std (B, a) or (a,), weight (B,).
    """
    count, dims = mean.shape
    inverse_std = torch.exp(-log_std)
    scaled = (mean - action) * inverse_std
    share = 1.0 / count
    weights: Tensor | float = share if weight is None else (weight * share).unsqueeze(1)
    squares = scaled * scaled
    loss = ((0.5 * squares + log_std) * weights).sum()
    total = 1.0 if weight is None else weight.mean()
    return GaussianLoss(
        loss + dims * _HALF_LOG_2PI * total,
        scaled * inverse_std * weights,
        (1.0 - squares) * weights,
    )


def squared_action_loss(mean: Tensor, action: Tensor, weight: Tensor | None = None) -> GaussianLoss:
    """Mean over the batch of ``weight * |action - mean|^2``, summed over dimensions."""
    difference = mean - action
    share = 1.0 / mean.shape[0]
    slope = difference * (share if weight is None else (weight * share).unsqueeze(1))
    return GaussianLoss((slope * difference).sum(), 2.0 * slope, torch.zeros_like(mean))


def exponential_weights(advantage: Tensor, inverse_temperature: float, limit: float) -> Tensor:
    """``min(exp(inverse_temperature * advantage), limit)``, (B,) (seed 001, eq. 42 and 49).

    The exponent is clipped before the exponential, so no advantage overflows.
    """
    return torch.exp((advantage * inverse_temperature).clamp_max(math.log(limit)))


def softmax_weights(advantage: Tensor, inverse_temperature: float, limit: float) -> Tensor:
    """Softmax of ``inverse_temperature * advantage`` over the batch times its size, (B,).

    This is `exponential_weights` normalised to a mean of one (the normaliser Z of seed 001,
    ch. 7, estimated on the batch), then clipped at ``limit``.
    """
    count = advantage.shape[0]
    return (torch.softmax(advantage * inverse_temperature, 0) * count).clamp_max(limit)


def bellman_target(
    reward: Tensor,
    discount: Tensor,
    next_value: Tensor,
    value_clip: tuple[float, float] | None = None,
) -> Tensor:
    """``reward + discount * next_value``, then clipped to ``value_clip``; all (B,).

    ``discount`` is per sample, gamma^n (1 - terminated): nothing is bootstrapped past a terminal.
    """
    target = torch.addcmul(reward, discount, next_value)
    return target if value_clip is None else target.clamp_(*value_clip)
