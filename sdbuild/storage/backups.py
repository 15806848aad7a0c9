"""Backups of the user's files: renamed to a free name beside the original."""

from __future__ import annotations

import os
from itertools import count
from pathlib import Path


def free_name(path: Path, ending: str) -> Path:
    """A name beside a path that nothing has: `NAME.ENDING`, else `NAME.ENDING-2` and so on."""
    for number in count(1):
        found = path.with_name(f"{path.name}.{ending}" + (f"-{number}" if number > 1 else ""))
        if not os.path.lexists(found):
            return found
    raise AssertionError("unreachable")


def set_aside(path: Path, ending: str) -> Path:
    """Rename a file, folder or link to a free name beside it, and return that."""
    kept = free_name(path, ending)
    path.rename(kept)
    return kept


def make_folder(root: Path, folder: str) -> list[Path]:
    """Make a folder below `root`; files that lie where folders have to be are set aside, and where is returned."""
    kept = []
    for part in reversed((root / folder, *(root / folder).parents)):
        if part.is_relative_to(root) and os.path.lexists(part) and not part.is_dir():
            kept.append(set_aside(part, "kept"))
    (root / folder).mkdir(parents=True, exist_ok=True)
    return kept
