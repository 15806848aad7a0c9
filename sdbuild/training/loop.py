"""The training loop: maintenance first, then a step, so that the last state needs no epilogue of its own.

Nothing that the loop draws depends on what came before, so going on from any checkpoint gives the bytes of a run that
was never stopped.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor

from sdbuild.data.sampler import derive
from sdbuild.errors import StepError
from sdbuild.training.checkpoint import Checkpoints
from sdbuild.training.optimizers import set_rate
from sdbuild.training.state import TrainingState

REPORT_SECONDS = 0.25
"""Progress is told at most so often."""


class Progress(Protocol):
    """Where progress is told; see `steps.contract.Context.progress`."""

    def __call__(self, done: int, total: int, unit: str, **figures: float) -> None:
        """Tell how far the training is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What to train and how long; the losses of a step are a function of its number and of the adapter."""

    steps: int
    rate_of: Callable[[int], float]
    losses_of: Callable[[int], Iterator[Tensor]]
    """Losses [B] of a step's records, with gradients, a batch at a time."""
    names_of: Callable[[int], Sequence[str]]
    """What to call a step's records in a message."""
    seed: int
    clip: float | None


def train(plan: Plan, state: TrainingState, checkpoints: Checkpoints, progress: Progress) -> None:
    """Train `state` to the plan's last step, from the newest checkpoint.

    Raises:
        StepError: a loss is not finite; the checkpoint before it is kept.
        KeyboardInterrupt: the user stopped it; the state was saved.
    """
    snapshot = checkpoints.load()
    if snapshot is not None:
        state.restore(snapshot)
    clock = Clock(state.seconds)
    report = Report(progress=progress, total=plan.steps)
    pending = Pending(plan=plan, state=state)
    limit = math.inf if plan.clip is None else plan.clip
    parameters = [parameter for _, parameter in state.adapter.parameters()]
    try:
        while True:
            if checkpoints.due(state.step) or (state.step == plan.steps and checkpoints.saved != plan.steps):
                pending.settle()
                state.seconds = clock.seconds
                checkpoints.save(state.snapshot())
            report(state)
            if state.step == plan.steps:
                return

            # Dropout layers draw from the global generator of their device.
            torch.manual_seed(derive(plan.seed, state.step, "", "modules"))
            state.optimizer.zero_grad(set_to_none=True)
            losses = accumulate(plan.losses_of(state.step), len(plan.names_of(state.step)))
            norm = torch.nn.utils.clip_grad_norm_(parameters, limit)
            with uninterrupted():
                set_rate(state.optimizer, plan.rate_of(state.step))
                state.optimizer.step()
                if state.average is not None:
                    state.average.update(state.adapter.state(), state.step)
                pending.add(losses, norm)
                state.step += 1
                state.computed += 1
            pending.settle(keep=1)
    except KeyboardInterrupt:
        pending.settle()
        state.seconds = clock.seconds
        if checkpoints.saved != state.step:
            checkpoints.save(state.snapshot())
        raise


def accumulate(batches: Iterator[Tensor], records: int) -> Tensor:
    """Add up the gradients of the mean loss over all records; return the losses."""
    parts = []
    for losses in batches:
        (losses.sum() / records).backward()  # type: ignore[no-untyped-call]
        parts.append(losses.detach())
    return torch.cat(parts)


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

    plan: Plan
    state: TrainingState
    _steps: list[tuple[int, Tensor]] = field(default_factory=list)

    def add(self, losses: Tensor, norm: Tensor) -> None:
        """Note the step just taken."""
        self._steps.append((self.state.step, torch.cat([losses.mean().view(1), norm.view(1), losses])))

    def settle(self, keep: int = 0) -> None:
        """Read all but the newest `keep` into the state's losses; `StepError` if one is not finite."""
        with uninterrupted():
            while len(self._steps) > keep:
                step, figures = self._steps.pop(0)
                mean, norm, *losses = figures.tolist()
                if not (math.isfinite(mean) and math.isfinite(norm)):
                    self._steps.clear()
                    raise StepError(self._message(step, mean, losses))
                self.state.losses.append(mean)

    def _message(self, step: int, mean: float, losses: Sequence[float]) -> str:
        names = self.plan.names_of(step)
        bad = [name for name, loss in zip(names, losses, strict=True) if not math.isfinite(loss)]
        what = f"the loss is {mean}" if bad else "the gradient is not finite"
        named = bad or list(names)
        shown = ", ".join(named[:3]) + (f" and {len(named) - 3} more" if len(named) > 3 else "")
        return (
            f"training broke down at step {step + 1} of {self.plan.steps}: {what} for {shown}\n"
            f"lower train.learning_rate ({self.plan.rate_of(step):g} there), lengthen train.warmup, set train.clip, "
            "or look at these pictures"
        )


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold Ctrl-C back until the end, so that a saved state is never half a step."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[tuple[int, FrameType | None]] = []
    handler: Any = signal.signal(signal.SIGINT, lambda number, frame: received.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL if handler is None else handler)
    if received and callable(handler):
        handler(*received[0])
