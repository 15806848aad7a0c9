"""Learning rates: those of recipes that say none, and those that are far from what methods are trained with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from sdbuild.methods.spec import Usual
from sdbuild.recipe.methods import SPECS
from sdbuild.recipe.places import embedded

if TYPE_CHECKING:
    from sdbuild.recipe.models import Recipe

SCALES: Mapping[str, float] = {"lion-8bit": 0.2, "lion-8bit-paged": 0.2, "came": 0.1}
"""Rates over AdamW's, where they differ: Lion's steps are signs, and its rates 3 to 10 times smaller (Chen et al.,
2023, section 5); CAME's first steps are some ten times as large."""
PRODIGY = Usual(rate=1.0, rates=(0.1, 1.0))
"""A factor on the rate that it finds (Mishchenko and Defazio, 2024), whatever the method."""
UNUSUAL = frozenset({"sgd"})
"""Optimizers whose rate depends on the size of gradients, so that none is usual."""
FAR = 3.0
"""Times that a rate may lie outside the usual range."""
SMALL_BASE = 20.0
"""Times that the weights of an embedded base, a few millions of them, take higher rates when they are trained
themselves; measured on `emoji-64`."""


def usual_of(method: Usual, optimizer: str) -> Usual | None:
    """What a method is trained with by an optimizer; None where nothing is usual."""
    if optimizer in UNUSUAL:
        return None
    if optimizer == "prodigy":
        return PRODIGY
    scale = SCALES.get(optimizer, 1.0)
    low, high = method.rates
    return Usual(rate=method.rate * scale, rates=(low * scale, high * scale))


def with_usual_rate(recipe: Any, method: str) -> Any:
    """A recipe as it is written, with the usual rate where it says none; `method` is the kind without a section."""
    if not isinstance(recipe, Mapping):
        return recipe
    train, section = recipe.get("train", {}), recipe.get("method", {"kind": method})
    if not isinstance(train, Mapping) or not isinstance(section, Mapping) or "learning_rate" in train:
        return recipe
    kinds = {spec.model_fields["kind"].default: spec.usual for spec in SPECS}
    kind, optimizer = section.get("kind"), train.get("optimizer", "adamw")
    if not isinstance(kind, str) or not isinstance(optimizer, str) or kind not in kinds:
        return recipe  # which is told elsewhere
    usual = usual_of(kinds[kind], optimizer)
    return recipe if usual is None else {**recipe, "train": {**train, "learning_rate": usual.rate}}


def rate_warnings(recipe: Recipe) -> Iterator[str]:
    """Say which rates are far from the usual ones."""
    train, method = recipe.train, recipe.method
    if train.optimizer in UNUSUAL:
        if "learning_rate" not in train.model_fields_set:
            yield (
                f"train.optimizer {train.optimizer} has no usual learning rate, and {train.learning_rate:g} hardly "
                "learns anything; set train.learning_rate"
            )
        return
    own = train.learning_rates
    denoiser = train.learning_rate if own.denoiser is None else own.denoiser
    field = "learning_rate" if own.denoiser is None else "learning_rates.denoiser"
    checked = [(field, denoiser, method.usual)]
    if own.text_encoder is not None:
        checked.append(("learning_rates.text_encoder", own.text_encoder, method.usual))
    if own.embeddings is not None:
        checked.append(("learning_rates.embeddings", own.embeddings, method.usual_words))
    for field, rate, wanted in checked:
        usual = usual_of(wanted, train.optimizer)
        assert usual is not None
        low, high = usual.rates
        most = high * (SMALL_BASE if method.trains_base and recipe.base.model in embedded() else 1)
        if low / FAR <= rate <= most * FAR:
            continue
        by = "" if train.optimizer == "adamw" else f" with {train.optimizer}"
        yield (
            f"train.{field} {rate:g} is far {'below' if rate < low else 'above'} the usual range of {method.kind}"
            f"{by}, {low:g} to {high:g}; without the key it is {usual.rate:g}"
        )
