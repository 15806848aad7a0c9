"""Recipes from files: everything that is wrong in any of them is reported at once.

A recipe is a file `recipes/<name>.yaml`. What starts with `_` (`recipes/_common.yaml`) and what lies in a folder below
`recipes/` is there to be extended and is no recipe by itself.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from pydantic import ValidationError

from sdbuild.errors import Problem, RecipeError
from sdbuild.recipe.inherit import Chain, Documents, merged, place
from sdbuild.recipe.messages import explain
from sdbuild.recipe.models import Recipe
from sdbuild.recipe.names import wrong_name
from sdbuild.recipe.path import FieldPath, dotted

FOLDER = "recipes"


def load_project(project: Path) -> list[Recipe]:
    """Load all recipes of a project, sorted by name; none is no error.

    Raises:
        RecipeError: with all problems of all recipes.
    """
    return load_recipes(recipe_files(project), project)


def load_recipe(path: Path, project: Path) -> Recipe:
    """Load one recipe; a relative path counts from the project.

    Raises:
        RecipeError: with all its problems.
    """
    return load_recipes([path], project)[0]


def load_recipes(paths: Iterable[Path], project: Path) -> list[Recipe]:
    """Load some recipes of a project, in the order given.

    Raises:
        RecipeError: with all their problems; one in a file that several extend is told once.
    """
    documents = Documents(project)
    recipes: list[Recipe] = []
    problems: dict[Problem, None] = {}
    for path in paths:
        loaded = _load(_relative(path, project), project, documents)
        if isinstance(loaded, Recipe):
            recipes.append(loaded)
        else:
            problems.update(dict.fromkeys(loaded))
    if problems:
        raise RecipeError(problems)
    return recipes


def recipe_files(project: Path) -> list[Path]:
    """Files of a project's recipes, sorted by name; those with the ending `.yml` too, which `load` refuses."""
    try:
        names = sorted(os.listdir(project / FOLDER))
    except FileNotFoundError:
        return []
    except OSError as error:
        reason = (error.strerror or "unknown error").lower()
        raise RecipeError([Problem(file=FOLDER, message=f"cannot be read: {reason}")]) from None
    found = (project / FOLDER / name for name in names if name.endswith((".yaml", ".yml")) and name[0] not in "._")
    return [path for path in found if not os.path.isdir(path)]


def _relative(path: Path, project: Path) -> str:
    inside = os.path.relpath(project / path, project) if path.is_absolute() else os.path.normpath(path)
    return inside.replace(os.sep, "/")


def _load(file: str, project: Path, documents: Documents) -> Recipe | list[Problem]:
    if file.startswith("../"):
        return [Problem(file=file, message="is outside the project; copy it to recipes/")]
    chain = documents.chain(file)
    problems = list(chain.problems)
    name, ending = os.path.splitext(os.path.basename(file))
    if ending != ".yaml":
        problems.insert(0, Problem(file=file, message="a recipe's file ends in .yaml; rename it"))
    elif wrong := wrong_name(name):
        problems.insert(0, Problem(file=file, message=wrong))
    if chain.documents[0].root is None:
        return problems
    data = merged(chain.documents)
    if "name" in data:
        problems.append(_problem(chain, ("name",), f"a recipe is named by its file, {name!r} here; remove this key"))
    try:
        recipe = Recipe.model_validate({**data, "name": name}, context={"project": project})
    except ValidationError as error:
        found = (_problem(chain, path, message) for path, message in explain(error, partial=not chain.complete))
        return [*problems, *sorted(found, key=_position)]
    return problems or recipe


def _problem(chain: Chain, path: FieldPath, message: str) -> Problem:
    file, line = place(chain.documents, path)
    return Problem(file=file, line=line, field=dotted(path), message=message)


def _position(problem: Problem) -> tuple[str, int]:
    return problem.file or "", problem.line or 0
