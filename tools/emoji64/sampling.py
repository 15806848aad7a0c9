"""Pictures drawn by a finished base, and how near they come to the pictures it learned from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline

from tools.emoji64.pictures import Pictures

STEPS = 20
GUIDANCE = 5.0


@dataclass(frozen=True, kw_only=True)
class Hits:
    """Shares of samples whose nearest Noto picture is of the same subcategory, and is the very picture."""

    subcategory: float
    exact: float
    chance: float


def load(folder: Path) -> StableDiffusionPipeline:
    """A base in float32, with the sampler that recipes call ``dpm++``."""
    pipe = StableDiffusionPipeline.from_pretrained(folder).to(torch.float32)
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    assert isinstance(pipe, StableDiffusionPipeline)
    return pipe


def sample(
    pipe: StableDiffusionPipeline, prompts: list[str], *, seed: int = 0, guidance: float = GUIDANCE, batch: int = 50
) -> torch.Tensor:
    """Latents of one picture a prompt, in the scale that the UNet sees; picture ``n`` starts from seed + n."""
    found = []
    for first in range(0, len(prompts), batch):
        part = prompts[first : first + batch]
        generators = [torch.Generator().manual_seed(seed + first + n) for n in range(len(part))]
        latents = pipe(
            part, num_inference_steps=STEPS, guidance_scale=guidance, generator=generators, output_type="latent"
        ).images
        found.append(latents)
    return torch.cat(found)


def nearest(samples: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
    """Index of the reference with the smallest Euclidean distance to each sample."""
    return torch.cdist(samples.flatten(1), references.flatten(1)).argmin(dim=1)


def hits(noto: Pictures, chosen: torch.Tensor, found: torch.Tensor) -> Hits:
    """Compare what was asked for (``chosen``) with what is nearest to the samples (``found``)."""
    kinds = noto.subcategories
    same = [kinds[int(a)] == kinds[int(b)] for a, b in zip(chosen, found, strict=True)]
    chance = [kinds.count(kinds[int(a)]) / len(kinds) for a in chosen]
    return Hits(
        subcategory=sum(same) / len(same),
        exact=float((chosen == found).float().mean()),
        chance=sum(chance) / len(chance),
    )


@torch.no_grad()
def decode(pipe: StableDiffusionPipeline, latents: torch.Tensor) -> torch.Tensor:
    """Pictures in [-1, 1] of latents in the UNet's scale."""
    factor = float(pipe.vae.config.scaling_factor)
    return torch.cat([pipe.vae.decode(part / factor).sample for part in torch.split(latents, 64)])
