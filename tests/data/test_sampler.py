"""Order and seeds are functions of (seed, step, record) and of nothing else."""

from __future__ import annotations

from collections import Counter

import pytest

from sdbuild.data.sampler import Sampler, derive

KEYS = [f"0:{number:04x}" for number in range(23)]
BUCKETS = [(64, 64) if number % 3 else (72, 56) for number in range(23)]


def sampler(seed: int = 0, batch: int = 4, repeats: list[int] | None = None) -> Sampler:
    return Sampler(KEYS, BUCKETS, batch=batch, seed=seed, repeats=repeats)


@pytest.mark.parametrize("batch", [1, 3, 4, 8, 50])
@pytest.mark.parametrize("repeats", [[1] * 23, [number % 4 for number in range(23)]])
def test_every_batch_is_whole_and_records_are_seen_alike(batch: int, repeats: list[int]) -> None:
    """A bucket's last batch of an epoch goes on into the next one, or over several."""
    one = sampler(batch=batch, repeats=repeats)
    sizes = Counter[tuple[int, int]]()
    for bucket, count in zip(BUCKETS, repeats, strict=True):
        sizes[bucket] += count
    seen, steps = Counter[int](), 0
    for epoch in range(1, 30):
        batches = {bucket: -(-epoch * size // batch) for bucket, size in sizes.items()}
        while steps < sum(batches.values()):
            drawn = one.batch(steps)
            assert len(drawn) == batch
            seen.update(drawn)
            steps += 1
        for index, (bucket, count) in enumerate(zip(BUCKETS, repeats, strict=True)):
            whole, begun = divmod(batches[bucket] * batch, sizes[bucket])
            assert whole * count <= seen[index] <= (whole + bool(begun)) * count
        for bucket in sizes:
            assert sum(seen[index] for index in range(23) if BUCKETS[index] == bucket) == batches[bucket] * batch


def test_where_batches_fit_an_epoch_the_order_is_one_by_hand() -> None:
    """Written out from the hashes: what was trained before stays what it is."""
    keys, buckets = KEYS[:20], [number % 5 // 3 for number in range(20)]  # 12 and 8 records
    one, wanted = Sampler(keys, buckets, batch=4, seed=3), []
    for epoch in range(4):
        batches = []
        for bucket in (0, 1):
            names = sorted(
                (f"{key}#0" for key, own in zip(keys, buckets, strict=True) if own == bucket),
                key=lambda name: derive(3, epoch, name, "order"),
            )
            batches += [names[start : start + 4] for start in range(0, len(names), 4)]
        batches.sort(key=lambda names: derive(3, epoch, names[0], "batch order"))
        wanted += [[keys.index(name[:-2]) for name in names] for names in batches]
    assert [one.batch(step) for step in range(20)] == wanted


def test_batches_never_mix_buckets() -> None:
    one = sampler()
    for step in range(50):
        batch = one.batch(step)
        assert len(batch) == 4
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
    assert [one.batch(step) for step in range(3)] == [[0] * 8] * 3


def test_the_order_is_the_one_of_this_version() -> None:
    """Golden: a change here changes everyone's adapters."""
    assert [sampler().batch(step) for step in range(3)] == GOLDEN_BATCHES
    assert derive(0, 0, "0:00", "noise") == GOLDEN_SEED


GOLDEN_BATCHES = [[8, 20, 5, 4], [4, 14, 7, 2], [0, 12, 21, 3]]
GOLDEN_SEED = 4927675261055645095


@pytest.mark.parametrize("other", [(1, 0, "k", "p"), (0, 1, "k", "p"), (0, 0, "l", "p"), (0, 0, "k", "q")])
def test_derive_depends_on_all_its_arguments(other: tuple[int, int, str, str]) -> None:
    assert derive(0, 0, "k", "p") != derive(*other)


def test_derive_is_even() -> None:
    values = [derive(0, step, "k", "noise") for step in range(2000)]
    assert all(0 <= value < 2**64 for value in values)
    assert sum(value >> 63 for value in values) == pytest.approx(1000, abs=100)
