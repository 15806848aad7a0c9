"""Published models without their weights: configurations that sdbuild carries, in diffusers' layout."""

from __future__ import annotations

import json
from pathlib import Path

from sdbuild import families
from sdbuild.families import convert, single
from sdbuild.families.layout import config_name, read_json

LEFT_OUT = "text_encoder_3"
"""T5, whose vocabulary sdbuild does not carry."""


def write_outline(folder: Path, name: str) -> Path:
    """Write all of a base but its weights, and without T5."""
    content = read_json(single.CONFIGS / f"{name}.json")
    components = {part: each for part, each in content["components"].items() if part != LEFT_OUT}
    index = components.pop("model_index")
    for part, each in components.items():
        (folder / part).mkdir(parents=True)
        (folder / part / config_name(part)).write_text(json.dumps(each), encoding="utf-8")
        if part.startswith("tokenizer"):
            convert._write_vocabulary(folder / part)
    description = next(each for each in families.descriptions() if each.name == content["family"])
    convert._write_index(description, folder, index, list(components))
    return folder
