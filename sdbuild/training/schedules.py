"""Learning rates over the steps, as shares of the highest: pure functions of one signature."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

Schedule = Callable[..., float]
"""Share of the learning rate from the progress after the warmup, 0 at its end and 1 after the last step.

Settings are keywords, which each schedule picks from.
"""


def constant(progress: float, **_: float) -> float:
    """Stay."""
    return 1.0


def cosine(progress: float, **_: float) -> float:
    """Half a cosine down to zero (Loshchilov and Hutter 2017, eq. 5, without restarts)."""
    return 0.5 * (1 + math.cos(math.pi * progress))


def linear(progress: float, **_: float) -> float:
    """Fall to zero in a straight line."""
    return 1 - progress


def polynomial(progress: float, *, power: float, **_: float) -> float:
    """Fall to zero as (1 - progress)^power (Chen et al. 2017, "DeepLab", section 4.1)."""
    return float((1 - progress) ** power)


def restarts(progress: float, *, cycles: int, **_: float) -> float:
    """Several falls like `cosine`, of equal length (Loshchilov and Hutter 2017, eq. 5 with T_mult = 1)."""
    return cosine(round(cycles * progress, 9) % 1.0)


SCHEDULES: Mapping[str, Schedule] = {
    "constant": constant,
    "cosine": cosine,
    "linear": linear,
    "polynomial": polynomial,
    "restarts": restarts,
}
"""By the recipe's `train.schedule`."""


def rate_at(
    step: int, *, schedule: str, learning_rate: float, steps: int, warmup: int, power: float = 1.0, cycles: int = 1
) -> float:
    """Return the learning rate of a step (0-based): rises linearly during the warmup, then follows the schedule.

    The first step of a warmup already moves and the last step of a falling schedule still does.
    """
    if step < warmup:
        return learning_rate * (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, steps - warmup)
    return learning_rate * SCHEDULES[schedule](progress, power=power, cycles=cycles)
