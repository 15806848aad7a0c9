"""Which picture a hand-written caption was written for, so that another picture under it is asked about.

A caption beside a picture always counts, and goes on counting when the picture changes; but somebody should look. So it
is remembered which pixels were under which text. What was written through sdbuild, or said to fit, stands in a hidden
file in the dataset's folder, which travels with it. What builds saw first stands in a local file among the items.
Both only grow: whatever fits once, fits for ever, and two such files are merged by joining their lines. Light.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from sdbuild.data.captions import one_line, without_trigger
from sdbuild.data.listing import relative_to
from sdbuild.data.records import CaptionRecord, ImageRecord
from sdbuild.storage.regular_files import SpecialFileError, read_regular, special_at

SHARED_NAME = ".captions-fit.jsonl"
"""In a dataset's folder; hidden files there are neither pictures nor captions."""
LOCAL_NAME = "captions-fit.jsonl"
"""Beside the item stores, in `.sdbuild/items`."""


@dataclass(frozen=True, slots=True)
class Fit:
    """A hand-written caption and the pixels that it was written for."""

    dataset: str
    """Folder, relative to the project."""
    picture: str
    """Path relative to that folder."""
    caption: str
    """Digest of the text."""
    digest: str
    """Of the pixels."""

    @classmethod
    def of(cls, image: ImageRecord, record: CaptionRecord, dataset: Mapping[str, Any]) -> Fit:
        """Take it from the rows of a picture; `dataset` is its part of the captions step's spec."""
        folder = PurePosixPath(dataset["path"]).as_posix()
        trigger = one_line(dataset.get("trigger") or "")
        bare = [without_trigger(text, trigger) for text in (record.text, *record.others)]
        return cls(
            dataset=folder,
            picture=relative_to(image.path, folder),
            caption=hashlib.sha256("\n".join(bare).encode()).hexdigest()[:16],
            digest=image.digest,
        )


class Fits:
    """What is remembered of the captions of a project."""

    def __init__(self, project: Path, items: Path, datasets: Iterable[str]) -> None:
        """Read it; what cannot be read is as if it were not there.

        Args:
            project: root of the project.
            items: root of the item stores.
            datasets: folders, relative to the project.
        """
        self._project = project
        self._local = items / LOCAL_NAME
        self._known: dict[tuple[str, str, str], set[str]] = {}
        for dataset in dict.fromkeys(datasets):
            self._read(project / dataset / SHARED_NAME, dataset)
        self._read(self._local, None)

    def changed(self, fits: Iterable[Fit]) -> list[Fit]:
        """Those under whose text another picture lay when it was written."""
        return [fit for fit in fits if fit.digest not in self._of(fit) and self._of(fit)]

    def note(self, fits: Iterable[Fit]) -> None:
        """Remember here what a build sees for the first time."""
        new = [fit for fit in fits if not self._of(fit)]
        self._add(self._local, new, lambda fit: {"dataset": fit.dataset, **_row(fit)})

    def confirm(self, fits: Iterable[Fit]) -> None:
        """Remember, with the dataset, that captions fit their pictures.

        Raises:
            OSError: the dataset's folder cannot be written to.
        """
        by_dataset: dict[str, list[Fit]] = {}
        for fit in fits:
            by_dataset.setdefault(fit.dataset, []).append(fit)
        for dataset, new in by_dataset.items():
            self._add(self._project / dataset / SHARED_NAME, new, _row)

    def _of(self, fit: Fit) -> set[str]:
        return self._known.get((fit.dataset, fit.picture, fit.caption), set())

    def _add(self, path: Path, fits: Sequence[Fit], row: Any) -> None:
        """Append lines, in one go; a line that was cut short before is ended."""
        if not fits:
            return
        text = "".join(json.dumps(row(fit), ensure_ascii=False) + "\n" for fit in fits)
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind := special_at(path):
            raise SpecialFileError(errno.EINVAL, f"{kind}, not a file", str(path))
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        with os.fdopen(descriptor, "rb+", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            if end and os.pread(descriptor, 1, end - 1) != b"\n":
                text = "\n" + text
            file.write(text.encode("utf-8", "surrogatepass"))
        for fit in fits:
            self._known.setdefault((fit.dataset, fit.picture, fit.caption), set()).add(fit.digest)

    def _read(self, path: Path, dataset: str | None) -> None:
        for row in _rows(path):
            values = [dataset or row.get("dataset"), *(row.get(key) for key in ("picture", "caption", "digest"))]
            if all(isinstance(value, str) for value in values):
                folder, picture, caption, digest = values
                self._known.setdefault((folder, picture, caption), set()).add(digest)  # type: ignore[arg-type]


def _row(fit: Fit) -> dict[str, str]:
    return {"picture": fit.picture, "caption": fit.caption, "digest": fit.digest}


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    try:
        lines = read_regular(path).decode("utf-8", "surrogateescape").split("\n")
    except OSError:
        return
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            yield row


def look_at_pictures(
    images: Iterable[ImageRecord],
    captions: Iterable[CaptionRecord],
    datasets: Sequence[Mapping[str, Any]],
    project: Path,
    items: Path,
) -> list[str]:
    """Paths of pictures that changed under their hand-written caption; what is new is remembered.

    Args:
        images: rows of `images.jsonl`.
        captions: rows of `captions.jsonl`.
        datasets: of the captions step's spec.
        project: root of the project.
        items: root of the item stores.
    """
    by_key = {image.key: image for image in images}
    found = [
        Fit.of(by_key[record.key], record, datasets[record.dataset])
        for record in captions
        if record.origin == "sidecar" and record.key in by_key
    ]
    fits = Fits(project, items, [fit.dataset for fit in found])
    changed = fits.changed(found)
    try:
        fits.note(found)
    except SpecialFileError:
        raise
    except OSError:  # who may only read is told what is known
        pass
    return [f"{fit.dataset}/{fit.picture}" for fit in changed]
