"""Tokens and money: what asking would take, before it is done. Light."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any

from sdbuild.captioners.contract import Question
from sdbuild.recipe.prices import BATCHED, price_of, undated

_TILES: dict[str, tuple[int, int]] = {"gpt-4o-mini": (2833, 5667), "gpt-5": (70, 140)}
"""Tokens of a picture and of each tile of 512 pixels, where OpenAI counts other ones than `_TILED`."""
_TILED = (85, 170)
_PATCHES = {"gpt-4.1-mini": 1.62, "gpt-4.1-nano": 2.46, "gpt-5-mini": 1.62, "gpt-5-nano": 2.46}
"""Tokens of each patch of 32 pixels, of models whose pictures are cut into patches."""
_MOST_PATCHES = 1536


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """What some questions would take, at most where answers are as long as they may be."""

    questions: int
    input_tokens: int
    output_tokens: int
    cost: float | None
    """US dollars; None where the price is not known."""


def price(settings: Mapping[str, Any]) -> tuple[float, float] | None:
    """US dollars a token of input and of output, by the settings of a captioner; None where they are not known."""
    own = settings.get("prices")
    known = (own["input"], own["output"]) if own else price_of(settings["model"])
    if known is None:
        return None
    share = BATCHED if settings.get("batch") else 1.0
    return known[0] * share / 1e6, known[1] * share / 1e6


def estimate(questions: Iterable[Question], settings: Mapping[str, Any]) -> Estimate:
    """What asking would take; pictures are counted by the rules that the providers publish, words generously."""
    sent = [input_tokens(question, settings) for question in questions]
    answered = len(sent) * int(settings["max_tokens"])
    prices = price(settings)
    cost = None if prices is None else sum(sent) * prices[0] + answered * prices[1]
    return Estimate(questions=len(sent), input_tokens=sum(sent), output_tokens=answered, cost=cost)


def input_tokens(question: Question, settings: Mapping[str, Any]) -> int:
    """About how many tokens a question has."""
    words = 16 + ceil(len(question.prompt.encode()) / 3)
    return words + (_picture(question, settings) if question.shown else 0)


def _picture(question: Question, settings: Mapping[str, Any]) -> int:
    width, height = question.image.width, question.image.height
    scale: float = min(1.0, settings["longest_side"] / max(width, height))
    width, height = ceil(width * scale), ceil(height * scale)
    if settings["from"] == "anthropic":
        return ceil(width * height / 750)
    model = undated(settings["model"])
    if model in _PATCHES:
        return ceil(min(_MOST_PATCHES, ceil(width / 32) * ceil(height / 32)) * _PATCHES[model])
    whole, tile = _TILES.get(model, _TILED)
    if settings.get("detail") == "low":
        return whole
    scale = min(1.0, 2048 / max(width, height))
    scale = min(scale, 768 / min(width, height))
    return whole + tile * ceil(width * scale / 512) * ceil(height * scale / 512)
