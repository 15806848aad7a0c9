"""Order and seeds are functions of (seed, step, record) and of nothing else."""

from __future__ import annotations

from collections import Counter

import pytest

from sdbuild.data.sampler import Sampler, derive

KEYS = [f"0:{number:04x}" for number in range(23)]
BUCKETS = [(64, 64) if number % 3 else (72, 56) for number in range(23)]


def sampler(seed: int = 0, batch: int = 4, repeats: list[int] | None = None) -> Sampler:
    return Sampler(KEYS, BUCKETS, batch=batch, seed=seed, repeats=repeats)


def test_an_epoch_holds_every_record() -> None:
    one = sampler()
    assert one.steps_per_epoch == 2 + 4  # 8 and 15 records in batches of 4
    for epoch in range(3):
        steps = range(epoch * one.steps_per_epoch, (epoch + 1) * one.steps_per_epoch)
        assert Counter(index for step in steps for index in one.batch(step)) == Counter(range(23))


def test_repeats_count_within_an_epoch() -> None:
    repeats = [number % 4 for number in range(23)]
    one = sampler(repeats=repeats)
    drawn = Counter(index for step in range(one.steps_per_epoch) for index in one.batch(step))
    assert drawn == Counter({index: count for index, count in enumerate(repeats) if count})


def test_batches_never_mix_buckets() -> None:
    one = sampler()
    for step in range(50):
        batch = one.batch(step)
        assert 0 < len(batch) <= 4
        assert len({BUCKETS[index] for index in batch}) == 1


def test_a_resumed_sampler_goes_on_as_the_first() -> None:
    straight = [sampler().batch(step) for step in range(40)]
    one = sampler()
    assert [one.batch(step) for step in range(40)] == straight
    assert [sampler().batch(step) for step in range(17, 40)] == straight[17:]
    assert one.batch(3) == straight[3]


def test_the_order_of_the_records_does_not_matter() -> None:
    one = sampler()
    other = Sampler(KEYS[::-1], BUCKETS[::-1], batch=4, seed=0)
    for step in range(20):
        assert [KEYS[index] for index in one.batch(step)] == [KEYS[::-1][index] for index in other.batch(step)]


def test_seeds_and_epochs_shuffle() -> None:
    orders = {tuple(map(tuple, map(sampler(seed).batch, range(6)))) for seed in range(5)}
    assert len(orders) == 5
    one = sampler()
    assert [one.batch(step) for step in range(6)] != [one.batch(step) for step in range(6, 12)]


def test_one_record() -> None:
    one = Sampler(["a"], [0], batch=8, seed=1)
    assert [one.batch(step) for step in range(3)] == [[0], [0], [0]]


def test_the_order_is_the_one_of_this_version() -> None:
    """Golden: a change here changes everyone's adapters."""
    assert [sampler().batch(step) for step in range(3)] == GOLDEN_BATCHES
    assert derive(0, 0, "0:00", "noise") == GOLDEN_SEED


GOLDEN_BATCHES = [[8, 20, 5], [4, 14, 7, 2], [0, 12, 21, 3]]
GOLDEN_SEED = 4927675261055645095


@pytest.mark.parametrize("other", [(1, 0, "k", "p"), (0, 1, "k", "p"), (0, 0, "l", "p"), (0, 0, "k", "q")])
def test_derive_depends_on_all_its_arguments(other: tuple[int, int, str, str]) -> None:
    assert derive(0, 0, "k", "p") != derive(*other)


def test_derive_is_even() -> None:
    values = [derive(0, step, "k", "noise") for step in range(2000)]
    assert all(0 <= value < 2**64 for value in values)
    assert sum(value >> 63 for value in values) == pytest.approx(1000, abs=100)
