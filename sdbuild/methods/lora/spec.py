"""What recipes can say about LoRA."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from sdbuild.methods.spec import Ranked
from sdbuild.recipe.spec import Spec


class TimestepRanks(Spec):
    """Fewer ranks where there is more noise (T-LoRA, Soboleva et al., 2025), against learning pictures by heart."""

    least: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of the ranks that act at the last timestep, at least one; without noise all do."""
    power: Annotated[float, Field(ge=0.01, le=100)] = 1.0
    """How the number falls as noise grows: 1 is evenly, more is earlier."""


class Lora(Ranked):
    """Low-rank adaptation (Hu et al., 2021): the base stays as it is, each target gains a product of two factors."""

    always: ClassVar[frozenset[str]] = frozenset({"rank", "alpha", "targets", "text_encoder", "dropout"})

    second_factor: ClassVar[bool] = True

    kind: Literal["lora"] = "lora"
    rank_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the ranks that is left out for each picture in a training step."""
    dora: bool = False
    """Whether lengths of weights are learned apart from their direction (DoRA, Liu et al., 2024)."""
    dora_axis: Literal["input", "output"] | None = Field(
        default_factory=lambda data: "input" if data.get("dora") else None
    )
    """What has a length with `dora`: each `input` of a layer, which most programs read, or each `output`: diffusers."""
    orthogonal: bool | Literal["both"] = False
    """Whether the first factor starts with orthogonal rows, or `both` factors do, as in T-LoRA: twice the file."""
    timestep_ranks: TimestepRanks | None = None
    """How many ranks of the denoiser act at which timestep; null for all of them always."""

    def warnings(self) -> Iterator[str]:
        """Warn that some programs do not read the default axis, unless the recipe names one."""
        yield from super().warnings()
        if self.dora and "dora_axis" not in self.model_fields_set:
            yield (
                "method.dora makes a file for ComfyUI, A1111, Forge and InvokeAI, which diffusers and LyCORIS do not "
                "read; for those set method.dora_axis: output, else input"
            )

    def stated(self) -> Mapping[str, Any]:
        """Leave the axis out unless it is `input`, as earlier releases did, which had lengths of outputs alone."""
        found = {name: value for name, value in super().stated().items() if name != "dora_axis"}
        return found | ({"dora_axis": "input"} if self.dora_axis == "input" else {})

    @classmethod
    def completed(cls, section: Mapping[str, Any]) -> dict[str, Any]:
        """Earlier releases, which did not name an axis, had lengths of outputs."""
        found = super().completed(section)
        return {"dora_axis": "output", **found} if found.get("dora") else found

    def rules(self) -> Iterator[tuple[str, str]]:
        """DoRA needs the whole product."""
        yield from super().rules()
        if self.dora != (self.dora_axis is not None):
            empty = "is empty; write input or output"
            yield "dora_axis", empty if self.dora else "does nothing without dora: true; remove it"
        if self.dora:
            for key in ("rank_dropout", "module_dropout", "timestep_ranks"):
                if getattr(self, key):
                    yield key, "does not go with dora: true; remove one of the two"
        if self.orthogonal == "both" and self.dora:
            yield "orthogonal", "both does not go with dora: true; write true, or remove one of the two"


SPEC = Lora
