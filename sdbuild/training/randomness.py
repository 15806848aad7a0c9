"""Random numbers as stateless functions of (seed, step, record), drawn on the CPU."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sdbuild.data.sampler import derive


@dataclass(frozen=True, kw_only=True, slots=True)
class Draw:
    """All that chance decides about one record in one step."""

    timestep: int
    """Uniform in [0, timesteps)."""
    without_caption: bool
    variant: float
    """Uniform in [0, 1): which variant of the record's item is seen."""
    latent: Tensor
    """Standard normal of the latent's shape, for sampling it from its mean and variance."""
    noise: Tensor
    """Standard normal of the latent's shape, which the denoiser has to find."""


def generator(seed: int, step: int, key: str, purpose: str) -> torch.Generator:
    """Return a CPU generator that depends on the arguments alone."""
    return torch.Generator().manual_seed(derive(seed, step, key, purpose))


def uniform(chance: torch.Generator) -> float:
    """Draw a number in [0, 1)."""
    return float(torch.rand((), generator=chance, dtype=torch.float64))


def draw(seed: int, step: int, key: str, *, shape: tuple[int, ...], timesteps: int, caption_dropout: float) -> Draw:
    """Draw for the record `key` in a step; all numbers are drawn, whatever is used of them."""
    chance = generator(seed, step, key, "step")
    dropped, variant = torch.rand(2, generator=chance, dtype=torch.float64).tolist()
    timestep = int(torch.randint(timesteps, (1,), generator=chance))
    latent, noise = torch.randn((2, *shape), generator=chance)
    return Draw(
        timestep=timestep, without_caption=dropped < caption_dropout, variant=variant, latent=latent, noise=noise
    )


def fixed_draw(key: str, index: int, *, shape: tuple[int, ...], timesteps: int, draws: int) -> tuple[int, Tensor]:
    """Draw timestep and noise of a held-out record's validation: the same in every recipe.

    The draws of a record are stratified: the timestep of draw `index` lies in the index-th of `draws` equal parts.
    """
    chance = generator(0, index, key, "validation")
    share = (index + uniform(chance)) / draws
    return int(share * timesteps), torch.randn(shape, generator=chance)
