"""Learning rates over the steps, as shares of the highest: pure functions of one signature."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

Schedule = Callable[[float], float]
"""Share of the learning rate from the progress after the warmup, 0 at its end and 1 after the last step."""


def constant(progress: float) -> float:
    """Stay."""
    return 1.0


def cosine(progress: float) -> float:
    """Half a cosine down to zero (Loshchilov and Hutter 2017, eq. 5, without restarts)."""
    return 0.5 * (1 + math.cos(math.pi * progress))


def linear(progress: float) -> float:
    """Fall to zero in a straight line."""
    return 1 - progress


SCHEDULES: Mapping[str, Schedule] = {"constant": constant, "cosine": cosine, "linear": linear}
"""By the recipe's `train.schedule`."""


def rate_at(step: int, *, schedule: str, learning_rate: float, steps: int, warmup: int) -> float:
    """Return the learning rate of a step (0-based): rises linearly during the warmup, then follows the schedule.

    The first step of a warmup already moves and the last step of a falling schedule still does.
    """
    if step < warmup:
        return learning_rate * (step + 1) / (warmup + 1)
    return learning_rate * SCHEDULES[schedule]((step - warmup) / max(1, steps - warmup))
