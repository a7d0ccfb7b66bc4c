"""The matrix products of a dense layer and of its gradient, with the faster kernel for each.

On x86 torch's own ``mm`` goes to MKL, which on AMD processors reaches half of what oneDNN does
(119 against 245 GFLOP/s for 256x256x256 on one EPYC core, float32); torch ships both. The choice
depends on shapes and device alone, never on a timing, so that seeded runs repeat exactly.
None of these functions is differentiable: the callers write their gradients by hand.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# A product with a narrow side is bound by memory; there MKL, given the right order, is as good.
_NARROW = 16


def _onednn_linear() -> Callable[..., Tensor] | None:
    """oneDNN's ``act(x W^T + b)``, or None where this torch was built without it."""
    operator: Any = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    if operator is None or not torch.backends.mkldnn.is_available():
        return None
    try:
        operator(torch.zeros(16, 16), torch.zeros(16, 16), None, "none", [], "")
    except (RuntimeError, NotImplementedError):
        return None
    kernel: Callable[..., Tensor] = operator.default
    return kernel


_linear = _onednn_linear()


def _by_onednn(x: Tensor) -> bool:
    return (
        x.dtype is torch.float32
        and x.is_cpu
        and _linear is not None
        and not torch.compiler.is_compiling()
    )


def affine(x: Tensor, weight: Tensor, bias: Tensor, *, relu: bool) -> Tensor:
    """``x @ weight + bias``, then max(0, .) if ``relu``.

    Shapes: x (B, i), weight (i, o), bias (o,); returns (B, o).
    """
    if weight.shape[1] > 1 and x.shape[0] > 1 and _by_onednn(x):
        assert _linear is not None
        return _linear(x, weight.t(), bias, "relu" if relu else "none", [], "")
    output = torch.addmm(bias, x, weight)
    return output.clamp_min_(0.0) if relu else output


def input_gradient(gradient: Tensor, weight: Tensor) -> Tensor:
    """``gradient @ weight.T``: (B, o), (i, o) -> (B, i)."""
    if weight.shape[1] == 1:
        return gradient * weight.view(1, -1)
    if weight.shape[1] >= _NARROW and _by_onednn(gradient):
        assert _linear is not None
        return _linear(gradient, weight, None, "none", [], "")
    return torch.mm(gradient, weight.t())


def weight_gradient(x: Tensor, gradient: Tensor, out: Tensor) -> None:
    """Writes ``x.T @ gradient`` into ``out``: (B, i), (B, o) -> (i, o)."""
    width = out.shape[1]
    if width >= _NARROW and _by_onednn(x):
        assert _linear is not None
        out.copy_(_linear(x.t(), gradient.t(), None, "none", [], ""))
    elif 1 < width < _NARROW:
        out.copy_(torch.mm(gradient.t(), x).t())
    else:
        torch.mm(x.t(), gradient, out=out)
