"""`sdbuild check`: recipes and data, all mistakes at once, without building anything."""

from __future__ import annotations

import importlib
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from sdbuild.build.bases import misfits
from sdbuild.build.project import Project
from sdbuild.console import Console
from sdbuild.errors import DataError, InputError, Problem
from sdbuild.plan.compile import plan
from sdbuild.plan.model import Base
from sdbuild.recipe.libraries import missing
from sdbuild.recipe.load import choose, load_project
from sdbuild.recipe.models import Recipe
from sdbuild.steps.contract import Inputs


@dataclass(frozen=True, kw_only=True)
class _Quiet:
    """A step context that tells warnings and nothing else."""

    items: Path
    scratch: Path
    previous: Path
    console: Console
    recipe: str
    silent: bool = False

    def progress(self, done: int, total: int, unit: str, **figures: float) -> None:
        """Checking is short."""

    def warn(self, message: str) -> None:
        """Tell it with the recipe's name."""
        if not self.silent:
            self.console.warn(f"{self.recipe}: {message}")


def check_project(project: Project, names: Sequence[str], console: Console) -> Iterator[str]:
    """Check some recipes or variants of a project, or all: a line for each that is right.

    Variants that read pictures and captions alike are looked at once.

    Raises:
        InputError: with everything that is wrong in any of them.
        UsageError: there is no such recipe.
    """
    recipes = load_project(project.root)
    if not recipes:
        yield "there are no recipes in recipes/"
    problems: dict[Problem, None] = {}
    lacking: dict[str, None] = {}
    for group, members in groupby(choose(recipes, names) if names else recipes, key=lambda recipe: recipe.group):
        variants = list(members)
        pictures, found = _check_variants(project, variants, console)
        problems.update(dict.fromkeys(found))
        lacking |= {f"recipes/{group}.yaml: {word}": None for recipe in variants for word in missing(recipe)}
        for doubt in dict.fromkeys(doubt for recipe in variants for doubt in recipe.doubts()):
            console.warn(f"{group}: {doubt}")
        if not found:
            counted = f", {len(variants)} variants" if len(variants) > 1 else ""
            yield f"recipes/{group}.yaml is right: {pictures} pictures{counted}"
    for word in lacking:
        console.warn(word)
    if problems:
        raise InputError(problems)


def _check_variants(project: Project, variants: Sequence[Recipe], console: Console) -> tuple[str, list[Problem]]:
    """Number of pictures, from least to most, and all problems of some variants."""
    checked: dict[str, tuple[int, list[Problem]]] = {}
    for recipe in variants:
        specs: Mapping[str, Mapping[str, Any]] = {step.kind: step.spec for step in plan(recipe)}
        read = json.dumps([specs["images"], specs["captions"]])
        if read not in checked:
            checked[read] = _check_data(project, recipe.name, specs, console)
    alike = {json.dumps(_of_base(recipe)): recipe for recipe in variants}
    wrong = [
        problem
        for recipe in alike.values()
        for problem in misfits(recipe, Base.of(recipe.resolved()["base"]), project.root)
    ]
    counts = sorted({pictures for pictures, _ in checked.values()})
    shown = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else str(counts[0])
    return shown, [*wrong, *(problem for _, found in checked.values() for problem in found)]


def _of_base(recipe: Recipe) -> list[Any]:
    """What of a recipe `misfits` looks at, for variants that are alike in it."""
    said = recipe.resolved()
    drawn = said["sample"] and said["sample"]["scheduler"]
    return [said["base"], said["images"]["resolution"], said["datasets"], said["train"]["prediction"], drawn]


def _check_data(
    project: Project, name: str, specs: Mapping[str, Mapping[str, Any]], console: Console
) -> tuple[int, list[Problem]]:
    """Run the steps that read pictures and captions into a folder that is thrown away; the pictures and all problems.

    Where pictures are broken, captions are checked on the others.
    """
    problems: list[Problem] = []
    with tempfile.TemporaryDirectory(prefix="sdbuild-check-") as folder:
        out = Path(folder)
        context = _Quiet(
            items=project.items,
            scratch=out / "scratch",
            previous=project.root / "build" / name,
            console=console,
            recipe=name,
        )
        context.scratch.mkdir()
        total = 0
        images = importlib.import_module("sdbuild.steps.images")
        for on_error, silent in ((specs["images"]["on_error"], False), ("skip", True)):
            spec = {**specs["images"], "on_error": on_error}
            try:
                total = int(images.run(spec, Inputs(project=project.root), out, replace(context, silent=silent)).total)
                break
            except DataError as error:
                problems += error.problems
        if (out / "images.jsonl").exists():
            inputs = Inputs(project=project.root, images=out / "images.jsonl")
            try:
                importlib.import_module("sdbuild.steps.captions").check(specs["captions"], inputs, context)
            except DataError as error:
                problems += error.problems
    return total, problems
