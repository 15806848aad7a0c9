"""A watch on the loss: a training that breaks down stops with a word, and its last good state is kept."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch

from sdbuild.errors import StepError
from sdbuild.storage.phrases import first_few
from sdbuild.training.examples import Batches
from sdbuild.training.objective import Objective

WINDOW = 100
"""Steps whose mean loss is compared: single losses differ by their timesteps a hundred times over."""
RECENT = 10
"""Steps whose mean loss decides whether a state is good enough to be kept as the last one, or has learned nonsense."""


@dataclass(kw_only=True, slots=True)
class Guard:
    """Looks at each step's loss, by what was lost so far alone, so that a resumed training stops where any would."""

    steps: int
    """Of the whole training."""
    rise: float | None
    """How many times the mean loss of the first steps is too much; None for no limit.

    An adapter begins as nothing, so the first steps' loss is about that of the base alone. Where the loss has risen
    within them already, as it does when the learning rate is far too high, that of predicting nothing takes its place.
    """
    nothing_of: Callable[[int], float] | None
    """Mean loss of a step's records if the denoiser predicted zeros; None where that is no measure."""
    clip: float | None
    rate_of: Callable[[int], float]
    names_of: Callable[[int], Sequence[str]]
    kept: Callable[[], str]
    """Says which state is kept, for the message."""
    _records: deque[tuple[int, list[float]]] = field(default_factory=lambda: deque(maxlen=WINDOW))
    _nothing: float | None = None

    def check(self, losses: Sequence[float], norm: float, records: list[float]) -> None:
        """Look at the last of all steps: its mean is the last of `losses`, of its `records`.

        Raises:
            StepError: loss or gradient is not finite, or the loss has risen too far; the message names step, pictures
                and setting.
        """
        step, mean = len(losses) - 1, losses[-1]
        if not (math.isfinite(mean) and math.isfinite(norm)):
            bad = [name for name, loss in zip(self.names_of(step), records, strict=True) if not math.isfinite(loss)]
            what = f"the loss is {mean}" if bad else "the gradient is not finite"
            raise self._broken(step, f"{what} for {_listed(bad or self.names_of(step))}")
        self._records.append((step, records))
        if self.rise is None:
            return
        if len(losses) >= 2 * WINDOW:
            first, last = _mean(losses[:WINDOW]), _mean(losses[-WINDOW:])
            if last > self.rise * first:
                raise self._risen(
                    step, WINDOW, last, f"{last / first:.3g} times that of the first {WINDOW}, {first:.3g}"
                )
        if self.nothing_of is not None and len(losses) >= RECENT and self._useless(losses):
            last = _mean(losses[-RECENT:])
            nothing = _mean([self.nothing_of(each) for each in range(step + 1 - RECENT, step + 1)])
            if last > self.rise * nothing:
                raise self._risen(step, RECENT, last, f"{last / nothing:.3g} times that of predicting nothing at all")

    def doubtful(self, losses: Sequence[float]) -> bool:
        """Whether the loss may have begun to rise, so that this state should not take the place of a good one."""
        if self.rise is None or not losses:
            return False
        if len(losses) >= WINDOW + RECENT and _mean(losses[-RECENT:]) > self.rise * _mean(losses[:WINDOW]):
            return True
        return self._useless(losses)

    def _useless(self, losses: Sequence[float]) -> bool:
        """Whether the last losses are far above those of predicting nothing, as far as the first steps tell."""
        if self.rise is None or self.nothing_of is None:
            return False
        if self._nothing is None:
            self._nothing = _mean([self.nothing_of(step) for step in range(min(RECENT, self.steps))])
        return _mean(losses[-RECENT:]) > self.rise * self._nothing

    def _risen(self, step: int, window: int, mean: float, times: str) -> StepError:
        what = f"the mean loss of the last {window} steps is {mean:.3g}, {times}"
        worst = f"; it is highest for {_listed(self._worst())}"
        return self._broken(step, what + worst, "; train.rising_loss: null goes on all the same")

    def _broken(self, step: int, what: str, otherwise: str = "") -> StepError:
        clip = "set train.clip" if self.clip is None else f"lower train.clip ({self.clip:g})"
        return StepError(
            f"training broke down at step {step + 1} of {self.steps}: {what}",
            f"lower train.learning_rate ({self.rate_of(step):g} there), lengthen train.warmup, {clip}, "
            f"or look at these pictures{otherwise}",
            self.kept(),
        )

    def _worst(self) -> list[str]:
        """Records of the last steps, from the highest mean loss down."""
        seen: dict[str, list[float]] = {}
        for step, records in self._records:
            for name, loss in zip(self.names_of(step), records, strict=True):
                seen.setdefault(name, []).append(loss)
        return sorted(seen, key=lambda name: -sum(seen[name]) / len(seen[name]))


def nothing_of(batches: Batches, objective: Objective) -> Callable[[int], float]:
    """Return the function from a step to the mean loss of its records for a denoiser that predicts zeros."""
    bare = replace(batches, share=None, conditions=lambda texts: {}, base_conditions=None)

    def found(step: int) -> float:
        losses = []
        for batch in bare(step):
            own = objective.losses(torch.zeros_like(batch.x), batch.x, batch.noise, batch.timesteps, batch.mask)
            losses.append(own if batch.weights is None else own * batch.weights)
        return float(torch.cat(losses).mean())

    return found


def _mean(losses: Sequence[float]) -> float:
    return sum(losses) / len(losses)


def _listed(names: Sequence[str]) -> str:
    unique = list(dict.fromkeys(names))
    return first_few(unique)
