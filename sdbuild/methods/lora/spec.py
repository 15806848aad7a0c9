"""What recipes can say about LoRA."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from sdbuild.methods.spec import MethodSpec, Side, Targets


class Lora(MethodSpec):
    """Low-rank adaptation (Hu et al., 2021): the base stays as it is, each target gains a product of two factors."""

    always: ClassVar[frozenset[str]] = frozenset({"rank", "alpha", "targets", "text_encoder", "dropout"})

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

    @property
    def sides(self) -> frozenset[Side]:
        """The denoiser, and the text encoders where that is set."""
        return frozenset({"denoiser", "text"} if self.text_encoder else {"denoiser"})


SPEC = Lora
