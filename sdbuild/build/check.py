"""`sdbuild check`: recipes and data, all mistakes at once, without building anything."""

from __future__ import annotations

import importlib
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from sdbuild.build.bases import base_folder, base_warnings, in_recipe, misfits, odd_buckets
from sdbuild.build.caption_checks import CaptionChecks
from sdbuild.build.dataset_versions import Versions
from sdbuild.build.project import Project
from sdbuild.build.statcache import StatCache
from sdbuild.build.view_counts import seen_too_often, weights_far_apart
from sdbuild.captioners import api_keys
from sdbuild.console import Console
from sdbuild.data.buckets import Size
from sdbuild.data.captions import Captions
from sdbuild.data.records import ImageRecord, read_images
from sdbuild.errors import DataError, InputError, Problem
from sdbuild.plan.compile import plan
from sdbuild.plan.model import Base
from sdbuild.recipe.libraries import keys_missing, missing
from sdbuild.recipe.load import choose, read_project
from sdbuild.recipe.models import Recipe
from sdbuild.steps.contract import Inputs


@dataclass(frozen=True, kw_only=True, slots=True)
class _Checked:
    """What reading pictures and captions has shown."""

    pictures: int
    trained: Sequence[ImageRecord]
    """Those that are not held out."""
    problems: Sequence[Problem]
    captions: Captions | None
    """None where they are wrong."""
    sizes: frozenset[Size]
    """Of the buckets that they fall into."""


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
    loaded = read_project(project.root)
    if not loaded.recipes and not loaded.refused:
        yield "there are no recipes in recipes/"
    problems: dict[Problem, None] = dict.fromkeys(loaded.problems(names))
    lacking: dict[str, None] = {}
    recipes = choose(loaded.recipes, loaded.known(names)) if names else loaded.recipes
    unsuited = _check_compatibility(project, recipes, console)
    for group, members in groupby(recipes, key=lambda recipe: recipe.group):
        variants = list(members)
        pictures, found, warnings = _check_variants(project, variants, console)
        found += [
            problem
            for recipe in variants
            for problem in in_recipe(recipe.name, api_keys.problems(_asked(recipe)), project.root)
        ]
        warnings += [word for recipe in variants for word in map(api_keys.withheld, _asked(recipe).values()) if word]
        found += [problem for recipe in variants for problem in unsuited.get(recipe.name, ())]
        problems.update(dict.fromkeys(found))
        needs = (word for recipe in variants for word in (*missing(recipe), *keys_missing(recipe)))
        lacking |= {f"recipes/{group}.yaml: {word}": None for word in needs}
        for warning in dict.fromkeys(warnings):
            console.warn(f"{group}: {warning}")
        if not found:
            counted = f", {len(variants)} variants" if len(variants) > 1 else ""
            yield f"recipes/{group}.yaml is right: {pictures} pictures{counted}"
    for word in lacking:
        console.warn(word)
    problems |= dict.fromkeys(_versions(project, recipes, console))
    if problems:
        raise InputError(problems)


def _asked(recipe: Recipe) -> dict[int, Mapping[str, Any]]:
    """Captioners that may ask any server, by the numbers of their datasets."""
    said = (dataset["caption"] for dataset in recipe.resolved()["datasets"])
    return {number: caption for number, caption in enumerate(said) if caption["from"] == "openai"}


def _versions(project: Project, recipes: Sequence[Recipe], console: Console) -> Iterator[Problem]:
    """Datasets that hold edits of another version than their `.dvc` files name; warns of older versions."""
    with closing(StatCache(project.root, project.stat_cache)) as stat:
        versions = Versions(project, stat)
        for path in dict.fromkeys(dataset.path for recipe in recipes for dataset in recipe.datasets):
            state = versions.state(path)
            if state == "diverged":
                yield versions.problem(path)
            elif problem := versions.part_problem(path):
                yield problem
            elif words := versions.warning(path, state):
                console.warn(words)


def _check_compatibility(project: Project, recipes: Sequence[Recipe], console: Console) -> dict[str, list[Problem]]:
    """Check recipes against the networks of their bases, in a process of its own."""
    from sdbuild.build import probing

    compatibility = importlib.import_module("sdbuild.steps.compatibility")
    asked: dict[str, tuple[str, tuple[Mapping[str, Any], Path]]] = {}
    for recipe in recipes:
        steps: dict[str, Mapping[str, Any]] = {step.kind: step.spec for step in plan(recipe)}
        folder = base_folder(Base.of(recipe.resolved()["base"]), project.root)
        if folder is not None and compatibility.needs_networks(steps):
            wanted: dict[str, Mapping[str, Any]] = {
                kind: steps[kind] for kind in ("train", "extract", "samples") if kind in steps
            }
            alike = {kind: {**spec, "name": ""} for kind, spec in wanted.items()}
            asked.setdefault(json.dumps([recipe.group, alike, str(folder)]), (recipe.name, (wanted, folder)))
    problems: dict[str, list[Problem]] = {}
    for name, rows in probing.judge(project, dict(asked.values())).items():
        for row in rows:
            stops = row.pop("stops")
            [problem] = in_recipe(name, [Problem(**row)], project.root)
            if stops:
                problems.setdefault(name, []).append(problem)
            else:
                console.warn(str(problem))
    return problems


def _check_variants(
    project: Project, variants: Sequence[Recipe], console: Console
) -> tuple[str, list[Problem], list[str]]:
    """Number of pictures, from least to most, all problems of some variants, and warnings."""
    checked: dict[str, _Checked] = {}
    warnings: list[str] = []
    words: list[Problem] = []
    look = CaptionChecks(project.root)
    for recipe in variants:
        specs: Mapping[str, Mapping[str, Any]] = {step.kind: step.spec for step in plan(recipe)}
        read = json.dumps([specs["images"], specs["captions"]])
        if read not in checked:
            checked[read] = _check_data(project, recipe.name, specs, console)
        warnings += recipe.warnings()
        warnings += base_warnings(recipe, Base.of(recipe.resolved()["base"]), project.root)
        warnings += seen_too_often(recipe, checked[read].trained)
        words += in_recipe(recipe.name, weights_far_apart(recipe, checked[read].trained), project.root)
        if (captions := checked[read].captions) is not None:
            warnings += look.warnings(recipe, captions)
            words += look.problems(recipe, captions)
    alike = {json.dumps(_of_base(recipe)): recipe for recipe in variants}
    wrong = [
        problem
        for recipe in alike.values()
        for problem in misfits(recipe, Base.of(recipe.resolved()["base"]), project.root)
    ]
    for recipe in variants:
        specs = {step.kind: step.spec for step in plan(recipe)}
        sizes = checked[json.dumps([specs["images"], specs["captions"]])].sizes
        wrong += odd_buckets(recipe, Base.of(recipe.resolved()["base"]), project.root, sizes)
    wrong = list(dict.fromkeys(wrong))
    counts = sorted({each.pictures for each in checked.values()})
    shown = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else str(counts[0])
    return shown, [*wrong, *words, *(problem for each in checked.values() for problem in each.problems)], warnings


def _of_base(recipe: Recipe) -> list[Any]:
    """What of a recipe `misfits` looks at, for variants that are alike in it."""
    said = recipe.resolved()
    drawn = said["sample"] and [said["sample"]["scheduler"], said["sample"].get("adapters")]
    return [said["base"], said["images"]["resolution"], said["datasets"], said["train"], said["method"], drawn]


def _check_data(project: Project, name: str, specs: Mapping[str, Mapping[str, Any]], console: Console) -> _Checked:
    """Run the steps that read pictures and captions into a folder that is thrown away.

    Where pictures are broken, captions are checked on the others.
    """
    problems: list[Problem] = []
    trained: list[ImageRecord] = []
    captions: Captions | None = None
    sizes: frozenset[Size] = frozenset()
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
                problems += in_recipe(name, error.problems, project.root)
        if (out / "images.jsonl").exists():
            inputs = Inputs(project=project.root, images=out / "images.jsonl")
            records = read_images(out / "images.jsonl")
            trained = [record for record in records if record.split == "train"]
            sizes = frozenset(
                bucket for row in records for bucket in (row.bucket, *(fit.bucket for fit in row.further))
            )
            try:
                captions = importlib.import_module("sdbuild.steps.captions").check(specs["captions"], inputs, context)
            except DataError as error:
                problems += error.problems
    return _Checked(pictures=total, trained=trained, problems=problems, captions=captions, sizes=sizes)
