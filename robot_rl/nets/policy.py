"""The Gaussian policy that bc, iql and awac share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from robot_rl.nets.flat import FlatParameters, Shape
from robot_rl.nets.mlp import MLP, Tape

StdKind = Literal["fixed", "learned", "state"]


class PolicyTape(NamedTuple):
    """What `GaussianPolicy.backward` needs from the forward pass."""

    tape: Tape
    mean: Tensor
    squash: Tensor | None


class GaussianPolicy:
    """``N(tanh(net(x)), std)``, its samples clamped to [-1, 1].

    The standard deviation is ``fixed``, ``learned`` (one number per action dimension) or read off
    the ``state``. The latter two are ``lo + (hi - lo) sigmoid(raw)`` in log space: smooth, so that
    gradients never vanish at a hard bound, and they begin at ``std``.
    The density is that of the Gaussian before clamping, which stays finite for recorded actions
    at ±1, where the density of a tanh-squashed Gaussian does not.
    """

    def __init__(
        self,
        name: str,
        input_dim: int,
        hidden_dims: Sequence[int],
        action_dim: int,
        *,
        std_kind: StdKind,
        std: float,
        log_std_range: tuple[float, float],
        layer_norm: bool = False,
    ) -> None:
        self.name = name
        self.action_dim = action_dim
        self.std_kind = std_kind
        self._std = std
        self._low, self._high = log_std_range
        heads = 2 if std_kind == "state" else 1
        self.net = MLP(name, input_dim, hidden_dims, heads * action_dim, layer_norm=layer_norm)
        self._raw: Tensor | None = None
        self._raw_gradient: Tensor | None = None
        self._fixed_log_std: Tensor = torch.empty(0)

    def shapes(self) -> dict[str, Shape]:
        """Name and shape of each parameter."""
        shapes = self.net.shapes()
        if self.std_kind == "learned":
            shapes[f"{self.name}.log_std"] = (self.action_dim,)
        return shapes

    def bind(self, parameters: FlatParameters) -> None:
        """As `MLP.bind`."""
        self.net.bind(parameters)
        device = parameters.data.device
        self._fixed_log_std = torch.full((self.action_dim,), math.log(self._std), device=device)
        if self.std_kind == "learned":
            name = f"{self.name}.log_std"
            self._raw = parameters.view(name)
            self._raw_gradient = parameters.grad_view(name) if parameters.trainable else None

    def initialise(self, generator: torch.Generator) -> None:
        """Means near zero, standard deviations near ``std``."""
        self.net.initialise(generator, output_scale=0.01)
        share = (math.log(self._std) - self._low) / (self._high - self._low)
        start = math.log(share / (1.0 - share)) if self.std_kind != "fixed" else 0.0
        if self._raw is not None:
            self._raw.fill_(start)
        if self.std_kind == "state":
            self.net.output_bias[self.action_dim :].add_(start)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (B, a) in [-1, 1], and log standard deviation, (B, a) or (a,)."""
        mean, log_std, _ = self._split(self.net.forward(x))
        return mean, log_std

    def forward_tape(self, x: Tensor) -> tuple[Tensor, Tensor, PolicyTape]:
        """`forward`, and what `backward` needs."""
        output, tape = self.net.forward_tape(x)
        mean, log_std, squash = self._split(output)
        return mean, log_std, PolicyTape(tape, mean, squash)

    def backward(self, mean_gradient: Tensor, log_std_gradient: Tensor, tape: PolicyTape) -> None:
        """Writes the parameters' gradients from those of mean and log std, both (B, a)."""
        gradient = torch.ops.aten.tanh_backward(mean_gradient, tape.mean)
        if tape.squash is not None:
            slope = torch.ops.aten.sigmoid_backward(log_std_gradient, tape.squash)
            slope.mul_(self._high - self._low)
            if self._raw_gradient is not None:
                torch.sum(slope, 0, out=self._raw_gradient)
            else:
                gradient = torch.cat([gradient, slope], 1)
        self.net.backward(gradient, tape.tape)

    def sample(self, x: Tensor, noise: Tensor) -> Tensor:
        """Actions in [-1, 1], (B, a), from standard normal ``noise`` (B, a)."""
        mean, log_std = self.forward(x)
        return torch.addcmul(mean, noise, log_std.exp()).clamp_(-1.0, 1.0)

    def _split(self, output: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        if self.std_kind == "fixed":
            return output.tanh(), self._fixed_log_std, None
        raw = output[:, self.action_dim :] if self._raw is None else self._raw
        squash = raw.sigmoid()
        log_std = squash * (self._high - self._low) + self._low
        return output[:, : self.action_dim].tanh(), log_std, squash
