"""Which ranks of LoRA layers act: by the timestep (T-LoRA), and by chance while training."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sdbuild.methods.lora.spec import Lora, TimestepRanks

LAST = 1000
"""Timesteps of all families: UNets count them, and SD3's transformer is told noise in thousandths."""


def ranks_at(timesteps: Tensor, rank: int, least: float, power: float) -> Tensor:
    """r(t) = ⌊((T - t) / T)ᵖ (r - r_min)⌋ + r_min (T-LoRA, Soboleva et al. 2025, section 4.1, where p is 1)."""
    low = max(1, int(least * rank))
    return ((LAST - timesteps.float()) / LAST).clamp(0, 1).pow(power).mul(rank - low).floor().long() + low


@dataclass(slots=True)
class Clock:
    """The timesteps that a denoiser is called with."""

    timesteps: Tensor = field(default_factory=lambda: torch.zeros(1))

    def watch(self, denoiser: nn.Module) -> None:
        """Read them at each call from now on."""
        position = list(inspect.signature(denoiser.forward).parameters).index("timestep")

        def before(_: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            self.timesteps = torch.as_tensor(kwargs["timestep"] if "timestep" in kwargs else args[position]).view(-1)

        denoiser.register_forward_pre_hook(before, with_kwargs=True)


class Gate:
    """Lets some ranks of one layer through: what comes out of its first factor, [B, …, rank] or [B, rank, h, w]."""

    def __init__(self, spec: Lora, clock: Clock | None) -> None:
        self.training = False
        self._rank_dropout = spec.rank_dropout
        self._module_dropout = spec.module_dropout
        self._falling: TimestepRanks | None = spec.timestep_ranks
        self._clock = clock

    def watch(self, first: nn.Module) -> None:
        """Stand behind a layer's first factor."""
        first.register_forward_hook(lambda module, args, output: self(output))

    def __call__(self, ranks: Tensor) -> Tensor:
        """Return them, those that do not act set to zero."""
        axis = 1 if ranks.dim() == 4 else -1
        mask = self._mask(len(ranks), ranks.shape[axis], ranks.device)
        if mask is None:
            return ranks
        shape = [1] * ranks.dim()
        shape[0], shape[axis] = mask.shape
        return ranks * mask.to(ranks.dtype).view(shape)

    def _mask(self, pictures: int, rank: int, device: torch.device) -> Tensor | None:
        """Which ranks act, [B or 1, rank]."""
        mask: Tensor | None = None
        if self._falling and self._clock:
            act = ranks_at(self._clock.timesteps.to(device), rank, self._falling.least, self._falling.power)
            mask = (torch.arange(rank, device=device) < act[:, None]).float()
        if self.training and self._rank_dropout:
            kept = torch.rand(pictures, rank, device=device) >= self._rank_dropout
            mask = kept / (1 - self._rank_dropout) * (1 if mask is None else mask)
        if self.training and self._module_dropout:
            kept = torch.rand(1, 1, device=device) >= self._module_dropout
            mask = (torch.ones(1, rank, device=device) if mask is None else mask) * kept
        return mask


def gates(layers: Mapping[tuple[Any, str], Any], spec: Lora, modules: Mapping[Any, nn.Module], name: str) -> list[Gate]:
    """Put a gate into each layer of the adapter `name`, where the spec needs any; text encoders know no timesteps."""
    if not (spec.timestep_ranks or spec.rank_dropout or spec.module_dropout):
        return []
    clocks: dict[Any, Clock] = {}
    for component, network in modules.items():
        if spec.timestep_ranks and not component.startswith("text_encoder"):
            clocks[component] = Clock()
            clocks[component].watch(network)
    made = []
    for (component, _), layer in layers.items():
        gate = Gate(spec, clocks.get(component))
        gate.watch(layer.lora_A[name])
        made.append(gate)
    return made
