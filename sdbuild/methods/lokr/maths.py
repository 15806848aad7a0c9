"""Kronecker products (KronA, Edalati et al. 2022; LoKr in LyCORIS, Yeh et al. 2024, section 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor


def factors(number: int, most: int | None) -> tuple[int, int]:
    """Split a number in two whose product it is, the smaller first and at most `most`, as near to it as there are.

    Without a limit they are as near to each other as can be.
    """
    limit = int(number**0.5) if most is None else most
    first = next(side for side in range(min(limit, number), 0, -1) if number % side == 0)
    return min(first, number // first), max(first, number // first)


def kronecker(w1: Tensor, w2: Tensor) -> Tensor:
    """W1 ⊗ W2, [a c, b d, …], from W1 [a, b] and W2 [c, d, …] (Edalati et al., equation 3)."""
    return torch.kron(w1.view(*w1.shape, *[1] * (w2.dim() - 2)), w2.contiguous())


def through_kronecker(x: Tensor, w1: Tensor, w2: Tensor) -> Tensor:
    """(W1 ⊗ W2) x for inputs [..., b d], without making the product: W2 X W1ᵀ (Edalati et al., equation 4)."""
    columns = x.reshape(*x.shape[:-1], w1.shape[1], w2.shape[1])
    return torch.einsum("...bc,ab->...ac", columns @ w2.mT, w1).flatten(-2)
