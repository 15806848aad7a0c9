"""What all models of a recipe share: strictness, rules across fields, and types with a reason in words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

BROKEN_RULES = "broken_rules"
"""Error type of a model whose fields are right one by one but not together; the context lists (field, message)."""
REFUSED = "refused"
"""Error type of a single value that is refused with a message of ours."""


class Spec(BaseModel):
    """A part of a recipe: frozen, keyword-only, and closed to unknown keys."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )

    def rules(self) -> Iterator[tuple[str, str]]:
        """Yield the key and the message of every rule across fields that is broken."""
        yield from ()

    @model_validator(mode="after")
    def _keep_rules(self) -> Self:
        broken = list(self.rules())
        if broken:
            raise PydanticCustomError(BROKEN_RULES, "impossible combination", {"broken": broken})
        return self


def refuse(message: str) -> PydanticCustomError:
    """Build the error for a value that breaks a rule of ours: reason and remedy, lower case."""
    return PydanticCustomError(REFUSED, "{message}", {"message": message})


def _unique(values: tuple[Any, ...]) -> tuple[Any, ...]:
    for index, value in enumerate(values):
        if value in values[:index]:
            raise refuse(f"{value!r} stands there twice; remove one")
    return values


Item = TypeVar("Item")
Some = Annotated[tuple[Item, ...], Field(strict=False, min_length=1)]
"""A list with at least one entry (a tuple, since recipes are frozen)."""
Distinct = Annotated[Some[Item], AfterValidator(_unique)]
"""A list with at least one entry and no entry twice."""
Text = Annotated[str, Field(min_length=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
