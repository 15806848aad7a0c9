"""Pictures as the images step will list them, without looking at those that nobody has looked at yet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any

from sdbuild.build.oracle import Oracle
from sdbuild.data import masks, views
from sdbuild.data.pixelcache import CACHE_NAME, PixelCache, Pixels
from sdbuild.data.placing import Findings, hold_out, place
from sdbuild.data.records import ImageRecord
from sdbuild.plan.model import Step

_LARGE = 1 << 16
"""Side of a picture that nobody has looked at yet: models will be shown it as large as may be."""


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What is known of a recipe's pictures before they are listed."""

    known: tuple[tuple[int, str, Pixels], ...]
    """Dataset, path and pixels of those that were looked at before."""
    new: tuple[ImageRecord, ...]
    """The others: each counts as a picture of its own, of the largest size."""
    spec: Mapping[str, Any]
    """Of the images step."""

    def __len__(self) -> int:
        return len({(dataset, pixels.digest) for dataset, _, pixels in self.known}) + len(self.new)

    @property
    def datasets(self) -> frozenset[int]:
        """Those that have pictures, by their index."""
        return frozenset({*(dataset for dataset, _, _ in self.known), *(row.dataset for row in self.new)})

    @cached_property
    def placed(self) -> list[ImageRecord]:
        """The known ones in their buckets."""
        findings = Findings()  # told when the step runs
        return hold_out(place(self.known, {}, self.spec, findings), self.spec["datasets"], findings)

    @property
    def all(self) -> list[ImageRecord]:
        """Records of all."""
        return [*self.placed, *self.new]


def expected(oracle: Oracle, images: Step) -> Expected | None:
    """What an images step will list; None where a dataset has to be brought back before one can tell."""
    cache = PixelCache(oracle.project.items / CACHE_NAME)
    known: list[tuple[int, str, Pixels]] = []
    new: dict[str, ImageRecord] = {}
    for index, dataset in enumerate(images.spec["datasets"]):
        folder, mask = PurePosixPath(dataset["path"]).as_posix(), dataset.get("mask")
        if not (oracle.project.root / folder).is_dir():
            if oracle.content(folder) is not None:
                return None
            continue
        listing = views.pictures(oracle.stat.listing(folder, whole=True))
        keys = list(masks.pixel_keys(listing, mask, images.spec["background"]))
        found = cache.pixels(keys)
        for name, key in zip(masks.pair(sorted(listing), mask).pictures, keys, strict=True):
            path = f"{folder}/{name}"
            if key in found:
                known.append((index, path, found[key]))
            else:
                whole = ImageRecord.whole(path=path, dataset=index, digest=f"{key}", size=(_LARGE, _LARGE))
                new.setdefault(whole.key, whole)
    return Expected(known=tuple(known), new=tuple(new.values()), spec=images.spec)
