"""Low-rank Hadamard products (FedPara, Hyeon-Woo et al. 2022). R is the rank of the factors."""

from __future__ import annotations

import torch
from peft.tuners.loha.layer import make_weight
from torch import Tensor


def product(w1_a: Tensor, w1_b: Tensor, w2_a: Tensor, w2_b: Tensor, scale: Tensor) -> Tensor:
    """W = scale (W1a W1b) ⊙ (W2a W2b), of rank up to R² (section 2.1, proposition 1).

    W1a, W2a are [out, R], W1b, W2b [R, in]. PEFT's backward pass keeps the factors alone, not what they make.
    """
    found: Tensor = make_weight(w1_a, w1_b, w2_a, w2_b, scale)
    return found


def product_of_cores(
    t1: Tensor, w1_a: Tensor, w1_b: Tensor, t2: Tensor, w2_a: Tensor, w2_b: Tensor, scale: Tensor
) -> Tensor:
    """W = scale (T1 ×₁ W1a ×₂ W1b) ⊙ (T2 ×₁ W2a ×₂ W2b), for convolutions (section 2.2, proposition 3).

    The cores T are [R, R, height, width]; W1a, W2a are [R, out], W1b, W2b [R, in]. PEFT has this too, with a backward
    pass that takes the gradients of one core's factors through the other core.
    """
    return scale * cored(t1, w1_a, w1_b) * cored(t2, w2_a, w2_b)


def cored(core: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """T ×₁ A ×₂ B, [out, in, height, width], from a core [R, R, height, width], A [R, out] and B [R, in]."""
    return torch.einsum("ijhw,ip,jr->prhw", core, a, b)
