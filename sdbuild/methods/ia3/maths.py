"""(IA)³ (Liu et al. 2022): activations are scaled by learned vectors l, kept here as l - 1."""

from __future__ import annotations

from torch import Tensor


def scaled(activations: Tensor, vector: Tensor, axis: int) -> Tensor:
    """(l - 1) ⊙ x along an axis (section 3.3): what is added to activations, or to a weight, by scaling."""
    shape = [1] * activations.dim()
    shape[axis] = -1
    return activations * vector.to(activations.dtype).view(shape)
