"""How often each timestep is seen: quantile functions, from a uniform number to a share of the way to noise.

A share is 0 at the picture and 1 at noise. Drawing by quantiles makes one uniform number decide a timestep.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from statistics import NormalDist
from typing import Any

from sdbuild.families.contract import FlowSchedule, Schedule

Quantile = Callable[..., float]
"""Share in [0, 1] from a number in [0, 1); settings are keywords."""

_SMALLEST = 2.0**-54


def uniform(number: float) -> float:
    """Every share as often (Ho et al. 2020, algorithm 1)."""
    return number


def logit_normal(number: float, *, mean: float, std: float) -> float:
    """Shares whose logit is normal, sigmoid(mean + std Φ⁻¹(u)) (Esser et al. 2024, eq. 19)."""
    logit = mean + std * NormalDist().inv_cdf(max(number, _SMALLEST))
    return 1 / (1 + math.exp(-logit))


def mode(number: float, *, scale: float) -> float:
    """More of the middle and all of the rest, 1 - u - s (cos²(π u / 2) - 1 + u) (Esser et al. 2024, eq. 20)."""
    return 1 - number - scale * (math.cos(math.pi / 2 * number) ** 2 - 1 + number)


def cosmap(number: float) -> float:
    """The cosine schedule's ratios on flow's straight way, 1 - 1 / (tan(π u / 2) + 1) (Esser et al. 2024, eq. 21)."""
    return 1 - 1 / (math.tan(math.pi / 2 * number) + 1)


QUANTILES: Mapping[str, Quantile] = {
    "uniform": uniform,
    "logit-normal": logit_normal,
    "mode": mode,
    "cosmap": cosmap,
}
"""By the recipe's `train.timesteps.kind`."""


def shifted(share: float, shift: float) -> float:
    """Move towards noise, s t / (1 + (s - 1) t) (Esser et al. 2024, eq. 23)."""
    return shift * share / (1 + (shift - 1) * share)


def timestep(number: float, count: int, *, kind: str, shift: float, low: float, high: float, **settings: float) -> int:
    """Return the timestep in [0, count) that a number in [0, 1) stands for; keywords are those of `train.timesteps`."""
    share = shifted(QUANTILES[kind](number, **settings), shift)
    return min(int((low + (high - low) * share) * count), count - 1)


def chooser(settings: Mapping[str, Any], schedule: Schedule) -> Callable[[float], int] | None:
    """Return the function from numbers to timesteps; None for a base that sees each one as often, as most do.

    Args:
        settings: the recipe's `train.timesteps`.
        schedule: of the base.
    """
    if settings["kind"] == "base":
        if not isinstance(schedule, FlowSchedule):
            return None
        settings = {"kind": "uniform", "shift": 1.0, "low": 0.0, "high": 1.0, **schedule.density}
    return partial(timestep, count=schedule.timesteps, **settings)
