"""What a recipe may name is what the rooms that do the work have."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from sdbuild import captioners
from sdbuild.data.buckets import CROPS
from sdbuild.data.captions import CAPTIONERS
from sdbuild.methods import METHODS
from sdbuild.methods.spec import Targets
from sdbuild.methods.targets import PRESETS
from sdbuild.recipe.captions import CaptionSpec
from sdbuild.recipe.dataset import Images
from sdbuild.recipe.methods import SPECS
from sdbuild.recipe.train import Huber, Loss, SmoothL1, Timesteps, Train, Weighting
from sdbuild.steps.train import NAMES
from sdbuild.training.losses import MEASURES, WIDTHS
from sdbuild.training.optimizers import OPTIMIZERS
from sdbuild.training.schedules import SCHEDULES
from sdbuild.training.timesteps import QUANTILES
from sdbuild.training.weighting import WEIGHTINGS


def _choices(model: type[BaseModel], name: str) -> set[str]:
    return set(get_args(model.model_fields[name].annotation))


def _tags(union: Any, tag: str = "source") -> set[str]:
    return {member.model_fields[tag].default for member in get_args(get_args(union)[0])}


def _presets() -> set[str]:
    preset, _ = get_args(get_args(Targets)[0])
    return set(get_args(get_args(preset)[0]))


@pytest.mark.parametrize(
    ("named", "there"),
    [
        (_choices(Train, "optimizer"), OPTIMIZERS),
        (_choices(Train, "schedule"), SCHEDULES),
        (_choices(Train, "prediction"), {"base", *NAMES.values()}),
        (_tags(Loss, "kind"), MEASURES),
        (_choices(Huber, "schedule"), WIDTHS),
        (_choices(SmoothL1, "schedule"), WIDTHS),
        (_tags(Weighting, "kind"), WEIGHTINGS),
        (_tags(Timesteps, "kind"), {"base", *QUANTILES}),
        (_choices(Images, "crop"), {*CROPS, "random"}),
        (_tags(CaptionSpec), {*CAPTIONERS, *captioners.CAPTIONERS}),
        ({spec.model_fields["kind"].default for spec in SPECS}, METHODS),
        (_presets(), PRESETS),
    ],
    ids=[
        *("optimizer", "schedule", "prediction", "loss", "huber", "smooth-l1", "weighting", "timesteps"),
        *("crop", "caption", "method", "targets"),
    ],
)
def test_the_choices_are_the_registry(named: set[str], there: Collection[str]) -> None:
    assert named == set(there)
