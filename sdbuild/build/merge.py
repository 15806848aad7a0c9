"""Merging what builds write: git's merge driver for `dvc.lock`, `dvc.yaml` and `recipe.json`.

All three say for each step or key what a build left or would write, so two branches are merged entry by entry and
nothing in them is ever a conflict for people. Where both changed the same entry differently, ours is taken whole: the
next build compares it with the merged recipe, and what either branch had built is found in the run-cache. A file that
was edited by hand or is damaged is left to git's own merge of text.
"""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from sdbuild.build import blocks
from sdbuild.build.lockfile import load_yaml
from sdbuild.build.project import Project
from sdbuild.plan.files import HEADER, dump_recipe_json
from sdbuild.recipe.names import group_of
from sdbuild.storage.atomic import write_atomic

ATTRIBUTES = ("/dvc.lock merge=sdbuild", "/dvc.yaml merge=sdbuild", "/build/*/recipe.json merge=sdbuild")
"""Lines of `.gitattributes` that name the driver; they are in the repository."""

_SETTINGS = {
    "merge.sdbuild.name": "what sdbuild compiles and records, merged by entry",
    "merge.sdbuild.driver": "sdbuild merge-file %O %A %B %P",
}
"""What the driver is, in git's configuration; git does not clone that."""

_OUTS = re.compile(r"\bbuild/([^/\s]+)/")
_ABSENT: Final = object()


def merge_file(base: Path, ours: Path, theirs: Path, name: str) -> bool:
    """Merge `theirs` into `ours`, as git asks a driver to; whether it went without conflict.

    Args:
        base: the common ancestor, empty where there is none.
        ours: is overwritten with the result; on a conflict with git's marks in it.
        theirs: the other version.
        name: path of the file in the repository, which says what it is.
    """
    sides = [path.read_bytes() for path in (base, ours, theirs)]
    try:
        result = merged(*(side.decode() for side in sides), name=name)
    except (ValueError, TypeError, AttributeError, yaml.YAMLError):
        command = ["git", "merge-file", "-L", "ours", "-L", "base", "-L", "theirs", str(ours), str(base), str(theirs)]
        return subprocess.run(command, check=False, capture_output=True).returncode == 0
    write_atomic(ours, result)
    return True


def merged(base: str, ours: str, theirs: str, *, name: str) -> str:
    """The merged text of a file.

    Raises:
        ValueError, TypeError, AttributeError, yaml.YAMLError: one of the texts is not what sdbuild or DVC write, or
            the file is none of the three.
    """
    texts = (base, ours, theirs)
    match name.rsplit("/", 1)[-1]:
        case "recipe.json":
            content = _three_way(*map(_resolved, texts))
            return dump_recipe_json({**content, "base": json.loads(content["base"])})
        case "dvc.lock":
            return _merged_entries(*map(_sections, texts))
        case "dvc.yaml":
            if not all(text.startswith(HEADER) for text in texts if text.strip()):
                raise ValueError("not compiled by sdbuild")
            return HEADER + _merged_entries(*map(_sections, texts))
    raise ValueError(f"{name} is not written by sdbuild")


def _merged_entries(*sides: blocks.Sections) -> str:
    titles = list(_in_order(*sides[1:]))
    sections = _three_way(*({title: side.get(title, {}) for title in titles} for side in sides))
    return blocks.join({title: entries for title, entries in sections.items() if entries or title == "stages"})


def _sections(text: str) -> blocks.Sections:
    """The entries of a file that is valid YAML."""
    sections, content = blocks.split(text), load_yaml(text)
    for title, entries in sections.items():
        if "" not in entries and len(content.get(title)) != len(entries):
            raise ValueError(f"{title} cannot be cut into its entries")
    return sections


def _resolved(text: str) -> dict[str, Any]:
    """A resolved recipe; its base is one value, since a commit belongs to a model and a revision."""
    content = json.loads(text) if text.strip() else {}
    if not isinstance(content, dict):
        raise ValueError("not a resolved recipe")
    return {**content, "base": json.dumps(content.get("base"))}


def _three_way(base: Any, ours: Any, theirs: Any) -> Any:
    if isinstance(ours, dict) and isinstance(theirs, dict):
        base = base if isinstance(base, dict) else {}
        sides = (base, ours, theirs)
        values = {name: _three_way(*(side.get(name, _ABSENT) for side in sides)) for name in _in_order(ours, theirs)}
        return {name: value for name, value in values.items() if value is not _ABSENT}
    if ours == base or (ours is _ABSENT and theirs != base):  # what one deleted and the other changed stays
        return theirs
    return ours


def _in_order(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Iterator[str]:
    """The names of both, each side's order kept; what only one has comes in the order of recipes."""
    left, right = list(ours), list(theirs)
    while left and right:
        if left[0] == right[0]:
            right.pop(0)
            yield left.pop(0)
        elif left[0] not in theirs and (right[0] in ours or _rank(left[0], ours) <= _rank(right[0], theirs)):
            yield left.pop(0)
        elif right[0] not in ours:
            yield right.pop(0)
        else:  # both have both, in another order
            right.remove(left[0])
            yield left.pop(0)
    yield from left or right


def _rank(name: str, entries: Mapping[str, Any]) -> tuple[bool, str]:
    """Where a name stands among others: recipes are planned in the order of their files, and grids plotted last."""
    text = entries[name]
    if not isinstance(text, str):
        return False, name
    outs = _OUTS.search(text)
    return text.count("\n") == 1, f"{group_of(outs[1] if outs else name)}.yaml"


def ensure_merge_driver(project: Project) -> bool:
    """Make the driver known to a clone that lacks it; whether it had to be. Cheap, and silent where it cannot be."""
    config = _git_config(project.root)
    try:
        if config is None or re.search(r'^\[merge "sdbuild"\]', config.read_text(errors="replace"), re.MULTILINE):
            return False
        for key, value in _SETTINGS.items():
            subprocess.run(["git", "config", "--file", str(config), key, value], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return False
    return True


def _git_config(root: Path) -> Path | None:
    """The configuration file of the clone that a folder is in; worktrees share it."""
    for folder in (root, *root.parents):
        entry = folder / ".git"
        if entry.is_dir():
            return entry / "config"
        if entry.is_file():
            with contextlib.suppress(OSError):
                git = folder / entry.read_text().removeprefix("gitdir:").strip()
                shared = git / "commondir"
                return (git / shared.read_text().strip() if shared.exists() else git) / "config"
    return None
