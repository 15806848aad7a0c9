"""The oracle: what is stale, and why. It compares `dvc.lock` with the plan and never imports DVC.

A step is fresh when its command, its parameters, the content of its inputs and the content of its outs are as
recorded. Where a step reads only a part of an input (a *view*, e.g. the pictures of a folder that also holds
captions), an input that changed as a whole is compared by that part; if it is the same, the step is fresh and only its
record needs to be renewed. Digests of views stand among the recorded parameters, under `reads`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sdbuild.build import cache
from sdbuild.build.dataset_versions import Versions
from sdbuild.build.lockfile import Entry, LockFile, entry_problem
from sdbuild.build.project import Project
from sdbuild.build.reads import Reads
from sdbuild.build.reasons import parameter_changes
from sdbuild.build.statcache import Digest, StatCache
from sdbuild.build.tracked import DataFile
from sdbuild.data.views import read_otherwise
from sdbuild.errors import DataError, Problem, reason
from sdbuild.plan.model import Dep, Step

State = Literal["fresh", "stale", "pending"]
Action = Literal["none", "restore", "fetch", "run"]

_OF_FILES_ALONE = frozenset({"pixels", "records"})
"""Views that depend on files alone and on no setting of their step."""
_OF_FOLDERS = frozenset({"pictures", "captions", "model"})
"""Views of users' folders, which may hold files that DVC's digest of them leaves out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What the oracle says of one step."""

    step: Step
    state: State
    action: Action
    reasons: tuple[str, ...] = ()
    renew: bool = False
    """Fresh, but the record names an older version of an input of which only unread parts changed."""
    deps: Mapping[str, Digest] = field(default_factory=dict)
    reads: Mapping[str, str] = field(default_factory=dict)
    outs: Mapping[str, Digest] | None = None
    """Content of its outs once it is built; None where only a run can tell."""
    entry: Entry | None = None
    """The recorded run that a restore brings back, from the cache or else, fetched, from the remote."""
    lost: bool = False
    """It runs because its recorded outs are neither in the cache nor known to be on the remote."""
    absent: tuple[str, ...] = ()
    """Inputs that have to be brought back before more can be said."""
    wrong: tuple[Problem, ...] = ()
    """Why the step cannot run."""


class Oracle:
    """Judges the steps of a plan; thread-safe; verdicts are kept until `forget`."""

    def __init__(self, project: Project, steps: Sequence[Step], lock: LockFile, stat: StatCache) -> None:
        self.project = project
        self.steps = {step.name: step for step in steps}
        self.producers = {out.path: step for step in steps for out in step.outs}
        self.stat = stat
        self._lock = lock
        self.reads = Reads(project, stat)
        self._mutex = threading.RLock()
        self._verdicts: dict[str, Verdict] = {}
        self._assumed: dict[str, Digest] = {}
        self._data: dict[str, Digest | None] = {}
        self._cache = cache.LocalCache(project)
        self.versions = Versions(project, stat)
        self._looked_at_again: set[str] = set()
        self.on_remote: set[str] = set()
        """Objects that the remote is known to have."""
        self.not_here: set[str] = set()
        """Objects that were looked for in the cache alone, and are not there."""

    def judge(self, name: str) -> Verdict:
        """The verdict on a step, as things are on disk and as the steps before it will leave them."""
        with self._mutex:
            verdict = self._verdicts.get(name)
            if verdict is None:
                step = self.steps[name]
                try:
                    verdict = self._judge(step)
                except (DataError, OSError) as error:  # a build stops there
                    wrong = error.problems if isinstance(error, DataError) else (Problem(message=reason(error)),)
                    verdict = Verdict(
                        step=step, state="stale", action="run", reasons=tuple(map(str, wrong)), wrong=wrong
                    )
                self._verdicts[name] = verdict
            return verdict

    def forget(self) -> None:
        """Judge anew: something on disk has changed."""
        with self._mutex:
            self._verdicts.clear()
            self._data.clear()
            self.reads.forget()

    def another(self) -> Oracle:
        """An oracle of the same project, to look ahead with."""
        return Oracle(self.project, list(self.steps.values()), self._lock, self.stat)

    def assume(self, path: str, place: Path, digest: Digest) -> None:
        """Judge as if an out held what lies elsewhere."""
        self._assumed[path] = digest
        self.reads.places[self.project.root / path] = place

    def is_assumed(self, path: str) -> bool:
        """Whether an out is judged as if it held something else."""
        return path in self._assumed

    def entry(self, step: Step) -> Entry | None:
        """What `dvc.lock` says of a step; a stage that only has its name is no record of it."""
        entry = self._lock.stages().get(step.stage)
        return entry if entry is not None and entry_problem(entry) is None else None

    def _judge(self, step: Step) -> Verdict:
        entry = self.entry(step)
        reasons = [] if entry else ["never built"]
        if entry and entry.get("cmd") != step.command:
            reasons.append(f"command: {entry.get('cmd')} -> {step.command}")
        recorded = recorded_parameters(entry, step)
        if entry:
            reasons += parameter_changes(recorded, step.spec)
            reasons += self._shape_changes(entry, step)
        deps, waiting, dep_reasons = self._inputs(step, entry)
        if waiting:
            waits = dict.fromkeys(waiting)
            state: State = "stale" if reasons and entry else "pending"
            return Verdict(step=step, state=state, action="run", reasons=(*reasons, *waits), deps=deps)
        known = recorded.get("reads", {})
        viewed_changed = any(dep.viewed for dep in dep_reasons)
        reads, absent = self._views(step, known, viewed_changed=viewed_changed, settings_changed=bool(reasons))
        if absent:
            reason = tuple(f"input changed: {dep.path}" for dep in dep_reasons)
            return Verdict(
                step=step, state="pending", action="run", reasons=(*reasons, *reason), deps=deps, absent=absent
            )
        if entry:
            reasons += [message for dep, message in dep_reasons.items() if not dep.viewed]
            reasons += self.reads.changes(known, reads)
        if reasons or entry is None:
            return self._stale(step, reasons, deps, reads)
        return self._fresh(step, entry, deps, reads, renew=bool(dep_reasons))

    def _shape_changes(self, entry: Entry, step: Step) -> list[str]:
        old = {row["path"] for row in entry.get("deps", [])}
        new = {dep.path for dep in step.deps}
        reasons = [f"input added: {path}" for path in sorted(new - old)]
        reasons += [f"input removed: {path}" for path in sorted(old - new)]
        if {row["path"] for row in entry.get("outs", [])} != {out.path for out in step.outs}:
            reasons.append("its outs have other names")
        return reasons

    def _inputs(self, step: Step, entry: Entry | None) -> tuple[dict[str, Digest], list[str], dict[Dep, str]]:
        """Digests of the inputs; which ones wait for an earlier step; which ones are not as recorded."""
        recorded = {row["path"]: row.get("md5") for row in (entry or {}).get("deps", [])}
        deps: dict[str, Digest] = {}
        waiting: list[str] = []
        changed: dict[Dep, str] = {}
        for dep in step.deps:
            digest = self.content(dep.path)
            if digest is None:
                producer = self.producers.get(dep.path)
                waiting.append(f"{producer.name} runs first" if producer else f"missing: {dep.path}")
                continue
            deps[dep.path] = digest
            if entry is None:
                changed[dep] = ""
            elif recorded.get(dep.path) != digest.md5:
                changed[dep] = f"input changed: {dep.path}"
        return deps, waiting, changed

    def content(self, path: str) -> Digest | None:
        """What an input holds, or will hold when the steps before are done; None where only a run can tell."""
        if path in self._assumed:
            return self._assumed[path]
        producer = self.producers.get(path)
        if producer is not None:
            outs = self.judge(producer.name).outs
            return None if outs is None else outs[path]
        with self._mutex:
            if path not in self._data:  # several steps read a dataset: it is walked once
                self._data[path] = self._dataset(path)
            return self._data[path]

    def _dataset(self, path: str) -> Digest | None:
        """What a dataset holds, or will hold when the version that its `.dvc` file names is brought.

        Raises:
            DataError: it holds edits of another version.
        """
        state = self.versions.state(path)
        if state == "diverged":
            raise DataError([self.versions.problem(path)])
        if problem := self.versions.part_problem(path):
            raise DataError([problem])
        return (None if state == "outdated" else self.stat.digest(path)) or self.tracked(path)

    def outdated(self, steps: Iterable[Step]) -> list[str]:
        """Datasets of steps that hold an older version than their `.dvc` files name, in words."""
        data = dict.fromkeys(dep.path for step in steps for dep in step.deps if dep.path not in self.producers)
        found = {path: self.versions.state(path) for path in data}
        words = (self.versions.warning(path, state) for path, state in found.items() if state == "outdated")
        return list(filter(None, words))

    def source(self, contents: Iterable[Digest]) -> Literal["restore", "fetch", "run"]:
        """Where contents come from when they are brought back; where nobody is known to have them, from a run."""
        lacking = {each.md5 for each in contents if not self._cache.has(each.md5)}
        with self._mutex:
            self.not_here |= lacking - self.on_remote
            return "restore" if not lacking else "fetch" if lacking <= self.on_remote else "run"

    def in_place(self, path: str) -> bool:
        """Whether an input is on disk with the content that it should have."""
        if path in self._assumed:
            return True
        found, expected = self.stat.digest(path), self.content(path)
        return found is not None and (expected is None or found.md5 == expected.md5)

    def tracked(self, path: str) -> Digest | None:
        """What DVC keeps of a dataset, by its `.dvc` file; None if it does not track it."""
        file = DataFile.read(self.project, f"{path}.dvc")
        return file.digest if file else None

    def _views(
        self, step: Step, recorded: Mapping[str, str], *, viewed_changed: bool, settings_changed: bool
    ) -> tuple[dict[str, str], tuple[str, ...]]:
        """Digests of what a step reads, and the inputs that have to be brought back to know them."""
        found: dict[str, str] = {}
        for view in step.views:
            is_input = view != "base" or bool(step.built_base)
            same = not viewed_changed and not (settings_changed and view not in _OF_FILES_ALONE)
            if view == "captions" and same:
                if read_otherwise(self.project.root / step.folder / "captions.jsonl"):
                    self._looked_at_again.add(step.name)
                same = step.name not in self._looked_at_again
            if is_input and same and view in recorded and not (view in _OF_FOLDERS and self._hides(step)):
                found[view] = recorded[view]
                continue
            if is_input:
                absent = tuple(dep.path for dep in step.deps if dep.viewed and not self.in_place(dep.path))
                if absent:
                    return {}, absent
            found[view] = self.reads.digest(view, step)
        return found, ()

    def _hides(self, step: Step) -> bool:
        """Whether an input of the user's holds files that `.dvcignore` names, so that its digest does not tell all."""
        return any(dep.viewed and dep.path not in self.producers and self.stat.hidden(dep.path) for dep in step.deps)

    def _stale(
        self, step: Step, reasons: Sequence[str], deps: Mapping[str, Digest], reads: Mapping[str, str]
    ) -> Verdict:
        entry = self._cache.find_run(step, deps, step.parameters(reads))
        return Verdict(
            step=step,
            state="stale",
            action="restore" if entry else "run",
            reasons=tuple(reasons),
            deps=deps,
            reads=reads,
            outs=recorded_outs(entry) if entry else None,
            entry=entry,
        )

    def _fresh(
        self, step: Step, entry: Entry, deps: Mapping[str, Digest], reads: Mapping[str, str], *, renew: bool
    ) -> Verdict:
        outs = recorded_outs(entry)
        reasons: list[str] = []
        for path, recorded in outs.items():
            found = self.stat.digest(path)
            if found is None:
                if step.final or self._cache.has(recorded.md5):
                    reasons.append(f"absent: {path}")
            elif found.md5 != recorded.md5:
                reasons.append(f"changed by someone else: {path}")
        action: Action = self.source(outs.values()) if reasons else "none"
        return Verdict(
            step=step,
            state="stale" if reasons else "fresh",
            action=action,
            reasons=tuple(reasons),
            renew=renew,
            lost=action == "run",
            deps=deps,
            reads=reads,
            outs=outs,
            entry=entry,
        )


def recorded_parameters(entry: Entry | None, step: Step) -> Mapping[str, Any]:
    """The parameters under which a step was last built."""
    parameters = (entry or {}).get("params", {}).get(step.params_file, {}).get(step.params_key)
    if not isinstance(parameters, Mapping):
        return {}
    reads = parameters.get("reads", {})
    is_right = isinstance(reads, Mapping) and all(isinstance(digest, str) for digest in reads.values())
    return parameters if is_right else {**parameters, "reads": {}}


def recorded_outs(entry: Entry) -> dict[str, Digest]:
    """The outs that a recorded run left."""
    return {row["path"]: Digest(row["md5"], row.get("size", 0), row.get("nfiles")) for row in entry.get("outs", [])}
