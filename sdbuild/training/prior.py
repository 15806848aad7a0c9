"""What keeps the base's knowledge of a class in a training on few pictures (DreamBooth, Ruiz et al. 2023, section 3.2).

Each step sees as many records of the prior as it has pictures, so the loss is the mean of both terms of equation 2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from sdbuild.data.sampler import derive
from sdbuild.training.examples import Example

Choose = Callable[[int], Sequence[Example]]
"""The records of a step."""


@dataclass(kw_only=True, slots=True)
class WithClassPictures:
    """Chooses pictures, and as many of their class, in an order of their own each time all have been seen."""

    choose: Choose
    pictures: Sequence[Example]
    batch: int
    """Pictures a step, at most."""
    seed: int
    _epoch: int = -1
    _order: Sequence[Example] = ()

    def __call__(self, step: int) -> list[Example]:
        """Return the records of a step, those of the prior last."""
        own = self.choose(step)
        first = step * self.batch
        return [*own, *(self._picture(first + index) for index in range(len(own)))]

    def _picture(self, position: int) -> Example:
        epoch, place = divmod(position, len(self.pictures))
        if epoch != self._epoch:
            self._order = sorted(self.pictures, key=lambda each: derive(self.seed, epoch, each.key, "prior order"))
            self._epoch = epoch
        return self._order[place]


@dataclass(frozen=True, kw_only=True, slots=True)
class WithKeptPrediction:
    """Chooses pictures, and the same once more, for which the base's prediction for the class is the target."""

    choose: Choose
    prompt: str
    """Of the class."""
    weight: float

    def __call__(self, step: int) -> list[Example]:
        """Return the records of a step, those of the prior last."""
        own = self.choose(step)
        texts = (self.prompt,)
        return [
            *own,
            *(
                replace(each, key=f"{each.key}/prior", text=self.prompt, texts=texts, weight=self.weight, kept=True)
                for each in own
            ),
        ]
