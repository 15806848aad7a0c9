"""Recipes from files: everything that is wrong in any of them is reported at once.

A recipe is a file `recipes/<name>.yaml`. What starts with `_` (`recipes/_common.yaml`) and what lies in a folder below
`recipes/` is there to be extended and is no recipe by itself.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from pydantic import ValidationError

from sdbuild.errors import Problem, RecipeError, UsageError
from sdbuild.recipe.built import misnamed
from sdbuild.recipe.inherit import Chain, Documents, merged, place
from sdbuild.recipe.matrix import MATRIX, Found, Variant, blame, read_matrix, too_long, variants
from sdbuild.recipe.messages import explain
from sdbuild.recipe.mixed import mixed
from sdbuild.recipe.models import Recipe
from sdbuild.recipe.names import wrong_name
from sdbuild.recipe.path import FieldPath, dotted

FOLDER = "recipes"


def load_project(project: Path) -> list[Recipe]:
    """Load all recipes of a project, sorted by name, each variant of a matrix as one; none is no error.

    Raises:
        RecipeError: with all problems of all recipes.
    """
    recipes = load_recipes(recipe_files(project), project)
    if problems := dict.fromkeys([*misnamed(recipes, project), *mixed(recipes)]):
        raise RecipeError(problems)
    return recipes


def load_recipe(path: Path, project: Path) -> Recipe:
    """Load one recipe, of a matrix the first variant; a relative path counts from the project.

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
        loaded, found = _load(_relative(path, project), project, documents)
        recipes += loaded
        problems.update(dict.fromkeys(found))
    if problems:
        raise RecipeError(problems)
    return recipes


def choose(recipes: Sequence[Recipe], names: Iterable[str]) -> list[Recipe]:
    """Those of some recipes that are named: a recipe, a variant of a matrix, or all its variants by the file's name.

    Raises:
        UsageError: there is no recipe of a name; the message has the nearest.
    """
    chosen: dict[str, Recipe] = {}
    for name in names:
        found = {recipe.name: recipe for recipe in recipes if name in (recipe.name, recipe.group)}
        if not found:
            known = {*(recipe.name for recipe in recipes), *(recipe.group for recipe in recipes)}
            near = difflib.get_close_matches(name, sorted(known), n=1) or sorted(k for k in known if k.startswith(name))
            raise UsageError(f"no recipe {name}{f' (did you mean {near[0]}?)' if near else ''} in recipes/")
        chosen.update(found)
    return list(chosen.values())


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


def _load(file: str, project: Path, documents: Documents) -> tuple[list[Recipe], list[Problem]]:
    """The recipes of a file, one a variant, and what is wrong in it."""
    if file.startswith("../"):
        return [], [Problem(file=file, message="is outside the project; copy it to recipes/")]
    chain = documents.chain(file)
    problems = list(chain.problems)
    name, ending = os.path.splitext(os.path.basename(file))
    if ending != ".yaml":
        problems.insert(0, Problem(file=file, message="a recipe's file ends in .yaml; rename it"))
    elif wrong := wrong_name(name):
        problems.insert(0, Problem(file=file, message=wrong))
    if chain.documents[0].root is None:
        return [], problems
    data = merged(chain.documents)
    if "name" in data:
        problems.append(_problem(chain, ("name",), f"a recipe is named by its file, {name!r} here; remove this key"))
    matrix, found = read_matrix(data.pop(MATRIX, None), data, partial=not chain.complete)
    every = list(variants(name, data, matrix))
    found += too_long(every)
    recipes: list[Recipe] = []
    faulty: dict[Found, list[Variant]] = {}
    for variant in every:
        point = {key: (matrix[key][index],) for key, index in variant.choice.items()} or None
        content = {**variant.data, "name": variant.name, MATRIX: point}
        try:
            recipes.append(Recipe.model_validate(content, context={"project": project}))
        except ValidationError as error:
            for problem in explain(error, partial=not chain.complete):
                faulty.setdefault(problem, []).append(variant)
    for problem, whose in faulty.items():
        found += blame(problem, whose, every, matrix)
    problems += sorted((_problem(chain, path, message) for path, message in found), key=_position)
    return recipes, problems


def _problem(chain: Chain, path: FieldPath, message: str) -> Problem:
    file, line = place(chain.documents, path)
    return Problem(file=file, line=line, field=dotted(path), message=message)


def _position(problem: Problem) -> tuple[str, int]:
    return problem.file or "", problem.line or 0
