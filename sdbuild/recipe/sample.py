"""The section `sample`: what is drawn with the adapter, and beside which others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from pydantic import AfterValidator, Field

from sdbuild.recipe.places import adapter_file, other_recipe
from sdbuild.recipe.spec import Distinct, Guidance, Prompt, Sampler, Seed, Spec, Strength, Text, Unsaid


class OtherAdapter(Spec):
    """An adapter that another recipe has made, or one from elsewhere."""

    recipe: Annotated[Text, AfterValidator(other_recipe)] | None = None
    """The recipe that makes it; it is built first."""
    path: Annotated[Text, AfterValidator(adapter_file)] | None = None
    """File of a LoRA or one of its kin, in the names of diffusers, kohya or LyCORIS; or of a hypernetwork made here."""
    strength: Strength = 1.0
    """How much of it is added."""

    def rules(self) -> Iterator[tuple[str, str]]:
        """It comes from one place."""
        if self.recipe is None and self.path is None:
            yield "recipe", "or path is missing; name the recipe that makes the adapter, or its file"
        if self.recipe is not None and self.path is not None:
            yield "path", "is there beside recipe; keep one of them"


class Sample(Spec):
    """A grid of pictures: prompts × seeds × strengths of the adapter."""

    prompts: Distinct[Prompt]
    """What is drawn, a row each."""
    negative: Unsaid = ""
    """The negative prompt: what guidance avoids."""
    seeds: Distinct[Seed] = (0,)
    """Seeds of the first noise; the same seed is the same noise at every strength."""
    strengths: Distinct[Strength] = (0.0, 1.0)
    """Strengths of the adapter; 0 is the base alone."""
    scheduler: Sampler = "dpm++"
    """Sampler, by the name that people know."""
    steps: Annotated[int, Field(ge=1, le=1000)] = 20
    """Denoising steps a picture."""
    guidance: Guidance = 7.5
    """Classifier-free guidance; 1 and less turn it off."""
    adapters: Annotated[tuple[OtherAdapter, ...], Field(strict=False, max_length=7)] = ()
    """Other adapters in all pictures, beside this recipe's at its strengths; of strength 0 are then these alone."""
    measure: bool = False
    """Whether pictures are compared with those trained on, which tells learning by heart: `samples.metrics.json`."""
    offload: bool = False
    """Whether each network is on the GPU only while it computes: less of its memory, and slower."""
    every: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    """Steps between adapters kept on the way (`train.save_every`) that are drawn, in `progress.png`; null for none."""
    refine_from: Annotated[float, Field(gt=0, lt=1)] = 0.8
    """Share of the steps after which `base.refiner` goes on, where there is one."""
