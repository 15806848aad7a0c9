"""What a build would do, without doing it: `sdbuild plan` and `sdbuild why`."""

from __future__ import annotations

import contextlib
import difflib
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sdbuild.build.counts import Counts
from sdbuild.build.engine import Engine
from sdbuild.build.foresight import Foresight
from sdbuild.build.oracle import Verdict, recorded_parameters
from sdbuild.build.project import Project
from sdbuild.build.reasons import flat
from sdbuild.console import Console
from sdbuild.errors import UsageError
from sdbuild.recipe.load import choose, load_project
from sdbuild.recipe.names import group_of


def forecast(project: Project, names: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Steps as `sdbuild plan --json` prints them, in plan order.

    Args:
        project: whose steps they are.
        names: of recipes or variants, with which come the steps of others that they wait for; all if there are none.

    Raises:
        UsageError: there is no such recipe.
    """
    with _engine(project) as engine, TemporaryDirectory(prefix="sdbuild-plan-") as folder:
        counts = Counts(engine.oracle)
        ahead = Foresight(engine.oracle, Path(folder))
        wanted = _wanted(engine, names) if names else engine.steps.keys()
        return [_row(engine.oracle.judge(name), counts, engine, ahead) for name in engine.steps if name in wanted]


def _wanted(engine: Engine, names: Sequence[str]) -> set[str]:
    chosen = {recipe.name for recipe in choose(list(engine.recipes.values()), names)}
    waiting = [step for step in engine.steps.values() if step.recipe in chosen]
    wanted: set[str] = set()
    while waiting:
        step = waiting.pop()
        wanted.add(step.name)
        makers = (engine.oracle.producers.get(dep.path) for dep in step.deps)
        waiting += [maker for maker in makers if maker is not None and maker.name not in wanted]
    return wanted


def explain(project: Project, name: str) -> list[str]:
    """Every reason that a step is stale, or what it was built from; of a recipe the state of each step.

    Raises:
        UsageError: there is no such step; the message names the nearest.
    """
    with _engine(project) as engine:
        own = [step for step in engine.steps.values() if name in (step.recipe, group_of(step.recipe))]
        if own:
            verdicts = (engine.oracle.judge(step.name) for step in own)
            return [line for verdict in verdicts for line in _state(verdict)]
        if name not in engine.steps:
            same = [step.name for step in engine.steps.values() if f"{group_of(step.recipe)}:{step.kind}" == name]
            near = difflib.get_close_matches(name, engine.steps, n=1) or same
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise UsageError(f"no step {name}{hint}; `doit list --all` shows them")
        verdict = engine.oracle.judge(name)
        return list(_explained(verdict, engine))


def _row(verdict: Verdict, counts: Counts, engine: Engine, ahead: Foresight) -> dict[str, Any]:
    total, todo = counts.of(verdict)
    if ahead.stays(verdict):
        verdict = replace(verdict, state="fresh", action="none", reasons=())
    asked = counts.asked(verdict.step) if verdict.step.kind == "captions" and verdict.action == "run" else []
    data = [dep.path for dep in verdict.step.deps if dep.path not in engine.oracle.producers]
    outdated = [path for path in data if engine.oracle.versions.state(path) == "outdated"]
    lacking = engine.lacking(verdict.step.recipe) if verdict.step.kind == "train" else []
    return {
        "name": verdict.step.name,
        "state": verdict.state,
        "action": verdict.action,
        "reasons": list(verdict.reasons),
        "items": {"total": total, "todo": todo if verdict.action == "run" else 0},
        **({"lacking": lacking} if lacking else {}),
        **({"outdated": outdated} if outdated else {}),
        **({"perhaps": True} if ahead.unsure(verdict) else {}),
        **({"asks": [each.told() for each in asked]} if asked else {}),
    }


def _state(verdict: Verdict) -> Iterator[str]:
    doing = {"none": "is fresh", "restore": "will be restored without running", "run": "will run"}[verdict.action]
    yield f"{verdict.step.name} {doing}"
    yield from (f"  {reason}" for reason in verdict.reasons)


def _explained(verdict: Verdict, engine: Engine) -> Iterator[str]:
    step = verdict.step
    yield from _state(verdict)
    entry = engine.oracle.entry(step)
    if entry is None:
        return
    yield "it was last built from"
    for row in entry.get("deps", []):
        files = f", {row['nfiles']} files" if "nfiles" in row else ""
        yield f"  {row['path']}  md5 {row['md5']}{files}"
    for key, value in sorted(_flat_parameters(engine, verdict).items()):
        yield f"  {key}: {json.dumps(value, ensure_ascii=False)}"


def _flat_parameters(engine: Engine, verdict: Verdict) -> dict[str, Any]:
    return flat(recorded_parameters(engine.oracle.entry(verdict.step), verdict.step))


@contextlib.contextmanager
def _engine(project: Project) -> Iterator[Engine]:
    engine = Engine(project, load_project(project.root), Console())
    try:
        yield engine
    finally:
        engine.close()
