"""What the specs of all methods share. Importing it is light: recipes are checked with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Tag

from sdbuild.recipe.spec import Distinct, Spec, Text

Side = Literal["denoiser", "text"]
"""The networks of a base that methods change: UNet or transformer, and text encoders."""


def _targets_form(value: Any) -> str:
    return "patterns" if isinstance(value, list | tuple) else "preset"


Targets = Annotated[
    Annotated[Literal["default", "attention", "all-linear"], Tag("preset")]
    | Annotated[Distinct[Text], Tag("patterns")],
    Discriminator(_targets_form),
]


class MethodSpec(Spec):
    """One way to adapt, told apart by `kind`."""

    kind: str
    always: ClassVar[frozenset[str]] = frozenset()
    """Settings that the specs of steps have even where a recipe does not set them; see `stated`."""
    modelspec: ClassVar[str] = "/lora"
    """What follows the family's name in `modelspec.architecture` of its files."""

    @property
    def words(self) -> Sequence[str]:
        """What captions have to say for it to learn anything."""
        return ()

    @property
    def sides(self) -> frozenset[Side]:
        """What of the base changes; a text encoder that does is run in every step, not once."""
        return frozenset({"denoiser"})

    @property
    def trains_base(self) -> bool:
        """Whether the base's own weights are trained, for which they are held in float32."""
        return False

    def stated(self) -> Mapping[str, Any]:
        """As JSON, for the specs of steps, without what a later release added and this recipe does not set."""
        said = self.model_dump(mode="json", by_alias=True)
        chosen = self.model_dump(mode="json", by_alias=True, exclude_defaults=True)
        return {name: value for name, value in said.items() if name in chosen or name in self.always or name == "kind"}


class WeightsSpec(MethodSpec):
    """Training of the base's own weights."""

    modelspec: ClassVar[str] = ""

    text_encoder: bool = False
    """Whether the text encoders are trained too; their outputs are then computed in every step, not once."""
    save_precision: Literal["float16", "bfloat16", "float32"] = "float16"
    """Number format of the checkpoint that is written; the weights are trained in float32 in any case."""

    @property
    def sides(self) -> frozenset[Side]:
        """The denoiser, and the text encoders where that is set."""
        return frozenset({"denoiser", "text"} if self.text_encoder else {"denoiser"})

    @property
    def trains_base(self) -> bool:
        """They are what is trained."""
        return True
