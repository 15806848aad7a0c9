"""Properties of buckets, over many settings and sizes."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise, product

import pytest

from sdbuild.data.buckets import CROPS, bucket_sizes, fit_to_bucket, nearest_bucket, random_fits

SETTINGS = [
    (resolution, step, aspect)
    for resolution, step, aspect in product((64, 256, 512, 1024), (8, 32, 64), (1, 1.5, 2, 4))
    if resolution % step == 0
]
SHAPES = [(1, 1), (64, 64), (100, 99), (99, 100), (640, 480), (480, 640), (1920, 817), (7, 2000), (2000, 7), (513, 511)]


def test_buckets_of_the_documented_example() -> None:
    expected = ((48, 80), (56, 72), (64, 64), (72, 56), (80, 48))
    assert bucket_sizes(64, 8, 2) == expected


@pytest.mark.parametrize("resolution", sorted({setting[0] for setting in SETTINGS}))
def test_buckets_keep_their_bounds(resolution: int) -> None:
    for step, aspect in {setting[1:] for setting in SETTINGS if setting[0] == resolution}:
        sizes = bucket_sizes(resolution, step, aspect)
        assert (resolution, resolution) in sizes
        assert len(set(sizes)) == len(sizes)
        for width, height in sizes:
            assert width * height <= resolution * resolution
            assert width % step == height % step == 0
            assert max(width, height) <= aspect * min(width, height)
            assert (height, width) in sizes
        for one, other in product(sizes, sizes):
            assert one == other or one[0] > other[0] or one[1] > other[1], "none fits into another"


def test_the_nearest_bucket_is_nearest() -> None:
    def distance(size: tuple[int, int], shape: tuple[int, int]) -> Fraction:
        ratio = Fraction(size[0] * shape[1], size[1] * shape[0])
        return max(ratio, 1 / ratio)

    for setting, shape in product(SETTINGS, SHAPES):
        sizes = bucket_sizes(*setting)
        nearest = distance(nearest_bucket(*shape, sizes), shape)
        assert nearest == min(distance(size, shape) for size in sizes), (setting, shape)


@pytest.mark.parametrize("crop", CROPS)
def test_the_fit_covers_the_bucket(crop: str) -> None:
    for shape, bucket in product(SHAPES, bucket_sizes(256, 64, 4)):
        fit = fit_to_bucket(*shape, bucket, crop)
        room = (fit.resize[0] - bucket[0], fit.resize[1] - bucket[1])
        assert min(room) == 0
        assert 0 <= fit.crop[0] <= room[0]
        assert 0 <= fit.crop[1] <= room[1]
        exact = Fraction(shape[0], shape[1]) * fit.resize[1]
        assert room[1] > 0 or room[0] == 0 or abs(fit.resize[0] - exact) <= Fraction(1, 2)


def test_where_the_crop_lies() -> None:
    crops = {crop: fit_to_bucket(100, 300, (50, 50), crop).crop for crop in CROPS}
    assert crops == {"center": (0, 50), "top": (0, 0), "bottom": (0, 100), "left": (0, 50), "right": (0, 50)}
    crops = {crop: fit_to_bucket(300, 100, (50, 50), crop).crop for crop in CROPS}
    assert crops == {"center": (50, 0), "top": (50, 0), "bottom": (50, 0), "left": (0, 0), "right": (100, 0)}


def test_a_picture_of_the_bucket_s_size_stays_as_it_is() -> None:
    fit = fit_to_bucket(64, 64, nearest_bucket(64, 64, bucket_sizes(64, 8, 2)))
    assert (fit.bucket, fit.resize, fit.crop) == ((64, 64), (64, 64), (0, 0))


def test_random_crops_lie_evenly_and_depend_on_the_digest() -> None:
    fits = random_fits(300, 100, (50, 50), "digest", 8)
    assert {(fit.bucket, fit.resize, fit.crop[1]) for fit in fits} == {((50, 50), (150, 50), 0)}
    lefts = sorted(fit.crop[0] for fit in fits)
    assert lefts[0] >= 0
    assert lefts[-1] <= 100
    assert max(after - before for before, after in pairwise([0, *lefts, 100])) <= 30
    assert fits != random_fits(300, 100, (50, 50), "other", 8)
    assert random_fits(300, 100, (50, 50), "digest", 3) == fits[:3], "more crops add to fewer"


def test_there_are_no_more_crops_than_places() -> None:
    assert len(random_fits(64, 64, (32, 32), "digest", 5)) == 1
    assert {fit.crop for fit in random_fits(32, 34, (32, 32), "digest", 40)} == {(0, 0), (0, 1), (0, 2)}
