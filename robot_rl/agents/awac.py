"""Advantage weighted actor-critic (seed 001, ch. 7): offline pretraining that goes on online."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from robot_rl.agents.base import Agent, Batch, Metrics
from robot_rl.agents.config import AgentConfig, as_range, check_choice, check_number, option
from robot_rl.agents.critics import TwinCritics
from robot_rl.agents.losses import (
    GaussianLoss,
    bellman_target,
    exponential_weights,
    gaussian_nll,
    softmax_weights,
)
from robot_rl.nets import MLP, FlatParameters
from robot_rl.nets.policy import PolicyTape


@dataclasses.dataclass(frozen=True)
class AWACConfig(AgentConfig):
    """Options of AWAC: what its authors use, but for a learning rate (theirs 3e-4) and a tau
    (theirs .005) that suit fewer updates than their 25,000 to 50,000 before practice."""

    learning_rate: float = option(
        1e-3, "Adam's step size, for all networks; 3e-4 for a million updates"
    )
    batch_size: int = option(1024, "transitions per update, for whoever samples them")
    policy_weight_decay: float = option(1e-4, "L2 penalty on the policy's parameters, as in Adam")
    temperature: float = option(
        1.0,
        "lambda: the advantage is DIVIDED by this before the exponential; less is greedier;"
        " 2 for locomotion, .5 for a dexterous hand",
    )
    weights: Literal["softmax", "exp"] = option(
        "softmax", "sample weights: softmax over the batch times its size, or the plain exponential"
    )
    max_weight: float = option(100.0, "upper limit of the policy's sample weights")
    value_samples: int = option(1, "actions sampled per state to estimate V(s)")
    tau: float = option(
        0.02, "share by which the target critics move per update, in (0, 1]; .005 for a million"
    )
    value_clip: tuple[float, float] | None = option(
        None,
        "limits of the critic's targets: -1/(1-discount) 0 for rewards of -1 and 0; None for none",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self, "temperature", 0.0, low_open=True)
        check_choice(self, "weights", ("softmax", "exp"))
        check_number(self, "max_weight", 0.0, low_open=True)
        check_number(self, "value_samples", 1, integer=True)
        check_number(self, "tau", 0.0, 1.0, low_open=True)
        as_range(self, "value_clip")


class AWAC(Agent):
    """AWAC: TD learning of the current policy's Q, and weighted maximum likelihood."""

    name: ClassVar[str] = "awac"
    config: AWACConfig

    def critic_target(self, batch: Batch, next_value: Tensor) -> Tensor:
        """What both Q(s, a) regress on (B,): reward + discount Q(s', a'), a' from the policy."""
        return bellman_target(batch.reward, batch.discount, next_value, self.config.value_clip)

    def policy_loss(
        self, mean: Tensor, log_std: Tensor, batch: Batch, advantage: Tensor
    ) -> GaussianLoss:
        """Advantage-weighted maximum likelihood (eq. 42), advantage (B,) = Q(s, a) - V(s)."""
        weigh = softmax_weights if self.config.weights == "softmax" else exponential_weights
        weight = weigh(advantage, 1.0 / self.config.temperature, self.config.max_weight)
        if batch.weight is not None:
            weight = weight * batch.weight
        return gaussian_nll(mean, log_std, batch.action, weight)

    def _extra_networks(self) -> Sequence[MLP]:
        self._critics = TwinCritics(
            self._state_dim + self.action_dim,
            self.config.hidden_dims,
            layer_norm=self.config.layer_norm,
        )
        return self._critics.online

    def _build_targets(self) -> FlatParameters:
        return self._critics.build_targets(self._parameters)

    def _update_targets(self) -> None:
        self._critics.update_targets(self.config.tau)

    def _draw_noise(self, size: int) -> Tensor:
        """(1 + value_samples, B, a): for the next action, then for V(s)."""
        shape = (1 + self.config.value_samples, size, self.action_dim)
        return torch.randn(shape, generator=self._update_generator).to(self.device)

    def _compute_gradients(self, batch: Batch, noise: Tensor | None) -> Metrics:
        assert noise is not None
        state = self._state(batch.observation, batch.goal)
        target, (mean, log_std, policy_tape, value) = self._both(
            lambda: self._target_part(batch, noise[0]),
            lambda: self._policy_and_value_part(state, noise[1:]),
        )
        state_action = torch.cat([state, batch.action], 1)
        critic_loss, q_value = self._critics.regress(state_action, target, batch.weight, self._both)
        advantage = q_value - value
        policy_loss = self.policy_loss(mean, log_std, batch, advantage)
        self.policy.backward(policy_loss.mean_gradient, policy_loss.log_std_gradient, policy_tape)
        return {
            "critic_loss": critic_loss,
            "policy_loss": policy_loss.value,
            "value": value.mean(),
            "advantage": advantage.mean(),
            "target": target.mean(),
        }

    def _target_part(self, batch: Batch, noise: Tensor) -> Tensor:
        """The critics' target (B,), with a' sampled by ``noise`` (B, a)."""
        next_state = self._state(batch.next_observation, batch.goal)
        next_action = self.policy.sample(next_state, noise)
        next_value = self._critics.min_target(torch.cat([next_state, next_action], 1))
        return self.critic_target(batch, next_value)

    def _policy_and_value_part(
        self, state: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor, PolicyTape, Tensor]:
        """The policy's forward pass, and V(s) (B,).

        V(s) is the mean over ``noise`` (K, B, a) of the smaller Q(s, a), a sampled.
        """
        mean, log_std, tape = self.policy.forward_tape(state)
        actions = torch.addcmul(mean, noise, log_std.exp()).clamp_(-1.0, 1.0)
        states = state.expand(noise.shape[0], *state.shape)
        pairs = torch.cat([states, actions], 2).flatten(0, 1)
        value = self._critics.min_online(pairs).view(noise.shape[:2]).mean(0)
        return mean, log_std, tape, value
