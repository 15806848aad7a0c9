"""Captions from files: sidecars, file names, templates and JSON lines; and which pictures are left to a model.

A sidecar always wins, whatever the recipe's captioner. Captions are one line of text in Unicode's NFC form, with a
dataset's trigger in front unless they hold it already. Importing this module is light.
"""

from __future__ import annotations

import difflib
import json
import re
import string
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from sdbuild.data.filenames import caption_from_name, is_given
from sdbuild.data.listing import Sidecars, nfc, relative_to, scan
from sdbuild.data.records import CaptionRecord, ImageRecord, Origin
from sdbuild.data.textfiles import MOST_OF_SIDECAR, is_encodable, read_text
from sdbuild.errors import Problem
from sdbuild.recipe.captioners import fields_used
from sdbuild.storage.text_cleaning import clean, visible

TEMPLATE_FIELDS = ("name", "stem", "folder", "trigger")
"""What a caption template may hold in braces; `name` and `stem` are both the file's name in words."""

JSONL_KEYS = (("file", "file_name"), ("caption", "text"))
"""Keys read from JSON lines; the second of each is what Hugging Face's image folders use."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Captions:
    """Captions of a recipe's records, with everything that is wrong or worth a word."""

    records: tuple[CaptionRecord, ...]
    """Sorted by (dataset, digest); records with a problem are left out."""
    problems: tuple[Problem, ...]
    warnings: tuple[str, ...]
    open: tuple[Open, ...] = ()
    """Pictures that a model is to caption, in the order of their records."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Open:
    """A picture whose caption only a model can give."""

    image: ImageRecord
    origin: Origin
    fields: Mapping[str, str]
    """What the model's instructions name of the record, by placeholder."""

    def row(self, texts: Sequence[str], trigger: str, said: Iterable[tuple[str, str]]) -> CaptionRecord:
        """The record with its captions."""
        return _record(self.image, texts, one_line(trigger), self.origin, said)


@dataclass(slots=True)
class Folder:
    """One dataset while it is captioned."""

    path: str
    """Posix, relative to the project."""
    project: Path
    trigger: str
    sidecars: Sidecars
    lines: bool = False
    """Whether each line of a sidecar is a caption of its own."""
    problems: list[Problem] = field(default_factory=list)
    differing: list[str] = field(default_factory=list)
    """Pictures that occur twice with different captions."""
    given: dict[str, str] = field(default_factory=dict)
    """Pictures whose captions are made of a name that no person chose, with the name."""


Texts = tuple[str, ...]
"""The captions of one picture, at least one."""
Fields = dict[str, str]
"""What a model's instructions name of a picture."""
Captioner = Callable[[str], "Texts | Problem | Fields"]
"""Gives the captions of a picture by its path relative to the dataset's folder, or what a model is told of it."""


def caption_records(images: Iterable[ImageRecord], spec: Mapping[str, Any], project: Path) -> Captions:
    """Caption every record as the step's spec says.

    Args:
        images: rows of `images.jsonl`.
        spec: `{"datasets": [{"path", "caption": {"from": …}, "trigger", "lines"?}]}`.
        project: root that paths are relative to.
    """
    by_dataset: dict[int, list[ImageRecord]] = {}
    for image in images:
        by_dataset.setdefault(image.dataset, []).append(image)
    records: list[CaptionRecord] = []
    left: list[Open] = []
    problems: list[Problem] = []
    differing: list[str] = []
    given: dict[str, str] = {}
    alone: list[str] = []
    for index in sorted(by_dataset):
        dataset = spec["datasets"][index]
        path = PurePosixPath(dataset["path"]).as_posix()
        try:
            listing = scan(project / path)
        except OSError as error:
            problems.append(Problem(file=path, message=f"this folder cannot be listed ({error.strerror})"))
            continue
        sidecars = Sidecars(listing.sidecars)
        owned = {each for picture in listing.pictures for each in sidecars.of(picture)}
        alone += [f"{path}/{each}" for each in listing.sidecars if each not in owned]
        folder = Folder(
            path=path,
            project=project,
            trigger=one_line(dataset.get("trigger") or ""),
            sidecars=sidecars,
            lines=dataset.get("lines", False),
        )
        for found in _caption_folder(folder, by_dataset[index], dataset["caption"]):
            if isinstance(found, Open):
                left.append(found)
            else:
                records.append(found)
        problems += dict.fromkeys(folder.problems)
        differing += folder.differing
        given |= folder.given
    records.sort(key=lambda row: (row.dataset, row.digest))
    left.sort(key=lambda each: (each.image.dataset, each.image.digest))
    return Captions(
        records=tuple(records),
        problems=tuple(problems),
        warnings=tuple(_warnings(differing, given, alone)),
        open=tuple(left),
    )


def template_problem(template: str) -> str | None:
    """What is wrong with a caption template, in words; None when it is well formed."""
    try:
        fields = [(name, spec, conversion) for _, name, spec, conversion in string.Formatter().parse(template)]
    except ValueError as error:
        return f"not a template ({error}); write braces as {{{{ and }}}} where they are meant as text"
    for name, spec, conversion in fields:
        if name is None:
            continue
        if name not in TEMPLATE_FIELDS or spec or conversion:
            near = difflib.get_close_matches(name, TEMPLATE_FIELDS, n=1)
            hint = f"did you mean {{{near[0]}}}?" if near and not (spec or conversion) else "there are "
            known = "" if hint.endswith("?") else ", ".join(f"{{{known}}}" for known in TEMPLATE_FIELDS)
            return f"unknown field {{{name}}} in the template ({hint}{known})"
    return None


def with_trigger(text: str, trigger: str) -> str:
    """The caption with the trigger in front, unless it holds the trigger as words of its own."""
    if not trigger or re.search(rf"(?<!\w){re.escape(trigger)}(?!\w)", text, re.IGNORECASE):
        return text
    return f"{trigger} {text}"


def one_line(trigger: str) -> str:
    """A trigger of a recipe, whose brackets are plain already, on one line."""
    return " ".join(visible(trigger).split())


def without_trigger(text: str, trigger: str) -> str:
    """The caption as `with_trigger` was given it, or one of which it makes the same."""
    bare = text.removeprefix(f"{trigger} ") if trigger else text
    return bare if with_trigger(bare, trigger) == text else text


def hand_written(
    project: Path, folder: str, sidecars: Sidecars, pictures: Sequence[str], *, lines: bool
) -> Texts | Problem | None:
    """What the sidecars of one picture say, as they stand on disk, or what is wrong with them; None without any.

    Args:
        project: root of the project.
        folder: of the dataset, relative to it.
        sidecars: of that folder.
        pictures: its paths relative to the folder, of which the first with a sidecar counts.
        lines: whether each line is a caption of its own.
    """
    return _sidecar_of(Folder(path=folder, project=project, trigger="", sidecars=sidecars, lines=lines), pictures)


def _caption_folder(
    folder: Folder, images: Sequence[ImageRecord], spec: Mapping[str, Any]
) -> Iterator[CaptionRecord | Open]:
    origin: Origin = spec["from"]
    captioner = CAPTIONERS.get(origin, _from_model)(folder, spec)
    for image in images:
        paths = [relative_to(path, folder.path) for path in (image.path, *image.duplicates)]
        came_from: Origin = "sidecar"
        texts: Texts | Problem | Fields | None = _sidecar_of(folder, paths)
        if texts is None:
            made = [captioner(path) for path in paths]
            texts, came_from = next((captions for captions in made if isinstance(captions, tuple)), made[0]), origin
        if isinstance(texts, Problem):
            folder.problems.append(texts)
        elif isinstance(texts, dict):
            yield Open(image=image, origin=origin, fields=texts)
        else:
            yield _record(image, texts, folder.trigger, came_from)


def _record(
    image: ImageRecord, texts: Sequence[str], trigger: str, origin: Origin, said: Iterable[tuple[str, str]] = ()
) -> CaptionRecord:
    text, *others = dict.fromkeys(with_trigger(text, trigger) for text in texts)
    return CaptionRecord(
        digest=image.digest,
        dataset=image.dataset,
        text=text,
        origin=origin,
        split=image.split,
        others=tuple(others),
        said=tuple(said),
    )


def _sidecar_of(folder: Folder, paths: Sequence[str]) -> Texts | Problem | None:
    """The captions beside a picture; it may lie at several paths, of which the first with captions counts."""
    found = [caption for path in paths if (caption := _sidecar(folder, path)) is not None]
    problem = next((caption for caption in found if isinstance(caption, Problem)), None)
    if problem is None and len(set(found)) > 1:
        folder.differing.append(f"{folder.path}/{paths[0]}")
    return problem or next(iter(found), None)


def _sidecar(folder: Folder, picture: str) -> Texts | Problem | None:
    """What a picture's caption file says, what is wrong with it, or None where there is none."""
    found: dict[Texts, str] = {}
    for path in folder.sidecars.of(picture):
        name = f"{folder.path}/{path}"
        text = read_text(folder.project / name, name, MOST_OF_SIDECAR)
        if isinstance(text, Problem):
            return text
        texts = tuple(filter(None, map(clean, text.split("\n") if folder.lines else [text])))
        if not texts:
            return Problem(file=name, message="this caption is empty; write what the picture shows, or delete the file")
        found.setdefault(texts, name)
    if len(found) > 1:
        first, second = list(found.values())[:2]
        other = PurePosixPath(first).name
        return Problem(file=second, message=f"says another caption than {other} beside it; keep one of the two")
    return next(iter(found), None)


def _from_sidecar(folder: Folder, spec: Mapping[str, Any]) -> Captioner:
    def caption(picture: str) -> Problem:
        stem = PurePosixPath(picture).stem
        named = caption_from_name(stem) and not is_given(stem)
        else_ = "set caption: {from: filename}" if named else "set caption, such as {from: template, text: …},"
        message = f"no caption: write one into a .txt file of its name beside it, or {else_} in the recipe"
        return Problem(file=f"{folder.path}/{picture}", message=message)

    return caption


def _from_filename(folder: Folder, spec: Mapping[str, Any]) -> Captioner:
    def caption(picture: str) -> Texts | Problem:
        path = PurePosixPath(picture)
        message = f"its name has no words to make a caption of: rename it, or write a caption into {path.stem}.txt"
        text = caption_from_name(path.stem)
        if text and is_given(path.stem):
            folder.given[f"{folder.path}/{picture}"] = text
        return (text,) if text else Problem(file=f"{folder.path}/{picture}", message=message)

    return caption


def _from_template(folder: Folder, spec: Mapping[str, Any]) -> Captioner:
    template: str = spec["template"] if "template" in spec else spec["text"]
    wrong = template_problem(template)

    def caption(picture: str) -> Texts | Problem:
        if wrong is not None:
            return Problem(file=folder.path, message=wrong)
        path = PurePosixPath(folder.path, picture)
        # Only whole names of known fields were let through, so no attribute is ever looked up.
        values = {"name": caption_from_name(path.stem), **_fields(folder, picture)}
        message = f"the template gives an empty caption for it: rename it, or write a caption into {path.stem}.txt"
        text = clean(template.format_map(values))
        return (text,) if text else Problem(file=str(path), message=message)

    return caption


def _fields(folder: Folder, picture: str) -> Fields:
    path = PurePosixPath(folder.path, picture)
    return {
        "stem": caption_from_name(path.stem),
        "folder": caption_from_name(path.parent.name),
        "trigger": folder.trigger,
    }


def _from_model(folder: Folder, spec: Mapping[str, Any]) -> Captioner:
    used = fields_used(spec)

    def caption(picture: str) -> Problem | Fields:
        values = {name: value for name, value in _fields(folder, picture).items() if name in used}
        if "tags" not in used:
            return values
        name = PurePosixPath(folder.path, picture).with_suffix(spec["tags_file"]).as_posix()
        tags = read_text(folder.project / name, name, MOST_OF_SIDECAR) if (folder.project / name).exists() else ""
        return tags if isinstance(tags, Problem) else {**values, "tags": clean(tags)}

    return caption


def _from_jsonl(folder: Folder, spec: Mapping[str, Any]) -> Captioner:
    file = spec.get("file") or "captions.jsonl"
    name = f"{folder.path}/{file}"
    named = (spec.get("name_key"), spec.get("text_key"))
    keys = [tuple(dict.fromkeys((*filter(None, [own]), *usual))) for own, usual in zip(named, JSONL_KEYS, strict=True)]
    captions = _read_jsonl(folder, name, file, keys)

    def caption(picture: str) -> Texts | Problem:
        if isinstance(captions, Problem):
            return captions
        message = f"no caption: add a line with its name to {name}, or write a .txt file beside it"
        return captions.get(nfc(picture)) or Problem(file=f"{folder.path}/{picture}", message=message)

    return caption


CAPTIONERS: dict[str, Callable[[Folder, Mapping[str, Any]], Captioner]] = {
    "sidecar": _from_sidecar,
    "filename": _from_filename,
    "template": _from_template,
    "jsonl": _from_jsonl,
}
"""How captions are made, by the recipe's `caption: {from: …}`; models' are in `sdbuild.captioners`."""


def _read_jsonl(folder: Folder, name: str, file: str, keys: Sequence[Sequence[str]]) -> dict[str, Texts] | Problem:
    """Captions by picture, or why the file cannot be read; wrong lines are added to the folder's problems."""
    if PurePosixPath(file).is_absolute() or ".." in PurePosixPath(file).parts:
        return Problem(file=name, message="a file of captions must lie inside its dataset's folder")
    text = read_text(folder.project / name, name)
    if isinstance(text, Problem):
        return text
    captions: dict[str, Texts] = {}
    # Only line feeds part lines: a caption may hold other separators that str.splitlines would break at.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        row = _jsonl_row(line, keys)
        if isinstance(row, str):
            folder.problems.append(Problem(file=name, line=number, message=row))
            continue
        picture, texts = row
        if captions.setdefault(picture, texts) != texts:
            message = f"a second caption for {picture}; keep one, or make a list of both"
            folder.problems.append(Problem(file=name, line=number, message=message))
    return captions


def _jsonl_row(line: str, keys: Sequence[Sequence[str]]) -> tuple[str, Texts] | str:
    """Picture and captions of a line, or what is wrong with it; `keys` are the names that each may have."""
    example = f'write {{"{keys[0][0]}": "cat.png", "{keys[1][0]}": "a cat"}}'
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return f"not JSON ({str(error).split(':')[0].lower()}); {example}"
    if not isinstance(row, dict):
        return f"not a JSON object; {example}"
    found: list[Texts] = []
    for several, names in enumerate(keys):
        value = next((row[name] for name in names if name in row), None)
        values: list[Any] = value if several and isinstance(value, list) else [value]
        if not values or not all(isinstance(text, str) for text in values):
            return f"`{names[0]}` is missing or not a text; {example}"
        if not all(is_encodable(text) and clean(text) for text in values):
            return f"`{names[0]}` is empty or not valid Unicode; {example}"
        found.append(tuple(values))
    (picture,), texts = found
    return nfc(PurePosixPath(picture).as_posix()), tuple(map(clean, texts))


def _warnings(differing: Sequence[str], given: Mapping[str, str], alone: Sequence[str]) -> Iterator[str]:
    if differing:
        what = "picture occurs" if len(differing) == 1 else "pictures occur"
        yield (
            f"{len(differing)} {what} more than once with different captions; the first path's is used ({differing[0]})"
        )
    for path, text in list(given.items())[:1]:
        what = "1 picture is" if len(given) == 1 else f"{len(given)} pictures are"
        yield (
            f"{what} captioned by a name that a camera or program gave ({path}: {text!r}); "
            "write captions, or set caption: {from: template, text: …}"
        )
    if alone:
        many = len(alone) > 1
        what = f"{len(alone)} caption files belong" if many else "1 caption file belongs"
        yield f"{what} to no picture, so nothing reads {'them' if many else 'it'} ({alone[0]}{', …' if many else ''})"
