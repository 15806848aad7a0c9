"""How often a training sees each picture, and a warning where that is more than usual."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from sdbuild.data.records import ImageRecord
from sdbuild.data.shares import rates_of
from sdbuild.errors import DataError, Problem
from sdbuild.recipe.models import Recipe


def views_of(recipe: Recipe, trained: Iterable[ImageRecord]) -> dict[int, float]:
    """How often each picture is seen, on average, by its dataset's index.

    Args:
        recipe: with the training's length, and the datasets' repeats or weights.
        trained: pictures that are not held out.
    """
    pictures, shares = Counter[int](), Counter[int]()
    for record in trained:
        pictures[record.dataset] += 1
        shares[record.dataset] += len({fit.bucket for fit in record.fits})
    for index, dataset in enumerate(recipe.datasets):
        shares[index] *= dataset.repeats
    parts: dict[int, float] = dict(shares)
    weights = {index: dataset.weight for index, dataset in enumerate(recipe.datasets) if dataset.weight is not None}
    if weights:
        parts = {index: weights[index] if pictures[index] else 0.0 for index in weights}
    whole = sum(parts.values())
    seen = recipe.train.steps * recipe.train.batch * recipe.train.accumulate
    return {index: seen * parts[index] / whole / pictures[index] for index in parts if pictures[index] and whole}


def weights_far_apart(recipe: Recipe, trained: Iterable[ImageRecord]) -> list[Problem]:
    """Problems with weights of datasets that no training could follow."""
    sizes = Counter(record.dataset for record in trained)
    weights = {index: dataset.weight for index, dataset in enumerate(recipe.datasets) if dataset.weight is not None}
    try:
        if sizes and sizes.keys() <= weights.keys():
            rates_of(sizes, weights)
    except DataError as error:
        return list(error.problems)
    return []


def seen_too_often(recipe: Recipe, trained: Iterable[ImageRecord]) -> Iterator[str]:
    """Warn of datasets whose pictures are seen more often than usual, unless the training stops early."""
    records = list(trained)
    low, most = recipe.method.usual.views
    if recipe.train.early_stop is not None:
        return
    for index, views in views_of(recipe, records).items():
        if views > most:
            pictures = sum(record.dataset == index for record in records)
            train = recipe.train
            size = f"{train.batch}" + (f" x {train.accumulate}" if train.accumulate > 1 else "")
            yield (
                f"{train.steps} steps of {size} see each of the {pictures} pictures of {recipe.datasets[index].path} "
                f"{views:,.0f} times; {recipe.method.kind} usually takes {low} to {most:,}, and learns pictures by "
                "heart with more: lower train.steps, or add pictures"
            )
