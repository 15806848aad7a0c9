"""Which batch of a training takes most memory, and what is stored of its pictures."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdbuild import families
from sdbuild.data.buckets import Size
from sdbuild.data.records import ImageRecord
from sdbuild.families.contract import Family
from sdbuild.families.layout import read_config

Shape = tuple[int, ...]
"""Of a latent, [C, h, w]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Largest:
    """The batch that takes most memory."""

    shape: Shape
    """Of its latents."""
    records: int
    """Of which it has so many."""
    masked: bool = False
    """Whether pictures have masks."""


def largest_of(counts: Mapping[Any, float], train: Mapping[str, Any], *, masked: bool = False) -> Largest:
    """Return the batch that takes most memory, of one process where there are several.

    Args:
        counts: records that there are of each shape of latents.
        train: section of a train step's spec.
        masked: whether there are masks.
    """
    share = math.ceil(train["batch"] * train["accumulate"] / train.get("processes", 1))
    shape = max((shape for shape, count in counts.items() if count), key=lambda shape: (math.prod(shape), shape))
    return Largest(shape=shape, records=min(train["batch"], share), masked=masked)


def largest_in(images: Iterable[ImageRecord], spec: Mapping[str, Any], base: Path) -> Largest:
    """Return the batch that takes most memory, before there are latents.

    Args:
        images: rows of `images.jsonl`.
        spec: of the train step.
        base: folder of the base.
    """
    counts: Counter[Size] = Counter()
    masked = False
    for record in images:
        dataset = spec["datasets"][record.dataset]
        masked = masked or record.mask is not None
        if record.split == "train":
            often = spec["train"]["batch"] if "weight" in dataset else dataset["repeats"]
            counts.update(dict.fromkeys({fit.bucket for fit in record.fits}, often))
    shape = shapes(base)
    return largest_of({shape(bucket): often for bucket, often in counts.items()}, spec["train"], masked=masked)


def shapes(base: Path) -> Callable[[Size], Shape]:
    """Return the function from a bucket to the shape of its latents."""
    channels = int(read_config(base, "vae").get("latent_channels", 4))
    factor = families.load(base, weights=False).vae_factor

    def shape(bucket: Size) -> Shape:
        return channels, bucket[1] // factor, bucket[0] // factor

    return shape


def latent_item(family: Family, largest: Largest) -> dict[str, Tensor]:
    """What is stored of one picture, on the device `meta`."""
    latent = torch.empty(largest.shape, device="meta")
    mask = {"mask": torch.empty(1, *largest.shape[1:], device="meta")} if largest.masked else {}
    return {"mean": latent, "logvar": latent, **mask, **geometry(family)}


def geometry(family: Family) -> dict[str, Tensor]:
    """Size and crop of a picture, on the device `meta`, for families that look at them."""
    has = families.describe(family.folder).geometry
    return {"geometry": torch.empty(6, dtype=torch.int64, device="meta")} if has else {}
