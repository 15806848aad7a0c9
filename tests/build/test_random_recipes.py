"""What `check` accepts, builds: random recipes, each step of each run on a tiny base."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import yaml

from sdbuild.build.check import check_project
from sdbuild.build.compiled import Compiled
from sdbuild.build.project import Project
from sdbuild.build.worker import run_alone, step_environment
from sdbuild.console import Console
from sdbuild.errors import InputError, SdbuildError
from sdbuild.recipe.load import read_project
from tests.build.random_recipes import draw, make_project

BROKE_DOWN = re.compile(r"no number|not a number|nan|inf|grew|rose|rises|diverge|breaks down|broke down", re.IGNORECASE)
NOTED = ("may diverge", "is far above")
"""What `check` says of recipes whose training may end in numbers that are none."""


def accepted(root: Path, numbers: range) -> tuple[list[str], str]:
    """Write random recipes; names of those that `check` says are right, and all that it says."""
    for number in numbers:
        data = draw(number, root)
        if data is not None:
            text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
            (root / "recipes" / f"r{number}.yaml").write_text(text, encoding="utf-8")
    out = io.StringIO()
    try:
        for line in check_project(Project(root), (), Console(out, out)):
            out.write(f"{line}\n")
    except InputError as error:
        out.write(str(error))
    text = out.getvalue()
    return re.findall(r"^recipes/(\S+)\.yaml is right", text, re.MULTILINE), text


def build(root: Path, names: list[str]) -> list[str]:
    """Run all steps of recipes in this process; what failed and was not foretold."""
    os.environ.update(step_environment())
    os.chdir(root)
    project = Project(root)
    recipes = {recipe.name: recipe for recipe in read_project(root).recipes}
    surprises = []
    for name in names:
        compiled = Compiled(project, [recipes[name]])
        for path, text in compiled.files({}).items():
            if path != "dvc.yaml":
                compiled.write(path, text)
        noted = any(word in warning for warning in recipes[name].warnings() for word in NOTED)
        for step in compiled.steps:
            try:
                run_alone(project, step.name, lambda event: None)
            except Exception as error:  # whatever it is, it is a surprise
                foretold = noted and isinstance(error, SdbuildError) and BROKE_DOWN.search(str(error))
                if not foretold:
                    surprises.append(f"{step.name}: {type(error).__name__}: {error}")
                break
        shutil.rmtree(root / "build" / name, ignore_errors=True)
    return surprises


def surprises_of(root: Path, names: list[str], processes: int) -> list[str]:
    if processes == 1:
        return build(root, names)
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        parts = [pool.submit(build, root, names[start::processes]) for start in range(processes)]
        return [line for part in parts for line in part.result()]


def told(root: Path, surprises: list[str]) -> str:
    names = {line.partition(":")[0] for line in surprises}
    recipes: dict[str, Any] = {name: yaml.safe_load((root / "recipes" / f"{name}.yaml").read_text()) for name in names}
    return "\n".join([*surprises, *(f"{name}: {json.dumps(recipe)}" for name, recipe in recipes.items())])


@pytest.fixture
def random_project(tmp_path: Path) -> Path:
    root = tmp_path / "project"
    root.mkdir()
    make_project(root)
    return root


@pytest.mark.campaign
def test_a_few(random_project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(random_project)
    names, said = accepted(random_project, range(1000, 1024))
    assert len(names) >= 8, said
    surprises = surprises_of(random_project, names[:12], 2)
    assert not surprises, told(random_project, surprises)


@pytest.mark.campaign
def test_three_hundred(random_project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(random_project)
    names, said = accepted(random_project, range(900))
    assert len(names) >= 300, said
    surprises = surprises_of(random_project, names[:300], 2)
    assert not surprises, told(random_project, surprises)
