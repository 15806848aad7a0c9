"""Recipes side by side: which variant of a matrix came out best, in figures and in pictures."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from sdbuild.build.engine import Engine
from sdbuild.build.oracle import Verdict
from sdbuild.build.project import Project
from sdbuild.build.reasons import flat
from sdbuild.console import Console
from sdbuild.errors import UsageError
from sdbuild.plan.model import Step
from sdbuild.recipe.load import read_project
from sdbuild.recipe.models import Recipe
from sdbuild.recipe.names import group_of
from sdbuild.report.grids import draw_beside
from sdbuild.report.objects import Objects
from sdbuild.report.words import figure, value

MEASURED = "samples.metrics.json"
"""What a grid with `sample.measure` comes with."""
MOST_COLUMNS = 4
"""Settings that have a column of their own; more are told to programs only."""
MOST_NAMES = 4
"""Variants that are named in a command; of more their recipe."""
MOST_GRIDS = 64
"""Grids in the picture: the best."""

State = Literal["built", "stale", "not built"]
Measure = Literal["validation_loss", "train_loss"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """One recipe or variant."""

    recipe: str
    state: State
    rank: int | None = None
    """1 for the lowest loss; None where it is not built."""
    settings: Mapping[str, Any]
    """What it does not share with the others, by dotted key."""
    validation_loss: Mapping[str, float] | None = None
    """Of the base and with the adapter, on the pictures that were held out."""
    train_loss: float | None = None
    """At the end of the training."""
    seconds_per_step: float | None = None
    memory: int | None = None
    """Most that the training held at once, in bytes: of the GPU, or of the process on a CPU."""
    bytes: int | None = None
    """Of the adapter's file."""
    nearest: Mapping[str, float] | None = None
    """By strength, how far the grid's pictures are from those trained on; see `sampling.measures`."""
    spread: Mapping[str, float] | None = None
    """By strength, how far pictures of one prompt lie apart."""

    def loss(self, measure: Measure) -> float | None:
        """What it is ranked by."""
        return self.train_loss if measure == "train_loss" else (self.validation_loss or {}).get("adapter")


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Recipes in order of their ranks; those that are not built last."""

    measure: Measure
    candidates: Sequence[Candidate]
    picture: str | None
    """PNG with the grids, relative to the project; None where no grid is there."""

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Columns and rows for people."""
        keys = list(self.candidates[0].settings)
        keys = keys if len(keys) <= MOST_COLUMNS else []
        columns = ["", "recipe", *keys, "validation loss", "of the base", "training loss", "s/step", "memory", "bytes"]
        measured = [name for name in ("nearest", "spread") if any(getattr(each, name) for each in self.candidates)]
        return [*columns, *measured], [_row(candidate, keys, measured) for candidate in self.candidates]

    def notes(self) -> Iterator[str]:
        """What to know about the table."""
        ranked = [candidate for candidate in self.candidates if candidate.rank]
        if self.measure == "validation_loss" and ranked:
            yield "ranked by the adapter's loss on the pictures that were held out"
        elif ranked:
            yield "ranked by the training loss, since not all have a hold-out (datasets[].holdout)"
        if len({(candidate.validation_loss or {}).get("base") for candidate in ranked}) > 1:
            yield "the base's losses differ: other pictures, draws or bases were measured, so compare with care"
        if any(candidate.nearest for candidate in ranked):
            yield (
                "nearest: from the base's pictures to the adapter's, how far they are from those trained on (1 is new, "
                "0 a copy); spread: how far those of one prompt lie apart"
            )
        keys = self.candidates[0].settings
        if len(keys) > MOST_COLUMNS:
            yield f"they differ in {len(keys)} settings; --json has them"
        for state in ("stale", "not built"):
            found = [candidate.recipe for candidate in self.candidates if candidate.state == state]
            if found:
                names = found if len(found) < MOST_NAMES else dict.fromkeys(map(group_of, found))
                yield f"{len(found)} {state}: `doit {' '.join(names)}`"
        if self.picture:
            yield f"grids: {self.picture}"

    def to_json(self) -> dict[str, Any]:
        """The same for programs."""
        rows = [asdict(candidate) for candidate in self.candidates]
        return {"ranked_by": self.measure, "recipes": rows, "picture": self.picture}


def compare(project: Project, names: Sequence[str], console: Console) -> Comparison:
    """Rank recipes, or the variants of a matrix, and draw their grids; what only the remote has is fetched.

    Raises:
        RecipeError: recipes are wrong.
        UsageError: there is no recipe of a name, or only one is named.
    """
    loaded = read_project(project.root)
    chosen = loaded.choose(names)
    if len(chosen) < 2:
        raise UsageError(f"{chosen[0].name} is one recipe; name another to compare it with, or give it a matrix")
    settings = _settings(chosen)
    objects = Objects(project, console)
    engine = Engine(project, loaded.recipes, console, loaded.unread)
    try:
        steps = [step for step in engine.steps.values() if step.final and step.recipe in settings]
        verdicts = {step.name: engine.oracle.judge(step.name) for step in steps}
        recorded = {step.name for step in steps if engine.oracle.entry(step) is not None}
    finally:
        engine.close()
    trained = {recipe.name: verdicts[f"{recipe.name}:train"] for recipe in chosen}
    drawn = {name: verdicts[f"{name}:samples"] for name in trained if f"{name}:samples" in verdicts}
    objects.want(_md5(verdict, "metrics.json") for verdict in trained.values())
    objects.want(_md5(verdict, MEASURED) for verdict in drawn.values())
    found = [
        replace(
            _candidate(project, verdict, objects, settings[name], known=f"{name}:train" in recorded),
            **_measured(drawn.get(name), objects),
        )
        for name, verdict in trained.items()
    ]
    measure, ranked = rank(found)
    picture = _draw(project, "+".join(dict.fromkeys(names)), measure, ranked, drawn, objects)
    return Comparison(measure=measure, candidates=ranked, picture=picture)


def _settings(recipes: Sequence[Recipe]) -> dict[str, Mapping[str, Any]]:
    """What recipes do not share: the values of their matrix, or of whatever differs."""
    if all(recipe.varied and recipe.group == recipes[0].group for recipe in recipes):
        return {recipe.name: recipe.varied for recipe in recipes}
    all_of = {recipe.name: flat({k: v for k, v in recipe.resolved().items() if k != "name"}) for recipe in recipes}
    keys = sorted({key for each in all_of.values() for key in each})
    differing = [
        key for key in keys if any(each.get(key) != all_of[recipes[0].name].get(key) for each in all_of.values())
    ]
    return {name: {key: each.get(key) for key in differing} for name, each in all_of.items()}


def _candidate(
    project: Project, verdict: Verdict, objects: Objects, settings: Mapping[str, Any], *, known: bool
) -> Candidate:
    step = verdict.step
    if verdict.outs is None:
        return Candidate(recipe=step.recipe, state="stale" if known else "not built", settings=settings)
    metrics = objects.metrics(_md5(verdict, "metrics.json")) or {}
    seconds, steps = metrics.get("seconds"), metrics.get("steps")
    return Candidate(
        recipe=step.recipe,
        state="built",
        settings=settings,
        validation_loss=metrics.get("validation_loss"),
        train_loss=metrics.get("train_loss"),
        seconds_per_step=seconds / steps if seconds and steps else None,
        memory=metrics.get("memory"),
        bytes=_size(project, step, verdict, objects),
    )


def _measured(verdict: Verdict | None, objects: Objects) -> dict[str, Any]:
    """What the grid's pictures were found to be like."""
    found = (objects.metrics(_md5(verdict, MEASURED)) if verdict else None) or {}
    return {name: found[name] for name in ("nearest", "spread") if found.get(name)}


def _md5(verdict: Verdict, name: str) -> str | None:
    """MD5 of an out of a step that is built."""
    digest = (verdict.outs or {}).get(f"{verdict.step.folder}/{name}")
    return digest.md5 if digest else None


def _size(project: Project, step: Step, verdict: Verdict, objects: Objects) -> int | None:
    """Bytes of the adapter's file, if it is on this machine."""
    assert step.adapter is not None
    kept = objects.file((objects.files(_md5(verdict, "adapter")) or {}).get(Path(step.adapter).name))
    path = kept or project.root / step.adapter
    return path.stat().st_size if path.exists() else None


def rank(candidates: Sequence[Candidate]) -> tuple[Measure, list[Candidate]]:
    """Order candidates by the loss that all have which are built: on the hold-out, or of the training."""
    built = [candidate for candidate in candidates if candidate.state == "built"]
    held = all(candidate.loss("validation_loss") is not None for candidate in built)
    measure: Measure = "validation_loss" if held else "train_loss"
    order = sorted(built, key=lambda candidate: _sortable(candidate.loss(measure)))
    ranked = [replace(candidate, rank=place) for place, candidate in enumerate(order, start=1)]
    return measure, [*ranked, *(candidate for candidate in candidates if candidate.state != "built")]


def _sortable(loss: float | None) -> float:
    return math.inf if loss is None or math.isnan(loss) else loss


def _draw(
    project: Project,
    name: str,
    measure: Measure,
    candidates: Sequence[Candidate],
    drawn: Mapping[str, Verdict],
    objects: Objects,
) -> str | None:
    """Draw the grids of those that are built, the best first; the file, or None where there is no grid."""
    shown = [each for each in candidates if each.rank and each.recipe in drawn][:MOST_GRIDS]
    folders = {each.recipe: _md5(drawn[each.recipe], "samples") for each in shown}
    objects.want(folders.values())
    grids = {recipe: (objects.files(md5) or {}).get("grid.png") for recipe, md5 in folders.items()}
    objects.want(grids.values())
    pictures: list[Path] = []
    labels: list[str] = []
    for each in shown:
        grid = objects.file(grids[each.recipe])
        if grid is not None:
            pictures.append(grid)
            labels.append("\n".join(_label(each, measure)))
    target = project.private / "compare" / f"{name[:100]}.png"
    if not pictures or not draw_beside(pictures, labels, target, across=math.ceil(math.sqrt(len(pictures)))):
        return None
    return target.relative_to(project.root).as_posix()


def _label(candidate: Candidate, measure: Measure) -> Iterator[str]:
    loss = candidate.loss(measure)
    yield f"{candidate.rank}." if loss is None else f"{candidate.rank}.  {measure.replace('_', ' ')} {figure(loss)}"
    words = [f"{key} {value(found)}" for key, found in candidate.settings.items()]
    yield from (words if len(words) <= MOST_COLUMNS else [candidate.recipe])


def _row(candidate: Candidate, keys: Sequence[str], measured: Sequence[str]) -> list[str]:
    losses = candidate.validation_loss or {}
    figures = (losses.get("adapter"), losses.get("base"), candidate.train_loss, candidate.seconds_per_step)
    return [
        str(candidate.rank) if candidate.rank else candidate.state,
        candidate.recipe,
        *(value(candidate.settings[key]) for key in keys),
        *("" if found is None else figure(found) for found in figures),
        "" if candidate.memory is None else f"{candidate.memory / 2**20:,.0f} MiB",
        "" if candidate.bytes is None else f"{candidate.bytes:,}",
        *(_change(getattr(candidate, name)) for name in measured),
    ]


def _change(by_strength: Mapping[str, float] | None) -> str:
    """From the base, where it was drawn, to the adapter at full strength, or the highest there is."""
    if not by_strength:
        return ""
    strengths = sorted(by_strength, key=float)
    last = "1" if "1" in by_strength else strengths[-1]
    shown = ["0", last] if "0" in by_strength and last != "0" else [last]
    return " -> ".join(f"{by_strength[strength]:.2f}" for strength in shown)
