"""What a step really reads of its inputs, as small JSON-able data.

The oracle computes a view when a coarse input (a dataset folder, `images.jsonl` …) changed: when the view's digest is
the recorded one, the change does not concern the step. Every function is pure apart from reading caption files,
and importing this module is light.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sdbuild.data.captions import caption_records
from sdbuild.data.listing import is_picture
from sdbuild.data.records import CaptionRecord, ImageRecord
from sdbuild.data.tags import distinct_texts
from sdbuild.data.wanted import placements

_OTHERWISE = re.compile(
    r"\\\\[()\[\]\\]|[\x7f-\x9f\u00ad\u034f\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\u2800\u3164\ufeff\uffa0]"
)
"""What cleaning would change: a backslash before a bracket, in JSON, and invisible characters."""


def pictures(listing: Mapping[str, str]) -> dict[str, str]:
    """images: the picture files of one dataset folder.

    Args:
        listing: md5 of every file by its posix path relative to the folder.
    """
    return {path: listing[path] for path in sorted(listing) if is_picture(path)}


def texts_of(images: Iterable[ImageRecord], spec: Mapping[str, Any], project: Path) -> dict[str, Any]:
    """captions: `{"<dataset>:<digest>": [text, origin, split]}`, which is the step's result; further texts come last.

    Of a picture that is left to a model there is no text yet, and last what the model is told of it.

    Mistakes in captions are part of the view (under `problems`), so that it differs from every recorded one: the
    step then runs and reports them.
    """
    captions = caption_records(images, spec, project)
    view: dict[str, Any] = {row.key: [row.text, row.origin, row.split, *row.others] for row in captions.records}
    view.update((each.image.key, [None, each.origin, each.image.split, each.fields]) for each in captions.open)
    if captions.problems:
        view["problems"] = [str(problem) for problem in captions.problems]
    return view


def pixels(images: Iterable[ImageRecord]) -> list[list[Any]]:
    """latents: sorted `[digest, bucket, resize, crop]`, each once; paths and splits do not matter.

    The datasets that see a picture so come last, where others see it in other ways.
    """
    rows = [
        [
            each.record.digest,
            *map(list, (each.fit.bucket, each.fit.resize, each.fit.crop, *filter(None, [each.datasets]))),
        ]
        for each in placements(images)
    ]
    return sorted(rows)


def read_otherwise(captions: Path) -> bool:
    """Whether a `captions.jsonl` may hold text that today's cleaning would change, as earlier releases wrote it.

    True for the texts of few recipes, whose view has to be made again to know. What is not on disk holds nothing.
    """
    try:
        return _OTHERWISE.search(captions.read_text(encoding="utf-8", errors="replace")) is not None
    except OSError:
        return False


def texts(captions: Iterable[CaptionRecord], spec: Mapping[str, Any]) -> list[str]:
    """text: sorted texts that records may be seen with, each once."""
    return sorted(distinct_texts(captions, spec))


def records(captions: Iterable[CaptionRecord]) -> dict[str, Any]:
    """train: `{"<dataset>:<digest>": [text, split]}`, further texts last; where a caption came from does not matter."""
    return {row.key: [row.text, row.split, *row.others] for row in captions}


def digest_of(view: Any) -> str:
    """sha256 (hex) of a view's canonical JSON."""
    canonical = json.dumps(view, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()
