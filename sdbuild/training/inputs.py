"""Reads the outs of earlier steps as examples."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sdbuild.data.items import ShardReader
from sdbuild.data.records import CaptionRecord
from sdbuild.errors import StepError
from sdbuild.training.examples import Example

INDEX = "index.jsonl"
"""Beside the shards: which item belongs to what."""


def read_examples(
    captions: Sequence[CaptionRecord], latents: Path, repeats: Sequence[int]
) -> tuple[list[Example], list[Example]]:
    """Return the examples to train on and the held-out ones, each sorted by key.

    Args:
        captions: rows of `captions.jsonl`.
        latents: folder of the latents step.
        repeats: of each dataset.
    """
    reader = ShardReader(latents)
    keys: dict[str, list[str]] = {}
    for row in sorted(_rows(latents), key=lambda row: (row["digest"], row["flip"])):
        keys.setdefault(row["digest"], []).append(row["key"])
    split: dict[str, list[Example]] = {"train": [], "holdout": []}
    for record in sorted(captions, key=lambda record: record.key):
        if record.digest not in keys:
            raise StepError(f"no latent for {record.text!r} ({record.digest[:12]}); build the latents step again")
        variants = tuple(keys[record.digest])
        split[record.split].append(
            Example(
                key=record.key,
                digest=record.digest,
                text=record.text,
                latents=variants,
                shape=_shape(reader, variants[0]),
                repeats=repeats[record.dataset],
            )
        )
    return split["train"], split["holdout"]


def read_texts(text: Path) -> dict[str, str]:
    """Return the item key of each caption that the text step encoded."""
    return {row["text"]: row["key"] for row in _rows(text)}


def data_digest(captions: Sequence[CaptionRecord], folders: Sequence[Path]) -> str:
    """Return the sha256 (hex) of what is trained on: captions with their splits, and the keys of their items."""
    digest = hashlib.sha256()
    for record in sorted(captions, key=lambda record: record.key):
        digest.update(json.dumps([record.key, record.text, record.split]).encode() + b"\n")
    for folder in folders:
        for row in sorted(json.dumps(row, sort_keys=True) for row in _rows(folder)):
            digest.update(row.encode() + b"\n")
    return digest.hexdigest()


def _shape(reader: ShardReader, key: str) -> tuple[int, ...]:
    part = reader.find(key)
    if part is None:
        raise StepError(f"latent {key[:12]} is missing from its shard; build the latents step again")
    return next(tensor.shape for tensor in part.tensors if tensor.name == "mean")


def _rows(folder: Path) -> Iterator[Mapping[str, Any]]:
    try:
        with (folder / INDEX).open(encoding="utf-8") as file:
            for line in file:
                yield json.loads(line)
    except (OSError, ValueError) as error:
        message = f"{folder.name}/{INDEX} cannot be read ({error}); build the {folder.name} step again"
        raise StepError(message) from error
