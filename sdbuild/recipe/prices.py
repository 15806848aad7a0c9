"""Prices of models that describe pictures, as their providers published them; recipes override them."""

from __future__ import annotations

import re

PRICES: dict[str, tuple[float, float]] = {
    "claude-haiku-4-5": (1.0, 5.0),
    "claude-sonnet-4-5": (3.0, 15.0),
    "claude-sonnet-4-6": (3.0, 15.0),
    "claude-opus-4-5": (5.0, 25.0),
    "claude-opus-4-6": (5.0, 25.0),
    "gpt-4o": (2.5, 10.0),
    "gpt-4o-mini": (0.15, 0.6),
    "gpt-4.1": (2.0, 8.0),
    "gpt-4.1-mini": (0.4, 1.6),
    "gpt-4.1-nano": (0.1, 0.4),
    "gpt-5": (1.25, 10.0),
    "gpt-5-mini": (0.25, 2.0),
    "gpt-5-nano": (0.05, 0.4),
}
"""US dollars a million tokens, of input and of output. Models that are not here are counted in tokens alone."""

BATCHED = 0.5
"""Share of the price that both providers take for requests in a batch."""

_DATED = re.compile(r"-(\d{8}|\d{4}-\d{2}-\d{2})$")


def price_of(model: str) -> tuple[float, float] | None:
    """Price of a model, or of the one that it is a dated version of; None where it is not known."""
    return PRICES.get(undated(model))


def undated(model: str) -> str:
    """Name of a model without the date of its version."""
    return _DATED.sub("", model)
