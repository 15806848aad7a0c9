"""CLIP text encoders with T5 behind them, which may be left out (Esser et al. 2024, figure 2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from sdbuild.families.contract import Component, Words
from sdbuild.families.text import Clip, ClipText, expanded, reweighed

LENGTH = 256
"""Tokens that T5 is given, padded; also the room that it leaves when it is left out."""


@dataclass(frozen=True)
class T5:
    """A T5 encoder with its tokenizer; it learns new words, and nothing else."""

    tokenizer: Any
    module: Any
    component: ClassVar[Component] = "text_encoder_3"

    def tokenize(self, text: str) -> Tensor:
        """Return token ids [L], cut and padded."""
        ids: Tensor = self.tokenizer(
            expanded(self.tokenizer, text),
            padding="max_length",
            max_length=LENGTH,
            truncation=True,
            return_tensors="pt",
        ).input_ids[0]
        return ids

    def states(self, tokens: Tensor) -> Tensor:
        """Return hidden states [B, L, D] of tokens [B, L]."""
        hidden: Tensor = self.module(tokens.to(self.module.device))[0]
        return hidden

    def weighed(self, words: Words) -> tuple[Tensor, Tensor]:
        """Return ids and weights [1, L] of a prompt."""
        pairs = [
            (token, weight)
            for text, weight in words
            for token in self.tokenizer(
                expanded(self.tokenizer, text), add_special_tokens=False, truncation=False, verbose=False
            ).input_ids
        ][: LENGTH - 1]
        rest = LENGTH - 1 - len(pairs)
        ids = [*(token for token, _ in pairs), self.tokenizer.eos_token_id, *[self.tokenizer.pad_token_id] * rest]
        return torch.tensor([ids]), torch.tensor([[*(weight for _, weight in pairs), *[1.0] * (rest + 1)]])


class ClipAndT5(ClipText):
    """Two CLIP text encoders and perhaps T5; see `contract.TextEncoder`. T5's states are a condition of their own."""

    def __init__(self, clips: Sequence[Clip], t5: T5 | None) -> None:
        super().__init__(*clips)
        self._t5 = t5

    @property
    def readers(self) -> Mapping[Component, tuple[Any, Any]]:
        """Tokenizers and networks."""
        t5 = {} if self._t5 is None else {self._t5.component: (self._t5.tokenizer, self._t5.module)}
        return {**super().readers, **t5}

    def tokenize(self, text: str) -> dict[str, Tensor]:
        """Return token ids of each encoder, cut and padded."""
        found = super().tokenize(text)
        return found if self._t5 is None else {**found, self._t5.component: self._t5.tokenize(text)}

    def condition(self, tokens: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return hidden states, pooled ones, and T5's."""
        found = super().condition(tokens)
        return found if self._t5 is None else {**found, "t5": self._t5.states(tokens[self._t5.component])}

    @torch.no_grad()
    def weigh(self, words: Words, chunks: int) -> dict[str, Tensor]:
        """Return the condition [1, …] of a prompt with weights."""
        found = super().weigh(words, chunks)
        if self._t5 is None:
            return found
        ids, weights = self._t5.weighed(words)
        return {**found, "t5": reweighed(self._t5.states(ids), weights)}


def side_by_side(condition: Mapping[str, Tensor], width: int) -> Tensor:
    """Put CLIP's states, widened by zeros, before T5's, or before zeros where T5 is left out: [B, L, width]."""
    clip = condition["hidden"]
    t5 = condition.get("t5")
    if t5 is None:
        t5 = clip.new_zeros(len(clip), LENGTH, width)
    return torch.cat([pad(clip, (0, width - clip.shape[-1])), t5], dim=1)
