"""The one named set of what a training resumes from: adapter, average, optimizer, losses, validation, step, time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from sdbuild.methods.contract import Adapter
from sdbuild.training import moments
from sdbuild.training.checkpoint import Snapshot
from sdbuild.training.ema import Average
from sdbuild.training.watch import Measured


@dataclass(kw_only=True, slots=True)
class TrainingState:
    """A training between two steps."""

    adapter: Adapter
    optimizer: Optimizer
    average: Average | None = None
    """Of the adapter's weights, if that is what is kept."""
    scaler: GradScaler = field(default_factory=lambda: GradScaler("cpu", enabled=False))
    """Of the losses, where gradients need it."""
    step: int = 0
    """Steps done."""
    computed: int = 0
    """Steps done by this process."""
    losses: list[float] = field(default_factory=list)
    """Mean loss of each step done."""
    measured: Measured = field(default_factory=Measured)
    """Of validations on the way."""
    seconds: float = 0.0
    """Time spent in all sessions."""

    def snapshot(self) -> Snapshot:
        """Return everything that `restore` needs; tensors are not copied."""
        remembered, values = moments.dump(self.optimizer, self.adapter.parameters())
        parts = {
            "adapter": self.adapter.state(),
            "average": self.average.weights if self.average else {},
            "optimizer": remembered,
        }
        tensors = {f"{part}/{name}": tensor for part, named in parts.items() for name, tensor in named.items()}
        tensors["losses"] = torch.tensor(self.losses, dtype=torch.float64)
        tensors |= self.measured.tensors()
        said = {"optimizer": values, "seconds": self.seconds}
        if self.scaler.is_enabled():
            said["scaler"] = self.scaler.state_dict()
        if self.measured.base is not None:
            said["validation_base"] = self.measured.base
        return Snapshot(step=self.step, tensors=tensors, values=said)

    def restore(self, snapshot: Snapshot) -> None:
        """Become the state that the snapshot was taken of."""
        self.adapter.load_state(_part(snapshot.tensors, "adapter"))
        if self.average is not None:
            self.average.load(_part(snapshot.tensors, "average"))
        remembered = _part(snapshot.tensors, "optimizer")
        moments.load(self.optimizer, self.adapter.parameters(), remembered, snapshot.values["optimizer"])
        self.scaler.load_state_dict(snapshot.values.get("scaler", {}))
        self.step = snapshot.step
        self.losses = snapshot.tensors["losses"].tolist()
        self.measured.restore(snapshot.tensors, snapshot.values.get("validation_base"))
        self.seconds = snapshot.values["seconds"]

    @contextmanager
    def result(self) -> Iterator[None]:
        """Within it, the adapter has the weights that the training ends with: the best, where they are kept."""
        if not self.measured.best:
            with self.kept():
                yield
            return
        before = {name: tensor.clone() for name, tensor in self.adapter.state().items()}
        self.adapter.load_state(self.measured.best)
        try:
            yield
        finally:
            self.adapter.load_state(before)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Within it, the adapter has the weights that are kept, an average where there is one; then those of before."""
        optimizer: Any = self.optimizer
        averages = hasattr(optimizer, "eval")
        if self.average is None and not averages:
            yield
            return
        before = {name: tensor.clone() for name, tensor in self.adapter.state().items()}
        modes = [group.get("train_mode") for group in optimizer.param_groups]
        try:
            if self.average is not None:
                self.adapter.load_state(self.average.weights)
            else:
                optimizer.eval()
            yield
        finally:
            # Not by the optimizer's own way back, which rounds.
            self.adapter.load_state(before)
            for group, mode in zip(optimizer.param_groups, modes, strict=True):
                if averages:
                    group["train_mode"] = mode


def _part(tensors: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    prefix = f"{part}/"
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
