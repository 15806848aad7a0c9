"""What the train step does where a recipe asks for a prior."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from sdbuild.data.sampler import Sampler
from sdbuild.data.shares import WeightedSampler
from sdbuild.errors import StepError
from sdbuild.methods.contract import Adapter
from sdbuild.methods.spec import ClassPictures, KeptPrediction, MethodSpec
from sdbuild.recipe.models import Train
from sdbuild.steps.results import Data
from sdbuild.training.examples import Conditions, Encoded, Example, Stored
from sdbuild.training.inputs import read_class_examples
from sdbuild.training.prior import Choose, WithClassPictures, WithKeptPrediction


def class_pictures(method: MethodSpec, latents: Path) -> Sequence[Example]:
    """Read the latents of class pictures; none where the method asks for none."""
    prior = method.preserved
    if not isinstance(prior, ClassPictures):
        return []
    drawn = read_class_examples(latents, prompt=prior.caption, weight=prior.weight)
    if not drawn:
        raise StepError("there are no latents of class pictures; build the latents step again")
    return drawn


def records_of(method: MethodSpec, data: Data, sampler: Sampler | WeightedSampler, settings: Train) -> Choose:
    """Return the function from a step to its records."""

    def choose(step: int) -> Sequence[Example]:
        return [data.examples[index] for index in sampler.batch(step)]

    match method.preserved:
        case ClassPictures():
            batch = settings.batch * settings.accumulate
            return WithClassPictures(choose=choose, pictures=data.class_pictures, batch=batch, seed=settings.seed)
        case KeptPrediction(prompt=prompt, weight=weight):
            return WithKeptPrediction(choose=choose, prompt=prompt, weight=weight)
    return choose


def as_the_base(conditions: Stored | Encoded, adapter: Adapter) -> Conditions:
    """Return what gives captions as the base's conditions, whatever the adapter does to its text encoders."""
    if isinstance(conditions, Stored):
        return conditions

    @torch.no_grad()
    def encoded(texts: Sequence[str]) -> dict[str, Tensor]:
        with adapter.disabled():
            return conditions(texts)

    return encoded
