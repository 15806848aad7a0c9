"""Captions to files and back: sidecars in a folder, JSON lines, CSV."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from os.path import splitext
from pathlib import Path, PurePosixPath
from typing import Any

from sdbuild.data.captions import Texts
from sdbuild.data.listing import Sidecars, nfc, scan, shown
from sdbuild.errors import DataError, Problem, UsageError
from sdbuild.review.editing import read_text
from sdbuild.review.gather import HAND, Entry, Material
from sdbuild.review.sidecars import Change, tidied
from sdbuild.storage.atomic import write_atomic

COLUMNS = ("dataset", "file_name", "text", "origin")
"""Keys of JSON lines and columns of CSV; the second and third are those of Hugging Face's image folders."""


def export(material: Material, target: Path, *, trigger: bool, replace: bool) -> int:
    """Write all captions to a `.jsonl` or `.csv` file, or as sidecars into a folder; how many there were.

    Args:
        material: with the captions.
        target: by its ending.
        trigger: whether captions have the trigger in front that a build puts there.
        replace: whether files that are there already are replaced.

    Raises:
        UsageError: there are such files with another content.
        DataError: they cannot be written.
    """
    entries = [entry for entry in material.entries if entry.bare]
    texts = {entry.key: entry.texts if trigger else entry.bare for entry in entries}
    rows = [(entry, texts[entry.key]) for entry in entries]
    match target.suffix.lower():
        case ".jsonl":
            files = {target: _jsonl(rows)}
        case ".csv":
            files = {target: _csv(rows)}
        case "":
            names = _sidecars(material.entries)
            files = {target / names[entry.key]: "\n".join(found) + "\n" for entry, found in rows}
        case ending:
            raise UsageError(f"{target}: {ending} is not written; name a .jsonl or .csv file, or a folder")
    in_the_way = [path for path, text in files.items() if path.exists() and path.read_bytes() != text.encode()]
    if in_the_way and not replace:
        more = f" and {len(in_the_way) - 1} more files are" if len(in_the_way) > 1 else " is"
        raise UsageError(f"{shown(in_the_way[0])}{more} there already; choose another name, or add --replace")
    try:
        for path, text in files.items():
            write_atomic(path, text)
    except OSError as error:
        raise DataError([Problem(file=str(target), message=f"cannot be written ({error.strerror})")]) from None
    return len(entries)


@dataclass(slots=True)
class Imported:
    """What a file of captions holds for a recipe."""

    changes: list[Change] = field(default_factory=list)
    same: int = 0
    """Captions that say what is there already."""
    kept: list[Entry] = field(default_factory=list)
    """Entries whose hand-written caption says something else, and stays."""


def read(material: Material, source: Path, *, replace: bool) -> Imported:
    """Captions of a `.jsonl` or `.csv` file, or of a folder of sidecars, that differ from what is there.

    Args:
        material: what they are compared with.
        source: by its ending.
        replace: whether they may replace hand-written captions.

    Raises:
        DataError: the source cannot be read, or names pictures that are not there; lists all problems.
    """
    found: list[Found] = []
    problems: list[Problem] = []
    if source.is_dir():
        found += _from_folder(material, source)
    else:
        found, problems = _from_file(material, source)
    first: dict[str, Texts] = {}
    imported = Imported()
    for place, entry, given in found:
        texts = tidied(given)
        if not texts:
            problems.append(Problem(file=place[0], line=place[1], message=f"an empty caption for {entry.path}"))
        elif first.setdefault(entry.key, texts) != texts:
            problems.append(Problem(file=place[0], line=place[1], message=f"a second caption for {entry.path}"))
        elif texts == entry.bare:
            imported.same += 1
        elif entry.origin == HAND and not replace:
            imported.kept.append(entry)
        else:
            imported.changes.append(Change(entry=entry, texts=texts, stamp=entry.stamp))
    if problems:
        raise DataError(problems)
    return imported


Place = tuple[str, int | None]
Found = tuple[Place, Entry, Sequence[str]]


def _from_folder(material: Material, source: Path) -> Iterator[Found]:
    sidecars = Sidecars(scan(source).sidecars)
    pictures = _pictures(material.entries)
    for entry in material.entries:
        for name in sidecars.of(pictures[entry.key]):
            yield (shown(source / name), None), entry, _lines(read_text(source / name), entry)


def _from_file(material: Material, source: Path) -> tuple[list[Found], list[Problem]]:
    name, text = shown(source), read_text(source)
    rows: Iterable[tuple[int, Any]]
    match source.suffix.lower():
        case ".jsonl":
            rows = _json_rows(text)
        case ".csv":
            rows = _csv_rows(text, name)
        case ending:
            raise UsageError(f"{source}: {ending or 'this'} is not read; name a .jsonl or .csv file, or a folder")
    found: list[Found] = []
    problems: list[Problem] = []
    index = _index(material)
    for line, row in rows:
        try:
            entry, caption = _row(row, index)
        except ValueError as error:
            problems.append(Problem(file=name, line=line, message=str(error)))
        else:
            found.append(((name, line), entry, caption))
    return found, problems


def _row(row: Any, index: Mapping[str, Sequence[Entry]]) -> tuple[Entry, Sequence[str]]:
    """Entry and captions of a row.

    Raises:
        ValueError: it has none; the message says why.
    """
    if not isinstance(row, dict):
        raise ValueError(f"not an object with {' and '.join(COLUMNS[1:3])}")
    if None in row:  # where CSV's reader puts them
        raise ValueError("more values than columns; put quotation marks around a text that has commas")
    picture = next((row[key] for key in ("file_name", "file") if row.get(key)), None)
    caption = next((row[key] for key in ("text", "caption") if row.get(key)), None)
    captions: Any = [caption] if isinstance(caption, str) else caption
    wrong = not isinstance(captions, list) or not all(isinstance(each, str) for each in captions)
    if wrong or not isinstance(picture, str):
        raise ValueError(f"{COLUMNS[1]} or {COLUMNS[2]} is missing, empty or not a text")
    dataset = row.get("dataset")
    wanted = f"{dataset}/{picture}" if isinstance(dataset, str) and dataset else picture
    entries = index.get(nfc(PurePosixPath(wanted).as_posix()), ())
    if len(entries) != 1:
        raise ValueError(f"{wanted} is {'the name of several pictures' if entries else 'no picture of this recipe'}")
    return entries[0], _lines(caption, entries[0]) if isinstance(caption, str) else captions


def _lines(text: str, entry: Entry) -> list[str]:
    """Captions of a text: its lines, where a picture may have several."""
    return text.split("\n") if entry.several else [text]


def _index(material: Material) -> dict[str, list[Entry]]:
    """Entries by the paths under which a file may name them."""
    index: dict[str, list[Entry]] = {}
    for entry in material.entries:
        for picture in entry.pictures:
            for name in (picture, f"{entry.dataset.path}/{picture}"):
                index.setdefault(nfc(name), []).append(entry)
    return index


def _json_rows(text: str) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError):
                yield number, None


def _csv_rows(text: str, name: str) -> Iterator[tuple[int, Any]]:
    reader = csv.DictReader(io.StringIO(text, newline=""))
    try:
        for row in reader:
            yield reader.line_num, row
    except csv.Error as error:
        message = f"cannot be read on ({error}); is a quotation mark missing?"
        raise DataError([Problem(file=name, line=reader.line_num + 1, message=message)]) from None


def _jsonl(rows: Iterable[tuple[Entry, Texts]]) -> str:
    return "".join(json.dumps(_fields(entry, texts), ensure_ascii=False) + "\n" for entry, texts in rows)


def _csv(rows: Iterable[tuple[Entry, Texts]]) -> str:
    file = io.StringIO()
    writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for entry, texts in rows:
        writer.writerow({**_fields(entry, texts), "text": "\n".join(texts)})
    return file.getvalue()


def _fields(entry: Entry, texts: Texts) -> dict[str, Any]:
    text = list(texts) if len(texts) > 1 else texts[0]
    return dict(zip(COLUMNS, (entry.dataset.path, entry.pictures[0], text, entry.origin), strict=True))


def _sidecars(entries: Sequence[Entry]) -> dict[str, str]:
    """Name of each entry's caption file in a folder of them; pictures that differ by their ending keep it."""
    pictures = _pictures(entries)
    stems = Counter(splitext(picture)[0] for picture in pictures.values())
    names = {key: (splitext(picture)[0], picture) for key, picture in pictures.items()}
    return {key: f"{stem if stems[stem] == 1 else picture}.txt" for key, (stem, picture) in names.items()}


def _pictures(entries: Sequence[Entry]) -> dict[str, str]:
    """Where pictures would lie in a folder of captions: below their datasets' paths where there are several."""
    several = len({entry.dataset.path for entry in entries}) > 1
    return {
        entry.key: f"{entry.dataset.path}/{entry.pictures[0]}" if several else entry.pictures[0] for entry in entries
    }
