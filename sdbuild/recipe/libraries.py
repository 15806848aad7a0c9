"""Optional libraries and API keys that a recipe needs; nothing is imported."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING

from sdbuild.recipe.captioners import Hosted, OpenAI

if TYPE_CHECKING:
    from sdbuild.recipe.models import Recipe

OPTIMIZERS: Mapping[str, str] = {
    "adamw-8bit": "bitsandbytes",
    "adamw-paged": "bitsandbytes",
    "adamw-8bit-paged": "bitsandbytes",
    "lion-8bit": "bitsandbytes",
    "lion-8bit-paged": "bitsandbytes",
    "prodigy": "pytorch_optimizer",
    "adamw-schedule-free": "pytorch_optimizer",
    "came": "pytorch_optimizer",
}
"""Modules of optimizers, by `train.optimizer`."""
QUANTISED: Mapping[str, str] = {"int8": "bitsandbytes", "nf4": "bitsandbytes"}
"""Modules of number formats, by `train.base_precision`."""
TRACKERS: Mapping[str, str] = {
    "tensorboard": '"sdbuild[trackers]"',
    **{name: name for name in ("wandb", "mlflow", "comet_ml", "aim", "clearml", "trackio", "swanlab")},
}
"""What brings a tracker, by `train.trackers`; its module has the tracker's name."""


def tracker_missing(name: str) -> str | None:
    """What to say of a tracker that is not installed."""
    if find_spec(name) is not None:
        return None
    return f"train.trackers: {name} is not installed, so nothing is told to it: pip install {TRACKERS[name]}"


def missing(recipe: Recipe) -> Iterator[str]:
    """Say what training a recipe needs and this machine lacks, with the command that brings it."""
    train = recipe.train
    wanted = {
        f"train.optimizer: {train.optimizer}": OPTIMIZERS.get(train.optimizer),
        f"train.base_precision: {train.base_precision}": QUANTISED.get(train.base_precision or ""),
    }
    for setting, module in wanted.items():
        if module is not None and find_spec(module) is None:
            yield f'{setting} needs {module}, which is not installed: pip install "sdbuild[optimizers]"'
    yield from filter(None, map(tracker_missing, train.trackers))


def keys_missing(recipe: Recipe) -> Iterator[str]:
    """Say what a recipe needs to ask models for captions and this machine lacks: a client, or a key."""
    for index, dataset in enumerate(recipe.datasets):
        caption = dataset.caption
        if not isinstance(caption, Hosted):
            continue
        field = f"datasets[{index}].caption"
        if find_spec(caption.source) is None:
            yield f'{field}: the client of {caption.source} is not installed: pip install "sdbuild[{caption.source}]"'
        own_server = isinstance(caption, OpenAI) and (caption.base_url or os.environ.get("OPENAI_BASE_URL"))
        variable = caption.key_variable if isinstance(caption, OpenAI) else "ANTHROPIC_API_KEY"
        if not own_server and not os.environ.get(variable, "").strip():
            yield f"{field}: {variable} is not set; no model can be asked until it is in the environment"
