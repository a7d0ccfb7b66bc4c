"""Behaviour cloning: the policy that makes the recorded actions likely."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

from torch import Tensor

from robot_rl.agents.base import Agent, Batch, Metrics
from robot_rl.agents.config import AgentConfig, check_choice, option
from robot_rl.agents.losses import GaussianLoss, gaussian_nll, squared_action_loss


@dataclasses.dataclass(frozen=True)
class BCConfig(AgentConfig):
    """Options of behaviour cloning."""

    loss: Literal["nll", "mse"] = option(
        "nll", "nll: Gaussian likelihood of the actions; mse: squared error of the mean"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self, "loss", ("nll", "mse"))


class BC(Agent):
    """Behaviour cloning. Rewards, discounts and next observations are not used."""

    name: ClassVar[str] = "bc"
    config: BCConfig

    def policy_loss(self, mean: Tensor, log_std: Tensor, batch: Batch) -> GaussianLoss:
        """How unlikely, or how far from the mean, the recorded actions are.

        Shapes: mean (B, a), log_std (B, a) or (a,).
        """
        if self.config.loss == "mse":
            return squared_action_loss(mean, batch.action, batch.weight)
        return gaussian_nll(mean, log_std, batch.action, batch.weight)

    def _compute_gradients(self, batch: Batch, noise: Tensor | None) -> Metrics:
        mean, log_std, tape = self.policy.forward_tape(self._state(batch.observation, batch.goal))
        loss = self.policy_loss(mean, log_std, batch)
        self.policy.backward(loss.mean_gradient, loss.log_std_gradient, tape)
        return {"policy_loss": loss.value}
