"""Generalised LoRA (Chavan et al. 2023), equation 10: f(x) = (W + W A + B) x + C W + D b + E + b.

A [in, in] and B [out, in] are products of low rank; the prompt C [in], the scale D [out] and the shift E [out] act on
activations. All of it is a weight and a bias.
"""

from __future__ import annotations

import torch
from torch import Tensor


def of_weight(weight: Tensor, a1: Tensor, a2: Tensor, b1: Tensor, b2: Tensor) -> Tensor:
    """W A + B with A = A1 A2 and B = B1 B2, for a weight [out, in, …].

    A1 is [in, R], A2 [R, in], B1 [out, R], B2 [R, in, …], each with as many axes as the weight.
    """
    a = a1.flatten(1) @ a2.flatten(1)
    return torch.einsum("oi...,ij->oj...", weight, a) + (b1.flatten(1) @ b2.flatten(1)).view(weight.shape)


def of_bias(weight: Tensor, bias: Tensor, c: Tensor, d: Tensor, e: Tensor) -> Tensor:
    """W C + D b + E; a convolution's prompt is the same at each place, beyond the edges too."""
    return weight.flatten(2).sum(2) @ c + d * bias + e if weight.dim() > 2 else weight @ c + d * bias + e
