"""`sdbuild log`: every committed state in which a recipe's record changed, newest first."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from sdbuild.build.project import Project
from sdbuild.build.revisions import Commit, Revisions
from sdbuild.console import Console
from sdbuild.recipe.names import group_of
from sdbuild.report.difference import Difference, contents, difference, same
from sdbuild.report.objects import Objects
from sdbuild.report.states import Record, States
from sdbuild.report.unknown import refuse_unknown
from sdbuild.report.words import summary

COLUMNS = ("commit", "date", "author", "recipe", "what changed")


@dataclass(frozen=True, kw_only=True, slots=True)
class Built:
    """A state of a recipe that differs from the one before."""

    commit: Commit | None
    """None for what is not committed."""
    difference: Difference

    def row(self) -> tuple[str | tuple[str, ...], ...]:
        """For people, by `COLUMNS`."""
        lines = list(summary(self.difference))
        recipe = self.difference.recipe
        if self.commit is None:
            return "-", "", "", recipe, ("not committed", *lines)
        return self.commit.short, _when(self.commit.date), self.commit.author, recipe, (self.commit.subject, *lines)

    def to_json(self) -> dict[str, Any]:
        """For programs; `commit`, `date`, `author` and `subject` are null for what is not committed."""
        commit = self.commit
        return {
            "commit": commit.id if commit else None,
            "date": commit.date if commit else None,
            "author": commit.author if commit else None,
            "subject": commit.subject if commit else None,
            "changes": self.difference.to_json(),
            "metrics": self.difference.figures,
        }


def _when(date: str) -> str:
    """A commit's date to the minute, as it is where it is none that calendars have."""
    try:
        return datetime.datetime.fromisoformat(date).strftime("%Y-%m-%d %H:%M")
    except ValueError:
        return date[:16]


def log(project: Project, recipe: str | None, number: int | None, console: Console | None) -> list[Built]:
    """The states of one recipe (with the variants of its matrix) or of all, newest first.

    Args:
        project: under git.
        recipe: name of a recipe or variant.
        number: of states at most.
        console: is told when the remote is in trouble.

    Raises:
        UsageError: there is no git, or no state has such a recipe.
    """
    with Revisions(project.root) as revisions:
        states = States(project, revisions)
        seen: set[str] = set()
        found = list(islice(_changed(states, recipe, seen), number))
        if recipe is not None and not found:
            refuse_unknown(recipe, seen, "in the history of this branch")
        objects = Objects(project, console)
        objects.want(md5 for _, old, new in found for md5 in contents(old, new))
        return [Built(commit=commit, difference=difference(old, new, objects)) for commit, old, new in found]


def _changed(
    states: States, recipe: str | None, seen: set[str]
) -> Iterator[tuple[Commit | None, Record | None, Record | None]]:
    """Commits with the record before and after; the names of all recipes are added to `seen`."""

    def wanted(names: set[str]) -> Sequence[str]:
        seen.update(names)
        return sorted(name for name in names if recipe in (None, name, group_of(name)))

    commits = states.commits()
    working, head = states.working().records, states.at("HEAD")
    for name in wanted({*working, *head}):
        if not same(head.get(name), working.get(name)):
            yield None, _first(states, commits, name, head.get(name)), working.get(name)
    for number, commit in enumerate(commits):
        after = states.at(commit.id)
        before = [states.at(parent) for parent in commit.parents] or [{}]
        for name in wanted({*after, *before[0]}):
            # a merge that takes over what one of its sides had built is no state of its own
            if not any(same(records.get(name), after.get(name)) for records in before):
                yield commit, _first(states, commits[number + 1 :], name, before[0].get(name)), after.get(name)


def _first(states: States, earlier: Iterable[Commit], name: str, record: Record | None) -> Record | None:
    """A record as it was committed first: later ones may lie beside a `recipe.json` of what was not built."""
    for commit in earlier:
        before = states.at(commit.id).get(name)
        if record is None or not same(before, record):
            break
        record = before
    return record
