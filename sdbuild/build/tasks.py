"""Steps as doit tasks: doit orders and runs them, the oracle decides, DVC remembers."""

from __future__ import annotations

import atexit
import contextlib
import os
import re
import signal
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import Any

from doit.action import BaseAction
from doit.exceptions import TaskError, TaskFailed
from doit.reporter import ConsoleReporter

from sdbuild import early  # noqa: F401  before what takes long to load
from sdbuild.build.bases import in_recipe
from sdbuild.build.doit_parts import Codec, QuietTask, Unmet, database, end_quietly, patch_doit
from sdbuild.build.engine import Engine
from sdbuild.build.oracle import Verdict
from sdbuild.build.project import Project, check_whole
from sdbuild.build.user_files import UserFiles
from sdbuild.console import Console
from sdbuild.errors import InputError, SdbuildError, of_system
from sdbuild.plan.model import Step
from sdbuild.recipe.load import Refused, read_project
from sdbuild.recipe.models import Recipe
from sdbuild.recipe.names import wrong_name
from sdbuild.storage import terminal_text
from sdbuild.storage.atomic import remove
from sdbuild.storage.phrases import first_few
from sdbuild.storage.safe_paths import link_problem

_INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""

_engine: Engine | None = None


class Fresh:
    """doit's question whether a task is up to date; printed, it is the reason why not."""

    def __init__(self, engine: Engine, step: Step) -> None:
        self._engine = engine
        self._step = step
        self.verdict: Verdict | None = None

    def __call__(self) -> bool:
        """Whether there is nothing to do; trouble in finding out is told by the action."""
        try:
            self.verdict = self._engine.judge(self._step.name)
        except (SdbuildError, OSError):
            return False
        return self.is_fresh

    @property
    def is_fresh(self) -> bool:
        """What the last call found."""
        return self.verdict is not None and self.verdict.action == "none" and not self.verdict.renew

    def __str__(self) -> str:
        return "; ".join(self.verdict.reasons) if self.verdict else f"what dvc.lock says of {self._step.stage}"


class Build(BaseAction):  # type: ignore[misc]
    """The action of a task; its output is not captured, the console shows it."""

    def __init__(self, engine: Engine, step: Step, fresh: Fresh) -> None:
        self.task: Any = None
        self.err: str | None = None
        self.out: str | None = None
        self.result: Any = None
        self.values: dict[str, Any] = {}
        self._engine = engine
        self._step = step
        self._fresh = fresh

    def execute(self, out: Any = None, err: Any = None) -> TaskFailed | TaskError | None:
        """Build the step; `doit -a` runs it though it is fresh."""
        try:
            self._engine.build(self._step.name, forced=self._fresh.is_fresh)
        except InputError as error:
            root = self._engine.project.root
            return TaskError("\n".join(map(str, in_recipe(self._step.recipe, error.problems, root))))
        except SdbuildError as error:
            return TaskFailed(str(error))
        except OSError as error:
            return TaskFailed(f"{self._step.name}: {of_system(error)}")
        except KeyboardInterrupt:
            _finish_undisturbed()
            if not self._engine.stopped:
                self._engine.console.error(f"stopped in {self._step.name}; doit resumes there")
            raise SystemExit(_INTERRUPTED) from None
        return None

    def __str__(self) -> str:
        return self._step.command


class Refusal(BaseAction):  # type: ignore[misc]
    """The action of a recipe that is wrong: it says what is, and fails."""

    def __init__(self, refused: Refused) -> None:
        self.task: Any = None
        self.err: str | None = None
        self.out: str | None = None
        self.result: Any = None
        self.values: dict[str, Any] = {}
        self._refused = refused

    def execute(self, out: Any = None, err: Any = None) -> TaskError:
        """Tell every problem."""
        return TaskError("\n".join(map(str, self._refused.problems)))

    def __str__(self) -> str:
        return f"sdbuild check {self._refused.name}"


class Reporter(ConsoleReporter):  # type: ignore[misc]
    """What doit tells, in the words of the console."""

    desc = "steps, progress and results of sdbuild"

    def initialize(self, tasks: Mapping[str, Any], selected_tasks: Sequence[str]) -> None:
        """Tell the engine which recipes are to be built: those of the chosen tasks and of what they need."""
        super().initialize(tasks, selected_tasks)
        needed: set[str] = set()
        left = list(selected_tasks)
        while left:
            name = left.pop()
            if name not in needed:
                needed.add(name)
                left += tasks[name].task_dep
        if _engine is not None:
            _engine.choose({name.partition(":")[0] for name in needed})
        self._told: set[str] = set()

    def execute_task(self, task: Any) -> None:
        """Said by the engine, which knows whether the step runs or is restored."""

    def skip_uptodate(self, task: Any) -> None:
        """Fresh steps are counted at the end."""

    def add_failure(self, task: Any, fail: Any) -> None:
        """One message for what went wrong; steps that could not start because of it are not repeated."""
        if _engine is not None and fail.report and not isinstance(fail, Unmet):
            message = fail.get_msg().strip() if fail.traceback else fail.message
            lines = message.splitlines()
            if new := [line for line in lines if line not in self._told] if isinstance(fail, TaskError) else lines:
                _engine.console.error("\n".join(new))
            self._told |= set(lines)
            self.failures.append({"task": task, "exception": fail})

    def complete_run(self) -> None:
        """Say what was done and where the results are."""
        if _engine is not None:
            _engine.console.stop()
            stopped = sys.exc_info()[0] is not None
            if isinstance(sys.exc_info()[1], KeyboardInterrupt):  # it came to this thread, and others run steps
                _engine.interrupt()
                _finish_undisturbed()
            failed = list(dict.fromkeys(each["task"].name for each in self.failures))
            for line in summary(_engine, failed=failed, stopped=stopped):
                _engine.console.say(line)
            with contextlib.suppress(SdbuildError, OSError):  # what is damaged was told
                for word in () if stopped else _engine.outdated():
                    _engine.console.warn(word)
            _engine.close()
        for message in self.runtime_errors:
            sys.stderr.write(f"{message}\n")


def doit_config(root: Path) -> dict[str, Any]:
    """doit's settings for a project; the default is to build every recipe.

    What fails stops the steps that wait for it, and no others.
    """
    return {
        "reporter": Reporter,
        "continue": True,
        "par_type": "thread",
        "verbosity": 2,
        "dep_file": database(root),
        "backend": "json",
        "codec_cls": Codec,
        "forget_disable_default": True,  # doit has no default tasks to name here
    }


def load_tasks(root: Path) -> Iterator[dict[str, Any] | QuietTask]:
    """doit's tasks of a project: a task a step, a group of them a recipe or variant, and of these one a matrix.

    A recipe that is wrong is a task that says so; exits with 2 and one message if there is no telling which there are.
    """
    global _engine
    terminal_text.guard()
    console = Console()
    project = Project(root.resolve())
    end_quietly()
    try:
        check_whole(project)
        loaded = read_project(project.root)
        recipes = loaded.recipes
        _engine = Engine(project, recipes, console, loaded.unread)
        if not recipes:
            _engine.prepare()  # no task will
    except (SdbuildError, OSError) as error:
        told = error if isinstance(error, SdbuildError) else of_system(error)
        console.error(str(told))
        raise SystemExit(told.exit_code) from None
    atexit.register(_engine.close)
    sys.excepthook = _without_traceback
    groups = {*(recipe.group for recipe in recipes), *loaded.unread}
    patch_doit(project.root, {*groups, *(recipe.name for recipe in recipes), *_engine.steps})
    for recipe in recipes:
        steps = [step.name for step in _engine.steps.values() if step.recipe == recipe.name]
        yield {"basename": recipe.name, "name": None, "doc": _doc(recipe), "task_dep": steps}
    cleaned: set[str] = set()
    for step in _engine.steps.values():
        yield _task(_engine, step, cleaned)
    for group, variants in groupby((recipe for recipe in recipes if recipe.varied), key=lambda recipe: recipe.group):
        names = [recipe.name for recipe in variants]
        made = [step for step in _engine.steps.values() if step.recipe in names]
        yield QuietTask(
            group,
            None,
            task_dep=names,
            doc=f"all {len(names)} variants of recipes/{group}.yaml",
            removal=partial(_clean, _engine, made, cleaned),
        )
    for refused in loaded.refused:  # last, so that what is wrong is told last
        yield _refusal(refused)


def _refusal(refused: Refused) -> dict[str, Any]:
    what = "needs a recipe that has errors" if refused.waits else "has errors"
    fits = refused.file == f"recipes/{refused.name}.yaml" and not wrong_name(refused.name)
    return {
        "basename": refused.name if fits else re.sub(r"[^\w./-]", "-", refused.file),
        "doc": f"{refused.file}: {what}; `sdbuild check` lists them",
        "actions": [Refusal(refused)],
    }


def _doc(recipe: Recipe) -> str:
    with_ = f" with {', '.join(f'{key} {value}' for key, value in recipe.varied.items())}" if recipe.varied else ""
    return terminal_text.line(f"adapter and samples of recipes/{recipe.group}.yaml{with_}")  # doit prints it by itself


def _without_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Ctrl-C between steps, or in a parallel build, is no bug."""
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    if _engine is not None:
        if not _engine.stopped:
            _engine.console.error("stopped; doit resumes here")
        _engine.close()
    os._exit(_INTERRUPTED)


def _finish_undisturbed() -> None:
    """What is left to do is short: a further Ctrl-C changes nothing."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _task(engine: Engine, step: Step, cleaned: set[str]) -> QuietTask:
    fresh = Fresh(engine, step)
    producers = (engine.oracle.producers.get(dep.path) for dep in step.deps)
    return QuietTask(
        step.name,
        [Build(engine, step, fresh)],
        doc=f"{step.kind} -> {', '.join(out.path for out in step.outs)}",
        uptodate=[fresh],
        task_dep=list(dict.fromkeys(producer.name for producer in producers if producer)),
        removal=partial(_clean, engine, [step], cleaned),
        subtask_of=step.recipe,
    )


def _clean(engine: Engine, steps: Iterable[Step], cleaned: set[str], dryrun: bool) -> None:
    """Remove the outs of steps, of each once; the next build brings them back from the cache.

    What the cache does not have stays: files of the user's, and results that are nowhere else. So does what lies
    behind a link.
    """
    keeper = UserFiles(engine.project, engine.stat)
    for step, out in ((each, out) for each in steps for out in each.outs):
        path = engine.project.root / out.path
        if not os.path.lexists(path) or out.path in cleaned:
            continue
        cleaned.add(out.path)
        if why := link_problem(engine.project.root, step.folder):
            engine.console.warn(f"{out.path} is left: {why}")
            continue
        kept = keeper.foreign(step, out.path, saved=True)
        if kept:
            engine.console.warn(f"{out.path} is left: DVC's cache does not have {first_few(kept)}")
            continue
        engine.console.say(f"{'would remove' if dryrun else 'removing'} {out.path}")
        if dryrun:
            continue
        remove(path)


def summary(engine: Engine, *, failed: Sequence[str], stopped: bool) -> Iterator[str]:
    """What a run did: steps by outcome, where new results are, and what failed."""
    if not engine.steps and not failed:
        yield "nothing to build: there are no recipes in recipes/"
        return
    by: dict[str, list[str]] = {}
    for name, outcome in engine.outcomes.items():
        by.setdefault(outcome.how, []).append(name)
    ran, restored = by.get("ran", []), by.get("restored", [])
    if restored:
        yield f"restored without running: {', '.join(restored)}"
    if ran:
        yield f"{len(ran)} {'step' if len(ran) == 1 else 'steps'} ran"
    elif not restored and not failed and not stopped:
        yield "everything is up to date"
    for name in (*ran, *restored):
        step = engine.steps[name]
        if step.adapter:
            yield f"adapter: {step.adapter}"
        elif step.grid:
            yield f"grid:    {step.grid}"
    if failed and (ran or restored):
        yield f"failed: {', '.join(failed)}; see the errors above"
