"""Reads the outs of earlier steps as examples."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sdbuild.data.items import ShardReader
from sdbuild.data.records import CaptionRecord, read_images
from sdbuild.data.sampler import Sampler
from sdbuild.data.shares import WeightedSampler
from sdbuild.data.tags import texts_of
from sdbuild.errors import StepError
from sdbuild.training.examples import Example

INDEX = "index.jsonl"
"""Beside the shards: which item belongs to what."""


def read_examples(
    captions: Sequence[CaptionRecord], latents: Path, datasets: Sequence[Mapping[str, Any]]
) -> tuple[list[Example], list[Example]]:
    """Return the examples to train on and the held-out ones, each sorted by key.

    A record is one example at each of its resolutions.

    Args:
        captions: rows of `captions.jsonl`.
        latents: folder of the latents step.
        datasets: of the train step's spec.
    """
    reader = ShardReader(latents)
    rows: dict[str, list[Mapping[str, Any]]] = {}
    for row in sorted(_rows(latents), key=lambda row: (row["digest"], row["flip"])):
        if "prior" not in row:
            rows.setdefault(row["digest"], []).append(row)
    split: dict[str, list[Example]] = {"train": [], "holdout": []}
    for record in sorted(captions, key=lambda record: record.key):
        shapes: dict[tuple[int, ...], list[str]] = {}
        for row in rows.get(record.digest, ()):
            if record.dataset in row.get("datasets", (record.dataset,)):
                shapes.setdefault(_shape(reader, row["key"]), []).append(row["key"])
        if not shapes:
            raise StepError(f"no latent for {record.text!r} ({record.digest[:12]}); build the latents step again")
        dataset = datasets[record.dataset]
        for shape in sorted(shapes):
            split[record.split].append(
                Example(
                    key=record.key if len(shapes) == 1 else f"{record.key}@{shape[-1]}x{shape[-2]}",
                    digest=record.digest,
                    dataset=record.dataset,
                    text=record.text,
                    texts=texts_of(record, dataset.get("tags")),
                    latents=tuple(shapes[shape]),
                    shape=shape,
                    repeats=dataset["repeats"],
                    mask_minimum=dataset.get("mask_minimum", 0.0),
                )
            )
    return split["train"], split["holdout"]


def read_class_examples(latents: Path, *, prompt: str, weight: float) -> list[Example]:
    """Return the pictures that the base drew of a class, sorted by key."""
    reader = ShardReader(latents)
    rows: dict[str, list[str]] = {}
    for row in sorted(_rows(latents), key=lambda row: (row["digest"], row["flip"])):
        if "prior" in row:
            rows.setdefault(row["digest"], []).append(row["key"])
    return [
        Example(
            key=f"prior:{digest}",
            digest=digest,
            dataset=-1,
            text=prompt,
            texts=(prompt,),
            latents=tuple(keys),
            shape=_shape(reader, keys[0]),
            weight=weight,
        )
        for digest, keys in sorted(rows.items())
    ]


def sampler_of(
    examples: Sequence[Example], datasets: Sequence[Mapping[str, Any]], *, batch: int, seed: int
) -> Sampler | WeightedSampler:
    """Return what decides the order of examples, by the datasets' repeats or weights.

    Args:
        examples: to train on.
        datasets: of the train step's spec.
        batch: examples a step.
        seed: of the training.
    """
    keys = [example.key for example in examples]
    shapes = [example.shape for example in examples]
    weights = {index: dataset["weight"] for index, dataset in enumerate(datasets) if "weight" in dataset}
    if weights:
        numbers = [example.dataset for example in examples]
        return WeightedSampler(keys, shapes, numbers, weights=weights, batch=batch, seed=seed)
    return Sampler(keys, shapes, batch=batch, seed=seed, repeats=[example.repeats for example in examples])


def pictures(examples: Iterable[Example]) -> int:
    """Count pictures: of those at several resolutions each is one."""
    return len({(example.dataset, example.digest) for example in examples})


def read_texts(text: Path) -> dict[str, str]:
    """Return the item key of each caption that the text step encoded."""
    return {row["text"]: row["key"] for row in _rows(text)}


def places_of(images: Path) -> dict[str, str]:
    """Return where pictures lie, by digest, from an `images.jsonl`; nothing where there is none.

    Training does not depend on it: a picture that was renamed is the same one.
    """
    return {row.digest: row.path for row in read_images(images)} if images.is_file() else {}


def data_digest(captions: Sequence[CaptionRecord], folders: Sequence[Path]) -> str:
    """Return the sha256 (hex) of what is trained on: captions with their splits, and the keys of their items."""
    digest = hashlib.sha256()
    for record in sorted(captions, key=lambda record: record.key):
        digest.update(json.dumps([record.key, record.text, record.split, *record.others]).encode() + b"\n")
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
