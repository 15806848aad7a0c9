"""Weights by name, from one adapter to another."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


@torch.no_grad()
def take_over(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Copy weights into an adapter's own.

    Raises:
        ValueError: names and shapes are not exactly the same.
    """
    if own.keys() != state.keys():
        missing, unknown = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
        raise ValueError(f"not this adapter's weights: missing {missing[:3]}, unknown {unknown[:3]}")
    for name, tensor in own.items():
        if tensor.shape != state[name].shape:
            raise ValueError(f"{name} has shape {list(state[name].shape)}, not {list(tensor.shape)}")
    for name, tensor in own.items():
        tensor.copy_(state[name])
