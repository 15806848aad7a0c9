"""Weights of adapters by name, and adapters without effect."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from sdbuild.methods.contract import Strength


@contextmanager
def without(adapter: Strength) -> Iterator[None]:
    """Within it, the adapter's strength is 0; afterwards it is 1."""
    adapter.set_strength(0)
    try:
        yield
    finally:
        adapter.set_strength(1)


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
