"""Everything that a recipe can declare, with units, limits and defaults.

The JSON schema, the reference and the messages are made from these models; a model's docstring and the docstrings
of its fields are therefore written for users.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from sdbuild.methods.lora.spec import Lora
from sdbuild.methods.pivotal.spec import Pivotal
from sdbuild.methods.spec import KeptPrediction, Rated
from sdbuild.recipe.base import Base as Base
from sdbuild.recipe.dataset import Dataset, Images, compatible
from sdbuild.recipe.learning_rates import rate_warnings, with_usual_rate
from sdbuild.recipe.methods import Method
from sdbuild.recipe.names import group_of
from sdbuild.recipe.prompt_warnings import prompt_warnings
from sdbuild.recipe.sample import Sample as Sample
from sdbuild.recipe.spec import Some, Spec, Text
from sdbuild.recipe.train import Train as Train
from sdbuild.recipe.unused_settings import unused_settings
from sdbuild.recipe.unusual_values import unusual_values


class Remote(Spec):
    """What a build asks the project's DVC remote for."""

    lookup: Literal["auto", "never"] = "auto"
    """Whether a step that is about to run is first looked up among the runs that others have pushed."""


class Recipe(Spec):
    """What to adapt, to which pictures, how, and what to draw with the result."""

    name: Text
    """Stem of the recipe's file; not a key that users write."""
    base: Base
    """The model that is adapted."""
    datasets: Annotated[Some[Dataset], AfterValidator(compatible)]
    """The pictures."""
    images: Images = Field(default_factory=Images)
    """How pictures become what the model sees."""
    method: Method = Field(default_factory=Lora)
    """How the base is adapted."""
    train: Train = Field(default_factory=Train)
    """The training."""
    sample: Sample | None = None
    """The grid; without it none is drawn."""
    remote: Remote = Field(default_factory=Remote)
    """The team's remote; no result depends on it."""
    matrix: dict[Text, Some[Any]] | None = None
    """Values by dotted key, such as `method.rank: [4, 8]`; each combination is built as a variant of its own."""

    @model_validator(mode="before")
    @classmethod
    def _rate(cls, data: Any) -> Any:
        return with_usual_rate(data, Lora.model_fields["kind"].default)

    @property
    def group(self) -> str:
        """Name of the recipe's file, which the variants of a matrix share."""
        return group_of(self.name)

    @property
    def varied(self) -> dict[str, Any]:
        """What a variant has of its matrix, by dotted key."""
        return {key: value for key, (value,) in (self.matrix or {}).items()}

    def rules(self) -> Iterator[tuple[str, str]]:
        """Resolutions have buckets, and what has a learning rate is trained."""
        for index, dataset in enumerate(self.datasets):
            for position, resolution in enumerate(dataset.resolutions or ()):
                if misfit := self.images.buckets.misfit(resolution):
                    yield f"datasets.{index}.resolutions.{position}", misfit
        yield from self._looking_rules()
        yield from self._rate_rules()
        yield from self._timing_rules()
        for index, other in enumerate(self.sample.adapters if self.sample else ()):
            if other.recipe is not None and other.recipe in (self.name, self.group):
                yield f"sample.adapters.{index}.recipe", "is this recipe, whose adapter is drawn anyway; remove it"
        held = self.train.base_precision
        if self.method.trains_base and held not in (None, "float32"):
            message = (
                f"{self.method.kind} trains the base's own weights, which {held} cannot hold; remove it "
                "(with precision: bfloat16 they are float32 and computed in bfloat16), or choose method lora"
            )
            yield "train.base_precision", message
        if isinstance(self.method.preserved, KeptPrediction) and self.train.prediction != "base":
            message = "the base's prediction is kept, and the adapter learns another one; set train.prediction: base"
            yield "method.prior.from", message

    def _timing_rules(self) -> Iterator[tuple[str, str]]:
        """What begins late begins before the end."""
        method, steps = self.method, self.train.steps
        if isinstance(method, Pivotal) and method.lora_from * steps > steps - 1:
            message = f"{method.lora_from:g} of {steps} steps is after the last one, so the LoRA is never trained"
            yield "method.lora_from", f"{message}; lower it, or train longer"

    def _rate_rules(self) -> Iterator[tuple[str, str]]:
        kind = self.method.kind
        messages: dict[Rated, str] = {
            "denoiser": f"{kind} does not train the denoiser; remove it",
            "text_encoder": f"{kind} does not train the text encoder; remove it",
            "embeddings": f"{kind} learns no tokens; remove it",
        }
        if "text_encoder" in type(self.method).model_fields:
            messages["text_encoder"] = "the text encoder is not trained; set method.text_encoder: true"
        for part, message in messages.items():
            if getattr(self.train.learning_rates, part) is not None and part not in self.method.rated:
                yield f"train.learning_rates.{part}", message
        if self.train.lora_plus_ratio != 1 and not self.method.second_factor:
            yield "train.lora_plus_ratio", f"{kind} has no second factor; remove it"

    def _looking_rules(self) -> Iterator[tuple[str, str]]:
        if self.train.validate_every is not None and not any(dataset.holdout for dataset in self.datasets):
            yield "train.validate_every", "no pictures are held out to validate on; set holdout of a dataset"
        drawn, saved = self.sample.every if self.sample else None, self.train.save_every
        if drawn is not None and saved is None:
            yield "sample.every", f"draws adapters that are kept on the way; set train.save_every: {drawn} too"
        elif drawn is not None and saved is not None and drawn % saved:
            yield "sample.every", f"{drawn} is not a multiple of train.save_every {saved}; choose one"
        refines = Sample.model_fields["refine_from"].default
        if self.sample and self.base.refiner is None and self.sample.refine_from != refines:
            yield "sample.refine_from", "says when base.refiner goes on, and there is none; name one, or remove it"

    def warnings(self) -> Iterator[str]:
        """Yield what is allowed and hardly meant."""
        yield from prompt_warnings(self)
        yield from rate_warnings(self)
        yield from self.method.warnings()
        yield from unusual_values(self)
        yield from (f"{key} changes nothing: {why}; remove it" for key, why in unused_settings(self))
        prior = self.method.preserved
        for index, dataset in enumerate(self.datasets if prior else ()):
            assert prior is not None
            trigger, class_prompt = (text.lower().split() for text in (dataset.trigger, prior.prompt))
            named = f"datasets[{index}].trigger {dataset.trigger!r}"
            if trigger and set(trigger) <= set(class_prompt):
                yield f"method.prior.prompt {prior.prompt!r} holds {named}; the class is named without the rare word"
            elif len(trigger) > 1 and not set(trigger) & set(class_prompt):
                yield (
                    f"method.prior.prompt {prior.prompt!r} shares no word with {named}; "
                    "it names the class that the subject belongs to"
                )

    def resolved(self) -> dict[str, Any]:
        """The recipe as JSON-able data, by the keys that users write, with all defaults visible.

        Without the matrix: what else it makes changes nothing for a variant.
        """
        return self.model_dump(mode="json", by_alias=True, exclude={"matrix"})
