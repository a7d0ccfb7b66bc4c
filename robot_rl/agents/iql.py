"""Implicit Q-learning (seed 001, ch. 8): never asks a critic about an action not in the data."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from robot_rl.agents.base import Agent, Batch, Metrics
from robot_rl.agents.config import AgentConfig, as_range, check_number, option
from robot_rl.agents.critics import TwinCritics
from robot_rl.agents.losses import (
    GaussianLoss,
    Loss,
    bellman_target,
    expectile_loss,
    exponential_weights,
    gaussian_nll,
)
from robot_rl.nets import MLP, FlatParameters


@dataclasses.dataclass(frozen=True)
class IQLConfig(AgentConfig):
    """Options of implicit Q-learning, for tens of thousands of updates: the paper makes a million,
    with a learning rate of 3e-4 and a tau of .005."""

    learning_rate: float = option(
        1e-3, "Adam's step size, for all networks; 3e-4 for a million updates"
    )

    expectile: float = option(
        0.8, "expectile of Q that V regresses on, in (0, 1); .7 for locomotion, .9 for mazes"
    )
    inverse_temperature: float = option(
        10.0,
        "the advantage is MULTIPLIED by this before the exponential (some codes divide);"
        " 0 is cloning, more is greedier; 3 for locomotion, 10 for mazes",
    )
    max_weight: float = option(100.0, "upper limit of the policy's sample weights")
    tau: float = option(
        0.02, "share by which the target critics move per update, in (0, 1]; .005 for a million"
    )
    value_clip: tuple[float, float] | None = option(
        None,
        "limits of the critic's targets: -1/(1-discount) 0 for rewards of -1 and 0; None for none",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self, "expectile", 0.0, 1.0, low_open=True, high_open=True)
        check_number(self, "inverse_temperature", 0.0)
        check_number(self, "max_weight", 0.0, low_open=True)
        check_number(self, "tau", 0.0, 1.0, low_open=True)
        as_range(self, "value_clip")


class IQL(Agent):
    """Implicit Q-learning, Algorithm 6, with policy extraction concurrent with TD learning.

    All gradients of one update are taken at the same parameters, then one Adam step moves all.
    """

    name: ClassVar[str] = "iql"
    config: IQLConfig

    def value_loss(self, value: Tensor, target_q: Tensor, weight: Tensor | None) -> Loss:
        """V(s) (B,) towards an upper expectile of the target critics' Q(s, a) (B,) (eq. 47)."""
        return expectile_loss(value, target_q, self.config.expectile, weight)

    def critic_target(self, batch: Batch, next_value: Tensor) -> Tensor:
        """What both Q(s, a) regress on (B,): reward + discount V(s') (eq. 48)."""
        return bellman_target(batch.reward, batch.discount, next_value, self.config.value_clip)

    def policy_loss(
        self, mean: Tensor, log_std: Tensor, batch: Batch, advantage: Tensor
    ) -> GaussianLoss:
        """Advantage-weighted cloning (eq. 49), with advantage (B,) = target Q(s, a) - V(s)."""
        weight = exponential_weights(
            advantage, self.config.inverse_temperature, self.config.max_weight
        )
        if batch.weight is not None:
            weight = weight * batch.weight
        return gaussian_nll(mean, log_std, batch.action, weight)

    def value(self, observation: ArrayLike, goal: ArrayLike | None = None) -> NDArray[np.float32]:
        """V(s, g), (N,), for observations (N, o) and goals (N, g)."""
        with torch.inference_mode():
            states = self._to_device(observation)
            if goal is None:
                goal = np.zeros((states.shape[0], 0))
            state = self._state(states, self._to_device(goal))
            result: NDArray[np.float32] = self._value.forward(state).squeeze(1).cpu().numpy()
        return result

    def _extra_networks(self) -> Sequence[MLP]:
        dims, norm = self.config.hidden_dims, self.config.layer_norm
        self._value = MLP("value", self._state_dim, dims, 1, layer_norm=norm)
        self._critics = TwinCritics(self._state_dim + self.action_dim, dims, layer_norm=norm)
        return [self._value, *self._critics.online]

    def _build_targets(self) -> FlatParameters:
        return self._critics.build_targets(self._parameters)

    def _update_targets(self) -> None:
        self._critics.update_targets(self.config.tau)

    def _compute_gradients(self, batch: Batch, noise: Tensor | None) -> Metrics:
        state = self._state(batch.observation, batch.goal)
        state_action = torch.cat([state, batch.action], 1)
        # Both read the value network's parameters; each writes the gradients of its own networks.
        critic_metrics, metrics = self._both(
            lambda: self._critic_part(batch, state_action),
            lambda: self._value_and_policy_part(batch, state, state_action),
        )
        return metrics | critic_metrics

    def _critic_part(self, batch: Batch, state_action: Tensor) -> Metrics:
        next_state = self._state(batch.next_observation, batch.goal)
        target = self.critic_target(batch, self._value.forward(next_state).squeeze(1))
        loss, _ = self._critics.regress(state_action, target, batch.weight)
        return {"critic_loss": loss, "target": target.mean()}

    def _value_and_policy_part(self, batch: Batch, state: Tensor, state_action: Tensor) -> Metrics:
        target_q = self._critics.min_target(state_action)
        output, value_tape = self._value.forward_tape(state)
        value = output.squeeze(1)
        value_loss = self.value_loss(value, target_q, batch.weight)
        self._value.backward(value_loss.gradient.unsqueeze(1), value_tape)

        mean, log_std, policy_tape = self.policy.forward_tape(state)
        policy_loss = self.policy_loss(mean, log_std, batch, target_q - value)
        self.policy.backward(policy_loss.mean_gradient, policy_loss.log_std_gradient, policy_tape)
        return {
            "value_loss": value_loss.value,
            "policy_loss": policy_loss.value,
            "value": value.mean(),
        }
