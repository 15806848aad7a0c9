"""From pictures to records: which can be used, their bucket, the same picture twice, the hold-out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any

from sdbuild.data.buckets import Fit, Size, bucket_sizes, fit_to_bucket, nearest_bucket, random_fits
from sdbuild.data.pixelcache import Pixels
from sdbuild.data.records import ImageRecord
from sdbuild.errors import Problem

MAX_ENLARGED = 8
"""A picture that would have to be enlarged more than this holds nothing to learn from."""

MIN_SHOWN = 4
"""A picture is refused when its bucket would show less than a quarter (one part in four) of it."""


@dataclass(slots=True)
class Findings:
    """What there is to say about a recipe's pictures."""

    datasets: list[Problem] = field(default_factory=list)
    """About whole datasets: no pictures, hold-out too large. These cannot be skipped."""
    pictures: dict[tuple[int, str], Problem] = field(default_factory=dict)
    """About single pictures, by dataset and path."""
    notes: dict[str, list[str]] = field(default_factory=dict)
    """Warnings, each with the pictures that it is about."""

    def note(self, message: str, path: str) -> None:
        """Add a picture to those that a warning is about."""
        self.notes.setdefault(message, []).append(path)

    def warnings(self) -> list[str]:
        """The notes as sentences with counts, each naming one picture."""
        texts = []
        for message, paths in self.notes.items():
            count = "1 picture" if len(paths) == 1 else f"{len(paths)} pictures"
            texts.append(f"{count} {message} ({paths[0]}{', …' if len(paths) > 1 else ''})")
        return texts


def place(
    pictures: Iterable[tuple[int, str, Pixels]], masks: Mapping[str, str], spec: Mapping[str, Any], findings: Findings
) -> list[ImageRecord]:
    """Put pictures into buckets, each once a dataset, all of them to train on.

    Args:
        pictures: dataset, path and pixels; the first path of a dataset's equal pictures names the record.
        masks: by path; see `masks.pair`.
        spec: `{"datasets": [{"resolutions"?}], "resolution", "buckets": {"step", "max_aspect"}, "crop", "crops"?}`.
        findings: told of pictures that cannot be used and of those worth a word.
    """
    max_aspect = spec["buckets"]["max_aspect"]
    sizes_of = [
        [bucket_sizes(resolution, spec["buckets"]["step"], max_aspect) for resolution in resolutions]
        for resolutions in (dataset.get("resolutions", [spec["resolution"]]) for dataset in spec["datasets"])
    ]
    records: dict[tuple[int, str], ImageRecord] = {}
    for dataset, path, known in sorted(pictures, key=lambda picture: picture[:2]):
        message = next(filter(None, (_unusable(known, sizes, max_aspect) for sizes in sizes_of[dataset])), None)
        if message is not None:
            findings.pictures[dataset, path] = Problem(file=path, message=message)
            continue
        if known.frames_dropped:
            findings.note("animated or of several pages: only the first is used", path)
        first = records.get((dataset, known.digest))
        if first is not None:
            findings.note("left out, as another in the same dataset has the same pixels", path)
            records[dataset, known.digest] = replace(first, duplicates=(*first.duplicates, path))
            continue
        fit, *further = (fit for sizes in sizes_of[dataset] for fit in _fits(known, sizes, spec))
        if any(each.resize[0] > 2 * known.width for each in (fit, *further)):
            findings.note("enlarged to more than twice the size", path)
        records[dataset, known.digest] = ImageRecord(
            path=path,
            dataset=dataset,
            digest=known.digest,
            width=known.width,
            height=known.height,
            bucket=fit.bucket,
            resize=fit.resize,
            crop=fit.crop,
            split="train",
            further=tuple(further),
            mask=masks.get(path),
        )
    return list(records.values())


def hold_out(
    records: Sequence[ImageRecord], datasets: Sequence[Mapping[str, Any]], findings: Findings
) -> list[ImageRecord]:
    """Choose the hold-out of each dataset by digest; pixels held out of one are held out of all.

    Args:
        records: from `place`.
        datasets: `{"path", "holdout"}` each.
        findings: told of datasets of which nothing is left to train on.
    """
    held: set[str] = set()
    for index, dataset in enumerate(datasets):
        digests = [record.digest for record in records if record.dataset == index]
        held.update(sorted(digests, key=_draw)[: dataset["holdout"]])
    trained = {record.dataset for record in records if record.digest not in held}
    for index, dataset in enumerate(datasets):
        count = sum(record.dataset == index for record in records)
        if count and index not in trained:
            wanted = dataset["holdout"]
            folder = PurePosixPath(dataset["path"]).as_posix()
            message = f"is {wanted}, but only {count} pictures of {folder} can be used: lower it to {count - 1}"
            if wanted < count:
                message = f"all pictures of {folder} are held out of this or another dataset: lower holdout"
            findings.datasets.append(Problem(field=f"datasets[{index}].holdout", message=message))
    return [replace(record, split="holdout") if record.digest in held else record for record in records]


def _draw(digest: str) -> str:
    return hashlib.sha256(f"{digest}holdout".encode()).hexdigest()


def _fits(known: Pixels, sizes: tuple[Size, ...], spec: Mapping[str, Any]) -> tuple[Fit, ...]:
    bucket = nearest_bucket(known.width, known.height, sizes)
    if spec["crop"] == "random":
        return random_fits(known.width, known.height, bucket, known.digest, spec.get("crops", 1))
    return (fit_to_bucket(known.width, known.height, bucket, spec["crop"]),)


def _unusable(known: Pixels, sizes: tuple[Size, ...], max_aspect: float) -> str | None:
    """Why a picture of this size cannot be used."""
    width, height = known.width, known.height
    bucket = nearest_bucket(width, height, sizes)
    across, down = width * bucket[1], height * bucket[0]
    if MAX_ENLARGED * width < bucket[0] or MAX_ENLARGED * height < bucket[1]:
        least = f"{-(-bucket[0] // MAX_ENLARGED)}×{-(-bucket[1] // MAX_ENLARGED)}"
        where = f"for its bucket of {bucket[0]}×{bucket[1]}"
        return f"too small ({width}×{height} pixels) {where}; use at least {least} pixels"
    if max(across, down) > MIN_SHOWN * min(across, down):
        shape = f"{width}×{height} pixels, buckets end at {max_aspect:g}:1"
        remedy = "crop it, or raise images.buckets.max_aspect"
        return f"too long and narrow ({shape}): less than a quarter of it would be seen; {remedy}"
    return None
