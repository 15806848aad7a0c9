"""Which records make up a batch, and the seeds of everything random: pure functions of (seed, step, record).

Nothing here has a state, so a resumed training draws what an undisturbed one would have drawn, and a record's draws do
not depend on its position in a file. Seeds come from BLAKE2b, which is the same on every machine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Sequence


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


class Sampler:
    """Batches of record indexes for every step of a training.

    An epoch holds each record as often as it repeats, in an order of its own. A batch never mixes buckets; what is
    left of a bucket makes a smaller batch, so nothing is dropped. Every epoch has the same number of steps.
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
            batch: records a batch, at most.
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
        self.steps_per_epoch = sum(-(-len(group) // batch) for group in self._groups.values())
        assert self.steps_per_epoch > 0, "no records"
        self._epoch = -1
        self._batches: list[list[int]] = []

    @property
    def counts(self) -> dict[Hashable, float]:
        """Records that an epoch has in each bucket."""
        return {bucket: len(group) for bucket, group in self._groups.items()}

    def batch(self, step: int) -> list[int]:
        """Indexes of the records of a step (from 0); the order of an epoch is worked out at its first step."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._batches, self._epoch = self._order(epoch), epoch
        return list(self._batches[position])

    def _order(self, epoch: int) -> list[list[int]]:
        batches: list[tuple[int, str, list[int]]] = []
        for group in self._groups.values():
            drawn = sorted((derive(self._seed, epoch, name, "order"), name, index) for name, index in group)
            for start in range(0, len(drawn), self._batch):
                chunk = drawn[start : start + self._batch]
                name = chunk[0][1]
                place = derive(self._seed, epoch, name, "batch order")
                batches.append((place, name, [index for _, _, index in chunk]))
        return [indexes for _, _, indexes in sorted(batches)]
