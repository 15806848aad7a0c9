"""Finding and replacing in captions, and what tags there are."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sdbuild.errors import UsageError
from sdbuild.review.gather import Entry
from sdbuild.review.sidecars import Change, tidied


def pattern_of(text: str, *, regex: bool, ignore_case: bool) -> re.Pattern[str]:
    """What to look for.

    Raises:
        UsageError: it is no regular expression, or empty.
    """
    if not text:
        raise UsageError("an empty text is everywhere; say what to look for")
    try:
        return re.compile(text if regex else re.escape(text), re.IGNORECASE if ignore_case else 0)
    except re.error as error:
        where = "" if error.pos is None else f", at its character {error.pos + 1}"
        raise UsageError(
            f"{text!r} is no regular expression ({error.msg}{where}); leave out --regex for text"
        ) from None


def matching(entries: Iterable[Entry], pattern: re.Pattern[str]) -> list[Entry]:
    """Entries with a caption that holds the pattern."""
    return [entry for entry in entries if any(map(pattern.search, entry.bare))]


def replacements(entries: Iterable[Entry], pattern: re.Pattern[str], new: str, *, regex: bool) -> list[Change]:
    """Changes that put `new` in the place of every match; with `regex` it may name groups, `\\1` or `\\g<name>`.

    Raises:
        UsageError: it names a group that the pattern does not have.
    """
    changes = []
    for entry in matching(entries, pattern):
        try:
            texts = [pattern.sub(new if regex else lambda match: new, text) for text in entry.bare]
        except (re.error, IndexError) as error:
            raise UsageError(f"{new!r} cannot be put in ({error}); write \\\\ for a backslash") from None
        if tidied(texts) != entry.bare:
            changes.append(Change(entry=entry, texts=tidied(texts), stamp=entry.stamp))
    return changes


@dataclass(frozen=True, kw_only=True, slots=True)
class Tag:
    """A tag and where it is."""

    name: str
    pictures: int
    spellings: tuple[str, ...]
    """Other tags that are spelled alike: other case, `_` for white space, a plural."""


def tag_statistics(entries: Sequence[Entry], separator: str) -> list[Tag]:
    """Tags of all captions, the most frequent first."""
    counted: Counter[str] = Counter()
    for entry in entries:
        counted.update({tag for text in entry.bare for tag in tags_of(text, separator)})
    alike: dict[str, list[str]] = {}
    for name in counted:
        alike.setdefault(_root(name), []).append(name)
    return [
        Tag(name=name, pictures=pictures, spellings=tuple(sorted({*alike[_root(name)]} - {name})))
        for name, pictures in sorted(counted.items(), key=lambda item: (-item[1], item[0]))
    ]


def tags_of(text: str, separator: str) -> list[str]:
    """Tags of a caption."""
    mark = separator.strip() or separator
    return [tag for part in text.split(mark) if (tag := part.strip())]


def _root(tag: str) -> str:
    """What alike tags share."""
    words = re.sub(r"[_\s-]+", " ", tag.casefold()).strip()
    return words[:-1] if words.endswith("s") and not words.endswith("ss") and len(words) > 3 else words
