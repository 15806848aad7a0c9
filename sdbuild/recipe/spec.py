"""What all models of a recipe share: strictness, rules across fields, descriptions, types."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, GetJsonSchemaHandler, model_validator
from pydantic_core import CoreSchema, PydanticCustomError

from sdbuild.recipe.path import FieldPath
from sdbuild.storage.text_cleaning import unescaped, visible

REFUSED = "refused"
"""Error type of our own rules; its context lists (path from the value on, message)."""


class Spec(BaseModel):
    """A part of a recipe: frozen, keyword-only, and closed to unknown keys."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        defer_build=True,  # only the recipe's own validator is built, not one more for each part
    )

    def rules(self) -> Iterator[tuple[str, str]]:
        """Yield the key, dotted where it is deeper, and the message of every rule across fields that is broken."""
        yield from ()

    @model_validator(mode="after")
    def _keep_rules(self) -> Self:
        broken: list[tuple[FieldPath, str]] = [(_path(key), message) for key, message in self.rules()]
        if broken:
            raise _refusal(broken)
        return self

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Add what the docstrings of the fields say; read from the source only when somebody asks."""
        schema = handler(core_schema)
        properties = handler.resolve_ref_schema(schema)["properties"]
        for key, text in descriptions(cls).items():
            properties[key]["description"] = text
        return schema


def _path(key: str) -> FieldPath:
    return tuple(int(part) if part.isdigit() else part for part in key.split("."))


@functools.cache
def descriptions(model: type[BaseModel]) -> Mapping[str, str]:
    """Docstrings of a model's fields, inherited ones too, by the keys that users write."""
    import ast
    import inspect

    parent = model.__base__
    found: dict[str, str] = {}
    if isinstance(parent, type) and issubclass(parent, Spec) and parent is not Spec:
        found |= descriptions(parent)
    (definition,) = ast.parse(inspect.getsource(model)).body
    assert isinstance(definition, ast.ClassDef)
    for field, after in zip(definition.body, definition.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            name = ast.unparse(field.target)
            if name in model.model_fields:
                found[model.model_fields[name].alias or name] = inspect.cleandoc(str(after.value.value))
    return found


def refuse(message: str, at: FieldPath = ()) -> PydanticCustomError:
    """Build the error for a value that breaks a rule of ours: reason and remedy, lower case."""
    return _refusal([(at, message)])


def _refusal(broken: list[tuple[FieldPath, str]]) -> PydanticCustomError:
    return PydanticCustomError(REFUSED, "a rule is broken", {"broken": broken})


def _unique(values: tuple[Any, ...]) -> tuple[Any, ...]:
    for index, value in enumerate(values):
        if value in values[:index]:
            raise refuse(f"{value!r} is there twice; remove one", at=(index,))
    return values


Item = TypeVar("Item")
Some = Annotated[tuple[Item, ...], Field(strict=False, min_length=1)]
"""A list with at least one entry (a tuple, since recipes are frozen)."""
Distinct = Annotated[Some[Item], AfterValidator(_unique)]
"""A list with at least one entry and no entry twice."""
Choice = Annotated[tuple[Item, ...], Field(strict=False), AfterValidator(_unique)]
"""A list, perhaps empty, with no entry twice."""
Text = Annotated[str, Field(min_length=1)]
Strength = Annotated[float, Field(ge=-100, le=100)]
"""How much of an adapter is added; 1 is as it was trained."""
Guidance = Annotated[float, Field(ge=0, le=100)]
"""Classifier-free guidance."""


def _seen(text: str) -> str:
    kept = visible(text)
    if text.strip() and not kept.strip():
        raise refuse("holds nothing that can be seen; write words")
    return kept


Prompt = Annotated[Text, AfterValidator(_seen)]
"""Words for a text encoder, without what nobody sees."""
Unsaid = Annotated[str, AfterValidator(_seen)]
"""The same, perhaps none."""
Phrase = Annotated[Unsaid, AfterValidator(unescaped)]
"""The same where no brackets are weights, so that one behind a backslash is meant as it is."""
Sampler = Literal["ddim", "ddpm", "euler", "euler-a", "dpm++"]
"""What draws pictures, by the name that people know."""
Seed = Annotated[int, Field(ge=0, lt=2**32)]
