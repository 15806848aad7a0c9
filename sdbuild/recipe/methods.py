"""Ways to adapt: one spec a method, told apart by `kind`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from sdbuild.recipe.spec import Distinct, Spec, Text


def _targets_form(value: Any) -> str:
    return "patterns" if isinstance(value, list | tuple) else "preset"


Targets = Annotated[
    Annotated[Literal["default", "attention", "all-linear"], Tag("preset")]
    | Annotated[Distinct[Text], Tag("patterns")],
    Discriminator(_targets_form),
]


class Lora(Spec):
    """Low-rank adaptation (Hu et al., 2021): the base stays as it is, each target gains a product of two factors."""

    kind: Literal["lora"] = "lora"
    rank: Annotated[int, Field(ge=1, le=4096)] = 16
    """Rank of the factors; size and capacity of the adapter grow with it."""
    alpha: Annotated[float, Field(gt=0)] = Field(default_factory=lambda data: float(data.get("rank", 1)))
    """Scale: the product is multiplied by alpha / rank. The default is the rank, which is a scale of 1."""
    targets: Targets = "default"
    """Modules that adapt: `default` (whole transformer blocks), `attention`, `all-linear`, or a list of patterns."""
    text_encoder: bool = False
    """Whether the text encoder adapts too; its outputs are then computed in every step, not once."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the adapter's inputs that is set to zero in each training step."""


Method = Annotated[Lora, Field(discriminator="kind")]
"""To add a method: its model above, and its name here."""
