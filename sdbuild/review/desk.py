"""What lies before a person who reviews captions: all of them, with what was found, up to date while they write."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

from sdbuild.build.project import Project
from sdbuild.errors import DataError
from sdbuild.review.findings import Inspector, Row
from sdbuild.review.gather import HAND, Entry, Material, gather
from sdbuild.review.sidecars import Change, confirm, texts_of, write


class Desk:
    """The captions of one recipe; used by several threads."""

    def __init__(self, project: Project, recipe: str) -> None:
        """Look at everything once, so that what is wrong with it is said before a page is opened."""
        self.saved = 0
        """Captions written so far."""
        self._project = project
        self._recipe = recipe
        self._lock = threading.RLock()
        self._read()

    def look(self) -> dict[str, Any]:
        """Read everything anew, for the page."""
        with self._lock:
            self._read()
            return {
                "recipe": self.material.recipe.name,
                "limit": self._inspector.counter.limit if self._inspector.counter else None,
                "note": self._inspector.why_not,
                "troubles": self.material.troubles,
                "rows": [_row(row) for row in self._rows.values()],
            }

    def entry(self, key: str) -> Entry | None:
        """An entry by its name."""
        with self._lock:
            row = self._rows.get(key)
            return None if row is None else row.entry

    def count(self, key: str, text: str) -> int | None:
        """Tokens of what a person types."""
        with self._lock:
            entry = self._rows[key].entry
            return self._inspector.tokens(replace(entry, bare=texts_of(text, entry)).texts)

    def save(self, key: str, text: str, stamp: str) -> dict[str, Any]:
        """Write a caption beside its picture; the rows that this changed, or what is there now if somebody was faster.

        Raises:
            DataError: it cannot be written.
        """
        with self._lock:
            entry = self._rows[key].entry
            texts = texts_of(text, entry)
            if texts == entry.bare and stamp == entry.stamp:
                return {"rows": []}
            written = write(self.material, [Change(entry=entry, texts=texts, stamp=stamp)])
            if written.problems:
                raise DataError(written.problems)
            if written.conflicts:
                self._read()
                there = [_row(row) for at, row in self._rows.items() if at == key]
                return {"conflict": written.conflicts[0].message, "rows": there}
            self.saved += 1
            return self._replaced(replace(entry, bare=texts, origin=HAND, trouble="", blocked=False, changed=False))

    def confirm(self, key: str) -> dict[str, Any]:
        """Remember that a hand-written caption fits its picture; the rows that this changed."""
        with self._lock:
            entry = self._rows[key].entry
            if entry.origin == HAND and entry.bare:
                confirm(self.material, [entry])
            return self._replaced(replace(entry, changed=False))

    def _read(self) -> None:
        self.material: Material = gather(self._project, self._recipe)
        self._inspector = Inspector(self.material)
        self._rows: dict[str, Row] = {row.entry.key: row for row in self._inspector.rows(self.material.entries)}

    def _replaced(self, new: Entry) -> dict[str, Any]:
        before = self._rows
        entries = tuple(new if entry.key == new.key else entry for entry in self.material.entries)
        self.material = replace(self.material, entries=entries)
        self._rows = {row.entry.key: row for row in self._inspector.rows(entries)}
        return {"rows": [_row(row) for key, row in self._rows.items() if row != before[key]]}


def _row(row: Row) -> dict[str, Any]:
    entry = row.entry
    return {
        **row.as_json(),
        "text": "\n".join(entry.bare),
        "stamp": entry.stamp,
        "trigger": entry.dataset.trigger,
        "lines": entry.several,
        "blocked": entry.blocked,
        "hand": entry.origin == HAND,
        "problem": row.is_problem,
    }
