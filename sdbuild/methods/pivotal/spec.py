"""What recipes can say about pivotal tuning."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from sdbuild.methods.lora.spec import Lora
from sdbuild.methods.spec import Rated, Side
from sdbuild.methods.textual_inversion.spec import Token, Tokens
from sdbuild.recipe.spec import Some

Share = Annotated[float, Field(ge=0, le=1)]


class Pivotal(Tokens):
    """Textual inversion, then a LoRA on it, or both at once (after Roich et al., 2022): one file holds both."""

    second_factor: ClassVar[bool] = True

    kind: Literal["pivotal"] = "pivotal"
    tokens: Some[Token]
    """The words that are learned, as in `textual_inversion`."""
    norm: Share = 0.1
    """As in `textual_inversion`."""
    lora: Lora = Field(default_factory=Lora)
    """The LoRA that is trained on them, as in the method of that name."""
    tokens_until: Share = 0.5
    """Share of the steps after which the tokens' vectors stay as they are."""
    lora_from: Share = 0.5
    """Share of the steps after which the LoRA is trained; 0, with `tokens_until: 1`, trains both at once."""

    @property
    def sides(self) -> frozenset[Side]:
        """The tokens are the text's, the LoRA the denoiser's."""
        return frozenset({"text", "denoiser"})

    @property
    def rated(self) -> frozenset[Rated]:
        """The tokens' vectors, and what the LoRA is in."""
        return super().rated | self.lora.rated

    @property
    def revised(self) -> Sequence[str]:
        """Those of the LoRA."""
        return self.lora.revised

    def warnings(self) -> Iterator[str]:
        """Yield those of the LoRA."""
        yield from self.lora.warnings()

    def stated(self) -> Mapping[str, Any]:
        """Without what the LoRA's own section does not set and a later release added."""
        found = dict(super().stated())
        if "lora" in found:
            axis = self.lora.dora_axis
            later = {"save_precision": "float32", "dora_axis": None if axis == "input" else axis}
            found["lora"] = {
                key: value for key, value in found["lora"].items() if key not in later or value != later[key]
            }
        return found

    @classmethod
    def completed(cls, section: Mapping[str, Any]) -> dict[str, Any]:
        """Those of the LoRA too."""
        found = super().completed(section)
        return found | ({"lora": Lora.completed(found["lora"])} if isinstance(found.get("lora"), Mapping) else {})

    def rules(self) -> Iterator[tuple[str, str]]:
        """In every step something changes."""
        yield from super().rules()
        if self.tokens_until == 0:
            yield "tokens_until", "0 never trains the tokens; use method lora, or raise it"
        if self.lora_from == 1:
            yield "lora_from", "1 never trains the LoRA; use method textual_inversion, or lower it"
        if self.lora_from > self.tokens_until:
            yield (
                "lora_from",
                f"{self.lora_from:g} leaves steps after tokens_until {self.tokens_until:g} idle; lower it",
            )


SPEC = Pivotal
