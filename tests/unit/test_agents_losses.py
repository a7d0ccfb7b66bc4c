"""Losses against closed forms, brute force and autograd."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from robot_rl.agents.losses import (
    bellman_target,
    expectile_loss,
    exponential_weights,
    gaussian_log_prob,
    gaussian_nll,
    softmax_weights,
    squared_action_loss,
    squared_loss,
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def positive(size: int) -> Tensor:
    return normal(size, seed=9).abs() + 0.1


def test_expectile_of_a_uniform_distribution() -> None:
    # For U(0, 1): tau (1 - m)^2 = (1 - tau) m^2, so m = sqrt(tau) / (sqrt(tau) + sqrt(1 - tau)).
    targets = (torch.arange(20000, dtype=torch.float64) + 0.5) / 20000
    for tau in (0.1, 0.5, 0.7, 0.9, 0.99):
        low, high = 0.0, 1.0
        for _ in range(50):
            middle = 0.5 * (low + high)
            slope = expectile_loss(torch.full_like(targets, middle), targets, tau).gradient.sum()
            low, high = (middle, high) if slope < 0.0 else (low, middle)
        root = math.sqrt(tau)
        assert low == pytest.approx(root / (root + math.sqrt(1.0 - tau)), abs=1e-6)


def test_expectile_loss_equals_its_formula() -> None:
    prediction, target, weight = normal(50), normal(50, seed=1), positive(50)
    expected = 0.0
    for p, t, w in zip(prediction.tolist(), target.tolist(), weight.tolist(), strict=True):
        u = t - p
        expected += w * abs(0.7 - (1.0 if u < 0.0 else 0.0)) * u * u / 50
    assert expectile_loss(prediction, target, 0.7, weight).value.item() == pytest.approx(expected)
    half = expectile_loss(prediction, target, 0.5).value * 2.0
    torch.testing.assert_close(half, squared_loss(prediction, target).value)


@pytest.mark.parametrize("weighted", [False, True])
def test_scalar_gradients_equal_autograd(weighted: bool) -> None:
    weight = positive(30) if weighted else None
    factor = weight if weight is not None else torch.ones(30, dtype=torch.float64)
    prediction, target = normal(30).requires_grad_(), normal(30, seed=1)
    difference = target - prediction
    asymmetry = torch.where(difference < 0.0, 0.2, 0.8).double()
    cases = [
        (squared_loss(prediction.detach(), target, weight), factor * difference**2),
        (
            expectile_loss(prediction.detach(), target, 0.8, weight),
            factor * asymmetry * difference**2,
        ),
    ]
    for loss, samples in cases:
        (expected,) = torch.autograd.grad(samples.mean(), prediction, retain_graph=True)
        torch.testing.assert_close(loss.value, samples.mean().detach())
        torch.testing.assert_close(loss.gradient, expected)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shared_std", [False, True])
def test_gaussian_gradients_equal_autograd(weighted: bool, shared_std: bool) -> None:
    weight = positive(30) if weighted else None
    factor = weight if weight is not None else torch.ones(30, dtype=torch.float64)
    mean, action = normal(30, 4).requires_grad_(), normal(30, 4, seed=1)
    log_std = (0.3 * (normal(4, seed=2) if shared_std else normal(30, 4, seed=2))).requires_grad_()
    density = torch.distributions.Normal(mean, log_std.exp()).log_prob(action).sum(1)
    expected = -(factor * density).mean()
    d_mean, d_log_std = torch.autograd.grad(expected, (mean, log_std))

    loss = gaussian_nll(mean.detach(), log_std.detach(), action, weight)
    torch.testing.assert_close(loss.value, expected.detach())
    torch.testing.assert_close(loss.mean_gradient, d_mean)
    ours = loss.log_std_gradient.sum(0) if shared_std else loss.log_std_gradient
    torch.testing.assert_close(ours, d_log_std)
    torch.testing.assert_close(gaussian_log_prob(mean, log_std, action), density)

    squares = (factor * ((mean - action) ** 2).sum(1)).mean()
    (d_mean,) = torch.autograd.grad(squares, mean)
    plain = squared_action_loss(mean.detach(), action, weight)
    torch.testing.assert_close(plain.value, squares.detach())
    torch.testing.assert_close(plain.mean_gradient, d_mean)
    assert not plain.log_std_gradient.any()


def test_gaussian_gradient_equals_finite_differences() -> None:
    mean, log_std, action = normal(5, 2), normal(5, 2, seed=1), normal(5, 2, seed=2)
    weight = positive(5)
    loss = gaussian_nll(mean, log_std, action, weight)
    for tensor, gradient in ((mean, loss.mean_gradient), (log_std, loss.log_std_gradient)):
        for i in range(5):
            for j in range(2):
                values = []
                for shift in (1e-6, -2e-6):
                    tensor[i, j] += shift
                    values.append(gaussian_nll(mean, log_std, action, weight).value.item())
                tensor[i, j] += 1e-6
                slope = (values[0] - values[1]) / 2e-6
                assert gradient[i, j].item() == pytest.approx(slope, rel=1e-5, abs=1e-7)


def test_weights_multiply_clip_and_never_overflow() -> None:
    advantage = torch.tensor([-1e9, -1.0, 0.0, 0.5, 1.0, 1e9])
    weights = exponential_weights(advantage, 3.0, 100.0)
    expected = torch.tensor([0.0, math.exp(-3.0), 1.0, math.exp(1.5), math.exp(3.0), 100.0])
    torch.testing.assert_close(weights, expected, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(exponential_weights(advantage, 0.0, 100.0), torch.ones(6))


def test_softmax_weights_are_normalised_exponentials() -> None:
    advantage = normal(64)
    weights = softmax_weights(advantage, 0.5, 100.0)
    plain = exponential_weights(advantage, 0.5, 1e6)
    torch.testing.assert_close(weights, plain / plain.mean())
    assert softmax_weights(advantage, 5.0, 2.0).max().item() == 2.0


def test_nothing_is_bootstrapped_past_a_terminal() -> None:
    reward = torch.tensor([1.0, -1.0, 2.0])
    discount = torch.tensor([0.9, 0.0, 0.9**3])
    next_value = torch.tensor([10.0, 1e6, -4.0])
    expected = torch.tensor([1.0 + 9.0, -1.0, 2.0 - 4.0 * 0.9**3])
    torch.testing.assert_close(bellman_target(reward, discount, next_value), expected)
    clipped = bellman_target(reward, discount, next_value, (-0.5, 5.0))
    torch.testing.assert_close(clipped, expected.clamp(-0.5, 5.0))
