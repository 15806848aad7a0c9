"""Several processes on one training: each computes its share of a step's records, then all take the same step.

Gradients and losses are added up over the processes, so a step is that of all its records however they are shared. The
first process alone reads and writes checkpoints, tells progress and writes what comes out.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor
from torch.nn import Parameter

from sdbuild.errors import StepError
from sdbuild.training.checkpoint import Checkpoints, Snapshot

MEETING = "SDBUILD_MEETING"
"""Environment variable of one process of several: the URL where they find each other; see torch's `init_method`."""
PATIENCE = timedelta(hours=6)
"""How long to wait for other processes: for those of other machines to begin, and for the first to validate or save.

A process that dies on this machine is noticed by the build at once.
"""
PIECE = 1 << 24
"""Numbers that are added up in one go."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Processes:
    """The processes of a training, seen from one of them."""

    device: torch.device
    """That this process trains on."""
    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def share(self, records: int) -> tuple[int, int]:
        """Return start and end of this process's part of a step's records; shares differ by one record at most."""
        return self.rank * records // self.count, (self.rank + 1) * records // self.count

    def place(self, records: int) -> str:
        """Name this process's share in random draws of modules: nothing for the share that begins the step's records.

        Draws depend on how records are shared, not on which process has which share.
        """
        start, _ = self.share(records)
        return str(start) if start else ""

    @torch.no_grad()
    def add_up(self, parameters: Sequence[Parameter], losses: Tensor, records: int) -> Tensor:
        """Replace gradients by their sums over all processes, and return the losses of all records of the step.

        A parameter without a gradient in one process has that of the others; without one in all, it stays without.

        Args:
            parameters: what is trained, in the same order everywhere.
            losses: of this process's share.
            records: of the whole step.
        """
        if self.count == 1:
            return losses
        start, end = self.share(records)
        every = torch.zeros(records, device=self.device)
        every[start:end] = losses
        without = [number for number, parameter in enumerate(parameters) if parameter.grad is None]
        have = torch.ones(len(parameters), device=self.device)
        have[without] = 0
        for number in without:
            parameters[number].grad = torch.zeros_like(parameters[number])
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        for piece in _pieces([every, have, *gradients]):
            flat = torch.cat([tensor.flatten() for tensor in piece])
            torch.distributed.all_reduce(flat)
            for tensor, part in zip(piece, torch.split(flat, [tensor.numel() for tensor in piece]), strict=True):
                tensor.copy_(part.view_as(tensor))
        if without:
            for number, found in zip(without, have[without].tolist(), strict=True):
                if not found:
                    parameters[number].grad = None
        return every

    def told(self, number: float) -> float:
        """Return the first process's number everywhere, so that all decide alike."""
        if self.count == 1:
            return number
        said = torch.tensor(number, dtype=torch.float64, device=self.device)
        torch.distributed.broadcast(said, 0)
        return float(said)

    def agreed(self, identity: str, snapshot: Snapshot | None) -> Snapshot | None:
        """Return the first process's snapshot everywhere.

        Raises:
            StepError: this process has another recipe, other data or another base.
        """
        if self.count == 1:
            return snapshot
        said: dict[str, Any] = {"identity": identity, "torch": torch.__version__, "snapshot": None}
        tensors = dict(snapshot.tensors) if snapshot is not None else {}
        if snapshot is not None:
            kinds = {name: (str(t.dtype).removeprefix("torch."), list(t.shape)) for name, t in tensors.items()}
            said["snapshot"] = {"step": snapshot.step, "values": snapshot.values, "tensors": kinds}
        heard = json.loads(self._spread(json.dumps(said).encode()))
        for what, word in (("identity", "recipe, base, pictures or captions"), ("torch", "version of torch")):
            if heard[what] != said[what]:
                raise StepError(f"process {self.rank + 1} of {self.count} has another {word} than the first process")
        found = heard["snapshot"]
        if found is None:
            return None
        received = {}
        for name, (dtype, shape) in found["tensors"].items():
            tensor = tensors[name] if self.first else torch.empty(shape, dtype=getattr(torch, dtype))
            sent = tensor.to(self.device)
            torch.distributed.broadcast(sent, 0)
            received[name] = sent.cpu()
        return Snapshot(step=found["step"], tensors=received, values=found["values"])

    def _spread(self, content: bytes) -> bytes:
        """Return the first process's bytes everywhere."""
        size = torch.tensor(len(content), device=self.device)
        torch.distributed.broadcast(size, 0)
        sent = torch.zeros(int(size), dtype=torch.uint8)
        if self.first:
            sent = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        sent = sent.to(self.device)
        torch.distributed.broadcast(sent, 0)
        return bytes(sent.tolist())


ALONE = Processes(device=torch.device("cpu"))
"""A process that shares with nobody; its device does not matter, for it has records in every step."""


@dataclass(kw_only=True, slots=True)
class SharedCheckpoints(Checkpoints):
    """The first process's checkpoints: the others resume from them and write none."""

    processes: Processes

    # `super()` does not find its class here: slots make another one of it.

    def due(self, step: int) -> bool:
        """Whether this process writes a checkpoint now."""
        return self.processes.first and Checkpoints.due(self, step)

    def save(self, snapshot: Snapshot) -> None:
        """Write a checkpoint, if this is the first process."""
        if self.processes.first:
            Checkpoints.save(self, snapshot)
        self.saved = snapshot.step

    def load(self) -> Snapshot | None:
        """Return the newest good checkpoint of the first process."""
        own = Checkpoints.load(self) if self.processes.first else None
        snapshot = self.processes.agreed(self.identity, own)
        self.saved = snapshot.step if snapshot else None
        return snapshot


def join() -> Processes:
    """Return the processes that this one was started with, after they have met; or this one alone.

    Raises:
        StepError: there are more processes than devices.
    """
    meeting = os.environ.get(MEETING)
    if meeting is None:
        return Processes(device=PartialState().device)
    local, count = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
    cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true" or not torch.cuda.is_available()
    devices = torch.cuda.device_count()
    if not cpu and local > devices:
        raise StepError(
            f"train.processes {count} needs {local} GPUs on this machine, which has {devices}; "
            "lower it, and see train.accumulate for large batches"
        )
    state = PartialState(cpu=cpu, init_method=meeting, rank=int(os.environ["RANK"]), world_size=count, timeout=PATIENCE)
    return Processes(device=state.device, rank=state.process_index, count=state.num_processes)


def _pieces(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Put neighbours of one type together, `PIECE` numbers at most unless one tensor has more."""
    piece: list[Tensor] = []
    for tensor in tensors:
        if piece and (tensor.dtype != piece[0].dtype or sum(each.numel() for each in piece) + tensor.numel() > PIECE):
            yield piece
            piece = []
        piece.append(tensor)
    yield piece
