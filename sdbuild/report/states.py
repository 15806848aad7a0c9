"""States of a project: what `dvc.lock` and `recipe.json` said of each recipe in a commit, and say now.

A recipe's *record* in a state is its part of `dvc.lock`; two records are the same when their steps have the same
parameters and outs. What the record's outs hold is read from DVC's cache by MD5, see `objects`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from typing import Any

import yaml

from sdbuild.build import blocks
from sdbuild.build.lockfile import Entry, LockFile, entry_problem, load_yaml
from sdbuild.build.project import Project
from sdbuild.build.revisions import Commit, Revisions
from sdbuild.plan.built_recipe import as_built
from sdbuild.plan.model import STEP_KINDS

_COMMAND = "sdbuild step "


@dataclass(frozen=True, kw_only=True)
class Record:
    """One recipe in one state."""

    recipe: str
    entries: Mapping[str, Entry]
    """Its stages in `dvc.lock`, by step kind."""
    read: Callable[[str], bytes | None]
    """Gives a file of the state by its path."""

    @cached_property
    def compiled(self) -> Mapping[str, Any]:
        """Its `recipe.json`; empty where the state has none that can be read."""
        try:
            found = json.loads(self.read(f"build/{self.recipe}/recipe.json") or b"")
        except (ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    def out(self, name: str) -> str | None:
        """MD5 of an out by its name in the recipe's folder, e.g. `images.jsonl`."""
        return self._outs.get(f"build/{self.recipe}/{name}")

    def parameters(self, kind: str) -> Mapping[str, Any]:
        """The parameters under which a step was built: its spec with `reads`."""
        files = self.entries.get(kind, {}).get("params") or {}
        keys = files.get(f"build/{self.recipe}/recipe.json") or {}
        found = keys.get(f"steps.{kind}")
        return found if isinstance(found, Mapping) else {}

    @cached_property
    def whole(self) -> bool:
        """Whether `recipe.json` has the parameters that training is recorded with, so that a build finds it fresh."""
        steps = self.compiled.get("steps")
        return isinstance(steps, dict) and steps.get("train") == self.parameters("train")

    @cached_property
    def built(self) -> Mapping[str, Any]:
        """The resolved recipe that the outs come from; `recipe.json` may say what was not built. Empty if none."""
        recipe, steps = self.compiled.get("recipe"), self.compiled.get("steps")
        if not isinstance(recipe, dict) or not isinstance(steps, dict):
            return recipe if isinstance(recipe, dict) else {}
        try:
            return as_built(recipe, steps, {kind: self.parameters(kind) for kind in self.entries})
        except (ValueError, KeyError, TypeError, AttributeError):  # of a version with other settings
            return recipe

    @cached_property
    def identity(self) -> Mapping[str, Any]:
        """What counts of each step: its parameters, but for what it read, and its outs."""
        return {
            kind: (
                {key: value for key, value in self.parameters(kind).items() if key != "reads"},
                sorted((row["path"], row.get("md5", "")) for row in entry.get("outs") or ()),
            )
            for kind, entry in self.entries.items()
        }

    @cached_property
    def _outs(self) -> Mapping[str, str]:
        rows = (row for entry in self.entries.values() for row in entry.get("outs") or ())
        return {row["path"]: row.get("md5", "") for row in rows}


@dataclass(frozen=True, kw_only=True)
class State:
    """A commit, or what is in the working tree."""

    commit: Commit | None
    """None for the working state."""
    records: Mapping[str, Record] = field(default_factory=dict)
    """By recipe."""

    @property
    def label(self) -> str:
        """Its short name, e.g. in names of files."""
        return self.commit.short if self.commit else "working"


class States:
    """Reads states; an entry of `dvc.lock` is parsed once, however many commits hold it."""

    def __init__(self, project: Project, revisions: Revisions) -> None:
        self._project = project
        self._revisions = revisions
        self._entries: dict[str, Mapping[str, Entry]] = {}
        self.at = lru_cache(maxsize=64)(self._at)  # a commit is asked for again as the parent of the next one

    def commits(self, *, everywhere: bool = False) -> list[Commit]:
        """Commits in which a record may have changed, newest first."""
        return self._revisions.commits("dvc.lock", "build", everywhere=everywhere)

    def state(self, commit: Commit) -> State:
        """What a commit holds."""
        return State(commit=commit, records=self.at(commit.id))

    def working(self) -> State:
        """What was last built here, committed or not.

        Raises:
            InputError: `dvc.lock` is damaged.
        """
        return State(commit=None, records=_by_recipe(LockFile(self._project).stages(), self._read_working))

    def _at(self, revision: str) -> Mapping[str, Record]:
        content = self._revisions.read(revision, "dvc.lock")
        if content is None:
            return {}
        try:
            return _by_recipe(self._parse(content.decode()), partial(self._revisions.read, revision))
        except (ValueError, yaml.YAMLError, AttributeError, TypeError, KeyError):
            return {}  # damaged in that commit, as a merge may leave it

    def _read_working(self, path: str) -> bytes | None:
        try:
            return (self._project.root / path).read_bytes()
        except OSError:
            return None

    def _parse(self, text: str) -> dict[str, Entry]:
        try:
            texts = blocks.split(text).get("stages", {}).values()
        except ValueError:  # laid out by other hands
            return dict(load_yaml(text)["stages"])
        stages: dict[str, Entry] = {}
        for part in texts:
            if part not in self._entries:
                self._entries[part] = load_yaml(part)
            stages.update(self._entries[part])
        return stages


def _by_recipe(stages: Mapping[str, Entry], read: Callable[[str], bytes | None]) -> dict[str, Record]:
    found: dict[str, dict[str, Entry]] = {}
    for entry in stages.values():
        if entry_problem(entry):
            continue
        command = str(entry.get("cmd"))
        recipe, _, kind = command.removeprefix(_COMMAND).rpartition(":")
        if command.startswith(_COMMAND) and recipe and kind in STEP_KINDS:
            found.setdefault(recipe, {})[kind] = entry
    return {recipe: Record(recipe=recipe, entries=entries, read=read) for recipe, entries in found.items()}
