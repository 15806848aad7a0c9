"""A project folder with recipes, without git, DVC or a base."""

from __future__ import annotations

from pathlib import Path

import pytest

from sdbuild.errors import RecipeError
from sdbuild.recipe.load import load_project

BASE = "base: {model: emoji-64}\n"
DATA = "datasets: [{path: datasets/cat}]\n"
GOOD = BASE + DATA
DESIGN = """\
base:
  model: emoji-64            # embedded | hub id | folder
  revision: null             # hub commit; pinned into recipe.json when resolved
datasets:
  - path: datasets/cat
    caption: {from: sidecar}
    trigger: "3d render of"
    repeats: 1
    holdout: 4
images: {resolution: 64, buckets: {step: 8, max_aspect: 2}, crop: center, flip: false}
method: {kind: lora, rank: 8, alpha: 8, targets: default}
train: {steps: 300, batch: 8, learning_rate: 1e-3, optimizer: adamw, schedule: cosine, warmup: 10, precision: float32,
        seed: 0}
sample: {prompts: ["3d render of a cat face", "3d render of a rocket"], seeds: [0, 1], strengths: [0, 1],
         scheduler: dpm++, steps: 20, guidance: 5}
"""


def write(project: Path, **files: str | bytes) -> None:
    """Write recipes: `cat="…"` is recipes/cat.yaml."""
    for name, content in files.items():
        put(project, f"recipes/{name}.yaml", content)


def put(project: Path, path: str, content: str | bytes = "") -> None:
    """Write one file anywhere in the project."""
    target = project / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content if isinstance(content, bytes) else content.encode())


def complaints(project: Path) -> list[str]:
    """What loading says, a problem an entry."""
    with pytest.raises(RecipeError) as caught:
        load_project(project)
    return [str(problem) for problem in caught.value.problems]
