"""Building steps: bring what is missing, restore what was built before, run the rest, record it."""

from __future__ import annotations

import contextlib
import json
import shutil
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sdbuild.build.bases import misfits
from sdbuild.build.checkout_checks import check_folders
from sdbuild.build.compiled import Compiled
from sdbuild.build.datasets import Datasets
from sdbuild.build.input_changes import Inputs
from sdbuild.build.interrupts import Interrupted, interrupt_message
from sdbuild.build.lockfile import Entry, LockFile
from sdbuild.build.merge import ensure_merge_driver
from sdbuild.build.oracle import Oracle, Verdict, recorded_parameters
from sdbuild.build.outs import Outs
from sdbuild.build.project import BuildLock, Project
from sdbuild.build.statcache import StatCache
from sdbuild.build.workers import PATIENCE, Workers
from sdbuild.captioners import models
from sdbuild.console import Console
from sdbuild.errors import Problem, RecipeError, SdbuildError
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

    def __init__(
        self, project: Project, recipes: Sequence[Recipe], console: Console, unread: Collection[str] = ()
    ) -> None:
        """Know a project's recipes; what is recorded of those that are `unread`, by name, is kept."""
        self.project = project
        self.console = console
        self.compiled = Compiled(project, recipes, unread)
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
        self._unread = frozenset(unread)
        self._refused: Mapping[str, Sequence[Problem]] | None = None
        self._chosen: frozenset[str] | None = None
        self._running: dict[str, tuple[int, int]] = {}
        self.stopped = False
        """The user has been told what an interrupt left."""
        self._inputs = Inputs(self.oracle, self.compiled)
        self._outs = Outs(project, self.oracle, console, lambda: self.history)
        self._datasets = Datasets(self.oracle, console, lambda: self.history)

    @cached_property
    def history(self) -> History:
        """DVC, imported when the first step is not fresh."""
        from sdbuild.build.history import History

        stages = [step.stage for step in self.steps.values()]
        return History(self.project, self.lock_file, [*stages, *self.lock_file.stages_of(self._unread)], self.console)

    def choose(self, recipes: Iterable[str]) -> None:
        """Build these recipes alone; the bases of others are left where they are."""
        self._chosen = frozenset(recipes)

    def prepare(self) -> None:
        """Bring `dvc.yaml`, `recipe.json` and the bases up to date; needs no lock where nothing has changed."""
        with self._mutex:
            if self._prepared:
                return
            if self._refused is None:  # it takes long
                self._refused = self.compiled.pin_bases(self._chosen, self.console.say)
            for attempt in ("look", "write"):
                self._reads = {
                    step.name: recorded_parameters(self.oracle.entry(step), step).get("reads", {})
                    for step in self.steps.values()
                }
                files = self.compiled.files(self._reads)
                changed = {path: text for path, text in files.items() if self.compiled.differs(path, text)}
                if not changed and not self.lock_file.foreign_stages():
                    break
                if attempt == "look":
                    self.hold()
                    check_folders(self.project, dict.fromkeys(step.folder for step in self.steps.values()))
                    continue
                for path, text in changed.items():
                    self._write(path, text)
                order = [step.stage for step in self.steps.values()]
                if (kept := self.lock_file.drop_foreign_stages(order)) is not None:
                    self._tell_kept("dvc.lock", kept)
            self._prepared = True

    def judge(self, name: str) -> Verdict:
        """The oracle's verdict, after preparation."""
        self.prepare()
        self._check_base(name)
        return self.oracle.judge(name)

    def _check_base(self, name: str) -> None:
        if wrong := (self._refused or {}).get(self.steps[name].recipe):
            raise RecipeError(wrong)

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
            self._check_base(name)
            step = self.steps[name]
            verdict = self._decided(step)
            started = time.monotonic()
            outcome = None if forced else self._without_running(verdict)
        if outcome is None:
            outcome = self._run(step, self._ready(step), started)
        self.outcomes[name] = outcome
        return outcome

    def interrupt(self) -> None:
        """Have the steps that other threads run save their state; a second Ctrl-C waits no longer, and is told so."""
        until = time.monotonic() + PATIENCE
        with contextlib.suppress(KeyboardInterrupt):
            self._workers.interrupt()
            while self._running and time.monotonic() < until:
                time.sleep(0.05)
        for name, done in dict(self._running).items():
            self._workers.kill()
            self._tell_stopped(self.steps[name], Interrupted(cut=True), done)

    def _tell_stopped(self, step: Step, error: KeyboardInterrupt, done: tuple[int, int]) -> None:
        self.console.error(interrupt_message(step, self.project.scratch(step.name), error, done))
        self.stopped = True

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
            self._datasets.save(verdict)
            self.history.renew(step, entry, verdict.deps)
            self.oracle.forget()
            verdict = self.oracle.judge(step.name)
            if verdict.action == "none":
                return Outcome(how="renewed")
        if verdict.action == "none":
            return Outcome(how="fresh")
        for known in self._known(verdict):
            self._write_reads(verdict)
            if self._left_there(verdict, known) or self._outs.restore(step, known):
                self._datasets.save(verdict)
                self.oracle.forget()  # steps after this one were waiting for it to run
                self._forget_scratch(step)
                return Outcome(how="restored")
        return None

    def _known(self, verdict: Verdict) -> Iterator[Entry]:
        """Runs whose outs may be brought back in place of running the step."""
        if verdict.entry is not None:
            yield verdict.entry
        if verdict.action == "run" and (pushed := self._pushed(verdict)) is not None and pushed != verdict.entry:
            yield pushed

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
        if entry is verdict.entry or step.final or present:
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
            self._inputs.check_settled(verdict)
            self._write_reads(verdict)
            return verdict

    def _run(self, step: Step, before: Verdict, started: float) -> Outcome:
        check_folders(self.project, [step.folder])
        self._fit(step)
        self._tell_lacking(step.recipe)
        self.console.step_started(step.name, before.reasons)
        self._running[step.name] = 0, 0

        def show(event: Mapping[str, Any]) -> None:
            if event["event"] == "progress":
                self._running[step.name] = event["done"], event["total"]
                self.console.step_progress(step.name, event["done"], event["total"], event["unit"], event["figures"])
            else:
                self.console.warn(f"{step.name}: {event['message']}")

        try:
            items = self._work(step, before, show)
            with self._mutex:
                self._inputs.check_unchanged(before, self._reads)
                self._datasets.save(before)
                self.history.record(step, before.deps, step.parameters(before.reads))
                self.oracle.forget()
                self._forget_scratch(step)
        except KeyboardInterrupt as error:
            words = interrupt_message(step, self.project.scratch(step.name), error, self._running[step.name])
            with contextlib.suppress(KeyboardInterrupt):  # a second one: the next build puts them back
                self._give_up(step)
            self.console.error(words)
            self.stopped = True
            raise
        except BaseException:
            self._give_up(step)
            raise
        finally:
            self._running.pop(step.name, None)
        seconds = time.monotonic() - started
        self.console.step_done(step.name, items.total, items.computed, seconds)
        return Outcome(how="ran", items=items, seconds=seconds)

    def _work(self, step: Step, before: Verdict, show: Callable[[Mapping[str, Any]], None]) -> Items:
        """Have a worker run a step; where it fails over inputs that changed under it, that is what is said."""
        if step.kind == "captions":
            models.bring(step.spec, self.project.root)
        try:
            with self._alone(step):
                return self._workers.run(step.name, show)
        except SdbuildError as error:
            with self._mutex:
                if (explained := self._inputs.explained(error, before, self._reads)) is not None:
                    raise explained from error
            raise

    def outdated(self) -> list[str]:
        """Datasets of the chosen recipes that hold an older version than their `.dvc` files name, in words."""
        chosen = [step for step in self.steps.values() if self._chosen is None or step.recipe in self._chosen]
        return self.oracle.outdated(chosen)

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

    def _give_up(self, step: Step) -> None:
        self.console.step_failed(step.name)
        with self._mutex:
            self._outs.put_back(step)

    def _bring(self, paths: Sequence[str]) -> None:
        """Bring inputs into place: from the cache, from the remote, or by building the steps that make them."""
        for path in paths:
            producer = self.oracle.producers.get(path)
            if producer is not None:
                entry = self.oracle.judge(producer.name).entry
                if entry is None or not self._outs.restore(producer, entry):
                    self.build(producer.name, forced=True)
            elif not self.oracle.in_place(path):
                self._datasets.bring(path)
        self.oracle.forget()

    def _write_reads(self, verdict: Verdict) -> None:
        """Put the digests of what a step is about to read into `recipe.json`, where DVC looks for parameters."""
        step = verdict.step
        self._reads[step.name] = dict(verdict.reads)
        text = self.compiled.recipe_json(step.recipe, self._reads)
        if self.compiled.differs(step.params_file, text):
            self._write(step.params_file, text)

    def _write(self, path: str, text: str) -> None:
        """Write a compiled file, and tell what of the user's was in its place."""
        if (kept := self.compiled.write(path, text)) is not None:
            self._tell_kept(path, kept)

    def _tell_kept(self, path: str, kept: Path) -> None:
        place = kept.relative_to(self.project.root)
        self.console.warn(f"{path} was not written by sdbuild, or edited since; it is kept as {place}")

    def _forget_scratch(self, step: Step) -> None:
        shutil.rmtree(self.project.scratch(step.name), ignore_errors=True)
