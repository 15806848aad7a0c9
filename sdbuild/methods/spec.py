"""What the specs of all methods share. Importing it is light: recipes are checked with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import sqrt
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag

from sdbuild.recipe.spec import Distinct, Guidance, Prompt, Sampler, Seed, Spec, Text
from sdbuild.storage.text_cleaning import unescaped

Side = Literal["denoiser", "text"]
"""The networks of a base that methods change: UNet or transformer, and text encoders."""
Rated = Literal["denoiser", "text_encoder", "embeddings"]
"""Parts that can have a learning rate of their own."""


def _targets_form(value: Any) -> str:
    return "patterns" if isinstance(value, list | tuple) else "preset"


Targets = Annotated[
    Annotated[Literal["default", "attention", "all-linear", "ia3"], Tag("preset")]
    | Annotated[Distinct[Text], Tag("patterns")],
    Discriminator(_targets_form),
]


class _Prior(Spec):
    prompt: Prompt
    """Names the class without the rare word, such as `a cat`: what the base is to go on knowing."""
    weight: Annotated[float, Field(ge=1e-6, le=100)] = 1.0
    """Weight of its loss; that of the recipe's own pictures is 1."""

    def taught(self) -> dict[str, Any]:
        """What of it training depends on, as JSON."""
        found = self.model_dump(mode="json", by_alias=True, include={"source", "prompt", "weight"})
        return {**found, "prompt": self.caption}

    @property
    def caption(self) -> str:
        """The prompt as a caption has it, in which a backslash before a bracket is not needed."""
        return unescaped(self.prompt)


class ClassPictures(_Prior):
    """Pictures of the class, drawn by the base before the training (Ruiz et al., 2023, equation 2)."""

    source: Literal["pictures"] = Field(default="pictures", alias="from")
    pictures: Annotated[int, Field(ge=1, le=100_000)] = 100
    """Number of pictures; one more is one more to draw."""
    seed: Seed = 0
    """Seed of the first picture; the others have the seeds after it."""
    negative: str = ""
    """The negative prompt: what guidance avoids."""
    scheduler: Sampler = "dpm++"
    """Sampler that they are drawn with."""
    steps: Annotated[int, Field(ge=1, le=1000)] = 25
    """Denoising steps a picture."""
    guidance: Guidance = 7.5
    """Classifier-free guidance; 1 and less turn it off."""
    offload: bool = False
    """Whether each network is on the GPU only while it computes: less of its memory, and slower."""


class KeptPrediction(_Prior):
    """What the base predicts for the class from the recipe's own noisy pictures, without other pictures.

    AI Toolkit calls it differential output preservation.
    """

    source: Literal["prediction"] = Field(default="prediction", alias="from")


Prior = Annotated[ClassPictures | KeptPrediction, Field(discriminator="source")]
"""How the base's knowledge of a class is preserved."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Usual:
    """Usual learning rates and lengths of training, from papers and other trainers' defaults; rates are AdamW's."""

    rate: float
    """Learning rate of recipes that say none."""
    rates: tuple[float, float]
    """Lowest and highest that are usual."""
    views: tuple[int, int] = (50, 400)
    """How often each picture is seen, at least and at most; more is learned by heart."""


WORDS = Usual(rate=5e-4, rates=(1e-4, 1e-2), views=(200, 5000))
"""Of new tokens' vectors: diffusers' example 5e-4 and 2,400 views, Gal et al. (2023) and A1111 5e-3."""


class MethodSpec(Spec):
    """One way to adapt, told apart by `kind`."""

    kind: str
    usual: ClassVar[Usual] = Usual(rate=1e-4, rates=(1e-5, 1e-3))
    """LoRA and its kin: diffusers' examples and LyCORIS 1e-4, OneTrainer 3e-4, kohya's guides 1e-4 to 1e-3; 10 to 20
    repeats in 10 epochs."""
    usual_words: ClassVar[Usual] = WORDS
    """The same of new tokens' vectors, where they have a learning rate of their own."""
    always: ClassVar[frozenset[str]] = frozenset()
    """Settings that the specs of steps have even where a recipe does not set them; see `stated`."""
    modelspec: ClassVar[str] = "/lora"
    """What follows the family's name in `modelspec.architecture` of its files."""
    second_factor: ClassVar[bool] = False
    """Whether it has LoRA's second factors, which can have a learning rate of their own."""

    mention: ClassVar[str] = " <lora:{name}:{strength:g}>"
    """What A1111's prompts say for it to act; new words are in the prompt themselves, and a checkpoint is the model."""

    @property
    def words(self) -> Sequence[str]:
        """What captions have to say for it to learn anything."""
        return ()

    @property
    def sides(self) -> frozenset[Side]:
        """What of the base changes; a text encoder that does is run in every step, not once."""
        return frozenset({"denoiser"})

    @property
    def rated(self) -> frozenset[Rated]:
        """What has a learning rate."""
        return frozenset({"denoiser", "text_encoder"} if "text" in self.sides else {"denoiser"})

    @property
    def trains_base(self) -> bool:
        """Whether the base's own weights are trained, for which they are held in float32."""
        return False

    @property
    def preserved(self) -> ClassPictures | KeptPrediction | None:
        """What of the base's knowledge the training keeps, if that is asked for."""
        return None

    @property
    def extracted(self) -> Extract | None:
        """LoRA that is made from the result, if that is asked for."""
        return None

    @property
    def revised(self) -> Sequence[str]:
        """Names of changes to what these settings make; results from before such a change are stale."""
        return ()

    def warnings(self) -> Iterator[str]:
        """Yield warnings about settings that are allowed but unusual."""
        yield from ()

    def stated(self) -> Mapping[str, Any]:
        """As JSON, for the specs of steps, without what a later release added and this recipe does not set."""
        said = self.model_dump(mode="json", by_alias=True)
        chosen = self.model_dump(mode="json", by_alias=True, exclude_defaults=True)
        found = {name: value for name, value in said.items() if name in chosen or name in self.always or name == "kind"}
        found |= {"revised": [*self.revised]} if self.revised else {}
        return found | ({} if self.preserved is None else {"prior": self.preserved.taught()})

    @classmethod
    def completed(cls, section: Mapping[str, Any]) -> dict[str, Any]:
        """Undo `stated`: add what earlier releases did where a step's section does not say it."""
        return {name: value for name, value in section.items() if name != "revised"}


class Extract(Spec):
    """A LoRA that is made from a whole checkpoint: the nearest one to what was learned."""

    rank: Annotated[int, Field(ge=1, le=4096)] = 16
    """Rank of the LoRA's factors; what is lost with a low one stands in `extract.json`."""


class WeightsSpec(MethodSpec):
    """Training of the base's own weights."""

    usual: ClassVar[Usual] = Usual(rate=5e-6, rates=(1e-6, 1e-5), views=(5, 100))
    """DreamBooth's authors and diffusers' example of it 5e-6, kohya 2e-6, OneTrainer 3e-6, diffusers' text-to-image
    example 1e-5."""
    modelspec: ClassVar[str] = ""
    mention: ClassVar[str] = ""

    text_encoder: bool = False
    """Whether the text encoders are trained too; their outputs are then computed in every step, not once."""
    save_precision: Literal["float16", "bfloat16", "float32"] = "float16"
    """Number format of the checkpoint that is written; the weights are trained in float32 in any case."""
    extract: Extract | None = None
    """LoRA to make from the checkpoint; null for none."""

    @property
    def sides(self) -> frozenset[Side]:
        """The denoiser, and the text encoders where that is set."""
        return frozenset({"denoiser", "text"} if self.text_encoder else {"denoiser"})

    @property
    def trains_base(self) -> bool:
        """They are what is trained."""
        return True

    @property
    def extracted(self) -> Extract | None:
        """The section `extract`."""
        return self.extract

    def stated(self) -> Mapping[str, Any]:
        """Without what is made of the checkpoint afterwards."""
        return {name: value for name, value in super().stated().items() if name != "extract"}


class Layered(MethodSpec):
    """A method that changes layers of the base one by one."""

    targets: Targets = "default"
    """Modules that adapt: `default` (transformer blocks), `attention`, `all-linear`, `ia3`, or a list of patterns."""
    text_encoder: bool = False
    """Whether the text encoder adapts too; its outputs are then computed in every step, not once."""
    module_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Chance of each module to be left as in the base in a training step."""
    save_precision: Literal["float16", "bfloat16", "float32"] = "float32"
    """Number format of the files that are written; the weights are trained in float32 in any case."""

    @property
    def sides(self) -> frozenset[Side]:
        """The denoiser, and the text encoders where that is set."""
        return frozenset({"denoiser", "text"} if self.text_encoder else {"denoiser"})

    @property
    def revised(self) -> Sequence[str]:
        """Text projections were once among the targets."""
        targets = self.targets
        took = targets == "all-linear" if isinstance(targets, str) else any(map(is_unread, targets))
        return ("text_projection",) if self.text_encoder and took else ()


UNREAD = "text_projection"
"""A layer of text encoders that most programs take no adapter for: one on it would act in training alone."""


def is_unread(pattern: str) -> bool:
    """Tell whether a pattern of modules fits that layer."""
    return fnmatchcase(UNREAD, pattern)


Rank = Annotated[int, Field(ge=1, le=4096)]
Alpha = Annotated[float, Field(ge=0.001, le=16_384)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """Rank of a module's factors, and the number that their product is scaled by when it is divided by the rank."""

    rank: int
    alpha: float

    @property
    def scale(self) -> float:
        """What the product is multiplied by."""
        return self.alpha / self.rank


class Part(Spec):
    """Modules with a rank or an alpha of their own."""

    modules: Text
    """Pattern of modules, such as `attn2.*`; it sees the network's name before them, as in `text_encoder*`."""
    rank: Rank | None = None
    """Their rank; null for that of the method."""
    alpha: Alpha | None = None
    """Their alpha; null keeps the method's scale, whatever the rank."""

    def rules(self) -> Iterator[tuple[str, str]]:
        """One of the two is there."""
        if self.rank is None and self.alpha is None:
            yield "modules", "has neither rank nor alpha of its own; add one"


class Ranked(Layered):
    """A method whose changes are products of factors of some rank."""

    rank: Rank = 16
    """Rank of the factors; size and capacity of the adapter grow with it."""
    alpha: Alpha = Field(default_factory=lambda data: float(data.get("rank", 1)))
    """Scale: the product is multiplied by alpha / rank. The default is the rank, which is a scale of 1."""
    parts: Annotated[tuple[Part, ...], Field(strict=False)] = ()
    """Modules with another rank or alpha; of several that fit a module the last counts."""
    rank_stabilised: bool = False
    """Whether the scale is alpha / √rank, with which higher ranks learn as fast (rsLoRA, Kalajdzievski, 2023)."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the adapter's inputs that is set to zero in each training step."""

    def size(self, rank: int | None = None, alpha: float | None = None) -> Size:
        """Size of a module, with a rank and an alpha of its own or without; alpha as files have it."""
        own = self.rank if rank is None else rank
        if alpha is None:
            return Size(rank=own, alpha=self._filed(self.alpha, self.rank) * (own / self.rank))
        return Size(rank=own, alpha=self._filed(alpha, own))

    def _filed(self, alpha: float, rank: int) -> float:
        return alpha * sqrt(rank) if self.rank_stabilised else alpha
