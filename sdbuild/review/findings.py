"""What is worth a look in captions: each finding has a kind, words, and the other pictures that it is about."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal, get_args

from sdbuild.data.captions import with_trigger
from sdbuild.errors import DataError
from sdbuild.families.sources import find
from sdbuild.families.tokens import TokenCounter, token_counter
from sdbuild.review.gather import Entry, Material
from sdbuild.review.looks import CACHE_NAME, alike, looks

Kind = Literal["caption", "changed", "long", "duplicate", "alike", "trigger"]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""No usable caption; the picture changed under a hand-written one; longer than the encoder takes; the same caption as
another picture's; a picture that looks like another; no trigger in it, so that the build puts it in front."""
MOST = 20
"""Other pictures that a finding names."""
NOTES: frozenset[Kind] = frozenset({"trigger"})
"""Kinds that are no problem."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """Something worth a look."""

    kind: Kind
    words: str
    others: tuple[str, ...] = ()
    """Paths of other pictures that it is about."""

    @property
    def is_problem(self) -> bool:
        """Whether somebody should do something."""
        return self.kind not in NOTES


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """An entry with what was found."""

    entry: Entry
    tokens: int | None
    """Of its longest caption, start and end included; None where the base is not on this machine."""
    findings: tuple[Finding, ...]

    @property
    def is_problem(self) -> bool:
        """Whether somebody should do something."""
        return any(finding.is_problem for finding in self.findings)

    def as_json(self) -> dict[str, Any]:
        """For programs and for the page."""
        entry = self.entry
        return {
            "key": entry.key,
            "path": entry.path,
            "duplicates": list(entry.image.duplicates),
            "dataset": entry.dataset.path,
            "digest": entry.image.digest,
            "width": entry.image.width,
            "height": entry.image.height,
            "split": entry.image.split,
            "captions": list(entry.texts),
            "origin": entry.origin or None,
            "tokens": self.tokens,
            "findings": [{"kind": each.kind, "words": each.words, "others": each.others} for each in self.findings],
        }


class Inspector:
    """Finds what is worth a look, again and again while captions are edited."""

    def __init__(self, material: Material) -> None:
        """Look at the pictures, and read the base's tokenizers where it is on this machine."""
        self.counter, self.why_not = _counter(material)
        self._counted: dict[str, int] = {}
        root = material.project.root
        paths = {entry.image.digest: root / entry.path for entry in material.entries}
        self._alike = alike(looks(paths, material.project.items / CACHE_NAME, material.background))

    def rows(self, entries: Iterable[Entry]) -> list[Row]:
        """All findings of all entries."""
        listed = list(entries)
        same: dict[str, list[str]] = {}
        paths: dict[str, list[str]] = {}
        for entry in listed:
            paths.setdefault(entry.image.digest, []).append(entry.path)
            for text in set(entry.texts):
                same.setdefault(text, []).append(entry.path)
        return [self._row(entry, same, paths) for entry in listed]

    def _row(self, entry: Entry, same: Mapping[str, list[str]], paths: Mapping[str, list[str]]) -> Row:
        tokens = self.tokens(entry.texts)
        found: list[Finding] = []
        if not entry.bare:
            found.append(Finding(kind="caption", words=entry.trouble))
        if entry.changed:
            found.append(Finding(kind="changed", words="the picture changed after this caption was written by hand"))
        if tokens is not None and self.counter is not None and tokens > self.counter.limit:
            words = f"{tokens} tokens, the text encoder takes {self.counter.limit}; the rest is cut off"
            found.append(Finding(kind="long", words=words))
        twins = (path for text in entry.texts for path in same[text])
        found += _about("duplicate", "the same caption as", entry, twins)
        near = (path for digest in self._alike.get(entry.image.digest, ()) for path in paths.get(digest, ()))
        found += _about("alike", "looks like", entry, chain(near, paths[entry.image.digest]))
        trigger = entry.dataset.trigger
        if trigger and any(with_trigger(text, trigger) != text for text in entry.bare):
            found.append(Finding(kind="trigger", words="gets the trigger in front"))
        return Row(entry=entry, tokens=tokens, findings=tuple(found))

    def tokens(self, texts: Collection[str]) -> int | None:
        """Tokens of the longest of some captions."""
        counter = self.counter
        if counter is None:
            return None
        for text in texts:
            if text not in self._counted:
                self._counted[text] = counter.count(text)
        return max((self._counted[text] for text in texts), default=0)


def counts(rows: Iterable[Row]) -> dict[str, int]:
    """How many pictures each kind of finding is about."""
    found = Counter(finding.kind for row in rows for finding in row.findings)
    return {kind: found[kind] for kind in KINDS if found[kind]}


def _counter(material: Material) -> tuple[TokenCounter | None, str]:
    try:
        folder = find(material.base, material.project.root)
        if folder is None:
            return None, f"tokens are not counted: the base {material.base.model} is not here yet; `doit` brings it"
        return token_counter(folder), ""
    except DataError as error:
        return None, f"tokens are not counted: {error}"


def _about(kind: Kind, words: str, entry: Entry, paths: Iterable[str]) -> list[Finding]:
    """A finding about other pictures, if there are any."""
    others = list(dict.fromkeys(path for path in paths if path != entry.path))
    if not others:
        return []
    more = f" and {len(others) - 3} more" if len(others) > 3 else ""
    return [Finding(kind=kind, words=f"{words} {', '.join(others[:3])}{more}", others=tuple(others[:MOST]))]
