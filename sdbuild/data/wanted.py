"""Which items cover a recipe's pictures and captions: their keys. Light: the planner counts with them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sdbuild.data.buckets import Fit
from sdbuild.data.items import item_key
from sdbuild.data.records import CaptionRecord, ImageRecord
from sdbuild.data.tags import distinct_texts


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """A picture in one bucket."""

    record: ImageRecord
    fit: Fit
    datasets: tuple[int, ...] | None
    """Datasets that see the picture so; None for all that have it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WantedLatent:
    """One latent and what it is made of."""

    placement: Placement
    flip: bool

    @property
    def geometry(self) -> tuple[int, int, int, int, int, int]:
        """Height and width of the picture as it was, top and left of its crop, height and width of the crop.

        As Stable Diffusion XL sees them (Podell et al. 2023, section 2.2): the crop lies in the scaled picture, and in
        a mirrored one at its mirrored place.
        """
        record, fit = self.placement.record, self.placement.fit
        left, top = fit.crop
        if self.flip:
            left = fit.resize[0] - fit.bucket[0] - left
        return record.height, record.width, top, left, fit.bucket[1], fit.bucket[0]


def placements(records: Iterable[ImageRecord]) -> Iterator[Placement]:
    """Yield every way in which some pictures are seen, each once; equal pixels are one picture."""
    datasets: dict[str, set[int]] = {}
    found: dict[tuple[str, Fit], tuple[ImageRecord, set[int]]] = {}
    for record in records:
        datasets.setdefault(record.digest, set()).add(record.dataset)
        for fit in record.fits:
            found.setdefault((record.digest, fit), (record, set()))[1].add(record.dataset)
    for (digest, fit), (record, seeing) in found.items():
        some = None if seeing == datasets[digest] else tuple(sorted(seeing))
        yield Placement(record=record, fit=fit, datasets=some)


def wanted_latents(records: Iterable[ImageRecord], spec: Mapping[str, Any], vae_digest: str) -> dict[str, WantedLatent]:
    """Return the items that cover some pictures, by key."""
    found: dict[str, WantedLatent] = {}
    flips = (False, True) if spec["flip"] else (False,)
    own = {key: spec[key] for key in ("vae_tiling",) if key in spec}
    for placement in placements(records):
        fit = placement.fit
        for flip in flips:
            key = item_key(
                "latent",
                digest=placement.record.digest,
                bucket=fit.bucket,
                resize=fit.resize,
                crop=fit.crop,
                flip=flip,
                vae=vae_digest,
                dtype=spec["dtype"],
                **own,
            )
            found[key] = WantedLatent(placement=placement, flip=flip)
    return found


def wanted_texts(captions: Iterable[CaptionRecord], spec: Mapping[str, Any], encoder_digest: str) -> dict[str, str]:
    """Return the texts to encode, each once, by item key; with the empty one where the spec wants it."""
    texts = distinct_texts(captions, spec) | ({""} if spec["empty"] else set())
    texts |= {spec["prior"]} if "prior" in spec else set()
    own = {key: spec[key] for key in ("clip_skip",) if key in spec}
    return {item_key("text", caption=text, encoder=encoder_digest, **own): text for text in texts}


def wanted_class_pictures(spec: Mapping[str, Any], base_digest: str) -> dict[str, int]:
    """Return the seeds of the pictures that a prior wants, by item key."""
    own = {key: value for key, value in spec.items() if key not in ("version", "reads", "pictures", "seed")}
    seeds = range(spec["seed"], spec["seed"] + spec["pictures"])
    return {item_key("class picture", seed=seed, base=base_digest, **own): seed for seed in seeds}
