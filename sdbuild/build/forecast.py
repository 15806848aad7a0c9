"""What a build would do, without doing it: `sdbuild plan` and `sdbuild why`."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sdbuild.build.checkout_checks import check_folders
from sdbuild.build.counts import Counts
from sdbuild.build.dvc_config import DvcConfig
from sdbuild.build.engine import Engine
from sdbuild.build.lookahead import Lookahead
from sdbuild.build.oracle import Action, Verdict, recorded_parameters
from sdbuild.build.project import Project
from sdbuild.build.reasons import flat
from sdbuild.build.tracked import DataFile
from sdbuild.console import Console
from sdbuild.errors import DataError, Problem, RecipeError, UsageError
from sdbuild.recipe.libraries import keys_missing
from sdbuild.recipe.load import Loaded, choose, read_project
from sdbuild.recipe.names import group_of
from sdbuild.storage.phrases import did_you_mean

_DOING: Mapping[Action, str] = {
    "none": "is fresh",
    "restore": "will be restored without running",
    "fetch": "will be fetched from the remote without running",
    "run": "will run",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Forecast:
    """What a build would do."""

    steps: list[dict[str, Any]]
    """As `sdbuild plan --json` prints them, in plan order."""
    problems: list[Problem]
    """Errors in recipes and in what they name: these recipes are not built."""
    notes: list[str] = field(default_factory=list)
    """Warnings."""


def forecast(project: Project, names: Sequence[str] = ()) -> Forecast:
    """Foretell a build.

    Args:
        project: whose steps they are.
        names: of recipes or variants, with which come the steps of others that they wait for; all if there are none.

    Raises:
        UsageError: there is no such recipe.
    """
    loaded = read_project(project.root)
    problems, known = loaded.problems(names), loaded.known(names)
    with _engine(project, loaded) as engine, TemporaryDirectory(prefix="sdbuild-plan-") as folder:
        counts = Counts(engine.oracle)
        ahead = Lookahead(engine.oracle, Path(folder))
        wanted: Collection[str] = _wanted(engine, known) if known or names else engine.steps.keys()
        found_verdicts = _verdicts(engine, wanted)
        verdicts = [found_verdicts[name] for name in engine.steps if name in wanted]
        blocked = _blocked(verdicts, counts, engine)
        problems += [problem for found in blocked.values() for problem in found]
        try:
            check_folders(project, dict.fromkeys(each.step.folder for each in verdicts if each.action != "none"))
        except DataError as error:
            problems += error.problems
        steps = [_row(verdict, counts, engine, ahead, blocked) for verdict in verdicts]
        notes = [word for verdict in verdicts for word in _notes(verdict, engine)]
        return Forecast(steps=steps, problems=list(dict.fromkeys(problems)), notes=list(dict.fromkeys(notes)))


def _blocked(verdicts: Sequence[Verdict], counts: Counts, engine: Engine) -> dict[str, Sequence[Problem]]:
    """Steps that cannot run, with what is wrong: of those that wait for one of them nothing more is known."""
    blocked: dict[str, Sequence[Problem]] = {}
    for verdict in verdicts:
        step = verdict.step
        if verdict.action != "run":
            continue
        if any(
            maker.name in blocked for maker in map(engine.oracle.producers.get, (d.path for d in step.deps)) if maker
        ):
            blocked[step.name] = ()
        elif found := verdict.wrong or counts.problems(step):
            blocked[step.name] = found
    return blocked


def _verdicts(engine: Engine, names: Collection[str]) -> dict[str, Verdict]:
    """Verdicts on steps, with what a build would bring back for them; the remote is asked for what is not here."""
    oracle, asked = engine.oracle, set[str]()
    while True:
        verdicts = _with_needed(engine, {name: oracle.judge(name) for name in engine.steps if name in names})
        unknown = oracle.not_here - asked
        if not unknown or not DvcConfig(engine.project.root).remote:
            return verdicts
        asked |= unknown
        oracle.on_remote |= engine.history.present(unknown)
        oracle.forget()


def _with_needed(engine: Engine, verdicts: dict[str, Verdict]) -> dict[str, Verdict]:
    """The same, with steps whose outs were left on the remote, or are gone, and are read by a step that runs."""
    oracle, waiting = engine.oracle, [name for name, verdict in verdicts.items() if verdict.action == "run"]
    while waiting:
        name = waiting.pop()
        for dep in verdicts[name].step.deps:
            if (engine.project.root / dep.path).exists():
                continue
            maker = oracle.producers.get(dep.path)
            if maker is None:
                verdicts[name] = _without_data(engine, verdicts[name], dep.path)
            elif (made := verdicts[maker.name]).action == "none" and made.outs is not None:
                action, reason = oracle.source(made.outs.values()), f"absent: {dep.path}, which {name} reads"
                verdicts[maker.name] = replace(made, state="stale", action=action, reasons=(reason,))
                waiting += [maker.name] if action == "run" else []
    return verdicts


def _without_data(engine: Engine, verdict: Verdict, path: str) -> Verdict:
    """A verdict that says so where a step needs pictures that nobody is known to have."""
    file = DataFile.read(engine.project, f"{path}.dvc")
    if file is None or not file.plain or file.digest is None or engine.oracle.source([file.digest]) != "run":
        return verdict
    reason = f"{path} is neither in DVC's cache nor on a remote; run `sdbuild push` in a clone that has it"
    return replace(verdict, reasons=tuple(dict.fromkeys([*verdict.reasons, reason])))


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
    loaded = read_project(project.root)
    if wrong := loaded.problems([name.partition(":")[0]]):
        raise RecipeError(wrong)
    with _engine(project, loaded) as engine:
        own = [step for step in engine.steps.values() if name in (step.recipe, group_of(step.recipe))]
        if own:
            verdicts = (engine.oracle.judge(step.name) for step in own)
            return [line for verdict in verdicts for line in _state(verdict)]
        if name not in engine.steps:
            same = [step.name for step in engine.steps.values() if f"{group_of(step.recipe)}:{step.kind}" == name]
            hint = did_you_mean(name, engine.steps) or did_you_mean(name, same, cutoff=0)
            raise UsageError(f"no step {name}{hint}; `doit list --all` shows them")
        verdict = _verdicts(engine, engine.steps)[name]
        return list(_explained(verdict, engine))


def _notes(verdict: Verdict, engine: Engine) -> Iterator[str]:
    """Warn of API keys that a step would need and that are not set."""
    if verdict.action == "run" and verdict.step.kind == "captions":
        group = engine.recipes[verdict.step.recipe].group
        yield from (f"recipes/{group}.yaml: {word}" for word in keys_missing(engine.recipes[verdict.step.recipe]))


def _row(
    verdict: Verdict, counts: Counts, engine: Engine, ahead: Lookahead, blocked: Mapping[str, Sequence[Problem]]
) -> dict[str, Any]:
    if verdict.step.name in blocked:
        row = {"name": verdict.step.name, "state": verdict.state, "action": verdict.action}
        nothing = {"total": None, "todo": None}
        return {**row, "reasons": list(verdict.reasons), "items": nothing, "blocked": True}
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
    yield f"{verdict.step.name} {'cannot run' if verdict.wrong else _DOING[verdict.action]}"
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
def _engine(project: Project, loaded: Loaded) -> Iterator[Engine]:
    engine = Engine(project, loaded.recipes, Console(sys.stderr), loaded.unread)
    try:
        yield engine
    finally:
        engine.close()
