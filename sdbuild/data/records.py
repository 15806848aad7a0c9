"""Rows of `images.jsonl` and `captions.jsonl`: what they hold, how they are read and written.

One JSON object a line, in a fixed order with fixed spelling, so equal records are equal bytes. Files are written
to a temporary name and renamed. Importing this module is light: the planner reads rows too.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from sdbuild.data.buckets import Fit
from sdbuild.data.listing import shown
from sdbuild.errors import DataError, Problem
from sdbuild.storage.atomic import renamed_to

Split = Literal["train", "holdout"]
Origin = Literal["sidecar", "filename", "template", "jsonl", "anthropic", "openai", "transformers"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageRecord:
    """One picture of a dataset, with its place in a bucket."""

    path: str
    """Posix, relative to the project."""
    dataset: int
    """Index in the recipe's list of datasets."""
    digest: str
    """Pixel digest, see `pictures.pixel_digest`."""
    width: int
    """In pixels, after EXIF orientation."""
    height: int
    bucket: tuple[int, int]
    """Width and height that are trained on."""
    resize: tuple[int, int]
    """Width and height to scale the picture to, before it is cropped to the bucket."""
    crop: tuple[int, int]
    """Left and top of the bucket in the scaled picture."""
    split: Split
    duplicates: tuple[str, ...] = ()
    """Other paths of the same dataset with the same pixels."""
    further: tuple[Fit, ...] = ()
    """Other ways in which it is seen: at other resolutions, with other crops."""
    mask: str | None = None
    """Path of its mask, or `masks.ALPHA`; None where all of it counts."""

    @classmethod
    def whole(cls, *, path: str, dataset: int, digest: str, size: tuple[int, int]) -> Self:
        """A picture to train on as it is, in a bucket of its own size."""
        width, height = size
        return cls(
            path=path,
            dataset=dataset,
            digest=digest,
            width=width,
            height=height,
            bucket=size,
            resize=size,
            crop=(0, 0),
            split="train",
        )

    @property
    def key(self) -> str:
        """Name of the record in random draws: stable under renaming."""
        return f"{self.dataset}:{self.digest}"

    @property
    def fits(self) -> tuple[Fit, ...]:
        """All ways in which it is seen."""
        return Fit(bucket=self.bucket, resize=self.resize, crop=self.crop), *self.further


@dataclass(frozen=True, kw_only=True, slots=True)
class SkippedImage:
    """A picture that could not be used, left out because the recipe says ``on_error: skip``."""

    path: str
    dataset: int
    skipped: str
    """Why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionRecord:
    """The caption of one picture. It names pixels and no path, so renaming a picture leaves it as it is."""

    digest: str
    dataset: int
    text: str
    origin: Origin
    split: Split
    others: tuple[str, ...] = ()
    """Further captions of the picture."""
    said: tuple[tuple[str, str], ...] = ()
    """What a model said, by the key of the item: so that a later build need not ask again."""

    @property
    def key(self) -> str:
        """The same key as that of the picture's `ImageRecord`."""
        return f"{self.dataset}:{self.digest}"


def iter_images(path: Path) -> Iterator[ImageRecord | SkippedImage]:
    """Rows of an `images.jsonl`, in the file's order.

    Raises:
        DataError: a line is not a row; the message names file and line.
    """
    for number, row in _lines(path):
        try:
            if "skipped" in row:
                yield SkippedImage(path=row["path"], dataset=row["dataset"], skipped=row["skipped"])
                continue
            fit = _fit(row)
            yield ImageRecord(
                path=row["path"],
                dataset=row["dataset"],
                digest=row["digest"],
                width=row["width"],
                height=row["height"],
                bucket=fit.bucket,
                resize=fit.resize,
                crop=fit.crop,
                split=row["split"],
                duplicates=tuple(row.get("duplicates", ())),
                further=tuple(map(_fit, row.get("further", ()))),
                mask=row.get("mask"),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise _bad_row(path, number) from error


def read_images(path: Path) -> list[ImageRecord]:
    """The pictures of an `images.jsonl`, without the skipped ones."""
    return [row for row in iter_images(path) if isinstance(row, ImageRecord)]


def read_skipped(path: Path) -> list[SkippedImage]:
    """The pictures that were skipped."""
    return [row for row in iter_images(path) if isinstance(row, SkippedImage)]


def write_images(path: Path, rows: Iterable[ImageRecord | SkippedImage]) -> None:
    """Write rows sorted by (dataset, path)."""
    write_lines(path, map(_image_row, sorted(rows, key=lambda row: (row.dataset, row.path))))


def read_class_pictures(folder: Path, project: Path) -> list[ImageRecord]:
    """The pictures of a `prior/`, as records of one bucket, of their own size.

    Raises:
        DataError: a line of its index is not a row.
    """
    found = []
    for number, row in _lines(folder / "index.jsonl"):
        try:
            path = (folder / row["file"]).relative_to(project).as_posix()
            size = row["width"], row["height"]
            found.append(ImageRecord.whole(path=path, dataset=0, digest=row["digest"], size=size))
        except (KeyError, TypeError) as error:
            raise _bad_row(folder / "index.jsonl", number) from error
    return found


def iter_captions(path: Path) -> Iterator[CaptionRecord]:
    """Rows of a `captions.jsonl`, in the file's order.

    Raises:
        DataError: a line is not a row; the message names file and line.
    """
    for number, row in _lines(path):
        if "skipped" in row:
            continue
        try:
            yield CaptionRecord(
                digest=row["digest"],
                dataset=row["dataset"],
                text=row["text"],
                origin=row["origin"],
                split=row["split"],
                others=tuple(row.get("others", ())),
                said=tuple(row.get("said", {}).items()),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise _bad_row(path, number) from error


def read_captions(path: Path) -> list[CaptionRecord]:
    """All rows of a `captions.jsonl`."""
    return list(iter_captions(path))


def write_captions(path: Path, rows: Iterable[CaptionRecord], *, skipped: int = 0) -> None:
    """Write rows sorted by (dataset, digest), and last the number of skipped pictures if there are any."""
    lines: list[Mapping[str, Any]] = [_caption_row(row) for row in sorted(rows, key=_dataset_and_digest)]
    write_lines(path, [*lines, {"skipped": skipped}] if skipped else lines)


def count_skipped(path: Path) -> int:
    """The number of pictures that were skipped, as a `captions.jsonl` tells it to the steps after it."""
    return sum(row.get("skipped", 0) for _, row in _lines(path))


def _dataset_and_digest(row: CaptionRecord) -> tuple[int, str]:
    return row.dataset, row.digest


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object a line, to a temporary name which is then renamed."""
    with (
        renamed_to(path) as temporary,
        temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as file,
    ):  # half surrogates, as models may say them, become what JSON writes for them
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, separators=(", ", ": ")) + "\n")


def _image_row(row: ImageRecord | SkippedImage) -> dict[str, Any]:
    if isinstance(row, SkippedImage):
        return {"path": row.path, "dataset": row.dataset, "skipped": row.skipped}
    fields: dict[str, Any] = {
        "path": row.path,
        "dataset": row.dataset,
        "digest": row.digest,
        "width": row.width,
        "height": row.height,
        "bucket": row.bucket,
        "resize": row.resize,
        "crop": row.crop,
        "split": row.split,
    }
    if row.duplicates:
        fields["duplicates"] = row.duplicates
    if row.further:
        fields["further"] = [{"bucket": fit.bucket, "resize": fit.resize, "crop": fit.crop} for fit in row.further]
    if row.mask is not None:
        fields["mask"] = row.mask
    return fields


def _fit(row: Mapping[str, Any]) -> Fit:
    (width, height), (scaled_width, scaled_height), (left, top) = row["bucket"], row["resize"], row["crop"]
    return Fit(bucket=(width, height), resize=(scaled_width, scaled_height), crop=(left, top))


def _caption_row(row: CaptionRecord) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "digest": row.digest,
        "dataset": row.dataset,
        "text": row.text,
        "origin": row.origin,
        "split": row.split,
    }
    if row.others:
        fields["others"] = row.others
    if row.said:
        fields["said"] = dict(row.said)
    return fields


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Read rows that `write_lines` has written."""
    yield from (row for _, row in _lines(path))


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    decode = json.JSONDecoder().decode
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                row = decode(line.decode())
            except (ValueError, RecursionError) as error:
                raise _bad_row(path, number) from error
            if not isinstance(row, dict):
                raise _bad_row(path, number)
            yield number, row


def _bad_row(path: Path, number: int) -> DataError:
    message = "not a row of this file; it is damaged or from another version: delete it and build again"
    return DataError([Problem(file=shown(path), line=number, message=message)])
