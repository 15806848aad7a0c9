"""A server, and captions steps that ask it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from sdbuild.data.records import CaptionRecord, read_captions
from sdbuild.plan.compile import plan
from sdbuild.plan.model import Step
from sdbuild.recipe.load import load_recipe
from sdbuild.steps import captions
from sdbuild.steps.contract import Inputs, Items
from tests.captioners.server import Speaker, environment, serving
from tests.conftest import Work
from tests.steps.stage import write_records
from tests.tiny import make_pictures

CLAUDE: dict[str, Any] = {"from": "anthropic", "model": "claude-haiku-4-5"}
GPT: dict[str, Any] = {"from": "openai", "model": "gpt-4o-mini"}


@pytest.fixture
def server() -> Iterator[Speaker]:
    with serving(Speaker()) as speaker:
        yield speaker


@dataclass
class Asking:
    """One recipe whose captions step is run in this process, without a build around it."""

    root: Path
    warnings: list[str] = field(default_factory=list)
    told: list[tuple[int, int, dict[str, float]]] = field(default_factory=list)

    items: Path = field(init=False)
    scratch: Path = field(init=False)
    previous: Path = field(init=False)

    def __post_init__(self) -> None:
        self.items, self.scratch = self.root / ".sdbuild/items", self.root / ".sdbuild/scratch"
        self.previous = self.root / "build/cat"
        self.previous.mkdir(parents=True, exist_ok=True)

    def progress(self, done: int, total: int, unit: str, **figures: float) -> None:
        self.told.append((done, total, figures))

    def warn(self, message: str) -> None:
        self.warnings.append(message)

    def step(self, **caption: Any) -> Step:
        """The captions step of a recipe with such a captioner."""
        dataset = {"path": "datasets/cats", "caption": caption, "trigger": "sks"}
        Work(self.root).recipe(datasets=[dataset], sample=None)
        recipe = load_recipe(Path("recipes/cat.yaml"), self.root)
        return next(step for step in plan(recipe) if step.kind == "captions")

    def run(self, **caption: Any) -> Items:
        """Run the step, and keep its result as the last good one."""
        step = self.step(**caption)
        pictures = sorted((self.root / "datasets/cats").glob("*.png"))
        images = write_records(self.root, pictures)
        inputs = Inputs(project=self.root, images=images, how=step.how)
        return captions.run(step.spec, inputs, self.previous, self)

    @property
    def rows(self) -> list[CaptionRecord]:
        return read_captions(self.previous / "captions.jsonl")

    @property
    def texts(self) -> list[str]:
        return [row.text for row in self.rows]


@pytest.fixture
def asking(tmp_path: Path, server: Speaker, monkeypatch: pytest.MonkeyPatch) -> Asking:
    """Four pictures without captions; the server's key is in the environment."""
    for name, value in environment(server).items():
        monkeypatch.setenv(name, value)
    make_pictures(tmp_path / "datasets/cats", 4, captions=False, size=32)
    (tmp_path / "base").mkdir()
    (tmp_path / "base/model_index.json").write_text("{}")
    return Asking(tmp_path)
