"""What a recipe needs beside the usual libraries."""

from __future__ import annotations

from typing import get_args

import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS

from sdbuild.recipe import libraries, train
from sdbuild.recipe.models import Recipe
from sdbuild.training.optimizers import OPTIMIZERS
from sdbuild.training.precision import QUANTISED
from tests.recipe.test_models import SMALL


def recipe(**settings: object) -> Recipe:
    return Recipe.model_validate({**SMALL, "train": settings})


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"optimizer": "lion-8bit"}, "train.optimizer: lion-8bit needs bitsandbytes"),
        ({"optimizer": "came"}, "train.optimizer: came needs pytorch_optimizer"),
        ({"base_precision": "nf4"}, "train.base_precision: nf4 needs bitsandbytes"),
        ({"trackers": ["tensorboard"]}, "train.trackers: tensorboard is not installed"),
    ],
)
def test_what_is_missing_is_told_with_the_command(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, object], word: str
) -> None:
    assert list(libraries.missing(recipe(**settings))) == [], "the development extra has them all"
    monkeypatch.setattr(libraries, "find_spec", lambda name: None)
    (found,) = libraries.missing(recipe(**settings))
    assert found.startswith(word)
    assert 'pip install "sdbuild[' in found
    assert list(libraries.missing(recipe())) == []


def test_names_are_those_of_what_uses_them() -> None:
    assert libraries.OPTIMIZERS.keys() <= OPTIMIZERS.keys()
    assert OPTIMIZERS.keys() - libraries.OPTIMIZERS.keys() == {"adamw", "adafactor", "sgd"}
    assert libraries.QUANTISED.keys() == QUANTISED.keys()
    assert set(get_args(train.Tracker)) == libraries.TRACKERS.keys() <= LOGGER_TYPE_TO_CLASS.keys()
