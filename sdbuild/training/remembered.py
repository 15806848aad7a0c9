"""What optimizers remember of parameters, in bytes: found by letting them take a step on small ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from sdbuild.training.activations import Live
from sdbuild.training.optimizers import OPTIMIZERS

LARGE = 1 << 20
"""Elements of a parameter beyond which it is tried in part."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Remembered:
    """Bytes that an optimizer takes."""

    kept: int
    """From step to step."""
    passing: int
    """While it takes a step."""


def remembered(optimizer: str, parameters: Iterable[Tensor]) -> Remembered:
    """Return what an optimizer takes for parameters, which may be on the device `meta`.

    Optimizers treat parameters one by one, so each shape is tried once. What is remembered of a large one grows with
    it; what depends on its rows and columns alone is so little that it does not matter.
    """
    kept = passing = 0.0
    for shape, count in Counter(tuple(parameter.shape) for parameter in parameters).items():
        tried, times = _part(shape)
        own, most = _try(optimizer, tried)
        kept += count * times * own
        passing = max(passing, times * most)
    return Remembered(kept=round(kept), passing=round(passing))


def _part(shape: tuple[int, ...]) -> tuple[tuple[int, ...], float]:
    """A shape of fewer rows, and how many times as many there are."""
    row = torch.Size(shape[1:]).numel()
    if not shape or shape[0] * row <= LARGE:
        return shape, 1.0
    rows = max(1, LARGE // row)
    return (rows, *shape[1:]), shape[0] / rows


def _try(name: str, shape: tuple[int, ...]) -> tuple[int, int]:
    parameter = Parameter(torch.zeros(shape))
    parameter.grad = torch.zeros(shape)
    optimizer = OPTIMIZERS[name]([parameter], 1.0, 0.0)
    optimizer.step()
    state: dict[Any, Any] = optimizer.state[parameter]
    kept = {
        value.untyped_storage()._cdata: value.untyped_storage().nbytes()
        for key, value in state.items()
        if isinstance(value, Tensor) and not str(key).startswith("qmap")  # tables that all parameters share
    }
    with Live() as live:
        optimizer.step()
    return sum(kept.values()), live.most.tensors
