"""Everything that a recipe can declare, with units, limits and defaults.

The JSON schema, the reference and the messages are made from these models; a model's docstring and the docstrings
of its fields are therefore written for users.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from sdbuild.recipe.captions import CaptionSpec, Sidecar
from sdbuild.recipe.methods import Lora, Method
from sdbuild.recipe.names import group_of
from sdbuild.recipe.places import base_model, dataset_folder, is_hub_id, overlaps
from sdbuild.recipe.spec import Distinct, Seed, Some, Spec, Text, refuse
from sdbuild.recipe.train import Train as Train


class Base(Spec):
    """The model that is adapted; it is never changed."""

    model: Annotated[Text, AfterValidator(base_model)]
    """Name of an embedded base, a hub id (`org/name`), or a folder in diffusers' layout."""
    revision: Text | None = None
    """Commit, tag or branch of a hub id; pinned to a commit when it is resolved."""

    def rules(self) -> Iterator[tuple[str, str]]:
        """A revision needs a hub."""
        if self.revision is not None and not is_hub_id(self.model):
            yield "revision", f"{self.model!r} is no hub id and has no revisions; remove it"


class Dataset(Spec):
    """A folder of pictures with captions."""

    path: Annotated[Text, AfterValidator(dataset_folder)]
    """Folder of the pictures, relative to the project."""
    caption: CaptionSpec = Field(default_factory=Sidecar)
    """Where captions come from; a sidecar beside a picture always wins."""
    trigger: str = ""
    """Words that go before each caption, so that prompts can ask for what was learned."""
    repeats: Annotated[int, Field(ge=1, le=100_000)] = 1
    """How often each picture is seen in one pass, for weight among several datasets."""
    holdout: Annotated[int, Field(ge=0)] = 0
    """Number of pictures kept for validation, chosen by their content."""


class Buckets(Spec):
    """Shapes that pictures are fitted to, near the area of the resolution."""

    step: Annotated[int, Field(ge=8, multiple_of=8)] = 64
    """Sides are multiples of this, in pixels; itself a multiple of 8."""
    max_aspect: Annotated[float, Field(ge=1, le=16)] = 2.0
    """Longest side divided by shortest; 1 makes all buckets square."""


class Images(Spec):
    """How pictures become what the model sees."""

    resolution: Annotated[int, Field(ge=16, le=8192)] = 512
    """Side of the square bucket, in pixels; other buckets have about its area."""
    buckets: Buckets = Field(default_factory=Buckets)
    """Shapes of the buckets."""
    crop: Literal["center", "top", "bottom", "left", "right"] = "center"
    """Which part stays when a picture is longer than its bucket."""
    flip: bool = False
    """Whether pictures are also seen mirrored."""
    background: Annotated[str, Field(pattern=r"^(white|black|grey|#[0-9a-fA-F]{6})$")] = "white"
    """Colour under transparent pixels: white, black, grey or "#rrggbb"."""
    on_error: Literal["fail", "skip"] = "fail"
    """What a broken picture does: `fail` stops the build, `skip` goes on without it and says so."""

    def rules(self) -> Iterator[tuple[str, str]]:
        """The square bucket must exist."""
        step = self.buckets.step
        if self.resolution % step:
            near = max(step, round(self.resolution / step) * step)
            yield "resolution", f"{self.resolution} is not divisible by buckets.step {step}; use {near}"


class Sample(Spec):
    """A grid of pictures: prompts × seeds × strengths of the adapter."""

    prompts: Distinct[Text]
    """What is drawn, a row each."""
    negative: str = ""
    """What guidance leads away from."""
    seeds: Distinct[Seed] = (0,)
    """Seeds of the first noise; the same seed is the same noise at every strength."""
    strengths: Distinct[float] = (0.0, 1.0)
    """Strengths of the adapter; 0 is the base alone."""
    scheduler: Literal["ddim", "ddpm", "euler", "euler-a", "dpm++"] = "dpm++"
    """Sampler, by the name that people know."""
    steps: Annotated[int, Field(ge=1, le=1000)] = 20
    """Denoising steps a picture."""
    guidance: Annotated[float, Field(ge=0)] = 7.5
    """Classifier-free guidance; 1 and less turn it off."""


def _apart(datasets: tuple[Dataset, ...]) -> tuple[Dataset, ...]:
    for index, dataset in enumerate(datasets):
        at = (index, "path")
        for other in datasets[:index]:
            if dataset.path == other.path:
                raise refuse(f"{dataset.path!r} is there twice; use repeats to give it more weight", at)
            if overlaps(dataset.path, other.path):
                raise refuse(f"{dataset.path!r} and {other.path!r} overlap; no picture may count twice", at)
    return datasets


class Recipe(Spec):
    """What to adapt, to which pictures, how, and what to draw with the result."""

    name: Text
    """Stem of the recipe's file; not a key that users write."""
    base: Base
    """The model that is adapted."""
    datasets: Annotated[Some[Dataset], AfterValidator(_apart)]
    """The pictures."""
    images: Images = Field(default_factory=Images)
    """How pictures become what the model sees."""
    method: Method = Field(default_factory=Lora)
    """How the base is adapted."""
    train: Train = Field(default_factory=Train)
    """The training."""
    sample: Sample | None = None
    """The grid; without it none is drawn."""
    matrix: dict[Text, Some[Any]] | None = None
    """Values by dotted key, such as `method.rank: [4, 8]`; each combination is built as a variant of its own."""

    @property
    def group(self) -> str:
        """Name of the recipe's file, which the variants of a matrix share."""
        return group_of(self.name)

    @property
    def varied(self) -> dict[str, Any]:
        """What a variant has of its matrix, by dotted key."""
        return {key: value for key, (value,) in (self.matrix or {}).items()}

    def resolved(self) -> dict[str, Any]:
        """The recipe as JSON-able data, by the keys that users write, with all defaults visible.

        Without the matrix: what else it makes changes nothing for a variant.
        """
        return self.model_dump(mode="json", by_alias=True, exclude={"matrix"})
