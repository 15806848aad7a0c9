"""Writing captions beside their pictures, so that nothing is lost.

A caption is only written over what the writer has seen: somebody else's change meanwhile is a conflict, which is
reported and left alone. Files are written whole under a temporary name and renamed.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath

from sdbuild.data.captions import Texts, hand_written
from sdbuild.data.handwritten import Fits
from sdbuild.data.listing import Sidecars, nfc, scan
from sdbuild.data.textfiles import is_encodable
from sdbuild.errors import DataError, Problem
from sdbuild.review.gather import HAND, Entry, Material, stamp_of
from sdbuild.storage.atomic import write_atomic
from sdbuild.storage.text_cleaning import clean


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """What shall stand beside a picture."""

    entry: Entry
    texts: Texts
    stamp: str
    """Of the captions that the writer has seen."""


@dataclass(slots=True)
class Written:
    """What became of changes."""

    files: list[str] = field(default_factory=list)
    """Sidecars that were written, relative to the project."""
    conflicts: list[Problem] = field(default_factory=list)
    """Captions that somebody else changed meanwhile; they were left alone."""
    problems: list[Problem] = field(default_factory=list)
    """Captions that cannot be written."""

    @property
    def refused(self) -> list[Problem]:
        """All that was not written."""
        return [*self.conflicts, *self.problems]


class _Folder:
    """The caption files of a dataset as they lie on disk, and whose they are."""

    def __init__(self, material: Material, path: str) -> None:
        self.path = path
        self.root = material.project.root
        self._sidecars = Sidecars(scan(self.root / path).sidecars)
        self._owners: dict[str, list[Entry]] = {}
        self._stems: dict[str, set[str]] = {}
        for entry in material.entries:
            if entry.dataset.path == path:
                for file in self.files(entry):
                    self._owners.setdefault(file, []).append(entry)
                for picture in entry.pictures:
                    self._stems.setdefault(_stem(picture), set()).add(entry.key)

    def files(self, entry: Entry) -> list[str]:
        """Caption files of a picture that count, relative to the folder."""
        return next(filter(None, map(self._sidecars.of, entry.pictures)), [])

    def shared(self, entry: Entry) -> tuple[str, Entry] | None:
        """A caption file of a picture that is another one's too, as cat.txt of cat.png and cat.jpg is."""
        owners = ((file, other) for file in self.files(entry) for other in self._owners[file])
        return next(((file, other) for file, other in owners if other.key != entry.key), None)

    def says(self, entry: Entry) -> Texts | Problem | None:
        """What they say at this moment."""
        return hand_written(self.root, self.path, self._sidecars, entry.pictures, lines=entry.dataset.lines)

    def holds_nothing(self, entry: Entry) -> bool:
        """Whether the caption files of a picture are empty."""
        files = (self.root / self.path / file for file in self.files(entry))
        return not any(file.read_bytes().strip() for file in files if file.is_file())

    def put(self, entry: Entry, texts: Texts) -> list[str]:
        """Write a caption; the paths of its files relative to the project."""
        picture = entry.pictures[0]
        alone = len(self._stems[_stem(picture)]) == 1
        files = self.files(entry) or [f"{os.path.splitext(picture)[0]}.txt" if alone else f"{picture}.txt"]
        for file in files:
            write_atomic(self.root / self.path / file, "\n".join(texts) + "\n")
        return [f"{self.path}/{file}" for file in files]


def _stem(picture: str) -> str:
    return nfc(os.path.splitext(picture)[0])


def texts_of(text: str, entry: Entry) -> Texts:
    """Captions from what a person typed: one line of it, or several where a picture has several captions."""
    return tidied(text.split("\n") if entry.several else [text])


def tidied(texts: Iterable[str]) -> Texts:
    """Captions in one line each, without empty ones, each once."""
    return tuple(dict.fromkeys(filter(None, map(clean, texts))))


def write(material: Material, changes: Iterable[Change]) -> Written:
    """Write sidecars, and remember which pictures they were written for.

    Raises:
        DataError: a dataset's folder cannot be written to.
    """
    written = Written()
    todo, done = list(changes), []
    with _alone(material):
        folders = {path: _Folder(material, path) for path in {change.entry.dataset.path for change in todo}}
        for change in todo:
            folder = folders[change.entry.dataset.path]
            if problem := _unwritable(change, folder):
                written.problems.append(problem)
            elif conflict := _conflict(change, folder):
                written.conflicts.append(conflict)
            else:
                try:
                    written.files += folder.put(change.entry, change.texts)
                except OSError as error:
                    message = f"its caption cannot be written ({error.strerror})"
                    written.problems.append(Problem(file=change.entry.path, message=message))
                else:
                    done.append(replace(change.entry, bare=change.texts))
        confirm(material, done)
    return written


def confirm(material: Material, entries: Iterable[Entry]) -> None:
    """Remember that hand-written captions fit their pictures as they are now.

    Raises:
        DataError: a dataset's folder cannot be written to.
    """
    fits = [entry.fit() for entry in entries]
    try:
        Fits(material.project.root, material.project.items, {fit.dataset for fit in fits}).confirm(fits)
    except OSError as error:
        message = f"cannot be written to ({error.strerror}), so it is not remembered which pictures were looked at"
        raise DataError([Problem(file=fits[0].dataset, message=message)]) from error


def _unwritable(change: Change, folder: _Folder) -> Problem | None:
    """Why these captions cannot be written at all."""
    entry = change.entry
    if not change.texts:
        return Problem(file=entry.path, message="an empty caption; write what the picture shows")
    if len(change.texts) > 1 and not entry.dataset.lines:
        message = "a sidecar holds one caption: keep one of these, or set lines: true for the dataset in the recipe"
        return Problem(file=entry.path, message=message)
    if not all(map(is_encodable, change.texts)):
        return Problem(file=entry.path, message="a caption that is not valid Unicode")
    if shared := folder.shared(entry):
        what = f"{shared[0]} is the caption of {PurePosixPath(shared[1].path).name} too"
        return Problem(file=entry.path, message=f"{what}; rename one of the two pictures, or edit that file")
    return None


def _conflict(change: Change, folder: _Folder) -> Problem | None:
    """Why the caption on disk may not be written over."""
    entry = change.entry
    found = folder.says(entry)
    if isinstance(found, Problem):
        if folder.holds_nothing(entry):
            return None
        return Problem(file=found.file, line=found.line, message=f"{found.message}; it was left as it is")
    before = () if entry.origin == HAND else entry.bare
    if found == change.texts or stamp_of(before if found is None else found) == change.stamp:
        return None
    said = f"it says {' | '.join(found)!r} now" if found is not None else "its caption file is gone"
    return Problem(file=entry.path, message=f"somebody changed this caption meanwhile ({said}); it was left as it is")


@contextmanager
def _alone(material: Material) -> Iterator[None]:
    """Keep other commands from writing captions at the same moment."""
    path = material.project.private / "captions" / "lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
