"""`sdbuild probe`: what a recipe will take, asked of processes of their own, so that each measures itself alone."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sdbuild import families
from sdbuild.build.project import Project
from sdbuild.build.worker import die_with_parent, step_environment
from sdbuild.data.records import write_captions
from sdbuild.errors import DataError, InputError, Problem, SdbuildError, StepError, UsageError
from sdbuild.families import sources
from sdbuild.plan.compile import plan
from sdbuild.plan.model import Base
from sdbuild.recipe.load import read_project
from sdbuild.recipe.places import maker_of
from sdbuild.steps.contract import Inputs


@dataclass(frozen=True, kw_only=True)
class _Quiet:
    """A step context that tells nothing: the build and `sdbuild check` do."""

    items: Path
    scratch: Path
    previous: Path

    def progress(self, done: int, total: int, unit: str, **figures: float) -> None:
        """Pictures are looked at quickly."""

    def warn(self, message: str) -> None:
        """Not here."""


def probe(
    project: Project, name: str, say: Callable[[str], None], *, predict: bool, device: str | None
) -> dict[str, Any]:
    """Predict what a recipe takes and, unless `predict` or where its base has no weights here, take real steps.

    Args:
        project: in which the recipe is.
        name: of the recipe or variant.
        say: is told what is downloaded.
        predict: whether that is all.
        device: kind of device to predict for; None for the one that trains here.

    Raises:
        UsageError: there is no such recipe, or the name stands for several variants.
        SdbuildError: the recipe, its data or its base are wrong.
    """
    recipes = read_project(project.root).choose([name])
    if len(recipes) > 1:
        several = ", ".join(recipe.name for recipe in recipes)
        raise UsageError(f"{name} has {len(recipes)} variants ({several}); probe one of them")
    recipe = recipes[0]
    base = Base.of(recipe.resolved()["base"])
    for dep in base.deps:
        if not (project.root / dep.path).exists():
            maker = maker_of(dep.path)
            raise UsageError(f"the base of {recipe.name} is what recipe {maker} builds: run doit {maker}:train first")
    specs: dict[str, Mapping[str, Any]] = {step.kind: step.spec for step in plan(recipe)}
    folder = sources.outline(base, project.root, say)
    if wrong := sources.problems(base, folder):
        raise DataError(replace(problem, file=f"recipes/{recipe.group}.yaml") for problem in wrong)
    whole = sources.find(base, project.root) is not None and _has_weights(folder)
    with tempfile.TemporaryDirectory(prefix="sdbuild-probe-") as temporary:
        out = Path(temporary)
        context = _Quiet(items=project.items, scratch=out, previous=project.root / "build" / recipe.name)
        inputs = Inputs(project=project.root)
        importlib.import_module("sdbuild.steps.images").run(specs["images"], inputs, out, context)
        inputs = Inputs(project=project.root, images=out / "images.jsonl")
        captions = importlib.import_module("sdbuild.steps.captions").check(specs["captions"], inputs, context)
        # For captions that a model is to give there is something to stand in: nobody is asked for them here.
        awaited = [picture.row([picture.image.digest], "", ()) for picture in captions.open]
        write_captions(out / "captions.jsonl", [*captions.records, *awaited])
        request = {
            "steps": specs,
            "base": str(folder),
            "images": str(out / "images.jsonl"),
            "captions": str(out / "captions.jsonl"),
            "device": device,
        }
        found = _ask(project, recipe.name, {"what": "predict", **request})
        found["weights"] = whole
        if not predict and whole and found["device"]["here"] and not cannot_fit(found):
            found["measured"] = _ask(project, recipe.name, {"what": "measure", **request})
    return found


def judge(project: Project, recipes: Mapping[str, tuple[Mapping[str, Any], Path]]) -> dict[str, list[dict[str, Any]]]:
    """Check recipes against the networks of their bases; returns problems by name, as dicts with a key `stops`.

    Args:
        project: in which they are.
        recipes: specs of the steps and folder of the base, by name.
    """
    asked = {name: {"steps": steps, "base": str(base)} for name, (steps, base) in recipes.items()}
    if not asked:
        return {}
    return _ask(project, "check", {"what": "compatibility", "project": str(project.root), "recipes": asked})


def _has_weights(base: Path) -> bool:
    try:
        families.load(base)
    except DataError:
        return False
    return True


def cannot_fit(found: Mapping[str, Any]) -> bool:
    """Whether a prediction exceeds what this machine has, even if it is too high by its margin."""
    bound = found["bound"]
    return bound is not None and (1 - found["margin"]) * found["settings"][0]["total"] > bound


def _ask(project: Project, name: str, request: Mapping[str, Any]) -> dict[str, Any]:
    log = project.private / "logs" / name / "probe.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a" if request["what"] == "measure" else "w", encoding="utf-8") as noise:
        done = subprocess.run(
            [sys.executable, "-m", "sdbuild", "prober"],
            cwd=project.root,
            env=step_environment(),
            input=json.dumps(request),
            stdout=subprocess.PIPE,
            stderr=noise,
            text=True,
            encoding="utf-8",
            check=False,
        )
    answer: dict[str, Any] = {}
    if done.returncode == 0:
        answer = json.loads(done.stdout.splitlines()[-1])
    if "problem" in answer:
        lines = answer["problem"].split("\n")
        raise InputError(Problem(message=line) for line in lines) if answer["input"] else StepError(*lines)
    if not answer:
        told = f"was killed by signal {-done.returncode}" if done.returncode < 0 else f"ended with {done.returncode}"
        remedy = "; it may have run out of memory" if done.returncode == -9 else ""
        raise StepError(f"{name}: probing {told}{remedy}; see {log.relative_to(project.root)}")
    return answer


def answer() -> int:
    """The life of such a process: a request on the standard input, an answer as the last line of the output."""
    die_with_parent()
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer
    request = json.loads(sys.stdin.read())
    try:
        module = "compatibility" if request["what"] == "compatibility" else "probe"
        found = importlib.import_module(f"sdbuild.steps.{module}").run(request)
    except SdbuildError as error:
        found = {"problem": str(error), "input": isinstance(error, InputError)}
    except Exception:
        traceback.print_exc()
        return 1
    channel.write(json.dumps(found) + "\n")
    channel.close()
    return 0
