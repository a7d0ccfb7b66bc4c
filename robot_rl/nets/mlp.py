"""A dense ReLU network whose gradient is written out by hand.

The networks here are small (two layers of 256), so autograd's bookkeeping would cost as much as a
matrix product. A hand-written pass also never computes what nobody reads: the gradient with
respect to the first layer's input, or anything at all behind a frozen network.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from robot_rl.nets.dense import affine, input_gradient, weight_gradient
from robot_rl.nets.flat import FlatParameters, Shape

_LAYER_NORM_EPSILON = 1e-5


class _Layer(NamedTuple):
    weight: Tensor
    bias: Tensor
    scale: Tensor | None
    shift: Tensor | None


class _Record(NamedTuple):
    """What one layer's forward pass leaves for its backward pass."""

    input: Tensor
    output: Tensor
    pre_norm: Tensor | None
    norm_mean: Tensor | None
    norm_rstd: Tensor | None


Tape = list[_Record]


class MLP:
    """``input_dim -> hidden_dims -> output_dim`` with ReLU, and LayerNorm before it if asked.

    The parameters are views into a `FlatParameters`; the network itself holds no memory. Several
    networks with the same names may be bound to different buffers (a critic and its target).
    """

    def __init__(
        self,
        name: str,
        input_dim: int,
        hidden_dims: Sequence[int],
        output_dim: int,
        *,
        layer_norm: bool = False,
    ) -> None:
        self.name = name
        self.dims = (input_dim, *hidden_dims, output_dim)
        self.layer_norm = layer_norm
        self._layers: list[_Layer] = []
        self._gradients: list[_Layer] = []

    def shapes(self) -> dict[str, Shape]:
        """Name and shape of each parameter, first layer first; weights are (in, out)."""
        shapes: dict[str, Shape] = {}
        for index, (fan_in, fan_out) in enumerate(zip(self.dims[:-1], self.dims[1:], strict=True)):
            prefix = f"{self.name}.{index}"
            shapes[f"{prefix}.weight"] = (fan_in, fan_out)
            shapes[f"{prefix}.bias"] = (fan_out,)
            if self._is_normed(index):
                shapes[f"{prefix}.scale"] = (fan_out,)
                shapes[f"{prefix}.shift"] = (fan_out,)
        return shapes

    def bind(self, parameters: FlatParameters) -> None:
        """Takes its parameters, and if they are trainable their gradients, from ``parameters``."""
        self._layers = self._gather({name: parameters.view(name) for name in self.shapes()})
        if parameters.trainable:
            grads = {name: parameters.grad_view(name) for name in self.shapes()}
            self._gradients = self._gather(grads)

    def initialise(self, generator: torch.Generator, *, output_scale: float = 1.0) -> None:
        """Weights and biases uniform in ±1/sqrt(fan in); the last layer times ``output_scale``."""
        for index, layer in enumerate(self._layers):
            bound = 1.0 / math.sqrt(self.dims[index])
            if index == len(self._layers) - 1:
                bound *= output_scale
            for tensor in (layer.weight, layer.bias):
                drawn = torch.rand(tensor.shape, generator=generator)
                tensor.copy_(drawn.mul_(2.0 * bound).sub_(bound))
            if layer.scale is not None:
                layer.scale.fill_(1.0)

    @property
    def output_bias(self) -> Tensor:
        """The last layer's bias, (output_dim,)."""
        return self._layers[-1].bias

    def forward(self, x: Tensor) -> Tensor:
        """The network's output: (B, input_dim) -> (B, output_dim)."""
        last = len(self._layers) - 1
        for index, layer in enumerate(self._layers):
            if layer.scale is None:
                x = affine(x, layer.weight, layer.bias, relu=index != last)
            else:
                x, _ = self._normed_layer(x, layer)
        return x

    def forward_tape(self, x: Tensor) -> tuple[Tensor, Tape]:
        """`forward`, and what `backward` needs."""
        last = len(self._layers) - 1
        tape: Tape = []
        for index, layer in enumerate(self._layers):
            if layer.scale is None:
                output = affine(x, layer.weight, layer.bias, relu=index != last)
                tape.append(_Record(x, output, None, None, None))
            else:
                output, record = self._normed_layer(x, layer)
                tape.append(record)
            x = output
        return x, tape

    def backward(
        self, gradient: Tensor, tape: Tape, *, input_wanted: bool = False
    ) -> Tensor | None:
        """Writes the parameters' gradients, overwriting what stood there.

        Args:
            gradient: of the loss with respect to the output, (B, output_dim).
            tape: from the `forward_tape` of the same parameters.
            input_wanted: also return the gradient with respect to the input, (B, input_dim).
        """
        last = len(self._layers) - 1
        for index in range(last, -1, -1):
            record, layer, grads = tape[index], self._layers[index], self._gradients[index]
            if index != last:
                # In place: it is our own, from the layer above.
                torch.ops.aten.threshold_backward.grad_input(
                    gradient, record.output, 0.0, grad_input=gradient
                )
            if layer.scale is not None:
                gradient = self._norm_backward(gradient, record, layer, grads)
            weight_gradient(record.input, gradient, grads.weight)
            torch.sum(gradient, 0, out=grads.bias)
            if index > 0 or input_wanted:
                gradient = input_gradient(gradient, layer.weight)
        return gradient if input_wanted else None

    def _is_normed(self, index: int) -> bool:
        return self.layer_norm and index < len(self.dims) - 2

    def _gather(self, tensors: Mapping[str, Tensor]) -> list[_Layer]:
        layers = []
        for index in range(len(self.dims) - 1):
            prefix = f"{self.name}.{index}"
            scale, shift = tensors.get(f"{prefix}.scale"), tensors.get(f"{prefix}.shift")
            layers.append(
                _Layer(tensors[f"{prefix}.weight"], tensors[f"{prefix}.bias"], scale, shift)
            )
        return layers

    @staticmethod
    def _normed_layer(x: Tensor, layer: _Layer) -> tuple[Tensor, _Record]:
        pre_norm = affine(x, layer.weight, layer.bias, relu=False)
        normed, mean, rstd = torch.native_layer_norm(
            pre_norm, [pre_norm.shape[1]], layer.scale, layer.shift, _LAYER_NORM_EPSILON
        )
        output = normed.clamp_min_(0.0)
        return output, _Record(x, output, pre_norm, mean, rstd)

    @staticmethod
    def _norm_backward(gradient: Tensor, record: _Record, layer: _Layer, grads: _Layer) -> Tensor:
        assert record.pre_norm is not None and grads.scale is not None and grads.shift is not None
        to_input, to_scale, to_shift = torch.ops.aten.native_layer_norm_backward(
            gradient,
            record.pre_norm,
            [record.pre_norm.shape[1]],
            record.norm_mean,
            record.norm_rstd,
            layer.scale,
            layer.shift,
            [True, True, True],
        )
        grads.scale.copy_(to_scale)
        grads.shift.copy_(to_shift)
        result: Tensor = to_input
        return result
