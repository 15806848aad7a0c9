"""Draws pictures, each alone, from noise that depends on the seed only."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from PIL.Image import Image

from sdbuild.families.contract import Family, TextEncoder
from sdbuild.sampling.prompts import plain, words
from sdbuild.sampling.schedulers import SCHEDULERS, make_scheduler


class Strength(Protocol):
    """An adapter in a pipeline; see `methods.contract.Strength`."""

    def set_strength(self, strength: float) -> None:
        """Multiply the adapter's effect; 0 is the base exactly, 1 what was trained."""


class BaseAlone:
    """No adapter."""

    def set_strength(self, strength: float) -> None:
        """There is nothing to multiply."""
        assert strength == 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What all pictures of a grid share."""

    scheduler: str
    steps: int
    guidance: float
    """Classifier-free guidance (Ho & Salimans 2022); 1 and less turn it off."""
    negative: str
    width: int
    height: int
    refine_from: float = 1.0
    """Share of the steps after which a refiner goes on, where the base has one; at 1 none does."""
    prediction: str | None = None
    """What the adapter predicts, where that is not what the base does; see `make_scheduler`."""
    zero_terminal_snr: bool = False
    """Whether the adapter has learned that the last timestep is noise alone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One picture of a grid."""

    prompt: str
    seed: int
    strength: float
    """Of the adapter; 0 is the base alone."""


def samples(prompts: Sequence[str], seeds: Sequence[int], strengths: Sequence[float]) -> list[Sample]:
    """Return prompts × seeds × strengths in reading order: a row for each prompt and seed."""
    return [
        Sample(prompt=prompt, seed=seed, strength=strength)
        for prompt in prompts
        for seed in seeds
        for strength in strengths
    ]


def load_pipeline(
    family: Family, device: torch.device, apply: Callable[[Any], Strength], *, offload: bool = False
) -> tuple[Any, Strength]:
    """Load a base's pipeline, and let `apply` add adapters to it.

    With `offload` its networks wait in the main memory, and each is on the GPU while it computes.
    """
    offload = offload and device.type != "cpu"
    pipeline = family.pipeline(device="cpu" if offload else str(device))
    adapter = apply(pipeline)
    if offload:
        pipeline.enable_model_cpu_offload(device=device)
    return pipeline, adapter


def draw(
    pipeline: Any, adapter: Strength, family: Family, wanted: Sequence[Sample], settings: Settings
) -> Iterator[tuple[Sample, Image]]:
    """Draw samples one after the other.

    Args:
        pipeline: of the family's base, with the adapter in it.
        adapter: which is given each sample's strength.
        family: knows how prompts with weights, and longer ones than fit at once, become conditions.
        wanted: in any order.
        settings: of all.

    Yields:
        Each sample with its picture, the same as diffusers' own call gives with a CPU generator of that seed.
    """
    text = family.text_of(pipeline)
    own = pipeline.scheduler.config
    alone = make_scheduler(settings.scheduler, own, steps=settings.steps)
    adapted = make_scheduler(
        settings.scheduler,
        own,
        prediction=settings.prediction,
        zero_terminal_snr=settings.zero_terminal_snr,
        steps=settings.steps,
    )
    refiner = family.refiner(pipeline) if settings.refine_from < 1 else None
    for sample in wanted:
        adapter.set_strength(sample.strength)
        pipeline.scheduler = adapted if sample.strength else alone
        how = {
            "num_inference_steps": settings.steps,
            "guidance_scale": settings.guidance,
            "generator": torch.Generator().manual_seed(sample.seed),
        }
        said = _said(sample.prompt, settings.negative, family, text)
        size = {"width": settings.width, "height": settings.height}
        if refiner is None:
            yield sample, pipeline(**said, **size, **how).images[0]
            continue
        split = settings.refine_from
        latents = pipeline(**said, **size, **how, denoising_end=split, output_type="latent").images
        # Schedulers keep the state of a run; the refiner's is as new.
        refiner.scheduler = make_scheduler(settings.scheduler, own, steps=settings.steps)
        said = _said(sample.prompt, settings.negative, family, family.text_of(refiner))
        yield sample, refiner(**said, image=latents, denoising_start=split, **how).images[0]


def _said(prompt: str, negative: str, family: Family, text: TextEncoder) -> dict[str, Any]:
    """Arguments for the prompts: as they are where the pipeline reads them all, else as conditions."""
    wanted, unwanted = words(prompt), words(negative)
    chunks = max(text.chunks(wanted), text.chunks(unwanted))
    weighed = any(weight != 1 for _, weight in (*wanted, *unwanted))
    expands = text.expands(prompt) or text.expands(negative)  # not all pipelines do it themselves
    if chunks == 1 and not weighed and not expands and family.clip_skip == 1:
        return {"prompt": plain(prompt), "negative_prompt": plain(negative) or None}
    condition, against = (text.weigh(pieces, chunks) for pieces in (wanted, unwanted))
    if family.zeros_for_empty and not unwanted:
        against = {name: torch.zeros_like(tensor) for name, tensor in against.items()}
    return family.embedded(condition, against)


def parameters(sample: Sample, settings: Settings, adapter: str, *, mention: str, whole: bool = False) -> str:
    """Describe a picture as A1111 does in the PNG text chunk `parameters`.

    Args:
        sample: what was drawn.
        settings: and how.
        adapter: name of its file without ending.
        mention: what prompts say of such an adapter, `MethodSpec.mention`.
        whole: that file is a whole checkpoint, which is told as the model where it is alone what draws.
    """
    said = mention.format(name=adapter, strength=sample.strength) if sample.strength else ""
    lines = [f"{sample.prompt}{said}"]
    if settings.negative:
        lines.append(f"Negative prompt: {settings.negative}")
    facts: Mapping[str, object] = {
        "Steps": settings.steps,
        "Sampler": SCHEDULERS[settings.scheduler].label,
        "CFG scale": f"{settings.guidance:g}",
        "Seed": sample.seed,
        "Size": f"{settings.width}x{settings.height}",
        **({"Model": adapter} if whole and sample.strength == 1 else {}),
    }
    lines.append(", ".join(f"{name}: {value}" for name, value in facts.items()))
    return "\n".join(lines)
