"""`sdbuild check`: recipes and data, all mistakes at once, without building anything."""

from __future__ import annotations

import difflib
import importlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sdbuild.build.project import Project
from sdbuild.console import Console
from sdbuild.errors import DataError, InputError, Problem, UsageError
from sdbuild.plan.compile import plan
from sdbuild.recipe.load import load_project
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
    """Check some recipes of a project, or all: a line for each that is right.

    Raises:
        InputError: with everything that is wrong in any of them.
        UsageError: there is no such recipe.
    """
    recipes = {recipe.name: recipe for recipe in load_project(project.root)}
    for name in names:
        if name not in recipes:
            near = difflib.get_close_matches(name, recipes, n=1)
            raise UsageError(f"no recipe {name}{f' (did you mean {near[0]}?)' if near else ''} in recipes/")
    if not recipes:
        yield "there are no recipes in recipes/"
    problems: dict[Problem, None] = {}
    for name in names or recipes:
        pictures, found = _check_data(project, recipes[name], console)
        problems.update(dict.fromkeys(found))
        if not found:
            yield f"recipes/{name}.yaml is right: {pictures} pictures"
    if problems:
        raise InputError(problems)


def _check_data(project: Project, recipe: Recipe, console: Console) -> tuple[int, list[Problem]]:
    """Run the steps that read pictures and captions into a folder that is thrown away; the pictures and all problems.

    Where pictures are broken, captions are checked on the others.
    """
    specs: Mapping[str, Mapping[str, Any]] = {step.kind: step.spec for step in plan(recipe)}
    problems: list[Problem] = []
    with tempfile.TemporaryDirectory(prefix="sdbuild-check-") as folder:
        out = Path(folder)
        context = _Quiet(
            items=project.items,
            scratch=out / "scratch",
            previous=project.root / "build" / recipe.name,
            console=console,
            recipe=recipe.name,
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
                importlib.import_module("sdbuild.steps.captions").run(specs["captions"], inputs, out, context)
            except DataError as error:
                problems += error.problems
    return total, problems
