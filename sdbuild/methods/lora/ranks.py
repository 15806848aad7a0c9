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
UNMERGED = "an adapter whose ranks depend on the timestep cannot be merged; train without timestep_ranks"


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

    def __init__(self, spec: Lora, clock: Clock | None, *, each: int = 1) -> None:
        """Let ranks through by a spec; `each` of those in a file, side by side, are one of the training."""
        self.training = False
        self._each = each
        self._rank_dropout = spec.rank_dropout
        self._module_dropout = spec.module_dropout
        self._falling: TimestepRanks | None = spec.timestep_ranks
        self._clock = clock

    def watch(self, first: nn.Module) -> None:
        """Stand behind a layer's first factor."""
        first.register_forward_hook(lambda module, args, output: self(output))

    def __call__(self, ranks: Tensor) -> Tensor:
        """Return them, those that do not act set to zero."""
        mask = self.shaped(ranks)
        return ranks if mask is None else ranks * mask

    def shaped(self, ranks: Tensor) -> Tensor | None:
        """Return what to multiply them with; None where all act."""
        axis = 1 if ranks.dim() == 4 else -1
        mask = self._mask(len(ranks), ranks.shape[axis] // self._each, ranks.device)
        if mask is None:
            return None
        mask = mask.repeat_interleave(self._each, dim=1)
        shape = [1] * ranks.dim()
        shape[0], shape[axis] = mask.shape
        return mask.to(ranks.dtype).view(shape)

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
    if not _needed(spec):
        return []
    clocks = _clocks(spec, modules)
    made = []
    for (component, _), layer in layers.items():
        gate = Gate(spec, clocks.get(component), each=2 if spec.orthogonal == "both" else 1)
        gate.watch(layer.lora_A[name])
        made.append(gate)
    return made


def gated(layers: Mapping[tuple[Any, str], Any], spec: Lora, modules: Mapping[Any, nn.Module]) -> Mapping[Any, Any]:
    """Give layers that ask gates themselves one each, where the spec needs any; return them."""
    clocks = _clocks(spec, modules) if _needed(spec) else {}
    for (component, _), layer in layers.items():
        layer.gate = Gate(spec, clocks.get(component)) if _needed(spec) else None
    return layers


def _needed(spec: Lora) -> bool:
    return bool(spec.timestep_ranks or spec.rank_dropout or spec.module_dropout)


def _clocks(spec: Lora, modules: Mapping[Any, nn.Module]) -> dict[Any, Clock]:
    clocks: dict[Any, Clock] = {}
    for component, network in modules.items():
        if spec.timestep_ranks and not component.startswith("text_encoder"):
            clocks[component] = Clock()
            clocks[component].watch(network)
    return clocks
