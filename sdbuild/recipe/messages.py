"""What pydantic found, in words for users: field as they write it, reason, remedy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from sdbuild.recipe.document import scalar
from sdbuild.recipe.models import Recipe
from sdbuild.recipe.path import FieldPath
from sdbuild.recipe.spec import REFUSED, descriptions
from sdbuild.storage.phrases import did_you_mean

_KINDS = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "list_type": "a list",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "dict_type": "a mapping",
}
_LIMITS = {
    "greater_than": ("gt", "greater than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
    "multiple_of": ("multiple_of", "a multiple of"),
}


_NEED_ALL = ("missing", "union_tag_not_found", REFUSED)
_TAGS = ("source", "kind")
"""Fields by whose value the members of a union are told apart."""


def explain(error: ValidationError, *, partial: bool = False) -> Iterator[tuple[FieldPath, str]]:
    """Yield path and message of each problem; a path's last part may be a key that is missing.

    With `partial`, what may only be wrong because a part of the recipe could not be read is left out.
    """
    for detail in error.errors(include_url=False):
        place = _follow(detail["loc"])
        kind, context = detail["type"], detail.get("ctx", {})
        if partial and kind in _NEED_ALL:
            continue
        if kind == REFUSED:
            yield from (((*place.path, *path), message) for path, message in context["broken"])
        elif not _follows_from_another(kind, detail["input"]):
            yield _describe(kind, detail["input"], context, place)


def suggest(word: str, known: Iterable[str]) -> str:
    """The nearest match in brackets, or else all there are."""
    names = list(known)
    return did_you_mean(word.lower(), names) or f"; choose from {', '.join(names)}"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Place:
    path: FieldPath
    owner: type[BaseModel] | None
    """Model in which the path's last key is looked up."""
    members: Sequence[type[BaseModel]]
    """Models that may stand at the path."""


def _follow(loc: tuple[int | str, ...]) -> _Place:
    """Path of an error without the tags of unions, which users do not write."""
    path: FieldPath = ()
    owner: type[BaseModel] | None = None
    members: list[type[BaseModel]] = [Recipe]
    chosen = True
    for part in loc:
        if isinstance(part, int):
            path = (*path, part)
        elif not chosen and any(_tag(member) == part for member in members):
            members, chosen = [member for member in members if _tag(member) == part], True
        elif members:
            owner, path, chosen = members[0], (*path, part), False
            members = [model for field in [field_of(owner, part)] if field for model in models_in(field.annotation)]
    return _Place(path=path, owner=owner, members=members)


def field_of(model: type[BaseModel], key: str | int) -> FieldInfo | None:
    """A model's field by the key that users write."""
    return next((field for name, field in model.model_fields.items() if (field.alias or name) == key), None)


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """All models in a type, in the order in which they are written."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from models_in(argument)


def _tag(model: type[BaseModel]) -> str | None:
    return next((model.model_fields[name].default for name in _TAGS if name in model.model_fields), None)


def _tag_key(model: type[BaseModel]) -> str:
    return next(field.alias or name for name, field in model.model_fields.items() if name in _TAGS)


def _follows_from_another(kind: str, value: Any) -> bool:
    """Whether pydantic only complains since something inside was wrong already."""
    return kind == "default_factory_not_called" or (kind == "too_short" and bool(value))


def _describe(kind: str, value: Any, context: Mapping[str, Any], place: _Place) -> tuple[FieldPath, str]:
    if kind.startswith("union_tag"):
        tags = [_tag(member) or "" for member in place.members]
        path = (*place.path, _tag_key(place.members[0]))
        if kind == "union_tag_not_found":
            return path, f"is missing; choose from {', '.join(tags)}"
        tag = str(context["tag"])
        return path, f"unknown {path[-1]} {tag!r}{suggest(tag, tags)}"
    return place.path, _message(kind, value, context, place)


def _message(kind: str, value: Any, context: Mapping[str, Any], place: _Place) -> str:
    if kind == "missing":
        return f"is missing ({_description(place)})"
    if kind == "extra_forbidden":
        return _unknown_key(place)
    if kind in _KINDS:
        return wrong_type(_KINDS[kind], value, place)
    if kind in _LIMITS:
        limit, words = _LIMITS[kind]
        return f"must be {words} {_number(context[limit])}, is {value}"
    if kind == "literal_error":
        known = [word.strip("'") for word in context["expected"].replace(" or ", ", ").split(", ")]
        return (
            wrong_type(f"one of {', '.join(known)}", value, place)
            if not isinstance(value, str)
            else (f"unknown value {value!r}{suggest(value, known)}")
        )
    if kind == "too_short":
        return "must have at least one entry"
    if kind == "too_long":
        return f"must have at most {context['max_length']} entries, has {len(value)}"
    if kind == "string_too_short":
        return f"is empty ({_description(place)})"
    if kind == "string_pattern_mismatch":
        return f"{value!r} is not possible here ({_description(place)})"
    return f"is wrong: {kind.replace('_', ' ')}"


def _unknown_key(place: _Place) -> str:
    key = str(place.path[-1])
    if key == "<<":
        return "merge keys are not read; use extends"
    if key == "extends":
        return "stands at the top of a recipe only"
    assert place.owner is not None
    known = [field.alias or name for name, field in place.owner.model_fields.items()]
    if place.owner is Recipe:
        known = ["extends", *known[1:]]
    return f"unknown key{suggest(key, known)}"


def wrong_type(wanted: str, value: Any, place: _Place | None = None) -> str:
    """Say what stands where something else is wanted."""
    if value is None:
        quotes = " (in quotes if it starts with #)" if wanted == "text" else ""
        return f"is empty; give {wanted}{quotes} or leave the key out"
    if wanted == "a mapping" and place is not None:
        wanted += _example(value, place)
    if "number" in wanted and isinstance(value, str) and isinstance(scalar(value), int | float):
        return f"must be {wanted}, is text; remove the quotes around {value}"
    quote = f'; write it in quotes, "{value}"' if wanted == "text" and isinstance(value, int | float) else ""
    return f"must be {wanted}, is {_show(value)}{quote}"


def _example(value: Any, place: _Place) -> str:
    """Show a mapping that may stand there: of the kind that was named, or with the first number it holds."""
    tags = [tag for tag in map(_tag, place.members) if tag]
    if tags:
        return f" such as {{{_tag_key(place.members[0])}: {value if value in tags else tags[0]}}}"
    if len(place.path) > 1 and place.members:
        name, field = next(iter(place.members[0].model_fields.items()))
        if isinstance(field.default, int | float):
            return f" such as {{{field.alias or name}: {field.default}}}"
    return ""


def _number(value: float) -> str:
    return str(int(value) if value == int(value) else value)


def _show(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _description(place: _Place) -> str:
    """What the field is for, as its docstring says."""
    assert place.owner is not None
    key = next(part for part in reversed(place.path) if isinstance(part, str))
    first = descriptions(place.owner)[key].split(";")[0].rstrip(".")
    return first[:1].lower() + first[1:]
