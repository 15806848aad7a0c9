"""An exponential moving average of the adapter's weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def decay_at(step: int, decay: float) -> float:
    """Share of the average that stays at a step (0-based): min(decay, (1 + n) / (10 + n)), nothing in the first.

    The growing share is that of TensorFlow's `ExponentialMovingAverage` with `num_updates`, as in diffusers.
    """
    return min(decay, (1 + step) / (10 + step)) if step else 0.0


class Average:
    """The average of an adapter's weights, by name."""

    def __init__(self, weights: Mapping[str, Tensor], decay: float) -> None:
        self.weights = {name: tensor.detach().clone() for name, tensor in weights.items()}
        self._decay = decay

    @torch.no_grad()
    def update(self, weights: Mapping[str, Tensor], step: int) -> None:
        """Move towards the weights after a step (0-based)."""
        own = [self.weights[name] for name in weights]
        torch._foreach_lerp_(own, list(weights.values()), 1 - decay_at(step, self._decay))

    @torch.no_grad()
    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Take over an average that was saved."""
        assert weights.keys() == self.weights.keys(), "another adapter's average"
        for name, tensor in self.weights.items():
            tensor.copy_(weights[name])
