"""Which records make up a batch, and the seeds of everything random: pure functions of (seed, step, record).

Nothing here has a state, so a resumed training draws what an undisturbed one would have drawn, and a record's draws do
not depend on its position in a file. Seeds come from BLAKE2b, which is the same on every machine.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Hashable, Sequence


def derive(seed: int, step: int, key: str, purpose: str) -> int:
    """An integer in [0, 2**64) for one random decision.

    Args:
        seed: of the training.
        step: of the training, or an epoch.
        key: the record's (`ImageRecord.key`), or anything else that tells decisions apart.
        purpose: e.g. `noise`, `timestep`, `dropout`.
    """
    text = f"{seed}\0{step}\0{purpose}\0{key}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def epoch_of(step: int, before: Callable[[int], int]) -> int:
    """Return the epoch of a step, from the number of steps before an epoch; some epochs may have no step."""
    end = 1
    while before(end) <= step:
        end *= 2
    return bisect_right(range(end), step, key=before) - 1


class Sampler:
    """Batches of record indexes for every step of a training.

    An epoch holds each record as often as it repeats, in an order of its own. A batch never mixes buckets, and all are
    whole: a bucket's last batch of an epoch is filled with its first records of the next one, and where a bucket has
    fewer records than a batch, of several. A batch belongs to the epoch of its first record.
    """

    def __init__(
        self,
        keys: Sequence[str],
        buckets: Sequence[Hashable],
        *,
        batch: int,
        seed: int,
        repeats: Sequence[int] | None = None,
    ) -> None:
        """Describe the records, all sequences in the same order.

        Args:
            keys: names of the records, each once.
            buckets: what must be equal within a batch, e.g. the latent's size.
            batch: records a batch.
            seed: of the training.
            repeats: how often a record comes in an epoch; once without it, never for 0.
        """
        repeats = [1] * len(keys) if repeats is None else repeats
        assert len(keys) == len(buckets) == len(repeats), "one bucket and one count a record"
        assert batch > 0, batch
        assert len(set(keys)) == len(keys), "each record once"
        self._seed = seed
        self._batch = batch
        self._groups: dict[Hashable, list[tuple[str, int]]] = {}
        for index, (key, bucket, count) in enumerate(zip(keys, buckets, repeats, strict=True)):
            group = self._groups.setdefault(bucket, [])
            group += [(f"{key}#{occurrence}", index) for occurrence in range(count)]
        assert any(self._groups.values()), "no records"
        self._first = 0
        self._batches: list[list[int]] = []
        self._orders: dict[tuple[Hashable, int], list[tuple[str, int]]] = {}

    @property
    def counts(self) -> dict[Hashable, float]:
        """Records that an epoch has in each bucket."""
        return {bucket: len(group) for bucket, group in self._groups.items()}

    def batch(self, step: int) -> list[int]:
        """Indexes of the records of a step (from 0); the order of an epoch is worked out at its first step."""
        if not self._first <= step < self._first + len(self._batches):
            epoch = epoch_of(step, self._before)
            self._batches, self._first = self._order(epoch), self._before(epoch)
        return list(self._batches[step - self._first])

    def _before(self, epoch: int) -> int:
        """Batches that belong to earlier epochs."""
        return sum(-(-epoch * len(group) // self._batch) for group in self._groups.values())

    def _order(self, epoch: int) -> list[list[int]]:
        self._orders = {known: order for known, order in self._orders.items() if known[1] >= epoch}
        batches: list[tuple[int, str, list[int]]] = []
        for bucket, group in self._groups.items():
            first, end = (-(-each * len(group) // self._batch) for each in (epoch, epoch + 1))
            for number in range(first, end):
                start = number * self._batch
                chunk = [self._drawn(bucket, place) for place in range(start, start + self._batch)]
                name = chunk[0][0]
                place = derive(self._seed, epoch, name, "batch order")
                batches.append((place, name, [index for _, index in chunk]))
        return [indexes for _, _, indexes in sorted(batches)]

    def _drawn(self, bucket: Hashable, place: int) -> tuple[str, int]:
        """A bucket's record at a place in its epochs, one after the other."""
        group = self._groups[bucket]
        epoch, place = divmod(place, len(group))
        if (bucket, epoch) not in self._orders:
            drawn = sorted((derive(self._seed, epoch, name, "order"), name, index) for name, index in group)
            self._orders[bucket, epoch] = [(name, index) for _, name, index in drawn]
        return self._orders[bucket, epoch][place]
