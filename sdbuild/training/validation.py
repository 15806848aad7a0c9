"""Loss on held-out records with fixed noise and timesteps, so that numbers of different builds can be compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sdbuild.training.examples import Batch, Conditions, Example, geometry, masks
from sdbuild.training.randomness import fixed_draw


@dataclass(frozen=True, kw_only=True, slots=True)
class Validation:
    """The held-out records and how often each is looked at."""

    examples: Sequence[Example]
    latent: Callable[[str], Mapping[str, Tensor]]
    """Reads the latent item of a key."""
    scale: Callable[[Tensor], Tensor]
    conditions: Conditions
    timesteps: int
    draws: int
    batch: int
    device: torch.device

    @torch.no_grad()
    def __call__(self, losses_of: Callable[[Batch], Tensor], look: Callable[[], None] = lambda: None) -> float:
        """Return the mean loss over all records and draws; `look` is called before each batch and may raise."""
        total = torch.zeros((), dtype=torch.float64)
        count = 0
        for batch in self.batches():
            look()
            losses = losses_of(batch)
            total += losses.double().sum().cpu()
            count += len(losses)
        return float(total) / count

    def batches(self) -> Iterator[Batch]:
        """Yield all records and draws, one shape at a time, with latents at their mean."""
        todo: dict[tuple[int, ...], list[tuple[Example, int]]] = {}
        for example in sorted(self.examples, key=lambda example: example.key):
            todo.setdefault(example.shape, []).extend((example, index) for index in range(self.draws))
        for shape in sorted(todo):
            pairs = todo[shape]
            for start in range(0, len(pairs), self.batch):
                yield self._batch(pairs[start : start + self.batch])

    def _batch(self, pairs: Sequence[tuple[Example, int]]) -> Batch:
        drawn = [
            fixed_draw(example.digest, index, shape=example.shape, timesteps=self.timesteps, draws=self.draws)
            for example, index in pairs
        ]
        items = [self.latent(example.latents[0]) for example, _ in pairs]
        noise = torch.stack([noise for _, noise in drawn]).to(self.device)
        return Batch(
            x=self.scale(torch.stack([item["mean"] for item in items])).to(self.device),
            noise=noise,
            shown=noise,
            timesteps=torch.tensor([timestep for timestep, _ in drawn]).to(self.device),
            condition=self.conditions([example.text for example, _ in pairs]) | geometry(items, self.device),
            mask=masks([example for example, _ in pairs], items, self.device),
        )
