"""Layers whose weights are quantised, on the device `meta`: they take what bitsandbytes takes, and hold nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BLOCK = 64
"""Weights of nf4 that share a scale."""
SCALES = 256
"""Scales of nf4 that share a scale of their own."""


def nf4_bytes(weights: int) -> int:
    """Bytes of so many weights as 4-bit normal floats, their scales in 8 bits (Dettmers et al. 2023, section 3)."""
    scales = -(-weights // BLOCK)
    return -(-weights // 2) + scales + 4 * -(-scales // SCALES)


def int8_bytes(weights: int, rows: int) -> int:
    """Bytes of so many weights in 8 bits, with a float32 scale a row (Dettmers et al. 2022)."""
    return weights + 4 * rows


BYTES: Mapping[str, Callable[[nn.Linear], int]] = {
    "int8": lambda layer: int8_bytes(layer.weight.numel(), layer.out_features),
    "nf4": lambda layer: nf4_bytes(layer.weight.numel()),
}
"""By the recipe's `train.base_precision`: what a layer's weights take."""


class Quantised(nn.Linear):
    """A linear layer of which nothing but packed weights is kept; they are unpacked whenever it computes."""

    def __init__(self, layer: nn.Linear, size: int) -> None:
        """Take the place of a layer of the device `meta`; its packed weights have `size` bytes."""
        super().__init__(layer.in_features, layer.out_features, bias=False, device="meta", dtype=layer.weight.dtype)
        self.bias = layer.bias
        self._format = layer.weight.dtype
        packed = torch.empty(size, dtype=torch.uint8, device="meta")
        self.weight = nn.Parameter(packed, requires_grad=False)

    def unpacked(self) -> Tensor:
        """Return the weight in the format and shape that it had."""
        return torch.empty(self.out_features, self.in_features, device="meta", dtype=self._format)

    def forward(self, seen: Tensor) -> Tensor:
        """Compute what the layer would."""
        found: Tensor = _Unpacking.apply(seen, (self.out_features, self.in_features), self.bias)  # type: ignore[no-untyped-call]
        return found


class _Unpacking(torch.autograd.Function):
    """A product with weights that are unpacked for it, and once more for the backward pass."""

    @staticmethod
    def forward(ctx: Any, seen: Tensor, shape: tuple[int, int], bias: Tensor | None) -> Tensor:
        ctx.shape = shape
        return F.linear(seen, seen.new_empty(shape), bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        return gradient @ gradient.new_empty(ctx.shape), None, None
