"""Aspect buckets: the sizes that pictures are trained in, and how a picture is scaled and cropped into one.

All arithmetic is on integers, so every machine decides alike.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from sdbuild.data.sampler import derive

Size = tuple[int, int]
"""Width and height in pixels."""

CROPS: dict[str, tuple[int, int]] = {"center": (1, 1), "top": (1, 0), "bottom": (1, 2), "left": (0, 1), "right": (2, 1)}
"""Where the bucket lies in the scaled picture, in halves of the room that is left (across, down)."""

SPREAD = 0x9E3779B97F4A7C15
"""2⁶⁴ over the golden ratio: its multiples modulo 2⁶⁴ lie evenly, however many of them are taken."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fit:
    """How a picture comes into its bucket."""

    bucket: Size
    resize: Size
    """Size to scale to; covers the bucket, and touches it in one direction."""
    crop: tuple[int, int]
    """Left and top of the bucket in the scaled picture."""


@lru_cache(maxsize=64)
def bucket_sizes(resolution: int, step: int, max_aspect: float) -> tuple[Size, ...]:
    """All buckets, from the narrowest to the widest.

    Each side is a multiple of `step`, the area is at most resolution², the longer side at most `max_aspect` times the
    shorter, and none fits into another. The square is always among them.

    Args:
        resolution: side of the square bucket in pixels, a multiple of `step`.
        step: in pixels.
        max_aspect: at least 1.
    """
    assert resolution >= step > 0, (resolution, step)
    assert resolution % step == 0, (resolution, step)
    assert max_aspect >= 1, max_aspect
    tall = []
    width, last_height = resolution, 0
    while width > 0:
        height = resolution * resolution // width // step * step
        if height > max_aspect * width:
            break
        if height > last_height:
            tall.append((width, height))
            last_height = height
        width -= step
    wide = [(height, width) for width, height in tall if width != height]
    return tuple(sorted([*tall, *wide]))


@lru_cache(maxsize=65536)
def nearest_bucket(width: int, height: int, sizes: tuple[Size, ...]) -> Size:
    """The bucket that keeps most of a picture; of equals the larger, then the wider one."""
    best, kept, of = sizes[0], 0, 1
    for size in sizes:
        across, down = size[0] * height, size[1] * width
        share, whole = min(across, down), max(across, down)  # part of the picture inside the bucket: share / whole
        difference = share * of - kept * whole
        if difference > 0 or (difference == 0 and (size[0] * size[1], size[0]) > (best[0] * best[1], best[0])):
            best, kept, of = size, share, whole
    return best


def fit_to_bucket(width: int, height: int, bucket: Size, crop: str = "center") -> Fit:
    """How to scale a picture so that it just covers its bucket, and where to cut.

    Args:
        width: of the picture, in pixels.
        height: likewise.
        bucket: from `nearest_bucket`.
        crop: a key of `CROPS`.
    """
    if bucket[0] * height >= bucket[1] * width:
        resize = (bucket[0], max(bucket[1], _round(height * bucket[0], width)))
    else:
        resize = (max(bucket[0], _round(width * bucket[1], height)), bucket[1])
    across, down = CROPS[crop]
    left = (resize[0] - bucket[0]) * across // 2
    top = (resize[1] - bucket[1]) * down // 2
    return Fit(bucket=bucket, resize=resize, crop=(left, top))


def random_fits(width: int, height: int, bucket: Size, digest: str, count: int) -> tuple[Fit, ...]:
    """Cut a picture at places that are drawn from its digest and lie evenly over the room there is.

    A larger `count` adds places to those of a smaller one. There are fewer where the room has not so many.
    """
    resize = fit_to_bucket(width, height, bucket).resize
    first = derive(0, 0, digest, "crop")
    crops: dict[tuple[int, int], None] = {}
    for index in range(count):
        place = (first + index * SPREAD) % 2**64
        left, top = (place * (scaled - side + 1) >> 64 for scaled, side in zip(resize, bucket, strict=True))
        crops[left, top] = None
    return tuple(Fit(bucket=bucket, resize=resize, crop=crop) for crop in crops)


def _round(numerator: int, denominator: int) -> int:
    """The quotient, rounded half up."""
    return (2 * numerator + denominator) // (2 * denominator)


def unfit(sizes: Iterable[Size], multiple: int) -> str | None:
    """What is wrong with buckets on a base whose pictures have sides of multiples of a number; None if nothing is."""
    odd = sorted({size for size in sizes if any(side % multiple for side in size)})
    if not odd:
        return None
    shown = ", ".join(f"{width}×{height}" for width, height in odd)
    return f"buckets {shown}: sides must be multiples of {multiple} for this base; choose such a step"
