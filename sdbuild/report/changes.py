"""What changed between two states: pictures, captions, settings, metrics. Pure."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sdbuild.build.reasons import flat

Mark = Literal["same", "old", "new"]
"""Of a piece of text: in both, in the old one only, in the new one only."""

_WORDS = re.compile(r"\w+|\s+|[^\w\s]")


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """A picture of a recipe with its caption."""

    path: str
    digest: str
    """Of its pixels."""
    caption: str | None
    """Several are joined by ` | `; None where it is not known."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PictureChanges:
    """What happened to the pictures of a recipe; a renamed one is not changed."""

    added: tuple[Picture, ...] = ()
    removed: tuple[Picture, ...] = ()
    changed: tuple[tuple[Picture, Picture], ...] = ()
    """The same path with other pixels."""
    renamed: tuple[tuple[Picture, Picture], ...] = ()
    """The same pixels at another path."""
    recaptioned: tuple[tuple[Picture, Picture], ...] = ()
    """Pictures of both states whose captions differ."""

    def __bool__(self) -> bool:
        return any((self.added, self.removed, self.changed, self.renamed, self.recaptioned))


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """A value that differs; `ABSENT` where one side has none."""

    key: str
    old: Any
    new: Any


class Absent:
    """No value."""

    def __repr__(self) -> str:
        return "(none)"


ABSENT = Absent()


def picture_changes(old: Iterable[Picture], new: Iterable[Picture]) -> PictureChanges:
    """Compare by path and pixel digest: what is equal in both first, then equal pixels, then equal paths."""
    before = {picture.path: picture for picture in old}
    after = {picture.path: picture for picture in new}
    kept = [
        (before[path], after[path]) for path in before if path in after and before[path].digest == after[path].digest
    ]
    for one, other in kept:
        del before[one.path], after[other.path]
    places: dict[str, list[Picture]] = {}
    for path in sorted(after):
        places.setdefault(after[path].digest, []).append(after[path])
    renamed = [
        (before[path], places[before[path].digest].pop(0)) for path in sorted(before) if places.get(before[path].digest)
    ]
    for one, other in renamed:
        del before[one.path], after[other.path]
    changed = [(before.pop(path), after.pop(path)) for path in sorted(before.keys() & after.keys())]
    return PictureChanges(
        added=tuple(after[path] for path in sorted(after)),
        removed=tuple(before[path] for path in sorted(before)),
        changed=tuple(changed),
        renamed=tuple(renamed),
        recaptioned=tuple(
            (one, other)
            for one, other in sorted((*kept, *renamed, *changed), key=lambda pair: pair[1].path)
            if None not in (one.caption, other.caption) and one.caption != other.caption
        ),
    )


def value_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Change]:
    """Compare nested JSON by dotted key."""
    before, after = (flat(value) if value else {} for value in (old, new))
    return [
        Change(key=key, old=before.get(key, ABSENT), new=after.get(key, ABSENT))
        for key in sorted({*before, *after})
        if before.get(key, ABSENT) != after.get(key, ABSENT)
    ]


def word_changes(old: str, new: str) -> Iterator[tuple[Mark, str]]:
    """Pieces of a text and its newer version, word by word."""
    before, after = _WORDS.findall(old), _WORDS.findall(new)
    matcher = difflib.SequenceMatcher(None, before, after, autojunk=False)
    for kind, start, end, new_start, new_end in matcher.get_opcodes():
        if kind == "equal":
            yield "same", "".join(before[start:end])
            continue
        if end > start:
            yield "old", "".join(before[start:end])
        if new_end > new_start:
            yield "new", "".join(after[new_start:new_end])
