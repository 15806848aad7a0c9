"""Paths of fields in a recipe."""

from __future__ import annotations

FieldPath = tuple[str | int, ...]
"""Keys and list indices from a recipe's top to a field."""


def dotted(path: FieldPath) -> str:
    """Path of a field as users write it: `datasets[0].path`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")
