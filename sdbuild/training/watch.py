"""Validation on the way through a training, and the stop when it no longer gets better.

Looking changes nothing: noise and timesteps of a validation are fixed, global generators are seeded anew for each step,
and the weights that are looked at are put back bit by bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sdbuild.training.interrupts import uninterrupted

if TYPE_CHECKING:
    from sdbuild.training.state import TrainingState


class StoppedError(Exception):
    """Ctrl-C in the middle of a validation, which is then thrown away."""


@dataclass(kw_only=True, slots=True)
class Measured:
    """What validations have found so far; part of what a training resumes from."""

    base: float | None = None
    """Loss of the base alone."""
    rows: list[tuple[int, float]] = field(default_factory=list)
    """Steps done, and the loss of the adapter then."""
    best: dict[str, Tensor] = field(default_factory=dict)
    """The adapter's weights where its loss was lowest, if they are to be kept."""

    @property
    def lowest(self) -> tuple[int, float]:
        """The first row with the lowest loss."""
        return min(self.rows, key=lambda row: math.inf if math.isnan(row[1]) else row[1])

    @property
    def since(self) -> int:
        """Validations after the lowest."""
        return len(self.rows) - 1 - self.rows.index(self.lowest) if self.rows else 0

    def tensors(self) -> dict[str, Tensor]:
        """For a snapshot."""
        if not self.rows:
            return {}
        best = {f"best/{name}": tensor for name, tensor in self.best.items()}
        return {"validation": torch.tensor(self.rows, dtype=torch.float64), **best}

    def restore(self, tensors: Mapping[str, Tensor], base: float | None) -> None:
        """Take over what a snapshot holds."""
        self.base = base
        rows = tensors["validation"].tolist() if "validation" in tensors else []
        self.rows = [(int(step), loss) for step, loss in rows]
        self.best = {name.removeprefix("best/"): each for name, each in tensors.items() if name.startswith("best/")}


@dataclass(frozen=True, kw_only=True, slots=True)
class Watch:
    """Measures the loss on the hold-out every so many steps, and at the last."""

    every: int
    steps: int
    """Of the whole training."""
    patience: int | None
    """Validations without a lower loss after which it is enough; None to go on and keep the last state."""
    measure: Callable[[Callable[[], None]], float]
    """The loss of the model as it is; calls what it is given now and then, which may raise."""

    def due(self, step: int) -> bool:
        """Whether to measure after so many steps."""
        return step > 0 and (step % self.every == 0 or step == self.steps)

    def enough(self, state: TrainingState) -> bool:
        """Whether it has not become better for too long."""
        return self.patience is not None and state.measured.since >= self.patience

    def __call__(self, state: TrainingState) -> None:
        """Measure, once for each step."""
        found = state.measured
        if found.rows and found.rows[-1][0] == state.step:
            return
        with uninterrupted() as interrupted:

            def look() -> None:
                if interrupted():
                    raise StoppedError

            state.adapter.train(False)
            try:
                if found.base is None:
                    with state.adapter.disabled():
                        found.base = self.measure(look)
                with state.kept():
                    found.rows.append((state.step, self.measure(look)))
                    if self.patience is not None and not found.since:
                        found.best = {name: tensor.clone() for name, tensor in state.adapter.state().items()}
            except StoppedError:
                pass  # Ctrl-C is raised when it is no longer held back
            finally:
                state.adapter.train(True)
