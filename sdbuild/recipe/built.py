"""Bases that other recipes of the project build: what is said of them has to fit those recipes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from sdbuild.errors import Problem
from sdbuild.recipe.models import Recipe
from sdbuild.recipe.places import BUILD, maker_of


def misnamed(recipes: Sequence[Recipe], project: Path) -> Iterator[Problem]:
    """Yield bases below `build/` that no recipe of the project builds and that are not there, and circles of bases."""
    known = {recipe.name: recipe for recipe in recipes}
    for recipe in recipes:
        for field, path, maker in _built(recipe):
            if wrong := _circle(recipe, known) or _wrong(path, maker, known, project):
                yield Problem(file=f"recipes/{recipe.group}.yaml", field=f"base.{field}", message=wrong)


def makers(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Fields whose values other recipes build, with the names of those recipes."""
    return ((f"base.{field}", maker) for field, _, maker in _built(recipe))


def _built(recipe: Recipe) -> Iterator[tuple[str, str, str]]:
    """Fields that name what a recipe builds, with their values and the names of those recipes."""
    for field, path in (("model", recipe.base.model), ("vae", recipe.base.vae)):
        maker = None if path is None else maker_of(path)
        if path is not None and maker is not None:
            yield field, os.path.normpath(path), maker


def _wrong(path: str, maker: str, known: dict[str, Recipe], project: Path) -> str | None:
    if maker not in known:
        variants = [name for name in known if known[name].group == maker]
        if variants:
            return f"recipe {maker} has variants; name what one of them builds, such as {_checkpoint(variants[0])}"
        return None if os.path.exists(project / path) else f"no recipe builds {path!r}"
    recipe = known[maker]
    if not recipe.method.trains_base:
        return f"recipe {maker} builds an adapter ({recipe.method.kind}) and no checkpoint; choose method full there"
    on_the_way = recipe.train.save_every is not None and path.startswith(f"{BUILD}/{maker}/adapters/")
    if path != _checkpoint(maker) and not on_the_way:
        return f"recipe {maker} builds {_checkpoint(maker)}; name that"
    return None


def _checkpoint(name: str) -> str:
    return f"{BUILD}/{name}/adapter/{name}.safetensors"


def _circle(recipe: Recipe, known: dict[str, Recipe]) -> str | None:
    """Say that a recipe's base is made of itself, if it is."""
    way = [recipe.name]
    waiting = [recipe]
    while waiting:
        for _, _, maker in _built(waiting.pop()):
            if maker == recipe.name:
                return f"is what this recipe builds{f' by way of {way[-1]}' if len(way) > 1 else ''}; name another base"
            if maker in known and maker not in way:
                way.append(maker)
                waiting.append(known[maker])
    return None
