"""Measures of error, and the width of the robust ones over the timesteps: pure functions of one signature.

Measures take errors [B, C, h, w] and `delta` [B, 1, 1, 1]. The robust ones are twice the pseudo-Huber loss
δ² (√(1 + (e/δ)²) - 1), so that small errors count as they do in the squared error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Measure = Callable[[Tensor, Tensor], Tensor]
"""From errors and deltas to losses, each element by itself."""
Width = Callable[[float, Tensor, Tensor], Tensor]
"""Deltas [T] from the smallest, the share t/T of each timestep [T], and its ratio of noise to signal [T]."""


def squared(error: Tensor, delta: Tensor) -> Tensor:
    """The squared error, e² (Ho et al. 2020, eq. 14)."""
    return error.square()


def huber(error: Tensor, delta: Tensor) -> Tensor:
    """Pseudo-Huber loss, 2 δ (√(e² + δ²) - δ) (Khrapov et al. 2024, section 3): e² for e ≪ δ, 2 δ |e| for e ≫ δ."""
    return delta * smooth_l1(error, delta)


def smooth_l1(error: Tensor, delta: Tensor) -> Tensor:
    """Pseudo-Huber loss over δ, 2 (√(e² + δ²) - δ): e²/δ for e ≪ δ, 2 |e| for e ≫ δ."""
    square = error.square()
    # The same without a difference of near numbers: √(e² + δ²) - δ = e² / (√(e² + δ²) + δ).
    return 2 * square / ((square + delta.square()).sqrt() + delta)


MEASURES: Mapping[str, Measure] = {"l2": squared, "huber": huber, "smooth-l1": smooth_l1}
"""By the recipe's `train.loss.kind`."""


def constant(delta: float, share: Tensor, noise_to_signal: Tensor) -> Tensor:
    """δ at all timesteps."""
    return torch.full_like(share, delta)


def exponential(delta: float, share: Tensor, noise_to_signal: Tensor) -> Tensor:
    """exp(t/T log δ) (Khrapov et al. 2024, section 4): from 1 for the picture to δ for noise."""
    return torch.full_like(share, delta).pow(share)


def snr(delta: float, share: Tensor, noise_to_signal: Tensor) -> Tensor:
    """(1 - δ) / (1 + σ)² + δ with σ the ratio of noise to signal (Khrapov et al. 2024, section 4): from 1 to δ."""
    return (1 - delta) / (1 + noise_to_signal).square() + delta


WIDTHS: Mapping[str, Width] = {"constant": constant, "exponential": exponential, "snr": snr}
"""By the recipe's `train.loss.schedule`."""


def record_means(losses: Tensor, mask: Tensor | None) -> Tensor:
    """Return each record's mean loss [B] over its latent [B, C, h, w].

    A mask [B, 1, h, w] weighs the latent's places; the mean is over its weights, so that a small mask counts as much
    as a large one. A record whose mask is empty has no loss.
    """
    if mask is None:
        return losses.mean(dim=(1, 2, 3))
    weights = mask.expand_as(losses)
    smallest = torch.finfo(losses.dtype).tiny
    return (losses * weights).sum(dim=(1, 2, 3)) / weights.sum(dim=(1, 2, 3)).clamp(min=smallest)
