"""Captions of a recipe beside their pictures, as the next build would find them, without building anything."""

from __future__ import annotations

import contextlib
import hashlib
import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Final

from sdbuild.build.project import Project
from sdbuild.captioners.asking import Section, content_of, said_in, sections
from sdbuild.captioners.said import FOLDER, read_said
from sdbuild.captioners.texts import clean as cleaned
from sdbuild.captioners.texts import finish
from sdbuild.data.captions import (
    Open,
    Texts,
    caption_records,
    hand_written,
    one_line,
    with_trigger,
    without_trigger,
)
from sdbuild.data.handwritten import Fit, Fits
from sdbuild.data.listing import Sidecars, relative_to, scan
from sdbuild.data.records import CaptionRecord, ImageRecord, read_captions, read_images, read_skipped
from sdbuild.errors import DataError, Problem, UsageError
from sdbuild.plan.compile import plan
from sdbuild.plan.model import Base
from sdbuild.recipe.load import read_project
from sdbuild.recipe.models import Recipe
from sdbuild.steps.contract import Inputs
from sdbuild.steps.images import run as find_images

HAND: Final = "sidecar"
"""Origin of captions that a person wrote."""
PLAIN = frozenset({"sidecar", "filename", "jsonl"})
"""Captioners that do not look at a trigger."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Dataset:
    """A folder of pictures, as the captions step sees it."""

    path: str
    trigger: str
    lines: bool
    sidecars: Sidecars


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A picture with its caption."""

    image: ImageRecord
    dataset: Dataset
    bare: Texts
    """Captions as they stand in files, without a trigger that a build puts in front; none where there are none yet."""
    origin: str
    """`sidecar`, another captioner, or empty where there is no caption."""
    trouble: str = ""
    """Why there is no caption, or why it cannot be used."""
    blocked: bool = False
    """Whether that has to be mended in a file first."""
    changed: bool = False
    """Whether the picture changed under the hand-written caption."""

    @property
    def key(self) -> str:
        """Name of the record."""
        return self.image.key

    @property
    def path(self) -> str:
        """Of the picture, relative to the project."""
        return self.image.path

    @property
    def texts(self) -> Texts:
        """Captions as they are learned."""
        return tuple(dict.fromkeys(with_trigger(text, self.dataset.trigger) for text in self.bare))

    @property
    def several(self) -> bool:
        """Whether each line that a person types is a caption of its own."""
        return self.dataset.lines or len(self.bare) > 1

    @property
    def stamp(self) -> str:
        """Names what the captions are, to see whether somebody changed them meanwhile."""
        return stamp_of(self.bare)

    @property
    def pictures(self) -> list[str]:
        """Paths of the picture relative to its dataset; the same pixels may be there several times."""
        return [relative_to(path, self.dataset.path) for path in (self.image.path, *self.image.duplicates)]

    def fit(self) -> Fit:
        """What is remembered of the caption and its picture."""
        text, *others = self.texts
        record = CaptionRecord(
            digest=self.image.digest,
            dataset=self.image.dataset,
            text=text,
            origin=HAND,
            split=self.image.split,
            others=tuple(others),
        )
        return Fit.of(self.image, record, {"path": self.dataset.path, "trigger": self.dataset.trigger})


@dataclass(frozen=True, kw_only=True, slots=True)
class Material:
    """All that there is to review of a recipe."""

    recipe: Recipe
    project: Project
    base: Base
    background: str
    """Colour under transparent pixels."""
    entries: tuple[Entry, ...]
    """Sorted by dataset and path."""
    troubles: tuple[str, ...] = field(default=())
    """What is wrong with pictures and files that belong to no entry, a line each."""


def stamp_of(texts: Iterable[str]) -> str:
    """A short name of captions."""
    return hashlib.sha256("\n".join(texts).encode("utf-8", "surrogatepass")).hexdigest()[:12]


@dataclass(frozen=True, kw_only=True)
class _Context:
    """A step's context that is silent: the review has its own words for what is wrong."""

    items: Path
    scratch: Path
    previous: Path

    def progress(self, done: int, total: int, unit: str, **figures: float) -> None:
        """Looking is short."""

    def warn(self, message: str) -> None:
        """What a warning is about is in the rows."""


def gather(project: Project, name: str) -> Material:
    """Read pictures and captions of a recipe or variant.

    Raises:
        RecipeError: recipes are wrong.
        DataError: a dataset is not there or holds nothing.
        UsageError: there is no such recipe, or its variants have different captions.
    """
    recipe, specs = _chosen(project, name)
    images, skipped = _images(project, recipe.name, specs["images"])
    entries: list[Entry] = []
    troubles = list(skipped)
    for index in range(len(specs["captions"]["datasets"])):
        rows = [image for image in images if image.dataset == index]
        if rows:
            found, problems = _entries(project, recipe.name, specs["captions"], index, rows)
            entries += found
            troubles += problems
    fits = Fits(project.root, project.items, [entry.dataset.path for entry in entries])
    by_hand = {entry.key: entry.fit() for entry in entries if entry.origin == HAND and entry.bare}
    changed = set(fits.changed(by_hand.values()))
    return Material(
        recipe=recipe,
        project=project,
        base=Base.of(recipe.resolved()["base"]),
        background=specs["images"]["background"],
        entries=tuple(replace(entry, changed=by_hand.get(entry.key) in changed) for entry in entries),
        troubles=tuple(troubles),
    )


def _chosen(project: Project, name: str) -> tuple[Recipe, Mapping[str, Mapping[str, Any]]]:
    """A recipe and the specs of its steps; of variants with the same captions the first."""
    variants = read_project(project.root).choose([name])
    specs = [{step.kind: step.spec for step in plan(recipe)} for recipe in variants]
    if len({json.dumps([spec["images"], spec["captions"]], sort_keys=True) for spec in specs}) > 1:
        names = ", ".join(recipe.name for recipe in variants)
        raise UsageError(f"the variants of {name} read different pictures or captions; name one of them: {names}")
    return variants[0], {str(kind): spec for kind, spec in specs[0].items()}


def _images(project: Project, name: str, spec: Mapping[str, Any]) -> tuple[list[ImageRecord], list[str]]:
    """Rows as the images step writes them, and a line for each picture that cannot be used."""
    with tempfile.TemporaryDirectory(prefix="sdbuild-captions-") as folder:
        out = Path(folder)
        context = _Context(items=project.items, scratch=out, previous=project.root / "build" / name)
        find_images({**spec, "on_error": "skip"}, Inputs(project=project.root), out, context)
        rows = read_images(out / "images.jsonl")
        return rows, [f"{row.path}: {row.skipped}" for row in read_skipped(out / "images.jsonl")]


def _entries(
    project: Project, name: str, spec: Mapping[str, Any], index: int, images: Sequence[ImageRecord]
) -> tuple[list[Entry], list[str]]:
    """Entries of one dataset, and what is wrong besides them."""
    data = spec["datasets"][index]
    path = PurePosixPath(data["path"]).as_posix()
    dataset = Dataset(
        path=path,
        trigger=one_line(data.get("trigger") or ""),
        lines=data.get("lines", False),
        sidecars=Sidecars(scan(project.root / path).sidecars),
    )
    # Only templates and models are told the trigger; elsewhere it is what a build puts in front, and left out here.
    told = data["caption"]["from"] not in PLAIN
    datasets = list(spec["datasets"])
    datasets[index] = data if told else {**data, "trigger": ""}
    captions = caption_records(images, {"datasets": datasets}, project.root)
    records = {record.digest: record for record in (*captions.records, *_said(project, name, spec, captions.open))}
    waiting = {each.image.digest: each.origin for each in captions.open}
    problems = list(captions.problems)
    entries = []
    for image in images:
        entry = Entry(image=image, dataset=dataset, bare=(), origin="")
        record = records.get(image.digest)
        if record is not None:
            entry = replace(entry, bare=(record.text, *record.others), origin=record.origin)
            entries.append(replace(entry, bare=_as_written(entry, project)) if told else entry)
        elif image.digest in waiting:
            entries.append(replace(entry, trouble=f"not captioned yet: the next build asks {waiting[image.digest]}"))
        else:
            entries.append(_troubled(entry, project, problems))
    return entries, list(map(str, problems))


def _as_written(entry: Entry, project: Project) -> Texts:
    """Captions without the trigger that is put in front; what a person wrote is left as it was written."""
    folder, lines = entry.dataset.path, entry.dataset.lines
    if entry.origin == HAND:
        found = hand_written(project.root, folder, entry.dataset.sidecars, entry.pictures, lines=lines)
        if isinstance(found, tuple):
            return found
    return tuple(without_trigger(text, entry.dataset.trigger) for text in entry.bare)


def _troubled(entry: Entry, project: Project, problems: list[Problem]) -> Entry:
    """An entry that has no caption, with the reason, which is taken from `problems`."""
    folder = entry.dataset.path
    files = [f"{folder}/{file}" for picture in entry.pictures for file in entry.dataset.sidecars.of(picture)]
    whose = {*files, entry.path, *entry.image.duplicates}
    problem = next((problem for problem in problems if problem.file in whose), None)
    if problem is None:
        return replace(entry, trouble="no caption")
    problems.remove(problem)
    blocked = problem.file in files and any((project.root / file).read_bytes().strip() for file in files)
    name = f"{PurePosixPath(problem.file or '').name} " if blocked else ""
    return replace(entry, trouble=f"{name}{problem.message}", blocked=blocked)


def _said(project: Project, name: str, spec: Mapping[str, Any], left: Sequence[Open]) -> Iterator[CaptionRecord]:
    """Captions of pictures that are left to models, of which models have said already what a build would ask them."""
    if not left:
        return
    known = read_said(project.items / FOLDER)
    with contextlib.suppress(DataError, OSError):
        known = said_in(read_captions(project.root / "build" / name / "captions.jsonl")) | known
    for section in sections(left, spec, {}, content_of(spec, project.root)):
        for each in section.open:
            texts = [_last_said(section, each, language, known) for language in section.languages]
            if all(texts):
                yield each.row([text for text in texts if text], section.trigger, ())


def _last_said(section: Section, each: Open, language: str | None, known: Mapping[str, str]) -> str | None:
    """The caption of a picture after all passes; None where something is yet to be asked."""
    before = None
    for number in range(len(section.passes)):
        answer = known.get(section.question(each, number, language, before).key)
        if answer is None:
            return None
        before = cleaned(answer)
    return finish(before or "", section.spec, section.passes[-1])


def select(material: Material, names: Sequence[str]) -> list[Entry]:
    """Entries by path of a picture: relative to the working directory, project or dataset, or its bare name.

    Raises:
        UsageError: there is no such picture, or several.
    """
    found: dict[str, Entry] = {}
    for name in names:
        matches = _matching(material, name)
        if len(matches) != 1:
            which = ", ".join(entry.path for entry in matches[:5])
            reason = f"is the name of {len(matches)} pictures: {which}" if matches else "is no picture of this recipe"
            raise UsageError(f"{name} {reason}")
        found[matches[0].key] = matches[0]
    return list(found.values())


def _matching(material: Material, name: str) -> list[Entry]:
    root = material.project.root.resolve()
    here = Path.cwd() / name
    inside = here.resolve().relative_to(root).as_posix() if here.resolve().is_relative_to(root) else name
    exact = [entry for entry in material.entries if {inside, name} & {entry.path, *entry.image.duplicates}]
    if exact:
        return exact
    return [
        entry
        for entry in material.entries
        if any(name in (path, PurePosixPath(path).name, PurePosixPath(path).stem) for path in entry.pictures)
    ]
