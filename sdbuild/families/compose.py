"""A base of parts from several places: a folder of links in diffusers' layout. Light."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from sdbuild.errors import DataError, Problem
from sdbuild.families.layout import INDEX, SUFFIXES, is_variant, read_json


def composed(
    folder: Path, private: Path, *, parts: Mapping[str, Path], variant: str | None, without: Sequence[str]
) -> Path:
    """Return a folder that holds a base with some parts exchanged or left out.

    Args:
        folder: of the base.
        private: where such folders lie.
        parts: folders in place of the base's own, or beside them.
        variant: mark of the copies of the weights to take, where a component has them.
        without: components to leave out.

    Raises:
        DataError: no component has that variant.
    """
    links = dict(_links(folder, parts, variant, without))
    texts = {INDEX: _index(folder, without)} if without else {}
    if variant is not None:
        if not any(_marked(file, variant) for file in folder.rglob("*.safetensors")):
            message = f"{folder.name} has no copies of its weights called {variant}; remove it"
            raise DataError([Problem(field="base.variant", message=message)])
        texts |= {place: _unmarked(source, variant) for place, source in links.items() if ".index." in source.name}
    links = {place: source for place, source in links.items() if place not in texts}
    named = json.dumps(
        [str(folder), sorted((name, str(place)) for name, place in parts.items()), variant, sorted(without)]
    )
    target = private / f"of-{hashlib.sha256(named.encode()).hexdigest()[:16]}"
    if not _is_as_wanted(target, links, texts):
        _make(target, links, texts)
    return target


def _links(
    folder: Path, parts: Mapping[str, Path], variant: str | None, without: Sequence[str]
) -> Iterator[tuple[str, Path]]:
    """Place in the new folder and source of each file."""
    for name in sorted(os.listdir(folder)):
        place = folder / name
        if place.is_file() and name.endswith(SUFFIXES):
            yield name, place
        elif place.is_dir() and name not in without and name not in parts:
            yield from ((f"{name}/{own}", file) for own, file in _files(place, variant))
    for name, place in parts.items():
        yield from ((f"{name}/{own}", file) for own, file in _files(place, variant))


def _files(component: Path, variant: str | None) -> Iterator[tuple[str, Path]]:
    """Files of a component under the names that they are read by."""
    files = [file for file in sorted(component.rglob("*")) if file.is_file() and file.suffix in SUFFIXES]
    plain = [file for file in files if not is_variant(file.name)]
    if variant is not None:
        copies = [file for file in files if _marked(file, variant)]
        if copies:
            plain = [file for file in plain if file.suffix != ".safetensors" and ".index." not in file.name]
        for file in copies:
            place = file.relative_to(component)
            yield place.with_name(_without_mark(place.name, variant)).as_posix(), file
    yield from ((file.relative_to(component).as_posix(), file) for file in plain)


def _marked(file: Path, variant: str) -> bool:
    return f".{variant}." in file.name or f".{variant}-" in file.name


def _without_mark(name: str, variant: str) -> str:
    return name.replace(f".{variant}.", ".").replace(f".{variant}-", "-")


def _unmarked(index: Path, variant: str) -> str:
    """The list of a component's shards by the names that they are read by."""
    return _without_mark(index.read_text(encoding="utf-8"), variant)


def _index(folder: Path, without: Sequence[str]) -> str:
    content = read_json(folder / INDEX)
    content |= {name: [None, None] for name in without}
    return json.dumps(content, indent=2, sort_keys=True) + "\n"


def _is_as_wanted(target: Path, links: Mapping[str, Path], texts: Mapping[str, str]) -> bool:
    try:
        there = {path.relative_to(target).as_posix() for path in target.rglob("*") if not path.is_dir()}
        if there != links.keys() | texts.keys():
            return False
        if any((target / place).read_text(encoding="utf-8") != text for place, text in texts.items()):
            return False
        return all(os.path.samefile(target / place, source) for place, source in links.items())
    except OSError:
        return False


def _make(target: Path, links: Mapping[str, Path], texts: Mapping[str, str]) -> None:
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        for place, source in links.items():
            link = temporary / place
            link.parent.mkdir(parents=True, exist_ok=True)
            _link(link, source.resolve())
        for place, text in texts.items():
            (temporary / place).write_text(text, encoding="utf-8")
        if target.exists():
            old = target.with_name(f".{target.name}.{os.getpid()}.old")
            target.rename(old)
            shutil.rmtree(old, ignore_errors=True)
        try:
            temporary.rename(target)
        except OSError:  # another process made the same
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _link(link: Path, source: Path) -> None:
    try:
        link.symlink_to(source)
    except OSError:  # a file system without links
        shutil.copyfile(source, link)
