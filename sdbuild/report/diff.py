"""`sdbuild diff`: what differs between two states, with both grids in one picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sdbuild.build.project import Project
from sdbuild.build.revisions import Revisions
from sdbuild.console import Console
from sdbuild.errors import InputError
from sdbuild.recipe.load import read_project
from sdbuild.recipe.names import group_of
from sdbuild.report.difference import Difference, contents, difference, same
from sdbuild.report.grids import draw_beside
from sdbuild.report.objects import Objects
from sdbuild.report.states import Record, State, States
from sdbuild.report.unknown import refuse_unknown
from sdbuild.report.words import REMEDY, Line, details

GRID = "grid.png"


@dataclass(frozen=True, kw_only=True, slots=True)
class Compared:
    """One recipe in two states."""

    difference: Difference
    grids: str
    """Where both grids are drawn, relative to the project, or why they are not."""
    drawn: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Diff:
    """Two states and the recipes that differ."""

    old: State
    new: State
    compared: Sequence[Compared]
    unbuilt: Sequence[str]
    """Recipes whose files were edited since the last build; told of the working state only."""

    def lines(self) -> Iterator[Line]:
        """For people."""
        yield ((f"{_name(self.old)} -> {_name(self.new)}", "faint"),)
        if not self.compared:
            yield (("nothing differs", ""),)
        words = {"added": " is new", "removed": " is gone", "changed": ""}
        for each in self.compared:
            yield ((each.difference.recipe, "strong"), (words[each.difference.event], ""))
            yield from ((("  ", ""), *line) for line in details(each.difference))
            if each.grids:
                yield ((f"  grids: {each.grids}", ""),)
        if self.unbuilt:
            yield ((f"edited since the last build: {', '.join(self.unbuilt)}; `sdbuild plan` has more", "faint"),)

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "old": _state_to_json(self.old),
            "new": _state_to_json(self.new),
            "recipes": [
                {**each.difference.to_json(), "grids": each.grids if each.drawn else None} for each in self.compared
            ],
        }


def diff(project: Project, old: str, new: str | None, recipes: Sequence[str], console: Console | None) -> Diff:
    """Compare two revisions, or one with what was last built here (`new` None), in all recipes or some.

    A console is told when the remote is in trouble.

    Raises:
        UsageError: there is no git, revision or recipe of a name.
    """
    with Revisions(project.root) as revisions:
        states = States(project, revisions)
        before = states.state(revisions.resolve(old))
        after = states.state(revisions.resolve(new)) if new is not None else states.working()
        known = {*before.records, *after.records}
        for recipe in recipes:
            if not any(recipe in (name, group_of(name)) for name in known):
                refuse_unknown(recipe, known, f"in {_name(before)} or {_name(after)}")
        pairs = [
            (before.records.get(name), after.records.get(name))
            for name in sorted(known)
            if not recipes or name in recipes or group_of(name) in recipes
        ]
        differing = [(one, other) for one, other in pairs if not same(one, other)]
        objects = Objects(project, console)
        objects.want(md5 for one, other in differing for md5 in (*contents(one, other), *_samples(one, other)))
        objects.want(_grid(objects, md5) for one, other in differing for md5 in _samples(one, other))
        compared = [
            Compared(difference=difference(one, other, objects), grids=grids, drawn=grids.endswith(".png"))
            for one, other in differing
            for grids in [_draw(project, objects, (before, one), (after, other))]
        ]
        unbuilt = _unbuilt(project, after, recipes) if new is None else []
    return Diff(old=before, new=after, compared=compared, unbuilt=unbuilt)


def _draw(
    project: Project, objects: Objects, old: tuple[State, Record | None], new: tuple[State, Record | None]
) -> str:
    samples = _samples(old[1], new[1])
    if None in samples:
        return ""
    if len(set(samples)) == 1:
        return "equal"
    left, right = (objects.file(_grid(objects, md5)) for md5 in samples)
    if left is None or right is None:
        return f"not here; {REMEDY}"
    assert new[1] is not None
    name = f"{new[1].recipe}-{old[0].label}-{new[0].label}.png"
    target = project.private / "diff" / name
    labels = (f"{new[1].recipe}: {_name(old[0])}", _name(new[0]))
    if not draw_beside((left, right), labels, target):
        return "one of them cannot be read as a picture"
    return target.relative_to(project.root).as_posix()


def _samples(old: Record | None, new: Record | None) -> list[str | None]:
    return [record.out("samples") if record else None for record in (old, new)]


def _grid(objects: Objects, samples: str | None) -> str | None:
    return (objects.files(samples) or {}).get(GRID)


def _unbuilt(project: Project, state: State, wanted: Sequence[str]) -> list[str]:
    """Recipes that are not what was built last; those that cannot be read are `sdbuild check`'s."""
    try:
        recipes = read_project(project.root).recipes
    except InputError:
        return []
    return [
        recipe.name
        for recipe in recipes
        if not wanted or recipe.name in wanted or group_of(recipe.name) in wanted
        if recipe.name not in state.records or state.records[recipe.name].compiled.get("recipe") != recipe.resolved()
    ]


def _name(state: State) -> str:
    if state.commit is None:
        return "what is built here"
    return f"{state.commit.short} ({state.commit.subject})"


def _state_to_json(state: State) -> dict[str, Any]:
    return {"commit": state.commit.id if state.commit else None, "name": state.label}
