"""The reference says of every key what the models say."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from sdbuild.methods.lora.spec import TimestepRanks
from sdbuild.methods.spec import ClassPictures, Extract, KeptPrediction, Part
from sdbuild.recipe import captioners, captions, dataset, methods, models, sample, train
from sdbuild.recipe.load import load_project
from sdbuild.recipe.spec import descriptions
from tests.recipe.helpers import put, write

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "recipe.md").read_text()
MODELS: list[type[BaseModel]] = [
    *(models.Base, models.Train, models.Sample, models.Remote, captions.Template, captions.Jsonl),
    *methods.SPECS,
    sample.OtherAdapter,
    *(captioners.Anthropic, captioners.OpenAI, captioners.Transformers, captioners.Pass, captioners.Prices),
    *(TimestepRanks, Part),
    *(ClassPictures, KeptPrediction, Extract),
    *(dataset.Dataset, dataset.Images, dataset.Buckets, dataset.Tags),
    *(dataset.AlphaMask, dataset.SidecarMask, dataset.FolderMask),
    *(train.LearningRates, train.Huber, train.SmoothL1, train.MinSnr, train.Noise, train.Ema, train.EarlyStop),
    *(train.UniformTimesteps, train.LogitNormal, train.Mode, train.CosMap),
]


def rows(model: type[BaseModel]) -> Iterator[str]:
    """A line of the table for each key: key, default, meaning."""
    for name, field in model.model_fields.items():
        key = field.alias or name
        if key not in descriptions(model):
            continue
        default = field.get_default()
        shown = "" if field.default_factory or default is PydanticUndefined else f"`{json.dumps(default)}`"
        yield f"| `{key}` | {'**required**' if field.is_required() else shown} | {descriptions(model)[key]} |"


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_every_key_is_in_the_reference(model: type[BaseModel]) -> None:
    missing = [row for row in rows(model) if " ".join(row.split()) not in " ".join(PAGE.split())]
    assert not missing, "\n".join(missing)


def test_the_example_loads(project: Path) -> None:
    example = PAGE.split("```yaml\n")[1].split("```")[0]
    put(project, "datasets/emoji-3d/a.png")
    write(project, cat=example)
    assert load_project(project)
