"""The tokenizer and the text encoder: CLIP's byte-level BPE with a small vocabulary."""

from __future__ import annotations

import json
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from tools.emoji64.pictures import Pictures

MAX_LENGTH = 32
VOCABULARY = 2048
WIDTH = 160
START, END = "<|startoftext|>", "<|endoftext|>"

WORD = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d|[^\W\d_]+|\d|(?:[^\s\w]|_)+")
"""How CLIP splits lower-cased text into words before BPE."""

PREFIXES = (
    "a", "an", "the", "a picture of", "picture of a", "an image of", "drawing of", "a drawing of a", "photo of",
    "a photo of a", "icon of", "an icon of a", "painting of", "emoji of", "a small", "one", "sticker of a",
)  # fmt: skip
"""Words put before some captions, so that words which the base does not know disturb it little."""

EVERYDAY = (
    "3d render of a photograph in the style with and on at to by from style art sketch cartoon pixel watercolor "
    "glossy shiny soft plastic clay flat simple modern old new big small cute happy sad round white background"
)
"""Further words of prompts, for whole tokens in the vocabulary; before captions they mean nothing to the base."""


def byte_letters() -> dict[int, str]:
    """One printable letter a byte, as GPT-2 and CLIP have it."""
    kept = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in kept]
    return {byte: chr(byte) for byte in kept} | {byte: chr(256 + n) for n, byte in enumerate(others)}


def learn_merges(texts: list[str], count: int) -> list[tuple[str, str]]:
    """The most frequent pairs, merged one after another; ties go to the pair that sorts first."""
    letters = byte_letters()
    frequencies = Counter(word for text in texts for word in WORD.findall(text.lower()))
    words: list[tuple[list[str], int]] = []
    for word, frequency in sorted(frequencies.items()):
        symbols = [letters[byte] for byte in word.encode()]
        symbols[-1] += "</w>"
        words.append((symbols, frequency))
    merges: list[tuple[str, str]] = []
    while len(merges) < count:
        pairs: Counter[tuple[str, str]] = Counter()
        for symbols, frequency in words:
            for pair in pairwise(symbols):
                pairs[pair] += frequency
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        for symbols, _ in words:
            merge(symbols, best)
    return merges


def merge(symbols: list[str], pair: tuple[str, str]) -> None:
    """Join every occurrence of ``pair`` in ``symbols``, in place."""
    position = 0
    while position < len(symbols) - 1:
        if (symbols[position], symbols[position + 1]) == pair:
            symbols[position : position + 2] = ["".join(pair)]
        position += 1


def make_tokenizer(noto: Pictures, folder: Path) -> CLIPTokenizer:
    """Learn the vocabulary from all captions, write it to ``folder`` and load it."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = [*noto.captions, *noto.aliases, *noto.categories, *noto.subcategories, *PREFIXES, EVERYDAY]
    letters = list(byte_letters().values())
    alphabet = [*letters, *(letter + "</w>" for letter in letters)]
    merges = learn_merges(texts, VOCABULARY - len(alphabet) - 2)
    tokens = [*alphabet, *("".join(pair) for pair in merges), START, END]
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return load_tokenizer(folder)


def load_tokenizer(folder: Path) -> CLIPTokenizer:
    """The tokenizer of the ``vocab.json`` and ``merges.txt`` in ``folder``."""
    tokenizer = CLIPTokenizer.from_pretrained(
        folder, bos_token=START, eos_token=END, unk_token=END, pad_token=END, model_max_length=MAX_LENGTH
    )
    assert isinstance(tokenizer, CLIPTokenizer)
    return tokenizer


def build_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """A new text encoder with random weights."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=5,
        max_position_embeddings=MAX_LENGTH,
        hidden_act="quick_gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


def tokens(tokenizer: CLIPTokenizer, texts: list[str]) -> torch.Tensor:
    """Token numbers of shape (texts, 32), padded as StableDiffusionPipeline pads."""
    encoded = tokenizer(texts, padding="max_length", max_length=MAX_LENGTH, truncation=True, return_tensors="pt")
    numbers = encoded["input_ids"]
    assert isinstance(numbers, torch.Tensor)
    return numbers


def caption_variant(noto: Pictures, index: int, draws: list[float]) -> str:
    """The caption of one picture for one step, from three random numbers in [0, 1).

    10 % none at all (for guidance), 63 % the name, 14 % the alias, 13 % with category or subcategory; a
    quarter of the names get one of :data:`PREFIXES`, another quarter one to three of :data:`EVERYDAY`'s words.
    """
    kind, prefix, which = draws
    caption = noto.captions[index]
    if kind < 0.10:
        return ""
    if kind < 0.17:
        return f"{noto.subcategories[index]}, {caption}"
    if kind < 0.23:
        return f"{noto.categories[index]}, {noto.subcategories[index]}, {caption}"
    if kind < 0.37:
        caption = noto.aliases[index]
    if prefix < 0.25:
        return f"{PREFIXES[int(which * len(PREFIXES))]} {caption}"
    if prefix < 0.50:
        return f"{_everyday_words(which)} {caption}"
    return caption


def _everyday_words(which: float) -> str:
    """One to three words of :data:`EVERYDAY`, some with "of" after them, from a random number in [0, 1)."""
    words = EVERYDAY.split()
    rest = int(which * 6 * len(words) ** 3)
    rest, kind = divmod(rest, 6)
    chosen = []
    for _ in range(1 + kind // 2):
        rest, word = divmod(rest, len(words))
        chosen.append(words[word])
    return " ".join([*chosen, "of"] if kind % 2 else chosen)
