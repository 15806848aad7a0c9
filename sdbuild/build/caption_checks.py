"""Checks of captions against the base, before anything is built. Light."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdbuild.build.bases import in_recipe
from sdbuild.errors import DataError, Problem
from sdbuild.families import sources
from sdbuild.families.tokens import TokenCounter, token_counter
from sdbuild.plan.model import Base
from sdbuild.storage.phrases import cut
from sdbuild.storage.text_cleaning import says

if TYPE_CHECKING:
    from sdbuild.data.captions import Captions
    from sdbuild.recipe.models import Recipe


@dataclass(slots=True)
class CaptionChecks:
    """Checks the captions of recipes; what is read of a base is read once."""

    project: Path
    _counters: dict[Base, TokenCounter | None] = field(default_factory=dict)
    _lengths: dict[tuple[Base, str], int] = field(default_factory=dict)

    def problems(self, recipe: Recipe, captions: Captions) -> list[Problem]:
        """New words that no caption has, or that the base knows already."""
        found: list[Problem] = []
        texts = [text for row in captions.records if row.split == "train" for text in (row.text, *row.others)]
        counter = self._counter(Base.of(recipe.resolved()["base"])) if recipe.method.words else None
        known = set() if counter is None else {word.lower() for each in counter.tokenizers for word in each.get_vocab()}
        for index, word in enumerate(recipe.method.words):
            if word.lower() in known:
                message = f"the base's tokenizer knows {word!r}; choose another, e.g. in <>"
                found.append(Problem(field=f"method.tokens[{index}].token", message=message))
            if not captions.open and texts and not any(says(text, word) for text in texts):
                message = f"no caption has {word!r}; add it to a caption, e.g. as a trigger"
                found.append(Problem(field="method.tokens", message=message))
        return in_recipe(recipe.name, found, self.project)

    def warnings(self, recipe: Recipe, captions: Captions) -> Iterator[str]:
        """Say how many captions are longer than the text encoder takes."""
        base = Base.of(recipe.resolved()["base"])
        counter = self._counter(base)
        if counter is None:
            return
        tokens = getattr(recipe.method, "tokens", ())
        texts = {_written(text, tokens) for row in captions.records for text in (row.text, *row.others)}
        lengths = self._lengths_of(base, counter, texts)
        long = sorted(text for text, length in lengths.items() if length > counter.limit)
        if long:
            subject = "1 caption is" if len(long) == 1 else f"{len(long)} captions are"
            yield (
                f"{subject} longer than the {counter.limit} tokens that the text encoder takes; the rest is cut off, "
                f"e.g. {lengths[long[0]]} tokens: {cut(long[0])!r}"
            )

    def _lengths_of(self, base: Base, counter: TokenCounter, texts: Iterable[str]) -> dict[str, int]:
        found = {}
        for text in texts:
            if (base, text) not in self._lengths:
                # A token has a letter at least, but for start and end.
                self._lengths[base, text] = counter.count(text) if len(text) > counter.limit - 2 else 0
            found[text] = self._lengths[base, text]
        return found

    def _counter(self, base: Base) -> TokenCounter | None:
        """The tokenizers of a base that is on this machine and in order."""
        if base not in self._counters:
            self._counters[base] = None
            with contextlib.suppress(DataError):
                if all((self.project / dep.path).exists() for dep in base.deps):
                    folder = sources.find(base, self.project)
                    self._counters[base] = None if folder is None else token_counter(folder)
        return self._counters[base]


def _written(text: str, tokens: Sequence[Any]) -> str:
    """A caption with a word of the vocabulary for each vector of new words."""
    for each in tokens:
        text = re.sub(re.escape(each.token), " ".join(["x"] * each.vectors), text, flags=re.IGNORECASE)
    return text
