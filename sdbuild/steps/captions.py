"""captions: one text for every picture, from files or from models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sdbuild.captioners.asking import content_of, said_in, sections
from sdbuild.captioners.captioning import Surroundings, caption
from sdbuild.captioners.said import FOLDER
from sdbuild.data.captions import Captions, caption_records
from sdbuild.data.grouped_problems import group_similar
from sdbuild.data.handwritten import look_at_pictures
from sdbuild.data.records import CaptionRecord, read_captions, read_images, read_skipped, write_captions
from sdbuild.errors import DataError
from sdbuild.steps.contract import Context, Inputs, Items


def run(spec: Mapping[str, Any], inputs: Inputs, out: Path, context: Context) -> Items:
    """Write `captions.jsonl`; computed are the captions that the last one did not have, and those that were asked for.

    Raises:
        DataError: captions are missing or cannot be read; lists all of them.
        StepError: models did not give all captions; those that arrived are kept.
    """
    assert inputs.images is not None, "captions need images.jsonl"
    captions = check(spec, inputs, context)
    known = _known(context.previous / "captions.jsonl")
    asked: set[str] = set()
    made: list[CaptionRecord] = []
    if captions.open:
        around = Surroundings(
            project=inputs.project,
            store=context.items / FOLDER,
            background=spec["background"],
            progress=context.progress,
            warn=context.warn,
        )
        left = sections(captions.open, spec, inputs.how, content_of(spec, inputs.project))
        made, asked = caption(left, said_in(known.values()), around)
    rows = [*captions.records, *made]
    write_captions(out / "captions.jsonl", rows, skipped=len(read_skipped(inputs.images)))
    context.progress(len(rows), len(rows), "captions")
    return Items(total=len(rows), computed=sum(row.key in asked or _is_new(row, known) for row in rows))


def check(spec: Mapping[str, Any], inputs: Inputs, context: Context) -> Captions:
    """Caption what needs no model.

    Raises:
        DataError: captions are missing or cannot be read; lists all of them.
    """
    assert inputs.images is not None
    images = read_images(inputs.images)
    captions = caption_records(images, spec, inputs.project)
    if captions.problems:
        raise DataError(group_similar(captions.problems))
    for warning in captions.warnings:
        context.warn(warning)
    changed = look_at_pictures(images, captions.records, spec["datasets"], inputs.project, context.items)
    if changed:
        context.warn(_look_again(changed, context.previous.name))
    return captions


def _look_again(pictures: Sequence[str], recipe: str) -> str:
    """A question to the user; their text counts meanwhile."""
    command = f"sdbuild captions {{}} {recipe}"
    if len(pictures) == 1:
        what, which, words = f"the picture under the hand-written caption of {pictures[0]}", pictures[0], "it fits"
    else:
        what, which, words = f"the pictures under {len(pictures)} hand-written captions", "--changed", "they fit"
        what += f" ({pictures[0]}, …)"
    look, confirm = (f"`{command.format(verb)} {which}`" for verb in ("edit", "confirm"))
    return f"{what} changed; your text is used. Change the text with {look}, or say that {words} with {confirm}"


def _is_new(row: CaptionRecord, known: Mapping[str, CaptionRecord]) -> bool:
    """Whether a caption from files differs from the last one; models' are new where they were asked for."""
    before = known.get(row.key)
    return not row.said and (before is None or _shown(before) != _shown(row))


def _shown(row: CaptionRecord) -> tuple[str, str, tuple[str, ...]]:
    return row.origin, row.text, row.others


def _known(path: Path) -> dict[str, CaptionRecord]:
    if path.is_file():
        try:
            return {row.key: row for row in read_captions(path)}
        except DataError:
            return {}  # it serves to count what changed, and to ask for less
    return {}
