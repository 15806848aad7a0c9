"""What a recipe says of its pictures: datasets with captions, masks and weights, and how pictures are seen."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from sdbuild.recipe.captions import CaptionSpec, Sidecar
from sdbuild.recipe.places import dataset_folder, overlaps
from sdbuild.recipe.spec import Distinct, Phrase, Spec, Text, refuse

Side = Annotated[int, Field(ge=16, le=8192)]
Share = Annotated[float, Field(ge=0, le=1)]


def _suffix(suffix: str) -> str:
    if "/" in suffix or "\\" in suffix:
        raise refuse(f"{suffix!r} has a slash; for masks in a folder write mask: {{from: folder, folder: masks}}")
    return suffix


def _inner_folder(folder: str) -> str:
    path = PurePosixPath(folder)
    if "\\" in folder or path.is_absolute() or not path.parts or any(part.startswith(".") for part in path.parts):
        raise refuse(f"{folder!r} is no folder inside the dataset's folder; name it relative to that, such as masks")
    return path.as_posix()


class _Mask(Spec):
    minimum: Share = 0.0
    """Weight of what the mask leaves out; 1 is the weight of the rest."""


class AlphaMask(_Mask):
    """The picture's own transparency: what is transparent is not learned."""

    source: Literal["alpha"] = Field(default="alpha", alias="from")


class SidecarMask(_Mask):
    """A grey picture beside each picture, of the same width and height: white is learned, black is not."""

    source: Literal["sidecar"] = Field(default="sidecar", alias="from")
    suffix: Annotated[Text, AfterValidator(_suffix)] = ".mask"
    """What a mask's name has after the picture's: `cat.mask.png` is the mask of `cat.jpg`."""


class FolderMask(_Mask):
    """The same in a folder of their own, by the pictures' names."""

    source: Literal["folder"] = Field(default="folder", alias="from")
    folder: Annotated[Text, AfterValidator(_inner_folder)]
    """Folder of the masks inside the dataset's folder: `masks/cat.png` is the mask of `cat.jpg`."""


MaskSpec = Annotated[AlphaMask | SidecarMask | FolderMask, Field(discriminator="source")]


class Tags(Spec):
    """How the tags of captions vary: of each caption some variants are drawn, and one of them is seen at a time."""

    separator: Text = ","
    """What parts the tags of a caption."""
    keep: Annotated[int, Field(ge=0, le=1000)] = 1
    """Number of tags that stay in front, as they are; the trigger is part of the first."""
    shuffle: bool = True
    """Whether the other tags come in a drawn order."""
    dropout: Share = 0.0
    """Share of the other tags that a variant leaves out."""
    variants: Annotated[int, Field(ge=1, le=1024)] = 8
    """Variants of each caption; each is encoded once, so many of them take time and room."""

    def rules(self) -> Iterator[tuple[str, str]]:
        """Something varies."""
        if not self.shuffle and self.dropout == 0:
            yield "shuffle", "tags are neither shuffled nor dropped; set dropout, or remove tags"


class Dataset(Spec):
    """A folder of pictures with captions."""

    path: Annotated[Text, AfterValidator(dataset_folder)]
    """Folder of the pictures, relative to the project."""
    caption: CaptionSpec = Field(default_factory=Sidecar)
    """Where captions come from; a sidecar beside a picture always wins."""
    trigger: Phrase = ""
    """Words that go before each caption, so that prompts can ask for what was learned."""
    lines: bool = False
    """Whether each line of a sidecar is a caption of its own, of which one is seen at a time."""
    tags: Tags | None = None
    """How tags are shuffled and left out; null leaves captions as they are."""
    mask: MaskSpec | None = None
    """Where masks come from, which say what of a picture is learned; null learns all of it."""
    resolutions: Distinct[Side] | None = None
    """Resolutions of this dataset in place of `images.resolution`; pictures are seen at each of them."""
    repeats: Annotated[int, Field(ge=1, le=100_000)] = 1
    """How often each picture is seen in one pass, for weight among several datasets."""
    weight: Annotated[float, Field(gt=0, le=1_000_000)] | None = None
    """Share in all that is seen, relative to the other datasets' weights, whatever their numbers of pictures."""
    holdout: Annotated[int, Field(ge=0, le=10_000_000)] = 0
    """Number of pictures kept for validation, chosen by their content."""

    def rules(self) -> Iterator[tuple[str, str]]:
        """A weight decides alone."""
        if self.weight is not None and self.repeats > 1:
            yield "weight", f"says how often pictures are seen, and so does repeats {self.repeats}; remove one of them"


class Buckets(Spec):
    """Shapes that pictures are fitted to, near the area of the resolution."""

    step: Annotated[int, Field(ge=8, le=8192, multiple_of=8)] = 64
    """Sides are multiples of this, in pixels; itself a multiple of 8."""
    max_aspect: Annotated[float, Field(ge=1, le=16)] = 2.0
    """Longest side divided by shortest; 1 makes all buckets square."""

    def misfit(self, resolution: int) -> str | None:
        """Why there is no square bucket of a resolution."""
        if resolution % self.step == 0:
            return None
        near = max(self.step, round(resolution / self.step) * self.step)
        return f"{resolution} is not divisible by buckets.step {self.step}; use {near}"


class Images(Spec):
    """How pictures become what the model sees."""

    resolution: Side = 512
    """Side of the square bucket, in pixels; other buckets have about its area."""
    buckets: Buckets = Field(default_factory=Buckets)
    """Shapes of the buckets."""
    crop: Literal["center", "top", "bottom", "left", "right", "random"] = "center"
    """Which part stays when a picture is longer than its bucket; `random` is drawn from the picture's content."""
    crops: Annotated[int, Field(ge=1, le=64)] = 1
    """Number of random crops of each picture, of which one is seen at a time."""
    flip: bool = False
    """Whether pictures are also seen mirrored."""
    background: Annotated[str, Field(pattern=r"^(white|black|grey|#[0-9a-fA-F]{6})$")] = "white"
    """Colour under transparent pixels: white, black, grey or "#rrggbb"."""
    on_error: Literal["fail", "skip"] = "fail"
    """What a broken picture does: `fail` stops the build, `skip` goes on without it and says so."""
    vae_tiling: bool = False
    """Whether the VAE encodes large pictures in tiles: much less memory, and slightly other latents."""

    def rules(self) -> Iterator[tuple[str, str]]:
        """The square bucket must exist, and several crops must differ."""
        if misfit := self.buckets.misfit(self.resolution):
            yield "resolution", misfit
        if self.crops > 1 and self.crop != "random":
            yield "crops", f"{self.crops} crops at the {self.crop} would be alike; set crop: random, or crops: 1"


def compatible(datasets: tuple[Dataset, ...]) -> tuple[Dataset, ...]:
    """Refuse datasets that cannot stand in one recipe."""
    for index, dataset in enumerate(datasets):
        for other in datasets[:index]:
            if dataset.path == other.path:
                raise refuse(f"{dataset.path!r} is there twice; use repeats to give it more weight", (index, "path"))
            if overlaps(dataset.path, other.path):
                message = f"{dataset.path!r} and {other.path!r} overlap; no picture may count twice"
                raise refuse(message, (index, "path"))
        if (dataset.weight is None) != (datasets[0].weight is None):
            at = index if dataset.weight is None else 0
            raise refuse("has no weight, another dataset has one; give each a weight, or none", (at,))
    return datasets
