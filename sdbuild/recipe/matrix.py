"""`matrix:` in a recipe: one file, and a variant for each combination of values.

A variant is a whole recipe: the file's settings with one value of each key put in, as if it stood there. Its name tells
the values, `cat@rank-4,learning_rate-0.001`, in letters that doit, file systems and DVC take.
"""

from __future__ import annotations

import difflib
import hashlib
import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_origin

from pydantic import BaseModel

from sdbuild.recipe.inherit import merge_value
from sdbuild.recipe.messages import field_of, models_in, wrong_type
from sdbuild.recipe.models import Recipe
from sdbuild.recipe.names import LONGEST, VARIANT, dvc_name
from sdbuild.recipe.path import FieldPath, dotted

MATRIX = "matrix"
MOST = 256
"""Variants of one recipe."""
FIXED = ("name", "extends", MATRIX, "remote")
"""Sections that are the same in all variants: no adapter depends on them."""
_LONG_VALUE = 32

Values = Mapping[str, Sequence[Any]]
"""What is varied: values by dotted key."""
Found = tuple[FieldPath, str]
"""A problem: its path in the file, and the message."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """One combination of values."""

    name: str
    choice: Mapping[str, int]
    """Which value of each key, by its index."""
    data: Mapping[str, Any]
    """What the recipe would hold without its matrix."""


def read_matrix(content: Any, data: Mapping[str, Any], *, partial: bool = False) -> tuple[Values, list[Found]]:
    """What is varied, and what is wrong with that; wrong keys are left out.

    Args:
        content: value of `matrix`.
        data: the other keys.
        partial: some of them could not be read.
    """
    if content is None:
        return {}, []
    if not isinstance(content, Mapping):
        return {}, [((MATRIX,), wrong_type("a mapping such as {method.rank: [4, 8]}", content))]
    found: dict[str, Sequence[Any]] = {}
    wrong: list[Found] = []
    for key, values in content.items():
        problems: list[Found] = [((MATRIX, key), message) for message in _wrong_key(key, found, data, partial=partial)]
        problems = problems or list(_wrong_values(key, values))
        wrong += problems
        if not problems:
            found[key] = values
    number = math.prod(len(values) for values in found.values())
    if number > MOST:
        wrong.append(((MATRIX,), f"makes {number:,} variants, at most {MOST} are built; vary less"))
        found = {key: values[:1] for key, values in found.items()}
    return found, wrong


def variants(name: str, data: Mapping[str, Any], matrix: Values) -> Iterator[Variant]:
    """Every combination, the last key's values changing first; without a matrix the recipe itself."""
    if not matrix:
        yield Variant(name=name, choice={}, data=data)
        return
    keys = dict(zip(matrix, _short(list(matrix)), strict=True))
    labels = {key: _labels(values) for key, values in matrix.items()}
    for indices in itertools.product(*(range(len(values)) for values in matrix.values())):
        choice = dict(zip(matrix, indices, strict=True))
        chosen = data
        for key, index in choice.items():
            chosen = _put(chosen, field_path(key), matrix[key][index])
        words = ",".join(f"{keys[key]}-{labels[key][index]}" for key, index in choice.items())
        yield Variant(name=f"{name}{VARIANT}{words}", choice=choice, data=chosen)


def too_long(found: Sequence[Variant]) -> list[Found]:
    """Say it if names of variants are too long for files."""
    longest = max(found, key=lambda variant: len(variant.name))
    if len(longest.name) <= LONGEST:
        return []
    return [((MATRIX,), f"a variant's name would have more than {LONGEST} letters ({longest.name}); vary fewer keys")]


def blame(found: Found, faulty: Sequence[Variant], every: Sequence[Variant], matrix: Values) -> Iterator[Found]:
    """Say where a problem is mended: in the matrix if a value of it brings it in, else where the field stands.

    Args:
        found: path in the variants' data, and message.
        faulty: the variants that have the problem.
        every: all variants.
        matrix: what is varied.
    """
    path, message = found
    for key, values in matrix.items():
        own = field_path(key)
        rest = path[len(own) :]
        indices = sorted({variant.choice[key] for variant in faulty if _holds(values[variant.choice[key]], rest)})
        if path[: len(own)] == own and indices:
            if len(indices) == len(values) > 1:  # whatever the value: the key itself is wrong
                yield (MATRIX, key, *rest), message
            else:
                yield from (((MATRIX, key, index, *rest), message) for index in indices)
            return
    if len(faulty) == len(every):
        yield path, message
        return
    guilty = [
        (key, index)
        for key, values in matrix.items()
        for index in range(len(values))
        if [variant.name for variant in faulty] == [each.name for each in every if each.choice[key] == index]
    ]
    told = f"{dotted(path)}: {message}"
    if guilty:
        yield (MATRIX, *guilty[0]), told
    else:
        more = f" and {len(faulty) - 1} more" if len(faulty) > 1 else ""
        yield (MATRIX,), f"in {faulty[0].name}{more}: {told}"


def field_path(key: str) -> FieldPath:
    """The path that a dotted key names."""
    return tuple(int(index) if index else word for word, index in re.findall(r"([^.\[\]]+)|\[(\d+)\]", key))


def _wrong_key(key: str, others: Collection[str], data: Mapping[str, Any], *, partial: bool) -> Iterator[str]:
    path = field_path(key)
    if path[:1] and path[0] in FIXED:
        yield "cannot be varied"
    elif key == "datasets":
        yield "cannot be varied as a whole; name a field of one, such as datasets[0].path"
    elif dotted(path) != key or not isinstance(next(iter(path), None), str) or not _is_known(path):
        yield f"unknown key{_suggestion(key)}"
    else:
        yield from (
            f"is varied by {other} already; remove one"
            for other in others
            if path[: len(field_path(other))] == field_path(other) or field_path(other)[: len(path)] == path
        )
        if not partial and (missing := _missing(data, path)):
            yield f"the recipe has no {dotted(missing)}"


def _wrong_values(key: str, values: Any) -> Iterator[Found]:
    at = (MATRIX, key)
    if not isinstance(values, list):
        yield at, wrong_type("a list of values such as [4, 8]", values)
    elif not values:
        yield at, "must have at least one entry"
    else:
        for index, value in enumerate(values):
            if value in values[:index]:
                yield (*at, index), f"{value!r} is there twice; remove one"


def _is_known(path: FieldPath) -> bool:
    """Whether recipes have such a field, in one of their forms."""
    models: list[type[BaseModel]] = [Recipe]
    for part in path:
        if isinstance(part, int):
            continue
        fields = [field for field in (field_of(model, part) for model in models) if field is not None]
        if not fields:
            return False
        models = [model for field in fields for model in models_in(field.annotation)]
    return True


def _known(model: type[BaseModel] = Recipe, prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        key = f"{prefix}{field.alias or name}"
        if key in FIXED:
            continue
        yield key
        entry = "[0]" if get_origin(field.annotation) is tuple else ""
        for inner in models_in(field.annotation):
            yield from _known(inner, f"{key}{entry}.")


def _suggestion(key: str) -> str:
    known = list(dict.fromkeys(_known()))
    last = {each.rpartition(".")[2]: each for each in reversed(known)}
    word = key.rpartition(".")[2].lower()
    same = [each for each in known if each.rpartition(".")[2] == word]
    near = difflib.get_close_matches(key.lower(), same or known, n=1, cutoff=0 if same else 0.6)
    near = near or [last[each] for each in difflib.get_close_matches(word, last, n=1)]
    return f" (did you mean {near[0]}?)" if near else "; name it in full, such as method.rank"


def _missing(data: Any, path: FieldPath) -> FieldPath | None:
    """The first entry of a list on the way that is not there."""
    for depth, part in enumerate(path):
        if isinstance(part, int):
            if not isinstance(data, list) or part >= len(data):
                return path[: depth + 1]
            data = data[part]
        else:
            data = data.get(part) if isinstance(data, Mapping) else None
    return None


def _holds(value: Any, path: FieldPath) -> bool:
    """Whether a value has a field, rather than the section that it was merged into."""
    for part in path:
        if isinstance(value, Mapping):
            if part not in value:
                return False
            value = value[part]
    return True


def _put(data: Any, path: FieldPath, value: Any) -> Any:
    """The data with one field set; a mapping is merged into the one that is there, as by `extends`."""
    if not path:
        return merge_value(data, value)
    first, rest = path[0], path[1:]
    if isinstance(first, int):
        if not isinstance(data, list) or first >= len(data):
            return data  # told elsewhere
        return [*data[:first], _put(data[first], rest, value), *data[first + 1 :]]
    if not isinstance(data, Mapping | None):
        return data
    data = data or {}
    return {**data, first: _put(data.get(first), rest, value)}


def _short(keys: Sequence[str]) -> list[str]:
    """Keys in names: the last word where that is clear."""
    paths = [field_path(key) for key in keys]
    words = [_slug(dotted(path[max(i for i, part in enumerate(path) if isinstance(part, str)) :])) for path in paths]
    count = Counter(words)
    return [word if count[word] == 1 else _slug(key) for word, key in zip(words, keys, strict=True)]


def _labels(values: Sequence[Any]) -> list[str]:
    """Values in names, each another: as they are written, or cut and with a digest where that is not clear."""
    labels = [_slug(_words(value)) for value in values]
    count = Counter(dvc_name(f"{VARIANT}{label}").lower() for label in labels)
    return [
        label
        if 0 < len(label) <= _LONG_VALUE and count[dvc_name(f"{VARIANT}{label}").lower()] == 1
        else f"{label[:_LONG_VALUE]}-{_digest(value)}".strip("-")
        for label, value in zip(labels, values, strict=True)
    ]


def _slug(text: str) -> str:
    """A text in letters that stand in names everywhere; a sign before a number stays."""
    sign = "-" if re.match(r"-[.\d]", text) else ""
    return sign + re.sub(r"__+", "_", re.sub(r"[^A-Za-z0-9._-]+", "-", text)).strip("-._")


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        return "-".join(_words(each) for each in value.values())
    if isinstance(value, list):
        return "-".join(_words(each) for each in value)
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        value = int(value)  # 1 and 1.0 are the same setting
    return value if isinstance(value, str) else json.dumps(value)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:6]
