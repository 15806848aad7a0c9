"""Warnings about prompts: syntax of other programs, and triggers or new words that no prompt has."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from sdbuild.storage.phrases import cut
from sdbuild.storage.text_cleaning import plain, says

if TYPE_CHECKING:
    from sdbuild.recipe.models import Recipe

_OPTIONS = {
    **dict.fromkeys(("n", "no", "neg", "negative"), "sample.negative"),
    **dict.fromkeys(("w", "h", "ow", "oh", "ar", "width", "height"), "images.resolution"),
    **dict.fromkeys(("s", "steps"), "sample.steps"),
    **dict.fromkeys(("d", "seed"), "sample.seeds"),
    **dict.fromkeys(("l", "g", "cfg", "scale"), "sample.guidance"),
    **dict.fromkeys(("ss", "sampler"), "sample.scheduler"),
    "am": "sample.adapters",
}
_OPTION = re.compile(r"(?<!\S)--([a-z]{1,12})\b")
_SYNTAX: Sequence[tuple[re.Pattern[str], str]] = (
    (re.compile(r"<(?:lora|lyco|lycoris|hypernet):[^>]*>", re.IGNORECASE), "name other adapters in sample.adapters"),
    (re.compile(r"\bembedding:[\w./-]+", re.IGNORECASE), "write the word itself, of method textual_inversion"),
    (re.compile(r"\{[^{}]*[|][^{}]*\}"), "write a prompt for each choice"),
    (re.compile(r"\{+[^{}]*\}+"), "write weights as (word:1.1)"),
    (re.compile(r"__[^\s_][^\s]*?__"), "write a prompt for each word of the list"),
    (re.compile(r"\[[^\[\]|]*\|[^\[\]]*\]"), "write a prompt for each choice"),
    (re.compile(r"\[[^\[\]:]*:(?:[^\[\]:]*:)?\s*\d*\.?\d+\s*\]"), "write one prompt; it counts in all steps"),
    (re.compile(r"[a-z]{3,}(?:\+{2,}|-{2,})(?=[\s,)]|$)|\)(?:\+|\d+\.\d)"), "write weights as (word:1.1)"),
)
_WORDS = {
    "BREAK": "leave it out: prompts of any length are read in parts",
    "AND": "write a prompt for each part",
}


def prompt_warnings(recipe: Recipe) -> Iterator[str]:
    """Warn of syntax that is read as plain words here, and of words that no prompt has."""
    if recipe.sample is None:
        return
    named = [(f"sample.prompts[{index}]", prompt) for index, prompt in enumerate(recipe.sample.prompts)]
    for field, prompt in [*named, ("sample.negative", recipe.sample.negative)]:
        yield from (f"{field} {cut(prompt)!r}: {what}" for what in foreign(prompt))
    yield from _brackets(recipe, recipe.sample.prompts)
    prompts = [plain(prompt) for prompt in recipe.sample.prompts]
    missed = [word for word in recipe.method.words if not any(says(prompt, word) for prompt in prompts)]
    if missed:
        yield f"no prompt of sample.prompts has {', '.join(missed)}, so the grid does not show it; add it to one"
    for index, dataset in enumerate(recipe.datasets):
        trigger = " ".join(plain(dataset.trigger).split())
        told = any(says(trigger, word) for word in recipe.method.words)
        if trigger and not told and not any(says(" ".join(prompt.split()), trigger) for prompt in prompts):
            yield (
                f"no prompt of sample.prompts has datasets[{index}].trigger {dataset.trigger!r}, which is in all "
                "captions of that dataset, so the grid shows little of it; add it to one"
            )


def foreign(prompt: str) -> Iterator[str]:
    """Yield what in a prompt is syntax of other programs, with what to use here instead."""
    options = list(dict.fromkeys(_OPTION.findall(prompt)))
    if options:
        instead = dict.fromkeys(_OPTIONS[option] for option in options if option in _OPTIONS)
        remedy = f"set {', '.join(instead)} instead" if instead else "remove it"
        verb = "are" if len(options) > 1 else "is"
        yield f"{', '.join(f'--{option}' for option in options)} {verb} read as plain words; {remedy}"
    told = _OPTION.sub(" ", prompt)
    for pattern, remedy in _SYNTAX:
        match = pattern.search(told)
        if match is not None:
            yield f"{cut(match[0])} is read as plain words; {remedy}"
            told = pattern.sub(" ", told)
    if any(character.islower() for character in prompt):
        for word, remedy in _WORDS.items():
            if re.search(rf"(?<!\S){word}(?![^\s,])", told):
                yield f"{word} is read as a plain word; {remedy}"


def _brackets(recipe: Recipe, prompts: Sequence[str]) -> Iterator[str]:
    for index, dataset in enumerate(recipe.datasets):
        if re.search(r"[()\[\]]", dataset.trigger) and any(dataset.trigger in prompt for prompt in prompts):
            named = f"datasets[{index}].trigger {dataset.trigger!r}"
            yield f"{named} has brackets, which sample.prompts read as weights; put a backslash before them there"
