"""Named parameters that live in one flat buffer, so that one call updates all of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

Shape = tuple[int, ...]

# Every parameter starts on a 64-byte boundary: one odd-sized bias would misalign all that follow.
_ALIGNMENT = 16


class FlatParameters:
    """A float32 buffer ``data`` and a gradient buffer ``grad`` with one named view per parameter.

    Padding between parameters is zero and gets zero gradients, so it stays zero.
    """

    def __init__(
        self, shapes: Mapping[str, Shape], device: torch.device, *, trainable: bool = True
    ) -> None:
        """``shapes`` maps each parameter's name to its shape, in the order of the buffer.

        What is not ``trainable`` (a target network, a copy that acts) has no gradient buffer.
        """
        self._shapes = dict(shapes)
        self._starts: dict[str, int] = {}
        size = 0
        for name, shape in self._shapes.items():
            self._starts[name] = size
            count = math.prod(shape)
            size += -(-count // _ALIGNMENT) * _ALIGNMENT
        self.data = torch.zeros(size, device=device)
        self.grad = torch.zeros(size if trainable else 0, device=device)
        self.trainable = trainable

    def __iter__(self) -> Iterator[str]:
        """The names, in the order of the buffer."""
        return iter(self._shapes)

    def view(self, name: str) -> Tensor:
        """The parameter ``name``, in its shape, sharing memory with ``data``."""
        return self.view_of(self.data, name)

    def grad_view(self, name: str) -> Tensor:
        """The gradient of ``name``, in its shape, sharing memory with ``grad``."""
        return self.view_of(self.grad, name)

    def view_of(self, buffer: Tensor, name: str) -> Tensor:
        """The part of ``buffer`` (laid out as ``data``: a moment, a target) that is ``name``."""
        shape, start = self._shapes[name], self._starts[name]
        return buffer[start : start + math.prod(shape)].view(shape)

    def span(self, prefix: str) -> slice:
        """The part of the buffer that holds the names starting with ``prefix``; they are adjacent.

        Raises:
            KeyError: no name starts with ``prefix``.
        """
        names = list(self._shapes)
        inside = [i for i, name in enumerate(names) if name.startswith(prefix)]
        if not inside:
            raise KeyError(f"no parameter starts with {prefix!r}; names: {', '.join(names)}")
        if inside != list(range(inside[0], inside[-1] + 1)):
            raise KeyError(f"the parameters starting with {prefix!r} are not adjacent")
        after = inside[-1] + 1
        stop = self._starts[names[after]] if after < len(names) else self.data.numel()
        return slice(self._starts[names[inside[0]]], stop)
