"""New words in text encoders: rows of their own beside the vocabulary's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import Parameter

from sdbuild.errors import Problem, RecipeError
from sdbuild.families.contract import TextEncoder
from sdbuild.methods.textual_inversion.spec import Token

FIELDS: Mapping[Any, str] = {"text_encoder": "clip_l", "text_encoder_2": "clip_g", "text_encoder_3": "t5xxl"}
"""Names of the text encoders in files of families that have several, as kohya's tools and ComfyUI read them."""
ALONE = "emb_params"
"""Name of the vectors in a file of a family with one text encoder, as A1111 and ComfyUI read it."""
BUNDLED = "string_to_param.*"
"""The same in a bundle, as A1111 reads it."""


class Rows(nn.Module):
    """An embedding with rows of its own for the ids from `first` on."""

    start: Tensor

    def __init__(self, embedding: nn.Module, first: int, start: Tensor) -> None:
        super().__init__()
        self.embedding = embedding
        self.first = first
        self.register_buffer("start", start, persistent=False)
        self.vectors = Parameter(start.clone())
        self.strength = 1.0

    def forward(self, ids: Tensor) -> Tensor:
        """Return vectors [..., D] of ids, int64."""
        known: Tensor = self.embedding(ids.clamp(max=self.first - 1))
        if self.strength == 1:
            vectors: Tensor = self.vectors
        else:
            vectors = self.start + self.strength * (self.vectors - self.start)
        own = F.embedding((ids - self.first).clamp(min=0), vectors).to(known.dtype)
        return torch.where((ids >= self.first)[..., None], own, known)


class NewTokens:
    """The tokens of a recipe in all text encoders of a base."""

    def __init__(self, text: TextEncoder, tokens: Sequence[Token], norm: float) -> None:
        """Add the tokens to tokenizers and text encoders, in place; they start as other words' vectors.

        Raises:
            RecipeError: a tokenizer knows such a word already.
        """
        self.tokens = tokens
        self.norm = norm
        self._lengths: dict[Any, float] = {}
        self.rows: dict[Any, Rows] = {}
        for component, (tokenizer, module) in text.readers.items():
            _refuse_known(tokenizer, tokens)
            embedding = module.get_input_embeddings()
            table = _table(embedding)
            start = torch.cat([_start(tokenizer, table, token) for token in tokens])
            names = [name for token in tokens for name in _names(token)]
            tokenizer.add_tokens(names)
            first = tokenizer.convert_tokens_to_ids(names[0])
            module.set_input_embeddings(rows := Rows(embedding, first, start))
            _pool_at_the_end(module, tokenizer)
            self.rows[component] = rows
            # Where only sizes are asked for, tables have no values.
            self._lengths[component] = 0.0 if table.is_meta else float(table.norm(dim=-1).mean())

    def parameters(self) -> list[tuple[str, Parameter]]:
        """Return the vectors of all tokens [n, D] by encoder."""
        return [(f"embeddings.{component}", rows.vectors) for component, rows in self.rows.items()]

    @torch.no_grad()
    def retract(self) -> None:
        """Take each vector's length towards the vocabulary's mean, lest it drown the other words of a prompt."""
        for component, rows in self.rows.items():
            lengths = rows.vectors.norm(dim=-1, keepdim=True).clamp(min=1e-12)
            rows.vectors.mul_(1 - self.norm + self.norm * self._lengths[component] / lengths)

    def set_strength(self, strength: float) -> None:
        """Go from the vectors of the start's words, at 0, to those learned."""
        for rows in self.rows.values():
            rows.strength = strength

    def train(self, wanted: bool) -> None:
        """Choose whether the vectors get gradients."""
        for rows in self.rows.values():
            rows.vectors.requires_grad_(wanted)

    @property
    def trains(self) -> bool:
        """Whether the vectors get gradients."""
        return any(rows.vectors.requires_grad for rows in self.rows.values())

    def bundle(self) -> dict[str, Tensor]:
        """Return all tokens' vectors under names that stand in one file with others'."""
        return {
            f"bundle_emb.{each.token}.{BUNDLED if field == ALONE else field}": vectors
            for each in self.tokens
            for field, vectors in self.file(each).items()
        }

    def read(self, files: Sequence[Path]) -> dict[str, Tensor]:
        """Return the vectors by the names of `parameters`, from the tokens' own files."""
        found = [load_file(file) for file in files]
        return {
            f"embeddings.{component}": torch.cat([tensors[self._field(component)] for tensors in found])
            for component in self.rows
        }

    def file(self, token: Token) -> dict[str, Tensor]:
        """Return what a token's own file holds."""
        first = sum(each.vectors for each in self.tokens[: self.tokens.index(token)])
        return {
            self._field(component): rows.vectors.detach()[first : first + token.vectors]
            for component, rows in self.rows.items()
        }

    def _field(self, component: Any) -> str:
        return ALONE if len(self.rows) == 1 else FIELDS[component]


def file_of(token: Token) -> str:
    """Name of a token's own file; web UIs take the word of prompts from it."""
    return f"embeddings/{token.letters}.safetensors"


def _refuse_known(tokenizer: Any, tokens: Sequence[Token]) -> None:
    vocabulary = {word.lower() for word in tokenizer.get_vocab()}
    known = [index for index, each in enumerate(tokens) if any(name.lower() in vocabulary for name in _names(each))]
    if known:
        raise RecipeError(
            Problem(
                field=f"method.tokens[{index}].token",
                message=f"the base's tokenizer knows {tokens[index].token!r}; choose another, e.g. in <>",
            )
            for index in known
        )


def _names(token: Token) -> list[str]:
    """One a vector, as diffusers calls them."""
    return [token.token, *(f"{token.token}_{number}" for number in range(1, token.vectors))]


def _table(embedding: Any) -> Tensor:
    """The vocabulary's vectors, float32, also where another method has added rows."""
    while isinstance(embedding, Rows):
        embedding = embedding.embedding
    table: Tensor = embedding.weight.detach().float()
    return table


def _start(tokenizer: Any, table: Tensor, token: Token) -> Tensor:
    """Spread the start's words over the token's vectors [n, D]: means of several, or each again."""
    ids = tokenizer(token.start, add_special_tokens=False).input_ids
    words = table[torch.tensor(ids, device=table.device)]
    if len(words) > token.vectors:
        return torch.stack([part.mean(dim=0) for part in words.tensor_split(token.vectors)])
    return words[torch.arange(token.vectors) % len(words)]


def _pool_at_the_end(module: Any, tokenizer: Any) -> None:
    """Let CLIP find a text's end by its id; older configurations take the highest id, which new tokens have."""
    for part in module.modules():
        if getattr(part, "eos_token_id", None) == 2:
            part.eos_token_id = tokenizer.eos_token_id
