"""Settings that have no effect together with the recipe's other settings: the user is warned of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from sdbuild.methods.hypernetwork.spec import Hypernetwork
from sdbuild.methods.lokr.spec import Lokr
from sdbuild.methods.pivotal.spec import Pivotal
from sdbuild.methods.spec import ClassPictures
from sdbuild.recipe.captioners import ModelCaptioner, fields_used
from sdbuild.recipe.learning_rates import usual_of
from sdbuild.recipe.spec import Spec

if TYPE_CHECKING:
    from sdbuild.recipe.models import Recipe


def unused_settings(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Yield such settings, dotted, and why they change nothing."""
    yield from _of_training(recipe)
    yield from _of_method(recipe)
    yield from _of_data(recipe)
    sample, prior = recipe.sample, recipe.method.preserved
    if sample is not None and sample.negative and sample.guidance <= 1:
        yield "sample.negative", f"a negative prompt has no effect with guidance {sample.guidance:g}"
    if isinstance(prior, ClassPictures) and prior.negative and prior.guidance <= 1:
        yield "method.prior.negative", f"a negative prompt has no effect with guidance {prior.guidance:g}"
    if sample is not None and set(sample.strengths) == {0.0} and not sample.adapters:
        yield "sample.strengths", "the grid shows the base alone, nothing of the adapter"


def _of_training(recipe: Recipe) -> Iterator[tuple[str, str]]:
    train, rated = recipe.train, recipe.method.rated
    rates = train.learning_rates
    usual = usual_of(recipe.method.usual, train.optimizer)
    own = usual is None or train.learning_rate != usual.rate
    if own and is_set(train, "learning_rate") and all(getattr(rates, part) is not None for part in rated):
        yield "train.learning_rate", "every part that is trained has a rate of its own in learning_rates"
    if train.checkpoint_every >= train.steps and is_set(train, "checkpoint_every"):
        yield "train.checkpoint_every", f"training ends after {train.steps} steps, before the first checkpoint"
    if is_set(train, "validation_draws") and not any(dataset.holdout for dataset in recipe.datasets):
        yield "train.validate", "no pictures are held out to validate on"
    if is_set(train.noise, "pyramid_levels") and not train.noise.pyramid:
        yield "train.noise.pyramid_levels", "there is no pyramid noise"
    if is_set(train, "weight_decay") and train.weight_decay and 1 - train.learning_rate * train.weight_decay == 1:
        yield (
            "train.weight_decay",
            f"{train.weight_decay:g} times learning_rate {train.learning_rate:g} rounds to nothing",
        )


def _of_method(recipe: Recipe) -> Iterator[tuple[str, str]]:
    method = recipe.method
    if isinstance(method, Lokr) and method.full:
        for key in ("rank", "alpha"):
            if is_set(method, key):
                yield f"method.{key}", "full: true trains whole matrices, which have no rank"
    if isinstance(method, Hypernetwork) and len(method.layers) == 2:
        for key in ("activation", "dropout"):
            if is_set(method, key):
                yield f"method.{key}", "it acts between layers, and there is one layer"
    if isinstance(method, Pivotal) and method.norm and method.tokens_until * recipe.train.steps < 1:
        yield "method.norm", "the tokens' vectors are trained in one step alone"


def _of_data(recipe: Recipe) -> Iterator[tuple[str, str]]:
    for index, dataset in enumerate(recipe.datasets):
        at, caption = f"datasets[{index}]", dataset.caption
        if dataset.weight is not None and len(recipe.datasets) == 1:
            yield f"{at}.weight", "there is no other dataset"
        if isinstance(caption, ModelCaptioner):
            said = caption.model_dump(mode="json", by_alias=True)
            if is_set(caption, "tags_file") and "tags" not in fields_used(said):
                yield f"{at}.caption.tags_file", "no instruction names {tags}"
        if dataset.tags is not None and dataset.tags.variants == 1 and not dataset.tags.dropout:
            yield f"{at}.tags.variants", "with one variant the tags stay in one order"


def is_set(section: Spec, name: str) -> bool:
    """Whether a recipe sets a field to something other than its default."""
    field: Any = type(section).model_fields[name]
    return name in section.model_fields_set and getattr(section, name) != field.get_default()
