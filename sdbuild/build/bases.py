"""Whether a recipe goes with its base: found out before anything is built. Light."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from sdbuild import families
from sdbuild.data.buckets import Size, unfit
from sdbuild.errors import DataError, Problem
from sdbuild.families import hub, sources
from sdbuild.families.layout import damages
from sdbuild.plan.compile import plan
from sdbuild.plan.model import Base
from sdbuild.recipe.load import located
from sdbuild.recipe.models import Recipe
from sdbuild.recipe.names import group_of
from sdbuild.recipe.places import is_hub_id, place_of


def misfits(recipe: Recipe, base: Base, project: Path) -> list[Problem]:
    """What is wrong with a base that is on this machine, and with what the recipe wants of it."""
    if any(not (project / dep.path).exists() for dep in base.deps):
        return []  # another recipe builds it first
    try:
        folder = sources.find(base, project)
    except DataError as error:
        return in_recipe(recipe.name, error.problems, project)
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
            lambda: _objective(recipe, folder),
            lambda: _drawn(recipe, folder),
        )
    found: list[Problem] = []
    for look in looks:
        try:
            found += look()
        except DataError as error:
            found += error.problems
    return in_recipe(recipe.name, dict.fromkeys(found), project)


def base_warnings(recipe: Recipe, base: Base, project: Path) -> Iterable[str]:
    """Warnings about a base: unusual settings, and what cannot be checked before it is downloaded."""
    if (
        is_hub_id(base.model)
        and not base.deps
        and place_of(base.model, project) is None
        and base_folder(base, project) is None
    ):
        yield (
            f"base.model {base.model} is not on this machine{hub.hint(base.model)}; doit downloads it and then "
            "checks the recipe against it"
        )
    if recipe.base.clip_skip == 2 and _family(base, project) in ("sdxl", None):
        yield (
            "base.clip_skip 2 takes the layer before the usual one of Stable Diffusion XL; model cards that say clip "
            "skip 2 mean the usual one: remove the key"
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


def base_folder(base: Base, project: Path) -> Path | None:
    """Folder of a base that is on this machine and right as far as its files go; None for others."""
    if any(not (project / dep.path).exists() for dep in base.deps):
        return None
    try:
        folder = sources.find(base, project)
        if folder is not None:
            families.load(folder)
    except DataError:  # told elsewhere
        return None
    return folder


def odd_buckets(recipe: Recipe, base: Base, project: Path, sizes: Iterable[Size]) -> list[Problem]:
    """Check the buckets that pictures fall into, if the base is on this machine."""
    folder = base_folder(base, project)
    if folder is None:
        return []
    multiple = families.load(folder).multiple
    message = None if recipe.images.resolution % multiple else unfit(sizes, multiple)
    problem = Problem(field="images.buckets.step", message=message or "")
    return in_recipe(recipe.name, [problem], project) if message else []


def in_recipe(name: str, problems: Iterable[Problem], project: Path) -> list[Problem]:
    """Problems with file and line of a recipe or variant, where they are of its fields and name no other file."""
    place = f"recipes/{group_of(name)}.yaml"
    own = (replace(each, file=place) if each.field and not each.file else each for each in problems)
    return located(own, project)


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
    """Check the adapter files that a grid mixes in."""
    for index, other in enumerate(recipe.sample.adapters if recipe.sample else ()):
        if other.path is not None and (project / other.path).is_file():
            for each in damages(project / other.path):
                yield Problem(field=f"sample.adapters[{index}].path", message=f"{other.path} {each.message}")


def _objective(recipe: Recipe, folder: Path) -> Iterable[Problem]:
    """Check the settings of training against what the base predicts."""
    for key, message in recipe.train.base_rules(sources.predicts(folder)):
        yield Problem(field=f"train.{key}", message=message)


def _drawn(recipe: Recipe, folder: Path) -> Iterable[Problem]:
    """What the grid cannot have."""
    samples = importlib.import_module("sdbuild.steps.samples")
    for step in plan(recipe):
        if step.kind == "samples":
            samples.check(step.spec, folder)
    return ()
