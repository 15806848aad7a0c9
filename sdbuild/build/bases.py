"""Whether a recipe goes with its base: found out before anything is built. Light."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from sdbuild import families
from sdbuild.errors import DataError, Problem
from sdbuild.families import sources
from sdbuild.families.layout import damages
from sdbuild.plan.compile import plan
from sdbuild.plan.model import Base
from sdbuild.recipe.models import Recipe
from sdbuild.recipe.names import group_of


def misfits(recipe: Recipe, base: Base, project: Path) -> list[Problem]:
    """What is wrong with a base that is on this machine, and with what the recipe wants of it."""
    if any(not (project / dep.path).exists() for dep in base.deps):
        return []  # another recipe builds it first
    try:
        folder = sources.find(base, project)
    except DataError as error:
        return in_recipe(recipe.name, error.problems)
    parts: tuple[Callable[[], Iterable[Problem]], ...] = (
        lambda: sources.damaged(base, project),
        lambda: _mixed(recipe, project),
    )
    looks: tuple[Callable[[], Iterable[Problem]], ...] = (*parts, lambda: sources.foreseen(base, project))
    if folder is not None:
        looks = (
            *parts,
            lambda: sources.problems(base, folder),
            lambda: _sides(recipe, folder),
            lambda: _drawn(recipe, folder),
        )
    found: list[Problem] = []
    for look in looks:
        try:
            found += look()
        except DataError as error:
            found += error.problems
    return in_recipe(recipe.name, dict.fromkeys(found))


def base_doubts(recipe: Recipe, base: Base, project: Path) -> Iterable[str]:
    """What is allowed of a base and hardly meant."""
    if recipe.base.clip_skip == 2 and _family(base, project) in ("sdxl", None):
        yield (
            "base.clip_skip 2 is the layer before the one that Stable Diffusion XL uses; where the card of such a "
            "model says clip skip 2, it means the usual layer: leave the key out"
        )


def _family(base: Base, project: Path) -> str | None:
    """Family of a base, if it can be told before it is brought."""
    if base.family is not None:
        return base.family
    try:
        folder = None if base.deps else sources.find(base, project)
        return None if folder is None else families.describe(folder).name
    except DataError:  # told with the problems
        return None


def in_recipe(name: str, problems: Iterable[Problem]) -> list[Problem]:
    """Problems with the file of a recipe or variant, where they are of one of its fields and name no other file."""
    place = f"recipes/{group_of(name)}.yaml"
    return [replace(problem, file=place) if problem.field and not problem.file else problem for problem in problems]


def _sides(recipe: Recipe, folder: Path) -> Iterable[Problem]:
    """Resolutions that the base cannot have, once its files are in order."""
    family = families.load(folder, clip_skip=recipe.base.clip_skip)
    wanted = {"images.resolution": recipe.images.resolution}
    for number, dataset in enumerate(recipe.datasets):
        for position, side in enumerate(dataset.resolutions or ()):
            wanted[f"datasets[{number}].resolutions[{position}]"] = side
    for field, side in wanted.items():
        if side % family.multiple:
            message = (
                f"{side} is not divisible by {family.multiple}, as the base needs; choose such a resolution and step"
            )
            yield Problem(field=field, message=message)


def _mixed(recipe: Recipe, project: Path) -> Iterable[Problem]:
    """Files of other adapters that are none."""
    for index, other in enumerate(recipe.sample.adapters if recipe.sample else ()):
        if other.path is not None and (project / other.path).is_file():
            for each in damages(project / other.path):
                yield Problem(field=f"sample.adapters[{index}].path", message=f"{other.path} {each.message}")


def _drawn(recipe: Recipe, folder: Path) -> Iterable[Problem]:
    """What the grid cannot have."""
    samples = importlib.import_module("sdbuild.steps.samples")
    for step in plan(recipe):
        if step.kind == "samples":
            samples.check(step.spec, folder)
    return ()
