"""CLIP text encoders as the contract wants them: captions of one or several chunks, words with weights."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count, takewhile
from typing import Any

import torch
from torch import Tensor, nn

from sdbuild.families.contract import Component, Words
from sdbuild.storage.text_cleaning import says


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A CLIP text encoder with its tokenizer."""

    component: Any
    """Its name in the base and in adapters."""
    tokenizer: Any
    module: Any
    layer: int = 0
    """Whose states are taken, counted back from the last."""
    normed: bool = True
    """Whether the final norm is applied to them."""

    @property
    def size(self) -> int:
        """Tokens that the encoder takes at once, start and end included."""
        return int(min(self.tokenizer.model_max_length, self.module.config.max_position_embeddings))

    def count(self, text: str) -> int:
        """Count the tokens of a text before any cut, start and end included."""
        return len(self.tokenizer(expanded(self.tokenizer, text), truncation=False, verbose=False).input_ids)

    def tokenize(self, text: str) -> Tensor:
        """Return token ids [L], cut and padded."""
        ids: Tensor = self.tokenizer(
            expanded(self.tokenizer, text),
            padding="max_length",
            max_length=self.size,
            truncation=True,
            return_tensors="pt",
        ).input_ids[0]
        return ids

    def states(self, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return hidden states [B, L, D], and the pooled ones [B, P] of an encoder with a projection.

        Tokens [B, L] may be several chunks; each is encoded alone, and the first gives what is pooled.
        """
        chunks = tokens.shape[1] // self.size
        outputs = self.module(
            tokens.reshape(-1, self.size).to(self.module.device),
            output_hidden_states=bool(self.layer) or not self.normed,
        )
        if self.layer == 0 and self.normed:
            hidden = outputs.last_hidden_state
        else:
            hidden = outputs.hidden_states[-1 - self.layer]
            if self.normed:
                hidden = getattr(self.module, "text_model", self.module).final_layer_norm(hidden)
        pooled = outputs[0] if outputs[0].ndim == 2 else None
        return hidden.reshape(len(tokens), -1, hidden.shape[-1]), None if pooled is None else pooled[::chunks]

    def weighed(self, words: Words, chunks: int) -> tuple[Tensor, Tensor]:
        """Return ids and weights [1, L] of a prompt in that many chunks."""
        start, end, pad = (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id, self.tokenizer.pad_token_id)
        pairs = self._pairs(words)
        room = self.size - 2
        ids: list[int] = []
        weights: list[float] = []
        for first in range(0, chunks * room, room):
            inside = pairs[first : first + room]
            rest = room - len(inside)
            ids += [start, *(token for token, _ in inside), end, *[pad] * rest]
            weights += [1.0, *(weight for _, weight in inside), *[1.0] * (rest + 1)]
        return torch.tensor([ids]), torch.tensor([weights])

    def chunks(self, words: Words) -> int:
        """How many chunks a prompt fills."""
        return max(1, -(-len(self._pairs(words)) // (self.size - 2)))

    def _pairs(self, words: Words) -> list[tuple[int, float]]:
        return [
            (token, weight)
            for text, weight in words
            for token in self.tokenizer(
                expanded(self.tokenizer, text), add_special_tokens=False, truncation=False, verbose=False
            ).input_ids
        ]


class ClipText:
    """One or several CLIP text encoders side by side; see `contract.TextEncoder`."""

    def __init__(self, *clips: Clip) -> None:
        self.clips = clips
        self.max_tokens = min(clip.size for clip in clips)

    @property
    def modules(self) -> Mapping[Component, nn.Module]:
        """The networks by component."""
        return {clip.component: clip.module for clip in self.clips}

    @property
    def readers(self) -> Mapping[Component, tuple[Any, Any]]:
        """Tokenizers and networks."""
        return {clip.component: (clip.tokenizer, clip.module) for clip in self.clips}

    def expands(self, text: str) -> bool:
        """Tell whether the text has a token of several vectors."""
        return any(expanded(tokenizer, text) != text for tokenizer, _ in self.readers.values())

    def count_tokens(self, text: str) -> int:
        """Count the tokens of a caption before any cut."""
        return max(clip.count(text) for clip in self.clips)

    def tokenize(self, text: str) -> dict[str, Tensor]:
        """Return token ids of each encoder, cut and padded."""
        return {clip.component: clip.tokenize(text) for clip in self.clips}

    def condition(self, tokens: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return hidden states side by side, and pooled ones where encoders have them."""
        return _joined([clip.states(tokens[clip.component]) for clip in self.clips])

    @torch.no_grad()
    def encode(self, text: str) -> dict[str, Tensor]:
        """Return the condition of one caption."""
        tokens = {name: ids[None] for name, ids in self.tokenize(text).items()}
        return {name: tensor[0].float().cpu() for name, tensor in self.condition(tokens).items()}

    def chunks(self, words: Words) -> int:
        """How many chunks a prompt fills."""
        return max(clip.chunks(words) for clip in self.clips)

    @torch.no_grad()
    def weigh(self, words: Words, chunks: int) -> dict[str, Tensor]:
        """Return the condition [1, …] of a prompt with weights, in that many chunks."""
        states = []
        for clip in self.clips:
            ids, weights = clip.weighed(words, chunks)
            hidden, pooled = clip.states(ids)
            states.append((reweighed(hidden, weights), pooled))
        return _joined(states)


def expanded(tokenizer: Any, text: str) -> str:
    """Write new words as they were added: whatever their case, and all vectors of those that have several.

    ``<a>`` becomes ``<a> <a>_1``, where there is ``<a>_1``, as diffusers does.
    """
    added = tokenizer.added_tokens_encoder
    known = tokenizer.added_tokens_decoder
    for token in (token for token, number in added.items() if not known[number].special and says(text, token)):
        rest = takewhile(added.__contains__, (f"{token}_{number}" for number in count(1)))
        written = " ".join([token, *rest]).replace("\\", r"\\")
        text = re.sub(rf"{re.escape(token)}(?!_\d)", written, text, flags=re.IGNORECASE)
    return text


def reweighed(hidden: Tensor, weights: Tensor) -> Tensor:
    """Multiply each token's states by its weight, then all by what restores their mean, as A1111 does."""
    if (weights == 1).all():
        return hidden
    scaled = hidden * weights[..., None].to(hidden)
    return scaled * (hidden.mean() / scaled.mean())


def _joined(states: Sequence[tuple[Tensor, Tensor | None]]) -> dict[str, Tensor]:
    """Put the states of several encoders side by side."""
    found = {"hidden": torch.cat([hidden for hidden, _ in states], dim=-1)}
    pooled = [tensor for _, tensor in states if tensor is not None]
    return found | ({"pooled": torch.cat(pooled, dim=-1)} if pooled else {})
