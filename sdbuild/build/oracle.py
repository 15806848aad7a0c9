"""The oracle: what is stale, and why. It compares `dvc.lock` with the plan and never imports DVC.

A step is fresh when its command, its parameters, the content of its inputs and the content of its outs are as
recorded. Where a step reads only a part of an input (a *view*, e.g. the pictures of a folder that also holds
captions), an input that changed as a whole is compared by that part; if it is the same, the step is fresh and only its
record needs to be renewed. Digests of views stand among the recorded parameters, under `reads`.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sdbuild.build import cache
from sdbuild.build.lockfile import Entry, LockFile, load_yaml
from sdbuild.build.project import Project, write_atomic
from sdbuild.build.statcache import Digest, StatCache
from sdbuild.errors import DataError
from sdbuild.plan.model import Dep, Step, View

State = Literal["fresh", "stale", "pending"]
Action = Literal["none", "restore", "run"]

ReadView = Callable[[View, Step, "Oracle"], Any]
"""Computes what a step reads (JSON-able) from inputs that are on disk."""


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
    """The recorded run that a restore brings back."""
    absent: tuple[str, ...] = ()
    """Inputs that have to be brought back before more can be said."""


class Oracle:
    """Judges the steps of a plan; thread-safe; verdicts are kept until `forget`."""

    def __init__(
        self, project: Project, steps: Sequence[Step], lock: LockFile, stat: StatCache, read_view: ReadView
    ) -> None:
        self.project = project
        self.steps = {step.name: step for step in steps}
        self.producers = {out.path: step for step in steps for out in step.outs}
        self.stat = stat
        self._lock = lock
        self._read_view = read_view
        self._mutex = threading.RLock()
        self._verdicts: dict[str, Verdict] = {}
        self._base_digests: dict[tuple[Any, ...], str] = {}
        self._cache = cache.LocalCache(project)

    def judge(self, name: str) -> Verdict:
        """The verdict on a step, as things are on disk and as the steps before it will leave them."""
        with self._mutex:
            verdict = self._verdicts.get(name)
            if verdict is None:
                step = self.steps[name]
                try:
                    verdict = self._judge(step)
                except DataError as error:  # the step itself reports it in full when it runs
                    verdict = Verdict(step=step, state="stale", action="run", reasons=tuple(str(error).splitlines()))
                self._verdicts[name] = verdict
            return verdict

    def forget(self) -> None:
        """Judge anew: something on disk has changed."""
        with self._mutex:
            self._verdicts.clear()

    def entry(self, step: Step) -> Entry | None:
        """What `dvc.lock` says of a step."""
        return self._lock.stages().get(step.stage)

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
            return Verdict(step=step, state="pending", action="run", reasons=(*reasons, *waits), deps=deps)
        reads, absent = self._reads(step, recorded, viewed_changed=any(step_dep.viewed for step_dep in dep_reasons))
        if absent:
            reason = tuple(f"input changed: {dep.path}" for dep in dep_reasons)
            return Verdict(
                step=step, state="pending", action="run", reasons=(*reasons, *reason), deps=deps, absent=absent
            )
        if entry:
            reasons += [message for dep, message in dep_reasons.items() if not dep.viewed]
            reasons += self._view_changes(recorded.get("reads", {}), reads)
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
        producer = self.producers.get(path)
        if producer is not None:
            outs = self.judge(producer.name).outs
            return None if outs is None else outs[path]
        return self.stat.digest(path) or self.tracked(path)

    def in_place(self, path: str) -> bool:
        """Whether an input is on disk with the content that it should have."""
        found, expected = self.stat.digest(path), self.content(path)
        return found is not None and (expected is None or found.md5 == expected.md5)

    def tracked(self, path: str) -> Digest | None:
        """What DVC keeps of a dataset, by its `.dvc` file; None if it does not track it."""
        try:
            content = load_yaml((self.project.root / f"{path}.dvc").read_text(encoding="utf-8"))
            out = content["outs"][0]
            return Digest(out["md5"], out.get("size", 0), out.get("nfiles"))
        except (OSError, KeyError, IndexError, TypeError):
            return None

    def _reads(
        self, step: Step, recorded: Mapping[str, Any], *, viewed_changed: bool
    ) -> tuple[dict[str, str], tuple[str, ...]]:
        known = recorded.get("reads", {})
        reads: dict[str, str] = {}
        for view in step.views:
            if view == "base":
                reads[view] = self._base(step)
            elif not viewed_changed and view in known:
                reads[view] = known[view]
            else:
                absent = tuple(dep.path for dep in step.deps if not (self.project.root / dep.path).exists())
                if absent or self._replaced(step):
                    return {}, absent or tuple(dep.path for dep in step.deps)
                content = self._read_view(view, step, self)
                reads[view] = digest = json_digest(content)
                self._remember_view(digest, content)
        return reads, ()

    def _replaced(self, step: Step) -> bool:
        """Whether an input on disk is not yet what the step before it will make of it."""
        return any(dep.path in self.producers and not self.in_place(dep.path) for dep in step.deps)

    def _base(self, step: Step) -> str:
        key = (step.base, step.components)
        if key not in self._base_digests:
            from sdbuild.families.digest import base_digest
            from sdbuild.families.locate import locate

            folder = locate(step.base.model, step.base.wanted, self.project.root)
            if folder is None:
                raise DataError(f"base {step.base.model} is not on this machine; `doit` downloads it")
            self._base_digests[key] = base_digest(folder, step.components, self._hash_file)
        return self._base_digests[key]

    def _hash_file(self, path: Path) -> str:
        found = self.stat.digest(str(path))
        assert found is not None, path
        return found.md5

    def _view_changes(self, old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
        reasons: list[str] = []
        for view in new:
            if old.get(view) != new[view]:
                reasons += describe_change(view, self._recall_view(old.get(view)), self._recall_view(new[view]))
        return reasons

    def _stale(
        self, step: Step, reasons: Sequence[str], deps: Mapping[str, Digest], reads: Mapping[str, str]
    ) -> Verdict:
        parameters = {**step.spec, "reads": dict(reads)}
        entry = self._cache.find_run(step, deps, parameters)
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
        return Verdict(
            step=step,
            state="stale" if reasons else "fresh",
            action="restore" if reasons else "none",
            reasons=tuple(reasons),
            renew=renew,
            deps=deps,
            reads=reads,
            outs=outs,
            entry=entry,
        )

    def _remember_view(self, digest: str, content: Any) -> None:
        path = self._view_path(digest)
        if not path.exists():
            write_atomic(path, json.dumps(content, ensure_ascii=False))

    def _recall_view(self, digest: str | None) -> Any:
        if digest is None:
            return None
        try:
            return json.loads(self._view_path(digest).read_bytes())
        except (OSError, ValueError):
            return None

    def _view_path(self, digest: str) -> Path:
        return self.project.private / "cache" / "views" / f"{digest}.json"


def json_digest(content: Any) -> str:
    """SHA-256 of canonical JSON."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def recorded_parameters(entry: Entry | None, step: Step) -> Mapping[str, Any]:
    """The parameters under which a step was last built."""
    parameters = (entry or {}).get("params", {}).get(step.params_file, {}).get(step.params_key)
    return parameters if isinstance(parameters, Mapping) else {}


def recorded_outs(entry: Entry) -> dict[str, Digest]:
    """The outs that a recorded run left."""
    return {row["path"]: Digest(row["md5"], row.get("size", 0), row.get("nfiles")) for row in entry.get("outs", [])}


def parameter_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Differences of two specs in words, by dotted key; digests under `reads` are left out."""
    before, after = flat(old), flat(new)
    return [
        f"param {key}: {_word(before, key)} -> {_word(after, key)}"
        for key in sorted({*before, *after})
        if key.split(".")[0] != "reads" and before.get(key, _NOTHING) != after.get(key, _NOTHING)
    ]


_NOTHING = object()


def _word(values: Mapping[str, Any], key: str) -> str:
    return json.dumps(values[key], ensure_ascii=False) if key in values else "(none)"


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested JSON as one mapping of dotted keys; lists stay whole unless they hold mappings."""
    if isinstance(value, Mapping) and value:
        found: dict[str, Any] = {}
        for key, inner in value.items():
            found.update(flat(inner, f"{prefix}.{key}" if prefix else str(key)))
        return found
    if isinstance(value, list) and any(isinstance(inner, Mapping) for inner in value):
        found = {}
        for index, inner in enumerate(value):
            found.update(flat(inner, f"{prefix}[{index}]"))
        return found
    return {prefix: value}


_NOUNS: Mapping[str, tuple[str, str]] = {
    "pictures": ("picture file", "picture files"),
    "captions": ("caption", "captions"),
    "pixels": ("picture", "pictures"),
    "texts": ("text", "texts"),
    "base": ("base model", "base model"),
}


def describe_change(view: str, old: Any, new: Any) -> list[str]:
    """What changed between two contents of a view, in words."""
    one, many = _NOUNS[view]
    if old is None or new is None:
        return [f"{many} changed"]
    before, after = _rows(old), _rows(new)
    added = [key for key in after if key not in before]
    removed = [key for key in before if key not in after]
    changed = [key for key in after if key in before and before[key] != after[key]]
    reasons = []
    for verb, keys in (("added", added), ("removed", removed), ("changed", changed)):
        if len(keys) == 1:
            name = f": {keys[0]}" if view == "pictures" else ""
            reasons.append(f"1 {one} {verb}{name}")
        elif keys:
            reasons.append(f"{len(keys)} {many} {verb}")
    return reasons or [f"{many} changed"]


def _rows(content: Any) -> dict[str, Any]:
    if isinstance(content, Mapping):
        return flat(content)
    return {json.dumps(row if isinstance(row, str) else row[:1]): row for row in content}
