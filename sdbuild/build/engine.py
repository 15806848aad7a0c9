"""Building steps: bring what is missing, restore what was built before, run the rest, record it."""

from __future__ import annotations

import contextlib
import json
import shutil
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from sdbuild.build.bases import misfits
from sdbuild.build.cache import LocalCache
from sdbuild.build.compiled import Compiled
from sdbuild.build.lockfile import Entry, LockFile
from sdbuild.build.merge import ensure_merge_driver
from sdbuild.build.oracle import Oracle, Verdict, recorded_parameters
from sdbuild.build.project import BuildLock, Project
from sdbuild.build.statcache import StatCache
from sdbuild.build.workers import Workers
from sdbuild.captioners import models
from sdbuild.console import Console
from sdbuild.errors import DataError, Problem, RecipeError, SdbuildError, StepError
from sdbuild.plan.model import Step
from sdbuild.recipe.libraries import missing
from sdbuild.recipe.models import Recipe
from sdbuild.steps.contract import Items

if TYPE_CHECKING:
    from sdbuild.build.history import History

How = Literal["fresh", "renewed", "restored", "ran"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What building a step took."""

    how: How
    items: Items | None = None
    seconds: float = 0.0


class Engine:
    """Everything that one `doit` run knows and holds."""

    def __init__(self, project: Project, recipes: Sequence[Recipe], console: Console) -> None:
        self.project = project
        self.console = console
        self.compiled = Compiled(project, recipes)
        self.steps = {step.name: step for step in self.compiled.steps}
        self.lock_file = LockFile(project)
        self.stat = StatCache(project.root, project.stat_cache)
        self.oracle = Oracle(project, list(self.steps.values()), self.lock_file, self.stat)
        self.outcomes: dict[str, Outcome] = {}
        self.recipes = {recipe.name: recipe for recipe in recipes}
        self._asking = {recipe.name for recipe in recipes if recipe.remote.lookup == "auto"}
        self._reads: dict[str, Mapping[str, str]] = {}
        self._build_lock = BuildLock(project, waiting=console.say)
        self._workers = Workers(project)
        self._mutex = threading.RLock()
        self._alike: dict[str, threading.Lock] = {}
        self._prepared = False
        self._told: set[str] = set()
        self._fits: set[str] = set()
        self._refused: SdbuildError | None = None
        self._chosen: frozenset[str] | None = None

    @cached_property
    def history(self) -> History:
        """DVC, imported when the first step is not fresh."""
        from sdbuild.build.history import History

        return History(self.project, self.lock_file, [step.stage for step in self.steps.values()], self.console)

    def choose(self, recipes: Iterable[str]) -> None:
        """Build these recipes alone; the bases of others are left where they are."""
        self._chosen = frozenset(recipes)

    def prepare(self) -> None:
        """Bring `dvc.yaml`, `recipe.json` and the bases up to date; needs no lock where nothing has changed."""
        with self._mutex:
            if self._prepared:
                return
            if self._refused is not None:  # it takes long, and doit asks a step's state before it is built
                raise self._refused
            try:
                self.compiled.pin_bases(self._chosen, self.console.say)
            except SdbuildError as error:
                self._refused = error
                raise
            for attempt in ("look", "write"):
                self._reads = {
                    step.name: recorded_parameters(self.oracle.entry(step), step).get("reads", {})
                    for step in self.steps.values()
                }
                files = self.compiled.files(self._reads)
                changed = {path: text for path, text in files.items() if self.compiled.differs(path, text)}
                if not changed:
                    break
                if attempt == "look":
                    self.hold()
                    continue
                for path, text in changed.items():
                    kept = self.compiled.write(path, text)
                    if kept is not None:
                        self.console.warn(f"dvc.yaml was not written by sdbuild; it is kept as {kept.name}")
            self._prepared = True

    def judge(self, name: str) -> Verdict:
        """The oracle's verdict, after preparation."""
        self.prepare()
        return self.oracle.judge(name)

    def hold(self) -> None:
        """Take the build lock for the rest of the run; what another build did meanwhile counts."""
        if not self._build_lock.held:
            ensure_merge_driver(self.project)
        if self._build_lock.acquire():
            self.oracle.forget()
            self._prepared = False

    def build(self, name: str, *, forced: bool = False) -> Outcome:
        """Make a step fresh; `forced` runs it even if it is.

        Raises:
            SdbuildError: it failed; its last good outs are in place.
        """
        with self._mutex:
            self.hold()
            self.prepare()
            step = self.steps[name]
            verdict = self._decided(step)
            started = time.monotonic()
            outcome = None if forced else self._without_running(verdict)
        if outcome is None:
            outcome = self._run(step, self._ready(step), started)
        self.outcomes[name] = outcome
        return outcome

    def close(self) -> None:
        """Give back processes, databases and the lock."""
        self._workers.close()
        if "history" in self.__dict__:
            self.history.close()
        self.stat.close()
        self._build_lock.release()

    def _decided(self, step: Step) -> Verdict:
        """The verdict with every input brought back that it takes to decide."""
        verdict = self.oracle.judge(step.name)
        if verdict.absent:
            self._bring(verdict.absent)
            verdict = self.oracle.judge(step.name)
        if "base" not in verdict.reads and self._bring_base(step):
            verdict = self.oracle.judge(step.name)
        return verdict

    def _bring_base(self, step: Step) -> bool:
        """Bring a base that another recipe has built, if the step reads one."""
        if not step.built_base:
            return False
        self.compiled.bring_base(step.recipe, self.console.say)
        self.oracle.forget()
        return True

    def _without_running(self, verdict: Verdict) -> Outcome | None:
        step = verdict.step
        if verdict.renew and verdict.entry is not None:
            entry = {**verdict.entry, "params": step.params(step.parameters(verdict.reads))}
            self._save_data(verdict)
            self.history.renew(step, entry, verdict.deps)
            self.oracle.forget()
            verdict = self.oracle.judge(step.name)
            if verdict.action == "none":
                return Outcome(how="renewed")
        if verdict.action == "none":
            return Outcome(how="fresh")
        known = verdict.entry if verdict.action == "restore" else self._pushed(verdict)
        if known is not None:
            self._write_reads(verdict)
            if self._left_there(verdict, known) or self.history.restore(step, known):
                self.oracle.forget()  # steps after this one were waiting for it to run
                self._forget_scratch(step)
                return Outcome(how="restored")
        return None

    def _pushed(self, verdict: Verdict) -> Entry | None:
        """A run of a step on the same inputs that the remote knows."""
        step = verdict.step
        if step.recipe not in self._asking or len(verdict.deps) < len(step.deps):
            return None
        return self.history.find_run(step, verdict.deps, step.parameters(verdict.reads))

    def _left_there(self, verdict: Verdict, entry: Entry) -> bool:
        """Whether a pushed run's outs can stay on the remote until a step needs them; then it is only recorded."""
        step = verdict.step
        present = any((self.project.root / out.path).exists() for out in step.outs)
        if verdict.action == "restore" or step.final or present:
            return False
        self.history.adopt(step, entry)
        return True

    def _ready(self, step: Step) -> Verdict:
        """Bring the inputs of a step into place and judge it on them."""
        with self._mutex:
            missing = tuple(dep.path for dep in step.deps if not self.oracle.in_place(dep.path))
            if missing:
                self._bring(missing)
            self._bring_base(step)
            self.oracle.forget()
            verdict = self.oracle.judge(step.name)
            self._write_reads(verdict)
            return verdict

    def _run(self, step: Step, before: Verdict, started: float) -> Outcome:
        self._fit(step)
        self._tell_lacking(step.recipe)
        self.console.step_started(step.name, before.reasons)

        def show(event: Mapping[str, Any]) -> None:
            if event["event"] == "progress":
                self.console.step_progress(step.name, event["done"], event["total"], event["unit"], event["figures"])
            else:
                self.console.warn(f"{step.name}: {event['message']}")

        try:
            if step.kind == "captions":
                models.bring(step.spec, self.project.root)
            with self._alone(step):
                items = self._workers.run(step.name, show)
            with self._mutex:
                self._check_unchanged(step, before)
                self._save_data(before)
                self.history.record(step, before.deps, step.parameters(before.reads))
                self.oracle.forget()
                self._forget_scratch(step)
        except BaseException:
            self.console.step_failed(step.name)
            with self._mutex:
                self._put_back(step)
            raise
        seconds = time.monotonic() - started
        self.console.step_done(step.name, items.total, items.computed, seconds)
        return Outcome(how="ran", items=items, seconds=seconds)

    def lacking(self, recipe: str) -> list[str]:
        """What this machine lacks to train a recipe, if it is to be trained: told before the steps that lead there."""
        train = self.steps[f"{recipe}:train"]
        if self.oracle.judge(train.name).action != "run":
            return []
        chosen = self.recipes[recipe]
        return [f"recipes/{chosen.group}.yaml: {word}" for word in missing(chosen)]

    def _fit(self, step: Step) -> None:
        """Make sure that a recipe goes with its base before the first of its steps runs.

        A base that another recipe builds is in order when a step reads it, and may be old or damaged before.
        """
        with self._mutex:
            if step.recipe in self._fits or (step.base.deps and not step.built_base):
                return
            if wrong := misfits(self.recipes[step.recipe], step.base, self.project.root):
                raise RecipeError(wrong)
            self._fits.add(step.recipe)

    def _tell_lacking(self, recipe: str) -> None:
        with self._mutex:
            words = [] if recipe in self._told else self.lacking(recipe)
            self._told.add(recipe)
            for word in words:
                self.console.warn(word)

    def _alone(self, step: Step) -> threading.Lock:
        """Lock of the steps with one spec, as variants have them: the second one finds the items of the first.

        Taken while the worker runs and no longer, since recording needs the mutex that a waiting step may hold.
        """
        return self._alike.setdefault(json.dumps([step.kind, step.spec], sort_keys=True), threading.Lock())

    def _check_unchanged(self, step: Step, before: Verdict) -> None:
        """Look at the inputs again: as they would be built now, and as they lie there, for anybody may edit outs."""
        self.oracle.forget()
        after = self.oracle.judge(step.name)
        changed = {
            dep.path: None
            for dep in step.deps
            for now in (after.deps.get(dep.path), self.stat.digest(dep.path))
            if now is None or now.md5 != before.deps[dep.path].md5
        }
        if changed and all(dep.viewed for dep in step.deps) and before.reads == after.reads == self._reads_now(step):
            return
        if not changed and "base" in before.reads and self.oracle.reads.digest("base", step) != before.reads["base"]:
            changed = {f"the base {step.base.model}": None}
        if changed:
            what = ", ".join(changed)
            raise StepError(
                f"{step.name}: its inputs changed while it ran, so its result was not kept; run doit again ({what})"
            )

    def _reads_now(self, step: Step) -> Mapping[str, str]:
        """What the step would read of what lies there."""
        try:
            return self.oracle.reads.all(step)
        except DataError:
            return {}

    def _put_back(self, step: Step) -> None:
        """After a failure: the last good outs, where a step had already replaced them."""
        self.oracle.forget()
        entry = self.oracle.entry(step)
        if entry is None:
            return
        present = [self.stat.digest(row["path"]) for row in entry.get("outs", [])]
        good = [row["md5"] for row in entry.get("outs", [])]
        if [digest.md5 if digest else None for digest in present] == good or not any(present):
            return
        if not self.history.restore(step, entry):  # DVC wants room in its cache, and the disk may be full
            for row in entry["outs"]:
                with contextlib.suppress(OSError):
                    LocalCache(self.project).copy(row["md5"], self.project.root / row["path"])

    def _bring(self, paths: Sequence[str]) -> None:
        """Bring inputs into place: from the cache, from the remote, or by building the steps that make them."""
        for path in paths:
            producer = self.oracle.producers.get(path)
            if producer is not None:
                entry = self.oracle.judge(producer.name).entry
                if entry is None or not self.history.restore(producer, entry):
                    self.build(producer.name, forced=True)
            elif not (self.project.root / path).exists() and not self.history.fetch_data(path):
                tracked = self.oracle.tracked(path) is not None
                lost = "neither DVC's cache nor its remote has it; `sdbuild push` where it is brings it here"
                remedy = lost if tracked else "no such folder"
                raise DataError([Problem(file=path, message=remedy)])
        self.oracle.forget()

    def _save_data(self, verdict: Verdict) -> None:
        """Keep the version of a tracked dataset that a step was built from."""
        for path, digest in verdict.deps.items():
            kept = self.oracle.tracked(path) if path not in self.oracle.producers else None
            if kept is not None and kept.md5 != digest.md5:
                self.history.save_data(path)

    def _write_reads(self, verdict: Verdict) -> None:
        """Put the digests of what a step is about to read into `recipe.json`, where DVC looks for parameters."""
        step = verdict.step
        self._reads[step.name] = dict(verdict.reads)
        text = self.compiled.recipe_json(step.recipe, self._reads)
        if self.compiled.differs(step.params_file, text):
            self.compiled.write(step.params_file, text)

    def _forget_scratch(self, step: Step) -> None:
        shutil.rmtree(self.project.scratch(step.name), ignore_errors=True)
