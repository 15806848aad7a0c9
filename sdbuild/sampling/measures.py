"""Whether an adapter has learned its pictures by heart: how near samples are to them, and how much seeds differ.

Pictures are compared as latents, averaged over a few places, where what they show and in which colours weighs more than
single pixels. Distances are told in units of what lies between neighbours among the pictures trained on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from statistics import fmean

import torch
import torch.nn.functional as F
from torch import Tensor

PLACES = 8
"""Latents are averaged over so many places a side."""


def features(latent: Tensor) -> Tensor:
    """Return the vector that stands for a latent [C, h, w]."""
    return F.adaptive_avg_pool2d(latent.float(), PLACES).flatten()


def unit(trained: Sequence[Tensor]) -> float | None:
    """Return the median distance from a trained picture to the nearest other one; None where there is none."""
    if len(trained) < 2:
        return None
    apart = _apart(trained, trained).fill_diagonal_(torch.inf).min(dim=1).values
    found = float(apart.median())
    return found or None


def nearest(samples: Sequence[Tensor], trained: Sequence[Tensor], unit: float) -> float:
    """Return the mean distance from a sample to the nearest trained picture: about 1 for new pictures, 0 for copies."""
    return float(_apart(samples, trained).min(dim=1).values.mean()) / unit


def spread(prompts: Sequence[Sequence[Tensor]], unit: float) -> float | None:
    """Return the mean distance between the samples of a prompt, by seeds: it falls where all come to look alike."""
    found = list(_pairs(prompts))
    return fmean(found) / unit if found else None


def _pairs(prompts: Sequence[Sequence[Tensor]]) -> Iterator[float]:
    for samples in prompts:
        yield from (float((one - other).norm()) for one, other in combinations(samples, 2))


def _apart(one: Sequence[Tensor], other: Sequence[Tensor]) -> Tensor:
    """Return all distances [n, m]."""
    return torch.cdist(torch.stack(list(one)), torch.stack(list(other)), compute_mode="donot_use_mm_for_euclid_dist")


def figures(
    drawn: Mapping[str, Mapping[str, Sequence[Tensor]]], trained: Sequence[Tensor]
) -> dict[str, dict[str, float]] | None:
    """Return both measures by strength; None where there are too few trained pictures.

    Args:
        drawn: latents' features by strength and prompt, a seed each.
        trained: those of the pictures trained on.
    """
    scale = unit(trained)
    if scale is None:
        return None
    found: dict[str, dict[str, float]] = {"nearest": {}, "spread": {}}
    for strength, prompts in drawn.items():
        found["nearest"][strength] = nearest([each for samples in prompts.values() for each in samples], trained, scale)
        apart = spread(list(prompts.values()), scale)
        if apart is not None:
            found["spread"][strength] = apart
    return found
