"""Warnings about numbers so far from the usual that training may diverge or samples may be oversaturated."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from sdbuild.methods.pivotal.spec import Pivotal
from sdbuild.methods.spec import Ranked

if TYPE_CHECKING:
    from sdbuild.recipe.models import Recipe

SCALE = 16.0
"""Alpha over rank."""
DECAY = 1.0
GUIDANCE = 30.0
STRENGTH = 5.0
RATIO = 64.0
"""Rate of LoRA's second factor over that of the first."""


def unusual_values(recipe: Recipe) -> Iterator[str]:
    """Yield the warnings."""
    train, sample = recipe.train, recipe.sample
    method = recipe.method.lora if isinstance(recipe.method, Pivotal) else recipe.method
    if isinstance(method, Ranked):
        sizes = [method.size(), *(method.size(part.rank, part.alpha) for part in method.parts)]
        scale = max(size.alpha / size.rank for size in sizes)
        if scale > SCALE:
            yield f"method.alpha makes a scale of {scale:g}, where 1 is usual; training may diverge"
    if train.weight_decay > DECAY:
        yield f"train.weight_decay {train.weight_decay:g} is far above the usual 0.01; training may diverge"
    if train.lora_plus_ratio > RATIO:
        yield f"train.lora_plus_ratio {train.lora_plus_ratio:g} is far above the usual 16; training may diverge"
    if sample is None:
        return
    if sample.guidance > GUIDANCE:
        yield f"sample.guidance {sample.guidance:g} is far above the usual 7.5; samples may be oversaturated"
    strengths = [*sample.strengths, *(other.strength for other in sample.adapters)]
    if (most := max(strengths, key=abs)) and abs(most) > STRENGTH:
        yield f"sample has a strength of {most:g}, where 1 is usual; samples may be oversaturated"
