"""How many tokens a caption has for the text encoders of a base, counted without loading a library of networks.

CLIP's tokenizer is built from a base's vocabulary as transformers builds it, whatever rules `tokenizer.json` holds.
Only CLIP's encoders count: what else a base has (T5) takes longer captions.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdbuild import families
from sdbuild.errors import DataError, Problem
from sdbuild.families.layout import read_config, read_json, understanding

_WORDS = r"""<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""
_SPECIAL = {
    "bos_token": "<|startoftext|>",
    "eos_token": "<|endoftext|>",
    "unk_token": "<|endoftext|>",
    "pad_token": "<|endoftext|>",
}


@dataclass(frozen=True)
class TokenCounter:
    """Counts tokens as the text step does."""

    tokenizers: tuple[Any, ...]
    limit: int
    """Tokens that the encoders take, start and end included."""

    def count(self, text: str) -> int:
        """Count the tokens of a text before any cut, start and end included."""
        return max(len(tokenizer.encode(text).ids) for tokenizer in self.tokenizers)


def token_counter(folder: Path) -> TokenCounter:
    """Read the tokenizers of a base in diffusers' layout.

    Raises:
        DataError: it has none, or they are damaged.
    """
    classes = families.describe(folder).classes
    encoders = [name for name, kind in classes.items() if kind is not None and kind.startswith("CLIPText")]
    with understanding(folder):
        found = [_tokenizer(folder, name.replace("text_encoder", "tokenizer")) for name in encoders]
        limits = [int(read_config(folder, name).get("max_position_embeddings", 77)) for name in encoders]
        most = min([*limits, *(limit for _, limit in found)])
    return TokenCounter(tuple(tokenizer for tokenizer, _ in found), most)


def _tokenizer(folder: Path, component: str) -> tuple[Any, int]:
    """A tokenizer, and the tokens that it says are the most."""
    from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers, processors
    from tokenizers.models import BPE

    settings = read_config(folder, component)
    special = {name: _content(settings.get(name), usual) for name, usual in _SPECIAL.items()}
    try:
        vocabulary, merges = _vocabulary(folder / component)
        model = BPE(
            vocab=vocabulary,
            merges=merges,
            continuing_subword_prefix="",
            end_of_word_suffix="</w>",
            fuse_unk=False,
            unk_token=special["unk_token"],
        )
        tokenizer: Any = Tokenizer(model)
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
        )
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
        tokenizer.add_special_tokens(
            [AddedToken(token, normalized=False, special=True) for token in dict.fromkeys(special.values())]
        )
        end, start = ((token, tokenizer.token_to_id(token)) for token in (special["eos_token"], special["bos_token"]))
        tokenizer.post_processor = processors.RobertaProcessing(end, start, False, False)
    except DataError:
        raise
    except Exception as error:  # the library raises nothing narrower for a vocabulary that it cannot use
        message = f"holds no vocabulary that can be used ({' '.join(str(error).split())}); bring the base again"
        raise DataError([Problem(file=str(folder / component), message=message)]) from error
    return tokenizer, int(min(settings.get("model_max_length") or 77, 2**31))


def _vocabulary(folder: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Tokens and merges, from one file or two."""
    if (folder / "tokenizer.json").is_file():
        model = read_json(folder / "tokenizer.json")["model"]
        pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
        return model["vocab"], [(first, second) for first, second in pairs]
    return json.loads((folder / "vocab.json").read_bytes()), list(_merges(folder / "merges.txt"))


def _merges(file: Path) -> Iterator[tuple[str, str]]:
    for line in file.read_text(encoding="utf-8").split("\n"):
        if line.strip() and not line.startswith("#version"):
            first, second = line.split()
            yield first, second


def _content(token: Any, usual: str) -> str:
    """A special token, which may be described by an object."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else usual
