"""Memory that runs out: what helps, from the cheapest on, and nothing that the recipe cannot have."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sdbuild.errors import StepError
from sdbuild.methods import METHODS
from sdbuild.plan.compile import plan
from sdbuild.recipe.models import Recipe
from sdbuild.steps.fit import shown
from sdbuild.steps.shortage import memory_told, remedies_of
from tests.training.material import make_spec

NEEDED: dict[str, dict[str, Any]] = {
    "partial": {"layers": ["attn2"]},
    "textual_inversion": {"tokens": [{"token": "<cat>"}]},
    "pivotal": {"tokens": [{"token": "<cat>"}]},
}
"""What methods do not do without."""


@pytest.mark.parametrize("kind", METHODS)
def test_every_remedy_is_one_that_the_recipe_can_have(kind: str) -> None:
    recipe: dict[str, Any] = {
        "name": "cat",
        "base": {"model": "base"},
        "datasets": [{"path": "datasets/cats"}],
        "method": {"kind": kind, **NEEDED.get(kind, {})},
        "train": {"ema": {}},
    }
    (spec,) = (step.spec for step in plan(Recipe.model_validate(recipe)) if step.kind == "train")
    remedies = list(remedies_of(spec))
    assert len(remedies) > 5
    for remedy in remedies:
        other = dict(recipe)
        for key, value in remedy.changes.items():
            section, _, name = key.partition(".")
            other[section] = {**other[section], name: value} if name else value
            assert remedy.says.startswith("train.batch") or f"{key}: {shown(value)}" in remedy.says
        Recipe.model_validate(other)
    whole = [remedy for remedy in remedies if "method" in remedy.changes]
    assert bool(whole) == (kind in ("full", "partial", "dreambooth"))


def test_memory_that_runs_out_names_remedies_from_the_cheapest_on() -> None:
    spec = make_spec(batch=6, accumulate=2, ema={})
    with pytest.raises(StepError) as caught, memory_told(spec):
        torch.empty(1 << 60)
    first, second, *remedies = str(caught.value).splitlines()
    assert first.startswith("training ran out of memory: ")
    assert second == "what helps, from the cheapest on:"
    assert "  train.batch: 3 with train.accumulate: 4 (the same result in a little more time)" in remedies
    assert [remedy.split(":")[0].strip() for remedy in remedies] == [
        "train.gradient_checkpointing",
        "train.batch",
        "train.precision",
        "train.base_precision",
        "train.optimizer",
        "train.ema",
        "images.resolution",
        "method.targets",
    ]
    with pytest.raises(StepError, match="CUDA out of memory"), memory_told(spec):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    with pytest.raises(RuntimeError, match="shapes"), memory_told(spec):
        raise RuntimeError("shapes do not go together")


def test_remedies_that_are_taken_are_not_named_again() -> None:
    method = {"rank": 1, "targets": "attention"}
    memory = {"gradient_checkpointing": True, "base_precision": "nf4"}
    spec = make_spec(method=method, batch=1, precision="bfloat16", optimizer="adamw-8bit", **memory)
    assert [remedy.says.split(":")[0] for remedy in remedies_of(spec)] == ["images.resolution"]
