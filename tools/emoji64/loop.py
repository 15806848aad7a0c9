"""What both trainings share: the schedule, the random draws, checkpoints, and the log."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

Metrics = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long and how fast to train; ``decay`` is the last share of the steps, where the rate falls to 0."""

    steps: int
    batch: int
    rate: float
    warmup: int = 100
    decay: float = 0.3
    seed: int = 0
    save_every: int = 250
    log_every: int = 100


def rate_at(plan: Plan, step: int) -> float:
    """Warmup, plateau, then a half cosine to zero.

    The plateau is flat, so a run may be prolonged by resuming it with more steps.
    """
    if step < plan.warmup:
        return plan.rate * (step + 1) / plan.warmup
    start = plan.steps * (1 - plan.decay)
    if step < start:
        return plan.rate
    progress = (step - start) / max(1.0, plan.steps - start)
    return plan.rate * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def generator(seed: int, step: int) -> torch.Generator:
    """The random numbers of one step: they depend on nothing that came before it."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


def batch_indices(pool: torch.Tensor, plan: Plan, step: int) -> torch.Tensor:
    """The step's share of an endless sequence of shuffled epochs over ``pool``."""
    first = step * plan.batch
    positions = range(first, first + plan.batch)
    epochs = sorted({position // len(pool) for position in positions})
    orders = {epoch: torch.randperm(len(pool), generator=generator(plan.seed + 1, epoch)) for epoch in epochs}
    chosen = torch.stack([orders[position // len(pool)][position % len(pool)] for position in positions])
    return pool[chosen]


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every parameter group this learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate


class Average:
    """Exponential moving average of a module's parameters, with a warm-up of its memory."""

    def __init__(self, module: torch.nn.Module, decay: float) -> None:
        self.decay = decay
        self.live: list[torch.Tensor] = list(module.parameters())
        self.names = [name for name, _ in module.named_parameters()]
        self.values = [parameter.detach().clone() for parameter in self.live]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the parameters after ``step``."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.values, self.live, 1 - decay)

    def state(self) -> dict[str, torch.Tensor]:
        """The averaged parameters under the module's names."""
        return dict(zip(self.names, self.values, strict=True))

    @torch.no_grad()
    def restore(self, state: dict[str, torch.Tensor]) -> None:
        """Go on from a checkpoint's average."""
        for name, value in zip(self.names, self.values, strict=True):
            value.copy_(state[name])


def train(
    *,
    plan: Plan,
    folder: Path,
    module: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    average: Average,
    loss_of: Callable[[int], tuple[torch.Tensor, Metrics]],
    evaluate: Callable[[int], Metrics],
    evaluate_every: int,
) -> None:
    """Train to ``plan.steps``, going on from the folder's checkpoint if there is one."""
    checkpoint = folder / "checkpoint.pt"
    first = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
        module.load_state_dict(state["module"])
        optimizer.load_state_dict(state["optimizer"])
        average.restore(state["average"])
        first = int(state["step"])
    sums: Metrics = {}
    count = 0
    began = time.monotonic()
    for step in range(first, plan.steps + 1):
        if step > first and (step % plan.save_every == 0 or step == plan.steps):
            state = {
                "step": step,
                "module": module.state_dict(),
                "optimizer": optimizer.state_dict(),
                "average": average.state(),
            }
            save(checkpoint, state)
        if step > first and (step % evaluate_every == 0 or step == plan.steps):
            print(f"step {step} " + " ".join(f"{k} {v:.4f}" for k, v in evaluate(step).items()), flush=True)
        if step == plan.steps:
            break
        set_rate(optimizer, rate_at(plan, step))
        loss, metrics = loss_of(step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        average.update(step)
        for name, value in {"loss": float(loss.detach()), **metrics}.items():
            sums[name] = sums.get(name, 0.0) + value
        count += 1
        if count == plan.log_every:
            seconds = (time.monotonic() - began) / count
            shown = " ".join(f"{name} {value / count:.4f}" for name, value in sums.items())
            print(f"step {step + 1}/{plan.steps} {shown} s/step {seconds:.3f}", flush=True)
            sums, count, began = {}, 0, time.monotonic()
