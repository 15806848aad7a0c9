"""Differences in words: between two specs, and between two contents of a view."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def parameter_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Differences of two specs in words, by dotted key; digests under `reads` are left out."""
    before, after = flat(old), flat(new)
    return [
        f"param {key}: {_word(before, key)} -> {_word(after, key)}"
        for key in sorted({*before, *after})
        if key.split(".")[0] != "reads" and before.get(key, _NOTHING) != after.get(key, _NOTHING)
    ]


_NOTHING = object()


def _word(values: Mapping[str, Any], key: str) -> str:
    return json.dumps(values[key], ensure_ascii=False) if key in values else "(none)"


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested JSON as one mapping of dotted keys; lists stay whole unless they hold mappings."""
    if isinstance(value, Mapping) and value:
        found: dict[str, Any] = {}
        for key, inner in value.items():
            found.update(flat(inner, f"{prefix}.{key}" if prefix else str(key)))
        return found
    if isinstance(value, list) and any(isinstance(inner, Mapping) for inner in value):
        found = {}
        for index, inner in enumerate(value):
            found.update(flat(inner, f"{prefix}[{index}]"))
        return found
    return {prefix: value}


_NOUNS: Mapping[str, tuple[str, str]] = {
    "pictures": ("picture file", "picture files"),
    "captions": ("caption", "captions"),
    "pixels": ("picture", "pictures"),
    "texts": ("text", "texts"),
    "records": ("record", "records"),
    "base": ("base model", "base model"),
    "model": ("file of the captioning model", "files of the captioning model"),
}


def describe_change(view: str, old: Any, new: Any) -> list[str]:
    """What changed between two contents of a view, in words."""
    one, many = _NOUNS[view]
    if old is None or new is None:
        return [f"{many} changed"]
    before, after = _rows(old), _rows(new)
    added = [key for key in after if key not in before]
    removed = [key for key in before if key not in after]
    changed = [key for key in after if key in before and before[key] != after[key]]
    reasons = []
    for verb, keys in (("added", added), ("removed", removed), ("changed", changed)):
        if len(keys) == 1:
            name = f": {keys[0]}" if view == "pictures" else ""
            reasons.append(f"1 {one} {verb}{name}")
        elif keys:
            reasons.append(f"{len(keys)} {many} {verb}")
    return reasons or [f"{many} changed"]


def _rows(content: Any) -> dict[str, Any]:
    if not isinstance(content, Mapping):
        return {json.dumps(row if isinstance(row, str) else row[:1]): row for row in content}
    rows: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, Mapping):  # pictures by folder
            rows.update((f"{key}/{path}", md5) for path, md5 in value.items())
        else:
            rows[key] = value
    return rows
