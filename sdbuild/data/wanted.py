"""Which items cover a recipe's pictures and captions: their keys. Light: the planner counts with them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sdbuild.data.items import item_key
from sdbuild.data.records import ImageRecord


@dataclass(frozen=True, kw_only=True, slots=True)
class WantedLatent:
    """One latent and the picture that it is made of."""

    record: ImageRecord
    flip: bool


def wanted_latents(records: Iterable[ImageRecord], spec: Mapping[str, Any], vae_digest: str) -> dict[str, WantedLatent]:
    """Return the items that cover some pictures, by key; equal pixels are one item."""
    found: dict[str, WantedLatent] = {}
    for record in records:
        for flip in (False, True) if spec["flip"] else (False,):
            key = item_key(
                "latent",
                digest=record.digest,
                bucket=record.bucket,
                resize=record.resize,
                crop=record.crop,
                flip=flip,
                vae=vae_digest,
                dtype=spec["dtype"],
            )
            found.setdefault(key, WantedLatent(record=record, flip=flip))
    return found


def wanted_texts(captions: Iterable[str], spec: Mapping[str, Any], encoder_digest: str) -> dict[str, str]:
    """Return the captions to encode, each once, by item key; with the empty one where the spec wants it."""
    texts = {*captions, ""} if spec["empty"] else set(captions)
    return {item_key("text", caption=text, encoder=encoder_digest): text for text in texts}
