"""What changes while a step runs: a sentence, nothing recorded, and the next build works."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from io import StringIO
from typing import Any

import pytest

from sdbuild.build.answers import answer_of, error_of
from sdbuild.build.engine import Engine
from sdbuild.build.lockfile import LockFile
from sdbuild.build.project import Project
from sdbuild.build.worker import read_step, run_step
from sdbuild.console import Console
from sdbuild.errors import SdbuildError
from sdbuild.recipe.load import load_project
from sdbuild.steps.contract import Items
from tests.conftest import Work

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
"""Of libraries, which steps run in processes of their own."""

Edit = Callable[[Work], object]


class Workers:
    """Runs steps in this process, and edits something while a certain one runs."""

    def __init__(self, work: Work, kind: str, edit: Edit) -> None:
        self._work = work
        self._kind = kind
        self._edit = edit

    def run(self, name: str, on_event: Callable[[Mapping[str, Any]], None]) -> Items:
        project = Project(self._work.root)
        if name == f"cat:{self._kind}":
            self._kind = ""
            self._edit(self._work)
        answer = answer_of(lambda: run_step(project, read_step(project, name), on_event), str)
        if answer["event"] == "failed":
            raise error_of(answer)
        return Items(total=answer["total"], computed=answer["computed"])

    def close(self) -> None:
        """Nothing was started."""


def build(work: Work, kind: str = "", edit: Edit = lambda work: None, *, forced: bool = False) -> str:
    """Build all in this process; the error that it ended with, if any."""
    engine = Engine(Project(work.root), load_project(work.root), Console(StringIO(), StringIO()))
    engine._workers = Workers(work, kind, edit)  # type: ignore[assignment]
    try:
        for name, step in engine.steps.items():
            engine.build(name, forced=forced and step.kind == kind)
    except SdbuildError as error:
        return str(error)
    finally:
        engine.close()
    return ""


def caption(work: Work) -> None:
    work.write("datasets/cats/0001.txt", "another caption")


def picture(work: Work) -> None:
    shutil.copyfile(work.root / "datasets/cats/0002.png", work.root / "datasets/cats/0001.png")


def without(path: str) -> Edit:
    return lambda work: shutil.rmtree(work.root / path)


def base(work: Work) -> None:
    path = next((work.root / "base/vae").glob("*.safetensors"))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def compiled(work: Work) -> None:
    """As a checkout of another commit does it."""
    path = "build/cat/recipe.json"
    work.write(path, work.read(path).replace(b'"guidance": 2', b'"guidance": 3'))


CHANGES: dict[str, list[Edit]] = {
    "images": [without("datasets/cats"), compiled],
    "captions": [caption, picture],
    "latents": [caption, base, without("build/cat")],
    "text": [picture, without("build/cat")],
    "train": [caption, without("build/cat/latents")],
    "samples": [without("build/cat/adapter")],
}


@pytest.mark.parametrize("kind", CHANGES)
def test_it_is_said_and_the_next_build_works(built: Work, kind: str) -> None:
    shutil.copytree(built.root / "datasets", built.root / "datasets-before")
    shutil.copytree(built.root / "base", built.root / "base-before")
    for edit in CHANGES[kind]:
        entry = LockFile(Project(built.root)).stages()[f"cat-{kind}"]
        said = build(built, kind, edit, forced=True)
        assert "its inputs changed while it ran" in said, (edit, said)
        assert "run doit again" in said
        assert LockFile(Project(built.root)).stages()[f"cat-{kind}"] == entry, edit
        if not (built.root / "datasets/cats").exists():
            shutil.copytree(built.root / "datasets-before/cats", built.root / "datasets/cats")
        assert build(built) == "", edit
        for name in ("datasets", "base"):  # the edit is taken back
            shutil.rmtree(built.root / name)
            shutil.copytree(built.root / f"{name}-before", built.root / name)
    assert build(built) == ""
