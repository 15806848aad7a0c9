"""What recipes can say about LoRA."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from sdbuild.methods.spec import Ranked
from sdbuild.recipe.spec import Spec


class TimestepRanks(Spec):
    """Fewer ranks where there is more noise (T-LoRA, Soboleva et al., 2025), against learning pictures by heart."""

    least: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of the ranks that act at the last timestep, at least one; without noise all do."""
    power: Annotated[float, Field(gt=0)] = 1.0
    """How the number falls as noise grows: 1 is evenly, more is earlier."""


class Lora(Ranked):
    """Low-rank adaptation (Hu et al., 2021): the base stays as it is, each target gains a product of two factors."""

    always: ClassVar[frozenset[str]] = frozenset({"rank", "alpha", "targets", "text_encoder", "dropout"})

    second_factor: ClassVar[bool] = True

    kind: Literal["lora"] = "lora"
    rank_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the ranks that is left out for each picture in a training step."""
    dora: bool = False
    """Whether the length of each output's weights is learned apart from their direction (DoRA, Liu et al., 2024)."""
    orthogonal: bool = False
    """Whether the first factor starts with orthogonal rows, so that ranks are independent of each other."""
    timestep_ranks: TimestepRanks | None = None
    """How many ranks of the denoiser act at which timestep; null for all of them always."""

    def rules(self) -> Iterator[tuple[str, str]]:
        """DoRA needs the whole product."""
        yield from super().rules()
        if self.dora:
            for key in ("rank_dropout", "module_dropout", "timestep_ranks"):
                if getattr(self, key):
                    yield key, "does not go with dora: true; remove one of the two"


SPEC = Lora
