"""captions: one text for every picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdbuild.data.captions import caption_records
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
    known = _known(context.previous / "captions.jsonl")
    write_captions(out / "captions.jsonl", captions.records, skipped=len(read_skipped(inputs.images)))
    total = len(captions.records)
    context.progress(total, total, "captions")
    computed = sum(known.get(row.key) != (row.origin, row.text, *row.others) for row in captions.records)
    return Items(total=total, computed=computed)


def _known(path: Path) -> dict[str, tuple[str, ...]]:
    rows: list[CaptionRecord] = []
    if path.is_file():
        try:
            rows = read_captions(path)
        except DataError:
            rows = []  # it only serves to count what changed
    return {row.key: (row.origin, row.text, *row.others) for row in rows}
