"""Shares of datasets are exact at any time, and functions of (seed, step) and the records alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator
from itertools import count, islice
from typing import Any

import pytest

from sdbuild.data.shares import WeightedSampler, rates_of
from sdbuild.errors import DataError

CASES: list[dict[str, Any]] = [
    {"records": (7, 53), "weights": {0: 3, 1: 1}},
    {"records": (5, 40), "weights": {0: 0.1, 1: 0.3}},
    {"records": (30, 3, 11), "weights": {0: 1, 1: 2.5, 2: 1}, "buckets": 4, "batch": 3},
    {"records": (4, 4), "weights": {0: 1, 1: 1}, "buckets": 1, "batch": 1},
    {"records": (2, 1), "weights": {0: 1e-3, 1: 1}, "buckets": 2, "batch": 16},
    {"records": (13,), "weights": {0: 7}},
]


class Case:
    def __init__(
        self, records: tuple[int, ...], weights: dict[int, float], buckets: int = 3, batch: int = 4, seed: int = 0
    ) -> None:
        self.datasets = [dataset for dataset, count in enumerate(records) for _ in range(count)]
        self.keys = [f"{dataset}:{number:03}" for number, dataset in enumerate(self.datasets)]
        self.buckets = [number % buckets for number in range(len(self.keys))]
        self.weights, self.size, self.seed = weights, batch, seed

    def sampler(self, order: int = 1) -> WeightedSampler:
        return WeightedSampler(
            self.keys[::order],
            self.buckets[::order],
            self.datasets[::order],
            weights=self.weights,
            batch=self.size,
            seed=self.seed,
        )


@pytest.fixture(params=CASES, ids=lambda case: f"{case['records']}")
def case(request: pytest.FixtureRequest) -> Case:
    return Case(**request.param)


def test_shares_are_exact_at_any_time(case: Case) -> None:
    sampler, seen = case.sampler(), Counter[int]()
    open_places = case.size * len(set(case.buckets))
    for step in range(600):
        seen.update(case.datasets[index] for index in sampler.batch(step))
        for dataset, weight in case.weights.items():
            expected = seen.total() * weight / sum(case.weights.values())
            assert abs(seen[dataset] - expected) <= 1 + open_places


def test_records_of_a_dataset_are_seen_alike(case: Case) -> None:
    """By epochs, which in a bucket's stream follow each other; batches go on over their ends."""
    sampler = case.sampler()
    streams: dict[Hashable, Iterator[int]] = {}

    def stream(bucket: Hashable) -> Iterator[int]:
        own = case.sampler()
        return (index for step in count() for index in own.batch(step) if case.buckets[index] == bucket)

    seen = Counter[int]()
    for epoch in range(6):
        before, after = sampler._seen(epoch), sampler._seen(epoch + 1)
        found = Counter[int]()
        for bucket in after:
            found.update(islice(streams.setdefault(bucket, stream(bucket)), after[bucket] - before[bucket]))
        assert found.keys() == set(range(len(case.keys))), "each record at least once an epoch"
        seen += found
        for dataset in case.weights:
            counts = [seen[index] for index, other in enumerate(case.datasets) if other == dataset]
            assert max(counts) - min(counts) <= 1


def test_batches_never_mix_buckets_and_all_are_whole(case: Case) -> None:
    sampler = case.sampler()
    for step in range(200):
        batch = sampler.batch(step)
        assert len(batch) == case.size
        assert len({case.buckets[index] for index in batch}) == 1


def test_what_was_asked_before_does_not_matter(case: Case) -> None:
    one = case.sampler()
    straight = [one.batch(step) for step in range(150)]
    assert [case.sampler().batch(step) for step in (149, 17, 80)] == [straight[step] for step in (149, 17, 80)]
    assert one.batch(3) == straight[3]
    reversed_, last = case.sampler(order=-1), len(case.keys) - 1
    assert [[last - index for index in reversed_.batch(step)] for step in range(150)] == straight


def test_seeds_and_epochs_shuffle() -> None:
    orders = {tuple(map(tuple, map(Case(**CASES[0], seed=seed).sampler().batch, range(9)))) for seed in range(5)}
    assert len(orders) == 5
    sampler = Case(**CASES[3]).sampler()
    assert len({tuple(map(tuple, map(sampler.batch, range(start, start + 8)))) for start in range(0, 40, 8)}) == 5


def test_an_epoch_is_as_long_as_it_takes_to_see_every_record() -> None:
    case = Case(**CASES[0])
    counts = case.sampler().counts
    assert sum(counts.values()) == pytest.approx(53 * 4)
    assert set(counts) == {0, 1, 2}


def test_the_order_is_the_one_of_this_version() -> None:
    """Golden: a change here changes adapters."""
    sampler = Case(**CASES[0]).sampler()
    assert [sampler.batch(step) for step in (0, 1, 100)] == GOLDEN


GOLDEN = [[3, 0, 6, 3], [2, 5, 11, 5], [0, 6, 0, 3]]


def test_weights_that_no_pass_can_follow_are_refused() -> None:
    assert rates_of({0: 10, 1: 10}, {0: 1.0, 1: 1000.0}) == {0: 1, 1: 1000}
    with pytest.raises(DataError, match=r"datasets\[0\]\.weight: 0\.04 is so little .* pictures long; raise it"):
        rates_of({0: 2, 1: 8}, {0: 0.04, 1: 1e6})
    many = 20_000_000
    assert rates_of({0: many, 1: many}, {0: 1.0, 1: 1.0}) == {0: 1, 1: 1}, "many pictures are no fault of weights"
