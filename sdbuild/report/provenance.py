"""`sdbuild why FILE`: what an adapter was made from, by its header, and which commit brings it back."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from sdbuild.build.project import Project
from sdbuild.build.reasons import flat
from sdbuild.build.revisions import Revisions
from sdbuild.console import Console
from sdbuild.errors import DataError, UsageError
from sdbuild.families.digest import base_digest, md5_file
from sdbuild.plan.compile import trained_components, version_of
from sdbuild.plan.model import STEP_KINDS
from sdbuild.recipe.methods import method_of
from sdbuild.recipe.places import BASES, embedded
from sdbuild.recipe.train import deciding
from sdbuild.report.changes import value_changes
from sdbuild.report.difference import settings
from sdbuild.report.objects import Objects, has_remote
from sdbuild.report.states import Record, State, States
from sdbuild.report.words import changed_value, value
from sdbuild.storage.headers import Header, read_header

LONG = 200
"""Letters of a header's text that are shown."""
DEEPEST = 32
"""Levels that a header's spec may have to be one."""
OUTS = ("adapter", "adapters")
"""Folders of a recipe with adapters: the result, and those that were kept on the way."""
Likeness = Literal["bytes", "settings", "unknown"]
"""How a build resembles a file: it gave these bytes; it had these settings but gave others; it had these settings, and
what it gave cannot be compared."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """A state of a project that made an adapter, or may have."""

    state: State
    record: Record
    likeness: Likeness
    out: str = OUTS[0]
    """The file is there."""


def provenance(file: Path, project: Project | None, console: Console | None = None) -> Iterator[str]:
    """Lines on a file; a project's history is searched where there is one, and its remote if it takes that.

    Raises:
        DataError: it is no whole safetensors file.
    """
    header = read_header(file)
    yield from _described(file.name, header)
    if "sdbuild.recipe" not in header.metadata:
        return
    if project is None:
        yield "outside a project, its commit is not known; in a clone of its project:"
        yield f"  sdbuild why {shlex.quote(str(file))}"
        return
    try:
        with Revisions(project.root) as revisions:
            objects = Objects(project, console)
            yield from _placed(project, revisions, objects, file, _spec(header))
    except UsageError as error:
        yield f"its commit is not known: {error}"


def find_origin(states: States, objects: Objects, md5: str, spec: Any) -> Origin | None:
    """The first state of any branch that made a file with this MD5, or else was built from this spec of training."""
    built: dict[tuple[str, tuple[str | None, ...], bool], tuple[State, Record]] = {}
    last: dict[str, Record] = {}
    commits = (states.state(commit) for commit in reversed(states.commits(everywhere=True)))
    for state in chain(commits, [states.working()]):
        for name, record in state.records.items():
            if _repeats(last.get(name), record) or record.out("adapter") is None:
                continue
            last[name] = record
            key = (name, tuple(map(record.out, OUTS)), _made(record) == spec)
            if key not in built or (record.whole and not built[key][1].whole):
                built[key] = (state, record)
    found = [_likened(*each, objects, md5, alike=key[2]) for key, each in built.items()]
    if not any(origin and origin.likeness == "bytes" for origin in found):
        objects.want(out for _, outs, alike in built for out in outs if alike or spec is None)
        found = [_likened(*each, objects, md5, alike=key[2]) for key, each in built.items()]
    order: list[Likeness] = ["bytes", "unknown", "settings"]
    origins = [origin for origin in found if origin]
    return min(origins, key=lambda origin: (order.index(origin.likeness), not origin.record.whole), default=None)


def _likened(state: State, record: Record, objects: Objects, md5: str, *, alike: bool) -> Origin | None:
    files = [objects.files(record.out(name)) for name in OUTS]
    for name, found in zip(OUTS, files, strict=True):
        if md5 in (found or {}).values():
            return Origin(state=state, record=record, likeness="bytes", out=name)
    likeness: Likeness = "unknown" if files[0] is None else "settings"
    return Origin(state=state, record=record, likeness=likeness) if alike else None


def _made(record: Record) -> dict[str, Any]:
    """The spec of a training as headers have it: without what only looked on."""
    spec = dict(record.parameters("train"))
    return {**spec, "train": deciding(spec["train"])} if isinstance(spec.get("train"), Mapping) else spec


def _repeats(before: Record | None, record: Record) -> bool:
    return before is not None and before.entries == record.entries and before.whole


def _described(name: str, header: Header) -> Iterator[str]:
    said = header.metadata
    numbers = f"{len(header.tensors)} tensors with {header.numbers:,} numbers ({', '.join(header.dtypes)})"
    if "sdbuild.recipe" not in said:
        ours = said.get("format", "").startswith("sdbuild-")
        yield f"{name} {'holds latents or texts of sdbuild, no adapter' if ours else 'was not made by sdbuild'}"
        yield f"  {numbers}"
        yield from (f"  {key}: {_cut(said[key])}" for key in sorted(said))
        if not said:
            yield "  its header says nothing more"
        return
    spec = _spec(header)
    made = said.get("sdbuild.version", "unknown")
    yield f"{name} is an adapter of the recipe {said['sdbuild.recipe']}, made by sdbuild {made}"
    yield f"  {numbers}"
    if "sdbuild.step" in said:
        train = (spec or {}).get("train")
        whole = train.get("steps") if isinstance(train, dict) else None
        yield f"  after step {said['sdbuild.step']}{f' of {whole!s}' if whole else ''}"
    if "sdbuild.pictures" in said:
        yield f"  pictures: {said['sdbuild.pictures']}, and {said.get('sdbuild.holdout', '0')} held out"
    yield f"  data digest: {said.get('sdbuild.data_digest', 'unknown')}"
    digest = said.get("sdbuild.base_digest", "unknown")
    base = _embedded_base(digest, spec)
    yield f"  base digest: {digest}{f' ({base}, embedded)' if base else ''}"
    libraries = {
        key.removeprefix("sdbuild.").removesuffix("_version"): said[key]
        for key in sorted(said)
        if key.startswith("sdbuild.") and key.endswith("_version")
    }
    yield f"  with {', '.join(f'{name} {number}' for name, number in libraries.items())}"
    if spec is None:
        yield "  its settings are not in the header; these are:"
        shown: Mapping[str, Any] = {key: said[key] for key in sorted(said) if key.startswith(("ss_", "modelspec."))}
    else:
        hidden = ("reads", "version", "name")
        shown = {"resolution": said.get("modelspec.resolution"), **{k: v for k, v in spec.items() if k not in hidden}}
    yield "settings"
    yield from (f"  {key}: {_cut(value(found))}" for key, found in flat(shown).items())


def _placed(project: Project, revisions: Revisions, objects: Objects, file: Path, spec: Any) -> Iterator[str]:
    states = States(project, revisions)
    origin = find_origin(states, objects, md5_file(file), spec)
    if origin is None:
        yield "no commit of this project made it; `git fetch --all` brings branches and tags of other clones"
        return
    commit, record = origin.state.commit, origin.record
    where = "what is built here and not committed"
    if commit is not None:
        where = f"commit {commit.short} of {commit.date[:10]} ({commit.author}: {commit.subject})"
    yield {
        "bytes": f"made by {where}: the same bytes",
        "settings": f"{where} was built with these settings, but gave other bytes (another machine or version?)",
        "unknown": f"{where} was built with these settings; its adapter is not here to compare",
    }[origin.likeness]
    base = {key: found for key, found in (record.compiled.get("base") or {}).items() if found is not None}
    if base:
        yield f"  base: {', '.join(f'{key} {found!s}' for key, found in base.items())}"
    folders = [row["path"] for row in (record.compiled.get("recipe") or {}).get("datasets", ())]
    if folders:
        yield f"  datasets: {', '.join(folders)}"
    now = states.working().records.get(record.recipe)
    if now is None:
        yield f"  the recipe {record.recipe} is not built here now"
    else:
        yield from (f"  now {changed_value(change)}" for change in value_changes(settings(record), settings(now)))
    if commit is None:
        yield f"git add recipes dvc.yaml dvc.lock build && git commit -m {shlex.quote(record.recipe)} keeps it"
        return
    yield "to have it back"
    yield from (f"  {command}" for command in _commands(project, revisions, origin))
    path = f"build/{record.recipe}/{origin.out}/"
    yield f"it is then in {path}; `git switch -` goes back"


def _commands(project: Project, revisions: Revisions, origin: Origin) -> Iterator[str]:
    """What brings a committed state's adapter back, typed in a clone of the project."""
    commit, record = origin.state.commit, origin.record
    assert commit is not None
    switch = f"git switch --detach {commit.short}"
    config = revisions.read(commit.id, ".dvc/config") or b""
    if has_remote(project, config.decode("utf-8", "replace")):
        yield from (switch, "sdbuild pull")
    else:
        if has_remote(project):  # which was configured after that commit
            yield "sdbuild pull"
        yield switch
        folders = [row["path"] for row in (record.compiled.get("recipe") or {}).get("datasets", ())]
        tracked = [f"{path}.dvc" for path in folders if revisions.read(commit.id, f"{path}.dvc") is not None]
        if tracked:
            yield f"dvc checkout {shlex.join(tracked)}"
    before = STEP_KINDS[: STEP_KINDS.index("train") + 1]
    specs = {kind: record.parameters(kind) for kind in before if kind in record.entries}
    if record.whole and all(version_of(kind, spec) == spec.get("version") for kind, spec in specs.items()):
        yield f"doit {shlex.quote(record.recipe)}"
    else:  # this sdbuild would build it anew, and perhaps otherwise
        yield f"dvc checkout {shlex.quote(f'build/{record.recipe}/{origin.out}')}"


def _spec(header: Header) -> Mapping[str, Any] | None:
    try:
        spec = json.loads(header.metadata.get("sdbuild.spec", ""))
    except (ValueError, RecursionError):
        return None
    return spec if isinstance(spec, dict) and _depth(spec) <= DEEPEST else None


def _depth(value: Any) -> int:
    level, depth = [value], 0
    while level:
        level = [part for each in level for part in (each.values() if isinstance(each, dict) else each)]
        level, depth = [part for part in level if isinstance(part, dict | list)], depth + 1
    return depth


def _embedded_base(digest: str, spec: Mapping[str, Any] | None) -> str | None:
    """Name of the embedded base whose content this is."""
    try:
        method = method_of((spec or {}).get("method", {}))
        components = trained_components(method.sides, whole=method.trains_base)
    except ValidationError:
        components = trained_components({"denoiser"})
    for name in embedded():
        try:
            if base_digest(BASES / name, components, md5_file) == digest:
                return name
        except DataError:
            continue
    return None


def _cut(text: str) -> str:
    return text if len(text) <= LONG else f"{text[:LONG]}… ({len(text)} letters)"
