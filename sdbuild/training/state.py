"""The one named set of what a training resumes from: adapter, optimizer, losses, step and time."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from sdbuild.methods.contract import Adapter
from sdbuild.training.checkpoint import Snapshot


@dataclass(kw_only=True, slots=True)
class TrainingState:
    """A training between two steps."""

    adapter: Adapter
    optimizer: Optimizer
    step: int = 0
    """Steps done."""
    computed: int = 0
    """Steps done by this process."""
    losses: list[float] = field(default_factory=list)
    """Mean loss of each step done."""
    seconds: float = 0.0
    """Time spent in all sessions."""

    def snapshot(self) -> Snapshot:
        """Return everything that `restore` needs; tensors are not copied."""
        tensors = {f"adapter/{name}": tensor for name, tensor in self.adapter.state().items()}
        tensors["losses"] = torch.tensor(self.losses, dtype=torch.float64)
        states, values = _flatten(self.optimizer.state_dict()["state"])
        tensors |= states
        return Snapshot(step=self.step, tensors=tensors, values={"optimizer": values, "seconds": self.seconds})

    def restore(self, snapshot: Snapshot) -> None:
        """Become the state that the snapshot was taken of."""
        adapter = {
            name.removeprefix("adapter/"): tensor
            for name, tensor in snapshot.tensors.items()
            if name.startswith("adapter/")
        }
        self.adapter.load_state(adapter)
        groups = self.optimizer.state_dict()["param_groups"]
        states = _unflatten(snapshot.tensors, snapshot.values["optimizer"])
        self.optimizer.load_state_dict({"state": states, "param_groups": groups})
        self.step = snapshot.step
        self.losses = snapshot.tensors["losses"].tolist()
        self.seconds = snapshot.values["seconds"]


def _flatten(states: dict[int, dict[str, Any]]) -> tuple[dict[str, Tensor], dict[str, dict[str, Any]]]:
    """Part an optimizer's state into tensors and JSON-able values, by the parameter's number and the entry's name."""
    tensors: dict[str, Tensor] = {}
    values: dict[str, dict[str, Any]] = {}
    for number, entries in states.items():
        for name, entry in entries.items():
            if isinstance(entry, Tensor):
                tensors[f"optimizer/{number}/{name}"] = entry
            else:
                values.setdefault(str(number), {})[name] = entry
    return tensors, values


def _unflatten(tensors: Any, values: dict[str, dict[str, Any]]) -> dict[int, dict[str, Any]]:
    states: dict[int, dict[str, Any]] = {int(number): dict(entries) for number, entries in values.items()}
    for path, tensor in tensors.items():
        if path.startswith("optimizer/"):
            _, number, name = path.split("/", 2)
            states.setdefault(int(number), {})[name] = tensor
    return states
