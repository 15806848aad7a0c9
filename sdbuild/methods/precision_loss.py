"""How much weights change when they are written in half precision."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

NOTICEABLE = 0.01
"""Relative error of a tensor from which on it is told; rounding alone is below a half percent in all formats."""


@dataclass(kw_only=True, slots=True)
class PrecisionLoss:
    """Tensors before and after."""

    precision: str
    values: int = 0
    """Numbers that are not zero."""
    zeros: int = 0
    """How many of them became zero."""
    layers: set[str] = field(default_factory=set)
    harmed: set[str] = field(default_factory=set)
    """Layers with a noticeable error."""
    kept: int = 0
    """Tensors with numbers that are too large, which were left as they are."""
    worst: float = 0.0
    """Largest relative error of a tensor, ‖after - before‖ / ‖before‖."""
    where: str = ""
    """Its name."""

    def add(self, layer: str, name: str, before: Tensor, after: Tensor) -> None:
        """Take a tensor of a layer into account."""
        self.layers.add(layer)
        self.kept += after.dtype == torch.float32
        size = float(before.norm())
        if not size:
            return
        self.values += int(before.count_nonzero())
        self.zeros += int((before != 0).sum() - (after != 0).sum())
        error = float((after.float() - before).norm()) / size
        if error > NOTICEABLE:
            self.harmed.add(layer)
        if error > self.worst:
            self.worst, self.where = error, name

    def figures(self) -> dict[str, float]:
        """Return what metrics say of it."""
        return {
            "zeros": self.zeros,
            "layers": len(self.harmed),
            "relative_error": self.worst,
            "kept_in_float32": self.kept,
        }

    def told(self) -> str | None:
        """The warning; None where there is only rounding."""
        said = []
        if self.harmed:
            lost = f"turns {self.zeros:,} of {self.values:,} numbers to zero" if self.zeros else "has too few digits"
            said.append(
                f"{lost}; {len(self.harmed)} of {len(self.layers)} layers are off by more than {NOTICEABLE:.0%}, "
                f"{self.where} by {self.worst:.0%}"
            )
        if self.kept:
            tensors = "1 tensor whose numbers are" if self.kept == 1 else f"{self.kept} tensors whose numbers are"
            said.append(f"cannot hold {tensors} too large, which stay float32")
        if not said:
            return None
        remedy = "float32 or bfloat16" if self.precision == "float16" else "float32"
        return f"method.save_precision {self.precision} {' and '.join(said)}; write {remedy} there"


@runtime_checkable
class StoresHalfPrecision(Protocol):
    """An adapter that may be written in half precision."""

    @property
    def precision_loss(self) -> PrecisionLoss | None:
        """What the last `export` has lost; None where it was in float32."""


def precision_loss_of(adapter: object) -> PrecisionLoss | None:
    """Return what writing an adapter has lost; None where nothing can be."""
    return adapter.precision_loss if isinstance(adapter, StoresHalfPrecision) else None


def measure(rows: Iterable[tuple[str, str, Tensor, Tensor]], precision: str) -> PrecisionLoss | None:
    """Compare tensors before and after, with their layers and names; those without values are passed over."""
    if precision == "float32":
        return None
    found = PrecisionLoss(precision=precision)
    for layer, name, before, after in rows:
        if before.dim() and not before.is_meta:
            found.add(layer, name, before.detach().float(), after.detach())
    return found


def cast_finite(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Bring a tensor to a number format, but for one that it cannot hold."""
    narrow = tensor.to(dtype)
    return narrow if tensor.is_meta or bool(narrow.isfinite().all()) else tensor
