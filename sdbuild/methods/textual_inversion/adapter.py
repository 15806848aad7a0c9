"""Textual inversion (Gal et al. 2023): the vectors of new words are all that is learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from sdbuild.families.contract import KeyMap
from sdbuild.methods.contract import Networks, Strength
from sdbuild.methods.state import take_over, without
from sdbuild.methods.textual_inversion.spec import TextualInversion
from sdbuild.methods.tokens import NewTokens, file_of


class TokensAdapter:
    """New words in the text encoders; see `contract.Adapter`."""

    def __init__(self, tokens: NewTokens) -> None:
        self.tokens = tokens

    def parameters(self) -> Sequence[tuple[str, Parameter]]:
        """Return the vectors by text encoder."""
        return self.tokens.parameters()

    def state(self) -> dict[str, Tensor]:
        """Return ``embeddings.<component>``: vectors [n, D] of all tokens."""
        return {name: parameter.detach() for name, parameter in self.parameters()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over vectors of the same tokens."""
        take_over(self.state(), state)

    def export(self, key_map: KeyMap, name: str) -> dict[str, dict[str, Tensor]]:
        """Return an embedding file a token under its letters, and under the recipe's name the only one, or all."""
        tokens = self.tokens.tokens
        main = self.tokens.file(tokens[0]) if len(tokens) == 1 else self.tokens.bundle()
        return {f"{name}.safetensors": main, **{file_of(each): self.tokens.file(each) for each in tokens}}

    def summary(self) -> dict[str, str]:
        """Return the words."""
        return {"ss_tag_strings": ", ".join(each.token for each in self.tokens.tokens)}

    def train(self, mode: bool) -> None:
        """Nothing: there is no dropout."""

    def disabled(self) -> AbstractContextManager[None]:
        """Let the words mean what they started from."""
        return without(self)

    def set_strength(self, strength: float) -> None:
        """Go from the start's words to what was learned."""
        self.tokens.set_strength(strength)

    def merge(self) -> None:
        """Nothing: the vectors are rows of the embedding already."""

    def begin(self, step: int, steps: int) -> None:
        """Nothing: all of it is trained in every step."""

    @torch.no_grad()
    def stepped(self) -> None:
        """Keep the vectors' lengths near the vocabulary's."""
        self.tokens.retract()


class TextualInversionMethod:
    """Adds words."""

    def inject(self, base: Networks, spec: TextualInversion, *, seed: int) -> TokensAdapter:
        """Add the recipe's words; nothing is drawn."""
        assert base.text is not None
        return TokensAdapter(NewTokens(base.text, spec.tokens, spec.norm))

    def apply(
        self, pipeline: Any, base: Networks, spec: TextualInversion, folder: Path, *, key_map: KeyMap, name: str
    ) -> Strength:
        """Add the words with the vectors of their files."""
        adapter = self.inject(base, spec, seed=0)
        adapter.load_state(adapter.tokens.read([folder / file_of(each) for each in spec.tokens]))
        return adapter


METHOD = TextualInversionMethod()
