"""Orthogonal fine-tuning (Qiu et al. 2023): outputs are turned in blocks. K blocks of N outputs."""

from __future__ import annotations

from math import isqrt

import torch
from torch import Tensor


def block_size(outputs: int, most: int) -> int:
    """The largest size of equal blocks up to a limit, with at least as many blocks, as LyCORIS reads them."""
    return next(size for size in range(min(most, isqrt(outputs)), 0, -1) if outputs % size == 0)


def cayley(free: Tensor) -> Tensor:
    """R = (I + Q) (I - Q)⁻¹ with Q = F - Fᵀ, orthogonal for any F [K, N, N] (section 3.3, Cayley parametrisation)."""
    skew = free - free.mT
    identity = torch.eye(skew.shape[-1], device=skew.device, dtype=skew.dtype)
    turned: Tensor = torch.linalg.solve(identity - skew, identity + skew, left=False)
    return turned


def turn(blocks: Tensor, outputs: Tensor) -> Tensor:
    """Rᵀ y in each block, for outputs [K N, …] along their first axis; files of the field mean it transposed."""
    apart = outputs.reshape(*blocks.shape[:2], *outputs.shape[1:])
    return torch.einsum("knm,kn...->km...", blocks, apart).flatten(0, 1)
