"""captions: one text for every picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sdbuild.data.captions import caption_records
from sdbuild.data.handwritten import look_at_pictures
from sdbuild.data.records import CaptionRecord, read_captions, read_images, read_skipped, write_captions
from sdbuild.errors import DataError
from sdbuild.steps.contract import Context, Inputs, Items


def run(spec: Mapping[str, Any], inputs: Inputs, out: Path, context: Context) -> Items:
    """Write `captions.jsonl`; computed are the captions that the last one did not have.

    Raises:
        DataError: captions are missing or cannot be read; lists all of them.
    """
    assert inputs.images is not None, "captions need images.jsonl"
    images = read_images(inputs.images)
    captions = caption_records(images, spec, inputs.project)
    if captions.problems:
        raise DataError(captions.problems)
    for warning in captions.warnings:
        context.warn(warning)
    changed = look_at_pictures(images, captions.records, spec["datasets"], inputs.project, context.items)
    if changed:
        context.warn(_look_again(changed, context.previous.name))
    known = _known(context.previous / "captions.jsonl")
    write_captions(out / "captions.jsonl", captions.records, skipped=len(read_skipped(inputs.images)))
    total = len(captions.records)
    context.progress(total, total, "captions")
    computed = sum(known.get(row.key) != (row.origin, row.text, *row.others) for row in captions.records)
    return Items(total=total, computed=computed)


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


def _known(path: Path) -> dict[str, tuple[str, ...]]:
    rows: list[CaptionRecord] = []
    if path.is_file():
        try:
            rows = read_captions(path)
        except DataError:
            rows = []  # it only serves to count what changed
    return {row.key: (row.origin, row.text, *row.others) for row in rows}
