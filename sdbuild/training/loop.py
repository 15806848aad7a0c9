"""The training loop: maintenance first, then a step, so that the last state needs no epilogue of its own.

Nothing that the loop draws depends on what came before, so going on from any checkpoint gives the bytes of a run that
was never stopped.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler

from sdbuild.data.sampler import derive
from sdbuild.training.checkpoint import Checkpoints
from sdbuild.training.guard import Guard
from sdbuild.training.interrupts import uninterrupted
from sdbuild.training.optimizers import set_rate
from sdbuild.training.parallel import ALONE, Processes
from sdbuild.training.precision import expected
from sdbuild.training.state import TrainingState

REPORT_SECONDS = 0.25
"""Progress is told at most so often."""


class Progress(Protocol):
    """Where progress is told; see `steps.contract.Context.progress`."""

    def __call__(self, done: int, total: int, unit: str, **figures: float) -> None:
        """Tell how far the training is."""


class Between(Protocol):
    """Something that happens after some steps, before their checkpoint, which then holds what it found."""

    def due(self, step: int) -> bool:
        """Whether it happens after so many steps."""

    def __call__(self, state: TrainingState) -> None:
        """Let it happen, once for each step; the training's own state stays as it is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What to train and how long; the losses of a step are a function of its number and of the adapter."""

    steps: int
    rate_of: Callable[[int], float]
    losses_of: Callable[[int], Iterator[Tensor]]
    """Losses [B] of this process's share of a step's records, with gradients, a batch at a time."""
    names_of: Callable[[int], Sequence[str]]
    """What to call a step's records in a message."""
    seed: int
    clip: float | None
    processes: Processes = ALONE
    rising_loss: float | None = None
    """See `Guard.rise`."""
    nothing_of: Callable[[int], float] | None = None
    """See `Guard.nothing_of`."""
    between: Sequence[Between] = ()
    enough: Callable[[TrainingState], bool] = lambda state: False
    """Whether to end before the last step."""
    tell: Callable[[TrainingState], None] = lambda state: None
    """Told of every step."""

    def over(self, state: TrainingState) -> bool:
        """Whether there is nothing left to do."""
        return state.step == self.steps or self.enough(state)


def train(plan: Plan, state: TrainingState, checkpoints: Checkpoints, progress: Progress) -> None:
    """Train `state` to the plan's end, from the newest checkpoint.

    Raises:
        StepError: a loss is not finite or has risen; the checkpoint before it is kept. Or the disk is full.
        KeyboardInterrupt: the user stopped it; the state was saved.
    """
    snapshot = checkpoints.load()
    if snapshot is not None:
        state.restore(snapshot)
    clock = Clock(state.seconds)
    report = Report(progress=progress, total=plan.steps)
    guard = Guard(
        steps=plan.steps,
        rise=plan.rising_loss,
        nothing_of=plan.nothing_of,
        clip=plan.clip,
        rate_of=plan.rate_of,
        names_of=plan.names_of,
        kept=lambda: checkpoints.kept,
    )
    pending = Pending(guard=guard, state=state)
    limit = math.inf if plan.clip is None else plan.clip
    parameters = [parameter for _, parameter in state.adapter.parameters()]
    try:
        while True:
            for other in plan.between:
                if other.due(state.step):
                    pending.settle()
                    other(state)
            over = plan.over(state)
            due, last = checkpoints.due(state.step), over and checkpoints.saved != state.step
            if due or last:
                pending.settle()
            if last or (due and not guard.doubtful(state.losses)):
                state.seconds = clock.seconds
                checkpoints.save(state.snapshot())
            report(state)
            plan.tell(state)
            if over:
                return

            # Dropout layers draw from the global generator of their device.
            records = len(plan.names_of(state.step))
            torch.manual_seed(derive(plan.seed, state.step, plan.processes.place(records), "modules"))
            state.optimizer.zero_grad(set_to_none=True)
            own = accumulate(plan.losses_of(state.step), records, state.scaler, plan.processes.device)
            losses = plan.processes.add_up(parameters, own, records)
            state.scaler.unscale_(state.optimizer)
            norm = torch.nn.utils.clip_grad_norm_(parameters, limit)
            with uninterrupted():
                set_rate(state.optimizer, plan.rate_of(state.step))
                state.scaler.step(state.optimizer)
                state.scaler.update()
                if state.average is not None:
                    state.average.update(state.adapter.state(), state.step)
                pending.add(losses, expected(norm, state.scaler))
                state.step += 1
                state.computed += 1
            pending.settle(keep=1)
    except KeyboardInterrupt:
        pending.settle()
        state.seconds = clock.seconds
        if checkpoints.saved != state.step:
            checkpoints.save(state.snapshot())
        raise KeyboardInterrupt(f"after step {state.step} of {plan.steps}, which is saved") from None


def accumulate(batches: Iterator[Tensor], records: int, scaler: GradScaler, device: torch.device) -> Tensor:
    """Add up the scaled gradients of the batches' part in the mean loss over all records; return their losses."""
    parts = []
    for losses in batches:
        scaler.scale(losses.sum() / records).backward()  # type: ignore[no-untyped-call]
        parts.append(losses.detach())
    # Scaled, so that a process without records begins the scaler as the others do.
    return torch.cat(parts) if parts else scaler.scale(torch.zeros(0, device=device))


class Clock:
    """Seconds of this and earlier sessions."""

    def __init__(self, before: float) -> None:
        self._began = time.monotonic() - before

    @property
    def seconds(self) -> float:
        """All so far."""
        return time.monotonic() - self._began


@dataclass(kw_only=True, slots=True)
class Report:
    """Tells progress now and then, with a smoothed loss."""

    progress: Progress
    total: int
    _told: float = -math.inf

    def __call__(self, state: TrainingState) -> None:
        """Tell, if it is time."""
        now = time.monotonic()
        if now - self._told < REPORT_SECONDS and state.step < self.total:
            return
        self._told = now
        recent = state.losses[-20:]
        figures = {"loss": sum(recent) / len(recent)} if recent else {}
        self.progress(state.step, self.total, "steps", **figures)


@dataclass(kw_only=True, slots=True)
class Pending:
    """Losses that the device may still be computing: read one step late, so that it never waits for the processor."""

    guard: Guard
    state: TrainingState
    _steps: list[Tensor] = field(default_factory=list)

    def add(self, losses: Tensor, norm: Tensor) -> None:
        """Note the step just taken."""
        self._steps.append(torch.cat([losses.mean().view(1), norm.view(1), losses]))

    def settle(self, keep: int = 0) -> None:
        """Read all but the newest `keep` into the state's losses; `StepError` if one is not as it should be."""
        with uninterrupted():
            while len(self._steps) > keep:
                mean, norm, *records = self._steps.pop(0).tolist()
                self.state.losses.append(mean)
                self.guard.check(self.state.losses, norm, records)
