"""Captions that vary: with which texts a record may be seen.

Variants are functions of the caption and the settings alone, so that they can be encoded once, and every recipe with
the same settings shares them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sdbuild.data.records import CaptionRecord
from sdbuild.data.sampler import derive


def texts_of(record: CaptionRecord, tags: Mapping[str, Any] | None) -> tuple[str, ...]:
    """All texts that a record may be seen with, each as likely as the others, so one may be there twice.

    What is held out is seen with its first caption as it is.
    """
    if record.split == "holdout":
        return (record.text,)
    texts = (record.text, *record.others)
    if tags is None:
        return texts
    return tuple(variant(text, index, tags) for text in texts for index in range(tags["variants"]))


def distinct_texts(captions: Iterable[CaptionRecord], spec: Mapping[str, Any]) -> set[str]:
    """All texts that some records may be seen with.

    Args:
        captions: rows of `captions.jsonl`.
        spec: of the text step; `{"datasets": [{"tags"}]}` where tags vary.
    """
    tags = [dataset.get("tags") for dataset in spec.get("datasets", ())]
    return {text for record in captions for text in texts_of(record, tags[record.dataset] if tags else None)}


def variant(text: str, index: int, tags: Mapping[str, Any]) -> str:
    """The `index`-th variant of a caption: its first tags as they are, the others drawn.

    Args:
        text: the caption.
        index: from 0.
        tags: the dataset's `tags`.
    """
    mark = tags["separator"].strip() or tags["separator"]
    found = [tag for part in text.split(mark) if (tag := part.strip())]
    places = range(tags["keep"], len(found))
    left = [place for place in places if _draw(text, index, place, "tag dropout") >= tags["dropout"] * 2**64]
    if tags["shuffle"]:
        left.sort(key=lambda place: _draw(text, index, place, "tag order"))
    joint = f"{mark} " if mark.strip() else mark
    return joint.join([*found[: tags["keep"]], *(found[place] for place in left)])


def _draw(text: str, index: int, place: int, purpose: str) -> int:
    return derive(0, index, f"{place} {text}", purpose)
