"""Recipes from files: everything that is wrong in any of them is reported at once.

A recipe is a file `recipes/<name>.yaml`. What starts with `_` (`recipes/_common.yaml`) and what lies in a folder below
`recipes/` is there to be extended and is no recipe by itself.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import ValidationError

from sdbuild.errors import Problem, RecipeError, UsageError
from sdbuild.recipe.built import makers, misnamed
from sdbuild.recipe.inherit import Chain, Documents, merged, place
from sdbuild.recipe.matrix import MATRIX, Found, Variant, blame, field_path, read_matrix, too_long, variants
from sdbuild.recipe.messages import explain
from sdbuild.recipe.mixed import mixed
from sdbuild.recipe.models import Recipe
from sdbuild.recipe.names import group_of, wrong_name
from sdbuild.recipe.path import FieldPath, dotted
from sdbuild.storage.phrases import did_you_mean

FOLDER = "recipes"


@dataclass(frozen=True, kw_only=True, slots=True)
class Refused:
    """A recipe file with errors."""

    file: str
    """Relative to the project."""
    problems: tuple[Problem, ...]
    waits: bool = False
    """Whether its only error is that it needs another recipe with errors."""

    @property
    def name(self) -> str:
        """The recipe's name, if the file's is one."""
        return os.path.splitext(os.path.basename(self.file))[0]


@dataclass(frozen=True, kw_only=True, slots=True)
class Loaded:
    """The recipes of a project: the valid ones, and files with errors."""

    recipes: list[Recipe]
    """Sorted by name, each variant of a matrix as one."""
    refused: tuple[Refused, ...] = ()

    @property
    def unread(self) -> frozenset[str]:
        """Names of recipes with errors; what they built is not garbage."""
        return frozenset(each.name for each in self.refused)

    def choose(self, names: Iterable[str]) -> list[Recipe]:
        """Those that are named; see `choose`.

        Raises:
            RecipeError: one of them is refused; with its problems.
            UsageError: there is no recipe of a name.
        """
        wanted = list(names)
        if wrong := self.problems(wanted):
            raise RecipeError(wrong)
        return choose(self.recipes, wanted)

    def problems(self, names: Sequence[str] = ()) -> list[Problem]:
        """What is wrong with some recipes, or with all; of all, those that only wait for others are not told."""
        told = [
            each
            for each in self.refused
            if (any(group_of(name) == each.name for name in names) if names else not each.waits)
        ]
        return list(dict.fromkeys(problem for each in told for problem in each.problems))

    def known(self, names: Sequence[str]) -> list[str]:
        """Names without those of what is refused."""
        return [name for name in names if group_of(name) not in self.unread]


def load_project(project: Path) -> list[Recipe]:
    """Load all recipes of a project, sorted by name, each variant of a matrix as one; none is no error.

    Raises:
        RecipeError: with all problems of all recipes.
    """
    loaded = read_project(project)
    if loaded.refused:
        raise RecipeError(loaded.problems())
    return loaded.recipes


def read_project(project: Path) -> Loaded:
    """Load what can be loaded of a project's recipes: one that is wrong stops itself, and those that wait for it.

    Raises:
        RecipeError: the folder cannot be listed.
    """
    documents = Documents(project)
    recipes: list[Recipe] = []
    refused: dict[str, Refused] = {}
    for path in recipe_files(project):
        file = _relative(path, project)
        loaded, problems = _load(file, project, documents)
        if problems:
            refused[file] = Refused(file=file, problems=tuple(dict.fromkeys(problems)))
        else:
            recipes += loaded
    while new := _waiting(recipes, refused, documents) or _at_odds(recipes, project, documents):
        refused |= new
        recipes = [recipe for recipe in recipes if _file_of(recipe) not in new]
    return Loaded(recipes=recipes, refused=tuple(refused[file] for file in sorted(refused)))


def located(problems: Iterable[Problem], project: Path, documents: Documents | None = None) -> list[Problem]:
    """Problems of recipes' fields with the file and line where each field stands, those of a matrix's values too."""
    documents = documents or Documents(project)
    return [_located(problem, documents) for problem in problems]


def _located(problem: Problem, documents: Documents) -> Problem:
    file = problem.file or ""
    if problem.line is not None or not problem.field or not file.startswith(f"{FOLDER}/"):
        return problem
    chain = documents.chain(file)
    path = field_path(problem.field)
    root = chain.documents[0].root
    varied = (merged(chain.documents).get(MATRIX) if root is not None else None) or {}
    for key in varied if isinstance(varied, Mapping) else ():
        own = field_path(key)
        if own[: len(path)] == path or path[: len(own)] == own:
            path = (MATRIX, key)
            break
    file, line = place(chain.documents, path)
    return replace(problem, file=file, line=line)


def _file_of(recipe: Recipe) -> str:
    return f"{FOLDER}/{recipe.group}.yaml"


def _waiting(recipes: Sequence[Recipe], refused: Mapping[str, Refused], documents: Documents) -> dict[str, Refused]:
    """Recipes that need the result of a recipe with errors."""
    found: dict[str, Refused] = {}
    for recipe in recipes:
        for field, maker in (*makers(recipe), *_mixed_in(recipe)):
            other = refused.get(f"{FOLDER}/{group_of(maker)}.yaml")
            if other is not None and _file_of(recipe) not in found:
                message = f"needs {group_of(maker)}, which has errors; fix {other.file}"
                told = _located(Problem(file=_file_of(recipe), field=field, message=message), documents)
                found[_file_of(recipe)] = Refused(file=_file_of(recipe), problems=(told,), waits=True)
    return found


def _mixed_in(recipe: Recipe) -> Iterator[tuple[str, str]]:
    for index, other in enumerate(recipe.sample.adapters if recipe.sample else ()):
        if other.recipe is not None:
            yield f"sample.adapters[{index}].recipe", other.recipe


def _at_odds(recipes: Sequence[Recipe], project: Path, documents: Documents) -> dict[str, Refused]:
    """Recipes that are valid by themselves but conflict with others."""
    found: dict[str, dict[Problem, None]] = {}
    for problem in (*misnamed(recipes, project), *mixed(recipes)):
        assert problem.file is not None
        found.setdefault(problem.file, {})[_located(problem, documents)] = None
    return {file: Refused(file=file, problems=tuple(problems)) for file, problems in found.items()}


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
            longer = sorted(each for each in known if each.startswith(name))[:1]
            hint = did_you_mean(name, known) or did_you_mean(name, longer, cutoff=0)
            raise UsageError(f"no recipe {name}{hint} in recipes/")
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
