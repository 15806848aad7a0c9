"""Paths: of fields in a recipe, and names in a folder."""

from __future__ import annotations

import os
from pathlib import Path

FieldPath = tuple[str | int, ...]
"""Keys and list indices from a recipe's top to a field."""


def dotted(path: FieldPath) -> str:
    """Path of a field as users write it: `datasets[0].path`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")


def names_in(folder: Path) -> list[str]:
    """Names in a folder, sorted, to suggest one of them; none if it cannot be listed."""
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []
