"""Tokens of pictures, by the rules and examples that the providers publish."""

from __future__ import annotations

from typing import Any

import pytest

from sdbuild.captioners.contract import Question
from sdbuild.captioners.costs import estimate, input_tokens
from sdbuild.data.records import ImageRecord

CLAUDE, GPT = {"from": "anthropic", "model": "claude-haiku-4-5"}, {"from": "openai"}


def question(width: int, height: int, *, shown: bool = True) -> Question:
    image = ImageRecord.whole(path="a.png", dataset=0, digest="d", size=(width, height))
    return Question(key="k", image=image, prompt="x" * 30, instruction=None, shown=shown)


@pytest.mark.parametrize(
    ("settings", "size", "tokens"),
    [
        (CLAUDE, (1000, 1000), 1334),
        (CLAUDE, (200, 200), 54),
        ({**GPT, "model": "gpt-4o"}, (1024, 1024), 765),
        ({**GPT, "model": "gpt-4o"}, (2048, 4096), 1105),
        ({**GPT, "model": "gpt-4o", "detail": "low"}, (2048, 4096), 85),
        ({**GPT, "model": "gpt-4.1"}, (512, 512), 255),
        ({**GPT, "model": "gpt-5"}, (1024, 1024), 630),
        ({**GPT, "model": "gpt-4o-mini-2024-07-18"}, (1024, 1024), 25501),
        ({**GPT, "model": "gpt-4o-mini", "detail": "low"}, (1024, 1024), 2833),
        ({**GPT, "model": "gpt-4.1-mini"}, (1024, 1024), 1659),
        ({**GPT, "model": "gpt-5-nano"}, (2000, 3000), 3779),
        ({**GPT, "model": "of-ones-own"}, (1024, 1024), 765),
    ],
)
def test_pictures_are_counted_as_providers_count_them(
    settings: dict[str, Any], size: tuple[int, int], tokens: int
) -> None:
    asked = {**settings, "longest_side": 4096}
    words = input_tokens(question(*size, shown=False), asked)
    assert input_tokens(question(*size), asked) - words == tokens


def test_pictures_are_counted_as_large_as_they_are_sent() -> None:
    settings = {**CLAUDE, "longest_side": 100, "max_tokens": 10}
    most = estimate([question(3000, 1500), question(50, 20)], settings)
    assert (most.questions, most.output_tokens) == (2, 20)
    assert most.input_tokens == 2 * 26 + 7 + 2
    assert most.cost == pytest.approx((most.input_tokens + 20 * 5) / 1e6)
