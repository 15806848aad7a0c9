"""Batches in which datasets have exact shares, whatever their numbers of records: stateless, as `sampler.Sampler`.

In an epoch every record is seen `rate` times, a number of at least 1 that differs by dataset and need not be whole.
Epoch e holds record i of a dataset of N records floor(rate (e + 1) + r/N) - floor(rate e + r/N) times, where r is the
record's rank in a drawn order. By Hermite's identity all records of the dataset together are then seen
floor(N rate (e + 1)) - floor(N rate e) times: what the share says, to less than one record, after any number of epochs.
Within an epoch, occurrences of a record and records of a dataset lie evenly. Batches are whole, as those of `Sampler`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from math import ceil, floor

from sdbuild.data.sampler import derive, epoch_of
from sdbuild.errors import DataError, Problem

LONGEST_PASS = 10_000_000
"""Records of a pass; the order of more does not fit into the memory of small machines."""


def rates_of(sizes: Mapping[int, int], weights: Mapping[int, float]) -> dict[int, Fraction]:
    """How often a pass sees each record, on average, by dataset; at least once.

    Args:
        sizes: number of records of each dataset.
        weights: of the datasets, above 0.

    Raises:
        DataError: weights lie so far apart that a pass would be longer than `LONGEST_PASS`.
    """
    # Decimal notation gives the fraction that was written: 0.1 is one tenth.
    shares = {dataset: Fraction(repr(float(weights[dataset]))) / size for dataset, size in sizes.items()}
    rarest = min(shares, key=lambda dataset: shares[dataset])
    rates = {dataset: share / shares[rarest] for dataset, share in shares.items()}
    length = sum(rates[dataset] * size for dataset, size in sizes.items())
    if length > max(LONGEST_PASS, sum(sizes.values())):
        message = (
            f"{weights[rarest]:g} is so little beside the other weights that a pass over all pictures would be "
            f"{float(length):,.0f} pictures long; raise it, or lower the others"
        )
        raise DataError([Problem(field=f"datasets[{rarest}].weight", message=message)])
    return rates


@dataclass(kw_only=True, slots=True)
class _Dataset:
    rate: Fraction
    """How often an epoch holds each of its records, on average."""
    ranks: dict[int, int] = field(default_factory=dict)
    """Of its records' indexes, in the order of the ranks."""
    by_bucket: dict[Hashable, list[int]] = field(default_factory=dict)
    """The same ranks in each bucket."""

    def before(self, epoch: int, ranks: Sequence[int]) -> int:
        """How often records of some ranks, sorted, are seen before an epoch."""
        passed = self.rate * epoch
        whole = floor(passed)
        return len(ranks) * (whole + 1) - bisect_left(ranks, ceil(len(self.ranks) * (whole + 1 - passed)))

    def times(self, epoch: int, rank: int) -> int:
        """How often an epoch holds a record."""
        return self.before(epoch + 1, [rank]) - self.before(epoch, [rank])


class WeightedSampler:
    """Batches of record indexes for every step of a training, where datasets have weights."""

    def __init__(
        self,
        keys: Sequence[str],
        buckets: Sequence[Hashable],
        datasets: Sequence[int],
        *,
        weights: Mapping[int, float],
        batch: int,
        seed: int,
    ) -> None:
        """Describe the records, all sequences in the same order.

        Args:
            keys: names of the records, each once.
            buckets: what must be equal within a batch.
            datasets: that the records belong to.
            weights: of the datasets, above 0; their shares are in proportion.
            batch: records a batch.
            seed: of the training.
        """
        assert len(keys) == len(buckets) == len(datasets) > 0, "one bucket and one dataset a record"
        assert len(set(keys)) == len(keys), "each record once"
        assert batch > 0, batch
        self._keys, self._buckets, self._batch, self._seed = keys, buckets, batch, seed
        drawn = sorted(range(len(keys)), key=lambda index: (derive(seed, 0, keys[index], "rank"), keys[index]))
        members: dict[int, list[int]] = {}
        for index in drawn:
            members.setdefault(datasets[index], []).append(index)
        rates = rates_of({dataset: len(found) for dataset, found in members.items()}, weights)
        self._datasets: list[_Dataset] = []
        for dataset in sorted(members):
            found = _Dataset(rate=rates[dataset])
            for rank, index in enumerate(members[dataset]):
                found.ranks[index] = rank
                found.by_bucket.setdefault(buckets[index], []).append(rank)
            self._datasets.append(found)
        self._first = 0
        self._batches: list[list[int]] = []
        self._orders: dict[int, Mapping[Hashable, Sequence[tuple[int, int]]]] = {}

    @property
    def counts(self) -> dict[Hashable, float]:
        """Records that an epoch has in each bucket, on average."""
        found: dict[Hashable, float] = {}
        for dataset in self._datasets:
            for bucket, ranks in dataset.by_bucket.items():
                found[bucket] = found.get(bucket, 0) + float(dataset.rate * len(ranks))
        return found

    def batch(self, step: int) -> list[int]:
        """Indexes of the records of a step (from 0); the order of an epoch is worked out at its first step."""
        if not self._first <= step < self._first + len(self._batches):
            epoch = epoch_of(step, self._before)
            self._batches, self._first = self._order(epoch), self._before(epoch)
        return list(self._batches[step - self._first])

    def _seen(self, epoch: int) -> dict[Hashable, int]:
        """Records of each bucket that are seen before an epoch."""
        counts: dict[Hashable, int] = {}
        for dataset in self._datasets:
            for bucket, ranks in dataset.by_bucket.items():
                counts[bucket] = counts.get(bucket, 0) + dataset.before(epoch, ranks)
        return counts

    def _before(self, epoch: int) -> int:
        """Batches that belong to earlier epochs."""
        return sum(-(-count // self._batch) for count in self._seen(epoch).values())

    def _order(self, epoch: int) -> list[list[int]]:
        self._orders = {known: order for known, order in self._orders.items() if known >= epoch}
        seen = self._seen(epoch)
        batches: list[tuple[int, list[int]]] = []
        for bucket, order in self._drawn(epoch).items():
            for start in range(-seen[bucket] % self._batch, len(order), self._batch):
                chunk, later = list(order[start : start + self._batch]), epoch
                while len(chunk) < self._batch:  # every record is seen in every epoch, so this ends
                    later += 1
                    chunk += self._drawn(later)[bucket][: self._batch - len(chunk)]
                batches.append((chunk[0][0], [index for _, index in chunk]))
        return [indexes for _, indexes in sorted(batches)]

    def _drawn(self, epoch: int) -> Mapping[Hashable, Sequence[tuple[int, int]]]:
        """Places in an epoch with the records there, of each bucket in order."""
        if epoch in self._orders:
            return self._orders[epoch]
        placed: list[tuple[float, str, int]] = []
        for dataset in self._datasets:
            drawn = sorted(
                ((occurrence + derive(self._seed, epoch, name, "order") / 2**64) / times, name, index)
                for index, rank in dataset.ranks.items()
                for times in [dataset.times(epoch, rank)]
                for occurrence in range(times)
                for name in [f"{self._keys[index]}#{occurrence}"]
            )
            placed += (((place + 0.5) / len(drawn), name, index) for place, (_, name, index) in enumerate(drawn))
        found: dict[Hashable, list[tuple[int, int]]] = {bucket: [] for bucket in self._buckets}
        for place, (_, _, index) in enumerate(sorted(placed)):
            found[self._buckets[index]].append((place, index))
        self._orders[epoch] = found
        return found
