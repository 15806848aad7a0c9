"""Temporary projects, built with the commands that users type or, where only a step is measured, step by step."""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.harness import cost, told
from sdbuild.families.digest import base_digest, md5_file
from sdbuild.plan.compile import plan
from sdbuild.recipe.load import load_project
from sdbuild.steps.contract import Inputs, Items
from tests.conftest import BIN, DODO, Work
from tests.tiny import make_pictures, make_pipeline

DOIT = str(BIN / "doit")
DVC = str(BIN / "dvc")
SDBUILD = str(BIN / "sdbuild")
PYTHON = str(BIN / "python")
UP_TO_DATE = "everything is up to date"


def new_project(root: Path) -> Work:
    """Make a project without recipes and pictures: git, DVC, doit, a tiny base."""
    root.mkdir(parents=True)
    work = bare_project(root)
    work.git("init", "--quiet", "--initial-branch=main")
    work.dvc("init", "--quiet")
    work.write("dodo.py", DODO)
    work.write(".gitignore", "/.sdbuild/\n/build/*/*\n!/build/*/recipe.json\n/base/\n__pycache__/\n")
    return work


def bare_project(root: Path) -> Work:
    """Make a folder with a tiny base, in which steps can be run by themselves."""
    (root / "recipes").mkdir(parents=True)
    make_pipeline(root / "base")
    return Work(root)


def built_project(root: Path, built: Path | None, count: int) -> Work:
    """Make a project whose recipe `cat` is built from `count` pictures; or copy one that is built."""
    if built is not None:
        return Work(built).copy(root)
    work = new_project(root)
    make_pictures(work.root / "datasets" / "cats", count, size=16)
    quick_recipe(work, "cat")
    told(f"  built {count:,} pictures: {cost([DOIT], work.root)}")
    return work


def quick_recipe(work: Work, name: str, **images: Any) -> None:
    """Write a recipe whose training and samples take no time."""
    work.recipe(
        name,
        images={"resolution": 16, "buckets": {"step": 8, "max_aspect": 2}, **images},
        train={"steps": 1, "batch": 1, "checkpoint_every": 1, "validate": 1},
        sample={"prompts": ["a cat"], "seeds": [0], "strengths": [1], "steps": 1, "guidance": 1},
    )


def _nothing(done: int, total: int, unit: str, **figures: float) -> None:
    """Tell nobody."""


@dataclass(frozen=True, kw_only=True)
class Context:
    """`sdbuild.steps.contract.Context` of a step that runs by itself."""

    items: Path
    scratch: Path
    previous: Path
    on_progress: Callable[..., None] = _nothing
    warnings: list[str] = field(default_factory=list)

    def progress(self, done: int, total: int, unit: str, **figures: float) -> None:
        """Pass progress on."""
        self.on_progress(done, total, unit, **figures)

    def warn(self, message: str) -> None:
        """Keep a warning."""
        self.warnings.append(message)


class Steps:
    """The steps of one recipe, run in this process; their outs are in `out`."""

    def __init__(self, work: Work, name: str = "cat") -> None:
        self.root = work.root
        self.out = work.root / "out" / name
        self.plan = {step.kind: step for step in plan(self._recipe(name))}

    def _recipe(self, name: str) -> Any:
        return next(recipe for recipe in load_project(self.root) if recipe.name == name)

    def spec(self, kind: str) -> Mapping[str, Any]:
        """Return what the step sees, with the digest of its base as the build adds it."""
        step = self.plan[kind]  # type: ignore[index]
        reads = {"base": base_digest(self.root / "base", step.components, md5_file)} if step.components else {}
        return {**step.spec, "reads": reads}

    def run(self, *kinds: str, on_progress: Callable[..., None] = _nothing) -> Items:
        """Run steps as if never before, and return the items of the last."""
        items = Items(total=0, computed=0)
        for kind in kinds:
            self.forget(kind)
            (self.out / kind).mkdir(parents=True)
            context = Context(
                items=self.root / "items",
                scratch=self.root / "scratch" / kind,
                previous=self.root / "previous",
                on_progress=on_progress,
            )
            context.scratch.mkdir(parents=True)
            module = importlib.import_module(f"sdbuild.steps.{kind}")
            items = module.run(self.spec(kind), self.inputs(kind), self.out / kind, context)
        return items

    def forget(self, kind: str) -> None:
        """Remove all that a step left."""
        for folder in (self.out / kind, self.root / "scratch" / kind, self.root / "items" / kind):
            shutil.rmtree(folder, ignore_errors=True)

    def inputs(self, kind: str) -> Inputs:
        """Return the outs that there are."""
        names = {
            "images": "images/images.jsonl",
            "captions": "captions/captions.jsonl",
            "latents": "latents/latents",
            "text": "text/text",
        }
        found: dict[str, Any] = {name: self.out / path for name, path in names.items() if (self.out / path).exists()}
        how = self.plan[kind].how  # type: ignore[index]
        return Inputs(project=self.root, base=self.root / "base", how=how, **found)


def rows_of(path: Path) -> list[dict[str, Any]]:
    """Read a `.jsonl` file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
