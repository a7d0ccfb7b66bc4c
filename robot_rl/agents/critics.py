"""Clipped double Q-learning: two critics and the slow copies they bootstrap from."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from robot_rl.agents.losses import Loss, squared_loss
from robot_rl.agents.parallel import Both, in_turn
from robot_rl.nets import MLP, FlatParameters

_NAMES = ("critic1", "critic2")


class TwinCritics:
    """Two Q networks on (state, action), and a target network for each.

    The smaller of the two values is the estimate (seed 001, ch. 8.3.3).
    """

    def __init__(
        self, input_dim: int, hidden_dims: Sequence[int], *, layer_norm: bool = False
    ) -> None:
        self.online = [
            MLP(name, input_dim, hidden_dims, 1, layer_norm=layer_norm) for name in _NAMES
        ]
        self._target = [
            MLP(name, input_dim, hidden_dims, 1, layer_norm=layer_norm) for name in _NAMES
        ]
        self._online_data = torch.empty(0)
        self._target_data = torch.empty(0)

    def build_targets(self, parameters: FlatParameters) -> FlatParameters:
        """Makes the targets, equal to the online critics bound to ``parameters``."""
        shapes = {name: shape for net in self.online for name, shape in net.shapes().items()}
        targets = FlatParameters(shapes, parameters.data.device, trainable=False)
        for net in self._target:
            net.bind(targets)
        self._online_data = parameters.data[parameters.span("critic")]
        self._target_data = targets.data
        self._target_data.copy_(self._online_data)
        return targets

    def min_target(self, state_action: Tensor) -> Tensor:
        """The smaller target value, (B,), of (B, o + g + a)."""
        first, second = (net.forward(state_action) for net in self._target)
        return torch.minimum(first, second).squeeze(1)

    def min_online(self, state_action: Tensor) -> Tensor:
        """The smaller online value, (B,), of (B, o + g + a)."""
        first, second = (net.forward(state_action) for net in self.online)
        return torch.minimum(first, second).squeeze(1)

    def regress(
        self, state_action: Tensor, target: Tensor, weight: Tensor | None, both: Both = in_turn
    ) -> tuple[Tensor, Tensor]:
        """Writes the gradients of both squared errors to ``target`` (B,).

        Returns their sum, and the smaller value (B,). One network is done before the next begins,
        while what it left is still in the cache, or ``both`` are done at once.
        """

        def one(net: MLP) -> tuple[Loss, Tensor]:
            output, tape = net.forward_tape(state_action)
            loss = squared_loss(output.squeeze(1), target, weight)
            net.backward(loss.gradient.unsqueeze(1), tape)
            return loss, output

        (loss1, value1), (loss2, value2) = both(
            lambda: one(self.online[0]), lambda: one(self.online[1])
        )
        return loss1.value + loss2.value, torch.minimum(value1, value2).squeeze(1)

    def update_targets(self, tau: float) -> None:
        """Moves the targets by the share ``tau`` towards the online critics."""
        self._target_data.lerp_(self._online_data, tau)
